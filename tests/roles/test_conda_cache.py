"""Role conda_mirror: what it installs to look after the cache on demand. tests/cache runs it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from lanmirror_cache import cli, served

from tests.roles.render import ROOT, evaluate, render, tasks, written

HANDLERS = ROOT / "roles/conda_mirror/handlers/main.yml"


def test_log_has_the_fields_and_the_words_that_are_read() -> None:
    text = render("conda_mirror", "http.conf.j2")
    form = re.search(r"log_format conda_mirror_served '([^']+)';", text)
    assert form is not None
    assert len(form[1].split(r"\t")) == served.FIELDS
    ways = re.search(r"\$conda_mirror_from \{\n(.*?)\n\}", text, re.DOTALL)
    assert ways is not None
    words = {line.split()[-1].rstrip(";") for line in ways[1].splitlines() if "#" not in line}
    assert words == set(served.WAYS)


def test_log_is_read_where_it_is_written() -> None:
    log = evaluate("conda_mirror", "{{ __conda_mirror_served_log }}")
    for template in ("locations.conf.j2", "vhost-locations.conf.j2"):
        assert f"access_log {log} conda_mirror_served " in render("conda_mirror", template)
        assert "access_log" not in render("conda_mirror", template, conda_mirror_on_demand=False)
    assert f"--log {log} " in render("conda_mirror", "lanmirror-conda-cache.j2")
    # What Debian's logrotate takes care of.
    assert re.fullmatch(r"/var/log/nginx/[a-z-]+\.log", log)


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("/pkgs/main/noarch/a-1-0.conda", True),
        ("/pkgs/main/noarch/a-1-0.tar.bz2", True),
        ("/cloud/conda-forge/linux-64/repodata.json.zst", True),
        ("/cloud/conda-forge/linux-64/repodata_shards.msgpack.zst", True),
        (f"/cloud/conda-forge/linux-64/{'ab' * 32}.msgpack.zst", True),
        ("/cloud/conda-forge/channeldata.json", True),
        ("/cloud/strange/noarch/a-1-0.conda", False),
        ("/cloud/conda-forge/noarch/README.md", False),
        ("/miniconda/Miniconda3-latest-Linux-x86_64.sh", True),
        ("/archive/Anaconda3-2025.06-1-Windows-x86_64.exe", True),
        ("/miniconda/", False),
        ("/miniconda/index.html", False),
        ("/miniforge/Miniforge3-Linux-x86_64.sh", False),
        ("/", False),
    ],
)
def test_packages_indexes_and_installers_that_are_declared_count(path: str, counts: bool) -> None:
    found = re.search(r'"~(\^\(\?:/anaconda\)\?.*)" \$conda_mirror_subject;', render("conda_mirror", "http.conf.j2"))
    assert found is not None
    pattern = re.compile(found[1].replace("(?<", "(?P<").replace(r"\z", ""))
    for prefix in ("", "/anaconda"):
        match = pattern.fullmatch(prefix + path)
        assert bool(match) == counts
        assert match is None or match["conda_mirror_subject"] == path


def test_engine_reads_what_the_service_writes() -> None:
    state = evaluate("conda_mirror", "{{ __conda_mirror_cache_state }}")
    unit = render("conda_mirror", "conda-cache.service.j2").splitlines()
    assert f"StateDirectory={state.removeprefix('/var/lib/')}" in unit
    # The engine is another user.
    assert "StateDirectoryMode=0755" in unit
    for on_demand, wanted in ((True, f"{state}/cache.json"), (False, "")):
        text = "{{ __conda_mirror_config.cache_report }}"
        assert evaluate("conda_mirror", text, conda_mirror_on_demand=on_demand) == wanted


def test_service_may_write_the_cache_and_nothing_else() -> None:
    given: dict[str, Any] = {"stat": {"exists": True, "pw_name": "nginx"}}
    unit = render(
        "conda_mirror",
        "conda-cache.service.j2",
        conda_mirror_cache_dir="/srv/cache/",
        __conda_mirror_kept_folder=given,
    ).splitlines()
    assert [line for line in unit if line.startswith("ReadWritePaths")] == [
        "ReadWritePaths=-/srv/cache/lanmirror-conda"
    ]
    for line in (
        "User=nginx",
        "SupplementaryGroups=adm",
        "ProtectSystem=strict",
        "RestrictAddressFamilies=AF_UNIX",
        "CapabilityBoundingSet=",
        "NoNewPrivileges=true",
        "ExecStart=/usr/local/bin/lanmirror-conda-cache watch",
    ):
        assert line in unit
    # It would take what other programs of the user have in memory.
    assert "RemoveIPC=true" not in unit
    assert "User=www-data" in render("conda_mirror", "conda-cache.service.j2").splitlines()


def test_command_becomes_the_user_of_nginxs_workers() -> None:
    text = render("conda_mirror", "lanmirror-conda-cache.j2", conda_mirror_cache_dir="/srv/cache")
    assert "setpriv --reuid www-data " in text
    options = re.findall(r"(--[a-z]+) (/\S+)", text.partition("-m lanmirror_cache")[2])
    assert dict(options)["--kept"] == "/srv/cache/lanmirror-conda/kept"
    parsed = cli.parser().parse_args([word for option in options for word in option] + ["size"])
    assert str(parsed.mirror) == "/srv/mirror/conda"
    nginx = render("conda_mirror", "http.conf.j2", conda_mirror_cache_dir="/srv/cache")
    assert f"proxy_cache_path {parsed.kept} " in nginx


def test_program_is_installed_beside_the_engine() -> None:
    files = evaluate("conda_mirror", "{{ __conda_mirror_texts }}")
    wanted = {str(path.relative_to(ROOT / "files")) for path in (ROOT / "files/lanmirror_cache").glob("*.py")}
    assert wanted
    assert wanted <= files.keys()


def test_each_handler_that_is_notified_is_there() -> None:
    handlers = {handler["listen"] for handler in yaml.safe_load(HANDLERS.read_text())}
    steps = [task for file in ("cache.yml", "on_demand.yml", "schedule.yml") for task in tasks("conda_mirror", file)]
    told = {task["notify"] for task in steps if "notify" in task}
    (install,) = [task for task in tasks("conda_mirror", "install.yml") if "vars" in task]
    assert told == set(install["vars"]["python_venv_notify"]) == handlers


def test_without_on_demand_all_of_it_goes() -> None:
    made = [one["path"] for task in tasks("conda_mirror", "cache.yml") for one in written("conda_mirror", task)]
    gone = set(evaluate("conda_mirror", "{{ __conda_mirror_of_check }}"))
    assert set(made) < gone
    assert evaluate("conda_mirror", "{{ __conda_mirror_cache_state }}") in gone
    included = {
        file: [
            task.get("when")
            for task in tasks("conda_mirror", file)
            if task.get("ansible.builtin.include_tasks") == "uncheck.yml"
        ]
        for file in ("cache.yml", "remove.yml")
    }
    assert included == {"cache.yml": ["not __conda_mirror_on_demand"], "remove.yml": [None]}
    # First it ends, so that it does not write what was deleted.
    words = [str(task) for task in tasks("conda_mirror", "uncheck.yml")]
    stopped, deleted = (next(n for n, text in enumerate(words) if word in text) for word in ("stopped", "absent"))
    assert stopped < deleted
