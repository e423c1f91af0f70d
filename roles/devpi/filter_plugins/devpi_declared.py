"""What the variables declare, completed and checked, before anything is changed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Settings = dict[str, Any]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
URL = re.compile(r"https?://[^\s/@]+(/[^\s@]*)?")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
PEER = re.compile(r"https?://(?P<host>[0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
PASSWORD = re.compile(r"\S.{6,}\S")
COMMON = {"type", "title", "description", "custom_data", "volatile"}
MIRROR = {
    "flat",
    "official",
    "mirror_url",
    "mirror_web_url_fmt",
    "mirror_cache_expiry",
    "mirror_ignore_serial_header",
    "mirror_no_project_list",
    "mirror_provides_core_metadata",
    "mirror_use_external_urls",
}
STAGE = {"bases", "acl_upload", "acl_toxresult_upload", "mirror_whitelist", "mirror_whitelist_inheritance"}
LISTS = {"bases", "acl_upload", "acl_toxresult_upload", "mirror_whitelist"}
SWITCHES = {
    "flat",
    "official",
    "volatile",
    "mirror_ignore_serial_header",
    "mirror_no_project_list",
    "mirror_provides_core_metadata",
    "mirror_use_external_urls",
}


def devpi_declared(indexes: Mapping[str, Settings], pypi: Settings, mirror: Settings) -> dict[str, Settings]:
    """Return all indexes with what they have by default.

    Args:
        indexes: The declared ones, by user/index.
        pypi: Settings of root/pypi, which is always there; `indexes` may add to them.
        mirror: What every mirror has unless it says otherwise.
    """
    done = {}
    for name, given in {"root/pypi": {}, **indexes}.items():
        if name == "root/pypi":
            done[name] = {**mirror, **pypi, **given}
        elif given.get("type") == "mirror":
            done[name] = {"volatile": True, **mirror, **given}
        else:
            owner = name.partition("/")[0]
            stage = {"volatile": True, "bases": [], "acl_upload": [owner], "acl_toxresult_upload": [":AUTHENTICATED:"]}
            done[name] = {**stage, **given}
    return done


def devpi_user_problems(users: Any) -> list[str]:
    """Return what is wrong with the declared users, each with the name and the fix, and no password."""
    if not isinstance(users, list) or not all(isinstance(user, Mapping) for user in users):
        return ["devpi_users must be a list of users (it is not shown), for example [{name: lab}, {name: alice}]"]
    found = []
    for user in users:
        name, password = str(user.get("name", "")), user.get("password") or ""
        if not NAME.fullmatch(name) or name == "root":
            found.append(
                f'devpi_users has "{name}": a name is of letters, digits, dots, hyphens and underscores, and not root, '
                "whose password is devpi_root_password"
            )
        elif not isinstance(password, str) or (password and not PASSWORD.fullmatch(password)):
            found.append(
                f'devpi_users gives "{name}" a password (which is not shown) that is not 8 characters or more '
                "on one line, without a space at its ends: quote it if it is a number, or leave it out"
            )
    return found


def devpi_peer_problems(peers: Any, name: str, role: str, facts: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the other servers of the cache, each with the name and the fix.

    Args:
        peers: see devpi_peers.
        name: Of this server, in the inventory.
        role: Of this server: primary or replica.
        facts: Ansible's facts of this server, for its own addresses.
    """
    if not isinstance(peers, list) or not all(isinstance(peer, Mapping) for peer in peers):
        return [f"devpi_peers is {peers!r}: it must be a list, which playbooks/pypi_cache.yml makes of the inventory"]
    found = []
    own = {"127.0.0.1", "::1", "localhost", *facts.get("all_ipv4_addresses", []), *facts.get("all_ipv6_addresses", [])}
    for peer in peers:
        where = f"devpi_peers of {name}: {peer.get('name', 'one without a name')}"
        url = PEER.fullmatch(str(peer.get("url", "")))
        if not NAME.fullmatch(str(peer.get("name", ""))):
            found.append(f"{where}: a name is of letters, digits, dots, hyphens and underscores")
        elif peer.get("role") not in {"primary", "replica"}:
            found.append(f'{where} has the role "{peer.get("role")}": allowed are primary, replica')
        elif url is None:
            found.append(
                f'{where} has the URL "{peer.get("url", "")}": it must be scheme, address and port, for example '
                f"https://192.0.2.11:443; set devpi_address of {peer['name']} to its address"
            )
        elif url["host"].strip("[]") in own:
            found.append(
                f"{where} has the URL {peer['url']}, which is {name} itself, and no server is a replica of itself: "
                f"set devpi_address of {peer['name']} to its own address"
            )
        elif peer["url"].startswith("https:") and not HOST.fullmatch(str(peer.get("tls_name") or "")):
            found.append(
                f"{where} has https and no name in its certificate (tls_name): put a name, not only addresses, into "
                "its nginx_tls_names"
            )
    if found:
        return found
    primaries = [name] * (role == "primary") + [peer["name"] for peer in peers if peer["role"] == "primary"]
    if len(primaries) > 1:
        return [
            f"devpi_role is primary on {' and '.join(primaries)}, and replicas follow one: put all but one into the "
            "group pypi_replicas, whose devpi_role is replica (inventory/group_vars/pypi_replicas.yml)"
        ]
    if not primaries:
        return [
            f"devpi_role is replica on {name}, and there is no primary for it to follow: put one server into the group "
            "pypi_cache itself, outside of pypi_replicas"
        ]
    return []


def devpi_problems(indexes: Any, users: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is wrong with the declared indexes, each with the name and the fix; empty when all is well."""
    if not isinstance(indexes, Mapping):
        return [f"devpi_indexes is {indexes!r}: it must be a mapping of user/index to settings"]
    names = {"root", *(str(user.get("name")) for user in users)}
    found = [problem for name, settings in indexes.items() for problem in _of_index(str(name), settings, names)]
    if found:
        return found
    known = {"root/pypi", *indexes}
    for name, settings in indexes.items():
        found += [
            f'devpi_indexes: {name} has the base "{base}", which is not declared: declare it, or take it out of bases'
            for base in settings.get("bases", [])
            if base not in known
        ]
    return found or [
        f"devpi_indexes: {' -> '.join(cycle)} is a cycle of bases: take one of them out" for cycle in _cycles(indexes)
    ]


def _of_index(name: str, settings: Any, users: set[str]) -> Iterator[str]:
    """Yield what is wrong with one index by itself."""
    where = f"devpi_indexes: {name}"
    owner, slash, index = name.partition("/")
    if not (slash and NAME.fullmatch(owner) and NAME.fullmatch(index)):
        yield f'{where} is not a name: it must be user/index, for example "lab/dev"'
        return
    if owner not in users:
        yield f'{where} belongs to "{owner}", which is no user: add it to devpi_users, or use one of {_list(users)}'
    if not isinstance(settings, Mapping):
        yield f"{where} is {settings!r}: it must be a mapping, for example {{type: stage, bases: [root/pypi]}}"
        return
    kind = settings.get("type", "mirror" if name == "root/pypi" else None)
    if kind not in {"mirror", "stage"} or (name == "root/pypi" and kind != "mirror"):
        allowed = "mirror" if name == "root/pypi" else "mirror, stage"
        yield f'{where} has the type "{kind}": allowed are {allowed}'
        return
    yield from _of_keys(where, kind, settings)
    for key in ("acl_upload", "acl_toxresult_upload"):
        for who in settings.get(key, []) if isinstance(settings.get(key), list) else []:
            if who not in users | {":AUTHENTICATED:"}:
                yield (
                    f'{where} lets "{who}" upload ({key}), which is no user: add it to devpi_users, '
                    f'or use one of {_list(users)}, or ":AUTHENTICATED:" for all of them'
                )
    if kind == "mirror" and name != "root/pypi":
        yield from _of_url(where, settings)


def _of_keys(where: str, kind: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys that are unknown or out of place, and values of a wrong type."""
    allowed = COMMON | (MIRROR if kind == "mirror" else STAGE)
    for key in sorted(set(map(str, settings)) - allowed):
        if kind == "mirror" and key in STAGE:
            yield f'{where} is a mirror and cannot have "{key}": nobody uploads to a mirror; make a stage index on it'
        elif kind == "stage" and key in MIRROR:
            yield f'{where} is a stage index and cannot have "{key}": declare a mirror, and name it in bases'
        else:
            yield f'{where} has the unknown setting "{key}": allowed are {_list(allowed)}'
    for key, value in settings.items():
        if key in LISTS and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            yield f"{where} has {key} {value!r}: it must be a list of texts"
        if key in SWITCHES and not isinstance(value, bool):
            yield f"{where} has {key} {value!r}: allowed are true, false"


def _of_url(where: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with where a mirror fetches from."""
    url = settings.get("mirror_url")
    if settings.get("official") is True and settings.get("flat") is True:
        yield f"{where} is both official and flat: the official index is not flat; take one of them out"
    if settings.get("official") is True:
        if url is not None:
            yield f"{where} has both official and mirror_url: take one of them out"
    elif url is None:
        yield f"{where} is a mirror without a URL: set mirror_url, or official: true"
    elif not (isinstance(url, str) and URL.fullmatch(url)):
        shown = re.sub(r"^(https?://)?.*@", r"\1***@", str(url))
        yield (
            f'{where} has mirror_url "{shown}": it must begin with http:// or https:// and hold no password, '
            "which devpi would show to everybody"
        )


def _cycles(indexes: Mapping[str, Settings]) -> Iterator[list[str]]:
    """Yield the first way in which an index is its own base, if there is one."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for base in indexes.get(name, {}).get("bases", []):
                if cycle := walk(base, [*path, name]):
                    return cycle
            done.add(name)
        return None

    for name in indexes:
        if cycle := walk(name, []):
            yield cycle
            return


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names))


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Name the filters."""
        return {
            "devpi_declared": devpi_declared,
            "devpi_peer_problems": devpi_peer_problems,
            "devpi_problems": devpi_problems,
            "devpi_user_problems": devpi_user_problems,
        }
