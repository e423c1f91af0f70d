"""The reader of indexes: what it takes, what it refuses by name, and that nothing else comes out of it."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lanmirror_sync import repodata
from lanmirror_sync.repodata import Index, RepodataError

SHA256, MD5 = "ab" * 32, "cd" * 16


def record(**fields: Any) -> dict[str, Any]:
    return {
        "name": "a",
        "version": "1",
        "build": "0",
        "build_number": 0,
        "size": 10,
        "sha256": SHA256,
        "md5": MD5,
        **fields,
    }


def parse(**members: Any) -> Index:
    return repodata.parse(json.dumps(members).encode())


def one(raw: bytes, name: str = "a-1-0.conda") -> Index:
    """Return the index of one record, given as it is written."""
    return repodata.parse(b'{"packages.conda": {%s: %s}}' % (json.dumps(name).encode(), raw))


def test_a_record_yields_what_is_needed_and_stays_as_it_was() -> None:
    index = parse(packages={}, **{"packages.conda": {"a-1-0.conda": record(unknown={"deep": [1, None]})}})
    package = index.packages["a-1-0.conda"]
    assert (package.name, package.size, package.algorithm, package.digest) == ("a", 10, "sha256", SHA256)
    [(section, key, file_name, raw)] = index.records()
    assert (section, key, file_name) == ("packages.conda", "a-1-0.conda", "a-1-0.conda")
    assert json.loads(bytes(raw)) == record(unknown={"deep": [1, None]})
    assert not index.refused
    assert not index.left_out


def test_md5_is_taken_where_there_is_no_better() -> None:
    index = parse(packages={"a-1-0.tar.bz2": record(sha256=None), "b-1-0.tar.bz2": record(sha256="")})
    assert {package.algorithm for package in index.packages.values()} == {"md5"}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is not a JSON object"),
        (b"<html>Please log in</html>", "begins with b'<html>Please log in</html>'"),
        (b"[]", "is not a JSON object"),
        (b'{"message": "not found"}', "has none of 'packages'"),
        (b'{"packages": {}', "is not a JSON object"),
        (b'{"packages": []}', "damaged 'packages'"),
        (b'{"packages": {}, "packages.conda": 7}', "damaged 'packages.conda'"),
        (b'{"packages": {}, "v3": []}', "damaged 'v3'"),
        (b'{"packages": {}, "v3": {"conda": 1}}', "damaged 'v3.conda'"),
        (b'{"packages": {}, "info": "linux-64"}', "damaged 'info'"),
        (b'{"packages": {}, "info": {"a": 1e999}}', "damaged 'info'"),
        (b'{"packages": {}, "info": {"a": %s}}' % (b"[" * 600 + b"]" * 600), "more than 500 lists"),
        (b'{"packages": {"\xff": {}}}', "is not a JSON object"),
        (b'{"packages": {"a-1-0.conda": {"license": "\xff"}}}', "is not a JSON object"),
        (b'{"packages": {"a-1-0.conda": {"license": "\\ud800"}}}', "is not a JSON object"),
        (b'{"packages": {"a": ' + b"[" * 100_000, "is not a JSON object"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "is not a JSON object"),
    ],
)
def test_what_is_no_index_is_refused_as_a_whole(data: bytes, says: str) -> None:
    with pytest.raises(RepodataError) as caught:
        repodata.parse(data)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "../a-1-0.conda",
        "a/../../b-1-0.conda",
        "/etc/a-1-0.conda",
        "sub/a-1-0.conda",
        "..\\a-1-0.conda",
        ".hidden-1-0.conda",
        "https://example.org/a-1-0.conda",
        "a-1-0.conda\n",
        "a-1-0.conda\0",
        "a 1-0.conda",
        "repodata.json",
        "a-1-0.zip",
        "",
        ".conda",
        "ä-1-0.conda",
        f"{'a' * 250}-1-0.conda",
    ],
)
def test_a_name_that_is_none_of_a_package_is_refused_by_name(name: str) -> None:
    index = parse(packages={name: record(), "b-1-0.tar.bz2": record()})
    assert index.refused == {name: "its file name is none of a package"}
    assert list(index.packages) == ["b-1-0.tar.bz2"]
    assert [file_name for _, _, file_name, _ in index.records()] == ["b-1-0.tar.bz2"]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"7", "damaged"),
        (b"null", "damaged"),
        (b"[]", "damaged"),
        (b"{}", "damaged"),
        (b'{"name": "a", "md5": "%s", "deep": %s}' % (MD5.encode(), b"[" * 600 + b"]" * 600), "more than 500 lists"),
        (b'%s, "deep": %s}' % (json.dumps(record())[:-1].encode(), b"[" * 600 + b"]" * 600), "more than 500 lists"),
        (json.dumps(record(size=-1)).encode(), "its size is -1"),
        (json.dumps(record(size=10**30)).encode(), f"its size is {10**30}"),
        (json.dumps(record(size=1 << 41)).encode(), f"its size is {1 << 41}"),
        (json.dumps(record(size="10")).encode(), "damaged"),
        (json.dumps(record(size=True)).encode(), "damaged"),
        (b'{"name": "a", "size": 1e999, "md5": "%s"}' % MD5.encode(), "damaged"),
        (json.dumps(record(name=7)).encode(), "damaged"),
        (json.dumps(record(name="")).encode(), "no name"),
        (json.dumps(record(sha256=7)).encode(), "damaged"),
        (json.dumps(record(sha256=None, md5="")).encode(), "neither a sha256 nor an md5"),
        (json.dumps(record(sha256="ab")).encode(), "its sha256 is 'ab'"),
        (json.dumps(record(md5="x" * 32)).encode(), "its md5 is 'xxxx"),
        (b'{"name": "a", "sha256": "%s", "sha256": "%s"}' % (b"ab" * 32, b"cd" * 32), "'sha256' twice"),
        (b'{"name": "a", "sha256": "%s", "\\u0073ha256": "%s"}' % (b"ab" * 32, b"cd" * 32), "'sha256' twice"),
        (b'{"size": 1, "name": "a", "size": 2, "sha256": "%s"}' % (b"ab" * 32), "'size' twice"),
    ],
)
def test_a_faulty_record_is_refused_by_name(raw: bytes, says: str) -> None:
    index = one(raw)
    assert list(index.refused) == ["a-1-0.conda"]
    assert says in index.refused["a-1-0.conda"]
    assert not index.packages
    assert not list(index.records())
    usual = b", ".join(b'"b-1-%d.conda": %s' % (number, json.dumps(record()).encode()) for number in range(3))
    among = repodata.parse(b'{"packages.conda": {%s, "a-1-0.conda": %s}}' % (usual, raw))
    assert among.refused == index.refused
    assert list(among.packages) == ["b-1-0.conda", "b-1-1.conda", "b-1-2.conda"]


def test_records_are_looked_at_together_and_only_beside_an_odd_one_each_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A channel has half a million of them, and a refresh is to be quick."""
    alone: list[str] = []
    original = repodata._package

    def package(file_name: str, raw: msgspec.Raw, names: dict[str, str]) -> repodata.Package:
        alone.append(file_name)
        return original(file_name, raw, names)

    monkeypatch.setattr(repodata, "_package", package)
    together = repodata.TOGETHER
    records = {f"a-1-{number}.conda": record(build=str(number), noarch="python") for number in range(3 * together)}
    index = parse(packages={"b-1-0.tar.bz2": record()}, **{"packages.conda": records})
    assert alone == []
    assert list(index.packages) == ["b-1-0.tar.bz2", *records]
    records[f"a-1-{together}.conda"]["license"] = 'the "odd" one'
    assert parse(packages={}, **{"packages.conda": records}).packages == {
        name: package for name, package in index.packages.items() if name in records
    }
    assert alone == list(records)[together : 2 * together]


def test_a_group_of_dependencies_may_be_named_like_a_field() -> None:
    index = one(json.dumps(record(extra_depends={"name": ["b"], "size": ["c"], "md5": []})).encode())
    assert list(index.packages) == ["a-1-0.conda"]


def test_of_two_records_under_one_key_the_last_counts() -> None:
    first, last = json.dumps(record(size=1)), json.dumps(record(size=2))
    index = repodata.parse(
        b'{"packages": {"a-1-0.tar.bz2": %s, "a-1-0.tar.bz2": %s}}' % (first.encode(), last.encode())
    )
    assert index.packages["a-1-0.tar.bz2"].size == 2
    assert len(list(index.records())) == 1


def test_two_sections_that_contradict_each_other_are_refused() -> None:
    v3 = {"conda": {"a-1-0": record(size=11), "b-1-0": record()}}
    index = parse(**{"packages.conda": {"a-1-0.conda": record(), "b-1-0.conda": record()}}, v3=v3)
    assert index.refused == {"a-1-0.conda": "two records describe it, and not as the same bytes"}
    assert [(section, key) for section, key, _, _ in index.records()] == [
        ("packages.conda", "b-1-0.conda"),
        ("v3.conda", "b-1-0"),
    ]
    both = {"a-1-0.conda": record()}
    index = parse(packages=both, **{"packages.conda": {"a-1-0.conda": record(sha256="00" * 32)}})
    assert set(index.refused) == {"a-1-0.conda"}
    assert not list(index.records())
    assert list(parse(packages=both, **{"packages.conda": both}).packages) == ["a-1-0.conda"]


def test_records_of_v3_are_packages_like_any_other() -> None:
    v3 = {
        "conda": {"a-1-0": record()},
        "tar.bz2": {"b-1-0": record(name="b")},
        "whl": {"c-1-0": record(name="c", url="c-1-py3-none-any.whl")},
    }
    index = parse(v3=v3)
    assert set(index.packages) == {"a-1-0.conda", "b-1-0.tar.bz2", "c-1-py3-none-any.whl"}
    assert {file_name for _, _, file_name, _ in index.records()} == set(index.packages)
    assert not index.refused
    assert not index.left_out


def test_wheels_that_are_elsewhere_are_left_out_and_faulty_ones_refused() -> None:
    wheels = {
        "a-1-0": record(url="https://files.example.org/a-1-py3-none-any.whl"),
        "b-1-0": record(fn="//files.example.org/b-1-py3-none-any.whl"),
        "c-1-0": record(url="../../c-1-py3-none-any.whl"),
        "d-1-0": record(),
        "e-1-0": record(url="e-1-py3-none-any.whl", fn="e-2-py3-none-any.whl"),
        "f-1-0": record(url="f-1-py3-none-any.whl", fn="f-1-py3-none-any.whl"),
    }
    index = parse(packages={}, v3={"whl": wheels, "rpm": {"g-1-0": record()}}, v4={"conda": {"h-1-0": record()}})
    assert list(index.packages) == ["f-1-py3-none-any.whl"]
    assert set(index.left_out) == {"a-1-0.whl", "b-1-0.whl", "v3.rpm", "v4"}
    assert set(index.refused) == {"../../c-1-py3-none-any.whl", "d-1-0.whl", "e-1-0.whl"}
    assert "v4" not in index.head


def test_a_record_in_v3_may_name_its_file_but_no_other() -> None:
    conda = {
        "a-1-0": record(fn="a-1-0.conda"),
        "b-1-0": record(fn="b-2-0.conda"),
        "c-1-0": record(fn="https://files.example.org/c-1-0.conda"),
        "d-1-0": record(fn="../d-1-0.conda"),
    }
    index = parse(v3={"conda": conda})
    assert list(index.packages) == ["a-1-0.conda"]
    assert set(index.left_out) == {"c-1-0.conda"}
    assert set(index.refused) == {"b-1-0.conda", "d-1-0.conda"}
    assert "names 2 files" in index.refused["b-1-0.conda"]


def test_what_leads_off_the_mirror_is_taken_out() -> None:
    index = parse(
        info={
            "subdir": "noarch",
            "base_url": "https://elsewhere.example.org/noarch/",
            "shards_base_url": "https://shards.example.org/",
            "lookup": "//lookup.example.org",
            "channel_relations": {"base": "../conda-forge", "overrides": "https://elsewhere.example.org/c"},
        },
        packages={
            "a-1-0.tar.bz2": record(url="https://elsewhere.example.org/a-1-0.tar.bz2", channel="https://x.org/c"),
            "b-1-0.tar.bz2": record(channel="main", license_url="https://license.example.org"),
        },
        repodata_version=2,
    )
    assert index.base_url == "https://elsewhere.example.org/noarch/"
    assert msgspec.json.decode(index.head["info"]) == {
        "subdir": "noarch",
        "channel_relations": {"base": "../conda-forge"},
    }
    assert bytes(index.head["repodata_version"]) == b"1"
    records = {key: json.loads(bytes(raw)) for _, key, _, raw in index.records()}
    assert records["a-1-0.tar.bz2"] == record()
    assert records["b-1-0.tar.bz2"] == record(channel="main", license_url="https://license.example.org")
    assert index.rewritten == {"a-1-0.tar.bz2"}


@pytest.mark.parametrize("slash", [rb"\/", rb"\u002f", rb"\u002F"])
def test_what_leads_off_the_mirror_is_taken_out_however_its_slashes_are_written(slash: bytes) -> None:
    text = json.dumps(record(url="https://x.org/a-1-0.conda", license="a\\b")).encode()
    index = one(text.replace(b"/", slash))
    [(_, _, _, raw)] = index.records()
    assert json.loads(bytes(raw)) == record(license="a\\b")
    assert index.rewritten == {"a-1-0.conda"}


def test_a_relative_base_url_is_told_and_taken_out() -> None:
    index = parse(info={"base_url": "../packages/"}, packages={})
    assert index.base_url == "../packages/"
    assert "base_url" not in msgspec.json.decode(index.head["info"])


def test_a_restricted_index_does_not_hold_the_bytes_of_the_large_one() -> None:
    data = bytearray(
        json.dumps(
            {
                "packages": {f"p{number}-1-0.tar.bz2": record() for number in range(20)},
                "v3": {"whl": {"w-1-0": record(url="w-1-py3-none-any.whl")}},
                "signatures": {"p7-1-0.tar.bz2": {"key": {"signature": "00"}}},
            }
        ).encode()
    )
    small = repodata.parse(data, only={"p7-1-0.tar.bz2", "w-1-py3-none-any.whl", "unknown-1-0.conda"})
    # Fails with a BufferError while anything refers to the bytes.
    data.clear()
    assert set(small.packages) == {"p7-1-0.tar.bz2", "w-1-py3-none-any.whl"}
    assert json.loads(bytes(small.head["signatures"])) == {"p7-1-0.tar.bz2": {"key": {"signature": "00"}}}
    picked = small.pick({"p7-1-0.tar.bz2"})
    assert set(picked.packages) == {"p7-1-0.tar.bz2"}
    assert [(section, file_name) for section, _, file_name, _ in picked.records()] == [("packages", "p7-1-0.tar.bz2")]


def test_a_file_that_is_mapped_reads_like_bytes(tmp_path: Path) -> None:
    file = tmp_path / "repodata.json"
    file.write_bytes(DOCUMENT)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        index = repodata.parse(mapped)
        assert index.packages == repodata.parse(DOCUMENT).packages
        del index
    with pytest.raises(RepodataError):
        repodata.parse(memoryview(b"<html>"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)
DOCUMENT = json.dumps(
    {
        "info": {"subdir": "noarch", "base_url": "https://x.org/"},
        "packages": {"a-1-0.tar.bz2": record(url="https://x.org/a", license="\N{COPYRIGHT SIGN}")},
        "packages.conda": {"b-1-0.conda": record()},
        "v3": {"conda": {"c-1-0": record()}, "whl": {"d-1-0": record(url="d-1-py3-none-any.whl")}},
        "signatures": {"b-1-0.conda": {}},
        "removed": ["e-1-0.conda"],
        "repodata_version": 2,
    },
    ensure_ascii=False,
).encode()


def check(data: bytes) -> None:
    """Parse, and check that nothing comes out but an index of sound names, or the one error."""
    try:
        index = repodata.parse(data)
    except RepodataError:
        return
    for _, _, file_name, raw in index.records():
        assert repodata.FILE_NAME.fullmatch(file_name)
        json.loads(bytes(raw))
        assert not repodata.leads_away(json.loads(bytes(raw)).get("url"))
    assert {file_name for _, _, file_name, _ in index.records()} == set(index.packages)


@given(st.binary())
@example(b'{"packages":{"a":{"name":"a"}}}')
def test_arbitrary_bytes_raise_nothing_but_the_one_error(data: bytes) -> None:
    check(data)


@given(st.integers(0, len(DOCUMENT)), st.integers(0, 40), st.binary(max_size=40))
def test_a_damaged_index_raises_nothing_but_the_one_error(start: int, length: int, patch: bytes) -> None:
    check(DOCUMENT[:start] + patch + DOCUMENT[start + length :])


@given(
    st.fixed_dictionaries(
        {"packages": st.dictionaries(st.text(max_size=20) | st.just("a-1-0.tar.bz2"), JSON | st.just(record()))},
        optional={"info": JSON, "v3": JSON, "removed": JSON, "signatures": JSON, "repodata_version": JSON},
    )
)
def test_an_index_of_any_types_raises_nothing_but_the_one_error(document: dict[str, Any]) -> None:
    check(json.dumps(document).encode())
