"""Edit pip.conf and .condarc as text: our lines in, our lines out, every other byte as it was.

The file itself is the memory. What we add stands between two marker comments; a line of the user's that ours
replaces stays in its place as a comment that starts with `KEPT`. So `remove` needs nothing but the text, gives back
the very bytes that were there, and `apply` is `remove` followed by the insertion: applying twice is applying once,
and a changed variable leaves nothing of the old value behind.

Each result is parsed again and compared with what it must mean before it is handed out.

Sources: pip's documentation, "Configuration" (pip reads with `configparser.RawConfigParser`; names are compared in
lower case with hyphens); conda's documentation, "Using the .condarc conda configuration file".
"""

from __future__ import annotations

import configparser
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import yaml

BEGIN = "# lanmirror: begin (written by Ansible, goes with client_state: absent)"
END = "# lanmirror: end"
KEPT = "# lanmirror: kept: "
NEW_FILE = " [new file]"
NEW_LINE = " [line ended]"

_BEGIN_LINE = re.compile(r"[ \t]*# lanmirror: begin\b.*")
_END_LINE = re.compile(r"[ \t]*# lanmirror: end[ \t\r]*")
# Line breaks that a YAML parser or pip sees, and that a reader and `str.split("\n")` do not.
_ODD_BREAK = re.compile("\r(?!\n)|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


class SettingsError(ValueError):
    """The text cannot be edited; the message is for the administrator.

    Attributes:
        line: where, counted from 1, or None when it is about the whole file.
    """

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


# ---- text, whatever its syntax ----------------------------------------------------------------------------


def _lines(text: str) -> list[str]:
    """Split into lines that keep their ends; only a line feed ends a line."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _check_breaks(text: str) -> None:
    if text.startswith("\ufeff"):
        raise SettingsError("it starts with a byte order mark; save it as plain UTF-8", 1)
    if odd := _ODD_BREAK.search(text):
        line = text.count("\n", 0, odd.start()) + 1
        raise SettingsError("it has a line break that is neither \\n nor \\r\\n", line)


def remove(text: str) -> str | None:
    """Take our lines out and give replaced lines back.

    Returns:
        The text as it was before, or None when the file was ours and nothing else is in it.

    Raises:
        SettingsError: a marker has lost its partner, so that nobody can tell which lines are ours.
    """
    out: list[str] = []
    begun: int | None = None
    new_file = False
    for number, line in enumerate(_lines(text), start=1):
        bare = line.rstrip("\n")
        if _BEGIN_LINE.fullmatch(bare):
            if begun is not None:
                raise SettingsError('"# lanmirror: begin" a second time, without "# lanmirror: end"', number)
            begun = number
            new_file = new_file or NEW_FILE in bare
            if NEW_LINE in bare and out:
                out[-1] = out[-1].removesuffix("\n")
        elif _END_LINE.fullmatch(bare):
            if begun is None:
                raise SettingsError('"# lanmirror: end" without "# lanmirror: begin"', number)
            begun = None
        elif begun is None:
            out.append(line.removeprefix(KEPT))
    if begun is not None:
        raise SettingsError('"# lanmirror: begin" without "# lanmirror: end"', begun)
    rest = "".join(out)
    return None if new_file and not rest else rest


def _keep(lines: list[str], numbers: Sequence[int]) -> None:
    """Turn lines (numbered from 0) into comments that `remove` can undo."""
    for number in numbers:
        lines[number] = KEPT + lines[number]


def _insert(lines: list[str], at: int, ours: Sequence[str], indent: str = "", *, new_file: bool = False) -> None:
    """Put a marked block before line `at` (numbered from 0)."""
    flags = NEW_FILE if new_file else ""
    if at == len(lines) and lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
        flags += NEW_LINE
    block = [BEGIN + flags, *ours, END]
    lines[at:at] = [f"{indent}{line}\n" for line in block]


# ---- pip.conf ---------------------------------------------------------------------------------------------


def pip_name(name: str) -> str:
    """Give an option's name as pip compares it."""
    return name.strip().lower().replace("_", "-").removeprefix("--")


def parse_pip(text: str) -> dict[str, dict[str, str]]:
    """Read a pip.conf as pip does: {section: {option: value}}, options under pip's names for them.

    Raises:
        SettingsError: pip itself would stop at this file.
    """
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
    except configparser.ParsingError as error:
        errors = getattr(error, "errors", None)
        line = errors[0][0] if errors else getattr(error, "lineno", None)
        raise SettingsError("pip cannot read this line", line) from error
    except (configparser.DuplicateSectionError, configparser.DuplicateOptionError) as error:
        what = getattr(error, "option", None) or f"[{error.section}]"
        raise SettingsError(f"{what} stands there a second time, pip refuses that", error.lineno) from error
    except (configparser.Error, AttributeError) as error:
        raise SettingsError("pip cannot read this file") from error
    return {
        section: {pip_name(key): value or "" for key, value in parser.items(section)}
        for section in [parser.default_section, *parser.sections()]
    }


_SECTION = re.compile(r"\[(?P<name>.+)\]")
_OPTION = re.compile(r"(?P<name>.*?)\s*[=:]")


def _pip_options(lines: Sequence[str]) -> Iterator[tuple[str, str, int, int]]:
    """Yield (section, option, first line, line after the last) as configparser sees them.

    A section itself comes with "" for the option. Blank lines and comments at the end of a value belong to nobody.
    """
    section, option, first, last, indent = "", "", 0, 0, 0
    for number, line in enumerate(lines):
        bare = line.strip()
        if not bare or bare[0] in "#;":
            continue
        depth = len(line) - len(line.lstrip())
        if option and depth > indent:
            last = number + 1
            continue
        if option:
            yield section, option, first, last
            option = ""
        indent = depth
        if header := _SECTION.match(bare):
            section = header["name"]
            yield section, "", number, number + 1
        elif found := _OPTION.match(bare):
            option, first, last = found["name"], number, number + 1
    if option:
        yield section, option, first, last


def apply_pip(text: str | None, settings: Mapping[str, str]) -> str:
    """Put options into the section [global] of a pip.conf.

    Args:
        text: the file, or None when there is none.
        settings: values under pip's names; for `trusted-host` hosts that are there already stay beside ours.

    Raises:
        SettingsError: see `parse_pip` and `remove`.
    """
    original = None if text is None else remove(text)
    source = original or ""
    _check_breaks(source)
    before = parse_pip(source)
    settings = dict(settings)
    theirs = before.get("global", {}).get("trusted-host", "").split()
    if "trusted-host" in settings and theirs:
        settings["trusted-host"] = " ".join(dict.fromkeys([*theirs, settings["trusted-host"]]))
    ours = [f"{name} = {value}" for name, value in settings.items()]

    lines = _lines(source)
    header: int | None = None
    for section, option, first, after in list(_pip_options(lines)):
        if section == "global" and not option:
            header = first
        elif section == "global" and pip_name(option) in settings:
            _keep(lines, range(first, after))
    if header is None:
        _insert(lines, len(lines), ["[global]", *ours], new_file=original is None)
    else:
        # As deep as what follows, or configparser takes that for the rest of our last value.
        rest = (line for line in lines[header + 1 :] if line.strip() and line.lstrip()[0] not in "#;")
        following = next(rest, "")
        _insert(lines, header + 1, ours, following[: len(following) - len(following.lstrip())])
    result = "".join(lines)

    expected = {**before, "global": {**before.get("global", before["DEFAULT"]), **settings}}
    if parse_pip(result) != expected:
        raise SettingsError("it is written in a way that cannot be edited safely; put [global] into plain form")
    return result


def pip_settings(server_url: str, ca_bundle: str = "") -> dict[str, str]:
    """Give pip's settings for a server; `trusted-host` only where pip would refuse plain HTTP otherwise.

    Before 24.2, and on Python before 3.10, pip knows only the authorities that it brings along: with `ca_bundle`, the
    path of a file, it takes those instead.
    """
    parts = urlsplit(server_url)
    settings = {"index-url": f"{server_url.rstrip('/')}/root/pypi/+simple/"}
    if parts.scheme == "http":
        settings["trusted-host"] = parts.netloc
    if ca_bundle:
        settings["cert"] = ca_bundle
    return settings


# ---- .condarc ---------------------------------------------------------------------------------------------


def parse_conda(text: str) -> dict[str, Any]:
    """Read a .condarc.

    Raises:
        SettingsError: it is not YAML, or no mapping, or names a key twice.
    """
    root = _compose(text)
    if root is None:
        return {}
    try:
        loaded = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise _yaml_error(error) from error
    return dict(loaded)


def _yaml_error(error: Exception) -> SettingsError:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).split("\n", maxsplit=1)[0]
    return SettingsError(f"it is not YAML ({problem})", None if mark is None else mark.line + 1)


def _compose(text: str) -> yaml.MappingNode | None:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise _yaml_error(error) from error
    if root is None or (isinstance(root, yaml.ScalarNode) and root.tag == "tag:yaml.org,2002:null" and not root.value):
        return None
    if not isinstance(root, yaml.MappingNode):
        raise SettingsError("it is no mapping of keys to values", root.start_mark.line + 1)
    seen: set[str] = set()
    for key, _ in root.value:
        if key.value in seen:
            raise SettingsError(f'"{key.value}" stands there a second time', key.start_mark.line + 1)
        if isinstance(key, yaml.ScalarNode):
            seen.add(key.value)
    return root


def _last_line(node: yaml.Node) -> int:
    """Give the line (from 0) where a node's own text ends; a block collection's end mark is that of its successor."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        parts = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
        return max((_last_line(part) for part in parts), default=node.start_mark.line)
    end = node.end_mark
    return end.line - 1 if end.column == 0 and end.line > node.start_mark.line else end.line


def _plain(value: Any) -> str:
    """Write a scalar: plain where that means the same, else quoted."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][\w./+:\[\]-]*", value) and not value.endswith(":"):
        try:
            if yaml.safe_load(value) == value:
                return value
        except (yaml.YAMLError, ValueError):
            pass
    return json.dumps(value)


def _block(name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{name}:", *(f"  {_plain(key)}: {_plain(item)}" for key, item in value.items())]
    if isinstance(value, list):
        return [f"{name}:", *(f"  - {_plain(item)}" for item in value)]
    return [f"{name}: {_plain(value)}"]


def _document_start(text: str) -> int:
    """Give the first line (from 0) where top-level keys may stand: after `---`, else the first of all."""
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.DocumentStartEvent) and event.explicit and event.end_mark is not None:
            return event.end_mark.line + 1
    return 0


def apply_conda(text: str | None, settings: Mapping[str, Any]) -> str:
    """Put keys into a .condarc.

    Args:
        text: the file, or None when there is none.
        settings: values by key. A mapping is merged with what is there, entry by entry; any other value replaces it.

    Raises:
        SettingsError: see `parse_conda` and `remove`.
    """
    original = None if text is None else remove(text)
    source = original or ""
    _check_breaks(source)
    before = parse_conda(source)
    root = _compose(source)
    if root is not None and root.flow_style:
        raise SettingsError("it is one mapping in braces; write one key to a line", root.start_mark.line + 1)

    lines = _lines(source)
    indent = " " * (root.start_mark.column if root else 0)
    expected = dict(before)
    top = dict(settings)
    nested: list[tuple[int, list[str], str]] = []
    for key, value in root.value if root else ():
        if key.value not in settings:
            continue
        wanted, there = settings[key.value], before[key.value]
        merge = isinstance(wanted, Mapping) and isinstance(there, Mapping)
        if merge and isinstance(value, yaml.MappingNode) and not value.flow_style and value.value:
            # Our entries go first into the user's own mapping, whose other lines stay.
            for entry, content in value.value:
                if entry.value in wanted:
                    _keep(lines, range(entry.start_mark.line, _last_line(content) + 1))
            entries = [f"{_plain(name)}: {_plain(url)}" for name, url in wanted.items()]
            nested.append((key.end_mark.line + 1, entries, " " * value.start_mark.column))
            expected[key.value] = {**there, **wanted}
            del top[key.value]
        else:
            _keep(lines, range(key.start_mark.line, max(_last_line(value), key.start_mark.line) + 1))
            if merge:
                top[key.value] = {**there, **wanted}
    for at, entries, depth in sorted(nested, reverse=True):
        _insert(lines, at, entries, depth)
    expected.update(top)
    if top:
        ours = [line for name, value in top.items() for line in _block(name, value)]
        _insert(lines, min(_document_start(source), len(lines)), ours, indent, new_file=original is None)
    result = "".join(lines)

    try:
        fits = parse_conda(result) == expected
    except SettingsError:
        fits = False
    if not fits:
        raise SettingsError("it is written in a way that cannot be edited safely; write one plain key to a line")
    return result


def conda_settings(
    server_url: str, repos: Sequence[str], channels: Sequence[str], ca_bundle: str = ""
) -> dict[str, Any]:
    """Give conda's settings for a server; `custom_channels` holds base URLs without the channel's name.

    conda and mamba know only the authorities that they bring along, or those of `ca_bundle`, the path of a file.
    """
    base = f"{server_url.rstrip('/')}/anaconda"
    settings: dict[str, Any] = {"show_channel_urls": True}
    if repos:
        settings["default_channels"] = [f"{base}/pkgs/{repo}" for repo in repos]
    if channels:
        settings["custom_channels"] = dict.fromkeys(channels, f"{base}/cloud")
    if ca_bundle:
        settings["ssl_verify"] = ca_bundle
    return settings


# ---- what the tasks call ----------------------------------------------------------------------------------


def client_targets(
    tools: Sequence[str], users: Sequence[str], paths: Mapping[str, Mapping[str, str]]
) -> list[dict[str, str]]:
    """List the files that the tools read: the machine's, or those of each user.

    Returns:
        Mappings with `key` (for messages, unique), `tool`, `user` ("" for the machine) and `path`.
    """
    if not users:
        return [{"key": paths[t]["machine"], "tool": t, "user": "", "path": paths[t]["machine"]} for t in tools]
    return [
        {"key": paths[t]["user"].replace("~", f"~{user}", 1), "tool": t, "user": user, "path": paths[t]["user"]}
        for user in users
        for t in tools
    ]


def client_plan(
    files: Sequence[Mapping[str, Any]],
    urls: Mapping[str, str],
    repos: Sequence[str],
    channels: Sequence[str],
    *,
    ca_bundle: str = "",
) -> dict[str, dict[str, str | None]]:
    """Work out what each file shall hold.

    Args:
        files: results of the module client_file with `state: read`, with the target as `client_target`.
        urls: URL of each tool's server; empty: our lines are taken out.
        repos: see client_conda_repos.
        channels: see client_conda_channels.
        ca_bundle: path of the file of authorities that the tools shall use; empty for their own.

    Returns:
        By the target's key: `content` (None: the file shall not be there) and `problem` (None: there is none).
    """
    edits: dict[str, Callable[[str | None], str]] = {
        "pip": lambda text: apply_pip(text, pip_settings(urls["pip"], ca_bundle)),
        "conda": lambda text: apply_conda(text, conda_settings(urls["conda"], repos, channels, ca_bundle)),
    }
    plan: dict[str, dict[str, str | None]] = {}
    for read in files:
        target, text = read["client_target"], read.get("content")
        content, problem = None, read.get("problem") or None
        if problem is None:
            try:
                if urls[target["tool"]]:
                    content = edits[target["tool"]](text)
                elif text is not None:
                    content = remove(text)
            except SettingsError as error:
                line = f", line {error.line}" if error.line else ""
                problem = f"{read['path']}{line}: {error}"
        plan[target["key"]] = {"content": content, "problem": problem}
    return plan


def client_hosts(addresses: Mapping[str, str]) -> list[str]:
    """Give our lines of /etc/hosts, one for each name."""
    return [f"{address} {name} # lanmirror" for name, address in addresses.items()]


def client_other_hosts(ours: Sequence[str]) -> str:
    """Give a regular expression for lines that an earlier run wrote and that are not among `ours`."""
    return f"^(?!(?:{'|'.join(map(re.escape, ours))})$).*# lanmirror$" if ours else "# lanmirror$"


class FilterModule:
    """Filters of role client."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Give the filters by name."""
        return {
            "client_hosts": client_hosts,
            "client_other_hosts": client_other_hosts,
            "client_plan": client_plan,
            "client_targets": client_targets,
        }
