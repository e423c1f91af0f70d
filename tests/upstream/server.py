"""An HTTP server over a folder, as upstreams are: ranges, validators, listings; and faults on demand."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from . import pages

RANGE = re.compile(r"bytes=(\d+)-(\d*)")
# Pages that the listing of a folder leaves out, as Nginx does: what begins with a dot.
HIDDEN = "."
ENDLESS = os.urandom(1 << 20)


@dataclass
class Fault:
    """What goes wrong with an answer.

    Attributes:
        status: answer with it, and with `body`; None to serve the file.
        body: sent in place of the file's bytes.
        headers: sent with the answer, over its own; None takes one away.
        cut: end the connection after so many bytes of the body, though more were announced.
        corrupt: change one byte in the middle of the body.
        length: announce this `Content-Length`, whatever is sent.
        stall: wait so many seconds in the middle of the answer.
        stall_at: so many bytes of the body are sent before that.
        drop: end the connection without an answer.
        endless: send bytes without end, announced without a length.
        ignore_ranges: answer a range request with the whole.
        times: how often; after that the file is served as it is.
        method: of the requests that it happens to, a pattern as in `fnmatch`.
    """

    status: int | None = None
    body: bytes | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    cut: int | None = None
    corrupt: bool = False
    length: int | None = None
    stall: float = 0.0
    stall_at: int = 0
    drop: bool = False
    endless: bool = False
    ignore_ranges: bool = False
    times: float = float("inf")
    method: str = "*"


@dataclass(frozen=True)
class Request:
    """A request as it came in; names of headers have no case."""

    method: str
    path: str
    headers: Message


class Upstream:
    """A server over `root`; `faults` maps patterns of paths (as in `fnmatch`) to what goes wrong there."""

    def __init__(self, root: Path, *, listing: Callable[..., str] = pages.autoindex) -> None:
        self.root = root
        self.listing = listing
        self.faults: dict[str, Fault] = {}
        self.requests: list[Request] = []
        self.on_request: Callable[[Request], None] = lambda request: None
        # Ends every stall.
        self.released = threading.Event()
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def wrap(self, context: ssl.SSLContext) -> None:
        """Speak TLS; before `start`."""
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering; further connections are refused."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def asked(self, pattern: str = "*", method: str = "*") -> list[Request]:
        """Return the requests so far for paths of a pattern."""
        return [
            request
            for request in self.requests
            if fnmatch.fnmatchcase(request.path, pattern) and fnmatch.fnmatchcase(request.method, method)
        ]

    def take_fault(self, path: str, method: str) -> Fault:
        """Return what is to go wrong with this request."""
        with self._lock:
            for pattern, fault in self.faults.items():
                if fnmatch.fnmatchcase(path, pattern) and fnmatch.fnmatchcase(method, fault.method) and fault.times > 0:
                    fault.times -= 1
                    return fault
        return Fault()

    @contextlib.contextmanager
    def counted(self, request: Request) -> Iterator[None]:
        """Note a request, and how many there are at once."""
        with self._lock:
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            self.on_request(request)
            yield
        finally:
            with self._lock:
                self._at_once -= 1


@contextlib.contextmanager
def serving(root: Path, *, listing: Callable[..., str] = pages.autoindex) -> Iterator[Upstream]:
    """Serve a folder for the length of a `with`."""
    upstream = Upstream(root, listing=listing)
    upstream.start()
    try:
        yield upstream
    finally:
        upstream.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that are killed and connections that are dropped are what the tests are about."""


def _handler(upstream: Upstream) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version = "upstream"

        def setup(self) -> None:
            super().setup()
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def log_message(self, *arguments: object) -> None:
            """Keep the output of the tests clean."""

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            with upstream.counted(Request(self.command, path, self.headers)):
                fault = upstream.take_fault(path, self.command)
                if fault.drop:
                    self.close_connection = True
                    return
                if fault.status is not None:
                    self._send(fault.status, fault.body or b"", {"Content-Type": "text/html"}, fault)
                    return
                self._serve(path, fault)

        def _serve(self, path: str, fault: Fault) -> None:
            file = upstream.root / path.lstrip("/")
            if ".." in file.parts:
                self._send(HTTPStatus.FORBIDDEN, b"", {}, fault)
            elif file.is_dir() and not path.endswith("/"):
                self._send(HTTPStatus.MOVED_PERMANENTLY, b"", {"Location": f"{path}/"}, fault)
            elif file.is_dir() and (file / "index.html").is_file():
                self._send_file(file / "index.html", fault)
            elif file.is_dir():
                entries = sorted(entry for entry in file.iterdir() if not entry.name.startswith(HIDDEN))
                self._send(
                    HTTPStatus.OK, upstream.listing(path, entries).encode(), {"Content-Type": "text/html"}, fault
                )
            elif file.is_file():
                self._send_file(file, fault)
            else:
                self._send(HTTPStatus.NOT_FOUND, b"<html>not found</html>", {"Content-Type": "text/html"}, fault)

        def _send_file(self, file: Path, fault: Fault) -> None:
            try:
                body = file.read_bytes() if fault.body is None else fault.body
                status = file.stat()
            except FileNotFoundError:  # a sync has just deleted it
                self._send(HTTPStatus.NOT_FOUND, b"", {}, fault)
                return
            etag = '"' + hashlib.md5(f"{status.st_mtime_ns} {status.st_size}".encode()).hexdigest() + '"'
            headers = {
                "ETag": etag,
                "Last-Modified": formatdate(status.st_mtime, usegmt=True),
                "Accept-Ranges": "bytes",
            }
            asked = self.headers
            known = asked.get("If-None-Match") == etag or (
                "If-None-Match" not in asked and asked.get("If-Modified-Since") == headers["Last-Modified"]
            )
            if known and fault == Fault(times=fault.times, method=fault.method):
                self._send(HTTPStatus.NOT_MODIFIED, b"", headers, fault)
                return
            part = RANGE.fullmatch(asked.get("Range", ""))
            unchanged = asked.get("If-Range", etag) in (etag, headers["Last-Modified"])
            if part and unchanged and not fault.ignore_ranges:
                first, last = int(part[1]), min(int(part[2] or len(body)), len(body) - 1)
                if first >= len(body):
                    self._send(416, b"", {"Content-Range": f"bytes */{len(body)}"}, fault)
                    return
                headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
                self._send(HTTPStatus.PARTIAL_CONTENT, body[first : last + 1], headers, fault)
                return
            self._send(HTTPStatus.OK, body, headers, fault)

        def _send(self, status: int, body: bytes, headers: Mapping[str, str], fault: Fault) -> None:
            if fault.corrupt and body:
                middle = len(body) // 2
                body = body[:middle] + bytes([body[middle] ^ 0xFF]) + body[middle + 1 :]
            announced: dict[str, str | None] = {
                **headers,
                "Content-Length": str(len(body) if fault.length is None else fault.length),
                **fault.headers,
            }
            if fault.endless:
                announced["Content-Length"] = None
            self.send_response(status)
            for name, value in announced.items():
                if value is not None:
                    self.send_header(name, value)
            if announced["Content-Length"] is None:
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()
            self.wfile.flush()
            if self.command == "HEAD" or status == HTTPStatus.NOT_MODIFIED:
                return
            while fault.endless:
                self.wfile.write(ENDLESS)
            body = body if fault.cut is None else body[: fault.cut]
            if fault.stall:
                self.wfile.write(body[: fault.stall_at])
                self.wfile.flush()
                upstream.released.wait(fault.stall)
                body = body[fault.stall_at :]
            self.wfile.write(body)
            if fault.cut is not None or (fault.length is not None and fault.length != len(body)):
                self.close_connection = True

    return Handler
