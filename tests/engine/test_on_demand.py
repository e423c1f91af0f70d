"""On demand: indexes are complete from the first minute, whatever of their packages is held."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from lanmirror_sync.memory import Memory
from lanmirror_sync.store import Store

from tests.engine import outside
from tests.engine.lab import Lab, Running
from tests.upstream import channel

pytestmark = pytest.mark.slow

LINUX = "pkgs/main/linux-64"
NOARCH = "pkgs/main/noarch"
VICTIM = "lib0003-1.3-0.conda"
NOTHING = [{"name": "main", "hold": "none"}]


@pytest.fixture
def lab(lab: Lab) -> Lab:
    """Return a lab whose site fetches on demand."""
    lab.settings["on_demand"] = True
    return lab


def wanted(lab: Lab, subdir: str = LINUX) -> set[str]:
    """Return what a complete index names."""
    upstream = lab.repodata_of_upstream(subdir)
    return {*upstream["packages"], *upstream["packages.conda"]} - {"unwanted-1.0-0.conda"}


def told(lab: Lab, subdir: str = LINUX) -> dict[str, Any]:
    """Return what status.json tells of a subdir."""
    found: dict[str, Any] = status(lab)["subdirs"][subdir]
    return found


def status(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((lab.mirror / ".lanmirror/public/status.json").read_bytes())
    return found


def renew(lab: Lab, text: str) -> str:
    """Have the upstream change the bytes of a package under its name; return the name."""
    spec = channel.Spec("tool", "2.0", subdir="linux-64", files={"share/tool": text.encode()})
    return channel.publish(lab.tree / "pkgs/main", spec)[0]


# ---- the index before the packages -----------------------------------------------------------------------------


def test_index_is_complete_in_every_form_before_a_package_is_asked_for(lab: Lab) -> None:
    seen: list[dict[str, set[str]]] = []
    lab.during("*.conda", lambda: None if seen else seen.append(lab.check().named))

    run = lab.sync()

    assert run.code == 0, run.log
    for form in (*outside.FULL[:3], outside.SHARDS):
        assert seen[0][f"{LINUX}/{form}"] == wanted(lab)
    assert "tool-2.0-0.conda" in seen[0][f"{LINUX}/current_repodata.json"]
    assert lab.packages(LINUX) == wanted(lab)
    lab.check()
    assert (told(lab)["held"], told(lab)["on_demand"], told(lab)["missing"]) == (14, 0, 0)
    lab.upstream.requests.clear()
    assert lab.sync().code == 0
    assert not lab.upstream.asked("*.conda")


def test_hold_none_publishes_the_index_and_fetches_no_package(lab: Lab) -> None:
    label = "nvidia/label/cuda-12.4.0"
    shutil.copytree(lab.tree / "cloud/conda-forge", lab.tree / "cloud" / label)
    lab.settings |= {
        "metrics_file": str(lab.folder / "conda.prom"),
        "repos": [{"name": "main", "hold": "none"}, "r"],
        "cloud": [{"name": f"{label}/linux-64", "hold": "none"}, f"{label}/noarch"],
    }
    run = lab.sync()
    assert run.code == 0, run.log
    named = lab.check().named
    assert named[f"{LINUX}/repodata.json"] == named[f"{LINUX}/{outside.SHARDS}"] == wanted(lab)
    assert named[f"cloud/{label}/linux-64/repodata.json"]
    assert lab.packages(LINUX) == lab.packages(f"cloud/{label}/linux-64") == set()
    assert lab.packages("pkgs/r/linux-64")
    assert lab.packages(f"cloud/{label}/noarch")
    assert not lab.upstream.asked(f"/{LINUX}/*.conda")
    assert status(lab)["run"]["result"] == "in sync"
    subdir = told(lab)
    assert (subdir["hold"], subdir["named"], subdir["on_demand"]) == ("none", 14, 14)
    assert (subdir["held"], subdir["missing"], subdir["bytes"], subdir["failures"]) == (0, 0, 0, [])
    assert subdir["last_success"] == pytest.approx(subdir["published"], abs=5)
    metrics = (lab.folder / "conda.prom").read_text()
    assert f'lanmirror_conda_packages_on_demand{{subdir="{LINUX}"}} 14' in metrics
    assert f'lanmirror_conda_packages_missing{{subdir="{LINUX}"}} 0' in metrics
    lab.upstream.requests.clear()
    assert lab.sync().code == 0
    assert len(lab.upstream.asked(f"/{LINUX}/*")) == 1


def test_what_the_upstream_itself_cannot_give_is_no_failure_where_nothing_is_held(lab: Lab) -> None:
    (lab.tree / LINUX / VICTIM).unlink()
    lab.settings["repos"] = NOTHING
    assert lab.sync().code == 0
    assert VICTIM in lab.named(f"{LINUX}/repodata.json")
    assert told(lab)["missing"] == 0


def test_package_that_cannot_be_held_is_named_still(lab: Lab) -> None:
    lab.fault(f"*/{VICTIM}", status=404)
    run = lab.sync()
    assert run.code == 1
    assert VICTIM in lab.named(f"{LINUX}/repodata.json")
    assert (told(lab)["held"], told(lab)["on_demand"], told(lab)["missing"]) == (13, 1, 1)
    assert VICTIM in told(lab)["failures"][0]
    lab.upstream.faults.clear()
    assert lab.sync().code == 0
    assert (told(lab)["held"], told(lab)["missing"], told(lab)["failures"]) == (14, 0, [])
    lab.check()


def test_excluded_and_unreadable_records_are_named_by_no_form(lab: Lab) -> None:
    channel.edit(lab.tree / LINUX, {VICTIM: {"sha256": "", "md5": None}})
    lab.settings |= {"repos": NOTHING, "exclude": ["unwanted", "lib0001"]}
    run = lab.sync()
    assert run.code == 1
    assert VICTIM in run.log
    for form, names in lab.check().named.items():
        assert not {name for name in names if name.startswith(("unwanted", "lib0001", "lib0003"))}, form


def test_files_of_other_bytes_go_before_the_index_names_them(lab: Lab) -> None:
    """One that is renewed upstream, and one that rotted here: either would be served in place of the right one."""
    assert lab.sync().code == 0
    name = renew(lab, "anew")
    (lab.mirror / LINUX / VICTIM).write_bytes(b"other bytes")
    lab.settings["repos"] = NOTHING
    seen: list[str] = []
    lab.during("*", lambda: seen.extend(lab.problems(moving=True)))
    assert lab.sync().code == 0
    assert [problem for problem in seen if VICTIM not in problem] == []
    assert wanted(lab) - lab.packages(LINUX) == {name, VICTIM}
    assert lab.named(f"{LINUX}/repodata.json") == wanted(lab)
    lab.check()
    lab.settings["repos"] = ["main"]
    assert lab.sync().code == 0
    assert lab.packages(LINUX) == wanted(lab)
    lab.check()


def test_index_with_other_bytes_for_much_of_what_is_held_is_not_believed(lab: Lab) -> None:
    assert lab.sync().code == 0
    before = lab.repodata(LINUX)
    names = sorted(before["packages.conda"])[:5]
    channel.edit(lab.tree / LINUX, {name: {"sha256": "0" * 64} for name in names})
    lab.upstream.requests.clear()
    for arguments in ([], ["--indexes"]):
        run = lab.sync(*arguments)
        assert run.code == 1
        assert "other bytes for 5 of 14 packages" in run.log
        assert lab.upstream.asked(f"/{LINUX}/*.conda") == []
        assert lab.repodata(LINUX) == before
        assert len(lab.packages(LINUX)) == 14
        assert "other bytes" in told(lab)["failures"][0]
    assert lab.sync("--indexes", "--max-delete", "100").code == 0
    assert len(lab.packages(LINUX)) == 9
    assert told(lab)["failures"] == []


# ---- coming and going ------------------------------------------------------------------------------------------


def test_packages_that_are_not_to_be_held_any_more_stay_until_delete_takes_them(lab: Lab) -> None:
    assert lab.sync().code == 0
    lab.settings["repos"] = NOTHING
    assert lab.sync().code == 0
    assert lab.sync("--delete").code == 0
    assert (told(lab)["held"], told(lab)["on_demand"]) == (14, 0)
    lab.settings["delete_grace_hours"] = 0
    assert lab.sync().code == 0
    assert lab.packages(LINUX) == wanted(lab), "without --delete nothing goes"
    run = lab.sync("--delete")
    assert run.code == 0, run.log
    assert lab.packages(LINUX) == set()
    assert (told(lab)["held"], told(lab)["bytes"], told(lab)["on_demand"]) == (0, 0, 14)
    lab.check()


def test_package_that_is_held_again_within_its_grace_is_not_deleted(lab: Lab) -> None:
    assert lab.sync().code == 0
    lab.settings["repos"] = NOTHING
    assert lab.sync().code == 0
    lab.settings |= {"repos": ["main"], "delete_grace_hours": 0}
    assert lab.sync("--delete").code == 0
    assert lab.packages(LINUX) == wanted(lab)


@pytest.mark.parametrize("first", [["sync"], ["--indexes"]])
def test_mirror_that_turns_to_on_demand(lab: Lab, first: list[str]) -> None:
    lab.settings["on_demand"] = False
    lab.fault(f"*/{VICTIM}", status=404)
    assert lab.sync().code == 1
    assert VICTIM not in lab.named(f"{LINUX}/repodata.json")
    lab.settings["on_demand"] = True
    lab.upstream.faults.clear()
    seen: list[set[str]] = []
    lab.during(f"*/{VICTIM}", lambda: seen.append(lab.named(f"{LINUX}/repodata.json")))
    assert lab.sync(*first).code == 0
    assert lab.named(f"{LINUX}/repodata.json") == wanted(lab)
    assert seen in ([], [wanted(lab)])
    lab.check()


@pytest.mark.parametrize("up", [True, False])
def test_mirror_that_turns_from_on_demand_names_what_is_held_at_once(lab: Lab, up: bool) -> None:
    lab.fault(f"*/{VICTIM}", status=404)
    lab.settings["cloud"] = [{"name": "conda-forge/linux-64", "hold": "none"}, "conda-forge/noarch"]
    assert lab.sync().code == 1
    lab.settings |= {"on_demand": False, "cloud": ["conda-forge/linux-64", "conda-forge/noarch"]}
    lab.upstream.faults.clear()
    seen: list[str] = []
    lab.during("*.conda", lambda: seen.extend(lab.problems()))
    if not up:
        lab.settings["upstream"] = {"repo": "http://127.0.0.1:9", "cloud": "http://127.0.0.1:9"}
        assert lab.sync().code == 5
        assert lab.problems() == []
        assert lab.named(f"{LINUX}/repodata.json") == wanted(lab) - {VICTIM}
        assert (told(lab)["held"], told(lab)["on_demand"]) == (13, 0)
        lab.settings |= {
            "on_demand": True,
            "upstream": {"repo": lab.upstream.url, "cloud": f"{lab.upstream.url}/cloud"},
        }
        assert lab.sync("--indexes").code == 0
        assert lab.named(f"{LINUX}/repodata.json") == wanted(lab)
        return
    run = lab.sync()
    assert run.code == 0, run.log
    assert seen == []
    assert lab.named(f"{LINUX}/repodata.json") == lab.packages(LINUX) == wanted(lab)
    assert lab.packages("cloud/conda-forge/linux-64") == wanted(lab, "cloud/conda-forge/linux-64")
    lab.check()


def test_channel_that_is_taken_out_names_what_is_held(lab: Lab) -> None:
    lab.settings["cloud"] = [{"name": "conda-forge/linux-64", "hold": "none"}]
    assert lab.sync().code == 0
    assert lab.named("cloud/conda-forge/linux-64/repodata.json")
    lab.settings["cloud"] = []
    assert lab.sync().code == 0
    assert lab.named("cloud/conda-forge/linux-64/repodata.json") == set()
    lab.settings["cloud"] = [{"name": "conda-forge/linux-64", "hold": "none"}]
    assert lab.sync().code == 0
    assert lab.named("cloud/conda-forge/linux-64/repodata.json")


def test_channel_without_noarch_gets_an_empty_one(lab: Lab) -> None:
    lab.settings["repos"] = [{"name": "free", "hold": "none"}]
    for arguments in ([], ["--indexes"]):
        shutil.rmtree(lab.mirror / "pkgs", ignore_errors=True)
        assert lab.sync(*arguments).code == 0
        assert lab.check().named["pkgs/free/noarch/repodata.json"] == set()


# ---- indexes alone ---------------------------------------------------------------------------------------------


def test_refresh_costs_one_request_a_subdir_when_nothing_changed(lab: Lab) -> None:
    lab.settings["cloud"] = [{"name": "conda-forge/linux-64", "hold": "none"}]
    assert lab.sync().code == 0
    channel.publish(lab.tree / "pkgs/main", channel.Spec("new", "1.0", subdir="linux-64", files={"share/new": b"new"}))
    assert lab.sync("--indexes").code == 0
    assert lab.named(f"{LINUX}/repodata.json") == wanted(lab)
    assert "new-1.0-0.conda" not in lab.packages(LINUX)
    assert (told(lab)["held"], told(lab)["on_demand"]) == (14, 1)
    assert status(lab)["indexes"]["result"] == "in sync"
    lab.check()
    for number in range(2):
        (lab.mirror / LINUX / f"stray{number}").write_text("as a package that comes meanwhile")
        lab.upstream.requests.clear()
        before = told(lab)["last_check"]
        assert lab.sync("--indexes").code == 0
        assert sorted(request.path for request in lab.upstream.requests) == sorted(
            f"/{subdir}/repodata.json.zst" for subdir in lab.subdirs
        )
        assert told(lab)["last_check"] > before
    run = lab.sync()
    assert run.code == 0, run.log
    assert "new-1.0-0.conda" in lab.packages(LINUX), "what a refresh named, the next sync fetches"
    lab.check()
    (lab.mirror / LINUX / VICTIM).unlink()
    assert lab.sync("--indexes").code == 0
    assert lab.sync().code == 0
    assert VICTIM in lab.packages(LINUX), "a refresh takes no note of a package that is gone"


def test_refresh_leaves_what_a_sync_told(lab: Lab) -> None:
    lab.fault(f"*/{VICTIM}", status=404)
    lab.settings["installers"] = {"dists": ["miniconda"], "suffixes": ["Linux-x86_64.sh"]}
    lab.fault("/miniconda/*.sh", status=404)
    assert lab.sync().code == 1
    lab.fault(f"/{NOARCH}/*", status=500)
    assert lab.sync("--indexes").code == 1
    now = status(lab)
    assert (now["run"]["result"], now["indexes"]["result"]) == ("incomplete", "incomplete")
    assert VICTIM in now["subdirs"][LINUX]["failures"][0]
    assert now["subdirs"][LINUX]["missing"] == 1
    assert "500" in now["subdirs"][NOARCH]["failures"][0]
    assert now["installers"]["miniconda"]["failures"]
    del lab.upstream.faults[f"/{NOARCH}/*"]
    assert lab.sync("--indexes").code == 0
    assert told(lab, NOARCH)["failures"] == []
    assert (told(lab)["missing"], told(lab)["last_success"]) == (1, None)
    channel.publish(lab.tree / "pkgs/main", channel.Spec("new", "1.0", subdir="linux-64", files={"share/new": b"new"}))
    assert lab.sync("--indexes").code == 0
    assert (told(lab)["named"], told(lab)["missing"], told(lab)["last_success"]) == (15, 1, None)


def test_refresh_with_the_upstream_gone_changes_nothing(lab: Lab) -> None:
    assert lab.sync("--indexes").code == 0
    assert lab.packages(LINUX) == set()
    before = lab.repodata(LINUX)
    lab.settings["upstream"] = {"repo": "http://127.0.0.1:9", "cloud": "http://127.0.0.1:9"}
    assert lab.sync("--indexes").code == 5
    assert lab.repodata(LINUX) == before
    assert told(lab)["failures"]
    assert status(lab)["indexes"]["result"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "on_demand", "word"),
    [(["--indexes"], False, "needs on_demand: true"), (["--indexes", "--delete"], True, "--delete"),
     (["plan", "--indexes"], True, "--indexes is an option of sync")],
)  # fmt: skip
def test_refresh_that_makes_no_sense_is_refused(lab: Lab, arguments: list[str], on_demand: bool, word: str) -> None:
    lab.settings["on_demand"] = on_demand
    run = lab.sync(*arguments)
    assert run.code == 2
    assert word in run.log


def stalled(lab: Lab, name: str, *arguments: str) -> Running:
    """Start a run that waits for the rest of a package, the last one that it fetches, and return it."""
    lab.settings["timeout_seconds"] = 60
    lab.fault(f"*/{name}", stall=60, stall_at=100, times=1)
    run = lab.start(*arguments)
    lab.until(lambda: len(lab.packages(LINUX)) == 13 and any((lab.mirror / ".lanmirror/partial").iterdir()))
    return run


def test_refresh_is_not_held_up_by_a_sync_and_nothing_older_comes_after_it(lab: Lab) -> None:
    """In the end the sync puts nothing in place that a later index does not name: here, a package renewed meanwhile."""
    name = "tool-2.0-0.conda"
    run = stalled(lab, name)
    assert renew(lab, "anew") == name
    channel.retract(lab.tree / "pkgs/main", "linux-64", "lib0002-1.2-0.conda")
    refresh = lab.sync("--indexes")
    assert refresh.code == 0, refresh.log
    newest = lab.repodata(LINUX)
    assert set(newest["packages.conda"]) | set(newest["packages"]) == wanted(lab)
    lab.check()
    lab.upstream.requests.clear()
    assert lab.sync("--indexes").code == 0
    assert [request.path for request in lab.upstream.requests if not request.path.endswith("repodata.json.zst")] == []

    lab.upstream.released.set()
    ended = run.wait()

    assert ended.code == 0, ended.log
    assert lab.repodata(LINUX) == newest
    assert name not in lab.packages(LINUX), "the bytes of the older index"
    lab.check()
    assert (told(lab)["held"], told(lab)["on_demand"]) == (12, 1)
    assert lab.sync().code == 0
    assert lab.packages(LINUX) - {"lib0002-1.2-0.conda"} == wanted(lab)
    assert told(lab)["held"] == 13
    lab.check()


def test_sync_whose_index_another_run_has_replaced_asks_again(lab: Lab) -> None:
    """The sync has read its index, and not published it yet, when a refresh finds and publishes a later one."""
    for name in ("current_repodata.json.zst", "current_repodata.json"):
        lab.fault(f"/{LINUX}/{name}", stall=60, times=1)
    lab.settings["timeout_seconds"] = 60
    sync = lab.start()
    lab.until(lambda: f"still waiting for {LINUX}" in sync.output.read_text())
    lab.upstream.faults.clear()
    renew(lab, "anew")
    channel.publish(lab.tree / "pkgs/main", channel.Spec("new", "1.0", subdir="linux-64", files={"share/new": b"new"}))
    assert lab.sync("--indexes").code == 0
    newest = lab.repodata(LINUX)
    assert not lab.upstream.asked(f"/{LINUX}/*.conda"), "the index first"
    lab.upstream.released.set()
    ended = sync.wait()
    assert ended.code == 0, ended.log
    assert "another run published an index meanwhile" in ended.log
    assert lab.repodata(LINUX) == newest
    assert lab.packages(LINUX) == wanted(lab)
    assert told(lab)["held"] == 15
    lab.check()


def test_sync_that_turns_from_on_demand_waits_for_no_refresh_to_end(lab: Lab) -> None:
    """One that began before would publish a complete index over what the sync does."""
    lab.fault("/pkgs/main/*/repodata.json.zst", stall=60)
    refresh = lab.start("--indexes")
    lab.until(lambda: bool(lab.upstream.asked("*/repodata.json.zst")))
    lab.settings["on_demand"] = False
    run = lab.sync()
    assert run.code == 3
    assert str(refresh.pid) in run.log
    refresh.kill()
    refresh.wait()


def test_refresh_hashes_no_mirror(lab: Lab) -> None:
    """A file of the size that the index tells, and of which nothing is known."""
    size = 9 << 30
    channel.edit(lab.tree / LINUX, {VICTIM: {"size": size}})
    (lab.mirror / LINUX).mkdir(parents=True)
    with (lab.mirror / LINUX / VICTIM).open("wb") as file:
        file.truncate(size)
    run = lab.sync("--indexes")
    assert run.code == 1
    assert "have to be hashed first" in run.log
    assert not (lab.mirror / LINUX / "repodata.json").exists()
    assert lab.named(f"{NOARCH}/repodata.json")
    assert "have to be hashed first" in told(lab)["failures"][0]


@pytest.mark.parametrize("arguments", [[], ["--indexes"]])
def test_index_that_does_not_fit_is_not_begun(lab: Lab, arguments: list[str]) -> None:
    lab.settings["min_free_gib"] = 1 << 20
    run = lab.sync(*arguments)
    assert run.code == 4
    assert "for the index" in run.log
    assert not (lab.mirror / LINUX / "repodata.json").exists()


def test_noarch_that_appears_while_a_sync_goes_on_stays_as_the_refresh_left_it(lab: Lab) -> None:
    lab.settings["repos"] = ["main", "free"]
    run = stalled(lab, "tool-2.0-0.conda")
    shutil.copytree(lab.tree / NOARCH, lab.tree / "pkgs/free/noarch")
    assert lab.sync("--indexes").code == 0
    assert lab.named("pkgs/free/noarch/repodata.json") == {"hello-data-1.0-0.tar.bz2"}
    lab.upstream.released.set()
    assert run.wait().code == 0
    assert lab.named("pkgs/free/noarch/repodata.json") == {"hello-data-1.0-0.tar.bz2"}
    with Memory(lab.mirror / ".lanmirror/memory.sqlite", read_only=True) as memory:
        assert memory.standing(PurePosixPath("pkgs/free/noarch")).listed == 1


def waits_for_a_lock(pid: int) -> bool:
    """Tell whether a process waits for somebody else's flock (man 5 proc, /proc/locks)."""
    return any("-> FLOCK" in line and f" {pid} " in line for line in Path("/proc/locks").read_text().splitlines())


@pytest.mark.parametrize("arguments", [[], ["--indexes"]])
def test_run_waits_for_the_other_one_to_be_through_with_a_subdir(lab: Lab, arguments: list[str]) -> None:
    store = Store(lab.mirror)
    store.create()
    with store.alone(PurePosixPath(LINUX)):
        run = lab.start(*arguments)
        lab.until(lambda: waits_for_a_lock(run.pid))
        assert not (lab.mirror / LINUX / "repodata.json").exists()
    assert run.wait().code == 0
    lab.check()


def test_refresh_makes_what_it_writes_apart_from_a_sync(lab: Lab) -> None:
    assert lab.sync().code == 0
    made = [lab.mirror / ".lanmirror" / name / "made" for name in ("publishing", "writing", "publishing-indexes")]
    for folder in made:
        folder.mkdir(parents=True)
    renew(lab, "anew")
    assert lab.sync("--indexes").code == 0
    assert [folder.exists() for folder in made] == [True, True, False], "what a killed refresh left is its own"


def test_second_refresh_and_second_sync_do_nothing(lab: Lab) -> None:
    run = stalled(lab, "tool-2.0-0.conda")
    assert lab.sync().code == 3
    lab.fault("/pkgs/main/*/repodata.json.zst", stall=60)
    lab.upstream.requests.clear()
    refresh = lab.start("--indexes")
    lab.until(lambda: bool(lab.upstream.asked("*/repodata.json.zst")))
    second = lab.sync("--indexes")
    assert second.code == 3
    assert str(refresh.pid) in second.log
    for started in (refresh, run):
        started.kill()
        started.wait()
    lab.upstream.faults.clear()
    assert lab.sync().code == 0
    lab.check()


# ---- verify, plan ----------------------------------------------------------------------------------------------


def test_verify_takes_nothing_out_of_a_complete_index(lab: Lab) -> None:
    lab.settings["cloud"] = [{"name": "conda-forge/linux-64", "hold": "none"}]
    assert lab.sync("--indexes").code == 0
    run = lab.sync("verify")
    assert run.code == 0, run.log
    assert f"{LINUX}: 14 referenced, 0 held, 0 missing, 0 damaged, 0 orphaned" in run.log
    assert lab.sync().code == 0
    (lab.mirror / LINUX / VICTIM).unlink()
    rotten = lab.mirror / LINUX / "tool-2.0-0.conda"
    rotten.write_bytes(bytes(rotten.stat().st_size))
    before = lab.repodata(LINUX)

    run = lab.sync("verify")

    assert run.code == 1
    assert "14 referenced, 12 held, 1 missing, 1 damaged" in run.log
    assert lab.repodata(LINUX) == before
    assert not rotten.exists()
    lab.check()
    assert (told(lab)["held"], told(lab)["on_demand"], told(lab)["missing"]) == (12, 2, 0)
    assert lab.sync().code == 0
    assert lab.packages(LINUX) == wanted(lab)
    assert lab.sync("verify").code == 0


def test_verify_repairs_what_was_held_and_its_formats(lab: Lab) -> None:
    lab.settings["cloud"] = [{"name": "conda-forge/linux-64", "hold": "none"}]
    assert lab.sync().code == 0
    (lab.mirror / LINUX / VICTIM).unlink()
    rotten = lab.mirror / LINUX / "tool-2.0-0.conda"
    rotten.write_bytes(bytes(rotten.stat().st_size))
    next((lab.mirror / "cloud/conda-forge/linux-64").glob("[0-9a-f]*.msgpack.zst")).unlink()
    assert lab.sync("verify").code == 1
    (lab.mirror / NOARCH / "hello-data-1.0-0.tar.bz2").unlink()
    lab.upstream.requests.clear()
    run = lab.sync("verify", "--repair")
    assert run.code == 0, run.log
    assert "1 repaired" in run.log
    assert not lab.upstream.asked("/cloud/*.conda")
    assert lab.sync("verify").code == 0
    lab.check()


def test_repair_puts_nothing_in_place_that_a_later_index_does_not_name(lab: Lab) -> None:
    assert lab.sync().code == 0
    name = "tool-2.0-0.conda"
    (lab.mirror / LINUX / name).unlink()
    verify = stalled(lab, name, "verify", "--repair")
    renew(lab, "anew")
    assert lab.sync("--indexes").code == 0
    lab.upstream.released.set()
    ended = verify.wait()
    assert ended.code == 1
    assert "a later index names other bytes" in ended.log
    assert name not in lab.packages(LINUX)
    lab.check()


def test_plan_tells_what_comes_on_demand(lab: Lab) -> None:
    lab.settings |= {"repos": NOTHING, "cloud": ["conda-forge/linux-64"]}
    told = lab.plan()
    plan = told["subdirs"][LINUX]
    assert (plan["fetch"]["files"], plan["on_demand"]["files"], plan["held"]["files"]) == (0, 14, 0)
    upstream = lab.repodata_of_upstream("cloud/conda-forge/linux-64")
    records = [*upstream["packages"].values(), *upstream["packages.conda"].values()]
    assert told["total"]["fetch"] == {"files": 5, "bytes": sum(record["size"] for record in records)}
    lab.settings["repos"] = ["main"]
    assert lab.sync().code == 0
    lab.settings["repos"] = NOTHING
    plan = lab.plan()["subdirs"][LINUX]
    assert (plan["fetch"]["files"], plan["on_demand"]["files"], plan["surplus"]["files"]) == (0, 0, 14)
