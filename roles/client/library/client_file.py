#!/usr/bin/python
"""Read, write or remove one settings file, as the user whose file it is."""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule  # type: ignore[import-untyped]  # Ansible ships no types

DOCUMENTATION = """
---
module: client_file
short_description: Read, write or remove one settings file as its user
description:
  - With a user, everything happens with that user's rights (root gives its own up meanwhile), so that links in a home
    directory lead nowhere the user could not go. A file that is a link is written where it leads.
  - Writes go to a temporary file beside the target, which then takes its place.
options:
  path:
    description: Absolute path; a leading C(~/) is the home of O(user).
    type: str
    required: true
  user:
    description: Login name, or empty for the user that the module runs as.
    type: str
    default: ""
  state:
    description: Give the content back, write it, or remove the file.
    type: str
    choices: [read, present, absent]
    default: present
  content:
    description: The whole text of the file, for C(state=present).
    type: str
    default: ""
author:
  - lanmirror
"""

EXAMPLES = """
- name: Write the pip configuration of a user
  client_file:
    path: ~/.config/pip/pip.conf
    user: alice
    content: "{{ text }}"
"""

RETURN = """
path:
  description: The file, with its links followed.
  type: str
  returned: always
content:
  description: The text, or null when there is no such file.
  type: str
  returned: for state read
problem:
  description: Why the file cannot be read, or an empty string.
  type: str
  returned: for state read
"""


@contextmanager
def acting_as(user: str) -> Iterator[None]:
    """Have a user's rights instead of root's, and no more; for no name, go on as who we are."""
    entry = pwd.getpwnam(user) if user else None
    if entry is None or os.geteuid() != 0 or entry.pw_uid == 0:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    os.initgroups(user, entry.pw_gid)
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    try:
        yield
    finally:
        # Ansible's own answer needs root again: its libraries are in an archive that only root reads.
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def locate(path: str, user: str) -> Path:
    """Give the file that is meant, links followed."""
    if user:
        path = str(Path(pwd.getpwnam(user).pw_dir) / path.removeprefix("~/"))
    return Path(os.path.realpath(path))


def read(path: Path) -> str | None:
    """Return the file's text, or None when there is none."""
    try:
        return path.read_bytes().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None


def write(path: Path, text: str) -> None:
    """Replace the file at once; a new one is 0644, an old one keeps its mode and, for root, its owner."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        old = path.stat()
    except FileNotFoundError:
        old = None
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".lanmirror-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(text.encode("utf-8"))
            stream.flush()
            os.fsync(stream.fileno())
        if old is not None and os.geteuid() == 0:
            os.chown(temporary, old.st_uid, old.st_gid)
        temporary.chmod(stat.S_IMODE(old.st_mode) if old is not None else 0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "str", "required": True},
            "user": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["read", "present", "absent"], "default": "present"},
            "content": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    path, user, state = (module.params[name] for name in ("path", "user", "state"))
    after = module.params["content"] if state == "present" else None
    shown = path.replace("~", "~" + user, 1) if user else path
    before, target, problem = None, None, ""
    os.umask(0o022)
    try:
        with acting_as(user):
            target = locate(path, user)
            before = read(target)
            if state != "read" and before != after and not module.check_mode:
                if after is None:
                    target.unlink()
                else:
                    write(target, after)
    except UnicodeDecodeError:
        problem = f"{target}: it is not UTF-8 text"
    except (OSError, KeyError) as error:
        problem = f"{target or shown}: {getattr(error, 'strerror', None) or error}"

    if state == "read":
        module.exit_json(changed=False, path=str(target or shown), content=before, problem=problem)
    if problem:
        module.fail_json(msg=problem)
    module.exit_json(
        changed=before != after,
        path=str(target),
        diff={
            "before": before or "",
            "after": after or "",
            "before_header": str(target),
            "after_header": str(target),
        },
    )


if __name__ == "__main__":
    main()
