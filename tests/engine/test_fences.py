"""One bad thing ends nothing else: not the run, not the other channels, and no run is left hanging."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.lab import SCRIPT, Engine, Lab, laboratory
from tests.upstream import channel

pytestmark = pytest.mark.slow

LINUX = "pkgs/main/linux-64"
NOARCH = "pkgs/main/noarch"
FORGE = "cloud/conda-forge/linux-64"
VICTIM = "lib0003-1.3-0.conda"
# As an application server in another language writes it; a header is bytes.
LOCALIZED = "\u706b, 14 11\u6708 2023 22:13:20 GMT".encode().decode("latin-1")


@pytest.fixture
def two(lab: Lab) -> Lab:
    """Return a lab with another channel beside the first."""
    lab.settings["cloud"] = ["conda-forge/noarch", "conda-forge/linux-64"]
    return lab


# ---- one thing alone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base_url",
    [
        "http://[",
        "http://[::1",
        "//[",
        "http://ex\u00e4mple.invalid/",
        "http://a b/",
        "\x00",
        "http://x:port/",
        "x" * 9000,
        "mailto:x",
        "http:///x",
        "https://user:pass@127.0.0.1:9/",
        "../../../..",
        "?",
        "#",
        7,
        None,
        ["x"],
    ],
)
def test_a_base_url_that_is_none(two: Lab, base_url: Any) -> None:
    data = two.repodata_of_upstream(LINUX)
    channel.edit(two.tree / LINUX, info={**data["info"], "base_url": base_url})
    (two.tree / LINUX / VICTIM).unlink()
    run = two.sync()
    assert run.code == 1, run.log
    assert two.check().named[f"{LINUX}/repodata.json"] == two.packages(LINUX)
    assert len(two.packages(LINUX)) == 13
    assert two.named(f"{FORGE}/repodata.json")


@pytest.mark.parametrize(
    "value",
    [
        LOCALIZED,
        "\xff" * 30,
        "x" * 30_000,
        '"\t"',
        "Tue, 14 Nov 2023 22:13:20 +99999999999999999999",
        "Mon, 99 Zzz 99999 99:99:99 GMT",
        "0",
        "-1",
        "",
    ],
)
def test_a_validator_that_is_none_is_not_kept(two: Lab, value: str) -> None:
    two.fault(f"/{LINUX}/*", headers={"Last-Modified": value, "ETag": None})
    two.fault("/cloud/*", headers={"ETag": value, "Last-Modified": None})
    for _ in range(3):
        run = two.sync()
        assert run.code == 0, run.log
        channel.publish(two.tree / "pkgs/main", channel.Spec(f"x{time.monotonic_ns()}", subdir="linux-64"))
    two.check()


@pytest.mark.parametrize(
    "header", ["Content-Length", "Content-Range", "Retry-After", "Content-Encoding", "Content-Type"]
)
def test_a_header_that_makes_no_sense(two: Lab, header: str) -> None:
    status = {"Content-Range": 206, "Retry-After": 503}.get(header)
    two.settings |= {"retries": 1, "timeout_seconds": 1}
    for number, value in enumerate(("9" * 5000, "-1", "abc", "1e3", "\xb2", "")):
        for path in (f"/{LINUX}/lib000{number}-*", f"/{LINUX}/current_repodata.json*"):
            two.fault(path, status=status, headers={header: value}, times=1)
    run = two.sync()
    assert run.code in (0, 1), run.log
    assert two.named(f"{FORGE}/repodata.json")
    two.check()


NUMBERS = [b"9" * 5000, b"-" + b"9" * 5000, b"1" * 25, b"1e400", b"-1e400", b"0." + b"1" * 5000, b"9223372036854775808"]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:9].decode())
def test_an_absurd_number_in_some_records(two: Lab, number: bytes) -> None:
    file = two.tree / LINUX / "repodata.json"
    data = json.loads(file.read_bytes())
    fields = ("timestamp", "build_number", "size", "purls", "legacy_bz2_size")
    odd = sorted(name for name in data["packages.conda"] if name.startswith("lib"))[: len(fields)]
    for name, field in zip(odd, fields, strict=True):
        data["packages.conda"][name][field] = "HERE"
    file.write_bytes(json.dumps(data).encode().replace(b'"HERE"', number))
    channel.pack(file)
    for _ in range(2):
        run = two.sync()
        assert run.code == 1, run.log
        named = two.check().named[f"{LINUX}/repodata.json"]
        assert len(named) >= 14 - len(odd)
        assert all(name in named or f"{name!r} is refused" in run.log for name in odd)
        assert two.named(f"{FORGE}/repodata.json")


@pytest.mark.parametrize("what", ["subdir", "package", "index", "shard", "partial", "public"])
def test_a_place_that_cannot_be_written(two: Lab, what: str) -> None:
    """Something of another kind is in its place: that fails also for root."""
    place = {
        "subdir": two.mirror / LINUX,
        "package": two.mirror / LINUX / VICTIM,
        "index": two.mirror / LINUX / "repodata.json",
        "shard": two.mirror / LINUX / "repodata_shards.msgpack.zst",
        "partial": two.mirror / ".lanmirror/partial" / _partial(two),
        "public": two.mirror / ".lanmirror/public/status.json",
    }[what]
    place.parent.mkdir(parents=True, exist_ok=True)
    if what == "subdir":
        place.write_text("a file")
    else:
        place.mkdir()
        (place / "something").write_text("in it")
    run = two.sync()
    assert run.code == (0 if what == "public" else 1), run.log
    assert two.named(f"{FORGE}/repodata.json")
    assert two.named(f"{NOARCH}/repodata.json")
    assert what == "public" or LINUX in run.log
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    run = two.sync()
    assert run.code == 0, run.log
    two.check()


def _partial(lab: Lab) -> str:
    """Return the name of the file in which a package is collected."""
    sha256 = lab.repodata_of_upstream(LINUX)["packages.conda"][VICTIM]["sha256"]
    return hashlib.sha256(f"{LINUX}/{VICTIM}\0{sha256}".encode()).hexdigest()[:40]


# ---- nothing hangs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "Tue, 14 Nov 2023 22:13:20 +99999999999999999999",
        "Tue, 14 Nov 99999 22:13:20 GMT",
        LOCALIZED,
        "9" * 400,
        "-5",
        "Tue, 14 Nov 2023 22:13:20 -9999",
        "Fri, 31 Dec 9999 23:59:59 +0000",
        "Mon, 00 Jan 0000 00:00:00 GMT",
    ],
)
def test_an_absurd_moment_to_come_back_at(two: Lab, value: str) -> None:
    two.settings["retries"] = 3  # both refusals may be of one package
    if value[0] not in "9F":  # those ask for a long wait, in words that make sense
        two.fault("*/lib000*", status=503, headers={"Retry-After": value}, times=2)
        two.fault(f"/{NOARCH}/repodata.json.zst", status=429, headers={"Retry-After": value}, times=1)
    run = two.sync()
    assert run.code == 0, run.log
    two.check()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"\0", b"http://x\n\xe4\xff", b"x" * 100_000, None])
def test_a_note_beside_a_partial_that_is_damaged(two: Lab, content: bytes | None) -> None:
    assert two.sync("--only", NOARCH).code == 0
    partial = two.mirror / ".lanmirror/partial" / _partial(two)
    partial.write_bytes((two.tree / LINUX / VICTIM).read_bytes()[:100])
    note = partial.with_name(f"{partial.name}.from")
    if content is None:
        note.mkdir()
    else:
        note.write_bytes(content)
    run = two.sync()
    assert run.code == (1 if content is None else 0), run.log
    assert two.named(f"{FORGE}/repodata.json")
    two.check()


def test_one_stalled_index_keeps_nothing_else_waiting(two: Lab) -> None:
    two.settings |= {"timeout_seconds": 60, "installers": {"dists": ["miniconda"], "suffixes": [".sh"]}}
    two.fault(f"/{LINUX}/repodata.json.zst", stall=60)
    run = two.start()
    two.until((two.mirror / FORGE / "repodata.json").exists)
    two.until((two.mirror / NOARCH / "repodata.json").exists)
    two.until(lambda: (two.mirror / "miniconda").exists() and bool(list((two.mirror / "miniconda").iterdir())))
    assert run.is_running()
    run.kill()
    run.wait()
    two.upstream.faults.clear()
    two.settings["timeout_seconds"] = 1
    two.fault(f"/{LINUX}/repodata.json.zst", stall=3, times=1)
    run_again = two.sync()
    assert run_again.code == 0, run_again.log
    assert len(two.check().named[f"{LINUX}/repodata.json"]) == 14, "it is worked on when it comes"


@pytest.mark.parametrize(
    "path",
    [
        "/miniconda/",
        "/miniconda/*.sh",
        f"/{LINUX}/current_repodata*",
        f"/{NOARCH}/run_exports*",
        f"/{LINUX}/*.json.bz2",
    ],
)
def test_one_other_file_that_stalls_keeps_nothing_else_waiting(two: Lab, path: str) -> None:
    two.settings |= {"timeout_seconds": 60, "installers": {"dists": ["miniconda"], "suffixes": [".sh"]}}
    for name in ("current_repodata.json.zst", "run_exports.json"):
        (two.tree / LINUX / name).write_bytes(b"{}")
    two.fault(path, stall=60)
    run = two.start()
    two.until((two.mirror / FORGE / "repodata.json").exists)
    assert run.is_running()
    run.kill()
    run.wait()


@pytest.mark.parametrize("status", [401, 407])
def test_a_wrong_password_is_said_at_once(two: Lab, status: int) -> None:
    two.settings |= {"retries": 10, "retry_wait_seconds": 60}
    two.fault("*", status=status)
    run = two.sync()
    assert run.code == 5, run.log
    assert "password" in run.log.splitlines()[-1]
    assert len(two.upstream.requests) == 4


def test_a_password_that_one_channel_wants_is_no_matter_of_the_others(two: Lab) -> None:
    two.settings |= {"retries": 10, "retry_wait_seconds": 60}
    two.fault("/cloud/*", status=401)
    run = two.sync()
    assert run.code == 1, run.log
    assert two.problems() == []
    assert two.named(f"{LINUX}/repodata.json")


# ---- another disk --------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on another file system than the lab's."""
    for parent in ("/dev/shm", "/run/shm", "/var/tmp", str(Path.home())):
        if (
            Path(parent).is_dir()
            and os.access(parent, os.W_OK)
            and Path(parent).stat().st_dev != tmp_path.stat().st_dev
        ):
            folder = Path(tempfile.mkdtemp(dir=parent))
            yield folder
            shutil.rmtree(folder)
            return
    pytest.skip("there is one file system alone")


@pytest.mark.parametrize("which", ["pkgs", "pkgs/main", LINUX])
def test_a_channel_on_another_disk_behind_a_link(two: Lab, elsewhere: Path, which: str) -> None:
    link = two.mirror / which
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere)
    big = channel.Spec("big", "1.0", subdir="linux-64", files={"share/big": channel.noise(2_000_000, 1)})
    channel.publish(two.tree / "pkgs/main", big)
    run = two.sync()
    assert run.code == 0, run.log
    two.check()
    channel.build(channel.Spec("lib0003", "1.3", subdir="linux-64", files={"new": b"new"}), two.tree / "pkgs/main")
    channel.index(two.tree / "pkgs/main")
    assert two.sync().code == 0
    two.check()
    file = two.mirror / LINUX / VICTIM
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert two.sync("verify").code == 1
    two.check()
    assert two.sync().code == 0
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    run = two.sync("verify", "--repair")
    assert run.code == 0, run.log
    two.check()
    assert len(list((two.mirror / ".lanmirror/damaged").iterdir())) == 1
    assert [file for file in (two.mirror / LINUX).iterdir() if file.name.startswith(".")] == []


def test_the_room_on_each_disk_counts(engine: Engine, built: Path, tmp_path: Path, elsewhere: Path) -> None:
    """Of the small disk behind the link, and not only of the large one of the mirror."""
    free = shutil.disk_usage(elsewhere).free
    size = min(free * 2, 1 << 39)
    with laboratory(engine, built, tmp_path) as lab:
        (lab.mirror / "pkgs").symlink_to(elsewhere)
        channel.edit(lab.tree / LINUX, {"tool-2.0-0.conda": {"size": size}})
        lab.settings["min_free_gib"] = 0
        run = lab.sync()
        assert run.code == 4, run.log
        assert "are needed" in run.log


# ---- verify and plan -----------------------------------------------------------------------------------------


def test_a_repair_on_a_terminal_where_nothing_was_left_to_hash(lab: Lab) -> None:
    assert lab.sync().code == 0
    for file in (lab.mirror / LINUX).glob("*.conda"):
        file.unlink()
    for file in (lab.mirror / LINUX).glob("*.tar.bz2"):
        file.unlink()
    ours, theirs = pty.openpty()
    try:
        env = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "COLUMNS": "120"}
        command = [sys.executable, str(SCRIPT), "verify", "--repair", "--only", LINUX, "--config", str(lab.configure())]
        run = subprocess.run(command, check=False, stdout=theirs, stderr=theirs, env=env, timeout=60)
        os.close(theirs)
        shown = b"".join(iter(lambda: _read(ours), b"")).decode()
    finally:
        os.close(ours)
    assert run.returncode == 0, shown
    assert "14 repaired" in re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown))
    lab.remember()
    assert lab.sync("verify").code == 0


def _read(terminal: int) -> bytes:
    """Return what is there to read of a terminal; nothing at its end, which is an error on Linux (man 4 pts)."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""


@pytest.mark.parametrize("repair", [[], ["--repair"]])
def test_a_damaged_file_with_a_very_long_name(lab: Lab, repair: list[str]) -> None:
    spec = channel.Spec("z" * 238, subdir="linux-64", files={"x": b"x"})
    (name,) = channel.publish(lab.tree / "pkgs/main", spec)
    assert lab.sync().code == 0
    (lab.mirror / LINUX / name).write_bytes(b"?" * 10)
    (lab.mirror / LINUX / VICTIM).write_bytes(b"?" * 10)
    run = lab.sync("verify", *repair)
    assert run.code == (0 if repair else 1), run.log
    assert len(list((lab.mirror / ".lanmirror/damaged").iterdir())) == 2
    lab.check()


def test_a_plan_while_a_sync_is_at_work(lab: Lab) -> None:
    reached = threading.Event()
    lab.settings["timeout_seconds"] = 60
    lab.fault(f"*/{VICTIM}", stall=60)
    lab.during(f"*/{VICTIM}", reached.set)
    run = lab.start()
    assert reached.wait(20)
    time.sleep(1)
    plan = lab.sync("plan")
    assert plan.code == 0, plan.log
    assert re.search(rf"{LINUX} +all ", plan.log)
    run.kill()
    run.wait()


def test_a_plan_leaves_no_trace_but_the_indexes_it_read(lab: Lab) -> None:
    assert lab.sync().code == 0
    channel.publish(lab.tree / "pkgs/main", channel.Spec("fresh", subdir="linux-64"))

    def state() -> dict[str, int]:
        state, planned = lab.mirror / ".lanmirror", lab.mirror / ".lanmirror/planned"
        files = (file for file in lab.mirror.rglob("*") if file != state and planned not in (file, file.parent))
        return {str(file): file.stat().st_mtime_ns for file in files}

    before = state()
    lab.upstream.requests.clear()
    assert lab.plan()["subdirs"][LINUX]["fetch"]["files"] == 1
    assert state() == before
    assert len(lab.upstream.requests) == 2, "an index of each subdir, and nothing else"
