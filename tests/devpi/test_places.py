"""A mirror with several upstreams."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import requests

from roles.devpi.files.lanmirror_ops import health
from roles.devpi.files.lanmirror_ops.metrics import metrics
from tests.devpi.conftest import FILES, Devpi, Upstream
from tests.devpi.origin import LONG, path_of
from tests.devpi.test_mirror import names
from tests.devpi.test_replica import in_sync, pair

__all__ = ["pair"]
STATUSES = (403, 429, 503)


Three = tuple[Devpi, Upstream, Upstream, str]


@pytest.fixture
def own(devpi: Devpi, upstream: Upstream, second: Upstream, name: str) -> Three:
    """A devpi, two upstreams, and a name for an index."""
    return devpi, upstream, second, name


def two(devpi: Devpi, index: str, first: Upstream, second: Upstream, **settings: Any) -> None:
    """Have a mirror of two upstreams, whose pages are asked for each time."""
    settings = {"mirror_cache_expiry": 0, **settings}
    devpi.mirror(index, first, fallback_urls=[f"{second.url}/simple/"], **settings)


def files(upstream: Upstream, *versions: str, **told: Any) -> list[dict[str, Any]]:
    """Return the entries of files of six."""
    return [upstream.file(f"six-{version}.tar.gz", version.encode(), **told) for version in versions]


def given(*versions: str) -> list[str]:
    """Return the names of files of six."""
    return [f"six-{version}.tar.gz" for version in versions]


@pytest.mark.parametrize("status", STATUSES)
def test_next_upstream_is_asked_and_the_host_that_failed_is_left_alone(
    devpi: Devpi, upstream: Upstream, second: Upstream, name: str, status: int
) -> None:
    for project in ("six", "seven"):
        upstream.answer[f"/simple/{project}/"] = status, {}, b""
        second.page(project, [second.file(f"{project}-1.0.tar.gz", project.encode())])
    # A 403 could be of this project alone.
    upstream.answer["/simple/"] = status, {}, b""
    two(devpi, f"root/{name}", upstream, second)
    assert names(devpi.get(f"/root/{name}/+simple/six/")) == ["six-1.0.tar.gz"]
    asked = len(upstream.asked)
    assert names(devpi.get(f"/root/{name}/+simple/seven/")) == ["seven-1.0.tar.gz"]
    assert names(devpi.get(f"/root/{name}/+simple/six/")) == ["six-1.0.tar.gz"]
    assert len(upstream.asked) == asked
    # And its file comes from where its page came from.
    assert devpi.get(path_of(devpi, f"root/{name}", "six", "six-1.0.tar.gz")).content == b"six"


def test_silent_upstream_costs_a_cold_project_one_time_out_and_the_next_none(
    start_devpi: Callable[..., Devpi],
    upstream: Upstream,
    second: Upstream,
    silent: Callable[[BaseHTTPRequestHandler], None],
) -> None:
    devpi = start_devpi(request_timeout=1)
    projects = [f"p{n}" for n in range(5)]
    for project in projects:
        upstream.answer[f"/simple/{project}/"] = silent
        second.page(project, [second.file(f"{project}-1.0.tar.gz", b"x")])
    two(devpi, "root/pypi", upstream, second)
    for project in projects:
        assert names(devpi.get(f"/root/pypi/+simple/{project}/")) == [f"{project}-1.0.tar.gz"]
    assert upstream.paths() == ["/simple/p0/"]
    devpi.stop()


def test_upstream_that_is_back_is_used_again(
    start_devpi: Callable[..., Devpi], upstream: Upstream, second: Upstream
) -> None:
    devpi = start_devpi(lanmirror_host_pause=0)
    second.page("six", files(second, "1.0"))
    two(devpi, "root/pypi", upstream, second)
    # It flaps: whatever it does, the page is there, and never older than before.
    for turn in range(1, 4):
        upstream.answer["/simple/six/"] = 503, {}, b""
        shown = names(devpi.get("/root/pypi/+simple/six/"))
        upstream.page("six", files(upstream, *[f"1.{n}" for n in range(turn + 1)]))
        assert names(devpi.get("/root/pypi/+simple/six/")) == given(*[f"1.{n}" for n in range(turn + 1)])
        assert shown == given(*[f"1.{n}" for n in range(turn)])
    devpi.stop()


def test_page_is_asked_for_by_the_validators_of_its_own_upstream(
    devpi: Devpi, upstream: Upstream, second: Upstream, name: str
) -> None:
    upstream.page("six", files(upstream, "1.0"))
    second.page("six", files(second, "1.0"))
    upstream.add_headers("/simple/six/", ETag='"one"')
    second.add_headers("/simple/six/", ETag='"two"')
    two(devpi, f"root/{name}", upstream, second)
    assert names(devpi.get(f"/root/{name}/+simple/six/")) == given("1.0")
    answer = upstream.answer["/simple/six/"]
    upstream.answer["/simple/six/"] = 404, {}, b""
    for _ in range(2):
        assert names(devpi.get(f"/root/{name}/+simple/six/")) == given("1.0")
    assert [asked.get("If-None-Match") for _, _, asked in second.asked] == [None, '"two"']
    upstream.answer["/simple/six/"] = answer
    for _ in range(2):
        assert names(devpi.get(f"/root/{name}/+simple/six/")) == given("1.0")
    assert [asked.get("If-None-Match") for _, _, asked in upstream.asked] == [None, '"one"', None, None, '"one"']


@pytest.mark.parametrize(
    ("first", "other", "shown"),
    [
        # The serial tells it where both have one.
        (("7", "1.0", "1.1"), ("6", "1.0", "1.1", "0.1"), ("1.0", "1.1")),
        (("7", "1.0", "1.1"), ("8", "1.1"), ("1.1",)),
        # Else the files do.
        (("7", "1.0", "1.1"), ("", "1.0"), ("1.0", "1.1")),
        (("7", "1.0"), ("", "1.0", "1.1"), ("1.0", "1.1")),
        # Each has one that the other has not: the order of the list.
        (("", "1.0", "1.1"), ("", "1.0", "0.9"), ("1.0", "1.1")),
    ],
)
def test_older_page_of_another_upstream_is_not_taken(
    own: Three, first: tuple[str, ...], other: tuple[str, ...], shown: tuple[str, ...]
) -> None:
    devpi, upstream, second, name = own
    for place, (told, *versions) in ((upstream, first), (second, other)):
        place.page("six", files(place, *versions))
        place.add_headers("/simple/six/", **({"X_PyPI_Last_Serial": told} if told else {}))
    two(devpi, f"root/{name}", upstream, second)
    assert names(devpi.get(f"/root/{name}/+simple/six/")) == given(*first[1:])
    upstream.answer["/simple/six/"] = 503, {}, b""
    assert names(devpi.get(f"/root/{name}/+simple/six/")) == given(*shown)
    assert second.paths() == ["/simple/six/"]


def test_older_page_is_taken_when_nobody_has_had_a_newer_one_for_too_long(
    start_devpi: Callable[..., Devpi], upstream: Upstream, second: Upstream
) -> None:
    devpi = start_devpi(lanmirror_max_stale=0)
    upstream.page("six", files(upstream, "1.0", "1.1"))
    second.page("six", files(second, "1.0"))
    two(devpi, "root/pypi", upstream, second)
    assert names(devpi.get("/root/pypi/+simple/six/")) == given("1.0", "1.1")
    upstream.answer["/simple/six/"] = 503, {}, b""
    assert names(devpi.get("/root/pypi/+simple/six/")) == given("1.0")
    devpi.stop()


def test_first_upstream_that_lags_does_not_bring_an_older_page_back(
    start_devpi: Callable[..., Devpi], upstream: Upstream, second: Upstream
) -> None:
    devpi = start_devpi(lanmirror_host_pause=0)
    upstream.answer["/simple/six/"] = 503, {}, b""
    second.page("six", files(second, "1.0", "1.1"))
    two(devpi, "root/pypi", upstream, second)
    assert names(devpi.get("/root/pypi/+simple/six/")) == given("1.0", "1.1")
    upstream.page("six", files(upstream, "1.0"))
    assert names(devpi.get("/root/pypi/+simple/six/")) == given("1.0", "1.1")
    # The other is asked as well: it may have a newer one.
    second.page("six", files(second, "1.0", "1.1", "1.2"))
    assert names(devpi.get("/root/pypi/+simple/six/")) == given("1.0", "1.1", "1.2")
    devpi.stop()


def test_page_with_another_hash_is_refused_and_named_and_the_first_stands(
    start_devpi: Callable[..., Devpi], upstream: Upstream, second: Upstream, tmp_path: Path
) -> None:
    devpi = start_devpi(lanmirror_upstreams=str(tmp_path / "upstreams.json"))
    upstream.page("six", files(upstream, "1.0"))
    second.page("six", [second.file("six-1.0.tar.gz", b"swapped"), *files(second, "1.1")])
    two(devpi, "root/pypi", upstream, second)
    assert names(devpi.get("/root/pypi/+simple/six/")) == given("1.0")
    first = devpi.get("/root/pypi/+simple/six/").json()
    upstream.answer["/simple/six/"] = 503, {}, b""
    assert devpi.get("/root/pypi/+simple/six/").json() == first
    refused = f"the page of six at {second.url}/simple/ names six-1.0.tar.gz with another hash than the known one"
    assert refused in devpi.log
    told = json.loads((tmp_path / "upstreams.json").read_text())["root/pypi"]
    wrong = told["wrong"][f"{second.url}/simple/"]
    assert refused in wrong["why"]
    assert f"{upstream.url}/simple/" in wrong["why"]
    assert wrong["count"] == 1
    assert told["places"][f"{upstream.url}/simple/"]["why"] == "503 status"
    # The watchdog says both, and that the mirror has an upstream all the same.
    places = health.places(tmp_path / "upstreams.json")
    upstreams = health.upstreams(tmp_path / "upstreams.json")
    found = health.judge(
        silent="",
        database="",
        damage="",
        devpi=health.Devpi(),
        measured=[],
        upstreams=upstreams,
        malware="",
        places=places,
    )
    assert [(refused in text, "503 status" in text) for text in found.warnings.values()].count((True, False)) == 1
    assert f"{upstream.url}/simple/ gives root/pypi nothing of use" in " ".join(found.warnings.values())
    figures = metrics({}, {}, {}, [], places)
    assert f'lanmirror_pypi_place_up{{index="root/pypi",url="{upstream.url}/simple/"}} 0\n' in figures
    assert f'lanmirror_pypi_place_wrong_total{{index="root/pypi",url="{second.url}/simple/"}} 1\n' in figures
    devpi.stop()


def test_page_keeps_the_dates_that_another_upstream_does_not_tell(
    devpi: Devpi, upstream: Upstream, second: Upstream, name: str
) -> None:
    upstream.page("six", files(upstream, "1.0", **{"upload-time": "2020-01-01T00:00:00Z"}))
    second.page("six", files(second, "1.0", "1.1"))
    two(devpi, f"root/{name}", upstream, second, min_age_days=7)
    assert names(devpi.get(f"/root/{name}/+simple/six/")) == given("1.0")
    upstream.answer["/simple/six/"] = 503, {}, b""
    # The page is the second's, as its file of before shows; its new file has no date, and the rules hide it.
    assert names(devpi.get(f"/root/{name}/+simple/six/")) == given("1.0")
    assert devpi.get(path_of(devpi, f"root/{name}", "six", "six-1.0.tar.gz")).content == b"1.0"
    assert [path for path in second.paths() if path.startswith("/files/")] == ["/files/six-1.0.tar.gz"]


def test_project_that_only_the_next_upstream_denies_is_asked_for_again(
    start_devpi: Callable[..., Devpi], upstream: Upstream, second: Upstream
) -> None:
    devpi = start_devpi(lanmirror_host_pause=0)
    upstream.answer["/simple/six/"] = 503, {}, b""
    two(devpi, "root/pypi", upstream, second, mirror_cache_expiry=1800)
    assert devpi.get("/root/pypi/+simple/six/").status_code == 404
    upstream.page("six", files(upstream, "1.0"))
    assert names(devpi.get("/root/pypi/+simple/six/")) == given("1.0")
    # What the first denies is denied.
    second.page("seven", [second.file("seven-1.0.tar.gz", b"7")])
    assert devpi.get("/root/pypi/+simple/seven/").status_code == 404
    assert second.paths() == ["/simple/six/"]
    devpi.stop()


def test_pages_of_one_that_is_no_upstream_any_more_are_not_given(
    devpi: Devpi, upstream: Upstream, second: Upstream, name: str
) -> None:
    upstream.answer["/simple/six/"] = 503, {}, b""
    second.page("six", files(second, "1.0"))
    two(devpi, f"root/{name}", upstream, second, mirror_cache_expiry=1800)
    assert names(devpi.get(f"/root/{name}/+simple/six/")) == given("1.0")
    devpi.mirror(f"root/{name}", upstream, fallback_urls=[])
    assert devpi.get(f"/root/{name}/+simple/six/").status_code == 424


def test_no_request_for_a_known_project_fails_while_the_first_upstream_goes_silent(
    start_devpi: Callable[..., Devpi],
    upstream: Upstream,
    second: Upstream,
    silent: Callable[[BaseHTTPRequestHandler], None],
) -> None:
    devpi = start_devpi(request_timeout=1)
    projects = [f"p{n}" for n in range(6)]
    for each in (upstream, second):
        for project in projects:
            each.page(project, [each.file(f"{project}-1.0.tar.gz", b"x")])
    two(devpi, "root/pypi", upstream, second)
    for project in projects:
        assert names(devpi.get(f"/root/pypi/+simple/{project}/")) == [f"{project}-1.0.tar.gz"]
    for project in projects:
        upstream.answer[f"/simple/{project}/"] = silent
        second.page(project, [second.file(f"{project}-1.{n}.tar.gz", b"x") for n in range(2)])
    until, new = time.monotonic() + LONG, set[str]()
    while len(new) < len(projects):
        assert time.monotonic() < until, new
        for project in projects:
            shown = names(devpi.get(f"/root/pypi/+simple/{project}/"))
            assert f"{project}-1.0.tar.gz" in shown
            new |= {project} if len(shown) > 1 else set()
    devpi.stop()


def test_one_request_alone_tries_a_host_whose_pause_is_over(
    start_devpi: Callable[..., Devpi],
    upstream: Upstream,
    second: Upstream,
    silent: Callable[[BaseHTTPRequestHandler], None],
) -> None:
    # They come within the pause, and before that one is given up.
    devpi, projects = start_devpi(lanmirror_host_pause=8, request_timeout=8), [f"p{n}" for n in range(6)]
    for project in projects:
        upstream.answer[f"/simple/{project}/"] = silent
        second.page(project, [second.file(f"{project}-1.0.tar.gz", b"x")])
    upstream.answer["/simple/p0/"] = 503, {}, b""
    two(devpi, "root/pypi", upstream, second)
    assert names(devpi.get("/root/pypi/+simple/p0/")) == ["p0-1.0.tar.gz"]
    time.sleep(8)
    with ThreadPoolExecutor(len(projects)) as pool:
        for page in pool.map(devpi.get, [f"/root/pypi/+simple/{project}/" for project in projects[1:]]):
            assert len(names(page)) == 1
    assert len(upstream.paths()) == 2
    devpi.stop()


@pytest.mark.parametrize("key", ["fallback_urls", "files_from"])
def test_setting_is_a_list_of_urls_each_once(devpi: Devpi, upstream: Upstream, name: str, key: str) -> None:
    url = f"{devpi.url}/root/{name}"
    both: dict[str, Any] = {key: ["http://a.example.org/simple", "http://a.example.org/simple/"]}
    devpi.mirror(f"root/{name}", upstream, **both)

    def stored() -> Any:
        answer = requests.get(url, params={"no_projects": ""}, headers={"Accept": "application/json"}, timeout=LONG)
        return answer.json()["result"][key]

    assert stored() == ["http://a.example.org/simple/"]
    # A change of another setting leaves it.
    devpi.declare(f"root/{name}", title="other")
    assert stored() == ["http://a.example.org/simple/"]
    for wrong in ("ftp://a.example.org/", "http://u:secret@a.example.org/"):
        answer = requests.patch(url, json={key: [wrong]}, headers=devpi.token(), timeout=LONG)
        assert answer.status_code == 400
        assert key in answer.text
        assert "secret" not in answer.text


def test_replica_has_the_pages_and_the_files_of_the_fallback(
    pair: tuple[Devpi, Devpi],
    upstream: Upstream,
    second: Upstream,
    name: str,
) -> None:
    primary, replica = pair
    upstream.answer["/simple/six/"] = 503, {}, b""
    second.page("six", files(second, "1.0"))
    two(primary, f"root/{name}", upstream, second)
    in_sync(primary, replica)
    assert names(replica.get(f"/root/{name}/+simple/six/")) == given("1.0")
    assert replica.get(path_of(replica, f"root/{name}", "six", "six-1.0.tar.gz")).content == b"1.0"
    assert second.paths().count("/files/six-1.0.tar.gz") == 1


def test_replica_has_the_files_of_a_near_place_from_its_primary(
    pair: tuple[Devpi, Devpi], upstream: Upstream, second: Upstream, name: str
) -> None:
    primary, replica = pair
    folder = f"/packages/00/11/{'2' * 60}"
    upstream.page("six", [upstream.file("six-1.0.tar.gz", b"1.0", folder)])
    second.file("six-1.0.tar.gz", b"1.0", folder)
    primary.mirror(f"root/{name}", upstream, files_from=[second.url])
    in_sync(primary, replica)
    path = path_of(replica, f"root/{name}", "six", "six-1.0.tar.gz")
    assert replica.get(path).content == b"1.0"
    assert primary.get(f"/+lanmirror/stored{path}").status_code == 204
    assert (upstream.paths(), second.paths()) == (["/simple/six/"], [f"{folder}/six-1.0.tar.gz"])


def test_stage_on_such_a_mirror_has_its_pages(devpi: Devpi, upstream: Upstream, second: Upstream, name: str) -> None:
    upstream.answer["/simple/six/"] = 503, {}, b""
    second.page("six", files(second, "1.0"))
    two(devpi, f"root/{name}", upstream, second)
    devpi.declare(f"root/{name}-stage", type="stage", bases=[f"root/{name}"], volatile=True)
    assert names(devpi.get(f"/root/{name}-stage/+simple/six/")) == given("1.0")


def test_pause_ends_and_one_request_tries_the_host(venv_of_devpi: Path) -> None:
    program = """
from lanmirror_devpi import places
clock = [100.0]
places.time.monotonic = lambda: clock[0]
pauses, urls = places.Pauses(60), ["http://a.example.org/simple/", "http://b.example.org/simple/"]
def order():
    print(*(len(part) for part in pauses.in_order(urls)))
pauses.failed(urls[1])
order()
clock[0] += 60
# It is over, also for who did not come to ask this one.
order()
order()
pauses.trying(urls[1])
order()
pauses.answered(urls[1])
order()
"""
    told = subprocess.run(
        [str(venv_of_devpi / "bin" / "python"), "-c", program],
        env={"PYTHONPATH": str(FILES / "plugin")},
        capture_output=True,
        check=True,
        text=True,
    )
    assert told.stdout.splitlines() == ["1 1", "2 0", "2 0", "1 1", "2 0"]
