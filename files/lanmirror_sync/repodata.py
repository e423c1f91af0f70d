"""One `repodata.json`: parsed once, filtered, and encoded in every format that is served.

Records stay undecoded (`msgspec.Raw`) but for the four fields that are needed, so that every key this
program does not know passes through unchanged, and memory grows with the bytes of the index and not with
the number of its Python objects. Format: CEP 36 and conda's documentation of `repodata.json`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

# CEP 26: name, version and build of a package; the two extensions of a package archive.
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+!~-]*\.(?:conda|tar\.bz2)")
SHA256 = re.compile(r"[0-9a-f]{64}")
MD5 = re.compile(r"[0-9a-f]{32}")
SECTIONS = ("packages", "packages.conda")


class RepodataError(Exception):
    """An index that cannot be used; the message says why."""


class _Fields(msgspec.Struct):
    name: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None


@dataclass(frozen=True, slots=True)
class Package:
    """What is needed of a record.

    Attributes:
        file_name: the archive's name, with its extension.
        name: the package's name.
        size: in bytes; None where the upstream does not say.
        algorithm: `sha256`, or `md5` where the upstream has no better.
        digest: in lower-case hexadecimal.
    """

    file_name: str
    name: str
    size: int | None
    algorithm: str
    digest: str


@dataclass(frozen=True)
class Index:
    """A parsed index.

    Attributes:
        head: the top-level members other than the sections, undecoded.
        sections: for each of `SECTIONS`, the records by file name, undecoded.
        packages: what is needed of each record that can be mirrored, by file name.
        refused: file name (as the index has it) to the reason why the record cannot be mirrored.
    """

    head: Mapping[str, msgspec.Raw]
    sections: Mapping[str, Mapping[str, msgspec.Raw]]
    packages: Mapping[str, Package]
    refused: Mapping[str, str]

    def record(self, file_name: str) -> tuple[str, msgspec.Raw]:
        """Return the section and the undecoded record of a package."""
        for section, records in self.sections.items():
            if file_name in records:
                return section, records[file_name]
        raise KeyError(file_name)


_top = msgspec.json.Decoder(dict[str, msgspec.Raw])
_section = msgspec.json.Decoder(dict[str, msgspec.Raw])
_fields = msgspec.json.Decoder(_Fields)


def parse(data: bytes) -> Index:
    """Parse the bytes of a `repodata.json`.

    Raises:
        RepodataError: it is not JSON, or not an index.
    """
    try:
        top = _top.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RepodataError(f"is not a JSON object ({error}); it begins with {data[:40]!r}") from error
    if not any(section in top for section in SECTIONS):
        raise RepodataError(f"has neither {' nor '.join(repr(section) for section in SECTIONS)}")
    sections: dict[str, dict[str, msgspec.Raw]] = {}
    packages: dict[str, Package] = {}
    refused: dict[str, str] = {}
    for section in SECTIONS:
        try:
            sections[section] = _section.decode(top.pop(section, msgspec.Raw(b"{}")))
        except msgspec.DecodeError as error:
            raise RepodataError(f"has a damaged {section!r} ({error})") from error
        for file_name, raw in sections[section].items():
            package = _package(file_name, raw)
            if isinstance(package, str):
                refused[file_name] = package
            else:
                packages[file_name] = package
    return Index(top, sections, packages, refused)


def _package(file_name: str, raw: msgspec.Raw) -> Package | str:
    """Return the package of a record, or the reason why it is refused."""
    if not FILE_NAME.fullmatch(file_name):
        return "its file name is none of a package"
    try:
        fields = _fields.decode(raw)
    except msgspec.DecodeError as error:
        return f"its record is damaged ({error})"
    if fields.size is not None and fields.size < 0:
        return f"its size is {fields.size}"
    sha256, md5 = (fields.sha256 or "").lower(), (fields.md5 or "").lower()
    if SHA256.fullmatch(sha256):
        return Package(file_name, fields.name, fields.size, "sha256", sha256)
    if MD5.fullmatch(md5):
        return Package(file_name, fields.name, fields.size, "md5", md5)
    return "its record has neither a sha256 nor an md5"


def encode(
    index: Index, keep: Callable[[str], bool], former: Mapping[str, tuple[str, msgspec.Raw]] | None = None
) -> bytes:
    """Return the `repodata.json` to serve: of `index`, the records whose file names `keep` accepts.

    `info.base_url` (CEP 15) is left out, since it may lead off the mirror; so is `v3` (CEP 48), whose
    packages are not mirrored.

    Args:
        index: the upstream's index.
        keep: tells whether the record of a file name is served.
        former: records, by file name, that stand in for the upstream's: section and undecoded record.
    """
    sections = {
        section: {name: raw for name, raw in records.items() if keep(name)}
        for section, records in index.sections.items()
    }
    for name, (section, raw) in (former or {}).items():
        sections[section][name] = raw
    top: dict[str, Any] = {
        key: _local_info(raw) if key == "info" else raw for key, raw in index.head.items() if key != "v3"
    }
    return msgspec.json.encode({**top, **sections})


def _local_info(raw: msgspec.Raw) -> Any:
    info = msgspec.json.decode(raw)
    if isinstance(info, dict):
        info.pop("base_url", None)
    return info


def subset(published: Index, names: Index) -> bytes:
    """Return `current_repodata.json`: of what is published, the records that the upstream's names.

    The records are those of the published index, so that the two cannot disagree.
    """
    return encode(published, names.packages.__contains__)


def empty(arch: str) -> bytes:
    """Return the index of a subdir without packages."""
    return msgspec.json.encode(
        {"info": {"subdir": arch}, "packages": {}, "packages.conda": {}, "removed": [], "repodata_version": 1}
    )
