"""Weigh what is stored, and keep the cached files of mirrors within their limit.

Those go first that nobody has asked for the longest. Our plugin (`lanmirror_devpi.keep`) fetches a mirror's file that
is gone again, checks its hash, and puts it back in place; what was uploaded could not be had again, and is never
touched. Neither are files below `+e/`: their upstream tells no hash, so devpi would refuse one that has changed.

What was asked for when is read from a log of Nginx', which sends stored files without devpi. The times of access that
file systems keep are no measure: they stand still with noatime, move once a day with relatime, and a backup moves them
all.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .asking import indexes
from .journal import NOTICE, WARNING, tell
from .known import Known
from .settings import GIB, Settings

# Below `+files`, where the plugin sets files aside.
HELD = "+held"


@dataclass(frozen=True)
class Stored:
    """A file that devpi has stored.

    Attributes:
        path: Of its URL, without the first slash.
        size: In bytes.
        written: When it was, seconds since the epoch.
        place: Where it is below `+files`, if that is not its path: the rules of its mirror hide it, or did.
    """

    path: str
    size: int
    written: float
    place: str = ""

    @property
    def subject(self) -> str:
        """What clients ask for: the metadata beside a wheel counts as the wheel (served.py)."""
        return self.path.removesuffix(".metadata")

    @property
    def checked(self) -> bool:
        """Whether devpi knows its hash from the upstream, and so takes the same bytes again."""
        return "/+f/" in self.path


def plan(
    files: Sequence[Stored], used: Mapping[str, float], *, limit: int, young: float, keep: bytes = b""
) -> list[Stored]:
    """Return the files to evict, in order, so that those of all mirrors together are within the limit.

    Args:
        files: All files of mirrors.
        used: When each was asked for last; one that is not in it counts from when it was written.
        limit: Bytes; 0 for none.
        young: Files written after this time stay.
        keep: Files whose path occurs in it stay: devpi's last change, see `last_change`.
    """
    over = sum(file.size for file in files) - limit
    if not limit:
        return []
    chosen = []
    for file in sorted(files, key=lambda file: (used.get(file.subject, file.written), file.path)):
        if over <= 0:
            break
        if file.checked and file.written < young and file.path.encode() not in keep:
            chosen.append(file)
            over -= file.size
    return chosen


def stored(folder: Path, root: Path) -> Iterator[Stored]:
    """Yield the files below a folder; not those that devpi is just writing, which it renames when they are whole."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from stored(Path(entry.path), root)
        elif entry.is_file(follow_symlinks=False) and not entry.name.endswith("-tmp"):
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat(follow_symlinks=False)
                # A restored backup has the old time of writing, and a new time of change.
                written = max(stat.st_mtime, stat.st_ctime)
                yield Stored(os.path.relpath(entry.path, root), stat.st_size, written)


def held(name: str, root: Path) -> Iterator[Stored]:
    """Yield the files of a mirror that are set aside (`lanmirror_devpi.held`), in numbered folders."""
    folder = root / HELD / name
    for file in stored(folder, folder):
        number, _, below = file.path.partition("/")
        yield replace(file, path=f"{name}/{below}", place=f"{HELD}/{name}/{number}/{below}")


def last_change(database: Path) -> bytes:
    """Return devpi's last change as it stands in its database, with the paths of the files that it wrote.

    devpi makes sure of these at each start (`keyfs.KeyFS.finalize_init`), and does not start when one is gone.
    """
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as db:
        row = db.execute("SELECT data FROM changelog ORDER BY serial DESC LIMIT 1").fetchone()
    return bytes(row[0]) if row else b""


def evict(settings: Settings) -> bool:
    """Weigh what is stored, and delete what is over the limit; return whether devpi could be asked."""
    known = Known(settings.state)
    known.read_log(settings.log)
    try:
        types = indexes(settings.url)
    except OSError as error:
        tell(WARNING, f"nothing is evicted: devpi does not say which indexes are mirrors ({error})")
        return False
    root = settings.data / "+files"
    sizes: dict[str, int] = {"mirror": 0, "stage": 0}
    mirrors: list[Stored] = []
    uploaded: set[str] = set()
    for name, kind in types.items():
        files = [*stored(root / name, root), *held(name, root)]
        sizes[kind] = sizes.get(kind, 0) + sum(file.size for file in files)
        if kind == "mirror":
            mirrors += files
        else:
            uploaded |= {file.subject for file in files}
    now = time.time()
    limit, young = settings.max_cached, now - settings.grace
    chosen = plan(mirrors, known.used(), limit=limit, young=young, keep=last_change(settings.database))
    for file in chosen:
        # One at a time, so that what is counted is what is gone.
        with known.change():
            (root / (file.place or file.path)).unlink(missing_ok=True)
            known.add({"evicted_files_total": 1, "evicted_bytes_total": file.size})
            known.set({"last_eviction_timestamp_seconds": now})
    left = sizes["mirror"] - sum(file.size for file in chosen)
    present = {file.path for file in mirrors} - {file.path for file in chosen}
    with known.change() as db:
        known.set(
            {
                "cached_bytes": left,
                "cached_files": len(present),
                "uploaded_bytes": sizes["stage"],
                "weighed_timestamp_seconds": now,
            }
        )
        subjects = uploaded | {file.subject for file in mirrors if file.path in present}
        forget = [(path,) for path, at in known.used().items() if path not in subjects and at < young]
        db.executemany("DELETE FROM used WHERE path = ?", forget)
    if chosen:
        freed = sizes["mirror"] - left
        tell(NOTICE, f"evicted {len(chosen)} files, {freed / GIB:.2f} GiB; {left / GIB:.2f} GiB stay")
    if limit and left > limit:
        tell(
            WARNING,
            f"cached files are {left / GIB:.2f} GiB, over their limit of {limit / GIB:.2f} GiB: the rest was just "
            "written, or has no hash",
        )
    return True
