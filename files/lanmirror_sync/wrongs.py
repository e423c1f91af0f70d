"""Packages that are known to be wrong upstream: not fetched again until the index or the file there changes.

Wrong in one run may be a fault on the way, which the next run finds mended; wrong in a second one is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from lanmirror_sync.answers import Answer, FetchError, WrongBytesError
from lanmirror_sync.fetch import Fetcher
from lanmirror_sync.memory import Memory

WRONG = "wrong/"
# Where nothing tells whether a file changed, it is fetched again after so long.
BLIND_SECONDS = 86400.0
# And whatever is told, since what stands between may be at fault.
AGAIN_SECONDS = 7 * 86400.0
# So many runs in which it was wrong make it known.
RUNS = 2


@dataclass(frozen=True)
class Suspect:
    """A package that was wrong the last time, and of which its places are asked whether it changed.

    Attributes:
        name: its file name.
        reason: what was wrong with it.
        answers: what its places say, with what they said then.
        since: when it was wrong last (Unix time, seconds).
    """

    name: str
    reason: str
    answers: Sequence[tuple[Future[Answer], tuple[str, int | None]]] = field(default_factory=tuple)
    since: float = 0.0

    def answered(self) -> bool:
        """Tell whether `changed` returns at once."""
        return all(future.done() for future, _ in self.answers)

    def changed(self) -> bool:
        """Tell whether it is worth another download."""
        told, age = False, time.time() - self.since
        for future, (word, size) in self.answers:
            try:
                answer = future.result()
            except FetchError:
                continue
            if answer.validators.word != word or (None not in (size, answer.size) and answer.size != size):
                return True
            told |= bool(word)
        return age >= (AGAIN_SECONDS if told else BLIND_SECONDS)


class Wrongs:
    """What is known to be wrong."""

    def __init__(self, memory: Memory, fetcher: Fetcher) -> None:
        self._memory = memory
        self._fetcher = fetcher

    def remember(self, owner: str, name: str, digest: str, error: FetchError) -> None:
        """Take note of how a download failed, if that says that its bytes are wrong wherever they are to be had."""
        if not isinstance(error, WrongBytesError) or not error.seen:
            return
        seen = [[validators.url, validators.word, size] for validators, size in error.seen]
        former = self._memory.fact(f"{WRONG}{owner}/{name}")
        runs = former.get("runs", 0) + 1 if former.get("digest") == digest else 1
        fact = {"digest": digest, "reason": str(error), "seen": seen, "since": time.time(), "runs": runs}
        self._memory.note(f"{WRONG}{owner}/{name}", fact)

    def forget(self, owner: str, name: str) -> None:
        """Take note that it is right."""
        self._memory.drop(f"{WRONG}{owner}/{name}")

    def names(self, owner: str) -> list[str]:
        """Return the file names of an owner that were wrong."""
        prefix = f"{WRONG}{owner}/"
        return [key.removeprefix(prefix) for key in self._memory.keys(prefix)]

    def doubted(self, owner: str, name: str, digest: str) -> bool:
        """Tell whether a file was wrong in the last run."""
        return self._memory.fact(f"{WRONG}{owner}/{name}").get("digest") == digest

    def suspect(self, owner: str, name: str, digest: str) -> Suspect | None:
        """Ask whether a file that was wrong has changed; None where another one is wanted by now."""
        fact = self._memory.fact(f"{WRONG}{owner}/{name}")
        if fact.get("digest") != digest or fact["runs"] < RUNS:
            return None
        answers = tuple(
            (self._fetcher.request([url], method="HEAD", spare=True, optional=True), (word, size))
            for url, word, size in fact["seen"]
        )
        return Suspect(name, fact["reason"], answers, fact["since"])
