"""What is served of a subdir: every format, made from one parsed index, so that no two can disagree.

`render` writes the files into an empty folder; to put them in place, in the order that it returns, is the
caller's. Each of them is closed by itself (it names only what `keep` accepted), so that no instant between
two of them is a wrong one. Formats: CEP 36, 12 (`run_exports.json`), 16 (shards), 38 (`channeldata.json`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from msgspec import Raw

from lanmirror_sync import compress, repodata, shards
from lanmirror_sync.compress import Former, Packed
from lanmirror_sync.repodata import BAD_JSON, SECTIONS, WHEELS, Index, RepodataError

# The JSON files of a subdir, and the forms in which each is served.
FORMS: Mapping[str, tuple[str, ...]] = {
    "repodata.json": ("", ".zst", ".bz2", ".gz"),
    "current_repodata.json": ("", ".zst", ".gz"),
    "run_exports.json": ("", ".zst"),
}
# Every file of a subdir's index but the shards themselves, in the order in which they are put in place.
INDEX_FILES = (shards.INDEX, *(name + form for name, forms in FORMS.items() for form in forms))
# By form, or by the whole name of a file.
PACKERS: Mapping[str, Callable[[Path, Path, int, Former], Packed | None]] = {
    "run_exports.json.zst": partial(compress.zst, level=compress.ZSTD_TEXT_LEVEL),
    ".zst": compress.zst,
    ".bz2": compress.bzip2,
    ".gz": compress.gz,
}
BATCH = 1000


class Memo(msgspec.Struct, frozen=True):
    """What is remembered of a subdir from one `render` to the next, so that only what changed is made again.

    Attributes:
        shards: see `shards.make`.
        packed: the compressed files, by name.
    """

    shards: shards.ShardMemo = shards.ShardMemo()
    packed: dict[str, Packed] = {}

    def encode(self) -> bytes:
        """Return the bytes to keep it as."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Memo:
        """Return what was kept; an empty memo where it is damaged, so that all is made anew."""
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except BAD_JSON:
            return cls()


@dataclass(frozen=True)
class Rendered:
    """What `render` wrote.

    Attributes:
        files: the files in the folder, in the order in which they are to be put in place: shards first.
        obsolete: index files that are to be removed after that, since the upstream has none of the kind.
        expired: shards that were in no index for a week, to be deleted.
        memo: what to hand to the next call.
        names: the package names that are published.
        seconds: the time that each format took, while others were made beside it.
    """

    files: tuple[str, ...]
    obsolete: tuple[str, ...]
    expired: tuple[str, ...]
    memo: Memo
    names: Collection[str]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class _View:
    """The part of an index that is published.

    Attributes:
        index: the upstream's.
        keep: tells whether the package of a file name is published.
        former: records that stand in for the upstream's of the same file name.
        within: for each section, the keys that a subset is restricted to; None for all.
    """

    index: Index
    keep: Callable[[str], bool]
    former: Index
    within: Mapping[str, Collection[str]] | None = None

    def sections(self) -> list[str]:
        """Return the sections there are, those of `v3` last."""
        return [section for section in SECTIONS if section in self.index.sections or section in self.former.sections]

    def records(self, section: str) -> Iterator[tuple[str, str, Raw]]:
        """Yield key, file name and undecoded record of what a section publishes."""
        within = None if self.within is None else self.within.get(section, ())
        suffix, keep, replaced = SECTIONS[section], self.keep, self.former.packages
        for key, raw in self.index.sections.get(section, {}).items():
            file_name = self.index.wheels[key] if section == WHEELS else key + suffix
            if keep(file_name) and file_name not in replaced and (within is None or key in within):
                yield key, file_name, raw
        for key, raw in self.former.sections.get(section, {}).items():
            if within is None or key in within:
                yield key, self.former.file_name(section, key), raw

    def signatures(self) -> Iterator[tuple[str, Raw]]:
        """Yield the signatures (CEP 36, appendix A) of what is published, as far as they still hold."""
        for index in (self.index, self.former):
            if "signatures" not in index.head:
                continue
            for file_name, raw in _members(index.head["signatures"]).items():
                kept = index is self.former or (self.keep(file_name) and file_name not in self.former.packages)
                if kept and file_name in index.packages and file_name not in index.rewritten:
                    yield file_name, raw


def render(
    index: Index,
    folder: Path,
    *,
    arch: str,
    keep: Callable[[str], bool],
    former: Index | None = None,
    current: bytes | None = None,
    run_exports: bytes | None = None,
    bz2: bool = True,
    memo: Memo | None = None,
    served: Path | None = None,
    present: Collection[str] = (),
    now: float,
    threads: int = 2,
) -> Rendered:
    """Write everything that is served of a subdir's index into a folder.

    Args:
        index: the upstream's, from `repodata.parse`.
        folder: an empty folder, on the file system of the mirror.
        arch: the subdir's name, for example `linux-64`.
        keep: tells whether the package of a file name is published.
        former: records that stand in for the upstream's of the same file name: `Index.pick` of what is served.
        current: the upstream's `current_repodata.json`, None where it has none. Only the names count, and
            of those the ones that are published.
        run_exports: the upstream's `run_exports.json`, None where it has none.
        bz2: whether that form is served. It takes more time than all others, and few clients still ask for it.
        memo: `Rendered.memo` of the last time.
        served: the folder of what was published then.
        present: the names of the files that stand in the subdir now.
        now: Unix time, seconds.
        threads: how many cores to use.

    Raises:
        RepodataError: `current` or `run_exports` is damaged.
        OSError: the folder cannot be written to.
    """
    view = _View(index, keep, former or Index({}, {}, {}))
    memo = memo or Memo()
    seconds: dict[str, float] = {}

    parts = {"repodata.json": view}
    if current is not None:
        parts["current_repodata.json"] = replace(view, within=repodata.split(current)[1])
    if run_exports is not None:
        parts["run_exports.json"] = _exports(run_exports, view)
    for name, part in parts.items():
        with _timed(seconds, name), (folder / name).open("wb") as file:
            _write_json(file, part)

    def pack() -> dict[str, Packed]:
        packed = {}
        for name in parts:
            for form in FORMS[name]:
                if form == "" or (form == ".bz2" and not bz2):
                    continue
                file = name + form
                with _timed(seconds, file):
                    before = Former.read(served / file, memo.packed.get(file)) if served else Former()
                    made = PACKERS.get(file, PACKERS[form])(folder / name, folder / file, threads, before)
                if made:
                    packed[file] = made
        return packed

    # Compression is the work of libraries that leave the interpreter free; shards are made meanwhile.
    with ThreadPoolExecutor(1) as aside:
        packing = aside.submit(pack)
        with _timed(seconds, shards.INDEX):
            made = shards.make(
                _named(view),
                removed=_removed(index),
                info={**_info(view), "subdir": arch},
                folder=folder,
                former=memo.shards,
                present=present,
                now=now,
            )
            (folder / shards.INDEX).write_bytes(made.index)
        packed = packing.result()
    there = {file.name for file in folder.iterdir()} - set(made.files)
    return Rendered(
        files=(*made.files, *(name for name in INDEX_FILES if name in there)),
        obsolete=tuple(name for name in INDEX_FILES if name not in there),
        expired=made.expired,
        memo=Memo(made.memo, packed),
        names=made.memo.shards.keys(),
        seconds=seconds,
    )


def write(file: Path, index: Index, keep: Callable[[str], bool]) -> None:
    """Write a `repodata.json` of the packages whose file names are accepted."""
    with file.open("wb") as target:
        _write_json(target, _View(index, keep, Index({}, {}, {})))


def channeldata(data: bytes, names: Mapping[str, Collection[str]]) -> bytes:
    """Return the `channeldata.json` to serve: of the upstream's, what is mirrored.

    Args:
        data: the upstream's.
        names: for each subdir that is mirrored, the package names that are published there.

    Raises:
        RepodataError: it is damaged.
    """
    try:
        top = repodata.members.decode(data)
        packages = {}
        for name, raw in repodata.members.decode(top.get("packages", Raw(b"{}"))).items():
            subdirs = [subdir for subdir, there in names.items() if name in there]
            if subdirs:
                packages[name] = {**repodata.members.decode(raw), "subdirs": sorted(subdirs)}
    except BAD_JSON as error:
        raise RepodataError(f"is no channeldata.json ({error}); it begins with {data[:40]!r}") from error
    return msgspec.json.encode({**top, "subdirs": sorted(names), "packages": packages})


def empty(arch: str) -> Index:
    """Return the index of a subdir without packages."""
    return repodata.parse(
        msgspec.json.encode(
            {"info": {"subdir": arch}, "packages": {}, "packages.conda": {}, "removed": [], "repodata_version": 1}
        )
    )


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[name] = time.monotonic() - start


def _members(raw: Raw) -> dict[str, Raw]:
    """Return the members of an object; none where it is something else."""
    try:
        return repodata.members.decode(raw)
    except BAD_JSON:
        return {}


def _named(view: _View) -> Iterator[tuple[str, str, str, Raw]]:
    """Yield package name, section, key and undecoded record of everything that is published."""
    packages = {**view.index.packages, **view.former.packages} if view.former.packages else view.index.packages
    for section in view.sections():
        for key, file_name, raw in view.records(section):
            yield packages[file_name].name, section, key, raw


def _removed(index: Index) -> list[str]:
    try:
        return msgspec.json.decode(index.head.get("removed", Raw(b"[]")), type=list[str])
    except BAD_JSON:
        return []


def _info(view: _View) -> dict[str, Any]:
    """Return `info` with the counts of CEP 48 set right for what is published."""
    info: dict[str, Any] = msgspec.json.decode(view.index.head.get("info", Raw(b"{}")))
    revisions = info.get("repodata_revisions")
    if isinstance(revisions, dict):
        known = revisions.get("v3")
        info["repodata_revisions"] = {"v3": {**known, **_revision(view, known)}} if isinstance(known, dict) else {}
    return info


def _revision(view: _View, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what CEP 48 says of the records in `v3`, as far as the upstream says it."""
    count, times = 0, []
    for section in view.sections():
        if section.startswith("v3."):
            for _, _, raw in view.records(section):
                count += 1
                stamp = msgspec.json.decode(raw).get("indexed_timestamp")
                times += [stamp] if isinstance(stamp, int) else []
    right = {"n_packages": count, "oldest": min(times, default=None), "newest": max(times, default=None)}
    return {key: value for key, value in right.items() if known.get(key) is not None}


def _write_json(file: BinaryIO, view: _View) -> None:
    """Write a document of the shape of `repodata.json`, record by record, so that it is never whole in memory."""
    head = {**view.index.head, "info": _info(view)}
    file.write(b"{")
    for key in sorted(head, key=lambda key: key != "info"):
        if key != "signatures":
            file.write(msgspec.json.encode(key) + b":" + msgspec.json.encode(head[key]) + b",")
    buckets = [section for section in view.sections() if section.startswith("v3.")]
    if "signatures" in head:
        _write_object(file, "signatures", view.signatures())
        file.write(b",")
    for section in ("packages", "packages.conda"):
        _write_object(file, section, ((key, raw) for key, _, raw in view.records(section)))
        file.write(b"," if section == "packages" or buckets else b"")
    if buckets:
        file.write(b'"v3":{')
        for number, section in enumerate(buckets):
            file.write(b"," if number else b"")
            _write_object(file, section.removeprefix("v3."), ((key, raw) for key, _, raw in view.records(section)))
        file.write(b"}")
    file.write(b"}")


def _write_object(file: BinaryIO, name: str, members: Iterable[tuple[str, Raw]]) -> None:
    file.write(msgspec.json.encode(name) + b":{")
    encode, members, comma = msgspec.json.Encoder().encode, iter(members), b""
    while batch := list(islice(members, BATCH)):
        file.write(comma + b",".join([encode(key) + b":" + bytes(raw) for key, raw in batch]))
        comma = b","
    file.write(b"}")


def _exports(data: bytes, view: _View) -> _View:
    """Return the part of an upstream's `run_exports.json` that is published.

    A package whose former bytes are served is left out: what the upstream says is true of the new ones.
    """
    head, sections, _ = repodata.split(data)
    wheels = view.index.wheels
    if WHEELS in sections:
        sections[WHEELS] = {key: raw for key, raw in sections[WHEELS].items() if key in wheels}
    packages, former = view.index.packages, view.former.packages
    listed = Index(repodata.local_head(head)[0], sections, {}, wheels)
    return _View(listed, lambda name: name in packages and name not in former and view.keep(name), Index({}, {}, {}))
