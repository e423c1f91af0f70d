"""Write down which upstreams answer, and which gave something wrong, for the watchdog."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Told:
    """The file that says how each upstream answered last; it is written when that changes.

    By index, it has `since` and `why` of all its upstreams together; where there are several, or near places of files,
    `places` has the same by URL. `wrong` has by URL what was wrong last: `since`, `why` and `count`, since the start of
    devpi. What is no place of the index any more is forgotten when another one is asked.
    """

    def __init__(self, path: str) -> None:
        """Write to `path`; nowhere where it is empty."""
        self.path = Path(path) if path else None
        self._told: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def tell(self, index: str, why: str, among: Sequence[str]) -> None:
        """Write down how the upstreams of an index answered: `why` none of them did, or "" when one did.

        `among` are all places that the index has now.
        """

        def change(told: dict[str, Any]) -> bool:
            is_less = forget_others(told, among)
            if told["why"] == why:
                return is_less
            told |= {"since": time.time(), "why": why}
            return True

        self._change(index, change)

    def tell_place(self, index: str, url: str, why: str, among: Sequence[str]) -> None:
        """Write down how one of several places answered, `among` all that the index has now."""

        def change(told: dict[str, Any]) -> bool:
            is_less = forget_others(told, among)
            places = told.setdefault("places", {})
            if places.get(url, {}).get("why") == why:
                return is_less
            places[url] = {"since": time.time(), "why": why}
            return True

        self._change(index, change)

    def tell_wrong(self, index: str, url: str, why: str) -> None:
        """Write down what was wrong that a place gave."""

        def change(told: dict[str, Any]) -> bool:
            wrong = told.setdefault("wrong", {})
            wrong[url] = {"since": time.time(), "why": why, "count": wrong.get(url, {}).get("count", 0) + 1}
            return True

        self._change(index, change)

    def _change(self, index: str, change: Callable[[dict[str, Any]], bool]) -> None:
        with self._lock:
            if self.path is None:
                return
            # Where nothing was asked for yet, nothing is known: that is written down as well.
            told = self._told.setdefault(index, {"since": time.time(), "why": None})
            if change(told):
                new = self.path.with_name(f"{self.path.name}.new")
                new.write_text(json.dumps(self._told), encoding="utf-8")
                new.replace(self.path)


def forget_others(told: dict[str, Any], among: Sequence[str]) -> bool:
    """Forget what was told of other places than these; return whether there was something."""
    gone = [(kind, url) for kind in ("places", "wrong") for url in told.get(kind, {}) if url not in among]
    for kind, url in gone:
        del told[kind][url]
    return bool(gone)
