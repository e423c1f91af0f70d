"""Installers: what a page of the upstream lists (`listing`), what is named by its URL, and what of it is to be fetched.

The hash of each file that was fetched is remembered in a file of its own, since nothing else tells what an installer of
a listing without hashes should be. Of folders that come on demand nothing is fetched.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import unquote, urldefrag, urlsplit

from lanmirror_sync import listing
from lanmirror_sync.answers import Answer, FetchError, MissingError, Validators
from lanmirror_sync.config import Config
from lanmirror_sync.fetch import Fetcher
from lanmirror_sync.listing import LATEST, Installer, Listing
from lanmirror_sync.mirror import Mirror
from lanmirror_sync.repodata import RepodataError
from lanmirror_sync.report import Report, in_words
from lanmirror_sync.sinks import Download, Expected, Landed
from lanmirror_sync.store import Store, digest
from lanmirror_sync.upstream import TRUST_SECONDS, unpack

LARGEST_PAGE = 1 << 24
# What is noted of a page has its folder behind this as its key.
PAGE = "page/"
LENGTHS = {64: "sha256", 32: "md5"}

log = logging.getLogger(__name__)


@dataclass
class Entry:
    """What is remembered of an installer that was fetched.

    Attributes:
        size: in bytes.
        digest: in hexadecimal, a sha256 or an md5.
        seen: the validator that each URL had of it.
    """

    size: int
    digest: str
    seen: dict[str, str] = field(default_factory=dict)


class Ledger:
    """What is remembered of installers, by path; apart from the rest, which can be found out again."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._file = store.state / "installers.json"
        self.entries: dict[str, Entry] = {}
        try:
            kept = json.loads(self._file.read_bytes())
            self.entries = {
                str(path): Entry(int(item["size"]), bytes.fromhex(item["digest"]).hex(), dict(item["seen"]))
                for path, item in kept.items()
            }
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("%s: cannot be read (%s); installers without a listed hash are fetched anew", self._file, error)

    def save(self) -> None:
        """Keep it."""
        kept = {path: {"size": e.size, "digest": e.digest, "seen": e.seen} for path, e in self.entries.items()}
        self._store.write_file(self._file, json.dumps(kept, indent=1).encode())

    def of(self, folder: str) -> dict[str, Entry]:
        """Return what is remembered of a folder, by file name."""
        prefix = f"{folder}/"
        return {path.removeprefix(prefix): e for path, e in self.entries.items() if path.startswith(prefix)}


def urls_of(config: Config, folder: str, name: str) -> tuple[str, ...]:
    """Return where an installer is to be had."""
    for url in config.installer_urls.get(folder, ()):
        item, urls = _named(url)
        if item.file_name == name:
            return urls
    return tuple(f"{base}/{folder}/{name}" for base in config.repo_sources)


def dists_held(mirror: Mirror) -> set[str]:
    """Return the folders of which installers were fetched."""
    return {path.partition("/")[0] for path in Ledger(mirror.store).entries}


def forget(mirror: Mirror, folder: str) -> None:
    """Forget the installers of a folder."""
    ledger = Ledger(mirror.store)
    gone = [f"{folder}/{name}" for name in ledger.of(folder)]
    for path in gone:
        del ledger.entries[path]
    if gone:
        ledger.save()


@dataclass(frozen=True)
class _Asked:
    """An installer whose upstream was asked about it."""

    folder: str
    item: Installer
    urls: tuple[str, ...]
    answer: Future[Answer]


class Installers:
    """The installers that the configuration asks for, of some of its folders.

    Args:
        indexes: whether only pages are read, beside a sync; files that are held are the sync's.

    Attributes:
        listings: what the pages listed that came so far, by folder.
        outdated: files that are held though they come on demand, and that the upstream has others in place of.
    """

    def __init__(
        self, mirror: Mirror, fetcher: Fetcher, report: Report, wanted: Sequence[str], *, indexes: bool = False
    ) -> None:
        self._mirror = mirror
        self._fetcher = fetcher
        self._report = report
        self._wanted = wanted
        self._indexes = indexes
        self._ledger = Ledger(mirror.store)
        self._validators: dict[str, tuple[str, str]] = {}
        self.listings: dict[str, Listing] = {}
        self.outdated: list[PurePosixPath] = []
        self._news: dict[str, dict[str, object]] = {}
        self._began = time.time()
        config = mirror.config
        self._pages = {
            dist: fetcher.request(
                [f"{base}/{dist}/" for base in config.repo_indexes], known=self._known(dist), limit=LARGEST_PAGE
            )
            for dist in (config.dists if config.suffixes else ())
            if dist in wanted
        }
        self._asked: list[_Asked] = []
        for folder, named in config.installer_urls.items():
            if folder in wanted:
                for url in named:
                    self._ask(folder, *_named(url))

    @property
    def pending(self) -> bool:
        """Whether there are pages and files of which nothing is known yet."""
        return bool(self._pages or self._asked)

    def waits_for(self) -> list[str]:
        """Return the folders of which not everything is known yet."""
        return list(dict.fromkeys((*self._pages, *(asked.folder for asked in self._asked))))

    def all(self) -> Iterator[Download]:
        """Yield everything that is not held, waiting for it."""
        while self.pending:
            yield from self.ready()
            time.sleep(0.01)

    def ready(self) -> Iterator[Download]:
        """Yield what is known by now to be not held."""
        for dist, page in [(dist, page) for dist, page in self._pages.items() if page.done()]:
            del self._pages[dist]
            try:
                self._read(dist, page.result())
            except (FetchError, RepodataError) as error:
                self._report.fail(dist, f"{dist}: the installer page cannot be had: {error}")
            except OSError as error:
                self._report.fail(dist, f"{dist}: {in_words(error)}")
        for asked in [asked for asked in self._asked if asked.answer.done()]:
            self._asked.remove(asked)
            if asked.folder in self._mirror.config.listed:
                self._compare(asked)
                continue
            try:
                download = self._download(asked)
            except MissingError:
                path = f"{asked.folder}/{asked.item.file_name}"
                self._report.fail(asked.folder, f"{path}: the upstream does not have it ({asked.urls[0]})")
            except FetchError as error:
                self._report.fail(asked.folder, f"{asked.folder}/{asked.item.file_name}: {error}")
            except OSError as error:
                self._report.fail(asked.folder, f"{asked.folder}/{asked.item.file_name}: {in_words(error)}")
            else:
                if download:
                    yield download

    def landed(self, download: Download, landed: Landed) -> None:
        """Remember what an installer is, and of whose bytes."""
        path = f"{download.owner}/{download.name}"
        url, word = self._validators.get(path, ("", ""))
        self._ledger.entries[path] = Entry(landed.size, landed.digest, {url: word} if url else {})
        self._ledger.save()

    def publish(self) -> None:
        """Publish the listings that came since the last time; delete what is held in place of other bytes."""
        # What cannot be written now is the next run's.
        news, self._news = self._news, {}
        outdated, self.outdated = self.outdated, []
        store, memory = self._mirror.store, self._mirror.memory
        for dist, noted in news.items():
            listing.write(store, dist, self.listings[dist])
            memory.note(f"{PAGE}{dist}", noted)
        for path in outdated:
            self._report.deleted += store.remove(path)
            memory.forget(str(path.parent), [path.name])
            self._ledger.entries.pop(str(path), None)
            log.info("%s: deleted, since the upstream has another by now, which comes on demand", path)
        if outdated:
            self._ledger.save()
        if news or outdated:
            self.show()

    def show(self) -> None:
        """Publish the pages of what comes on demand, with what is held now."""
        for dist in self._mirror.config.listed:
            if dist in self._wanted:
                listing.show(self._mirror, dist)

    def unwanted(self) -> Iterator[tuple[PurePosixPath, list[str]]]:
        """Yield, by folder, the installers that are held and that the configuration does not ask for any more."""
        for folder in self._wanted:
            there = {name for name, _, _ in listing.held(self._mirror, folder)}
            for name in self._ledger.of(folder).keys() - there:
                del self._ledger.entries[f"{folder}/{name}"]
            yield PurePosixPath(folder), self.superfluous(folder)
        if self._ledger.entries != Ledger(self._mirror.store).entries:
            self._ledger.save()

    def superfluous(self, folder: str) -> list[str]:
        """Return the installers of a folder that are held and that the configuration does not ask for any more."""
        config = self._mirror.config
        named = {_named(url)[0].file_name for url in config.installer_urls.get(folder, ())}
        suffixes = config.suffixes if folder in config.dists and folder not in config.listed else ()
        there = {name for name, _, _ in listing.held(self._mirror, folder)}
        ours = self._ledger.of(folder)
        return sorted(name for name in ours if name in there and name not in named and not name.endswith(suffixes))

    def _known(self, dist: str) -> Validators:
        """Return the validators of the page that our listing is of; none where it may be asked for as a whole."""
        noted, config = self._mirror.memory.fact(f"{PAGE}{dist}"), self._mirror.config
        usable = (
            config.on_demand
            and noted.get("suffixes") == list(config.suffixes)
            and 0 <= self._began - noted.get("whole", 0.0) < TRUST_SECONDS
            and listing.read(self._mirror.store.public, dist)
        )
        return Validators(noted["url"], noted["etag"], noted["last_modified"]) if usable else Validators()

    def _read(self, dist: str, answer: Answer) -> None:
        """Read a page, and ask about what of it is not known to be held, or known to be outdated."""
        config = self._mirror.config
        known = self._mirror.memory.fact(f"{PAGE}{dist}")
        if answer.data is None:
            before = listing.read(self._mirror.store.public, dist)
            files = before.files if before else []
        else:
            url = answer.found_at or answer.validators.url
            # Loaded where there is a page that changed.
            from lanmirror_sync import pages  # noqa: PLC0415

            files = list(pages.parse(unpack(answer.data, ""), config.suffixes, url))
            told = answer.validators
            known = {"url": told.url, "etag": told.etag, "last_modified": told.last_modified, "whole": self._began,
                     "suffixes": list(config.suffixes)}  # fmt: skip
        if not files:
            suffixes = list(config.suffixes)
            self._report.fail(dist, f"{dist}: its page lists no file that ends in one of {suffixes}")
            return
        self.listings[dist] = Listing(self._began, files)
        if config.on_demand:
            self._news[dist] = known
        there = {name for name, _, _ in listing.held(self._mirror, dist)}
        for item in files:
            is_there = item.file_name in there
            if dist in config.listed and (self._indexes or not is_there):
                continue
            if not (item.digest and is_there and self._is_right(dist, item.file_name, item.digest)):
                self._ask(dist, item, urls_of(config, dist, item.file_name))

    def _compare(self, asked: _Asked) -> None:
        """Note a file that is held, and comes on demand, where the upstream has other bytes."""
        path = PurePosixPath(asked.folder, asked.item.file_name)
        try:
            if self._download(asked):
                self.outdated.append(path)
        except (FetchError, OSError) as error:
            log.info("%s: cannot be compared with the upstream's: %s", path, error)

    def _ask(self, folder: str, item: Installer, urls: tuple[str, ...]) -> None:
        self._asked.append(_Asked(folder, item, urls, self._fetcher.request(urls, method="HEAD")))

    def _download(self, asked: _Asked) -> Download | None:
        """Return what is to be fetched; None where it is held."""
        folder, item, answer = asked.folder, asked.item, asked.answer.result()
        path = PurePosixPath(folder, item.file_name)
        url, word = answer.validators.url, answer.validators.word
        if self._is_held(path, item, answer.size, url, word):
            return None
        self._validators[str(path)] = (url, word)
        return Download(
            folder, item.file_name, asked.urls, Expected(answer.size, item.algorithm, item.digest),
            self._mirror.store.partial_path(path, item.digest or f"{url} {word}"), self._mirror.store.path(path),
            # What the cache has is only known to be this where the page tells its hash.
            kept=self._mirror.config.kept(path) if _is_kept(self._mirror.config, folder, item) else "",
        )  # fmt: skip

    def _is_held(self, path: PurePosixPath, item: Installer, size: int | None, url: str, word: str) -> bool:
        """Tell whether a file is here with the bytes that the upstream has.

        Where no page tells their hash: with those that were fetched, if its size is the same and the validator too; of
        another URL, or where there is no validator, its size has to do.
        """
        folder, name = str(path.parent), path.name
        if not self._mirror.store.path(path).is_file():
            return False
        if item.digest:
            return self._is_right(folder, name, item.digest)
        entry = self._entry(folder, name)
        if entry is None or size not in (None, entry.size) or entry.seen.get(url, word) != word:
            return False
        if not self._is_right(folder, name, entry.digest):
            return False
        entry.seen[url] = word
        return True

    def _entry(self, folder: str, name: str) -> Entry | None:
        """Return what is remembered of a file; an earlier version kept that with all the rest."""
        path = f"{folder}/{name}"
        if path not in self._ledger.entries:
            for known, size, _, verified in self._mirror.memory.verified(folder):
                if known == name:
                    self._ledger.entries[path] = Entry(size, verified.hex())
        return self._ledger.entries.get(path)

    def _is_right(self, folder: str, name: str, wanted: str) -> bool:
        """Tell whether a file has a hash; it is read only where nothing vouches for it."""
        memory, file = self._mirror.memory, self._mirror.store.path(PurePosixPath(folder, name))
        status = file.stat()
        for known, size, mtime_ns, verified in memory.verified(folder):
            if known == name and (size, mtime_ns) == (status.st_size, status.st_mtime_ns) and (
                len(verified) == len(wanted) // 2
            ):  # fmt: skip
                return verified.hex() == wanted
        if digest(file, LENGTHS[len(wanted)]) != wanted:
            return False
        memory.verify(folder, [(name, status.st_size, status.st_mtime_ns, bytes.fromhex(wanted))])
        path = f"{folder}/{name}"
        self._ledger.entries.setdefault(path, Entry(status.st_size, wanted))
        return True


def _is_kept(config: Config, folder: str, item: Installer) -> bool:
    """Tell whether an installer may be taken from the web server's cache, which gives none that changes."""
    return bool(item.digest) and folder in config.dists and LATEST not in item.file_name


def _named(url: str) -> tuple[Installer, tuple[str, ...]]:
    """Return the installer that a URL names, which may have its hash behind it: `#sha256=...`."""
    bare, fragment = urldefrag(url)
    algorithm, _, digest_ = fragment.partition("=")
    name = unquote(urlsplit(bare).path.rpartition("/")[2])
    return Installer(name, algorithm or "sha256", digest_.lower()), (bare,)
