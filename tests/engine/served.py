"""Reads what is published of a subdir as the strictest of clients does: one stream, one frame, one member."""

from __future__ import annotations

import bz2
import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import zstandard

Records = Mapping[str, Mapping[str, Any]]


def unpack(file: Path) -> bytes:
    """Return the unpacked bytes of a file, by its ending."""
    data = file.read_bytes()
    match file.suffix:
        case ".zst":
            assert zstandard.frame_content_size(data) >= 0
            return zstandard.ZstdDecompressor().decompress(data)
        case ".bz2":
            unpacker = bz2.BZ2Decompressor()
            unpacked = unpacker.decompress(data)
            assert unpacker.eof
            assert not unpacker.unused_data
            return unpacked
        case ".gz":
            inflater = zlib.decompressobj(31)
            unpacked = inflater.decompress(data)
            assert inflater.eof
            assert not inflater.unused_data
            return unpacked
    return data


def documents(folder: Path, stem: str = "repodata.json") -> dict[str, Any]:
    """Return what each form of a JSON file holds, by the name of the form."""
    return {
        file.name: json.loads(unpack(file), object_pairs_hook=_without_repetition)
        for file in sorted(folder.glob(f"{stem}*"))
    }


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def records(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the records of a document by section; sections without records are left out."""
    sections = {section: document.get(section, {}) for section in ("packages", "packages.conda")}
    sections |= {f"v3.{bucket}": found for bucket, found in document.get("v3", {}).items()}
    return {section: found for section, found in sections.items() if found}


def shard_index(folder: Path) -> dict[str, Any]:
    """Return the shard index."""
    decoded: dict[str, Any] = msgspec.msgpack.decode(unpack(folder / "repodata_shards.msgpack.zst"))
    return decoded


def shard(folder: Path, digest: bytes) -> dict[str, Any]:
    """Return a shard, of which the name is checked."""
    file = folder / f"{digest.hex()}.msgpack.zst"
    assert hashlib.sha256(file.read_bytes()).digest() == digest
    decoded: dict[str, Any] = msgspec.msgpack.decode(unpack(file))
    return decoded


def shard_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the records of all shards by section, hashes in hexadecimal as in JSON."""
    merged: dict[str, dict[str, Any]] = {}
    for name, digest in shard_index(folder)["shards"].items():
        content = shard(folder, digest)
        assert {"packages", "packages.conda", "removed"} <= content.keys()
        for section, found in records(content).items():
            for key, record in found.items():
                assert record["name"].lower() == name
                for algorithm in ("sha256", "md5"):
                    if isinstance(record.get(algorithm), bytes):
                        record[algorithm] = record[algorithm].hex()
                merged.setdefault(section, {})[key] = record
    return merged
