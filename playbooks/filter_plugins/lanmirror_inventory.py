"""The inventory as a whole: what servers and workstations need to know of each other, and what contradicts.

Run on the controller, on `hostvars` and `groups` alone, so nothing here asks a machine.

Sources: RFC 5737 and RFC 3849 (addresses for documentation), RFC 3986, 3.2.2 (hosts in URLs).
"""

from __future__ import annotations

import base64
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from ansible import context

ROLES = Path(__file__).resolve().parents[2] / "roles"

SERVERS = ("pypi_cache", "conda_mirror")
GROUPS = (*SERVERS, "pypi_replicas", "clients")
# Names that are not spelt like a group of ours, but meant as one.
SLIPS = {
    "conda": "conda_mirror",
    "devpi": "pypi_cache",
    "mirror": "conda_mirror",
    "pypi": "pypi_cache",
    "replicas": "pypi_replicas",
    "workstations": "clients",
}

# Variables that several roles share: inventory.example/group_vars/all.yml, and those of playbooks.
SHARED = {
    "lanmirror_ca_bundle",
    "lanmirror_http_proxy",
    "lanmirror_other_variables",
    "lanmirror_pip_index_url",
    "lanmirror_remove",
    "lanmirror_server_url",
    "lanmirror_status_json",
    "lanmirror_tls",
}
# Facts that the playbooks set themselves; they are there where a playbook is run by another one.
OURS = {
    "lanmirror_checked",
    "lanmirror_nginx",
    "lanmirror_no_root",
    "lanmirror_off",
    "lanmirror_problems",
    "lanmirror_reached",
}
# Names that were ours once: their roles refuse them, and name the new ones.
RENAMED = {"client_server_url", "client_server_address"}
# How many hosts of a list a message names.
SHOWN = 3

DOCUMENTATION = [ip_network(net) for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")]
_URL = re.compile(r"https?://([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?")
# A channel, maybe with a label; the check of role client refuses all else.
_CHANNEL = re.compile(r"[A-Za-z0-9][\w.-]*(/label/[\w.-]+)?")
HIGHEST_PORT = 65535

Hostvars = Mapping[str, Mapping[str, Any]]
Groups = Mapping[str, Sequence[str]]


# Read when they are asked for: Ansible loads this file anew for nearly every task.
@cache
def _defaults() -> dict[str, Any]:
    """Return the public variables of all roles, with their defaults."""
    found: dict[str, Any] = {}
    for file in ROLES.glob("*/defaults/main.yml"):
        found.update(yaml.safe_load(file.read_text()) or {})
    return found


def _options() -> set[str]:
    """Return the options of every entry point of all roles: some are only for one."""
    specs = [yaml.safe_load(file.read_text())["argument_specs"] for file in ROLES.glob("*/meta/argument_specs.yml")]
    return {option for spec in specs for entry_point in spec.values() for option in entry_point.get("options") or {}}


PREFIXES = (*sorted(f"{path.parent.parent.name}_" for path in ROLES.glob("*/defaults/main.yml")), "lanmirror_")


def _value(host: Mapping[str, Any], name: str) -> Any:
    """Return a variable of a host, or its default."""
    value = host.get(name)
    return _defaults().get(name, "") if value is None else value


def _text(host: Mapping[str, Any], name: str) -> str:
    return str(_value(host, name)).strip()


def _port(host: Mapping[str, Any], name: str) -> int | None:
    """Return a port; None where it is no number, which the check of its role refuses."""
    text = _text(host, name)
    return int(text) if re.fullmatch("[0-9]{1,5}", text) else None


def _list(host: Mapping[str, Any], name: str) -> list[str]:
    """Return a list of texts, also where an INI inventory gives it as text."""
    value = _value(host, name)
    if isinstance(value, str):
        value = yaml.safe_load(value) if value.startswith("[") else []
    return [str(item) for item in value] if isinstance(value, Iterable) and not isinstance(value, Mapping) else []


def _entries(host: Mapping[str, Any], name: str) -> list[str]:
    """Return the names of a list of repos or channels, of which an entry is a name or a mapping that has one."""
    value = _value(host, name)
    if isinstance(value, str) and value.startswith("["):
        value = yaml.safe_load(value)
    if not isinstance(value, Iterable) or isinstance(value, str | Mapping):
        return []
    return [str(item.get("name", "") if isinstance(item, Mapping) else item) for item in value]


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def _is_documentation(text: str) -> bool:
    address = _address(text)
    return address is not None and any(address in network for network in DOCUMENTATION)


def _is_itself(text: str) -> bool:
    """Tell whether a host name or an address is that of whoever asks."""
    address = _address(text)
    return text == "localhost" or (address is not None and (address.is_loopback or address.is_unspecified))


def _is_url(text: str) -> bool:
    port = re.search(":([0-9]+)/?$", text)
    return _URL.fullmatch(text) is not None and (port is None or int(port[1]) <= HIGHEST_PORT)


def _in(groups: Groups, *names: str) -> list[str]:
    """Return the hosts of these groups, each once."""
    return list(dict.fromkeys(str(host) for name in names for host in groups.get(name) or []))


def _how_many(hosts: Sequence[str]) -> str:
    rest = len(hosts[SHOWN:])
    return ", ".join(hosts[:SHOWN]) + (f" and {rest} more" if rest else "")


# ---- what workstations and servers need to know of each other ---------------------------------------------------


@dataclass(frozen=True)
class Site:
    """How a server is reached by workstations.

    Attributes:
        url: scheme, host and port, without a slash at the end.
        given: whether lanmirror_server_url says so; otherwise it is made of the server's own variables.
    """

    url: str
    given: bool

    @property
    def host(self) -> str:
        """Return the name or address in the URL."""
        return urlsplit(self.url).hostname or ""


def site(hostvars: Hostvars, name: str) -> Site:
    """Return how workstations reach a server."""
    host = hostvars[name]
    given = _text(host, "lanmirror_server_url")
    return Site(given.rstrip("/"), given=True) if given else own_site(host, name)


def own_site(host: Mapping[str, Any], name: str) -> Site:
    """Return how a server is reached at its own address."""
    own = str(host.get("ansible_host") or name)
    netloc = f"[{own}]" if ":" in own else own
    plain = _text(host, "nginx_tls") == "none"
    port = _port(host, "nginx_port" if plain else "nginx_tls_port")
    usual = port in (None, 80 if plain else 443)
    return Site(f"{'http' if plain else 'https'}://{netloc}{'' if usual else f':{port}'}", given=False)


def asks(host: Mapping[str, Any], groups: Sequence[str]) -> dict[str, Any]:
    """Return what a server is asked by itself, at its loopback address, for playbooks/status.yml.

    Args:
        host: its variables.
        groups: those that it is in.

    Returns:
        `role` of its PyPI cache, or None; `folders` whose disks count; `asks`, each with `about`, `url` and `headers`.
    """
    plain = _text(host, "nginx_tls") == "none"
    url = f"http{'' if plain else 's'}://127.0.0.1:{_text(host, 'nginx_port' if plain else 'nginx_tls_port')}"
    # Requests for other names may be another site's (nginx_default_server).
    names = _list(host, "nginx_server_names")
    headers = {"Host": names[0]} if names else {}
    halves = {
        half: folder
        for half, (group, folder) in {
            "pypi": ("pypi_cache", "devpi_data_dir"),
            "conda": ("conda_mirror", "conda_mirror_working_dir"),
        }.items()
        if group in groups
    }
    paths = {half: f"/health/{half}" for half in halves} | ({"status": "/status.json"} if "conda" in halves else {})
    return {
        "role": _text(host, "devpi_role") if "pypi" in halves else None,
        "folders": [_text(host, folder) for folder in halves.values()],
        "asks": [
            {"about": about, "url": f"{url}{path}", "headers": headers}
            for about, path in {**paths, "portal": "/"}.items()
        ],
    }


def server_of(groups: Groups, half: str) -> str | None:
    """Return the server that workstations use for a half: the first of its group, and of the PyPI cache the primary."""
    servers = _in(groups, half)
    primaries = [server for server in servers if server not in _in(groups, "pypi_replicas")]
    return next(iter([*primaries, *servers]), None)


def wanted(hostvars: Hostvars, groups: Groups, half: str, name: str) -> tuple[str | None, str]:
    """Return the server that a workstation uses for a half, and its URL.

    With lanmirror_server_url a workstation may choose one of several servers of a half.
    """
    chosen = _text(hostvars[name], "lanmirror_server_url").rstrip("/")
    for server in _in(groups, half) if chosen else []:
        if chosen in (site(hostvars, server).url, own_site(hostvars[server], server).url):
            return server, chosen
    first = server_of(groups, half)
    return first, site(hostvars, first).url if first is not None else ""


def channels(host: Mapping[str, Any]) -> list[str]:
    """Return the community channels of a Conda mirror, without their subdirs."""
    return list(dict.fromkeys(entry.rpartition("/")[0] for entry in _entries(host, "conda_mirror_cloud")))


def client(hostvars: Hostvars, groups: Groups, name: str) -> dict[str, Any]:
    """Return the variables of role client that follow from the servers'; what the administrator set is kept.

    A half whose group is empty has no URL. A half whose server is off is left as it is: nobody is pointed at a server
    that may never have been set up.
    """
    host, off = hostvars[name], hostvars[name].get("lanmirror_off") or []
    found: dict[str, Any] = {
        "client_pypi_url": "",
        "client_conda_url": "",
        "client_conda_repos": [],
        "client_conda_channels": [],
    }
    pypi, found["client_pypi_url"] = wanted(hostvars, groups, "pypi_cache", name)
    conda, found["client_conda_url"] = wanted(hostvars, groups, "conda_mirror", name)
    if conda is not None:
        found["client_conda_repos"] = _entries(hostvars[conda], "conda_mirror_repos")
        found["client_conda_channels"] = channels(hostvars[conda])
    found = {key: value if host.get(key) is None else host[key] for key, value in found.items()}
    found["client_tools"] = tools = _value(host, "client_tools")
    if _text(host, "client_state") == "present" and isinstance(tools, list):
        left = {tool for tool, server in (("pip", pypi), ("conda", conda)) if server in off}
        found["client_tools"] = [tool for tool in tools if tool not in left]
    return found


def waits(hostvars: Hostvars, groups: Groups, name: str) -> bool:
    """Tell whether a server is a replica of the PyPI cache, and its primary is off: it cannot be set up then."""
    off = hostvars[name].get("lanmirror_off") or []
    return name in _in(groups, "pypi_replicas") and server_of(groups, "pypi_cache") in off


def tls_names(hostvars: Hostvars, groups: Groups, name: str) -> list[str]:
    """Return the names and addresses that workstations use for a server; what the administrator set is kept."""
    host = hostvars[name]
    if host.get("nginx_tls_names") is not None:
        return host["nginx_tls_names"]  # type: ignore[no-any-return]  # role nginx checks it
    of_sites = {"pypi_cache": "devpi_server_names", "conda_mirror": "conda_mirror_server_names"}
    names = [entry for half, key in of_sites.items() if name in _in(groups, half) for entry in _list(host, key)]
    return list(dict.fromkeys([site(hostvars, name).host, *names]))


def peers(hostvars: Hostvars, groups: Groups, asked: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the other servers of a PyPI cache as role devpi wants them in devpi_peers.

    Args:
        hostvars: with the facts of the other servers.
        groups: those of the inventory.
        asked: for each other server, the result of a loop over their names that reads their root certificate. One that
            did not answer, or whose facts are not known, is left out.
    """
    found = []
    for result in asked:
        name = str(result["item"])
        host = hostvars[name]
        facts: Mapping[str, Any] = host.get("ansible_facts") or {}
        if result.get("unreachable") or "default_ipv4" not in facts:
            continue
        routes = [(facts.get(kind) or {}).get("address") for kind in ("default_ipv4", "default_ipv6")]
        address = next((str(text) for text in (_text(host, "devpi_address"), *routes) if text), "")
        tls = _text(host, "nginx_tls")
        port = _text(host, "nginx_port" if tls == "none" else "nginx_tls_port")
        names = [entry for entry in tls_names(hostvars, groups, name) if _address(str(entry)) is None]
        found.append(
            {
                "name": name,
                "role": _text(host, "devpi_role"),
                "url": f"http{'s' * (tls != 'none')}://{f'[{address}]' if ':' in address else address}:{port}",
                # The site's own authority always signs for the server's own name.
                "tls_name": {"none": "", "site_ca": str(facts.get("hostname", "")).lower()}.get(
                    tls, "".join(names[:1])
                ),
                "ca": base64.b64decode(result.get("content") or "").decode(),
            }
        )
    return found


# ---- what a run says at its end -----------------------------------------------------------------------------------


def conda_there(repos: Iterable[str], channels: Iterable[str], missing: Iterable[str]) -> list[str]:
    """Return the paths below /anaconda of the repos and channels that the server answers for."""
    absent = {str(entry).removeprefix("pkgs/").removeprefix("cloud/") for entry in missing}
    paths = {**{f"pkgs/{repo}": repo for repo in repos}, **{f"cloud/{channel}": channel for channel in channels}}
    return [path for path, name in paths.items() if name not in absent]


def _command(playbook: str, sources: Sequence[str]) -> str:
    """Return the command that runs a playbook as this run was begun: same program, inventory and question for sudo."""
    called = Path(sys.argv[0])
    name = "ansible-playbook"
    # As from a virtual environment that is not activated.
    if called.name == name and shutil.which(name) != str(called):
        name = str(called)
    asks = " -K" if context.CLIARGS.get("become_ask_pass") else ""
    here = Path.cwd()
    paths = [Path(source) for source in map(str, sources)]
    shown = [str(path.relative_to(here)) if path.is_relative_to(here) else str(path) for path in paths]
    options = "" if shown == ["inventory"] else "".join(f"-i {path} " for path in shown)
    first, _, rest = playbook.partition(" ")
    return f"{name} {options}{first}{asks}{rest and f' {rest}'}"


def summary(
    hostvars: Hostvars, groups: Groups, hosts: Sequence[str], alive: Sequence[str], sources: Sequence[str]
) -> list[str]:
    """Return the closing words of a run.

    Args:
        hostvars: as Ansible has them.
        groups: as Ansible has them.
        hosts: those of the run.
        alive: those of them that neither failed nor are off.
        sources: the inventories of the run, as paths.
    """
    lines = []
    what = {"pypi_cache": "PyPI cache", "conda_mirror": "Conda mirror"}
    for server in _in(groups, *SERVERS):
        has = " and ".join(words for half, words in what.items() if server in _in(groups, half))
        lines.append(
            f"{site(hostvars, server).url}/ is the portal of {server} ({has}): it has the settings of each tool"
        )
    missing = {str(entry) for host in alive for entry in hostvars[host].get("client_conda_missing") or []}
    if missing:
        lines.append(
            f"The Conda mirror does not have {', '.join(sorted(missing))} yet, so workstations are not pointed at it. "
            f"Fill the mirror now, and point them at it: {_command('site.yml --tags sync,client', sources)}"
        )
    off = sorted({str(host) for alive_host in alive for host in hostvars[alive_host].get("lanmirror_off") or []})
    if off:
        lines.append(f"These machines did not answer, and are as they were: {', '.join(off)}")
    failed = [str(host) for host in hosts if host not in alive and host not in off]
    if failed:
        lines.append(f"These machines failed, as the messages above say: {', '.join(failed)}")
    if off or failed:
        lines.append(f"Run it again when they are well: {_command('site.yml', sources)}")
    return lines


# ---- what contradicts --------------------------------------------------------------------------------------------


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1, cutoff=0.8)
    return near[0] if near else ""


def _of_groups(hostvars: Hostvars, groups: Groups) -> list[str]:
    """Return what is wrong with the groups."""
    found = []
    folders = {str(host["inventory_dir"]) for host in hostvars.values() if host.get("inventory_dir")}
    files = {path.name.split(".")[0]: path for folder in sorted(folders) for path in Path(folder).glob("group_vars/*")}
    for name in dict.fromkeys([*map(str, groups), *files]):
        meant = SLIPS.get(name) or _nearest(name, GROUPS)
        if name in (*GROUPS, "all", "ungrouped") or not meant:
            continue
        if name not in groups:
            found.append(f'{files[name]} is for a group "{name}", which no host is in; did you mean {meant}?')
        elif outside := [host for host in _in(groups, name) if host not in _in(groups, meant)]:
            found.append(f'group "{name}" ({_how_many(outside)}) is none of lanmirror\'s; did you mean {meant}?')
    lost = [host for host in _in(groups, "pypi_replicas") if host not in _in(groups, "pypi_cache")]
    if lost:
        found.append(f"pypi_replicas ({_how_many(lost)}) must be a child of group pypi_cache, as in inventory.example")
    if not found and not _in(groups, *GROUPS):
        found.append(
            "no host is in one of the groups pypi_cache, conda_mirror and clients: copy the example with "
            "`cp -r inventory.example inventory`, and put your machines into inventory/hosts.yml"
        )
    return found


def _of_names(hostvars: Hostvars, hosts: Sequence[str]) -> list[str]:
    """Return the variables that carry one of our prefixes, and that nothing reads."""
    known = {*_defaults(), *_options(), *SHARED}
    other = {*known, *OURS, *RENAMED}
    wrong: dict[str, list[str]] = {}
    for host in hosts:
        theirs = _list(hostvars[host], "lanmirror_other_variables")
        for name in map(str, hostvars[host]):
            if name.startswith(PREFIXES) and name not in {*other, *theirs}:
                wrong.setdefault(name, []).append(host)
    found = []
    for name, where in sorted(wrong.items()):
        near = _nearest(name, known)
        if near:
            hint = f"did you mean {near}?"
        else:
            hint = (
                "docs/variables.md has them all; if it belongs to something else, list it in lanmirror_other_variables"
            )
        found.append(f"{name} (set for {_how_many(where)}) is no variable of lanmirror: {hint}")
    return found


def _of_example(hostvars: Hostvars, hosts: Sequence[str]) -> list[str]:
    """Return the addresses of the example that were left as they are."""
    wrong: dict[str, list[str]] = {}
    for host in hosts:
        values = {"ansible_host": str(hostvars[host].get("ansible_host") or host)}
        for name in ("lanmirror_server_url", "client_pypi_url", "client_conda_url"):
            text = _text(hostvars[host], name)
            values[name] = (urlsplit(text).hostname or "") if _is_url(text) else ""
        addresses = hostvars[host].get("client_addresses")
        if isinstance(addresses, Mapping):
            values |= {f"client_addresses.{name}": str(address) for name, address in addresses.items()}
        for name, value in values.items():
            if _is_documentation(value):
                wrong.setdefault(f"{name} is {value}", []).append(host)
    return [
        f"{what} (for {_how_many(where)}), an address for examples that no machine has: put your own in its place"
        for what, where in wrong.items()
    ]


def _of_server(hostvars: Hostvars, groups: Groups, name: str) -> list[str]:
    """Return what contradicts between a server's URL, its port and its TLS."""
    host, where = hostvars[name], site(hostvars, name)
    others = [client for client in _in(groups, "clients") if client != name]
    shown = f'lanmirror_server_url is "{re.sub("//[^/]*@", "//***@", where.url)}" for {name}'
    tls = _text(host, "nginx_tls")
    scheme, usual, variable = ("http", 80, "nginx_port") if tls == "none" else ("https", 443, "nginx_tls_port")
    port = _port(host, variable)
    problem = ""
    if where.given and not _is_url(where.url):
        problem = (
            f"{shown}: it must be empty or scheme, host and maybe a port, without a path or a password, "
            "for example http://mirror.lab.lan"
        )
    elif _is_itself(where.host) and others:
        problem = (
            f"{shown if where.given else f'{name} is reached at {where.host}'}, where workstations "
            f"({_how_many(others)}) find themselves: set lanmirror_server_url to the URL at which they reach the server"
        )
    elif where.given and urlsplit(where.url).scheme != scheme:
        problem = f'{shown}, but lanmirror_tls is "{tls}", with which it is served by {scheme}: change one of them'
    elif where.given and port not in (None, asked := urlsplit(where.url).port or usual):
        problem = f"{shown}, which is port {asked}, but {variable} is {port}: change one of them"
    return [problem] if problem else []


def _of_urls(hostvars: Hostvars, groups: Groups) -> list[str]:
    """Return URLs that two servers have in common, although neither has all that is asked of it."""
    halves = {half: _in(groups, half) for half in SERVERS}
    pypi, conda = (server_of(groups, half) for half in SERVERS)
    if pypi is None or conda is None or pypi in halves["conda_mirror"] or conda in halves["pypi_cache"]:
        return []
    one, other = site(hostvars, pypi), site(hostvars, conda)
    if not one.given or one.url != other.url:
        return []
    return [
        f'lanmirror_server_url is "{one.url}" for {pypi}, which has the PyPI cache alone, and for {conda}, which has '
        "the Conda mirror alone: leave it empty, or set it for each server in inventory/host_vars"
    ]


def _of_client(hostvars: Hostvars, groups: Groups, name: str) -> list[str]:
    """Return what a workstation is told of, and that the servers lack."""
    host = hostvars[name]
    url = _text(host, "lanmirror_server_url").rstrip("/")
    servers = _in(groups, *SERVERS)
    if url and servers and not any(wanted(hostvars, groups, half, name)[1] == url for half in SERVERS):
        return [
            f'lanmirror_server_url is "{re.sub("//[^/]*@", "//***@", url)}" for workstation {name}, which is '
            f"the URL of none of the servers ({_how_many(servers)}): set it for one of them, or set client_pypi_url"
        ]
    conda = wanted(hostvars, groups, "conda_mirror", name)[0]
    # With a URL of its own it may be another server's.
    if conda is None or host.get("client_conda_url") or _text(host, "client_state") == "absent":
        return []
    held = {
        "client_conda_repos": ("conda_mirror_repos", _entries(hostvars[conda], "conda_mirror_repos")),
        "client_conda_channels": ("conda_mirror_cloud", channels(hostvars[conda])),
    }
    return [
        f'{variable} has "{", ".join(missing)}", which {of_server} of {conda} does not: '
        f"it has {', '.join(there) or 'none'}"
        for variable, (of_server, there) in held.items()
        if host.get(variable) is not None
        and (missing := [name for name in _list(host, variable) if _CHANNEL.fullmatch(name) and name not in there])
    ]


def problems(hostvars: Hostvars, groups: Groups) -> list[str]:
    """Return what is wrong with the inventory as a whole, each once."""
    hosts = _in(groups, *GROUPS)
    found = [*_of_groups(hostvars, groups), *_of_names(hostvars, hosts), *_of_example(hostvars, hosts)]
    for server in _in(groups, *SERVERS):
        found += _of_server(hostvars, groups, server)
    found += _of_urls(hostvars, groups)
    for workstation in _in(groups, "clients"):
        found += _of_client(hostvars, groups, workstation)
    return list(dict.fromkeys(found))


class FilterModule:
    """Filters of the playbooks."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Give the filters by name."""
        return {
            "lanmirror_problems": problems,
            "lanmirror_asks": asks,
            "lanmirror_client": client,
            "lanmirror_peers": peers,
            "lanmirror_tls_names": tls_names,
            "lanmirror_conda_there": conda_there,
            "lanmirror_summary": summary,
            "lanmirror_waits": waits,
            "lanmirror_url": lambda hostvars, name: site(hostvars, name).url,
        }
