"""Pure decisions: what to fetch, what to put in place of what, and what to delete. No I/O."""

from __future__ import annotations

import fnmatch
import heapq
import random
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lanmirror_sync.repodata import Package

PACKAGE_SUFFIXES = (".conda", ".tar.bz2", ".whl")
# What is known of a file: the digest of its bytes, when it was verified and not touched since; else its size.
Known = bytes | int


def _nothing(_: str) -> bool:
    return False


@dataclass(frozen=True)
class Hidden:
    """What of an index is hidden by the rules of its subdir, by file name; see `hidden.judge`.

    Attributes:
        blocked: what a rule hides.
        young: what is too new, or tells no date, and may be shown later: what is held of it stays.
        told: why, for clients; not for names that are blocked as a whole, which the web server knows by itself.
        comes: when the next of the young is to be shown (Unix time, seconds); None for never.
        blocks_file: tells whether a rule hides a file that the index does not name.
    """

    blocked: frozenset[str] = frozenset()
    young: frozenset[str] = frozenset()
    told: Mapping[str, str] = field(default_factory=dict)
    comes: float | None = None
    blocks_file: Callable[[str], bool] = _nothing


ALL_SHOWN = Hidden()


@dataclass(frozen=True)
class Plan:
    """What one subdir needs before the upstream's index can be served.

    Attributes:
        held: how many packages are there with the bytes of the index.
        held_bytes: their size, as far as the index tells it.
        check: packages of which a file of the right size is there that was never verified: its hash decides
            whether it is fetched.
        fetch: packages that are not there.
        replace: packages of which a file with other bytes is there.
        excluded: file names that are left out because the configuration says so, by its rules too.
        orphans: files of packages that the index does not name, or that are excluded and not to be shown later.
        unwanted: of these, the ones that the configuration excludes.
        hidden: what its rules hide.
        chosen: file names of what is to be held, None for all.
        wrong: names of files that the index names and nobody chose, and that are there with other bytes.
    """

    held: int
    held_bytes: int
    check: tuple[Package, ...]
    fetch: tuple[Package, ...]
    replace: tuple[Package, ...]
    excluded: frozenset[str]
    orphans: tuple[str, ...]
    unwanted: frozenset[str] = frozenset()
    hidden: Hidden = ALL_SHOWN
    chosen: frozenset[str] | None = None
    wrong: frozenset[str] = frozenset()

    def is_chosen(self, file_name: str) -> bool:
        """Tell whether a package that the index names is to be held."""
        return self.chosen is None or file_name in self.chosen

    @property
    def files(self) -> int:
        """How many files are to be fetched."""
        return len(self.fetch) + len(self.replace)

    @property
    def download_bytes(self) -> int:
        """The bytes to fetch, as far as the index tells them."""
        return sum(package.size or 0 for package in (*self.fetch, *self.replace))


def known_files(
    files: Iterable[tuple[str, int, int]],
    verified: Iterable[tuple[str, int, int, bytes]],
    packages: Mapping[str, Package] | None = None,
) -> dict[str, Known]:
    """Return what is known of each file of a folder, by name; see `Known`.

    Args:
        files: name, size and mtime_ns of the files that are there.
        verified: name, size, mtime_ns and digest of those that were verified. A file that was touched since
            is one of which nothing is known.
        packages: those of the index. Where one has another size than the file, the file is not it, whatever
            the hash says: a client would refuse it.
    """
    found: dict[str, Any] = {name: (size, mtime_ns) for name, size, mtime_ns in files}
    for name, size, mtime_ns, digest in verified:
        package = packages.get(name) if packages else None
        if found.get(name) == (size, mtime_ns) and (package is None or package.size in (None, size)):
            found[name] = digest
    for name, known in found.items():
        if isinstance(known, tuple):
            found[name] = known[0]
    return found


def compare(
    packages: Mapping[str, Package],
    files: Mapping[str, Known],
    exclude: Collection[str],
    hidden: Hidden = ALL_SHOWN,
    chosen: frozenset[str] | None = None,
    *,
    on_demand: bool = False,
) -> Plan:
    """Compare an upstream's index with what is held.

    Args:
        packages: those of the upstream's index, by file name.
        files: what is known of each file in the subdir, by file name.
        exclude: package names, or patterns of them as in `fnmatch`, that are not mirrored.
        hidden: what the rules of the subdir hide.
        chosen: file names of what is to be held, None for all.
        on_demand: whether the rest is named all the same; else it is left out, as what is excluded.
    """
    is_excluded, out = matcher(exclude), hidden.blocked | hidden.young
    held = held_bytes = 0
    check: list[Package] = []
    fetch: list[Package] = []
    replace: list[Package] = []
    excluded, spare, wrong = set(), set(), set()
    for file_name, package in packages.items():
        known = files.get(file_name)
        is_chosen = chosen is None or file_name in chosen
        if is_excluded(package.name) or file_name in out or not (is_chosen or on_demand):
            excluded.add(file_name)
            continue
        if not is_chosen:
            if known is None:
                continue
            if _is_other(package, known):
                wrong.add(file_name)
                continue
            spare.add(file_name)
        if known is None:
            fetch.append(package)
        elif _is_other(package, known):
            replace.append(package)
        elif known == bytes.fromhex(package.digest):
            held += 1
            held_bytes += package.size or 0
        else:  # never verified; or by another algorithm, as when an upstream comes to have sha256 beside md5
            check.append(package)
    orphans = tuple(
        name
        for name in files
        if name.endswith(PACKAGE_SUFFIXES)
        and (name not in packages or name in excluded or name in spare)
        and name not in hidden.young
    )
    unwanted = frozenset(
        name
        for name in orphans
        if name in excluded or name in spare or is_excluded(package_of(name)) or hidden.blocks_file(name)
    )
    return Plan(
        held, held_bytes, tuple(check), tuple(fetch), tuple(replace), frozenset(excluded), orphans, unwanted, hidden,
        chosen, frozenset(wrong),
    )  # fmt: skip


def _is_other(package: Package, known: Known) -> bool:
    """Tell whether a file is known to have other bytes than the index says."""
    if isinstance(known, int):
        return package.size not in (None, known)
    wanted = bytes.fromhex(package.digest)
    return len(known) == len(wanted) and known != wanted


def matcher(patterns: Collection[str]) -> Callable[[str], object]:
    """Return what tells whether a name is one of some, or matches one of them as in `fnmatch`."""
    return re.compile("|".join(map(fnmatch.translate, patterns)) or "(?!)").match


def package_of(file_name: str) -> str:
    """Return the name of the package that a file is of (CEP 26: name-version-build, and only the name has hyphens)."""
    return file_name.rsplit("-", 2)[0]


def in_order(packages: Sequence[Package], at_once: int) -> list[Package]:
    """Return packages in the order to fetch them in: in none, but for small ones at both ends.

    In none, since what an upstream refuses often stands side by side, and would look like a host that refuses
    everything. Small ones first, since a connection is slow at first (RFC 5681, 3.1), and last, so that none of the
    connections has much to do when the others are done.

    Args:
        packages: what is to be fetched.
        at_once: the number of connections.
    """
    small = heapq.nsmallest(2 * at_once, packages, key=lambda package: package.size or 0)
    names = {package.file_name for package in small}
    others = [package for package in packages if package.file_name not in names]
    random.Random(len(packages)).shuffle(others)  # noqa: S311 - nobody is to be surprised
    return [*small[::2], *others, *small[1::2][::-1]]


def due(
    ledger: Mapping[str, float], orphans: Iterable[str], now: float, grace_hours: float
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Decide which files that no index names any longer have had their grace.

    Args:
        ledger: since when (Unix time, seconds) each file has been named by no index, as of the last run.
        orphans: the files that no index names now.
        now: Unix time, seconds.
        grace_hours: how long a client with a cached index still finds its files.

    Returns:
        The new ledger, and the files to delete.
    """
    since = {path: min(ledger.get(path, now), now) for path in orphans}
    expired = tuple(path for path, start in since.items() if now - start >= grace_hours * 3600)
    return since, expired


def too_many(expired: int, total: int, max_delete: float) -> bool:
    """Tell whether so many of the files of a subdir would go at once that the upstream is rather at fault.

    Args:
        expired: files to delete.
        total: files in the subdir.
        max_delete: percent. A single file may always go.
    """
    return expired > 1 and expired * 100 > total * max_delete


def leaving(
    expired: Collection[str], unwanted: Collection[str], total: int, max_delete: float
) -> tuple[list[str], list[str]]:
    """Decide which files `--delete` takes.

    Args:
        expired: those that had their grace; see `due`.
        unwanted: the ones that the administrator took out: they are no sign of a fault of the upstream.
        total: how many files there are.
        max_delete: percent; see `too_many`.

    Returns:
        The files to delete, and those that stay because they are too many at once.
    """
    ours = [name for name in expired if name in unwanted]
    theirs = [name for name in expired if name not in unwanted]
    return (ours, theirs) if too_many(len(theirs), total - len(ours), max_delete) else ([*ours, *theirs], [])
