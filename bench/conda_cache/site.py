"""The site of the Conda mirror with its cache, as the roles set it up, and the upstream of its one channel."""

from __future__ import annotations

import compileall
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.common.channels import CHANNEL, SUBDIR, Channel
from bench.common.command import ROOT
from bench.common.servers import STATIC_URL, behind, plain_nginx, site_files
from bench.common.wire import FAR
from tests.roles.conda_site import SITE, outside
from tests.roles.render import defaults, render
from tests.roles.site import serving

PORT, UPSTREAM_PORT = 80, 8000
UPSTREAM = f"http://{FAR}:{UPSTREAM_PORT}"
# A subdir's path at the upstream, and its URL at the site.
PATH = f"/{CHANNEL}/{SUBDIR}"
URL = f"http://127.0.0.1:{PORT}/anaconda/cloud{PATH}"
ROUND_TRIP = 0.06
CACHE_GIB = float(defaults("conda_mirror")["conda_mirror_cache_max_gib"])
SCRIPT = ROOT / "files/anaconda_sync.py"
UPSTREAM_SERVER = """\
  log_format sent '$bytes_sent $uri';
  server {{
    listen {port} backlog=1024;
    root {www};
    access_log {log} sent;
  }}
"""
# The limit: files, sent by the Nginx that is measured, which logs no request of the site either.
STATIC_SERVER = """\
server {{
  listen 127.0.0.1:{port};
  root {www};
  access_log off;
}}
"""


@dataclass(frozen=True)
class Place:
    """Where a run has its files, and its sizes.

    Attributes:
        work: of all benchmarks: channels stand there, and are used again.
        rounds: how often each is run.
        quick: small sizes, to see that everything works; the figures say nothing.
    """

    work: Path
    rounds: int
    quick: bool

    @property
    def www(self) -> Path:
        """Where the channels are."""
        return self.work / "www"

    @property
    def folder(self) -> Path:
        """For this benchmark's servers and scratch; all that is in it may go."""
        return self.work / "conda_cache"

    @property
    def scratch(self) -> Path:
        """For the programs that are run."""
        return self.folder / "scratch"

    @property
    def site(self) -> Path:
        """Of the site."""
        return self.folder / "site"

    @property
    def cache(self) -> Path:
        """Of the site's cache."""
        return self.site / "cache"

    @property
    def run(self) -> Path:
        """For the site's socket, whose path may have 97 characters."""
        return Path(tempfile.gettempdir(), f"lanmirror-bench-{os.getpid()}")

    @property
    def log(self) -> Path:
        """Of what the upstream sends: bytes and path of each answer."""
        return self.folder / "upstream" / "sent.log"

    def aside(self, folder: Path) -> None:
        """Put a folder out of the way until `end`.

        A run that makes many files right after as many were deleted is slow, whatever it is: see `clear` in
        bench/engine/scenarios.py.
        """
        if folder.exists():
            (self.folder / "aside").mkdir(exist_ok=True)
            folder.rename(self.folder / "aside" / str(len(list((self.folder / "aside").iterdir()))))

    def end(self) -> None:
        """Remove the files of this run and of earlier ones."""
        for folder in (self.folder, self.run):
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Sent:
    """What an upstream sent.

    Attributes:
        answers: how many.
        bytes: of packages and of heads.
    """

    answers: int
    bytes: int


def sent(log: str) -> Sent:
    """Return what an upstream's log says."""
    sizes = [int(line.split()[0]) for line in log.splitlines()]
    return Sent(len(sizes), sum(sizes))


@contextlib.contextmanager
def upstream(place: Place, channel: Channel, *, round_trip: float = 0, rate: float = 0) -> Iterator[None]:
    """Have an upstream with one channel for the length of a `with`.

    Args:
        place: of the run.
        channel: what it has.
        round_trip: of the way to it, in seconds.
        rate: of the way to it, in bytes a second. Without both it is on the loopback address.
    """
    folder = place.log.parent
    folder.mkdir(parents=True, exist_ok=True)
    place.log.write_text("")
    body = UPSTREAM_SERVER.format(port=UPSTREAM_PORT, www=channel.folder.parents[1], log=place.log)
    if round_trip or rate:
        with behind(folder, body, UPSTREAM_PORT, round_trip=round_trip, rate=rate, name="lmconda"):
            yield
    else:
        with plain_nginx(folder, body, UPSTREAM):
            yield


@contextlib.contextmanager
def site(place: Place, channel: Channel, *, cache_gib: float = CACHE_GIB, memory: int = 0) -> Iterator[None]:
    """Run the site with nothing in its mirror and in its cache, for the length of a `with`.

    Args:
        place: of the run.
        channel: that the static server, which is the limit, has.
        cache_gib: the limit of the cache.
        memory: have the cache on a file system of its own, in memory, of so many bytes.
    """
    place.aside(place.site)
    for name in ("mirror", "cache", "spare", "sites-enabled"):
        (place.site / name).mkdir(parents=True)
    port = int(STATIC_URL.rpartition(":")[2])
    static = STATIC_SERVER.format(port=port, www=channel.folder.parents[1])
    files = {**_files(place, cache_gib), "conf.d/bench.conf": static}
    with contextlib.ExitStack() as stack:
        if memory:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={memory}", "lanmirror-bench", str(place.cache)]
            subprocess.run(mount, check=True)
            stack.callback(subprocess.run, ["umount", str(place.cache)], check=True)
        (place.cache / "lanmirror-conda").mkdir()
        place.run.mkdir(exist_ok=True)
        stack.enter_context(outside(place.run, _variables(place, cache_gib)))
        stack.enter_context(serving(place.site, files, PORT))
        yield


def engine(place: Place, *arguments: str) -> list[str]:
    """Return a command of the sync engine with the role's configuration of the site."""
    compileall.compile_dir(SCRIPT.parent, quiet=1)
    configuration = place.scratch / "engine.yml"
    configuration.parent.mkdir(parents=True, exist_ok=True)
    configuration.write_text(render("conda_mirror", "conda_mirror.yml.j2", **_variables(place, CACHE_GIB)))
    return [sys.executable, str(SCRIPT), *arguments, "--config", str(configuration)]


def _variables(place: Place, cache_gib: float) -> dict[str, Any]:
    return {
        "nginx_port": PORT,
        "conda_mirror_upstream": {"repo": UPSTREAM, "cloud": UPSTREAM},
        "conda_mirror_repos": [],
        "conda_mirror_cloud": [{"name": f"{CHANNEL}/{SUBDIR}", "hold": "none"}],
        "conda_mirror_installers": {"dists": []},
        "conda_mirror_working_dir": str(place.site / "mirror"),
        "conda_mirror_cache_dir": str(place.cache),
        "conda_mirror_cache_max_gib": cache_gib,
        "conda_mirror_min_free_gib": 0,
        "__conda_mirror_spare_dir": str(place.site / "spare"),
        # The upstream is an address.
        "__conda_mirror_resolvers": [],
        "__conda_mirror_outside_socket": str(place.run / "upstreams.sock"),
        # So that small sizes have several.
        **({"__conda_mirror_zeros": "00000"} if place.quick else {}),
    }


# It takes a second.
@cache
def _files(place: Place, cache_gib: float) -> dict[str, str]:
    return site_files(place.site, SITE, **_variables(place, cache_gib))
