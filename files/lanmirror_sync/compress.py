"""Compression of a large file on all cores, into what every client can read.

Each format is *one* member, stream or frame: a gzip file of several members, and a bzip2 file of several
streams, are valid, but clients stop at the end of the first (Chromium and rattler do). So the pieces that
were compressed side by side are joined inside of a single stream (RFC 1952; for bzip2, its reference
implementation 1.0.8).

A piece that was compressed the last time is not compressed again: its bits are taken from the file that is served.
For that, pieces end where the content says so and not after so many bytes, or one new record would move all of the
ends behind it (content-defined chunking: Muthitacharoen, Chen, Mazieres, "A Low-bandwidth Network File System", 2001).
"""

from __future__ import annotations

import bz2
import hashlib
import mmap
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import zstandard

# Of 219 MB of records with hashes of their own, in seconds of CPU (zstd 1.5.7): level 1 0.6 s for 44.3 MB, 2 0.7 s for
# 46.0 MB, 3 1.9 s for 49.4 MB, 6 5.0 s for 48.8 MB; of the 0.9 MB of pytorch/linux-64: 163, 169, 182 and 172 kB. A
# quarter of an index is hashes; a higher level finds short matches in them, and those cost more than they save. In the
# channels of bench/engine hashes repeat themselves, and there it is the other way round.
ZSTD_LEVEL = 1
# Without hashes, higher is smaller.
ZSTD_TEXT_LEVEL = 6
# Level 4 3.8 s for 56.6 MB, 6 5.0 s for 53.6 MB, 9 8.9 s for 52.5 MB.
GZIP_LEVEL = 6
# 22 s for 43.6 MB, and hardly less at any level: as much as all the rest.
BZIP2_LEVEL = 9
CHUNK = 1 << 22
# The first step of bzip2 makes 5 bytes of 4 equal ones: so many bytes always fit into one block of 900 kB.
BLOCK = (900_000 - 20) * 4 // 5
BLOCK_END = 0x177245385090
# What pieces begin with, where there is such a place: one record in sixteen, for either way to write JSON.
BORDERS = (b'"sha256":"0', b'"sha256": "0')


T = TypeVar("T")


class Piece(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a compressed piece stands in its file.

    Attributes:
        start: in bits.
        length: in bits.
        check: what its format's checksum of the uncompressed bytes is.
    """

    start: int
    length: int
    check: int


class Packed(msgspec.Struct, frozen=True):
    """What is remembered of a compressed file.

    Attributes:
        digest: of the file, so that nothing is taken from one that was damaged since.
        pieces: by the digest of the uncompressed bytes.
    """

    digest: bytes
    pieces: dict[bytes, Piece]


@dataclass(frozen=True)
class Former:
    """The file that was made the last time, to take pieces from."""

    data: bytes | mmap.mmap = b""
    pieces: Mapping[bytes, Piece] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path, packed: Packed | None) -> Former:
        """Return the file that is served, if it is the one that is remembered."""
        if packed is None:
            return cls()
        try:
            with file.open("rb") as opened:
                data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, ValueError):  # or it is empty
            return cls()
        return cls(data, packed.pieces) if _digest(data) == packed.digest else cls()

    def bits(self, piece: Piece) -> int:
        """Return the bits of a piece, the first one counting most."""
        end = piece.start + piece.length
        number = int.from_bytes(self.data[piece.start // 8 : (end + 7) // 8], "big")
        return number >> -end % 8 & (1 << piece.length) - 1


def zst(source: Path, target: Path, threads: int, former: Former, level: int = ZSTD_LEVEL) -> Packed | None:
    """Write the bytes of `source` as one zstd frame that tells its content's size (RFC 8878).

    Its blocks refer to each other, so none of a former file can be used; it is the fastest of all.
    """
    with source.open("rb") as file, target.open("wb") as out:
        packer = zstandard.ZstdCompressor(level, threads=threads)
        packer.copy_stream(file, out, size=source.stat().st_size, read_size=CHUNK, write_size=CHUNK)
    return None


def gz(source: Path, target: Path, threads: int, former: Former) -> Packed:
    """Write the bytes of `source` as one gzip member without a time, so that equal bytes stay equal."""
    pieces: dict[bytes, Piece] = {}
    with target.open("wb") as out:
        out.write(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff")
        check = size = 0
        for piece, (key, packed) in _side_by_side(source, partial(_deflate, former), threads):
            check, size = zlib.crc32(piece, check), size + len(piece)
            pieces[key] = Piece(out.tell() * 8, len(packed) * 8, 0)
            out.write(packed)
        # An empty last block ends what the flushed pieces left open.
        out.write(b"\x03\x00" + struct.pack("<II", check, size & 0xFFFFFFFF))
    return _remembered(target, pieces)


def bzip2(source: Path, target: Path, threads: int, former: Former) -> Packed:
    """Write the bytes of `source` as one bzip2 stream."""
    pieces: dict[bytes, Piece] = {}
    with target.open("wb") as out:
        out.write(b"BZh%d" % BZIP2_LEVEL)
        check, pending, bits, start = 0, 0, 0, 32
        for _, (key, block, length, block_check) in _side_by_side(source, partial(_one_block, former), threads):
            pieces[key] = Piece(start, length, block_check)
            check = ((check << 1 | check >> 31) & 0xFFFFFFFF) ^ block_check
            pending, bits, start = pending << length | block, bits + length, start + length
            # Blocks do not end at a byte's end: what is left over goes before the next one.
            bits, whole = bits % 8, bits // 8
            out.write((pending >> bits).to_bytes(whole, "big"))
            pending &= (1 << bits) - 1
        end, bits = (pending << 48 | BLOCK_END) << 32 | check, bits + 80
        out.write((end << -bits % 8).to_bytes((bits + 7) // 8, "big"))
    return _remembered(target, pieces)


def _deflate(former: Former, data: bytes) -> tuple[bytes, bytes]:
    """Return the digest of a piece, and the whole bytes that it makes."""
    key = _digest(data)
    if piece := former.pieces.get(key):
        return key, former.data[piece.start // 8 : (piece.start + piece.length) // 8]
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, -15)
    return key, packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)


def _one_block(former: Former, data: bytes) -> tuple[bytes, int, int, int]:
    """Return the digest of a piece, the bits of the one bzip2 block that it makes, their number, and its checksum."""
    key = _digest(data)
    if piece := former.pieces.get(key):
        return key, former.bits(piece), piece.length, piece.check
    packed = bz2.compress(data, BZIP2_LEVEL)
    bits = int.from_bytes(packed, "big")
    check = int.from_bytes(packed[10:14], "big")
    # After the block: 48 bits that say so, the checksum of all blocks (here of one), and up to 7 bits of nothing.
    padding = next(spare for spare in range(8) if bits >> spare & (1 << 80) - 1 == BLOCK_END << 32 | check)
    length = len(packed) * 8 - 32 - padding - 80
    return key, bits >> padding + 80 & (1 << length) - 1, length, check


def _digest(data: bytes | mmap.mmap) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _remembered(target: Path, pieces: dict[bytes, Piece]) -> Packed:
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    return Packed(digest, pieces)


def _side_by_side(source: Path, work: Callable[[bytes], T], threads: int) -> Iterator[tuple[bytes, T]]:
    """Yield the pieces of a file and what `work` makes of each, in order; few of them are held at a time."""
    waiting: deque[tuple[bytes, Future[T]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for piece in _pieces(source):
            waiting.append((piece, pool.submit(work, piece)))
            if len(waiting) > 2 * threads:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def _pieces(source: Path) -> Iterator[bytes]:
    """Yield a file in pieces of at most `BLOCK` bytes, and of half of that where its content allows it."""
    size, start = source.stat().st_size, 0
    with source.open("rb") as file:
        while start < size:
            # Not mapped: pages that were looked at would count as memory of this process, and the file is large.
            file.seek(start)
            piece = file.read(BLOCK)
            if start + len(piece) < size:
                border = max(piece.rfind(text, BLOCK // 2) for text in BORDERS)
                piece = piece[:border] if border > 0 else piece
            yield piece
            start += len(piece)
