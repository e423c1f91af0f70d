"""The exit codes; see `cli.EXIT_CODES` for what they mean."""

from __future__ import annotations

import errno

from lanmirror_sync.answers import UnreachableError
from lanmirror_sync.config import ConfigError
from lanmirror_sync.report import Report
from lanmirror_sync.signals import EndedError
from lanmirror_sync.store import LockedError, NoRoomError

OK, INCOMPLETE, WRONG, LOCKED, NO_ROOM, UNREACHABLE = range(6)
CRASHED = 70
ENDED: tuple[tuple[type[Exception], int], ...] = (
    (ConfigError, WRONG), (LockedError, LOCKED), (NoRoomError, NO_ROOM), (UnreachableError, UNREACHABLE),
)  # fmt: skip


def of(report: Report) -> int:
    """Return the code of a run that came to its end."""
    return CRASHED if report.crashes else INCOMPLETE if report.failed else OK


def of_error(error: BaseException) -> int:
    """Return the code of a run that an error ended."""
    if isinstance(error, EndedError):
        return error.code
    if isinstance(error, OSError):
        return NO_ROOM if error.errno in (errno.ENOSPC, errno.EDQUOT) else INCOMPLETE
    return next((code for kind, code in ENDED if isinstance(error, kind)), CRASHED)
