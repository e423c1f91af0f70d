"""The servers of the PyPI benchmark: this project's cache and its peers, each as its own documentation starts it."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import subprocess
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common.command import ROOT
from bench.common.servers import (
    MEMORY,
    STATIC_SERVER,
    nginx,
    plain_environment,
    plain_nginx,
    running,
    site_files,
    temporary,
    wait_for,
)
from bench.pypi.upstream import URL as UPSTREAM_URL
from bench.pypi.upstream import Upstream
from roles.devpi.library.devpi_indexes import Devpi
from tests.roles.render import evaluate, render

# The newest on PyPI. Pinned, so that figures of two days compare.
PROXPI = ("proxpi==1.3.1", "gunicorn==27.0.1")
UV = "uv==0.13.9"
DEVPI_PINS = ROOT / "roles/devpi/files/requirements.txt"
INDEX = "root/pypi"
# The password of servers that only the benchmark reaches, and that end with it.
PASSWORD = "of-this-benchmark"
OURS, ALONE, GENERATED, PROXPI_NAME = "lanmirror", "devpi", "devpi behind its generated Nginx", "proxpi"
# As short as it is sensible to set, so that a run sees pages expire everywhere.
CACHE_EXPIRY = 30


@dataclass(frozen=True)
class Server:
    """Something that serves packages.

    Attributes:
        name: as the tables have it.
        index: the URL of its simple index.
        processes: the ids of the processes that were started for it.
    """

    name: str
    index: str
    processes: tuple[int, ...]

    def page(self, project: str) -> str:
        """Return the URL of a project's page."""
        return f"{self.index}{project}/"


def install(work: Path) -> None:
    """Make the venvs of the peers and of uv where they are missing."""
    for name, requirements in (
        ("devpi", ["--requirement", str(DEVPI_PINS)]),
        ("proxpi", list(PROXPI)),
        ("uv", [UV]),
    ):
        wanted = DEVPI_PINS.read_text() if name == "devpi" else "\n".join(requirements)
        marker = work / name / "complete"
        if marker.exists() and marker.read_text() == wanted:
            continue
        print(f"installing {name} ...", flush=True)
        venv.create(work / name, clear=True, with_pip=True)
        pip = [str(work / name / "bin" / "pip"), "install", "--quiet"]
        subprocess.run([*pip, *requirements], check=True)
        marker.write_text(wanted)


@contextlib.contextmanager
def ours(
    work: Path, folder: Path, static: Path, *, pages_fresh: int, upstream: str = f"{UPSTREAM_URL}/simple/"
) -> Iterator[Server]:
    """Run this project's cache: the role's own files, with the role's own variables."""
    data = folder / "data"
    variables: dict[str, Any] = {
        "devpi_data_dir": str(data),
        "devpi_upstream": "custom",
        "devpi_mirror_url": upstream,
        "devpi_mirror_cache_expiry": CACHE_EXPIRY,
        "devpi_mirror_no_project_list": True,
        "__devpi_secret_file": str(folder / "secret"),
        "__devpi_cache_dir": str(folder / "cache"),
        "__devpi_pages_fresh": pages_fresh,
        "__devpi_upstreams_file": "",
    }
    for name in ("cache", "conf.d", "sites-enabled", "lanmirror/devpi"):
        (folder / name).mkdir(parents=True)
    (folder / "secret").write_text(secrets.token_urlsafe(48))
    (folder / "secret").chmod(0o600)
    for name, text in site_files(folder, **variables).items():
        (folder / name).write_text(text)
    (folder / "conf.d" / "bench.conf").write_text(temporary(folder) + STATIC_SERVER.format(www=static))
    configuration = folder / "devpi-server.yml"
    configuration.write_text(render("devpi", "devpi-server.yml.j2", **variables))
    unit = render("devpi", "devpi.service.j2", **variables)
    nice = re.findall(r"^Nice=(\d+)$", unit, re.MULTILINE)
    start = ["nice", "-n", *nice, str(work / "devpi/bin/devpi-server"), "--configfile", str(configuration)]
    environment = plain_environment(PYTHONPATH=str(ROOT / "roles/devpi/files/plugin"))
    _init(work, ["--configfile", str(configuration)])
    with running(OURS, start, folder / "devpi.log", environment) as server:
        _declare("http://127.0.0.1:3141", variables)
        MEMORY.mkdir(exist_ok=True)
        with nginx(folder, folder / "nginx.conf", "http://127.0.0.1") as before:
            yield Server(OURS, f"http://127.0.0.1/{INDEX}/+simple/", (server, before))


@contextlib.contextmanager
def devpi(work: Path, folder: Path) -> Iterator[Server]:
    """Run devpi by itself, with its defaults."""
    options = ["--serverdir", str(folder / "data")]
    url = "http://127.0.0.1:3150"
    folder.mkdir(parents=True)
    _init(work, options)
    start = [str(work / "devpi/bin/devpi-server"), *options, "--port", "3150"]
    with running(ALONE, start, folder / "devpi.log", plain_environment()) as server:
        _declare(url, {"devpi_upstream": "custom", "devpi_mirror_url": f"{UPSTREAM_URL}/simple/"})
        yield Server(ALONE, f"{url}/{INDEX}/+simple/", (server,))


@contextlib.contextmanager
def generated(work: Path, folder: Path, behind: Server, data: Path) -> Iterator[Server]:
    """Run Nginx with the caching configuration that devpi makes, before a devpi that runs."""
    folder.mkdir(parents=True)
    make = [str(work / "devpi/bin/devpi-gen-config"), "--serverdir", str(data), "--port", "3150"]
    subprocess.run(make, cwd=folder, env=plain_environment(), check=True, capture_output=True)
    body = (folder / "gen-config/nginx-devpi-caching.conf").read_text()
    # The adjustments that its comments name, and the port.
    for old, new in (("/var/cache/nginx", f"{folder}/cache"), ("listen 80;", "listen 8002;")):
        if old not in body:
            raise RuntimeError(f"devpi's generated configuration has no {old!r} any more")
        body = body.replace(old, new)
    with plain_nginx(folder, body, "http://127.0.0.1:8002") as process:
        yield Server(GENERATED, f"http://127.0.0.1:8002/{INDEX}/+simple/", (*behind.processes, process))


@contextlib.contextmanager
def proxpi(work: Path, folder: Path) -> Iterator[Server]:
    """Run proxpi as its container does: gunicorn, one process (its cache is in memory), two threads."""
    folder.mkdir(parents=True)
    url = "http://127.0.0.1:5000"
    command = [str(work / "proxpi/bin/gunicorn"), "--preload", "--threads", "2", "--bind", "127.0.0.1:5000"]
    environment = plain_environment(PROXPI_INDEX_URL=f"{UPSTREAM_URL}/simple/", PROXPI_CACHE_DIR=str(folder / "cache"))
    log = folder / "proxpi.log"
    access = ["--access-logfile", "-"]
    with running(PROXPI_NAME, [*command, *access, "proxpi.server:app"], log, environment) as process:
        wait_for(url, log)
        yield Server(PROXPI_NAME, f"{url}/index/", (process,))


@contextlib.contextmanager
def all_servers(work: Path, upstream: Upstream, static: Path, *, pages_fresh: int) -> Iterator[dict[str, Server]]:
    """Run them all, from nothing, and the upstream."""
    folder = work / "servers"
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(plain_nginx(upstream.folder, upstream.nginx, UPSTREAM_URL))
        alone = stack.enter_context(devpi(work, folder / "devpi"))
        servers = [
            stack.enter_context(ours(work, folder / "ours", static, pages_fresh=pages_fresh)),
            alone,
            stack.enter_context(generated(work, folder / "generated", alone, folder / "devpi/data")),
            stack.enter_context(proxpi(work, folder / "proxpi")),
        ]
        yield {server.name: server for server in servers}


def _init(work: Path, options: Sequence[str]) -> None:
    command = [str(work / "devpi/bin/devpi-init"), *options, "--no-root-pypi"]
    environment = plain_environment(DEVPISERVER_ROOT_PASSWD=PASSWORD)
    subprocess.run(command, env=environment, check=True, capture_output=True)


def _declare(url: str, variables: Mapping[str, Any]) -> None:
    """Make the index that the role would make; without the upstream's list of projects, see the role's defaults."""
    settings = evaluate("devpi", "{{ __devpi_indexes }}", **variables)[INDEX]
    server = Devpi(url)
    server.wait(60)
    if not server.login(PASSWORD):
        raise RuntimeError(f"devpi at {url} does not take its own password")
    server.must("PUT", f"/{INDEX}", dict(settings))
