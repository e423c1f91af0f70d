"""What backs devpi up, restores and upgrades it: with a database as devpi writes it, and without a server.

A devpi that runs, and its own reader of the database, have their tests in Molecule (molecule/pair/tests/test_life.py).
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from roles.devpi.files import lanmirror_devpi_life as life
from tests.roles.render import ROOT, render

VERSION = {"version": "6.20.3", "database": "4"}
UPLOADED = "lab/dev/+f/abc/tool-1.0.whl"
CACHED = "root/pypi/+f/def/idna-3.whl"
LAST = "root/pypi/+f/123/attrs-1.whl"


@pytest.fixture
def settings(tmp_path: Path) -> life.Settings:
    """A server with an uploaded package, and with two cached ones, the last of which is devpi's last change."""
    data, conf = tmp_path / "data", tmp_path / "conf"
    for name in (UPLOADED, CACHED, LAST):
        (data / "+files" / name).parent.mkdir(parents=True)
        (data / "+files" / name).write_text(name)
    with sqlite3.connect(data / ".sqlite") as db:
        db.execute("create table changelog (serial integer primary key, data blob)")
        db.execute("insert into changelog values (7, 'seven')")
    (data / ".nodeinfo").write_text('{"uuid": "0123"}')
    (data / ".serverversion").write_text("4")
    (data / ".event_serial").write_text("7")
    conf.mkdir()
    for name in life.CONF:
        (conf / name).write_text(name)
    return life.Settings(data, tmp_path / "backups", 2, False, "http://127.0.0.1:1", "devpi", conf, tmp_path / "prefix")


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What devpi's reader would say of the database."""
    known: dict[str, Any] = VERSION | {
        "mirrors": ["root/pypi"],
        "files": {UPLOADED: hashlib.sha256(UPLOADED.encode()).hexdigest()},
        "last": [f"+files/{LAST}"],
        "pages": [],
        "uploads": {},
    }
    monkeypatch.setattr(life, "read_state", lambda *_: known)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    return known


@pytest.fixture
def made(settings: life.Settings) -> Path:
    return life.backup(settings, settings.current)


def stored(folder: Path) -> set[str]:
    return {str(path.relative_to(folder / "data/+files")) for path in (folder / "data/+files").rglob("*.whl")}


# ---- backup --------------------------------------------------------------------------------------------------


def test_backup_has_what_is_needed_to_stand_up_again_and_only_root_reads_it(
    settings: life.Settings, made: Path
) -> None:
    manifest = life.verify(made)
    assert set(manifest["files"]) == {
        "data/.sqlite",
        "data/.nodeinfo",
        "data/.serverversion",
        "data/.event_serial",
        "conf/secret",
        "conf/root-password",
        f"data/+files/{UPLOADED}",
        # Without the file of its last change, devpi would not start.
        f"data/+files/{LAST}",
    }
    assert (manifest["devpi_server"], manifest["database"], manifest["uuid"]) == ("6.20.3", "4", "0123")
    assert (made / "data/+files" / UPLOADED).samefile(settings.data / "+files" / UPLOADED)
    assert [
        path.stat().st_mode & 0o077 for path in (settings.backups, made / "data/.sqlite", made / "manifest.json")
    ] == [
        0,
        0,
        0,
    ]
    with sqlite3.connect(made / "data/.sqlite") as db:
        assert db.execute("select data from changelog").fetchall() == [("seven",)]


def test_backup_has_the_cache_when_it_is_wanted(settings: life.Settings) -> None:
    whole = life.backup(replace(settings, cache=True), settings.current)
    assert stored(whole) == {UPLOADED, CACHED, LAST}


def test_backup_is_a_copy_where_files_cannot_be_linked(
    settings: life.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    copied = life.backup(settings, settings.current) / "data/+files" / UPLOADED
    assert not copied.samefile(settings.data / "+files" / UPLOADED)
    assert copied.stat().st_mode & 0o777 == 0o600


def test_only_so_many_backups_are_kept_and_a_half_one_is_none(
    settings: life.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(1, 5):
        (settings.backups / f".devpi-2026010{day}T000000Z.partial" / "data").mkdir(parents=True)
        monkeypatch.setattr(
            time, "strftime", lambda form, *_, day=day: form.replace("%Y%m%dT%H%M%SZ", f"2026010{day}T000000Z")
        )
        life.backup(settings, settings.current)
    (settings.backups / "devpi-20260109T000000Z").mkdir()
    assert [path.name[-12:] for path in life.whole_backups(settings.backups)] == ["0103T000000Z", "0104T000000Z"]
    assert list(settings.backups.glob(".*")) == []


def test_backup_leaves_nothing_when_a_file_is_missing_or_damaged(settings: life.Settings) -> None:
    path = settings.data / "+files" / UPLOADED
    path.write_text("rotten")
    with pytest.raises(life.LifeError, match=r"tool-1\.0\.whl is damaged"):
        life.backup(settings, settings.current)
    path.unlink()
    with pytest.raises(life.LifeError, match=r"tool-1\.0\.whl is missing"):
        life.backup(settings, settings.current)
    assert list(settings.backups.iterdir()) == []


def test_package_that_is_deleted_meanwhile_costs_a_second_try(
    settings: life.Settings, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings.data / "+files" / UPLOADED).unlink()
    monkeypatch.setattr(time, "sleep", lambda _: state["files"].clear())
    assert stored(life.backup(settings, settings.current)) == {LAST}


def test_link_to_what_is_none_of_devpis_is_not_followed(settings: life.Settings, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/tool-1.0.whl").write_text(UPLOADED)
    folder = (settings.data / "+files" / UPLOADED).parent
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(life.LifeError, match="symbolic link"):
        life.backup(settings, settings.current)


def test_backup_asks_for_room_first(settings: life.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 << 20))
    with pytest.raises(life.LifeError, match=r"needs 64 MiB in .*/backups, which has 5 MiB free.*devpi_backup_dir"):
        life.backup(settings, settings.current)
    assert list(settings.backups.iterdir()) == []


# ---- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: (path / "data/.sqlite").unlink(), r"has no data/\.sqlite"),
        (lambda path: (path / "conf/secret").write_text("SECRET"), r"conf/secret in .* is not what its manifest says"),
        (lambda path: (path / "manifest.json").unlink(), r"is no backup: it has no manifest"),
        (lambda path: (path / "manifest.json").write_text("{"), r"manifest\.json is damaged"),
        (lambda path: (path / "manifest.json").write_text('{"format": 9, "files": {}}'), r"is not of format 1"),
        (
            lambda path: (path / "manifest.json").write_text('{"format": 1, "files": {"data/../../etc/passwd": {}}}'),
            r"names a file outside",
        ),
        (
            lambda path: (path / "manifest.json").write_text('{"format": 1, "files": {}}'),
            r"does not name data/\.sqlite",
        ),
    ],
)
def test_backup_that_is_not_whole_is_refused(made: Path, spoil: Callable[[Path], Any], message: str) -> None:
    spoil(made)
    with pytest.raises(life.LifeError, match=message):
        life.verify(made)


@pytest.mark.parametrize(
    ("version", "database", "words"),
    [
        ("7.0.0", "4", ["devpi-server 7.0.0", "6.20.3", "upgrade.yml"]),
        ("6.100.0", "4", ["6.100.0"]),
        ("3.1.2", "3", ["version 3", "needs 4", "restore it on a server with devpi-server 3.1.2"]),
    ],
)
def test_backup_of_another_version_is_refused(version: str, database: str, words: list[str]) -> None:
    with pytest.raises(life.LifeError) as refusal:
        life.refuse_other_versions({"devpi_server": version, "database": database}, VERSION)
    assert [word for word in words if word not in str(refusal.value)] == []


def test_backup_of_an_older_version_with_the_same_database_is_taken() -> None:
    life.refuse_other_versions({"devpi_server": "6.9.2", "database": "4"}, VERSION)


def test_packed_backup_is_the_same_and_a_cut_one_is_refused(made: Path, tmp_path: Path) -> None:
    tar = tmp_path / "one.tar"
    life.pack(made, tar)
    assert tar.stat().st_mode & 0o777 == 0o600
    with life.opened(tar, tmp_path / "aside") as folder:
        assert life.verify(folder) == life.verify(made)
    assert list((tmp_path / "aside").iterdir()) == []
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(life.LifeError), life.opened(tar, tmp_path / "aside") as folder:
        life.verify(folder)


def test_packed_backup_cannot_write_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "evil").write_text("evil")
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        for name in ("data/../../out", "/tmp/lanmirror-out", "../out"):
            archive.add(tmp_path / "evil", name)
        link = tarfile.TarInfo("data/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    (tmp_path / "in").mkdir()
    life.unpack(tmp_path / "evil.tar", tmp_path / "in/to")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "evil",
        "evil.tar",
        "in",
        "in/to",
    ]
    assert not Path("/tmp/lanmirror-out").exists()


# ---- coming back ---------------------------------------------------------------------------------------------


@pytest.fixture
def systemd(settings: life.Settings, monkeypatch: pytest.MonkeyPatch) -> life.Settings:
    """A server on which units can be stopped and started, and two venvs."""
    for name in ("old", "new"):
        (settings.prefix / name).mkdir(parents=True)
    settings.current.symlink_to(settings.prefix / "old")
    unit = settings.prefix / "devpi.service"
    unit.write_text("old unit")
    monkeypatch.setattr(life, "run", lambda *_, **__: "")
    monkeypatch.setattr(life, "start", lambda _: None)
    return replace(settings, unit=unit)


def picture(settings: life.Settings) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for folder in (settings.data, settings.conf, settings.unit.parent)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {life.ASIDE, "aside"} & set(path.parts)
    } | {"current": bytes(settings.current.resolve())}


@pytest.mark.parametrize("move", [True, False])
@pytest.mark.parametrize("stop", [None, 1, 3])
def test_old_state_comes_back_however_far_it_came(
    systemd: life.Settings, monkeypatch: pytest.MonkeyPatch, move: bool, stop: int | None
) -> None:
    before = picture(systemd)
    if stop is None:
        life.put_aside(systemd, "upgrade", move=move, serving={})
        (systemd.data / ".sqlite").write_text("new")
        (systemd.data / ".serverversion").write_text("5")
        (systemd.conf / "secret").write_text("new")
        systemd.unit.write_text("new unit")
        life.point(systemd, systemd.prefix / "new")
        assert picture(systemd) != before
    else:
        # The power fails at the nth file that is moved, or copied.
        done = []
        name = "rename" if move else "replace"
        real = getattr(Path, name)

        def fail(path: Path, target: Path) -> Any:
            if path.name not in {"undo.new", "secret.new", "root-password.new", "devpi.service.new"}:
                done.append(path)
            if len(done) == stop:
                raise KeyboardInterrupt
            return real(path, target)

        monkeypatch.setattr(Path, name, fail)
        with pytest.raises(KeyboardInterrupt):
            life.put_aside(systemd, "upgrade", move=move, serving={})
        monkeypatch.setattr(Path, name, real)
        if not life.undo_file(systemd).exists():
            assert picture(systemd) == before
            return
        with pytest.raises(life.LifeError, match="upgrade was cut short: run `lanmirror-devpi back`"):
            life.refuse_unfinished(systemd)
    life.back(systemd)
    assert picture(systemd) == before
    assert list(systemd.old_data.iterdir()) == list(systemd.old_conf.iterdir()) == []


def test_coming_back_may_be_cut_short_too(systemd: life.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    before = picture(systemd)
    life.put_aside(systemd, "restore", move=True, serving={})
    (systemd.data / ".sqlite").write_text("new")
    real, moved = Path.rename, []

    def fail(path: Path, target: Path) -> Path:
        moved.append(path)
        if len(moved) == 3:
            raise KeyboardInterrupt
        return real(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt):
        life.back(systemd)
    life.back(systemd)
    assert picture(systemd) == before


@pytest.mark.parametrize("fails", ["place", "start", "log_in"])
def test_restore_that_fails_leaves_what_was_there(
    systemd: life.Settings, made: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    (systemd.data / ".event_serial").write_text("8")
    before = picture(systemd)
    calls = []

    def fail(*_: Any) -> None:
        calls.append(fails)
        if len(calls) == 1:
            raise life.LifeError("on purpose")

    for step in ("place", "log_in"):
        monkeypatch.setattr(life, step, lambda *_: None)
    monkeypatch.setattr(life, fails, fail)
    with pytest.raises(life.LifeError, match=r"restore failed, and what was there before is back.*on purpose"):
        life.restore(systemd, made)
    assert picture(systemd) == before


def test_restore_keeps_what_was_there_and_the_cache(
    systemd: life.Settings, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "chown", lambda *_: None)
    monkeypatch.setattr(life, "log_in", lambda _: None)
    (systemd.data / "+files" / UPLOADED).unlink()
    (systemd.data / ".event_serial").write_text("8")
    _, undo = life.restore(systemd, made)
    assert stored(systemd.data.parent) == {UPLOADED, LAST, CACHED}
    assert (systemd.data / ".event_serial").read_text() == "7"
    assert (systemd.old_data / undo.name / ".event_serial").read_text() == "8"
    assert (systemd.old_conf / undo.name / "secret").read_text() == "secret"
    assert not life.undo_file(systemd).exists()


def test_upgrade_to_an_older_database_is_refused(systemd: life.Settings) -> None:
    (systemd.data / ".serverversion").write_text("5")
    with pytest.raises(life.LifeError, match=r"databases of version 4.*has one of version 5.*newer checkout"):
        life.begin(systemd, systemd.prefix / "new")
    assert not (systemd.data / life.ASIDE).exists()


def test_upgrade_must_serve_what_was_served(systemd: life.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "wait", lambda _: None)
    pages = {"lab/dev/+simple/tool/": "<a>tool-1.0.whl</a>"}
    monkeypatch.setattr(life, "page", lambda _, path: pages.get(path, ""))
    life.put_aside(systemd, "upgrade", move=False, serving={"lab/dev/+simple/tool/": ["tool-1.0.whl"]})
    pages["lab/dev/+simple/tool/"] = "<p>nothing</p>"
    with pytest.raises(life.LifeError, match=r"has no tool-1\.0\.whl on /lab/dev"):
        life.finish(systemd)
    pages.clear()
    with pytest.raises(life.LifeError, match=r"does not serve /lab/dev/\+simple/tool/"):
        life.finish(systemd)
    pages["lab/dev/+simple/tool/"] = "<a>tool-1.0.whl</a>"
    assert life.finish(systemd) == "devpi serves what it did before"


# ---- the role ------------------------------------------------------------------------------------------------


def test_settings_are_those_of_the_role(tmp_path: Path) -> None:
    path = tmp_path / "life.toml"
    path.write_text(render("devpi", "life.toml.j2", devpi_data_dir="/srv/devpi", devpi_backup_cache=True))
    assert life.load_settings(path) == life.Settings(
        Path("/srv/devpi"), Path("/var/backups/devpi"), 7, True, "http://127.0.0.1:3141", "devpi"
    )
    with pytest.raises(life.LifeError, match=r"site\.yml"):
        life.load_settings(tmp_path / "none")


def test_site_never_upgrades_in_passing() -> None:
    for path in (ROOT / "roles/devpi/tasks").glob("*.yml"):
        for task in yaml.safe_load(path.read_text()):
            allowed = path.name == "upgrade.yml"
            assert allowed or "__devpi_upgrade" not in task.get("vars", {}), path


def test_command_line_says_why_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "life.toml").write_text("")
    assert life.main(["--settings", str(tmp_path / "none"), "backup"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lanmirror-devpi: ")
    assert error.count("\n") == 1
