"""The machines of the scenario, with the tools that its tests use on them."""

from __future__ import annotations

from typing import Any

import pytest
from lab import machine, run

TOOLS = "uv==0.13.9 twine==7.0.0"


def with_curl(name: str) -> Any:
    """Give a server, with curl in it for requests that only the server itself may make."""
    host = machine(name)
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
    """Give the workstation, with uv and twine in it, which pip installs through the server."""
    host = machine("workstation")
    install = f"python3 -m venv /opt/tools && /opt/tools/bin/pip install -q {TOOLS}"
    run(host, f"test -x /opt/tools/bin/uv || ({install})")
    return host


@pytest.fixture(scope="session")
def one_server(replica: Any) -> None:
    """Let workstations find `server` alone: from here on, no other server stands in for it."""
    run(replica, "systemctl stop nginx devpi")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of one server last; a replica does not even follow a server that was restored."""
    last = ["test_soak", "test_life", "test_promotion"]
    items.sort(key=lambda item: last.index(item.path.stem) if item.path.stem in last else -1)
