"""`verify`: is what is held what it should be, and is all there that a served index names?

Every file is hashed again. A round that was broken off is continued: each file's last hash is remembered with
its time. What is damaged is put aside, and with `--repair` fetched again; whatever stays damaged or missing is
taken out of the served index, so that the mirror is closed again, and the next sync fetches it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path, PurePosixPath

from lanmirror_sync import proof
from lanmirror_sync.config import Config, Subdir
from lanmirror_sync.fetch import BIG_BYTES, Fetcher
from lanmirror_sync.memory import FACT, Memory
from lanmirror_sync.plan import PACKAGE_SUFFIXES
from lanmirror_sync.publish import Content, Publisher
from lanmirror_sync.repodata import RepodataError
from lanmirror_sync.report import Progress, Report
from lanmirror_sync.sinks import Download, Expected
from lanmirror_sync.store import Store, cores, hasher_of
from lanmirror_sync.wire import Rate

ROUND = "verify"
# A round that was broken off longer ago is begun anew.
ROUND_DAYS = 14
BATCH = 256
CHUNK = 1 << 20
COMMIT_SECONDS = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """A file to hash.

    Attributes:
        name: of the file in its folder.
        size: in bytes, as it should be; None where that is not known.
        digest: as it should be.
    """

    name: str
    size: int | None
    digest: bytes

    @property
    def algorithm(self) -> str:
        """`sha256` or `md5`."""
        return "sha256" if len(self.digest) == 32 else "md5"  # noqa: PLR2004 - bytes of a sha256


@dataclass
class Finding:
    """What was found in a folder.

    Attributes:
        subdir: None for a folder of installers.
        referenced: packages that the served index names.
        held: of these, the ones that are there undamaged.
        orphaned: packages that are there and not named, such as those in their time of grace.
        missing: those that are named and not there.
        damaged: those that are there with other bytes.
        formats: what is wrong with the formats of the index.
    """

    folder: PurePosixPath
    subdir: Subdir | None
    referenced: int = 0
    held: int = 0
    orphaned: int = 0
    missing: list[Item] = field(default_factory=list)
    damaged: list[Item] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)


class Verification:
    """One `verify`."""

    def __init__(
        self, config: Config, store: Store, memory: Memory, *, fetcher: Fetcher, progress: Progress, repair: bool
    ) -> None:
        self._config = config
        self._store = store
        self._memory = memory
        self._fetcher = fetcher
        self._progress = progress
        self._repair = repair
        self._rate = Rate(config.verify_rate)
        self._publisher = Publisher(store, memory)
        self._commit_due = time.monotonic() + COMMIT_SECONDS
        self.report = Report()
        self.repaired = 0

    def run(self, only: str = "*") -> Sequence[Finding]:
        """Verify the folders whose paths match, and see to what is wrong; what stays wrong is in `report`."""
        began = self._memory.fact(ROUND).get("began")
        if began and time.time() - began < ROUND_DAYS * 86400:
            log.info("going on with the round that began at %s", time.ctime(began))
        else:
            began = time.time()
            self._memory.note(ROUND, {"began": began})
            self._memory.commit(self._store.flush_all)
        findings = []
        for subdir in self._config.subdirs():
            if fnmatchcase(str(subdir.path), only):
                findings.append(self._subdir(subdir, began))
        for dist in self._config.dists:
            if fnmatchcase(dist, only):
                findings.append(self._dist(PurePosixPath(dist), began))
        fixed = self._fetch(findings) if self._repair else set()
        for finding in findings:
            self._settle(finding, fixed)
        self._memory.drop(ROUND)
        self._memory.commit(self._store.flush_all)
        return findings

    # ---- what is there ------------------------------------------------------------------------------------

    def _subdir(self, subdir: Subdir, began: float) -> Finding:
        """Hash a subdir's packages and hold its formats against each other."""
        path = subdir.path
        finding = Finding(path, subdir)
        index = self._publisher.served(path)
        if index is None:
            self.report.fail(str(path), f"{path}: no index is served; sync it first")
            return finding
        finding.formats = list(proof.problems(self._store.path(path), index))
        there = {name: size for name, size, _ in self._store.files(path) if name.endswith(PACKAGE_SUFFIXES)}
        finding.referenced = len(index.packages)
        finding.orphaned = len(there.keys() - index.packages.keys())
        named = (Item(name, package.size, bytes.fromhex(package.digest)) for name, package in index.packages.items())
        self._look(finding, named, there, began, self._unnamed(path, set(index.packages)))
        finding.held = (
            finding.referenced - len(finding.missing) - sum(i.name in index.packages for i in finding.damaged)
        )
        return finding

    def _dist(self, path: PurePosixPath, began: float) -> Finding:
        """Hash the installers of a folder, as far as it is known what they should be."""
        finding = Finding(path, None)
        there = {name: size for name, size, _ in self._store.files(path)}
        self._look(finding, self._unnamed(path, set()), there, began, ())
        finding.referenced, finding.held = len(there), len(there) - len(finding.damaged)
        return finding

    def _unnamed(self, path: PurePosixPath, named: set[str]) -> Iterator[Item]:
        """Yield what was verified once and is served though no index names it."""
        for name, size, _, digest in self._memory.verified(str(path)):
            if name not in named:
                yield Item(name, size, digest)

    def _look(
        self, finding: Finding, named: Iterable[Item], there: dict[str, int], began: float, others: Iterable[Item]
    ) -> None:
        """Hash files and note which are missing or damaged; those that were hashed in this round are known."""
        folder = str(finding.folder)
        fresh = self._memory.checked_since(folder, began)
        todo: list[Item] = []
        for item in named:
            size = there.get(item.name)
            if size is None:
                finding.missing.append(item)
            elif item.size not in (None, size):
                finding.damaged.append(item)
            elif fresh.get(item.name) != item.digest:
                todo.append(item)
        todo += [item for item in others if item.name in there and fresh.get(item.name) != item.digest]
        self._progress.start(folder, len(todo), sum(there[item.name] for item in todo))
        items = iter(todo)
        with ThreadPoolExecutor(cores()) as pool:
            while batch := list(islice(items, BATCH)):
                for item, row in zip(batch, pool.map(lambda item: self._hash(folder, item), batch), strict=True):
                    self._progress.done(folder)
                    if row is None:
                        finding.damaged.append(item)
                    else:
                        self._memory.verify(folder, [row])
                self._commit(now=False)
        self._commit(now=True)

    def _hash(self, folder: str, item: Item) -> tuple[str, int, int, bytes] | None:
        """Return what is to be remembered of a file; None where it is damaged, or cannot be read."""
        hasher = hasher_of(item.algorithm)
        try:
            with self._store.path(f"{folder}/{item.name}").open("rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                while chunk := file.read(CHUNK):
                    hasher.update(chunk)
                    self._progress.received(folder, len(chunk))
                    self._rate.pay(len(chunk))
        except OSError as error:
            log.warning("%s/%s: cannot be read: %s", folder, item.name, error.strerror)
            return None
        return (item.name, status.st_size, status.st_mtime_ns, item.digest) if hasher.digest() == item.digest else None

    def _commit(self, *, now: bool) -> None:
        if now or time.monotonic() >= self._commit_due:
            self._memory.commit(self._store.flush_all)
            self._commit_due = time.monotonic() + COMMIT_SECONDS

    # ---- what is done about it ----------------------------------------------------------------------------

    def _fetch(self, findings: Sequence[Finding]) -> set[PurePosixPath]:
        """Fetch what is damaged or missing; return the paths of what is right again."""
        downloads = [
            self._download(finding, item) for finding in findings for item in (*finding.damaged, *finding.missing)
        ]
        fixed = set()
        for damaged in ((finding, item) for finding in findings for item in finding.damaged):
            self._keep_aside(damaged[0].folder / damaged[1].name)
        small = [download for download in downloads if (download.expected.size or 0) <= BIG_BYTES]
        big = [download for download in downloads if (download.expected.size or 0) > BIG_BYTES]
        for done in filter(None, self._fetcher.fetch(iter(small), iter(big))):
            download = done.download
            path = PurePosixPath(download.owner, download.name)
            if done.landed is None:
                log.error("%s: cannot be repaired: %s", path, done.error)
                continue
            row = (download.name, done.landed.size, done.landed.mtime_ns, bytes.fromhex(done.landed.digest))
            self._memory.verify(download.owner, [row])
            fixed.add(path)
        return fixed

    def _download(self, finding: Finding, item: Item) -> Download:
        path = finding.folder / item.name
        bases = (
            finding.subdir.urls if finding.subdir else [f"{url}/{finding.folder}" for url in self._config.repo_sources]
        )
        digest = item.digest.hex()
        return Download(
            str(finding.folder), item.name, tuple(f"{base}/{item.name}" for base in bases),
            Expected(item.size, item.algorithm, digest), self._store.partial_path(path, digest), self._store.path(path),
        )  # fmt: skip

    def _settle(self, finding: Finding, fixed: set[PurePosixPath]) -> None:
        """Close the index of a subdir over what is undamaged, and tell what was found."""
        path, folder = finding.folder, str(finding.folder)
        wrong = [item for item in (*finding.damaged, *finding.missing) if path / item.name not in fixed]
        self.repaired += len(finding.damaged) + len(finding.missing) - len(wrong)
        for item in finding.damaged:
            if item in wrong:
                self.report.fail(folder, f"{path}/{item.name}: is damaged, and put aside in {self._store.damaged}")
        for item in finding.missing:
            if item in wrong:
                self.report.fail(folder, f"{path}/{item.name}: is missing though the index names it")
        remake = bool(finding.formats) and self._repair
        for problem in finding.formats:
            if remake:
                log.warning("%s: %s; the formats are made anew", path, problem)
            else:
                self.report.fail(folder, f"{path}: {problem}")
        names = {item.name for item in wrong}
        if finding.subdir and (remake or names):
            self._republish(path, names)
        for item in finding.damaged:
            if item in wrong:
                self._keep_aside(path / item.name)
                self._store.remove(path / item.name)
        self._memory.forget(folder, names)
        if finding.subdir and (names or finding.formats):
            # The next sync looks at it again, whatever the upstream says.
            key = f"{FACT}{path}"
            self._memory.note(key, {**self._memory.fact(key), "complete": False})
        log.info(
            "%s: %d referenced, %d held, %d missing, %d damaged, %d orphaned",
            path, finding.referenced, finding.held, len(finding.missing), len(finding.damaged), finding.orphaned,
        )  # fmt: skip

    def _republish(self, path: PurePosixPath, leave_out: set[str]) -> None:
        """Serve what is served, without what is not there undamaged."""
        index = self._publisher.served(path)
        if index is None:
            return
        beside = {}
        for name in ("current_repodata.json", "run_exports.json"):
            file = self._store.path(path / name)
            beside[name] = file.read_bytes() if file.exists() else None
        content = Content(
            index, leave_out, current=beside["current_repodata.json"], run_exports=beside["run_exports.json"],
            bz2=self._store.path(path / "repodata.json.bz2").exists(),
        )  # fmt: skip
        try:
            self._publisher.publish(path, content)
        except RepodataError as error:
            log.warning("%s: %s; it is served without", path, error)
            self._publisher.publish(path, replace(content, current=None, run_exports=None))

    def _keep_aside(self, path: PurePosixPath) -> None:
        """Keep a damaged file for whoever wants to know what happened to it."""
        aside = self._store.damaged / str(path).replace("/", "_")
        aside.unlink(missing_ok=True)
        source: Path = self._store.path(path)
        if source.exists():
            os.link(source, aside)
