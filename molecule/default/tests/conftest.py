"""The machines of the scenario, and what they wrote to their journals when a test fails."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import testinfra  # type: ignore[import-untyped]  # it ships no types
import yaml

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "lab"
# What the client role met on the workstation, see prepare.yml.
FILES = PROJECT / "molecule/files"

Playbook = Callable[..., subprocess.CompletedProcess[str]]


def container(name: str) -> str:
    """Give the name of a machine's container."""
    groups = yaml.safe_load((INVENTORY / "hosts.yml").read_text())
    return str(next(group["hosts"][name]["ansible_host"] for group in groups.values() if name in group["hosts"]))


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def network(name: str) -> str:
    """Give the name of the network `lan` or `outside`."""
    return f"{container('server').removesuffix('-server')}-{name}"


@pytest.fixture(scope="session")
def server() -> Any:
    return testinfra.get_host(f"docker://{container('server')}")


@pytest.fixture(scope="session")
def workstation() -> Any:
    return testinfra.get_host(f"docker://{container('workstation')}")


@pytest.fixture(scope="session")
def upstream() -> Any:
    return testinfra.get_host(f"docker://{container('upstream')}")


@pytest.fixture(scope="session")
def playbook() -> Playbook:
    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ansible-playbook", "-i", INVENTORY, PROJECT / name, *arguments],
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
        )

    return run


@pytest.fixture
def cut_off() -> Iterator[None]:
    """The server's way out is gone: to the Conda upstream and to everything else."""
    docker("network", "disconnect", network("outside"), container("server"))
    yield
    docker("network", "connect", "--alias", "mirror.lan", network("outside"), container("server"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed:
        for name, what in (
            ("journal", ["journalctl", "--no-pager", "--lines=60", "--unit=devpi", "--unit=nginx", "--unit=cron"]),
            ("nginx", ["sh", "-c", "tail -n 20 /var/log/nginx/access.log /var/log/nginx/error.log | cut -c -200"]),
            ("sync", ["tail", "-n", "20", "/var/log/conda-mirror/sync.log"]),
        ):
            done = subprocess.run(
                ["docker", "exec", container("server"), *what], check=False, capture_output=True, text=True
            )
            report.sections.append((f"{name} of the server", done.stdout + done.stderr))
    return report
