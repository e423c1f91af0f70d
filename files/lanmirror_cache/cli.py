"""The command line: `lanmirror-conda-cache purge|size|check|flight|watch`.

The options before the command are the paths of `watch.Places`.

Exit codes: 0 done; 1 there is nothing of that, or something was wrong; 2 it cannot be done as it was asked; 141 whoever
reads the output has gone.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from lanmirror_sync.kept import CacheReport, Channel

from lanmirror_cache import CacheError
from lanmirror_cache.check import Checker
from lanmirror_cache.names import chosen, path_of
from lanmirror_cache.records import Records
from lanmirror_cache.scan import delete, in_flight, scan
from lanmirror_cache.state import State
from lanmirror_cache.watch import Places, report, watch, words

DONE, NOTHING, REFUSED, UNREAD = 0, 1, 2, 141
MIB = 1 << 20


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    made = argparse.ArgumentParser(
        prog="lanmirror-conda-cache",
        usage="%(prog)s [-h] COMMAND ...",
        description="Conda packages that came on demand, in the cache of Nginx.",
    )
    # The wrapper gives them.
    for name in ("kept", "mirror", "log", "state"):
        made.add_argument(f"--{name}", type=Path, required=True, help=argparse.SUPPRESS)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND", prog=made.prog)
    purge = commands.add_parser("purge", help="delete packages from the cache")
    purge.add_argument(
        "what",
        nargs="+",
        metavar="WHAT",
        help="a path (/cloud/conda-forge/linux-64/x-1-0.conda), a file name, a package name, a channel, a subdir or a "
        "folder of installers (conda-forge, pkgs/main, conda-forge/linux-64, miniconda)",
    )
    size = commands.add_parser("size", help="what the cache has, and what was served, by channel")
    size.add_argument("--packages", action="store_true", help="list each package as well")
    commands.add_parser("check", help="check all of it now, against the served indexes")
    commands.add_parser("flight", help="what is being fetched just now")
    commands.add_parser("watch", help="check what comes, for ever: the service")
    return made


def main(argv: Sequence[str]) -> int:
    """Run a command and return its exit code."""
    options = parser().parse_args(argv)
    places = Places(options.kept, options.mirror, options.log, options.state)
    try:
        if options.command == "watch":
            watch(places)
        if options.command == "flight":
            return flight(places)
        state = State(places.state)
        scan(places.kept, state, time.time(), every=options.command == "check")
        if options.command == "purge":
            return purge(places, state, options.what)
        if options.command == "check":
            return check(places, state)
        return size(state, packages=options.packages)
    except (CacheError, sqlite3.Error) as error:
        print(f"lanmirror-conda-cache: {error}", file=sys.stderr)
        return REFUSED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD


def purge(places: Places, state: State, wanted: Iterable[str]) -> int:
    """Delete what is named."""
    code = DONE
    for what in wanted:
        paths = state.paths()
        try:
            meant, kind = chosen(what, paths)
        except ValueError as error:
            print(f"lanmirror-conda-cache: {error}", file=sys.stderr)
            return REFUSED
        packages = slices = total = 0
        for path in filter(meant, paths):
            gone = [(name, held) for name, inode, held in state.entries(path) if delete(places.kept, name, inode)]
            state.forget(name for name, _ in gone)
            if gone:
                freed = sum(held for _, held in gone)
                print(f"deleted {path}: {_count(len(gone), 'slice')}, {_mib(freed)}")
                packages, slices, total = packages + 1, slices + len(gone), total + freed
        coming = [each for each in in_flight(places.kept) if meant(each.head.path) or each.head.path == path_of(what)]
        if coming:
            print(
                f"{_count(len(coming), 'slice')} of {what} not deleted, being fetched just now: purge again in a while"
            )
        if packages:
            print(f"{kind} {what}: deleted {_count(packages, 'file')}, {_count(slices, 'slice')}, {_mib(total)}")
        else:
            print(f"nothing of {what} is in the cache", file=sys.stderr)
            code = NOTHING
    return code


def size(state: State, *, packages: bool) -> int:
    """Print what the cache has, and what was served of each channel."""
    told = report(state, time.time())
    if packages:
        for path, held, right in state.packages():
            print(f"{_mib(held):>14}  {'checked' if right else 'unchecked':9}  {path}")
        print()
    print(_table(told))
    return DONE


def _table(told: CacheReport) -> str:
    head = ("channel", "packages", "unchecked", "MiB", "hits", "misses", "stale", "errors",
            "MiB from mirror", "from cache", "from upstream")  # fmt: skip
    rows = [head, *(_row(name, channel) for name, channel in told.channels.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join([*lines, f"wrong packages since the counters began: {told.wrong_total}"])


def _row(name: str, of: Channel) -> tuple[str, ...]:
    sizes = (of.mirror_bytes, of.cache_bytes, of.upstream_bytes)
    counts = (of.hits, of.misses, of.stale, of.errors)
    return (
        name,
        str(of.packages),
        str(of.unchecked),
        f"{of.bytes / MIB:.1f}",
        *map(str, counts),
        *(f"{sent / MIB:.1f}" for sent in sizes),
    )


def check(places: Places, state: State) -> int:
    """Check everything anew; delete and print what is wrong."""
    state.all_due()
    checker = Checker(places.kept, state, Records(places.mirror), time.time)
    found = [wrong for wrong in checker.due() if wrong]
    for wrong in found:
        print(words(wrong))
    packages = state.packages()
    right = sum(1 for _, _, is_right in packages if is_right)
    others = len(packages) - right
    print(
        f"{_count(right, 'package')} right; {others} not checked, since slices are missing or no served index names "
        f"them; {len(found)} wrong"
    )
    return NOTHING if found else DONE


def flight(places: Places) -> int:
    """Print what is being fetched."""
    for each in in_flight(places.kept):
        head = each.head
        wanted = f" of {head.length}" if head.length is not None else ""
        since = datetime.fromtimestamp(head.began).astimezone().isoformat(timespec="seconds")
        part = f" from byte {head.first}" if head.first else ""
        print(f"{head.path}{part}: {each.came}{wanted} bytes, since {since}")
    return DONE


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _mib(number: int) -> str:
    return f"{number / MIB:.1f} MiB"
