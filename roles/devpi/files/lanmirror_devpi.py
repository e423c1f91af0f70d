"""Run devpi-server with little patience for an upstream, with flat upstreams, and telling which upstreams answer.

devpi asks its upstream when a page it has is older than `mirror_cache_expiry`, and waits for it: when the upstream
drops packets, for five seconds, for each project, each time. That hits most those who use a private index on top of
a mirror, whose pages Nginx must not keep. With this, one request in PAUSE seconds waits for PATIENCE seconds; the
others get what is known at once, and devpi goes on reading in the background, as it does by itself.

It also sets an end to that: what the upstream has not confirmed for LANMIRROR_MAX_STALE seconds is an error. devpi
forgets at a restart when that was, so the time counts from there at the earliest.

On a replica it brings only such files over as the primary has. devpi queues each link of each page, and goes through
the links of the whole project for each: two dozen projects are 18,000 entries, behind which the files wait for hours.

A mirror that is named in LANMIRROR_FLAT has an upstream of one page, at its `mirror_url`, with links to the files of
all projects, as vendors have them and as `pip --find-links` takes them. devpi asks for a page of each project; it gets
one with the project's links of that page.

A page of some size is compressed here and not by Nginx, which would not know its length before it has sent it, and
would send it in pieces ever after.

Connections to an upstream stay open for the next page. devpi makes a client for each, and with it a connection: with
TLS, two or three round trips before the one for the page itself.

How each upstream answered last is written to the file LANMIRROR_UPSTREAMS, for lanmirror_devpi_watch.py, when it
changes.

Made for the pinned version of devpi-server; the names it builds on are looked up at the start, which fails if one is
gone.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import html
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any

import httpx
from devpi_server import httpclient, main, mirror, replica, views  # type: ignore[import-not-found]  # it is in the venv that runs this

PATIENCE = 1.0
PAUSE = 30.0
MAX_STALE = float(os.environ["LANMIRROR_MAX_STALE"])
STARTED = time.monotonic()
# Bytes from which on a page is worth compressing: less fits into one packet.
WORTH_COMPRESSING = 1000

FLAT = frozenset(os.environ.get("LANMIRROR_FLAT", "").split())
UPSTREAMS = os.environ.get("LANMIRROR_UPSTREAMS", "")

ask = mirror.MirrorStage.get_simplelinks_perstage
fetch = mirror.MirrorStage._async_fetch_releaselinks
load = mirror.MirrorStage._load_cache_links

simple_list_project = views.PyPIView.simple_list_project

on_import_file = replica.FileReplicationSharedData.on_import_file

silent_since: dict[str, float] = {}


def get_simplelinks_perstage(stage: Any, project: Any) -> Any:
    """Return the links of a project, as the method of devpi's that it takes the place of."""
    project = mirror.normalize_name(project)
    expired, links, *_ = load(stage, project)
    # A replica's own threads set `offline`: nobody is to be asked for them.
    if links is None or not expired or stage.offline:
        return ask(stage, project)
    before = time.monotonic()
    if before - silent_since.get(stage.name, -PAUSE) < PAUSE:
        answer = stage.SimpleLinks(links, core_metadata=stage.provides_core_metadata, stale=True)
    else:
        patience, stage.timeout = stage.timeout, min(stage.timeout, PATIENCE)
        try:
            answer = ask(stage, project)
        finally:
            stage.timeout = patience
        if time.monotonic() - before >= min(patience, PATIENCE):
            silent_since[stage.name] = time.monotonic()
    unconfirmed = stage.cache_retrieve_times.is_expired(project, MAX_STALE)
    if unconfirmed and time.monotonic() - STARTED > MAX_STALE:
        raise stage.UpstreamError(f"the upstream has not confirmed the page of {project!r} for {MAX_STALE:.0f} seconds")
    return answer


def import_file(data: Any, keyfs: Any, serial: int, key: Any, *change: Any) -> None:
    """Queue a file that the primary has, or that it has deleted, as the method of devpi's that it takes the place of.

    devpi itself does the same for what it finds at its start (replica.InitialQueueThread).
    """
    value = change[0]
    if value is None or value.get("last_modified"):
        on_import_file(data, keyfs, serial, key, *change)


class PageClient(httpx.AsyncClient):
    """An HTTP client whose connections stay open for a few seconds, as long as httpx's own default says."""

    async def send(self, request: Any, **options: Any) -> Any:
        """Return the answer; ask once more where the upstream was just closing the connection (RFC 9110, 9.2.2)."""
        try:
            return await super().send(request, **options)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            return await super().send(request, **options)


page_clients: dict[Any, PageClient] = {}


@functools.wraps(httpclient.HTTPClient.async_client)
@contextlib.asynccontextmanager
async def async_client(http: Any) -> AsyncIterator[PageClient]:
    """Lend the client for pages, as the method of devpi's that it takes the place of makes one; all in one thread."""
    if http not in page_clients:
        # As before, indexes on one host share no cookies, and who waits for a silent upstream is in nobody's way.
        page_clients[http] = PageClient(
            headers=http.headers,
            verify=http._ssl_context,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        )
    yield page_clients[http]


@dataclass(frozen=True)
class Page:
    """What devpi reads of an answer."""

    status_code: int
    headers: Any
    url: str


class FlatUpstream:
    """The HTTP client of a mirror, for one whose projects stand on one page."""

    def __init__(self, client: Any, page: Any) -> None:
        self.client, self.page = client, page

    def __getattr__(self, name: str) -> Any:
        """Leave all but pages as it is."""
        return getattr(self.client, name)

    async def async_get(self, url: Any, **options: Any) -> tuple[Any, Any]:
        """Return the answer that an upstream with a page for each project would give."""
        answer, text = await self.client.async_get(self.page, **options)
        if answer.status_code != 200 or text is None:  # noqa: PLR2004 - HTTP's OK
            return answer, text
        parser = mirror.IndexParser(mirror.URL(url).asfile().basename)
        parser.parse_index(mirror.URL(str(answer.url)), text)
        rows = []
        for link in parser.releaselinks:
            needs = f' data-requires-python="{html.escape(link.requires_python)}"' if link.requires_python else ""
            rows.append(f'<a href="{html.escape(link.url)}"{needs}>{html.escape(link.basename)}</a>')
        return Page(200 if rows else 404, answer.headers, mirror.URL(url).url), "\n".join(rows)


told: dict[str, dict[str, Any]] = {}
telling = threading.Lock()


def tell(name: str, why: str) -> None:
    """Write down how an upstream answered: `why` it did not, or nothing when it did."""
    with telling:
        if UPSTREAMS and told.get(name, {}).get("why") != why:
            told[name] = {"since": time.time(), "why": why}
            new = Path(f"{UPSTREAMS}.new")
            new.write_text(json.dumps(told), encoding="utf-8")
            new.replace(UPSTREAMS)


async def fetch_releaselinks(stage: Any, *arguments: Any) -> None:
    """Ask the upstream for the page of a project, as the method of devpi's that it takes the place of."""
    if stage.name in FLAT and not isinstance(stage.http, FlatUpstream):
        page = mirror.URL(stage.ixconfig["mirror_url"]).replace(username=None, password=None)
        stage.http = FlatUpstream(stage.http, page)
    try:
        await fetch(stage, *arguments)
    except (stage.UpstreamNotModified, stage.UpstreamNotFoundError):
        tell(stage.name, "")
        raise
    except stage.UpstreamError as error:
        # Without the project's page, which is another one each time. -1 is devpi's own, for no answer at all.
        why = re.sub(r" on GET .*", "", str(error), flags=re.DOTALL)
        tell(stage.name, "it cannot be reached" if why == "-1 status" else why)
        raise
    else:
        tell(stage.name, "")


def compressed_simple_list_project(view: Any) -> Any:
    """Return the page of a project, compressed for Nginx, which asks for that in these words."""
    response = simple_list_project(view)
    if response.status_code == 200 and view.request.headers.get("Accept-Encoding") == "gzip":  # noqa: PLR2004 - HTTP's OK
        page = response.body
        if len(page) >= WORTH_COMPRESSING:
            response.body = gzip.compress(page, compresslevel=6, mtime=0)
            response.content_encoding = "gzip"
    return response


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Return whether a record goes to the journal: not the question whether devpi is there, every few seconds."""
    return not record.getMessage().endswith("GET /+api")


logging.getLogger().addFilter(is_worth_a_line)
httpclient.HTTPClient.async_client = async_client
replica.FileReplicationSharedData.on_import_file = import_file
views.PyPIView.simple_list_project = compressed_simple_list_project
mirror.MirrorStage.get_simplelinks_perstage = get_simplelinks_perstage
mirror.MirrorStage._async_fetch_releaselinks = fetch_releaselinks

if __name__ == "__main__":
    sys.exit(main.main())
