"""The watchdog as a process of its own: what it writes, beside runs, and whatever happens to it or to them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from lanmirror_sync import status
from lanmirror_sync.config import load
from lanmirror_sync.memory import Memory
from lanmirror_sync.mirror import Mirror
from lanmirror_sync.report import Report
from lanmirror_sync.store import INDEXES, PACKAGES, Store

from tests.engine.lab import FILES, PATIENCE, Lab
from tests.engine.test_status import public

LINUX = "pkgs/main/linux-64"
# The engine's own command, in less of a hurry elsewhere.
OFTEN = """
import sys
from lanmirror_sync import cli, watch
watch.INTERVAL, watch.STATUS_INTERVAL = 0.02, 0.1
sys.exit(cli.main(sys.argv[1:]))
"""


@dataclass
class Watching:
    """A watchdog that runs."""

    process: subprocess.Popen[bytes]
    folder: Path
    journal: Path

    @property
    def said(self) -> dict[str, Any]:
        """What the web server would answer now."""
        for name in ("ok.json", "failing.json"):
            with contextlib.suppress(FileNotFoundError):
                told: dict[str, Any] = json.loads((self.folder / name).read_bytes())
                assert told["status"] == name.removesuffix(".json")
                return told
        return {"status": "", "problems": ["nobody looks"], "warnings": ["nobody looks"]}

    def until(self, kind: str, *words: str) -> None:
        """Wait until there are so many problems, or warnings, one with each of these words."""

        def so() -> bool:
            told = self.said[kind]
            return len(told) == len(words) and all(word in text for word, text in zip(words, told, strict=True))

        try:
            Lab.until(so, PATIENCE)
        except AssertionError:
            raise AssertionError(f"{self.said}\n{self.journal.read_text()}") from None


@contextlib.contextmanager
def watching(lab: Lab, script: tuple[str, ...] = ("-c", OFTEN), **env: str) -> Iterator[Watching]:
    """Run the watchdog."""
    folder, journal = lab.folder / "health", lab.folder / "journal"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, *script, "watch", "--health", str(folder), "--config", str(lab.configure())]
    with journal.open("ab") as output:
        process = subprocess.Popen(command, stderr=output, env={**os.environ, "PYTHONPATH": str(FILES), **env})
    try:
        yield Watching(process, folder, journal)
        assert "Traceback" not in journal.read_text(), journal.read_text()
    finally:
        process.kill()
        process.wait()


def written(lab: Lab) -> float:
    return float(public(lab, "status.json")["written"])


def newer(lab: Lab, than: float) -> None:
    """Wait until the status was written anew."""
    lab.until(lambda: written(lab) > than, PATIENCE)


def test_mirror_without_a_run_is_well_and_says_what_it_waits_for(lab: Lab) -> None:
    lab.settings["on_demand"] = True
    lab.settings["metrics_file"] = str(lab.folder / "conda.prom")
    with watching(lab) as watch:
        watch.until("warnings", "no index yet of pkgs/main/noarch, pkgs/main/linux-64: it comes with the first refresh")
        assert watch.said["status"] == "ok"
        assert list(watch.said) == ["status", "problems", "warnings", "checked"]
        lab.until((lab.mirror / ".lanmirror/public/status.json").exists)
        newer(lab, written(lab))
        assert public(lab, "status.json")["run"]["result"] == "none yet"
        assert public(lab, "mirrorz.json")["mirrors"][0]["status"] == "U"
        assert "lanmirror_conda_written_timestamp_seconds" in (lab.folder / "conda.prom").read_text()
        for file in (lab.folder / "conda.prom", watch.folder / "ok.json", lab.mirror / ".lanmirror/public/status.json"):
            assert file.stat().st_mode & 0o777 == 0o644
    # It asks nobody.
    assert lab.upstream.requests == []


def test_it_ends_when_it_is_asked_to_and_tells_systemd_that_it_lives(lab: Lab) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(lab.folder / "notify"))
        notify.settimeout(PATIENCE)
        with watching(lab, NOTIFY_SOCKET=str(lab.folder / "notify")) as watch:
            assert [notify.recv(99) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            watch.process.send_signal(signal.SIGTERM)
            assert watch.process.wait(PATIENCE) == 0


def test_status_is_fresh_though_nothing_runs_and_what_a_run_wrote_stays(lab: Lab) -> None:
    assert lab.sync().code == 0
    before = public(lab, "status.json")
    with watching(lab) as watch:
        newer(lab, before["written"])
        watch.until("problems")
        now = public(lab, "status.json")
        same = {key: now[key] for key in ("run", "part", "indexes", "verify", "subdirs", "version")}
        assert same == {key: before[key] for key in same}
        assert watch.said["warnings"] == []


def test_it_may_be_killed_at_any_time(lab: Lab) -> None:
    assert lab.sync().code == 0
    for _ in range(10):
        at = written(lab)
        with watching(lab) as watch:
            newer(lab, at)
            watch.process.kill()
            watch.process.wait()
            # Whole, whenever that was.
            public(lab, "status.json")
            public(lab, "mirrorz.json")
    assert lab.sync().code == 0


def test_run_beside_it_is_told_of_as_it_is_and_one_that_died_is_missed(lab: Lab) -> None:
    assert lab.sync().code == 0
    (lab.mirror / LINUX / "tool-2.0-0.conda").unlink()
    lab.settings["timeout_seconds"] = 60
    lab.fault("*/tool-2.0-0.conda", stall=60, stall_at=100, times=1)
    with watching(lab) as watch:
        watch.until("warnings")
        run = lab.start()
        lab.until(lambda: any((lab.mirror / ".lanmirror/partial").iterdir()), PATIENCE)
        began = public(lab, "status.json")["run"]
        assert began["result"] == "running"
        newer(lab, written(lab))
        newer(lab, written(lab))
        assert public(lab, "status.json")["run"] == began
        # That goes on.
        watch.until("warnings")
        assert "without a word" not in watch.journal.read_text()

        run.kill()
        run.wait()
        watch.until("warnings", "the last sync ended without a word")
        assert watch.said["status"] == "ok"
        assert lab.sync().code == 0
        watch.until("warnings")
        lab.until(lambda: public(lab, "status.json")["run"]["result"] == "in sync")
        lab.until(lambda: "<5>run died: well again" in watch.journal.read_text())
    assert watch.journal.read_text().count("<4>the last sync ended without a word") == 1


def test_run_that_began_and_ended_between_two_writings_is_not_taken_back(lab: Lab) -> None:
    """A run writes behind the lock; who comes then does not wait for it, and does not write what it read before."""
    assert lab.sync().code == 0
    config = load(lab.configure(), {})
    store, before = Store(lab.mirror, INDEXES), written(lab)
    with store.alone("status"):
        status.refresh(config, Store(lab.mirror, PACKAGES))
        assert written(lab) == before
    status.refresh(config, Store(lab.mirror, PACKAGES))
    assert written(lab) > before


def test_upstream_that_is_down_is_a_warning_with_its_reason(lab: Lab) -> None:
    assert lab.sync().code == 0
    lab.settings["upstream"] = {"repo": "http://lab:s3cret-word@127.0.0.1:9", "cloud": "http://127.0.0.1:9"}
    assert lab.sync().code == 5
    with watching(lab) as watch:
        watch.until("warnings", "pkgs/main/noarch: ", "pkgs/main/linux-64: ")
        assert "127.0.0.1:9" in watch.said["warnings"][0]
        assert "what is held or cached installs" in watch.said["warnings"][0]
        assert watch.said["problems"] == []
        assert "s3cret-word" not in json.dumps(watch.said) + watch.journal.read_text()


def test_who_asks_the_upstreams_for_the_web_server_is_missed(lab: Lab) -> None:
    lab.settings["on_demand"] = True
    assert lab.sync().code == 0
    path = lab.folder / "upstreams.sock"
    lab.settings["health"] = {"upstreams_socket": str(path)}
    with watching(lab) as watch:
        watch.until("warnings", f"nothing new comes on demand ({path}: No such file or directory)")
        with socket.socket(socket.AF_UNIX) as there:
            there.bind(str(path))
            there.listen(4000)
            watch.until("warnings")
        watch.until("warnings", f"nothing new comes on demand ({path}: Connection refused)")
        assert watch.said["status"] == "ok"


def test_sync_that_had_no_room_is_a_problem_until_one_has(lab: Lab) -> None:
    lab.settings["min_free_gib"] = 1 << 20
    assert lab.sync().code == 4
    with watching(lab) as watch:
        watch.until("problems", f"the disk of {lab.mirror} is nearly full", "the last sync failed")
        assert "exit code 4 (" in watch.said["problems"][1]
        lab.settings["min_free_gib"] = 0
        assert lab.sync().code == 0
        watch.until("problems")
        lab.until(lambda: f"<5>disk of {lab.mirror}: well again" in watch.journal.read_text())
    assert "<3>the last sync failed" in watch.journal.read_text()


@pytest.mark.parametrize(("error", "code"), [(ZeroDivisionError("x"), 70), (PermissionError(13, "no", "/x"), 1)])
def test_code_of_a_run_that_failed_is_known(lab: Lab, error: Exception, code: int) -> None:
    config = load(lab.configure(), {})
    store = Store(lab.mirror)
    store.create()
    with Memory(store.memory_file) as memory:
        mirror = Mirror(config, store, memory)
        with pytest.raises(type(error)), status.told(mirror, Report(), time.time(), "*"):
            raise error
    assert public(lab, "status.json")["run"]["code"] == code
    with watching(lab) as watch:
        watch.until("problems", f"exit code {code} (")


def test_configuration_that_somebody_spoils_and_mends(lab: Lab) -> None:
    assert lab.sync().code == 0
    with watching(lab) as watch:
        watch.until("problems")
        lab.settings["jobs"] = 0
        lab.configure()
        watch.until("problems", "jobs is 0; allowed: a whole number")
        lab.settings["jobs"] = 4
        lab.configure()
        watch.until("problems")


def test_configuration_that_is_wrong_from_the_start_is_said(lab: Lab) -> None:
    lab.settings["repos"] = "main"
    with watching(lab) as watch:
        watch.until("problems", "repos is 'main'")
        lab.settings["repos"] = ["main"]
        lab.configure()
        watch.until("problems")
    done = subprocess.run(
        [sys.executable, FILES / "anaconda_sync.py", "watch", "--config", lab.configure()],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--health" in done.stderr


def test_mirror_whose_folder_is_gone_is_not_made_anew(lab: Lab) -> None:
    assert lab.sync().code == 0
    with watching(lab) as watch:
        watch.until("problems")
        lab.mirror.rename(lab.folder / "aside")
        watch.until("problems", "cannot be written to (it is not there)")
        assert not lab.mirror.exists()
        (lab.folder / "aside").rename(lab.mirror)
        watch.until("problems")


def test_half_a_million_files_cost_it_no_memory(lab: Lab) -> None:
    store = Store(lab.mirror)
    store.create()
    with Memory(store.memory_file) as memory:
        memory.verify("pkgs/big", ((f"package-{n}-1.0-0.conda", n, n, n.to_bytes(32)) for n in range(300_000)))
        memory.note(status.RUN, {"result": "in sync", "began": 1.0, "ended": 2.0, "last_success": time.time()})
        memory.commit(lambda: None)
    with watching(lab, (str(FILES / "anaconda_sync.py"),)) as watch:
        lab.until((lab.mirror / ".lanmirror/public/status.json").exists, PATIENCE)
        assert public(lab, "status.json")["run"]["result"] == "in sync"
        (peak,) = [
            int(line.split()[1])
            for line in Path(f"/proc/{watch.process.pid}/status").read_text().splitlines()
            if line.startswith("VmHWM:")
        ]
    # 34 MB; a copy of the file takes 40 more.
    assert peak < 50_000


def test_platform_that_the_upstream_does_not_have_is_known_to_have_been_asked_for(lab: Lab) -> None:
    lab.settings["on_demand"] = True
    lab.settings["repos"] = [{"name": name, "hold": "none"} for name in ("main", "free")]
    (lab.tree / "pkgs/free/linux-64").rename(lab.tree / "pkgs/free/noarch")
    assert lab.sync("--indexes").code == 0
    with Memory(Store(lab.mirror).memory_file, facts_alone=True) as memory:
        absent = memory.standing(PurePosixPath("pkgs/free/linux-64"))
    assert absent.checked
    assert absent.published is None
    with watching(lab) as watch:
        newer(lab, written(lab))
        assert (watch.said["problems"], watch.said["warnings"]) == ([], [])


def test_who_has_a_lock_is_known_without_touching_it(lab: Lab) -> None:
    store = Store(lab.mirror)
    store.create()
    assert store.holder(PACKAGES) is None
    with store.locked():
        holder = store.holder(PACKAGES)
        assert holder is not None
        assert holder[0] == os.getpid()
        assert abs(holder[1] - time.time()) < 3600
        assert store.holder(INDEXES) is None
    # The number of the process stays there.
    assert store.holder(PACKAGES) is None
