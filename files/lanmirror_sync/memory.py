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
from dataclasses import dataclass, field
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
# How long another process is waited for that writes to the file: a commit takes milliseconds, on a slow disk seconds.
PATIENCE_SECONDS = 60.0
# Its log and the index of that.
FILES_BESIDE = 2
FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}

log = logging.getLogger(__name__)


@dataclass
class _Told:
    """What was told since the last commit, and is not in the file yet.

    Attributes:
        emptied: folders of which all was forgotten.
        verified: for each folder, the rows by name; None for a file that was forgotten.
        orphans: for each folder, all that is due to go there.
        facts: the values by key; None for a fact that was dropped.
    """

    emptied: set[str] = field(default_factory=set)
    verified: dict[str, dict[str, tuple[str, int, int, bytes, float] | None]] = field(default_factory=dict)
    orphans: dict[str, dict[str, float]] = field(default_factory=dict)
    facts: dict[str, str | None] = field(default_factory=dict)


class Memory:
    """The state file. It belongs to the thread that made it; writes count from `commit` on.

    Until then they are kept in this process, so that the file is locked for the length of a commit alone, and another
    process may write to it as well.

    Args:
        read_only: for a look beside a run that is under way: the file is not touched, and what is told is forgotten.
        facts_alone: read-only, and without what is known of files, which takes memory.

    Raises:
        OSError: from every method, where the disk does not take or give what it should.
    """

    def __init__(self, file: Path, *, read_only: bool = False, facts_alone: bool = False) -> None:
        self._file = file
        self._unflushed = False
        self._told = _Told()
        self._connection = self._facts() if facts_alone else self._look() if read_only else self._connect()
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
        if self._told != _Told():
            with self._errors():
                self._write(self._told)
            self._told = _Told()

    def _write(self, told: _Told) -> None:
        execute, many = self._connection.execute, self._connection.executemany
        execute("BEGIN IMMEDIATE")
        try:
            many("DELETE FROM verified WHERE folder = ?", ((folder,) for folder in told.emptied))
            for folder, rows in told.verified.items():
                gone = ((folder, name) for name, row in rows.items() if row is None)
                many("DELETE FROM verified WHERE folder = ? AND name = ?", gone)
                there = ((folder, *row) for row in rows.values() if row)
                many("INSERT OR REPLACE INTO verified VALUES (?, ?, ?, ?, ?, ?)", there)
            many("DELETE FROM orphan WHERE folder = ?", ((folder,) for folder in told.orphans))
            for folder, since in told.orphans.items():
                many("INSERT INTO orphan VALUES (?, ?, ?)", ((folder, name, start) for name, start in since.items()))
            many("DELETE FROM fact WHERE key = ?", ((key,) for key, value in told.facts.items() if value is None))
            facts = ((key, value) for key, value in told.facts.items() if value is not None)
            many("INSERT OR REPLACE INTO fact VALUES (?, ?)", facts)
            execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                execute("ROLLBACK")
            raise

    def flushed(self) -> None:
        """Take note that all bytes of the files that were verified so far have been brought to the disk."""
        self._unflushed = False

    def verified(self, folder: str) -> Iterator[tuple[str, int, int, bytes]]:
        """Yield name, size, mtime_ns and digest of the files of a folder whose bytes were verified."""
        for name, size, mtime_ns, digest, _ in self._rows(folder):
            yield name, size, mtime_ns, digest

    def verify(self, folder: str, files: Iterable[tuple[str, int, int, bytes]]) -> None:
        """Remember that the bytes of files were verified; see `verified`."""
        self._unflushed, now = True, time.time()
        rows = self._told.verified.setdefault(folder, {})
        for name, size, mtime_ns, digest in files:
            rows[name] = (name, size, mtime_ns, digest, now)

    def checked_since(self, folder: str, since: float) -> dict[str, bytes]:
        """Return the digests of the files of a folder that were verified since then (Unix time, seconds), by name.

        What was noted with the clock ahead was not since then.
        """
        now = time.time()
        return {name: digest for name, _, _, digest, checked in self._rows(folder) if since <= checked <= now}

    def forget(self, folder: str, names: Iterable[str]) -> None:
        """Forget that files were verified."""
        self._told.verified.setdefault(folder, {}).update(dict.fromkeys(names))

    def forget_folder(self, folder: str) -> None:
        """Forget everything about the files of a folder."""
        self._told.emptied.add(folder)
        self._told.verified.pop(folder, None)
        self._told.orphans[folder] = {}

    def orphans(self, folder: str) -> dict[str, float]:
        """Return since when (Unix time, seconds) files have been named by no index, by name."""
        if folder in self._told.orphans:
            return dict(self._told.orphans[folder])
        with self._errors():
            return dict(self._connection.execute("SELECT name, since FROM orphan WHERE folder = ?", (folder,)))

    def orphan(self, folder: str, since: Mapping[str, float]) -> None:
        """Set what `orphans` returns."""
        self._told.orphans[folder] = dict(since)

    def fact(self, key: str) -> dict[str, Any]:
        """Return what was noted under a key; empty where nothing was."""
        text = self._fact(key)
        value = json.loads(text) if text else {}
        return value if isinstance(value, dict) else {}

    def note(self, key: str, value: Mapping[str, Any]) -> None:
        """Note something, in place of what was noted under that key."""
        self._told.facts[key] = json.dumps(dict(value))

    def standing(self, path: PurePosixPath) -> Standing:
        """Return how a subdir stood at the end of the last run; an empty record where that is not known."""
        text = self._fact(f"{SUBDIR}{path}")
        return Standing.decode(text) if text else Standing()

    def note_standing(self, path: PurePosixPath, standing: Standing) -> None:
        """Remember how a subdir stands."""
        self._told.facts[f"{SUBDIR}{path}"] = standing.encode().decode()

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with `prefix`."""
        told = {key: value for key, value in self._told.facts.items() if key.startswith(prefix)}
        with self._errors():
            rows = self._connection.execute("SELECT key FROM fact WHERE substr(key, 1, ?) = ?", (len(prefix), prefix))
            there = [str(row[0]) for row in rows if row[0] not in told]
        return sorted([*there, *(key for key, value in told.items() if value is not None)])

    def drop(self, key: str) -> None:
        """Forget what was noted under a key."""
        self._told.facts[key] = None

    def _fact(self, key: str) -> str | None:
        if key in self._told.facts:
            return self._told.facts[key]
        with self._errors():
            row = self._connection.execute("SELECT value FROM fact WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def _rows(self, folder: str) -> Iterator[tuple[str, int, int, bytes, float]]:
        """Yield what is known of the verified files of a folder: the file's rows, and over them what was told since."""
        told = dict(self._told.verified.get(folder, {}))
        if folder not in self._told.emptied:
            with self._errors():
                for row in self._connection.execute(
                    "SELECT name, size, mtime_ns, digest, checked FROM verified WHERE folder = ?", (folder,)
                ):
                    if row[0] not in told:
                        yield row
        yield from (row for row in told.values() if row)

    def _look(self) -> sqlite3.Connection:
        """Return a copy of the file in memory, as it was last committed; an empty one where there is none."""
        connection = sqlite3.connect(":memory:")
        if self._file.exists():
            with contextlib.closing(self._beside()) as there:
                try:
                    there.backup(connection)
                    if connection.execute("PRAGMA user_version").fetchone() == (VERSION,):
                        return connection
                except sqlite3.DatabaseError as error:
                    log.warning("%s: cannot be read (%s); what is held is taken for unknown", self._file, error)
            connection = sqlite3.connect(":memory:")
        return connection

    def _facts(self) -> sqlite3.Connection:
        """Return a copy of the facts in memory; unlike `_look`, what cannot be read is an error."""
        connection = sqlite3.connect(":memory:")
        connection.executescript(SCHEMA)
        if self._file.exists():
            with self._errors(), contextlib.closing(self._beside()) as there:
                made = there.execute("SELECT count(*) FROM sqlite_master WHERE name = 'fact'").fetchone()
                if made == (1,) and there.execute("PRAGMA user_version").fetchone() == (VERSION,):
                    connection.executemany("INSERT INTO fact VALUES (?, ?)", there.execute("SELECT * FROM fact"))
        return connection

    def _beside(self) -> sqlite3.Connection:
        """Open the file to read it beside a run."""
        # Without a log beside it nobody is at work, and SQLite need not make one.
        quiet = "" if self._file.with_name(f"{self._file.name}-wal").exists() else "&immutable=1"
        return sqlite3.connect(f"{self._file.absolute().as_uri()}?mode=ro{quiet}", uri=True)

    def _connect(self) -> sqlite3.Connection:
        """Open the file; one that is damaged is put aside, and everything is verified anew."""
        try:
            connection = sqlite3.connect(self._file, timeout=PATIENCE_SECONDS, isolation_level=None)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if tables and version != VERSION:
                connection.close()
                raise sqlite3.DatabaseError(f"its tables are of version {version}")
            if not tables:
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

    def _lacks_inodes(self) -> bool:
        """Tell whether the disk has too few inodes for the files that SQLite makes beside this one."""
        status = os.statvfs(self._file.parent)
        return bool(status.f_files) and status.f_favail < FILES_BESIDE

    def _os_error(self, error: sqlite3.Error) -> OSError:
        full = _number(error) in FULL or (_number(error) == sqlite3.SQLITE_CANTOPEN and self._lacks_inodes())
        number = errno.ENOSPC if full else errno.EIO
        return OSError(number, f"{os.strerror(number)} ({error})", str(self._file))


def _number(error: sqlite3.Error) -> int:
    """Return the primary code of an error, 0 where it has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
