"""What a page of installers lists: read from the upstream's, and published here where they come on demand.

Two kinds of pages are understood: the official one, a table with name, size, date and hash, and the directory listings
of public mirrors (Nginx's autoindex and fancyindex, Apache's), which have no hash. Ours has the form of the official
one, so that another mirror can read it.
"""

from __future__ import annotations

import contextlib
import html
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urljoin, urlsplit

import msgspec

from lanmirror_sync.repodata import MD5, SHA256

if TYPE_CHECKING:  # `lanmirror_cache` reads listings, and may not load what these bring
    from lanmirror_sync.mirror import Mirror
    from lanmirror_sync.store import Store

FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
# Our page in a folder, which web servers show in its place.
PAGE = "index.html"
# An installer with this in its name changes under it.
LATEST = "latest"
OURS = '<meta name="generator" content="lanmirror">'
DATE = re.compile(r"\b(?:\d{4}-(?:\d{2}|[A-Z][a-z]{2})-\d{2}|\d{2}-[A-Z][a-z]{2}-\d{4}) \d{2}:\d{2}(?::\d{2})?\b")
SIZE = re.compile(r"\d+(?:\.\d+)? ?(?:[KMGT]i?B?|B)?")


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


class _Page(HTMLParser):
    """Collects links to files of the page's own folder, and what stands beside each: in its table row, or behind it."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self.found: dict[str, tuple[str, str]] = {}
        self.sizes: dict[str, str] = {}
        self.dates: dict[str, str] = {}
        self._in_row = False
        self._names: list[str] = []
        self._texts: list[str] = []
        self._hashes: dict[str, set[str]] = {}
        self._last = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self._end_row()
            self._in_row = True
        elif tag == "a":
            self._last = name = self._name(dict(attrs).get("href") or "")
            if name:
                self.found.setdefault(name, ("sha256", ""))
                if name not in self._names:
                    self._names.append(name)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("tr", "table"):
            self._end_row()

    def handle_data(self, data: str) -> None:
        if not self._in_row:
            self._tell(self._last, data)
            return
        self._texts.append(data)
        word = data.strip().lower()
        for algorithm, pattern in (("sha256", SHA256), ("md5", MD5)):
            if pattern.fullmatch(word):
                self._hashes.setdefault(algorithm, set()).add(word)

    def close(self) -> None:
        super().close()
        self._end_row()

    def _end_row(self) -> None:
        """Take what a row says for the one file that it is about."""
        if self._in_row and len(self._names) == 1:
            for text in self._texts:
                self._tell(self._names[0], text)
            for algorithm in ("sha256", "md5"):
                hashes = self._hashes.get(algorithm, set())
                if len(hashes) == 1:
                    self.found[self._names[0]] = (algorithm, next(iter(hashes)))
                    break
        self._in_row, self._names, self._texts, self._hashes, self._last = False, [], [], {}, ""

    def _tell(self, name: str, text: str) -> None:
        """Take a date and a size out of a text about a file."""
        if date := DATE.search(text):
            self.dates.setdefault(name, date[0])
        rest = DATE.sub("", text).strip()
        if SIZE.fullmatch(rest):
            self.sizes.setdefault(name, rest)

    def _name(self, href: str) -> str:
        """Return the name of the file that a link leads to; "" where it is none of the page's own folder."""
        try:
            page, link = urlsplit(self._url), urlsplit(urljoin(self._url, href.strip()))
            same_host = link.scheme in ("http", "https") and link.hostname == page.hostname and link.port == page.port
        except ValueError:
            return ""
        folder, _, name = link.path.rpartition("/")
        name = unquote(name)
        beside = unquote(folder) == unquote(page.path.rpartition("/")[0])
        return name if same_host and beside and FILE_NAME.fullmatch(name) and name != PAGE else ""


def parse(page: bytes, suffixes: Sequence[str], url: str = "http://localhost/") -> tuple[Installer, ...]:
    """Return the files of a page whose names end in one of `suffixes`, in its order.

    A link that leads into another folder or to another host is none of its files.
    """
    parser = _Page(url)
    parser.feed(page.decode("utf-8", errors="replace"))
    parser.close()
    return tuple(
        Installer(name, algorithm, digest, parser.sizes.get(name, ""), parser.dates.get(name, ""))
        for name, (algorithm, digest) in parser.found.items()
        if name.endswith(tuple(suffixes))
    )


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
