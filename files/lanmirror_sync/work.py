"""A subdir on its way from what was found to what is served; what the run writes on a finding stands here."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import msgspec

from lanmirror_sync import repodata
from lanmirror_sync.answers import FetchError
from lanmirror_sync.channeldata import Channeldata
from lanmirror_sync.config import NONE, Options, Subdir
from lanmirror_sync.fetch import BIG_BYTES, Fetcher
from lanmirror_sync.mirror import Mirror
from lanmirror_sync.plan import (
    ALL_SHOWN,
    PACKAGE_SUFFIXES,
    Plan,
    compare,
    in_order,
    known_files,
    matcher,
    package_of,
    too_many,
)
from lanmirror_sync.publish import NOTHING, RECIPE, Content, Edition, Kept, Publisher, stamps
from lanmirror_sync.repodata import Index, Package, RepodataError
from lanmirror_sync.report import Report
from lanmirror_sync.shards import RecordError
from lanmirror_sync.sinks import Download, Expected, Landed
from lanmirror_sync.store import Store, cores, digest
from lanmirror_sync.survey import Finding, related_here
from lanmirror_sync.sweep import Sweeper
from lanmirror_sync.upstream import Beside, trust, unpack
from lanmirror_sync.wrongs import Suspect, Wrongs

if TYPE_CHECKING:
    from lanmirror_sync.room import Claim

# Parsed indexes of so many bytes are kept until they are published; further ones are read again.
KEPT_BYTES = 1 << 27
# So many files are hashed between two notes of which of them are right.
HASHED_AT_ONCE = 10_000
# More records than this that cannot be written are no accident.
MOST_REFUSED = 100

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extras:
    """What there is beside an index; see `publish.Content`.

    Attributes:
        complete: whether nothing of it had to be taken from what is served.
    """

    current: bytes | None
    run_exports: bytes | None
    bz2: bool
    complete: bool


@dataclass
class Work:
    """What the run knows of a subdir that it works on.

    Attributes:
        finding: where it begins; its index is let go when it was published.
        plan: the finding's, with every file hashed that had to be; with `on_demand` as of when the index was published.
        fetches: whether its packages are fetched.
        beside: the files beside the index, which are being asked for.
        pending: how many of its packages are not settled.
        refused: why records of the index are left out as faulty, a message each.
        unwritable: file names of records that cannot be written in every format.
        suspects: of the packages, the ones that were wrong the last time, until it is known whether they changed.
        doubted: file names that were wrong the last time, suspects among them.
        failed: file name to the reason why a package could not be had.
        known_wrong: of these, the ones that were not asked for, being as wrong as the last time.
        accepted: of these, the ones whose absence the administrator accepted.
        staged: new bytes of served names, verified, that wait for the index to be published.
        moved: when the last of its packages was settled (monotonic time, seconds).
        early: whether the index was published without those that keep it waiting.
        extras: what came of `beside`.
        ahead: the index as it is published if all of its packages come, where it was made already.
        broken: whether it was given up: nothing more is published.
        kept: with `on_demand`, the upstream's index that is kept; None until it is published.
        done: whether it was published for the last time in this run.
    """

    finding: Finding
    plan: Plan
    fetches: bool
    beside: Beside
    refused: list[str]
    pending: int = 0
    unwritable: set[str] = field(default_factory=set)
    suspects: list[Suspect] = field(default_factory=list)
    doubted: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    known_wrong: int = 0
    accepted: set[str] = field(default_factory=set)
    staged: dict[str, Landed] = field(default_factory=dict)
    moved: float = 0.0
    early: bool = False
    extras: Extras | None = None
    ahead: Edition | None = None
    broken: bool = False
    kept: Kept | None = None
    done: bool = False

    @property
    def path(self) -> PurePosixPath:
        """Where it stands below the working directory."""
        return self.finding.subdir.path

    @functools.cached_property
    def replaced(self) -> frozenset[str]:
        """File names that are there with other bytes."""
        return frozenset(package.file_name for package in self.plan.replace) | self.plan.wrong

    @functools.cached_property
    def wanted(self) -> dict[str, Package]:
        """The packages to fetch, by file name."""
        packages = (*self.plan.fetch, *self.plan.replace) if self.fetches else ()
        return {package.file_name: package for package in packages}

    def claims(self, store: Store, *, packages: bool = True) -> Iterator[Claim]:
        """Yield what is yet to come of it and takes room: its index, and its packages unless they are left out."""
        from lanmirror_sync import room  # noqa: PLC0415 - a run that finds nothing new needs none

        fetches, finding = self.fetches and packages, self.finding
        yield from room.of_subdir(
            store, self.path, self.plan, finding.size, finding.names, fetches=fetches, index=not self.indexed
        )

    @property
    def indexed(self) -> bool:
        """With `on_demand`, whether its index is published."""
        return self.kept is not None


class Desk:
    """Does the work on each subdir: what is fetched for it, and what is published."""

    def __init__(self, mirror: Mirror, options: Options, fetcher: Fetcher, report: Report) -> None:
        self._mirror = mirror
        self._options = options
        self._fetcher = fetcher
        self._report = report
        self._kept = 0
        self._accepted = matcher(mirror.config.accept_missing)
        self._excluded = matcher(mirror.config.exclude)
        self.publisher = Publisher(mirror)
        self.wrongs = Wrongs(mirror.memory, fetcher)
        self.channeldata = Channeldata(mirror, fetcher)
        self.sweeper = Sweeper(mirror, options, report)

    def begin(self, finding: Finding) -> Work:
        """Take on a subdir: keep its index, hash what was never verified, ask for the files beside the index."""
        path, store = finding.subdir.path, self._mirror.store
        for message in finding.refused:
            self._report.fail(str(path), message)
        plan = self._hashed(path, finding.plan)
        fetches = finding.subdir.hold != NONE and not self._options.indexes
        beside, refused = Beside(self._fetcher, finding.beside), list(finding.refused)
        if self._mirror.config.on_demand:
            return Work(finding, plan, fetches, beside, refused)
        if finding.sent.data is not None:
            store.write_file(store.index_path(path), finding.sent.data)
        self._kept += finding.size
        index = finding.index if self._kept <= KEPT_BYTES else None
        finding = replace(finding, sent=replace(finding.sent, data=None), index=index)
        work = Work(finding, plan, fetches, beside, refused)
        self._aim(work)
        return work

    def _aim(self, work: Work) -> None:
        """Take on the packages of a subdir, and see which of them were wrong the last time."""
        path = str(work.path)
        work.pending, work.moved = len(work.wanted), time.monotonic()
        for name in self.wrongs.names(path):
            package = work.wanted.get(name)
            if package and self.wrongs.doubted(path, name, package.digest):
                work.doubted.add(name)
                if suspect := self.wrongs.suspect(path, name, package.digest):
                    work.suspects.append(suspect)

    def downloads(self, work: Work, *, big: bool) -> Iterator[Download]:
        """Yield what is to be fetched for a subdir, of one size, as it is asked for: half a million are too much."""
        suspects = {suspect.name for suspect in work.suspects}
        packages = [
            package
            for package in work.wanted.values()
            if big == ((package.size or 0) > BIG_BYTES) and package.file_name not in suspects
        ]
        for package in in_order(packages, self._mirror.config.jobs):
            yield self.download(work, package)

    def download(self, work: Work, package: Package) -> Download:
        """Return what is to be fetched for a package."""
        name, path, store = package.file_name, work.path / package.file_name, self._mirror.store
        return Download(
            str(work.path), name, tuple(f"{url}/{name}" for url in work.finding.urls),
            Expected(package.size, package.algorithm, package.digest),
            store.partial_path(path, package.digest),
            store.staged_path(path) if work.indexed or name in work.replaced else store.path(path),
            name in work.doubted, self._mirror.config.kept(path),
        )  # fmt: skip

    def settled(self, work: Work, name: str, landed: Landed | None, error: FetchError | None) -> None:
        """Note how a download ended."""
        path = str(work.path)
        work.pending -= 1
        work.moved = time.monotonic()
        if landed is None:
            package = work.wanted[name]
            if error:
                self.wrongs.remember(path, name, package.digest, error)
            self._lost(work, name, str(error))
            return
        self.wrongs.forget(path, name)
        if work.kept is None and name in work.replaced:
            work.staged[name] = landed
        elif work.kept is None or self.publisher.land(work.path, work.kept, name, landed):
            self.remember(path, name, landed)

    def known_wrong(self, work: Work, suspect: Suspect) -> None:
        """Note that a package is as wrong as it was."""
        work.pending -= 1
        work.moved = time.monotonic()
        work.known_wrong += 1
        self._lost(
            work, suspect.name,
            f"is still wrong upstream, and not fetched again until it changes there ({suspect.reason}); "
            "if it is to be no failure, name it in accept_missing",
        )  # fmt: skip

    def _lost(self, work: Work, name: str, reason: str) -> None:
        work.failed[name] = reason
        if self._accepted(name):
            work.accepted.add(name)
            log.info("%s/%s: is missing, as accept_missing allows: %s", work.path, name, reason)
        else:
            self._report.fail(str(work.path), f"{work.path}/{name}: {reason}")

    def remember(self, owner: str, name: str, landed: Landed) -> None:
        """Remember that a file was verified."""
        self._mirror.memory.verify(owner, [(name, landed.size, landed.mtime_ns, bytes.fromhex(landed.digest))])

    def _hashed(self, path: PurePosixPath, rough: Plan) -> Plan:
        """Hash the files that were never verified, such as those of a run that was killed."""
        if not rough.check:
            return rough
        log.info("%s: %d files that stand there were never verified, and are hashed", path, len(rough.check))
        store, memory = self._mirror.store, self._mirror.memory

        def right(package: Package) -> bool:
            try:
                return digest(store.path(path / package.file_name), package.algorithm) == package.digest
            except FileNotFoundError:  # another run deleted it
                return False

        held = size = 0
        wrong = []
        with ThreadPoolExecutor(cores()) as pool:
            for start in range(0, len(rough.check), HASHED_AT_ONCE):
                batch = rough.check[start : start + HASHED_AT_ONCE]
                for package, good in zip(batch, pool.map(right, batch), strict=True):
                    if not good:
                        wrong.append(package)
                        continue
                    held += 1
                    size += package.size or 0
                    status = store.path(path / package.file_name).stat()
                    row = (package.file_name, status.st_size, status.st_mtime_ns, bytes.fromhex(package.digest))
                    memory.verify(str(path), [row])
                memory.commit(store.flush_all)
        others = frozenset(package.file_name for package in wrong if not rough.is_chosen(package.file_name))
        return replace(
            rough, held=rough.held + held, held_bytes=rough.held_bytes + size, check=(),
            replace=(*rough.replace, *(package for package in wrong if package.file_name not in others)),
            wrong=rough.wrong | others,
        )  # fmt: skip

    def unwanted(self, subdir: Subdir, file_names: Iterable[str]) -> frozenset[str]:
        """Return the files of packages that the configuration excludes; that is asked for deletions alone."""
        if not self._options.delete:
            return frozenset()
        is_blocked = subdir.rules.blocks_file if subdir.rules else ALL_SHOWN.blocks_file
        return frozenset(name for name in file_names if self._excluded(package_of(name)) or is_blocked(name))

    # ---- what is served --------------------------------------------------------------------------------

    def make_ahead(self, work: Work) -> None:
        """Make the index of a subdir while its packages come, as it is to be if every one of them does.

        Not where it was put away, or where it is published in two steps: its formats depend on the first.
        """
        may = work.pending and not (
            work.indexed or work.ahead or work.early or work.failed or work.replaced or work.suspects
        )
        if may and work.finding.index and work.beside.answered():
            try:
                work.ahead = self.publisher.make(work.path, self._content(work, work.finding.index))
            except RecordError as error:
                self._refuse(work, error)

    def publish_early(self, work: Work) -> bool:
        """Publish a subdir without the packages that it waits for; return whether it names any at all."""
        work.early = True
        there = {name for name, _, _ in self._mirror.store.files(work.path, PACKAGE_SUFFIXES)}
        awaited = {package.file_name for package in work.plan.fetch} - there
        awaited |= work.replaced - work.staged.keys()
        return self.publish(work, awaited - work.failed.keys())

    def publish(self, work: Work, awaited: Set[str] = frozenset()) -> bool:
        """Serve the upstream's index, as far as its packages are here; then delete what is due.

        Args:
            work: the subdir.
            awaited: file names that may still come: they are left out for now, and nothing is deleted.

        Returns:
            Whether it was published: an index that would name nothing is not, where none is served yet.
        """
        path, finding = work.path, work.finding
        index = finding.index or self._read_again(work)
        absent = work.failed.keys() | awaited
        if not absent:
            self.channeldata.ask(finding.subdir.channel)
        lost = work.replaced & absent
        former = self.publisher.former(path, lost | self._leaving(work, index, absent))
        content = self._content(work, index, absent, former)
        empty = content.leave_out >= index.packages.keys() and not former.packages
        if absent and empty and not self._mirror.store.path(path / "repodata.json").exists():
            log.warning("%s: not published, none of its %d packages is here", path, len(index.packages))
            if not awaited:
                self._note(work, index, len(absent))
            return False
        content = self._put(work, content)
        left_out = content.leave_out
        sizes = [package.size or 0 for name, package in index.packages.items() if name not in left_out]
        sizes += [package.size or 0 for package in former.packages.values()]
        missing = len(absent - former.packages.keys())
        if not awaited:
            gone = {*work.plan.orphans, *(lost - former.packages.keys())} - former.packages.keys()
            self.sweeper.packages(path, sorted(gone), work.plan.unwanted, len(sizes) + len(gone))
        self._note(work, index, missing, named=len(sizes), held=len(sizes), size=sum(sizes), published=time.time())
        self._mirror.memory.commit(self._mirror.store.flush_all)
        log.info(
            "%s: published, %d packages%s%s%s", path, len(sizes),
            f", {len(work.plan.excluded)} excluded, hidden by rules or not chosen" if work.plan.excluded else "",
            f", {missing} left out because they could not be had" if missing and not awaited else "",
            f", {len(awaited)} awaited" if awaited else "",
        )  # fmt: skip
        work.staged.clear()
        if not awaited:
            work.finding = replace(finding, index=None)
            work.extras = None
        return True

    # ---- on demand -------------------------------------------------------------------------------------

    def publish_complete(self, work: Work) -> bool:
        """Serve the upstream's index as it is, before its packages: what is not here, the site fetches on demand.

        A file of other bytes than the index names is deleted, since it would be served in place of the right one.

        Returns:
            Whether that could be: another run may have published an index since the upstream was asked for this one,
            and only the upstream can tell which of the two is newer.
        """
        path, finding, memory, store = work.path, work.finding, self._mirror.memory, self._mirror.store
        subdir, sent = finding.subdir, finding.sent
        with store.alone(path):
            if memory.standing(path).published != finding.standing.published:
                return False
            index = finding.index or self._read_again(work)
            plan = work.plan = self._hashed(path, self._compared(path, index, finding.plan))
            if self._is_too_much(path, plan):
                work.broken = True
                return True
            if sent.data is not None:
                store.write_file(store.index_path(path), sent.data)
            content = self._put(work, self._content(work, index))
            memory.forget(str(path), work.replaced)
            whole, held, size = self._extras(work).complete, plan.held, plan.held_bytes
            for name in self._sweep(subdir, plan, len(index.packages)):
                if name in index.packages and name not in plan.excluded and name not in plan.wrong:
                    held, size = held - 1, size - (index.packages[name].size or 0)
            self._aim(work)
            work.kept = Kept(store, path)
            awaited = subdir.hold != NONE and plan.files > 0
            named = len(index.packages.keys() - content.leave_out)
            self.note(
                path, in_sync=not awaited, hold=subdir.hold, on_demand=True, indexed=whole,
                complete=whole and not awaited, named=named, held=held, size=size,
                missing=finding.standing.missing if awaited else 0, published=time.time(),
                **self._of_index(work, index),
            )  # fmt: skip
        log.info("%s: published, %d packages, of which %d are held", path, named, held)
        work.finding, work.extras = replace(finding, sent=replace(sent, data=None), index=None), None
        work.done = not work.wanted
        return True

    def finish(self, work: Work) -> None:
        """Note how a subdir stands whose packages are settled; its index may be a later one by now."""
        path = work.path
        with self._mirror.store.alone(path):
            plan = self._compared(path, self._read_again(work), work.plan)
            missing = len(work.failed.keys() & {package.file_name for package in plan.fetch})
            standing = self._mirror.memory.standing(path)
            self.note(
                path, in_sync=work.failed.keys() <= work.accepted, held=plan.held, size=plan.held_bytes,
                missing=missing, complete=standing.indexed and not (plan.files or plan.check),
            )  # fmt: skip
        log.info("%s: %d packages are held, %d could not be had", path, plan.held, missing)

    def restrict(self, path: PurePosixPath) -> None:
        """Have the served index of a subdir name only what is held: the site does not fetch the rest any more."""
        with self._mirror.store.alone(path):
            index = self.publisher.served(path)
            if index is not None:
                plan = self._hashed(path, self._compared(path, index))
                lost = {package.file_name for package in (*plan.fetch, *plan.replace)} | plan.excluded
                self.publisher.restrict(path, index, lost)
                held = len(index.packages) - len(lost)
                self._change(
                    path, named=held, held=held, size=plan.held_bytes, on_demand=False, complete=False,
                    published=time.time(), stamps=stamps(self._mirror.store, path),
                )  # fmt: skip
                log.info("%s: nothing comes on demand any more; it is served with the %d packages here", path, held)

    def _compared(self, path: PurePosixPath, index: Index, former: Plan | None = None) -> Plan:
        """Return what a subdir needs now, where `former` says what is hidden and chosen."""
        memory, store, config = self._mirror.memory, self._mirror.store, self._mirror.config
        hidden, chosen = (former.hidden, former.chosen) if former else (ALL_SHOWN, None)
        known = known_files(store.files(path, PACKAGE_SUFFIXES), memory.verified(str(path)), index.packages)
        return compare(index.packages, known, config.exclude, hidden, chosen, on_demand=config.on_demand)

    def _is_too_much(self, path: PurePosixPath, plan: Plan) -> bool:
        """Tell, and say so, whether an index names other bytes for more of what is held than an upstream changes."""
        if not plan.replace:
            return False
        files = self._mirror.store.files(path, PACKAGE_SUFFIXES)
        sound = known_files(files, self._mirror.memory.verified(str(path)))
        wrong = sum(isinstance(sound.get(package.file_name), bytes) for package in plan.replace)
        limit = self._mirror.config.max_delete
        if not too_many(wrong, plan.held + wrong, limit):
            return False
        self._report.fail(
            str(path),
            f"{path}: the upstream's index has other bytes for {wrong} of {plan.held + wrong} packages that are held; "
            f"that is more than max_delete ({limit:g} %) lets go at once, and ours is kept; if the upstream is right, "
            "run once with --max-delete 100",
        )
        self.note_failure(path, of_index=True)
        return True

    def _sweep(self, subdir: Subdir, plan: Plan, named: int) -> Sequence[str]:
        """See to the packages that are not to be held; return those that were deleted."""
        path = subdir.path
        if subdir.hold != NONE:
            return self.sweeper.packages(path, plan.orphans, plan.unwanted, named + len(plan.orphans))
        here = {name for name, _, _ in self._mirror.store.files(path, PACKAGE_SUFFIXES)}
        if here:
            log.info("%s: none is to be held, and %d are here: --delete takes them after their grace", path, len(here))
        return self.sweeper.packages(path, sorted(here), here, len(here))

    # ---- what is put in place ----------------------------------------------------------------------------

    def _put(self, work: Work, content: Content) -> Content:
        """Put an index in place, without what cannot be written in every format; return what was put there."""
        drop = work.replaced if self._mirror.config.on_demand else ()
        # What the index is to name can be had before it does, and what it does not name any more cannot afterwards.
        store, told = self._mirror.store, work.plan.hidden.told
        store.show_all_but(work.path, told)
        for _ in range(MOST_REFUSED):
            try:
                self.publisher.publish(work.path, content, work.staged.keys(), work.ahead, drop)
                break
            except RecordError as error:
                self._refuse(work, error)
                content = replace(content, leave_out=content.leave_out | work.unwritable)
            except RepodataError as error:
                log.warning(
                    "%s: what is beside the index cannot be used, and it is served without: %s", work.path, error
                )
                content = replace(content, current=None, run_exports=None)
        else:
            raise RepodataError(f"more than {MOST_REFUSED} of its records cannot be written")
        store.hide(work.path, told)
        work.ahead = None
        for name, landed in work.staged.items():
            self.remember(str(work.path), name, landed)
        self._mirror.memory.commit(self._mirror.store.flush_all)
        return content

    def _refuse(self, work: Work, error: RecordError) -> None:
        """Leave a record out that cannot be written in every format."""
        message = f"{work.path}: {error.file_name!r} is refused: {error}"
        work.unwritable.add(error.file_name)
        work.refused.append(message)
        self._report.fail(str(work.path), message)

    def _leaving(self, work: Work, index: Index, absent: Set[str]) -> set[str]:
        """Return the files that the new index does not name, of packages of which a new one is not here yet.

        They stay named until it is: a client is not to find neither.
        """
        names = {index.packages[name].name for name in absent if name in index.packages}
        return {name for name in work.plan.orphans if name not in work.plan.unwanted and package_of(name) in names}

    def _read_again(self, work: Work) -> Index:
        """Return an index that was put away while packages were fetched."""
        data = self._mirror.store.index_path(work.path).read_bytes()
        index = repodata.parse(unpack(data, work.finding.sent.form))
        return related_here(self._mirror.config, work.finding.subdir, index)

    def _content(self, work: Work, index: Index, absent: Set[str] = frozenset(), former: Index = NOTHING) -> Content:
        """Return what is to be served of a subdir.

        Args:
            work: the subdir.
            index: the upstream's.
            absent: file names of packages that are not here.
            former: see `Content`.
        """
        extras = self._extras(work)
        left_out = work.plan.excluded | absent | work.unwritable
        return Content(index, left_out, former, extras.current, extras.run_exports, extras.bz2)

    def _extras(self, work: Work) -> Extras:
        """Return what there is beside the index, once it has been waited for."""
        if work.extras is None:
            current, current_came = self._beside(work, "current_repodata.json")
            exports, exports_came = self._beside(work, "run_exports.json")
            work.extras = Extras(current, exports, self._has_bz2(work), current_came and exports_came)
        return work.extras

    def _beside(self, work: Work, name: str) -> tuple[bytes | None, bool]:
        """Return a file of the upstream's beside its index, and whether it came: else ours stands in for it."""
        extra = work.beside.current if name.startswith("current") else work.beside.run_exports
        try:
            data = extra.read()
            if data is not None:
                repodata.split(data)
        except (FetchError, RepodataError) as error:
            log.warning("%s/%s: cannot be had, which clients can do without: %s", work.path, name, error)
        else:
            return data, True
        try:
            return self._mirror.store.path(work.path / name).read_bytes(), False
        except FileNotFoundError:
            return None, False

    def _has_bz2(self, work: Work) -> bool:
        """Tell whether the upstream has the index as bzip2; where that cannot be told, it stays as it is."""
        try:
            return work.beside.has_bz2()
        except FetchError:
            return self._mirror.store.path(work.path / "repodata.json.bz2").exists()

    # ---- what is remembered ------------------------------------------------------------------------------

    def _note(self, work: Work, index: Index, missing: int, **changes: Any) -> None:
        """Remember how a subdir stands after it was published, or could not be."""
        done = not work.failed and not work.pending and "published" in changes
        self.note(
            work.path, in_sync=work.failed.keys() <= work.accepted and not work.pending,
            complete=done and self._extras(work).complete, on_demand=False, hold=work.finding.subdir.hold,
            missing=missing,
            **self._of_index(work, index), **changes,
        )  # fmt: skip

    def _of_index(self, work: Work, index: Index) -> dict[str, Any]:
        """Return what is remembered of the upstream's index that a subdir is served from."""
        sent, rules = work.finding.sent, work.finding.subdir.rules
        return {
            "url": sent.validators.url, "etag": sent.validators.etag, "last_modified": sent.validators.last_modified,
            "trust": trust(sent, work.finding.standing, len(index.packages), time.time()),
            "sha256": sent.sha256, "form": sent.form, "stale": sent.stale,
            "exclude": list(self._mirror.config.exclude), "recipe": RECIPE, "listed": len(index.packages),
            "rules": rules.key if rules else "", "choice": work.finding.choice,
            "comes": work.plan.hidden.comes, "refused": work.refused,
        }  # fmt: skip

    def note(self, path: PurePosixPath, *, in_sync: bool, **changes: Any) -> None:
        """Remember how a subdir stands at the end of its part of the run."""
        if in_sync and not self._report.failures.get(str(path)):
            changes["succeeded"] = time.time()
        self._change(path, checked=time.time(), stamps=stamps(self._mirror.store, path), **changes)

    def note_checked(self, path: PurePosixPath, **changes: Any) -> None:
        """Remember that the index of a subdir is the upstream's still."""
        self._change(path, checked=time.time(), **changes)

    def note_failure(self, path: PurePosixPath, *, of_index: bool = False, **changes: Any) -> None:
        """Remember why a subdir was not worked on, or not to its end; or of which no index can be had."""
        self._change(path, of_index=of_index, **changes)

    def _change(self, path: PurePosixPath, *, of_index: bool = False, **changes: Any) -> None:
        """Change what is remembered of a subdir; another run may have done so, and is told of it at once."""
        memory, failures = self._mirror.memory, self._report.failures.get(str(path), [])
        # A refresh of indexes knows nothing of packages; a sync has the last word on both.
        changes["index_failures"] = failures if of_index or self._options.indexes else []
        if not self._options.indexes:
            changes["failures"] = [] if of_index else failures
        with self._mirror.store.alone(path):
            memory.note_standing(path, msgspec.structs.replace(memory.standing(path), **changes))
            memory.commit(self._mirror.store.flush_all)
