"""The cache that the role's Nginx makes of what real and wrong upstreams give, looked after by the real command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lanmirror_cache import check, watch
from lanmirror_cache.state import State
from lanmirror_sync import kept

from tests.cache.lab import Lab, lab, until
from tests.roles.conda_site import FORGE, MAIN, SLICE, conda_site
from tests.roles.render import ROOT, render
from tests.roles.site import Asked, Handler


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("shared")) as running:
        yield running


def flipped(content: bytes) -> bytes:
    """Return other bytes of the same length."""
    return content[:-5] + bytes(byte ^ 255 for byte in content[-5:])


# ---- the check ---------------------------------------------------------------------------------------------------


def test_right_packages_stay_and_are_read_once(ours: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = ours.build("small", MAIN), ours.build("large", MAIN, 2 * SLICE + 500)
    ours.publish()
    for path in (small, large):
        assert ours.get(path).body == ours.packages[path]
    assert len(ours.kept(large)) == 3
    assert ours.look() == []
    assert ours.right() == {small: True, large: True}
    read: list[str] = []
    whole = check.Checker._bytes

    def counted(self: check.Checker, part: Any, *rest: Any, **more: Any) -> Any:
        read.append(part.name)
        return whole(self, part, *rest, **more)

    monkeypatch.setattr(check.Checker, "_bytes", counted)
    assert ours.look() == []
    # As after another refresh of the index, with another version of it in its shard.
    ours.build("small", MAIN, version="2.0")
    ours.publish()
    assert ours.checker(State(ours.places.state)).state.due() == [small]
    assert ours.look() == []
    assert ours.right() == {small: True, large: True}
    assert read == []
    assert ours.run("check") == (0, "2 packages right; 0 not checked, since slices are missing or no served index "
                                    "names them; 0 wrong\n", "")  # fmt: skip
    assert len(read) == 4
    assert len(ours.kept()) == 4


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(
    ("size", "wrong"),
    [(1000, "flipped"), (2 * SLICE + 500, "flipped"), (2 * SLICE + 500, "short"), (1000, "long"), (1000, "html")],
)
def test_wrong_package_goes_and_the_right_one_takes_its_place(
    shared: Lab, request: pytest.FixtureRequest, size: int, wrong: str, ranges: bool
) -> None:
    ours, name = shared, re.sub(r"[^a-z0-9]+", "_", request.node.name.lower())
    path, other = ours.build(name, MAIN, size), ours.build(f"{name}other", MAIN)
    before = State(ours.places.state).numbers().get("wrong_total", 0)
    ours.publish()
    content = ours.packages[path]
    bad = {
        "flipped": flipped(content),
        "short": content[: len(content) // 2],
        "long": content + b"x",
        "html": b"  <!DOCTYPE html><html>log in</html>",
    }[wrong]
    ours.gives(path, bad if ranges else (200, {}, bad))
    assert ours.get(path).body == bad
    assert ours.get(other).body == ours.packages[other]
    (told,) = ours.look()
    why = {"flipped": "its sha256 is", "html": "it is a page of HTML"}.get(wrong, "bytes instead of")
    assert (told.path, why in told.why) == (path, True), told
    assert told.upstream == f"http://127.0.0.1:{ours.site.upstreams[0].port}"
    assert ours.kept(path) == []
    assert (path in ours.right(), ours.right()[other]) == (False, True)
    # The upstream was mended, and nobody has to do anything.
    ours.gives(path, content)
    assert ours.get(path).body == content
    assert ours.look() == []
    assert ours.right()[path]
    report = watch.report(State(ours.places.state), 1.0)
    assert (report.wrong_total, report.wrong[0]) == (before + 1, told)


def test_wrong_length_shows_before_the_last_slice_is_here(ours: Lab) -> None:
    path = ours.build("example", MAIN, 2 * SLICE)
    ours.publish()
    ours.gives(path, ours.packages[path] + b"x")
    assert ours.get(path, "HEAD").status == 200
    assert len(ours.kept(path)) == 1
    (told,) = ours.look()
    assert "bytes instead of" in told.why
    assert ours.kept(path) == []


def test_slices_of_two_files_are_wrong_whatever_the_index_says(ours: Lab) -> None:
    """As of an upstream that has another file under the name by now, in a channel without an index."""
    path = ours.build("example", MAIN, 2 * SLICE)
    ours.get(path, "HEAD")
    ours.gives(path, ours.packages[path] + b"x")
    ours.site.ask(f"/anaconda{path}", Range=f"bytes={SLICE}-{SLICE + 10}")
    until(lambda: len(ours.kept(path)) == 2)
    (told,) = ours.look()
    assert told.why.startswith("its slices are of files of ")
    assert ours.kept(path) == []


def test_slice_beside_a_whole_file_is_compared(ours: Lab) -> None:
    path = ours.build("example", MAIN, 2 * SLICE)
    ours.publish()
    content = ours.packages[path]
    for second, wrong in ((content, 0), (flipped(content[: SLICE + 10]) + content[SLICE + 10 :], 1)):
        ours.gives(path, second)
        ours.site.ask(f"/anaconda{path}", Range=f"bytes={SLICE}-{SLICE + 10}")
        until(lambda: len(ours.kept(path)) == 1)
        ours.gives(path, (200, {}, content))
        assert ours.get(path).body == content
        assert len(ours.kept(path)) == 2
        told = ours.look()
        assert [each.why for each in told] == ["one of its slices is not what the whole file has there"] * wrong
        ours.run("purge", path)


def test_package_that_no_index_names_is_checked_when_one_does(ours: Lab) -> None:
    path, named = ours.build("late", MAIN), ours.build("named", MAIN)
    ours.get(path)
    assert ours.look() == []
    assert ours.right() == {path: False}
    ours.publish(leave_out=(path,))
    ours.get(named)
    assert ours.look() == []
    assert ours.right() == {path: False, named: True}
    channel = watch.report(State(ours.places.state), 1.0).channels["pkgs/main"]
    assert (channel.packages, channel.checked, channel.unchecked) == (2, 1, 1)
    ours.publish()
    assert ours.look() == []
    assert ours.right() == {path: True, named: True}


def test_package_that_was_rebuilt_under_its_name_is_fetched_anew(ours: Lab) -> None:
    path, other = ours.build("example", MAIN), ours.build("other", MAIN)
    ours.publish()
    for each in (path, other):
        ours.get(each)
    assert ours.look() == []
    ours.build("example", MAIN, number=1)
    ours.publish()
    (told,) = ours.look()
    assert told.path == path
    assert ours.get(path).body == ours.packages[path]
    assert ours.look() == []
    assert ours.right() == {path: True, other: True}


def test_eviction_while_it_is_read_is_no_error(ours: Lab) -> None:
    path = ours.build("example", MAIN, 2 * SLICE)
    ours.publish()
    ours.get(path)
    state = State(ours.places.state)
    checker = ours.checker(state)
    # Nginx has no copy of it open: it was not fetched ahead.
    one = next(each for each in state.slices(path) if each.first == SLICE)

    def evict() -> None:
        for file in ours.places.kept.rglob(one.name):
            file.unlink()

    assert list(replace(checker, alive=evict).due()) == [None]
    assert ours.look() == []
    assert ours.right() == {path: False}
    assert len(ours.kept(path)) == len(state.slices(path)) == 2
    assert ours.get(path).body == ours.packages[path]
    assert ours.look() == []
    assert ours.right() == {path: True}


def test_slice_that_nginx_replaces_while_it_is_read_is_not_deleted(ours: Lab) -> None:
    path = ours.build("example", MAIN)
    ours.publish()
    ours.gives(path, flipped(ours.packages[path]))
    ours.get(path)
    state = State(ours.places.state)
    checker = ours.checker(state)
    (part,) = state.slices(path)
    (file,) = ours.places.kept.rglob(part.name)
    ours.gives(path, ours.packages[path])

    def replaced() -> None:
        if file.exists() and file.stat().st_ino == part.inode:
            # The inode must not be free, or the new file may get it.
            file.rename(ours.folder / "old")
            assert ours.site.ask(f"/anaconda{path}").body == ours.packages[path]
            until(file.exists)

    assert list(replace(checker, alive=replaced).due()) == [None]
    assert ours.look() == []
    assert ours.right() == {path: True}
    assert state.wrong() == []


# ---- installers --------------------------------------------------------------------------------------------------

LATEST, OLD = "Miniconda3-latest-Linux-x86_64.sh", "Miniconda3-py312_24.1.2-0-Linux-x86_64.sh"


@pytest.mark.parametrize("name", [LATEST, OLD])
def test_installer_is_compared_with_the_hash_of_the_page(ours: Lab, name: str) -> None:
    content = os.urandom(2 * SLICE + 500)
    path = ours.offer(name, content)
    ours.gives(path, flipped(content))
    assert ours.get(path).body == flipped(content)
    # The page comes after: a `latest` that came after the page may be a newer one.
    ours.publish()
    (wrong,) = ours.look()
    assert (wrong.path, wrong.upstream) == (path, f"http://127.0.0.1:{ours.site.upstreams[0].port}")
    assert wrong.why.startswith("its sha256 is ")
    assert ours.kept(path) == []
    ours.gives(path, content)
    until(lambda: ours.get(path).body == content)
    assert ours.look() == []
    assert ours.right() == {path: True}
    # It is read once.
    ours.publish()
    assert ours.look() == []
    assert State(ours.places.state).due() == []
    report = watch.report(State(ours.places.state), 0.0)
    assert (report.channels["miniconda"].checked, report.channels["miniconda"].packages) == (1, 1)
    assert report.wrong_total == 1


def test_installer_without_a_hash_is_unchecked_until_the_page_has_one(ours: Lab) -> None:
    content = os.urandom(1000)
    paths = [ours.offer(name, content, hashed=False) for name in (LATEST, OLD)]
    ours.publish()
    for path in paths:
        assert ours.get(path).body == content
    assert ours.look() == []
    assert ours.right() == dict.fromkeys(paths, False)
    for name in (LATEST, OLD):
        ours.offer(name, content)
    ours.publish()
    assert ours.look() == []
    assert ours.right() == dict.fromkeys(paths, True)


def test_latest_that_came_after_the_page_is_not_wrong_before_that_is_read_again(ours: Lab) -> None:
    path, other = ours.offer(LATEST, b"the first version"), ours.offer(OLD, b"an older one")
    ours.publish()
    newer = b"the second version"
    ours.gives(path, newer)
    ours.gives(other, b"somebody else's")
    for each in (path, other):
        ours.get(each)
    # Of any other, the page is right.
    assert [wrong.path for wrong in ours.look()] == [other]
    assert ours.right() == {path: False}
    assert ours.look() == []
    ours.offer(LATEST, newer)
    ours.publish()
    assert ours.look() == []
    assert ours.right() == {path: True}
    # The page has a third one by now, and this is not it.
    ours.offer(LATEST, b"the third version")
    ours.publish()
    assert [wrong.path for wrong in ours.look()] == [path]
    until(lambda: ours.get(path).body == b"the third version")


def test_installer_that_nginx_asked_for_again_is_checked_anew(tmp_path: Path) -> None:
    """Nginx writes into the file, of whose folder nothing changes by that."""
    with conda_site(tmp_path, __conda_mirror_kept={"index": "1s", "absent": "1s", "failure": "1s"}) as site:
        ours = Lab(site, tmp_path)
        path = ours.offer(LATEST, b"the installer", dated="Sun, 01 Nov 2026 00:00:00 GMT")
        ours.get(path)
        ours.publish()
        assert ours.look() == []
        assert ours.right() == {path: True}
        ours.gives(path, (304, {}, b""))
        until(lambda: ours.get(path)["X-Cache-Status"] == "REVALIDATED")
        for _ in range(2):
            assert ours.run("check")[0] == 0
        assert ours.right() == {path: True}


@pytest.mark.parametrize(
    ("what", "goes"),
    [
        (f"/miniconda/{LATEST}", [LATEST]),
        (f"http://mirror.lan/anaconda/miniconda/{OLD}", [OLD]),
        (LATEST, [LATEST]),
        (OLD, [OLD]),
        ("miniconda", [LATEST, OLD]),
        ("/miniconda/", [LATEST, OLD]),
    ],
)
def test_purge_of_installers(ours: Lab, what: str, goes: list[str]) -> None:
    paths = [ours.offer(name, os.urandom(SLICE + 500)) for name in (LATEST, OLD)]
    package = ours.build("example", MAIN)
    for path in (*paths, package):
        ours.get(path)
    assert len(ours.kept()) == 4
    code, output, errors = ours.run("purge", what)
    assert (code, errors) == (0, "")
    assert [line.split()[1].rstrip(":") for line in output.splitlines()[:-1]] == [f"/miniconda/{name}" for name in goes]
    assert {key.split(" ")[0] for key in ours.kept()} == {package, *paths} - {f"/miniconda/{name}" for name in goes}


def test_purge_asks_where_a_name_is_of_a_folder_of_installers_and_of_a_package(ours: Lab) -> None:
    installer, package = ours.offer(OLD, b"the installer"), ours.build("miniconda", MAIN)
    for path in (installer, package):
        ours.get(path)
    code, output, errors = ours.run("purge", "miniconda")
    assert (code, output) == (2, "")
    assert "name the channel as /miniconda/" in errors
    assert ours.run("purge", "/miniconda/")[0] == 0
    assert ours.kept(installer) == []
    assert ours.kept(package)


def test_installers_are_counted_by_their_folder(ours: Lab) -> None:
    for name in (LATEST, OLD):
        path = ours.offer(name, bytes(1000))
        for _ in range(3):
            ours.get(path)
    reopen(ours)

    def counted() -> dict[str, int]:
        state = State(ours.places.state)
        watch.count(state, ours.places.log)
        return state.numbers()

    until(lambda: counted().get("miniconda:hits") == 4)
    assert counted() == {
        "miniconda:hits": 4,
        "miniconda:misses": 2,
        "miniconda:cache_bytes": 4000,
        "miniconda:upstream_bytes": 2000,
    }
    # As the engine reads it.
    watch.write(ours.places.state, watch.report(State(ours.places.state), 0.0))
    told = kept.read(ours.places.state / watch.REPORT)
    assert told
    assert told["channels"]["miniconda"]["hits"] == 4
    code, output, _ = ours.run("size", "--packages")
    assert code == 0
    assert f"/miniconda/{LATEST}" in output
    assert re.search(r"^miniconda +2 +2 ", output, re.MULTILINE)


# ---- the command -------------------------------------------------------------------------------------------------

PURGED = [
    f"{MAIN}one-1.0-0.conda",
    f"{FORGE}one-1.0-0.conda",
    f"{MAIN}two-1.0-0.conda",
    f"{FORGE}main-1.0-0.conda",
    f"{MAIN}repodata.json",
]


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Those are at the upstream, the first in three slices."""
    with lab(tmp_path_factory.mktemp("stocked")) as running:
        for path in PURGED[:-1]:
            folder, _, file_name = path.rpartition("/")
            running.build(file_name.partition("-")[0], f"{folder}/", 2 * SLICE if path == PURGED[0] else 100)
        running.site.upstreams[0].says[PURGED[-1]] = 200, {}, b"{}"
        yield running


@pytest.mark.parametrize(
    ("what", "goes"),
    [
        (f"{MAIN}one-1.0-0.conda", [0]),
        (f"http://mirror.lan/anaconda{MAIN}one-1.0-0.conda", [0]),
        ("one-1.0-0.conda", [0, 1]),
        ("one", [0, 1]),
        ("ONE", [0, 1]),
        # pkgs/main needs its first word.
        ("main", [3]),
        ("pkgs/main", [0, 2, 4]),
        ("pkgs/main/linux-64", [0, 2, 4]),
        ("conda-forge", [1, 3]),
        ("cloud/conda-forge/", [1, 3]),
        ("conda-forge/noarch", [1, 3]),
        (f"{MAIN}repodata.json", [4]),
    ],
)
def test_purge_by_each_form(stocked: Lab, what: str, goes: list[int]) -> None:
    for path in PURGED:
        assert stocked.get(path).status == 200
    before = {path: stocked.kept(path) for path in PURGED}
    assert [len(keys) for keys in before.values()] == [3, 1, 1, 1, 1]
    stays = {path: keys for path, keys in before.items() if PURGED.index(path) not in goes}
    code, output, errors = stocked.run("purge", what)
    assert (code, errors) == (0, "")
    assert [line.split()[1].rstrip(":") for line in output.splitlines()[:-1]] == sorted(PURGED[n] for n in goes)
    assert stocked.kept() == sorted(key for keys in stays.values() for key in keys)

    def back(path: str, slices: int) -> bool:
        return stocked.get(path).status == 200 and len(stocked.kept(path)) == slices

    # What Nginx has open is served for a second.
    for path in set(PURGED) - stays.keys():
        until(partial(back, path, len(before[path])))


@pytest.mark.parametrize("what", ["nothing", f"{MAIN}nothing-1-0.conda", "/", "", "pkgs", "../../etc", "linux-64"])
def test_purge_of_nothing_says_so(stocked: Lab, what: str) -> None:
    stocked.get(PURGED[0])
    before = stocked.kept()
    assert stocked.run("purge", what) == (1, "", f"nothing of {what} is in the cache\n")
    assert stocked.kept() == before


def test_purge_asks_where_a_name_is_of_a_channel_and_of_a_package(ours: Lab) -> None:
    for name, folder in (("conda-forge", MAIN), ("one", FORGE)):
        ours.get(ours.build(name, folder))
    code, output, errors = ours.run("purge", "conda-forge")
    assert (code, output) == (2, "")
    assert "a channel and a package" in errors
    assert len(ours.kept()) == 2


def test_purge_of_a_package_that_clients_have_open(ours: Lab) -> None:
    path = ours.build("example", MAIN)
    for _ in range(5):
        ours.get(path)
    ours.gives(path, b"another file by now")
    assert ours.run("purge", path)[0] == 0
    until(lambda: ours.get(path).body == b"another file by now")


def test_flight_is_what_is_being_fetched(ours: Lab) -> None:
    path = ours.build("example", MAIN, 2 * SLICE)
    content, may_end = ours.packages[path], threading.Event()
    assert ours.run("flight") == (0, "", "")

    def slow(handler: Handler, asked: Asked) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-{SLICE - 1}/{len(content)}")
        handler.send_header("Content-Length", str(SLICE))
        handler.end_headers()
        handler.wfile.write(content[: SLICE // 2])
        assert may_end.wait(60)
        handler.wfile.write(content[SLICE // 2 : SLICE])

    ours.gives(path, slow)
    client = threading.Thread(target=ours.site.ask, args=(f"/anaconda{path}", "HEAD"))
    client.start()
    try:
        until(lambda: path in ours.run("flight")[1])
        _, output, _ = ours.run("flight")
        (line,) = output.splitlines()
        came = int(line.removeprefix(f"{path}: ").split()[0])
        assert 0 <= came <= SLICE // 2
        assert f" of {SLICE} bytes, since 20" in line
        code, output, errors = ours.run("purge", path)
        assert (code, "1 slice of" in output, "nothing of" in errors) == (1, True, True)
    finally:
        may_end.set()
        client.join()
    until(lambda: len(ours.kept(path)) == 1)
    assert ours.run("flight") == (0, "", "")


def test_command_and_service_as_the_role_writes_them(ours: Lab) -> None:
    """One process of each, with the state and the report that others read."""
    path, other = ours.build("example", MAIN), ours.build("other", FORGE)
    ours.publish()
    ours.gives(path, flipped(ours.packages[path]))
    for each in (path, other, other):
        ours.get(each)
    home = ours.folder / "venv"
    (home / "bin").mkdir(parents=True)
    (home / "bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (home / "src").symlink_to(ROOT / "files")
    (ours.folder / "bin").mkdir()
    (ours.folder / "bin/id").write_text("#!/bin/sh\necho 33\n")
    for file in (home / "bin/python", ours.folder / "bin/id"):
        file.chmod(0o755)
    places = ours.places
    command = ours.folder / "lanmirror-conda-cache"
    command.write_text(
        render(
            "conda_mirror",
            "lanmirror-conda-cache.j2",
            __conda_mirror_current=str(home),
            __conda_mirror_cache_dir=str(places.kept.parent),
            __conda_mirror_working_dir=str(places.mirror),
            __conda_mirror_served_log=str(places.log),
            __conda_mirror_cache_state=str(places.state),
        )
    )
    command.chmod(0o755)
    environment = {"PATH": f"{ours.folder}/bin:{os.environ['PATH']}"}
    until(lambda: places.log.read_bytes().count(b"\n") == 3)
    service = subprocess.Popen([command, "watch"], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        report = places.state / "cache.json"
        until(
            lambda: report.exists() and json.loads(report.read_bytes())["channels"]["cloud/conda-forge"]["checked"] == 1
        )
    finally:
        service.terminate()
        _, errors = service.communicate(timeout=60)
    assert service.returncode == 0
    (line,) = errors.splitlines()
    assert line.startswith(f"<4>{path} was wrong, and is taken out of the cache: its sha256 is ")
    assert report.stat().st_mode & 0o777 == 0o644
    assert (places.state / "state.sqlite").stat().st_mode & 0o007 == 0
    told = json.loads(report.read_bytes())
    assert [each["path"] for each in told["wrong"]] == [path]
    assert told["channels"]["cloud/conda-forge"]["hits"] == 1
    # The engine tells of it in its turn.
    ours.publish()
    status = json.loads((ours.folder / "mirror/.lanmirror/public/status.json").read_bytes())
    assert status["cache"] == told
    assert "lanmirror_conda_cache_wrong_total 1" in (ours.folder / "conda.prom").read_text().splitlines()
    done = subprocess.run([command, "size", "--packages"], env=environment, capture_output=True, text=True, check=True)
    assert other in done.stdout
    assert done.stdout.splitlines()[-1] == "wrong packages since the counters began: 1"


# ---- the counters ------------------------------------------------------------------------------------------------


def reopen(ours: Lab) -> None:
    """Have Nginx write what it has, and open its logs anew, as logrotate does."""
    os.kill(int((ours.folder / "nginx.pid").read_text()), signal.SIGUSR1)


def test_counters_hold_through_rotation_and_restart(ours: Lab) -> None:
    path, log = ours.build("example", MAIN), ours.places.log
    held = f"{MAIN}held-1.0-0.conda"
    ours.site.hold(held, b"held here")
    forge = f"{FORGE}repodata.json"
    ours.site.upstreams[0].says[forge] = 200, {}, b"{}"
    ours.site.upstreams[0].says[f"{MAIN}broken-1.0-0.conda"] = 500, {}, b""

    def counted() -> dict[str, int]:
        state = State(ours.places.state)
        watch.count(state, log)
        return state.numbers()

    for each in (path, path, held, f"{MAIN}absent-1.0-0.conda", f"{MAIN}broken-1.0-0.conda", forge, forge):
        ours.get(each)
    # Of no declared channel, or no package.
    for each in ("/cloud/strange/noarch/a-1.0-0.conda", f"{MAIN}README", "/"):
        ours.get(each)
    rotated = log.rename(log.with_name(f"{log.name}.1"))
    reopen(ours)
    # A line may come late, into either file.
    until(lambda: sum(number for name, number in counted().items() if not name.endswith("_bytes")) == 7)
    size = len(ours.packages[path])
    first = counted()
    assert {name: first[name] for name in first if not name.endswith("_bytes")} == {
        "pkgs/main:hits": 2,
        "pkgs/main:misses": 2,
        "pkgs/main:errors": 1,
        "cloud/conda-forge:hits": 1,
        "cloud/conda-forge:misses": 1,
    }
    assert (first["pkgs/main:cache_bytes"], first["pkgs/main:mirror_bytes"]) == (size, 9)
    assert first["pkgs/main:upstream_bytes"] > size
    assert counted() == first
    ours.get(path)
    until(lambda: counted()["pkgs/main:hits"] == 3)
    # The next rotation, after which the older file is compressed.
    rotated.unlink()
    log.rename(rotated)
    reopen(ours)
    ours.get(path)
    until(lambda: counted()["pkgs/main:hits"] == 4)
    until(log.exists)
    assert counted()["pkgs/main:hits"] == 4


def test_who_waits_for_the_slice_of_another_costs_the_upstream_nothing(ours: Lab) -> None:
    path = ours.build("example", MAIN)
    content, may_end = ours.packages[path], threading.Event()
    asked_once = threading.Event()

    def slow(handler: Handler, asked: Asked) -> Any:
        asked_once.set()
        assert may_end.wait(60)
        return 206, {"Content-Range": f"bytes 0-{len(content) - 1}/{len(content)}"}, content

    ours.gives(path, slow)
    clients = [threading.Thread(target=ours.site.ask, args=(f"/anaconda{path}",)) for _ in range(3)]
    for client in clients:
        client.start()
    assert asked_once.wait(60)
    may_end.set()
    for client in clients:
        client.join()
    reopen(ours)
    log = ours.places.log
    until(lambda: log.exists() and log.read_bytes().count(b"\n") == 3)
    ways = sorted(line.split("\t")[3] for line in log.read_text().splitlines())
    assert ways == ["cache", "cache", "upstream"]
