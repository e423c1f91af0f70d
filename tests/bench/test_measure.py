"""The launcher tells the cost of a command: all of its processes, and nothing of the benchmark's own."""

import sys
from pathlib import Path

from bench.common.cost import measure

MIB = 1 << 20
HOLD = "import time; data = bytearray({} << 20); time.sleep({})"


def test_the_peak_is_the_commands_own(tmp_path: Path) -> None:
    ballast = bytearray(300 * MIB)
    ballast[:: 1 << 12] = b"x" * len(ballast[:: 1 << 12])
    cost = measure([sys.executable, "-c", HOLD.format(100, 0)], [], tmp_path)
    assert 100 * MIB < cost.peak_bytes < 150 * MIB


def test_the_peak_is_that_of_all_processes_together(tmp_path: Path) -> None:
    one = f"{sys.executable} -c '{HOLD.format(100, 1.5)}'"
    cost = measure(["sh", "-c", f"{one} & {one}; wait"], [], tmp_path)
    assert 200 * MIB < cost.peak_bytes < 300 * MIB


def test_processor_time_of_children_counts(tmp_path: Path) -> None:
    spin = "import time\nwhile time.process_time() < .5: pass"
    cost = measure(["sh", "-c", f"{sys.executable} -c '{spin}'; true"], [], tmp_path)
    assert 0.5 <= cost.cpu_seconds < 2


def test_the_exit_code_and_the_output_are_kept(tmp_path: Path) -> None:
    cost = measure(["sh", "-c", "echo said; exit 3"], [], tmp_path)
    assert (cost.code, cost.late) == (3, False)
    assert (tmp_path / "output").read_text() == "said\n"


def test_a_run_without_end_is_ended(tmp_path: Path) -> None:
    cost = measure(["sh", "-c", "sleep 60 & sleep 60"], [], tmp_path, limit=0.3)
    assert cost.late
    assert 0.3 <= cost.seconds < 10
