"""The check from outside: read every index that is served, in every format, and ask for every file it names.

It knows the formats from their standards and nothing of the engine. Sources: CEP 15 (`base_url`), CEP 16
(shards), CEP 48 (`v3`), conda's documentation of `repodata.json`.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import http.client
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import msgspec
import zstandard


def _unzstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


PACKINGS: Mapping[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".zst": _unzstd,
    ".bz2": bz2.decompress,
    ".gz": gzip.decompress,
}
FULL = tuple(f"repodata.json{packing}" for packing in PACKINGS)
CURRENT = tuple(f"current_repodata.json{packing}" for packing in PACKINGS)
SHARDS = "repodata_shards.msgpack.zst"
FORMS = (*FULL, *CURRENT, SHARDS)


def unpacked(form: str, body: bytes) -> bytes:
    """Return the bytes of a form of an index without their compression."""
    return _unzstd(body) if form == SHARDS else PACKINGS[form.partition(".json")[2]](body)


@dataclass(frozen=True)
class Entry:
    """A file as an index names it: where a client looks for it, and what it expects there."""

    url: str
    size: int | None
    sha256: str
    md5: str


@dataclass
class Findings:
    """What a check saw.

    Attributes:
        problems: what a client would stumble over.
        named: file names by the path of the form that names them, for example `pkgs/main/noarch/repodata.json`.
        records: the same with the whole records, to compare what the forms say.
    """

    problems: list[str] = field(default_factory=list)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def named(self) -> dict[str, set[str]]:
        """See the class."""
        return {form: set(records) for form, records in self.records.items()}


class Client:
    """GET over one kept-alive connection."""

    def __init__(self, base: str) -> None:
        self.base = base
        parts = urlsplit(base)
        assert parts.hostname
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)

    def get(self, url: str) -> tuple[int, bytes]:
        """Return the status and the body; redirects are not followed, since nothing here should redirect."""
        self._connection.request("GET", quote(urlsplit(url).path, safe="/%!+~"))
        answer = self._connection.getresponse()
        return answer.status, answer.read()


def named(base: str, where: str) -> set[str]:
    """Return the file names that one form of an index names, for example that of `pkgs/main/noarch/repodata.json`."""
    subdir, _, form = where.rpartition("/")
    return set(_read(Client(base), subdir, form, Findings()) or ())


# Whether something else than the mirror gives a file, by its path: what an index names may come on demand.
Elsewhere = Callable[[str, Entry], bool]


def check(
    base: str,
    subdirs: Iterable[str],
    *,
    moving: bool = False,
    rest: bool = True,
    elsewhere: Elsewhere = lambda path, entry: False,
) -> Findings:
    """Check all forms of the index of each subdir (`pkgs/main/linux-64`) below the address `base`.

    Args:
        base: without a slash at the end.
        subdirs: paths below it.
        moving: a sync is running. A file that is not as the index said is then a problem only if the index,
            read anew, still says so.
        rest: the last run came to its end, so that all forms have to say the same.
        elsewhere: see `Elsewhere`; it is asked for what is not there.
    """
    client, findings = Client(base), Findings()
    for subdir in subdirs:
        seen: dict[tuple[str, str], str] = {}
        for form in FORMS:
            where = f"{subdir}/{form}"
            try:
                entries = _read(client, subdir, form, findings)
                if entries is None:
                    continue
                for name, entry in entries.items():
                    key = (entry.url, entry.sha256 or entry.md5)
                    if key not in seen:
                        seen[key] = _problem(client, entry, elsewhere)
                    if seen[key] and moving:
                        again = (_read(client, subdir, form, Findings()) or {}).get(name)
                        seen[key] = _problem(client, entry, elsewhere) if again == entry else ""
                    if seen[key]:
                        findings.problems.append(f"{where} names {name}: {seen[key]}")
            except Exception as error:  # whatever a client cannot read is a finding
                findings.problems.append(f"{where}: {type(error).__name__}: {error}")
        if rest:
            findings.problems += _disagreements(subdir, findings.records)
    return findings


def _problem(client: Client, entry: Entry, elsewhere: Elsewhere = lambda path, entry: False) -> str:
    """Return what is wrong with a file, "" if it is what the index says."""
    if not entry.url.startswith(f"{client.base}/"):
        return f"leads off the mirror: {entry.url}"
    status, body = client.get(entry.url)
    if status != http.client.OK:
        given = status == http.client.NOT_FOUND and elsewhere(entry.url.removeprefix(f"{client.base}/"), entry)
        return "" if given else f"answers {status}"
    if entry.size not in (None, len(body)):
        return f"has {len(body)} bytes, not {entry.size}"
    if entry.sha256 and hashlib.sha256(body).hexdigest() != entry.sha256:
        return "has another sha256"
    if entry.md5 and hashlib.md5(body).hexdigest() != entry.md5:
        return "has another md5"
    return "" if entry.sha256 or entry.md5 else "has no hash in the index"


def _read(client: Client, subdir: str, form: str, findings: Findings) -> dict[str, Entry] | None:
    """Return what a form of an index names, by file name; None where it is not served."""
    folder = f"{client.base}/{subdir}/"
    status, body = client.get(folder + form)
    if status == http.client.NOT_FOUND:
        return None
    assert status == http.client.OK, f"answers {status}"
    tops = _shards(client, folder, body) if form == SHARDS else iter([(json.loads(unpacked(form, body)), folder)])
    entries: dict[str, Entry] = {}
    records = findings.records.setdefault(f"{subdir}/{form}", {})
    for top, root in tops:
        base = urljoin(root, (top.get("info") or {}).get("base_url") or "")
        base += "" if base.endswith("/") else "/"
        for name, record in _records(top):
            assert name not in entries, f"names {name} twice"
            sha256, md5 = record.get("sha256") or "", record.get("md5") or ""
            records[name] = record
            entries[name] = Entry(urljoin(base, record.get("url") or name), record.get("size"), _hex(sha256), _hex(md5))
    return entries


def _records(top: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for section in ("packages", "packages.conda"):
        yield from (top.get(section) or {}).items()
    for bucket, records in (top.get("v3") or {}).items():
        extension = "tar.bz2" if bucket == "tar_bz2" else bucket
        for name, record in records.items():
            yield f"{name}.{extension}", record


def _shards(client: Client, folder: str, body: bytes) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each shard with the URL that its records are relative to, checked by its own hash."""
    index = msgspec.msgpack.decode(_unzstd(body))
    info = index["info"]
    assert "base_url" in info, "the shard index lacks base_url"
    assert "shards_base_url" in info, "the shard index lacks shards_base_url"
    base = urljoin(folder, info["base_url"])
    for name, digest in index["shards"].items():
        assert len(digest) == hashlib.sha256().digest_size, f"the hash of the shard {name} is not raw"
        url = urljoin(folder, f"{info['shards_base_url']}{digest.hex()}.msgpack.zst")
        problem = _problem(client, Entry(url, None, digest.hex(), ""))
        assert not problem, f"the shard {name} {problem}"
        shard = msgspec.msgpack.decode(_unzstd(client.get(url)[1]))
        # Names of packages are the same in any case; clients ask in lower case.
        strays = {record["name"].lower() for _, record in _records(shard)} - {name.lower()}
        assert not strays, f"the shard {name} has records of {strays}"
        hashes = [record[key] for _, record in _records(shard) for key in ("sha256", "md5") if record.get(key)]
        assert all(isinstance(value, bytes) for value in hashes), f"a hash in the shard {name} is not raw"
        yield shard, base


def _hex(value: str | bytes) -> str:
    return value.hex() if isinstance(value, bytes) else value


def _disagreements(subdir: str, records: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Yield where the forms of one index say different things (design, invariant 6)."""
    full = records.get(f"{subdir}/repodata.json")
    if full is None:
        yield f"{subdir} has no repodata.json"
        return
    plain = _plain(full)
    for form in FORMS:
        other = records.get(f"{subdir}/{form}")
        if other is None or form == "repodata.json":
            continue
        theirs = _plain(other)
        if form in CURRENT:
            differ = {name for name, record in theirs.items() if plain.get(name) != record}
        else:
            differ = {name for name in plain.keys() | theirs.keys() if plain.get(name) != theirs.get(name)}
        if differ:
            yield f"{subdir}/{form} and repodata.json disagree on {sorted(differ)[:5]}"


def _plain(records: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return records with hashes in hexadecimal, whatever the format has."""
    return {
        name: {key: _hex(value) if key in ("sha256", "md5") else value for key, value in record.items()}
        for name, record in records.items()
    }
