"""What is decided about the cache on demand, without Nginx: in milliseconds."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from lanmirror_cache import CacheError, scan
from lanmirror_cache.entry import HEADER, BadEntryError, Head, UnknownVersionError
from lanmirror_cache.judge import Slice, Standing, assess, signature
from lanmirror_cache.names import channel_of, chosen, name_of, subdir_of
from lanmirror_cache.records import Expected, Records
from lanmirror_cache.served import read, tally
from lanmirror_cache.state import LAST_WRONG, Judged, State
from lanmirror_sync import kept
from lanmirror_sync.kept import CacheReport, Channel, Wrong
from lanmirror_sync.listing import Installer, Listing
from lanmirror_sync.shards import INDEX, ShardMemo, make
from msgspec import Raw

PATH = "/pkgs/main/linux-64/a-1-0.conda"
NOW = 1_800_000_000.0


# ---- the head of a file ------------------------------------------------------------------------------------------


def raw(key: str, answer: bytes, *, version: int = 5, body: bytes = b"") -> bytes:
    """Return a file of the cache, with the layout of Nginx's headers on Debian (64 bit)."""
    start = HEADER.size + len(f"\nKEY: {key}\n".encode())
    fields = (version, 9, 0, 0, -1, 1_700_000_000, 7, 1, start, start + len(answer), 0, b"", 0, b"", b"")
    return HEADER.pack(*fields) + f"\nKEY: {key}\n".encode() + answer + body


def answer(status: int = 206, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} So", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def test_header_is_as_long_as_nginxs() -> None:
    assert HEADER.size == 336


def test_head_of_a_slice() -> None:
    told = answer(Content_Length="10", Content_Range="bytes 100-109/110", X_Kept_From="https://up.example")
    data = raw(f"{PATH} bytes=100-199", told, body=b"0123456789")
    head = Head.parse(data)
    assert (head.path, head.first, head.last, head.status) == (PATH, 100, 199, 206)
    assert (head.start, head.total, head.length, head.began) == (100, 110, 10, 1_700_000_000)
    assert (head.upstream, data[head.body :]) == ("https://up.example", b"0123456789")


@pytest.mark.parametrize("key", [PATH, f"{PATH} "])
def test_head_of_what_is_no_slice(key: str) -> None:
    head = Head.parse(raw(key, answer(200, content_length="2", X_Kept_From="a b")))
    assert (head.path, head.first, head.last, head.total, head.upstream) == (PATH, None, None, 2, "")


@pytest.mark.parametrize("version", [0, 3, 4, 6])
def test_other_version_is_refused_with_a_word(version: int) -> None:
    with pytest.raises(UnknownVersionError, match=f"version {version}; known is version 5"):
        Head.parse(raw(PATH, answer(), version=version))


@given(st.binary(max_size=900), st.integers(0, 900))
def test_head_of_anything_is_one_or_an_error(noise: bytes, cut: int) -> None:
    whole = raw(f"{PATH} bytes=0-9", answer(Content_Range="bytes 0-9/10"), body=noise)
    for data in (noise, struct.pack("@L", 5) + noise, whole[:cut], whole[:cut] + noise):
        with contextlib.suppress(BadEntryError, UnknownVersionError):
            Head.parse(data)


# ---- the slices of a package -------------------------------------------------------------------------------------

WIDTH = 100


def part(first: int, total: int, *, held: int | None = None, inode: int = 1, status: int = 206) -> Slice:
    size = total if status == 200 else min(WIDTH, total - first) if held is None else held
    name = hashlib.md5(f"{first}".encode(), usedforsecurity=False).hexdigest()
    return Slice(name, inode, 1, 50 + size, first, first + WIDTH - 1, status, first, total, size, 50, "")


def changed(slice_: Slice, **values: int | None) -> Slice:
    return Slice(**{**{name: getattr(slice_, name) for name in Slice.__dataclass_fields__}, **values})


@given(st.integers(1, 1000), st.randoms(use_true_random=False), st.data())
def test_package_is_whole_when_each_slice_is_there(total: int, chance: object, data: st.DataObject) -> None:
    slices = [part(first, total) for first in range(0, total, WIDTH)]
    shuffled = data.draw(st.permutations(slices))
    assert assess(shuffled, total) == assess(shuffled, None) == [Standing(parts=tuple(slices))]
    missing = data.draw(st.sampled_from(slices))
    left = [each for each in slices if each is not missing]
    assert [standing.parts for standing in assess(left, total)] == [()] * bool(left)
    # One byte more or less by the index, and it is wrong, be it whole or not.
    for size in (total - 1, total + 1):
        assert all(standing.problem for standing in assess(left or slices, size))


@pytest.mark.parametrize(
    ("slices", "why"),
    [
        ([part(0, 250), part(100, 251)], "its slices are of files of 250 and 251 bytes"),
        ([part(0, 250, held=99)], "a slice from byte 0 has 99 bytes instead of 100"),
        ([part(200, 250, held=51)], "a slice from byte 200 has 51 bytes instead of 50"),
        ([changed(part(0, 250), length=90)], "a slice from byte 0 has 90 bytes instead of 100"),
        ([changed(part(100, 250), start=0)], "a slice begins at byte 0 instead of 100"),
        ([changed(part(0, 250), total=None)], "a slice from byte 0 says nothing of its place"),
        # The whole in the place of a later slice.
        ([changed(part(100, 250, status=200), start=0)], "a slice begins at byte 0 instead of 100"),
        ([changed(part(0, 250, status=200), size=150)], "a slice from byte 0 has 100 bytes instead of 250"),
    ],
)
def test_slices_that_are_no_package(slices: list[Slice], why: str) -> None:
    assert [standing.problem for standing in assess(slices, None)] == [why]


def test_whole_file_in_the_place_of_the_first_slice() -> None:
    whole, later = part(0, 250, status=200), part(100, 250)
    assert assess([later, whole], 250) == [Standing(parts=(whole,), others=(later,))]
    assert assess([part(0, 0, status=200)], 0) == [Standing(parts=(part(0, 0, status=200),))]


def test_slices_of_another_width_are_judged_by_themselves() -> None:
    """As after a change of the slices' size."""
    wide = changed(part(0, 150), last=149, size=200, length=150)
    assert [len(standing.parts) for standing in assess([wide, part(0, 150)], 150)] == [0, 1]


def test_set_of_files_is_another_when_one_is() -> None:
    slices = [part(0, 150), part(100, 150)]
    assert signature(slices) == signature(slices[::-1])
    others = [[part(0, 150)], [part(0, 150, inode=2), part(100, 150)], [changed(part(0, 150), mtime=2), part(100, 150)]]
    assert len({signature(slices), *map(signature, others)}) == 4


# ---- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "channel", "subdir"),
    [
        (PATH, "pkgs/main", "pkgs/main/linux-64"),
        ("/cloud/a/label/b/noarch/x-1-0.conda", "cloud/a/label/b", "cloud/a/label/b/noarch"),
        ("/pkgs/main/linux-64/repodata.json.zst", "pkgs/main", "pkgs/main/linux-64"),
        ("/cloud/a/channeldata.json", "cloud/a", "cloud/a"),
        ("/miniconda/Miniconda3-latest-Linux-x86_64.sh", "miniconda", "miniconda"),
    ],
)
def test_channel_of_a_path(path: str, channel: str, subdir: str) -> None:
    assert (channel_of(path), subdir_of(path)) == (channel, subdir)


def test_name_of_a_package_may_have_hyphens() -> None:
    assert name_of("/a/b/c/Scikit-learn-intelex-1!2.0-py_0.tar.bz2") == "scikit-learn-intelex"


@given(st.text("abpkgsminoludrch/-_.0164x: ", max_size=30) | st.sampled_from(["a", "x", "b-1-0.conda", "pkgs/main"]))
def test_whatever_is_asked_chooses_only_what_is_named(what: str) -> None:
    paths = {PATH, "/cloud/x/noarch/b-1-0.conda"}
    meant, kind = chosen(what, paths)
    assert bool(kind) == any(meant(path) for path in paths)
    assert not kind or what.strip("/ \t\r\n").lower() in PATH + "/cloud/x/noarch/b-1-0.conda"


# ---- the log -----------------------------------------------------------------------------------------------------


def line(way: str, path: str = PATH, status: int = 200, sent: int = 10) -> str:
    return f"{NOW:.3f}\t{status}\t{sent}\t{way}\t{path}\n"


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        (line("mirror"), {"hits": 1, "mirror_bytes": 10}),
        (line("cache"), {"hits": 1, "cache_bytes": 10}),
        (line("stale"), {"stale": 1, "cache_bytes": 10}),
        (line("upstream", status=206), {"misses": 1, "upstream_bytes": 10}),
        (line("upstream", status=404), {"misses": 1, "upstream_bytes": 10}),
        (line("upstream", status=502), {"errors": 1, "upstream_bytes": 10}),
        (line("mirror", status=429), {"errors": 1, "mirror_bytes": 10}),
        (line("elsewhere"), {}),
        (line("cache")[:-1], {}),
        (line("cache").replace("200", "2x0"), {}),
        ("\n", {}),
    ],
)
def test_line_of_the_log_counts_as_what_it_says(text: str, counts: dict[str, int]) -> None:
    assert tally([text]) == Counter({f"pkgs/main:{name}": number for name, number in counts.items()})


def test_line_that_is_cut_is_counted_when_it_is_whole(tmp_path: Path) -> None:
    log, text = tmp_path / "x.log", line("cache")
    assert read(log, {}) == (Counter(), {})
    log.write_text(text + text[:20])
    counts, known = read(log, {})
    assert counts["pkgs/main:hits"] == 1
    with log.open("a") as more:
        more.write(text[20:])
    counts, known = read(log, known)
    assert counts["pkgs/main:hits"] == 1
    # Cut short in place.
    log.write_text(text)
    assert read(log, known)[0]["pkgs/main:hits"] == 1


# ---- records -----------------------------------------------------------------------------------------------------


def publish(folder: Path, records: dict[str, dict[str, object]], section: str = "packages.conda") -> None:
    """Write shards as the engine does."""
    folder.mkdir(parents=True, exist_ok=True)
    made = make(
        [(str(record["name"]), section, key, Raw(msgspec.json.encode(record))) for key, record in records.items()],
        removed=[],
        info={"subdir": "linux-64"},
        folder=folder,
        former=ShardMemo(),
        present={file.name for file in folder.iterdir()},
        now=0,
    )
    (folder / INDEX).write_bytes(made.index)


def test_records_are_those_of_the_shards(tmp_path: Path) -> None:
    folder, sha256, md5 = tmp_path / "pkgs/main/linux-64", "ab" * 32, "cd" * 16
    publish(
        folder,
        {
            "a-1-0.conda": {"name": "A", "size": 7, "sha256": sha256, "md5": md5},
            "b-1-0.conda": {"name": "b", "size": 8, "md5": md5},
            "c-1-0.conda": {"name": "c", "size": 9},
        },
    )
    records = Records(tmp_path)
    place = "/pkgs/main/linux-64/"
    assert records.expected(f"{place}a-1-0.conda") == Expected(7, "sha256", sha256)
    assert records.expected(f"{place}b-1-0.conda") == Expected(8, "md5", md5)
    for name in ("c-1-0.conda", "a-2-0.conda", "d-1-0.conda"):
        assert records.expected(f"{place}{name}") is None
    assert records.expected("/cloud/x/noarch/a-1-0.conda") is None
    assert (records.identity("cloud/x/noarch"), bool(records.identity("pkgs/main/linux-64"))) == ("", True)
    # A shard, and an index, that are damaged themselves.
    for shard in folder.glob("[0-9a-f]*.msgpack.zst"):
        other = {"packages.conda": {"a-1-0.conda": {"size": 1, "sha256": bytes(32)}}}
        shard.write_bytes(zstandard.compress(msgspec.msgpack.encode(other)))
    assert Records(tmp_path).expected(f"{place}a-1-0.conda") is None
    (folder / INDEX).write_bytes(b"noise")
    assert Records(tmp_path).expected(f"{place}a-1-0.conda") is None


def test_records_of_v3_have_no_ending(tmp_path: Path) -> None:
    publish(tmp_path / "pkgs/main/linux-64", {"a-1-0": {"name": "a", "size": 7, "sha256": "ab" * 32}}, "v3.conda")
    assert Records(tmp_path).expected(PATH) == Expected(7, "sha256", "ab" * 32)


def test_records_of_an_installer_are_its_folders_listing(tmp_path: Path) -> None:
    place, path = tmp_path / ".lanmirror/public", "/miniconda/M-latest-Linux-x86_64.sh"
    files = [
        Installer("M-latest-Linux-x86_64.sh", "md5", "ab" * 16, "1.5M"),
        Installer("M-1-Linux-x86_64.sh", "sha256", "cd" * 32),
        Installer("M-2-Linux-x86_64.sh", "sha256", ""),
    ]
    assert (Records(tmp_path).expected(path), Records(tmp_path).identity("miniconda")) == (None, "")
    place.mkdir(parents=True)
    file = place / "installers-miniconda.json"
    file.write_bytes(msgspec.json.encode(Listing(NOW, files)))
    records = Records(tmp_path)
    assert records.expected(path) == Expected(None, "md5", "ab" * 16)
    assert (records.shard(path), bool(records.identity("miniconda"))) == ("ab" * 16, True)
    assert records.expected("/miniconda/M-1-Linux-x86_64.sh") == Expected(None, "sha256", "cd" * 32)
    for name in ("M-2-Linux-x86_64.sh", "M-3-Linux-x86_64.sh"):
        assert (records.expected(f"/miniconda/{name}"), records.shard(f"/miniconda/{name}")) == (None, "")
    assert records.expected("/archive/M-1-Linux-x86_64.sh") is None
    # Only of one that changes, an upstream may have another by now.
    for name, later, older in (("M-latest", 1, True), ("M-latest", -1, False), ("M-1", 1, False), ("M-2", 1, False)):
        assert records.is_older(f"/miniconda/{name}-Linux-x86_64.sh", int(NOW + later) * 10**9) == older
    assert not records.is_older(PATH.replace("a-1", "a-latest"), int(NOW + 1) * 10**9)
    file.write_bytes(b"noise")
    assert Records(tmp_path).expected(path) is None


# ---- the folders -------------------------------------------------------------------------------------------------


def put(cache: Path, key: str, *, body: bytes = b"0123456789", total: int = 10) -> Path:
    """Write a file as Nginx does."""
    name = hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()
    file = cache / scan.place(name) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    told = answer(Content_Length=str(len(body)), Content_Range=f"bytes 0-{len(body) - 1}/{total}")
    file.with_name(f"{name}.0000000001").write_bytes(raw(key, told, body=body))
    file.with_name(f"{name}.0000000001").rename(file)
    return file


def settle(cache: Path) -> None:
    """Have the folders look as if they were changed long ago."""
    for folder in (path for path in cache.rglob("*") if path.is_dir()):
        os.utime(folder, (NOW - 1000, NOW - 1000))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept"


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path)


def test_file_that_is_known_is_not_opened_again(cache: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    look = scan._entry

    def counted(file: Path) -> object:
        opened.append(file.name)
        return look(file)

    monkeypatch.setattr(scan, "_entry", counted)
    files = [put(cache, f"/pkgs/main/linux-64/a-{number}-0.conda bytes=0-99") for number in range(20)]
    for _ in range(3):
        scan.scan(cache, state, NOW, every=True)
    assert sorted(opened) == sorted(file.name for file in files)
    assert len(state.due()) == 20
    # One is evicted, and one replaced by another of the same name.
    files[0].unlink()
    (cache.parent / "older").hardlink_to(files[1])
    put(cache, "/pkgs/main/linux-64/a-1-0.conda bytes=0-99")
    opened.clear()
    scan.scan(cache, state, NOW, every=True)
    assert opened == [files[1].name]
    assert state.slices("/pkgs/main/linux-64/a-0-0.conda") == []


def test_folder_that_is_unchanged_is_not_read_again(cache: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    put(cache, f"{PATH} bytes=0-99")
    settle(cache)
    looked: list[str] = []
    look = scan._look

    def counted(path: Path, folder: str, *rest: Any) -> None:
        looked.append(folder)
        look(path, folder, *rest)

    monkeypatch.setattr(scan, "_look", counted)
    for _ in range(3):
        scan.scan(cache, state, NOW)
    assert len(looked) == 1
    put(cache, f"{PATH} bytes=100-199")
    scan.scan(cache, state, time.time() + 100)
    assert len(looked) == 2
    scan.scan(cache, state, NOW, every=True)
    assert len(looked) == 4


def test_change_right_after_a_look_is_seen_though_the_time_is_the_same(cache: Path, state: State) -> None:
    first = put(cache, f"{PATH} bytes=0-99")
    when = first.parent.stat().st_mtime_ns
    scan.scan(cache, state, when / 1e9)
    first.unlink()
    os.utime(first.parent, ns=(when, when))
    scan.scan(cache, state, when / 1e9 + 10)
    assert state.slices(PATH) == []


def test_what_a_killed_worker_left_goes_after_a_day(cache: Path, state: State) -> None:
    kept = put(cache, f"{PATH} bytes=0-99")
    left, other = kept.with_name(f"{kept.name}.0000000012"), kept.with_name("left.0000000012")
    for file in (left, other):
        file.write_bytes(b"")
    now = left.stat().st_mtime
    settle(cache)
    for after, is_there in ((0, True), (23 * 3600, True), (25 * 3600, False)):
        scan.scan(cache, state, now + after)
        assert left.exists() is is_there
    assert (kept.exists(), other.exists()) == (True, True)


def test_folder_that_goes_takes_its_files_with_it(cache: Path, state: State) -> None:
    file = put(cache, f"{PATH} bytes=0-99")
    scan.scan(cache, state, NOW)
    file.unlink()
    file.parent.rmdir()
    scan.scan(cache, state, NOW)
    assert (state.slices(PATH), state.folders()) == ([], {})


def test_what_is_none_of_nginxs_is_left_alone(cache: Path, state: State) -> None:
    good = put(cache, f"{PATH} bytes=0-99")
    outside = cache.parent / "outside"
    outside.write_text("of somebody else")
    strangers: list[Path] = []
    making: dict[str, Callable[[Path], object]] = {
        "README": lambda file: file.write_text("x"),
        "0" * 32: lambda file: file.write_text("in a wrong folder"),
        f"{good.name[:-2]}zz": lambda file: file.write_text("no hexadecimal"),
        f"{'f' * 29}{good.name[-3:]}": lambda file: file.symlink_to(outside),
        f"{'e' * 29}{good.name[-3:]}": os.mkfifo,
        f"{'d' * 29}{good.name[-3:]}": lambda file: file.write_text("damaged"),
        f"{'c' * 29}{good.name[-3:]}": lambda file: file.write_bytes(good.read_bytes()),
        f"{'b' * 29}{good.name[-3:]}": lambda file: file.mkdir(),
    }
    for name, make_it in making.items():
        strangers.append(good.parent / name)
        make_it(strangers[-1])
    strangers.append(good.parent / put(cache, "/pkgs/main/noarch/b-1-0.conda bytes=0-99").name)
    (cache / scan.place(strangers[-1].name) / strangers[-1].name).rename(strangers[-1])
    scan.scan(cache, state, NOW)
    assert state.paths() == [PATH]
    assert [each.name for each in state.slices(PATH)] == [good.name]
    for name in ("../../outside", "outside", f"{good.name}.1", good.name.upper(), ""):
        with pytest.raises(ValueError, match="no file of a cache"):
            scan.delete(cache, name, 0)
    assert not scan.delete(cache, good.name, good.stat().st_ino + 1)
    assert scan.delete(cache, good.name, good.stat().st_ino)
    assert all(path.exists() for path in strangers)
    assert not good.exists()


def test_other_nginx_is_one_clear_error(cache: Path, state: State) -> None:
    file = put(cache, f"{PATH} bytes=0-99")
    file.write_bytes(b"\x04" + file.read_bytes()[1:])
    with pytest.raises(CacheError, match="files of version 4; known is version 5"):
        scan.scan(cache, state, NOW)
    with pytest.raises(CacheError, match="cannot be read"):
        scan.scan(cache / "gone", state, NOW)


def test_state_without_its_folder_says_who_makes_it(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="systemctl start conda-cache"):
        State(tmp_path / "gone")
    (tmp_path / "state.sqlite").write_text("no database, but a text of some length" * 100)
    with pytest.raises(CacheError, match="can be deleted"):
        State(tmp_path)


def test_package_that_changes_while_it_is_judged_is_judged_again(cache: Path, state: State) -> None:
    put(cache, f"{PATH} bytes=0-9", total=20)
    scan.scan(cache, state, NOW)
    judged = Judged(PATH, False, "", signature(state.slices(PATH)), "")
    put(cache, f"{PATH} bytes=10-19", total=20)
    scan.scan(cache, state, NOW)
    state.judged(judged)
    assert state.due() == [PATH]
    state.judged(Judged(PATH, True, "", signature(state.slices(PATH)), ""))
    assert state.due() == []
    assert state.by_channel() == {"pkgs/main": (1, sum(each.size for each in state.slices(PATH)), 1)}


def test_what_the_cache_has_shows_before_it_is_judged(cache: Path, state: State) -> None:
    put(cache, "/cloud/a/noarch/repodata.json")
    scan.scan(cache, state, NOW)
    assert state.by_channel() == {}
    file = put(cache, f"{PATH} bytes=0-9")
    scan.scan(cache, state, NOW)
    assert state.packages() == [(PATH, file.stat().st_size, False)]
    state.forget([file.name])
    assert state.packages() == []


def test_last_wrong_ones_are_told_and_all_are_counted(state: State) -> None:
    for number in range(LAST_WRONG + 5):
        state.was_wrong(Wrong(f"/{number}", "why", float(number)), [])
    assert [wrong.path for wrong in state.wrong()] == [f"/{number}" for number in range(LAST_WRONG + 4, 4, -1)]
    assert state.numbers() == {"wrong_total": LAST_WRONG + 5}


# ---- the report --------------------------------------------------------------------------------------------------


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.unlink(),
        lambda file: file.write_text("{"),
        lambda file: file.write_text("[]"),
        lambda file: file.write_text('{"written": 1, "channels": {"a\\"} 1\\nx": {}}}'),
        lambda file: file.write_text('{"written": 1, "channels": {"pkgs/main": {"hits": -1}}}'),
        lambda file: file.write_text('{"written": "1"}'),
        lambda file: file.write_bytes(b" " * (kept.LARGEST + 1)),
        pipe,
    ],
)
def test_report_that_cannot_be_read_is_none(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    file = tmp_path / "cache.json"
    file.write_bytes(msgspec.json.encode(CacheReport(1.0, {"pkgs/main": Channel(1, 2)}, 3, [Wrong("/a", "b", 1.0)])))
    told = kept.read(file)
    assert told
    assert (told["channels"]["pkgs/main"]["bytes"], told["wrong_total"]) == (2, 3)
    spoil(file)
    assert kept.read(file) is None
    assert kept.read(None) is None
