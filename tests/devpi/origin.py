"""A file at an upstream that breaks off, falls silent or lies, as its script says."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import socket
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urljoin, urlsplit

from tests.devpi.conftest import Devpi, Upstream

# Seconds that nothing here takes, unless it hangs.
LONG = 60
Step = Callable[["Origin", BaseHTTPRequestHandler], None]


class Origin:
    """A file: each request is answered by the next step of its script, then by `plain`."""

    def __init__(self, upstream: Upstream, name: str, content: bytes, folder: str = "/files", /, **told: Any) -> None:
        """Have a file; `told` goes into its entry for a page, and a value of None takes a field out."""
        self.upstream, self.name, self.content, self.path = upstream, name, content, f"{folder}/{name}"
        entry = upstream.file(name, content, folder) | told
        self.entry = {key: value for key, value in entry.items() if value is not None}
        self.script: list[Step] = []
        self.ranges, self.etag = True, f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        self._lock = threading.Lock()
        upstream.answer[self.path] = self

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            step = self.script.pop(0) if self.script else plain
        step(self, handler)

    @property
    def asked(self) -> list[dict[str, str]]:
        """The headers of all requests that were for bytes."""
        return [headers for method, asked, headers in self.upstream.asked if (method, asked) == ("GET", self.path)]

    def send(
        self, handler: BaseHTTPRequestHandler, body: bytes, *, status: int = 200, length: int = -1, **headers: str
    ) -> None:
        """Send an answer, whose length may be another one than it tells."""
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body) if length < 0 else length))
        if self.etag and status == 200:
            handler.send_header("ETag", self.etag)
        for key, value in headers.items():
            handler.send_header(key.replace("_", "-"), value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)


def plain(origin: Origin, handler: BaseHTTPRequestHandler) -> None:
    """Send what is asked for."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", handler.headers.get("Range", ""))
    if not (found and origin.ranges and handler.headers.get("If-Range", origin.etag) == origin.etag):
        origin.send(handler, origin.content)
        return
    size = len(origin.content)
    first = int(found[1]) if found[1] else size - int(found[2])
    last = min(int(found[2]), size - 1) if found[1] and found[2] else size - 1
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {first}-{last}/{size}")
    handler.send_header("Content-Length", str(last - first + 1))
    if origin.etag:
        handler.send_header("ETag", origin.etag)
    handler.end_headers()
    handler.wfile.write(origin.content[first : last + 1])


def cut(at: int) -> Step:
    """Break off after so many bytes."""

    def step(origin: Origin, handler: BaseHTTPRequestHandler) -> None:
        origin.send(handler, origin.content[:at], length=len(origin.content))
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True

    return step


def paused(at: int, go_on: threading.Event) -> Step:
    """Send so many bytes, and the others when the test says so."""

    def step(origin: Origin, handler: BaseHTTPRequestHandler) -> None:
        origin.send(handler, origin.content[:at], length=len(origin.content))
        handler.wfile.flush()
        assert go_on.wait(LONG)
        handler.wfile.write(origin.content[at:])

    return step


def silence(end: threading.Event) -> Step:
    """Send nothing before the test ends."""

    def step(origin: Origin, handler: BaseHTTPRequestHandler) -> None:
        assert end.wait(LONG)
        handler.close_connection = True

    return step


def other(content: bytes, *, status: int = 200, **headers: str) -> Step:
    """Send other bytes."""

    def step(origin: Origin, handler: BaseHTTPRequestHandler) -> None:
        origin.send(handler, content, status=status, **headers)  # type: ignore[arg-type]  # all of them are texts

    return step


def path_of(devpi: Devpi, index: str, project: str, name: str) -> str:
    """Return the path of a file, as its page tells it."""
    where = f"/{index}/+simple/{project}/"
    found = next(str(file["url"]) for file in devpi.get(where).json()["files"] if file["filename"] == name)
    return urlsplit(urljoin(where, found)).path


def wheel(project: str, version: str, size: int = 0) -> tuple[bytes, bytes]:
    """Return a wheel of at least `size` bytes, which can be installed, and its metadata."""
    metadata = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n".encode()
    info = f"{project}-{version}.dist-info"
    files = {
        f"{project}.py": b"#" + hashlib.shake_256(project.encode()).hexdigest((size + 1) // 2).encode() + b"\n",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        record += f"{name},sha256={digest},{len(content)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for name, content in files.items():
            # Not by its name alone, with which the time of day goes into the archive.
            archive.writestr(zipfile.ZipInfo(name), content)
    return body.getvalue(), metadata


def noise(size: int) -> bytes:
    """Return bytes that do not repeat."""
    return hashlib.shake_256(b"noise").digest(size)
