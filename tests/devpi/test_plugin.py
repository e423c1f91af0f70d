"""The plugin in the devpi that the role pins."""

from __future__ import annotations

import gzip
import resource
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import requests

from tests.devpi.conftest import JSON, Devpi, Upstream


def test_plugin_is_found_by_its_entry_point(devpi: Devpi) -> None:
    assert "Found plugin lanmirror_devpi-1." in devpi.log
    told = subprocess.run(
        [*devpi.run("devpi-server"), "--help"], env=devpi.environment, capture_output=True, check=True
    )
    assert b"--lanmirror-max-stale" in told.stdout


def test_flat_is_a_stored_setting_of_a_mirror_alone(own_devpi: Devpi, upstream: Upstream, name: str) -> None:
    devpi = own_devpi
    devpi.mirror(f"root/{name}", upstream, "/wheels/", flat=True)

    def settings() -> dict[str, object]:
        got = requests.get(f"{devpi.url}/root/{name}?no_projects=", headers={"Accept": "application/json"}, timeout=30)
        return dict(got.json()["result"])

    assert settings()["flat"] is True
    devpi.declare(f"root/{name}", title="the vendor's")
    assert settings()["flat"] is True
    devpi.restart()
    assert settings()["flat"] is True
    devpi.declare(f"root/{name}", flat=False)
    assert settings()["flat"] is False
    refused = requests.put(
        f"{devpi.url}/root/{name}-dev", json={"type": "stage", "flat": True}, headers=devpi.token(), timeout=30
    )
    assert refused.status_code == 400


def test_page_of_a_mirror_may_be_kept_and_says_for_how_long(devpi: Devpi, upstream: Upstream, name: str) -> None:
    upstream.page("six", [upstream.file("six-1.0.tar.gz", b"six")])
    devpi.mirror(f"root/{name}", upstream)
    page = devpi.get(f"/root/{name}/+simple/six/")
    assert page.status_code == 200
    assert page.headers["Cache-Control"] == "s-maxage=60, stale-while-revalidate=3600, stale-if-error=1296000"
    assert not {"expires", "pragma", "vary", "x-devpi-serial", "x-devpi-uuid"} & {
        header.lower() for header in page.headers
    }
    missing = devpi.get(f"/root/{name}/+simple/nothing/")
    assert (missing.status_code, missing.headers["Cache-Control"]) == (404, "s-maxage=5")
    devpi.declare(f"root/{name}-dev", type="stage", bases=[f"root/{name}"])
    assert devpi.get(f"/root/{name}-dev/+simple/six/").headers["Cache-Control"] == "no-cache"


def test_page_is_compressed_for_who_takes_it(devpi: Devpi, upstream: Upstream, name: str) -> None:
    upstream.page("six", [upstream.file(f"six-1.{n}.tar.gz", b"six%d" % n) for n in range(40)])
    devpi.mirror(f"root/{name}", upstream)
    packed = requests.get(
        f"{devpi.url}/root/{name}/+simple/six/",
        headers={"Accept": JSON, "User-Agent": "pip/1", "Accept-Encoding": "gzip"},
        stream=True,
        timeout=30,
    )
    assert packed.headers["Content-Encoding"] == "gzip"
    body = packed.raw.read(decode_content=False)
    assert len(body) == int(packed.headers["Content-Length"])
    plain = devpi.get(f"/root/{name}/+simple/six/", **{"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    assert gzip.decompress(body) == plain.content


def test_unknown_project_of_a_silent_upstream_is_no_fault_of_devpi(devpi: Devpi, upstream: Upstream, name: str) -> None:
    upstream.answer["/simple/six/"] = 503, {}, b""
    devpi.mirror(f"root/{name}", upstream)
    page = devpi.get(f"/root/{name}/+simple/six/")
    assert page.status_code == 424
    assert page.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("written", ["Flask_SQLAlchemy", "flask.sqlalchemy", "Flask-SQLAlchemy"])
def test_name_that_is_not_normal_leads_to_the_path_of_the_normal_one(
    devpi: Devpi, upstream: Upstream, name: str, written: str
) -> None:
    devpi.mirror(f"root/{name}", upstream)
    for slash in ("", "/"):
        answer = devpi.get(f"/root/{name}/+simple/{written}{slash}", Host="inner.example")
        assert answer.is_redirect
        assert answer.headers["Location"].rstrip("/") == f"/root/{name}/+simple/flask-sqlalchemy"


def test_many_connections_are_no_trouble(start_devpi: Callable[..., Devpi]) -> None:
    """More than select(2) knows."""
    devpi = start_devpi(connection_limit=3000)
    assert devpi.process
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.prlimit(devpi.process.pid, resource.RLIMIT_NOFILE, (min(4096, most), most))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, most), most))
    try:
        with ExitStack() as open_ones:
            for _ in range(1100):
                open_ones.enter_context(socket.create_connection(("127.0.0.1", devpi.port), timeout=30))
            assert devpi.get("/+api", accept="application/json").status_code == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert devpi.get("/+api", accept="application/json").status_code == 200
    devpi.stop()
