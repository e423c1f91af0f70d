"""A run: read the upstream's indexes, plan, fetch, publish, delete.

The order is what keeps the mirror closed whatever is killed (design, invariants 1 to 4): packages to the
disk, then the index that names them, and deletions last and late. Where the upstream changed the bytes of a
file under its old name, the index is first published without that name, then the bytes are put in place,
then the index is published whole: there is no instant at which it names other bytes than are served.
"""

from __future__ import annotations

import bz2
import errno
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import zstandard

from lanmirror_sync import installers, repodata
from lanmirror_sync.config import Config, Subdir
from lanmirror_sync.fetch import Expected, Fetcher, FetchError, MissingError, UnreachableError
from lanmirror_sync.plan import Plan, due, plan
from lanmirror_sync.repodata import Index, Package, RepodataError
from lanmirror_sync.store import Store, digest

GIB = 1 << 30
PACKAGE_SUFFIXES = (".conda", ".tar.bz2")
# What a killed run left half-fetched is kept for the next ones, but not for ever.
PARTIAL_DAYS = 7
DELETIONS = "deletions.json"
INSTALLERS = "installers.json"

log = logging.getLogger(__name__)


class NoRoomError(Exception):
    """The file system has too little room; nothing was begun."""


class Progress(Protocol):
    """Where a run tells how far it is."""

    def start(self, files: int, size: int) -> None:
        """So many files and bytes are to be fetched."""

    def received(self, size: int) -> None:
        """So many bytes came in."""

    def done(self) -> None:
        """One file is finished, well or not."""


@dataclass(frozen=True)
class Upstream:
    """What the upstream has of a subdir."""

    subdir: Subdir
    index: Index
    size: int
    current: Index | None
    has_bz2: bool


@dataclass
class Task:
    """A subdir on its way from the upstream's index to the served one."""

    upstream: Upstream
    served: Index | None
    plan: Plan
    pending: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)

    @property
    def path(self) -> PurePosixPath:
        """Where it stands below the working directory."""
        return self.upstream.subdir.path


@dataclass(frozen=True)
class InstallerTask:
    """An installer to fetch."""

    path: PurePosixPath
    url: str
    expected: Expected
    validator: str


@dataclass
class Report:
    """What a run did.

    Attributes:
        failures: what could not be had, and why.
        fetched: files that were fetched.
        deleted: files that were deleted.
        unreachable: subdirs whose index could not be asked for.
        asked: subdirs whose index was asked for.
    """

    failures: list[str] = field(default_factory=list)
    fetched: int = 0
    deleted: int = 0
    unreachable: list[PurePosixPath] = field(default_factory=list)
    asked: int = 0

    def fail(self, message: str) -> None:
        """Note a failure and log it at once."""
        self.failures.append(message)
        log.error("%s", message)


class Run:
    """One run over the configured subdirs and installers."""

    def __init__(self, config: Config, store: Store, fetcher: Fetcher, progress: Progress) -> None:
        self._config = config
        self._store = store
        self._fetcher = fetcher
        self._progress = progress
        self.report = Report()

    def plan(self, only: str = "*") -> tuple[Sequence[Task], Sequence[InstallerTask]]:
        """Ask the upstream and say what is to be fetched; write nothing that is served."""
        with ThreadPoolExecutor(self._config.jobs) as pool:
            tasks = [task for task in self._tasks(pool, only) if task]
            return tasks, self._installer_tasks(pool, only)

    def sync(self, only: str = "*", *, delete: bool = False) -> None:
        """Bring the mirror up to the upstream.

        Args:
            only: a pattern, as in `fnmatch`, of the paths to work on, for example `pkgs/main/*`.
            delete: whether files that no index has named for the time of grace are deleted.

        Raises:
            UnreachableError: no index could be asked for; nothing was changed.
            NoRoomError: what is to be fetched does not fit; nothing was changed.
        """
        with ThreadPoolExecutor(self._config.jobs) as pool:
            try:
                tasks = self._tasks(pool, only)
                if self.report.asked and len(self.report.unreachable) == self.report.asked:
                    raise UnreachableError("no index of the upstream can be reached; nothing was changed")
                downloads = self._installer_tasks(pool, only)
                self._check_room(tasks, downloads)
                self._fetch(pool, tasks, downloads)
            except BaseException:
                self._fetcher.stop()
                pool.shutdown(cancel_futures=True)
                raise
        self._publish_empty_noarch(tasks)
        self._delete([task for task in tasks if not task.pending], delete=delete)
        self._forget_old_partials()

    # ---- what the upstream has -------------------------------------------------------------------------

    def _tasks(self, pool: ThreadPoolExecutor, only: str) -> list[Task]:
        """Read every subdir's index from the upstream and compare it with what is held."""
        subdirs = [subdir for subdir in self._config.subdirs() if fnmatchcase(str(subdir.path), only)]
        found = list(pool.map(self._read_upstream, subdirs))
        self.report.asked = len(subdirs)
        tasks = []
        for upstream in found:
            if upstream is None:
                continue
            served = self._read_served(upstream.subdir.path)
            if served and served.packages and not upstream.index.packages:
                self.report.fail(
                    f"{upstream.subdir.path}: the upstream's index names no package any more; ours is kept"
                )
                continue
            for name, reason in upstream.index.refused.items():
                self.report.fail(f"{upstream.subdir.path}: {name!r} is refused: {reason}")
            files = self._store.files(upstream.subdir.path)
            rough = plan(upstream.index, served, files, self._config.exclude)
            named = served.packages if served else {}
            tasks.append(Task(upstream, served, self._resolve(pool, upstream.subdir.path, rough, named)))
        return tasks

    def _read_upstream(self, subdir: Subdir) -> Upstream | None:
        """Return what the upstream has of a subdir; None, with a failure noted, where it cannot be used."""
        problems: list[str] = []
        try:
            for name in ("repodata.json.zst", "repodata.json"):
                try:
                    data = self._fetcher.get(f"{subdir.url}/{name}")
                    index = repodata.parse(data)
                except MissingError:
                    continue
                except RepodataError as error:
                    problems.append(f"{subdir.url}/{name}: {error}")
                    continue
                except UnreachableError:
                    raise
                except FetchError as error:
                    problems.append(str(error))
                    continue
                return Upstream(
                    subdir, index, len(data), self._read_current(subdir),
                    has_bz2=self._fetcher.head(f"{subdir.url}/repodata.json.bz2") is not None,
                )  # fmt: skip
        except FetchError as error:
            if isinstance(error, UnreachableError):
                self.report.unreachable.append(subdir.path)
            problems.append(str(error))
        if problems:
            self.report.fail(f"{subdir.path}: no index can be used, ours is kept: {'; '.join(problems)}")
        elif (served := self._read_served(subdir.path)) and served.packages:
            self.report.fail(f"{subdir.path}: the upstream does not have it any more; ours is kept")
        else:
            log.info("%s: the upstream does not have it", subdir.path)
        return None

    def _read_current(self, subdir: Subdir) -> Index | None:
        url = f"{subdir.url}/current_repodata.json"
        try:
            return repodata.parse(self._fetcher.get(url))
        except MissingError:
            return None
        except RepodataError as error:
            log.warning("%s: %s; it is not published", url, error)
            return None

    def _read_served(self, path: PurePosixPath) -> Index | None:
        """Return the index that is served, None where there is none or it is damaged."""
        file = self._store.path(path / "repodata.json")
        try:
            return repodata.parse(file.read_bytes())
        except FileNotFoundError:
            return None
        except RepodataError as error:
            log.warning("%s: %s; it is made anew", file, error)
            return None

    def _resolve(self, pool: ThreadPoolExecutor, path: PurePosixPath, rough: Plan, named: Collection[str]) -> Plan:
        """Hash the files that no served index vouches for, such as those of a run that was killed."""

        def right(package: Package) -> bool:
            return digest(self._store.path(path / package.file_name), package.algorithm) == package.digest

        verdicts = list(zip(rough.check, pool.map(right, rough.check), strict=True))
        held = (*rough.held, *(package for package, good in verdicts if good))
        wrong = [package for package, good in verdicts if not good]
        fetch = (*rough.fetch, *(package for package in wrong if package.file_name not in named))
        replace = (*rough.replace, *(package for package in wrong if package.file_name in named))
        return Plan(held, (), fetch, replace, rough.excluded)

    def _installer_tasks(self, pool: ThreadPoolExecutor, only: str) -> list[InstallerTask]:
        """Read the installer pages and say what is not held."""
        tasks: list[InstallerTask] = []
        for dist in self._config.dists if self._config.suffixes else ():
            if not fnmatchcase(dist, only):
                continue
            url = f"{self._config.upstream_repo}/{dist}/"
            try:
                listed = installers.parse(self._fetcher.get(url), self._config.suffixes)
                if not listed:
                    self.report.fail(f"{dist}: {url} lists no file that ends in one of {list(self._config.suffixes)}")
                found = pool.map(lambda item, dist=dist: self._installer_task(dist, item), listed)
                tasks += [task for task in found if task]
            except FetchError as error:
                self.report.fail(f"{dist}: the installer page cannot be had: {error}")
        return tasks

    def _installer_task(self, dist: str, item: installers.Installer) -> InstallerTask | None:
        """Return what is to be done for an installer; None where it is held."""
        path = PurePosixPath(dist, item.file_name)
        url = f"{self._config.upstream_repo}/{dist}/{item.file_name}"
        head = self._fetcher.head(url)
        if head is None:
            self.report.fail(f"{path}: its page lists it, the upstream does not have it")
            return None
        file = self._store.path(path)
        known = self._store.load(INSTALLERS).get(str(path), {})
        if file.exists():
            status = file.stat()
            untouched = known.get("size") == status.st_size and known.get("mtime_ns") == status.st_mtime_ns
            if item.digest:
                same = (
                    known.get(item.algorithm) == item.digest
                    if untouched
                    else digest(file, item.algorithm) == item.digest
                )
            else:
                same = untouched and known.get("validator") == head.validator and head.size == status.st_size
            if same:
                return None
        return InstallerTask(path, url, Expected(head.size, item.algorithm, item.digest), head.validator)

    # ---- from there to here ----------------------------------------------------------------------------

    def _check_room(self, tasks: Iterable[Task], downloads: Iterable[InstallerTask]) -> None:
        """Refuse to begin what cannot end: packages, and each index in all its formats, twice."""
        need = sum(task.plan.download_bytes + 3 * task.upstream.size for task in tasks)
        need += sum(task.expected.size or 0 for task in downloads)
        need -= sum(file.stat().st_size for file in self._store.partial.iterdir())
        spare = self._store.free_bytes() - int(self._config.min_free_gib * GIB)
        if need > max(spare, 0):
            raise NoRoomError(
                f"{self._store.root}: {need / GIB:.2f} GiB are needed, {max(spare, 0) / GIB:.2f} GiB are free beyond "
                f"min_free_gib ({self._config.min_free_gib}); make room, or mirror less (repos, arches, cloud, exclude)"
            )

    def _fetch(self, pool: ThreadPoolExecutor, tasks: Sequence[Task], downloads: Sequence[InstallerTask]) -> None:
        """Fetch everything, and publish each subdir as soon as all of its packages are settled."""
        for task in tasks:
            task.pending = {package.file_name for package in (*task.plan.fetch, *task.plan.replace)}
        files = sum(len(task.pending) for task in tasks) + len(downloads)
        size = sum(task.plan.download_bytes for task in tasks) + sum(task.expected.size or 0 for task in downloads)
        self._progress.start(files, size)
        jobs: dict[Future[Any], tuple[Task | None, PurePosixPath]] = {}
        for task in tasks:
            for package in task.plan.fetch:
                jobs[pool.submit(self._fetch_package, task, package)] = (task, task.path / package.file_name)
            for package in task.plan.replace:
                jobs[pool.submit(self._stage_package, task, package)] = (task, task.path / package.file_name)
        for download in downloads:
            jobs[pool.submit(self._fetch_installer, download)] = (None, download.path)

        for task in tasks:
            if not task.pending:
                self._publish(task)
        for future in as_completed(jobs):
            owner, path = jobs.pop(future)
            self._progress.done()
            self._settle(future, owner, path)
            if owner and not owner.pending:
                self._publish(owner)

    def _settle(self, future: Future[Any], owner: Task | None, path: PurePosixPath) -> None:
        """Note how a download ended."""
        try:
            remembered = future.result()
        except FetchError as error:
            self.report.fail(f"{path}: {error}")
            if owner:
                owner.failed.add(path.name)
        else:
            self.report.fetched += 1
            if owner is None:
                self._store.save(INSTALLERS, {**self._store.load(INSTALLERS), str(path): remembered})
        if owner:
            owner.pending.discard(path.name)

    def _download(self, url: str, expected: Expected, path: PurePosixPath) -> Path:
        """Fetch verified bytes to a partial file and return it."""
        partial = self._store.partial_path(path, expected.digest)
        try:
            self._fetcher.download(url, expected, partial)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._fetcher.stop()
                raise NoRoomError(
                    f"{self._store.root}: the disk filled up while {path} was fetched; what was served before is "
                    "served still, and the next run goes on from here"
                ) from error
            raise
        return partial

    def _fetch_package(self, task: Task, package: Package) -> None:
        path = task.path / package.file_name
        expected = Expected(package.size, package.algorithm, package.digest)
        self._store.move(self._download(f"{task.upstream.subdir.url}/{package.file_name}", expected, path), path)

    def _stage_package(self, task: Task, package: Package) -> None:
        """Fetch new bytes for a served name; they take its place when the index is published."""
        path = task.path / package.file_name
        staged = self._store.staged_path(path)
        if staged.exists() and digest(staged, package.algorithm) == package.digest:
            return
        expected = Expected(package.size, package.algorithm, package.digest)
        self._download(f"{task.upstream.subdir.url}/{package.file_name}", expected, path).replace(staged)

    def _fetch_installer(self, task: InstallerTask) -> dict[str, Any]:
        """Fetch an installer and return what is to be remembered of it."""
        partial = self._download(task.url, task.expected, task.path)
        entry = {"validator": task.validator, "sha256": digest(partial, "sha256"), "md5": digest(partial, "md5")}
        self._store.move(partial, task.path)
        status = self._store.path(task.path).stat()
        return {**entry, "size": status.st_size, "mtime_ns": status.st_mtime_ns}

    # ---- what is served --------------------------------------------------------------------------------

    def _publish(self, task: Task) -> None:
        """Serve the upstream's index, as far as its packages are here."""
        index, served = task.upstream.index, task.served
        held = {package.file_name for package in (*task.plan.held, *task.plan.fetch)} - task.failed
        replaced = {package.file_name for package in task.plan.replace} - task.failed
        # A package whose new bytes cannot be had keeps its former record: its former bytes are still here.
        lost = {package.file_name for package in task.plan.replace} & task.failed
        former = {name: served.record(name) for name in lost} if served else {}
        self._store.path(task.path).mkdir(parents=True, exist_ok=True)
        if replaced:
            self._store.flush_all()
            self._write_formats(task, repodata.encode(index, held.__contains__, former))
            for name in replaced:
                self._store.move(self._store.staged_path(task.path / name), task.path / name)
        self._store.flush_all()
        self._write_formats(task, repodata.encode(index, (held | replaced).__contains__, former))
        missing = len(task.failed) - len(former)
        log.info(
            "%s: published, %d packages%s%s", task.path, len(held) + len(replaced) + len(former),
            f", {len(task.plan.excluded)} excluded" if task.plan.excluded else "",
            f", {missing} left out because they could not be had" if missing else "",
        )  # fmt: skip

    def _write_formats(self, task: Task, data: bytes) -> None:
        """Write an index in every format the upstream has, all of them from the same bytes."""
        current = None
        if task.upstream.current is not None:
            current = repodata.subset(repodata.parse(data), task.upstream.current)
        formats: dict[str, Callable[[], bytes] | None] = {
            "repodata.json": lambda: data,
            "repodata.json.zst": lambda: zstandard.compress(data, 10),
            "repodata.json.bz2": (lambda: bz2.compress(data)) if task.upstream.has_bz2 else None,
            "current_repodata.json": (lambda: current) if current is not None else None,
            "current_repodata.json.zst": (lambda: zstandard.compress(current, 10)) if current is not None else None,
        }
        for name, make in formats.items():
            if make is None:
                self._store.remove(task.path / name)
            else:
                self._store.write(task.path / name, make())

    def _publish_empty_noarch(self, tasks: Iterable[Task]) -> None:
        """Serve an empty `noarch` where the upstream has none: conda fails on a channel without it (CEP 26)."""
        for channel in {task.upstream.subdir.channel for task in tasks}:
            path = channel / "noarch"
            if not self._store.path(path / "repodata.json").exists():
                data = repodata.empty("noarch")
                self._store.path(path).mkdir(parents=True, exist_ok=True)
                self._store.write(path / "repodata.json", data)
                self._store.write(path / "repodata.json.zst", zstandard.compress(data, 10))
                log.info("%s: published empty, the upstream has none", path)

    # ---- what goes ---------------------------------------------------------------------------------------

    def _delete(self, tasks: Iterable[Task], *, delete: bool) -> None:
        """Start the grace of packages that no index names any longer; delete those whose grace is over."""
        ledger = self._store.load(DELETIONS)
        orphans: list[str] = []
        looked_at = set()
        for task in tasks:
            looked_at.add(str(task.path))
            published = self._read_served(task.path)
            named = published.packages if published else {}
            orphans += [
                str(task.path / name)
                for name in self._store.files(task.path)
                if name.endswith(PACKAGE_SUFFIXES) and name not in named
            ]
        elsewhere = {path: since for path, since in ledger.items() if str(PurePosixPath(path).parent) not in looked_at}
        since, expired = due(ledger, orphans, time.time(), self._config.delete_grace_hours)
        if delete:
            for path in expired:
                self.report.deleted += self._store.remove(PurePosixPath(path))
                del since[path]
            for folder, count in Counter(str(PurePosixPath(path).parent) for path in expired).items():
                log.info("%s: deleted %d packages that no index names any longer", folder, count)
        self._store.save(DELETIONS, {**elsewhere, **since})

    def _forget_old_partials(self) -> None:
        oldest = time.time() - PARTIAL_DAYS * 86400
        for file in (*self._store.partial.iterdir(), *self._store.staged.iterdir()):
            if file.stat().st_mtime < oldest:
                file.unlink()
