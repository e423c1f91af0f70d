"""What is known of the cache, in one database: however a run ends, nothing is counted twice or forgotten."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from lanmirror_sync.kept import Wrong

from lanmirror_cache import CacheError
from lanmirror_cache.entry import Head
from lanmirror_cache.judge import Slice, signature
from lanmirror_cache.names import channel_of, is_installer, is_package, subdir_of

FILE = "state.sqlite"
# How many wrong packages are told of.
LAST_WRONG = 20
WRONG_TOTAL = "wrong_total"
# `folder.mtime` is 0 where a change right after the last look would not show in it. Of `file`, the columns from `first`
# on are empty for what is no slice, and `path` is "" for what is none of Nginx's. Of `package`, `shard` is what the
# index had of it when it was judged, `files` stands for its files then, and `digest` is theirs where they are `right`.
SCHEMA = """
CREATE TABLE IF NOT EXISTS folder (name TEXT PRIMARY KEY, mtime INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS file (
    name TEXT PRIMARY KEY, inode INTEGER NOT NULL, mtime INTEGER NOT NULL, size INTEGER NOT NULL,
    first INTEGER, last INTEGER, status INTEGER, start INTEGER, total INTEGER, length INTEGER, body INTEGER,
    upstream TEXT NOT NULL, folder TEXT NOT NULL, path TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS file_path ON file (path);
CREATE INDEX IF NOT EXISTS file_folder ON file (folder);
CREATE TABLE IF NOT EXISTS package (
    path TEXT PRIMARY KEY, subdir TEXT NOT NULL, channel TEXT NOT NULL, due INTEGER NOT NULL,
    bytes INTEGER NOT NULL DEFAULT 0, right INTEGER NOT NULL DEFAULT 0,
    shard TEXT NOT NULL DEFAULT '', files TEXT NOT NULL DEFAULT '', digest TEXT NOT NULL DEFAULT '') WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS package_due ON package (due) WHERE due;
CREATE INDEX IF NOT EXISTS package_subdir ON package (subdir);
CREATE TABLE IF NOT EXISTS shards (subdir TEXT PRIMARY KEY, identity TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS wrong (number INTEGER PRIMARY KEY, path TEXT, why TEXT, at REAL, upstream TEXT);
CREATE TABLE IF NOT EXISTS read (inode INTEGER PRIMARY KEY, offset INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
ADD = "INSERT INTO numbers VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"
DUE = """
INSERT INTO package (path, subdir, channel, due, bytes)
    SELECT ?1, ?2, ?3, 1, coalesce(sum(size), 0) FROM file
    WHERE path = ?1 AND first IS NOT NULL AND status IN (200, 206)
    ON CONFLICT (path) DO UPDATE SET due = 1, bytes = excluded.bytes
"""


@dataclass(frozen=True)
class Entry:
    """A file of the cache as the scan found it; `head` is None for one that is none of Nginx's."""

    name: str
    inode: int
    mtime: int
    size: int
    head: Head | None


@dataclass(frozen=True)
class Judged:
    """What a package was found to be, to be remembered.

    Attributes:
        path: of it.
        right: whether it is whole and what the index says.
        shard, files, digest: see SCHEMA.
    """

    path: str
    right: bool
    shard: str
    files: str
    digest: str


class State:
    """The database.

    Raises:
        CacheError: its folder is not there, or is another user's.
    """

    def __init__(self, folder: Path) -> None:
        try:
            # Transactions are begun where they are needed.
            self.db = sqlite3.connect(folder / FILE, timeout=60, isolation_level=None)
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=NORMAL")
            self.db.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise CacheError(
                f"{folder / FILE} cannot be opened ({error}): `systemctl start conda-cache` makes its folder; a "
                "damaged file can be deleted, and the counters begin at zero then"
            ) from error

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

    # ---- files

    def folders(self) -> dict[str, int]:
        """Return when each folder was changed, by what the last scan saw; nanoseconds."""
        return dict(self.db.execute("SELECT name, mtime FROM folder"))

    def files(self, folder: str) -> dict[str, tuple[int, int, int]]:
        """Return inode, mtime and size of each file that is known in a folder."""
        found = self.db.execute("SELECT name, inode, mtime, size FROM file WHERE folder = ?", (folder,))
        return {name: (inode, mtime, size) for name, inode, mtime, size in found}

    def scanned(self, folder: str, mtime: int | None, new: Iterable[Entry], gone: Iterable[str]) -> None:
        """Remember what a folder was found to have; None for one that is not there any more."""
        with self.change() as db:
            for name in gone:
                self._forget(name)
            for each in new:
                self._forget(each.name)
                head = each.head
                path = head.path if head else ""
                place = (
                    (head.first, head.last, head.status, head.start, head.total, head.length, head.body, head.upstream)
                    if head
                    else (None,) * 7 + ("",)
                )
                if head and head.first is None and is_installer(path):
                    # One that changes is fetched whole: a slice that is all of it.
                    place = (0, 0, *place[2:])
                known = (each.name, each.inode, each.mtime, each.size, *place, folder, path)
                db.execute("INSERT INTO file VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", known)
                self._due(path)
            if mtime is None:
                db.execute("DELETE FROM folder WHERE name = ?", (folder,))
            else:
                db.execute("REPLACE INTO folder VALUES (?, ?)", (folder, mtime))

    def unsettled(self, folders: Iterable[str]) -> None:
        """Have some folders looked at by the next scan."""
        self.db.executemany("UPDATE folder SET mtime = 0 WHERE name = ?", [(name,) for name in folders])

    def _forget(self, name: str) -> None:
        for (path,) in self.db.execute("DELETE FROM file WHERE name = ? RETURNING path", (name,)).fetchall():
            self._due(path)

    def _due(self, path: str) -> None:
        if is_package(path):
            self.db.execute(DUE, (path, subdir_of(path), channel_of(path)))

    def forget(self, names: Iterable[str]) -> None:
        """Forget files that were deleted."""
        with self.change():
            for name in names:
                self._forget(name)

    def paths(self) -> list[str]:
        """Return the paths of which the cache has something, be it that no upstream has them."""
        return [path for (path,) in self.db.execute("SELECT DISTINCT path FROM file WHERE path != '' ORDER BY path")]

    def entries(self, path: str) -> list[tuple[str, int, int]]:
        """Return name, inode and size of each file of a path."""
        return self.db.execute("SELECT name, inode, size FROM file WHERE path = ? ORDER BY first", (path,)).fetchall()

    # ---- packages

    def due(self) -> list[str]:
        """Return the packages to be judged."""
        return [path for (path,) in self.db.execute("SELECT path FROM package WHERE due ORDER BY path")]

    def all_due(self) -> None:
        """Have all packages judged, and hashed, anew."""
        self.db.execute("UPDATE package SET due = 1, files = '', right = 0")

    def slices(self, path: str) -> list[Slice]:
        """Return the slices of a package."""
        found = self.db.execute(
            "SELECT name, inode, mtime, size, first, last, status, start, total, length, body, upstream FROM file "
            "WHERE path = ? AND first IS NOT NULL AND status IN (200, 206) ORDER BY first",
            (path,),
        )
        return [Slice(*row) for row in found]

    def known(self, path: str) -> Judged | None:
        """Return what a package was found to be the last time."""
        found = self.db.execute(
            "SELECT path, right, shard, files, digest FROM package WHERE path = ?", (path,)
        ).fetchone()
        return Judged(found[0], bool(found[1]), *found[2:]) if found else None

    def judged(self, judged: Judged) -> None:
        """Remember what a package was found to be; if its files are others by now, it is to be judged again."""
        path, *rest = astuple(judged)
        with self.change() as db:
            due = signature(self.slices(path)) != judged.files
            db.execute(
                "UPDATE package SET due = ?, right = ?, shard = ?, files = ?, digest = ? WHERE path = ?",
                (due, *rest, path),
            )

    def dropped(self, path: str) -> None:
        """Forget a package of which nothing is left, unless something came meanwhile."""
        with self.change() as db:
            if not self.slices(path):
                db.execute("DELETE FROM package WHERE path = ?", (path,))

    def packages(self) -> list[tuple[str, int, bool]]:
        """Return path, bytes on the disk, and whether it is right, of each package."""
        found = self.db.execute("SELECT path, bytes, right AND NOT due FROM package WHERE bytes ORDER BY path")
        return [(path, size, bool(right)) for path, size, right in found]

    def by_channel(self) -> dict[str, tuple[int, int, int]]:
        """Return how many packages each channel has, their bytes, and how many of them are right."""
        found = self.db.execute(
            "SELECT channel, count(*), sum(bytes), sum(right AND NOT due) FROM package WHERE bytes GROUP BY channel"
        )
        return {channel: (packages, size, right) for channel, packages, size, right in found}

    # ---- indexes

    def subdirs(self) -> dict[str, str]:
        """Return the subdirs that have packages, each with what stood for its index when it was looked at."""
        found = self.db.execute(
            "SELECT DISTINCT package.subdir, coalesce(identity, '') FROM package LEFT JOIN shards USING (subdir)"
        )
        return dict(found.fetchall())

    def reindexed(self, subdir: str, identity: str, changed: Iterable[str]) -> None:
        """Have those packages judged anew of which another index says something else."""
        with self.change() as db:
            db.executemany("UPDATE package SET due = 1 WHERE path = ?", [(path,) for path in changed])
            db.execute("REPLACE INTO shards VALUES (?, ?)", (subdir, identity))

    def shards(self, subdir: str) -> Iterator[tuple[str, str]]:
        """Yield each package of a subdir with the shard that it was judged by."""
        yield from self.db.execute("SELECT path, shard FROM package WHERE subdir = ?", (subdir,))

    # ---- what is told

    def was_wrong(self, wrong: Wrong, names: Iterable[str]) -> None:
        """Remember a package that was wrong, whose files are gone."""
        with self.change() as db:
            db.execute("INSERT INTO wrong VALUES (NULL, ?, ?, ?, ?)", (wrong.path, wrong.why, wrong.at, wrong.upstream))
            db.execute("DELETE FROM wrong WHERE number <= (SELECT max(number) FROM wrong) - ?", (LAST_WRONG,))
            db.execute(ADD, (WRONG_TOTAL, 1))
            for name in names:
                self._forget(name)

    def wrong(self) -> list[Wrong]:
        """Return the last that were wrong, the newest first."""
        found = self.db.execute("SELECT path, why, at, upstream FROM wrong ORDER BY number DESC")
        return [Wrong(*row) for row in found]

    def numbers(self) -> dict[str, int]:
        """Return the counters by name."""
        return dict(self.db.execute("SELECT name, value FROM numbers"))

    def offsets(self) -> dict[int, int]:
        """Return how much of each file of the log was counted, by inode."""
        return dict(self.db.execute("SELECT inode, offset FROM read"))

    def counted(self, counts: Mapping[str, int], offsets: Mapping[int, int]) -> None:
        """Add to the counters what was read of the log."""
        with self.change() as db:
            db.executemany(ADD, counts.items())
            db.execute("DELETE FROM read")
            db.executemany("INSERT INTO read VALUES (?, ?)", offsets.items())
