"""How devpi is: what Nginx answers at /health."""

from __future__ import annotations

import contextlib
import http
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from . import disks
from .asking import ask, indexes, result
from .files import write
from .journal import ERROR, NOTICE, WARNING
from .malware import figures, state_of, why_not
from .settings import Settings
from .verdict import last_verdict

# How long a page that devpi knows may take, seconds: far longer than it does, since devpi may have much to do.
PAGE_SECONDS = 20.0
# How long the rest may; all of it together is less than WatchdogSec of the unit.
REST_SECONDS = 5.0
# How long a replica may hear nothing from its primary, seconds; it asks all the time.
PRIMARY_SECONDS = 300.0
# How long it is told that a place gave something wrong, seconds.
WRONG_SECONDS = 86400.0


@dataclass(frozen=True)
class Health:
    """What was found, by a word that stays the same while it lasts.

    Attributes:
        problems: With any of these the answer is 503.
        warnings: With these, projects that are cached install as always.
    """

    problems: Mapping[str, str]
    warnings: Mapping[str, str]

    def told(self, at: float) -> str:
        """Return it as JSON."""
        return (
            json.dumps(
                {
                    "status": "failing" if self.problems else "ok",
                    "problems": list(self.problems.values()),
                    "warnings": list(self.warnings.values()),
                    "checked": _time(at),
                },
                indent=1,
            )
            + "\n"
        )


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Place:
    """One of several places that an index has its pages or its files from.

    Attributes:
        index: user/index.
        url: Of the place.
        since: When that began, seconds since the epoch.
        why: Why it gives nothing; empty when it does.
        wrong_at: When it gave something wrong last.
        wrong: What that was; empty for nothing.
        count: How often, since the start of devpi.
    """

    index: str
    url: str
    since: float = 0.0
    why: str = ""
    wrong_at: float = 0.0
    wrong: str = ""
    count: int = 0


@dataclass(frozen=True)
class Devpi:
    """What devpi itself gives, looked at less often than the rest.

    Attributes:
        page: Why it does not serve a page that it knows; empty when it does.
        primary: For a replica: why it is behind its primary; empty when it is not.
        indexes: Those that there are, by user/index; None when devpi did not say.
    """

    page: str = ""
    primary: str = ""
    indexes: frozenset[str] | None = None


def judge(
    *,
    silent: str,
    database: str,
    damage: str,
    devpi: Devpi,
    measured: Sequence[disks.Measured],
    upstreams: Mapping[str, tuple[float, str]],
    malware: str,
    places: Sequence[Place] = (),
) -> Health:
    """Return what is wrong.

    Args:
        silent: Why devpi does not answer; empty when it does.
        database: Why devpi cannot write; empty when it can.
        damage: What is wrong with devpi's database; empty for nothing.
        devpi: What it gives.
        measured: The disks.
        upstreams: How each upstream answered last, by index: since when, and why not.
        malware: What is wrong with the list of known malware; empty for nothing.
        places: Of each index that has several: how each answered last, and what it gave that was wrong.
    """
    problems: dict[str, str] = {}
    warnings: dict[str, str] = {}
    if silent:
        problems["devpi"] = f"devpi does not answer ({silent}): systemctl status devpi"
    if database:
        problems["database"] = f"devpi's database or folder cannot be written to ({database})"
    if damage:
        problems["damage"] = f"devpi's database is damaged ({damage}): restore a backup with playbooks/restore.yml"
    if devpi.page and not silent:
        problems["page"] = f"devpi does not serve {devpi.page}: journalctl -u devpi"
    for found in disks.full(measured):
        (problems if found.folder.stops else warnings)[f"disk of {found.folder.path}"] = str(found)
    if devpi.primary and not silent:
        warnings["primary"] = (
            f"this replica does not follow its primary ({devpi.primary}): what is new there is not here"
        )
    if malware:
        warnings["malware"] = malware
    for index, (since, why) in sorted(upstreams.items()):
        if why and (devpi.indexes is None or index in devpi.indexes):
            warnings[f"upstream of {index}"] = (
                f"the upstream of {index} does not answer since {_time(since)} ({why}): "
                "what is cached installs, new projects do not"
            )
    known = [place for place in places if devpi.indexes is None or place.index in devpi.indexes]
    return Health(problems, warnings | warnings_of(known))


def warnings_of(places: Sequence[Place]) -> dict[str, str]:
    """Return what is wrong with places where an index has several."""
    warnings: dict[str, str] = {}
    for place in places:
        if place.why:
            warnings[f"{place.url} for {place.index}"] = (
                f"{place.url} gives {place.index} nothing of use since {_time(place.since)} ({place.why}): "
                "the others of the list are asked in its place"
            )
        if place.wrong and time.time() - place.wrong_at < WRONG_SECONDS:
            warnings[f"what {place.url} gave {place.index}"] = (
                f"{place.url} gave {place.index} something wrong, which was refused, last at {_time(place.wrong_at)} "
                f"({place.wrong}): if that goes on, take it out of the list"
            )
    return warnings


def why_devpi_cannot_write(database: Path) -> str:
    """Return why a transaction cannot be begun or a file not be written where devpi does; empty when they can.

    SQLite makes a reading transaction of one that it cannot write in, and no error: hence the first question.
    """
    if database.exists() and not os.access(database, os.W_OK):
        return f"{database} is read-only"
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{database}?mode=rw", uri=True, timeout=0.5, isolation_level=None)
        ) as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
    except sqlite3.Error as error:
        # Somebody is just writing: so it can be written to.
        if error.sqlite_errorcode not in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return str(error)
    try:
        with tempfile.TemporaryFile(dir=database.parent, buffering=0) as file:
            file.write(bytes(4096))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def known_page(database: Path, mirrors: Sequence[str]) -> str:
    """Return the path of a page of a mirror that devpi knows, always the same one; empty where there is none."""
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=0.5)) as db,
    ):
        for mirror in sorted(mirrors):
            first = "SELECT min(key) FROM kv WHERE keyname = 'PROJSIMPLELINKS' AND key >= ? AND key < ?"
            key = db.execute(first, (f"{mirror}/", f"{mirror}0")).fetchone()[0]
            if key:
                return f"/{mirror}/+simple/{key.removeprefix(f'{mirror}/').split('/')[0]}/"
    return ""


def why_no_page(settings: Settings, mirrors: Sequence[str]) -> str:
    """Return which page that it knows devpi does not serve, and why; empty when it does.

    devpi asks its upstream when the page is older than it should be, as for any client.
    """
    path = known_page(settings.database, mirrors)
    if not path:
        return ""
    try:
        status = ask(settings.url, path, accept="application/vnd.pypi.simple.v1+json", timeout=PAGE_SECONDS).status
    except OSError as error:
        return f"{path} ({error})"
    # These two are of the upstream.
    if status in {http.HTTPStatus.BAD_GATEWAY, http.HTTPStatus.GATEWAY_TIMEOUT}:
        return ""
    return f"{path} (status {status})" if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR else ""


def is_replica(data: Path) -> bool:
    """Return whether the data is that of a replica."""
    try:
        return bool(json.loads((data / ".nodeinfo").read_text(encoding="utf-8")).get("role") == "replica")
    except (OSError, ValueError, AttributeError):
        return False


def look_at_devpi(settings: Settings) -> Devpi:
    """Ask a devpi that answers for its indexes, for a page that it knows, and a replica how far it is behind."""
    try:
        types = indexes(settings.url, timeout=REST_SECONDS)
        status = result(settings.url, "/+status", timeout=REST_SECONDS) if is_replica(settings.data) else {}
    except OSError as error:
        return Devpi(page=f"what it is asked ({error})")
    page = why_no_page(settings, [name for name, kind in types.items() if kind == "mirror"])
    return Devpi(page, why_behind(status, time.time()), frozenset(types))


def why_behind(status: Mapping[str, object], now: float) -> str:
    """Return why a replica is behind its primary, by its own status; empty when it is not, and for a primary."""
    if status.get("role") != "REPLICA":
        return ""
    if errors := status.get("replication-errors"):
        count = len(errors) if isinstance(errors, dict | list) else 1
        return f"{count} files could not be fetched"
    heard = status.get("update-from-primary-at") or status.get("replica-started-at")
    if isinstance(heard, int | float) and now - heard > PRIMARY_SECONDS:
        return f"nothing was heard from it since {_time(heard)}"
    return ""


def upstreams(path: Path) -> dict[str, tuple[float, str]]:
    """Return how each upstream answered devpi last, by index: since when, and why it does not; empty when it does.

    The plugin writes it, of the upstreams that devpi has asked since its start.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return {index: (float(said["since"]), str(said["why"] or "")) for index, said in told.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def places(path: Path) -> list[Place]:
    """Return how each place answered devpi last, of the indexes that have several, in the order of their names."""
    found = []
    try:
        for index, said in json.loads(path.read_text(encoding="utf-8")).items():
            answers, wrongs = said.get("places", {}), said.get("wrong", {})
            for url in answers.keys() | wrongs.keys():
                one, other = answers.get(url, {}), wrongs.get(url, {})
                found.append(
                    Place(
                        index,
                        url,
                        float(one.get("since", 0)),
                        str(one.get("why", "")),
                        float(other.get("since", 0)),
                        str(other.get("why", "")),
                        int(other.get("count", 0)),
                    )
                )
    except (OSError, ValueError, TypeError, AttributeError):
        return []
    return sorted(found, key=lambda place: (place.index, place.url))


def publish(health: Health, public: Path, at: float) -> None:
    """Write what Nginx answers at /health: ok.json with 200 or, where that is missing, failing.json with 503."""
    name, other = ("failing.json", "ok.json") if health.problems else ("ok.json", "failing.json")
    write(public / name, health.told(at), 0o640)
    (public / other).unlink(missing_ok=True)


def changes(before: Health | None, after: Health) -> Iterator[tuple[int, str]]:
    """Yield what is new or over, for the journal, with syslog's priority."""
    old = {**before.problems, **before.warnings} if before else {}
    new = {**after.problems, **after.warnings}
    for word in new.keys() - old.keys():
        yield (ERROR if word in after.problems else WARNING), new[word]
    for word in old.keys() - new.keys():
        yield NOTICE, f"{word}: well again"


def look(settings: Settings, silent: str, devpi: Devpi) -> tuple[Health, dict[str, float], list[disks.Measured]]:
    """Look at everything once and write what Nginx answers; return what was found, and what was measured.

    Args:
        settings: Where it is.
        silent: Why devpi does not answer; empty when it does.
        devpi: What it gave when it was last asked for more than that.
    """
    measured = disks.measure(settings.folders)
    verdict = last_verdict(settings)
    malware = state_of(settings) if settings.malware else None
    health = judge(
        silent=silent,
        database=why_devpi_cannot_write(settings.database),
        damage=verdict.damage if verdict else "",
        devpi=devpi,
        measured=measured,
        upstreams=upstreams(settings.upstreams),
        places=places(settings.upstreams),
        malware=why_not(settings, malware, time.time()),
    )
    now = time.time()
    publish(health, settings.public, now)
    data = measured[0]
    return (
        health,
        {
            "cached_limit_bytes": settings.max_cached,
            "disk_bytes": data.size,
            "disk_free_bytes": data.free,
            "disk_min_free_bytes": data.folder.min_free,
            "devpi_up": not silent,
            "healthy": not health.problems,
            "checked_timestamp_seconds": now,
        }
        | ({"database_checked_timestamp_seconds": verdict.at, "database_sound": not verdict.damage} if verdict else {})
        | figures(malware),
        measured,
    )
