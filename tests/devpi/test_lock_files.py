"""Lock files: one made through the cache is one made directly, and installs directly; and the other way round."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest

from tests.devpi.conftest import PASSWORD, Devpi, Upstream
from tests.devpi.origin import wheel
from tests.devpi.test_clients import Clients, clients, have, tools

__all__ = ["clients", "tools"]
MORE = ("twine==7.0.0", "poetry==2.5.1")


@pytest.fixture(scope="session")
def more_tools() -> Path:
    """Return the `bin` of a venv with twine and poetry, made once for each set of versions."""
    folder = Path(sys.prefix) / f"clients-{hashlib.sha256(repr(MORE).encode()).hexdigest()[:12]}"
    if not (folder / "complete").exists():
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *MORE], check=True)
        (folder / "complete").touch()
    return folder / "bin"


def locked(clients: Clients, index: str, kind: str) -> str:
    """Return a lock file that uv makes from an index, given by its URL."""
    (clients.work / "wanted.in").write_text("six\n")
    uv = [str(clients.tools / "new" / "bin" / "uv"), "pip", "compile", "--no-config", "--no-cache", "--no-header"]
    what = ["--no-annotate", "--generate-hashes", "--format", kind, "--default-index", index]
    done = clients.run(*uv, *what, "wanted.in")
    assert done.returncode == 0, done.stderr
    return done.stdout


def installed(clients: Clients, index: str, lock: str, tool: str) -> list[str]:
    """Return what of six a tool installs from an index by a lock file with hashes."""
    (clients.work / "requirements.txt").write_text(lock)
    target = clients.work / f"six-{len(list(clients.work.iterdir()))}"
    python = str(clients.tools / "new" / "bin" / "python")
    where = ["--target", str(target), "--require-hashes", "--index-url", index, "-r", "requirements.txt"]
    pip = [python, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--no-cache-dir"]
    uv = [str(clients.tools / "new" / "bin" / "uv"), "pip", "install", "--no-config", "--no-cache", "--python", python]
    done = clients.run(*(pip if tool == "pip" else uv), *where)
    assert done.returncode == 0, done.stderr
    return sorted(path.name for path in target.glob("*.dist-info"))


@pytest.mark.parametrize("kind", ["mirror", "stage"])
def test_lock_file_of_uv_is_good_on_both_sides(
    devpi: Devpi, upstream: Upstream, clients: Clients, name: str, kind: str
) -> None:
    have(upstream)
    devpi.mirror(f"root/{name}", upstream)
    devpi.declare(f"root/{name}-dev", type="stage", bases=[f"root/{name}"])
    here = f"{devpi.url}/root/{name}{'-dev' * (kind == 'stage')}/+simple/"
    there = f"{upstream.url}/simple/"
    lock = locked(clients, here, "requirements.txt")
    assert lock.startswith("six==3.0")
    assert lock == locked(clients, there, "requirements.txt")
    # For a hash that the page tells, nobody fetches the file.
    assert not [path for path in upstream.paths() if path.endswith(".whl")]
    for tool in ("pip", "uv"):
        assert installed(clients, there, lock, tool) == ["six-3.0.dist-info"]
        assert installed(clients, here, lock, tool) == ["six-3.0.dist-info"]


def test_pylock_has_size_and_time_as_one_made_directly(
    devpi: Devpi, upstream: Upstream, clients: Clients, name: str
) -> None:
    have(upstream)
    devpi.mirror(f"root/{name}", upstream)
    here, there = (
        tomllib.loads(locked(clients, index, "pylock.toml"))
        for index in (f"{devpi.url}/root/{name}/+simple/", f"{upstream.url}/simple/")
    )

    def without_urls(lock: dict[str, Any]) -> dict[str, Any]:
        for package in lock["packages"]:
            package.pop("index", None)
            assert all(file.pop("url") for file in package["wheels"])
        return lock

    (file,) = here["packages"][0]["wheels"]
    assert {"size", "upload-time", "hashes"} <= set(file)
    assert file["url"].startswith(f"{devpi.url}/root/{name}/+f/")
    assert without_urls(here) == without_urls(there)


def test_poetry_locks_what_twine_uploaded_and_what_a_mirror_has(
    devpi: Devpi, upstream: Upstream, clients: Clients, name: str, more_tools: Path
) -> None:
    have(upstream)
    devpi.mirror(f"root/{name}", upstream)
    devpi.declare(f"root/{name}-dev", type="stage", bases=[f"root/{name}"])
    content, _ = wheel("ours", "1.0", 1000)
    (clients.work / "ours-1.0-py3-none-any.whl").write_bytes(content)
    upload = [str(more_tools / "twine"), "upload", "--non-interactive", "--disable-progress-bar"]
    who = ["--repository-url", f"{devpi.url}/root/{name}-dev/", "--username", "root", "--password", PASSWORD]
    done = clients.run(*upload, *who, "ours-1.0-py3-none-any.whl")
    assert done.returncode == 0, done.stdout + done.stderr
    (clients.work / "pyproject.toml").write_text(
        f"""[project]
name = "mine"
version = "1"
requires-python = ">=3.11"
dependencies = ["six<3", "ours"]
[tool.poetry]
package-mode = false
[[tool.poetry.source]]
name = "cache"
url = "{devpi.url}/root/{name}-dev/+simple/"
priority = "primary"
"""
    )
    done = clients.run(str(more_tools / "poetry"), "lock", "--no-interaction", "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr
    packages = tomllib.loads((clients.work / "poetry.lock").read_text())["package"]
    files = {package["name"]: package["files"] for package in packages}
    assert files == {
        project: [
            {
                "file": f"{project}-{version}-py3-none-any.whl",
                "hash": f"sha256:{hashlib.sha256(wheel(project, version, size)[0]).hexdigest()}",
            }
        ]
        for project, version, size in (("ours", "1.0", 1000), ("six", "2.0", 300_000))
    }
    done = clients.run(str(more_tools / "poetry"), "sync", "--no-interaction", "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "six (2.0)" in done.stdout
    assert "ours (1.0)" in done.stdout
