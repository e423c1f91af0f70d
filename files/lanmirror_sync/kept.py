"""What is told of the web server's cache on demand: `cache.json`, which `lanmirror_cache` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

# What an answer was: without the upstream, with it, older than it should be, or a failure.
RESULTS = ("hits", "misses", "stale", "errors")
# Where its bytes came from.
SOURCES = ("mirror", "cache", "upstream")
LARGEST = 1 << 20

Count = Annotated[int, msgspec.Meta(ge=0)]
# Below the mirror, as in `pkgs/main` and `cloud/conda-forge`; a folder of installers is one too, as in `miniconda`.
ChannelPath = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$")]


class Channel(msgspec.Struct, frozen=True):
    """Of one channel.

    Attributes:
        packages: of which the cache has a slice.
        bytes: what those take on the disk.
        checked: packages that are whole, and have the size and the hash of the index.
        unchecked: the others: some slices are missing, or no index that is served names them.
        hits, misses, stale, errors: answers; see RESULTS.
        mirror_bytes, cache_bytes, upstream_bytes: what was sent, by where it came from.
    """

    packages: Count = 0
    bytes: Count = 0
    checked: Count = 0
    unchecked: Count = 0
    hits: Count = 0
    misses: Count = 0
    stale: Count = 0
    errors: Count = 0
    mirror_bytes: Count = 0
    cache_bytes: Count = 0
    upstream_bytes: Count = 0


class Wrong(msgspec.Struct, frozen=True):
    """A package that was wrong, and was taken out of the cache.

    Attributes:
        path: below the site's folder, from the slash on.
        why: in words.
        at: Unix time, seconds.
        upstream: where it came from, "" where that is not known.
    """

    path: str
    why: str
    at: float
    upstream: str = ""


class CacheReport(msgspec.Struct, frozen=True):
    """All of it.

    Attributes:
        written: Unix time, seconds.
        channels: by their paths below the mirror.
        wrong_total: packages that were wrong, since the counters began.
        wrong: the last of them, the newest first.
        problem: why the cache cannot be looked at, "" where it can.
    """

    written: float
    channels: dict[ChannelPath, Channel] = {}
    wrong_total: Count = 0
    wrong: list[Wrong] = []
    problem: str = ""


def read(path: Path | None) -> dict[str, Any] | None:
    """Return what a report says, or None where there is none that can be read: it is of another account's making."""
    try:
        # No pipe, which would be waited for.
        if path is None or not path.is_file() or path.stat().st_size > LARGEST:
            return None
        report = msgspec.json.decode(path.read_bytes(), type=CacheReport)
    except (OSError, ValueError, RecursionError):
        return None
    told: dict[str, Any] = msgspec.to_builtins(report)
    return told
