"""A mirror with the setting `flat`: its upstream is one page, at its `mirror_url`, with the files of all projects.

Vendors have such pages, and `pip --find-links` takes them. A project has the files of that page that are its own.
"""

from __future__ import annotations

from devpi_server.model import ensure_boolean

from lanmirror_devpi import setting

FLAT = "flat"


def install() -> None:
    """Make `flat` a setting of mirrors."""
    setting.add([FLAT], lambda _, value: ensure_boolean(value))
