"""Servers that a benchmark starts: any program, an Nginx of its own, and the files of the roles for one."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.common.wire import Wire, wire, within
from tests.roles.render import render

STATIC, STATIC_URL = "a static file", "http://127.0.0.1:8001"
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


@contextlib.contextmanager
def behind(folder: Path, body: str, port: int, *, round_trip: float, rate: float, name: str) -> Iterator[Wire]:
    """Run an Nginx with some servers behind a long way, and have this process on the near side of it.

    Args:
        folder: of the Nginx.
        body: its servers, in the settings of `http`.
        port: one that they listen on.
        round_trip: of the way, in seconds.
        rate: of the way, in bytes a second; 0 for all that there is.
        name: the first letters of the names of its namespaces and devices, see `wire`.
    """
    with wire(round_trip, name, rate) as link:
        with within(link.far):
            server = plain_nginx(folder, body, f"http://127.0.0.1:{port}")
            server.__enter__()
        try:
            with within(link.near):
                yield link
        finally:
            server.__exit__(None, None, None)


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
        "/var/lib/devpi-watch": f"{folder}/state",
        "/run/conda-watch": f"{folder}/conda-watch",
        "/run/lanmirror_pages": str(MEMORY),
    }
    for old, new in moved.items():
        files = {name: text.replace(old, new) for name, text in files.items()}
    return files
