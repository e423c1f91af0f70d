"""`plan`: its figures are what a sync then does, and a sync that does not fit is not begun."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lanmirror_sync import outlook
from lanmirror_sync.config import NONE, Subdir
from lanmirror_sync.outlook import BIGGEST, Sum, biggest, measured, together
from lanmirror_sync.plan import Hidden, Known, compare
from lanmirror_sync.repodata import Package
from lanmirror_sync.room import Balance, Claim, Disk, fitting

from tests.engine.lab import ROOT, Engine, Lab, laboratory
from tests.engine.test_lock_and_disk import AS_ROOT
from tests.engine.test_plan import some_files, some_packages, some_patterns
from tests.upstream import channel

LINUX, NOARCH, FORGE = "pkgs/main/linux-64", "pkgs/main/noarch", "cloud/conda-forge/linux-64"
SH = "Miniconda3-latest-Linux-x86_64.sh"
DAY = 86400
MIB = 1 << 20


def packages(lab: Lab) -> dict[str, int]:
    """Return the sizes of the packages and installers that the mirror has, by path."""
    suffixes = (".conda", ".tar.bz2", ".sh")
    files = (file for file in lab.mirror.rglob("*") if file.name.endswith(suffixes) and "/." not in str(file))
    return {str(file.relative_to(lab.mirror)): file.stat().st_size for file in files}


def records(lab: Lab, subdir: str) -> dict[str, dict[str, Any]]:
    """Return what the upstream's index says, by file name."""
    index = lab.repodata_of_upstream(subdir)
    return {**index["packages"], **index["packages.conda"]}


def run_of(lab: Lab) -> dict[str, Any]:
    """Return what `status.json` tells of the last sync."""
    told: dict[str, Any] = json.loads((lab.mirror / ".lanmirror/public/status.json").read_bytes())["run"]
    return told


def summed(sizes: Mapping[Any, int]) -> dict[str, int]:
    """Return how many files there are, and their bytes."""
    return {"files": len(sizes), "bytes": sum(sizes.values())}


# ---- what a sync then does ---------------------------------------------------------------------------------------


def churned(lab: Lab, *, on_demand: bool) -> dict[str, int]:
    """Sync a part, then have the upstream and the settings change in every way; return what the mirror had."""
    dated = {name: {"indexed_timestamp": None} for name in records(lab, LINUX)}
    channel.edit(lab.tree / LINUX, dated)
    lab.settings |= {
        "on_demand": on_demand, "cloud": ["conda-forge/linux-64"], "exclude": [], "delete_grace_hours": 0,
        "max_delete": 100, "installers": {"dists": ["miniconda"], "suffixes": [".sh"]},
    }  # fmt: skip
    assert lab.sync("--only", "pkgs/*").code == 0
    before = packages(lab)

    # A package that is new, one that has other bytes now, one that is gone, one that is too new, and one that is lost.
    main = lab.tree / "pkgs/main"
    specs = [
        channel.Spec("fresh", subdir="linux-64"),
        channel.Spec("tool", "2.0", subdir="linux-64", files={"x": b"x"}),
    ]
    channel.publish(main, *specs)
    channel.retract(main, "linux-64", "lib0005-1.0-0.conda")
    channel.edit(main / "linux-64", {"lib0006-1.1-0.conda": {"timestamp": int(time.time() * 1000)}})
    (lab.mirror / LINUX / "lib0008-1.3-0.conda").unlink()
    lab.settings |= {
        "repos": [{"name": "main", "block": ["lib0003", "lib0004<2"], "allow": ["hello"], "min_age_days": 1}],
        "exclude": ["unwanted", "lib0001"],
    }  # fmt: skip
    if on_demand:
        lab.settings["cloud"] = [{"name": "conda-forge/linux-64", "hold": "none"}]
    return before


@pytest.mark.parametrize("on_demand", [False, True])
def test_figures_are_those_of_the_sync_that_follows_with_every_filter_on(lab: Lab, on_demand: bool) -> None:
    before = churned(lab, on_demand=on_demand)
    lab.upstream.requests.clear()
    plan = lab.plan()
    assert not lab.upstream.asked("*.conda") + lab.upstream.asked("*.tar.bz2") + lab.upstream.asked("*.sh", "GET")
    assert packages(lab) == {path: size for path, size in before.items() if "lib0008" not in path}

    run = lab.sync("--delete")
    assert run.code == 0, run.log
    after = packages(lab)
    asked = [request.path.lstrip("/") for request in lab.upstream.requests if request.method == "GET"]
    came = {path: after[path] for path in asked if path in after}
    assert plan["total"]["fetch"] == summed(came)
    assert (run_of(lab)["fetched_files"], run_of(lab)["fetched_bytes"]) == tuple(summed(came).values())
    assert {f"{LINUX}/fresh-1.0-0.conda", f"{LINUX}/tool-2.0-0.conda", f"{LINUX}/lib0008-1.3-0.conda"} <= {*came}
    assert (f"{FORGE}/hello-2.0-0.conda" in came) == (not on_demand)
    for path, part in {**plan["subdirs"], **plan["installers"]}.items():
        assert part["fetch"] == summed({name: size for name, size in came.items() if name.startswith(f"{path}/")}), path
    gone = {path: size for path, size in before.items() if path not in after}
    assert plan["total"]["delete"] == summed(gone)
    assert len(gone) == run_of(lab)["deleted_files"] == 5
    # What is too new is not named, and stays.
    assert f"{LINUX}/lib0006-1.1-0.conda" in after

    sizes = {name: record["size"] for name, record in records(lab, LINUX).items()}
    saved = {
        "exclude": {"unwanted-1.0-0.conda", "lib0001-1.1-0.conda"},
        "block": {"lib0003-1.3-0.conda", "lib0004-1.4-0.conda"},
        "min_age_days": {"lib0006-1.1-0.conda"},
    }
    of_linux = plan["subdirs"][LINUX]
    assert of_linux["saved"] == {why: summed({name: sizes[name] for name in names}) for why, names in saved.items()}
    assert of_linux["listed"] == summed(sizes)
    of_forge = summed({name: record["size"] for name, record in records(lab, FORGE).items()})
    demanded = plan["subdirs"][FORGE]
    assert demanded["saved"] == ({"hold": of_forge} if on_demand else {})
    assert demanded["on_demand"] == (of_forge if on_demand else summed({}))

    # And a second time nothing is left.
    second = lab.plan()
    assert {part["state"] for part in second["subdirs"].values()} == {"unchanged"}
    nothing = summed({})
    assert [second["total"][key] for key in ("fetch", "delete", "needs")] == [
        nothing,
        nothing,
        {"bytes": 0, "inodes": 0},
    ]
    assert second["total"]["held"] == second["total"]["wanted"] == plan["total"]["wanted"]
    assert [second["subdirs"][LINUX][key] for key in ("saved", "listed")] == [
        of_linux[key] for key in ("saved", "listed")
    ]
    assert second["file_systems"] == []
    lab.upstream.requests.clear()
    assert lab.sync("--delete").code == 0
    assert packages(lab) == after
    assert not lab.upstream.asked("*.conda") + lab.upstream.asked("*.tar.bz2")


@pytest.mark.parametrize("on_demand", [False, True])
def test_figures_of_a_choice_are_those_of_the_sync_that_follows(lab: Lab, on_demand: bool) -> None:
    lab.settings |= {"on_demand": on_demand, "exclude": [], "delete_grace_hours": 0}
    assert lab.sync().code == 0
    before = packages(lab)
    (lab.mirror / LINUX / "lib0008-1.3-0.conda").unlink()
    lost = before[f"{LINUX}/lib0008-1.3-0.conda"]
    # One of those that are not chosen has other bytes here than the upstream says.
    damaged = lab.mirror / LINUX / "lib0002-1.2-0.conda"
    damaged.write_bytes(b"x" * 10)
    lab.settings["repos"] = [
        {"name": "main", "hold": {"include": ["lib*"], "exclude": ["lib0001", "lib0002", "lib0003"]}}
    ]
    plan = lab.plan()["subdirs"][LINUX]
    assert plan["hold"] == "some"
    run = lab.sync("--delete")
    assert run.code == 0, run.log
    after = packages(lab)
    here = {path: size for path, size in after.items() if path.startswith(f"{LINUX}/")}
    assert {path.rpartition("/")[2][:7] for path in here} == {f"lib{n:04}" for n in (0, *range(4, 12))}
    assert plan["fetch"] == {"files": 1, "bytes": lost}
    assert plan["wanted"] == summed(here)
    assert plan["held"] == {"files": len(here) - 1, "bytes": sum(here.values()) - lost}
    others = {f"{LINUX}/{name}": record["size"] for name, record in records(lab, LINUX).items()}
    rest = {path: size for path, size in others.items() if path not in here}
    assert plan["saved"] == {"hold": summed(rest)}
    gone = {path: size for path, size in before.items() if path not in after and path.startswith(f"{LINUX}/")}
    gone[f"{LINUX}/lib0002-1.2-0.conda"] = 10
    # The one with other bytes is no candidate for a grace where the index goes on naming it.
    assert plan["delete"]["files"] == len(gone) - on_demand
    second = lab.plan()["subdirs"][LINUX]
    assert (second["state"], second["fetch"]["files"], second["surplus"]["files"]) == ("unchanged", 0, 0)
    assert second["held"] == second["wanted"] == plan["wanted"]
    assert second["on_demand"] == (summed(rest) if on_demand else summed({}))


def test_deletion_that_max_delete_stops_is_not_promised(lab: Lab) -> None:
    lab.settings |= {"delete_grace_hours": 0, "max_delete": 10}
    assert lab.sync().code == 0
    channel.retract(lab.tree / "pkgs/main", "linux-64", "tool-2.0-0.conda")
    assert lab.plan()["subdirs"][LINUX]["delete"]["files"] == 1
    lab.settings["max_delete"] = 30
    names = sorted(name for name in records(lab, LINUX) if name.startswith("lib"))[:3]
    channel.retract(lab.tree / "pkgs/main", "linux-64", *names)
    assert lab.plan()["subdirs"][LINUX]["delete"]["files"] == 4
    assert lab.sync().code == 0
    lab.settings["max_delete"] = 10
    # Its index was published, and the files are still here.
    part = lab.plan()["subdirs"][LINUX]
    assert (part["surplus"]["files"], part["delete"]["files"]) == (4, 0)
    lab.settings["delete_grace_hours"] = 24
    part = lab.plan("--max-delete", "100")["subdirs"][LINUX]
    assert (part["surplus"]["files"], part["delete"]["files"]) == (4, 0)
    run = lab.sync("--delete")
    assert run_of(lab)["deleted_files"] == 0
    lab.settings["delete_grace_hours"] = 0
    run = lab.sync("--delete")
    assert "more than max_delete" in run.log
    assert run_of(lab)["deleted_files"] == 0


def test_what_was_never_verified_is_to_be_hashed(lab: Lab) -> None:
    assert lab.sync().code == 0
    for file in (lab.mirror / ".lanmirror").glob("memory.sqlite*"):
        file.unlink()
    part = lab.plan()["subdirs"][LINUX]
    assert (part["unverified"]["files"], part["held"]["files"], part["fetch"]["files"]) == (14, 0, 0)
    assert part["wanted"] == part["unverified"]
    assert "14 to hash first" in lab.sync("plan").log


def test_biggest_names_come_first_and_are_twenty(lab: Lab) -> None:
    specs = [
        channel.Spec("huge", f"{n}.0", subdir=arch, files={"x": channel.noise(9000, n)})
        for n, arch in enumerate(("linux-64", "linux-64", "noarch"))
    ]
    channel.publish(lab.tree / "pkgs/main", *specs)
    lab.settings["cloud"] = ["conda-forge/linux-64"]
    plan = lab.plan()
    assert len(plan["biggest"]) == BIGGEST
    here = {**records(lab, LINUX), **records(lab, NOARCH)}
    sizes = [record["size"] for name, record in here.items() if name.startswith("huge-")]
    assert plan["biggest"][0] == {"channel": "pkgs/main", "name": "huge", "files": 3, "bytes": sum(sizes)}
    order = [one["bytes"] for one in plan["biggest"]]
    assert order == sorted(order, reverse=True)


def test_time_is_told_at_a_given_rate_or_that_of_the_last_sync_or_of_the_limit(lab: Lab) -> None:
    first = lab.plan()
    assert (first["rate"], first["seconds"]) == (None, None)
    size = first["total"]["fetch"]["bytes"]
    given = lab.plan("--rate", "8kbit/s")
    assert given["rate"] == {"bytes_per_second": 1000, "source": "--rate"}
    assert given["seconds"] == size / 1000
    assert f"{size / 1000:.0f} seconds at 0.001 MB/s (--rate)" in lab.sync("plan", "--rate", "8kbit/s").log
    lab.settings["limit_rate"] = "500"
    assert lab.plan("--rate", "8kbit/s")["rate"] == {"bytes_per_second": 500, "source": "limit_rate"}
    lab.settings["limit_rate"] = ""
    # What fetched little tells nothing.
    assert lab.sync().code == 0
    assert lab.plan()["rate"] is None
    channel.publish(lab.tree / "pkgs/main", big("big", 2 * MIB))
    assert lab.sync().code == 0
    run = run_of(lab)
    rate = {"bytes_per_second": int(run["fetched_bytes"] / (run["ended"] - run["began"])), "source": "last sync"}
    assert lab.plan()["rate"] == rate


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("plan", "--rate", "fast"), "--rate is 'fast'"), (("sync", "--rate", "1MB/s"), "--rate is an option of plan"),
     (("sync", "--json"), "--json is an option of plan")],
)  # fmt: skip
def test_wrong_options_are_refused(lab: Lab, arguments: tuple[str, ...], told: str) -> None:
    run = lab.sync(*arguments)
    assert run.code == 2, run.log
    assert told in run.log


def test_what_cannot_be_told_is_a_failure_and_the_rest_is_told(lab: Lab) -> None:
    (lab.tree / LINUX / "repodata.json").write_text("[]")
    channel.pack(lab.tree / LINUX / "repodata.json")
    run = lab.sync("plan", "--json")
    assert run.code == 1
    plan = json.loads(run.log[run.log.index("{\n") :])
    assert plan["subdirs"][LINUX]["state"] == "failed"
    assert "no index can be used" in plan["failures"][LINUX][0]
    assert plan["subdirs"][NOARCH]["fetch"]["files"] == 1


def test_keys_are_documented() -> None:
    page = (ROOT / "docs/sync-engine.md").read_text()
    for struct in (outlook.Outlook, outlook.Part, outlook.Name, outlook.Retired, outlook.FileSystem, outlook.Rate):
        for field in msgspec.structs.fields(struct):
            assert f"`{field.encode_name}`" in page, (struct.__name__, field.encode_name)
    for name in outlook.FILTERS:
        assert f"`{name}`" in page


# ---- the indexes that it read ------------------------------------------------------------------------------------


def spoil(lab: Lab) -> None:
    """Have the upstream's indexes be no indexes any more, while their sizes and dates, and so validators, stay."""
    for file in lab.tree.glob("*/*/*/repodata.json*"):
        status = file.stat()
        file.write_bytes(bytes(status.st_size))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("arguments", [(), ("--indexes",)])
def test_index_that_a_plan_has_read_is_not_fetched_again(lab: Lab, arguments: tuple[str, ...]) -> None:
    lab.settings["on_demand"] = bool(arguments)
    assert lab.sync("plan").code == 0
    spoil(lab)
    run = lab.sync(*arguments)
    assert run.code == 0, run.log
    assert len(lab.repodata(LINUX)["packages.conda"]) == 12
    assert lab.plan()["failures"] == {}
    # And it is as if it had come then: nothing is asked for anew.
    run = lab.sync(*arguments)
    assert (run.code, "2 of 2 subdirs unchanged" in run.log) == (0, True), run.log


def test_index_that_has_changed_since_the_plan_is_fetched(lab: Lab) -> None:
    assert lab.sync().code == 0
    channel.publish(lab.tree / "pkgs/main", channel.Spec("fresh", subdir="linux-64"))
    assert lab.sync("plan").code == 0
    channel.publish(lab.tree / "pkgs/main", channel.Spec("fresher", subdir="linux-64"))
    assert lab.sync().code == 0
    assert "fresher-1.0-0.conda" in lab.check().named[f"{LINUX}/repodata.json"]
    # What is served is later than what was kept, which is not gone back to.
    channel.publish(lab.tree / "pkgs/main", channel.Spec("freshest", subdir="linux-64"))
    assert lab.sync().code == 0
    assert "freshest-1.0-0.conda" in lab.check().named[f"{LINUX}/repodata.json"]


@pytest.mark.parametrize("what", ["damaged", "half", "old", "ahead", "elsewhere", "cut"])
def test_index_that_was_kept_and_is_no_good_is_fetched(lab: Lab, what: str) -> None:
    assert lab.sync("plan").code == 0
    for file in (lab.mirror / ".lanmirror/planned").iterdir():
        first, _, data = file.read_bytes().partition(b"\n")
        head = json.loads(first)
        head["at"] += {"old": -DAY, "ahead": DAY}.get(what, 0)
        head["url"] = head["url"].replace("127.0.0.1", "127.0.0.2") if what == "elsewhere" else head["url"]
        data = {"damaged": bytes(len(data)), "half": data[:100]}.get(what, data)
        file.write_bytes(json.dumps(head).encode()[: 20 if what == "cut" else None] + b"\n" + data)
    lab.upstream.requests.clear()
    run = lab.sync()
    assert run.code == 0, run.log
    asked = lab.upstream.asked("*/repodata.json.zst", "GET")
    assert [name for request in asked for name in request.headers if name.lower().startswith("if-")] == []
    lab.check()


def test_indexes_of_a_plan_go_after_a_day_and_are_kept_where_they_are_the_users_alone(lab: Lab) -> None:
    assert lab.sync("plan").code == 0
    kept = [*(lab.mirror / ".lanmirror/planned").iterdir()]
    assert len(kept) == 2
    before = [file.read_bytes() for file in kept]
    assert lab.sync("plan").code == 0
    assert [file.read_bytes() for file in kept] == before, "it keeps the date of when it came"
    os.utime(kept[0], (0, 0))
    assert lab.sync().code == 0
    assert [*(lab.mirror / ".lanmirror/planned").iterdir()] == kept[1:]

    # Of another user's, and of one that is not there, root keeps nothing.
    for folder in ("other", "absent"):
        lab.settings["working_dir"] = str(lab.folder / folder)
        if folder == "other":
            (lab.folder / folder).mkdir()
            subprocess.run([*AS_ROOT, "chown", "12345", lab.folder / folder], check=True)
        assert lab.sync("plan").code == 0
        assert not [*(lab.folder / folder).rglob("*")]


# ---- room --------------------------------------------------------------------------------------------------------


def big(name: str, size: int, subdir: str = "linux-64") -> channel.Spec:
    """Return a package of so many bytes, and a few more."""
    return channel.Spec(name, subdir=subdir, files={f"share/{name}": channel.noise(size, 1)})


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Callable[[str], None]]:
    """Have a file system of its own at a folder; yield what sets other options."""
    folder.mkdir(exist_ok=True)
    subprocess.run([*AS_ROOT, "mount", "-t", "tmpfs", "-o", f"{options},mode=0777", "tmpfs", folder], check=True)

    def remount(options: str) -> None:
        subprocess.run([*AS_ROOT, "mount", "-o", f"remount,{options}", folder], check=True)

    try:
        yield remount
    finally:
        subprocess.run([*AS_ROOT, "umount", "--lazy", folder], check=True)


Small = tuple[Lab, Callable[[str], None]]


@pytest.fixture
def small(engine: Engine, built: Path, tmp_path: Path) -> Iterator[Small]:
    """Return a lab whose mirror is on a disk of its own, and what sets the size of that."""
    with disk(tmp_path / "disk", "size=64m") as remount, laboratory(engine, built, tmp_path, tmp_path / "disk") as lab:
        yield lab, remount


def used(folder: Path) -> tuple[int, int]:
    """Return the bytes and inodes that are in use on a file system."""
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize, status.f_files - status.f_ffree


def test_sync_that_does_not_fit_says_by_how_much_and_what_would_and_begins_nothing(small: Small) -> None:
    lab, remount = small
    assert lab.sync().code == 0
    channel.publish(lab.tree / "pkgs/main", big("later", MIB))
    channel.publish(lab.tree / "pkgs/r", big("large", 4 * MIB))
    channel.publish(lab.tree / "cloud/conda-forge", big("other", MIB))
    lab.settings |= {"repos": ["main", "r"], "cloud": ["conda-forge/linux-64"]}
    remount(f"size={used(lab.mirror)[0] + 4 * MIB}")
    run = lab.sync("plan", "--json")
    assert run.code == 4, run.log
    plan = json.loads(run.log)
    (there,) = plan["file_systems"]
    assert there["path"] == str(lab.mirror)
    assert plan["channels"]["pkgs/r"]["needs"]["bytes"] > 4 * MIB
    assert there["needed_bytes"] == plan["total"]["needs"]["bytes"]
    assert there["lacking_bytes"] == there["needed_bytes"] - there["free_bytes"] == -there["free_bytes_after"]
    assert (plan["fits"], plan["would_fit"]) == (False, ["pkgs/main", "cloud/conda-forge"])
    told = lab.sync("plan")
    assert told.code == 4
    assert "in the order of the configuration, pkgs/main, cloud/conda-forge would fit" in told.log

    before = packages(lab)
    lab.upstream.requests.clear()
    run = lab.sync("--delete")
    assert run.code == 4, run.log
    assert f"{lab.mirror}: " in run.log
    assert "too little on its disk" in run.log
    assert "in the order of the configuration, pkgs/main, cloud/conda-forge would fit" in run.log
    assert not lab.upstream.asked("*.conda")
    assert packages(lab) == before
    lab.settings["repos"] = ["main"]
    run = lab.sync()
    assert run.code == 0, run.log
    lab.check()


def test_full_inode_table_is_seen_before_anything_is_begun(small: Small) -> None:
    lab, remount = small
    assert lab.sync().code == 0
    channel.publish(lab.tree / "pkgs/main", *channel.crowd("linux-64", 40, prefix="few"))
    needed = lab.plan()["total"]["needs"]["inodes"]
    before = packages(lab)
    lab.upstream.requests.clear()
    # With none, or one, there is no room for what the engine itself needs.
    for free, words in ((0, "No space left"), (1, "No space left"), (needed - 10, "inodes too few")):
        remount(f"size=64m,nr_inodes={used(lab.mirror)[1] + free}")
        run = lab.sync()
        assert run.code == 4, run.log
        assert words in run.log
        assert not lab.upstream.asked("*.conda")
        assert packages(lab) == before
    plan = lab.sync("plan")
    assert plan.code == 4, plan.log
    assert "inodes are lacking" in plan.log
    assert lab.problems() == []


def test_what_the_plan_needs_is_enough(small: Small) -> None:
    """With what SQLite writes beside it, for which `min_free_gib` stands otherwise."""
    lab, remount = small
    lab.settings |= {"repos": ["main", "r"], "cloud": ["conda-forge/noarch", "conda-forge/linux-64"]}
    assert lab.sync("--only", NOARCH).code == 0
    channel.publish(lab.tree / "pkgs/main", *channel.crowd("linux-64", 60, prefix="few"), big("big", 3 * MIB))
    # An index that counts beside its packages.
    channel.edit(lab.tree / LINUX, {"few0000-1.0-0.tar.bz2": {"note": "long " * 600_000}})
    plan = lab.plan()["file_systems"][0]
    size, inodes = used(lab.mirror)
    lab.settings["min_free_gib"] = 0.001
    slack = 2 * MIB
    remount(f"size={size + plan['needed_bytes'] + slack},nr_inodes={inodes + plan['needed_inodes'] + 8}")
    run = lab.sync()
    assert run.code == 0, run.log
    lab.check()


def test_each_disk_counts_by_itself(lab: Lab, tmp_path: Path) -> None:
    """A channel stands on a small disk behind a link, and what is missing there is not made up for elsewhere."""
    with disk(tmp_path / "other", "size=2m"):
        (tmp_path / "other/main").mkdir()
        (lab.mirror / "pkgs").mkdir()
        (lab.mirror / "pkgs/main").symlink_to(tmp_path / "other/main")
        channel.publish(lab.tree / "pkgs/main", big("big", 3 * MIB))
        lab.settings["cloud"] = ["conda-forge/linux-64"]
        run = lab.sync("plan", "--json")
        assert run.code == 4
        plan = json.loads(run.log)
        short = {there["path"]: there["lacking_bytes"] for there in plan["file_systems"]}
        assert {path for path, lacking in short.items() if lacking} == {str(lab.mirror / "pkgs/main")}
        assert len(short) == 2
        assert plan["would_fit"] == ["cloud/conda-forge"]
        run = lab.sync()
        assert run.code == 4
        assert f"{lab.mirror / 'pkgs/main'}: " in run.log
        assert not lab.upstream.asked("*.conda")
        channel.retract(lab.tree / "pkgs/main", "linux-64", "big-1.0-0.conda")
        run = lab.sync()
        assert run.code == 0, run.log
        lab.check()


def test_what_a_run_that_was_broken_off_left_need_not_come_again(small: Small) -> None:
    lab, remount = small
    assert lab.sync().code == 0
    channel.publish(lab.tree / "pkgs/main", big("big", 4 * MIB))
    lab.settings["timeout_seconds"] = 60
    lab.fault("*/big-1.0-0.conda", stall=60, stall_at=3 * MIB, times=1)
    broken = lab.start()
    partial = lab.mirror / ".lanmirror/partial"
    lab.until(lambda: sum(file.stat().st_size for file in partial.iterdir()) > 2 * MIB)
    broken.kill()
    broken.wait()
    lab.upstream.faults.clear()
    free = used(lab.mirror)[0] + 3 * MIB
    remount(f"size={free}")
    plan = lab.plan()
    assert plan["subdirs"][LINUX]["needs"]["bytes"] > 4 * MIB
    assert plan["fits"]
    assert plan["file_systems"][0]["needed_bytes"] < 3 * MIB
    run = lab.sync()
    assert run.code == 0, run.log
    lab.check()


# ---- properties --------------------------------------------------------------------------------------------------


@given(some_packages(), some_files, some_patterns, st.data())
def test_every_package_is_counted_once_and_the_figures_follow_from_the_inputs(
    packages: dict[str, Package], files: Mapping[str, Known], exclude: list[str], data: st.DataObject
) -> None:
    names = st.sets(st.sampled_from([*packages, "x"]))
    blocked, young = data.draw(names), data.draw(names)
    hidden = Hidden(frozenset(blocked), frozenset(young - blocked))
    hold = data.draw(st.sampled_from(("all", NONE)))
    subdir = Subdir(PurePosixPath(LINUX), (), (), hold)
    plan = compare(packages, files, exclude, hidden)
    part, of_names = measured(subdir, packages, plan, exclude)
    counted = part.wanted
    for saved in part.saved.values():
        counted += saved
    assert counted == part.listed
    assert part.listed == Sum(len(packages), sum(package.size or 0 for package in packages.values()))
    assert part.wanted == part.held + part.unverified + part.fetch
    assert sum((one.files for one in of_names.values()), 0) == part.wanted.files
    shuffled = dict(data.draw(st.permutations([*packages.items()])))
    assert measured(subdir, shuffled, compare(shuffled, files, exclude, hidden), exclude) == (part, of_names)
    # When it is carried out, nothing is left to do.
    done = {one.file_name: bytes.fromhex(one.digest) for one in (*plan.fetch, *plan.replace, *plan.check)}
    again, _ = measured(subdir, packages, compare(packages, {**files, **done}, exclude, hidden), exclude)
    assert again.fetch == again.unverified == Sum()
    assert (again.wanted, again.saved) == (part.wanted, part.saved)


def test_sums_of_parts_and_the_order_of_names() -> None:
    one = outlook.Part(fetch=Sum(1, 2), saved={"block": Sum(1, 1)})
    assert together([one, one]).fetch == Sum(2, 4)
    assert together([one, one]).saved == {"block": Sum(2, 2)}
    assert [one.name for one in biggest({("c", "b"): Sum(1, 5), ("c", "a"): Sum(9, 5), ("c", "z"): Sum(1, 6)})] == [
        "z", "a", "b",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 seconds"), (1.2, "1 second"), (119, "119 seconds"), (120, "2 minutes"), (7199, "120 minutes"),
     (7200, "2 hours"), (200_000, "2 days"), (100_000, "28 hours")],
)  # fmt: skip
def test_times_are_told_in_the_unit_that_they_are_read_best_in(seconds: float, words: str) -> None:
    assert outlook.duration(seconds) == words


sizes = st.integers(0, 6)


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from((1, 2)), sizes, sizes), max_size=8),
    st.dictionaries(st.sampled_from((1, 2)), st.tuples(sizes, st.none() | sizes), min_size=2),
    sizes,
)
def test_what_would_fit_does_and_leaves_out_nothing_that_would(
    asked: list[tuple[str, int, int, int]], there: dict[int, tuple[int, int | None]], keep: int
) -> None:
    disks = {number: Disk(number, f"/{number}", *has, 1) for number, has in there.items()}
    claims = [Claim(owner, disks[number], size, inodes) for owner, number, size, inodes in asked]
    empty = {number: Balance(found, keep) for number, found in disks.items()}

    def fits(owners: set[str]) -> bool:
        left = dict(empty)
        for claim in claims:
            if claim.owner in owners:
                left[claim.disk.number] = left[claim.disk.number].plus(claim)
        touched = {claim.disk.number for claim in claims if claim.owner in owners}
        for balance in left.values():
            freed = Disk(balance.disk.number, "/", balance.disk.free + balance.lacks, balance.disk.inodes, 1)
            assert Balance(freed, keep, balance.needed).lacks == 0, "it says how much is to be freed"
        within = [claim for claim in claims if claim.owner in owners]
        inodes = {number: sum(claim.inodes for claim in within if claim.disk.number == number) for number in touched}
        for number, count in inodes.items():
            there = disks[number].inodes
            if there is not None and count > there:
                return False
        return all(left[number].needed <= max(disks[number].free - keep, 0) for number in touched)

    found = fitting(claims, empty, "abcd")
    assert fits({*found})
    for number, owner in enumerate("abcd"):
        if owner in {claim.owner for claim in claims} and owner not in found:
            assert not fits({*found} & {*"abcd"[:number]} | {owner}), "it was left out though it fits"
