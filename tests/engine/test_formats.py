"""Every format of an index holds the same records, and a real client installs from each of them."""

from __future__ import annotations

import asyncio
import bz2
import copy
import gzip
import json
import mmap
import random
import shutil
import subprocess
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
import rattler
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from lanmirror_sync import compress, formats, repodata, shards
from lanmirror_sync.compress import Former, Packed
from lanmirror_sync.formats import Rendered

from tests.engine import served
from tests.upstream import channel
from tests.upstream.server import Fault, Upstream, serving

FULL = {"repodata.json", "repodata.json.zst", "repodata.json.bz2", "repodata.json.gz"}


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


DOCUMENT: dict[str, Any] = {
    "info": {
        "subdir": "linux-64",
        "base_url": "https://elsewhere.example.org/",
        "repodata_revisions": {"v3": {"message": "new", "n_packages": 3, "oldest": 5, "newest": 9}},
    },
    "packages": {"a-1-0.tar.bz2": record("a", license="\N{COPYRIGHT SIGN} us")},
    "packages.conda": {
        "a-2-0.conda": record("a", version="2", future={"deep": [1.5, None]}),
        "b-1-0.conda": record("b", url="https://elsewhere.example.org/b-1-0.conda"),
        "c-1-0.conda": record("c"),
    },
    "v3": {
        "conda": {"a-3-0": record("a", version="3", indexed_timestamp=5)},
        "tar.bz2": {"c-3-0": record("c", version="3", indexed_timestamp=7)},
        "whl": {
            "d-1-0": record("d", url="d-1-py3-none-any.whl", indexed_timestamp=8),
            "e-1-0": record("e", url="https://wheels.example.org/e-1-py3-none-any.whl", indexed_timestamp=9),
        },
    },
    "signatures": {
        "a-1-0.tar.bz2": {"key": {"signature": "aa"}},
        "b-1-0.conda": {"key": {"signature": "bb"}},
        "c-1-0.conda": {"key": {"signature": "cc"}},
    },
    "removed": ["a-0-0.conda"],
    "repodata_version": 2,
    "unknown": {"kept": [1, "two", None]},
}


def publish(document: Mapping[str, Any], folder: Path, **options: Any) -> Rendered:
    """Publish a document into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    options = {"arch": "linux-64", "keep": lambda name: True, "now": 0.0, **options}
    return formats.render(repodata.parse(json.dumps(document).encode()), folder, **options)


def all_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the records that are published, after a check that every format has the same."""
    documents = served.documents(folder)
    assert documents.keys() == FULL
    first = documents.popitem()[1]
    assert all(document == first for document in documents.values())
    found = served.records(first)
    assert floated(served.shard_records(folder)) == floated(found)
    return found


def test_every_format_holds_the_same_records(tmp_path: Path) -> None:
    publish(DOCUMENT, tmp_path / "all")
    expected = served.records(copy.deepcopy(DOCUMENT))
    del expected["v3.whl"]["e-1-0"]
    expected["packages.conda"]["b-1-0.conda"] = record("b")
    assert all_records(tmp_path / "all") == expected


def test_what_is_not_known_passes_through(tmp_path: Path) -> None:
    publish(DOCUMENT, tmp_path / "all")
    document = served.documents(tmp_path / "all")["repodata.json"]
    assert next(iter(document)) == "info"
    assert document["unknown"] == DOCUMENT["unknown"]
    assert document["removed"] == DOCUMENT["removed"]
    assert document["packages.conda"]["a-2-0.conda"]["future"] == {"deep": [1.5, None]}


def test_nothing_leads_off_the_mirror(tmp_path: Path) -> None:
    exports = {
        "info": {"base_url": "https://elsewhere.example.org/"},
        "packages": {"a-1-0.tar.bz2": {"run_exports": {}}},
    }
    options = {"current": json.dumps(DOCUMENT).encode(), "run_exports": json.dumps(exports).encode()}
    publish(DOCUMENT, tmp_path / "all", **options)
    for file in (tmp_path / "all").iterdir():
        assert b"example.org" not in served.unpack(file), file.name
    assert served.documents(tmp_path / "all")["repodata.json"]["repodata_version"] == 1


def test_only_signatures_that_still_hold_are_published(tmp_path: Path) -> None:
    publish(DOCUMENT, tmp_path / "all", keep=lambda name: name != "c-1-0.conda")
    assert served.documents(tmp_path / "all")["repodata.json"]["signatures"] == {
        "a-1-0.tar.bz2": {"key": {"signature": "aa"}}
    }


@pytest.mark.parametrize(
    ("without", "right"),
    [
        ((), {"message": "new", "n_packages": 3, "oldest": 5, "newest": 8}),
        (("a-3-0.conda", "d-1-py3-none-any.whl"), {"message": "new", "n_packages": 1, "oldest": 7, "newest": 7}),
    ],
)
def test_the_counts_of_v3_are_those_of_what_is_published(
    tmp_path: Path, without: tuple[str, ...], right: dict[str, Any]
) -> None:
    publish(DOCUMENT, tmp_path / "all", keep=lambda name: name not in without)
    assert served.documents(tmp_path / "all")["repodata.json"]["info"]["repodata_revisions"] == {"v3": right}
    assert served.shard_index(tmp_path / "all")["info"]["repodata_revisions"] == {"v3": right}
    assert (
        sum(len(found) for section, found in all_records(tmp_path / "all").items() if section[:2] == "v3")
        == (right["n_packages"])
    )


def test_what_is_not_kept_is_in_no_format(tmp_path: Path) -> None:
    kept = {"a-1-0.tar.bz2", "c-3-0.tar.bz2"}
    publish(DOCUMENT, tmp_path / "all", keep=kept.__contains__)
    assert {section: set(found) for section, found in all_records(tmp_path / "all").items()} == {
        "packages": {"a-1-0.tar.bz2"},
        "v3.tar.bz2": {"c-3-0"},
    }


def test_a_former_record_stands_in_in_every_format(tmp_path: Path) -> None:
    old = {**DOCUMENT, "signatures": {"c-1-0.conda": {"key": {"signature": "old"}}}}
    old["packages.conda"] = {"c-1-0.conda": record("c", sha256="ee" * 32)}
    former = repodata.parse(json.dumps(old).encode(), only={"c-1-0.conda"})
    data = json.dumps(DOCUMENT).encode()
    publish(DOCUMENT, tmp_path / "all", former=former, current=data, run_exports=data)
    assert all_records(tmp_path / "all")["packages.conda"]["c-1-0.conda"]["sha256"] == "ee" * 32
    current = served.documents(tmp_path / "all", "current_repodata.json")["current_repodata.json"]
    assert current["packages.conda"]["c-1-0.conda"]["sha256"] == "ee" * 32
    document = served.documents(tmp_path / "all")["repodata.json"]
    assert document["signatures"]["c-1-0.conda"] == {"key": {"signature": "old"}}
    # What the upstream exports from the new bytes is not said of the former ones.
    exports = served.documents(tmp_path / "all", "run_exports.json")["run_exports.json"]
    assert set(exports["packages.conda"]) == {"a-2-0.conda", "b-1-0.conda"}


def test_current_names_only_what_is_published(tmp_path: Path) -> None:
    current = {
        "info": {"subdir": "linux-64", "base_url": "https://elsewhere.example.org/"},
        "packages": {},
        "packages.conda": {name: record("x", lies=True) for name in ("a-2-0.conda", "c-1-0.conda", "newer-1-0.conda")},
        "v3": {"conda": {"a-3-0": {}, "newer-3-0": {}}, "whl": {"e-1-0": {}}},
    }
    published = publish(
        DOCUMENT, tmp_path / "all", current=json.dumps(current).encode(), keep=lambda name: name != "c-1-0.conda"
    )
    documents = served.documents(tmp_path / "all", "current_repodata.json")
    assert documents.keys() == {f"current_repodata.json{form}" for form in ("", ".zst", ".gz")}
    for document in documents.values():
        assert served.records(document) == {
            "packages.conda": {"a-2-0.conda": DOCUMENT["packages.conda"]["a-2-0.conda"]},
            "v3.conda": {"a-3-0": DOCUMENT["v3"]["conda"]["a-3-0"]},
        }
        assert document["info"]["repodata_revisions"]["v3"]["n_packages"] == 1
    assert "current_repodata.json" in published.files
    assert set(published.obsolete) == {"run_exports.json", "run_exports.json.zst"}


def test_what_the_upstream_has_no_longer_is_obsolete(tmp_path: Path) -> None:
    published = publish(DOCUMENT, tmp_path / "all")
    assert set(published.obsolete) == set(formats.INDEX_FILES) - FULL - {"repodata_shards.msgpack.zst"}


def test_bzip2_can_be_left_out(tmp_path: Path) -> None:
    published = publish(DOCUMENT, tmp_path / "all", bz2=False)
    assert served.documents(tmp_path / "all").keys() == FULL - {"repodata.json.bz2"}
    assert "repodata.json.bz2" in published.obsolete


def test_run_exports_are_those_of_what_is_published(tmp_path: Path) -> None:
    exports = {
        "info": {"subdir": "linux-64", "version": 0, "base_url": "https://elsewhere.example.org/"},
        "packages": {"a-1-0.tar.bz2": {"run_exports": {"weak": ["a >=1"]}}, "gone-1-0.tar.bz2": {"run_exports": {}}},
        "packages.conda": {"a-2-0.conda": {"run_exports": {}}, "c-1-0.conda": {"run_exports": {"strong": ["c"]}}},
        "v3": {"whl": {"d-1-0": {"run_exports": {}}, "e-1-0": {"run_exports": {}}}},
    }
    publish(DOCUMENT, tmp_path / "all", run_exports=json.dumps(exports).encode(), keep=lambda name: name[0] != "c")
    documents = served.documents(tmp_path / "all", "run_exports.json")
    assert documents.keys() == {"run_exports.json", "run_exports.json.zst"}
    for document in documents.values():
        assert document == {
            "info": {"subdir": "linux-64", "version": 0},
            "packages": {"a-1-0.tar.bz2": {"run_exports": {"weak": ["a >=1"]}}},
            "packages.conda": {"a-2-0.conda": {"run_exports": {}}},
            "v3": {"whl": {"d-1-0": {"run_exports": {}}}},
        }


@pytest.mark.parametrize("damaged", [b"", b"<html>", b'{"packages": 7}', b'{"packages.conda": {}'])
def test_a_damaged_subset_is_refused(tmp_path: Path, damaged: bytes) -> None:
    for name in ("current", "run_exports"):
        with pytest.raises(repodata.RepodataError):
            publish(DOCUMENT, tmp_path / "all", **{name: damaged})


def test_shards_come_before_their_index_and_that_before_all(tmp_path: Path) -> None:
    published = publish(DOCUMENT, tmp_path / "all", current=json.dumps(DOCUMENT).encode())
    assert set(published.files) == {file.name for file in (tmp_path / "all").iterdir()}
    index = published.files.index("repodata_shards.msgpack.zst")
    assert all(len(name) == 64 + len(".msgpack.zst") for name in published.files[:index])
    assert published.files[index + 1] == "repodata.json"
    assert published.seconds.keys() == set(published.files[index:])


def test_the_same_index_makes_the_same_bytes(tmp_path: Path) -> None:
    data = json.dumps(DOCUMENT).encode()
    for name, threads in (("one", 1), ("two", 2)):
        publish(DOCUMENT, tmp_path / name, current=data, run_exports=data, now=time.time(), threads=threads)
    contents = [{f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert contents[0] == contents[1]


def test_an_empty_subdir_has_every_format(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    formats.render(formats.empty("noarch"), tmp_path / "all", arch="noarch", keep=lambda name: True, now=0.0)
    assert all_records(tmp_path / "all") == {}
    assert served.documents(tmp_path / "all")["repodata.json"]["info"] == {"subdir": "noarch"}


def test_channeldata_is_that_of_what_is_mirrored() -> None:
    data = {
        "channeldata_version": 1,
        "subdirs": ["linux-64", "noarch", "osx-64", "win-64"],
        "packages": {
            "a": {"subdirs": ["linux-64", "osx-64"], "summary": "A", "run_exports": {"1": {"weak": ["a"]}}},
            "b": {"subdirs": ["osx-64"], "summary": "B"},
        },
        "unknown": 1,
    }
    made = formats.channeldata(json.dumps(data).encode(), {"noarch": {"c"}, "linux-64": {"a"}})
    assert json.loads(made) == {
        "channeldata_version": 1,
        "subdirs": ["linux-64", "noarch"],
        "packages": {"a": {"subdirs": ["linux-64"], "summary": "A", "run_exports": {"1": {"weak": ["a"]}}}},
        "unknown": 1,
    }


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"[]", b'{"packages": 7}', b'{"packages": {"a": 7}}', b'{"packages": {"\xff": 1}}']
)
def test_a_damaged_channeldata_is_refused(data: bytes) -> None:
    with pytest.raises(repodata.RepodataError):
        formats.channeldata(data, {"noarch": {"a"}})


NAMES = st.sampled_from(["a", "b", "lib-c"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)
FIELDS = st.dictionaries(st.text(max_size=6).filter(lambda key: key not in record("a")), VALUES, max_size=3)
RECORDS = st.builds(lambda name, fields: {**fields, **record(name)}, NAMES, FIELDS)
KEYS = st.integers(0, 30).map(lambda number: f"p-{number}-0")


def section(suffix: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(KEYS.map(lambda key: key + suffix), RECORDS, max_size=6)


@settings(max_examples=60)
@given(
    packages=section(".tar.bz2"),
    conda=section(".conda"),
    v3=section(""),
    unknown=VALUES,
    dropped=st.sets(KEYS.map(lambda key: f"{key}.conda")),
)
def test_any_index_is_the_same_in_every_format(
    tmp_path: Path,
    *,
    packages: dict[str, Any],
    conda: dict[str, Any],
    v3: dict[str, Any],
    unknown: Any,
    dropped: set[str],
) -> None:
    document = {"packages": packages, "packages.conda": conda, "v3": {"conda": v3}, "unknown": unknown}
    publish(document, tmp_path / "all", keep=lambda name: name not in dropped)
    index = repodata.parse(json.dumps(document).encode())
    expected: dict[str, dict[str, Any]] = {}
    for part, key, file_name, raw in index.records():
        if file_name not in dropped:
            expected.setdefault(part, {})[key] = json.loads(bytes(raw))
    documents = served.documents(tmp_path / "all")
    assert documents["repodata.json"]["unknown"] == unknown
    assert [served.records(found) for found in documents.values()] == [expected] * 4
    # msgpack has no integers beyond 64 bits.
    assert msgspec.json.encode(served.shard_records(tmp_path / "all"), order="sorted") == msgspec.json.encode(
        floated(expected), order="sorted"
    )


WHOLE = json.dumps(DOCUMENT).encode()


@settings(max_examples=200)
@given(st.integers(0, len(WHOLE)), st.integers(0, 40), st.binary(max_size=40) | VALUES.map(msgspec.json.encode))
def test_whatever_is_read_can_be_published(tmp_path: Path, start: int, length: int, patch: bytes) -> None:
    try:
        index = repodata.parse(WHOLE[:start] + patch + WHOLE[start + length :])
    except repodata.RepodataError:
        return
    shutil.rmtree(tmp_path / "all", ignore_errors=True)
    (tmp_path / "all").mkdir()
    formats.render(index, tmp_path / "all", arch="linux-64", keep=lambda name: True, now=0.0)
    assert {section: set(found) for section, found in all_records(tmp_path / "all").items()} == {
        section: set(found) for section, found in index.sections.items() if found
    }


def floated(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: floated(item) for key, item in value.items()}
    if isinstance(value, list):
        return [floated(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        return float(value)
    return value


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("packer", ["zst", "bz2", "gz"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        noise(compress.BLOCK),
        noise(compress.BLOCK + 1),
        b"\0" * (2 * compress.BLOCK + 5),
        # Runs of four are what the first step of bzip2 makes longer.
        b"aaaabbbb" * (compress.BLOCK // 4),
        b'{"name":"a","version":"1"},' * 50_000 + noise(1_000_000),
    ],
    ids=["empty", "tiny", "block", "block and a byte", "zeros", "runs of four", "records"],
)
def test_pieces_make_one_stream(tmp_path: Path, packer: str, data: bytes) -> None:
    source, target = tmp_path / "source", tmp_path / f"target.{packer}"
    source.write_bytes(data)
    outputs = []
    for threads in (1, 3):
        formats.PACKERS[f".{packer}"](source, target, threads, Former())
        outputs.append(target.read_bytes())
        assert served.unpack(target) == data
    assert outputs[0] == outputs[1]
    tool = shutil.which({"zst": "zstd", "bz2": "bzip2", "gz": "gzip"}[packer])
    if tool:
        subprocess.run([tool, "-t", "-q", str(target)], check=True)


@pytest.mark.parametrize("packer", ["zst", "gz"])
def test_the_number_of_cores_changes_no_byte(tmp_path: Path, packer: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(noise(1 << 20) * 40)
    outputs = []
    for threads in (1, 4):
        target = tmp_path / "target"
        formats.PACKERS[f".{packer}"](source, target, threads, Former())
        outputs.append(target.read_bytes())
    assert outputs[0] == outputs[1]


def many_records() -> list[bytes]:
    return [
        f'"lib{number}":{{"sha256":"{random.Random(number).randbytes(32).hex()}"}},'.encode()
        for number in range(40_000)
    ]


@pytest.mark.parametrize(("packer", "library"), [(compress.bzip2, bz2.compress), (compress.gz, gzip.compress)])
def test_pieces_are_as_small_as_what_the_library_makes(
    tmp_path: Path, packer: Callable[..., Packed], library: Callable[[bytes], bytes]
) -> None:
    data = b"".join(many_records())
    (tmp_path / "source").write_bytes(data)
    packer(tmp_path / "source", tmp_path / "target", 2, Former())
    assert (tmp_path / "target").stat().st_size < 1.02 * len(library(data))


def change(records: list[bytes], how: str) -> bytes:
    """Return the records, changed in the middle."""
    middle = len(records) // 2
    new = {"one more": [b'"new":{"sha256":"0"},'], "one less": [], "one other": [records[middle] + b" "]}[how]
    return b"".join([*records[:middle], *new, *records[middle + (how != "one more") :]])


@pytest.mark.parametrize("how", ["one more", "one less", "one other"])
@pytest.mark.parametrize("packer", ["bz2", "gz"])
def test_pieces_that_did_not_change_are_taken_from_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packer: str, how: str
) -> None:
    records = many_records()
    source, former, target = tmp_path / "source", tmp_path / f"former.{packer}", tmp_path / f"target.{packer}"
    source.write_bytes(b"".join(records))
    pack = formats.PACKERS[f".{packer}"]
    packed = pack(source, former, 2, Former())
    assert packed
    compressor = Mock(wraps=bz2.compress if packer == "bz2" else zlib.compressobj)
    monkeypatch.setattr(*((bz2, "compress") if packer == "bz2" else (zlib, "compressobj")), compressor)
    source.write_bytes(change(records, how))
    again = pack(source, target, 2, Former.read(former, packed))
    assert served.unpack(target) == source.read_bytes()
    assert 1 <= compressor.call_count <= 2 < len(packed.pieces)
    # And from that one the next.
    source.write_bytes(b"".join(records))
    pack(source, former, 2, Former.read(target, again))
    assert served.unpack(former) == source.read_bytes()
    assert compressor.call_count <= 4


def channel_like(packages: int, builds: int) -> dict[str, Any]:
    """Return an index like a channel's: the builds of a package are alike, but for their hashes."""
    dice = random.Random(packages)
    records = {
        f"lib{number}-1.{build}-h{build:07x}_0.conda": {
            **record(f"lib{number}"), "version": f"1.{build}", "build": f"h{build:07x}_0", "timestamp": 10**12 + build,
            "depends": [f"lib{dice.randrange(packages)} >=1.{dice.randrange(9)},<2.0a0" for _ in range(4)],
            "sha256": dice.randbytes(32).hex(), "md5": dice.randbytes(16).hex(), "size": dice.randrange(1 << 24),
        }
        for number in range(packages)
        for build in range(builds)
    }  # fmt: skip
    return {"info": {"subdir": "linux-64"}, "packages": {}, "packages.conda": records}


def test_one_changed_record_makes_one_shard_and_a_piece_or_two_of_each_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, there = channel_like(500, 20), tmp_path / "there"
    current = json.dumps({"packages.conda": dict(list(document["packages.conda"].items())[:40])}).encode()
    made = publish(document, there, current=current)
    memo = formats.Memo.decode(made.memo.encode())
    assert len(made.files) > 500
    document["packages.conda"]["lib250-1.7-h0000007_0.conda"]["depends"] = ["patched"]
    counted: dict[str, Mock] = {}
    for module, name in ((bz2, "compress"), (zlib, "compressobj"), (mmap, "mmap"), (shards, "_packed")):
        counted[name] = Mock(wraps=getattr(module, name))
        monkeypatch.setattr(module, name, counted[name])

    again = publish(
        document,
        tmp_path / "again",
        current=current,
        memo=memo,
        served=there,
        present={f.name for f in there.iterdir()},
    )

    assert len(memo.packed["repodata.json.gz"].pieces) > 5
    assert 1 <= counted["compress"].call_count <= 2
    assert 1 <= counted["compressobj"].call_count <= 2
    assert counted["_packed"].call_count == 1
    assert len([name for name in again.files if name.endswith(shards.SUFFIX) and name != shards.INDEX]) == 1
    # Of the former files alone, of which there is one for each form that is made in pieces; the new ones are large.
    assert counted["mmap"].call_count == len(memo.packed)


def test_zstd_is_as_small_as_at_a_level_that_takes_many_times_longer(tmp_path: Path) -> None:
    document = channel_like(400, 20)
    exports = {name: {"run_exports": {"weak": entry["depends"]}} for name, entry in document["packages.conda"].items()}
    publish(document, tmp_path / "all", run_exports=json.dumps({"packages.conda": exports}).encode())
    for name in ("repodata.json", "run_exports.json"):
        usual = len(zstandard.compress((tmp_path / "all" / name).read_bytes(), 6))
        assert (tmp_path / "all" / f"{name}.zst").stat().st_size < 1.02 * usual


@pytest.mark.parametrize("packer", ["bz2", "gz"])
def test_nothing_is_taken_from_a_damaged_file(tmp_path: Path, packer: str) -> None:
    source, former, target = tmp_path / "source", tmp_path / "former", tmp_path / f"target.{packer}"
    source.write_bytes(b"".join(many_records()))
    pack = formats.PACKERS[f".{packer}"]
    packed = pack(source, former, 2, Former())
    damaged = bytearray(former.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    for content in (damaged, b"", None):
        former.unlink()
        if content is not None:
            former.write_bytes(content)
        pack(source, target, 2, Former.read(former, packed))
        assert served.unpack(target) == source.read_bytes()
        former.touch()


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a channel of real packages whose indexes are ours, one record in `v3` alone."""
    root = tmp_path_factory.mktemp("mirror")
    for spec in (channel.greeting(), channel.hello("linux-64"), channel.hello("linux-64", "2.0")):
        channel.build(spec, root)
    channel.index(root)
    for arch in ("noarch", "linux-64"):
        subdir = root / arch
        content = json.loads((subdir / "repodata.json").read_bytes())
        if arch == "linux-64":
            content["v3"] = {"conda": {"hello-2.0-0": content["packages.conda"].pop("hello-2.0-0.conda")}}
            content["info"]["repodata_revisions"] = {"v3": {"n_packages": 1}}
        data = json.dumps(content).encode()
        for file in [*subdir.glob("*repodata*"), *subdir.glob("shards")]:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        beside = root / "beside"
        beside.mkdir()
        published = formats.render(
            repodata.parse(data), beside, arch=arch, keep=lambda name: True, current=data, now=0.0, threads=2
        )
        for name in published.files:
            (beside / name).rename(subdir / name)
        beside.rmdir()
    return root


FORMATS = {
    "repodata_shards.msgpack.zst": rattler.SourceConfig(),
    "repodata.json.zst": rattler.SourceConfig(sharded_enabled=False),
    "repodata.json.bz2": rattler.SourceConfig(sharded_enabled=False, zstd_enabled=False),
    "repodata.json": rattler.SourceConfig(sharded_enabled=False, zstd_enabled=False, bz2_enabled=False),
}


def fetched(upstream: Upstream) -> set[str]:
    return {request.path.rsplit("/", 1)[-1] for request in upstream.asked(method="GET")}


@pytest.mark.parametrize("name", FORMATS)
def test_a_client_installs_from_each_format(mirror: Path, tmp_path: Path, name: str) -> None:
    async def install(url: str) -> list[rattler.RepoDataRecord]:
        gateway = rattler.Gateway(tmp_path / "indexes", default_config=FORMATS[name])
        records = await rattler.solve([url], ["hello"], gateway, platforms=["linux-64", "noarch"])
        await rattler.install(records, tmp_path / "env", cache_dir=tmp_path / "packages", show_progress=False)
        return records

    with serving(mirror) as upstream:
        records = asyncio.run(install(f"{upstream.url}/"))
    assert {record.file_name for record in records} == {"hello-2.0-0.conda", "hello-data-1.0-0.tar.bz2"}
    assert all(str(record.url).startswith(upstream.url) for record in records)
    assert subprocess.check_output([tmp_path / "env/bin/hello"], text=True) == "hello from the mirror\n"
    assert name in fetched(upstream)
    others = {"repodata.json", "repodata.json.zst", "repodata.json.bz2", "repodata_shards.msgpack.zst"} - {name}
    assert not fetched(upstream) & others


def test_a_client_reads_gzip_where_the_server_offers_it(mirror: Path, tmp_path: Path) -> None:
    """As Nginx does with `gzip_static`: the body of the `.gz` under the name of the plain file."""
    site = tmp_path / "site"
    shutil.copytree(mirror, site)
    for arch in ("noarch", "linux-64"):
        (site / arch / "repodata.json.gz").replace(site / arch / "repodata.json")

    async def query(url: str) -> int:
        gateway = rattler.Gateway(tmp_path / "indexes", default_config=FORMATS["repodata.json"])
        found = await gateway.query([url], ["linux-64", "noarch"], ["hello"])
        return sum(len(records) for records in found)

    with serving(site) as upstream:
        upstream.faults["*/repodata.json"] = Fault(headers={"Content-Encoding": "gzip"})
        assert asyncio.run(query(f"{upstream.url}/")) == 3


@pytest.mark.parametrize("name", ["repodata.json", "current_repodata.json"])
def test_a_client_reads_the_file_itself(mirror: Path, name: str) -> None:
    sparse = rattler.SparseRepoData(rattler.Channel("test"), "linux-64", mirror / "linux-64" / name)
    assert sparse.record_count() == 2
    assert sparse.package_names() == ["hello"]
