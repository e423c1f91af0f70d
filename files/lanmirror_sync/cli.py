"""The command line, the log and the exit codes."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lanmirror_sync import __version__, status
from lanmirror_sync.config import Config, ConfigError, Options, load
from lanmirror_sync.fetch import Fetcher, UnreachableError
from lanmirror_sync.memory import Memory
from lanmirror_sync.progress import GIB, PlainProgress, TerminalProgress
from lanmirror_sync.report import discreet
from lanmirror_sync.store import LockedError, NoRoomError, Store
from lanmirror_sync.upstream import ask

EXIT_CODES = """\
exit codes:
  0  in sync; verify: everything is as it should be, or was repaired
  1  some packages could not be had, and the published index names none of them; verify: something is wrong
  2  the configuration is wrong
  3  another run holds the lock
  4  too little disk
  5  the upstream cannot be reached, nothing changed
"""
PERCENT = 100
OK, INCOMPLETE, WRONG, LOCKED, NO_ROOM, UNREACHABLE = range(6)
ENDED: Mapping[type[Exception], int] = {LockedError: LOCKED, NoRoomError: NO_ROOM, UnreachableError: UNREACHABLE}

log = logging.getLogger("lanmirror_sync")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="anaconda_sync.py",
        description="Mirror Conda channels: fetch and verify packages, then publish the indexes that name them.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command", nargs="?", default="sync", choices=["sync", "plan", "verify"],
        help="sync: bring the mirror up to the upstream (the default); plan: only say what that would fetch; "
        "verify: hash everything again, and hold the served indexes against what is there",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"lanmirror {__version__}")
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
    parser.add_argument(
        "--max-delete", type=float, metavar="PERCENT",
        help="how much of a subdir may be deleted at once, instead of the configuration's max_delete",
    )  # fmt: skip
    parser.add_argument(
        "--accept-older", action="store_true", help="publish the upstream's index even where it is older than ours"
    )
    parser.add_argument("--repair", action="store_true", help="with verify: fetch what is damaged or missing again")
    parser.add_argument(
        "--verbose", action="store_true", help="also say what each format of an index cost, and what is asked again"
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
    if arguments.max_delete is not None:
        if not 0 <= arguments.max_delete <= PERCENT:
            raise ConfigError(f"--max-delete is {arguments.max_delete:g}; allowed: a number from 0 to {PERCENT}")
        config = dataclasses.replace(config, max_delete=arguments.max_delete)
    if not config.subdirs() and not config.dists:
        raise ConfigError("repos, cloud and installers.dists are all empty: there is nothing to mirror")
    return config


class Discreet(logging.Filter):
    """Takes the credentials out of addresses: a log is read by more people than the configuration."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the message; every record passes."""
        record.msg, record.args = discreet(record.getMessage()), ()
        return True


def main(argv: Sequence[str]) -> int:
    """Run the command line and return its exit code; see `EXIT_CODES`."""
    arguments = _arguments(argv)
    progress = _set_up_log()
    if arguments.verbose:
        logging.getLogger("lanmirror_sync").setLevel(logging.DEBUG)
    try:
        config = _config(arguments)
    except ConfigError as error:
        log.error("%s", error)
        return WRONG
    if arguments.check_config:
        return OK
    command = {"plan": _plan, "verify": _verify}.get(arguments.command, _sync)
    try:
        return command(config, arguments, progress)
    except (LockedError, NoRoomError, UnreachableError) as error:
        log.error("%s", error)
        return ENDED[type(error)]
    except OSError as error:
        log.error("%s: %s", error.filename or config.working_dir, error.strerror or error)
        return NO_ROOM if error.errno in (errno.ENOSPC, errno.EDQUOT) else INCOMPLETE
    except KeyboardInterrupt:
        log.error("interrupted; what is served is whole, and the next run goes on from here")
        return INCOMPLETE
    finally:
        progress.stop()


def _set_up_log() -> PlainProgress | TerminalProgress:
    """Log to standard error, in plain lines where that is no terminal; return a progress display to match."""
    if not sys.stderr.isatty():
        handler, layout = logging.StreamHandler(), "%(asctime)s %(levelname)s %(message)s"
        handler.addFilter(Discreet())
        logging.basicConfig(level=logging.INFO, format=layout, handlers=[handler])
        return PlainProgress()
    # Loaded where there is a terminal: it takes longer than a whole run that finds nothing new.
    from rich.console import Console  # noqa: PLC0415
    from rich.logging import RichHandler  # noqa: PLC0415

    console = Console(stderr=True)
    rich_handler = RichHandler(console=console, show_path=False, markup=False)
    rich_handler.addFilter(Discreet())
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[rich_handler])
    return TerminalProgress(console)


def _plan(config: Config, arguments: argparse.Namespace, progress: PlainProgress | TerminalProgress) -> int:
    """Print what a sync would fetch: a line for each subdir, and the sum."""
    store = Store(config.working_dir)
    with Memory(store.memory_file) as memory, Fetcher(config) as fetcher:
        asked = ask(config, arguments.only, store, memory, fetcher)
        from lanmirror_sync.sync import Run  # noqa: PLC0415

        options = Options(arguments.only, dry=True)
        run = Run(config, options, asked, store, memory, fetcher=fetcher, progress=progress)
        tasks, downloads = run.plan()
    total = 0
    for path, held in run.report.unchanged.items():
        print(f"{path}: 0 to fetch, unchanged; {held} held")
    for task in tasks:
        total += task.plan.download_bytes
        unverified = f", {len(task.plan.check)} to hash" if task.plan.check else ""
        print(
            f"{task.path}: {task.plan.files} to fetch, {task.plan.download_bytes / GIB:.2f} GiB; "
            f"{task.plan.held} held{unverified}"
        )
    size = sum(download.expected.size or 0 for download in downloads)
    print(f"installers: {len(downloads)} to fetch, {size / GIB:.2f} GiB")
    print(f"in all: {(total + size) / GIB:.2f} GiB")
    return INCOMPLETE if run.report.failed else OK


def _sync(config: Config, arguments: argparse.Namespace, progress: PlainProgress | TerminalProgress) -> int:
    """Run a sync, tell the outside, and log one line that sums it up."""
    store = Store(config.working_dir)
    began, started = time.time(), time.monotonic()
    store.create()
    with store.locked(), Memory(store.memory_file) as memory, Fetcher(config, progress.received) as fetcher:
        asked = ask(config, arguments.only, store, memory, fetcher)
        # Loaded while the upstream answers.
        from lanmirror_sync.sync import Run  # noqa: PLC0415

        options = Options(arguments.only, arguments.delete, arguments.accept_older)
        run = Run(config, options, asked, store, memory, fetcher=fetcher, progress=progress)
        report = run.report
        status.write(config, store, memory, status.Outcome(status.RUNNING, began, report))
        error, result = "it was ended from outside", status.FAILED
        try:
            run.sync()
        except (NoRoomError, UnreachableError, OSError) as failure:
            error = str(failure)
            raise
        else:
            error, result = "", status.INCOMPLETE if report.failed else status.IN_SYNC
        finally:
            status.write(config, store, memory, status.Outcome(result, began, report, error))
    spent = time.monotonic() - started
    log.info(
        "%s: %d files fetched (%.2f GiB, %.1f MB/s), %d deleted, %d failures, %d of %d subdirs unchanged, %.1f s",
        result, report.fetched, report.received / GIB, report.received / 1e6 / max(spent, 0.001), report.deleted,
        report.failed, len(report.unchanged), report.asked, spent,
    )  # fmt: skip
    return INCOMPLETE if report.failed else OK


def _verify(config: Config, arguments: argparse.Namespace, progress: PlainProgress | TerminalProgress) -> int:
    """Verify what is held, and log one line that sums it up."""
    # Loaded where it is asked for, like what a terminal needs.
    from lanmirror_sync.verify import Verification  # noqa: PLC0415

    progress.verb = "hash"
    store = Store(config.working_dir)
    started = time.monotonic()
    store.create()
    with store.locked(), Memory(store.memory_file) as memory, Fetcher(config, progress.received) as fetcher:
        verification = Verification(
            config, store, memory, fetcher=fetcher, progress=progress, repair=arguments.repair
        )  # fmt: skip
        findings = verification.run(arguments.only)
    report = verification.report
    log.info(
        "%s: %d files referenced, %d held, %d repaired, %d orphaned, %d problems left, %.1f s",
        "incomplete" if report.failed else "verified",
        sum(finding.referenced for finding in findings), sum(finding.held for finding in findings),
        verification.repaired, sum(finding.orphaned for finding in findings), report.failed,
        time.monotonic() - started,
    )  # fmt: skip
    return INCOMPLETE if report.failed else OK
