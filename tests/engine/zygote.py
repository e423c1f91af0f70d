"""Forks runs of the engine on request, so that a test does not pay for an interpreter's start each time.

One JSON object a line on standard input, one on standard output:

    {"argv", "env", "output"}                starts a run -> {"pid"}
    {..., "later": seconds}                  ... whose clock is so far ahead
    {..., "die_at": n}                       ... that kills itself before its n-th change of the file system
    {..., "count_to": FILE}                  ... that writes down how many changes it made
    {"wait": pid, "timeout": seconds}        -> {"code", "peak"}: null while it still runs, negative for a
                                                signal; the most memory that it had, in bytes

A run is the leader of a session of its own, so that what it leaves behind can be found.
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from lanmirror_sync.cli import main

CHANGES = {"os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate", "shutil.rmtree"}


class Changes:
    """Counts the changes that this process makes to the file system, by the interpreter's audit events."""

    def __init__(self, die_at: int | None) -> None:
        self.count = 0
        self._die_at = die_at
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            written = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not written or not isinstance(path, str | bytes | os.PathLike) or "__pycache__" in os.fsdecode(path):
                return
        elif event not in CHANGES:
            return
        self.count += 1
        if self.count == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)


def run(request: dict[str, Any]) -> int:
    """Be the process of a run."""
    os.setsid()
    # A shell that runs the tests in the background has them ignore what a keyboard sends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(request["env"])
    # One that hangs is asked where (see `Running.wait`).
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    now, later = time.time, request.get("later", 0)
    time.time = lambda: now() + later
    changes = Changes(request.get("die_at"))
    try:
        return main(request["argv"])
    finally:
        if "count_to" in request:
            Path(request["count_to"]).write_text(str(changes.count))


def wait(pid: int, timeout: float) -> dict[str, int | None]:
    """Tell how a run ended, if it does within so many seconds."""
    descriptor = os.pidfd_open(pid)
    try:
        if not select.select([descriptor], [], [], timeout)[0]:
            return {"code": None, "peak": None}
    finally:
        os.close(descriptor)
    _, status, usage = os.wait4(pid, 0)
    return {"code": os.waitstatus_to_exitcode(status), "peak": usage.ru_maxrss << 10}


def serve() -> int:
    """Answer requests until standard input ends; in a forked process, return the exit status of its run."""
    # Not `for line in sys.stdin`: a run must not inherit requests that were read ahead.
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "wait" in request:
            answer: dict[str, Any] = wait(request["wait"], request["timeout"])
        elif pid := os.fork():
            answer = {"pid": pid}
        else:
            return run(request)
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(serve())
