"""Start a benchmark's command line where its requirements are: those of the tests, which `make` puts into .venv."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

PYTHON = Path(__file__).resolve().parent.parent / ".venv" / "bin" / "python"


def start(module: str) -> int:
    """Run the `main` of a module with the command line's arguments, in .venv where this Python lacks something."""
    try:
        command = import_module(module)
    except ModuleNotFoundError as error:
        if not PYTHON.exists() or Path(sys.prefix) == PYTHON.parent.parent:
            raise SystemExit(
                f"{error}; `make unit` makes the environment that this needs, {PYTHON.parent.parent}"
            ) from error
        os.execv(PYTHON, [str(PYTHON), *sys.argv])
    return int(command.main(sys.argv[1:]))
