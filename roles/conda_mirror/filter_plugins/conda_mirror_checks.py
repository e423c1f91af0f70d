"""Checks of role conda_mirror's variables that need more than an expression, run on the controller.

The engine's own module `lanmirror_sync.config` judges its settings, so that role and engine cannot disagree. It
needs PyYAML and the standard library alone, both of which a controller has.

Source for the schedule: crontab(5) of Debian's cron.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

FILES = Path(__file__).resolve().parents[3] / "files"
PREFIX = "conda_mirror_"
PYTHON = (3, 11)
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
SWITCHES = (
    "conda_mirror_cron_enabled",
    "conda_mirror_delete",
    "conda_mirror_on_demand",
    "conda_mirror_remove_data",
)
# The texts that Ansible's filter `bool` takes for true and false.
TRUE = {"true", "t", "yes", "y", "on", "1"}
TRUE_OR_FALSE = TRUE | {"false", "f", "no", "n", "off", "0"}
URLS = {
    "conda_mirror_http_proxy": "http://proxy.lab.lan:3128",
    "conda_mirror_pip_index_url": "https://pypi.lab.lan/simple",
}
# Variables that are no text, and how an INI inventory gives them.
SHAPES = {
    "conda_mirror_arches": "['noarch','linux-64']",
    "conda_mirror_cloud": "['conda-forge/noarch']",
    "conda_mirror_allow": "['ourtool']",
    "conda_mirror_block": "['evil']",
    "conda_mirror_exclude": "['pytorch-*']",
    "conda_mirror_accept_missing": "['odd-1.0-0.conda']",
    "conda_mirror_installers": "{'dists':['miniconda'],'suffixes':['.sh']}",
    "conda_mirror_repos": "['main']",
    "conda_mirror_server_names": "['conda.lab.lan']",
    "conda_mirror_site": "{'url':'http://mirror.lab.lan'}",
    "conda_mirror_upstream": "{'repo':'https://mirror.example.org/anaconda'}",
}
CRON_FIELDS = {"minute": (0, 59), "hour": (0, 23), "weekday": (0, 7)}
MINUTES = 60
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_CRON_PART = re.compile(r"(?:\*|(?P<first>\w+)(?:-(?P<last>\w+))?)(?P<step>/0*[1-9][0-9]*)?", re.ASCII)


def _plain(value: Any) -> Any:
    """Return a value of Ansible's, which may be lazy and tagged, as Python's own."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, Iterable) else value


def problems(given: Mapping[str, Any], name: str, facts: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the variables of the role, each with its name, its value and what is allowed.

    An INI inventory and `-e name=value` give every value as text, so numbers and switches are taken as text as well.

    Args:
        given: all public variables of the role, as they were set.
        name: of this server, in the inventory.
        facts: Ansible's facts of this server.
    """
    values: dict[str, Any] = _plain(given)
    if facts["os_family"] != "Debian" or _version(facts["python_version"]) < PYTHON:
        return [
            f"{name} runs {facts['distribution']} {facts['distribution_version']} with Python "
            f"{facts['python_version']}; allowed: Debian or Ubuntu with Python {PYTHON[0]}.{PYTHON[1]} or newer"
        ]
    empty = [key for key, value in values.items() if value is None]
    if empty:
        return [f'{key} is null; leave it out, or give it a value ("", [] or {{}} for none)' for key in empty]
    rules = (
        config_problem(values), _working_dir_problem(values), _names_problem(values), _index_minutes_problem(values),
    )  # fmt: skip
    cron = [cron_problem(values[f"conda_mirror_cron_{field}"], field) for field in CRON_FIELDS]
    urls = [_url_problem(key, values[key]) for key in URLS]
    switches = [f"{key} is '{values[key]}'; allowed: true, false" for key in SWITCHES if not _is_switch(values[key])]
    return [text for text in (*rules, *cron, *urls, *switches) if text]


def entry_names(entries: Iterable[Any]) -> list[str]:
    """Return the names that a list of repos or channels gives: an entry is a name, or a mapping that has one."""
    return [str(entry["name"] if isinstance(entry, Mapping) else entry) for entry in entries]


def _subdirs(rules: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the engine's subdirs of `__conda_mirror_rules`; none where these are wrong, which preflight.yml says."""
    if str(FILES) not in sys.path:
        sys.path.insert(0, str(FILES))
    engine = importlib.import_module("lanmirror_sync.config")
    try:
        found: tuple[Any, ...] = engine.parse(_plain(rules), {}).subdirs()
    except engine.ConfigError:
        return ()
    return found


def ruled(rules: Mapping[str, Any]) -> list[str]:
    """Return the subdirs that have rules, by their paths below the mirror."""
    return [str(subdir.path) for subdir in _subdirs(rules) if subdir.rules]


def has_versions(rules: Mapping[str, Any]) -> bool:
    """Tell whether a rule has versions, or an entry says which packages are held: the engine needs a library then."""
    subdirs = _subdirs(rules)
    return any(subdir.choice or (subdir.rules and subdir.rules.has_versions) for subdir in subdirs)


def keep(rules: Mapping[str, Any]) -> list[str]:
    """Return the paths of keep-sets that entries name."""
    return [*dict.fromkeys(path for subdir in _subdirs(rules) if subdir.choice for path in subdir.choice.keep)]


def blocked(rules: Mapping[str, Any]) -> list[str]:
    """Return regular expressions of packages whose names are blocked as a whole, by their paths below the mirror."""
    groups: dict[Any, list[str]] = {}
    for subdir in _subdirs(rules):
        if subdir.rules and subdir.rules.block:
            groups.setdefault(subdir.rules, []).append(re.escape(str(subdir.path)))
    found, rest = [], r"-[^/-]+-[^/-]+\.(?:conda|tar\.bz2)"
    for made, paths in groups.items():
        known = {*made.blocked.names, *made.blocked.versions, *made.allowed.names, *made.allowed.versions}
        others = "|".join(re.escape(name) for name in sorted(known) if not made.blocks(name))
        whole = "|".join(re.escape(name) for name in sorted(known) if made.blocks(name))
        names = (f"(?!(?:{others}){rest}$)[^/]+" if others else "[^/]+") if made.blocked.everything else f"(?:{whole})"
        if whole or made.blocked.everything:
            found.append(f"/(?:{'|'.join(paths)})/(?i:{names}){rest}")
    return found


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"[0-9]+", text)[:2])


def _is_switch(value: Any) -> bool:
    return str(value).strip().lower() in TRUE_OR_FALSE


def _number(value: Any) -> Any:
    """Return the number that a text holds; any other value as it is."""
    try:
        return (float(value) if "." in value else int(value)) if isinstance(value, str) else value
    except ValueError:
        return value


def config_problem(values: Mapping[str, Any]) -> str:
    """Return what the engine would refuse, by the names of the role's variables; "" for nothing.

    `ca_bundle` is a file of the server and not looked for here.
    """
    if str(FILES) not in sys.path:
        sys.path.insert(0, str(FILES))
    engine = importlib.import_module("lanmirror_sync.config")
    settings = {key: values[PREFIX + key] for key in engine.DEFAULTS if PREFIX + key in values}
    for key, value in settings.items():
        if isinstance(engine.DEFAULTS[key], bool):
            settings[key] = str(value).strip().lower() in TRUE
        elif isinstance(engine.DEFAULTS[key], int | float):
            settings[key] = _number(value)
    try:
        config = engine.parse({**settings, "ca_bundle": ""}, {})
    except engine.ConfigError as error:
        wrong = re.split(r"[. ]", str(error))[0]
        return f"{PREFIX}{error}{_hint(PREFIX + wrong, values)}"
    if not config.subdirs() and not config.folders:
        return (
            "conda_mirror_repos, conda_mirror_cloud, and dists and urls of conda_mirror_installers are all empty; "
            "allowed: at least one that names something to mirror"
        )
    return ""


def _hint(name: str, values: Mapping[str, Any]) -> str:
    """Return how to give a list or a mapping where the inventory gave it as text."""
    if not isinstance(values.get(name), str) or name not in SHAPES:
        return ""
    shape = SHAPES[name]
    return f"; in an INI inventory {name}={shape}, with -e '{{\"{name}\": {shape.replace(chr(39), chr(34))}}}'"


def _working_dir_problem(values: Mapping[str, Any]) -> str:
    """Return why the folder cannot stand in files of Nginx and of the shell; "" where it can."""
    folder = str(values["conda_mirror_working_dir"])
    if not folder.startswith("/") or re.fullmatch(r"[A-Za-z0-9._+/-]+", folder):
        return ""
    return (
        f"conda_mirror_working_dir is '{folder}'; "
        "allowed: an absolute path of letters, digits and . _ + - /, for example /srv/mirror/conda"
    )


def _names_problem(values: Mapping[str, Any]) -> str:
    """Return what is wrong with the names of the site; "" for nothing."""
    names = values["conda_mirror_server_names"]
    if isinstance(names, list) and all(isinstance(name, str) and HOST.fullmatch(name) for name in names):
        return ""
    return (
        f"conda_mirror_server_names is {names!r}; allowed: a list of host names, for example [conda.lab.lan]"
        f"{_hint('conda_mirror_server_names', values)}"
    )


def _index_minutes_problem(values: Mapping[str, Any]) -> str:
    """Return why cron could not run something every so many minutes; "" where it can."""
    value = values["conda_mirror_index_minutes"]
    if re.fullmatch("[0-9]{1,2}", str(value)) and 1 <= int(value) <= MINUTES:
        return ""
    return f"conda_mirror_index_minutes is '{value}'; allowed: a whole number from 1 to {MINUTES}"


def _url_problem(name: str, value: Any) -> str:
    """Return what is wrong with a URL for the way out, its password masked; "" for nothing."""
    if isinstance(value, str) and re.fullmatch(r"(https?://[^/\s]+\S*)?", value):
        return ""
    shown = re.sub(r"^(\w+://)?.*@", r"\1***@", str(value))
    return f"{name} is '{shown}'; allowed: a URL with its scheme, for example {URLS[name]}, or nothing"


def cron_problem(value: Any, field: str) -> str:
    """Return why cron would refuse `value` as its field `minute`, `hour` or `weekday`; "" where it would not."""
    low, high = CRON_FIELDS[field]
    names = WEEKDAYS if field == "weekday" else ()
    if all(_cron_part(part.lower(), low, high, names) for part in str(value).split(",")):
        return ""
    words = f" or {names[0]} to {names[-1]}" if names else ""
    return (
        f"conda_mirror_cron_{field} is '{value}'; allowed: *, or numbers from {low} to {high}{words}, "
        "as lists (1,2), ranges (1-5) and steps (*/2, 1-5/2)"
    )


def _cron_part(part: str, low: int, high: int, names: tuple[str, ...]) -> bool:
    match = _CRON_PART.fullmatch(part)
    if match is None:
        return False
    ends = [end for end in match.group("first", "last") if end is not None]
    numbers = [names.index(end) if end in names else int(end) if end.isdecimal() else -1 for end in ends]
    if len(numbers) == 1 and match["step"]:
        return False
    return all(low <= number <= high for number in numbers) and numbers == sorted(numbers)


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "conda_mirror_blocked": blocked,
            "conda_mirror_entry_names": entry_names,
            "conda_mirror_has_versions": has_versions,
            "conda_mirror_keep": keep,
            "conda_mirror_problems": problems,
            "conda_mirror_ruled": ruled,
        }
