"""Reads the page of a folder of installers.

Two kinds of pages are understood: the official one, a table with name, size, date and hash, and the directory listings
of public mirrors (Nginx's autoindex and fancyindex, Apache's), which have no hash.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

from lanmirror_sync.listing import FILE_NAME, PAGE, Installer
from lanmirror_sync.repodata import MD5, SHA256

DATE = re.compile(r"\b(?:\d{4}-(?:\d{2}|[A-Z][a-z]{2})-\d{2}|\d{2}-[A-Z][a-z]{2}-\d{4}) \d{2}:\d{2}(?::\d{2})?\b")
SIZE = re.compile(r"\d+(?:\.\d+)? ?(?:[KMGT]i?B?|B)?")


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
