"""The page of a project as clients get it, of mirrors, of stages, and of stages with bases."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import re
import time
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urljoin

import pytest
import requests

from tests.devpi.conftest import JSON, PASSWORD, Devpi, Upstream
from tests.devpi.origin import LONG, wheel

HTML = "application/vnd.pypi.simple.v1+html"
BROWSER = "Mozilla/5.0"
RICH = {
    "requires-python": ">=3.8",
    "upload-time": "2024-05-05T12:12:12.123456Z",
    "core-metadata": {"sha256": "b" * 64},
    "yanked": 'it "breaks" <all>',
    "gpg-sig": False,
    "tomorrow": ["new"],
}


def names(page: requests.Response) -> list[str]:
    assert page.status_code == 200, page.text
    return [file["filename"] for file in page.json()["files"]]


def upload(devpi: Devpi, index: str, name: str, content: bytes, **metadata: str) -> None:
    """Upload a file as twine does."""
    project, version = name.split("-")[:2]
    answer = requests.post(
        f"{devpi.url}/{index}/",
        data={":action": "file_upload", "name": project, "version": version.removesuffix(".zip"), **metadata},
        files={"content": (name, content)},
        auth=("root", PASSWORD),
        timeout=LONG,
    )
    assert answer.status_code == 200, answer.text


def bomb() -> bytes:
    """Return a small wheel whose metadata is large."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("six-1.3.dist-info/METADATA", b"\n" * (64 << 20))
    return body.getvalue()


def made(devpi: Devpi) -> int:
    """Return how many pages it has made so far."""
    answer = requests.get(f"{devpi.url}/+status", headers={"Accept": "application/json"}, timeout=LONG)
    return next(int(value) for name, _, value in answer.json()["result"]["metrics"] if name == "lanmirror_pages_made")


# ---- what pages tell -------------------------------------------------------------------------------------------


def test_page_of_a_mirror_tells_all_that_the_upstream_tells(devpi: Devpi, upstream: Upstream, name: str) -> None:
    file = upstream.file("six-1.0-py3-none-any.whl", b"six", **RICH, provenance="https://index.example/integrity")
    status = {"status": "deprecated", "reason": "use <seven>"}
    told = {"versions": ["1.0", "2.0"], "project-status": status, "tomorrow": 1, "meta": {"api-version": "1.9", "x": 2}}
    upstream.page("six", [file], **told)
    devpi.mirror(f"root/{name}", upstream)
    where = f"/root/{name}/+simple/six/"
    page = devpi.get(where).json()
    (got,) = page.pop("files")
    assert page == {**told, "name": "six", "meta": {"api-version": "1.4", "x": 2}}
    digest = hashlib.sha256(b"six").hexdigest()
    path = f"/root/{name}/+f/{digest[:3]}/{digest[3:16]}/six-1.0-py3-none-any.whl"
    assert urljoin(where, got.pop("url")) == path
    assert got == {"filename": file["filename"], "hashes": {"sha256": digest}, "size": 3, **RICH}
    assert devpi.get(path).content == b"six"

    html = devpi.get(where, accept="text/html")
    assert html.headers["Content-Type"].lower() == "text/html; charset=utf-8"
    for said in (
        f'href="../../+f/{digest[:3]}/{digest[3:16]}/six-1.0-py3-none-any.whl#sha256={digest}"',
        'data-requires-python="&gt;=3.8"',
        'data-yanked="it &quot;breaks&quot; &lt;all&gt;"',
        f'data-core-metadata="sha256={"b" * 64}"',
        f'data-dist-info-metadata="sha256={"b" * 64}"',
        'name="pypi:project-status" content="deprecated"',
        'name="pypi:project-status-reason" content="use &lt;seven&gt;"',
        'name="pypi:repository-version" content="1.4"',
    ):
        assert said in html.text, said
    # New fields come in JSON alone.
    assert "tomorrow" not in html.text
    assert "upload-time" not in html.text


@pytest.mark.parametrize(
    ("page", "version"),
    [
        ({"files": [{"size": 1}, {"size": 2}]}, "1.1"),
        ({"files": [{"size": 1}, {"size": None}]}, "1.0"),
        ({"files": [{"size": 1}], "project-status": {"status": "active"}}, "1.4"),
        ({"files": [{"size": None}], "project-status": {"status": "active"}}, "1.0"),
    ],
)
def test_version_of_the_api_is_that_of_the_fields(
    devpi: Devpi, upstream: Upstream, name: str, page: dict[str, Any], version: str
) -> None:
    files = [upstream.file(f"six-1.{n}.zip", b"%d" % n, **told) for n, told in enumerate(page["files"])]
    upstream.page("six", **{**page, "files": files})
    devpi.mirror(f"root/{name}", upstream)
    got = devpi.get(f"/root/{name}/+simple/six/").json()
    assert got["meta"]["api-version"] == version
    # Told or not, they are those of the files.
    assert got["versions"] == [f"1.{n}" for n in range(len(files))]


def test_page_of_a_stage_tells_what_devpi_knows_of_uploads(devpi: Devpi, name: str) -> None:
    devpi.declare(f"root/{name}", type="stage", bases=[])
    content, metadata = wheel("six", "1.0", 100)
    before = datetime.now(UTC).replace(microsecond=0)
    upload(devpi, f"root/{name}", "six-1.0-py3-none-any.whl", content, requires_python=">=3.8")
    after = datetime.now(UTC)
    upload(devpi, f"root/{name}", "six-1.1.zip", b"no zip at all")
    upload(devpi, f"root/{name}", "six-1.2-py3-none-any.whl", b"no wheel at all")
    upload(devpi, f"root/{name}", "six-1.3-py3-none-any.whl", bomb())
    where = f"/root/{name}/+simple/six/"
    page = devpi.get(where).json()
    assert page["versions"] == ["1.0", "1.1", "1.2", "1.3"]
    assert page["meta"] == {"api-version": "1.1"}
    files = {file["filename"]: file for file in page["files"]}
    six = files["six-1.0-py3-none-any.whl"]
    assert before <= datetime.fromisoformat(six["upload-time"]) <= after
    assert (six["size"], six["requires-python"]) == (len(content), ">=3.8")
    assert six["core-metadata"] == {"sha256": hashlib.sha256(metadata).hexdigest()}
    assert devpi.get(urljoin(where, six["url"]) + ".metadata").content == metadata
    for other in ("six-1.1.zip", "six-1.2-py3-none-any.whl", "six-1.3-py3-none-any.whl"):
        assert "core-metadata" not in files[other]
    assert files["six-1.1.zip"]["size"] == 13


def test_stage_passes_on_what_its_bases_tell(devpi: Devpi, upstream: Upstream, name: str) -> None:
    file = upstream.file("six-1.0-py3-none-any.whl", b"six", **RICH)
    upstream.page("six", [file], versions=["0.9", "1.0"], **{"project-status": {"status": "archived"}})
    devpi.mirror(f"root/{name}", upstream)
    devpi.declare(f"root/{name}-base", type="stage", bases=[f"root/{name}"], mirror_whitelist=["*"])
    devpi.declare(f"root/{name}-dev", type="stage", bases=[f"root/{name}-base"], mirror_whitelist=["*"])
    upload(devpi, f"root/{name}-base", "six-2.0.zip", b"two")
    # The same name again: that of the index that comes first counts.
    upload(devpi, f"root/{name}-dev", "six-1.0-py3-none-any.whl", b"ours")
    where = f"/root/{name}-dev/+simple/six/"
    page = devpi.get(where).json()
    files = {file["filename"]: file for file in page["files"]}
    assert set(page["versions"]) == {"0.9", "1.0", "2.0"}
    assert page["project-status"] == {"status": "archived"}
    assert set(files) == {"six-1.0-py3-none-any.whl", "six-2.0.zip"}
    for file_name, content in (("six-1.0-py3-none-any.whl", b"ours"), ("six-2.0.zip", b"two")):
        assert devpi.get(urljoin(where, files[file_name]["url"])).content == content
    devpi.declare(f"root/{name}-user", type="stage", bases=[f"root/{name}"])
    (got,) = devpi.get(f"/root/{name}-user/+simple/six").json()["files"]
    assert {key: got[key] for key in RICH} == RICH
    assert devpi.get(urljoin(f"/root/{name}-user/+simple/six", got["url"])).content == b"six"


def test_page_of_uploads_of_before_the_plugin_tells_the_same(start_devpi: Callable[..., Devpi]) -> None:
    class Plain(Devpi):
        @property
        def environment(self) -> dict[str, str]:
            return {key: value for key, value in super().environment.items() if key != "PYTHONPATH"}

    devpi = start_devpi()
    plain = Plain(devpi.venv, devpi.data, devpi.options, devpi.port)
    devpi.stop()
    plain.start()
    plain.declare("root/dev", type="stage", bases=[])
    content, metadata = wheel("six", "1.0", 100)
    upload(plain, "root/dev", "six-1.0-py3-none-any.whl", content, requires_python=">=3.8")
    plain.stop()
    devpi.start()
    before = devpi.get("/root/dev/+simple/six/").json()
    assert before["files"][0]["core-metadata"] == {"sha256": hashlib.sha256(metadata).hexdigest()}
    upload(devpi, "root/dev", "six-1.1.zip", b"x")
    after = devpi.get("/root/dev/+simple/six/").json()
    assert before["files"][0] in after["files"]
    assert len(after["files"]) == 2
    # And the way back.
    devpi.stop()
    plain.start()
    back = plain.get("/root/dev/+simple/six/").json()["files"]
    kept = ("filename", "url", "hashes", "requires-python")
    assert back == [{key: file[key] for key in kept if key in file} for file in after["files"]]
    plain.stop()


# ---- fresh, and cheap ------------------------------------------------------------------------------------------


def test_page_is_made_once_for_each_of_its_states_and_shows_each_change_at_once(
    devpi: Devpi, upstream: Upstream, name: str
) -> None:
    old = [upstream.file("six-1.0.zip", b"six")]
    upstream.page("six", old)
    devpi.mirror(f"root/{name}", upstream, mirror_cache_expiry=0)
    devpi.declare(f"root/{name}-b", type="stage", bases=[])
    devpi.declare(f"root/{name}-a", type="stage", bases=[f"root/{name}-b"], mirror_whitelist=["*"])
    devpi.declare(f"root/{name}-b", mirror_whitelist=["*"])
    where = f"/root/{name}-a/+simple/six/"

    def is_there(*files: str) -> None:
        before = made(devpi)
        assert [sorted(names(devpi.get(where))) for _ in range(3)] == [sorted(files)] * 3
        assert made(devpi) == before + 1

    upload(devpi, f"root/{name}-a", "six-3.0.zip", b"three")
    is_there("six-3.0.zip")
    upload(devpi, f"root/{name}-b", "six-2.0.zip", b"two")
    is_there("six-3.0.zip", "six-2.0.zip")
    devpi.declare(f"root/{name}-a", bases=[f"root/{name}-b", f"root/{name}"])
    is_there("six-3.0.zip", "six-2.0.zip", "six-1.0.zip")
    upstream.page("six", [*old, upstream.file("six-1.1.zip", b"new")])
    is_there("six-3.0.zip", "six-2.0.zip", "six-1.0.zip", "six-1.1.zip")
    gone = requests.delete(f"{devpi.url}/root/{name}-b/six/2.0", headers=devpi.token(), timeout=LONG)
    assert gone.status_code == 200, gone.text
    is_there("six-3.0.zip", "six-1.0.zip", "six-1.1.zip")
    devpi.declare(f"root/{name}-a", mirror_whitelist=[])
    is_there("six-3.0.zip")
    (file,) = devpi.get(where).json()["files"]
    deleted = requests.delete(f"{devpi.url}{urljoin(where, file['url'])}", headers=devpi.token(), timeout=LONG)
    assert deleted.status_code == 200, deleted.text
    is_there("six-1.0.zip", "six-1.1.zip")
    devpi.declare(f"root/{name}-a", bases=[f"root/{name}-b"])
    assert devpi.get(where).status_code == 404
    assert devpi.get(urljoin(where, file["url"])).status_code in {404, 410}


def test_same_bytes_again_are_a_new_upload(devpi: Devpi, name: str) -> None:
    devpi.declare(f"root/{name}", type="stage", bases=[])
    upload(devpi, f"root/{name}", "six-1.0.zip", b"six", requires_python=">=3.8")
    upload(devpi, f"root/{name}", "six-1.1.zip", b"other")
    (first, other) = devpi.get(f"/root/{name}/+simple/six/").json()["files"]
    # The time of an upload is stored in whole seconds.
    time.sleep(1.1)
    upload(devpi, f"root/{name}", "six-1.0.zip", b"six", requires_python=">=3.9")
    (again, still) = devpi.get(f"/root/{name}/+simple/six/").json()["files"]
    assert (again["url"], again["requires-python"]) == (first["url"], ">=3.9")
    assert again["upload-time"] > first["upload-time"]
    assert still == other


# ---- which indexes count ---------------------------------------------------------------------------------------


@pytest.fixture
def order(devpi: Devpi, upstream: Upstream, name: str) -> str:
    """Return a stage whose first base is one mirror, and the second another; both have six."""
    for where in ("one", "two"):
        file = upstream.file(f"six-{len(where)}.0.{where == 'two':d}.zip", where.encode())
        upstream.page("six", [file])
        upstream.answer[f"/{where}/six/"] = upstream.answer.pop("/simple/six/")
        devpi.mirror(f"root/{name}-{where}", upstream, f"/{where}/", mirror_cache_expiry=0)
    devpi.declare(f"root/{name}", type="stage", bases=[f"root/{name}-one", f"root/{name}-two"])
    return f"root/{name}"


def test_base_that_fails_is_an_error_and_one_that_has_it_not_is_none(
    devpi: Devpi, upstream: Upstream, order: str
) -> None:
    page, versions = f"/{order}/+simple/six/", f"/{order}/six"
    as_json = {"accept": "application/json", "User-Agent": "devpi-client/7"}
    has = upstream.answer["/one/six/"]
    upstream.answer["/one/six/"] = 503, {}, b""
    assert devpi.get(page).status_code == 424
    assert devpi.get(page, accept="text/html").status_code == 424
    assert devpi.get(versions, **as_json).status_code == 502
    assert devpi.get(f"{versions}/3.0.1", **as_json).status_code == 502
    upstream.answer["/one/six/"] = 404, {}, b""
    assert names(devpi.get(page)) == ["six-3.0.1.zip"]
    assert set(devpi.get(versions, **as_json).json()["result"]) == {"3.0.1"}
    assert devpi.get(f"{versions}/3.0.1", **as_json).status_code == 200
    # That it was not there is known, and counts as long as a page would that is known.
    upstream.answer["/one/six/"] = 503, {}, b""
    assert names(devpi.get(page)) == ["six-3.0.1.zip"]
    upstream.answer["/one/six/"] = has
    assert names(devpi.get(page)) == ["six-3.0.0.zip", "six-3.0.1.zip"]
    upstream.answer["/one/six/"] = 503, {}, b""
    assert names(devpi.get(page)) == ["six-3.0.0.zip", "six-3.0.1.zip"]


def test_nobody_outside_is_asked_for_the_name_of_an_upload_but_at_the_first(
    devpi: Devpi, upstream: Upstream, order: str
) -> None:
    upload(devpi, order, "own-9.0.zip", b"private")
    # Whether the name is somebody else's.
    assert upstream.paths() == ["/one/own/", "/two/own/"]
    upload(devpi, order, "own-9.1.zip", b"private")
    assert names(devpi.get(f"/{order}/+simple/own/")) == ["own-9.0.zip", "own-9.1.zip"]
    assert set(
        devpi.get(f"/{order}/own", accept="application/json", **{"User-Agent": "devpi-client/7"}).json()["result"]
    ) == {"9.0", "9.1"}
    assert "own-9.0.zip" in devpi.get(f"/{order}/+simple/own/", accept="text/html").text
    assert len(upstream.asked) == 2


def test_name_on_the_list_is_looked_for_in_mirrors_whoever_asked_before(
    devpi: Devpi, upstream: Upstream, order: str
) -> None:
    devpi.declare(f"{order}-top", type="stage", bases=[order], mirror_whitelist_inheritance="union")
    devpi.declare(order, mirror_whitelist=["six"])
    upload(devpi, f"{order}-top", "six-9.0.zip", b"private")
    assert names(devpi.get(f"/{order}-top/+simple/six/")) == ["six-9.0.zip", "six-3.0.0.zip", "six-3.0.1.zip"]


# ---- formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "text/html"),
        ("", "text/html"),
        ("image/png", "text/html"),
        ("nonsense", "text/html"),
        (JSON, JSON),
        (f"{JSON};q=0", "text/html"),
        (f"{JSON};q=0, */*", "text/html"),
        (f"{JSON};q=0, application/vnd.pypi.simple.latest+json", JSON),
        (f"{JSON}, {HTML};q=0.2, text/html;q=0.01", JSON),
        (f"{JSON};q=0.1, text/html", "text/html"),
        (f"{JSON};q=0.1, {HTML}", HTML),
        ("application/vnd.pypi.simple.latest+html", HTML),
        ("application/*", JSON),
    ],
)
def test_format_is_the_one_that_is_asked_for(
    devpi: Devpi, upstream: Upstream, name: str, accept: str, content_type: str
) -> None:
    upstream.page("six", [upstream.file("six-1.0.zip", b"six")])
    devpi.mirror(f"root/{name}", upstream)
    got = devpi.get(f"/root/{name}/+simple/six/", accept=accept)
    assert got.headers["Content-Type"].partition(";")[0] == content_type
    assert (got.text[0] == "{") == (content_type == JSON)
    # The list of projects is chosen by the same.
    if content_type != HTML:
        listed = devpi.get(f"/root/{name}/+simple/", accept=accept)
        assert listed.headers["Content-Type"].partition(";")[0] == content_type


def test_who_says_nothing_of_gzip_gets_none(devpi: Devpi, upstream: Upstream, name: str) -> None:
    upstream.page("six", [upstream.file(f"six-1.{n}.zip", b"%d" % n) for n in range(40)])
    devpi.mirror(f"root/{name}", upstream)
    where = f"/root/{name}/+simple/six/"
    for agent in ("pip/1", BROWSER):
        bodies = []
        for encodings in (None, "identity", "gzip;q=0", "br, gzip"):
            # Other clients put in a header of their own.
            connection = http.client.HTTPConnection("127.0.0.1", devpi.port, timeout=LONG)
            connection.putrequest("GET", where, skip_accept_encoding=True)
            headers = {"User-Agent": agent, "Accept": "text/html", "Accept-Encoding": encodings}
            for key, value in headers.items():
                if value is not None:
                    connection.putheader(key, value)
            connection.endheaders()
            got = connection.getresponse()
            body = got.read()
            is_packed = got.headers["Content-Encoding"] == "gzip"
            assert is_packed == (encodings == "br, gzip")
            bodies.append(gzip.decompress(body) if is_packed else body)
            connection.close()
        assert bodies[0].startswith(b"<!DOCTYPE")
        assert bodies == bodies[:1] * 4


def test_people_get_the_newest_first_and_a_button(devpi: Devpi, upstream: Upstream, name: str) -> None:
    upstream.page("six", [upstream.file(f"six-{version}.zip", version.encode()) for version in ("1.9", "1.10", "1.8")])
    devpi.mirror(f"root/{name}", upstream)
    page = devpi.get(f"/root/{name}/+simple/six/", accept="text/html,*/*;q=0.8", **{"User-Agent": BROWSER}).text
    assert page.index("six-1.10.zip<") < page.index("six-1.9.zip<") < page.index("six-1.8.zip<")
    # A path of this page, so that it is right behind any proxy.
    assert '<form action="refresh" method="post"><input name="refresh" type="submit" value="Refresh">' in page
    pressed = requests.post(f"{devpi.url}/root/{name}/+simple/six/refresh", timeout=LONG, allow_redirects=False)
    assert pressed.is_redirect
    assert "form" not in devpi.get(f"/root/{name}/+simple/six/", accept="text/html").text


def test_people_see_where_a_file_comes_from_and_whether_it_is_here(devpi: Devpi, upstream: Upstream, name: str) -> None:
    upstream.page("six", [upstream.file(f"six-{version}.zip", version.encode()) for version in ("1.0", "2.0")])
    devpi.mirror(f"root/{name}", upstream)
    devpi.declare(f"root/{name}-dev", type="stage", bases=[f"root/{name}"], mirror_whitelist=["six"])
    upload(devpi, f"root/{name}-dev", "six-3.0.zip", b"own")
    page = f"/root/{name}-dev/+simple/six/"

    def shown() -> list[tuple[str, str]]:
        text = devpi.get(page, accept="text/html", **{"User-Agent": BROWSER}).text
        return re.findall(r">(six-[^<]*)</a> <small>([^<]*)</small><br>", text)

    assert shown() == [
        ("six-3.0.zip", "uploaded, here"),
        ("six-2.0.zip", "of 127.0.0.1, not here yet"),
        ("six-1.0.zip", "of 127.0.0.1, not here yet"),
    ]
    (url,) = [file["url"] for file in devpi.get(page).json()["files"] if file["filename"] == "six-1.0.zip"]
    path = urljoin(page, url)
    assert devpi.get(path).content == b"1.0"
    # It is stored a moment after its last byte.
    end = time.monotonic() + LONG
    while not (devpi.data / "+files" / path.lstrip("/")).is_file():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert shown()[1:] == [("six-2.0.zip", "of 127.0.0.1, not here yet"), ("six-1.0.zip", "of 127.0.0.1, here")]
    # Installers get no more than they need.
    assert "<small>" not in devpi.get(page, accept="text/html").text


def test_button_asks_the_mirrors_that_count_and_loses_nothing(devpi: Devpi, upstream: Upstream, order: str) -> None:
    page = f"/{order}/+simple/six/"

    def press() -> requests.Response:
        return requests.post(f"{devpi.url}{page}refresh", timeout=LONG, allow_redirects=False)

    both = ["six-3.0.0.zip", "six-3.0.1.zip"]
    assert names(devpi.get(page)) == both
    has = upstream.answer["/two/six/"]
    for status in (503, 404):
        upstream.answer["/two/six/"] = status, {}, b""
        pressed = press()
        assert (pressed.status_code, f"The upstream of {order}-two gives no page" in pressed.text) == (424, True)
        assert names(devpi.get(page)) == both
    upstream.answer["/two/six/"] = has
    # Nobody outside is asked for the name of an upload.
    upload(devpi, order, "mine-9.0.zip", b"private")
    before = len(upstream.asked)
    private = f"/{order}/+simple/mine/"
    pressed = requests.post(f"{devpi.url}{private}refresh", timeout=LONG, allow_redirects=False)
    assert (pressed.status_code, pressed.headers["Location"]) == (302, private)
    shown = devpi.get(private, accept="text/html", **{"User-Agent": BROWSER}).text
    assert "form" not in shown
    assert f"no releases from <strong>{order}-two" in shown
    assert len(upstream.asked) == before


def test_button_leads_back_where_one_mirror_has_it_not(devpi: Devpi, upstream: Upstream, order: str) -> None:
    upstream.answer["/one/six/"] = 404, {}, b""
    page = f"/{order}/+simple/six/"
    devpi.declare(f"{order}-one", mirror_no_project_list=False)
    shown = devpi.get(page, accept="text/html", **{"User-Agent": BROWSER}).text
    assert '<input name="refresh" type="submit" value="Refresh mirror links">' in shown
    before = upstream.paths()
    pressed = requests.post(f"{devpi.url}{page}refresh", timeout=LONG, allow_redirects=False)
    assert (pressed.status_code, pressed.headers["Location"]) == (302, page)
    assert upstream.paths()[len(before) :] == ["/one/six/", "/two/six/"]


def test_urls_lead_to_files_from_wherever_devpi_has_the_page(devpi: Devpi, upstream: Upstream, order: str) -> None:
    upload(devpi, f"{order}", "own-1.0.zip", b"own")
    for project, content in (("six", b"one"), ("own", b"own")):
        for page in (f"+simple/{project}/", f"+simple/{project}", f"{project}/", project):
            for accept in (JSON, "text/html"):
                got = devpi.get(f"/{order}/{page}", accept=accept)
                url = got.json()["files"][0]["url"] if accept == JSON else got.text.split('href="')[1].split('"')[0]
                assert devpi.get(urljoin(f"/{order}/{page}", url)).content == content, (page, accept)


def test_project_that_nobody_has_is_404(devpi: Devpi, upstream: Upstream, name: str) -> None:
    devpi.mirror(f"root/{name}", upstream)
    devpi.declare(f"root/{name}-dev", type="stage", bases=[f"root/{name}"])
    for index in (name, f"{name}-dev"):
        for accept in (JSON, "text/html"):
            assert devpi.get(f"/root/{index}/+simple/nothing/", accept=accept).status_code == 404
