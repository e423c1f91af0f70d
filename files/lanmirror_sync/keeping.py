"""What the keep-sets of a configuration need of each subdir.

A lock file names packages, which are taken exactly. Of an `environment.yml`, a solver (rattler's, as in pixi) makes an
environment for each platform, from the upstream's newest indexes without what is excluded or hidden, and that is held:
a client that solves the same against what is held finds at least this. Channels count in the file's order, and a name
is taken from the first that has it, which clients of either channel priority can repeat.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from lanmirror_sync import formats, repodata
from lanmirror_sync.config import KNOWN_ARCHES, Config, Subdir
from lanmirror_sync.keepsets import Gathered, KeepSet, Locked, gather
from lanmirror_sync.mirror import Mirror
from lanmirror_sync.repodata import Index, RepodataError
from lanmirror_sync.sweep import SOLVING
from lanmirror_sync.upstream import Sent, unpack

NOARCH, DEFAULTS, NODEFAULTS = "noarch", "defaults", "nodefaults"
# What a machine of each platform is taken to have, name, version and build: the least that pixi does by default, so
# that what is held installs there and on newer ones. None has a GPU.
VIRTUAL = {
    "linux": (("__unix", "0", "0"), ("__linux", "4.18", "0"), ("__glibc", "2.28", "0")),
    "osx": (("__unix", "0", "0"), ("__osx", "13.0", "0")),
    "win": (("__win", "0", "0"),),
}
MACHINES = {"64": "x86_64", "32": "x86", "arm64": "arm64"}
MOST_SECONDS = 300
LONGEST_REASON = 600


class Keeping:
    """The keep-sets of a configuration, and what they need.

    Args:
        mirror: its own.
        out: returns the file names of an index that may not be held in a subdir.

    Attributes:
        solves: whether what a subdir needs depends on the indexes of others.
    """

    def __init__(self, mirror: Mirror, out: Callable[[Subdir, Index], Collection[str]]) -> None:
        self._mirror = mirror
        self._out = out
        self._subdirs = mirror.config.subdirs()
        paths = dict.fromkeys(path for subdir in self._subdirs if subdir.choice for path in subdir.choice.keep)
        self._gathered: dict[str, Gathered] = {path: gather(Path(path)) for path in paths}
        self._found: dict[PurePosixPath, Sent] = {}
        self._absent: set[PurePosixPath] = set()
        self._solved: tuple[dict[PurePosixPath, set[str]], dict[PurePosixPath, list[str]]] | None = None
        self.solves = any(keep.specs for found in self._gathered.values() for keep in found.sets)

    def offer(self, subdir: Subdir, sent: Sent) -> None:
        """Take in an index that came for a subdir, and is good."""
        self._found[subdir.path] = sent
        self._solved = None

    def leave_out(self, subdir: Subdir) -> None:
        """Take in that the upstream has nothing in a subdir."""
        self._absent.add(subdir.path)

    def key(self) -> str:
        """Return what differs whenever what is needed may do: files, and with a solver indexes, rules and channels."""
        told = hashlib.sha256()
        for path, found in self._gathered.items():
            told.update(f"{path}\0{found.digest}\0".encode())
        for subdir in self._subdirs if self.solves else ():
            sent = self._found.get(subdir.path)
            sha256 = sent.sha256 if sent else self._mirror.memory.standing(subdir.path).sha256
            rules, choice = subdir.rules.key if subdir.rules else "", subdir.choice.key if subdir.choice else ""
            told.update(f"{subdir.path}\0{sha256}\0{rules}\0{choice}\0".encode())
        return told.hexdigest()[:16]

    def needs(self, subdir: Subdir, index: Index, out: Collection[str]) -> tuple[set[str], list[str]]:
        """Return the file names of what is needed of a subdir, and what is wrong with keep-sets, a message each.

        Args:
            subdir: which.
            index: its index.
            out: file names of what may not be held.
        """
        kept: set[str] = set()
        problems: list[str] = []
        for found in self._gathered.values():
            problems += found.problems
            for one in found.sets:
                names, wrong = locked(one, subdir, index, out, self._mirror.config)
                kept |= names
                problems += wrong
        if self.solves:
            if self._solved is None:
                self._solved = self._solve()
            kept |= self._solved[0].get(subdir.path, set())
            problems += self._solved[1].get(subdir.path, ())
        return kept, problems

    def _solve(self) -> tuple[dict[PurePosixPath, set[str]], dict[PurePosixPath, list[str]]]:
        """Return what is needed of each subdir by keep-sets that have to be solved; and what is wrong for it."""
        needed: dict[PurePosixPath, set[str]] = {}
        wrong: dict[PurePosixPath, list[str]] = {}
        # Indexes are large, and a plan may be of somebody who may not write there.
        state = self._mirror.store.state
        with (
            tempfile.TemporaryDirectory(prefix=SOLVING, dir=state if os.access(state, os.W_OK) else None) as place,
            _Solver(Path(place), self._index) as solver,
        ):
            for path, found in self._gathered.items():
                asking = [subdir for subdir in self._subdirs if subdir.choice and path in subdir.choice.keep]
                alone = all(subdir.arch == NOARCH for subdir in asking)
                for keep in found.sets if asking else ():
                    for subdir in asking if alone and keep.specs else ():
                        reason = f"{keep.path}: noarch alone has it in keep, and no platform to solve it for"
                        wrong.setdefault(subdir.path, []).append(reason)
                    for arch in _platforms(keep, asking):
                        try:
                            names = solver.solve(keep.specs, self._places(keep, arch, asking), arch)
                        except _UnsolvedError as error:
                            for subdir in self._subdirs:
                                if subdir.arch in (arch, NOARCH):
                                    wrong.setdefault(subdir.path, []).append(f"{keep.path} for {arch}: {error}")
                        else:
                            for where, name in names:
                                needed.setdefault(where, set()).add(name)
        return needed, wrong

    def _places(self, keep: KeepSet, arch: str, asking: Sequence[Subdir]) -> list[list[Subdir]]:
        """Return the channels in which a keep-set is solved, each with its subdirs for a platform."""
        channels = [*dict.fromkeys(subdir.channel for subdir in self._subdirs)]
        wanted: list[PurePosixPath] = []
        for word in keep.channels:
            if word != NODEFAULTS:
                found = channels_of(word, channels)
                if not found:
                    raise _UnsolvedError(f"its channel {word!r} is not mirrored here")
                wanted += found
        wanted = wanted or [subdir.channel for subdir in asking]
        places = [
            [subdir for subdir in self._subdirs if subdir.channel == channel and subdir.arch in (arch, NOARCH)]
            for channel in dict.fromkeys(wanted)
        ]
        return [place for place in places if place]

    def _index(self, subdir: Subdir) -> tuple[Index, Collection[str]] | None:
        """Return the newest index of a subdir, and what of it may not be held; None where the upstream has none.

        Raises:
            _UnsolvedError: it is not known.
        """
        sent, standing = self._found.get(subdir.path), self._mirror.memory.standing(subdir.path)
        if sent is None and not standing.sha256 and (subdir.path in self._absent or standing.checked is not None):
            return None
        try:
            if sent and sent.data is not None:
                data = unpack(sent.data, sent.form)
            else:
                data = unpack(self._mirror.store.index_path(subdir.path).read_bytes(), standing.form)
            index = repodata.parse(data)
        except (OSError, RepodataError) as error:
            raise _UnsolvedError(f"the index of {subdir.path} is not here yet") from error
        return index, self._out(subdir, index)


class _UnsolvedError(Exception):
    """A keep-set that has no solution here."""


class _Solver:
    """Solves against indexes that it writes into a folder, without what may not be held."""

    def __init__(self, folder: Path, index: Callable[[Subdir], tuple[Index, Collection[str]] | None]) -> None:
        self._folder = folder
        self._index = index
        self._open: dict[PurePosixPath, Any] = {}

    def __enter__(self) -> _Solver:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in self._open.values():
            opened.close()

    def solve(
        self, specs: Iterable[str], channels: Sequence[Sequence[Subdir]], arch: str
    ) -> Iterable[tuple[PurePosixPath, str]]:
        """Return what an environment of a platform consists of: subdir and file name of each package."""
        import rattler  # noqa: PLC0415 - it takes a sixth of a second

        try:
            wanted = [rattler.MatchSpec(spec) for spec in specs]
        except Exception as error:  # its errors have no base of their own
            raise _UnsolvedError(_line(error)) from error
        found = (self._sparse(subdir) for channel in channels for subdir in channel)
        opened = [index for index in found if index is not None]
        try:
            records = asyncio.run(
                rattler.solve_with_sparse_repodata(
                    wanted, opened, virtual_packages=_virtual(arch), timeout=timedelta(seconds=MOST_SECONDS)
                )
            )
        except Exception as error:
            raise _UnsolvedError(_line(error)) from error
        where = {_url(subdir): subdir.path for channel in channels for subdir in channel}
        return [(where[str(record.url).rpartition("/")[0]], record.file_name) for record in records]

    def _sparse(self, subdir: Subdir) -> Any:
        """Return an index as the solver reads it; None where the upstream has none."""
        import rattler  # noqa: PLC0415 - likewise

        if subdir.path not in self._open:
            found = self._index(subdir)
            if found is None:
                return None
            index, out = found
            file = self._folder / f"{len(self._open)}.json"
            formats.write(file, index, lambda name: name not in out)
            channel = rattler.Channel(_url(subdir).rpartition("/")[0])
            self._open[subdir.path] = rattler.SparseRepoData(channel, subdir.arch, file)
        return self._open[subdir.path]


def _url(subdir: Subdir) -> str:
    """Return a URL that says which subdir it is of; the name that conda knows a channel by is in it."""
    path = str(subdir.path)
    base = "https://conda.anaconda.org" if path.startswith("cloud/") else "https://repo.anaconda.com"
    return f"{base}/{path.removeprefix('cloud/')}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:LONGEST_REASON]


def _virtual(arch: str) -> list[Any]:
    """Return the virtual packages of a platform."""
    from rattler import BuildString, GenericVirtualPackage, PackageName, Version  # noqa: PLC0415 - likewise

    platform, _, machine = arch.partition("-")
    found = (*VIRTUAL.get(platform, ()), ("__archspec", "1", MACHINES.get(machine, machine)))
    return [
        GenericVirtualPackage(PackageName(name), Version(version), BuildString(build)) for name, version, build in found
    ]


def _platforms(keep: KeepSet, asking: Iterable[Subdir]) -> list[str]:
    """Return the platforms that a keep-set is solved for: those of the entries that have it, unless it says others."""
    arches = dict.fromkeys(subdir.arch for subdir in asking if subdir.arch != NOARCH) if keep.specs else ()
    return [arch for arch in arches if not keep.platforms or arch in keep.platforms]


def channels_of(word: str, channels: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """Return the channels of this mirror that a word of an `environment.yml` means: a name, or a URL."""
    path = unquote(urlsplit(word).path) if "://" in word else word
    path = path.strip("/")
    head, _, last = path.rpartition("/")
    path = head if last in KNOWN_ARCHES else path
    if path == DEFAULTS:
        return [channel for channel in channels if channel.parts[0] == "pkgs"]
    if path == "main":
        path = "pkgs/main"
    return [channel for channel in channels if f"/{path}".endswith(f"/{_called(channel)}")]


def _called(path: PurePosixPath) -> str:
    """Return how a channel, or a subdir, is called outside of this mirror."""
    return str(path).removeprefix("cloud/")


def locked(
    keep: KeepSet, subdir: Subdir, index: Index, out: Collection[str], config: Config
) -> tuple[set[str], list[str]]:
    """Return what of a subdir a lock file names, and why it cannot be had, a message each.

    Args:
        keep: the lock file.
        subdir: which.
        index: its index.
        out: file names of what may not be held.
        config: that of the mirror.
    """
    found: set[str] = set()
    lacking: dict[str, list[str]] = {}
    channels = {_called(other.channel) for other in config.subdirs()}
    for one in keep.locked:
        folder, _, name = unquote(urlsplit(one.url).path).rpartition("/")
        channel, _, arch = folder.rpartition("/")
        if arch != subdir.arch:
            continue
        if f"{channel}/".endswith(f"/{_called(subdir.channel)}/"):
            if problem := _problem(one, name, index, out):
                lacking.setdefault(problem, []).append(name)
            else:
                found.add(name)
        elif subdir.choice and not any(f"{channel}/".endswith(f"/{other}/") for other in channels):
            lacking.setdefault("is of no channel that is mirrored here", []).append(one.url.rpartition("@")[2])
    return found, [
        f"{keep.path}: {names[0]} {problem}" + (f" (and so are {len(names) - 1} others)" if len(names) > 1 else "")
        for problem, names in lacking.items()
    ]


def _problem(one: Locked, name: str, index: Index, out: Collection[str]) -> str:
    """Return why a locked package cannot be held; "" where it can."""
    package = index.packages.get(name)
    if package is None:
        return "is not in the upstream's index"
    if name in out:
        return "is excluded, or hidden by rules"
    wanted = one.sha256 if package.algorithm == "sha256" else one.md5
    if wanted and wanted != package.digest:
        return "has other bytes in the upstream's index"
    if not wanted and one.md5 and one.md5 != _md5(index, name):
        return "has other bytes in the upstream's index"
    return ""


def _md5(index: Index, name: str) -> str:
    """Return the md5 of a record; "" where it has none."""
    for section in ("packages", "packages.conda"):
        if name in index.sections.get(section, {}):
            found = msgspec.json.decode(repodata.members.decode(index.sections[section][name]).get("md5", b'""'))
            return found.lower() if isinstance(found, str) else ""
    return ""
