"""Ports of the loopback address for servers of tests, of which several runs of pytest are under way at once."""

from __future__ import annotations

import fcntl
import socket
import tempfile
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import IO

# Below those that the kernel gives to connections (ip_local_port_range).
FIRST, LAST, SHARE = 20000, 32000, 400


@cache
def share() -> tuple[cycle[int], IO[str]]:
    """Return the ports that are this process's until it ends, and the lock that says so."""
    for first in range(FIRST, LAST, SHARE):
        lock = (Path(tempfile.gettempdir()) / f"lanmirror-ports-{first}").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        return cycle(range(first, first + SHARE)), lock
    raise RuntimeError("no ports are free")


def free_ports(count: int = 1) -> int:
    """Return the first of some ports in a row that nobody listens on."""
    found: list[int] = []
    ports, _ = share()
    for _ in range(2 * SHARE):
        port = next(ports)
        if found and port != found[-1] + 1:
            found = []
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                found = []
                continue
        found.append(port)
        if len(found) == count:
            return found[0]
    raise RuntimeError("no ports are free")
