"""Compression of a large file on all cores, into what every client can read.

Each format is *one* member, stream or frame: a gzip file of several members, and a bzip2 file of several
streams, are valid, but clients stop at the end of the first (Chromium and rattler do). So the pieces that
were compressed side by side are joined inside of a single stream (RFC 1952; for bzip2, its reference
implementation 1.0.8).
"""

from __future__ import annotations

import bz2
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import zstandard

# Of 246 MB of records like those of conda-forge/linux-64, in seconds of CPU (Debian 12, zstd 1.5.7):
# level 3 1.8 s for 53.2 MB, 6 4.3 s for 50.8 MB, 9 7.3 s for 50.3 MB, 12 14.0 s for 49.8 MB.
ZSTD_LEVEL = 6
# Level 4 3.8 s for 56.6 MB, 6 5.0 s for 53.6 MB, 9 8.9 s for 52.5 MB.
GZIP_LEVEL = 6
# 22 s for 43.6 MB, and hardly less at any level: as much as all the rest.
BZIP2_LEVEL = 9
CHUNK = 1 << 22
# The first step of bzip2 makes 5 bytes of 4 equal ones: so many bytes always fit into one block of 900 kB.
BLOCK = (900_000 - 20) * 4 // 5
BLOCK_END = 0x177245385090

T = TypeVar("T")


def zst(source: Path, target: BinaryIO, threads: int) -> None:
    """Write the bytes of `source` as one zstd frame that tells its content's size (RFC 8878)."""
    with source.open("rb") as file:
        packer = zstandard.ZstdCompressor(ZSTD_LEVEL, threads=threads)
        packer.copy_stream(file, target, size=source.stat().st_size, read_size=CHUNK, write_size=CHUNK)


def gz(source: Path, target: BinaryIO, threads: int) -> None:
    """Write the bytes of `source` as one gzip member without a time, so that equal bytes stay equal."""
    target.write(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff")
    check = size = 0
    for chunk, packed in _side_by_side(source, CHUNK, _deflate, threads):
        check, size = zlib.crc32(chunk, check), size + len(chunk)
        target.write(packed)
    # An empty last block ends what the flushed pieces left open.
    target.write(b"\x03\x00" + struct.pack("<II", check, size & 0xFFFFFFFF))


def bzip2(source: Path, target: BinaryIO, threads: int) -> None:
    """Write the bytes of `source` as one bzip2 stream."""
    target.write(b"BZh%d" % BZIP2_LEVEL)
    check, pending, bits = 0, 0, 0
    for _, (block, length, block_check) in _side_by_side(source, BLOCK, _one_block, threads):
        check = ((check << 1 | check >> 31) & 0xFFFFFFFF) ^ block_check
        pending, bits = pending << length | block, bits + length
        # Blocks do not end at a byte's end: what is left over goes before the next one.
        bits, whole = bits % 8, bits // 8
        target.write((pending >> bits).to_bytes(whole, "big"))
        pending &= (1 << bits) - 1
    end, bits = (pending << 48 | BLOCK_END) << 32 | check, bits + 80
    target.write((end << -bits % 8).to_bytes((bits + 7) // 8, "big"))


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)


def _one_block(data: bytes) -> tuple[int, int, int]:
    """Return the bits of the one bzip2 block that `data` makes, their number, and the block's checksum."""
    packed = bz2.compress(data, BZIP2_LEVEL)
    bits = int.from_bytes(packed, "big")
    check = int.from_bytes(packed[10:14], "big")
    # After the block: 48 bits that say so, the checksum of all blocks (here of one), and up to 7 bits of nothing.
    padding = next(spare for spare in range(8) if bits >> spare & (1 << 80) - 1 == BLOCK_END << 32 | check)
    length = len(packed) * 8 - 32 - padding - 80
    return bits >> padding + 80 & (1 << length) - 1, length, check


def _side_by_side(source: Path, size: int, work: Callable[[bytes], T], threads: int) -> Iterator[tuple[bytes, T]]:
    """Yield the pieces of a file and what `work` makes of each, in order; few of them are held at a time."""
    waiting: deque[tuple[bytes, Future[T]]] = deque()
    with ThreadPoolExecutor(threads) as pool, source.open("rb") as file:
        while piece := file.read(size):
            waiting.append((piece, pool.submit(work, piece)))
            if len(waiting) > 2 * threads:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()
