"""The working directory: its lock, and files that appear whole or not at all.

Everything of this program's own stands in `.lanmirror/`, on the same file system as what is served, so that
a rename is atomic (POSIX `rename(2)`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath

STATE = ".lanmirror"
# What files are called while they arrive in a folder on another file system; such names are not served.
ARRIVING = ".lanmirror-"
# What says that the disk itself is full or broken, and not one file.
BROKEN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
SYNC_FILE_RANGE_WRITE = 2


class LockedError(Exception):
    """Another run holds the lock; the message names its process."""


class NoRoomError(Exception):
    """The file system has too little room; nothing was begun."""


# The kinds of runs, each of which has a lock of its own, and files of its own while it writes: one that fetches
# packages, and one that only refreshes indexes. And `watch` and `plan`, which have no lock.
PACKAGES, INDEXES, WATCH, PLAN = "", "-indexes", "-watch", "-plan"


class Store:
    """What is served, and what this program remembers of it.

    Args:
        root: the working directory.
        kind: of the run, `PACKAGES`, `INDEXES`, `WATCH` or `PLAN`.
    """

    def __init__(self, root: Path, kind: str = PACKAGES) -> None:
        self.root = root
        self._kind = kind
        self.state = root / STATE
        self.partial = self.state / "partial"
        self.staged = self.state / "staged"
        self.indexes = self.state / "indexes"
        self.planned = self.state / "planned"
        self.locks = self.state / "locks"
        self.publishing = self.state / f"publishing{kind}"
        self.public = self.state / "public"
        self.damaged = self.state / "damaged"
        self.memory_file = self.state / "memory.sqlite"
        # Of each file system that is known to hold a part of the mirror, a folder.
        self._disks: dict[int, Path] = {}
        self._excluded: set[str] = set()
        self._libc = ctypes.CDLL(None, use_errno=True)

    def create(self) -> None:
        """Make the folders of the state; raises OSError where that is not possible."""
        for folder in (self.partial, self.staged, self.indexes, self.public, self.damaged, self.locks):
            folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self, kind: str | None = None) -> Iterator[None]:
        """Hold the lock of a kind of run; the kernel lets go of it when the process dies.

        Args:
            kind: `PACKAGES` or `INDEXES`; this run's own where it is left out.

        Raises:
            LockedError: another run holds it.
        """
        with (self.state / f"lock{self._kind if kind is None else kind}").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise LockedError(
                    f"another run (process {file.read().strip() or 'unknown'}) holds {file.name}; this one does nothing"
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def holder(self, kind: str) -> tuple[int, float] | None:
        """Return which process holds the lock of a kind of run, and since when (Unix time, seconds); None for none.

        The lock is not touched: a run that begins just then would take it for held. Of processes of other users nothing
        is known.
        """
        lock = self.state / f"lock{kind}"
        try:
            process, since = int(lock.read_text()), lock.stat().st_mtime
            opened = list(Path(f"/proc/{process}/fd").iterdir())
        except (OSError, ValueError):
            return None
        for file in opened:
            with contextlib.suppress(OSError):
                if file.samefile(lock):
                    return process, since
        return None

    @contextlib.contextmanager
    def alone(self, what: PurePosixPath | str, *, wait: bool = True) -> Iterator[None]:
        """Keep runs of the other kind from something, a subdir for example, and wait until they are through with it.

        Who has it already goes on. The kernel lets go of it when the process dies.

        Raises:
            BlockingIOError: another run has it, and is not to be waited for.
        """
        key = hashlib.sha256(str(what).encode()).hexdigest()[:40]
        if key in self._excluded:
            yield
            return
        with (self.locks / key).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            self._excluded.add(key)
            try:
                yield
            finally:
                self._excluded.discard(key)

    def path(self, relative: PurePosixPath | str) -> Path:
        """Return where a path below the working directory stands."""
        return self.root / relative

    def partial_path(self, relative: PurePosixPath, digest: str) -> Path:
        """Return where a download of `relative` is collected; other bytes, other name."""
        key = hashlib.sha256(f"{relative}\0{digest}".encode()).hexdigest()[:40]
        return self.partial / key

    def staged_path(self, relative: PurePosixPath) -> Path:
        """Return where new bytes wait that will stand in for a served file of the same name."""
        return self.staged / hashlib.sha256(str(relative).encode()).hexdigest()[:40]

    def files(self, folder: PurePosixPath, suffixes: tuple[str, ...] = ("",)) -> Iterator[tuple[str, int, int]]:
        """Yield name, size in bytes and mtime in nanoseconds of the files of a folder; none where it is not there.

        Args:
            folder: below the working directory.
            suffixes: what the names end with; a large subdir has thirty thousand shards that not everybody asks about.
        """
        with contextlib.suppress(FileNotFoundError), os.scandir(self.path(folder)) as entries:
            for entry in entries:
                if entry.name.endswith(suffixes) and entry.is_file(follow_symlinks=False):
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:  # another run deleted it
                        continue
                    yield entry.name, status.st_size, status.st_mtime_ns

    def index_path(self, relative: PurePosixPath) -> Path:
        """Return where the index of a subdir is kept as the upstream sent it."""
        return self.indexes / hashlib.sha256(str(relative).encode()).hexdigest()[:40]

    def planned_path(self, relative: PurePosixPath) -> Path:
        """Return where the index of a subdir is kept that a plan has read."""
        return self.planned / self.index_path(relative).name

    def made_path(self, relative: PurePosixPath) -> Path:
        """Return where it is remembered what the served files of a subdir were made of."""
        return self.index_path(relative).with_suffix(".made")

    def publishing_path(self, relative: PurePosixPath) -> Path:
        """Return where the index of a subdir is made before it is published."""
        return self.publishing / self.index_path(relative).name

    def hidden_path(self, relative: PurePosixPath) -> Path:
        """Return the folder in which each file of a subdir that rules hide has one of its name, which says why."""
        return self.public / "hidden" / relative

    def show_all_but(self, relative: PurePosixPath, told: Collection[str]) -> None:
        """Have the web server give the files of a subdir that were hidden, but for these."""
        folder = self.hidden_path(relative)
        with contextlib.suppress(FileNotFoundError):
            for file in folder.iterdir():
                if file.name not in told:
                    file.unlink()
            if not told:
                folder.rmdir()

    def hide(self, relative: PurePosixPath, told: Mapping[str, str]) -> None:
        """Have the web server refuse files of a subdir, each with the text that says why."""
        folder = self.hidden_path(relative)
        if told:
            folder.mkdir(parents=True, exist_ok=True)
        for name, text in told.items():
            file = folder / name
            if not (file.exists() and file.read_text() == f"{text}\n"):
                file.write_text(f"{text}\n")
                file.chmod(0o644)

    def disk(self, relative: PurePosixPath) -> int:
        """Return the number of the file system that a path is on, or will be."""
        folder = self.there(relative)
        number = folder.stat().st_dev
        self._disks.setdefault(number, folder)
        return number

    def there(self, relative: PurePosixPath) -> Path:
        """Return the nearest folder of a path that is there."""
        path = self.path(relative)
        while not path.is_dir():
            path = path.parent
        return path

    def move(self, source: Path, target: Path) -> None:
        """Put a finished file in its place; the folder is there."""
        source.chmod(0o644)
        put(source, target)

    def write_file(self, target: Path, data: bytes, *, durable: bool = True) -> None:
        """Write a file of the program's own whole: beside first, if `durable` to the disk, then under its name."""
        temporary = self.state / f"writing{self._kind}"
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.chmod(0o644)
        put(temporary, target)

    def remove(self, relative: PurePosixPath) -> bool:
        """Delete a file; return whether it was there."""
        try:
            self.path(relative).unlink()
        except FileNotFoundError:
            return False
        return True

    def flush(self, folder: Path) -> None:
        """Bring the names of a folder to the disk, so that a power cut keeps the order of renames."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def begin_flush(self, file: Path) -> None:
        """Have the kernel begin to bring a file to the disk, so that `flush_all` finds little left to wait for.

        Source: sync_file_range(2), of which nothing is relied on.
        """
        descriptor = os.open(file, os.O_RDONLY)
        try:
            self._libc.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), SYNC_FILE_RANGE_WRITE)
        finally:
            os.close(descriptor)

    def flush_all(self) -> None:
        """Bring everything written so far to the disk: once for a subdir, instead of once for each package."""
        self.disk(PurePosixPath())
        for folder in self._disks.values():
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if self._libc.syncfs(descriptor) != 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
            finally:
                os.close(descriptor)


def put(source: Path, target: Path) -> None:
    """Move a finished file to its place, in one step there: also to another file system (`rename(2)`, EXDEV).

    A channel may stand on a disk of its own behind a link, or behind a mount.
    """
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = target.with_name(f"{ARRIVING}{hashlib.sha256(target.name.encode()).hexdigest()[:16]}")
        shutil.copy2(source, beside)  # with its time, by which it is known
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(target)
        source.unlink()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def digest(path: Path, algorithm: str) -> str:
    """Return the hash of a file in lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hasher_of(algorithm)).hexdigest()


def hasher_of(algorithm: str) -> hashlib._Hash:
    """Return what hashes by `sha256` or `md5`; neither is here to keep a secret."""
    return hashlib.new(algorithm, usedforsecurity=False)
