"""What the watchdog knows, in one database of its own, written in transactions.

However a run ends, no line of Nginx' log is counted twice or forgotten, through rotation as well.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from .served import tally, whole_lines

SCHEMA = """
CREATE TABLE IF NOT EXISTS read (inode INTEGER PRIMARY KEY, offset INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS used (path TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID;
"""


class Known:
    """The database of what is known."""

    def __init__(self, path: Path) -> None:
        # Transactions are begun where they are needed.
        self.db = sqlite3.connect(path, timeout=30, isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=NORMAL")
        self.db.executescript(SCHEMA)

    @contextlib.contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """Make several changes or none."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield self.db
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def numbers(self) -> dict[str, float]:
        """Return all numbers by name."""
        return dict(self.db.execute("SELECT name, value FROM numbers"))

    def used(self) -> dict[str, float]:
        """Return when each file was asked for last, in seconds since the epoch."""
        return dict(self.db.execute("SELECT path, at FROM used"))

    def set(self, numbers: Mapping[str, float]) -> None:
        """Replace some numbers."""
        self.db.executemany("REPLACE INTO numbers VALUES (?, ?)", numbers.items())

    def add(self, numbers: Mapping[str, float]) -> None:
        """Add to some numbers."""
        self.db.executemany(
            "INSERT INTO numbers VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            numbers.items(),
        )

    def read_log(self, log: Path) -> None:
        """Count what was added to the log since the last time, in the file before its last rotation as well.

        A file is known by its inode, under whatever name. While Nginx opens its new log, it still writes to the old.
        """
        with self.change() as db:
            known: dict[int, int] = dict(db.execute("SELECT inode, offset FROM read"))
            now: dict[int, int] = {}
            for path in (log.with_name(f"{log.name}.1"), log):
                try:
                    stream = path.open("rb")
                except FileNotFoundError:
                    continue
                with stream:
                    stat = os.fstat(stream.fileno())
                    offset = known.get(stat.st_ino, 0)
                    # Cut short in place: all of it is new.
                    stream.seek(offset if offset <= stat.st_size else 0)
                    counts, used = tally(whole_lines(stream))
                    now[stat.st_ino] = stream.tell()
                self.add(counts)
                db.executemany(
                    "INSERT INTO used VALUES (?, ?) ON CONFLICT (path) DO UPDATE SET at = max(at, excluded.at)",
                    used.items(),
                )
            if now != known:
                db.execute("DELETE FROM read")
                db.executemany("INSERT INTO read VALUES (?, ?)", now.items())
