"""The configuration: one YAML file, three environment variables, and the command line over both."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import yaml

if TYPE_CHECKING:
    from lanmirror_sync.choice import Choice
    from lanmirror_sync.rules import Rules

# The platforms of conda's `context.known_subdirs` and those that CEP 26 adds.
KNOWN_ARCHES = (
    *("noarch", "linux-32", "linux-64", "linux-aarch64", "linux-armv6l", "linux-armv7l", "linux-ppc64"),
    *("linux-ppc64le", "linux-riscv64", "linux-s390x", "osx-64", "osx-arm64", "win-32", "win-64", "win-arm64"),
    *("emscripten-wasm32", "freebsd-64", "wasi-wasm32", "zos-z"),
)
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")

# A path that stands in a request as it is.
PLAIN_PATH = re.compile(r"[A-Za-z0-9/_.!+-]+")
URL = re.compile(r"https?://[!-~]+")
HOST = re.compile(r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
HASH = re.compile(r"sha256=[0-9a-f]{64}|md5=[0-9a-f]{32}")
MOST_JOBS = 256
# Which packages of a repo or channel are held: see `Entry`.
ALL, NONE, SOME = "all", "none", "some"
# The settings of `Rules`, which an entry may have too.
RULES = ("min_age_days", "min_age_undated", "block", "allow")
# The settings of `Choice`, which stand in the `hold` of an entry.
CHOICE = ("include", "exclude", "keep_latest", "newer_than", "max_size", "keep")
MOST_VERSIONS = 1000
# A petabyte a second: more is a slip of the pen.
LARGEST_RATE = 1e15
LARGEST_SIZE = 1 << 50
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt]?)(i?)(b(?:ytes?)?|bits?)?)(/s|ps)?", re.IGNORECASE)

# Every setting, with what it is when the file says nothing. README and the role document the same.
DEFAULTS: dict[str, Any] = {
    # Absolute path of what is served; the program's own state stands in `.lanmirror/` below it.
    "working_dir": "/srv/mirror/conda",
    "upstream": {
        # Where packages and installers come from: a URL, or a list of which the next is tried when one fails,
        # throttles, or lacks a file. + /pkgs/<repo>/<arch>/, /miniconda/, /archive/
        "repo": "https://mirrors.tuna.tsinghua.edu.cn/anaconda",
        # The same for the community channels. + /<channel>/<arch>/
        "cloud": "https://mirrors.tuna.tsinghua.edu.cn/anaconda/cloud",
        # Where indexes and installer pages come from, when not from the above: for example the official server,
        # whose word is then held against every byte from anywhere. Either may be "". These are also the last
        # place where a file that no other upstream has is asked for.
        "index": {"repo": "", "cloud": ""},
    },
    # Whether the site fetches on demand what is not held. Then each index is published complete, before its packages;
    # else it names what is held.
    "on_demand": False,
    # The web server's cache of what came on demand: a package that it has is taken from there, without a second
    # download. <cache>/pkgs/<repo>/<arch>/<file> answers from that alone, for example http://127.0.0.1:3140/+kept;
    # "" for none.
    "cache": "",
    # Channels below `upstream.repo`, each in every one of `arches`: a name, or a mapping (see `Entry`).
    "repos": ["main", "free", "r", "msys2"],
    "arches": ["noarch", "linux-64", "win-64"],
    # <channel>/<arch> below `upstream.cloud`, likewise.
    "cloud": [],
    "installers": {
        # Folders below `upstream.repo` with an installer page, and what a file's name must end in.
        "dists": ["miniconda", "archive"],
        "suffixes": ["Linux-x86_64.sh", "Windows-x86_64.exe"],
        # Whether these are held: "all", or "none", with on_demand, and then each comes on demand.
        "hold": "all",
        # Installers from elsewhere, always held: a folder of their own to a list of URLs, each with its hash where that
        # is known:
        # miniforge: ["https://github.com/…/Miniforge3-Linux-x86_64.sh#sha256=…"]
        "urls": {},
    },
    # Which packages may come in, where the entry of their repo or channel says nothing else; see `rules`. How old one
    # must be, days; 0 for no matter.
    "min_age_days": 0,
    # Whether packages whose records tell no date are "hidden" or "shown" where an age is wanted.
    "min_age_undated": "hidden",
    # Names, names with versions, or "*": what is not shown, and what is shown all the same.
    "block": [],
    "allow": [],
    # Package names, or patterns of them (fnmatch), that are neither fetched nor named by a served index.
    "exclude": ["pytorch-nightly", "pytorch-nightly-cpu", "ignite-nightly"],
    # File names of packages, or patterns of them, whose absence is no failure: wrong or missing upstream for good.
    "accept_missing": [],
    # Downloads at a time, across all channels.
    "jobs": 16,
    # All downloads together: "5MB/s", "800 KiB/s", "50Mbit/s", or bytes a second; "" for no limit.
    "limit_rate": "",
    # Reading of `verify`, in the same form.
    "verify_rate": "",
    # With --delete, a package goes when no index has named it for so many hours.
    "delete_grace_hours": 24,
    # Percent of a subdir's packages that may go at once; more is taken for a fault of the upstream.
    "max_delete": 20,
    # What must stay free on the file system, GiB.
    "min_free_gib": 1,
    # How often a failed request is tried again; it waits retry_wait_seconds, then twice that, and so on.
    "retries": 4,
    "retry_wait_seconds": 1.0,
    # How long a connection may take, and how long a transfer may stay below 1 KiB/s.
    "timeout_seconds": 30,
    # A PEM file with the certificate authorities to trust; "" for those of the environment or the system.
    "ca_bundle": "",
    # A file for node_exporter's textfile collector, for example
    # /var/lib/prometheus/node-exporter/lanmirror_conda.prom; "" for none.
    "metrics_file": "",
    # What `watch` judges by. 0 where nothing runs by a schedule.
    "health": {
        # Within so many hours a sync should have ended well.
        "sync_hours": 48,
        # With on_demand, how often the indexes are refreshed, minutes: three times as old is too old.
        "index_minutes": 30,
        # The folder of the web server's cache of what came on demand, whose disk is watched as well; "" for none.
        "cache_dir": "",
        # The socket of what asks the upstreams for the web server; "" for none.
        "upstreams_socket": "",
    },
    # What is told of the web server's cache on demand, for status.json: an absolute path, "" for none.
    "cache_report": "",
    "site": {
        # What mirrorz.json says of this site: its URL (without a slash at the end), a short and a long name.
        "url": "http://localhost",
        "abbr": "LAN",
        "name": "",
        # The path of working_dir in that URL.
        "path": "/anaconda",
    },
}


class ConfigError(Exception):
    """A setting that cannot be used; the message names the key, its value and what is allowed."""


@dataclass(frozen=True)
class Options:
    """What the command line asks of a run.

    Attributes:
        only: a pattern, as in `fnmatch`, of the paths to work on, for example `pkgs/main/*`.
        delete: whether files that no index has named for the time of grace are deleted.
        accept_older: whether an upstream's index is published though it is older than ours.
        indexes: whether only the indexes are refreshed, beside a sync of packages.
    """

    only: str = "*"
    delete: bool = False
    accept_older: bool = False
    indexes: bool = False


@dataclass(frozen=True)
class Entry:
    """A repo, or a channel with its platform, as the configuration has it.

    Attributes:
        name: `main`, or `conda-forge/linux-64`.
        hold: `all`: every package is fetched; `none`: the index alone, and packages come on demand; `some`: what
            `choice` says is fetched.
        rules: which of its packages may come in, None for all.
        choice: which of those are held, where that is `some`.
    """

    name: str
    hold: str = ALL
    rules: Rules | None = None
    choice: Choice | None = None


@dataclass(frozen=True)
class Subdir:
    """One platform of one channel.

    Attributes:
        path: where it stands below the working directory, `pkgs/<repo>/<arch>` or `cloud/<channel>/<arch>`.
        urls: where its packages are to be had, the first being the best; without a slash at the end.
        index_urls: where its index is to be had, likewise.
        hold: which of its packages are held; see `Entry`.
        rules: likewise.
        choice: likewise.
    """

    path: PurePosixPath
    urls: tuple[str, ...]
    index_urls: tuple[str, ...]
    hold: str = ALL
    rules: Rules | None = None
    choice: Choice | None = None

    @property
    def url(self) -> str:
        """Where its index is to be had first."""
        return self.index_urls[0]

    @property
    def channel(self) -> PurePosixPath:
        """The channel's path below the working directory."""
        return self.path.parent

    @property
    def arch(self) -> str:
        """The platform, for example `linux-64`."""
        return self.path.name


@dataclass(frozen=True)
class Site:
    """What is told of this site in `mirrorz.json`; see `DEFAULTS`."""

    url: str
    abbr: str
    name: str
    path: str


@dataclass(frozen=True)
class Limits:
    """What `watch` judges by; see `health` of `DEFAULTS`."""

    sync_hours: float
    index_minutes: float
    cache_dir: Path | None
    upstreams_socket: Path | None


@dataclass(frozen=True)
class Config:
    """What is wanted, checked; see `DEFAULTS`. Rates in bytes a second, 0 for no limit; the rest as named."""

    working_dir: Path
    upstream_repo: tuple[str, ...]
    upstream_cloud: tuple[str, ...]
    index_repo: str
    index_cloud: str
    on_demand: bool
    cache: str
    repos: tuple[Entry, ...]
    arches: tuple[str, ...]
    cloud: tuple[Entry, ...]
    dists: tuple[str, ...]
    suffixes: tuple[str, ...]
    installers_hold: str
    installer_urls: Mapping[str, tuple[str, ...]]
    exclude: tuple[str, ...]
    accept_missing: tuple[str, ...]
    jobs: int
    limit_rate: int
    verify_rate: int
    delete_grace_hours: float
    max_delete: float
    min_free_gib: float
    retries: int
    retry_wait_seconds: float
    timeout_seconds: float
    ca_bundle: str
    metrics_file: Path | None
    health: Limits
    cache_report: Path | None
    site: Site

    def subdirs(self) -> tuple[Subdir, ...]:
        """Return every subdir to mirror, `noarch` first in each channel, without repetitions."""
        wanted = [
            self._subdir(PurePosixPath("pkgs", repo.name, arch), self.repo_sources, self.repo_indexes, repo)
            for repo in self.repos
            for arch in sorted(self.arches, key=lambda arch: arch != "noarch")
        ]
        indexes = (self.index_cloud,) if self.index_cloud else self.upstream_cloud
        sources = tuple(dict.fromkeys((*self.upstream_cloud, *indexes)))
        for entry in self.cloud:
            subdir = self._subdir(PurePosixPath(entry.name), sources, indexes, entry)
            wanted.append(replace(subdir, path=PurePosixPath("cloud", entry.name)))
        return tuple(wanted)

    def kept(self, path: PurePosixPath) -> str:
        """Return the URL of a package in the web server's cache, by its path in the mirror; "" for none."""
        return f"{self.cache}/{path}" if self.cache and PLAIN_PATH.fullmatch(str(path)) else ""

    @property
    def listed(self) -> tuple[str, ...]:
        """The folders whose installers come on demand, and are only listed here."""
        return self.dists if self.installers_hold == NONE and self.suffixes else ()

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of installers."""
        return tuple(dict.fromkeys((*self.dists, *self.installer_urls)))

    def paths(self) -> tuple[str, ...]:
        """Return everything that `--only` may choose from: subdirs and folders of installers."""
        return (*(str(subdir.path) for subdir in self.subdirs()), *self.folders)

    @property
    def repo_indexes(self) -> tuple[str, ...]:
        """Where the indexes of `repos` and the installer pages come from."""
        return (self.index_repo,) if self.index_repo else self.upstream_repo

    @property
    def repo_sources(self) -> tuple[str, ...]:
        """Where packages of `repos` and installers come from, the best first."""
        return tuple(dict.fromkeys((*self.upstream_repo, *self.repo_indexes)))

    @staticmethod
    def _subdir(path: PurePosixPath, sources: tuple[str, ...], indexes: tuple[str, ...], entry: Entry) -> Subdir:
        urls, index_urls = (tuple(f"{base}/{path}" for base in bases) for bases in (sources, indexes))
        return Subdir(path, urls, index_urls, entry.hold, entry.rules, entry.choice)


class _Loader(yaml.SafeLoader):
    """Reads YAML in which no key is given twice: of two the last would count, and the first be ignored in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name and name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


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
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - it is a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    try:
        config = parse(data if data is not None else {}, environ)
        _check_library(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


def _check_library(config: Config) -> None:
    """Refuse what py-rattler is needed for where that is not installed; it is not loaded for that."""
    entries = (*config.repos, *config.cloud)
    if any(entry.choice for entry in entries):
        what = "hold of an entry says which packages, which py-rattler tells"
    elif any(entry.rules and entry.rules.has_versions for entry in entries):
        what = "block and allow have rules with versions, which py-rattler compares"
    else:
        return
    from importlib.util import find_spec  # noqa: PLC0415 - most have neither

    if find_spec("rattler") is None:
        raise ConfigError(f"{what}, and it is not installed: pip install py-rattler, or uv run --with py-rattler")


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
    on_demand = settings["on_demand"]
    if not isinstance(on_demand, bool):
        raise _wrong("on_demand", on_demand, "true, false")
    common = {key: settings[key] for key in RULES}
    _rules("", "", common)
    repos = _entries("repos", settings["repos"], "main", common, on_demand=on_demand)
    for entry in repos:
        _names("repos", [entry.name])
    cloud = _entries("cloud", settings["cloud"], "conda-forge/linux-64", common, on_demand=on_demand)
    for entry in cloud:
        channel, _, arch = entry.name.rpartition("/")
        if not channel or not all(NAME.fullmatch(part) for part in channel.split("/")):
            raise _wrong("cloud", entry.name, "<channel>/<arch>, for example conda-forge/linux-64")
        _known_arch("cloud", arch)
    return Config(
        working_dir=_directory("working_dir", settings["working_dir"]),
        upstream_repo=_urls("upstream.repo", upstream["repo"]),
        upstream_cloud=_urls("upstream.cloud", upstream["cloud"]),
        index_repo=_optional_url("upstream.index.repo", upstream["index"]["repo"]),
        index_cloud=_optional_url("upstream.index.cloud", upstream["index"]["cloud"]),
        on_demand=on_demand,
        cache=_cache(settings["cache"]),
        repos=repos,
        arches=arches,
        cloud=cloud,
        dists=_names("installers.dists", installers["dists"]),
        suffixes=_strings("installers.suffixes", installers["suffixes"]),
        installers_hold=_installers_hold(installers["hold"], on_demand=on_demand),
        installer_urls=_installer_urls(installers["urls"], installers["dists"]),
        exclude=_strings("exclude", settings["exclude"]),
        accept_missing=_strings("accept_missing", settings["accept_missing"]),
        jobs=int(_number("jobs", settings["jobs"], 1, MOST_JOBS, whole=True)),
        limit_rate=rate("limit_rate", settings["limit_rate"]),
        verify_rate=rate("verify_rate", settings["verify_rate"]),
        delete_grace_hours=_number("delete_grace_hours", settings["delete_grace_hours"], 0, 24 * 365),
        max_delete=_number("max_delete", settings["max_delete"], 0, 100),
        min_free_gib=_number("min_free_gib", settings["min_free_gib"], 0, 1024 * 1024),
        retries=int(_number("retries", settings["retries"], 0, 100, whole=True)),
        retry_wait_seconds=_number("retry_wait_seconds", settings["retry_wait_seconds"], 0, 3600),
        timeout_seconds=_number("timeout_seconds", settings["timeout_seconds"], 0.1, 3600),
        ca_bundle=_ca_bundle(settings["ca_bundle"]),
        metrics_file=_path("metrics_file", settings["metrics_file"]),
        health=_limits(settings["health"]),
        cache_report=_path("cache_report", settings["cache_report"]),
        site=_site(settings["site"]),
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
        nested = isinstance(defaults[key], dict) and defaults[key]
        merged[key] = _merge(f"{prefix}{key}.", {} if value is None else value, defaults[key]) if nested else value
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


def _rules(where: str, of: str, given: Mapping[str, Any]) -> Rules | None:
    """Return the rules that settings give, None for none.

    Args:
        where: what stands before the name of a setting in a message.
        of: what stands behind it.
        given: a value for each of `RULES`.
    """
    if all(given[key] == DEFAULTS[key] for key in RULES):
        return None
    from lanmirror_sync import rules  # noqa: PLC0415 - most have none

    def called(key: str) -> str:
        return f"{where}{key}{of}"

    days = _number(called("min_age_days"), given["min_age_days"], 0, rules.MOST_DAYS, whole=True)
    if given["min_age_undated"] not in (rules.HIDDEN, rules.SHOWN):
        raise _wrong(called("min_age_undated"), given["min_age_undated"], f"{rules.HIDDEN}, {rules.SHOWN}")
    found: dict[str, dict[tuple[str, str], str]] = {"block": {}, "allow": {}}
    for key, texts in found.items():
        if not isinstance(given[key], list) or not all(isinstance(text, str) for text in given[key]):
            raise _wrong(called(key), given[key], 'a list of rules, for example [evil, "pkg>=2,<2.3"]')
        for text in given[key]:
            try:
                texts.setdefault(rules.parse(text), text)
            except rules.RuleError as error:
                raise ConfigError(f'{called(key)} has "{text}": {error}') from error
    for rule, text in found["block"].items():
        if rule in found["allow"]:
            raise ConfigError(f'{called("block")} has "{text}", and so has allow; keep one of them')
    made = rules.Rules(int(days), given["min_age_undated"], *(tuple(texts.values()) for texts in found.values()))
    # There is nothing that `allow` would have to let in.
    return made if made.block or made.min_age_days else None


def _entries(key: str, value: object, example: str, common: Mapping[str, Any], *, on_demand: bool) -> tuple[Entry, ...]:
    """Return the entries of a list, each a name, or a mapping that says also which packages are held and may come in.

    Args:
        key: of the list.
        value: the list.
        example: a name.
        common: a value for each of `RULES`, for entries that have none.
        on_demand: whether the site fetches what is not held.
    """
    allowed = f"a list of names, each alone or as in {{name: {example}, hold: none}}"
    if not isinstance(value, list):
        raise _wrong(key, value, allowed)
    found: dict[str, Entry] = {}
    for item in value:
        data = item if isinstance(item, dict) else {"name": item}
        if not isinstance(data.get("name"), str) or not data["name"]:
            raise _wrong(key, item, allowed)
        if unknown := [name for name in data if name not in ("name", "hold", *RULES)]:
            allowed = ", ".join(("name", "hold", *RULES))
            raise ConfigError(f"{key} has {unknown[0]!r} in the entry of {data['name']}; allowed: {allowed}")
        own = {rule: data.get(rule, common[rule]) for rule in RULES}
        name, hold = data["name"], data.get("hold", ALL)
        choice = _choice(f"{key}: hold of {name}", hold) if isinstance(hold, dict) else None
        entry = Entry(name, SOME if choice else hold, _rules(f"{key}: ", f" of {name}", own), choice)
        if choice is None and hold not in (ALL, NONE):
            raise _wrong(f"{key}: hold of {name}", hold, f"{ALL}, {NONE}, or a mapping of {', '.join(CHOICE)}")
        if entry.hold == NONE and not on_demand:
            raise _nobodys(f"{key} has hold: {NONE} for {entry.name}", "its packages")
        if found.setdefault(entry.name, entry) != entry:
            raise ConfigError(f"{key} has {entry.name} twice, and not with the same settings; keep one of them")
    return tuple(found.values())


def _choice(where: str, given: Mapping[Any, Any]) -> Choice:
    """Return which packages are held, as a mapping says it.

    Args:
        where: what stands before the name of a setting in a message.
        given: the mapping.
    """
    from lanmirror_sync import choice  # noqa: PLC0415 - most have none

    for setting in given:
        if setting not in CHOICE:
            near = difflib.get_close_matches(str(setting), CHOICE, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{where} has {setting!r}, which is no setting{hint} (allowed: {', '.join(CHOICE)})")
    if not given:
        raise _wrong(where, dict(given), f"{ALL}, {NONE}, or a mapping of {', '.join(CHOICE)}")
    specs: dict[str, tuple[str, ...]] = {}
    for setting in ("include", "exclude"):
        texts = given.get(setting, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise _wrong(f"{where}: {setting}", texts, 'a list of MatchSpecs, for example [numpy, "pytorch=*=*cuda*"]')
        for text in texts:
            try:
                specs[setting] = tuple(dict.fromkeys((*specs.get(setting, ()), choice.parse(text))))
            except choice.SpecError as error:
                raise ConfigError(f'{where}: {setting} has "{text}": {error}') from error
    latest, size = given.get("keep_latest"), given.get("max_size")
    return choice.Choice(
        include=specs.get("include", ()),
        exclude=specs.get("exclude", ()),
        keep_latest=int(_number(f"{where}: keep_latest", latest, 1, MOST_VERSIONS, whole=True))
        if latest is not None
        else 0,
        newer_than=_moment(f"{where}: newer_than", given["newer_than"]) if "newer_than" in given else None,
        max_size=_size(f"{where}: max_size", size) if size is not None else 0,
        keep=_keep(f"{where}: keep", given.get("keep", [])),
    )


def _keep(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(path, str) for path in value):
        raise _wrong(key, value, "a list of absolute paths of this machine, for example [/srv/environments]")
    for path in value:
        if not path.startswith("/") or not path.isprintable() or ".." in Path(path).parts:
            raise _wrong(key, path, "absolute paths of this machine, for example /srv/environments")
    return tuple(dict.fromkeys(os.path.normpath(path) for path in value))


def _moment(key: str, value: object) -> float:
    """Return when a day begins in UTC, in Unix time (seconds); YAML reads a day without quotes as a date."""
    try:
        if isinstance(value, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
            value = date.fromisoformat(value)
    except ValueError:
        pass
    if not isinstance(value, date) or isinstance(value, datetime):
        raise _wrong(key, value, "a day, for example 2024-01-01")
    return datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp()


def _installers_hold(value: object, *, on_demand: bool) -> str:
    if value not in (ALL, NONE):
        raise _wrong("installers.hold", value, f"{ALL}, {NONE}")
    if value == NONE and not on_demand:
        raise _nobodys(f"installers has hold: {NONE}", "an installer")
    return str(value)


def _nobodys(what: str, whose: str) -> ConfigError:
    return ConfigError(
        f"{what} while on_demand is false, so nobody could have {whose}; set on_demand: true, or hold: {ALL}"
    )


def _known_arch(key: str, arch: str) -> None:
    if arch not in KNOWN_ARCHES:
        near = difflib.get_close_matches(arch, KNOWN_ARCHES, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise _wrong(key, arch, f"one of {', '.join(KNOWN_ARCHES)}{hint}")


def _url(key: str, value: object, *, whole: bool = False) -> str:
    """Return a URL without a slash at the end; a `whole` one names a file, and may have a query and a fragment."""
    if isinstance(value, str) and URL.fullmatch(value):
        try:
            parts = urlsplit(value)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        extra = (parts.query or parts.fragment) if host and not whole else ""
        if host and HOST.fullmatch(parts.netloc.rpartition("@")[2]) and port != 0 and not extra:
            return value if whole else parts.geturl().rstrip("/")
    raise _wrong(
        key, _hidden(value),
        "a URL with its scheme, a port from 1 to 65535 where it has one, and no blanks, for example "
        "https://mirror.example.org/anaconda",
    )  # fmt: skip


def _hidden(value: object) -> object:
    """Return a value without the credentials in it, however it is written."""
    return re.sub(r"//[^/\s]*@", "//", value) if isinstance(value, str) else value


def _installer_urls(value: object, dists: object) -> dict[str, tuple[str, ...]]:
    key = "installers.urls"
    if not isinstance(value, dict):
        raise _wrong(
            key, value, "a mapping of folders to lists of URLs, for example miniforge: [https://…/Miniforge3.sh]"
        )
    found: dict[str, tuple[str, ...]] = {}
    for folder, urls in value.items():
        taken = ("pkgs", "cloud", *(dists if isinstance(dists, list) else ()))
        if not isinstance(folder, str) or not NAME.fullmatch(folder) or folder in taken:
            raise _wrong(
                key, folder, f"folders of their own: letters, digits, '.', '_' and '-', and none of {list(taken)}"
            )
        if not isinstance(urls, list) or not urls:
            raise _wrong(f"{key}.{folder}", urls, "a list of URLs")
        found[folder] = tuple(dict.fromkeys(_url(f"{key}.{folder}", url, whole=True) for url in urls))
        names = [unquote(urlsplit(url).path.rpartition("/")[2]) for url in found[folder]]
        for name, url in zip(names, found[folder], strict=True):
            fragment = urlsplit(url).fragment.lower()
            if not NAME.fullmatch(name) or names.count(name) > 1:
                raise _wrong(f"{key}.{folder}", url, "URLs that end in the name of a file, each in another")
            if fragment and not HASH.fullmatch(fragment):
                raise _wrong(f"{key}.{folder}", url, "#sha256=<64 digits> or #md5=<32 digits> behind a URL, or nothing")
    return found


def _urls(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        return (_url(key, value),)
    if not value:
        raise _wrong(key, value, "a URL, or a list of at least one")
    return tuple(dict.fromkeys(_url(key, item) for item in value))


def _optional_url(key: str, value: object) -> str:
    return _url(key, value) if value not in ("", None) else ""


def _cache(value: object) -> str:
    url = _optional_url("cache", value)
    if url and (urlsplit(url).scheme != "http" or "@" in url):
        raise _wrong(
            "cache", _hidden(value),
            'an http URL of this machine\'s web server, for example http://127.0.0.1:3140/+kept, or "" for none',
        )  # fmt: skip
    return url


def rate(key: str, value: object) -> int:
    """Return a rate in bytes a second, 0 for no limit."""
    if value in ("", None):
        return 0
    match = SIZE.fullmatch(str(value).strip()) if not isinstance(value, bool) else None
    if match and 1 <= (found := _bytes(match)) <= LARGEST_RATE:
        return int(found)
    raise _wrong(key, value, 'a rate above 0, for example 5MB/s, 800 KiB/s or 50Mbit/s, or "" for no limit')


def _size(key: str, value: object) -> int:
    """Return a size in bytes."""
    match = SIZE.fullmatch(str(value).strip()) if not isinstance(value, bool) else None
    if match and not match[5] and not (match[4] or "").lower().startswith("bit"):
        size = _bytes(match)
        if 1 <= size <= LARGEST_SIZE:
            return int(size)
    raise _wrong(key, value, "a size above 0, for example 500MB or 2 GiB")


def _bytes(match: re.Match[str]) -> float:
    number, prefix, binary, unit, _ = match.groups()
    factor = float(1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " ")
    return float(number) * factor / (8 if (unit or "").lower().startswith("bit") else 1)


def _site(site: dict[str, Any]) -> Site:
    if not isinstance(site["path"], str) or not re.fullmatch(r"(/[A-Za-z0-9._-]+)*", site["path"].rstrip("/")):
        raise _wrong("site.path", site["path"], 'a path that begins with a slash, for example /anaconda, or "/"')
    for key in ("abbr", "name"):
        if not isinstance(site[key], str):
            raise _wrong(f"site.{key}", site[key], "a word")
    return Site(_url("site.url", site["url"]), site["abbr"], site["name"], site["path"].rstrip("/"))


def _limits(health: dict[str, Any]) -> Limits:
    return Limits(
        sync_hours=_number("health.sync_hours", health["sync_hours"], 0, 24 * 365),
        index_minutes=_number("health.index_minutes", health["index_minutes"], 0, 24 * 60),
        cache_dir=_path("health.cache_dir", health["cache_dir"]),
        upstreams_socket=_path("health.upstreams_socket", health["upstreams_socket"]),
    )


def _path(key: str, value: object) -> Path | None:
    return _directory(key, value) if value else None


def _directory(key: str, value: object) -> Path:
    good = isinstance(value, str) and value.startswith("/") and value.isprintable()
    if not good or ".." in Path(str(value)).parts or os.path.normpath(str(value)) in ("/", "//"):
        raise _wrong(key, value, "an absolute path, for example /srv/mirror/conda, and not /")
    return Path(str(value))


def _number(key: str, value: object, low: float, high: float, *, whole: bool = False) -> float:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise _wrong(key, value, f"a {'whole ' if whole else ''}number from {low} to {high}")
    return value


def _ca_bundle(value: object) -> str:
    if not isinstance(value, str) or "\0" in value or (value and not Path(value).is_file()):
        raise _wrong("ca_bundle", value, 'the path of a PEM file, or "" for the usual authorities')
    return value


def overridden(config: Config, working_dir: Path | None, jobs: int | None, max_delete: float | None) -> Config:
    """Return the configuration with what the command line says over it; it is checked as the file is.

    Raises:
        ConfigError: see `load`.
    """
    if working_dir is not None:
        path = _directory("--working-dir", os.path.normpath(working_dir.absolute()))
        config = replace(config, working_dir=path)
    if jobs is not None:
        config = replace(config, jobs=int(_number("--jobs", jobs, 1, MOST_JOBS, whole=True)))
    if max_delete is not None:
        config = replace(config, max_delete=_number("--max-delete", max_delete, 0, 100))
    if not config.paths():
        raise ConfigError("repos, cloud and installers are all empty: there is nothing to mirror")
    return config
