"""Write the list of what is here, in which the portal searches: what mirrors have stored, and what was uploaded.

devpi-evict.service runs it after `evict`, with the Python of devpi's venv and our plugin, which know names and
versions.

  python -m lanmirror_ops.packages [SETTINGS]

The list is JSON: `made` (seconds since the epoch), `indexes` (each its name and type), `packages` (each its normalised
name, the number of its index, its newest versions that are here, how many files that is and how many bytes, and the day
on which somebody asked for one of them last, "" for nobody), and `left_out`, how many packages are not in it. Everybody
may read it, as devpi lets everybody read each index. Nobody is told who asked for something.

Exit codes: 0 done; 1 not written, since devpi did not say which indexes there are, or the disk is full.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lanmirror_devpi import links, page
from packaging.version import InvalidVersion, Version

from . import OpsError
from .asking import indexes
from .eviction import Stored, stored
from .files import write
from .journal import WARNING, tell
from .known import Known
from .settings import FILE, Settings, load

METADATA = ".metadata"
# How many versions of a package are named, and how long one may be.
VERSIONS, LONGEST = 3, 40
# The most that the list may have, bytes. Of usual names that is 50,000 packages and more.
MOST = 4 << 20


@dataclass
class Package:
    """What is here of a project in one index."""

    name: str
    index: str
    versions: set[str] = field(default_factory=set)
    files: int = 0
    size: int = 0
    used: float = 0.0
    """When a file of it was asked for last, seconds since the epoch; 0 for never."""

    def add(self, file: Stored, used: float) -> None:
        """Count a file."""
        self.size += file.size
        self.used = max(self.used, used)
        if not file.path.endswith(METADATA):
            self.files += 1
            version = links.version_of(self.name, file.path.rpartition("/")[2])
            if version and len(version) <= LONGEST:
                self.versions.add(version)

    def told(self, number: int) -> list[Any]:
        """Return it as it stands in the list, with the number of its index."""
        newest = sorted(self.versions, key=order, reverse=True)[:VERSIONS]
        day = time.strftime("%F", time.gmtime(self.used)) if self.used else ""
        return [self.name, number, newest, self.files, self.size, day]


def order(version: str) -> tuple[bool, Version, str]:
    """Return by what versions are sorted: those that cannot be read come before all others."""
    try:
        return True, Version(version), ""
    except InvalidVersion:
        return False, Version("0"), version


def project_of(name: str, known: Collection[str]) -> str:
    """Return the project of a file, of those that are known in its index; "" for one of none, or that is no package."""
    if not page.ARCHIVES.fullmatch(name) or name.lower().endswith(".doc.zip"):
        return ""
    if name.lower().endswith(".whl"):
        return page.normalized(name.partition("-")[0])
    return next((project for project in links.projects_of(name) if project in known), "")


def gathered(
    index: str, files: Iterable[Stored], known: Collection[str], used: Mapping[str, float]
) -> Iterator[Package]:
    """Yield the packages that files of an index are of.

    Args:
        index: user/index.
        files: Those that are stored.
        known: The projects of that index, by their normalised names.
        used: When each file was asked for last.
    """
    found: dict[str, Package] = {}
    for file in files:
        name = project_of(file.subject.rpartition("/")[2], known)
        if name:
            found.setdefault(name, Package(name, index)).add(file, used.get(file.subject, 0.0))
    yield from found.values()


def listed(packages: Iterable[Package], types: Mapping[str, str], now: float, most: int = MOST) -> str:
    """Return the list: what was uploaded and what was used last, as far as `most` bytes go, by name."""
    names = sorted(types)
    first = sorted(packages, key=lambda one: (types[one.index] == "mirror", -one.used, one.name))
    texts: list[tuple[str, str, str]] = []
    room = most
    for one in first:
        text = json.dumps(one.told(names.index(one.index)), separators=(",", ":"))
        room -= len(text) + 2
        if room < 0:
            break
        texts.append((one.name, one.index, text))
    head = {
        "made": int(now),
        "indexes": [[name, types[name]] for name in names],
        "left_out": len(first) - len(texts),
    }
    body = ",\n".join(text for *_, text in sorted(texts))
    return f'{json.dumps(head)[:-1]}, "packages": [\n{body}\n]}}\n'


def projects(database: Path, index: str) -> set[str]:
    """Return the projects of an index that devpi has stored something of, by their normalised names."""
    query = "SELECT key FROM kv WHERE keyname IN ('PROJSIMPLELINKS', 'PROJVERSIONS') AND key >= ? AND key < ?"
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as db:
        keys = db.execute(query, (f"{index}/", f"{index}0")).fetchall()
    return {key.split("/")[2] for (key,) in keys}


def refresh(settings: Settings) -> bool:
    """Write the list; return whether devpi could be asked which indexes there are."""
    try:
        types = indexes(settings.url)
    except OSError as error:
        tell(WARNING, f"the list of packages is not made anew: devpi does not say which indexes there are ({error})")
        return False
    known, root = Known(settings.state), settings.data / "+files"
    known.read_log(settings.log)
    used = known.used()
    packages = [
        package
        for index in types
        for package in gathered(index, stored(root / index, root), projects(settings.database, index), used)
    ]
    # Nginx reads it as a member of the group.
    write(settings.packages, listed(packages, types, time.time()), 0o640)
    return True


def main(arguments: Sequence[str]) -> int:
    """Do so; exit codes as above."""
    try:
        return 0 if refresh(load(Path(arguments[0]) if arguments else FILE)) else 1
    except (OpsError, OSError, sqlite3.Error) as error:
        tell(WARNING, f"the list of packages is not made anew: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
