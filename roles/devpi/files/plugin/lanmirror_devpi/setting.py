"""Settings that mirrors have beside devpi's own.

Not by devpi's hook for that (devpiserver_indexconfig_defaults): a change of any other setting would reset them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from devpi_server import mirror

from lanmirror_devpi.replace import replace


def add(keys: Collection[str], stored: Callable[[str, Any], Any]) -> None:
    """Make settings of mirrors.

    Args:
        keys: Their names.
        stored: Returns the value of one as it is stored; ValueError, with the reason, for a wrong one.
    """

    def get_possible_indexconfig_keys(self: Any) -> tuple[str, ...]:
        """Return the names of all settings."""
        return (*theirs(self), *keys)

    def normalize_indexconfig_value(self: Any, key: str, value: Any) -> Any:
        """Return the value of a setting as it is stored, and None for one that is not known."""
        if key not in keys:
            return normalize(self, key, value)
        try:
            return stored(key, value)
        except ValueError as error:
            raise self.InvalidIndexconfig([str(error)]) from None

    theirs = replace(mirror.MirrorCustomizer, "get_possible_indexconfig_keys", get_possible_indexconfig_keys)
    normalize = replace(mirror.MirrorCustomizer, "normalize_indexconfig_value", normalize_indexconfig_value)


def texts(value: Any) -> list[str]:
    """Return the texts of a list, or of a text with commas, without those that are empty."""
    parts = value.split(",") if isinstance(value, str) else value
    return [part.strip() for part in parts if isinstance(part, str) and part.strip()]
