"""The surroundings of the programs that are measured: Debian's packages, the link, and the server."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.common.wire import Wire, wire

# A path below `/<fault>/` is served as it is below `/`, but for the file `VICTIM`, which this happens to.
VICTIM = "lib0000-1.0-0.tar.bz2"
FAULTS = {
    "stall": "proxy_pass http://unix:{silent}; proxy_read_timeout 1d;",
    "trickle": "alias {www}/$1; limit_rate 64;",
    "503": "return 503;",
    "drop": "return 444;",
}
NGINX = """\
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000;
  types {{ application/json json; }}
  default_type application/octet-stream;
  client_body_temp_path {folder}/nginx-body;
  proxy_temp_path {folder}/nginx-proxy;
  fastcgi_temp_path {folder}/nginx-fastcgi;
  uwsgi_temp_path {folder}/nginx-uwsgi;
  scgi_temp_path {folder}/nginx-scgi;
  server {{
    listen 80 backlog=1024;
    root {www};
    autoindex on;
{faults}
  }}
}}
"""


def need(packages: Mapping[str, str]) -> None:
    """Install the Debian packages of commands that are missing.

    Args:
        packages: the package of each command.

    Raises:
        SystemExit: they cannot be installed; the message is for the person at the keyboard.
    """
    missing = sorted({package for command, package in packages.items() if shutil.which(command) is None})
    if not missing:
        return
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    print(f"installing: {' '.join(missing)}", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["apt-get", "update"], command):
        if subprocess.run(step, stdout=subprocess.DEVNULL, env=environment, check=False).returncode:
            raise SystemExit(f"`{' '.join(step)}` failed; these are needed: {' '.join(missing)}")


@dataclass(frozen=True)
class Lab:
    """The server behind a link.

    Attributes:
        link: where programs run.
        www: the served folder.
    """

    link: Wire
    www: Path

    def place(self, *, far: bool) -> tuple[str, str]:
        """Return the namespace to run in and the server's URL: behind the link, or beside the server itself."""
        return (self.link.near, f"http://{self.link.address}") if far else (self.link.far, "http://127.0.0.1")


@contextlib.contextmanager
def lab(folder: Path, round_trip: float) -> Iterator[Lab]:
    """Serve `folder/www` with Nginx behind a link with a round trip of `round_trip` seconds."""
    www = folder / "www"
    silent = folder / "silent.sock"
    silent.unlink(missing_ok=True)
    faults = "\n".join(
        f"    location /{name}/ {{ alias {www}/; }}\n"
        f"    location ~ ^/{name}/(.*/{VICTIM})$ {{ {rule.format(www=www, silent=silent)} }}"
        for name, rule in FAULTS.items()
    )
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX.format(folder=folder, www=www, faults=faults))
    # Connections to this socket succeed, for the kernel queues them, and nobody ever answers.
    with wire(round_trip) as link, socket.socket(socket.AF_UNIX) as nobody:
        nobody.bind(str(silent))
        silent.chmod(0o777)
        nobody.listen(1024)
        server = subprocess.Popen(link.command(link.far, "nginx", "-c", str(configuration)))
        try:
            _wait_for(link)
            yield Lab(link, www)
        finally:
            server.terminate()
            server.wait()


def _wait_for(link: Wire) -> None:
    for _ in range(100):
        command = link.command(link.near, "curl", "--silent", "--max-time", "2", f"http://{link.address}/")
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError(f"the server does not answer at {link.address}; see nginx.log in the working directory")


def version(*command: str) -> str:
    """Return a command's name and the version that it tells."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return f"{command[0]} {found[0] if found else 'of an unknown version'}"


def machine() -> str:
    """Return a line about this machine: processor, cores, memory, kernel, system."""
    with Path("/proc/cpuinfo").open() as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    system = platform.freedesktop_os_release()["PRETTY_NAME"]
    return (
        f"{model}, {os.cpu_count()} cores, {gib:.0f} GiB; Linux {platform.release()} "
        f"(TCP congestion control: {congestion}), {system}, Python {platform.python_version()}"
    )
