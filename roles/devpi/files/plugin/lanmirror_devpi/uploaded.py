"""The page of a project in a stage: what devpi knows of the files that were uploaded.

devpi stores name, hash and Python of each. Its size, the time of its upload, and the hash of a wheel's metadata are
stored beside that, in the transaction of the upload: a page is then made without a look at a file. Where there was no
upload since the server has this plugin, the page is made of the files themselves.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import IO, Any
from zipfile import ZipFile

from devpi_common.metadata import get_sorted_versions
from devpi_server import model
from devpi_server.filestore import get_core_metadata_hashes
from devpi_server.log import threadlog
from devpi_server.normalized import normalize_name

from lanmirror_devpi.links import links_of
from lanmirror_devpi.page import File, Page, PageError, dump, load
from lanmirror_devpi.replace import replace

# Where the page stands in the value that devpi has for it.
FIELD = "lanmirror"
# No metadata is larger, bytes: the largest are of a hundredth of it.
MAX_METADATA = 32 << 20


def page(stage: Any, project: Any) -> tuple[Page, bool]:
    """Return the page of a project in a stage, and whether it is whole: on a replica, a file may be on its way."""
    found = stored(stage, project)
    files = found.files if found else tuple(files_of(stage, project, {}))
    is_whole = found is not None or all("size" in file.told for file in files)
    return Page(str(project), files, {"versions": versions_of(stage, project)}), is_whole


def versions_of(stage: Any, project: Any) -> list[str]:
    """Return the versions of a project in a stage, the oldest first."""
    found: list[str] = get_sorted_versions(stage.list_versions_perstage(project), reverse=False)
    return found


def state(stage: Any, project: Any) -> tuple[int, ...]:
    """Return what differs whenever the page of a project in a stage does."""
    tx = stage.keyfs.tx
    found = []
    for key in (stage.key_projsimplelinks(project), stage.key_projversions(project)):
        # Not by devpi's method for that: it reads the value as well, after each change of anything.
        try:
            _, serial = tx.conn.db_read_typedkey(key.relpath)
        except KeyError:
            serial = -1
        if serial > tx.at_serial:
            # Written since this transaction began, which does not see it.
            then = tx.get_last_serial_and_value_at(key, tx.at_serial, raise_on_error=False)
            serial = then[0] if then else -1
        found.append(serial)
    return tuple(found)


def stored(stage: Any, project: Any) -> Page | None:
    """Return the page that was stored with the last upload, None where devpi alone stored one."""
    about = stage.key_projsimplelinks(project).get().get(FIELD)
    if not about:
        return None
    try:
        return load(b64decode(about["page"]))
    except PageError as error:
        threadlog.warn("%s in %s: %s", project, stage.name, error)
        return None


def files_of(stage: Any, project: Any, known: Mapping[str, File]) -> list[File]:
    """Return the files of a project in a stage, with what is known of them by their paths."""
    files = []
    for version in versions_of(stage, project):
        python = stage.get_versiondata_perstage(project, version).get("requires_python")
        for link in stage.get_linkstore_perstage(project, version).get_links(model.Rel.ReleaseFile):
            path = link.relpath.removeprefix(f"{stage.name}/")
            told: dict[str, Any] = {"hashes": dict(link.hashes)}
            if python:
                told["requires-python"] = python
            before = known.get(path)
            if before and not is_new(stage, link):
                # Its Python is a matter of the version's metadata, which may have changed.
                told = {key: value for key, value in before.told.items() if key != "requires-python"} | told
            else:
                told |= told_by(link.entry, str(project), version)
            files.append(File(link.basename, "", path, told))
    return files


def is_new(stage: Any, link: Any) -> bool:
    """Return whether a file is being uploaded now; the same bytes may have been before."""
    user, index, _, hash_a, hash_b, name = link.relpath.split("/")
    key = stage.keyfs.STAGEFILE(user=user, index=index, hashdir_a=hash_a, hashdir_b=hash_b, filename=name)
    return bool(stage.keyfs.tx.is_dirty(key))


def told_by(entry: Any, project: str, version: str) -> dict[str, Any]:
    """Return what a file itself tells, and its entry."""
    told: dict[str, Any] = {}
    try:
        at = parsedate_to_datetime(entry.last_modified)
        told["upload-time"] = f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        size = entry.file_size()
        if size is not None:
            told["size"] = size
            if entry.basename.endswith(".whl"):
                with entry.file_open_read() as file:
                    check(file)
                    hashes = get_core_metadata_hashes(file, project, version, basename=entry.basename)
                if hashes:
                    told["core-metadata"] = dict(hashes)
    except Exception as error:
        # An archive may have any fault; clients then read it as they did before there were these fields.
        threadlog.warn("%s tells nothing of itself: %s: %s", entry.relpath, type(error).__name__, error)
    return told


def check(wheel: IO[bytes]) -> None:
    """Refuse a wheel whose metadata would fill the memory."""
    with ZipFile(wheel) as archive:
        size = max((info.file_size for info in archive.infolist() if info.filename.endswith("METADATA")), default=0)
    if size > MAX_METADATA:
        raise ValueError(f"its metadata is of {size} bytes")
    wheel.seek(0)


def install() -> None:
    """Replace the method of devpi's that stores the links of a project after each change."""

    def _regen_simplelinks(self: Any, project_input: Any) -> None:
        """Store the page of a project beside its links."""
        project = normalize_name(project_input)
        before = stored(self, project)
        files = files_of(self, project, {file.path: file for file in before.files} if before else {})
        page = Page(str(project), tuple(files), {})
        links = links_of(self.name, page)
        value = {
            "links": [link[:2] for link in links],
            "requires_python": [link[2] for link in links],
            FIELD: {"page": b64encode(dump(page)).decode()},
        }
        self.key_projsimplelinks(project).set(value)

    replace(model.PrivateStage, "_regen_simplelinks", _regen_simplelinks)
