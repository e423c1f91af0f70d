"""When the page of a project was confirmed by its upstream; known through a restart of devpi.

devpi has that in memory alone: after a restart it would ask for each page again, of a whole lab at once.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devpi_server import mirror

# Seconds between two writes of what has changed; as much is forgotten when devpi is killed.
FLUSH = 5.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS confirmed (
    idx TEXT NOT NULL, project TEXT NOT NULL, at REAL NOT NULL, mark TEXT NOT NULL, PRIMARY KEY (idx, project)
) WITHOUT ROWID
"""
# The mark of a project that the upstream has not.
MISSING = ""


@dataclass(frozen=True)
class Confirmed:
    """An answer of the upstream.

    Attributes:
        at: Seconds since the epoch.
        mark: Of the page that was confirmed, see mirror.py; MISSING when there is none.
    """

    at: float
    mark: str


class Store:
    """The file of all answers, beside devpi's database.

    A fault of the file is no fault of the cache: then it is known until the next restart.
    """

    def __init__(self, path: Path) -> None:
        """Read the file; one that is damaged is begun anew."""
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], Confirmed] = {}
        self._changed: set[tuple[str, str]] = set()
        try:
            self._read()
        except sqlite3.Error:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        threading.Thread(target=self._keep, name="lanmirror-times", daemon=True).start()

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self._path, timeout=10)) as db, db:
            db.execute(SCHEMA)
            yield db

    def _read(self) -> None:
        now = time.time()
        with self._database() as db:
            for index, project, at, mark in db.execute("SELECT idx, project, at, mark FROM confirmed"):
                # With the clock set back, nothing is known of the time that it was ahead.
                if at <= now:
                    self._known[index, project] = Confirmed(at, mark)

    def _keep(self) -> None:
        while True:
            time.sleep(FLUSH)
            with contextlib.suppress(sqlite3.Error):
                self.flush()

    def flush(self) -> None:
        """Write what has changed."""
        with self._lock:
            changed = {key: self._known.get(key) for key in self._changed}
            self._changed.clear()
        if changed:
            with self._database() as db:
                gone = [key for key, value in changed.items() if value is None]
                db.executemany("DELETE FROM confirmed WHERE idx = ? AND project = ?", gone)
                rows = [(*key, value.at, value.mark) for key, value in changed.items() if value is not None]
                db.executemany("REPLACE INTO confirmed VALUES (?, ?, ?, ?)", rows)

    def get(self, index: str, project: str) -> Confirmed | None:
        """Return the last answer for a project, or None."""
        return self._known.get((index, project))

    def set(self, index: str, project: str, confirmed: Confirmed | None) -> None:
        """Replace the last answer for a project, or forget it."""
        with self._lock:
            if confirmed is None:
                self._known.pop((index, project), None)
            else:
                self._known[index, project] = confirmed
            self._changed.add((index, project))


class Times(mirror.ProjectUpdateCache):
    """What devpi asks of one index when it looks whether a page has expired."""

    def __init__(self, store: Store, index: str) -> None:
        """Look into `store` for `index`."""
        super().__init__()
        self._store, self._index = store, index

    def confirmed(self, project: Any) -> Confirmed | None:
        """Return the last answer of the upstream."""
        return self._store.get(self._index, str(project))

    def mark(self, project: Any) -> str | None:
        """Return the mark of the page that was confirmed last, None where nothing is known."""
        known = self.confirmed(project)
        return known.mark if known else None

    def confirm(self, project: Any, mark: str) -> None:
        """Remember an answer of the upstream, given now."""
        self._store.set(self._index, str(project), Confirmed(time.time(), mark))

    def is_expired(self, project: Any, expiry_time: float) -> bool:
        """Return whether the last answer is older than that many seconds, or none is known."""
        known = self.confirmed(project)
        # With the clock set back, an answer of the future is as good as none.
        return known is None or not 0 <= time.time() - known.at < expiry_time

    def get_etag(self, project: Any) -> None:
        """Return nothing: it stands with the page."""

    def get_timestamp(self, project: Any) -> float:
        """Return when the last answer came, -1 for never."""
        known = self.confirmed(project)
        return known.at if known else -1

    def refresh(self, project: Any, etag: Any) -> None:
        """Do nothing: mirror.py confirms by itself, with the mark of a page."""

    def expire(self, project: Any, etag: Any = None) -> None:
        """Forget the last answer."""
        self._store.set(self._index, str(project), None)
