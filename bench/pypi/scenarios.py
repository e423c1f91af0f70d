"""The scenarios of the PyPI cache's benchmark, one function for each."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from statistics import median
from urllib.parse import urljoin, urlsplit

from bench.common import load, measure
from bench.common.cost import Cost, problem
from bench.common.cost import measure as cost_of
from bench.common.load import Load, LoadRow, errors, ratio, say
from bench.common.report import MIB, Bar, Result, Row, at_least, at_most, label
from bench.common.servers import STATIC, STATIC_URL, plain_environment
from bench.pypi.servers import ALONE, OURS, PROXPI_NAME, Server
from bench.pypi.upstream import ACCEPT, HTML, JSON, LARGE, SLOW, SMALL, URL, Upstream

OK = HTTPStatus.OK
# The header of an installer: devpi gives others another page.
AGENT = "pip/26.1"
PACKAGES = ("attrs", "idna", "numpy", "requests", "six")
COLD_CLIENTS = 100
# A run with fewer answers is made longer.
FEW, SLOW_SECONDS = 30, 8
# Of `near`, seconds, the shortest and the longest: see roles/devpi/templates/devpi-http.conf.j2.
NEAR_SECONDS = (5, 10)
# So short that all is over before the first page runs out.
EXPIRY_SECONDS = 2
# devpi has no refresh left to do when it asked its upstream for nothing for so long, seconds.
QUIET_SECONDS = 1


@dataclass(frozen=True)
class Answer:
    """An answer of a server: its body as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> bytes:
        """The body, unpacked."""
        return gzip.decompress(self.body) if self.headers.get("content-encoding") == "gzip" else self.body


@dataclass(frozen=True)
class Bench:
    """The common state of the scenarios.

    Attributes:
        servers: all of them, by name.
        upstream: theirs.
        static: the folder of the static server, which is the limit.
        work: where programs are, and scratch.
        rounds: how often each is run.
        seconds: how long a load is put on.
        cold: the names of projects that were never asked for.
        spare: the names of projects that only the load generator asks for.
        fresh: how long Nginx takes a page for fresh before devpi is asked, seconds.
    """

    servers: Mapping[str, Server]
    upstream: Upstream
    static: Path
    work: Path
    rounds: int
    seconds: int
    cold: Sequence[str]
    spare: Sequence[str]
    fresh: int

    @property
    def scratch(self) -> Path:
        """A folder for the programs' other files."""
        return self.work / "scratch"


def get(url: str, **headers: str) -> Answer:
    """Ask for a URL; names of headers with `_` for `-`."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=120)
    try:
        connection.request(
            "GET", parts.path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = connection.getresponse()
        return Answer(answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def asked(form: str, encoding: str) -> dict[str, str]:
    """Return the headers with which an installer asks for a page."""
    return {"Accept": ACCEPT[form], "User-Agent": AGENT, "Accept-Encoding": encoding}


def page_of(server: Server, project: str, form: str = "json", encoding: str = "identity") -> Answer:
    """Ask a server for a page, as an installer does."""
    return get(server.page(project), **asked(form, encoding))


def named(server: Server, project: str) -> dict[str, tuple[str, str]]:
    """Return URL and sha256 of each file that a page names."""
    answer = page_of(server, project)
    if answer.status != OK:
        raise RuntimeError(f"{server.name} answers {answer.status} for the page of {project}")
    files = json.loads(answer.text)["files"]
    return {
        file["filename"]: (urljoin(server.page(project), file["url"]), file["hashes"].get("sha256", ""))
        for file in files
    }


def wrong_page(answer: Answer, project: str, form: str, encoding: str, upstream: Upstream) -> str:
    """Return the fault of a page: format, encoding, or the files that it names. Empty: none."""
    if answer.status != OK:
        return f"answers {answer.status}"
    if answer.headers["content-type"].partition(";")[0] != (JSON if form == "json" else HTML):
        return f"is {answer.headers['content-type']}"
    if encoding == "identity" and "content-encoding" in answer.headers:
        return "is compressed"
    truth = upstream.folder / "www/simple" / project / f"index.{form}"
    if files_in(answer.text, form) != files_in(truth.read_bytes(), form):
        return "names other files"
    return ""


def files_in(page: bytes, form: str) -> set[tuple[str, str]]:
    """Return name and sha256 of each file that a page names."""
    if form == "json":
        return {(file["filename"], file["hashes"]["sha256"]) for file in json.loads(page)["files"]}
    return set(re.findall(r'[/"]([^/#"]+)#sha256=([0-9a-f]{64})', page.decode()))


def warm(bench: Bench) -> None:
    """Have every server hold the pages and files that are measured; proxpi sends a client away until it has one."""
    for server in bench.servers.values():
        for project in (*bench.upstream.wheels.keys() - set(bench.cold), SMALL):
            wheel = bench.upstream.wheels[project]
            url, sha256 = named(server, project)[wheel.name]
            for _ in range(100):
                answer = get(url)
                if answer.status == OK and hashlib.sha256(answer.body).hexdigest() == sha256 == wheel.sha256:
                    break
                time.sleep(0.1)
            else:
                raise RuntimeError(f"{server.name} answers {answer.status} for {url}")


def rates(
    bench: Bench, targets: Mapping[str, str], headers: Mapping[str, str], wrong: Mapping[str, str]
) -> list[LoadRow]:
    """Put load on URLs in turn: `rounds` times on the two that are near each other, once on the peers.

    A run that is too short to tell much of a slow one is made longer.

    Args:
        bench: the common state of the scenarios.
        targets: the URL of each row.
        headers: of the requests.
        wrong: the fault of an earlier answer.
    """
    loads: dict[str, list[Load]] = {name: [] for name in targets}
    errors = dict(wrong)
    for turn in range(bench.rounds):
        for name, url in targets.items():
            if turn and name not in (STATIC, OURS):
                continue
            done = load.wrk(url, headers, bench.seconds, bench.scratch)
            if done.requests < FEW:
                done = load.wrk(url, headers, SLOW_SECONDS, bench.scratch)
            loads[name].append(done)
            if done.errors:
                errors[name] = f"{done.errors} errors"
            say(name, done, errors.get(name, ""))
    return [LoadRow(name, runs, errors.get(name, "")) for name, runs in loads.items()]


# ---- pages and files -----------------------------------------------------------------------------------------


def page_rates(bench: Bench, project: str, form: str, encoding: str) -> Result:
    """Ask for one page again and again, from each server."""
    answers = {server.name: page_of(server, project, form, encoding) for server in bench.servers.values()}
    wrong = {
        name: problem_
        for name, answer in answers.items()
        if (problem_ := wrong_page(answer, project, form, encoding, bench.upstream))
    }
    plain = [name for name, answer in answers.items() if encoding == "gzip" and len(answer.body) == len(answer.text)]
    if OURS in plain:
        wrong[OURS] = "is not compressed"
    # The limit sends the same bytes.
    file = bench.static / f"{project}.{form}"
    file.write_bytes(answers[OURS].text)
    if encoding == "gzip":
        file.with_name(f"{file.name}.gz").write_bytes(answers[OURS].body)
    targets = {STATIC: f"{STATIC_URL}/{file.name}"}
    targets |= {server.name: server.page(project) for server in bench.servers.values()}
    rows = rates(bench, targets, asked(form, encoding), wrong)
    sent = len(answers[OURS].body)
    bars = [
        at_least("at least 0.7 times the static file", ratio(rows, OURS, STATIC), 0.7, "times"),
        at_least("at least 50 times devpi alone", ratio(rows, OURS, ALONE), 50, "times"),
        Bar("beside proxpi", f"{ratio(rows, OURS, PROXPI_NAME):.1f} times", None),
    ]
    links = len(files_in(answers[OURS].text, form))
    coded = "gzip" if encoding == "gzip" else "plain"
    notes = [f"Sent uncompressed by {', '.join(plain)}."] if plain else []
    return Result(f"Page of {links:,} files, {form.upper()}, {coded}, {sent / 1000:,.0f} KB", rows, bars, notes)


def lan_page_rates(bench: Bench, project: str, form: str, encoding: str) -> Result:
    """Do the same in packets of a LAN."""
    with load.lan_packets():
        result = page_rates(bench, project, form, encoding)
    return replace(result, title=f"{result.title}{load.OF_A_LAN}", notes=[*result.notes, load.OF_PACKETS])


def file_rates(bench: Bench, project: str) -> Result:
    """Ask for one wheel again and again, from each server."""
    wheel = bench.upstream.wheels[project]
    placed = bench.static / wheel.name
    placed.unlink(missing_ok=True)
    os.link(bench.upstream.folder / "www/packages" / wheel.name, placed)
    targets = {STATIC: f"{STATIC_URL}/{wheel.name}"}
    targets |= {server.name: named(server, project)[wheel.name][0] for server in bench.servers.values()}
    wrong = {
        name: "other bytes"
        for name, url in targets.items()
        if hashlib.sha256(get(url).body).hexdigest() != wheel.sha256
    }
    rows = rates(bench, targets, {"User-Agent": AGENT}, wrong)
    bars = [
        at_least("at least 0.8 times the static file", ratio(rows, OURS, STATIC), 0.8, "times"),
        Bar("beside devpi alone", f"{ratio(rows, OURS, ALONE):.1f} times", None),
    ]
    return Result(f"Stored wheel of {wheel.size / 1000:,.0f} KB", rows, bars)


# ---- expiry --------------------------------------------------------------------------------------------------


def expiry(bench: Bench) -> Result:
    """Measure the time of an answer while pages are kept, while they run out, and while devpi asks its upstream.

    Under the load of the other scenarios, in runs of one length: the longer one is, the more of the machine's own
    hiccups are in its 99 %. Each begins only when devpi has no refresh left to do, which would take a core from it.
    """
    server = bench.servers[OURS]
    headers = asked("json", "gzip")
    paths = [urlsplit(server.page(project)).path for project in bench.spare]
    first, last = NEAR_SECONDS

    def touch() -> None:
        with ThreadPoolExecutor(2) as pool:
            statuses = [
                answer.status for answer in pool.map(lambda name: page_of(server, name, encoding="gzip"), bench.spare)
            ]
        if set(statuses) != {OK}:
            raise RuntimeError(f"{server.name} answers {sorted(set(statuses))} for pages")

    def settle() -> None:
        # Nginx has so many pages refreshed per second, and none of those that would wait for more than half a minute.
        before, after = 0, -1
        while before != after:
            before, after = bench.upstream.pages(), -1
            touch()
            while (now := bench.upstream.pages()) != after:
                after = now
                time.sleep(QUIET_SECONDS)

    kept, near, behind = "all kept", "running out in Nginx, until all did", "all run out everywhere, a minute later"
    loads: dict[str, list[Load]] = {kept: [], near: [], behind: []}
    refreshed: dict[str, list[int]] = {kept: [], near: [], behind: []}

    def put(name: str) -> None:
        before = bench.upstream.pages()
        done = load.wrk(server.index, headers, EXPIRY_SECONDS, bench.scratch, paths=paths)
        say(name, done)
        loads[name].append(done)
        refreshed[name].append(bench.upstream.pages() - before)

    for _ in range(bench.rounds):
        settle()
        began = time.monotonic()
        touch()
        filled = time.monotonic()
        put(kept)
        time.sleep(max(0.0, began + first - 0.5 - time.monotonic()))
        while time.monotonic() < filled + last:
            put(near)
        # No request for a minute; then Nginx's second step has a page, asks devpi behind the client's back, and devpi
        # asks its upstream.
        time.sleep(bench.fresh + 1)
        put(behind)
    rows = [LoadRow(name, done, errors(done)) for name, done in loads.items()]
    bars = [
        at_most(f"{row.name}: 99 % at most 3 times the time while all are kept", row.p99 / rows[0].p99, 3, "times")
        for row in rows[1:]
    ]
    notes = [
        f"{len(paths)} pages in turn. The upstream was asked for {median(refreshed[behind]):.0f} pages in a run of the "
        f"last row, and for {sum(refreshed[kept] + refreshed[near])} in all of the others."
    ]
    return Result("Pages that run out under load", rows, bars, notes)


# ---- many for one file ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ColdRow:
    """The cost of one new file for many clients.

    Attributes:
        name: the server.
        downloads: how often the upstream was asked for the file.
        seconds: until the last had it.
        wrong: the fault.
    """

    name: str
    downloads: int
    seconds: float
    wrong: str

    def head(self) -> Sequence[str]:
        """Return the heads of the columns after the name."""
        return ("upstream downloads", "until the last had it")

    def cells(self, _first: ColdRow) -> Sequence[str]:
        """Return all cells."""
        return (label(self.name, self.wrong), str(self.downloads), f"{self.seconds:.1f} s")


def fetched(url: str, sha256: str) -> str:
    """Return the fault of a file, for a client that follows one redirect. Empty: none."""
    try:
        answer = get(url)
        # proxpi's way of saying that it takes long: the client may ask the upstream.
        if answer.status in (HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.FOUND, HTTPStatus.TEMPORARY_REDIRECT):
            answer = get(urljoin(url, answer.headers["location"]))
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    if answer.status != OK:
        return f"answers {answer.status}"
    return "" if hashlib.sha256(answer.body).hexdigest() == sha256 else "other bytes"


def cold(bench: Bench) -> Result:
    """Have many clients ask at once for a wheel that no server has."""
    rows = []
    for server, project in zip(bench.servers.values(), bench.cold, strict=True):
        wheel = bench.upstream.wheels[project]
        url, _ = named(server, project)[wheel.name]

        began = time.monotonic()
        with ThreadPoolExecutor(COLD_CLIENTS) as pool:
            clients = [pool.submit(fetched, url, wheel.sha256) for _ in range(COLD_CLIENTS)]
            wrong = [text for client in clients if (text := client.result())]
        seconds = time.monotonic() - began
        summary = f"{len(wrong)} without: {wrong[0]}" if wrong else ""
        rows.append(ColdRow(server.name, bench.upstream.downloads(wheel), seconds, summary))
        print(f"  {server.name}: {rows[-1].downloads} downloads, {seconds:.1f} s {summary}".rstrip(), flush=True)
    mine = rows[0]
    bar = Bar("exactly 1 download", f"{mine.downloads}", mine.downloads == 1 and not mine.wrong)
    size = wheel.size / MIB
    note = f"The upstream sends {SLOW / MIB:.0f} MiB a second on each connection."
    return Result(f"{COLD_CLIENTS} clients at once for one new wheel of {size:.0f} MiB", rows, [bar], [note])


# ---- installs ------------------------------------------------------------------------------------------------


def install(bench: Bench) -> Result:
    """Install real packages with pip and uv, from nothing, through each server and straight from the upstream."""
    direct = Server("direct", f"{URL}/simple/", ())
    places = [direct, *bench.servers.values()]
    target = bench.scratch / "installed"
    costs: dict[str, list[Cost]] = {}
    wrong: dict[str, str] = {}
    python = bench.work / "uv/bin/python"
    for _ in range(bench.rounds):
        for tool in ("pip", "uv"):
            for server in places:
                name = f"{tool}, {server.name}"
                shutil.rmtree(target, ignore_errors=True)
                if tool == "pip":
                    command = [str(python), "-m", "pip", "--isolated", "install", "--no-cache-dir", "--quiet"]
                    command += ["--disable-pip-version-check", "--no-compile", "--root-user-action=ignore"]
                else:
                    command = [str(bench.work / "uv/bin/uv"), "--no-config", "pip", "install", "--no-cache", "--quiet"]
                    command += ["--python", str(python)]
                command += ["--target", str(target), "--index-url", server.index, *PACKAGES]
                plain = ["env", "-i", *(f"{key}={value}" for key, value in plain_environment().items())]
                cost = cost_of([*plain, *command], [], bench.scratch / "install", limit=120)
                costs.setdefault(name, []).append(cost)
                there = {path.name for path in target.iterdir()} if target.is_dir() else set()
                missing = {"attr", "idna", "numpy", "requests", "six.py", "urllib3"} - there
                wrong[name] = wrong.get(name) or problem(cost) or (f"lacks {', '.join(missing)}" if missing else "")
                print(f"  {name}: {cost.seconds:.2f} s {wrong[name]}".rstrip(), flush=True)
    rows = {name: Row(name, costs[name], wrong[name]) for name in sorted(costs)}
    first = [rows[f"{tool}, {name}"] for tool in ("pip", "uv") for name in (direct.name, *bench.servers)]
    bars = [
        Bar(
            f"{tool}: beside a direct one",
            f"{rows[f'{tool}, {OURS}'].seconds / rows[f'{tool}, {direct.name}'].seconds:.2f} times",
            None,
        )
        for tool in ("pip", "uv")
    ]
    packages = ", ".join(PACKAGES)
    note = f"Installed: {packages} and the dependencies of requests, without caches of pip's and uv's own."
    return Result("Warm installs", first, bars, [note])


# ---- memory --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryRow:
    """The memory of a site.

    Attributes:
        name: the server.
        now: after all that it was asked in this run, in bytes, pages that processes share counted once.
        peak: the most that each of its processes ever held, added up, in bytes.
    """

    name: str
    now: int
    peak: int

    def head(self) -> Sequence[str]:
        """Return the heads of the columns after the name."""
        return ("after this run", "peak", "÷ first row's")

    def cells(self, first: MemoryRow) -> Sequence[str]:
        """Return all cells, beside the first row's."""
        return (self.name, f"{self.now / MIB:.0f} MiB", f"{self.peak / MIB:.0f} MiB", f"{self.now / first.now:.2f}")


def memory(bench: Bench) -> Result:
    """Read the memory of each site: Nginx with all of its workers, devpi, or proxpi."""
    rows = []
    for server in bench.servers.values():
        processes = [found for root in server.processes for found in measure.family(root)]
        peak = 0
        for process in processes:
            status = Path(f"/proc/{process}/status").read_text()
            peak += int(status.partition("VmHWM:")[2].split()[0]) << 10
        rows.append(MemoryRow(server.name, measure.together(processes), peak))
    return Result("Memory of the whole site", rows)


def all_scenarios() -> dict[str, Callable[[Bench], list[Result]]]:
    """Return the scenarios by the name that the command line has for them, in the order of running."""
    pages = [(size, form, encoding) for form, encoding in (("json", "gzip"), ("json", "identity"), ("html", "gzip"))
             for size in (SMALL, LARGE)]  # fmt: skip
    return {
        "pages": lambda bench: [page_rates(bench, *page) for page in pages],
        "lan": lambda bench: [lan_page_rates(bench, LARGE, "html", "gzip")],
        "files": lambda bench: [file_rates(bench, SMALL), file_rates(bench, LARGE)],
        "expiry": lambda bench: [expiry(bench)],
        "cold": lambda bench: [cold(bench)],
        "install": lambda bench: [install(bench)],
        "memory": lambda bench: [memory(bench)],
    }
