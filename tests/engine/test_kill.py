"""kill -9 at many points of a run: what is served stays closed, and the next run ends what was begun."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.lab import Lab
from tests.upstream import channel

pytestmark = pytest.mark.slow

LINUX = "pkgs/main/linux-64"
POINTS = 12


def nothing_yet(lab: Lab) -> None:
    """The first run of all."""
    lab.settings["cloud"] = ["conda-forge/linux-64"]


def an_update(lab: Lab) -> None:
    """The upstream has new packages, lacks old ones, and has other bytes under an old name."""
    gone = channel.Spec("gone", "1.0", subdir="linux-64", files={"share/gone": b"gone"})
    channel.build(gone, lab.tree / "pkgs/main")
    channel.index(lab.tree / "pkgs/main")
    lab.settings["delete_grace_hours"] = 0
    assert lab.sync().code == 0
    (lab.tree / LINUX / gone.file_name).unlink()
    for spec in (
        channel.Spec("tool", "2.0", subdir="linux-64", files={"share/tool": channel.noise(3000, 77)}),
        channel.Spec("tool", "2.1", subdir="linux-64", files={"share/tool": channel.noise(3000, 78)}),
        channel.greeting("good evening", "1.1"),
    ):
        channel.build(spec, lab.tree / "pkgs/main")
    channel.index(lab.tree / "pkgs/main")


def on_demand(lab: Lab) -> None:
    """The same, where packages come on demand: of one channel those that are not here yet, of another all."""
    lab.settings["on_demand"] = True
    an_update(lab)
    lab.settings["cloud"] = [{"name": "conda-forge/linux-64", "hold": "none"}]


def on_demand_no_more(lab: Lab) -> None:
    """The site fetched on demand, and does not any more: closed once a run has come so far, and not before."""
    on_demand(lab)
    assert lab.sync("--indexes").code == 0
    lab.settings |= {"on_demand": False, "cloud": []}


@pytest.mark.parametrize(
    ("prepare", "arguments"),
    [(nothing_yet, ["--delete"]), (an_update, ["--delete"]), (on_demand, ["--delete"]), (on_demand, ["--indexes"]),
     (on_demand_no_more, ["--delete"])],
)  # fmt: skip
def test_killed_before_any_change_of_the_file_system(
    lab: Lab, prepare: Callable[[Lab], None], arguments: list[str], tmp_path: Path
) -> None:
    prepare(lab)
    start, counter = tmp_path / "start", tmp_path / "count"
    shutil.copytree(lab.mirror, start)
    assert lab.sync(*arguments, count_to=str(counter)).code == 0
    lab.check()
    changes = int(counter.read_text())
    assert changes > POINTS

    for point in sorted({1 + (changes - 1) * number // (POINTS - 1) for number in range(POINTS)}):
        shutil.rmtree(lab.mirror)
        shutil.copytree(start, lab.mirror)
        run = lab.sync(*arguments, die_at=point)
        # Threads make each run's number of changes its own: the last points may lie behind its end.
        assert run.code == -9 or point > changes * 0.8, f"was to die at {point} of {changes}: {run.log}"
        assert lab.problems() == [] or prepare is on_demand_no_more, f"killed at {point} of {changes}"
        run = lab.sync(*arguments)
        assert run.code == 0, f"after a kill at {point} of {changes}: {run.log}"
        findings = lab.check()
        assert "tool-2.0-0.conda" in findings.named[f"{LINUX}/repodata.json"]


def test_killed_in_mid_transfer_the_next_run_continues_there(lab: Lab) -> None:
    big = channel.Spec("big", "1.0", subdir="linux-64", files={"share/big": channel.noise(3_000_000, 1)})
    channel.build(big, lab.tree / "pkgs/main")
    channel.index(lab.tree / "pkgs/main")
    lab.fault(f"*/{big.file_name}", stall=60, stall_at=2_500_000, times=1)
    lab.settings["timeout_seconds"] = 60
    run = lab.start()
    lab.until(lambda: lab.largest_of_its_own() > 2_200_000)
    run.kill()
    assert run.wait().code == -9
    assert lab.problems() == []
    assert big.file_name not in lab.packages(LINUX)
    lab.upstream.requests.clear()

    assert lab.sync().code == 0

    ranges = [request.headers.get("Range", "") for request in lab.upstream.asked(f"*/{big.file_name}", "GET")]
    assert len(ranges) == 1
    assert int(ranges[0].removeprefix("bytes=").removesuffix("-")) > 2_200_000
    lab.check()


def test_the_rest_of_a_killed_run_is_not_fetched_twice(lab: Lab) -> None:
    """Whole packages that no index named yet are taken over by the next run."""
    stuck, reached = "lib0005-1.0-0.conda", threading.Event()
    lab.fault(f"*/{stuck}", stall=60, times=1)
    lab.during(f"*/{stuck}", reached.set)
    run = lab.start()
    assert reached.wait(20)
    lab.until(lambda: len(lab.packages(LINUX)) >= 10)
    run.kill()
    run.wait()
    there = lab.packages(LINUX)
    lab.upstream.requests.clear()
    assert lab.sync().code == 0
    again = {request.path.rpartition("/")[2] for request in lab.upstream.asked("*/linux-64/*", "GET")} & there
    assert not again
    lab.check()
