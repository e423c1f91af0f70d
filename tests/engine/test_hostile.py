"""Upstreams that throttle, mislead, flood, go back in time, or mean harm; and mirrors that have a second one."""

from __future__ import annotations

import bz2
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.engine.lab import Lab
from tests.upstream import channel, server

pytestmark = pytest.mark.slow

LINUX = "pkgs/main/linux-64"
NOARCH = "pkgs/main/noarch"
MIB = 1 << 20
LOGIN = b"<!DOCTYPE html><html><body><form>Please log in to the campus network</form></body></html>"
# The engine with its libraries takes 60 MiB; an index of some KiB is no reason to take much more.
MODEST = 300 * MIB


def as_before(lab: Lab, before: dict[str, Any]) -> None:
    """Check that the index and its packages are served as they were."""
    assert lab.repodata(LINUX) == before
    lab.check()


# ---- throttled -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
def test_an_upstream_that_throttles_is_left_alone_for_as_long_as_it_asks(lab: Lab, status: int) -> None:
    """All requests for packages are refused for a second, but for one that was under way: the host is meant."""
    lab.settings |= {"retries": 4, "jobs": 4}
    refused, well = f"/{LINUX}/*-0.*", threading.Event()
    times: list[float] = []

    def throttle() -> None:
        times.append(time.monotonic())
        if times[-1] - times[0] >= 1 and not well.is_set():
            well.set()
            del lab.upstream.faults[refused]

    lab.during(refused, throttle)
    lab.fault(f"/{LINUX}/lib0001-*", stall=0.3)
    lab.fault(refused, status=status, headers={"Retry-After": "1"})
    run = lab.sync()
    assert run.code == 0, run.log
    lab.check()
    # Those under way when the first refusal came are excused. A single 503 may be one package's own affair: it lets
    # one more begin, and so may the good answer of the other subdir's package, which may be asked for in between.
    early = [round(at - times[0], 3) for at in times if at - times[0] < 0.9]
    excused = lab.settings["jobs"] + (2 if status == 503 else 0)
    assert len(early) <= excused < len(times), f"requests while it asked for quiet: {early}"
    assert times[-1] - times[0] < 10


@pytest.mark.parametrize("status", [403, 429, 503])
def test_an_upstream_that_throttles_for_ever_is_given_up(lab: Lab, status: int) -> None:
    assert lab.sync().code == 0
    before = lab.repodata(LINUX)
    channel.publish(lab.tree / "pkgs/main", *channel.crowd("linux-64", 40, prefix="late"))
    lab.settings |= {"retries": 2, "jobs": 4}
    lab.fault("*/late*", status=status)
    lab.upstream.requests.clear()
    run = lab.sync()
    assert run.code == 1, run.log
    asked = len(lab.upstream.asked("*/late*"))
    assert asked < 40 * 3, f"{asked} requests to a host that refuses every one"
    assert lab.repodata(LINUX)["packages.conda"] == before["packages.conda"]
    lab.check()


def test_one_package_that_stalls_holds_up_nothing_but_itself(lab: Lab) -> None:
    lab.settings |= {"timeout_seconds": 60, "cloud": ["conda-forge/linux-64"]}
    lab.fault("*/lib0001-*", stall=60, stall_at=100)
    lab.fault("*/lib0002-*", status=503)
    lab.fault("*/lib0003-*", drop=True)
    run = lab.start()
    # All the rest is fetched, and the other subdirs are published, while the run waits for that one.
    lab.until(lambda: len(lab.packages(LINUX)) == 11)
    lab.until((lab.mirror / NOARCH / "repodata.json").exists)
    lab.until((lab.mirror / "cloud/conda-forge/linux-64/repodata.json").exists)
    # After a quiet moment its own subdir is published without it.
    lab.until((lab.mirror / LINUX / "repodata.json").exists)
    assert run.is_running()
    assert lab.check().named[f"{LINUX}/repodata.json"] == lab.packages(LINUX)
    run.kill()
    run.wait()
    assert lab.problems() == []
    lab.upstream.faults.clear()
    run_again = lab.sync()
    assert run_again.code == 0, run_again.log
    assert len(lab.check().named[f"{LINUX}/repodata.json"]) == 14


def test_a_package_that_comes_late_is_published_in_the_same_run(lab: Lab) -> None:
    """New ones, and new bytes of a served name, which keeps its former record meanwhile."""
    lab.settings |= {"timeout_seconds": 60}
    lab.sync()
    late = next((lab.tree / LINUX).glob("lib0003-*"))
    channel.build(
        channel.Spec("lib0003", "1.3", subdir="linux-64", files={"share/new": b"new"}), lab.tree / "pkgs/main"
    )
    channel.build(channel.Spec("another", subdir="linux-64"), lab.tree / "pkgs/main")
    channel.index(lab.tree / "pkgs/main")
    former = lab.repodata(LINUX)["packages.conda"][late.name]
    lab.fault(f"*/{late.name}", stall=9)
    run = lab.start()
    lab.until(lambda: "another-1.0-0.conda" in lab.named(f"{LINUX}/repodata.json"))
    assert run.is_running()
    assert lab.repodata(LINUX)["packages.conda"][late.name] == former
    assert lab.problems() == []
    ended = run.wait()
    assert ended.code == 0, ended.log
    assert lab.repodata(LINUX)["packages.conda"][late.name]["sha256"] != former["sha256"]
    lab.check()


@pytest.mark.parametrize("jobs", [1, 2, 4, 16])
def test_a_few_packages_that_are_refused_for_ever_do_not_make_the_host_look_ill(lab: Lab, jobs: int) -> None:
    """They stand next to each other in the index, as the versions of one package do."""
    lab.settings |= {"jobs": jobs, "retries": 3, "retry_wait_seconds": 0.05}
    bad = [f"lib000{number}" for number in (1, 2, 3)]
    for name in bad:
        lab.fault(f"*/{name}-*", status=503)
    run = lab.sync()
    assert run.code == 1, run.log
    named = lab.check().named[f"{LINUX}/repodata.json"]
    assert len(named) == 14 - len(bad), run.log


# ---- misled --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"body": LOGIN, "headers": {"Content-Type": "text/html"}},
        {"status": 302, "headers": {"Location": "/pkgs/main/linux-64/repodata.json"}},
        {"status": 302, "headers": {"Location": "file:///etc/passwd"}},
        {"status": 200, "body": b""},
        {"length": 1 << 50, "cut": 1000},
    ],
    ids=["login page", "redirect loop", "redirect to a file", "nothing", "length of a petabyte"],
)
def test_an_upstream_that_answers_everything_with_nonsense_changes_nothing(lab: Lab, fault: dict[str, Any]) -> None:
    lab.settings |= {"installers": {"dists": ["miniconda"], "suffixes": [".sh"]}, "timeout_seconds": 2, "retries": 0}
    assert lab.sync().code == 0
    before = lab.repodata(LINUX)
    lab.fault("*", **fault)
    lab.settings["delete_grace_hours"] = 0
    run = lab.sync("--delete")
    assert run.code in (1, 5), run.log
    assert LINUX in run.log
    as_before(lab, before)
    lab.upstream.faults.clear()
    assert lab.sync().code == 0


def test_bodies_without_an_end_are_broken_off(lab: Lab) -> None:
    """One form of an index, for which another stands in; and an installer page."""
    lab.settings["installers"] = {"dists": ["miniconda"], "suffixes": [".sh"]}
    lab.fault(f"/{LINUX}/repodata.json.zst", endless=True)
    lab.fault("/miniconda/", endless=True)
    run = lab.sync()
    assert run.code == 1, run.log
    assert "miniconda" in run.log
    assert run.peak < 900 * MIB, f"{run.peak / MIB:.0f} MiB"
    assert "hello-1.0-0.conda" in lab.check().named[f"{LINUX}/repodata.json"]


@pytest.mark.parametrize("form", ["repodata.json.zst", "repodata.json.bz2", "current_repodata.json"])
def test_an_index_that_unpacks_to_far_more_than_it_should(lab: Lab, form: str) -> None:
    """A few KiB that would fill the memory, or the disk."""
    assert lab.sync().code == 0
    before = lab.repodata(LINUX)
    channel.edit(lab.tree / LINUX, {"hello-1.0-0.conda": {"later": True}})
    page = b'{"packages": {}, "packages.conda": {}, "filler": "' + b" " * (64 * MIB)
    # Frames one after the other are one stream (RFC 8878, 3; bzip2 likewise): 4 GiB in all.
    pack = bz2.compress if form.endswith(".bz2") else zstandard.compress
    bomb = pack(page) + pack(b" " * (64 * MIB)) * 63
    assert len(bomb) < 2 * MIB
    for file in (lab.tree / LINUX).glob("*repodata*"):
        file.unlink()
    if form.startswith("current"):
        (lab.tree / LINUX / "repodata.json").write_text(json.dumps({**before, "later": 1}))
        form += ".zst"
    (lab.tree / LINUX / form).write_bytes(bomb)
    began = time.monotonic()

    run = lab.sync()

    assert run.code in (0, 1) if form.startswith("current") else run.code == 1, run.log
    assert run.peak < MODEST, f"{run.peak / MIB:.0f} MiB"
    assert time.monotonic() - began < 20
    assert "unpack" in run.log
    assert form.removesuffix(".zst") in run.log
    assert lab.repodata(LINUX)["packages.conda"] == before["packages.conda"]
    lab.check()


def test_an_index_nested_deeper_than_any_reader_goes(lab: Lab) -> None:
    assert lab.sync().code == 0
    before = lab.repodata(LINUX)
    for file in (lab.tree / LINUX).glob("*repodata*"):
        file.unlink()
    (lab.tree / LINUX / "repodata.json").write_bytes(b'{"packages": {"x-1-0.conda": ' + b"[" * 5 * MIB + b"}}")
    run = lab.sync()
    assert run.code == 1, run.log
    as_before(lab, before)


@pytest.mark.parametrize("size", [-1, 10**18, 10**40, 1.5, "many", True])
def test_a_record_with_an_absurd_size_costs_itself_alone(lab: Lab, size: Any) -> None:
    channel.edit(lab.tree / LINUX, {"tool-2.0-0.conda": {"size": size}})
    run = lab.sync()
    assert run.code == 1, run.log
    assert "tool-2.0-0.conda" in run.log
    named = lab.check().named[f"{LINUX}/repodata.json"]
    assert "tool-2.0-0.conda" not in named
    assert "hello-1.0-0.conda" in named


# ---- led astray ----------------------------------------------------------------------------------------------

NAMES = [
    "../escape-1.0-0.conda", "../../../../../../tmp/escape-1.0-0.conda", "/etc/escape-1.0-0.conda",
    "http://127.0.0.1:9/escape-1.0-0.conda", "//127.0.0.1:9/escape-1.0-0.conda", "..\\escape-1.0-0.conda",
    "%2e%2e%2fescape-1.0-0.conda", ".lanmirror/escape-1.0-0.conda", "sub/escape-1.0-0.conda",
    "escape\n-1.0-0.conda", "escape\x00-1.0-0.conda", "escape\u202e-1.0-0.conda", "escape-1.0-0.conda?x=.conda",
    "escape" * 60 + "-1.0-0.conda", "escape-1.0-0.exe", "-rf-escape-1.0-0.conda", "repodata.json", "..",
]  # fmt: skip


@pytest.mark.parametrize("section", ["packages", "packages.conda", "v3.conda", "v3.whl url", "v3.whl fn"])
def test_file_names_that_lead_elsewhere_are_refused_named_and_written_nowhere(lab: Lab, section: str) -> None:
    """All of them at once: each is named, none harms the others."""
    theirs = json.loads((lab.tree / LINUX / "repodata.json").read_bytes())
    record = theirs["packages.conda"]["tool-2.0-0.conda"]
    if section.startswith("v3.whl"):
        field = section.removeprefix("v3.whl ")
        bad = {f"escape{number}-1-0": {**record, field: name} for number, name in enumerate(NAMES)}
        channel.edit(lab.tree / LINUX, v3={"whl": bad})
    elif section == "v3.conda":
        bad = {name.removesuffix(".conda"): record for name in NAMES}
        channel.edit(lab.tree / LINUX, v3={"conda": bad})
    else:
        bad = dict.fromkeys(NAMES, record)
        channel.edit(lab.tree / LINUX, **{section: {**theirs[section], **bad}})
    lab.configure()
    before = lab.outside_the_mirror()

    run = lab.sync()

    assert run.code in (0, 1), run.log
    # A wheel that is kept elsewhere is sound, and not mirrored.
    assert run.code == 1 or section.startswith("v3.whl")
    for name in bad:
        # A record may be called by its key or by the file that it leads to.
        words = (name, bad[name].get("url", name), bad[name].get("fn", name))
        assert any(repr(word)[1:-1] in run.log for word in words), name
    assert lab.outside_the_mirror() == before
    assert not Path("/tmp/escape-1.0-0.conda").exists()
    assert not Path("/etc/escape-1.0-0.conda").exists()
    strays = [file for file in lab.mirror.rglob("*") if "escape" in file.name and ".lanmirror" not in file.parts]
    assert strays == []
    named = lab.check().named[f"{LINUX}/repodata.json"]
    assert "hello-1.0-0.conda" in named
    assert not any("escape" in name for name in named)


def test_a_symbolic_link_in_the_mirror_is_not_written_through(lab: Lab) -> None:
    """Someone who may write one package's place must not direct the engine to another file."""
    assert lab.sync().code == 0
    victim = lab.folder / "victim"
    victim.write_text("mine")
    target = lab.mirror / LINUX / "tool-2.0-0.conda"
    target.unlink()
    target.symlink_to(victim)
    assert lab.sync().code == 0
    assert victim.read_text() == "mine"
    lab.check()


def test_records_that_lead_to_another_server_are_served_from_here(lab: Lab) -> None:
    url = "https://conda.example.org/tool-2.0-0.conda"
    channel.edit(lab.tree / LINUX, {"tool-2.0-0.conda": {"url": url, "channel": "https://conda.example.org/main"}})
    assert lab.sync().code in (0, 1)
    assert "example.org" not in json.dumps(lab.repodata(LINUX))
    lab.check()


# ---- back in time, and half of it ----------------------------------------------------------------------------


def test_an_index_older_than_ours_is_not_published(lab: Lab) -> None:
    """A mirror of the upstream that lags behind, or is set back."""
    before, day = time.time() - 86_400, 86_400
    for file in (lab.tree / LINUX).glob("*repodata*"):
        os.utime(file, (before, before))
    old = {file.name: file.read_bytes() for file in (lab.tree / LINUX).glob("*repodata*")}
    (name,) = channel.publish(lab.tree / "pkgs/main", channel.Spec("new", subdir="linux-64", files={"x": b"1"}))
    channel.edit(lab.tree / LINUX, {name: {"timestamp": (channel.MADE + day) * 1000}})
    assert lab.sync().code == 0
    for form, data in old.items():
        (lab.tree / LINUX / form).write_bytes(data)
        os.utime(lab.tree / LINUX / form, (before, before))
    lab.settings["delete_grace_hours"] = 0

    run = lab.sync("--delete")

    assert run.code == 1, run.log
    assert "older" in run.log
    assert name in lab.check().named[f"{LINUX}/repodata.json"]
    assert "--accept-older" in run.log, "the message names the way to have it all the same"
    assert lab.sync("--accept-older").code == 0
    assert name not in lab.check().named[f"{LINUX}/repodata.json"]


def test_half_an_index_deletes_nothing(lab: Lab) -> None:
    """More than max_delete percent of a subdir would go at once: that is rather a fault of the upstream."""
    lab.settings |= {"delete_grace_hours": 0, "max_delete": 20}
    assert lab.sync().code == 0
    theirs = json.loads((lab.tree / LINUX / "repodata.json").read_bytes())["packages.conda"]
    gone = [name for name in theirs if name.startswith("lib")][:6]
    channel.edit(lab.tree / LINUX, dict.fromkeys(gone))

    run = lab.sync("--delete")

    assert run.code == 1, run.log
    assert LINUX in run.log
    assert "max_delete" in run.log
    assert "20" in run.log
    assert set(gone) <= lab.packages(LINUX)
    lab.check()
    assert "--max-delete" in run.log, "the message names the override"
    run = lab.sync("--delete", "--max-delete", "60")
    assert run.code == 0, run.log
    assert not set(gone) & lab.packages(LINUX)
    lab.check()


def test_a_few_deletions_are_no_fault(lab: Lab) -> None:
    lab.settings |= {"delete_grace_hours": 0, "max_delete": 20}
    assert lab.sync().code == 0
    channel.retract(lab.tree / "pkgs/main", "linux-64", "lib0001-1.1-0.conda", "lib0002-1.2-0.conda")
    assert lab.sync("--delete").code == 0
    assert "lib0001-1.1-0.conda" not in lab.packages(LINUX)
    lab.check()


def test_the_stop_holds_in_the_runs_after_it_too(lab: Lab) -> None:
    """Half an index that stays: each run says so and deletes nothing, also not in small steps."""
    lab.settings |= {"delete_grace_hours": 0, "max_delete": 20}
    assert lab.sync().code == 0
    theirs = json.loads((lab.tree / LINUX / "repodata.json").read_bytes())["packages.conda"]
    gone = [name for name in theirs if name.startswith("lib")][:6]
    channel.edit(lab.tree / LINUX, dict.fromkeys(gone))
    for _ in range(3):
        run = lab.sync("--delete")
        assert run.code == 1, run.log
        assert "max_delete" in run.log
    assert set(gone) <= lab.packages(LINUX)


# ---- more than one upstream ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [{"corrupt": True}, {"cut": 100}, {"status": 404}, {"status": 503}, {"drop": True}, {"body": LOGIN},
     {"status": 429, "headers": {"Retry-After": "3"}}],
    ids=["corrupt", "cut", "missing", "broken", "no answer", "login page", "throttled"],
)  # fmt: skip
def test_what_the_first_upstream_cannot_give_comes_from_the_next(lab: Lab, fault: dict[str, Any]) -> None:
    with server.serving(lab.tree) as second:
        lab.settings["upstream"] = {"repo": [lab.upstream.url, second.url], "cloud": f"{second.url}/cloud"}
        lab.fault("*.conda", **fault)
        began = time.monotonic()
        run = lab.sync()
        assert run.code == 0, run.log
        assert time.monotonic() - began < 20
        assert second.asked("*.conda")
    lab.check()


def test_an_upstream_that_is_down_is_passed_over(lab: Lab) -> None:
    with server.serving(lab.tree) as second:
        lab.settings["upstream"] = {"repo": [lab.upstream.url, second.url], "cloud": f"{second.url}/cloud"}
        lab.upstream.stop()
        run = lab.sync()
        assert run.code == 0, run.log
    lab.check()


def test_bytes_from_anywhere_are_checked_against_the_index_of_one(lab: Lab, tmp_path: Path) -> None:
    """`upstream.index` is trusted; the mirror near by has other bytes for a package, and lacks another."""
    near = tmp_path / "near"
    (near / LINUX).mkdir(parents=True)
    for file in (lab.tree / LINUX).glob("lib*"):
        (near / LINUX / file.name).write_bytes(file.read_bytes())
    (near / LINUX / "lib0001-1.1-0.conda").write_bytes(b"something else")
    (near / LINUX / "lib0002-1.2-0.conda").unlink()
    with server.serving(near) as other:
        lab.settings["upstream"] = {
            "repo": [other.url, lab.upstream.url], "cloud": f"{lab.upstream.url}/cloud",
            "index": {"repo": lab.upstream.url, "cloud": f"{lab.upstream.url}/cloud"},
        }  # fmt: skip
        run = lab.sync()
        assert run.code == 0, run.log
        assert other.asked("*/lib0003-*")
        assert not other.asked("*repodata*")
    assert not lab.upstream.asked("*/lib0003-*"), "what the near one has, it gives"
    lab.check()


def test_the_same_requests_do_not_go_round_for_ever(lab: Lab) -> None:
    """Both upstreams lack a package that the index names: the run ends, and says so."""
    with server.serving(lab.tree) as second:
        lab.settings["upstream"] = {"repo": [lab.upstream.url, second.url], "cloud": f"{second.url}/cloud"}
        (lab.tree / LINUX / "tool-2.0-0.conda").unlink()
        run = lab.sync()
        assert run.code == 1, run.log
        assert "tool-2.0-0.conda" in run.log
        assert len(second.asked("*/tool*")) + len(lab.upstream.asked("*/tool*")) <= 4
    lab.check()


def test_a_rate_limit_holds(lab: Lab) -> None:
    lab.settings["limit_rate"] = "1MB/s"
    channel.publish(lab.tree / "pkgs/main",
                    channel.Spec("big", subdir="linux-64", files={"x": channel.noise(2_000_000, 3)}))  # fmt: skip
    began = time.monotonic()
    run = lab.sync()
    assert run.code == 0, run.log
    assert time.monotonic() - began > 1.5
    lab.check()


def test_a_run_that_is_asked_to_end_leaves_the_mirror_closed(lab: Lab) -> None:
    """SIGTERM, as when the machine is shut down."""
    reached = threading.Event()
    lab.fault("*/tool-2.0-0.conda", stall=60, times=1)
    lab.during("*/tool-2.0-0.conda", reached.set)
    lab.settings["timeout_seconds"] = 60
    run = lab.start()
    assert reached.wait(20)
    os.kill(run.pid, 15)
    began = time.monotonic()
    assert run.wait().code != 0
    assert time.monotonic() - began < 10
    assert lab.problems() == []
    assert lab.sync().code == 0
    lab.check()
