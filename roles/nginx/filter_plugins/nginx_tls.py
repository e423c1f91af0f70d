"""The names and addresses that the site's own certificate authority signs for.

Sources: RFC 5280, 4.2.1.6 (subject alternative names) and 4.2.1.10 (name constraints); `man x509v3_config`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

# Addresses that are nobody's on the Internet. A server may get another of them at any time (DHCP), so the root may
# sign for all: its holder could do no harm outside of the local network. RFC 1918, RFC 4193, and the loopback.
PRIVATE: tuple[IPv4Network | IPv6Network, ...] = tuple(
    ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "fc00::/7", "::1/128")
)
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def _is_private(address: IPv4Address | IPv6Address) -> bool:
    return any(address in network for network in PRIVATE)


def tls_names(names: Sequence[str], facts: Mapping[str, Any]) -> list[str]:
    """Return what the server is called, host names before addresses, each once and always in the same order.

    Args:
        names: see nginx_tls_names.
        facts: Ansible's facts of the server. Its host name, its private addresses and that of its default route are
            taken from there. Its other public addresses are not: an IPv6 prefix may change every night.
    """
    route = str(facts.get("default_ipv4", {}).get("address", ""))
    found = [*facts.get("all_ipv4_addresses", []), *facts.get("all_ipv6_addresses", [])]
    own = [a for a in map(_address, ["127.0.0.1", "::1", *found]) if a and _is_private(a)]
    addresses = {a for a in map(_address, [*names, route]) if a}.union(own)
    hosts = {name.lower() for name in names if not _address(name)} | {"localhost"}
    hosts |= {name for name in [str(facts.get("hostname", "")).lower()] if _NAME.fullmatch(name)}
    return [*sorted(hosts), *map(str, sorted(addresses, key=lambda a: (a.version, int(a))))]


def tls_alt_names(names: Sequence[str]) -> list[str]:
    """Return the lines of OpenSSL's section of subject alternative names."""
    return [f"{'IP' if _address(name) else 'DNS'}.{number} = {name}" for number, name in enumerate(names, 1)]


def tls_constraints(names: Sequence[str]) -> list[str]:
    """Return the lines of OpenSSL's section of name constraints: these names, private addresses, and no others."""
    addresses = [a for a in map(_address, names) if a]
    networks = [*PRIVATE, *(ip_network(a) for a in addresses if not _is_private(a))]
    hosts = [name for name in names if not _address(name)]
    return [
        *(f"permitted;DNS.{number} = {name}" for number, name in enumerate(hosts, 1)),
        *(f"permitted;IP.{number} = {n.network_address}/{n.netmask}" for number, n in enumerate(networks, 1)),
    ]


def _covers(network: str, address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is in a network such as OpenSSL prints it: 10.0.0.0/255.0.0.0, FC00:0:0:0:0:0:0:0/FE00:…."""
    base, mask = (ip_address(part) for part in network.split("/"))
    return base.version == address.version and int(address) & int(mask) == int(base) & int(mask)


def tls_unsignable(names: Sequence[str], constraints: str) -> list[str]:
    """Return the names that a root may not sign for.

    Args:
        names: host names and addresses.
        constraints: the name constraints of the root, as `openssl x509 -ext nameConstraints` prints them.
    """
    hosts = [host.lower() for host in re.findall(r"\bDNS:(\S+)", constraints)]
    networks = re.findall(r"\bIP:(\S+/\S+)", constraints)
    if not hosts and not networks:
        return []

    def may(name: str) -> bool:
        address = _address(name)
        if address:
            return any(_covers(network, address) for network in networks)
        return any(name == host or name.endswith(f".{host}") for host in hosts)

    return [name for name in names if not may(name)]


class FilterModule:
    """Filters of role nginx."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Give the filters by name."""
        return {
            "nginx_tls_names": tls_names,
            "nginx_tls_alt_names": tls_alt_names,
            "nginx_tls_constraints": tls_constraints,
            "nginx_tls_unsignable": tls_unsignable,
        }
