#!/usr/bin/python
"""Say where devpi's installed configuration has its data, whether a given folder may take its place; or delete it."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
---
module: devpi_data
short_description: Say where devpi has its data, or delete it
description:
  - Reads the configuration that the role wrote, and the identity that devpi keeps beside its database.
  - Deletes only what devpi and its backups made, and then the folders if nothing else is in them.
options:
  conf_dir:
    description: Folder of the configuration that the role wrote.
    type: path
    required: true
  data_dir:
    description: Folder that devpi is to have its data in.
    type: path
    default: /nonexistent
  marks:
    description: Patterns of paths of which one is there when the role was ever installed.
    type: list
    elements: str
    default: []
  remove:
    description: Whether data and backups are deleted, uploaded packages included.
    type: bool
    default: false
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
role:
  description: What the data in C(data_dir) belongs to, C(primary) or C(replica), empty where there is none.
  type: str
  returned: always
problem:
  description: Why C(data_dir) may not take the place of C(installed), empty where it may.
  type: str
  returned: always
folders:
  description: Folders with data or backups, by the installed configuration.
  type: list
  elements: str
  returned: always
metrics:
  description: File of the metrics by the installed configuration, empty where there is none.
  type: str
  returned: always
present:
  description: Whether one of C(marks) is there.
  type: bool
  returned: always
left:
  description: Those of C(folders) that stay after C(remove), for files of others or as a mount point.
  type: list
  elements: str
  returned: always
mounted:
  description: Whether a file system of its own is mounted at C(data_dir).
  type: bool
  returned: always
"""

DATABASE = ".sqlite"
# What devpi, and lanmirror-devpi, make in the folder of the data and in that of the backups.
DATA = re.compile(r"\+files|\.sqlite(-.*)?|\.(nodeinfo|serverversion|event_serial|secret)(-tmp|\.new)?|\.lanmirror-.*")
BACKUP = re.compile(r"\.?devpi-\d{8}T\d{6}Z(\.tar|\.partial)?(\.new)?")


def setting(file: Path, key: str) -> str:
    """Return a path that a file of the role's sets, as `key: path` or `key = "path"`; empty where it does not."""
    try:
        found = re.search(rf'(?m)^ *{key} *[:=] *"?([^"\n]*?)"? *$', file.read_text(encoding="utf-8"))
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


def ours(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """Return what is devpi's in a folder."""
    return sorted(path for path in folder.iterdir() if names.fullmatch(path.name)) if folder.is_dir() else []


def delete(folder: Path, names: re.Pattern[str]) -> bool:
    """Delete what is devpi's in a folder, and the folder if it is empty then; return whether it is gone."""
    for path in ours(folder, names):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    place = folder.resolve()
    if any(place.iterdir()) or place.is_mount():
        if os.geteuid() == 0:
            # Its owner goes, and the next user that is made gets that number.
            os.chown(place, 0, 0)
        return False
    place.rmdir()
    if folder.is_symlink():
        folder.unlink()
    return True


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "conf_dir": {"type": "path", "required": True},
            "data_dir": {"type": "path", "default": "/nonexistent"},
            "marks": {"type": "list", "elements": "str", "default": []},
            "remove": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    conf, new = Path(module.params["conf_dir"]), Path(module.params["data_dir"])
    installed = setting(conf / "devpi-server.yml", "serverdir")
    # Before its own settings had one file, the role had two.
    backups = setting(conf / "lanmirror.toml", "backups") or setting(conf / "life.toml", "backups")
    kinds = {installed: DATA, backups: BACKUP}
    folders = {Path(folder): names for folder, names in kinds.items() if folder and ours(Path(folder), names)}
    result = {
        "installed": installed,
        "metrics": setting(conf / "lanmirror.toml", "metrics") or setting(conf / "watch.ini", "metrics"),
        "present": any(any(Path("/").glob(mark.lstrip("/"))) for mark in module.params["marks"]),
        "folders": [str(folder) for folder in folders],
        "role": node(new).get("role", ""),
        "problem": problem(Path(installed), new) if installed else "",
        "mounted": new.is_mount(),
    }
    remove = module.params["remove"]
    gone = [folder for folder, names in folders.items() if remove and (module.check_mode or delete(folder, names))]
    left = [str(folder) for folder in folders if folder not in gone]
    module.exit_json(changed=remove and bool(folders), left=left, **result)


if __name__ == "__main__":
    main()
