"""The machines of the scenario, what is done on them, and what they wrote to their journals when a test fails."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import testinfra  # type: ignore[import-untyped]  # it ships no types
import yaml

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "lab"
# Both servers, as with two addresses in DNS; each is also reached by its own name.
SITE = "https://mirror.lan"
SERVERS = ("server", "replica")
# What a workstation trusts, the roots of both among it.
CA = "/etc/ssl/certs/ca-certificates.crt"
ALICE = str(yaml.safe_load((INVENTORY / "group_vars/pypi_cache.yml").read_text())["devpi_users"][1]["password"])

Playbook = Callable[..., subprocess.CompletedProcess[str]]


def container(name: str) -> str:
    """Give the name of a machine's container."""
    groups = yaml.safe_load((INVENTORY / "hosts.yml").read_text())
    return str(
        next(group["hosts"][name]["ansible_host"] for group in groups.values() if name in group.get("hosts", {}))
    )


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def run(host: Any, command: str) -> str:
    """Run a command of the shell with nothing of the environment, and give what it printed."""
    done = attempt(host, command)
    assert done.rc == 0, f"{command}: exit code {done.rc}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


def attempt(host: Any, command: str) -> Any:
    """Run it as above, whatever comes of it."""
    return host.run(f"env -i HOME=/root PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -c {shlex.quote(command)}")


def get(workstation: Any, url: str, *options: str) -> tuple[int, str]:
    """Ask for a URL from the workstation, by curl; give status and text."""
    done = attempt(workstation, f"curl -sS -m 30 -w '\\n%{{http_code}}' {' '.join(options)} '{url}'")
    text, _, status = str(done.stdout).rpartition("\n")
    return int(status), text or done.stderr


def wait(what: str, seconds: float, check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.5)


def answers(host: Any) -> bool:
    """Tell whether a server's own devpi answers, and a replica's has the primary in sight."""
    return bool(attempt(host, "curl -sf -m 5 http://127.0.0.1:3141/+api").rc == 0)


def with_curl(name: str) -> Any:
    """Give a server, with curl in it to ask what only itself may."""
    host = testinfra.get_host(f"docker://{container(name)}")
    run(host, "test -x /usr/bin/curl || apt-get install -qq --no-install-recommends curl > /dev/null")
    return host


@pytest.fixture(scope="session")
def server() -> Any:
    return with_curl("server")


@pytest.fixture(scope="session")
def replica() -> Any:
    return with_curl("replica")


@pytest.fixture(scope="session")
def servers(server: Any, replica: Any) -> dict[str, Any]:
    return {"server": server, "replica": replica}


@pytest.fixture(scope="session")
def workstation() -> Any:
    """Give the workstation, with curl, uv and twine in it: the latter two by pip, through the server."""
    host = testinfra.get_host(f"docker://{container('workstation')}")
    run(host, "test -x /opt/tools/bin/uv || (python3 -m venv /opt/tools && /opt/tools/bin/pip install -q uv twine)")
    return host


@pytest.fixture(scope="session")
def playbook() -> Playbook:
    def run_it(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ansible-playbook", "-i", INVENTORY, PROJECT / name, *arguments],
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
        )

    return run_it


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed:
        for name in SERVERS:
            for what in (
                ["journalctl", "--no-pager", "--lines=40", "--unit=devpi", "--unit=nginx"],
                ["sh", "-c", "tail -n 20 /var/log/nginx/access.log /var/log/nginx/error.log | cut -c -200"],
            ):
                done = subprocess.run(
                    ["docker", "exec", container(name), *what], check=False, capture_output=True, text=True
                )
                report.sections.append((f"{what[0]} of {name}", done.stdout + done.stderr))
    return report
