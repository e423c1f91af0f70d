"""What a service tells systemd (sd_notify(3)); nothing where systemd did not start it."""

from __future__ import annotations

import os
import socket


def alive() -> None:
    """Tell that the work goes on; a service that does not for WatchdogSec is started anew."""
    if where := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect(where.replace("@", "\0", 1) if where.startswith("@") else where)
            notify.sendall(b"WATCHDOG=1")
