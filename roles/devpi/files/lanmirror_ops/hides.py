"""Say which files that clients used lately other rules of mirrors hide.

Module `devpi_indexes` runs it, with the Python of devpi's venv and our plugin: the rules are what the plugin takes them
for (lanmirror_devpi/policy.py). Nobody is asked for anything, and nothing is changed.

  python -m lanmirror_ops.hides SETTINGS

stdin: `{"before": {"user/index": SETTINGS}, "after": …}`, of mirrors, as JSON. stdout: words for people.

What clients used is what the watchdog has read from Nginx's log (known.py): when each file that is stored was asked for
last, or its metadata. devpi-evict forgets a file that it evicts.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
import time
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from devpi_server.fileutil import loads
from lanmirror_devpi import coming, links
from lanmirror_devpi.malware import Listed
from lanmirror_devpi.page import Page, PageError, load
from lanmirror_devpi.policy import DAY, Used, hidden_by_change

from .settings import Settings
from .settings import load as load_settings

DAYS = 30
# How many files are named.
MOST = 100
# How many pages are kept unpacked.
PAGES = 100


@dataclass(frozen=True)
class Told:
    """What a page tells of a file, as coming.about wants it."""

    project: str
    file: Any


class Database:
    """devpi's database. Each value is read by itself: who reads it for long keeps devpi from writing."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60, isolation_level=None)
        self.page = lru_cache(PAGES)(self._page)

    def value(self, key: str) -> Any:
        """Return the value of a key, empty where there is none."""
        query = "SELECT data FROM kv JOIN changelog USING (serial) WHERE key = ?"
        rows = self.db.execute(query, (key,)).fetchall()
        return (loads(rows[0][0])[0][key][2] or {}) if rows else {}

    def _page(self, index: str, project: str) -> Page | None:
        """Return the stored page of a project."""
        about = self.value(f"{index}/{project}/.simple").get("lanmirror")
        with contextlib.suppress(PageError):
            return load(b64decode(about["page"])) if about else None
        return None

    def about(self, path: str) -> coming.About:
        """Return what the rules ask of a file."""
        user, index, below = path.split("/", 2)
        for project in links.projects_of(path.rpartition("/")[2]):
            page = self.page(f"{user}/{index}", project)
            if page and (file := page.by_path.get(below)):
                return coming.about(path, {}, Told(project, file))
        return coming.about(path, self.value(path), None)


def used_since(state: Path, index: str, since: float) -> list[tuple[str, float]]:
    """Return the files of an index that were asked for since then, each with when that was last.

    By their names, so that the page of a project is unpacked once for all of its files.
    """
    with contextlib.closing(sqlite3.connect(f"file:{state}?mode=ro", uri=True, timeout=60)) as db:
        query = "SELECT path, at FROM used WHERE path >= ? AND path < ? AND at >= ?"
        found = db.execute(query, (f"{index}/", f"{index}0", since)).fetchall()
    return sorted(found, key=lambda each: str(each[0]).rpartition("/")[2])


def words(settings: Settings, before: Mapping[str, Any], after: Mapping[str, Any], now: float) -> str:
    """Return what the rules of `after` hide that those of `before` do not, in words."""
    database = Database(settings.database)
    if settings.malware and settings.malware_list.exists():
        coming.apply(Listed.of(settings.malware_list.read_bytes()), "")
    lines = []
    for index in sorted(after):
        files = []
        for path, at in used_since(settings.state, index, now - DAYS * DAY):
            about = database.about(path)
            files.append(Used(about.project, about.name, about.uploaded, at))
        rules = [coming.policy_of(index, each[index]) for each in (before, after)]
        for file, refusal in hidden_by_change(rules[0], rules[1], files, now):
            lines.append(f"{index}: {refusal.why}; asked for last on {time.strftime('%F', time.gmtime(file.at))}\n")
    head = f"files that the changed rules hide, and clients of this server used in the last {DAYS} days"
    more = f"and {len(lines) - MOST} more\n" if len(lines) > MOST else ""
    return f"{head}: {len(lines) or 'none'}\n{''.join(lines[:MOST])}{more}"


def main(arguments: Sequence[str]) -> None:
    """Print it."""
    told = json.load(sys.stdin)
    print(words(load_settings(Path(arguments[0])), told["before"], told["after"], time.time()), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
