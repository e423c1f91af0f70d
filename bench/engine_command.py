"""The command line of `bench/engine`."""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import channels, lab, tools
from bench.report import Result, Row
from bench.scenarios import Bench, all_scenarios
from bench.tools import Tool

ROOT = Path(__file__).resolve().parent.parent
WORK = Path("/var/tmp/lanmirror-bench")  # Not /tmp, which may be memory: a disk is part of what is measured.
LOCK = Path("/run/lanmirror-bench.lock")
ROUND_TRIP = 0.06
LINK = "link"
VERSIONS = (("aria2c", "-v"), ("curl", "-V"), ("nginx", "-v"))


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="bench/engine",
        description="Measure the sync engine beside its peers, and print what came out as Markdown. Needs root, for "
        "network namespaces; installs the Debian packages it misses; all traffic stays on this machine.",
    )
    names = [LINK, *all_scenarios(quick=False)]
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes and one round, to see that everything works")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often each tool is run, in turn (3)")
    parser.add_argument(
        "--engine", type=Path, default=ROOT, metavar="DIR", help="the checkout whose engine is measured"
    )
    parser.add_argument("--without-conda-mirror", action="store_true", help="leave the slowest peer out")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=COMMAND",
        help="measure another tool; in COMMAND stand {url}, {channel}, {platform}, {dir}, {list} and {jobs} for the "
        "subdir's URL, the channel's, its platform, where files go, a file of URLs, and the number of connections",
    )  # fmt: skip
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help=f"where data are kept ({WORK})")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args(argv)
    if unknown := set(options.scenarios) - set(names):
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if not (options.engine / "files/anaconda_sync.py").is_file():
        parser.error(f"--engine {options.engine}: has no files/anaconda_sync.py")
    if options.markdown and not options.markdown.parent.is_dir():
        parser.error(f"--markdown {options.markdown}: there is no folder {options.markdown.parent}")
    if not re.fullmatch(r"[\w/.+-]+", str(options.work.absolute())):
        parser.error(
            f"--work {options.work}: letters, digits and /._+- only, since the path stands in Nginx's settings"
        )
    options.work = options.work.absolute()
    options.rounds = (1 if options.quick else 3) if options.rounds is None else options.rounds
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: a whole number from 1 on")
    try:
        options.peers = [tools.other(peer) for peer in options.peer]
    except ValueError as error:
        parser.error(str(error))
    taken = {"engine", "aria2c", "curl", "conda-mirror", "curl, then sha256sum"}
    for peer in options.peers:
        if peer.name in taken:
            parser.error(f"--peer {peer.name}: there is a row of that name already; give it another")
        taken.add(peer.name)
    if os.geteuid() != 0:
        parser.error("root's rights are needed, for network namespaces")
    return options


def main(argv: Sequence[str]) -> int:
    """Run the scenarios and print the figures; 0 whatever they are, since this is no test."""
    options = arguments(argv)
    lock = LOCK.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another benchmark is running; two at once would measure each other", file=sys.stderr)
        return 1
    lab.need(tools.DEBIAN)
    www = options.work / "www"
    www.mkdir(parents=True, exist_ok=True)
    conda_mirror = None if options.without_conda_mirror else tools.conda_mirror(options.work / "conda-mirror")
    scenarios = all_scenarios(quick=options.quick)
    chosen = options.scenarios or [LINK, *scenarios]
    results = [link(options.work, options.rounds)] if LINK in chosen else []
    with lab.lab(options.work, ROUND_TRIP) as place:
        engine = tools.engine(options.engine / "files/anaconda_sync.py")
        bench = Bench(
            place, options.work / "mirrors", engine, conda_mirror, options.peers, options.rounds, options.quick
        )
        for name in (name for name in chosen if name != LINK):
            print(f"{name}:", flush=True)
            results.append(scenarios[name](bench))
    text = report(options, results)
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    return 0


def link(work: Path, rounds: int) -> Result:
    """Measure the link without delay beside the loopback, to show that it is not what limits."""
    channel = channels.small(work / "www", 200)
    tool = Tool("curl", tools.curl)
    with lab.lab(work, 0.0) as place:
        bench = Bench(place, work / "mirrors", tool, None, (), rounds, quick=True)
        rows = [
            Row(f"curl, 64 connections, {name}", row.costs, row.wrong)
            for name, far in (("loopback", False), ("the link, with no delay", True))
            for row in bench.fresh([(tool, 64)], channel, far=far).values()
        ]
    return Result("The link itself", rows)


def report(options: argparse.Namespace, results: Sequence[Result]) -> str:
    """Return the page."""
    shown = ["bench/engine", *options.scenarios, *(["--quick"] if options.quick else [])]
    command = " ".join([*shown, f"--rounds {options.rounds}"])
    git = ["git", "-C", str(options.engine), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    versions = [
        tools.CONDA_MIRROR.replace("==", " "),
        *(lab.version(*program) for program in VERSIONS),
    ]
    head = [
        "# The sync engine beside its peers",
        "",
        f"Made by `{command}`, {time.strftime('%Y-%m-%d')}, engine at commit {commit}. Medians of runs in turn,",
        "on one machine, which serves, fetches and holds the packets back at once. Figures of two runs do not",
        "compare; the ratios of one do. Only the engine and conda-mirror check hashes and publish an index; aria2c",
        "and curl are given the list of files.",
        "",
        f"- Machine: {lab.machine()}",
        f"- Programs: {'; '.join(versions)}",
        "",
    ]
    if options.quick:
        head += ["**Quick sizes: this shows that it works; the figures say nothing.**", ""]
    return "\n".join(head) + "\n" + "\n".join(result.markdown() for result in results)
