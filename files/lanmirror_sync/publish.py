"""From a settled plan to what is served: every format of an index, in the order that keeps the mirror closed.

Packages to the disk, then the index that names them, and deletions last and late. Where the upstream changed
the bytes of a file under its old name, the index is first rendered without that name, then the bytes are put
in place, then the index is rendered whole: there is no instant at which it names other bytes than are served.
"""

from __future__ import annotations

import filecmp
import logging
import os
import shutil
import time
from collections.abc import Collection, Set
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from lanmirror_sync import formats, repodata
from lanmirror_sync.mirror import Mirror
from lanmirror_sync.repodata import Index, RepodataError
from lanmirror_sync.shards import RECIPE as SHARD_RECIPE
from lanmirror_sync.shards import SUFFIX as SHARD_SUFFIX
from lanmirror_sync.sinks import Landed
from lanmirror_sync.store import Store, cores
from lanmirror_sync.upstream import PLAIN, unpack

log = logging.getLogger(__name__)


NOTHING = Index({}, {}, {})
# What stands for the folder itself among `stamps`.
FOLDER = "."
# How the formats are made: a subdir that another version rendered is rendered anew.
RECIPE = f"3, shards {SHARD_RECIPE}"


@dataclass(frozen=True)
class Content:
    """What is to be served of a subdir.

    Attributes:
        index: the upstream's.
        leave_out: file names that are not served.
        former: records that stand in for those of packages whose new bytes could not be had.
        current: the upstream's `current_repodata.json`; see `formats.render`.
        run_exports: the upstream's `run_exports.json`; likewise.
        bz2: whether the index is served in this form too.
    """

    index: Index
    leave_out: Set[str] = frozenset()
    former: Index = NOTHING
    current: bytes | None = None
    run_exports: bytes | None = None
    bz2: bool = False


@dataclass(frozen=True)
class Edition:
    """The index of a subdir in every format, made beside what is served.

    Attributes:
        content: what it was made of.
        folder: where the files are.
        rendered: which they are.
    """

    content: Content
    folder: Path
    rendered: formats.Rendered


class Publisher:
    """Puts indexes in place."""

    def __init__(self, mirror: Mirror) -> None:
        self._store = mirror.store
        self._memory = mirror.memory

    def discard_made(self) -> None:
        """Remove what a killed run made and did not publish."""
        shutil.rmtree(self._store.publishing, ignore_errors=True)

    def publish(
        self,
        path: PurePosixPath,
        content: Content,
        replace: Collection[str] = (),
        ahead: Edition | None = None,
        drop: Collection[str] = (),
    ) -> None:
        """Serve what is to be served of a subdir.

        Args:
            path: the subdir.
            content: what.
            replace: file names whose new bytes wait in the staging folder.
            ahead: what `make` made since the subdir was last published; used where it is of the same content.
            drop: file names that stand there with other bytes than the index says, and are deleted.
        """
        if replace or drop:
            self._put(path, self.make(path, content, withheld={*replace, *drop}))
            for name in replace:
                self._store.move(self._store.staged_path(path / name), self._store.path(path / name))
            for name in drop:
                self._store.remove(path / name)
            ahead = None
        self._put(path, ahead if ahead and ahead.content == content else self.make(path, content))

    def make(self, path: PurePosixPath, content: Content, withheld: Collection[str] = ()) -> Edition:
        """Make every format beside what is served."""
        folder = self._store.publishing_path(path)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        subdir = self._store.path(path)
        subdir.mkdir(parents=True, exist_ok=True)
        memo_file = self._store.made_path(path)
        rendered = formats.render(
            content.index,
            folder,
            arch=path.name,
            keep=lambda name: name not in content.leave_out and name not in withheld,
            former=content.former,
            current=content.current,
            run_exports=content.run_exports,
            bz2=content.bz2,
            memo=formats.Memo.decode(memo_file.read_bytes()) if memo_file.exists() else None,
            served=subdir,
            present={file.name for file in os.scandir(subdir) if file.name.endswith(SHARD_SUFFIX)},
            now=time.time(),
            threads=cores(),
        )
        log.debug("%s: %s", path, ", ".join(f"{name} {spent:.1f} s" for name, spent in rendered.seconds.items()))
        return Edition(content, folder, rendered)

    def _put(self, path: PurePosixPath, edition: Edition) -> None:
        """Put every format in its place."""
        folder, rendered, subdir = edition.folder, edition.rendered, self._store.path(path)
        # One flush for all: the packages that the index names, and the index itself.
        self._store.flush_all()
        self._memory.flushed()
        for name in rendered.files:
            made, there = folder / name, subdir / name
            if not _same(made, there):
                self._store.move(made, there)
        self._store.flush(subdir)
        self._store.write_file(self._store.made_path(path), rendered.memo.encode())
        for name in (*rendered.obsolete, *rendered.expired):
            self._store.remove(path / name)
        shutil.rmtree(folder, ignore_errors=True)

    def former(self, path: PurePosixPath, lost: Collection[str]) -> Index:
        """Return the served records of packages, as far as the bytes they describe are here."""
        served = self.served(path, only=lost) if lost else None
        if served is None:
            return NOTHING
        verified = {name: digest for name, _, _, digest in self._memory.verified(str(path)) if name in lost}
        return served.pick(
            {name for name, package in served.packages.items() if verified.get(name) == bytes.fromhex(package.digest)}
        )

    def restrict(self, path: PurePosixPath, index: Index, leave_out: Set[str]) -> None:
        """Serve what is served, without some of it.

        Args:
            path: the subdir.
            index: what is served.
            leave_out: file names that are not to be named any more.
        """
        beside = {}
        for name in ("current_repodata.json", "run_exports.json"):
            file = self._store.path(path / name)
            beside[name] = file.read_bytes() if file.exists() else None
        content = Content(
            index, frozenset(leave_out), current=beside["current_repodata.json"],
            run_exports=beside["run_exports.json"], bz2=self._store.path(path / "repodata.json.bz2").exists(),
        )  # fmt: skip
        try:
            self.publish(path, content)
        except RepodataError as error:
            log.warning("%s: %s; it is served without", path, error)
            self.publish(path, replace(content, current=None, run_exports=None))

    def land(self, path: PurePosixPath, kept: Kept, name: str, landed: Landed) -> bool:
        """Put a package that waits in the staging folder where it is served; return whether it is to be there.

        It is not where a later index names other bytes, or none: the next sync sees to that.
        """
        staged = self._store.staged_path(path / name)
        with self._store.alone(path):
            wanted = kept.names(name, landed.digest)
            if wanted:
                self._store.move(staged, self._store.path(path / name))
            else:
                staged.unlink()
        return wanted

    def served(self, path: PurePosixPath, only: Collection[str] | None = None) -> Index | None:
        """Return the index that is served, or a few of its packages; None where there is none, or it is damaged."""
        file = self._store.path(path / "repodata.json")
        try:
            return repodata.parse(file.read_bytes(), only)
        except FileNotFoundError:
            return None
        except RepodataError as error:
            log.warning("%s: %s; it is made anew", file, error)
            return None


class Kept:
    """The upstream's index of a subdir that is kept, which another run may put a later one in the place of.

    Until then it is taken to name whatever is asked about.
    """

    def __init__(self, store: Store, path: PurePosixPath) -> None:
        self._file = store.index_path(path)
        self._stamp = self._look()
        self._digests: dict[str, str] | None = None

    def names(self, name: str, digest: str) -> bool:
        """Tell whether it names a file with this hash (lower-case hexadecimal); to be asked with the subdir alone."""
        if self._look() != self._stamp:
            self._stamp = self._look()
            index = repodata.parse(unpack(self._file.read_bytes(), PLAIN))
            self._digests = {package.file_name: package.digest for package in index.packages.values()}
        return self._digests is None or self._digests.get(name) == digest

    def _look(self) -> tuple[int, ...]:
        status = self._file.stat()
        return status.st_ino, status.st_mtime_ns, status.st_size


def stamps(store: Store, path: PurePosixPath) -> dict[str, list[int]]:
    """Return what tells whether a subdir is as this program left it: of the folder and of each index file.

    The time of the folder tells of every file that came, went, or was put in another's place.
    """
    folder = store.path(path)
    found = {}
    for file in (folder, *(folder / name for name in formats.INDEX_FILES)):
        try:
            status = file.stat()
        except FileNotFoundError:
            continue
        found[file.name if file != folder else FOLDER] = [status.st_size, status.st_mtime_ns]
    return found


def _same(made: Path, there: Path) -> bool:
    """Tell whether a file has the same bytes already: then clients' copies of it stay good."""
    return there.is_file() and filecmp.cmp(made, there, shallow=False)
