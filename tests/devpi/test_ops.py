"""What backs devpi up and looks after it, with a database as the pinned devpi writes it."""

from __future__ import annotations

import hashlib
import random
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from roles.devpi.files.lanmirror_ops import OpsError, settings, verdict
from roles.devpi.files.lanmirror_ops.archive import opened, pack, verify, whole_backups
from roles.devpi.files.lanmirror_ops.asking import silence
from roles.devpi.files.lanmirror_ops.backup import backup
from roles.devpi.files.lanmirror_ops.database import damage, live_damage
from roles.devpi.files.lanmirror_ops.files import sha256
from roles.devpi.files.lanmirror_ops.health import known_page, look_at_devpi
from roles.devpi.files.lanmirror_ops.settings import Settings
from tests.devpi.conftest import PASSWORD, Devpi
from tests.roles.render import render

PAGE = 4096
MANY = 60


def upload(devpi: Devpi, index: str, name: str, content: bytes) -> None:
    """Upload a file as root."""
    answer = requests.post(
        f"{devpi.url}/{index}/",
        data={":action": "file_upload", "name": name.partition("-")[0], "version": "1.0"},
        files={"content": (name, content)},
        auth=("root", PASSWORD),
        timeout=30,
    )
    assert answer.ok, answer.text


class Quiet(SimpleHTTPRequestHandler):
    """A directory on disk, as an upstream has it."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def directory(folder: Path) -> Iterator[str]:
    """Serve a folder; give the URL."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


@pytest.fixture(scope="module")
def lab(start_devpi: Callable[..., Devpi], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Devpi]:
    """A devpi with a mirror, of which pages and a file are cached, and an index with an uploaded package."""
    devpi, www = start_devpi(), tmp_path_factory.mktemp("www")
    (www / "project0-0.tar.gz").write_bytes(b"cached")
    digest = hashlib.sha256(b"cached").hexdigest()
    for number in range(MANY):
        # As many as make a page longer than one of the database's.
        names = [f"project{number}-{n}.tar.gz" for n in range(200)]
        sums = [digest, *(hashlib.sha256(name.encode()).hexdigest() for name in names[1:])]
        links = [f'<a href="/{name}#sha256={each}">{name}</a>' for name, each in zip(names, sums, strict=True)]
        (www / f"simple/project{number}").mkdir(parents=True)
        (www / f"simple/project{number}/index.html").write_text("\n".join(links))
    with directory(www) as url:
        devpi.declare(
            "root/pypi", type="mirror", mirror_url=f"{url}/simple/", mirror_no_project_list=True, volatile=False
        )
        for number in range(MANY):
            assert devpi.get(f"/root/pypi/+simple/project{number}/").status_code == 200
        file = f"/root/pypi/+f/{digest[:3]}/{digest[3:16]}/project0-0.tar.gz"
        assert requests.get(devpi.url + file, timeout=30).content == b"cached"
        devpi.declare("root/dev", type="stage", bases=["root/pypi"])
        upload(devpi, "root/dev", "tool-1.0.tar.gz", b"tool")
    yield devpi
    devpi.stop()


@pytest.fixture
def server(lab: Devpi, venv_of_devpi: Path, tmp_path: Path) -> Settings:
    """The settings of a server with a copy of that data."""
    path = tmp_path / "lanmirror.toml"
    path.write_text(render("devpi", "lanmirror.toml.j2", devpi_backup_keep=2, devpi_backup_cache=True))
    for name in ("conf", "prefix", "run", "public"):
        (tmp_path / name).mkdir()
    shutil.copytree(lab.data, tmp_path / "data")
    (tmp_path / "conf/secret").write_text("secret")
    (tmp_path / "conf/root-password").write_text(PASSWORD)
    (tmp_path / "prefix/current").symlink_to(venv_of_devpi)
    return replace(
        settings.load(path),
        url=lab.url,
        data=tmp_path / "data",
        backups=tmp_path / "backups",
        conf=tmp_path / "conf",
        prefix=tmp_path / "prefix",
        state=tmp_path / "state.sqlite",
        public=tmp_path / "public",
        upstreams=tmp_path / "run/upstreams.json",
    )


def spoil(database: Path, page: int, content: bytes) -> None:
    """Overwrite a page, as a disk does that loses a write."""
    with database.open("r+b") as file:
        file.seek(page * PAGE)
        file.write(content)


# ---- backup --------------------------------------------------------------------------------------------------


def test_backup_of_a_damaged_database_is_none_and_pushes_no_good_one_out(server: Settings) -> None:
    made = backup(server, server.current)
    other = shutil.copytree(made, server.backups.with_name("other"))
    good = server.database.read_bytes()
    pages, manifest = len(good) // PAGE, (made / "manifest.json").read_text()
    dice = random.Random(20261129)
    # The last page of a long value, zeroed, is what SQLite's own check does not see: there are about MANY of them.
    for content in (bytes(PAGE), dice.randbytes(PAGE)):
        for page in {0, pages - 1, *dice.sample(range(pages), 2)}:
            server.database.write_bytes(good)
            spoil(server.database, page, content)
            with pytest.raises(OpsError, match=r"devpi's database is damaged .*the newest is .*devpi-") as refused:
                backup(server, server.current)
            assert str(made) in str(refused.value)
            assert whole_backups(server.backups) == [made]
            # The backup that older versions made of it.
            shutil.copyfile(server.database, other / "data/.sqlite")
            old, new = (sha256(folder / "data/.sqlite") for folder in (made, other))
            (other / "manifest.json").write_text(manifest.replace(old, new))
            with pytest.raises(OpsError, match="is damaged"):
                verify(other, server.current)


def test_every_zeroed_end_of_a_long_value_is_seen(server: Settings) -> None:
    with closing(sqlite3.connect(server.database)) as db:
        # The last page in a chain of overflow pages begins with a pointer that is 0 (sqlite.org/fileformat.html).
        pages = server.database.stat().st_size // PAGE
        assert db.execute("pragma page_size").fetchone() == (PAGE,)
    good = server.database.read_bytes()
    ends = [page for page in range(1, pages) if good[page * PAGE : page * PAGE + 4] == bytes(4)]
    assert len(ends) >= MANY
    blind = 0
    for page in (ends[MANY // 2], ends[-1]):
        spoil(server.database, page, bytes(PAGE))
        with closing(sqlite3.connect(server.database)) as db:
            blind += db.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert damage(server.current, server.database)
        assert live_damage(server.current, server.database)
        server.database.write_bytes(good)
    assert blind
    assert not damage(server.current, server.database)


def test_damaged_cached_file_is_left_out_and_told(server: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    (cached,) = (server.data / "+files/root/pypi").rglob("*.tar.gz")
    name = f"data/+files/{cached.relative_to(server.data / '+files')}"
    assert name in verify(backup(server, server.current), server.current)["files"]
    cached.unlink()
    cached.write_bytes(b"rotten")
    # Whatever its last change was, devpi does not start without the files of that.
    made = backup(replace(server, backups=server.backups.with_name("other")), server.current)
    assert name not in verify(made, server.current)["files"]
    assert f"{name.removeprefix('data/')} is damaged on the disk" in capsys.readouterr().err
    assert not (made / name).exists()


@pytest.mark.parametrize(
    "spoiled",
    [
        lambda made: (made / "manifest.json").write_bytes((made / "manifest.json").read_bytes()[:-40]),
        lambda made: (made / "manifest.json").write_bytes(b""),
        lambda made: (made / "conf/secret").unlink(),
        lambda made: (made / "data/.sqlite").write_bytes(b""),
    ],
    ids=["manifest cut short", "manifest empty", "file gone", "database empty"],
)
def test_spoiled_backup_takes_no_place_of_a_good_one(server: Settings, spoiled: Callable[[Path], object]) -> None:
    first = backup(server, server.current).rename(server.backups / "devpi-20260101T000000Z")
    shutil.copytree(first, server.backups / "devpi-20260102T000000Z")
    assert len(whole_backups(server.backups)) == 2
    newest = whole_backups(server.backups)[-1]
    spoiled(newest)
    before = whole_backups(server.backups)
    assert newest not in before
    made = backup(server, server.current)
    assert whole_backups(server.backups) == [before[-1], made]
    assert newest.exists()
    with pytest.raises(OpsError):
        verify(newest, server.current)


def test_packed_backup_that_is_cut_short_anywhere_is_refused(server: Settings, tmp_path: Path) -> None:
    made, tar = backup(server, server.current), tmp_path / "one.tar"
    pack(made, tar, server.current)
    whole = tar.read_bytes()
    # Two empty blocks, and room up to a multiple of twenty, mark the end.
    content = len(whole.rstrip(b"\0"))
    dice = random.Random(20261129)
    cuts = {
        0,
        1,
        511,
        512,
        1024,
        content - 512,
        *dice.sample(range(content), 20),
        *range(512, content, content // 7 // 512 * 512),
    }
    for cut in sorted(cuts):
        tar.write_bytes(whole[:cut])
        with pytest.raises(OpsError), opened(tar, tmp_path / "aside") as folder:
            verify(folder, server.current)
        assert list((tmp_path / "aside").iterdir()) == []
    tar.write_bytes(whole)
    with opened(tar, tmp_path / "aside") as folder:
        assert verify(folder, server.current) == verify(made, server.current)


def test_damaged_backup_is_not_packed_and_leaves_no_file(server: Settings, tmp_path: Path) -> None:
    made = backup(server, server.current)
    (made / "conf/secret").write_text("SECRET")
    with pytest.raises(OpsError, match="conf/secret"):
        pack(made, tmp_path / "one.tar", server.current)
    assert not list(tmp_path.glob("one.tar*"))


# ---- health --------------------------------------------------------------------------------------------------


def test_health_asks_devpi_for_a_page_that_it_knows(lab: Devpi, server: Settings) -> None:
    assert known_page(server.database, ["root/pypi"]) == "/root/pypi/+simple/project0/"
    found = look_at_devpi(server)
    # The upstream is away by now, and the page is served as it is known.
    assert (found.page, found.primary, found.indexes) == ("", "", frozenset({"root/pypi", "root/dev"}))


def test_health_says_when_devpi_answers_and_serves_no_page(
    start_devpi: Callable[..., Devpi], lab: Devpi, server: Settings
) -> None:
    devpi = start_devpi()
    devpi.stop()
    shutil.rmtree(devpi.data)
    shutil.copytree(lab.data, devpi.data)
    spoiled = devpi.data / ".sqlite"
    with closing(sqlite3.connect(spoiled)) as db, db:
        db.execute(
            "update changelog set data = zeroblob(9) where serial in (select serial from kv where key like ?)",
            ["root/pypi/project0/%"],
        )
    devpi.start()
    assert silence(devpi.url) == ""
    found = look_at_devpi(replace(server, url=devpi.url, data=devpi.data))
    assert found.page == "/root/pypi/+simple/project0/ (status 500)"
    devpi.stop()


def test_database_is_checked_once_a_day_and_after_each_start_and_a_bad_one_each_time(
    server: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    def at() -> float:
        verdict.check(server)
        last = verdict.last_verdict(server)
        assert last is not None
        return last.at

    first = at()
    assert at() == first
    # systemd makes the folder anew; the old one is still there, so that the new one has another number.
    server.upstreams.parent.rename(server.upstreams.parent.with_name("before"))
    server.upstreams.parent.mkdir()
    second = at()
    assert second > first
    assert at() == second
    text = server.verdict.read_text()
    server.verdict.write_text(text.replace(str(second), str(second - verdict.DAY)))
    third = at()
    assert third > second
    good = server.database.read_bytes()
    spoil(server.database, len(good) // PAGE // 2, b"\xff" * PAGE)
    assert at() == third
    server.verdict.unlink()
    fourth = at()
    last = verdict.last_verdict(server)
    assert last is not None
    assert last.damage
    assert "devpi's database is damaged" in capsys.readouterr().err
    server.database.write_bytes(good)
    assert at() > fourth
    last = verdict.last_verdict(server)
    assert last is not None
    assert last.damage == ""


def test_check_holds_no_writer_up(server: Settings) -> None:
    with closing(sqlite3.connect(server.database, isolation_level=None)) as db:
        db.execute("begin exclusive")
        assert live_damage(server.current, server.database) == ""
        db.execute("rollback")
