"""Politeness towards upstream hosts: who is asked to wait, for how long, and who is given up. No I/O.

Packages that cannot be had are their own affair; a host that refuses one request after another is left alone for
a while, then asked for something that it has served before, and given up for this run when it refuses that too.
Source: RFC 9110 (403, 429, 503, `Retry-After`), RFC 6585 (429).
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

LONGEST_WAIT_SECONDS = 300.0
# Each further pause of a host is so many times longer.
PAUSE_GROWTH = 4
# A host that refuses so many different URLs in a row is given up, whatever else it answers.
MOST_REFUSED = 64
# With fewer the URLs are to blame.
FEW_REFUSED = 2
TOO_MANY_REQUESTS = 429


@functools.lru_cache(1024)
def host_of(url: str) -> str:
    """Return what a host is known by here: name and port."""
    return urlsplit(url).netloc.rpartition("@")[2]


@dataclass(frozen=True)
class Refusal:
    """A request that came to nothing.

    Attributes:
        status: 403, 429 or 5xx; 0 for a host that did not answer, or broke off.
        retry_after: seconds, as the host asked for; 0 where it did not.
        reason: in words.
    """

    url: str
    status: int
    retry_after: float
    reason: str


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request that is under way.

    Attributes:
        number: the how manieth of its host it is.
        payload: whether it is for a package or an installer, and not for an index or a file beside one.
    """

    host: str
    number: int
    payload: bool


@dataclass
class _Host:
    busy: int = 0
    # Of these, how many were under way when the pause began: one may be long, or stall.
    earlier: int = 0
    begun: int = 0
    # The last request of each kind that was well answered, by its number; and the last one before the pause.
    well: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    before_pause: int = 0
    refused: dict[str, Ticket] = field(default_factory=dict)
    ever_refused: set[str] = field(default_factory=set)
    pauses: int = 0
    until: float = 0.0
    given_up: str = ""
    # How many were refused in a row, of each kind.
    in_a_row: Counter[bool] = field(default_factory=Counter)
    answered: bool = False
    good: str = ""


class Hosts:
    """What is known of each host during a run. Times are seconds of a monotonic clock.

    An answer speaks for its host from the moment on when it was asked for: whether one of them comes before or after
    the refusal of a former request is chance. And that an index can be had says nothing of packages: many a host
    throttles these alone.

    Args:
        jobs: requests at a time; a host that refuses half as many different ones in a row, and no fewer than
            `FEW_REFUSED`, is paused.
        retries: how many pauses in a row a host gets before it is given up.
        wait_seconds: the first pause.
    """

    def __init__(self, jobs: int, retries: int, wait_seconds: float) -> None:
        self._suspicious = max(FEW_REFUSED, jobs // 2)
        self._retries = retries
        self._wait_seconds = wait_seconds
        self._hosts: dict[str, _Host] = {}

    def wait(self, host: str, now: float) -> float:
        """Return for how long to leave a host alone: 0 to ask it, infinity when it was given up."""
        known = self._hosts.get(host)
        if known is None:
            return 0.0
        if known.given_up:
            return math.inf
        if known.pauses and known.busy > known.earlier and known.until <= now:
            return self._wait_seconds  # one request at a time finds out whether it is well again
        return max(0.0, known.until - now)

    def why_given_up(self, host: str) -> str:
        """Return the last refusal of a host that was given up."""
        return self._hosts[host].given_up

    def began(self, host: str, *, payload: bool = True) -> Ticket:
        """Note that a request is under way; see `Ticket`."""
        known = self._hosts.setdefault(host, _Host())
        known.busy += 1
        known.begun += 1
        return Ticket(host, known.begun, payload)

    def served(self, ticket: Ticket, url: str = "", *, probe: bool = False) -> None:
        """Note that a request ended with an answer that is not a refusal.

        Args:
            ticket: of the request.
            url: what the host served; "" where it only said that it has no such thing.
            probe: whether that was only asked for to see how the host is.
        """
        known = self._over(ticket)
        known.answered = True
        if ticket.number <= known.before_pause:
            return
        spoken_for = (True, False) if ticket.payload else (False,)
        for kind in spoken_for:
            known.well[kind] = max(known.well[kind], ticket.number)
        known.refused = {refused: its for refused, its in known.refused.items() if its.number > known.well[its.payload]}
        known.pauses = 0
        if not probe:
            for kind in spoken_for:
                del known.in_a_row[kind]
            known.good = url or known.good

    def ended(self, ticket: Ticket) -> None:
        """Note that a request ended with an answer that tells nothing about the host."""
        self._over(ticket)

    def probe(self, host: str, now: float) -> str:
        """Return what to ask a host for after a pause, before anything else; "" for just the next request."""
        known = self._hosts.get(host)
        return known.good if known and known.pauses and known.busy <= known.earlier and known.until <= now else ""

    def refused(self, ticket: Ticket, refusal: Refusal, now: float) -> float:
        """Note a request that came to nothing.

        Returns:
            The seconds for which the host is left alone from now on, infinity when it is given up; 0 when only
            the URL is to blame so far.
        """
        known = self._over(ticket)
        known.in_a_row[ticket.payload] += refusal.url not in known.refused
        fresh = refusal.url not in known.ever_refused
        known.ever_refused.add(refusal.url)
        if ticket.number <= known.before_pause or known.given_up:
            return 0.0
        if ticket.number > known.well[ticket.payload]:
            known.refused[refusal.url] = ticket
        if known.in_a_row.total() >= MOST_REFUSED:
            known.given_up = refusal.reason
            return math.inf
        known.answered = known.answered or refusal.status > 0
        probing = known.pauses > 0
        # A few packages that it refuses for ever must not speak for all the others. From a host that was never there
        # only a few indexes are wanted yet: they wait side by side, and not one after the other.
        if not known.answered or (probing and not fresh and refusal.status != TOO_MANY_REQUESTS):
            return 0.0
        if refusal.status != TOO_MANY_REQUESTS and not probing and len(known.refused) < self._suspicious:
            return 0.0
        if known.pauses >= self._retries:
            known.given_up = refusal.reason
            return math.inf
        wait = max(self._wait_seconds * float(PAUSE_GROWTH**known.pauses), refusal.retry_after)
        wait = min(wait, LONGEST_WAIT_SECONDS)
        known.refused.clear()
        known.pauses += 1
        known.until = now + wait
        known.earlier = known.busy
        known.before_pause = known.begun
        return wait

    def _over(self, ticket: Ticket) -> _Host:
        """Take note that a request is under way no more; return what is known of its host."""
        known = self._hosts[ticket.host]
        known.busy -= 1
        known.earlier = min(known.earlier, known.busy)
        return known
