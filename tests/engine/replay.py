"""What conda, mamba and pixi ask a channel for, in their order and with their headers, and what they expect.

The orders were logged from the clients themselves: conda 26.7 with the rattler and with the classic solver,
conda 23 to 25, mamba 2.6, pixi (rattler). Each function takes the part of one client that installs a package
with what it depends on, and fails with an AssertionError where that client would.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import msgspec

from tests.engine import outside

SUBDIRS = ("linux-64", "noarch")
# Clients that were told a longer age for an index would not see a new package.
LONGEST_AGE = 300


class Answer:
    """An answer as a client's HTTP library hands it on: content encodings undone, transfer encodings too."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        body = response.read()
        encoding = self.headers.get("content-encoding", "identity")
        assert encoding in ("identity", "gzip"), f"Content-Encoding {encoding}, which no client asked for"
        self.body = gzip.decompress(body) if encoding == "gzip" and body else body


class Session:
    """One client's connection to one channel."""

    def __init__(self, channel: str, agent: str, **headers: str) -> None:
        parts = urlsplit(channel)
        assert parts.hostname
        self.channel = channel.rstrip("/")
        self._headers = {"User-Agent": agent, "Accept": "*/*", **headers}
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)

    def ask(self, where: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request for a path below the channel, or for a URL."""
        url = urljoin(f"{self.channel}/", where)
        assert url.startswith(f"{self.channel}/"), f"{where} leads off the channel"
        self._connection.request(method, quote(urlsplit(url).path), headers={**self._headers, **(headers or {})})
        answer = Answer(self._connection.getresponse())
        if ".json" in where or "shards" in where:
            _check_age(where, answer)
        if where.endswith((".zst", ".bz2", ".conda")):
            # It would be unpacked by the HTTP library, and then once more.
            assert "content-encoding" not in answer.headers, where
        return answer

    def install(self, names: Iterable[str], records: Callable[[str], Mapping[str, tuple[str, dict[str, Any]]]]) -> None:
        """Download packages and what they depend on.

        Args:
            names: package names.
            records: the records of a package name: URL and record by file name.
        """
        wanted, seen = list(names), set()
        while wanted:
            name = wanted.pop()
            if name in seen:
                continue
            seen.add(name)
            found = records(name)
            assert found, f"no record of {name}"
            url, record = list(found.values())[-1]
            answer = self.ask(url)
            assert answer.status == http.client.OK, f"{url}: {answer.status}"
            assert len(answer.body) == record["size"]
            digest = record["sha256"]
            assert hashlib.sha256(answer.body).hexdigest() == (digest.hex() if isinstance(digest, bytes) else digest)
            wanted += [depends.split()[0] for depends in record["depends"]]

    def notices(self) -> None:
        """Look for notices, as all clients do; a channel need not have them."""
        assert self.ask("notices.json").status in (http.client.OK, http.client.NOT_FOUND)


def _check_age(where: str, answer: Answer) -> None:
    control = answer.headers.get("cache-control", "")
    if "immutable" in control:
        stem = where.rpartition("/")[2].removesuffix(".msgpack.zst")
        assert len(stem) == hashlib.sha256().digest_size * 2, f"{where} is said to be immutable"
    elif "max-age=" in control:
        assert int(control.partition("max-age=")[2].split(",")[0]) <= LONGEST_AGE, f"{where}: {control}"


def _from_json(session: Session, subdir: str, body: bytes) -> dict[str, dict[str, tuple[str, dict[str, Any]]]]:
    """Return the records of a `repodata.json` by package name and file name."""
    top = json.loads(body)
    assert top["info"]["subdir"] == subdir
    base = urljoin(f"{session.channel}/{subdir}/", top["info"].get("base_url") or "")
    found: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {}
    for section in ("packages", "packages.conda"):
        for file_name, record in top[section].items():
            found.setdefault(record["name"], {})[file_name] = (urljoin(base, file_name), record)
    return found


def _first(session: Session, subdir: str, forms: Iterable[str]) -> tuple[str, Answer]:
    """Ask for one form after the other, until there is one."""
    for form in forms:
        answer = session.ask(f"{subdir}/{form}")
        if answer.status == http.client.OK:
            return form, answer
        assert answer.status == http.client.NOT_FOUND, f"{subdir}/{form} answers {answer.status}"
    raise AssertionError(f"{subdir} has no index; conda fails on that")


def _through_shards(session: Session, names: Iterable[str]) -> None:
    """Install with the shards of each subdir (CEP 16)."""
    indexes = {}
    for subdir in SUBDIRS:
        answer = session.ask(f"{subdir}/{outside.SHARDS}")
        assert answer.status == http.client.OK
        indexes[subdir] = msgspec.msgpack.decode(outside.unpacked(outside.SHARDS, answer.body))

    def records(name: str) -> dict[str, tuple[str, dict[str, Any]]]:
        found: dict[str, tuple[str, dict[str, Any]]] = {}
        for subdir, index in indexes.items():
            digest, info = index["shards"].get(name), index["info"]
            if digest is None:
                continue
            folder = f"{session.channel}/{subdir}/"
            answer = session.ask(urljoin(folder, f"{info['shards_base_url']}{digest.hex()}.msgpack.zst"))
            # conda remembers any other answer for seven days, and asks for no shard until then.
            assert answer.status == http.client.OK
            assert hashlib.sha256(answer.body).digest() == digest
            shard = msgspec.msgpack.decode(outside.unpacked(outside.SHARDS, answer.body))
            for file_name, record in {**shard["packages"], **shard["packages.conda"]}.items():
                found[file_name] = (urljoin(folder, info["base_url"] + file_name), record)
        return found

    session.install(names, records)


def _through_files(session: Session, names: Iterable[str], forms: Iterable[str]) -> None:
    """Install with the first of `forms` that each subdir has, and ask for it again as for one that is cached."""
    known: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {}
    for subdir in SUBDIRS:
        form, answer = _first(session, subdir, forms)
        body = outside.unpacked(form, answer.body)
        for name, records in _from_json(session, subdir, body).items():
            known.setdefault(name, {}).update(records)
        for condition, validator in (("If-None-Match", "etag"), ("If-Modified-Since", "last-modified")):
            if validator in answer.headers:
                again = session.ask(f"{subdir}/{form}", headers={condition: answer.headers[validator]})
                assert again.status == http.client.NOT_MODIFIED, f"{subdir}/{form} is sent again for {condition}"
        assert {"etag", "last-modified"} & answer.headers.keys(), f"{subdir}/{form} has no validator"
    session.install(names, lambda name: known.get(name, {}))


def conda_rattler(channel: str, names: Iterable[str]) -> None:
    """conda 26.7 with its rattler solver."""
    session = Session(channel, "conda/26.7.0 requests/2.32.5 CPython/3.13.5", **{"Accept-Encoding": "gzip, deflate"})
    session.notices()
    _through_shards(session, names)


def conda_rattler_without_shards(channel: str, names: Iterable[str]) -> None:
    """The same where shards are switched off: the whole index, compressed where there is one."""
    session = Session(channel, "conda/26.7.0 requests/2.32.5 CPython/3.13.5", **{"Accept-Encoding": "gzip, deflate"})
    _through_files(session, names, ("repodata.json.zst", "repodata.json"))


def conda_classic(channel: str, names: Iterable[str]) -> None:
    """conda 26.7 with the classic solver."""
    session = Session(channel, "conda/26.7.0 requests/2.32.5 CPython/3.13.5", **{"Accept-Encoding": "gzip, deflate"})
    forms = ("current_repodata.json.zst", "current_repodata.json", "repodata.json.zst", "repodata.json")
    _through_files(session, names, forms)
    session.notices()


def conda_24(channel: str, names: Iterable[str]) -> None:
    """conda 23 to 25 with the classic solver."""
    session = Session(
        channel, "conda/24.9.2 requests/2.32.3 CPython/3.12.7",
        **{"Accept-Encoding": "gzip, deflate, compress, identity", "Content-Type": "application/json"},
    )  # fmt: skip
    _through_files(session, names, ("current_repodata.json", "repodata.json"))


def mamba(channel: str, names: Iterable[str]) -> None:
    """mamba 2.6: asks with HEAD what there is, and resumes a package that broke off."""
    session = Session(channel, "mamba/2.6.0")
    for subdir in SUBDIRS:
        for form in ("repodata.json.zst", outside.SHARDS):
            head, whole = session.ask(f"{subdir}/{form}", method="HEAD"), session.ask(f"{subdir}/{form}")
            assert head.status == whole.status == http.client.OK
            assert head.body == b""
            assert int(head.headers["content-length"]) == len(whole.body)
    _through_files(session, names, ("repodata.json.zst", "repodata.json"))
    _through_shards(session, names)
    top = json.loads(session.ask("linux-64/repodata.json").body)
    file_name, record = next(iter({**top["packages"], **top["packages.conda"]}.items()))
    rest = session.ask(f"linux-64/{file_name}", headers={"Range": "bytes=100-"})
    assert rest.status == http.client.PARTIAL_CONTENT
    assert rest.headers["content-range"] == f"bytes 100-{record['size'] - 1}/{record['size']}"
    assert rest.body == session.ask(f"linux-64/{file_name}").body[100:]
    beyond = session.ask(f"linux-64/{file_name}", headers={"Range": f"bytes={record['size']}-"})
    assert beyond.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE


def pixi(channel: str, names: Iterable[str]) -> None:
    """pixi, through rattler: of the shard index, only 404 and 501 make it fall back; 403 and 5xx are fatal."""
    session = Session(channel, "pixi/0.62.0", **{"Accept-Encoding": "gzip"})
    _through_shards(session, names)
    for subdir in SUBDIRS:
        for form in ("repodata.json.zst", "repodata.json.bz2"):
            assert session.ask(f"{subdir}/{form}", method="HEAD").status in (http.client.OK, http.client.NOT_FOUND)
    _through_files(session, names, ("repodata.json.zst", "repodata.json.bz2", "repodata.json"))
    absent = session.ask(f"linux-armv6l/{outside.SHARDS}")
    assert absent.status == http.client.NOT_FOUND, "a platform that is not mirrored"


CLIENTS = (conda_rattler, conda_rattler_without_shards, conda_classic, conda_24, mamba, pixi)
