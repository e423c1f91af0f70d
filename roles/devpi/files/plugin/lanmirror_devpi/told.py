"""Write down which upstreams answer, for the watchdog."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any


class Told:
    """The file that says how each upstream answered last; it is written when that changes."""

    def __init__(self, path: str) -> None:
        """Write to `path`; nowhere where it is empty."""
        self.path = Path(path) if path else None
        self._told: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def tell(self, index: str, why: str) -> None:
        """Write down how the upstream of an index answered: `why` it did not, or "" when it did."""
        with self._lock:
            if self.path is not None and self._told.get(index, {}).get("why") != why:
                self._told[index] = {"since": time.time(), "why": why}
                new = self.path.with_name(f"{self.path.name}.new")
                new.write_text(json.dumps(self._told), encoding="utf-8")
                new.replace(self.path)
