"""The upstreams of the Conda benchmarks: channels of real packages, made once into a folder and used again.

Every index is true: each record has the size and the hashes of the file that its name leads to.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from tests.upstream import channel
from tests.upstream.channel import Spec

SUBDIR = "linux-64"
CHANNEL = "bench"
# How many packages of a large subdir share a name, as in conda-forge/linux-64.
BUILDS = 17
POOL = 500
MIB = 1 << 20


@dataclass(frozen=True)
class Channel:
    """A channel of one subdir that counts, `linux-64`.

    Attributes:
        tree: the name of its folder below the served one; the channel is `<tree>/bench`.
        folder: where the subdir's files are.
    """

    tree: str
    folder: Path

    def packages(self) -> dict[str, dict[str, Any]]:
        """Return the records of its index by file name."""
        repodata = json.loads((self.folder / "repodata.json").read_bytes())
        return {**repodata["packages"], **repodata["packages.conda"]}


def _made(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make a folder whole, unless it is there."""
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        print(f"making {folder.name} ...", flush=True)
        make(unfinished)
        unfinished.rename(folder)
    return folder


def built(www: Path, tree: str, specs: Callable[[], Iterable[Spec]]) -> Channel:
    """Return a channel of these packages, in a folder of that name below the served one."""

    def make(folder: Path) -> None:
        for spec in specs():
            channel.build(spec, folder / CHANNEL)
        channel.index(folder / CHANNEL)

    return Channel(tree, _made(www / tree, make) / CHANNEL / SUBDIR)


def small(www: Path, count: int) -> Channel:
    """Return a channel of packages of 20 to 200 KB, and some in `noarch`."""

    def specs() -> list[Spec]:
        return [
            *channel.crowd(SUBDIR, count, low=20_000, high=200_000),
            *channel.crowd("noarch", max(4, count // 10), prefix="any", low=20_000, high=200_000),
        ]

    return built(www, f"small-{count}", specs)


def large(www: Path, count: int, mib: int) -> Channel:
    """Return a channel of packages of `mib` MiB each."""

    def specs() -> Iterator[Spec]:
        for number in range(count):
            data = b"".join(channel.noise(MIB, number * mib + part) for part in range(mib))
            yield Spec(f"large{number}", subdir=SUBDIR, files={"share/large": data})

    return built(www, f"large-{count}x{mib}", specs)


def incomplete(folder: Path, records: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the fault of a tool's files, anywhere below the folder; every byte is checked. Empty: none."""
    found = {file.name: file for file in folder.rglob("*") if file.is_file()}
    bad = [f"{name} is missing" for name in records if name not in found]
    for name in records.keys() & found.keys():
        with found[name].open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != records[name]["sha256"]:
                bad.append(f"{name} is damaged, {found[name].stat().st_size} bytes")
    return f"{len(bad)} files missing or damaged: {bad[0]}" if bad else ""


# ---- many packages: an index of the size of the largest channels' ----------------------------------------


@dataclass(frozen=True)
class Many:
    """A subdir of very many packages of a few hundred distinct contents, and its index as it changes.

    Attributes:
        served: the channel; its folder holds the index of the version that was served last.
        versions: the folders of the index's versions, each in all the upstream's formats.
    """

    served: Channel
    versions: tuple[Path, ...]

    def serve(self, version: int) -> None:
        """Put a version of the index up, dated now."""
        for file in self.versions[version].iterdir():
            beside = self.served.folder / f"{file.name}.new"
            beside.unlink(missing_ok=True)
            os.utime(file)
            beside.hardlink_to(file)
            beside.replace(self.served.folder / file.name)


def pool(www: Path) -> Channel:
    """Return the packages whose bytes those of the large subdirs have."""
    return built(www.parent, "pool", lambda: channel.crowd(SUBDIR, POOL, prefix="pool"))


def many(www: Path, count: int, versions: int, *, patched: bool, placed: int | None = None) -> Many:
    """Return a subdir of `count` packages.

    Args:
        www: the served folder; the rest is kept beside it.
        count: how many packages.
        versions: how many versions of its index.
        patched: the change from one version to the next: the dependencies of a hundred records (a channel's
            repodata patch), or, where False, one package, of which a new build comes and the old one goes.
        placed: how many packages are there to be fetched; None: all that the index names.
    """
    contents = pool(www)
    tree = f"{'patched' if patched else 'changed'}-{count}-{versions}"

    def make_index(folder: Path) -> None:
        records = _records(contents.packages(), count)
        for version in range(versions):
            if version and patched:
                for name in list(records)[version :: max(versions, count // 100)]:
                    records[name]["depends"] = [*records[name]["depends"], f"patched >={version}"]
            elif version:
                name = list(records)[version * BUILDS]
                record = records.pop(name)
                new = f"{record['name']}-{record['version']}-new_1{name[name.rindex('.', 0, -4) :]}"
                records[new] = {**record, "build": "new_1", "build_number": 1}
            _write(folder / str(version), records)
        with ProcessPoolExecutor(os.cpu_count()) as workers:
            list(workers.map(channel.add_formats, sorted(folder.iterdir())))

    def make_files(folder: Path) -> None:
        subdir = folder / CHANNEL / SUBDIR
        subdir.mkdir(parents=True)
        for version in range(versions):
            link(contents, index / str(version), subdir, placed)

    index = _made(www.parent / "index" / tree, make_index)
    made = _made(www / (tree if placed is None else f"{tree}-{placed}"), make_files)
    served = Channel(made.name, made / CHANNEL / SUBDIR)
    return Many(served, tuple(index / str(version) for version in range(versions)))


def link(pool: Channel, index: Path, target: Path, count: int | None = None) -> None:
    """Put the packages of an index, or the first `count`, in place: links to those of the pool with the same hash."""
    files = {record["sha256"]: pool.folder / name for name, record in pool.packages().items()}
    for name, record in islice(Channel("", index).packages().items(), count):
        if not (target / name).exists():
            (target / name).hardlink_to(files[record["sha256"]])


def _records(pool: dict[str, dict[str, Any]], count: int) -> dict[str, dict[str, Any]]:
    """Return records like those of conda-forge/linux-64, in length and in dependencies."""
    chance = random.Random(1)
    contents = list(pool.items())
    records = {}
    for number in range(count):
        file, record = contents[number % len(contents)]
        name = f"package-{number // BUILDS:05}"
        version, build = f"{1 + number % BUILDS}.{number % 7}.0", f"py3{8 + number % 6}h{number:07x}_0"
        extension = ".conda" if file.endswith(".conda") else ".tar.bz2"
        records[f"{name}-{version}-{build}{extension}"] = {
            **record,
            "name": name,
            "version": version,
            "build": build,
            "depends": [
                f"package-{chance.randrange(count // BUILDS + 1):05} >=1.{number % 9},<2.0a0"
                for _ in range(chance.randint(0, 4))
            ],
            "timestamp": record["timestamp"] + number,
        }
        records[f"{name}-{version}-{build}{extension}"].pop("indexed_timestamp", None)
    return records


def _write(folder: Path, records: dict[str, dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    old = {name: record for name, record in records.items() if name.endswith(".tar.bz2")}
    new = {name: record for name, record in records.items() if name.endswith(".conda")}
    repodata = {
        "info": {"subdir": SUBDIR},
        "packages": old,
        "packages.conda": new,
        "removed": [],
        "repodata_version": 1,
    }
    (folder / "repodata.json").write_bytes(msgspec.json.encode(repodata))


def differs(folder: Path, index: Path) -> str:
    """Return how a published index differs from the one in another folder. Empty: not at all."""
    repodata = json.loads((folder / "repodata.json").read_bytes())
    # conda-mirror puts all packages in one section, and adds keys to their records.
    served = {**repodata["packages"], **repodata.get("packages.conda", {})}
    wanted = Channel("", index).packages()
    strange = served.keys() ^ wanted.keys()
    strange |= {
        name
        for name in served.keys() & wanted.keys()
        if any(served[name][key] != wanted[name][key] for key in ("sha256", "size", "depends"))
    }
    return f"the index differs in {len(strange)} packages" if strange else ""
