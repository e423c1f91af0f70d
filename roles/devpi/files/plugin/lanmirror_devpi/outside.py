"""The HTTP client for upstreams: it goes where the index says, and nowhere inside.

An upstream names URLs: of files, and of redirects. One that names `http://127.0.0.1/` would have devpi fetch from its
own machine or LAN, and give it to everybody. So what leads to an inside address is refused, unless it is the host and
port of one of the index's upstreams (`mirror_url`, `fallback_urls`, `files_from`), or declared in its setting
`file_hosts`. The address is checked that is connected to, so a name that resolves to something else a moment later does
not help. Behind an HTTP proxy, which resolves the names itself, only addresses as such and `localhost` can be told.

Credentials of an index go to the scheme, host and port of its `mirror_url` alone.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from itertools import cycle
from typing import Any

import httpcore
import httpx
from httpcore._backends.sync import SyncBackend

from lanmirror_devpi import setting

FILE_HOSTS, FALLBACK_URLS, FILES_FROM = "file_hosts", "fallback_urls", "files_from"
HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)(:(?P<port>[0-9]{1,5}))?")
DEFAULT_PORTS = {"http": 80, "https": 443}
# Seconds without a byte after which an answer has broken off.
SILENCE = 60.0
# Kept open in all, and in how many pools: httpcore looks at each connection of a pool for each of the others, at the
# beginning and at the end of each request.
CONNECTIONS, POOLS = 64, 4
KEPT_OPEN = 30.0

# Not all that is reserved: gateways hand out 198.18.0.0/15 for names that they proxy.
INSIDE = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.168.0.0/16",
        "224.0.0.0/3",
        "::/128",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    )
)
# The last 32 bits of an address in it are one of IPv4: NAT64 (RFC 6052), and IPv4-compatible ones.
HOLDS_IPV4 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96"))


class RefusedError(httpx.RequestError):
    """A URL leads to an inside address that the index does not declare."""


@dataclass(frozen=True)
class Declared:
    """Where an index may lead although it is inside; a port of None stands for all."""

    hosts: frozenset[tuple[str, int | None]]

    @classmethod
    def of(cls, urls: Sequence[str], file_hosts: Sequence[str]) -> Declared:
        """Return what the URLs of an index's own server and the setting `file_hosts` declare."""
        hosts: set[tuple[str, int | None]] = set()
        for _, host, port in map(origin, map(httpx.URL, urls)):
            # A server that answers for both schemes redirects from one to the other.
            both = set(DEFAULT_PORTS.values())
            hosts |= {(host, port) for port in (both if port in both else {port})}
        for text in file_hosts:
            if found := HOST.fullmatch(text):
                hosts.add((plain(found["host"]), int(found["port"]) if found["port"] else None))
        return cls(frozenset(hosts))

    def has(self, host: str, port: int) -> bool:
        """Return whether a host and port are declared."""
        return bool({(plain(host), port), (plain(host), None)} & self.hosts)


def plain(host: str) -> str:
    """Return a host as it is compared."""
    return host.strip("[]").rstrip(".").lower()


def masked(url: str) -> str:
    """Return a URL without credentials."""
    return re.sub(r"//[^/@]*@", "//", url)


def origin(url: Any) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL."""
    return url.scheme, plain(url.host), url.port or DEFAULT_PORTS.get(url.scheme, 0)


def is_inside(address: str) -> bool:
    """Return whether an IP address is of this machine or of a LAN, in whatever form it is written."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if inner is None and any(ip in network for network in HOLDS_IPV4) and int(ip) > 1:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner:
            return is_inside(str(inner))
    return any(ip in network for network in INSIDE if network.version == ip.version)


def refused(host: str) -> RefusedError:
    """Return the error for a host that resolves to nothing but inside addresses."""
    return RefusedError(
        f"{host} is an inside address, and neither the host of one of the index's upstreams nor one of its {FILE_HOSTS}"
    )


class Guard(SyncBackend):
    """Connects to declared hosts, and to addresses that are not inside."""

    def __init__(self, declared: Declared) -> None:
        self.declared = declared

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, *arguments: Any, **options: Any) -> Any:
        """Return a connection, as the method of httpcore's; in `timeout` seconds, however many addresses a host has."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        addresses = [str(address[0]) for *_, address in found]
        if not self.declared.has(host, port):
            addresses = [address for address in addresses if not is_inside(address)]
        if not addresses:
            raise refused(host)
        until = time.monotonic() + (timeout or 0)
        while True:
            address = addresses.pop(0)
            # One that is silent leaves half of the time to the others; one that refuses, all of it.
            left = max(0.1, until - time.monotonic()) if timeout else None
            patience = min(left, timeout / 2) if timeout and left and addresses else left
            try:
                return super().connect_tcp(address, port, patience, *arguments, **options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if not addresses or (timeout and time.monotonic() > until):
                    raise


class Guarded(httpx.BaseTransport):
    """A transport of httpx's with the guard."""

    def __init__(self, transport: Any, declared: Declared) -> None:
        self.inner, self.declared = transport, declared
        pool = transport._pool
        self.by_proxy = isinstance(pool, httpcore.HTTPProxy | httpcore.SOCKSProxy)
        if not self.by_proxy:
            pool._network_backend = Guard(declared)

    def handle_request(self, request: Any) -> Any:
        """Return the answer; ask once more where the upstream was just closing the connection (RFC 9110, 9.2.2)."""
        if self.by_proxy:
            self.check_name(request.url)
        try:
            return self.inner.handle_request(request)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            return self.inner.handle_request(request)

    def check_name(self, url: Any) -> None:
        """Refuse what can be told without asking the DNS."""
        host = plain(url.host)
        if self.declared.has(host, origin(url)[2]):
            return
        try:
            # Also in the old forms with hexadecimal or missing parts, which a proxy may still understand.
            address = socket.inet_ntoa(socket.inet_aton(host)) if ":" not in host else host
            inside = is_inside(address)
        except (OSError, ValueError):
            inside = host == "localhost" or host.endswith(".localhost")
        if inside:
            raise refused(host)

    def close(self) -> None:
        """Close all connections."""
        self.inner.close()


class Client(httpx.Client):
    """An HTTP client for one index; threads share it.

    It follows redirects, has no cookies, keeps connections open, and asks for nothing compressed unless told to.
    """

    def __init__(self, stage: Any, declared: Declared) -> None:
        http = stage.xom.http
        super().__init__(
            headers={**http.headers, "Accept-Encoding": "identity"},
            verify=http._ssl_context,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=CONNECTIONS // POOLS, keepalive_expiry=KEPT_OPEN
            ),
            timeout=httpx.Timeout(SILENCE, connect=stage.xom.config.request_timeout, pool=None),
            follow_redirects=True,
            max_redirects=5,
            event_hooks={"request": [self.tell_who_asks]},
        )
        self.stage = stage
        self.own = httpx.URL(own_url(stage))
        self._transport = Guarded(self._transport, declared)
        self._mounts = {pattern: inner and Guarded(inner, declared) for pattern, inner in self._mounts.items()}

    def is_own(self, url: Any) -> bool:
        """Return whether a URL is of the index's own server."""
        return origin(url) == origin(self.own)

    def tell_who_asks(self, request: Any) -> None:
        """Add the credentials of the index, or of this replica, where they belong."""
        if not self.is_own(request.url):
            return
        if self.stage.xom.is_replica():
            request.headers.update(self.stage.xom.replica_thread.http.get_extra_headers({}))
        elif credentials := self.stage.mirror_url_authorization_header:
            request.headers["Authorization"] = credentials

    def send(self, request: Any, **options: Any) -> Any:
        """Return the answer; where the credentials were refused, try the next ones that a plugin of devpi's has."""
        answer = super().send(request, **options)
        if (
            answer.status_code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
            and self.is_own(answer.request.url)
            and not self.stage.xom.is_replica()
            and self.stage._update_auth_candidates(answer.headers.get("WWW-Authenticate", ""))
        ):
            answer.close()
            return self.send(request, **options)
        return answer


def own_url(stage: Any) -> str:
    """Return the URL of what an index mirrors; on a replica, of the primary."""
    config = stage.xom.config
    return str(config.primary_url.url if stage.xom.is_replica() else stage.mirror_url.url)


clients: dict[str, tuple[Any, Iterator[Client]]] = {}
lock = threading.Lock()


def client(stage: Any) -> Client:
    """Return a client of an index: one of the same few until its upstreams or `file_hosts` change.

    On a replica, its own server is the primary.
    """
    own = filter(None, (own_url(stage), stage.ixconfig.get("mirror_url")))
    urls = *own, *stage.ixconfig.get(FALLBACK_URLS, ()), *stage.ixconfig.get(FILES_FROM, ())
    settings = urls, tuple(stage.ixconfig.get(FILE_HOSTS, ()))
    with lock:
        kept = clients.get(stage.name)
        if kept is None or kept[0] != settings:
            # Who still reads by the old one holds it.
            declared = Declared.of(*settings)
            kept = clients[stage.name] = (settings, cycle([Client(stage, declared) for _ in range(POOLS)]))
        return next(kept[1])


def install() -> None:
    """Make `file_hosts` a setting of mirrors."""
    setting.add([FILE_HOSTS], hosts_of)


def hosts_of(key: str, value: Any) -> list[str]:
    """Return the hosts of a list as they are stored; ValueError for one that is none."""
    hosts = setting.texts(value)
    for host in hosts:
        if not HOST.fullmatch(host):
            raise ValueError(f"{key} has {host!r}: it must be a host or host:port")
    return hosts
