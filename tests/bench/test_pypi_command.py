"""The benchmark of the PyPI cache: its upstream, its check of answers, and its figures."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from bench.common import servers
from bench.common.load import Load, LoadRow, errors, ratio, read
from bench.common.report import Result
from bench.pypi.command import arguments
from bench.pypi.scenarios import Answer, ColdRow, files_in, wrong_page
from bench.pypi.upstream import HTML, JSON, LARGE, SMALL, Upstream, make


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    folder = tmp_path_factory.mktemp("upstream")
    (folder / "wheels").mkdir()
    for name in (
        f"{SMALL}-1.0-py3-none-any.whl",
        f"{LARGE}-2.0-py3-none-any.whl",
        "charset_normalizer-3.0-py3-none-any.whl",
    ):
        (folder / "wheels" / name).write_bytes(name.encode())
    return make(folder / "made", folder / "wheels", 2, ["cold0"])


def load(per_second: int, p99: float = 0.001, wrong: int = 0) -> Load:
    return Load(per_second * 2, 2.0, p99 / 2, p99, p99 * 2, 1, wrong)


def test_a_wrong_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        arguments(["nothing"])
    assert "no scenario nothing; there are pages, lan, files, expiry, cold, install, memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("project", "links"), [(SMALL, 34), (LARGE, 3200), ("charset-normalizer", 30), ("cold0", 1), ("spare0001", 30)]
)
def test_both_formats_of_a_page_name_the_same_files(upstream: Upstream, project: str, links: int) -> None:
    folder = upstream.folder / "www/simple" / project
    found = {form: files_in((folder / f"index.{form}").read_bytes(), form) for form in ("json", "html")}
    assert len(found["json"]) == links
    assert found["json"] == found["html"]
    for form in found:
        assert gzip.decompress((folder / f"index.{form}.gz").read_bytes()) == (folder / f"index.{form}").read_bytes()


def test_wheels_are_there_with_the_hash_of_their_page(upstream: Upstream) -> None:
    assert set(upstream.wheels) == {SMALL, LARGE, "charset-normalizer", "cold0"}
    assert upstream.wheels["cold0"].sha256 == upstream.wheels[LARGE].sha256
    for project, wheel in upstream.wheels.items():
        page = (upstream.folder / "www/simple" / project / "index.json").read_bytes()
        assert (wheel.name, wheel.sha256) in files_in(page, "json")
        assert (upstream.folder / "www/packages" / wheel.name).stat().st_size == wheel.size


def test_requests_are_counted_by_file(upstream: Upstream) -> None:
    wheel = upstream.wheels[SMALL]
    log = upstream.folder / "requests.log"
    log.write_text(f"GET /packages/{wheel.name} 200\nGET /simple/six/index.json 200\nGET /packages/{wheel.name}x 404\n")
    assert (upstream.downloads(wheel), upstream.pages()) == (1, 1)


@pytest.mark.parametrize(
    ("answer", "encoding", "says"),
    [
        (Answer(200, {"content-type": JSON}, b"page"), "identity", ""),
        (Answer(502, {}, b""), "identity", "answers 502"),
        (Answer(200, {"content-type": HTML}, b"page"), "identity", f"is {HTML}"),
        (Answer(200, {"content-type": JSON, "content-encoding": "gzip"}, b"gzip"), "gzip", ""),
        (Answer(200, {"content-type": JSON, "content-encoding": "gzip"}, b"gzip"), "identity", "is compressed"),
        (Answer(200, {"content-type": JSON}, b'{"files": []}'), "identity", "names other files"),
    ],
)
def test_a_wrong_page_is_seen(upstream: Upstream, answer: Answer, encoding: str, says: str) -> None:
    page = (upstream.folder / "www/simple" / SMALL / "index.json").read_bytes()
    body = {b"page": page, b"gzip": gzip.compress(page)}.get(answer.body, answer.body)
    assert wrong_page(Answer(answer.status, answer.headers, body), SMALL, "json", encoding, upstream) == says


def test_a_file_is_found_on_a_page_wherever_its_link_leads() -> None:
    sha256 = "a" * 64
    for link in ("../../+f/a/x-1.whl", "x-1.whl", "http://127.0.0.1/packages/x-1.whl"):
        assert files_in(f'<a href="{link}#sha256={sha256}">x</a>'.encode(), "html") == {("x-1.whl", sha256)}


def test_site_has_the_roles_files_and_none_of_the_machines_paths(tmp_path: Path) -> None:
    files = servers.site_files(
        tmp_path, devpi_data_dir=str(tmp_path / "data"), __devpi_cache_dir=str(tmp_path / "cache")
    )
    text = "\n".join(files.values())
    # The distribution's files are taken from their place.
    brought = {"/etc/nginx/mime.types", "/etc/nginx/modules-enabled/*.conf"}
    ours = re.findall(r"(?<![\w/.-])/(?:etc|var/log|var/cache|var/lib|run)/[^\s;]+", text.replace(str(tmp_path), "."))
    assert set(ours) == brought
    assert f"include {tmp_path}/lanmirror/*/locations.conf;" in text
    assert f"root {tmp_path}/data/+files;" in text


def test_what_wrk_prints_is_read() -> None:
    output = (
        "Running 2s test @ http://127.0.0.1/\n  2 threads and 16 connections\nRequests/sec:  500.00\n\n"
        '{"requests": 1000, "seconds": 2.000000, "median": 0.0005, "p99": 0.002, '
        '"worst": 0.1, "bytes": 7, "errors": 3}\n'
    )
    row = LoadRow("one", [read(output)])
    assert (row.per_second, row.p99) == (500, 0.002)
    assert errors(row.loads) == "3 errors"


def test_ratio_is_that_of_the_rounds_and_nothing_where_an_answer_was_wrong() -> None:
    rows = [LoadRow("limit", [load(100), load(1000), load(10)]), LoadRow("mine", [load(80), load(700), load(10)])]
    assert ratio(rows, "mine", "limit") == pytest.approx(0.8)
    assert ratio([rows[0], LoadRow("mine", rows[1].loads, "other bytes")], "mine", "limit") == 0


def test_page_has_a_table_for_each_kind_of_row() -> None:
    rows = [LoadRow("limit", [load(20_000), load(10_000)]), LoadRow("mine", [load(75)], "3 errors")]
    page = Result("Load", rows).markdown()
    assert "| | requests/s | from, to | median | 99 % within | ÷ first row's |\n|---|--:|--:|--:|--:|--:|\n" in page
    assert "| limit | 15,000 | 10,000, 20,000 | 0.50 ms | 1.00 ms | 1.000 |" in page
    assert "| mine (**3 errors**) | 75.0 | one run | 0.50 ms | 1.00 ms | 0.005 |" in page
    assert "| mine | 1 | 2.5 s |" in Result("Cold", [ColdRow("mine", 1, 2.5, "")]).markdown()
