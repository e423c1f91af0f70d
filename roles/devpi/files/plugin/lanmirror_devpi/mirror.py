"""The page of a project in a mirror: known, or asked for.

A page that is younger than `mirror_cache_expiry` is given as it is stored. For an older one the upstream is asked, and
waited for PATIENCE seconds; then the stored one is given, and the answer is stored when it comes. For a page that is
not known, the client waits as long as bytes come. One request for a page is under way at a time, whoever waits for it,
in a thread of its own: reading, parsing and storing are in nobody's way.

Where an upstream is silent, nobody waits for it again for PAUSE seconds. What the upstream has not confirmed for
`max_stale` seconds is an error.

A page is stored as one value (`page.dump`), with the URL of each file. devpi itself stores an entry for each link as
well, which takes seconds for a large project; here an entry is made when its file is fetched.

A page belongs to the URL that it came from: when that is no upstream of the mirror any more, its pages are not given.

Of several upstreams (places.py), the next is asked where one fails. Its page must not be older than the known one,
unless that is overdue, and it must not name a file with another hash.
"""

from __future__ import annotations

import hashlib
import threading
import time
from base64 import b64decode, b64encode
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import httpx
from devpi_server import mirror
from devpi_server.log import threadlog
from devpi_server.normalized import normalize_name

from lanmirror_devpi import coming, links, outside, page, places
from lanmirror_devpi.flat import FLAT
from lanmirror_devpi.replace import replace
from lanmirror_devpi.times import MISSING, Store, Times
from lanmirror_devpi.told import Told

PATIENCE = 1.0
PAUSE = 30.0
# How often it is looked whether an upstream has begun to answer, seconds.
LOOK = 0.2
# How many pages are asked for at a time, and how many of an upstream that is silent.
THREADS, THREADS_OF_SILENT = 64, 4
# No page is larger, bytes: that of the project with the most files is a tenth of it.
MAX_PAGE = 128 << 20
ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01"
# Where the page stands in the value that devpi has for it.
FIELD = "lanmirror"
# How long ago the page of all files of a flat upstream may have been asked for, seconds, to give the page of a project.
FLAT_SECONDS = 5.0
# Pages that are kept unpacked: with so many files on them, at some 2 KB each, or of so many projects, however large.
FILES, PAGES = 10_000, 2
# What tells that a server has nothing for us, or not now, whatever is asked for.
TURNED_AWAY = {HTTPStatus.FORBIDDEN, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
# What a file does not lose where another upstream does not tell it.
LASTING = ("core-metadata", "size", "upload-time")
# Digits of a mark.
MARK = 24
# The mark of a page that devpi stored before there was this plugin.
BEFORE = "before"


@dataclass(frozen=True)
class Known:
    """A stored page.

    Attributes:
        packed: The page itself, as `page.dump` makes it.
        mark: Differs from that of any other page.
        source: URL of the index that it came from; "" for one that devpi stored before there was this plugin.
        etag: The upstream's, "" for none.
        serial: The upstream's, -1 for none (header X-PyPI-Last-Serial).
    """

    packed: bytes
    mark: str
    source: str
    etag: str
    serial: int

    @property
    def page(self) -> page.Page:
        """The page, unpacked."""
        return unpacked.page(self)


class Unpacked:
    """The pages that were asked for last, unpacked: an installation asks for the files of many projects in turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pages: OrderedDict[str, page.Page] = OrderedDict()
        self._size = 0

    def page(self, known: Known) -> page.Page:
        """Return the page of a stored one."""
        if known.mark == BEFORE:
            return page.load(known.packed)
        with self._lock:
            if found := self._pages.get(known.mark):
                self._pages.move_to_end(known.mark)
                return found
        found = page.load(known.packed)
        with self._lock:
            # Another thread may have been faster.
            if known.mark not in self._pages:
                self._pages[known.mark] = found
                self._size += weight(found)
            while len(self._pages) > PAGES and self._size > FILES:
                self._size -= weight(self._pages.popitem(last=False)[1])
        return found


def weight(found: page.Page) -> int:
    """Return what a page counts for: its files, and itself."""
    return len(found.files) + 1


unpacked = Unpacked()


@dataclass(frozen=True)
class Question:
    """What an upstream is asked for.

    Attributes:
        index: user/index.
        sources: URLs of the upstreams, in order, without credentials, with a slash at the end.
        flat: Whether the page of all files stands at the first, which is the only one then.
        project: The project's normal name.
        known: What is stored, None for nothing.
        ignore_serial: Whether an older serial is as good.
        ended: How many requests for this page had ended before it was looked for.
    """

    index: str
    sources: tuple[str, ...]
    flat: bool
    project: str
    known: Known | None
    ignore_serial: bool
    ended: int

    @property
    def first(self) -> str:
        """The first upstream."""
        return self.sources[0]

    def is_of_another(self, source: str) -> bool:
        """Return whether what is known came from another upstream than this one."""
        return self.known is not None and self.known.source not in {"", source}


@dataclass(frozen=True)
class Reply:
    """What came of it.

    Attributes:
        known: The page of now, the same as before where it has not changed; None where there is none.
        why: Why the upstream gave nothing of use; "" when it did.
        devpi_serial: On a replica: what the primary's database has from then on.
        sure: Whether it is remembered that there is none: those upstreams say it that should be asked first.
    """

    known: Known | None = None
    why: str = ""
    devpi_serial: int = -1
    sure: bool = True


@dataclass(frozen=True)
class FlatPage:
    """The page of a flat upstream: when it was asked for (time.monotonic()), for which index, and the answer."""

    at: float
    source: str
    url: str
    content_type: str
    body: bytes
    validators: dict[str, str]


@dataclass
class Flight:
    """A request that is under way; `reply` is there when `read` is set, and stored when `ended` is.

    `began` is when its turn came (time.monotonic()), `heard` whether the upstream has said anything, `left` how many
    upstreams may be asked after that one.
    """

    read: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    began: float | None = None
    heard: bool = False
    left: int = 0
    reply: Reply = field(default_factory=Reply)

    def turn(self, left: int) -> None:
        """Begin with the next upstream."""
        self.left, self.heard, self.began = left, False, time.monotonic()


# The request that a thread is busy with.
underway = threading.local()
# Marks of stored pages that were found whole.
whole: set[str] = set()


class AgainError(Exception):
    """What is known is older than it looks."""


class AnswerError(Exception):
    """The upstream gives nothing of use; the message says why, and holds no credentials."""


class HostError(AnswerError):
    """The upstream's host gives nothing, whatever page is asked for."""


class DisagreeError(AnswerError):
    """The upstream names a file with another hash than the known page does."""


class Asker:
    """Asks the upstreams of all mirrors."""

    def __init__(self, xom: Any, told: Told, *, max_stale: float, limit: float, pause: float) -> None:
        """Ask for the mirrors of `xom`.

        Args:
            xom: devpi's own object of everything.
            told: Where it is written which upstreams answer.
            max_stale: Seconds after which an unconfirmed page is an error.
            limit: Seconds after which a page that still comes is given up.
            pause: Seconds for which one of several upstreams is left alone that failed.
        """
        self.xom, self.told, self.max_stale, self.limit = xom, told, max_stale, limit
        self.store = Store(xom.config.server_path / ".lanmirror-times.sqlite")
        self.started = time.time()
        self.pauses = places.Pauses(pause)
        self._threads = ThreadPoolExecutor(THREADS, "lanmirror-page")
        self._lock = threading.Lock()
        self._flights: dict[tuple[str, str], Flight] = {}
        self._ended: Counter[tuple[str, str]] = Counter()
        self._silent: dict[str, float] = {}
        self._flat: dict[str, FlatPage] = {}
        self._flat_locks: dict[str, threading.Lock] = {}

    # ---- what is known -------------------------------------------------------------------------------------

    def times(self, index: str) -> Times:
        """Return what is known of when the pages of an index were confirmed."""
        return Times(self.store, index)

    def is_silent(self, index: str) -> bool:
        """Return whether the upstream of an index let somebody wait just now."""
        return time.monotonic() - self._silent.get(index, -PAUSE) < PAUSE

    def was_silent(self, index: str) -> None:
        """Remember that the upstream of an index lets somebody wait."""
        self._silent[index] = time.monotonic()

    def is_overdue(self, times: Times, project: Any) -> bool:
        """Return whether the upstream has not confirmed a page for too long."""
        confirmed = times.confirmed(project)
        return time.time() - (confirmed.at if confirmed else self.started) > self.max_stale

    # ---- one request for a page at a time -------------------------------------------------------------------

    def ended(self, index: str, project: Any) -> int:
        """Return how many requests for a page have ended."""
        return self._ended[index, str(project)]

    def ask(self, stage: Any, question: Question, *, store: bool) -> Flight | None:
        """Return the request for a page that is under way, or begin one; None where its upstream has too many.

        Raises:
            AgainError: One has ended since the question was made, and its page was stored.
        """
        key = question.index, str(question.project)
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight
            # In a transaction that writes, nothing else would be seen.
            if store and self._ended[key] != question.ended:
                raise AgainError
            if question.known and self.is_silent(question.index):
                waiting = sum(index == question.index for index, _ in self._flights)
                if waiting >= THREADS_OF_SILENT:
                    return None
            flight = self._flights[key] = Flight()
        self._threads.submit(self._fly, stage, question, flight, store)
        return flight

    def _fly(self, stage: Any, question: Question, flight: Flight, store: bool) -> None:
        flight.began = time.monotonic()
        underway.flight = flight
        try:
            flight.reply = self._reply(stage, question)
            flight.read.set()
            if store:
                self.settle(question, flight.reply)
        except Exception as error:
            threadlog.exception("the page of %s in %s", question.project, question.index)
            flight.reply = Reply(why=f"{type(error).__name__}: {error}")
        finally:
            with self._lock:
                key = question.index, str(question.project)
                self._flights.pop(key, None)
                self._ended[key] += 1
            flight.read.set()
            flight.ended.set()

    def settle(self, question: Question, reply: Reply, *, within: bool = False) -> None:
        """Store what came of a request, `within` the transaction of this thread or in one of its own."""
        times = self.times(question.index)
        known = reply.known
        if reply.why or self.xom.is_replica():
            return
        if known is None:
            # One that was there is asked for each time, until it is too old.
            if question.known is None and reply.sure:
                self._forget(question)
                times.confirm(question.project, MISSING)
        elif question.known is not None and (known.mark, known.source) == (question.known.mark, question.known.source):
            times.confirm(question.project, known.mark)
        elif within:
            with self.xom.keyfs.write_transaction(allow_restart=True):
                self._keep(question, known)
        else:
            self.xom.lanmirror_together.run(lambda: self._keep(question, known))

    def _keep(self, question: Question, known: Known) -> None:
        """Store a page, in a transaction that writes."""
        stage = self.xom.model.getstage(*question.index.split("/"))
        # It may have been removed or changed meanwhile.
        if stage is None or known.source not in places.upstreams_of(stage):
            return
        stage.key_projsimplelinks(question.project).set(stored(known))
        stage.add_project_name(question.project)
        times = self.times(question.index)
        self.xom.keyfs.tx.on_commit_success(lambda: times.confirm(question.project, known.mark))

    def _forget(self, question: Question) -> None:
        """Delete a stored page that nothing is known by: what it came from is no upstream any more."""
        user, index = question.index.split("/")
        with self.xom.keyfs.read_transaction(allow_reuse=True):
            stage = self.xom.model.getstage(user, index)
            if stage is None or not stage.is_project_cached(question.project):
                return
        with self.xom.keyfs.write_transaction(allow_restart=True):
            stage = self.xom.model.getstage(user, index)
            if stage is not None and places.upstreams_of(stage) == question.sources:
                stage.key_projsimplelinks(question.project).delete()
                projects = stage.key_projects.get_mutable()
                projects.discard(question.project)
                stage.key_projects.set(projects)

    # ---- what is asked ------------------------------------------------------------------------------------

    def _reply(self, stage: Any, question: Question) -> Reply:
        try:
            reply = (
                self._from_primary(stage, question) if self.xom.is_replica() else self._from_upstreams(stage, question)
            )
        except AnswerError as error:
            self.told.tell(question.index, str(error), places.all_of(stage))
            return Reply(why=str(error))
        self.told.tell(question.index, "", places.all_of(stage))
        return reply

    def _from_primary(self, stage: Any, question: Question) -> Reply:
        known = question.known
        # The primary waits for its upstream as long as it may.
        status, headers, _, _ = self._get(stage, f"{question.first}{question.project}/", {}, self.limit + 30)
        if status == HTTPStatus.NOT_FOUND:
            return Reply()
        if status != HTTPStatus.OK:
            raise failed(status)
        return Reply(known=known, devpi_serial=int(headers.get("X-DEVPI-SERIAL", -1)))

    def _from_upstreams(self, stage: Any, question: Question) -> Reply:
        """Return what the first upstream gives that gives something of use."""
        if question.flat:
            return self._from_flat(stage, question)
        if len(question.sources) == 1:
            return self._from_upstream(stage, question, question.first)
        now, paused = self.pauses.in_order(question.sources)
        # Who has a page need not wait for a host that failed just now.
        order = [*now, *([] if question.known else paused)]
        why = dict.fromkeys(paused, "it failed just now")
        older, is_missing = None, False
        for left, source in zip(reversed(range(len(order))), order, strict=True):
            underway.flight.turn(left)
            self.pauses.trying(source)
            try:
                reply = self._from_upstream(stage, question, source)
            except AnswerError as error:
                why[source] = str(error)
                # A page that is refused is of one project.
                is_refused = isinstance(error, DisagreeError)
                self.told.tell_place(question.index, source, "" if is_refused else str(error), places.all_of(stage))
                if isinstance(error, HostError):
                    self.pauses.failed(source)
                if is_refused:
                    threadlog.error("%s", error)
                    self.told.tell_wrong(question.index, source, str(error))
                continue
            self.pauses.answered(source)
            self.told.tell_place(question.index, source, "", places.all_of(stage))
            if reply.known is None and question.known is None:
                return replaced(reply, sure=not why)
            if reply.known is None:
                is_missing = True
            elif is_older(reply.known, question):
                why[source] = "its page is older"
                older = older or reply
            else:
                return reply
        if older and self.is_overdue(self.times(question.index), question.project):
            # Nobody has a newer one.
            return older
        if is_missing and not why:
            return Reply()
        raise AnswerError("; ".join(f"{source}: {why[source]}" for source in question.sources if source in why))

    def _from_upstream(self, stage: Any, question: Question, source: str) -> Reply:
        known, is_of_another = question.known, question.is_of_another(source)
        asking = {"Accept": ACCEPT}
        if known and known.etag and not is_of_another:
            asking["If-None-Match"] = known.etag
        status, answer, url, body = self._get(stage, f"{source}{question.project}/", asking, stage.timeout)
        if status == HTTPStatus.NOT_MODIFIED and known and not is_of_another:
            return Reply(known)
        gone = status == HTTPStatus.FORBIDDEN and self._has_only_refused_this(stage, question, source)
        if gone or status == HTTPStatus.NOT_FOUND:
            return Reply()
        if status != HTTPStatus.OK:
            raise failed(status)
        if normalize_name(urlsplit(url).path.rstrip("/").rpartition("/")[2]) != question.project:
            raise AnswerError("it leads to the page of another project")
        content_type, etag = answer.get("Content-Type", ""), answer.get("ETag", "")
        serial = serial_of(answer.get("X-PYPI-LAST-SERIAL"), question, source)
        try:
            found = page.parse(question.project, url, content_type, body)
        except page.PageError as error:
            raise AnswerError(str(error)) from error
        if not found.files and not may_be_empty(found, question, content_type):
            raise AnswerError("its page has no files")
        if known and is_of_another and (name := disagreement(found, known.page)):
            raise DisagreeError(
                f"the page of {question.project} at {source} names {name} with another hash than the known one, "
                f"which is of {known.source}, and is refused"
            )
        if known and len(question.sources) > 1:
            # Also of the same upstream, whose page before may have been completed.
            found = completed(found, known.page)
        return Reply(known_of(found, source, etag, serial))

    def _has_only_refused_this(self, stage: Any, question: Question, source: str) -> bool:
        """Return whether a 403 means that the upstream has no such project, as object stores say it.

        It does where another page of the same index is given: who is turned away gets none.
        """
        with self.xom.keyfs.read_transaction(allow_reuse=True):
            ours = self.xom.model.getstage(*question.index.split("/"))
            others = (
                [] if ours is None else sorted(name for name in ours.key_projects.get() if name != question.project)
            )
        url = f"{source}{others[0]}/" if others else source
        # Of the list of all projects, the beginning is enough.
        status, *_ = self._get(stage, url, {"Accept": ACCEPT, "Range": "bytes=0-0"}, stage.timeout, body=False)
        return status in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.NOT_FOUND}

    def _from_flat(self, stage: Any, question: Question) -> Reply:
        began = time.monotonic()
        # A page of a moment ago is new enough for what is on it: an installer asks for many projects at a time.
        for newer_than in (began - FLAT_SECONDS, began):
            flat = self._flat_page(stage, question, newer_than)
            try:
                found = page.parse(question.project, flat.url, flat.content_type, flat.body, flat=True)
            except page.PageError as error:
                raise AnswerError(str(error)) from error
            if found.files:
                return Reply(known_of(found, question.first, "", -1))
        return Reply()

    def _flat_page(self, stage: Any, question: Question, newer_than: float) -> FlatPage:
        """Return the page of all files, fetched after a time of time.monotonic()."""
        with self._lock:
            lock = self._flat_locks.setdefault(question.index, threading.Lock())
        with lock:
            kept = self._flat.get(question.index)
            if kept and kept.source != question.first:
                kept = None
            if kept and kept.at > newer_than:
                return kept
            asked = time.monotonic()
            headers = {"Accept": ACCEPT, **(kept.validators if kept else {})}
            status, answer, url, body = self._get(stage, question.first, headers, stage.timeout)
            if kept and status == HTTPStatus.NOT_MODIFIED:
                flat = replaced(kept, at=asked)
            elif status == HTTPStatus.OK:
                told = {"If-None-Match": answer.get("ETag"), "If-Modified-Since": answer.get("Last-Modified")}
                validators = {name: value for name, value in told.items() if value}
                flat = FlatPage(asked, question.first, url, answer.get("Content-Type", ""), body, validators)
            else:
                raise AnswerError(f"{status} status")
            self._flat[question.index] = flat
            return flat

    def _get(
        self, stage: Any, url: str, headers: dict[str, str], timeout: float, *, body: bool = True
    ) -> tuple[int, httpx.Headers, str, bytes]:
        """Return status, headers, URL and body of an answer; AnswerError where there is none, or no end of it."""
        until = time.monotonic() + self.limit
        try:
            text = bytearray()
            asking = {"Accept-Encoding": "gzip", **headers}
            with outside.client(stage).stream("GET", url, headers=asking, timeout=timeout) as answer:
                underway.flight.heard = True
                if body and answer.status_code == HTTPStatus.OK:
                    for piece in answer.iter_bytes():
                        text += piece
                        if len(text) > MAX_PAGE:
                            raise AnswerError(f"its page is larger than {MAX_PAGE >> 20} MiB")
                        if time.monotonic() > until:
                            raise HostError(f"its page takes longer than {self.limit:.0f} s")
                return answer.status_code, answer.headers, str(answer.url), bytes(text)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            threadlog.warn("%s: %s: %s", outside.masked(url), type(error).__name__, error)
            raise HostError("it cannot be reached") from error


def failed(status: int) -> AnswerError:
    """Return what a status is that is no answer to the question."""
    is_of_host = status in TURNED_AWAY or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return (HostError if is_of_host else AnswerError)(f"{status} status")


def known_of(found: page.Page, source: str, etag: str, serial: int) -> Known:
    """Return a page that came as it is stored."""
    packed = page.dump(found)
    return Known(packed, hashlib.sha256(packed).hexdigest()[:MARK], source, etag, serial)


def is_older(new: Known, question: Question) -> bool:
    """Return whether the page of an upstream is older than the known one, which came from another upstream.

    Serials tell it, where both have one. Else a page is newer that has a file more. Where each has files that the other
    has not, as after a deletion, the upstream counts that stands before the other.
    """
    known = question.known
    if known is None or not question.is_of_another(new.source):
        return False
    if min(new.serial, known.serial) >= 0:
        return new.serial < known.serial
    has, had = ({file.name for file in each.page.files} for each in (new, known))
    if not had - has:
        return False
    after = question.sources.index(new.source) > question.sources.index(known.source)
    return after or not has - had


def disagreement(new: page.Page, known: page.Page) -> str:
    """Return the name of a file that two pages name with different hashes, "" for none."""
    before = {file.name: file.told.get("hashes") or {} for file in known.files}
    for file in new.files:
        one, other = file.told.get("hashes") or {}, before.get(file.name, {})
        if any(str(one[kind]).lower() != str(other[kind]).lower() for kind in one.keys() & other.keys()):
            return file.name
    return ""


def completed(new: page.Page, known: page.Page) -> page.Page:
    """Return a page with what the known page tells of the same files, and its own upstream does not.

    Many mirrors tell no date: without it, a rule about the age of files would hide those that it has shown.
    """
    before = {file.path: file.told for file in known.files}

    def told(file: page.File) -> page.File:
        lasting = {key: before[file.path][key] for key in LASTING if key in before.get(file.path, {})}
        # By its hash alone it is surely the same file.
        return replaced(file, told={**lasting, **file.told}) if lasting and file.path.startswith("+f/") else file

    return replaced(new, files=tuple(map(told, new.files)))


def serial_of(header: str | None, question: Question, source: str) -> int:
    """Return the serial of an answer, -1 where there is none; AnswerError where it is older than that of before."""
    serial = int(header) if header and header.isdecimal() else -1
    if question.is_of_another(source):
        # It has to be compared with others.
        return serial
    if question.known and serial < question.known.serial:
        if not question.ignore_serial:
            raise AnswerError(f"it gives serial {serial}, older than {question.known.serial}")
        # When the upstream is changed back, its pages count again.
        return -1
    return serial


def may_be_empty(found: page.Page, question: Question, content_type: str) -> bool:
    """Return whether a page without files is what the upstream means.

    It is a login page, or one that broke, where there were files before, and where HTML has no link. A project in
    quarantine has none by intent (https://packaging.python.org/en/latest/specifications/project-status-markers/).
    """
    if found.told.get("project-status", {}).get("status") == "quarantined":
        return True
    is_json = content_type.partition(";")[0].strip().endswith("json")
    return is_json and not (question.known and question.known.page.files)


def stored(known: Known) -> dict[str, Any]:
    """Return the value that devpi stores for a page: text, since it takes no bytes; its own fields say nothing."""
    about = {"page": b64encode(known.packed).decode(), "mark": known.mark, "source": known.source, "etag": known.etag}
    return {"links": [], "requires_python": [], "yanked": [], "serial": known.serial, "etag": None, FIELD: about}


def known_page(stage: Any, project: Any) -> Known | None:
    """Return the stored page of a project, whatever it came from; None where there is none."""
    value = stage.key_projsimplelinks(project).get()
    about = value.get(FIELD)
    if about:
        known = Known(b64decode(about["page"]), about["mark"], about["source"], about["etag"], value["serial"])
        # On a disk that loses what was written; the upstream is asked as for a page that nobody has seen.
        return known if is_whole(known) else None
    if not value.get("links"):
        return None
    # devpi's own, of before there was this plugin: its files have entries, with their URLs.
    theirs = mirror.join_links_data(value["links"], value.get("requires_python", []), value.get("yanked", []))
    return Known(page.dump(links.page_of(str(project), theirs)), BEFORE, "", "", -1)


def is_whole(known: Known) -> bool:
    """Return whether a stored page can be read; each is looked at once."""
    if known.mark not in whole:
        if hashlib.sha256(known.packed).hexdigest()[:MARK] != known.mark:
            threadlog.error("a stored page is damaged, and is asked for anew: %s", known.mark)
            return False
        whole.add(known.mark)
    return True


def known_here(stage: Any, project: Any) -> Known | None:
    """Return the stored page of a project, unless what it came from is no upstream any more."""
    known = known_page(stage, project)
    if known is None or stage.xom.is_replica() or known.source in {"", *places.upstreams_of(stage)}:
        return known
    return None


def get(stage: Any, project: Any, *, again: bool = False) -> tuple[Known, bool]:
    """Return the page of a project in a mirror, and whether it is older than it should be.

    Args:
        stage: The mirror.
        project: Its name.
        again: Ask the upstream, however young the known page is.

    Raises:
        stage.UpstreamNotFoundError: The upstream has no such project.
        stage.UpstreamError: It is not known, and the upstream gives nothing of use; or what is known is too old.
    """
    while True:
        try:
            return get_once(stage, project, again=again)
        except AgainError:
            stage.keyfs.restart_read_transaction()


def get_once(stage: Any, project: Any, *, again: bool) -> tuple[Known, bool]:
    """Return the page of a project, as `get`; AgainError where another request stored it meanwhile."""
    asker: Asker = stage.xom.lanmirror_asker
    project = normalize_name(project)
    ended = asker.ended(stage.name, project)
    if not stage.keyfs.tx.write:
        # This request may have waited for its turn since its transaction began.
        stage.keyfs.restart_read_transaction()
    known, times = known_here(stage, project), stage.cache_retrieve_times
    fresh = (
        not again
        and not times.is_expired(project, stage.cache_expiry)
        and times.mark(project) == (known.mark if known else MISSING)
    )
    missing = known is None and times.mark(project) == MISSING
    if fresh and missing:
        raise stage.UpstreamNotFoundError(f"project {project} not found")
    # A replica's own threads set `offline`: nobody is to be asked for them.
    if known and (fresh or stage.offline):
        return known, False
    if stage.offline:
        raise stage.UpstreamError("offline mode")
    question = Question(
        index=stage.name,
        sources=places.upstreams_of(stage),
        flat=bool(stage.ixconfig.get(FLAT)) and not stage.xom.is_replica(),
        project=project,
        known=known,
        ignore_serial=stage.ignore_serial_header,
        ended=ended,
    )
    reply = answered(asker, stage, question, patient=known is None and not missing)
    if reply is None or reply.why or (known and reply.known is None and reply.devpi_serial < 0):
        why = reply.why if reply else "the upstream is silent"
        if missing and not asker.is_overdue(times, project):
            # That there is no such project is known as a page is, and as long: a stage does without this base.
            raise stage.UpstreamNotFoundError(f"project {project} not found, and now: {why}")
        if known is None:
            raise stage.UpstreamError(f"{project}: {why}")
        if asker.is_overdue(times, project):
            if reply and not reply.why:
                raise stage.UpstreamNotFoundError(f"project {project} is gone")
            raise stage.UpstreamError(
                f"the upstream has not confirmed {project} for {asker.max_stale:.0f} seconds: {why}"
            )
        return known, True
    if reply.devpi_serial >= 0:
        return of_primary(stage, project, reply.devpi_serial), False
    if reply.known is None:
        raise stage.UpstreamNotFoundError(f"project {project} not found")
    return reply.known, False


def answered(asker: Asker, stage: Any, question: Question, *, patient: bool) -> Reply | None:
    """Return what came of asking, None where it has not come yet; who is not patient waits for PATIENCE seconds."""
    writing = stage.keyfs.tx.write
    silent = asker.is_silent(question.index)
    flight = asker.ask(stage, question, store=not writing)
    if flight is None:
        return None
    # In a transaction that writes, as for the button of a page, nobody else could store.
    done = flight.read if writing else flight.ended
    if not (waited(flight, done, stage) if patient else done.wait(0 if silent else PATIENCE)):
        asker.was_silent(question.index)
        return None
    if writing:
        asker.settle(question, flight.reply, within=True)
    else:
        stage.keyfs.restart_read_transaction()
    return flight.reply


def waited(flight: Flight, done: threading.Event, stage: Any) -> bool:
    """Wait for the end of a request as long as bytes come; return False where the upstream is silent from the start.

    The time for that counts from when its turn came: names are looked up in it, which may take longer than any limit of
    the connection's. A replica's primary says nothing before it has all.
    """
    while not done.wait(LOOK):
        silent_for = time.monotonic() - flight.began if flight.began is not None else 0.0
        if silent_for > stage.timeout * (1 + flight.left) and not flight.heard and not stage.xom.is_replica():
            return False
    return True


def of_primary(stage: Any, project: Any, serial: int) -> Known:
    """Return the page of a project that this replica's primary has as of `serial`."""
    if not stage.keyfs.wait_tx_serial(serial, timeout=stage.timeout):
        raise stage.UpstreamError(f"what the primary knows of {project} has not come yet")
    if not stage.keyfs.tx.write:
        stage.keyfs.restart_read_transaction()
    known = known_page(stage, project)
    if known is None:
        raise stage.UpstreamError(f"the primary has no page of {project}")
    stage.cache_retrieve_times.confirm(project, known.mark)
    return known


def file(stage: Any, path: str) -> dict[str, Any] | None:
    """Return what devpi's database would have for a file of a mirror that nobody has fetched, by its stored page.

    Args:
        stage: The mirror.
        path: Of the file, as `user/index/+f/abc/0123456789abc/NAME`.

    Returns:
        devpi's own fields: url, hash_spec, hashes, project, version; None where no page has the file.
    """
    below = path.removeprefix(f"{stage.name}/")
    name = below.rpartition("/")[2]
    for project in links.projects_of(name):
        known = known_here(stage, project)
        if known and (found := known.page.by_path.get(below)):
            return links.entry_of(project, found)
    return None


def install(xom: Any, *, max_stale: float, limit: float, pause: float, told: Told) -> None:
    """Put this in the place of devpi's own asking."""
    xom.lanmirror_asker = asker = Asker(xom, told, max_stale=max_stale, limit=limit, pause=pause)

    def get_simplelinks_perstage(self: Any, project: Any) -> Any:
        """Return the links of a project, for what is not a page: versions, for example."""
        if coming.of_stage(self).blocks_all_of(project):
            return self.SimpleLinks([])
        known, stale = get(self, project)
        return self.SimpleLinks(links.links_of(self.name, coming.page_of(self, known)), stale=stale)

    def _load_cache_links(self: Any, project: Any) -> tuple[bool, Any, int, None]:
        """Return the links that are known, for devpi's deletions."""
        known = known_page(self, project)
        return True, links.links_of(self.name, known.page) if known else None, known.serial if known else -1, None

    def cache_retrieve_times(self: Any) -> Times:
        return asker.times(self.name)

    replace(mirror.MirrorStage, "get_simplelinks_perstage", get_simplelinks_perstage)
    replace(mirror.MirrorStage, "_load_cache_links", _load_cache_links)
    mirror.MirrorStage.cache_retrieve_times = property(cache_retrieve_times)
