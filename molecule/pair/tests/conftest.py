"""The machines of the scenario, and what they wrote to their journals when a test fails."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import testinfra  # type: ignore[import-untyped]  # it ships no types
from pair import SERVERS, container, run, with_curl

TOOLS = "uv==0.13.9 twine==7.0.0"


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
    install = f"python3 -m venv /opt/tools && /opt/tools/bin/pip install -q {TOOLS}"
    run(host, f"test -x /opt/tools/bin/uv || ({install})")
    return host


@pytest.fixture(scope="session")
def one_server(replica: Any) -> None:
    """Let workstations find `server` alone, which has nobody to stand in for it from here on."""
    run(replica, "systemctl stop nginx devpi")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put last what is to be shown of one server; a replica does not even follow one that was restored."""
    last = ["test_soak", "test_life", "test_promotion"]
    items.sort(key=lambda item: last.index(item.path.stem) if item.path.stem in last else -1)


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
