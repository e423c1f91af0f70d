"""What several threads store at once is one transaction, and nobody's mistake is another's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from lanmirror_devpi.together import MOST, Together

from tests.devpi.test_mirror import LONG


class Database:
    """Transactions as devpi has them: what is written counts at the end; each waits for `may_begin`."""

    def __init__(self) -> None:
        self.may_begin = threading.Event()
        self.begun = threading.Semaphore(0)
        self.stored: list[list[str]] = []
        self.open: list[str] | None = None
        self.error: Exception | None = None

    @contextmanager
    def write_transaction(self) -> Iterator[None]:
        self.begun.release()
        assert self.may_begin.wait(LONG)
        if self.error:
            raise self.error
        assert self.open is None
        self.open = []
        try:
            yield
            self.stored.append(self.open)
        finally:
            self.open = None

    def write(self, name: str) -> Callable[[], None]:
        def write() -> None:
            assert self.open is not None
            self.open.append(name)
            if "wrong" in name:
                # As of a file system on the network: of the error that a locked database is.
                raise TimeoutError(name)

        return write


def run(database: Database, names: list[str]) -> list[Future[None]]:
    """Have the first begin a transaction, and the others come while that is under way."""
    together = Together(SimpleNamespace(keyfs=database))
    with ThreadPoolExecutor(len(names)) as pool:
        first = pool.submit(together.run, database.write(names[0]))
        assert database.begun.acquire(timeout=LONG)
        others = []
        for count, name in enumerate(names[1:], 1):
            others.append(pool.submit(together.run, database.write(name)))
            while len(together._waiting) < count:
                time.sleep(0.001)
        database.may_begin.set()
    return [first, *others]


def test_who_comes_during_a_transaction_shares_the_next_one() -> None:
    database = Database()
    names = [f"{number}" for number in range(MOST + 3)]
    assert [each.result() for each in run(database, names)] == [None] * len(names)
    assert database.stored == [names[:1], names[1 : MOST + 1], names[MOST + 1 :]]


def test_one_that_fails_keeps_nothing_from_the_others() -> None:
    database = Database()
    one, two, wrong, three = run(database, ["one", "two", "wrong", "three"])
    assert [each.result() for each in (one, two, three)] == [None] * 3
    with pytest.raises(TimeoutError, match="wrong"):
        wrong.result()
    assert database.stored == [["one"], ["two"], ["three"]]


def test_database_that_is_locked_is_waited_for_once_and_not_by_each() -> None:
    database = Database()
    database.error = TimeoutError("30 seconds")
    for each in run(database, ["one", "two", "three"]):
        with pytest.raises(TimeoutError):
            each.result()
    # Of the first one and of the others.
    assert database.stored == []
    assert database.begun.acquire(blocking=False)
    assert not database.begun.acquire(blocking=False)
