"""What comes in: the rules of a mirror hold for its pages, its files, and for each index that inherits it."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests

from tests.devpi.conftest import JSON, PASSWORD, Devpi, Upstream
from tests.devpi.origin import LONG, Origin, noise, paused, wheel
from tests.devpi.origin import path_of as where
from tests.devpi.test_clients import Clients, clients, tools  # noqa: F401 - fixtures
from tests.devpi.test_replica import in_sync, pair  # noqa: F401 - a fixture
from tests.devpi.test_view import BROWSER, HTML, names

VERSIONS = ("1.0", "2.0", "3.0rc1", "3.0")


def ago(days: float) -> str:
    """Return a time as pages tell it."""
    return f"{datetime.now(UTC) - timedelta(days=days):%Y-%m-%dT%H:%M:%S.%fZ}"


def name_of(version: str, project: str = "six") -> str:
    return f"{project.replace('-', '_')}-{version}-py3-none-any.whl"


def have(upstream: Upstream, project: str = "six", **times: str | None) -> None:
    """Have wheels with their metadata beside them; `times` are those of the uploads, by v1_0."""
    files = []
    for version in VERSIONS:
        content, metadata = wheel(project, version, 1000)
        at = times.get("v" + version.replace(".", "_"), ago(1000))
        promised = {"core-metadata": {"sha256": hashlib.sha256(metadata).hexdigest()}}
        told = {key: value for key, value in {"upload-time": at, **promised}.items() if value is not None}
        files.append(upstream.file(name_of(version, project), content, **told))
        upstream.answer[f"/files/{name_of(version, project)}.metadata"] = 200, {}, metadata
    upstream.page(project, files, versions=list(VERSIONS))


def path_of(version: str, index: str, project: str = "six") -> str:
    """Return the path of a file, which a client may know from elsewhere."""
    digest = hashlib.sha256(wheel(project, version, 1000)[0]).hexdigest()
    return f"/{index}/+f/{digest[:3]}/{digest[3:16]}/{name_of(version, project)}"


def is_stored(devpi: Devpi, path: str) -> bool:
    return (devpi.data / "+files" / path.lstrip("/")).is_file()


def fetch(devpi: Devpi, path: str) -> bytes:
    """Get a file, and wait until it is stored, which may be a moment after its last byte."""
    answer = devpi.get(path)
    assert answer.ok, answer.text
    until(lambda: is_stored(devpi, path))
    return answer.content


def until(what: Callable[[], Any]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + LONG
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def both(devpi: Devpi, upstream: Upstream, name: str) -> tuple[str, str]:
    """A mirror, and a stage on a stage on it."""
    have(upstream)
    mirror, stage = f"root/{name}", f"root/{name}-dev"
    devpi.mirror(mirror, upstream)
    devpi.declare(f"{stage}-base", type="stage", bases=[mirror])
    devpi.declare(stage, type="stage", bases=[f"{stage}-base"])
    return mirror, stage


# ---- pages -----------------------------------------------------------------------------------------------------


def test_rule_holds_for_each_format_of_the_pages_of_the_mirror_and_of_a_stage(
    devpi: Devpi, both: tuple[str, str]
) -> None:
    mirror, stage = both
    pages = [f"/{index}/+simple/six/" for index in both]
    assert all(names(devpi.get(page)) == [name_of(version) for version in VERSIONS] for page in pages)
    devpi.declare(mirror, block=["six>=2,<2.3", "six==3.0rc1"])
    for page in pages:
        got = devpi.get(page).json()
        assert got["versions"] == ["1.0", "3.0"]
        assert [file["filename"] for file in got["files"]] == [name_of("1.0"), name_of("3.0")]
        for accept in (HTML, "text/html"):
            shown = devpi.get(page, accept=accept).text
            assert [name_of(version) in shown for version in VERSIONS] == [True, False, False, True]
        people = devpi.get(page, accept="text/html", **{"User-Agent": BROWSER}).text
        assert f"The rules of {mirror} hide 2 files." in people
    # What devpi itself tells of versions.
    as_json = {"accept": "application/json", "User-Agent": "devpi-client/7"}
    assert set(devpi.get(f"/{stage}/six", **as_json).json()["result"]) == {"1.0", "3.0"}
    devpi.declare(mirror, block=[])
    assert all(len(names(devpi.get(page))) == len(VERSIONS) for page in pages)


def test_name_that_is_blocked_has_an_empty_page_and_nobody_is_asked_for_it(
    devpi: Devpi, upstream: Upstream, both: tuple[str, str]
) -> None:
    mirror, _ = both
    devpi.declare(mirror, block=["*"], allow=["listed", "Zope.Thing>=2"])
    for index in both:
        for accept, empty in ((JSON, '"files":[]'), ("text/html", "<h1>")):
            got = devpi.get(f"/{index}/+simple/six/", accept=accept)
            assert (got.status_code, empty in got.text, ".whl" in got.text) == (200, True, False)
    people = devpi.get(f"/{mirror}/+simple/six/", accept="text/html", **{"User-Agent": BROWSER}).text
    assert f"The rules of {mirror} block six." in people
    assert devpi.get(path_of("1.0", mirror)).status_code == 403
    assert upstream.asked == []
    have(upstream, "zope-thing")
    assert devpi.get(f"/{mirror}/+simple/zope-thing/").json()["versions"] == ["2.0", "3.0rc1", "3.0"]
    assert devpi.get(f"/{mirror}/+simple/listed/").status_code == 404


def test_resolver_takes_the_newest_version_that_is_allowed(
    devpi: Devpi,
    both: tuple[str, str],
    clients: Clients,  # noqa: F811
) -> None:
    devpi.declare(both[0], block=["six>=3"])
    for index in both:
        assert (clients.uv(index, "six"), clients.pip(index, "six")) == ("2.0", "2.0")
    devpi.declare(both[0], block=["six"])
    for index in both:
        assert (clients.uv(index, "six"), clients.pip(index, "six")) == ("", "")


def test_lock_file_that_names_a_blocked_file_is_told_why(
    devpi: Devpi,
    both: tuple[str, str],
    clients: Clients,  # noqa: F811
) -> None:
    devpi.declare(both[0], block=["six==2.0"])
    url = f"{devpi.url}{path_of('2.0', both[0])}"
    (clients.work / "requirements.txt").write_text(f"six @ {url}\n")
    pip = [str(clients.tools / "new" / "bin" / "python"), "-m", "pip", "--isolated", "download", "--no-deps"]
    done = clients.run(*pip, "--dest", "there", "-r", "requirements.txt")
    assert done.returncode != 0
    why = f'{name_of("2.0")} is blocked here: rule "six==2.0" of {both[0]}'
    assert why in done.stderr + done.stdout
    uv = [str(clients.tools / "new" / "bin" / "uv"), "pip", "install", "--no-config", "--no-cache", "--target", "there"]
    done = clients.run(*uv, "-r", "requirements.txt")
    assert done.returncode != 0
    assert "403" in done.stderr


# ---- files -----------------------------------------------------------------------------------------------------


def test_file_and_metadata_are_refused_with_the_reason_cached_or_not(devpi: Devpi, both: tuple[str, str]) -> None:
    mirror, _ = both
    known, new = path_of("2.0", mirror), path_of("3.0", mirror)
    assert devpi.get(f"/{mirror}/+simple/six/").ok
    for path in (f"{known}.metadata", known):
        fetch(devpi, path)
    devpi.declare(mirror, block=["six>=2"])
    for path in (known, f"{known}.metadata", new, f"{new}.metadata"):
        for headers in ({}, {"X-Lanmirror-Accel": "1"}, {"Range": "bytes=-100"}):
            got = devpi.get(path, **headers)
            assert (got.status_code, got.headers["Cache-Control"]) == (403, "no-store")
            assert f'is blocked here: rule "six>=2" of {mirror}' in got.text
            assert "is blocked here" in got.reason
            assert requests.head(f"{devpi.url}{path}", timeout=LONG).status_code == 403
    # Nginx asks nobody for what is stored.
    until(lambda: not is_stored(devpi, known) and not is_stored(devpi, f"{known}.metadata"))
    assert devpi.get(path_of("1.0", mirror)).ok


def test_file_that_was_set_aside_comes_back_without_the_upstream(
    devpi: Devpi, upstream: Upstream, both: tuple[str, str]
) -> None:
    mirror, _ = both
    paths = [path_of(version, mirror) for version in ("1.0", "2.0")]
    assert devpi.get(f"/{mirror}/+simple/six/").ok
    for path in paths:
        fetch(devpi, path)
    devpi.declare(mirror, block=["six==2.0"])
    until(lambda: not is_stored(devpi, paths[1]))
    # The other one comes back by itself, a little later.
    until(lambda: is_stored(devpi, paths[0]))
    assert devpi.get(paths[1]).status_code == 403
    before = len(upstream.asked)
    devpi.declare(mirror, block=["six==1.0"])
    until(lambda: devpi.get(paths[1]).ok)
    assert devpi.get(paths[1]).content == wheel("six", "2.0", 1000)[0]
    until(lambda: is_stored(devpi, paths[1]))
    assert devpi.get(paths[0]).status_code == 403
    devpi.declare(mirror, block=[])
    until(lambda: all(is_stored(devpi, path) for path in paths))
    assert upstream.paths()[before:] == []
    # Emptied folders go after that.
    until(lambda: not (devpi.data / "+files/+held" / mirror).exists())


def test_file_that_is_being_downloaded_when_it_is_blocked_is_set_aside(
    devpi: Devpi, upstream: Upstream, name: str
) -> None:
    content = noise(300_000)
    file, go_on = Origin(upstream, "six-1.0.tar.gz", content), threading.Event()
    file.script = [paused(200_000, go_on)]
    upstream.page("six", [file.entry])
    mirror = f"root/{name}"
    devpi.mirror(mirror, upstream)
    path = where(devpi, mirror, "six", file.name)
    with requests.get(devpi.url + path, headers={"Accept-Encoding": "identity"}, stream=True, timeout=LONG) as first:
        begun = first.raw.read(100_000)
        devpi.declare(mirror, block=["six"])
        until(lambda: mirror in (devpi.data / ".lanmirror-rules").read_text())
        go_on.set()
        # Whose download it is was told before that it may be had.
        assert begun + first.raw.read() == content
    aside = devpi.data / "+files/+held" / mirror / "0" / path.split("/", 3)[3]
    until(aside.is_file)
    assert not is_stored(devpi, path)
    assert devpi.get(path).status_code == 403


def test_file_that_nobody_has_seen_is_refused_by_its_name(
    devpi: Devpi, upstream: Upstream, both: tuple[str, str]
) -> None:
    devpi.declare(both[0], block=["six==2.0"])
    assert devpi.get(path_of("2.0", both[0])).status_code == 403
    assert upstream.asked == []
    assert devpi.get(path_of("1.0", both[0])).ok


def test_release_that_is_hidden_cannot_be_pushed_to_a_stage(devpi: Devpi, both: tuple[str, str], name: str) -> None:
    devpi.declare(f"root/{name}-vetted", type="stage", bases=[both[0]])
    devpi.declare(both[0], block=["six==2.0"])
    for version, status in (("2.0", 400), ("1.0", 200)):
        got = devpi.push(both[0], version, f"root/{name}-vetted")
        assert got.status_code == status, got.text


def test_devpi_starts_although_the_file_that_it_stored_last_is_set_aside(
    own_devpi: Devpi, upstream: Upstream, name: str
) -> None:
    have(upstream)
    mirror, path = f"root/{name}", path_of("2.0", f"root/{name}")
    own_devpi.mirror(mirror, upstream)
    assert own_devpi.get(f"/{mirror}/+simple/six/").ok
    fetch(own_devpi, path)
    own_devpi.stop()
    # As when it is killed between the two.
    aside = own_devpi.data / "+files/+held" / mirror / "1" / path.split("/", 3)[3]
    aside.parent.mkdir(parents=True)
    (own_devpi.data / "+files" / path.lstrip("/")).rename(aside)
    own_devpi.start()
    assert own_devpi.get(path).ok
    until(lambda: is_stored(own_devpi, path))


def test_rules_that_changed_while_devpi_was_down_are_applied_at_its_start(
    own_devpi: Devpi, upstream: Upstream, name: str
) -> None:
    have(upstream)
    mirror, path = f"root/{name}", path_of("2.0", f"root/{name}")
    own_devpi.mirror(mirror, upstream, block=["six>=3"])
    assert own_devpi.get(f"/{mirror}/+simple/six/").ok
    until(lambda: mirror in (own_devpi.data / ".lanmirror-rules").read_text())
    fetch(own_devpi, path)
    told = own_devpi.data / ".lanmirror-rules"
    former = told.read_text()
    own_devpi.declare(mirror, block=["six>=2"])
    # Written when the files are set aside.
    until(lambda: told.read_text() != former)
    assert not is_stored(own_devpi, path)
    before = told.read_text(), told.stat().st_mtime
    own_devpi.restart()
    assert (told.read_text(), told.stat().st_mtime) == before
    # As a restored backup has it: it knows no rules, and the file is there.
    own_devpi.stop()
    told.unlink()
    place = own_devpi.data / "+files" / path.lstrip("/")
    place.parent.mkdir(parents=True)
    place.write_bytes(wheel("six", "2.0", 1000)[0])
    own_devpi.start()
    assert not is_stored(own_devpi, path)
    assert (told.read_text(), told.stat().st_mtime) == before


# ---- age -------------------------------------------------------------------------------------------------------


def test_young_file_is_hidden_and_comes_by_itself_on_a_page_that_does_not_change(
    devpi: Devpi, upstream: Upstream, name: str
) -> None:
    seconds = 6.0
    have(upstream, v3_0=ago(7 - seconds / 86400), v2_0=ago(8), v3_0rc1=ago(3))
    ready = time.time() + seconds
    mirror = f"root/{name}"
    devpi.mirror(mirror, upstream, min_age_days=7)
    devpi.declare(f"{mirror}-dev", type="stage", bases=[mirror])
    page, path = f"/{mirror}/+simple/six/", path_of("3.0", mirror)
    shown, refused = devpi.get(page), devpi.get(path)
    # As far as a busy machine was in time.
    if time.time() < ready:
        assert shown.json()["versions"] == ["1.0", "2.0"]
        assert (refused.status_code, "is too new" in refused.text, "UTC" in refused.text) == (403, True, True)
        # Nginx keeps it no longer than that.
        told = shown.headers["Cache-Control"]
        assert int(told.split("s-maxage=")[1].split(",")[0]) <= seconds
        assert "stale-while-revalidate=0," in told
    time.sleep(max(0.0, ready - time.time()) + 0.1)
    for index in (mirror, f"{mirror}-dev"):
        assert devpi.get(f"/{index}/+simple/six/").json()["versions"] == ["1.0", "2.0", "3.0"]
    assert devpi.get(path).ok
    assert upstream.paths().count("/simple/six/") == 1
    # The next one comes in four days.
    assert "s-maxage=60, stale-while-revalidate=3600," in devpi.get(page).headers["Cache-Control"]


def test_age_is_asked_of_no_file_that_is_allowed_and_undated_ones_are_as_declared(
    devpi: Devpi, upstream: Upstream, name: str
) -> None:
    have(upstream, v1_0=None, v2_0="yesterday", v3_0=ago(1))
    mirror = f"root/{name}"
    page = f"/{mirror}/+simple/six/"
    for settings, versions in (
        ({"min_age_days": 7}, ["3.0rc1"]),
        ({"min_age_undated": "shown"}, ["1.0", "2.0", "3.0rc1"]),
        ({"allow": ["six>=3"], "min_age_undated": "hidden"}, ["3.0rc1", "3.0"]),
        ({"allow": ["six"]}, ["1.0", "2.0", "3.0rc1", "3.0"]),
        ({"allow": [], "min_age_days": 0}, ["1.0", "2.0", "3.0rc1", "3.0"]),
    ):
        devpi.mirror(mirror, upstream, **settings)
        assert devpi.get(page).json()["versions"] == versions, settings
    devpi.mirror(mirror, upstream, min_age_days=7)
    assert "tells no date of its upload" in devpi.get(path_of("1.0", mirror)).text


# ---- settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"block": ["six>>1"]}, ["block", "six>>1", "pkg>=2,<2.3"]),
        ({"allow": ["six[extra]"]}, ["allow", "six[extra]", "extras"]),
        ({"block": 7}, ["block", "list of rules"]),
        ({"min_age_days": "a week"}, ["min_age_days", "a week", "from 0 to 36500"]),
        ({"min_age_days": -1}, ["min_age_days", "-1"]),
        ({"min_age_days": True}, ["min_age_days", "True"]),
        ({"min_age_undated": "perhaps"}, ["min_age_undated", "perhaps", "hidden, shown"]),
        ({"min_age_day": 7}, ["min_age_day"]),
    ],
)
def test_wrong_setting_is_refused_by_devpi_itself(
    devpi: Devpi, upstream: Upstream, name: str, settings: dict[str, Any], words: list[str]
) -> None:
    devpi.mirror(f"root/{name}", upstream)
    answer = requests.patch(f"{devpi.url}/root/{name}", json=settings, headers=devpi.token(), timeout=LONG)
    assert answer.status_code == 400
    for word in words:
        assert word in answer.json()["message"]


def test_settings_are_stored_and_stay_when_others_change(devpi: Devpi, upstream: Upstream, name: str) -> None:
    devpi.mirror(f"root/{name}", upstream, block=["evil", " pkg>=2,<2.3 "], allow="a\nb", min_age_days="7")
    devpi.declare(f"root/{name}", title="ours")
    settings = requests.get(
        f"{devpi.url}/root/{name}", params={"no_projects": ""}, headers={"Accept": "application/json"}, timeout=LONG
    ).json()["result"]
    assert (settings["block"], settings["allow"], settings["min_age_days"]) == ("evil\npkg>=2,<2.3", "a\nb", 7)
    # A stage has no such settings: those of its mirrors hold.
    stage = requests.put(
        f"{devpi.url}/root/{name}-dev", json={"type": "stage", "block": ["six"]}, headers=devpi.token(), timeout=LONG
    )
    assert stage.status_code == 400


# ---- replicas --------------------------------------------------------------------------------------------------


def test_rules_hold_on_a_replica(
    pair: tuple[Devpi, Devpi],  # noqa: F811
    upstream: Upstream,
    name: str,
) -> None:
    primary, replica = pair
    have(upstream)
    mirror = f"root/{name}"
    primary.mirror(mirror, upstream)
    primary.declare(f"{mirror}-dev", type="stage", bases=[mirror])
    in_sync(primary, replica)
    path = path_of("2.0", mirror)
    assert len(names(replica.get(f"/{mirror}/+simple/six/"))) == len(VERSIONS)
    fetch(replica, path)
    primary.declare(mirror, block=["six==2.0"])
    in_sync(primary, replica)
    for index in (mirror, f"{mirror}-dev"):
        assert replica.get(f"/{index}/+simple/six/").json()["versions"] == ["1.0", "3.0rc1", "3.0"]
    assert replica.get(path).status_code == 403
    until(lambda: not any(is_stored(server, path) for server in pair))
    assert replica.get(path_of("1.0", mirror)).ok
    # By the same rules, Nginx has the same key on both.
    tells = [(server.data / ".lanmirror-rules").stat().st_mtime for server in pair]
    assert tells[0] == tells[1]


# ---- uploads ---------------------------------------------------------------------------------------------------


def send(devpi: Devpi, index: str, file: str) -> requests.Response:
    """Upload a file, as `upload`; return the answer."""
    project, version = file.split("-")[:2]
    return requests.post(
        f"{devpi.url}/{index}/",
        data={":action": "file_upload", "name": project, "version": version},
        files={"content": (file, wheel(project, version)[0])},
        auth=("root", PASSWORD),
        timeout=LONG,
    )


def test_upload_is_refused_whose_name_a_mirror_below_has(
    devpi: Devpi, upstream: Upstream, both: tuple[str, str]
) -> None:
    _, stage = both
    refused = send(devpi, stage, name_of("9.0"))
    assert refused.status_code == 403
    assert f"six is a project of {both[0]}" in refused.text
    assert "mirror_whitelist" in refused.reason
    assert len(names(devpi.get(f"/{stage}/+simple/six/"))) == len(VERSIONS)
    # A name that nobody has outside is asked for once.
    for version in ("1.0", "2.0"):
        assert send(devpi, stage, name_of(version, "ours")).ok
    assert upstream.paths().count("/simple/ours/") == 1
    # And stays ours, whoever takes the name outside.
    have(upstream, "ours")
    assert send(devpi, stage, name_of("3.0", "ours")).ok
    devpi.declare(stage, mirror_whitelist=["six"])
    assert send(devpi, stage, name_of("9.0")).ok


def test_upload_of_a_name_that_is_blocked_outside_asks_nobody(
    devpi: Devpi, upstream: Upstream, both: tuple[str, str]
) -> None:
    devpi.declare(both[0], block=["six"])
    assert send(devpi, both[1], name_of("9.0")).ok
    assert upstream.asked == []
    assert names(devpi.get(f"/{both[1]}/+simple/six/")) == [name_of("9.0")]


def test_upload_waits_for_the_mirror_that_cannot_be_asked(
    devpi: Devpi, upstream: Upstream, both: tuple[str, str]
) -> None:
    upstream.answer["/simple/ours/"] = 503, {}, b""
    refused = send(devpi, both[1], name_of("1.0", "ours"))
    assert (refused.status_code, "cannot tell now" in refused.text) == (424, True)
    del upstream.answer["/simple/ours/"]
    assert send(devpi, both[1], name_of("1.0", "ours")).ok


def test_who_may_not_upload_learns_nothing_of_mirrors(devpi: Devpi, upstream: Upstream, both: tuple[str, str]) -> None:
    answer = requests.post(
        f"{devpi.url}/{both[1]}/",
        data={":action": "file_upload", "name": "six", "version": "1.0"},
        files={"content": ("six-1.0.zip", b"x")},
        timeout=LONG,
    )
    assert answer.status_code == 401
    assert upstream.asked == []
