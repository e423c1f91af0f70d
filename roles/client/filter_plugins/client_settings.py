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
NEW_FOLDERS = " [new folders: {}]"
NEW_LINE = " [line ended]"

BOM = "\ufeff"
MOST_ALIASES = 20

_BEGIN_LINE = re.compile(r"[ \t]*# lanmirror: begin\b.*")
_NEW_FOLDERS = re.compile(r"\[new folders: (\d+)\]")
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
    if odd := _ODD_BREAK.search(text):
        line = text.count("\n", 0, odd.start()) + 1
        raise SettingsError("it has a line break that is neither \\n nor \\r\\n", line)


def new_folders(text: str | None) -> int:
    """Return how many folders were made for the file that holds this text."""
    found = _NEW_FOLDERS.search(text or "")
    return int(found[1]) if found else 0


def remove(text: str) -> str | None:
    """Take our lines out and give replaced lines back, also where somebody took our block out by hand and left those.

    Returns:
        The text as it was before, or None when the file was ours and nothing else is in it.

    Raises:
        SettingsError: a marker has lost its partner, so that nobody can tell which lines are ours.
    """
    mark = BOM if text.startswith(BOM) else ""
    out: list[str] = []
    begun: int | None = None
    new_file = False
    for number, line in enumerate(_lines(text.removeprefix(BOM)), start=1):
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
    rest = mark + "".join(out)
    return None if new_file and not rest else rest


def _keep(lines: list[str], numbers: Sequence[int]) -> None:
    """Turn lines (numbered from 0) into comments that `remove` can undo."""
    for number in numbers:
        lines[number] = KEPT + lines[number]


def _insert(lines: list[str], at: int, ours: Sequence[str], indent: str = "", flags: str = "") -> None:
    """Put a marked block before line `at` (numbered from 0)."""
    if at == len(lines) and lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
        flags += NEW_LINE
    block = [BEGIN + flags, *ours, END]
    lines[at:at] = [f"{indent}{line}\n" for line in block]


def _new_file(text: str | None, folders: int) -> str:
    """Return the flags of a block in a file that we make, or in one that is not ours alone."""
    if text is not None and remove(text) is not None:
        return ""
    folders = folders if text is None else new_folders(text)
    return NEW_FILE + (NEW_FOLDERS.format(folders) if folders else "")


# ---- pip.conf ---------------------------------------------------------------------------------------------


def pip_name(name: str) -> str:
    """Give an option's name as pip compares it, and --index-url for its other name."""
    plain = name.strip().lower().replace("_", "-").removeprefix("--")
    return "index-url" if plain == "pypi-url" else plain


def parse_pip(text: str) -> dict[str, dict[str, str]]:
    """Read a pip.conf as pip does: {section: {option: value}}, options under pip's names for them.

    Raises:
        SettingsError: pip itself would stop at this file.
    """
    if text.startswith(BOM):
        raise SettingsError("it starts with a byte order mark, which pip cannot read; save it as plain UTF-8", 1)
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


def _pip_wanted(
    before: Mapping[str, Mapping[str, str]], settings: Mapping[str, str], elsewhere: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """Give what each section must say, so that ours counts: pip's [install] beats [global], in whichever file it is."""
    names = ["global", *(name for name in (*before, *elsewhere) if name not in ("global", "DEFAULT"))]
    wanted = {}
    for section in dict.fromkeys(names):
        there = before.get(section, {})
        known = settings if section == "global" else {**there, **elsewhere.get(section, {})}
        ours = {name: value for name, value in settings.items() if known.get(name)}
        # Hosts that the user trusts already stay beside ours.
        if "trusted-host" in ours and (theirs := there.get("trusted-host", "").split()):
            ours["trusted-host"] = " ".join(dict.fromkeys([*theirs, settings["trusted-host"]]))
        if ours:
            wanted[section] = ours
    return wanted


def apply_pip(
    text: str | None,
    settings: Mapping[str, str],
    elsewhere: Mapping[str, Mapping[str, str]] | None = None,
    folders: int = 0,
) -> str:
    """Put options into a pip.conf: into [global], and into each section that has them and would override it.

    Args:
        text: the file, or None when there is none.
        settings: values under pip's names; for `trusted-host` hosts that are there already stay beside ours.
        elsewhere: sections of files that count less than this one, as `parse_pip` gives them.
        folders: how many folders a new file needs.

    Raises:
        SettingsError: see `parse_pip` and `remove`.
    """
    source = (None if text is None else remove(text)) or ""
    _check_breaks(source)
    before = parse_pip(source)
    wanted = _pip_wanted(before, settings, elsewhere or {})

    lines = _lines(source)
    headers: dict[str, int] = {}
    for section, option, first, after in list(_pip_options(lines)):
        if not option:
            headers[section] = first
        elif pip_name(option) in wanted.get(section, {}):
            _keep(lines, range(first, after))
    missing = [name for name in wanted if name not in headers]
    if missing:
        ours = [line for name in missing for line in (f"[{name}]", *_pip_lines(wanted[name]))]
        _insert(lines, len(lines), ours, flags=_new_file(text, folders))
    for section, header in sorted(headers.items(), key=lambda item: -item[1]):
        if section in wanted:
            # As deep as what follows, or configparser takes that for the rest of our last value.
            rest = (line for line in lines[header + 1 :] if line.strip() and line.lstrip()[0] not in "#;")
            following = next(rest, "")
            indent = following[: len(following) - len(following.lstrip())]
            _insert(lines, header + 1, _pip_lines(wanted[section]), indent)
    result = "".join(lines)

    expected = {**before, **{name: {**before.get(name, before["DEFAULT"]), **ours} for name, ours in wanted.items()}}
    if parse_pip(result) != expected:
        raise SettingsError("it is written in a way that cannot be edited safely; put its sections into plain form")
    return result


def _pip_lines(options: Mapping[str, str]) -> list[str]:
    return [f"{name} = {value}" for name, value in options.items()]


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
    if _compose(text) is None:
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
        aliases = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader))
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise _yaml_error(error) from error
    if aliases > MOST_ALIASES:
        # Each may stand for all before it: a file of a few lines could keep the controller busy for ever.
        raise SettingsError(f"it has more than {MOST_ALIASES} aliases (*name); write the values out")
    if root is None or (isinstance(root, yaml.ScalarNode) and root.tag == "tag:yaml.org,2002:null"):
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


def apply_conda(text: str | None, settings: Mapping[str, Any], folders: int = 0) -> str:
    """Put keys into a .condarc.

    Args:
        text: the file, or None when there is none.
        settings: values by key. A mapping is merged with what is there, entry by entry; `channels` are written only
            where the file has none; any other value replaces what is there.
        folders: how many folders a new file needs.

    Raises:
        SettingsError: see `parse_conda` and `remove`.
    """
    source = (None if text is None else remove(text)) or ""
    mark = BOM if source.startswith(BOM) else ""
    source = source.removeprefix(BOM)
    _check_breaks(source)
    before = parse_conda(source)
    wanted = dict(settings)
    if conda_channels(before):
        wanted.pop("channels", None)
    theirs = before.get("custom_multichannels")
    if isinstance(theirs, Mapping) and theirs.get("defaults") and "default_channels" in wanted:
        # It beats default_channels.
        wanted["custom_multichannels"] = {"defaults": wanted["default_channels"]}
    expected = before | {name: _merged(before.get(name), value) for name, value in wanted.items()}
    flags = _new_file(text, folders)
    for edit in (_key_by_key, _anew):
        try:
            result = edit(source, before, wanted, flags)
            if parse_conda(result) == expected:
                return mark + result
        except (SettingsError, yaml.YAMLError, RecursionError):
            continue
    raise SettingsError("it is written in a way that cannot be edited safely; write one plain key to a line")


def _merged(there: Any, wanted: Any) -> Any:
    return {**there, **wanted} if isinstance(there, Mapping) and isinstance(wanted, Mapping) else wanted


def _key_by_key(source: str, before: Mapping[str, Any], wanted: Mapping[str, Any], flags: str) -> str:
    """Replace the lines of single keys, and put ours before the first."""
    root = _compose(source)
    if root is not None and root.flow_style:
        raise SettingsError("it is one mapping in braces")
    lines = _lines(source)
    indent = " " * (root.start_mark.column if root else 0)
    top = dict(wanted)
    nested: list[tuple[int, list[str], str]] = []
    for key, value in root.value if root else ():
        if key.value not in wanted:
            continue
        ours, there = wanted[key.value], before[key.value]
        merge = isinstance(ours, Mapping) and isinstance(there, Mapping)
        if merge and isinstance(value, yaml.MappingNode) and not value.flow_style and value.value:
            # Our entries go first into the user's own mapping, whose other lines stay.
            for entry, content in value.value:
                if entry.value in ours:
                    _keep(lines, range(entry.start_mark.line, _last_line(content) + 1))
            entries = [f"{_plain(name)}: {_plain(url)}" for name, url in ours.items()]
            nested.append((key.end_mark.line + 1, entries, " " * value.start_mark.column))
            del top[key.value]
        else:
            _keep(lines, range(key.start_mark.line, max(_last_line(value), key.start_mark.line) + 1))
            top[key.value] = _merged(there, ours)
    for at, entries, depth in sorted(nested, reverse=True):
        _insert(lines, at, entries, depth)
    if top:
        block = [line for name, value in top.items() for line in _block(name, value)]
        _insert(lines, min(_document_start(source), len(lines)), block, indent, flags)
    return "".join(lines)


def _anew(source: str, before: Mapping[str, Any], wanted: Mapping[str, Any], flags: str) -> str:
    """Turn the whole document into comments, and write it anew with ours, as where it stands in braces."""
    lines = _lines(source)
    _keep(lines, [number for number, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")])
    whole = {**before} | {name: _merged(before.get(name), value) for name, value in wanted.items()}
    dumped = yaml.safe_dump(whole, default_flow_style=False, sort_keys=False, allow_unicode=True, width=1000)
    _insert(lines, len(lines), dumped.splitlines(), flags=flags)
    return "".join(lines)


def conda_channels(settings: Mapping[str, Any]) -> bool:
    """Tell whether a .condarc sets channels; `channel` is conda's other name for them."""
    return bool(settings.get("channels") or settings.get("channel"))


def conda_settings(
    server_url: str, repos: Sequence[str], channels: Sequence[str], ca_bundle: str = ""
) -> dict[str, Any]:
    """Give conda's settings for a server; `custom_channels` holds base URLs without the channel's name.

    conda and mamba know only the authorities that they bring along, or those of `ca_bundle`, the path of a file.
    """
    base = f"{server_url.rstrip('/')}/anaconda"
    settings: dict[str, Any] = {"show_channel_urls": True}
    # conda 26.1 and newer have none by themselves. A label is for who asks for it by name.
    usual = ["defaults"] if repos else [name for name in channels if "/label/" not in name]
    if usual:
        settings["channels"] = usual
    if repos:
        settings["default_channels"] = [f"{base}/pkgs/{repo}" for repo in repos]
    if channels:
        settings["custom_channels"] = dict.fromkeys(channels, f"{base}/cloud")
    if ca_bundle:
        settings["ssl_verify"] = ca_bundle
    return settings


# ---- what else counts --------------------------------------------------------------------------------------

# The rank of the files that we write among those that the tools read, see the module client_files.
_RANK = {"pip": {"machine": 1, "user": 3}, "conda": {"machine": 0, "user": 50}}
# pip options by which any file goes past the server.
_PIP_BESIDE = ("extra-index-url", "no-index")


def _rank(target: Mapping[str, Any]) -> int:
    return _RANK[target["tool"]]["user" if target["user"] else "machine"]


def _parsed(other: Mapping[str, Any]) -> dict[str, Any]:
    """Parse a file of pip or conda without our lines; empty where it cannot be read, as the tools themselves say."""
    try:
        text = remove(other["content"]) or ""
        return parse_pip(text) if other["tool"] == "pip" else parse_conda(text.removeprefix(BOM))
    except SettingsError:
        return {}


def _below(others: Sequence[Mapping[str, Any]], target: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Parse the files that count less than the target, lowest first."""
    found = [
        other
        for other in others
        if other["tool"] == target["tool"] and other["user"] in ("", target["user"]) and other["rank"] < _rank(target)
    ]
    return [_parsed(other) for other in sorted(found, key=lambda other: int(other["rank"]))]


def _pip_notes(other: Mapping[str, Any], settings: Mapping[str, str], *, above: bool) -> list[str]:
    """Name the options of a pip.conf that count more than ours, or that go past the server."""
    names = []
    for section, options in _parsed(other).items():
        for name, value in options.items():
            ours = settings.get(name)
            agrees = ours in value.split() if name == "trusted-host" else ours == value
            if value and (name in _PIP_BESIDE or (above and ours is not None and not agrees)):
                names.append(f"[{section}] {name}")
    return names


def _conda_notes(other: Mapping[str, Any], settings: Mapping[str, Any], *, above: bool) -> list[str]:
    """Name the keys of a .condarc that count beside ours, or more."""
    found = _parsed(other)
    # Channels of the machine's own files are in place of ours, those of a user come before ours.
    names = [name for name in ("channels", "channel") if other["user"] and "channels" in settings and found.get(name)]
    names += ["default_channels"] if found.get("default_channels") and "default_channels" in settings else []
    multi, custom = found.get("custom_multichannels"), found.get("custom_channels")
    if isinstance(multi, Mapping) and multi.get("defaults") and "default_channels" in settings:
        names.append("custom_multichannels: defaults")
    if isinstance(custom, Mapping) and above:
        ours = settings.get("custom_channels", {})
        names += [f"custom_channels: {name}" for name, url in custom.items() if ours.get(name, url) != url]
    ssl = settings.get("ssl_verify")
    if above and ssl is not None and found.get("ssl_verify", ssl) != ssl:
        names.append("ssl_verify")
    return names


# ---- what the tasks call ----------------------------------------------------------------------------------


def client_targets(
    tools: Sequence[str], users: Sequence[str], known: Sequence[str], paths: Mapping[str, Mapping[str, str]]
) -> list[dict[str, Any]]:
    """List the files that the tools read: the machine's and those of users.

    Args:
        tools: see client_tools.
        users: see client_users.
        known: users whose files may hold our lines from earlier runs; "" stands for the machine.
        paths: by tool, the path for the machine and for a user.

    Returns:
        Mappings with `key` (for messages, unique), `tool`, `user` ("" for the machine), `path`, and `wanted`: whether
        the settings go in or only out.
    """
    return [
        {
            "key": paths[tool]["user"].replace("~", f"~{user}", 1) if user else paths[tool]["machine"],
            "tool": tool,
            "user": user,
            "path": paths[tool]["user" if user else "machine"],
            "wanted": tool in tools and user in (users or [""]),
        }
        for user in dict.fromkeys([*(users or [""]), *known])
        for tool in paths
    ]


def _settings(
    urls: Mapping[str, str], repos: Sequence[str], channels: Sequence[str], ca_bundle: str
) -> dict[str, dict[str, Any]]:
    """Give the settings of each tool that has a server."""
    given: dict[str, dict[str, Any]] = {}
    if urls["pip"]:
        given["pip"] = pip_settings(urls["pip"], ca_bundle)
    # Without a repo and a channel there is nothing that conda could ask the server for.
    if urls["conda"] and (repos or channels):
        given["conda"] = conda_settings(urls["conda"], repos, channels, ca_bundle)
    return given


def client_plan(
    found: Mapping[str, Any],
    targets: Sequence[Mapping[str, Any]],
    urls: Mapping[str, str],
    repos: Sequence[str],
    channels: Sequence[str],
    *,
    ca_bundle: str = "",
) -> list[dict[str, Any]]:
    """Work out what each file shall hold.

    Args:
        found: result of the module client_files with `state: read`.
        targets: see `client_targets`.
        urls: URL of each tool's server; empty: our lines are taken out.
        repos: see client_conda_repos.
        channels: see client_conda_channels.
        ca_bundle: path of the file of authorities that the tools shall use; empty for their own.

    Returns:
        For each target `key`, `user`, `path`, `content` (None: the file shall not be there), `folders` that go with it,
        whether it is `changed`, and `problem` (None: there is none).
    """
    given = _settings(urls, repos, channels, ca_bundle)
    plan = []
    for target, read in zip(targets, found["files"], strict=True):
        before, settings = read["content"], given.get(target["tool"]) if target["wanted"] else None
        after, problem = before, read["problem"] or None
        if problem is None:
            try:
                if settings is not None:
                    after = _apply(before, target, settings, found["others"], read["folders"])
                elif before is not None:
                    after = remove(before)
            except SettingsError as error:
                problem = f"line {error.line}: {error}" if error.line else str(error)
            if after != before and read["unwritable"]:
                problem = f"it cannot be written ({read['unwritable']})"
        elif settings is None and read["gone"]:
            problem = None
        plan.append(
            {
                "key": target["key"],
                "user": target["user"],
                "path": target["path"],
                "content": after,
                "changed": problem is None and after != before,
                "folders": new_folders(before),
                "problem": problem and f"{read['path']}: {problem}",
            }
        )
    return plan


def _apply(
    text: str | None,
    target: Mapping[str, Any],
    settings: Mapping[str, Any],
    others: Sequence[Mapping[str, Any]],
    folders: int,
) -> str:
    below = _below(others, target)
    if target["tool"] == "pip":
        sections: dict[str, dict[str, str]] = {}
        for file in below:
            for section, options in file.items():
                sections.setdefault(section, {}).update(options)
        return apply_pip(text, settings, sections, folders)
    same = [o for o in others if o["tool"] == "conda" and o["user"] == target["user"] and o["rank"] > _rank(target)]
    if any(conda_channels(file) for file in (*below, *map(_parsed, same))):
        settings = {name: value for name, value in settings.items() if name != "channels"}
    return apply_conda(text, settings, folders)


def client_notes(
    found: Mapping[str, Any],
    targets: Sequence[Mapping[str, Any]],
    urls: Mapping[str, str],
    repos: Sequence[str],
    channels: Sequence[str],
    *,
    ca_bundle: str = "",
) -> list[str]:
    """Name what counts more than our settings, or goes past the server, and is not ours to edit; see `client_plan`."""
    given = _settings(urls, repos, channels, ca_bundle)
    look: dict[str, Callable[..., list[str]]] = {"pip": _pip_notes, "conda": _conda_notes}
    notes = []
    for target in (target for target in targets if target["wanted"] and target["tool"] in given):
        for other in found["others"]:
            mine = not target["user"] or other["user"] in ("", target["user"])
            if other["tool"] != target["tool"] or not mine:
                continue
            ours = other["rank"] == _rank(target) and other["user"] == target["user"]
            if ours and target["tool"] == "conda":
                continue
            names = look[target["tool"]](other, given[target["tool"]], above=other["rank"] > _rank(target))
            if names:
                notes.append(f"{other['path']}: {', '.join(names)}")
    for line in found["variables"]:
        if line["tool"] in given:
            notes.append(f"{line['path']}, line {line['line']}: {line['name']}")
    if "pip" in given and by_address(urls["pip"]):
        notes += [
            f"{pip['path']}: pip {pip['version']} cannot reach {urls['pip']}, an address with https; see docs/tls.md"
            for pip in found["pips_of_users"]
            if fails_by_address(pip["version"])
        ]
    return list(dict.fromkeys(notes))


def by_address(url: str) -> bool:
    """Tell whether a URL is https with an address for a host."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme == "https" and (":" in host or re.fullmatch(r"[\d.]+", host) is not None)


def fails_by_address(version: str) -> bool:
    """Tell whether a pip ends with a traceback for https by address: 24.2 to 26.0 (pip issue 12906)."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version))
    return (24, 2) <= numbers < (26, 1)


def client_broken_pips(url: str, pips: Sequence[Mapping[str, str]]) -> list[str]:
    """Name the pips of a machine that cannot reach a server at this URL."""
    failing = [pip for pip in pips if fails_by_address(pip["version"])] if by_address(url) else []
    return [f"pip {pip['version']} ({pip['path']})" for pip in failing]


def client_questions(
    urls: Mapping[str, str], repos: Sequence[str], channels: Sequence[str], tools: Sequence[str]
) -> list[dict[str, str]]:
    """List the URLs to ask for: one page of the PyPI cache, and the index of each Conda repo and channel.

    Returns:
        Mappings with `url`, and `name`: that of the repo or channel; empty where any answer will do.
    """
    questions = [{"url": f"{urls['pip'].rstrip('/')}/", "name": ""}] if "pip" in tools and urls["pip"] else []
    if "conda" in tools and urls["conda"]:
        names = [*(f"pkgs/{repo}" for repo in repos), *(f"cloud/{channel}" for channel in channels)]
        base = f"{urls['conda'].rstrip('/')}/anaconda"
        questions += [{"url": f"{base}/{name}/noarch/repodata.json", "name": name} for name in names]
    return questions


# Answers of a server that says no, be it for an upstream that gave nothing of what comes on demand (502, 504). Any
# other but 200 says nothing about what it has.
_THERE, _NOT_THERE = (200,), (403, 404, 410, 502, 504)


def client_silent(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which questions of `client_questions` had no usable answer, and why."""
    silent = []
    for answer in answers:
        question, status = answer["__client_question"], int(answer.get("status", -1))
        if status < 0:
            why = str(answer.get("msg", "no answer")).partition("Request failed: ")
            silent.append(f"{question['url']}: {why[2] or why[0]}")
        elif question["name"] and status not in _THERE + _NOT_THERE:
            silent.append(f"{question['url']} answers {status}")
    return silent


def client_missing(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the Conda repos and channels that the server says it does not have."""
    return [
        str(answer["__client_question"]["name"])
        for answer in answers
        if answer["__client_question"]["name"] and answer.get("status") in _NOT_THERE
    ]


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
            "client_broken_pips": client_broken_pips,
            "client_hosts": client_hosts,
            "client_missing": client_missing,
            "client_notes": client_notes,
            "client_other_hosts": client_other_hosts,
            "client_plan": client_plan,
            "client_questions": client_questions,
            "client_silent": client_silent,
            "client_targets": client_targets,
        }
