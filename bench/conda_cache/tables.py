"""The tables of the benchmark of Conda on demand, one function for each."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import ceil, inf
from pathlib import Path
from statistics import median
from typing import Any

from bench.common import channels, load
from bench.common.channels import CHANNEL, SUBDIR, Channel
from bench.common.cost import Cost, curl_files, measure, problem
from bench.common.load import Load, LoadRow
from bench.common.report import MIB, Bar, FarRow, Result, Row, at_most, label, spread
from bench.common.servers import STATIC, STATIC_URL
from bench.common.wire import FAR
from bench.conda_cache import crowd, site
from bench.conda_cache.site import PATH, PORT, ROUND_TRIP, UPSTREAM, UPSTREAM_PORT, URL, Place, Sent
from tests.upstream.channel import Spec, noise
from tests.upstream.channel import crowd as many_specs

GIB = 1 << 30
OURS = "lanmirror, from its cache"
HOST = "127.0.0.1"
# Bytes a second of a lab's way out (50 Mbit/s), and of one that is twice as wide.
WAY_OUT, WIDE_WAY_OUT = 50e6 / 8, 100e6 / 8
JOBS = 16
SMALL = 20_000
# So few that each has a large package whole within a run.
LARGE_CONNECTIONS = 4
# Of the load beside a refresh: packages, and the mean pause of each of the connections, in milliseconds.
ASKED, PAUSE = 200, 20
# What an upstream sends beside a package, where it sends it once: the heads of its slices.
ONCE = 1.01
SAMPLE_SECONDS = 0.01
AGAIN = 100
SLOW_SECONDS = 8


def records(channel: Channel) -> Mapping[str, Mapping[str, Any]]:
    """Return the records of a channel's packages by name, in an order that stays."""
    return dict(sorted(channel.packages().items()))


def say(name: str, what: str) -> None:
    """Tell the person at the keyboard how it goes."""
    print(f"  {name}: {what}", flush=True)


def client(place: Place, base: str, names: Sequence[str], folder: Path) -> Cost:
    """Have one client fetch packages over some connections, after the writes of others have reached the disk."""
    os.sync()
    command = curl_files({f"{base}/{name}": folder / name for name in names}, JOBS, place.scratch)
    return measure(command, [], place.scratch / "client")


def said(place: Place) -> Sent:
    """Return what the upstream has sent so far."""
    return site.sent(place.log.read_text())


# ---- what is kept --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RateRow(LoadRow):
    """The rate at which one server sends a large package."""

    def head(self) -> Sequence[str]:
        """Return the heads of the columns after the name."""
        return ("MB/s", "from, to", "÷ first row's")

    def cells(self, first: LoadRow) -> Sequence[str]:
        """Return all cells, beside the first row's."""
        return (
            label(self.name, self.wrong),
            f"{self.bytes_per_second / 1e6:,.0f}",
            spread([one.bytes_per_second / 1e6 for one in self.loads], "", 0),
            f"{self.bytes_per_second / first.bytes_per_second:.3f}",
        )


def kept(place: Place) -> list[Result]:
    """Send a package that is kept, a small one and a large one, beside a static file of the same Nginx."""
    mib = 2 if place.quick else 500
    small = channels.built(
        place.www, f"one-{SMALL}", lambda: [Spec("small", subdir=SUBDIR, files={"share/small": noise(SMALL, 1)})]
    )
    seconds = 1 if place.quick else 3
    title = f"A kept package of {next(iter(records(small).values()))['size'] / 1000:.0f} KB"
    rows = beside_static(place, small, seconds, load.CONNECTIONS)
    results = [Result(title, rows, [at_least_static(rows)])]
    with load.lan_packets():
        rows = beside_static(place, small, seconds, load.CONNECTIONS)
    results.append(Result(f"{title}{load.OF_A_LAN}", rows, [at_least_static(rows)], [load.OF_PACKETS]))
    loads = beside_static(place, channels.large(place.www, 1, mib), 1 if place.quick else 8, LARGE_CONNECTIONS)
    bar = at_least_static(loads, lambda one: one.bytes_per_second)
    title = f"A kept package of {mib} MiB, {LARGE_CONNECTIONS} connections"
    return [*results, Result(title, [RateRow(row.name, row.loads, row.wrong) for row in loads], [bar])]


def at_least_static(rows: Sequence[LoadRow], figure: Callable[[Load], float] = lambda one: one.per_second) -> Bar:
    """Return the bar of a kept package, with the least and the greatest of the rounds."""
    static, ours = rows
    found = load.ratios(ours, static, figure)
    value = median(found)
    text = f"{value:.3f} times ({min(found):.3f} to {max(found):.3f})"
    return Bar("at least 0.95 times the static file", text, value >= 0.95)  # noqa: PLR2004 - the bar


def beside_static(place: Place, channel: Channel, seconds: int, connections: int) -> list[LoadRow]:
    """Ask for the one package of a channel again and again, in turn as a static file and from the cache."""
    (name,) = records(channel)
    targets = {STATIC: f"{STATIC_URL}{PATH}/{name}", OURS: f"{URL}/{name}"}
    right = (channel.folder / name).read_bytes()
    loads: dict[str, list[Load]] = {each: [] for each in targets}
    with site.upstream(place, channel), site.site(place, channel):
        first, again = (fetched(f"/anaconda/cloud{PATH}/{name}", right) for _ in range(2))
        before = said(place)
        for turn in range(place.rounds):
            for each, url in list(targets.items())[:: -1 if turn % 2 else 1]:
                loads[each].append(load.wrk(url, {}, seconds, place.scratch, connections=connections))
                say(each, f"{loads[each][-1].per_second:,.1f}/s, {loads[each][-1].bytes_per_second / 1e6:,.0f} MB/s")
        more = said(place).answers - before.answers
    wrong = first or again or (f"asked the upstream {more} times" if more else load.errors(loads[OURS]))
    return [LoadRow(STATIC, loads[STATIC], load.errors(loads[STATIC])), LoadRow(OURS, loads[OURS], wrong)]


def fetched(path: str, right: bytes) -> str:
    """Fetch a file from the site by one client; return its fault. Empty: none."""
    (one,) = crowd.fetch(HOST, PORT, path, right, 1)
    return one.wrong


# ---- many clients for one file -------------------------------------------------------------------------------


@dataclass(frozen=True)
class CrowdRow:
    """Clients that ask at once for one file.

    Attributes:
        name: of the row.
        first: of each run, seconds until every client had its first byte.
        last: of each run, seconds until every client had its last byte.
        sent: of each run, what the upstream sent.
        wrong: the fault of a run.
    """

    name: str
    first: Sequence[float]
    last: Sequence[float]
    sent: Sequence[Sent]
    wrong: str = ""

    def head(self) -> Sequence[str]:
        """Return the heads of the columns after the name."""
        return ("first byte", "last byte", "from, to", "from the upstream", "time ÷ first row's")

    def cells(self, first: CrowdRow) -> Sequence[str]:
        """Return all cells, beside the first row's."""
        return (
            label(self.name, self.wrong),
            f"{median(self.first):.2f} s",
            f"{median(self.last):.2f} s",
            spread(self.last, "s"),
            f"{median(each.bytes for each in self.sent) / MIB:.1f} MiB",
            f"{median(self.last) / median(first.last):.2f}",
        )


def many_for_one(place: Place) -> list[Result]:
    """Have many clients ask at once for a large package that nobody had, over a lab's way out."""
    mib, count = (3, 20) if place.quick else (500, 100)
    channel = channels.large(place.www, 1, mib)
    (name,) = records(channel)
    right = (channel.folder / name).read_bytes()
    direct, alone, together = "direct, one client", "lanmirror, one client", f"lanmirror, {count} clients"
    runs: dict[str, list[tuple[list[crowd.Client], Sent]]] = {direct: [], alone: [], together: []}

    def run(each: str, clients: int) -> None:
        with site.upstream(place, channel, round_trip=ROUND_TRIP, rate=WAY_OUT):
            if each == direct:
                got = crowd.fetch(FAR, UPSTREAM_PORT, f"{PATH}/{name}", right, clients)
            else:
                with site.site(place, channel):
                    got = crowd.fetch(HOST, PORT, f"/anaconda/cloud{PATH}/{name}", right, clients)
        # It has ended, and so written all of its log.
        runs[each].append((got, said(place)))
        say(each, f"{max(one.last for one in got):.2f} s, {runs[each][-1][1].bytes / MIB:.1f} MiB")

    run(direct, 1)
    for _ in range(place.rounds):
        run(alone, 1)
        run(together, count)
    rows = [crowd_row(each, found) for each, found in runs.items()]
    _, one, all_ = rows
    times = median(theirs / its for theirs, its in zip(all_.last, one.last, strict=True))
    most = max(each.bytes for each in all_.sent) / len(right)
    answers = max(each.answers for each in all_.sent)
    first = max(all_.first)
    came = not all_.wrong
    bars = [
        Bar("one upstream download", f"{most:.3f} times its bytes, {answers} answers", came and most <= ONCE),
        Bar("the last client at most 1.1 times one client", f"{times:.2f} times", came and times <= 1.1),  # noqa: PLR2004 - the bar
        Bar("first byte of every client within 2 s", f"{first:.2f} s", came and first <= 2),  # noqa: PLR2004 - the bar
        Bar("beside one client, direct", f"{median(all_.last) / rows[0].last[0]:.2f} times", None),
    ]
    title = f"{count} clients at once for a package of {mib} MiB that nobody had, 60 ms round trip, 50 Mbit/s"
    return [Result(title, rows, bars, ["Each client compares each byte."])]


def crowd_row(name: str, runs: Sequence[tuple[Sequence[crowd.Client], Sent]]) -> CrowdRow:
    """Return the row of some runs."""
    wrong = [one.wrong for got, _ in runs for one in got if one.wrong]
    return CrowdRow(
        name,
        [max(one.first for one in got) for got, _ in runs],
        [max(one.last for one in got) for got, _ in runs],
        [sent for _, sent in runs],
        f"{len(wrong)} without: {wrong[0]}" if wrong else "",
    )


# ---- many small packages -------------------------------------------------------------------------------------


def one_for_many(place: Place) -> list[Result]:
    """Have one client fetch many small packages that nobody had, beside the same straight from the upstream."""
    count = 60 if place.quick else 2000
    channel = channels.small(place.www, count)
    wanted = records(channel)
    runs: dict[str, list[tuple[Cost, Sent]]] = {"direct": [], "lanmirror, cold": []}
    wrong = dict.fromkeys(runs, "")
    for _ in range(place.rounds):
        for each, found in runs.items():
            folder = place.scratch / "fetched"
            with site.upstream(place, channel, round_trip=ROUND_TRIP):
                if each == "direct":
                    cost = client(place, f"{UPSTREAM}{PATH}", list(wanted), folder)
                else:
                    with site.site(place, channel):
                        cost = client(place, URL, list(wanted), folder)
            found.append((cost, said(place)))
            wrong[each] = wrong[each] or problem(cost) or channels.incomplete(folder, wanted)
            say(each, f"{cost.seconds:.2f} s {wrong[each]}".rstrip())
            place.aside(folder)
    rows = [
        FarRow(each, [cost for cost, _ in found], [sent.bytes for _, sent in found], wrong[each])
        for each, found in runs.items()
    ]
    direct, ours = rows
    times = median(mine.seconds / theirs.seconds for mine, theirs in zip(ours.costs, direct.costs, strict=True))
    bar = at_most("at most 1.15 times a direct client's time", inf if ours.wrong else times, 1.15, "times")
    title = f"{count:,} packages of 20 to 200 KB that nobody had, 60 ms round trip, one client with {JOBS} connections"
    return [Result(title, rows, [bar])]


# ---- a refresh of the indexes --------------------------------------------------------------------------------


def refresh(place: Place) -> list[Result]:
    """Refresh the changed index of a large channel, while clients ask for packages that are kept."""
    count = 2000 if place.quick else 500_000
    many = channels.many(place.www, count, place.rounds + 1, patched=True, placed=ASKED)
    many.serve(0)
    wanted = dict(islice(many.served.packages().items(), ASKED))
    paths = [f"/anaconda/cloud{PATH}/{name}" for name in wanted]
    published = place.site / "mirror/cloud" / CHANNEL / SUBDIR
    costs: list[Cost] = []
    loads: dict[str, list[Load]] = {"without a refresh": [], "meanwhile": []}
    wrong, strange = "", ""
    with site.upstream(place, many.served), site.site(place, many.served):
        command = site.engine(place, "sync", "--indexes", "--verbose")
        run = partial(measure, command, [], place.scratch / "engine")
        first = run()
        say("the first refresh", f"{first.seconds:.2f} s {problem(first)}".rstrip())
        cold = client(place, URL, list(wanted), place.scratch / "packages")
        strange = problem(cold) or channels.incomplete(place.scratch / "packages", wanted)
        before = packages_sent(place)
        for version in range(1, place.rounds + 1):
            many.serve(version)
            meanwhile, cost = load.wrk_during(run, URL, place.scratch, paths=paths, pause=PAUSE)
            costs.append(cost)
            wrong = wrong or problem(cost) or channels.differs(published, many.versions[version])
            say("a refresh", f"{cost.seconds:.2f} s, {cost.peak_bytes / MIB:.0f} MiB {wrong}".rstrip())
            # As long, since the longer a run is, the more of the machine's own hiccups are in its 99 %.
            without = load.wrk(URL, {}, ceil(cost.seconds), place.scratch, paths=paths, pause=PAUSE)
            for each, one in zip(loads, (without, meanwhile), strict=True):
                loads[each].append(one)
                load.say(f"packages, {each}", one)
        if more := packages_sent(place) - before:
            strange = strange or f"asked the upstream {more} times"
        told = (place.scratch / "engine/output").read_text(errors="replace").replace(f"{place.site}/", "")
    rows = [Row("a hundred records changed", costs, wrong), Row("the first refresh", [first], problem(first))]
    bars = [
        at_most("at most 20 s", inf if wrong else rows[0].seconds, 20, "s"),
        at_most("at most 1 GiB of memory", inf if wrong else rows[0].peak_bytes / GIB, 1, "GiB"),
    ]
    asked = [LoadRow(each, found, strange or load.errors(found)) for each, found in loads.items()]
    slower = load.ratios(asked[1], asked[0], lambda one: one.p99)
    times = inf if any(row.wrong for row in asked) else median(slower)
    size = (many.versions[0] / "repodata.json").stat().st_size
    note = f"What the engine says of the last refresh:\n\n```\n{told.strip()}\n```"
    load_note = (
        f"{load.CONNECTIONS} connections ask for {ASKED} kept packages in turn, each with a pause of {PAUSE} ms on "
        "average after an answer, as clients that work do; without a refresh for as long as one takes."
    )
    return [
        Result(f"A changed index of {count:,} records ({size / 1e6:.0f} MB), `sync --indexes`", rows, bars, [note]),
        Result(
            "Package requests during that refresh",
            asked,
            [at_most("99 % of them within at most 2 times the time without it", times, 2, "times")],
            [load_note],
        ),
    ]


def packages_sent(place: Place) -> int:
    """Return how many packages the upstream was asked for so far."""
    return sum(line.endswith((".conda", ".tar.bz2")) for line in place.log.read_text().splitlines())


# ---- the limit of the cache ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LimitRow:
    """A cache that more packages come through than it may keep.

    Attributes:
        name: of the row.
        seconds: until all had come.
        largest: the most that the cache had on disk at any time, in bytes.
        limit: of the cache, in bytes.
        wrong: the fault.
    """

    name: str
    seconds: float
    largest: int
    limit: int
    wrong: str = ""

    def head(self) -> Sequence[str]:
        """Return the heads of the columns after the name."""
        return ("time", "limit", "largest on disk", "÷ limit")

    def cells(self, _first: LimitRow) -> Sequence[str]:
        """Return all cells."""
        return (
            label(self.name, self.wrong),
            f"{self.seconds:.1f} s",
            f"{self.limit / MIB:,.0f} MiB",
            f"{self.largest / MIB:,.0f} MiB",
            f"{self.largest / self.limit:.2f}",
        )


def limit(place: Place) -> list[Result]:
    """Have many packages come through a small cache, and see what it has on disk."""
    count, mib, most = (200, 2, 4 * MIB) if place.quick else (10_000, 24, GIB)
    channel, wanted = through(place, count, mib)
    names = [name for name in wanted if not name.startswith("large")]
    last = names[-min(AGAIN, count // 10) :]
    (slow,) = wanted.keys() - set(names)
    total = sum(record["size"] for record in wanted.values())
    rows, bars = [], []
    for each, rate in (("100 Mbit/s, 60 ms round trip", WIDE_WAY_OUT), ("as fast as this machine", 0)):
        folder = place.scratch / "through"
        # A slow client, which reads one package for as long as the others come.
        pace = wanted[slow]["size"] / (total / rate if rate else 1 if place.quick else SLOW_SECONDS)
        reader = ["curl", "--silent", "--show-error", "--fail", "--limit-rate", f"{pace:.0f}", "--create-dirs"]
        with (
            site.upstream(place, channel, round_trip=ROUND_TRIP if rate else 0, rate=rate),
            site.site(place, channel, cache_gib=most / GIB, memory=2 * total),
        ):
            reader += ["--output", str(folder / slow), f"{URL}/{slow}"]
            with largest(place.cache) as seen, subprocess.Popen(reader):
                cost = client(place, URL, names, folder)
            before = said(place).answers
            again = client(place, URL, last, place.scratch / "again")
            more = said(place).answers - before
        missing = channels.incomplete(folder, wanted)
        wrong = problem(cost) or missing or problem(again)
        if wrong:
            print((place.scratch / "client" / "output").read_text(), flush=True)
        rows.append(LimitRow(each, cost.seconds, seen[0], most, wrong))
        say(each, f"{cost.seconds:.1f} s, at most {seen[0] / MIB:,.0f} MiB {wrong}".rstrip())
        bars += [
            at_most(f"{each}: at most 1.2 times the limit on disk", seen[0] / most, 1.2, "times"),
            Bar(f"{each}: no request failed", wrong or f"{len(wanted):,} came right", not wrong),
            Bar(f"{each}: the last {len(last)} are kept still", f"{len(last) - more} of them", more == 0),
        ]
        place.aside(folder)
        place.aside(place.scratch / "again")
    notes = [
        f"{total / MIB:,.0f} MiB in all, by one client with {JOBS} connections. Another client reads a package of "
        f"{mib} MiB all the while, and has to get it right. The cache is on a file system of its own, in memory, whose "
        "use is read a hundred times a second: files that are being written count, and those that are deleted while "
        "somebody reads them. Nginx looks every ten seconds whether a cache that was within its limit has passed it "
        "(`ngx_http_file_cache_expire`), so what comes meanwhile is on top.",
    ]
    return [Result(f"{count:,} packages through a small cache", rows, bars, notes)]


def through(place: Place, count: int, mib: int) -> tuple[Channel, dict[str, Mapping[str, Any]]]:
    """Return a channel of many packages, of a few hundred distinct contents, and a large one; and the records."""
    few, low, high = (20, 20_000, 60_000) if place.quick else (500, 100_000, 300_000)
    contents = channels.built(
        place.www.parent, f"pool-{few}", lambda: many_specs(SUBDIR, few, prefix="mid", low=low, high=high)
    )
    large = channels.large(place.www, 1, mib)
    folder = place.folder / "limit" / CHANNEL / SUBDIR
    folder.mkdir(parents=True)
    wanted = {}
    pool = list(records(contents).items())
    for number in range(count):
        file, record = pool[number % len(pool)]
        name = f"through{number:05}-1.0-0{'.conda' if file.endswith('.conda') else '.tar.bz2'}"
        (folder / name).hardlink_to(contents.folder / file)
        wanted[name] = record
    for name, record in records(large).items():
        (folder / name).hardlink_to(large.folder / name)
        wanted[name] = record
    return Channel("limit", folder), wanted


@contextmanager
def largest(folder: Path) -> Iterator[list[int]]:
    """Give the most bytes that a file system had in use while a `with` lasted, as the one item of a list."""
    seen, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            about = os.statvfs(folder)
            seen[0] = max(seen[0], (about.f_blocks - about.f_bfree) * about.f_frsize)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()


def all_tables() -> dict[str, Callable[[Place], list[Result]]]:
    """Return the tables by the name that the command line has for them, in the order of running."""
    return {"kept": kept, "crowd": many_for_one, "cold": one_for_many, "refresh": refresh, "limit": limit}
