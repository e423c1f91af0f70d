"""The bytes of a file, from where they come: the code by itself, in the venv of devpi."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from pathlib import Path
from typing import Any

from tests.devpi.conftest import FILES, Upstream
from tests.devpi.origin import LONG, Origin, noise, paused


def run(venv: Path, program: str, *arguments: str) -> Any:
    """Return what a program prints as JSON."""
    told = subprocess.run(
        [str(venv / "bin" / "python"), "-c", program, *arguments],
        env={"PYTHONPATH": str(FILES / "plugin"), "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        check=True,
        timeout=LONG,
    )
    return json.loads(told.stdout)


def test_who_may_begin_late_may_not_fall_silent(venv_of_devpi: Path, upstream: Upstream) -> None:
    """As a primary that waits for somebody else's download, and then goes away."""
    content, never = noise(1 << 20), threading.Event()
    origin = Origin(upstream, "six-1.0.tar.gz", content)
    origin.script = [paused(300_000, never)]
    program = """
import hashlib, httpx, json, sys
from lanmirror_devpi.sources import Upstream
source = Upstream(httpx.Client(), sys.argv[1], name="six", size=None, checked=True, silence=0.3, patience=3600)
source.open()
print(json.dumps(hashlib.sha256(b"".join(source)).hexdigest()))
"""
    assert run(venv_of_devpi, program, f"{upstream.url}/files/six-1.0.tar.gz") == hashlib.sha256(content).hexdigest()
    assert len(origin.asked) == 2
    never.set()


def test_parts_are_read_as_the_standard_says(venv_of_devpi: Path) -> None:
    program = """
import json
from lanmirror_devpi.answers import Part, is_asked_for, is_small, part_of
whole, mib = 100 << 20, 1 << 20
print(json.dumps({
    "parts": [part_of(header) and [part_of(header).first, part_of(header).count] for header in (
        None, "", "bytes=0-", "bytes=5-9", "bytes=-7", "bytes=9-5", "bytes=-", "bytes=0-1,5-6", "lines=1-2")],
    "small": [is_small(Part(*part), size) for part, size in (
        ((0, mib), whole), ((None, 16 * mib), whole), ((None, 16 * mib + 1), whole), ((0, 60), 100), ((0, 50), 100),
        ((0, 49), 100), ((90, None), 100), ((90, None), None), ((None, 9), None), ((None, 0), 100),
        ((200, None), 100))],
    "asked": [is_asked_for(Part(*part), *given) for part, given in (
        ((5, 5), (5, 9, 100)), ((5, 5), (5, 8, 100)), ((5, 500), (5, 99, 100)), ((None, 9), (91, 99, 100)),
        ((None, 9), (0, 99, 100)), ((None, 900), (0, 99, 100)), ((90, None), (90, 99, 100)),
        ((90, None), (0, 99, 100)))],
}))
"""
    assert run(venv_of_devpi, program) == {
        "parts": [None, None, [0, None], [5, 5], [None, 7], None, None, None, None],
        "small": [True, True, False, False, False, True, True, False, True, False, False],
        "asked": [True, False, True, True, False, True, True, False],
    }
