"""The state of the servers as one table, for playbooks/status.yml.

Pure: the play asks each server what lanmirror_inventory.py says, and what it got is judged here.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from typing import Any

# Of the keys of the JSON: a reader may rely on those it knows as long as this stays.
FORMAT = 1
# The format of status.json that is understood here (lanmirror_sync/status.py).
STATUS_FORMAT = 1
# The group of each half.
HALVES = {"pypi": "pypi_cache", "conda": "conda_mirror"}
# The states of a half, the worst last.
OK, WARNING, PROBLEM, SILENT = STATES = ("ok", "warning", "problem", "does not answer")
ANSWERED = (200, 503)
GIB = 1 << 30
MINUTE, HOUR, DAY = 60, 3600, 86400
# So much of a reason stands in a cell, characters.
WIDTH = 48

# What Ansible says before the reason.
_NOISE = re.compile(
    r"^(?:Task failed: |Finalization of task args for \S+ failed: |(?:Data could not|Failed to).*? (?:over|via) ssh: "
    r"|Status code was -1 and not \[.*?\]: |Request failed: )+"
)

Groups = Mapping[str, Sequence[str]]
Hostvars = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Half:
    """How a half of a server is.

    Attributes:
        status: one of STATES.
        reasons: problems and then warnings in the words of its watchdog; why there is no answer.
    """

    status: str
    reasons: Sequence[str] = ()


@dataclass(frozen=True)
class Disk:
    """The file system of a folder, in bytes; `free_bytes` is for who is not root."""

    folder: str
    bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Sync:
    """The last sync of the Conda mirror.

    Attributes:
        result: as in status.json: none yet, running, in sync, incomplete, failed.
        seconds: since its end or, while it runs, since its beginning; None where there was none.
        oldest_index_seconds: since the upstream was last asked for the index for which that is longest ago; None where
            it was not asked for some index yet.
        failures: of all subdirs and folders of installers.
    """

    result: str
    seconds: int | None
    oldest_index_seconds: int | None
    failures: int


@dataclass(frozen=True)
class Server:
    """What is known of a server; None, and no disks, where nothing is.

    Attributes:
        name: in the inventory.
        role: of its PyPI cache, primary or replica.
        pypi: None where it has none.
        conda: likewise.
        version: of lanmirror, as its portal says.
        disks: those of its halves, each once.
        sync: of its Conda mirror.
    """

    name: str
    role: str | None = None
    pypi: Half | None = None
    conda: Half | None = None
    version: str | None = None
    disks: Sequence[Disk] = ()
    sync: Sync | None = None

    @property
    def halves(self) -> dict[str, Half]:
        """Return those that it has, by title."""
        return {title: half for title, half in (("PyPI", self.pypi), ("Conda", self.conda)) if half}

    @property
    def status(self) -> str:
        """Return the worst of its halves."""
        return max((half.status for half in self.halves.values()), key=STATES.index, default=OK)


# ---- what it answered -----------------------------------------------------------------------------------------


def _line(text: object) -> str:
    """Return a text in one line, without what a terminal would act on."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())


def _why(result: Mapping[str, Any]) -> str:
    """Return why a task got no answer, by its result."""
    status = result.get("status", -1)
    if isinstance(status, int) and status > 0:
        return f"status {status}{', without its health' if status in ANSWERED else ''}"
    # ssh warns in lines before the one that counts.
    lines = [line for line in str(result.get("msg", "")).splitlines() if line.strip()]
    text = _NOISE.sub("", _line(lines[-1] if lines else "it was not asked"))
    return re.sub(r"^<urlopen error (?:\[Errno -?\d+\] )?(.*)>$", r"\1", text)


def _document(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON of an answer; empty where it is none."""
    if result.get("status") not in ANSWERED:
        return {}
    try:
        found = json.loads(result.get("content") or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _half(result: Mapping[str, Any]) -> Half:
    """Return how a half is, by its answer at /health."""
    told = _document(result)
    if not {"status", "problems", "warnings"} <= told.keys():
        return Half(SILENT, (_why(result),))
    reasons = tuple(_line(reason) for reason in (*told["problems"], *told["warnings"]))
    return Half(PROBLEM if told["status"] != "ok" else WARNING if reasons else OK, reasons)


def _sync(result: Mapping[str, Any]) -> Sync | None:
    """Return what status.json says, by the clock of the server that gave it; None where it says nothing."""
    told = _document(result)
    if told.get("format") != STATUS_FORMAT:
        return None
    now = parsedate_to_datetime(result["date"]).timestamp() if result.get("date") else told["written"]
    run, parts = told["run"], (*told["subdirs"].values(), *told["installers"].values())
    when = run["ended"] or run["began"]
    asked = [subdir["last_check"] or 0.0 for subdir in told["subdirs"].values()]
    return Sync(
        _line(run["result"]),
        round(now - when) if when else None,
        round(now - min(asked)) if asked and all(asked) else None,
        sum(len(part["failures"]) for part in parts),
    )


def _disks(result: Mapping[str, Any], folders: Sequence[str]) -> Iterator[Disk]:
    """Yield what `df --block-size=1 --output=avail,size,source,file` says of some folders, a file system once."""
    told = set()
    for line in str(result.get("stdout", "")).splitlines()[1:]:
        free, size, names = line.split(maxsplit=2)
        folder = next((folder for folder in folders if names.endswith(f" {folder}")), "")
        # While it is written to, it has not the same room for both.
        disk = (size, names.removesuffix(folder).strip())
        if folder and free.isdigit() and size.isdigit() and disk not in told:
            told.add(disk)
            yield Disk(folder, int(size), int(free))


def server(name: str, host: Mapping[str, Any], groups: Groups) -> Server:
    """Return what is known of a server, by what the play registered.

    Args:
        name: in the inventory.
        host: its variables: `status_asks` (lanmirror_inventory.asks), `status_disk` (df), `status_answers` (a loop over
            the asks), and `status_failed`, why the play could not ask; each may be missing.
        groups: those of the inventory.
    """
    plan, disk = host.get("status_asks") or {}, host.get("status_disk") or {}
    answers = {
        result["item"]["about"]: result
        for result in (host.get("status_answers") or {}).get("results", [])
        if isinstance(result.get("item"), Mapping)
    }
    # Why there are no answers at all.
    none = {"msg": host["status_failed"]} if host.get("status_failed") else disk if disk.get("unreachable") else {}
    halves = {
        half: _half(none or answers.get(half) or {})
        for half, group in HALVES.items()
        if name in (groups.get(group) or [])
    }
    version = re.search(r"<small>lanmirror ([^<\s]+)</small>", str(answers.get("portal", {}).get("content") or ""))
    return Server(
        name,
        plan.get("role"),
        halves.get("pypi"),
        halves.get("conda"),
        _line(version[1]) if version else None,
        tuple(_disks(disk, plan.get("folders", []))),
        _sync(answers.get("status", {})),
    )


# ---- what is shown --------------------------------------------------------------------------------------------


def _age(seconds: int) -> str:
    """Return an age in the unit that says enough."""
    unit, length = ("min", MINUTE) if seconds < 2 * HOUR else ("h", HOUR) if seconds < 2 * DAY else ("d", DAY)
    return f"{max(seconds, 0) / length:.0f} {unit}"


def _gib(size: int) -> str:
    return f"{size / GIB:.{0 if size >= 10 * GIB else 1}f}"


def _state(half: Half | None) -> str:
    if not half:
        return "-"
    reason = half.reasons[0] if half.reasons else ""
    # The end of an error of the system says what is wrong; the sentences of the watchdogs begin with it.
    reason = reason.rpartition(": ")[2] if half.status == SILENT else reason
    return textwrap.shorten(f"{half.status}: {reason}" if reason else half.status, WIDTH, placeholder=" …")


def _run(sync: Sync | None) -> str:
    if not sync or sync.seconds is None:
        return sync.result if sync else "-"
    return (
        f"{sync.result} for {_age(sync.seconds)}"
        if sync.result == "running"
        else f"{sync.result}, {_age(sync.seconds)} ago"
    )


def _row(one: Server) -> list[str]:
    sync = one.sync
    oldest = "-" if not sync else "none yet" if sync.oldest_index_seconds is None else _age(sync.oldest_index_seconds)
    return [
        one.name,
        ", ".join(f"PyPI {one.role or ''}".strip() if title == "PyPI" else title for title in one.halves),
        one.version or "-",
        ", ".join(f"{_gib(disk.free_bytes)} of {_gib(disk.bytes)}" for disk in one.disks) or "-",
        _run(sync),
        oldest,
        str(sync.failures) if sync else "-",
        _state(one.pypi),
        _state(one.conda),
    ]


HEAD = [
    "server",
    "has",
    "version",
    "free, GiB",
    "last sync",
    "oldest index",
    "failures",
    "/health/pypi",
    "/health/conda",
]


def table(servers: Sequence[Server]) -> str:
    """Return a line for each server, below the names of the columns."""
    rows = [HEAD, *(_row(one) for one in servers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def as_json(servers: Sequence[Server]) -> str:
    """Return the same for programs, with whole reasons: in ASCII, a line for each server."""
    told = ",\n".join(json.dumps({"name": one.name, "status": one.status, **asdict(one)}) for one in servers)
    return f'{{"format": {FORMAT}, "servers": [\n{told}\n]}}'


def bad(servers: Sequence[Server]) -> list[str]:
    """Return the names of the servers that have a problem or do not answer."""
    return [one.name for one in servers if one.status in (PROBLEM, SILENT)]


def complaint(servers: Sequence[Server]) -> str:
    """Return these servers in words, with all reasons."""
    lines = []
    for one in servers:
        found: dict[tuple[str, str], list[str]] = {}
        for title, half in one.halves.items():
            if half.status in (PROBLEM, SILENT):
                found.setdefault((half.status, "; ".join(half.reasons)), []).append(title)
        lines += [f"{one.name} ({' and '.join(titles)}): {status}: {why}" for (status, why), titles in found.items()]
    return "\n".join(["These servers have a problem or do not answer:", *lines])


def _of(told: Callable[[Sequence[Server]], Any]) -> Callable[[Hostvars, Groups, Sequence[str]], Any]:
    """Return the filter on `hostvars`, with `groups` and the names of the servers."""
    return lambda hostvars, groups, names: told([server(str(name), hostvars[name], groups) for name in names])


class FilterModule:
    """Filters of playbooks/status.yml."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Give the filters by name."""
        return {
            "lanmirror_status_table": _of(table),
            "lanmirror_status_as_json": _of(as_json),
            "lanmirror_status_bad": _of(bad),
            "lanmirror_status_complaint": _of(complaint),
        }
