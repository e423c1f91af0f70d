"""What the mirror tells of itself: `status.json`, `mirrorz.json` (format 1.7), and metrics for Prometheus.

Sources: the README of mirrorz-org/mirrorz, "Data Format v1.7"; the Prometheus text format 0.0.4, as node_exporter's
textfile collector reads it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lanmirror_sync import __version__, exits, kept, listing
from lanmirror_sync.answers import UnreachableError
from lanmirror_sync.config import ALL, NONE, Config
from lanmirror_sync.memory import Memory
from lanmirror_sync.mirror import Mirror
from lanmirror_sync.report import Report, discreet, in_words
from lanmirror_sync.signals import EndedError
from lanmirror_sync.store import NoRoomError, Store

# Of the keys of status.json: a reader may rely on those it knows as long as this stays.
FORMAT = 1
# What is remembered of the last run over everything, over a part, of the indexes, and of the last `verify`.
RUN, PART, INDEXES, VERIFY = "run", "part", "indexes", "verified"
# And of the last sync of installers: the failures by folder.
INSTALLERS = "installers"
RUNNING, IN_SYNC, INCOMPLETE, FAILED = "running", "in sync", "incomplete", "failed"
VERIFIED = "verified"
# What is told of a run before there was one.
NEVER: Mapping[str, Any] = {
    "result": "none yet", "began": None, "ended": None, "only": "*", "last_success": None, "error": "", "code": None,
    "fetched_files": 0, "fetched_bytes": 0, "promoted_files": 0, "promoted_bytes": 0, "deleted_files": 0, "failures": 0,
}  # fmt: skip
EVERYTHING = "*"
UNITS = "BKMGTP"
UNIT = 1024

log = logging.getLogger(__name__)


def result_of(report: Report) -> str:
    """Return how a run ended that came to its end."""
    return FAILED if report.crashes else INCOMPLETE if report.failed else IN_SYNC


@contextlib.contextmanager
def told(
    mirror: Mirror,
    report: Report,
    began: float,
    only: str,
    counts: Mapping[str, int] | None = None,
    *,
    indexes: bool = False,
) -> Iterator[None]:
    """Tell the outside that a run is under way, and then how it ended, whatever ends it.

    Args:
        mirror: of which.
        report: what it does.
        began: Unix time, seconds.
        only: the paths that it works on. Where these are not all, it speaks for itself alone.
        counts: what a `verify` found; None for a sync.
        indexes: whether it refreshes the indexes alone.
    """
    kind = VERIFY if counts is not None else INDEXES if indexes else RUN if only == EVERYTHING else PART
    _tell(mirror, kind, report, {"result": RUNNING, "began": began, "only": only, "error": "", "code": None}, counts)
    end: dict[str, Any] = {"result": FAILED}
    try:
        yield
        error = f"a fault of the program: {report.crashes[0]!r}" if report.crashes else ""
        end = {"result": result_of(report), "error": error, "code": exits.of(report)}
    except BaseException as trouble:
        end |= {"error": _in_words(trouble), "code": exits.of_error(trouble)}
        raise
    finally:
        end["error"] = discreet(end["error"])
        _tell(mirror, kind, report, {"began": began, "only": only, **end}, counts)


def _in_words(trouble: BaseException) -> str:
    if isinstance(trouble, OSError):
        return in_words(trouble)
    said = isinstance(trouble, NoRoomError | UnreachableError | EndedError)
    return str(trouble) if said else f"a fault of the program: {trouble!r}"


def _tell(mirror: Mirror, kind: str, report: Report, run: dict[str, Any], counts: Mapping[str, int] | None) -> None:
    """Write everything, and remember the run; what cannot be written is logged and does no harm."""
    try:
        # Of two runs at once, none writes what the other has changed since.
        with mirror.store.alone("status"):
            _write(mirror, kind, report, run, counts)
    except OSError as error:
        log.warning("the status cannot be written: %s", in_words(error))


def _write(mirror: Mirror, kind: str, report: Report, run: dict[str, Any], counts: Mapping[str, int] | None) -> None:
    config, store, memory, now = mirror.config, mirror.store, mirror.memory, time.time()
    whole = memory.fact(RUN)
    run["ended"] = None if run["result"] == RUNNING else now
    if counts is not None:
        run |= {**counts, "problems": report.failed}
        run["result"] = VERIFIED if run["result"] == IN_SYNC else run["result"]
    else:
        run |= {"fetched_files": report.fetched, "fetched_bytes": report.received,
                "promoted_files": report.promoted, "promoted_bytes": report.promoted_bytes,
                "deleted_files": report.deleted, "failures": report.failed}  # fmt: skip
    if kind == RUN:
        run["last_success"] = now if run["result"] == IN_SYNC else whole.get("last_success")
    elif kind != INDEXES and run["result"] not in (RUNNING, IN_SYNC, VERIFIED) and whole.get("result") == IN_SYNC:
        # What was in sync is not any more; but what is in sync now says nothing about the rest.
        what = "verify" if kind == VERIFY else f"a later run over {run['only']}"
        whole |= {"result": INCOMPLETE, "error": f"{what} left failures"}
        memory.note(RUN, whole)
    memory.note(kind, run)
    # A refresh looks at the pages of what comes on demand alone, and has nothing to say of them at its beginning.
    looked = config.folders if kind != INDEXES else config.listed if run["result"] != RUNNING else ()
    told = {folder: found for folder, found in memory.fact(INSTALLERS).items() if folder not in looked}
    memory.note(INSTALLERS, told | {path: report.failures[path] for path in looked if path in report.failures})
    memory.commit(store.flush_all)
    _publish(mirror, durable=True)


def refresh(config: Config, store: Store) -> None:
    """Write everything anew, with the figures of now; a run that is just writing has it so already.

    Raises:
        OSError: from the memory file, or where it is written.
    """
    # It is read behind the lock, or what a run has written since would be taken back.
    with (
        contextlib.suppress(BlockingIOError),
        store.alone("status", wait=False),
        Memory(store.memory_file, facts_alone=True) as memory,
    ):
        _publish(Mirror(config, store, memory), durable=False)


def _publish(mirror: Mirror, *, durable: bool) -> None:
    config, store = mirror.config, mirror.store
    status = gather(mirror)
    store.write_file(store.public / "status.json", _json(status), durable=durable)
    store.write_file(store.public / "mirrorz.json", _json(mirrorz(config, status)), durable=durable)
    if config.metrics_file:
        # The collector reads every *.prom file: the name it is written under must not end so.
        beside = config.metrics_file.with_name(f".{config.metrics_file.name}.new")
        beside.write_text(metrics(status), encoding="utf-8")
        beside.chmod(0o644)
        beside.replace(config.metrics_file)


def gather(mirror: Mirror) -> dict[str, Any]:
    """Return `status.json`. Times are Unix time in seconds, sizes bytes; null where there is nothing to tell."""
    config, store, memory = mirror.config, mirror.store, mirror.memory
    subdirs, unfetched = {}, memory.fact(INSTALLERS)
    for subdir in config.subdirs():
        standing = memory.standing(subdir.path)
        subdirs[str(subdir.path)] = {
            "upstream": discreet(standing.url or subdir.index_urls[0]),
            "revision": standing.etag or standing.last_modified or standing.sha256 or None,
            "last_modified": standing.last_modified or None,
            "last_check": standing.checked,
            "last_success": standing.succeeded,
            "published": standing.published,
            "hold": subdir.hold,
            "named": standing.named or standing.held or 0,
            "held": standing.held or 0,
            "on_demand": max(standing.named - (standing.held or 0), 0) if standing.on_demand else 0,
            "missing": standing.missing,
            "bytes": standing.size,
            "failures": [*standing.index_failures, *standing.failures],
        }
    installers = {}
    for folder in config.folders:
        sizes = {name: size for name, size, _ in listing.held(mirror, folder)}
        listed = listing.read(store.public, folder) if config.on_demand else None
        installers[folder] = {
            "hold": NONE if folder in config.listed else ALL,
            "held": len(sizes),
            "on_demand": len(listed.named().keys() - sizes.keys()) if listed else 0,
            "bytes": sum(sizes.values()),
            "failures": unfetched.get(folder, []),
        }
    disk = os.statvfs(store.root)
    return {
        "format": FORMAT,
        "version": __version__,
        "written": time.time(),
        "run": {**NEVER, **memory.fact(RUN)},
        "part": memory.fact(PART) or None,
        "indexes": memory.fact(INDEXES) or None,
        "verify": memory.fact(VERIFY) or None,
        "subdirs": subdirs,
        "installers": installers,
        "cache": kept.read(config.cache_report),
        "disk": {"bytes": disk.f_blocks * disk.f_frsize, "free_bytes": disk.f_bavail * disk.f_frsize},
    }


def mirrorz(config: Config, status: Mapping[str, Any]) -> dict[str, Any]:
    """Return `mirrorz.json` in format 1.7; the whole mirror is one entry, as with the public mirrors."""
    run, site = status["run"], config.site
    size = sum(part["bytes"] for kind in ("subdirs", "installers") for part in status[kind].values())
    letter = {RUNNING: "Y", IN_SYNC: "S"}.get(run["result"], "F")
    when = run["began"] if letter == "Y" else run["ended"]
    told = f"{letter}{int(when)}" if when else "U"
    if letter != "S" and run["last_success"]:
        told += f"O{int(run['last_success'])}"
    return {
        "version": 1.7,
        "site": {"url": site.url, "abbr": site.abbr, **({"name": site.name} if site.name else {})},
        "info": [],
        "mirrors": [
            {
                "cname": "anaconda",
                "desc": f"Conda packages: {', '.join(_channels(config))}",
                "url": site.path or site.url,
                "status": told,
                "help": "",
                "upstream": discreet(config.repo_indexes[0]),
                "size": human(size),
            }
        ],
    }


def metrics(status: Mapping[str, Any]) -> str:
    """Return the metrics in Prometheus' text format."""
    run, verify = status["run"], status["verify"] or {}
    subdirs = status["subdirs"]

    def each(key: str) -> list[tuple[str, float | None]]:
        return [(f'{{subdir="{path}"}}', told[key]) for path, told in subdirs.items()]

    failures: list[tuple[str, float | None]] = [
        (f'{{subdir="{path}"}}', float(len(told["failures"]))) for path, told in subdirs.items()
    ]
    families: Iterable[tuple[str, str, list[tuple[str, float | None]]]] = (
        ("run_success", "1 if the last run left everything in sync.", [("", float(run["result"] == IN_SYNC))]),
        ("run_end_timestamp_seconds", "When the last run ended.", [("", run["ended"])]),
        ("run_last_success_timestamp_seconds", "When a run last left everything in sync.", [("", run["last_success"])]),
        ("run_fetched_files", "Files that the last run fetched.", [("", run["fetched_files"])]),
        ("run_fetched_bytes", "Bytes that the last run fetched.", [("", run["fetched_bytes"])]),
        ("run_promoted_files", "Files that the last run took from Nginx's cache.", [("", run["promoted_files"])]),
        ("run_promoted_bytes", "Their bytes.", [("", run["promoted_bytes"])]),
        ("run_failures", "What the last run could not do.", [("", run["failures"])]),
        ("verify_success", "1 if the last verify found nothing wrong, or repaired it.",
         [("", float(verify["result"] == VERIFIED))] if verify else []),
        ("verify_end_timestamp_seconds", "When the last verify ended.", [("", verify.get("ended"))]),
        ("verify_problems", "What the last verify found wrong and left so.", [("", verify.get("problems"))]),
        ("packages", "Packages that the served index names and the mirror holds.", each("held")),
        ("packages_on_demand", "Packages that the served index names, and that come on demand.", each("on_demand")),
        ("packages_missing", "Packages that could not be had.", each("missing")),
        ("bytes", "Size of the packages that the mirror holds.", each("bytes")),
        ("failures", "Failures of the last run.", failures),
        ("last_success_timestamp_seconds", "When the subdir was last in sync.", each("last_success")),
        ("last_check_timestamp_seconds", "When the upstream was last asked for the index.", each("last_check")),
        ("indexes_end_timestamp_seconds", "When the last refresh of the indexes ended.",
         [("", (status["indexes"] or {}).get("ended"))]),
        ("written_timestamp_seconds", "When this was written.", [("", status["written"])]),
        ("disk_bytes", "Size of the mirror's file system.", [("", status["disk"]["bytes"])]),
        ("disk_free_bytes", "What is free on it.", [("", status["disk"]["free_bytes"])]),
    )  # fmt: skip
    lines = []
    for name, meaning, samples in (*families, *_cache_families(status["cache"] or {})):
        told = [f"lanmirror_conda_{name}{labels} {value}" for labels, value in samples if value is not None]
        if told:
            lines += [f"# HELP lanmirror_conda_{name} {meaning}", f"# TYPE lanmirror_conda_{name} {_kind(name)}", *told]
    return "\n".join(lines) + "\n"


def _kind(name: str) -> str:
    """Return the type of a metric, by the naming that Prometheus asks for."""
    return "counter" if name.endswith("_total") else "gauge"


def _cache_families(cache: Mapping[str, Any]) -> Iterator[tuple[str, str, list[tuple[str, float | None]]]]:
    """Yield the metrics of the web server's cache on demand; without a report of it, none has a sample."""
    channels = cache.get("channels", {})

    def each(key: str, label: str = "") -> list[tuple[str, float | None]]:
        return [(f'{{channel="{path}"{label}}}', told[key]) for path, told in channels.items()]

    def by(label: str, names: Mapping[str, str]) -> list[tuple[str, float | None]]:
        return [sample for name, key in names.items() for sample in each(key, f',{label}="{name}"')]

    results = {"hit": "hits", "miss": "misses", "stale": "stale", "error": "errors"}
    sources = {source: f"{source}_bytes" for source in kept.SOURCES}
    yield "requests_total", "Packages and indexes that were asked for.", by("result", results)
    yield "sent_bytes_total", "Bytes of them that were sent, by where they came from.", by("source", sources)
    yield "cache_packages", "Packages of which the cache has something.", each("packages")
    yield "cache_bytes", "What they take in the cache.", each("bytes")
    yield "cache_unchecked_packages", "Those that are not whole, or that no index names.", each("unchecked")
    yield (
        "cache_wrong_total",
        "Packages that were wrong, and were taken out of the cache.",
        [("", cache.get("wrong_total"))],
    )
    yield "cache_written_timestamp_seconds", "When the cache was last looked at.", [("", cache.get("written"))]


def human(size: float) -> str:
    """Return a size in bytes as mirrorz wants it, for example `596G`."""
    units = iter(UNITS)
    unit = next(units)
    while size >= UNIT and unit != UNITS[-1]:
        size, unit = size / UNIT, next(units)
    return f"{size:.1f}{unit}"


def _channels(config: Config) -> list[str]:
    return list(dict.fromkeys(str(subdir.channel) for subdir in config.subdirs()))


def _json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False, indent=1).encode()
