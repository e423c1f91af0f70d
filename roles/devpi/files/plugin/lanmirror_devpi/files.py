"""The answers to requests for files.

What is stored, Nginx sends without devpi. For the rest it asks here, with `X-Lanmirror-Accel: 1`, and is answered:

- the file is stored meanwhile: `X-Accel-Redirect: /+stored/PATH`;
- somebody's download of it is under way: `X-Accel-Redirect: /+wait/PATH`, at once, so that nobody who waits holds a
  thread of devpi; there Nginx asks `/+lanmirror/stored/PATH`, one request for all, which is answered when the download
  has ended: 204, or 403 with the status for the clients in `X-Lanmirror-Status`;
- the file as it comes, to the first client;
- a small part of it, straight from the upstream, where no more than that was asked for;
- an error.

Who asks without that header, as replicas do, waits here for the end of somebody else's download.

Nothing is answered within a transaction of devpi's: a view returns what is to be done, and the tween does it.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import httpx
from devpi_common.metadata import splitbasename
from devpi_common.url import URL
from devpi_server import filestore, replica, views
from devpi_server.log import threadlog
from devpi_server.readonly import get_mutable_deepcopy
from pyramid.httpexceptions import HTTPFound
from pyramid.response import Response
from webob.static import FileIter

from lanmirror_devpi import entries, outside
from lanmirror_devpi.fetch import (
    CONTENT_RANGE,
    Alone,
    BrokenOff,
    Bytes,
    Check,
    Downloads,
    FetchError,
    Job,
    Outcome,
    Ready,
    Upstream,
    checked,
    failure,
    length,
    status_for,
)
from lanmirror_devpi.replace import replace

ACCEL = "X-Lanmirror-Accel"
STATUS = "X-Lanmirror-Status"
# Asked by Nginx alone.
STORED = "/+lanmirror/stored/"
METADATA = ".metadata"
# The part of a file that is passed on without fetching the rest: uv reads the end of a wheel.
SMALL_PART = 16 << 20
# No metadata is larger, bytes.
MAX_METADATA = 16 << 20
RANGE = re.compile(r"bytes=(?P<first>\d*)-(?P<last>\d*)")
# Seconds that a replica waits for its primary, which may have to wait for a download of somebody else's.
PATIENCE_WITH_PRIMARY = 3600.0
WORDS = {
    HTTPStatus.NOT_FOUND: "The upstream has no such file.",
    HTTPStatus.FAILED_DEPENDENCY: "The upstream did not give this file, and it is not stored here: try again later.",
    HTTPStatus.BAD_GATEWAY: "The download of this file broke off: try again.",
    HTTPStatus.GATEWAY_TIMEOUT: "The upstream did not give this file in time.",
}


class Later(Response):
    """An answer that the tween makes, by `make`, when the transaction has ended."""

    make: Callable[[], Response]


def later(make: Callable[[], Response]) -> Later:
    """Return an answer that is made when the transaction has ended."""
    answer = Later()
    answer.make = make
    return answer


def factory(handler: Callable[[Any], Any], registry: Any) -> Callable[[Any], Any]:
    """Return the tween (https://docs.pylonsproject.org/projects/pyramid/en/2.0-branch/narr/hooks.html#tweens)."""
    xom = registry["xom"]

    def tween(request: Any) -> Any:
        if request.path_info.startswith(STORED):
            return told_when_stored(xom, request.path_info.removeprefix(STORED))
        answer = handler(request)
        if isinstance(answer, Later):
            try:
                return answer.make()
            except FetchError as error:
                return refusal(error)
        return answer

    return tween


def told_when_stored(xom: Any, path: str) -> Response:
    """Return 204 when the file has been stored, 403 when it has not."""
    download = xom.lanmirror_downloads.find(path)
    outcome = download.wait() if download else None
    if ".." not in path.split("/") and on_disk(xom, path).is_file():
        return Response(status=HTTPStatus.NO_CONTENT)
    status = HTTPStatus.BAD_GATEWAY
    if outcome is Outcome.ALONE:
        # Nginx asks again, for this client alone.
        status = HTTPStatus.INSUFFICIENT_STORAGE
    elif download and download.error:
        status = HTTPStatus(download.error.status)
    return Response(status=HTTPStatus.FORBIDDEN, headers={STATUS: str(int(status)), "Cache-Control": "no-store"})


def refusal(error: FetchError) -> Response:
    """Return the answer where a file cannot be had."""
    text = WORDS.get(HTTPStatus(error.status), "This file cannot be had.")
    answer = Response(f"{text}\n", status=error.status, content_type="text/plain", charset="utf-8")
    answer.headers["Cache-Control"] = "no-store"
    return answer


def on_disk(xom: Any, path: str) -> Path:
    """Return where devpi stores a file (filestore_fs_base)."""
    return Path(xom.config.server_path) / "+files" / path


def headers_of(name: str) -> dict[str, str]:
    """Return the headers of any answer with a file."""
    return {
        "Content-Type": mimetypes.guess_type(name)[0] or "application/octet-stream",
        "Accept-Ranges": "bytes",
    }


def told(name: str, *, size: int | None, modified: str, body: Any = ()) -> Response:
    """Return an answer with a file as it comes, which nobody may keep."""
    answer = Response(app_iter=body, headers=headers_of(name))
    answer.headers["Cache-Control"] = "no-store"
    if size is None:
        answer.headers.pop("Content-Length", None)
    else:
        answer.headers["Content-Length"] = str(size)
    if modified:
        answer.headers["Last-Modified"] = modified
    return answer


def redirected(where: str, path: str) -> Response:
    """Return what sends Nginx to one of its own locations; it reads it as a URL."""
    answer = Response(headers=headers_of(path.removesuffix(METADATA) if path.endswith(METADATA) else path))
    answer.headers["X-Accel-Redirect"] = quote(f"/{where}/{path}", safe="/+")
    return answer


def stored(xom: Any, path: str, *, accel: bool) -> Response:
    """Return a file that is stored."""
    if accel:
        return redirected("+stored", path)
    file = on_disk(xom, path)
    stream = file.open("rb")
    answer = Response(app_iter=FileIter(stream), conditional_response=True, headers=headers_of(file.name))
    stat = file.stat()
    answer.headers["Content-Length"] = str(stat.st_size)
    answer.last_modified = stat.st_mtime
    if "/+f/" in path:
        answer.headers["Cache-Control"] = "max-age=365000000, immutable, public"
    return answer


# ---- what is asked for -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What a client asks for with `Range` (RFC 9110, 14.1.2); `first` is None for the last `count` bytes."""

    first: int | None
    count: int | None


def part_of(header: str | None) -> Part | None:
    """Return the part that a header asks for; None for all, for several parts, and for what is no header."""
    found = RANGE.fullmatch(header.strip()) if header else None
    if not found or not (found["first"] or found["last"]):
        return None
    if not found["first"]:
        return Part(None, int(found["last"]))
    first = int(found["first"])
    if not found["last"]:
        return Part(first, None)
    return Part(first, int(found["last"]) - first + 1) if int(found["last"]) >= first else None


def is_small(part: Part, size: int | None) -> bool:
    """Return whether a part is worth asking for alone: less than half of the file, where its size is known."""
    count = part.count
    if count is None and size is not None and part.first is not None:
        count = max(0, size - part.first)
    return count is not None and 0 < count <= SMALL_PART and (size is None or count < size / 2)


@dataclass(frozen=True)
class Wanted:
    """A file that is not stored, and how to get it."""

    xom: Any
    client: Any
    url: str
    job: Job
    size: int | None
    silence: float
    kind: str = ""

    @property
    def name(self) -> str:
        """Of the file."""
        return self.job.path.rpartition("/")[2]

    def answer(self, request: Any) -> Response:
        """Return the answer to a request for it; FetchError where there is none."""
        if request.method == "HEAD":
            return self.head()
        header = request.headers.get("Range")
        part = part_of(header)
        if part and not self.kind and is_small(part, self.size):
            answer = self.passed_on(header, part, request.headers.get("If-Range"))
            if answer:
                return answer
        return self.shared(accel=request.headers.get(ACCEL) == "1", whole=header is None or part == Part(0, None))

    def shared(self, *, accel: bool, whole: bool) -> Response:
        """Return it as one download for all has it; FetchError where that fails.

        Args:
            accel: Nginx asks, and waits by itself.
            whole: All of it is asked for.
        """
        download, first = self.xom.lanmirror_downloads.start(self.job, reads=whole, kind=self.kind)
        if download is None:
            return stored(self.xom, self.job.path, accel=accel)
        if first and whole:
            reader = download.reader()
            return told(self.name, size=download.size, modified=download.modified, body=reader)
        if accel and download.outcome is None:
            return redirected("+wait", self.job.path)
        outcome = download.wait()
        if outcome is Outcome.STORED:
            return stored(self.xom, self.job.path, accel=accel)
        if outcome is Outcome.FAILED:
            raise download.error or FetchError(HTTPStatus.BAD_GATEWAY, "it failed")
        alone = Alone(self.job)
        return told(self.name, size=alone.source.size, modified=alone.source.modified, body=alone)

    def ask(self, method: str, **headers: str) -> Any:
        """Return an answer of the upstream; FetchError where there is none."""
        try:
            timeout = httpx.Timeout(self.silence, connect=self.client.timeout.connect, pool=None)
            request = self.client.build_request(method, self.url, headers=headers, timeout=timeout)
            return self.client.send(request, stream=True)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise failure(error) from error

    def head(self) -> Response:
        """Return what is known of it; where that is nothing, what the upstream says. No byte of it is fetched."""
        if self.size is not None:
            return told(self.name, size=self.size, modified="")
        if self.kind:
            # It may have to be made; it is small.
            return told(self.name, size=None, modified="")
        answer = self.ask("HEAD")
        answer.close()
        if answer.status_code not in {HTTPStatus.OK, HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
            # Signed URLs are for one method.
            answer = self.ask("GET")
            answer.close()
        if answer.status_code != HTTPStatus.OK:
            raise FetchError(status_for(answer.status_code), f"the upstream answers {answer.status_code}")
        size = None if answer.headers.get("Content-Encoding") else length(answer.headers)
        return told(self.name, size=size, modified=answer.headers.get("Last-Modified", ""))

    def passed_on(self, header: str, part: Part, if_range: str | None) -> Response | None:
        """Return a part of it as the upstream gives it, unchecked; None where the upstream gives no such part.

        No hash tells whether these bytes are right: who asks for a part trusts the upstream, as it would without us.
        """
        upstream = self.ask("GET", Range=header, **({"If-Range": if_range} if if_range else {}))
        found = CONTENT_RANGE.fullmatch(upstream.headers.get("Content-Range", ""))
        if (
            upstream.status_code != HTTPStatus.PARTIAL_CONTENT
            or found is None
            or not is_asked_for(part, *map(int, found.groups()))
            or (self.size is not None and int(found["size"]) != self.size)
            or upstream.headers.get("Content-Encoding", "identity") != "identity"
        ):
            upstream.close()
            return None
        count = int(found["last"]) - int(found["first"]) + 1
        answer = told(self.name, size=count, modified=upstream.headers.get("Last-Modified", ""))
        answer.status = HTTPStatus.PARTIAL_CONTENT
        answer.headers["Content-Range"] = found[0]
        answer.app_iter = PassedOn(upstream)
        return answer


def is_asked_for(part: Part, first: int, last: int, size: int) -> bool:
    """Return whether what an upstream gives is the part that was asked for."""
    begin = max(0, size - part.count) if part.first is None and part.count is not None else part.first
    end = size - 1 if part.first is None or part.count is None else min(size - 1, part.first + part.count - 1)
    return (first, last) == (begin, end)


class PassedOn:
    """The bytes of an upstream's answer."""

    def __init__(self, upstream: Any) -> None:
        self.upstream = upstream

    def __iter__(self) -> Iterator[bytes]:
        """Yield them."""
        try:
            yield from self.upstream.iter_raw()
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise BrokenOff from error

    def close(self) -> None:
        """End it."""
        self.upstream.close()


# ---- how it is got and stored ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metadata:
    """Where the metadata of a wheel comes from: the upstream; where it is missing there or wrong, the wheel itself."""

    upstream: Upstream
    hashes: Mapping[str, str]
    wheel: Wanted
    project: str
    version: str

    def ready(self) -> Ready:
        """Return it."""
        if self.wheel.job.is_stored():
            return Ready(self.made())
        try:
            self.upstream.open()
            content = b""
            for piece in self.upstream:
                content += piece
                if len(content) > MAX_METADATA:
                    raise FetchError(HTTPStatus.NOT_FOUND, f"it is larger than {MAX_METADATA >> 20} MiB")
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

    def made(self) -> bytes:
        """Return it as it stands in the wheel."""
        download, _ = self.wheel.xom.lanmirror_downloads.start(self.wheel.job, reads=False)
        if download and download.wait() is not Outcome.STORED:
            raise download.error or FetchError(HTTPStatus.BAD_GATEWAY, "the wheel cannot be stored")
        return metadata_in(on_disk(self.wheel.xom, self.wheel.job.path), self.project, self.version)


class Made:
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


def store(  # noqa: PLR0917 - the last three are Job's
    xom: Any, path: str, meta: Mapping[str, Any], temporary: Path, digests: Mapping[str, str], modified: str
) -> None:
    """Store a file in devpi, with its entry."""
    found = filestore.Digests(digests)
    with temporary.open("rb") as file:
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
        with xom.keyfs.write_transaction():
            entry = filestore.MutableFileEntry(key)
            stage = xom.model.getstage(entry.user, entry.index)
            if stage is None:
                raise LookupError(f"the index of {path} is gone")
            for name in ("url", "project", "version"):
                if meta.get(name) is not None:
                    setattr(entry, name, meta[name])
            entry.file_set_content(
                file, last_modified=modified or None, hash_spec=meta.get("hash_spec") or None, hashes=found
            )
            if entry.project:
                stage.add_project_name(entry.project)


class FirstOf:
    """The bytes of the first of several sources that has them."""

    def __init__(self, *sources: Upstream) -> None:
        self.sources = sources
        self.source = sources[0]
        self.size: int | None = None
        self.modified, self.whole = "", True

    def open(self) -> None:
        """Wait for the beginning; the FetchError of the first where none has any."""
        errors = []
        for source in self.sources:
            try:
                source.open()
            except FetchError as error:
                errors.append(error)
            else:
                self.source, self.size, self.modified, self.whole = source, source.size, source.modified, source.whole
                return
        raise errors[0]

    def close(self) -> None:
        """End it."""
        self.source.close()

    def __iter__(self) -> Iterator[bytes]:
        """Yield them."""
        return iter(self.source)


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

    def upstream(url: str, silence: float) -> Upstream:
        # Without a hash, as below `+e/`, size and length are all that can be checked.
        return Upstream(client, url, name=name, size=size, checked=bool(hashes), silence=silence, headers=headers)

    def source() -> Bytes:
        if not xom.is_replica():
            return upstream(url, silence)
        primary = upstream(xom.config.primary_url.joinpath(path).url, PATIENCE_WITH_PRIMARY)
        return FirstOf(primary, upstream(url, silence)) if url else primary

    job = Job(
        path=path,
        hashes=hashes,
        source=source,
        store=partial(store, xom, path, meta),
        is_stored=on_disk(xom, path).is_file,
    )
    if xom.is_replica():
        return Wanted(xom, client, xom.config.primary_url.joinpath(path).url, job, size, PATIENCE_WITH_PRIMARY)
    return Wanted(xom, client, url, job, size, silence)


def hashes_of(meta: Mapping[str, Any]) -> dict[str, str]:
    """Return what the bytes of a file must have, by its entry (filestore.BaseFileEntry.hashes)."""
    hashes = dict(meta.get("hashes") or {})
    algorithm, _, value = (meta.get("hash_spec") or "").partition("=")
    if value and hashes.get(algorithm) != value:
        hashes = {algorithm: value}
    return hashes


def wanted_metadata(wheel: Wanted, meta: Mapping[str, Any], promised: Any) -> Wanted:
    """Return how to get the metadata of a wheel (PEP 658).

    Args:
        wheel: The wheel.
        meta: Its entry.
        promised: What its page tells of its metadata (PEP 714).
    """
    xom, path = wheel.xom, f"{wheel.job.path}{METADATA}"
    sha256 = promised.get("sha256") if isinstance(promised, Mapping) else None
    hashes = {"sha256": sha256} if sha256 else {}
    parts = urlsplit(wheel.url)
    url = urlunsplit(parts._replace(path=f"{parts.path}{METADATA}"))

    def source() -> Bytes:
        upstream = Upstream(wheel.client, url, name=METADATA, size=None, checked=bool(hashes), silence=wheel.silence)
        return Made(Metadata(upstream, hashes, wheel, meta.get("project") or "", meta.get("version") or ""))

    job = Job(
        path=path,
        hashes=hashes,
        source=source,
        store=partial(store_beside, on_disk(xom, path)),
        is_stored=on_disk(xom, path).is_file,
    )
    return Wanted(xom, wheel.client, url, job, None, wheel.silence, kind=METADATA)


# ---- the views -------------------------------------------------------------------------------------------------


def file_view(self: Any) -> Any:
    """Return the answer to a request for a file, or for the metadata of a wheel."""
    request, xom, path = self.request, self.xom, self._relpath_from_request()
    if request.method not in {"GET", "HEAD"}:
        views.abort(request, HTTPStatus.METHOD_NOT_ALLOWED, "files are read")
    file, is_metadata = path.removesuffix(METADATA), path.endswith(METADATA)
    stage = self.context.stage
    entry = entry_of(self, stage, file)
    meta = dict(entry.meta)
    # A replica that follows asks for what was deleted since, as well.
    if not meta or (replica.H_REPLICA_FILEREPL in request.headers and not entry.key.exists()):
        views.abort(request, HTTPStatus.GONE, "file existed, deleted in later serial")
    if views.json_preferred(request) and not is_metadata:
        views.apireturn(HTTPStatus.OK, type="releasefilemeta", result=get_mutable_deepcopy(entry.meta))
    if not request.has_permission("pkg_read"):
        views.apireturn(HTTPStatus.FORBIDDEN, "package read forbidden")
    if on_disk(xom, path).is_file():
        return stored(xom, path, accel=request.headers.get(ACCEL) == "1")
    is_mirror = stage.ixconfig["type"] == "mirror"
    known = entries.known(stage, file) if is_mirror else None
    if not is_metadata:
        return missing(self, stage, path, meta, known)
    if not is_mirror:
        upload = wanted_file(stage, file, meta, None) if xom.is_replica() else None
        return later(lambda: metadata_of_upload(xom, file, meta, upload))
    wheel = wanted_file(stage, file, meta, known)
    promised = (known and known.core_metadata) or stage.provides_core_metadata
    if not promised and not on_disk(xom, file).is_file():
        views.abort(request, HTTPStatus.NOT_FOUND, "the upstream offers no metadata of this file")
    return later(lambda: wanted_metadata(wheel, meta, promised).answer(request))


def entry_of(self: Any, stage: Any, path: str) -> Any:
    """Return the entry of a file; 404 where there is none."""
    filestore, request = self.xom.filestore, self.request
    entry = filestore.get_file_entry(path)
    if stage.ixconfig["type"] == "mirror" and not on_disk(self.xom, path).is_file() and not entries.known(stage, path):
        # Somebody has its URL from elsewhere, as from a lock file.
        try:
            stage.get_simplelinks_perstage(splitbasename(path.rpartition("/")[2])[0])
        except (ValueError, stage.UpstreamNotFoundError):
            pass
        except stage.UpstreamError as error:
            if entry is None:
                request.log.error("%s: %s", path, error)
                views.abort(request, HTTPStatus.FAILED_DEPENDENCY, WORDS[HTTPStatus.FAILED_DEPENDENCY])
        entry = filestore.get_file_entry(path)
    if entry is None:
        views.abort(request, HTTPStatus.NOT_FOUND, "no such file")
    return entry


def missing(self: Any, stage: Any, path: str, meta: Mapping[str, Any], known: entries.Known | None) -> Response:
    """Return the answer to a request for a file that is not stored."""
    request, xom = self.request, self.xom
    if stage.use_external_url:
        url = URL(known.file.url if known else meta["url"])
        if outside.origin(httpx.URL(url.url)) == outside.origin(httpx.URL(stage.mirror_url.url)):
            url = url.replace(**stage.mirror_url_auth)
        return HTTPFound(location=url.url)
    if stage.ixconfig["type"] != "mirror" and not xom.is_replica():
        views.abort(request, HTTPStatus.NOT_FOUND, "no such file")
    if xom.config.offline_mode:
        views.abort(request, HTTPStatus.FAILED_DEPENDENCY, "this server asks nobody: it is in offline mode")
    wanted = wanted_file(stage, path, meta, known)
    return later(lambda: wanted.answer(request))


def metadata_of_upload(xom: Any, path: str, meta: Mapping[str, Any], wheel: Wanted | None) -> Response:
    """Return the metadata of an uploaded wheel, which a replica may have to get first."""
    if not on_disk(xom, path).is_file():
        download, _ = xom.lanmirror_downloads.start(wheel.job, reads=False) if wheel else (None, False)
        if download is None or download.wait() is not Outcome.STORED:
            raise (download and download.error) or FetchError(HTTPStatus.NOT_FOUND, "no such file")
    body = metadata_in(on_disk(xom, path), meta.get("project") or "", meta.get("version") or "")
    answer = Response(body, headers=headers_of("METADATA"))
    answer.headers["Cache-Control"] = "max-age=365000000, immutable, public"
    return answer


# ---- what devpi does by itself ---------------------------------------------------------------------------------


def iter_fetch_remote_file(stage: Any, entry: Any, url: Any) -> Iterator[Any]:
    """Fetch a file of a mirror that is pushed to another index; yield headers, then the bytes.

    It is stored in the transaction in which that is done.
    """
    xom = stage.xom
    wanted = wanted_file(stage, entry.relpath, {**entry.meta, "url": str(url)}, entries.known(stage, entry.relpath))
    source = wanted.job.source()
    try:
        source.open()
        check = Check(wanted.job.hashes, source.size)
        yield {}
        with entry.file_new_open() as file:
            for piece in checked(iter(source), check):
                file.write(piece)
                yield piece
            digests = filestore.Digests(check.digests())
            new = xom.filestore.get_file_entry_from_key(entry.key)
            if new.has_existing_metadata():
                new.file_set_content_no_meta(file, hashes=digests)
            else:
                new.file_set_content(
                    file,
                    last_modified=source.modified or None,
                    hash_spec=new.meta.get("hash_spec"),
                    hashes=digests,
                )
    except FetchError as error:
        raise filestore.BadGateway(str(error), code=error.status, url=str(url)) from error
    finally:
        source.close()


def install(xom: Any) -> None:
    """Put this in the place of devpi's own."""
    xom.lanmirror_downloads = Downloads(Path(xom.config.server_path) / ".lanmirror-downloads")

    def stage_pkgserv(self: Any) -> Any:
        return file_view(self)

    def importer(self: Any, serial: int, key: Any, val: Any, back_serial: int) -> None:
        """Have a file that the primary has stored; who asks for it meanwhile shares the download."""
        if val and val.get("last_modified") and self.file_search_path is None:
            with xom.keyfs.read_transaction(at_serial=serial):
                stage = xom.model.getstage(*key.relpath.split("/")[:2])
                wanted = stage and wanted_file(stage, key.relpath, val, None, **{replica.H_REPLICA_FILEREPL: "YES"})
            if wanted and not wanted.job.is_stored():
                download, _ = xom.lanmirror_downloads.start(wanted.job, reads=False)
                if download:
                    download.wait()
        # It sees that the file is there; where it is not, it tries by itself, and remembers why that failed.
        theirs(self, serial, key, val, back_serial)

    replace(views.PyPIView, "stage_pkgserv", stage_pkgserv)
    replace(views.PyPIView, "mirror_pkgserv", stage_pkgserv)
    replace(views, "iter_fetch_remote_file", iter_fetch_remote_file)
    theirs = replace(replica.FileReplicationThread, "importer", importer)
