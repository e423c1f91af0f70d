"""What Nginx has served, by the lines of its log."""

from __future__ import annotations

import http.client
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

# What a page's or file's answer was. `stale`: older than a minute, because a newer one was just being asked for, or
# because devpi or the upstream could not be asked.
RESULTS = ("hit", "miss", "stale", "error")
PAGE, FILE = "page", "file"
FIELDS = 6


@dataclass(frozen=True)
class Served:
    """One line of the log."""

    at: float
    status: int
    sent: int
    near: str
    kept: str
    subject: str

    @classmethod
    def of(cls, line: str) -> Served | None:
        """Return what a line says, or None for one that was cut short or is none of ours."""
        parts = line.rstrip("\n").split("\t")
        if len(parts) != FIELDS or not line.endswith("\n"):
            return None
        try:
            return cls(float(parts[0]), int(parts[1]), int(parts[2]), *parts[3:])
        except ValueError:
            return None

    @property
    def kind(self) -> str:
        """Whether it was a project's page or a file."""
        return PAGE if self.subject == PAGE else FILE

    @property
    def result(self) -> str:
        """One of RESULTS. A page that does not exist is an answer like any other.

        Source: $upstream_cache_status in the documentation of ngx_http_upstream_module.
        """
        if self.status >= http.client.INTERNAL_SERVER_ERROR or self.status in {
            http.client.FAILED_DEPENDENCY,
            http.client.TOO_MANY_REQUESTS,
        }:
            return "error"
        if self.kind == FILE:
            # What is stored never goes through a cache.
            return "hit" if self.near in {"-", "", "HIT"} else "miss"
        if self.kept in {"STALE", "UPDATING"}:
            return "stale"
        return "hit" if self.near in {"HIT", "UPDATING"} or self.kept in {"HIT", "REVALIDATED"} else "miss"


def tally(lines: Iterable[str]) -> tuple[Counter[str], dict[str, float]]:
    """Return the counts of some lines by name, and when each file in them was asked for last."""
    counts: Counter[str] = Counter()
    used: dict[str, float] = {}
    for line in lines:
        served = Served.of(line)
        if served is None:
            continue
        counts[f"{served.kind}s_total:{served.result}"] += 1
        counts[f"sent_bytes_total:{served.kind}"] += served.sent
        if served.kind == FILE and served.status < http.client.BAD_REQUEST:
            path = served.subject.lstrip("/").removesuffix(".metadata")
            used[path] = max(used.get(path, 0.0), served.at)
    return counts, used


def whole_lines(stream: BinaryIO) -> Iterator[str]:
    """Yield the lines of a file from where it stands, and leave it standing after the last whole one."""
    end = stream.tell()
    for line in iter(stream.readline, b""):
        if not line.endswith(b"\n"):
            break
        end += len(line)
        yield line.decode("utf-8", "replace")
    stream.seek(end)
