"""The machines of a scenario, and the servers' journals when a test fails."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from lab import container, machine, machines

JOURNALS = {
    "journal": "journalctl --no-pager --lines=60 --unit=devpi --unit=nginx --unit=cron",
    "nginx": "tail -n 20 /var/log/nginx/access.log /var/log/nginx/error.log | cut -c -200",
    "sync": "tail -n 20 /var/log/conda-mirror/sync.log",
}


@pytest.fixture(scope="session")
def server() -> Any:
    return machine("server")


@pytest.fixture(scope="session")
def workstation() -> Any:
    return machine("workstation")


@pytest.fixture(scope="session")
def upstream() -> Any:
    return machine("upstream")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed:
        for name in {"server", "replica"} & machines().keys():
            for title, command in JOURNALS.items():
                done = subprocess.run(
                    ["docker", "exec", container(name), "sh", "-c", command],
                    check=False,
                    capture_output=True,
                    text=True,
                )
                report.sections.append((f"{title} of {name}", done.stdout + done.stderr))
    return report
