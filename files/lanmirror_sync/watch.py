"""The watchdog: looks again and again, writes how the mirror is, and what the mirror tells of itself.

It asks no upstream. What it writes for the web server is `ok.json` or `failing.json`; see `health`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lanmirror_sync import health, status, systemd
from lanmirror_sync.config import Config, ConfigError
from lanmirror_sync.health import GIB, Disk, Found, Health
from lanmirror_sync.memory import Memory
from lanmirror_sync.mirror import Mirror
from lanmirror_sync.report import in_words
from lanmirror_sync.signals import EndedError
from lanmirror_sync.store import INDEXES, PACKAGES, WATCH, Store

# Seconds between two looks, and between two writings of status.json and the like.
INTERVAL = 5.0
STATUS_INTERVAL = 60.0

log = logging.getLogger(__name__)


def watch(file: Path, load: Callable[[], Config], public: Path) -> None:
    """Look until the process is asked to end.

    Args:
        file: the configuration.
        load: reads it; raises ConfigError.
        public: the folder for the web server.
    """
    with contextlib.suppress(EndedError):
        _watch(_Settings(file, load), public)


def _watch(settings: _Settings, public: Path) -> None:
    before: Health | None = None
    complaint, due = "", 0.0
    while True:
        config, wrong = settings.now()
        found = look(config, settings.changed) if config else Found(time.time(), 0.0, None)
        now = health.judge(config, wrong, found)
        publish(now, public, found.now)
        for priority, text in health.changes(before, now):
            # sd-daemon(3): the priority stands before the line.
            print(f"<{priority}>{text}", file=sys.stderr, flush=True)
        before = now
        if config and not found.unwritable and time.monotonic() >= due:
            due = time.monotonic() + STATUS_INTERVAL
            try:
                status.refresh(config, Store(config.working_dir, WATCH))
                complaint = ""
            except OSError as error:
                if in_words(error) != complaint:
                    log.warning("the status cannot be written: %s", in_words(error))
                complaint = in_words(error)
        systemd.alive()
        time.sleep(INTERVAL)


@dataclass
class _Settings:
    """The configuration as it is now, which somebody may change, or spoil.

    Attributes:
        changed: when it was changed last, Unix time, seconds.
    """

    file: Path
    load: Callable[[], Config]
    changed: float = 0.0
    _config: Config | None = None
    _wrong: str = ""
    _stamp: tuple[int, ...] = field(default=(-1,))

    def now(self) -> tuple[Config | None, str]:
        """Return the last one that was right, and why that of now is not."""
        stamp: tuple[int, ...] = ()
        with contextlib.suppress(OSError):
            there = self.file.stat()
            stamp = there.st_mtime_ns, there.st_size, there.st_ino
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._config, self._wrong = self.load(), ""
                self.changed = self.file.stat().st_mtime
            except (ConfigError, OSError) as error:
                self._wrong = str(error)
        return self._config, self._wrong


def look(config: Config, changed: float) -> Found:
    """Look at everything once.

    Args:
        config: of the mirror.
        changed: when that was changed last, Unix time, seconds.
    """
    store, told, unknown = Store(config.working_dir, WATCH), None, ""
    unwritable = why_unwritable(store)
    before = store.holder(PACKAGES), store.holder(INDEXES)
    try:
        with Memory(store.memory_file, facts_alone=True) as memory:
            told = status.gather(Mirror(config, store, memory))
    except OSError as error:
        # Without its folder there is nothing to read, and that is said.
        unknown = "" if unwritable else in_words(error)
    # A run may have begun or ended while that was read.
    after = store.holder(PACKAGES), store.holder(INDEXES)
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return Found(
        now=time.time(),
        since=max(booted, changed),
        status=told,
        unknown=unknown,
        unwritable=unwritable,
        disks=disks(config),
        unasked=why_unasked(config),
        sync=before[0] or after[0],
        refresh=before[1] or after[1],
    )


def why_unwritable(store: Store) -> str:
    """Return why the working directory cannot be written to; "" where it can. Makes the folders of the state."""
    if not store.root.is_dir():
        return "it is not there"
    try:
        store.create()
        with tempfile.TemporaryFile(dir=store.state, buffering=0) as file:
            file.write(bytes(4096))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def why_unasked(config: Config) -> str:
    """Return why the upstreams are not asked for the web server; "" where they are, or nothing comes on demand."""
    path = config.health.upstreams_socket
    if not config.on_demand or not path:
        return ""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(INTERVAL)
        try:
            connection.connect(str(path))
        except OSError as error:
            return f"{path}: {error.strerror or error}"
    return ""


def disks(config: Config) -> list[Disk]:
    """Measure the disks; one that cannot be looked at is left out."""
    want = config.min_free_gib * GIB
    cost = "no sync begins; make room there, or set min_free_gib if that is enough"
    wanted = [(config.working_dir, want, cost, True)]
    if config.on_demand and config.health.cache_dir:
        # The web server itself keeps min_free_gib free, about: who takes more is somebody else.
        cost = "little that comes on demand is kept; make room there, or set conda_mirror_cache_dir for another disk"
        wanted.append((config.health.cache_dir, want / 2, cost, False))
    found = []
    for path, least, cost, stops in wanted:
        try:
            disk, number = os.statvfs(path), path.stat().st_dev
        except OSError:
            continue
        inodes = disk.f_favail if disk.f_files else None
        found.append(Disk(path, number, disk.f_bavail * disk.f_frsize, inodes, least, cost, stops))
    return found


def publish(now: Health, public: Path, at: float) -> None:
    """Write the answer: ok.json or, where that is missing, failing.json."""
    name, other = ("failing.json", "ok.json") if now.problems else ("ok.json", "failing.json")
    new = public / f".{name}.new"
    new.write_bytes(now.told(at))
    new.chmod(0o644)
    new.replace(public / name)
    (public / other).unlink(missing_ok=True)
