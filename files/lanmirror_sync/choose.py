"""What of an index is held, where a `Choice` says it. Pure.

What is held is what `include` selects, narrowed by `newer_than`, `max_size` and `keep_latest`, and with it the
packages of the keep-sets, which nothing narrows. `exclude` goes before both. Without `include`, every name is
selected, unless `keep` stands without any of the three.

MatchSpecs are read, and versions compared, by py-rattler.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lanmirror_sync.choice import ALL, SPEC, Choice
from lanmirror_sync.hidden import date, read
from lanmirror_sync.repodata import Index


@dataclass(frozen=True)
class Spec:
    """Of a MatchSpec, what is matched beside the name."""

    versions: Callable[[str], bool | None] | None
    builds: re.Pattern[str] | None

    def matches(self, version: str, build: str, *, unreadable: bool) -> bool:
        """Tell whether a package matches; `unreadable` is what counts where its version cannot be read."""
        if self.builds is not None and not self.builds.fullmatch(build):
            return False
        found = self.versions(version) if self.versions is not None else True
        return unreadable if found is None else found


class Specs:
    """Some MatchSpecs."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._names: list[tuple[re.Pattern[str], Spec]] = []
        self._of: dict[str, tuple[Spec, ...]] = {}
        for text in texts:
            found = SPEC.fullmatch(text)
            name = (found["name"] if found else text).lower()
            self._names.append((_pattern(name), spec_of(text)[1] if name != text.lower() else Spec(None, None)))

    def of(self, name: str) -> tuple[Spec, ...]:
        """Return those of a name in lower case."""
        if name not in self._of:
            self._of[name] = tuple(spec for names, spec in self._names if names.fullmatch(name))
        return self._of[name]


def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in glob.split("*")))


def spec_of(text: str) -> tuple[str, Spec]:
    """Return the name of a MatchSpec in lower case, and the rest of it, as py-rattler reads it, with its errors."""
    from rattler import MatchSpec  # noqa: PLC0415 - it takes a sixth of a second

    spec = MatchSpec(text, exact_names_only=False)
    return spec.name.normalized, Spec(
        _versions(spec.version) if spec.version not in (None, ALL) else None,
        _pattern(spec.build) if spec.build not in (None, ALL) else None,
    )


def _versions(text: str) -> Callable[[str], bool | None]:
    """Return what tells whether a version is among some; it returns None for one that cannot be read."""
    from rattler import VersionSpec  # noqa: PLC0415 - likewise

    spec = VersionSpec(text)

    @functools.lru_cache(1 << 16)
    def contains(version: str) -> bool | None:
        found = _version(version)
        return None if found is None else spec.matches(found)

    return contains


@functools.lru_cache(1 << 16)
def _version(text: str) -> Any:
    """Return a version that can be compared; None for one that cannot be read."""
    from rattler import Version  # noqa: PLC0415 - likewise

    try:
        return Version(text)
    except Exception:  # its errors have no base of their own
        return None


def barred(choice: Choice, index: Index, out: Collection[str]) -> set[str]:
    """Return what of an index may not be held: file names.

    Args:
        choice: of the subdir.
        index: the upstream's.
        out: file names that are excluded for the whole mirror, or hidden by rules.
    """
    specs, found = Specs(choice.exclude), {*out}
    for _, _, file_name, raw in index.records() if choice.exclude else ():
        of_name = specs.of(index.packages[file_name].name.lower())
        if of_name and file_name not in found:
            told = read(raw)
            if any(spec.matches(told.version, told.build or "", unreadable=True) for spec in of_name):
                found.add(file_name)
    return found


def selected(choice: Choice, index: Index, out: Collection[str]) -> set[str]:
    """Return what of an index is held beside keep-sets: file names.

    Args:
        choice: of the subdir.
        index: the upstream's.
        out: what may not be held.
    """
    if not choice.selects:
        return set()
    specs = Specs(choice.include or [ALL])
    found: dict[str, dict[str, list[str]]] = {}
    for _, _, file_name, raw in index.records():
        package = index.packages[file_name]
        name = package.name.lower()
        of_name = specs.of(name)
        if not of_name or file_name in out or (choice.max_size and (package.size or 0) > choice.max_size):
            continue
        told = read(raw)
        if not any(spec.matches(told.version, told.build or "", unreadable=False) for spec in of_name):
            continue
        if choice.newer_than is not None and (date(told) or 0) < choice.newer_than:
            continue
        found.setdefault(name, {}).setdefault(told.version, []).append(file_name)
    if choice.keep_latest:
        found = {name: _latest(versions, choice.keep_latest) for name, versions in found.items()}
    return {name for versions in found.values() for names in versions.values() for name in names}


def _latest(versions: Mapping[str, list[str]], count: int) -> dict[str, list[str]]:
    """Return so many of the latest versions; those that are the same, such as 1.0 and 1.0.0, count as one.

    What cannot be read as a version is older than all that can.
    """
    readable = [(found, text) for text in versions if (found := _version(text)) is not None]
    readable.sort(key=lambda pair: pair[0], reverse=True)
    groups = [[text for _, text in pairs] for _, pairs in itertools.groupby(readable, key=lambda pair: pair[0])]
    groups += [[text] for text in sorted(versions) if _version(text) is None]
    return {text: versions[text] for texts in groups[:count] for text in texts}
