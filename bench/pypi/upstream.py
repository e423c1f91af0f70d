"""The upstream of the PyPI benchmark: real wheels from where this machine's pip has them, and pages around them.

Nginx serves it: a page in JSON or HTML (PEP 691, PEP 700), gzipped beforehand, and the wheels that the newest version
of each project has. Older versions stand in the pages only, with names of the lengths that real ones have.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

URL = "http://127.0.0.1:8000"
# `requests` and `numpy` with their dependencies, exact: the same wheels on two days.
WHEELS = (
    "attrs==26.1.0",
    "certifi==2026.10.19.post1",
    "charset-normalizer==3.5.2",
    "idna==3.20",
    "numpy==2.4.6",
    "requests==2.34.2",
    "six==1.17.0",
    "urllib3==2.8.0",
)
# As pip and uv ask for a page, and as older ones do.
JSON = "application/vnd.pypi.simple.v1+json"
HTML = "text/html"
ACCEPT = {
    "json": f"{JSON}, application/vnd.pypi.simple.v1+html; q=0.1, text/html; q=0.01",
    "html": HTML,
}
SMALL, LARGE = "six", "numpy"
LINKS = {SMALL: 34, LARGE: 3200}
# Bytes a second of the wheels that many ask for while they are fetched, as over a slow link.
SLOW = 8 << 20
NGINX = """\
  map $http_accept $form {{ default html; "~application/vnd\\.pypi\\.simple\\.v1\\+json" json; }}
  log_format plain '$request_method $uri $status';
  server {{
    listen 127.0.0.1:8000 backlog=1024;
    root {www};
    access_log {folder}/requests.log plain;
    location ~ ^/simple/[^/]+/$ {{
      gzip_static on;
      types {{ text/html html; application/vnd.pypi.simple.v1+json json; }}
      rewrite ^ ${{uri}}index.$form break;
    }}
    location /packages/cold {{ limit_rate {slow}; }}
  }}
"""


@dataclass(frozen=True)
class Wheel:
    """A file of a project, or the name of one.

    Attributes:
        name: of the file.
        sha256: in hexadecimal.
        size: in bytes.
    """

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Upstream:
    """The upstream's content.

    Attributes:
        folder: of its files and its log.
        wheels: the newest file of each project.
    """

    folder: Path
    wheels: dict[str, Wheel]

    @property
    def nginx(self) -> str:
        """The settings in Nginx's `http`."""
        return NGINX.format(folder=self.folder, www=self.folder / "www", slow=SLOW)

    def downloads(self, wheel: Wheel) -> int:
        """Return how often a file was asked for so far."""
        return self._requests(f"GET /packages/{wheel.name} ")

    def pages(self) -> int:
        """Return how often a page was asked for so far."""
        return self._requests("GET /simple/")

    def _requests(self, beginning: str) -> int:
        log = (self.folder / "requests.log").read_text().splitlines()
        return sum(line.startswith(beginning) for line in log)


def fetch_wheels(folder: Path) -> None:
    """Have this machine's pip fetch the wheels that are missing, by its own settings."""
    marker = folder / "complete"
    if marker.exists() and marker.read_text() == "\n".join(WHEELS):
        return
    print("fetching the wheels ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"]
    subprocess.run([*pip, str(folder), *WHEELS], check=True)
    marker.write_text("\n".join(WHEELS))


def make(folder: Path, source: Path, spare: int, cold: Sequence[str]) -> Upstream:
    """Make the tree anew.

    Args:
        folder: where.
        source: the folder of the wheels.
        spare: how many small projects beside, whose pages only the load generator asks for.
        cold: names of projects that have the largest wheel, under their own name and over a slow link.
    """
    www = folder / "www"
    shutil.rmtree(www, ignore_errors=True)
    (www / "packages").mkdir(parents=True)
    (folder / "requests.log").write_text("")
    wheels = {}
    for file in sorted(source.glob("*.whl")):
        wheels[file.name.partition("-")[0].replace("_", "-").lower()] = _placed(www, file, file.name)
    for name in cold:
        large = next(source.glob(f"{LARGE}-*.whl"))
        wheels[name] = _placed(www, large, f"{name}-1.0-py3-none-any.whl")
    for name, wheel in wheels.items():
        pages(www, name, [wheel, *_older(name, LINKS.get(name, 1 if name in cold else 30) - 1)])
    for name in spares(spare):
        pages(www, name, _older(name, 30))
    return Upstream(folder, wheels)


def spares(count: int) -> list[str]:
    """Return the names of the projects beside."""
    return [f"spare{number:04}" for number in range(count)]


def pages(www: Path, project: str, files: Sequence[Wheel]) -> None:
    """Write a project's page in both formats, plain and gzipped."""
    folder = www / "simple" / project
    folder.mkdir(parents=True)
    records = [
        {
            "filename": file.name,
            "url": f"{URL}/packages/{file.name}",
            "hashes": {"sha256": file.sha256},
            "requires-python": ">=3.8",
            "size": file.size,
            "upload-time": "2025-06-07T08:09:10.123456Z",
            "yanked": False,
        }
        for file in files
    ]
    versions = sorted({file.name.split("-")[1] for file in files})
    page = {"meta": {"api-version": "1.1"}, "name": project, "versions": versions, "files": records}
    attributes = 'data-requires-python="&gt;=3.8"'
    links = "".join(
        f'<a href="{URL}/packages/{file.name}#sha256={file.sha256}" {attributes}>{file.name}</a><br />\n'
        for file in files
    )
    html = f"<!DOCTYPE html>\n<html><head><title>Links for {project}</title></head><body>\n{links}</body></html>\n"
    for form, text in (("json", json.dumps(page)), ("html", html)):
        (folder / f"index.{form}").write_text(text)
        (folder / f"index.{form}.gz").write_bytes(gzip.compress(text.encode(), 6))


def _placed(www: Path, file: Path, name: str) -> Wheel:
    os.link(file, www / "packages" / name)
    with file.open("rb") as stream:
        return Wheel(name, hashlib.file_digest(stream, "sha256").hexdigest(), file.stat().st_size)


def _older(project: str, count: int) -> list[Wheel]:
    """Return files of versions that are older than any real one, a dozen each, as a compiled project has them."""
    tags = [f"cp3{minor}-cp3{minor}-{system}" for minor in (11, 12, 13, 14) for system in ("macosx_11_0_arm64",
            "manylinux_2_17_x86_64.manylinux2014_x86_64", "win_amd64")]  # fmt: skip
    names = [f"{project.replace('-', '_')}-0.{n // 12}-{tags[n % 12]}.whl" for n in range(count)]
    return [Wheel(name, hashlib.sha256(name.encode()).hexdigest(), 4_000_000 + len(name)) for name in names]
