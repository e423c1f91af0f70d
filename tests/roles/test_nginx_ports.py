"""Role nginx, module nginx_ports: real sockets of this process."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from tests.roles.render import ROOT, python_file

ports = python_file(ROOT / "roles/nginx/library/nginx_ports.py")


def needed(port: int, *addresses: str, **more: str) -> dict[str, Any]:
    return {"port": port, "addresses": addresses, "unit": "devpi.service", "variable": "devpi_port", **more}


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of the loopback address that this process listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


def test_program_port_and_variable_are_named(taken: int) -> None:
    said = ports.problem(needed(taken, "127.0.0.1", note="It needs four in a row."))
    assert said.startswith(f"devpi_port: TCP port {taken} is taken by ")
    assert f"(pid {os.getpid()}," in said
    assert "Set devpi_port to another port, or stop that program. It needs four in a row." in said


def test_port_of_one_address_is_not_free_for_all_addresses(taken: int) -> None:
    assert ports.problem(needed(taken, "0.0.0.0", "::")) != ""
    assert ports.problem(needed(taken, "127.0.0.2")) == ""


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6")
def test_socket_of_both_families_takes_ipv4_as_well() -> None:
    with closing(socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)) as server:
        assert ports.problem(needed(server.getsockname()[1], "127.0.0.1")) != ""


def test_port_that_nobody_listens_on_is_free() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    assert ports.problem(needed(port, "127.0.0.1")) == ""


def test_service_itself_may_have_its_port(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "units", lambda _: {"devpi.service"})
    assert ports.problem(needed(taken, "127.0.0.1")) == ""


def test_service_that_hides_its_sockets_may_have_its_port(
    taken: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ports, "owners", lambda _: [])
    assert "one in a container" in ports.problem(needed(taken, "127.0.0.1"))
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cgroup").write_text("0::/system.slice/devpi.service\n")
    monkeypatch.setattr(ports, "PROC", tmp_path)

    def refuse(link: Path) -> Path:
        raise PermissionError(link)

    (tmp_path / "7/fd").mkdir()
    (tmp_path / "7/fd/3").symlink_to("socket:[1]")
    assert not ports.hides("devpi.service")
    monkeypatch.setattr(Path, "readlink", refuse)
    assert ports.hides("devpi.service")
    assert not ports.hides("nginx.service")
    assert ports.problem(needed(taken, "127.0.0.1")) == ""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0::/system.slice/nginx.service\n", {"nginx.service"}),
        ("1:name=systemd:/docker/0123/system.slice/system-x.slice/x@1.service\n0::/\n", {"x@1.service"}),
        ("0::/user.slice/user-0.slice/session-3.scope\n", {"session-3.scope"}),
        ("0::/\n", set()),
    ],
)
def test_units_of_both_versions_of_cgroups(text: str, found: set[str]) -> None:
    assert ports.units(text) == found


@pytest.mark.parametrize(
    ("wanted", "used", "both"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "192.0.2.10", False),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "::", True),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        ("127.0.0.1", "::1", False),
        ("::", "0.0.0.0", False),
        ("::", "::1", True),
    ],
)
def test_overlap_of_addresses(wanted: str, used: str, both: bool) -> None:
    assert ports.overlap(ip_address(wanted), ip_address(used)) is both
