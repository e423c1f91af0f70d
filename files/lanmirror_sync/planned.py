"""Indexes that `plan` has read: kept for a day, so that the sync after it need not fetch them again.

One is used where the upstream says by its validators that it is the same still, and its bytes have their hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from lanmirror_sync.answers import Validators
from lanmirror_sync.store import Store

if TYPE_CHECKING:
    from lanmirror_sync.upstream import Sent

KEEP_SECONDS = 86400.0


class _Head(msgspec.Struct, frozen=True):
    """The first line of a file; its other bytes are the index as it was sent."""

    url: str
    etag: str
    last_modified: str
    sha256: str
    at: float


@dataclass(frozen=True)
class Planned:
    """An index that was kept.

    Attributes:
        validators: of the answer that it came with.
        sha256: of its bytes, in lower-case hexadecimal.
    """

    file: Path
    validators: Validators
    sha256: str

    def read(self) -> bytes | None:
        """Return its bytes; None where they are not there any more, or are damaged."""
        with contextlib.suppress(OSError):
            data = self.file.read_bytes().partition(b"\n")[2]
            if hashlib.sha256(data).hexdigest() == self.sha256:
                return data
        return None


def keep(store: Store, path: PurePosixPath, sent: Sent) -> None:
    """Keep the index of a subdir, where the working directory is this user's, and has room.

    One that is kept already keeps its date, so that no word of an upstream is believed for longer than a day.
    """
    told, before = sent.validators, _head(store.planned_path(path))
    known = before is not None and before.sha256 == sent.sha256 and _fresh(before)
    if sent.data is None or sent.stale or known or not (told.etag or told.last_modified):
        return
    head = msgspec.json.encode(_Head(told.url, told.etag, told.last_modified, sent.sha256, time.time()))
    with contextlib.suppress(OSError):
        # What root keeps, the user who syncs could not delete.
        if store.root.stat().st_uid == os.geteuid():
            store.planned.mkdir(parents=True, exist_ok=True)
            store.write_file(store.planned_path(path), head + b"\n" + sent.data, durable=False)


def find(store: Store, path: PurePosixPath) -> Planned | None:
    """Return the index of a subdir that was kept; None where there is none that is sound."""
    file = store.planned_path(path)
    head = _head(file)
    if head is None or not _fresh(head):
        return None
    found = Planned(file, Validators(head.url, head.etag, head.last_modified), head.sha256)
    return found if found.read() is not None else None


def _head(file: Path) -> _Head | None:
    try:
        with file.open("rb") as stream:
            return msgspec.json.decode(stream.readline(), type=_Head)
    except (OSError, ValueError, RecursionError):
        return None


def _fresh(head: _Head) -> bool:
    return 0 <= time.time() - head.at < KEEP_SECONDS


def discard(store: Store) -> None:
    """Delete what was kept too long ago to be used."""
    with contextlib.suppress(OSError):
        for file in store.planned.iterdir():
            if time.time() - file.stat().st_mtime >= KEEP_SECONDS:
                file.unlink()
