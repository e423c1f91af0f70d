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
CRON_FIELDS = {"minute": (0, 59), "hour": (0, 23), "weekday": (0, 7)}
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_CRON_PART = re.compile(r"(?:\*|(?P<first>\w+)(?:-(?P<last>\w+))?)(?P<step>/0*[1-9][0-9]*)?", re.ASCII)


def _plain(value: Any) -> Any:
    """Return a value of Ansible's, which may be lazy and tagged, as Python's own."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, Iterable) else value


def config_problem(settings: Mapping[str, Any]) -> str:
    """Return what is wrong with the engine's settings, by the names of the role's variables; "" for nothing.

    The message has the variable, its value and what is allowed. `ca_bundle` is a file of the server and not
    looked for here.
    """
    if str(FILES) not in sys.path:
        sys.path.insert(0, str(FILES))
    engine = importlib.import_module("lanmirror_sync.config")
    try:
        config = engine.parse({**_plain(settings), "ca_bundle": ""}, {})
    except engine.ConfigError as error:
        return f"conda_mirror_{error}"
    if not config.subdirs() and not config.dists:
        return (
            "conda_mirror_repos, conda_mirror_cloud and conda_mirror_installers.dists are all empty; "
            "allowed: at least one that names something to mirror"
        )
    return ""


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

    def filters(self) -> dict[str, Callable[..., str]]:
        """Return the filters by name."""
        return {"conda_mirror_config_problem": config_problem, "conda_mirror_cron_problem": cron_problem}
