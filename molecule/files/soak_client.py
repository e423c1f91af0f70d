"""Ask for cached projects as pip and uv do, for as long as it takes, and check every byte: on a workstation.

    python3 soak_client.py INDEX INSTALLS PROJECT...

An install is an installer's requests for one project, over a connection of its own: the page, in the format and the
encoding that it prefers, the part of a wheel in which uv reads the dependencies, and the wheel. Prints "ready" once it
knows the right answers, runs until the number of installs is reached and standard input has ended, and prints the
result as JSON.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import http.client
import itertools
import json
import re
import ssl
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

JSON = "application/vnd.pypi.simple.v1+json"
HTML = "application/vnd.pypi.simple.v1+html"
CLIENTS = 8
# How often a wheel of more than a megabyte is fetched whole, of so many times.
LARGE, LARGE_EVERY = 1 << 20, 100
# What each tool's requests say, by its name here.
TOOLS = {
    "pip": {
        "Accept": f"{JSON}, {HTML}; q=0.1, text/html; q=0.01",
        "Accept-Encoding": "gzip, deflate, br, zstd",
        "User-Agent": 'pip/26.1 {"cpu":"x86_64","implementation":{"name":"CPython","version":"3.13.5"}}',
        "Cache-Control": "max-age=0",
    },
    "uv": {
        "Accept": f"{JSON}, {HTML};q=0.2, text/html;q=0.01",
        "Accept-Encoding": "gzip, br",
        "User-Agent": "uv/0.13.9",
    },
    "pip of long ago": {
        "Accept": "text/html",
        "Accept-Encoding": "identity",
        "User-Agent": "pip/19.0.3",
    },
    "a script": {"Accept": f"{JSON}", "Accept-Encoding": "identity", "User-Agent": "python-requests/2.34"},
}


# To read the system's authorities takes longer than all that is asked over a connection.
TLS = ssl.create_default_context()
# URL and sha256 of the wheel on each page that was seen: by the page's URL, its form, and its own sha256.
read: dict[tuple[str, str, str], tuple[str, str]] = {}


@dataclass(frozen=True)
class Truth:
    """A project's newest wheel.

    Attributes:
        name: of the file.
        sha256: that the page told.
        content: its bytes, which are those of the hash.
    """

    name: str
    sha256: str
    content: bytes


@dataclass
class Tally:
    """What came out, of all clients together.

    Attributes:
        wanted: how many installs there have to be.
        told: set when it may end.
        installs: so far, with those that are being made.
        requests: so far.
        times: of the answers, in seconds.
        failures: how often, by the fault.
        lock: for all of it.
    """

    wanted: int
    told: threading.Event = field(default_factory=threading.Event)
    installs: int = 0
    requests: int = 0
    times: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


class WrongError(Exception):
    """A wrong answer."""


class Session:
    """One client's connection."""

    def __init__(self, base: str) -> None:
        parts = urlsplit(base)
        host, port = parts.hostname or "", parts.port
        self.connection: http.client.HTTPConnection
        if parts.scheme == "https":
            self.connection = http.client.HTTPSConnection(host, port, timeout=30, context=TLS)
        else:
            self.connection = http.client.HTTPConnection(host, port, timeout=30)
        self.times: list[float] = []

    def get(self, url: str, headers: dict[str, str], wanted: int = 200) -> tuple[http.client.HTTPMessage, bytes]:
        """Return headers and body, as it came, of an answer that has to have one status."""
        began = time.monotonic()
        self.connection.request("GET", urlsplit(url).path, headers=headers)
        answer = self.connection.getresponse()
        body = answer.read()
        self.times.append(time.monotonic() - began)
        if answer.status != wanted:
            raise WrongError(f"{answer.status} in place of {wanted}: {body[:100]!r}")
        if answer.headers.get("Content-Encoding") == "gzip" and "gzip" not in headers.get("Accept-Encoding", ""):
            raise WrongError("compressed for a client that cannot unpack it")
        return answer.headers, body


def files(headers: http.client.HTTPMessage, page: bytes, url: str) -> dict[str, tuple[str, str]]:
    """Return URL and sha256 of each file of a page, by name."""
    if headers.get("Content-Encoding") == "gzip":
        page = gzip.decompress(page)
    if headers.get_content_type() == JSON:
        return {
            file["filename"]: (urljoin(url, file["url"]), file["hashes"].get("sha256", ""))
            for file in json.loads(page)["files"]
        }
    found = {}
    for link in re.findall(r'<a\s[^>]*?href="([^"]+)"', page.decode()):
        where, fragment = urldefrag(urljoin(url, html.unescape(link)))
        found[unquote(where.rpartition("/")[2])] = (where, fragment.removeprefix("sha256="))
    return found


def learn(index: str, project: str) -> Truth:
    """Fetch a project's newest wheel, and with it into the cache; every tool has to find it on its page."""
    session = Session(index)
    url = f"{index}{project}/"
    listed = files(*session.get(url, TOOLS["pip"]), url)
    name = [name for name in listed if name.endswith("-any.whl") or "manylinux" in name][-1]
    where, sha256 = listed[name]
    _, content = session.get(where, TOOLS["pip"])
    if hashlib.sha256(content).hexdigest() != sha256:
        raise WrongError(f"{name} has another hash than its page says")
    for tool in TOOLS.values():
        if files(*session.get(url, tool), url).get(name) != (where, sha256):
            raise WrongError(f"{name} is not on every page of {project}")
    return Truth(name, sha256, content)


def install(session: Session, index: str, project: str, truth: Truth, tool: str, *, whole: bool) -> None:
    """Make a tool's requests for a project.

    Raises:
        WrongError: an answer was wrong.
    """
    url, headers = f"{index}{project}/", TOOLS[tool]
    described, page = session.get(url, headers)
    # A large page is read once; after that, it is known by its hash.
    form = f"{described.get_content_type()} {described.get('Content-Encoding')}"
    known = (url, form, hashlib.sha256(page).hexdigest())
    if known not in read:
        read[known] = files(described, page, url).get(truth.name, ("", ""))
    where, sha256 = read[known]
    if sha256 != truth.sha256:
        raise WrongError(f"the page of {project} lacks {truth.name}, or has another hash for it")
    agent = {"User-Agent": headers["User-Agent"], "Accept-Encoding": "identity"}
    if tool == "uv":
        _, tail = session.get(where, {**agent, "Range": "bytes=-4096"}, wanted=206)
        if tail != truth.content[-4096:]:
            raise WrongError(f"other bytes at the end of {truth.name}")
    if whole and hashlib.sha256(session.get(where, agent)[1]).hexdigest() != sha256:
        raise WrongError(f"other bytes in {truth.name}")


def client(index: str, truths: dict[str, Truth], tally: Tally, number: int) -> None:
    """Install one project after the other, each with the next tool."""
    for turn in itertools.count(number):
        with tally.lock:
            if tally.installs >= tally.wanted and tally.told.is_set():
                return
            tally.installs += 1
        project = list(truths)[turn % len(truths)]
        tool = list(TOOLS)[turn // len(truths) % len(TOOLS)]
        truth = truths[project]
        session = Session(index)
        wrong = ""
        try:
            whole = len(truth.content) < LARGE or turn // len(truths) % LARGE_EVERY == 0
            install(session, index, project, truth, tool, whole=whole)
        except (WrongError, OSError, http.client.HTTPException, ValueError) as error:
            wrong = f"{tool}, {project}: {type(error).__name__}: {error}"
        finally:
            session.connection.close()
        with tally.lock:
            tally.requests += len(session.times)
            tally.times += session.times
            if wrong:
                tally.failures[wrong] += 1


def main(arguments: list[str]) -> int:
    """Run; 0 whatever came out, which is for the caller to judge."""
    index, installs, *projects = arguments
    truths = {project: learn(index, project) for project in projects}
    print("ready", flush=True)
    began = time.monotonic()
    tally = Tally(int(installs))
    threads = [threading.Thread(target=client, args=(index, truths, tally, number)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    tally.told.set()
    for thread in threads:
        thread.join()
    times = sorted(tally.times)
    outcome = {
        "installs": tally.installs,
        "requests": tally.requests,
        "seconds": time.monotonic() - began,
        "p50": times[len(times) // 2],
        "p99": times[len(times) * 99 // 100],
        "slowest": times[-1],
        "failed": sum(tally.failures.values()),
        "failures": dict(tally.failures.most_common(10)),
    }
    print(json.dumps(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
