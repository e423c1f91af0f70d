"""Bodies of pages that are kept in memory, in a bounded number of bytes."""

from __future__ import annotations

import gzip
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

# Bytes from which on a page is worth compressing: less fits into one packet.
WORTH_COMPRESSING = 1000
# Bytes that an entry costs beside its body, about.
AROUND = 1000


@dataclass(frozen=True)
class Body:
    """The body of a page.

    Attributes:
        state: What it was made of, see `Kept.get`.
        content: As it is kept.
        is_packed: Whether that is gzip.
    """

    state: Hashable
    content: bytes
    is_packed: bool


def packed(state: Hashable, content: bytes) -> Body:
    """Return a body as it is kept: compressed where that is worth it."""
    if len(content) < WORTH_COMPRESSING:
        return Body(state, content, is_packed=False)
    return Body(state, gzip.compress(content, compresslevel=6, mtime=0), is_packed=True)


class Kept:
    """The bodies that were asked for last."""

    def __init__(self, limit: int) -> None:
        """Keep at most `limit` bytes."""
        self._limit = limit
        self._size = 0
        self._bodies: OrderedDict[Hashable, Body] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """How many bytes are kept."""
        return self._size

    def get(self, key: Hashable, state: Hashable) -> Body | None:
        """Return a body, None where there is none that was made of this state."""
        with self._lock:
            body = self._bodies.get(key)
            if body is None or body.state != state:
                return None
            self._bodies.move_to_end(key)
            return body

    def put(self, key: Hashable, body: Body) -> None:
        """Keep a body, and drop those that nobody has asked for the longest."""
        with self._lock:
            self._drop(key)
            self._bodies[key] = body
            self._size += len(body.content) + AROUND
            while self._size > self._limit:
                self._drop(next(iter(self._bodies)))

    def _drop(self, key: Hashable) -> None:
        body = self._bodies.pop(key, None)
        if body is not None:
            self._size -= len(body.content) + AROUND
