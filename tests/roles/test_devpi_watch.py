"""Role devpi: what looks after devpi. The real devpi, Nginx and logrotate are in the Molecule scenario."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roles.devpi.files.lanmirror_ops import command, disks, eviction, health, known, metrics, settings
from roles.devpi.files.lanmirror_ops.asking import silence
from roles.devpi.files.lanmirror_ops.eviction import Stored, evict
from roles.devpi.files.lanmirror_ops.health import Devpi, Health
from roles.devpi.files.lanmirror_ops.known import Known
from roles.devpi.files.lanmirror_ops.served import Served, tally
from roles.devpi.files.lanmirror_ops.settings import GIB, MIB, Folder, Settings
from tests.roles.render import render

NOW = 1_800_000_000.0


def line(subject: str, near: str = "-", kept: str = "-", *, at: float = NOW, status: int = 200, sent: int = 10) -> str:
    return f"{at:.3f}\t{status}\t{sent}\t{near}\t{kept}\t{subject}\n"


@pytest.fixture
def config(tmp_path: Path) -> Settings:
    """What the role writes, with everything in one folder and files of any age evicted."""
    path = tmp_path / "lanmirror.toml"
    path.write_text(render("devpi", "lanmirror.toml.j2", devpi_max_cached_gib=3, devpi_min_free_gib=2))
    config = settings.load(path)
    assert (config.url, config.data) == ("http://127.0.0.1:3141", Path("/var/lib/devpi"))
    assert (config.metrics, config.max_cached, config.grace) == (None, 3 << 30, 3600.0)
    assert (config.folders[0].path, config.folders[0].min_free) == (config.data, 2 << 30)
    assert [folder.path for folder in config.folders if folder.stops] == [config.data]
    for folder in ("data", "public", "run"):
        (tmp_path / folder).mkdir()
    return replace(
        config,
        data=tmp_path / "data",
        log=tmp_path / "served.log",
        state=tmp_path / "state.sqlite",
        public=tmp_path / "public",
        upstreams=tmp_path / "run/upstreams.json",
        metrics=tmp_path / "pypi.prom",
        grace=-3600.0,
        folders=(Folder(tmp_path, 1, "it is full", "make room"),),
    )


# ---- what Nginx has served -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "result"),
    [
        (line("page", "HIT", "MISS"), "hit"),
        (line("page", "UPDATING", "HIT"), "hit"),
        (line("page", "EXPIRED", "HIT"), "hit"),
        (line("page", "MISS", "MISS"), "miss"),
        (line("page", "EXPIRED", "EXPIRED"), "miss"),
        (line("page", "MISS"), "miss"),
        (line("page"), "miss"),
        (line("page", "MISS", "STALE"), "stale"),
        (line("page", "HIT", "UPDATING"), "stale"),
        (line("page", "MISS", "MISS", status=404), "miss"),
        (line("page", "MISS", "MISS", status=424), "error"),
        (line("page", "HIT", "STALE", status=502), "error"),
        (line("page", status=429), "error"),
        (line("/root/pypi/+f/abc/def/a.whl"), "hit"),
        (line("/root/pypi/+f/abc/def/a.whl", status=206), "hit"),
        (line("/root/pypi/+f/abc/def/a.whl", "HIT"), "hit"),
        (line("/root/pypi/+f/abc/def/a.whl", "MISS"), "miss"),
        (line("/root/pypi/+f/abc/def/a.whl", "MISS", status=502), "error"),
    ],
)
def test_answer_is_counted_as_what_it_was(text: str, result: str) -> None:
    served = Served.of(text)
    assert served is not None
    assert served.result == result
    assert served.kind == ("page" if "page" in text else "file")


@pytest.mark.parametrize("text", [line("page").rstrip("\n"), "1\t2\n", line("page").replace("200", "2x0"), "\n"])
def test_line_that_is_none_of_ours_counts_nothing(text: str) -> None:
    assert tally([text]) == (Counter(), {})


def test_file_was_used_when_it_or_its_metadata_was_asked_for_last() -> None:
    path = "/root/pypi/+f/abc/def/a b.whl"
    lines = [
        line(path, at=5),
        line(f"{path}.metadata", at=9),
        line(path, at=7),
        line("/x/y/+f/1/2/no", at=9, status=404),
    ]
    counts, used = tally(lines)
    assert used == {"root/pypi/+f/abc/def/a b.whl": 9.0}
    assert counts["sent_bytes_total:file"] == 40


def pages(state: Known) -> float:
    return state.numbers().get("pages_total:hit", 0)


def test_log_is_counted_once_through_rotation_restart_and_cut_lines(config: Settings) -> None:
    state = Known(config.state)
    state.read_log(config.log)  # there is none yet
    hit = line("page", "HIT", "HIT")
    config.log.write_text(hit * 3 + hit[:25])
    state.read_log(config.log)
    assert pages(state) == 3
    with config.log.open("a") as log:
        log.write(hit[25:] + hit)
    state = Known(config.state)  # as after a restart
    state.read_log(config.log)
    state.read_log(config.log)
    assert pages(state) == 5

    old = config.log.rename(config.log.with_name("served.log.1"))
    config.log.write_text(hit)
    state.read_log(config.log)
    with old.open("a") as log:  # one of Nginx's processes has not opened the new one yet
        log.write(hit)
    state.read_log(config.log)
    assert pages(state) == 7

    old.unlink()  # compressed
    config.log.write_text("")  # cut short in place
    state.read_log(config.log)
    config.log.write_text(hit)
    state.read_log(config.log)
    assert pages(state) == 8


def test_end_in_the_middle_of_counting_leaves_it_to_the_next(config: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    config.log.with_name("served.log.1").write_text(line("/root/pypi/+f/a/b/c.whl"))
    config.log.write_text(line("page", "HIT"))
    state = Known(config.state)
    count = tally
    counted: list[tuple[Counter[str], dict[str, float]]] = []

    def ends_at_the_second_file(lines: Iterator[str]) -> tuple[Counter[str], dict[str, float]]:
        if counted:
            raise KeyboardInterrupt
        counted.append(count(lines))
        return counted[0]

    with monkeypatch.context() as broken:
        broken.setattr(known, "tally", ends_at_the_second_file)
        with pytest.raises(KeyboardInterrupt):
            state.read_log(config.log)
    assert counted
    assert (state.numbers(), state.used()) == ({}, {})
    state.read_log(config.log)
    assert pages(state) == 1
    assert state.used() == {"root/pypi/+f/a/b/c.whl": NOW}


# ---- the limit of cached files -------------------------------------------------------------------------------


def cached(name: str, size: int = 10, written: float = 1.0) -> Stored:
    return Stored(f"root/pypi/+f/abc/def/{name}", size, written)


def test_those_go_first_that_nobody_has_asked_for_the_longest() -> None:
    files = [cached("a"), cached("b"), cached("c"), cached("d", written=50.0)]
    used = {files[0].path: 90.0, files[1].path: 20.0, files[2].path: 70.0}
    assert eviction.plan(files, used, limit=20, young=100.0) == [files[1], files[3]]
    assert eviction.plan(files, used, limit=40, young=100.0) == []
    assert eviction.plan(files, used, limit=0, young=100.0) == []


def test_metadata_beside_a_wheel_is_as_young_as_the_wheel() -> None:
    wheels = [Stored(f"root/pypi/+f/aaa/bb/{name}.whl", 10, 1.0) for name in "ab"]
    metadata = [Stored(f"{wheel.path}.metadata", 1, 1.0) for wheel in wheels]
    used = {wheels[0].path: 90.0, wheels[1].path: 50.0}
    # That of `a` is asked for by all who resolve: Nginx' log has it as the wheel.
    assert eviction.plan([*metadata, *wheels], used, limit=11, young=100.0) == [wheels[1], metadata[1]]


def test_what_must_stay_stays_and_the_next_goes_in_its_place() -> None:
    young, last, other = cached("young", written=60.0), cached("last"), cached("other")
    no_hash = Stored("root/vendor/+e/page/a.whl", 10, 1.0)
    files = [young, last, no_hash, other]
    assert eviction.plan(files, {}, limit=1, young=50.0, keep=b"\0\0" + last.path.encode() + b"-1f-tmp") == [other]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.floats(0, 100), st.booleans()), max_size=30),
    st.integers(1, 300),
    st.floats(0, 100),
)
def test_plan_keeps_to_the_limit_and_takes_no_more_than_it_must(
    given_files: list[tuple[int, float, bool]], limit: int, young: float
) -> None:
    files = [
        Stored(f"u/i/+{'f' if checked else 'e'}/{number}", size, written)
        for number, (size, written, checked) in enumerate(given_files)
    ]
    chosen = eviction.plan(files, {}, limit=limit, young=young)
    left = sum(file.size for file in files) - sum(file.size for file in chosen)
    free_to_go = [file for file in files if file.checked and file.written < young]
    assert set(chosen) <= set(free_to_go)
    assert left <= limit or len(chosen) == len(free_to_go)
    assert not chosen or left + chosen[-1].size > limit


@pytest.fixture
def devpi(config: Settings) -> Iterator[Settings]:
    """Stand in for devpi's list of indexes, with files of a mirror and of a stage index and a last change."""
    users = {"root": {"indexes": {"pypi": {"type": "mirror"}, "priv": {"type": "stage"}}}, "nobody": {}}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"type": "apiconfig", "result": users if self.path == "/" else {}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    for name in ("pypi/+f/a/b/old.whl", "pypi/+f/a/b/new.whl", "pypi/+f/c/d/last.whl", "priv/+f/a/b/own.whl"):
        file = config.data / "+files/root" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(100))
    (config.data / "+files/root/pypi/+f/a/b/x.whl-0123456789abcdef-tmp").write_bytes(bytes(100))
    with sqlite3.connect(config.data / ".sqlite") as db:
        db.execute("CREATE TABLE changelog (serial INTEGER PRIMARY KEY, data BLOB NOT NULL)")
        db.executemany(
            "INSERT INTO changelog VALUES (?, ?)",
            [(1, b"root/pypi/+f/a/b/old.whl"), (2, b"N\0root/pypi/+f/c/d/last.whlN\0")],
        )
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield replace(config, url=f"http://127.0.0.1:{httpd.server_port}")
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def names(config: Settings) -> set[str]:
    return {path.name for path in (config.data / "+files").rglob("*") if path.is_file()}


def test_eviction_keeps_what_is_used_uploaded_being_written_or_devpis_last_change(devpi: Settings) -> None:
    devpi.log.write_text(line("/root/pypi/+f/a/b/new.whl", at=time.time() + 60))
    assert evict(replace(devpi, max_cached=250))
    assert names(devpi) == {"new.whl", "last.whl", "own.whl", "x.whl-0123456789abcdef-tmp"}
    numbers = Known(devpi.state).numbers()
    assert {name: numbers[name] for name in numbers if name.startswith(("evicted", "cached", "uploaded"))} == {
        "evicted_files_total": 1,
        "evicted_bytes_total": 100,
        "cached_files": 2,
        "cached_bytes": 200,
        "uploaded_bytes": 100,
    }
    assert evict(replace(devpi, max_cached=250))  # nothing is left to do
    assert evict(replace(devpi, max_cached=1))
    assert names(devpi) == {"last.whl", "own.whl", "x.whl-0123456789abcdef-tmp"}
    assert Known(devpi.state).numbers()["evicted_files_total"] == 2


def test_uses_of_what_is_there_are_known_and_of_nothing_else(devpi: Settings) -> None:
    files = ("pypi/+f/a/b/old.whl", "pypi/+f/c/d/last.whl", "priv/+f/a/b/own.whl", "pypi/+f/e/f/gone.whl")
    devpi.log.write_text("".join(line(f"/root/{name}", at=5.0) for name in files))
    assert evict(devpi)
    assert Known(devpi.state).used() == {f"root/{name}": 5.0 for name in files[:3]}
    assert evict(replace(devpi, max_cached=1))
    assert Known(devpi.state).used() == {f"root/{name}": 5.0 for name in files[1:3]}


def test_files_that_rules_hide_count_and_go_as_the_others(devpi: Settings) -> None:
    hidden = devpi.data / "+files/+held/root/pypi/2/+f/e/f/hidden.whl"
    hidden.parent.mkdir(parents=True)
    hidden.write_bytes(bytes(100))
    later = time.time() + 60
    devpi.log.write_text("".join(line(f"/root/pypi/+f/a/b/{name}.whl", at=later) for name in ("old", "new")))
    assert evict(replace(devpi, max_cached=400))
    assert Known(devpi.state).numbers()["cached_bytes"] == 400
    assert hidden.exists()
    assert evict(replace(devpi, max_cached=350))
    assert not hidden.exists()
    assert names(devpi) == {"old.whl", "new.whl", "last.whl", "own.whl", "x.whl-0123456789abcdef-tmp"}


def test_nothing_is_evicted_that_was_just_written_or_while_devpi_cannot_be_asked(
    devpi: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(devpi)
    assert evict(replace(devpi, max_cached=1, grace=60.0))
    assert "over their limit" in capsys.readouterr().err
    assert not evict(replace(devpi, max_cached=1, url="http://127.0.0.1:1"))
    assert "nothing is evicted: devpi does not say" in capsys.readouterr().err
    assert names(devpi) == before


# ---- how it is -----------------------------------------------------------------------------------------------


def room(free: int, path: str = "/srv/devpi", *, stops: bool = True, disk: int = 1, inodes: int | None = None) -> Any:
    """Give a folder of which 2 GiB should be free."""
    return disks.Measured(Folder(Path(path), 2 * GIB, "it is slow", "make room", stops), disk, 9 * GIB, free, inodes)


def judged(**found: Any) -> Health:
    well: dict[str, Any] = {
        "silent": "",
        "database": "",
        "damage": "",
        "devpi": Devpi(),
        "measured": [],
        "upstreams": {},
        "malware": "",
    }
    return health.judge(**{**well, **found})


def test_health_names_each_reason_and_an_upstream_is_no_reason_for_503() -> None:
    well = judged(measured=[room(3 * GIB)], upstreams={"root/pypi": (0.0, "403 status"), "root/other": (0.0, "")})
    assert well.problems == {}
    assert list(well.warnings) == ["upstream of root/pypi"]
    assert "root/pypi does not answer since 1970-01-01T00:00:00+00:00 (403 status)" in well.told(0.0)
    ill = judged(
        silent="refused", database="read-only", damage="page 7", devpi=Devpi(page="/a/b/"), measured=[room(1 * GIB)]
    )
    told = json.loads(ill.told(0.0))
    assert told["status"] == "failing"
    assert told["checked"] == "1970-01-01T00:00:00+00:00"
    # A devpi that does not answer at all serves no page either: once is enough.
    for word, problem in zip(("refused", "read-only", "page 7", "1.0 GiB are free"), told["problems"], strict=True):
        assert word in problem
    assert list(judged(devpi=Devpi(page="/a/b/ (status 500)")).problems) == ["page"]


def test_upstream_of_an_index_that_is_gone_is_nobodys_business() -> None:
    upstreams = {"root/pypi": (0.0, "403 status"), "old/gone": (0.0, "403 status")}
    found = judged(devpi=Devpi(indexes=frozenset({"root/pypi"})), upstreams=upstreams)
    assert list(found.warnings) == ["upstream of root/pypi"]


def test_disks_are_told_once_each_and_that_of_the_cache_is_a_warning() -> None:
    same = [room(GIB, "/var/cache/x", stops=False), room(GIB)]
    assert (list(judged(measured=same).problems), judged(measured=same).warnings) == (["disk of /srv/devpi"], {})
    other = judged(measured=[room(3 * GIB), room(GIB, "/var/cache/x", stops=False, disk=2)])
    assert other.problems == {}
    (text,) = other.warnings.values()
    assert text == "the disk of /var/cache/x is nearly full (1.0 GiB are free, 2 should be): it is slow; make room"
    inodes = judged(measured=[room(3 * GIB, inodes=12)])
    assert "12 files more can be made there" in inodes.problems["disk of /srv/devpi"]
    assert judged(measured=[room(3 * GIB, inodes=100000)]).problems == {}


def test_each_folder_that_is_written_to_is_watched_and_a_missing_one_by_its_parent(tmp_path: Path) -> None:
    (tmp_path / "settings").write_text(render("devpi", "lanmirror.toml.j2", devpi_backup_dir="/mnt/disk/backups"))
    read = settings.load(tmp_path / "settings")
    assert [str(folder.path) for folder in read.folders] == [
        "/var/lib/devpi",
        "/var/cache/lanmirror-devpi",
        "/tmp",
        "/var/log/nginx",
        "/var/lib/devpi-watch",
        "/mnt/disk/backups",
    ]
    (tmp_path / "settings").write_text(render("devpi", "lanmirror.toml.j2", devpi_backup_dir="/home/backups"))
    assert "/home/backups" not in [str(folder.path) for folder in settings.load(tmp_path / "settings").folders]
    found = disks.measure([Folder(tmp_path / "none/at/all", 1, "", ""), Folder(Path("/proc"), 1, "", "")])
    assert found[0].disk == tmp_path.stat().st_dev
    assert found[0].free > MIB
    assert found[1].inodes is None


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ({"role": "MASTER"}, ""),
        ({"role": "REPLICA", "update-from-primary-at": 900.0}, ""),
        (
            {"role": "REPLICA", "update-from-primary-at": 600.0},
            "nothing was heard from it since 1970-01-01T00:10:00+00:00",
        ),
        ({"role": "REPLICA", "update-from-primary-at": None, "replica-started-at": 900.0}, ""),
        ({"role": "REPLICA", "update-from-primary-at": None, "replica-started-at": 1.0}, "nothing was heard"),
        ({"role": "REPLICA", "update-from-primary-at": 999.0, "replication-errors": {"a": 1, "b": 2}}, "2 files could"),
    ],
)
def test_replica_that_does_not_follow_says_so(status: dict[str, Any], why: str) -> None:
    said = health.why_behind(status, 1000.0)
    assert bool(said) == bool(why)
    assert said.startswith(why)
    assert list(judged(devpi=Devpi(primary=said)).warnings) == ["primary"] * bool(why)


def test_either_file_is_there_and_the_journal_hears_of_changes_alone(tmp_path: Path) -> None:
    well, ill = Health({}, {}), Health({"disk": "full"}, {"upstream of a/b": "silent"})
    health.publish(well, tmp_path, 0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["ok.json"]
    health.publish(ill, tmp_path, 0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["failing.json"]
    assert list(health.changes(None, well)) == []
    assert sorted(health.changes(well, ill)) == [(3, "full"), (4, "silent")]
    assert list(health.changes(ill, Health({"disk": "fuller"}, ill.warnings))) == []
    assert sorted(health.changes(ill, well)) == [(5, "disk: well again"), (5, "upstream of a/b: well again")]


def test_database_is_tried_and_one_that_is_just_written_to_is_well(devpi: Settings) -> None:
    assert health.why_devpi_cannot_write(devpi.database) == ""
    with sqlite3.connect(devpi.data / ".sqlite", isolation_level=None) as db:
        db.execute("BEGIN IMMEDIATE")
        assert health.why_devpi_cannot_write(devpi.database) == ""
        db.execute("ROLLBACK")
    (devpi.data / ".sqlite").write_text("no database, but something of some length" * 30)
    assert "not a database" in health.why_devpi_cannot_write(devpi.database)
    (devpi.data / ".sqlite").unlink()
    assert "unable to open" in health.why_devpi_cannot_write(devpi.database)


def test_devpi_is_asked_and_metrics_are_in_prometheus_format(devpi: Settings) -> None:
    devpi.upstreams.write_text(json.dumps({"root/pypi": {"since": 5.0, "why": "403 status"}}))
    found, now, measured = health.look(devpi, silence(devpi.url), Devpi())
    assert (devpi.public / "ok.json").exists()
    assert set(found.warnings) == {"upstream of root/pypi"}
    devpi.log.write_text(line("page", "HIT", sent=12345678901))
    state = Known(devpi.state)
    state.read_log(devpi.log)
    text = metrics.metrics(state.numbers(), now, {"root/pypi": False}, measured)
    rows = [row for row in text.splitlines() if not row.startswith("#")]
    assert [row for row in rows if not re.fullmatch(r"lanmirror_pypi_\w+(?:\{\w+=\"[^\"]+\"\})? \d\S*", row)] == []
    samples = {name: value for name, _, value in (row.rpartition(" ") for row in rows)}
    assert samples['lanmirror_pypi_pages_total{result="hit"}'] == "1"
    assert samples['lanmirror_pypi_pages_total{result="stale"}'] == "0"
    assert samples['lanmirror_pypi_sent_bytes_total{kind="page"}'] == "12345678901"
    assert samples['lanmirror_pypi_upstream_up{index="root/pypi"}'] == "0"
    assert (samples["lanmirror_pypi_devpi_up"], samples["lanmirror_pypi_healthy"]) == ("1", "1")
    families = set(re.findall(r"^# TYPE (\w+) (?:counter|gauge)$", text, re.MULTILINE))
    assert families == {name.partition("{")[0] for name in samples}
    gone = replace(devpi, url="http://127.0.0.1:1")
    down, now, _ = health.look(gone, silence(gone.url), Devpi())
    assert set(down.problems) == {"devpi"}
    assert now["devpi_up"] == now["healthy"] == 0


def test_wrong_command_line_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["look"])
    assert ended.value.code == 2
    assert "invalid choice: 'look'" in capsys.readouterr().err
