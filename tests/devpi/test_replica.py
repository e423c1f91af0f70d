"""A replica of a devpi with the plugin."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator

import pytest
import requests

from tests.devpi.conftest import Devpi, Upstream
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
