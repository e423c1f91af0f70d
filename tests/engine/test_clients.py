"""Clients install from what the engine wrote: py-rattler for real, the others by the order of their requests.

Each through the server of the tests, and through a real Nginx with the role's own location where this machine
has one.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import rattler

from tests.engine import outside, replay
from tests.engine.lab import Engine, Lab, laboratory
from tests.ports import free_ports
from tests.roles.render import render
from tests.roles.site import NGINX
from tests.upstream import channel

SERVERS = ["test server", "nginx"]
CONFIGURATION = """\
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
{user}
events {{}}
http {{
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{
        listen 127.0.0.1:{port};
        {location}
    }}
}}
"""
FORMS = {
    "shards": rattler.SourceConfig(),
    "repodata.json.zst": rattler.SourceConfig(sharded_enabled=False),
    "repodata.json.bz2": rattler.SourceConfig(sharded_enabled=False, zstd_enabled=False),
    "repodata.json": rattler.SourceConfig(sharded_enabled=False, zstd_enabled=False, bz2_enabled=False),
}


@pytest.fixture(scope="module")
def synced(engine: Engine, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Return a mirror that was synced once; nothing changes it."""
    with laboratory(engine, built, tmp_path_factory.mktemp("clients")) as lab:
        lab.settings |= {"repos": ["main", "r", "free"], "cloud": ["conda-forge/noarch", "conda-forge/linux-64"]}
        channel.edit(lab.tree / "pkgs/main/linux-64", info={"subdir": "linux-64", "base_url": "https://a.example.org/"})
        run = lab.sync()
        assert run.code == 0, run.log
        lab.upstream.stop()  # whoever went past the mirror would fail
        yield lab


@pytest.fixture(scope="module", params=SERVERS)
def site(request: pytest.FixtureRequest, synced: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of `/anaconda` on a server over the mirror."""
    if request.param == "test server":
        (synced.mirror / "anaconda").symlink_to(".")
        yield f"{synced.served.url}/anaconda"
        (synced.mirror / "anaconda").unlink()
        return
    folder = tmp_path_factory.mktemp("nginx")
    port = free_ports()
    configuration = folder / "nginx.conf"
    location = render(
        "conda_mirror",
        "locations.conf.j2",
        conda_mirror_working_dir=str(synced.mirror),
        conda_mirror_on_demand=False,
    )
    # As root its workers would be `nobody`, who may not read where pytest puts things.
    user = "user root;" if os.geteuid() == 0 else ""
    configuration.write_text(CONFIGURATION.format(folder=folder, user=user, port=port, location=location))
    nginx = subprocess.Popen([NGINX, "-c", str(configuration)], stderr=subprocess.PIPE)
    try:
        Lab.until(lambda: nginx.poll() is not None or _listens(port))
        assert nginx.poll() is None, nginx.communicate()[1].decode()
        yield f"http://127.0.0.1:{port}/anaconda"
    finally:
        nginx.terminate()
        nginx.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("client", replay.CLIENTS, ids=lambda client: client.__name__)
@pytest.mark.parametrize(
    ("where", "names"),
    [("pkgs/main", ["hello", "tool"]), ("cloud/conda-forge", ["hello", "cf0003"]), ("pkgs/free", ["old"])],
)
def test_the_order_of_requests_of_each_client_ends_in_an_install(
    site: str, client: Callable[[str, Iterable[str]], None], where: str, names: list[str]
) -> None:
    """`free` has no noarch upstream; all clients want one."""
    client(f"{site}/{where}", names)


@pytest.mark.parametrize("form", FORMS)
def test_rattler_installs_from_each_form_with_shards_on_and_off(site: str, tmp_path: Path, form: str) -> None:
    async def install(url: str) -> list[rattler.RepoDataRecord]:
        gateway = rattler.Gateway(tmp_path / "indexes", default_config=FORMS[form])
        records = await rattler.solve([url], ["hello", "tool"], gateway, platforms=["linux-64", "noarch"])
        await rattler.install(records, tmp_path / "env", cache_dir=tmp_path / "packages", show_progress=False)
        return records

    records = asyncio.run(install(f"{site}/pkgs/main"))

    assert {"hello", "hello-data", "tool", "lib0003", "lib0000"} <= {record.name.source for record in records}
    assert all(str(record.url).startswith(site) for record in records)
    assert subprocess.check_output([tmp_path / "env/bin/hello"], text=True) == "hello from the mirror\n"


def test_the_check_from_outside_passes_through_each_server(site: str, synced: Lab) -> None:
    assert outside.check(site, synced.subdirs).problems == []
