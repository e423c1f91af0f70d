"""Run a command and return its cost; the command of a client of many files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# A run that takes longer is ended, and counts as failed.
LIMIT_SECONDS = 1800


@dataclass(frozen=True)
class Cost:
    """The cost of one run; see `bench/common/measure.py`."""

    code: int
    late: bool
    began: float
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def measure(command: Sequence[str], place: Sequence[str], scratch: Path, limit: float = LIMIT_SECONDS) -> Cost:
    """Run a command and return its cost; its output is in `scratch/output`.

    Args:
        command: the command.
        place: the command before it, which runs it in a namespace.
        scratch: where the output and the result go.
        limit: in seconds.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    result = scratch / "cost.json"
    launcher = Path(__file__).with_name("measure.py")
    with (scratch / "output").open("wb") as output:
        whole = [*place, sys.executable, "-I", "-S", str(launcher), str(result), str(limit), *command]
        subprocess.run(whole, stdout=output, stderr=subprocess.STDOUT, check=True)
    return Cost(**json.loads(result.read_bytes()))


def problem(cost: Cost) -> str:
    """Return the fault of a run's end. Empty: none."""
    if cost.late:
        return f"ended after {cost.seconds:.0f} s"
    return f"exit code {cost.code}" if cost.code else ""


def curl_files(files: Mapping[str, Path], jobs: int, scratch: Path) -> list[str]:
    """Return a command line of curl, which checks nothing.

    Args:
        files: where each URL's file goes.
        jobs: how many connections at a time.
        scratch: a folder for the list of them.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    config = scratch / "curl.config"
    config.write_text("".join(f'url = "{url}"\noutput = "{file}"\n' for url, file in files.items()))
    parallel = ["--parallel", "--parallel-max", str(jobs)] if jobs > 1 else []
    return ["curl", "--silent", "--show-error", "--fail", "--create-dirs", *parallel, "--config", str(config)]
