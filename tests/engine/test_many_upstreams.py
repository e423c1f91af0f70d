"""Several places for the same bytes, a limit, one bad package among good ones, and a second run that asks little."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.lab import Lab
from tests.upstream import channel, server

pytestmark = pytest.mark.slow

LINUX = "pkgs/main/linux-64"
VICTIM = "lib0003-1.3-0.conda"


@contextlib.contextmanager
def another(lab: Lab) -> Iterator[server.Upstream]:
    """Serve a second upstream with the same files."""
    tree = lab.folder / "another"
    shutil.copytree(lab.tree, tree)
    with server.serving(tree) as upstream:
        yield upstream


@pytest.mark.parametrize("fault", [{"status": 404}, {"status": 503}, {"corrupt": True}, {"drop": True}, {"cut": 100}])
def test_the_next_upstream_has_what_the_first_has_not(lab: Lab, fault: dict[str, object]) -> None:
    with another(lab) as second:
        lab.settings["upstream"]["repo"] = [lab.upstream.url, second.url]
        lab.fault(f"*/{VICTIM}", **fault)
        run = lab.sync()
        assert run.code == 0, run.log
        lab.check()
        assert [request.path for request in second.asked("*.conda")] == [f"/{LINUX}/{VICTIM}"]


def test_an_upstream_that_is_down_is_made_up_for(lab: Lab) -> None:
    with another(lab) as second:
        lab.settings["upstream"]["repo"] = ["http://127.0.0.1:9", second.url]
        run = lab.sync()
        assert run.code == 0, run.log
        lab.check()


def test_an_upstream_that_throttles_is_left_alone(lab: Lab) -> None:
    with another(lab) as second:
        lab.settings["upstream"]["repo"] = [lab.upstream.url, second.url]
        lab.settings["retry_wait_seconds"] = 0.5
        lab.fault("*.conda", status=429, headers={"Retry-After": "30"})
        began = time.monotonic()
        run = lab.sync()
        assert run.code == 0, run.log
        assert time.monotonic() - began < 20
        lab.check()
        assert len(lab.upstream.asked("*.conda")) <= lab.settings["jobs"]


@pytest.mark.parametrize("first", ["throttles", "fails once"])
def test_the_others_are_asked_again_before_one_that_throttles_may_be(lab: Lab, first: str) -> None:
    with another(lab) as second:
        urls = [lab.upstream.url, second.url]
        lab.settings["upstream"]["repo"] = urls if first == "throttles" else urls[::-1]
        lab.fault("*.conda", status=429, headers={"Retry-After": "30"})
        second.faults[f"*/{VICTIM}"] = server.Fault(status=503, times=1)
        began = time.monotonic()
        run = lab.sync()
        assert run.code == 0, run.log
        assert time.monotonic() - began < 25
        lab.check()


def test_indexes_come_from_where_they_are_trusted_and_bytes_from_anywhere(lab: Lab) -> None:
    with another(lab) as near:
        (near.root / LINUX / VICTIM).write_bytes(b"something else")
        lab.settings["upstream"] = {"repo": near.url, "cloud": near.url, "index": {"repo": lab.upstream.url}}
        lab.settings["installers"] = {"dists": ["miniconda"], "suffixes": ["Linux-x86_64.sh"]}
        run = lab.sync()
        assert run.code == 0, run.log
        lab.check()
        assert not near.asked("*repodata*")
        assert not near.asked("/miniconda/")
        assert len(near.asked("/miniconda/*.sh", "GET")) == 1
        assert [request.path for request in lab.upstream.asked("*.conda")] == [f"/{LINUX}/{VICTIM}"]


def test_a_limit_holds(lab: Lab) -> None:
    for number in range(4):
        spec = channel.Spec(f"big{number}", "1.0", subdir="linux-64", files={"big": channel.noise(250_000, number)})
        channel.build(spec, lab.tree / "pkgs/main")
    channel.index(lab.tree / "pkgs/main")
    lab.settings["limit_rate"] = "500kB/s"
    began = time.monotonic()
    run = lab.sync()
    assert run.code == 0, run.log
    assert time.monotonic() - began > 1.7
    lab.check()


@pytest.mark.parametrize("fault", [{"stall": 120.0}, {"status": 503}, {"drop": True}])
def test_one_bad_package_holds_up_nothing_but_itself(lab: Lab, fault: dict[str, object]) -> None:
    lab.settings.update(jobs=2, retries=3, retry_wait_seconds=1.5, timeout_seconds=30)
    lab.fault(f"*/{VICTIM}", **fault)
    run = lab.start()
    others = {file.name for file in (lab.tree / LINUX).iterdir() if file.name.endswith((".conda", ".tar.bz2"))}
    others -= {VICTIM, "unwanted-1.0-0.conda"}
    lab.until(lambda: (lab.mirror / LINUX).is_dir() and lab.packages(LINUX) == others, 10)
    run.kill()
    run.wait()


def test_an_unchanged_upstream_costs_one_request_a_subdir(lab: Lab) -> None:
    assert lab.sync().code == 0
    lab.upstream.requests.clear()
    run = lab.sync()
    assert run.code == 0, run.log
    paths = [(request.path, bool(request.headers.get("If-None-Match"))) for request in lab.upstream.requests]
    assert sorted(paths) == [(f"/{subdir}/repodata.json.zst", True) for subdir in sorted(lab.subdirs)]


def test_what_was_taken_from_the_mirror_comes_back_without_the_index_being_sent_again(lab: Lab) -> None:
    assert lab.sync().code == 0
    (lab.mirror / LINUX / VICTIM).unlink()
    lab.upstream.requests.clear()
    assert lab.sync().code == 0
    lab.check()
    assert [request.path for request in lab.upstream.asked("*.conda")] == [f"/{LINUX}/{VICTIM}"]
    assert all(request.headers.get("If-None-Match") for request in lab.upstream.asked("*/repodata.json.zst"))


def test_an_exclusion_takes_effect_though_the_upstream_did_not_change(lab: Lab) -> None:
    assert lab.sync().code == 0
    lab.settings["exclude"] = ["unwanted", "lib0003"]
    assert lab.sync().code == 0
    assert VICTIM not in lab.named(f"{LINUX}/repodata.json")


def test_a_state_that_is_lost_or_damaged_costs_hashing_and_no_download(lab: Lab) -> None:
    assert lab.sync().code == 0
    for damage in (Path.unlink, lambda file: file.write_bytes(b"no database" * 100)):
        damage(lab.mirror / ".lanmirror/memory.sqlite")
        lab.upstream.requests.clear()
        run = lab.sync()
        assert run.code == 0, run.log
        assert not lab.upstream.asked("*.conda")
        lab.check()


def test_a_range_is_only_asked_for_of_the_same_bytes(lab: Lab) -> None:
    big = channel.Spec("big", "1.0", subdir="linux-64", files={"share/big": channel.noise(3_000_000, 1)})
    channel.build(big, lab.tree / "pkgs/main")
    channel.index(lab.tree / "pkgs/main")
    lab.settings["retries"] = 0
    lab.fault(f"*/{big.file_name}", cut=2_000_000, times=1)
    assert lab.sync().code == 1
    lab.upstream.requests.clear()
    assert lab.sync().code == 0
    (request,) = lab.upstream.asked(f"*/{big.file_name}", "GET")
    assert request.headers["Range"] == "bytes=2000000-"
    assert request.headers["If-Range"]
    lab.check()


def test_half_an_index_deletes_nothing(lab: Lab) -> None:
    lab.settings["delete_grace_hours"] = 0
    assert lab.sync().code == 0
    before = lab.packages(LINUX)
    gone = sorted(before)[: len(before) // 2]
    channel.edit(lab.tree / LINUX, dict.fromkeys(gone))
    run = lab.sync("--delete")
    assert run.code == 1
    assert "--max-delete" in run.log
    assert lab.packages(LINUX) == before
    assert lab.sync("--delete").code == 1, "the stop stays until someone decides"
    assert lab.sync("--delete", "--max-delete", "100").code == 0
    assert lab.packages(LINUX) == before - set(gone)
    lab.check()


def test_an_older_index_is_not_published(lab: Lab) -> None:
    folder = lab.tree / LINUX
    kept = {file.name: (file.read_bytes(), file.stat().st_mtime) for file in folder.glob("*repodata*")}
    newer = channel.Spec("tool", "3.0", subdir="linux-64", files={"share/tool": b"newer"})
    channel.build(newer, lab.tree / "pkgs/main")
    channel.index(lab.tree / "pkgs/main")
    channel.edit(folder, {newer.file_name: {"timestamp": 1_800_000_000_000}})
    assert lab.sync().code == 0
    for name, (data, mtime) in kept.items():
        (folder / name).write_bytes(data)
        os.utime(folder / name, (mtime - 100, mtime - 100))
    run = lab.sync()
    assert run.code == 1
    assert "older" in run.log
    assert newer.file_name in lab.named(f"{LINUX}/repodata.json")
    assert lab.sync("--accept-older").code == 0
    assert newer.file_name not in lab.named(f"{LINUX}/repodata.json")
