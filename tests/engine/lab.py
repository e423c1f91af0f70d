"""An upstream, a mirror, and runs of the engine between them."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.engine import outside
from tests.upstream import server

ROOT = Path(__file__).parents[2]
FILES = ROOT / "files"
SCRIPT = FILES / "anaconda_sync.py"
PACKAGES = (".conda", ".tar.bz2")
# Longer than any run of the tests takes on a busy machine; a run that hangs is a failure, and not for ever.
PATIENCE = 40.0
SETTINGS: dict[str, Any] = {
    "repos": ["main"],
    "arches": ["noarch", "linux-64"],
    "cloud": [],
    "installers": {"dists": [], "suffixes": [".sh"]},
    "exclude": ["unwanted"],
    "jobs": 4,
    "retries": 1,
    "retry_wait_seconds": 0.01,
    "timeout_seconds": 5,
    "min_free_gib": 0,
}


@dataclass(frozen=True)
class Finished:
    """A run that ended.

    Attributes:
        code: its exit code; negative: the signal.
        log: what it wrote.
        peak: the most memory that it had, in bytes.
    """

    code: int
    log: str
    peak: int


class Engine:
    """Starts runs of the engine."""

    def __init__(self, folder: Path) -> None:
        self._outputs = (folder / f"run-{number}.log" for number in itertools.count())
        self._lock = threading.Lock()
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.zygote"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": f"{FILES}:{ROOT}"},
        )  # fmt: skip

    def start(self, argv: list[str], env: Mapping[str, str], **orders: Any) -> Running:
        """Start a run; for `orders` see the zygote."""
        output = next(self._outputs)
        output.touch()  # a run may be killed before it gets to that
        answer = self.ask({"argv": argv, "env": {"PATH": os.environ["PATH"], **env}, "output": str(output), **orders})
        return Running(self, answer["pid"], output)

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request to the zygote and return its answer."""
        assert self._zygote.stdin
        assert self._zygote.stdout
        with self._lock:
            print(json.dumps(request), file=self._zygote.stdin, flush=True)
            line = self._zygote.stdout.readline()
            assert line, "the zygote died: can the engine be imported?"
            answer: dict[str, Any] = json.loads(line)
            return answer

    def close(self) -> None:
        """End the zygote."""
        assert self._zygote.stdin
        self._zygote.stdin.close()
        self._zygote.wait(PATIENCE)


@dataclass(frozen=True)
class Running:
    """A run that was started."""

    engine: Engine
    pid: int
    output: Path

    def kill(self) -> None:
        """Kill it as the kernel does when memory is short: it cannot clean up."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, patience: float = PATIENCE) -> Finished:
        """Wait until it ends, so many seconds; one that hangs or dies of a bug is a failed test."""
        answer = self.engine.ask({"wait": self.pid, "timeout": patience})
        if answer["code"] is None:
            os.kill(self.pid, signal.SIGUSR1)
            self.engine.ask({"wait": self.pid, "timeout": 1})
            self.kill()
            raise AssertionError(f"the run hangs:\n{self.output.read_text()}")
        text = self.output.read_text()
        assert "Traceback" not in text, text
        return Finished(answer["code"], text, answer["peak"])

    def is_running(self) -> bool:
        """Tell whether it has not ended yet."""
        return Path(f"/proc/{self.pid}").exists() and " Z " not in Path(f"/proc/{self.pid}/stat").read_text()

    def left_behind(self) -> list[int]:
        """Return the processes that it started and that run on without it."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # man 5 proc: pid (comm) state ppid pgrp session; comm may hold anything.
                state, _, _, session = entry.read_text().rpartition(") ")[2].split()[:4]
                if int(session) == self.pid and state != "Z":
                    found.append(int(entry.parent.name))
        return found


class Lab:
    """An upstream (`tree`, served as `upstream`) and a mirror directory (`mirror`, served as `served`)."""

    def __init__(
        self, engine: Engine, folder: Path, upstream: server.Upstream, served: server.Upstream, mirror: Path
    ) -> None:
        self.engine = engine
        self.folder = folder
        self.upstream = upstream
        self.served = served
        self.mirror = mirror
        self.settings: dict[str, Any] = {
            **SETTINGS,
            "working_dir": str(mirror),
            "upstream": {"repo": upstream.url, "cloud": f"{upstream.url}/cloud"},
        }
        self.genuine: set[str] = set()
        self._given: set[tuple[str, str]] = set()

    @property
    def tree(self) -> Path:
        """The folder of the upstream."""
        return self.upstream.root

    @property
    def subdirs(self) -> list[str]:
        """The subdirs that the settings ask for."""
        names = {
            key: [entry["name"] if isinstance(entry, dict) else entry for entry in self.settings[key]]
            for key in ("repos", "cloud")
        }
        pairs = itertools.product(names["repos"], self.settings["arches"])
        return [f"pkgs/{repo}/{arch}" for repo, arch in pairs] + [f"cloud/{name}" for name in names["cloud"]]

    def start(self, *arguments: str, env: Mapping[str, str] | None = None, **orders: Any) -> Running:
        """Start a run with the settings as they are now."""
        self.remember()
        return self.engine.start([*arguments, "--config", str(self.configure())], env or {}, **orders)

    def configure(self) -> Path:
        """Write the settings as they are now into the configuration file and return it."""
        config = self.folder / "config.yml"
        config.write_text(yaml.safe_dump(self.settings))
        return config

    def outside_the_mirror(self) -> set[Path]:
        """Return every path near the mirror directory that is not in it."""
        return {file for file in self.folder.rglob("*") if self.mirror not in file.parents}

    def sync(self, *arguments: str, env: Mapping[str, str] | None = None, **orders: Any) -> Finished:
        """Run the engine to its end."""
        return self.start(*arguments, env=env, **orders).wait()

    def plan(self, *arguments: str) -> dict[str, Any]:
        """Return what a plan tells programs; what it logs stands before that."""
        run = self.sync("plan", "--json", *arguments)
        assert "\n}" in run.log, run.log
        told: dict[str, Any] = json.loads(run.log[run.log.index("{\n") :])
        return told

    def remember(self) -> None:
        """Note the bytes that the upstream has now as genuine."""
        hashes = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in _payloads(self.tree)}
        self.genuine |= set(hashes.values())
        self._given |= {(str(file.relative_to(self.tree)), sha256) for file, sha256 in hashes.items()}

    def came_on_demand(self, path: str, entry: outside.Entry) -> bool:
        """Tell whether the upstream has had a file while the mirror knew its index, if the mirror counts on that."""
        return bool(self.settings.get("on_demand")) and (path, entry.sha256) in self._given

    def comes_on_demand(self, path: str, entry: outside.Entry) -> bool:
        """Tell whether the upstream has a file now, if the mirror counts on that."""
        file = self.tree / path
        there = file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == entry.sha256
        return bool(self.settings.get("on_demand")) and there

    def named(self, where: str) -> set[str]:
        """Return the file names that a served form of an index names, for example `pkgs/main/noarch/repodata.json`."""
        return outside.named(self.served.url, where)

    def problems(self, *, moving: bool = False) -> list[str]:
        """Check from outside, whatever state the last run left; return all that a client would stumble over."""
        subdirs = [subdir for subdir in self.subdirs if (self.mirror / subdir / "repodata.json").exists()]
        found = outside.check(self.served.url, subdirs, moving=moving, rest=False, elsewhere=self.came_on_demand)
        return found.problems + self.strangers()

    def strangers(self) -> list[str]:
        """Return what stands under a served name, whether an index names it or not, and is not the upstream's."""
        found = []
        for file in _payloads(self.mirror):
            with contextlib.suppress(FileNotFoundError):
                if hashlib.sha256(file.read_bytes()).hexdigest() not in self.genuine:
                    found.append(f"{file.relative_to(self.mirror)} is served and was never the upstream's")
        return found

    def check(self) -> outside.Findings:
        """Check a mirror at rest: no problems, every subdir there, all forms alike."""
        findings = outside.check(self.served.url, self.subdirs, elsewhere=self.comes_on_demand)
        assert findings.problems + self.strangers() == []
        return findings

    def packages(self, subdir: str) -> set[str]:
        """Return the names of the package files that stand in a subdir of the mirror."""
        return {file.name for file in (self.mirror / subdir).glob("*") if file.name.endswith(PACKAGES)}

    def repodata(self, subdir: str, form: str = "repodata.json") -> dict[str, Any]:
        """Return a JSON form of an index as it is served."""
        status, body = outside.Client(self.served.url).get(f"{self.served.url}/{subdir}/{form}")
        assert status == 200, f"{subdir}/{form} answers {status}"
        data: dict[str, Any] = json.loads(body)
        return data

    def repodata_of_upstream(self, subdir: str) -> dict[str, Any]:
        """Return the index that the upstream has."""
        data: dict[str, Any] = json.loads((self.tree / subdir / "repodata.json").read_bytes())
        return data

    def largest_of_its_own(self) -> int:
        """Return the bytes of the largest file that the engine keeps in the mirror directory for itself."""
        largest = 0
        for folder in self.mirror.glob(".*"):
            for file in folder.rglob("*"):
                with contextlib.suppress(FileNotFoundError):  # it works there
                    largest = max(largest, file.stat().st_size if file.is_file() else 0)
        return largest

    @staticmethod
    def until(condition: Callable[[], bool], seconds: float = 20) -> None:
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.01)

    def fault(self, path: str, **what: Any) -> None:
        """Make the upstream fail at a path or a pattern of paths; see `server.Fault`."""
        self.upstream.faults[path] = server.Fault(**what)

    def during(self, pattern: str, action: Callable[[], None]) -> None:
        """Do something each time the upstream is asked for a path of a pattern, before it answers."""

        def act(request: server.Request) -> None:
            if fnmatch.fnmatchcase(request.path, pattern):
                action()

        self.upstream.on_request = act


def _payloads(root: Path) -> Iterator[Path]:
    """Yield what clients download, other than indexes; what stands under a dotted name is not served."""
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".")]
        yield from (Path(folder, name) for name in files if name.endswith((*PACKAGES, ".sh", ".exe", ".pkg")))


@contextlib.contextmanager
def laboratory(engine: Engine, built: Path, folder: Path, mirror: Path | None = None) -> Iterator[Lab]:
    """Copy the built upstream into `folder` and serve it, and the mirror, for the length of a `with`."""
    tree = folder / "upstream"
    shutil.copytree(built, tree)
    mirror = mirror or folder / "mirror"
    mirror.mkdir(exist_ok=True)
    with server.serving(tree) as upstream, server.serving(mirror) as served:
        yield Lab(engine, folder, upstream, served, mirror)
