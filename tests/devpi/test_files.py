"""Files of mirrors: one download for all, checked, and going on where it broke off."""

from __future__ import annotations

import gzip
import hashlib
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.devpi.conftest import Devpi, Upstream
from tests.devpi.origin import LONG, Origin, cut, noise, other, path_of, paused, silence

BIG = noise(1 << 20)
SDIST = "six-1.0.tar.gz"
ACCEL = {"X-Lanmirror-Accel": "1"}


@pytest.fixture(scope="module")
def impatient(start_devpi: Callable[..., Devpi]) -> Iterator[Devpi]:
    """Return a devpi for which an upstream that sends nothing has soon broken off."""
    devpi = start_devpi(lanmirror_file_silence=0.3)
    yield devpi
    devpi.stop()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


@pytest.fixture
def index(devpi: Devpi, upstream: Upstream, name: str) -> str:
    devpi.mirror(f"root/{name}", upstream)
    return f"root/{name}"


@pytest.fixture
def origin(upstream: Upstream) -> Origin:
    """Return a file of 1 MiB on the page of six."""
    file = Origin(upstream, SDIST, BIG)
    upstream.page("six", [file.entry])
    return file


def is_stored(devpi: Devpi, path: str) -> bool:
    return (devpi.data / "+files" / path.lstrip("/")).is_file()


def ended(devpi: Devpi, path: str) -> requests.Response:
    """Wait, as Nginx does, until the download of a file has ended."""
    return devpi.get(f"/+lanmirror/stored{path}")


def stream(devpi: Devpi, path: str, **headers: str) -> requests.Response:
    asking = {"Accept-Encoding": "identity", **headers}
    return requests.get(devpi.url + path, headers=asking, stream=True, timeout=LONG)


def test_file_is_fetched_once_and_stored(devpi: Devpi, index: str, origin: Origin) -> None:
    path = path_of(devpi, index, "six", SDIST)
    first = devpi.get(path)
    assert first.content == BIG
    assert first.headers["Cache-Control"] == "no-store"
    assert ended(devpi, path).status_code == 204
    second = devpi.get(path)
    assert second.content == BIG
    assert "immutable" in second.headers["Cache-Control"]
    assert len(origin.asked) == 1
    assert is_stored(devpi, path)


def test_entry_of_a_file_is_whole_when_it_is_stored(devpi: Devpi, index: str, origin: Origin) -> None:
    path = path_of(devpi, index, "six", SDIST)
    before = devpi.get(path, accept="application/json").json()["result"]
    devpi.get(path)
    ended(devpi, path)
    after = devpi.get(path, accept="application/json").json()["result"]
    sha256 = hashlib.sha256(BIG).hexdigest()
    expected = {
        "url": origin.entry["url"],
        "project": "six",
        "version": "1.0",
        "hash_spec": f"sha256={sha256}",
        "hashes": {"sha256": sha256},
    }
    assert before == expected
    assert after.pop("last_modified")
    assert after == expected


def test_first_client_gets_bytes_as_they_come_and_nobody_else_holds_a_thread(
    devpi: Devpi, index: str, origin: Origin, pool: ThreadPoolExecutor
) -> None:
    go_on = threading.Event()
    origin.script = [paused(800_000, go_on)]
    path = path_of(devpi, index, "six", SDIST)
    first = stream(devpi, path)
    assert first.headers["Content-Length"] == str(len(BIG))
    begun = first.raw.read(700_000)
    assert begun == BIG[:700_000]
    # Nginx is told where to wait, at once; who asks without it waits here.
    for _ in range(3):
        told = devpi.get(path, **ACCEL)
        assert told.headers["X-Accel-Redirect"] == f"/+wait{path}"
    waiting = [pool.submit(ended, devpi, path), pool.submit(devpi.get, path)]
    assert not any(each.done() for each in waiting)
    go_on.set()
    assert begun + first.raw.read() == BIG
    assert waiting[0].result().status_code == 204
    assert waiting[1].result().content == BIG
    assert devpi.get(path, **ACCEL).headers["X-Accel-Redirect"] == f"/+stored{path}"
    assert len(origin.asked) == 1


def test_download_goes_on_when_the_first_client_goes_away(devpi: Devpi, index: str, origin: Origin) -> None:
    go_on = threading.Event()
    origin.script = [paused(800_000, go_on)]
    path = path_of(devpi, index, "six", SDIST)
    with stream(devpi, path) as first:
        first.raw.read(1000)
    go_on.set()
    assert ended(devpi, path).status_code == 204
    assert devpi.get(path).content == BIG
    assert len(origin.asked) == 1


@pytest.mark.parametrize("wrong", [BIG[:-1] + b"x", b"x" * len(BIG)], ids=["at the end", "all"])
def test_wrong_bytes_are_broken_off_before_the_end_and_reach_nobody_else(
    devpi: Devpi, index: str, origin: Origin, pool: ThreadPoolExecutor, wrong: bytes
) -> None:
    go_on = threading.Event()

    def lie(origin: Origin, handler: BaseHTTPRequestHandler) -> None:
        origin.content, right = wrong, origin.content
        paused(800_000, go_on)(origin, handler)
        origin.content = right

    origin.script = [lie]
    path = path_of(devpi, index, "six", SDIST)
    first = stream(devpi, path)
    first.raw.read(100)
    waiting = [pool.submit(ended, devpi, path), pool.submit(devpi.get, path), pool.submit(devpi.get, path)]
    go_on.set()
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        _ = first.content
    told = waiting[0].result()
    assert (told.status_code, told.headers["X-Lanmirror-Status"]) == (403, "502")
    assert [each.result().status_code for each in waiting[1:]] == [502, 502]
    assert not is_stored(devpi, path)
    assert len(origin.asked) == 1


def test_failure_is_told_for_a_moment_and_then_forgotten(devpi: Devpi, index: str, origin: Origin) -> None:
    origin.script = [other(b"", status=503)]
    path = path_of(devpi, index, "six", SDIST)
    assert devpi.get(path).status_code == 502
    until = time.monotonic() + LONG
    while (again := devpi.get(path)).status_code == 502 and time.monotonic() < until:
        time.sleep(0.1)
    assert again.content == BIG
    assert len(origin.asked) == 2


def test_no_byte_of_a_small_wrong_file_is_sent(devpi: Devpi, upstream: Upstream, index: str) -> None:
    file = Origin(upstream, SDIST, b"right")
    upstream.page("six", [file.entry])
    file.script = [other(b"wrong")]
    assert devpi.get(path_of(devpi, index, "six", SDIST)).status_code == 502


def test_download_goes_on_where_it_broke_off(devpi: Devpi, index: str, origin: Origin) -> None:
    origin.script = [cut(300_000)]
    path = path_of(devpi, index, "six", SDIST)
    assert devpi.get(path).content == BIG
    assert [(each.get("Range"), each.get("If-Range")) for each in origin.asked] == [
        (None, None),
        ("bytes=300000-", origin.etag),
    ]
    assert ended(devpi, path).status_code == 204


def test_download_goes_on_although_the_upstream_knows_no_ranges(devpi: Devpi, index: str, origin: Origin) -> None:
    origin.script = [cut(300_000), cut(500_000)]
    origin.ranges = False
    path = path_of(devpi, index, "six", SDIST)
    assert devpi.get(path).content == BIG
    assert len(origin.asked) == 3
    assert ended(devpi, path).status_code == 204


def test_download_that_breaks_off_again_and_again_is_given_up(
    impatient: Devpi, upstream: Upstream, origin: Origin, name: str
) -> None:
    devpi = impatient
    devpi.mirror(f"root/{name}", upstream)
    origin.script = [cut(300_000), *[other(b"", status=503)] * 9]
    path = path_of(devpi, f"root/{name}", "six", SDIST)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        devpi.get(path)
    assert ended(devpi, path).headers["X-Lanmirror-Status"] == "502"
    assert len(origin.asked) == 5


def test_silent_download_goes_on_by_a_new_request(
    impatient: Devpi, upstream: Upstream, origin: Origin, name: str
) -> None:
    devpi, index, never = impatient, f"root/{name}", threading.Event()
    devpi.mirror(index, upstream)
    origin.script = [paused(300_000, never)]
    assert devpi.get(path_of(devpi, index, "six", SDIST)).content == BIG
    assert len(origin.asked) == 2
    # Where not even an answer comes, that is the answer.
    silent = Origin(upstream, "two-2.0.tar.gz", BIG)
    silent.script = [silence(never)]
    upstream.page("two", [silent.entry])
    assert devpi.get(path_of(devpi, index, "two", "two-2.0.tar.gz")).status_code == 504
    never.set()


def test_file_without_a_hash_is_not_mended_with_bytes_of_another(devpi: Devpi, upstream: Upstream, index: str) -> None:
    file = Origin(upstream, SDIST, BIG, hashes={})
    upstream.page("six", [file.entry])

    def changed(origin: Origin, handler: BaseHTTPRequestHandler) -> None:
        origin.etag = '"another"'
        origin.send(handler, noise(len(BIG) - 1) + b"x")

    file.script = [cut(300_000), changed]
    path = path_of(devpi, index, "six", SDIST)
    assert "/+e/" in path
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        devpi.get(path)
    assert ended(devpi, path).status_code == 403
    assert not is_stored(devpi, path)


def test_file_without_a_hash_is_stored_when_it_is_whole(devpi: Devpi, upstream: Upstream, index: str) -> None:
    file = Origin(upstream, SDIST, BIG, hashes={}, size=None)
    upstream.page("six", [file.entry])
    path = path_of(devpi, index, "six", SDIST)
    assert devpi.get(path).content == BIG
    assert ended(devpi, path).status_code == 204


def test_file_whose_end_nobody_tells_is_given_and_not_stored(devpi: Devpi, upstream: Upstream, index: str) -> None:
    file = Origin(upstream, SDIST, BIG, hashes={}, size=None)
    upstream.page("six", [file.entry])

    def endless(origin: Origin, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(origin.content)
        handler.close_connection = True

    file.script = [endless] * 2
    path = path_of(devpi, index, "six", SDIST)
    assert [devpi.get(path).content == BIG for _ in range(2)] == [True, True]
    assert not is_stored(devpi, path)


def test_size_of_the_page_counts_where_there_is_no_hash(devpi: Devpi, upstream: Upstream, index: str) -> None:
    checked = Origin(upstream, SDIST, BIG, size=7)
    unchecked = Origin(upstream, "six-2.0.tar.gz", BIG, size=7, hashes={})
    upstream.page("six", [checked.entry, unchecked.entry])
    assert devpi.get(path_of(devpi, index, "six", checked.name)).content == BIG
    path = path_of(devpi, index, "six", unchecked.name)
    assert devpi.get(path).status_code == 502
    assert not is_stored(devpi, path)


def test_hash_in_capitals_is_a_hash(devpi: Devpi, upstream: Upstream, index: str) -> None:
    md5 = hashlib.md5(BIG).hexdigest().upper()
    upstream.page("six", [Origin(upstream, SDIST, BIG, hashes={"md5": md5}).entry])
    path = path_of(devpi, index, "six", SDIST)
    assert devpi.get(path).content == BIG
    assert ended(devpi, path).status_code == 204


def test_packed_answer_is_unpacked(devpi: Devpi, upstream: Upstream, index: str) -> None:
    wheel, sdist = (Origin(upstream, name, BIG) for name in ("six-1.0-py3-none-any.whl", SDIST))
    upstream.page("six", [wheel.entry, sdist.entry])
    # Of a name that says it, the server only tells what the file is.
    for file, body in ((wheel, gzip.compress(BIG)), (sdist, BIG)):
        file.script = [other(body, Content_Encoding="gzip")]
        path = path_of(devpi, index, "six", file.name)
        answer = devpi.get(path)
        assert answer.content == BIG
        assert "Content-Encoding" not in answer.headers
        assert ended(devpi, path).status_code == 204
        assert [each["Accept-Encoding"] for each in file.asked] == ["identity"]


@pytest.mark.parametrize(("theirs", "ours"), [(404, 404), (410, 404), (403, 424), (503, 502), (429, 502)])
def test_status_of_the_upstream_is_told(devpi: Devpi, index: str, origin: Origin, theirs: int, ours: int) -> None:
    origin.script = [other(b"no", status=theirs)]
    path = path_of(devpi, index, "six", SDIST)
    for _ in range(2):
        answer = devpi.get(path, **ACCEL)
        assert answer.status_code == ours
        assert answer.headers["Cache-Control"] == "no-store"
    assert ended(devpi, path).headers["X-Lanmirror-Status"] == str(ours)
    assert len(origin.asked) == 1


def test_upstream_that_cannot_be_reached_is_told(devpi: Devpi, upstream: Upstream, name: str) -> None:
    file = upstream.file(SDIST, BIG)
    upstream.page("six", [file | {"url": "http://127.0.0.1:9/six-1.0.tar.gz"}])
    devpi.mirror(f"root/{name}", upstream, file_hosts=["127.0.0.1:9"])
    assert devpi.get(path_of(devpi, f"root/{name}", "six", SDIST)).status_code == 424


# ---- a part, or only what is known of it ------------------------------------------------------------------------


def test_head_of_a_file_that_nobody_has_fetches_nothing(devpi: Devpi, upstream: Upstream, index: str) -> None:
    told, untold = Origin(upstream, SDIST, BIG), Origin(upstream, "six-2.0.tar.gz", BIG, size=None)
    upstream.page("six", [told.entry, untold.entry])
    for file in (told, untold):
        path = path_of(devpi, index, "six", file.name)
        head = requests.head(devpi.url + path, headers=ACCEL, timeout=LONG)
        assert head.status_code == 200
        assert head.headers["Content-Length"] == str(len(BIG))
        assert head.headers["Accept-Ranges"] == "bytes"
        assert "X-Accel-Redirect" not in head.headers
        assert not is_stored(devpi, path)
    assert [(method, path) for method, path, _ in upstream.asked if path.startswith("/files/")] == [
        ("HEAD", "/files/six-2.0.tar.gz")
    ]


@pytest.mark.parametrize(
    ("header", "part"),
    [("bytes=-1000", BIG[-1000:]), ("bytes=5-9", BIG[5:10]), (f"bytes={len(BIG) - 9}-", BIG[-9:])],
)
def test_small_part_of_a_file_is_passed_on(devpi: Devpi, index: str, origin: Origin, header: str, part: bytes) -> None:
    path = path_of(devpi, index, "six", SDIST)
    answer = devpi.get(path, Range=header, **ACCEL)
    assert answer.status_code == 206
    assert answer.content == part
    assert answer.headers["Content-Length"] == str(len(part))
    begin = BIG.index(part)
    assert answer.headers["Content-Range"] == f"bytes {begin}-{begin + len(part) - 1}/{len(BIG)}"
    assert answer.headers["Cache-Control"] == "no-store"
    assert [each["Range"] for each in origin.asked] == [header]
    assert not is_stored(devpi, path)


@pytest.mark.parametrize("why", ["large", "no ranges", "changed"])
def test_part_that_is_not_passed_on_is_of_the_stored_file(devpi: Devpi, index: str, origin: Origin, why: str) -> None:
    path = path_of(devpi, index, "six", SDIST)
    origin.ranges = why != "no ranges"
    header = "bytes=100000-" if why == "large" else "bytes=-1000"
    asking = {"Range": header} | ({"If-Range": '"of before"'} if why == "changed" else {})
    answer = devpi.get(path, **asking)
    assert is_stored(devpi, path)
    if why == "changed":
        assert (answer.status_code, answer.content) == (200, BIG)
    else:
        assert (answer.status_code, answer.content) == (206, BIG[100_000:] if why == "large" else BIG[-1000:])
    assert devpi.get(path, **asking, **ACCEL).headers["X-Accel-Redirect"] == f"/+stored{path}"


def test_part_that_breaks_off_is_not_taken_for_whole(devpi: Devpi, index: str, origin: Origin) -> None:
    def short(origin: Origin, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-99999/{len(BIG)}")
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        handler.wfile.write(BIG[:50_000])
        handler.close_connection = True

    origin.script = [short]
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        devpi.get(path_of(devpi, index, "six", SDIST), Range="bytes=0-99999")


# ---- where an upstream leads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["link", "redirect", "name"])
def test_file_that_leads_inside_is_refused_unless_it_is_declared(
    devpi: Devpi, upstream: Upstream, name: str, how: str
) -> None:
    inside = f"{devpi.url}/+api" if how != "name" else devpi.url.replace("127.0.0.1", "localhost") + "/+api"
    content = requests.get(inside, timeout=LONG).content
    file = Origin(upstream, SDIST, content, size=None, **({} if how == "redirect" else {"url": inside}))
    upstream.page("six", [file.entry])
    file.script = [other(b"", status=302, Location=inside)] * 2
    declared: dict[str, Any] = {"file_hosts": [f"127.0.0.1:{devpi.port}", f"localhost:{devpi.port}"]}
    undeclared: dict[str, Any] = {}
    for index, settings, status in ((f"{name}-a", undeclared, 424), (f"{name}-b", declared, 200)):
        devpi.mirror(f"root/{index}", upstream, **settings)
        answer = devpi.get(path_of(devpi, f"root/{index}", "six", SDIST))
        assert answer.status_code == status
    assert answer.content == content


def test_page_that_leads_inside_is_refused(devpi: Devpi, upstream: Upstream, index: str) -> None:
    upstream.answer["/simple/six/"] = 302, {"Location": f"{devpi.url}/{index}/+simple/two/"}, b""
    upstream.page("two", [upstream.file("two-1.0.tar.gz", b"two")])
    assert devpi.get(f"/{index}/+simple/two/").status_code == 200
    assert devpi.get(f"/{index}/+simple/six/").status_code == 424


@dataclass
class Proxied(Devpi):
    """devpi whose way out is an HTTP proxy."""

    proxy: str = ""

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "HTTP_PROXY": self.proxy, "http_proxy": self.proxy}


def test_proxy_is_not_asked_for_inside_addresses(own_devpi: Devpi, upstream: Upstream) -> None:
    own_devpi.stop()
    devpi = Proxied(own_devpi.venv, own_devpi.data, {}, port=own_devpi.port, proxy=upstream.url)
    devpi.start()
    devpi.mirror("root/pypi", upstream)
    hosts = ["10.0.0.1", "0x0a000001", "10.1", "[::ffff:10.0.0.1]", "localhost", "files.example"]
    urls = [f"http://{host}/six-{number}.0.tar.gz" for number, host in enumerate(hosts)]
    upstream.page(
        "six",
        [
            upstream.file(f"six-{number}.0.tar.gz", b"six") | {"url": url, "hashes": {}}
            for number, url in enumerate(urls)
        ],
    )
    for url in urls:
        upstream.answer[url] = 200, {}, b"six"
    told = [
        devpi.get(path_of(devpi, "root/pypi", "six", f"six-{number}.0.tar.gz")).status_code
        for number in range(len(urls))
    ]
    devpi.stop()
    assert told == [424] * 5 + [200]
    assert [path for path in upstream.paths() if path.startswith("http")] == [urls[-1]]


def test_credentials_go_to_the_own_server_alone(devpi: Devpi, upstream: Upstream, name: str) -> None:
    file = Origin(upstream, SDIST, BIG)
    # The same server under another name.
    elsewhere = upstream.url.replace("127.0.0.1", "localhost")
    upstream.page("six", [file.entry, file.entry | {"filename": "six-2.0.tar.gz", "url": f"{elsewhere}/files/{SDIST}"}])
    file.script = [other(b"", status=302, Location=f"{elsewhere}/files/{SDIST}")]
    port = upstream.url.rpartition(":")[2]
    url = upstream.url.replace("//", "//user:hush@") + "/simple/"
    devpi.declare(
        f"root/{name}",
        type="mirror",
        mirror_url=url,
        mirror_no_project_list=True,
        volatile=False,
        file_hosts=[f"localhost:{port}"],
    )
    for version in ("six-1.0.tar.gz", "six-2.0.tar.gz"):
        assert devpi.get(path_of(devpi, f"root/{name}", "six", version)).content == BIG
    told = [(headers["Host"].partition(":")[0], "Authorization" in headers) for _, _, headers in upstream.asked]
    assert told == [("127.0.0.1", True), ("127.0.0.1", True), ("localhost", False), ("localhost", False)]


# ---- where it cannot be stored ----------------------------------------------------------------------------------


def test_full_disk_costs_speed_and_no_files(start_devpi: Callable[..., Devpi], upstream: Upstream) -> None:
    content = noise(3 << 20)
    file, second = Origin(upstream, SDIST, content), Origin(upstream, "six-2.0.tar.gz", content)
    upstream.page("six", [file.entry, second.entry])
    devpi = start_devpi()
    devpi.mirror("root/pypi", upstream)
    path = path_of(devpi, "root/pypi", "six", SDIST)
    assert devpi.process
    # No file of it may be larger: as a full disk, it ends a write with an error.
    resource.prlimit(devpi.process.pid, resource.RLIMIT_FSIZE, (2 << 20, resource.RLIM_INFINITY))
    assert devpi.get(path).content == content
    told = ended(devpi, path)
    assert (told.status_code, told.headers["X-Lanmirror-Status"]) == (403, "507")
    assert devpi.get(path).content == content
    assert not is_stored(devpi, path)
    assert len(file.asked) == 2
    assert devpi.get(path_of(devpi, "root/pypi", "six", second.name)).content == content
    # Wrong bytes are broken off all the same.
    file.script = [other(content[:-1] + b"x")]
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        devpi.get(path)
    resource.prlimit(devpi.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    until = time.monotonic() + LONG
    while not is_stored(devpi, path) and time.monotonic() < until:
        assert devpi.get(path).content == content
        ended(devpi, path)
    assert is_stored(devpi, path)
    assert devpi.log.count("files cannot be stored") == 1
    assert list((devpi.data / ".lanmirror-downloads").iterdir()) == []
    devpi.stop()


def test_file_that_was_deleted_is_fetched_again(devpi: Devpi, upstream: Upstream, index: str, origin: Origin) -> None:
    path = path_of(devpi, index, "six", SDIST)
    devpi.get(path)
    assert ended(devpi, path).status_code == 204
    devpi.declare(index, volatile=True)
    assert requests.delete(devpi.url + path, headers=devpi.token(), timeout=LONG).ok
    assert not is_stored(devpi, path)
    assert devpi.get(path).content == BIG
    assert ended(devpi, path).status_code == 204
    # As the eviction does it, which tells devpi nothing.
    (devpi.data / "+files" / path.lstrip("/")).unlink()
    assert devpi.get(path).content == BIG
    assert ended(devpi, path).status_code == 204
    assert len(origin.asked) == 3


class Bare(Devpi):
    """devpi without the plugin, as a server has it that was set up by an older lanmirror."""

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "PYTHONPATH": ""}


def test_entries_of_before_the_plugin_are_good_until_the_upstream_is_another_one(
    own_devpi: Devpi, upstream: Upstream
) -> None:
    devpi = own_devpi
    devpi.stop()
    bare = Bare(devpi.venv, devpi.data, {}, port=devpi.port)
    names = [f"six-{number}.0.tar.gz" for number in range(4)]
    files = [
        Origin(upstream, name, noise(1000 + n), **({"hashes": {}} if n % 2 else {})) for n, name in enumerate(names)
    ]
    upstream.page("six", [file.entry for file in files])
    bare.start()
    bare.mirror("root/pypi", upstream)
    paths = [path_of(bare, "root/pypi", "six", name) for name in names]
    bare.stop()
    devpi.start()
    # The upstream gives no page any more.
    upstream.answer["/simple/six/"] = 503, {}, b""
    assert [devpi.get(path).content for path in paths[:2]] == [file.content for file in files[:2]]
    upstream.page("six", [upstream.file("six-9.0.tar.gz", b"nine")])
    upstream.answer["/new/six/"] = upstream.answer["/simple/six/"]
    devpi.declare("root/pypi", mirror_url=f"{upstream.url}/new/")
    assert [devpi.get(path).status_code for path in paths] == [200, 200, 200, 404]


def test_path_that_no_page_has_is_no_file(devpi: Devpi, index: str, origin: Origin) -> None:
    for path in ("+f/000/0000000000000/six-1.0.tar.gz", "+f/..%2f..%2f.sqlite", "+e/x/six-1.0.tar.gz", "+f/a/b"):
        assert devpi.get(f"/{index}/{path}").status_code == 404
        assert ended(devpi, f"/{index}/{path}").status_code == 403
    assert origin.asked == []


def test_url_of_a_file_is_enough_where_its_page_was_never_read(devpi: Devpi, index: str, origin: Origin) -> None:
    sha256 = hashlib.sha256(BIG).hexdigest()
    assert devpi.get(f"/{index}/+f/{sha256[:3]}/{sha256[3:16]}/{SDIST}").content == BIG


def test_leftovers_of_a_crash_are_deleted(own_devpi: Devpi) -> None:
    left: Path = own_devpi.data / ".lanmirror-downloads" / "1-1"
    left.write_bytes(b"half")
    own_devpi.restart()
    assert not left.exists()


@pytest.mark.parametrize("right", [True, False])
def test_file_that_nobody_has_is_pushed_to_a_stage(devpi: Devpi, upstream: Upstream, index: str, right: bool) -> None:
    file = Origin(upstream, SDIST, BIG)
    upstream.page("six", [file.entry])
    file.script = [cut(300_000)] if right else [other(BIG[:-1] + b"x")]
    path = path_of(devpi, index, "six", SDIST)
    devpi.declare(f"{index}-dev", type="stage", bases=[])
    pushed = devpi.push(index, "1.0", f"{index}-dev")
    assert pushed.ok == right, pushed.text
    assert is_stored(devpi, path) == right
    if right:
        assert devpi.get(path_of(devpi, f"{index}-dev", "six", SDIST)).content == BIG
        assert devpi.get(path).content == BIG
        assert len(file.asked) == 2
