"""Paths of the site, and what an administrator may call them by."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

# Where the site has the mirror.
PREFIX = "/anaconda"
ENDINGS = (".conda", ".tar.bz2")
# Before the channel: `pkgs/main`, `cloud/conda-forge`.
KINDS = ("pkgs", "cloud")


def is_package(path: str) -> bool:
    """Tell whether a path names a package, and not an index."""
    return path.endswith(ENDINGS)


def subdir_of(path: str) -> str:
    """Return the subdir of a package, for example `cloud/conda-forge/linux-64`."""
    return path.strip("/").rpartition("/")[0]


def channel_of(path: str) -> str:
    """Return the channel of a file, for example `cloud/conda-forge`; its `channeldata.json` stands right in it."""
    folder = subdir_of(path)
    return folder if path.endswith("/channeldata.json") else folder.rpartition("/")[0]


def name_of(path: str) -> str:
    """Return the name of a package (CEP 26: name-version-build, and only the name may have hyphens), in lower case."""
    return path.rpartition("/")[2].rsplit("-", 2)[0].lower()


def path_of(what: str) -> str:
    """Return what was pasted as a URL as the path of it."""
    return re.sub(r"^https?://[^/]*", "", what.strip()).removeprefix(PREFIX)


def chosen(what: str, paths: Collection[str]) -> tuple[Callable[[str], bool], str]:
    """Return what tells whether a path is meant, and what was understood; nothing is, where that is "".

    Args:
        what: a path, a file name, a package name, a channel or a subdir.
        paths: those there are.

    Raises:
        ValueError: it is the name of a channel and of a package.
    """
    name = path_of(what)
    if name in paths:
        return lambda path: path == name, "path"
    if is_package(name):
        there = {path for path in paths if path.rpartition("/")[2] == name}
        return lambda path: path in there, "file" if there else ""
    folder = name.strip("/")
    if not folder:
        return lambda _: False, ""
    # A repo needs its `pkgs`: its name alone is that of a package. And nobody means all channels together.
    starts = () if folder in KINDS else (f"/{folder}/", f"/cloud/{folder}/")
    in_channel = any(path.startswith(starts) for path in paths)
    named = any(is_package(path) and name_of(path) == folder.lower() for path in paths)
    if in_channel and named:
        raise ValueError(f"{what} is a channel and a package: name the channel as cloud/{folder}, or the files")
    if named:
        return lambda path: is_package(path) and name_of(path) == folder.lower(), "package"
    return lambda path: path.startswith(starts), "channel" if in_channel else ""
