"""A replica of a devpi with the plugin."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import requests

from tests.devpi.conftest import Devpi, Upstream
from tests.devpi.origin import Origin, noise, path_of, paused, wheel
from tests.devpi.test_mirror import LONG, names


@pytest.fixture(scope="module")
def pair(start_devpi: Callable[..., Devpi], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Devpi, Devpi]]:
    """A primary and its replica."""
    secret = tmp_path_factory.mktemp("secret") / "secret"
    secret.write_text(secrets.token_urlsafe(48))
    secret.chmod(0o600)
    secret.parent.chmod(0o700)
    primary = start_devpi(secretfile=str(secret), role="primary")
    replica = start_devpi(secretfile=str(secret), role="replica", primary_url=primary.url)
    yield primary, replica
    replica.stop()
    primary.stop()


def in_sync(primary: Devpi, replica: Devpi) -> None:
    """Wait until the replica has what the primary has."""
    until = time.monotonic() + LONG
    while time.monotonic() < until:
        serials = [
            requests.get(f"{devpi.url}/+status", headers={"Accept": "application/json"}, timeout=LONG).json()["result"][
                "serial"
            ]
            for devpi in (primary, replica)
        ]
        if serials[0] == serials[1]:
            return
        time.sleep(0.05)
    pytest.fail("the replica does not follow")


def test_replica_gives_the_page_that_the_primary_has(pair: tuple[Devpi, Devpi], upstream: Upstream, name: str) -> None:
    primary, replica = pair
    upstream.page("six", [upstream.file("six-1.0.tar.gz", b"six", size=3)])
    primary.mirror(f"root/{name}", upstream)
    in_sync(primary, replica)
    page = f"/root/{name}/+simple/six/"
    # Nobody has it: the replica asks the primary, which asks the upstream.
    assert names(replica.get(page)) == ["six-1.0.tar.gz"]
    assert replica.get(page).json() == primary.get(page).json()
    assert replica.get(f"/root/{name}/+simple/nothing/").status_code == 404
    assert upstream.paths() == ["/simple/six/", "/simple/nothing/"]
    settings = requests.get(
        f"{replica.url}/root/{name}", params={"no_projects": ""}, headers={"Accept": "application/json"}, timeout=LONG
    )
    assert settings.json()["result"]["mirror_url"] == f"{upstream.url}/simple/"


def test_replica_gives_what_it_knows_while_the_primary_is_away(
    pair: tuple[Devpi, Devpi], upstream: Upstream, name: str
) -> None:
    primary, replica = pair
    upstream.page("six", [upstream.file("six-1.0.tar.gz", b"six")])
    primary.mirror(f"root/{name}", upstream, mirror_cache_expiry=0)
    page = f"/root/{name}/+simple/six/"
    assert names(primary.get(page)) == ["six-1.0.tar.gz"]
    in_sync(primary, replica)
    assert names(replica.get(page)) == ["six-1.0.tar.gz"]
    upstream.page("six", [upstream.file("six-1.1.tar.gz", b"six one")])
    # It is old for both: the replica asks the primary, and waits for what it then has.
    assert names(replica.get(page)) == ["six-1.1.tar.gz"]
    primary.stop()
    try:
        assert names(replica.get(page)) == ["six-1.1.tar.gz"]
        assert replica.get(f"/root/{name}/+simple/unseen/").status_code == 424
    finally:
        primary.start()


def test_replica_fetches_files_from_the_primary_and_all_of_them_once(
    pair: tuple[Devpi, Devpi], upstream: Upstream, name: str
) -> None:
    primary, replica = pair
    content, metadata = wheel("six", "1.0", 300_000)
    file = Origin(upstream, "six-1.0-py3-none-any.whl", content, **{"core-metadata": True})
    beside = Origin(upstream, "six-1.0-py3-none-any.whl.metadata", metadata)
    upstream.page("six", [file.entry])
    primary.mirror(f"root/{name}", upstream)
    in_sync(primary, replica)
    path = path_of(replica, f"root/{name}", "six", file.name)
    # Of a file that nobody has, the end and the metadata alone.
    assert replica.get(path, Range="bytes=-100").content == content[-100:]
    assert replica.get(f"{path}.metadata").content == metadata
    assert [each.get("Range") for each in file.asked] == ["bytes=-100"]
    # By way of the primary, which alone may have the way out.
    assert [f"GET {asked}\n" in primary.log for asked in (path, f"{path}.metadata")] == [True, True]
    assert replica.get(path).content == content
    for devpi in (replica, primary):
        assert devpi.get(f"/+lanmirror/stored{path}").status_code == 204
        assert (devpi.data / "+files" / path.lstrip("/")).read_bytes() == content
        assert devpi.get(path).content == devpi.get(path).content == content
    assert (len(file.asked), len(beside.asked)) == (2, 1)
    # What was uploaded comes over by itself.
    primary.declare(f"root/{name}-dev", type="stage", bases=[])
    sent = requests.post(
        f"{primary.url}/root/{name}-dev/",
        data={":action": "file_upload", "name": "six", "version": "1.0", "filetype": "sdist", "pyversion": "source"},
        files={"content": ("six-1.0.tar.gz", b"uploaded")},
        headers=primary.token(),
        timeout=LONG,
    )
    assert sent.ok
    in_sync(primary, replica)
    assert replica.get(path_of(replica, f"root/{name}-dev", "six", "six-1.0.tar.gz")).content == b"uploaded"


def test_replica_shares_one_download_and_takes_no_wrong_bytes(
    pair: tuple[Devpi, Devpi], upstream: Upstream, name: str
) -> None:
    primary, replica = pair
    content = noise(1 << 20)
    file = Origin(upstream, "six-1.0.tar.gz", content)
    upstream.page("six", [file.entry])
    primary.mirror(f"root/{name}", upstream)
    in_sync(primary, replica)
    path = path_of(replica, f"root/{name}", "six", file.name)
    go_on = threading.Event()
    file.script = [paused(800_000, go_on)]
    headers = {"Accept-Encoding": "identity"}
    with requests.get(replica.url + path, headers=headers, stream=True, timeout=LONG) as first:
        begun = first.raw.read(700_000)
        accel = replica.get(path, **{"X-Lanmirror-Accel": "1"})
        assert accel.headers["X-Accel-Redirect"] == f"/+wait{path}"
        go_on.set()
        assert begun + first.raw.read() == content
    assert replica.get(f"/+lanmirror/stored{path}").status_code == 204
    assert len(file.asked) == 1


def test_replica_gets_files_while_the_primary_is_away(pair: tuple[Devpi, Devpi], upstream: Upstream, name: str) -> None:
    primary, replica = pair
    content, metadata = wheel("six", "1.0", 100_000)
    file = Origin(upstream, "six-1.0-py3-none-any.whl", content, **{"core-metadata": True})
    Origin(upstream, "six-1.0-py3-none-any.whl.metadata", metadata)
    upstream.page("six", [file.entry])
    primary.mirror(f"root/{name}", upstream)
    in_sync(primary, replica)
    path = path_of(replica, f"root/{name}", "six", file.name)
    primary.stop()
    try:
        assert replica.get(f"{path}.metadata").content == metadata
        assert file.asked == []
        assert replica.get(path).content == content
    finally:
        primary.start()
