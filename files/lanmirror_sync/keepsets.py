"""Keep-sets: files that say what a lab installs, as its tools write them. Here they are only read.

`environment.yml` (conda), explicit lists (`conda list --explicit`), `conda-lock.yml` (conda-lock) and `pixi.lock`
(pixi; read by py-rattler, which makes it).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# What a folder of keep-sets is searched for. A text is one if it is an explicit list.
SUFFIXES = (".yml", ".yaml", ".lock", ".txt")
EXPLICIT = re.compile(r"^@EXPLICIT\s*$", re.MULTILINE)
# As conda has it: an md5, or a sha256 with or without its name.
EXPLICIT_HASH = re.compile(r"(?P<md5>[0-9a-f]{32})|(?:sha256[:=])?(?P<sha256>[0-9a-f]{64})")
# Larger than any that was seen by far; a lock file of a large project has 2 MiB.
LARGEST = 1 << 26


class KeepSetError(Exception):
    """A keep-set that cannot be used; the message says why."""


@dataclass(frozen=True)
class Locked:
    """A package that a lock file names; hashes in lower-case hexadecimal, "" where it has none."""

    url: str
    sha256: str = ""
    md5: str = ""


@dataclass(frozen=True)
class KeepSet:
    """What one file asks for.

    Attributes:
        path: of the file.
        specs: MatchSpecs, of which a solver makes an environment.
        channels: where it looks for them, as the file says it, the first being the best; none where it does not.
        platforms: for which alone; none where the file does not say it.
        locked: packages that are taken exactly.
    """

    path: str
    specs: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    locked: tuple[Locked, ...] = ()


@dataclass(frozen=True)
class Gathered:
    """What stands at a path.

    Attributes:
        sets: the keep-sets.
        problems: why a file is none that can be used, a message each.
        digest: what differs whenever one of the files does.
    """

    sets: tuple[KeepSet, ...]
    problems: tuple[str, ...]
    digest: str


def gather(path: Path) -> Gathered:
    """Read a keep-set, or a folder of them with all folders in it."""
    sets, problems, digest = [], [], hashlib.sha256()
    try:
        files = [*_files(path)] if path.is_dir() else [path]
    except OSError as error:
        files, problems = [], [f"{path}: cannot be read: {error.strerror}"]
    for file in files:
        try:
            if file.stat().st_size > LARGEST:
                raise KeepSetError("is too large for a keep-set")
            data = file.read_bytes()
            digest.update(f"{file}\0{len(data)}\0".encode() + data)
            found = read(file, data)
        except OSError as error:
            problems.append(f"{file}: cannot be read: {error.strerror}")
        except KeepSetError as error:
            problems.append(f"{file}: {error}")
        else:
            if found:
                sets.append(found)
            elif file == path:
                problems.append(f"{file}: is no environment.yml, no lock file and no explicit list")
    if not sets and not problems:
        # Such as a folder of another machine that is not mounted now: what it asked for is not to go.
        problems.append(f"{path}: has no keep-set")
    digest.update(repr(problems).encode())
    return Gathered(tuple(sets), tuple(problems), digest.hexdigest())


def _files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        shown = not any(part.startswith(".") for part in file.relative_to(folder).parts)
        if shown and file.suffix in SUFFIXES and file.is_file():
            yield file


def read(file: Path, data: bytes) -> KeepSet | None:
    """Return the keep-set that a file is; None where it is a text of another kind.

    Raises:
        KeepSetError: it is damaged, or of an unknown kind.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise KeepSetError("is no text in UTF-8") from error
    if EXPLICIT.search(text):
        return KeepSet(str(file), locked=tuple(_explicit(text)))
    if file.suffix == ".txt":
        return None
    if file.suffix == ".lock":
        return KeepSet(str(file), locked=tuple(_pixi(file)))
    try:
        top = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise KeepSetError(f"is not YAML: {' '.join(str(error).split())}") from error
    if isinstance(top, dict) and "package" in top and "metadata" in top:
        return KeepSet(str(file), locked=tuple(_conda_lock(top)))
    if isinstance(top, dict) and "dependencies" in top:
        return _environment(file, top)
    raise KeepSetError("has no dependencies, as an environment.yml has, and no package, as a conda-lock.yml has")


def _environment(file: Path, top: dict[Any, Any]) -> KeepSet:
    """Return what an `environment.yml` asks for; what pip is to install is not Conda's."""
    dependencies = top["dependencies"]
    if not isinstance(dependencies, list):
        raise KeepSetError("has dependencies that are no list")
    specs = []
    for item in dependencies:
        if isinstance(item, str):
            specs.append(item.strip())
        elif not (isinstance(item, dict) and item.keys() == {"pip"}):
            raise KeepSetError(f"has a dependency that is none: {str(item)[:80]!r}")
    if not specs:
        raise KeepSetError("has no dependencies of Conda")
    return KeepSet(str(file), tuple(specs), _words(top, "channels"), _words(top, "platforms"))


def _words(top: dict[Any, Any], key: str) -> tuple[str, ...]:
    words = top.get(key) or []
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise KeepSetError(f"has {key} that are no list of words")
    return tuple(words)


def _explicit(text: str) -> Iterator[Locked]:
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith(("#", "@EXPLICIT")):
            continue
        url, _, fragment = line.partition("#")
        found = EXPLICIT_HASH.fullmatch(fragment.strip().lower())
        if "://" not in url or (fragment and not found):
            raise KeepSetError(f"has a line that is no URL of a package: {line[:200]!r}")
        hashes = found.groupdict(default="") if found else {}
        yield Locked(url.strip(), hashes.get("sha256", ""), hashes.get("md5", ""))


def _conda_lock(top: dict[Any, Any]) -> Iterator[Locked]:
    packages = top["package"]
    if not isinstance(packages, list) or not all(isinstance(package, dict) for package in packages):
        raise KeepSetError("has a package list that is none")
    for package in packages:
        if package.get("manager", "conda") == "conda":
            url, hashes = package.get("url"), package.get("hash") or {}
            if not isinstance(url, str) or not isinstance(hashes, dict):
                raise KeepSetError(f"has a package without a URL: {str(package.get('name'))[:80]!r}")
            yield Locked(url, str(hashes.get("sha256") or "").lower(), str(hashes.get("md5") or "").lower())


def _pixi(file: Path) -> Sequence[Locked]:
    from rattler import CondaLockedBinaryPackage, LockFile  # noqa: PLC0415 - it takes a sixth of a second

    try:
        found = LockFile.from_path(file)
        packages = [
            package
            for _, environment in found.environments()
            for group in environment.packages_by_platform().values()
            for package in group
            if isinstance(package, CondaLockedBinaryPackage)
        ]
    except Exception as error:  # its errors have no base of their own
        raise KeepSetError(f"is no lock file of pixi: {' '.join(str(error).split())[:300]}") from error
    locked = []
    for package in packages:
        hashes = package.hashes
        sha256, md5 = (hashes.sha256, hashes.md5) if hashes else (None, None)
        locked.append(Locked(package.location, sha256.hex() if sha256 else "", md5.hex() if md5 else ""))
    return [*dict.fromkeys(locked)]
