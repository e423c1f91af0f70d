"""Real Conda packages, and the channels that hold them, in the layout of the official server."""

from __future__ import annotations

import asyncio
import bz2
import hashlib
import io
import json
import random
import shutil
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import zstandard
from conda_package_streaming.create import conda_builder
from rattler.index import index_fs

from . import pages

# Packages of the tests are all made at one moment, so that two builds differ only where they should.
MADE = 1_700_000_000


@dataclass(frozen=True)
class Spec:
    """A package to build.

    Attributes:
        files: what it installs: path in the environment to bytes; those below `bin/` are executable.
        noarch: `generic` or `python` for a package of `noarch`, None otherwise.
    """

    name: str
    version: str = "1.0"
    build: str = "0"
    subdir: str = "noarch"
    depends: tuple[str, ...] = ()
    extension: Literal[".conda", ".tar.bz2"] = ".conda"
    files: Mapping[str, bytes] = field(default_factory=dict)
    noarch: Literal["generic", "python"] | None = None

    @property
    def file_name(self) -> str:
        """The name of the archive."""
        return f"{self.name}-{self.version}-{self.build}{self.extension}"


def build(spec: Spec, channel: Path) -> Path:
    """Build a package into its subdir of a channel and return the archive."""
    folder = channel / spec.subdir
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / spec.file_name
    target.unlink(missing_ok=True)
    paths = [
        {
            "_path": name,
            "path_type": "hardlink",
            "sha256": hashlib.sha256(data).hexdigest(),
            "size_in_bytes": len(data),
        }
        for name, data in spec.files.items()
    ]
    info = {
        "info/index.json": json.dumps(_index_json(spec), indent=2).encode(),
        "info/paths.json": json.dumps({"paths": paths, "paths_version": 1}, indent=2).encode(),
        "info/files": "".join(f"{name}\n" for name in spec.files).encode(),
        "info/about.json": json.dumps({"summary": f"{spec.name}, a package of the tests"}).encode(),
    }
    if spec.extension == ".conda":
        stem = spec.file_name.removesuffix(".conda")
        with conda_builder(stem, folder, compression_level=3) as archive:
            _fill(archive, {**info, **spec.files})
    else:
        with tarfile.open(target, "w:bz2") as archive:
            _fill(archive, {**info, **spec.files})
    return target


def _index_json(spec: Spec) -> dict[str, Any]:
    platform, _, machine = spec.subdir.partition("-")
    index: dict[str, Any] = {
        "name": spec.name,
        "version": spec.version,
        "build": spec.build,
        "build_number": 0,
        "depends": list(spec.depends),
        "subdir": spec.subdir,
        "arch": {"64": "x86_64", "32": "x86"}.get(machine, machine) or None,
        "platform": platform if machine else None,
        "license": "Apache-2.0",
        "timestamp": MADE * 1000,
    }
    if spec.subdir == "noarch":
        index["noarch"] = spec.noarch or "generic"
    return index


def _fill(archive: tarfile.TarFile, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        member = tarfile.TarInfo(name)
        member.size, member.mtime = len(data), MADE
        member.mode = 0o755 if name.startswith("bin/") else 0o644
        archive.addfile(member, io.BytesIO(data))


def index(channel: Path) -> None:
    """Index every subdir of a channel as the official server has it.

    `repodata.json`, `.zst` and the shards come from py-rattler; `.bz2` and `current_repodata.json` (the newest
    version of each package) are added, since no tool on PyPI makes them.
    """
    (channel / "noarch").mkdir(parents=True, exist_ok=True)
    asyncio.run(index_fs(channel, write_zst=True, write_shards=True, force=True))
    for file in channel.glob("*/repodata.json"):
        add_formats(file.parent)


def add_formats(subdir: Path) -> None:
    """Write the forms of an index that follow from its `repodata.json`, in place of those that are there."""
    data = (subdir / "repodata.json").read_bytes()
    (subdir / "repodata.json.zst").write_bytes(zstandard.compress(data, 3))
    (subdir / "repodata.json.bz2").write_bytes(bz2.compress(data))
    repodata = json.loads(data)
    newest: dict[str, tuple[tuple[str, str], str, str]] = {}
    for section in ("packages", "packages.conda"):
        for name, record in repodata[section].items():
            # Tests make odd records, of which any field may be anything.
            key, package = (str(record.get("version")), section), str(record.get("name"))
            if package not in newest or key > newest[package][0]:
                newest[package] = (key, section, name)
    current: dict[str, Any] = {**repodata, "packages": {}, "packages.conda": {}}
    for _, section, name in newest.values():
        current[section][name] = repodata[section][name]
    (subdir / "current_repodata.json").write_text(json.dumps(current))


def pack(file: Path) -> None:
    """Write the compressed forms of a `repodata.json`, whatever its bytes are."""
    data = file.read_bytes()
    file.with_name(f"{file.name}.zst").write_bytes(zstandard.compress(data, 3))
    file.with_name(f"{file.name}.bz2").write_bytes(bz2.compress(data))


def edit(subdir: Path, change: Mapping[str, Any] | None = None, /, **top: Any) -> None:
    """Change an index by hand, in all its forms: records by file name (None takes one out), top-level keys."""
    file = subdir / "repodata.json"
    repodata = json.loads(file.read_bytes())
    for name, record in (change or {}).items():
        section = "packages.conda" if name.endswith(".conda") else "packages"
        if record is None:
            del repodata[section][name]
        else:
            repodata[section][name] = {**repodata[section].get(name, {}), **record}
    file.write_text(json.dumps({**repodata, **top}))
    add_formats(subdir)


def publish(channel: Path, *specs: Spec) -> list[str]:
    """Build packages into a channel that is indexed already and add them to its indexes; return their file names.

    Faster than `index`, and it leaves alone what was edited by hand. Shards are not made anew.
    """
    added: dict[str, dict[str, Any]] = {}
    for spec in specs:
        data = build(spec, channel).read_bytes()
        added.setdefault(spec.subdir, {})[spec.file_name] = {
            **_index_json(spec),
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "md5": hashlib.md5(data).hexdigest(),
        }
    for subdir, records in added.items():
        edit(channel / subdir, records)
    return [spec.file_name for spec in specs]


def retract(channel: Path, subdir: str, *file_names: str) -> None:
    """Take packages out of a channel and out of its indexes."""
    edit(channel / subdir, dict.fromkeys(file_names))
    for name in file_names:
        (channel / subdir / name).unlink()


def noise(size: int, seed: int) -> bytes:
    """Return bytes that do not compress, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def hello(subdir: str, version: str = "1.0") -> Spec:
    """Return a package that runs: it prints what its dependency `hello-data` brought."""
    script = b'#!/bin/sh\nexec cat "$(dirname "$0")/../share/hello/greeting"\n'
    if subdir.startswith("win-"):
        return Spec("hello", version, subdir=subdir, depends=("hello-data",), files={"Scripts/hello.bat": b"echo"})
    return Spec("hello", version, subdir=subdir, depends=("hello-data >=1",), files={"bin/hello": script})


def greeting(text: str = "hello from the mirror", version: str = "1.0") -> Spec:
    """Return the dependency of `hello`, a package for every platform."""
    data = {"share/hello/greeting": f"{text}\n".encode()}
    return Spec("hello-data", version, extension=".tar.bz2", files=data)


def crowd(subdir: str, count: int, *, prefix: str = "lib", low: int = 500, high: int = 3000) -> list[Spec]:
    """Return many small packages, the first of each ten in the old format, each depending on the one before."""
    return [
        Spec(
            f"{prefix}{number:04}",
            f"1.{number % 5}",
            subdir=subdir,
            depends=(f"{prefix}{number - 1:04}",) if number else (),
            extension=".conda" if number % 10 else ".tar.bz2",
            files={
                f"share/{prefix}{number:04}": noise(random.Random(number).randint(low, high), number),
            },
        )
        for number in range(count)
    ]


def lay_out(root: Path, *, size: int = 12) -> None:
    """Lay out an upstream as the official server and the public mirrors of it do.

    `pkgs/{main,r,msys2}`, `cloud/conda-forge`, `miniconda/` with the official page, `archive/` with none, so
    that the server lists it. A channel has no `noarch` folder only where the real one has none (`free`).

    Args:
        root: where; emptied first.
        size: how many small packages `pkgs/main/linux-64` has beside those with a meaning.
    """
    shutil.rmtree(root, ignore_errors=True)
    main: Sequence[Spec] = (
        greeting(),
        hello("linux-64"),
        hello("win-64"),
        Spec("tool", "2.0", subdir="linux-64", depends=("lib0003", "hello-data"), files={"share/tool": b"tool"}),
        Spec("unwanted", "1.0", subdir="linux-64", files={"share/unwanted": b"not here"}),
        *crowd("linux-64", size),
        *crowd("win-64", max(2, size // 4)),
    )
    for spec in main:
        build(spec, root / "pkgs/main")
    index(root / "pkgs/main")
    for spec in (Spec("r-base", "4.4", subdir="linux-64"), Spec("r-base", "4.4", subdir="win-64")):
        build(spec, root / "pkgs/r")
    index(root / "pkgs/r")
    build(Spec("m2-bash", "5.2", subdir="win-64", extension=".tar.bz2"), root / "pkgs/msys2")
    index(root / "pkgs/msys2")
    build(Spec("old", "0.9", subdir="linux-64", extension=".tar.bz2"), root / "pkgs/free")
    index(root / "pkgs/free")
    shutil.rmtree(root / "pkgs/free/noarch")
    forge = root / "cloud/conda-forge"
    for spec in (greeting("hello from the cloud", "2.0"), hello("linux-64", "2.0"), *crowd("linux-64", 4, prefix="cf")):
        build(spec, forge)
    index(forge)

    for dist, names in (
        ("miniconda", ("Miniconda3-latest-Linux-x86_64.sh", "Miniconda3-latest-Windows-x86_64.exe")),
        ("archive", ("Anaconda3-2025.06-1-Linux-x86_64.sh", "Anaconda3-2025.06-1-MacOSX-arm64.pkg")),
    ):
        folder = root / dist
        folder.mkdir(parents=True)
        for number, name in enumerate(names):
            (folder / name).write_bytes(b"#!/bin/sh\necho installer\n" + noise(20_000, number))
    files = sorted((root / "miniconda").iterdir())
    (root / "miniconda/index.html").write_text(pages.official("Miniconda installer archive", files))


def main(arguments: Sequence[str]) -> int:
    """Lay out an upstream in the folder that is given."""
    if len(arguments) != 1:
        print("usage: python -m tests.upstream.channel DIR", file=sys.stderr)
        return 2
    began = time.monotonic()
    lay_out(Path(arguments[0]))
    print(f"{arguments[0]}: laid out in {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
