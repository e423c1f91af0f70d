"""The scenarios of the engine's benchmark, one function for each."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from math import inf
from pathlib import Path
from statistics import median
from threading import Event

from bench.common import channels
from bench.common.channels import CHANNEL, SUBDIR, Channel, incomplete
from bench.common.cost import LIMIT_SECONDS, Cost, measure, problem
from bench.common.lab import FAULTS, VICTIM, Lab
from bench.common.report import MIB, Bar, Result, Row, at_least, at_most
from bench.engine import tools
from bench.engine.tools import Job, Tool

ENGINE_SUBDIR = Path("cloud", CHANNEL, SUBDIR)
# A run that is stuck longer than this is said to be stuck, and ended.
STUCK_SECONDS = 300
# The files of a large run are removed at the end only, from this folder.
FEW_FILES = 100
ASIDE = "aside"


@dataclass(frozen=True)
class Bench:
    """The common state of the scenarios.

    Attributes:
        lab: the server.
        folder: where mirrors are made; all that is in it may go.
        engine: the engine.
        conda_mirror: the peer of the same kind; None where it is left out.
        others: further tools, that the command line names.
        rounds: how often each is run.
        quick: small sizes, to see that everything works; the figures say nothing.
    """

    lab: Lab
    folder: Path
    engine: Tool
    conda_mirror: Tool | None
    others: Sequence[Tool]
    rounds: int
    quick: bool

    @property
    def www(self) -> Path:
        """Where the channels are."""
        return self.lab.www

    def end(self) -> None:
        """Remove the files of earlier runs."""
        shutil.rmtree(self.folder / ASIDE, ignore_errors=True)

    def run(self, tool: Tool, job: Job, *, far: bool, limit: float = LIMIT_SECONDS) -> Cost:
        """Run a tool once, after the writes of others have reached the disk."""
        os.sync()
        namespace, _ = self.lab.place(far=far)
        return measure(tool.command(job), self.lab.link.command(namespace), job.scratch, limit)

    def job(self, name: str, channel: Channel, *, far: bool, jobs: int, listed: bool = True, prefix: str = "") -> Job:
        """Return the job of bringing a channel to a folder of that name."""
        base = f"{self.lab.place(far=far)[1]}{prefix}/{channel.tree}"
        names = tuple(channel.packages()) if listed else ()
        return Job(base, self.folder / name, self.folder / f"{name}.scratch", jobs, names)

    def fresh(self, entries: Sequence[tuple[Tool, int]], channel: Channel, *, far: bool) -> dict[str, Row]:
        """Run tools in turn, `rounds` times, each from nothing, and check the files of each.

        Args:
            entries: the tools, each with a number of connections.
            channel: the packages to fetch.
            far: whether behind the link, or beside the server.
        """
        several = len({jobs for _, jobs in entries}) > 1
        costs: dict[str, list[Cost]] = {}
        wrong: dict[str, str] = {}
        for turn in range(self.rounds):
            start = turn % len(entries)
            for tool, jobs in (*entries[start:], *entries[:start]):
                name = f"{tool.name}, {jobs} connections" if several and tool is not self.conda_mirror else tool.name
                job = self.job("fresh", channel, far=far, jobs=jobs)
                clear(job)
                cost = self.run(tool, job, far=far)
                costs.setdefault(name, []).append(cost)
                wrong[name] = wrong.get(name) or problem(cost) or incomplete(job.folder, channel.packages())
                say(name, cost, wrong[name])
                clear(job)
        # The engine's rows first, in the order they were given, whoever began the first round.
        order = [f"{tool.name}, {jobs} connections" for tool, jobs in entries] + [tool.name for tool, _ in entries]
        return {name: Row(name, costs[name], wrong[name]) for name in sorted(costs, key=order.index)}


def say(name: str, cost: Cost, wrong: str = "") -> None:
    """Tell the person at the keyboard how it goes."""
    print(f"  {name}: {cost.seconds:.2f} s, {cost.peak_bytes / MIB:.0f} MiB {wrong}".rstrip(), flush=True)


def clear(job: Job) -> None:
    """Put the files of a run aside, or remove them where they are few.

    A run that makes many files within minutes after as many were deleted is slow with any tool: ext4 passes over the
    inodes of each of them (`recently_deleted` in the kernel's fs/ext4/ialloc.c). `Bench.end` removes it all.
    """
    for folder in (job.folder, job.scratch):
        if len([*islice(folder.rglob("*"), FEW_FILES)]) < FEW_FILES:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            aside = folder.parent / ASIDE
            aside.mkdir(exist_ok=True)
            folder.rename(aside / str(len([*aside.iterdir()])))


def over(rows: Mapping[str, Row], name: str, peer: str) -> float:
    """Return how many times as long as a peer it took."""
    return rows[name].seconds / rows[peer].seconds


# ---- from nothing --------------------------------------------------------------------------------------------


def far_packages(bench: Bench, count: int) -> Result:
    """Fetch many small packages over a link with a round trip, over 16 and 64 connections."""
    channel = channels.small(bench.www, count)
    both = [bench.engine, Tool("aria2c", tools.aria2c), Tool("curl", tools.curl), *bench.others]
    entries = [(tool, jobs) for tool in both for jobs in (16, 64)]
    if bench.conda_mirror:
        entries.append((bench.conda_mirror, 1))
    rows = bench.fresh(entries, channel, far=True)
    bars = []
    for jobs in (16, 64):
        mine, theirs = f"engine, {jobs} connections", f"aria2c, {jobs} connections"
        text = f"{jobs} connections: at most 1.25 times the time of aria2c"
        bars.append(at_most(text, over(rows, mine, theirs), 1.25, "times"))
        bars.append(
            Bar(
                f"{jobs} connections: beside curl",
                f"{over(rows, mine, theirs.replace('aria2c', 'curl')):.2f} times",
                None,
            )
        )
    if bench.conda_mirror:
        faster = over(rows, "conda-mirror", "engine, 16 connections")
        bars.append(at_least("at least 10 times faster than conda-mirror", faster, 10, "times"))
    return Result(f"{count} packages of 20 to 200 KB, 60 ms round trip", list(rows.values()), bars)


def near_packages(bench: Bench) -> Result:
    """Fetch many small packages with no latency."""
    count = 200 if bench.quick else 2000
    channel = channels.small(bench.www, count)
    all_tools = [bench.engine, Tool("aria2c", tools.aria2c), Tool("curl", tools.curl), *bench.others]
    if bench.conda_mirror:
        all_tools.append(bench.conda_mirror)
    rows = bench.fresh([(tool, 16) for tool in all_tools], channel, far=False)
    bars = [
        at_most("not slower than aria2c", over(rows, "engine", "aria2c"), 1, "times"),
        Bar("beside curl", f"{over(rows, 'engine', 'curl'):.2f} times", None),
    ]
    if bench.conda_mirror:
        bars.append(
            at_least("at least 5 times faster than conda-mirror", over(rows, "conda-mirror", "engine"), 5, "times")
        )
    return Result(f"{count} packages of 20 to 200 KB, no latency, 16 connections", list(rows.values()), bars)


def large_packages(bench: Bench) -> Result:
    """Fetch three large packages with no latency."""
    mib = 20 if bench.quick else 500
    channel = channels.large(bench.www, 3, mib)
    all_tools = [bench.engine, Tool("curl, then sha256sum", tools.curl_then_sha256sum), *bench.others]
    if bench.conda_mirror:
        all_tools.append(bench.conda_mirror)
    rows = bench.fresh([(tool, 16) for tool in all_tools], channel, far=False)
    bars = [
        at_most(
            "at least the speed of curl followed by sha256sum", over(rows, "engine", "curl, then sha256sum"), 1, "times"
        ),
        at_most("under 100 MiB of memory", rows["engine"].peak_bytes / MIB, 100, "MiB"),
    ]
    return Result(f"3 packages of {mib} MiB, no latency", list(rows.values()), bars)


def package_size(bench: Bench) -> Result:
    """See whether memory grows with the size of a package."""
    rows = []
    for mib in (2, 10, 40) if bench.quick else (10, 100, 500):
        row = next(iter(bench.fresh([(bench.engine, 16)], channels.large(bench.www, 1, mib), far=False).values()))
        rows.append(replace(row, name=f"engine, one package of {mib} MiB"))
    growth = (rows[-1].peak_bytes - rows[0].peak_bytes) / MIB
    bar = at_most("memory does not grow with the size of a package (10 MiB of play)", growth, 10, "MiB more")
    return Result("Memory and the size of a package", rows, [bar])


# ---- again ---------------------------------------------------------------------------------------------------


def second_run(bench: Bench) -> Result:
    """Run again over a large subdir: unchanged, and with one package changed."""
    count = 2000 if bench.quick else 50_000
    many = channels.many(bench.www, count, bench.rounds + 1, patched=False)
    many.serve(0)
    mine, theirs = (bench.job(name, many.served, far=False, jobs=16, listed=False) for name in ("again", "again-peer"))
    clear(mine)
    first = bench.run(bench.engine, mine, far=False)
    say("engine, first run", first, problem(first))
    pairs = [(bench.engine, mine)]
    if bench.conda_mirror:
        clear(theirs)
        (theirs.folder / SUBDIR).mkdir(parents=True)
        channels.link(channels.pool(bench.www), many.versions[0], theirs.folder / SUBDIR)
        bench.run(bench.conda_mirror, theirs, far=False)
        pairs.append((bench.conda_mirror, theirs))

    rows: dict[str, Row] = {}
    costs: dict[str, list[Cost]] = {}
    wrong: dict[str, str] = {}
    for version in [0] * bench.rounds + list(range(1, bench.rounds + 1)):
        if version:
            many.serve(version)
        for tool, job in pairs:
            name = f"{tool.name}, {'one package changed' if version else 'unchanged'}"
            cost = bench.run(tool, job, far=False)
            costs.setdefault(name, []).append(cost)
            folder = job.folder / (ENGINE_SUBDIR if tool is bench.engine else SUBDIR)
            wrong[name] = wrong.get(name) or problem(cost) or differs(folder, many.versions[version])
            say(name, cost, wrong[name])
    rows = {name: Row(name, costs[name], wrong[name]) for name in costs}
    rows["engine, first run"] = Row("engine, first run", [first], problem(first))
    still, changed = rows["engine, unchanged"], rows["engine, one package changed"]
    bars = [
        at_most("unchanged: under 0.5 s", still.seconds, 0.5, "s"),
        at_most("unchanged: under 80 MiB", still.peak_bytes / MIB, 80, "MiB"),
        at_most("one package changed: under 2.5 s", changed.seconds, 2.5, "s"),
        at_most("one package changed: under 250 MiB", changed.peak_bytes / MIB, 250, "MiB"),
    ]
    for job in (mine, theirs):
        clear(job)
    return Result(f"Second run over {count:,} packages, no latency", list(rows.values()), bars)


def differs(folder: Path, index: Path) -> str:
    """Return the fault of a large subdir's mirror, in its index or its files' names. Empty: none."""
    missing = Channel("", index).packages().keys() - {file.name for file in folder.iterdir()}
    return channels.differs(folder, index) or (f"{len(missing)} packages missing" if missing else "")


def half_million(bench: Bench) -> Result:
    """Publish the changed index of a subdir of the size of conda-forge/linux-64, its packages in place."""
    count = 10_000 if bench.quick else 500_000
    many = channels.many(bench.www, count, bench.rounds + 1, patched=True)
    many.serve(0)
    job = bench.job("half-million", many.served, far=False, jobs=16, listed=False)
    clear(job)
    folder = job.folder / ENGINE_SUBDIR
    folder.mkdir(parents=True)
    channels.link(channels.pool(bench.www), many.versions[0], folder)
    first = bench.run(bench.engine, job, far=False)
    say("engine, first run", first, problem(first))
    costs, wrong, written, told = [], "", [], ""
    for version in range(1, bench.rounds + 1):
        many.serve(version)
        before = shards(folder)
        cost = bench.run(bench.engine, job, far=False)
        costs.append(cost)
        wrong = wrong or problem(cost) or differs(folder, many.versions[version])
        written.append(len(shards(folder) - before))
        told = (job.scratch / "output").read_text(errors="replace").replace(f"{bench.folder}/", "")
        say("engine, index changed", cost, wrong)
    unchanged = bench.run(bench.engine, job, far=False)
    say("engine, unchanged", unchanged, problem(unchanged))
    rows = [
        Row("engine, a hundred records changed", costs, wrong),
        Row("engine, unchanged", [unchanged], problem(unchanged)),
        Row("engine, first run, which hashes what is in place", [first], problem(first)),
    ]
    if bench.conda_mirror:
        theirs = bench.job("half-million-peer", many.served, far=False, jobs=1, listed=False)
        clear(theirs)
        (theirs.folder / SUBDIR).mkdir(parents=True)
        channels.link(channels.pool(bench.www), many.versions[0], theirs.folder / SUBDIR)
        cost = bench.run(bench.conda_mirror, theirs, far=False)
        say("conda-mirror", cost, problem(cost))
        rows.append(Row("conda-mirror, packages in place", [cost], problem(cost)))
        clear(theirs)
    size = (many.versions[0] / "repodata.json").stat().st_size
    published = {
        file.name: file.stat().st_size
        for file in sorted(folder.iterdir())
        if "repodata" in file.name and not file.name.startswith(".")
    }
    bars = [
        at_most("all formats and shards published in under 60 s", rows[0].seconds, 60, "s"),
        at_most("in under 1 GiB of memory", rows[0].peak_bytes / (1 << 30), 1, "GiB"),
        Bar("only the shards that changed are made again", f"{median(written):.0f} of {len(shards(folder))}", None),
    ]
    notes = [
        "Published: " + ", ".join(f"`{name}` {length / 1e6:.1f} MB" for name, length in published.items()) + ".",
        "What the engine says of the last run:\n\n```\n" + told.strip() + "\n```",
    ]
    clear(job)
    return Result(f"A changed index of {count:,} records ({size / 1e6:.0f} MB), packages in place", rows, bars, notes)


def shards(folder: Path) -> set[str]:
    """Return the names of the shards of a subdir."""
    found = folder.rglob("*.msgpack.zst")
    return {file.name for file in found if file.name != "repodata_shards.msgpack.zst"}


# ---- one package that cannot be had ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """A run with or without a package that cannot be had: its cost, and seconds from its start; infinite for never.

    Attributes:
        cost: of the whole run.
        placed: until the last of the other packages stood in its place.
        served: until there was an index of their subdir.
        elsewhere: until there was one of the channel's other subdir.
    """

    cost: Cost
    placed: float
    served: float
    elsewhere: float


def stuck_package(bench: Bench) -> Result:
    """Measure the delay by one package that cannot be had: runs with it and without it, in turn."""
    channel = channels.small(bench.www, 60 if bench.quick else 400)
    usual, stuck = [], {}
    for fault in FAULTS:
        usual.append(trial(bench, channel, ""))
        say("engine, nothing wrong", usual[-1].cost)
        stuck[fault] = trial(bench, channel, fault)
        say(f"engine, one package: {fault}", stuck[fault].cost)
    placed, served = (median(getattr(run, what) for run in usual) for what in ("placed", "served"))
    rows = [Row("engine, nothing wrong", [run.cost for run in usual])]
    bars, notes = [], [f"- nothing wrong: packages in place after {placed:.2f} s, their index after {served:.2f} s"]
    for fault, run in stuck.items():
        rows.append(Row(f"engine, one package: {fault}", [run.cost], "does not end" if run.cost.late else ""))
        text = f"{fault}: the others not in place later than 1.25 times without it"
        bars.append(at_most(text, run.placed / placed, 1.25, "times"))
        text = f"{fault}: an index names the others not later than 1.25 times without it"
        bars.append(at_most(text, run.served / served, 1.25, "times"))
        notes.append(
            f"- {fault}: the others in place after {run.placed:.2f} s, their index after {run.served:.2f} s, the "
            f"channel's other subdir after {run.elsewhere:.2f} s; {problem(run.cost) or 'exit code 0'}"
        )
    return Result("One package that cannot be had, 60 ms round trip, 16 connections", rows, bars, ["\n".join(notes)])


def trial(bench: Bench, channel: Channel, fault: str) -> Trial:
    """Run the engine from nothing, with one package at fault or none."""
    job = bench.job("stuck", channel, far=True, jobs=16, prefix=f"/{fault}" if fault else "")
    job = replace(job, arches=("noarch", SUBDIR))
    clear(job)
    index = job.folder / ENGINE_SUBDIR / "repodata.json"
    elsewhere = job.folder / "cloud" / CHANNEL / "noarch" / "repodata.json"
    with ThreadPoolExecutor(2) as watchers:
        ended = Event()
        seen = [watchers.submit(appeared, file, ended) for file in (index, elsewhere)]
        cost = bench.run(bench.engine, job, far=True, limit=STUCK_SECONDS)
        ended.set()
        served, other = (future.result() - cost.began for future in seen)
    try:
        # A rename sets the change time of the inode.
        last = max((index.parent / name).stat().st_ctime for name in job.names if name != VICTIM)
    except FileNotFoundError:
        last = inf
    clear(job)
    return Trial(cost, last - cost.began, served, other)


def appeared(file: Path, ended: Event) -> float:
    """Return when a file appeared (Unix time, seconds), within a twentieth of a second; infinite for never."""
    while not (there := file.exists()) and not ended.wait(0.05):
        pass
    return time.time() if there or file.exists() else inf


def all_scenarios(*, quick: bool) -> dict[str, Callable[[Bench], Result]]:
    """Return the scenarios by the name that the command line has for them, in the order of running."""
    few, more = (60, 200) if quick else (400, 2000)
    return {
        "far-400": lambda bench: far_packages(bench, few),
        "far-2000": lambda bench: far_packages(bench, more),
        "near-2000": near_packages,
        "large": large_packages,
        "package-size": package_size,
        "second-run": second_run,
        "half-million": half_million,
        "stuck": stuck_package,
    }
