"""Load on a server by `wrk` (Debian's), and its figures.

`wrk` keeps some connections open and sends the next request on one as soon as it has the answer to the last: it finds
out how many a server can answer, while it takes a good part of the same machine itself.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

from bench.common.report import label, spread

DEBIAN = {"wrk": "wrk"}
THREADS = 2
CONNECTIONS = 16
# Microseconds, and counts, as `wrk` has them (its SCRIPTING document).
DONE = """\
done = function(summary, latency, requests)
  local wrong = summary.errors
  io.write(string.format(
    '\\n{"requests": %d, "seconds": %f, "median": %f, "p99": %f, "worst": %f, "bytes": %d, "errors": %d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
    latency.max / 1e6, summary.bytes, wrong.connect + wrong.read + wrong.write + wrong.status + wrong.timeout))
end
"""
# Each thread goes its own way through the paths, from where its number says.
PATHS = """\
local count = 0
setup = function(thread) thread:set("place", count); count = count + {step} end
local requests = {{}}
init = function(arguments) for i, path in ipairs({{ {paths} }}) do requests[i] = wrk.format(nil, path) end end
request = function() place = place % #requests + 1; return requests[place] end
"""
# Milliseconds before the next request of a connection.
PAUSE = "delay = function() return math.random(0, {}) end\n"
# Bytes of a packet.
LAN_MTU, LOOPBACK_MTU = 1500, 65536
OF_A_LAN = f", in packets of {LAN_MTU:,} bytes"
OF_PACKETS = (
    f"All other tables are of packets of {LOOPBACK_MTU:,} bytes, the loopback device's own. Linux does not quite fill "
    "the first of those where it sends a file from somewhere after its beginning, as all are sent that Nginx keeps; it "
    "costs a quarter of the rate."
)
# Of a load that lasts as long as something else, a bound.
LONGEST = 3600
Made = TypeVar("Made")


@contextmanager
def lan_packets() -> Iterator[None]:
    """Have the loopback device of this network send packets of a LAN's size."""
    set_mtu = ["ip", "link", "set", "lo", "mtu"]
    subprocess.run([*set_mtu, str(LAN_MTU)], check=True)
    try:
        yield
    finally:
        subprocess.run([*set_mtu, str(LOOPBACK_MTU)], check=True)


@dataclass(frozen=True)
class Load:
    """The figures of a server under load.

    Attributes:
        requests: answered in time.
        seconds: of the run.
        median: time of an answer, in seconds, that half of them took no longer than.
        p99: the same for 99 of 100.
        worst: the longest.
        bytes: received.
        errors: refused or broken connections, answers with 4xx or 5xx, answers after half a minute or never.
    """

    requests: int
    seconds: float
    median: float
    p99: float
    worst: float
    bytes: int
    errors: int

    @property
    def per_second(self) -> float:
        """Requests answered per second."""
        return self.requests / self.seconds

    @property
    def bytes_per_second(self) -> float:
        """Bytes received per second, those of answers that were not over in time too."""
        return self.bytes / self.seconds


@dataclass(frozen=True)
class LoadRow:
    """The figures of one server, in all runs.

    Attributes:
        name: the server.
        loads: of each run.
        wrong: the fault of an answer; "" where all were right.
    """

    name: str
    loads: Sequence[Load]
    wrong: str = ""

    @property
    def per_second(self) -> float:
        """The median of requests per second."""
        return median(load.per_second for load in self.loads)

    @property
    def bytes_per_second(self) -> float:
        """The median of bytes per second."""
        return median(load.bytes_per_second for load in self.loads)

    @property
    def p99(self) -> float:
        """The median of the runs' 99th percentiles, in seconds."""
        return median(load.p99 for load in self.loads)

    def head(self) -> Sequence[str]:
        """Return the heads of the columns after the name."""
        return ("requests/s", "from, to", "median", "99 % within", "÷ first row's")

    def cells(self, first: LoadRow) -> Sequence[str]:
        """Return all cells, beside the first row's."""
        digits = 0 if self.per_second >= 100 else 1  # noqa: PLR2004 - three places are enough
        return (
            label(self.name, self.wrong),
            f"{self.per_second:,.{digits}f}",
            spread([load.per_second for load in self.loads], "", digits),
            f"{median(load.median for load in self.loads) * 1000:.2f} ms",
            f"{self.p99 * 1000:.2f} ms",
            f"{self.per_second / first.per_second:.3f}",
        )


def read(output: str) -> Load:
    """Return the figures that `wrk` prints with the script above."""
    return Load(**json.loads(output.strip().rsplit("\n", 1)[-1]))


def wrk(
    url: str,
    headers: Mapping[str, str],
    seconds: int,
    scratch: Path,
    *,
    paths: Sequence[str] = (),
    connections: int = CONNECTIONS,
    pause: int = 0,
) -> Load:
    """Put load on a server.

    Args:
        url: the URL that is asked for.
        headers: of each request.
        seconds: how long.
        scratch: a folder for the script.
        paths: asked for in turn, in place of the URL's.
        connections: how many there are.
        pause: the mean time between an answer and the next request on its connection, in milliseconds.
    """
    command = _command(url, headers, seconds, scratch, paths=paths, connections=connections, pause=pause)
    return read(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def wrk_during(
    task: Callable[[], Made], url: str, scratch: Path, *, paths: Sequence[str], pause: int
) -> tuple[Load, Made]:
    """Put load on a server as long as a task takes; return what the task returns as well. See `wrk`."""
    command = _command(url, {}, LONGEST, scratch, paths=paths, connections=CONNECTIONS, pause=pause)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            made = task()
        finally:
            # It ends with its figures.
            process.send_signal(signal.SIGINT)
        output, _ = process.communicate()
    return read(output), made


def _command(
    url: str,
    headers: Mapping[str, str],
    seconds: int,
    scratch: Path,
    *,
    paths: Sequence[str],
    connections: int,
    pause: int,
) -> list[str]:
    scratch.mkdir(parents=True, exist_ok=True)
    script = scratch / "wrk.lua"
    many = PATHS.format(step=len(paths) // THREADS, paths=", ".join(map(json.dumps, paths))) if paths else ""
    script.write_text(DONE + many + (PAUSE.format(2 * pause) if pause else ""))
    # Not cut off at two seconds, as it does by itself: a slow server's answers count.
    command = ["wrk", f"-t{THREADS}", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script)]
    command += [f"-H{name}: {value}" for name, value in headers.items()]
    return [*command, url]


def say(name: str, load_: Load, wrong: str = "") -> None:
    """Tell the person at the keyboard how it goes."""
    print(f"  {name}: {load_.per_second:,.1f}/s, 99 % in {load_.p99 * 1000:.1f} ms {wrong}".rstrip(), flush=True)


def ratios(
    mine: LoadRow, other: LoadRow, figure: Callable[[Load], float] = lambda load: load.per_second
) -> list[float]:
    """Return a figure of each round, as so many times that of another row; 0 alone where an answer was wrong."""
    pairs = zip(mine.loads, other.loads, strict=False)
    return [0.0] if mine.wrong else [figure(one) / figure(another) for one, another in pairs]


def ratio(rows: Sequence[LoadRow], name: str, other: str) -> float:
    """Return how many times as many requests a server answered as another; 0 where something was wrong.

    The median of the rounds, since the machine's other work changes from one to the next.
    """
    found = {row.name: row for row in rows}
    return median(ratios(found[name], found[other]))


def errors(loads: Sequence[Load]) -> str:
    """Return how many answers were wrong."""
    count = sum(one.errors for one in loads)
    return f"{count} errors" if count else ""
