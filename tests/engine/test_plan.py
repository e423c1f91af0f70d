"""Properties of the planner: what is fetched, kept, replaced, left out and deleted, whatever the indexes hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fnmatch import fnmatchcase

from hypothesis import given
from hypothesis import strategies as st
from lanmirror_sync.plan import Known, compare, due, in_order, too_many
from lanmirror_sync.repodata import Package

HOUR = 3600.0
# Few of each, so that they meet.
NAMES = ("numpy", "numpy-base", "pytorch", "pytorch-nightly", "r-base")
FILES = tuple(f"{name}-{version}-0{end}" for name in NAMES for version in "12" for end in (".conda", ".tar.bz2"))
DIGESTS = {"sha256": tuple(f"{n:064x}" for n in range(3)), "md5": tuple(f"{n:032x}" for n in range(3))}


@st.composite
def a_package(draw: st.DrawFn, file_name: str) -> Package:
    algorithm = draw(st.sampled_from(("sha256", "md5")))
    size = draw(st.none() | st.integers(0, 3))
    return Package(
        file_name, file_name.rsplit("-", 2)[0], size, algorithm, draw(st.sampled_from(DIGESTS[algorithm]))
    )  # fmt: skip


@st.composite
def some_packages(draw: st.DrawFn) -> dict[str, Package]:
    return {name: draw(a_package(name)) for name in draw(st.lists(st.sampled_from(FILES), unique=True))}


some_digests = [bytes.fromhex(digest) for digests in DIGESTS.values() for digest in digests]
known = st.integers(0, 3) | st.sampled_from(some_digests)
some_files = st.dictionaries(st.sampled_from((*FILES, "repodata.json", "note.txt")), known)
patterns = (*NAMES, "pytorch*", "*-nightly", "r-*", "[n]umpy", "*", "none.such")
some_patterns = st.lists(st.sampled_from(patterns), max_size=3)


@given(some_packages(), some_files, some_patterns)
def test_every_package_is_in_one_place_and_for_a_reason(
    packages: Mapping[str, Package], files: Mapping[str, Known], exclude: list[str]
) -> None:
    result = compare(packages, files, exclude)
    groups = [{package.file_name for package in group} for group in (result.check, result.fetch, result.replace)]
    placed = [*groups, set(result.excluded)]
    assert sum(map(len, placed)) + result.held == len(packages)
    assert sum(map(len, placed)) == len(set().union(*placed))
    for name, package in packages.items():
        there, right = files.get(name), bytes.fromhex(package.digest)
        out = any(fnmatchcase(package.name, pattern) for pattern in exclude)
        assert (name in result.excluded) == out
        if out:
            continue
        check, fetch, replace = (name in group for group in groups)
        assert fetch == (there is None), "what is not there is fetched, and nothing else"
        if isinstance(there, bytes):
            assert (check or fetch or replace) == (there != right), "what was verified is not fetched again"
            assert not check or len(there) != len(right), "only another algorithm leaves a doubt"
        elif there is not None:
            assert replace == (package.size is not None and package.size != there)
            assert check != replace, "nothing is held for its name and size"
    wanted = packages.keys() - result.excluded
    suffixes = (".conda", ".tar.bz2", ".whl")
    assert set(result.orphans) == {name for name in files.keys() - wanted if name.endswith(suffixes)}
    assert result.download_bytes == sum(package.size or 0 for package in (*result.fetch, *result.replace))


@given(some_packages(), some_files, some_patterns)
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(
    packages: Mapping[str, Package], files: Mapping[str, Known], exclude: list[str]
) -> None:
    first = compare(packages, files, exclude)
    done = (*first.fetch, *first.replace, *first.check)
    after = {name: known for name, known in files.items() if name not in first.orphans}
    after |= {package.file_name: bytes.fromhex(package.digest) for package in done}
    second = compare(packages, after, exclude)
    assert second == dataclasses.replace(
        second, check=(), fetch=(), replace=(), orphans=(), held=len(packages) - len(first.excluded)
    )
    assert second.excluded == first.excluded


@given(some_packages(), some_files, some_patterns, some_patterns)
def test_excluding_more_never_fetches_more(
    packages: Mapping[str, Package], files: Mapping[str, Known], exclude: list[str], more: list[str]
) -> None:
    few, many = compare(packages, files, exclude), compare(packages, files, [*exclude, *more])
    assert set(many.fetch) <= set(few.fetch)
    assert set(many.replace) <= set(few.replace)
    assert many.excluded >= few.excluded
    assert set(many.orphans) >= set(few.orphans)


@given(some_packages(), st.integers(1, 12))
def test_each_package_is_fetched_once_and_small_ones_first_and_last(packages: dict[str, Package], at_once: int) -> None:
    order = in_order(list(packages.values()), at_once)
    assert {package.file_name: package for package in order} == packages
    assert len(order) == len(packages)
    sizes = [package.size or 0 for package in order]
    between = sizes[at_once:-at_once]
    assert not between or max(sizes[:at_once] + sizes[-at_once:]) <= min(between)


# A run: how much later it is, hours, and which files no index names then.
runs = st.lists(st.tuples(st.floats(0, 30), st.sets(st.sampled_from("abcd"))), min_size=1, max_size=8)


@given(runs, st.floats(0, 48))
def test_a_file_goes_only_after_its_whole_grace_without_a_name(
    history: list[tuple[float, set[str]]], grace: float
) -> None:
    ledger: dict[str, float] = {}
    unnamed: dict[str, float] = {}
    now = 1_700_000_000.0
    for hours, orphans in history:
        now += hours * HOUR
        unnamed = {name: unnamed.get(name, now) for name in orphans}
        ledger, expired = due(ledger, orphans, now, grace)
        assert set(expired) == {name for name, since in unnamed.items() if now - since >= grace * HOUR}
        assert ledger == unnamed, "what has a name again begins anew"


@given(st.dictionaries(st.sampled_from("abcd"), st.floats(0, 4e9)), st.sets(st.sampled_from("abcd")), st.floats(0, 4e9))
def test_a_clock_that_goes_wrong_deletes_nothing_early(ledger: dict[str, float], orphans: set[str], now: float) -> None:
    """A ledger from the future, as after a clock was set back, gives a grace that begins now."""
    after, expired = due(ledger, orphans, now, 24)
    assert after.keys() == orphans
    assert set(expired) <= orphans
    for name in orphans:
        assert after[name] <= now
        assert (name in expired) == (name in ledger and now - ledger[name] >= 24 * HOUR)


@given(st.integers(0, 1000), st.integers(0, 1000), st.floats(0, 100))
def test_the_stop_is_monotonous_and_never_for_one_file(expired: int, more: int, percent: float) -> None:
    total = expired + more
    stop = too_many(expired, total, percent)
    assert not too_many(1, total, percent)
    assert not too_many(expired, total, 100)
    assert too_many(expired, total, 0) == (expired > 1)
    if stop and expired < total:
        assert too_many(expired + 1, total, percent)
    if not stop:
        assert not too_many(expired, total, min(100, percent + 1))
