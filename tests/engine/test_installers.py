"""Installers, from each kind of page that upstreams show."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.lab import Lab
from tests.upstream import channel, pages

SH = "Miniconda3-latest-Linux-x86_64.sh"
EXE = "Miniconda3-latest-Windows-x86_64.exe"
KINDS = ["official sha256", "official md5", "fancyindex", "autoindex"]


def show(lab: Lab, kind: str) -> None:
    """Make the page of `miniconda/` one of `kind`, with the files as they are now."""
    folder = lab.tree / "miniconda"
    page = folder / "index.html"
    page.unlink(missing_ok=True)
    files = sorted(folder.iterdir())
    if kind.startswith("official"):
        page.write_text(pages.official("Miniconda", files, algorithm=kind.partition(" ")[2]))
    elif kind == "fancyindex":
        page.write_text(pages.fancyindex("/miniconda/", files))


def has(lab: Lab) -> dict[str, bytes]:
    """Return the installers that are served."""
    folder = lab.mirror / "miniconda"
    return {file.name: file.read_bytes() for file in folder.iterdir()} if folder.exists() else {}


@pytest.fixture
def ours(lab: Lab) -> Lab:
    """Return a lab that mirrors only installers for Linux."""
    lab.settings |= {"repos": [], "installers": {"dists": ["miniconda"], "suffixes": ["Linux-x86_64.sh"]}}
    return lab


@pytest.mark.parametrize("kind", KINDS)
def test_installers_of_the_wanted_suffixes_are_mirrored(ours: Lab, kind: str) -> None:
    show(ours, kind)
    run = ours.sync()
    assert run.code == 0, run.log
    assert has(ours) == {SH: (ours.tree / "miniconda" / SH).read_bytes()}
    ours.upstream.requests.clear()
    assert ours.sync().code == 0
    assert not ours.upstream.asked(f"*/{SH}", "GET"), "what is held is not fetched again"
    assert not ours.upstream.asked(f"*/{EXE}")


@pytest.mark.parametrize("kind", KINDS)
def test_an_installer_that_changed_is_fetched_again(ours: Lab, kind: str) -> None:
    show(ours, kind)
    assert ours.sync().code == 0
    (ours.tree / "miniconda" / SH).write_bytes(channel.noise(25_000, 5))
    show(ours, kind)
    assert ours.sync().code == 0
    assert has(ours)[SH] == channel.noise(25_000, 5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", [{"cut": 1000}, {"status": 404}, {"status": 503}, {"drop": True}])
def test_a_broken_installer_is_not_served(ours: Lab, kind: str, fault: dict[str, int]) -> None:
    show(ours, kind)
    ours.fault(f"*/{SH}", **fault)
    run = ours.sync()
    assert run.code == 1, run.log
    assert SH in run.log
    assert has(ours) == {}
    ours.upstream.faults.clear()
    assert ours.sync().code == 0
    assert set(has(ours)) == {SH}


@pytest.mark.parametrize("kind", ["official sha256", "official md5"])
def test_an_installer_with_another_hash_does_not_replace_ours(ours: Lab, kind: str) -> None:
    show(ours, kind)
    assert ours.sync().code == 0
    before = has(ours)
    (ours.tree / "miniconda" / SH).write_bytes(channel.noise(25_000, 5))
    show(ours, kind)
    ours.fault(f"*/{SH}", corrupt=True)
    run = ours.sync()
    assert run.code == 1, run.log
    assert has(ours) == before


def test_a_page_without_any_wanted_file_is_a_failure_and_not_silence(ours: Lab) -> None:
    page = ours.tree / "miniconda/index.html"
    page.write_text("<html><body>We moved to a new site</body></html>")
    run = ours.sync()
    assert run.code == 1, run.log
    assert "miniconda" in run.log


def test_links_that_lead_elsewhere_are_none_of_the_files(ours: Lab) -> None:
    names = ("../escape-Linux-x86_64.sh", "http://127.0.0.1:9/off-Linux-x86_64.sh", "/etc/abs-Linux-x86_64.sh",
             "%2e%2e%2fescape2-Linux-x86_64.sh", "sub/deep-Linux-x86_64.sh")  # fmt: skip
    page = ours.tree / "miniconda/index.html"
    page.write_text(page.read_text() + "".join(f'<a href="{name}">{name}</a>' for name in names))
    ours.configure()
    before = ours.outside_the_mirror()
    assert ours.sync().code == 0
    assert set(has(ours)) == {SH}
    assert ours.outside_the_mirror() == before


def test_the_archive_is_mirrored_too(ours: Lab) -> None:
    ours.settings["installers"] = {"dists": ["miniconda", "archive"], "suffixes": [".sh", "Windows-x86_64.exe"]}
    run = ours.sync()
    assert run.code == 0, run.log
    assert set(has(ours)) == {SH, EXE}
    assert [file.name for file in Path(ours.mirror, "archive").iterdir()] == ["Anaconda3-2025.06-1-Linux-x86_64.sh"]
