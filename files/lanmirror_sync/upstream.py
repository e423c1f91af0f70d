"""What the upstream has of a subdir: its index in the smallest form on offer, checked before anyone relies on it."""

from __future__ import annotations

import bz2
import hashlib
import logging
import math
import re
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import zstandard

from lanmirror_sync import repodata
from lanmirror_sync.answers import Answer, FetchError, MissingError, UnreachableError, Validators
from lanmirror_sync.config import Subdir
from lanmirror_sync.fetch import Fetcher
from lanmirror_sync.mirror import Mirror
from lanmirror_sync.repodata import Index, RepodataError
from lanmirror_sync.standing import Standing
from lanmirror_sync.wire import http_date

if TYPE_CHECKING:
    from lanmirror_sync.planned import Planned

# An index that is larger than this as it is sent, or unpacked, is no index (conda-forge/linux-64 has 0.3 GiB).
LARGEST_SENT = 1 << 29
LARGEST_INDEX = 1 << 31
# A compressed index that unpacks to more times its size is none either; real ones have a factor of 7 to 12.
LARGEST_FACTOR = 200
SMALL_INDEX = 1 << 26
ZST, BZ2, PLAIN = ".zst", ".bz2", ""
FORMS = (ZST, BZ2, PLAIN)
GZ = ".gz"
# How the bytes of a packed file begin. What a file is called, and what the headers say, may both be wrong.
MAGIC = {b"\x28\xb5\x2f\xfd": ZST, b"BZh": BZ2, b"\x1f\x8b": GZ}
MOST_LAYERS = 3
# A compressed index that is older than this may be one that nobody renews: the date of the plain one tells.
FRESH_SECONDS = 86400.0
# Mirrors date a file by when they fetched it, one form of an index hours after the other.
SAME_AGE_SECONDS = 86400.0
# What stands between may have sent other bytes with a file's own validators: after so long it is fetched whole once.
TRUST_SECONDS = 7 * 86400.0
# No record is of later than the year 2100.
TIMESTAMP = re.compile(rb'"timestamp"\s*:\s*([0-9]{1,12}|[1-3][0-9]{12})(?![0-9])')

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sent:
    """An index as the upstream sent it.

    Attributes:
        form: `.zst`, `.bz2` or "".
        data: as it was sent; None where it is what was sent the last time.
        sha256: of `data`, in lower-case hexadecimal.
        stale: see `Standing`.
        whole: whether the bytes came, and not only the word that they are the same.
    """

    form: str
    data: bytes | None
    validators: Validators
    sha256: str
    stale: str = ""
    whole: bool = True


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

    Forms are asked for in the order of their size. An upstream that has only a larger one goes before those that come
    after it, and a plain index before a compressed one that nobody has renewed for long.

    Args:
        known: validators of what was sent the last time; none where that is not here any more.
        planned: what a plan has read since, and is asked about in the place of that.

    Attributes:
        subdir: whose.
        standing: how it stood at the beginning.
        doubted: whether what came so far names no package: another form is asked for, and may not be there.
        problems: what was wrong with the answers so far, a message each.
        unreachable: whether an upstream could not be asked.
        over: whether there is nothing more to come.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        subdir: Subdir,
        standing: Standing,
        known: Validators,
        planned: Planned | None = None,
    ) -> None:
        self._fetcher = fetcher
        self.subdir = subdir
        self.standing = standing
        self._known = planned.validators if planned else known
        self._planned = planned
        self._sha256 = standing.sha256 if known.url else ""
        self.problems: list[str] = []
        self.doubted = False
        self.unreachable = False
        self.over = False
        self._steps = self._way()
        self.waits_for: Future[Answer] | None = None
        self._waiting_or_sent()

    def poll(self) -> Sent | None:
        """Return the next form that came, where one did; the one before was no good then. Never waits."""
        while not self.over and (self.waits_for is None or self.waits_for.done()):
            if sent := self._waiting_or_sent():
                return sent
        return None

    def read(self, sent: Sent, data: bytes) -> Candidate | None:
        """Return the index in `data`; None, with the problem noted, where it is none."""
        try:
            unpacked = unpack(data, sent.form)
            return Candidate(sent, repodata.parse(unpacked), len(unpacked))
        except RepodataError as error:
            self.problems.append(f"{sent.validators.url}: {error}")
            return None

    def _waiting_or_sent(self) -> Sent | None:
        """Go one step; return what was found by it."""
        step = next(self._steps, None)
        self.over = step is None
        self.waits_for = step if isinstance(step, Future) else None
        return step if isinstance(step, Sent) else None

    def _way(self) -> Iterator[Future[Answer] | Sent]:
        """Yield each answer that has to be waited for, and each form that came."""
        if self._known.url and self.standing.stale and self.standing.form == PLAIN:
            yield from self._while_stale()
        for form in FORMS:
            places: Sequence[str] = self.subdir.index_urls
            while places:
                future = self._request(form, places)
                yield future
                answer = self._answer(future, quiet=self.doubted)
                if answer is None:
                    break
                place = next(place for place in places if answer.validators.url.startswith(f"{place}/"))
                for earlier in answer.lacking:
                    if places.index(earlier) < places.index(place):
                        yield from self._larger_forms(form, earlier)
                if form != PLAIN:
                    yield from self._plain_if_newer(answer, place)
                if sent := self._sent(form, answer):
                    yield sent
                # It was no good: the next place may have a better one.
                places = places[places.index(place) + 1 :]
            if self.unreachable:
                return

    def _while_stale(self) -> Iterator[Future[Answer] | Sent]:
        """Go on with the plain index, unless the compressed one beside it was renewed."""
        renewed = self._head(f"{self._known.url}{ZST}")
        plain = self._request(PLAIN, [self._known.url.rpartition("/")[0]])
        yield renewed
        yield plain
        packed, answer = self._answer(renewed, quiet=True), self._answer(plain, quiet=True)
        sent = self._sent(PLAIN, answer) if answer else None
        if sent and (packed is None or packed.validators.word == self.standing.stale):
            yield replace(sent, stale=self.standing.stale)

    def _larger_forms(self, form: str, place: str) -> Iterator[Future[Answer] | Sent]:
        """Look at what an upstream has that lacks a form which one after it has."""
        for larger in FORMS[FORMS.index(form) + 1 :]:
            future = self._request(larger, [place])
            yield future
            answer = self._answer(future, quiet=True)
            if answer and (sent := self._sent(larger, answer)):
                yield sent

    def _plain_if_newer(self, packed: Answer, place: str) -> Iterator[Future[Answer] | Sent]:
        """Yield the plain index where the compressed one is old, and much older than that."""
        modified = packed.validators.last_modified or (self._known.last_modified if packed.data is None else "")
        date = http_date(modified)
        if date is None or time.time() - date < FRESH_SECONDS:
            return
        head = self._head(f"{place}/repodata.json")
        yield head
        beside = self._answer(head, quiet=True)
        plain_date = http_date(beside.validators.last_modified) if beside else None
        if plain_date is None or plain_date - date < SAME_AGE_SECONDS:
            return
        future = self._request(PLAIN, [place])
        yield future
        answer = self._answer(future, quiet=True)
        if answer and (sent := self._sent(PLAIN, answer)):
            log.info("%s: its %s form is of %s and not renewed; the plain one is used", self.subdir.path, ZST, modified)
            yield replace(sent, stale=packed.validators.word)

    def _request(self, form: str, urls: Sequence[str]) -> Future[Answer]:
        return self._fetcher.request(
            [f"{url}/repodata.json{form}" for url in urls], known=self._known, limit=LARGEST_SENT,
            spare=form != PLAIN or self.doubted,
        )  # fmt: skip

    def _head(self, url: str) -> Future[Answer]:
        return self._fetcher.request([url], method="HEAD", spare=True, optional=True)

    def _answer(self, future: Future[Answer], *, quiet: bool = False) -> Answer | None:
        """Return an answer that brings something; else None, with the problem noted unless it does not matter."""
        try:
            answer = future.result()
        except MissingError:
            return None
        except FetchError as error:
            if not quiet:
                self.problems.append(str(error))
                self.unreachable = isinstance(error, UnreachableError)
            return None
        lacking = tuple(url.rpartition("/")[0] for url in answer.lacking)
        return replace(answer, lacking=lacking)

    def _sent(self, form: str, answer: Answer) -> Sent | None:
        """Return what an answer brings; None where it is what a plan has kept, and that has gone since."""
        if answer.data is None and self._planned:
            data = self._planned.read()
            return Sent(form, data, self._known, self._planned.sha256) if data is not None else None
        if answer.data is None:
            return Sent(form, None, self._known, self._sha256, whole=False)
        sha256 = hashlib.sha256(answer.data).hexdigest()
        same = sha256 == self._sha256
        return Sent(form, None if same else answer.data, answer.validators, sha256)


def begin_searches(mirror: Mirror, only: str, fetcher: Fetcher) -> list[Search]:
    """Ask for the index of every subdir whose path `only` matches; the answers are for `Survey` to wait for."""
    wanted = [subdir for subdir in mirror.config.subdirs() if fnmatchcase(str(subdir.path), only)]
    return [begin_search(mirror, subdir, fetcher) for subdir in wanted]


def begin_search(mirror: Mirror, subdir: Subdir, fetcher: Fetcher) -> Search:
    """Ask for the index of a subdir."""
    standing = mirror.memory.standing(subdir.path)
    known = Validators()
    if standing.sha256 and mirror.store.index_path(subdir.path).exists():
        known = published(standing) if trusted(standing, time.time()) else Validators(standing.url)
    kept = None
    if not standing.stale and mirror.store.planned_path(subdir.path).exists():
        from lanmirror_sync.planned import find  # noqa: PLC0415 - most have none

        kept = find(mirror.store, subdir.path)
    return Search(fetcher, subdir, standing, known, kept if kept and kept.sha256 != standing.sha256 else None)


def published(standing: Standing) -> Validators:
    """Return the validators of the index that was published."""
    return Validators(standing.url, standing.etag, standing.last_modified)


def trusted(standing: Standing, now: float) -> bool:
    """Tell whether the validators of the published index are believed now (Unix time, seconds)."""
    return now < standing.trust <= now + TRUST_SECONDS


def trust(sent: Sent, standing: Standing, count: int, now: float) -> float:
    """Return until when the validators of an index are to be believed, in Unix time (seconds).

    Of an index that names no package, or fewer than the last one, not yet: bytes that are wrong, with the validators
    of the right ones, would be "not modified" for ever. They are believed when the same bytes came once more.

    Args:
        sent: the index.
        standing: how the subdir stood before.
        count: how many packages it names.
        now: Unix time, seconds.
    """
    if not sent.whole:
        return standing.trust
    return now + TRUST_SECONDS if count and count >= (standing.listed or 0) else 0.0


class Extra:
    """A file beside an index that not every upstream has, for example `current_repodata.json`.

    Attributes:
        found: its form and its bytes, as they were sent; None where there is none.
    """

    def __init__(self, fetcher: Fetcher, subdir: Subdir, name: str) -> None:
        self._fetcher = fetcher
        self._urls = [f"{url}/{name}" for url in subdir.index_urls]
        self.found: Future[tuple[str, bytes] | None] = Future()
        packed = fetcher.request([f"{url}{ZST}" for url in self._urls], limit=LARGEST_SENT, optional=True, spare=True)
        packed.add_done_callback(self._take_packed)

    def read(self) -> bytes | None:
        """Return it unpacked; None where the upstream does not have it, or has a page for people in its place.

        Raises:
            FetchError: it could not be asked for.
            RepodataError: it is damaged.
        """
        found = self.found.result()
        data = unpack(found[1], found[0]) if found and not is_page(found[1]) else None
        return None if data is None or is_page(data) else data

    def _take_packed(self, answer: Future[Answer]) -> None:
        """Ask for the plain form as soon as it is known that there is no other."""
        error = answer.exception()
        if isinstance(error, MissingError) or (error is None and is_page(answer.result().data or b"")):
            plain = self._fetcher.request(self._urls, limit=LARGEST_SENT, optional=True, spare=True)
            plain.add_done_callback(lambda answer: self._take(PLAIN, answer))
        else:
            self._take(ZST, answer)

    def _take(self, form: str, answer: Future[Answer]) -> None:
        error = answer.exception()
        if isinstance(error, MissingError):
            self.found.set_result(None)
        elif error:
            self.found.set_exception(error)
        else:
            self.found.set_result((form, answer.result().data or b""))


class Beside:
    """What the upstream has beside the index of a subdir; asked for at once, and read when it is needed.

    Attributes:
        current: its `current_repodata.json`.
        run_exports: its `run_exports.json` (CEP 12).
    """

    def __init__(self, fetcher: Fetcher, subdir: Subdir) -> None:
        self.current = Extra(fetcher, subdir, "current_repodata.json")
        self.run_exports = Extra(fetcher, subdir, "run_exports.json")
        self._bz2 = fetcher.request(
            [f"{url}/repodata.json{BZ2}" for url in subdir.index_urls], method="HEAD", optional=True, spare=True
        )

    def answered(self, seconds: float = 0.0) -> bool:
        """Tell whether nothing has to be waited for any more, after so many seconds."""
        parts: list[Future[Any]] = [self._bz2, self.current.found, self.run_exports.found]
        return not futures.wait(parts, None if math.isinf(seconds) else seconds).not_done

    def has_bz2(self) -> bool:
        """Tell whether the upstream has the index as bzip2; raises FetchError where it cannot be told."""
        try:
            return bool(self._bz2.result())
        except MissingError:
            return False


def is_page(data: bytes) -> bool:
    """Tell whether something is HTML: some servers answer 200 with a page that says that there is nothing."""
    return data[:512].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<"


def unpack(data: bytes, form: str) -> bytes:
    """Unpack what was sent; at no time is more than the largest index in memory.

    How it is packed, and how often, is told by its bytes: a server may have compressed it once more on the way,
    whatever was asked for (RFC 9110, 12.5.3), or tell of one layer twice.

    Raises:
        RepodataError: it is damaged, or unpacks to more than an index does.
    """
    limit = min(LARGEST_INDEX, max(SMALL_INDEX, LARGEST_FACTOR * len(data)))
    unpacked = data
    for layer in range(MOST_LAYERS):
        kind = next((kind for magic, kind in MAGIC.items() if unpacked.startswith(magic)), PLAIN)
        if kind == PLAIN:
            if layer == 0 and form != PLAIN and not data.lstrip()[:1] == b"{":
                raise RepodataError(f"is not {form[1:]}; it begins with {data[:40]!r}")
            break
        try:
            unpacked = _UNPACKERS[kind](unpacked, limit)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise RepodataError(f"is not {kind[1:]} ({error}); it begins with {data[:40]!r}") from error
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


def _unpack_gz(data: bytes, limit: int) -> bytes:
    unpacked = bytearray()
    while data:
        unpacker = zlib.decompressobj(wbits=31)
        unpacked += unpacker.decompress(data, limit + 1 - len(unpacked))
        if len(unpacked) > limit:
            break
        if not unpacker.eof:
            raise ValueError("it ends too early")
        data = unpacker.unused_data
    return bytes(unpacked)


_UNPACKERS = {ZST: _unpack_zst, BZ2: _unpack_bz2, GZ: _unpack_gz}


def dated_before(sent: Validators, ours: Validators) -> bool:
    """Tell whether an upstream's index has an earlier date than the one that was published.

    That alone does not make it older: mirrors date a file by when they fetched it. See `newest`.
    """
    was, now = http_date(ours.last_modified), http_date(sent.last_modified)
    return was is not None and now is not None and now < was


def newest(data: bytes) -> int:
    """Return the latest timestamp of a record of a `repodata.json`, milliseconds of Unix time; 0 if there is none."""
    return max((int(match[1]) for match in TIMESTAMP.finditer(data)), default=0)
