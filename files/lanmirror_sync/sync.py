"""A run: plan from the upstream's indexes, fetch, publish, delete.

Each subdir is published as soon as its own packages are settled, whatever the others wait for, and fails alone. One
that is complete, and whose index the upstream did not change, costs one conditional request.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from lanmirror_sync import formats, listing
from lanmirror_sync.answers import Done, UnreachableError
from lanmirror_sync.config import Options, Subdir
from lanmirror_sync.fetch import BIG_BYTES, Fetcher
from lanmirror_sync.installers import Installers
from lanmirror_sync.memory import SUBDIR
from lanmirror_sync.mirror import Mirror
from lanmirror_sync.progress import amount
from lanmirror_sync.publish import Content
from lanmirror_sync.report import Progress, Report, in_words, is_everybodys
from lanmirror_sync.sinks import Download
from lanmirror_sync.store import NoRoomError
from lanmirror_sync.survey import Absent, Finding, Outcome, Survey, Unchanged, Unusable
from lanmirror_sync.upstream import Search, begin_search, trust
from lanmirror_sync.work import KEPT_BYTES, Desk, Work

# What was verified is remembered for good at least so often, so that a killed run has little to hash again.
CHECKPOINT_SECONDS = 30.0
# A subdir of which nothing came for so long is published without what is still awaited, and again when that is settled.
# To publish costs in proportion to the index, about twice this: waiting should cost no more, nor much less.
QUIET_SECONDS = 0.4
QUIET_SECONDS_PER_BYTE = 1e-7
# When nothing was found out for so long, what is known is begun with; the other indexes follow when they come.
STRAGGLER_SECONDS = 2.0
# For so long the files beside an index are waited for when its packages are here; then others go first.
BESIDE_SECONDS = 0.25
# A refresh of indexes hashes no more than this of a subdir: what a sync beside it has just put there, and not a mirror.
MOST_UNVERIFIED = 8 << 30
POLL_SECONDS = 0.1
GIB = 1 << 30

log = logging.getLogger(__name__)


class Run:
    """One run over the configured subdirs and installers."""

    def __init__(
        self, mirror: Mirror, options: Options, searches: Sequence[Search], fetcher: Fetcher, progress: Progress
    ) -> None:
        self._mirror = mirror
        self._options = options
        self._fetcher = fetcher
        self._progress = progress
        self._on_demand = mirror.config.on_demand
        self._checkpoint_due = time.monotonic() + CHECKPOINT_SECONDS
        self.report = Report(asked=len(searches))
        self._survey = Survey(mirror, options, searches)
        self._desk = Desk(mirror, options, fetcher, self.report)
        folders = mirror.config.folders if not options.indexes else mirror.config.listed
        wanted = [folder for folder in folders if fnmatchcase(folder, options.only)]
        self._installers = Installers(mirror, fetcher, self.report, wanted, indexes=options.indexes)
        self._works: dict[str, Work] = {}
        self._unchanged: list[Unchanged] = []
        self._absent: list[Subdir] = []
        self._downloads: list[Download] = []
        self._found: set[PurePosixPath] = set()

    def sync(self) -> None:
        """Bring the mirror up to the upstream; with `Options.indexes` its indexes alone.

        Raises:
            UnreachableError: no index could be asked for; nothing was changed.
            NoRoomError: what is to be fetched does not fit; nothing was changed.
        """
        self._desk.publisher.discard_made()
        self._restrict()
        self._gather()
        if not self._options.indexes:
            self._check_room()
        try:
            self._fetch()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise NoRoomError(
                f"{self._mirror.store.root}: the disk filled up; what was served before is served still, and the next "
                "run goes on from here"
            ) from error
        for unchanged in self._unchanged:
            with self._fence(str(unchanged.subdir.path)):
                self._keep(unchanged)
        self._judge_absent()
        channels = {work.finding.subdir.channel for work in self._works.values()}
        for channel in channels if not self._on_demand else ():
            self._desk.channeldata.ask(channel)
        for channel in channels:
            # Asked for when nobody else can put a later one in place before this one.
            with self._fence(str(channel)), self._mirror.store.alone(channel):
                self._desk.channeldata.ask(channel)
                self._desk.channeldata.publish(channel)
        if not self._options.indexes:
            self._sweep()
        self._checkpoint(now=True)

    def _sweep(self) -> None:
        """See to what is not configured any more, and to what killed runs left."""
        with self._fence("installers"):
            for folder, names in self._installers.unwanted():
                self._desk.sweeper.packages(folder, names, frozenset(names), len(names))
            self._installers.show()
        self._desk.sweeper.retired()
        self._desk.sweeper.leftovers()

    # ---- what is to be done ----------------------------------------------------------------------------

    def _restrict(self) -> None:
        """Have indexes that were complete name what is held, where the site does not fetch the rest any more."""
        with self._fence("installers"):
            listing.withdraw(self._mirror)
        memory = self._mirror.memory
        wanted = {str(subdir.path) for subdir in self._mirror.config.subdirs() if self._on_demand}
        for key in memory.keys(SUBDIR):
            path = key.removeprefix(SUBDIR)
            if path not in wanted and memory.standing(PurePosixPath(path)).on_demand:
                with self._fence(path):
                    self._desk.restrict(PurePosixPath(path))

    def _gather(self) -> None:
        """Wait for the indexes and installer pages; not for those that stall, once there is something to do."""
        news = time.monotonic()
        while self._survey.pending or self._installers.pending or self._unserved():
            if self._look(POLL_SECONDS if self._survey.pending else 0.0):
                news = time.monotonic()
            elif not self._survey.pending:
                time.sleep(POLL_SECONDS / 10)
            if self._works and time.monotonic() - news > STRAGGLER_SECONDS:
                late = [*self._survey.waits_for(), *self._installers.waits_for(), *map(str, self._unserved())]
                log.warning("still waiting for %s; the rest goes on meanwhile", ", ".join(late))
                break
        if not self._survey.pending and self.report.asked and self.report.unreachable == self.report.asked:
            raise UnreachableError(f"no index of the upstream can be reached, nothing was changed: {self.report.first}")

    def _look(self, seconds: float) -> bool:
        """Take in what has been found out since the last time; return whether that is anything."""
        news = False
        for outcome in self._survey.ready(seconds):
            news = True
            with self._fence(str(outcome.subdir.path)):
                self._take(outcome)
        for download in self._installers.ready():
            news = True
            self._downloads.append(download)
        with self._fence("installers"):
            self._installers.publish()
        for path in self._unserved():
            news |= self._serve_index(self._works[str(path)], 0.0)
        return news

    def _unserved(self) -> list[PurePosixPath]:
        """Return the subdirs whose index is to be served before their packages, and is not yet."""
        works = self._works.values() if self._on_demand else ()
        return [work.path for work in works if not (work.indexed or work.broken)]

    def _serve_index(self, work: Work, patience: float) -> bool:
        """Serve the complete index of a subdir once it is known what there is beside it; return whether it was."""
        if not work.beside.answered(patience):
            return False
        store = self._mirror.store
        with self._fence(str(work.path), work):
            spare = store.free_bytes(work.path) - int(self._mirror.config.min_free_gib * GIB)
            if work.index_need > max(spare, 0):
                raise NoRoomError(
                    f"{store.path(work.path)}: {amount(work.index_need)} are needed on its disk for the index, "
                    f"{amount(max(spare, 0))} are free beyond min_free_gib ({self._mirror.config.min_free_gib})"
                )
            if not self._desk.publish_complete(work):
                log.info("%s: another run published an index meanwhile; the upstream is asked again", work.path)
                del self._works[str(work.path)]
                self._survey.add(begin_search(self._mirror, work.finding.subdir, self._fetcher))
        return True

    def _take(self, outcome: Outcome) -> None:
        """Take in what was found out about a subdir."""
        subdir, path = outcome.subdir, str(outcome.subdir.path)
        match outcome:
            case Finding():
                self._found.add(subdir.path)
                unverified = sum(package.size or 0 for package in outcome.plan.check)
                if self._options.indexes and unverified > MOST_UNVERIFIED:
                    self.report.fail(
                        path,
                        f"{path}: {amount(unverified)} of packages have to be hashed first, which the next sync does; "
                        "the index is not refreshed before",
                    )
                    self._desk.note_failure(subdir.path, of_index=True)
                    return
                others = sum(self._works[str(path)].finding.size for path in self._unserved())
                work = self._works[path] = self._desk.begin(outcome)
                if self._on_demand:
                    self._serve_index(work, BESIDE_SECONDS if others + outcome.size <= KEPT_BYTES else math.inf)
            case Unchanged():
                self._found.add(subdir.path)
                self.report.unchanged[path] = outcome.standing.held or 0
                for message in outcome.standing.refused:
                    self.report.fail(path, message)
                self._unchanged.append(outcome)
            case Absent():
                self._absent.append(subdir)
            case Unusable():
                self._found.add(subdir.path)
                self.report.unreachable += outcome.unreachable
                if outcome.crash:
                    self.report.crashes.append(outcome.crash)
                self.report.fail(path, outcome.message)
                self._desk.note_failure(subdir.path, of_index=True)

    def _judge_absent(self) -> None:
        """Say what is configured and not there, and publish an empty `noarch` where that is what there is.

        Not every repo has every platform: one that another repo has, of a repo that is there, may be missing. Conda
        fails on a channel without `noarch` (CEP 26).
        """
        channels = {path.parent for path in self._found}
        arches = {path.name for path in self._found if path.parts[0] == "pkgs"}
        for subdir in self._absent:
            path = subdir.path
            with self._fence(str(path)):
                if subdir.channel in channels and subdir.arch == "noarch":
                    self._publish_empty(path)
                elif subdir.channel in channels and path.parts[0] == "pkgs" and subdir.arch in arches:
                    log.info("%s: the upstream does not have it", path)
                    self._desk.note_checked(path)
                else:
                    key = "upstream.repo" if path.parts[0] == "pkgs" else "upstream.cloud"
                    there = subdir.channel in channels
                    wrong = "the platform" if there else f"the name, and {key},"
                    self.report.fail(
                        str(path),
                        f"{path}: the upstream does not have it ({subdir.url} is not there); is {wrong} right?",
                    )
                    self._desk.note_failure(path, of_index=True, checked=time.time())

    def _publish_empty(self, path: PurePosixPath) -> None:
        with self._mirror.store.alone(path):
            if self._mirror.memory.standing(path).listed:
                return  # another run has found one since
            if not self._mirror.store.path(path / "repodata.json").exists():
                self._desk.publisher.publish(path, Content(formats.empty("noarch")))
                log.info("%s: published empty, the upstream has none", path)
            self._desk.note(path, in_sync=True, listed=0, held=0, missing=0)

    def _keep(self, unchanged: Unchanged) -> None:
        """See to the little that is to be done for a subdir that did not change."""
        path, sent, standing = unchanged.subdir.path, unchanged.sent, unchanged.standing
        memory = self._mirror.memory
        changes: dict[str, Any] = {}
        if sent.whole and sent.validators.url == standing.url:
            changes = {"etag": sent.validators.etag, "last_modified": sent.validators.last_modified,
                       "trust": trust(sent, standing, standing.listed or 0, time.time())}  # fmt: skip
        with self._mirror.store.alone(path):
            if memory.standing(path).published != standing.published:
                return  # another run found something new since, and has seen to it
            if self._options.indexes:
                self._desk.note_checked(path, **changes)
                return
            orphans = memory.orphans(str(path))
            total = self.report.unchanged[str(path)] + len(orphans)
            self._desk.sweeper.packages(path, orphans, self._desk.unwanted(unchanged.subdir, orphans), total)
            self._desk.note(path, in_sync=True, **changes)

    def _check_room(self) -> None:
        """Refuse to begin what cannot end, on each of the disks."""
        store = self._mirror.store
        need: dict[int, int] = {}
        where: dict[int, PurePosixPath] = {}
        for path, size in self._needs():
            disk = store.disk(path)
            need[disk] = need.get(disk, 0) + size
            where.setdefault(disk, path)
        partial = sum(file.stat().st_size for file in store.partial.iterdir())
        for disk, size in need.items():
            spare = store.free_bytes(where[disk]) - int(self._mirror.config.min_free_gib * GIB)
            if size - partial > max(spare, 0):
                raise NoRoomError(
                    f"{store.path(where[disk])}: {amount(size - partial)} are needed on its disk, "
                    f"{amount(max(spare, 0))} are free beyond min_free_gib ({self._mirror.config.min_free_gib}); make "
                    "room, or mirror less (repos, arches, cloud, hold, exclude)"
                )

    def _needs(self) -> Iterator[tuple[PurePosixPath, int]]:
        for work in self._works.values():
            yield work.path, work.need
        for download in self._downloads:
            yield PurePosixPath(download.owner), download.expected.size or 0

    # ---- from there to here ----------------------------------------------------------------------------

    def _fetch(self) -> None:
        """Fetch everything, and publish each subdir as soon as all of its packages are settled."""
        results = self._fetcher.results()
        begun: set[str] = set()
        self._begin(begun)
        for done in results:
            if done:
                work = self._works.get(done.download.owner)
                with self._fence(done.download.owner, work):
                    self._settle(done, work)
            else:
                self._progress.tick()
                self._look_at_suspects()
                self._make_ahead()
                self._publish_without_stragglers()
                for work in self._works.values():
                    self._publish_if_settled(work, 0.0)
                if (self._survey.pending or self._installers.pending or self._unserved()) and self._look(0.0):
                    self._begin(begun)
                self._close_feed()
            self._checkpoint()
        for work in self._works.values():
            self._publish_if_settled(work, math.inf)

    def _close_feed(self) -> None:
        """Tell the fetching thread when nothing more comes."""
        pending = self._survey.pending or self._installers.pending or self._unserved()
        if not pending and not any(work.suspects for work in self._works.values()):
            self._fetcher.close_feed()

    def _begin(self, begun: set[str]) -> None:
        """Begin to fetch for the subdirs, and the installers, that came since the last time."""
        late = bool(begun)
        served = (work for work in self._works.values() if work.indexed or not self._on_demand)
        new = [work for work in served if str(work.path) not in begun]
        for work in new:
            begun.add(str(work.path))
            if late and not self._fits(work):
                continue
            if work.fetches:
                self._progress.start(str(work.path), work.plan.files, work.plan.download_bytes)
            self._fetcher.feed(self._desk.downloads(work, big=False), self._desk.downloads(work, big=True))
        downloads, self._downloads = self._downloads, []
        for owner in {download.owner for download in downloads}:
            mine = [download for download in downloads if download.owner == owner]
            self._progress.start(owner, len(mine), sum(download.expected.size or 0 for download in mine))
        small = [download for download in downloads if (download.expected.size or 0) <= BIG_BYTES]
        big = [download for download in downloads if (download.expected.size or 0) > BIG_BYTES]
        self._fetcher.feed(iter(small), iter(big))
        begun.add("")
        for work in new:
            self._publish_if_settled(work)
        self._close_feed()

    def _fits(self, work: Work) -> bool:
        """Tell whether a subdir that came late has room beside what is being fetched."""
        store = self._mirror.store
        disk = store.disk(work.path)
        here = [other for other in self._works.values() if store.disk(other.path) == disk]
        need = sum(other.need for other in here if other is work or (other.pending and not other.broken))
        spare = store.free_bytes(work.path) - int(self._mirror.config.min_free_gib * GIB)
        if need <= max(spare, 0):
            return True
        work.broken = True
        self.report.fail(str(work.path), f"{work.path}: not begun, {amount(work.need)} do not fit beside the rest")
        self._desk.note_failure(work.path, complete=False)
        return False

    def _settle(self, done: Done, work: Work | None) -> None:
        """Note how a download ended."""
        download, landed = done.download, done.landed
        owner, name = download.owner, download.name
        self._progress.done(owner)
        if landed:
            if done.promoted:
                self.report.promoted += 1
                self.report.promoted_bytes += landed.size
            else:
                self.report.fetched += 1
                self.report.received += landed.size
            self._mirror.store.begin_flush(download.target)
        if work:
            self._desk.settled(work, name, landed, done.error)
            self._publish_if_settled(work)
        elif landed:
            self._desk.remember(owner, name, landed)
            self._installers.landed(download, landed)
        else:
            self.report.fail(owner, f"{owner}/{name}: {done.error}")

    def _publish_if_settled(self, work: Work, patience: float = BESIDE_SECONDS) -> None:
        """Publish a subdir when all of its packages are; not before it is known what there is beside its index."""
        served_first = self._on_demand and not work.indexed
        if not (work.pending or work.broken or work.done or served_first) and work.beside.answered(patience):
            work.done = True
            with self._fence(str(work.path), work):
                if work.indexed:
                    self._desk.finish(work)
                else:
                    self._desk.publish(work)

    def _look_at_suspects(self) -> None:
        """Fetch what was wrong the last time, where it changed."""
        for work in self._works.values():
            for suspect in [suspect for suspect in work.suspects if suspect.answered()]:
                work.suspects.remove(suspect)
                with self._fence(str(work.path), work):
                    if suspect.changed():
                        download = self._desk.download(work, work.wanted[suspect.name])
                        self._fetcher.feed(iter([download]), iter(()))
                    else:
                        self._progress.done(str(work.path))
                        self._desk.known_wrong(work, suspect)
                        self._publish_if_settled(work)

    def _make_ahead(self) -> None:
        for work in self._works.values():
            if not work.broken:
                with self._fence(str(work.path), work):
                    self._desk.make_ahead(work)

    def _publish_without_stragglers(self) -> None:
        """Publish, once, the subdirs that only wait for a few packages which stall or are refused."""
        for work in self._works.values():
            few = 0 < work.pending <= self._mirror.config.jobs
            quiet = QUIET_SECONDS + QUIET_SECONDS_PER_BYTE * work.finding.size
            still = few and not (work.early or work.broken or work.indexed) and time.monotonic() - work.moved >= quiet
            if still and work.beside.answered():
                with self._fence(str(work.path), work):
                    self._desk.publish_early(work)

    @contextlib.contextmanager
    def _fence(self, owner: str, work: Work | None = None) -> Iterator[None]:
        """Let what goes wrong with one subdir end its own part of the run alone."""
        try:
            yield
        except OSError as error:
            if is_everybodys(error):
                raise
            self._give_up(owner, work, in_words(error))
        except (NoRoomError, UnreachableError):
            raise
        except Exception as error:
            log.exception("%s: this is a fault of the program", owner)
            self.report.crashes.append(error)
            self._give_up(owner, work, f"a fault of the program: {error!r}")

    def _give_up(self, owner: str, work: Work | None, reason: str) -> None:
        self.report.fail(owner, f"{owner}: {reason}")
        if work:
            work.broken = True
            self._desk.note_failure(work.path, complete=False)

    def _checkpoint(self, *, now: bool = False) -> None:
        """Remember for good what was verified."""
        if now or time.monotonic() >= self._checkpoint_due:
            self._mirror.memory.commit(self._mirror.store.flush_all)
            self._checkpoint_due = time.monotonic() + CHECKPOINT_SECONDS
