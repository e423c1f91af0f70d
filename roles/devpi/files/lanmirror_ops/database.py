"""devpi's database: what it names, whether it is damaged, and a copy of it as of one moment."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

from . import OpsError
from .system import run

# What one damaged page says fits into a line; the rest is more of the same.
COMPLAINTS = 3
# How often a database that is written to is read without a lock, before it is locked for the length of a reading.
UNLOCKED = 3


def read_state(venv: Path, database: Path | None = None, *options: str) -> dict[str, Any]:
    """Return version and database version of a venv, and what a database names; the options are of devpi_state.py.

    Raises:
        OpsError: The venv does not run, or cannot read the database.
    """
    script = Path(__file__).with_name("devpi_state.py")
    state: dict[str, Any] = json.loads(run(venv / "bin/python", script, *([database] if database else []), *options))
    return state


def snapshot(venv: Path, source: Path, target: Path, remedy: str) -> None:
    """Copy a database while it is written to, as of one moment, and look whether it is whole.

    Raises:
        OpsError: It is damaged; the message ends with the remedy.
    """
    with (
        contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=60)) as old,
        contextlib.closing(sqlite3.connect(target)) as new,
    ):
        try:
            old.backup(new)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode not in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
                raise
            raise OpsError(f"devpi's database is damaged ({error}): {remedy}") from error
    target.chmod(0o600)
    must_be_sound(venv, target, remedy)


def _complaints(database: Path, how: str) -> str:
    """Return what SQLite's own check says of a database; empty for nothing (https://sqlite.org/pragma.html)."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?{how}", uri=True, timeout=60)) as db:
            said = [str(row[0]) for row in db.execute(f"PRAGMA integrity_check({COMPLAINTS})")]
    except sqlite3.Error as error:
        return str(error)
    lines = [line for text in said for line in text.splitlines() if not line.startswith("*** in database")]
    return "" if said == ["ok"] else "; ".join(lines[:COMPLAINTS])


def _unreadable(venv: Path, database: Path, *options: str) -> str:
    """Return which value devpi's own reader stumbles over; empty for none.

    SQLite keeps no sum of what is in a row: it does not see that a part of a long value was overwritten.
    """
    try:
        read_state(venv, database, "--values", *options)
    except OpsError as error:
        # The Python of the venv may have gone away with an upgrade of the system.
        with contextlib.suppress(OpsError):
            read_state(venv)
            return str(error)
    return ""


def damage(venv: Path, database: Path) -> str:
    """Return what is wrong with a database that nobody writes to; empty for nothing. No file is made beside it."""
    return _complaints(database, "mode=ro&immutable=1") or _unreadable(venv, database, "--unlocked")


def live_damage(venv: Path, database: Path) -> str:
    """Return what is wrong with a database that devpi may write to at any time; empty for nothing.

    A reader with a lock keeps devpi from writing for as long as the reading takes, which for some gigabytes is a
    minute. One without a lock may see half of a change, and take that for damage, but damage never for none.
    """
    for _ in range(UNLOCKED):
        if not damage(venv, database):
            return ""
    return _complaints(database, "mode=ro") or _unreadable(venv, database)


def must_be_sound(venv: Path, database: Path, remedy: str) -> None:
    """Return if nothing is wrong with a database that nobody writes to.

    Raises:
        OpsError: Something is.
    """
    if said := damage(venv, database):
        raise OpsError(f"devpi's database is damaged ({said}): {remedy}")
