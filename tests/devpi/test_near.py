"""A mirror whose pages come from its upstream, and whose files come from near places."""

from __future__ import annotations

import hashlib
import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import requests

from roles.devpi.files.lanmirror_ops import health
from roles.devpi.files.lanmirror_ops.metrics import metrics
from tests.devpi.conftest import Devpi, Upstream, serving
from tests.devpi.origin import LONG, Origin, Step, cut, noise, other, path_of, paused, plain, wheel
from tests.devpi.test_clients import Clients, clients, tools
from tests.devpi.test_files import ended, is_stored, stream
from tests.devpi.test_mirror import names

__all__ = ["clients", "tools"]
BIG = noise(1 << 20)
WRONG = b"x" + BIG[1:]
SDIST, NEXT = "six-1.0.tar.gz", "six-2.0.tar.gz"
WHEEL = "six-1.0-py3-none-any.whl"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where devpi says how places answer."""
    return tmp_path_factory.mktemp("told") / "upstreams.json"


@pytest.fixture(scope="module")
def devpi(start_devpi: Callable[..., Devpi], told: Path) -> Iterator[Devpi]:
    """Return a devpi that knows no host of other tests."""
    devpi = start_devpi(lanmirror_upstreams=str(told))
    yield devpi
    devpi.stop()


@pytest.fixture(scope="module")
def ports() -> Iterator[ExitStack]:
    """Hold the ports of servers that are gone: devpi leaves their hosts alone, and no new one may have them."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def near(ports: ExitStack) -> Iterator[Upstream]:
    """Run a near place."""
    with serving() as ours:
        yield ours
    held = ports.enter_context(socket.socket())
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", int(ours.url.rpartition(":")[2])))


def folder(name: str) -> str:
    """Return the folder that the official index has for a file of such a name."""
    digits = hashlib.blake2b(name.encode(), digest_size=32).hexdigest()
    return f"/packages/{digits[:2]}/{digits[2:4]}/{digits[4:]}"


class Both:
    """A file of six at the upstream, whose page tells it, and at a near place below `/pypi`."""

    def __init__(self, upstream: Upstream, near: Upstream, name: str = SDIST, content: bytes = BIG, **told: Any):
        self.far = Origin(upstream, name, content, folder(name), **told)
        self.near = Origin(near, name, content, f"/pypi{folder(name)}")

    @property
    def asked(self) -> tuple[int, int]:
        """How often its bytes were asked for: at the near place, and at the upstream."""
        return len(self.near.asked), len(self.far.asked)


@pytest.fixture
def both(upstream: Upstream, near: Upstream) -> list[Both]:
    """Return two files of 1 MiB on the page of six."""
    found = [Both(upstream, near, name) for name in (SDIST, NEXT)]
    upstream.page("six", [file.far.entry for file in found])
    return found


@pytest.fixture
def index(devpi: Devpi, upstream: Upstream, near: Upstream, name: str) -> str:
    """Return a mirror of the upstream with files from the near place."""
    devpi.mirror(f"root/{name}", upstream, files_from=[f"{near.url}/pypi/"])
    return f"root/{name}"


def paths(devpi: Devpi, index: str) -> tuple[str, str]:
    """Return the paths of the two files."""
    first, second = (path_of(devpi, index, "six", name) for name in (SDIST, NEXT))
    return first, second


def refused(status: int) -> Step:
    return other(b"no", status=status)


def test_page_comes_from_the_first_upstream_and_bytes_from_the_near_place(
    devpi: Devpi, index: str, both: list[Both], near: Upstream
) -> None:
    path, _ = paths(devpi, index)
    go_on = threading.Event()
    both[0].near.script = [paused(800_000, go_on)]
    # They reach the client as they come.
    first = stream(devpi, path)
    begun = first.raw.read(700_000)
    go_on.set()
    assert begun + first.raw.read() == BIG
    assert ended(devpi, path).status_code == 204
    assert devpi.get(path).content == BIG
    assert both[0].asked == (1, 0)
    assert "Authorization" not in both[0].near.asked[0]
    assert near.paths() == [both[0].near.path]


@pytest.mark.parametrize("status", [403, 404, 429, 503])
def test_page_tells_where_a_file_is_that_the_near_place_does_not_give(
    devpi: Devpi, index: str, both: list[Both], status: int
) -> None:
    for file in both:
        file.near.script = [refused(status)]
    for path in paths(devpi, index):
        assert devpi.get(path).content == BIG
        assert ended(devpi, path).status_code == 204
    # Who lacks one file may have the next; who turns us away is left alone.
    assert [file.asked for file in both] == [(1, 1), (1 if status == 404 else 0, 1)]


def test_near_place_that_cannot_be_reached_or_that_leads_inside_is_passed_by(
    devpi: Devpi, upstream: Upstream, both: list[Both], near: Upstream, name: str
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        where = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        devpi.mirror(f"root/{name}", upstream, files_from=[where, f"{near.url}/pypi/"])
        inside = requests.get(f"{devpi.url}/+api", timeout=LONG).url
        both[0].near.script = [other(b"", status=302, Location=inside)]
        assert devpi.get(paths(devpi, f"root/{name}")[0]).content == BIG
    assert both[0].asked == (1, 1)
    assert "127.0.0.1 is an inside address" in devpi.log


def test_silent_near_place_costs_one_time_out(
    start_devpi: Callable[..., Devpi],
    upstream: Upstream,
    near: Upstream,
    second: Upstream,
    silent: Callable[[BaseHTTPRequestHandler], None],
) -> None:
    # One says nothing, and another one nothing more.
    devpi, never = start_devpi(request_timeout=1), threading.Event()
    for index, place in (("root/one", near), ("root/two", second)):
        files = [Both(upstream, place, name) for name in (SDIST, NEXT)]
        upstream.page("six", [file.far.entry for file in files])
        if place is near:
            near.answer[files[0].near.path] = silent
        files[0].near.script = [paused(300_000, never)]
        devpi.mirror(index, upstream, files_from=[f"{place.url}/pypi/"])
        for path in paths(devpi, index):
            assert devpi.get(path).content == BIG
        assert len(files[1].near.asked) == 0
        assert [each.get("Range") for each in files[0].far.asked][-1] == (None if place is near else "bytes=300000-")
    never.set()
    devpi.stop()


@pytest.mark.parametrize("ranges", [True, False])
def test_page_tells_where_the_rest_is_of_a_file_that_breaks_off(
    devpi: Devpi, index: str, both: list[Both], ranges: bool
) -> None:
    both[0].near.script = [cut(300_000)]
    # It has its own ETag: what counts is the hash.
    both[0].near.etag, both[0].far.ranges = '"near"', ranges
    path, after = paths(devpi, index)
    assert devpi.get(path).content == BIG
    assert ended(devpi, path).status_code == 204
    assert [(each.get("Range"), each.get("If-Range")) for each in both[0].far.asked] == [("bytes=300000-", None)]
    assert devpi.get(after).content == BIG
    assert [file.asked for file in both] == [(1, 1), (0, 1)]


def test_next_near_place_is_asked_in_order_and_who_was_left_alone_last_of_all(
    devpi: Devpi, upstream: Upstream, near: Upstream, second: Upstream, name: str
) -> None:
    asked: list[str] = []

    def note(where: str, step: Step) -> Step:
        def noted(origin: Origin, handler: BaseHTTPRequestHandler) -> None:
            asked.append(where)
            step(origin, handler)

        return noted

    files = [Both(upstream, near, file) for file in (SDIST, NEXT)]
    upstream.page("six", [file.far.entry for file in files])
    others = [Origin(second, file, BIG, folder(file)) for file in (SDIST, NEXT)]
    devpi.mirror(f"root/{name}", upstream, files_from=[f"{near.url}/pypi", second.url])
    path, after = paths(devpi, f"root/{name}")
    files[0].near.script, others[0].script = [note("near", refused(503))], [note("second", cut(300_000))]
    files[0].far.script = [note("far", plain)]
    assert devpi.get(path).content == BIG
    assert asked == ["near", "second", "far"]
    # Both failed just now, and their own order stays.
    files[1].near.script, others[1].script = [note("near", refused(404))], [note("second", plain)]
    files[1].far.script = [note("far", refused(404))]
    assert devpi.get(after).content == BIG
    assert asked[3:] == ["far", "near", "second"]


def test_place_that_is_back_is_used_again(
    start_devpi: Callable[..., Devpi], upstream: Upstream, near: Upstream, tmp_path: Path
) -> None:
    devpi = start_devpi(lanmirror_host_pause=2, lanmirror_upstreams=str(tmp_path / "told"))
    files = [Both(upstream, near, f"six-{version}.0.tar.gz") for version in range(3)]
    upstream.page("six", [file.far.entry for file in files])
    devpi.mirror("root/pypi", upstream, files_from=[f"{near.url}/pypi/"])
    files[0].near.script = [refused(503)]
    said = []
    for file in files:
        assert devpi.get(path_of(devpi, "root/pypi", "six", file.near.name)).content == BIG
        said += [place.why for place in health.places(tmp_path / "told")]
        if file is files[0]:
            time.sleep(2)
    assert [file.asked for file in files] == [(1, 1), (1, 0), (1, 0)]
    assert said == ["the upstream answers 503", "", ""]
    devpi.stop()


# ---- wrong bytes ------------------------------------------------------------------------------------------------


def test_wrong_bytes_break_off_the_first_client_and_the_others_get_those_of_the_next_place(
    devpi: Devpi, index: str, both: list[Both], told: Path
) -> None:
    go_on = threading.Event()
    both[0].near.content, both[0].near.script = WRONG, [paused(800_000, go_on)]
    path, after = paths(devpi, index)
    first = stream(devpi, path)
    assert first.raw.read(100) == WRONG[:100]
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ended, devpi, path), pool.submit(devpi.get, path)]
        go_on.set()
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            _ = first.content
        assert waiting[0].result().status_code == 204
        assert waiting[1].result().content == BIG
    # Nobody asks there again for a while.
    assert devpi.get(after).content == BIG
    assert [file.asked for file in both] == [(1, 1), (0, 1)]
    where = both[0].near.entry["url"].partition("packages/")[0]
    said = json.loads(told.read_text())[index]["wrong"][where]
    assert said["count"] == 1
    text = f"{both[0].near.entry['url']} did not give the bytes that the page tells: its sha256 is"
    assert text in said["why"]
    assert text in devpi.log
    places = [place for place in health.places(told) if place.index == index]
    assert [text in why for why in health.warnings_of(places).values()] == [True]
    figures = metrics({}, {}, {}, [], places)
    assert f'lanmirror_pypi_place_wrong_total{{index="{index}",url="{where}"}} 1\n' in figures
    assert f'lanmirror_pypi_place_up{{index="{index}",url="{where}"}} 1\n' in figures


def test_slow_client_gets_no_right_bytes_after_wrong_ones(devpi: Devpi, index: str, both: list[Both]) -> None:
    """The next place has given all before the first client has read what was wrong."""
    content = noise(40 << 20)
    for origin in (both[0].near, both[0].far):
        origin.content = content
    both[0].near.content = b"x" + content[1:]
    both[0].far.entry["hashes"] = {"sha256": hashlib.sha256(content).hexdigest()}
    both[0].far.entry["size"] = len(content)
    both[0].far.upstream.page("six", [both[0].far.entry, both[1].far.entry])
    path, _ = paths(devpi, index)
    first = stream(devpi, path)
    first.raw.read(100)
    assert ended(devpi, path).status_code == 204
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        _ = first.content
    assert devpi.get(path).content == content


def longer(origin: Origin, handler: BaseHTTPRequestHandler) -> None:
    """Tell no length, and send more than the page tells."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(origin.content + b"x")
    handler.close_connection = True


# It is so small that all of it is checked before, or it has another size than its page tells.
IN_TIME = {"small": other(b"wrong"), "of another size": other(BIG[:-1]), "longer than it says": longer}


@pytest.mark.parametrize("why", IN_TIME)
def test_client_sees_nothing_of_wrong_bytes_that_show_in_time(
    devpi: Devpi, upstream: Upstream, near: Upstream, index: str, why: str
) -> None:
    content, step = BIG if why == "of another size" else b"right", IN_TIME[why]
    file = Both(upstream, near, content=content)
    file.near.script = [step]
    upstream.page("six", [file.far.entry])
    path = path_of(devpi, index, "six", SDIST)
    answer = devpi.get(path)
    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["Cache-Control"] == "no-store"
    assert ended(devpi, path).status_code == 204
    assert file.asked == (1, 1)
    assert f"{file.near.entry['url']} did not give the bytes" in devpi.log


def test_parts_of_two_places_that_make_no_file_are_not_kept(devpi: Devpi, index: str, both: list[Both]) -> None:
    both[0].near.content, both[0].near.script = WRONG, [cut(300_000)]
    path, _ = paths(devpi, index)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        devpi.get(path)
    assert ended(devpi, path).status_code == 204
    assert devpi.get(path).content == BIG
    # The rest, and then the whole.
    assert [each.get("Range") for each in both[0].far.asked] == ["bytes=300000-", None]
    assert f"{both[0].near.entry['url']} and {both[0].far.entry['url']} did not give the bytes" in devpi.log


def test_file_that_is_wrong_everywhere_is_refused_as_before(devpi: Devpi, index: str, both: list[Both]) -> None:
    both[0].near.content = both[0].far.content = WRONG
    path, _ = paths(devpi, index)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        devpi.get(path)
    assert ended(devpi, path).headers["X-Lanmirror-Status"] == "502"
    assert not is_stored(devpi, path)
    assert both[0].asked == (1, 1)


def test_wrong_bytes_that_cannot_be_stored_are_not_asked_for_again(
    start_devpi: Callable[..., Devpi], upstream: Upstream, near: Upstream
) -> None:
    devpi, content = start_devpi(), noise(3 << 20)
    file = Both(upstream, near, content=content)
    file.near.content = content[:-1] + b"x"
    upstream.page("six", [file.far.entry])
    devpi.mirror("root/pypi", upstream, files_from=[f"{near.url}/pypi/"])
    path = path_of(devpi, "root/pypi", "six", SDIST)
    assert devpi.process
    # As a full disk, it ends a write with an error.
    resource.prlimit(devpi.process.pid, resource.RLIMIT_FSIZE, (2 << 20, resource.RLIM_INFINITY))
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        devpi.get(path)
    ended(devpi, path)
    assert devpi.get(path).content == content
    assert file.asked == (1, 1)
    devpi.stop()


def test_file_that_is_pushed_comes_from_the_next_place_where_bytes_were_wrong(
    devpi: Devpi, index: str, both: list[Both]
) -> None:
    both[0].near.content = WRONG
    paths(devpi, index)
    devpi.declare(f"{index}-dev", type="stage", bases=[])
    pushed = devpi.push(index, "1.0", f"{index}-dev")
    assert pushed.ok, pushed.text
    assert devpi.get(path_of(devpi, f"{index}-dev", "six", SDIST)).content == BIG
    assert both[0].asked == (1, 1)


# ---- what may come from there -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page",
    [
        (folder(SDIST), {"hashes": {}}),
        (folder(SDIST), {"hashes": {"md5": hashlib.md5(BIG).hexdigest()}}),
        ("/packages/source/s/six", {}),
        ("/files", {}),
    ],
    ids=["no hash", "md5", "old path", "other path"],
)
def test_file_without_a_sha256_or_at_another_path_comes_from_where_its_page_leads(
    devpi: Devpi, upstream: Upstream, near: Upstream, index: str, page: tuple[str, dict[str, Any]]
) -> None:
    at, more = page
    file = Origin(upstream, SDIST, BIG, at, **more)
    upstream.page("six", [file.entry])
    assert devpi.get(path_of(devpi, index, "six", SDIST)).content == BIG
    assert (len(file.asked), near.asked) == (1, [])


def test_place_that_the_page_leads_to_is_asked_once(devpi: Devpi, upstream: Upstream, name: str) -> None:
    file = Origin(upstream, SDIST, BIG, folder(SDIST))
    file.script = [refused(404)]
    upstream.page("six", [file.entry])
    devpi.mirror(f"root/{name}", upstream, files_from=[upstream.url])
    assert devpi.get(path_of(devpi, f"root/{name}", "six", SDIST)).status_code == 404
    assert len(file.asked) == 1


def test_part_of_a_file_and_what_is_known_of_it_come_from_where_its_page_leads(
    devpi: Devpi, upstream: Upstream, near: Upstream, index: str
) -> None:
    file = Both(upstream, near, size=None)
    upstream.page("six", [file.far.entry])
    path = path_of(devpi, index, "six", SDIST)
    # No hash tells whether a part is right.
    assert devpi.get(path, Range="bytes=-1000").content == BIG[-1000:]
    assert requests.head(devpi.url + path, timeout=LONG).headers["Content-Length"] == str(len(BIG))
    assert file.asked == (0, 1)


@pytest.mark.parametrize("how", ["right", "wrong", "missing", "no hash"])
def test_metadata_comes_from_the_near_place_where_its_hash_is_told(
    devpi: Devpi, upstream: Upstream, near: Upstream, index: str, how: str
) -> None:
    content, metadata = wheel("six", "1.0", 1000)
    promised = True if how == "no hash" else {"sha256": hashlib.sha256(metadata).hexdigest()}
    file = Both(upstream, near, WHEEL, content, **{"core-metadata": promised})
    beside = [
        Origin(place, f"{WHEEL}.metadata", metadata, f"{below}{folder(WHEEL)}")
        for place, below in ((near, "/pypi"), (upstream, ""))
    ]
    if how == "wrong":
        beside[0].content = metadata.replace(b"six", b"xis")
    if how == "missing":
        beside[0].script = [refused(404)]
    upstream.page("six", [file.far.entry])
    path = f"{path_of(devpi, index, 'six', WHEEL)}.metadata"
    assert devpi.get(path).content == metadata
    assert ended(devpi, path).status_code == 204
    asked = {"right": (1, 0), "wrong": (1, 1), "missing": (1, 1), "no hash": (0, 1)}[how]
    assert tuple(len(place.asked) for place in beside) == asked
    # It is not made from the wheel, and who gave a wrong one is not asked for that.
    assert file.asked == (0, 0)
    assert devpi.get(path.removesuffix(".metadata")).content == content
    assert file.asked == ((0, 1) if how == "wrong" else (1, 0))


# ---- the setting ------------------------------------------------------------------------------------------------


def test_changed_list_counts_at_once_and_who_is_not_in_it_is_forgotten(
    devpi: Devpi, index: str, both: list[Both], told: Path
) -> None:
    both[0].near.content = WRONG
    path, after = paths(devpi, index)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        devpi.get(path)
    assert ended(devpi, path).status_code == 204
    devpi.declare(index, files_from=[], mirror_cache_expiry=0)
    assert names(devpi.get(f"/{index}/+simple/six/")) == [SDIST, NEXT]
    said = json.loads(told.read_text())[index]
    assert (said["places"], said["wrong"]) == ({}, {})
    assert devpi.get(after).content == BIG
    assert [file.asked for file in both] == [(1, 1), (0, 1)]


def test_pip_and_uv_install_bytes_of_the_near_place(
    devpi: Devpi, upstream: Upstream, near: Upstream, index: str, clients: Clients
) -> None:
    for project in ("six", "seven"):
        content, metadata = wheel(project, "1.0", 300_000)
        name = f"{project}-1.0-py3-none-any.whl"
        promised = {"core-metadata": {"sha256": hashlib.sha256(metadata).hexdigest()}}
        file = Both(upstream, near, name, content, **promised)
        near.answer[f"{file.near.path}.metadata"] = 200, {}, metadata
        upstream.page(project, [file.far.entry])
    new, simple, site = clients.tools / "new" / "bin", f"{devpi.url}/{index}/+simple/", clients.work / "site"
    pip = [str(new / "python"), "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--no-cache-dir"]
    uv = [str(new / "uv"), "pip", "install", "--no-config", "--no-cache"]
    for done in (
        clients.run(*pip, "--target", str(site), "--index-url", simple, "six"),
        clients.run(*uv, "--target", str(site), "--default-index", simple, "seven"),
    ):
        assert done.returncode == 0, done.stderr
    assert {"six.py", "seven.py"} <= {path.name for path in site.iterdir()}
    assert upstream.paths() == ["/simple/six/", "/simple/seven/"]
    assert sorted(path.rpartition("/")[2].partition("-")[0] for path in near.paths()) == ["seven"] * 2 + ["six"] * 2
