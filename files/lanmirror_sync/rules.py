"""The rules of a subdir: which of its packages may come in, by their names, their versions and their age.

A rule is a name, a name with versions (`pkg>=2,<2.3`), or `*` for all names. It stands in `block` or in `allow`. Where
both match a package, the more exact one counts: versions before a name, a name before `*`. Of two that are as exact,
`block` does. A package that no rule matches is shown when it is `min_age_days` old, and one that `allow` matches at any
age.

The standard library is all that is needed to check rules: role `conda_mirror` does so on the controller. Versions are
compared by py-rattler, which is loaded when an index has a name of which versions are blocked or allowed.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

ALL = "*"
HIDDEN, SHOWN = "hidden", "shown"
MOST_DAYS = 36500
# How exactly a rule matches.
NOTHING, EVERYTHING, NAME, VERSION = range(4)

# CEP 26: names of packages. Of versions and what is before them, no more than py-rattler reads: one sign between two
# parts, and no number beyond 64 bits.
A_VERSION = r"(?:[0-9]{1,18}!)?[0-9][0-9A-Za-z]*(?:[._][0-9A-Za-z]+)*(?:\+[0-9A-Za-z]+(?:[._][0-9A-Za-z]+)*)?"
CLAUSE = rf"(?:(?:==|<=|>=|<|>|~=){A_VERSION}|(?:=|!=){A_VERSION}(?:\.\*)?)"
RULE = re.compile(rf"([A-Za-z0-9_][A-Za-z0-9._-]*)((?:{CLAUSE})(?:[,|]{CLAUSE})*)?")
LARGE = re.compile("[0-9]{19}")


class RuleError(ValueError):
    """A rule that is none."""


def parse(rule: str) -> tuple[str, str]:
    """Return the name of a rule in lower case, and its versions as Conda writes them; "" for all of them.

    Raises:
        RuleError: it is no rule.
    """
    # Blanks may stand beside a sign alone.
    text = re.sub(r"\s*([<>=!~,|])\s*", r"\1", rule.strip())
    if text == ALL:
        return ALL, ""
    found = RULE.fullmatch(text)
    if found is None or LARGE.search(found[2] or ""):
        raise RuleError('it must be a name, a name with versions such as "pkg>=2,<2.3" or "pkg=2.1", or "*"')
    return found[1].lower(), found[2] or ""


@functools.lru_cache(1 << 10)
def _versions(text: str) -> Callable[[str], bool | None]:
    """Return what tells whether a version is among some; it returns None for one that cannot be read."""
    from rattler import Version, VersionSpec  # noqa: PLC0415 - it takes a sixth of a second

    spec = VersionSpec(text)

    def contains(version: str) -> bool | None:
        try:
            return spec.matches(Version(version))
        except Exception:  # its errors have no base of their own
            return None

    return contains


@dataclass(frozen=True)
class _Rules:
    """The rules of one list, by name, each with its own wording."""

    everything: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, texts: Iterable[str]) -> _Rules:
        """Return the rules of a list; RuleError for the first that is none."""
        everything, names = False, {}
        versions: dict[str, tuple[tuple[str, str], ...]] = {}
        for text in texts:
            name, found = parse(text)
            if name == ALL:
                everything = True
            elif found:
                versions[name] = (*versions.get(name, ()), (found, text))
            else:
                names[name] = text
        return cls(everything, names, versions)

    def match(self, name: str, version: str | None, *, unreadable: bool) -> tuple[int, str]:
        """Return how exactly a version of a package is matched, and by which rule.

        Args:
            name: in lower case.
            version: None to leave versions out of account.
            unreadable: whether a rule with versions matches a version that cannot be read.
        """
        for versions, text in self.versions.get(name, ()) if version is not None else ():
            found = _versions(versions)(version or "")
            if unreadable if found is None else found:
                return VERSION, text
        if name in self.names:
            return NAME, self.names[name]
        return (EVERYTHING, ALL) if self.everything else (NOTHING, "")


@dataclass(frozen=True)
class Rules:
    """The rules of a subdir.

    Attributes:
        min_age_days: how old a package must be; 0 for no matter.
        min_age_undated: whether a package without a date, or with a wrong one, is `hidden` or `shown` then.
        block: what is not shown.
        allow: what is shown all the same.
    """

    min_age_days: int = 0
    min_age_undated: str = HIDDEN
    block: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()

    @functools.cached_property
    def blocked(self) -> _Rules:
        """The rules of `block`."""
        return _Rules.of(self.block)

    @functools.cached_property
    def allowed(self) -> _Rules:
        """The rules of `allow`."""
        return _Rules.of(self.allow)

    @functools.cached_property
    def key(self) -> str:
        """What differs whenever the rules do."""
        undated = self.min_age_undated if self.min_age_days else ""
        told = repr((self.min_age_days, undated, sorted(self.block), sorted(self.allow)))
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    @property
    def has_versions(self) -> bool:
        """Whether py-rattler is needed."""
        return bool(self.blocked.versions or self.allowed.versions)

    def of_versions(self, name: str) -> bool:
        """Tell whether it takes a version to judge a package, by its name in lower case."""
        return name in self.blocked.versions or name in self.allowed.versions

    def verdict(self, name: str, version: str | None = None) -> tuple[bool | None, str]:
        """Return whether a rule shows a version (True) or hides it (False), None for neither, and the rule.

        Args:
            name: of the package, in lower case.
            version: None to ask about the package as a whole.
        """
        blocked, rule = self.blocked.match(name, version, unreadable=True)
        allowed, _ = self.allowed.match(name, version, unreadable=False)
        if blocked and blocked >= allowed:
            return False, rule
        return (True, "") if allowed else (None, "")

    def blocks(self, name: str) -> bool:
        """Tell whether nothing of a package is shown, whatever there is, by its name in lower case."""
        return not self.of_versions(name) and self.verdict(name)[0] is False

    def blocks_file(self, file_name: str) -> bool:
        """Tell whether a rule hides a file, by what its name says (CEP 26: name-version-build)."""
        name, version = [*file_name.rsplit("-", 2), "", ""][:2]
        return self.verdict(name.lower(), version if self.of_versions(name.lower()) else None)[0] is False
