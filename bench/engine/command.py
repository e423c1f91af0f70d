"""The command line of `python3 -m bench.engine`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.common import channels, command, lab
from bench.common.report import Result, Row
from bench.engine import tools
from bench.engine.scenarios import Bench, all_scenarios
from bench.engine.tools import Tool

ROUND_TRIP = 0.06
LINK = "link"
VERSIONS = (("aria2c", "-v"), ("curl", "-V"), ("nginx", "-v"))


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    names = [LINK, *all_scenarios(quick=False)]
    parser = command.parser(
        "python3 -m bench.engine",
        "Measure the sync engine beside its peers, and print the figures as Markdown. Needs root, for "
        "network namespaces; installs the Debian packages it misses; all traffic stays on this machine.",
        names,
    )
    parser.add_argument(
        "--engine", type=Path, default=command.ROOT, metavar="DIR", help="the checkout whose engine is measured"
    )
    parser.add_argument("--without-conda-mirror", action="store_true", help="leave the slowest peer out")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=COMMAND",
        help="measure another tool; in COMMAND stand {url}, {channel}, {platform}, {dir}, {list} and {jobs} for the "
        "subdir's URL, the channel's, its platform, where files go, a file of URLs, and the number of connections",
    )  # fmt: skip
    options = command.parse(parser, argv, names)
    if not (options.engine / "files/anaconda_sync.py").is_file():
        parser.error(f"--engine {options.engine}: has no files/anaconda_sync.py")
    try:
        options.peers = [tools.other(peer) for peer in options.peer]
    except ValueError as error:
        parser.error(str(error))
    taken = {"engine", "aria2c", "curl", "conda-mirror", "curl, then sha256sum"}
    for peer in options.peers:
        if peer.name in taken:
            parser.error(f"--peer {peer.name}: there is a row of that name already; give it another")
        taken.add(peer.name)
    return options


def main(argv: Sequence[str]) -> int:
    """Run the scenarios and print the figures; 0 whatever they are, since this is no test."""
    options = arguments(argv)
    with command.alone():
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
            bench.end()
    typed, commit = command.made_by("python3 -m bench.engine", options, options.engine)
    how = [
        f"Made by `{typed}`, {command.today()}, engine at commit {commit}. Medians of runs in turn,",
        "on one machine, which serves, fetches and holds the packets back at once. Figures of two runs do not",
        "compare; the ratios of one do. Only the engine and conda-mirror check hashes and publish an index; aria2c",
        "and curl are given the list of files.",
    ]
    programs = [tools.CONDA_MIRROR.replace("==", " "), *(lab.version(*program) for program in VERSIONS)]
    command.publish(options, "The sync engine beside its peers", how, programs, results)
    return 0


def link(work: Path, rounds: int) -> Result:
    """Measure the link without delay beside the loopback, to show that the link is not the limit."""
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
