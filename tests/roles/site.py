"""A real Nginx with the files of the roles, before a server that stands in for devpi and says what devpi would."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from bench.common.servers import site_files, temporary
from tests.ports import free_ports
from tests.roles.render import render

# `make nginx` installs it.
NGINX = "/usr/sbin/nginx"
JSON = "application/vnd.pypi.simple.v1+json"
KEPT = "s-maxage=60, stale-while-revalidate=3600, stale-if-error=1296000"
# Of `devpi_indexes`: what is no mirror is an index that packages are uploaded to.
INDEXES: dict[str, dict[str, Any]] = {
    "root/pypi": {"type": "mirror"},
    "lab/dev": {"type": "stage", "bases": ["root/pypi"]},
}
# Six in a row, from devpi_port on.
PORTS = 6


@dataclass(frozen=True)
class Answer:
    """An answer as it came."""

    status: int
    reason: str
    headers: dict[str, str]
    body: bytes

    def __getitem__(self, name: str) -> str:
        """Return a header; "" where it is not there."""
        return self.headers.get(name.lower(), "")


@dataclass(frozen=True)
class Asked:
    """A request that devpi got."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def __getitem__(self, name: str) -> str:
        """Return a header; "" where it is not there."""
        return self.headers.get(name.lower(), "")


Said = tuple[int, dict[str, str], bytes]
Handler = BaseHTTPRequestHandler


@dataclass
class Devpi:
    """What stands in for devpi.

    Attributes:
        context: Of https.
        says: The answer to a path, or what makes it of the request: it may also write it by itself, and return nothing.
        asked: What it was asked, in order.
        connections: Those that are open.
        opened: How many there were.
    """

    port: int
    context: ssl.SSLContext | None = None
    says: dict[str, Said | Callable[[Handler, Asked], Said | None]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    server: ThreadingHTTPServer | None = None
    connections: set[socket.socket] = field(default_factory=set)
    opened: int = 0

    def page(self, path: str, body: bytes = b"a page", *, cache: str = KEPT, **headers: str) -> None:
        """Have a page."""
        self.says[path] = 200, {"Content-Type": JSON, "Cache-Control": cache, **headers}, body

    def said(self, path: str) -> Said | Callable[[Handler, Asked], Said | None]:
        """Return what there is to say to a path, however its characters are escaped."""
        known = {unquote(name): said for name, said in self.says.items()}
        return known.get(unquote(path.partition("?")[0]), (404, {"Content-Type": "text/plain"}, b"devpi: no\n"))

    def paths(self, path: str = "") -> list[str]:
        """Return the paths that were asked for so far, or how often one was."""
        return [asked.path for asked in self.asked if path in {"", asked.path}]

    def start(self) -> None:
        """Listen."""
        ours = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                ours.connections.add(self.connection)
                ours.opened += 1

            def finish(self) -> None:
                ours.connections.discard(self.connection)
                super().finish()

            def answer(self) -> None:
                body = b""
                if self.headers.get("Transfer-Encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.command, self.path, headers, body)
                ours.asked.append(asked)
                said = ours.said(self.path)
                done = said(self, asked) if callable(said) else said
                if done is None:
                    return
                status, more, text = done
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name, value)
                if status != http.client.NO_CONTENT:
                    self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(text)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815 - http.server's names

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 1024
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Say nothing: connections that end are what some tests are about."""

        self.server = Server(("127.0.0.1", self.port), Handler)
        if self.context:
            self.server.socket = self.context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Listen no more, and end all connections, as a process that ends does."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None
            for connection in list(self.connections):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


@dataclass
class Site:
    """A site that runs.

    Attributes:
        folder: Of its files.
        port: On the loopback address.
        devpi: Behind it.
    """

    folder: Path
    port: int
    devpi: Devpi

    def ask(self, path: str, method: str = "GET", body: bytes | str | None = None, **headers: str) -> Answer:
        """Ask the site as pip does; names of headers with `_` for `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        given = {"Host": "mirror.lan", "User-Agent": "pip/26", "Accept": JSON, "Accept-Encoding": "gzip"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body=body, headers={k: v for k, v in given.items() if v})
            got = connection.getresponse()
            return Answer(got.status, got.reason, {k.lower(): v for k, v in got.getheaders()}, got.read())
        finally:
            connection.close()

    def store(self, path: str, content: bytes) -> None:
        """Have a file among those that devpi has stored."""
        file = self.folder / "data/+files" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    @property
    def errors(self) -> str:
        """Nginx's log of errors."""
        return (self.folder / "error.log").read_text()


@contextmanager
def site(folder: Path, *, wrap: tuple[str, ...] = (), **variables: Any) -> Iterator[Site]:
    """Run Nginx with the files of the roles.

    Args:
        folder: For all of its files.
        wrap: The beginning of the command line.
        variables: Of the roles.
    """
    first = free_ports(PORTS + 1)
    port = first + PORTS
    given: dict[str, Any] = {
        "nginx_port": port,
        "devpi_port": first,
        "devpi_data_dir": str(folder / "data"),
        "__devpi_indexes": INDEXES,
        "__devpi_cache_dir": str(folder / "cache"),
        "__devpi_memory_dir": str(folder / "memory"),
        **variables,
    }
    for name in ("cache", "memory", "conf.d", "sites-enabled", "lanmirror/devpi", "data/+files", "portal", "watch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    files = site_files(folder, **given)
    if names := given.get("devpi_server_names"):
        vhost = render("nginx", "vhost.conf.j2", nginx_site_name="devpi", nginx_site_server_names=names, **given)
        files["lanmirror/devpi/vhost.conf"] = vhost.replace("/etc/nginx/lanmirror", f"{folder}/lanmirror")
    devpi = Devpi(first)
    devpi.start()
    try:
        with serving(folder, files, port, wrap=wrap):
            yield Site(folder, port, devpi)
    finally:
        devpi.stop()


@contextmanager
def serving(folder: Path, files: Mapping[str, str], port: int, *, wrap: tuple[str, ...] = ()) -> Iterator[None]:
    """Run Nginx with some files.

    Args:
        folder: For all of its files.
        files: By their paths below it.
        port: That it listens on.
        wrap: The beginning of the command line.
    """
    for name, text in files.items():
        ours = text.replace("user www-data;", "user root;" if os.geteuid() == 0 else "")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(ours.replace("/var/www/lanmirror", f"{folder}/portal"))
    (folder / "conf.d/temporary.conf").write_text(temporary(folder))
    (folder / "portal").mkdir(exist_ok=True)
    (folder / "portal/index.html").write_text("the portal\n")
    command = [*wrap, NGINX, "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    server = subprocess.Popen([*command, "-g", "daemon off;"], stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            assert server.poll() is None, server.communicate()[1]
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.02)
        yield
    finally:
        server.terminate()
        server.wait(20)
