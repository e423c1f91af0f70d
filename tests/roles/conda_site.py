"""A real Nginx with the files of role conda_mirror, before servers that stand in for upstreams, and a name server."""

from __future__ import annotations

import http.client
import re
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.common.servers import site_files
from tests.ports import free_ports
from tests.roles.render import render
from tests.roles.site import Asked, Devpi, Handler, Said, Site, serving

MAIN, FORGE = "/pkgs/main/linux-64/", "/cloud/conda-forge/noarch/"
SITE = {
    f"conda_mirror/{name}": ("conda_mirror", template)
    for name, template in {
        "http.conf": "http.conf.j2",
        "locations.conf": "locations.conf.j2",
        "vhost-locations.conf": "vhost-locations.conf.j2",
    }.items()
}
NAME = "conda.lab.lan"
# How many bytes of a package are asked for together.
SLICE = 500_000
Rule = Callable[[Handler, Asked], Said | None]


def ranged(body: bytes, **headers: str) -> Rule:
    """Return what answers with a file, or with the part that is asked for."""

    def say(handler: Handler, asked: Asked) -> Said:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", asked["Range"])
        if not wanted:
            return 200, {"Accept-Ranges": "bytes", **headers}, body
        first, last = int(wanted[1]), min(int(wanted[2]), len(body) - 1)
        if first > last:
            return 416, {"Content-Range": f"bytes */{len(body)}"}, b""
        part = {"Accept-Ranges": "bytes", "Content-Range": f"bytes {first}-{last}/{len(body)}"}
        return 206, {**part, **headers}, body[first : last + 1]

    return say


def bases(*urls: str) -> dict[str, Any]:
    """Return the variables of these upstreams."""
    return {"conda_mirror_upstream": {"repo": list(urls), "cloud": [f"{url}/cloud" for url in urls]}}


def drops(handler: Handler, asked: Asked) -> None:
    """Close the connection without a word."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


@dataclass
class Names:
    """A name server that knows a few names, all of them this machine's.

    Attributes:
        known: The names.
        records: How many addresses it gives for each, all the same.
        address: The one that it gives now; None for a failure of the name server, "" for no answer.
        asked: What it was asked, in order.
    """

    known: set[str]
    records: int = 1
    address: str | None = "127.0.0.1"
    asked: list[str] = field(default_factory=list)

    def start(self) -> int:
        """Listen; return the port."""
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.1", 0))
        threading.Thread(target=self.serve, args=(server,), daemon=True).start()
        return int(server.getsockname()[1])

    def serve(self, server: socket.socket) -> None:
        """Answer each question (RFC 1035, 4.1)."""
        while True:
            question, client = server.recvfrom(512)
            labels, at = [], 12
            while size := question[at]:
                labels.append(question[at + 1 : at + 1 + size].decode())
                at += size + 1
            name, section = ".".join(labels), question[12 : at + 5]
            self.asked.append(name)
            if self.address == "":
                continue
            found = self.address and name in self.known and section[-4:-2] == b"\0\1"
            flags = 0x8182 if not self.address else 0x8180 if name in self.known else 0x8183
            head = question[:2] + struct.pack(">5H", flags, 1, self.records if found else 0, 0, 0)
            answer = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(self.address or "0.0.0.0")
            server.sendto(head + section + (self.records * answer if found else b""), client)


@dataclass
class CondaSite(Site):
    """A site that runs.

    Attributes:
        upstreams: Of the repos and of the channels, in the order in which they are tried.
        names: The name server.
    """

    upstreams: list[Devpi] = field(default_factory=list)
    names: Names = field(default_factory=lambda: Names(set()))

    @property
    def asked(self) -> list[str]:
        """Which paths the upstreams were asked for so far, in all."""
        return [path for upstream in self.upstreams for path in upstream.paths()]

    def hold(self, path: str, body: bytes) -> None:
        """Have a file in the mirror."""
        file = self.folder / "mirror" / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(body)

    def kept(self) -> list[str]:
        """Return the keys of the cache."""
        heads = []
        for file in (self.folder / "cache/lanmirror-conda/kept").rglob("*"):
            # The others are being written.
            if re.fullmatch(r"[0-9a-f]{32}", file.name):
                heads.append(file.read_bytes().partition(b"\nKEY: ")[2].partition(b"\n")[0].decode())
        return sorted(heads)

    def raw(self, request: bytes, *, ends: bool = True) -> bytes:
        """Return what the site answers to some bytes; after which the client `ends`, as one that goes away does."""
        with socket.create_connection(("127.0.0.1", self.port), 30) as connection:
            connection.sendall(request)
            if ends:
                connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    @contextmanager
    def streaming(self, path: str, **headers: str) -> Iterator[http.client.HTTPResponse]:
        """Ask, and give the answer before its end."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers=headers)
        try:
            yield connection.getresponse()
        finally:
            connection.close()


@contextmanager
def conda_site(
    folder: Path,
    *,
    upstreams: int = 1,
    variables_of: Callable[[list[int]], dict[str, Any]] | None = None,
    context: ssl.SSLContext | None = None,
    names: set[str] | None = None,
    records: int = 1,
    wrap: tuple[str, ...] = (),
    **variables: Any,
) -> Iterator[CondaSite]:
    """Run Nginx with the files of the roles.

    Args:
        folder: For all of its files.
        upstreams: How many there are.
        variables_of: Variables of the roles that are made of their ports.
        context: Of https, for the upstreams.
        names: That the name server knows.
        records: How many addresses it gives for each.
        wrap: The beginning of the command line.
        variables: Of the roles.
    """
    # The path of a socket has 107 characters at most.
    socket_folder = Path(tempfile.mkdtemp(prefix="outside-"))
    socket_folder.chmod(0o755)
    steps = free_ports(upstreams + 2)
    port, first = steps + 1, steps + 2
    servers = [Devpi(first + number, context) for number in range(upstreams)]
    knows = Names(names or set(), records)
    ports = [server.port for server in servers]
    given: dict[str, Any] = {
        "nginx_port": port,
        "conda_mirror_on_demand": True,
        "conda_mirror_on_demand_port": steps,
        **bases(*(f"http://127.0.0.1:{number}" for number in ports)),
        "conda_mirror_cloud": ["conda-forge/noarch", "nvidia/label/cuda-12.4.0/linux-64"],
        "conda_mirror_working_dir": str(folder / "mirror"),
        "conda_mirror_cache_dir": str(folder / "cache"),
        "conda_mirror_min_free_gib": 0,
        "conda_mirror_timeout_seconds": 30,
        "__conda_mirror_spare_dir": str(folder / "spare"),
        "__conda_mirror_zeros": str(SLICE)[1:],
        "__conda_mirror_resolvers": [f"127.0.0.1:{knows.start()}"],
        "__conda_mirror_outside_socket": str(socket_folder / "upstreams.sock"),
        **(variables_of(ports) if variables_of else {}),
        **variables,
    }
    for name in ("mirror", "cache/lanmirror-conda", "spare", "sites-enabled"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    files = site_files(folder, SITE, **given)
    vhost = render(
        "nginx",
        "vhost.conf.j2",
        nginx_site_name="conda_mirror",
        nginx_site_server_names=[NAME],
        nginx_site_vhost_locations="vhost-locations.conf.j2",
        **given,
    )
    files["lanmirror/conda_mirror/vhost.conf"] = vhost.replace("/etc/nginx/lanmirror", f"{folder}/lanmirror")
    for server in servers:
        server.start()
    try:
        with outside(socket_folder, given, wrap), serving(folder, files, port, wrap=wrap):
            yield CondaSite(folder, port, servers[0], servers, knows)
    finally:
        for server in servers:
            server.stop()
        shutil.rmtree(socket_folder)


@contextmanager
def outside(folder: Path, given: dict[str, Any], wrap: tuple[str, ...] = ()) -> Iterator[None]:
    """Run what keeps the connections to the upstreams."""
    config, socket_ = folder / "outside.cfg", folder / "upstreams.sock"
    config.write_text(render("conda_mirror", "outside.cfg.j2", **given))
    # That of a former one.
    socket_.unlink(missing_ok=True)
    with subprocess.Popen([*wrap, "/usr/sbin/haproxy", "-db", "-f", config]) as process:
        try:
            while not socket_.exists():
                assert process.poll() is None, "HAProxy does not take its configuration"
                time.sleep(0.01)
            yield
        finally:
            process.kill()


def authority(folder: Path, *names: str) -> tuple[Path, ssl.SSLContext]:
    """Return a certificate that is its own authority, and the context of a server that has it."""
    certificate, key = folder / "upstream.pem", folder / "upstream.key"
    alternatives = ",".join(f"DNS:{name}" for name in names)
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=x"]
    files = ["-keyout", str(key), "-out", str(certificate), "-addext", f"subjectAltName={alternatives}"]
    subprocess.run(["openssl", "req", *kind, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context
