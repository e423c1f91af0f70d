"""Installers, from each kind of page that upstreams show."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from lanmirror_sync import listing
from lanmirror_sync.pages import parse

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


# ---- on demand -----------------------------------------------------------------------------------------------------

OLD = "Anaconda3-2025.06-1-Linux-x86_64.sh"
COMMANDS = [("sync",), ("sync", "--indexes")]


@pytest.fixture
def demanded(ours: Lab) -> Lab:
    """Return a lab whose installers come on demand."""
    ours.settings |= {"on_demand": True, "delete_grace_hours": 0}
    ours.settings["installers"] = {"dists": ["miniconda", "archive"], "suffixes": ["Linux-x86_64.sh"], "hold": "none"}
    return ours


def told(lab: Lab) -> dict[str, Any]:
    """Return what status.json tells of `miniconda`."""
    told: dict[str, Any] = json.loads((lab.mirror / ".lanmirror/public/status.json").read_bytes())
    found: dict[str, Any] = told["installers"]["miniconda"]
    return found


def page(lab: Lab) -> bytes:
    """Return the page of `miniconda/` for people."""
    return (lab.mirror / "miniconda/index.html").read_bytes()


def theirs(lab: Lab) -> bytes:
    """Return the upstream's."""
    with urllib.request.urlopen(f"{lab.upstream.url}/miniconda/") as answer:
        body: bytes = answer.read()
    return body


def hold(lab: Lab, which: str) -> None:
    lab.settings["installers"] = {**lab.settings["installers"], "hold": which}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", KINDS)
def test_installers_on_demand_are_listed_and_none_is_fetched(
    demanded: Lab, kind: str, command: tuple[str, ...]
) -> None:
    show(demanded, kind)
    listed = parse(theirs(demanded), ["Linux-x86_64.sh"])
    assert [(item.file_name, bool(item.digest)) for item in listed] == [(SH, kind.startswith("official"))]
    assert all(item.size and item.date for item in listed)
    demanded.upstream.requests.clear()
    run = demanded.sync(*command)
    assert run.code == 0, run.log
    assert not demanded.upstream.asked("*.sh")
    assert [file.name for file in (demanded.mirror / "miniconda").iterdir()] == ["index.html"]
    # All that theirs says of it, in a form that another mirror can read.
    assert parse(page(demanded), [""]) == listed
    assert re.findall('href="([^"]*)"', page(demanded).decode()) == [SH]
    assert f'href="{OLD}"' in (demanded.mirror / "archive/index.html").read_text()
    assert told(demanded) == {"hold": "none", "held": 0, "on_demand": 1, "bytes": 0, "failures": []}
    published = listing.read(demanded.mirror / ".lanmirror/public", "miniconda")
    assert published
    assert tuple(published.files) == listed
    demanded.upstream.requests.clear()
    plan = demanded.plan()["installers"]["miniconda"]
    assert (plan["state"], plan["hold"], plan["fetch"]["files"], plan["on_demand"]["files"]) == (
        "unchanged",
        "none",
        0,
        1,
    )
    assert plan["surplus"]["files"] == 0
    assert demanded.sync("verify").code == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_page_that_is_unchanged_costs_a_conditional_request(demanded: Lab, command: tuple[str, ...]) -> None:
    show(demanded, "official sha256")
    assert demanded.sync(*command).code == 0
    before, file = (
        listing.read(demanded.mirror / ".lanmirror/public", "miniconda"),
        demanded.mirror / "miniconda/index.html",
    )
    status, text = file.stat(), page(demanded)
    demanded.upstream.requests.clear()
    assert demanded.sync(*command).code == 0
    (asked,) = demanded.upstream.asked("/miniconda/*")
    assert asked.headers.get("If-None-Match")
    after = listing.read(demanded.mirror / ".lanmirror/public", "miniconda")
    assert before
    assert after
    assert (after.files, after.read > before.read) == (before.files, True)
    assert (file.stat().st_mtime_ns, page(demanded)) == (status.st_mtime_ns, text)
    # Other suffixes, or no listing here any more: the whole page is needed.
    demanded.settings["installers"]["suffixes"] = [".exe", "Linux-x86_64.sh"]
    assert demanded.sync(*command).code == 0
    assert f'href="{EXE}"' in page(demanded).decode()
    (demanded.mirror / ".lanmirror/public/installers-miniconda.json").unlink()
    assert demanded.sync(*command).code == 0
    assert listing.read(demanded.mirror / ".lanmirror/public", "miniconda")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 200, "body": b"<html>We moved</html>"}])
def test_page_that_cannot_be_had_leaves_ours(demanded: Lab, command: tuple[str, ...], fault: dict[str, Any]) -> None:
    assert demanded.sync().code == 0
    before = page(demanded)
    demanded.fault("/miniconda/", **fault)
    run = demanded.sync(*command)
    assert run.code == 1, run.log
    assert (page(demanded), len(told(demanded)["failures"]), told(demanded)["on_demand"]) == (before, 1, 1)
    demanded.upstream.faults.clear()
    assert demanded.sync(*command).code == 0
    assert told(demanded)["failures"] == []


def test_refresh_leaves_what_a_sync_told_of_installers_that_are_held(demanded: Lab) -> None:
    demanded.settings["installers"]["urls"] = {"forge": [f"{demanded.upstream.url}/gone.sh"]}
    assert demanded.sync().code == 1
    assert demanded.sync("--indexes").code == 0
    status = json.loads((demanded.mirror / ".lanmirror/public/status.json").read_bytes())
    assert "gone.sh" in status["installers"]["forge"]["failures"][0]


def test_links_that_lead_elsewhere_are_not_listed(demanded: Lab) -> None:
    file = demanded.tree / "miniconda/index.html"
    names = ("../escape-Linux-x86_64.sh", "http://127.0.0.1:9/off-Linux-x86_64.sh",
             '"><script>x</script>-Linux-x86_64.sh',
             "//127.0.0.1:9/miniconda/off-Linux-x86_64.sh", "javascript:x-Linux-x86_64.sh")  # fmt: skip
    file.write_text(file.read_text() + "".join(f"<a href='{name}'>{name}</a> <b onload=x>1 M</b>" for name in names))
    assert demanded.sync("--indexes").code == 0
    assert re.findall('href="([^"]*)"', page(demanded).decode()) == [SH]
    assert not re.search("script|onload|127.0.0.1|//", page(demanded).decode())


@pytest.mark.parametrize("kind", KINDS)
def test_installers_that_were_held_are_served_until_they_are_deleted(demanded: Lab, kind: str) -> None:
    show(demanded, kind)
    hold(demanded, "all")
    assert demanded.sync().code == 0
    assert not (demanded.mirror / "miniconda/index.html").exists()
    assert told(demanded) == {"hold": "all", "held": 1, "on_demand": 0, "bytes": len(has(demanded)[SH]), "failures": []}
    (demanded.tree / "miniconda" / SH.replace("latest", "1.0")).write_bytes(b"an older one")
    show(demanded, kind)
    hold(demanded, "none")
    demanded.upstream.requests.clear()
    for command in (("--indexes",), (), ("verify",)):
        run = demanded.sync(*command)
        assert run.code == 0, run.log
        assert {*has(demanded)} == {SH, "index.html"}
        assert (told(demanded)["held"], told(demanded)["on_demand"]) == (1, 1)
    assert not demanded.upstream.asked("*.sh", "GET")
    plan = demanded.plan()["installers"]["miniconda"]
    assert (plan["held"]["files"], plan["fetch"]["files"], plan["on_demand"]["files"]) == (0, 0, 1)
    assert plan["delete"] == {"files": 1, "bytes": len(has(demanded)[SH])}
    run = demanded.sync("--delete")
    assert run.code == 0, run.log
    assert {*has(demanded)} == {"index.html"}
    assert f'href="{SH}"' in page(demanded).decode()
    assert (told(demanded)["held"], told(demanded)["on_demand"]) == (0, 2)


def test_installer_that_is_held_and_not_listed_is_shown_until_it_goes(demanded: Lab) -> None:
    hold(demanded, "all")
    assert demanded.sync().code == 0
    (demanded.tree / "miniconda" / SH).rename(demanded.tree / "miniconda" / SH.replace("latest", "1.0"))
    show(demanded, "official sha256")
    hold(demanded, "none")
    assert demanded.sync().code == 0
    assert re.findall('href="([^"]*)"', page(demanded).decode()) == [SH.replace("latest", "1.0"), SH]
    assert demanded.sync("--delete").code == 0
    assert re.findall('href="([^"]*)"', page(demanded).decode()) == [SH.replace("latest", "1.0")]


@pytest.mark.parametrize("kind", KINDS)
def test_installer_that_is_held_in_place_of_a_newer_one_goes(demanded: Lab, kind: str) -> None:
    show(demanded, kind)
    hold(demanded, "all")
    assert demanded.sync().code == 0
    hold(demanded, "none")
    (demanded.tree / "miniconda" / SH).write_bytes(channel.noise(25_000, 5))
    show(demanded, kind)
    # A refresh beside a sync leaves what is held; and so does a sync that cannot tell.
    assert demanded.sync("--indexes").code == 0
    assert SH in has(demanded)
    demanded.fault(f"*/{SH}", status=503)
    assert demanded.sync().code == 0
    assert SH in has(demanded)
    demanded.upstream.faults.clear()
    assert demanded.sync("plan").code == 0
    assert SH in has(demanded)
    run = demanded.sync()
    assert run.code == 0, run.log
    assert {*has(demanded)} == {"index.html"}
    assert (demanded.mirror / "archive" / OLD).exists()
    assert f"miniconda/{SH}: deleted, since the upstream has another by now" in run.log
    assert not demanded.upstream.asked(f"*/{SH}", "GET")[1:]


def test_page_goes_with_what_it_lists(demanded: Lab) -> None:
    mine = demanded.mirror / "archive/index.html"
    assert demanded.sync().code == 0
    # Held: what is there shows. The check of the cache still needs the hashes.
    hold(demanded, "all")
    mine.write_text("an administrator's own")
    assert demanded.sync().code == 0
    assert {*has(demanded)} == {SH}
    assert mine.read_text() == "an administrator's own"
    published = demanded.mirror / ".lanmirror/public"
    assert listing.read(published, "miniconda")
    # Taken out of the configuration: nobody fetches it any more.
    hold(demanded, "none")
    mine.unlink()
    assert demanded.sync("--delete").code == 0
    demanded.settings["installers"]["dists"] = ["archive"]
    assert demanded.sync().code == 0
    assert not (demanded.mirror / "miniconda").exists()
    assert [file.name for file in published.glob("installers-*")] == ["installers-archive.json"]
    # Not on demand at all.
    demanded.settings["on_demand"] = False
    hold(demanded, "all")
    assert demanded.sync().code == 0
    assert not [*published.glob("installers-*")]
    assert [file.name for file in (demanded.mirror / "archive").iterdir()] == [OLD]


def test_installers_from_elsewhere_are_held_beside(demanded: Lab) -> None:
    demanded.settings["installers"]["urls"] = {"forge": [f"{demanded.upstream.url}/archive/{OLD}"]}
    assert demanded.sync().code == 0
    assert [file.name for file in (demanded.mirror / "forge").iterdir()] == [OLD]
    assert not (demanded.mirror / "archive" / OLD).exists()
    assert demanded.sync("verify").code == 0


def test_damaged_installer_that_is_held_still_goes(demanded: Lab) -> None:
    hold(demanded, "all")
    assert demanded.sync().code == 0
    hold(demanded, "none")
    file = demanded.mirror / "miniconda" / SH
    file.write_bytes(bytes(file.stat().st_size))
    assert demanded.sync("verify").code == 1
    assert not file.exists()
    assert demanded.sync().code == 0
    assert demanded.sync("verify").code == 0


@pytest.mark.parametrize("fill", ["", "x"])
def test_size_and_date_are_those_of_their_file(fill: str) -> None:
    """Of another's row, of a name, or of words, none is taken."""
    rows = (
        f'<tr><td><a href="a.sh">a.sh</a></td><td>1.5M{fill}</td><td>2026-01-02 03:04</td></tr>'
        '<tr><td><a href="b.sh">b.sh</a><a href="c.sh">c.sh</a></td><td>7K</td><td>2026-01-02 03:04</td></tr>'
        "</table><pre>"
        f'<a href="d.sh">2026-01-02 03:04</a>  05-Jan-2026 06:07   123{fill}\n<a href="sub/">sub/</a>   5\n'
        f'<a href="e.sh">e.sh</a>\n<a href="f.sh">7</a> 2026-Feb-03 04:05  8K</pre>'
    )
    found = {item.file_name: (item.size, item.date) for item in parse(rows.encode(), [".sh"])}
    assert found["a.sh"] == ("" if fill else "1.5M", "2026-01-02 03:04")
    assert found["b.sh"] == found["c.sh"] == found["e.sh"] == ("", "")
    assert found["f.sh"][1] == "2026-Feb-03 04:05"
