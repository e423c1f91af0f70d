#!/usr/bin/python
"""Write files and folders of a host in one run of a module, where a task for each would start Python for each."""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
---
module: host_files
short_description: Write files and folders of a host, and take files out, in one run
description:
  - All files pass their own checks before the first of anything is written.
  - Each file is written beside its place, and then takes it. Owner and mode are as said here, whatever root's umask.
options:
  files:
    description: Files and folders, in the order in which they are written.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Its absolute path. A folder may be a link to one.
        type: path
        required: true
      state:
        description: What it is to be. C(absent) is as in O(absent).
        type: str
        choices: [file, directory, absent]
        default: file
      content:
        description: What the file is to have.
        type: str
        default: ""
      once:
        description: Whether a file that is there keeps its content.
        type: bool
        default: false
      owner:
        description: Name of the owner. Empty, it is the one that it has, and root's if it is new.
        type: str
        default: root
      group:
        description: Name of the group.
        type: str
        default: root
      mode:
        description: The permissions, in octal digits. By default C(0644), and C(0755) of a folder.
        type: str
      validate:
        description: A command that takes the new file in the place of C(%s), and fails if it is wrong.
        type: str
        default: ""
      shown:
        description: Whether a diff shows the content.
        type: bool
        default: true
  absent:
    description: Files and links that are taken out when the others are written. A folder is refused.
    type: list
    elements: path
    default: []
  check:
    description:
      - A program that tests all that changes together, where a file of the one version may refer to what only the other
        has. It takes the path and the new file of each, C(/dev/null) for what goes.
    type: path
    default: ""
notes:
  - Parents of a folder that are missing are root's, and open to all.
author:
  - lanmirror
"""

EXAMPLES = """
- name: Write the configuration
  host_files:
    files:
      - {path: /etc/tool, state: directory}
      - {path: /etc/tool/tool.conf, content: "{{ lookup('ansible.builtin.template', 'tool.conf.j2') }}", mode: "0640"}
  notify: Restart the tool
"""

RETURN = """
paths:
  description: What changes.
  type: list
  elements: str
  returned: always
made:
  description: Those of C(paths) that were not there. In check mode, what comes after cannot use them.
  type: list
  elements: str
  returned: always
"""

MODES = {"file": 0o644, "directory": 0o755}
UMASK = 0o022


class WrongError(Exception):
    """A file cannot be as it is wanted; the message names it."""


@dataclass(frozen=True)
class Wanted:
    """A file or folder as it is to be; the fields are the options of the module."""

    path: Path
    state: str
    content: str = ""
    once: bool = False
    owner: str = "root"
    group: str = "root"
    mode: int = 0
    validate: str = ""
    shown: bool = True

    @property
    def is_there(self) -> bool:
        """Whether something stands at the path, be it a link to nothing."""
        return os.path.lexists(self.path)

    def text(self) -> str | None:
        """Return the text that is to be written, None where it is right already."""
        if self.state != "file" or (self.once and self.is_there):
            return None
        try:
            is_right = self.path.read_bytes() == self.content.encode()
        except FileNotFoundError:
            is_right = False
        return None if is_right else self.content

    def rights(self) -> str:
        """Return owner, group and permissions that are wanted, as `seen` does."""
        owner = self.owner or (_user(self.path.stat().st_uid) if self.path.exists() else "root")
        return f"{owner}:{self.group} {self.mode:04o}"

    def seen(self) -> str:
        """Return owner, group and permissions of what is there."""
        found = self.path.stat()
        return f"{_user(found.st_uid)}:{_group(found.st_gid)} {found.st_mode & 0o7777:04o}"

    def changes(self) -> bool:
        """Whether anything has to be done."""
        if self.state == "absent":
            return self.is_there
        return self.text() is not None or not self.path.exists() or self.seen() != self.rights()

    def problem(self) -> str:
        """Return why it cannot be as it is wanted, "" if it can."""
        if self.path.is_dir() and self.state != "directory":
            return f"{self.path} is a folder, where a file is meant; move it away"
        if self.state == "directory" and self.is_there and not self.path.is_dir():
            return f"{self.path} is no folder, where one is meant; move it away"
        return ""


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def wanted_of(files: list[dict[str, Any]]) -> list[Wanted]:
    """Return what the options of the module ask for."""
    return [
        Wanted(
            **{
                **one,
                "path": Path(one["path"]),
                "mode": int(one["mode"], 8) if one["mode"] else MODES.get(one["state"], 0),
            }
        )
        for one in files
    ]


def check(module: AnsibleModule, changing: Sequence[Wanted], program: str) -> None:
    """Have new files pass their own checks, and all that changes that of `program`."""
    with tempfile.TemporaryDirectory(dir=module.tmpdir) as scratch:
        pairs: list[str] = []
        for number, one in enumerate(changing):
            text, new = one.text(), Path(scratch) / str(number)
            if text is not None:
                new.write_text(text)
                pairs += [str(one.path), str(new)]
                if one.validate:
                    command = [word.replace("%s", str(new)) for word in shlex.split(one.validate)]
                    _pass(module, command, str(one.path))
            elif one.state == "absent":
                pairs += [str(one.path), os.devnull]
        if program and pairs:
            _pass(module, [program, *pairs], ", ".join(pairs[::2]))


def _pass(module: AnsibleModule, command: Sequence[str], names: str) -> None:
    """Run the check of some files."""
    code, said, wrong = module.run_command(command)
    if code != 0:
        raise WrongError(f"{names} would be wrong: {(wrong or said).strip()}")


def write(one: Wanted) -> None:
    """Have a file or folder as it is wanted."""
    if one.state == "absent":
        one.path.unlink()
        return
    try:
        # -1 leaves it as it is, which for a new one is root's.
        rights = pwd.getpwnam(one.owner).pw_uid if one.owner else -1, grp.getgrnam(one.group).gr_gid
    except KeyError as error:
        raise WrongError(f"{one.path} is to be {one.rights()}: {error.args[0]}") from error
    text = one.text()
    if text is not None:
        _replace(one, text, *rights)
        return
    if one.state == "directory":
        one.path.mkdir(parents=True, exist_ok=True)
    os.chown(one.path, *rights)
    # After it, since a new owner takes some permissions away.
    one.path.chmod(one.mode)


def _replace(one: Wanted, text: str, owner: int, group: int) -> None:
    """Write a file beside its place, with its rights from the start, and have it take the place."""
    descriptor, name = tempfile.mkstemp(dir=one.path.parent, prefix=f".{one.path.name}-")
    try:
        with os.fdopen(descriptor, "w") as file:
            os.fchown(descriptor, owner, group)
            os.fchmod(descriptor, one.mode)
            file.write(text)
        Path(name).replace(one.path)
    except BaseException:
        Path(name).unlink()
        raise


def difference(one: Wanted) -> dict[str, str]:
    """Return what a diff shows of something that changes: the content or, where that is right or hidden, the rights."""
    text = "" if one.state == "absent" else one.text()
    if text is not None and one.shown:
        before, after = one.path.read_text(errors="replace") if one.path.is_file() else "", text
    else:
        before = f"{one.seen()}\n" if one.path.exists() else ""
        after = "" if one.state == "absent" else f"{one.rights()}\n"
    shown = {"before_header": str(one.path), "after_header": str(one.path), "before": before, "after": after}
    return shown if before != after else {}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "state": {"type": "str", "choices": ["file", "directory", "absent"], "default": "file"},
                    "content": {"type": "str", "default": ""},
                    "once": {"type": "bool", "default": False},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                    "mode": {"type": "str"},
                    "validate": {"type": "str", "default": ""},
                    "shown": {"type": "bool", "default": True},
                },
            },
            "absent": {"type": "list", "elements": "path", "default": []},
            "check": {"type": "path", "default": ""},
        },
        supports_check_mode=True,
    )
    os.umask(UMASK)
    files = wanted_of(module.params["files"]) + [
        Wanted(Path(path), "absent", shown=False) for path in module.params["absent"]
    ]
    # Not the contents, some of which are secrets.
    invocation = {"module_args": {"files": [str(one.path) for one in files]}}
    try:
        for problem in filter(None, (one.problem() for one in files)):
            raise WrongError(problem)
        changing = [one for one in files if one.changes()]
        made = [str(one.path) for one in changing if not one.is_there]
        diff = [shown for one in changing if (shown := difference(one))]
        if not module.check_mode:
            check(module, changing, module.params["check"])
            for one in changing:
                write(one)
    except (OSError, WrongError) as error:
        module.fail_json(msg=str(error), invocation=invocation)
    paths = [str(one.path) for one in changing]
    module.exit_json(changed=bool(paths), paths=paths, made=made, diff=diff, invocation=invocation)


if __name__ == "__main__":
    main()
