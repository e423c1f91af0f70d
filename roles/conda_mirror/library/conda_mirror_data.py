#!/usr/bin/python
"""Say where the installed configuration has the mirror, whether a given folder may take its place; or delete it."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
---
module: conda_mirror_data
short_description: Say where the mirror is and how much room it has, or delete it
description:
  - Deletes only what the engine made, then the folder and those above it as far as they are empty and not at the root.
options:
  config_file:
    description: The engine's configuration that the role wrote.
    type: path
    required: true
  site_file:
    description: What the role has told Nginx of packages on demand.
    type: path
    default: /nonexistent
  cache_dir:
    description: Folder of that cache by the variables of now.
    type: path
    default: /nonexistent
  working_dir:
    description: Folder that the mirror is to be in.
    type: path
    default: /nonexistent
  keep:
    description: Paths of files and folders that the engine reads.
    type: list
    elements: path
    default: []
  marks:
    description: Paths of which one is there when the role was ever installed.
    type: list
    elements: path
    default: []
  remove:
    description: Whether the mirror is deleted.
    type: bool
    default: false
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
present:
  description: Whether one of C(marks) is there.
  type: bool
  returned: always
metrics:
  description: File of the metrics by the installed configuration, empty where there is none.
  type: str
  returned: always
cache:
  description: >-
    Folder of the cache of packages on demand that Nginx was told of; empty where there is none, and where a mirror is
    in it.
  type: str
  returned: always
caches:
  description: C(cache) and C(cache_dir), but for those in which a mirror is.
  type: list
  returned: always
folder:
  description: Folder of C(installed) if it has a mirror, else empty.
  type: str
  returned: always
left:
  description: C(installed) where that folder stays; with C(remove), for files of others or as a mount point.
  type: str
  returned: always
lost:
  description: Whether C(installed) has a mirror and C(working_dir) has none.
  type: bool
  returned: always
absent:
  description: Those of C(keep) that are not there.
  type: list
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

# What the engine makes in its folder, beside the folders of installers from elsewhere.
PARTS = ("pkgs", "cloud", "miniconda", "archive")
LISTING = re.compile(r"installers-([A-Za-z0-9][A-Za-z0-9._-]*)\.json")
INSTALLER = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)/[^/]+")


def setting(config: Path, key: str) -> str:
    """Return a path that a configuration of the role's names; empty where it does not."""
    try:
        found = re.search(rf"(?m)^{key}: *['\"]?(.*?)['\"]? *$", config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    return found[1] if found else ""


def cache(site: Path) -> str:
    """Return the folder of the cache that Nginx was told of, whose last name is the role's own; empty for none."""
    try:
        found = re.search(r"(?m)^proxy_cache_path (/\S+/lanmirror-conda)/kept ", site.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    return found[1] if found else ""


def disposable(folders: list[str], *keep: Path) -> list[str]:
    """Return those folders in which none of the others is, under whatever name."""
    kept = {place for path in keep for place in (path.resolve(), *path.resolve().parents)}
    return [folder for folder in dict.fromkeys(folders) if folder and Path(folder).resolve() not in kept]


def parts(folder: Path) -> list[Path]:
    """Return the folders that the engine makes, by what it wrote down of its installers."""
    try:
        known = json.loads((folder / ".lanmirror/installers.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    names = [match[1] for match in map(INSTALLER.fullmatch, known if isinstance(known, dict) else {}) if match]
    # Those of which it has a page alone.
    names += [match[1] for file in folder.glob(".lanmirror/public/*") if (match := LISTING.fullmatch(file.name))]
    made = [folder / name for name in dict.fromkeys([*PARTS, *names])]
    # Twice is better where root deletes: whatever was written down, nothing but a folder right below this one.
    return [path for path in made if path.parent == folder and path.name not in {"", ".", ".."}]


def mirrors(folder: Path) -> bool:
    """Return whether a folder has something of a mirror."""
    return any(part.is_dir() and any(part.iterdir()) for part in parts(folder))


def delete(folder: Path) -> bool:
    """Delete what the engine made in its folder, and the folder if it is empty then; return whether it is gone."""
    for path in (*parts(folder), *folder.glob(".lanmirror*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    place = folder.resolve()
    if any(place.iterdir()) or place.is_mount():
        if os.geteuid() == 0:
            # Its owner goes, and the next user that is made gets that number.
            os.chown(place, 0, 0)
        return False
    place.rmdir()
    if folder.is_symlink():
        folder.unlink()
    for parent in folder.parents[:-2]:
        if parent.is_symlink() or parent.is_mount() or any(parent.iterdir()):
            break
        parent.rmdir()
    return True


def existing(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "config_file": {"type": "path", "required": True},
            "site_file": {"type": "path", "default": "/nonexistent"},
            "cache_dir": {"type": "path", "default": "/nonexistent"},
            "working_dir": {"type": "path", "default": "/nonexistent"},
            "keep": {"type": "list", "elements": "path", "default": []},
            "marks": {"type": "list", "elements": "path", "default": []},
            "remove": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    config, new = Path(module.params["config_file"]), Path(module.params["working_dir"])
    installed = setting(config, "working_dir")
    place = existing(new)
    folder = Path(installed or "/nonexistent")
    found = mirrors(folder)
    told = cache(Path(module.params["site_file"]))
    # What has a mirror in it is not Nginx's alone.
    caches = disposable([told, module.params["cache_dir"]], folder, new)
    result = {
        "installed": installed,
        "present": any(Path(mark).exists() for mark in module.params["marks"]),
        "metrics": setting(config, "metrics_file"),
        "cache": told if told in caches else "",
        "caches": caches,
        "folder": str(folder) if found else "",
        "lost": found and not mirrors(new),
        "absent": [path for path in module.params["keep"] if not Path(path).exists()],
        "mounted": new.is_mount(),
        "file_system": str(next(path for path in (place.resolve(), *place.resolve().parents) if path.is_mount())),
        "free_gib": shutil.disk_usage(place).free / (1 << 30),
    }
    remove = module.params["remove"] and folder.is_dir()
    gone = remove and (module.check_mode or delete(folder))
    module.exit_json(changed=remove, left=str(folder) if folder.is_dir() and not gone else "", **result)


if __name__ == "__main__":
    main()
