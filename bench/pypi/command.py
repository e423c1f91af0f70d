"""The command line of `python3 -m bench.pypi`."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from bench.common import command, lab, load
from bench.pypi import far, servers, upstream
from bench.pypi.scenarios import Bench, all_scenarios, warm

DEBIAN = {"nginx": "nginx-light", "ip": "iproute2", "unshare": "util-linux"} | load.DEBIAN
SERVERS = 4
# Those of the first install, over a long way out.
FAR = {"lock": far.lock, "small": far.small, "large": far.large, "evening": far.evening}
# Seconds that Nginx takes a page for fresh before it asks devpi: as the role has it, and in a quick run.
FRESH, FRESH_QUICK = 60, 2


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    names = [*all_scenarios(), *FAR]
    parser = command.parser(
        "python3 -m bench.pypi",
        "Measure the PyPI cache, as its role sets it up, beside devpi alone, devpi behind the Nginx configuration that "
        "it generates, proxpi, and a static file; print the figures as Markdown. Needs root, for a network "
        "namespace; installs missing programs from Debian and PyPI; the measured traffic stays on this machine.",
        names,
    )
    return command.parse(parser, argv, names)


def main(argv: Sequence[str]) -> int:
    """Run the scenarios and print the figures; 0 whatever they are, since this is no test."""
    options = arguments(argv)
    work = options.work / "pypi"
    if command.INSIDE in os.environ:
        return measure(options)
    with command.alone():
        lab.need(DEBIAN)
        work.mkdir(parents=True, exist_ok=True)
        servers.install(work)
        upstream.fetch_wheels(work / "wheels")
        return command.apart("bench.pypi", argv)


def measure(options: argparse.Namespace) -> int:
    """Run the scenarios, in a network of this process's own."""
    work = options.work / "pypi"
    busy = os.getloadavg()[0]
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    seconds = 1 if options.quick else 2
    scenarios = all_scenarios()
    chosen = options.scenarios or [*scenarios, *FAR]
    results = []
    if near := [name for name in chosen if name in scenarios]:
        static = work / "static"
        shutil.rmtree(static, ignore_errors=True)
        static.mkdir()
        cold = [f"cold{number}" for number in range(SERVERS)]
        spare = 40 if options.quick else 1000
        made = upstream.make(work / "upstream", work / "wheels", spare, cold)
        fresh = FRESH_QUICK if options.quick else FRESH
        with servers.all_servers(work, made, static, pages_fresh=fresh) as running:
            names = upstream.spares(spare)
            bench = Bench(running, made, static, work, options.rounds, seconds, cold, names, fresh)
            warm(bench)
            for name in near:
                print(f"{name}:", flush=True)
                results += scenarios[name](bench)
    if distant := [name for name in chosen if name in FAR]:
        place = far.Far(work, work / "far", options.rounds, options.quick)
        far.make(place)
        for name in distant:
            print(f"{name}:", flush=True)
            results.append(FAR[name](place))
    typed, commit = command.made_by("python3 -m bench.pypi", options, command.ROOT)
    how = [
        f"Made by `{typed}`, {command.today()}, roles at commit {commit}. Medians of runs in turn, on one machine,",
        f"which serves and asks at once: `wrk`, over {load.CONNECTIONS} connections, {seconds} s a run. Figures of two",
        "runs do not compare; the ratios of one do. All servers have the same upstream, on the loopback address.",
        f"Other work on the machine as it began (load average): {busy:.1f}; above 0.5, the ratios waver.",
    ]
    pins = [pin.replace("==", " ") for pin in (*servers.PROXPI, servers.UV)]
    devpi = next(line for line in servers.DEVPI_PINS.read_text().splitlines() if line.startswith("devpi-server=="))
    programs = [devpi.replace("==", " "), *pins, lab.version("nginx", "-v"), lab.version("wrk", "-v")]
    command.publish(options, "The PyPI cache beside its peers", how, programs, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
