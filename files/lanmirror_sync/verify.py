"""`verify`: is what is held what it should be, and is all there that a served index names?

Every file is hashed again. A round that was broken off is continued: each file's last hash is remembered with
its time. What is damaged is put aside, and with `--repair` fetched again; whatever stays damaged or missing is
taken out of the served index, so that the mirror is closed again, and the next sync fetches it. Where the site
fetches on demand, it stays named. Where it does not, and a choice says what is held, dependencies are named that
nothing served satisfies.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import PurePosixPath

import msgspec

from lanmirror_sync import installers, listing, proof
from lanmirror_sync.config import NONE, Subdir
from lanmirror_sync.fetch import BIG_BYTES, Fetcher
from lanmirror_sync.installers import Ledger
from lanmirror_sync.mirror import Mirror
from lanmirror_sync.plan import PACKAGE_SUFFIXES
from lanmirror_sync.publish import Kept, Publisher
from lanmirror_sync.report import Progress, Report, in_words, is_everybodys
from lanmirror_sync.sinks import Download, Expected
from lanmirror_sync.store import cores, hasher_of
from lanmirror_sync.wire import Rate

ROUND = "verify"
# A round that was broken off longer ago is begun anew.
ROUND_DAYS = 14
BATCH = 256
CHUNK = 1 << 20
# Of a file, in bytes (man 7 path_resolution: NAME_MAX).
LONGEST_NAME = 255
COMMIT_SECONDS = 30.0
NOARCH = "noarch"
# So many dependencies of a subdir are named that nothing satisfies; then they are counted.
MOST_UNMET = 20

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
class Inspection:
    """What was found in a folder.

    Attributes:
        subdir: None for a folder of installers.
        referenced: packages that the served index names.
        held: of these, the ones that are there undamaged.
        orphaned: packages that are there and not named, such as those in their time of grace.
        missing: those that are named and not there.
        damaged: those that are there with other bytes.
        formats: what is wrong with the formats of the index.
        kept: where packages come on demand, the upstream's index that is kept.
    """

    folder: PurePosixPath
    subdir: Subdir | None
    referenced: int = 0
    held: int = 0
    orphaned: int = 0
    missing: list[Item] = field(default_factory=list)
    damaged: list[Item] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)
    kept: Kept | None = None


class Verification:
    """One `verify`."""

    def __init__(self, mirror: Mirror, fetcher: Fetcher, progress: Progress, *, repair: bool) -> None:
        self._mirror = mirror
        config = self._config = mirror.config
        self._store = mirror.store
        self._memory = mirror.memory
        self._ledger = Ledger(mirror.store)
        self._fetcher = fetcher
        self._progress = progress
        self._repair = repair
        self._rate = Rate(config.verify_rate)
        self._publisher = Publisher(mirror)
        self._commit_due = time.monotonic() + COMMIT_SECONDS
        self.report = Report()
        self.counts = dict.fromkeys(("referenced", "held", "missing", "damaged", "repaired", "orphaned", "unmet"), 0)

    def run(self, only: str = "*") -> Sequence[Inspection]:
        """Verify the folders whose paths match, and see to what is wrong; what stays wrong is in `report`."""
        began = self._memory.fact(ROUND).get("began")
        if began and 0 <= time.time() - began < ROUND_DAYS * 86400:
            log.info("going on with the round that began at %s", time.ctime(began))
        else:
            began = time.time()
            self._memory.note(ROUND, {"began": began})
            self._memory.commit(self._store.flush_all)
        inspections: list[Inspection] = []
        for subdir in self._config.subdirs():
            if fnmatchcase(str(subdir.path), only):
                with self._fence(str(subdir.path)):
                    inspections.append(self._subdir(subdir, began))
        for folder in self._config.folders:
            if fnmatchcase(folder, only):
                with self._fence(folder):
                    inspections.append(self._dist(PurePosixPath(folder), began))
        fixed = self._fetch(inspections) if self._repair else set()
        for inspection in inspections:
            with self._fence(str(inspection.folder)):
                self._settle(inspection, fixed)
        with self._fence("dependencies"):
            self._prove(only)
        self._memory.drop(ROUND)
        self._memory.commit(self._store.flush_all)
        return inspections

    @contextlib.contextmanager
    def _fence(self, owner: str) -> Iterator[None]:
        """Let what goes wrong with one folder end its own part alone."""
        try:
            yield
        except OSError as error:
            if is_everybodys(error):
                raise
            self.report.fail(owner, f"{owner}: {in_words(error)}")
        except Exception as error:
            log.exception("%s: this is a fault of the program", owner)
            self.report.crashes.append(error)
            self.report.fail(owner, f"{owner}: a fault of the program: {error!r}")

    # ---- what is there ------------------------------------------------------------------------------------

    def _subdir(self, subdir: Subdir, began: float) -> Inspection:
        """Hash a subdir's packages and hold its formats against each other."""
        path = subdir.path
        inspection = Inspection(path, subdir)
        with self._store.alone(path):
            index = self._publisher.served(path)
            if index is None:
                self.report.fail(str(path), f"{path}: no index is served; sync it first")
                return inspection
            inspection.formats = list(proof.problems(self._store.path(path), index))
            if self._config.on_demand and self._store.index_path(path).exists():
                inspection.kept = Kept(self._store, path)
        there = {name: size for name, size, _ in self._store.files(path, PACKAGE_SUFFIXES)}
        inspection.referenced = len(index.packages)
        inspection.orphaned = len(there.keys() - index.packages.keys())
        named = (Item(name, package.size, bytes.fromhex(package.digest)) for name, package in index.packages.items())
        self._look(inspection, named, there, began, self._unnamed(path, set(index.packages)))
        inspection.held = (
            inspection.referenced - len(inspection.missing) - sum(i.name in index.packages for i in inspection.damaged)
        )
        if self._config.on_demand:
            # The rest comes on demand; but what was here, and is to be, is lost.
            once = {item.name for item in self._unnamed(path, set())} if subdir.hold != NONE else set()
            inspection.missing = [item for item in inspection.missing if item.name in once]
        return inspection

    def _dist(self, path: PurePosixPath, began: float) -> Inspection:
        """Hash the installers of a folder, as far as it is known what they should be."""
        inspection = Inspection(path, None)
        there = {name: size for name, size, _ in listing.held(self._mirror, str(path))}
        known = {item.name: item for item in self._unnamed(path, set())}
        for name, entry in self._ledger.of(str(path)).items():
            known.setdefault(name, Item(name, entry.size, bytes.fromhex(entry.digest)))
        known = {name: item for name, item in known.items() if name in there}
        self._look(inspection, known.values(), there, began, ())
        inspection.referenced, inspection.held = len(there), len(known) - len(inspection.damaged)
        for name in there.keys() - known.keys():
            then = "delete it, and it comes on demand" if str(path) in self._config.listed else (
                "the next sync fetches it again"
            )  # fmt: skip
            self.report.fail(str(path), f"{path}/{name}: nothing tells what it should be; {then}")
        return inspection

    def _unnamed(self, path: PurePosixPath, named: set[str]) -> Iterator[Item]:
        """Yield what was verified once and is served though no index names it."""
        for name, size, _, digest in self._memory.verified(str(path)):
            if name not in named:
                yield Item(name, size, digest)

    def _look(
        self, inspection: Inspection, named: Iterable[Item], there: dict[str, int], began: float, others: Iterable[Item]
    ) -> None:
        """Hash files and note which are missing or damaged; those that were hashed in this round are known."""
        folder = str(inspection.folder)
        fresh = self._memory.checked_since(folder, began)
        todo: list[Item] = []
        for item in named:
            size = there.get(item.name)
            if size is None:
                inspection.missing.append(item)
            elif item.size not in (None, size):
                inspection.damaged.append(item)
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
                        inspection.damaged.append(item)
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

    def _prove(self, only: str) -> None:
        """Say which packages of chosen subdirs need what nothing served satisfies; on demand the rest is there.

        Of a subdir that holds keep-sets alone that is a fault. What else is chosen takes no dependencies along.
        """
        subdirs = self._config.subdirs()
        chosen = [one for one in subdirs if one.choice and fnmatchcase(str(one.path), only)]
        if self._config.on_demand or not chosen:
            return
        from lanmirror_sync.closure import Offers, unmet  # noqa: PLC0415 - most choose nothing

        machines = {one.arch: Offers() for one in subdirs if one.arch != NOARCH} or {NOARCH: Offers()}
        for one in subdirs:
            if index := self._publisher.served(one.path):
                for arch in [one.arch] if one.arch in machines else machines:
                    machines[arch].add(index)
        for one in chosen:
            index = self._publisher.served(one.path)
            offers = [machines[one.arch]] if one.arch in machines else [*machines.values()]
            found = [f"{one.path}/{name}: needs {spec}" for name, spec in unmet(index, offers)] if index else []
            self.counts["unmet"] += len(found)
            lines = [f"{line}, and nothing that is served satisfies it" for line in found[:MOST_UNMET]]
            if len(found) > MOST_UNMET:
                lines.append(f"{one.path}: {len(found) - MOST_UNMET} more of its dependencies are served by nothing")
            for line in lines:
                if one.choice and not one.choice.selects:
                    self.report.fail(str(one.path), line)
                else:
                    log.warning("%s", line)
            log.info("%s: %d dependencies that nothing served satisfies", one.path, len(found))

    # ---- what is done about it ----------------------------------------------------------------------------

    def _fetch(self, inspections: Sequence[Inspection]) -> set[PurePosixPath]:
        """Fetch what is damaged or missing; return the paths of what is right again."""
        downloads = [
            self._download(inspection, item)
            for inspection in inspections
            for item in (*inspection.damaged, *inspection.missing)
        ]
        fixed = set()
        for inspection in inspections:
            for item in inspection.damaged:
                self._keep_aside(inspection.folder / item.name)
        for folder in {download.owner for download in downloads}:
            sizes = [download.expected.size or 0 for download in downloads if download.owner == folder]
            self._progress.start(folder, len(sizes), sum(sizes))
        small = [download for download in downloads if (download.expected.size or 0) <= BIG_BYTES]
        big = [download for download in downloads if (download.expected.size or 0) > BIG_BYTES]
        self._fetcher.feed(iter(small), iter(big))
        self._fetcher.close_feed()
        kept = {str(inspection.folder): inspection.kept for inspection in inspections}
        for done in self._fetcher.results():
            if done is None:
                self._progress.tick()
                continue
            download = done.download
            self._progress.done(download.owner)
            path = PurePosixPath(download.owner, download.name)
            if done.landed is None:
                log.error("%s: cannot be repaired: %s", path, done.error)
                continue
            index = kept[download.owner]
            if index and not self._publisher.land(path.parent, index, path.name, done.landed):
                log.error("%s: is not repaired, since a later index names other bytes, or none", path)
                continue
            row = (download.name, done.landed.size, done.landed.mtime_ns, bytes.fromhex(done.landed.digest))
            self._memory.verify(download.owner, [row])
            fixed.add(path)
        return fixed

    def _download(self, inspection: Inspection, item: Item) -> Download:
        path = inspection.folder / item.name
        if inspection.subdir:
            urls = tuple(f"{base}/{item.name}" for base in inspection.subdir.urls)
        else:
            urls = installers.urls_of(self._config, str(inspection.folder), item.name)
        digest = item.digest.hex()
        target = self._store.staged_path(path) if inspection.kept else self._store.path(path)
        return Download(
            str(inspection.folder), item.name, urls,
            Expected(item.size, item.algorithm, digest), self._store.partial_path(path, digest), target,
            kept=self._config.kept(path) if inspection.subdir else "",
        )  # fmt: skip

    def _settle(self, inspection: Inspection, fixed: set[PurePosixPath]) -> None:
        """Close the index of a subdir over what is undamaged, and tell what was found."""
        path, folder = inspection.folder, str(inspection.folder)
        wrong = [item for item in (*inspection.damaged, *inspection.missing) if path / item.name not in fixed]
        self._count(inspection, len(wrong))
        for item in inspection.damaged:
            if item in wrong:
                self.report.fail(folder, f"{path}/{item.name}: is damaged, and put aside in {self._store.damaged}")
        for item in inspection.missing:
            if item in wrong:
                self.report.fail(folder, f"{path}/{item.name}: is missing though the index names it")
        remake = bool(inspection.formats) and self._repair
        for problem in inspection.formats:
            if remake:
                log.warning("%s: %s; the formats are made anew", path, problem)
            else:
                self.report.fail(folder, f"{path}: {problem}")
        names = {item.name for item in wrong}
        gone = set() if self._config.on_demand else names
        if inspection.subdir and (remake or gone):
            self._republish(path, gone)
        for item in inspection.damaged:
            if item in wrong:
                self._keep_aside(path / item.name)
                self._store.remove(path / item.name)
        self._memory.forget(folder, names)
        if inspection.subdir and (names or inspection.formats):
            self._note(inspection, wrong)
        log.info(
            "%s: %d referenced, %d held, %d missing, %d damaged, %d orphaned",
            path, inspection.referenced, inspection.held, len(inspection.missing), len(inspection.damaged),
            inspection.orphaned,
        )  # fmt: skip

    def _count(self, inspection: Inspection, wrong: int) -> None:
        """Add a folder to the sums."""
        missing, damaged = len(inspection.missing), len(inspection.damaged)
        for key, count in (
            ("referenced", inspection.referenced), ("held", inspection.held), ("orphaned", inspection.orphaned),
            ("missing", missing), ("damaged", damaged), ("repaired", missing + damaged - wrong),
        ):  # fmt: skip
            self.counts[key] += count

    def _note(self, inspection: Inspection, wrong: Sequence[Item]) -> None:
        """See to it that the next sync looks at a subdir again, whatever the upstream says."""
        path, memory = inspection.folder, self._memory
        with self._store.alone(path):
            standing = memory.standing(path)
            if standing.held is not None:
                gone, on_demand = sum(item.size or 0 for item in wrong), self._config.on_demand
                standing = msgspec.structs.replace(
                    standing, held=max(standing.held - len(wrong), 0), size=max(standing.size - gone, 0),
                    named=max(standing.named - len(wrong) * (not on_demand), 0),
                    missing=standing.missing + len(wrong) * (not on_demand),
                )  # fmt: skip
            failures = self.report.failures.get(str(path), standing.failures)
            standing = msgspec.structs.replace(standing, complete=False, indexed=False, failures=failures)
            memory.note_standing(path, standing)
            memory.commit(self._store.flush_all)

    def _republish(self, path: PurePosixPath, leave_out: set[str]) -> None:
        """Serve what is served, without what is not there undamaged."""
        with self._store.alone(path):
            index = self._publisher.served(path)
            if index is not None:
                self._publisher.restrict(path, index, leave_out)

    def _keep_aside(self, path: PurePosixPath) -> None:
        """Keep a damaged file for whoever wants to know what happened to it."""
        name = str(path).replace("/", "_")
        if len(name.encode()) > LONGEST_NAME:
            name = f"{name[: LONGEST_NAME - 70]}-{hashlib.sha256(name.encode()).hexdigest()}"
        aside, source = self._store.damaged / name, self._store.path(path)
        try:
            aside.unlink(missing_ok=True)
            if source.exists():
                try:
                    os.link(source, aside)
                except OSError:  # on another disk, or of another owner
                    shutil.copyfile(source, aside)
        except OSError as error:
            log.warning("%s: cannot be kept aside: %s", path, in_words(error))
