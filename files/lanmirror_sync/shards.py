"""CEP 16: a small file for each package name, named by its hash, and an index of them.

The shards are made from the records that `repodata.json` is made from, so the two cannot disagree, and a
shard whose records did not change is not made again. They stand beside the packages, as conda-index and the
large servers have them, since some clients resolve `shards_base_url` in ways of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import zstandard
from msgspec import Raw

from lanmirror_sync import repodata

INDEX = "repodata_shards.msgpack.zst"
SUFFIX = ".msgpack.zst"
LEVEL = 3
# CEP 16: so that a client with a former index still finds what that names.
KEEP_DAYS = 7
# Other bytes come of the same records when one of these changes.
RECIPE = f"1 level {LEVEL} zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}"
_INT64 = range(-(1 << 63), 1 << 64)


class RecordError(Exception):
    """A record that cannot be written in every format; the message says why."""

    def __init__(self, file_name: str, reason: str) -> None:
        super().__init__(reason)
        self.file_name = file_name


class Shard(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A shard that was made.

    Attributes:
        source: hash of the records that it was made from.
        digest: the sha256 that it is named by.
    """

    source: bytes
    digest: bytes

    @property
    def file_name(self) -> str:
        """Its name beside the packages."""
        return f"{self.digest.hex()}{SUFFIX}"


class ShardMemo(msgspec.Struct, frozen=True):
    """What is remembered of a subdir's shards, so that only what changed is made again.

    Attributes:
        recipe: how they were made.
        shards: for each package name.
        unused: since when (Unix time, seconds) a shard's file is named by no index.
    """

    recipe: str = RECIPE
    shards: dict[str, Shard] = {}
    unused: dict[str, float] = {}


@dataclass(frozen=True)
class ShardSet:
    """The outcome.

    Attributes:
        memo: to keep for the next time.
        files: the names of the shards that were written.
        expired: the names of the shards that can be deleted.
        index: the bytes of the shard index.
    """

    memo: ShardMemo
    files: tuple[str, ...]
    expired: tuple[str, ...]
    index: bytes


@dataclass
class _Group:
    records: list[tuple[str, str, Raw]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def make(
    records: Iterable[tuple[str, str, str, Raw]],
    *,
    removed: Iterable[str],
    info: Mapping[str, Any],
    folder: Path,
    former: ShardMemo,
    present: Collection[str],
    now: float,
) -> ShardSet:
    """Write the shards that are not there yet.

    Args:
        records: package name, section, key and undecoded record of everything that is published.
        removed: the file names that the index lists as removed.
        info: what the shard index says of the subdir; `base_url` and `shards_base_url` are added.
        folder: where new shards are written.
        former: what the last call returned.
        present: the names of the files that are served now.
        now: Unix time, seconds.
    """
    known = former.shards if former.recipe == RECIPE else {}
    shards: dict[str, Shard] = {}
    written: list[str] = []
    packer = zstandard.ZstdCompressor(LEVEL)
    for name, group in sorted(_grouped(records, removed).items()):
        group.records.sort(key=lambda entry: entry[:2])
        source = _source(group)
        shard = known.get(name)
        if shard is None or shard.source != source or shard.file_name not in present:
            data = packer.compress(_packed(group))
            shard = Shard(source, hashlib.sha256(data).digest())
            if shard.file_name not in present:
                _write(f"{folder}/{shard.file_name}", data)
                written.append(shard.file_name)
        shards[name] = shard
    index = {
        "version": 1,
        "info": {**info, "base_url": "", "shards_base_url": ""},
        "shards": {name: shard.digest for name, shard in shards.items()},
    }
    used = {shard.file_name for shard in shards.values()}
    unused = {
        file_name: min(former.unused.get(file_name, now), now)
        for file_name in present
        if file_name.endswith(SUFFIX) and file_name != INDEX and file_name not in used
    }
    expired = tuple(file_name for file_name, since in unused.items() if now - since >= KEEP_DAYS * 86400)
    for file_name in expired:
        del unused[file_name]
    memo = ShardMemo(RECIPE, shards, unused)
    return ShardSet(memo, tuple(written), expired, packer.compress(msgspec.msgpack.encode(index)))


def _write(file: str, data: bytes) -> None:
    """Write a new file; thirty thousand of them take half as long as through `pathlib` and a buffer."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def _grouped(records: Iterable[tuple[str, str, str, Raw]], removed: Iterable[str]) -> dict[str, _Group]:
    """Sort records by package name, in lower case as clients ask for it (CEP 26)."""
    groups: dict[str, _Group] = defaultdict(_Group)
    for name, section, key, raw in records:
        groups[name.lower()].records.append((section, key, raw))
    for file_name in removed:
        # CEP 26: a file name is name-version-build, and only the name may have hyphens.
        group = groups.get(file_name.rsplit("-", 2)[0].lower())
        if group is not None:
            group.removed.append(file_name)
    return dict(groups)


def _source(group: _Group) -> bytes:
    parts: list[bytes | Raw] = []
    for section, key, raw in group.records:
        parts += (f"{section}\0{key}\0".encode(), raw)
    parts.append("\0".join(sorted(group.removed)).encode())
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


def _packed(group: _Group) -> bytes:
    """Return the msgpack of a shard."""
    shard: dict[str, Any] = {"packages": {}, "packages.conda": {}}
    for section, key, raw in group.records:
        top, _, bucket = section.partition(".") if section.startswith("v3.") else (section, "", "")
        records = shard.setdefault(top, {}).setdefault(bucket, {}) if bucket else shard[top]
        try:
            records[key] = _record(raw)
        except (ValueError, RecursionError) as error:
            raise RecordError(repodata.file_of(section, key, raw, bytes(raw)), f"it is damaged ({error})") from error
    shard["removed"] = sorted(group.removed)
    try:
        return msgspec.msgpack.encode(shard)
    except OverflowError:
        return msgspec.msgpack.encode(_fitting(shard))


def _record(raw: Raw) -> dict[str, Any]:
    """Return a record as a shard has it: its hashes in bytes."""
    try:
        record: dict[str, Any] = msgspec.json.decode(raw)
    except msgspec.ValidationError:
        # A number that no double holds; Python's own makes it infinite.
        record = json.loads(bytes(raw))
    for algorithm in ("sha256", "md5"):
        if record.get(algorithm):
            record[algorithm] = bytes.fromhex(record[algorithm])
    return record


def _fitting(value: Any) -> Any:
    """Return a value whose integers are none that msgpack cannot hold: those become floating."""
    if isinstance(value, dict):
        return {key: _fitting(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_fitting(item) for item in value]
    if isinstance(value, int) and value not in _INT64:
        return float(value)
    return value
