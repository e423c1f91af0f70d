"""How the mirror is, judged by what is known on this machine; `watch` looks, and the web server answers at /health."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lanmirror_sync import exits
from lanmirror_sync.config import NONE, Config
from lanmirror_sync.status import FAILED, IN_SYNC, INCOMPLETE, RUNNING

GIB = 1 << 30
HOUR, DAY = 3600.0, 86400.0
# A disk with room for fewer files is as good as full. Some file systems count none.
FEW_INODES = 1000
# An index that is so many intervals old was not looked for.
INTERVALS = 3
# The web server's cache is looked at every minute; after so many seconds nobody does.
CACHE_SECONDS = 900.0
# So many subdirs are named in a sentence.
NAMED = 5
# The codes of these need no administrator: the upstream is down, or the run was asked to end.
SIGNALS = 128


@dataclass(frozen=True)
class Health:
    """What was found, by a word that stays the same while it lasts.

    Attributes:
        problems: an administrator has to act.
        warnings: with these, what is held or cached installs.
    """

    problems: Mapping[str, str]
    warnings: Mapping[str, str]

    def told(self, at: float) -> bytes:
        """Return it as JSON; `at` is Unix time, seconds."""
        said = {
            "status": "failing" if self.problems else "ok",
            "problems": list(self.problems.values()),
            "warnings": list(self.warnings.values()),
            "checked": _time(at),
        }
        return json.dumps(said, indent=1).encode() + b"\n"


@dataclass(frozen=True)
class Disk:
    """A folder with what is free where it is.

    Attributes:
        path: of the folder.
        number: of its file system.
        free: bytes, for who is not root.
        inodes: files that can still be made; None where the file system does not count them.
        want: bytes that are to stay free.
        cost: what happens with less, and what to do, as parts of a sentence.
        stops: whether the mirror is failing then.
    """

    path: Path
    number: int
    free: int
    inodes: int | None
    want: float
    cost: str
    stops: bool = False

    @property
    def full(self) -> bool:
        """Whether it is nearly full."""
        return self.free < self.want or (self.inodes is not None and self.inodes < FEW_INODES)

    def __str__(self) -> str:
        room = f"{self.free / GIB:.1f} GiB are free, {self.want / GIB:g} should be"
        if self.free >= self.want:
            room = f"{self.inodes} files more can be made there"
        return f"the disk of {self.path} is nearly full ({room}): {self.cost}"


@dataclass(frozen=True)
class Found:
    """What was found at one look. Times are Unix time in seconds.

    Attributes:
        now: when that was.
        since: from when on something can be overdue: the machine runs, and the configuration is as it is.
        status: what `status.gather` returned; None where that is not known.
        unknown: why it is not known.
        unwritable: why the working directory cannot be written to; "" where it can.
        disks: of the working directory, and of the web server's cache.
        unasked: why the upstreams are not asked for the web server; "" where they are.
        sync: the process that has the lock of a sync or `verify`, and since when; None where none has it.
        refresh: likewise of a refresh of the indexes.
    """

    now: float
    since: float
    status: Mapping[str, Any] | None
    unknown: str = ""
    unwritable: str = ""
    disks: Sequence[Disk] = ()
    unasked: str = ""
    sync: tuple[int, float] | None = None
    refresh: tuple[int, float] | None = None


def judge(config: Config | None, wrong: str, found: Found) -> Health:
    """Return how the mirror is.

    Args:
        config: the configuration; None where there was no right one yet.
        wrong: why the configuration cannot be used now; "" where it can.
        found: what was looked at.
    """
    problems: dict[str, str] = {}
    warnings: dict[str, str] = {}
    if wrong:
        problems["configuration"] = (
            f"the configuration is wrong, so no run begins ({wrong}): mend it, or have site.yml write it again"
        )
    if found.unwritable and config:
        problems["working_dir"] = (
            f"{config.working_dir} cannot be written to ({found.unwritable}): see whether its disk is mounted, "
            "and whose it is"
        )
    told: set[int] = set()
    for disk in sorted(found.disks, key=lambda one: not one.stops):
        if disk.full and disk.number not in told:
            told.add(disk.number)
            (problems if disk.stops else warnings)[f"disk of {disk.path}"] = str(disk)
    if found.unasked:
        warnings["on demand"] = (
            f"nothing new comes on demand ({found.unasked}): systemctl status conda-outside; what is held or cached "
            "installs"
        )
    if found.unknown:
        problems["memory"] = (
            f"what is known of the mirror cannot be read ({found.unknown}): the next sync begins anew, or its log says "
            "why it cannot"
        )
    if found.status and config:
        for about in (_runs, _indexes, _subdirs, _cache):
            for word, text, is_problem in about(config, found, found.status):
                (problems if is_problem else warnings)[word] = text
    return Health(problems, warnings)


Said = Iterator[tuple[str, str, bool]]


def _runs(config: Config, found: Found, status: Mapping[str, Any]) -> Said:
    """Yield what there is to say of the last runs: a word, a sentence, and whether it is a problem."""
    kinds = (("run", "sync", found.sync), ("indexes", "refresh of the indexes", found.refresh))
    for key, name, holder in kinds[: 2 if config.on_demand else 1]:
        last = status[key] or {}
        code = last.get("code")
        if last.get("result") == RUNNING and not holder:
            yield (
                f"{key} died",
                f"the last {name} ended without a word, after {_time(last['began'])}: it was killed, or the machine "
                "went down; the next one goes on",
                False,
            )
        elif last.get("result") == FAILED and code is not None and code != exits.UNREACHABLE and code < SIGNALS:
            yield (
                f"{key} failed",
                f"the last {name} failed at {_time(last['ended'])}, exit code {code} ({last['error']}): see its log, "
                "and run it again",
                True,
            )
    limit = config.health.sync_hours * HOUR
    if not limit or not any(told["hold"] != NONE for told in status["subdirs"].values()):
        return
    last = status["run"]
    ended = last["ended"] if last["result"] in (IN_SYNC, INCOMPLETE) else None
    good = max(last["last_success"] or 0.0, ended or 0.0)
    if found.sync:
        process, began = found.sync
        if found.now - began > limit:
            yield (
                "long sync",
                f"a sync or verify has gone on since {_time(began)} (process {process}), and keeps the next one from "
                "beginning: see its log whether it goes on",
                False,
            )
    elif found.now - max(good, found.since) > limit:
        when = f"since {_time(good)}" if good else "yet"
        why = f" (the last one: {last['error']})" if last["error"] else ""
        yield "sync overdue", f"no sync has ended well {when}{why}: see whether cron runs it, and its log", True


def _indexes(config: Config, found: Found, status: Mapping[str, Any]) -> Said:
    """Yield what there is to say of the age of the indexes; see `_runs`."""
    limit = config.health.index_minutes * 60 * INTERVALS if config.on_demand else config.health.sync_hours * HOUR
    # Without on demand, a sync of days asks for each index once.
    if not limit or (found.sync and not config.on_demand):
        return
    # A run that reached no upstream has asked all the same, and says so of each subdir.
    tried = max((status[key] or {}).get(when) or 0.0 for key in ("run", "indexes") for when in ("began", "ended"))
    asked = {
        path: max(told["last_check"] or 0.0, tried if told["failures"] else 0.0)
        for path, told in status["subdirs"].items()
    }
    old = [path for path, when in asked.items() if found.now - max(when, found.since) > limit]
    if old:
        oldest = min(old, key=lambda path: asked[path])
        since = f"since {_time(asked[oldest])}" if asked[oldest] else "yet"
        more = f" ({len(old)} of {len(asked)} indexes are too old)" if len(old) > 1 else ""
        what = "the refresh of the indexes" if config.on_demand else "the sync"
        text = f"the upstream was not asked for the index of {oldest} {since}{more}"
        yield "old indexes", f"{text}: see whether cron runs {what}, and its log", True


def _subdirs(config: Config, found: Found, status: Mapping[str, Any]) -> Said:
    """Yield what there is to say of each subdir, and of each folder of installers; see `_runs`."""
    for path, told in (*status["subdirs"].items(), *status["installers"].items()):
        if failures := told["failures"]:
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            # Most begin with it.
            name = "" if failures[0].startswith(path) else f"{path}: "
            yield f"failures of {path}", f"{name}{failures[0]}{more}; what is held or cached installs", False
    none = [
        path
        for path, told in status["subdirs"].items()
        if not told["published"] and not told["last_check"] and not told["failures"]
    ]
    if none:
        more = f" and {len(none) - NAMED} more" if len(none) > NAMED else ""
        first = "refresh" if config.on_demand else "sync"
        yield "no index", f"no index yet of {', '.join(none[:NAMED])}{more}: it comes with the first {first}", False


def _cache(config: Config, found: Found, status: Mapping[str, Any]) -> Said:
    """Yield what there is to say of the web server's cache, where a report of it is there; see `_runs`."""
    cache = status.get("cache")
    if not config.on_demand or not cache:
        return
    wrong = [one for one in cache.get("wrong", []) if found.now - one["at"] < DAY]
    if wrong:
        last = max(wrong, key=lambda one: float(one["at"]))
        source = f", from {last['upstream']}" if last.get("upstream") else ""
        yield (
            "wrong packages",
            f"{len(wrong)} wrong packages were taken out of the cache since yesterday, the last: {last['path']} "
            f"({last['why']}{source}); clients refuse such a package, and the next request fetches it again",
            False,
        )
    if cache.get("problem"):
        yield "cache", f"the cache of what came on demand is not checked: {cache['problem']}", False
    elif found.now - cache.get("written", found.now) > CACHE_SECONDS:
        yield (
            "cache",
            f"nobody checks what came on demand since {_time(cache['written'])}: systemctl status conda-cache",
            False,
        )


def changes(before: Health | None, after: Health) -> Iterator[tuple[int, str]]:
    """Yield what is new or over, with syslog's priority."""
    old = {**before.problems, **before.warnings} if before else {}
    new = {**after.problems, **after.warnings}
    for word in new.keys() - old.keys():
        yield (3 if word in after.problems else 4), new[word]
    for word in old.keys() - new.keys():
        yield 5, f"{word}: well again"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
