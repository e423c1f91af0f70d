"""HTTP: indexes into memory, packages to disk; verified while they stream, resumed where they broke off.

Sources: RFC 9110 (ranges, `Retry-After`), the documentation of `requests`.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import requests
import urllib3
import zstandard

from lanmirror_sync.config import Config

USER_AGENT = "lanmirror/1 (Conda mirror sync)"
CHUNK = 1 << 18
# An index that is larger than this, compressed or not, is no index (conda-forge/linux-64 has 0.3 GiB).
LARGEST_INDEX = 4 << 30
LONGEST_WAIT_SECONDS = 300.0
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")

log = logging.getLogger(__name__)
T = TypeVar("T")


class FetchError(Exception):
    """A URL that could not be had; the message says why."""

    wait_seconds: float | None = None


class UnreachableError(FetchError):
    """The upstream does not answer, or answers only with errors of its own."""


class MissingError(FetchError):
    """The upstream answers, and does not have it."""


@dataclass(frozen=True)
class Expected:
    """What a file has to be.

    Attributes:
        size: in bytes; None where nothing but the transfer tells it.
        algorithm: `sha256` or `md5`.
        digest: in lower-case hexadecimal; "" where nothing tells it, so that only the length is checked.
    """

    size: int | None
    algorithm: str
    digest: str


@dataclass(frozen=True)
class Head:
    """What the upstream says of a file without sending it.

    Attributes:
        size: in bytes, None where it does not say.
        validator: its `ETag` or `Last-Modified`, "" where it has neither.
    """

    size: int | None
    validator: str


class Fetcher:
    """Requests to the upstream, with one kept-alive session for each thread."""

    def __init__(self, config: Config, on_bytes: Callable[[int], None] = lambda count: None) -> None:
        self._config = config
        self._on_bytes = on_bytes
        self._local = threading.local()
        self._stop = threading.Event()

    def stop(self) -> None:
        """End all waiting and every transfer at its next chunk, as on Ctrl-C or a full disk."""
        self._stop.set()

    def head(self, url: str) -> Head | None:
        """Return what the upstream says of `url`; None where it does not have it.

        Raises:
            FetchError: it could not be asked.
        """

        def attempt() -> Head:
            with self._response("HEAD", url) as response:
                length = response.headers.get("Content-Length", "")
                validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
                return Head(int(length) if length.isdecimal() else None, validator)

        try:
            return self._retry(url, attempt)
        except MissingError:
            return None

    def get(self, url: str) -> bytes:
        """Return the bytes behind `url`, unpacked where its name ends in `.zst`.

        Raises:
            MissingError: the upstream does not have it.
            UnreachableError: the upstream does not answer.
            FetchError: what came is truncated, damaged, or too large.
        """
        data = self._retry(url, lambda: self._body(url))
        if not url.endswith(".zst"):
            return data
        try:
            unpacked = zstandard.ZstdDecompressor().stream_reader(data).read(LARGEST_INDEX + 1)
        except zstandard.ZstdError as error:
            raise FetchError(f"{url}: is not zstd ({error}); it begins with {data[:40]!r}") from error
        if len(unpacked) > LARGEST_INDEX:
            raise FetchError(f"{url}: unpacks to more than {LARGEST_INDEX >> 30} GiB")
        return unpacked

    def download(self, url: str, expected: Expected, partial: Path) -> None:
        """Bring `url` to the file `partial`, and return only if it is what was expected.

        What a former attempt or run left in `partial` is continued with a range request. On failure a
        sound beginning stays there for the next attempt; bytes that proved wrong do not.

        Raises:
            FetchError: it could not be had, or is not what was expected.
            OSError: it could not be written.
        """
        self._retry(url, lambda: self._transfer(url, expected, partial))

    def _body(self, url: str) -> bytes:
        parts, total = [], 0
        with self._response("GET", url) as response:
            for chunk in self._chunks(url, response):
                total += len(chunk)
                if total > LARGEST_INDEX:
                    raise FetchError(f"{url}: is larger than {LARGEST_INDEX >> 30} GiB")
                parts.append(chunk)
        return b"".join(parts)

    def _transfer(self, url: str, expected: Expected, partial: Path) -> None:
        hasher = hashlib.new(expected.algorithm, usedforsecurity=False)
        done = 0
        # Without a hash nothing could tell whether two halves belong to one file.
        if expected.digest and partial.exists():
            with partial.open("rb") as file:
                while chunk := file.read(CHUNK):
                    hasher.update(chunk)
                    done += len(chunk)
        if done and expected.size is not None and done >= expected.size:
            if done == expected.size and hasher.hexdigest() == expected.digest:
                return
            partial.unlink()
            hasher, done = hashlib.new(expected.algorithm, usedforsecurity=False), 0

        with self._response("GET", url, {"Range": f"bytes={done}-"} if done else {}) as response:
            if done and not self._continues(response, done):
                hasher, done = hashlib.new(expected.algorithm, usedforsecurity=False), 0
            with partial.open("ab" if done else "wb") as file:
                for chunk in self._chunks(url, response):
                    done += len(chunk)
                    if expected.size is not None and done > expected.size:
                        break
                    hasher.update(chunk)
                    file.write(chunk)
                    self._on_bytes(len(chunk))
        wrong = ""
        if expected.size is not None and done != expected.size:
            has = f"more than {expected.size}" if done > expected.size else str(done)
            wrong = f"has {has} bytes, the index says {expected.size}"
        elif expected.digest and hasher.hexdigest() != expected.digest:
            wrong = f"has the {expected.algorithm} {hasher.hexdigest()}, the index says {expected.digest}"
        if wrong:
            partial.unlink()
            raise FetchError(f"{url}: {wrong}")

    @staticmethod
    def _continues(response: requests.Response, done: int) -> bool:
        """Return whether the body begins where the partial file ends, and not anew."""
        match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        return response.status_code == requests.codes.partial and match is not None and int(match[1]) == done

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            # A proxy that compresses on the fly would change the lengths that are checked.
            session.headers.update({"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
            self._local.session = session
        return session

    @contextlib.contextmanager
    def _response(self, method: str, url: str, headers: dict[str, str] | None = None) -> Iterator[requests.Response]:
        """Send a request and turn every refusal into a `FetchError`."""
        try:
            response = self._session().request(
                method,
                url,
                headers=headers,
                stream=True,
                allow_redirects=True,
                timeout=self._config.timeout_seconds,
                # Given with the request: the environment's REQUESTS_CA_BUNDLE wins over `Session.verify`.
                verify=self._config.ca_bundle or None,
            )
        except requests.TooManyRedirects as error:
            raise FetchError(f"{url}: redirects in a loop") from error
        except requests.RequestException as error:
            raise UnreachableError(f"{url}: {_reason(error)}") from error
        with response:
            status = response.status_code
            if status in (requests.codes.not_found, requests.codes.gone):
                raise MissingError(f"{url}: answers {status} {response.reason}")
            if status == requests.codes.requested_range_not_satisfiable:
                raise FetchError(f"{url}: answers {status} {response.reason}")
            if not response.ok:
                failure = UnreachableError(f"{url}: answers {status} {response.reason}")
                failure.wait_seconds = _retry_after(response.headers.get("Retry-After"))
                raise failure
            yield response

    def _chunks(self, url: str, response: requests.Response) -> Iterator[bytes]:
        """Yield the body; a transfer that ends before its announced length is an error."""
        try:
            while chunk := response.raw.read(CHUNK, decode_content=False):
                if self._stop.is_set():
                    raise FetchError(f"{url}: stopped")
                yield chunk
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(f"{url}: the transfer broke off ({_reason(error)})") from error

    def _retry(self, url: str, attempt: Callable[[], T]) -> T:
        """Try until it works, at most `retries` times again, waiting longer each time."""
        for number in range(self._config.retries + 1):
            try:
                return attempt()
            except MissingError:
                raise
            except FetchError as error:
                if number == self._config.retries or self._stop.is_set():
                    raise
                wait = min(self._config.retry_wait_seconds * 2**number, LONGEST_WAIT_SECONDS)
                if error.wait_seconds is not None:
                    wait = min(max(wait, error.wait_seconds), LONGEST_WAIT_SECONDS)
                log.debug("%s; again in %.1f s", error, wait)
                self._stop.wait(wait)
        raise AssertionError(url)


def _retry_after(value: str | None) -> float | None:
    """Return the seconds that a `Retry-After` asks for (RFC 9110, 10.2.3), None where it is unreadable."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    with contextlib.suppress(ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _reason(error: BaseException) -> str:
    """Return the innermost cause of a failed request, which says more than its wrappings."""
    while True:
        inner = error.__context__ or next((arg for arg in error.args if isinstance(arg, BaseException)), None)
        inner = getattr(error, "reason", None) if isinstance(getattr(error, "reason", None), Exception) else inner
        if inner is None:
            return " ".join(str(error).split()) or type(error).__name__
        error = inner
