"""How a file of devpi's, and the metadata of a wheel, is got and stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from devpi_server import filestore
from devpi_server.log import threadlog

from lanmirror_devpi import coming, entries, near, outside
from lanmirror_devpi.answers import METADATA, Wanted, on_disk
from lanmirror_devpi.fetch import Job, Outcome
from lanmirror_devpi.sources import Bytes, FetchError, FirstOf, Ready, Upstream

# No metadata is larger, bytes.
MAX_METADATA = 16 << 20
# Seconds that a replica waits for its primary, which may have to wait for a download of somebody else's.
PATIENCE_WITH_PRIMARY = 3600.0


def wanted_file(stage: Any, path: str, meta: Mapping[str, Any], known: entries.Known | None, **headers: str) -> Wanted:
    """Return how to get a file.

    Args:
        stage: Its index.
        path: Of its URL, without the first slash.
        meta: Its entry, see entries.py.
        known: What the upstream's page tells of it.
        headers: More of the request.
    """
    xom, name = stage.xom, path.rpartition("/")[2]
    hashes = hashes_of(meta)
    size = known.size if known else None
    client = outside.client(stage)
    url: str = known.file.url if known else meta.get("url") or ""
    meta = {**meta, "url": url}
    silence = float(xom.config.args.lanmirror_file_silence)

    def upstream(url: str, **more: Any) -> Upstream:
        # Without a hash, as below `+e/`, size and length are all that can be checked.
        told: dict[str, Any] = {"name": name, "size": size, "checked": bool(hashes), "headers": headers}
        return Upstream(client, url, **told, **{"silence": silence, "patience": patience(xom), **more})

    job = Job(
        path=path,
        hashes=hashes,
        source=source_of(stage, ways(xom, path, url), hashes, upstream),
        store=partial(store_by_the_rules, stage, path, meta, partial(store, xom, path, meta)),
        is_stored=on_disk(xom, path).is_file,
    )
    return Wanted(xom, client, ways(xom, path, url)[0], job, size, max(silence, patience(xom)))


def store_by_the_rules(  # noqa: PLR0917 - the last three are Job's
    stage: Any,
    path: str,
    meta: Mapping[str, Any],
    store: Callable[[Path, Mapping[str, str], str], None],
    temporary: Path,
    digests: Mapping[str, str],
    modified: str,
) -> None:
    """Store a file; where the rules of its index have changed meanwhile, and hide it, it is set aside at once."""
    held = stage.xom.lanmirror_held
    with held.storing():
        store(temporary, digests, modified)
    if held.has_rules(stage.name):
        with stage.xom.keyfs.read_transaction():
            about = coming.about(path, meta, entries.known(stage, path))
        held.look(path, about)


def ways(xom: Any, path: str, url: str) -> list[str]:
    """Return the URLs that have a file: on a replica, that of the primary, then the upstream's."""
    primary = [xom.config.primary_url.joinpath(path).url] if xom.is_replica() else []
    return [*primary, url] if url or not primary else primary


def patience(xom: Any) -> float:
    """Return for how many seconds the beginning of an answer is waited for, at least."""
    return PATIENCE_WITH_PRIMARY if xom.is_replica() else 0.0


def source_of(
    stage: Any, urls: Sequence[str], hashes: Mapping[str, str], upstream: Callable[..., Upstream]
) -> Callable[[], Bytes]:
    """Return what makes the bytes of a file.

    Args:
        stage: Its index.
        urls: Its URLs, see `ways`.
        hashes: What its bytes must have, by algorithm.
        upstream: Makes the bytes at a URL, see near.py.
    """
    if places := near.urls_of(stage, urls[0], hashes):
        return lambda: near.Near(stage, urls[0], places, upstream)
    return lambda: FirstOf(*map(upstream, urls)) if len(urls) > 1 else upstream(urls[0])


def hashes_of(meta: Mapping[str, Any]) -> dict[str, str]:
    """Return what the bytes of a file must have, by its entry (filestore.BaseFileEntry.hashes)."""
    hashes = dict(meta.get("hashes") or {})
    algorithm, _, value = (meta.get("hash_spec") or "").partition("=")
    if value and hashes.get(algorithm) != value:
        hashes = {algorithm: value}
    return hashes


def store(  # noqa: PLR0917 - the last three are Job's
    xom: Any, path: str, meta: Mapping[str, Any], temporary: Path, digests: Mapping[str, str], modified: str
) -> None:
    """Store a file in devpi, with its entry."""
    found = filestore.Digests(digests)
    with temporary.open("rb") as file:
        if temporary.stat().st_dev == on_disk(xom, "").stat().st_dev:
            # devpi links it, and copies nothing (filestore_fs).
            file.devpi_srcpath = str(temporary)  # type: ignore[attr-defined]
        with xom.keyfs.read_transaction():
            key = entries.key_of(xom.keyfs, path)
            present = dict(key.get())
        if xom.is_replica() or (present.get("hash_spec") and present.get("last_modified")):
            # Its entry comes from the primary, or is there: it was fetched before.
            entry = filestore.MutableFileEntry(key, meta=present or dict(meta))
            with xom.keyfs.filestore_transaction():
                entry.file_set_content_no_meta(file, hashes=found)
            return

        def write() -> None:
            entry = filestore.MutableFileEntry(key)
            stage = xom.model.getstage(entry.user, entry.index)
            if stage is None:
                raise LookupError(f"the index of {path} is gone")
            for name in ("url", "project", "version"):
                if meta.get(name) is not None:
                    setattr(entry, name, meta[name])
            entry.file_set_content(
                file,
                last_modified=modified or None,
                hash_spec=(meta.get("hash_spec") or "").lower() or None,
                hashes=found,
            )
            if entry.project:
                stage.add_project_name(entry.project)

        xom.lanmirror_together.run(write)


def wanted_metadata(stage: Any, wheel: Wanted, meta: Mapping[str, Any], promised: Any) -> Wanted:
    """Return how to get the metadata of a wheel (PEP 658).

    Args:
        stage: Its index.
        wheel: The wheel.
        meta: Its entry.
        promised: What its page tells of its metadata (PEP 714).
    """
    xom, path = wheel.xom, f"{wheel.job.path}{METADATA}"
    sha256 = promised.get("sha256") if isinstance(promised, Mapping) else None
    hashes = {"sha256": sha256} if sha256 else {}
    parts = urlsplit(meta.get("url") or "")
    urls = ways(xom, path, urlunsplit(parts._replace(path=f"{parts.path}{METADATA}")) if parts.path else "")

    def upstream(url: str, **more: Any) -> Upstream:
        told: dict[str, Any] = {"name": METADATA, "size": None, "checked": bool(hashes)}
        return Upstream(wheel.client, url, **told, **{"silence": wheel.silence, **more})

    upstreams = source_of(stage, urls, hashes, upstream)

    def source() -> Bytes:
        return Made(Metadata(upstreams(), hashes, wheel, meta.get("project") or "", meta.get("version") or ""))

    job = Job(
        path=path,
        hashes=hashes,
        source=source,
        store=partial(store_by_the_rules, stage, wheel.job.path, meta, partial(store_beside, on_disk(xom, path))),
        is_stored=on_disk(xom, path).is_file,
    )
    return Wanted(xom, wheel.client, urls[0], job, None, wheel.silence, kind=METADATA)


@dataclass(frozen=True)
class Metadata:
    """Where the metadata of a wheel comes from: the upstream; where it is missing there or wrong, the wheel itself."""

    upstream: Bytes
    hashes: Mapping[str, str]
    wheel: Wanted
    project: str
    version: str

    def ready(self) -> Ready:
        """Return it."""
        if self.wheel.job.is_stored():
            return Ready(self.made())
        try:
            content, why = b"", ""
            while not why or self.upstream.refuse(why):
                content = self.read()
                if all(
                    filestore.get_hashes(content, hash_types=(name,))[name] == self.hashes[name] for name in self.hashes
                ):
                    return Ready(content, self.upstream.modified)
                why = "it has not the hash that its page tells"
        except FetchError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            why = str(error)
        finally:
            self.upstream.close()
        threadlog.warn("%s is made from the wheel: %s", f"{self.wheel.name}{METADATA}", why)
        return Ready(self.made())

    def read(self) -> bytes:
        """Return it as the upstream gives it."""
        self.upstream.open()
        content = b""
        for piece in self.upstream:
            content += piece
            if len(content) > MAX_METADATA:
                raise FetchError(HTTPStatus.NOT_FOUND, f"it is larger than {MAX_METADATA >> 20} MiB")
        return content

    def made(self) -> bytes:
        """Return it as it stands in the wheel."""
        download, _ = self.wheel.xom.lanmirror_downloads.start(self.wheel.job, reads=False)
        if download and download.wait() is not Outcome.STORED:
            raise download.error or FetchError(HTTPStatus.BAD_GATEWAY, "the wheel cannot be stored")
        return metadata_in(on_disk(self.wheel.xom, self.wheel.job.path), self.project, self.version)


class Made(Bytes):
    """The bytes of metadata, which are there as a whole or not at all."""

    whole = True

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.size: int | None = None
        self.modified = ""

    def open(self) -> None:
        """Get them; FetchError where that fails."""
        self.content = self.metadata.ready()
        self.size, self.modified = self.content.size, self.content.modified

    def close(self) -> None:
        """Do nothing."""

    def __iter__(self) -> Iterator[bytes]:
        """Yield them."""
        return iter(self.content)


def metadata_in(path: Path, project: str, version: str) -> bytes:
    """Return the metadata of a wheel that is stored; FetchError where it has none."""
    with path.open("rb") as file:
        found: bytes | None = filestore.get_core_metadata(file, project, version, basename=path.name)
    if found is None:
        raise FetchError(HTTPStatus.NOT_FOUND, "the wheel has no metadata")
    return found


def store_beside(path: Path, temporary: Path, _digests: Mapping[str, str], _modified: str) -> None:
    """Store the metadata of a wheel beside it, where Nginx finds it; devpi knows nothing of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.replace(path)
