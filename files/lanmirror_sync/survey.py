"""What is to be done: each subdir's index is judged, and compared with what is held."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urljoin

from lanmirror_sync import repodata
from lanmirror_sync.config import Config, Options, Subdir
from lanmirror_sync.fetch import Fetcher
from lanmirror_sync.memory import FACT, Memory, known_files
from lanmirror_sync.plan import Plan, plan
from lanmirror_sync.publish import RECIPE, Made, stamps
from lanmirror_sync.repodata import Index, Package, RepodataError
from lanmirror_sync.report import Report
from lanmirror_sync.sinks import Landed
from lanmirror_sync.store import Store, cores, digest
from lanmirror_sync.upstream import Asked, Beside, Candidate, Search, Sent, dated_before, newest, noted, unpack

# Parsed indexes of so many bytes are kept until they are published; further ones are read again.
KEPT_BYTES = 1 << 27
# So many files are hashed between two notes of which of them are right.
HASHED_AT_ONCE = 10_000

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
class Task:
    """A subdir on its way from the upstream's index to the served one.

    Attributes:
        index: None where it was put away, to be read again when it is published.
        size: of the unpacked index in bytes.
        pending: how many of its packages are not settled.
        failed: file name to the reason why a package could not be had.
        staged: new bytes of served names, verified, that wait for the index to be published.
        moved: when the last of its packages was settled (monotonic time, seconds).
        early: whether the index was published without those that keep it waiting.
        extras: what came of `beside`.
        ahead: the index as it is published if all of its packages come, where it was made already.
    """

    subdir: Subdir
    sent: Sent
    index: Index | None
    size: int
    plan: Plan
    urls: tuple[str, ...]
    beside: Beside
    refused: Sequence[str]
    pending: int
    failed: dict[str, str] = field(default_factory=dict)
    staged: dict[str, Landed] = field(default_factory=dict)
    moved: float = 0.0
    early: bool = False
    extras: Extras | None = None
    ahead: Made | None = None

    @property
    def path(self) -> PurePosixPath:
        """Where it stands below the working directory."""
        return self.subdir.path

    @functools.cached_property
    def replaced(self) -> frozenset[str]:
        """File names that are there with other bytes."""
        return frozenset(package.file_name for package in self.plan.replace)


class Survey:
    """Looks at every subdir that is wanted.

    Attributes:
        unchanged: the subdirs that are complete, and whose index the upstream did not change.
    """

    def __init__(
        self,
        config: Config,
        options: Options,
        asked: Sequence[Asked],
        store: Store,
        memory: Memory,
        *,
        fetcher: Fetcher,
        report: Report,
    ) -> None:
        self._config = config
        self._options = options
        self._asked = asked
        self._store = store
        self._memory = memory
        self._fetcher = fetcher
        self._report = report
        self._kept = 0
        self.unchanged: list[PurePosixPath] = []

    def tasks(self) -> Iterator[Task]:
        """Compare every subdir's index with what is held; yield those with something to do."""
        self._report.asked = len(self._asked)
        for asked in self._asked:
            subdir = asked.subdir
            candidate = self._candidate(subdir, asked.fact, asked.search)
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
            if not candidate.index.packages and self._serves_packages(path, fact):
                self._fail_index(path, f"{path}: the upstream's index names no package any more; ours is kept")
                return None
            if not self._options.accept_older and self._is_older(path, fact, sent, data):
                was, now = fact["last_modified"], sent.validators.last_modified
                self._fail_index(
                    path,
                    f"{path}: the upstream's index ({now}) is older than ours ({was}), which is kept; "
                    "to publish it all the same, run with --accept-older",
                )
                return None
            return candidate
        if search.unreachable:
            self._report.unreachable += 1
        if search.problems:
            self._fail_index(path, f"{path}: no index can be used, ours is kept: {'; '.join(search.problems)}")
        elif self._serves_packages(path, fact):
            self._fail_index(path, f"{path}: the upstream does not have it any more; ours is kept")
        else:
            log.info("%s: the upstream does not have it", path)
        return None

    def _fail_index(self, path: PurePosixPath, message: str) -> None:
        self._report.fail(str(path), message)
        if not self._options.dry:
            key = f"{FACT}{path}"
            self._memory.note(key, {**self._memory.fact(key), "failures": self._report.failures[str(path)]})

    def _serves_packages(self, path: PurePosixPath, fact: Mapping[str, Any]) -> bool:
        """Tell whether the served index names a package; it is read only where nothing is remembered of it."""
        if "held" in fact:
            return bool(fact["held"])
        try:
            return bool(repodata.parse(self._store.path(path / "repodata.json").read_bytes()).packages)
        except (FileNotFoundError, RepodataError):
            return False

    def _is_older(self, path: PurePosixPath, fact: Mapping[str, Any], sent: Sent, data: bytes) -> bool:
        """Tell whether an index is older than ours: it has an earlier date, and its newest record is older too."""
        if sent.sha256 == fact.get("sha256") or not dated_before(sent.validators, noted(fact)):
            return False
        try:
            ours = newest(unpack(self._store.index_path(path).read_bytes(), fact["form"]))
            return newest(unpack(data, sent.form)) < ours
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
        self._report.unchanged[str(path)] = fact["held"]
        for message in fact["refused"]:
            self._report.fail(str(path), message)
        self.unchanged.append(path)

    def _task(self, subdir: Subdir, candidate: Candidate) -> Task:
        """Plan what a subdir needs."""
        path, index = subdir.path, candidate.index
        known = known_files(self._store.files(path), self._memory.verified(str(path)), index.packages)
        rough = plan(index.packages, known, self._config.exclude)
        del known
        settled = rough if self._options.dry else self._resolve(path, rough)
        refused = [f"{path}: {name!r} is refused: {reason}" for name, reason in index.refused.items()]
        for message in refused:
            self._report.fail(str(path), message)
        for name, reason in index.left_out.items():
            log.info("%s: %r is left out: %s", path, name, reason)
        if not self._options.dry and candidate.sent.data is not None:
            self._store.write_file(self._store.index_path(path), candidate.sent.data)
        # From where the index came: another upstream may be down, or at another moment. But rather there than not at
        # all, or after a long wait; of what it says, only what the index names is published.
        place, _, _ = candidate.sent.validators.url.rpartition("/")
        others = [url for url in subdir.index_urls if url != place]
        beside = Beside(self._fetcher, replace(subdir, index_urls=(place, *others)))
        self._kept += candidate.size
        urls = subdir.urls
        if index.base_url:  # CEP 15: the packages are not beside the index
            urls = (*urls, urljoin(f"{subdir.index_urls[0]}/", index.base_url).rstrip("/"))
        return Task(
            subdir, replace(candidate.sent, data=None), index if self._kept <= KEPT_BYTES else None, candidate.size,
            settled, urls, beside, refused, settled.files,
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
            for start in range(0, len(rough.check), HASHED_AT_ONCE):
                batch = rough.check[start : start + HASHED_AT_ONCE]
                for package, good in zip(batch, pool.map(right, batch), strict=True):
                    if not good:
                        wrong.append(package)
                        continue
                    held += 1
                    size += package.size or 0
                    status = self._store.path(path / package.file_name).stat()
                    row = (package.file_name, status.st_size, status.st_mtime_ns, bytes.fromhex(package.digest))
                    self._memory.verify(str(path), [row])
                self._memory.commit(self._store.flush_all)
        return replace(
            rough, held=rough.held + held, held_bytes=rough.held_bytes + size, check=(),
            replace=(*rough.replace, *wrong),
        )  # fmt: skip
