"""Two runs at once, and a disk that is too small or fills up."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.lab import Engine, Lab, laboratory
from tests.upstream import channel

LINUX = "pkgs/main/linux-64"
# Mounting is root's: in GitHub's runners through sudo.
AS_ROOT = [] if os.geteuid() == 0 else ["sudo", "-n"]
DISK_BYTES = 3 << 20


@pytest.fixture
def small(engine: Engine, built: Path, tmp_path: Path) -> Iterator[Lab]:
    """Return a lab whose mirror is on a disk of 3 MiB."""
    mirror = tmp_path / "disk"
    mirror.mkdir()
    options = f"size={DISK_BYTES},mode=0777"
    subprocess.run([*AS_ROOT, "mount", "-t", "tmpfs", "-o", options, "tmpfs", mirror], check=True)
    try:
        with laboratory(engine, built, tmp_path, mirror) as lab:
            yield lab
    finally:
        subprocess.run([*AS_ROOT, "umount", "--lazy", mirror], check=True)


def test_the_second_of_two_runs_does_nothing_and_says_so(lab: Lab) -> None:
    reached = threading.Event()
    lab.settings["timeout_seconds"] = 60
    lab.fault("*/tool-2.0-0.conda", stall=60, times=1)
    lab.during("*/tool-2.0-0.conda", reached.set)
    first = lab.start()
    assert reached.wait(20)
    lab.until(lambda: len(lab.packages(LINUX)) == 13)
    lab.upstream.requests.clear()

    second = lab.sync()

    assert second.code == 3, second.log
    assert str(first.pid) in second.log, "the message names the process that holds the lock"
    assert not lab.upstream.asked("*.conda*")
    first.kill()
    assert first.wait().code == -9
    third = lab.sync()
    assert third.code == 0, f"a lock of a process that died holds nobody: {third.log}"
    lab.check()


def big(lab: Lab, size: int) -> str:
    """Add a package of so many bytes to the upstream."""
    spec = channel.Spec("big", "1.0", subdir="linux-64", files={"share/big": channel.noise(size, 1)})
    channel.build(spec, lab.tree / "pkgs/main")
    channel.index(lab.tree / "pkgs/main")
    return spec.file_name


def test_too_little_room_is_seen_before_anything_is_begun(small: Lab) -> None:
    assert small.sync().code == 0
    before = small.repodata(LINUX)
    name = big(small, 4 << 20)
    run = small.sync("--delete")
    assert run.code == 4, run.log
    assert str(small.mirror) in run.log
    assert small.repodata(LINUX) == before
    assert not small.upstream.asked(f"*/{name}")
    small.check()


def test_room_that_is_to_stay_free_counts(lab: Lab) -> None:
    lab.settings["min_free_gib"] = 1 << 20
    run = lab.sync()
    assert run.code == 4, run.log
    assert "min_free_gib" in run.log
    assert not (lab.mirror / "pkgs").exists()


@pytest.mark.parametrize("victim", ["tool-2.1-0.conda", "*repodata.json*", "big-1.0-0.conda"])
def test_a_disk_that_fills_up_loses_nothing_that_is_served(small: Lab, victim: str) -> None:
    """Something else on the disk takes the room at the worst moment: when `victim` is asked for."""
    assert small.sync().code == 0
    before = small.repodata(LINUX)
    filler = small.mirror / "filler"
    channel.build(channel.Spec("tool", "2.1", subdir="linux-64", files={"x": b"x"}), small.tree / "pkgs/main")
    big(small, 1 << 20)
    small.during(f"/{LINUX}/{victim}", lambda: fill(filler))

    run = small.sync("--delete")

    assert run.code == 4, run.log
    assert str(small.mirror) in run.log
    assert small.repodata(LINUX) == before
    assert small.problems() == []
    small.upstream.on_request = lambda request: None
    filler.unlink()
    run = small.sync("--delete")
    assert run.code == 0, run.log
    assert "big-1.0-0.conda" in small.check().named[f"{LINUX}/repodata.json"]


def test_a_disk_that_has_room_for_packages_but_not_for_the_index(small: Lab) -> None:
    """The last package is followed by the index: the disk fills between the two."""
    assert small.sync().code == 0
    before = small.repodata(LINUX)
    channel.build(channel.Spec("tool", "2.1", subdir="linux-64", files={"x": b"x"}), small.tree / "pkgs/main")
    channel.index(small.tree / "pkgs/main")
    notes = {f"note{number}": channel.noise(400, number).hex() for number in range(200)}
    channel.edit(small.tree / LINUX, {"hello-1.0-0.conda": notes})
    filler = small.mirror / "filler"
    small.during("*/tool-2.1-0.conda", lambda: fill(filler, leave=32 << 10))

    run = small.sync()

    assert run.code == 4, run.log
    assert "tool-2.1-0.conda" in small.packages(LINUX), "the package had room"
    assert small.repodata(LINUX) == before
    assert small.problems() == []
    filler.unlink()
    small.upstream.on_request = lambda request: None
    assert small.sync().code == 0
    assert small.repodata(LINUX)["packages.conda"]["hello-1.0-0.conda"]["note7"]
    small.check()


def fill(file: Path, leave: int = 0) -> None:
    """Write until the disk is full, but for so many bytes."""
    with file.open("ab", buffering=0) as stream:
        with contextlib.suppress(OSError):
            while True:
                stream.write(bytes(4096))
        stream.truncate(stream.tell() - leave)
