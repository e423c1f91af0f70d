"""The machines of the scenario, and what is done on them."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
