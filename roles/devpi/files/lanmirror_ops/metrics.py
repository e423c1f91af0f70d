"""Figures for Prometheus, in its text format 0.0.4."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from .disks import Measured
from .health import Place
from .served import FILE, PAGE, RESULTS

Samples = list[tuple[str, float | None]]
PREFIX = "lanmirror_pypi"


def metrics(
    numbers: Mapping[str, float],
    now: Mapping[str, float],
    upstreams: Mapping[str, bool],
    measured: Sequence[Measured],
    places: Sequence[Place] = (),
) -> str:
    """Return everything.

    Args:
        numbers: From the database.
        now: What was just measured.
        upstreams: Whether each answers, by index.
        measured: The disks.
        places: Those of the indexes that have several upstreams.
    """

    def labelled(name: str, label: str, values: Iterable[str]) -> Samples:
        return [(f'{{{label}="{value}"}}', numbers.get(f"{name}:{value}", 0)) for value in values]

    def counted(name: str) -> Samples:
        return [("", numbers.get(name, 0))]

    def known(name: str) -> Samples:
        return [("", numbers.get(name, now.get(name)))]

    def of_folders(what: str) -> Samples:
        return [
            (f'{{folder="{one.folder.path}"}}', float(one.free if what == "free" else one.folder.min_free))
            for one in measured
        ]

    def of_places(figure: Callable[[Place], int]) -> Samples:
        return [(f'{{index="{one.index}",url="{one.url}"}}', float(figure(one))) for one in places]

    families: tuple[tuple[str, str, str, Samples], ...] = (
        ("pages_total", "counter", "Pages of projects served.", labelled("pages_total", "result", RESULTS)),
        ("files_total", "counter", "Files served.", labelled("files_total", "result", RESULTS)),
        ("sent_bytes_total", "counter", "Bytes served.", labelled("sent_bytes_total", "kind", (PAGE, FILE))),
        ("evicted_files_total", "counter", "Cached files evicted.", counted("evicted_files_total")),
        ("evicted_bytes_total", "counter", "Bytes of them.", counted("evicted_bytes_total")),
        (
            "last_eviction_timestamp_seconds",
            "gauge",
            "When a file was evicted last.",
            known("last_eviction_timestamp_seconds"),
        ),
        ("cached_bytes", "gauge", "Size of the cached files of mirrors.", known("cached_bytes")),
        ("cached_files", "gauge", "Cached files of mirrors.", known("cached_files")),
        ("cached_limit_bytes", "gauge", "Their limit; 0 for none.", known("cached_limit_bytes")),
        ("uploaded_bytes", "gauge", "Size of uploaded files.", known("uploaded_bytes")),
        ("weighed_timestamp_seconds", "gauge", "When these sizes were measured.", known("weighed_timestamp_seconds")),
        ("disk_bytes", "gauge", "Size of devpi's file system.", known("disk_bytes")),
        ("disk_free_bytes", "gauge", "What is free on it.", known("disk_free_bytes")),
        ("disk_min_free_bytes", "gauge", "What should be free on it.", known("disk_min_free_bytes")),
        ("folder_free_bytes", "gauge", "What is free where the cache writes.", of_folders("free")),
        ("folder_min_free_bytes", "gauge", "What should be free there.", of_folders("min_free")),
        ("devpi_up", "gauge", "1 if devpi answers.", known("devpi_up")),
        ("healthy", "gauge", "1 if /health says ok.", known("healthy")),
        (
            "database_sound",
            "gauge",
            "1 if the last check of devpi's database found no damage.",
            known("database_sound"),
        ),
        (
            "database_checked_timestamp_seconds",
            "gauge",
            "When that was.",
            known("database_checked_timestamp_seconds"),
        ),
        ("malware_entries", "gauge", "Advisories in the list of known malware.", known("malware_entries")),
        ("malware_projects", "gauge", "Projects that it names.", known("malware_projects")),
        (
            "malware_read_timestamp_seconds",
            "gauge",
            "When it was read, or found unchanged.",
            known("malware_read_timestamp_seconds"),
        ),
        (
            "upstream_up",
            "gauge",
            "1 if the upstream of the mirror answered devpi the last time.",
            [(f'{{index="{index}"}}', float(up)) for index, up in sorted(upstreams.items())],
        ),
        (
            "place_up",
            "gauge",
            "1 if this one of several places gave devpi something of use the last time.",
            of_places(lambda one: not one.why),
        ),
        (
            "place_wrong_total",
            "counter",
            "What a place gave that was wrong, and was refused, since the start of devpi.",
            of_places(lambda one: one.count),
        ),
        ("checked_timestamp_seconds", "gauge", "When this was written.", known("checked_timestamp_seconds")),
    )
    lines = []
    for name, kind, meaning, samples in families:
        told = [f"{PREFIX}_{name}{labels} {value:.17g}" for labels, value in samples if value is not None]
        if told:
            lines += [f"# HELP {PREFIX}_{name} {meaning}", f"# TYPE {PREFIX}_{name} {kind}", *told]
    return "\n".join(lines) + "\n"
