#!/usr/bin/python
"""Bring the users and indexes of a devpi server to the declared state, over its REST interface."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
---
module: devpi_indexes
short_description: Bring the users and indexes of a devpi server to the declared state
description:
  - Makes what is missing and changes what differs, in place. Settings that are not declared stay.
  - After a change of C(mirror_url), devpi is made to read the pages of all projects it knows of again. Until then, it
    would fetch the files that it has not stored from where the old upstream said.
  - Runs on the server. The password is read from a file there, so it passes through no task.
options:
  url:
    description: Where devpi itself listens, without Nginx before it.
    type: str
    required: true
  password_file:
    description: File that holds the password of devpi's user root.
    type: path
    required: true
  new_password:
    description: When it differs from the file's, root gets it as its password, then the file. Empty for no change.
    type: str
    default: ""
  python:
    description: Python of devpi's venv, which is asked for the upstream that devpi itself takes for the official one.
    type: path
    required: true
  python_path:
    description:
      - Where that Python finds C(lanmirror_ops) and our plugin, with a colon between. In a diff, they say which files
        that clients used lately the changed rules hide. Empty: they do not.
    type: str
    default: ""
  settings:
    description: File that tells C(lanmirror_ops) where things are.
    type: path
    default: /etc/devpi/lanmirror.toml
  indexes:
    description:
      - Settings by user/index, in devpi's own words.
      - With C(official) true, C(mirror_url) and C(mirror_web_url_fmt) are those that devpi was made with.
      - In C(fallback_urls), C(official) is the URL of that upstream.
      - C(fallback_urls), C(files_from), C(flat), C(file_hosts), C(min_age_days), C(min_age_undated), C(block) and
        C(allow) are settings that our plugin adds to devpi; the last two are texts with a rule a line.
    type: dict
    required: true
  users:
    description: Users that own indexes or upload. Others stay as they are.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Login name.
        type: str
        required: true
      password:
        description: Password. Empty for one that nobody knows, for a user who only owns indexes.
        type: str
        default: ""
      email:
        description: Address, which devpi shows to everybody.
        type: str
        default: ""
  remove_undeclared:
    description: Whether indexes that are not declared are removed, with all that was uploaded to them.
    type: bool
    default: false
  timeout:
    description: How long to wait for a devpi that is starting, seconds.
    type: int
    default: 60
author:
  - lanmirror
"""

EXAMPLES = """
- name: Declare the mirror
  devpi_indexes:
    url: http://127.0.0.1:3141
    password_file: /etc/devpi/root-password
    python: /opt/devpi/current/bin/python
    python_path: /opt/devpi/ops:/opt/devpi/current/src
    indexes:
      root/pypi: {type: mirror, official: true, mirror_no_project_list: true}
"""

RETURN = """
changes:
  description: What was done, or would be, one line each.
  type: list
  elements: str
  returned: always
undeclared:
  description: Indexes that are there and were not declared.
  type: list
  elements: str
  returned: always
"""

OFFICIAL = """\
import json
from devpi_server.main import _pypi_ixconfig_default as known
print(json.dumps({key: known[key] for key in ("mirror_url", "mirror_web_url_fmt")}))
"""

Settings = dict[str, Any]
# Settings that our plugin stores as one text, a rule a line.
RULES = ("allow", "block")
# Settings by which a mirror hides files.
HIDING = (*RULES, "min_age_days", "min_age_undated")
# Lists whose order matters.
ORDERED = ("bases", "fallback_urls", "files_from")


class DevpiError(Exception):
    """devpi cannot be reached, or refuses; the message says which and why."""


@dataclass(frozen=True)
class Change:
    """One request that brings an index nearer to what is declared."""

    method: str
    index: str
    before: Settings
    after: Settings

    def __str__(self) -> str:
        """Say it in a line."""
        keys = ", ".join(sorted(key for key, value in self.after.items() if self.before.get(key) != value))
        return f"{ {'PUT': 'make', 'PATCH': 'change', 'DELETE': 'remove'}[self.method] } {self.index}: {keys}".rstrip(
            ": "
        )


def without_password(value: Any) -> Any:
    """Return a value with the password of each URL in it masked."""
    if isinstance(value, str):
        return re.sub(r"//[^/@\s]*@", "//***@", value)
    if isinstance(value, Mapping):
        return {key: without_password(item) for key, item in value.items()}
    return [without_password(item) for item in value] if isinstance(value, list | tuple) else value


def complete(indexes: Mapping[str, Settings], official: Callable[[], Settings]) -> dict[str, Settings]:
    """Return the indexes in devpi's words: with the official upstream in place of the word for it."""
    done = {}
    for name, settings in indexes.items():
        plain = {key: value for key, value in settings.items() if key != "official"}
        done[name] = plain | official() if settings.get("official") else plain
        urls = plain.get("fallback_urls", [])
        if "official" in urls:
            done[name]["fallback_urls"] = [
                official().get("mirror_url", url) if url == "official" else url for url in urls
            ]
    return done


def in_order(indexes: Mapping[str, Settings]) -> list[str]:
    """Return the names, each after its bases; the preflight has refused cycles."""
    ordered: list[str] = []

    def put(name: str) -> None:
        if name in indexes and name not in ordered:
            for base in indexes[name].get("bases", []):
                put(base)
            ordered.append(name)

    for name in indexes:
        put(name)
    return ordered


def same(key: str, one: Any, other: Any) -> bool:
    """Return whether two values of a setting mean the same; of bases and of places the order matters."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return list(one) == list(other) if key in ORDERED else sorted(one) == sorted(other)
    return bool(one == other)


def plan(current: Mapping[str, Settings], wanted: Mapping[str, Settings], *, remove: bool) -> list[Change]:
    """Return what makes `wanted` of `current`, both by user/index, in the order in which devpi takes it.

    Raises:
        DevpiError: An index would have to become one of another type, which devpi cannot do.
    """
    changes = []
    for name in in_order(wanted):
        settings, before = wanted[name], current.get(name)
        if before is None:
            changes.append(Change("PUT", name, {}, dict(settings)))
            continue
        if before.get("type") != settings.get("type"):
            raise DevpiError(
                f"{name} is a {before.get('type')} index and cannot become a {settings.get('type')} index: "
                "give the new one another name, or delete the old one first"
            )
        new = {key: value for key, value in settings.items() if not same(key, before.get(key), value)}
        if new:
            changes.append(Change("PATCH", name, dict(before), {**before, **new}))
    if remove:
        # Those that stand on others first.
        gone = {name: settings for name, settings in current.items() if name not in wanted}
        changes += [Change("DELETE", name, dict(gone[name]), {}) for name in reversed(in_order(gone))]
    return changes


class Devpi:
    """A devpi server, over HTTP on this machine; no proxy of the environment is asked."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.token = ""

    def ask(self, method: str, path: str, body: Settings | None = None) -> tuple[int, Any]:
        """Return status and JSON of the answer; OSError when there is none."""
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self.token:
            headers["X-Devpi-Auth"] = base64.b64encode(f"root:{self.token}".encode()).decode()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode("utf-8", "replace")
        except http.client.HTTPException as error:
            raise ConnectionResetError(str(error) or type(error).__name__) from error
        finally:
            connection.close()
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        return answer.status, found if isinstance(found, dict) else {"message": text.strip()[:200]}

    def must(self, method: str, path: str, body: Settings | None = None) -> Any:
        """Return the `result` of an answer in the 200s.

        Raises:
            DevpiError: Any other answer.
        """
        status, answer = self.ask(method, path, body)
        if not http.HTTPStatus.OK <= status < http.HTTPStatus.MULTIPLE_CHOICES:
            raise DevpiError(f"devpi refuses {method} {path} with {status}: {without_password(answer.get('message'))}")
        return answer.get("result")

    def wait(self, seconds: float) -> None:
        """Return as soon as devpi answers.

        Raises:
            OSError: Nothing did within `seconds`.
            DevpiError: Another program did.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                status, answer = self.ask("GET", "/+api")
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)
            else:
                if answer.get("type") == "apiconfig":
                    return
                raise DevpiError(
                    f"another program than devpi answers on port {self.port} (status {status} for /+api): "
                    f"`ss -ltnp 'sport = :{self.port}'` on the server names it; stop it, or set another devpi_port"
                )

    def knows(self, user: str, password: str) -> str:
        """Return a token for the user, or an empty text when the password is wrong.

        Raises:
            DevpiError: devpi cannot tell, as a replica whose primary is away.
        """
        status, answer = self.ask("POST", "/+login", {"user": user, "password": password})
        if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
            raise DevpiError(f"devpi answers {status} to a login: {answer.get('message')}")
        return str(answer["result"]["password"]) if status == http.HTTPStatus.OK else ""

    def login(self, password: str) -> bool:
        """Log in as root; return whether the password is right."""
        self.token = ""
        self.token = self.knows("root", password)
        return bool(self.token)

    def users(self) -> dict[str, Settings]:
        """Return all users, with their indexes; no upstream is asked for anything."""
        users: dict[str, Settings] = self.must("GET", "/")
        return users

    def apply(self, change: Change) -> None:
        """Make one change."""
        path = f"/{change.index}"
        if change.method == "DELETE":
            if not change.before.get("volatile", True):
                self.must("PATCH", path, {**change.before, "volatile": True})
            self.must("DELETE", path)
        else:
            # A mirror's pages belong to the `mirror_url` that they came from (mirror.py): this is all of a change.
            self.must(change.method, path, change.after)


def indexes_of(users: Mapping[str, Settings]) -> dict[str, Settings]:
    """Return the indexes of all users with their settings, by user/index."""
    return {
        f"{user}/{index}": settings
        for user, known in users.items()
        for index, settings in known.get("indexes", {}).items()
    }


def keep(path: Path, password: str) -> None:
    """Replace the password file at once; root alone may read it."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(password)
        stream.flush()
        os.fsync(stream.fileno())
    Path(name).replace(path)


def pending(path: Path) -> Path:
    """Return where a new root password stands before devpi knows it: nobody else has one that was made up."""
    return path.with_name(f"{path.name}.new")


def log_in(devpi: Devpi, path: Path, *others: str) -> None:
    """Log in as root with what the file has, what a run left that was cut short, or another password.

    Raises:
        DevpiError: None of them is right.
    """
    if devpi.login(path.read_text(encoding="utf-8")):
        return
    if pending(path).exists() and devpi.login(pending(path).read_text(encoding="utf-8")):
        pending(path).replace(path)
        return
    if not any(devpi.login(other) for other in others):
        raise DevpiError(f"the password in {path} is not root's: write the right one there, or restore a backup")


def rotate(devpi: Devpi, path: Path, new: str) -> None:
    """Make `new` root's password.

    Raises:
        DevpiError: No password that is known here is right.
    """
    log_in(devpi, path, new)
    keep(pending(path), new)
    devpi.must("PATCH", "/root", {"password": new})
    devpi.login(new)
    pending(path).replace(path)


def user_changes(
    devpi: Devpi, known: Mapping[str, Settings], users: Sequence[Settings]
) -> list[tuple[str, str, Settings]]:
    """Return what brings the users to the declared state: method, name and body, without a word on who has what."""
    changes = []
    for user in users:
        name, body = user["name"], {}
        if name not in known:
            # devpi wants one; nobody is told it.
            body = {"password": user["password"] or secrets.token_urlsafe(32)}
        elif user["password"] and not devpi.knows(name, user["password"]):
            body = {"password": user["password"]}
        if user["email"] and known.get(name, {}).get("email") != user["email"]:
            body["email"] = user["email"]
        if body:
            changes.append(("PATCH" if name in known else "PUT", name, body))
    return changes


def of_rules(changes: Sequence[Change]) -> list[Change]:
    """Return the changes of the rules of mirrors that are there."""
    return [
        change
        for change in changes
        if change.method == "PATCH" and any(change.before.get(key) != change.after.get(key) for key in HIDING)
    ]


def hides(module: AnsibleModule, changes: Sequence[Change]) -> str:
    """Return which files that clients used lately changed rules hide, in words; a warning where that cannot be told."""
    told = {
        "before": {change.index: change.before for change in changes},
        "after": {change.index: change.after for change in changes},
    }
    command = [module.params["python"], "-B", "-m", "lanmirror_ops.hides", module.params["settings"]]
    environment = {"PYTHONPATH": module.params["python_path"], "PYTHONWARNINGS": "ignore"}
    status, text, error = module.run_command(command, data=json.dumps(told), environ_update=environment)
    if status:
        why = (error.strip() or "no reason was given").splitlines()[-1]
        module.warn(f"it cannot be told which files that clients used the changed rules hide: {without_password(why)}")
        return ""
    return str(text)


def run(module: AnsibleModule) -> None:
    """Compare, and change what differs unless this is check mode."""
    devpi, path = Devpi(module.params["url"]), Path(module.params["password_file"])
    new, remove = module.params["new_password"], module.params["remove_undeclared"]

    def official() -> Settings:
        if module.check_mode and not Path(module.params["python"]).exists():
            return {}
        _, text, _ = module.run_command([module.params["python"], "-c", OFFICIAL], check_rc=True)
        settings: Settings = json.loads(text)
        return settings

    wanted = complete(module.params["indexes"], official)
    blank = module.check_mode and not path.exists()
    if not blank:
        devpi.wait(module.params["timeout"])
    known = {} if blank else devpi.users()
    users = user_changes(devpi, known, module.params["users"])
    changes = plan(indexes_of(known), wanted, remove=remove)
    undeclared = sorted(set(indexes_of(known)) - set(wanted))
    lines = [
        f"{'make' if method == 'PUT' else 'change'} user {name}: {', '.join(body)}" for method, name, body in users
    ]
    lines += map(str, changes)
    new_password = bool(new) and not blank and path.read_text(encoding="utf-8") != new
    if new_password:
        lines.insert(0, "change the password of root")
    # Before anything is changed.
    ruled = of_rules(changes)
    hidden = hides(module, ruled) if module._diff and ruled and module.params["python_path"] else ""

    if lines and not module.check_mode:
        if new_password:
            rotate(devpi, path, new)
        else:
            log_in(devpi, path)
        for method, name, body in users:
            devpi.must(method, f"/{name}", body)
        for change in changes:
            devpi.apply(change)
    if undeclared and not remove:
        module.warn(f"devpi has indexes that are not declared, and keeps them: {', '.join(undeclared)}")
    module.exit_json(
        changed=bool(lines),
        changes=lines,
        undeclared=undeclared,
        diff=[
            {
                "before": "".join(f"{change.index}: {shown(change.before)}\n" for change in changes if change.before),
                "after": "".join(f"{change.index}: {shown(change.after)}\n" for change in changes if change.after),
                "before_header": "devpi's indexes",
                "after_header": "devpi's indexes",
            },
            *([{"prepared": hidden}] if hidden else []),
        ],
    )


def shown(settings: Settings) -> str:
    """Return settings as a diff shows them: a line each, in order, no password; of lists of rules, a rule a line."""
    plain = {
        key: value.splitlines() if key in RULES and isinstance(value, str) else value for key, value in settings.items()
    }
    return json.dumps(without_password(plain), indent=2, sort_keys=True)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "password_file": {"type": "path", "required": True, "no_log": False},
            "new_password": {"type": "str", "default": "", "no_log": True},
            "python": {"type": "path", "required": True},
            "python_path": {"type": "str", "default": ""},
            "settings": {"type": "path", "default": "/etc/devpi/lanmirror.toml"},
            "indexes": {"type": "dict", "required": True},
            "users": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "password": {"type": "str", "default": "", "no_log": True},
                    "email": {"type": "str", "default": ""},
                },
            },
            "remove_undeclared": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    try:
        run(module)
    except DevpiError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"devpi does not answer at {module.params['url']} ({error}): see `journalctl -u devpi` on the server"
        )


if __name__ == "__main__":
    main()
