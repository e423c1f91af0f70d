"""Run a command and write down its cost: `python bench/common/measure.py RESULT SECONDS COMMAND...`.

A small process of its own, since the kernel counts the memory of the parent into the peak of a child that was
forked from it (`ru_maxrss` survives `execve`; getrusage(2)): that floor is this program's 10 MB, not the
benchmark's hundreds.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

SAMPLE_SECONDS = 0.1


def family(root: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [root]
    for process in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{process}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def together(processes: Sequence[int]) -> int:
    """Return the memory of processes, in bytes, shared pages counted once (`Pss`, proc(5))."""
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
    return total


def main(arguments: Sequence[str]) -> int:
    """Run the command, end it at its limit of seconds, and write the result as JSON."""
    result, limit, *command = arguments
    wall, began = time.time(), time.monotonic()
    # In a session of its own, so that all of it can be ended.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    ended = threading.Event()
    peak, late = 0, False

    def watch() -> None:
        nonlocal peak, late
        while not ended.wait(SAMPLE_SECONDS):
            processes = family(child.pid)
            # One process alone is told by the kernel, and exactly.
            if len(processes) > 1:
                peak = max(peak, together(processes))
            if time.monotonic() - began > float(limit):
                late = True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - began
    except KeyboardInterrupt:
        os.killpg(child.pid, signal.SIGKILL)
        return 1
    finally:
        ended.set()
        watcher.join()
    cost = {
        "code": -1 if late else os.waitstatus_to_exitcode(status),
        "late": late,
        "began": wall,
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": max(usage.ru_maxrss << 10, peak),
    }
    Path(result).write_text(json.dumps(cost))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
