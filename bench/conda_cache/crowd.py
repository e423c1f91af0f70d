"""Many clients at once for one file, each of whose bytes is compared with the right ones.

One process for all of them: a hundred curls would be more work for the machine than the site is.
"""

from __future__ import annotations

import selectors
import socket
import time
from dataclasses import dataclass, field

from bench.common.cost import LIMIT_SECONDS

CHUNK = 1 << 20
# Between two looks at what came: so long that a look is worth its while.
PAUSE = 0.01


@dataclass
class Client:
    """A client, and what it got.

    Attributes:
        first: seconds from the start of all until the first byte of the file.
        last: until the last one.
        wrong: the fault; "" while there is none.
    """

    connection: socket.socket
    first: float = 0.0
    last: float = 0.0
    wrong: str = ""
    head: bytes = b""
    got: int = field(default=-1)

    def take(self, data: bytes, seconds: float, right: bytes) -> bool:
        """Take what came, and return whether that is the end."""
        if not data:
            self.wrong = f"ended after {max(self.got, 0):,} bytes"
            return True
        if self.got < 0:
            self.head += data
            head, end, data = self.head.partition(b"\r\n\r\n")
            if not end:
                return False
            status, _, _ = head.partition(b"\r\n")
            if status.split()[1] != b"200":
                self.wrong = f"answers {status.split()[1].decode()}"
                return True
            self.got = 0
        if data and not self.got:
            self.first = seconds
        if data != right[self.got : self.got + len(data)]:
            self.wrong = f"other bytes, {self.got:,} from the beginning"
            return True
        self.got += len(data)
        self.last = seconds
        return self.got == len(right)


def fetch(host: str, port: int, path: str, right: bytes, count: int) -> list[Client]:
    """Have some clients ask for one file at the same time, and return what each got.

    Args:
        host: of the site.
        port: of the site.
        path: of the file.
        right: what the file is.
        count: how many clients.
    """
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    began = time.monotonic()
    clients = []
    with selectors.DefaultSelector() as waiting:
        for _ in range(count):
            client = Client(socket.create_connection((host, port)))
            client.connection.sendall(request)
            client.connection.setblocking(False)
            waiting.register(client.connection, selectors.EVENT_READ, client)
            clients.append(client)
        while waiting.get_map():
            if time.monotonic() - began > LIMIT_SECONDS:
                raise RuntimeError(f"{path}: clients wait still after {LIMIT_SECONDS} s")
            for key, _ in waiting.select(1):
                client = key.data
                try:
                    data = client.connection.recv(CHUNK)
                except ConnectionError:
                    data = b""
                if client.take(data, time.monotonic() - began, right):
                    waiting.unregister(client.connection)
                    client.connection.close()
            time.sleep(PAUSE)
    return clients
