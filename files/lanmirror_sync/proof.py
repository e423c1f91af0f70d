"""What can be proved of the served formats of a subdir: that they agree, and that none leads off the mirror."""

from __future__ import annotations

import bz2
import gzip
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import msgspec
import zstandard

from lanmirror_sync import formats, repodata, shards
from lanmirror_sync.repodata import Index, RepodataError

CHUNK = 1 << 20


def problems(folder: Path, index: Index) -> Iterator[str]:
    """Yield what is wrong with the formats in a folder, beside its `repodata.json`, which `index` was parsed from."""
    yield from _leads(index)
    for name, forms in formats.FORMS.items():
        plain = folder / name
        if not plain.exists():
            yield from (
                f"{name}{form}: is there without {name}" for form in forms if (folder / f"{name}{form}").exists()
            )
            continue
        wanted = _hash(plain.open("rb"))
        for form in forms:
            packed = folder / f"{name}{form}"
            if form and packed.exists():
                try:
                    if _hash(_opened(packed, form)) != wanted:
                        yield f"{packed.name}: is not the same as {name}"
                except (OSError, EOFError, zstandard.ZstdError) as error:
                    yield f"{packed.name}: is damaged ({error})"
    current = folder / "current_repodata.json"
    if current.exists():
        yield from _current(current.read_bytes(), index)
    if (folder / shards.INDEX).exists():
        yield from _shards(folder, index)


def _leads(index: Index) -> Iterator[str]:
    """Yield what in an index would lead a client off the mirror, or to a record it must not trust."""
    if index.base_url:
        yield f"repodata.json: its base_url leads to {index.base_url}"
    for name in index.rewritten:
        yield f"repodata.json: the record of {name} leads off the mirror"
    for name, reason in (*index.refused.items(), *index.left_out.items()):
        yield f"repodata.json: {name!r}: {reason}"


def _current(data: bytes, index: Index) -> Iterator[str]:
    try:
        current = repodata.parse(data)
    except RepodataError as error:
        yield f"current_repodata.json: {error}"
        return
    for name, package in current.packages.items():
        if index.packages.get(name) != package:
            yield f"current_repodata.json: {name} is not as in repodata.json"


def _shards(folder: Path, index: Index) -> Iterator[str]:
    """Hold the shards against `repodata.json`: each is named by its hash, and together they name the same."""
    try:
        top = _unpacked(folder / shards.INDEX)
        info, listed = top["info"], cast("Mapping[str, bytes]", top["shards"])
        for key in ("base_url", "shards_base_url"):
            if repodata.leads_away(info[key]):
                yield f"{shards.INDEX}: its {key} leads to {info[key]}"
    except (OSError, KeyError, TypeError, ValueError, zstandard.ZstdError) as error:
        yield f"{shards.INDEX}: is damaged ({error!r})"
        return
    unseen = set(index.packages)
    for name, digest in listed.items():
        file = folder / f"{digest.hex()}{shards.SUFFIX}"
        try:
            if _hash(file.open("rb")) != digest:
                yield f"{file.name}: the shard of {name} has another hash"
                continue
            shard = _unpacked(file)
        except (OSError, ValueError, zstandard.ZstdError) as error:
            yield f"{file.name}: the shard of {name} cannot be read ({error})"
            continue
        for file_name, record in _records(shard):
            package = index.packages.get(file_name)
            digests = record.get("sha256") or record.get("md5") or b""
            if package is None or bytes(digests).hex() != package.digest:
                yield f"{file.name}: {file_name} is not as in repodata.json"
            if any(repodata.leads_away(record.get(key)) for key in repodata.LEADING):
                yield f"{file.name}: the record of {file_name} leads off the mirror"
            unseen.discard(file_name)
    for file_name in unseen:
        yield f"{shards.INDEX}: no shard has {file_name}"


def _records(shard: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield file name and record of everything in a shard."""
    for section, suffix in repodata.SECTIONS.items():
        top, _, bucket = section.partition(".") if section.startswith("v3.") else (section, "", "")
        records = shard.get(top) or {}
        for key, record in ((records.get(bucket) or {}) if bucket else records).items():
            yield (record.get("fn") or record["url"]) if section == repodata.WHEELS else key + suffix, record


def _unpacked(file: Path) -> dict[str, Any]:
    with file.open("rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed) as reader:
        return msgspec.msgpack.decode(reader.read(), type=dict[str, Any])


def _opened(file: Path, form: str) -> IO[bytes]:
    if form == ".zst":
        return cast("IO[bytes]", zstandard.open(file, "rb"))
    return cast("IO[bytes]", bz2.open(file) if form == ".bz2" else gzip.open(file))


def _hash(file: IO[bytes]) -> bytes:
    hasher = hashlib.sha256()
    with file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return hasher.digest()
