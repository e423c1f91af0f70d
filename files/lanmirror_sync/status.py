"""What the mirror tells of itself: `status.json`, `mirrorz.json` (format 1.7), and metrics for Prometheus.

Sources: the README of mirrorz-org/mirrorz, "Data Format v1.7"; the Prometheus text format 0.0.4, as node_exporter's
textfile collector reads it.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from lanmirror_sync import __version__
from lanmirror_sync.config import Config
from lanmirror_sync.memory import FACT, Memory
from lanmirror_sync.report import Report, discreet
from lanmirror_sync.store import Store

# Of the keys of status.json: a reader may rely on those it knows as long as this stays.
FORMAT = 1
RUN = "run"
RUNNING, IN_SYNC, INCOMPLETE, FAILED = "running", "in sync", "incomplete", "failed"
UNITS = "BKMGTP"
UNIT = 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run stands.

    Attributes:
        result: `RUNNING`, `IN_SYNC`, `INCOMPLETE` or `FAILED`.
        began: Unix time, seconds.
        error: why it failed.
    """

    result: str
    began: float
    report: Report
    error: str = ""


def write(config: Config, store: Store, memory: Memory, outcome: Outcome) -> None:
    """Write everything, and remember the run; what cannot be written is logged and does no harm."""
    now = time.time()
    former = memory.fact(RUN)
    run = {
        "result": outcome.result,
        "began": outcome.began,
        "ended": None if outcome.result == RUNNING else now,
        "last_success": now if outcome.result == IN_SYNC else former.get("last_success"),
        "error": discreet(outcome.error),
        "fetched_files": outcome.report.fetched,
        "fetched_bytes": outcome.report.received,
        "deleted_files": outcome.report.deleted,
        "failures": outcome.report.failed,
    }
    try:
        memory.note(RUN, run)
        memory.commit(store.flush_all)
        status = gather(config, store, memory, outcome.report, run)
        store.write_file(store.public / "status.json", _json(status))
        store.write_file(store.public / "mirrorz.json", _json(mirrorz(config, status)))
        if config.metrics_file:
            # The collector reads every *.prom file: the name it is written under must not end so.
            beside = config.metrics_file.with_name(f".{config.metrics_file.name}.new")
            beside.write_text(metrics(status), encoding="utf-8")
            beside.chmod(0o644)
            beside.replace(config.metrics_file)
    except OSError as error:
        log.warning("%s: the status cannot be written: %s", error.filename or store.public, error.strerror)


def gather(config: Config, store: Store, memory: Memory, report: Report, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return `status.json`. Times are Unix time in seconds, sizes bytes; null where there is nothing to tell."""
    subdirs = {}
    for subdir in config.subdirs():
        fact = memory.fact(f"{FACT}{subdir.path}")
        subdirs[str(subdir.path)] = {
            "upstream": discreet(fact.get("url") or subdir.index_urls[0]),
            "revision": fact.get("etag") or fact.get("last_modified") or fact.get("sha256"),
            "last_modified": fact.get("last_modified"),
            "last_check": fact.get("checked"),
            "last_success": fact.get("succeeded"),
            "published": fact.get("published"),
            "held": fact.get("held", 0),
            "missing": fact.get("missing", 0),
            "bytes": fact.get("bytes", 0),
            "failures": fact.get("failures", []),
        }
    installers = {}
    for dist in config.dists:
        sizes = [size for _, size, _ in store.files(PurePosixPath(dist))]
        installers[dist] = {"held": len(sizes), "bytes": sum(sizes), "failures": report.failures.get(dist, [])}
    disk = os.statvfs(store.root)
    return {
        "format": FORMAT,
        "version": __version__,
        "written": time.time(),
        "run": dict(run),
        "subdirs": subdirs,
        "installers": installers,
        "disk": {"bytes": disk.f_blocks * disk.f_frsize, "free_bytes": disk.f_bavail * disk.f_frsize},
    }


def mirrorz(config: Config, status: Mapping[str, Any]) -> dict[str, Any]:
    """Return `mirrorz.json` in format 1.7; the whole mirror is one entry, as with the public mirrors."""
    run, site = status["run"], config.site
    size = sum(part["bytes"] for kind in ("subdirs", "installers") for part in status[kind].values())
    letter = {RUNNING: "Y", IN_SYNC: "S"}.get(run["result"], "F")
    told = f"{letter}{int(run['began'] if letter == 'Y' else run['ended'])}"
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
    run = status["run"]
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
        ("run_failures", "What the last run could not do.", [("", run["failures"])]),
        ("packages", "Packages that the served index names.", each("held")),
        ("packages_missing", "Packages that could not be had.", each("missing")),
        ("bytes", "Size of the packages that the served index names.", each("bytes")),
        ("failures", "Failures of the last run.", failures),
        ("last_success_timestamp_seconds", "When the subdir was last in sync.", each("last_success")),
        ("disk_bytes", "Size of the mirror's file system.", [("", status["disk"]["bytes"])]),
        ("disk_free_bytes", "What is free on it.", [("", status["disk"]["free_bytes"])]),
    )
    lines = []
    for name, meaning, samples in families:
        told = [f"lanmirror_conda_{name}{labels} {value}" for labels, value in samples if value is not None]
        if told:
            lines += [f"# HELP lanmirror_conda_{name} {meaning}", f"# TYPE lanmirror_conda_{name} gauge", *told]
    return "\n".join(lines) + "\n"


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
