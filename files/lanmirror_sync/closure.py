"""Whether what is served of a channel installs from what is served: has each dependency a candidate? Pure.

That is less than a solver asks for: whether candidates go together is not looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import msgspec

from lanmirror_sync.choose import Spec, spec_of
from lanmirror_sync.hidden import read
from lanmirror_sync.repodata import BAD_JSON, Index

# Virtual packages (CEP 30) are what a machine has.
VIRTUAL = "__"


class _Needs(msgspec.Struct, gc=False):
    """What a record depends on."""

    depends: list[str] = []


_needs = msgspec.json.Decoder(_Needs)


@functools.lru_cache(1 << 16)
def _dependency(text: str) -> tuple[str, Spec] | None:
    """Return the name that a dependency is of, and the rest of it; None where it cannot be read."""
    try:
        return spec_of(text)
    except Exception:  # py-rattler's errors have no base of their own
        return None


class Offers:
    """What a machine of one platform finds: versions and builds, by name."""

    def __init__(self) -> None:
        self._found: dict[str, set[tuple[str, str]]] = {}
        self._met: dict[str, bool] = {}

    def add(self, index: Index) -> None:
        """Take in what an index names."""
        self._met = {}
        for _, _, file_name, raw in index.records():
            told = read(raw)
            of_name = self._found.setdefault(index.packages[file_name].name.lower(), set())
            of_name.add((told.version, told.build or ""))

    def meet(self, dependency: str) -> bool:
        """Tell whether something is there that satisfies a dependency."""
        if dependency.startswith(VIRTUAL):
            return True
        if dependency not in self._met:
            found = _dependency(dependency)
            self._met[dependency] = found is not None and any(
                found[1].matches(version, build, unreadable=False) for version, build in self._found.get(found[0], ())
            )
        return self._met[dependency]


def unmet(index: Index, machines: Sequence[Offers]) -> Iterator[tuple[str, str]]:
    """Yield the packages of an index with each dependency that no machine finds: file name and MatchSpec."""
    for _, _, file_name, raw in index.records():
        try:
            depends = _needs.decode(raw).depends
        except BAD_JSON:  # of a wheel, which has them elsewhere
            continue
        for dependency in depends:
            if not any(machine.meet(dependency) for machine in machines):
                yield file_name, dependency
