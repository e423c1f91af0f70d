"""Where the bytes of an answer go: into memory, or to a file that is verified while it is written.

Each byte is hashed once, as it comes. A file that broke off keeps its sound beginning, and is continued with
a range request (RFC 9110, 13.1.5 and 14).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from lanmirror_sync.store import hasher_of, put
from lanmirror_sync.wire import BUFFER, Exchange

OK, PARTIAL_CONTENT = 200, 206
CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]+/(?:([0-9]{1,18})|\*)")
# What is read of an answer that is not the file, so that its connection can be used again.
LARGEST_ERROR_PAGE = 1 << 16
# A file from this size on remembers between runs whose beginning it is.
WORTH_A_VALIDATOR = 1 << 20


class WrongError(Exception):
    """The bytes are not those that were expected; the message says in what."""


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Download:
    """A file to fetch.

    Attributes:
        owner: on whose account it goes, for the progress display: a channel's path.
        name: the path below the working directory that it will have.
        urls: where it is to be had, the best first.
        partial: where it is collected.
        target: where it goes once it is verified.
        doubted: whether it was wrong in the last run: if it is still, that is believed at once.
        kept: its URL in the web server's cache, which is asked before all others, once; "" for none. `expected` then
            has a digest.
    """

    owner: str
    name: str
    urls: tuple[str, ...]
    expected: Expected
    partial: Path
    target: Path
    doubted: bool = False
    kept: str = ""


@dataclass(frozen=True, slots=True)
class Landed:
    """A verified file in its place.

    Attributes:
        digest: by the algorithm that was expected, in lower-case hexadecimal.
    """

    size: int
    mtime_ns: int
    digest: str


class Sink(Protocol):
    """Takes the answer to a request, and to its further attempts."""

    def headers(self, url: str) -> list[str]:
        """Return what an attempt has to ask for."""

    def take(self, exchange: Exchange, data: bytes) -> bool:
        """Take bytes as they come; False ends the transfer."""

    def end(self, exchange: Exchange) -> None:
        """Take note that the transfer is complete; raises WrongError where it is not what was expected."""

    def close(self) -> None:
        """Keep what there is for the next attempt."""

    def restart(self) -> None:
        """Keep nothing."""


class MemorySink:
    """Collects a body, which may have `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def data(self) -> bytes:
        """The body."""
        return b"".join(self._parts)

    def headers(self, url: str) -> list[str]:
        """See `Sink`."""
        self._parts, self._size = [], 0
        return []

    def take(self, exchange: Exchange, data: bytes) -> bool:
        """See `Sink`."""
        self._size += len(data)
        if exchange.status != OK:
            return self._size <= LARGEST_ERROR_PAGE
        self._parts.append(data)
        return self._size <= self._limit

    def end(self, exchange: Exchange) -> None:
        """See `Sink`."""
        if self._size > self._limit:
            self._parts = []
            raise WrongError(f"has more than {self._limit} bytes")

    def close(self) -> None:
        """See `Sink`."""

    def restart(self) -> None:
        """See `Sink`."""


class PeekSink:
    """Wants the head of an answer alone: the transfer ends with the first byte.

    Attributes:
        size: of the whole in bytes; None where the head does not tell.
    """

    def __init__(self) -> None:
        self.size: int | None = None
        self._read = 0

    def headers(self, url: str) -> list[str]:
        """See `Sink`."""
        self._read = 0
        return ["Range: bytes=0-0"]

    def take(self, exchange: Exchange, data: bytes) -> bool:
        """See `Sink`."""
        self._read += len(data)
        return exchange.status != OK and self._read <= LARGEST_ERROR_PAGE

    def end(self, exchange: Exchange) -> None:
        """See `Sink`."""
        match = CONTENT_RANGE.fullmatch(exchange.headers.get("content-range", ""))
        total = match[2] if match else exchange.headers.get("content-length", "")
        self.size = number(total or "")

    def close(self) -> None:
        """See `Sink`."""

    def restart(self) -> None:
        """See `Sink`."""


def in_header(text: str) -> str:
    """Return a validator as it may be sent back; "" for one that is none (RFC 9110, 8.8): visible ASCII on one line."""
    return text if text.isascii() and text.isprintable() else ""


def number(text: str) -> int | None:
    """Return the number of bytes that a header tells; None where it tells none."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


class FileSink:
    """Writes a file and hashes it; moves it to its place when it is what was expected."""

    def __init__(self, download: Download, on_bytes: Callable[[str, int], None]) -> None:
        self._download = download
        self._on_bytes = on_bytes
        self._validator = download.partial.with_name(f"{download.partial.name}.from")
        self._hasher = hasher_of(self._download.expected.algorithm)
        self._done = 0
        self._file: IO[bytes] | None = None
        self._from = ("", "")
        self._error_page = 0
        self.landed: Landed | None = None

    def left_behind(self) -> bool:
        """Return whether a former run left a beginning."""
        return self._download.partial.exists()

    def resume(self) -> bool:
        """Read what former runs left; return whether the file was complete and is in its place now.

        Raises:
            OSError: it could not be read or moved.
        """
        expected, partial = self._download.expected, self._download.partial
        try:
            with partial.open("rb") as file:
                if self._validator.exists():
                    url, _, validator = self._validator.read_text(encoding="utf-8", errors="replace").partition("\n")
                    self._from = (url, in_header(validator))
                # Without a hash and a validator nothing could tell whether two halves belong to one file.
                if not expected.digest and not self._from[1]:
                    return False
                while chunk := file.read(BUFFER):
                    self._hasher.update(chunk)
                    self._done += len(chunk)
        except FileNotFoundError:
            return False
        if expected.size is None or self._done < expected.size:
            return False
        if expected.digest and not self._wrong():
            self._land()
            return True
        self.restart()
        return False

    def headers(self, url: str) -> list[str]:
        """See `Sink`."""
        self._error_page = 0
        if not self._done:
            return []
        known_url, validator = self._from
        same = validator and known_url == url
        if not self._download.expected.digest and not same:
            self._forget()
            return []
        # Elsewhere the same file has another validator; there the hash of the whole is what tells.
        return [f"Range: bytes={self._done}-", *([f"If-Range: {validator}"] if same else [])]

    def take(self, exchange: Exchange, data: bytes) -> bool:
        """See `Sink`; raises OSError where the file cannot be written."""
        if exchange.status not in (OK, PARTIAL_CONTENT):
            self._error_page += len(data)
            return self._error_page <= LARGEST_ERROR_PAGE
        file = self._file or self._open(exchange)
        if file is None:
            return False
        self._done += len(data)
        expected = self._download.expected.size
        if expected is not None and self._done > expected:
            return False
        self._hasher.update(data)
        file.write(data)
        self._on_bytes(self._download.owner, len(data))
        return True

    def end(self, exchange: Exchange) -> None:
        """See `Sink`; raises OSError where the file cannot be written or moved."""
        if self._file is None and self._open(exchange) is None:
            self.restart()
            raise WrongError("continues somewhere else than it broke off")
        if wrong := self._wrong():
            self.restart()
            raise WrongError(wrong)
        self._land()

    def close(self) -> None:
        """See `Sink`; raises OSError where the file cannot be written."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _open(self, exchange: Exchange) -> IO[bytes] | None:
        """Open the file as the answer's head demands; return None where the answer is no continuation."""
        if exchange.status == PARTIAL_CONTENT:
            match = CONTENT_RANGE.fullmatch(exchange.headers.get("content-range", ""))
            if match is None or int(match[1]) != self._done:
                return None
        elif self._done:
            self._forget()
        size, partial = self._download.expected.size, self._download.partial
        if size is None or size >= WORTH_A_VALIDATOR:
            etag = exchange.headers.get("etag", "")
            # A weak validator does not vouch for single bytes (RFC 9110, 13.1.5).
            strong = etag if etag and not etag.startswith("W/") else exchange.headers.get("last-modified", "")
            strong = in_header(strong)
            self._from = (exchange.url, strong)
            self._validator.write_text(f"{exchange.url}\n{strong}", encoding="utf-8")
        self._file = partial.open("ab" if self._done else "wb", buffering=BUFFER)
        os.fchmod(self._file.fileno(), 0o644)
        return self._file

    def _wrong(self) -> str:
        expected = self._download.expected
        if expected.size is not None and self._done != expected.size:
            has = f"more than {expected.size}" if self._done > expected.size else str(self._done)
            return f"has {has} bytes, the index says {expected.size}"
        digest = self._hasher.hexdigest()
        if expected.digest and digest != expected.digest:
            return f"has the {expected.algorithm} {digest}, the index says {expected.digest}"
        return ""

    def _land(self) -> None:
        """Put the verified file in its place."""
        partial, target = self._download.partial, self._download.target
        if self._file is not None:
            self._file.flush()
            status = os.fstat(self._file.fileno())
            self.close()
        else:  # it was there already
            status = partial.stat()
        try:
            put(partial, target)
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
            put(partial, target)
        if self._from[0]:
            self._validator.unlink(missing_ok=True)
        self.landed = Landed(status.st_size, status.st_mtime_ns, self._hasher.hexdigest())

    def restart(self) -> None:
        """See `Sink`; raises OSError where the file cannot be removed."""
        self.close()
        self._download.partial.unlink(missing_ok=True)
        self._validator.unlink(missing_ok=True)
        self._forget()

    def _forget(self) -> None:
        # What was counted as received will come once more.
        self._on_bytes(self._download.owner, -self._done)
        self._hasher = hasher_of(self._download.expected.algorithm)
        self._done = 0
