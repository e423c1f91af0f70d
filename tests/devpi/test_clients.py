"""pip, new and old, and uv against pages that tell all, of mirrors and of stages."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests

from tests.devpi.conftest import PASSWORD, Devpi, Upstream
from tests.devpi.origin import LONG, wheel

NEW = ("pip==26.3", "uv==0.13.9")
OLD = ("20.3.4", "9.0.3")
VERSIONS = {"1.0": "2020-06-01T00:00:00Z", "2.0": "2022-06-01T00:00:00Z", "3.0": "2024-06-01T00:00:00.123456Z"}
BEFORE = "2023-01-01T00:00:00Z"


def old_python() -> str | None:
    """Return a Python that pip 9 runs on: it is of before 3.10."""
    named = [shutil.which(f"python3.{minor}") for minor in (9, 8, 7, 6)]
    beside = [str(path) for path in Path(sys.base_prefix).parent.glob("3.[6-9].*/bin/python3")]
    for python in [*filter(None, named), *sorted(beside, reverse=True)]:
        if subprocess.run([python, "--version"], capture_output=True, check=False).returncode == 0:
            return python
    return None


@pytest.fixture(scope="session")
def tools() -> Path:
    """Return a folder with the clients, made once for each set of versions: `new` is a venv, the others are pips."""
    folder = Path(sys.prefix) / f"clients-{hashlib.sha256(repr((NEW, OLD)).encode()).hexdigest()[:12]}"
    if not (folder / "complete").exists():
        venv.create(folder / "new", clear=True, with_pip=True)
        pip = [str(folder / "new" / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *NEW], check=True)
        for version in OLD:
            target = ["--no-deps", "--target", str(folder / version)]
            subprocess.run([*pip, *target, f"pip=={version}"], check=True)
        (folder / "complete").touch()
    return folder


@dataclass(frozen=True)
class Clients:
    """The clients, each with the settings that are given here alone.

    Attributes:
        tools: Folder of the clients.
        work: Folder for their files.
        url: Of devpi.
    """

    tools: Path
    work: Path
    url: str

    def run(self, *command: str, python_path: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.work), "NO_PROXY": "127.0.0.1"}
        if python_path:
            environment["PYTHONPATH"] = str(python_path)
        return subprocess.run(
            command, env=environment, cwd=self.work, capture_output=True, text=True, check=False, timeout=LONG
        )

    def uv(self, index: str, wanted: str, *options: str) -> str:
        """Return the version that uv takes, or "" for none."""
        (self.work / "wanted.in").write_text(wanted)
        simple = f"{self.url}/{index}/+simple/"
        uv = [str(self.tools / "new" / "bin" / "uv"), "pip", "compile", "--no-config", "--no-cache", "--no-header"]
        done = self.run(*uv, "--no-annotate", "--default-index", simple, *options, "wanted.in")
        assert done.returncode == 0 or "No solution found" in done.stderr, done.stderr
        return done.stdout.strip().rpartition("==")[2]

    def pip(self, index: str, wanted: str, *options: str) -> str:
        """Return the version that the newest pip takes, or "" for none."""
        simple = f"{self.url}/{index}/+simple/"
        pip = [str(self.tools / "new" / "bin" / "python"), "-m", "pip", "--isolated", "--disable-pip-version-check"]
        dry = ["install", "--dry-run", "--ignore-installed", "--no-cache-dir", "--quiet", "--report", "-"]
        done = self.run(*pip, *dry, "--index-url", simple, *options, wanted)
        assert done.returncode == 0 or "No matching distribution" in done.stderr, done.stderr
        return str(json.loads(done.stdout)["install"][0]["metadata"]["version"]) if done.returncode == 0 else ""

    def old_pip(self, version: str, index: str, wanted: str) -> str:
        """Return the version that an old pip downloads."""
        python = sys.executable if version != "9.0.3" else old_python()
        if python is None:
            pytest.skip("no Python of before 3.10 here")
        target = self.work / f"of-{version}"
        pip = [python, "-W", "ignore", "-m", "pip", "--isolated", "--disable-pip-version-check", "download"]
        options = ["--no-cache-dir", "--no-deps", "--dest", str(target), "--index-url"]
        done = self.run(*pip, *options, f"{self.url}/{index}/+simple/", wanted, python_path=self.tools / version)
        assert done.returncode == 0, done.stderr
        (file,) = target.iterdir()
        return file.name.split("-")[1]


@pytest.fixture
def clients(tools: Path, tmp_path: Path, devpi: Devpi) -> Clients:
    return Clients(tools, tmp_path, devpi.url)


def publish(clients: Clients, index: str, project: str, version: str) -> None:
    """Upload a wheel with uv."""
    name = f"{project}-{version}-py3-none-any.whl"
    (clients.work / name).write_bytes(wheel(project, version, 100)[0])
    uv = [str(clients.tools / "new" / "bin" / "uv"), "publish", "--no-config", "--username", "root"]
    url = ["--publish-url", f"{clients.url}/{index}/", "--password", PASSWORD]
    done = clients.run(*uv, *url, "--trusted-publishing", "never", name)
    assert done.returncode == 0, done.stderr


def have(upstream: Upstream, **more: dict[str, object]) -> None:
    """Have wheels of six that were uploaded over the years, with their metadata beside them."""
    files = []
    for version, at in VERSIONS.items():
        name = f"six-{version}-py3-none-any.whl"
        content, metadata = wheel("six", version, 300_000)
        promised = {"sha256": hashlib.sha256(metadata).hexdigest()}
        told = {"upload-time": at, "core-metadata": promised, **more.get(f"v{version[0]}", {})}
        files.append(upstream.file(name, content, **told))
        upstream.answer[f"/files/{name}.metadata"] = 200, {}, metadata
    upstream.page("six", files, versions=list(VERSIONS))


def test_what_was_uploaded_before_a_day_is_taken_from_mirrors_and_from_stages(
    devpi: Devpi, upstream: Upstream, clients: Clients, name: str
) -> None:
    have(upstream)
    mirror, stage = f"root/{name}", f"root/{name}-dev"
    devpi.mirror(mirror, upstream)
    devpi.declare(stage, type="stage", bases=[mirror])
    for index in (mirror, stage):
        assert clients.uv(index, "six") == "3.0"
        assert clients.uv(index, "six", "--exclude-newer", BEFORE) == "2.0"
        assert clients.pip(index, "six", "--uploaded-prior-to", BEFORE) == "2.0"
    # Metadata is enough for that.
    assert not [path for path in upstream.paths() if path.endswith(".whl")]
    publish(clients, stage, "ours", "1.0")
    today = datetime.now(UTC)
    for day, expected in ((today - timedelta(days=2), ""), (today + timedelta(days=2), "1.0")):
        limit = f"{day:%Y-%m-%dT%H:%M:%SZ}"
        assert clients.uv(stage, "ours", "--exclude-newer", limit) == expected
        assert clients.pip(stage, "ours", "--uploaded-prior-to", limit) == expected


def test_yanked_release_is_not_taken(devpi: Devpi, upstream: Upstream, clients: Clients, name: str) -> None:
    have(upstream, v3={"yanked": "broken"})
    digest = hashlib.sha256(wheel("six", "2.0", 300_000)[0]).hexdigest()
    upstream.answer["/wheels/"] = (
        200,
        {"Content-Type": "text/html"},
        f"""<a href="/files/six-2.0-py3-none-any.whl#sha256={digest}">six</a>
        <a href="/files/six-3.0-py3-none-any.whl" data-yanked>six</a>""".encode(),
    )
    devpi.mirror(f"root/{name}", upstream)
    devpi.mirror(f"root/{name}-flat", upstream, "/wheels/", flat=True)
    devpi.declare(f"root/{name}-dev", type="stage", bases=[f"root/{name}-flat", f"root/{name}"])
    for index in (name, f"{name}-flat", f"{name}-dev"):
        assert clients.uv(f"root/{index}", "six") == "2.0"
        assert clients.pip(f"root/{index}", "six") == "2.0"
    assert clients.old_pip("20.3.4", f"root/{name}-flat", "six") == "2.0"


@pytest.mark.parametrize("version", OLD)
def test_old_pip_takes_mirrors_and_stages(
    devpi: Devpi, upstream: Upstream, clients: Clients, name: str, version: str
) -> None:
    have(upstream)
    devpi.mirror(f"root/{name}", upstream)
    devpi.declare(f"root/{name}-dev", type="stage", bases=[f"root/{name}"])
    assert clients.old_pip(version, f"root/{name}-dev", "six<3") == "2.0"


def test_upload_is_there_at_once_and_what_is_deleted_is_gone(devpi: Devpi, clients: Clients, name: str) -> None:
    index = f"root/{name}"
    devpi.declare(index, type="stage", bases=[])
    for version in ("1.0", "2.0", "3.0"):
        publish(clients, index, "ours", version)
        assert clients.uv(index, "ours") == version
    gone = requests.delete(f"{devpi.url}/{index}/ours/3.0", headers=devpi.token(), timeout=LONG)
    assert gone.status_code == 200, gone.text
    assert clients.uv(index, "ours") == "2.0"
    assert clients.pip(index, "ours") == "2.0"
