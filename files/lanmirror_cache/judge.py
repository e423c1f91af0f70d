"""What the slices of a package come to: whether they are all there, and agree. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

# Of a page for people in the place of a package.
PAGE = (b"<!doctype html", b"<html")


@dataclass(frozen=True)
class Slice:
    """One file of the cache that holds a part of a package, or all of it; see `entry.Head` for the rest.

    Attributes:
        name: of the file, 32 hexadecimal digits.
        inode, mtime: of the file; the latter in nanoseconds.
        size: of the file, with its head, in bytes.
    """

    name: str
    inode: int
    mtime: int
    size: int
    first: int
    last: int
    status: int
    start: int | None
    total: int | None
    length: int | None
    body: int
    upstream: str

    @property
    def whole(self) -> bool:
        """Whether it is the whole file, which an upstream without ranges gives."""
        return self.status == HTTPStatus.OK

    @property
    def held(self) -> int:
        """How many bytes of the package it holds."""
        return self.size - self.body

    def problem(self) -> str:
        """Return why it can be no part of any package; "" for none."""
        if self.start is None or self.total is None:
            return f"a slice from byte {self.first} says nothing of its place"
        if self.start != self.first:
            return f"a slice begins at byte {self.start} instead of {self.first}"
        wanted = self.total if self.whole else min(self.last + 1, self.total) - self.first
        # Of more than what is there Nginx asks for no slice.
        if self.held != wanted or self.length not in {None, wanted}:
            said = self.held if self.held != wanted else self.length
            return f"a slice from byte {self.first} has {said} bytes instead of {wanted}"
        return ""


@dataclass(frozen=True)
class Standing:
    """What some slices of a package come to.

    Attributes:
        problem: why they are wrong, whatever their bytes are; "" for none.
        parts: those that are the package, in order; empty where some are missing.
        others: slices that the site may serve beside the whole file among the parts.
    """

    problem: str = ""
    parts: tuple[Slice, ...] = ()
    others: tuple[Slice, ...] = ()


def assess(slices: Iterable[Slice], size: int | None) -> list[Standing]:
    """Return what the slices of one package come to, for each width of slices that there is.

    Args:
        slices: in any order.
        size: of the package by the index, in bytes; None where that says none.
    """
    by_width: dict[int, list[Slice]] = {}
    for each in slices:
        by_width.setdefault(each.last - each.first, []).append(each)
    return [_assess(sorted(group, key=lambda part: part.first), size) for _, group in sorted(by_width.items())]


def _assess(slices: Sequence[Slice], size: int | None) -> Standing:
    problem = next((found for part in slices if (found := part.problem())), "")
    if problem:
        return Standing(problem)
    totals = sorted({part.total or 0 for part in slices})
    if len(totals) > 1:
        return Standing(f"its slices are of files of {' and '.join(map(str, totals))} bytes")
    if size is not None and totals[0] != size:
        return Standing(f"it has {totals[0]} bytes instead of {size}")
    if slices[0].whole:
        return Standing(parts=(slices[0],), others=tuple(slices[1:]))
    place = 0
    for part in slices:
        if part.first != place:
            return Standing()
        place += part.held
    return Standing(parts=tuple(slices) if place == totals[0] else ())


def signature(slices: Iterable[Slice]) -> str:
    """Return what stands for a set of files: it changes when one of them is another."""
    told = sorted((part.name, part.inode, part.mtime, part.size) for part in slices)
    return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()


def is_page(beginning: bytes) -> bool:
    """Tell whether a file is a page for people, by its first bytes."""
    return beginning.lstrip()[:20].lower().startswith(PAGE)
