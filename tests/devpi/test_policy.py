"""Which files of a mirror are shown by the rules of its index."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lanmirror_devpi.page import File, Page
from lanmirror_devpi.policy import DAY, MAX_DAYS, Policy, RuleError, Used, hidden_by_change, moment, parse, shown

NOW = 1_800_000_000.0
OLD = "2020-01-01T00:00:00Z"


def policy(block: str = "", allow: str = "", days: int = 0, undated: str = "hidden") -> Policy:
    """Return rules; those of a list with spaces between them."""
    return Policy.of("root/pypi", days, undated, block.split(), allow.split())


def page(*names: str, at: Any = OLD, **told: Any) -> Page:
    return Page("pkg", tuple(File(name, "", f"+f/1/2/{name}", {"upload-time": at}) for name in names), told)


def refused(rules: Policy, version: str, project: str = "pkg", at: Any = OLD) -> bool:
    return rules.refusal(project, f"{project}-{version}.tar.gz", at, NOW) is not None


# The table of docs/what-comes-in.md.
@pytest.mark.parametrize(
    ("block", "allow", "version", "is_shown"),
    [
        ("", "", "2.1", True),
        ("pkg", "", "2.1", False),
        ("pkg>=2,<2.3", "", "2.1", False),
        ("pkg>=2,<2.3", "", "2.3", True),
        ("*", "", "2.1", False),
        ("*", "pkg", "2.1", True),
        ("*", "pkg<2", "2.1", False),
        ("*", "pkg<2", "1.9", True),
        ("pkg", "*", "2.1", False),
        ("pkg", "pkg==2.1", "2.1", True),
        ("pkg==2.1", "pkg", "2.1", False),
        ("pkg==2.1", "pkg", "2.2", True),
        ("pkg", "pkg", "2.1", False),
        ("pkg>=2", "pkg<3", "2.1", False),
        ("*", "*", "2.1", False),
    ],
)
def test_more_exact_rule_counts_and_of_equals_the_one_that_blocks(
    block: str, allow: str, version: str, is_shown: bool
) -> None:
    assert refused(policy(block, allow), version) is not is_shown


@pytest.mark.parametrize(
    ("rule", "version", "is_blocked"),
    [
        ("PKG", "1.0", True),
        ("pkg>1.0", "2.0rc1", True),
        ("pkg<2.0", "2.0rc1", False),
        ("pkg==1.0", "1.0.0", True),
        ("pkg==1.0", "1.0+cpu", True),
        ("pkg==1.*", "1.9.dev1", True),
        ("pkgs", "1.0", False),
        # Nobody can say that it is not one of them.
        ("pkg>=2", "no-version", True),
        ("pkg!=1.0", "1.0", False),
    ],
)
def test_versions_are_those_of_packaging(rule: str, version: str, is_blocked: bool) -> None:
    assert refused(policy(rule), version) is is_blocked


def test_names_are_normal_ones() -> None:
    assert refused(policy("Zope_Interface==5.*"), "5.0", "zope.interface")
    assert policy("*", "flask").by_rule("Flask", "1.0") == (True, "")
    # A wheel tells its name in another way.
    assert policy("zope-interface<6").refusal("zope-interface", "zope_interface-5.0-py3-none-any.whl", OLD, NOW)


def test_version_that_cannot_be_read_is_let_in_by_no_rule_with_versions() -> None:
    assert refused(policy("*", "pkg>=0"), "no-version")
    assert not refused(policy("*", "pkg"), "no-version")


@pytest.mark.parametrize(
    "rule", ["", "a b", "pkg>>1", "pkg[extra]", "pkg; python_version<'3'", "pkg @ https://x.example/y", "**"]
)
def test_rule_that_is_none_is_refused(rule: str) -> None:
    with pytest.raises(RuleError):
        parse(rule)


@pytest.mark.parametrize(
    ("project", "is_blocked"), [("pkg", True), ("other", True), ("listed", False), ("some", False), ("half", False)]
)
def test_name_of_which_nothing_is_shown_is_known_without_its_page(project: str, is_blocked: bool) -> None:
    rules = policy("* pkg half<2", "listed some>=2 half")
    assert rules.blocks_all_of(project) is is_blocked


# ---- age -------------------------------------------------------------------------------------------------------


def test_file_is_shown_from_its_day_on() -> None:
    rules, uploaded = policy(days=14), moment("2026-11-01T00:00:00Z")
    assert uploaded is not None
    for now, is_shown in ((uploaded, False), (uploaded + 14 * DAY - 1, False), (uploaded + 14 * DAY, True)):
        refusal = rules.refusal("pkg", "pkg-1.0.zip", "2026-11-01T00:00:00Z", now)
        assert (refusal is None) is is_shown
        if refusal:
            assert refusal.until == uploaded + 14 * DAY
            assert "2026-11-15 00:00 UTC" in refusal.why


@pytest.mark.parametrize(
    "at", [None, "", "yesterday", 7, True, "2026-13-45T00:00:00Z", "2024-05-05T12:12:12.123456Z tomorrow", ["x"]]
)
@pytest.mark.parametrize("undated", ["hidden", "shown"])
def test_file_without_a_right_date_is_hidden_or_shown_as_declared(at: Any, undated: str) -> None:
    assert refused(policy(days=1, undated=undated), "1.0", at=at) is (undated == "hidden")
    # Where no age is wanted, nobody asks for it.
    assert not refused(policy("other", undated=undated), "1.0", at=at)


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_date_at_the_end_of_time_is_no_fault(at: str) -> None:
    assert refused(policy(days=MAX_DAYS), "1.0", at=at) is at.startswith("9")


def test_what_is_allowed_has_no_age_and_what_is_blocked_none_either() -> None:
    rules = policy("bad pkg==2.0", "pkg", days=14)
    assert not refused(rules, "1.0", at=None)
    assert refused(rules, "2.0", at=OLD)
    assert refused(rules, "1.0", "bad")
    assert not refused(rules, "1.0", "other")


# ---- pages -----------------------------------------------------------------------------------------------------


def test_page_has_the_files_and_versions_that_are_left() -> None:
    there = page("pkg-1.0.zip", "pkg-2.0-py3-none-any.whl", "pkg-2.0.tar.gz", versions=["0.9", "1.0.0", "2.0"], more=1)
    left = shown(policy("pkg>=2"), there, NOW)
    assert [file.name for file in left.page.files] == ["pkg-1.0.zip"]
    assert left.page.told == {"versions": ["1.0.0"], "more": 1}
    assert (left.hidden, left.comes) == (2, ())
    # Nothing is copied where nothing is hidden.
    assert shown(policy("other"), there, NOW).page is there


def test_page_knows_when_its_hidden_files_come() -> None:
    files = tuple(
        File(f"pkg-{n}.zip", "", "", {"upload-time": f"2027-01-{day:02}T00:00:00Z"})
        for n, day in enumerate((1, 14, 9, 14))
    )
    now = moment("2027-01-15T00:00:00Z") or 0.0
    left = shown(policy(days=7), Page("pkg", files, {}), now)
    assert left.hidden == 3
    assert left.comes == tuple(moment(f"2027-01-{day}T00:00:00Z") for day in (16, 21))


RULES = st.lists(
    st.builds(
        "{}{}".format,
        st.sampled_from(["pkg", "Pkg", "other"]),
        st.sampled_from(["", "==1.0", ">=1", "<2", ">=1,<3", "!=2.0"]),
    )
    | st.just("*"),
    max_size=4,
)
NAMES = st.builds(
    "pkg-{}.{}".format,
    st.sampled_from(["1.0", "2.0", "2.0rc1", "3.0.post1", "odd"]),
    st.sampled_from(["zip", "tar.gz"]),
)
TIMES = st.none() | st.text(max_size=5) | st.integers(0, 60).map(lambda d: f"2027-01-01T00:{d:02}:00Z")
FILES = st.lists(st.tuples(NAMES, TIMES), max_size=6, unique_by=lambda file: file[0])


@given(RULES, RULES, st.integers(0, 30), st.sampled_from(["hidden", "shown"]), FILES)
def test_page_and_files_agree_and_time_only_adds(
    block: list[str], allow: list[str], days: int, undated: str, files: list[tuple[str, Any]]
) -> None:
    rules = Policy.of("root/pypi", days, undated, block, allow)
    there = Page("pkg", tuple(File(name, "", name, {"upload-time": at}) for name, at in files), {})
    before: set[str] = set()
    for now in (NOW, NOW + DAY, NOW + 40 * DAY, NOW + 4000 * DAY):
        left = shown(rules, there, now)
        names = {file.name for file in left.page.files}
        assert names == {
            name for name, at in files if not (rules.key and rules.refusal("pkg", name, at, now) is not None)
        }
        # What was shown once is shown for ever, and what comes is told before.
        assert before <= names
        assert len(names) + left.hidden == len(files)
        assert all(at > now for at in left.comes)
        before = names
    if rules.blocks_all_of("pkg"):
        assert not before


@given(RULES, RULES, st.integers(0, 30))
def test_one_more_rule_that_blocks_never_shows_more(block: list[str], allow: list[str], days: int) -> None:
    names = [f"pkg-{version}.zip" for version in ("1.0", "2.0", "2.0rc1", "odd")]
    for rule in ("pkg", "pkg>=2", "*"):
        less, more = (
            shown(Policy.of("i", days, "hidden", rules, allow), page(*names), NOW) for rules in ([*block, rule], block)
        )
        assert {file.name for file in less.page.files} <= {file.name for file in more.page.files}


@given(st.text(max_size=20))
def test_any_text_is_a_rule_or_is_refused(text: str) -> None:
    try:
        name, _ = parse(text)
    except RuleError:
        return
    assert name


@given(st.text(max_size=40) | st.integers() | st.none())
def test_any_value_is_a_time_or_none(value: Any) -> None:
    assert isinstance(moment(value), float | None)


POLICIES = st.builds(
    Policy.of, st.just("root/pypi"), st.integers(0, 30), st.sampled_from(["hidden", "shown"]), RULES, RULES
)


@given(POLICIES, POLICIES, FILES)
def test_change_hides_what_was_shown_and_is_not_any_more(
    before: Policy, after: Policy, files: list[tuple[str, Any]]
) -> None:
    there = Page("pkg", tuple(File(name, "", name, {"upload-time": at}) for name, at in files), {})
    was, now = ({file.name for file in shown(rules, there, NOW).page.files} for rules in (before, after))
    used = [Used("pkg", name, at, 0.0) for name, at in files]
    assert [file.name for file, _ in hidden_by_change(before, after, used, NOW)] == sorted(was - now)
