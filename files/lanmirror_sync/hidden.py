"""Which records of an index are hidden by the rules of its subdir, and until when. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from lanmirror_sync.plan import Hidden, package_of
from lanmirror_sync.repodata import BAD_JSON, Index
from lanmirror_sync.rules import SHOWN, Rules

DAY = 86400.0
# Dates of records are in milliseconds; below this, as conda has it, in seconds: the end of the year 9999.
LAST_SECOND = 253_402_300_799


class _Told(msgspec.Struct, gc=False):
    """What a record tells of its version and build, and of when it was built, or put into the index (CEP 48)."""

    version: str = ""
    build: str | None = None
    timestamp: Any = None
    indexed_timestamp: Any = None


_told = msgspec.json.Decoder(_Told)


def judge(rules: Rules, where: str, index: Index, now: float) -> Hidden:
    """Return what of an index is hidden.

    Args:
        rules: of the subdir.
        where: its path, for messages.
        index: the upstream's.
        now: Unix time, seconds.
    """
    blocked, young = set(), set()
    told: dict[str, str] = {}
    comes: float | None = None
    verdicts: dict[str, tuple[bool | None, str]] = {}
    age = f"{where} shows packages of {rules.min_age_days} day{'s' * (rules.min_age_days != 1)} or more"
    for _, _, file_name, raw in index.records():
        # The web server refuses names that are blocked as a whole, by what files are called.
        of_file = package_of(file_name).lower()
        names = dict.fromkeys((index.packages[file_name].name.lower(), of_file))
        version = ""
        if any(map(rules.of_versions, names)):
            version = read(raw).version
        for name in names:
            if rules.of_versions(name):
                shown, rule = rules.verdict(name, version)
            else:
                shown, rule = verdicts[name] if name in verdicts else verdicts.setdefault(name, rules.verdict(name))
            if shown is False:
                break
        if shown is False:
            blocked.add(file_name)
            if file_name.endswith(".whl") or not rules.blocks(of_file):
                told[file_name] = f'{file_name} is blocked here: rule "{rule}" of {where}'
        elif shown is None and rules.min_age_days:
            built = date(read(raw))
            if built is None:
                if rules.min_age_undated != SHOWN:
                    young.add(file_name)
                    told[file_name] = f"{file_name} tells no date, and {age}"
                continue
            until = built + rules.min_age_days * DAY
            if until > now:
                young.add(file_name)
                told[file_name] = f"{file_name} is too new: {age}, this one from {_day(until)}"
                comes = until if comes is None else min(comes, until)
    return Hidden(frozenset(blocked), frozenset(young - blocked), told, comes, rules.blocks_file)


def read(raw: msgspec.Raw) -> _Told:
    """Return what is looked at of an undecoded record."""
    try:
        return _told.decode(raw)
    except BAD_JSON:  # of a version that is no text, in a wheel's record
        return _Told()


def date(told: _Told) -> float | None:
    """Return when a record was put into the index, or else when its package was built; None where none tells a date.

    Returns:
        Unix time, seconds.
    """
    for stamp in (told.indexed_timestamp, told.timestamp):
        if isinstance(stamp, int | float) and not isinstance(stamp, bool) and stamp > 0:
            return stamp / 1000 if stamp > LAST_SECOND else float(stamp)
    return None


def _day(at: float) -> str:
    """Return a time for people, in UTC."""
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):
        return "a day that never comes"
