"""The bytes of a file from near places: the setting `files_from` of a mirror.

Public mirrors keep each file where the official index does, at `packages/`, two, two and sixty digits, and its name.
So the page of one server and the bytes of another go together: each byte is held against the sha256 that the page
tells. A file without one, or at another path, comes from where its page leads, and so does a part of a file.

A place that fails is left alone for a time, as upstreams are (places.py); one that gave wrong bytes for WRONG_SECONDS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from devpi_server.log import threadlog

from lanmirror_devpi import outside, places
from lanmirror_devpi.sources import Bytes, FetchError, Upstream, WrongError

PACKAGES = re.compile(r".*/(packages/[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{60}/[^/]+)")
# A first client may have had a broken transfer of it, which it should not have again with the next file.
WRONG_SECONDS = 3600.0


def urls_of(stage: Any, url: str, hashes: Mapping[str, str]) -> dict[str, str]:
    """Return where a file may be at the near places of a mirror, by place and in order.

    Args:
        stage: The mirror.
        url: Of the file, as its page tells it; on a replica, of its primary, which has no such path.
        hashes: What its bytes must have, by algorithm.
    """
    found = PACKAGES.fullmatch(urlsplit(url).path)
    if found is None or "sha256" not in hashes:
        return {}
    near = {place: place + found[1] for place in stage.ixconfig.get(outside.FILES_FROM, ())}
    return {place: there for place, there in near.items() if there != url}


class Near(Bytes):
    """The bytes of a file from the first place that has them, and the rest from the next where it breaks off.

    The URL that the page tells is asked after the near places, and before those whose host has failed just now.
    """

    def __init__(self, stage: Any, url: str, near: Mapping[str, str], upstream: Callable[..., Upstream]) -> None:
        """Ask for a file.

        Args:
            stage: The mirror.
            url: Of the file, as its page tells it.
            near: Its URLs at the near places, see `urls_of`.
            upstream: Makes the bytes at a URL, with more arguments of Upstream.
        """
        self.index, self.among = stage.name, places.all_of(stage)
        self.pauses, self.told = stage.xom.lanmirror_asker.pauses, stage.xom.lanmirror_asker.told
        self.wrong: places.Pauses = stage.xom.lanmirror_wrong
        self.url, self.near, self.upstream, self.patience = url, near, upstream, stage.timeout
        self.size: int | None = None
        self.modified, self.whole = "", True
        # What is asked now and then, and what has given bytes: places, and "" for the URL of the page.
        self.place, self.left, self.gave = "", list[str](), list[str]()
        self.source = upstream(url)

    def open(self) -> None:
        """Wait for the beginning; the FetchError of the page's own URL where there is none."""
        right, _ = self.wrong.in_order(list(self.near))
        now, failed = self.pauses.in_order(right)
        self.left, self.gave, error = [*now, "", *failed], [], None
        while self.left:
            self._turn()
            try:
                self.source.open()
                if self.place and self.source.told_size not in {None, self.source.size}:
                    # As a portal that wants a login: the client has nothing of it yet.
                    self._wrong(f"it has {self.source.size} bytes, where its page tells {self.source.told_size}")
                    self.source.close()
                    continue
            except FetchError as why:
                self._failed(why)
                error = error if self.place else why
            else:
                self.size, self.modified, self.whole = self.source.size, self.source.modified, self.source.whole
                return
        raise error or FetchError(HTTPStatus.BAD_GATEWAY, "no place has it")

    def close(self) -> None:
        """End it."""
        self.source.close()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes; FetchError where they end too early, and no place goes on."""
        have = 0
        while True:
            try:
                for piece in self.source:
                    self._gives()
                    have += len(piece)
                    yield piece
            except WrongError:
                # Of too many bytes, none may have come so far.
                self._gives()
                raise
            except FetchError as why:
                self._failed(why)
                if not self.left:
                    raise
                self._turn()
                # By the same sha256 it is the same file, whatever the two say of it.
                self.source.have, self.source.size = have, self.size
            else:
                return

    def refuse(self, why: str) -> bool:
        """Hear that the bytes were wrong; return whether `open` begins anew with those of another place."""
        blamed = [place for place in self.gave if place]
        for place in blamed:
            self._wrong(why, place)
        return bool(blamed)

    def _turn(self) -> None:
        """Have the next place asked."""
        self.place = self.left.pop(0)
        if not self.place:
            self.source = self.upstream(self.url)
            return
        self.pauses.trying(self.place)
        # Where another place is left, a silence is no reason to wait.
        self.source = self.upstream(self.near[self.place], silence=self.patience, pauses=())

    def _gives(self) -> None:
        """Take note that bytes come."""
        if self.place in self.gave:
            return
        self.gave.append(self.place)
        self._answers()

    def _answers(self) -> None:
        if self.place:
            self.pauses.answered(self.place)
            self.told.tell_place(self.index, self.place, "", self.among)

    def _failed(self, error: FetchError) -> None:
        """Take note that the place gives nothing, or nothing more; one without this file may have others."""
        if error.status == HTTPStatus.NOT_FOUND:
            self._answers()
        elif self.place:
            threadlog.warn("%s: %s", self.near[self.place], error)
            self.pauses.failed(self.place)
            self.told.tell_place(self.index, self.place, str(error), self.among)

    def _wrong(self, why: str, place: str = "") -> None:
        """Take note that the bytes of a place were wrong; of several, nobody knows whose."""
        place = place or self.place
        others = "".join(f" and {self.near.get(other, self.url)}" for other in self.gave if other != place)
        text = f"{self.near[place]}{others} did not give the bytes that the page tells: {why}"
        threadlog.error("%s", text)
        self.wrong.failed(place)
        self.told.tell_wrong(self.index, place, text)


def install(xom: Any) -> None:
    """Have the places that gave wrong bytes."""
    xom.lanmirror_wrong = places.Pauses(WRONG_SECONDS)
