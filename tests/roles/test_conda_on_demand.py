"""Conda on demand as a client meets it: Nginx itself with the files of the roles, before real servers that fail."""

from __future__ import annotations

import http.client
import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from lanmirror_sync.plan import matcher

from roles.conda_mirror.filter_plugins import conda_mirror_on_demand as on_demand
from roles.conda_mirror.library import conda_mirror_data as data
from tests.roles.conda_site import (
    FORGE,
    MAIN,
    NAME,
    SLICE,
    CondaSite,
    Rule,
    authority,
    bases,
    conda_site,
    drops,
    ranged,
)
from tests.roles.render import defaults, evaluate, render, run_module, tasks, written
from tests.roles.site import Answer, Asked, Devpi, Handler, Said
from tests.roles.test_nginx_site import needs_root, on_a_small_disk

A = f"{MAIN}a-1.0-0.conda"
SLICES = [f"bytes={first}-{first + SLICE - 1}" for first in range(0, 4 * SLICE, SLICE)]
SOON: dict[str, Any] = {"__conda_mirror_kept": {"index": "1s", "absent": "1s", "failure": "1s"}}
IMMUTABLE = "public, max-age=31536000, immutable"


def some(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CondaSite]:
    with conda_site(tmp_path_factory.mktemp("conda"), upstreams=2) as running:
        yield running


@pytest.fixture
def ours(shared: CondaSite) -> Iterator[CondaSite]:
    """The site, with two upstreams that were asked nothing so far and have nothing yet."""
    for upstream in shared.upstreams:
        upstream.asked.clear()
        upstream.says.clear()
    yield shared
    for upstream in shared.upstreams:
        if upstream.server is None:
            upstream.start()


@pytest.fixture
def package(request: pytest.FixtureRequest) -> str:
    """The path of a package that no other test has."""
    name = re.sub(r"[^a-z0-9]+", "_", request.node.name.lower()).strip("_")
    return f"{MAIN}{name[:100]}-1.0-0.conda"


def get(site: CondaSite, path: str, method: str = "GET", **headers: str) -> Answer:
    return site.ask(f"/anaconda{path}", method, **headers)


def until(true: Callable[[], bool]) -> None:
    """Wait for something."""
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


# ---- packages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        f"{MAIN}small-1.0-py311h06a4308_0.conda",
        f"{MAIN}_libgcc_mutex-0.1-main.tar.bz2",
        f"{FORGE}epoch-1!2.0+local-h1_0.conda",
        "/cloud/nvidia/label/cuda-12.4.0/linux-64/cuda-12.4.0-0.tar.bz2",
    ],
)
def test_small_package_costs_one_request_and_is_kept(ours: CondaSite, path: str) -> None:
    body = some(20_000)
    ours.upstreams[0].says[path] = ranged(body, **{"Content-Type": "application/octet-stream", "ETag": '"x"'})
    answers = [get(ours, path, Cookie="a=b", X_Mine="1", User_Agent="conda/26") for _ in range(3)]
    assert [(answer.status, answer.body == body) for answer in answers] == [(200, True)] * 3
    assert [answer["X-Cache-Status"] for answer in answers] == ["MISS", "HIT", "HIT"]
    assert {answer["Cache-Control"] for answer in answers} == {IMMUTABLE}
    assert {answer["ETag"] for answer in answers} == {""}
    # By whatever name, and whatever stands behind the path.
    assert ours.ask(path, Host=NAME)["X-Cache-Status"] == "HIT"
    assert get(ours, f"{path}?again")["X-Cache-Status"] == "HIT"
    (asked,) = ours.upstreams[0].asked
    assert (asked.path, asked["Host"], asked["Range"]) == (path, f"127.0.0.1:{ours.upstreams[0].port}", SLICES[0])
    assert "lanmirror" in asked["User-Agent"]
    assert not {"cookie", "x-mine", "x-slice", "accept-encoding"} & asked.headers.keys()


@pytest.mark.parametrize("kind", ["package", "installer"])
def test_ten_clients_cold_cost_one_download_and_none_waits_for_its_end(
    ours: CondaSite, kind: str, request: pytest.FixtureRequest
) -> None:
    package: str = request.getfixturevalue(kind)
    body, may_end = some(3 * SLICE + 250_000), threading.Event()
    file = ranged(body)

    def slow(handler: Handler, asked: Asked) -> Said | None:
        if asked["Range"] != SLICES[0]:
            assert may_end.wait(60)
        return file(handler, asked)

    ours.upstreams[0].says[package] = slow
    reading = threading.Barrier(11)

    def client(_: int) -> bytes:
        with ours.streaming(f"/anaconda{package}") as answer:
            first = answer.read(SLICE // 2)
            reading.wait(60)
            return first + answer.read()

    with ThreadPoolExecutor(10) as clients:
        done = [clients.submit(client, number) for number in range(10)]
        # All of them have the half of the first slice, and the upstream has given no more.
        reading.wait(60)
        may_end.set()
        assert all(each.result() == body for each in done)
    assert sorted((asked["Range"] for asked in ours.upstreams[0].asked), key=SLICES.index) == SLICES


def test_what_a_client_no_longer_waits_for_is_kept(ours: CondaSite, package: str) -> None:
    body, may_end = some(3 * SLICE + 250_000), threading.Event()

    def slow(handler: Handler, asked: Asked) -> Said | None:
        if asked["Range"] == SLICES[2]:
            assert may_end.wait(60)
        return ranged(body)(handler, asked)

    ours.upstreams[0].says[package] = slow
    with ours.streaming(f"/anaconda{package}") as answer:
        # Nginx holds the last bytes of a slice back until there are more.
        assert answer.read(2 * SLICE - 1460) == body[: 2 * SLICE - 1460]
        until(lambda: len(ours.upstreams[0].asked) == 3)
    may_end.set()
    until(lambda: f"{package} {SLICES[2]}" in ours.kept())
    assert get(ours, package).body == body
    assert [asked["Range"] for asked in ours.upstreams[0].asked] == SLICES


def test_range_and_head_of_a_cold_package_cost_their_slice(ours: CondaSite, package: str) -> None:
    body = some(3 * SLICE + 250_000)
    ours.upstreams[0].says[package] = ranged(body)
    part = get(ours, package, Range="bytes=550000-550009")
    assert (part.status, part.body) == (206, body[550000:550010])
    assert (part["Content-Range"], part["Cache-Control"]) == (f"bytes 550000-550009/{len(body)}", IMMUTABLE)
    head = get(ours, package, "HEAD")
    assert (head.status, head["Content-Length"], head.body) == (200, str(len(body)), b"")
    assert [asked["Range"] for asked in ours.upstreams[0].asked] == [SLICES[1], SLICES[0]]
    assert {asked.method for asked in ours.upstreams[0].asked} == {"GET"}
    assert get(ours, package, Range="bytes=-10").body == body[-10:]
    assert get(ours, package, Range=f"bytes={len(body) - 5}-").body == body[-5:]
    assert get(ours, package.replace("-1.0-", "-2.0-"), Range="bytes=550000-550009").status == 404
    for start in (len(body), 100 * SLICE):
        assert get(ours, package, Range=f"bytes={start}-").status == 416
    # Nothing was fetched ahead.
    assert not {asked["Range"] for asked in ours.upstreams[0].asked if asked.path == package} & {SLICES[2]}


# The digits in front of the last ones grow by one, or by a carry.
@pytest.mark.parametrize("first", [1, 8, 18, 198, 1998, 19998])
def test_slices_are_fetched_ahead_of_a_client(ours: CondaSite, package: str, first: int) -> None:
    count = first + 14
    starts, size = range(first * SLICE, count * SLICE, SLICE), count * SLICE
    may_end = threading.Event()

    def slow(handler: Handler, asked: Asked) -> Said | None:
        start = int(asked["Range"].removeprefix("bytes=").partition("-")[0])
        assert start < size
        if start == starts[1]:
            assert may_end.wait(60)
        part = {"Accept-Ranges": "bytes", "Content-Range": f"bytes {start}-{start + SLICE - 1}/{size}"}
        return 206, part, some(1000 + start // SLICE % 20)[:1000] * (SLICE // 1000)

    ours.upstreams[0].says[package] = slow
    with ours.streaming(f"/anaconda{package}", Range=f"bytes={starts[0]}-") as answer:
        assert len(answer.read(SLICE - 1460)) == SLICE - 1460
        until(lambda: len(ours.upstreams[0].asked) == 2)
    may_end.set()
    last = ours.upstreams[0].asked
    until(lambda: any(f"{package} bytes={starts[8]}-" in key for key in ours.kept()))
    # Of whom it was that asked for the second one: Nginx itself, or the client.
    get(ours, f"{MAIN}none-1.0-0.conda")
    asked = [each["Range"] for each in last if each.path == package]
    wanted = [f"bytes={start}-{start + SLICE - 1}" for start in starts]
    assert asked in (wanted[:9], wanted[:10])
    rest = get(ours, package, Range=f"bytes={starts[0]}-")
    assert len(rest.body) == 14 * SLICE
    assert [each["Range"] for each in last if each.path == package] == wanted


@pytest.mark.parametrize(("number", "times", "arrives"), [(0, 1, False), (1, 1, True), (1, 9, False), (3, 9, False)])
def test_slice_that_is_cut_ends_the_transfer_at_once(
    ours: CondaSite, package: str, number: int, times: int, arrives: bool
) -> None:
    """What came is right, what is kept is whole, and a later slice is asked for once more before."""
    body = some(3 * SLICE + 250_000)
    left = [None] * times

    def cuts(handler: Handler, asked: Asked) -> Said | None:
        done = ranged(body)(handler, asked)
        assert done
        if asked["Range"] != SLICES[number] or not left:
            return done
        left.pop()
        handler.send_response(206)
        for name, value in {**done[1], "Content-Length": str(len(done[2]))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(done[2][:-50_000])
        drops(handler, asked)
        return None

    ours.upstreams[0].says[package] = cuts
    if not arrives:
        with pytest.raises((http.client.IncompleteRead, http.client.RemoteDisconnected)) as broken:
            get(ours, package)
        partial = getattr(broken.value, "partial", b"")
        assert body.startswith(partial)
        assert number * SLICE - 1460 < len(partial) < len(body)
        assert f"{package} {SLICES[number]}" not in ours.kept()
        left.clear()
    assert get(ours, package).body == body


def test_upstream_without_ranges_gives_the_whole_file_at_once(ours: CondaSite, package: str) -> None:
    body = some(3 * SLICE + 250_000)
    ours.upstreams[0].says[package] = 200, {}, body
    assert get(ours, package).body == body
    until(lambda: f"{package} {SLICES[0]}" in ours.kept())
    answer = get(ours, package)
    assert (answer.body == body, answer["X-Cache-Status"]) == (True, "HIT")
    assert len(ours.upstreams[0].asked) == 1
    part = get(ours, package, Range="bytes=1100000-1100009")
    assert (part.status, part.body) == (206, body[1100000:1100010])


def test_upstream_without_ranges_goes_on_where_another_stopped(ours: CondaSite, package: str) -> None:
    body = some(3 * SLICE + 250_000)

    def goes(handler: Handler, asked: Asked) -> Said | None:
        return ranged(body)(handler, asked) if asked["Range"] == SLICES[0] else (503, {}, b"")

    ours.upstreams[0].says[package] = goes
    ours.upstreams[1].says[package] = 200, {}, body
    for _ in range(2):
        assert get(ours, package).body == body


def test_mirrors_with_other_etags_give_one_file(ours: CondaSite, package: str) -> None:
    body = some(3 * SLICE)

    def turns(handler: Handler, asked: Asked) -> Said | None:
        return ranged(body, ETag=f'"{asked["Range"]}"')(handler, asked)

    ours.upstreams[0].says[package] = turns
    assert get(ours, package).body == body


def test_held_file_wins_over_a_kept_one(ours: CondaSite, package: str) -> None:
    ours.upstreams[0].says[package] = ranged(b"from outside")
    assert get(ours, package).body == b"from outside"
    ours.hold(package, b"held here")
    # Each worker knows for a second that it was not held.
    until(lambda: all(get(ours, package).body == b"held here" for _ in range(20)))
    for answer in (get(ours, package), ours.ask(package, Host=NAME)):
        assert (answer.status, answer.body, answer["Cache-Control"]) == (200, b"held here", IMMUTABLE)
    assert get(ours, package, Range="bytes=0-3").body == b"held"
    assert len(ours.asked) == 1


def test_page_in_the_place_of_a_package_is_not_kept(ours: CondaSite, package: str) -> None:
    ours.upstreams[0].says[package] = 200, {"Content-Type": "text/html"}, b"<h1>log in</h1>"
    get(ours, package)
    ours.upstreams[0].says[package] = ranged(b"the package")
    assert get(ours, package).body == b"the package"


def test_file_of_no_length_is_not_kept(ours: CondaSite, package: str) -> None:
    def endless(handler: Handler, asked: Asked) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nthe pack")
        return drops(handler, asked)

    ours.upstreams[0].says[package] = endless
    get(ours, package)
    ours.upstreams[0].says[package] = ranged(b"the package")
    assert get(ours, package).body == b"the package"


def test_headers_of_an_upstream_are_no_orders(ours: CondaSite, package: str) -> None:
    ours.hold("/.lanmirror/secret", b"secret")
    orders = {
        "X-Accel-Redirect": "/anaconda/pkgs/main/linux-64/held-1.0-0.conda",
        "X-Accel-Expires": "0",
        "Cache-Control": "no-store",
        "Set-Cookie": "a=b",
        "Vary": "*",
        "Strict-Transport-Security": "max-age=1",
        "Link": "<https://elsewhere.example>",
    }
    ours.upstreams[0].says[package] = ranged(b"the package", **orders)
    for status in ("MISS", "HIT"):
        answer = get(ours, package)
        assert (answer.body, answer["X-Cache-Status"], answer["Cache-Control"]) == (b"the package", status, IMMUTABLE)
        assert not {"x-accel-redirect", "set-cookie", "vary", "strict-transport-security", "link"} & set(answer.headers)


def test_excluded_package_is_not_fetched(ours: CondaSite) -> None:
    path = f"{MAIN}pytorch-nightly-2.0-0.conda"
    ours.upstreams[0].says[path] = ranged(b"not wanted")
    assert get(ours, path).status == 404
    assert ours.asked == []


@pytest.mark.parametrize("on_demand", [True, False])
def test_package_that_rules_hide_is_refused_held_or_not(tmp_path: Path, on_demand: bool) -> None:
    rules: dict[str, Any] = {"conda_mirror_block": ["evil", "tool>=2"], "conda_mirror_repos": ["main"]}
    rules["conda_mirror_on_demand"] = on_demand
    hidden = [f"{MAIN}tool-{version}-0.conda" for version in ("2.0", "2.1")]
    fine = [f"{MAIN}tool-1.0-0.conda", f"{MAIN}evil-twin-1.0-0.conda"]
    named = [f"{MAIN}evil-1.0-0.conda", f"{MAIN}Evil-2.0-0.tar.bz2"]
    with conda_site(tmp_path, **rules) as ours:
        for path in (*hidden, *fine, *named):
            ours.upstreams[0].says[path] = ranged(b"a package")
            reason = f".lanmirror/public/hidden{path}"
            if path in hidden:
                ours.hold(reason, b"it is too new\n")
        for path in (hidden[0], fine[0], fine[1], named[0]):
            ours.hold(path, b"a package")
        for path in hidden:
            for method in ("GET", "HEAD"):
                answer = get(ours, path, method)
                assert (answer.status, answer["Cache-Control"]) == (403, "no-cache"), path
            assert get(ours, path).body == b"it is too new\n"
            assert ours.ask(path, Host=NAME).status == 403
        for path in named:
            assert (get(ours, path).status, b"blocked" in get(ours, path).body) == (403, True), path
        assert [get(ours, path).body for path in fine] == [b"a package"] * 2
        assert get(ours, f"/+hidden{hidden[0]}").status == ours.ask(f"/+hidden{hidden[0]}").status == 404
        # An index of the upstream's names what is hidden.
        ours.upstreams[0].says[f"{MAIN}repodata.json"] = ranged(b"{}")
        assert get(ours, f"{MAIN}repodata.json").status == 404
        assert ours.asked == []


def test_block_of_all_names_leaves_what_is_allowed(tmp_path: Path) -> None:
    rules: dict[str, Any] = {"conda_mirror_block": ["*"], "conda_mirror_allow": ["numpy", "torch<2.9"]}
    with conda_site(tmp_path, **rules) as ours:
        for name in ("numpy", "torch", "numpy-base", "evil"):
            path = f"{MAIN}{name}-1.0-0.conda"
            ours.upstreams[0].says[path] = ranged(b"a package")
            assert get(ours, path).status == (200 if name in ("numpy", "torch") else 403), name


# ---- installers --------------------------------------------------------------------------------------------------

LATEST = "/miniconda/Miniconda3-latest-Linux-x86_64.sh"
INSTALLER = "/archive/Anaconda3-2025.06-1-Windows-x86_64.exe"
DATES = ("Sun, 01 Nov 2026 00:00:00 GMT", "Mon, 02 Nov 2026 00:00:00 GMT")


@pytest.fixture
def installer(package: str) -> str:
    """The path of an installer that no other test has."""
    return f"/archive/{package.rpartition('/')[2].removesuffix('.conda')}-Linux-x86_64.sh"


def test_installer_goes_the_way_of_packages(ours: CondaSite, installer: str) -> None:
    body = some(3 * SLICE + 250_000)
    # The next upstream where one has no such file.
    ours.upstreams[1].says[installer] = ranged(body, **{"Content-Type": "application/x-sh"})
    head = get(ours, installer, "HEAD")
    assert (head.status, head["Content-Length"], head.body) == (200, str(len(body)), b"")
    assert [asked["Range"] for asked in ours.upstreams[1].asked] == SLICES[:1]
    part = get(ours, installer, Range="bytes=1500000-1500009")
    assert (part.status, part.body) == (206, body[1500000:1500010])
    answers = [get(ours, installer), get(ours, installer), ours.ask(installer, Host=NAME)]
    assert [(answer.status, answer.body == body) for answer in answers] == [(200, True)] * 3
    assert [answer["X-Cache-Status"] for answer in answers] == ["HIT"] * 3
    assert answers[0]["Cache-Control"] == IMMUTABLE
    assert sorted((asked["Range"] for asked in ours.upstreams[1].asked), key=SLICES.index) == SLICES
    assert {asked.path for asked in ours.upstreams[1].asked} == {installer}
    # For the engine, of the same slices; and one that is held wins.
    assert kept(ours, installer).body == body
    ours.hold(installer, b"held")
    answer = get(ours, installer)
    assert (answer.body, answer["Cache-Control"], answer["X-Cache-Status"]) == (b"held", "no-cache", "")
    (ours.folder / "mirror" / installer[1:]).unlink()


def test_page_in_the_place_of_an_installer_is_not_kept(ours: CondaSite, installer: str) -> None:
    for path in (installer, LATEST):
        ours.upstreams[0].says[path] = 200, {"Content-Type": "text/html"}, b"<html>log in</html>"
        get(ours, path)
        ours.upstreams[0].says[path] = ranged(b"the installer")
        assert get(ours, path).body == b"the installer"


def test_installer_that_changes_is_of_one_version_and_asked_for_again(tmp_path: Path) -> None:
    one, two = some(3 * SLICE + 250_000), some(3 * SLICE + 200_000)
    with conda_site(tmp_path, upstreams=2, **SOON) as ours:
        first, second = ours.upstreams
        for upstream in ours.upstreams:
            upstream.says[LATEST] = ranged(one, **{"Last-Modified": DATES[0], "ETag": '"x"'})
        middle = f"bytes={2 * SLICE}-{2 * SLICE + 9}"
        answers = [get(ours, LATEST, Range=middle), get(ours, LATEST), get(ours, LATEST, "HEAD")]
        assert [answer.status for answer in answers] == [206, 200, 200]
        assert [answer.body for answer in answers] == [one[2 * SLICE : 2 * SLICE + 10], one, b""]
        assert {answer["Cache-Control"] for answer in answers} == {"public, max-age=60"}
        assert get(ours, LATEST, If_Modified_Since=DATES[0]).status == 304
        # All of it, though a client wanted a part.
        assert (first.asked[0]["Range"], first.asked[0]["If-Modified-Since"]) == ("", "")
        assert ours.kept() == [LATEST]
        assert kept(ours, LATEST).status == 404
        # It is older than is allowed: an upstream says that it is the latest.
        first.says[LATEST] = 304, {}, b""
        until(lambda: get(ours, LATEST)["X-Cache-Status"] == "REVALIDATED")
        assert first.asked[-1]["If-Modified-Since"] == DATES[0]
        assert get(ours, LATEST).body == one

        # Another version, which one fetches, while the others get the one before.
        may_end, asked_for = threading.Event(), threading.Event()

        def slow(handler: Handler, asked: Asked) -> Said:
            asked_for.set()
            assert may_end.wait(60)
            return 200, {"Last-Modified": DATES[1]}, two

        def ask() -> Answer:
            while True:
                answer = get(ours, LATEST)
                if asked_for.is_set():
                    return answer

        first.asked.clear()
        first.says[LATEST] = slow
        with ThreadPoolExecutor(1) as clients:
            newer = clients.submit(ask)
            assert asked_for.wait(60)
            olds = [get(ours, LATEST) for _ in range(3)]
            part = get(ours, LATEST, Range="bytes=0-9")
            may_end.set()
            assert newer.result().body == two
        assert {(old.body == one, old["X-Cache-Status"]) for old in olds} == {(True, "UPDATING")}
        assert part.body == one[:10]
        assert len(first.asked) == 1
        first.says[LATEST] = ranged(two, **{"Last-Modified": DATES[1]})
        assert get(ours, LATEST, Range=f"bytes={3 * SLICE}-").body == two[3 * SLICE :]
        assert second.asked == []

        # The upstreams are down.
        for upstream in ours.upstreams:
            upstream.stop()
        until(lambda: get(ours, LATEST)["X-Cache-Status"] == "STALE")
        assert get(ours, LATEST).body == two


def test_ten_clients_cold_on_an_installer_that_changes_cost_one_download(tmp_path: Path) -> None:
    body, may_end = some(2 * SLICE), threading.Event()

    def slow(handler: Handler, asked: Asked) -> Said:
        assert may_end.wait(60)
        return 200, {"Last-Modified": DATES[0]}, body

    with conda_site(tmp_path) as ours, ThreadPoolExecutor(10) as clients:
        ours.upstreams[0].says[LATEST] = slow
        done = [clients.submit(get, ours, LATEST) for _ in range(10)]
        until(lambda: len(ours.asked) == 1)
        time.sleep(0.5)
        may_end.set()
        assert all(each.result().body == body for each in done)
        assert ours.asked == [LATEST]


def test_installer_that_changes_and_breaks_off_is_not_kept(tmp_path: Path) -> None:
    body = some(2 * SLICE)

    def broken(handler: Handler, asked: Asked) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body[: SLICE + 250_000])
        return drops(handler, asked)

    with conda_site(tmp_path) as ours:
        ours.upstreams[0].says[LATEST] = broken
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            get(ours, LATEST)
        ours.upstreams[0].says[LATEST] = ranged(body)
        assert get(ours, LATEST).body == body


def test_installer_that_changes_is_kept_for_ten_minutes() -> None:
    assert evaluate("conda_mirror", "{{ __conda_mirror_kept.index }}") == "10m"


def test_list_of_installers_is_the_engines_page(ours: CondaSite) -> None:
    ours.upstreams[0].says["/miniconda/"] = (
        200,
        {"Content-Type": "text/html"},
        b"<a href='https://elsewhere.example'>x</a>",
    )
    assert get(ours, "/miniconda/").status == 404
    ours.hold("/miniconda/index.html", b"<a href='x.sh'>x.sh</a>")
    for answer in (get(ours, "/miniconda/"), ours.ask("/miniconda/", Host=NAME)):
        assert (answer.status, answer.body, answer["Cache-Control"]) == (200, b"<a href='x.sh'>x.sh</a>", "no-cache")
    (ours.folder / "mirror/miniconda/index.html").unlink()
    (ours.folder / "mirror/miniconda").rmdir()
    assert ours.asked == []


def test_site_without_installers_asks_for_none(tmp_path: Path) -> None:
    odd = {"dists": ["pkgs", "miniconda"], "suffixes": ['.sh"', "/../x", " y"]}
    for number, given in enumerate(({"dists": []}, {"suffixes": []}, odd)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with conda_site(folder, conda_mirror_installers=given) as ours:
            for path in (LATEST, INSTALLER, "/miniconda/x.sh%22", "/miniconda/x/../x", "/pkgs/x.sh"):
                ours.upstreams[0].says[path] = ranged(b"evil")
                assert get(ours, path).status == 404
            assert ours.asked == []
            ours.upstreams[0].says[A] = ranged(b"the package")
            assert get(ours, A).body == b"the package"


def test_site_of_installers_alone(tmp_path: Path) -> None:
    nothing: dict[str, Any] = {"conda_mirror_repos": [], "conda_mirror_cloud": []}
    with conda_site(tmp_path, **nothing) as ours:
        ours.upstreams[0].says |= {path: ranged(b"the installer") for path in (LATEST, INSTALLER)}
        assert get(ours, LATEST).body == get(ours, INSTALLER).body == b"the installer"
        assert get(ours, A).status == 404


# ---- what is kept, for the engine --------------------------------------------------------------------------------


def kept(site: CondaSite, path: str, method: str = "GET", **headers: str) -> Answer:
    """Ask the steps' port as the engine does."""
    return CondaSite(site.folder, site.port - 1, site.devpi).ask(f"/+kept{path}", method, Host="127.0.0.1", **headers)


def test_package_that_is_kept_is_given_without_a_question(ours: CondaSite, package: str) -> None:
    body = some(3 * SLICE + 250_000)
    for _ in range(2):
        assert kept(ours, package).status == kept(ours, package, "HEAD").status == 404
    assert (ours.asked, [key for key in ours.kept() if package in key]) == ([], [])
    ours.upstreams[0].says[package] = ranged(body)
    assert get(ours, package).body == body
    for upstream in ours.upstreams:
        upstream.stop()
        upstream.asked.clear()
    answer = kept(ours, package)
    assert (answer.status, answer.body == body, answer["Content-Length"]) == (200, True, str(len(body)))
    head = kept(ours, package, "HEAD")
    assert (head.status, head["Content-Length"], head.body) == (200, str(len(body)), b"")
    part = kept(ours, package, Range="bytes=1100000-")
    assert (part.status, part.body == body[1100000:]) == (206, True)
    assert kept(ours, package, "POST").status == 405


def test_package_whose_later_slice_is_not_kept_ends_before_it(ours: CondaSite, package: str) -> None:
    body = some(3 * SLICE + 250_000)
    ours.upstreams[0].says[package] = ranged(body)
    assert get(ours, package, Range=f"bytes=0-{SLICE - 1}").status == 206
    assert get(ours, package, Range=f"bytes={2 * SLICE}-").status == 206
    ours.upstreams[0].asked.clear()
    with pytest.raises(http.client.IncompleteRead) as broken:
        kept(ours, package)
    assert broken.value.partial == body[:SLICE]
    assert kept(ours, package, Range=f"bytes={2 * SLICE}-").body == body[2 * SLICE :]
    assert ours.asked == []


def test_package_of_a_channel_that_is_not_declared_any_more_is_not_given(tmp_path: Path) -> None:
    path = f"{FORGE}a-1.0-0.conda"
    with conda_site(tmp_path) as ours:
        ours.upstreams[0].says[path] = ranged(b"the package")
        assert get(ours, path).status == 200
        assert kept(ours, path).body == b"the package"
    with conda_site(tmp_path, conda_mirror_cloud=[]) as ours:
        assert ours.kept() == [f"{path} {SLICES[0]}"]
        assert kept(ours, path).status == 404


def test_failure_that_is_kept_is_no_package(ours: CondaSite, package: str) -> None:
    for status in (404, 500):
        path = package.replace("-1.0-", f"-{status}-")
        for upstream in ours.upstreams:
            upstream.says[path] = status, {}, b"upstream: no"
        assert get(ours, path).status != 200
        ours.upstreams[0].asked.clear()
        assert kept(ours, path).status != 200
        assert ours.upstreams[0].asked == []


# ---- upstreams that fail -----------------------------------------------------------------------------------------


def silent(handler: Handler, asked: Asked) -> Said:
    time.sleep(8)
    return 200, {}, b"late"


FAILURES: dict[str, Rule | Said | None] = {
    "down": None,
    "drops": drops,
    **{str(status): (status, {}, b"upstream: no") for status in (400, 403, 404, 418, 429, 500, 503, 520)},
}


@pytest.mark.parametrize("failure", FAILURES)
def test_next_upstream_is_asked_where_one_fails(ours: CondaSite, package: str, failure: str) -> None:
    fails = FAILURES[failure]
    if fails is None:
        ours.upstreams[0].stop()
    else:
        ours.upstreams[0].says[package] = fails
    ours.upstreams[1].says[package] = ranged(b"the package")
    answer = get(ours, package)
    assert (answer.status, answer.body) == (200, b"the package")
    assert ours.upstreams[1].asked[0]["Host"] == f"127.0.0.1:{ours.upstreams[1].port}"


def test_next_upstream_is_asked_where_one_is_silent(tmp_path: Path, package: str) -> None:
    with conda_site(tmp_path, upstreams=2, conda_mirror_timeout_seconds=2) as ours:
        ours.upstreams[0].says[package] = silent
        ours.upstreams[1].says[package] = ranged(b"the package")
        assert get(ours, package).body == b"the package"


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        ("404", "404", 404),
        ("404", "500", 502),
        ("403", "404", 502),
        ("429", "429", 502),
        ("down", "404", 502),
        ("404", "drops", 502),
        ("404", "silent", 504),
        ("silent", "404", 502),
    ],
)
def test_absent_is_what_each_upstream_says(tmp_path: Path, first: str, second: str, status: int) -> None:
    path = f"{MAIN}a-1.0-0.conda"
    seconds = 2 if "silent" in (first, second) else 30
    with conda_site(tmp_path, upstreams=2, conda_mirror_timeout_seconds=seconds, **SOON) as ours:
        for upstream, failure in zip(ours.upstreams, (first, second), strict=True):
            fails = silent if failure == "silent" else FAILURES[failure]
            if fails is None:
                upstream.stop()
            else:
                upstream.says[path] = fails
        answer = get(ours, path)
        assert (answer.status, answer["Cache-Control"]) == (status, "")
        assert (b"upstream" in answer.body, b"no" in answer.body.lower()) == (True, True)
        # And not for long.
        for upstream in ours.upstreams:
            upstream.says[path] = ranged(b"the package")
        until(lambda: get(ours, path).status == 200)


@pytest.mark.parametrize("failure", ["404", "500"])
def test_failure_is_that_of_all_who_ask_for_the_package(ours: CondaSite, package: str, failure: str) -> None:
    for upstream in ours.upstreams:
        fails = FAILURES[failure]
        assert fails
        upstream.says[package] = fails
    with ThreadPoolExecutor(10) as clients:
        statuses = set(clients.map(lambda _: get(ours, package).status, range(10)))
    assert (statuses, len(ours.asked)) == ({404 if failure == "404" else 502}, 2)


def test_absence_is_kept_longer_than_a_failure() -> None:
    kept = evaluate("conda_mirror", "{{ __conda_mirror_kept }}")
    assert kept == {"index": "10m", "absent": "1m", "failure": "5s"}


def test_upstreams_of_channels_are_their_own(tmp_path: Path) -> None:
    with conda_site(tmp_path, variables_of=lambda ports: bases(f"http://127.0.0.1:{ports[0]}/deep/path")) as ours:
        ours.upstreams[0].says[f"/deep/path{MAIN}a-1.0-0.conda"] = ranged(b"of a repo")
        ours.upstreams[0].says[f"/deep/path{FORGE}a-1.0-0.conda"] = ranged(b"of a channel")
        assert get(ours, f"{MAIN}a-1.0-0.conda").body == b"of a repo"
        assert get(ours, f"{FORGE}a-1.0-0.conda").body == b"of a channel"


def test_another_list_of_upstreams_leaves_what_is_kept(tmp_path: Path) -> None:
    with conda_site(tmp_path) as ours:
        ours.upstreams[0].says[f"{MAIN}a-1.0-0.conda"] = ranged(b"the package")
        assert get(ours, f"{MAIN}a-1.0-0.conda").status == 200
        until(lambda: len(ours.kept()) == 1)
    with conda_site(tmp_path, upstreams=3) as ours:
        answer = get(ours, f"{MAIN}a-1.0-0.conda")
        assert (answer.body, answer["X-Cache-Status"], ours.asked) == (b"the package", "HIT", [])


# ---- names -------------------------------------------------------------------------------------------------------


def test_each_upstream_is_asked_and_verified_by_its_name(tmp_path: Path) -> None:
    bundle, context = authority(tmp_path, "right.lab.lan")
    said: list[str | None] = []
    context.sni_callback = lambda _, name, __: said.append(name)

    def of(ports: list[int]) -> dict[str, Any]:
        return bases(f"https://wrong.lab.lan:{ports[0]}", f"https://right.lab.lan:{ports[1]}")

    given: dict[str, Any] = {"variables_of": of, "context": context, "names": {"wrong.lab.lan", "right.lab.lan"}}
    with conda_site(tmp_path, upstreams=2, __conda_mirror_ca_bundle=str(bundle), **given) as ours:
        path = f"{MAIN}a-1.0-0.conda"
        for upstream in ours.upstreams:
            upstream.says[path] = ranged(upstream.port.to_bytes(2))
        assert get(ours, path).body == ours.upstreams[1].port.to_bytes(2)
        assert ours.upstreams[0].asked == []
        (asked,) = ours.upstreams[1].asked
        assert asked["Host"] == f"right.lab.lan:{ours.upstreams[1].port}"
        assert said == ["wrong.lab.lan", "right.lab.lan"]
    with conda_site(tmp_path, upstreams=2, **given) as ours:
        # An authority that nobody declared.
        assert get(ours, f"{MAIN}b-1.0-0.conda").status == 502
        assert ours.asked == []


def test_connections_to_an_upstream_are_kept(tmp_path: Path) -> None:
    """And opened anew where the upstream closed one meanwhile."""
    with conda_site(
        tmp_path, names={"far.lab.lan"}, variables_of=lambda ports: bases(f"http://far.lab.lan:{ports[0]}")
    ) as ours:
        far = ours.upstreams[0]
        for number in range(30):
            far.says[f"{MAIN}a-{number}-0.conda"] = ranged(b"%d" % number)
        for number in range(30):
            assert get(ours, f"{MAIN}a-{number}-0.conda").body == b"%d" % number
            if number == 20:
                for connection in [*far.connections]:
                    connection.shutdown(socket.SHUT_RDWR)
        assert far.opened <= 4


def test_name_of_many_addresses_is_known(tmp_path: Path) -> None:
    """As that of a content delivery network, whose answer is longer than the 512 bytes of RFC 1035."""
    given: dict[str, Any] = {"variables_of": lambda ports: bases(f"http://far.lab.lan:{ports[0]}")}
    with conda_site(tmp_path, names={"far.lab.lan"}, records=60, **given) as ours:
        ours.upstreams[0].says[f"{MAIN}a-1.0-0.conda"] = ranged(b"the package")
        assert get(ours, f"{MAIN}a-1.0-0.conda").body == b"the package"


def test_upstream_that_moves_is_followed(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "variables_of": lambda ports: bases(f"http://far.lab.lan:{ports[0]}"),
        "__conda_mirror_address_seconds": 1,
    }
    with conda_site(tmp_path, names={"far.lab.lan"}, **given) as ours:
        for number in range(2):
            ours.upstreams[0].says[f"{MAIN}a-{number}-0.conda"] = ranged(b"the package")
        assert get(ours, f"{MAIN}a-0-0.conda").status == 200
        # Nobody is there.
        ours.names.address = "127.0.0.2"
        until(lambda: get(ours, f"{MAIN}b-{time.monotonic_ns()}-0.conda").status == 502)
        ours.names.address = "127.0.0.1"
        until(lambda: get(ours, f"{MAIN}a-1-0.conda").status == 200)


@pytest.mark.parametrize("says", [None, ""])
def test_known_address_goes_on_while_the_name_server_is_down(tmp_path: Path, says: str | None) -> None:
    given: dict[str, Any] = {
        "variables_of": lambda ports: bases(f"http://far.lab.lan:{ports[0]}"),
        "__conda_mirror_address_seconds": 1,
    }
    with conda_site(tmp_path, names={"far.lab.lan"}, **given) as ours:
        for number in range(2):
            ours.upstreams[0].says[f"{MAIN}a-{number}-0.conda"] = ranged(b"the package")
        assert get(ours, f"{MAIN}a-0-0.conda").status == 200
        ours.names.address = says
        # A round of questions has failed, and another.
        many = len(ours.names.asked) + 6
        until(lambda: len(ours.names.asked) > many)
        ours.upstreams[0].stop()
        ours.upstreams[0].start()
        assert get(ours, f"{MAIN}a-1-0.conda").status == 200


def test_name_that_is_not_known_keeps_neither_nginx_nor_the_next_upstream(tmp_path: Path) -> None:
    def of(ports: list[int]) -> dict[str, Any]:
        return bases("http://no-such.lab.lan", f"http://127.0.0.1:{ports[0]}")

    with conda_site(tmp_path, variables_of=of) as ours:
        ours.upstreams[0].says[f"{MAIN}a-1.0-0.conda"] = ranged(b"the package")
        assert get(ours, f"{MAIN}a-1.0-0.conda").body == b"the package"
        assert "no-such.lab.lan" in ours.names.asked
        # It was not asked, so nobody knows whether it is there.
        assert get(ours, f"{MAIN}b-1.0-0.conda").status == 502
    with conda_site(tmp_path, variables_of=of, __conda_mirror_resolvers=[]) as ours:
        ours.upstreams[0].says[f"{MAIN}c-1.0-0.conda"] = ranged(b"the package")
        assert get(ours, f"{MAIN}c-1.0-0.conda").body == b"the package"


# ---- redirects ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redirecting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CondaSite]:
    """The third server is no upstream but a declared host; the fourth is nobody's business."""

    def of(ports: list[int]) -> dict[str, Any]:
        named = bases(*(f"http://up.lab.lan:{port}" for port in ports[:2]))
        return {**named, "conda_mirror_upstream_hosts": [f"files.lab.lan:{ports[2]}"]}

    names = {"up.lab.lan", "files.lab.lan", "inside.lab.lan", "files.lab.lan.evil.example"}
    with conda_site(tmp_path_factory.mktemp("redirecting"), upstreams=4, variables_of=of, names=names) as running:
        yield running


def leads(location: str, status: int = 302) -> Said:
    return status, {"Location": location}, b"over there"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("where", ["files", "other upstream", "path"])
def test_redirect_to_a_declared_host_is_followed(redirecting: CondaSite, package: str, status: int, where: str) -> None:
    up, other, files, _ = redirecting.upstreams
    target = "/signed/file.conda?signature=a%2Fb"
    found, host = {"files": (files, "files"), "other upstream": (other, "up"), "path": (up, "up")}[where]
    up.says[package] = leads(target if where == "path" else f"http://{host}.lab.lan:{found.port}{target}", status)
    body = some(SLICE + 10)
    found.says["/signed/file.conda"] = ranged(body)
    for server in redirecting.upstreams:
        server.asked.clear()
    answers = [get(redirecting, package) for _ in range(2)]
    assert [(answer.status, answer.body == body, answer["Location"]) for answer in answers] == [(200, True, "")] * 2
    asked = [asked for asked in found.asked if asked.path == target]
    assert [(each["Host"], each["Range"]) for each in asked] == [
        (f"{host}.lab.lan:{found.port}", wanted) for wanted in SLICES[:2]
    ]


REFUSED = [
    "http://inside.lab.lan:{inside}/x",
    "http://127.0.0.1:{inside}/x",
    "//inside.lab.lan:{inside}/x",
    "http://files.lab.lan:{inside}/x",
    "http://files.lab.lan:{files}@inside.lab.lan:{inside}/x",
    "http://files.lab.lan.evil.example:{inside}/x",
    "http://files.lab.lan:{files}.evil.example/x",
    "http://inside.lab.lan:{inside}/http://files.lab.lan:{files}/x",
    "http://files.lab.lan:{files}",
    "http://files.lab.lan:{files}/a b",
    "http://[::1]:{inside}/x",
    "http://[::ffff:127.0.0.1]:{inside}/x",
    "http://localhost:{inside}/x",
    "http://2130706433:{inside}/x",
    "http://0x7f000001:{inside}/x",
    "http://127.1:{inside}/x",
    "http://169.254.169.254/latest/meta-data",
    "http://files.lab.lan:{files}\\@inside.lab.lan:{inside}/x",
    "http://files.lab.lan:{files}#@inside.lab.lan:{inside}/x",
    "http://files.lab.lan:{files}?@inside.lab.lan:{inside}/x",
    "http://files.lab.lan:{files}.:{inside}/x",
    "http:files.lab.lan:{files}/x",
    "unix:/run/x.sock:/x",
    "ftp://files.lab.lan:{files}/x",
    "file:///etc/passwd",
    "x",
    "",
]


@pytest.mark.parametrize("location", REFUSED)
def test_redirect_elsewhere_is_refused_and_nothing_of_it_kept(
    redirecting: CondaSite, package: str, location: str
) -> None:
    up, other, files, inside = redirecting.upstreams
    for server in redirecting.upstreams:
        server.asked.clear()
        server.says["/x"] = server.says["/a"] = 200, {}, b"from inside"
    up.says[package] = leads(location.format(files=files.port, inside=inside.port))
    other.says[package] = ranged(b"the package")
    assert get(redirecting, package).body == b"the package"
    assert get(redirecting, package).body == b"the package"
    assert [*files.asked, *inside.asked] == []
    other.says.pop(package)
    other_package = package.replace("-1.0-", "-2.0-")
    up.says[other_package] = up.says[package]
    assert get(redirecting, other_package).status == 502
    assert [*files.asked, *inside.asked] == []
    # The failure is kept for those who wait for it, and nothing else.
    files_of_cache = (redirecting.folder / "cache/lanmirror-conda/kept").rglob("*")
    bodies = [file.read_bytes() for file in files_of_cache if file.is_file()]
    assert not [body for body in bodies if b"from inside" in body or b"over there" in body]


def test_redirect_that_redirects_is_refused(redirecting: CondaSite, package: str) -> None:
    up, _, files, inside = redirecting.upstreams
    for server in redirecting.upstreams:
        server.asked.clear()
    up.says[package] = leads(f"http://files.lab.lan:{files.port}/one")
    files.says["/one"] = leads(f"http://files.lab.lan:{files.port}/two")
    files.says["/two"] = 200, {}, b"too far"
    assert get(redirecting, package).status == 502
    assert (files.paths(), inside.asked) == (["/one"], [])


def test_redirect_from_https_leads_to_https_alone(tmp_path: Path) -> None:
    bundle, context = authority(tmp_path, "up.lab.lan")
    plain = Devpi(0)
    plain.start()
    assert plain.server
    plain.port = plain.server.server_port

    def of(ports: list[int]) -> dict[str, Any]:
        return {
            **bases(f"https://up.lab.lan:{ports[0]}"),
            "conda_mirror_upstream_hosts": [f"up.lab.lan:{plain.port}"],
            "__conda_mirror_ca_bundle": str(bundle),
        }

    with conda_site(tmp_path, variables_of=of, context=context, names={"up.lab.lan"}) as ours:
        path = f"{MAIN}a-1.0-0.conda"
        ours.upstreams[0].says[path] = leads(f"http://up.lab.lan:{plain.port}{path}")
        assert get(ours, path).status == 502
        assert plain.asked == []
        plain.stop()


# ---- indexes -----------------------------------------------------------------------------------------------------

INDEXES = [
    f"{MAIN}repodata.json",
    f"{MAIN}repodata.json.zst",
    f"{FORGE}current_repodata.json",
    f"{FORGE}repodata.json.bz2",
    f"{MAIN}run_exports.json.zst",
    "/pkgs/main/channeldata.json",
    "/cloud/nvidia/label/cuda-12.4.0/channeldata.json",
]


@pytest.mark.parametrize("path", INDEXES)
def test_index_comes_from_upstream_until_the_engine_has_published_one(ours: CondaSite, path: str) -> None:
    ours.upstreams[0].says[path] = 200, {"Last-Modified": "Sun, 01 Nov 2026 00:00:00 GMT"}, b"theirs"
    answers = [get(ours, path), get(ours, path), ours.ask(path, Host=NAME), get(ours, path, "HEAD")]
    assert [answer.body for answer in answers] == [b"theirs"] * 3 + [b""]
    assert [answer["X-Cache-Status"] for answer in answers] == ["MISS", "HIT", "HIT", "HIT"]
    assert {answer["Cache-Control"] for answer in answers} == {"public, max-age=60"}
    assert "x-kept-status" not in answers[0].headers
    assert get(ours, path, If_Modified_Since="Sun, 01 Nov 2026 00:00:00 GMT").status == 304
    assert get(ours, path, Range="bytes=0-1").body in {b"th", b"theirs"}
    assert len(ours.asked) == 1
    ours.hold(path, b"ours")
    for answer in (get(ours, path), ours.ask(path, Host=NAME)):
        assert (answer.body, answer["Cache-Control"], answer["X-Cache-Status"]) == (b"ours", "public, max-age=60", "")
    (ours.folder / "mirror" / path[1:]).unlink()


def test_index_of_shards_is_absent_and_never_asked_for(ours: CondaSite) -> None:
    path = f"{MAIN}repodata_shards.msgpack.zst"
    for upstream in ours.upstreams:
        upstream.says[path] = 200, {}, b"theirs"
    assert get(ours, path).status == 404
    # A link that does not belong to the mirror, which Nginx refuses to read.
    file = ours.folder / "mirror" / path[1:]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.symlink_to(file.name)
    assert get(ours, path).status == 404
    file.unlink()
    assert ours.asked == []


def test_stale_index_comes_at_once_while_the_upstream_is_down(tmp_path: Path) -> None:
    path = f"{MAIN}repodata.json.zst"
    with conda_site(tmp_path, **SOON) as ours:
        upstream = ours.upstreams[0]
        upstream.says[path] = 200, {"Last-Modified": "Sun, 01 Nov 2026 00:00:00 GMT"}, b"one"
        assert get(ours, path).body == b"one"
        upstream.stop()
        until(lambda: get(ours, path)["X-Cache-Status"] == "STALE")
        assert {get(ours, path).body for _ in range(20)} == {b"one"}
        upstream.start()
        upstream.asked.clear()
        upstream.says[path] = 500, {}, b""
        until(lambda: get(ours, path).body == b"one" and len(upstream.asked) > 1)
        # What has not changed is not sent again.
        upstream.says[path] = 304, {}, b""
        until(lambda: get(ours, path)["X-Cache-Status"] == "HIT")
        assert upstream.asked[-1]["If-Modified-Since"] == "Sun, 01 Nov 2026 00:00:00 GMT"
        upstream.says[path] = 200, {}, b"two"
        until(lambda: get(ours, path).body == b"two")


def test_next_request_of_a_connection_does_not_wait_for_a_refresh(tmp_path: Path) -> None:
    path = f"{MAIN}repodata.json"
    with conda_site(tmp_path, **SOON) as ours:
        upstream, may_end = ours.upstreams[0], threading.Event()
        upstream.says[path] = 200, {}, b"one"
        assert get(ours, path).body == b"one"

        def slow(handler: Handler, asked: Asked) -> Said:
            assert may_end.wait(60)
            return 200, {}, b"two"

        upstream.says[path] = slow
        connection = http.client.HTTPConnection("127.0.0.1", ours.port, timeout=10)

        def status() -> str | None:
            connection.request("GET", f"/anaconda{path}")
            answer = connection.getresponse()
            assert answer.read() == b"one"
            return answer.headers["X-Cache-Status"]

        until(lambda: status() == "STALE")
        assert {status() for _ in range(3)} == {"UPDATING"}
        connection.close()
        may_end.set()
        until(lambda: get(ours, path).body == b"two")


def test_indexes_come_from_where_the_variable_says(tmp_path: Path) -> None:
    def of(ports: list[int]) -> dict[str, Any]:
        first, index = (f"http://127.0.0.1:{port}" for port in ports)
        return {"conda_mirror_upstream": {"repo": first, "cloud": first, "index": {"repo": index}}}

    with conda_site(tmp_path, upstreams=2, variables_of=of) as ours:
        for upstream, text in zip(ours.upstreams, (b"mirror", b"official"), strict=True):
            upstream.says[f"{MAIN}repodata.json"] = 200, {}, text
            upstream.says[f"{MAIN}a-1.0-0.conda"] = ranged(text)
        assert get(ours, f"{MAIN}repodata.json").body == b"official"
        assert get(ours, f"{MAIN}a-1.0-0.conda").body == b"mirror"
        # The last place for a package that no other has.
        ours.upstreams[1].says[f"{MAIN}b-1.0-0.conda"] = ranged(b"official")
        assert get(ours, f"{MAIN}b-1.0-0.conda").body == b"official"


# ---- bounds ------------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("size", [0, 20_000, 450_000, 1_200_000])
def test_full_disk_costs_speed_and_no_package(tmp_path: Path, size: int) -> None:
    """Also where there is a little room left, for the head of a file or for all of a small one."""
    bodies = {f"{MAIN}a{length}-1.0-0.conda": some(length) for length in (1, 3_000, 40_000, 500_000, 3 * SLICE + 1)}
    folder = tmp_path / "cache/lanmirror-conda"
    with conda_site(tmp_path, wrap=on_a_small_disk(str(max(size, 4096)), folder)) as ours:
        for path, body in bodies.items():
            ours.upstreams[0].says[path] = ranged(body)
        ours.upstreams[0].says[f"{MAIN}repodata.json"] = 200, {}, some(300_000)
        for _ in range(2):
            for path, body in bodies.items():
                answer = get(ours, path)
                assert (answer.status, answer.body == body) == (200, True), path
            assert get(ours, f"{MAIN}repodata.json").body == some(300_000)
            assert get(ours, f"{MAIN}missing-1.0-0.conda").status == 404
        with ThreadPoolExecutor(8) as clients:
            assert all(clients.map(lambda path: get(ours, path).body == bodies[path], [*bodies] * 4))
        assert re.search("No space left on device|has written only", ours.errors)
        if not size:
            # No slice can be kept, so the whole comes instead of the first.
            large = {asked["Range"] for asked in ours.upstreams[0].asked if asked.path == path}
            assert large == {SLICES[0], ""}


# ---- the role ----------------------------------------------------------------------------------------------------


def refusals(**variables: Any) -> list[str]:
    """Return what the preflight finds wrong for Nginx about the variables of the role."""
    return on_demand.problems({**defaults("conda_mirror"), **variables})


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"on_demand_port": "x"}, ("conda_mirror_on_demand_port is 'x'", "1024 to 65535")),
        ({"on_demand_port": 65536}, ("conda_mirror_on_demand_port is '65536'",)),
        ({"cache_max_gib": "0.5"}, ("conda_mirror_cache_max_gib is '0.5'", "1 or more")),
        ({"cache_max_gib": "much"}, ("conda_mirror_cache_max_gib is 'much'",)),
        ({"cache_dir": "cache"}, ("conda_mirror_cache_dir is 'cache'", "an absolute path")),
        ({"cache_dir": "/srv/../x"}, ("conda_mirror_cache_dir is '/srv/../x'",)),
        ({"cache_dir": "/srv/a b"}, ("conda_mirror_cache_dir is '/srv/a b'",)),
        ({"cache_dir": "/srv/mirror/conda/x"}, ("conda_mirror_cache_dir", "outside of conda_mirror_working_dir")),
        (
            {"working_dir": "/var/cache/lanmirror-conda/mirror"},
            (
                "conda_mirror_working_dir is '/var/cache/lanmirror-conda/mirror'",
                "outside of /var/cache/lanmirror-conda",
            ),
        ),
        ({"upstream_hosts": "a.example"}, ("conda_mirror_upstream_hosts is 'a.example'", "a list", "INI")),
        ({"upstream_hosts": ["https://a.example/"]}, ("conda_mirror_upstream_hosts", "host names")),
        ({"on_demand": "yes", "http_proxy": "http://u:hush@p:3128"}, ("'http://***@p:3128'", "goes through no proxy")),
        (
            {"on_demand": True, "upstream": {"repo": "https://u:hush@m.example", "cloud": "https://c"}},
            ("conda_mirror_upstream.repo has 'https://***@m.example'", "without a password"),
        ),
        (
            {"on_demand": True, "upstream": {"repo": "https://a", "cloud": ["https://c", "https://c/$x"]}},
            ("conda_mirror_upstream.cloud has 'https://c/$x'", "letters"),
        ),
        (
            {
                "on_demand": True,
                "upstream": {"repo": [f"https://{n}" for n in "abcd"], "cloud": "c", "index": {"repo": "https://e"}},
            },
            ("conda_mirror_upstream.repo has 5 URLs", "4 at most"),
        ),
    ],
)
def test_what_nginx_cannot_do_gets_a_message(variables: dict[str, Any], words: tuple[str, ...]) -> None:
    message = refusals(**{f"conda_mirror_{name}": value for name, value in variables.items()})[0]
    assert [word for word in words if word not in message] == []
    assert "hush" not in message


def test_what_nginx_can_do_is_accepted() -> None:
    assert refusals() == refusals(conda_mirror_on_demand=True) == []
    # Judged by the engine.
    for upstream in ("text", {"repo": 7}, {"repo": None, "index": "x"}):
        assert refusals(conda_mirror_on_demand=True, conda_mirror_upstream=upstream) == []
    assert refusals(conda_mirror_http_proxy="http://p:3128", conda_mirror_on_demand="no") == []
    given = {"on_demand_port": "3000", "cache_max_gib": "1.5", "cache_dir": "/srv/cache/"}
    assert refusals(**{f"conda_mirror_{name}": value for name, value in given.items()}) == []
    assert refusals(conda_mirror_upstream_hosts=["a.example", "b.example:8443"]) == []


def test_excluded_is_what_the_engine_excludes() -> None:
    assert on_demand.excluded([]) == ""
    names = ["pytorch-nightly", "ignite-*", "a?c", "[xy]z", "*-dbg*-x"]
    pattern = re.compile(on_demand.excluded(names))
    for name, wanted in {
        "pytorch-nightly": True,
        "pytorch-nightly-cpu": False,
        "my-pytorch-nightly": False,
        "ignite-nightly": True,
        "ignite": False,
        "abc": True,
        "ac": False,
        "xz": True,
        "zz": False,
        "lib-dbg-sym-x": True,
    }.items():
        assert bool(matcher(names)(name)) is wanted, name
        for ending in (".conda", ".tar.bz2"):
            assert bool(pattern.search(f"/ignite-x/noarch/{name}-1.0-py_0{ending}")) is wanted, name


@pytest.mark.parametrize(
    ("servers", "wanted"),
    [
        (["192.0.2.1", "2001:db8::53"], ["192.0.2.1", "[2001:db8::53]"]),
        (["fe80::1%eth0", "127.0.0.53"], ["127.0.0.53"]),
        (["::1", "not an address"], ["[::1]"]),
        ([], []),
    ],
)
def test_name_servers_are_as_haproxy_takes_them(servers: list[str], wanted: list[str]) -> None:
    facts = {"dns": {"nameservers": servers}}
    assert on_demand.resolvers(facts) == wanted
    assert on_demand.resolvers({}) == []
    for more in ({}, {"default_ipv6": {"address": "2001:db8::1"}}):
        text = render("conda_mirror", "outside.cfg.j2", ansible_facts={**facts, **more})
        assert re.findall(r"nameserver \S+ (\S+)", text) == [f"{address}:53" for address in wanted]
        assert ("resolve-prefer ipv4" in text) == (bool(wanted) and not more)


def test_limits_of_the_cache_are_those_of_the_variables() -> None:
    text = render("conda_mirror", "http.conf.j2", conda_mirror_cache_max_gib="1.5", conda_mirror_min_free_gib="2")
    assert "max_size=1536m min_free=2048m inactive=180d" in text
    assert re.search(r"keys_zone=conda_mirror_[0-9a-f]{8}:32m", text)
    assert "proxy_cache_path /var/cache/lanmirror-conda/kept " in text
    larger = render("conda_mirror", "http.conf.j2", conda_mirror_cache_max_gib=100000)
    assert re.search(r"keys_zone=conda_mirror_[0-9a-f]{8}:256m", larger)


def test_unit_of_the_slices_in_memory_is_named_by_its_folder() -> None:
    unit = evaluate("conda_mirror", "{{ __conda_mirror_spare_unit }}")
    folder = evaluate("conda_mirror", "{{ __conda_mirror_spare_dir }}")
    assert unit == f"{folder.strip('/').replace('/', '-')}.mount"
    assert f"\nWhere={folder}\n" in render("conda_mirror", "conda-memory.mount.j2")


def test_changed_folder_of_the_cache_is_loaded(tmp_path: Path) -> None:
    with conda_site(tmp_path) as ours:
        was, now = (
            evaluate("conda_mirror", "{{ __conda_mirror_zone }}", conda_mirror_cache_dir=f"{tmp_path}/{folder}")
            for folder in ("cache", "other")
        )
        for file in (tmp_path / "lanmirror/conda_mirror").iterdir():
            text = file.read_text().replace(f"{tmp_path}/cache/", f"{tmp_path}/other/")
            file.write_text(text.replace(was, now))
        (tmp_path / "other/lanmirror-conda").mkdir(parents=True)
        os.kill(int((tmp_path / "nginx.pid").read_text()), signal.SIGHUP)
        ours.upstreams[0].says[f"{MAIN}a-1.0-0.conda"] = ranged(b"the package")

        def is_there() -> bool:
            assert get(ours, f"{MAIN}a-1.0-0.conda").body == b"the package"
            return any((tmp_path / "other/lanmirror-conda").rglob("?" * 32))

        until(is_there)
        assert "emerg" not in ours.errors


def test_turned_off_it_leaves_nothing() -> None:
    """What on demand makes goes when Nginx does not use it any more, and with the role."""
    folders: dict[str, Any] = {"conda_mirror_cache_dir": "/srv/big"}
    made = {
        one["path"]
        for task in tasks("conda_mirror", "on_demand.yml")
        for one in written("conda_mirror", task, **folders)
    }
    unit = "/etc/systemd/system/run-lanmirror_conda.mount"
    # The log goes with what reads it, uncheck.yml.
    made -= {evaluate("conda_mirror", "{{ __conda_mirror_served_log }}")}
    outside = {"/etc/systemd/system/conda-outside.service", "/etc/lanmirror/conda-outside.cfg"}
    assert made == {"/srv/big/lanmirror-conda", unit, *outside}
    (removal,) = [task for task in tasks("conda_mirror", "take_out.yml") if "ansible.builtin.file" in task]
    gone = evaluate("conda_mirror", removal["loop"], __conda_mirror_data={"caches": ["/srv/big/lanmirror-conda"]})
    assert {*gone} == {*made, "/run/lanmirror_conda"}
    for file in ("site.yml", "remove.yml"):
        (look,) = [task["conda_mirror_data"] for task in tasks("conda_mirror", file) if "conda_mirror_data" in task][:1]
        assert evaluate("conda_mirror", look["cache_dir"], **folders) == "/srv/big/lanmirror-conda"

    steps = tasks("conda_mirror", "site.yml")
    loaded = [number for number, task in enumerate(steps) if task.get("ansible.builtin.meta") == "flush_handlers"]
    (taken,) = [n for n, task in enumerate(steps) if task.get("ansible.builtin.include_tasks") == "take_out.yml"]
    (former_goes,) = [n for n, task in enumerate(steps) if "ansible.builtin.file" in task]
    # Before the site's files are written, which say where the cache is.
    (looked,) = [n for n, task in enumerate(steps) if "conda_mirror_data" in task]
    (wrote,) = [n for n, task in enumerate(steps) if "ansible.builtin.include_role" in task]
    assert looked < wrote < loaded[0] < taken < former_goes
    for wanted, current, former, goes in (
        (True, "/srv/big", "/var/cache/lanmirror-conda", [former_goes]),
        (True, "/srv/big", "/srv/big/lanmirror-conda", []),
        (True, "/srv/big/", "", []),
        (True, "/srv/big/lanmirror-conda", "/srv/big/lanmirror-conda", []),
        (True, "/srv/big", "/srv/big/lanmirror-conda/lanmirror-conda", [former_goes]),
        (True, "/srv/big", "/srv/big/lanmirror", [former_goes]),
        (False, "/srv/big", "/var/cache/lanmirror-conda", [taken]),
        ("no", "/srv/big", "", [taken]),
    ):
        given: dict[str, Any] = {"conda_mirror_on_demand": wanted, "conda_mirror_cache_dir": current}
        data_of = {"__conda_mirror_data": {"cache": former}}
        done = []
        for number in (taken, former_goes):
            conditions = steps[number]["when"]
            conditions = conditions if isinstance(conditions, list) else [conditions]
            if all(evaluate("conda_mirror", f"{{{{ {text} }}}}", **given, **data_of) for text in conditions):
                done.append(number)
        assert done == goes, (wanted, current, former)
    former_path = steps[former_goes]["ansible.builtin.file"]["path"]
    assert evaluate("conda_mirror", former_path, __conda_mirror_data={"cache": "/x"}) == "/x"
    assert "take_out.yml" in [task.get("ansible.builtin.include_tasks") for task in tasks("conda_mirror", "remove.yml")]


def test_removal_finds_the_cache_that_nginx_was_told_of(tmp_path: Path) -> None:
    site = tmp_path / "http.conf"
    assert data.cache(site) == ""
    site.write_text(render("conda_mirror", "http.conf.j2", conda_mirror_cache_dir="/srv/big/"))
    assert data.cache(site) == "/srv/big/lanmirror-conda"
    # Not where a mirror stands in it, or is to; nor that of the variables of now, which may be others.
    big, now = "/srv/big/lanmirror-conda", str(tmp_path / "lanmirror-conda")
    (tmp_path / "link").symlink_to(tmp_path / "lanmirror-conda/mirror")
    for folder, wanted in (
        (f"{big}/mirror", [now]),
        (big, [now]),
        ("/srv/big/other", [big, now]),
        ("/srv/big", [big, now]),
        (now, [big]),
        (f"{now}/mirror", [big]),
        (f"{tmp_path}/link", [big]),
    ):
        (tmp_path / "conda_mirror.yml").write_text(f"working_dir: {folder}\n")
        told: dict[str, Any] = {"site_file": str(site), "cache_dir": now}
        ways: list[dict[str, Any]] = [
            {"config_file": str(tmp_path / "conda_mirror.yml")},
            {"config_file": "/none", "working_dir": folder},
        ]
        for more in ways:
            found = run_module(Path(data.__file__), tmp_path, **told, **more)
            assert (found["caches"], found["cache"]) == (wanted, big if big in wanted else ""), folder
    # Whatever somebody wrote there: nothing but a folder of the role's own is deleted.
    site.write_text("proxy_cache_path /srv/kept levels=1:2;\nproxy_cache_path /srv/x/kept levels=1:2;\n")
    assert data.cache(site) == ""


def test_without_on_demand_the_site_asks_nobody() -> None:
    for template in ("locations.conf.j2", "vhost-locations.conf.j2"):
        assert "proxy" not in render("conda_mirror", template, conda_mirror_on_demand=False)
    (task,) = [task for task in tasks("conda_mirror", "site.yml") if "ansible.builtin.include_role" in task]
    http_file = task["vars"]["nginx_site_http"]
    assert evaluate("conda_mirror", http_file, conda_mirror_on_demand=False) == ""
    assert evaluate("conda_mirror", http_file, conda_mirror_on_demand="yes") == "http.conf.j2"


# ---- no open proxy -----------------------------------------------------------------------------------------------

ATTACKS = [
    # Paths that are none of ours.
    *(
        f"GET {path} HTTP/1.1\r\nHost: mirror.lan"
        for path in (
            "/anaconda/pkgs/pro/linux-64/a-1.0-0.conda",
            "/anaconda/pkgs/main/linux-32/a-1.0-0.conda",
            "/anaconda/cloud/bioconda/noarch/a-1.0-0.conda",
            "/anaconda/cloud/conda-forge/label/broken/noarch/a-1.0-0.conda",
            "/anaconda/cloud/nvidia/linux-64/a-1.0-0.conda",
            f"/anaconda{MAIN}../../../etc/passwd",
            f"/anaconda{MAIN}..%2f..%2f..%2f..%2fetc%2fa-1.0-0.conda",
            f"/anaconda{MAIN}%2e%2e/%2e%2e/pro/a-1.0-0.conda",
            f"/anaconda{MAIN}%252e%252e%252fa-1.0-0.conda",
            f"/anaconda{MAIN}x%2fa-1.0-0.conda",
            f"/anaconda{MAIN}x%5ca-1.0-0.conda",
            f"/anaconda{MAIN}a-1.0-0.conda%00",
            f"/anaconda{MAIN}a-1.0-0%0d%0aX-Evil:%201-0.conda",
            f"/anaconda{MAIN}a-1.0-0%20HTTP/1.1.conda",
            f"/anaconda{MAIN}@evil.example/a-1.0-0.conda",
            f"/anaconda{MAIN}$host-1.0-0.conda",
            f"/anaconda{MAIN}http://inside.lab.lan/a-1.0-0.conda",
            f"/anaconda{MAIN}.a-1.0-0.conda",
            f"/anaconda{MAIN}{'a' * 200}-1.0-0.conda",
            # File names that are no package, and no index.
            *(
                f"/anaconda{MAIN}{name}"
                for name in (
                    "a.conda",
                    "a-1.0.conda",
                    "a-1.0-0.zip",
                    "a-1.0-0.conda.exe",
                    "index.html",
                    "repodata.json.xz",
                    "repodata2.json",
                    "notices.json",
                    f"{'0a' * 32}.msgpack.zst",
                    "repodata_shards.msgpack.zst",
                    "channeldata.json",
                )
            ),
            "/anaconda/pkgs/channeldata.json",
            # Installers of undeclared folders and suffixes, and paths that only look like those of declared ones.
            "/anaconda/miniforge/Miniforge3-latest-Linux-x86_64.sh",
            "/anaconda/miniconda/Miniconda3-latest-MacOSX-arm64.sh",
            "/anaconda/miniconda/Miniconda3-1.0-Linux-x86_64.sh.exe",
            "/anaconda/miniconda/Miniconda3-latest-Linux-x86_64xsh",
            "/anaconda/miniconda/Linux-x86_64.sh",
            "/anaconda/miniconda/index.html",
            "/anaconda/miniconda/a-1.0-0.conda",
            "/anaconda/miniconda/repodata.json",
            "/anaconda/miniconda/sub/Miniconda3-latest-Linux-x86_64.sh",
            "/anaconda/miniconda/sub%2fMiniconda3-latest-Linux-x86_64.sh%2fx",
            "/anaconda/miniconda/..%2fMiniconda3-latest-Linux-x86_64.sh",
            "/anaconda/miniconda/%252e%252e%252fMiniconda3-latest-Linux-x86_64.sh",
            "/anaconda/miniconda/.Miniconda3-latest-Linux-x86_64.sh",
            "/anaconda/miniconda/Miniconda3-latest-Linux-x86_64.sh%0a",
            "/anaconda/miniconda/Miniconda3-latest%0d%0aX-Evil:%201-Linux-x86_64.sh",
            "/anaconda/miniconda/Miniconda3-latest%00-Linux-x86_64.sh",
            "/anaconda/miniconda/Miniconda3-latest-Linux-x86_64.sh%3fx",
            "/anaconda/miniconda/Miniconda3-latest-Linux-x86_64.sh/",
            "/anaconda/miniconda/Miniconda3%20HTTP/1.1-Linux-x86_64.sh",
            "/anaconda/miniconda/@evil.example-latest-Linux-x86_64.sh",
            "/anaconda/miniconda/$host-latest-Linux-x86_64.sh",
            f"/anaconda/miniconda/{'a' * 200}-Linux-x86_64.sh",
            "/anaconda/MINICONDA/Miniconda3-latest-Linux-x86_64.sh",
            "/anaconda/pkgs/miniconda/Miniconda3-latest-Linux-x86_64.sh",
            "/anaconda/cloud/archive/Anaconda3-1.0-Linux-x86_64.sh",
            "/anaconda/pkgs/main/linux-64/Miniconda3-latest-Linux-x86_64.sh",
            "/miniconda/Miniconda3-latest-Linux-x86_64.sh",
            "/+kept/miniconda/Miniconda3-1.0-Linux-x86_64.sh",
            "/anaconda/+kept/miniconda/Miniconda3-1.0-Linux-x86_64.sh",
            f"/anaconda{MAIN}a-1.0-0.conda/",
            f"/anaconda{MAIN}a-1.0-0.conda;x",
            f"/anaconda{MAIN}a-1.0-0.conda%3fx",
            f"/anaconda{MAIN}a-1.0-0.conda%23x",
            f"/anaconda{MAIN}%c0%ae%c0%ae%c0%af-1.0-0.conda",
            f"/anaconda{MAIN}%uff0e%uff0e-1.0-0.conda",
            f"/anaconda{MAIN}%ff-1.0-0.conda",
            f"/anaconda{MAIN}a-1.0-0.conda%0a",
            f"/anaconda{MAIN}a-1.0-%0a.conda",
            f"/anaconda{MAIN}\ta-1.0-0.conda",
            f"/anaconda{MAIN.upper()}a-1.0-0.conda",
            "/anaconda/../anaconda/cloud/bioconda/noarch/a-1.0-0.conda",
            "/../../anaconda/pkgs/main/linux-64/a-1.0-0.conda",
            # The steps, and what is kept.
            "/pkgs/main/linux-64/a-1.0-0.conda",
            "/@conda_mirror_package",
            f"/+kept{A}",
            f"/anaconda/+kept{A}",
            f"/anaconda{MAIN}+kept/a-1.0-0.conda",
            f"/%2bkept{A}",
            "/+fetch",
        )
    ),
    # Names that are none of ours.
    *(
        f"GET {path} HTTP/1.1\r\nHost: {host}"
        for path in (MAIN + "a-1.0-0.conda",)
        for host in (
            *(f"{name}.lanmirror" for name in ("kept", "guard", "keeper", "whole", "spare", "broken", "upstreams")),
            "127.0.0.1:{steps}",
            "inside.lab.lan",
            "inside.lab.lan:443",
            "[::1]:{steps}",
        )
    ),
    f"GET /+kept{A} HTTP/1.1\r\nHost: kept.lanmirror",
    f"GET http://kept.lanmirror/+kept{A} HTTP/1.1\r\nHost: 127.0.0.1:{{steps}}",
    f"GET http://mirror.lan@inside.lab.lan/{A} HTTP/1.1\r\nHost: mirror.lan",
    f"GET https://inside.lab.lan:443{A} HTTP/1.1\r\nHost: mirror.lan",
    f"GET ftp://inside.lab.lan{A} HTTP/1.1\r\nHost: mirror.lan",
    f"GET @inside.lab.lan{A} HTTP/1.1\r\nHost: mirror.lan",
    f"GET {A} HTTP/1.1\r\nHost: inside.lab.lan@mirror.lan",
    f"GET /anaconda{A} HTTP/1.1",
    f"GET /anaconda{A} HTTP/1.1\r\nHost: mirror.lan\r\nTransfer-Encoding: chunked\r\nContent-Length: 3",
    f"GET /anaconda{A} HTTP/9.9\r\nHost: mirror.lan",
    "GET http://inside.lab.lan/a-1.0-0.conda HTTP/1.1\r\nHost: mirror.lan",
    "GET http://127.0.0.1:{steps}/pkgs/main/linux-64/a-1.0-0.conda HTTP/1.1\r\nHost: mirror.lan",
    "GET //inside.lab.lan/anaconda/pkgs/main/a-1.0-0.conda HTTP/1.1\r\nHost: mirror.lan",
    f"GET /anaconda{A} HTTP/1.1\r\nHost: a\r\nHost: b",
    f"GET /anaconda{A} HTTP/1.1\r\nHost: a/b",
    "CONNECT inside.lab.lan:443 HTTP/1.1\r\nHost: inside.lab.lan:443",
    # Methods.
    *(
        f"{method} /anaconda{path} HTTP/1.1\r\nHost: mirror.lan\r\nContent-Length: 0"
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "TRACE", "EVIL")
        for path in (A, f"{MAIN}repodata.json", LATEST, INSTALLER)
    ),
]


@pytest.mark.parametrize("request_line", ATTACKS)
def test_no_open_proxy(ours: CondaSite, request_line: str) -> None:
    steps = ours.port - 1
    for upstream in ours.upstreams:
        upstream.says["/"] = 200, {}, b"evil"
    before = ours.kept()
    answer = ours.raw(request_line.format(steps=steps).encode() + b"\r\nConnection: close\r\n\r\n")
    status = re.match(rb"HTTP/1\.1 (\d+)", answer)
    assert status
    assert status[1] in {b"400", b"404", b"405", b"505"}, answer
    assert ours.asked == []
    assert ours.names.asked == []
    assert ours.kept() == before


@pytest.mark.parametrize("path", sorted({line.split(" ")[1] for line in ATTACKS if line.startswith("GET /")}))
def test_only_what_is_kept_of_declared_paths_is_given_to_the_engine(ours: CondaSite, path: str) -> None:
    """The same paths at the steps' own port, behind the word by which the engine asks for what is kept."""
    ours.upstreams[0].says[A] = ranged(b"the package")
    assert get(ours, A).body == b"the package"
    ours.upstreams[0].asked.clear()
    ours.upstreams[0].says["/"] = 200, {}, b"evil"
    before = ours.kept()
    steps = CondaSite(ours.folder, ours.port - 1, ours.devpi)
    for start in (f"/+kept{path}", f"/+kept{path.removeprefix('/anaconda')}", f"/+kept/..{path}"):
        for host in ("127.0.0.1", "inside.lab.lan"):
            answer = steps.raw(
                f"GET {start} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode(), ends=False
            )
            given = answer.endswith(b"\r\n\r\nthe package")
            assert given or re.match(rb"HTTP/1\.1 40[045] ", answer), answer
            assert not given or start.endswith(A)
    assert ours.asked == []
    assert ours.kept() == before


@pytest.mark.parametrize(
    "path",
    [
        "/anaconda//pkgs//main/linux-64/{name}",
        "/anaconda/./pkgs/main/./linux-64/{name}",
        "/anaconda/x/../pkgs/pro/../main/linux-64/{name}",
        "/anaconda%2fpkgs%2Fmain%2flinux-64%2f{name}",
        "/%61naconda/pkgs/%6dain/linux-64/{name}",
        "/anaconda/pkgs/main/linux-64/{name}?/../../evil-1.0-0.conda",
        "/anaconda/pkgs/main/linux-64/{name}#/../../evil-1.0-0.conda",
        "http://mirror.lan/anaconda/pkgs/main/linux-64/{name}",
        "http://inside.lab.lan:443/anaconda/pkgs/main/linux-64/{name}",
    ],
    # Of these, the packages have their names.
    ids=[
        "slashes",
        "dots",
        "dot_dots",
        "escaped_slashes",
        "escaped_letters",
        "query",
        "fragment",
        "absolute",
        "inside",
    ],
)
def test_path_that_is_spelled_otherwise_is_the_same_path(ours: CondaSite, package: str, path: str) -> None:
    ours.upstreams[0].says[package] = ranged(b"the package")
    name = package.rpartition("/")[2]
    line = f"GET {path.format(name=name)} HTTP/1.1\r\nHost: mirror.lan\r\nConnection: close\r\n\r\n"
    for _ in range(2):
        assert ours.raw(line.encode(), ends=False).endswith(b"\r\n\r\nthe package")
    assert [(asked.path, asked["Host"]) for asked in ours.upstreams[0].asked] == [
        (package, f"127.0.0.1:{ours.upstreams[0].port}")
    ]
    assert ours.names.asked == []
    assert [key for key in ours.kept() if name in key or "/evil" in key] == [f"{package} {SLICES[0]}"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "inside.lab.lan"},
        {"Host": "mirror.lan:8443"},
        {"X_Forwarded_Host": "inside.lab.lan"},
        {"X_Slice": "bytes=5-9"},
        {"X_Forwarded_For": "127.0.0.1", "X_Original_URL": "/x", "X_Rewrite_URL": "/x"},
        {"Range": "bytes=0-0,2-3"},
        {"If_Range": '"x"', "Range": "bytes=2-3"},
    ],
    ids=str,
)
def test_header_of_a_client_changes_nothing_of_what_is_asked_and_kept(
    ours: CondaSite, package: str, headers: dict[str, str]
) -> None:
    ours.upstreams[0].says[package] = ranged(b"the package")
    get(ours, package, **headers)
    assert get(ours, package).body == b"the package"
    (asked,) = ours.upstreams[0].asked
    assert (asked.path, asked.method, asked["Range"], asked.body) == (package, "GET", SLICES[0], b"")
    assert asked["Host"] == f"127.0.0.1:{ours.upstreams[0].port}"


def test_body_of_a_client_goes_nowhere(ours: CondaSite, package: str) -> None:
    ours.upstreams[0].says[package] = ranged(b"the package")
    ours.upstreams[0].says[f"{MAIN}run_exports.json"] = 200, {}, b"{}"
    for path in (package, f"{MAIN}run_exports.json"):
        assert ours.ask(f"/anaconda{path}", "GET", b"GET /x HTTP/1.1\r\n\r\n").status == 200
    assert [asked.body for asked in ours.upstreams[0].asked] == [b"", b""]
