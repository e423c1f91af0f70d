"""The page of a project in a mirror: known, or asked for."""

from __future__ import annotations

import gzip
import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.devpi.conftest import JSON, Devpi, Upstream

# Seconds that nothing here takes, unless it hangs.
LONG = 60


def names(page: requests.Response) -> list[str]:
    """Return the names of the files on a page in JSON."""
    assert page.status_code == 200, page.text
    return [file["filename"] for file in page.json()["files"]]


class Gate:
    """An answer of an upstream that does not come before the test says so."""

    def __init__(self, upstream: Upstream, path: str) -> None:
        """Hold the answer for `path` back."""
        self.then = upstream.plain(path)
        self.asked, self.opened = threading.Semaphore(0), threading.Event()
        upstream.answer[path] = self

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.release()
        assert self.opened.wait(LONG)
        status, headers, body = self.then
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as threads:
        yield threads


def test_page_that_is_young_is_not_asked_for_again_not_even_after_a_restart(
    own_devpi: Devpi, upstream: Upstream
) -> None:
    devpi = own_devpi
    upstream.page("six", [upstream.file("six-1.0.tar.gz", b"six")])
    devpi.mirror("root/pypi", upstream)
    for _ in range(2):
        assert names(devpi.get("/root/pypi/+simple/six/")) == ["six-1.0.tar.gz"]
        assert devpi.get("/root/pypi/+simple/nothing/").status_code == 404
    assert upstream.paths() == ["/simple/six/", "/simple/nothing/"]
    wait_for_times(devpi, 2)
    devpi.restart()
    assert names(devpi.get("/root/pypi/+simple/six/")) == ["six-1.0.tar.gz"]
    assert devpi.get("/root/pypi/+simple/nothing/").status_code == 404
    assert upstream.paths() == ["/simple/six/", "/simple/nothing/"]


def wait_for_times(devpi: Devpi, count: int) -> None:
    """Wait until devpi has written when so many pages were confirmed."""
    until = time.monotonic() + LONG
    while time.monotonic() < until:
        with sqlite3.connect(devpi.data / ".lanmirror-times.sqlite") as db:
            if db.execute("SELECT count(*) FROM confirmed").fetchone()[0] >= count:
                return
        time.sleep(0.05)
    pytest.fail("nothing was written")


def test_old_page_is_asked_for_by_its_etag_and_stored_when_it_changed(
    devpi: Devpi, upstream: Upstream, name: str
) -> None:
    upstream.page("six", [upstream.file("six-1.0.tar.gz", b"six")])
    upstream.add_headers("/simple/six/", ETag='"one"')
    devpi.mirror(f"root/{name}", upstream, mirror_cache_expiry=0)
    for _ in range(3):
        assert names(devpi.get(f"/root/{name}/+simple/six/")) == ["six-1.0.tar.gz"]
    assert [asked.get("If-None-Match") for _, _, asked in upstream.asked] == [None, '"one"', '"one"']
    upstream.page("six", [upstream.file("six-1.0.tar.gz", b"six"), upstream.file("six-1.1.tar.gz", b"six one")])
    assert names(devpi.get(f"/root/{name}/+simple/six/")) == ["six-1.0.tar.gz", "six-1.1.tar.gz"]


def test_many_cold_pages_at_once_all_come(
    devpi: Devpi, upstream: Upstream, name: str, pool: ThreadPoolExecutor
) -> None:
    # All of them are asked for before the first is answered, and their parsing is in nobody's way.
    projects = [f"p{n}" for n in range(50)]
    for project in projects:
        upstream.page(project, [upstream.file(f"{project}-1.{n}.tar.gz", b"x") for n in range(300)])
    gates = [Gate(upstream, f"/simple/{project}/") for project in projects]
    devpi.mirror(f"root/{name}", upstream)
    pages = [pool.submit(devpi.get, f"/root/{name}/+simple/{project}/") for project in projects]
    for gate in gates:
        assert gate.asked.acquire(timeout=LONG)
    for gate in gates:
        gate.opened.set()
    assert [len(names(page.result())) for page in pages] == [300] * 50


def test_one_request_for_all_who_want_a_page(
    devpi: Devpi, upstream: Upstream, name: str, pool: ThreadPoolExecutor
) -> None:
    upstream.page("six", [upstream.file("six-1.0.tar.gz", b"six")])
    gate = Gate(upstream, "/simple/six/")
    devpi.mirror(f"root/{name}", upstream)
    pages = [pool.submit(devpi.get, f"/root/{name}/+simple/six/") for _ in range(20)]
    assert gate.asked.acquire(timeout=LONG)
    gate.opened.set()
    assert [names(page.result()) for page in pages] == [["six-1.0.tar.gz"]] * 20
    assert upstream.paths() == ["/simple/six/"]


def test_page_of_before_the_plugin_stays_where_the_upstream_has_none_any_more(
    start_devpi: Callable[..., Devpi], upstream: Upstream
) -> None:
    devpi = start_devpi(plain=True)
    upstream.page("six", [upstream.file("six-1.0.tar.gz", b"six")])
    devpi.mirror("root/pypi", upstream)
    assert names(devpi.get("/root/pypi/+simple/six/")) == ["six-1.0.tar.gz"]
    devpi.plain = False
    devpi.restart()
    upstream.answer.pop("/simple/six/")
    assert names(devpi.get("/root/pypi/+simple/six/")) == ["six-1.0.tar.gz"]
    assert names(devpi.get("/root/pypi/+simple/six/")) == ["six-1.0.tar.gz"]
    # And the file comes, by the entry that devpi made of it then.
    path = f"+f/{hashlib.sha256(b'six').hexdigest()[:3]}/{hashlib.sha256(b'six').hexdigest()[3:16]}/six-1.0.tar.gz"
    assert devpi.get(f"/root/pypi/{path}").content == b"six"
    upstream.page("six", [upstream.file("six-1.1.tar.gz", b"six one")])
    assert names(devpi.get("/root/pypi/+simple/six/")) == ["six-1.1.tar.gz"]
    devpi.stop()


def test_page_is_waited_for_as_long_as_bytes_come(start_devpi: Callable[..., Devpi], upstream: Upstream) -> None:
    devpi = start_devpi(request_timeout=1)
    body = json.dumps({"meta": {"api-version": "1.0"}, "name": "six", "files": [upstream.file("six-1.tar.gz", b"6")]})

    def slowly(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", JSON)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        step = len(body) // 5
        for begin in range(0, len(body), step):
            handler.wfile.write(body[begin : begin + step].encode())
            time.sleep(0.4)

    upstream.answer["/simple/six/"] = slowly
    devpi.mirror("root/pypi", upstream)
    assert names(devpi.get("/root/pypi/+simple/six/")) == ["six-1.tar.gz"]
    devpi.stop()


def test_upstream_that_says_nothing_is_not_waited_for(
    start_devpi: Callable[..., Devpi], upstream: Upstream, silent: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    devpi = start_devpi(request_timeout=1)
    upstream.answer["/simple/six/"] = silent
    devpi.mirror("root/pypi", upstream)
    assert devpi.get("/root/pypi/+simple/six/").status_code == 424
    devpi.stop()


def test_page_that_never_ends_is_given_up(start_devpi: Callable[..., Devpi], upstream: Upstream) -> None:
    devpi = start_devpi(lanmirror_page_timeout=1)
    ended = threading.Event()

    def for_ever(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", JSON)
        handler.send_header("Content-Length", str(1 << 30))
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b" ")
                time.sleep(0.05)
        except OSError:
            ended.set()

    upstream.answer["/simple/six/"] = for_ever
    devpi.mirror("root/pypi", upstream)
    assert devpi.get("/root/pypi/+simple/six/").status_code == 424
    assert ended.wait(LONG)
    devpi.stop()


def test_silent_upstream_is_waited_for_by_one_and_its_answer_counts_when_it_comes(
    devpi: Devpi, upstream: Upstream, name: str
) -> None:
    upstream.page("six", [upstream.file("six-1.0.tar.gz", b"six")])
    upstream.page("idna", [upstream.file("idna-1.0.tar.gz", b"idna")])
    devpi.mirror(f"root/{name}", upstream, mirror_cache_expiry=0)
    six, idna = (f"/root/{name}/+simple/{project}/" for project in ("six", "idna"))
    assert (names(devpi.get(six)), names(devpi.get(idna))) == (["six-1.0.tar.gz"], ["idna-1.0.tar.gz"])
    upstream.page("six", [upstream.file("six-1.1.tar.gz", b"six one")])
    gates = [Gate(upstream, "/simple/six/"), Gate(upstream, "/simple/idna/")]
    # What is known comes while nothing is answered.
    known = [["six-1.0.tar.gz"], ["idna-1.0.tar.gz"], ["six-1.0.tar.gz"]]
    assert [names(devpi.get(page)) for page in (six, idna, six)] == known
    for gate in gates:
        gate.opened.set()
    until = time.monotonic() + LONG
    while names(devpi.get(six)) != ["six-1.1.tar.gz"]:
        assert time.monotonic() < until


@pytest.mark.parametrize("status", [401, 403, 429, 500, 502, 503])
def test_refusal_of_an_upstream_leaves_the_page_that_is_known(
    devpi: Devpi, upstream: Upstream, name: str, status: int
) -> None:
    upstream.page("six", [upstream.file("six-1.0.tar.gz", b"six")])
    devpi.mirror(f"root/{name}", upstream, mirror_cache_expiry=0)
    page = f"/root/{name}/+simple/six/"
    assert names(devpi.get(page)) == ["six-1.0.tar.gz"]
    upstream.answer.clear()
    for path in ("/simple/six/", "/simple/unseen/", "/simple/"):
        upstream.answer[path] = status, {}, b"no"
    assert names(devpi.get(page)) == ["six-1.0.tar.gz"]
    assert devpi.get(f"/root/{name}/+simple/unseen/").status_code == 424


LOGIN = b"<!DOCTYPE html><html><form action=login><input type=password></form></html>"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html", b""),
        ("text/html", LOGIN),
        ("text/html", b'<html><a href="/login">log in</a></html>'),
        (JSON, b""),
        (JSON, b"{}"),
        (JSON, b'{"meta": {"api-version": "1.0"}, "name": "six", "files": []}'),
        (JSON, b'{"meta": {"api-version": "2.0"}, "name": "six", "files": []}'),
        (JSON, b'{"meta": {"api-version": "1.0"}, "name": "six", "files": {"a": 1}}'),
        ("application/json", b'{"error": "maintenance"}'),
        ("text/plain", b"back soon"),
    ],
)
def test_page_without_files_does_not_empty_a_known_project(
    devpi: Devpi, upstream: Upstream, name: str, content_type: str, body: bytes
) -> None:
    upstream.page("six", [upstream.file("six-1.0.tar.gz", b"six")])
    devpi.mirror(f"root/{name}", upstream, mirror_cache_expiry=0)
    page = f"/root/{name}/+simple/six/"
    assert names(devpi.get(page)) == ["six-1.0.tar.gz"]
    upstream.answer["/simple/six/"] = 200, {"Content-Type": content_type}, body
    assert names(devpi.get(page)) == ["six-1.0.tar.gz"]
    upstream.page("six", [upstream.file("six-1.1.tar.gz", b"six one")])
    assert names(devpi.get(page)) == ["six-1.1.tar.gz"]


def test_project_in_quarantine_has_no_files(devpi: Devpi, upstream: Upstream, name: str) -> None:
    upstream.page("six", [upstream.file("six-1.0.tar.gz", b"six")])
    devpi.mirror(f"root/{name}", upstream, mirror_cache_expiry=0)
    page = f"/root/{name}/+simple/six/"
    assert names(devpi.get(page)) == ["six-1.0.tar.gz"]
    upstream.page("six", [], **{"project-status": {"status": "quarantined"}})
    assert names(devpi.get(page)) == []


def test_upstream_that_says_403_for_what_it_has_not_is_understood(devpi: Devpi, upstream: Upstream, name: str) -> None:
    upstream.answer["/simple/"] = 200, {"Content-Type": "text/html"}, b"the list of all projects"
    for path in ("/simple/unseen/", "/simple/other/"):
        upstream.answer[path] = 403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>"
    upstream.page("six", [upstream.file("six-1.0.tar.gz", b"six")])
    devpi.mirror(f"root/{name}", upstream)
    # Nothing is known of it yet: the index itself is.
    assert devpi.get(f"/root/{name}/+simple/unseen/").status_code == 404
    assert names(devpi.get(f"/root/{name}/+simple/six/")) == ["six-1.0.tar.gz"]
    del upstream.answer["/simple/"]
    assert devpi.get(f"/root/{name}/+simple/other/").status_code == 404
    assert upstream.paths() == ["/simple/unseen/", "/simple/", "/simple/six/", "/simple/other/", "/simple/six/"]


def test_pages_of_another_upstream_are_not_given_any_more(devpi: Devpi, upstream: Upstream, name: str) -> None:
    upstream.page("six", [upstream.file("six-1.0.tar.gz", b"six")])
    devpi.mirror(f"root/{name}", upstream)
    page = f"/root/{name}/+simple/six/"
    assert names(devpi.get(page)) == ["six-1.0.tar.gz"]
    devpi.declare(f"root/{name}", mirror_url=f"{upstream.url}/vetted/")
    assert devpi.get(page).status_code == 404
    upstream.answer["/vetted/six/"] = 503, {}, b""
    devpi.declare(f"root/{name}", mirror_url=f"{upstream.url}/vetted/?")
    assert devpi.get(page).status_code in {404, 424}


def test_stored_page_that_is_damaged_is_asked_for_anew(own_devpi: Devpi, upstream: Upstream) -> None:
    # Random digits, so that the page is longer than one of the database's.
    files = [upstream.file(f"six-1.{n}.tar.gz", b"%d" % n) for n in range(300)]
    upstream.page("six", files)
    own_devpi.mirror("root/pypi", upstream)
    good = own_devpi.get("/root/pypi/+simple/six/").content
    own_devpi.stop()
    with sqlite3.connect(own_devpi.data / ".sqlite") as db:
        serial, data = db.execute("SELECT serial, data FROM changelog ORDER BY length(data) DESC LIMIT 1").fetchone()
        db.execute("UPDATE changelog SET data = ? WHERE serial = ?", (data[:3000] + b"A" * 500 + data[3500:], serial))
    own_devpi.start()
    assert own_devpi.get("/root/pypi/+simple/six/").content == good
    assert upstream.paths() == ["/simple/six/"] * 2


def test_flat_upstream_has_pages_with_all_that_it_tells(devpi: Devpi, upstream: Upstream, name: str) -> None:
    upstream.answer["/wheels/"] = (
        200,
        {"Content-Type": "text/html"},
        b"""<a href="lab_flat-1.0-py3-none-any.whl#sha256=%s" data-requires-python="&gt;=3.8">x</a>
        <a href="lab_flat-1.1-py3-none-any.whl" data-yanked="broken">lab_flat-1.1-py3-none-any.whl</a>
        <a href="lab_other-3.0-py3-none-any.whl">x</a>"""
        % (b"a" * 64),
    )
    devpi.mirror(f"root/{name}", upstream, "/wheels/", flat=True)
    page = devpi.get(f"/root/{name}/+simple/lab-flat/").json()
    files = {file["filename"]: file for file in page["files"]}
    assert list(files) == ["lab_flat-1.0-py3-none-any.whl", "lab_flat-1.1-py3-none-any.whl"]
    assert files["lab_flat-1.0-py3-none-any.whl"]["requires-python"] == ">=3.8"
    assert files["lab_flat-1.0-py3-none-any.whl"]["hashes"] == {"sha256": "a" * 64}
    assert files["lab_flat-1.1-py3-none-any.whl"]["yanked"] == "broken"
    assert names(devpi.get(f"/root/{name}/+simple/lab-other/")) == ["lab_other-3.0-py3-none-any.whl"]
    # The page of a moment ago was enough. For what is not on it, a new one is asked for.
    assert upstream.paths() == ["/wheels/"]
    assert devpi.get(f"/root/{name}/+simple/lab/").status_code == 404
    assert upstream.paths() == ["/wheels/"] * 2
    status, headers, body = upstream.plain("/wheels/")
    upstream.answer["/wheels/"] = status, {**headers, "ETag": '"new"'}, body + b'<a href="lab_new-1.0.zip">x</a>'
    assert names(devpi.get(f"/root/{name}/+simple/lab-new/")) == ["lab_new-1.0.zip"]
    assert devpi.get(f"/root/{name}/+simple/lab-newer/").status_code == 404
    assert [asked.get("If-None-Match") for _, _, asked in upstream.asked] == [None, None, None, '"new"']


def test_page_is_fetched_compressed(devpi: Devpi, upstream: Upstream, name: str) -> None:
    upstream.page("six", [upstream.file("six-1.0.tar.gz", b"six")])
    status, headers, body = upstream.plain("/simple/six/")
    upstream.answer["/simple/six/"] = status, {**headers, "Content-Encoding": "gzip"}, gzip.compress(body)
    devpi.mirror(f"root/{name}", upstream)
    assert names(devpi.get(f"/root/{name}/+simple/six/")) == ["six-1.0.tar.gz"]
    assert upstream.asked[0][2]["Accept-Encoding"] == "gzip"


def test_button_of_a_page_asks_the_upstream_again(devpi: Devpi, upstream: Upstream, name: str) -> None:
    upstream.page("six", [upstream.file("six-1.0.tar.gz", b"six")])
    devpi.mirror(f"root/{name}", upstream)
    page = f"/root/{name}/+simple/six/"
    assert names(devpi.get(page)) == ["six-1.0.tar.gz"]
    upstream.page("six", [upstream.file("six-1.1.tar.gz", b"six one")])
    pressed = requests.post(f"{devpi.url}{page}refresh", timeout=LONG, allow_redirects=False)
    assert pressed.is_redirect, pressed.text
    assert names(devpi.get(page)) == ["six-1.1.tar.gz"]


def test_unconfirmed_page_ends_after_the_time_that_is_set(
    start_devpi: Callable[..., Devpi], upstream: Upstream, tmp_path: Path
) -> None:
    devpi = start_devpi(lanmirror_max_stale=2, lanmirror_upstreams=str(tmp_path / "upstreams.json"))
    upstream.page("six", [upstream.file("six-1.0.tar.gz", b"six")])
    devpi.mirror("root/pypi", upstream, mirror_cache_expiry=0)

    def told() -> Any:
        return json.loads((tmp_path / "upstreams.json").read_text())["root/pypi"]["why"]

    assert names(devpi.get("/root/pypi/+simple/six/")) == ["six-1.0.tar.gz"]
    assert told() == ""
    upstream.answer["/simple/six/"] = 503, {}, b""
    statuses: list[int] = []
    until = time.monotonic() + LONG
    while not statuses or statuses[-1] == 200:
        assert time.monotonic() < until
        statuses.append(devpi.get("/root/pypi/+simple/six/").status_code)
    assert statuses[0] == 200
    assert statuses[-1] == 424
    assert told() == "503 status"
    devpi.stop()
