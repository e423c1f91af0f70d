"""Print the state of a machine as JSON: files by path, packages, units and sockets.

    python3 snapshot.py FOLDER...

A file is its type, mode, owner and group, and the sha256 of its content or the target of the link.
"""

from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import sys
from pathlib import Path


def entry(path: Path) -> str:
    """Describe a file, a folder or a link."""
    state = path.lstat()
    content = ""
    if stat.S_ISLNK(state.st_mode):
        content = str(path.readlink())
    elif stat.S_ISREG(state.st_mode):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{stat.filemode(state.st_mode)} {state.st_uid}:{state.st_gid} {content}"


def printed(*command: str) -> list[str]:
    """Give the lines that a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def main(folders: list[str]) -> None:
    """Print everything."""
    paths = [path for folder in folders for path in (Path(folder), *Path(folder).rglob("*"))]
    packages = printed("dpkg-query", "--show", "--showformat", "${Package} ${Version} ${db:Status-Abbrev}\n")
    units = [row.split() for row in printed("systemctl", "list-unit-files", "--no-legend")]
    sockets = [row.split() for row in printed("ss", "-Hltn")]
    print(
        json.dumps(
            {
                "files": {str(path): entry(path) for path in paths},
                "packages": sorted(packages),
                "units": sorted(f"{unit} {state}" for unit, state, *_ in units),
                "sockets": sorted({row[3] for row in sockets}),
                "failed": printed("systemctl", "list-units", "--failed", "--no-legend", "--plain"),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
