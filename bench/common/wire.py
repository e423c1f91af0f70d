"""A link with a round trip time, between two network namespaces of this machine.

The kernel's `netem` would do it, where it is built in; this does it everywhere. Each namespace has a TUN device
(the kernel's Documentation/networking/tuntap.rst), and a process of this module carries the packets between the two
and holds each back for half the round trip: connects, handshakes and slow starts take as long as they would.

The devices take and give TCP segments as the kernel has them before it cuts them into packets (`IFF_VNET_HDR` with
`TUN_F_TSO4`, as a virtual machine's network card), so that the process has ten times fewer to carry; what TCP counts
in, the segment of 1,460 bytes, stays.

A rate can be set as well: a router with a buffer of BUFFER seconds, which drops what is too much.

    python bench/common/wire.py NAME NAMESPACE ADDRESS NAMESPACE ADDRESS SECONDS BYTES_PER_SECOND
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# From linux/if_tun.h.
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x1, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x1, 0x2
LARGEST = (1 << 16) + 64
# The packets that a device holds while this process is not scheduled; a router's buffer, in packets.
QUEUE = 10_000
# Of the router, where there is a rate, seconds.
BUFFER = 0.2
# The server's address on the link.
FAR = "10.255.60.2"
# From linux/sched.h.
CLONE_NEWNET = 0x40000000


def run(*command: str) -> None:
    """Run a command that has to work; its own message names the fault."""
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


@dataclass(frozen=True)
class Wire:
    """Two joined namespaces.

    Attributes:
        near: the namespace of the programs that are measured.
        far: the namespace of the server.
        address: the server's address on the link; `127.0.0.1` within `far` has no delay.
    """

    near: str
    far: str
    address: str

    def command(self, namespace: str, *command: str) -> list[str]:
        """Return a command that runs in one of the namespaces."""
        return ["ip", "netns", "exec", namespace, *command]


@contextlib.contextmanager
def within(namespace: str) -> Iterator[None]:
    """Have this thread, and what it starts, use a namespace for the length of a `with` (setns(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open("rb") as before, Path("/run/netns", namespace).open("rb") as inside:
        if libc.setns(inside.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        try:
            yield
        finally:
            libc.setns(before.fileno(), CLONE_NEWNET)


@contextlib.contextmanager
def wire(round_trip: float, name: str = "lmbench", rate: float = 0) -> Iterator[Wire]:
    """Join two new namespaces for the length of a `with`.

    Args:
        round_trip: how long a packet and its answer take, in seconds.
        rate: how much goes through in each direction, in bytes a second; 0 for all that there is.
        name: the first letters of the namespaces' and devices' names, at most 12.
    """
    made = Wire(f"{name}-near", f"{name}-far", FAR)
    namespaces = (made.near, made.far)
    for namespace in namespaces:
        if Path("/run/netns", namespace).exists():
            run("ip", "netns", "delete", namespace)
        run("ip", "netns", "add", namespace)
        run("ip", "-n", namespace, "link", "set", "lo", "up")
    command = [sys.executable, __file__, name, made.near, "10.255.60.1", made.far, made.address]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, str(round_trip / 2), str(rate)], stdin=pipe, stdout=pipe, text=True) as carrier:
        try:
            if carrier.stdout is None or carrier.stdout.readline() != "ready\n":
                raise RuntimeError("the link did not come up; /dev/net/tun and root's rights are needed")
            yield made
        finally:
            carrier.terminate()
            for namespace in namespaces:
                run("ip", "netns", "delete", namespace)


def _device(name: str, namespace: str, address: str, peer: str) -> int:
    """Make a TUN device, give it to a namespace, and return its descriptor, which keeps it."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(descriptor, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    run("ip", "link", "set", name, "netns", namespace)
    run("ip", "-n", namespace, "link", "set", name, "mtu", "1500", "txqueuelen", str(QUEUE), "up")
    run("ip", "-n", namespace, "address", "add", address, "peer", peer, "dev", name)
    return descriptor


def carry(one: int, other: int, delay: float, rate: float, end: int) -> None:
    """Carry packets both ways, each `delay` seconds after it came, at `rate`, until `end` can be read."""
    held: dict[int, deque[tuple[float, bytes]]] = {one: deque(), other: deque()}
    towards = {one: other, other: one}
    # When the router has sent all that it has so far.
    free = {one: 0.0, other: 0.0}
    now = time.monotonic
    while True:
        dues = [queue[0][0] for queue in held.values() if queue]
        ready, _, _ = select.select((one, other, end), (), (), max(0.0, min(dues) - now()) if dues else None)
        if end in ready:
            return
        for source in ready:
            queue = held[source]
            with contextlib.suppress(BlockingIOError):
                # A turn each, so that neither direction waits for the end of the other's stream.
                for _ in range(64):
                    packet = os.read(source, LARGEST)
                    came = now()
                    if rate:
                        if free[source] > came + BUFFER:
                            continue
                        free[source] = came = max(came, free[source]) + len(packet) / rate
                    queue.append((came + delay, packet))
        for source, queue in held.items():
            while queue and queue[0][0] <= now():
                os.write(towards[source], queue.popleft()[1])


def main(arguments: Sequence[str]) -> int:
    """Join two namespaces until standard input ends, as it does when the benchmark dies."""
    name, near, near_address, far, far_address, delay, rate = arguments
    one = _device(f"{name}0", near, near_address, far_address)
    other = _device(f"{name}1", far, far_address, near_address)
    print("ready", flush=True)
    carry(one, other, float(delay), float(rate), sys.stdin.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
