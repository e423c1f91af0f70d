#!/usr/bin/python
"""Bring the indexes of a devpi server to the declared state, over its REST interface."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule  # type: ignore[import-untyped]  # Ansible ships no types

DOCUMENTATION = """
---
module: devpi_indexes
short_description: Bring the indexes of a devpi server to the declared state
description:
  - Makes the indexes that are missing and changes those that differ, in place. Settings that are not declared stay.
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
  indexes:
    description:
      - Settings by user/index, in devpi's own words.
      - With C(official) true, C(mirror_url) and C(mirror_web_url_fmt) are those that devpi was made with.
    type: dict
    required: true
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
    indexes:
      root/pypi: {type: mirror, official: true, mirror_no_project_list: true}
"""

RETURN = """
changes:
  description: What was done, or would be, one line each.
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


class DevpiError(Exception):
    """devpi cannot be reached, or refuses; the message says which and why."""


@dataclass(frozen=True)
class Change:
    """One request that brings an index nearer to what is declared."""

    method: str
    index: str
    body: Settings
    before: Settings
    after: Settings

    def __str__(self) -> str:
        """Say it in a line."""
        verb = "make" if self.method == "PUT" else "change"
        keys = ", ".join(sorted(key for key, value in self.after.items() if self.before.get(key) != value))
        return f"{verb} {self.index}: {keys}"


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
    return done


def plan(current: Mapping[str, Settings], wanted: Mapping[str, Settings]) -> list[Change]:
    """Return what makes `wanted` of `current`, both by user/index.

    Raises:
        DevpiError: An index would have to become one of another type, which devpi cannot do.
    """
    changes = []
    for name, settings in wanted.items():
        before = current.get(name)
        if before is None:
            changes.append(Change("PUT", name, dict(settings), {}, dict(settings)))
            continue
        if before.get("type") != settings.get("type"):
            raise DevpiError(
                f"{name} is a {before.get('type')} index and cannot become a {settings.get('type')} index: "
                "give the new one another name, or delete the old one first"
            )
        after = {**before, **settings}
        if after != before:
            changes.append(Change("PATCH", name, after, dict(before), after))
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
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, {"message": text.strip()[:200]}

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
            OSError: It did not within `seconds`.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                self.ask("GET", "/+api")
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)
            else:
                return

    def login(self, password: str) -> bool:
        """Log in as root; return whether the password is right."""
        self.token = ""
        status, answer = self.ask("POST", "/+login", {"user": "root", "password": password})
        if status == http.HTTPStatus.OK:
            self.token = answer["result"]["password"]
        return bool(self.token)

    def indexes(self) -> dict[str, Settings]:
        """Return all indexes with their settings, by user/index; the upstream is not asked for its projects."""
        users = self.must("GET", "/")
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


def rotate(devpi: Devpi, path: Path, new: str) -> None:
    """Make `new` root's password, in devpi first and then in the file.

    Raises:
        DevpiError: Neither the file's password nor the new one is right.
    """
    if devpi.login(path.read_text(encoding="utf-8")):
        devpi.must("PATCH", "/root", {"password": new})
    # A run that ended between the two steps.
    elif not devpi.login(new):
        raise DevpiError(f"neither the password in {path} nor that of devpi_root_password is root's")
    devpi.login(new)
    keep(path, new)


def run(module: AnsibleModule) -> None:
    """Compare, and change what differs unless this is check mode."""
    devpi, path = Devpi(module.params["url"]), Path(module.params["password_file"])
    new = module.params["new_password"]

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
    changes = plan({} if blank else devpi.indexes(), wanted)
    lines = [str(change) for change in changes]
    new_password = bool(new) and not blank and path.read_text(encoding="utf-8") != new
    if new_password:
        lines.insert(0, "change the password of root")

    if lines and not module.check_mode:
        if new_password:
            rotate(devpi, path, new)
        elif not devpi.login(path.read_text(encoding="utf-8")):
            raise DevpiError(f"the password in {path} is not root's: write the right one there, or restore a backup")
        for change in changes:
            devpi.must(change.method, f"/{change.index}", change.body)
    module.exit_json(
        changed=bool(lines),
        changes=lines,
        diff={
            "before": "".join(f"{change.index}: {shown(change.before)}\n" for change in changes if change.before),
            "after": "".join(f"{change.index}: {shown(change.after)}\n" for change in changes),
            "before_header": "devpi's indexes",
            "after_header": "devpi's indexes",
        },
    )


def shown(settings: Settings) -> str:
    """Return settings as a diff shows them: a line each, in order, no password."""
    return json.dumps(without_password(settings), indent=2, sort_keys=True)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "password_file": {"type": "path", "required": True, "no_log": False},
            "new_password": {"type": "str", "default": "", "no_log": True},
            "python": {"type": "path", "required": True},
            "indexes": {"type": "dict", "required": True},
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
