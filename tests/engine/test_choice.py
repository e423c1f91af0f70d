"""Which packages are held where an entry's `hold` is a mapping: what is fetched, what is served, and what goes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lanmirror_sync import choose
from lanmirror_sync.choice import SPEC, Choice, SpecError
from lanmirror_sync.choice import parse as parse_spec
from lanmirror_sync.config import ConfigError
from lanmirror_sync.config import parse as parse_config
from lanmirror_sync.plan import compare
from lanmirror_sync.repodata import Index
from lanmirror_sync.repodata import parse as parse_index
from lanmirror_sync.rules import LARGE
from rattler import MatchSpec

from tests.engine.lab import FILES, SCRIPT, Engine, Lab
from tests.upstream import channel, graph, server

LINUX, NOARCH = f"{graph.FORGE}/linux-64", f"{graph.FORGE}/noarch"
MEBI = 1 << 20

# ---- which packages a choice selects -----------------------------------------------------------------------------


def index_of(*names: str, **fields: Any) -> Index:
    """Return the index of packages, given as name-version-build; `fields` are in each record."""
    packages = {}
    for text in names:
        name, version, build = text.rsplit("-", 2)
        record = {"name": name, "version": version, "build": build, "build_number": 0, "md5": "0" * 32, **fields}
        packages[f"{text}.conda"] = record
    return parse_index(msgspec.json.encode({"packages": {}, "packages.conda": packages}))


def held(choice: Choice, index: Index, out: tuple[str, ...] = ()) -> set[str]:
    """Return what a choice holds, without the extension."""
    found = choose.selected(choice, index, choose.barred(choice, index, {f"{name}.conda" for name in out}))
    return {name.removesuffix(".conda") for name in found}


LIBRARY = index_of(
    *("numpy-1.26.4-py311_0", "numpy-1.26.4-py312_0", "numpy-2.0.0-py312_0", "numpy-base-2.0.0-0"),
    *("torch-2.3.0-cpu_0", "torch-2.3.0-cuda_1", "torch-2.10.0-cuda_0", "r-base-4.4-0", "r-dplyr-1.1-0"),
)
EVERYTHING = {name.removesuffix(".conda") for name in LIBRARY.packages}


def named(*names: str) -> set[str]:
    """Return the packages of the library whose name begins so."""
    return {name for name in EVERYTHING if name.startswith(names)}


@pytest.mark.parametrize(
    ("include", "wanted"),
    [
        (["numpy"], named("numpy-1", "numpy-2")),
        (["NumPy"], named("numpy-1", "numpy-2")),
        (["r-*", "numpy*"], named("r-", "numpy")),
        (["*"], EVERYTHING),
        (["numpy>=1.26,<2"], named("numpy-1")),
        (["numpy >= 1.26, < 2"], named("numpy-1")),
        (["numpy 1.26.*"], named("numpy-1")),
        (["numpy=1.26"], named("numpy-1")),
        (["numpy==1.26"], set()),
        (["numpy 1.26.4 py311*"], {"numpy-1.26.4-py311_0"}),
        (["numpy=1.26.4=py311_0"], {"numpy-1.26.4-py311_0"}),
        (["torch=*=*cuda*"], {"torch-2.3.0-cuda_1", "torch-2.10.0-cuda_0"}),
        (["torch * cuda*"], {"torch-2.3.0-cuda_1", "torch-2.10.0-cuda_0"}),
        (["torch<2.4 cpu*"], {"torch-2.3.0-cpu_0"}),
        (["torch<2|>2.4"], {"torch-2.10.0-cuda_0"}),
        (["*=*=py312_0"], {"numpy-1.26.4-py312_0", "numpy-2.0.0-py312_0"}),
        (["nothing"], set()),
    ],
)
def test_include_selects_by_name_version_and_build(include: list[str], wanted: set[str]) -> None:
    choice = Choice(include=tuple(map(parse_spec, include)))
    assert held(choice, LIBRARY) == wanted
    # The same specs as `exclude` let go of the same, whatever is included.
    assert held(Choice(exclude=choice.include), LIBRARY) == EVERYTHING - wanted
    assert held(Choice(include=choice.include, exclude=choice.include), LIBRARY) == set()


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (Choice(keep_latest=1), EVERYTHING - named("numpy-1", "torch-2.3")),
        (Choice(keep_latest=2), EVERYTHING),
        (Choice(include=("numpy",), keep_latest=1), named("numpy-2")),
        (Choice(exclude=("numpy>=2",), keep_latest=1), EVERYTHING - named("numpy-2", "torch-2.3")),
        (Choice(include=("numpy<2", "torch"), keep_latest=1), named("numpy-1", "torch-2.10")),
        (Choice(keep=("/srv",)), set()),
        (Choice(keep=("/srv",), exclude=("numpy",)), set()),
        (Choice(keep=("/srv",), include=("r-base",)), {"r-base-4.4-0"}),
        (Choice(keep=("/srv",), keep_latest=1), EVERYTHING - named("numpy-1", "torch-2.3")),
    ],
)
def test_latest_versions_are_counted_of_what_is_left(choice: Choice, wanted: set[str]) -> None:
    assert held(choice, LIBRARY) == wanted


def test_what_rules_hide_is_not_among_the_latest() -> None:
    assert held(Choice(include=("numpy",), keep_latest=1), LIBRARY, ("numpy-2.0.0-py312_0",)) == named("numpy-1")


def test_same_version_in_two_spellings_is_one_and_what_is_no_version_is_the_oldest() -> None:
    index = index_of("a-1.0-0", "a-1.0.0-1", "a-1.10-0", "a-1.9-0", "a-1.1rc1-0")
    assert held(Choice(keep_latest=1), index) == {"a-1.10-0"}
    assert held(Choice(keep_latest=3), index) == {"a-1.10-0", "a-1.9-0", "a-1.1rc1-0"}
    assert held(Choice(keep_latest=4), index) == {
        f"a-{text}" for text in ("1.10-0", "1.9-0", "1.1rc1-0", "1.0-0", "1.0.0-1")
    }
    versions = {"1.0": ["a"], "!": ["b"], "2.0": ["c"]}
    assert [*choose._latest(versions, 2)] == ["2.0", "1.0"]
    assert [*choose._latest(versions, 3)] == ["2.0", "1.0", "!"]


def test_version_that_cannot_be_read_is_excluded_and_not_included() -> None:
    (spec,) = choose.Specs(["a>1"]).of("a")
    assert not spec.matches("!", "0", unreadable=False)
    assert spec.matches("!", "0", unreadable=True)


def test_size_and_date_narrow_and_a_package_without_a_date_is_not_newer() -> None:
    day = 1_704_067_200
    records = {
        f"a-{number}-0.conda": {
            "name": "a", "version": str(number), "build": "0", "build_number": 0, "md5": "0" * 32, **fields
        }
        for number, fields in enumerate(
            ({}, {"size": MEBI}, {"size": MEBI + 1}, {"timestamp": day * 1000}, {"timestamp": day * 1000 - 1})
        )
    }  # fmt: skip
    index = parse_index(msgspec.json.encode({"packages": {}, "packages.conda": records}))
    assert held(Choice(max_size=MEBI), index) == {"a-0-0", "a-1-0", "a-3-0", "a-4-0"}
    assert held(Choice(newer_than=day), index) == {"a-3-0"}
    assert held(Choice(newer_than=day + 1), index) == set()
    assert held(Choice(newer_than=day - 1, keep_latest=1), index) == {"a-4-0"}
    assert held(Choice(newer_than=day, max_size=MEBI, include=("b",)), index) == set()


@settings(max_examples=60)
@given(st.from_regex(SPEC, fullmatch=True).filter(lambda text: not LARGE.search(text)))
def test_every_spec_that_is_accepted_can_be_matched(text: str) -> None:
    spec = parse_spec(text)
    assert MatchSpec(spec, exact_names_only=False)
    assert choose.Specs([spec]).of("numpy") is not None


@pytest.mark.parametrize(
    "text",
    [
        *("", "a b c d", "numpy=>2", "numpy>=", "conda-forge::numpy", "numpy[build=0]", "numpy=2.1 py*", "^nu.*$"),
        *("numpy>9999999999999999999", ">=2", "a/b", "numpy>=2.*", "numpy 1..2", "nu?py"),
    ],
)
def test_what_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="must be a MatchSpec"):
        parse_spec(text)


@pytest.mark.parametrize(
    ("hold", "words"),
    [
        ({"includes": ["a"]}, ["hold of main", "'includes'", "did you mean include?"]),
        ({}, ["hold of main is {}", "include, exclude, keep_latest"]),
        ({"include": "numpy"}, ["hold of main: include is 'numpy'", "a list of MatchSpecs"]),
        ({"exclude": ["numpy=>2"]}, ['hold of main: exclude has "numpy=>2"', "must be a MatchSpec"]),
        ({"keep_latest": 0}, ["hold of main: keep_latest is 0", "from 1 to 1000"]),
        ({"keep_latest": True}, ["keep_latest is True"]),
        ({"newer_than": "last year"}, ["newer_than is 'last year'", "2024-01-01"]),
        ({"newer_than": "2024-02-30"}, ["newer_than is '2024-02-30'"]),
        ({"max_size": "2GB/s"}, ["max_size is '2GB/s'", "500MB"]),
        ({"max_size": "2Gbit"}, ["max_size is '2Gbit'"]),
        ({"keep": ["environment.yml"]}, ["keep is 'environment.yml'", "absolute paths"]),
        ("half", ["hold of main is 'half'", "all, none, or a mapping"]),
    ],
)
def test_wrong_choice_is_named(hold: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"repos": [{"name": "main", "hold": hold}]}, {})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("size", ["2MiB", 2 * MEBI, "2097152", "2 mib", "2048KiB"])
@pytest.mark.parametrize("day", ["2024-01-01", date(2024, 1, 1)])
def test_size_and_day_are_read_as_people_write_them(size: object, day: object) -> None:
    (entry,) = parse_config({"repos": [{"name": "main", "hold": {"max_size": size, "newer_than": day}}]}, {}).repos
    assert entry.choice == Choice(max_size=2 * MEBI, newer_than=1_704_067_200)


FILE_NAMES = [f"a-{number}-0.conda" for number in range(6)]


@given(
    st.sets(st.sampled_from(FILE_NAMES)),
    st.dictionaries(st.sampled_from(FILE_NAMES), st.sampled_from([bytes(16), b"\1" * 16, 7, 8])),
    st.booleans(),
)
def test_of_what_is_not_chosen_nothing_is_fetched_and_nothing_wrong_stays(
    chosen: set[str], files: dict[str, bytes | int], on_demand: bool
) -> None:
    index = index_of(*(name.removesuffix(".conda") for name in FILE_NAMES), size=7)
    plan = compare(index.packages, files, [], chosen=frozenset(chosen), on_demand=on_demand)
    touched = {package.file_name for package in (*plan.fetch, *plan.replace)}
    wrong = {name for name, known in files.items() if known in (8, b"\1" * 16)}
    assert touched == (chosen - files.keys()) | (chosen & wrong)
    assert plan.wrong == (wrong - chosen if on_demand else set())
    assert plan.excluded == (set() if on_demand else {*FILE_NAMES} - chosen)
    assert {*plan.orphans} == {*plan.unwanted} == files.keys() - chosen - plan.wrong


# ---- what is fetched, served, and goes ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grove(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an upstream, not to be changed."""
    root = tmp_path_factory.mktemp("grove")
    graph.write(root, [*graph.crowd(count=12), *graph.science()])
    return root


@pytest.fixture
def lab(engine: Engine, grove: Path, tmp_path: Path) -> Iterator[Lab]:
    """Return an empty mirror of conda-forge below that upstream."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    tree = shutil.copytree(grove, tmp_path / "upstream")
    with server.serving(tree) as upstream, server.serving(mirror) as served:
        lab = Lab(engine, tmp_path, upstream, served, mirror)
        lab.settings |= {"repos": [], "exclude": []}
        yield lab


def hold(lab: Lab, *arches: str, **choice: Any) -> None:
    """Have the mirror hold what a choice says of conda-forge."""
    lab.settings["cloud"] = [
        {"name": f"conda-forge/{arch}", "hold": choice} for arch in arches or ("noarch", "linux-64")
    ]


def of_upstream(lab: Lab, subdir: str = LINUX) -> dict[str, dict[str, Any]]:
    records: dict[str, dict[str, Any]] = lab.repodata_of_upstream(subdir)["packages"]
    return records


@pytest.mark.slow
@pytest.mark.parametrize("on_demand", [False, True])
def test_chosen_packages_alone_are_fetched_and_named_unless_the_rest_comes_on_demand(lab: Lab, on_demand: bool) -> None:
    lab.settings |= {"on_demand": on_demand, "block": ["lib0002=1.2"]}
    hold(lab, include=["numpy", "lib000*", "python<3.11"], exclude=["numpy=1.24", "lib0001"], keep_latest=1)
    wanted = {
        *(f"numpy-2.0.0-{tag}_0.tar.bz2" for tag in ("py311", "py312")), "python-3.10.14-h0_0.tar.bz2",
        *(f"lib000{digit}-1.{1 if digit == 2 else 2}-h0_0.tar.bz2" for digit in (0, 2, 4, 5, 6, 7, 8, 9)),
    }  # fmt: skip

    run = lab.sync()

    assert run.code == 0, run.log
    assert lab.packages(LINUX) == wanted
    assert lab.packages(NOARCH) == {"lib0003-1.2-h0_0.tar.bz2"}
    everything = {name for name in of_upstream(lab) if name != "lib0002-1.2-h0_0.tar.bz2"}
    assert lab.named(f"{LINUX}/repodata.json") == (everything if on_demand else wanted)
    lab.check()
    status = json.loads((lab.mirror / ".lanmirror/public/status.json").read_bytes())["subdirs"][LINUX]
    assert (status["hold"], status["held"], status["failures"]) == ("some", len(wanted), [])

    lab.upstream.requests.clear()
    run = lab.sync()
    assert "2 of 2 subdirs unchanged" in run.log
    assert not lab.upstream.asked("*.tar.bz2")
    plan = lab.plan()["subdirs"][LINUX]
    assert (plan["state"], plan["fetch"]["files"], plan["held"]["files"]) == ("unchanged", 0, len(wanted))


@pytest.mark.slow
@pytest.mark.parametrize("on_demand", [False, True])
def test_what_is_chosen_no_more_goes_after_its_grace(lab: Lab, on_demand: bool) -> None:
    lab.settings["on_demand"] = on_demand
    hold(lab, include=["lib000*"])
    assert lab.sync().code == 0
    before = lab.packages(LINUX)
    hold(lab, include=["lib000*"], keep_latest=1)
    plan = lab.plan()["subdirs"][LINUX]
    gone = {name for name in before if "-1.2-" not in name}
    told = [plan[key]["files"] for key in ("fetch", "held", "surplus", "delete")]
    assert told == [0, len(before - gone), len(gone), 0]
    run = lab.sync("--delete")
    assert run.code == 0, run.log
    assert lab.packages(LINUX) == before
    lab.check()
    if on_demand:
        # A refresh of the indexes knows nothing of the choice, and begins no grace anew.
        channel.edit(lab.tree / LINUX, {"lib0011-1.0-h0_0.tar.bz2": {"license": "MIT"}})
        assert lab.sync("sync", "--indexes", later=20 * 3600).code == 0
    else:
        assert lab.named(f"{LINUX}/repodata.json") == before - gone
    run = lab.sync("--delete", later=25 * 3600)
    assert run.code == 0, run.log
    assert lab.packages(LINUX) == before - gone
    lab.check()
    run = lab.sync("--delete", later=25 * 3600)
    assert "2 of 2 subdirs unchanged" in run.log
    status = json.loads((lab.mirror / ".lanmirror/public/status.json").read_bytes())["subdirs"][LINUX]
    assert status["held"] == len(before - gone)


@pytest.mark.slow
def test_file_that_nobody_chose_and_that_is_wrong_goes_at_once_on_demand(lab: Lab) -> None:
    lab.settings["on_demand"] = True
    hold(lab, include=["lib000*"])
    assert lab.sync().code == 0
    strange, unread = (lab.mirror / LINUX / f"openblas-0.3.2{digit}-h0_0.tar.bz2" for digit in "07")
    strange.write_bytes(b"other bytes")
    unread.write_bytes(b"x" * of_upstream(lab)[unread.name]["size"])
    held = lab.packages(LINUX) - {strange.name, unread.name}
    run = lab.sync()
    assert run.code == 0, run.log
    assert lab.packages(LINUX) == held
    assert not lab.upstream.asked("*/openblas*")
    lab.check()


@pytest.mark.slow
def test_choice_may_be_taken_back(lab: Lab) -> None:
    hold(lab, include=["python"])
    lab.settings["cloud"] = lab.settings["cloud"][1:]
    assert lab.sync().code == 0
    assert len(lab.packages(LINUX)) == 3
    lab.settings["cloud"] = ["conda-forge/linux-64"]
    run = lab.sync()
    assert run.code == 0, run.log
    assert lab.packages(LINUX) == {*of_upstream(lab)}
    lab.check()


def test_choice_without_the_library_is_a_wrong_configuration(lab: Lab) -> None:
    hide = "import sys; sys.path.insert(0, sys.argv.pop(1)); import importlib.util as u; find = u.find_spec\n"
    hide += "u.find_spec = lambda name: None if name == 'rattler' else find(name)\n"
    hide += "from lanmirror_sync.cli import main; sys.exit(main(sys.argv[1:]))"
    hold(lab, include=["numpy"])
    run = subprocess.run(
        [sys.executable, "-c", hide, str(FILES), "--check-config", "--config", str(lab.configure())],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode == 2
    assert "pip install py-rattler" in run.stderr


@pytest.mark.slow
def test_library_is_loaded_where_something_is_chosen_anew_alone(lab: Lab) -> None:
    hold(lab, include=["numpy>=2"])
    for loaded in (True, False):
        run = subprocess.run(
            [sys.executable, str(SCRIPT), "--config", str(lab.configure())],
            check=False, capture_output=True, text=True, timeout=60,
            env={"PATH": os.environ["PATH"], "PYTHONPROFILEIMPORTTIME": "1"},
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert (" rattler" in run.stderr) == loaded
