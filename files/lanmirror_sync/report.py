"""What a run did, and where it tells how far it is."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

# So many failures of one subdir are kept and logged one by one; the rest are counted.
FAILURES_TOLD = 50
CREDENTIALS = re.compile(r"(\bhttps?://)[^/\s@]*@")

log = logging.getLogger(__name__)


def discreet(text: str) -> str:
    """Return a text without the credentials of the addresses in it."""
    return CREDENTIALS.sub(r"\1", text)


class Progress(Protocol):
    """Where a run tells how far it is. `owner` is the path of a subdir or of an installer page."""

    def start(self, owner: str, files: int, size: int) -> None:
        """So many files and bytes are to be fetched."""

    def received(self, owner: str, size: int) -> None:
        """So many bytes came in; called from the fetching thread."""

    def done(self, owner: str) -> None:
        """One file is finished, well or not."""


@dataclass
class Report:
    """What a run did.

    Attributes:
        failures: what could not be had, and why, by subdir or installer page.
        counts: how many failures each of these had.
        fetched: files that were fetched.
        received: their bytes.
        deleted: files that were deleted.
        unreachable: subdirs whose index could not be asked for.
        asked: subdirs whose index was asked for.
        unchanged: subdirs that were complete, and whose index the upstream did not change: how many packages
            each of them has.
    """

    failures: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    fetched: int = 0
    received: int = 0
    deleted: int = 0
    unreachable: int = 0
    asked: int = 0
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
    def failed(self) -> int:
        """The number of failures."""
        return self.counts.total()
