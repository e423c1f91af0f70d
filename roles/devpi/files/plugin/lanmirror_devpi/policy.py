"""Which files of a mirror are shown, by the rules of its index. Pure: nothing here knows devpi or the clock.

A rule is a name, a name with versions as in a requirement (`pkg>=2,<2.3`), or `*` for all names. It stands in `block`
or in `allow`. Where both match a file, the more exact one counts: versions before a name, a name before `*`. Of two
that are as exact, `block` does. What no rule matches is shown when it is `min_age_days` old; what `allow` lets in is
shown whatever its age. What the list of known malware names is not shown, unless `allow` has that very version.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from datetime import UTC, datetime
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from lanmirror_devpi.links import version_of
from lanmirror_devpi.malware import NONE, Listed, same
from lanmirror_devpi.page import File, Page

DAY = 86400.0
ALL = "*"
HIDDEN, SHOWN = "hidden", "shown"
MAX_DAYS = 36500


class RuleError(ValueError):
    """A rule that is none."""


class Match(enum.IntEnum):
    """How exactly a rule matches a file."""

    NONE = 0
    ALL = 1
    NAME = 2
    VERSION = 3


@dataclass(frozen=True)
class Refusal:
    """Why a file is not shown, in words for people, and from when on it is, seconds since the epoch; None for never."""

    why: str
    until: float | None = None


def parse(rule: str) -> tuple[str, SpecifierSet | None]:
    """Return the normalised name of a rule, and its versions; None for all of them.

    Raises:
        RuleError: It is no rule.
    """
    if rule == ALL:
        return ALL, None
    try:
        found = Requirement(rule)
    except InvalidRequirement:
        raise RuleError("it must be a name, a name with versions such as pkg>=2,<2.3, or *") from None
    if found.extras or found.marker or found.url:
        raise RuleError("it must be a name or a name with versions, without extras, markers and URLs")
    return canonicalize_name(found.name), found.specifier if found.specifier else None


@dataclass(frozen=True)
class Rules:
    """The rules of one list, by name, each with its own wording."""

    everything: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, tuple[tuple[SpecifierSet, str], ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, texts: Iterable[str]) -> Rules:
        """Return the rules of a list; RuleError for the first that is none."""
        everything, names = False, {}
        versions: dict[str, tuple[tuple[SpecifierSet, str], ...]] = {}
        for text in texts:
            name, found = parse(text)
            if name == ALL:
                everything = True
            elif found is None:
                names[name] = text
            else:
                versions[name] = (*versions.get(name, ()), (found, text))
        return cls(everything, names, versions)

    def match(self, project: str, version: str | None, *, unreadable: bool) -> tuple[Match, str]:
        """Return how exactly a version of a project is matched, and by which rule.

        Args:
            project: Its normalised name.
            version: Its version; None where the file's name tells none.
            unreadable: Whether a rule with versions matches a version that cannot be read.
        """
        if ranges := self.versions.get(project):
            try:
                readable = Version(version or "")
            except InvalidVersion:
                if unreadable:
                    return Match.VERSION, ranges[0][1]
            else:
                for versions, text in ranges:
                    if versions.contains(readable, prereleases=True):
                        return Match.VERSION, text
        if project in self.names:
            return Match.NAME, self.names[project]
        return (Match.ALL, ALL) if self.everything else (Match.NONE, "")

    def exact(self, project: str) -> list[SpecifierSet]:
        """Return those versions of a project that a rule gives one by one, `pkg==1.2`."""
        return [versions for versions, _ in self.versions.get(project, ()) if is_exact(versions)]

    def concern(self, project: str) -> bool:
        """Return whether a rule may match a file of a project."""
        return self.everything or project in self.names or project in self.versions


def is_exact(versions: SpecifierSet) -> bool:
    """Return whether this is one version."""
    return len(versions) == 1 and all(
        one.operator in {"==", "==="} and not one.version.endswith(".*") for one in versions
    )


@dataclass(frozen=True)
class Policy:
    """The rules of an index.

    Attributes:
        index: user/index, for messages.
        min_age_days: How old a file must be; 0 for no matter.
        undated: Whether a file without a date of its upload, or with a wrong one, is `hidden` or `shown` then.
        block: What is not shown.
        allow: What is shown all the same.
        malware: The list of known malware.
        key: Differs whenever the rules do; "" where there are none.
    """

    index: str = ""
    min_age_days: int = 0
    undated: str = HIDDEN
    block: Rules = field(default_factory=Rules)
    allow: Rules = field(default_factory=Rules)
    malware: Listed = NONE
    key: str = ""

    @classmethod
    def of(
        cls,
        index: str,
        min_age_days: int,
        undated: str,
        block: Iterable[str],
        allow: Iterable[str],
        *,
        listed: Listed = NONE,
        mark: str = "",
    ) -> Policy:
        """Return the rules of an index; RuleError for the first that is none.

        Args:
            index: see the class.
            min_age_days: see the class.
            undated: see the class.
            block: A rule each.
            allow: A rule each.
            listed: The list of known malware.
            mark: Differs where that list says something else of what is here.
        """
        block, allow = list(block), list(allow)
        if not (block or min_age_days or listed.names):
            # There is nothing that `allow` would have to let in.
            return cls(index)
        told = repr((min_age_days, undated if min_age_days else "", sorted(block), sorted(allow)))
        if listed.names:
            told = f"{told} {mark}"
        key = hashlib.sha256(told.encode()).hexdigest()[:16]
        return cls(index, min_age_days, undated, Rules.of(block), Rules.of(allow), listed, key)

    def by_rule(self, project: str, version: str | None) -> tuple[bool | None, str]:
        """Return whether a version is shown (True) or hidden (False), None for neither, and by what."""
        project = canonicalize_name(project)
        if (ids := self.malware.ids(project, version)) and not self._allows_just(project, version):
            return False, f"{ids[0]} of the list of known malware"
        return self._by_lists(project, version)

    def _by_lists(self, project: str, version: str | None) -> tuple[bool | None, str]:
        """Return the same of `block` and `allow` alone, for a normalised name."""
        blocked, rule = self.block.match(project, version, unreadable=True)
        allowed, _ = self.allow.match(project, version, unreadable=False)
        if blocked and blocked >= allowed:
            return False, f'rule "{rule}" of {self.index}'
        return (True, "") if allowed else (None, "")

    def _allows_just(self, project: str, version: str | None) -> bool:
        """Return whether a rule of `allow` is this version, and no other: somebody has looked at it."""
        readable = same(version or "")
        return isinstance(readable, Version) and any(
            versions.contains(readable, prereleases=True) for versions in self.allow.exact(project)
        )

    def blocks_all_of(self, project: str) -> bool:
        """Return whether no version of a project is shown, whatever there is."""
        name = canonicalize_name(project)
        if self.malware.names_all_of(name) and not self.allow.exact(name):
            return True
        return self._by_lists(name, None)[0] is False and name not in {*self.block.versions, *self.allow.versions}

    def concerns(self, project: str) -> bool:
        """Return whether a file of a project may be hidden."""
        name = canonicalize_name(project)
        return bool(self.min_age_days) or name in self.malware.names or self.block.concern(name)

    def refusal(self, project: str, name: str, uploaded: Any, now: float, *, aged: bool = True) -> Refusal | None:
        """Return why a file is not shown, None where it is.

        Args:
            project: That it is of.
            name: Of the file.
            uploaded: When it was uploaded, as its page tells (PEP 700).
            now: Seconds since the epoch.
            aged: Whether its age counts.
        """
        verdict, rule = self.by_rule(project, version_of(canonicalize_name(project), name))
        if verdict is False:
            return Refusal(f"{name} is blocked here: {rule}")
        if verdict or not (aged and self.min_age_days):
            return None
        at = moment(uploaded)
        days = f"{self.min_age_days} day{'s' * (self.min_age_days != 1)}"
        if at is None:
            if self.undated == SHOWN:
                return None
            return Refusal(f"{name} tells no date of its upload, and {self.index} shows files of {days} or more")
        until = at + self.min_age_days * DAY
        if until <= now:
            return None
        return Refusal(
            f"{name} is too new: {self.index} shows files of {days} or more, this one from {day(until)}", until
        )


def moment(told: Any) -> float | None:
    """Return a time as pages tell it (ISO 8601, UTC where no zone is told), seconds since the epoch; None for none."""
    if not isinstance(told, str):
        return None
    try:
        at = datetime.fromisoformat(told)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def day(at: float) -> str:
    """Return a time for people, in UTC."""
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):
        return "a day that never comes"


@dataclass(frozen=True)
class Shown:
    """A page by the rules.

    Attributes:
        page: The page with what is shown of it; the page itself where that is all.
        hidden: How many files are not shown.
        comes: When hidden files come of age, in order (seconds since the epoch).
    """

    page: Page
    hidden: int
    comes: tuple[float, ...]


def shown(policy: Policy, page: Page, now: float) -> Shown:
    """Return a page by the rules: its files, and the versions that it tells."""
    if not policy.concerns(page.name):
        return Shown(page, 0, ())
    files: list[File] = []
    comes = set()
    for file in page.files:
        refusal = policy.refusal(page.name, file.name, file.told.get("upload-time"), now)
        if refusal is None:
            files.append(file)
        elif refusal.until is not None:
            comes.add(refusal.until)
    hidden = len(page.files) - len(files)
    if not hidden:
        return Shown(page, 0, ())
    told = dict(page.told)
    if "versions" in told:
        told["versions"] = versions_of(page.name, told["versions"], files)
    return Shown(replaced(page, files=tuple(files), told=told), hidden, tuple(sorted(comes)))


def versions_of(project: str, told: Iterable[str], files: Iterable[File]) -> list[str]:
    """Return the versions of a page that have a file, so that a resolver takes none that it cannot get."""
    there = {same(found) for file in files if (found := version_of(project, file.name))}
    return [version for version in told if same(version) in there]


@dataclass(frozen=True)
class Used:
    """A file that clients have asked for.

    Attributes:
        project: That it is of.
        name: Of the file.
        uploaded: When it was uploaded, as its page tells (PEP 700).
        at: When it was asked for last, seconds since the epoch.
    """

    project: str
    name: str
    uploaded: Any
    at: float


def hidden_by_change(
    before: Policy, after: Policy, files: Iterable[Used], now: float
) -> Iterator[tuple[Used, Refusal]]:
    """Yield the files that new rules hide and the old ones show, by project and name, and why."""
    for file in sorted(files, key=lambda file: (canonicalize_name(file.project), file.name)):
        told = file.project, file.name, file.uploaded, now
        refusal = after.refusal(*told)
        if refusal is not None and before.refusal(*told) is None:
            yield file, refusal
