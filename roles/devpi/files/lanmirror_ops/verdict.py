"""Whether devpi's database is whole: checked in the background, once a day and after each start of devpi."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass

from .database import live_damage
from .files import write
from .journal import ERROR, tell
from .settings import Settings

DAY = 86400.0


@dataclass(frozen=True)
class Verdict:
    """What a check said."""

    at: float
    """When it began, in seconds since the epoch."""
    start: str
    """Which start of devpi that was after."""
    damage: str
    """What is wrong; empty for nothing."""


def last_start(settings: Settings) -> str:
    """Return what tells one start of devpi from the next: systemd makes its folder below /run anew each time."""
    try:
        status = settings.upstreams.parent.stat()
    except OSError:
        return ""
    return f"{status.st_dev}:{status.st_ino}"


def last_verdict(settings: Settings) -> Verdict | None:
    """Return what the last check said, None where there was none."""
    try:
        return Verdict(**json.loads(settings.verdict.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def check(settings: Settings) -> None:
    """Check the database, if it is time for that: a bad one each time, so that a restored one is known for whole."""
    if not settings.database.exists():
        return
    now, start, last = time.time(), last_start(settings), last_verdict(settings)
    if last and not last.damage and last.start == start and 0 <= now - last.at < DAY:
        return
    found = Verdict(now, start, live_damage(settings.current, settings.database))
    write(settings.verdict, json.dumps(asdict(found)), 0o640)
    if found.damage:
        tell(ERROR, f"devpi's database is damaged ({found.damage}): restore a backup, see docs/backup.md")
