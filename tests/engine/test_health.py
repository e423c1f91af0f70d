"""How the mirror is judged, by what is known; without a process, a disk or a clock."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lanmirror_sync import health, status
from lanmirror_sync.config import Config, parse
from lanmirror_sync.health import GIB, Disk, Found, Health

NOW = 1_800_000_000.0
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
LONG_AGO = NOW - 100 * DAY
FRESH: dict[str, Any] = {"last_check": NOW - MINUTE, "published": NOW - MINUTE, "hold": "none", "failures": []}
NEVER: dict[str, Any] = {**FRESH, "last_check": None, "published": None}
WELL: dict[str, Any] = {**status.NEVER, "result": "in sync", "began": NOW - 2 * HOUR, "ended": NOW - HOUR, "code": 0,
                        "last_success": NOW - HOUR}  # fmt: skip
LINUX, NOARCH = "pkgs/main/linux-64", "pkgs/main/noarch"


def config(**settings: Any) -> Config:
    return parse({"on_demand": True, "working_dir": "/srv/mirror", "min_free_gib": 5, **settings}, {})


def told(**changes: Any) -> dict[str, Any]:
    """Return status.json of a mirror that is well, with some changes."""
    well = {"run": WELL, "indexes": WELL, "subdirs": {LINUX: FRESH, NOARCH: FRESH}, "installers": {}}
    return {**well, **changes}


def subdirs(**changes: Any) -> dict[str, Any]:
    return {LINUX: {**FRESH, **changes}, NOARCH: FRESH}


def found(state: dict[str, Any] | None = None, **changes: Any) -> Found:
    return replace(Found(now=NOW, since=LONG_AGO, status=told() if state is None else state), **changes)


def disk(free: float, number: int = 1, **changes: Any) -> Disk:
    return replace(Disk(Path("/srv/mirror"), number, int(free * GIB), None, 5 * GIB, "no sync begins", True), **changes)


def said(looked: Found, wrong: str = "", **settings: Any) -> tuple[list[str], list[str]]:
    """Return problems and warnings."""
    judged = health.judge(config(**settings), wrong, looked)
    return list(judged.problems.values()), list(judged.warnings.values())


HELD = subdirs(hold="all")
DIED = {**WELL, "result": "running", "ended": None, "code": None}


def failed(code: int | None, error: str = "the reason", **changes: Any) -> dict[str, Any]:
    return {**WELL, "result": "failed", "error": error, "code": code, **changes}


@pytest.mark.parametrize(
    "looked",
    [
        found(),
        # With a run under way.
        found(told(run=DIED), sync=(7, NOW - HOUR)),
        found(told(indexes=DIED), refresh=(7, NOW - HOUR)),
        # It was asked to end, or found the upstream down: that is said of the subdirs.
        found(told(run=failed(143), indexes=failed(5))),
        # By a version that wrote down no code.
        found(told(run=failed(None))),
        # Nothing is held, and no sync ended for long.
        found(told(run={**WELL, "ended": LONG_AGO, "last_success": LONG_AGO})),
        # What is missing is said of the subdirs.
        found(told(subdirs=HELD, run={**WELL, "result": "incomplete", "code": 1, "last_success": LONG_AGO})),
        # The machine was off, or the configuration is new.
        found(told(subdirs=subdirs(hold="all", last_check=LONG_AGO), run={**WELL, "ended": LONG_AGO,
              "last_success": LONG_AGO}), since=NOW - HOUR),
        found(told(subdirs=subdirs(last_check=NOW - 89 * MINUTE))),
        found(disks=[disk(5), disk(5, 2, inodes=1000)]),
        found(told(cache=None)),
        found(told(cache={"wrong": []})),
        found(told(cache={"written": NOW - MINUTE, "wrong": [], "problem": ""})),
        # Of long ago.
        found(told(cache={"written": NOW, "wrong": [{"path": "/x", "why": "y", "at": NOW - 2 * DAY}]})),
    ],
)  # fmt: skip
def test_mirror_that_is_well(looked: Found) -> None:
    assert said(looked) == ([], [])


@pytest.mark.parametrize(
    ("looked", "words"),
    [
        (found(unwritable="Permission denied"), ["/srv/mirror cannot be written to (Permission denied)", "mounted"]),
        (found(disks=[disk(4.2)]), ["disk of /srv/mirror is nearly full (4.2 GiB are free, 5 should be)"]),
        (found(disks=[disk(100, inodes=999)]), ["999 files more can be made there"]),
        (
            found(told(run=failed(70, "a fault of the program: X()"))),
            ["last sync failed", "70 (a fault of the program"],
        ),
        (found(told(indexes=failed(4, "no room"))), ["last refresh of the indexes failed", "exit code 4 (no room)"]),
        (found(told(run=failed(1, "/srv/mirror/x: Permission denied"))), ["exit code 1 (/srv/mirror/x: Perm"]),
        (
            found(told(subdirs=HELD, run=failed(5, "it is down", last_success=NOW - 3 * DAY))),
            ["no sync has ended well since 2027-01-12", "it is down"],
        ),
        (found(told(subdirs=HELD, run=status.NEVER)), ["no sync has ended well yet:", "cron"]),
        (
            found(told(subdirs=subdirs(last_check=NOW - 91 * MINUTE))),
            [f"the upstream was not asked for the index of {LINUX} since 2027-01-15T06:29:00+00:00:", "the refresh"],
        ),
        (
            found(told(subdirs={LINUX: {**FRESH, "last_check": LONG_AGO}, NOARCH: {**FRESH, "last_check": NOW - DAY}})),
            [LINUX, "(2 of 2 indexes are too old)"],
        ),
        # Nobody has asked since it failed.
        (
            found(
                told(
                    subdirs={NOARCH: {**FRESH, "last_check": LONG_AGO, "failures": ["refused"]}},
                    run=status.NEVER,
                    indexes=failed(5, ended=NOW - DAY, began=NOW - DAY),
                )
            ),
            [f"the upstream was not asked for the index of {NOARCH} since 2027-01-14T08:00:00+00:00"],
        ),
        (found(None, status=None, unknown="/x: Input/output error"), ["cannot be read (/x: Input/output error)"]),
    ],
)
def test_problem_names_the_thing_and_the_fix(looked: Found, words: list[str]) -> None:
    problems, warnings = said(looked)
    assert len(problems) == 1, problems
    assert len(warnings) == ("refused" in str(looked.status))
    assert [word for word in words if word not in problems[0]] == []


@pytest.mark.parametrize(
    ("looked", "words"),
    [
        (found(told(run=DIED)), ["the last sync ended without a word, after 2027-01-15T06:00:00+00:00", "killed"]),
        (found(told(indexes=DIED)), ["the last refresh of the indexes ended without a word"]),
        (
            found(told(subdirs=HELD, run={**DIED, "last_success": LONG_AGO}), sync=(77, NOW - 3 * DAY)),
            ["a sync or verify has gone on since 2027-01-12", "process 77"],
        ),
        (
            found(told(subdirs=subdirs(failures=["https://a/x: answers 403", "another"]))),
            [f"{LINUX}: https://a/x: answers 403 (and 1 more);", "what is held or cached installs"],
        ),
        # For days, and there was no answer that counts.
        (
            found(told(subdirs=subdirs(last_check=LONG_AGO, failures=[f"{LINUX}: refused"]), indexes=failed(5))),
            [f"{LINUX}: refused; what"],
        ),
        (
            found(told(subdirs=subdirs(last_check=None, published=None, failures=["refused"]), indexes=failed(5))),
            [f"{LINUX}: refused; what"],
        ),
        (found(told(installers={"archive": {"failures": ["x.sh: gone"]}})), ["archive: x.sh: gone;"]),
        (
            found(told(subdirs={f"cloud/c/{n}": NEVER for n in "abcdefg"}), since=NOW - MINUTE),
            ["no index yet of cloud/c/a,", "cloud/c/e and 2 more: it comes with the first refresh"],
        ),
        (
            found(told(cache={"written": NOW, "wrong": [
                {"path": "/pkgs/old", "why": "short", "at": NOW - 2 * DAY, "upstream": ""},
                {"path": "/pkgs/one", "why": "short", "at": NOW - HOUR, "upstream": ""},
                {"path": "/pkgs/two", "why": "its sha256", "at": NOW - MINUTE, "upstream": "https://a"}]})),
            ["2 wrong packages", "the last: /pkgs/two (its sha256, from https://a)"],
        ),
        (found(told(cache={"written": NOW - HOUR, "problem": ""})), ["nobody checks what came on demand since"]),
        (found(told(cache={"written": NOW, "problem": "no log"})), ["is not checked: no log"]),
        (found(unasked="/run/x: Connection refused"), ["nothing new comes on demand (/run/x: Connection refused)"]),
        (found(disks=[disk(9), disk(1, 2, stops=False, path=Path("/var/cache"))]), ["disk of /var/cache is nearly"]),
    ],
)  # fmt: skip
def test_warning_is_no_reason_for_503(looked: Found, words: list[str]) -> None:
    problems, warnings = said(looked)
    assert problems == []
    assert len(warnings) == 1, warnings
    assert [word for word in words if word not in warnings[0]] == []


def test_one_disk_is_told_of_once_and_by_what_stops() -> None:
    both = [disk(1, stops=False, path=Path("/var/cache")), disk(1)]
    problems, warnings = said(found(disks=both))
    assert len(problems) == 1
    assert "/srv/mirror" in problems[0]
    assert warnings == []


def test_wrong_configuration_is_a_problem_beside_what_the_last_right_one_tells() -> None:
    assert len(said(found(disks=[disk(1)]), wrong="jobs is 0")[0]) == 2
    alone = health.judge(None, "jobs is 0", Found(NOW, 0.0, None))
    assert [text for text in alone.problems.values() if "(jobs is 0): mend it" in text]
    assert json.loads(alone.told(NOW)) == {
        "status": "failing", "problems": list(alone.problems.values()), "warnings": [],
        "checked": "2027-01-15T08:00:00+00:00",
    }  # fmt: skip


def test_nothing_is_overdue_where_nothing_runs_by_a_schedule() -> None:
    old = found(told(subdirs=subdirs(hold="all", last_check=LONG_AGO), run={**WELL, "ended": LONG_AGO,
                "last_success": LONG_AGO}))  # fmt: skip
    assert len(said(old)[0]) == 2
    assert said(old, health={"sync_hours": 0, "index_minutes": 0}) == ([], [])
    # Once a week.
    weekly = found(told(subdirs=HELD, run={**WELL, "ended": NOW - 6 * DAY, "last_success": NOW - 6 * DAY}))
    assert len(said(weekly)[0]) == 1
    assert said(weekly, health={"sync_hours": 192}) == ([], [])


def test_without_on_demand_an_index_is_as_old_as_the_last_sync() -> None:
    old = told(subdirs=subdirs(hold="all", last_check=NOW - 3 * DAY))
    assert "the sync" in said(found(old), on_demand=False)[0][0]
    # One that goes on asks for each index once.
    assert said(found(old, sync=(7, NOW - HOUR)), on_demand=False) == ([], [])
    # A refresh is of no more account.
    younger = told(subdirs=subdirs(hold="all", last_check=NOW - DAY), indexes=failed(70))
    assert said(found(younger), on_demand=False) == ([], [])


def test_begin_and_end_are_for_the_journal_and_a_change_of_words_is_neither() -> None:
    well, ill = Health({}, {}), Health({"disk": "full"}, {"failures": "down"})
    assert list(health.changes(None, well)) == []
    assert sorted(health.changes(well, ill)) == [(3, "full"), (4, "down")]
    assert list(health.changes(ill, Health({"disk": "fuller"}, ill.warnings))) == []
    assert sorted(health.changes(ill, well)) == [(5, "disk: well again"), (5, "failures: well again")]
