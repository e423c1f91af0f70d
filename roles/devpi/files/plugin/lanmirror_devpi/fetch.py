"""Downloads: one for each file at a time, whoever wants it, waits for it or goes away meanwhile.

A download runs in a thread of its own and writes to a temporary file. The first client gets the bytes as they come, at
its own speed, but for the last ones: those come when size and hash are right. Otherwise its connection is broken off,
so that nobody takes what it has for the whole. All others wait for the end: where wrong bytes came and there is another
place, the download begins anew with that one.

Where a file cannot be stored (a full disk), each client gets the bytes by itself, checked in the same way.

Nothing here knows devpi: what is fetched, and how it is stored, is told by a Job.
"""

from __future__ import annotations

import contextlib
import enum
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from devpi_server.log import thread_push_log, threadlog

from lanmirror_devpi.sources import HELD, BrokenOff, Bytes, Check, FetchError, WrongError, checked, held_back

PIECE = 256 << 10
# How many downloads run at a time; others queue.
AT_ONCE = 64
# Seconds for which a failure answers who asks anew.
REMEMBERED = 3.0


def sendable(have: int, size: int | None, *, right: bool) -> int:
    """Return how many bytes of a file a client may have, of `have` that came, before and after they were checked."""
    if right:
        return have
    return max(0, min(have, size - HELD) if size is not None else have - HELD)


@dataclass(frozen=True)
class Job:
    """What is to be fetched.

    Attributes:
        path: Of its URL, without the first slash; one download at a time has it.
        hashes: What its bytes must have, by algorithm; none where the upstream tells none.
        source: Returns where its bytes come from.
        store: Stores a temporary file, with its hashes and when it was modified.
        is_stored: Whether it is there.
    """

    path: str
    hashes: Mapping[str, str]
    source: Callable[[], Bytes]
    store: Callable[[Path, Mapping[str, str], str], None]
    is_stored: Callable[[], bool]


class Outcome(enum.Enum):
    """How a download ended: it is stored; it cannot be had; or it can, but not be stored."""

    STORED = "stored"
    FAILED = "failed"
    ALONE = "alone"


@dataclass
class Download:
    """A download, and who waits for it."""

    job: Job
    # Whether the first client reads while it comes.
    has_reader: bool
    changed: threading.Condition = field(default_factory=threading.Condition)
    outcome: Outcome | None = None
    error: FetchError | None = None
    ended: float = 0.0
    size: int | None = None
    modified: str = ""
    have: int = 0
    right: bool = False
    # Whether the first client has bytes that were wrong.
    broken: bool = False
    # The temporary file, opened for the first client.
    file: BinaryIO | None = None
    # What the first client goes on with by itself: the next bytes, those after them, and their check.
    rest: tuple[Iterator[bytes], Check, Bytes] | None = None

    def begin(self, source: Bytes, file: Any) -> None:
        """Let the first client read what is written to a file; None for none."""
        with self.changed:
            if self.has_reader and file:
                self.file = os.fdopen(os.dup(file.fileno()), "rb", buffering=0)
            self.size, self.modified = source.size, source.modified
            self.changed.notify_all()

    def grow(self, count: int) -> None:
        """Let the first client have more."""
        with self.changed:
            self.have += count
            self.changed.notify_all()

    def accept(self) -> None:
        """Let the first client have all."""
        with self.changed:
            self.right = True
            self.changed.notify_all()

    def again(self) -> None:
        """Begin anew: what came is wrong, and nobody may have more of it."""
        with self.changed:
            if sendable(self.have, self.size, right=False):
                self.broken, self.has_reader = True, False
            self.have, self.size, self.modified = 0, None, ""
            self.changed.notify_all()

    def hand_over(self, pieces: Iterator[bytes], check: Check, source: Bytes) -> bool:
        """Leave the rest to the first client; return whether it is still there."""
        with self.changed:
            if self.has_reader:
                self.rest = pieces, check, source
            return self.has_reader

    def end(self, outcome: Outcome, error: FetchError | None = None) -> None:
        """Tell all who wait."""
        with self.changed:
            self.outcome, self.error, self.ended = outcome, error, time.monotonic()
            self.changed.notify_all()

    def wait(self) -> Outcome:
        """Wait for the end."""
        with self.changed:
            while self.outcome is None:
                self.changed.wait()
            return self.outcome

    def more_than(self, sent: int) -> tuple[int, bool]:
        """Wait for more than `sent` bytes that the first client may have; return how many, and whether that is all."""
        with self.changed:
            while True:
                if self.broken:
                    return sent, True
                over = self.right or self.outcome is not None
                end = sendable(self.have, self.size, right=self.right)
                if over or end > sent:
                    return end, over
                self.changed.wait()

    def reader(self) -> Reader:
        """Wait for the first bytes that the first client may have, and return all as they come.

        Raises:
            FetchError: There are none.
        """
        self.more_than(0)
        with self.changed:
            is_empty = self.outcome is Outcome.FAILED and not sendable(self.have, self.size, right=self.right)
            if self.broken or is_empty:
                self.has_reader = False
                raise self.error or FetchError(HTTPStatus.BAD_GATEWAY, "it failed")
            return Reader(self)


class Reader:
    """What the first client gets, as it comes."""

    def __init__(self, download: Download) -> None:
        self.download, self.file = download, download.file
        self.pieces = self._read()

    def __iter__(self) -> Reader:
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Return the next bytes."""
        return next(self.pieces)

    def close(self) -> None:
        """End it: the client has all, or is gone."""
        self.pieces.close()
        if self.file:
            self.file.close()
        with self.download.changed:
            self.download.has_reader = False
            rest, self.download.rest = self.download.rest, None
        if rest:
            rest[2].close()

    def _at(self, offset: int, end: int) -> bytes:
        # Where there is no file, there are no bytes to be read from it.
        return os.pread(self.file.fileno(), min(PIECE, end - offset), offset) if self.file else b""

    def _read(self) -> Any:
        sent, download = 0, self.download
        while True:
            end, over = download.more_than(sent)
            while sent < end:
                piece = self._at(sent, end)
                sent += len(piece)
                yield piece
            if over:
                break
        if download.rest:
            yield from self._by_itself(sent, *download.rest)
        elif download.broken or not download.right:
            raise BrokenOff

    def _by_itself(self, sent: int, pieces: Iterator[bytes], check: Check, source: Bytes) -> Iterator[bytes]:
        def stored() -> Iterator[bytes]:
            offset, end = sent, self.download.have
            while offset < end:
                piece = self._at(offset, end)
                offset += len(piece)
                yield piece

        yield from held_back(chain(stored(), checked(pieces, check)), check, source)


class Alone:
    """A file for one client alone, which is not stored."""

    def __init__(self, job: Job) -> None:
        """Wait for the first bytes; FetchError where there are none."""
        self.source = job.source()
        self.source.open()
        check = Check(job.hashes, self.source.size)
        pieces = held_back(checked(iter(self.source), check), check, self.source)
        try:
            first = next(pieces, b"")
        except BrokenOff as error:
            raise FetchError(HTTPStatus.BAD_GATEWAY, "its bytes are not right") from error
        self.pieces = chain([first], pieces)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes."""
        return self.pieces

    def close(self) -> None:
        """End it."""
        self.source.close()


class Downloads:
    """All downloads of this process."""

    def __init__(self, folder: Path) -> None:
        """Keep temporary files in `folder`, which is on the file system of the store; old ones there are deleted."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            left.unlink()
        self._lock = threading.Lock()
        self._known: dict[str, Download] = {}
        self._queues: dict[str, deque[Download]] = {}
        self._workers: dict[str, int] = {}
        self._count = 0
        self._told_full = False

    def find(self, path: str) -> Download | None:
        """Return the download of a file that is under way, or has just failed."""
        with self._lock:
            return self._find(path)

    def _find(self, path: str) -> Download | None:
        now = time.monotonic()
        for old in [old for old, each in self._known.items() if each.outcome and now - each.ended > REMEMBERED]:
            del self._known[old]
        return self._known.get(path)

    def start(self, job: Job, *, reads: bool, kind: str = "") -> tuple[Download | None, bool]:
        """Return the download of a file and whether it begins with this; None where the file is stored.

        Args:
            job: What to fetch.
            reads: Whether the caller reads while it comes.
            kind: Downloads of one kind do not wait for those of another, of which they may be parts.
        """
        with self._lock:
            known = self._find(job.path)
            if known:
                return known, False
            if job.is_stored():
                return None, False
            download = self._known[job.path] = Download(job, has_reader=reads)
            self._queues.setdefault(kind, deque()).append(download)
            if self._workers.get(kind, 0) < AT_ONCE:
                self._workers[kind] = self._workers.get(kind, 0) + 1
                threading.Thread(target=self._work, args=(kind,), daemon=True, name="lanmirror-file").start()
        return download, True

    def _work(self, kind: str) -> None:
        thread_push_log("[FILE]")
        while True:
            with self._lock:
                if not self._queues[kind]:
                    self._workers[kind] -= 1
                    return
                download = self._queues[kind].popleft()
                self._count += 1
                temporary = self.folder / f"{os.getpid()}-{self._count}"
            self._run(download, temporary)

    def _run(self, download: Download, temporary: Path) -> None:
        outcome, error = Outcome.FAILED, None
        source = download.job.source()
        try:
            while True:
                source.open()
                try:
                    outcome = self._take(download, source, temporary)
                    break
                except WrongError as why:
                    if not source.refuse(str(why)):
                        raise
                download.again()
                temporary.unlink()
        except FetchError as why:
            error = why
            threadlog.error("%s: %s", download.job.path, why)
        except Exception as why:
            error = FetchError(HTTPStatus.BAD_GATEWAY, f"{type(why).__name__}: {why}")
            threadlog.exception("%s", download.job.path)
        finally:
            if download.rest is None:
                source.close()
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            if outcome is Outcome.STORED:
                with self._lock:
                    del self._known[download.job.path]
            download.end(outcome, error)

    def _take(self, download: Download, source: Bytes, temporary: Path) -> Outcome:
        """Take the bytes of a download; return how it ended, FetchError where it fails."""
        job = download.job
        check = Check(job.hashes, source.size)
        pieces = iter(source)
        try:
            file = temporary.open("xb+", buffering=0)
        except OSError as error:
            return self._give_up(download, pieces, check, source, error)
        with file:
            download.begin(source, file)
            for piece in pieces:
                try:
                    write(file, piece)
                except OSError as error:
                    return self._give_up(download, chain([piece], pieces), check, source, error)
                check.add(piece)
                download.grow(len(piece))
            digests = check.digests()
            download.accept()
            if not source.whole and not job.hashes:
                # Nothing tells whether the connection ended where the file does.
                return Outcome.ALONE
            try:
                # After a power cut, a file that stands in the store has its bytes.
                os.fdatasync(file.fileno())
                set_modified(temporary, source.modified)
                job.store(temporary, digests, source.modified)
            except Exception as error:  # whatever it is, the bytes are right, and clients want them
                self._tell_full(error)
                return Outcome.ALONE
        self._told_full = False
        return Outcome.STORED

    def _give_up(
        self, download: Download, pieces: Iterator[bytes], check: Check, source: Bytes, error: OSError
    ) -> Outcome:
        """Leave a download to those who want it: it cannot be written down."""
        self._tell_full(error)
        if not download.have:
            download.begin(source, None)
        if not download.hand_over(pieces, check, source):
            source.close()
        return Outcome.ALONE

    def _tell_full(self, error: Exception) -> None:
        if not self._told_full:
            threadlog.error(
                "files cannot be stored, and are passed on as they come: %s: %s", type(error).__name__, error
            )
        self._told_full = True


def write(file: Any, piece: bytes) -> None:
    """Write all bytes."""
    view = memoryview(piece)
    while view:
        view = view[file.write(view) :]


def set_modified(path: Path, modified: str) -> None:
    """Give a file the time that the upstream tells, "" for none: Nginx tells the same, and a client can go on by it."""
    with contextlib.suppress(ValueError, OverflowError, OSError):
        at = parsedate_to_datetime(modified).timestamp()
        os.utime(path, (at, at))
