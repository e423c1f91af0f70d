"""The programs that are measured, and their task: bring these files here."""

from __future__ import annotations

import compileall
import json
import shlex
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common.channels import CHANNEL, SUBDIR
from bench.common.cost import curl_files

# The newest on PyPI. Pinned, so that figures of two days compare.
CONDA_MIRROR = "conda-mirror==0.10.0"
DEBIAN = {"aria2c": "aria2", "curl": "curl", "nginx": "nginx-light", "ip": "iproute2", "sha256sum": "coreutils"}


@dataclass(frozen=True)
class Job:
    """The task of a tool.

    Attributes:
        base: the URL over the channel.
        folder: where the files go.
        scratch: a folder for the tool's other files.
        jobs: how many connections at a time.
        names: the files of `linux-64`, for tools that are given a list.
        arches: the subdirs, for the engine.
    """

    base: str
    folder: Path
    scratch: Path
    jobs: int
    names: Sequence[str]
    arches: Sequence[str] = (SUBDIR,)

    @property
    def url(self) -> str:
        """The subdir's URL."""
        return f"{self.base}/{CHANNEL}/{SUBDIR}"

    def write(self, name: str, text: str) -> str:
        """Write a file that the tool reads, and return its path."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        (self.scratch / name).write_text(text)
        return str(self.scratch / name)


@dataclass(frozen=True)
class Tool:
    """A program.

    Attributes:
        name: as the tables have it.
        command: makes its command line.
        mirror: whether it makes a mirror by itself, from an index, or fetches a list that it is given.
    """

    name: str
    command: Callable[[Job], list[str]]
    mirror: bool = False


def engine(script: Path) -> Tool:
    """Return the sync engine of this project, or of another checkout of it, compiled as the role installs it."""
    compileall.compile_dir(script.parent, quiet=1)

    def command(job: Job) -> list[str]:
        configuration: dict[str, Any] = {
            "working_dir": str(job.folder),
            "upstream": {"repo": job.base, "cloud": job.base},
            "repos": [],
            "cloud": [f"{CHANNEL}/{arch}" for arch in job.arches],
            "installers": {"dists": []},
            "jobs": job.jobs,
        }
        # JSON is YAML.
        return [
            sys.executable,
            str(script),
            "--verbose",
            "--config",
            job.write("engine.yml", json.dumps(configuration)),
        ]

    return Tool("engine", command, mirror=True)


def conda_mirror(folder: Path) -> Tool:
    """Return conda-mirror, from a virtual environment of its own that is made where it is missing."""
    program = folder / "bin" / "conda-mirror"
    if not program.exists():
        print(f"installing {CONDA_MIRROR} ...", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", CONDA_MIRROR], check=True)

    def command(job: Job) -> list[str]:
        job.folder.mkdir(parents=True, exist_ok=True)
        job.scratch.mkdir(parents=True, exist_ok=True)
        options = ["--upstream-channel", f"{job.base}/{CHANNEL}", "--platform", SUBDIR, "--num-threads", "0"]
        folders = ["--target-directory", str(job.folder), "--temp-directory", str(job.scratch)]
        return [str(program), *options, *folders, "--no-progress"]

    return Tool("conda-mirror", command, mirror=True)


def aria2c(job: Job) -> list[str]:
    """Return the command line of aria2c, which checks nothing here."""
    listed = job.write("aria2c.list", "".join(f"{job.url}/{name}\n" for name in job.names))
    options = ["--max-connection-per-server=1", "--file-allocation=none", "--quiet"]
    return [
        "aria2c",
        f"--max-concurrent-downloads={job.jobs}",
        *options,
        f"--dir={job.folder}",
        f"--input-file={listed}",
    ]


def curl(job: Job) -> list[str]:
    """Return the command line of curl, which checks nothing."""
    return curl_files({f"{job.url}/{name}": job.folder / name for name in job.names}, job.jobs, job.scratch)


def curl_then_sha256sum(job: Job) -> list[str]:
    """Return a command that fetches one file after the other and then hashes all."""
    fetch = shlex.join(curl(Job(job.base, job.folder, job.scratch, 1, job.names)))
    files = shlex.join(str(job.folder / name) for name in job.names)
    return ["sh", "-c", f"{fetch} && sha256sum {files}"]


def other(option: str) -> Tool:
    """Return the tool that a command line's `--peer NAME=COMMAND` describes.

    The command may have `{url}` (the subdir's URL), `{channel}` (the channel's), `{platform}`, `{dir}` (where the
    files go), `{list}` (a file of URLs, one a line) and `{jobs}`.

    Raises:
        ValueError: it is not of that form.
    """
    name, equals, text = option.partition("=")
    if not name.strip() or not equals or not text.strip():
        raise ValueError(
            f"--peer {option!r}: should be NAME=COMMAND, for example 'wget=wget -q -i {{list}} -P {{dir}}'"
        )

    def values(job: Job) -> dict[str, str]:
        return {
            "url": job.url,
            "channel": f"{job.base}/{CHANNEL}",
            "platform": SUBDIR,
            "dir": str(job.folder),
            "list": str(job.scratch / "peer.list"),
            "jobs": str(job.jobs),
        }

    def command(job: Job) -> list[str]:
        job.folder.mkdir(parents=True, exist_ok=True)
        job.write("peer.list", "".join(f"{job.url}/{name}\n" for name in job.names))
        return [part.format(**values(job)) for part in shlex.split(text)]

    try:
        text.format(**values(Job("", Path(), Path(), 1, ())))
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"--peer {option!r}: a part in braces is none of those that --help lists ({error})") from error
    return Tool(name.strip(), command)
