"""The invariants 1 to 4 of the design, seen from outside: closed, verified, in order, resumable."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from tests.engine import outside
from tests.engine.lab import Lab
from tests.upstream import channel

LINUX = "pkgs/main/linux-64"


def test_first_sync_serves_every_form_and_all_of_them_are_closed(lab: Lab) -> None:
    lab.settings |= {"repos": ["main", "r", "msys2"], "arches": ["noarch", "linux-64", "win-64"]}
    lab.settings["cloud"] = ["conda-forge/noarch", "conda-forge/linux-64"]

    run = lab.sync()

    assert run.code == 0, run.log
    lab.settings["arches"] = ["noarch", "win-64"]
    lab.check()
    lab.settings["arches"] = ["noarch", "linux-64", "win-64"]
    lab.settings["repos"] = ["main", "r"]
    named = lab.check().named
    upstream = json.loads((lab.tree / LINUX / "repodata.json").read_bytes())
    wanted = {*upstream["packages"], *upstream["packages.conda"]} - {"unwanted-1.0-0.conda"}
    for form in ("repodata.json", "repodata.json.zst", "repodata.json.bz2"):
        assert named[f"{LINUX}/{form}"] == wanted
    assert "hello-2.0-0.conda" in named["cloud/conda-forge/linux-64/repodata.json"]
    assert lab.packages(LINUX) == wanted


def test_records_pass_through_unchanged(lab: Lab) -> None:
    """Also keys that the engine does not know: repodata patches and fields of the future are the upstream's word."""
    channel.edit(lab.tree / LINUX, {"hello-1.0-0.conda": {"newer_key": {"a": [1, None]}}}, newer_top={"kept": True})
    assert lab.sync().code == 0
    ours, theirs = lab.repodata(LINUX), json.loads((lab.tree / LINUX / "repodata.json").read_bytes())
    del theirs["packages.conda"]["unwanted-1.0-0.conda"]
    assert ours["packages"] == theirs["packages"]
    assert ours["packages.conda"] == theirs["packages.conda"]
    assert ours["newer_top"] == {"kept": True}


def test_an_excluded_package_is_in_no_form_of_the_index(lab: Lab) -> None:
    lab.settings["exclude"] = ["unwanted", "lib000[12]"]
    run = lab.sync()
    assert run.code == 0, run.log
    named = lab.check().named
    assert named
    for form, names in named.items():
        strays = {name for name in names if name.startswith(("unwanted", "lib0001", "lib0002"))}
        assert not strays, f"{form} names {strays}"
        assert "lib0003-1.3-0.conda" in names or "linux-64" not in form
    assert not lab.upstream.asked("*/unwanted*")


def test_a_package_excluded_later_leaves_the_index_at_once_and_the_disk_later(lab: Lab) -> None:
    assert lab.sync().code == 0
    lab.settings["exclude"] = ["unwanted", "tool"]
    assert lab.sync("--delete").code == 0
    assert "tool-2.0-0.conda" not in lab.named(f"{LINUX}/repodata.json")
    assert "tool-2.0-0.conda" in lab.packages(LINUX), "a client with a cached index still asks for it"
    lab.check()


def test_packages_stand_before_the_index_that_names_them(lab: Lab) -> None:
    """Each time the upstream is asked for a package, a client of the mirror finds all it is told of."""
    assert lab.sync().code == 0
    before = lab.named(f"{LINUX}/repodata.json")
    for spec in channel.crowd("linux-64", 6, prefix="new"):
        channel.build(spec, lab.tree / "pkgs/main")
    channel.edit(lab.tree / LINUX, {"tool-2.0-0.conda": None})
    channel.index(lab.tree / "pkgs/main")
    seen: list[str] = []
    lab.during(f"/{LINUX}/new*", lambda: seen.extend(lab.problems(moving=True)))

    assert lab.sync().code == 0

    assert seen == []
    assert len(lab.upstream.asked(f"/{LINUX}/new*", "GET")) == 6
    after = lab.named(f"{LINUX}/repodata.json")
    assert len(after - before) == 6
    lab.check()


def test_a_package_that_left_the_upstream_stays_on_disk_for_its_grace(lab: Lab) -> None:
    assert lab.sync().code == 0
    (lab.tree / LINUX / "tool-2.0-0.conda").unlink()
    channel.edit(lab.tree / LINUX, {"tool-2.0-0.conda": None})
    assert lab.sync("--delete").code == 0
    assert "tool-2.0-0.conda" not in lab.named(f"{LINUX}/repodata.json")
    assert "tool-2.0-0.conda" in lab.packages(LINUX)
    lab.settings["delete_grace_hours"] = 0
    assert lab.sync().code == 0
    assert "tool-2.0-0.conda" in lab.packages(LINUX), "without --delete nothing goes"
    assert lab.sync("--delete").code == 0
    assert "tool-2.0-0.conda" not in lab.packages(LINUX)
    lab.check()


def test_a_package_that_comes_back_and_goes_again_has_its_whole_grace_anew(lab: Lab) -> None:
    lab.settings["delete_grace_hours"] = 1 / 3600
    record = json.loads((lab.tree / LINUX / "repodata.json").read_bytes())["packages.conda"]["tool-2.0-0.conda"]
    for change in (record, None, record):
        channel.edit(lab.tree / LINUX, {"tool-2.0-0.conda": change})
        assert lab.sync().code == 0
    time.sleep(1.1)
    channel.edit(lab.tree / LINUX, {"tool-2.0-0.conda": None})
    assert lab.sync("--delete").code == 0
    assert "tool-2.0-0.conda" in lab.packages(LINUX)
    time.sleep(1.1)
    assert lab.sync("--delete").code == 0
    assert "tool-2.0-0.conda" not in lab.packages(LINUX)
    lab.check()


def test_new_bytes_under_an_old_name_replace_the_old_ones(lab: Lab) -> None:
    assert lab.sync().code == 0
    spec = channel.Spec("tool", "2.0", subdir="linux-64", files={"share/tool": channel.noise(3000, 77)})
    new = channel.build(spec, lab.tree / "pkgs/main")
    channel.index(lab.tree / "pkgs/main")
    seen: list[str] = []
    lab.during("*/tool-2.0-0.conda", lambda: seen.extend(lab.problems(moving=True)))

    assert lab.sync().code == 0

    assert seen == []
    assert (lab.mirror / LINUX / new.name).read_bytes() == new.read_bytes()
    lab.check()


def test_new_bytes_that_cannot_be_had_leave_the_old_ones_and_their_record(lab: Lab) -> None:
    assert lab.sync().code == 0
    old = lab.repodata(LINUX)["packages.conda"]["tool-2.0-0.conda"]
    spec = channel.Spec("tool", "2.0", subdir="linux-64", files={"share/tool": channel.noise(3000, 77)})
    channel.build(spec, lab.tree / "pkgs/main")
    channel.index(lab.tree / "pkgs/main")
    lab.fault("*/tool-2.0-0.conda", corrupt=True)

    assert lab.sync().code == 1

    record = lab.repodata(LINUX)["packages.conda"].get("tool-2.0-0.conda")
    assert record in (None, old)
    lab.check()
    lab.upstream.faults.clear()
    assert lab.sync().code == 0
    assert lab.repodata(LINUX)["packages.conda"]["tool-2.0-0.conda"]["sha256"] != old["sha256"]
    lab.check()


def test_a_second_run_fetches_nothing(lab: Lab) -> None:
    assert lab.sync().code == 0
    before = {file: file.stat().st_mtime_ns for file in lab.mirror.rglob("*.*") if ".lanmirror" not in file.parts}
    lab.upstream.requests.clear()
    assert lab.sync().code == 0
    assert not lab.upstream.asked("*.conda")
    assert not lab.upstream.asked("*.tar.bz2")
    after = {file: file.stat().st_mtime_ns for file in before}
    assert after == before, "an unchanged index keeps its time, or each client fetches it again"


def test_bytes_that_stood_there_before_are_checked_before_they_are_named(lab: Lab) -> None:
    """A mirror that another tool made, with one damaged file of the right size, and one genuine file."""
    folder = lab.mirror / LINUX
    folder.mkdir(parents=True)
    for name in ("lib0001-1.1-0.conda", "lib0002-1.2-0.conda"):
        shutil.copy(lab.tree / LINUX / name, folder)
    damaged = bytearray((folder / "lib0002-1.2-0.conda").read_bytes())
    damaged[100] ^= 1
    (folder / "lib0002-1.2-0.conda").write_bytes(damaged)

    assert lab.sync().code == 0

    lab.check()
    assert not lab.upstream.asked("*/lib0001-1.1-0.conda"), "good bytes are not fetched again"
    assert lab.upstream.asked("*/lib0002-1.2-0.conda")


@pytest.mark.parametrize("gone", ["lib0001-1.1-0.conda", "lib0000-1.0-0.tar.bz2"])
def test_a_file_that_vanished_from_the_mirror_is_fetched_again(lab: Lab, gone: str) -> None:
    assert lab.sync().code == 0
    (lab.mirror / LINUX / gone).unlink()
    assert lab.sync().code == 0
    lab.check()
    assert gone in lab.packages(LINUX)


def test_md5_is_enough_where_the_upstream_has_no_better(lab: Lab) -> None:
    record = json.loads((lab.tree / LINUX / "repodata.json").read_bytes())["packages"]["lib0000-1.0-0.tar.bz2"]
    assert record["md5"]
    channel.edit(lab.tree / LINUX, {"lib0000-1.0-0.tar.bz2": {"sha256": None}})
    lab.fault("*/lib0000-1.0-0.tar.bz2", corrupt=True, times=2)
    assert lab.sync().code == 1
    assert "lib0000-1.0-0.tar.bz2" not in lab.named(f"{LINUX}/repodata.json")
    assert lab.sync().code == 0
    assert "lib0000-1.0-0.tar.bz2" in lab.named(f"{LINUX}/repodata.json")
    lab.check()


def test_a_record_without_any_hash_is_not_served(lab: Lab) -> None:
    channel.edit(lab.tree / LINUX, {"tool-2.0-0.conda": {"sha256": None, "md5": None}})
    run = lab.sync()
    assert run.code == 1
    assert "tool-2.0-0.conda" in run.log
    assert "tool-2.0-0.conda" not in lab.named(f"{LINUX}/repodata.json")
    lab.check()


def test_a_channel_without_noarch_gets_an_empty_one(lab: Lab) -> None:
    """`free` has no noarch folder; conda fails on a channel without its index."""
    lab.settings |= {"repos": ["free"]}
    run = lab.sync()
    assert run.code == 0, run.log
    findings = lab.check()
    assert findings.named["pkgs/free/noarch/repodata.json"] == set()
    assert findings.named["pkgs/free/linux-64/repodata.json"] == {"old-0.9-0.tar.bz2"}
    assert lab.repodata("pkgs/free/noarch")["info"]["subdir"] == "noarch"


def test_no_address_in_an_index_leads_off_the_mirror(lab: Lab) -> None:
    info = {"subdir": "linux-64", "base_url": "https://conda.example.org/pkgs/main/linux-64/"}
    channel.edit(lab.tree / LINUX, info=info)
    assert lab.sync().code == 0
    lab.check()
    for form in outside.FORMS:
        file = lab.mirror / LINUX / form
        assert not file.exists() or b"conda.example.org" not in outside.unpacked(form, file.read_bytes())
