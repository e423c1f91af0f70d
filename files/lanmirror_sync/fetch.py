"""Requests that are tried again, and downloads that are verified while they stream and resumed where they broke off.

One thread keeps `jobs` exchanges going (`wire`). What fails is put aside until its time comes, so that it
holds up nothing but itself; where an upstream has several places, the next is asked at once. Who is asked
when is decided in `hosts`, what becomes of the bytes in `sinks`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import math
import queue
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pycurl

from lanmirror_sync.answers import (
    Answer,
    DeniedError,
    Done,
    Feed,
    FetchError,
    MissingError,
    UnreachableError,
    Validators,
    WrongBytesError,
)
from lanmirror_sync.cache import Ahead, Cache
from lanmirror_sync.config import Config
from lanmirror_sync.hosts import LONGEST_WAIT_SECONDS, Hosts, Refusal, Ticket, host_of
from lanmirror_sync.sinks import (
    OK,
    PARTIAL_CONTENT,
    Download,
    FileSink,
    MemorySink,
    PeekSink,
    Sink,
    WrongError,
    number,
)
from lanmirror_sync.store import BROKEN_DISK
from lanmirror_sync.wire import Exchange, Failure, NoUrlError, Wire, http_date

# A download of more bytes is a big one: at most half of the jobs are given to these while small ones wait.
BIG_BYTES = 16 << 20
# So many requests may be waiting for their next attempt before no new one is begun.
MOST_WAITING = 10_000
SMALL, BIG = 0, 1
NOT_MODIFIED = 304
NO_SUCH_RANGE = 416
ANSWERED = (OK, PARTIAL_CONTENT, NOT_MODIFIED)
MISSING = (404, 410)
# What servers also answer for what they do not have, or to a method that they do not know: object stores 403,
# application servers 500. It is believed only of what a channel need not have.
ABSENT = (400, 402, 403, 405, 406, 409, 451, 500, 501)
DENIED = (401, 407)
REFUSED = (403, 429)
SERVER_ERROR = 500
# Of libcurl: a loop of redirects, and what is no HTTP URL.
NOWHERE = (pycurl.E_TOO_MANY_REDIRECTS, pycurl.E_UNSUPPORTED_PROTOCOL, pycurl.E_URL_MALFORMAT)
# A `Retry-After` of more seconds makes no sense.
LONGEST_WORD = 366 * 86400.0
# Whole bytes that are not the right ones are fetched once more from the same place, and no oftener.
MOST_WRONG = 2

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job:
    urls: Sequence[str]
    method: str
    sink: Sink
    known: Validators
    finish: Callable[[Exchange | None, FetchError | None], None]
    optional: bool = False
    # Whether it need not be there: see `ABSENT`.
    spare: bool = False
    most_wrong: int = MOST_WRONG
    place: int = 0
    tries: int = 0
    # Places that failed in this round of attempts; that lack it, or deny it; that sent wrong bytes, how often.
    tried: set[int] = field(default_factory=set)
    missing: set[int] = field(default_factory=set)
    wrong: Counter[int] = field(default_factory=Counter)
    seen: dict[int, tuple[Validators, int | None]] = field(default_factory=dict)
    denied: bool = False
    # When a place that failed may be asked again (monotonic time, seconds).
    later: dict[int, float] = field(default_factory=dict)
    error: FetchError | None = None
    resumed: bool = False
    complete: bool = False
    # What went wrong where it could not be raised.
    trouble: Exception | None = None
    probe: bool = False
    # The URL in the web server's cache, while that is to be asked; whether what came so far may be from there.
    kept: str = ""
    lent: bool = False
    promoted: bool = False

    @property
    def url(self) -> str:
        return self.urls[self.place]

    def places(self) -> list[int]:
        return [place for place in range(len(self.urls)) if place not in self.tried | self.missing]


class Fetcher:
    """Requests to the upstreams. Use as a context, and from any thread."""

    def __init__(self, config: Config, on_bytes: Callable[[str, int], None] = lambda owner, size: None) -> None:
        self._config = config
        self._on_bytes = on_bytes
        self._wire = Wire(config)
        self._hosts = Hosts(config.jobs, config.retries, config.retry_wait_seconds)
        self._stop = threading.Event()
        self._over = threading.Event()
        self._inbox: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._ready: deque[_Job] = deque()
        self._waiting: list[tuple[float, int, _Job]] = []
        # Without a ticket: what the cache is asked says nothing about a host.
        self._busy: dict[Exchange, tuple[_Job, Ticket | None]] = {}
        self._ticket = itertools.count()
        self._cache = Cache(config.cache, self._wire) if config.cache else None
        self._feeds = (Ahead(self._cache), Ahead(self._cache)) if self._cache else (Feed(), Feed())
        self._feeding = False
        self._closed = False
        self._big = 0
        self._unfinished = 0
        self._failure: BaseException | None = None
        self._finished: list[Done] = []
        # Every job that was not finished yet, so that whatever happens each is told how it ended.
        self._open: set[_Job] = set()
        self.crashes: list[BaseException] = []
        self._done: queue.SimpleQueue[list[Done] | BaseException | None] = queue.SimpleQueue()
        self._hashing = ThreadPoolExecutor(1)
        self._thread = threading.Thread(target=self._run, name="fetch", daemon=True)

    def __enter__(self) -> Fetcher:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._wire.wake()
        self._thread.join()
        self._hashing.shutdown(cancel_futures=True)
        if self._cache:
            self._cache.close()
        self._wire.close()

    def request(
        self,
        urls: Sequence[str],
        *,
        method: str = "GET",
        known: Validators | None = None,
        limit: int = 1 << 30,
        optional: bool = False,
        spare: bool = False,
    ) -> Future[Answer]:
        """Ask for something small enough for memory, at the first of `urls` that has it.

        The future raises MissingError where none has it, UnreachableError where none answers, and FetchError
        where what comes is more than `limit` bytes or breaks off each time.

        Args:
            urls: the same thing at different places, the best first.
            method: `GET` or `HEAD`.
            known: validators of what is held; only sent to the URL that they are of.
            limit: bytes.
            optional: whether one place that does not have it is enough to believe that there is none.
            spare: whether nobody needs it: then an answer that may mean anything else too (`ABSENT`) means that it is
                not there, and says nothing about the host.
        """
        future: Future[Answer] = Future()

        def finish(exchange: Exchange | None, error: FetchError | None) -> None:
            if exchange is None:
                future.set_exception(error or FetchError(f"{urls[0]}: stopped"))
                return
            sink = job.sink
            size = sink.size if isinstance(sink, PeekSink) else number(exchange.headers.get("content-length", ""))
            body = sink.data if isinstance(sink, MemorySink) and exchange.status != NOT_MODIFIED else None
            lacking = tuple(job.urls[place] for place in sorted(job.missing))
            future.set_result(Answer(body, Validators.of(exchange), size, exchange.found_at, lacking))

        job = _Job(urls, method, MemorySink(limit), known or Validators(), finish, optional, spare)
        self._submit(job)
        return future

    def feed(self, small: Iterator[Download], big: Iterator[Download]) -> None:
        """Take on downloads; the iterators are drawn on as these begin, in the fetching thread, each in its turn."""
        self._feeds[SMALL].add(small)
        self._feeds[BIG].add(big)
        self._feeding = True
        self._wire.wake()

    def close_feed(self) -> None:
        """Say that no more downloads come, so that `results` ends with the last of them."""
        self._closed = True
        self._feeding = True
        self._wire.wake()

    def results(self) -> Iterator[Done | None]:
        """Download what `feed` brings, `jobs` at a time, and tell of each as it ends.

        None comes when all that ended so far was told, and at least ten times a second.

        Raises:
            OSError: the disk is full, or broken; nothing more is fetched.
        """
        return self._results()

    def _results(self) -> Iterator[Done | None]:
        while True:
            try:
                done = self._done.get(timeout=0.1)
            except queue.Empty:
                if self._over.is_set() and self._done.empty():
                    raise FetchError("stopped") from None
                yield None
                continue
            if done is None:
                return
            if isinstance(done, BaseException):
                raise done
            yield from done
            if self._done.empty():
                yield None

    # ---- all below belongs to the fetching thread ---------------------------------------------------------

    def _submit(self, job: _Job) -> None:
        self._open.add(job)
        self._inbox.put(job)
        self._wire.wake()
        if self._over.is_set():
            self._drain()
            self._abandon(None)

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            while not self._stop.is_set():
                self._turn()
        except BaseException as error:  # whatever it is, who waits has to hear of it
            failure = error
            self._stop.set()
        if failure or self._feeding:
            self._done.put(failure or FetchError("stopped"))
        self._over.set()
        self._drain()
        self._abandon(failure)

    def _abandon(self, failure: BaseException | None) -> None:
        """Tell all who wait that nothing comes any more."""
        while self._open:
            job = next(iter(self._open))
            with contextlib.suppress(OSError):
                job.sink.close()
            stopped = FetchError(f"{job.url}: stopped")
            stopped.__cause__ = failure
            self._finish(job, None, stopped)

    def _finish(self, job: _Job, exchange: Exchange | None, error: FetchError | None) -> None:
        """Tell who asked how a job ended, once."""
        if job in self._open:
            self._open.remove(job)
            job.finish(exchange, error)

    @contextlib.contextmanager
    def _fence(self, job: _Job) -> Iterator[None]:
        """Let what goes wrong with one job, whatever it is, end that job alone."""
        try:
            yield
        except NoUrlError as error:
            self._finish(job, None, FetchError(f"{job.url}: {error}"))
        except OSError as error:
            self._fail_disk(job, error)
        except Exception as error:
            self.crashes.append(error)
            log.exception("%s: this is a fault of the program", job.url)
            self._finish(job, None, FetchError(f"{job.url}: a fault of the program: {error!r}"))

    def _fail_disk(self, job: _Job, error: OSError) -> FetchError:
        """Take note of trouble with the disk: of the whole of it, or of one file."""
        if error.errno in BROKEN_DISK:
            self._failure = error
        where = error.filename2 or error.filename
        failed = FetchError(f"{job.url}: cannot be kept: {f'{where}: ' if where else ''}{error.strerror or error}")
        self._finish(job, None, failed)
        return failed

    def _turn(self) -> None:
        """Begin what can be begun, move bytes, and see to what has ended."""
        self._drain()
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            self._ready.append(heapq.heappop(self._waiting)[2])
        while len(self._busy) < self._config.jobs and (job := self._next()):
            with self._fence(job):
                self._begin(job, now)
        if self._finished:  # all of a turn at once: to wake the other thread costs more than a download
            self._done.put(self._finished)
            self._finished = []
        if self._closed and self._feeding and not any(self._feeds) and not self._unfinished:
            self._feeding = False
            self._done.put(None)
        timeout = self._waiting[0][0] - now if self._waiting else None
        if self._cache and (left := self._cache.seconds_left(now)) < math.inf:
            timeout = left if timeout is None else min(timeout, left)
        for exchange, failure in self._wire.wait(timeout):
            job, ticket = self._busy.pop(exchange)
            with self._fence(job):
                if ticket:
                    self._ended(job, ticket, exchange, failure)
                else:
                    self._lent(job, exchange, failure)
        if self._cache:
            self._cache.look_at_the_clock()
        if self._failure:
            raise self._failure

    def _drain(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._ready.append(self._inbox.get_nowait())

    def _next(self) -> _Job | None:
        """Return what to do next: requests and second attempts; big downloads within bounds; small ones."""
        if self._ready:
            return self._ready.popleft()
        if len(self._waiting) >= MOST_WAITING:
            return None
        for feed in (BIG, SMALL) if self._big < self._config.jobs // 2 else (SMALL, BIG):
            if download := self._feeds[feed].take():
                return self._download_job(download, big=feed == BIG)
        return None

    def _download_job(self, download: Download, *, big: bool) -> _Job:
        sink = FileSink(download, self._on_bytes)
        self._unfinished += 1
        self._big += big

        def finish(exchange: Exchange | None, error: FetchError | None) -> None:
            self._unfinished -= 1
            self._big -= big
            self._finished.append(Done(download, sink.landed, error, job.promoted))

        job = _Job(
            download.urls, "GET", sink, Validators(), finish,
            most_wrong=1 if download.doubted else MOST_WRONG, kept=download.kept,
        )  # fmt: skip
        self._open.add(job)
        return job

    def _begin(self, job: _Job, now: float) -> None:
        """Send a request to the best place that may be asked; put it aside where none may be now."""
        if job.trouble:
            raise job.trouble
        if isinstance(job.sink, FileSink) and not job.resumed:
            job.resumed = True
            if job.sink.left_behind():
                self._hashing.submit(self._resume, job, job.sink)
                return
        if job.complete:
            self._finish(job, None, None)
            return
        if job.kept and self._cache and not self._cache.given_up:
            self._borrow(job)
            return
        places = job.places()
        waits = [self._wait(job, place, now) for place in places]
        wait = min(waits)
        job.place = places[waits.index(wait)]
        if wait == math.inf:
            host = host_of(job.url)
            given_up = UnreachableError(f"{job.url}: {host} was given up: {self._hosts.why_given_up(host)}")
            self._finish(job, None, given_up)
        elif wait > 0:
            self._put_aside(job, now + wait)
        elif probe := self._hosts.probe(host_of(job.url), now):
            # Not HEAD, which some refuse for everything.
            self._send(_Job([probe], "GET", PeekSink(), Validators(), lambda exchange, error: None, probe=True))
            self._put_aside(job, now + self._config.retry_wait_seconds)
        else:
            self._send(job)

    def _send(self, job: _Job) -> None:
        """Put a request on the wire."""
        sink = job.sink
        conditions = job.known.headers() if job.known.url == job.url else []
        exchange = Exchange(job.url, job.method, (*sink.headers(job.url), *conditions))
        exchange.on_body = self._body_taker(exchange, job)
        self._wire.start(exchange)
        ticket = self._hosts.began(host_of(job.url), payload=isinstance(sink, FileSink))
        self._busy[exchange] = job, ticket

    def _borrow(self, job: _Job) -> None:
        """Ask the web server's cache for a package, before any upstream."""
        url, job.kept = job.kept, ""
        exchange = Exchange(url, job.method, job.sink.headers(url), near=True)
        exchange.on_body = self._body_taker(exchange, job)
        self._wire.start(exchange)
        self._busy[exchange] = job, None

    def _lent(self, job: _Job, exchange: Exchange, failure: Failure | None) -> None:
        """See what came from the cache; if it is not all, or wrong, upstreams are asked, and nobody is blamed."""
        sink = job.sink
        if job.trouble:
            sink.close()
            raise job.trouble
        job.lent = exchange.status in (OK, PARTIAL_CONTENT)
        try:
            if job.lent and (failure is None or failure.code == pycurl.E_WRITE_ERROR):
                sink.end(exchange)
                job.promoted = True
            sink.close()
        except WrongError as wrong:
            job.lent = False
            log.info("%s: %s; the upstream is asked", exchange.url, wrong)
        if job.promoted:
            self._finish(job, exchange, None)
            return
        if failure and failure.code == pycurl.E_OPERATION_TIMEDOUT and self._cache:
            self._cache.give_up()
        self._ready.append(job)

    def _body_taker(self, exchange: Exchange, job: _Job) -> Callable[[bytes], bool]:
        def take(data: bytes) -> bool:
            try:
                return job.sink.take(exchange, data)
            except Exception as error:  # libcurl could not hand it on
                job.trouble = error
                return False

        return take

    def _resume(self, job: _Job, sink: FileSink) -> None:
        """In a thread of its own, since it may have gigabytes to read: go on from what former runs left."""
        try:
            job.complete = sink.resume()
        except Exception as error:  # it is for the fetching thread to say what that means
            job.trouble = error
        self._submit(job)

    def _put_aside(self, job: _Job, until: float) -> None:
        heapq.heappush(self._waiting, (until, next(self._ticket), job))

    def _ended(self, job: _Job, ticket: Ticket, exchange: Exchange, failure: Failure | None) -> None:
        """See how an exchange ended, and what to do about it."""
        try:
            error = self._verdict(job, exchange, failure)
        except BaseException:
            self._hosts.ended(ticket)
            raise
        wait = _retry_after(exchange.headers.get("retry-after"))
        now = time.monotonic()  # not before the line above, or a date would be a little early
        unclear = exchange.status in ABSENT and (job.spare or job.method == "HEAD")
        if unclear or isinstance(error, DeniedError):
            self._hosts.ended(ticket)
        elif isinstance(error, UnreachableError):
            pause = self._hosts.refused(ticket, Refusal(job.url, exchange.status, wait, str(error)), now)
            if pause:
                what = "given up for this run" if pause == math.inf else f"asked again in {pause:.0f} s"
                log.warning("%s; %s is %s", error, ticket.host, what)
        else:
            self._hosts.served(ticket, "" if error else job.url, probe=job.probe)
        if error is None:
            self._finish(job, exchange, None)
        elif exchange.status in ABSENT and job.method == "HEAD":
            # Many refuse the method alone. What the answer to this begins with tells the same.
            job.method, job.sink = "GET", PeekSink()
            self._ready.append(job)
        elif job.lent and not isinstance(error, (UnreachableError, MissingError)):
            # What came before was the cache's, and may be to blame.
            job.lent = False
            self._ready.append(job)
        elif not job.probe:
            self._failed(job, exchange, error, max(self._config.retry_wait_seconds * 2**job.tries, wait), now)

    def _failed(self, job: _Job, exchange: Exchange, error: FetchError, wait: float, now: float) -> None:
        """Ask the next place, or this one again in `wait` seconds; or give the request up."""
        missing = isinstance(error, MissingError)
        if isinstance(error, WrongBytesError):
            job.wrong[job.place] += 1
            job.seen[job.place] = (Validators.of(exchange), number(exchange.headers.get("content-length", "")))
        job.denied |= isinstance(error, DeniedError)
        for_good = missing or isinstance(error, DeniedError) or job.wrong[job.place] >= job.most_wrong
        (job.missing if for_good else job.tried).add(job.place)
        if not missing or job.error is None:
            job.error = error
        job.later[job.place] = now + min(wait, LONGEST_WAIT_SECONDS)
        left = job.places()
        soonest = min((self._wait(job, place, now) for place in left), default=math.inf)
        last = job.tries >= self._config.retries
        if missing and job.optional:
            self._finish(job, None, error)
        # A place that has to be left alone for long is no reason not to ask the others again before.
        elif left and (soonest <= wait or last or not job.tried):
            self._ready.append(job)
        elif last or not job.tried:
            last_word = error if missing and not (job.tried or job.wrong or job.denied) else job.error
            if isinstance(last_word, WrongBytesError) and not job.tried:
                last_word.seen = tuple(job.seen.values())
            self._finish(job, None, last_word)
        else:
            job.tried.clear()
            job.tries += 1
            # Each place has its own time: one that is soon well again is not kept waiting by one that throttles.
            again = min(self._wait(job, place, now) for place in job.places())
            again = 0.0 if again == math.inf else again
            log.debug("%s; again in %.1f s", error, again)
            self._put_aside(job, now + again)

    def _wait(self, job: _Job, place: int, now: float) -> float:
        """Return for how long to leave a place alone; infinity when its host was given up."""
        return max(self._hosts.wait(host_of(job.urls[place]), now), job.later.get(place, now) - now)

    def _verdict(self, job: _Job, exchange: Exchange, failure: Failure | None) -> FetchError | None:
        """Say what is wrong with an answer; None where nothing is. The sink keeps what is worth it."""
        sink = job.sink
        if job.trouble:
            sink.close()
            raise job.trouble
        try:
            if exchange.status == NO_SUCH_RANGE:
                sink.restart()
            error = self._refusal(job, exchange, failure)
            if error is None:
                sink.end(exchange)
            sink.close()
        except WrongError as wrong:
            # What has no length, and no end of its own, may have been cut off.
            told = exchange.headers.keys() & {"content-length", "transfer-encoding"}
            return (WrongBytesError if told else FetchError)(f"{exchange.url}: {wrong}")
        return error

    def _refusal(self, job: _Job, exchange: Exchange, failure: Failure | None) -> FetchError | None:
        """Say why an answer does not bring what was asked for; None where it says that it does."""
        url, status = exchange.url, exchange.status
        answers = f"{url}: answers {status} {exchange.reason}".rstrip()
        error: FetchError | None = None
        if self._failure:
            error = FetchError(f"{url}: stopped")
        elif status in MISSING or (job.spare and status in ABSENT):
            error = MissingError(answers)
        elif status in DENIED:
            whose = "proxy" if status == DENIED[1] else "upstream"
            error = DeniedError(f"{answers}: the {whose} wants a user name and a password, or another one")
        elif status in REFUSED or status >= SERVER_ERROR:
            error = UnreachableError(answers)
        elif failure and failure.code in NOWHERE:
            error = FetchError(f"{url}: leads, or redirects, to no place that can be asked ({failure.message})")
        # A sink that ends the transfer itself knows why.
        elif failure and failure.code != pycurl.E_WRITE_ERROR:
            error = UnreachableError(f"{url}: {'the transfer broke off: ' if status else ''}{failure.message}")
        elif status not in ANSWERED or (status == NOT_MODIFIED and not _is_conditional(exchange)):
            error = FetchError(answers)
        return error


def _is_conditional(exchange: Exchange) -> bool:
    """Tell whether "not modified" may be the answer to a request."""
    return any(line.startswith(("If-None-Match", "If-Modified-Since")) for line in exchange.send)


def _retry_after(value: str | None) -> float:
    """Return the seconds that a `Retry-After` asks for (RFC 9110, 10.2.3); 0 where there is none to read."""
    if value is None:
        return 0.0
    if re.fullmatch(r"\s*[0-9]{1,18}\s*", value):
        wait = float(value)
    else:
        moment = http_date(value)
        wait = 0.0 if moment is None else moment - time.time()
    return wait if 0.0 < wait <= LONGEST_WORD else 0.0
