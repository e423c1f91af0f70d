"""Files: written, copied and linked so that whoever reads them finds the old one or the new one."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from . import OpsError
from .settings import MIB

# Room left over on the disk, bytes.
RESERVE = 64 << 20


def write(path: Path, text: str, mode: int, *, durable: bool = False) -> None:
    """Replace a file at once, `durable` so that a power cut leaves the old one or the new one as well."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as stream:
        # Whatever the umask is.
        os.fchmod(stream.fileno(), mode)
        stream.write(text)
        stream.flush()
        if durable:
            os.fsync(stream.fileno())
    new.replace(path)
    if durable:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def copy(source: Path, target: Path) -> None:
    """Copy a file with its mode, times and owner, so that the target is the old one or the new one."""
    new = target.with_name(f"{target.name}.new")
    new.unlink(missing_ok=True)
    shutil.copy2(source, new, follow_symlinks=False)
    status = source.lstat()
    os.chown(new, status.st_uid, status.st_gid, follow_symlinks=False)
    new.replace(target)


def link(source: Path, target: Path) -> None:
    """Link a file that never changes, or copy it where its disk is another one.

    Raises:
        OpsError: The way there has a symbolic link after `+files`, which devpi does not make.
    """
    way = [part for part in (source, *source.parents) if "+files" in part.parts]
    if any(part.is_symlink() for part in way):
        raise OpsError(f"{source} is a symbolic link, or behind one, and none of devpi's: delete it")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)
        target.chmod(0o600)


def same_disk(one: Path, other: Path) -> bool:
    """Return whether files can be linked between two folders."""
    return one.stat().st_dev == other.stat().st_dev


def need_room(folder: Path, need: int, what: str) -> None:
    """Refuse when a disk has too little room, before anything is written there.

    Raises:
        OpsError: It has less than `need` bytes and a reserve.
    """
    free = shutil.disk_usage(folder).free
    if free < need + RESERVE:
        raise OpsError(
            f"{what} needs {(need + RESERVE) // MIB} MiB in {folder}, which has {free // MIB} MiB free: "
            "make room there, or take another disk (devpi_backup_dir, devpi_data_dir)"
        )
