"""The configuration, the environment, the options, the log; and the script as cron runs it."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import pty
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from lanmirror_sync import __version__
from lanmirror_sync.config import DEFAULTS, load, parse

from tests.engine.lab import SCRIPT, Lab
from tests.upstream import server

LINUX = "pkgs/main/linux-64"

# A change of the settings; the words that the message must hold: the key, the value, what is allowed.
WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown arch": ({"arches": ["linux-65"]}, ["arches", "linux-65", "linux-64", "win-64"]),
    "repos as a string": ({"repos": "main"}, ["repos", "'main'", "list"]),
    "repo with a slash": ({"repos": ["main/../.."]}, ["repos", "main/../.."]),
    "repo in part": ({"repos": [{"name": "main", "hold": "half"}]}, ["repos", "main", "'half'", "all, none"]),
    "repo without a name": ({"repos": [{"hold": "all"}]}, ["repos", "{'hold': 'all'}", "{name: main, hold: none}"]),
    "repo with an unknown key": ({"repos": [{"name": "main", "held": "all"}]}, ["repos", "'held'", "name, hold"]),
    "repo twice": (
        {"on_demand": True, "repos": ["main", {"name": "main", "hold": "none"}]},
        ["repos", "main twice", "keep one of them"],
    ),
    "age below nothing": ({"min_age_days": -1}, ["min_age_days is -1", "from 0 to 36500"]),
    "age in parts": ({"min_age_days": 1.5}, ["min_age_days is 1.5", "whole number"]),
    "undated in other words": ({"min_age_undated": "none"}, ["min_age_undated is 'none'", "hidden, shown"]),
    "block as a string": ({"block": "evil"}, ["block is 'evil'", "list of rules"]),
    "rule that is none": ({"block": ["pkg=>2"]}, ['block has "pkg=>2"', "must be a name", "pkg>=2,<2.3"]),
    "rule of an entry that is none": (
        {"repos": [{"name": "main", "allow": ["pkg-*"]}]},
        ['repos: allow of main has "pkg-*"', "must be a name"],
    ),
    "allow that is a block": (
        {"block": ["Pkg >= 2"], "allow": ["pkg>=2"]},
        ['block has "Pkg >= 2", and so has allow', "keep one of them"],
    ),
    "allow of an entry that is a block": (
        {"block": ["pkg"], "cloud": [{"name": "conda-forge/noarch", "allow": ["pkg"]}]},
        ['cloud: block of conda-forge/noarch has "pkg", and so has allow'],
    ),
    "nothing held and nothing on demand": (
        {"cloud": [{"name": "conda-forge/noarch", "hold": "none"}]},
        ["cloud", "conda-forge/noarch", "hold: none", "on_demand: true", "hold: all"],
    ),
    "on demand in words": ({"on_demand": "yes"}, ["on_demand", "'yes'", "true, false"]),
    "cache that speaks TLS": ({"cache": "https://127.0.0.1:3140/+kept"}, ["cache", "https://127.0.0.1", "an http URL"]),
    "cache with a password": (
        {"cache": "http://u:hush@localhost/+kept"},
        ["cache is 'http://localhost", "an http URL"],
    ),
    "cache that is no URL": ({"cache": True}, ["cache", "True", "URL"]),
    "cloud without an arch": ({"cloud": ["conda-forge"]}, ["cloud", "conda-forge", "<channel>/<arch>"]),
    "cloud of an unknown arch": ({"cloud": ["conda-forge/linux"]}, ["cloud", "linux", "linux-64"]),
    "cloud that climbs": ({"cloud": ["../etc/linux-64"]}, ["cloud", "../etc/linux-64"]),
    "URL without a scheme": (
        {"upstream": {"repo": "mirror.example.org/anaconda"}},
        ["upstream.repo", "mirror.example.org", "https://"],
    ),
    "URL of a file": ({"upstream": {"cloud": "file:///srv"}}, ["upstream.cloud", "file:///srv", "https://"]),
    "relative directory": ({"working_dir": "mirror"}, ["working_dir", "mirror", "absolute"]),
    "directory that climbs": ({"working_dir": "/srv/../etc"}, ["working_dir", "/srv/../etc"]),
    "no jobs": ({"jobs": 0}, ["jobs", "0", "1"]),
    "jobs in words": ({"jobs": "many"}, ["jobs", "'many'", "number"]),
    "jobs as a boolean": ({"jobs": True}, ["jobs", "True", "number"]),
    "negative grace": ({"delete_grace_hours": -1}, ["delete_grace_hours", "-1"]),
    "unknown key": ({"arch": ["linux-64"]}, ["arch", "arches"]),
    "unknown inner key": ({"upstream": {"repos": "https://a.example.org"}}, ["upstream.repos", "upstream.repo"]),
    "installers held in part": ({"installers": {"hold": "some"}}, ["installers.hold", "'some'", "all, none"]),
    "installers on demand without it": (
        {"installers": {"hold": "none"}},
        ["installers", "hold: none", "on_demand: true", "hold: all"],
    ),
    "installers as a list": ({"installers": ["miniconda"]}, ["installers", "miniconda"]),
    "exclude as a string": ({"exclude": "pytorch"}, ["exclude", "pytorch", "list"]),
    "nothing to mirror": ({"repos": [], "installers": {"dists": []}}, ["repos", "cloud", "installers"]),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_setting_is_one_message_and_nothing_is_done(lab: Lab, change: dict[str, Any], words: list[str]) -> None:
    lab.settings |= change
    run = lab.sync()
    assert run.code == 2, run.log
    assert [word for word in words if word not in run.log] == [], run.log
    assert len(run.log.splitlines()) == 1, run.log
    assert not lab.upstream.requests
    assert not list(lab.mirror.iterdir())


@pytest.mark.parametrize(
    "text", ["repos: [main", "- a\n- b\n", "just words", "\x00", "repos: !!python/name:os.system\n"]
)
def test_a_file_that_is_no_configuration(lab: Lab, text: str) -> None:
    config = lab.folder / "broken.yml"
    config.write_text(text)
    run = lab.engine.start(["sync", "--config", str(config)], {}).wait()
    assert run.code == 2, run.log
    assert str(config) in run.log


def test_a_configuration_that_is_not_there(lab: Lab) -> None:
    run = lab.engine.start(["--config", "/nonexistent/lanmirror.yml"], {}).wait()
    assert run.code == 2
    assert "/nonexistent/lanmirror.yml" in run.log


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--jobs", "x"], ["--nonsense"], ["dance"]])
def test_wrong_options(lab: Lab, arguments: list[str]) -> None:
    run = lab.sync(*arguments)
    assert run.code == 2
    assert arguments[-1] in run.log
    assert not lab.upstream.requests


def test_tunasync_variables_override_the_file(lab: Lab) -> None:
    lab.settings |= {
        "working_dir": "/nonexistent/mirror",
        "upstream": {"repo": "http://127.0.0.1:9", "cloud": "http://127.0.0.1:9"},
        "cloud": ["conda-forge/linux-64"],
    }
    env = {
        "TUNASYNC_WORKING_DIR": str(lab.mirror),
        "CONDA_REPO_URL": lab.upstream.url,
        "CONDA_CLOUD_URL": f"{lab.upstream.url}/cloud/",
    }
    run = lab.sync(env=env)
    assert run.code == 0, run.log
    lab.check()


def test_a_wrong_variable_is_a_wrong_configuration(lab: Lab) -> None:
    run = lab.sync(env={"CONDA_REPO_URL": "mirror.example.org"})
    assert run.code == 2
    assert "mirror.example.org" in run.log


def test_working_dir_on_the_command_line_wins(lab: Lab) -> None:
    lab.settings["working_dir"] = "/nonexistent/mirror"
    env = {"TUNASYNC_WORKING_DIR": "/nonexistent/other"}
    assert lab.sync("--working-dir", str(lab.mirror), env=env).code == 0
    lab.check()


def test_only_limits_the_run_to_some_paths(lab: Lab) -> None:
    lab.settings |= {"repos": ["main", "r"], "installers": {"dists": ["miniconda"], "suffixes": [".sh"]}}
    run = lab.sync("--only", "pkgs/main/*")
    assert run.code == 0, run.log
    assert not lab.upstream.asked("/pkgs/r/*")
    assert not lab.upstream.asked("/miniconda/*")
    assert lab.problems() == []
    assert lab.sync("--only", "miniconda").code == 0
    assert [file.name for file in (lab.mirror / "miniconda").iterdir()] == ["Miniconda3-latest-Linux-x86_64.sh"]
    assert not (lab.mirror / "pkgs/r").exists()


def test_only_deletes_only_there(lab: Lab) -> None:
    lab.settings |= {"delete_grace_hours": 0, "cloud": ["conda-forge/linux-64"]}
    assert lab.sync().code == 0
    stray = {folder: lab.mirror / folder / "stray-1.0-0.conda" for folder in (LINUX, "cloud/conda-forge/linux-64")}
    for file in stray.values():
        file.write_bytes(b"of nobody")
    assert lab.sync("--delete", "--only", "cloud/*").code == 0
    assert stray[LINUX].exists()
    assert not stray["cloud/conda-forge/linux-64"].exists()


@pytest.mark.parametrize("jobs", [1, 3])
def test_jobs_bounds_the_requests_at_once(lab: Lab, jobs: int) -> None:
    lab.fault("*.conda", stall=0.02)
    lab.settings["jobs"] = 8
    assert lab.sync("--jobs", str(jobs)).code == 0
    assert lab.upstream.most_at_once == jobs


def test_plan_says_what_a_sync_would_fetch_and_writes_nothing_that_is_served(lab: Lab) -> None:
    run = lab.sync("plan")
    assert run.code == 0, run.log
    assert re.search(rf"{LINUX} +all +14 \([^)]+\) +0 +14 ", run.log), run.log
    assert not lab.upstream.asked("*.conda")
    assert not (lab.mirror / "pkgs").exists()
    assert lab.sync().code == 0
    run = lab.sync("plan")
    assert re.search(rf"{LINUX} +all +(14 \([^)]+\)) +\1 +0 +0 +0 +0  unchanged\n", run.log), run.log
    assert "to fetch: 0 bytes\n" in run.log


def test_without_a_terminal_the_log_is_plain_lines(lab: Lab) -> None:
    run = lab.sync()
    assert run.code == 0
    for line in run.log.splitlines():
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", line), line
        assert line.isprintable(), line
    last = run.log.splitlines()[-1]
    assert "in sync" in last
    assert "15" in last, "the last line sums up the run"
    lab.fault("*/tool-2.0-0.conda", status=404)
    (lab.mirror / LINUX / "tool-2.0-0.conda").unlink()
    last = lab.sync().log.splitlines()[-1]
    assert "in sync" not in last
    assert "1 failure" in last


def test_passwords_in_an_upstream_address_are_not_logged(lab: Lab) -> None:
    url = lab.upstream.url.replace("http://", "http://lab:s3cret-word@")
    lab.settings["upstream"] = {"repo": url, "cloud": url}
    lab.fault("*.conda", status=403)
    run = lab.sync()
    assert run.code == 1, run.log
    assert "s3cret-word" not in run.log


def test_the_user_agent_names_the_tool(lab: Lab) -> None:
    assert lab.sync().code == 0
    agents = {request.headers.get("User-Agent", "") for request in lab.upstream.requests}
    assert all(agent.startswith("lanmirror/") for agent in agents), agents


def script(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the script as cron does: by its path, from another folder, with little environment."""
    command = [sys.executable, str(SCRIPT), *arguments]
    options = {"cwd": "/", "env": {"PATH": os.environ["PATH"]}, "timeout": 60, **options}
    return subprocess.run(command, check=False, **options)


def test_help_tells_the_exit_codes() -> None:
    run = script("--help", capture_output=True)
    assert run.returncode == 0
    for code in (*range(6), 70):
        assert re.search(rf"^\s+{code}  \S", run.stdout.decode(), re.M), run.stdout.decode()


def test_the_script_syncs(lab: Lab) -> None:
    config = lab.configure()
    run = script("--config", str(config), capture_output=True)
    assert run.returncode == 0, run.stderr.decode()
    lab.remember()
    lab.check()


def test_on_a_terminal_progress_is_shown(lab: Lab) -> None:
    ours, theirs = pty.openpty()
    try:
        env = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "COLUMNS": "120"}
        run = script("--config", str(lab.configure()), stdout=theirs, stderr=theirs, env=env)
        shown = os.read(ours, 1 << 20).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert run.returncode == 0, shown
    assert "\x1b[" in shown
    assert "15/15 files" in shown


def test_the_script_declares_what_the_tests_ran_with() -> None:
    """PEP 723: `uv run` installs what stands in the script's head."""
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", Path(SCRIPT).read_text(), re.M)
    assert block
    metadata = tomllib.loads("".join(line.removeprefix("#").removeprefix(" ") for line in block[1].splitlines(True)))
    assert metadata["dependencies"]
    for pin in metadata["dependencies"]:
        name, _, version = pin.partition("==")
        assert importlib.metadata.version(name) == version


def test_an_upstream_whose_listing_redirects(lab: Lab) -> None:
    """Official channels redirect package downloads to other hosts."""
    with server.serving(lab.tree) as other:
        name = "tool-2.0-0.conda"
        lab.fault(f"*/{name}", status=302, headers={"Location": f"{other.url}/{LINUX}/{name}"})
        assert lab.sync().code == 0
    lab.check()


def test_the_version_is_one_word_everywhere() -> None:
    run = script("--version", capture_output=True)
    assert run.returncode == 0
    assert run.stdout.decode() == f"lanmirror {__version__}\n"


def test_an_old_python_is_told_so_in_one_line(tmp_path: Path) -> None:
    """The script says it before it imports anything that such a Python could not parse."""
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 4))
    assert tree.body
    (tmp_path / "lanmirror_sync").mkdir()
    (tmp_path / "lanmirror_sync/__init__.py").write_text("raise SystemExit('the package was imported')")
    (tmp_path / "anaconda_sync.py").write_text(SCRIPT.read_text())
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.version_info = (3, 9, 2, 'final', 0)\n")
    run = subprocess.run(
        [sys.executable, str(tmp_path / "anaconda_sync.py")],
        check=False, capture_output=True, text=True, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr == f"anaconda_sync.py needs Python 3.11 or newer; this is Python 3.9 ({sys.executable})\n"


def test_the_example_configuration_has_every_setting_with_its_default() -> None:
    """For users without Ansible."""
    file = SCRIPT.with_name("conda_mirror.example.yml")
    assert yaml.safe_load(file.read_text()) == DEFAULTS
    assert load(file, {}) == parse({}, {})
