"""How far a run is: a bar for each channel on a terminal, a line a minute in a log file."""

from __future__ import annotations

import logging
import time
from collections import Counter
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

GIB = 1 << 30
LOG_EVERY_SECONDS = 60.0
SECONDS_A_MINUTE = 60

log = logging.getLogger(__name__)


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
            log.info("%s: to %s: %d files, %.2f GiB", owner, self.verb, files, size / GIB)

    def received(self, owner: str, size: int) -> None:
        """See `report.Progress`."""
        self._received += size

    def done(self, owner: str) -> None:
        """See `report.Progress`."""
        self._done += 1
        now = time.monotonic()
        if now - self._last < LOG_EVERY_SECONDS:
            return
        self._last = now
        rate = self._received / (now - self._began)
        left = (self._size - self._received) / rate / SECONDS_A_MINUTE if rate else 0
        log.info(
            "%sed %d of %d files, %.2f of %.2f GiB, %.1f MB/s, %.0f min left",
            self.verb, self._done, self._files, self._received / GIB, self._size / GIB, rate / 1e6, left,
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
        if channel not in self._tasks:
            self._tasks[channel] = self._bars.add_task(channel, total=None, files=0, done=0)
        self._bars.update(self._tasks[channel], total=self._sizes[channel], files=self._files[channel])
        self._bars.start()

    def received(self, owner: str, size: int) -> None:
        """See `report.Progress`."""
        self._bars.advance(self._tasks[_channel(owner)], size)

    def done(self, owner: str) -> None:
        """See `report.Progress`."""
        channel = _channel(owner)
        self._done[channel] += 1
        self._bars.update(self._tasks[channel], done=self._done[channel])

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._bars.stop()


def _channel(owner: str) -> str:
    """Return the channel of a subdir; a folder of installers is one of its own."""
    path = PurePosixPath(owner)
    return str(path.parent) if len(path.parts) > 1 else owner
