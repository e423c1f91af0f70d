"""The command line of `python3 -m bench.conda_cache`."""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Sequence

from bench.common import command, lab, load
from bench.common.report import Result
from bench.common.wire import FAR
from bench.conda_cache.site import Place
from bench.conda_cache.tables import all_tables

DEBIAN = {
    "nginx": "nginx-light",
    "haproxy": "haproxy",
    "ip": "iproute2",
    "unshare": "util-linux",
    "curl": "curl",
} | load.DEBIAN
PACKAGE = "bench.conda_cache"
VERSIONS = (("nginx", "-v"), ("haproxy", "-v"), ("wrk", "-v"), ("curl", "-V"))


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    names = [*all_tables()]
    parser = command.parser(
        f"python3 -m {PACKAGE}",
        "Measure Conda on demand, as the role sets it up, beside a static file and beside the upstream itself; print "
        "the figures as Markdown. Needs root, for namespaces; installs missing programs from Debian; all traffic "
        "stays on this machine.",
        names,
    )
    return command.parse(parser, argv, names)


def main(argv: Sequence[str]) -> int:
    """Run the tables and print the figures; 0 whatever they are, since this is no test."""
    options = arguments(argv)
    if command.INSIDE in os.environ:
        return run(options)
    options.work.mkdir(parents=True, exist_ok=True)
    # Small sizes measure nothing: a test may run them beside anything but itself.
    with command.alone(options.work / "lock") if options.quick else command.alone():
        lab.need(DEBIAN)
        return command.apart(PACKAGE, argv)


def run(options: argparse.Namespace) -> int:
    """Run the tables, in a process with a network of its own."""
    busy = os.getloadavg()[0]
    for arguments_ in (["link", "set", "lo", "up"], ["address", "add", f"{FAR}/32", "dev", "lo"]):
        subprocess.run(["ip", *arguments_], check=True)
    place = Place(options.work, options.rounds, options.quick)
    place.end()
    tables = all_tables()
    results: list[Result] = []
    for name in options.scenarios or tables:
        print(f"{name}:", flush=True)
        results += tables[name](place)
    place.end()
    typed, commit = command.made_by(f"python3 -m {PACKAGE}", options, command.ROOT)
    how = [
        f"Made by `{typed}`, {command.today()}, roles and engine at commit {commit}. Medians of runs in turn,",
        "on one machine, which serves, asks and holds the packets back at once. Figures of two runs do not compare;",
        "the ratios of one do. Other work on the machine as it began (load average): "
        f"{busy:.1f}; above 0.5, the ratios waver.",
    ]
    command.publish(options, "Conda on demand", how, [lab.version(*program) for program in VERSIONS], results)
    return 0
