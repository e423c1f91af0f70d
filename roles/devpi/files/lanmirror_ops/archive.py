"""A backup that is there: whether it is whole, of which version, and in one file."""

from __future__ import annotations

import contextlib
import json
import lzma
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from . import OpsError
from .database import must_be_sound
from .files import need_room, sha256
from .settings import DATABASE

FORMAT = 1
MANIFEST = "manifest.json"
CONF = ("secret", "root-password")
NEEDED = (f"data/{DATABASE}", "data/.serverversion", "data/.nodeinfo", *(f"conf/{name}" for name in CONF))
NAME = re.compile(r"devpi-\d{8}T\d{6}Z")


def safe(name: str) -> bool:
    """Return whether a name of a backup stays inside it."""
    parts = PurePosixPath(name).parts
    return len(parts) > 1 and parts[0] in {"data", "conf"} and ".." not in parts and "\x00" not in name


def stored(name: str) -> bool:
    """Return whether a name of a backup is that of a package, and not of the database or the configuration."""
    return "+files" in PurePosixPath(name).parts


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a backup.

    Raises:
        OpsError: It has none that this program reads.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        known = manifest["format"] == FORMAT and all(safe(name) for name in manifest["files"])
        missing = [name for name in NEEDED if name not in manifest["files"]]
        vague = [name for name, told in manifest["files"].items() if not {"size", "sha256"} <= set(told)]
    except FileNotFoundError:
        raise OpsError(f"{folder} is no backup: it has no {MANIFEST}; backups are {NAME.pattern}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OpsError(f"{folder / MANIFEST} is damaged ({error}): take another backup") from None
    if not known:
        raise OpsError(f"{folder / MANIFEST} is not of format {FORMAT}, or names a file outside of the backup")
    if missing or vague:
        raise OpsError(f"the manifest of {folder} does not name {(missing + vague)[0]}: take another backup")
    return manifest


def must_have_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Return if each file of a backup is there with its size.

    Raises:
        OpsError: One is not.
    """
    for name, expected in manifest["files"].items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise OpsError(f"the backup {folder} has no {name}, which its manifest names: take another backup")
        if path.stat().st_size != expected["size"]:
            raise OpsError(f"{name} in the backup {folder} is not what its manifest says: take another backup")


def verify(folder: Path, venv: Path) -> dict[str, Any]:
    """Return the manifest of a backup that is whole, also for devpi's own reader, in its venv.

    Raises:
        OpsError: A file is missing or has not the size or the bytes that the manifest says, or the database was damaged
            when it was copied.
    """
    manifest = read_manifest(folder)
    must_have_files(folder, manifest)
    for name, expected in manifest["files"].items():
        if sha256(folder / name) != expected["sha256"]:
            raise OpsError(f"{name} in the backup {folder} is not what its manifest says: take another backup")
    must_be_sound(venv, folder / "data" / DATABASE, f"{folder} is a copy of it; take an older backup")
    return manifest


def whole_backups(folder: Path) -> list[Path]:
    """Return the backups in a folder that have all their files, the oldest first."""
    whole = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if NAME.fullmatch(path.name):
            with contextlib.suppress(OpsError):
                must_have_files(path, read_manifest(path))
                whole.append(path)
    return whole


def as_numbers(version: str) -> tuple[int, ...]:
    """Return a version as numbers to compare; what follows the first three says nothing here."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def refuse_other_versions(manifest: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse a backup that the devpi of this server cannot run on.

    Raises:
        OpsError: It is from a newer devpi, or one with another kind of database.
    """
    if as_numbers(manifest["devpi_server"]) > as_numbers(here["version"]):
        raise OpsError(
            f"the backup was made by devpi-server {manifest['devpi_server']}, and this server has {here['version']}: "
            "move it to that version or a newer one first, with playbooks/upgrade.yml of a lanmirror that pins it"
        )
    if manifest["database"].split(".")[0] != here["database"]:
        raise OpsError(
            f"the backup has a database of version {manifest['database']}, and devpi-server {here['version']} of this "
            f"server needs {here['database']}: restore it on a server with devpi-server {manifest['devpi_server']}, "
            "and upgrade that with playbooks/upgrade.yml"
        )


def unpack(tar: Path, folder: Path) -> None:
    """Take a backup out of one file; a member that would leave the folder is not taken.

    Raises:
        OpsError: It is no such file.
    """
    need_room(folder.parent, tar.stat().st_size, "unpacking the backup")
    folder.mkdir(mode=0o700)
    try:
        with tarfile.open(tar) as archive:
            for member in archive:
                if member.isfile() and (member.name == MANIFEST or safe(member.name)):
                    target = folder / member.name
                    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    stream = archive.extractfile(member)
                    if stream is not None:
                        with target.open("xb") as out:
                            shutil.copyfileobj(stream, out, 1 << 20)
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, FileExistsError, NotADirectoryError) as error:
        raise OpsError(f"{tar} is no backup, or was cut short ({error}): take another one") from error


@contextlib.contextmanager
def opened(source: Path, beside: Path) -> Iterator[Path]:
    """Give the folder of a backup, which may come as one file."""
    if source.is_dir():
        yield source
        return
    if not source.is_file():
        raise OpsError(f"there is no backup {source} on this server: name a folder devpi-… or a .tar of one")
    beside.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = beside / ".unpacked"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        unpack(source, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def pack(folder: Path, tar: Path, venv: Path) -> None:
    """Make one file of a backup that is whole; it gets its name when all of it is there."""
    names = [MANIFEST, *verify(folder, venv)["files"]]
    need_room(tar.parent, sum((folder / name).stat().st_size for name in names), "packing the backup")
    new = tar.with_name(f"{tar.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    try:
        with tarfile.open(new, "w") as archive:
            for name in names:
                archive.add(folder / name, name, recursive=False)
        new.replace(tar)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
