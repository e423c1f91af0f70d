"""The first install: what nobody has yet, through the cache and straight from the upstream, over a long way out.

The upstream is made: projects whose wheels are small, and a stack of large ones, with their metadata beside them
(PEP 658). The way to it has a round trip of 60 ms; client and cache are on the near side.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.common import measure
from bench.common.cost import Cost, problem
from bench.common.cost import measure as cost_of
from bench.common.report import MIB, Bar, FarRow, Result, at_most, label
from bench.common.servers import behind, plain_environment, plain_nginx
from bench.common.wire import FAR, Wire
from bench.pypi.servers import INDEX, Server, ours
from bench.pypi.upstream import JSON

ROUND_TRIP = 0.06
# Bytes a second: a lab's slow way out, and one on which a large file is over within seconds.
SLOW_WAY, FAST_WAY = 6e6, 50e6
SMALL_PROJECTS, STACK, LARGE_SIZE = 180, 100, 500 << 20
# Resolves after which the memory is read, and names in each.
RESOLVES, NAMES = 100, 10
PORT, NEAR_PORT = 8000, 8003
# Beside a page, so that the same files can be served from elsewhere.
FILES = "../../packages"
NGINX = """\
  log_format sent '$bytes_sent';
  map $http_accept $form {{ default html; "~application/vnd\\.pypi\\.simple\\.v1\\+json" json; }}
  server {{
    listen {port} backlog=1024;
    root {www};
    access_log {folder}/sent.log sent;
    location ~ ^/simple/[^/]+/$ {{
      gzip_static on;
      types {{ application/vnd.pypi.simple.v1+json json; }}
      rewrite ^ ${{uri}}index.json break;
    }}
  }}
"""
WHEEL = "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"


@dataclass(frozen=True)
class Far:
    """The surroundings of a run.

    Attributes:
        work: where programs are, and scratch.
        folder: of the upstream.
        rounds: how often each is run.
        quick: whether fewer and smaller things are done.
    """

    work: Path
    folder: Path
    rounds: int
    quick: bool

    @property
    def url(self) -> str:
        """The upstream's URL, from the near side."""
        return f"http://{FAR}:{PORT}"

    def sent(self) -> int:
        """Return what the upstream has sent so far, in bytes."""
        return sum(map(int, (self.folder / "sent.log").read_text().split()))


# ---- the upstream --------------------------------------------------------------------------------------------


def wheel(path: Path, name: str, version: str, size: int, requires: Sequence[str] = ()) -> str:
    """Write a wheel of about `size` bytes, and return its metadata."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = METADATA.format(name=name, version=version) + "".join(f"Requires-Dist: {each}\n" for each in requires)
    seed = random.Random(name)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}/__init__.py", "")
        archive.writestr(f"{module}/data.bin", seed.randbytes(size))
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", WHEEL)
        archive.writestr(f"{info}/RECORD", "")
    return metadata


def page(www: Path, name: str, newest: dict[str, object], older: int) -> None:
    """Write the page of a project with one file that is there, and others that only their page knows."""
    files = []
    for number in range(older):
        file = f"{name.replace('-', '_')}-0.{number}-py3-none-any.whl"
        hashes = {"sha256": hashlib.sha256(file.encode()).hexdigest()}
        about = {"size": 1000 + number, "upload-time": "2025-06-07T08:09:10.123456Z", "requires-python": ">=3.8"}
        files.append({"filename": file, "url": f"{FILES}/{file}", "hashes": hashes, "core-metadata": hashes, **about})
    body = {"meta": {"api-version": "1.1"}, "name": name, "versions": ["1.0"], "files": [*files, newest]}
    folder = www / "simple" / name
    folder.mkdir(parents=True)
    (folder / "index.json").write_text(json.dumps(body))
    subprocess.run(["gzip", "--keep", str(folder / "index.json")], check=True)


def make(far: Far) -> None:
    """Make the upstream anew."""
    www = far.folder / "www"
    shutil.rmtree(far.folder, ignore_errors=True)
    (www / "packages").mkdir(parents=True)

    def add(name: str, size: int, *, older: int, requires: Sequence[str] = (), grown: int = 0) -> None:
        path = www / "packages" / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
        metadata = wheel(path, name, "1.0", size, requires)
        path.with_name(f"{path.name}.metadata").write_text(metadata)
        # Large ones are mostly a hole: nobody who reads metadata should come near it.
        os.truncate(path, path.stat().st_size + grown)
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        newest = {
            "filename": path.name,
            "url": f"{FILES}/{path.name}",
            "hashes": {"sha256": digest},
            "size": path.stat().st_size,
            "upload-time": "2025-06-08T08:09:10.123456Z",
            "requires-python": ">=3.8",
            "core-metadata": {"sha256": hashlib.sha256(metadata.encode()).hexdigest()},
        }
        page(www, name, newest, older)

    for number in range(SMALL_PROJECTS):
        add(f"small{number}", 20_000 + 1000 * number, older=30)
    for number in range(STACK):
        # Each needs some of those behind it, as a framework needs its libraries.
        requires = [f"gpu{other}" for other in range(number + 1, min(number + 4, STACK))]
        add(f"gpu{number}", 50_000, older=300, requires=requires, grown=LARGE_SIZE if number % 10 == 0 else 20 << 20)
    for number in range(RESOLVES * NAMES):
        add(f"other{number}", 1000, older=60)


# ---- runs ----------------------------------------------------------------------------------------------------


def way(far: Far, rate: float) -> contextlib.AbstractContextManager[Wire]:
    """Have the upstream behind a long way for the length of a `with`, and this process on the near side."""
    body = NGINX.format(port=PORT, www=far.folder / "www", folder=far.folder)
    return behind(far.folder, body, PORT, round_trip=ROUND_TRIP, rate=rate, name="lmpypi")


def near(far: Far) -> contextlib.AbstractContextManager[int]:
    """Serve the upstream's files on the near side as well: no cache can be faster."""
    folder = far.work / "near"
    body = NGINX.format(port=NEAR_PORT, www=far.folder / "www", folder=folder)
    return plain_nginx(folder, body, f"http://127.0.0.1:{NEAR_PORT}")


@contextlib.contextmanager
def cache(far: Far) -> Iterator[Server]:
    """Run this project's cache from nothing."""
    folder = far.work / "servers-far"
    shutil.rmtree(folder, ignore_errors=True)
    static = far.work / "static"
    static.mkdir(exist_ok=True)
    with ours(far.work, folder, static, pages_fresh=60, upstream=f"{far.url}/simple/") as server:
        yield server


def uv(far: Far, index: str, *arguments: str) -> tuple[Cost, int]:
    """Run uv with nothing cached; return its cost, and what the upstream sent."""
    target = far.work / "scratch" / "target"
    shutil.rmtree(target, ignore_errors=True)
    command = [str(far.work / "uv/bin/uv"), "--no-config", "pip", *arguments, "--no-cache", "--quiet"]
    command += ["--python", str(far.work / "uv/bin/python"), "--default-index", index]
    if arguments[0] == "install":
        command += ["--target", str(target)]
    plain = ["env", "-i", *(f"{key}={value}" for key, value in plain_environment().items())]
    before = far.sent()
    cost = cost_of([*plain, *command], [], far.work / "scratch" / "uv", limit=600)
    return cost, far.sent() - before


def row(name: str, runs: Sequence[tuple[Cost, int]]) -> FarRow:
    """Return the row of some runs, and tell the person at the keyboard."""
    wrong = [found for cost, _ in runs if (found := problem(cost))]
    made = FarRow(
        name,
        [cost for cost, _ in runs],
        [sent for _, sent in runs],
        f"{len(wrong)} failed: {wrong[0]}" if wrong else "",
    )
    print(f"  {name}: {made.seconds:.2f} s, {made.bytes / MIB:.1f} MiB {made.wrong}".rstrip(), flush=True)
    return made


def times(row_: FarRow, first: FarRow) -> float:
    """Return how many times as long the runs of a row took, infinitely long where one failed."""
    return float("inf") if row_.wrong else row_.seconds / first.seconds


def lock(far: Far) -> Result:
    """Write a lock file of a stack of large wheels."""
    asked = far.work / "scratch" / "stack.in"
    asked.parent.mkdir(exist_ok=True)
    asked.write_text("".join(f"gpu{number}\n" for number in range(STACK)))
    direct, cold, warm = [], [], []
    with way(far, SLOW_WAY):
        for _ in range(far.rounds):
            direct.append(uv(far, f"{far.url}/simple/", "compile", str(asked)))
            with cache(far) as server:
                cold.append(uv(far, server.index, "compile", str(asked)))
                warm.append(uv(far, server.index, "compile", str(asked)))
    rows = [row("direct", direct), row("lanmirror, cold", cold), row("lanmirror, once more", warm)]
    bars = [
        at_most("at most 1.15 times the time of a direct one", times(rows[1], rows[0]), 1.15, "times"),
        at_most("at most 1.15 times its bytes", rows[1].bytes / rows[0].bytes, 1.15, "times"),
    ]
    title = f"`uv pip compile` of {STACK} wheels of up to {LARGE_SIZE >> 20} MiB, 60 ms round trip, 6 MB/s"
    return Result(title, rows, bars)


@contextlib.contextmanager
def busy(cores: int) -> Iterator[None]:
    """Keep as many cores busy for the length of a `with`."""
    spin = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for process in spin:
            process.kill()
            process.wait()


def small(far: Far) -> Result:
    """Install many small wheels, on a quiet machine and with all cores busy."""
    names = [f"small{number}" for number in range(SMALL_PROJECTS)]
    count = 2 if far.quick else 10
    rows, bars = [], []
    with way(far, SLOW_WAY), near(far):
        for state, cores in (("", 0), (", cores busy", os.cpu_count() or 1)):
            direct, cold, second, static = [], [], [], []
            with busy(cores):
                for _ in range(count):
                    direct.append(uv(far, f"{far.url}/simple/", "install", *names))
                    with cache(far) as server:
                        cold.append(uv(far, server.index, "install", *names))
                        second.append(uv(far, server.index, "install", *names))
                    static.append(uv(far, f"http://127.0.0.1:{NEAR_PORT}/simple/", "install", *names))
            runs = {
                "direct": direct,
                "lanmirror, cold": cold,
                "lanmirror, second client": second,
                "static files of this machine": static,
            }
            made = [row(f"{name}{state}", found) for name, found in runs.items()]
            rows += made
            bars += [
                at_most(
                    f"at most 1.3 times a direct one{state}, none of {count} failed",
                    times(made[1], made[0]),
                    1.3,
                    "times",
                ),
                at_most(f"the second client at most 0.2 times{state}", times(made[2], made[0]), 0.2, "times"),
                Bar(f"static files of this machine{state}", f"{times(made[3], made[0]):.2f} times", None),
                Bar(f"the second client beside them{state}", f"{times(made[2], made[3]):.2f} times", None),
            ]
    return Result(f"`uv pip install` of {SMALL_PROJECTS} small wheels, 60 ms round trip, 6 MB/s", rows, bars)


@dataclass(frozen=True)
class LargeRow:
    """Downloads of one large file: seconds to the first byte, and to the last."""

    name: str
    first: Sequence[float]
    last: Sequence[float]
    wrong: str = ""

    def head(self) -> Sequence[str]:
        """Return the heads of the columns after the name."""
        return ("first byte", "last byte", "time ÷ first row's")

    def cells(self, first: LargeRow) -> Sequence[str]:
        """Return all cells, beside the first row's."""
        return (
            label(self.name, self.wrong),
            f"{median(self.first):.3f} s",
            f"{median(self.last):.2f} s",
            f"{median(self.last) / median(first.last):.2f}",
        )


def large(far: Far) -> Result:
    """Download one large wheel."""
    file = "gpu0-1.0-py3-none-any.whl"
    size = (far.folder / "www/packages" / file).stat().st_size

    def curl(url: str) -> tuple[float, float]:
        form = "%{http_code} %{size_download} %{time_starttransfer} %{time_total}"
        command = ["curl", "--silent", "--output", "/dev/null", "--write-out", form, url]
        code, came, first, last = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        if (code, int(came)) != ("200", size):
            raise RuntimeError(f"{url} answers {code} with {came} bytes")
        return float(first), float(last)

    direct, cold = [], []
    with way(far, FAST_WAY):
        for _ in range(far.rounds):
            direct.append(curl(f"{far.url}/packages/{file}"))
            with cache(far) as server:
                ask = ["curl", "--silent", "--header", f"Accept: {JSON}", server.page("gpu0")]
                text = subprocess.run(ask, check=True, capture_output=True, text=True).stdout
                found = re.search(rf'"url": ?"(?:\.\./)+([^"]*/{file})', text)
                if not found:
                    raise RuntimeError(f"the page of gpu0 has no {file}")
                cold.append(curl(f"{server.index.removesuffix(f'{INDEX}/+simple/')}{INDEX}/{found[1]}"))
    rows = [
        LargeRow(name, [first for first, _ in runs], [last for _, last in runs])
        for name, runs in (("direct", direct), ("lanmirror, cold", cold))
    ]
    for each in rows:
        print(f"  {each.name}: {median(each.first):.3f} s, {median(each.last):.2f} s", flush=True)
    later = median(rows[1].first) - median(rows[0].first)
    bars = [
        Bar("first byte at most 100 ms later", f"{later * 1000:.0f} ms", later <= 0.1),  # noqa: PLR2004 - the bar
        at_most("last byte at most 1.1 times", median(rows[1].last) / median(rows[0].last), 1.1, "times"),
    ]
    return Result(f"A cold wheel of {size >> 20} MiB, 60 ms round trip, 50 MB/s", rows, bars)


def evening(far: Far) -> Result:
    """Resolve again and again what nobody has, and read the memory of the site."""
    count = RESOLVES // 10 if far.quick else RESOLVES
    with way(far, FAST_WAY), cache(far) as server:
        runs = []
        for number in range(count):
            asked = far.work / "scratch" / "evening.in"
            asked.write_text("".join(f"other{number * NAMES + each}\n" for each in range(NAMES)))
            runs.append(uv(far, server.index, "compile", str(asked)))
        made = row(f"{count} cold resolves of {NAMES} names", runs)
        held = measure.together([found for root in server.processes for found in measure.family(root)])
    bar = at_most("the site's memory after them at most 500 MiB", held / MIB, 500, "MiB")
    return Result("Memory after an evening of cold resolves", [made], [bar])
