"""A mirror with the setting `flat`: its upstream is one page, at its `mirror_url`, with the files of all projects.

Vendors have such pages, and `pip --find-links` takes them. A project has the files of that page that are its own.
"""

from __future__ import annotations

from typing import Any

from devpi_server import mirror
from devpi_server.model import ensure_boolean

from lanmirror_devpi.replace import replace

FLAT = "flat"


def install() -> None:
    """Make `flat` a stored setting of mirrors.

    Not by devpi's hook for that (devpiserver_indexconfig_defaults): a change of any other setting would reset it.
    """

    def get_possible_indexconfig_keys(self: Any) -> tuple[str, ...]:
        """Return the names of the settings that mirrors have beside devpi's own."""
        return (*theirs(self), FLAT)

    def normalize_indexconfig_value(self: Any, key: str, value: Any) -> Any:
        """Return the value of a setting as it is stored, and None for one that is not known."""
        return ensure_boolean(value) if key == FLAT else normalize(self, key, value)

    theirs = replace(mirror.MirrorCustomizer, "get_possible_indexconfig_keys", get_possible_indexconfig_keys)
    normalize = replace(mirror.MirrorCustomizer, "normalize_indexconfig_value", normalize_indexconfig_value)
