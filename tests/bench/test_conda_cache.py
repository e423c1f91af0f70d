"""The benchmark of Conda on demand: all of it in small sizes, and its check of what clients got."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.common import channels
from bench.common.channels import SUBDIR
from bench.common.load import Load, LoadRow, ratios
from bench.common.report import Result
from bench.conda_cache import crowd
from bench.conda_cache.command import arguments
from bench.conda_cache.site import Sent, sent
from bench.conda_cache.tables import CrowdRow, LimitRow, RateRow, at_least_static, crowd_row
from tests.ports import free_ports
from tests.roles.site import Asked, Devpi, Handler
from tests.roles.test_nginx_site import needs_root

ROOT = Path(__file__).resolve().parents[2]
BYTES = bytes(range(256)) * 5000
# The bars that no machine is too slow for.
COUNTED = {
    "one upstream download",
    "100 Mbit/s, 60 ms round trip: no request failed",
    "100 Mbit/s, 60 ms round trip: the last 20 are kept still",
    "as fast as this machine: no request failed",
    "as fast as this machine: the last 20 are kept still",
}


@pytest.mark.slow
@needs_root
def test_all_of_it_runs_in_small_sizes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    command = [sys.executable, "-m", "bench.conda_cache", "--small", "--work", str(tmp_path / "work")]
    done = subprocess.run(
        [*command, "--markdown", str(page)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = page.read_text()
    assert text in done.stdout
    head, *sections = text.split("\n## ")
    assert head.startswith("# Conda on demand\n")
    assert "Made by `python3 -m bench.conda_cache --quick --rounds 1`" in head
    assert "the figures say nothing" in head
    titles = [section.partition("\n")[0] for section in sections]
    assert titles == [
        "A kept package of 21 KB",
        "A kept package of 21 KB, in packets of 1,500 bytes",
        "A kept package of 2 MiB, 4 connections",
        "20 clients at once for a package of 3 MiB that nobody had, 60 ms round trip, 50 Mbit/s",
        "60 packages of 20 to 200 KB that nobody had, 60 ms round trip, one client with 16 connections",
        "A changed index of 2,000 records (1 MB), `sync --indexes`",
        "Package requests during that refresh",
        "200 packages through a small cache",
    ]
    for section in sections:
        tables = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
        assert len(tables) == 2, section
        for table in tables:
            assert len({line.count("|") for line in table.splitlines()}) == 1, table
            assert len(table.splitlines()) > 2, table
    # The fault of a run stands behind the name of its row.
    assert "(**" not in text
    bars = re.findall(r"^\| ([^|]+) \| [^|]+ \| (met|\*\*not met\*\*|) \|$", text, re.MULTILINE)
    assert {name for name, says in bars if name in COUNTED and says == "met"} == COUNTED
    assert {says for name, says in bars if name not in COUNTED} <= {"met", "**not met**", ""}
    # Channels stay for the next run, and nothing else.
    assert not (tmp_path / "work/conda_cache").exists()
    mounts = Path("/proc/self/mounts").read_text()
    assert str(tmp_path) not in mounts
    assert "lanmirror-bench" not in mounts


def test_a_wrong_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        arguments(["nothing"])
    assert "no scenario nothing; there are kept, crowd, cold, refresh, limit" in capsys.readouterr().err


# ---- clients ---------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Devpi]:
    server = Devpi(free_ports())
    server.start()
    yield server
    server.stop()


def test_every_client_gets_the_file_and_tells_when(server: Devpi) -> None:
    server.says["/file"] = 200, {}, BYTES
    clients = crowd.fetch("127.0.0.1", server.port, "/file", BYTES, 5)
    assert [(one.wrong, one.got) for one in clients] == [("", len(BYTES))] * 5
    for one in clients:
        assert 0 < one.first <= one.last
    assert server.paths("/file") == ["/file"] * 5


def test_fault_of_a_client_is_told(server: Devpi) -> None:
    other = BYTES[:1_000_000] + b"x" + BYTES[1_000_001:]

    def breaks_off(handler: Handler, asked: Asked) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(BYTES)))
        handler.end_headers()
        handler.wfile.write(BYTES[:1000])
        handler.close_connection = True

    server.says |= {"/other": (200, {}, other), "/short": breaks_off, "/refused": (502, {}, b"no")}

    def wrong(path: str) -> str:
        (one,) = crowd.fetch("127.0.0.1", server.port, path, BYTES, 1)
        return one.wrong

    assert re.fullmatch(r"other bytes, [\d,]+ from the beginning", wrong("/other"))
    assert wrong("/short") == "ended after 1,000 bytes"
    assert wrong("/refused") == "answers 502"
    assert wrong("/nothing") == "answers 404"


# ---- figures ---------------------------------------------------------------------------------------------------


def load(size: int, p99: float = 0.001, wrong: int = 0) -> Load:
    return Load(100, 2.0, p99 / 2, p99, p99 * 2, size, wrong)


def test_what_the_upstream_sent_is_read_from_its_log() -> None:
    log = "1000 /bench/linux-64/a.conda\n250 /bench/linux-64/a.conda\n"
    assert sent(log) == Sent(2, 1250)
    assert sent("") == Sent(0, 0)


def test_bar_of_a_kept_package_has_the_median_of_the_rounds_and_their_spread() -> None:
    rows = [LoadRow("limit", [load(100), load(200), load(50)]), LoadRow("mine", [load(98), load(180), load(50)])]
    bar = at_least_static(rows, lambda one: one.bytes_per_second)
    assert (bar.figure, bar.met) == ("0.980 times (0.900 to 1.000)", True)
    wrong = LoadRow("mine", rows[1].loads, "other bytes")
    assert ratios(wrong, rows[0]) == [0.0]
    assert at_least_static([rows[0], wrong]).met is False


def test_rows_have_their_faults_and_their_ratios() -> None:
    rates = [RateRow("limit", [load(2_000_000_000)]), RateRow("mine", [load(1_000_000_000)], "3 errors")]
    page = Result("Rates", rates).markdown()
    assert "| mine (**3 errors**) | 500 | one run | 0.500 |" in page
    limits = [LimitRow("slow", 9.0, 150 << 20, 100 << 20), LimitRow("fast", 1.0, 90 << 20, 100 << 20, "exit code 22")]
    page = Result("Limit", limits).markdown()
    assert "| slow | 9.0 s | 100 MiB | 150 MiB | 1.50 |" in page
    assert "| fast (**exit code 22**) | 1.0 s | 100 MiB | 90 MiB | 0.90 |" in page


def test_row_of_a_crowd_has_the_slowest_of_each_run() -> None:
    def client(first: float, last: float, wrong: str = "") -> crowd.Client:
        one = crowd.Client.__new__(crowd.Client)
        one.first, one.last, one.wrong = first, last, wrong
        return one

    runs = [([client(0.1, 8), client(0.5, 7)], Sent(2, 3 << 20)), ([client(0.2, 9)], Sent(2, 3 << 20))]
    row = crowd_row("all", runs)
    assert row == CrowdRow("all", [0.5, 0.2], [8, 9], [Sent(2, 3 << 20)] * 2)
    assert "| all | 0.35 s | 8.50 s | 8.00, 9.00 s | 3.0 MiB | 1.00 |" in Result("Crowd", [row]).markdown()
    broken = crowd_row("all", [([client(0, 0, "answers 502"), client(0.1, 1)], Sent(0, 0))])
    assert broken.wrong == "1 without: answers 502"


def test_an_index_may_have_a_few_of_its_packages_in_place(tmp_path: Path) -> None:
    many = channels.many(tmp_path / "www", 200, 2, patched=True, placed=5)
    many.serve(1)
    assert channels.differs(many.served.folder, many.versions[1]) == ""
    files = [file.name for file in many.served.folder.iterdir() if file.name.endswith((".conda", ".tar.bz2"))]
    names = list(many.served.packages())
    assert sorted(files) == sorted(names[:5])
    assert many.served.folder.parts[-3:] == ("patched-200-2-5", "bench", SUBDIR)
