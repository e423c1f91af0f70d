"""Pure decisions: what to fetch, what to put in place of what, and what to delete. No I/O."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from lanmirror_sync.repodata import Index, Package


@dataclass(frozen=True)
class Plan:
    """What one subdir needs before the upstream's index can be served.

    Attributes:
        held: packages whose bytes are there, known to be those of the index.
        check: packages of which a file of the right size is there that no served index vouches for: its
            hash decides whether it is fetched.
        fetch: packages that are not there.
        replace: packages that the served index has under the same file name with other bytes.
        excluded: file names that are left out because the configuration says so.
    """

    held: tuple[Package, ...]
    check: tuple[Package, ...]
    fetch: tuple[Package, ...]
    replace: tuple[Package, ...]
    excluded: frozenset[str]

    @property
    def download_bytes(self) -> int:
        """The bytes to fetch, as far as the index tells them."""
        return sum(package.size or 0 for package in (*self.fetch, *self.replace))


def plan(upstream: Index, served: Index | None, files: Mapping[str, int], exclude: Collection[str]) -> Plan:
    """Compare an upstream's index with what is held.

    A served index names only files that were verified against its own records as they were written, so a
    package whose hash it has as well is known without reading the file.

    Args:
        upstream: the upstream's index.
        served: the index that is served now, None on the first run.
        files: the sizes in bytes of the files in the subdir, by file name.
        exclude: package names, or patterns of them as in `fnmatch`, that are not mirrored.
    """
    known = served.packages if served else {}
    held: list[Package] = []
    check: list[Package] = []
    fetch: list[Package] = []
    replace: list[Package] = []
    excluded = set()
    for file_name, package in upstream.packages.items():
        if any(fnmatch.fnmatchcase(package.name, pattern) for pattern in exclude):
            excluded.add(file_name)
            continue
        size, former = files.get(file_name), known.get(file_name)
        vouched = former is not None and former.size in (None, size)
        if size is None:
            fetch.append(package)
        elif former is not None and vouched and former.algorithm == package.algorithm:
            (held if former.digest == package.digest else replace).append(package)
        elif package.size not in (None, size):
            fetch.append(package)
        else:
            check.append(package)
    return Plan(tuple(held), tuple(check), tuple(fetch), tuple(replace), frozenset(excluded))


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
