"""Upstreams lead nowhere inside."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.devpi.conftest import FILES, Devpi, Upstream


@pytest.fixture(scope="session")
def outside(venv_of_devpi: Path) -> Any:
    """Return a function that evaluates an expression with the module, in the venv of devpi."""

    def evaluate(expression: str, value: Any) -> Any:
        program = (
            "import json, sys; from lanmirror_devpi.outside import *; value = json.load(sys.stdin); "
            f"json.dump({expression}, sys.stdout)"
        )
        told = subprocess.run(
            [str(venv_of_devpi / "bin" / "python"), "-c", program],
            input=json.dumps(value).encode(),
            env={"PYTHONPATH": str(FILES / "plugin")},
            capture_output=True,
            check=True,
        )
        return json.loads(told.stdout)

    return evaluate


INSIDE = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fdab::1",
    "ff02::1",
    "fec0::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "::7f00:1",
    "2002:7f00:1::",
    "2002:a00:1::",
]
OUTSIDE = [
    "8.8.8.8",
    "172.32.0.1",
    "172.15.0.1",
    "100.128.0.1",
    "198.18.0.5",
    "2606:4700::1111",
    "2a02::1",
    "64:ff9b::808:808",
    "::ffff:8.8.8.8",
]


def test_inside_addresses_are_known_in_every_form(outside: Any) -> None:
    told = outside("{address: is_inside(address) for address in value}", [*INSIDE, *OUTSIDE])
    assert [address for address, inside in told.items() if inside] == INSIDE


def test_declared_are_the_own_server_and_the_hosts_of_the_setting(outside: Any) -> None:
    asked = [
        ["Up.lan", 80],
        ["up.lan.", 443],
        ["up.lan", 8080],
        ["127.0.0.1", 80],
        ["files.lan", 1],
        ["10.0.0.5", 8080],
        ["10.0.0.5", 80],
        ["::5", 81],
    ]
    told = outside(
        "[Declared.of(['http://u:p@up.lan/simple/'], ['files.lan', '10.0.0.5:8080', '[::5]:81']).has(*pair) "
        "for pair in value]",
        asked,
    )
    assert told == [True, True, False, False, True, True, False, True]


def test_file_hosts_is_a_stored_setting_of_a_mirror(devpi: Devpi, upstream: Upstream, name: str) -> None:
    devpi.mirror(f"root/{name}", upstream, file_hosts=["files.lan", "10.0.0.5:8080"])
    devpi.declare(f"root/{name}", title="a vendor's")
    got = requests.get(f"{devpi.url}/root/{name}?no_projects=", headers={"Accept": "application/json"}, timeout=30)
    assert got.json()["result"]["file_hosts"] == ["files.lan", "10.0.0.5:8080"]
    refused = requests.patch(
        f"{devpi.url}/root/{name}", json={"file_hosts": ["http://files.lan/"]}, headers=devpi.token(), timeout=30
    )
    assert refused.status_code == 400
