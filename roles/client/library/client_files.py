#!/usr/bin/python
"""Read, survey and write the settings files of pip and conda, each as the user whose file it is."""

from __future__ import annotations

import errno
import json
import os
import pwd
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
---
module: client_files
short_description: Read, survey and write the settings files of pip and conda
description:
  - A user's file is read and written with that user's rights (root gives its own up meanwhile), so that links in a home
    directory lead nowhere the user could not go. A file that is a link is written where it leads.
  - Each file is written to a temporary file beside the target, which then takes its place.
options:
  state:
    description:
      - C(look) names the user that the module runs as, the users that are missing, and the pips of the machine.
      - C(find) names the users of /etc/passwd who have our lines in one of O(files), of which only the path counts.
      - C(read) returns the content of O(files), and of other files that the tools read.
      - C(write) writes or removes O(files), and goes on where one of them fails.
    type: str
    choices: [look, find, read, write]
    required: true
  users:
    description: Login names; for C(write) those whose own files are configured now.
    type: list
    elements: str
    default: []
  files:
    description: >-
      Mappings with C(key), C(path) (a leading C(~/) is the home of the user) and C(user) (empty for root); for C(write)
      also C(content) (null removes the file) and C(folders), how many empty parent folders go with a removed file.
    type: list
    elements: dict
    default: []
  servers:
    description: Host names; a line that sets a variable and names one of these is not reported.
    type: list
    elements: str
    default: []
  memory:
    description: The file in which root remembers the users whose own files are configured.
    type: str
    default: ""
author:
  - lanmirror
"""

EXAMPLES = """
- name: Write the pip configuration of a user
  client_files:
    state: write
    files:
      - {key: ~alice/.config/pip/pip.conf, user: alice, path: ~/.config/pip/pip.conf, content: "{{ text }}"}
"""

RETURN = """
root:
  description: Whether the module runs as root.
  type: bool
  returned: always
me:
  description: Login name of the user that the module runs as.
  type: str
  returned: always
missing:
  description: Those of O(users) that the machine does not have.
  type: list
  returned: for state look
pips:
  description: Paths and versions of the pips that every user of the machine has.
  type: list
  returned: for state look
hosts:
  description: The lines of /etc/hosts.
  type: list
  returned: for state look
roots:
  description: The names of the root certificates that the role added to the machine's.
  type: list
  returned: for state look
users:
  description: The users who have our lines, or whose own files are configured.
  type: list
  returned: for state find
files:
  description: >-
    For each of O(files) its C(key), real C(path), C(content) (null where there is none), how many C(folders) above it
    are missing, why it cannot be read (C(problem)), why it cannot be written (C(unwritable)), and whether its user or
    their home is C(gone).
  type: list
  returned: for state read
others:
  description: Other files of pip and conda, with C(tool), C(user), C(path) and C(content).
  type: list
  returned: for state read
variables:
  description: Lines that set a variable of pip or conda, with C(tool), C(path), C(line) and C(name); never the value.
  type: list
  returned: for state read
pips_of_users:
  description: Paths and versions of the pips in home directories.
  type: list
  returned: for state read
problems:
  description: Files that could not be written, and why.
  type: list
  returned: for state write
"""

MARK = "# lanmirror: begin"
PROBE = 65536
LARGEST = 1 << 20

HOSTS = Path("/etc/hosts")
ROOTS = "/usr/local/share/ca-certificates/lanmirror-*.crt"
# Where conda looks in one folder, in this order; those of condarc.d are sorted by their names.
_CONDARC = (".condarc", "condarc", "condarc.d/*.yml", "condarc.d/*.yaml")
# Files that the tools read, by rank: a higher one counts more. "~/" is each user's home.
OTHERS: dict[str, dict[str, int]] = {
    "pip": {"/etc/xdg/pip/pip.conf": 0, "/etc/pip.conf": 1, "~/.pip/pip.conf": 2, "~/.config/pip/pip.conf": 3},
    "conda": {
        **{f"/etc/conda/{name}": rank for rank, name in enumerate(_CONDARC)},
        **{f"/var/lib/conda/{name}": 10 + rank for rank, name in enumerate(_CONDARC)},
        "/etc/conda/.mambarc": 14,
        **{f"~/.config/conda/{name}": 30 + rank for rank, name in enumerate(_CONDARC)},
        **{f"~/.conda/{name}": 40 + rank for rank, name in enumerate(_CONDARC)},
        "~/.condarc": 50,
        "~/.mambarc": 51,
    },
}
# Of conda's installation, and of a virtual environment for pip.
RANK_INSTALLATION, RANK_ENVIRONMENT = 20, 60
INSTALLATIONS = ("/opt/*", "/usr/local/*", "~/*")
# Files that set the variables of a session.
SESSIONS = (
    *(
        "/etc/environment",
        "/etc/environment.d/*.conf",
        "/etc/security/pam_env.conf",
        "/etc/profile",
        "/etc/profile.d/*",
    ),
    *("/etc/bash.bashrc", "/etc/zsh/zshenv", "/etc/zsh/zprofile", "/etc/zsh/zshrc", "~/.pam_environment", "~/.profile"),
    *("~/.bash_profile", "~/.bash_login", "~/.bashrc", "~/.bash_aliases", "~/.zshenv", "~/.zprofile", "~/.zshrc"),
    *("~/.config/environment.d/*.conf", "~/.config/fish/config.fish", "~/.config/fish/conf.d/*.fish"),
)
_VARIABLE = re.compile(
    r"(?<![\w${])(?P<name>(?P<pip>PIP_(?:INDEX_URL|PYPI_URL|EXTRA_INDEX_URL|NO_INDEX|TRUSTED_HOST|CERT|CONFIG_FILE))"
    r"|CONDARC|MAMBARC|CONDA_(?:CHANNELS|CHANNEL_ALIAS|DEFAULT_CHANNELS|CUSTOM_CHANNELS|CUSTOM_MULTICHANNELS|SSL_VERIFY))"
    r"[\s=]"
)
# pips that every user of the machine has; the wheels are those that new virtual environments get.
PIPS = (
    "/usr/lib/python3/dist-packages/pip-*.dist-info",
    "/usr/lib/python3*/site-packages/pip-*.dist-info",
    "/usr/local/lib/python3*/*-packages/pip-*.dist-info",
    "/usr/share/python-wheels/pip-*.whl",
    "/usr/lib/python3*/ensurepip/_bundled/pip-*.whl",
    "/opt/*/lib/python3*/site-packages/pip-*.dist-info",
)
# "*" stands for names with a leading dot as well.
PIPS_OF_USERS = (
    "~/*/lib/python3*/site-packages/pip-*.dist-info",
    "~/.virtualenvs/*/lib/python3*/site-packages/pip-*.dist-info",
)
_PIP_VERSION = re.compile(r"pip-(\d+(?:\.\d+)*)")
_PERSON = re.compile(r"(?P<name>[^:]+):[^:]*:(?P<number>\d+):.*:(?!.*/(?:nologin|false|sync|halt|shutdown)$)[^:]*")
_PEOPLE = range(1000, 65534)


class NoHomeError(OSError):
    """A user has no home directory."""


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


def home(user: str) -> Path:
    """Return a user's home directory.

    Raises:
        NoHomeError: there is no such directory.
    """
    folder = Path(pwd.getpwnam(user).pw_dir)
    if not folder.is_dir():
        raise NoHomeError(f"the home of {user} is {folder}, which is no directory")
    return folder


def locate(path: str, user: str) -> Path:
    """Return the file that is meant, links followed."""
    return Path(os.path.realpath(home(user) / path.removeprefix("~/") if user else path))


def read(path: Path) -> str | None:
    """Return the file's text, or None when there is none."""
    try:
        return path.read_bytes().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None


def missing_folders(path: Path) -> list[Path]:
    """Return the folders above a file that do not exist, the innermost first."""
    missing = []
    for folder in path.parents:
        if folder.exists():
            break
        missing.append(folder)
    return missing


def unwritable(folder: Path) -> str:
    """Say why no file can be written into a folder, or return ""; leaves nothing behind."""
    try:
        # A file without a name, which is gone with its handle.
        handle = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
            return os.strerror(error.errno or 0)
        # The file system has no such files.
        disk = os.statvfs(folder)
        if disk.f_flag & os.ST_RDONLY:
            return os.strerror(errno.EROFS)
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            return os.strerror(errno.EACCES)
        return "" if disk.f_bavail else os.strerror(errno.ENOSPC)
    try:
        full = os.write(handle, bytes(PROBE)) < PROBE
        os.fsync(handle)
    except OSError as error:
        return os.strerror(error.errno or 0)
    finally:
        os.close(handle)
    return os.strerror(errno.ENOSPC) if full else ""


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


def delete(path: Path, folders: int) -> None:
    """Remove a file, and as many folders above it as are said, while they are empty."""
    path.unlink(missing_ok=True)
    for folder in path.parents[:folders]:
        try:
            folder.rmdir()
        except OSError:
            break


def reason(error: Exception) -> str:
    """Say what went wrong, without the path."""
    return str(getattr(error, "strerror", None) or error)


def hidden(text: str | None) -> str:
    """Return a text without the passwords in its URLs."""
    return re.sub(r"//[^/@\s]+@", "//***@", text or "")


def look_at(file: dict[str, Any]) -> dict[str, Any]:
    """Read one file; see RETURN."""
    found: dict[str, Any] = {"key": file["key"], "path": file["key"], "content": None, "folders": 0}
    found |= {"problem": "", "unwritable": "", "gone": False}
    try:
        with acting_as(file["user"]):
            path = locate(file["path"], file["user"])
            found["path"] = str(path)
            found["content"] = read(path)
            missing = missing_folders(path)
            found["folders"] = len(missing)
            found["unwritable"] = unwritable(missing[-1].parent if missing else path.parent)
    except UnicodeDecodeError:
        found["problem"] = "it is not UTF-8 text"
    except KeyError:
        found |= {"problem": f"there is no user {file['user']}", "gone": True}
    except NoHomeError as error:
        found |= {"problem": str(error), "gone": True}
    except OSError as error:
        found["problem"] = reason(error)
    return found


# ---- other files that the tools read --------------------------------------------------------------------------


def matches(pattern: str, folder: Path | None) -> list[Path]:
    """Return the files of a pattern, sorted by name; "~/" is `folder`, and without one matches nothing."""
    if pattern.startswith("~/"):
        if folder is None:
            return []
        base, rest = folder, pattern[2:]
    elif folder is not None:
        return []
    else:
        base, rest = Path("/"), pattern[1:]
    try:
        return sorted(base.glob(rest))
    except OSError:
        return []


def text_of(path: Path) -> str | None:
    """Return the text of a file of a usual size, or None."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return None
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return None


def others_of(user: str, folder: Path | None) -> Iterator[dict[str, Any]]:
    """Yield the files of pip and conda that count for a user, or for the machine (no user)."""
    found = [
        (tool, rank, path)
        for tool, patterns in OTHERS.items()
        for pattern, rank in patterns.items()
        for path in matches(pattern, folder)
    ]
    for pattern in INSTALLATIONS:
        for root in matches(pattern, folder):
            if (root / "pyvenv.cfg").is_file():
                found.append(("pip", RANK_ENVIRONMENT, root / "pip.conf"))
            if (root / "condabin" / "conda").exists():
                paths = [path for name in _CONDARC for path in matches(f"~/{name}", root)]
                found += [("conda", RANK_INSTALLATION, path) for path in paths]
    for tool, rank, path in found:
        if (text := text_of(path)) is not None:
            yield {"tool": tool, "user": user, "path": str(path), "rank": rank, "content": text}


def variables_of(folder: Path | None, servers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the lines that set a variable of pip or conda to anything but one of our servers."""
    for path in dict.fromkeys(path for pattern in SESSIONS for path in matches(pattern, folder)):
        for number, line in enumerate((text_of(path) or "").split("\n"), start=1):
            if line.lstrip().startswith("#") or any(server in line for server in servers):
                continue
            for found in _VARIABLE.finditer(line):
                tool = "pip" if found["pip"] else "conda"
                yield {"tool": tool, "path": str(path), "line": number, "name": found["name"]}


def pips(patterns: Sequence[str], folder: Path | None) -> list[dict[str, str]]:
    """Return the pips whose metadata or wheels match, with their versions."""
    found = dict.fromkeys(path for pattern in patterns for path in matches(pattern, folder))
    return [{"path": str(path), "version": m[1]} for path in found if (m := _PIP_VERSION.match(path.name))]


def people() -> list[str]:
    """Return the users of /etc/passwd who can log in."""
    names = []
    for line in Path("/etc/passwd").read_text(encoding="utf-8", errors="replace").splitlines():
        if person := _PERSON.fullmatch(line):
            number = int(person["number"])
            if number == 0 or number in _PEOPLE:
                names.append(person["name"])
    return names


def survey(users: Sequence[str], servers: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Read what counts beside our files, for the machine and for users; what cannot be read is left out."""
    result: dict[str, list[dict[str, Any]]] = {"others": [], "variables": [], "pips_of_users": []}
    for user in ["", *users]:
        try:
            with acting_as(user):
                folder = home(user) if user else None
                result["others"] += others_of(user, folder)
                result["variables"] += variables_of(folder, servers)
                result["pips_of_users"] += pips(PIPS_OF_USERS, folder)
        except (OSError, KeyError):
            continue
    return result


# ---- the memory -----------------------------------------------------------------------------------------------


def remembered(memory: str) -> list[str]:
    """Return the users whose own files are configured."""
    try:
        return [str(user) for user in json.loads(Path(memory).read_text(encoding="utf-8"))["users"]] if memory else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def remember(memory: str, users: Sequence[str]) -> None:
    """Write down whose own files are configured; without any, there is no such file."""
    if not memory or sorted(users) == sorted(remembered(memory)):
        return
    if users:
        write(Path(memory), json.dumps({"users": sorted(users)}) + "\n")
    else:
        delete(Path(memory), 1)


# ---- states ---------------------------------------------------------------------------------------------------


def find(files: Sequence[dict[str, Any]], memory: str) -> list[str]:
    """Return the users who have our lines in their files, and those that are remembered."""
    found = remembered(memory)
    for user in people():
        for file in files:
            try:
                with acting_as(user):
                    if MARK in (text_of(locate(file["path"], user)) or ""):
                        found.append(user)
            except (OSError, KeyError):
                continue
    return list(dict.fromkeys(found))


def write_all(module: AnsibleModule, files: Sequence[dict[str, Any]], users: Sequence[str], memory: str) -> None:
    """Write or remove each file, whatever becomes of the others; see RETURN."""
    changed, problems, diffs = False, [], []
    left = set(users)
    before_all = remembered(memory)
    if not module.check_mode:
        remember(memory, sorted({*users, *before_all}))
    for file in files:
        name, user, after = file["key"], file["user"], file["content"]
        try:
            with acting_as(user):
                path = locate(file["path"], user)
                name = str(path)
                before = read(path)
                if before == after:
                    continue
                if not module.check_mode:
                    if after is None:
                        delete(path, int(file.get("folders") or 0))
                    else:
                        write(path, after)
        except (OSError, KeyError, UnicodeDecodeError) as error:
            problems.append(f"{name}: {reason(error)}")
            left |= {user} & {*before_all}
            continue
        changed = True
        header = {"before_header": name, "after_header": name}
        diffs.append({"before": hidden(before), "after": hidden(after), **header})
    changed = changed or (bool(memory) and sorted(before_all) != sorted(left))
    if not module.check_mode:
        remember(memory, sorted(left))
    module.exit_json(changed=changed, problems=problems, diff=diffs)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["look", "find", "read", "write"], "required": True},
            "users": {"type": "list", "elements": "str", "default": []},
            "files": {"type": "list", "elements": "dict", "default": []},
            "servers": {"type": "list", "elements": "str", "default": []},
            "memory": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    state, users, files, servers, memory = (
        module.params[name] for name in ("state", "users", "files", "servers", "memory")
    )
    os.umask(0o022)
    who = {"root": os.geteuid() == 0, "me": pwd.getpwuid(os.geteuid()).pw_name}
    if not who["root"]:
        memory = ""
    if state == "write":
        write_all(module, files, users, memory)
    elif state == "find":
        module.exit_json(changed=False, users=find(files, memory), **who)
    elif state == "read":
        seen = users or (people() if who["root"] else [who["me"]])
        # Without a server the settings only go out, whatever else counts.
        beside = survey(seen if servers else [], servers)
        module.exit_json(changed=False, files=[look_at(file) for file in files], **beside, **who)
    else:
        missing = [user for user in users if not exists(user)]
        done = {"hosts": (text_of(HOSTS) or "").splitlines(), "roots": [path.name for path in matches(ROOTS, None)]}
        module.exit_json(changed=False, missing=missing, pips=pips(PIPS, None), users=remembered(memory), **done, **who)


def exists(user: str) -> bool:
    """Tell whether there is such a user, wherever the machine has its users from."""
    try:
        return bool(pwd.getpwnam(user))
    except KeyError:
        return False


if __name__ == "__main__":
    main()
