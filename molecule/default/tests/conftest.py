"""The server's way out, and root's login at devpi."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from lab import container, docker, network, run, url


@pytest.fixture
def cut_off() -> Iterator[None]:
    """The server's way out is gone: to the Conda upstream and to everything else."""
    docker("network", "disconnect", network("outside"), container("server"))
    yield
    docker("network", "connect", "--alias", "mirror.lan", network("outside"), container("server"))


@pytest.fixture
def access(server: Any) -> tuple[str, str]:
    """Log in as root; give name and token, the credentials of root's requests."""
    password = run(server, "cat /etc/devpi/root-password")
    login = requests.post(url("/+login"), json={"user": "root", "password": password}, timeout=30).json()
    return "root", str(login["result"]["password"])
