"""What a page of installers lists, and the page that is published here where they come on demand.

Ours has the form of the official one, so that another mirror can read it. `pages` reads an upstream's.
"""

from __future__ import annotations

import contextlib
import html
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

if TYPE_CHECKING:  # `lanmirror_cache` reads listings, and may not load what these bring
    from lanmirror_sync.mirror import Mirror
    from lanmirror_sync.store import Store

FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
# Our page in a folder, which web servers show in its place.
PAGE = "index.html"
# An installer with this in its name changes under it.
LATEST = "latest"
OURS = '<meta name="generator" content="lanmirror">'


@dataclass(frozen=True)
class Installer:
    """One file of an installer page.

    Attributes:
        file_name: as the page links it.
        algorithm: `sha256` or `md5`.
        digest: in lower-case hexadecimal; "" where the page has none.
        size: as the page writes it, "" where it does not; rounded, as a rule.
        date: likewise.
    """

    file_name: str
    algorithm: str
    digest: str
    size: str = ""
    date: str = ""


class Listing(msgspec.Struct, frozen=True):
    """What the upstream's page of a folder listed.

    Attributes:
        read: when it was asked for, Unix time, seconds.
        files: those of the wanted suffixes, in its order.
    """

    read: float
    files: list[Installer]

    def named(self) -> dict[str, Installer]:
        """Return the files by name."""
        return {item.file_name: item for item in self.files}


def path(public: Path, dist: str) -> Path:
    """Return where the listing of a folder stands, for the check of what came on demand as well."""
    return public / f"installers-{dist}.json"


def read(public: Path, dist: str) -> Listing | None:
    """Return the listing of a folder; None where there is none that can be read."""
    try:
        return msgspec.json.decode(path(public, dist).read_bytes(), type=Listing)
    except (OSError, ValueError, RecursionError):
        return None


def write(store: Store, dist: str, listing: Listing) -> None:
    """Publish the listing of a folder."""
    store.write_file(path(store.public, dist), msgspec.json.encode(listing), durable=False)


def held(mirror: Mirror, folder: str) -> Iterator[tuple[str, int, int]]:
    """Yield name, size in bytes and mtime in nanoseconds of the installers that a folder has."""
    ours = PAGE if folder in mirror.config.dists else ""
    return (file for file in mirror.store.files(PurePosixPath(folder)) if file[0] != ours)


def show(mirror: Mirror, dist: str) -> None:
    """Publish the page of a folder for people: what comes on demand, and what is held still."""
    store, listing = mirror.store, read(mirror.store.public, dist)
    if listing is None:
        return
    named = listing.named()
    others = [
        Installer(name, "", "", str(size), time.strftime("%Y-%m-%d %H:%M", time.gmtime(mtime / 10**9)))
        for name, size, mtime in sorted(held(mirror, dist))
        if name not in named and FILE_NAME.fullmatch(name)
    ]
    text = _page(dist, [*listing.files, *others]).encode()
    file = store.path(dist) / PAGE
    # An administrator's own stays; and what did not change keeps its date, by which browsers ask.
    with contextlib.suppress(OSError):
        there = file.read_bytes()
        if there == text or OURS.encode() not in there:
            return
    file.parent.mkdir(parents=True, exist_ok=True)
    store.write_file(file, text)


def _page(dist: str, files: Sequence[Installer]) -> str:
    rows = "".join(
        f'<tr><td><a href="{quote(item.file_name)}">{html.escape(item.file_name)}</a></td><td>{html.escape(item.size)}'
        f"</td><td>{html.escape(item.date)}</td><td>{html.escape(item.digest)}</td></tr>\n"
        for item in files
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">{OURS}<title>{dist}/</title></head>\n<body>\n'
        f"<h1>{dist}/</h1>\n<p>Each of these is fetched from the upstream when somebody asks for it first.</p>\n"
        "<table>\n<tr><th>Filename</th><th>Size</th><th>Last Modified</th><th>SHA256 or MD5</th></tr>\n"
        f"{rows}</table>\n</body>\n</html>\n"
    )


def withdraw(mirror: Mirror) -> None:
    """Take back the pages and listings of folders that do not come on demand any more."""
    config, store = mirror.config, mirror.store
    for file in store.public.glob("installers-*.json"):
        dist = file.name.removeprefix("installers-").removesuffix(".json")
        if dist not in config.listed and FILE_NAME.fullmatch(dist):
            with contextlib.suppress(OSError):
                page = store.path(dist) / PAGE
                # And not an administrator's.
                if OURS in page.read_text(encoding="utf-8", errors="replace"):
                    page.unlink()
                store.path(dist).rmdir()
        if not (config.on_demand and dist in config.dists):
            file.unlink(missing_ok=True)
