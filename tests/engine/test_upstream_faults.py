"""An upstream that fails in one place: that place alone suffers, the index stays closed, the next run heals it."""

from __future__ import annotations

import itertools
import json
import time
from email.utils import formatdate
from typing import Any

import pytest

from tests.engine.lab import Lab
from tests.upstream import channel

pytestmark = pytest.mark.slow

LINUX = "pkgs/main/linux-64"
NOARCH = "pkgs/main/noarch"
VICTIM = "lib0005-1.0-0.conda"
LOGIN = b"<!DOCTYPE html><html><body><form>Please log in to the campus network</form></body></html>"

PACKAGE_FAULTS: dict[str, dict[str, Any]] = {
    "corrupt": {"corrupt": True},
    "truncated": {"cut": 100},
    "missing": {"status": 404},
    "forbidden": {"status": 403},
    "broken": {"status": 503},
    "no answer": {"drop": True},
    "promises more than it sends": {"length": 100_000, "cut": 100},
    "promises less than it sends": {"length": 100},
    "no length": {"headers": {"Content-Length": None}, "cut": 100},
    "another file": {"body": b"these are not the bytes"},
    "login page": {"body": LOGIN, "headers": {"Content-Type": "text/html"}},
    "empty": {"body": b""},
    "redirects in a loop": {"status": 302, "headers": {"Location": f"/{LINUX}/{VICTIM}"}},
    "redirects to nowhere": {"status": 302, "headers": {"Location": "http://127.0.0.1:9/nothing"}},
    "endless": {"endless": True},
    "stalls": {"stall": 60, "stall_at": 100},
}


@pytest.mark.parametrize("fault", PACKAGE_FAULTS.values(), ids=PACKAGE_FAULTS.keys())
def test_one_package_that_cannot_be_had(lab: Lab, fault: dict[str, Any]) -> None:
    lab.settings |= {"timeout_seconds": 0.3, "retries": 1}
    lab.fault(f"/{LINUX}/{VICTIM}", **fault)

    run = lab.sync()

    assert run.code == 1, run.log
    assert VICTIM in run.log
    named = lab.check().named
    for form, names in named.items():
        assert VICTIM not in names
        assert "lib0006-1.1-0.conda" in names or "linux-64" not in form, "the others do not suffer"
    assert VICTIM not in lab.packages(LINUX)

    lab.upstream.faults.clear()
    run = lab.sync()
    assert run.code == 0, run.log
    assert VICTIM in lab.check().named[f"{LINUX}/repodata.json"]


def test_faults_that_pass_are_retried_and_forgotten(lab: Lab) -> None:
    """One package for each fault, all in one run; what an upstream says it does not have is not asked for again."""
    lab.settings |= {"timeout_seconds": 0.3, "retries": 2}
    for spec in channel.crowd("linux-64", len(PACKAGE_FAULTS), prefix="passing"):
        channel.build(spec, lab.tree / "pkgs/main")
    channel.index(lab.tree / "pkgs/main")
    for number, (name, fault) in enumerate(PACKAGE_FAULTS.items()):
        if name != "missing":
            lab.fault(f"/{LINUX}/passing{number:04}-*", **fault, times=1)
    run = lab.sync()
    assert run.code == 0, run.log
    assert len(lab.check().named[f"{LINUX}/repodata.json"]) == 14 + len(PACKAGE_FAULTS)


INDEX_FAULTS: dict[str, dict[str, Any]] = {
    "is not JSON": {"body": b"Hello, this is no JSON"},
    "login page": {"body": LOGIN},
    "empty": {"body": b""},
    "no object": {"body": b"[1, 2]"},
    "no index": {"body": b'{"error": "try later"}'},
    "sections of another shape": {"body": b'{"packages": [], "packages.conda": 7}'},
    "damaged zstd": {"body": b"\x28\xb5\x2f\xfd" + bytes(range(256))},
    "truncated": {"cut": 60},
    "forbidden": {"status": 403},
    "broken": {"status": 500},
}


@pytest.mark.parametrize("fault", INDEX_FAULTS.values(), ids=INDEX_FAULTS.keys())
def test_an_index_that_cannot_be_used_leaves_ours_as_it_is(lab: Lab, fault: dict[str, Any]) -> None:
    assert lab.sync().code == 0
    before = lab.repodata(LINUX)
    channel.edit(lab.tree / LINUX, {"hello-1.0-0.conda": {"later": True}})
    channel.edit(lab.tree / NOARCH, {"hello-data-1.0-0.tar.bz2": {"later": True}})
    lab.fault(f"/{LINUX}/*repodata*", **fault)

    run = lab.sync()

    assert run.code == 1, run.log
    assert LINUX in run.log
    assert lab.repodata(LINUX) == before
    assert lab.repodata(NOARCH)["packages"]["hello-data-1.0-0.tar.bz2"]["later"], "other subdirs go on"
    lab.check()
    lab.upstream.faults.clear()
    assert lab.sync().code == 0
    assert lab.repodata(LINUX)["packages.conda"]["hello-1.0-0.conda"]["later"]


@pytest.mark.parametrize("length", [100, 100_000])
def test_right_bytes_with_a_wrong_length_are_served_right_or_not_at_all(lab: Lab, length: int) -> None:
    lab.settings |= {"timeout_seconds": 0.3}
    lab.fault(f"/{LINUX}/{VICTIM}", length=length)
    run = lab.sync()
    assert (VICTIM in lab.check().named[f"{LINUX}/repodata.json"]) == (run.code == 0)
    assert run.code in (0, 1)


def test_a_broken_compressed_index_is_made_up_for_by_the_plain_one(lab: Lab) -> None:
    lab.fault("*/repodata.json.zst", body=b"no zstd at all")
    run = lab.sync()
    assert run.code == 0, run.log
    assert "hello-1.0-0.conda" in lab.check().named[f"{LINUX}/repodata.json"]


def test_an_upstream_with_nothing_but_repodata_json(lab: Lab) -> None:
    for file in lab.tree.rglob("*repodata*"):
        if file.name != "repodata.json":
            file.unlink()
    run = lab.sync()
    assert run.code == 0, run.log
    assert "hello-1.0-0.conda" in lab.check().named[f"{LINUX}/repodata.json"]


def test_an_index_that_shrank_to_nothing_is_not_published(lab: Lab) -> None:
    assert lab.sync().code == 0
    channel.edit(lab.tree / LINUX, packages={}, **{"packages.conda": {}})
    lab.settings["delete_grace_hours"] = 0
    run = lab.sync("--delete")
    assert run.code == 1
    assert LINUX in run.log
    assert "hello-1.0-0.conda" in lab.check().named[f"{LINUX}/repodata.json"]


def test_a_subdir_that_vanished_upstream_stays(lab: Lab) -> None:
    assert lab.sync().code == 0
    lab.fault(f"/{LINUX}/*", status=404)
    run = lab.sync("--delete")
    assert run.code == 1
    assert LINUX in run.log
    assert "hello-1.0-0.conda" in lab.check().named[f"{LINUX}/repodata.json"]


def test_an_upstream_that_is_down_changes_nothing(lab: Lab) -> None:
    assert lab.sync().code == 0
    before = {file: file.stat().st_mtime_ns for file in lab.mirror.rglob("pkgs/**/*")}
    lab.upstream.stop()
    run = lab.sync("--delete")
    assert run.code == 5, run.log
    assert {file: file.stat().st_mtime_ns for file in lab.mirror.rglob("pkgs/**/*")} == before
    lab.check()


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_an_upstream_that_refuses_everybody_counts_as_down(lab: Lab, status: int) -> None:
    lab.settings["retries"] = 0
    lab.fault("*", status=status)
    run = lab.sync()
    assert run.code == 5, run.log
    assert str(status) in run.log
    assert not (lab.mirror / "pkgs").exists()


def test_an_unpublished_channel_is_no_reason_to_call_the_upstream_down(lab: Lab) -> None:
    lab.settings["cloud"] = ["no-such-channel/linux-64"]
    run = lab.sync()
    assert run.code in (0, 1)
    assert "no-such-channel" in run.log
    assert not lab.problems()


def test_waits_grow_from_one_retry_to_the_next(lab: Lab) -> None:
    lab.settings |= {"retries": 3, "retry_wait_seconds": 0.1}
    times: list[float] = []
    lab.during(f"/{LINUX}/{VICTIM}", lambda: times.append(time.monotonic()))
    lab.fault(f"/{LINUX}/{VICTIM}", status=503)
    assert lab.sync().code == 1
    assert len(times) == 4
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert waits[0] >= 0.05
    assert waits[1] > waits[0]
    assert waits[2] > waits[1]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_obeyed(lab: Lab, status: int, form: str) -> None:
    times: list[float] = []
    lab.during(f"/{LINUX}/{VICTIM}", lambda: times.append(time.time()))
    until = time.time() + 2
    value = "1" if form == "seconds" else formatdate(until, usegmt=True)
    lab.fault(f"/{LINUX}/{VICTIM}", status=status, headers={"Retry-After": value}, times=1)
    assert lab.sync().code == 0
    assert len(times) == 2
    assert times[1] - times[0] >= 1 if form == "seconds" else times[1] >= int(until)
    lab.check()


def test_a_transfer_that_broke_off_is_continued(lab: Lab) -> None:
    big = _big(lab)
    lab.settings["retries"] = 3
    lab.fault(f"*/{big}", cut=1_500_000, times=1)
    run = lab.sync()
    assert run.code == 0, run.log
    ranges = [request.headers.get("Range", "") for request in lab.upstream.asked(f"*/{big}", "GET")]
    assert len(ranges) == 2
    assert ranges[0] == ""
    assert 0 < int(ranges[1].removeprefix("bytes=").removesuffix("-")) <= 1_500_000
    lab.check()


def test_a_transfer_is_begun_anew_where_the_upstream_has_no_ranges(lab: Lab) -> None:
    big = _big(lab)
    lab.settings["retries"] = 3
    lab.fault(f"*/{big}", cut=1_500_000, times=1, ignore_ranges=True)
    assert lab.sync().code == 0
    lab.check()
    lab.upstream.faults.clear()


def test_a_part_of_other_bytes_is_not_kept(lab: Lab) -> None:
    """The beginning came from one file and the rest from another: the whole is wrong, and is fetched anew."""
    big = _big(lab)
    lab.settings["retries"] = 3
    body = channel.noise(1_800_000, 99)
    lab.fault(f"*/{big}", body=body, cut=1_500_000, times=1)
    run = lab.sync()
    assert run.code == 0, run.log
    lab.check()


def _big(lab: Lab) -> str:
    """Add a package of 2 MB to the upstream and return its file name."""
    spec = channel.Spec("big", "1.0", subdir="linux-64", files={"share/big": channel.noise(2_000_000, 1)})
    channel.build(spec, lab.tree / "pkgs/main")
    channel.index(lab.tree / "pkgs/main")
    return spec.file_name


def test_a_damaged_served_index_is_made_anew(lab: Lab) -> None:
    assert lab.sync().code == 0
    (lab.mirror / LINUX / "repodata.json").write_bytes(b"rotten")
    assert lab.sync().code == 0
    lab.check()


@pytest.mark.parametrize(
    "name", ["../escape-1.0-0.conda", "/etc/escape-1.0-0.conda", "a/b-1.0-0.conda", ".conda", "x\0-1-0.conda"]
)
def test_a_file_name_that_leads_elsewhere_is_refused_and_named(lab: Lab, name: str) -> None:
    record = json.loads((lab.tree / LINUX / "repodata.json").read_bytes())["packages.conda"]["tool-2.0-0.conda"]
    channel.edit(lab.tree / LINUX, {name: record})
    lab.configure()
    before = lab.outside_the_mirror()
    run = lab.sync()
    assert run.code == 1, run.log
    assert "escape" in run.log or repr(name)[1:-1] in run.log
    assert name not in lab.named(f"{LINUX}/repodata.json")
    assert {file for file in lab.folder.rglob("*") if lab.mirror not in file.parents} - before <= {
        lab.folder / "config.yml"
    }
    lab.check()
