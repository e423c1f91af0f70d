"""Paths of the site, and what an administrator may call them by."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

# Where the site has the mirror.
PREFIX = "/anaconda"
ENDINGS = (".conda", ".tar.bz2")
# Before the channel: `pkgs/main`, `cloud/conda-forge`.
KINDS = ("pkgs", "cloud")


INSTALLER = re.compile(r"/[^/]+/[^/]+")


def is_installer(path: str) -> bool:
    """Tell whether a path names an installer: those stand right below a folder of the mirror."""
    return INSTALLER.fullmatch(path) is not None


def is_package(path: str) -> bool:
    """Tell whether a path names a package or an installer, and not an index."""
    return path.endswith(ENDINGS) or is_installer(path)


def subdir_of(path: str) -> str:
    """Return the subdir of a package, for example `cloud/conda-forge/linux-64`."""
    return path.strip("/").rpartition("/")[0]


def channel_of(path: str) -> str:
    """Return the channel of a file, for example `cloud/conda-forge`; its `channeldata.json` stands right in it.

    Of an installer, it is its folder.
    """
    folder = subdir_of(path)
    return folder if path.endswith("/channeldata.json") or is_installer(path) else folder.rpartition("/")[0]


def name_of(path: str) -> str:
    """Return the name of a package (CEP 26: name-version-build, and only the name may have hyphens), in lower case."""
    return path.rpartition("/")[2].rsplit("-", 2)[0].lower()


def path_of(what: str) -> str:
    """Return what was pasted as a URL as the path of it."""
    return re.sub(r"^https?://[^/]*", "", what.strip()).removeprefix(PREFIX)


def chosen(what: str, paths: Collection[str]) -> tuple[Callable[[str], bool], str]:
    """Return what tells whether a path is meant, and what was understood; nothing is, where that is "".

    Args:
        what: a path, a file name, a package name, a channel, a subdir or a folder of installers.
        paths: those there are.

    Raises:
        ValueError: it is the name of a channel and of a package.
    """
    name = path_of(what)
    if name in paths:
        return lambda path: path == name, "path"
    there = {path for path in paths if is_package(path) and path.rpartition("/")[2] == name}
    if there or name.endswith(ENDINGS):
        return lambda path: path in there, "file" if there else ""
    folder = name.strip("/")
    if not folder:
        return lambda _: False, ""
    # A repo needs its `pkgs`: its name alone is that of a package. And nobody means all channels together.
    starts = () if folder in KINDS else (f"/{folder}/", f"/cloud/{folder}/")
    in_channel = any(path.startswith(starts) for path in paths)

    def is_version(path: str) -> bool:
        return path.endswith(ENDINGS) and name_of(path) == folder.lower()

    # `/miniconda/` is no name of a package.
    named = not name.startswith("/") and any(map(is_version, paths))
    if in_channel and named:
        channel = f"cloud/{folder}" if any(path.startswith(f"/cloud/{folder}/") for path in paths) else f"/{folder}/"
        raise ValueError(f"{what} is a channel and a package: name the channel as {channel}, or the files")
    if named:
        return is_version, "package"
    return lambda path: path.startswith(starts), "channel" if in_channel else ""
