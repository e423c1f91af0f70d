"""What backs devpi up, restores and upgrades it: with a database as devpi writes it, and without a server.

A devpi that runs, and its own reader of the database, have their tests in Molecule (molecule/pair/tests/test_life.py).
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
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

from roles.devpi.files import lanmirror_ops
from roles.devpi.files.lanmirror_ops import (
    OpsError,
    archive,
    command,
    settings,
    system,
    undo,
    upgrade,
)
from roles.devpi.files.lanmirror_ops.archive import opened, pack, refuse_other_versions, unpack, verify, whole_backups
from roles.devpi.files.lanmirror_ops.backup import backup
from roles.devpi.files.lanmirror_ops.restore import restore
from roles.devpi.files.lanmirror_ops.settings import ASIDE, Settings
from tests.roles.render import ROOT, render

# The others are for the Python of a venv of devpi's.
MODULES = [
    importlib.import_module(f"{lanmirror_ops.__name__}.{module.name}")
    for module in pkgutil.iter_modules(lanmirror_ops.__path__)
    if module.name not in {"__main__", "devpi_state", "hides", "packages"}
]

VERSION = {"version": "6.20.3", "database": "4"}
UPLOADED = "lab/dev/+f/abc/tool-1.0.whl"
CACHED = "root/pypi/+f/def/idna-3.whl"
# Nothing of it is run.
VENV = Path("/nonexistent")
LAST = "root/pypi/+f/123/attrs-1.whl"


def patch(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    """Put something in the place of a function of the package, for all modules that use it."""
    users = [module for module in MODULES if hasattr(module, name)]
    assert users
    for module in users:
        monkeypatch.setattr(module, name, value)


def as_rendered(folder: Path, **variables: Any) -> Settings:
    """Read the settings as the role writes them."""
    path = folder / "lanmirror.toml"
    path.write_text(render("devpi", "lanmirror.toml.j2", **variables))
    try:
        return settings.load(path)
    finally:
        path.unlink()


@pytest.fixture
def server(tmp_path: Path) -> Settings:
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
    for name in archive.CONF:
        (conf / name).write_text(name)
    return replace(
        as_rendered(tmp_path),
        url="http://127.0.0.1:1",
        data=data,
        backups=tmp_path / "backups",
        keep=2,
        conf=conf,
        prefix=tmp_path / "prefix",
    )


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
    patch(monkeypatch, "read_state", lambda *_, **__: known)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    return known


@pytest.fixture
def made(server: Settings) -> Path:
    return backup(server, server.current)


def stored(folder: Path) -> set[str]:
    return {str(path.relative_to(folder / "data/+files")) for path in (folder / "data/+files").rglob("*.whl")}


# ---- backup --------------------------------------------------------------------------------------------------


def test_backup_has_what_is_needed_to_stand_up_again_and_only_root_reads_it(server: Settings, made: Path) -> None:
    manifest = verify(made, VENV)
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
    assert (made / "data/+files" / UPLOADED).samefile(server.data / "+files" / UPLOADED)
    assert [
        path.stat().st_mode & 0o077 for path in (server.backups, made / "data/.sqlite", made / "manifest.json")
    ] == [
        0,
        0,
        0,
    ]
    with sqlite3.connect(made / "data/.sqlite") as db:
        assert db.execute("select data from changelog").fetchall() == [("seven",)]


def test_backup_has_the_cache_when_it_is_wanted(server: Settings) -> None:
    whole = backup(replace(server, cache=True), server.current)
    assert stored(whole) == {UPLOADED, CACHED, LAST}


def test_backup_is_a_copy_where_files_cannot_be_linked(server: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    copied = backup(server, server.current) / "data/+files" / UPLOADED
    assert not copied.samefile(server.data / "+files" / UPLOADED)
    assert copied.stat().st_mode & 0o777 == 0o600


def test_only_so_many_backups_are_kept_and_a_half_one_is_none(
    server: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(1, 5):
        (server.backups / f".devpi-2026010{day}T000000Z.partial" / "data").mkdir(parents=True)
        monkeypatch.setattr(
            time, "strftime", lambda form, *_, day=day: form.replace("%Y%m%dT%H%M%SZ", f"2026010{day}T000000Z")
        )
        backup(server, server.current)
    (server.backups / "devpi-20260109T000000Z").mkdir()
    assert [path.name[-12:] for path in whole_backups(server.backups)] == ["0103T000000Z", "0104T000000Z"]
    assert list(server.backups.glob(".*")) == []


def test_backup_leaves_nothing_when_a_file_is_missing_or_damaged(server: Settings) -> None:
    path = server.data / "+files" / UPLOADED
    path.write_text("rotten")
    with pytest.raises(OpsError, match=r"tool-1\.0\.whl is damaged"):
        backup(server, server.current)
    path.unlink()
    with pytest.raises(OpsError, match=r"tool-1\.0\.whl is missing"):
        backup(server, server.current)
    assert list(server.backups.iterdir()) == []


def test_package_that_is_deleted_meanwhile_costs_a_second_try(
    server: Settings, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (server.data / "+files" / UPLOADED).unlink()
    monkeypatch.setattr(time, "sleep", lambda _: state["files"].clear())
    assert stored(backup(server, server.current)) == {LAST}


def test_link_to_what_is_none_of_devpis_is_not_followed(server: Settings, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/tool-1.0.whl").write_text(UPLOADED)
    folder = (server.data / "+files" / UPLOADED).parent
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OpsError, match="symbolic link"):
        backup(server, server.current)


def test_backup_asks_for_room_first(server: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 << 20))
    with pytest.raises(OpsError, match=r"needs 64 MiB in .*/backups, which has 5 MiB free.*devpi_backup_dir"):
        backup(server, server.current)
    assert list(server.backups.iterdir()) == []


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
    with pytest.raises(OpsError, match=message):
        verify(made, VENV)


@pytest.mark.parametrize(
    ("version", "database", "words"),
    [
        ("7.0.0", "4", ["devpi-server 7.0.0", "6.20.3", "upgrade.yml"]),
        ("6.100.0", "4", ["6.100.0"]),
        ("3.1.2", "3", ["version 3", "needs 4", "restore it on a server with devpi-server 3.1.2"]),
    ],
)
def test_backup_of_another_version_is_refused(version: str, database: str, words: list[str]) -> None:
    with pytest.raises(OpsError) as refusal:
        refuse_other_versions({"devpi_server": version, "database": database}, VERSION)
    assert [word for word in words if word not in str(refusal.value)] == []


def test_backup_of_an_older_version_with_the_same_database_is_taken() -> None:
    refuse_other_versions({"devpi_server": "6.9.2", "database": "4"}, VERSION)


def test_packed_backup_is_the_same_and_a_cut_one_is_refused(made: Path, tmp_path: Path) -> None:
    tar = tmp_path / "one.tar"
    pack(made, tar, VENV)
    assert tar.stat().st_mode & 0o777 == 0o600
    with opened(tar, tmp_path / "aside") as folder:
        assert verify(folder, VENV) == verify(made, VENV)
    assert list((tmp_path / "aside").iterdir()) == []
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(OpsError), opened(tar, tmp_path / "aside") as folder:
        verify(folder, VENV)


def test_packed_backup_cannot_write_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "evil").write_text("evil")
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        for name in ("data/../../out", "/tmp/lanmirror-out", "../out"):
            archive.add(tmp_path / "evil", name)
        link = tarfile.TarInfo("data/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    (tmp_path / "in").mkdir()
    unpack(tmp_path / "evil.tar", tmp_path / "in/to")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "evil",
        "evil.tar",
        "in",
        "in/to",
    ]
    assert not Path("/tmp/lanmirror-out").exists()


# ---- coming back ---------------------------------------------------------------------------------------------


@pytest.fixture
def systemd(server: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A server on which units can be stopped and started, and two venvs."""
    for name in ("old", "new"):
        (server.prefix / name).mkdir(parents=True)
    server.current.symlink_to(server.prefix / "old")
    unit = server.prefix / "devpi.service"
    unit.write_text("old unit")
    patch(monkeypatch, "run", lambda *_, **__: "")
    patch(monkeypatch, "start", lambda _: None)
    return replace(server, unit=unit)


def picture(server: Settings) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for folder in (server.data, server.conf, server.unit.parent)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {ASIDE, "aside"} & set(path.parts)
    } | {"current": bytes(server.current.resolve())}


@pytest.mark.parametrize("move", [True, False])
@pytest.mark.parametrize("stop", [None, 1, 3])
def test_old_state_comes_back_however_far_it_came(
    systemd: Settings, monkeypatch: pytest.MonkeyPatch, move: bool, stop: int | None
) -> None:
    before = picture(systemd)
    if stop is None:
        undo.put_aside(systemd, "upgrade", move=move, serving={})
        (systemd.data / ".sqlite").write_text("new")
        (systemd.data / ".serverversion").write_text("5")
        (systemd.conf / "secret").write_text("new")
        systemd.unit.write_text("new unit")
        system.point(systemd, systemd.prefix / "new")
        assert picture(systemd) != before
    else:
        # The power fails at the nth file that is moved, or copied.
        done = []
        name = "rename" if move else "replace"
        real = getattr(Path, name)

        def fail(path: Path, target: Path) -> Any:
            if path.name not in {".undo.json.new", "secret.new", "root-password.new", "devpi.service.new"}:
                done.append(path)
            if len(done) == stop:
                raise KeyboardInterrupt
            return real(path, target)

        monkeypatch.setattr(Path, name, fail)
        with pytest.raises(KeyboardInterrupt):
            undo.put_aside(systemd, "upgrade", move=move, serving={})
        monkeypatch.setattr(Path, name, real)
        if not undo.undo_file(systemd).exists():
            assert picture(systemd) == before
            return
        with pytest.raises(OpsError, match="upgrade was cut short: run `lanmirror-devpi back`"):
            undo.refuse_unfinished(systemd)
    undo.back(systemd)
    assert picture(systemd) == before
    assert list(systemd.old_data.iterdir()) == list(systemd.old_conf.iterdir()) == []


def test_coming_back_may_be_cut_short_too(systemd: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    before = picture(systemd)
    undo.put_aside(systemd, "restore", move=True, serving={})
    (systemd.data / ".sqlite").write_text("new")
    real, moved = Path.rename, []

    def fail(path: Path, target: Path) -> Path:
        moved.append(path)
        if len(moved) == 3:
            raise KeyboardInterrupt
        return real(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt):
        undo.back(systemd)
    undo.back(systemd)
    assert picture(systemd) == before


@pytest.mark.parametrize("fails", ["place", "start", "log_in"])
def test_restore_that_fails_leaves_what_was_there(
    systemd: Settings, made: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    (systemd.data / ".event_serial").write_text("8")
    before = picture(systemd)
    calls = []

    def fail(*_: Any) -> None:
        calls.append(fails)
        if len(calls) == 1:
            raise OpsError("on purpose")

    for step in ("place", "log_in"):
        patch(monkeypatch, step, lambda *_: None)
    patch(monkeypatch, fails, fail)
    with pytest.raises(OpsError, match=r"restore failed, and what was there before is back.*on purpose"):
        restore(systemd, made)
    assert picture(systemd) == before


def test_restore_keeps_what_was_there_and_the_cache(
    systemd: Settings, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "chown", lambda *_: None)
    patch(monkeypatch, "log_in", lambda _: None)
    (systemd.data / "+files" / UPLOADED).unlink()
    (systemd.data / ".event_serial").write_text("8")
    _, aside = restore(systemd, made)
    assert stored(systemd.data.parent) == {UPLOADED, LAST, CACHED}
    assert (systemd.data / ".event_serial").read_text() == "7"
    assert (systemd.old_data / aside.name / ".event_serial").read_text() == "8"
    assert (systemd.old_conf / aside.name / "secret").read_text() == "secret"
    assert not undo.undo_file(systemd).exists()


def test_upgrade_to_an_older_database_is_refused(systemd: Settings) -> None:
    (systemd.data / ".serverversion").write_text("5")
    with pytest.raises(OpsError, match=r"databases of version 4.*has one of version 5.*newer checkout"):
        upgrade.begin(systemd, systemd.prefix / "new")
    assert not (systemd.data / ASIDE).exists()


def test_upgrade_must_serve_what_was_served(systemd: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    patch(monkeypatch, "must_answer", lambda _: None)
    pages = {"lab/dev/+simple/tool/": "<a>tool-1.0.whl</a>"}
    patch(monkeypatch, "page", lambda _, path: pages.get(path, ""))
    undo.put_aside(systemd, "upgrade", move=False, serving={"lab/dev/+simple/tool/": ["tool-1.0.whl"]})
    pages["lab/dev/+simple/tool/"] = "<p>nothing</p>"
    with pytest.raises(OpsError, match=r"has no tool-1\.0\.whl on /lab/dev"):
        upgrade.finish(systemd)
    pages.clear()
    with pytest.raises(OpsError, match=r"does not serve /lab/dev/\+simple/tool/"):
        upgrade.finish(systemd)
    pages["lab/dev/+simple/tool/"] = "<a>tool-1.0.whl</a>"
    assert upgrade.finish(systemd) == "devpi serves what it did before"


# ---- the role ------------------------------------------------------------------------------------------------


def test_settings_are_those_of_the_role(tmp_path: Path) -> None:
    read = as_rendered(tmp_path, devpi_data_dir="/srv/devpi", devpi_backup_cache=True, devpi_metrics_file="/srv/a.prom")
    assert (read.data, read.backups, read.keep, read.cache) == (Path("/srv/devpi"), Path("/var/backups/devpi"), 7, True)
    assert (read.url, read.user, read.metrics) == ("http://127.0.0.1:3141", "devpi", Path("/srv/a.prom"))
    assert as_rendered(tmp_path).metrics is None
    with pytest.raises(OpsError, match=r"is missing: set the server up first, with site\.yml"):
        settings.load(tmp_path / "none")


@pytest.mark.parametrize("text", ["url", 'url = "x"', 'folders = 1\nmetrics = ""'])
def test_settings_of_another_form_are_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "lanmirror.toml").write_text(text)
    with pytest.raises(OpsError, match=r"lanmirror\.toml is not as site\.yml writes it"):
        settings.load(tmp_path / "lanmirror.toml")


def test_site_never_upgrades_in_passing() -> None:
    for path in (ROOT / "roles/devpi/tasks").glob("*.yml"):
        for task in yaml.safe_load(path.read_text()):
            allowed = path.name == "upgrade.yml"
            assert allowed or "__devpi_upgrade" not in task.get("vars", {}), path


def test_command_line_says_why_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--settings", str(tmp_path / "none"), "backup"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lanmirror-devpi: ")
    assert error.count("\n") == 1
