"""Make a backup while devpi runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import OpsError
from .archive import CONF, FORMAT, MANIFEST, whole_backups
from .database import read_state, snapshot
from .files import copy, link, need_room, same_disk, sha256, write
from .settings import DATABASE, Settings

# What devpi keeps beside its database; the serial of the last event comes first, it must not be ahead of the database.
SMALL = (".event_serial", ".nodeinfo", ".serverversion")
# A new root password is there before devpi knows it (library/devpi_indexes.py).
PENDING = "root-password.new"
# A package that is deleted while the backup is made takes another try; more than that is a fault of the data.
ATTEMPTS = 3
# Where devpi stores a file of a mirror: below the first 16 digits of its hash, of the kind that the upstream tells.
HASHED = re.compile(r"data/\+files/[^/]+/[^/]+/\+f/([0-9a-f]{3})/([0-9a-f]{13})/[^/]+")
OTHER_HASHES = ("md5", "sha1", "sha224", "sha384", "sha512")


def contents(settings: Settings, state: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files of a backup, by their names in it, without the database."""
    names = {f"data/{name}": settings.data / name for name in SMALL if (settings.data / name).exists()}
    names |= {f"conf/{name}": settings.conf / name for name in CONF}
    if (settings.conf / PENDING).exists():
        names[f"conf/{PENDING}"] = settings.conf / PENDING
    files = settings.data / "+files"
    names |= {f"data/{name}": settings.data / name for name in state["last"]}
    names |= {f"data/+files/{name}": files / name for name in state["files"]}
    for mirror in state["mirrors"] if settings.cache else []:
        for path in (files / mirror).rglob("*"):
            if path.is_file() and not path.name.endswith("-tmp"):
                names[f"data/+files/{path.relative_to(files)}"] = path
    return names


def fill(settings: Settings, venv: Path, folder: Path) -> dict[str, Any]:
    """Put all but the manifest into the folder of a backup and return the state of its database.

    Raises:
        FileNotFoundError: A file that the database names was deleted, now or long ago.
        OpsError: The database is damaged.
    """
    (folder / "data").mkdir(mode=0o700, parents=True)
    (folder / "conf").mkdir(mode=0o700)
    for name in SMALL:
        if (settings.data / name).exists():
            copy(settings.data / name, folder / "data" / name)
            (folder / "data" / name).chmod(0o600)
    database = folder / "data" / DATABASE
    snapshot(venv, settings.database, database, restore_or_not(settings))
    state = read_state(venv, database)
    for name, source in contents(settings, state).items():
        if name.startswith("data/+files/"):
            required = (
                name.removeprefix("data/+files/") in state["files"] or name.removeprefix("data/") in state["last"]
            )
            # A cached file may be evicted while this runs.
            with contextlib.nullcontext() if required else contextlib.suppress(FileNotFoundError):
                link(source, folder / name)
        elif name.startswith("conf/"):
            copy(source, folder / name)
    return state


def restore_or_not(settings: Settings) -> str:
    """Return what there is to do about a damaged database."""
    older = whole_backups(settings.backups)
    if older:
        return f"no backup is made of that, and none is deleted; restore one, the newest is {older[-1]}"
    return f"no backup is made of that, and there is no older one in {settings.backups}: see docs/backup.md"


def rotten(name: str, path: Path, digest: str) -> bool:
    """Return whether a cached file has other bytes than it is named by."""
    found = HASHED.fullmatch(name)
    if not found or digest.startswith(found[1] + found[2]):
        return False
    for kind in OTHER_HASHES:
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, kind).hexdigest().startswith(found[1] + found[2]):
                return False
    return True


def described(folder: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of a backup, without cached files that are damaged.

    Raises:
        OpsError: An uploaded file has not the bytes that devpi was given.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        name = str(path.relative_to(folder))
        size, digest = path.stat().st_size, sha256(path)
        known = state["files"].get(name.removeprefix("data/+files/"))
        if known and known != digest:
            raise OpsError(
                f"{name.removeprefix('data/')} is damaged on the disk: it has not the sha256 that it was uploaded "
                "with; upload it again, or take it from an older backup"
            )
        if known is None and name.removeprefix("data/") not in state["last"] and rotten(name, path, digest):
            print(
                f"{name.removeprefix('data/')} is damaged on the disk, and left out: delete it there", file=sys.stderr
            )
            path.unlink()
            continue
        files[name] = {"size": size, "sha256": digest}
    return {
        "format": FORMAT,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        "devpi_server": state["version"],
        "database": (folder / "data/.serverversion").read_text(encoding="utf-8").strip(),
        "uuid": json.loads((folder / "data/.nodeinfo").read_text(encoding="utf-8")).get("uuid"),
        "files": files,
    }


def backup(settings: Settings, venv: Path) -> Path:
    """Make a backup and return its folder.

    Raises:
        OpsError: There is nothing to back up, too little room, or the data is not whole.
    """
    if not settings.database.exists():
        raise OpsError(f"{settings.data} has no database of devpi's: set the server up first, with site.yml")
    settings.backups.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.backups.chmod(0o700)
    for path in settings.backups.glob(".devpi-*.partial"):
        shutil.rmtree(path)
    need = settings.database.stat().st_size
    if not same_disk(settings.data, settings.backups):
        sources = contents(settings, read_state(venv, settings.database)).values()
        need += sum(path.stat().st_size for path in sources if path.exists())
    need_room(settings.backups, need, "the backup")
    name = time.strftime("devpi-%Y%m%dT%H%M%SZ", time.gmtime())
    partial, done = settings.backups / f".{name}.partial", settings.backups / name
    try:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                state = fill(settings, venv, partial)
                break
            except FileNotFoundError as error:
                shutil.rmtree(partial, ignore_errors=True)
                if attempt == ATTEMPTS:
                    raise OpsError(
                        f"{error.filename} is missing, and devpi's database names it: put it there again from an older "
                        "backup, or delete that release"
                    ) from error
                time.sleep(1)
        write(partial / MANIFEST, json.dumps(described(partial, state), indent=1), 0o600)
        os.sync()
        partial.rename(done)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    # One that lacks a file, or its manifest, does not count, and is for the administrator to look at.
    for old in whole_backups(settings.backups)[: -settings.keep]:
        shutil.rmtree(old)
    return done
