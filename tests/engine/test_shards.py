"""CEP 16: shards of the same records are the same bytes, and only what changed is made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lanmirror_sync import formats, repodata, shards
from lanmirror_sync.formats import Memo

from tests.engine import served

DAY = 86400.0


def record(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "version": "1",
        "build": "0",
        "build_number": 0,
        "size": 10,
        "sha256": "ab" * 32,
        "md5": "cd" * 16,
        **fields,
    }


def document(**versions: int) -> dict[str, Any]:
    """Return an index with so many builds of each package."""
    return {
        "info": {"subdir": "linux-64"},
        "packages": {},
        "packages.conda": {
            f"{name}-1-{build}.conda": record(name, build=str(build))
            for name, count in versions.items()
            for build in range(count)
        },
        "removed": ["b-0.9-0.conda", "gone-1-0.conda"],
    }


class Subdir:
    """A subdir that is published again and again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "served"
        self.path.mkdir()
        self.beside = folder / "beside"
        self.memo = Memo()

    def publish(
        self, content: dict[str, Any], *, now: float = 0.0, keep: Callable[[str], bool] = lambda name: True
    ) -> formats.Rendered:
        """Publish and put in place; return what was written."""
        shutil.rmtree(self.beside, ignore_errors=True)
        self.beside.mkdir()
        index = repodata.parse(json.dumps(content).encode())
        present = {file.name for file in self.path.iterdir()}
        published = formats.render(
            index, self.beside, arch="linux-64", keep=keep, memo=self.memo, present=present, now=now, threads=2
        )
        for name in published.files:
            (self.beside / name).rename(self.path / name)
        for name in (*published.obsolete, *published.expired):
            (self.path / name).unlink(missing_ok=True)
        # As from one run to the next: through the bytes that are kept.
        self.memo = Memo.decode(published.memo.encode())
        return published

    def shard_files(self) -> set[str]:
        return {file.name for file in self.path.glob("*.msgpack.zst")} - {shards.INDEX}


@pytest.fixture
def subdir(tmp_path: Path) -> Subdir:
    return Subdir(tmp_path)


def written(published: formats.Rendered) -> set[str]:
    return {name for name in published.files if name.endswith(shards.SUFFIX)} - {shards.INDEX}


def test_the_index_says_where_everything_is_without_leading_away(subdir: Subdir) -> None:
    subdir.publish({**document(a=1), "info": {"subdir": "linux-64", "base_url": "https://x.org/", "note": "kept"}})
    index = served.shard_index(subdir.path)
    assert index["info"] == {"subdir": "linux-64", "note": "kept", "base_url": "", "shards_base_url": ""}
    assert index["version"] == 1
    assert [type(digest) for digest in index["shards"].values()] == [bytes]


def test_hashes_are_bytes_and_the_rest_as_in_json(subdir: Subdir) -> None:
    odd = record("a", legacy_bz2_md5="ef" * 16, md5=None, track_features="", later=10**30, extra={"x": [1.5]})
    subdir.publish({"packages": {"a-1-0.tar.bz2": odd}})
    content = served.shard(subdir.path, served.shard_index(subdir.path)["shards"]["a"])
    assert content["packages"]["a-1-0.tar.bz2"] == {**odd, "sha256": bytes.fromhex("ab" * 32), "later": 1e30}


def test_removed_names_go_to_the_shard_of_their_package(subdir: Subdir) -> None:
    subdir.publish(document(a=1, b=1))
    found = served.shard_index(subdir.path)["shards"]
    assert served.shard(subdir.path, found["b"])["removed"] == ["b-0.9-0.conda"]
    assert served.shard(subdir.path, found["a"])["removed"] == []


def test_a_name_in_capitals_is_found_in_lower_case(subdir: Subdir) -> None:
    subdir.publish({"packages": {"GeoIP-1-0.tar.bz2": record("GeoIP"), "geoip-2-0.tar.bz2": record("geoip")}})
    assert list(served.shard_index(subdir.path)["shards"]) == ["geoip"]
    assert len(served.shard_records(subdir.path)["packages"]) == 2


def test_the_same_records_make_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    folders = []
    for number, reverse in enumerate((False, True)):
        content = document(a=3, b=2)
        content["packages.conda"] = dict(sorted(content["packages.conda"].items(), reverse=reverse))
        (tmp_path / str(number)).mkdir()
        subdir = Subdir(tmp_path / str(number))
        subdir.publish(content, now=number * DAY)
        folders.append({file.name: file.read_bytes() for file in subdir.path.glob("*.msgpack.zst")})
    assert folders[0] == folders[1]


def test_only_what_changed_is_written_again(subdir: Subdir, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(written(subdir.publish(document(a=2, b=3, c=1)))) == 3
    made: list[str] = []
    original = shards._packed

    def packed(group: shards._Group) -> bytes:
        made.append(json.loads(bytes(group.records[0][2]))["name"])
        return original(group)

    monkeypatch.setattr(shards, "_packed", packed)
    assert not written(subdir.publish(document(a=2, b=3, c=1)))
    assert made == []
    assert len(written(subdir.publish(document(a=2, b=4, c=1, d=1)))) == 2
    assert made == ["b", "d"]


def test_a_record_that_was_patched_makes_its_shard_again(subdir: Subdir) -> None:
    subdir.publish(document(a=2, b=1))
    patched = document(a=2, b=1)
    patched["packages.conda"]["a-1-1.conda"]["depends"] = ["b <2"]
    assert len(written(subdir.publish(patched))) == 1
    assert served.shard_records(subdir.path)["packages.conda"]["a-1-1.conda"]["depends"] == ["b <2"]
    del patched["removed"][0]
    assert len(written(subdir.publish(patched))) == 1


def test_a_shard_that_was_lost_is_made_again(subdir: Subdir) -> None:
    subdir.publish(document(a=1, b=1))
    lost = f"{served.shard_index(subdir.path)['shards']['a'].hex()}.msgpack.zst"
    (subdir.path / lost).unlink()
    assert written(subdir.publish(document(a=1, b=1))) == {lost}
    served.shard_records(subdir.path)


def test_another_recipe_makes_all_anew(subdir: Subdir) -> None:
    subdir.publish(document(a=1, b=1))
    right = served.shard_index(subdir.path)["shards"]
    wrong = {name: shards.Shard(shard.source, right["b"]) for name, shard in subdir.memo.shards.shards.items()}
    subdir.memo = Memo(shards.ShardMemo("another", wrong, {}))
    subdir.publish(document(a=1, b=1))
    assert served.shard_index(subdir.path)["shards"] == right


def test_former_shards_stay_for_a_week(subdir: Subdir) -> None:
    subdir.publish(document(a=1, b=1))
    first = served.shard_index(subdir.path)["shards"]
    former = f"{first['a'].hex()}.msgpack.zst"
    subdir.publish(document(a=2, b=1), now=1 * DAY)
    assert former in subdir.shard_files()
    assert not subdir.publish(document(a=2, b=1), now=7.9 * DAY).expired
    assert subdir.publish(document(a=2, b=1), now=8.1 * DAY).expired == (former,)
    assert len(subdir.shard_files()) == 2


def test_a_shard_that_is_named_again_begins_its_week_anew(subdir: Subdir) -> None:
    subdir.publish(document(a=1))
    subdir.publish(document(a=2), now=1 * DAY)
    subdir.publish(document(a=1), now=5 * DAY)
    subdir.publish(document(a=2), now=9 * DAY)
    assert not subdir.publish(document(a=2), now=15 * DAY).expired
    assert len(subdir.publish(document(a=2), now=16.1 * DAY).expired) == 1


def test_damaged_state_makes_all_anew_and_forgets_no_file(subdir: Subdir) -> None:
    subdir.publish(document(a=1))
    subdir.publish(document(a=2), now=DAY)
    subdir.memo = Memo.decode(b"\xc1 damaged")
    subdir.publish(document(a=2), now=2 * DAY)
    assert len(subdir.shard_files()) == 2
    subdir.publish(document(a=2), now=10 * DAY)
    assert len(subdir.shard_files()) == 1


def test_a_clock_that_was_wrong_does_not_keep_shards_for_ever(subdir: Subdir) -> None:
    subdir.publish(document(a=1), now=1000 * DAY)
    subdir.publish(document(a=2), now=1000 * DAY)
    subdir.publish(document(a=2), now=1 * DAY)
    assert len(subdir.publish(document(a=2), now=8.1 * DAY).expired) == 1


def test_what_is_not_kept_is_in_no_shard(subdir: Subdir) -> None:
    published = subdir.publish(document(a=2, b=1), keep=lambda name: name == "a-1-1.conda")
    assert served.shard_records(subdir.path) == {"packages.conda": {"a-1-1.conda": record("a", build="1")}}
    assert set(published.names) == {"a"}
