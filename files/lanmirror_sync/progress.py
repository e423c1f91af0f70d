"""How far a run is: a bar for each channel on a terminal, a line a minute in a log file."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
UNIT = 1024
LOG_EVERY_SECONDS = 60.0
SECONDS_A_MINUTE = 60

log = logging.getLogger(__name__)


def amount(size: float) -> str:
    """Return a size in bytes with three digits or more, in the unit that it is read best in."""
    unit = 0
    while abs(size) >= UNIT and unit < len(UNITS) - 1:
        size, unit = size / UNIT, unit + 1
    return f"{size:.0f} {UNITS[unit]}" if not unit or size >= 100 else f"{size:.3g} {UNITS[unit]}"  # noqa: PLR2004 - digits


class PlainProgress:
    """A line a minute, for a log file.

    Attributes:
        verb: what is done with the files.
    """

    verb = "fetch"

    def __init__(self) -> None:
        self._files = self._size = self._done = self._received = 0
        self._began = self._last = time.monotonic()

    def start(self, owner: str, files: int, size: int) -> None:
        """See `report.Progress`."""
        self._files += files
        self._size += size
        if files:
            log.info("%s: to %s: %d files, %s", owner, self.verb, files, amount(size))

    def received(self, owner: str, size: int) -> None:
        """See `report.Progress`."""
        self._received += size
        self.tick()

    def done(self, owner: str) -> None:
        """See `report.Progress`."""
        self._done += 1
        self.tick()

    def tick(self) -> None:
        """See `report.Progress`."""
        now = time.monotonic()
        if now - self._last < LOG_EVERY_SECONDS or self._done >= self._files:
            return
        self._last = now
        rate = self._received / (now - self._began)
        left = (self._size - self._received) / rate / SECONDS_A_MINUTE if rate else 0
        log.info(
            "%sed %d of %d files, %s of %s, %.1f MB/s, %.0f min left",
            self.verb, self._done, self._files, amount(self._received), amount(self._size), rate / 1e6, left,
        )  # fmt: skip

    def stop(self) -> None:
        """See `TerminalProgress`."""


class TerminalProgress:
    """A bar for each channel, and for each folder of installers, with files, bytes, rate and time left.

    Attributes:
        verb: see `PlainProgress`.
    """

    verb = "fetch"

    def __init__(self, console: Console) -> None:
        # Loaded where there is a terminal: it takes longer than a whole run that finds nothing new.
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}/{task.fields[files]} files"),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._files: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._sizes: Counter[str] = Counter()

    def start(self, owner: str, files: int, size: int) -> None:
        """See `report.Progress`."""
        if not files:
            return
        channel = _channel(owner)
        self._files[channel] += files
        self._sizes[channel] += size
        self._bars.update(self._task(channel), total=self._sizes[channel], files=self._files[channel])
        self._bars.start()

    def received(self, owner: str, size: int) -> None:
        """See `report.Progress`."""
        self._bars.advance(self._task(_channel(owner)), size)

    def done(self, owner: str) -> None:
        """See `report.Progress`."""
        channel = _channel(owner)
        self._done[channel] += 1
        self._bars.update(self._task(channel), done=self._done[channel])

    def tick(self) -> None:
        """See `report.Progress`; bars move by themselves."""

    def _task(self, channel: str) -> TaskID:
        """Return the bar of a channel, which may get something to do before it is told how much."""
        with self._lock:
            if channel not in self._tasks:
                self._tasks[channel] = self._bars.add_task(channel, total=None, files=self._files[channel], done=0)
            return self._tasks[channel]

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._bars.stop()


def _channel(owner: str) -> str:
    """Return the channel of a subdir; a folder of installers is one of its own."""
    path = PurePosixPath(owner)
    return str(path.parent) if len(path.parts) > 1 else owner
