"""The watchdog: looks again and again, writes what Nginx answers at /health, and the metrics."""

from __future__ import annotations

import sqlite3
import time

from .asking import silence
from .files import write
from .health import Devpi, Health, changes, look, look_at_devpi, places, upstreams
from .journal import ERROR, alive, tell
from .known import Known
from .metrics import metrics
from .settings import Settings

INTERVAL = 5.0
# How often devpi is asked for more than whether it is there, seconds.
DEVPI_INTERVAL = 60.0


def watch(settings: Settings) -> None:
    """Look for ever."""
    known: Known | None = None
    before: Health | None = None
    devpi = Devpi()
    complaint, due = "", 0.0
    while True:
        silent = silence(settings.url)
        if not silent and time.monotonic() >= due:
            devpi = look_at_devpi(settings)
            # What is wrong is looked at each time, so that it is over as soon as it is.
            due = time.monotonic() + (0 if devpi.page or devpi.primary else DEVPI_INTERVAL)
        health, now, measured = look(settings, silent, devpi)
        for priority, text in changes(before, health):
            tell(priority, text)
        before = health
        # Where that is kept may be full or read-only; how it is can be told all the same.
        try:
            known = known or Known(settings.state)
            known.read_log(settings.log)
            if settings.metrics:
                answers = {
                    index: not why
                    for index, (_, why) in upstreams(settings.upstreams).items()
                    if devpi.indexes is None or index in devpi.indexes
                }
                of_lists = [place for place in places(settings.upstreams) if place.index in answers]
                write(settings.metrics, metrics(known.numbers(), now, answers, measured, of_lists), 0o644)
        except (OSError, sqlite3.Error) as error:
            if str(error) != complaint:
                tell(ERROR, f"cannot count what is served, or write the metrics: {error}")
            complaint = str(error)
        else:
            complaint = ""
        alive()
        time.sleep(INTERVAL)
