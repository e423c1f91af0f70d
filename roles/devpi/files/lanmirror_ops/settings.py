"""Where things are on this server, and the limits; the role writes them into one file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from . import OpsError

FILE = Path("/etc/devpi/lanmirror.toml")
GIB, MIB = 1 << 30, 1 << 20
# Old data is put there, in the folder of the data: that may be a disk of its own, which cannot be renamed, and links do
# not leave it. Nothing that root acts on later is kept where devpi's user could change it.
ASIDE = ".lanmirror-aside"
DATABASE = ".sqlite"


@dataclass(frozen=True)
class Folder:
    """A folder that the cache writes to."""

    path: Path
    min_free: int
    """Free space below which it is said to be nearly full, bytes."""
    cost: str
    """What happens then, as a part of a sentence."""
    remedy: str
    """The variable by which it is moved, or what else there is to do."""
    stops: bool = False
    """Whether the cache is failing then, and not just slower."""


@dataclass(frozen=True)
class Settings:
    """All of them."""

    url: str
    """Of devpi itself, Nginx not asked."""
    user: str
    data: Path
    backups: Path
    keep: int
    """How many backups are kept, 1 or more."""
    cache: bool
    """Whether files that mirrors can fetch again are in a backup."""
    conf: Path
    prefix: Path
    """The folder of the venvs."""
    unit: Path
    log: Path
    """What Nginx has served, in the format of devpi-http.conf."""
    state: Path
    """The database of what the watchdog knows."""
    public: Path
    """What Nginx gives out: ok.json or failing.json."""
    upstreams: Path
    """Where devpi writes which upstreams answer."""
    malware: str
    """The list of known malware: a path or a URL, "" for none."""
    metrics: Path | None
    """File for node_exporter's textfile collector."""
    max_cached: int
    """Limit of the cached files of mirrors, bytes; 0 for none."""
    grace: float
    """Files that were written in so many seconds before now are not evicted."""
    folders: tuple[Folder, ...]
    """Those whose disks are watched; that of the data comes first."""

    @property
    def database(self) -> Path:
        """The one of devpi."""
        return self.data / DATABASE

    @property
    def current(self) -> Path:
        """The link to the venv that runs."""
        return self.prefix / "current"

    @property
    def old_data(self) -> Path:
        """Where data is put aside."""
        return self.data / ASIDE

    @property
    def old_conf(self) -> Path:
        """Where the configuration is put aside, and how to come back; devpi's user cannot write there."""
        return self.prefix / "aside"

    @property
    def malware_list(self) -> Path:
        """What devpi reads of the list of known malware; as long as the data is another one, it stays."""
        return self.state.with_name("known-malware.json")

    @property
    def malware_state(self) -> Path:
        """What is known of that list."""
        return self.state.with_name("malware.json")

    @property
    def packages(self) -> Path:
        """The list of what is here, which Nginx gives out."""
        return self.state.with_name("packages.json")

    @property
    def verdict(self) -> Path:
        """What the last check of devpi's database said."""
        return self.state.with_name("database.json")


def load(path: Path) -> Settings:
    """Read the file of the role.

    Raises:
        OpsError: It is missing, or not as the role writes it.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        folders = tuple(
            Folder(
                Path(told["path"]),
                int(told["min_free_mib"] * MIB),
                told["cost"],
                told["remedy"],
                told.get("stops", False),
            )
            for told in values.pop("folders")
        )
        metrics, max_cached = values.pop("metrics"), int(values.pop("max_cached_gib") * GIB)
        paths = {field.name for field in fields(Settings) if field.type == "Path"}
        plain: dict[str, Any] = {key: Path(value) if key in paths else value for key, value in values.items()}
        return Settings(**plain, metrics=Path(metrics) if metrics else None, max_cached=max_cached, folders=folders)
    except FileNotFoundError:
        raise OpsError(f"{path} is missing: set the server up first, with site.yml") from None
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise OpsError(f"{path} is not as site.yml writes it ({error}): run site.yml again") from None
