"""Bring only such files over to a replica as the primary has.

devpi queues each link of each page, and goes through the links of the whole project for each: two dozen projects are
18,000 entries, behind which the files wait for hours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from devpi_server import replica

from lanmirror_devpi.replace import replace


def install() -> None:
    """Replace the method of devpi's that queues files."""
    theirs: Callable[..., None]

    def on_import_file(self: Any, keyfs: Any, serial: int, key: Any, val: Any, back_serial: int) -> None:  # noqa: PLR0917
        """Queue a file that the primary has, or that it has deleted.

        devpi itself does the same for what it finds at its start (replica.InitialQueueThread).
        """
        if val is None or val.get("last_modified"):
            theirs(self, keyfs, serial, key, val, back_serial)

    theirs = replace(replica.FileReplicationSharedData, "on_import_file", on_import_file)
