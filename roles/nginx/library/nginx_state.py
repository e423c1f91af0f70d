#!/usr/bin/python
"""Say whose Nginx a server has: whose main file it is, which other sites it serves, and what of them is in our way."""

from __future__ import annotations

import grp
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path, PurePosixPath

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
---
module: nginx_state
short_description: Read the configuration of Nginx as Nginx does, and change nothing
description:
  - Follows the includes from the main file on, as C(nginx -T) does, but also where a file of ours is broken or missing.
  - Needs nothing but Python on the host.
options:
  main:
    description: The main file.
    type: path
    default: /etc/nginx/nginx.conf
  ports:
    description: TCP ports that our servers are to listen on.
    type: list
    elements: int
    default: []
  tls_ports:
    description: Those of I(ports) that are to speak TLS.
    type: list
    elements: int
    default: []
  ipv6:
    description: Whether they are to listen on IPv6 as well.
    type: bool
    default: true
  default_server:
    description: Whether our server is to answer for all names that no other has.
    type: bool
    default: true
  names:
    description: Names and addresses that are to be ours.
    type: list
    elements: str
    default: []
  groups:
    description: Groups whose members are asked for.
    type: list
    elements: str
    default: []
author:
  - lanmirror
"""

EXAMPLES = """
- name: Look whose Nginx it is
  nginx_state:
    ports: [80]
  register: __nginx_found
"""

RETURN = """
main:
  description: >-
    Whose the main file is: C(none) (there is none), C(distribution) (as its package has it), C(ours) (as the role wrote
    it), C(edited) (ours, changed since), or C(administrator).
  type: str
  returned: always
others:
  description: Whatever else is served or set, in words.
  type: list
  elements: str
  returned: always
examples:
  description: Files of the distribution's example site, unchanged, that are served.
  type: list
  elements: str
  returned: always
in_the_way:
  description: Those of I(examples) that listen on one of I(ports).
  type: list
  elements: str
  returned: always
problems:
  description: Why our servers cannot listen on I(ports), in words.
  type: list
  elements: str
  returned: always
notes:
  description: Changes for requests to names that no site has, in words.
  type: list
  elements: str
  returned: always
sites:
  description: Sites that the role put in for other roles.
  type: list
  elements: str
  returned: always
user:
  description: The user of the worker processes.
  type: str
  returned: always
settings:
  description: The arguments of directives outside of C(http), by name.
  type: dict
  returned: always
members:
  description: The members of each of I(groups) that there is.
  type: dict
  returned: always
installed:
  description: Whether there is an Nginx.
  type: bool
  returned: always
"""

# The tuned main file carries the sha256 of all that follows this line.
OURS = re.compile(rb"^# Written by lanmirror\. sha256 of the lines below: ([0-9a-f]{64})\n", re.MULTILINE)
TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)|(?P<mark>[;{}])|(?P<quoted>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?P<word>(?:\\.|\$\{|[^\s;{\\])+)""",
    re.DOTALL,
)
SEARCH = "/usr/sbin:/usr/bin:/usr/local/sbin"
WILDCARDS = {"*": "", "0.0.0.0": "", "[::]": "::"}  # noqa: S104 -- nothing listens
CATCH_ALL = {"", "_", "localhost", "default_server"}
DEEPEST = 20
EXAMPLE_SITES = ("sites-available/default", "conf.d/default.conf")


# Runs a command: its exit code, output and errors.
Run = Callable[[list[str]], tuple[int, str, str]]


class BadConfigurationError(ValueError):
    """Nginx cannot read it either; the message names the file."""


@dataclass(frozen=True)
class Directive:
    """A directive, and the directives of its block."""

    name: str
    args: tuple[str, ...]
    file: Path
    block: tuple[Directive, ...] | None = None


@dataclass(frozen=True)
class Listen:
    """One address that a server listens on: "" is every IPv4 address, "::" every IPv6 address."""

    address: str
    low: int
    high: int
    flags: frozenset[str] = frozenset()

    @property
    def is_default(self) -> bool:
        """Whether it is said to be the default server."""
        return bool(self.flags & {"default_server", "default"})


@dataclass(frozen=True)
class Server:
    """A server of a configuration."""

    file: Path
    listens: tuple[Listen, ...]
    names: tuple[str, ...] = ("",)

    @property
    def catches_all(self) -> bool:
        """Whether its names say that it is meant for any name."""
        return not self.names or bool(CATCH_ALL.intersection(self.names))

    def __str__(self) -> str:
        names = " ".join(name or '""' for name in self.names[:3])
        return f"{self.file} (server_name {names})"


@dataclass
class Configuration:
    """What the main file and all that it includes say."""

    directives: tuple[Directive, ...] = ()
    includes: list[tuple[tuple[str, ...], str]] = field(default_factory=list)
    """Each include's context, such as ("http",), and its absolute pattern."""


class Tokens:
    """The tokens of a file: the kind of each, and its text."""

    def __init__(self, text: str, file: Path) -> None:
        self.text, self.file, self.at = text, file, 0

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield the tokens from where the reader is."""
        while self.at < len(self.text):
            match = TOKEN.match(self.text, self.at)
            if not match:
                raise BadConfigurationError(f"{self.file}: cannot read it from {self.text[self.at :][:20]!r} on")
            self.at = match.end()
            if match.lastgroup != "space":
                yield str(match.lastgroup), match.group()

    def skip_lua(self) -> None:
        """Go to the end of a block of Lua, after its first brace."""
        depth = 1
        while depth and self.at < len(self.text):
            depth += {"{": 1, "}": -1}.get(self.text[self.at], 0)
            self.at += 1


def _unquoted(kind: str, text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if kind == "quoted" else text


class Reader:
    """Reads a configuration as Nginx does."""

    def __init__(self, main: Path) -> None:
        self.main, self.folder = main, main.parent
        self.configuration = Configuration()

    def read(self) -> Configuration:
        """Read the main file and all that it includes.

        Raises:
            BadConfigurationError: Nginx cannot read it either.
        """
        self.configuration.directives = tuple(self._file(self.main, (), 0))
        return self.configuration

    def _file(self, file: Path, context: tuple[str, ...], depth: int) -> Iterator[Directive]:
        if depth > DEEPEST:
            raise BadConfigurationError(f"{file}: includes itself")
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise BadConfigurationError(f"{file}: {error.strerror}") from error
        yield from self._block(Tokens(text, file), context, depth)

    def _block(self, stream: Tokens, context: tuple[str, ...], depth: int) -> Iterator[Directive]:
        file = stream.file
        words: list[str] = []
        for kind, token in stream:
            if kind != "mark":
                words.append(_unquoted(kind, token))
            elif token == "}":  # noqa: S105 -- no password
                return
            elif not words:
                raise BadConfigurationError(f'{file}: unexpected "{token}"')
            elif token == ";":  # noqa: S105 -- no password
                if words[0] == "include" and len(words) > 1:
                    yield from self._include(words[1], file, context, depth)
                else:
                    yield Directive(words[0], tuple(words[1:]), file)
                words = []
            elif words[0].endswith("_by_lua_block"):
                stream.skip_lua()
                yield Directive(words[0], (), file)
                words = []
            else:
                block = tuple(self._block(stream, (*context, words[0]), depth))
                yield Directive(words[0], tuple(words[1:]), file, block)
                words = []
        if words:
            raise BadConfigurationError(f'{file}: no ";" after {" ".join(words)[:40]!r}')

    def _include(self, pattern: str, file: Path, context: tuple[str, ...], depth: int) -> Iterator[Directive]:
        absolute = str(self.folder / pattern)
        self.configuration.includes.append((context, absolute))
        # As Nginx does, which takes a literal path for one that must be there.
        found = sorted(glob(absolute)) if re.search(r"[*?\[]", absolute) else [absolute]  # noqa: PTH207
        for path in found:
            if not Path(path).exists():
                raise BadConfigurationError(f"{path}: no such file, included by {file}")
            yield from self._file(Path(path), context, depth + 1)


def walk(directives: Sequence[Directive], *names: str) -> Iterator[Directive]:
    """Yield the directives that are found by the names of blocks."""
    for directive in directives:
        if directive.name == names[0]:
            if len(names) == 1:
                yield directive
            elif directive.block is not None:
                yield from walk(directive.block, *names[1:])


def parse_listen(args: Sequence[str]) -> Listen | None:
    """Return the TCP address of a directive `listen`; None for a socket of another kind."""
    place, flags = args[0], frozenset(args[1:])
    if place.startswith("unix:") or flags & {"quic", "udp"}:
        return None
    match = re.fullmatch(r"(?:(?P<address>\[[^\]]*\]|[^:\[\]]*):)?(?P<low>\d+)(?:-(?P<high>\d+))?", place)
    if match:
        address, low = match["address"] or "", int(match["low"])
        high = int(match["high"] or low)
    else:
        address, low, high = place, 80, 80
    return Listen(WILDCARDS.get(address, address.strip("[]")), low, high, flags)


def servers(configuration: Configuration, kind: str) -> Iterator[Server]:
    """Yield the servers of the blocks `http` or `stream`, in the order in which Nginx takes them."""
    for directive in walk(configuration.directives, kind, "server"):
        block = directive.block or ()
        given = [parse_listen(one.args) for one in block if one.name == "listen" and one.args]
        listens = tuple(one for one in given if one)
        if not given and kind == "http":
            listens = (Listen("", 80, 80),)
        names = tuple(name.lower() for one in block if one.name == "server_name" for name in one.args)
        yield Server(directive.file, listens, names or ("",))


def is_distributions(file: Path, conffiles: dict[str, str]) -> bool:
    """Whether a file is as its package has it."""
    wanted = conffiles.get(str(file))
    return bool(wanted) and hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() == wanted


def whose(main: Path, conffiles: dict[str, str]) -> str:
    """Return whose the main file is, see RETURN."""
    if not main.exists():
        return "none"
    text = main.read_bytes()
    match = OURS.search(text)
    if match:
        right = hashlib.sha256(text[match.end() :]).hexdigest().encode() == match[1]
        return "ours" if right else "edited"
    return "distribution" if is_distributions(main, conffiles) else "administrator"


@dataclass(frozen=True)
class Wanted:
    """What our servers are to listen on, see the options."""

    ports: tuple[int, ...] = ()
    tls_ports: tuple[int, ...] = ()
    ipv6: bool = True
    default_server: bool = True
    names: tuple[str, ...] = ()

    @property
    def families(self) -> tuple[str, ...]:
        """The addresses that ours listen on, as Listen names them."""
        return ("", "::") if self.ipv6 else ("",)


ANOTHER_PORT = "Set nginx_port (with TLS: nginx_tls_port) to another port"
PAGE = "See docs/existing-nginx.md."


def _on(server: Server, port: int) -> Iterator[Listen]:
    return (one for one in server.listens if one.low <= port <= one.high)


def _loopback(address: str) -> bool:
    return address.startswith("127.") or address in {"::1", "localhost"}


def _of_listen(server: Server, listen: Listen, port: int, wanted: Wanted) -> Iterator[str]:
    """Yield why one listen of theirs and ours cannot be together on a port."""
    if _loopback(listen.address):
        return
    if "proxy_protocol" in listen.flags:
        yield (
            f"{server} listens on port {port} with proxy_protocol, which Nginx then expects of our clients as well. "
            f"{ANOTHER_PORT}."
        )
    if ("ssl" in listen.flags) is not (port in wanted.tls_ports):
        theirs, ours = ("https", "http") if "ssl" in listen.flags else ("http", "https")
        yield f"{server} speaks {theirs} on port {port}, where lanmirror's site is to speak {ours}. {ANOTHER_PORT}."
    if listen.address not in ("", "::"):
        yield (
            f"{server} listens on {listen.address}:{port} alone, so Nginx gives it every request to that address. "
            f'{ANOTHER_PORT}, or have that site "listen {port}".'
        )
    if listen.address == "::" and "ipv6only=off" in listen.flags:
        yield (
            f"{server} listens on [::]:{port} with ipv6only=off, which takes IPv4 as well. {ANOTHER_PORT}, or have "
            f'that site "listen {port}" and "listen [::]:{port}".'
        )


def _of_default(theirs: Sequence[Server], port: int, wanted: Wanted) -> Iterator[str]:
    """Yield whose default server is in our way, or whose we would become without a word."""
    said = set()
    for family in wanted.families:
        here = [(server, one) for server in theirs for one in _on(server, port) if one.address == family]
        explicit = [server for server, one in here if one.is_default]
        implied = [server for server, _ in here[:1] if server.catches_all]
        for server in explicit or implied:
            if server.file in said:
                continue
            if wanted.default_server:
                how = "is" if explicit else "is, as the first one,"
                more = "" if explicit else f', and in that file "listen {port} default_server"'
                yield (
                    f"{server} {how} the default server of port {port}, which lanmirror's site wants to be. "
                    f"{ANOTHER_PORT}; or set nginx_default_server to false, and nginx_server_names to the names and "
                    f"addresses of lanmirror's site{more}. {PAGE}"
                )
            elif not explicit:
                yield (
                    f"{server} is the default server of port {port} only because it comes first, and lanmirror's site "
                    f'would come before it: have it "listen {port} default_server" (with [::] as well where it listens '
                    f"there). {PAGE}"
                )
            said.add(server.file)


def problems(http: Sequence[Server], stream: Sequence[Server], wanted: Wanted) -> list[str]:
    """Return why our servers cannot listen on their ports beside these servers of others."""
    found: list[str] = []
    for port in wanted.ports:
        for server in http:
            for listen in _on(server, port):
                found += _of_listen(server, listen, port, wanted)
                same = sorted(set(wanted.names).intersection(server.names) - CATCH_ALL)
                if same and not _loopback(listen.address):
                    found.append(
                        f"{server} has the name {', '.join(same)} on port {port}, by which lanmirror's site is to be "
                        f"reached (nginx_server_names, nginx_tls_names, or the names of the sites). {ANOTHER_PORT}, or "
                        "give one of the two another name."
                    )
        found += [
            f"{server.file} has a stream server on port {port}. {ANOTHER_PORT}."
            for server in stream
            for listen in _on(server, port)
            if not _loopback(listen.address)
        ]
        found += _of_default(http, port, wanted)
    return list(dict.fromkeys(found))


def notes(http: Sequence[Server], wanted: Wanted) -> list[str]:
    """Return which site loses requests to names that none has, because it came first until now."""
    found = []
    for port in wanted.ports:
        first = [server for server in http for one in _on(server, port) if one.address in wanted.families][:1]
        explicit = any(one.is_default for server in http for one in _on(server, port))
        if first and not explicit and not first[0].catches_all:
            found.append(f"requests to port {port} for names that no site has, until now answered by {first[0]}")
    return found


def conffiles(run: Run) -> dict[str, str]:
    """Return the md5 of each configuration file of Nginx's packages, as dpkg knows it."""
    dpkg = shutil.which("dpkg-query")
    if not dpkg:
        return {}
    _, listed, _ = run([dpkg, "-W", "-f", "${Conffiles}\n", "nginx*"])
    rows = (line.split() for line in listed.splitlines())
    return {row[0]: row[1] for row in rows if len(row) == 2}  # noqa: PLR2004 -- obsolete ones have a third word


def is_ours(file: Path, folder: Path) -> bool:
    """Whether a file is one of the role's."""
    return file == folder / "conf.d/lanmirror.conf" or folder / "lanmirror" in file.parents


def complaint(run: Run, nginx: str, folder: Path) -> str:
    """Return what Nginx says against its configuration, but for what the role is about to write anew."""
    code, _, said = run([nginx, "-t", "-q"])
    ours = (f"{folder}/lanmirror/", f"{folder}/conf.d/lanmirror.conf", "/etc/lanmirror/")
    return "" if code == 0 or any(path in said for path in ours) else said.strip()


def compiled_user(run: Run, nginx: str) -> str:
    """Return the user that Nginx was built with."""
    match = re.search(r"--user=(\S+)", run([nginx, "-V"])[2])
    return match[1] if match else "nobody"


def state(main: Path, wanted: Wanted, run: Run, nginx: str) -> dict[str, object]:
    """Return what the module returns."""
    folder, known = main.parent, conffiles(run)
    owner = whose(main, known)
    found: dict[str, object] = {
        "main": owner,
        "others": [],
        "examples": [],
        "in_the_way": [],
        "problems": [],
        "notes": [],
        "sites": sorted(p.parent.name for p in folder.glob("lanmirror/*/locations.conf")),
        "user": "www-data",
        "settings": {},
        "installed": bool(nginx),
    }
    if owner == "none":
        return found
    try:
        configuration = Reader(main).read()
    except BadConfigurationError as error:
        text = f"Nginx's configuration cannot be read: {error}. Mend it first, then run `nginx -t`."
        return {**found, "problems": [text]}
    http, stream = list(servers(configuration, "http")), list(servers(configuration, "stream"))
    examples = {
        one.file
        for one in http
        if (real := one.file.resolve()).as_posix() in {f"{folder}/{name}" for name in EXAMPLE_SITES}
        and one.file.parent.name in {"sites-enabled", "conf.d"}
        and is_distributions(real, known)
    }
    theirs = [one for one in http if one.file not in examples and not is_ours(one.file, folder)]
    # The example site goes where it is in the way of ours, and only where ours takes its place.
    if not wanted.default_server:
        theirs = [one for one in http if not is_ours(one.file, folder)]
    others = [f"the site {one}" for one in http if one.file not in examples and not is_ours(one.file, folder)]
    others += [f"a block {d.name} in {d.file}" for d in configuration.directives if d.name in {"stream", "mail"}]
    blocks = list(walk(configuration.directives, "http"))
    others += [
        f"settings in {file}"
        for file in dict.fromkeys(d.file for block in blocks for d in block.block or () if d.name != "server")
        if file not in {main, folder / "mime.types"} and not is_ours(file, folder)
    ]
    site = PurePosixPath(folder / "conf.d/lanmirror.conf")
    wrong = problems(theirs, stream, wanted)
    if owner != "distribution" and not any(
        context == ("http",) and site.match(pattern) for context, pattern in configuration.includes
    ):
        wrong.append(
            f"{main} does not include {folder}/conf.d/*.conf, so Nginx would not see lanmirror's site. Add \"include "
            f'{folder}/conf.d/*.conf;" to its block http. {PAGE}'
        )
    said = complaint(run, nginx, folder) if nginx else ""
    if said:
        wrong.append(f"Nginx's configuration fails its own check before anything of ours: {said}. Mend it first.")
    users = [d.args[0] for d in walk(configuration.directives, "user") if d.args]
    plain = [d for d in configuration.directives if d.block is None]
    events = [d for block in walk(configuration.directives, "events") for d in block.block or ()]
    ports = set(wanted.ports)
    in_the_way = {one.file for one in http if one.file in examples and any(list(_on(one, port)) for port in ports)}
    return {
        **found,
        "others": list(dict.fromkeys(others)),
        "examples": sorted(map(str, examples)),
        "in_the_way": sorted(map(str, in_the_way)),
        "problems": wrong,
        "notes": notes(theirs, wanted) if wanted.default_server else [],
        "user": users[0] if users else compiled_user(run, nginx) if nginx else "www-data",
        "settings": {d.name: " ".join(d.args) for d in [*plain, *events]},
    }


def members(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the members of those of some groups that there are."""
    return {group.gr_name: group.gr_mem for group in grp.getgrall() if group.gr_name in names}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "main": {"type": "path", "default": "/etc/nginx/nginx.conf"},
            "ports": {"type": "list", "elements": "int", "default": []},
            "tls_ports": {"type": "list", "elements": "int", "default": []},
            "ipv6": {"type": "bool", "default": True},
            "default_server": {"type": "bool", "default": True},
            "names": {"type": "list", "elements": "str", "default": []},
            "groups": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    wanted = Wanted(
        tuple(given["ports"]),
        tuple(given["tls_ports"]),
        given["ipv6"],
        given["default_server"],
        tuple(name.lower().strip("[]") for name in given["names"]),
    )
    nginx = shutil.which("nginx", path=SEARCH) or ""
    module.exit_json(
        changed=False, members=members(given["groups"]), **state(Path(given["main"]), wanted, module.run_command, nginx)
    )


if __name__ == "__main__":
    main()
