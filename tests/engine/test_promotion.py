"""Promotion: what the site's cache has comes into the mirror from there, and what is wrong with it costs nothing.

Before the engine's mirror and its upstream runs the real Nginx with the roles' own files.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from lanmirror_sync.cache import AHEAD, Ahead, Cache
from lanmirror_sync.config import parse
from lanmirror_sync.sinks import Download, Expected
from lanmirror_sync.wire import Exchange, Wire

from tests.engine.lab import Lab
from tests.engine.site import before
from tests.roles.conda_site import SLICE, CondaSite
from tests.upstream import channel, pages

pytestmark = pytest.mark.slow

LINUX = "pkgs/main/linux-64"
SMALL, OLD = "lib0003-1.3-0.conda", "lib0000-1.0-0.tar.bz2"
LARGE_BYTES = 3 * SLICE


@pytest.fixture
def large(lab: Lab) -> str:
    """Have the upstream give a package of several slices; return its name."""
    spec = channel.Spec("large", subdir="linux-64", files={"share/large": channel.noise(LARGE_BYTES, 5)})
    return channel.publish(lab.tree / "pkgs/main", spec)[0]


@pytest.fixture
def site(lab: Lab, large: str) -> Iterator[CondaSite]:
    """The site; the engine's configuration is as the role writes it."""
    with before(lab) as site:
        lab.remember()
        yield site


def bring(lab: Lab, site: CondaSite, *names: str) -> None:
    """Have clients ask for packages, until the cache has all of them; the upstream forgets that it was asked."""
    for name in names:
        assert site.ask(f"/anaconda/{LINUX}/{name}").status == 200
    lab.until(lambda: {key.partition(" ")[0].rpartition("/")[2] for key in site.kept()} >= {*names})
    lab.upstream.requests.clear()


def asked(lab: Lab, name: str) -> list[str]:
    """Return the ranges that the upstream was asked for of a package; "" for all of it."""
    return [request.headers.get("Range", "") for request in lab.upstream.asked(f"/{LINUX}/{name}")]


def told(lab: Lab) -> dict[str, Any]:
    """Return what status.json tells of the last sync."""
    run: dict[str, Any] = json.loads((lab.mirror / ".lanmirror/public/status.json").read_bytes())["run"]
    return run


def slices(site: CondaSite, name: str) -> dict[int, Path]:
    """Return the files of the cache of a package, by the number of the slice."""
    found = {}
    for file in (site.folder / "cache/lanmirror-conda/kept").rglob("*"):
        if file.is_file() and (
            match := re.search(rf"{re.escape(name)} bytes=(\d+)-".encode(), file.read_bytes()[:999])
        ):
            found[int(match[1]) // SLICE] = file
    return found


# ---- what the cache has ----------------------------------------------------------------------------------------


def test_what_the_cache_has_is_not_fetched_again(lab: Lab, site: CondaSite, large: str) -> None:
    bring(lab, site, SMALL, OLD, large)
    kept = site.kept()

    run = lab.sync()

    assert run.code == 0, run.log
    assert [asked(lab, name) for name in (SMALL, OLD, large)] == [[], [], []]
    everything = lab.named(f"{LINUX}/repodata.json") | lab.named("pkgs/main/noarch/repodata.json")
    others = lab.upstream.asked("*.conda", "GET") + lab.upstream.asked("*.tar.bz2", "GET")
    # By the engine alone, once each.
    assert len(others) == len({request.path for request in others}) == len(everything) - 3
    assert {request.headers["User-Agent"].partition("/")[0] for request in others} == {"lanmirror"}
    assert site.kept() == kept, "what was not there is no entry of the cache"
    lab.check()
    sizes = sum((lab.mirror / LINUX / name).stat().st_size for name in (SMALL, OLD, large))
    assert (told(lab)["promoted_files"], told(lab)["promoted_bytes"]) == (3, sizes)
    assert told(lab)["fetched_files"] == len(others)
    assert re.search(r"in sync: \d+ files fetched \([^)]*\), 3 from the cache \(", run.log)
    assert "No such" not in site.errors
    assert "[error]" not in site.errors


def test_verify_repairs_with_what_the_cache_has(lab: Lab, site: CondaSite, large: str) -> None:
    bring(lab, site, SMALL, large)
    assert lab.sync().code == 0
    for name in (SMALL, large):
        (lab.mirror / LINUX / name).write_bytes(b"rotten")
    lab.upstream.requests.clear()
    run = lab.sync("verify", "--repair")
    assert run.code == 0, run.log
    assert lab.upstream.requests == []
    lab.check()


def test_channel_that_is_not_held_asks_the_cache_nothing(lab: Lab, site: CondaSite) -> None:
    bring(lab, site, SMALL)
    lab.settings["repos"] = [{"name": "main", "hold": "none"}]
    assert lab.sync().code == 0
    assert (lab.packages(LINUX), told(lab)["promoted_files"]) == (set(), 0)


def test_proxy_is_for_the_upstream_alone(lab: Lab, site: CondaSite, large: str) -> None:
    bring(lab, site, SMALL, large)
    lab.settings["upstream"] = {"repo": "http://mirror.invalid", "cloud": "http://mirror.invalid/cloud"}
    run = lab.sync(env={"http_proxy": lab.upstream.url})
    assert run.code == 0, run.log
    assert told(lab)["promoted_files"] == 2
    assert lab.upstream.asked("*+kept*") == []


def test_limit_of_the_rate_is_for_the_upstream_alone(
    lab: Lab, site: CondaSite, large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(lab, site, large)
    url, size = lab.settings["cache"], (lab.tree / LINUX / large).stat().st_size
    wire = Wire(parse({"cache": url, "limit_rate": "1MB/s"}, {}))
    for near in (True, False):
        counted: list[int] = []
        monkeypatch.setattr(wire._rate, "count", counted.append)
        wire.start(Exchange(f"{url}/{LINUX}/{large}", near=near))
        while len(wire):
            wire.wait(1)
        assert sum(counted) == (0 if near else size)
    wire.close()


# ---- what is wrong with it -------------------------------------------------------------------------------------


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)


def test_package_that_is_not_complete_goes_on_from_where_the_cache_ends(lab: Lab, site: CondaSite, large: str) -> None:
    bring(lab, site, large)
    slices(site, large)[1].unlink()
    run = lab.sync()
    assert run.code == 0, run.log
    assert asked(lab, large) == [f"bytes={SLICE}-"]
    assert told(lab)["promoted_files"] == 0
    lab.check()


@pytest.mark.parametrize("wrong", ["other bytes", "shorter", "longer", "other bytes, then missing"])
def test_wrong_bytes_of_the_cache_are_fetched_from_the_upstream(
    lab: Lab, site: CondaSite, large: str, wrong: str
) -> None:
    right = (lab.tree / LINUX / large).read_bytes()
    body = {"shorter": right[: 2 * SLICE + 5], "longer": right + b"more"}.get(wrong, right)
    lab.fault(f"/{LINUX}/{large}", body=body, times=4)
    bring(lab, site, large)
    lab.upstream.faults.clear()
    if wrong.startswith("other"):
        flip(slices(site, large)[0])
    if wrong.endswith("missing"):
        slices(site, large)[2].unlink()
    # A run that is allowed no second attempt.
    lab.settings["retries"] = 0

    run = lab.sync()

    assert run.code == 0, run.log
    assert asked(lab, large) == [*([f"bytes={2 * SLICE}-"] if wrong.endswith("missing") else []), ""]
    assert told(lab)["promoted_files"] == 0
    assert told(lab)["failures"] == 0
    lab.check()
    # Nothing is held against the upstream.
    assert lab.sync().code == 0
    assert len(lab.upstream.asked(f"/{LINUX}/{large}")) == 1 + wrong.endswith("missing")


def refuse(connection: socket.socket, upstream: str) -> None:
    connection.close()


def hang(connection: socket.socket, upstream: str) -> None:
    while connection.recv(65536):
        pass


def babble(connection: socket.socket, upstream: str) -> None:
    connection.recv(65536)
    connection.sendall(b"220 mail.lab.lan ESMTP\r\n\r\n" * 50)
    connection.close()


def fail(connection: socket.socket, upstream: str) -> None:
    while data := connection.recv(65536):
        answer = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
        connection.sendall(answer * data.count(b"\r\n\r\n"))


PROMISED: list[bytes] = []


def promise(connection: socket.socket, upstream: str) -> None:
    """Have everything, and give nothing of it."""
    while data := connection.recv(65536):
        PROMISED.extend(re.findall(rb"(?m)^GET \S+", data))
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
        connection.sendall(answer * data.count(b"\r\n\r\n"))


def lie(connection: socket.socket, upstream: str) -> None:
    """Have everything, and give a page."""
    while data := connection.recv(65536):
        for question in data.split(b"\r\n\r\n")[:-1]:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
            if question.startswith(b"GET"):
                connection.sendall(b"<h1>no!\n")


def lead(connection: socket.socket, upstream: str) -> None:
    """Have everything, and send who asks to the upstream."""
    while data := connection.recv(65536):
        for question in data.decode().split("\r\n\r\n")[:-1]:
            there = f"302 Found\r\nLocation: {upstream}{question.split(' ')[1].removeprefix('/+kept')}"
            status = there if question.startswith("GET") else "200 OK"
            connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())


@pytest.mark.parametrize("does", [None, refuse, hang, babble, fail, promise, lie, lead])
def test_cache_that_is_broken_costs_nothing(lab: Lab, does: Callable[[socket.socket, str], None] | None) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    lab.settings |= {"cache": f"http://127.0.0.1:{server.getsockname()[1]}/+kept", "retries": 0, "timeout_seconds": 2}

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=quietly, args=(does, connection), daemon=True).start()

    def quietly(does: Callable[[socket.socket, str], None], connection: socket.socket) -> None:
        with suppress(OSError):
            does(connection, lab.upstream.url)

    if does is None:
        server.close()
    else:
        threading.Thread(target=serve, daemon=True).start()
    run = lab.sync()
    server.close()
    assert run.code == 0, run.log
    packages = [request.path for request in lab.upstream.asked("*.conda") + lab.upstream.asked("*.tar.bz2")]
    assert len(packages) == len(set(packages)) == told(lab)["fetched_files"]
    assert (told(lab)["promoted_files"], told(lab)["failures"]) == (0, 0)
    lab.check()
    # One that is silent is asked no more: what was on its way then, and nothing else.
    assert len(PROMISED) < 10


# ---- the questions ---------------------------------------------------------------------------------------------


def test_each_of_many_packages_gets_its_own_answer(lab: Lab, site: CondaSite) -> None:
    """More than Nginx answers on one connection."""
    bring(lab, site, SMALL, OLD)
    config = parse({"cache": lab.settings["cache"]}, {})
    wire = Wire(config)
    cache = Cache(config.cache, wire)
    feed = Ahead(cache)

    def download(number: int) -> Download:
        name = SMALL if number % 1000 == 7 else OLD if number % 1000 == 8 else f"no{number}-1.0-0.conda"
        url = f"{config.cache}/{LINUX}/{name}" if number % 3 else ""
        return Download(str(number), name, (), Expected(1, "md5", ""), lab.folder, lab.folder, kept=url)

    total = 10_500 * 3 // 2
    feed.add(iter([download(number) for number in range(total)]))
    taken: dict[int, Download] = {}
    at_once, end = 0, time.monotonic() + 120
    while feed:
        assert time.monotonic() < end
        while one := feed.take():
            assert int(one.owner) not in taken
            taken[int(one.owner)] = one
        at_once = max(at_once, len(cache._waiting))
        wire.wait(0.01)
    cache.close()
    wire.close()
    assert [*sorted(taken)] == [*range(total)]
    kept = {number for number, one in taken.items() if one.kept}
    assert kept == {number for number in range(total) if number % 1000 in (7, 8) and number % 3}
    assert AHEAD // 4 < at_once <= AHEAD * 2


def test_installer_whose_hash_is_listed_comes_from_the_cache(lab: Lab, site: CondaSite) -> None:
    lab.settings["installers"] = {"dists": ["miniconda", "archive"], "suffixes": ["Linux-x86_64.sh"]}
    folder, latest = lab.tree / "miniconda", "Miniconda3-latest-Linux-x86_64.sh"
    hashed = "Miniconda3-1.0-Linux-x86_64.sh"
    (folder / hashed).write_bytes(channel.noise(LARGE_BYTES, 7))
    (folder / "index.html").write_text(pages.official("Miniconda", [folder / latest, folder / hashed]))
    # Its listing has no hashes.
    unhashed = "Anaconda3-2025.06-1-Linux-x86_64.sh"
    paths = [f"/miniconda/{latest}", f"/miniconda/{hashed}", f"/archive/{unhashed}"]
    for path in paths:
        assert site.ask(f"/anaconda{path}").status == 200
    lab.until(lambda: {key.partition(" ")[0] for key in site.kept()} >= {*paths})
    lab.upstream.requests.clear()
    run = lab.sync()
    assert run.code == 0, run.log
    assert sorted(asked.path for asked in lab.upstream.asked("*.sh", "GET")) == [paths[2], paths[0]]
    assert told(lab)["promoted_files"] == 1
    for path in paths:
        assert (lab.mirror / path[1:]).read_bytes() == (lab.tree / path[1:]).read_bytes()
    # What the cache has of another version is no file of the mirror.
    (lab.mirror / paths[1][1:]).unlink()
    (folder / hashed).write_bytes(channel.noise(LARGE_BYTES, 8))
    (folder / "index.html").write_text(pages.official("Miniconda", [folder / latest, folder / hashed]))
    run = lab.sync()
    assert run.code == 0, run.log
    assert (lab.mirror / paths[1][1:]).read_bytes() == channel.noise(LARGE_BYTES, 8)
