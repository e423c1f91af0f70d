"""The command line."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from . import OpsError
from . import __doc__ as meaning
from .archive import opened, pack, refuse_other_versions, verify
from .backup import backup
from .database import read_state
from .eviction import evict
from .malware import refresh
from .restore import restore
from .settings import FILE, Settings, load
from .system import say
from .undo import back, refuse_unfinished
from .upgrade import begin, finish
from .verdict import check
from .watch import watch

LOCK = Path("/run/lock/lanmirror-devpi")


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Refuse to run beside another one of this."""
    with LOCK.open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OpsError("another lanmirror-devpi runs: wait until it is done") from None
        yield


def act_backup(settings: Settings, _: argparse.Namespace) -> str:
    """Make a backup."""
    refuse_unfinished(settings)
    return str(backup(settings, settings.current))


def act_check(settings: Settings, options: argparse.Namespace) -> str:
    """Check a backup."""
    with opened(options.backup, settings.backups) as folder:
        manifest = verify(folder, settings.current)
        refuse_other_versions(manifest, read_state(settings.current))
    return f"whole: {len(manifest['files'])} files of {manifest['made']}, devpi-server {manifest['devpi_server']}"


def act_restore(settings: Settings, options: argparse.Namespace) -> str:
    """Restore a backup."""
    manifest, undo = restore(settings, options.backup)
    data, conf = settings.old_data / undo.name, settings.old_conf / undo.name
    return f"devpi serves the backup of {manifest['made']}; what was there before is in {data} and {conf}"


def act_pack(settings: Settings, options: argparse.Namespace) -> str:
    """Pack a backup."""
    pack(options.backup, options.tar, settings.current)
    return str(options.tar)


def act_back(settings: Settings, _: argparse.Namespace) -> str:
    """Come back."""
    undo = back(settings)
    return f"the state before the {undo.what} is back, and devpi-server {undo.version} serves again"


# What an administrator runs, with its arguments.
ACTIONS: dict[str, tuple[list[str], Callable[[Settings, argparse.Namespace], str]]] = {
    "backup": ([], act_backup),
    "check": (["backup"], act_check),
    "restore": (["backup"], act_restore),
    "pack": (["backup", "tar"], act_pack),
    "begin": (["venv"], lambda settings, options: begin(settings, options.venv)),
    "finish": ([], lambda settings, _: finish(settings)),
    "back": ([], act_back),
}


def serve_evict(settings: Settings) -> int:
    """Evict, and check the database; return 1 when devpi could not be asked."""
    asked = evict(settings)
    check(settings)
    return 0 if asked else 1


def serve_watch(settings: Settings) -> int:
    """Watch, until systemd says that it is enough."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    watch(settings)
    return 0


def serve_malware(settings: Settings) -> int:
    """Read the list of known malware; return 1 when it does not count, so that systemd tries again."""
    return 0 if refresh(settings) else 1


# What units run, as devpi's user.
SERVICES: dict[str, Callable[[Settings], int]] = {
    "watch": serve_watch,
    "evict": serve_evict,
    "malware": serve_malware,
}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="lanmirror-devpi", description=meaning, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", type=Path, default=FILE, help="the file that the role writes [%(default)s]")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (words, _) in ACTIONS.items():
        command = commands.add_parser(name)
        for word in words:
            command.add_argument(word, type=Path)
    for name in SERVICES:
        commands.add_parser(name)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; exit codes as the package says."""
    options = arguments(argv)
    try:
        settings = load(options.settings)
        if options.command in SERVICES:
            return SERVICES[options.command](settings)
        os.umask(0o077)
        with alone():
            say(ACTIONS[options.command][1](settings, options))
    except (OpsError, OSError, sqlite3.Error) as error:
        print(f"lanmirror-devpi: {error}", file=sys.stderr)
        return 1
    return 0
