"""What the web server's cache has of the packages that are to come: asked ahead of their turn, many at a time.

A question is a HEAD request, and many are on their way at once on one connection (RFC 9112, 9.3.2), so that it costs a
small part of a download, and none waits for the answer to the one before. Whatever goes wrong, the answer is no, and
the upstream is asked.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from urllib.parse import urlsplit

from lanmirror_sync.answers import Feed
from lanmirror_sync.sinks import Download
from lanmirror_sync.wire import BUFFER, Wire

# So many downloads are looked at before their turn.
AHEAD = 256
# A web server on this machine answers in less, or is not asked any more in this run: seconds.
PATIENCE_SECONDS = 2.0
STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})\b")
THERE = b"200"
HEAD_END = b"\r\n\r\n"

Tell = Callable[[Download, bool], None]

log = logging.getLogger(__name__)


class Cache:
    """The questions that are on their way. All of it belongs to the fetching thread.

    Args:
        url: of the cache, `config.Config.cache`.
        wire: whose `wait` it is called back from.

    Attributes:
        given_up: whether it is not to be asked any more.
    """

    def __init__(self, url: str, wire: Wire) -> None:
        parts = urlsplit(url)
        self._url = url
        self._address = (parts.hostname or "", parts.port or 80)
        self._host = parts.netloc
        self._path_at = len(f"{parts.scheme}://{parts.netloc}")
        self._wire = wire
        self._connection: socket.socket | None = None
        self._waiting: deque[tuple[Download, Tell]] = deque()
        self._unsent = b""
        self._read = b""
        self._answered = 0
        self._due = math.inf
        self.given_up = False

    def ask(self, downloads: Iterable[Download], tell: Tell) -> None:
        """Ask for packages; `tell` is called for each of them in their order, now or later."""
        asked = [(download, tell) for download in downloads]
        if self.given_up or not asked:
            self._deny(asked)
            return
        self._waiting.extend(asked)
        if self._connection is None and not self._connect():
            return
        self._unsent += self._questions(asked)
        self._due = min(self._due, time.monotonic() + PATIENCE_SECONDS)
        self._send()

    def seconds_left(self, now: float) -> float:
        """Return how long the next answer may take (monotonic time, seconds); infinity where none is awaited."""
        return max(self._due - now, 0.0)

    def look_at_the_clock(self) -> None:
        """Give the cache up where an answer is overdue."""
        if self._due <= time.monotonic():
            self.give_up()

    def give_up(self) -> None:
        """Ask it nothing more."""
        if not self.given_up:
            log.info("%s: does not answer as it should, and is not asked any more", self._url)
        self.given_up = True
        self.close()
        self._deny_all()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._wire.unwatch(self._connection)
            self._connection.close()
            self._connection = None
        self._unsent = self._read = b""
        self._due = math.inf

    def _questions(self, asked: Iterable[tuple[Download, Tell]]) -> bytes:
        lines = f" HTTP/1.1\r\nHost: {self._host}\r\n\r\n"
        return "".join(f"HEAD {download.kept[self._path_at :]}{lines}" for download, _ in asked).encode()

    def _connect(self) -> bool:
        try:
            self._connection = socket.create_connection(self._address, PATIENCE_SECONDS)
        except TimeoutError:
            self.give_up()
            return False
        except OSError as error:  # it may be started again at this moment
            log.debug("%s: cannot be asked: %s", self._url, error)
            self._deny_all()
            return False
        self._connection.setblocking(False)
        self._answered = 0
        self._wire.watch(self._connection, self._on_readable)
        return True

    def _send(self) -> None:
        """Send as much as the system takes; the rest follows an answer."""
        if self._connection and self._unsent:
            # That it is full is over with an answer, and that it has ended is read behind the last one.
            with contextlib.suppress(OSError):
                self._unsent = self._unsent[self._connection.send(self._unsent) :]

    def _on_readable(self) -> None:
        """Take in answers."""
        try:
            data = self._connection.recv(BUFFER) if self._connection else b""
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *heads, self._read = (self._read + data).split(HEAD_END)
        for head in heads:
            status = STATUS.match(head)
            if status is None or not self._waiting:
                self.give_up()  # it is no HTTP server
                return
            self._answered += 1
            download, tell = self._waiting.popleft()
            tell(download, status[1] == THERE)
        if not data:
            self._ended()
            return
        self._due = time.monotonic() + PATIENCE_SECONDS if self._waiting else math.inf
        self._send()

    def _ended(self) -> None:
        """See to what was not answered when the connection ended, as it does after so many requests."""
        self.close()
        left, self._waiting = [*self._waiting], deque()
        if not self._answered:
            self._deny(left)
        elif left:
            self._waiting.extend(left)
            if self._connect():
                self._unsent = self._questions(left)
                self._due = time.monotonic() + PATIENCE_SECONDS
                self._send()

    def _deny_all(self) -> None:
        left, self._waiting = self._waiting, deque()
        self._deny(left)

    @staticmethod
    def _deny(asked: Iterable[tuple[Download, Tell]]) -> None:
        for download, tell in asked:
            tell(download, False)


class Ahead(Feed):
    """A feed whose downloads were asked for at the cache: they come with `Download.kept` where that has them."""

    def __init__(self, cache: Cache) -> None:
        super().__init__()
        self._cache = cache
        self._known: deque[Download] = deque()
        self._asked = 0

    def __bool__(self) -> bool:
        """See `Feed`."""
        return bool(self._known or self._asked) or super().__bool__()

    def take(self) -> Download | None:
        """See `Feed`; what is being asked for comes later."""
        if len(self._known) + self._asked <= AHEAD // 2:
            self._look()
        return self._known.popleft() if self._known else None

    def _look(self) -> None:
        downloads = list(islice(iter(super().take, None), AHEAD))
        may = [download for download in downloads if download.kept]
        self._known.extend(download for download in downloads if not download.kept)
        self._asked += len(may)
        self._cache.ask(may, self._told)

    def _told(self, download: Download, there: bool) -> None:
        self._asked -= 1
        self._known.append(download if there else replace(download, kept=""))
