"""An upstream that goes on: new packages, other bytes under old names, packages that leave."""

from __future__ import annotations

import random

from tests.engine.lab import Lab
from tests.upstream import channel

# So many of its packages an upstream keeps; the oldest leave.
KEPT = 12


class Churn:
    """The versions of `pkgs/main`, one after the other."""

    def __init__(self, lab: Lab, dice: random.Random) -> None:
        self._channel = lab.tree / "pkgs/main"
        self._dice = dice
        self._count = 0
        self._there: list[channel.Spec] = []

    def turn(self) -> None:
        """Make the next version of the upstream: three packages come, two change, and in time two leave."""
        self._count += 1
        news = [self._spec(f"churn{self._count}{letter}", subdir) for letter, subdir in
                (("a", "linux-64"), ("b", "linux-64"), ("c", "noarch"))]  # fmt: skip
        changed = [self._spec(spec.name, spec.subdir) for spec in self._there[-2:]]
        channel.publish(self._channel, *news, *changed)
        self._there += news
        for spec in self._there[:2] if len(self._there) > KEPT else ():
            channel.retract(self._channel, spec.subdir, spec.file_name)
            self._there.remove(spec)

    def _spec(self, name: str, subdir: str) -> channel.Spec:
        data = self._dice.randbytes(self._dice.choice((200, 3_000, 60_000)))
        return channel.Spec(name, subdir=subdir, files={f"share/{name}": data})
