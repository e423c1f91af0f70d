"""Role conda_mirror: what it writes, what it refuses, and that it agrees with the engine."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import textwrap
import time
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from lanmirror_sync.choice import Choice
from lanmirror_sync.config import DEFAULTS, load
from lanmirror_sync.installers import Entry, Ledger
from lanmirror_sync.store import Store
from packaging.requirements import Requirement

from roles.conda_mirror.filter_plugins import conda_mirror_checks as checks
from roles.conda_mirror.library import conda_mirror_data as data
from tests.roles.render import ROOT, defaults, evaluate, render, run_module, tasks
from tests.roles.render import load as role_file
from tests.roles.render import written as written_by

ROLE = ROOT / "roles/conda_mirror"
PAGE = ROOT / "docs/sync-engine.md"


def written(tmp_path: Path, **variables: Any) -> Path:
    """Return the engine's configuration as the role writes it."""
    file = tmp_path / "conda_mirror.yml"
    file.write_text(render("conda_mirror", "conda_mirror.yml.j2", **variables))
    return file


# ---- the engine's configuration ------------------------------------------------------------------------------


def test_configuration_of_the_defaults_is_the_engines_own(tmp_path: Path) -> None:
    empty = tmp_path / "empty.yml"
    empty.write_text("{}\n")
    wanted = load(empty, {})
    # The engine, which also runs on its own, asks for less room than a server should keep, and holds what it names.
    theirs = {
        f"conda_mirror_{key}": DEFAULTS[key] for key in ("min_free_gib", "on_demand", "repos", "cloud", "installers")
    }
    assert load(written(tmp_path, **theirs), {}) == wanted


def test_configuration_is_what_the_variables_say(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    config = load(
        written(
            tmp_path,
            conda_mirror_upstream={"repo": "http://192.0.2.1:8080/a/", "cloud": "http://192.0.2.1:8080/c"},
            conda_mirror_repos=["main"],
            conda_mirror_arches=["linux-64", "noarch"],
            conda_mirror_cloud=["conda-forge/noarch"],
            conda_mirror_installers={"dists": ["miniconda"], "suffixes": [".sh"]},
            conda_mirror_exclude=["a", "yes", "1.0"],
            conda_mirror_working_dir="/data/conda",
            conda_mirror_min_free_gib="7.5",
            conda_mirror_jobs="3",
            conda_mirror_retries="2",
            conda_mirror_timeout_seconds="9",
            conda_mirror_delete_grace_hours="48",
            conda_mirror_ca_bundle=str(bundle),
            __conda_mirror_bundle={"stat": {"isreg": True}},
        ),
        {},
    )
    assert [(str(subdir.path), subdir.url) for subdir in config.subdirs()] == [
        ("pkgs/main/noarch", "http://192.0.2.1:8080/a/pkgs/main/noarch"),
        ("pkgs/main/linux-64", "http://192.0.2.1:8080/a/pkgs/main/linux-64"),
        ("cloud/conda-forge/noarch", "http://192.0.2.1:8080/c/conda-forge/noarch"),
    ]
    assert (config.dists, config.suffixes) == (("miniconda",), (".sh",))
    assert config.exclude == ("a", "yes", "1.0")
    assert config.working_dir == Path("/data/conda")
    assert (config.min_free_gib, config.jobs, config.retries) == (7.5, 3, 2)
    assert (config.timeout_seconds, config.delete_grace_hours, config.ca_bundle) == (9, 48, str(bundle))


def test_configuration_of_what_comes_on_demand(tmp_path: Path) -> None:
    config = load(
        written(
            tmp_path,
            conda_mirror_on_demand="yes",
            conda_mirror_repos=[{"name": "main", "hold": "none"}, "r"],
            conda_mirror_arches=["noarch"],
            conda_mirror_cloud=[{"name": "conda-forge/label/broken/noarch", "hold": "none"}],
        ),
        {},
    )
    assert config.on_demand
    assert (config.installers_hold, config.listed) == ("none", ("miniconda", "archive"))
    assert config.cache == "http://127.0.0.1:3140/+kept"
    assert [(str(subdir.path), subdir.hold) for subdir in config.subdirs()] == [
        ("pkgs/main/noarch", "none"),
        ("pkgs/r/noarch", "all"),
        ("cloud/conda-forge/label/broken/noarch", "none"),
    ]


def test_hold_of_an_entry_comes_to_the_engine_as_it_was_written(tmp_path: Path) -> None:
    hold = yaml.safe_load(
        "{include: [numpy, 'pytorch=*=*cuda*'], exclude: ['numpy<1.26'], keep_latest: 2, newer_than: 2024-01-01,"
        " max_size: 2 GiB, keep: [/srv/environments/, /srv/a.yml]}"
    )
    choice = Choice(
        ("numpy", "pytorch=*=*cuda*"), ("numpy<1.26",), 2, 1_704_067_200, 2 << 30, ("/srv/environments", "/srv/a.yml")
    )
    entries: dict[str, Any] = {
        "conda_mirror_repos": [{"name": "main", "hold": hold}, "r"],
        "conda_mirror_arches": ["noarch"],
        "conda_mirror_cloud": [{"name": "conda-forge/noarch", "hold": {"keep": ["/srv/a.yml"]}}],
    }
    config = load(written(tmp_path, **entries), {})
    assert [(subdir.hold, subdir.choice) for subdir in config.subdirs()] == [
        ("some", choice),
        ("all", None),
        ("some", Choice(keep=("/srv/a.yml",))),
    ]
    assert refusals(**entries) == []
    asked = "{{ __conda_mirror_rules | conda_mirror_keep }}"
    assert evaluate("conda_mirror", asked, **entries) == ["/srv/environments", "/srv/a.yml"]
    assert evaluate("conda_mirror", asked) == []
    for given, needed in ((entries, True), ({"conda_mirror_block": ["a>1"]}, True), ({}, False)):
        assert ("py-rattler==" in evaluate("conda_mirror", "{{ __conda_mirror_requirements }}", **given)) == needed


def test_keep_sets_that_are_not_on_the_server_are_named(tmp_path: Path) -> None:
    there = tmp_path / "environment.yml"
    there.touch()
    paths = [str(there), str(tmp_path), str(tmp_path / "no.yml")]
    script = ROLE / "library/conda_mirror_data.py"
    found = run_module(script, tmp_path, config_file=str(tmp_path / "none.yml"), keep=paths)
    assert found["absent"] == [paths[-1]]


def test_bundle_of_the_controller_is_the_engines_where_the_server_has_none() -> None:
    given: dict[str, Any] = {"conda_mirror_ca_bundle": "/srv/lab.pem"}
    for stat, wanted in (({"isreg": True}, "/srv/lab.pem"), ({}, "/opt/lanmirror/conda_mirror/way-out.pem")):
        text = render("conda_mirror", "conda_mirror.yml.j2", **given, __conda_mirror_bundle={"stat": stat})
        assert yaml.safe_load(text)["ca_bundle"] == wanted


def test_each_setting_of_the_engine_is_a_variable_of_the_same_name() -> None:
    settings = role_file("conda_mirror", "vars/main.yml")["__conda_mirror_config"]
    for key, value in settings.items():
        assert key in DEFAULTS
        if key == "health":
            # The watchdog judges by variables of several names.
            assert value.keys() == DEFAULTS[key].keys()
            continue
        assert re.fullmatch(rf"\{{\{{ (__)?conda_mirror_{key}( \| (int|float))? \}}\}}", value), key


def test_names_are_those_of_entries_of_either_form() -> None:
    paths = evaluate(
        "conda_mirror",
        "{{ __conda_mirror_channels }}",
        conda_mirror_repos=["main", {"name": "r", "hold": "none"}],
        conda_mirror_arches=["noarch", "linux-64"],
        conda_mirror_cloud=[{"name": "conda-forge/label/broken/noarch"}, "conda-forge/linux-64"],
    )
    assert paths == [
        "pkgs/main/noarch",
        "pkgs/main/linux-64",
        "pkgs/r/noarch",
        "pkgs/r/linux-64",
        "cloud/conda-forge/label/broken/noarch",
        "cloud/conda-forge/linux-64",
    ]


# ---- the watchdog --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, (48, 30, Path("/var/cache/lanmirror-conda"))),
        ({"conda_mirror_index_minutes": "45", "conda_mirror_cache_dir": "/b/"}, (48, 45, Path("/b/lanmirror-conda"))),
        ({"conda_mirror_cron_weekday": "sun"}, (192, 30, Path("/var/cache/lanmirror-conda"))),
        ({"conda_mirror_cron_enabled": "no"}, (0, 0, Path("/var/cache/lanmirror-conda"))),
        ({"conda_mirror_on_demand": "no", "conda_mirror_repos": ["main"], "conda_mirror_cloud": [],
          "conda_mirror_installers": {}}, (48, 30, None)),
    ],
)  # fmt: skip
def test_watchdog_judges_by_the_schedule(tmp_path: Path, variables: dict[str, Any], wanted: tuple[Any, ...]) -> None:
    health = load(written(tmp_path, **variables), {}).health
    assert (health.sync_hours, health.index_minutes, health.cache_dir) == wanted
    assert (health.upstreams_socket is None) == (health.cache_dir is None)


def test_watchdog_is_kept_to_what_it_writes_and_the_engine_takes_its_command_line(tmp_path: Path) -> None:
    unit = render(
        "conda_mirror",
        "conda-watch.service.j2",
        conda_mirror_working_dir="/data/conda/",
        conda_mirror_metrics_file="/srv/metrics/conda.prom",
        __conda_mirror_python=sys.executable,
        __conda_mirror_engine=str(ROOT / "files/anaconda_sync.py"),
        __conda_mirror_watch_public=str(tmp_path),
        __conda_mirror_config_file=str(written(tmp_path)),
    ).splitlines()
    paths = [line for line in unit if line.startswith("ReadWritePaths=")]
    assert paths == ["ReadWritePaths=-/data/conda", "ReadWritePaths=-/srv/metrics"]
    for line in (
        "User=conda-mirror",
        "ProtectSystem=strict",
        "CapabilityBoundingSet=",
        "RestrictAddressFamilies=AF_UNIX",
        "RuntimeDirectory=conda-watch",
        "Restart=always",
    ):
        assert line in unit
    (command,) = [line.removeprefix("ExecStart=") for line in unit if line.startswith("ExecStart=")]
    done = subprocess.run([*command.split(), "--check-config"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    bare = render("conda_mirror", "conda-watch.service.j2")
    assert bare.count("ReadWritePaths=") == 1
    assert "ReadWritePaths=-/srv/mirror/conda\n" in bare


def test_watchdog_is_started_anew_before_what_it_ran_from_goes() -> None:
    steps = [task["ansible.builtin.import_tasks"] for task in tasks("conda_mirror", "main.yml")[1:]]
    assert steps.index("schedule.yml") < steps.index("watch.yml") < steps.index("clean.yml")
    handler = "Restart the Conda mirror's watchdog"
    (engine,) = [task["vars"] for task in tasks("conda_mirror", "install.yml") if "vars" in task]
    assert handler in engine["python_venv_notify"]
    told = {
        PurePosixPath(one["path"]).name
        for task in tasks("conda_mirror", "schedule.yml")
        for one in written_by("conda_mirror", task)
        if task["notify"] == handler
    }
    # Of the entry for cron and of the rotation is one name.
    assert told == {"conda_mirror.yml", "conda-watch.service", "lanmirror-conda-mirror"}
    handlers = yaml.safe_load((ROLE / "handlers/main.yml").read_text())
    assert handler in {task["listen"] for task in handlers}
    watch = tasks("conda_mirror", "watch.yml")
    assert [task.get("ansible.builtin.meta") for task in watch].index("flush_handlers") == 0


# ---- the preflight -------------------------------------------------------------------------------------------


FACTS = {"os_family": "Debian", "distribution": "Debian", "distribution_version": "12", "python_version": "3.11.2"}


def refusals(facts: dict[str, Any] = FACTS, **variables: Any) -> list[str]:
    """Return what the preflight finds wrong about the variables of the role."""
    return checks.problems({**defaults("conda_mirror"), **variables}, "server", facts)


def test_good_input_is_accepted() -> None:
    assert refusals() == []
    text: dict[str, Any] = {
        "jobs": "3",
        "timeout_seconds": "0.5",
        "min_free_gib": "0",
        "delete": "yes",
        "cron_enabled": "False",
    }
    assert refusals(**{f"conda_mirror_{name}": value for name, value in text.items()}) == []
    assert (
        refusals(conda_mirror_working_dir="/data/conda/", conda_mirror_cron_hour=3, conda_mirror_limit_rate=1000) == []
    )
    assert refusals(conda_mirror_http_proxy="http://user:secret@proxy.lab.lan:3128") == []
    on_demand: dict[str, Any] = {"conda_mirror_on_demand": "yes", "conda_mirror_index_minutes": "60"}
    assert refusals(conda_mirror_repos=[{"name": "main", "hold": "none"}, {"name": "r"}], **on_demand) == []


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"min_age_days": "-1"}, ("conda_mirror_min_age_days", "-1", "36500")),
        ({"block": ["pkg=>2"]}, ("conda_mirror_block", "pkg=>2", "must be a name")),
        ({"block": ["a"], "allow": ["a"]}, ("conda_mirror_block", "so has allow")),
        ({"arches": ["noarch", "linux64"]}, ("conda_mirror_arches", "linux64", "did you mean linux-64", "win-64")),
        ({"repos": "main"}, ("conda_mirror_repos", "'main'", "a list")),
        ({"arches": None}, ("conda_mirror_arches is null", "[]")),
        ({"upstream": None}, ("conda_mirror_upstream is null", "{}")),
        ({"http_proxy": None}, ("conda_mirror_http_proxy is null", '""')),
        (
            {"repos": "main"},
            ("conda_mirror_repos is 'main'", "conda_mirror_repos=['main']", '{"conda_mirror_repos": ["'),
        ),
        ({"upstream": "{}"}, ("conda_mirror_upstream", "a mapping", "INI", "{'repo':")),
        ({"site": "http://a"}, ("conda_mirror_site", "a mapping", "INI")),
        ({"jobs": "many"}, ("conda_mirror_jobs is 'many'", "a whole number from 1 to 256")),
        ({"jobs": "1.5"}, ("conda_mirror_jobs is 1.5", "a whole number from 1 to 256")),
        ({"jobs": True}, ("conda_mirror_jobs is True", "a whole number from 1 to 256")),
        ({"timeout_seconds": "soon"}, ("conda_mirror_timeout_seconds is 'soon'", "a number from 0.1 to 3600")),
        ({"max_delete": ""}, ("conda_mirror_max_delete is ''", "a number from 0 to 100")),
        ({"delete": "maybe"}, ("conda_mirror_delete is 'maybe'", "true, false")),
        ({"cron_enabled": 2}, ("conda_mirror_cron_enabled is '2'", "true, false")),
        ({"remove_data": "all"}, ("conda_mirror_remove_data is 'all'", "true, false")),
        (
            {"on_demand": "maybe", "repos": ["main"], "cloud": [], "installers": {}},
            ("conda_mirror_on_demand is 'maybe'", "true, false"),
        ),
        (
            {"repos": ["main", {"name": "r", "hold": "none"}], "cloud": [], "on_demand": False},
            ("conda_mirror_repos", "hold: none for r", "on_demand: true"),
        ),
        (
            {"repos": ["main"], "cloud": [], "on_demand": False},
            ("conda_mirror_installers has hold: none", "on_demand: true", "hold: all"),
        ),
        ({"installers": {"hold": "some"}}, ("conda_mirror_installers.hold is 'some'", "all, none")),
        ({"cloud": [{"name": "a/noarch", "hold": "some"}]}, ("conda_mirror_cloud", "a/noarch", "'some'", "all, none")),
        ({"repos": [{"name": "main", "held": "all"}]}, ("conda_mirror_repos", "'held'", "name, hold")),
        (
            {"repos": [{"name": "main", "hold": {"keep_newest": 1}}]},
            ("conda_mirror_repos: hold of main has 'keep_newest'", "did you mean keep_latest?"),
        ),
        (
            {"cloud": [{"name": "a/noarch", "hold": {"exclude": ["b=>1"]}}]},
            ('conda_mirror_cloud: hold of a/noarch: exclude has "b=>1"', "must be a MatchSpec"),
        ),
        (
            {"cloud": [{"name": "a/noarch", "hold": {"keep": ["environment.yml"]}}]},
            ("conda_mirror_cloud: hold of a/noarch: keep is 'environment.yml'", "absolute paths"),
        ),
        ({"index_minutes": "0"}, ("conda_mirror_index_minutes is '0'", "from 1 to 60")),
        ({"index_minutes": 61}, ("conda_mirror_index_minutes is '61'", "from 1 to 60")),
        ({"index_minutes": True}, ("conda_mirror_index_minutes is 'True'", "from 1 to 60")),
        ({"cron_hour": "24"}, ("conda_mirror_cron_hour is '24'", "0 to 23")),
        ({"working_dir": "/srv/a b"}, ("conda_mirror_working_dir is '/srv/a b'", "letters, digits")),
        ({"working_dir": "/srv/../a"}, ("conda_mirror_working_dir is '/srv/../a'", "an absolute path")),
        ({"server_names": "conda.lab.lan"}, ("conda_mirror_server_names is 'conda.lab.lan'", "a list", "INI")),
        ({"server_names": ["http://conda.lab.lan"]}, ("conda_mirror_server_names", "a list of host names")),
        ({"http_proxy": "proxy:3128"}, ("conda_mirror_http_proxy is 'proxy:3128'", "with its scheme")),
        ({"pip_index_url": "u:hush@m/simple"}, ("conda_mirror_pip_index_url is '***@m/simple'", "with its scheme")),
        ({"pip_index_url": 7}, ("conda_mirror_pip_index_url is '7'", "with its scheme")),
        ({"exclude": [1.5]}, ("conda_mirror_exclude", "1.5", "a list of words")),
        (
            {"upstream": {"repo": "mirror.example.org/anaconda", "cloud": "http://c"}},
            ("conda_mirror_upstream.repo", "mirror.example.org/anaconda", "a URL with its scheme"),
        ),
        ({"upstream": {"repos": "http://a"}}, ("conda_mirror_upstream.repos", "did you mean upstream.repo?")),
        ({"upstream": "http://a"}, ("conda_mirror_upstream", "http://a", "a mapping")),
        ({"cloud": ["conda-forge"]}, ("conda_mirror_cloud", "conda-forge", "<channel>/<arch>")),
        ({"cloud": ["conda-forge/linux64"]}, ("conda_mirror_cloud", "linux64", "did you mean linux-64")),
        ({"working_dir": "srv/mirror"}, ("conda_mirror_working_dir", "srv/mirror", "an absolute path")),
        ({"jobs": 0}, ("conda_mirror_jobs", "0", "from 1 to 256")),
        (
            {"repos": [], "cloud": [], "installers": {"dists": [], "suffixes": []}},
            ("conda_mirror_repos", "conda_mirror_cloud", "dists and urls of conda_mirror_installers", "all empty"),
        ),
    ],
)
def test_bad_input_gets_one_message(variables: dict[str, Any], words: tuple[str, ...]) -> None:
    (message,) = refusals(**{f"conda_mirror_{name}": value for name, value in variables.items()})
    assert "hush" not in message
    assert message.startswith("conda_mirror_")
    assert [word for word in words if word not in message] == []
    assert "\n" not in message


def test_mirror_may_hold_installers_from_elsewhere_alone() -> None:
    urls = {"miniforge": ["https://mirror.example.org/Miniforge3-Linux-x86_64.sh"]}
    assert refusals(conda_mirror_repos=[], conda_mirror_installers={"dists": [], "suffixes": [], "urls": urls}) == []


# What `crontab` of Debian 12 and 13 takes and refuses; it also takes `10-5`, `fri-mon` and `0;`, which never come
# or are a slip.
CRON = {
    "minute": (("0", "*", "*/15", "0,30", "5-10", "0-59/7", "59", "00", "1-3,7"),
               ("60", "", "a", "-1", "*/0", "5-", "10-5", "1,,2", "5/10", "1 2", "0;", "1\n", "*/", "@daily")),
    "hour": (("9", "0-23", "*/6"), ("24", "9am", "23-25")),
    "weekday": (("*", "0", "7", "mon", "MON-Fri", "1-5", "sat,sun", "sun-sat"), ("8", "monday", "funday", "fri-mon")),
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "good"),
    [(field, value, good) for field, cases in CRON.items() for good in (True, False) for value in cases[not good]],
)
def test_schedule_that_cron_refuses_is_refused(field: str, value: str, good: bool) -> None:
    message = checks.cron_problem(value, field)
    assert (message == "") == good
    if not good:
        assert f"conda_mirror_cron_{field} is '{value}'; allowed: *, or numbers from 0 to " in message


def test_key_of_the_installers_that_is_not_set_has_its_default(tmp_path: Path) -> None:
    some: dict[str, Any] = {"conda_mirror_installers": {"suffixes": [".sh"]}}
    assert refusals(**some) == []
    config = load(written(tmp_path, **some), {})
    assert (config.dists, config.suffixes) == (("miniconda", "archive"), (".sh",))
    # As where an inventory of before the key is set.
    assert (config.installers_hold, config.listed) == ("all", ())
    assert '<a href="/anaconda/archive/">' in render("conda_mirror", "portal.html.j2", **some)


def mirror(folder: Path) -> Path:
    """Make a folder with something of a mirror in it."""
    (folder / "pkgs/main/noarch").mkdir(parents=True)
    return folder


def test_mirror_that_another_folder_would_lose(tmp_path: Path) -> None:
    old = mirror(tmp_path / "old")
    assert data.setting(tmp_path / "none.yml", "working_dir") == ""
    assert data.setting(written(tmp_path, conda_mirror_working_dir=f"{old}/"), "working_dir") == str(old)
    assert data.mirrors(old)
    (tmp_path / "new").mkdir()
    (tmp_path / "link").symlink_to(old)
    (tmp_path / "begun/pkgs").mkdir(parents=True)
    found = {name: data.mirrors(tmp_path / name) for name in ("new", "link", "begun", "gone", "conda_mirror.yml")}
    assert found == {"new": False, "link": True, "begun": False, "gone": False, "conda_mirror.yml": False}
    assert data.existing(tmp_path / "gone/far") == tmp_path


def test_module_compares_the_installed_folder_with_the_wanted_one(tmp_path: Path) -> None:
    old = mirror(tmp_path / "old")
    look: dict[str, Any] = {"config_file": str(written(tmp_path, conda_mirror_working_dir=str(old)))}
    lost = {
        name: run_module(Path(data.__file__), tmp_path, **look, working_dir=str(tmp_path / name))["lost"]
        for name in ("old", "new")
    }
    assert lost == {"old": False, "new": True}


def test_folder_of_installers_from_elsewhere_is_a_mirror(tmp_path: Path) -> None:
    folder = tmp_path / "conda"
    for path in ("miniforge/Miniforge3.sh", "theirs/thesis.tex"):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "elsewhere").mkdir()
    assert not data.mirrors(folder)
    store = Store(folder)
    store.create()
    ledger = Ledger(store)
    # The others are what the engine never writes.
    # None of them is a path of the machine's own: a test that is broken on purpose would delete it.
    for path in ("miniforge/Miniforge3.sh", "../outside/x", f"{tmp_path}/elsewhere/x", "theirs"):
        ledger.entries[path] = Entry(0, "")
    ledger.save()
    # A page alone, of a folder whose installers come on demand.
    (folder / "mirrored").mkdir()
    for dist in ("mirrored", "..", "."):
        (folder / f".lanmirror/public/installers-{dist}.json").touch()
    assert data.mirrors(folder)
    assert data.delete(folder) is False
    assert [path.name for path in folder.iterdir()] == ["theirs"]
    assert (tmp_path / "outside").exists()
    assert (tmp_path / "elsewhere").exists()


def test_only_what_the_engine_made_is_deleted(tmp_path: Path) -> None:
    others = mirror(tmp_path / "disk/others")
    for part in ("cloud/conda-forge", "miniconda", "archive"):
        (others / part).mkdir(parents=True)
    (others / ".lanmirror/public").mkdir(parents=True)
    (others / "thesis.tex").touch()
    assert data.delete(others) is False
    assert [path.name for path in others.iterdir()] == ["thesis.tex"]
    alone = mirror(tmp_path / "srv/mirror/conda")
    (tmp_path / "srv/stays").touch()
    assert data.delete(alone) is True
    assert [path.name for path in (tmp_path / "srv").iterdir()] == ["stays"]


def test_settings_are_read_from_the_installed_configuration(tmp_path: Path) -> None:
    assert data.setting(written(tmp_path), "metrics_file") == ""
    assert data.setting(written(tmp_path, conda_mirror_metrics_file="/srv/c.prom"), "metrics_file") == "/srv/c.prom"


@pytest.mark.parametrize("facts", [{"python_version": "3.10.12"}, {"os_family": "RedHat", "distribution": "Rocky"}])
def test_host_that_the_engine_does_not_run_on_is_refused(facts: dict[str, Any]) -> None:
    (message,) = refusals({**FACTS, **facts})
    assert message.startswith("server runs ")
    assert "allowed: Debian or Ubuntu with Python 3.11 or newer" in message


def test_text_becomes_numbers_and_switches() -> None:
    text = {
        "conda_mirror_delete": "no",
        "conda_mirror_jobs": "3",
        "conda_mirror_max_delete": "7",
        "conda_mirror_cron_hour": "3",
    }
    native = {
        "conda_mirror_delete": False,
        "conda_mirror_jobs": 3,
        "conda_mirror_max_delete": 7,
        "conda_mirror_cron_hour": 3,
    }
    for template in sorted(path.name for path in (ROLE / "templates").iterdir()):
        assert render("conda_mirror", template, **text) == render("conda_mirror", template, **native), template


def test_engines_settings_are_judged_with_what_a_controller_has() -> None:
    code = """
        import sys
        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("requests", "msgspec", "zstandard", "rich", "urllib3"):
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Missing())
        import lanmirror_sync.config
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT / "files", check=True)


# ---- the schedule and the command ----------------------------------------------------------------------------


def test_entry_for_cron() -> None:
    text = render("conda_mirror", "cron.j2", conda_mirror_on_demand=False)
    assert text.splitlines()[-1] == "0 9 * * * conda-mirror /usr/local/bin/lanmirror-conda-sync logged"
    assert text.endswith("\n")
    text = render(
        "conda_mirror",
        "cron.j2",
        conda_mirror_cron_minute="*/15",
        conda_mirror_cron_hour=3,
        conda_mirror_cron_weekday="sat,sun",
    )
    assert "\n*/15 3 * * sat,sun conda-mirror " in text


@pytest.mark.parametrize(("minutes", "field"), [(30, "*/30"), ("5", "*/5"), (60, "0")])
def test_entry_for_cron_that_refreshes_the_indexes(minutes: Any, field: str) -> None:
    text = render("conda_mirror", "cron.j2", conda_mirror_on_demand=True, conda_mirror_index_minutes=minutes)
    assert text.splitlines()[-2].endswith("lanmirror-conda-sync logged")
    command = "conda-mirror /usr/local/bin/lanmirror-conda-sync logged sync --indexes"
    assert text.splitlines()[-1] == f"{field} * * * * {command}"
    assert checks.cron_problem(field, "minute") == ""


def run_command(
    tmp_path: Path, code: int, *arguments: str, delete: bool = False, log: str = "log"
) -> tuple[int, str, str]:
    """Run the scheduled sync with an engine that ends with `code`; return exit code, messages, and the log."""
    (tmp_path / "bin").mkdir(parents=True)
    (tmp_path / "src-1").mkdir()
    (tmp_path / "src").symlink_to("src-1")
    for name, body in {
        "python": f'echo "$@ $http_proxy"; umask; exit {code}',
        "logger": 'echo "$@" >>"${0%/*}/journal"; case " $* " in *" --stderr "*) echo "$@" >&2 ;; esac',
        "id": "echo 999",
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    text = render(
        "conda_mirror",
        "lanmirror-conda-sync.j2",
        conda_mirror_http_proxy="http://a'b:3128",
        conda_mirror_delete=delete,
        __conda_mirror_current=str(tmp_path),
        __conda_mirror_log=str(tmp_path / "log"),
        __conda_mirror_index_log=str(tmp_path / "indexes.log"),
        conda_mirror_working_dir=str(tmp_path / "mirror"),
    )
    result = subprocess.run(
        ["/bin/sh", "-s", "logged", *arguments],
        input=text,
        env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"},
        # As hardening guides have it; Nginx must be able to read what is written.
        umask=0o077,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr, (tmp_path / log).read_text()


@pytest.mark.parametrize("code", [0, 3])
def test_scheduled_sync_says_nothing_when_there_is_nothing_to_say(tmp_path: Path, code: int) -> None:
    returned, messages, log = run_command(tmp_path, code)
    assert (returned, messages) == (code, "")
    # By the names of its folders, so that a newer engine that is installed meanwhile leaves it alone.
    sync = f"{tmp_path}/src-1/anaconda_sync.py sync --config /etc/lanmirror/conda_mirror.yml http://a'b:3128"
    assert log.splitlines()[:1] == [sync]


@pytest.mark.parametrize(
    ("code", "why"), [(1, "could not be had"), (2, "configuration"), (4, "disk"), (5, "upstream"), (137, "outside")]
)
def test_scheduled_sync_says_why_it_failed(tmp_path: Path, code: int, why: str) -> None:
    returned, messages, _ = run_command(tmp_path, code)
    assert returned == code
    assert f"exit code {code}: " in messages
    assert why in messages


def test_refresh_of_the_indexes_has_a_log_of_its_own(tmp_path: Path) -> None:
    _, messages, log = run_command(tmp_path, 0, "sync", "--indexes", delete=True, log="indexes.log")
    assert messages == ""
    assert "anaconda_sync.py sync --indexes --config" in log
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(("code", "mailed"), [(1, False), (5, False), (2, True), (4, True), (70, True)])
def test_refresh_of_the_indexes_that_failed_is_mailed_where_it_is_no_outage(
    tmp_path: Path, code: int, mailed: bool
) -> None:
    returned, messages, _ = run_command(tmp_path, code, "sync", "--indexes", log="indexes.log")
    assert returned == code
    assert (f"the refresh of the indexes ended with exit code {code}: " in messages) == mailed
    assert f"exit code {code}: " in (tmp_path / "bin/journal").read_text()


@pytest.mark.parametrize("name", ["lock", "lock-indexes"])
@pytest.mark.parametrize(("hours", "said"), [(1, False), (47, False), (49, True)])
def test_scheduled_sync_says_so_when_another_goes_on_for_days(
    tmp_path: Path, hours: int, said: bool, name: str
) -> None:
    lock = tmp_path / "mirror/.lanmirror" / name
    lock.parent.mkdir(parents=True)
    lock.touch()
    began = time.time() - hours * 3600
    os.utime(lock, (began, began))
    arguments = ["sync", "--indexes"] if name == "lock-indexes" else []
    returned, messages, _ = run_command(tmp_path, 3, *arguments, log="indexes.log" if arguments else "log")
    assert returned == 3
    assert ("two days" in messages) == said


def test_engine_runs_with_the_umask_that_lets_nginx_read(tmp_path: Path) -> None:
    assert run_command(tmp_path, 0)[2].splitlines()[-1] == "0022"


def test_scheduled_sync_deletes_only_when_asked(tmp_path: Path) -> None:
    assert "--delete" not in run_command(tmp_path / "without", 0)[2]
    assert "sync --delete --config" in run_command(tmp_path / "with", 0, delete=True)[2]


# ---- the libraries -------------------------------------------------------------------------------------------


def pins(text: str) -> dict[str, str]:
    return dict(line.split("==") for line in text.splitlines() if line and not line.startswith("#"))


def script_dependencies() -> list[Requirement]:
    """Return what anaconda_sync.py declares (PEP 723)."""
    text = (ROOT / "files/anaconda_sync.py").read_text()
    block = re.search(r"^# /// script\n(.*?)^# ///$", text, re.DOTALL | re.MULTILINE)
    assert block
    data = tomllib.loads(re.sub(r"^# ?", "", block[1], flags=re.MULTILINE))
    return [Requirement(dependency) for dependency in data["dependencies"]]


def test_pins_are_those_of_the_script_and_all_that_these_need() -> None:
    pinned = pins((ROLE / "files/requirements.txt").read_text())
    tested = pins((ROOT / "requirements-dev.txt").read_text())
    needed: set[str] = set()
    wanted = script_dependencies()
    for requirement in wanted:
        assert str(requirement.specifier) == f"=={pinned[requirement.name]}"
    while wanted:
        requirement = wanted.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert requirement.specifier.contains(pinned[name]), requirement
        if name not in needed:
            needed.add(name)
            wanted += map(Requirement, importlib.metadata.requires(name) or [])
    assert set(pinned) == needed
    assert {name: tested[name] for name in pinned} == pinned


# ---- the site ------------------------------------------------------------------------------------------------


def locations(template: str = "locations.conf.j2", **variables: Any) -> dict[str, str]:
    """Return the directives of each location, without those of locations in it; of a mirror without on demand."""
    found: dict[str, str] = {}
    stack: list[str] = []
    for line in map(
        str.strip, render("conda_mirror", template, conda_mirror_on_demand=False, **variables).splitlines()
    ):
        if line.startswith(("location ", "if ")):
            stack.append(line.removeprefix("location ").removesuffix(" {"))
            found[stack[-1]] = ""
        elif line == "}":
            stack.pop()
        elif stack and not line.startswith("#"):
            found[stack[-1]] += line
    assert stack == []
    return found


def test_tree_stands_at_anaconda_and_at_the_root_of_its_own_name() -> None:
    assert locations(conda_mirror_working_dir="/data/conda")["= /anaconda"] == "return 301 /anaconda/;"
    for template, prefix in (("locations.conf.j2", "^~ /anaconda/"), ("vhost-locations.conf.j2", "^~ /")):
        place = locations(template, conda_mirror_working_dir="/data/conda")[prefix]
        assert "alias /data/conda/;" in place
        assert "autoindex on;" in place
        assert "disable_symlinks if_not_owner from=/data/conda;" in place
    assert not [name for name in locations("vhost-locations.conf.j2") if "anaconda" in name]


@pytest.mark.parametrize(
    ("path", "directive"),
    [
        ("/anaconda/.lanmirror/lock", "return 404"),
        ("/anaconda/pkgs/main/noarch/repodata.json", 'add_header Cache-Control "public, max-age=60"'),
        ("/anaconda/pkgs/main/noarch/current_repodata.json", 'add_header Cache-Control "public, max-age=60"'),
        ("/anaconda/pkgs/main/noarch/repodata.json.zst", 'add_header Cache-Control "public, max-age=60"'),
        ("/anaconda/pkgs/main/noarch/repodata.json.bz2", 'add_header Cache-Control "public, max-age=60"'),
        ("/anaconda/pkgs/main/noarch/repodata_shards.msgpack.zst", 'add_header Cache-Control "public, max-age=60"'),
        (f"/anaconda/pkgs/main/noarch/{'0a' * 32}.msgpack.zst", "immutable"),
        ("/anaconda/pkgs/main/noarch/a-1.0-0.conda", "immutable"),
        ("/anaconda/pkgs/main/noarch/a-1.0-0.tar.bz2", "immutable"),
        ("/anaconda/miniconda/Miniconda3-latest-Linux-x86_64.sh", "expires -1"),
        ("/anaconda/pkgs/main/noarch/", "expires -1"),
    ],
)
def test_how_long_clients_keep_it(path: str, directive: str) -> None:
    places = locations()
    # As Nginx does: the first regular expression that matches, else the prefix around them.
    expressions = [name for name in places if name.startswith("~ ")]
    matching = [name for name in expressions if re.search(name.removeprefix("~ ").strip('"'), path)]
    assert directive in places[matching[0] if matching else "^~ /anaconda/"]


def test_portal_shows_the_channels_in_the_forms_of_the_clients() -> None:
    text = render(
        "conda_mirror",
        "portal.html.j2",
        conda_mirror_repos=["main", {"name": "r", "hold": "none"}],
        conda_mirror_cloud=["conda-forge/noarch", {"name": "conda-forge/linux-64"}, "a/label/b/noarch"],
    )
    shown = re.sub(r"<[^>]+>", "", text)
    assert "default_channels:\n  - http://this-server/anaconda/pkgs/main\n" in shown
    assert shown.count("conda-forge: http://this-server/anaconda/cloud\n") == 1
    assert '"https://repo.anaconda.com/pkgs/r" = ["http://this-server/anaconda/pkgs/r"]' in shown
    assert '"https://conda.anaconda.org/a/label/b" = ["http://this-server/anaconda/cloud/a/label/b"]' in shown
    bare = render("conda_mirror", "portal.html.j2", conda_mirror_repos=[], conda_mirror_cloud=["bioconda/noarch"])
    assert "default_channels" not in bare


# ---- the page ------------------------------------------------------------------------------------------------


def test_page_has_each_setting_with_its_default() -> None:
    text = PAGE.read_text()
    for key, value in DEFAULTS.items():
        parts = (
            {f"{key}.{part}": default for part, default in value.items()} if isinstance(value, dict) else {key: value}
        )
        for name, default in parts.items():
            row = re.search(rf"^\| `{re.escape(name)}` \|.*\| `(.*)` \|$", text, re.MULTILINE)
            assert row, name
            assert yaml.safe_load(row[1]) == default, name
    for code in range(6):
        assert re.search(rf"^\| {code} \|", text, re.MULTILINE)
    for variable in ("TUNASYNC_WORKING_DIR", "CONDA_REPO_URL", "CONDA_CLOUD_URL"):
        assert f"`{variable}`" in text


def test_page_has_what_the_command_line_shows() -> None:
    shown = subprocess.run(
        [sys.executable, ROOT / "files/anaconda_sync.py", "--help"], capture_output=True, text=True, check=True
    ).stdout
    text = PAGE.read_text()
    assert [option for option in set(re.findall(r"--[a-z-]+", shown)) - {"--help"} if f"`{option}" not in text] == []


def test_defaults_are_no_more_than_those_of_the_engine_say() -> None:
    ours = defaults("conda_mirror")
    differing = {key for key, value in DEFAULTS.items() if ours.get(f"conda_mirror_{key}", value) != value}
    assert differing == {"min_free_gib", "on_demand", "repos", "cloud", "installers"}
