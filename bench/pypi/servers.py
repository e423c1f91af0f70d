"""The servers of the PyPI benchmark: this project's cache and its peers, each as its own documentation starts it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common.command import ROOT
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
OURS, ALONE, GENERATED, PROXPI_NAME, STATIC = (
    "lanmirror", "devpi", "devpi behind its generated Nginx", "proxpi", "a static file",
)  # fmt: skip
STATIC_URL = "http://127.0.0.1:8001"
# As short as it is sensible to set, so that a run sees pages expire everywhere.
CACHE_EXPIRY = 30
# Here too, what Nginx keeps in memory is in memory.
MEMORY = Path("/dev/shm/lanmirror-bench-memory")
NGINX = """\
user root;
worker_processes auto;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000;
  include /etc/nginx/mime.types;
  default_type application/octet-stream;
  access_log {folder}/access.log;
{temporary}
{body}
}}
"""
# The limit: files, sent by the Nginx that is measured.
STATIC_SERVER = """\
server {{
  listen 127.0.0.1:8001;
  root {www};
  gzip_static on;
}}
"""


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


def plain_environment(**more: str) -> dict[str, str]:
    """Return the environment of a server: no proxy, and no setting of pip's or uv's."""
    wrong = re.compile(r"(?i)(pip|uv|.*_proxy|devpi.*|python.*)(_.*)?$")
    return {key: value for key, value in os.environ.items() if not wrong.match(key)} | more


@contextlib.contextmanager
def running(name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[int]:
    """Run a server for the length of a `with`, and give its process."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
    try:
        yield process.pid
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with {process.returncode}; see {log}")
    finally:
        process.terminate()
        process.wait()


def wait_for(url: str, log: Path, seconds: float = 60) -> None:
    """Return as soon as something listens where a URL points."""
    host, _, port = url.removeprefix("http://").partition("/")[0].partition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port or 80)), 1).close()
        except OSError as error:
            if time.monotonic() > end:
                raise RuntimeError(f"nothing listens at {url}; see {log}") from error
            time.sleep(0.1)
        else:
            return


@contextlib.contextmanager
def nginx(folder: Path, configuration: Path, url: str) -> Iterator[int]:
    """Run an Nginx."""
    log = folder / "error.log"
    # `-e` is where it complains of its configuration.
    command = ["nginx", "-e", str(log), "-c", str(configuration), "-g", "daemon off;"]
    with running("nginx", command, folder / "output", plain_environment()) as process:
        wait_for(url, log)
        yield process


def temporary(folder: Path) -> str:
    """Return the settings of an Nginx for its temporary files."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "\n".join(f"  {kind}_temp_path {folder}/{kind};" for kind in kinds)


def plain_nginx(folder: Path, body: str, url: str) -> contextlib.AbstractContextManager[int]:
    """Run an Nginx with some servers."""
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX.format(folder=folder, temporary=temporary(folder), body=body))
    return nginx(folder, configuration, url)


# The files of devpi's site, with their templates.
DEVPI_SITE = {
    "devpi/http.conf": ("devpi", "devpi-http.conf.j2"),
    "devpi/locations.conf": ("devpi", "devpi-locations.conf.j2"),
}


def site_files(folder: Path, sites: Mapping[str, tuple[str, str]] = DEVPI_SITE, **variables: Any) -> dict[str, str]:
    """Return the files of the roles below /etc/nginx, for a site in another folder: its paths, nothing else, differ.

    Args:
        folder: in place of /etc/nginx and of the folders of logs and of data.
        sites: role and template of each file of a site.
        variables: of the roles, in place of their defaults.
    """
    # On its own port from 1024 on, with its cache in a folder of its own.
    files = {
        "nginx.conf": render("nginx", "nginx.conf.j2", **variables),
        "conf.d/lanmirror.conf": render("nginx", "lanmirror.conf.j2", **variables),
        **{
            f"lanmirror/{name}": render("nginx", f"{name}.j2", **variables)
            for name in ("server.conf", "proxies.conf", "log.conf", "inner.conf", "health.conf", "listen.conf")
        },
        **{f"lanmirror/{name}": render(role, template, **variables) for name, (role, template) in sites.items()},
    }
    moved = {
        "/etc/nginx/conf.d": f"{folder}/conf.d",
        "/etc/nginx/lanmirror": f"{folder}/lanmirror",
        "/etc/nginx/sites-enabled": f"{folder}/sites-enabled",
        "/var/log/nginx": str(folder),
        "/run/nginx.pid": f"{folder}/nginx.pid",
        "/run/devpi-watch": f"{folder}/watch",
        "/run/conda-watch": f"{folder}/conda-watch",
        "/run/lanmirror_pages": str(MEMORY),
    }
    for old, new in moved.items():
        files = {name: text.replace(old, new) for name, text in files.items()}
    return files


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
