"""The service: looks for what came new, checks it, counts what was served, and writes what is told of it."""

from __future__ import annotations

import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import msgspec
from lanmirror_sync import systemd
from lanmirror_sync.kept import RESULTS, SOURCES, CacheReport, Channel, Wrong

from lanmirror_cache import CacheError, served
from lanmirror_cache.check import Checker
from lanmirror_cache.records import Records
from lanmirror_cache.scan import scan
from lanmirror_cache.state import WRONG_TOTAL, State

INTERVAL = 60.0
REPORT = "cache.json"
# sd-daemon(3).
ERROR, WARNING, NOTICE = 3, 4, 5


@dataclass(frozen=True)
class Places:
    """Where things are.

    Attributes:
        kept: Nginx's cache.
        mirror: the folder with the served indexes.
        log: what Nginx writes of what it serves.
        state: the folder for what is known, and for the report.
    """

    kept: Path
    mirror: Path
    log: Path
    state: Path


def tell(priority: int, text: str) -> None:
    """Write a line to the journal."""
    print(f"<{priority}>{text}", file=sys.stderr, flush=True)


def words(wrong: Wrong) -> str:
    """Return what is said of a package that was wrong."""
    source = f" (from {wrong.upstream})" if wrong.upstream else ""
    return f"{wrong.path} was wrong, and is taken out of the cache: {wrong.why}{source}"


def report(state: State, now: float, problem: str = "") -> CacheReport:
    """Return what is told of the cache; `now` is Unix time, in seconds."""
    numbers, kept = state.numbers(), state.by_channel()
    channels = {}
    for channel in sorted({*kept, *(name.rpartition(":")[0] for name in numbers if ":" in name)}):
        packages, size, right = kept.get(channel, (0, 0, 0))
        counters = (*RESULTS, *(f"{source}_bytes" for source in SOURCES))
        counts = {name: numbers.get(f"{channel}:{name}", 0) for name in counters}
        channels[channel] = Channel(packages, size, right, packages - right, **counts)
    return CacheReport(now, channels, numbers.get(WRONG_TOTAL, 0), state.wrong(), problem)


def write(folder: Path, told: CacheReport) -> None:
    """Write the report, for all to read, so that a reader finds the old one or the new one."""
    new = folder / f".{REPORT}.new"
    new.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=1))
    new.chmod(0o644)
    new.replace(folder / REPORT)


def count(state: State, log: Path) -> None:
    """Count what Nginx has served since the last time."""
    counts, offsets = served.read(log, state.offsets())
    state.counted(counts, offsets)


@dataclass
class Heartbeat:
    """Tells systemd that the work goes on, once a second at most."""

    last: float = field(default=-1.0)

    def __call__(self) -> None:
        """Tell it."""
        if time.monotonic() - self.last > 1:
            self.last = time.monotonic()
            systemd.alive()


def once(places: Places, state: State, alive: Callable[[], None]) -> None:
    """Look at all that is new.

    Raises:
        CacheError: the cache cannot be read.
    """
    count(state, places.log)
    scan(places.kept, state, time.time(), alive=alive)
    checker = Checker(places.kept, state, Records(places.mirror), time.time, alive)
    checker.reindexed()
    told = time.monotonic()
    for wrong in checker.due():
        if wrong:
            tell(WARNING, words(wrong))
        # Much may have come at once, as before the first look.
        if wrong or time.monotonic() - told > INTERVAL:
            told = time.monotonic()
            count(state, places.log)
            write(places.state, report(state, time.time()))


def watch(places: Places, interval: float = INTERVAL) -> None:
    """Look for ever."""
    alive, complaint = Heartbeat(), ""
    state: State | None = None

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    while True:
        problem = ""
        try:
            state = state or State(places.state)
            once(places, state, alive)
        except (CacheError, OSError, sqlite3.Error) as error:
            problem = str(error)
        if problem != complaint:
            tell(ERROR if problem else NOTICE, problem or "the cache is looked at again")
            complaint = problem
        try:
            if state:
                write(places.state, report(state, time.time(), problem))
        except (OSError, sqlite3.Error) as error:
            if str(error) != complaint:
                tell(ERROR, f"what is told of the cache cannot be written: {error}")
                complaint = str(error)
        alive()
        until = time.monotonic() + interval
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 10))
            alive()
