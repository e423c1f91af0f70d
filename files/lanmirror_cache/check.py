"""The check of what came on demand against the served index: what is wrong is deleted, and told."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lanmirror_sync.kept import Wrong

from lanmirror_cache.judge import Slice, Standing, assess, is_page, signature
from lanmirror_cache.records import Expected, Records
from lanmirror_cache.scan import delete, nothing, place
from lanmirror_cache.state import Judged, State

CHUNK = 1 << 20


class ChangedError(Exception):
    """Nginx has evicted or replaced a slice since the scan; the next scan sees it."""


@dataclass(frozen=True)
class Checker:
    """Checks packages.

    Attributes:
        kept: the folder of the cache.
        state: what is known of it.
        records: what is served.
        now: tells the Unix time, in seconds.
        alive: is called every now and then.
    """

    kept: Path
    state: State
    records: Records
    now: Callable[[], float]
    alive: Callable[[], None] = nothing

    def reindexed(self) -> None:
        """Have those packages judged anew of which the index says something else by now."""
        for subdir, known in self.state.subdirs().items():
            identity = self.records.identity(subdir)
            if identity != known:
                shards = self.state.shards(subdir)
                self.state.reindexed(subdir, identity, [path for path, it in shards if self.records.shard(path) != it])

    def due(self) -> Iterator[Wrong | None]:
        """Judge each package that is due; yield each that is wrong, and None for each other."""
        for path in self.state.due():
            self.alive()
            yield self.judge(path)

    def judge(self, path: str) -> Wrong | None:
        """Judge a package; delete what is wrong, and return it."""
        slices = self.state.slices(path)
        if not slices:
            self.state.dropped(path)
            return None
        shard, expected = self.records.shard(path), self.records.expected(path)
        files, known = signature(slices), self.state.known(path)
        standings = assess(slices, expected.size if expected else None)
        problem = next((standing.problem for standing in standings if standing.problem), "")
        right = False
        try:
            if not problem and expected:
                whole = [standing for standing in standings if standing.parts]
                right = bool(whole)
                if not (known and known.right and (known.files, known.digest) == (files, expected.digest)):
                    problem = next((found for standing in whole if (found := self._wrong(standing, expected))), "")
                    if problem and self.records.is_older(path, max(each.mtime for each in slices)):
                        # The page is read again soon, and has the hash of this one then, or not.
                        problem, right, shard = "", False, ""
            if problem:
                problem += self._looks(slices[0])
        except ChangedError:
            self.state.unsettled({place(each.name) for each in slices})
            return None
        if problem:
            return self._out(path, problem, slices)
        self.state.judged(Judged(path, right, shard, files, expected.digest if expected and right else ""))
        return None

    def _wrong(self, standing: Standing, expected: Expected) -> str:
        """Return why the bytes of a package are not those of the index; "" for none."""
        hasher = hashlib.new(expected.algorithm, usedforsecurity=False)
        try:
            for part in standing.parts:
                for chunk in self._bytes(part):
                    hasher.update(chunk)
            if hasher.hexdigest() != expected.digest:
                return f"its {expected.algorithm} is {hasher.hexdigest()} instead of {expected.digest}"
            whole = standing.parts[0]
            if any(not self._same(other, whole) for other in standing.others):
                return "one of its slices is not what the whole file has there"
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return "the disk cannot read it"
        return ""

    def _bytes(self, part: Slice, begin: int = 0, count: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a package that a slice holds, or some of them."""
        with ExitStack() as stack:
            descriptor = self._open(part)
            stack.callback(os.close, descriptor)
            place, left = part.body + begin, part.held - begin if count is None else count
            while left:
                self.alive()
                chunk = os.pread(descriptor, min(left, CHUNK), place)
                if not chunk:
                    raise ChangedError
                yield chunk
                place, left = place + len(chunk), left - len(chunk)

    def _open(self, part: Slice) -> int:
        try:
            file = self.kept / place(part.name) / part.name
            descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ChangedError from error
        found = os.fstat(descriptor)
        if (found.st_ino, found.st_mtime_ns, found.st_size) != (part.inode, part.mtime, part.size):
            os.close(descriptor)
            raise ChangedError
        return descriptor

    def _same(self, other: Slice, whole: Slice) -> bool:
        theirs = self._bytes(whole, other.first, other.held)
        return all(ours == its for ours, its in zip(self._bytes(other), theirs, strict=True))

    def _looks(self, part: Slice) -> str:
        """Return a word on what stands in the place of a package, where that can be seen."""
        try:
            beginning = next(self._bytes(part, count=min(part.held, 100)), b"")
        except OSError:
            return ""
        return "; it is a page of HTML" if part.first == 0 and is_page(beginning) else ""

    def _out(self, path: str, problem: str, slices: list[Slice]) -> Wrong | None:
        """Delete the slices of a package; return it, unless Nginx was first with all of them."""
        gone = [part.name for part in slices if delete(self.kept, part.name, part.inode)]
        if not gone:
            return None
        upstream = ", ".join(dict.fromkeys(part.upstream for part in slices if part.upstream))
        wrong = Wrong(path, problem, self.now(), upstream)
        self.state.was_wrong(wrong, gone)
        return wrong
