"""The state file: what one process told the other sees from a commit on, and itself at once."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import msgspec
from lanmirror_sync.memory import Memory
from lanmirror_sync.standing import Standing

HERE = PurePosixPath("pkgs/main/noarch")
ROW = ("a-1-0.conda", 3, 7, b"digest")


def nothing() -> None:
    """Flush nothing."""


def tell(memory: Memory) -> None:
    memory.verify("one", [ROW, ("b-1-0.conda", 3, 7, b"other")])
    memory.forget("one", ["b-1-0.conda", "c-1-0.conda"])
    memory.forget_folder("gone")
    memory.orphan("one", {"d-1-0.conda": 5.0})
    memory.note("key/1", {"a": 1})
    memory.note("key/2", {"a": 2})
    memory.drop("key/2")
    memory.note_standing(HERE, Standing(listed=4))


def seen(memory: Memory) -> list[object]:
    return [
        sorted(memory.verified("one")), sorted(memory.checked_since("one", 0)), sorted(memory.verified("gone")),
        memory.orphans("one"), memory.orphans("gone"), memory.keys("key/"), memory.fact("key/1"), memory.fact("key/2"),
        memory.standing(HERE).listed,
    ]  # fmt: skip


TOLD = [[ROW], ["a-1-0.conda"], [], {"d-1-0.conda": 5.0}, {}, ["key/1"], {"a": 1}, {}, 4]


def test_what_was_told_is_seen_at_once_and_by_others_after_the_commit(tmp_path: Path) -> None:
    file = tmp_path / "memory.sqlite"
    with Memory(file) as first, Memory(file) as second:
        first.verify("one", [("c-1-0.conda", 1, 1, b"c")])
        first.verify("gone", [ROW])
        first.orphan("gone", {"a-1-0.conda": 1.0})
        first.note("key/2", {"a": 0})
        first.commit(nothing)
        before = seen(second)
        tell(first)
        assert seen(first) == TOLD
        assert seen(second) == before
        # Nobody is kept waiting meanwhile.
        second.note("other", {"b": 1})
        second.commit(nothing)
        first.commit(nothing)
        assert seen(first) == seen(second) == TOLD
        assert first.fact("other") == {"b": 1}
    with Memory(file) as third:
        assert seen(third) == TOLD


def test_what_was_not_committed_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "memory.sqlite"
    with Memory(file) as memory:
        memory.commit(nothing)
        tell(memory)
    with Memory(file) as memory:
        assert seen(memory) == [[], [], [], {}, {}, [], {}, {}, None]


def test_folder_that_was_forgotten_may_be_filled_again(tmp_path: Path) -> None:
    with Memory(tmp_path / "memory.sqlite") as memory:
        memory.verify("gone", [("old-1-0.conda", 1, 1, b"old")])
        memory.commit(nothing)
        memory.forget_folder("gone")
        memory.verify("gone", [ROW])
        for _ in range(2):
            assert list(memory.verified("gone")) == [ROW]
            memory.commit(nothing)


def test_bytes_are_flushed_before_it_is_remembered_that_they_were_verified(tmp_path: Path) -> None:
    file, at_the_flush = tmp_path / "memory.sqlite", []
    with Memory(file) as memory, Memory(file) as other:
        memory.verify("one", [ROW])
        memory.commit(lambda: at_the_flush.append(list(other.verified("one"))))
        assert at_the_flush == [[]]
        assert list(other.verified("one")) == [ROW]
        memory.note("key", {})
        memory.commit(lambda: at_the_flush.append([]))
        assert at_the_flush == [[]], "once is enough"


def test_standing_of_an_older_version_is_read() -> None:
    assert msgspec.structs.asdict(Standing.decode(b'{"held": 3, "bytes": 9}'))["size"] == 9
