"""The common part of the benchmarks' command lines."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.common import lab
from bench.common.report import Result

ROOT = Path(__file__).resolve().parents[2]
WORK = Path("/var/tmp/lanmirror-bench")  # Not /tmp, which may be memory: the disk is measured too.
LOCK = Path("/run/lanmirror-bench.lock")
# Set for the process that measures, where it has a network of its own.
INSIDE = "LANMIRROR_BENCH_INSIDE"
# `ip netns` keeps the names of namespaces there: without it, two runs would take each other's.
OWN_NAMES = 'mkdir -p /run/netns && mount -t tmpfs lanmirror-bench /run/netns && exec "$@"'


def parser(program: str, description: str, scenarios: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser of the options that every benchmark has."""
    made = argparse.ArgumentParser(prog=program, description=description)
    made.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(scenarios)}; all by default")
    made.add_argument(
        "--quick", "--small", action="store_true", help="small sizes and one round, to see that everything works"
    )
    made.add_argument("--rounds", type=int, metavar="N", help="how often each tool is run, in turn (3)")
    made.add_argument("--work", type=Path, default=WORK, metavar="DIR", help=f"where data are kept ({WORK})")
    made.add_argument("--markdown", type=Path, metavar="FILE", help="write the figures there as well")
    return made


def parse(made: argparse.ArgumentParser, argv: Sequence[str], scenarios: Sequence[str]) -> argparse.Namespace:
    """Read the command line; a wrong one is named and ends the program."""
    options = made.parse_args(argv)
    if unknown := set(options.scenarios) - set(scenarios):
        made.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(scenarios)}")
    if options.markdown and not options.markdown.parent.is_dir():
        made.error(f"--markdown {options.markdown}: there is no folder {options.markdown.parent}")
    if not re.fullmatch(r"[\w/.+-]+", str(options.work.absolute())):
        made.error(f"--work {options.work}: letters, digits and /._+- only, since the path stands in Nginx's settings")
    options.work = options.work.absolute()
    options.rounds = (1 if options.quick else 3) if options.rounds is None else options.rounds
    if options.rounds < 1:
        made.error(f"--rounds {options.rounds}: a whole number from 1 on")
    if os.geteuid() != 0:
        made.error("root's rights are needed, for network namespaces")
    return options


@contextlib.contextmanager
def alone(lock: Path = LOCK) -> Iterator[None]:
    """Hold the lock of the benchmarks, or that of a folder.

    Raises:
        SystemExit: another one is running.
    """
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SystemExit("another benchmark is running; two at once would measure each other") from error
        yield


def apart(package: str, argv: Sequence[str]) -> int:
    """Run a benchmark's command line in a process with a network and mounts of its own; return its exit code.

    So no packet leaves the machine, whatever a server thinks it needs, all ports are free, and nothing that is mounted
    there outlives it.
    """
    own = ["unshare", "--net", "--mount", "--kill-child", "sh", "-c", OWN_NAMES, "sh"]
    environment = {**os.environ, INSIDE: "1", "PYTHONPATH": str(ROOT)}
    command = [*own, sys.executable, "-m", package, *argv]
    return subprocess.run(command, env=environment, check=False).returncode


def made_by(program: str, options: argparse.Namespace, checkout: Path) -> tuple[str, str]:
    """Return the command, as it could be typed again, and the commit of the checkout that was measured."""
    shown = [program, *options.scenarios, *(["--quick"] if options.quick else [])]
    git = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    return " ".join([*shown, f"--rounds {options.rounds}"]), commit


def publish(
    options: argparse.Namespace, title: str, how: Sequence[str], programs: Sequence[str], results: Sequence[Result]
) -> None:
    """Print the page, and write it where the command line says.

    Args:
        options: the command line.
        title: of the page.
        how: lines on how the figures were made.
        programs: the names of all that took part, with versions.
        results: the sections.
    """
    head = [f"# {title}", "", *how, "", f"- Machine: {lab.machine()}", f"- Programs: {'; '.join(programs)}", ""]
    if options.quick:
        head += ["**Quick sizes: this shows that it works; the figures say nothing.**", ""]
    text = "\n".join(head) + "\n" + "\n".join(result.markdown() for result in results)
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")


def today() -> str:
    """Return the date of a page."""
    return time.strftime("%Y-%m-%d")
