"""The variables of role devpi, checked, converted and completed, before anything is changed.

An INI inventory and `-e name=value` give every value as text, so numbers and switches are taken as text as well.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

# ansible-core needs it itself.
from packaging.requirements import InvalidRequirement, Requirement

Settings = dict[str, Any]

# The least and the most that each number may be.
NUMBERS = {
    "devpi_backup_keep": (1, 1000),
    "devpi_max_cached_gib": (0, 1048576),
    "devpi_max_upload_mib": (1, 65536),
    "devpi_min_age_days": (0, 36500),
    "devpi_min_free_gib": (0, 1048576),
    "devpi_mirror_cache_expiry": (0, 604800),
    "devpi_page_timeout": (5, 3600),
    "devpi_pages_max_stale": (120, 31536000),
    "devpi_port": (1024, 65532),
    "devpi_request_timeout": (1, 300),
}
SWITCHES = (
    "devpi_backup_cache",
    "devpi_mirror_ignore_serial_header",
    "devpi_mirror_no_project_list",
    "devpi_remove_data",
    "devpi_remove_undeclared",
)
CHOICES = {
    "devpi_min_age_undated": ("hidden", "shown"),
    "devpi_role": ("primary", "replica"),
}
UPSTREAMS = ("pypi", "tuna", "aliyun", "ustc", "custom")
# The texts that Ansible's filter `bool` takes for true and false.
TRUE = {"true", "t", "yes", "y", "on", "1"}
FALSE = {"false", "f", "no", "n", "off", "0"}
PYTHON = (3, 11)
# Ports on the loopback address: devpi's own, and Nginx's for its steps. Each peer has one more, from the fifth on.
PORTS, FIRST_PEER = 2, 4

# Scheme, host (name, IPv4, or IPv6 in brackets), maybe a port and a path; no user, no password, no query.
_SITE = r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~%/+-]*)?"
PUBLIC_URL = re.compile(rf"https?://{_SITE}")
# The same with a user and a password, for what is shown to nobody.
PRIVATE_URL = re.compile(rf"https?://([^/@\s]+@)?{_SITE}")
PATH = re.compile(r"(/[A-Za-z0-9._-]+)+/?")


class Text(NamedTuple):
    """The form of a variable that is a text; every one of them may be empty unless `needed`."""

    form: re.Pattern[str]
    allowed: str
    needed: bool = False
    """Whether it must not be empty."""
    secret: bool = False
    """Whether its value is shown to nobody."""


_FOLDER = "an absolute path of letters, digits, dots, hyphens and underscores"
_URL = "empty or a URL with http:// or https://"
TEXTS = {
    "devpi_backup_dir": Text(PATH, f"{_FOLDER}, for example /var/backups/devpi", needed=True),
    "devpi_backup_fetch_to": Text(
        re.compile(r".*"), "empty or a folder on this machine, for example ~/lanmirror-backups"
    ),
    "devpi_ca_bundle": Text(
        re.compile(rf"~?{PATH.pattern}"),
        "empty or the absolute path of a PEM file, for example /etc/ssl/certs/ca-certificates.crt",
    ),
    "devpi_data_dir": Text(PATH, f"{_FOLDER}, for example /srv/devpi", needed=True),
    "devpi_http_proxy": Text(PRIVATE_URL, f"{_URL}, for example http://proxy.lab.lan:3128"),
    "devpi_malware_list": Text(
        re.compile(rf"{PUBLIC_URL.pattern}|(?!/(home|root|tmp|var/tmp|run/user)(/|$)){PATH.pattern}"),
        "empty, a URL with http:// or https:// and without a password, or the absolute path of a file or folder on the "
        "server outside of /home, /root and /tmp, for example /srv/malware/all.zip",
    ),
    "devpi_metrics_file": Text(
        re.compile(rf"{PATH.pattern.removesuffix('/?')}(?<=[.]prom)"),
        "empty or an absolute path that ends with .prom, as node_exporter reads it, for example "
        "/var/lib/prometheus/node-exporter/lanmirror_pypi.prom",
    ),
    "devpi_mirror_web_url_fmt": Text(
        re.compile(r"https?://\S*\{name\}\S*"),
        "empty or a URL with {name} in it, for example https://mirror.example.org/project/{name}/",
    ),
    "devpi_pip_index_url": Text(PRIVATE_URL, f"{_URL}, for example https://pypi.tuna.tsinghua.edu.cn/simple"),
    "devpi_restore_from": Text(PATH, "empty or the absolute path of a backup on the server, a folder or a .tar"),
    "devpi_root_password": Text(
        re.compile(r"\S.{6,}\S"),
        "empty, or a text of 8 characters or more on one line without a space at its ends; quote it if it is a number",
        secret=True,
    ),
    "devpi_secret": Text(
        re.compile(r"\S{32,}"), "empty, or a text of 32 characters or more without spaces", secret=True
    ),
}

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
URL = re.compile(r"https?://[^\s/@]+(/[^\s@]*)?")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
FILE_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)(:[0-9]{1,5})?")
PEER = re.compile(r"https?://(?P<host>[0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
PASSWORD = re.compile(r"\S.{6,}\S")
COMMON = {"type", "title", "description", "custom_data", "volatile"}
MIRROR = {
    "allow",
    "block",
    "fallback_urls",
    "file_hosts",
    "files_from",
    "flat",
    "min_age_days",
    "min_age_undated",
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
LISTS = {
    "acl_toxresult_upload",
    "acl_upload",
    "allow",
    "bases",
    "block",
    "fallback_urls",
    "file_hosts",
    "files_from",
    "mirror_whitelist",
}
# The official index in a list of URLs; module devpi_indexes has its URL from devpi.
OFFICIAL = "official"
# Lists of rules: devpi stores each as one text, a rule a line.
RULES = ("allow", "block")
# Lists of URLs: devpi stores each with a slash at its end.
PLACES = ("fallback_urls", "files_from")
# What stands below an entry of `files_from`, and is no part of it.
BELOW = re.compile(r"/(packages|simple)/*$")
# The most that each number of an index may be, None for no limit.
INDEX_NUMBERS = {"min_age_days": 36500, "mirror_cache_expiry": None}
INDEX_SWITCHES = {
    "flat",
    "official",
    "volatile",
    "mirror_ignore_serial_header",
    "mirror_no_project_list",
    "mirror_provides_core_metadata",
    "mirror_use_external_urls",
}


def _number(value: Any) -> int | None:
    """Return a whole number, also one that is given as text; None for anything else."""
    if isinstance(value, bool):
        return None
    return int(value) if re.fullmatch(r"\s*-?[0-9]+\s*", str(value), re.ASCII) else None


def _switch(value: Any) -> bool | None:
    """Return whether a switch is on, also one that is given as text; None for anything else."""
    word = str(value).strip().lower()
    return True if word in TRUE else False if word in FALSE else None


def _shown(value: Any) -> str:
    """Return a value as a message shows it, the password of a URL masked."""
    return "null" if value is None else f'"{_masked(str(value))}"'


def _masked(text: str) -> str:
    return re.sub(r"^(https?://)?.*@", r"\1***@", text)


def _converted(settings: Mapping[str, Any]) -> Settings:
    """Return settings of an index with its numbers and switches converted; those that do not convert stay."""
    done = dict(settings)
    for key, value in settings.items():
        found = _number(value) if key in INDEX_NUMBERS else _switch(value) if key in INDEX_SWITCHES else None
        if found is not None:
            done[key] = found
    return done


def devpi_problems(given: Mapping[str, Any], name: str, facts: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the variables of the role, each with its name, its value and what is allowed.

    Args:
        given: All public variables of the role, as they were set.
        name: Of this server, in the inventory.
        facts: Ansible's facts of this server, for its own addresses.
    """
    version = facts["python"]["version"]
    if (version["major"], version["minor"]) < PYTHON:
        return [
            f"{name} has Python {version['major']}.{version['minor']}: devpi needs {PYTHON[0]}.{PYTHON[1]} or newer, "
            "as Debian 12 and Ubuntu 24.04 have it"
        ]
    # Each rule of more than one variable asks only for those that are right by themselves.
    found = dict(_of_types(given))
    right = given.keys() - found.keys()
    for rule in (_of_upstream, _of_folders, _of_ports):
        found.update({key: text for key, text in rule(given, right) if key not in found})
    problems = list(found.values())
    problems += devpi_user_problems(given["devpi_users"])
    if not problems:
        problems += devpi_index_problems(given["devpi_indexes"], given["devpi_users"])
    if "devpi_role" in right:
        problems += devpi_peer_problems(given["devpi_peers"], name, given["devpi_role"], facts)
    return problems


def _of_types(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield variables whose value is of the wrong kind, with the message."""
    for name, (low, high) in NUMBERS.items():
        number = _number(given[name])
        if number is None or not low <= number <= high:
            yield name, f"{name} is {_shown(given[name])}: it must be a whole number from {low} to {high}"
    for name in SWITCHES:
        if _switch(given[name]) is None:
            yield name, f"{name} is {_shown(given[name])}: allowed are true, false"
    for name, words in CHOICES.items():
        if given[name] not in words:
            yield name, f"{name} is {_shown(given[name])}: allowed are {', '.join(words)}"
    for name, text in TEXTS.items():
        value = given[name]
        if not isinstance(value, str) or not (text.form.fullmatch(value) if value or text.needed else True):
            shown = "not what it must be (its value is not shown)" if text.secret else _shown(value)
            yield name, f"{name} is {shown}: it must be {text.allowed}"
    yield from _of_lists(given)
    if problem := _upstream_problem(given["devpi_upstream"], given["devpi_mirror_url"]):
        yield "devpi_upstream", problem


def _upstream_problem(value: Any, custom: Any) -> str:
    """Return what is wrong with `devpi_upstream`, a word or a list of words and URLs; "" for nothing."""
    allowed = f"allowed are {', '.join(UPSTREAMS)}, or a list of these and of URLs of simple indexes"
    entries = value if isinstance(value, list) else [value]
    if not entries:
        return f"devpi_upstream is an empty list: {allowed}"
    for entry in entries:
        is_url = isinstance(value, list) and isinstance(entry, str) and PUBLIC_URL.fullmatch(entry)
        if entry not in UPSTREAMS and not is_url:
            form = "with http:// or https:// and without a password, which devpi would show to everybody"
            return f"devpi_upstream {'has' if entry is not value else 'is'} {_shown(entry)}: {allowed}, {form}"
    places = [f"{custom if entry == 'custom' else entry}".rstrip("/") for entry in entries]
    if twice := sorted({place for place in places if places.count(place) > 1}):
        return f"devpi_upstream has {_shown(twice[0])} twice: each upstream is asked once, take one of them out"
    return ""


def _place_problem(urls: Sequence[Any]) -> str:
    """Return what is wrong with the places of `files_from`, with the entry; "" for nothing."""
    allowed = "it must be the URL below which packages/ stands"
    for url in urls:
        if not isinstance(url, str) or not PUBLIC_URL.fullmatch(url):
            form = "with http:// or https:// and without a password, which devpi would show to everybody"
            return f"{_shown(url)}: {allowed}, {form}"
        if end := BELOW.search(url):
            return f'{_shown(url)}: {allowed}, which is "{url[: end.start() + 1]}"'
    places = [url.rstrip("/") for url in urls]
    if twice := sorted({place for place in places if places.count(place) > 1}):
        return f"{_shown(twice[0])} twice: each place is asked once, take one of them out"
    return ""


def devpi_upstream_urls(value: Any, known: Mapping[str, str]) -> list[str]:
    """Return the URLs of `devpi_upstream` in order, with a slash at the end; "official" for the official index.

    Args:
        value: The variable.
        known: URLs of the words, "" for the official index.
    """
    found = [known.get(entry, entry) for entry in (value if isinstance(value, list) else [value])]
    return [f"{url.rstrip('/')}/" if url else OFFICIAL for url in found]


def devpi_ways_out(urls: Sequence[str]) -> list[Settings]:
    """Return the upstreams in the words of module python_venv_way_out, each by itself."""
    return [
        {
            "what": "the upstream of root/pypi",
            "variable": "devpi_upstream",
            "urls": ["" if url == OFFICIAL else url],
        }
        for url in urls
    ]


def _of_lists(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield lists that are none or hold something wrong, and an address that is none."""
    names = given["devpi_server_names"]
    if not isinstance(names, list) or not all(isinstance(item, str) and HOST.fullmatch(item) for item in names):
        yield (
            "devpi_server_names",
            f"devpi_server_names is {_shown(names)}: it must be a list of host names, without scheme, port or path, "
            "for example [pypi.lab.lan]; in an INI inventory devpi_server_names=['pypi.lab.lan'], with -e "
            '\'{"devpi_server_names": ["pypi.lab.lan"]}\'',
        )
    for name in ("devpi_block", "devpi_allow"):
        rules = given[name]
        if not isinstance(rules, list):
            yield (
                name,
                f'{name} is {_shown(rules)}: it must be a list of names, names with versions or "*", for example '
                f"[evil, \"pkg>=2,<2.3\"]; in an INI inventory {name}=['evil']",
            )
            continue
        wrong = [f"{_shown(rule)}: {why}" for rule in rules if (why := _rule_problem(rule))]
        if wrong:
            yield name, f"{name} has {'; '.join(wrong)}"
    urls = given["devpi_files_from"]
    if not isinstance(urls, list):
        yield (
            "devpi_files_from",
            f"devpi_files_from is {_shown(urls)}: it must be a list of URLs below which packages/ stands, for example "
            "[https://mirror.example.org/pypi/]; in an INI inventory "
            "devpi_files_from=['https://mirror.example.org/pypi/']",
        )
    elif problem := _place_problem(urls):
        yield "devpi_files_from", f"devpi_files_from has {problem}"
    address = given["devpi_address"]
    try:
        if address != "":
            ipaddress.ip_address(address if isinstance(address, str) else "")
    except ValueError:
        yield (
            "devpi_address",
            f"devpi_address is {_shown(address)}: it must be empty or an IPv4 or IPv6 address, for example 192.0.2.10",
        )


def _of_upstream(given: Mapping[str, Any], right: set[str]) -> Iterator[tuple[str, str]]:
    """Yield what does not go together about the upstream of root/pypi."""
    url, page, upstream = given["devpi_mirror_url"], given["devpi_mirror_web_url_fmt"], given["devpi_upstream"]
    upstreams = upstream if isinstance(upstream, list) else [upstream]
    if not isinstance(url, str):
        yield (
            "devpi_mirror_url",
            f"devpi_mirror_url is {_shown(url)}: it must be a text, empty unless devpi_upstream is custom",
        )
    elif "custom" in upstreams and not PUBLIC_URL.fullmatch(url):
        yield (
            "devpi_mirror_url",
            f"devpi_mirror_url is {_shown(url)}: for devpi_upstream custom it must be the URL of a simple index, with "
            "http:// or https:// and without a password, which devpi would show to everybody; for example "
            "https://mirror.example.org/pypi/simple/",
        )
    elif "custom" not in upstreams and (url or page) and {"devpi_upstream", "devpi_mirror_web_url_fmt"} <= right:
        yield (
            "devpi_mirror_url",
            f"devpi_mirror_url is {_shown(url)} and devpi_mirror_web_url_fmt is {_shown(page)}, but devpi_upstream is "
            f"{_shown(upstream)}, which has its own: set devpi_upstream to custom, or leave both empty",
        )


def _of_folders(given: Mapping[str, Any], right: set[str]) -> Iterator[tuple[str, str]]:
    """Yield folders that lie in each other."""
    for name in ("devpi_data_dir", "devpi_backup_dir"):
        if name in right and {".", ".."} & set(given[name].split("/")):
            yield name, f"{name} is {_shown(given[name])}: it must be an absolute path without . and .. in it"
    if {"devpi_data_dir", "devpi_backup_dir"} <= right:
        data, backups = PurePosixPath(given["devpi_data_dir"]), PurePosixPath(given["devpi_backup_dir"])
        if data.is_relative_to(backups) or backups.is_relative_to(data):
            yield (
                "devpi_backup_dir",
                f'devpi_backup_dir is "{backups}" and devpi_data_dir is "{data}": neither may be in the other, for '
                "example /var/backups/devpi and /var/lib/devpi",
            )


def _of_ports(given: Mapping[str, Any], right: set[str]) -> Iterator[tuple[str, str]]:
    """Yield a port that leaves no room for those after it."""
    peers = given["devpi_peers"]
    if "devpi_port" in right and isinstance(peers, list):
        first, needed = _number(given["devpi_port"]) or 0, FIRST_PEER + len(peers)
        last = 65536 - needed
        if first > last:
            yield (
                "devpi_port",
                f'devpi_port is "{first}": this server needs {needed} ports from there on, so it may be at most {last}',
            )


def devpi_ports(first: int, peers: int) -> list[Settings]:
    """Return the ports that the cache needs, in the words of role nginx's entry point `ports`."""
    ports = [*range(first, first + PORTS), *range(first + FIRST_PEER, first + FIRST_PEER + peers)]
    return [
        {
            "port": port,
            "addresses": ["127.0.0.1"],
            "unit": "devpi.service" if port == first else "nginx.service",
            "variable": "devpi_port",
            "note": f"The cache needs these ports of the loopback address: {', '.join(map(str, ports))}.",
        }
        for port in ports
    ]


def devpi_declared(indexes: Mapping[str, Settings], pypi: Settings, mirror: Settings) -> dict[str, Settings]:
    """Return all indexes with what they have by default.

    Args:
        indexes: The declared ones, by user/index.
        pypi: Settings of root/pypi, which is always there; `indexes` may add to them.
        mirror: What every mirror has unless it says otherwise.
    """
    done = {}
    for name, settings in {"root/pypi": {}, **indexes}.items():
        given = _converted(settings)
        if name == "root/pypi":
            done[name] = {**mirror, **pypi, **given}
        elif given.get("type") == "mirror":
            done[name] = {"volatile": True, **mirror, **given}
        else:
            owner = name.partition("/")[0]
            stage = {"volatile": True, "bases": [], "acl_upload": [owner], "acl_toxresult_upload": [":AUTHENTICATED:"]}
            done[name] = {**stage, **given}
        for key in RULES:
            if isinstance(done[name].get(key), list):
                done[name][key] = "\n".join(rule.strip() for rule in done[name][key])
        for key in PLACES:
            if key in done[name]:
                done[name][key] = [url if url == OFFICIAL else f"{url.rstrip('/')}/" for url in done[name][key]]
    return done


def _rule_problem(rule: Any) -> str:
    """Return what is wrong with a rule of `block` or `allow`, "" for nothing (policy.parse of the plugin)."""
    if rule == "*":
        return ""
    try:
        found = Requirement(rule if isinstance(rule, str) else "")
    except InvalidRequirement:
        return 'it must be a name, a name with versions such as "pkg>=2,<2.3", or "*"'
    if found.extras or found.marker or found.url:
        return "it must be a name or a name with versions, without extras, markers and URLs"
    return ""


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


def devpi_index_problems(indexes: Any, users: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is wrong with the declared indexes, each with the name and the fix; empty when all is well."""
    if not isinstance(indexes, Mapping):
        return [
            f"devpi_indexes is {_shown(indexes)}: it must be a mapping of user/index to settings, for example "
            "{lab/dev: {type: stage, bases: [root/pypi]}}"
        ]
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
    settings = _converted(settings)
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
        yield from (f"{where} has {problem}" for problem in _of_value(key, value))


def _of_value(key: str, value: Any) -> Iterator[str]:
    """Yield what is wrong with the value of a setting of an index, with its name."""
    if key in LISTS and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        yield f"{key} {value!r}: it must be a list of texts"
    elif key == "file_hosts":
        yield from (
            f'"{host}" in {key}: it must be a host or host:port' for host in value if not FILE_HOST.fullmatch(host)
        )
    elif key == "files_from" and (problem := _place_problem(value)):
        yield f"{key} {problem}"
    elif key == "fallback_urls":
        for url in value:
            if url != OFFICIAL and not PUBLIC_URL.fullmatch(url):
                yield (
                    f"{_shown(url)} in {key}: it must be {OFFICIAL} or the URL of a simple index, with http:// or "
                    "https:// and without a password, which devpi would show to everybody"
                )
    elif key in RULES:
        yield from (f'"{rule}" in {key}: {why}' for rule in value if (why := _rule_problem(rule)))
    elif key == "min_age_undated" and value not in CHOICES["devpi_min_age_undated"]:
        yield f"{key} {value!r}: allowed are hidden, shown"
    elif key in INDEX_SWITCHES and not isinstance(value, bool):
        yield f"{key} {value!r}: allowed are true, false"
    elif key in INDEX_NUMBERS:
        most = INDEX_NUMBERS[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (most and value > most):
            yield f"{key} {value!r}: it must be a whole number, {'0 or more' if most is None else f'from 0 to {most}'}"


def _of_url(where: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with where a mirror fetches from."""
    url = settings.get("mirror_url")
    if settings.get("official") is True and settings.get("flat") is True:
        yield f"{where} is both official and flat: the official index is not flat; take one of them out"
    if settings.get("fallback_urls") and settings.get("flat") is True:
        yield f"{where} is flat and has fallback_urls: a flat index has one upstream; take one of them out"
    urls = [str(each).rstrip("/") for each in settings.get("fallback_urls") or []]
    urls.append(OFFICIAL if settings.get("official") is True else str(url).rstrip("/"))
    if twice := sorted({each for each in urls if urls.count(each) > 1}):
        yield f"{where} has the upstream {_shown(twice[0])} twice (mirror_url, fallback_urls): take one of them out"
    if settings.get("official") is True:
        if url is not None:
            yield f"{where} has both official and mirror_url: take one of them out"
    elif url is None:
        yield f"{where} is a mirror without a URL: set mirror_url, or official: true"
    elif not (isinstance(url, str) and URL.fullmatch(url)):
        yield (
            f"{where} has mirror_url {_shown(url)}: it must begin with http:// or https:// and hold no password, "
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
            "devpi_ports": devpi_ports,
            "devpi_problems": devpi_problems,
            "devpi_upstream_urls": devpi_upstream_urls,
            "devpi_ways_out": devpi_ways_out,
        }
