"""What a run believes of what upstreams answer: what is not there, what is old, what is wrong, what shrank."""

from __future__ import annotations

import bz2
import hashlib
import json
import os
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.engine.lab import Lab
from tests.upstream import channel, server

pytestmark = pytest.mark.slow

LINUX = "pkgs/main/linux-64"
NOARCH = "pkgs/main/noarch"
VICTIM = "lib0003-1.3-0.conda"
LOGIN = b"<!DOCTYPE html><html><body>Please log in</body></html>"
# What a channel need not have.
SPARE = ("*.json.zst", "*.json.bz2", "*/current_repodata.json", "*/run_exports.json", "*/channeldata.json")
NOT_THERE = [400, 403, 404, 405, 406, 410, 451, 500, 501]


def plain_only(lab: Lab) -> None:
    """Leave of each index of the upstream the plain form alone."""
    for file in lab.tree.rglob("*repodata*"):
        if file.name != "repodata.json":
            file.unlink()


# ---- not there -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", NOT_THERE)
def test_however_an_upstream_says_that_it_has_no_such_thing(lab: Lab, status: int) -> None:
    """An object store answers 403 for what is not there: nothing that a channel need not have is waited for."""
    lab.settings |= {"retries": 3, "retry_wait_seconds": 60, "cloud": ["conda-forge/noarch", "conda-forge/linux-64"]}
    plain_only(lab)
    for pattern in SPARE:
        lab.fault(pattern, status=status)
    run = lab.sync()
    assert run.code == 0, run.log
    assert "given up" not in run.log
    assert len(lab.check().named[f"{LINUX}/repodata.json"]) == 14
    assert lab.sync().code == 0


@pytest.mark.parametrize("status", NOT_THERE)
def test_a_compressed_index_beside_which_all_the_rest_is_refused(lab: Lab, status: int) -> None:
    lab.settings |= {"jobs": 16, "retries": 3, "retry_wait_seconds": 60}
    for pattern in SPARE[1:]:
        lab.fault(pattern, status=status)
    lab.fault("*/current_repodata.json.zst", status=status)
    run = lab.sync()
    assert run.code == 0, run.log
    assert not lab.upstream.asked("*/repodata.json")
    lab.check()


@pytest.mark.parametrize("status", [403, 405, 501])
def test_an_upstream_that_knows_no_head(lab: Lab, status: int) -> None:
    lab.settings |= {"retries": 0, "installers": {"dists": ["miniconda", "archive"], "suffixes": [".sh"]}}
    lab.fault("*", status=status, method="HEAD")
    for _ in range(2):
        run = lab.sync()
        assert run.code == 0, run.log
    assert len(lab.upstream.asked("*.sh", "GET")) <= 2 * 3, "one byte of what is held, and no more"
    assert (lab.mirror / LINUX / "repodata.json.bz2").exists()
    lab.check()


PAGES = [LOGIN, b"\n <html>", b"\xef\xbb\xbf<?xml version='1.0'?><Error/>", b"not json", b"[]", b""]


@pytest.mark.parametrize("body", PAGES)
def test_a_page_in_place_of_what_a_channel_need_not_have(lab: Lab, body: bytes) -> None:
    for name in ("current_repodata.json", "run_exports.json", "channeldata.json"):
        lab.fault(f"*/{name}*", body=body, headers={"Content-Type": "text/html"})
    for _ in range(2):
        run = lab.sync()
        assert run.code == 0, run.log
    lab.check()


def test_a_page_in_place_of_every_form_but_one(lab: Lab) -> None:
    for form in (".zst", ".bz2"):
        lab.fault(f"*/repodata.json{form}", body=LOGIN)
    assert lab.sync().code == 0
    lab.check()


# ---- not modified --------------------------------------------------------------------------------------------


def short_of(lab: Lab, count: int | None) -> bytes:
    """Return the index without so many of its packages; without any for None, as some send it."""
    theirs = json.loads((lab.tree / LINUX / "repodata.json").read_bytes())
    if count is None:
        return b"{}"
    gone = list(theirs["packages.conda"])[:count]
    return json.dumps(
        {**theirs, "packages.conda": {n: r for n, r in theirs["packages.conda"].items() if n not in gone}}
    ).encode()


def fake(lab: Lab, data: bytes, *forms: str) -> None:
    """Send other bytes for forms of an index, once each, with the validators of the real ones."""
    for form in forms:
        packed = {".zst": zstandard.compress(data), ".bz2": bz2.compress(data), "": data}[form]
        lab.fault(f"/{LINUX}/repodata.json{form}", body=packed, times=1, method="GET")


@pytest.mark.parametrize("forms", [(".zst",), (".zst", ".bz2"), (".zst", ".bz2", "")], ids=" ".join)
@pytest.mark.parametrize("first", [True, False], ids=["first run", "later run"])
@pytest.mark.parametrize("lost", [None, 1, 2])
def test_other_bytes_with_the_validators_of_the_right_ones_are_not_believed_for_ever(
    lab: Lab, forms: tuple[str, ...], lost: int | None, *, first: bool
) -> None:
    if not first:
        assert lab.sync().code == 0
        channel.edit(lab.tree / LINUX, later=1)
    fake(lab, short_of(lab, lost), *forms)
    run = lab.sync()
    # Where no form of it names a package, and ours does, that is a failure; and where one does, that one is used.
    assert run.code == (1 if lost is None and not first and "" in forms else 0), run.log
    lab.check()
    if lost is None and "" not in forms:
        assert len(lab.named(f"{LINUX}/repodata.json")) == 14
    lab.upstream.faults.clear()
    runs = [lab.sync() for _ in range(2)]
    if lost and first:
        # Nothing tells that a package is lacking; the upstream's next index brings it, or the next week.
        channel.edit(lab.tree / LINUX, later=2)
        runs.append(lab.sync())
    assert [run.code for run in runs] == [0] * len(runs), runs[0].log
    assert len(lab.check().named[f"{LINUX}/repodata.json"]) == 14


def test_an_index_that_came_twice_is_asked_for_conditionally(lab: Lab) -> None:
    assert lab.sync().code == 0
    channel.retract(lab.tree / "pkgs/main", "linux-64", "tool-2.0-0.conda")
    wholes = []
    for _ in range(4):
        lab.upstream.requests.clear()
        assert lab.sync().code == 0
        asked = lab.upstream.asked(f"/{LINUX}/repodata.json.zst", "GET")
        wholes.append(sum("If-None-Match" not in request.headers for request in asked))
        assert len(asked) == 1
    # The first run has the validators of the index before.
    assert wholes == [0, 1, 0, 0]


def test_a_new_validator_of_the_same_bytes_is_remembered(lab: Lab) -> None:
    assert lab.sync().code == 0
    os.utime(lab.tree / LINUX / "repodata.json.zst", (time.time() - 60, time.time() - 60))
    sent = []
    for _ in range(3):
        lab.upstream.requests.clear()
        assert "2 of 2 subdirs unchanged" in lab.sync().log
        (request,) = lab.upstream.asked(f"/{LINUX}/repodata.json.zst")
        sent.append(request.headers["If-None-Match"])
    assert sent[0] != sent[1] == sent[2]


def test_after_a_week_an_index_is_fetched_whole(lab: Lab) -> None:
    """Whatever stood between, and sent wrong bytes with the validators of right ones."""
    assert lab.sync().code == 0
    with sqlite3.connect(lab.mirror / ".lanmirror/memory.sqlite") as memory:
        key = f"subdir/{LINUX}"
        (text,) = memory.execute("SELECT value FROM fact WHERE key = ?", (key,)).fetchone()
        standing = json.loads(text)
        assert 6.9 * 86400 < standing["trust"] - time.time() < 7 * 86400
        memory.execute("UPDATE fact SET value = ? WHERE key = ?", (json.dumps({**standing, "trust": time.time()}), key))
    conditional = []
    for _ in range(2):
        lab.upstream.requests.clear()
        run = lab.sync()
        assert "2 of 2 subdirs unchanged" in run.log
        (request,) = lab.upstream.asked(f"/{LINUX}/repodata.json*")
        conditional.append("If-None-Match" in request.headers)
    assert conditional == [False, True]


def test_not_modified_is_no_answer_to_who_asked_for_all(lab: Lab, tmp_path: Path) -> None:
    """Of a mirror with nothing; and of a second upstream, which was not told what is here."""
    lab.fault("*.zst", status=304)
    assert lab.sync().code == 0
    assert len(lab.check().named[f"{LINUX}/repodata.json"]) == 14
    shutil.copytree(lab.tree, tmp_path / "second")
    with server.serving(tmp_path / "second") as second:
        lab.settings["upstream"] = {"repo": [lab.upstream.url, second.url], "cloud": f"{second.url}/cloud"}
        (name,) = channel.publish(tmp_path / "second/pkgs/main", channel.Spec("fresh", subdir="linux-64"))
        lab.remember()
        lab.genuine.add(hashlib.sha256((tmp_path / "second" / LINUX / name).read_bytes()).hexdigest())
        lab.fault("*", status=503)
        second.faults["*.zst"] = server.Fault(status=304)
        lab.settings["retries"] = 0
        run = lab.sync()
        assert run.code == 0, run.log
        assert name in lab.check().named[f"{LINUX}/repodata.json"]


# ---- out of date ---------------------------------------------------------------------------------------------


def renew(lab: Lab, seconds: float, *forms: str) -> None:
    """Give forms of the index a date, so many seconds ago."""
    for form in forms:
        moment = time.time() - seconds
        os.utime(lab.tree / LINUX / f"repodata.json{form}", (moment, moment))


@pytest.mark.parametrize("form", [".zst", ".bz2"])
def test_a_compressed_index_that_nobody_renews_is_passed_over(lab: Lab, form: str) -> None:
    for other in {".zst", ".bz2"} - {form}:
        (lab.tree / LINUX / f"repodata.json{other}").unlink()
    old = (lab.tree / LINUX / f"repodata.json{form}").read_bytes()
    renew(lab, 60 * 86400, form)
    assert lab.sync().code == 0
    (name,) = channel.publish(lab.tree / "pkgs/main", channel.Spec("fresh", subdir="linux-64"))
    for other in {".zst", ".bz2"} - {form}:
        (lab.tree / LINUX / f"repodata.json{other}").unlink()
    (lab.tree / LINUX / f"repodata.json{form}").write_bytes(old)
    renew(lab, 60 * 86400, form)

    run = lab.sync()
    assert run.code == 0, run.log
    assert name in lab.check().named[f"{LINUX}/repodata.json"]
    lab.upstream.requests.clear()
    assert "2 of 2 subdirs unchanged" in lab.sync().log
    assert [r for r in lab.upstream.asked(f"/{LINUX}/repodata.json", "GET") if "If-None-Match" not in r.headers] == []
    assert not lab.upstream.asked(f"/{LINUX}/repodata.json{form}", "GET")

    # It is renewed, and preferred again.
    (newer,) = channel.publish(lab.tree / "pkgs/main", channel.Spec("fresher", subdir="linux-64"))
    for other in {".zst", ".bz2"} - {form}:
        (lab.tree / LINUX / f"repodata.json{other}").unlink()
    lab.upstream.requests.clear()
    assert lab.sync().code == 0
    assert newer in lab.check().named[f"{LINUX}/repodata.json"]
    assert form != ".zst" or not lab.upstream.asked(f"/{LINUX}/repodata.json", "HEAD")


def test_an_old_index_is_none_that_nobody_renews(lab: Lab) -> None:
    """Some channels do not change for years; mirrors date a file by when they fetched it."""
    renew(lab, 90 * 86400, ".zst")
    renew(lab, 90 * 86400 - 7200, "")
    assert lab.sync().code == 0
    assert not lab.upstream.asked(f"/{LINUX}/repodata.json", "GET")


def test_the_first_upstream_is_preferred_whatever_its_form(lab: Lab, tmp_path: Path) -> None:
    """The second lags behind, and has a compressed index, which the first has not."""
    old = tmp_path / "second"
    for file in (*lab.tree.glob("pkgs/main/*/*repodata*"), *lab.tree.glob("pkgs/main/*/*.conda")):
        target = old / file.relative_to(lab.tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    (name,) = channel.publish(lab.tree / "pkgs/main", channel.Spec("fresh", subdir="linux-64"))
    plain_only(lab)
    with server.serving(old) as second:
        lab.settings["upstream"] = {"repo": [lab.upstream.url, second.url], "cloud": lab.upstream.url}
        run = lab.sync()
        assert run.code == 0, run.log
        assert name in lab.check().named[f"{LINUX}/repodata.json"]


# ---- smaller -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 1, 5, 10])
def test_an_index_that_lost_most_of_its_packages_is_not_published(lab: Lab, kept: int) -> None:
    assert lab.sync().code == 0
    before = lab.repodata(LINUX)
    names = [name for name in before["packages.conda"] if name.startswith("lib")]
    channel.edit(lab.tree / LINUX, dict.fromkeys(names[kept - 12 :] if kept else names))
    if not kept:
        channel.edit(lab.tree / LINUX, packages={}, **{"packages.conda": {}})
    for _ in range(2):
        run = lab.sync()
        assert (run.code == 1) == (kept < 10), run.log
        if kept < 10:
            assert lab.repodata(LINUX) == before
    run = lab.sync("--max-delete", "100")
    assert (run.code == 0) == (kept > 0), run.log
    lab.check()


def test_what_is_excluded_is_not_lost(lab: Lab) -> None:
    lab.settings["exclude"] = []
    assert lab.sync().code == 0
    lab.settings["exclude"] = ["lib*"]
    assert lab.sync().code == 0


def nightly(lab: Lab, version: str, size: int = 100) -> str:
    """Replace the package `nightly` in the upstream by another version."""
    before = [file.name for file in (lab.tree / LINUX).glob("nightly-*")]
    spec = channel.Spec("nightly", version, subdir="linux-64", files={"x": channel.noise(size, int(version))})
    (name,) = channel.publish(lab.tree / "pkgs/main", spec)
    if before:
        channel.retract(lab.tree / "pkgs/main", "linux-64", *before)
    return name


def test_a_version_stays_named_until_its_successor_is_here(lab: Lab) -> None:
    first = nightly(lab, "1")
    assert lab.sync().code == 0
    second = nightly(lab, "2", 100_000)
    lab.fault(f"*/{second}", stall=8, stall_at=1000)
    reached = threading.Event()
    lab.during(f"*/{second}", reached.set)
    channel.publish(lab.tree / "pkgs/main", channel.Spec("other", subdir="linux-64"))
    lab.settings["timeout_seconds"] = 60
    run = lab.start("--delete")
    assert reached.wait(20)
    lab.until(lambda: "other-1.0-0.conda" in lab.named(f"{LINUX}/repodata.json"))
    assert first in lab.named(f"{LINUX}/repodata.json")
    assert lab.problems() == []
    assert run.wait().code == 0
    named = lab.check().named[f"{LINUX}/repodata.json"]
    assert second in named
    assert first not in named


@pytest.mark.parametrize("fault", [{"status": 404}, {"status": 503}, {"corrupt": True}, {"cut": 10}])
def test_a_version_whose_successor_cannot_be_had_stays(lab: Lab, fault: dict[str, Any]) -> None:
    lab.settings["delete_grace_hours"] = 0
    first = nightly(lab, "1")
    assert lab.sync().code == 0
    second = nightly(lab, "2")
    lab.fault(f"*/{second}", **fault)
    for _ in range(2):
        assert lab.sync("--delete").code == 1
        named = lab.check().named[f"{LINUX}/repodata.json"]
        assert first in named
        assert second not in named
    lab.upstream.faults.clear()
    os.utime(lab.tree / LINUX / second)  # who mends a file changes its date
    assert lab.sync("--delete").code == 0
    named = lab.check().named[f"{LINUX}/repodata.json"]
    assert second in named
    assert first not in named
    assert first not in lab.packages(LINUX)


def test_a_channel_of_slow_packages_is_not_served_empty_at_first(lab: Lab) -> None:
    lab.settings["timeout_seconds"] = 60
    lab.fault(f"/{LINUX}/*.conda", stall=2)
    lab.fault(f"/{LINUX}/*.tar.bz2", stall=2)
    run = lab.start()
    while run.is_running():
        if (lab.mirror / LINUX / "repodata.json").exists():
            assert lab.named(f"{LINUX}/repodata.json")
        time.sleep(0.05)
    assert run.wait().code == 0
    lab.check()


def test_a_channel_of_which_no_package_can_be_had_is_not_served_empty(lab: Lab) -> None:
    lab.settings["retries"] = 0
    lab.fault(f"/{LINUX}/*.conda", status=404)
    lab.fault(f"/{LINUX}/*.tar.bz2", status=404)
    assert lab.sync().code == 1
    assert not (lab.mirror / LINUX / "repodata.json").exists()
    lab.upstream.faults.clear()
    assert lab.sync().code == 0
    lab.check()


# ---- the clock -----------------------------------------------------------------------------------------------


def test_what_was_verified_with_the_clock_ahead_is_hashed_again(lab: Lab) -> None:
    assert lab.sync().code == 0
    with sqlite3.connect(lab.mirror / ".lanmirror/memory.sqlite") as memory:
        memory.execute("UPDATE verified SET checked = ?", (time.time() + 86400 * 365,))
        memory.execute("INSERT OR REPLACE INTO fact VALUES ('verify', ?)", (json.dumps({"began": time.time() + 9e6}),))
    file = lab.mirror / LINUX / VICTIM
    status = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    run = lab.sync("verify")
    assert run.code == 1, run.log
    assert f"{LINUX}: to hash: 14 files" in run.log
    assert VICTIM in run.log
    assert lab.sync("verify").code == 0


# ---- wrong for good ------------------------------------------------------------------------------------------


def wrong(lab: Lab, how: str) -> None:
    """Make a package of the upstream wrong."""
    file = lab.tree / LINUX / VICTIM
    match how:
        case "bytes":
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(data)
        case "shorter":
            file.write_bytes(file.read_bytes()[:-1])
        case "longer":
            file.write_bytes(file.read_bytes() + b"x")


@pytest.mark.parametrize("how", ["bytes", "shorter", "longer"])
def test_a_package_that_is_wrong_upstream_is_not_fetched_for_ever(lab: Lab, how: str) -> None:
    good = (lab.tree / LINUX / VICTIM).read_bytes()
    wrong(lab, how)
    lab.settings["retries"] = 4
    for _ in range(2):
        assert lab.sync().code == 1
    assert len(lab.upstream.asked(f"*/{VICTIM}", "GET")) <= 3
    lab.upstream.requests.clear()
    for _ in range(2):
        run = lab.sync()
        assert run.code == 1
        assert sum(VICTIM in line for line in run.log.splitlines()) == 1, run.log
        assert "accept_missing" in run.log
    assert not lab.upstream.asked(f"*/{VICTIM}", "GET")
    # Another package comes: the index changed, that record did not.
    channel.publish(lab.tree / "pkgs/main", channel.Spec("fresh", subdir="linux-64"))
    assert lab.sync().code == 1
    assert not lab.upstream.asked(f"*/{VICTIM}", "GET")
    assert "fresh-1.0-0.conda" in lab.check().named[f"{LINUX}/repodata.json"]
    # The administrator accepts it by name.
    lab.settings["accept_missing"] = ["lib0003-*"]
    run = lab.sync()
    assert run.code == 0, run.log
    assert VICTIM not in lab.check().named[f"{LINUX}/repodata.json"]
    lab.settings["accept_missing"] = []
    # The file is mended.
    (lab.tree / LINUX / VICTIM).write_bytes(good)
    lab.remember()
    run = lab.sync()
    assert run.code == 0, run.log
    assert VICTIM in lab.check().named[f"{LINUX}/repodata.json"]


def test_a_package_whose_record_is_mended_is_fetched(lab: Lab) -> None:
    wrong(lab, "bytes")
    for _ in range(3):
        assert lab.sync().code == 1
    file = lab.tree / LINUX / VICTIM
    data = file.read_bytes()
    right = {"sha256": hashlib.sha256(data).hexdigest(), "md5": hashlib.md5(data).hexdigest()}
    channel.edit(lab.tree / LINUX, {VICTIM: right})
    run = lab.sync()
    assert run.code == 0, run.log
    assert VICTIM in lab.check().named[f"{LINUX}/repodata.json"]


def test_an_accepted_absence_is_any(lab: Lab) -> None:
    (lab.tree / LINUX / VICTIM).unlink()
    lab.settings["accept_missing"] = [VICTIM]
    for _ in range(2):
        run = lab.sync()
        assert run.code == 0, run.log
        assert "in sync" in run.log.splitlines()[-1]


def test_an_older_memory_of_a_stale_form_does_no_harm(lab: Lab) -> None:
    """What another version remembered of a subdir is read as far as it goes."""
    assert lab.sync().code == 0
    with sqlite3.connect(lab.mirror / ".lanmirror/memory.sqlite") as memory:
        memory.execute(
            "UPDATE fact SET value = ? WHERE key = ?", (json.dumps({"held": "many", "x": 1}), f"subdir/{LINUX}")
        )
        memory.execute("UPDATE fact SET value = '[' WHERE key = ?", (f"subdir/{NOARCH}",))
    assert lab.sync().code == 0
    lab.check()
    assert zstandard.decompress((lab.mirror / LINUX / "repodata.json.zst").read_bytes())
