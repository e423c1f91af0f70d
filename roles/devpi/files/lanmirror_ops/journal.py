"""What a service tells: the journal, and systemd."""

from __future__ import annotations

import os
import socket
import sys

ERROR, WARNING, NOTICE = 3, 4, 5


def tell(priority: int, text: str) -> None:
    """Write a line to the journal (sd-daemon(3): its priority stands before it)."""
    print(f"<{priority}>{text}", file=sys.stderr, flush=True)


def alive() -> None:
    """Tell systemd that the loop goes round (sd_notify(3)); without that for WatchdogSec, it is started anew."""
    if where := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect(where.replace("@", "\0", 1) if where.startswith("@") else where)
            notify.sendall(b"WATCHDOG=1")
