"""The role's Nginx before a real upstream, an index made by the engine, and the command that looks after the cache."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from lanmirror_cache import cli
from lanmirror_cache.check import Checker
from lanmirror_cache.records import Records
from lanmirror_cache.scan import scan
from lanmirror_cache.state import State
from lanmirror_cache.watch import Places
from lanmirror_sync.kept import Wrong

from tests.roles.conda_site import CondaSite, Rule, conda_site, ranged
from tests.roles.render import ROOT
from tests.roles.site import Answer, Said
from tests.upstream.channel import Spec, build


def until(true: Callable[[], bool]) -> None:
    """Wait for something."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@dataclass
class Lab:
    """What runs.

    Attributes:
        site: Nginx, and the upstreams.
        folder: of all files.
        packages: the bytes of each package that the upstream has, by path.
        installers: the same of `miniconda/`, by file name; `hashed` is what its page lists a hash of.
    """

    site: CondaSite
    folder: Path
    packages: dict[str, bytes] = field(default_factory=dict)
    installers: dict[str, bytes] = field(default_factory=dict)
    hashed: set[str] = field(default_factory=set)

    @property
    def places(self) -> Places:
        """Where things are."""
        (self.folder / "state").mkdir(exist_ok=True)
        return Places(
            self.folder / "cache/lanmirror-conda/kept",
            self.folder / "mirror",
            self.folder / "lanmirror-conda.log",
            self.folder / "state",
        )

    @property
    def options(self) -> list[str]:
        """The options of the command."""
        where = self.places
        return [f"--{name}={getattr(where, name)}" for name in ("kept", "mirror", "log", "state")]

    def build(self, name: str, path: str, size: int = 1000, number: int = 0, version: str = "1.0") -> str:
        """Have a real package at the upstream, of somewhat more than a size, and return its path."""
        content = hashlib.shake_256(f"{name} {number}".encode()).digest(size)
        folder = self.folder / f"built-{number}"
        spec = Spec(name, version, subdir=path.rstrip("/").rpartition("/")[2], files={f"share/{name}": content})
        file = f"{path}{spec.file_name}"
        self.packages[file] = build(spec, folder).read_bytes()
        self.site.upstreams[0].says[file] = ranged(self.packages[file])
        return file

    def offer(self, name: str, content: bytes, *, hashed: bool = True, dated: str = "") -> str:
        """Have an installer at the upstream, and return its path."""
        self.installers[name] = content
        self.hashed = self.hashed | {name} if hashed else self.hashed - {name}
        self.gives(f"/miniconda/{name}", ranged(content, **({"Last-Modified": dated} if dated else {})))
        return f"/miniconda/{name}"

    def publish(self, *, leave_out: tuple[str, ...] = ()) -> None:
        """Have the engine refresh the served indexes from the upstream's, which name the packages as they are now."""
        subdirs = {path.rpartition("/")[0] for path in self.packages}
        subdirs |= {"/pkgs/main/linux-64"} if self.installers else set()
        for subdir in subdirs | {"/pkgs/main/noarch", "/cloud/conda-forge/noarch"}:
            records = {
                path.rpartition("/")[2]: self.record(path)
                for path in self.packages
                if path.rpartition("/")[0] == subdir and path not in leave_out
            }
            index = {"info": {"subdir": subdir.rpartition("/")[2]}, "packages": {}, "packages.conda": records}
            self.site.upstreams[0].says[f"{subdir}/repodata.json"] = 200, {}, json.dumps(index).encode()
        rows = [
            f'<tr><td><a href="{name}">{name}</a></td><td>{hashlib.sha256(content).hexdigest()}</td></tr>'
            if name in self.hashed
            else f'<tr><td><a href="{name}">{name}</a></td></tr>'
            for name, content in self.installers.items()
        ]
        self.site.upstreams[0].says["/miniconda/"] = 200, {"Content-Type": "text/html"}, "".join(rows).encode()
        url = f"http://127.0.0.1:{self.site.upstreams[0].port}"
        config = self.folder / "engine.yml"
        settings = {
            "working_dir": str(self.folder / "mirror"),
            "upstream": {"repo": url, "cloud": f"{url}/cloud"},
            "on_demand": True,
            "repos": [{"name": "main", "hold": "none"}],
            "arches": ["noarch", "linux-64"],
            "cloud": [{"name": "conda-forge/noarch", "hold": "none"}],
            "installers": {
                "dists": ["miniconda"] if self.installers else [],
                "suffixes": ["Linux-x86_64.sh"],
                "hold": "none",
            },
            "retries": 0,
            "min_free_gib": 0,
            "cache_report": str(self.folder / "state/cache.json"),
            "metrics_file": str(self.folder / "conda.prom"),
        }
        config.write_text(yaml.safe_dump(settings))
        command = [sys.executable, str(ROOT / "files/anaconda_sync.py"), "sync", "--indexes", "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def record(self, path: str) -> dict[str, object]:
        """Return the record of a package."""
        name, version, build_string = path.rpartition("/")[2].removesuffix(".conda").rsplit("-", 2)
        content = self.packages[path]
        return {
            "name": name,
            "version": version,
            "build": build_string,
            "build_number": 0,
            "depends": [],
            "subdir": path.split("/")[-2],
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "md5": hashlib.md5(content, usedforsecurity=False).hexdigest(),
        }

    def gives(self, path: str, answer: Rule | Said | bytes) -> None:
        """Have the upstream give something else in the place of a package."""
        self.site.upstreams[0].says[path] = ranged(answer) if isinstance(answer, bytes) else answer

    def get(self, path: str, method: str = "GET") -> Answer:
        """Ask the site, and return the answer once all of it is in the cache that will be."""
        answer = self.site.ask(f"/anaconda{path}", method)
        until(lambda: not list(self.places.kept.glob("*/*/*.*")))
        return answer

    def kept(self, path: str = "") -> list[str]:
        """Return the keys of the cache, or those of one path."""
        return [key for key in self.site.kept() if not path or key.split(" ")[0] == path]

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run the command; return its exit code and what it printed."""
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = cli.main([*self.options, *arguments])
        return code, output.getvalue(), errors.getvalue()

    def checker(self, state: State) -> Checker:
        """Return what checks, after a scan."""
        scan(self.places.kept, state, time.time())
        checker = Checker(self.places.kept, state, Records(self.places.mirror), time.time)
        checker.reindexed()
        return checker

    def look(self) -> list[Wrong]:
        """Do what the service does each minute; return what was wrong."""
        return [wrong for wrong in self.checker(State(self.places.state)).due() if wrong]

    def right(self) -> dict[str, bool]:
        """Return what was found of each package that the cache has."""
        return {path: right for path, _, right in State(self.places.state).packages()}


@contextlib.contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """Run all of it in a folder."""
    with conda_site(folder) as site:
        yield Lab(site, folder)
