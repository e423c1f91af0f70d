"""What a run did, and where it tells how far it is."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from lanmirror_sync.store import BROKEN_DISK

# So many failures of one subdir are kept and logged one by one; the rest are counted.
FAILURES_TOLD = 50
# In an address: a user name and a password; and the token of a private channel, which is part of the path.
CREDENTIALS = re.compile(r"(\bhttps?://)[^/\s]*@")
TOKEN = re.compile(r"(\bhttps?://\S*?/t/)[^/\s]+")

log = logging.getLogger(__name__)


def discreet(text: str) -> str:
    """Return a text without the credentials of the addresses in it."""
    return TOKEN.sub(r"\1<TOKEN>", CREDENTIALS.sub(r"\1", text))


def in_words(error: OSError) -> str:
    """Return what an error of the file system says, with the file that it is about."""
    where = error.filename2 or error.filename
    return f"{where}: {error.strerror or error}" if where else str(error.strerror or error)


def is_everybodys(error: OSError) -> bool:
    """Tell whether an error of the file system is none of one subdir alone."""
    return error.errno in BROKEN_DISK


class Progress(Protocol):
    """Where a run tells how far it is. `owner` is the path of a subdir or of an installer page."""

    def start(self, owner: str, files: int, size: int) -> None:
        """So many files and bytes are to be fetched."""

    def received(self, owner: str, size: int) -> None:
        """So many bytes came in; called from the fetching thread."""

    def done(self, owner: str) -> None:
        """One file is finished, well or not."""

    def tick(self) -> None:
        """Time goes by; called a few times a second while something is waited for."""


@dataclass
class Report:
    """What a run did.

    Attributes:
        failures: what could not be had, and why, by subdir or installer page.
        counts: how many failures each of these had.
        fetched: files that were fetched.
        received: their bytes.
        promoted: packages that the web server's cache had, and that were not fetched.
        promoted_bytes: their bytes.
        deleted: files that were deleted.
        unreachable: subdirs whose index could not be asked for.
        asked: subdirs whose index was asked for.
        crashes: faults of the program itself.
        unchanged: subdirs that were complete, and whose index the upstream did not change: how many packages
            each of them has.
    """

    failures: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    fetched: int = 0
    received: int = 0
    promoted: int = 0
    promoted_bytes: int = 0
    deleted: int = 0
    unreachable: int = 0
    asked: int = 0
    crashes: list[BaseException] = field(default_factory=list)
    unchanged: dict[str, int] = field(default_factory=dict)

    def fail(self, owner: str, message: str) -> None:
        """Note a failure and log it at once."""
        self.counts[owner] += 1
        told = self.failures.setdefault(owner, [])
        if len(told) < FAILURES_TOLD:
            told.append(discreet(message))
            log.error("%s", message)
        elif self.counts[owner] == FAILURES_TOLD + 1:
            log.error("%s: there are more failures, which are only counted", owner)

    @property
    def first(self) -> str:
        """The first failure; "" where there is none."""
        return next((message for messages in self.failures.values() for message in messages), "")

    @property
    def failed(self) -> int:
        """The number of failures."""
        return self.counts.total()
