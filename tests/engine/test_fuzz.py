"""The reader of indexes, and a whole run, on indexes that were damaged in every way that a seed thinks of.

The loops are bounded by time: they find more on a machine of their own than in CI, and never nothing at all.
"""

from __future__ import annotations

import bz2
import json
import random
import time
from collections.abc import Callable, Sequence

import pytest
import zstandard
from lanmirror_sync import repodata, upstream

from tests.engine.lab import Lab

LINUX = "pkgs/main/linux-64"
SECONDS = 3.0
LEAST = 200
# What readers of JSON and of names have stumbled over elsewhere.
TOKENS = [
    *(b"null", b"true", b"NaN", b"Infinity", b"-0", b"1e400", b"1" * 400, b'"\\ud800"', b'"\\u0000"', b"\xff\xfe"),
    *(b"\xef\xbb\xbf", b"{}", b"[]", b'""', b"{" * 200, b"[" * 2000, b'"../../x-1-0.conda"', b'"/etc/x-1-0.conda"'),
    *(b'"http://a/x-1-0.conda"', b'"packages"', b'"packages.conda"', b'"v3"', b'"sha256"', b'"md5"', b'"size"'),
    *(b'"name"', b'"url"', b"//", b",", b":", b"\\"),
]
ODD: list[object] = [
    *(None, True, -1, 1.5, 10**30, "", "../x", "x" * 5000, [], {}, [[]], {"a": {}}, "\0", "A" * 64, "/etc/passwd"),
]


def damaged(data: bytes, dice: random.Random) -> bytes:
    """Return a damaged copy: one to four of: bytes changed, cut out, doubled, moved, or a token put in."""
    body = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at, length = dice.randrange(len(body) + 1), dice.choice((1, 2, 8, 64, 512))
        match dice.randrange(6):
            case 0:
                body[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                del body[at : at + length]
            case 2:
                body[at:at] = body[at : at + length]
            case 3:
                other = dice.randrange(len(body) + 1)
                body[at : at + length] = body[other : other + dice.choice((1, 8, 64))]
            case 4:
                body[at : at + dice.choice((0, length))] = dice.choice(TOKENS)
            case 5 if dice.random() < 0.2:
                del body[at:]
    return bytes(body)


def values_replaced(data: bytes, dice: random.Random) -> bytes:
    """Return an index that is JSON still, in which a few values are of another kind or another record's."""
    top = json.loads(data)
    places: list[tuple[dict[str, object], str]] = []

    def walk(node: object) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                places.append((node, key))
                walk(value)

    walk(top)
    for _ in range(dice.randint(1, 4)):
        node, key = dice.choice(places)
        match dice.randrange(3):
            case 0:
                node[key] = dice.choice(ODD)
            case 1:
                other, name = dice.choice(places)
                node[key] = json.loads(json.dumps(other.get(name)))  # a copy: it may hold this very place
            case 2:
                name = dice.choice(["../y-1-0.conda", "", ".conda", "y-1-0.conda\n", "packages", key + "x"])
                node[name] = node.get(key)
    return json.dumps(top).encode()


DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [damaged, values_replaced]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_reader_raises_one_kind_of_error_and_yields_only_names_of_files(
    lab: Lab, damage: Callable[[bytes, random.Random], bytes]
) -> None:
    good = (lab.tree / LINUX / "repodata.json").read_bytes()
    end, count, read = time.monotonic() + SECONDS, 0, 0
    while count < LEAST or time.monotonic() < end:
        dice = random.Random(count)
        data = damage(good, dice)
        count += 1
        try:
            index = repodata.parse(data)
        except repodata.RepodataError:
            continue
        read += 1
        for name, package in index.packages.items():
            assert name == package.file_name
            assert "/" not in name
            assert "\\" not in name
            assert not name.startswith(".")
            assert name.isprintable(), f"seed {count - 1}: {name!r}"
            assert len(name.encode()) < 256
            assert len(bytes.fromhex(package.digest)) in (16, 32)
            assert package.size is None or package.size >= 0
    assert read, "some of what is damaged can be read still"
    assert read < count


@pytest.mark.parametrize("damage", DAMAGES)
def test_records_are_judged_together_as_each_is_by_itself(
    damage: Callable[[bytes, random.Random], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = {"version": "1", "build_number": 0, "size": 7, "sha256": "ab" * 32, "md5": "cd" * 16, "depends": ["b >=1"]}
    records = {f"a-1-{number}.conda": {**sound, "name": "a", "build": f"{number}"} for number in range(12)}
    good = json.dumps({"info": {}, "packages.conda": records, "packages": {"b-1-0.tar.bz2": {**sound, "name": "b"}}})
    together = repodata._usual
    monkeypatch.setattr(repodata, "TOGETHER", 4)
    quick = 0

    def found(data: bytes) -> object:
        try:
            index = repodata.parse(data)
        except repodata.RepodataError as error:
            return str(error)
        rest = {key: getattr(index, key) for key in ("head", "wheels", "refused", "left_out", "rewritten", "base_url")}
        return list(index.packages.items()), list(index.records()), rest

    def count(keys: Sequence[str], data: bytes, names: dict[str, str]) -> list[repodata.Package]:
        nonlocal quick
        packages = together(keys, data, names)
        quick += len(packages)
        return packages

    for seed in range(3 * LEAST):
        data = damage(good.encode(), random.Random(seed))
        monkeypatch.setattr(repodata, "_usual", count)
        at_once = found(data)
        monkeypatch.setattr(repodata, "_usual", lambda *_: [])
        assert at_once == found(data), f"seed {seed}"
    assert quick > LEAST


@pytest.mark.slow
@pytest.mark.parametrize("form", [".zst", ".bz2"])
def test_damaged_compression_is_one_kind_of_error(lab: Lab, form: str) -> None:
    good = (lab.tree / LINUX / "repodata.json").read_bytes()
    packed = zstandard.compress(good, 3) if form == ".zst" else bz2.compress(good)
    end, count, failed = time.monotonic() + SECONDS / 2, 0, 0
    while count < LEAST or time.monotonic() < end:
        data = damaged(packed, random.Random(count))
        count += 1
        try:
            upstream.unpack(data, form)
        except repodata.RepodataError:
            failed += 1
    assert failed


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_on_a_damaged_index_keeps_the_mirror_closed(
    lab: Lab, damage: Callable[[bytes, random.Random], bytes]
) -> None:
    """Each run finds another one: what can be served of it is, the rest is kept as it was, and nothing leaks out."""
    lab.settings |= {"retries": 0, "max_delete": 100, "delete_grace_hours": 0}
    assert lab.sync().code == 0
    good = (lab.tree / LINUX / "repodata.json").read_bytes()
    lab.configure()
    outside = lab.outside_the_mirror()
    for seed in range(25):
        data = damage(good, random.Random(1000 + seed))
        (lab.tree / LINUX / "repodata.json").write_bytes(data)
        (lab.tree / LINUX / "repodata.json.zst").write_bytes(zstandard.compress(data, 1))
        (lab.tree / LINUX / "repodata.json.bz2").write_bytes(bz2.compress(data))
        run = lab.sync()
        assert run.code in (0, 1), f"seed {seed}: {run.log}"
        assert lab.problems() == [], f"seed {seed}: {run.log}"
        assert lab.outside_the_mirror() == outside, f"seed {seed}"
    (lab.tree / LINUX / "repodata.json").write_bytes(good)
    (lab.tree / LINUX / "repodata.json.zst").write_bytes(zstandard.compress(good, 1))
    assert lab.sync().code == 0
    lab.check()
