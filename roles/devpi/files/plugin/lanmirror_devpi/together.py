"""Transactions that write, shared: what several threads store at the same time goes into one.

A transaction of devpi's costs the same whatever it holds: a turn of its notification thread, a copy of the names of all
projects, a flush to the disk. A first installation stores hundreds of pages and files within seconds.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# So many at a time: the first of them waits for the last.
MOST = 32


@dataclass
class Part:
    """What one thread stores: `write` does it, within a transaction; `error` is why that failed."""

    write: Callable[[], None]
    ended: bool = False
    error: Exception | None = None


class Together:
    """Stores what its callers have."""

    def __init__(self, xom: Any) -> None:
        """Write by the transactions of `xom`, devpi's own object of everything."""
        self._xom = xom
        self._waiting: deque[Part] = deque()
        self._turn = threading.Lock()

    def run(self, write: Callable[[], None]) -> None:
        """Call `write` within a transaction, in whatever thread, and return when that is committed.

        The calling thread must have no transaction. Where one `write` fails, what others store is stored all the same:
        each may be called twice.

        Raises:
            Exception: What `write` raises, or devpi where it cannot commit.
        """
        part = Part(write)
        self._waiting.append(part)
        with self._turn:
            while not part.ended:
                count = min(len(self._waiting), MOST)
                self._store([self._waiting.popleft() for _ in range(count)])
        if part.error:
            raise part.error

    def _store(self, parts: Sequence[Part]) -> None:
        error, has_begun = None, False
        try:
            with self._xom.keyfs.write_transaction():
                has_begun = True
                for part in parts:
                    part.write()
        except Exception as why:  # whatever it is, it is the caller's
            # A database that is locked is so for all.
            if has_begun and len(parts) > 1:
                for part in parts:
                    self._store([part])
                return
            error = why
        for part in parts:
            part.ended, part.error = True, error
