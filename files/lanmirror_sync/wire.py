"""Many HTTP exchanges at once on kept-alive connections: libcurl's event interface in one thread.

libcurl speaks HTTP, TLS and proxies (`http_proxy`, `https_proxy` and `no_proxy` of the environment), keeps
connections, follows redirects and notices stalls; this module owns its event loop and the rate limit.
A request costs 0.1 ms of Python, a tenth of what `requests` takes. Source: the documentation of
`curl_multi_socket_action` and of pycurl.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pycurl

from lanmirror_sync import __version__
from lanmirror_sync.config import Config

USER_AGENT = f"lanmirror/{__version__} (Conda mirror sync; libcurl)"
BUFFER = 1 << 18
MOST_REDIRECTS = 10
# The one form in which a date is sent today (RFC 9110, 5.6.7).
IMF_FIXDATE = re.compile(r"[A-Z][a-z]{2}, (\d\d) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT", re.ASCII)
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# A transfer that stays below this for `timeout_seconds` is given up: bytes a second.
SLOWEST = 1024
# What goes to this machine is given up after so long, seconds.
NEAR_SECONDS = 5
# While the rate is limited, so little waits in the kernel that the limit holds on the wire: bytes a connection.
LIMITED_BUFFER = 1 << 16
LONGEST_SLEEP = 0.5
AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",
)


class NoUrlError(Exception):
    """A URL that cannot be sent; the message says why."""


@dataclass(eq=False)
class Exchange:
    """One request and its answer.

    Attributes:
        method: `GET` or `HEAD`.
        send: further request headers, `Name: value`.
        on_body: takes the bytes of the answer as they come; False ends the transfer.
        near: whether it goes to the web server of this machine: through no proxy, at any rate, and nowhere else.
        status: of the answer, after redirects; 0 while there is none.
        found_at: the URL that answered, after redirects.
        headers: of the answer, names in lower case.
    """

    url: str
    method: str = "GET"
    send: Sequence[str] = ()
    on_body: Callable[[bytes], bool] = lambda data: True
    near: bool = False
    status: int = 0
    found_at: str = ""
    reason: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def on_header(self, line: bytes) -> None:
        """Take one line of the answer's head; each redirect begins it anew (RFC 9112, section 4)."""
        text = line.decode("latin-1").strip()
        if text.startswith("HTTP/"):
            _, _, rest = text.partition(" ")
            status, _, self.reason = rest.partition(" ")
            self.status = int(status) if status.isdecimal() else 0
            self.headers.clear()
        elif ":" in text:
            name, _, value = text.partition(":")
            self.headers[name.strip().lower()] = value.strip()


@dataclass(frozen=True)
class Failure:
    """Why an exchange did not end well: libcurl's code and words; see `pycurl.E_*`."""

    code: int
    message: str


class Wire:
    """Exchanges on the wire. All methods but `wake` belong to one thread."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._rate = Rate(config.limit_rate)
        self._authorities = authorities(config.ca_bundle, os.environ)
        # libcurl reads this one in lower case only; here no web server sets it from a request's header.
        if os.environ.get("HTTP_PROXY"):
            os.environ.setdefault("http_proxy", os.environ["HTTP_PROXY"])
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        # Those to this machine are no reason to close one to an upstream.
        self._multi.setopt(pycurl.M_MAXCONNECTS, config.jobs * (2 if config.cache else 1) + 4)
        self._timer: float | None = None
        self._idle: dict[bool, list[pycurl.Curl]] = {False: [], True: []}
        self._busy: dict[pycurl.Curl, Exchange] = {}

    def __len__(self) -> int:
        """Return the number of exchanges that are under way."""
        return len(self._busy)

    def start(self, exchange: Exchange) -> None:
        """Send a request.

        Raises:
            NoUrlError: its URL is none that can be sent.
        """
        idle = self._idle[exchange.near]
        curl = idle.pop() if idle else self._handle(near=exchange.near)
        try:
            curl.setopt(pycurl.URL, exchange.url)
            # A proxy that compresses on the fly would change the lengths that are checked.
            curl.setopt(pycurl.HTTPHEADER, ["Accept-Encoding: identity", *exchange.send])
        except (UnicodeError, ValueError, pycurl.error) as error:
            idle.append(curl)
            raise NoUrlError(f"cannot be asked for: {error}") from error
        curl.setopt(pycurl.NOBODY, exchange.method == "HEAD")
        curl.setopt(pycurl.HEADERFUNCTION, exchange.on_header)
        rate = None if exchange.near else self._rate

        def on_body(data: bytes) -> int:
            if rate:
                rate.count(len(data))
            return len(data) if exchange.on_body(data) else -1

        curl.setopt(pycurl.WRITEFUNCTION, on_body)
        self._busy[curl] = exchange
        self._multi.add_handle(curl)

    def wait(self, timeout: float | None) -> list[tuple[Exchange, Failure | None]]:
        """Move bytes for at most `timeout` seconds; return what has ended, and how."""
        timeout = math.inf if timeout is None else timeout
        if self._timer is not None:
            timeout = min(timeout, self._timer - time.monotonic())
        events = self._selector.select(None if timeout == math.inf else max(timeout, 0))
        if self._timer is not None and self._timer <= time.monotonic():
            self._timer = None
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        for key, mask in events:
            if key.fileobj is self._woken:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(BUFFER)
            elif key.data:
                key.data()
            else:
                readable = pycurl.CSELECT_IN if mask & selectors.EVENT_READ else 0
                writable = pycurl.CSELECT_OUT if mask & selectors.EVENT_WRITE else 0
                self._multi.socket_action(key.fd, readable | writable)
        self._rate.sleep()
        ended: list[tuple[Exchange, Failure | None]] = []
        more = 1
        while more:
            more, good, bad = self._multi.info_read()
            ended += [(self._release(curl), None) for curl in good]
            ended += [(self._release(curl), Failure(code, message)) for curl, code, message in bad]
        return ended

    def watch(self, connection: socket.socket, on_readable: Callable[[], None]) -> None:
        """Have `wait` call something where a connection that is not libcurl's has bytes, or has ended."""
        self._selector.register(connection, selectors.EVENT_READ, on_readable)

    def unwatch(self, connection: socket.socket) -> None:
        """Watch a connection no more; before it is closed."""
        self._selector.unregister(connection)

    def wake(self) -> None:
        """Make a `wait` in another thread return."""
        with contextlib.suppress(OSError):  # full, or closed: there is nothing to wake
            self._waker.send(b"w")

    def close(self) -> None:
        """Break off what is under way and close every connection."""
        for curl in self._busy:
            self._multi.remove_handle(curl)
            curl.close()
        for idle in self._idle.values():
            for curl in idle:
                curl.close()
            idle.clear()
        self._busy.clear()
        self._multi.close()
        self._selector.close()
        self._waker.close()
        self._woken.close()

    def _release(self, curl: pycurl.Curl) -> Exchange:
        self._multi.remove_handle(curl)
        exchange = self._busy.pop(curl)
        self._idle[exchange.near].append(curl)
        with contextlib.suppress(pycurl.error):  # of a transfer that failed it may tell of that again
            exchange.found_at = curl.getinfo_raw(pycurl.EFFECTIVE_URL).decode("latin-1")
        return exchange

    def _handle(self, *, near: bool) -> pycurl.Curl:
        curl = pycurl.Curl()
        config = self._config
        seconds = min(config.timeout_seconds, NEAR_SECONDS) if near else config.timeout_seconds
        slowest = min(SLOWEST, max(1, config.limit_rate // (4 * config.jobs))) if config.limit_rate else SLOWEST
        for option, value in (
            (pycurl.USERAGENT, USER_AGENT),
            (pycurl.NOSIGNAL, 1),
            (pycurl.NOPROGRESS, 1),
            (pycurl.BUFFERSIZE, BUFFER),
            # One connection for all would be slower than many: a lost packet holds up every transfer on it.
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.REDIR_PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.FOLLOWLOCATION, not near),
            (pycurl.MAXREDIRS, MOST_REDIRECTS),
            (pycurl.CONNECTTIMEOUT_MS, int(seconds * 1000)),
            (pycurl.LOW_SPEED_LIMIT, slowest),
            (pycurl.LOW_SPEED_TIME, math.ceil(seconds)),
        ):
            curl.setopt(option, value)
        if near:
            curl.setopt(pycurl.PROXY, "")
            return curl
        if self._authorities:
            curl.setopt(pycurl.CAINFO, self._authorities)
        if config.limit_rate:
            curl.setopt(pycurl.SOCKOPTFUNCTION, _small_buffer)
        return curl

    def _on_socket(self, event: int, descriptor: int, multi: object, data: object) -> None:
        """Watch what libcurl wants watched."""
        if event == pycurl.POLL_REMOVE:
            with contextlib.suppress(KeyError):
                self._selector.unregister(descriptor)
            return
        mask = selectors.EVENT_READ if event & pycurl.POLL_IN else 0
        mask |= selectors.EVENT_WRITE if event & pycurl.POLL_OUT else 0
        try:
            self._selector.modify(descriptor, mask)
        except KeyError:
            self._selector.register(descriptor, mask)

    def _on_timer(self, milliseconds: int) -> None:
        self._timer = None if milliseconds < 0 else time.monotonic() + milliseconds / 1000


class Rate:
    """A limit in bytes a second, 0 for none; sleep pays for what is above it, so that TCP slows the senders down."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._debt = 0.0
        self._last = clock()

    def count(self, size: int) -> None:
        """Note so many bytes."""
        self._debt += size

    def wait_seconds(self) -> float:
        """Return how long to do nothing now."""
        if not self._limit:
            return 0.0
        now = self._clock()
        self._debt = max(0.0, self._debt - (now - self._last) * self._limit)
        self._last = now
        return min(self._debt / self._limit, LONGEST_SLEEP)

    def sleep(self) -> None:
        """Do nothing for as long as the limit asks for."""
        if (seconds := self.wait_seconds()) > 0:
            time.sleep(seconds)

    def pay(self, size: int) -> None:
        """Count so many bytes and sleep for them; from any thread, and all pay together."""
        if self._limit:
            with self._lock:
                self.count(size)
                self.sleep()


def authorities(ca_bundle: str, environ: Mapping[str, str]) -> str:
    """Return the file with the certificate authorities to trust.

    The first of: the setting, the variables that `requests`, curl and OpenSSL read, the system's own bundle.
    A libcurl from PyPI brings none. "" leaves it to libcurl.
    """
    named = [environ.get(name, "") for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")]
    return next((path for path in (ca_bundle, *named, *AUTHORITIES) if path and Path(path).is_file()), "")


def http_date(text: str) -> float | None:
    """Return the Unix time (seconds) that a date in a header names (RFC 9110, 5.6.7); None where it names none."""
    if not text:
        return None
    if match := IMF_FIXDATE.fullmatch(text):
        day, month, year, hour, minute, second = match.groups()
        with contextlib.suppress(ValueError):
            date = datetime(int(year), 1 + MONTHS.index(month), int(day), tzinfo=UTC)
            return date.replace(hour=int(hour), minute=int(minute), second=int(second)).timestamp()
    # Loaded for the obsolete forms alone: a run that finds nothing new would spend a twentieth of its time on it.
    from email.utils import parsedate_to_datetime  # noqa: PLC0415

    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, IndexError, ArithmeticError, OSError):  # absurd zones and years are told so
        return None


def _small_buffer(descriptor: int, purpose: int) -> int:
    with socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LIMITED_BUFFER)
    return pycurl.SOCKOPT_OK
