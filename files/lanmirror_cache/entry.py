"""One file of Nginx's cache: its head, and what of a package it holds.

Source: ngx_http_file_cache_header_t in src/http/ngx_http_cache.h of Nginx 1.22, which has the same version, 5, in all
releases from 1.11 to 1.28.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from dataclasses import dataclass
from http import HTTPStatus

from lanmirror_cache import CacheError

VERSION = 5
# version, valid_sec, updating_sec, error_sec, last_modified, date; crc32, valid_msec, header_start, body_start; ETag,
# Vary and variant, each with its length before it, but for the last; to the end of the struct.
HEADER = struct.Struct("@L5qI3HB128sB128s16s0q")
KEY = b"\nKEY: "
# What is read at once: the most that Nginx reads of a head itself (proxy_buffer_size), and that fits in most.
FIRST_READ = 4096
NAME = re.compile(r"[0-9a-f]{32}")
# Being written: Nginx renames it when it is whole.
IN_FLIGHT = re.compile(r"[0-9a-f]{32}\.[0-9]{10,}")
KEYED = re.compile(r"(/\S*)(?: (?:bytes=([0-9]{1,15})-([0-9]{1,15}))?)?")
RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})")
LENGTH = re.compile(r"[0-9]{1,15}")
# Of one upstream, by http.conf.j2.
UPSTREAM = re.compile(r"[!-~]{1,300}")


class BadEntryError(Exception):
    """A file that is none of Nginx's cache, or is damaged; Nginx does not serve it either."""


class UnknownVersionError(CacheError):
    """An Nginx that writes its files in another way."""


@dataclass(frozen=True)
class Head:
    """The head of a file of the cache.

    Attributes:
        path: of the site, from the slash on.
        first, last: the bytes that were asked for; None for what is not fetched in slices.
        status: of the answer.
        start, total: the first byte that came and the size of the whole, as the answer has it; None where it does not.
        length: how many bytes came, likewise.
        body: where they begin in the file.
        began: when the answer came, Unix time, seconds.
        upstream: who gave it, "" where that is not known.
    """

    path: str
    first: int | None
    last: int | None
    status: int
    start: int | None
    total: int | None
    length: int | None
    body: int
    began: int
    upstream: str

    @classmethod
    def parse(cls, data: bytes) -> Head:
        """Return the head that the beginning of a file is.

        Raises:
            BadEntryError: it is none.
            UnknownVersionError: Nginx has another layout.
        """
        if len(data) < HEADER.size:
            raise BadEntryError("it is too short")
        version, _, _, _, _, began, _, _, start_of_head, body, *_ = HEADER.unpack_from(data)
        if version != VERSION:
            raise UnknownVersionError(
                f"Nginx's cache has files of version {version}; known is version {VERSION}: nothing of it is checked"
            )
        key, mark, _ = data[HEADER.size : start_of_head].partition(b"\n")[2].partition(b"\n")
        keyed = KEYED.fullmatch(key.decode("utf-8", "replace").removeprefix("KEY: "))
        if not data.startswith(KEY, HEADER.size) or not mark or not keyed or not start_of_head <= body <= len(data):
            raise BadEntryError("it has no key, or no answer")
        status_line, *lines = data[start_of_head:body].decode("latin-1").split("\r\n")
        status = status_line.split(" ")[1:2]
        if not status or not LENGTH.fullmatch(status[0]):
            raise BadEntryError("it has no answer")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        code = int(status[0])
        part = RANGE.fullmatch(headers.get("content-range", ""))
        length = headers.get("content-length", "")
        said = int(length) if LENGTH.fullmatch(length) else None
        whole = code == HTTPStatus.OK
        upstream = headers.get("x-kept-from", "")
        return cls(
            path=keyed[1],
            first=int(keyed[2]) if keyed[2] else None,
            last=int(keyed[3]) if keyed[3] else None,
            status=code,
            start=0 if whole else int(part[1]) if part else None,
            total=said if whole else int(part[3]) if part else None,
            length=said,
            body=body,
            began=began,
            upstream=upstream if UPSTREAM.fullmatch(upstream) else "",
        )


def read(descriptor: int, name: str = "") -> Head:
    """Return the head of an open file of the cache.

    Args:
        descriptor: of the file.
        name: of it, which has to be the md5 of its key; "" for one in flight.

    Raises:
        BadEntryError: it is none of the cache's.
        UnknownVersionError: Nginx has another layout.
    """
    data = os.pread(descriptor, FIRST_READ, 0)
    if len(data) == FIRST_READ and (body := HEADER.unpack_from(data)[9]) > FIRST_READ:
        data = os.pread(descriptor, body, 0)
    head = Head.parse(data)
    key = data[HEADER.size + len(KEY) :].partition(b"\n")[0]
    if name and hashlib.md5(key, usedforsecurity=False).hexdigest() != name:
        raise BadEntryError("its name is not that of its key")
    return head
