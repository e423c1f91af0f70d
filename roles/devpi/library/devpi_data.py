#!/usr/bin/python
"""Say where devpi's installed configuration has its data, and whether a given folder may take its place."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule  # type: ignore[import-untyped]  # Ansible ships no types

DOCUMENTATION = """
---
module: devpi_data
short_description: Say where devpi has its data, and change nothing
description:
  - Reads the configuration that the role wrote, and the identity that devpi keeps beside its database.
options:
  conf_dir:
    description: Folder of the configuration that the role wrote.
    type: path
    required: true
  data_dir:
    description: Folder that devpi is to have its data in.
    type: path
    default: /nonexistent
author:
  - lanmirror
"""

EXAMPLES = """
- name: Look where devpi has its data
  devpi_data:
    conf_dir: /etc/devpi
    data_dir: /srv/devpi
  register: __devpi_data
"""

RETURN = """
installed:
  description: Folder of the data by the installed configuration, empty where there is none.
  type: str
  returned: always
backups:
  description: Folder of the backups by the installed configuration, empty where there is none.
  type: str
  returned: always
role:
  description: What the data in C(data_dir) belongs to, C(primary) or C(replica), empty where there is none.
  type: str
  returned: always
problem:
  description: Why C(data_dir) may not take the place of C(installed), empty where it may.
  type: str
  returned: always
mounted:
  description: Whether a file system of its own is mounted at C(data_dir).
  type: bool
  returned: always
"""

DATABASE = ".sqlite"


def setting(file: Path, key: str) -> str:
    """Return a path that a file of the role's sets, as `key: path` or `key = "path"`; empty where it does not."""
    try:
        found = re.search(rf'(?m)^\s*{key}\s*[:=]\s*"?([^"\n]*?)"?\s*$', file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    return found[1] if found else ""


def node(folder: Path) -> dict[str, str]:
    """Return what devpi knows itself by, and its role; empty where the folder has no data of devpi's."""
    try:
        known: dict[str, str] = json.loads((folder / ".nodeinfo").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return known if (folder / DATABASE).exists() else {}


def changed(folder: Path) -> float:
    """Return when devpi's database was last written."""
    return max(
        file.stat().st_mtime for file in folder.glob(f"{DATABASE}*") if file.name in {DATABASE, f"{DATABASE}-wal"}
    )


def problem(old: Path, new: Path) -> str:
    """Return why data in `old` would be lost if devpi had `new` for it; empty where it would not."""
    was, is_now = node(old), node(new)
    if not was or old.resolve() == new.resolve():
        return ""
    if not is_now:
        return f"{new} has none"
    if was.get("uuid") != is_now.get("uuid"):
        return f"{new} has the data of another devpi"
    # Copies of a folder keep its times. Whole seconds: a copy may keep no more.
    if int(changed(new)) < int(changed(old)):
        return f"{new} has an older copy of it"
    return ""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "conf_dir": {"type": "path", "required": True},
            "data_dir": {"type": "path", "default": "/nonexistent"},
        },
        supports_check_mode=True,
    )
    conf, new = Path(module.params["conf_dir"]), Path(module.params["data_dir"])
    installed = setting(conf / "devpi-server.yml", "serverdir")
    module.exit_json(
        changed=False,
        installed=installed,
        backups=setting(conf / "life.toml", "backups"),
        role=node(new).get("role", ""),
        problem=problem(Path(installed), new) if installed else "",
        mounted=new.is_mount(),
    )


if __name__ == "__main__":
    main()
