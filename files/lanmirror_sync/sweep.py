"""What goes: packages that no index names any longer, and what was taken out of the configuration."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from lanmirror_sync import formats, installers
from lanmirror_sync.config import KNOWN_ARCHES, Options
from lanmirror_sync.memory import SUBDIR
from lanmirror_sync.mirror import Mirror
from lanmirror_sync.plan import due, leaving
from lanmirror_sync.report import Report
from lanmirror_sync.store import ARRIVING

# Under these, in place of a folder, it is remembered since when something is not configured any more: what is served,
# and the files of a subdir whose index is gone.
RETIRED, RETIRED_FILES = ".retired", ".retired-files"
# Channels stand at most so deep below `cloud`: `conda-forge/label/x`.
DEEPEST = 6
# What a killed run left half-fetched is kept for the next ones, but not for ever.
PARTIAL_DAYS = 7
# How the folders begin in which keep-sets are solved.
SOLVING = "solve-"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retired:
    """A folder that this program filled, and that is not configured any more.

    Attributes:
        index: whether it has an index, which is served still.
        files: how many other files there are.
        size: of all of them in bytes.
    """

    path: PurePosixPath
    index: bool
    files: int
    size: int


def retired(mirror: Mirror) -> Iterator[Retired]:
    """Yield the folders that are here and not configured any more: subdirs, and folders of installers."""
    config, store = mirror.config, mirror.store
    wanted = {subdir.path for subdir in config.subdirs()}
    for path in sorted(_subdirs(store.root)):
        if path not in wanted and store.made_path(path).exists():
            yield _retired(mirror, path)
    for dist in sorted(installers.dists_held(mirror) - set(config.folders)):
        path = PurePosixPath(dist)
        if store.path(path).is_dir():
            yield _retired(mirror, path)


def _retired(mirror: Mirror, path: PurePosixPath) -> Retired:
    found = {name: size for name, size, _ in mirror.store.files(path)}
    index = [name for name in formats.INDEX_FILES if name in found]
    return Retired(path, bool(index), len(found) - len(index), sum(found.values()))


def _subdirs(root: Path) -> Iterator[PurePosixPath]:
    """Yield the folders that may be subdirs of channels; those of packages are not looked into."""
    todo = [PurePosixPath("pkgs"), PurePosixPath("cloud")]
    while todo:
        folder = todo.pop()
        try:
            entries = [
                entry for entry in (root / folder).iterdir() if not entry.name.startswith(".") and entry.is_dir()
            ]
        except OSError:
            continue
        for entry in entries:
            path = folder / entry.name
            if entry.name in KNOWN_ARCHES:
                yield path
            elif len(path.parts) < DEEPEST:
                todo.append(path)


class Sweeper:
    """Deletes what is due, where the command line says so; else it only remembers since when."""

    def __init__(self, mirror: Mirror, options: Options, report: Report) -> None:
        self._mirror = mirror
        self._options = options
        self._report = report

    def packages(self, path: PurePosixPath, orphans: Iterable[str], unwanted: Set[str], total: int) -> Sequence[str]:
        """Start the grace of packages that no index names any longer; delete those whose grace is over.

        Args:
            path: the subdir.
            orphans: files that no index names.
            unwanted: of these, the ones that the administrator took out: they are no sign of a fault of the upstream.
            total: how many files there are.

        Returns:
            What was deleted.
        """
        gone: list[str] = []
        config, memory, folder = self._mirror.config, self._mirror.memory, str(path)
        since, expired = due(memory.orphans(folder), orphans, time.time(), config.delete_grace_hours)
        if self._options.delete:
            gone, stay = leaving(expired, unwanted, total, config.max_delete)
            if stay:
                self._report.fail(
                    folder,
                    f"{path}: {len(stay)} of {total} packages would be deleted at once, more than max_delete "
                    f"({config.max_delete:g} %) allows, and none is; if the upstream is right, "
                    "run once with --delete --max-delete 100",
                )
            self._delete(path, gone, since)
        memory.orphan(folder, since)
        return gone

    def _delete(self, path: PurePosixPath, names: Collection[str], since: dict[str, float]) -> None:
        if not names:
            return
        for name in names:
            self._report.deleted += self._mirror.store.remove(path / name)
            del since[name]
        self._mirror.memory.forget(str(path), names)
        log.info("%s: deleted %d files that are not to be served any longer", path, len(names))

    def retired(self) -> None:
        """See to what was taken out of the configuration: named now, deleted after its grace.

        First the index goes, and after a grace of its own what it named, since clients may still have the index.
        """
        found = [item for item in retired(self._mirror) if fnmatchcase(str(item.path), self._options.only)]
        former = self._due(RETIRED, {str(item.path): item for item in found if item.index or not _is_subdir(item.path)})
        for item in former:
            if item.index:
                self._delete_index(item.path)
            else:
                self._delete_folder(item.path)
        rest = [item for item in found if _is_subdir(item.path) and (not item.index or item in former)]
        for item in self._due(RETIRED_FILES, {str(item.path): item for item in rest}):
            self._delete_folder(item.path)

    def _due(self, key: str, found: dict[str, Retired]) -> list[Retired]:
        """Return what has had its grace, and remember of the rest since when it has it."""
        memory, grace = self._mirror.memory, self._mirror.config.delete_grace_hours
        others = {path: since for path, since in memory.orphans(key).items()
                  if not fnmatchcase(path, self._options.only)}  # fmt: skip
        since, expired = due(memory.orphans(key), found, time.time(), grace)
        if key == RETIRED:
            for path in found:
                when = time.strftime("%Y-%m-%d %H:%M", time.localtime(since[path] + grace * 3600))
                log.warning(
                    "%s: is not configured any more; it is served until --delete takes it, from %s on", path, when
                )
        gone = expired if self._options.delete else ()
        memory.orphan(key, {**others, **{path: start for path, start in since.items() if path not in gone}})
        return [found[path] for path in gone]

    def _delete_index(self, path: PurePosixPath) -> None:
        store = self._mirror.store
        names = {name for name, _, _ in store.files(path)}
        for name in formats.INDEX_FILES:
            if name in names:
                self._report.deleted += store.remove(path / name)
        store.flush(store.path(path))
        log.info("%s: its index is not served any more", path)

    def _delete_folder(self, path: PurePosixPath) -> None:
        """Delete the files of a folder, and the folder where nothing else is in it; forget what is known of it."""
        store, memory, folder = self._mirror.store, self._mirror.memory, str(path)
        count = 0
        for name, _, _ in store.files(path):
            count += store.remove(path / name)
        self._report.deleted += count
        for parent in (path, *path.parents):
            try:
                store.path(parent).rmdir()
            except OSError:
                break
        for file in (store.index_path(path), store.made_path(path)):
            file.unlink(missing_ok=True)
        store.show_all_but(path, ())
        memory.forget_folder(folder)
        memory.drop(f"{SUBDIR}{folder}")
        installers.forget(self._mirror, folder)
        log.info("%s: deleted %d files, since it is not configured any more", path, count)

    def leftovers(self) -> None:
        """Remove what killed runs left, and plans, once it is old."""
        store, oldest = self._mirror.store, time.time() - PARTIAL_DAYS * 86400
        if store.planned.exists():
            from lanmirror_sync import planned  # noqa: PLC0415 - most have none

            planned.discard(store)
        for folder in store.state.glob(f"{SOLVING}*"):
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)
        for file in (*store.partial.iterdir(), *store.staged.iterdir()):
            if file.stat().st_mtime < oldest:
                file.unlink(missing_ok=True)
        for path in map(PurePosixPath, self._mirror.config.paths()):
            folder = store.path(path)
            if folder.is_dir() and folder.stat().st_dev != store.root.stat().st_dev:
                for file in folder.glob(f"{ARRIVING}*"):
                    file.unlink(missing_ok=True)


def _is_subdir(path: PurePosixPath) -> bool:
    return len(path.parts) > 1
