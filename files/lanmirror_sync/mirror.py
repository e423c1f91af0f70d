"""What every part of a run works on."""

from __future__ import annotations

from dataclasses import dataclass

from lanmirror_sync.config import Config
from lanmirror_sync.memory import Memory
from lanmirror_sync.store import Store


@dataclass(frozen=True)
class Mirror:
    """What is wanted, where it stands, and what is remembered of it."""

    config: Config
    store: Store
    memory: Memory
