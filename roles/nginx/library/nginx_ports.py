#!/usr/bin/python
"""Name the program that has a TCP port which one of our services needs."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
---
module: nginx_ports
short_description: Name the programs that have the TCP ports which services need, and change nothing
description:
  - Tries to bind each address as the service would, and looks the owner up in C(/proc).
  - Needs nothing but Python on the host. Without root, it sees only the programs of its own user.
options:
  ports:
    description: The ports that are needed.
    type: list
    elements: dict
    required: true
    suboptions:
      port:
        description: The port's number.
        type: int
        required: true
      addresses:
        description: The addresses that the service listens on.
        type: list
        elements: str
        default: ["0.0.0.0", "::"]
      unit:
        description: The systemd unit that may have the port, because it is the service itself.
        type: str
        required: true
      variable:
        description: The variable that sets the port.
        type: str
        required: true
      note:
        description: A sentence for the administrator, after the fix.
        type: str
        default: ""
author:
  - lanmirror
"""

EXAMPLES = """
- name: Look whether the ports are free
  nginx_ports:
    ports:
      - {port: 80, unit: nginx.service, variable: nginx_port}
      - {port: 3141, addresses: [127.0.0.1], unit: devpi.service, variable: devpi_port}
  register: __nginx_taken
"""

RETURN = """
problems:
  description: A message for each port that another program has.
  type: list
  elements: str
  returned: always
"""

PROC = Path("/proc")
LISTEN = "0A"
Address = IPv4Address | IPv6Address


def listening(port: int, net: Path = PROC / "net") -> Iterator[tuple[Address, str]]:
    """Yield the address and the inode of each socket that listens on a port (man 5 proc: /proc/net/tcp)."""
    for name in ("tcp", "tcp6"):
        file = net / name
        for line in file.read_text(encoding="ascii").splitlines()[1:] if file.exists() else []:
            fields = line.split()
            host, _, number = fields[1].partition(":")
            if fields[3] != LISTEN or int(number, 16) != port:
                continue
            # Words of four bytes, each in the byte order of the machine; all that Debian runs on now is little-endian.
            words = [bytes.fromhex(host[start : start + 8])[::-1] for start in range(0, len(host), 8)]
            yield ip_address(b"".join(words)), fields[9]


def overlap(wanted: Address, used: Address) -> bool:
    """Whether both cannot be listened on at once. A socket on `::` usually takes IPv4 as well."""
    if isinstance(used, IPv6Address) and used.ipv4_mapped:
        used = used.ipv4_mapped
    if wanted.version == used.version:
        return wanted == used or wanted.is_unspecified or used.is_unspecified
    return isinstance(used, IPv6Address) and used.is_unspecified


def is_free(address: Address, port: int) -> bool | None:
    """Whether the address can be bound as a service binds it; None where only root could tell."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004 -- the version of IP
    try:
        with socket.socket(family, socket.SOCK_STREAM) as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                attempt.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            attempt.bind((str(address), port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        # No IPv6, or no such address on this machine: nobody has it.
        return None if error.errno in {errno.EACCES, errno.EPERM} else True
    return True


def owners(inodes: set[str]) -> list[Path]:
    """Return the /proc folders of the programs that have these sockets open, the oldest first."""
    links = {f"socket:[{inode}]" for inode in inodes}
    found = []
    for folder in sorted((f for f in PROC.iterdir() if f.name.isdecimal()), key=lambda f: int(f.name)):
        try:
            if any(str(link.readlink()) in links for link in (folder / "fd").iterdir()):
                found.append(folder)
        except OSError:  # It has ended, or it is another user's and we are not root.
            continue
    return found


def hides(unit: str) -> bool:
    """Whether a unit has a program whose sockets are not shown: to root in a container, those of any other user."""
    for folder in PROC.iterdir():
        try:
            if folder.name.isdecimal() and unit in units((folder / "cgroup").read_text()):
                for link in (folder / "fd").iterdir():
                    link.readlink()
        except PermissionError:
            return True
        except OSError:  # It has ended.
            continue
    return False


def units(cgroup: str) -> set[str]:
    """Return the systemd units in the text of /proc/PID/cgroup."""
    return set(re.findall(r"[^/\n]+\.(?:service|scope|socket)(?=/|$)", cgroup, re.MULTILINE))


def described(folder: Path) -> str:
    """Return a program's name, pid, unit and command line."""
    name = (folder / "comm").read_text(encoding="utf-8", errors="replace").strip()
    if folder.name == "1":
        return "systemd itself (pid 1; `systemctl list-sockets` names the unit)"
    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    unit = sorted(unit for unit in units((folder / "cgroup").read_text()) if not unit.startswith(("user@", "init.")))
    return ", ".join([f"{name} (pid {folder.name}", *(f"unit {one}" for one in unit[:1]), f"`{command[:100]}`)"])


def problem(wanted: dict[str, Any]) -> str:
    """Return why a service cannot have its port, or an empty text."""
    port, unit, variable = wanted["port"], wanted["unit"], wanted["variable"]
    addresses = [ip_address(text) for text in wanted["addresses"]]
    free = [is_free(address, port) for address in addresses]
    if all(free):
        return ""
    asked = [address for address, is_its in zip(addresses, free, strict=True) if not is_its]
    inodes = {inode for used, inode in listening(port) if any(overlap(address, used) for address in asked)}
    if not inodes and False not in free:
        return ""
    programs = owners(inodes)
    try:
        others = [one for one in programs if unit not in units((one / "cgroup").read_text())]
        if not others and (programs or hides(unit)):
            return ""
        said = described(others[0]) if others else "a program that this user may not see, or one in a container"
    except OSError:  # It has ended meanwhile.
        said = "a program that has just ended"
    note = f" {wanted['note']}" if wanted.get("note") else ""
    return (
        f"{variable}: TCP port {port} is taken by {said}. Set {variable} to another port, or stop that program.{note}"
    )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "ports": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "port": {"type": "int", "required": True},
                    "addresses": {"type": "list", "elements": "str", "default": ["0.0.0.0", "::"]},  # noqa: S104 -- nothing listens
                    "unit": {"type": "str", "required": True},
                    "variable": {"type": "str", "required": True},
                    "note": {"type": "str", "default": ""},
                },
            }
        },
        supports_check_mode=True,
    )
    found = [problem(wanted) for wanted in module.params["ports"]]
    module.exit_json(changed=False, problems=[text for text in found if text])


if __name__ == "__main__":
    main()
