"""Options, and figures as Markdown."""

from pathlib import Path

import pytest

from bench.common import channels
from bench.common.cost import Cost
from bench.common.report import Result, Row, at_least, at_most
from bench.engine import scenarios, tools
from bench.engine.command import arguments
from bench.engine.tools import Job

ROOT = Path(__file__).resolve().parents[2]


def cost(seconds: float, code: int = 0) -> Cost:
    return Cost(code, late=False, began=0, seconds=seconds, cpu_seconds=seconds / 2, peak_bytes=10 << 20)


def test_another_tool_is_given_what_its_command_names(tmp_path: Path) -> None:
    tool = tools.other("wget = wget -q -i {list} -P {dir} --jobs={jobs} '{url}'")
    job = Job("http://host/tree", tmp_path / "to", tmp_path / "beside", 16, ("a.conda", "b.conda"))
    url = "http://host/tree/bench/linux-64"
    listed, folder = tmp_path / "beside/peer.list", tmp_path / "to"
    assert tool.name == "wget"
    assert tool.command(job) == ["wget", "-q", "-i", str(listed), "-P", str(folder), "--jobs=16", url]
    assert listed.read_text() == f"{url}/a.conda\n{url}/b.conda\n"


@pytest.mark.parametrize("option", ["wget", "=wget", "wget=", "wget=wget {nothing}", "wget=wget {", "wget=wget {}"])
def test_another_tool_that_cannot_be_run_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=r"--peer"):
        tools.other(option)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nothing"], "no scenario nothing; there are link"),
        (["--engine", "/nowhere"], "--engine /nowhere: has no files/anaconda_sync.py"),
        (["--markdown", "/nowhere/page.md"], "there is no folder /nowhere"),
        (["--work", "/a b"], "--work /a b: letters, digits"),
        (["--peer", "curl=curl {url}"], "--peer curl: there is a row of that name already"),
        (["--rounds", "0"], "--rounds 0: a whole number from 1 on"),
    ],
)
def test_a_wrong_option_is_named(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        arguments(argv)
    assert says in capsys.readouterr().err


def test_a_page_has_medians_ratios_and_bars() -> None:
    rows = [Row("engine", [cost(2), cost(1), cost(9)]), Row("peer", [cost(4)], "exit code 1")]
    bars = [at_most("not slower", 1.5, 1, "times"), at_least("faster", 2, 2, "times")]
    page = Result("Title", rows, bars, ["A note."]).markdown()
    assert "| engine | 2.00 s | 1.00, 9.00 s | 1.00 s | 10 MiB | 1.00 |" in page
    assert "| peer (**exit code 1**) | 4.00 s | one run | 2.00 s | 10 MiB | 2.00 |" in page
    assert "| not slower | 1.50 times | **not met** |" in page
    assert "| faster | 2.00 times | met |" in page


def test_every_byte_that_a_tool_brought_is_checked(tmp_path: Path) -> None:
    channel = channels.small(tmp_path / "www", 4)
    brought = tmp_path / "brought"
    brought.mkdir()
    for name in channel.packages():
        (brought / name).write_bytes((channel.folder / name).read_bytes())
    assert channels.incomplete(brought, channel.packages()) == ""
    first, second, *_ = sorted(brought.iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1] + b"x")
    wrong = f"2 files missing or damaged: {first.name} is missing"
    assert channels.incomplete(brought, channel.packages()) == wrong


def test_an_index_of_many_is_true_and_changes_as_it_says(tmp_path: Path) -> None:
    many = channels.many(tmp_path / "www", 200, 3, patched=False)
    many.serve(0)
    assert channels.incomplete(many.served.folder, many.served.packages()) == ""
    before = set(many.served.packages())
    many.serve(1)
    after = many.served.packages()
    assert (len(before - set(after)), len(set(after) - before)) == (1, 1)
    assert channels.incomplete(many.served.folder, many.served.packages()) == ""
    assert scenarios.differs(many.served.folder, many.versions[1]) == ""
    assert scenarios.differs(many.served.folder, many.versions[2]) == "the index differs in 2 packages"


def test_an_index_that_missed_a_patch_is_seen(tmp_path: Path) -> None:
    many = channels.many(tmp_path / "www", 200, 2, patched=True)
    many.serve(1)
    assert scenarios.differs(many.served.folder, many.versions[1]) == ""
    assert scenarios.differs(many.served.folder, many.versions[0]) == "the index differs in 100 packages"
