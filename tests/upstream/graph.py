"""Channels of thousands of tiny packages that depend on each other, laid out in seconds.

Real archives, which clients install. Names that labs know stand on top of crowds of others: some versions do not go
together, some builds want a GPU, and some names are in both channels.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.upstream import channel

FORGE, MAIN = "cloud/conda-forge", "pkgs/main"
PYTHONS = ("3.10.14", "3.11.9", "3.12.4")
DAY = 86_400_000


@dataclass(frozen=True)
class Node:
    """A package: where it is, and its record; `build` may name a Python."""

    channel: str
    subdir: str
    name: str
    version: str
    build: str = "h0_0"
    depends: tuple[str, ...] = ()
    size: int = 0
    age_days: int = 100

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.version}-{self.build}.tar.bz2"


def write(root: Path, nodes: Sequence[Node]) -> None:
    """Write the archives and the indexes of channels."""
    records: dict[str, dict[str, Any]] = {}
    for node in nodes:
        record: dict[str, Any] = {
            "name": node.name, "version": node.version, "build": node.build, "build_number": 0,
            "depends": list(node.depends), "subdir": node.subdir, "license": "Apache-2.0",
            "timestamp": channel.MADE * 1000 - node.age_days * DAY,
        }  # fmt: skip
        if node.subdir == "noarch":
            record["noarch"] = "generic"
        data = _archive(record, node.size)
        folder = root / node.channel / node.subdir
        folder.mkdir(parents=True, exist_ok=True)
        (folder / node.file_name).write_bytes(data)
        records.setdefault(f"{node.channel}/{node.subdir}", {})[node.file_name] = {
            **record, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(),
            "md5": hashlib.md5(data).hexdigest(),
        }  # fmt: skip
    for path, found in records.items():
        folder = root / path
        info = {"info": {"subdir": folder.name}, "packages": found, "packages.conda": {}, "repodata_version": 1}
        (folder / "repodata.json").write_text(json.dumps(info))
        channel.add_formats(folder)


def _archive(record: dict[str, Any], size: int) -> bytes:
    """Return a package that puts one file into the environment."""
    target, text = f"conda-meta-of-tests/{record['name']}", f"{record['version']} {record['build']}\n".encode()
    text += channel.noise(size, 1)
    paths = [{"_path": target, "path_type": "hardlink", "sha256": hashlib.sha256(text).hexdigest(),
              "size_in_bytes": len(text)}]  # fmt: skip
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:bz2", compresslevel=1) as archive:
        for name, data in (
            ("info/index.json", json.dumps(record).encode()),
            ("info/paths.json", json.dumps({"paths": paths, "paths_version": 1}).encode()),
            ("info/files", f"{target}\n".encode()),
            (target, text),
        ):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), channel.MADE
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def crowd(seed: int = 1, count: int = 700) -> list[Node]:
    """Return a crowd of libraries of linux-64, three versions of each, and of packages of noarch.

    Each depends on some before it. The newest version of every ninth library wants a library that is not there.
    """
    chance = random.Random(seed)
    found = []
    for number in range(count):
        for minor in range(3):
            below = chance.sample(range(max(0, number - 40), number), k=min(number, chance.randint(0, 3)))
            depends = tuple(f"lib{other:04} >=1.{chance.randint(0, minor)},<2" for other in below)
            if minor == 2 and number % 9 == 5:
                depends += ("lib-nobody-has >=1",)
            where = "noarch" if number % 7 == 3 else "linux-64"
            depends += ("__glibc >=2.17,<3.0.a0",) if where == "linux-64" else ()
            found.append(
                Node(FORGE, where, f"lib{number:04}", f"1.{minor}", depends=depends, age_days=300 - 100 * minor)
            )
    return found


def science() -> Iterator[Node]:
    """Yield what a scientific environment asks for by name, with what these need."""
    for version in PYTHONS:
        yield Node(
            FORGE, "linux-64", "python", version, depends=("lib0100 >=1.0", "lib0200 >=1.1", "openssl >=3.0,<4.0a0")
        )
    yield Node(FORGE, "linux-64", "openssl", "3.0.1", depends=("ca-certificates",))
    yield Node(FORGE, "linux-64", "openssl", "3.3.0", depends=("ca-certificates", "__unix"))
    yield Node(FORGE, "noarch", "ca-certificates", "2024.7.4")
    for version, pythons in (("1.24.4", PYTHONS[:2]), ("1.26.4", PYTHONS), ("2.0.0", PYTHONS[1:])):
        for python in pythons:
            tag, wants = _python(python)
            blas = "openblas >=0.3.20,<1" if version != "2.0.0" else "openblas >=0.3.27,<1"
            yield Node(FORGE, "linux-64", "numpy", version, f"{tag}_0", (wants, blas, "lib0300"), size=2000)
    for version in ("0.3.20", "0.3.27"):
        yield Node(FORGE, "linux-64", "openblas", version, depends=("lib0050 >=1.1", "__glibc >=2.17,<3.0.a0"))
    for python in PYTHONS:
        tag, wants = _python(python)
        numpy = "numpy >=1.24.4,<2"
        yield Node(FORGE, "linux-64", "scipy", "1.11.4", f"{tag}_0", (wants, numpy, "openblas", "lib0400"))
        yield Node(FORGE, "linux-64", "scipy", "1.14.0", f"{tag}_0", (wants, "numpy >=1.26.4,<3", "lib0410 >=1.1"))
        yield Node(FORGE, "linux-64", "pandas", "2.2.2", f"{tag}_0", (wants, numpy, "python-dateutil >=2.8", "pytz"))
        yield Node(FORGE, "linux-64", "torch", "2.3.0", f"cpu_{tag}_0", (wants, numpy, "lib0600"))
        yield Node(FORGE, "linux-64", "torch", "2.3.0", f"cuda_{tag}_1", (wants, numpy, "lib0600", "__cuda >=12"))
    yield Node(FORGE, "noarch", "python-dateutil", "2.9.0", "py_0", ("python >=3.7", "six >=1.5"))
    yield Node(FORGE, "noarch", "six", "1.16.0", "py_0", ("python",))
    yield Node(FORGE, "noarch", "pytz", "2024.1", "py_0", ("python >=3.6",))
    yield Node(FORGE, "noarch", "matplotlib", "3.9.1", "py_0", ("python >=3.9", "numpy >=1.23", "lib0500", "six"))
    yield Node(FORGE, "noarch", "jupyterlab", "4.2.3", "py_0", ("python >=3.8", "lib0520 >=1.1", "lib0610", "six"))
    # In both channels; the newer one stands in the other, and wants what that alone has.
    yield Node(MAIN, "linux-64", "six", "1.17.0", "py_0", ("python",))
    yield Node(MAIN, "linux-64", "mkl", "2024.1", depends=("intel-openmp >=2024",))
    yield Node(MAIN, "linux-64", "intel-openmp", "2024.1")
    yield Node(MAIN, "noarch", "tzdata", "2024a")


def _python(version: str) -> tuple[str, str]:
    major, minor, _ = version.split(".")
    return f"py{major}{minor}", f"python >={major}.{minor},<{major}.{int(minor) + 1}.0a0"


def lay_out(root: Path) -> list[Node]:
    """Lay out both channels; return what is in them."""
    nodes = [*crowd(), *science()]
    write(root, nodes)
    return nodes
