"""Which packages may come in: rules of names, versions and age, in all that is served and fetched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lanmirror_sync.config import parse
from lanmirror_sync.hidden import date, judge, read
from lanmirror_sync.repodata import parse as parse_index
from lanmirror_sync.rules import LARGE, RULE, RuleError, Rules
from lanmirror_sync.rules import parse as parse_rule
from rattler import VersionSpec

from tests.engine import outside
from tests.engine.lab import FILES, SCRIPT, Lab
from tests.upstream import channel

LINUX = "pkgs/main/linux-64"
NOARCH = "pkgs/main/noarch"
VICTIM = "lib0003-1.3-0.conda"
TOOL = "tool-2.0-0.conda"
DAY, HOUR = 86400.0, 3600.0
FORMS = {*outside.FORMS} - {"current_repodata.json.bz2"}

# ---- which rule counts -------------------------------------------------------------------------------------------

VERSIONS = ("1.9", "2.0", "2.1", "2.1rc1", "2.1.5", "2.3", "10.0")


@pytest.mark.parametrize(
    ("block", "allow", "shown"),
    [
        (["pkg"], [], ()),
        (["PKG"], [], ()),
        (["other"], [], VERSIONS),
        (["pkg>=2,<2.3"], [], ("1.9", "2.3", "10.0")),
        (["pkg >= 2, < 2.3"], [], ("1.9", "2.3", "10.0")),
        (["pkg=2.1"], [], ("1.9", "2.0", "2.3", "10.0")),
        (["pkg==2.1"], [], tuple(version for version in VERSIONS if version != "2.1")),
        (["pkg<2|>=2.3"], [], ("2.0", "2.1", "2.1rc1", "2.1.5")),
        (["pkg!=2.1.*"], [], ("2.1", "2.1rc1", "2.1.5")),
        (["*"], ["pkg"], VERSIONS),
        (["*"], ["pkg<2"], ("1.9",)),
        (["pkg"], ["pkg==2.1"], ("2.1",)),
        (["pkg==2.1"], ["pkg"], tuple(version for version in VERSIONS if version != "2.1")),
        (["pkg>=2"], ["pkg<3"], ("1.9",)),
        (["pkg"], ["*"], ()),
        (["other>1"], ["pkg"], VERSIONS),
    ],
)
def test_more_exact_rule_counts_and_block_of_equals(block: list[str], allow: list[str], shown: tuple[str, ...]) -> None:
    rules = Rules(block=tuple(block), allow=tuple(allow))
    assert tuple(version for version in VERSIONS if rules.verdict("pkg", version)[0] is not False) == shown
    for version in VERSIONS:
        assert rules.blocks_file(f"pkg-{version}-h1_0.conda") == (version not in shown)
    assert rules.blocks("pkg") == (shown == ())


def test_version_that_cannot_be_read_is_hidden_by_block_and_let_in_by_no_allow() -> None:
    assert Rules(block=("pkg<1",)).verdict("pkg", "1__!")[0] is False
    assert Rules(block=("*",), allow=("pkg>1",)).verdict("pkg", "1__!")[0] is False


@given(st.from_regex(RULE, fullmatch=True).filter(lambda text: not LARGE.search(text)))
def test_every_rule_that_is_accepted_can_be_judged(text: str) -> None:
    _, versions = parse_rule(text)
    assert not versions or VersionSpec(versions)


@pytest.mark.parametrize(
    "rule",
    [
        *("", "pkg=>2", "pkg>=", "pkg 2.1", "pkg-*", "pkg>=2.*", "pkg==2.1.*", "conda-forge::pkg", "pkg[build=0]"),
        *("pkg>=1__2", "pkg>=1.", "pkg>2,", "pkg;os", "pkg>9999999999999999999", "**", ">=2", "a/b"),
    ],
)
def test_what_is_no_rule_is_refused(rule: str) -> None:
    with pytest.raises(RuleError, match="a name with versions"):
        parse_rule(rule)


def test_entry_has_its_own_rules_and_the_others_of_the_whole() -> None:
    entries = ["main", {"name": "r", "block": ["*"], "allow": ["r-base"]}, {"name": "free", "min_age_days": 0}]
    config = parse({"repos": entries, "arches": ["noarch"], "min_age_days": 7}, {})
    found = {str(subdir.path): subdir.rules for subdir in config.subdirs()}
    assert found == {
        "pkgs/main/noarch": Rules(7),
        "pkgs/r/noarch": Rules(7, block=("*",), allow=("r-base",)),
        "pkgs/free/noarch": None,
    }


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"timestamp": 1_700_000_000_000}, 1_700_000_000),
        ({"timestamp": 1_400_000_000}, 1_400_000_000),
        ({"timestamp": 1_700_000_000_000, "indexed_timestamp": 1_750_000_000_000}, 1_750_000_000),
        ({"timestamp": 0}, None),
        ({"timestamp": -5}, None),
        ({"timestamp": None, "indexed_timestamp": "yesterday"}, None),
        ({}, None),
    ],
)
def test_date_is_that_of_the_index_or_of_the_build(fields: dict[str, object], wanted: float | None) -> None:
    raw = msgspec.json.encode({"version": "1", **fields})
    assert date(read(msgspec.Raw(raw))) == wanted


def test_file_that_is_named_otherwise_than_its_package_is_hidden_by_either_name() -> None:
    """The web server goes by the names of files, and clients by those of records."""
    record = {"name": "good", "version": "1", "build": "0", "build_number": 0, "md5": "0" * 32}
    packages = {"good-1-0.conda": record, "evil-1-0.conda": record, "good-2-0.conda": {**record, "name": "evil"}}
    index = parse_index(msgspec.json.encode({"packages.conda": packages, "packages": {}}))
    found = judge(Rules(block=("evil",)), "here", index, 0)
    assert found.blocked == {"evil-1-0.conda", "good-2-0.conda"}
    assert found.told == {"good-2-0.conda": 'good-2-0.conda is blocked here: rule "evil" of here'}


@pytest.fixture
def lab(lab: Lab) -> Lab:
    """Return a lab whose packages are old: what made the index of the tests' upstream says that they came just now."""
    for subdir in (LINUX, NOARCH):
        names = {**lab.repodata_of_upstream(subdir)["packages"], **lab.repodata_of_upstream(subdir)["packages.conda"]}
        channel.edit(lab.tree / subdir, {name: {"indexed_timestamp": None} for name in names})
    return lab


# ---- what is served ----------------------------------------------------------------------------------------------


def young(lab: Lab, name: str, *, comes_in: float = HOUR, days: int = 1) -> None:
    """Have the upstream say of a package that it will be so many days old in so many seconds."""
    stamp = int((time.time() - days * DAY + comes_in) * 1000)
    channel.edit(lab.tree / LINUX, {name: {"timestamp": stamp}})


def everywhere(lab: Lab, name: str, subdir: str = LINUX) -> set[str]:
    """Return the forms of an index that name a package; shards count by what they hold."""
    named = {form for form in outside.FORMS if name in lab.named(f"{subdir}/{form}")}
    exports = lab.mirror / subdir / "run_exports.json"
    return named | ({"run_exports.json"} if exports.exists() and name.encode() in exports.read_bytes() else set())


def refused(lab: Lab, name: str, subdir: str = LINUX) -> str:
    """Return the text that the web server refuses a file with; "" where it does not."""
    file = lab.mirror / ".lanmirror/public/hidden" / subdir / name
    return file.read_text() if file.exists() else ""


@pytest.mark.slow
@pytest.mark.parametrize("on_demand", [False, True])
def test_hidden_package_is_in_no_form_and_not_fetched(lab: Lab, on_demand: bool) -> None:
    young(lab, TOOL)
    channel.edit(lab.tree / LINUX, {"lib0002-1.2-0.conda": {"timestamp": None}})
    lab.settings |= {"min_age_days": 1, "block": ["lib0003=1.3", "lib0001"], "allow": ["hello"], "on_demand": on_demand}

    run = lab.sync()

    assert run.code == 0, run.log
    hidden = {TOOL, VICTIM, "lib0001-1.1-0.conda", "lib0002-1.2-0.conda"}
    for name in hidden:
        assert everywhere(lab, name) == set(), name
        assert not lab.upstream.asked(f"*/{name}"), name
    assert everywhere(lab, "hello-1.0-0.conda") == FORMS
    assert lab.packages(LINUX) == lab.named(f"{LINUX}/repodata.json")
    assert len(lab.packages(LINUX)) == 14 - len(hidden)
    lab.check()
    assert refused(lab, VICTIM) == f'{VICTIM} is blocked here: rule "lib0003=1.3" of {LINUX}\n'
    assert refused(lab, TOOL).startswith(f"{TOOL} is too new: {LINUX} shows packages of 1 day or more, this one")
    assert refused(lab, "lib0002-1.2-0.conda").startswith("lib0002-1.2-0.conda tells no date")
    # The site refuses those by a pattern of its own.
    assert refused(lab, "lib0001-1.1-0.conda") == ""
    assert refused(lab, "hello-1.0-0.conda") == ""
    assert "2 of 2 subdirs unchanged" in lab.sync().log
    assert lab.plan()["subdirs"][LINUX]["state"] == "unchanged"

    lab.settings |= {"min_age_days": 0, "block": []}
    run = lab.sync()
    assert run.code == 0, run.log
    assert lab.packages(LINUX) >= hidden
    assert [refused(lab, name) for name in hidden] == [""] * 4
    lab.check()


@pytest.mark.slow
@pytest.mark.parametrize("command", [["sync"], ["sync", "--indexes"]])
def test_package_comes_of_age_though_the_index_did_not_change(lab: Lab, command: list[str]) -> None:
    lab.settings |= {"on_demand": True, "min_age_days": 1}
    young(lab, TOOL)
    young(lab, VICTIM, comes_in=30 * HOUR)
    assert lab.sync().code == 0
    for later, shown in ((0, False), (2 * HOUR, True), (3 * HOUR, True), (31 * HOUR, True)):
        lab.upstream.requests.clear()
        run = lab.sync(*command, later=later)
        assert run.code == 0, run.log
        (asked,) = lab.upstream.asked(f"/{LINUX}/repodata.json.zst", "GET")
        assert "If-None-Match" in asked.headers
        assert (everywhere(lab, TOOL) == FORMS) == shown
        assert everywhere(lab, VICTIM) == (FORMS if later > 30 * HOUR else set())
        assert bool(refused(lab, TOOL)) != shown
        assert ("2 of 2 subdirs unchanged" in run.log) == (later in (0, 3 * HOUR)), run.log
    lab.check()


@pytest.mark.slow
def test_held_package_that_is_hidden_stays_where_it_may_come_back(lab: Lab) -> None:
    assert lab.sync().code == 0
    held = lab.packages(LINUX)
    young(lab, TOOL)
    # More at once than a fault of the upstream may take.
    blocked = {name for name in held if name.startswith("lib")}
    assert len(blocked) * 100 > 20 * len(held)
    lab.settings |= {"min_age_days": 1, "block": [*(name.partition("-")[0] for name in blocked)]}

    run = lab.sync("--delete")
    assert run.code == 0, run.log
    assert everywhere(lab, TOOL) == everywhere(lab, VICTIM) == set()
    assert lab.packages(LINUX) == held
    lab.settings["delete_grace_hours"] = 0
    run = lab.sync("--delete")
    assert run.code == 0, run.log
    assert lab.packages(LINUX) == held - blocked
    assert TOOL in lab.packages(LINUX)

    lab.upstream.requests.clear()
    run = lab.sync("--delete", later=2 * HOUR)
    assert run.code == 0, run.log
    assert TOOL in lab.named(f"{LINUX}/repodata.json")
    assert not lab.upstream.asked(f"*/{TOOL}"), "it was here all the time"
    lab.check()


@pytest.mark.slow
def test_hidden_package_stays_hidden_where_the_upstream_takes_it_out(lab: Lab) -> None:
    """A version that left the index stays named until its successor is here; but not one that is blocked."""
    assert lab.sync().code == 0
    assert everywhere(lab, TOOL)
    channel.retract(lab.tree / "pkgs/main", "linux-64", TOOL)
    spec = channel.Spec("tool", "2.1", subdir="linux-64", files={"share/tool": b"tool"})
    channel.publish(lab.tree / "pkgs/main", spec)
    lab.fault("*/tool-2.1-0.conda", status=404)
    lab.settings["block"] = ["tool==2.0"]
    assert lab.sync().code == 1
    assert everywhere(lab, TOOL) == set()


@pytest.mark.slow
def test_block_of_all_leaves_what_is_allowed(lab: Lab) -> None:
    lab.settings |= {"block": ["*"], "allow": ["hello", "lib0003"]}
    run = lab.sync()
    assert run.code == 0, run.log
    assert lab.packages(LINUX) == {"hello-1.0-0.conda", VICTIM}
    assert lab.packages(NOARCH) == set()
    assert not (lab.mirror / ".lanmirror/public/hidden").exists()
    lab.check()


# ---- what it costs -----------------------------------------------------------------------------------------------


def imported(lab: Lab, *, path: Path = FILES) -> tuple[int, str]:
    """Run the script; return its exit code, and what it wrote, with the modules that it loaded."""
    run = subprocess.run(
        [sys.executable, str(path / SCRIPT.name), "--config", str(lab.configure())],
        check=False, capture_output=True, text=True, timeout=60,
        env={"PATH": os.environ["PATH"], "PYTHONPROFILEIMPORTTIME": "1"},
    )  # fmt: skip
    return run.returncode, run.stderr


@pytest.mark.slow
def test_library_of_versions_is_loaded_where_versions_are_compared_alone(lab: Lab) -> None:
    lab.remember()
    code, log = imported(lab)
    assert code == 0, log
    assert "lanmirror_sync.rules" not in log
    assert "lanmirror_sync.hidden" not in log
    lab.settings["block"] = ["lib0003=1.3"]
    code, log = imported(lab)
    assert code == 0, log
    assert " rattler" in log
    assert everywhere(lab, VICTIM) == set()
    code, log = imported(lab)
    assert code == 0, log
    assert "2 of 2 subdirs unchanged" in log
    assert " rattler" not in log
    # Nor is anything else that only a run needs which finds something new.
    for module in ("hidden", "room", "planned", "outlook", "preview"):
        assert f"lanmirror_sync.{module}" not in log
    for module in ("email.utils", "html.parser", "ssl", "asyncio"):
        assert not re.search(rf"\| +{re.escape(module)}$", log, re.MULTILINE), module


def test_rules_with_versions_without_the_library_are_a_wrong_configuration(lab: Lab, tmp_path: Path) -> None:
    config = lab.configure()
    hide = "import sys; sys.path.insert(0, sys.argv.pop(1)); import importlib.util as u; find = u.find_spec\n"
    hide += "u.find_spec = lambda name: None if name == 'rattler' else find(name)\n"
    hide += "from lanmirror_sync.cli import main; sys.exit(main(sys.argv[1:]))"
    for block, code in ((["tool==2.0"], 2), (["tool"], 0)):
        lab.settings["block"] = block
        lab.configure()
        run = subprocess.run(
            [sys.executable, "-c", hide, str(FILES), "--check-config", "--config", str(config)],
            check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert run.returncode == code, run.stderr
        assert ("py-rattler" in run.stderr) == (code == 2)
