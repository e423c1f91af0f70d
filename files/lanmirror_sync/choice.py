"""Which packages of a subdir are held, as an entry's `hold` says it where it is a mapping.

The standard library is all that is needed to check it: role `conda_mirror` does so on the controller.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import astuple, dataclass

from lanmirror_sync.rules import A_VERSION, CLAUSE, LARGE

ALL = "*"

_NAME = r"[A-Za-z0-9_*][A-Za-z0-9_.*-]*"
_BUILD = r"[A-Za-z0-9_.+*]+"
_CLAUSES = rf"{CLAUSE}(?:[,|]{CLAUSE})*"
# With a build, Conda reads "=2.1" as 2.1 alone, and not as all below it: that is written as it is meant.
_COMPARED = rf"(?:(?:==|<=|>=|<|>|~=){A_VERSION}|!={A_VERSION}(?:\.\*)?)"
_PLAIN = rf"(?:{A_VERSION}(?:\.\*)?|\*)"
SPEC = re.compile(
    rf"(?P<name>{_NAME})(?:{_CLAUSES}| {_PLAIN}(?: {_BUILD})?|={_PLAIN}={_BUILD}|=={A_VERSION}={_BUILD}"
    rf"|{_COMPARED}(?:[,|]{_COMPARED})* {_BUILD})?"
)


class SpecError(ValueError):
    """A MatchSpec that is none, or that says more than is looked at here."""


def parse(text: str) -> str:
    """Return a MatchSpec with blanks only where they mean something.

    Raises:
        SpecError: it is none of a name, or a pattern of names, with a version and a build.
    """
    plain = re.sub(r"\s*([<>=!~,|])\s*", r"\1", re.sub(r"\s+", " ", text.strip()))
    if not SPEC.fullmatch(plain) or LARGE.search(plain):
        raise SpecError(
            "it must be a MatchSpec of a name, or of a pattern of names, with a version and a build where they matter, "
            'such as "numpy", "r-*", "numpy>=1.26,<3", "python 3.12.*" or "pytorch=*=*cuda*"'
        )
    return plain


@dataclass(frozen=True)
class Choice:
    """What an entry says of the packages that are held.

    Attributes:
        include: MatchSpecs of what is held.
        exclude: MatchSpecs of what is not held, whatever else says that it is.
        keep_latest: how many versions of each name; 0 for all.
        newer_than: packages before this moment (Unix time, seconds) are not held; None for no matter.
        max_size: larger packages are not held, bytes; 0 for no matter.
        keep: paths of keep-sets, or of folders of them.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    keep_latest: int = 0
    newer_than: float | None = None
    max_size: int = 0
    keep: tuple[str, ...] = ()

    @functools.cached_property
    def key(self) -> str:
        """What differs whenever the choice does."""
        return hashlib.sha256(repr(astuple(self)).encode()).hexdigest()[:16]

    @property
    def selects(self) -> bool:
        """Whether anything is held beside keep-sets."""
        narrowed = self.keep_latest or self.max_size or self.newer_than is not None
        return bool(self.include or not self.keep or narrowed)
