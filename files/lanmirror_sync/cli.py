"""The command line, the log and the exit codes."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import time
import traceback
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from lanmirror_sync import __version__, exits, signals, status
from lanmirror_sync.answers import UnreachableError
from lanmirror_sync.config import Config, ConfigError, Options, load, overridden, rate
from lanmirror_sync.fetch import Fetcher
from lanmirror_sync.memory import Memory
from lanmirror_sync.mirror import Mirror
from lanmirror_sync.progress import PlainProgress, TerminalProgress, amount
from lanmirror_sync.report import discreet, in_words, is_everybodys
from lanmirror_sync.store import INDEXES, PACKAGES, PLAN, LockedError, NoRoomError, Store
from lanmirror_sync.upstream import begin_searches

EXIT_CODES = """\
exit codes:
   0  in sync; verify: everything is as it should be, or was repaired
   1  some packages could not be had; unless they come on demand, the published index names none of them;
      --indexes: some index could not be refreshed; verify: something is wrong
   2  the configuration is wrong
   3  another run holds the lock; sync --indexes has one of its own
   4  too little disk; plan: for what a sync would fetch
   5  the upstream cannot be reached, nothing changed
  70  a fault of the program itself, with a traceback in the log; what is served is whole
 129, 130, 143  it was asked to end (SIGHUP, SIGINT, SIGTERM); what is served is whole, and the next run goes on;
      watch: 0
"""
# The options that mean something to some commands alone.
ONLY_FOR = {
    "delete": "sync",
    "indexes": "sync",
    "health": "watch",
    "accept_older": "sync, plan",
    "max_delete": "sync, plan",
    "json": "plan",
    "rate": "plan",
    "repair": "verify",
}
EVERYTHING = "*"

log = logging.getLogger("lanmirror_sync")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="anaconda_sync.py",
        description="Mirror Conda channels: fetch and verify packages, then publish the indexes that name them.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command", nargs="?", default="sync", choices=["sync", "plan", "verify", "watch"],
        help="sync: bring the mirror up to the upstream (the default); plan: only say what that would fetch, and what "
        "it takes of the disk; "
        "verify: hash everything again, and hold the served indexes against what is there; "
        "watch: say again and again how the mirror is, until it is asked to end",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"lanmirror {__version__}")
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="the YAML configuration")
    parser.add_argument("--working-dir", type=Path, metavar="DIR", help="instead of the configuration's working_dir")
    parser.add_argument(
        "--delete", action="store_true",
        help="delete packages that no index has named for delete_grace_hours",
    )  # fmt: skip
    parser.add_argument(
        "--indexes", action="store_true",
        help="refresh the indexes and fetch no package, also beside a sync; needs on_demand",
    )  # fmt: skip
    parser.add_argument("--only", default="*", metavar="GLOB", help="only these paths, for example 'pkgs/main/*'")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="downloads at a time, instead of the configuration's jobs"
    )
    parser.add_argument(
        "--max-delete", type=float, metavar="PERCENT",
        help="how much of a subdir may go at once, instead of the configuration's max_delete",
    )  # fmt: skip
    parser.add_argument(
        "--accept-older", action="store_true", help="publish the upstream's index even where it is older than ours"
    )
    parser.add_argument("--json", action="store_true", help="with plan: for programs; docs/sync-engine.md has the keys")
    parser.add_argument(
        "--rate", metavar="RATE",
        help="with plan: how fast packages come, for example 50Mbit/s, instead of as fast as in the last sync",
    )  # fmt: skip
    parser.add_argument("--repair", action="store_true", help="with verify: fetch what is damaged or missing again")
    parser.add_argument(
        "--health", type=Path, metavar="DIR", help="with watch: where it writes ok.json or failing.json"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="also say what each format of an index cost, and what is asked again"
    )
    parser.add_argument("--check-config", action="store_true", help="check the configuration and do nothing else")
    return parser.parse_args(argv)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that another command has."""
    for option, commands in ONLY_FOR.items():
        given = getattr(arguments, option)
        if given is not None and given is not False and arguments.command not in commands.split(", "):
            name = option.replace("_", "-")
            raise ConfigError(
                f"--{name} is an option of {commands.replace(', ', ' and ')}, and not of {arguments.command}"
            )
    if arguments.command == "watch" and not (arguments.health and arguments.health.is_dir()):
        raise ConfigError(f"watch needs --health with a folder that is there, and has {arguments.health}")


def _config(arguments: argparse.Namespace) -> Config:
    """Return the configuration, with what the command line says over it; one that makes no sense is wrong."""
    config = overridden(load(arguments.config), arguments.working_dir, arguments.jobs, arguments.max_delete)
    if arguments.indexes and not config.on_demand:
        raise ConfigError(
            "--indexes needs on_demand: true; without it an index names what is held, and only a sync changes that"
        )
    if arguments.indexes and arguments.delete:
        raise ConfigError("--indexes and --delete do not go together: a refresh of indexes deletes no package")
    if not any(fnmatchcase(path, arguments.only) for path in config.paths()):
        inside = f"{arguments.only.rstrip('/')}/*"
        near = any(fnmatchcase(path, inside) for path in config.paths())
        hint = f"; did you mean {inside!r}?" if near else ""
        raise ConfigError(f"--only {arguments.only!r} matches nothing{hint} (there are: {', '.join(config.paths())})")
    return config


class Discreet(logging.Filter):
    """Takes the credentials out of addresses: a log is read by more people than the configuration."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the message, and a traceback with it; every record passes."""
        text = record.getMessage()
        if record.exc_info and record.exc_info[1]:
            text += "\n" + "".join(traceback.format_exception(record.exc_info[1])).rstrip()
        record.msg, record.args, record.exc_info = discreet(text), (), None
        return True


def main(argv: Sequence[str]) -> int:
    """Run the command line and return its exit code; see `EXIT_CODES`."""
    arguments = _arguments(argv)
    progress = _set_up_log()
    signals.listen()
    if arguments.verbose:
        logging.getLogger("lanmirror_sync").setLevel(logging.DEBUG)
    try:
        _check(arguments)
        if arguments.command == "watch" and not arguments.check_config:
            # Loaded where it is asked for, like what a terminal needs.
            from lanmirror_sync import watch  # noqa: PLC0415

            watch.watch(arguments.config, lambda: _config(arguments), arguments.health)
            return exits.OK
        config = _config(arguments)
        if arguments.check_config:
            return exits.OK
        command = {"plan": _plan, "verify": _verify}.get(arguments.command, _sync)
        return command(config, arguments, progress)
    except (ConfigError, LockedError, NoRoomError, UnreachableError, signals.EndedError) as error:
        log.error("%s", error)
        return exits.of_error(error)
    except OSError as error:
        log.error("%s", in_words(error))
        return exits.of_error(error)
    except Exception as error:
        log.exception("this is a fault of the program; what is served is whole")
        return exits.of_error(error)
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


def _prepare(store: Store) -> None:
    """Make the working directory ready.

    Raises:
        ConfigError: it cannot be written.
        OSError: the disk is full or broken.
    """
    try:
        store.create()
    except OSError as error:
        if is_everybodys(error):
            raise
        raise ConfigError(f"working_dir cannot be used: {in_words(error)}") from error


def _plan(config: Config, arguments: argparse.Namespace, progress: PlainProgress | TerminalProgress) -> int:
    """Print what a sync would do, for people or as JSON."""
    speed = rate("--rate", arguments.rate)
    store = Store(config.working_dir, PLAN)
    with Memory(store.memory_file, read_only=True) as memory, Fetcher(config) as fetcher:
        mirror = Mirror(config, store, memory)
        searches = begin_searches(mirror, arguments.only, fetcher)
        from lanmirror_sync import outlook  # noqa: PLC0415 - as in `_sync`
        from lanmirror_sync.preview import Preview  # noqa: PLC0415

        options = Options(arguments.only, accept_older=arguments.accept_older)
        preview = Preview(mirror, options, searches, fetcher, speed)
        found = preview.look()
    print(outlook.encode(found) if arguments.json else "\n".join(outlook.lines(found)))
    code = exits.of(preview.report)
    return exits.NO_ROOM if code in (exits.OK, exits.INCOMPLETE) and not found.fits else code


def _sync(config: Config, arguments: argparse.Namespace, progress: PlainProgress | TerminalProgress) -> int:
    """Run a sync, tell the outside, and log one line that sums it up."""
    store = Store(config.working_dir, INDEXES if arguments.indexes else PACKAGES)
    began, started = time.time(), time.monotonic()
    _prepare(store)
    with contextlib.ExitStack() as stack:
        stack.enter_context(store.locked())
        if not config.on_demand:
            # A refresh that began under another configuration would still publish complete indexes.
            stack.enter_context(store.locked(INDEXES))
        memory = stack.enter_context(Memory(store.memory_file))
        fetcher = stack.enter_context(Fetcher(config, progress.received))
        mirror = Mirror(config, store, memory)
        searches = begin_searches(mirror, arguments.only, fetcher)
        # Loaded while the upstream answers.
        from lanmirror_sync.sync import Run  # noqa: PLC0415

        options = Options(arguments.only, arguments.delete, arguments.accept_older, arguments.indexes)
        run = Run(mirror, options, searches, fetcher, progress)
        report = run.report
        with status.told(mirror, report, began, arguments.only, indexes=arguments.indexes):
            run.sync()
            report.crashes += fetcher.crashes
    spent = time.monotonic() - started
    part = [*(["indexes"] if arguments.indexes else []), *([arguments.only] if arguments.only != EVERYTHING else [])]
    log.info(
        "%s%s: %d files fetched (%s, %.1f MB/s)%s, %d deleted, %d failures, %d of %d subdirs unchanged, %.1f s",
        status.result_of(report), f" ({', '.join(part)} alone)" if part else "",
        report.fetched, amount(report.received), report.received / 1e6 / max(spent, 0.001),
        f", {report.promoted} from the cache ({amount(report.promoted_bytes)})" if report.promoted else "",
        report.deleted,
        report.failed, len(report.unchanged), report.asked, spent,
    )  # fmt: skip
    return exits.of(report)


def _verify(config: Config, arguments: argparse.Namespace, progress: PlainProgress | TerminalProgress) -> int:
    """Verify what is held, tell the outside, and log one line that sums it up."""
    # Loaded where it is asked for, like what a terminal needs.
    from lanmirror_sync.verify import Verification  # noqa: PLC0415

    progress.verb = "hash"
    store = Store(config.working_dir)
    began, started = time.time(), time.monotonic()
    _prepare(store)
    with store.locked(), Memory(store.memory_file) as memory, Fetcher(config, progress.received) as fetcher:
        mirror = Mirror(config, store, memory)
        verification = Verification(mirror, fetcher, progress, repair=arguments.repair)
        report = verification.report
        with status.told(mirror, report, began, arguments.only, verification.counts):
            verification.run(arguments.only)
            report.crashes += fetcher.crashes
    counts = verification.counts
    log.info(
        "%s: %d files referenced, %d held, %d repaired, %d orphaned, %d problems left, %.1f s",
        "incomplete" if report.failed else "verified", counts["referenced"], counts["held"], counts["repaired"],
        counts["orphaned"], report.failed, time.monotonic() - started,
    )  # fmt: skip
    return exits.of(report)
