"""What a run says of itself is true: to the shell, in the log, in `status.json`, and in what it serves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest
from lanmirror_sync import progress
from lanmirror_sync.progress import PlainProgress, amount
from lanmirror_sync.report import discreet

from tests.engine.lab import FILES, SCRIPT, Lab
from tests.upstream import channel

pytestmark = pytest.mark.slow

LINUX = "pkgs/main/linux-64"
NOARCH = "pkgs/main/noarch"
VICTIM = "lib0003-1.3-0.conda"


def status(lab: Lab) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((lab.mirror / ".lanmirror/public/status.json").read_bytes())
    return data


# ---- in sync -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [404, 410])
def test_an_upstream_without_anything_that_is_wanted_is_no_mirror_in_sync(lab: Lab, answer: int) -> None:
    lab.settings["upstream"] = {"repo": f"{lab.upstream.url}/wrong/path", "cloud": f"{lab.upstream.url}/cloud"}
    lab.fault("/wrong/*", status=answer)
    run = lab.sync()
    assert run.code == 1, run.log
    assert "upstream.repo" in run.log
    assert status(lab)["run"]["result"] == "incomplete"
    assert status(lab)["run"]["last_success"] is None
    assert all(subdir["failures"] for subdir in status(lab)["subdirs"].values())
    assert not (lab.mirror / "pkgs").exists()


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"cloud": ["conda-frge/noarch", "conda-frge/linux-64"]}, "cloud/conda-frge/linux-64"),
        ({"cloud": ["conda-forge/linux-64", "conda-forge/osx-64"]}, "cloud/conda-forge/osx-64"),
        ({"repos": ["main", "mian"]}, "pkgs/mian/linux-64"),
        ({"arches": ["noarch", "linux-64", "osx-arm64"]}, "pkgs/main/osx-arm64"),
    ],
    ids=["channel", "platform of a channel", "repo", "platform of no repo"],
)
def test_what_is_configured_and_not_there_is_a_failure(lab: Lab, settings: dict[str, Any], path: str) -> None:
    lab.settings |= settings
    for _ in range(2):
        run = lab.sync()
        assert run.code == 1, run.log
        assert f"{path}: the upstream does not have it" in run.log
        assert status(lab)["subdirs"][path]["failures"]
        assert status(lab)["run"]["last_success"] is None
    assert "hello-1.0-0.conda" in lab.named(f"{LINUX}/repodata.json"), "the rest is served"
    plan = lab.plan()["subdirs"]
    assert plan[LINUX]["state"] == "unchanged"
    assert plan[path]["state"] == "not there"


def test_a_platform_that_one_of_the_repos_lacks_is_none(lab: Lab) -> None:
    lab.settings |= {"repos": ["main", "msys2", "free"], "arches": ["noarch", "linux-64", "win-64"]}
    run = lab.sync()
    assert run.code == 0, run.log
    assert status(lab)["run"]["result"] == "in sync"


@pytest.mark.parametrize("command", ["sync", "plan", "verify"])
@pytest.mark.parametrize(("only", "hint"), [("pkgs/main", "'pkgs/main/*'"), ("pgks/*", LINUX), ("", LINUX)])
def test_a_part_that_is_none_is_a_wrong_command_line(lab: Lab, command: str, only: str, hint: str) -> None:
    run = lab.sync(command, "--only", only)
    assert run.code == 2, run.log
    assert hint in run.log
    assert lab.upstream.requests == []


def test_a_part_speaks_for_itself_alone(lab: Lab) -> None:
    lab.fault(f"*/{VICTIM}", status=404)
    assert lab.sync().code == 1
    run = lab.sync("--only", NOARCH)
    assert run.code == 0, run.log
    assert f"in sync ({NOARCH} alone)" in run.log.splitlines()[-1]
    told = status(lab)
    assert told["run"]["result"] == "incomplete"
    assert told["run"]["last_success"] is None
    assert (told["part"]["result"], told["part"]["only"]) == ("in sync", NOARCH)
    lab.upstream.faults.clear()
    assert lab.sync().code == 0
    assert status(lab)["run"]["result"] == "in sync"


def test_a_part_that_failed_is_not_in_sync(lab: Lab) -> None:
    assert lab.sync().code == 0
    success = status(lab)["run"]["last_success"]
    (lab.mirror / LINUX / VICTIM).unlink()
    lab.fault(f"*/{VICTIM}", status=404)
    assert lab.sync("--only", "pkgs/*").code == 1
    assert status(lab)["run"]["result"] == "incomplete"
    assert status(lab)["run"]["last_success"] == success


# ---- an empty noarch -----------------------------------------------------------------------------------------


def test_nobody_asked_for_noarch(lab: Lab) -> None:
    lab.settings |= {"repos": [], "cloud": ["conda-forge/linux-64"]}
    assert lab.sync().code == 0
    assert not (lab.mirror / "cloud/conda-forge/noarch").exists()


def test_a_part_without_noarch_publishes_none(lab: Lab) -> None:
    assert lab.sync("--only", LINUX).code == 0
    assert not (lab.mirror / NOARCH).exists()


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 403}, {"status": 401}, {"status": 500}, {"drop": True},
                                   {"body": b"<html>"}, {"cut": 10}])  # fmt: skip
def test_a_noarch_that_cannot_be_had_is_not_an_empty_one(lab: Lab, fault: dict[str, Any]) -> None:
    lab.settings["retries"] = 0
    lab.fault(f"/{NOARCH}/*", **fault)
    run = lab.sync()
    assert run.code == 1, run.log
    assert not (lab.mirror / NOARCH / "repodata.json").exists()
    assert "hello-1.0-0.conda" in lab.named(f"{LINUX}/repodata.json")
    assert "kept" not in run.log, "there is none of ours"


def test_a_noarch_that_the_upstream_does_not_have_is_an_empty_one(lab: Lab) -> None:
    lab.settings["repos"] = ["main", "free"]
    for _ in range(2):
        run = lab.sync()
        assert run.code == 0, run.log
        assert lab.repodata("pkgs/free/noarch")["packages"] == {}
    lab.check()


# ---- how it ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("command", ["sync", "verify"])
def test_a_run_that_is_asked_to_end_says_so(lab: Lab, number: signal.Signals, command: str) -> None:
    reached = threading.Event()
    if command == "verify":
        channel.publish(lab.tree / "pkgs/main", channel.Spec("big", subdir="linux-64", files={"x": b"1" * 300_000}))
        assert lab.sync().code == 0
        lab.settings["verify_rate"] = "1kB/s"
        run = lab.start("verify")
        lab.until(lambda: "to hash" in run.output.read_text())
    else:
        lab.settings["timeout_seconds"] = 60
        lab.fault(f"*/{VICTIM}", stall=60)
        lab.during(f"*/{VICTIM}", reached.set)
        run = lab.start()
        assert reached.wait(20)
    os.kill(run.pid, number)
    finished = run.wait()
    assert finished.code == 128 + number, finished.log
    assert number.name in finished.log
    told = status(lab)["run" if command == "sync" else "verify"]
    assert told["result"] == "failed"
    assert number.name in told["error"]
    assert told["ended"]


def crashing(lab: Lab, where: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the engine with a fault of the program put into it."""
    module, _, name = where.rpartition(".")
    module, _, owner = module.rpartition(".")
    (lab.folder / "sitecustomize.py").write_text(
        f"import {module}\n"
        "def fail(self, *arguments, **options):\n"
        "    told = [self if 'Sink' in type(self).__name__ else None, *arguments]\n"
        "    if 'linux-64' in str([getattr(item, '__dict__', item) for item in told]):\n"
        "        raise ZeroDivisionError('http://lab:s3cret-word@example.org/t/s3cret-token/x')\n"
        "    return former(self, *arguments, **options)\n"
        f"former = {module}.{owner}.{name}\n"
        f"{module}.{owner}.{name} = fail\n"
    )
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{lab.folder}:{FILES}"}
    command = [sys.executable, str(SCRIPT), *arguments, "--config", str(lab.configure())]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=env, timeout=60)


@pytest.mark.parametrize(
    "where",
    ["lanmirror_sync.survey.Survey._judged", "lanmirror_sync.publish.Publisher.make", "lanmirror_sync.work.Desk.begin",
     "lanmirror_sync.work.Desk.settled", "lanmirror_sync.sinks.FileSink.take", "lanmirror_sync.sinks.FileSink.end",
     "lanmirror_sync.fetch.Fetcher._ended"],
)  # fmt: skip
def test_a_fault_of_the_program_has_a_code_of_its_own_and_ends_nothing_else(lab: Lab, where: str) -> None:
    run = crashing(lab, where, "sync")
    assert run.returncode == 70, run.stderr
    assert "ZeroDivisionError" in run.stderr
    assert "fault of the program" in run.stderr
    assert "s3cret" not in run.stderr
    told = status(lab)
    assert told["run"]["result"] == "failed"
    assert "ZeroDivisionError" in told["run"]["error"]
    assert "s3cret" not in json.dumps(told)
    lab.remember()
    if "fetch" not in where:
        assert "hello-data-1.0-0.tar.bz2" in lab.named(f"{NOARCH}/repodata.json")
    assert lab.problems() == []
    assert lab.sync().code == 0
    lab.check()


def test_verify_tells_what_it_found(lab: Lab) -> None:
    lab.settings["metrics_file"] = str(lab.folder / "conda.prom")
    assert lab.sync().code == 0
    assert status(lab)["verify"] is None
    assert lab.sync("verify").code == 0
    assert status(lab)["verify"]["result"] == "verified"
    assert "lanmirror_conda_verify_success 1.0" in (lab.folder / "conda.prom").read_text()
    held = status(lab)["subdirs"][LINUX]["held"]
    (lab.mirror / LINUX / VICTIM).unlink()
    assert lab.sync("verify").code == 1
    told = status(lab)
    assert (told["verify"]["result"], told["verify"]["missing"], told["verify"]["problems"]) == ("incomplete", 1, 1)
    assert told["run"]["result"] == "incomplete", "what is served is not what the upstream has"
    assert (told["subdirs"][LINUX]["held"], told["subdirs"][LINUX]["missing"]) == (held - 1, 1)
    assert "lanmirror_conda_verify_success 0.0" in (lab.folder / "conda.prom").read_text()


# ---- secrets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", ["http://lab:s3cret-word@HOST", "http://lab:s3cret-word%40x@HOST", "http://HOST/t/s3cret-word",
             "http://s3cret-word@HOST/x/t/s3cret-word"],
)  # fmt: skip
@pytest.mark.parametrize("fault", [{}, {"status": 503}, {"body": b"[]"}])
def test_no_secret_of_an_address_gets_out(lab: Lab, form: str, fault: dict[str, Any]) -> None:
    url = form.replace("http://HOST", lab.upstream.url).replace("HOST", lab.upstream.url.removeprefix("http://"))
    base = url.partition(lab.upstream.url.removeprefix("http://"))[2]
    if base:
        (lab.tree / base.strip("/")).parent.mkdir(parents=True)
        (lab.tree / base.strip("/")).symlink_to(lab.tree)
    lab.settings |= {"upstream": {"repo": url, "cloud": url}, "retries": 0,
                     "installers": {"dists": ["miniconda"], "suffixes": [".sh"]}}  # fmt: skip
    if fault:
        lab.fault("*", **fault)
    run = lab.sync("--verbose")
    assert (run.code == 0) == (not fault), run.log
    assert "s3cret-word" not in run.log
    for file in (lab.mirror / ".lanmirror/public").iterdir():
        assert "s3cret-word" not in file.read_text(), file.name


def test_a_password_with_an_at_sign_is_taken_out_whole() -> None:
    assert discreet("of http://a:b@c@host/x: no") == "of http://host/x: no"
    assert (
        discreet("https://host/t/secret/main/noarch, https://h/t/s2")
        == "https://host/t/<TOKEN>/main/noarch, https://h/t/<TOKEN>"
    )
    assert discreet("a@b.example is no address") == "a@b.example is no address"


# ---- what the administrator took out --------------------------------------------------------------------------


def test_what_is_excluded_goes_without_a_word_about_the_upstream(lab: Lab) -> None:
    lab.settings |= {"delete_grace_hours": 0, "exclude": []}
    assert lab.sync().code == 0
    lab.settings["exclude"] = ["lib*"]
    assert lab.plan()["subdirs"][LINUX]["delete"]["files"] == 12
    run = lab.sync("--delete")
    assert run.code == 0, run.log
    assert not [name for name in lab.packages(LINUX) if name.startswith("lib")]
    lab.settings["exclude"] = []
    assert lab.sync().code == 0
    lab.settings["exclude"] = ["*"]
    assert lab.sync("--delete").code == 0
    assert lab.packages(LINUX) == set()


def test_what_is_excluded_has_its_grace(lab: Lab) -> None:
    lab.settings["exclude"] = []
    assert lab.sync().code == 0
    before = lab.packages(LINUX)
    lab.settings["exclude"] = ["lib*"]
    assert lab.sync("--delete").code == 0
    assert lab.packages(LINUX) == before
    assert "lib0001-1.1-0.conda" not in lab.named(f"{LINUX}/repodata.json")


@pytest.mark.parametrize("what", ["platform", "repo", "channel", "installers"])
def test_what_is_not_configured_any_more_is_named_then_goes(lab: Lab, what: str) -> None:
    lab.settings |= {"repos": ["main", "r"], "cloud": ["conda-forge/linux-64"],
                     "installers": {"dists": ["miniconda"], "suffixes": [".sh"]}}  # fmt: skip
    assert lab.sync().code == 0
    own = lab.mirror / "cloud/own/linux-64"
    own.mkdir(parents=True)
    (own / "repodata.json").write_text("{}")
    gone = {"platform": "pkgs/main/linux-64", "repo": "pkgs/r/linux-64", "channel": "cloud/conda-forge/linux-64",
            "installers": "miniconda"}[what]  # fmt: skip
    taken_out: dict[str, dict[str, Any]] = {
        "platform": {"arches": ["noarch"]}, "repo": {"repos": ["main"]}, "channel": {"cloud": []},
        "installers": {"installers": {"dists": [], "suffixes": []}},
    }  # fmt: skip
    lab.settings |= taken_out[what]
    assert f"{gone}: not configured any more" in lab.sync("plan").log
    before = set((lab.mirror / gone).iterdir())
    run = lab.sync("--delete")
    assert run.code == 0, run.log
    assert f"{gone}: is not configured any more" in run.log
    assert set((lab.mirror / gone).iterdir()) == before, "its grace"
    lab.settings["delete_grace_hours"] = 0
    assert lab.sync().code == 0
    assert (lab.mirror / gone).exists(), "without --delete nothing goes"
    assert lab.sync("--delete", "--only", "pkgs/main/noarch").code == 0
    assert (lab.mirror / gone).exists(), "a part deletes there alone"
    run = lab.sync("--delete")
    assert run.code == 0, run.log
    assert not (lab.mirror / gone).exists()
    assert own.exists(), "what this program did not make"
    assert lab.plan()["retired"] == {}


def test_the_index_goes_before_what_it_names(lab: Lab) -> None:
    """With a grace in between: clients may still have the index."""
    lab.settings |= {"repos": ["main", "r"], "delete_grace_hours": 0.0003}
    assert lab.sync().code == 0
    lab.settings["repos"] = ["main"]
    folder = lab.mirror / "pkgs/r/linux-64"
    assert lab.sync("--delete").code == 0
    lab.until(lambda: lab.sync("--delete").code == 0 and not (folder / "repodata.json").exists())
    assert list(folder.glob("*.conda"))
    lab.until(lambda: lab.sync("--delete").code == 0 and not folder.exists())


def test_an_installer_that_is_not_wanted_any_more_goes(lab: Lab) -> None:
    lab.settings |= {"delete_grace_hours": 0, "installers": {"dists": ["miniconda"], "suffixes": [".sh", ".exe"]}}
    assert lab.sync().code == 0
    assert len(list((lab.mirror / "miniconda").iterdir())) == 2
    lab.settings["installers"] = {"dists": ["miniconda"], "suffixes": [".sh"]}
    assert lab.sync("--delete").code == 0
    assert [file.suffix for file in (lab.mirror / "miniconda").iterdir()] == [".sh"]


# ---- words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (1, "1 bytes"), (1023, "1023 bytes"), (2048, "2 KiB"), (1 << 20, "1 MiB"), (5_000_000, "4.77 MiB"),
     (700 << 20, "700 MiB"), (3 << 30, "3 GiB"), (11 << 40, "11 TiB")],
)  # fmt: skip
def test_amounts_are_never_nothing_where_there_is_something(size: int, words: str) -> None:
    assert amount(size) == words


def test_small_amounts_are_told(lab: Lab) -> None:
    assert "0.00 GiB" not in lab.sync("plan").log
    run = lab.sync()
    assert "0.00 GiB" not in run.log
    assert " KiB" in run.log


def test_a_line_comes_while_one_file_takes_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shown = PlainProgress()
    shown.start("miniconda", 1, 1 << 30)
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0.0)
    shown.received("miniconda", 1 << 29)
    with caplog.at_level("INFO"):
        shown.tick()
    assert "512 MiB of 1 GiB" in caplog.text
    shown.done("miniconda")
    caplog.clear()
    with caplog.at_level("INFO"):
        shown.tick()
    assert not caplog.text


@pytest.mark.parametrize(
    ("command", "option"),
    [("plan", ["--delete"]), ("verify", ["--delete"]), ("sync", ["--repair"]), ("plan", ["--repair"]),
     ("verify", ["--accept-older"]), ("verify", ["--max-delete", "0"])],
)  # fmt: skip
def test_an_option_that_means_nothing_to_a_command_is_refused(lab: Lab, command: str, option: list[str]) -> None:
    run = lab.sync(command, *option)
    assert run.code == 2, run.log
    assert option[0] in run.log
    assert command in run.log
    assert not list(lab.mirror.iterdir())
