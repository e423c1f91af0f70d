"""The command line, the log, the progress display and the exit codes."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from lanmirror_sync.config import Config, ConfigError, load
from lanmirror_sync.fetch import Fetcher, UnreachableError
from lanmirror_sync.store import LockedError, Store
from lanmirror_sync.sync import GIB, NoRoomError, Run

EXIT_CODES = """\
exit codes:
  0  in sync
  1  some packages could not be had, and the published index names none of them
  2  the configuration is wrong
  3  another run holds the lock
  4  too little disk
  5  the upstream cannot be reached, nothing changed
"""
OK, INCOMPLETE, WRONG, LOCKED, NO_ROOM, UNREACHABLE = range(6)
LOG_EVERY_SECONDS = 60.0
CREDENTIALS = re.compile(r"(\bhttps?://)[^/\s@]*@")

log = logging.getLogger("lanmirror_sync")


class PlainProgress:
    """A line a minute, for a log file."""

    def __init__(self) -> None:
        self._files = self._size = self._done = self._received = 0
        self._last = time.monotonic()

    def start(self, files: int, size: int) -> None:
        """See `sync.Progress`."""
        self._files, self._size = files, size
        log.info("to fetch: %d files, %.2f GiB", files, size / GIB)

    def received(self, size: int) -> None:
        """See `sync.Progress`."""
        self._received += size

    def done(self) -> None:
        """See `sync.Progress`."""
        self._done += 1
        if time.monotonic() - self._last >= LOG_EVERY_SECONDS:
            self._last = time.monotonic()
            log.info(
                "fetched %d of %d files, %.2f of %.2f GiB",
                self._done, self._files, self._received / GIB, self._size / GIB,
            )  # fmt: skip


class TerminalProgress:
    """A bar with files, bytes, rate and time left."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[files_done]}/{task.fields[files]} files"),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("fetching", total=None, files=0, files_done=0)
        self._done = 0

    def start(self, files: int, size: int) -> None:
        """See `sync.Progress`."""
        log.info("to fetch: %d files, %.2f GiB", files, size / GIB)
        self._bar.update(self._task, total=size, files=files)
        if files:
            self._bar.start()

    def received(self, size: int) -> None:
        """See `sync.Progress`."""
        self._bar.advance(self._task, size)

    def done(self) -> None:
        """See `sync.Progress`."""
        self._done += 1
        self._bar.update(self._task, files_done=self._done)

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._bar.stop()


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="anaconda_sync.py",
        description="Mirror Conda channels: fetch and verify packages, then publish the indexes that name them.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command", nargs="?", default="sync", choices=["sync", "plan"],
        help="sync: bring the mirror up to the upstream (the default); plan: only say what that would fetch",
    )  # fmt: skip
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="the YAML configuration")
    parser.add_argument("--working-dir", type=Path, metavar="DIR", help="instead of the configuration's working_dir")
    parser.add_argument(
        "--delete", action="store_true",
        help="delete packages that no index has named for delete_grace_hours",
    )  # fmt: skip
    parser.add_argument("--only", default="*", metavar="GLOB", help="only these paths, for example 'pkgs/main/*'")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="downloads at a time, instead of the configuration's jobs"
    )
    parser.add_argument("--check-config", action="store_true", help="check the configuration and do nothing else")
    return parser.parse_args(argv)


def _config(arguments: argparse.Namespace) -> Config:
    """Return the configuration, with what the command line says over it."""
    config = load(arguments.config)
    if arguments.working_dir is not None:
        config = dataclasses.replace(config, working_dir=arguments.working_dir.absolute())
    if arguments.jobs is not None:
        if arguments.jobs < 1:
            raise ConfigError(f"--jobs is {arguments.jobs}; allowed: a whole number from 1 on")
        config = dataclasses.replace(config, jobs=arguments.jobs)
    if not config.subdirs() and not config.dists:
        raise ConfigError("repos, cloud and installers.dists are all empty: there is nothing to mirror")
    return config


class Discreet(logging.Filter):
    """Takes the credentials out of addresses: a log is read by more people than the configuration."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the message; every record passes."""
        record.msg, record.args = CREDENTIALS.sub(r"\1", record.getMessage()), ()
        return True


def main(argv: Sequence[str]) -> int:
    """Run the command line and return its exit code; see `EXIT_CODES`."""
    arguments = _arguments(argv)
    console = Console(stderr=True)
    if console.is_terminal:
        handler: logging.Handler = RichHandler(console=console, show_path=False, markup=False)
        layout = "%(message)s"
    else:
        handler = logging.StreamHandler()
        layout = "%(asctime)s %(levelname)s %(message)s"
    handler.addFilter(Discreet())
    logging.basicConfig(level=logging.INFO, format=layout, handlers=[handler])
    # One line a failure is ours to write; urllib3 would add its own to each.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    try:
        config = _config(arguments)
    except ConfigError as error:
        log.error("%s", error)
        return WRONG
    if arguments.check_config:
        return OK
    return _plan(config, arguments) if arguments.command == "plan" else _sync(config, arguments, console)


def _plan(config: Config, arguments: argparse.Namespace) -> int:
    """Print what a sync would fetch: a line for each subdir, and the sum."""
    run = Run(config, Store(config.working_dir), Fetcher(config), PlainProgress())
    tasks, downloads = run.plan(arguments.only)
    if run.report.asked and len(run.report.unreachable) == run.report.asked:
        return UNREACHABLE
    total = 0
    for task in tasks:
        files = len(task.plan.fetch) + len(task.plan.replace)
        total += task.plan.download_bytes
        print(f"{task.path}: {files} to fetch, {task.plan.download_bytes / GIB:.2f} GiB; {len(task.plan.held)} held")
    size = sum(download.expected.size or 0 for download in downloads)
    print(f"installers: {len(downloads)} to fetch, {size / GIB:.2f} GiB")
    print(f"in all: {(total + size) / GIB:.2f} GiB")
    return INCOMPLETE if run.report.failures else OK


def _sync(config: Config, arguments: argparse.Namespace, console: Console) -> int:
    """Run a sync and log one line that sums it up."""
    store = Store(config.working_dir)
    started = time.monotonic()
    terminal = TerminalProgress(console) if console.is_terminal else None
    progress = terminal or PlainProgress()
    try:
        store.create()
        with store.locked():
            run = Run(config, store, Fetcher(config, progress.received), progress)
            run.sync(arguments.only, delete=arguments.delete)
    except LockedError as error:
        log.warning("%s", error)
        return LOCKED
    except NoRoomError as error:
        log.error("%s", error)
        return NO_ROOM
    except UnreachableError as error:
        log.error("%s", error)
        return UNREACHABLE
    except OSError as error:
        log.error("%s: %s", error.filename or config.working_dir, error.strerror or error)
        return NO_ROOM if error.errno == errno.ENOSPC else INCOMPLETE
    finally:
        if terminal:
            terminal.stop()
    report = run.report
    log.info(
        "%s: %d files fetched, %d deleted, %d failures, %.1f s",
        "incomplete" if report.failures else "in sync",
        report.fetched, report.deleted, len(report.failures), time.monotonic() - started,
    )  # fmt: skip
    return INCOMPLETE if report.failures else OK
