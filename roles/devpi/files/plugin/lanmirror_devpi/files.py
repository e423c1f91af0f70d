"""The answers to requests for files.

What is stored, Nginx sends without devpi. For the rest it asks here, with `X-Lanmirror-Accel: 1`, and is answered:

- the file is stored meanwhile: `X-Accel-Redirect: /+stored/PATH`;
- somebody's download of it is under way: `X-Accel-Redirect: /+wait/PATH`, at once, so that nobody who waits holds a
  thread of devpi; there Nginx asks `/+lanmirror/stored/PATH`, one request for all, which is answered when the download
  has ended: 204, or 403 with the status for the clients in `X-Lanmirror-Status`: 404, 424, 502, 504; or 507, where it
  can be had, but not stored: then each of them asks again, without `X-Lanmirror-Accel`, and gets it for itself;
- the file as it comes, to the first client;
- a small part of it, straight from the upstream, where no more than that was asked for;
- an error, as 403 where the rules of the index hide the file.

Who asks without that header, as replicas do, waits here for the end of somebody else's download.

Nothing is answered within a transaction of devpi's: a view returns what is to be done, and the tween does it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
from devpi_common.metadata import splitbasename
from devpi_common.url import URL
from devpi_server import filestore, filestore_fs, replica, views
from devpi_server.readonly import get_mutable_deepcopy
from pyramid.httpexceptions import HTTPFound
from pyramid.response import Response

from lanmirror_devpi import coming, entries, outside
from lanmirror_devpi.answers import ACCEL, METADATA, WORDS, Later, Wanted, headers_of, later, on_disk, refusal, stored
from lanmirror_devpi.fetch import Downloads, Outcome
from lanmirror_devpi.keep import hashes_of, metadata_in, wanted_file, wanted_metadata
from lanmirror_devpi.replace import replace
from lanmirror_devpi.sources import Check, FetchError, WrongError, checked

STATUS = "X-Lanmirror-Status"
UNPRINTABLE = re.compile(r"[^ -~]")
# Asked by Nginx alone.
STORED = "/+lanmirror/stored/"


def factory(handler: Callable[[Any], Any], registry: Any) -> Callable[[Any], Any]:
    """Return the tween (https://docs.pylonsproject.org/projects/pyramid/en/2.0-branch/narr/hooks.html#tweens)."""
    xom = registry["xom"]

    def tween(request: Any) -> Any:
        if request.environ.get("PATH_INFO", "").startswith(STORED):
            return told_when_stored(xom, request.path_info.removeprefix(STORED))
        # For an answer that has looked at something outside of the transaction before.
        request.lanmirror_again = lambda: handler(request)
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


def file_view(self: Any) -> Any:
    """Return the answer to a request for a file, or for the metadata of a wheel."""
    request, xom, path = self.request, self.xom, self._relpath_from_request()
    if request.method not in {"GET", "HEAD"}:
        views.abort(request, HTTPStatus.METHOD_NOT_ALLOWED, "files are read")
    file, is_metadata = path.removesuffix(METADATA), path.endswith(METADATA)
    stage = self.context.stage
    is_mirror = stage.ixconfig["type"] == "mirror"
    # By its name first: nobody is asked for what is blocked.
    if is_mirror and (answer := hidden(self, stage, file, asked=False)):
        return answer
    if is_mirror:
        xom.lanmirror_held.settle(stage.name, coming.of_stage(stage).key)
    entry = entry_of(self, stage, file)
    meta = dict(entry.meta)
    if is_mirror and (answer := hidden(self, stage, file, asked=True)):
        return answer
    # A replica that follows asks for what was deleted since, as well.
    if not meta or (replica.H_REPLICA_FILEREPL in request.headers and not entry.key.exists()):
        views.abort(request, HTTPStatus.GONE, "file existed, deleted in later serial")
    if views.json_preferred(request) and not is_metadata:
        views.apireturn(HTTPStatus.OK, type="releasefilemeta", result=get_mutable_deepcopy(entry.meta))
    if not request.has_permission("pkg_read"):
        views.apireturn(HTTPStatus.FORBIDDEN, "package read forbidden")
    is_stored, known = on_disk(xom, path).is_file(), None
    if is_mirror and not is_stored:
        known = entries.known(stage, file)
        xom.lanmirror_held.bring_back(file, coming.about(file, meta, known))
        is_stored = on_disk(xom, path).is_file()
    if is_stored:
        return stored(xom, path, accel=request.headers.get(ACCEL) == "1")
    if not is_metadata:
        return missing(self, stage, path, meta, known)
    if not is_mirror:
        upload = wanted_file(stage, file, meta, None) if xom.is_replica() else None
        return later(lambda: metadata_of_upload(xom, file, meta, upload))
    meta = {**meta, "url": known.file.url} if known else meta
    wheel = wanted_file(stage, file, meta, known)
    promised = (known and known.core_metadata) or stage.provides_core_metadata
    if not promised and not on_disk(xom, file).is_file():
        views.abort(request, HTTPStatus.NOT_FOUND, "the upstream offers no metadata of this file")
    return later(lambda: wanted_metadata(stage, wheel, meta, promised).answer(request))


def hidden(self: Any, stage: Any, path: str, *, asked: bool) -> Response | None:
    """Return the answer for a file of a mirror that its rules hide, None where they do not.

    Args:
        self: devpi's view.
        stage: The mirror.
        path: Of the file's URL, without the first slash.
        asked: Whether the upstream was asked for its page; before that, its age may not be known.
    """
    rules = coming.of_stage(stage)
    if not rules.key:
        return None
    known, entry = entries.known(stage, path), self.xom.filestore.get_file_entry(path)
    about = coming.about(path, entry.meta if entry is not None else {}, known)
    refused = about.refusal(rules, aged=asked or known is not None)
    if refused is None:
        return None
    if replica.H_REPLICA_FILEREPL in self.request.headers:
        # It takes this for an answer, and asks no more; its own rules are the same.
        views.abort(self.request, HTTPStatus.GONE, refused.why)
    # In the status line too, which is all that pip shows of it.
    words = UNPRINTABLE.sub("?", refused.why)
    answer = Response(f"{words}\n", status=f"403 {words}", content_type="text/plain", charset="utf-8")
    answer.headers["Cache-Control"] = "no-store"
    return answer


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
    # Its entry may be of another `mirror_url`: by its hash it is the same file, and without one it may be any.
    if not (xom.is_replica() or known or hashes_of(meta) or entries.is_of_before(stage, path)):
        views.abort(request, HTTPStatus.NOT_FOUND, "no page has this file any more")
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


def iter_fetch_remote_file(stage: Any, entry: Any, url: Any) -> Iterator[Any]:
    """Fetch a file of a mirror that is pushed to another index; yield headers, then the bytes.

    It is stored in the transaction in which that is done.
    """
    xom = stage.xom
    wanted = wanted_file(stage, entry.relpath, {**entry.meta, "url": str(url)}, entries.known(stage, entry.relpath))
    source = wanted.job.source()
    try:
        source.open()
        yield {}
        with entry.file_new_open() as file:
            while True:
                check = Check(wanted.job.hashes, source.size)
                try:
                    for piece in checked(iter(source), check):
                        file.write(piece)
                        yield piece
                    digests = filestore.Digests(check.digests())
                    break
                except WrongError as error:
                    if not source.refuse(str(error)):
                        raise
                # Who pushes a file reads none of these bytes.
                file.seek(0)
                file.truncate()
                source.open()
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
    on_disk(xom, "").mkdir(exist_ok=True)
    xom.lanmirror_downloads = Downloads(Path(xom.config.server_path) / ".lanmirror-downloads")

    def stage_pkgserv(self: Any) -> Any:
        return file_view(self)

    def importer(self: Any, serial: int, key: Any, val: Any, back_serial: int) -> None:
        """Have a file that the primary has stored; who asks for it meanwhile shares the download."""
        if val and val.get("last_modified") and self.file_search_path is None:
            with xom.keyfs.read_transaction(at_serial=serial):
                stage = xom.model.getstage(*key.relpath.split("/")[:2])
                # No URL: what the primary has deleted since is not to come from elsewhere.
                meta = {**val, "url": ""}
                wanted = stage and wanted_file(stage, key.relpath, meta, None, **{replica.H_REPLICA_FILEREPL: "YES"})
            if wanted and not wanted.job.is_stored():
                download, _ = xom.lanmirror_downloads.start(wanted.job, reads=False)
                if download:
                    download.wait()
        # It sees that the file is there; where it is not, it tries by itself, and remembers why that failed.
        theirs(self, serial, key, val, back_serial)

    def remove(self: Any) -> list[str]:
        """Remove a file that devpi deletes, with the metadata beside it."""
        found: list[str] = remove_file(self)
        Path(f"{self.path}{METADATA}").unlink(missing_ok=True)
        xom.lanmirror_held.forget(self.path.relative_to(on_disk(xom, "")).as_posix())
        return found

    remove_file = replace(filestore_fs.File, "remove", remove)
    replace(views.PyPIView, "stage_pkgserv", stage_pkgserv)
    replace(views.PyPIView, "mirror_pkgserv", stage_pkgserv)
    replace(views, "iter_fetch_remote_file", iter_fetch_remote_file)
    theirs = replace(replica.FileReplicationThread, "importer", importer)
