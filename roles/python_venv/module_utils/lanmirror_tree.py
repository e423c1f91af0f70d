"""A program's own source files in a folder that is named by their content, and a link that names the folder."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

# Of everybody, in a folder.
READ_AND_ENTER, ENTER = 0o005, 0o001
# Modes are the same whatever that of root is.
UMASK = 0o022


class TreeError(Exception):
    """Something cannot be done; the message says what, and what to do."""


@dataclass(frozen=True)
class Tree:
    """The files as they are to be."""

    link: Path
    files: Mapping[str, str]
    """Text by path."""

    @property
    def folder(self) -> Path:
        """Where they stand, beside the link."""
        text = json.dumps(sorted(self.files.items()))
        return self.link.with_name(f"{self.link.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}")

    @property
    def stands(self) -> bool:
        """Whether all is as it is to be."""
        named = self.link.is_symlink() and str(self.link.readlink()) == self.folder.name
        return named and is_intact(self.folder, self.files)

    def write(self, run: Callable[[list[str], Mapping[str, str]], None], python: str) -> None:
        """Write the files, compile them, and have the link name them.

        Raises:
            TreeError: A path leads out of the folder.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        for name, text in self.files.items():
            path = self.folder / name
            if not path.resolve().is_relative_to(self.folder):
                raise TreeError(f"{name} leads out of the folder of the source files")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        # The users who run them cannot write here, and would compile them anew each time.
        run([python, "-m", "compileall", "-q", str(self.folder)], {"PATH": "/usr/bin:/bin"})
        point(self.link, Path(self.folder.name))

    def others(self) -> list[Path]:
        """Return the folders of other files that the link named."""
        pattern = re.compile(rf"{re.escape(self.link.name)}-[0-9a-f]{{12}}")
        return [
            path
            for path in sorted(self.link.parent.glob(f"{self.link.name}-*"))
            if pattern.fullmatch(path.name) and path != self.folder
        ]


def is_intact(tree: Path, files: Mapping[str, str]) -> bool:
    """Return whether a folder holds these files and no other, but for what was compiled from them."""
    found = {
        str(path.relative_to(tree)): path.read_text(encoding="utf-8", errors="replace")
        for path in tree.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return found == dict(files)


def point(link: Path, target: Path) -> None:
    """Have a link name something, at one moment."""
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)


def open_parents(prefix: Path, dry: bool, done: list[str]) -> None:
    """Make the folder of the venvs, which everybody may enter, as its parents.

    Raises:
        TreeError: A folder that is not ours is closed.
    """
    for folder in (*reversed(prefix.parents), prefix):
        if not folder.exists():
            if not dry:
                folder.mkdir(mode=0o755)
            continue
        mode = stat.S_IMODE(folder.stat().st_mode)
        needed = READ_AND_ENTER if folder == prefix else ENTER
        if mode & needed == needed:
            continue
        # /opt and what is above it belong to the system and its administrator.
        if len(folder.parts) <= 2:  # noqa: PLR2004 - the root and a name
            raise TreeError(
                f"{folder} is closed ({mode:04o}), and the users of {prefix} must pass through it: chmod o+x {folder}"
            )
        done.append(f"{folder}: mode {mode:04o} -> 0755")
        if not dry:
            folder.chmod(0o755)
