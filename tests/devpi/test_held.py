"""A changed rule shows, whatever Nginx keeps: a real devpi behind a real Nginx."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.common.servers import site_files
from tests.devpi.conftest import Devpi, Upstream
from tests.devpi.test_coming import VERSIONS, ago, have, name_of, path_of, until
from tests.ports import free_ports
from tests.roles.site import INDEXES, Answer, Site, serving
from tests.roles.site import Devpi as StandIn

PAGE = "/root/pypi/+simple/six/"


@pytest.fixture
def ours(own_devpi: Devpi, upstream: Upstream, tmp_path: Path) -> Iterator[Site]:
    """A site before a devpi of the test's own, whose pages are kept for long."""
    have(upstream)
    own_devpi.mirror("root/pypi", upstream)
    own_devpi.declare("root/dev", type="stage", bases=["root/pypi"])
    port = free_ports(2)
    variables: dict[str, Any] = {
        "nginx_port": port,
        "devpi_port": own_devpi.port,
        "__devpi_steps_port": port + 1,
        "devpi_data_dir": str(own_devpi.data),
        "__devpi_indexes": {**INDEXES, "root/dev": INDEXES["lab/dev"]},
        "__devpi_cache_dir": str(tmp_path / "cache"),
        "__devpi_memory_dir": str(tmp_path / "memory"),
    }
    for name in ("cache", "memory", "conf.d", "sites-enabled", "lanmirror/devpi", "portal", "watch"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    with serving(tmp_path, site_files(tmp_path, **variables), port):
        yield Site(tmp_path, port, StandIn(own_devpi.port))


def files(answer: Answer) -> list[str]:
    assert answer.status == 200, answer
    return [file["filename"] for file in json.loads(answer.body)["files"]]


def ask(site: Site, path: str) -> Answer:
    """Ask for what is not packed."""
    return site.ask(path, Accept_Encoding="identity")


def asked_for(devpi: Devpi, path: str) -> int:
    """Return how often devpi was asked for a path."""
    return devpi.log.count(f"GET {path}\n")


@pytest.mark.parametrize("page", [PAGE, "/root/dev/+simple/six/"])
def test_changed_rule_shows_on_each_page_and_file_though_nginx_keeps_them(
    ours: Site, own_devpi: Devpi, page: str
) -> None:
    path = path_of("2.0", "root/pypi")
    wanted = [name_of(version) for version in VERSIONS]
    assert files(ask(ours, page)) == wanted
    assert ask(ours, path).status == 200
    # From its folder by now, as the page is from memory.
    until((own_devpi.data / "+files" / path.lstrip("/")).is_file)
    before = asked_for(own_devpi, path)
    assert ask(ours, path).status == 200
    assert asked_for(own_devpi, path) == before
    own_devpi.declare("root/pypi", block=["six==2.0"])

    def is_changed() -> bool:
        file, metadata = ask(ours, path), ask(ours, f"{path}.metadata")
        return (
            name_of("2.0") not in files(ask(ours, page))
            and name_of("2.0") not in ours.ask(page, Accept="text/html", Accept_Encoding="identity").body.decode()
            and (file.status, metadata.status) == (403, 403)
            and b"is blocked here" in file.body
            and "is blocked here" in file.reason
        )

    until(is_changed)
    own_devpi.declare("root/pypi", block=[])
    until(lambda: files(ask(ours, page)) == wanted and ask(ours, path).status == 200)


def test_page_and_file_come_from_nginx_alone_when_all_is_warm_with_rules(ours: Site, own_devpi: Devpi) -> None:
    own_devpi.declare("root/pypi", block=["six==2.0"])
    path, rules = path_of("1.0", "root/pypi"), own_devpi.data / ".lanmirror-rules"
    until(lambda: "root/pypi" in rules.read_text())
    etag = f'"{int(rules.stat().st_mtime):x}-{rules.stat().st_size:x}"|'.encode()

    def is_kept() -> bool:
        """Ask for the page; return whether it is kept by these rules: what is in memory may be of the moment before."""
        assert name_of("1.0") in files(ask(ours, PAGE))
        return any(etag in file.read_bytes() for file in (ours.folder / "cache").rglob("*") if file.is_file())

    until(is_kept)
    assert ask(ours, path).status == 200
    until((own_devpi.data / "+files" / path.lstrip("/")).is_file)
    own_devpi.stop()
    # And while devpi is down, from memory first and then from the disk.
    end = time.monotonic() + 6
    while time.monotonic() < end:
        assert name_of("2.0") not in files(ask(ours, PAGE))
        assert ask(ours, path).status == 200
        time.sleep(0.5)
    own_devpi.start()
    assert name_of("2.0") not in files(ask(ours, PAGE))


def test_file_comes_of_age_behind_nginx(ours: Site, own_devpi: Devpi, upstream: Upstream) -> None:
    seconds = 8.0
    ready = time.time() + seconds
    have(upstream, v3_0=ago(7 - seconds / 86400))
    own_devpi.declare("root/pypi", min_age_days=7)
    younger = [name_of(version) for version in VERSIONS[:3]]
    until(lambda: files(ask(ours, PAGE)) == younger or time.time() >= ready)
    while True:
        shown = files(ask(ours, PAGE))
        if time.time() >= ready:
            break
        assert shown == younger
        time.sleep(0.2)
    until(lambda: name_of("3.0") in files(ask(ours, PAGE)))
    assert upstream.paths().count("/simple/six/") == 1
