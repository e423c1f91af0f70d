"""The answers to requests for a file: stored, as it comes, or a part of it (RFC 9110, 14)."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from pyramid.response import Response
from webob.static import FileIter

from lanmirror_devpi.fetch import Alone, Job, Outcome
from lanmirror_devpi.sources import CONTENT_RANGE, BrokenOff, FetchError, failure, length, status_for

ACCEL = "X-Lanmirror-Accel"
METADATA = ".metadata"
# The part of a file that is passed on without fetching the rest: uv reads the end of a wheel.
SMALL_PART = 16 << 20
RANGE = re.compile(r"bytes=(?P<first>\d*)-(?P<last>\d*)")
WORDS = {
    HTTPStatus.NOT_FOUND: "The upstream has no such file.",
    HTTPStatus.FAILED_DEPENDENCY: "The upstream did not give this file, and it is not stored here: try again later.",
    HTTPStatus.BAD_GATEWAY: "The download of this file broke off: try again.",
    HTTPStatus.GATEWAY_TIMEOUT: "The upstream did not give this file in time.",
}


class Later(Response):
    """An answer that the tween makes, by `make`, when the transaction has ended."""

    make: Callable[[], Response]


def later(make: Callable[[], Response]) -> Later:
    """Return an answer that is made when the transaction has ended."""
    answer = Later()
    answer.make = make
    return answer


def refusal(error: FetchError) -> Response:
    """Return the answer where a file cannot be had."""
    text = WORDS.get(HTTPStatus(error.status), "This file cannot be had.")
    answer = Response(f"{text}\n", status=error.status, content_type="text/plain", charset="utf-8")
    answer.headers["Cache-Control"] = "no-store"
    return answer


def on_disk(xom: Any, path: str) -> Path:
    """Return where devpi stores a file (filestore_fs_base)."""
    return Path(xom.config.server_path) / "+files" / path


def headers_of(name: str) -> dict[str, str]:
    """Return the headers of any answer with a file."""
    return {
        "Content-Type": mimetypes.guess_type(name)[0] or "application/octet-stream",
        "Accept-Ranges": "bytes",
    }


def told(name: str, *, size: int | None, modified: str, body: Any = ()) -> Response:
    """Return an answer with a file as it comes, which nobody may keep."""
    answer = Response(app_iter=body, headers=headers_of(name))
    answer.headers["Cache-Control"] = "no-store"
    if size is None:
        answer.headers.pop("Content-Length", None)
    else:
        answer.headers["Content-Length"] = str(size)
    if modified:
        answer.headers["Last-Modified"] = modified
    return answer


def redirected(where: str, path: str) -> Response:
    """Return what sends Nginx to one of its own locations; it reads it as a URL."""
    answer = Response(headers=headers_of(path.removesuffix(METADATA) if path.endswith(METADATA) else path))
    answer.headers["X-Accel-Redirect"] = quote(f"/{where}/{path}", safe="/+")
    return answer


def stored(xom: Any, path: str, *, accel: bool) -> Response:
    """Return a file that is stored."""
    if accel:
        return redirected("+stored", path)
    file = on_disk(xom, path)
    stream = file.open("rb")
    answer = Response(app_iter=FileIter(stream), conditional_response=True, headers=headers_of(file.name))
    stat = file.stat()
    answer.headers["Content-Length"] = str(stat.st_size)
    answer.last_modified = stat.st_mtime
    if "/+f/" in path:
        answer.headers["Cache-Control"] = "max-age=365000000, immutable, public"
    return answer


@dataclass(frozen=True)
class Part:
    """What a client asks for with `Range` (RFC 9110, 14.1.2); `first` is None for the last `count` bytes."""

    first: int | None
    count: int | None


def part_of(header: str | None) -> Part | None:
    """Return the part that a header asks for; None for all, for several parts, and for what is no header."""
    found = RANGE.fullmatch(header.strip()) if header else None
    if not found or not (found["first"] or found["last"]):
        return None
    if not found["first"]:
        return Part(None, int(found["last"]))
    first = int(found["first"])
    if not found["last"]:
        return Part(first, None)
    return Part(first, int(found["last"]) - first + 1) if int(found["last"]) >= first else None


def is_small(part: Part, size: int | None) -> bool:
    """Return whether a part is worth asking for alone: less than half of the file, where its size is known."""
    count = part.count
    if count is None and size is not None and part.first is not None:
        count = max(0, size - part.first)
    return count is not None and 0 < count <= SMALL_PART and (size is None or count < size / 2)


@dataclass(frozen=True)
class Wanted:
    """A file that is not stored, and how to get it."""

    xom: Any
    client: Any
    url: str
    job: Job
    size: int | None
    silence: float
    kind: str = ""

    @property
    def name(self) -> str:
        """Of the file."""
        return self.job.path.rpartition("/")[2]

    def answer(self, request: Any) -> Response:
        """Return the answer to a request for it; FetchError where there is none."""
        if request.method == "HEAD":
            return self.head()
        header = request.headers.get("Range")
        part = part_of(header)
        if part and not self.kind and is_small(part, self.size):
            answer = self.passed_on(header, part, request.headers.get("If-Range"))
            if answer:
                return answer
        return self.shared(accel=request.headers.get(ACCEL) == "1", whole=header is None or part == Part(0, None))

    def shared(self, *, accel: bool, whole: bool) -> Response:
        """Return it as one download for all has it; FetchError where that fails.

        Args:
            accel: Nginx asks, and waits by itself.
            whole: All of it is asked for.
        """
        download, first = self.xom.lanmirror_downloads.start(self.job, reads=whole, kind=self.kind)
        if download is None:
            return stored(self.xom, self.job.path, accel=accel)
        if first and whole:
            reader = download.reader()
            return told(self.name, size=download.size, modified=download.modified, body=reader)
        if accel and download.outcome is None:
            return redirected("+wait", self.job.path)
        outcome = download.wait()
        if outcome is Outcome.STORED:
            return stored(self.xom, self.job.path, accel=accel)
        if outcome is Outcome.FAILED:
            raise download.error or FetchError(HTTPStatus.BAD_GATEWAY, "it failed")
        alone = Alone(self.job)
        return told(self.name, size=alone.source.size, modified=alone.source.modified, body=alone)

    def ask(self, method: str, **headers: str) -> Any:
        """Return an answer of the upstream; FetchError where there is none."""
        try:
            timeout = httpx.Timeout(self.silence, connect=self.client.timeout.connect, pool=None)
            request = self.client.build_request(method, self.url, headers=headers, timeout=timeout)
            return self.client.send(request, stream=True)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise failure(error) from error

    def head(self) -> Response:
        """Return what is known of it; where that is nothing, what the upstream says. No byte of it is fetched."""
        if self.size is not None:
            return told(self.name, size=self.size, modified="")
        if self.kind:
            # It may have to be made; it is small.
            return told(self.name, size=None, modified="")
        answer = self.ask("HEAD")
        answer.close()
        if answer.status_code not in {HTTPStatus.OK, HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
            # Signed URLs are for one method.
            answer = self.ask("GET")
            answer.close()
        if answer.status_code != HTTPStatus.OK:
            raise FetchError(status_for(answer.status_code), f"the upstream answers {answer.status_code}")
        size = None if answer.headers.get("Content-Encoding") else length(answer.headers)
        return told(self.name, size=size, modified=answer.headers.get("Last-Modified", ""))

    def passed_on(self, header: str, part: Part, if_range: str | None) -> Response | None:
        """Return a part of it as the upstream gives it, unchecked; None where the upstream gives no such part.

        No hash tells whether these bytes are right: who asks for a part trusts the upstream, as it would without us.
        """
        upstream = self.ask("GET", Range=header, **({"If-Range": if_range} if if_range else {}))
        found = CONTENT_RANGE.fullmatch(upstream.headers.get("Content-Range", ""))
        if (
            upstream.status_code != HTTPStatus.PARTIAL_CONTENT
            or found is None
            or not is_asked_for(part, *map(int, found.groups()))
            or (self.size is not None and int(found["size"]) != self.size)
            or upstream.headers.get("Content-Encoding", "identity") != "identity"
        ):
            upstream.close()
            return None
        count = int(found["last"]) - int(found["first"]) + 1
        modified = upstream.headers.get("Last-Modified", "")
        answer = told(self.name, size=count, modified=modified, body=PassedOn(upstream))
        answer.status = HTTPStatus.PARTIAL_CONTENT
        answer.headers["Content-Range"] = found[0]
        return answer


def is_asked_for(part: Part, first: int, last: int, size: int) -> bool:
    """Return whether what an upstream gives is the part that was asked for."""
    begin = max(0, size - part.count) if part.first is None and part.count is not None else part.first
    end = size - 1 if part.first is None or part.count is None else min(size - 1, part.first + part.count - 1)
    return (first, last) == (begin, end)


class PassedOn:
    """The bytes of an upstream's answer."""

    def __init__(self, upstream: Any) -> None:
        self.upstream = upstream

    def __iter__(self) -> Iterator[bytes]:
        """Yield them."""
        try:
            yield from self.upstream.iter_raw()
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise BrokenOff from error

    def close(self) -> None:
        """End it."""
        self.upstream.close()
