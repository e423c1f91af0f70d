"""Pages in memory: of one state, and in a bounded number of bytes."""

from __future__ import annotations

import gzip
import random

from lanmirror_devpi.kept import AROUND, WORTH_COMPRESSING, Body, Kept, packed


def body(state: int, size: int = 10) -> Body:
    return Body(state, b"x" * size, is_packed=False)


def test_page_of_another_state_is_none() -> None:
    kept = Kept(10_000)
    kept.put("six", body(1))
    assert kept.get("six", 1) == body(1)
    assert kept.get("six", 2) is None
    assert kept.get("idna", 1) is None
    kept.put("six", body(2))
    assert kept.get("six", 1) is None
    assert kept.get("six", 2) == body(2)


def test_what_nobody_asked_for_the_longest_goes_first() -> None:
    kept = Kept(3 * (AROUND + 10))
    for name in "abc":
        kept.put(name, body(1))
    assert kept.get("a", 1)
    kept.put("d", body(1))
    assert [name for name in "abcd" if kept.get(name, 1)] == ["a", "c", "d"]


def test_bytes_are_bounded_whatever_comes() -> None:
    kept, limit = Kept(50_000), 50_000
    generator = random.Random(1)
    for number in range(2_000):
        kept.put(generator.randrange(60), body(number, generator.choice((0, 100, 9_000, 60_000))))
        assert 0 <= kept.size <= limit
    assert kept.size == sum(len(one.content) + AROUND for one in kept._bodies.values())


def test_page_is_packed_where_that_is_worth_it() -> None:
    small, large = b"x" * (WORTH_COMPRESSING - 1), b"x" * WORTH_COMPRESSING
    assert (packed(1, small).content, packed(1, small).is_packed) == (small, False)
    assert packed(1, large).is_packed
    assert gzip.decompress(packed(1, large).content) == large
