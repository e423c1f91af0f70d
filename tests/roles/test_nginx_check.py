"""Module host_files with Nginx's own check: several files change together, or none does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.roles.render import ROOT, render, run_module

# What the module writes belongs to root, as all of /etc/nginx does.
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to root")
MODULE = ROOT / "roles/host_files/library/host_files.py"
OLD = {"a.conf": 'map "" $old { default 1; }\n', "b.conf": "server { listen 1; return 200 $old; }\n"}
NEW = {"a.conf": 'map "" $new { default 1; }\n', "b.conf": "server { listen 1; return 200 $new; }\n"}

Write = Callable[..., dict[str, Any]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "nginx"
    (folder / "conf.d").mkdir(parents=True)
    (folder / "nginx.conf").write_text(
        f"error_log {folder}/error.log;\npid {folder}/pid;\nevents {{ }}\n"
        f"http {{ access_log off; include {folder}/conf.d/*.conf; }}\n"
    )
    return folder


@pytest.fixture
def write(tmp_path: Path, folder: Path) -> Write:
    check = tmp_path / "check"
    check.write_text(render("nginx", "nginx-check.j2").replace("/etc/nginx", str(folder)))
    check.chmod(0o755)

    def write(files: dict[str, str], **more: Any) -> dict[str, Any]:
        given = [
            {"path": f"{folder}/conf.d/{name}", "state": "file" if text else "absent", "content": text}
            for name, text in files.items()
        ]
        return run_module(MODULE, tmp_path, files=given, check=str(check), **more)

    return write


def there(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in sorted((folder / "conf.d").iterdir())}


def test_files_that_need_each_other_are_replaced_together(folder: Path, write: Write) -> None:
    assert write(OLD)["changed"]
    assert there(folder) == OLD
    # Either alone would not pass.
    assert write(NEW)["changed"]
    assert there(folder) == NEW
    assert not write(NEW)["changed"]
    # And back.
    assert write(OLD)["changed"]
    assert there(folder) == OLD


@pytest.mark.parametrize("wrong", [{"a.conf": NEW["a.conf"]}, {"a.conf": ""}, {"b.conf": "server {"}, {"c.conf": "x;"}])
def test_what_nginx_does_not_take_changes_nothing(folder: Path, write: Write, wrong: dict[str, str]) -> None:
    write(OLD)
    said = write(wrong)
    assert said["failed"]
    assert f"{folder}/conf.d/{next(iter(wrong))} would be wrong: " in said["msg"]
    assert "nginx: " in said["msg"]
    assert there(folder) == OLD


def test_file_without_content_is_taken_out(folder: Path, write: Write) -> None:
    write({**OLD, "c.conf": "map x $c { }\n"})
    (change,) = write({**OLD, "c.conf": ""})["diff"]
    assert (change["before"], change["after"]) == ("map x $c { }\n", "")
    assert there(folder) == OLD
    assert not write({**OLD, "c.conf": ""})["changed"]


def test_mode_and_owner_are_mended(folder: Path, write: Write) -> None:
    write(OLD)
    file = folder / "conf.d/a.conf"
    file.chmod(0o600)
    os.chown(file, 1, 1)
    assert write(OLD)["paths"] == [str(file)]
    found = file.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (0, 0, 0o644)


def test_check_mode_changes_nothing(folder: Path, write: Write) -> None:
    write(OLD)
    said = write(NEW, _ansible_check_mode=True)
    assert (said["changed"], len(said["diff"])) == (True, 2)
    assert there(folder) == OLD
