"""The check from outside through the real Nginx on demand: in motion, without the upstream, after kill -9.

Of one channel the packages are held, of the other none is. Each package that an index names comes, with its bytes.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.engine import outside
from tests.engine.lab import PACKAGES, Lab, Running
from tests.engine.site import before
from tests.roles.conda_site import SLICE, CondaSite
from tests.upstream import channel, server

pytestmark = pytest.mark.slow

LINUX, FORGE = "pkgs/main/linux-64", "cloud/conda-forge/linux-64"
LARGE_BYTES = 3 * SLICE
ENGINE = "lanmirror/"
# Nginx may give a file that was replaced for a second more (`open_file_cache_valid`), each form for itself.
STALE_SECONDS = 2
# Of the processes that Nginx starts, by the title that each has.
WORKER, MANAGER = "worker process", "cache manager"


@pytest.fixture
def lab(lab: Lab) -> Lab:
    """Return a lab with a large package in either channel; nothing is fetched yet."""
    lab.settings["cloud"] = [{"name": f"conda-forge/{arch}", "hold": "none"} for arch in ("noarch", "linux-64")]
    for folder in ("pkgs/main", "cloud/conda-forge"):
        spec = channel.Spec("large", subdir="linux-64", files={"share/large": channel.noise(LARGE_BYTES, 5)})
        channel.publish(lab.tree / folder, spec)
    return lab


def problems(lab: Lab, site: CondaSite, *, moving: bool = False, rest: bool = False) -> list[str]:
    """Return what a client of the site would stumble over; on demand is no excuse."""
    base = f"http://127.0.0.1:{site.port}/anaconda"
    served = [subdir for subdir in lab.subdirs if (lab.mirror / subdir / "repodata.json").exists()]
    if rest:
        time.sleep(STALE_SECONDS)
    found = outside.check(base, served, moving=moving, rest=rest)
    assert not rest or found.named[f"{FORGE}/repodata.json"], "there is nothing to check"
    return found.problems + lab.strangers()


def test_while_a_sync_and_a_refresh_run_and_then_without_the_upstream(lab: Lab) -> None:
    asked, may_go_on = threading.Event(), threading.Event()

    def hold(request: server.Request) -> None:
        """Have the sync wait at its first package."""
        if request.headers["User-Agent"].startswith(ENGINE) and request.path.endswith(PACKAGES):
            asked.set()
            may_go_on.wait(60)

    with before(lab) as site:
        # As long as the looks may take.
        lab.settings["timeout_seconds"] = 60
        assert lab.sync("--indexes").code == 0
        lab.upstream.on_request = hold
        run = lab.start()
        assert asked.wait(60)
        seen = problems(lab, site, moving=True)
        # The upstream has more by now, and less.
        for folder in ("pkgs/main", "cloud/conda-forge"):
            channel.publish(lab.tree / folder, *channel.crowd("linux-64", 3, prefix="new"))
        channel.edit(lab.tree / FORGE, {"large-1.0-0.conda": None})
        refresh = lab.start("--indexes")
        while refresh.is_running():
            seen += problems(lab, site, moving=True)
        assert refresh.wait().code == 0
        # Nginx has the former file open for a second.
        served = f"http://127.0.0.1:{site.port}/anaconda"
        lab.until(lambda: "new0001-1.1-0.conda" in outside.named(served, f"{LINUX}/repodata.json"))
        may_go_on.set()
        while run.is_running():
            seen += problems(lab, site, moving=True)
        assert run.wait().code == 0
        assert seen == []
        assert lab.sync().code == 0
        # What the check brought into the cache came from there.
        assert len(lab.upstream.asked(f"/{LINUX}/new*")) == 3
        assert problems(lab, site, rest=True) == []

        # Held by now is one channel, and cached the other.
        lab.upstream.stop()
        assert problems(lab, site, rest=True) == []
        assert [lab.sync().code, lab.sync("--indexes").code] == [5, 5]
        assert problems(lab, site, rest=True) == []


def children(site: CondaSite) -> Iterator[tuple[int, str]]:
    """Yield the processes of an Nginx with their titles; the master is the first."""
    master = int((site.folder / "nginx.pid").read_text())
    yield master, "master"
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((entry / "stat").read_text().rpartition(") ")[2].split()[1]) == master:
                yield int(entry.name), (entry / "cmdline").read_text()


def kill(site: CondaSite, title: str) -> None:
    """Kill processes of an Nginx, by their titles, and wait until they are gone."""
    pids = [pid for pid, name in children(site) if title in name]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    Lab.until(lambda: not {pid for pid, _ in children(site) if title} & {*pids} or not title)


@pytest.mark.parametrize("victims", ["workers", "cache manager", "engine", "all"])
def test_after_kill_9(lab: Lab, victims: str) -> None:
    """In the midst of a sync, and of a large package on demand, of which one slice is there."""
    may_end = threading.Event()
    path = f"/{FORGE}/large-1.0-0.conda"
    second = f"bytes={SLICE}-{2 * SLICE - 1}"
    stalled = {"package": threading.Event(), "slice": threading.Event()}

    def stall(request: server.Request) -> None:
        if request.path == path and request.headers.get("Range") == second and not may_end.is_set():
            stalled["slice"].set()
            may_end.wait(60)
        elif request.path == f"/{LINUX}/large-1.0-0.conda" and request.headers["User-Agent"].startswith(ENGINE):
            stalled["package"].set()
            may_end.wait(60)

    with ThreadPoolExecutor(1) as clients, before(lab, __conda_mirror_lock_age="1s") as site:
        assert lab.sync("--indexes").code == 0
        lab.upstream.on_request = stall
        run: Running = lab.start()
        client = clients.submit(lambda: site.ask(f"/anaconda{path}"))
        assert all(event.wait(60) for event in stalled.values())
        Lab.until(lambda: any("large" in key for key in site.kept()))
        if victims in ("engine", "all"):
            run.kill()
        if victims != "engine":
            kill(site, {"workers": WORKER, "cache manager": MANAGER, "all": ""}[victims])
        may_end.set()
        with suppress(Exception):  # whose connection it was
            client.result(60)
        if victims not in ("engine", "all"):
            assert run.wait().code == 0
        if victims != "all":
            finish(lab, site)
    if victims == "all":
        with before(lab, __conda_mirror_lock_age="1s") as again:
            finish(lab, again)


def finish(lab: Lab, site: CondaSite) -> None:
    """Check as it is, then after a sync, then without the upstream."""
    assert problems(lab, site) == []
    run = lab.sync()
    assert run.code == 0, run.log
    assert problems(lab, site, rest=True) == []
    lab.upstream.stop()
    assert problems(lab, site, rest=True) == []
