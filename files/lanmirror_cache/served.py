"""What Nginx has served of Conda, by the lines of its log (`conda_mirror_served` in http.conf).

The log is read as devpi's watchdog reads its own (lanmirror_ops/served.py, known.py): each role stands alone on a
server, and brings what it needs.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

from lanmirror_cache.names import channel_of

# msec, status, bytes, where the answer came from, path.
FIELDS = 5
# What http.conf calls the ways of an answer: what that was, and where its bytes came from.
WAYS = {
    "mirror": ("hits", "mirror"),
    "cache": ("hits", "cache"),
    "stale": ("stale", "cache"),
    "upstream": ("misses", "upstream"),
}


def tally(lines: Iterable[str]) -> Counter[str]:
    """Return the counts of some lines, by channel and name as in `lanmirror_sync.kept`: `cloud/a:hits`.

    A package counts by its first slice. A file that does not exist is an answer like any other.
    """
    counts: Counter[str] = Counter()
    for line in lines:
        parts = line.rstrip("\n").split("\t")
        if len(parts) != FIELDS or not line.endswith("\n") or parts[3] not in WAYS:
            continue
        _, status, sent, way, path = parts
        if not (status.isdecimal() and sent.isdecimal()):
            continue
        result, source = WAYS[way]
        if int(status) >= HTTPStatus.INTERNAL_SERVER_ERROR or int(status) == HTTPStatus.TOO_MANY_REQUESTS:
            result = "errors"
        channel = channel_of(path)
        counts[f"{channel}:{result}"] += 1
        counts[f"{channel}:{source}_bytes"] += int(sent)
    return counts


def read(log: Path, known: Mapping[int, int]) -> tuple[Counter[str], dict[int, int]]:
    """Count what was added to a log since the last time, in the file before its last rotation as well.

    While Nginx opens its new log, it still writes to the old. A file is known by its inode, under whatever name.

    Args:
        log: the file that Nginx writes.
        known: how much of each file was counted, by inode.

    Returns:
        The counts of `tally`, and `known` for the next time.
    """
    counts: Counter[str] = Counter()
    now: dict[int, int] = {}
    for path in (log.with_name(f"{log.name}.1"), log):
        try:
            stream = path.open("rb")
        except FileNotFoundError:
            continue
        with stream:
            found = os.fstat(stream.fileno())
            offset = known.get(found.st_ino, 0)
            # Cut short in place: all of it is new.
            stream.seek(offset if offset <= found.st_size else 0)
            counts += tally(_whole_lines(stream))
            now[found.st_ino] = stream.tell()
    return counts, now


def _whole_lines(stream: BinaryIO) -> Iterator[str]:
    """Yield the lines of a file from where it stands, and leave it standing after the last whole one."""
    end = stream.tell()
    for line in iter(stream.readline, b""):
        if not line.endswith(b"\n"):
            break
        end += len(line)
        yield line.decode("utf-8", "replace")
    stream.seek(end)
