"""Installers: what a page of the upstream lists, and what of it is to be fetched.

Two kinds of pages are understood: the official one, a table with name, size, date and hash, and the directory
listings of public mirrors (Nginx's autoindex and fancyindex, Apache's), which have no hash.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import PurePosixPath
from urllib.parse import unquote

from lanmirror_sync.config import Config
from lanmirror_sync.fetch import Answer, Fetcher, FetchError, MissingError
from lanmirror_sync.memory import Memory, known_files
from lanmirror_sync.plan import Known
from lanmirror_sync.repodata import MD5, SHA256
from lanmirror_sync.report import Report
from lanmirror_sync.sinks import Download, Expected, Landed
from lanmirror_sync.store import Store, digest

LARGEST_PAGE = 1 << 24
FACT = "installer/"

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


class Installers:
    """The installers of the pages that the configuration asks for."""

    def __init__(self, config: Config, store: Store, memory: Memory, fetcher: Fetcher, report: Report) -> None:
        self._config = config
        self._store = store
        self._memory = memory
        self._fetcher = fetcher
        self._report = report
        self._validators: dict[str, str] = {}

    def downloads(self, wanted: Sequence[str]) -> Iterator[Download]:
        """Read the pages of folders such as `miniconda`, and yield what is not held."""
        pages = {
            dist: self._fetcher.ask([f"{base}/{dist}/" for base in self._config.repo_indexes], limit=LARGEST_PAGE)
            for dist in wanted
        }
        for dist, page in pages.items():
            try:
                listed = parse(page.result().data or b"", self._config.suffixes)
            except FetchError as error:
                self._report.fail(dist, f"{dist}: the installer page cannot be had: {error}")
                continue
            if not listed:
                suffixes = list(self._config.suffixes)
                self._report.fail(dist, f"{dist}: its page lists no file that ends in one of {suffixes}")
            folder = PurePosixPath(dist)
            known = known_files(self._store.files(folder), self._memory.verified(dist))
            yield from self._missing(dist, listed, known)

    def landed(self, download: Download, landed: Landed) -> None:
        """Remember of whose bytes an installer is."""
        validator = self._validators.get(f"{download.owner}/{download.name}", "")
        self._memory.note(f"{FACT}{download.owner}/{download.name}", {"validator": validator})

    def _missing(self, dist: str, listed: Sequence[Installer], known: Mapping[str, Known]) -> Iterator[Download]:
        """Yield what of a page is not held; the upstream is asked only about what its page does not tell."""
        asked: list[tuple[Installer, tuple[str, ...], Future[Answer]]] = []
        for item in listed:
            if not (item.digest and self._is_held(dist, item, known.get(item.file_name))):
                urls = tuple(f"{base}/{dist}/{item.file_name}" for base in self._config.repo_sources)
                asked.append((item, urls, self._fetcher.ask(urls, method="HEAD")))
        for item, urls, head in asked:
            path = PurePosixPath(dist, item.file_name)
            try:
                answer = head.result()
            except MissingError:
                self._report.fail(dist, f"{path}: its page lists it, the upstream does not have it")
                continue
            except FetchError as error:
                self._report.fail(dist, f"{path}: {error}")
                continue
            validator = answer.validators.etag or answer.validators.last_modified
            if not item.digest and self._is_unchanged(path, known.get(item.file_name), answer.size, validator):
                continue
            self._validators[str(path)] = validator
            yield Download(
                dist, item.file_name, urls, Expected(answer.size, item.algorithm, item.digest),
                self._store.partial_path(path, item.digest or validator), self._store.path(path),
            )  # fmt: skip

    def _is_held(self, dist: str, item: Installer, known: Known | None) -> bool:
        """Tell whether the file of a page with hashes is there; it is read only where nothing vouches for it."""
        wanted = bytes.fromhex(item.digest)
        if isinstance(known, bytes) and len(known) == len(wanted):
            return known == wanted
        file = self._store.path(PurePosixPath(dist, item.file_name))
        if known is None or digest(file, item.algorithm) != item.digest:
            return False
        status = file.stat()
        self._memory.verify(dist, [(item.file_name, status.st_size, status.st_mtime_ns, wanted)])
        return True

    def _is_unchanged(self, path: PurePosixPath, known: Known | None, size: int | None, validator: str) -> bool:
        """Tell whether a file is held that its page has no hash of: the upstream's validator has to be the same."""
        file = self._store.path(path)
        return (
            isinstance(known, bytes)
            and bool(validator)
            and self._memory.fact(f"{FACT}{path}").get("validator") == validator
            and size in (None, file.stat().st_size)
        )
