"""The entries of a mirror's files that nobody has fetched: they are made up from the stored page of their project.

devpi has an entry in its database for each link of each page. Ours are written when their files are, and whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from devpi_server import filestore
from devpi_server.readonly import ensure_deeply_readonly, get_mutable_deepcopy

from lanmirror_devpi import links, mirror, page
from lanmirror_devpi.replace import replace

# Parts of the path of a file with a hash, and of one without.
KEYS = {("+f", 6): "STAGEFILE", ("+e", 5): "PYPIFILE_NOMD5"}


@dataclass(frozen=True)
class Known:
    """A file that stands on the stored page of a project."""

    project: str
    file: page.File

    @property
    def entry(self) -> dict[str, Any]:
        """What devpi's database would have for it."""
        return links.entry_of(self.project, self.file)

    @property
    def size(self) -> int | None:
        """Its size, where the page tells it."""
        return self.file.told.get("size")

    @property
    def core_metadata(self) -> Any:
        """Whether its metadata is offered beside it (PEP 714): the hashes of that, or true."""
        return self.file.told.get("core-metadata")


def known(stage: Any, path: str) -> Known | None:
    """Return what the stored pages of a mirror tell of a file; its path is that of its URL, without the first slash."""
    below = path.removeprefix(f"{stage.name}/")
    # devpi asks several times in one request, while others ask for files of other projects.
    asked: dict[str, Known] = vars(stage.keyfs.tx).setdefault("lanmirror_known", {})
    if path in asked:
        return asked[path]
    for project in links.projects_of(below.rpartition("/")[2]):
        stored = mirror.known_here(stage, project)
        if stored and (file := stored.page.by_path.get(below)):
            return asked.setdefault(path, Known(project, file))
    return None


def is_of_before(stage: Any, path: str) -> bool:
    """Return whether a file stands on a page that devpi stored before there was this plugin: its entry has its URL."""
    below = path.removeprefix(f"{stage.name}/")
    for project in links.projects_of(below.rpartition("/")[2]):
        stored = mirror.known_page(stage, project)
        if stored and stored.mark == mirror.BEFORE and any(file.path == below for file in stored.page.files):
            return True
    return False


def known_by_path(xom: Any, path: str) -> Known | None:
    """Return what is known of a file, of whatever index."""
    parts = path.split("/")
    if (parts[2:3] and (parts[2], len(parts)) in KEYS) and not {"", ".", ".."} & set(parts):
        stage = xom.model.getstage(parts[0], parts[1])
        if stage is not None and stage.ixconfig["type"] == "mirror":
            return known(stage, path)
    return None


def key_of(keyfs: Any, path: str) -> Any:
    """Return devpi's key for the entry of a file."""
    parts = path.split("/")
    return keyfs.get_key_instance(KEYS[parts[2], len(parts)], path)


def install(xom: Any) -> None:
    """Let devpi see these entries wherever it looks for one."""

    class KnownFileEntry(filestore.FileEntry):
        _meta: Any

        @property
        def meta(self) -> Any:
            """Return what is known of the file."""
            asked = isinstance(self._meta, filestore.NoDefault)
            meta = super().meta
            if asked and not meta and (found := known_by_path(xom, self.relpath)):
                self._meta = meta = ensure_deeply_readonly(found.entry)
            return meta

    class KnownMutableFileEntry(filestore.MutableFileEntry):
        _meta: Any

        @property
        def meta(self) -> Any:
            """Return what is known of the file."""
            asked = isinstance(self._meta, filestore.NoDefault)
            meta = super().meta
            if asked and not meta and (found := known_by_path(xom, self.relpath)):
                self._meta = meta = get_mutable_deepcopy(found.entry)
            return meta

    def get_key_from_relpath(self: Any, relpath: str) -> Any:
        """Return the key of the entry of a file, None where there is no such file."""
        key = theirs(self, relpath)
        return key_of(self.keyfs, relpath) if key is None and known_by_path(xom, relpath) else key

    def get_file_entry(self: Any, relpath: str) -> Any:
        """Return the entry of a file for reading, None where there is no such file."""
        key = self.get_key_from_relpath(relpath)
        return None if key is None else KnownFileEntry(key)

    def get_file_entry_from_key(self: Any, key: Any, meta: Any = filestore._nodefault) -> Any:
        """Return the entry of a file for writing."""
        return KnownMutableFileEntry(key, meta=meta)

    store = filestore.FileStore
    theirs = replace(store, "get_key_from_relpath", get_key_from_relpath)
    replace(store, "get_file_entry", get_file_entry)
    replace(store, "get_file_entry_from_key", get_file_entry_from_key)
