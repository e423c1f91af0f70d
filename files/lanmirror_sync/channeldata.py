"""`channeldata.json` (CEP 38): of the upstream's, what is mirrored."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from pathlib import PurePosixPath

from lanmirror_sync import formats
from lanmirror_sync.answers import Answer, FetchError, MissingError
from lanmirror_sync.fetch import Fetcher
from lanmirror_sync.mirror import Mirror
from lanmirror_sync.repodata import RepodataError
from lanmirror_sync.upstream import LARGEST_SENT, is_page, unpack

log = logging.getLogger(__name__)


class Channeldata:
    """Asks for `channeldata.json` of channels, once for each, and serves it."""

    def __init__(self, mirror: Mirror, fetcher: Fetcher) -> None:
        self._mirror = mirror
        self._fetcher = fetcher
        self._answers: dict[PurePosixPath, Future[Answer]] = {}

    def ask(self, channel: PurePosixPath) -> None:
        """Ask for the file of a channel, if that was not done yet.

        That is while a subdir is published of which all packages came, or else at the end, and not beside packages:
        where an upstream has none, that answer would make a host that refuses every package look as if it did not.
        """
        if channel not in self._answers:
            subdir = next(subdir for subdir in self._mirror.config.subdirs() if subdir.channel == channel)
            urls = [url.rsplit("/", 1)[0] + "/channeldata.json" for url in subdir.index_urls]
            self._answers[channel] = self._fetcher.request(urls, limit=LARGEST_SENT, optional=True, spare=True)

    def publish(self, channel: PurePosixPath) -> None:
        """Serve the file of a channel that was asked about."""
        store, answer = self._mirror.store, self._answers[channel]
        subdirs = [subdir for subdir in self._mirror.config.subdirs() if subdir.channel == channel]
        files = {subdir.arch: store.made_path(subdir.path) for subdir in subdirs}
        names = {
            arch: formats.Memo.decode(file.read_bytes()).shards.shards.keys()
            for arch, file in files.items()
            if file.exists()
        }
        try:
            sent = answer.result().data or b""
            data = None if is_page(sent) else formats.channeldata(unpack(sent, ""), names)
        except MissingError:
            data = None
        except (FetchError, RepodataError) as error:
            kept = "ours is kept" if store.path(channel / "channeldata.json").exists() else "and none is served"
            log.warning("%s/channeldata.json: cannot be had, %s: %s", channel, kept, error)
            return
        if data is None:
            store.remove(channel / "channeldata.json")
        else:
            store.write_file(store.path(channel / "channeldata.json"), data)
