"""What clients and upstreams do at the edges: odd records, odd pages, odd configurations."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from lanmirror_sync import repodata
from lanmirror_sync.config import ConfigError, load
from rattler.repo_data import RepoData

from tests.engine.lab import Lab
from tests.upstream import channel, server

LINUX = "pkgs/main/linux-64"
NOARCH = "pkgs/main/noarch"
VICTIM = "lib0003-1.3-0.conda"
SH = "Miniconda3-latest-Linux-x86_64.sh"

# ---- records -------------------------------------------------------------------------------------------------

# Fields that keep rattler, and so pixi, from reading any record of the index.
VERSIONS: list[Any] = [
    "", "1..0", "1 0", "\xe9", "1!", "!1", "1!2!3", "_", "-1", "1:0", "1.0*", ">=1", 5, None, "1." + "9" * 30, "1.",
    "1__0", "1.0+", "1_-",
]  # fmt: skip
NO_LIST: list[Any] = ["python", None, 5, [5], {"a": 1}]
UNREADABLE: list[dict[str, Any]] = [
    *({"sha256": value} for value in ("", "x", "AB" * 31, 5)),
    *({"md5": value} for value in ("", "x" * 32, 5)),
    *({"legacy_bz2_md5": value} for value in ("", "x", 5)),
    *({"build_number": value} for value in (-1, 1.5, "0", None, True, 1 << 70)),
    *({"size": value} for value in (-1, 1.5, "5", True, 1 << 70)),
    *({"version": value} for value in VERSIONS),
    *({"build": value} for value in (5, None, ["0"])),
    *({"depends": value} for value in NO_LIST),
    *({"constrains": value} for value in NO_LIST),
    *({"timestamp": value} for value in ("5", 1.5, 1 << 63, 10**30, True, 253402300800000)),
    {"noarch": "other"}, {"noarch": 5}, {"noarch": []},
    *({"license": value} for value in (5, ["MIT"])),
    *({"track_features": value} for value in (5, None, [5])),
    {"features": 5}, {"features": []},
    {"license_family": 5}, {"arch": 5}, {"platform": 5}, {"subdir": 5}, {"subdir": None}, {"name": 5}, {"name": ""},
    {"legacy_bz2_size": -1}, {"python_site_packages_path": 5}, {"purls": ["x"]}, {"purls": 5}, {"run_exports": 5},
    {"run_exports": {"weak": 5}},
]  # fmt: skip
READABLE: list[dict[str, Any]] = [
    {"sha256": None}, {"md5": None}, {"size": None}, {"timestamp": None}, {"noarch": True}, {"noarch": False},
    {"noarch": None}, {"noarch": "generic"}, {"license": None}, {"track_features": ["a"]}, {"track_features": "a,b"},
    {"features": None}, {"arch": None}, {"constrains": ["a >1"]}, {"purls": ["pkg:pypi/x"]}, {"purls": None},
    {"unknown": {"x": [1]}}, {"build_number": 10**12}, {"depends": ["$$$", ""]},
    *({"version": version} for version in ("1!1.0+2.0", "2023c", "9e", "1.1.1k", "1.0_1_", "5.9.4.0+20230116-g2fbe",
                                           "2.0.post1.dev0", "0.1.0-1", "1_", "A1", "1.0+a_b")),
]  # fmt: skip


def readable(folder: Path) -> bool:
    """Tell whether rattler reads an index as a whole."""
    try:
        RepoData.from_path(folder / "repodata.json")
    except Exception:
        return False
    return True


@pytest.mark.parametrize("fields", [*UNREADABLE, *READABLE], ids=lambda fields: json.dumps(fields)[:40])
def test_a_record_is_mirrored_if_every_client_can_read_it(tmp_path: Path, fields: dict[str, Any]) -> None:
    good = {"name": "a", "version": "1", "build": "0", "build_number": 0, "depends": [], "subdir": "linux-64",
            "size": 10, "sha256": "ab" * 32, "md5": "cd" * 16, "timestamp": 1_700_000_000_000}  # fmt: skip
    data = {"info": {"subdir": "linux-64"}, "packages": {}, "packages.conda": {
        "a-1-0.conda": good, "odd-1-0.conda": {**good, "name": "odd", **fields}}}  # fmt: skip
    (tmp_path / "repodata.json").write_text(json.dumps(data))
    index = repodata.parse((tmp_path / "repodata.json").read_bytes())
    assert "a-1-0.conda" in index.packages
    assert ("odd-1-0.conda" in index.packages) == (fields in READABLE)
    if fields in READABLE:
        assert readable(tmp_path), "this test is wrong about what clients read"
    else:
        assert index.refused["odd-1-0.conda"]


@pytest.mark.parametrize(
    "name", ["libxgboost-0.6+218_omp_0.tar.bz2", "good.conda", "good-1.0.conda", "good1.00.tar.bz2"]
)
def test_a_file_name_without_version_and_build_is_left_out(lab: Lab, name: str) -> None:
    record = lab.repodata_of_upstream(LINUX)["packages.conda"][VICTIM]
    channel.edit(lab.tree / LINUX, {name: record})
    run = lab.sync()
    assert run.code == 1
    assert name in run.log
    lab.check()
    assert readable(lab.mirror / LINUX)


def test_odd_records_are_left_out_of_what_is_served_each_with_its_reason(lab: Lab) -> None:
    record = lab.repodata_of_upstream(LINUX)["packages.conda"][VICTIM]
    odd = {f"odd{number}-1.0-0.conda": {**record, **fields} for number, fields in enumerate(UNREADABLE)}
    channel.edit(lab.tree / LINUX, odd)
    run = lab.sync()
    assert run.code == 1
    lab.check()
    assert readable(lab.mirror / LINUX)
    assert len(lab.named(f"{LINUX}/repodata.json")) == 14
    assert "odd0-1.0-0.conda' is refused: " in run.log


# ---- encodings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "zstd", None])
@pytest.mark.parametrize("form", ["", ".zst", ".bz2"])
def test_an_index_that_was_compressed_on_the_way(lab: Lab, coding: str | None, form: str) -> None:
    """Whatever was asked for, and whatever the header says of it: its bytes tell."""
    for other in {"", ".zst", ".bz2"} - {form, ""}:
        (lab.tree / LINUX / f"repodata.json{other}").unlink()
    file = lab.tree / LINUX / f"repodata.json{form}"
    data = file.read_bytes()
    packed = zstandard.compress(data) if coding == "zstd" else gzip.compress(data)
    lab.fault(f"/{LINUX}/repodata.json{form}", body=packed, headers={"Content-Encoding": coding})
    current = (lab.tree / LINUX / "current_repodata.json").read_bytes()
    lab.fault(f"/{LINUX}/current_repodata.json", body=gzip.compress(current), headers={"Content-Encoding": coding})
    for _ in range(2):
        run = lab.sync()
        assert run.code == 0, run.log
    assert len(lab.check().named[f"{LINUX}/repodata.json"]) == 14
    assert lab.repodata(LINUX, "current_repodata.json")["packages.conda"]


def test_a_gzip_encoded_installer_page(lab: Lab) -> None:
    lab.settings["installers"] = {"dists": ["miniconda"], "suffixes": ["Linux-x86_64.sh"]}
    page = (lab.tree / "miniconda/index.html").read_bytes()
    lab.fault("/miniconda/", body=gzip.compress(page), headers={"Content-Encoding": "gzip"})
    assert lab.sync().code == 0
    assert (lab.mirror / "miniconda" / SH).exists()


@pytest.mark.parametrize("body", [b"{}", b" {} \n", b'{"info": {"subdir": "noarch"}}', b'{"packages": {}}'])
def test_an_empty_object_for_an_empty_noarch(lab: Lab, body: bytes) -> None:
    for file in (lab.tree / "pkgs/r/noarch").iterdir():
        file.unlink() if file.is_file() else None
    (lab.tree / "pkgs/r/noarch/repodata.json").write_bytes(body)
    lab.settings["repos"] = ["r"]
    for _ in range(2):
        run = lab.sync()
        assert run.code == 0, run.log
    lab.check()
    assert lab.repodata("pkgs/r/noarch")["packages"] == {}


def test_an_empty_object_is_no_reason_to_forget_packages(lab: Lab) -> None:
    assert lab.sync().code == 0
    for file in (lab.tree / LINUX).glob("*repodata*"):
        file.unlink()
    (lab.tree / LINUX / "repodata.json").write_bytes(b"{}")
    assert lab.sync().code == 1
    assert len(lab.check().named[f"{LINUX}/repodata.json"]) == 14


def test_label_channels(lab: Lab) -> None:
    label = lab.tree / "cloud/conda-forge/label/test.v1_rc"
    for spec in (channel.hello("linux-64", "3.0"), channel.greeting("labelled", "3.0")):
        channel.build(spec, label)
    channel.index(label)
    lab.settings["cloud"] = [f"conda-forge/label/test.v1_rc/{arch}" for arch in ("noarch", "linux-64")]
    run = lab.sync()
    assert run.code == 0, run.log
    assert "hello-3.0-0.conda" in lab.check().named["cloud/conda-forge/label/test.v1_rc/linux-64/repodata.json"]
    lab.settings |= {"cloud": [], "delete_grace_hours": 0}
    assert lab.sync("--delete").code == 0
    assert not (lab.mirror / "cloud/conda-forge").exists()


@pytest.mark.parametrize(
    "relations",
    [
        {"base": "../base"},
        {"base": ["../base", "../conda-forge"]},
        {"overrides": {"x": "../conda-forge", "y": "../nowhere"}},
        {"base": "https://elsewhere.example.org/c"},
        {"base": "../../pkgs/r"},
        {"base": "../../../etc"},
        "../nowhere",
        ["../x"],
        7,
    ],
)
def test_relations_lead_to_channels_that_are_here(lab: Lab, relations: Any) -> None:
    """CEP 42: clients load them unasked."""
    lab.settings["cloud"] = ["conda-forge/noarch", "conda-forge/linux-64", "lab/linux-64"]
    own = lab.tree / "cloud/lab"
    channel.build(channel.hello("linux-64", "9.0"), own)
    channel.index(own)
    channel.edit(own / "linux-64", info={"subdir": "linux-64", "channel_relations": relations})
    run = lab.sync()
    assert run.code == 0, run.log
    info = lab.repodata("cloud/lab/linux-64")["info"]
    kept = json.dumps(info.get("channel_relations", ""))
    for word in ("nowhere", "elsewhere", "etc", "pkgs", "../base", "../x"):
        assert word not in kept
        assert word not in json.dumps(relations) or word in run.log, "it is said"
    assert ("../conda-forge" in kept) == ("../conda-forge" in json.dumps(relations))


# ---- installers ----------------------------------------------------------------------------------------------


@pytest.fixture
def ours(lab: Lab) -> Lab:
    """Return a lab that mirrors only installers for Linux, from listings without hashes."""
    lab.settings |= {"repos": [], "installers": {"dists": ["miniconda"], "suffixes": ["Linux-x86_64.sh"]}}
    (lab.tree / "miniconda/index.html").unlink()
    return lab


def fetched(lab: Lab, *others: server.Upstream) -> int:
    """Return how often the installer was fetched whole."""
    requests = [request for upstream in (lab.upstream, *others) for request in upstream.asked(f"*/{SH}", "GET")]
    return len([request for request in requests if request.headers.get("Range") != "bytes=0-0"])


def test_an_installer_of_another_upstream_is_the_same(ours: Lab, tmp_path: Path) -> None:
    """It has another validator there."""
    (tmp_path / "second/miniconda").mkdir(parents=True)
    (tmp_path / "second/miniconda" / SH).write_bytes((ours.tree / "miniconda" / SH).read_bytes())
    with server.serving(tmp_path / "second") as second:
        ours.settings["upstream"]["repo"] = [ours.upstream.url, second.url]
        assert ours.sync().code == 0
        for down in (True, False, True):
            ours.upstream.faults.clear()
            if down:
                ours.fault("*", status=503)
            run = ours.sync()
            assert run.code == 0, run.log
        assert fetched(ours, second) == 1
        ours.upstream.faults.clear()
        for tree in (ours.tree, second.root):
            (tree / "miniconda" / SH).write_bytes(b"another one")
        assert ours.sync().code == 0
        assert (ours.mirror / "miniconda" / SH).read_bytes() == b"another one"


@pytest.mark.parametrize("headers", [{"ETag": None, "Last-Modified": None}, {"ETag": None}, {"Last-Modified": None}])
def test_an_installer_without_a_validator_is_fetched_once(ours: Lab, headers: dict[str, None]) -> None:
    ours.fault(f"*/{SH}", headers=headers)
    for _ in range(3):
        assert ours.sync().code == 0
    assert fetched(ours) == 1
    (ours.tree / "miniconda" / SH).write_bytes(b"another one")
    assert ours.sync().code == 0
    assert (ours.mirror / "miniconda" / SH).read_bytes() == b"another one"


def forget_everything(lab: Lab) -> None:
    for file in (lab.mirror / ".lanmirror").glob("memory.sqlite*"):
        file.unlink()


def test_an_installer_is_known_without_the_memory(ours: Lab) -> None:
    assert ours.sync().code == 0
    forget_everything(ours)
    assert ours.sync().code == 0
    assert fetched(ours) == 1
    forget_everything(ours)
    file = ours.mirror / "miniconda" / SH
    file.write_bytes(b"rot" + file.read_bytes()[3:])
    run = ours.sync("verify")
    assert run.code == 1, run.log
    assert SH in run.log
    assert not file.exists()
    assert ours.sync().code == 0
    file.write_bytes(b"rot" + file.read_bytes()[3:])
    forget_everything(ours)
    assert ours.sync().code == 0
    assert file.read_bytes() == (ours.tree / "miniconda" / SH).read_bytes()


def test_an_installer_of_which_nothing_is_known_is_not_called_sound(ours: Lab) -> None:
    assert ours.sync().code == 0
    forget_everything(ours)
    (ours.mirror / ".lanmirror/installers.json").unlink()
    run = ours.sync("verify")
    assert run.code == 1, run.log
    assert "nothing tells what it should be" in run.log
    assert ours.sync().code == 0
    assert ours.sync("verify").code == 0


PAGES = {
    "absolute path": '<a href="/miniconda/N">N</a>',
    "absolute URL": '<a href="HOST/miniconda/N">N</a>',
    "query": '<a href="N?download=1">N</a>',
    "fragment": '<a href="./N#x">N</a>',
    "blanks": '<a href="  N \n">N</a>',
    "capitals": "<A HREF='N'>N</A>",
    "stray md5": '<pre><a href="N">N</a></pre><p>build <code>0cc175b9c0f1b6a831c399e269772661</code></p>',
    "stray sha256 before": f'<p>{"ab" * 32}</p><a href="N">N</a>',
    "table around the page": f'<table><tr><td><a href="N">N</a> <a href="o.sh">o</a><td>{"ab" * 32}</tr></table>',
    "unclosed rows": '<table><tr><td><a href="N">N</a><tr><td>0cc175b9c0f1b6a831c399e269772661</table>',
    "two hashes of a kind": f'<table><tr><td><a href="N">N</a><td>{"ab" * 32}<td>{"cd" * 32}</tr></table>',
    "not UTF-8": '<title>\xe9</title><a href="N">N</a>',
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_a_page_is_read_as_a_browser_reads_it(ours: Lab, page: str) -> None:
    body = page.replace("HOST", ours.upstream.url).replace("N", SH).encode("latin-1")
    ours.fault("/miniconda/", body=body)
    run = ours.sync()
    assert run.code == 0, run.log
    assert [file.name for file in (ours.mirror / "miniconda").iterdir()] == [SH]


def test_a_page_that_moved(ours: Lab) -> None:
    """Its links are relative to where it is now."""
    (ours.tree / "dist").mkdir()
    (ours.tree / "miniconda" / "index.html").write_text("")
    ours.fault("/miniconda/", status=302, headers={"Location": "/dist/miniconda/"})
    (ours.tree / "dist/miniconda").symlink_to(ours.tree / "miniconda")
    (ours.tree / "miniconda/index.html").write_text(f'<a href="/dist/miniconda/{SH}">x</a>')
    run = ours.sync()
    assert run.code == 0, run.log


def test_installers_from_elsewhere_are_named_by_url(ours: Lab, tmp_path: Path) -> None:
    with server.serving(tmp_path / "elsewhere") as other:
        folder = other.root / "releases/latest"
        folder.mkdir(parents=True)
        (folder / "Miniforge3-Linux-x86_64.sh").write_bytes(b"#!/bin/sh one")
        (folder / "micromamba-linux-64").write_bytes(b"ELF")
        digest = "0" * 64
        urls = {"miniforge": [f"{other.url}/releases/latest/Miniforge3-Linux-x86_64.sh?x=1"],
                "micromamba": [f"{other.url}/releases/latest/micromamba-linux-64#sha256={digest}"]}  # fmt: skip
        ours.settings["installers"]["urls"] = urls
        run = ours.sync()
        assert run.code == 1, run.log
        assert "micromamba-linux-64" in run.log
        urls["micromamba"] = [f"{other.url}/releases/latest/micromamba-linux-64"]
        for _ in range(2):
            run = ours.sync()
            assert run.code == 0, run.log
        assert (ours.mirror / "miniforge/Miniforge3-Linux-x86_64.sh").read_bytes() == b"#!/bin/sh one"
        assert (ours.mirror / "micromamba/micromamba-linux-64").read_bytes() == b"ELF"
        assert len(other.asked("*Miniforge3*", "GET")) == 1
        (folder / "Miniforge3-Linux-x86_64.sh").write_bytes(b"#!/bin/sh and another")
        assert ours.sync().code == 0
        file = ours.mirror / "miniforge/Miniforge3-Linux-x86_64.sh"
        assert file.read_bytes() == b"#!/bin/sh and another"
        file.write_bytes(b"#!/bin/sh and rotten.")
        assert ours.sync("verify", "--repair").code == 0
        assert file.read_bytes() == b"#!/bin/sh and another"
        # A folder that is not asked for any more.
        del urls["micromamba"]
        ours.settings["delete_grace_hours"] = 0
        assert ours.sync("--delete").code == 0
        assert not (ours.mirror / "micromamba").exists()


# ---- the configuration ---------------------------------------------------------------------------------------

NO_URLS = [
    "http://[", "http://[::1", "http://host:abc", "http://host:99999", "http://host:-1", "http://host:0", "http://",
    "http:///x", "http://a b", "http://h/a b", "http://ex\u00e4mple.org", "http://h\\x", "ftp://h", "http://h?x",
    "http://h#x", "//h", "h", "http://exa_mple!", "http://[::1]x",
]  # fmt: skip
WRONG = [
    *(f"upstream: {{repo: '{url}'}}" for url in NO_URLS),
    "upstream: {index: {repo: 'http://['}}",
    "site: {url: 'http://['}",
    "site: {url: 'http://h:abc'}",
    f"limit_rate: '{'9' * 400}'",
    f"verify_rate: {'9' * 400}",
    f"limit_rate: {'9' * 5000}",
    f"jobs: {'9' * 5000}",
    "limit_rate: '1e999'",
    "limit_rate: 0.5",
    "timeout_seconds: .inf",
    "timeout_seconds: .nan",
    "jobs: 257",
    "jobs: 1.5",
    "working_dir: /",
    "working_dir: //",
    "working_dir: /srv/..",
    "working_dir: /.",
    "working_dir: \"/srv/\\0\"",
    "metrics_file: /",
    "cache_report: cache.json",
    "ca_bundle: \"\\0\"",
    "jobs: 4\njobs: 5",
    "upstream: {repo: 'http://a', repo: 'http://b'}",
    "repos: [2024-01-01]",
    "? [a]\n: b",
    "a: &a [*a]\n",
    "- " * 3000,
    "installers: {urls: []}",
    "installers: {urls: {pkgs: ['http://h/x']}}",
    "installers: {urls: {miniconda: ['http://h/x']}}",
    "installers: {urls: {'../x': ['http://h/x']}}",
    "installers: {urls: {x: 'http://h/x'}}",
    "installers: {urls: {x: ['http://h/']}}",
    "installers: {urls: {x: ['http://h/..']}}",
    "installers: {urls: {x: ['http://h/a', 'http://i/a']}}",
    "installers: {urls: {x: ['http://h/a#sha256=ab']}}",
    "accept_missing: x",
    "exclude: [5]",
]  # fmt: skip


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:40])
def test_a_configuration_that_cannot_be_used_is_one_message(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert len(message) < 8000
    assert "\n" not in message


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "https://u:p@h:8443/x/",
        "http://127.0.0.1:1",
        "http://[::1]:80/x",
        "http://h/~a/%20",
        "http://under_score/x",
    ],
)
def test_urls_that_can_be_used(tmp_path: Path, url: str) -> None:
    file = tmp_path / "config.yml"
    file.write_text(json.dumps({"upstream": {"repo": url}}))
    assert load(file, {}).upstream_repo == (url.rstrip("/"),)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--working-dir", "/"),
        ("--working-dir", "/srv/.."),
        ("--working-dir", "//"),
        ("--jobs", "100000"),
        ("--jobs", "-1"),
        ("--max-delete", "101"),
        ("--max-delete", "nan"),
        ("--only", "nothing"),
    ],
)
def test_the_command_line_is_checked_as_the_file_is(lab: Lab, option: str, value: str) -> None:
    run = lab.sync("--check-config", option, value)
    assert run.code == 2, run.log
    assert option in run.log
    assert len(run.log.splitlines()) == 1


def test_a_relative_working_dir_is_one_of_the_shell(lab: Lab) -> None:
    assert lab.sync("--check-config", "--working-dir", "x/../y").code == 0
