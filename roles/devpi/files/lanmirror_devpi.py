"""Run devpi-server with little patience for an upstream where devpi has an answer already.

devpi asks its upstream when a page it has is older than `mirror_cache_expiry`, and waits for it: when the upstream
drops packets, for five seconds, for each project, each time. That hits most those who use a private index on top of
a mirror, whose pages Nginx must not keep. With this, one request in PAUSE seconds waits for PATIENCE seconds; the
others get what is known at once, and devpi goes on reading in the background, as it does by itself.

It also sets an end to that: what the upstream has not confirmed for LANMIRROR_MAX_STALE seconds is an error. devpi
forgets at a restart when that was, so the time counts from there at the earliest.

On a replica it brings only such files over as the primary has. devpi queues each link of each page, and goes through
the links of the whole project for each: two dozen projects are 18,000 entries, behind which the files wait for hours.

Made for the pinned version of devpi-server; the names it builds on are looked up at the start, which fails if one is
gone.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from devpi_server import main, mirror, replica  # type: ignore[import-not-found]  # it is in the venv that runs this

PATIENCE = 1.0
PAUSE = 30.0
MAX_STALE = float(os.environ["LANMIRROR_MAX_STALE"])
STARTED = time.monotonic()

ask = mirror.MirrorStage.get_simplelinks_perstage
load = mirror.MirrorStage._load_cache_links

on_import_file = replica.FileReplicationSharedData.on_import_file

silent_since: dict[str, float] = {}


def get_simplelinks_perstage(stage: Any, project: Any) -> Any:
    """Return the links of a project, as the method of devpi's that it takes the place of."""
    project = mirror.normalize_name(project)
    expired, links, *_ = load(stage, project)
    # A replica's own threads set `offline`: nobody is to be asked for them.
    if links is None or not expired or stage.offline:
        return ask(stage, project)
    before = time.monotonic()
    if before - silent_since.get(stage.name, -PAUSE) < PAUSE:
        answer = stage.SimpleLinks(links, core_metadata=stage.provides_core_metadata, stale=True)
    else:
        patience, stage.timeout = stage.timeout, min(stage.timeout, PATIENCE)
        try:
            answer = ask(stage, project)
        finally:
            stage.timeout = patience
        if time.monotonic() - before >= min(patience, PATIENCE):
            silent_since[stage.name] = time.monotonic()
    unconfirmed = stage.cache_retrieve_times.is_expired(project, MAX_STALE)
    if unconfirmed and time.monotonic() - STARTED > MAX_STALE:
        raise stage.UpstreamError(f"the upstream has not confirmed the page of {project!r} for {MAX_STALE:.0f} seconds")
    return answer


def import_file(data: Any, keyfs: Any, serial: int, key: Any, *change: Any) -> None:
    """Queue a file that the primary has, or that it has deleted, as the method of devpi's that it takes the place of.

    devpi itself does the same for what it finds at its start (replica.InitialQueueThread).
    """
    value = change[0]
    if value is None or value.get("last_modified"):
        on_import_file(data, keyfs, serial, key, *change)


replica.FileReplicationSharedData.on_import_file = import_file
mirror.MirrorStage.get_simplelinks_perstage = get_simplelinks_perstage

if __name__ == "__main__":
    sys.exit(main.main())
