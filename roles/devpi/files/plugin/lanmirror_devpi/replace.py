"""Put a function of ours in the place of one of devpi's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


class ReplaceError(Exception):
    """This devpi-server is not the one that the plugin was made for."""


def replace(owner: Any, name: str, ours: Callable[..., Any]) -> Callable[..., Any]:
    """Put `ours` in the place of `owner.name`, and return what stood there.

    Args:
        owner: Class or module of devpi's.
        name: Of a function of it, with the same parameters as ours, by name and in order.
        ours: The new function.

    Raises:
        ReplaceError: The function is gone, or takes other parameters: devpi is of another version than the pinned one.
    """
    theirs = getattr(owner, name, None)
    where = f"{getattr(owner, '__module__', '')}.{getattr(owner, '__qualname__', owner)}.{name}"
    if not callable(theirs):
        raise ReplaceError(f"this devpi-server has no {where}: install the version that the role pins")
    has, wanted = list(inspect.signature(theirs).parameters), list(inspect.signature(ours).parameters)
    if has != wanted:
        raise ReplaceError(
            f"{where} of this devpi-server takes {has}, not {wanted}: install the version that the role pins"
        )
    setattr(owner, name, ours)
    return theirs  # type: ignore[no-any-return]  # callable, as was just seen
