"""Look after a devpi server: say how it is, count what Nginx serves, keep the cached files within their limit.

    lanmirror_devpi_watch.py watch CONFIG    run by devpi-watch.service, for ever
    lanmirror_devpi_watch.py evict CONFIG    run by devpi-evict.timer, once

`watch` writes what Nginx answers at /health and the metrics for Prometheus. `evict` weighs what is stored, and deletes
cached files of mirrors, those first that nobody has asked for the longest, until they are within the limit. devpi (read
at the pinned version: `views._pkgserv`, `views.iter_cache_remote_file`) fetches a mirror's file that is gone again from
the URL it remembers, checks its hash, and puts it back in place; what was uploaded could not be had again, and is
never touched. Neither are files below `+e/`: their upstream tells no hash, so devpi would refuse one that has changed.

What was asked for when is read from a log of Nginx', which sends stored files without devpi. The times of access that
file systems keep are no measure: they stand still with noatime, move once a day with relatime, and a backup moves them
all. What is known is in one SQLite database, written in transactions: however this ends, no line of the log is counted
twice or forgotten, through rotation as well.

Runs on the Python of the distribution (3.11 or newer), on its standard library alone.
"""

from __future__ import annotations

import configparser
import contextlib
import http.client
import json
import os
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

INTERVAL = 5.0
GIB = 1 << 30

# What a page's or file's answer was. `stale`: older than a minute, because a newer one was just being asked for, or
# because devpi or the upstream could not be asked.
RESULTS = ("hit", "miss", "stale", "error")
PAGE, FILE = "page", "file"
FIELDS = 6

SCHEMA = """
CREATE TABLE IF NOT EXISTS read (inode INTEGER PRIMARY KEY, offset INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS used (path TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Config:
    """Where everything is, and the limits.

    Attributes:
        url: Of devpi itself.
        data: devpi's server directory.
        log: What Nginx writes in the format of devpi-http.conf.
        state: The database of what is known.
        public: What Nginx gives out: ok.json or failing.json.
        upstreams: Where devpi writes which upstreams answer.
        metrics: File for node_exporter's textfile collector; None for none.
        max_cached: Limit of cached files, bytes; 0 for none.
        min_free: Free space of devpi's file system below which it is said to be nearly full, bytes.
        grace: Files written in so many seconds before now are not evicted.
    """

    url: str
    data: Path
    log: Path
    state: Path
    public: Path
    upstreams: Path
    metrics: Path | None
    max_cached: int
    min_free: int
    grace: float

    @classmethod
    def read(cls, path: Path) -> Config:
        """Read the section `watch` of an INI file; KeyError or ValueError where it is not as the role writes it."""
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_string(path.read_text(encoding="utf-8"))
        given = parser["watch"]
        return cls(
            url=given["url"],
            data=Path(given["data"]),
            log=Path(given["log"]),
            state=Path(given["state"]),
            public=Path(given["public"]),
            upstreams=Path(given["upstreams"]),
            metrics=Path(given["metrics"]) if given["metrics"] else None,
            max_cached=int(float(given["max_cached_gib"]) * GIB),
            min_free=int(float(given["min_free_gib"]) * GIB),
            grace=float(given["grace"]),
        )


# ---- what Nginx has served -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """One line of the log."""

    at: float
    status: int
    sent: int
    near: str
    kept: str
    subject: str

    @classmethod
    def of(cls, line: str) -> Served | None:
        """Return what a line says, or None for one that was cut short or is none of ours."""
        parts = line.rstrip("\n").split("\t")
        if len(parts) != FIELDS or not line.endswith("\n"):
            return None
        try:
            return cls(float(parts[0]), int(parts[1]), int(parts[2]), *parts[3:])
        except ValueError:
            return None

    @property
    def kind(self) -> str:
        """Whether it was a project's page or a file."""
        return PAGE if self.subject == PAGE else FILE

    @property
    def result(self) -> str:
        """One of RESULTS. A page that does not exist is an answer like any other.

        Source: $upstream_cache_status in the documentation of ngx_http_upstream_module.
        """
        if self.status >= http.client.INTERNAL_SERVER_ERROR or self.status in {
            http.client.FAILED_DEPENDENCY,
            http.client.TOO_MANY_REQUESTS,
        }:
            return "error"
        if self.kind == FILE:
            # What is stored never goes through a cache.
            return "hit" if self.near in {"-", "", "HIT"} else "miss"
        if self.kept in {"STALE", "UPDATING"}:
            return "stale"
        return "hit" if self.near in {"HIT", "UPDATING"} or self.kept in {"HIT", "REVALIDATED"} else "miss"


def tally(lines: Iterable[str]) -> tuple[Counter[str], dict[str, float]]:
    """Return the counts of some lines by name, and when each file in them was asked for last."""
    counts: Counter[str] = Counter()
    used: dict[str, float] = {}
    for line in lines:
        served = Served.of(line)
        if served is None:
            continue
        counts[f"{served.kind}s_total:{served.result}"] += 1
        counts[f"sent_bytes_total:{served.kind}"] += served.sent
        if served.kind == FILE and served.status < http.client.BAD_REQUEST:
            path = served.subject.lstrip("/").removesuffix(".metadata")
            used[path] = max(used.get(path, 0.0), served.at)
    return counts, used


# ---- what is known -------------------------------------------------------------------------------------------


class State:
    """The database of what is known."""

    def __init__(self, path: Path) -> None:
        # Transactions are begun where they are needed.
        self.db = sqlite3.connect(path, timeout=30, isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=NORMAL")
        self.db.executescript(SCHEMA)

    @contextlib.contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """Make several changes or none."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield self.db
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def numbers(self) -> dict[str, float]:
        """Return all numbers by name."""
        return dict(self.db.execute("SELECT name, value FROM numbers"))

    def used(self) -> dict[str, float]:
        """Return when each file was asked for last, in seconds since the epoch."""
        return dict(self.db.execute("SELECT path, at FROM used"))

    def set(self, numbers: Mapping[str, float]) -> None:
        """Replace some numbers."""
        self.db.executemany("REPLACE INTO numbers VALUES (?, ?)", numbers.items())

    def add(self, numbers: Mapping[str, float]) -> None:
        """Add to some numbers."""
        self.db.executemany(
            "INSERT INTO numbers VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            numbers.items(),
        )

    def read_log(self, log: Path) -> None:
        """Count what was added to the log since the last time, in the file before its last rotation as well.

        A file is known by its inode, under whatever name. While Nginx opens its new log, it still writes to the old.
        """
        with self.change() as db:
            known: dict[int, int] = dict(db.execute("SELECT inode, offset FROM read"))
            now: dict[int, int] = {}
            for path in (log.with_name(f"{log.name}.1"), log):
                try:
                    stream = path.open("rb")
                except FileNotFoundError:
                    continue
                with stream:
                    stat = os.fstat(stream.fileno())
                    offset = known.get(stat.st_ino, 0)
                    # Cut short in place: all of it is new.
                    stream.seek(offset if offset <= stat.st_size else 0)
                    counts, used = tally(whole_lines(stream))
                    now[stat.st_ino] = stream.tell()
                self.add(counts)
                db.executemany(
                    "INSERT INTO used VALUES (?, ?) ON CONFLICT (path) DO UPDATE SET at = max(at, excluded.at)",
                    used.items(),
                )
            if now != known:
                db.execute("DELETE FROM read")
                db.executemany("INSERT INTO read VALUES (?, ?)", now.items())


def whole_lines(stream: BinaryIO) -> Iterator[str]:
    """Yield the lines of a file from where it stands, and leave it standing after the last whole one."""
    end = stream.tell()
    for line in iter(stream.readline, b""):
        if not line.endswith(b"\n"):
            break
        end += len(line)
        yield line.decode("utf-8", "replace")
    stream.seek(end)


# ---- the limit of cached files -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A file that devpi has stored; `path` is that of its URL without the first slash."""

    path: str
    size: int
    written: float

    @property
    def checked(self) -> bool:
        """Whether devpi knows its hash from the upstream, and so takes the same bytes again."""
        return "/+f/" in self.path


def plan(
    files: Sequence[Stored], used: Mapping[str, float], *, limit: int, young: float, keep: bytes = b""
) -> list[Stored]:
    """Return the files to evict, in order, so that those of all mirrors together are within the limit.

    Args:
        files: All files of mirrors.
        used: When each was asked for last; one that is not in it counts from when it was written.
        limit: Bytes; 0 for none.
        young: Files written after this time stay.
        keep: Files whose path occurs in it stay: devpi's last change, see `last_change`.
    """
    over = sum(file.size for file in files) - limit
    if not limit:
        return []
    chosen = []
    for file in sorted(files, key=lambda file: (used.get(file.path, file.written), file.path)):
        if over <= 0:
            break
        if file.checked and file.written < young and file.path.encode() not in keep:
            chosen.append(file)
            over -= file.size
    return chosen


def stored(folder: Path, root: Path) -> Iterator[Stored]:
    """Yield the files below a folder; not those that devpi is just writing, which it renames when they are whole."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from stored(Path(entry.path), root)
        elif entry.is_file(follow_symlinks=False) and not entry.name.endswith("-tmp"):
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat(follow_symlinks=False)
                # A restored backup has the old time of writing, and a new time of change.
                written = max(stat.st_mtime, stat.st_ctime)
                yield Stored(os.path.relpath(entry.path, root), stat.st_size, written)


def last_change(data: Path) -> bytes:
    """Return devpi's last change as it stands in its database, with the paths of the files that it wrote.

    devpi makes sure of these at each start (`keyfs.KeyFS.finalize_init`), and does not start when one is gone.
    """
    with contextlib.closing(sqlite3.connect(f"file:{data}/.sqlite?mode=ro", uri=True, timeout=30)) as db:
        row = db.execute("SELECT data FROM changelog ORDER BY serial DESC LIMIT 1").fetchone()
    return bytes(row[0]) if row else b""


def ask(url: str, path: str, timeout: float = 3.0) -> dict[str, Any]:
    """Return the `result` of devpi's answer; OSError or ValueError when there is none, or another one."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Accept": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
    except http.client.HTTPException as error:
        raise OSError(str(error) or type(error).__name__) from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise OSError(f"status {answer.status}")
    found: dict[str, Any] = json.loads(text)["result"]
    return found


def indexes(url: str) -> dict[str, str]:
    """Return the type of each index by user/index, from devpi itself: what is declared may not be applied yet."""
    users = ask(url, "/", timeout=60)
    return {
        f"{user}/{index}": str(settings["type"])
        for user, about in users.items()
        for index, settings in about.get("indexes", {}).items()
    }


def evict(config: Config) -> int:
    """Weigh what is stored, and delete what is over the limit; return 0, or 1 when devpi cannot be asked."""
    state = State(config.state)
    state.read_log(config.log)
    try:
        types = indexes(config.url)
    except (OSError, ValueError) as error:
        say(4, f"nothing is evicted: devpi does not say which indexes are mirrors ({error})")
        return 1
    root = config.data / "+files"
    sizes: dict[str, int] = {"mirror": 0, "stage": 0}
    mirrors: list[Stored] = []
    for name, kind in types.items():
        files = list(stored(root / name, root))
        sizes[kind] = sizes.get(kind, 0) + sum(file.size for file in files)
        mirrors += files if kind == "mirror" else []
    now = time.time()
    chosen = plan(
        mirrors, state.used(), limit=config.max_cached, young=now - config.grace, keep=last_change(config.data)
    )
    for file in chosen:
        # One at a time, so that what is counted is what is gone.
        with state.change():
            (root / file.path).unlink(missing_ok=True)
            state.add({"evicted_files_total": 1, "evicted_bytes_total": file.size})
            state.set({"last_eviction_timestamp_seconds": now})
    freed = sum(file.size for file in chosen)
    gone = {file.path for file in chosen}
    present = {file.path for file in mirrors} - gone
    with state.change() as db:
        state.set(
            {
                "cached_bytes": sizes["mirror"] - freed,
                "cached_files": len(present),
                "uploaded_bytes": sizes["stage"],
                "weighed_timestamp_seconds": now,
            }
        )
        forget = [(path,) for path, at in state.used().items() if path not in present and at < now - config.grace]
        db.executemany("DELETE FROM used WHERE path = ?", forget)
    if chosen:
        say(5, f"evicted {len(chosen)} files, {freed / GIB:.2f} GiB; {(sizes['mirror'] - freed) / GIB:.2f} GiB stay")
    if config.max_cached and sizes["mirror"] - freed > config.max_cached:
        say(
            4,
            f"cached files are {(sizes['mirror'] - freed) / GIB:.2f} GiB, over their limit of "
            f"{config.max_cached / GIB:.2f} GiB: the rest was just written, or has no hash",
        )
    return 0


# ---- how it is -----------------------------------------------------------------------------------------------


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
                    "checked": datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
                },
                indent=1,
            )
            + "\n"
        )


def judge(
    *,
    devpi: str,
    database: str,
    free: int,
    min_free: int,
    upstreams: Mapping[str, tuple[float, str]],
) -> Health:
    """Return what is wrong.

    Args:
        devpi: Why devpi does not answer; empty when it does.
        database: Why devpi cannot write; empty when it can.
        free: Bytes.
        min_free: Bytes.
        upstreams: Those that do not answer, by index: since when, and why.
    """
    problems = {}
    if devpi:
        problems["devpi"] = f"devpi does not answer ({devpi}): systemctl status devpi"
    if database:
        problems["database"] = f"devpi's database or folder cannot be written to ({database})"
    if free < min_free:
        problems["disk"] = (
            f"the disk is nearly full: {free / GIB:.1f} GiB are free, devpi_min_free_gib is {min_free / GIB:g}"
        )
    warnings = {
        f"upstream of {index}": (
            f"the upstream of {index} does not answer since "
            f"{datetime.fromtimestamp(since, UTC).isoformat(timespec='seconds')} ({why}): "
            "what is cached installs, new projects do not"
        )
        for index, (since, why) in sorted(upstreams.items())
    }
    return Health(problems, warnings)


def why_devpi_is_silent(url: str) -> str:
    """Return why devpi does not answer; empty when it does."""
    try:
        ask(url, "/+api")
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def why_devpi_cannot_write(data: Path) -> str:
    """Return why a transaction cannot be begun or a file not be written where devpi does; empty when they can.

    SQLite makes a reading transaction of one that it cannot write in, and no error: hence the first question.
    """
    database = data / ".sqlite"
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
        with tempfile.TemporaryFile(dir=data, buffering=0) as file:
            file.write(bytes(4096))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def upstreams(path: Path) -> dict[str, tuple[float, str]]:
    """Return how each upstream answered devpi last, by index: since when, and why it does not; empty when it does.

    lanmirror_devpi.py writes it, of the upstreams that devpi has asked since its start.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {index: (float(said["since"]), str(said["why"])) for index, said in told.items()}


def metrics(numbers: Mapping[str, float], now: Mapping[str, float], upstreams: Mapping[str, bool]) -> str:
    """Return everything in Prometheus' text format 0.0.4.

    Args:
        numbers: From the database.
        now: What was just measured.
        upstreams: Whether each answers, by index.
    """

    def labelled(name: str, label: str, values: Iterable[str]) -> list[tuple[str, float | None]]:
        return [(f'{{{label}="{value}"}}', numbers.get(f"{name}:{value}", 0)) for value in values]

    def plain(
        name: str, among: Mapping[str, float] = numbers, otherwise: float | None = 0
    ) -> list[tuple[str, float | None]]:
        return [("", among.get(name, otherwise))]

    families: tuple[tuple[str, str, str, list[tuple[str, float | None]]], ...] = (
        ("pages_total", "counter", "Pages of projects served.", labelled("pages_total", "result", RESULTS)),
        ("files_total", "counter", "Files served.", labelled("files_total", "result", RESULTS)),
        ("sent_bytes_total", "counter", "Bytes served.", labelled("sent_bytes_total", "kind", (PAGE, FILE))),
        ("evicted_files_total", "counter", "Cached files evicted.", plain("evicted_files_total")),
        ("evicted_bytes_total", "counter", "Bytes of them.", plain("evicted_bytes_total")),
        (
            "last_eviction_timestamp_seconds",
            "gauge",
            "When a file was evicted last.",
            plain("last_eviction_timestamp_seconds", otherwise=None),
        ),
        ("cached_bytes", "gauge", "Size of the cached files of mirrors.", plain("cached_bytes", otherwise=None)),
        ("cached_files", "gauge", "Cached files of mirrors.", plain("cached_files", otherwise=None)),
        ("cached_limit_bytes", "gauge", "Their limit; 0 for none.", plain("cached_limit_bytes", now)),
        ("uploaded_bytes", "gauge", "Size of uploaded files.", plain("uploaded_bytes", otherwise=None)),
        (
            "weighed_timestamp_seconds",
            "gauge",
            "When these sizes were measured.",
            plain("weighed_timestamp_seconds", otherwise=None),
        ),
        ("disk_bytes", "gauge", "Size of devpi's file system.", plain("disk_bytes", now)),
        ("disk_free_bytes", "gauge", "What is free on it.", plain("disk_free_bytes", now)),
        ("disk_min_free_bytes", "gauge", "What should be free on it.", plain("disk_min_free_bytes", now)),
        ("devpi_up", "gauge", "1 if devpi answers.", plain("devpi_up", now)),
        ("healthy", "gauge", "1 if /health says ok.", plain("healthy", now)),
        (
            "upstream_up",
            "gauge",
            "1 if the upstream of the mirror answered devpi the last time.",
            [(f'{{index="{index}"}}', float(up)) for index, up in sorted(upstreams.items())],
        ),
        ("checked_timestamp_seconds", "gauge", "When this was written.", plain("checked_timestamp_seconds", now)),
    )
    lines = []
    for name, kind, meaning, samples in families:
        told = [f"lanmirror_pypi_{name}{labels} {value:.17g}" for labels, value in samples if value is not None]
        if told:
            lines += [f"# HELP lanmirror_pypi_{name} {meaning}", f"# TYPE lanmirror_pypi_{name} {kind}", *told]
    return "\n".join(lines) + "\n"


def write(path: Path, text: str, mode: int) -> None:
    """Replace a file at once, so that whoever reads it finds it whole."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.chmod(mode)
    new.replace(path)


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
        yield (3 if word in after.problems else 4), new[word]
    for word in old.keys() - new.keys():
        yield 5, f"{word}: well again"


def say(priority: int, text: str) -> None:
    """Write a line to the journal (sd-daemon(3): its priority stands before it)."""
    print(f"<{priority}>{text}", file=sys.stderr, flush=True)


def alive() -> None:
    """Tell systemd that the loop goes round (sd_notify(3)); without that for WatchdogSec, it is started anew."""
    if where := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect(where.replace("@", "\0", 1) if where.startswith("@") else where)
            notify.sendall(b"WATCHDOG=1")


def look(config: Config) -> tuple[Health, dict[str, float]]:
    """Look at everything once and write what Nginx answers; return what was found, and what was measured."""
    disk = os.statvfs(config.data)
    why = why_devpi_is_silent(config.url)
    health = judge(
        devpi=why,
        database=why_devpi_cannot_write(config.data),
        free=disk.f_bavail * disk.f_frsize,
        min_free=config.min_free,
        upstreams={index: (since, why) for index, (since, why) in upstreams(config.upstreams).items() if why},
    )
    now = time.time()
    publish(health, config.public, now)
    return health, {
        "cached_limit_bytes": config.max_cached,
        "disk_bytes": disk.f_blocks * disk.f_frsize,
        "disk_free_bytes": disk.f_bavail * disk.f_frsize,
        "disk_min_free_bytes": config.min_free,
        "devpi_up": not why,
        "healthy": not health.problems,
        "checked_timestamp_seconds": now,
    }


def watch(config: Config) -> int:
    """Look again and again."""
    state: State | None = None
    before: Health | None = None
    complaint = ""
    while True:
        health, measured = look(config)
        for priority, text in changes(before, health):
            say(priority, text)
        before = health
        # Where that is kept may be full or read-only; how it is can be told all the same.
        try:
            state = state or State(config.state)
            state.read_log(config.log)
            if config.metrics:
                answers = {index: not why for index, (_, why) in upstreams(config.upstreams).items()}
                write(config.metrics, metrics(state.numbers(), measured, answers), 0o644)
        except (OSError, sqlite3.Error) as error:
            if str(error) != complaint:
                say(3, f"cannot count what is served, or write the metrics: {error}")
            complaint = str(error)
        else:
            complaint = ""
        alive()
        time.sleep(INTERVAL)


def main(argv: Sequence[str]) -> int:
    """Run `watch` or `evict`; return 0, 1 when devpi cannot be asked, 2 for a wrong command line."""
    commands = {"watch": watch, "evict": evict}
    if len(argv) != 2 or argv[0] not in commands:  # noqa: PLR2004 - the command and the file
        print(f"usage: lanmirror_devpi_watch.py {'|'.join(commands)} CONFIG", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    return commands[argv[0]](Config.read(Path(argv[1])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
