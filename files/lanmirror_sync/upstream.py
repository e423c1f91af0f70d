"""What the upstream has of a subdir: its index in the smallest form on offer, checked before anyone relies on it."""

from __future__ import annotations

import bz2
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import zstandard

from lanmirror_sync import repodata
from lanmirror_sync.config import Config, Subdir
from lanmirror_sync.fetch import Answer, Fetcher, FetchError, MissingError, UnreachableError, Validators
from lanmirror_sync.memory import FACT, Memory
from lanmirror_sync.repodata import Index, RepodataError
from lanmirror_sync.store import Store
from lanmirror_sync.wire import http_date

# An index that is larger than this as it is sent, or unpacked, is no index (conda-forge/linux-64 has 0.3 GiB).
LARGEST_SENT = 1 << 29
LARGEST_INDEX = 1 << 31
# A compressed index that unpacks to more times its size is none either; real ones have a factor of 7 to 12.
LARGEST_FACTOR = 200
SMALL_INDEX = 1 << 26
ZST, BZ2, PLAIN = ".zst", ".bz2", ""
TIMESTAMP = re.compile(rb'"timestamp"\s*:\s*(\d+)')


@dataclass(frozen=True)
class Sent:
    """An index as the upstream sent it.

    Attributes:
        form: `.zst`, `.bz2` or "".
        data: as it was sent; None where it is what was sent the last time.
        sha256: of `data`, in lower-case hexadecimal.
    """

    form: str
    data: bytes | None
    validators: Validators
    sha256: str


@dataclass(frozen=True)
class Candidate:
    """An index that can be published.

    Attributes:
        size: of the unpacked `repodata.json` in bytes.
    """

    sent: Sent
    index: Index
    size: int


class Search:
    """The way to the index of one subdir; begins with a request, so that many can be under way at once.

    Args:
        known: validators of what was sent the last time.
        sha256: of what was sent the last time.
    """

    def __init__(self, fetcher: Fetcher, subdir: Subdir, known: Validators, sha256: str) -> None:
        self._fetcher = fetcher
        self._subdir = subdir
        self._known = known
        self._sha256 = sha256
        self._first = self._ask(ZST, subdir.index_urls)
        self.problems: list[str] = []
        self.unreachable = False

    def answers(self) -> Iterator[Sent]:
        """Yield one form after the other, from one place after the other, as long as the caller asks for more."""
        for form in (ZST, BZ2, PLAIN):
            urls: Sequence[str] = self._subdir.index_urls
            while urls:
                future = self._first if form == ZST and urls is self._subdir.index_urls else self._ask(form, urls)
                try:
                    answer = future.result()
                except MissingError:
                    break
                except FetchError as error:
                    self.problems.append(str(error))
                    self.unreachable = isinstance(error, UnreachableError)
                    if self.unreachable:
                        return
                    break
                yield self._sent(form, answer)
                # It was no good: the next place may have a better one.
                places = [url for url in urls if answer.validators.url.startswith(f"{url}/")]
                urls = urls[urls.index(places[0]) + 1 :] if places else ()

    def read(self, sent: Sent, data: bytes) -> Candidate | None:
        """Return the index in `data`; None, with the problem noted, where it is none."""
        try:
            unpacked = unpack(data, sent.form)
            return Candidate(sent, repodata.parse(unpacked), len(unpacked))
        except RepodataError as error:
            self.problems.append(f"{sent.validators.url}: {error}")
            return None

    def _ask(self, form: str, urls: Sequence[str]) -> Future[Answer]:
        return self._fetcher.ask(
            [f"{url}/repodata.json{form}" for url in urls], known=self._known, limit=LARGEST_SENT
        )  # fmt: skip

    def _sent(self, form: str, answer: Answer) -> Sent:
        if answer.data is None:
            return Sent(form, None, self._known, self._sha256)
        sha256 = hashlib.sha256(answer.data).hexdigest()
        same = sha256 == self._sha256
        return Sent(form, None if same else answer.data, answer.validators, sha256)


@dataclass(frozen=True)
class Asked:
    """A subdir whose index was asked for.

    Attributes:
        fact: what was noted of it.
    """

    subdir: Subdir
    fact: Mapping[str, Any]
    search: Search


def ask(config: Config, only: str, store: Store, memory: Memory, fetcher: Fetcher) -> list[Asked]:
    """Ask for the index of every subdir whose path `only` matches; the answers are for `Survey` to wait for."""
    asked = []
    for subdir in config.subdirs():
        if fnmatchcase(str(subdir.path), only):
            fact = memory.fact(f"{FACT}{subdir.path}")
            here = fact.get("sha256") and store.index_path(subdir.path).exists()
            known = noted(fact) if here else Validators()
            asked.append(Asked(subdir, fact, Search(fetcher, subdir, known, fact["sha256"] if here else "")))
    return asked


def noted(fact: Mapping[str, Any]) -> Validators:
    """Return the validators of the index that was published, from what was noted of a subdir."""
    return Validators(fact.get("url", ""), fact.get("etag", ""), fact.get("last_modified", ""))


class Extra:
    """A file beside an index that not every upstream has, for example `current_repodata.json`."""

    def __init__(self, fetcher: Fetcher, subdir: Subdir, name: str) -> None:
        self._fetcher = fetcher
        self._urls = [f"{url}/{name}" for url in subdir.index_urls]
        self._found: Future[tuple[str, bytes] | None] = Future()
        packed = fetcher.ask([f"{url}{ZST}" for url in self._urls], limit=LARGEST_SENT, optional=True)
        packed.add_done_callback(self._take_packed)

    def answered(self) -> bool:
        """Tell whether `read` returns at once."""
        return self._found.done()

    def read(self) -> bytes | None:
        """Return it unpacked; None where the upstream does not have it.

        Raises:
            FetchError: it could not be asked for.
            RepodataError: it is damaged.
        """
        found = self._found.result()
        return unpack(found[1], found[0]) if found else None

    def _take_packed(self, answer: Future[Answer]) -> None:
        """Ask for the plain form as soon as it is known that there is no other."""
        if isinstance(answer.exception(), MissingError):
            plain = self._fetcher.ask(self._urls, limit=LARGEST_SENT, optional=True)
            plain.add_done_callback(lambda answer: self._take(PLAIN, answer))
        else:
            self._take(ZST, answer)

    def _take(self, form: str, answer: Future[Answer]) -> None:
        error = answer.exception()
        if isinstance(error, MissingError):
            self._found.set_result(None)
        elif error:
            self._found.set_exception(error)
        else:
            self._found.set_result((form, answer.result().data or b""))


class Beside:
    """What the upstream has beside the index of a subdir; asked for at once, and read when it is needed.

    Attributes:
        current: its `current_repodata.json`.
        run_exports: its `run_exports.json` (CEP 12).
    """

    def __init__(self, fetcher: Fetcher, subdir: Subdir) -> None:
        self.current = Extra(fetcher, subdir, "current_repodata.json")
        self.run_exports = Extra(fetcher, subdir, "run_exports.json")
        self._bz2 = fetcher.ask(
            [f"{url}/repodata.json{BZ2}" for url in subdir.index_urls], method="HEAD", optional=True
        )

    def answered(self) -> bool:
        """Tell whether nothing has to be waited for."""
        return self._bz2.done() and self.current.answered() and self.run_exports.answered()

    def has_bz2(self) -> bool:
        """Tell whether the upstream has the index as bzip2; raises FetchError where it cannot be told."""
        try:
            return bool(self._bz2.result())
        except MissingError:
            return False


def unpack(data: bytes, form: str) -> bytes:
    """Unpack what was sent; at no time is more than the largest index in memory.

    Raises:
        RepodataError: it is damaged, or unpacks to more than an index does.
    """
    if form == PLAIN:
        return data
    limit = min(LARGEST_INDEX, max(SMALL_INDEX, LARGEST_FACTOR * len(data)))
    try:
        unpacked = _unpack_bz2(data, limit) if form == BZ2 else _unpack_zst(data, limit)
    except (OSError, EOFError, ValueError) as error:
        raise RepodataError(f"is not {form[1:]} ({error}); it begins with {data[:40]!r}") from error
    if len(unpacked) > limit:
        raise RepodataError(f"its {len(data)} bytes unpack to more than {limit}")
    return unpacked


def _unpack_zst(data: bytes, limit: int) -> bytes:
    try:
        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
            return reader.read(limit + 1)
    except zstandard.ZstdError as error:
        raise ValueError(error) from error


def _unpack_bz2(data: bytes, limit: int) -> bytes:
    unpacked = bytearray()
    while data:
        unpacker = bz2.BZ2Decompressor()
        unpacked += unpacker.decompress(data, limit + 1 - len(unpacked))
        if len(unpacked) > limit:
            break
        if not unpacker.eof:
            raise ValueError("it ends too early")
        data = unpacker.unused_data
    return bytes(unpacked)


def dated_before(sent: Validators, ours: Validators) -> bool:
    """Tell whether an upstream's index has an earlier date than the one that was published.

    That alone does not make it older: mirrors date a file by when they fetched it. See `newest`.
    """
    was, now = http_date(ours.last_modified), http_date(sent.last_modified)
    return was is not None and now is not None and now < was


def newest(data: bytes) -> int:
    """Return the latest timestamp of a record of a `repodata.json`, milliseconds of Unix time; 0 if there is none."""
    return max((int(match[1]) for match in TIMESTAMP.finditer(data)), default=0)
