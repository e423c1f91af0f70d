"""More than one upstream: the setting `fallback_urls` of a mirror, and the pauses of hosts that fail.

`mirror_url` is the first upstream. Each of `fallback_urls` is another simple index of the same packages; they are asked
in order where those before give nothing of use. Nothing here asks anybody.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from typing import Any

import httpx
from devpi_server import mirror

from lanmirror_devpi import outside
from lanmirror_devpi.replace import replace

FALLBACK_URLS = outside.FALLBACK_URLS
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


def install() -> None:
    """Make `fallback_urls` a stored setting of mirrors, as flat.py does with `flat`."""

    def get_possible_indexconfig_keys(self: Any) -> tuple[str, ...]:
        """Return the names of the settings that mirrors have beside devpi's own."""
        return (*theirs(self), FALLBACK_URLS)

    def normalize_indexconfig_value(self: Any, key: str, value: Any) -> Any:
        """Return the value of a setting as it is stored, and None for one that is not known."""
        if key != FALLBACK_URLS:
            return normalize(self, key, value)
        urls = value.split(",") if isinstance(value, str) else value
        urls = [url.strip() for url in urls if isinstance(url, str) and url.strip()]
        for url in urls:
            if not URL.fullmatch(url):
                why = "it must be a URL with http:// or https://, without a password"
                raise self.InvalidIndexconfig([f"{key} has {outside.masked(url)!r}: {why}"])
        # Each once, in order.
        return list(dict.fromkeys(f"{url.rstrip('/')}/" for url in urls))

    theirs = replace(mirror.MirrorCustomizer, "get_possible_indexconfig_keys", get_possible_indexconfig_keys)
    normalize = replace(mirror.MirrorCustomizer, "normalize_indexconfig_value", normalize_indexconfig_value)
