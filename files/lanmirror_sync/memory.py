"""What the program remembers from run to run: which files were verified, how each subdir stands, what is due to go.

One SQLite file, so that half a million verified files cost no memory until a subdir is looked at, and a crash
leaves the last committed state. It is a cache of what the disk and the upstream say: without it, everything is
hashed once more and asked for once more, and nothing is lost.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lanmirror_sync.standing import Standing

SCHEMA = """
CREATE TABLE IF NOT EXISTS verified (
    folder TEXT, name TEXT, size INTEGER, mtime_ns INTEGER, digest BLOB, checked REAL, PRIMARY KEY (folder, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS orphan (folder TEXT, name TEXT, since REAL, PRIMARY KEY (folder, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fact (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""
# What is noted of a subdir has its path behind this as its key.
SUBDIR = "subdir/"
# Of the tables; a file of another version is put aside like a damaged one.
VERSION = 1
FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}

log = logging.getLogger(__name__)


class Memory:
    """The state file. It belongs to the thread that made it; writes count from `commit` on.

    Args:
        read_only: for a look beside a run that is under way: the file is not touched, and what is told is forgotten.

    Raises:
        OSError: from every method, where the disk does not take or give what it should.
    """

    def __init__(self, file: Path, *, read_only: bool = False) -> None:
        self._file = file
        self._unflushed = False
        self._connection = self._look() if read_only else self._connect()
        with self._errors():
            self._connection.executescript(SCHEMA)

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *exception: object) -> None:
        """Let go of the file; what was not committed is forgotten."""
        self._connection.close()

    def commit(self, flush: Callable[[], None]) -> None:
        """Make what was told so far last.

        Args:
            flush: brings the bytes of files to the disk; called where some were verified since the last time, so
                that a power cut leaves no file remembered as verified whose bytes never arrived.
        """
        if self._unflushed:
            flush()
            self._unflushed = False
        with self._errors():
            self._connection.commit()

    def flushed(self) -> None:
        """Take note that all bytes of the files that were verified so far have been brought to the disk."""
        self._unflushed = False

    def verified(self, folder: str) -> Iterator[tuple[str, int, int, bytes]]:
        """Yield name, size, mtime_ns and digest of the files of a folder whose bytes were verified."""
        with self._errors():
            yield from self._connection.execute(
                "SELECT name, size, mtime_ns, digest FROM verified WHERE folder = ?", (folder,)
            )

    def verify(self, folder: str, files: Iterable[tuple[str, int, int, bytes]]) -> None:
        """Remember that the bytes of files were verified; see `verified`."""
        self._unflushed, now = True, time.time()
        with self._errors():
            self._connection.executemany(
                "INSERT OR REPLACE INTO verified VALUES (?, ?, ?, ?, ?, ?)",
                ((folder, *file, now) for file in files),
            )

    def checked_since(self, folder: str, since: float) -> dict[str, bytes]:
        """Return the digests of the files of a folder that were verified since then (Unix time, seconds), by name.

        What was noted with the clock ahead was not since then.
        """
        with self._errors():
            rows = self._connection.execute(
                "SELECT name, digest FROM verified WHERE folder = ? AND checked BETWEEN ? AND ?",
                (folder, since, time.time()),
            )
            return dict(rows)

    def forget(self, folder: str, names: Iterable[str]) -> None:
        """Forget that files were verified."""
        with self._errors():
            self._connection.executemany(
                "DELETE FROM verified WHERE folder = ? AND name = ?", ((folder, name) for name in names)
            )

    def forget_folder(self, folder: str) -> None:
        """Forget everything about the files of a folder."""
        with self._errors():
            self._connection.execute("DELETE FROM verified WHERE folder = ?", (folder,))
            self._connection.execute("DELETE FROM orphan WHERE folder = ?", (folder,))

    def orphans(self, folder: str) -> dict[str, float]:
        """Return since when (Unix time, seconds) files have been named by no index, by name."""
        with self._errors():
            return dict(self._connection.execute("SELECT name, since FROM orphan WHERE folder = ?", (folder,)))

    def orphan(self, folder: str, since: Mapping[str, float]) -> None:
        """Set what `orphans` returns."""
        with self._errors():
            self._connection.execute("DELETE FROM orphan WHERE folder = ?", (folder,))
            self._connection.executemany(
                "INSERT INTO orphan VALUES (?, ?, ?)", ((folder, name, start) for name, start in since.items())
            )

    def fact(self, key: str) -> dict[str, Any]:
        """Return what was noted under a key; empty where nothing was."""
        with self._errors():
            row = self._connection.execute("SELECT value FROM fact WHERE key = ?", (key,)).fetchone()
        value = json.loads(row[0]) if row else {}
        return value if isinstance(value, dict) else {}

    def note(self, key: str, value: Mapping[str, Any]) -> None:
        """Note something, in place of what was noted under that key."""
        with self._errors():
            self._connection.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (key, json.dumps(dict(value))))

    def standing(self, path: PurePosixPath) -> Standing:
        """Return how a subdir stood at the end of the last run; an empty record where that is not known."""
        with self._errors():
            row = self._connection.execute("SELECT value FROM fact WHERE key = ?", (f"{SUBDIR}{path}",)).fetchone()
        return Standing.decode(row[0]) if row else Standing()

    def note_standing(self, path: PurePosixPath, standing: Standing) -> None:
        """Remember how a subdir stands."""
        with self._errors():
            row = (f"{SUBDIR}{path}", standing.encode().decode())
            self._connection.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", row)

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with `prefix`."""
        with self._errors():
            rows = self._connection.execute("SELECT key FROM fact WHERE substr(key, 1, ?) = ?", (len(prefix), prefix))
            return [str(row[0]) for row in rows]

    def drop(self, key: str) -> None:
        """Forget what was noted under a key."""
        with self._errors():
            self._connection.execute("DELETE FROM fact WHERE key = ?", (key,))

    def _look(self) -> sqlite3.Connection:
        """Return a copy of the file in memory, as it was last committed; an empty one where there is none."""
        connection = sqlite3.connect(":memory:")
        if self._file.exists():
            # Without a log beside it nobody is at work, and SQLite need not make one.
            quiet = "" if self._file.with_name(f"{self._file.name}-wal").exists() else "&immutable=1"
            address = f"{self._file.absolute().as_uri()}?mode=ro{quiet}"
            with contextlib.closing(sqlite3.connect(address, uri=True)) as there:
                try:
                    there.backup(connection)
                    if connection.execute("PRAGMA user_version").fetchone() == (VERSION,):
                        return connection
                except sqlite3.DatabaseError as error:
                    log.warning("%s: cannot be read (%s); what is held is taken for unknown", self._file, error)
            connection = sqlite3.connect(":memory:")
        return connection

    def _connect(self) -> sqlite3.Connection:
        """Open the file; one that is damaged is put aside, and everything is verified anew."""
        try:
            connection = sqlite3.connect(self._file)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if tables and version != VERSION:
                connection.close()
                raise sqlite3.DatabaseError(f"its tables are of version {version}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        except sqlite3.DatabaseError as error:
            if _number(error) in FULL or isinstance(error, sqlite3.OperationalError):
                raise self._os_error(error) from error
            log.warning("%s: cannot be used (%s) and is put aside; what is held is hashed once more", self._file, error)
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    self._file.with_name(self._file.name + suffix).replace(f"{self._file}{suffix}.damaged")
            return self._connect()
        return connection

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._os_error(error) from error

    def _os_error(self, error: sqlite3.Error) -> OSError:
        number = errno.ENOSPC if _number(error) in FULL else errno.EIO
        return OSError(number, f"{os.strerror(number)} ({error})", str(self._file))


def _number(error: sqlite3.Error) -> int:
    """Return the primary code of an error, 0 where it has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
