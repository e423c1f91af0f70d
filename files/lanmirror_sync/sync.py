"""A run: plan from the upstream's indexes, fetch, publish, delete.

Each subdir is published as soon as its own packages are settled, whatever the others wait for. One that is
complete, and whose index the upstream did not change, costs one conditional request.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import Future
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from lanmirror_sync import formats, repodata
from lanmirror_sync.config import Config, Options
from lanmirror_sync.fetch import BIG_BYTES, Answer, Done, Fetcher, FetchError, MissingError, UnreachableError
from lanmirror_sync.installers import Installers
from lanmirror_sync.memory import FACT, Memory
from lanmirror_sync.plan import due, in_order, too_many
from lanmirror_sync.progress import GIB
from lanmirror_sync.publish import NOTHING, RECIPE, Content, Publisher, stamps
from lanmirror_sync.repodata import Index, Package, RepodataError
from lanmirror_sync.report import Progress, Report
from lanmirror_sync.sinks import Download, Expected, Landed
from lanmirror_sync.store import NoRoomError, Store
from lanmirror_sync.survey import Extras, Survey, Task
from lanmirror_sync.upstream import Asked, unpack

# What a killed run left half-fetched is kept for the next ones, but not for ever.
PARTIAL_DAYS = 7
# What was verified is remembered for good at least so often, so that a killed run has little to hash again.
CHECKPOINT_SECONDS = 30.0
# A subdir of which nothing came for so long is published without what is still awaited, and again when that is settled.
# To publish costs in proportion to the index, about twice this: waiting should cost no more, nor much less.
QUIET_SECONDS = 0.4
QUIET_SECONDS_PER_BYTE = 1e-7

log = logging.getLogger(__name__)


class Run:
    """One run over the configured subdirs and installers."""

    def __init__(
        self,
        config: Config,
        options: Options,
        asked: Sequence[Asked],
        store: Store,
        memory: Memory,
        *,
        fetcher: Fetcher,
        progress: Progress,
    ) -> None:
        self._config = config
        self._options = options
        self._store = store
        self._memory = memory
        self._fetcher = fetcher
        self._progress = progress
        self._checkpoint_due = time.monotonic() + CHECKPOINT_SECONDS
        self._publisher = Publisher(store, memory)
        self._channeldata: dict[PurePosixPath, Future[Answer]] = {}
        self.report = Report()
        self._survey = Survey(config, options, asked, store, memory, fetcher=fetcher, report=self.report)
        self._installers = Installers(config, store, memory, fetcher, self.report)

    def plan(self) -> tuple[Sequence[Task], Sequence[Download]]:
        """Say what is to be fetched; write nothing that is served.

        Raises:
            UnreachableError: no index could be asked for.
        """
        tasks = list(self._survey.tasks())
        if self.report.asked and self.report.unreachable == self.report.asked:
            raise UnreachableError("no index of the upstream can be reached; nothing was changed")
        wanted = [dist for dist in self._config.dists if fnmatchcase(dist, self._options.only)]
        return tasks, list(self._installers.downloads(wanted if self._config.suffixes else ()))

    def sync(self) -> None:
        """Bring the mirror up to the upstream.

        Raises:
            UnreachableError: no index could be asked for; nothing was changed.
            NoRoomError: what is to be fetched does not fit; nothing was changed.
        """
        self._publisher.discard_made()
        tasks, downloads = self.plan()
        self._check_room(tasks, downloads)
        self._fetch(tasks, downloads)
        for path in self._survey.unchanged:
            orphans = self._memory.orphans(str(path))
            self._sweep(path, orphans, self.report.unchanged[str(path)] + len(orphans))
            self._note(path)
        channels = {task.subdir.channel for task in tasks}
        self._publish_empty_noarch(channels)
        self._publish_channeldata(channels)
        self._forget_old_partials()
        self._checkpoint(now=True)

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
            task.moved = time.monotonic()
            if not task.pending:
                self._publish(task)
        try:
            for done in results:
                if done:
                    self._settle(done, owners.get(done.download.owner))
                else:
                    self._make_ahead(tasks)
                    self._publish_without_stragglers(tasks)
                self._checkpoint()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise NoRoomError(
                f"{self._store.root}: the disk filled up; what was served before is served still, and the next run "
                "goes on from here"
            ) from error

    def _downloads(self, tasks: Iterable[Task], installers: Iterable[Download], *, big: bool) -> Iterator[Download]:
        """Yield what is to be fetched, of one size, as it is asked for: half a million at once are too much.

        One of each subdir in turn, and there in the order of `plan.in_order`.
        """
        feeds: deque[Iterator[Download]] = deque(self._of_task(task, big=big) for task in tasks)
        feeds.append(item for item in installers if big == ((item.expected.size or 0) > BIG_BYTES))
        while feeds:
            feed = feeds.popleft()
            download = next(feed, None)
            if download:
                yield download
                feeds.append(feed)

    def _of_task(self, task: Task, *, big: bool) -> Iterator[Download]:
        wanted = (*task.plan.fetch, *task.plan.replace)
        packages = [package for package in wanted if big == ((package.size or 0) > BIG_BYTES)]
        for package in in_order(packages, self._config.jobs):
            yield self._download(task, package)

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
            self._store.begin_flush(download.target)
            if task and name in task.replaced:
                task.staged[name] = landed
            else:
                self._remember(owner, name, landed)
            if task is None:
                self._installers.landed(download, landed)
        if task:
            task.pending -= 1
            task.moved = time.monotonic()
            if not task.pending:
                self._publish(task)

    def _make_ahead(self, tasks: Iterable[Task]) -> None:
        """Make the index of a subdir while its packages come, as it is to be if every one of them does.

        Not where it was put away, or where it is published in two steps: its formats depend on the first.
        """
        for task in tasks:
            may = task.pending and not task.ahead and not task.early and not task.failed and not task.replaced
            if may and task.index and task.beside.answered():
                task.ahead = self._publisher.make(task.path, self._content(task, task.index))

    def _publish_without_stragglers(self, tasks: Iterable[Task]) -> None:
        """Publish, once, the subdirs that only wait for a few packages which stall or are refused."""
        for task in tasks:
            few = 0 < task.pending <= self._config.jobs
            quiet = QUIET_SECONDS + QUIET_SECONDS_PER_BYTE * task.size
            if few and not task.early and time.monotonic() - task.moved >= quiet:
                task.early = True
                there = {name for name, _, _ in self._store.files(task.path)}
                awaited = {package.file_name for package in task.plan.fetch} - there
                awaited |= task.replaced - task.staged.keys()
                self._publish(task, awaited - task.failed.keys())

    def _remember(self, owner: str, name: str, landed: Landed) -> None:
        self._memory.verify(owner, [(name, landed.size, landed.mtime_ns, bytes.fromhex(landed.digest))])

    def _checkpoint(self, *, now: bool = False) -> None:
        """Remember for good what was verified."""
        if now or time.monotonic() >= self._checkpoint_due:
            self._memory.commit(self._store.flush_all)
            self._checkpoint_due = time.monotonic() + CHECKPOINT_SECONDS

    # ---- what is served --------------------------------------------------------------------------------

    def _publish(self, task: Task, awaited: Set[str] = frozenset()) -> None:
        """Serve the upstream's index, as far as its packages are here; then delete what is due.

        Args:
            task: the subdir.
            awaited: file names that may still come: they are left out for now, and nothing is deleted.
        """
        path = task.path
        index = task.index or self._read_again(task)
        absent = task.failed.keys() | awaited
        if not absent:
            self._ask_channeldata(task.subdir.channel)
        lost = task.replaced & absent
        former = self._publisher.former(path, lost)
        content = self._content(task, index, absent, former)
        self._publisher.publish(path, content, task.staged.keys(), task.ahead)
        task.ahead = None
        for name, landed in task.staged.items():
            self._remember(str(path), name, landed)
        self._checkpoint(now=True)
        sizes = [package.size or 0 for name, package in index.packages.items() if name not in content.leave_out]
        sizes += [package.size or 0 for package in former.packages.values()]
        missing = len(absent) - len(former.packages)
        if not awaited:
            orphans = [*task.plan.orphans, *(lost - former.packages.keys())]
            self._sweep(path, orphans, len(sizes) + len(orphans))
        self._note(
            path,
            url=task.sent.validators.url, etag=task.sent.validators.etag,
            last_modified=task.sent.validators.last_modified, sha256=task.sent.sha256, form=task.sent.form,
            exclude=list(self._config.exclude), recipe=RECIPE,
            complete=not absent and self._extras(task).complete,
            held=len(sizes), bytes=sum(sizes), missing=missing, refused=task.refused, published=time.time(),
        )  # fmt: skip
        self._checkpoint(now=True)
        log.info(
            "%s: published, %d packages%s%s%s", path, len(sizes),
            f", {len(task.plan.excluded)} excluded" if task.plan.excluded else "",
            f", {missing} left out because they could not be had" if missing and not awaited else "",
            f", {len(awaited)} awaited" if awaited else "",
        )  # fmt: skip
        task.staged.clear()
        if not awaited:
            task.index = task.extras = None

    def _read_again(self, task: Task) -> Index:
        """Return an index that was put away while packages were fetched."""
        return repodata.parse(unpack(self._store.index_path(task.path).read_bytes(), task.sent.form))

    def _content(self, task: Task, index: Index, absent: Set[str] = frozenset(), former: Index = NOTHING) -> Content:
        """Return what is to be served of a subdir.

        Args:
            task: the subdir.
            index: the upstream's.
            absent: file names of packages that are not here.
            former: see `Content`.
        """
        extras = self._extras(task)
        left_out = task.plan.excluded | absent
        return Content(index, left_out, former, extras.current, extras.run_exports, extras.bz2)

    def _extras(self, task: Task) -> Extras:
        """Return what there is beside the index, once it has been waited for."""
        if task.extras is None:
            current, current_came = self._beside(task, "current_repodata.json")
            exports, exports_came = self._beside(task, "run_exports.json")
            task.extras = Extras(current, exports, self._has_bz2(task), current_came and exports_came)
        return task.extras

    def _beside(self, task: Task, name: str) -> tuple[bytes | None, bool]:
        """Return a file of the upstream's beside its index, and whether it came: else ours stands in for it."""
        extra = task.beside.current if name.startswith("current") else task.beside.run_exports
        try:
            data = extra.read()
            if data is not None:
                repodata.split(data)
        except (FetchError, RepodataError) as error:
            self.report.fail(str(task.path), f"{task.path}/{name}: cannot be had: {error}")
        else:
            return data, True
        try:
            return self._store.path(task.path / name).read_bytes(), False
        except FileNotFoundError:
            return None, False

    def _has_bz2(self, task: Task) -> bool:
        """Tell whether the upstream has the index as bzip2; where that cannot be told, it stays as it is."""
        try:
            return task.beside.has_bz2()
        except FetchError:
            return self._store.path(task.path / "repodata.json.bz2").exists()

    def _note(self, path: PurePosixPath, **changes: Any) -> None:
        """Remember how a subdir stands at the end of its part of the run."""
        key, now = f"{FACT}{path}", time.time()
        fact = {**self._memory.fact(key), **changes}
        failures = self.report.failures.get(str(path), [])
        if fact["complete"] and not failures:
            fact["succeeded"] = now
        self._memory.note(key, {**fact, "checked": now, "failures": failures, "stamps": stamps(self._store, path)})

    def _publish_empty_noarch(self, channels: Iterable[PurePosixPath]) -> None:
        """Serve an empty `noarch` where the upstream has none: conda fails on a channel without it (CEP 26)."""
        for channel in channels:
            path = channel / "noarch"
            if not self._store.path(path / "repodata.json").exists():
                self._publisher.publish(path, Content(formats.empty("noarch")))
                log.info("%s: published empty, the upstream has none", path)

    def _ask_channeldata(self, channel: PurePosixPath) -> None:
        """Ask for the channel's `channeldata.json`, once.

        That is while a subdir is published of which all packages came, or else at the end, and not beside packages:
        where an upstream has none, that answer would make a host that refuses every package look as if it did not.
        """
        if channel not in self._channeldata:
            subdir = next(subdir for subdir in self._config.subdirs() if subdir.channel == channel)
            urls = [url.rsplit("/", 1)[0] + "/channeldata.json" for url in subdir.index_urls]
            self._channeldata[channel] = self._fetcher.ask(urls, optional=True)

    def _publish_channeldata(self, channels: Iterable[PurePosixPath]) -> None:
        """Serve `channeldata.json` (CEP 38) of the channels of which something was published."""
        for channel in channels:
            self._ask_channeldata(channel)
        for channel, answer in self._channeldata.items():
            subdirs = [subdir for subdir in self._config.subdirs() if subdir.channel == channel]
            files = {subdir.arch: self._store.made_path(subdir.path) for subdir in subdirs}
            names = {
                arch: formats.State.decode(file.read_bytes()).shards.shards.keys()
                for arch, file in files.items()
                if file.exists()
            }
            try:
                data = formats.channeldata(answer.result().data or b"", names)
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
        if self._options.delete and too_many(len(expired), total, self._config.max_delete):
            self.report.fail(
                folder,
                f"{path}: {len(expired)} of {total} packages would be deleted at once, more than max_delete "
                f"({self._config.max_delete:g} %) allows, and none is; if the upstream is right, "
                "run once with --delete --max-delete 100",
            )
        elif self._options.delete and expired:
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
