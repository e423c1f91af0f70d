"""Ask an upstream for the page of a project.

devpi asks its upstream when a page it has is older than `mirror_cache_expiry`, and waits for it: when the upstream
drops packets, for five seconds, for each project, each time. That hits most those who use a private index on top of
a mirror, whose pages Nginx must not keep. With this, one request in PAUSE seconds waits for PATIENCE seconds; the
others get what is known at once, and devpi goes on reading in the background, as it does by itself.

It also sets an end to that: what the upstream has not confirmed for `max_stale` seconds is an error. devpi forgets at a
restart when that was, so the time counts from there at the earliest.

Connections to an upstream stay open for the next page. devpi makes a client for each, and with it a connection: with
TLS, two or three round trips before the one for the page itself.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import AsyncIterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx
from devpi_server import httpclient, mirror

from lanmirror_devpi.flat import FLAT, FlatUpstream
from lanmirror_devpi.replace import replace
from lanmirror_devpi.told import Told

PATIENCE = 1.0
PAUSE = 30.0
STARTED = time.monotonic()

silent_since: dict[str, float] = {}


class PageClient(httpx.AsyncClient):
    """An HTTP client whose connections stay open for a few seconds, as long as httpx's own default says."""

    async def send(self, request: Any, **options: Any) -> Any:
        """Return the answer; ask once more where the upstream was just closing the connection (RFC 9110, 9.2.2)."""
        try:
            return await super().send(request, **options)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            return await super().send(request, **options)


page_clients: dict[Any, PageClient] = {}


@contextlib.asynccontextmanager
async def async_client(self: Any) -> AsyncIterator[PageClient]:
    """Lend the client for pages, as the method of devpi's that it takes the place of makes one; all in one thread."""
    if self not in page_clients:
        # As before, indexes on one host share no cookies, and who waits for a silent upstream is in nobody's way.
        page_clients[self] = PageClient(
            headers=self.headers,
            verify=self._ssl_context,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        )
    yield page_clients[self]


def install(*, max_stale: float, told: Told) -> None:
    """Replace the methods of devpi's that ask an upstream for a page."""
    load = mirror.MirrorStage._load_cache_links

    def get_simplelinks_perstage(self: Any, project: Any) -> Any:
        """Return the links of a project, as the method of devpi's that it takes the place of."""
        project = mirror.normalize_name(project)
        expired, links, *_ = load(self, project)
        # A replica's own threads set `offline`: nobody is to be asked for them.
        if links is None or not expired or self.offline:
            return ask(self, project)
        before = time.monotonic()
        if before - silent_since.get(self.name, -PAUSE) < PAUSE:
            answer = self.SimpleLinks(links, core_metadata=self.provides_core_metadata, stale=True)
        else:
            patience, self.timeout = self.timeout, min(self.timeout, PATIENCE)
            try:
                answer = ask(self, project)
            finally:
                self.timeout = patience
            if time.monotonic() - before >= min(patience, PATIENCE):
                silent_since[self.name] = time.monotonic()
        unconfirmed = self.cache_retrieve_times.is_expired(project, max_stale)
        if unconfirmed and time.monotonic() - STARTED > max_stale:
            raise self.UpstreamError(
                f"the upstream has not confirmed the page of {project!r} for {max_stale:.0f} seconds"
            )
        return answer

    async def _async_fetch_releaselinks(
        self: Any, newlinks_future: Any, project: Any, cache_serial: int, etag: Any, _key_from_link: Any
    ) -> None:
        """Ask the upstream for the page of a project, as the method of devpi's that it takes the place of."""
        if self.ixconfig.get(FLAT) and not isinstance(self.http, FlatUpstream):
            page = mirror.URL(self.ixconfig["mirror_url"]).replace(username=None, password=None)
            self.http = FlatUpstream(self.http, page)
        try:
            await fetch(self, newlinks_future, project, cache_serial, etag, _key_from_link)
        except (self.UpstreamNotModified, self.UpstreamNotFoundError):
            told.tell(self.name, "")
            raise
        except self.UpstreamError as error:
            # Without the project's page, which is another one each time. -1 is devpi's own, for no answer at all.
            why = re.sub(r" on GET .*", "", str(error), flags=re.DOTALL)
            told.tell(self.name, "it cannot be reached" if why == "-1 status" else why)
            raise
        else:
            told.tell(self.name, "")

    ask = replace(mirror.MirrorStage, "get_simplelinks_perstage", get_simplelinks_perstage)
    fetch = replace(mirror.MirrorStage, "_async_fetch_releaselinks", _async_fetch_releaselinks)
    replace(httpclient.HTTPClient, "async_client", async_client)
