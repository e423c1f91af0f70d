"""What is read of an upstream's page, and how it is stored. The last tests ask devpi's own code for the same."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lanmirror_devpi import page
from lanmirror_devpi.page import File, Page, PageError, parse

from tests.devpi.conftest import JSON

URL = "https://index.example/simple/six/"
SHA = "8abb2f1d86890a2dfb989f9a77cfcfd3e47c2a354b01111771326f8aa26e0254"
OTHER = "1e61c37477a1626458e36f7b1d82aa5c9b094fa4802892072e49de9c60c4c926"


def record(name: str = "six-1.0.tar.gz", **more: Any) -> dict[str, Any]:
    return {"filename": name, "url": f"https://files.example/a/{name}", "hashes": {"sha256": SHA}, **more}


def in_json(*files: Any, content_type: str = JSON, project: str = "six", **more: Any) -> Page:
    told = {"meta": {"api-version": "1.4"}, "name": project, "files": files, **more}
    return parse(project, URL, content_type, json.dumps(told).encode())


def in_html(text: str, project: str = "six", **options: Any) -> Page:
    return parse(project, URL, "text/html; charset=utf-8", text.encode(), **options)


def names(read: Page) -> list[str]:
    return [file.name for file in read.files]


def test_what_json_says_of_a_file_is_kept() -> None:
    said: dict[str, Any] = {
        "size": 5,
        "upload-time": "2024-05-05T12:12:12.123456Z",
        "requires-python": ">=3.8",
        "yanked": "broken, see https://bugs.example/1",
        "core-metadata": {"sha256": OTHER},
        "gpg-sig": False,
        "a-field-of-tomorrow": {"deep": [1, None, "text"]},
    }
    (file,) = in_json(record(**said)).files
    assert file == File(
        "six-1.0.tar.gz",
        "https://files.example/a/six-1.0.tar.gz",
        "+f/8ab/b2f1d86890a2d/six-1.0.tar.gz",
        {"hashes": {"sha256": SHA}, **said},
    )


def test_what_json_says_of_a_project_is_kept() -> None:
    said: dict[str, Any] = {
        "versions": ["1.0", "2.0"],
        "project-status": {"status": "archived", "reason": "moved to https://new.example"},
        "tomorrow": 1,
    }
    read = in_json(**said, meta={"api-version": "1.9", "_last-serial": 7})
    assert (read.name, read.told) == ("six", {**said, "meta": {"_last-serial": 7}})


def test_field_that_names_a_place_is_not_kept() -> None:
    places: dict[str, Any] = {
        "provenance": "https://index.example/integrity/six",
        "mirrors": ["//other.example/x"],
        "nested": {"a": [{"b": "ftp://other.example"}]},
        "key": {"https://other.example": 1},
    }
    of_project: dict[str, Any] = {"alternate-locations": ["https://other.example"], "plain": "x"}
    read = in_json(record(**places, size=1), **of_project)
    assert read.files[0].told == {"hashes": {"sha256": SHA}, "size": 1}
    assert read.told == {"plain": "x"}


@pytest.mark.parametrize("old", ["dist-info-metadata", "data-dist-info-metadata"])
def test_metadata_is_told_by_its_new_name_alone(old: str) -> None:
    assert in_json(record("six-1.0.tar.gz", **{old: {"sha256": OTHER}})).files[0].told == {
        "hashes": {"sha256": SHA},
        "core-metadata": {"sha256": OTHER},
    }
    both = record("six-1.0.tar.gz", **{old: True, "core-metadata": {"sha256": OTHER}})
    assert in_json(both).files[0].told["core-metadata"] == {"sha256": OTHER}


@pytest.mark.parametrize(
    "bad",
    [
        None,
        7,
        [],
        {},
        {"filename": "six-1.1.tar.gz"},
        {"filename": 7, "url": "https://files.example/six-1.1.tar.gz"},
        {"filename": "../six-1.1.tar.gz", "url": "https://files.example/six-1.1.tar.gz"},
        {"filename": "..", "url": "https://files.example/.."},
        {"filename": "a\nb-1.tar.gz", "url": "https://files.example/six-1.1.tar.gz"},
        {"filename": "a\ud800-1.tar.gz", "url": "https://files.example/six-1.1.tar.gz"},
        {"filename": "", "url": "https://files.example/"},
        {"filename": "six-1.1.tar.gz", "url": "file:///etc/six-1.1.tar.gz"},
        {"filename": "six-1.1.tar.gz", "url": "https://:80/six-1.1.tar.gz"},
        {"filename": "six-1.1.tar.gz", "url": "https://[/six-1.1.tar.gz"},
        {"filename": "six-1.1.tar.gz", "url": ["https://files.example/six-1.1.tar.gz"]},
    ],
)
def test_bad_record_is_left_out_and_the_others_stay(bad: Any) -> None:
    assert names(in_json(record("six-1.0.tar.gz"), bad, record("six-1.2.tar.gz"))) == [
        "six-1.0.tar.gz",
        "six-1.2.tar.gz",
    ]


def test_bad_field_is_left_out_and_the_others_stay() -> None:
    bad: dict[str, Any] = {
        "size": "5",
        "upload-time": 7,
        "yanked": [],
        "requires-python": {},
        "core-metadata": "x",
        "gpg-sig": 1,
    }
    assert in_json(record(**bad)).files[0].told == {"hashes": {"sha256": SHA}}
    assert in_json(record(size=True)).files[0].told == {"hashes": {"sha256": SHA}}
    assert in_json(record(size=-1)).files[0].told == {"hashes": {"sha256": SHA}}
    odd = record("six-1.0.tar.gz", **{"core-metadata": {"sha256": "../../x"}})
    assert in_json(odd).files[0].told["core-metadata"] is True
    assert in_json(record(), versions="1.0", **{"project-status": "archived"}).told == {}
    page_with_no_number = json.dumps(
        {"meta": {}, "files": [record(a=float("nan"), b=float("inf"))], "versions": []}
    ).replace("Infinity", "1e999")
    assert parse("six", URL, JSON, page_with_no_number.encode()).files[0].told["b"] is None


@pytest.mark.parametrize(
    "hashes", [None, [], {"sha256": "zz"}, {"sha256": "../../../etc/passwd"}, {"sha256": SHA[:20]}]
)
def test_bad_hash_is_none(hashes: Any) -> None:
    (file,) = in_json(record(hashes=hashes)).files
    assert (file.path, file.told) == ("+e/https_files.example_a/six-1.0.tar.gz", {"hashes": {}})


def test_urls_are_absolute_and_without_credentials_and_keep_their_query() -> None:
    base = "https://user:secret@index.example/simple/six/"
    told = [
        {"filename": "six-1.tar.gz", "url": "../../files/six-1.tar.gz?token=a&b=c#egg=six"},
        {"filename": "six-2.tar.gz", "url": "https://me:secret@files.example/six-2.tar.gz"},
        {"filename": "six-3+cpu.tar.gz", "url": "https://files.example/six-3%2Bcpu.tar.gz"},
    ]
    read = parse("six", base, JSON, json.dumps({"meta": {}, "files": told}).encode())
    assert [(file.name, file.url) for file in read.files] == [
        ("six-1.tar.gz", "https://index.example/files/six-1.tar.gz?token=a&b=c"),
        ("six-2.tar.gz", "https://files.example/six-2.tar.gz"),
        ("six-3+cpu.tar.gz", "https://files.example/six-3%2Bcpu.tar.gz"),
    ]
    assert "secret" not in repr(read)


def test_of_two_records_of_a_name_the_one_with_a_hash_counts() -> None:
    without = record(hashes={})
    assert in_json(without, record(size=1), record(size=2)).files[0].told["size"] == 1
    assert in_json(without, record(hashes={}, **{"requires-python": ">3"})).files[0].told["requires-python"] == ">3"


def test_html_says_the_same() -> None:
    read = in_html(f"""<!DOCTYPE html><html><head>
        <meta name="pypi:repository-version" content="1.4"><meta name="pypi:project-status" content="archived">
        <meta name="pypi:project-status-reason" content="no time"></head><body>
        <a href="https://files.example/a/six-1.0.tar.gz#sha256={SHA}" data-requires-python="&gt;=3.8">six</a>
        <a href="../../a/six-1.1-py3-none-any.whl#sha256={SHA}" data-yanked="it &quot;breaks&quot;"
           data-core-metadata="sha256={OTHER}" data-dist-info-metadata="sha256={SHA}" data-gpg-sig="true">six</a>
        <a href="/a/six-1.2.zip" data-yanked data-dist-info-metadata="true">six</a>
        <a href="six-1.3.zip" data-yanked="" data-core-metadata="false">six</a>
        <a href="https://elsewhere.example">home page</a><a>no link</a><a href="mailto:me">me</a>
        <a href="http://[bad/six-1.4.zip">bad</a><a href="other-1.0.zip">other</a></body></html>""")
    assert [(file.name, file.url, file.told) for file in read.files] == [
        (
            "six-1.0.tar.gz",
            "https://files.example/a/six-1.0.tar.gz",
            {"hashes": {"sha256": SHA}, "requires-python": ">=3.8"},
        ),
        (
            "six-1.1-py3-none-any.whl",
            "https://index.example/a/six-1.1-py3-none-any.whl",
            {
                "hashes": {"sha256": SHA},
                "yanked": 'it "breaks"',
                "core-metadata": {"sha256": OTHER},
                "gpg-sig": True,
            },
        ),
        ("six-1.2.zip", "https://index.example/a/six-1.2.zip", {"hashes": {}, "yanked": True, "core-metadata": True}),
        ("six-1.3.zip", "https://index.example/simple/six/six-1.3.zip", {"hashes": {}, "yanked": True}),
    ]
    assert read.told == {"project-status": {"status": "archived", "reason": "no time"}}


def test_html_with_a_base_and_with_a_charset() -> None:
    text = '<base href="/other/"><a href="six-1.0.zip" data-yanked="für">x</a>'
    (file,) = parse("six", URL, "text/html;charset=latin-1", text.encode("latin-1")).files
    assert (file.url, file.told["yanked"]) == ("https://index.example/other/six-1.0.zip", "für")


def test_of_a_flat_page_only_the_projects_files_count() -> None:
    text = "".join(
        f'<a href="{name}">x</a>'
        for name in (
            "torch-2.0+cu118-cp311-cp311-linux_x86_64.whl",
            "torchvision-0.1-py3-none-any.whl",
            "torch_geometric-2.0.tar.gz",
            "torch-geometric-2.0.tar.gz",
            "Torch-1.0.tar.gz",
            "torch-v0.9.zip",
            "torch.txt",
        )
    )
    read = in_html(text, "torch", flat=True)
    assert names(read) == ["torch-2.0+cu118-cp311-cp311-linux_x86_64.whl", "Torch-1.0.tar.gz", "torch-v0.9.zip"]
    assert in_html(text, "nothing", flat=True).files == ()


@pytest.mark.parametrize(
    ("content_type", "body", "why"),
    [
        (JSON, b"", "no JSON"),
        (JSON, b"<html>", "no JSON"),
        (JSON, b"[]", "without a list of files"),
        (JSON, b'{"meta": {"api-version": "1.0"}, "files": {}}', "without a list of files"),
        (JSON, b'{"meta": {"api-version": "2.0"}, "files": []}', "version '2.0'"),
        (JSON, b'{"meta": {"api-version": [1]}, "files": []}', "version"),
        (JSON, b"\xff\xfe\xfa", "no JSON"),
        (JSON, b"[" * 100000, "no JSON"),
        ("text/html", b"", "empty"),
        ("text/html", b" \n ", "empty"),
        ("text/html", b"all is well", "neither JSON nor HTML"),
        ("", b'{"error": "no"}', "without a list of files"),
        ("text/html", b'<meta name="pypi:repository-version" content="2.0"><a href="six-1.zip">x</a>', "version '2.0'"),
        ("text/html", b'<a href="/forgot">?</a><form><input name=u><input type="Password"></form>', "password"),
    ],
)
def test_what_is_no_page_is_an_error(content_type: str, body: bytes, why: str) -> None:
    with pytest.raises(PageError, match=why) as error:
        parse("six", URL, content_type, body)
    assert "\n" not in str(error.value)


def test_page_without_files_is_one() -> None:
    assert in_json().files == ()
    assert in_html("<!DOCTYPE html><html><body></body></html>").files == ()


@pytest.mark.parametrize("content_type", [f"{JSON}; charset=utf-8", JSON.upper(), "application/json", "", "text/plain"])
def test_json_is_seen_whatever_the_upstream_calls_it(content_type: str) -> None:
    assert names(in_json(record(), content_type=content_type)) == ["six-1.0.tar.gz"]


def test_page_comes_back_from_the_store_as_it_was() -> None:
    read = in_json(record(size=1, odd="\ud800"), record("six-2.zip", hashes={}), versions=["1.0"], meta={"x": 1})
    assert page.load(page.dump(read)) == read
    assert page.dump(read) == page.dump(read)


@pytest.mark.parametrize("stored", [b"", b"x", page.dump(Page("six", (), {}))[:-9]])
def test_damaged_page_of_the_store_is_an_error(stored: bytes) -> None:
    with pytest.raises(PageError, match="damaged"):
        page.load(stored)


def test_page_of_another_form_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = page.dump(Page("six", (), {}))
    monkeypatch.setattr(page, "FORM", page.FORM + 1)
    with pytest.raises(PageError, match="form 1"):
        page.load(stored)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*page.KINDS, "filename", "url", "x", *page.OLD_METADATA]), json_values))
def test_whatever_stands_in_a_record_the_good_one_stays_and_all_of_it_is_json(odd: dict[str, Any]) -> None:
    read = in_json(odd, record("six-1.0.tar.gz"))
    assert "six-1.0.tar.gz" in names(read)
    json.dumps([file.told for file in read.files], allow_nan=False)
    assert page.load(page.dump(read)) == read


# ---- as devpi has it -----------------------------------------------------------------------------------------------

# Prints what devpi makes of pages: for each, the names and paths of their files.
THEIRS = """
import json, sys
from devpi_common.url import URL
from devpi_server.filestore import key_from_link
from devpi_server.mirror import parse_index, parse_index_v1_json
from devpi_server.keyfs_types import PTypedKey
class keyfs:
    STAGEFILE = PTypedKey(None, "{user}/{index}/+f/{hashdir_a}/{hashdir_b}/{filename}", dict, "STAGEFILE")
    PYPIFILE_NOMD5 = PTypedKey(None, "{user}/{index}/+e/{dirname}/{basename}", dict, "PYPIFILE_NOMD5")
for kind, url, text in json.load(sys.stdin):
    links = parse_index_v1_json(url, text) if kind == "json" else parse_index(URL(url), text).releaselinks
    print(json.dumps([(link.basename, key_from_link(keyfs, link, "u", "i").relpath[4:]) for link in links]))
"""
HREFS = [
    f"https://files.example/packages/aa/six-1.0.tar.gz#sha256={SHA}",
    f"https://files.example/packages/aa/six-1.1-py2.py3-none-any.whl#md5={SHA[:32]}",
    f"https://files.example/a/six-1.2.zip#sha512={SHA}{SHA}",
    f"https://files.example/a/six-1.3.zip#nothing={SHA}",
    "https://files.example:8443/a%20b/c+d/six-1.4%2Bcpu-py3-none-any.whl",
    "../../files/six-1.5-1!2.tar.bz2?x=y",
    "six-1.6.egg#egg=six",
    "//other.example/six_extra-1.7.tar.gz",
    "/a/b/six-1.8.tar.xz",
    "SIX.1.9.ZIP",
    "seven-1.0.zip",
    "six/",
    "ftp://files.example/six-1.0.zip",
]


def test_files_are_where_devpi_has_them(venv_of_devpi: Path) -> None:
    html = "".join(f'<a href="{href}">x</a>' for href in HREFS)
    records = [
        {
            "filename": unquote(url.rpartition("/")[2]),
            "url": url,
            "hashes": {algorithm: value} if algorithm else {},
        }
        for href in HREFS[:8]
        for url, _, fragment in [href.partition("?")[0].partition("#")]
        for algorithm, _, value in [fragment.partition("=")]
        if algorithm != "egg"
    ]
    text = json.dumps({"meta": {"api-version": "1.0"}, "files": records})
    pages = [("html", URL, html), ("json", URL, text)]
    told = subprocess.run(
        [venv_of_devpi / "bin" / "python", "-c", THEIRS],
        input=json.dumps(pages).encode(),
        capture_output=True,
        check=True,
    )
    theirs = [[tuple(each) for each in json.loads(line)] for line in told.stdout.splitlines()]
    assert len(theirs[0]) > 8
    assert len(theirs[1]) > 6
    for read, expected in zip([in_html(html), parse("six", URL, JSON, text.encode())], theirs, strict=True):
        assert [(file.name, file.path) for file in read.files] == expected
