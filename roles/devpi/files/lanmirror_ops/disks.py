"""How much room there is where the cache writes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .settings import GIB, MIB, Folder

# A disk with fewer is as good as full. Some file systems count none.
FEW_INODES = 1000


@dataclass(frozen=True)
class Measured:
    """A folder with what is free where it is."""

    folder: Folder
    disk: int
    """The number of its file system."""
    size: int
    free: int
    """Bytes, for who is not root."""
    inodes: int | None
    """None where the file system does not count them."""

    @property
    def full(self) -> bool:
        """Whether it is nearly full."""
        return self.free < self.folder.min_free or (self.inodes is not None and self.inodes < FEW_INODES)

    def __str__(self) -> str:
        if self.free >= self.folder.min_free:
            free = f"{self.inodes} files more can be made there"
        elif self.folder.min_free < GIB:
            free = f"{self.free / MIB:.0f} MiB are free, {self.folder.min_free / MIB:.0f} should be"
        else:
            free = f"{self.free / GIB:.1f} GiB are free, {self.folder.min_free / GIB:g} should be"
        return f"the disk of {self.folder.path} is nearly full ({free}): {self.folder.cost}; {self.folder.remedy}"


def existing(path: Path) -> Path:
    """Return a path, or the nearest one above it that is there and may be looked at."""
    for place in (path, *path.parents):
        if os.access(place, os.F_OK):
            return place
    return Path("/")


def measure(folders: Sequence[Folder]) -> list[Measured]:
    """Measure all of them."""
    measured = []
    for folder in folders:
        place = existing(folder.path)
        disk = os.statvfs(place)
        inodes = disk.f_favail if disk.f_files else None
        size, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
        measured.append(Measured(folder, place.stat().st_dev, size, free, inodes))
    return measured


def full(measured: Sequence[Measured]) -> Iterator[Measured]:
    """Yield those that are nearly full, of each disk the first that fails the cache, or else the first."""
    told: set[int] = set()
    for found in sorted(measured, key=lambda one: not one.folder.stops):
        if found.full and found.disk not in told:
            told.add(found.disk)
            yield found
