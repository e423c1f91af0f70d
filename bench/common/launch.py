"""Start a benchmark's command line where its requirements are: those of the tests, which `make` puts into .venv."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

PYTHON = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "python"


def start(package: str) -> int:
    """Run a package's `command.main` with this command line, in .venv where this Python lacks a requirement."""
    try:
        command = import_module(f"{package}.command")
    except ModuleNotFoundError as error:
        if not PYTHON.exists() or Path(sys.prefix) == PYTHON.parent.parent:
            raise SystemExit(
                f"{error}; `make unit` makes the environment that this needs, {PYTHON.parent.parent}"
            ) from error
        os.execv(PYTHON, [str(PYTHON), "-m", package, *sys.argv[1:]])
    return int(command.main(sys.argv[1:]))
