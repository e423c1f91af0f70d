"""The page of a project, as an upstream tells it: what it says of each file, and where devpi keeps that file.

It is read from JSON (PEP 691, with 700, 714, 740, 792) and from HTML (PEP 503, with 592, 658, 714, 740, 792), also from
a *flat* page, which has the files of all projects. Nothing here asks anybody or knows devpi; only the paths are its.

A field that names a place off the LAN is not kept: its value is, or has in it, a URL. Such a field is `provenance`
(PEP 740): a client that follows it asks the upstream itself, and fails where it cannot reach it. A reason for people
stays, whatever is in it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

# What a file's fields may be; a field of another kind is left out. A field that is not here may be anything.
KINDS: dict[str, tuple[type, ...]] = {
    "core-metadata": (bool, dict),
    "gpg-sig": (bool,),
    "hashes": (dict,),
    "requires-python": (str,),
    "size": (int,),
    "upload-time": (str,),
    "yanked": (bool, str),
}
# What devpi takes for an archive (devpi_common.metadata.ALLOWED_ARCHIVE_EXTS).
ARCHIVE = r"\.(?:deb|dmg|doc\.zip|egg|exe|msi|rpm|tar|tar\.bz2|tar\.gz|tgz|whl|zip)"
ARCHIVES = re.compile(f"(.*?){ARCHIVE}", re.IGNORECASE | re.DOTALL)
ARCHIVE_IN_URL = re.compile(f"{ARCHIVE}(?:[?#]|$)", re.IGNORECASE)
# A link as nearly all are: absolute, with nothing in it that needs a second look, and with a sha256.
USUAL_LINK = re.compile(r"(https?://[\w.:-]+/(?:[\w.~+!-]+/)*([\w.~+!-]+))#sha256=([0-9a-f]{64})", re.ASCII)
# Old names of `core-metadata` (PEP 714). Some clients of their time fail on them in JSON, so no page has them there.
OLD_METADATA = ("dist-info-metadata", "data-dist-info-metadata")
A_NAME = re.compile(r"[^\x00-\x1f\x7f/\\]+")
WITH_HOST = re.compile(r"https?://[A-Za-z0-9][^/]*/")
HEX = re.compile(r"[0-9A-Fa-f]+")
SHA256_DIGITS = 64
# As devpi's folders are named: three digits, thirteen, and no other.
FOLDER_DIGITS = 16
FORM = 1


class PageError(ValueError):
    """An answer that is no page of a project."""


@dataclass(frozen=True, slots=True)
class File:
    """A file on the page of a project.

    Attributes:
        name: Its file name.
        url: Absolute URL at the upstream, without credentials and fragment; "" for an uploaded file.
        path: Where it is below the index, here, as devpi has it: `+f/…/NAME` by its hash, else `+e/…/NAME` by its URL.
        told: What is said of it, by the names of JSON (PEP 691), without `filename` and `url`.
    """

    name: str
    url: str
    path: str
    told: Mapping[str, Any]


@dataclass(frozen=True)
class Page:
    """The page of a project.

    Attributes:
        name: The project's normalised name.
        files: In the upstream's order, each name once.
        told: The other fields of the page, by the names of JSON; `meta` without `api-version`.
    """

    name: str
    files: tuple[File, ...]
    told: Mapping[str, Any]

    @cached_property
    def by_path(self) -> Mapping[str, File]:
        """Its files by their paths below the index, but for those that are nowhere to be had."""
        return {file.path: file for file in self.files if file.url}


def normalized(name: str) -> str:
    """Return a project's name as devpi has it (devpi_server.normalized); for the names that there are, PEP 503's."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).lower()


def parse(project: str, url: str, content_type: str, body: bytes, *, flat: bool = False) -> Page:
    """Return the page of a project that an upstream gave.

    A record that is bad is left out, and so is a field; the others stay.

    Args:
        project: Its name.
        url: Of the answer, to which the links are relative.
        content_type: Of the answer.
        body: Of the answer.
        flat: The page is of all projects: only files that are surely of this one count.

    Raises:
        PageError: It is no page of a project, or one of another major version.
    """
    project, url = normalized(project), plain(url)
    kind = content_type.partition(";")[0].strip().lower()
    is_json = kind.endswith("json") or (not kind.endswith("html") and body.lstrip()[:1] == b"{")
    told, records = read_json(body) if is_json else read_html(url, body, content_type)
    files: dict[str, File] = {}
    for record in records:
        file = read_record(record, url)
        if file is None:
            continue
        if flat:
            if not belongs(file.name, project):
                continue
        elif not is_json and not may_belong(file.name, project):
            continue
        known = files.get(file.name)
        if known is None or is_better(file, known):
            files[file.name] = file
    return Page(project, tuple(files.values()), told)


def is_better(file: File, known: File) -> bool:
    """Return whether a second record of a name takes the place of the first, as devpi has it (mirror.IndexParser)."""
    return not known.told.get("hashes") and bool(
        file.told.get("hashes") or (file.told.get("requires-python") and not known.told.get("requires-python"))
    )


def may_belong(name: str, project: str) -> bool:
    """Return whether a file may be of a project, as devpi has it (devpi_common.metadata.is_archive_of_project)."""
    archive = ARCHIVES.fullmatch(name)
    return archive is not None and normalized(archive[1]).startswith(project)


def belongs(name: str, project: str) -> bool:
    """Return whether a file is of a project and not of one whose name only begins so: `torch`, `torchvision`."""
    archive = ARCHIVES.fullmatch(name)
    if archive is None:
        return False
    if name.lower().endswith(".whl"):
        return normalized(archive[1].partition("-")[0]) == project
    stem = normalized(archive[1])
    return stem == project or re.match(r"-v?[0-9]", stem.removeprefix(project)) is not None


# --- records -----------------------------------------------------------------------------------------------------


def read_record(record: Any, base: str) -> File | None:
    """Return the file of a record as JSON has it, or None for a bad one."""
    if not isinstance(record, dict):
        return None
    told = dict(record)
    name, url = told.pop("filename", None), told.pop("url", None)
    if not isinstance(url, str):
        return None
    fragment = ""
    if not is_plain(url, name):
        try:
            parts = urlsplit(plain(urljoin(base, url.strip())))
            fragment = parts.fragment
            url = urlunsplit(parts._replace(fragment=""))
        except ValueError:
            return None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            return None
        if not name:
            name = unquote(parts.path.rpartition("/")[2])
    if not is_name(name):
        return None
    clean(told)
    hashes = digests(told.get("hashes")) or digests(dict([fragment.partition("&")[0].partition("=")[::2]]))
    told["hashes"] = hashes
    return File(name, url, path_of(name, url, hashes), told)


def is_plain(url: str, name: Any) -> bool:
    """Return whether a URL is absolute and ends with the file's name, with nothing in it that needs a second look."""
    return (
        isinstance(name, str)
        and WITH_HOST.match(url) is not None
        and url.endswith(name)
        and url[-len(name) - 1] == "/"
        and url.isascii()
        and url.isprintable()
        and not ("#" in url or "?" in url or "@" in url or "%" in url or "[" in url or " " in url or "\\" in url)
    )


def is_name(name: Any) -> bool:
    """Return whether a file can have a name."""
    return (
        isinstance(name, str)
        and A_NAME.fullmatch(name) is not None
        and name not in {".", ".."}
        and (name.isascii() or not re.search(r"[\ud800-\udfff]", name))
    )


def plain(url: str) -> str:
    """Return a URL without credentials."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else url


def clean(told: dict[str, Any]) -> None:
    """Take out of a record what is bad in it, and what names a place off the LAN."""
    for old in OLD_METADATA:
        if old in told:
            told.setdefault("core-metadata", told[old])
            del told[old]
    for key in list(told):
        value = told[key]
        kinds = KINDS.get(key)
        if kinds is None:
            if names_a_place(value):
                del told[key]
        elif not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            del told[key]
    if told.get("size", 0) < 0:
        del told["size"]
    promised = told.get("core-metadata")
    if isinstance(promised, dict):
        told["core-metadata"] = digests(promised) or True


def names_a_place(value: Any) -> bool:
    """Return whether a value is a URL, or has one in it."""
    if isinstance(value, str):
        return "://" in value or value.startswith("//")
    if isinstance(value, list):
        return any(map(names_a_place, value))
    if isinstance(value, dict):
        return any(map(names_a_place, value)) or any(map(names_a_place, value.values()))
    return False


def digests(told: Any) -> dict[str, str]:
    """Return the hashes of a record that can be hashes."""
    if not isinstance(told, dict):
        return {}
    return {
        algorithm: value
        for algorithm, value in told.items()
        if isinstance(value, str)
        and HEX.fullmatch(value)
        and (len(value) == SHA256_DIGITS if algorithm == "sha256" else len(value) >= FOLDER_DIGITS)
    }


def path_of(name: str, url: str, hashes: Mapping[str, str]) -> str:
    """Return where devpi keeps a file, below its index (filestore.key_from_link): what servers have stays theirs."""
    value = hashes.get("sha256", "")
    if not value and hashes:
        algorithm, value = next(iter(hashes.items()))
        value = value if hasattr(hashlib, algorithm) else ""
    if value:
        return f"+f/{value[:3]}/{value[3:FOLDER_DIGITS]}/{name}"
    parts = urlsplit(url)
    folder = f"{parts.scheme}/{parts.netloc}{parts.path}".rpartition("/")[0]
    return f"+e/{re.sub('[^a-zA-Z0-9_.-]', '_', folder)}/{name}"


# --- JSON --------------------------------------------------------------------------------------------------------


def read_json(body: bytes) -> tuple[dict[str, Any], Iterable[Any]]:
    """Return what a page in JSON tells beside its files, and the records of its files."""
    try:
        # NaN and Infinity are no JSON, and a page that has them would be of no use to anybody.
        page = json.loads(body, parse_constant=lambda _: None, parse_float=number)
    except (ValueError, RecursionError) as error:
        raise PageError(f"no JSON: {error}") from None
    if not isinstance(page, dict) or not isinstance(page.get("files"), list):
        raise PageError("JSON without a list of files")
    meta = page.get("meta")
    meta = dict(meta) if isinstance(meta, dict) else {}
    check_version(meta.pop("api-version", "1.0"))
    told = {key: value for key, value in page.items() if key not in {"files", "name", "meta"}}
    if not (isinstance(told.get("versions"), list) and all(isinstance(each, str) for each in told["versions"])):
        told.pop("versions", None)
    status = told.pop("project-status", None)
    told = {key: value for key, value in told.items() if not names_a_place(value)}
    if isinstance(status, dict) and isinstance(status.get("status"), str):
        told["project-status"] = status
    meta = {key: value for key, value in meta.items() if not names_a_place(value)}
    return told | ({"meta": meta} if meta else {}), page["files"]


def number(text: str) -> float | None:
    """Return a number of JSON's, or None for one that is too large."""
    value = float(text)
    return value if math.isfinite(value) else None


def check_version(version: Any) -> None:
    """Refuse a page of another major version than the first (PEP 629)."""
    if not re.fullmatch(r"1(\.[0-9]+)*", str(version).strip()):
        raise PageError(f"a page of version {str(version)[:20]!r} of the API, of which 1 is known")


# --- HTML --------------------------------------------------------------------------------------------------------


class Anchors(HTMLParser):
    """Reads a page in HTML."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.base = url
        self.records: list[dict[str, Any]] = []
        self.told: dict[str, Any] = {}
        self.tags = 0
        self.asks_for_password = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take what a tag says."""
        self.tags += 1
        said = dict(attrs)
        if tag == "a" and said.get("href"):
            self.records.append(record_of(self.base, said))
        elif tag == "base" and said.get("href"):
            self.base = urljoin_or(self.base, said["href"] or "")
        elif tag == "meta":
            name, content = said.get("name"), said.get("content") or ""
            if name == "pypi:repository-version":
                check_version(content)
            elif name == "pypi:project-status":
                self.told["project-status"] = {"status": content, **self.told.get("project-status", {})}
            elif name == "pypi:project-status-reason":
                self.told["project-status"] = {**self.told.get("project-status", {}), "reason": content}
        elif tag == "input" and (said.get("type") or "").lower() == "password":
            self.asks_for_password = True


def urljoin_or(base: str, href: str) -> str:
    """Return where a link leads; a link that leads nowhere as it is, and no record is made of it."""
    try:
        return urljoin(base, href.strip())
    except ValueError:
        return href


def record_of(base: str, said: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the record that JSON would have in the place of a link."""
    href = said["href"] or ""
    usual = USUAL_LINK.fullmatch(href)
    record: dict[str, Any]
    if usual:
        record = {"filename": usual[2], "url": usual[1], "hashes": {"sha256": usual[3]}}
    else:
        record = {"url": urljoin_or(base, href)}
    if said.get("data-requires-python"):
        record["requires-python"] = said["data-requires-python"]
    if "data-yanked" in said:
        record["yanked"] = said["data-yanked"] or True
    promised = said.get("data-core-metadata", said.get("data-dist-info-metadata"))
    if promised and promised != "false":
        algorithm, _, value = promised.partition("=")
        record["core-metadata"] = {algorithm: value} if value else True
    if said.get("data-gpg-sig") in {"true", "false"}:
        record["gpg-sig"] = said["data-gpg-sig"] == "true"
    return record


def read_html(url: str, body: bytes, content_type: str) -> tuple[dict[str, Any], Iterable[Any]]:
    """Return what a page in HTML tells beside its files, and the records of its files."""
    charset = re.search(r"charset\s*=\s*[\"']?([\w.-]+)", content_type, re.IGNORECASE)
    try:
        text = body.decode(charset[1] if charset else "utf-8", errors="replace")
    except LookupError:
        text = body.decode(errors="replace")
    reader = Anchors(url)
    reader.feed(text)
    reader.close()
    if not reader.tags:
        raise PageError("no page: neither JSON nor HTML" if text.strip() else "an empty answer")
    if reader.asks_for_password and not any(ARCHIVE_IN_URL.search(record["url"]) for record in reader.records):
        raise PageError("a page that asks for a password")
    if "status" not in reader.told.get("project-status", {"status": ""}):
        del reader.told["project-status"]
    return reader.told, reader.records


# --- how a page is stored ----------------------------------------------------------------------------------------


def dump(page: Page) -> bytes:
    """Return a page as it is stored."""
    files = [(file.name, file.url, file.path, file.told) for file in page.files]
    text = json.dumps([FORM, page.name, page.told, files], separators=(",", ":"), default=dict)
    return gzip.compress(text.encode(), compresslevel=2, mtime=0)


def load(stored: bytes) -> Page:
    """Return a page that was stored.

    Raises:
        PageError: It is of another form than this version's, or damaged.
    """
    try:
        form, name, told, files = json.loads(gzip.decompress(stored))
        if form != FORM:
            raise PageError(f"a page stored in form {form!r}, of which {FORM} is known")
        return Page(name, tuple([File(*file) for file in files]), told)
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise error if isinstance(error, PageError) else PageError(f"a damaged page: {error}") from None
