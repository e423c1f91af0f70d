"""The configuration: one YAML file, three environment variables, and the command line over both."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

# The platforms of conda's `context.known_subdirs` and those that CEP 26 adds.
KNOWN_ARCHES = (
    *("noarch", "linux-32", "linux-64", "linux-aarch64", "linux-armv6l", "linux-armv7l", "linux-ppc64"),
    *("linux-ppc64le", "linux-riscv64", "linux-s390x", "osx-64", "osx-arm64", "win-32", "win-64", "win-arm64"),
    *("emscripten-wasm32", "freebsd-64", "wasi-wasm32", "zos-z"),
)
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")

DEFAULTS: dict[str, Any] = {
    "working_dir": "/srv/mirror/conda",
    "upstream": {
        "repo": "https://mirrors.tuna.tsinghua.edu.cn/anaconda",
        "cloud": "https://mirrors.tuna.tsinghua.edu.cn/anaconda/cloud",
    },
    "repos": ["main", "free", "r", "msys2"],
    "arches": ["noarch", "linux-64", "win-64"],
    "cloud": [],
    "installers": {
        "dists": ["miniconda", "archive"],
        "suffixes": ["Linux-x86_64.sh", "Windows-x86_64.exe"],
    },
    "exclude": ["pytorch-nightly", "pytorch-nightly-cpu", "ignite-nightly"],
    "jobs": 16,
    "delete_grace_hours": 24,
    "min_free_gib": 1,
    "retries": 4,
    "retry_wait_seconds": 1.0,
    "timeout_seconds": 30,
    "ca_bundle": "",
}


class ConfigError(Exception):
    """A setting that cannot be used; the message names the key, its value and what is allowed."""


@dataclass(frozen=True)
class Subdir:
    """One platform of one channel.

    Attributes:
        path: where it stands below the working directory, `pkgs/<repo>/<arch>` or `cloud/<channel>/<arch>`.
        url: where the upstream has it, without a slash at the end.
    """

    path: PurePosixPath
    url: str

    @property
    def channel(self) -> PurePosixPath:
        """The channel's path below the working directory."""
        return self.path.parent

    @property
    def arch(self) -> str:
        """The platform, for example `linux-64`."""
        return self.path.name


@dataclass(frozen=True)
class Config:
    """What is wanted, checked. Sizes in GiB, times in the unit that the name says."""

    working_dir: Path
    upstream_repo: str
    upstream_cloud: str
    repos: tuple[str, ...]
    arches: tuple[str, ...]
    cloud: tuple[str, ...]
    dists: tuple[str, ...]
    suffixes: tuple[str, ...]
    exclude: tuple[str, ...]
    jobs: int
    delete_grace_hours: float
    min_free_gib: float
    retries: int
    retry_wait_seconds: float
    timeout_seconds: float
    ca_bundle: str

    def subdirs(self) -> tuple[Subdir, ...]:
        """Return every subdir to mirror, `noarch` first in each channel, without repetitions."""
        wanted = [
            Subdir(PurePosixPath("pkgs", repo, arch), f"{self.upstream_repo}/pkgs/{repo}/{arch}")
            for repo in self.repos
            for arch in sorted(self.arches, key=lambda arch: arch != "noarch")
        ]
        wanted += [Subdir(PurePosixPath("cloud", entry), f"{self.upstream_cloud}/{entry}") for entry in self.cloud]
        return tuple(dict.fromkeys(wanted))


def load(path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """Read the configuration file; the variables that tunasync sets override it.

    Args:
        path: the YAML file.
        environ: the environment, for `TUNASYNC_WORKING_DIR`, `CONDA_REPO_URL` and `CONDA_CLOUD_URL`.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or has a key or a value that cannot be used.
    """
    environ = os.environ if environ is None else environ
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    try:
        return parse(data if data is not None else {}, environ)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse(data: object, environ: Mapping[str, str]) -> Config:
    """Check configuration data and return it as a `Config`.

    Raises:
        ConfigError: see `load`.
    """
    settings = _merge("", data, DEFAULTS)
    upstream, installers = settings["upstream"], settings["installers"]
    for variable, table, key in (
        ("TUNASYNC_WORKING_DIR", settings, "working_dir"),
        ("CONDA_REPO_URL", upstream, "repo"),
        ("CONDA_CLOUD_URL", upstream, "cloud"),
    ):
        if environ.get(variable):
            table[key] = environ[variable]

    arches = _names("arches", settings["arches"])
    for arch in arches:
        _known_arch("arches", arch)
    cloud = _strings("cloud", settings["cloud"])
    for entry in cloud:
        channel, _, arch = entry.rpartition("/")
        if not channel or not all(NAME.fullmatch(part) for part in channel.split("/")):
            raise _wrong("cloud", entry, "<channel>/<arch>, for example conda-forge/linux-64")
        _known_arch("cloud", arch)
    return Config(
        working_dir=_directory("working_dir", settings["working_dir"]),
        upstream_repo=_url("upstream.repo", upstream["repo"]),
        upstream_cloud=_url("upstream.cloud", upstream["cloud"]),
        repos=_names("repos", settings["repos"]),
        arches=arches,
        cloud=cloud,
        dists=_names("installers.dists", installers["dists"]),
        suffixes=_strings("installers.suffixes", installers["suffixes"]),
        exclude=_strings("exclude", settings["exclude"]),
        jobs=int(_number("jobs", settings["jobs"], 1, 256, whole=True)),
        delete_grace_hours=_number("delete_grace_hours", settings["delete_grace_hours"], 0, 24 * 365),
        min_free_gib=_number("min_free_gib", settings["min_free_gib"], 0, 1024 * 1024),
        retries=int(_number("retries", settings["retries"], 0, 100, whole=True)),
        retry_wait_seconds=_number("retry_wait_seconds", settings["retry_wait_seconds"], 0, 3600),
        timeout_seconds=_number("timeout_seconds", settings["timeout_seconds"], 0.1, 3600),
        ca_bundle=_ca_bundle(settings["ca_bundle"]),
    )


def _merge(prefix: str, data: object, defaults: dict[str, Any]) -> dict[str, Any]:
    """Lay `data` over `defaults`; a key that is in no default is an error that names the nearest one."""
    if not isinstance(data, dict):
        raise _wrong(prefix.rstrip(".") or "the file", data, "a mapping of keys to values")
    merged = dict(defaults)
    for key, value in data.items():
        if key not in defaults:
            near = difflib.get_close_matches(str(key), defaults, 1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise ConfigError(
                f"{prefix}{key} is no setting{hint} (allowed: {', '.join(prefix + name for name in defaults)})"
            )
        nested = isinstance(defaults[key], dict)
        merged[key] = _merge(f"{prefix}{key}.", value, defaults[key]) if nested else value
    return {key: dict(value) if isinstance(value, dict) else value for key, value in merged.items()}


def _wrong(key: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"{key} is {value!r}; allowed: {allowed}")


def _strings(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise _wrong(key, value, "a list of words, for example [a, b]")
    return tuple(dict.fromkeys(value))


def _names(key: str, value: object) -> tuple[str, ...]:
    for name in _strings(key, value):
        if not NAME.fullmatch(name):
            raise _wrong(key, name, "letters, digits, '.', '_' and '-' in each name")
    return _strings(key, value)


def _known_arch(key: str, arch: str) -> None:
    if arch not in KNOWN_ARCHES:
        near = difflib.get_close_matches(arch, KNOWN_ARCHES, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise _wrong(key, arch, f"one of {', '.join(KNOWN_ARCHES)}{hint}")


def _url(key: str, value: object) -> str:
    parts = urlsplit(value) if isinstance(value, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise _wrong(key, value, "a URL with its scheme, for example https://mirror.example.org/anaconda")
    return parts.geturl().rstrip("/")


def _directory(key: str, value: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/") or ".." in Path(value).parts or value == "/":
        raise _wrong(key, value, "an absolute path, for example /srv/mirror/conda")
    return Path(value)


def _number(key: str, value: object, low: float, high: float, *, whole: bool = False) -> float:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise _wrong(key, value, f"a {'whole ' if whole else ''}number from {low} to {high}")
    return value


def _ca_bundle(value: object) -> str:
    if not isinstance(value, str) or (value and not Path(value).is_file()):
        raise _wrong("ca_bundle", value, 'the path of a PEM file, or "" for the usual authorities')
    return value
