"""What an installer page of the upstream lists.

Two kinds are understood: the official page, a table with name, size, date and hash, and the directory
listings of public mirrors (Nginx's autoindex and fancyindex, Apache's), which have no hash.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import unquote

from lanmirror_sync.repodata import MD5, SHA256

FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Installer:
    """One file of an installer page.

    Attributes:
        file_name: as the page links it.
        algorithm: `sha256` or `md5`.
        digest: in lower-case hexadecimal; "" where the page has none.
    """

    file_name: str
    algorithm: str
    digest: str


class _Page(HTMLParser):
    """Collects links, and the hash that stands in the same table row."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, tuple[str, str]] = {}
        self._row: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self._row = []
        elif tag == "a":
            name = unquote(dict(attrs).get("href") or "").removeprefix("./")
            if FILE_NAME.fullmatch(name):
                self.found.setdefault(name, ("sha256", ""))
                self._row.append(name)

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr":
            self._row = []

    def handle_data(self, data: str) -> None:
        word = data.strip().lower()
        for algorithm, pattern in (("sha256", SHA256), ("md5", MD5)):
            if pattern.fullmatch(word):
                for name in self._row:
                    self.found[name] = (algorithm, word)


def parse(page: bytes, suffixes: Sequence[str]) -> tuple[Installer, ...]:
    """Return the files of a page whose names end in one of `suffixes`, in its order.

    A link that leads into another folder or to another host is none of its files.
    """
    parser = _Page()
    parser.feed(page.decode("utf-8", errors="replace"))
    parser.close()
    return tuple(
        Installer(name, algorithm, digest)
        for name, (algorithm, digest) in parser.found.items()
        if name.endswith(tuple(suffixes))
    )
