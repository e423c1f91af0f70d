"""Module host_files, by its own process, on real files."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.roles.render import ROOT, run_module

MODULE = ROOT / "roles/host_files/library/host_files.py"


def run(tmp_path: Path, *files: dict[str, Any], umask: int = 0o077, **options: Any) -> dict[str, Any]:
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    return run_module(MODULE, scratch, umask=umask, files=list(files), **options)


def rights(path: Path) -> tuple[str, str, int]:
    return path.owner(), path.group(), stat.S_IMODE(path.stat().st_mode)


def test_files_and_folders_are_as_wanted_whatever_the_umask(tmp_path: Path) -> None:
    folder, file = tmp_path / "a/b", tmp_path / "a/b/c"
    wanted: list[dict[str, Any]] = [
        {"path": str(folder), "state": "directory", "owner": "nobody", "group": "adm", "mode": "0710"},
        {"path": str(file), "content": "text ü\n", "group": "adm", "mode": "0640"},
    ]
    first = run(tmp_path, *wanted)
    assert (first["changed"], first["paths"], first["made"]) == (
        True,
        [str(folder), str(file)],
        [str(folder), str(file)],
    )
    assert file.read_text() == "text ü\n"
    assert rights(folder.parent) == ("root", "root", 0o755)
    assert rights(folder) == ("nobody", "adm", 0o710)
    assert rights(file) == ("root", "adm", 0o640)
    again = run(tmp_path, *wanted)
    assert (again["changed"], again["paths"], again["made"], again["diff"]) == (False, [], [], [])
    assert sorted(path.name for path in folder.iterdir()) == ["c"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.chmod(0o600),
        lambda file: os.chown(file, 65534, -1),
        lambda file: os.chown(file, -1, 65534),
        lambda file: file.write_text("other\n"),
        lambda file: file.write_bytes(b"\xff\n"),
        lambda file: file.unlink(),
        lambda file: (file.unlink(), file.symlink_to("nowhere")),
    ],
)
def test_what_was_changed_by_hand_is_mended(tmp_path: Path, damage: Any) -> None:
    file = tmp_path / "file"
    wanted = {"path": str(file), "content": "text\n"}
    run(tmp_path, wanted)
    damage(file)
    assert run(tmp_path, wanted)["paths"] == [str(file)]
    assert (file.read_text(), rights(file), file.is_symlink()) == ("text\n", ("root", "root", 0o644), False)
    assert not run(tmp_path, wanted)["changed"]


def test_once_keeps_the_content_and_mends_the_rights(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    wanted = {"path": str(file), "content": "one\n", "once": True, "mode": "0600"}
    assert run(tmp_path, wanted)["made"] == [str(file)]
    assert not run(tmp_path, {**wanted, "content": "two\n"})["changed"]
    file.chmod(0o644)
    changed = run(tmp_path, {**wanted, "content": "two\n"})
    assert (changed["paths"], changed["made"]) == ([str(file)], [])
    assert (file.read_text(), rights(file)) == ("one\n", ("root", "root", 0o600))


def test_an_owner_that_is_not_said_stays(tmp_path: Path) -> None:
    file = tmp_path / "log"
    wanted = {"path": str(file), "once": True, "owner": "", "group": "adm", "mode": "0640"}
    run(tmp_path, wanted)
    assert rights(file) == ("root", "adm", 0o640)
    # One without a name, as after its user went.
    os.chown(file, 54321, -1)
    file.chmod(0o600)
    assert run(tmp_path, wanted)["changed"]
    assert (file.stat().st_uid, stat.S_IMODE(file.stat().st_mode)) == (54321, 0o640)
    assert not run(tmp_path, wanted)["changed"]


def test_a_file_that_is_not_to_be_there_goes_and_a_folder_never(tmp_path: Path) -> None:
    file, link, folder = tmp_path / "file", tmp_path / "link", tmp_path / "folder"
    file.touch()
    link.symlink_to("nowhere")
    folder.mkdir()
    gone = [{"path": str(file), "state": "absent"}]
    others = [str(link), str(tmp_path / "never")]
    assert run(tmp_path, *gone, absent=others)["paths"] == [str(file), str(link)]
    assert not os.path.lexists(file)
    assert not os.path.lexists(link)
    assert not run(tmp_path, *gone, absent=others)["changed"]
    said = run(tmp_path, absent=[str(folder)])
    assert (said["failed"], "is a folder" in said["msg"]) == (True, True)
    assert folder.is_dir()


def test_a_folder_behind_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "data"
    link.symlink_to("disk")
    assert run(tmp_path, {"path": str(link), "state": "directory", "mode": "0750"})["changed"]
    assert link.is_symlink()
    assert rights(tmp_path / "disk") == ("root", "root", 0o750)


def test_all_pass_their_checks_before_the_first_is_written(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    bad.write_text("true\n")
    said = run(
        tmp_path,
        {"path": str(good), "content": "true\n", "validate": "sh -n %s"},
        {"path": str(bad), "content": "if\n", "validate": "sh -n %s"},
    )
    assert said["failed"]
    assert said["msg"].startswith(f"{bad} would be wrong: ")
    assert (good.exists(), bad.read_text()) == (False, "true\n")


@pytest.mark.parametrize("key", ["owner", "group"])
def test_who_is_not_known_is_named(tmp_path: Path, key: str) -> None:
    file = tmp_path / "file"
    said = run(tmp_path, {"path": str(file), "content": "x", key: "nobody-knows"})
    assert said["failed"]
    assert str(file) in said["msg"]
    assert "nobody-knows" in said["msg"]
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]


def test_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("theirs\n")
    said = run(tmp_path, {"path": str(file), "state": "directory"})
    assert "is no folder" in said["msg"]
    assert file.read_text() == "theirs\n"


def test_check_mode_says_what_would_change_and_changes_nothing(tmp_path: Path) -> None:
    """Not even where the owner is not there yet, as on a blank host."""
    old = tmp_path / "old"
    old.write_text("before\n")
    said = run(
        tmp_path,
        {"path": str(tmp_path / "folder"), "state": "directory", "owner": "not-yet"},
        {"path": str(tmp_path / "folder/new"), "content": "new\n", "validate": "false"},
        {"path": str(tmp_path / "secret"), "content": "hidden\n", "shown": False},
        {"path": str(old), "content": "after\n"},
        _ansible_check_mode=True,
    )
    assert said["made"] == [str(tmp_path / name) for name in ("folder", "folder/new", "secret")]
    assert {one["after_header"].rpartition("/")[2]: (one["before"], one["after"]) for one in said["diff"]} == {
        "folder": ("", "not-yet:root 0755\n"),
        "new": ("", "new\n"),
        "secret": ("", "root:root 0644\n"),
        "old": ("before\n", "after\n"),
    }
    assert "hidden" not in str(said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "scratch"]


def test_no_answer_has_the_content(tmp_path: Path) -> None:
    secret = {"path": str(tmp_path / "no-folder/file"), "content": "hidden\n", "shown": False}
    assert run(tmp_path, secret)["failed"]
    for said in (run(tmp_path, secret), run(tmp_path, {**secret, "path": str(tmp_path / "file")})):
        assert "hidden" not in str(said)


def test_an_interrupted_write_leaves_the_former_file(tmp_path: Path) -> None:
    """A text that the disk has no room for."""
    file = tmp_path / "disk/file"
    file.parent.mkdir()
    file.write_text("before\n")
    run_module(MODULE, tmp_path, files=[{"path": str(file), "content": "before\n"}])
    full = tmp_path / "limited.sh"
    full.write_text(f'ulimit -f 1\ntrap "" XFSZ\nexec python3 {MODULE} "$1"\n')
    arguments = tmp_path / "arguments"
    arguments.write_text(
        json.dumps({"ANSIBLE_MODULE_ARGS": {"files": [{"path": str(file), "content": "x" * 100_000}]}})
    )
    done = subprocess.run(["/bin/bash", full, arguments], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["failed"]
    assert file.read_text() == "before\n"
    assert [path.name for path in file.parent.iterdir()] == ["file"]
