#!/usr/bin/python
"""Write files of Nginx together: all of them pass its check as one, or none takes its place."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
---
module: nginx_files
short_description: Write files below /etc/nginx together, after Nginx has tested the whole configuration with them
description:
  - Of two versions of a site, a file of the one may refer to what only the other has. So they change together.
  - A file without content is removed.
options:
  root:
    description: Where the paths of the files begin.
    type: path
    default: /etc/nginx
  files:
    description: The files, in the order in which they are written.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: The path of the file in C(root).
        type: str
        required: true
      content:
        description: What it is to have. Empty, the file is not to be there.
        type: str
        default: ""
  check:
    description: Program that takes a path and a new file for each that changes, C(/dev/null) for what goes.
    type: path
    required: true
author:
  - lanmirror
"""

EXAMPLES = """
- name: Write the site's files
  nginx_files:
    files:
      - {path: lanmirror/devpi/http.conf, content: "{{ lookup('ansible.builtin.template', 'http.conf.j2') }}"}
      - {path: lanmirror/devpi/vhost.conf, content: ""}
    check: /usr/local/libexec/lanmirror/nginx-check
"""

RETURN = """
paths:
  description: The files that change.
  type: list
  elements: str
  returned: always
"""

MODE = 0o644


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/etc/nginx"},
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "str", "required": True},
                    "content": {"type": "str", "default": ""},
                },
            },
            "check": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    folder = Path(module.params["root"])
    wanted = {folder / file["path"]: file["content"] for file in module.params["files"]}
    found = {path: path.read_text() if path.exists() else "" for path in wanted}
    # Who wrote a file by hand, or an interrupted run, may have left it with another owner or mode.
    right = {
        path: not path.exists() or (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) == (0, 0, MODE)
        for path in wanted
    }
    changed = {path: text for path, text in wanted.items() if found[path] != text or not right[path]}
    if changed and not module.check_mode:
        with tempfile.TemporaryDirectory(dir=module.tmpdir) as scratch:
            new = {path: Path(scratch) / str(number) for number, path in enumerate(changed)}
            for path, file in new.items():
                file.write_text(changed[path])
            pairs = [
                (str(path.relative_to(folder)), str(file) if changed[path] else os.devnull)
                for path, file in new.items()
            ]
            command = [module.params["check"], *(word for pair in pairs for word in pair)]
            code, said, wrong = module.run_command(command)
            if code != 0:
                names = ", ".join(path for path, _ in pairs)
                module.fail_json(msg=f"Nginx does not take {names}: {(wrong or said).strip()}")
            for path, file in new.items():
                if changed[path]:
                    module.atomic_move(str(file), str(path))
                    path.chmod(MODE)
                    os.chown(path, 0, 0)
                else:
                    path.unlink(missing_ok=True)
    module.exit_json(
        changed=bool(changed),
        paths=[str(path) for path in changed],
        diff=[
            {"before_header": str(path), "after_header": str(path), "before": found[path], "after": text}
            for path, text in changed.items()
        ],
    )


if __name__ == "__main__":
    main()
