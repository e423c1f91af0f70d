"""Whole syncs from an upstream that answers at random: statuses, headers, forms, hangs, records, pages.

Whatever it does, a run ends in time and without a traceback, says "in sync" only where the mirror has what the upstream
has, and leaves no index that names what is not served. What its first line prints repeats a sequence:

    LANMIRROR_FUZZ_SEED=7 LANMIRROR_FUZZ_SECONDS=600 pytest tests/engine/test_whole_fuzz.py
"""

from __future__ import annotations

import bz2
import fnmatch
import gzip
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.engine.lab import Engine, Lab, laboratory
from tests.engine.test_edges import READABLE, UNREADABLE
from tests.upstream import channel, server

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("LANMIRROR_FUZZ_SECONDS", "30"))
# The same upstreams in each run of the suite; a run by hand has other ones with another seed.
SEED = int(os.environ.get("LANMIRROR_FUZZ_SEED", "20261129"))
# What stalls at every request takes its time, and is none that hangs.
PATIENCE = 180.0
# Runs from one upstream before it is laid out anew.
RUNS = 6
SUBDIRS = ("pkgs/main/linux-64", "pkgs/main/noarch", "cloud/conda-forge/linux-64", "cloud/conda-forge/noarch")
STATUSES = (
    200,
    204,
    206,
    301,
    302,
    304,
    400,
    401,
    403,
    404,
    405,
    407,
    408,
    410,
    416,
    418,
    429,
    451,
    500,
    501,
    502,
    503,
    504,
    599,
)
TEXTS = (
    "",
    "0",
    "-1",
    "9" * 400,
    "9" * 5000,
    "gzip",
    "bytes 0-1/2",
    "bytes */5",
    "\xff\xfe",
    'W/"x"',
    '"x"',
    "http://[",
    "/",
    "Tue, 14 Nov 2023 22:13:20 +99999999999999999999",
    "Tue, 14 Nov 2023 22:13:20 GMT",
    "identity",
    "close",
    "text/html",
)
HEADERS = (
    "ETag",
    "Last-Modified",
    "Content-Length",
    "Content-Range",
    "Content-Encoding",
    "Content-Type",
    "Retry-After",
    "Location",
    "Accept-Ranges",
    "Connection",
    "Transfer-Encoding",
    "Date",
    "Vary",
)
BODIES = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"<html>no</html>",
    b"\x28\xb5\x2f\xfd",
    b"BZh9",
    b"\x1f\x8b",
    b'{"packages": 1}',
    b'{"packages": {}, "packages.conda": {}}',
    b"\xff" * 100,
    zstandard.compress(b"{}"),
    gzip.compress(b"{}"),
)
FORMS = (".zst", ".bz2", "")
NOT_MODIFIED = 304
# Answers that may mean that there is no such thing, and bodies of indexes that name no package.
DENIALS = (400, 402, 403, 404, 405, 406, 409, 410, 451, 500, 501)
EMPTY = (b"{}", BODIES[9], zstandard.compress(b"{}"), gzip.compress(b"{}"))
FIELDS: list[dict[str, Any]] = [
    *UNREADABLE,
    *READABLE,
    {"sha256": "0" * 64},
    {"size": 1},
    {"name": "other"},
    {"url": "http://x/y"},
]


class Chaos:
    """Makes an upstream misbehave, each time in another way."""

    def __init__(self, lab: Lab, dice: random.Random) -> None:
        self._lab = lab
        self._dice = dice
        self._count = 0
        # Packages of which a record was made odd, and may be left out.
        self.odd: set[str] = set()
        # What went on in the last step, for who has to understand a failure.
        self.told: list[str] = []

    def step(self) -> None:
        """Change the upstream, and what goes wrong with it."""
        self.told.clear()
        self._lab.upstream.faults.clear()
        for _ in range(self._dice.choice((0, 1, 1, 2, 4))):
            pattern, fault = self._pattern(), self._fault()
            # Nothing tells of one byte of an index that it is another: that is for TLS to see to.
            fault.corrupt &= pattern.endswith((".conda", ".tar.bz2"))
            self.told.append(f"{pattern}: {fault}"[:300])
            self._lab.upstream.faults[pattern] = fault
        for _ in range(self._dice.choice((0, 0, 1, 2))):
            change: Callable[[], None] = self._dice.choice(
                (self._new_package, self._odd_record, self._lost_package, self._lost_form, self._odd_info, self._shrunk)
            )
            self.told.append(change.__name__)
            change()
        self._lab.settings |= {
            "jobs": self._dice.choice((1, 2, 4, 16)), "exclude": self._dice.choice(([], [], ["unwanted"], ["lib*"])),
            "delete_grace_hours": self._dice.choice((0, 24)),
        }  # fmt: skip

    def heal(self) -> None:
        """Let the upstream be well again: its faults are over, what it has is what it says."""
        self._lab.upstream.faults.clear()

    def _pattern(self) -> str:
        names = (
            "*.conda",
            "*.tar.bz2",
            "*.zst",
            "*.bz2",
            "*repodata*",
            "*",
            "*/lib000*",
            "*/channeldata.json",
            "*/repodata.json",
            "/miniconda/*",
            "*/noarch/*",
            "/cloud/*",
            "*/run_exports*",
            "*/hello*",
        )
        name = self._dice.choice(names)
        return (
            f"/{self._dice.choice(SUBDIRS)}/{name[2:]}" if name.startswith("*/") and self._dice.random() < 0.5 else name
        )

    def _fault(self) -> server.Fault:
        dice = self._dice
        fault = server.Fault(times=dice.choice((1, 2, 5, float("inf"))), method=dice.choice(("*", "*", "GET", "HEAD")))
        for _ in range(dice.choice((1, 1, 2))):
            match dice.randrange(10):
                case 0 | 1:
                    fault.status = dice.choice(STATUSES)
                case 2 | 3:
                    header = dice.choice(HEADERS)
                    fault.headers = {**fault.headers, header: dice.choice((None, *TEXTS))}
                case 4:
                    fault.body = dice.choice(BODIES)
                case 5:
                    fault.cut = dice.choice((0, 1, 50, 2000))
                case 6:
                    fault.corrupt = True
                case 7:
                    fault.drop = True
                case 8:
                    fault.stall, fault.stall_at = dice.choice((0.3, 3.0)), dice.choice((0, 10))
                case 9:
                    fault.length = dice.choice((0, 1, 10**5, 10**12))
        return fault

    def _index(self) -> Path:
        return self._lab.tree / self._dice.choice(SUBDIRS)

    def _edit(self, records: dict[str, Any] | None = None, **top: Any) -> None:
        folder = self._index()
        try:
            channel.edit(folder, records, **top)
        except (KeyError, ValueError, OSError):  # it was damaged already
            shutil.copy2(self._lab.folder / "genuine" / folder.relative_to(self._lab.tree) / "repodata.json", folder)

    def _new_package(self) -> None:
        self._count += 1
        folder = self._index()
        spec = channel.Spec(f"fresh{self._count}", subdir=folder.name, files={"x": self._dice.randbytes(500)})
        try:
            channel.publish(folder.parent, spec)
        except (KeyError, ValueError, OSError):
            return

    def _names(self, folder: Path) -> list[str]:
        return sorted(file.name for file in folder.iterdir() if file.name.endswith((".conda", ".tar.bz2")))

    def _odd_record(self) -> None:
        folder = self._index()
        names = self._names(folder)
        if names:
            name, fields = self._dice.choice(names), self._dice.choice(FIELDS)
            self.told.append(f"{name}: {fields}")
            self.odd.add(f"{folder.relative_to(self._lab.tree)}/{name}")
            try:
                channel.edit(folder, {name: fields})
            except (KeyError, ValueError, OSError):
                return

    def _lost_package(self) -> None:
        names = self._names(folder := self._index())
        if names:
            (folder / self._dice.choice(names)).unlink()

    def _lost_form(self) -> None:
        forms = sorted(self._index().glob("*repodata*"))
        if len(forms) > 1:
            self._dice.choice(forms).unlink()

    def _odd_info(self) -> None:
        values = (
            "http://[",
            "http://elsewhere.invalid/",
            "\xe4",
            5,
            None,
            {"base": "../x"},
            ["../y"],
            "../conda-forge",
        )
        key = self._dice.choice(("base_url", "channel_relations", "subdir", "x", "shards_base_url"))
        self._edit(info={"subdir": "linux-64", key: self._dice.choice(values)})

    def _shrunk(self) -> None:
        self._edit(packages={}, **{"packages.conda": {}})


@pytest.fixture
def fresh(engine: Engine, built: Path, tmp_path: Path) -> Callable[[int], Iterator[Lab]]:
    """Return what makes a lab for a sequence of runs."""

    def make(number: int) -> Iterator[Lab]:
        folder = tmp_path / str(number)
        folder.mkdir()
        with laboratory(engine, built, folder) as lab:
            lab.settings |= {
                "repos": ["main"], "cloud": ["conda-forge/noarch", "conda-forge/linux-64"], "timeout_seconds": 0.5,
                "retries": 1, "retry_wait_seconds": 0.02,
                "installers": {"dists": ["miniconda"], "suffixes": ["Linux-x86_64.sh"]},
            }  # fmt: skip
            shutil.copytree(lab.tree, lab.folder / "genuine")
            yield lab
        shutil.rmtree(folder)

    return make


def untrue(lab: Lab, chaos: Chaos, only: str) -> list[str]:
    """Return what a mirror that calls itself in sync has other than the upstream, as far as that could be told."""
    found = []
    for subdir in lab.subdirs:
        if fnmatch.fnmatchcase(subdir, only) and not could_be_misled(lab, subdir):
            ours = content(lab, lab.mirror / subdir / "repodata.json", chaos.odd)
            theirs = [content(lab, lab.tree / subdir / f"repodata.json{form}", chaos.odd) for form in FORMS]
            if ours not in [each for each in theirs if each is not None]:
                found.append(f"{subdir}: serves {ours}, the upstream has {theirs}")
    for file in (lab.tree / "miniconda").glob("*.sh") if only == "*" else ():
        if not (lab.mirror / "miniconda" / file.name).exists():
            found.append(f"{file.name}: is not here")
    return found


def could_be_misled(lab: Lab, subdir: str) -> bool:
    """Tell whether an upstream's answers about an index could be lies of which none can be told from the truth.

    It said that nothing changed; or it denied that it has packages, in one form, and no other form could be had surely.
    """
    sure, denied = False, False
    for form in FORMS:
        path = f"/{subdir}/repodata.json{form}"
        faults = [
            fault
            for pattern, fault in lab.upstream.faults.items()
            if fnmatch.fnmatchcase(path, pattern) and fault.method != "HEAD"
        ]
        if any(fault.status == NOT_MODIFIED for fault in faults):
            return True
        denied |= any(fault.status in DENIALS or fault.body in EMPTY for fault in faults)
        sure |= not faults and (lab.tree / path[1:]).exists()
    return denied and not sure


def content(lab: Lab, file: Path, odd: set[str]) -> dict[str, str] | None:
    """Return the hashes of the packages that an index names; None where it cannot be read.

    Left out are those that the settings exclude, and those of odd records, which may be left out or not.
    """
    try:
        data = file.read_bytes()
        if file.suffix == ".zst":
            data = zstandard.decompress(data)
        elif file.suffix == ".bz2":
            data = bz2.decompress(data)
        index = json.loads(data)
        records = {**index.get("packages", {}), **index.get("packages.conda", {})}
        path = file.parent.relative_to(lab.mirror if lab.mirror in file.parents else lab.tree)
        return {
            name: record.get("sha256") or record.get("md5")
            for name, record in records.items()
            if f"{path}/{name}" not in odd
            and not any(fnmatch.fnmatchcase(record["name"], pattern) for pattern in lab.settings["exclude"])
        }
    except (OSError, ValueError, AttributeError, TypeError, EOFError, zstandard.ZstdError):
        return None


def test_whatever_an_upstream_does(fresh: Callable[[int], Iterator[Lab]], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nLANMIRROR_FUZZ_SEED={SEED} LANMIRROR_FUZZ_SECONDS={SECONDS:g}")
    end, number, runs, codes = time.monotonic() + SECONDS, 0, 0, dict[int, int]()
    while number == 0 or time.monotonic() < end:
        dice = random.Random(SEED + number)
        for lab in fresh(number):
            chaos = Chaos(lab, dice)
            for _ in range(RUNS):
                if runs and time.monotonic() >= end:
                    break
                chaos.step()
                arguments = dice.choice(
                    ((), (), ("--delete",), ("--only", "pkgs/*"), ("--max-delete", "100"), ("--accept-older",))
                )
                run = lab.start(*arguments).wait(PATIENCE)
                runs += 1
                codes[run.code] = codes.get(run.code, 0) + 1
                context = f"seed {SEED}, sequence {number}: {chaos.told}\n{run.log}"
                assert run.code in (0, 1, 4, 5), context
                assert "fault of the program" not in run.log, context
                assert lab.problems() == [], context
                told = json.loads((lab.mirror / ".lanmirror/public/status.json").read_bytes())
                assert told["run"]["result"] != "running", context
                if run.code == 0:
                    assert untrue(lab, chaos, "pkgs/*" if "--only" in arguments else "*") == [], context
                if dice.random() < 0.2:
                    verify = lab.sync("verify", *dice.choice(((), ("--repair",))))
                    assert verify.code in (0, 1), verify.log
                    assert lab.problems() == [], verify.log
            chaos.heal()
            lab.settings |= {"exclude": [], "timeout_seconds": 5}
            last = lab.sync("--max-delete", "100", "--accept-older")
            assert last.code in (0, 1, 5), f"seed {SEED}, sequence {number}: {last.log}"
            assert lab.problems() == []
            assert last.code or untrue(lab, chaos, "*") == [], f"seed {SEED}, sequence {number}: {last.log}"
        number += 1
    with capsys.disabled():
        print(f"{runs} runs in {number} sequences, exit codes {dict(sorted(codes.items()))}")
