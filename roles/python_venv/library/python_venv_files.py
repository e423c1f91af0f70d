#!/usr/bin/python
"""Write a program's own source files beside its venvs, for the distribution's Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from ansible.module_utils import lanmirror_tree as trees
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
---
module: python_venv_files
short_description: Write a program's own source files into a folder, and have a link name it
description:
  - They stand in C(LINK-HASH), compiled, so that all of them change at the same moment, and a file that was renamed
    leaves nothing behind.
  - The files that the link named before stay until the next change, for a program that is just starting; older ones go.
options:
  link:
    description: The link.
    type: path
    required: true
  files:
    description: Text of the source files by path.
    type: dict
    required: true
author:
  - lanmirror
"""

EXAMPLES = """
- name: Install a tool
  python_venv_files:
    link: /opt/tool/src
    files: {tool.py: "print(1)\n"}
"""

RETURN = ""

PYTHON = "/usr/bin/python3"


def run(words: list[str], environment: Mapping[str, str]) -> None:
    """Run a command; OSError when it fails."""
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=dict(environment), cwd="/")  # noqa: S603 - no word of it comes from outside
    if done.returncode:
        raise OSError(f"{' '.join(words[:4])} failed: {(done.stdout or done.stderr).strip()[-300:]}")


def install(tree: trees.Tree, *, dry: bool) -> list[str]:
    """Make what is missing; return what was done, or would be, a line each."""
    done: list[str] = []
    trees.open_parents(tree.link.parent, dry, done)
    if tree.stands:
        return done
    done.append(f"{tree.folder}: {len(tree.files)} source files")
    if not dry:
        before = tree.link.resolve()
        tree.write(run, PYTHON)
        for old in tree.others():
            if old != before:
                shutil.rmtree(old)
    return done


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"link": {"type": "path", "required": True}, "files": {"type": "dict", "required": True}},
        supports_check_mode=True,
    )
    os.umask(trees.UMASK)
    files = module.params["files"]
    try:
        done = install(trees.Tree(Path(module.params["link"]), files), dry=module.check_mode)
    except (trees.TreeError, OSError) as error:
        module.fail_json(msg=str(error), invocation={})
    module.exit_json(
        changed=bool(done),
        diff={"prepared": "".join(f"{line}\n" for line in done)},
        # Not the source files, of which there are many.
        invocation={"module_args": {"link": module.params["link"], "files": sorted(files)}},
    )


if __name__ == "__main__":
    main()
