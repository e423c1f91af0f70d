"""The variables of role nginx, checked before anything is changed.

An INI inventory and `-e name=value` give every value as text, so numbers and switches are taken as text as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

# The least and the most that each number may be.
NUMBERS = {
    "nginx_port": (1, 65535),
    "nginx_tls_port": (1, 65535),
    "nginx_worker_connections": (16, 65535),
    "nginx_worker_rlimit_nofile": (64, 1048576),
    "nginx_keepalive_timeout": (0, 3600),
}
SWITCHES = ("nginx_access_log", "nginx_default_server")
LISTS = ("nginx_server_names", "nginx_tls_names")
TEXTS = ("nginx_tls_certificate", "nginx_tls_key", "nginx_portal_title")
MODES = ("none", "own", "site_ca")
# The texts that Ansible's filter `bool` takes for true and false.
WORDS = {"true", "t", "yes", "y", "on", "1", "false", "f", "no", "n", "off", "0"}
# A path that needs no quotes in Nginx's configuration.
PATH = re.compile(r"/[A-Za-z0-9._/@+-]+")
EXAMPLES = {"nginx_tls_certificate": "/etc/ssl/private/mirror.pem", "nginx_tls_key": "/etc/ssl/private/mirror.key"}

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")


def bad_names(names: Sequence[Any]) -> list[str]:
    """Return those that are neither a host name nor an address."""

    def is_name(text: str) -> bool:
        try:
            ip_address(text.removeprefix("[").removesuffix("]"))
        except ValueError:
            return bool(_NAME.fullmatch(text.lower()))
        return True

    return [name for name in map(str, names) if not is_name(name)]


def bad_networks(networks: Sequence[Any]) -> list[str]:
    """Return those that are neither an address nor a network, written as Nginx takes it."""

    def is_network(text: str) -> bool:
        try:
            ip_network(text)
        except ValueError:
            return False
        return not re.search(r"/.*\.", text)

    return [network for network in map(str, networks) if not is_network(network)]


def _number(value: Any) -> int | None:
    """Return a whole number, also one that is given as text; None for anything else."""
    if isinstance(value, bool):
        return None
    return int(value) if re.fullmatch(r"\s*-?[0-9]+\s*", str(value), re.ASCII) else None


def _shown(value: Any) -> str:
    return "null" if value is None else f'"{value}"'


def _of_types(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each variable that is wrong by itself, and why."""
    for name, (low, high) in NUMBERS.items():
        number = _number(given[name])
        if number is None or not low <= number <= high:
            yield name, f"{name} is {_shown(given[name])}: it must be a whole number from {low} to {high}"
    for name in SWITCHES:
        if str(given[name]).strip().lower() not in WORDS:
            yield name, f"{name} is {_shown(given[name])}: it must be true or false"
    if given["nginx_tls"] not in MODES:
        yield "nginx_tls", f"nginx_tls is {_shown(given['nginx_tls'])}; allowed: {', '.join(MODES)}"
    for name in LISTS:
        value = given[name]
        if isinstance(value, str) or not isinstance(value, Sequence):
            yield (
                name,
                f"{name} is {_shown(value)}: it must be a list, for example [mirror.lab.lan, 192.0.2.10]; an INI "
                "inventory cannot give one",
            )
        elif bad := bad_names(value):
            yield (
                name,
                f"""{name} has "{'", "'.join(bad)}", which is neither a host name nor an address; allowed are """
                'names such as mirror.lab.lan and 192.0.2.10, without scheme, port or "*"',
            )
    proxies = given["nginx_trusted_proxies"]
    if isinstance(proxies, str) or not isinstance(proxies, Sequence):
        yield (
            "nginx_trusted_proxies",
            f"nginx_trusted_proxies is {_shown(proxies)}: it must be a list, for example [192.0.2.7, 10.0.0.0/24]; an "
            "INI inventory cannot give one",
        )
    elif bad := bad_networks(proxies):
        yield (
            "nginx_trusted_proxies",
            f"""nginx_trusted_proxies has "{'", "'.join(bad)}", which is neither an address nor a network; allowed """
            "are 192.0.2.7, 10.0.0.0/24 and 2001:db8::/32, without host bits",
        )
    for name in TEXTS:
        if not isinstance(given[name], str):
            yield name, f"{name} is {_shown(given[name])}: it must be a text"


def nginx_problems(given: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the variables of the role, each with its name, its value and what is allowed.

    Args:
        given: All public variables of the role, as they were set.
    """
    found = dict(_of_types(given))
    tls = given["nginx_tls"]
    if tls != "none" and not found.keys() & {"nginx_port", "nginx_tls_port", "nginx_tls"}:
        port, tls_port = _number(given["nginx_port"]), _number(given["nginx_tls_port"])
        if port == tls_port:
            found["nginx_tls_port"] = (
                f"nginx_tls_port and nginx_port are both {port}; https and http need a port each, such as 443 and 80"
            )
    if tls == "own":
        for name, example in EXAMPLES.items():
            if name not in found and not PATH.fullmatch(given[name]):
                found[name] = (
                    f"{name} is {_shown(given[name])}; with nginx_tls=own it must be the absolute path of a PEM file "
                    f"on the server, of letters, digits and ._/@+- only, for example {example}"
                )
        if "nginx_tls_names" not in found and not given["nginx_tls_names"]:
            found["nginx_tls_names"] = (
                "nginx_tls_names is []; with nginx_tls=own list the names and addresses that clients use, so that the "
                "certificate can be checked for them, for example [mirror.lab.lan]"
            )
    default = str(given["nginx_default_server"]).strip().lower()
    if default in {"false", "f", "no", "n", "off", "0"} and not given["nginx_server_names"]:
        found["nginx_server_names"] = (
            "nginx_server_names is []; with nginx_default_server=false the site is reached by these names and "
            "addresses alone, for example [mirror.lab.lan, 192.0.2.10]"
        )
    return list(found.values())


def nginx_gains(settings: Mapping[str, str], tuned: Mapping[str, Any]) -> list[str]:
    """Return the settings of the tuned main file that another main file has not, with those that it has."""
    return [
        f"{name} {value} (now {settings.get(name, 'not set')})"
        for name, value in tuned.items()
        if settings.get(name) != str(value)
    ]


class FilterModule:
    """Filters of role nginx."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Give the filters by name."""
        return {"nginx_gains": nginx_gains, "nginx_problems": nginx_problems}
