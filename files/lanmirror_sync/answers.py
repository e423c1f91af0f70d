"""What comes of requests and downloads: answers, what landed, and the ways to fail."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from lanmirror_sync.sinks import Download, Landed, in_header
from lanmirror_sync.wire import Exchange


class FetchError(Exception):
    """A URL that could not be had; the message says why."""


class UnreachableError(FetchError):
    """The upstream does not answer, or answers only with errors of its own."""


class MissingError(FetchError):
    """The upstream answers, and does not have it."""


class DeniedError(UnreachableError):
    """The upstream, or a proxy before it, wants a user name and a password, and not these."""


class WrongBytesError(FetchError):
    """What came was whole, and is not what it should be.

    Attributes:
        seen: where every place that has it sends such bytes: what each said of them, with the length.
    """

    seen: tuple[tuple[Validators, int | None], ...] = ()


@dataclass(frozen=True)
class Validators:
    """What tells whether a URL still has the same bytes (RFC 9110, 13.1); they mean nothing for another URL."""

    url: str = ""
    etag: str = ""
    last_modified: str = ""

    def headers(self) -> list[str]:
        """Return what a conditional request sends."""
        conditions = (("If-None-Match", self.etag), ("If-Modified-Since", self.last_modified))
        return [f"{name}: {value}" for name, value in conditions if in_header(value)]

    @property
    def word(self) -> str:
        """The better one of the two; "" where there is neither."""
        return self.etag or self.last_modified

    @classmethod
    def of(cls, exchange: Exchange) -> Validators:
        """Return those of an answer."""
        headers = exchange.headers
        return cls(exchange.url, in_header(headers.get("etag", "")), in_header(headers.get("last-modified", "")))


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        data: the body; None where it is unchanged since the validators that were sent.
        validators: those of the answer.
        size: the length of the body in bytes, as announced; None where it was not.
        found_at: the URL that answered, after redirects.
        lacking: the places, as they were given, that said that they do not have it.
    """

    data: bytes | None
    validators: Validators
    size: int | None
    found_at: str = ""
    lacking: tuple[str, ...] = ()


class Feed:
    """Downloads from many iterators, one of each in turn. One thread may add while another takes."""

    def __init__(self) -> None:
        self._sources: deque[Iterator[Download]] = deque()

    def __bool__(self) -> bool:
        """Tell whether there may be more."""
        return bool(self._sources)

    def add(self, source: Iterator[Download]) -> None:
        """Take on a further iterator."""
        self._sources.append(source)

    def take(self) -> Download | None:
        """Return the next download; None where there is none now."""
        while self._sources:
            source = self._sources.popleft()
            download = next(source, None)
            if download:
                self._sources.append(source)
                return download
        return None


@dataclass(frozen=True, slots=True)
class Done:
    """How a download ended: what landed, or why it did not.

    Attributes:
        promoted: whether it came from the web server's cache, to its end.
    """

    download: Download
    landed: Landed | None
    error: FetchError | None
    promoted: bool = False
