#!/usr/bin/python
"""Say where the installed configuration has the mirror, and whether a given folder may take its place."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule  # type: ignore[import-untyped]  # Ansible ships no types

DOCUMENTATION = """
---
module: conda_mirror_data
short_description: Say where the mirror is and how much room it has, and change nothing
options:
  config_file:
    description: The engine's configuration that the role wrote.
    type: path
    required: true
  working_dir:
    description: Folder that the mirror is to be in.
    type: path
    default: /nonexistent
author:
  - lanmirror
"""

EXAMPLES = """
- name: Look where the mirror is
  conda_mirror_data:
    config_file: /etc/lanmirror/conda_mirror.yml
    working_dir: /srv/mirror/conda
  register: __conda_mirror_data
"""

RETURN = """
installed:
  description: Folder of the mirror by the installed configuration, empty where there is none.
  type: str
  returned: always
lost:
  description: Whether C(installed) has a mirror and C(working_dir) has none.
  type: bool
  returned: always
mounted:
  description: Whether a file system of its own is mounted at C(working_dir).
  type: bool
  returned: always
file_system:
  description: Where the file system is mounted that C(working_dir) is on or will be on.
  type: str
  returned: always
free_gib:
  description: Free space of that file system, GiB.
  type: float
  returned: always
"""

# What the engine makes in its folder.
PARTS = ("pkgs", "cloud", "miniconda", "archive")


def working_dir(config: Path) -> str:
    """Return the folder that a configuration of the role's names; empty where there is none."""
    try:
        found = re.search(r"(?m)^working_dir:\s*['\"]?(.+?)['\"]?\s*$", config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    return found[1] if found else ""


def mirrors(folder: Path) -> bool:
    """Return whether a folder has something of a mirror."""
    return any((folder / part).is_dir() and any((folder / part).iterdir()) for part in PARTS)


def existing(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "config_file": {"type": "path", "required": True},
            "working_dir": {"type": "path", "default": "/nonexistent"},
        },
        supports_check_mode=True,
    )
    installed, new = working_dir(Path(module.params["config_file"])), Path(module.params["working_dir"])
    place = existing(new)
    module.exit_json(
        changed=False,
        installed=installed,
        lost=bool(installed) and mirrors(Path(installed)) and not mirrors(new),
        mounted=new.is_mount(),
        file_system=str(next(path for path in (place.resolve(), *place.resolve().parents) if os.path.ismount(path))),
        free_gib=shutil.disk_usage(place).free / (1 << 30),
    )


if __name__ == "__main__":
    main()
