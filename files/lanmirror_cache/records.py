"""What the served index says of a package: read from the shards of its subdir (CEP 16), which are small.

Of an installer, it is what the published listing of its folder says.

To look a package up costs its subdir's index of shards and one shard, and not a whole `repodata.json`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zstandard
from lanmirror_sync import listing, shards
from lanmirror_sync.listing import Listing
from lanmirror_sync.repodata import SECTIONS

from lanmirror_cache.names import is_installer, name_of, subdir_of

# A shard of the largest package has some MB, and the index of the largest subdir less.
LARGEST = 1 << 28
BAD = (OSError, ValueError, RecursionError, zstandard.ZstdError)


class _Index(msgspec.Struct):
    shards: dict[str, bytes]


class _Record(msgspec.Struct):
    size: int | None = None
    sha256: bytes | None = None
    md5: bytes | None = None


class _Shard(msgspec.Struct):
    packages: dict[str, _Record] = {}
    conda: dict[str, _Record] = msgspec.field(name="packages.conda", default_factory=dict)
    v3: dict[str, dict[str, msgspec.Raw]] = {}


@dataclass(frozen=True)
class Expected:
    """The bytes that a package has to have.

    Attributes:
        size: in bytes; None where the record has none.
        algorithm: `sha256`, or `md5` where the record has no better.
        digest: in lower-case hexadecimal.
    """

    size: int | None
    algorithm: str
    digest: str


class Records:
    """The served indexes of a mirror, each read once."""

    def __init__(self, mirror: Path) -> None:
        self.mirror = mirror
        self._known: dict[str, dict[str, bytes]] = {}
        self._listings: dict[str, Listing | None] = {}
        # As the engine's `Store.public`.
        self._public = mirror / ".lanmirror/public"

    def identity(self, subdir: str) -> str:
        """Return what changes when another index of a subdir is served; "" where there is none."""
        is_dist = "/" not in subdir
        try:
            found = (listing.path(self._public, subdir) if is_dist else self.mirror / subdir / shards.INDEX).stat()
        except OSError:
            return ""
        return f"{found.st_ino}:{found.st_mtime_ns}:{found.st_size}"

    def shard(self, path: str) -> str:
        """Return the name of the shard that tells of a package, as far as its subdir's index has one; else "".

        Of an installer, it is the hash that is listed.
        """
        if is_installer(path):
            return expected.digest if (expected := self.expected(path)) else ""
        subdir = subdir_of(path)
        if subdir not in self._known:
            try:
                data = (self.mirror / subdir / shards.INDEX).read_bytes()
                self._known[subdir] = msgspec.msgpack.decode(_unpacked(data), type=_Index).shards
            except BAD:
                self._known[subdir] = {}
        return self._known[subdir].get(name_of(path), b"").hex()

    def expected(self, path: str) -> Expected | None:
        """Return what the index says of a package; None where it does not name it, or cannot be read."""
        if is_installer(path):
            listed = self.listing(path)
            item = listed.named().get(path.rpartition("/")[2]) if listed else None
            return Expected(None, item.algorithm, item.digest) if item and item.digest else None
        digest, file_name = self.shard(path), path.rpartition("/")[2]
        if not digest:
            return None
        try:
            data = (self.mirror / subdir_of(path) / f"{digest}{shards.SUFFIX}").read_bytes()
            # Nothing is deleted on the word of a file that is damaged itself.
            if hashlib.sha256(data).hexdigest() != digest:
                return None
            shard = msgspec.msgpack.decode(_unpacked(data), type=_Shard)
            record = shard.packages.get(file_name) or shard.conda.get(file_name) or _in_v3(shard, file_name)
        except BAD:
            return None
        if record is None or not (record.sha256 or record.md5):
            return None
        algorithm = "sha256" if record.sha256 else "md5"
        return Expected(record.size, algorithm, (record.sha256 or record.md5 or b"").hex())

    def listing(self, path: str) -> Listing | None:
        """Return the listing of the folder of an installer."""
        dist = subdir_of(path)
        if dist not in self._listings:
            self._listings[dist] = listing.read(self._public, dist)
        return self._listings[dist]

    def is_older(self, path: str, mtime: int) -> bool:
        """Tell whether what is said of an installer may be older than a file of the cache of that time, nanoseconds.

        Only of those that change under their names: what an upstream has of any other is what it had before.
        """
        listed = self.listing(path) if is_installer(path) and listing.LATEST in path else None
        return listed is not None and listed.read * 10**9 < mtime


def _in_v3(shard: _Shard, file_name: str) -> _Record | None:
    """Return the record that `v3` (CEP 48) has: its keys have no extension."""
    for bucket, records in shard.v3.items():
        suffix = SECTIONS.get(f"v3.{bucket}", "")
        raw = records.get(file_name.removesuffix(suffix)) if suffix and file_name.endswith(suffix) else None
        if raw is not None:
            return msgspec.msgpack.decode(raw, type=_Record)
    return None


def _unpacked(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=LARGEST)
