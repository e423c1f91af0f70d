"""Put a backup in the place of what is there."""

from __future__ import annotations

import http
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import OpsError
from .archive import opened, refuse_other_versions, stored, verify
from .asking import ask, page
from .backup import PENDING
from .database import read_state
from .files import copy, link, need_room, same_disk
from .serving import FEW, must_serve
from .settings import ASIDE, DATABASE, Settings
from .system import start
from .undo import Undo, or_back, put_aside, refuse_unfinished, undo_file


def place(settings: Settings, folder: Path, manifest: Mapping[str, Any], old: Path) -> None:
    """Put a backup in the place of the data, with devpi as its owner."""
    for name in manifest["files"]:
        target = (settings.data if name.startswith("data/") else settings.conf) / name.split("/", 1)[1]
        if stored(name):
            link(folder / name, target)
        elif name.startswith("data/"):
            copy(folder / name, target)
        else:
            shutil.copyfile(folder / name, target)
    # The cache of this server is as good for the database of the backup: names of files are made of their hashes.
    state = read_state(settings.current, settings.database)
    for mirror in state["mirrors"]:
        for path in (old / "+files" / mirror).rglob("+f/**/*"):
            target = settings.data / path.relative_to(old)
            if path.is_file() and not path.is_symlink() and not target.exists():
                link(path, target)
    for root, folders, files in os.walk(settings.data):
        if Path(root) == settings.data:
            folders.remove(ASIDE)
        for name in folders:
            shutil.chown(Path(root, name), settings.user, settings.user)
            Path(root, name).chmod(0o750)
        for name in files:
            shutil.chown(Path(root, name), settings.user, settings.user)
            Path(root, name).chmod(0o640 if Path(root) != settings.data else 0o600)


def log_in(settings: Settings) -> None:
    """Return if a password that the server keeps is root's.

    Raises:
        OpsError: It is not.
    """
    for name in ("root-password", PENDING):
        if not (settings.conf / name).exists():
            continue
        password = (settings.conf / name).read_text(encoding="utf-8")
        if ask(settings.url, "/+login", body={"user": "root", "password": password}).status == http.HTTPStatus.OK:
            return
    raise OpsError("devpi does not take the root password of the backup")


def restore(settings: Settings, source: Path) -> tuple[dict[str, Any], Undo]:
    """Put a backup in the place of what is there; return its manifest, and what the old state was put aside as.

    Raises:
        OpsError: It is refused, with nothing changed, or failed, with the old state back.
    """
    refuse_unfinished(settings)
    with opened(source, settings.backups) as folder:
        manifest = verify(folder, settings.current)
        refuse_other_versions(manifest, read_state(settings.current))
        need = manifest["files"][f"data/{DATABASE}"]["size"]
        if not same_disk(folder, settings.data):
            need += sum(told["size"] for name, told in manifest["files"].items() if stored(name))
        need_room(settings.data, need, "the restore")
        with or_back(settings, "restore"):
            undo = put_aside(settings, "restore", move=True, serving={})
            place(settings, folder, manifest, settings.old_data / undo.name)
            start(settings)
            log_in(settings)
            state = read_state(settings.current, settings.database)
            # Without those that only some may read.
            uploads = list(state["uploads"].items())[:FEW]
            must_serve(settings.url, {path: names for path, names in uploads if page(settings.url, path)})
    undo_file(settings).unlink()
    return manifest, undo
