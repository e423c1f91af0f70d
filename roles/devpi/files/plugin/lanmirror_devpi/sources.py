"""The bytes of a file, from where they come: checked, and going on where an upstream broke off (RFC 9110, 14.2).

Nothing here knows devpi.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Protocol

import httpx
from devpi_server.log import threadlog
from waitress.channel import ClientDisconnected

from lanmirror_devpi.outside import RefusedError

# Bytes at the end that a client gets only when all of them are right.
HELD = 64 << 10
# Pauses before each try to go on, as parts of the silence that ends one; more in a row are given up.
PAUSES = (0.0, 0.01, 0.03, 0.1)
# Bytes after which a new row of tries begins.
PROGRESS = 64 << 10
CONTENT_RANGE = re.compile(r"bytes (?P<first>\d+)-(?P<last>\d+)/(?P<size>\d+)")
# A server that has one of these packs nothing more: its `Content-Encoding` is only said of the file.
PACKED_NAMES = (".gz", ".tgz")
UNPACKED = {"", "identity"}
TRANSIENT = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}


class FetchError(Exception):
    """A file cannot be had: `status` is the answer to who asked for it."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = int(status)


class WrongError(FetchError):
    """The bytes that came are not those of the file."""

    def __init__(self, why: str) -> None:
        super().__init__(HTTPStatus.BAD_GATEWAY, why)


class BrokenOff(ClientDisconnected):
    """The rest of an answer does not come: waitress ends the connection, so that the client sees it."""


def status_for(status: int) -> int:
    """Return what is answered where an upstream answers with `status`; clients ask again after a 502 alone."""
    if status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
        return HTTPStatus.NOT_FOUND
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in TRANSIENT:
        return HTTPStatus.BAD_GATEWAY
    return HTTPStatus.FAILED_DEPENDENCY


def failure(error: Exception) -> FetchError:
    """Return what is answered where an upstream gave no answer."""
    why = f"{type(error).__name__}: {error}"
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return FetchError(HTTPStatus.GATEWAY_TIMEOUT, why)
    if isinstance(error, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError):
        return FetchError(HTTPStatus.BAD_GATEWAY, why)
    return FetchError(HTTPStatus.FAILED_DEPENDENCY, why)


def validator(headers: Mapping[str, str]) -> str:
    """Return what is to be sent as `If-Range` (RFC 9110, 13.1.5): a strong ETag or a date, "" for none."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def length(headers: Mapping[str, str]) -> int | None:
    """Return the length that an answer tells."""
    text = headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def is_packed(name: str, headers: Mapping[str, str], size: int | None) -> bool:
    """Return whether the bytes of an answer are not those of the file, although nothing packed was asked for."""
    if headers.get("Content-Encoding", "").strip().lower() in UNPACKED:
        return False
    return not name.endswith(PACKED_NAMES) and (size is None or length(headers) != size)


def resumed(
    status: int,
    headers: Mapping[str, str],
    *,
    have: int,
    size: int | None,
    checked: bool,
    before: str,
) -> int:
    """Return how many bytes to leave out of the answer to a request for the rest.

    Args:
        status: Of the answer.
        headers: Of the answer.
        have: Bytes that came before.
        size: Of the whole, None where it is not known.
        checked: Whether a hash will tell bytes of two files from those of one.
        before: The validator of the first answer, "" for none.

    Raises:
        FetchError: The rest cannot be had.
    """
    if status == HTTPStatus.PARTIAL_CONTENT:
        found = CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if not found or int(found["first"]) != have or (size is not None and int(found["size"]) != size):
            raise FetchError(HTTPStatus.BAD_GATEWAY, "the upstream gives another part than asked for")
        if not checked and not before:
            raise FetchError(HTTPStatus.BAD_GATEWAY, "it broke off, and nothing tells whether it is still the same")
        return 0
    if status == HTTPStatus.OK:
        if not checked and (not before or validator(headers) != before):
            raise FetchError(HTTPStatus.BAD_GATEWAY, "it broke off, and may have changed since")
        return have
    raise FetchError(status_for(status), f"it broke off, and then came a status of {status}")


class Bytes(Protocol):
    """The bytes of a file, in order.

    Attributes:
        size: None where it is not known. Known after `open`.
        modified: When it was, as the upstream writes it; "" for not known.
        whole: Whether the end of the bytes is surely that of the file.
    """

    size: int | None
    modified: str
    whole: bool

    def open(self) -> None:
        """Wait for the beginning; FetchError where there is none."""

    def close(self) -> None:
        """End it."""

    def __iter__(self) -> Iterator[bytes]: ...

    def refuse(self, why: str) -> bool:
        """Hear that the bytes were wrong; return whether `open` begins anew with those of another place."""
        return False


class Upstream(Bytes):
    """The bytes of a file from an upstream, which may break off."""

    def __init__(
        self,
        client: Any,
        url: str,
        *,
        name: str,
        size: int | None,
        checked: bool,
        silence: float,
        patience: float = 0.0,
        pauses: Sequence[float] = PAUSES,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Ask for a file.

        Args:
            client: Of the index, see outside.py.
            url: Of the file.
            name: Of the file.
            size: As the page tells it, None where it does not.
            checked: Whether there is a hash to check the bytes by.
            silence: Seconds without a byte after which it has broken off.
            patience: Seconds to wait for the beginning, where that is longer.
            pauses: Before each try to go on, see PAUSES.
            headers: More of the request.
        """
        self.client, self.url, self.name, self.checked = client, url, name, checked
        self.size, self.modified, self.whole = size, "", True
        self.silence, self.patience, self.headers = silence, max(silence, patience), dict(headers or {})
        self.pauses = pauses
        self.told_size, self.validator, self.have = size, "", 0
        self.answer: Any = None

    def _ask(self, **headers: str) -> Any:
        timeout = httpx.Timeout(self.patience, connect=self.client.timeout.connect, pool=None)
        request = self.client.build_request("GET", self.url, headers={**self.headers, **headers}, timeout=timeout)
        answer = self.client.send(request, stream=True)
        # httpcore looks it up again when the body is read.
        answer.request.extensions["timeout"]["read"] = self.silence
        return answer

    def open(self) -> None:
        """Wait for the beginning; FetchError where there is none."""
        try:
            self.answer = self._ask()
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise failure(error) from error
        status, headers = self.answer.status_code, self.answer.headers
        if status != HTTPStatus.OK:
            self.close()
            raise FetchError(status_for(status), f"the upstream answers {status}")
        if not self._is_packed():
            announced = length(headers)
            if not self.checked and None not in {self.told_size, announced} and self.told_size != announced:
                self.close()
                raise FetchError(
                    HTTPStatus.BAD_GATEWAY, f"it has {announced} bytes, where its page told {self.told_size}"
                )
            # A page may be wrong about that; the hash decides.
            self.size = self.told_size if announced is None else announced
        # Else the end is where the connection ends, for whatever reason.
        framed = length(headers) is not None or "chunked" in headers.get("Transfer-Encoding", "").lower()
        self.whole = framed or self.size is not None
        self.validator, self.modified = validator(headers), headers.get("Last-Modified", "")

    def _is_packed(self) -> bool:
        return is_packed(self.name, self.answer.headers, self.told_size)

    def close(self) -> None:
        """End it."""
        if self.answer is not None:
            self.answer.close()
            self.answer = None

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes, going on where it broke off; FetchError where they end too early."""
        tries, before, skip = 0, 0, 0
        try:
            while True:
                try:
                    if self.answer is None:
                        skip = self._go_on()
                    yield from self._rest(skip)
                except (httpx.HTTPError, httpx.StreamError, OSError) as error:
                    self.close()
                    if self.have == self.size:
                        return
                    tries = 1 if self.have - before >= PROGRESS else tries + 1
                    before = max(before, self.have)
                    if tries > len(self.pauses) or isinstance(error, RefusedError):
                        raise failure(error) from error
                    threadlog.warn("%s broke off after %s bytes (%s), going on", self.name, self.have, error)
                    time.sleep(self.pauses[tries - 1] * self.silence)
                else:
                    return
        finally:
            self.close()

    def _rest(self, skip: int) -> Iterator[bytes]:
        """Yield what an answer has, but for its first `skip` bytes."""
        for piece in self.answer.iter_bytes() if self._is_packed() else self.answer.iter_raw():
            new = piece[skip:]
            skip -= len(piece) - len(new)
            self.have += len(new)
            if self.size is not None and self.have > self.size:
                raise WrongError(f"it has more than {self.size} bytes")
            if new:
                yield new
        if skip or (self.size is not None and self.have < self.size):
            raise httpx.RemoteProtocolError(f"it ends after {self.have} of {self.size} bytes")

    def _go_on(self) -> int:
        """Ask for the rest; return how many bytes of the answer to leave out."""
        asking = {"Range": f"bytes={self.have}-"} if self.have else {}
        if asking and self.validator:
            asking["If-Range"] = self.validator
        self.answer = self._ask(**asking)
        status, headers = self.answer.status_code, self.answer.headers
        if status == HTTPStatus.PARTIAL_CONTENT and self._is_packed():
            # A part of what is packed is no part of the file.
            self.close()
            self.answer = self._ask()
            status, headers = self.answer.status_code, self.answer.headers
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in TRANSIENT:
            self.close()
            raise httpx.RemoteProtocolError(f"the upstream answers {status}")
        try:
            return resumed(status, headers, have=self.have, size=self.size, checked=self.checked, before=self.validator)
        except FetchError:
            self.close()
            raise


class Ready(Bytes):
    """Bytes that are there already."""

    def __init__(self, content: bytes, modified: str = "") -> None:
        self.content, self.size, self.modified, self.whole = content, len(content), modified, True

    def open(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def __iter__(self) -> Iterator[bytes]:
        """Yield them."""
        yield self.content


class FirstOf(Bytes):
    """The bytes of the first of several sources that has them."""

    def __init__(self, *sources: Bytes) -> None:
        self.sources = sources
        self.source = sources[0]
        self.size: int | None = None
        self.modified, self.whole = "", True

    def open(self) -> None:
        """Wait for the beginning; the FetchError of the first where none has any."""
        errors = []
        for source in self.sources:
            try:
                source.open()
            except FetchError as error:
                errors.append(error)
            else:
                self.source, self.size, self.modified, self.whole = source, source.size, source.modified, source.whole
                return
        raise errors[0]

    def close(self) -> None:
        """End it."""
        self.source.close()

    def __iter__(self) -> Iterator[bytes]:
        """Yield them."""
        return iter(self.source)


class Check:
    """The running size and hashes of bytes that come."""

    def __init__(self, wanted: Mapping[str, str], size: int | None) -> None:
        self.wanted, self.size, self.have = wanted, size, 0
        # devpi stores by this one, whatever the upstream tells.
        self._running = {name: hashlib.new(name) for name in {"sha256", *wanted}}

    def add(self, piece: bytes) -> None:
        """Take the next bytes."""
        self.have += len(piece)
        for running in self._running.values():
            running.update(piece)

    def digests(self) -> dict[str, str]:
        """Return the hashes of all bytes.

        Raises:
            WrongError: They are not those of the file.
        """
        found = {name: running.hexdigest() for name, running in self._running.items()}
        for name, value in self.wanted.items():
            if found[name] != value.lower():
                raise WrongError(f"its {name} is {found[name]}, not {value}")
        if self.size not in {None, self.have}:
            raise WrongError(f"it has {self.have} bytes, not {self.size}")
        return found


def checked(pieces: Iterator[bytes], check: Check) -> Iterator[bytes]:
    """Yield bytes, and have them checked."""
    for piece in pieces:
        check.add(piece)
        yield piece


def held_back(pieces: Iterator[bytes], check: Check, source: Bytes) -> Iterator[bytes]:
    """Yield the bytes of a source, the last ones only when all are right; BrokenOff otherwise."""
    held = bytearray()
    try:
        for piece in pieces:
            held += piece
            if len(held) > HELD:
                yield bytes(held[:-HELD])
                del held[:-HELD]
        check.digests()
    except FetchError as error:
        threadlog.error("%s", error)
        if isinstance(error, WrongError):
            source.refuse(str(error))
        raise BrokenOff from error
    yield bytes(held)
