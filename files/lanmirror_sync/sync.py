"""A run: ask for the upstream's indexes, plan, fetch, publish, delete.

Each subdir is published as soon as its own packages are settled, whatever the others wait for. One that is
complete, and whose index the upstream did not change, costs one conditional request.
"""

from __future__ import annotations

import errno
import functools
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urljoin

from lanmirror_sync import formats, repodata
from lanmirror_sync.config import Config, Subdir
from lanmirror_sync.fetch import BIG_BYTES, Done, Fetcher, FetchError, MissingError, UnreachableError, Validators
from lanmirror_sync.installers import Installers
from lanmirror_sync.memory import Memory, known_files
from lanmirror_sync.plan import Plan, due, plan, too_many
from lanmirror_sync.progress import GIB
from lanmirror_sync.publish import RECIPE, Content, Publisher, stamps
from lanmirror_sync.repodata import Index, Package, RepodataError
from lanmirror_sync.report import Progress, Report
from lanmirror_sync.shards import State
from lanmirror_sync.sinks import Download, Expected, Landed
from lanmirror_sync.store import Store, cores, digest
from lanmirror_sync.upstream import Candidate, Extra, Search, Sent, older, unpack

# What a killed run left half-fetched is kept for the next ones, but not for ever.
PARTIAL_DAYS = 7
# Parsed indexes of so many bytes are kept until they are published; further ones are read again.
KEPT_BYTES = 1 << 27
# What was verified is remembered for good at least so often, so that a killed run has little to hash again.
CHECKPOINT_SECONDS = 30.0
FACT = "subdir/"

log = logging.getLogger(__name__)


class NoRoomError(Exception):
    """The file system has too little room; nothing was begun."""


@dataclass
class Task:
    """A subdir on its way from the upstream's index to the served one.

    Attributes:
        index: None where it was put away, to be read again when it is published.
        size: of the unpacked index in bytes.
        pending: how many of its packages are not settled.
        failed: file name to the reason why a package could not be had.
        staged: new bytes of served names, verified, that wait for the index to be published.
    """

    subdir: Subdir
    sent: Sent
    index: Index | None
    size: int
    plan: Plan
    urls: tuple[str, ...]
    extras: Mapping[str, Extra]
    refused: Sequence[str]
    pending: int
    failed: dict[str, str] = field(default_factory=dict)
    staged: dict[str, Landed] = field(default_factory=dict)

    @property
    def path(self) -> PurePosixPath:
        """Where it stands below the working directory."""
        return self.subdir.path

    @functools.cached_property
    def replaced(self) -> frozenset[str]:
        """File names that are there with other bytes."""
        return frozenset(package.file_name for package in self.plan.replace)


class Run:
    """One run over the configured subdirs and installers."""

    def __init__(
        self, config: Config, store: Store, memory: Memory, fetcher: Fetcher, progress: Progress, *, dry: bool = False
    ) -> None:
        self._config = config
        self._store = store
        self._memory = memory
        self._fetcher = fetcher
        self._progress = progress
        self._dry = dry
        self._delete = False
        self._accept_older = False
        self._kept = 0
        self._checkpoint_due = time.monotonic() + CHECKPOINT_SECONDS
        self._landed: dict[str, list[tuple[str, int, int, bytes]]] = {}
        self._publisher = Publisher(store, memory)
        self._installers: Installers
        self.report = Report()

    def plan(self, only: str = "*") -> tuple[Sequence[Task], Sequence[Download]]:
        """Ask the upstream and say what is to be fetched; write nothing that is served."""
        tasks = list(self._look(only))
        return tasks, list(self._installer_downloads(only))

    def sync(self, only: str = "*", *, delete: bool = False, accept_older: bool = False) -> None:
        """Bring the mirror up to the upstream.

        Args:
            only: a pattern, as in `fnmatch`, of the paths to work on, for example `pkgs/main/*`.
            delete: whether files that no index has named for the time of grace are deleted.
            accept_older: whether an upstream's index is published though it is older than ours.

        Raises:
            UnreachableError: no index could be asked for; nothing was changed.
            NoRoomError: what is to be fetched does not fit; nothing was changed.
        """
        self._delete, self._accept_older = delete, accept_older
        tasks = list(self._look(only))
        if self.report.asked and self.report.unreachable == self.report.asked:
            raise UnreachableError("no index of the upstream can be reached; nothing was changed")
        downloads = list(self._installer_downloads(only))
        self._check_room(tasks, downloads)
        self._fetch(tasks, downloads)
        channels = {task.subdir.channel for task in tasks}
        self._publish_empty_noarch(channels)
        self._publish_channeldata(channels)
        self._forget_old_partials()
        self._checkpoint(now=True)

    # ---- what the upstream has -------------------------------------------------------------------------

    def _look(self, only: str) -> Iterator[Task]:
        """Ask for every subdir's index and compare it with what is held; yield those with something to do."""
        subdirs = [subdir for subdir in self._config.subdirs() if fnmatchcase(str(subdir.path), only)]
        self.report.asked = len(subdirs)
        searches = []
        for subdir in subdirs:
            fact = self._memory.fact(f"{FACT}{subdir.path}")
            here = fact.get("sha256") and self._store.index_path(subdir.path).exists()
            known = Validators(fact["url"], fact["etag"], fact["last_modified"]) if here else Validators()
            searches.append((subdir, fact, Search(self._fetcher, subdir, known, fact["sha256"] if here else "")))
        for subdir, fact, search in searches:
            candidate = self._candidate(subdir, fact, search)
            if isinstance(candidate, Candidate):
                yield self._task(subdir, candidate)

    def _candidate(self, subdir: Subdir, fact: Mapping[str, Any], search: Search) -> Candidate | None:
        """Return the index to publish; None where there is none, or nothing to do."""
        path = subdir.path
        for sent in search.answers():
            data = sent.data
            if data is None:
                if self._is_settled(path, fact):
                    self._unchanged(path, fact)
                    return None
                data = self._store.index_path(path).read_bytes()
            candidate = search.read(sent, data)
            if candidate is None:
                continue
            if not candidate.index.packages and fact.get("held"):
                self._fail_index(path, f"{path}: the upstream's index names no package any more; ours is kept")
                return None
            if not self._accept_older and self._is_older(path, fact, sent, data):
                was, now = fact["last_modified"], sent.validators.last_modified
                self._fail_index(
                    path,
                    f"{path}: the upstream's index ({now}) is older than ours ({was}), which is kept; "
                    "to publish it all the same, run with --accept-older",
                )
                return None
            return candidate
        if search.unreachable:
            self.report.unreachable += 1
        if search.problems:
            self._fail_index(path, f"{path}: no index can be used, ours is kept: {'; '.join(search.problems)}")
        elif fact.get("held"):
            self._fail_index(path, f"{path}: the upstream does not have it any more; ours is kept")
        else:
            log.info("%s: the upstream does not have it", path)
        return None

    def _fail_index(self, path: PurePosixPath, message: str) -> None:
        self.report.fail(str(path), message)
        self._note(path, failures=[message], failed=time.time())

    def _is_older(self, path: PurePosixPath, fact: Mapping[str, Any], sent: Sent, data: bytes) -> bool:
        if not fact.get("sha256") or sent.sha256 == fact["sha256"]:
            return False
        try:
            ours = unpack(self._store.index_path(path).read_bytes(), fact["form"])
            known = Validators(fact["url"], fact["etag"], fact["last_modified"])
            return older(sent.validators, unpack(data, sent.form), known, ours)
        except (OSError, RepodataError):
            return False

    def _is_settled(self, path: PurePosixPath, fact: Mapping[str, Any]) -> bool:
        """Tell whether a subdir is complete, and as this program left it."""
        return bool(
            fact.get("complete")
            and fact.get("exclude") == list(self._config.exclude)
            and fact.get("recipe") == RECIPE
            and fact.get("stamps") == stamps(self._store, path)
        )

    def _unchanged(self, path: PurePosixPath, fact: Mapping[str, Any]) -> None:
        """See to the little that is to be done for a subdir that did not change."""
        self.report.unchanged[str(path)] = fact["held"]
        for message in fact["failures"]:
            self.report.fail(str(path), message)
        if self._dry:
            return
        orphans = self._memory.orphans(str(path))
        self._sweep(path, orphans, fact["held"] + len(orphans))
        self._note(path, checked=time.time(), stamps=stamps(self._store, path))

    def _task(self, subdir: Subdir, candidate: Candidate) -> Task:
        """Plan what a subdir needs."""
        path, index = subdir.path, candidate.index
        known = known_files(self._store.files(path), self._memory.verified(str(path)))
        rough = plan(index.packages, known, self._config.exclude)
        del known
        settled = rough if self._dry else self._resolve(path, rough)
        refused = [f"{path}: {name!r} is refused: {reason}" for name, reason in index.refused.items()]
        for message in refused:
            self.report.fail(str(path), message)
        for name, reason in index.left_out.items():
            log.info("%s: %r is left out: %s", path, name, reason)
        extras = {}
        if not self._dry:
            if candidate.sent.data is not None:
                self._store.write_file(self._store.index_path(path), candidate.sent.data)
            extras = {
                name: Extra(self._fetcher, subdir, name) for name in ("current_repodata.json", "run_exports.json")
            }
        self._kept += candidate.size
        urls = subdir.urls
        if index.base_url:  # CEP 15: the packages are not beside the index
            urls = (*urls, urljoin(f"{subdir.index_urls[0]}/", index.base_url).rstrip("/"))
        return Task(
            subdir, replace(candidate.sent, data=None), index if self._kept <= KEPT_BYTES else None, candidate.size,
            settled, urls, extras, refused, settled.files,
        )  # fmt: skip

    def _resolve(self, path: PurePosixPath, rough: Plan) -> Plan:
        """Hash the files that were never verified, such as those of a run that was killed."""
        if not rough.check:
            return rough
        log.info("%s: %d files that stand there were never verified, and are hashed", path, len(rough.check))

        def right(package: Package) -> bool:
            return digest(self._store.path(path / package.file_name), package.algorithm) == package.digest

        held = size = 0
        wrong = []
        with ThreadPoolExecutor(cores()) as pool:
            for package, good in zip(rough.check, pool.map(right, rough.check), strict=True):
                if not good:
                    wrong.append(package)
                    continue
                held += 1
                size += package.size or 0
                status = self._store.path(path / package.file_name).stat()
                row = (package.file_name, status.st_size, status.st_mtime_ns, bytes.fromhex(package.digest))
                self._landed.setdefault(str(path), []).append(row)
                self._checkpoint()
        return replace(
            rough, held=rough.held + held, held_bytes=rough.held_bytes + size, check=(),
            replace=(*rough.replace, *wrong),
        )  # fmt: skip

    def _installer_downloads(self, only: str) -> Iterator[Download]:
        self._installers = Installers(self._config, self._store, self._memory, self._fetcher, self.report)
        wanted = [dist for dist in self._config.dists if fnmatchcase(dist, only)] if self._config.suffixes else []
        return self._installers.downloads(wanted)

    # ---- from there to here ----------------------------------------------------------------------------

    def _check_room(self, tasks: Iterable[Task], downloads: Iterable[Download]) -> None:
        """Refuse to begin what cannot end: packages, and each index in all its formats beside the former ones."""
        need = sum(task.plan.download_bytes + 2 * task.size for task in tasks)
        need += sum(download.expected.size or 0 for download in downloads)
        need -= sum(file.stat().st_size for file in self._store.partial.iterdir())
        spare = self._store.free_bytes() - int(self._config.min_free_gib * GIB)
        if need > max(spare, 0):
            raise NoRoomError(
                f"{self._store.root}: {need / GIB:.2f} GiB are needed, {max(spare, 0) / GIB:.2f} GiB are free beyond "
                f"min_free_gib ({self._config.min_free_gib}); make room, or mirror less (repos, arches, cloud, exclude)"
            )

    def _fetch(self, tasks: Sequence[Task], installers: Sequence[Download]) -> None:
        """Fetch everything, and publish each subdir as soon as all of its packages are settled."""
        owners = {str(task.path): task for task in tasks}
        for task in tasks:
            self._progress.start(str(task.path), task.plan.files, task.plan.download_bytes)
        for dist in {download.owner for download in installers}:
            mine = [download for download in installers if download.owner == dist]
            self._progress.start(dist, len(mine), sum(download.expected.size or 0 for download in mine))
        results = self._fetcher.fetch(
            self._downloads(tasks, installers, big=False), self._downloads(tasks, installers, big=True)
        )
        for task in tasks:
            if not task.pending:
                self._publish(task)
        try:
            for done in results:
                self._settle(done, owners.get(done.download.owner))
                self._checkpoint()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise NoRoomError(
                f"{self._store.root}: the disk filled up; what was served before is served still, and the next run "
                "goes on from here"
            ) from error

    def _downloads(self, tasks: Iterable[Task], installers: Iterable[Download], *, big: bool) -> Iterator[Download]:
        """Yield what is to be fetched, of one size, as it is asked for: half a million at once are too much."""
        for task in tasks:
            for package in (*task.plan.fetch, *task.plan.replace):
                if big == ((package.size or 0) > BIG_BYTES):
                    yield self._download(task, package)
        for download in installers:
            if big == ((download.expected.size or 0) > BIG_BYTES):
                yield download

    def _download(self, task: Task, package: Package) -> Download:
        name, path = package.file_name, task.path / package.file_name
        return Download(
            str(task.path), name, tuple(f"{url}/{name}" for url in task.urls),
            Expected(package.size, package.algorithm, package.digest),
            self._store.partial_path(path, package.digest),
            self._store.staged_path(path) if name in task.replaced else self._store.path(path),
        )  # fmt: skip

    def _settle(self, done: Done, task: Task | None) -> None:
        """Note how a download ended."""
        download, landed = done.download, done.landed
        owner, name = download.owner, download.name
        self._progress.done(owner)
        if landed is None:
            self.report.fail(owner, f"{owner}/{name}: {done.error}")
            if task:
                task.failed[name] = str(done.error)
        else:
            self.report.fetched += 1
            self.report.received += landed.size
            if task and name in task.replaced:
                task.staged[name] = landed
            else:
                self._remember(owner, name, landed)
            if task is None:
                self._installers.landed(download, landed)
        if task:
            task.pending -= 1
            if not task.pending:
                self._publish(task)

    def _remember(self, owner: str, name: str, landed: Landed) -> None:
        row = (name, landed.size, landed.mtime_ns, bytes.fromhex(landed.digest))
        self._landed.setdefault(owner, []).append(row)

    def _checkpoint(self, *, now: bool = False) -> None:
        """Remember for good what was verified, once its bytes are on the disk."""
        if not now and time.monotonic() < self._checkpoint_due:
            return
        self._store.flush_all()
        for owner, rows in self._landed.items():
            self._memory.verify(owner, rows)
        self._landed.clear()
        self._memory.commit()
        self._checkpoint_due = time.monotonic() + CHECKPOINT_SECONDS

    # ---- what is served --------------------------------------------------------------------------------

    def _publish(self, task: Task) -> None:
        """Serve the upstream's index, as far as its packages are here; then delete what is due."""
        path = task.path
        index = task.index or self._read_again(task)
        lost = task.replaced & task.failed.keys()
        former = self._publisher.former(path, lost)
        current, current_failure = self._extra(task, "current_repodata.json")
        exports, exports_failure = self._extra(task, "run_exports.json")
        left_out = task.plan.excluded | task.failed.keys()
        self._publisher.publish(path, Content(index, left_out, former, current, exports), task.staged.keys())
        for name, landed in task.staged.items():
            self._remember(str(path), name, landed)
        self._checkpoint(now=True)
        sizes = [package.size or 0 for name, package in index.packages.items() if name not in left_out]
        sizes += [package.size or 0 for package in former.packages.values()]
        orphans = [*task.plan.orphans, *(lost - former.packages.keys())]
        self._sweep(path, orphans, len(sizes) + len(orphans))
        missing = len(task.failed) - len(former.packages)
        self._note(
            path,
            url=task.sent.validators.url, etag=task.sent.validators.etag,
            last_modified=task.sent.validators.last_modified, sha256=task.sent.sha256, form=task.sent.form,
            exclude=list(self._config.exclude), recipe=RECIPE,
            complete=not task.failed and not current_failure and not exports_failure,
            stamps=stamps(self._store, path), held=len(sizes), bytes=sum(sizes), missing=missing,
            failures=self.report.failures.get(str(path), []), refused=task.refused, checked=time.time(),
            published=time.time(),
        )  # fmt: skip
        self._memory.commit()
        log.info(
            "%s: published, %d packages%s%s", path, len(sizes),
            f", {len(task.plan.excluded)} excluded" if task.plan.excluded else "",
            f", {missing} left out because they could not be had" if missing else "",
        )  # fmt: skip
        task.index = None

    def _read_again(self, task: Task) -> Index:
        """Return an index that was put away while packages were fetched."""
        return repodata.parse(unpack(self._store.index_path(task.path).read_bytes(), task.sent.form))

    def _extra(self, task: Task, name: str) -> tuple[bytes | None, bool]:
        """Return a file of the upstream's beside its index, and whether it failed: then ours stands in for it."""
        try:
            data = task.extras[name].read()
            if data is not None:
                repodata.split(data)
        except (FetchError, RepodataError) as error:
            self.report.fail(str(task.path), f"{task.path}/{name}: cannot be had: {error}")
        else:
            return data, False
        try:
            return self._store.path(task.path / name).read_bytes(), True
        except FileNotFoundError:
            return None, True

    def _note(self, path: PurePosixPath, **changes: Any) -> None:
        """Remember how a subdir stands."""
        if not self._dry:
            key = f"{FACT}{path}"
            self._memory.note(key, {**self._memory.fact(key), **changes})

    def _publish_empty_noarch(self, channels: Iterable[PurePosixPath]) -> None:
        """Serve an empty `noarch` where the upstream has none: conda fails on a channel without it (CEP 26)."""
        for channel in channels:
            path = channel / "noarch"
            if not self._store.path(path / "repodata.json").exists():
                self._publisher.publish(path, Content(formats.empty("noarch")))
                log.info("%s: published empty, the upstream has none", path)

    def _publish_channeldata(self, channels: Iterable[PurePosixPath]) -> None:
        """Serve `channeldata.json` (CEP 38) of the channels of which something was published."""
        for channel in channels:
            subdirs = [subdir for subdir in self._config.subdirs() if subdir.channel == channel]
            urls = [url.rsplit("/", 1)[0] + "/channeldata.json" for url in subdirs[0].index_urls]
            files = {subdir.arch: self._store.shards_path(subdir.path) for subdir in subdirs}
            names = {
                arch: State.decode(file.read_bytes()).shards.keys() for arch, file in files.items() if file.exists()
            }
            try:
                data = formats.channeldata(self._fetcher.ask(urls).result().data or b"", names)
            except MissingError:
                self._store.remove(channel / "channeldata.json")
            except (FetchError, RepodataError) as error:
                log.warning("%s/channeldata.json: cannot be had, ours is kept: %s", channel, error)
            else:
                self._store.write_file(self._store.path(channel / "channeldata.json"), data)

    # ---- what goes ---------------------------------------------------------------------------------------

    def _sweep(self, path: PurePosixPath, orphans: Iterable[str], total: int) -> None:
        """Start the grace of packages that no index names any longer; delete those whose grace is over."""
        folder = str(path)
        since, expired = due(self._memory.orphans(folder), orphans, time.time(), self._config.delete_grace_hours)
        if self._delete and too_many(len(expired), total, self._config.max_delete):
            self.report.fail(
                folder,
                f"{path}: {len(expired)} of {total} packages would be deleted at once, more than max_delete "
                f"({self._config.max_delete:g} %) allows, and none is; if the upstream is right, "
                "run once with --delete --max-delete 100",
            )
        elif self._delete and expired:
            for name in expired:
                self.report.deleted += self._store.remove(path / name)
                del since[name]
            self._memory.forget(folder, expired)
            log.info("%s: deleted %d packages that no index names any longer", path, len(expired))
        self._memory.orphan(folder, since)

    def _forget_old_partials(self) -> None:
        oldest = time.time() - PARTIAL_DAYS * 86400
        for file in (*self._store.partial.iterdir(), *self._store.staged.iterdir()):
            if file.stat().st_mtime < oldest:
                file.unlink()
