"""Whether what is to come has room: bytes and inodes, on each of the file systems that the mirror lies on.

A channel may stand on a disk of its own, behind a link or a mount. What goes there is made in the state folder of the
working directory first, so it takes room on that disk too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from lanmirror_sync.config import Config
from lanmirror_sync.formats import INDEX_FILES
from lanmirror_sync.plan import Plan
from lanmirror_sync.progress import amount
from lanmirror_sync.repodata import Package
from lanmirror_sync.shards import SUFFIX
from lanmirror_sync.store import Store

GIB = 1 << 30
ROOT = PurePosixPath()
# An index in all formats takes less than twice its size, shards aside, each of which is a file.
INDEX_FACTOR = 2
# The index as it was sent, what is remembered of its formats, a lock, and folders that may not be there yet.
FILES_BESIDE = 6
NOBODY = ""


@dataclass(frozen=True)
class Disk:
    """A file system.

    Attributes:
        number: that the kernel has for it.
        path: a folder on it.
        free: bytes that an ordinary user may still write.
        inodes: files that one may still make; None where the file system has no table of them (btrfs).
        block: what the size of a file is rounded up to, bytes.
    """

    number: int
    path: str
    free: int
    inodes: int | None
    block: int


@dataclass(frozen=True)
class Claim:
    """What a part of the mirror takes of a file system, at the worst moment.

    Attributes:
        owner: a channel, or a folder of installers.
        size: bytes, in whole blocks.
        inodes: files that are not there yet.
    """

    owner: str
    disk: Disk
    size: int
    inodes: int


@dataclass(frozen=True)
class Balance:
    """What is asked of a file system, and what it has.

    Attributes:
        keep: bytes that are to stay free.
        needed: bytes that are to come, without what partial files have already.
        inodes: files that are to come.
    """

    disk: Disk
    keep: int
    needed: int = 0
    inodes: int = 0

    @property
    def spare(self) -> int:
        """The bytes that may be used."""
        return max(self.disk.free - self.keep, 0)

    @property
    def lacks(self) -> int:
        """The bytes that would have to be freed; 0 for none. What is missing of `keep` is a part of it."""
        return max(self.needed - (self.disk.free - self.keep), 0) if self.needed > 0 else 0

    @property
    def lacks_inodes(self) -> int:
        """The files that are too many; 0 for none."""
        return max(self.inodes - self.disk.inodes, 0) if self.disk.inodes is not None else 0

    @property
    def fits(self) -> bool:
        """Whether there is room."""
        return not (self.lacks or self.lacks_inodes)

    def plus(self, claim: Claim) -> Balance:
        """Return it with a claim more."""
        return replace(self, needed=self.needed + claim.size, inodes=self.inodes + claim.inodes)


# ---- what is claimed ---------------------------------------------------------------------------------------


def disk(store: Store, path: PurePosixPath) -> Disk:
    """Return the file system that a path is on, or will be."""
    number = store.disk(path)
    folder = store.there(ROOT if number == store.disk(ROOT) else path)
    status = os.statvfs(folder)
    inodes = status.f_favail if status.f_files else None
    return Disk(number, str(folder), status.f_bavail * status.f_frsize, inodes, status.f_frsize)


def of_subdir(
    store: Store, path: PurePosixPath, plan: Plan, size: int, names: int, *, fetches: bool, index: bool = True
) -> Iterator[Claim]:
    """Yield what a subdir takes: its packages, and its index in all formats beside the former ones.

    Args:
        store: of the mirror.
        path: the subdir.
        plan: what it needs.
        size: of the unpacked index, bytes.
        names: how many package names are published, each of which has a shard.
        fetches: whether its packages are fetched.
        index: whether its index is yet to be published.
    """
    owner, here, root = str(path.parent), disk(store, path), disk(store, ROOT)
    packages = (*plan.fetch, *plan.replace) if fetches else ()
    of_index = files = 0
    if index:
        shards = max(names - _shards(store, path), 0)
        of_index = INDEX_FACTOR * size + shards * here.block
        files = shards + len(INDEX_FILES) + FILES_BESIDE
    yield Claim(owner, here, _on_disk(packages, here) + of_index, len(packages) + files)
    if here.number != root.number:
        # What stands in for a file that is served waits for the index.
        waiting = plan.replace if fetches else ()
        yield Claim(owner, root, _on_disk(waiting, root) + of_index, len(waiting) + files)


def of_installer(store: Store, folder: str, size: int) -> Claim:
    """Return what an installer takes, by its size in bytes."""
    here = disk(store, PurePosixPath(folder))
    return Claim(folder, here, whole_blocks(size, here.block), 1)


def of_partial(store: Store) -> Claim:
    """Return what need not come any more, since a run that was broken off left it: it counts below nothing."""
    sizes = [size for _, size, _ in store.files(PurePosixPath(store.partial))]
    return Claim(NOBODY, disk(store, ROOT), -sum(sizes), -len(sizes))


def whole_blocks(size: int, block: int) -> int:
    """Return what a file of so many bytes takes of a disk."""
    return -(-size // block) * block


def _on_disk(packages: Iterable[Package], there: Disk) -> int:
    return sum(whole_blocks(package.size or 0, there.block) for package in packages)


def _shards(store: Store, path: PurePosixPath) -> int:
    """Return how many shards a subdir has; those that no index names any more stay for a week."""
    with contextlib.suppress(FileNotFoundError), os.scandir(store.path(path)) as entries:
        return sum(entry.name.endswith(SUFFIX) for entry in entries)
    return 0


# ---- whether it fits ---------------------------------------------------------------------------------------


def balances(config: Config, claims: Iterable[Claim]) -> dict[int, Balance]:
    """Hold claims against the file systems that they are on; of a disk on which nothing is claimed, nothing is said.

    Returns:
        A balance by the number of each file system.
    """
    found = _empty(config, claims := [*claims])
    for claim in claims:
        found[claim.disk.number] = found[claim.disk.number].plus(claim)
    return found


def _empty(config: Config, claims: Iterable[Claim]) -> dict[int, Balance]:
    """Return what the file systems of claims have."""
    return {claim.disk.number: Balance(claim.disk, int(config.min_free_gib * GIB)) for claim in claims}


def fitting(claims: Sequence[Claim], left: dict[int, Balance], owners: Sequence[str]) -> tuple[str, ...]:
    """Return which owners fit beside those before them; one that does not takes nothing from the next.

    Args:
        claims: of all.
        left: by the number of each file system, its balance before.
        owners: in the order in which they are to be considered.
    """
    found = []
    for owner in owners:
        after, mine = dict(left), [claim for claim in claims if claim.owner == owner]
        for claim in mine:
            after[claim.disk.number] = after[claim.disk.number].plus(claim)
        if mine and all(after[claim.disk.number].fits for claim in mine):
            left = after
            found.append(owner)
    return tuple(found)


def would_fit(config: Config, claims: Sequence[Claim]) -> tuple[str, ...]:
    """Return which channels and folders of installers have room, in the order of the configuration."""
    owners = dict.fromkeys((NOBODY, *(str(subdir.channel) for subdir in config.subdirs()), *config.folders))
    return tuple(owner for owner in fitting(claims, _empty(config, claims), tuple(owners)) if owner)


def shortage(config: Config, claims: Iterable[Claim]) -> str:
    """Return what is lacking, on which file system, and what would fit; "" where everything does."""
    found = balances(config, claims := [*claims])
    lacking = [line for balance in found.values() for line in in_words(balance, config.min_free_gib)]
    if not lacking:
        return ""
    fits = would_fit(config, claims)
    would = f"in the order of the configuration, {', '.join(fits)} would fit" if fits else "none of it would fit alone"
    return f"{'; '.join(lacking)}; {would}; make room, or mirror less (repos, arches, cloud, hold, exclude)"


def in_words(balance: Balance, min_free_gib: float) -> Iterator[str]:
    """Yield what a file system lacks."""
    where = balance.disk.path
    if balance.lacks:
        yield (
            f"{where}: {amount(balance.lacks)} too little on its disk: {amount(balance.needed)} are needed, "
            f"{amount(balance.spare)} are free beyond min_free_gib ({min_free_gib:g})"
        )
    if balance.lacks_inodes:
        yield (
            f"{where}: {balance.lacks_inodes} inodes too few on its disk: {balance.inodes} files are to come, "
            f"{balance.disk.inodes} inodes are free"
        )
