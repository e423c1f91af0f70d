"""Whether devpi serves what it did before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import OpsError
from .asking import page

FEW = 3


def serves(url: str, state: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return pages that devpi serves now, a few of mirrors and a few of uploaded packages, and names on the latter."""
    wanted: dict[str, list[str]] = {path: [] for path in state["pages"]}
    wanted |= list(state["uploads"].items())[:FEW]
    if not wanted and "root/pypi" in state["mirrors"]:
        wanted = {"root/pypi/+simple/pip/": []}
    texts = {path: page(url, path) for path in wanted}
    return {path: [name for name in names if name in texts[path]] for path, names in wanted.items() if texts[path]}


def must_serve(url: str, before: Mapping[str, Sequence[str]]) -> None:
    """Return if devpi serves what it did before.

    Raises:
        OpsError: A page or a name on it is gone.
    """
    for path, names in before.items():
        text = page(url, path)
        if not text:
            raise OpsError(f"devpi does not serve /{path}, which it did before")
        for name in names:
            if name not in text:
                raise OpsError(f"devpi has no {name} on /{path}, where it was before")
