"""Politeness towards upstream hosts: who is asked to wait, for how long, and who is given up. No I/O.

Packages that cannot be had are their own affair; a host that refuses one request after another is left alone for
a while, then asked for something that it has served before, and given up for this run when it refuses that too.
Source: RFC 9110 (403, 429, 503, `Retry-After`), RFC 6585 (429).
"""

from __future__ import annotations

import functools
import math
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


@dataclass
class _Host:
    busy: int = 0
    # Of these, how many were under way when the pause began: one may be long, or stall.
    earlier: int = 0
    refused: set[str] = field(default_factory=set)
    ever_refused: set[str] = field(default_factory=set)
    pauses: int = 0
    until: float = 0.0
    given_up: str = ""
    in_a_row: int = 0
    answered: bool = False
    good: str = ""


class Hosts:
    """What is known of each host during a run. Times are seconds of a monotonic clock.

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

    def began(self, host: str) -> None:
        """Note that a request is under way."""
        self._hosts.setdefault(host, _Host()).busy += 1

    def served(self, host: str, now: float, url: str = "", *, probe: bool = False) -> None:
        """Note that a request ended with an answer that is not a refusal.

        Args:
            host: who answered.
            now: see the class.
            url: what it served; "" where it only said that it has no such thing.
            probe: whether that was only asked for to see how the host is.
        """
        known = self._hosts[host]
        self._over(known)
        known.answered = True
        if known.until > now:
            return  # it was under way when the pause began
        known.refused.clear()
        known.pauses = 0
        if not probe:
            known.in_a_row = 0
            known.good = url or known.good

    def ended(self, host: str) -> None:
        """Note that a request ended with an answer that tells nothing about the host."""
        self._over(self._hosts[host])

    def probe(self, host: str, now: float) -> str:
        """Return what to ask a host for after a pause, before anything else; "" for just the next request."""
        known = self._hosts.get(host)
        return known.good if known and known.pauses and known.busy <= known.earlier and known.until <= now else ""

    def refused(self, host: str, refusal: Refusal, now: float) -> float:
        """Note a request that came to nothing.

        Returns:
            The seconds for which the host is left alone from now on, infinity when it is given up; 0 when only
            the URL is to blame so far.
        """
        known = self._hosts[host]
        self._over(known)
        known.in_a_row += refusal.url not in known.refused
        known.refused.add(refusal.url)
        fresh = refusal.url not in known.ever_refused
        known.ever_refused.add(refusal.url)
        if known.until > now or known.given_up:
            return 0.0  # it was under way when the pause began
        if known.in_a_row >= MOST_REFUSED:
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
        return wait

    @staticmethod
    def _over(known: _Host) -> None:
        known.busy -= 1
        known.earlier = min(known.earlier, known.busy)
