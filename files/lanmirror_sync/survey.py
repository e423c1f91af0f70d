"""What is to be done: each subdir's index is judged, and compared with what is held. Nothing is written."""

from __future__ import annotations

import logging
import posixpath
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from lanmirror_sync import repodata
from lanmirror_sync.config import ALL, Config, Options, Subdir
from lanmirror_sync.mirror import Mirror
from lanmirror_sync.plan import ALL_SHOWN, PACKAGE_SUFFIXES, Hidden, Plan, compare, known_files, matcher, too_many
from lanmirror_sync.publish import FOLDER, RECIPE, stamps
from lanmirror_sync.repodata import Index, RepodataError
from lanmirror_sync.report import in_words, is_everybodys
from lanmirror_sync.standing import Standing
from lanmirror_sync.upstream import Candidate, Search, Sent, dated_before, newest, published, unpack

if TYPE_CHECKING:
    from lanmirror_sync.keeping import Keeping

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """A subdir of which the upstream's index is to be published.

    Attributes:
        standing: how it stood.
        sent: the index; its data is None where it is what was sent the last time.
        index: None where it was put away, to be read again when it is published.
        size: of the unpacked index in bytes.
        names: how many package names are published of it.
        plan: what is needed before that.
        urls: where its packages are to be had, the best first.
        beside: whence the files beside the index are to be had.
        choice: what differs whenever what is to be held does for another reason than the index; "" where it is all.
        refused: why records were left out as faulty, a message each.
        settled: whether nothing is to be done: see `Unchanged`, in place of which it is where all is to be looked at.
    """

    subdir: Subdir
    standing: Standing
    sent: Sent
    index: Index | None
    size: int
    names: int
    plan: Plan
    urls: tuple[str, ...]
    beside: Subdir
    refused: tuple[str, ...]
    choice: str
    settled: bool = False


@dataclass(frozen=True)
class Unchanged:
    """A subdir that is complete, and whose index the upstream did not change."""

    subdir: Subdir
    standing: Standing
    sent: Sent


@dataclass(frozen=True)
class Absent:
    """A subdir of which the upstream said at every place that it has no index, in no form; nothing of it is served."""

    subdir: Subdir


@dataclass(frozen=True)
class Unusable:
    """A subdir of which no index can be published.

    Attributes:
        message: why.
        unreachable: whether the upstream could not be asked.
        crash: the fault of the program that is to blame.
    """

    subdir: Subdir
    message: str
    unreachable: bool = False
    crash: Exception | None = None


Outcome = Finding | Unchanged | Absent | Unusable


@dataclass(frozen=True)
class _PutOff:
    """A subdir that is to be judged when the indexes of the others are known."""

    sent: Sent


class Survey:
    """Looks at every subdir that is wanted.

    Args:
        whole: whether the index is read of a subdir too of which there is nothing to do.
    """

    def __init__(self, mirror: Mirror, options: Options, searches: Sequence[Search], *, whole: bool = False) -> None:
        self._mirror = mirror
        self._options = options
        self._whole = whole
        self._open = list(searches)
        # What follows from an index that names no package, where no other form names one.
        self._in_doubt: dict[Search, Outcome] = {}
        # What they need may depend on every index, so these are judged again when the others are known.
        self._put_off: list[tuple[Search, Sent]] = []
        self._all_known = False
        self._keeping = self._keep_sets()
        self.asked = len(searches)

    def add(self, search: Search) -> None:
        """Look at a further subdir, or at one of which another index was published meanwhile."""
        self._open.append(search)

    @property
    def pending(self) -> bool:
        """Whether there are subdirs of which nothing is known yet."""
        return bool(self._open or self._put_off)

    def ready(self, seconds: float) -> Iterator[Outcome]:
        """Yield what has been found out; wait for at most so many seconds where that is nothing."""
        waiting = [search.waits_for for search in self._open if search.waits_for]
        if waiting and len(waiting) == len(self._open):
            futures.wait(waiting, seconds, futures.FIRST_COMPLETED)
        for search in list(self._open):
            if outcome := self._outcome(search):
                self._open.remove(search)
                if isinstance(outcome, Absent) and self._keeping:
                    self._keeping.leave_out(outcome.subdir)
                if isinstance(outcome, _PutOff):
                    self._put_off.append((search, outcome.sent))
                else:
                    yield outcome
        while self._put_off and not self._open:
            self._all_known = True
            search, sent = self._put_off.pop(0)
            outcome = self._outcome(search, sent)
            if outcome is None:
                self._open.append(search)
            elif not isinstance(outcome, _PutOff):
                yield outcome

    def waits_for(self) -> list[str]:
        """Return the paths of the subdirs of which nothing is known yet."""
        return [str(search.subdir.path) for search in (*self._open, *(search for search, _ in self._put_off))]

    def _outcome(self, search: Search, sent: Sent | None = None) -> Outcome | _PutOff | None:
        """Return what is to be done with a subdir; None while its index is awaited. It fails alone.

        Args:
            search: of its index.
            sent: what was put off.
        """
        path = search.subdir.path
        try:
            while sent := sent or search.poll():
                if outcome := self._judged(search, sent):
                    return outcome
                sent = None
            return (self._in_doubt.get(search) or self._nothing(search)) if search.over else None
        except OSError as error:
            if is_everybodys(error):
                raise
            return Unusable(search.subdir, f"{path}: {in_words(error)}; {self._ours(search)}")
        except Exception as error:
            log.exception("%s: this is a fault of the program", path)
            return Unusable(search.subdir, f"{path}: a fault of the program: {error!r}", crash=error)

    def _judged(self, search: Search, sent: Sent) -> Outcome | _PutOff | None:
        """Return what follows from a form of the index; None where it is no good."""
        subdir, standing, path = search.subdir, search.standing, search.subdir.path
        data, settled = sent.data, False
        waits = subdir.choice is not None and self._keeping is not None and self._keeping.solves and not self._all_known
        if data is None:
            if waits:
                return _PutOff(sent)
            settled = self._is_settled(subdir, standing)
            if settled and not self._whole:
                return Unchanged(subdir, standing, sent)
            data = self._mirror.store.index_path(path).read_bytes()
        candidate = search.read(sent, data)
        if candidate is None:
            return None
        count, before = len(candidate.index.packages), self._listed(subdir, standing)
        if not count and not settled:
            search.doubted = True
            if self._keeping:
                self._keeping.leave_out(subdir)
            empty = Unusable(subdir, f"{path}: the upstream's index names no package any more; ours is kept")
            self._in_doubt.setdefault(search, empty if before else self._finding(search, candidate))
            return None
        if refusal := self._refusal(search, sent, data, count, before):
            return refusal
        if self._keeping:
            self._keeping.offer(subdir, sent)
        return _PutOff(sent) if waits else replace(self._finding(search, candidate), settled=settled)

    def _refusal(self, search: Search, sent: Sent, data: bytes, count: int, before: int) -> Unusable | None:
        """Return why an index is not published that is older than ours, or lost too much; None where it is.

        Args:
            search: its own.
            sent: the index.
            data: as it was sent.
            count: how many packages it names.
            before: how many the last one named.
        """
        subdir, standing, path = search.subdir, search.standing, search.subdir.path
        limit = self._mirror.config.max_delete
        if not self._options.accept_older and self._is_older(subdir, standing, sent, data):
            return Unusable(
                subdir,
                f"{path}: the upstream's index ({sent.validators.last_modified}) is older than ours "
                f"({standing.last_modified}), which is kept; to publish it all the same, run with --accept-older",
            )
        if too_many(before - count, before, limit):
            return Unusable(
                subdir,
                f"{path}: the upstream's index has {count} packages, and the last one had {before}; that is more than "
                f"max_delete ({limit:g} %) lets go at once, and ours is kept; if the upstream is right, run once with "
                "--max-delete 100",
            )
        return None

    def _nothing(self, search: Search) -> Outcome:
        """Return what follows where no form was any good."""
        subdir, path = search.subdir, search.subdir.path
        if search.problems:
            problems = "; ".join(search.problems)
            message = f"{path}: no index can be used{self._ours(search)}: {problems}"
            return Unusable(subdir, message, unreachable=search.unreachable)
        if self._listed(subdir, search.standing):
            return Unusable(subdir, f"{path}: the upstream does not have it any more{self._ours(search)}")
        return Absent(subdir)

    def _ours(self, search: Search) -> str:
        there = self._mirror.store.path(search.subdir.path / "repodata.json").exists()
        return ", ours is kept" if there else ", and none is served"

    def _listed(self, subdir: Subdir, standing: Standing) -> int:
        """Return how many packages the last index named; ours is read only where nothing is remembered of it."""
        if standing.listed is not None:
            return standing.listed
        if standing.held is not None:
            return standing.held
        try:
            return len(repodata.parse(self._mirror.store.path(subdir.path / "repodata.json").read_bytes()).packages)
        except (FileNotFoundError, RepodataError):
            return 0

    def _is_older(self, subdir: Subdir, standing: Standing, sent: Sent, data: bytes) -> bool:
        """Tell whether an index is older than ours: it has an earlier date, and its newest record is older too."""
        if sent.sha256 == standing.sha256 or not dated_before(sent.validators, published(standing)):
            return False
        try:
            ours = newest(unpack(self._mirror.store.index_path(subdir.path).read_bytes(), standing.form))
            return newest(unpack(data, sent.form)) < ours
        except (OSError, RepodataError):
            return False

    def _is_settled(self, subdir: Subdir, standing: Standing) -> bool:
        """Tell whether a subdir is complete, and as this program left it; or its index is, where only that matters."""
        config = self._mirror.config
        indexes = self._options.indexes
        return (
            (standing.indexed if indexes else standing.complete)
            and standing.held is not None
            and standing.exclude == list(config.exclude)
            and standing.rules == (subdir.rules.key if subdir.rules else "")
            and (standing.comes is None or time.time() < standing.comes)
            and standing.recipe == RECIPE
            and (standing.on_demand, standing.hold) == (config.on_demand, subdir.hold)
            and _but(indexes, standing.stamps) == _but(indexes, stamps(self._mirror.store, subdir.path))
            and (indexes or standing.choice == self._choice(subdir))
            and not (subdir.hold != ALL and self._options.delete and self._mirror.memory.orphans(str(subdir.path)))
        )

    def _finding(self, search: Search, candidate: Candidate) -> Finding:
        """Plan what a subdir needs."""
        subdir, path = search.subdir, search.subdir.path
        index = related_here(self._mirror.config, subdir, candidate.index)
        memory, store = self._mirror.memory, self._mirror.store
        known = known_files(store.files(path, PACKAGE_SUFFIXES), memory.verified(str(path)), index.packages)
        concealed, config = hidden(subdir, index), self._mirror.config
        chosen, problems = self._chosen(subdir, index, concealed, known)
        plan = compare(index.packages, known, config.exclude, concealed, chosen, on_demand=config.on_demand)
        if index.base_url and self._mirror.config.on_demand:
            log.warning("%s: its packages are elsewhere (base_url), and only what is held can be had here", path)
        for name, reason in index.left_out.items():
            log.info("%s: %r is left out: %s", path, name, reason)
        # From where the index came: another upstream may be down, or at another moment. But rather there than not at
        # all, or after a long wait; of what it says, only what the index names is published.
        place, _, _ = candidate.sent.validators.url.rpartition("/")
        others = [url for url in subdir.index_urls if url != place]
        urls = subdir.urls
        if index.base_url:  # CEP 15: the packages are not beside the index
            try:
                urls = (*urls, urljoin(f"{subdir.index_urls[0]}/", index.base_url).rstrip("/"))
            except ValueError:
                log.warning("%s: its base_url is none: %r", path, index.base_url[:200])
        refused = tuple(f"{path}: {name!r} is refused: {reason}" for name, reason in index.refused.items())
        refused += tuple(f"{path}: keep-set {problem}; nothing that is held is let go" for problem in problems)
        return Finding(
            subdir, search.standing, candidate.sent, index, candidate.size,
            len({package.name for name, package in index.packages.items() if name not in plan.excluded}), plan, urls,
            replace(subdir, index_urls=(place, *others)), refused,
            search.standing.choice if self._options.indexes else self._choice(subdir),
        )  # fmt: skip

    def _choice(self, subdir: Subdir) -> str:
        """Return `Finding.choice` as of now."""
        if subdir.choice is None:
            return ""
        return f"{subdir.choice.key} {self._keeping.key()}" if self._keeping else subdir.choice.key

    def _chosen(
        self, subdir: Subdir, index: Index, concealed: Hidden, here: Collection[str]
    ) -> tuple[frozenset[str] | None, Sequence[str]]:
        """Return what of an index is to be held, by file name, None for all; and what is wrong with keep-sets."""
        if subdir.choice is None:
            return None, ()
        if self._options.indexes:
            # Nothing is fetched, and nothing more is let go than the last sync found.
            return frozenset(index.packages.keys() - self._mirror.memory.orphans(str(subdir.path))), ()
        # Loaded where something is chosen.
        from lanmirror_sync.choose import selected  # noqa: PLC0415

        out = self._barred(subdir, index, concealed)
        chosen = selected(subdir.choice, index, out)
        # An index that names nothing is judged before the others are known, and nothing of it is needed.
        if self._keeping is None or not (index.packages or self._all_known):
            return frozenset(chosen), ()
        needed, problems = self._keeping.needs(subdir, index, out)
        chosen |= needed
        if problems:
            chosen |= {name for name in here if name in index.packages and name not in out}
        return frozenset(chosen), problems

    def _barred(self, subdir: Subdir, index: Index, concealed: Hidden | None = None) -> set[str]:
        """Return what of an index may not be held, by file name."""
        from lanmirror_sync.choose import barred  # noqa: PLC0415 - likewise

        concealed = hidden(subdir, index) if concealed is None else concealed
        is_excluded = matcher(self._mirror.config.exclude)
        out = {name for name, package in index.packages.items() if is_excluded(package.name)}
        out |= concealed.blocked | concealed.young
        return barred(subdir.choice, index, out) if subdir.choice else out

    def _keep_sets(self) -> Keeping | None:
        """Return the keep-sets of the configuration; None where it has none, or where nothing is fetched."""
        if self._options.indexes or not any(one.choice and one.choice.keep for one in self._mirror.config.subdirs()):
            return None
        from lanmirror_sync.keeping import Keeping  # noqa: PLC0415 - likewise

        return Keeping(self._mirror, self._barred)


def hidden(subdir: Subdir, index: Index) -> Hidden:
    """Return what of an index the rules of its subdir hide now."""
    if subdir.rules is None:
        return ALL_SHOWN
    # Loaded where it is asked for.
    from lanmirror_sync.hidden import judge  # noqa: PLC0415

    return judge(subdir.rules, str(subdir.path), index, time.time())


def related_here(config: Config, subdir: Subdir, index: Index) -> Index:
    """Return an index without the relations of its channel (CEP 42) that lead to channels which are not mirrored."""
    channels = {str(other.channel) for other in config.subdirs()}

    def is_here(target: str) -> bool:
        return posixpath.normpath(posixpath.join(str(subdir.channel), target)) in channels

    return repodata.without_relations(index, is_here)


def _but(indexes: bool, found: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Return `publish.stamps`, for a look at the `indexes` alone without that of the folder: packages come and go."""
    return {name: stamp for name, stamp in found.items() if not (indexes and name == FOLDER)}
