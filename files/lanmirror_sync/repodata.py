"""One upstream index: parsed once, checked record by record, and kept undecoded.

Records stay as they came (`msgspec.Raw`) but for the few fields that are needed, so that every key this
program does not know passes through unchanged, and memory grows with the bytes of the index and not with
the number of its Python objects. Formats: CEP 36 (`repodata.json`), CEP 15 (`base_url`), CEP 48 (`v3`).
"""

from __future__ import annotations

import codecs
import functools
import json
import mmap
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Raw

# CEP 26: name, version and build of a package; the extensions of an archive. No slash, no leading dot.
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+!~-]{0,245}\.(?:conda|tar\.bz2|whl)")
SHA256 = re.compile(r"[0-9a-f]{64}")
MD5 = re.compile(r"[0-9a-f]{32}")
# What is read as a version by every client: components between dots, an epoch, a local part.
_PART = "[0-9A-Za-z]+(?:[._-][0-9A-Za-z]+)*[_-]*"
VERSION = re.compile(rf"(?:[0-9]+!)?{_PART}(?:\+{_PART})?")
LARGE_NUMBER = re.compile("[0-9]{19}")
# Of a file name that has a version and a build.
HYPHENS = 2
LARGEST_NUMBER = (1 << 64) - 1
# The end of the year 9999, in milliseconds.
LAST_TIMESTAMP = 253_402_300_799_999
# No archive is larger (1 TiB): one absurd size must not make a run find the disk too small.
LARGEST_PACKAGE = 1 << 40

WHEELS = "v3.whl"
RELATIONS = "channel_relations"
# Where records stand in an index, and what makes a key there a file name. Keys of `v3` have no extension.
SECTIONS: Mapping[str, str] = {
    "packages": "",
    "packages.conda": "",
    "v3.tar.bz2": ".tar.bz2",
    "v3.conda": ".conda",
    WHEELS: ".whl",
}
# Top-level members that hold records of a kind that is not known here: what they name is not mirrored.
UNKNOWN_RECORDS = re.compile(r"packages\..+|v[0-9]+")
# Fields of a record that may lead a client to another server than the one it has the index from.
LEADING = ("url", "channel", "base_url", "download_url")
# No more than this is copied at a time.
CHECK_BYTES = 1 << 22
# More lists and objects in one record are an attack on what has to read them, and not a package.
MOST_NESTED = 500
# So many records are looked at together. One odd one among them has each looked at by itself.
TOGETHER = 64

# What an index may be read from. A file that is mapped costs memory only where it is looked at.
Document = bytes | bytearray | memoryview | mmap.mmap


class RepodataError(Exception):
    """An index that cannot be used; the message says why."""


class Package(msgspec.Struct, frozen=True, gc=False):
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
    """A parsed index: what of it can be mirrored, and what was taken out.

    Attributes:
        head: the top-level members that hold no records, undecoded; nothing in them leads off the mirror.
        sections: for each of `SECTIONS` that the index has, the undecoded records by their keys.
        packages: what is needed of each record, by file name.
        wheels: the file names of the wheels, by their keys in `v3.whl`.
        refused: file name or key to the reason why a record is faulty and cannot be mirrored.
        left_out: file name, key or top-level member to the reason why it is not mirrored, without a fault.
        rewritten: file names of records that lost a field which led off the mirror.
        base_url: where the upstream keeps the packages (CEP 15), absolute or relative to the index; "" where
            they stand beside it.
    """

    head: Mapping[str, Raw]
    sections: Mapping[str, Mapping[str, Raw]]
    packages: Mapping[str, Package]
    wheels: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    rewritten: Collection[str] = ()
    base_url: str = ""

    def file_name(self, section: str, key: str) -> str:
        """Return the name of the archive that a key stands for."""
        return self.wheels[key] if section == WHEELS else key + SECTIONS[section]

    def records(self) -> Iterator[tuple[str, str, str, Raw]]:
        """Yield section, key, file name and undecoded record of everything that can be mirrored."""
        for section, records in self.sections.items():
            suffix = SECTIONS[section]
            for key, raw in records.items():
                yield section, key, self.wheels[key] if section == WHEELS else key + suffix, raw

    def pick(self, file_names: Collection[str]) -> Index:
        """Return the index of these packages alone."""
        sections: dict[str, dict[str, Raw]] = {}
        for section, key, file_name, raw in self.records():
            if file_name in file_names:
                sections.setdefault(section, {})[key] = raw
        packages = {name: self.packages[name] for name in file_names if name in self.packages}
        return Index(self.head, sections, packages, self.wheels)


class _Plain(msgspec.Struct, gc=False):
    """What is looked at of a record, and is only to be of its type."""

    depends: list[str] = []
    constrains: list[str] = []
    subdir: str = ""
    license: str | None = None
    license_family: str | None = None
    features: str | None = None
    track_features: str | list[str] = ""
    arch: str | None = None
    platform: str | None = None
    python_site_packages_path: str | None = None
    run_exports: dict[str, list[str]] | None = None


class _Fields(_Plain, kw_only=True, gc=False):
    """What is looked at of a record. One field of another type, and some clients cannot read the whole index."""

    name: str
    version: str = ""
    build: str | None = None
    build_number: int | None = None
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    timestamp: int | None = None
    noarch: str | bool | None = None
    legacy_bz2_md5: str | None = None
    legacy_bz2_size: int | None = None
    purls: list[str] | None = None


# What no text is that is written without a backslash: a record with a field of this kind is none of the usual ones.
_Never = Literal["\0"]
_Size = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_Md5 = Annotated[str, Meta(min_length=32, max_length=32)]


class _Usual(_Plain, kw_only=True, gc=False):
    """A record of which nothing has to be looked at more closely, but for what `_usual` looks at.

    It accepts less than `_Fields` and `_check_fields` do, and never more.
    """

    name: Annotated[str, Meta(min_length=1)]
    version: str
    build: str
    build_number: _Size
    size: Annotated[int, Meta(ge=0, le=LARGEST_PACKAGE)] | None = None
    sha256: Annotated[str, Meta(min_length=64, max_length=64)] | None = None
    md5: _Md5 | None = None
    timestamp: Annotated[int, Meta(ge=-LAST_TIMESTAMP, le=LAST_TIMESTAMP)] | None = None
    noarch: Literal["generic", "python"] | bool | None = None
    legacy_bz2_md5: _Md5 | None = None
    legacy_bz2_size: _Size | None = None
    purls: list[Annotated[str, Meta(pattern="^pkg:")]] | None = None
    # `LEADING`
    url: _Never = "\0"
    channel: _Never = "\0"
    base_url: _Never = "\0"
    download_url: _Never = "\0"


class _Origin(msgspec.Struct, gc=False):
    url: str | None = None
    fn: str | None = None


members = msgspec.json.Decoder(dict[str, Raw])
_fields = msgspec.json.Decoder(_Fields)
_usuals = msgspec.json.Decoder(list[_Usual])
_origin = msgspec.json.Decoder(_Origin)
# What msgspec raises for bad input: its own errors and bad UTF-8 are ValueErrors; deep nesting is not.
BAD_JSON = (ValueError, RecursionError)


def parse(data: Document, only: Collection[str] | None = None) -> Index:
    """Parse the bytes of a `repodata.json`; the index goes on referring to them.

    Of two equal keys the last counts, as in Python's `json`, and only it is published.

    Args:
        data: the bytes.
        only: file names to which the index is restricted; it then holds copies, and `data` can be let go.

    Raises:
        RepodataError: it is not JSON in UTF-8, or not an index.
    """
    top, sections, left_out = split(data)
    if only is not None:
        top = {key: raw.copy() for key, raw in top.items()}
        for section, records in sections.items():
            sections[section] = {
                key: raw.copy() for key, raw in records.items() if section == WHEELS or key + SECTIONS[section] in only
            }
    refused: dict[str, str] = {}
    rewritten: list[str] = []
    packages: dict[str, Package] = {}
    names: dict[str, str] = {}
    wheels: dict[str, str] = {}
    dropped: list[tuple[str, str]] = []
    for section, records in sections.items():
        suffix = SECTIONS[section]
        for key, raw in _unusual(section, records, packages, names):
            file_name = key + suffix
            try:
                encoded = bytes(raw)
                _check_keys(encoded)
                if section.startswith("v3."):
                    file_name = file_of(section, key, raw, encoded)
                local = _without_leads(raw, encoded)
                package = _package(file_name, local, names)
            except (_LeftOutError, RepodataError, *BAD_JSON) as error:
                reasons = left_out if isinstance(error, _LeftOutError) else refused
                reasons[file_name] = f"its record is damaged ({error})" if isinstance(error, BAD_JSON) else str(error)
                dropped.append((section, key))
                continue
            if local is not raw:
                records[key] = local
                rewritten.append(file_name)
            if section == WHEELS:
                wheels[key] = file_name
            former = packages.setdefault(file_name, package)
            if former is not package and former != package:
                refused[file_name] = "two records describe it, and not as the same bytes"
    for section, key in dropped:
        del sections[section][key]
    for file_name in refused.keys() & packages.keys():
        _drop(sections, wheels, file_name)
        del packages[file_name]
    absolute: list[str] = []
    head, base_url = local_head(top, absolute)
    left_out.update((f"info.{RELATIONS}: {target}", "it leads off the mirror") for target in absolute)
    return Index(head, sections, packages, wheels, refused, left_out, frozenset(rewritten), base_url)


def split(data: Document) -> tuple[dict[str, Raw], dict[str, dict[str, Raw]], dict[str, str]]:
    """Take a document of the shape of `repodata.json` apart; nothing in it is judged.

    Returns:
        Its top-level members without records; its sections; and the members that hold records of a kind
        that is not known here, each with the reason why it is left out.

    Raises:
        RepodataError: it is not JSON in UTF-8, or not of that shape.
    """
    try:
        _check_utf8(data)
        top = members.decode(data)
    except BAD_JSON as error:
        raise RepodataError(f"is not a JSON object ({error}); it begins with {bytes(data[:40])!r}") from error
    # Some servers have nothing but `{}` where there are no packages.
    if not top.keys() & {"packages", "packages.conda", "v3"} and top.keys() - {"info", "removed", "repodata_version"}:
        raise RepodataError("has none of 'packages', 'packages.conda' and 'v3'")
    sections: dict[str, dict[str, Raw]] = {}
    left_out: dict[str, str] = {}
    for section in ("packages", "packages.conda"):
        sections[section] = _members(section, top.pop(section, Raw(b"{}")))
    if "v3" in top:
        for bucket, raw in _members("v3", top.pop("v3")).items():
            if f"v3.{bucket}" in SECTIONS:
                sections[f"v3.{bucket}"] = _members(f"v3.{bucket}", raw)
            else:
                left_out[f"v3.{bucket}"] = "archives of this kind are not known here"
    for name in [name for name in top if UNKNOWN_RECORDS.fullmatch(name)]:
        del top[name]
        left_out[name] = "records of this kind are not known here"
    return top, sections, left_out


class _LeftOutError(Exception):
    """A sound record of something that is not mirrored."""


def _members(name: str, raw: Raw) -> dict[str, Raw]:
    try:
        return members.decode(raw)
    except BAD_JSON as error:
        raise RepodataError(f"has a damaged {name!r} ({error})") from error


def _unusual(
    section: str, records: dict[str, Raw], packages: dict[str, Package], names: dict[str, str]
) -> Iterator[tuple[str, Raw]]:
    """Take in the records of a section that are as records usually are, and yield the others with their keys.

    Args:
        section: its name.
        records: its undecoded records; those that were yielded may be replaced meanwhile.
        packages: takes what is needed of each usual record.
        names: the package names so far, so that each is held once.
    """
    if section.startswith("v3."):
        yield from list(records.items())
        return
    keys, raws = list(records), list(records.values())
    for start in range(0, len(keys), TOGETHER):
        some, encoded = keys[start : start + TOGETHER], raws[start : start + TOGETHER]
        found = _usual(some, b",".join(encoded), names)
        if found and packages.keys().isdisjoint(some):
            packages.update(zip(some, found, strict=True))
        else:
            yield from zip(some, encoded, strict=True)


def _usual(keys: Sequence[str], data: bytes, names: dict[str, str]) -> list[Package]:
    """Return what is needed of records, where one look at all of them shows no fault; else nothing.

    Each of them alone would pass every check that `parse` makes of one, and would be left as it is.

    Args:
        keys: their file names.
        data: the records, with a comma between two.
        names: the package names so far.
    """
    if len(data) > CHECK_BYTES or b"\\" in data or data.count(b"[") + data.count(b"{") > MOST_NESTED:
        return []
    try:
        found = _usuals.decode(b"[%b]" % data)
    except BAD_JSON:
        return []
    sha256s = [fields.sha256 for fields in found if fields.sha256 is not None]
    md5s = [fields.md5 for fields in found if fields.md5 is not None]
    old_md5s = [fields.legacy_bz2_md5 for fields in found if fields.legacy_bz2_md5 is not None]
    sizes = sum(fields.size is not None for fields in found)
    # No key stands twice in a record if in all of them it stands as often as there are records that have it.
    once = (
        data.count(b'"name"') == len(found) == len(keys)
        and data.count(b'"sha256"') == len(sha256s)
        and data.count(b'"md5"') == len(md5s)
        and data.count(b'"size"') == sizes
    )
    sound = (
        once
        and (len(sha256s) == len(found) or all(fields.sha256 or fields.md5 for fields in found))
        and _is_hexadecimal([*sha256s, *md5s, *old_md5s])
        and all(FILE_NAME.fullmatch(key) and key.count("-") >= HYPHENS for key in keys)
        and all(map(_is_version, {fields.version for fields in found}))
    )
    if not sound:
        return []
    return [
        Package(
            key, names.setdefault(fields.name, fields.name), fields.size,
            "sha256" if fields.sha256 else "md5", fields.sha256 or fields.md5 or "",
        )
        for key, fields in zip(keys, found, strict=True)
    ]  # fmt: skip


def _is_hexadecimal(texts: Sequence[str]) -> bool:
    """Tell whether texts have nothing but hexadecimal digits, in lower case."""
    text = "".join(texts)
    try:
        # It passes over white space.
        return 2 * len(bytes.fromhex(text)) == len(text) and text == text.lower()
    except ValueError:
        return False


def _check_utf8(data: Document) -> None:
    """Raise UnicodeDecodeError where the bytes are no UTF-8: skipped strings are not looked at otherwise."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(data)
    for start in range(0, len(view), CHECK_BYTES):
        some = bytes(view[start : start + CHECK_BYTES])
        if not some.isascii() or decoder.getstate()[0]:
            decoder.decode(some)
    decoder.decode(b"", final=True)


def _check_keys(data: bytes) -> None:
    """Refuse a record that has a key twice, since clients do not agree on which of the two counts.

    The thorough look costs as much as all the rest, so it is taken only where a quick one finds a reason.

    Raises:
        RepodataError: a key is there twice, or it is nested beyond reason.
        ValueError: it is no JSON.
    """
    _check_nesting(data)
    if (
        data.count(b'"sha256"') > 1
        or data.count(b'"md5"') > 1
        or data.count(b'"size"') > 1
        or data.count(b'"name"') > 1
        or b"\\" in data
        or b'"url"' in data
    ):
        json.loads(data, object_pairs_hook=_without_repetition)


def _check_nesting(data: bytes) -> None:
    if len(data) > 2 * MOST_NESTED and data.count(b"[") + data.count(b"{") > MOST_NESTED:
        raise RepodataError(f"it has more than {MOST_NESTED} lists and objects")


def _without_leads(raw: Raw, data: bytes) -> Raw:
    """Return a record, given with its bytes, without the fields that lead off the mirror."""
    # JSON may write a slash with a backslash before it (RFC 8259, section 7).
    if b"//" not in data and b"\\" not in data:
        return raw
    record = members.decode(raw)
    leading = [key for key in LEADING if key in record and leads_away(msgspec.json.decode(record[key]))]
    for key in leading:
        del record[key]
    return Raw(msgspec.json.encode(record)) if leading else raw


def leads_away(value: Any) -> bool:
    """Tell whether a value is a URL of its own, and not one relative to the index (RFC 3986, 4.2)."""
    if not isinstance(value, str):
        return False
    try:
        parts = urlsplit(value.strip())
    except ValueError:
        return True
    return bool(parts.scheme or parts.netloc) and "//" in value


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise RepodataError(f"its record has {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return found


def file_of(section: str, key: str, raw: Raw, data: bytes) -> str:
    """Return the file name that a record, given with its bytes, stands for; in `v3` its key alone does not tell.

    Clients take a wheel from `url` (rattler) or `fn` (conda), and other archives from their key or from `fn`.

    Raises:
        _LeftOutError: it is elsewhere; clients would be led off the mirror.
        RepodataError: its path is none of a file beside the index.
    """
    if not section.startswith("v3."):
        return key + SECTIONS[section]
    named = set() if section == WHEELS else {key + SECTIONS[section]}
    if b'"fn"' in data or section == WHEELS:
        origin = _origin.decode(raw)
        named |= {path for path in (origin.fn, origin.url if section == WHEELS else None) if path is not None}
    for path in named:
        if leads_away(path):
            raise _LeftOutError(f"it is kept elsewhere ({path})")
    if len(named) != 1:
        raise RepodataError(f"its record names {len(named)} files, {sorted(named)}")
    return named.pop()


def _package(file_name: str, raw: Raw, names: dict[str, str]) -> Package:
    """Return the package of a record.

    Args:
        file_name: of the archive.
        raw: its record.
        names: the package names so far, so that each is held once.
    """
    if not FILE_NAME.fullmatch(file_name) or file_name.count("-") < HYPHENS:
        raise RepodataError("its file name is none of a package")
    fields = _fields.decode(raw)
    if not fields.name:
        raise RepodataError("its package has no name")
    if fields.size is not None and not 0 <= fields.size <= LARGEST_PACKAGE:
        raise RepodataError(f"its size is {fields.size}")
    if not fields.sha256 and not fields.md5:
        raise RepodataError("its record has neither a sha256 nor an md5")
    _check_fields(fields, whole=not file_name.endswith(".whl"))
    name = names.setdefault(fields.name, fields.name)
    sha256, md5 = (fields.sha256 or "").lower(), (fields.md5 or "").lower()
    return Package(file_name, name, fields.size, "sha256" if sha256 else "md5", sha256 or md5)


def _check_fields(fields: _Fields, *, whole: bool) -> None:
    """Refuse a record of which one field would keep some client from reading the index at all.

    Args:
        fields: its own.
        whole: whether it must have all that CEP 34 asks for; a wheel has them elsewhere.

    Raises:
        RepodataError: it has such a field.
    """
    if fields.sha256 is not None and not SHA256.fullmatch(fields.sha256.lower()):
        raise RepodataError(f"its sha256 is {fields.sha256[:80]!r}")
    if fields.md5 is not None and not MD5.fullmatch(fields.md5.lower()):
        raise RepodataError(f"its md5 is {fields.md5[:80]!r}")
    if fields.legacy_bz2_md5 is not None and not MD5.fullmatch(fields.legacy_bz2_md5.lower()):
        raise RepodataError(f"its legacy_bz2_md5 is {fields.legacy_bz2_md5[:80]!r}")
    if (whole or fields.version) and not _is_version(fields.version):
        raise RepodataError(f"its version is {fields.version[:80]!r}")
    if whole and (fields.build is None or fields.build_number is None):
        raise RepodataError("its record has no build, or no build_number")
    if not 0 <= (fields.build_number or 0) <= LARGEST_NUMBER:
        raise RepodataError(f"its build_number is {fields.build_number}")
    if not 0 <= (fields.legacy_bz2_size or 0) <= LARGEST_NUMBER:
        raise RepodataError(f"its legacy_bz2_size is {fields.legacy_bz2_size}")
    if fields.timestamp is not None and abs(fields.timestamp) > LAST_TIMESTAMP:
        raise RepodataError(f"its timestamp is {fields.timestamp}")
    if isinstance(fields.noarch, str) and fields.noarch not in ("generic", "python"):
        raise RepodataError(f"its noarch is {fields.noarch[:80]!r}")
    if fields.purls and any(not purl.startswith("pkg:") for purl in fields.purls):
        raise RepodataError("one of its purls is none")


@functools.lru_cache(1 << 14)
def _is_version(version: str) -> bool:
    """Tell whether every client reads a text as a version."""
    mixed = "_" in version and "-" in version
    return bool(not mixed and VERSION.fullmatch(version) and not LARGE_NUMBER.search(version))


def _drop(sections: dict[str, dict[str, Raw]], wheels: dict[str, str], file_name: str) -> None:
    """Take every record of a file out."""
    for section, records in sections.items():
        if section == WHEELS:
            for key in [key for key, name in wheels.items() if name == file_name]:
                records.pop(key, None)
        else:
            records.pop(file_name.removesuffix(SECTIONS[section]) if SECTIONS[section] else file_name, None)


def local_head(top: dict[str, Raw], dropped: list[str] | None = None) -> tuple[dict[str, Raw], str]:
    """Return the head without what leads off the mirror, and the `base_url` that it had.

    Args:
        top: the top-level members without records.
        dropped: takes the relations (CEP 42) that lead off the mirror.

    Raises:
        RepodataError: `info` is no object.
    """
    head = dict(top)
    _check_nesting(bytes(head.get("info", b"")))
    info = _members("info", head.get("info", Raw(b"{}")))
    base_url = ""
    dropped = [] if dropped is None else dropped
    for key in list(info):
        try:
            value = msgspec.json.decode(info[key])
        except BAD_JSON as error:
            raise RepodataError(f"has a damaged 'info' ({error})") from error
        if key == "base_url":
            base_url = value if isinstance(value, str) else ""
            del info[key]
        elif key == RELATIONS:
            info[key] = Raw(msgspec.json.encode(_relations(value, lambda target: True, dropped) or {}))
        elif leads_away(value):
            del info[key]
    for members_ in (head, info):
        # CEP 15: version 2 means that there is a base_url, and there is none any more.
        if members_.get("repodata_version") == Raw(b"2"):
            members_["repodata_version"] = Raw(b"1")
    head["info"] = Raw(msgspec.json.encode(info))
    return head, base_url


def without_relations(index: Index, is_here: Callable[[str], bool]) -> Index:
    """Return an index without relations to channels that are not here (CEP 42): clients load those unasked.

    Args:
        index: the upstream's.
        is_here: tells whether a channel is, by its path relative to this one.
    """
    info = _members("info", index.head.get("info", Raw(b"{}")))
    if RELATIONS not in info:
        return index
    dropped: list[str] = []
    relations = _relations(msgspec.json.decode(info[RELATIONS]), is_here, dropped) or None
    if relations is None:
        del info[RELATIONS]
    else:
        info[RELATIONS] = Raw(msgspec.json.encode(relations))
    head = {**index.head, "info": Raw(msgspec.json.encode(info))}
    reasons = {f"info.{RELATIONS}: {target}": "that channel is not mirrored here" for target in dropped}
    return replace(index, head=head, left_out={**index.left_out, **reasons})


def _relations(value: Any, is_here: Callable[[str], bool], dropped: list[str]) -> Any:
    """Return what of a value names channels beside this one that are here, None for nothing; the rest is `dropped`."""
    if isinstance(value, str):
        if value.startswith("../") and is_here(value):
            return value
        dropped.append(value)
    elif isinstance(value, list):
        return [kept for kept in (_relations(item, is_here, dropped) for item in value) if kept is not None] or None
    elif isinstance(value, dict):
        kept = {key: _relations(item, is_here, dropped) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item is not None}
    return None
