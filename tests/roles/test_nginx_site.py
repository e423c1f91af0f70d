"""The site as a client meets it: Nginx itself with the files of the roles, before a server that stands in for devpi."""

from __future__ import annotations

import base64
import gzip
import http.client
import os
import random
import re
import select
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.roles.site import INDEXES, JSON, KEPT, Answer, Asked, Handler, Said, Site, site

PAGE, STAGE = "/root/pypi/+simple/{}/", "/lab/dev/+simple/{}/"
FILE = "/root/pypi/+f/abc/def0123456789/{}"
BASIC = "Basic " + base64.b64encode(b"alice:a guess").decode()
BROWSER: dict[str, Any] = {"User_Agent": "Mozilla/5.0", "Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
UPLOAD = "multipart/form-data; boundary=x"
MIB = 1 << 20

Told = Callable[..., Said]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site"), devpi_server_names=["pypi.lan"], devpi_max_upload_mib=8) as running:
        yield running


@pytest.fixture
def ours(shared: Site) -> Iterator[Site]:
    """The site, with a devpi that was asked nothing so far and says nothing yet."""
    shared.devpi.asked.clear()
    shared.devpi.says.clear()
    yield shared
    if shared.devpi.server is None:
        shared.devpi.start()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """The name of a project that no other test has."""
    return re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")


# ---- pages of mirrors --------------------------------------------------------------------------------------------


def test_page_comes_from_memory_and_is_asked_for_in_one_form(ours: Site, name: str) -> None:
    ours.devpi.page(PAGE.format(name))
    answers = [ours.ask(PAGE.format(name), X_Mine="1", Cookie="a=b") for _ in range(3)]
    assert [(answer.status, answer.body) for answer in answers] == [(200, b"a page")] * 3
    assert [answer["X-Cache-Status"] for answer in answers] == ["MISS", "HIT", "HIT"]
    assert {answer["Cache-Control"] for answer in answers} == {"no-cache"}
    assert {answer["Vary"] for answer in answers} == {"Accept, Accept-Encoding"}
    assert not {"x-kept-status", "x-accel-expires"} & answers[0].headers.keys()
    (asked,) = ours.devpi.asked
    assert (asked["User-Agent"], asked["Accept"], asked["Accept-Encoding"]) == ("pip/lanmirror", JSON, "gzip")
    assert not {"x-mine", "cookie"} & asked.headers.keys()


def test_page_is_unpacked_for_who_takes_no_gzip(ours: Site, name: str) -> None:
    text = b"a page " * 1000
    ours.devpi.page(PAGE.format(name), gzip.compress(text), **{"Content-Encoding": "gzip"})
    packed, *plain = [
        ours.ask(PAGE.format(name), Accept_Encoding=encoding) for encoding in ("gzip", "identity", "identity", "")
    ]
    assert (packed["Content-Encoding"], gzip.decompress(packed.body)) == ("gzip", text)
    assert [(answer["Content-Encoding"], answer.body) for answer in plain] == [("", text)] * 3
    assert plain[1]["X-Cache-Status"] == "HIT"
    assert len(ours.devpi.asked) == 1


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (JSON, JSON),
        (f"{JSON}, application/vnd.pypi.simple.v1+html; q=0.1, text/html; q=0.01", JSON),
        ("application/vnd.pypi.simple.latest+json", JSON),
        ("Application/Vnd.PyPI.Simple.V1+JSON", JSON),
        (f"{JSON};q=0.5, text/html;q=0.5", JSON),
        (f"text/html;q=0.49, {JSON};q=0.5", JSON),
        (f"{JSON};q=1.000, text/html;q=1", JSON),
        (f"{JSON};q=0.001", JSON),
        (f"{JSON};q=0", "text/html"),
        (f"{JSON}; q=0.0, text/html", "text/html"),
        (f"{JSON};q=0.000", "text/html"),
        (f"text/html, {JSON};q=0.9", "text/html"),
        (f"{JSON};q=0.25, text/html;q=0.3", "text/html"),
        (f"{JSON};q=0.29, application/vnd.pypi.simple.v1+html;q=0.3", "text/html"),
        ("text/html", "text/html"),
        ("*/*", "text/html"),
        ("", "text/html"),
        (f"x{JSON}", "text/html"),
        (f"{JSON}x", "text/html"),
    ],
)
def test_format_is_the_one_that_the_client_wants_most(ours: Site, accept: str, form: str) -> None:
    for path in (PAGE.format("formats"), STAGE.format("formats")):
        ours.devpi.asked.clear()
        ours.devpi.says[path] = lambda _, asked: (200, {"Content-Type": asked["Accept"], "Cache-Control": KEPT}, b"")
        assert ours.ask(path, Accept=accept)["Content-Type"] == form
        assert {asked["Accept"] for asked in ours.devpi.asked} <= {form}


def test_password_is_not_even_looked_at_for_what_everybody_may_read(ours: Site, name: str) -> None:
    paths = [PAGE.format(name), STAGE.format(name), FILE.format(name)]
    for path in paths:
        ours.devpi.page(path)
    for given in ({"Authorization": BASIC}, {"X_Devpi_Auth": BASIC.removeprefix("Basic ")}, {"Cookie": "auth=1"}):
        for path in paths:
            assert ours.ask(path, **given).status == 200
    assert len(ours.devpi.asked) > 3
    assert not {name for asked in ours.devpi.asked for name in asked.headers} & {
        "authorization",
        "x-devpi-auth",
        "cookie",
    }


def test_fifty_pages_with_a_password_are_read_at_once(ours: Site, name: str) -> None:
    paths = [path.format(f"{name}-{number}") for number in range(50) for path in (PAGE, STAGE)]
    for path in paths:
        ours.devpi.page(path)
    with ThreadPoolExecutor(50) as clients:
        answers = list(clients.map(lambda path: ours.ask(path, Authorization=BASIC), paths))
    assert {answer.status for answer in answers} == {200}


def test_known_page_comes_while_devpi_is_down_also_to_who_sends_a_password(ours: Site, name: str) -> None:
    for path in (PAGE.format(name), STAGE.format(name)):
        ours.devpi.page(path)
        assert ours.ask(path).status == 200
    ours.devpi.stop()
    # Not from memory: that is another encoding's.
    for given in ({}, {"Accept_Encoding": "identity"}, {"Accept_Encoding": "identity", "Authorization": BASIC}):
        assert ours.ask(PAGE.format(name), **given).status == 200, given
    # A page that may be private is never older than the question.
    assert ours.ask(STAGE.format(name)).status == 502
    assert ours.ask(PAGE.format("unknown")).status == 502


def test_devpi_is_asked_once_for_all_who_want_a_page(ours: Site, name: str) -> None:
    began = threading.Barrier(31)

    def slow(handler: Handler, asked: Asked) -> Said:
        began.wait(30)
        time.sleep(0.2)
        return 200, {"Content-Type": JSON, "Cache-Control": KEPT}, b"a page"

    ours.devpi.says[PAGE.format(name)] = slow

    def client(_: int) -> Answer:
        began.wait(30)
        return ours.ask(PAGE.format(name))

    def first() -> None:
        assert ours.ask(PAGE.format(name)).body == b"a page"

    asking = threading.Thread(target=first)
    asking.start()
    with ThreadPoolExecutor(30) as clients:
        answers = list(clients.map(client, range(30)))
    asking.join()
    assert {(answer.status, answer.body) for answer in answers} == {(200, b"a page")}
    # The time that a flight is of may have ended between two of them.
    assert 1 <= len(ours.devpi.asked) <= 2


@pytest.mark.parametrize(("status", "text"), [(404, b"no such project"), (424, b"the upstream is silent"), (500, b"")])
def test_refusal_is_devpis_own_and_kept_for_seconds_alone(ours: Site, name: str, status: int, text: bytes) -> None:
    cache = {404: "s-maxage=5"}.get(status, "no-cache")
    ours.devpi.says[PAGE.format(name)] = status, {"Content-Type": "text/plain", "Cache-Control": cache}, text
    answers = [ours.ask(PAGE.format(name)) for _ in range(2)]
    assert [(answer.status, answer.body) for answer in answers] == [(status, text)] * 2
    assert answers[1]["X-Cache-Status"] == ("HIT" if status < 500 else "MISS")
    kept = [
        file
        for file in (ours.folder / "cache/kept").rglob("*")
        if file.is_file() and name.encode() in file.read_bytes()
    ]
    assert len(kept) == (status == 404)


def test_page_of_other_rules_is_asked_for_anew(tmp_path: Path) -> None:
    """devpi tells of a change by the time of a file, and Nginx needs nothing more of it: not even that it is there."""
    told = tmp_path / "data/.lanmirror-rules"

    def first_with(body: bytes) -> None:
        end = time.monotonic() + 60
        while running.ask(PAGE.format("six")).body != body:
            assert time.monotonic() < end
            time.sleep(0.05)

    with site(tmp_path) as running:
        # What is in memory may be older than the change.
        text = (tmp_path / "lanmirror/devpi/http.conf").read_text()
        (block,) = re.findall(r"\$devpi_memory_page_seconds \{(.*?)\}", text, re.DOTALL)
        seconds = [int(found) for found in re.findall(r" (\d+);", block)]
        assert seconds
        assert max(seconds) < 5
        for at, body in ((None, b"none"), (1000, b"one"), (2000, b"two")):
            if at is not None:
                told.write_text("{}")
                os.utime(told, (at, at))
            running.devpi.page(PAGE.format("six"), body)
            first_with(body)
        running.devpi.stop()
        # The same rules again: their page is still there, and good.
        os.utime(told, (1000, 1000))
        first_with(b"one")
        # What cannot be read is as none, for which there was a page as well.
        told.unlink()
        told.mkdir()
        first_with(b"none")
        assert "rules" not in running.errors


@pytest.mark.parametrize(
    "path", [PAGE.format("Flask_SQLAlchemy"), STAGE.format("zope.thing"), "/root/pypi/+simple/idna"]
)
@pytest.mark.parametrize("host", ["mirror.lan", "mirror.lan:8443", "pypi.lan", "[2001:db8::1]:80"])
def test_redirect_is_a_path_under_any_name(ours: Site, path: str, host: str) -> None:
    ours.devpi.says[path] = 302, {"Location": "/root/pypi/+simple/flask-sqlalchemy/", "Cache-Control": "no-cache"}, b""
    for _ in range(2):
        answer = ours.ask(path, Host=host)
        assert (answer.status, answer["Location"]) == (302, "/root/pypi/+simple/flask-sqlalchemy/")


def test_no_name_of_an_inner_server_leaves_the_site(ours: Site, name: str) -> None:
    """Whatever devpi makes of the name that it is asked by."""

    def by_name(handler: Handler, asked: Asked) -> Said:
        return 302, {"Location": f"http://{asked['Host']}/root/pypi/"}, b""

    for path in (PAGE.format(name), STAGE.format(name), FILE.format(name), "/lab/dev", "/+api"):
        ours.devpi.says[path] = by_name
        answer = ours.ask(path)
        assert answer.status == 302
        assert re.fullmatch(r"(http://mirror\.lan)?/root/pypi/", answer["Location"]), (path, answer["Location"])


# ---- pages of other indexes --------------------------------------------------------------------------------------


def test_page_of_another_index_is_asked_for_each_time(ours: Site, name: str) -> None:
    path = STAGE.format(name)
    for number in range(20):
        ours.devpi.page(path, f"{number}".encode(), cache="no-cache")
        answer = ours.ask(path)
        assert (answer.status, answer.body, answer["Cache-Control"]) == (200, f"{number}".encode(), "no-cache")
        assert answer["X-Cache-Status"] == ""
    ours.devpi.says.pop(path)
    assert ours.ask(path).status == 404
    assert {(asked["User-Agent"], asked["Accept-Encoding"]) for asked in ours.devpi.asked} == {
        ("pip/lanmirror", "gzip")
    }


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("path", [PAGE, STAGE], ids=["mirror", "stage"])
def test_page_that_devpi_breaks_off_is_asked_for_once_more(ours: Site, name: str, path: str, reset: bool) -> None:
    """As when it is killed, after each part of an answer."""

    def breaks_off(size: int, sent: int, text: bytes) -> Callable[[Handler, Asked], Said | None]:
        left = iter("x")

        def say(handler: Handler, asked: Asked) -> Said | None:
            headers = {"Content-Type": JSON, "Cache-Control": KEPT}
            if next(left, None) is None:
                return 200, headers, text
            handler.send_response(200)
            for field, value in {**headers, "Content-Length": str(size)}.items():
                handler.send_header(field, value)
            handler.end_headers()
            handler.wfile.write(text[:sent])
            # The step has read it by now.
            time.sleep(0.01)
            handler.close_connection = True
            if reset:
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                handler.connection.close()
            else:
                handler.connection.shutdown(socket.SHUT_RDWR)
            return None

        return say

    for size in (3_000, 16_000, 60_000, 900_000):
        text = random.Random(size).randbytes(size)
        for sent in (0, 100, size // 2, size - 1):
            page = path.format(f"{name}-{size}-{sent}")
            ours.devpi.says[page] = breaks_off(size, sent, text)
            for encoding in ("gzip", "identity"):
                answer = ours.ask(page, Accept_Encoding=encoding)
                assert (answer.status, answer.body == text) == (200, True), (size, sent, encoding)
            assert len(ours.devpi.paths(page)) == (2 if path == PAGE else 3)


@pytest.mark.parametrize("path", [PAGE, STAGE], ids=["mirror", "stage"])
def test_page_that_is_gone_before_it_is_read_is_asked_for_once_more(ours: Site, name: str, path: str) -> None:
    """Nginx looks a second after it began which copies nobody uses: of a slow answer, that may be before it is read."""
    page, left = path.format(name), iter([{"X-Accel-Expires": "0"}])
    ours.devpi.says[page] = lambda *_: (200, {"Content-Type": JSON, "Cache-Control": KEPT, **next(left, {})}, b"a page")
    answer = ours.ask(page)
    assert (answer.status, answer.body) == (200, b"a page")
    assert len(ours.devpi.asked) == 2
    # To others devpi gives the page for people.
    assert {asked["User-Agent"] for asked in ours.devpi.asked} == {"pip/lanmirror"}


# ---- files ---------------------------------------------------------------------------------------------------


def test_stored_file_comes_without_devpi_and_may_be_kept_for_ever(ours: Site, name: str) -> None:
    path = FILE.format(name)
    ours.store(path[1:], b"0123456789")
    answer = ours.ask(path)
    assert (answer.status, answer.body, "max-age=315360000" in answer["Cache-Control"]) == (200, b"0123456789", True)
    assert ours.ask(path, Range="bytes=-3").body == b"789"
    assert ours.ask(path, "HEAD")["Content-Length"] == "10"
    assert ours.devpi.asked == []


def test_file_that_is_not_stored_is_passed_on_and_never_kept(ours: Site, name: str) -> None:
    path = FILE.format(name)
    for number in range(5):
        ours.devpi.says[path] = 200, {"Content-Type": "application/octet-stream"}, f"bytes {number}".encode()
        answer = ours.ask(path, Range="bytes=0-3", If_Range='"x"')
        assert answer.body == f"bytes {number}".encode()
        assert not {"cache-control", "expires"} & answer.headers.keys()
    assert ours.ask(path, "HEAD").status == 200
    assert [asked.method for asked in ours.devpi.asked] == ["GET"] * 5 + ["HEAD"]
    asked = ours.devpi.asked[0]
    assert (asked["X-Lanmirror-Accel"], asked["Range"], asked["If-Range"]) == ("1", "bytes=0-3", '"x"')
    assert "range" not in ours.devpi.asked[5].headers
    ours.devpi.stop()
    assert ours.ask(path).status == 502


def test_file_of_a_wrong_hash_reaches_its_client_broken_off_and_nobody_else(ours: Site, name: str) -> None:
    def broken(handler: Handler, asked: Asked) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(MIB))
        handler.end_headers()
        handler.wfile.write(b"\0" * (MIB - 1))
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)

    path = FILE.format(name)
    ours.devpi.says[path] = broken
    for _ in range(2):
        with pytest.raises(http.client.IncompleteRead):
            ours.ask(path)
    assert len(ours.devpi.asked) == 2
    ours.devpi.says[path] = 502, {"Content-Type": "text/plain"}, b"the upstream gave other bytes\n"
    assert (ours.ask(path).status, ours.ask(path)["Expires"]) == (502, "")


def accel(where: str) -> Callable[[Handler, Asked], Said]:
    """Return what devpi says where Nginx is to send the file."""

    def say(handler: Handler, asked: Asked) -> Said:
        assert asked["X-Lanmirror-Accel"] == "1"
        return 200, {"X-Accel-Redirect": f"/+{where}{asked.path}"}, b""

    return say


@pytest.mark.parametrize("file", ["plain-1.0.whl", "local-1.0%2Bcpu.whl", "epoch-1%211.0.whl", "a%20space-1.0.whl"])
def test_file_that_was_stored_meanwhile_is_sent_from_its_folder(ours: Site, file: str) -> None:
    path = FILE.format(f"meanwhile-{file}")

    def say(handler: Handler, asked: Asked) -> Said:
        ours.store(path[1:].replace("%2B", "+").replace("%21", "!").replace("%20", " "), b"0123456789")
        return accel("stored")(handler, asked)

    ours.devpi.says[path] = say
    answer = ours.ask(path, Range="bytes=2-4")
    assert (answer.status, answer.body, "max-age=315360000" in answer["Cache-Control"]) == (206, b"234", True)
    assert len(ours.devpi.asked) == 1


def test_who_waits_for_a_download_gets_the_file_and_devpi_is_asked_once_for_all(ours: Site, name: str) -> None:
    path = FILE.format(f"{name}-1%211.0+a%20b.whl")
    ended, waiting = threading.Event(), threading.Event()

    def wait(handler: Handler, asked: Asked) -> Said:
        waiting.set()
        assert ended.wait(30)
        return 204, {}, b""

    ours.devpi.says[path] = accel("wait")
    ours.devpi.says[f"/+lanmirror/stored{path}"] = wait
    with ThreadPoolExecutor(20) as clients:
        answers = [clients.submit(ours.ask, path, method) for method in ["GET"] * 19 + ["HEAD"]]
        assert waiting.wait(30)
        # Each of them is in the queue of the one that waits for all.
        until = time.monotonic() + 30
        while len(ours.devpi.paths(path)) < 20 and time.monotonic() < until:
            time.sleep(0.01)
        ours.store(path[1:].replace("%21", "!").replace("%20", " "), b"0123456789")
        ended.set()
        got = [answer.result() for answer in answers]
    assert {(answer.status, answer.body) for answer in got[:-1]} == {(200, b"0123456789")}
    assert {"max-age=315360000" in answer["Cache-Control"] for answer in got} == {True}
    assert got[-1]["Content-Length"] == "10"
    (asked,) = [asked for asked in ours.devpi.asked if asked.path.startswith("/+lanmirror/")]
    assert asked.method == "GET"


@pytest.mark.parametrize("status", [404, 424, 502, 504])
def test_who_waits_for_a_download_that_fails_is_told_at_once(ours: Site, name: str, status: int) -> None:
    path = FILE.format(name) + ".whl"
    ours.devpi.says[path] = accel("wait")
    ours.devpi.says[f"/+lanmirror/stored{path}"] = 403, {"X-Lanmirror-Status": str(status)}, b""
    with ThreadPoolExecutor(10) as clients:
        answers = list(clients.map(lambda _: ours.ask(path), range(10)))
    assert {answer.status for answer in answers} == {status}
    assert {answer["Content-Type"] for answer in answers} == {"text/plain"}
    assert not any({"cache-control", "expires"} & answer.headers.keys() for answer in answers)


def test_who_waits_for_what_cannot_be_stored_gets_it_for_himself(ours: Site, name: str) -> None:
    path = FILE.format(f"{name}-1%211.0+a%20b.whl")

    def say(handler: Handler, asked: Asked) -> Said:
        if asked["X-Lanmirror-Accel"]:
            return accel("wait")(handler, asked)
        return 206, {"Content-Range": "bytes 2-4/10", "Cache-Control": "no-store"}, asked["Range"].encode()

    ours.devpi.says[path] = say
    ours.devpi.says[f"/+lanmirror/stored{path}"] = 403, {"X-Lanmirror-Status": "507"}, b""
    with ThreadPoolExecutor(5) as clients:
        answers = list(clients.map(lambda _: ours.ask(path, Range="bytes=2-4"), range(5)))
    assert {(answer.status, answer.body) for answer in answers} == {(206, b"bytes=2-4")}
    assert not any({"expires", "x-accel-redirect"} & answer.headers.keys() for answer in answers)


def test_who_waits_while_devpi_dies_is_told(ours: Site, name: str) -> None:
    def die(handler: Handler, asked: Asked) -> None:
        handler.connection.shutdown(socket.SHUT_RDWR)

    path = FILE.format(name)
    ours.devpi.says[path] = accel("wait")
    ours.devpi.says[f"/+lanmirror/stored{path}"] = die
    assert ours.ask(path).status == 502
    ours.devpi.says[f"/+lanmirror/stored{path}"] = 204, {}, b""
    # It is not there, whatever devpi says.
    time.sleep(1.1)
    assert ours.ask(path).status == 502


def test_what_devpi_tells_nginx_is_for_nobody_else(ours: Site, name: str) -> None:
    path = FILE.format(name)
    ours.store(path[1:], b"a file")
    ours.devpi.says[f"/+lanmirror/stored{path}"] = 204, {}, b""
    for inner in (
        f"/+stored{path}",
        f"/+wait{path}",
        f"/+lanmirror/stored{path}",
        "/+lanmirror/may-upload/lab/dev",
        "/+lanmirror/may-upload",
        "/%2Blanmirror/may-upload/lab/dev",
        "//+lanmirror/may-upload/lab/dev",
        "/x/../+lanmirror/may-upload/lab/dev",
        "/+lanmirror",
        "/+portal",
    ):
        assert ours.ask(inner).status == 404, inner
    assert {asked.path for asked in ours.devpi.asked} <= {"/+lanmirror"}


def test_slow_client_needs_no_disk(tmp_path: Path) -> None:
    """A file of eight MiB to somebody who does not read: nothing of it may lie about on the server."""
    body = random.Random(0).randbytes(8 * MIB)
    with site(tmp_path) as ours:
        ours.devpi.says[FILE.format("large")] = 200, {}, body
        ours.devpi.says["/lab/dev/+simple/large/"] = 200, {"Content-Type": JSON}, body
        for path in (FILE.format("large"), "/lab/dev/+simple/large/", FILE.format("large") + "?x"):
            ours.devpi.says.setdefault(path, (200, {}, body))
            client = socket.create_connection(("127.0.0.1", ours.port))
            client.sendall(f"GET {path} HTTP/1.0\r\nHost: mirror.lan\r\nAccept: {JSON}\r\n\r\n".encode())
            first = client.recv(1000)
            time.sleep(0.5)
            lying = sum(
                file.stat().st_size
                for worker in workers(tmp_path)
                for file in Path(f"/proc/{worker}/fd").iterdir()
                if "/proxy/" in str(file.readlink())
            )
            assert (first[:12], lying) == (b"HTTP/1.1 200", 0)
            rest = b"".join(iter(partial(client.recv, 1 << 16), b""))
            assert (first + rest).endswith(body)


def workers(folder: Path) -> list[str]:
    """Return the processes of a site's Nginx."""
    master = (folder / "nginx.pid").read_text().strip()
    return [master, *Path(f"/proc/{master}/task/{master}/children").read_text().split()]


def test_other_servers_of_the_cache_get_stored_files_as_clients_do(tmp_path: Path) -> None:
    with site(tmp_path, devpi_peers=[{"name": "b", "role": "replica", "url": "http://127.0.0.1:9"}]) as ours:
        peer = {"Host": "devpi-peer.lanmirror", "X_Lanmirror_Accel": "1"}
        for where in ("stored", "wait"):
            path = FILE.format(f"{where}-1.0.whl")
            ours.store(path[1:], b"0123456789")
            ours.devpi.says[path] = accel(where)
            ours.devpi.says[f"/+lanmirror/stored{path}"] = 204, {}, b""
            answer = ours.ask(path, Range="bytes=2-4", **peer)
            assert (answer.status, answer.body, "max-age=315360000" in answer["Cache-Control"]) == (206, b"234", True)
            assert ours.ask(f"/+{where}{path}", **peer).status == 404
        failed = FILE.format("failed-1.0.whl")
        ours.devpi.says[failed] = accel("wait")
        ours.devpi.says[f"/+lanmirror/stored{failed}"] = 403, {"X-Lanmirror-Status": "424"}, b""
        assert ours.ask(failed, **peer).status == 424


# ---- who may enter ---------------------------------------------------------------------------------------------


def may_upload(status: int, **headers: str) -> Said:
    return status, headers, b""


def send(site: Site, path: str, length: int, *, take: int | None = None, **headers: str) -> tuple[str, int]:
    """Send the head of an upload, and its body up to `take`; return the answer, and how much was taken before it came.

    As a client with a full pipe: it sends as long as it can, and looks for an answer in between.
    """
    connection = socket.create_connection(("127.0.0.1", site.port), 30)
    head = {"Host": "mirror.lan", "Content-Length": str(length), "Content-Type": UPLOAD, **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in head.items())
    connection.sendall(f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode())
    sent = 0
    connection.settimeout(0.3)
    answer = b""
    while sent < (length if take is None else take):
        connection.sendall(b"\0" * min(1 << 16, length - sent))
        sent += 1 << 16
    connection.settimeout(30)
    while b"\r\n\r\n" not in answer:
        chunk = connection.recv(1 << 16)
        if not chunk:
            break
        answer += chunk
    connection.close()
    return answer.decode().partition("\r\n")[0], sent


@pytest.mark.parametrize(("status", "line"), [(401, "401 Unauthorized"), (403, "403 Forbidden")])
def test_large_upload_is_refused_before_its_body_is_sent(ours: Site, status: int, line: str) -> None:
    ours.devpi.says["/+lanmirror/may-upload/lab/dev"] = may_upload(status, **{"WWW-Authenticate": 'Basic realm="pypi"'})
    # Not a byte of the body is sent: the answer is there all the same.
    assert send(ours, "/lab/dev/", 4 * MIB, take=0) == (f"HTTP/1.1 {line}", 0)
    assert [(asked.method, asked.path.partition("?")[0]) for asked in ours.devpi.asked] == [
        ("GET", "/+lanmirror/may-upload/lab/dev")
    ]
    # And who sends it all the same reads the answer, and not that the connection broke.
    assert send(ours, "/lab/dev/", 4 * MIB) == (f"HTTP/1.1 {line}", 4 * MIB)
    answer = ours.ask("/lab/dev/", "POST", b"\0" * (4 * MIB), Content_Type=UPLOAD)
    assert answer.status == status
    assert ("WWW-Authenticate".lower() in answer.headers) == (status == 401)


def test_large_upload_to_a_mirror_is_refused_with_the_reason(ours: Site) -> None:
    ours.devpi.says["/+lanmirror/may-upload/root/pypi"] = may_upload(403, **{"X-Lanmirror-Status": "404"})
    answer = ours.ask("/root/pypi/", "POST", b"\0" * (2 * MIB), Content_Type=UPLOAD)
    assert (answer.status, answer.body) == (404, b"Nothing can be uploaded here: it is a mirror, or no index.\n")


def test_question_for_known_malware_reaches_devpi_whole(ours: Site) -> None:
    path, body = "/+malware/v1/querybatch", b"{" * 900_000
    ours.devpi.says[path] = 400, {}, b"no"
    answer = ours.ask(path, "POST", body, Content_Type="application/json")
    assert (answer.status, answer.body) == (400, b"no")
    assert [(asked.path, asked.body == body) for asked in ours.devpi.asked] == [(path, True)]


@pytest.mark.parametrize("path", ["/lab/dev/", "/lab/dev"])
@pytest.mark.parametrize("large", [True, False])
def test_upload_reaches_devpi_whole(ours: Site, path: str, large: bool) -> None:
    body = random.Random(1).randbytes(3 * MIB if large else 900_000)
    ours.devpi.says["/+lanmirror/may-upload/lab/dev"] = may_upload(204)
    ours.devpi.says[path] = 200, {}, b"taken"
    given = {"Authorization": BASIC, "X_Devpi_Auth": "eHg=", "Content_Type": UPLOAD}
    assert ours.ask(path, "POST", body, **given).body == b"taken"
    *questions, upload = ours.devpi.asked
    assert (upload.method, upload.path, upload.body == body) == ("POST", path, True)
    assert (upload["Content-Type"], upload["X-outside-url"]) == (UPLOAD, "http://mirror.lan")
    # What is small devpi may refuse by itself.
    assert [question.path for question in questions] == (
        ["/+lanmirror/may-upload/lab/dev?permission=upload"] if large else []
    )
    for asked in ours.devpi.asked:
        assert (asked["Authorization"], asked["X-Devpi-Auth"]) == (BASIC, "eHg=")


def test_upload_goes_to_devpi_as_it_comes_without_a_disk(ours: Site) -> None:
    ours.devpi.says["/+lanmirror/may-upload/lab/dev"] = may_upload(204)
    ours.devpi.says["/lab/dev/"] = 200, {}, b"taken"
    client = socket.create_connection(("127.0.0.1", ours.port), 30)
    client.sendall(f"POST /lab/dev/ HTTP/1.0\r\nHost: mirror.lan\r\nContent-Length: {6 * MIB}\r\n\r\n".encode())
    client.sendall(b"\0" * (5 * MIB))
    time.sleep(0.3)
    open_files = [
        str(file.readlink()) for worker in workers(ours.folder) for file in Path(f"/proc/{worker}/fd").iterdir()
    ]
    client.sendall(b"\0" * MIB)
    assert client.recv(12) == b"HTTP/1.1 200"
    client.close()
    assert [file for file in open_files if "/client_body/" in file] == []


def test_upload_of_unknown_length_is_asked_about_as_well(ours: Site) -> None:
    ours.devpi.says["/+lanmirror/may-upload/lab/dev"] = may_upload(204)
    ours.devpi.says["/lab/dev/"] = 200, {}, b"taken"
    chunks = [b"a" * 1000] * 3000
    connection = http.client.HTTPConnection("127.0.0.1", ours.port, timeout=30)
    connection.request("POST", "/lab/dev/", body=iter(chunks), headers={"Content-Type": UPLOAD}, encode_chunked=True)
    assert connection.getresponse().read() == b"taken"
    connection.close()
    assert len(ours.devpi.asked) == 2
    assert ours.devpi.asked[1].body == b"".join(chunks)
    ours.devpi.says["/+lanmirror/may-upload/lab/dev"] = may_upload(401)
    connection.request("POST", "/lab/dev/", body=iter([b"a"]), headers={"Content-Type": UPLOAD}, encode_chunked=True)
    assert connection.getresponse().status == 401
    connection.close()


def test_who_asks_before_sending_is_told_to_go_on(ours: Site) -> None:
    ours.devpi.says["/+lanmirror/may-upload/lab/dev"] = may_upload(204)
    ours.devpi.says["/lab/dev/"] = 200, {}, b"taken"
    assert send(ours, "/lab/dev/", 4 * MIB, take=0, Expect="100-continue")[0] == "HTTP/1.1 100 Continue"
    ours.devpi.says["/+lanmirror/may-upload/lab/dev"] = may_upload(401)
    assert send(ours, "/lab/dev/", 4 * MIB, take=0, Expect="100-continue")[0] == "HTTP/1.1 401 Unauthorized"


def test_upload_while_devpi_is_down_is_its_fault_and_not_the_clients(ours: Site) -> None:
    ours.devpi.says["/+lanmirror/may-upload/lab/dev"] = 500, {}, b""
    assert send(ours, "/lab/dev/", 4 * MIB, take=0)[0] == "HTTP/1.1 502 Bad Gateway"
    ours.devpi.stop()
    assert send(ours, "/lab/dev/", 4 * MIB, take=0)[0] == "HTTP/1.1 502 Bad Gateway"


def test_results_of_tests_may_be_as_large_as_uploads(ours: Site, name: str) -> None:
    path = FILE.format(name).replace("root/pypi", "lab/dev")
    ours.store(path[1:], b"a file")
    ours.devpi.says["/+lanmirror/may-upload/lab/dev"] = may_upload(204)
    ours.devpi.says[path] = 200, {}, b"taken"
    for size in (100, 3 * MIB):
        ours.devpi.asked.clear()
        answer = ours.ask(path, "POST", b"\0" * size, Content_Type="application/json", Authorization=BASIC)
        assert answer.body == b"taken"
        assert ours.devpi.asked[-1].body == b"\0" * size
    assert ours.devpi.asked[0].path == "/+lanmirror/may-upload/lab/dev?permission=toxresult_upload"
    ours.devpi.says["/+lanmirror/may-upload/lab/dev"] = may_upload(403)
    assert ours.ask(path, "POST", b"\0" * (3 * MIB), Content_Type="application/json").status == 403
    ours.devpi.says[path] = 200, {}, b"deleted"
    assert ours.ask(path, "DELETE", Authorization=BASIC).body == b"deleted"
    assert ours.devpi.asked[-1]["Authorization"] == BASIC


@pytest.mark.parametrize(
    ("method", "path", "size", "status"),
    [
        ("POST", "/+login", 2 * MIB, 413),
        ("PUT", "/lab/new", 2 * MIB, 403),
        ("PUT", "/alice", 2 * MIB, 413),
        ("POST", "/lab/dev/", 9 * MIB, 413),
        ("POST", FILE.format("x"), 9 * MIB, 413),
        ("PATCH", "/lab/dev", 1000, 200),
    ],
)
def test_nothing_large_is_taken_from_nobody(ours: Site, method: str, path: str, size: int, status: int) -> None:
    for index in ("lab/new", "lab/dev", "root/pypi"):
        ours.devpi.says[f"/+lanmirror/may-upload/{index}"] = may_upload(403)
    ours.devpi.says[path] = 200, {}, b""
    assert ours.ask(path, method, b"\0" * size).status == status
    assert [asked for asked in ours.devpi.asked if len(asked.body) > 1000] == []


WAYS_IN: list[tuple[str, str, dict[str, Any]]] = [
    (method, path, given)
    for given in ({"Authorization": BASIC}, {"X_Devpi_Auth": "YTpi"})
    for method, path in [
        ("GET", "/lab/dev"),
        ("GET", "/"),
        ("GET", "/+api"),
        ("GET", "/lab/dev/+api"),
        ("GET", PAGE.format("six") + "?x"),
        ("HEAD", STAGE.format("six") + "?x"),
        ("POST", PAGE.format("six")),
        ("PUT", STAGE.format("six")),
        ("POST", FILE.format("six")),
        ("DELETE", FILE.format("six")),
        ("PUT", "/lab/dev"),
        ("PATCH", "/alice"),
        ("DELETE", "/lab/dev/six"),
        ("POST", "/lab/dev/"),
        ("GET", "/lab/dev/+simple/"),
        ("GET", PAGE.format("browsed")),
    ]
]


def test_one_limit_holds_for_every_way_in_together(tmp_path: Path) -> None:
    with site(tmp_path, devpi_server_names=["pypi.lan"]) as ours:
        ways = [("POST", "/+login", {}), *WAYS_IN] * 8

        def guess(way: tuple[str, str, dict[str, Any]]) -> int:
            method, path, given = way
            browsing = BROWSER if "browsed" in path else {}
            if path == "/":
                given = {**given, "Host": "pypi.lan"}
            return ours.ask(path, method, b"{}" if method != "GET" else None, **{**given, **browsing}).status

        began = time.monotonic()
        with ThreadPoolExecutor(len(ways)) as clients:
            statuses = list(clients.map(guess, ways))
        seconds = time.monotonic() - began
        passed = len(statuses) - statuses.count(429)
        # Those of the burst, and what the rate has let through meanwhile.
        assert 50 <= passed <= 52 + 5 * seconds
        assert len(ours.devpi.asked) == passed
        # Who has no password at all is not meant, nor who reads what everybody may.
        assert ours.ask("/lab/dev/+api").status == 404
        ours.devpi.page(PAGE.format("six"))
        ours.devpi.page(FILE.format("six"))
        for path in (PAGE.format("six"), FILE.format("six")):
            assert ours.ask(path, Authorization=BASIC).status == 200


@pytest.mark.parametrize(("method", "path", "given"), WAYS_IN)
def test_limit_holds_for_each_way_in(ours: Site, method: str, path: str, given: dict[str, Any]) -> None:
    """By what devpi is told: what reaches it with a password went through the location that has the limit."""
    more = {**given, **(BROWSER if "browsed" in path else {})}
    if path == "/":
        more["Host"] = "pypi.lan"
    ours.ask(path, method, b"{}" if method not in {"GET", "HEAD"} else None, **more)
    (asked,) = ours.devpi.asked
    assert asked.path == path
    assert {"authorization", "x-devpi-auth"} & asked.headers.keys()
    assert "x-lanmirror-accel" not in asked.headers


def turned_away(ours: Site, path: str, sent: int, refused: int, **headers: str) -> bool:
    """Return whether so many of the requests that are sent at once are refused, while others may wait."""
    lines = "".join(
        f"{name}: {value}\r\n" for name, value in {"Host": "mirror.lan", "Content-Length": "0", **headers}.items()
    )
    clients = [socket.create_connection(("127.0.0.1", ours.port)) for _ in range(sent)]
    for client in clients:
        client.sendall(f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode())
    left, got, until = clients, 0, time.monotonic() + 30
    while got < refused and left and time.monotonic() < until:
        for client in select.select(left, [], [], 1)[0]:
            got += client.recv(100).startswith(b"HTTP/1.1 429 ")
            left = [other for other in left if other is not client]
    for client in clients:
        client.close()
    return got >= refused


def test_logins_are_limited_most(tmp_path: Path) -> None:
    with site(tmp_path) as ours:
        # One is let through, ten wait; the others are told at once.
        assert turned_away(ours, "/+login", 20, 9)
        assert "devpi_login" in ours.errors


@pytest.mark.parametrize("path", ["/root/pypi/+simple/six/refresh", "/root/pypi/+simple/six/refresh/"])
def test_button_works_from_its_own_page_alone(tmp_path: Path, path: str) -> None:
    with site(tmp_path) as ours:
        ours.devpi.says[path] = 302, {"Location": "http://mirror.lan/root/pypi/+simple/six/"}, b""

        def press(method: str = "POST", **headers: str) -> int:
            return ours.ask(path, method, **headers).status

        assert press(Origin="http://mirror.lan") == 302
        assert press(Origin="http://pypi.lan:8080", Host="pypi.lan:8080") == 302
        asked = len(ours.devpi.asked)
        for origin in ("http://evil.example", "https://mirror.lan", "http://mirror.lan:81", "null", ""):
            assert press(Origin=origin) == 403, origin
        assert press("GET", Origin="http://mirror.lan") == 403
        assert len(ours.devpi.asked) == asked
        assert turned_away(ours, path, 30, 15, Origin="http://mirror.lan")


# ---- people ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/root/pypi", "/root/pypi/", "/lab/dev", "/lab", "/root/"])
@pytest.mark.parametrize("host", ["mirror.lan", "pypi.lan"])
def test_people_get_a_page_where_programs_get_data(ours: Site, path: str, host: str) -> None:
    ours.devpi.says[path] = 200, {"Content-Type": "application/json"}, b"{}"
    answer = ours.ask(path, Host=host, **BROWSER)
    assert (answer.status, answer.body, answer["Content-Type"]) == (200, b"the portal\n", "text/html; charset=utf-8")
    assert answer["Vary"] == "Accept, User-Agent"
    for given in ({}, {"Accept": "application/json"}, {"Accept": "*/*", "User_Agent": "curl/8"}):
        assert ours.ask(path, Host=host, **given).body == b"{}"
    assert ours.ask(path, "PUT", Host=host, **BROWSER).body == b"{}"


def test_people_get_a_page_at_a_named_site_as_at_the_other(ours: Site) -> None:
    ours.devpi.says["/"] = 200, {"Content-Type": "application/json"}, b"{}"
    assert ours.ask("/", Host="pypi.lan", **BROWSER).body == b"the portal\n"
    assert ours.ask("/", Host="mirror.lan", **BROWSER).body == b"the portal\n"
    assert ours.ask("/", Host="pypi.lan", Accept="application/json").body == b"{}"
    # What is no index is none for people either.
    assert ours.ask("/no/such", Host="pypi.lan", **BROWSER).status == 404


# ---- behind a proxy of somebody's ------------------------------------------------------------------------------


def outside_url(ours: Site, **headers: str) -> str:
    ours.devpi.asked.clear()
    ours.ask("/lab/dev/+api", **headers)
    return ours.devpi.asked[0]["X-outside-url"]


FORWARDED: dict[str, Any] = {
    "X_Forwarded_Proto": "https",
    "X_Forwarded_Host": "pypi.example.org",
    "X_Forwarded_For": "192.0.2.55",
}


def test_proxy_that_nobody_named_is_not_believed(ours: Site) -> None:
    assert outside_url(ours, **FORWARDED) == "http://mirror.lan"
    assert ours.devpi.asked[0]["X-Real-IP"] == "127.0.0.1"


def test_proxy_that_is_named_says_how_the_client_reaches_the_site(tmp_path: Path) -> None:
    with site(tmp_path, nginx_trusted_proxies=["192.0.2.0/24", "127.0.0.1"], devpi_server_names=["pypi.lan"]) as ours:
        for host in ("mirror.lan", "pypi.lan"):
            assert outside_url(ours, Host=host, **FORWARDED) == "https://pypi.example.org"
            assert ours.devpi.asked[0]["X-Real-IP"] == "192.0.2.55"
        # What it does not say, or says in no form that is one, is as the request has it.
        assert outside_url(ours, X_Forwarded_Proto="https") == "https://mirror.lan"
        assert outside_url(ours, X_Forwarded_Host="a b", X_Forwarded_Proto="gopher") == "http://mirror.lan"
        assert outside_url(ours, X_Forwarded_Host="[2001:db8::1]:8443", X_Forwarded_Proto="https") == (
            "https://[2001:db8::1]:8443"
        )
        # The last address that is no proxy's: what a client wrote before it counts for nothing.
        outside_url(ours, X_Forwarded_For="198.51.100.1, 203.0.113.7, 192.0.2.55")
        assert ours.devpi.asked[0]["X-Real-IP"] == "203.0.113.7"
        assert ours.ask("/+status", X_Forwarded_For="203.0.113.7").status == 403
        ours.devpi.says["/root/pypi/+simple/six/refresh"] = 200, {}, b""
        press = {**FORWARDED, "Origin": "https://pypi.example.org"}
        assert ours.ask("/root/pypi/+simple/six/refresh", "POST", **press).status == 200
        assert ours.ask("/root/pypi/+simple/six/refresh", "POST", Origin="https://pypi.example.org").status == 403


def test_word_of_nginx_to_devpi_is_not_a_clients(ours: Site) -> None:
    ours.ask("/lab/dev/+api", X_Lanmirror_Accel="1", X_Outside_Url="http://evil.example")
    assert "x-lanmirror-accel" not in ours.devpi.asked[0].headers
    assert ours.devpi.asked[0]["X-outside-url"] == "http://mirror.lan"


# ---- bounds ------------------------------------------------------------------------------------------------------


def on_a_small_disk(size: str, *folders: Path) -> tuple[str, ...]:
    """Return the beginning of a command line that runs with some folders on disks of their own."""
    for folder in folders:
        folder.mkdir(parents=True)
    mounts = " && ".join(f"mount -t tmpfs -o size={size} tmpfs {folder}" for folder in folders)
    return ("unshare", "--mount", "sh", "-c", f'{mounts} && exec "$0" "$@"')


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="only root has mounts and a network of its own"
)


@needs_root
@pytest.mark.parametrize("full", [["memory"], ["cache/kept"], ["memory", "cache/kept"]], ids=" and ".join)
def test_full_disk_costs_speed_and_no_answer(tmp_path: Path, full: list[str]) -> None:
    """Pages that fit, that do not fit, and that fit in part, which is where an answer may break off half-way."""
    pages = {f"page{size}": random.Random(size).randbytes(size) for size in (10, 3_000, 40_000, 90_000, 900_000)}

    def say(handler: Handler, asked: Asked) -> Said:
        body = pages[asked.path.split("/")[4]]
        headers = {"Content-Type": JSON, "Cache-Control": KEPT}
        if asked["Accept-Encoding"] == "gzip":
            return 200, {**headers, "Content-Encoding": "gzip"}, gzip.compress(body, 0)
        return 200, headers, body

    with site(tmp_path, wrap=on_a_small_disk("200k", *(tmp_path / folder for folder in full))) as ours:
        for page in pages:
            ours.devpi.says[PAGE.format(page)] = say
        ours.devpi.says[PAGE.format("no")] = 404, {"Cache-Control": "s-maxage=5"}, b"x" * 100_000
        for _ in range(2):
            for page, body in pages.items():
                packed = ours.ask(PAGE.format(page))
                assert (packed.status, gzip.decompress(packed.body) == body) == (200, True), page
                plain = ours.ask(PAGE.format(page), Accept_Encoding="identity")
                assert (plain.status, plain.body == body, plain["Content-Encoding"]) == (200, True, ""), page
            assert (ours.ask(PAGE.format("no")).status, ours.ask(PAGE.format("missing")).status) == (404, 404)
        with ThreadPoolExecutor(16) as clients:
            answers = list(clients.map(lambda page: (page, ours.ask(PAGE.format(page))), list(pages) * 20))
        assert {(answer.status, gzip.decompress(answer.body) == pages[page]) for page, answer in answers} == {
            (200, True)
        }
        assert re.search("No space left on device|has written only", ours.errors)


@needs_root
def test_memory_is_bounded_whatever_is_asked_for(tmp_path: Path) -> None:
    """A burst of pages that are ten times what may be kept in memory."""
    body = random.Random(0).randbytes(60_000)
    memory = tmp_path / "memory"
    with site(tmp_path, __devpi_memory_mib=4, wrap=on_a_small_disk("4m", memory)) as ours:
        names = [f"page{number}" for number in range(700)]
        for page in names:
            ours.devpi.page(PAGE.format(page), body)
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda page: ours.ask(PAGE.format(page)), names))
        assert {(answer.status, answer.body == body) for answer in answers} == {(200, True)}
        inside = Path(f"/proc/{workers(tmp_path)[0]}/root{memory}")
        disk = os.statvfs(inside)
        assert disk.f_blocks * disk.f_frsize == 4 * MIB
        # All of them are on the disk, so nothing was lost but time.
        ours.devpi.stop()
        kept = sum(ours.ask(PAGE.format(page), Accept_Encoding="identity").status == 200 for page in names)
        assert kept > len(names) // 2
        # And once the burst is over, there is room again.
        until = time.monotonic() + 30
        while time.monotonic() < until and os.statvfs(inside).f_bavail * disk.f_frsize < MIB:
            time.sleep(0.2)
        assert os.statvfs(inside).f_bavail * disk.f_frsize >= MIB


def test_copy_that_is_deleted_takes_no_room(tmp_path: Path) -> None:
    with site(tmp_path) as ours:
        for path in (PAGE.format("six"), STAGE.format("six")):
            ours.devpi.page(path, bytes(MIB))
            assert ours.ask(path).status == 200
        # Those that were between the steps, after a second and after twenty.
        until = time.monotonic() + 90
        while time.monotonic() < until and [file for file in (tmp_path / "memory").rglob("*") if file.is_file()]:
            time.sleep(0.2)
        assert not [file for file in (tmp_path / "memory").rglob("*") if file.is_file()]
        opened = [file.readlink() for worker in workers(tmp_path) for file in Path(f"/proc/{worker}/fd").iterdir()]
        assert not [file for file in opened if file.is_relative_to(tmp_path / "memory")]


# ---- the log of what was served --------------------------------------------------------------------------------


def test_log_says_what_was_served_and_whether_devpi_was_asked(tmp_path: Path) -> None:
    with site(tmp_path) as ours:
        ours.devpi.page(PAGE.format("six"))
        ours.devpi.page(STAGE.format("six"))
        ours.devpi.page(FILE.format("new.whl"))
        ours.devpi.says[FILE.format("meanwhile.whl")] = accel("stored")
        ours.devpi.says[FILE.format("awaited.whl")] = accel("wait")
        ours.devpi.says["/+lanmirror/stored" + FILE.format("awaited.whl")] = 204, {}, b""

        def stored(name: str) -> None:
            ours.store(FILE.format(name)[1:], b"a file")

        stored("known.whl")
        wanted: list[tuple[str, str, str]] = []

        def ask(path: str, subject: str, *status: str) -> None:
            ours.ask(path)
            wanted.append((*status, subject))  # type: ignore[arg-type]

        ask(PAGE.format("six"), "page", "MISS", "MISS")
        ask(PAGE.format("six"), "page", "HIT", "MISS")
        ask(STAGE.format("six"), "page", "", "-")
        ask(FILE.format("known.whl"), FILE.format("known.whl"), "HIT", "-")
        ask(FILE.format("new.whl"), FILE.format("new.whl"), "MISS", "-")
        after_accel: dict[str, Any] = {"meanwhile.whl": "stored", "awaited.whl": "wait"}
        for name in after_accel:
            # As devpi has it by then; try_files of the first location must not find it.
            said = ours.devpi.says[FILE.format(name)]
            assert callable(said)

            def say(handler: Handler, asked: Asked, name: str = name, said: Any = said) -> Said:
                stored(name)
                done: Said = said(handler, asked)
                return done

            ours.devpi.says[FILE.format(name)] = say
            ask(FILE.format(name), FILE.format(name), "MISS", "-")
        ours.ask("/+api")
        log = tmp_path / "lanmirror-devpi.log"
        until = time.monotonic() + 30
        while len(log.read_text().splitlines()) < len(wanted) and time.monotonic() < until:
            time.sleep(0.2)
        lines = [line.split("\t") for line in log.read_text().splitlines()]
        # Each process of Nginx writes its own lines at once.
        assert sorted(tuple(line[3:]) for line in lines) == sorted(wanted)
        assert {line[1] for line in lines} == {"200"}


def test_indexes_of_the_site_are_those_of_the_variables() -> None:
    assert {settings["type"] for settings in INDEXES.values()} == {"mirror", "stage"}
