"""The folders of the cache: what is new there, and what is being written.

Nginx makes a file under another name and renames it, so a folder that was not changed has the files that it had: a scan
of a cache at rest costs one `stat` a folder, of which there are 4,096 (levels=1:2), however many files there are.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lanmirror_cache import CacheError, entry
from lanmirror_cache.entry import BadEntryError, Head
from lanmirror_cache.state import Entry, State

ONE, TWO = re.compile("[0-9a-f]"), re.compile("[0-9a-f]{2}")
# A change within this time after a look may not show in a folder's mtime, nanoseconds.
UNSETTLED = 2 * 10**9
# What a killed worker was writing is left by all of Nginx (ngx_http_file_cache_add_file passes over it). For so long
# nothing that is being fetched stands still, nanoseconds.
LEFT = 24 * 3600 * 10**9


@dataclass(frozen=True)
class Flight:
    """A file that is being fetched.

    Attributes:
        head: of it.
        came: how many bytes of its body are there.
    """

    head: Head
    came: int


def nothing() -> None:
    """Do nothing: for a caller whom nobody watches."""


def scan(kept: Path, state: State, now: float, *, every: bool = False, alive: Callable[[], None] = nothing) -> None:
    """Bring what is known of the cache's files up to date.

    Args:
        kept: the folder of the cache.
        state: what is known.
        now: Unix time, seconds.
        every: whether folders are looked at that were not changed.
        alive: is called every now and then.

    Raises:
        CacheError: the folder cannot be read.
        UnknownVersionError: Nginx writes its files in another way.
    """
    known = state.folders()
    there = set()
    for name in _folders(kept):
        there.add(name)
        alive()
        try:
            mtime = (kept / name).stat().st_mtime_ns
            if every or known.get(name) != mtime:
                settled = mtime if now * 10**9 - mtime > UNSETTLED else 0
                _look(kept / name, name, state, settled, now)
        except (FileNotFoundError, NotADirectoryError):
            there.discard(name)
    for name in known.keys() - there:
        state.scanned(name, None, [], state.files(name))


def _folders(kept: Path) -> Iterator[str]:
    """Yield the folders of the second level, as `c/29`."""
    try:
        firsts = _names(kept)
    except OSError as error:
        raise CacheError(
            f"{kept} cannot be read ({error.strerror}): is it the cache of this server's Nginx?"
        ) from error
    for first in filter(ONE.fullmatch, firsts):
        try:
            seconds = _names(kept / first)
        except (FileNotFoundError, NotADirectoryError):
            continue
        yield from (f"{first}/{second}" for second in filter(TWO.fullmatch, seconds))


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as files:
        return sorted(file.name for file in files)


def _look(path: Path, folder: str, state: State, mtime: int, now: float) -> None:
    known = state.files(folder)
    new = []
    with os.scandir(path) as files:
        for file in files:
            if entry.IN_FLIGHT.fullmatch(file.name):
                # It changes, or is left, without a change of the folder.
                mtime = 0
                _tidy(Path(file.path), now)
            if not entry.NAME.fullmatch(file.name) or place(file.name) != folder:
                continue
            try:
                found = file.stat(follow_symlinks=False)
                if known.pop(file.name, None) == (found.st_ino, found.st_mtime_ns, found.st_size):
                    continue
                made = _entry(path / file.name)
            except FileNotFoundError:
                # Evicted meanwhile.
                continue
            if made:
                new.append(made)
    state.scanned(folder, mtime, new, known)


def _tidy(file: Path, now: float) -> None:
    """Delete what nobody writes any more."""
    with contextlib.suppress(FileNotFoundError):
        if now * 10**9 - file.lstat().st_mtime_ns > LEFT:
            file.unlink()


def place(name: str) -> str:
    """Return the folder of a file of the cache, which is named by its md5 (levels=1:2)."""
    return f"{name[-1]}/{name[-3:-1]}"


def _entry(file: Path) -> Entry | None:
    """Return what a file is; None for what is no plain file."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise CacheError(f"{file} cannot be read ({error.strerror}): it is for the user of Nginx's workers") from error
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return None
        try:
            head: Head | None = entry.read(descriptor, file.name)
        except BadEntryError:
            head = None
        return Entry(file.name, found.st_ino, found.st_mtime_ns, found.st_size, head)
    finally:
        os.close(descriptor)


def in_flight(kept: Path) -> list[Flight]:
    """Return what Nginx is fetching just now, the oldest first.

    Raises:
        CacheError: the folder cannot be read.
        UnknownVersionError: Nginx writes its files in another way.
    """
    found = []
    for folder in _folders(kept):
        for name in filter(entry.IN_FLIGHT.fullmatch, _names(kept / folder)):
            try:
                descriptor = os.open(kept / folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                head = entry.read(descriptor)
                found.append(Flight(head, os.fstat(descriptor).st_size - head.body))
            except BadEntryError:
                # Nothing of it is written yet.
                pass
            finally:
                os.close(descriptor)
    return sorted(found, key=lambda flight: (flight.head.began, flight.head.path, flight.head.first or 0))


def delete(kept: Path, name: str, inode: int) -> bool:
    """Delete a file of the cache, unless Nginx has another in its place by now; return whether it was there.

    Raises:
        ValueError: the name is none of the cache's.
    """
    if not entry.NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no file of a cache")
    file = kept / place(name) / name
    try:
        if file.lstat().st_ino != inode:
            return False
        file.unlink()
    except FileNotFoundError:
        return False
    return True
