"""More than one place: the settings `fallback_urls` and `files_from` of a mirror, and the pauses of hosts that fail.

`mirror_url` is the first upstream. Each of `fallback_urls` is another simple index of the same packages; they are asked
in order where those before give nothing of use. Each of `files_from` has files (near.py). Nothing here asks anybody.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from typing import Any

import httpx

from lanmirror_devpi import outside, setting

FALLBACK_URLS, FILES_FROM = outside.FALLBACK_URLS, outside.FILES_FROM
URL = re.compile(r"https?://[^\s/@,\"\\]+(/[^\s@,\"\\]*)?")


class Pauses:
    """The hosts that failed, and until when they are left alone."""

    def __init__(self, seconds: float) -> None:
        """Leave a host that failed alone for so many seconds, unless nobody else has an answer."""
        self.seconds = seconds
        self._until: dict[tuple[str, str, int], float] = {}
        self._lock = threading.Lock()

    def in_order(self, urls: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the URLs to ask now, and those to ask where they give nothing."""
        now = time.monotonic()
        asked: list[str] = []
        paused: list[str] = []
        with self._lock:
            for url in urls:
                until = self._until.get(outside.origin(httpx.URL(url)), now)
                (paused if until > now else asked).append(url)
        return asked, paused

    def trying(self, url: str) -> None:
        """Have a host that failed before tried by this request alone: for the others, its pause goes on."""
        host = outside.origin(httpx.URL(url))
        with self._lock:
            if host in self._until:
                self._until[host] = time.monotonic() + self.seconds

    def failed(self, url: str) -> None:
        """Leave the host of a URL alone for a time."""
        with self._lock:
            self._until[outside.origin(httpx.URL(url))] = time.monotonic() + self.seconds

    def answered(self, url: str) -> None:
        """Ask the host of a URL as always."""
        with self._lock:
            self._until.pop(outside.origin(httpx.URL(url)), None)


def upstreams_of(stage: Any) -> tuple[str, ...]:
    """Return the URLs that the pages of a mirror come from, in order, without credentials, with a slash at the end.

    On a replica, that is its primary alone.
    """
    first = str(stage.mirror_url_without_auth.url)
    more = () if stage.xom.is_replica() else stage.ixconfig.get(FALLBACK_URLS, ())
    return (first, *(url for url in more if url != first))


def all_of(stage: Any) -> tuple[str, ...]:
    """Return the URLs that the pages and the files of a mirror come from, as these are told of."""
    return *upstreams_of(stage), *stage.ixconfig.get(FILES_FROM, ())


def install() -> None:
    """Make `fallback_urls` and `files_from` settings of mirrors."""
    setting.add([FALLBACK_URLS, FILES_FROM], urls_of)


def urls_of(key: str, value: Any) -> list[str]:
    """Return the URLs of a list as they are stored, each once and in order; ValueError for one that is none."""
    urls = setting.texts(value)
    for url in urls:
        if not URL.fullmatch(url):
            why = "it must be a URL with http:// or https://, without a password"
            raise ValueError(f"{key} has {outside.masked(url)!r}: {why}")
    return list(dict.fromkeys(f"{url.rstrip('/')}/" for url in urls))
