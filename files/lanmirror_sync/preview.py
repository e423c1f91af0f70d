"""`plan`: what a sync would do, in figures. Indexes are read and kept for it; nothing that is served is touched."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from msgspec.structs import replace

from lanmirror_sync import __version__, installers, listing, outlook, planned, room
from lanmirror_sync.answers import UnreachableError
from lanmirror_sync.config import ALL, NONE, Options
from lanmirror_sync.fetch import Fetcher
from lanmirror_sync.mirror import Mirror
from lanmirror_sync.outlook import FileSystem, Needs, Outlook, Part, Rate, Sum
from lanmirror_sync.plan import PACKAGE_SUFFIXES, Plan, due, leaving
from lanmirror_sync.report import Report
from lanmirror_sync.room import Balance, Claim
from lanmirror_sync.status import RUN
from lanmirror_sync.survey import Absent, Finding, Survey, Unchanged, Unusable
from lanmirror_sync.sweep import RETIRED, retired
from lanmirror_sync.upstream import Search

POLL_SECONDS = 0.1
# A sync that fetched less tells nothing of how fast it goes.
LEAST_MEASURED = 1 << 20


class Preview:
    """A look at what a sync would do.

    Args:
        rate: bytes a second at which packages come, 0 where the last sync is to tell.
    """

    def __init__(
        self, mirror: Mirror, options: Options, searches: Sequence[Search], fetcher: Fetcher, rate: int = 0
    ) -> None:
        self._mirror = mirror
        self._options = options
        self._rate = rate
        self._now = time.time()
        self.report = Report(asked=len(searches))
        self._survey = Survey(mirror, options, searches, whole=True)
        self._folders = [folder for folder in mirror.config.folders if fnmatchcase(folder, options.only)]
        self._installers = installers.Installers(mirror, fetcher, self.report, self._folders)
        self._claims: list[Claim] = []
        self._names: dict[tuple[str, str], Sum] = {}

    def look(self) -> Outlook:
        """Return what a sync would do.

        Raises:
            UnreachableError: no index could be asked for.
        """
        subdirs = self._subdirs()
        folders = self._of_installers()
        channels: dict[str, list[Part]] = {}
        for path, part in subdirs.items():
            channels.setdefault(path.rpartition("/")[0], []).append(part)
        total = outlook.together((*subdirs.values(), *folders.values()))
        claims = [room.of_partial(self._mirror.store), *self._claims] if self._claims else []
        balances = sorted(room.balances(self._mirror.config, claims).values(), key=lambda one: one.disk.path)
        rate = self._speed()
        fits = all(balance.fits for balance in balances)
        return Outlook(
            outlook.FORMAT, __version__, self._now, self._options.only, subdirs,
            {channel: outlook.together(parts) for channel, parts in channels.items()}, folders, total,
            outlook.biggest(self._names), self._retired(), [_told(balance) for balance in balances], fits,
            [] if fits else list(room.would_fit(self._mirror.config, claims)), rate,
            total.fetch.size / rate.bytes_per_second if rate else None, self.report.failures,
        )  # fmt: skip

    def _subdirs(self) -> dict[str, Part]:
        """Return what is found out about each subdir, in the order of the configuration."""
        found: dict[str, Part] = {}
        while self._survey.pending:
            for outcome in self._survey.ready(POLL_SECONDS):
                path, hold = str(outcome.subdir.path), outcome.subdir.hold
                match outcome:
                    case Finding():
                        # One at a time: its index is let go before the next is looked at.
                        found[path] = self._measured(outcome)
                        for message in outcome.refused:
                            self.report.fail(path, message)
                    case Absent():
                        found[path] = Part(outlook.ABSENT, hold)
                    case Unusable():
                        self.report.unreachable += outcome.unreachable
                        self.report.crashes += [outcome.crash] if outcome.crash else []
                        self.report.fail(path, outcome.message)
                        found[path] = Part(outlook.FAILED, hold)
                    case Unchanged():
                        raise AssertionError("every index is read")
        if self.report.asked and self.report.unreachable == self.report.asked:
            raise UnreachableError(f"no index of the upstream can be reached, nothing was changed: {self.report.first}")
        paths = (str(subdir.path) for subdir in self._mirror.config.subdirs())
        return {path: found[path] for path in paths if path in found}

    def _measured(self, finding: Finding) -> Part:
        """Return a subdir in figures."""
        subdir, plan, packages = finding.subdir, finding.plan, finding.index.packages if finding.index else {}
        config, store, path = self._mirror.config, self._mirror.store, finding.subdir.path
        if packages:
            planned.keep(store, path, finding.sent)
        part, names = outlook.measured(subdir, packages, plan, config.exclude)
        for name, told in names.items():
            key = str(subdir.channel), name
            self._names[key] = self._names.get(key, Sum()) + told
        claims: list[Claim] = []
        if not finding.settled:
            claims = [*room.of_subdir(store, path, plan, finding.size, finding.names, fetches=subdir.hold != NONE)]
        self._claims += claims
        named = len(packages) - (0 if config.on_demand else len(plan.excluded))
        return _with(
            part, outlook.UNCHANGED if finding.settled else outlook.NEW, claims, *self._leaving(finding, plan, named)
        )

    def _leaving(self, finding: Finding, plan: Plan, named: int) -> tuple[Sum, Sum]:
        """Return what of a subdir no index names or nobody wants, and what of that `--delete` takes now."""
        path = finding.subdir.path
        if finding.subdir.hold != NONE:
            sizes = {name: self._size(path / name) for name in plan.orphans}
            return self._goes(str(path), plan.orphans, plan.unwanted, named + len(plan.orphans), sizes)
        here = {name: size for name, size, _ in self._mirror.store.files(path, PACKAGE_SUFFIXES)}
        return self._goes(str(path), here, here, len(here), here)

    def _size(self, file: PurePosixPath) -> int:
        try:
            return self._mirror.store.path(file).stat(follow_symlinks=False).st_size
        except FileNotFoundError:  # a sync beside this one has just deleted it
            return 0

    def _goes(
        self, folder: str, names: Collection[str], unwanted: Collection[str], total: int, sizes: Mapping[str, int]
    ) -> tuple[Sum, Sum]:
        """Return files of a folder that are due to go, and those that `--delete` takes now; see `leaving`."""
        config = self._mirror.config
        _, expired = due(self._mirror.memory.orphans(folder), names, self._now, config.delete_grace_hours)
        gone, _ = leaving(expired, unwanted, total, config.max_delete)
        surplus, delete = (Sum(len(some), sum(sizes[name] for name in some)) for some in (names, gone))
        return surplus, delete

    def _of_installers(self) -> dict[str, Part]:
        """Return the folders of installers in figures."""
        downloads = list(self._installers.all())
        return {
            folder: self._of_folder(folder, {one.name: one.expected.size for one in downloads if one.owner == folder})
            for folder in self._folders
        }

    def _of_folder(self, folder: str, fetched: dict[str, int | None]) -> Part:
        """Return a folder of installers in figures; `fetched` has the size of each that is to be fetched."""
        claims = [room.of_installer(self._mirror.store, folder, size or 0) for size in fetched.values()]
        self._claims += claims
        here = {name: size for name, size, _ in listing.held(self._mirror, folder)}
        page = self._installers.listings.get(folder)
        listed = page.named().keys() if page else set()
        unwanted = self._installers.superfluous(folder)
        none = folder in self._mirror.config.listed
        kept = [size for name, size in here.items() if not none and name not in {*unwanted, *fetched}]
        held, fetch = Sum(len(kept), sum(kept)), Sum(len(fetched), sum(size or 0 for size in fetched.values()))
        part = Part(
            hold=NONE if none else ALL, listed=Sum(len(listed)), wanted=held + fetch, held=held, fetch=fetch,
            unsized=[*fetched.values()].count(None), on_demand=Sum(len(listed - here.keys()) if none else 0),
        )  # fmt: skip
        failed = outlook.FAILED if folder in self.report.failures else ""
        state = failed or (outlook.NEW if fetched else outlook.UNCHANGED)
        return _with(part, state, claims, *self._goes(folder, unwanted, unwanted, len(unwanted), here))

    def _retired(self) -> dict[str, outlook.Retired]:
        """Return what was taken out of the configuration and is here still."""
        grace, since = self._mirror.config.delete_grace_hours, self._mirror.memory.orphans(RETIRED)
        found = {}
        for item in retired(self._mirror):
            path = str(item.path)
            if fnmatchcase(path, self._options.only):
                began, _ = due(since, [path], self._now, grace)
                found[path] = outlook.Retired(item.files, item.size, began[path] + grace * 3600)
        return found

    def _speed(self) -> Rate | None:
        """Return how fast packages come."""
        run, limit = self._mirror.memory.fact(RUN), self._mirror.config.limit_rate
        rate = Rate(self._rate, "--rate") if self._rate else None
        fetched, spent = run.get("fetched_bytes", 0), (run.get("ended") or 0) - (run.get("began") or 0)
        if rate is None and fetched >= LEAST_MEASURED and spent > 0:
            rate = Rate(max(int(fetched / spent), 1), "last sync")
        if limit and (rate is None or rate.bytes_per_second > limit):
            rate = Rate(limit, "limit_rate")
        return rate


def _with(part: Part, state: str, claims: Iterable[Claim], surplus: Sum, delete: Sum) -> Part:
    """Return a part with what is known apart from its index."""
    needs = Needs()
    for claim in claims:
        needs += Needs(claim.size, claim.inodes)
    return replace(part, state=state, needs=needs, surplus=surplus, delete=delete)


def _told(balance: Balance) -> FileSystem:
    there = balance.disk
    return FileSystem(
        there.path, there.free, balance.keep, balance.needed, there.free - balance.needed, balance.lacks,
        there.inodes, balance.inodes, None if there.inodes is None else there.inodes - balance.inodes,
        balance.lacks_inodes,
    )  # fmt: skip
