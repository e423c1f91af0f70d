"""Say what a database of devpi's names, with devpi's own reader of its format.

`database.read_state` runs it with the Python of a venv of devpi's:

  devpi_state.py                    the venv's version of devpi-server, and of its databases, as JSON
  devpi_state.py DATABASE           the venv's version of devpi-server, and what the database names
  devpi_state.py DATABASE --values  that, after each value that devpi could ask for was read

With --unlocked devpi can write meanwhile, and half of what it writes may be read. A value that cannot be read ends it
with one line.
"""

from __future__ import annotations

import gzip
import json
import re
import sqlite3
import sys
import zlib
from base64 import b64decode
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

from devpi_server.fileutil import loads

NEWEST_PAGES = 3


class Database:
    """devpi's database as of one moment: `kv` names the change (`changelog`) that has a key's value."""

    def __init__(self, path: str, how: str) -> None:
        self.db = sqlite3.connect(f"file:{path}?{how}", uri=True, timeout=60)
        self.db.execute("begin")

    def change(self, serial: int) -> tuple[dict[str, Any], list[str]]:
        """Return the keys that a change touched, with what became of them, and the files that it wrote."""
        row = self.db.execute("select data from changelog where serial = ?", (serial,)).fetchone()
        if row is None:
            sys.exit(f"change {serial} is missing in the database")
        try:
            entry: tuple[dict[str, Any], list[str]] = loads(row[0])
        except Exception as error:
            # Whatever it stumbles over.
            sys.exit(f"change {serial} in the database cannot be read ({type(error).__name__}: {error})")
        return entry

    def values(self, where: str, *arguments: str) -> Iterator[tuple[str, Any]]:
        """Yield the keys of some condition with their values, but for deleted ones."""
        for key, serial in self.db.execute(f"select key, serial from kv where {where}", arguments).fetchall():  # noqa: S608 - conditions of this file's
            found = self.change(serial)[0].get(key)
            if found is None:
                sys.exit(f"change {serial} in the database has no {key}")
            if found[2] is not None:
                yield key, found[2]

    def within(self, index: str, *names: str) -> tuple[str, ...]:
        """Return the condition that keys are of an index and of some kinds, and its arguments."""
        kinds = " or ".join(["keyname = ?"] * len(names))
        return (f"({kinds}) and key >= ? and key < ?", *names, f"{index}/", f"{index}0")

    def read_all(self) -> None:
        """Read each change that some key's value is in, and in it the pages that our plugin packs (mirror.py)."""
        serials = [serial for (serial,) in self.db.execute("select distinct serial from kv order by serial")]
        for serial in serials:
            for key, (_, _, value) in self.change(serial)[0].items():
                if isinstance(value, dict) and "lanmirror" in value:
                    try:
                        gzip.decompress(b64decode(value["lanmirror"]["page"], validate=True))
                    except (ValueError, TypeError, KeyError, EOFError, OSError, zlib.error) as error:
                        sys.exit(f"the page {key} in the database cannot be read ({error})")

    def newest_pages(self, mirror: str) -> list[str]:
        """Return paths of pages of a mirror's projects that came last."""
        where, *arguments = self.within(mirror, "PROJSIMPLELINKS")
        newest = f"select key from kv where {where} order by serial desc limit {NEWEST_PAGES}"  # noqa: S608 - as above
        start = len(mirror) + 1
        return [f"{mirror}/+simple/{key[start:].split('/')[0]}/" for (key,) in self.db.execute(newest, arguments)]

    def last_files(self) -> list[str]:
        """Return the files of the last change, which devpi looks for when it starts."""
        row = self.db.execute("select max(serial) from changelog").fetchone()
        names = self.change(row[0])[1] if row[0] is not None else []
        return [re.sub(r"(-[0-9a-fA-F]{8,64})?-tmp$", "", name) for name in names if name.endswith("-tmp")]


def state(database: Database) -> dict[str, Any]:
    """Return what a database names.

    `mirrors`: by name. `files`: each file of the other indexes, by path, with its sha256 or an empty text. `last`: the
    files of the last change. `pages`: paths of a few pages of mirrors. `uploads`: file names on pages of the others.
    """
    indexes = {
        f"{key.split('/')[0]}/{name}": settings.get("type")
        for key, value in database.values("keyname = 'USER'")
        for name, settings in value.get("indexes", {}).items()
    }
    mirrors = sorted(name for name, kind in indexes.items() if kind == "mirror")
    files: dict[str, str] = {}
    uploads: dict[str, list[str]] = {}
    for index in sorted(set(indexes) - set(mirrors)):
        for key, value in database.values(*database.within(index, "STAGEFILE", "PYPIFILE_NOMD5")):
            if not value.get("last_modified"):
                continue
            spec = str(value.get("hash_spec") or "")
            known = spec.removeprefix("sha256=") if spec.startswith("sha256=") else ""
            files[key] = (value.get("hashes") or {}).get("sha256") or known
            if "/+f/" in key and value.get("project"):
                project = re.sub(r"[-_.]+", "-", value["project"]).lower()
                uploads.setdefault(f"{index}/+simple/{project}/", []).append(key.split("/")[-1])
    return {
        "mirrors": mirrors,
        "files": files,
        "last": database.last_files(),
        "pages": [page for mirror in mirrors for page in database.newest_pages(mirror)],
        "uploads": uploads,
    }


def main(arguments: Sequence[str]) -> None:
    """Print it."""
    found: dict[str, Any] = {"version": version("devpi-server")}
    paths = [word for word in arguments if not word.startswith("--")]
    for path in paths:
        database = Database(path, "mode=ro&immutable=1" if "--unlocked" in arguments else "mode=ro")
        if "--values" in arguments:
            database.read_all()
        found |= state(database)
    if not paths:
        # It is all of devpi that this reads.
        from devpi_server.main import DATABASE_VERSION  # noqa: PLC0415

        found["database"] = DATABASE_VERSION
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
