"""What a sync would do, in figures: for programs as JSON, for people as tables. Pure.

The keys of the JSON are the attributes of the structures here, `size` being `bytes` there; see `FORMAT`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from lanmirror_sync.config import NONE, Subdir
from lanmirror_sync.plan import Plan, matcher
from lanmirror_sync.progress import amount
from lanmirror_sync.repodata import Package

# Of the keys: a reader may rely on those it knows as long as this stays.
FORMAT = 1
# What leaves a package out. Of several that would, the first counts; `hold` is that a channel is not held, or that its
# choice does not have this one.
EXCLUDE, BLOCK, MIN_AGE, HOLD = FILTERS = ("exclude", "block", "min_age_days", "hold")
# How many names are told.
BIGGEST = 20
# How a part stands.
NEW, UNCHANGED, ABSENT, FAILED = "to do", "unchanged", "not there", "failed"
HEAD = ("", "hold", "to be held", "here", "to fetch", "on demand", "surplus", "new inodes", "")
DURATIONS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


class Sum(msgspec.Struct, frozen=True, rename={"size": "bytes"}):
    """So many files, and their bytes as far as the upstream tells them."""

    files: int = 0
    size: int = 0

    def __add__(self, other: Sum) -> Sum:
        """Return both together."""
        return Sum(self.files + other.files, self.size + other.size)

    def __sub__(self, other: Sum) -> Sum:
        """Return what is left without a part."""
        return Sum(self.files - other.files, self.size - other.size)

    def __str__(self) -> str:
        """Return it for people."""
        return f"{self.files} ({amount(self.size)})" if self.size else str(self.files)


class Needs(msgspec.Struct, frozen=True, rename={"size": "bytes"}):
    """What is to come takes of the disks at the worst moment, indexes included: bytes in whole blocks, and inodes."""

    size: int = 0
    inodes: int = 0

    def __add__(self, other: Needs) -> Needs:
        """Return both together."""
        return Needs(self.size + other.size, self.inodes + other.inodes)


class Part(msgspec.Struct, frozen=True):
    """A subdir, a folder of installers, or several of them together.

    Attributes:
        state: `NEW`, `UNCHANGED`, `ABSENT` or `FAILED`; "" of several.
        hold: which packages are held; "" of several.
        listed: all that the upstream lists; of installers those of the wanted suffixes, without their bytes.
        wanted: what of it is to be held.
        held: what of that is here.
        unverified: what of that is here by name and size, and is hashed first; what is wrong then is fetched too.
        fetch: what of that a sync fetches.
        unsized: of these, the files whose size nobody tells.
        on_demand: what the site fetches when somebody asks for it.
        surplus: files here that no index names, or that are not to be held.
        delete: of these, what `sync --delete` would take now, their grace being over.
        saved: what each of `FILTERS` leaves out.
        needs: what a sync takes of the disks.
    """

    state: str = ""
    hold: str = ""
    listed: Sum = Sum()
    wanted: Sum = Sum()
    held: Sum = Sum()
    unverified: Sum = Sum()
    fetch: Sum = Sum()
    unsized: int = 0
    on_demand: Sum = Sum()
    surplus: Sum = Sum()
    delete: Sum = Sum()
    saved: dict[str, Sum] = {}
    needs: Needs = Needs()


class Name(msgspec.Struct, frozen=True, rename={"size": "bytes"}):
    """The packages of one name in a channel that are to be held."""

    channel: str
    name: str
    files: int
    size: int


class Retired(msgspec.Struct, frozen=True, rename={"size": "bytes", "due": "from"}):
    """What is here and not configured any more; `--delete` takes it when its time has come (Unix time, seconds)."""

    files: int
    size: int
    due: float


class FileSystem(msgspec.Struct, frozen=True):
    """A file system on which something is to come.

    Attributes:
        path: a folder on it.
        free_bytes: what an ordinary user may write.
        min_free_bytes: what is to stay free.
        needed_bytes: what is to come, at the worst moment.
        free_bytes_after: what is free then; below 0 where that is not there.
        lacking_bytes: what is too much; 0 where it fits.
        free_inodes: likewise of files; null where the file system has no table of them.
        needed_inodes: likewise.
        free_inodes_after: likewise; null likewise.
        lacking_inodes: likewise.
    """

    path: str
    free_bytes: int
    min_free_bytes: int
    needed_bytes: int
    free_bytes_after: int
    lacking_bytes: int
    free_inodes: int | None
    needed_inodes: int
    free_inodes_after: int | None
    lacking_inodes: int


class Rate(msgspec.Struct, frozen=True):
    """How fast it goes, bytes a second; and who says so: `--rate`, `limit_rate`, or `last sync`."""

    bytes_per_second: int
    source: str


class Outlook(msgspec.Struct, frozen=True):
    """All of it.

    Attributes:
        format: `FORMAT`.
        version: of lanmirror.
        written: Unix time, seconds.
        only: the paths that it is of.
        subdirs: by path, in the order of the configuration.
        channels: the sums of their subdirs, likewise.
        installers: by folder, likewise.
        total: of everything.
        biggest: the names that take most, the largest first.
        retired: by path.
        file_systems: those on which something is to come.
        fits: whether a sync would begin.
        would_fit: where not, the channels and folders that have room beside those before them.
        rate: null where nothing tells it.
        seconds: how long it takes to fetch; null likewise.
        failures: what cannot be told, and why, by path.
    """

    format: int
    version: str
    written: float
    only: str
    subdirs: dict[str, Part]
    channels: dict[str, Part]
    installers: dict[str, Part]
    total: Part
    biggest: list[Name]
    retired: dict[str, Retired]
    file_systems: list[FileSystem]
    fits: bool
    would_fit: list[str]
    rate: Rate | None
    seconds: float | None
    failures: dict[str, list[str]]


def measured(
    subdir: Subdir, packages: Mapping[str, Package], plan: Plan, exclude: Collection[str]
) -> tuple[Part, dict[str, Sum]]:
    """Return a subdir in figures, and what of each package name is to be held.

    Args:
        subdir: which.
        packages: those of the upstream's index, by file name.
        plan: what it needs.
        exclude: as in `plan.compare`.
    """
    is_excluded = matcher(exclude)
    names: dict[str, list[int]] = {}
    saved = {name: [0, 0] for name in FILTERS}
    none = subdir.hold == NONE
    # What nobody chose: named all the same, and here still.
    spare: list[Package] = []
    demanded: list[Package] = []
    here = frozenset(plan.orphans)
    for file_name, package in packages.items():
        is_chosen = not none and plan.is_chosen(file_name)
        if is_excluded(package.name):
            into = saved[EXCLUDE]
        elif file_name in plan.hidden.young:
            into = saved[MIN_AGE]
        elif file_name in plan.hidden.blocked:
            into = saved[BLOCK]
        elif not is_chosen:
            into = saved[HOLD]
            if not none and file_name not in plan.excluded:
                (spare if file_name in here else demanded).append(package)
        else:
            into = names.setdefault(package.name, [0, 0])
        into[0] += 1
        into[1] += package.size or 0
    fetched = (*plan.fetch, *plan.replace)
    part = Part(hold=subdir.hold, listed=total(packages.values()),
                saved={name: Sum(*told) for name, told in saved.items() if told[0]})  # fmt: skip
    if none:
        return replace(part, on_demand=total(fetched)), {}
    check = [package for package in plan.check if plan.is_chosen(package.file_name)]
    rest = total(spare) - total(package for package in plan.check if not plan.is_chosen(package.file_name))
    held, unverified, fetch = Sum(plan.held, plan.held_bytes) - rest, total(check), total(fetched)
    unsized = sum(package.size is None for package in fetched)
    part = replace(
        part, wanted=held + unverified + fetch, held=held, unverified=unverified, fetch=fetch, unsized=unsized,
        on_demand=total(demanded),
    )  # fmt: skip
    return part, {name: Sum(*told) for name, told in names.items()}


def total(packages: Iterable[Package]) -> Sum:
    """Return how many packages there are, and their bytes."""
    sizes = [package.size or 0 for package in packages]
    return Sum(len(sizes), sum(sizes))


def together(parts: Iterable[Part]) -> Part:
    """Return the sum of parts."""
    found = Part()
    for part in parts:
        saved = {name: found.saved.get(name, Sum()) + part.saved.get(name, Sum()) for name in FILTERS}
        found = Part(
            "", "", found.listed + part.listed, found.wanted + part.wanted, found.held + part.held,
            found.unverified + part.unverified, found.fetch + part.fetch, found.unsized + part.unsized,
            found.on_demand + part.on_demand, found.surplus + part.surplus, found.delete + part.delete,
            {name: told for name, told in saved.items() if told.files}, found.needs + part.needs,
        )  # fmt: skip
    return found


def biggest(names: Mapping[tuple[str, str], Sum]) -> list[Name]:
    """Return the names that take most, by channel and name."""
    order = sorted(names, key=lambda key: (-names[key].size, key))[:BIGGEST]
    return [Name(*key, names[key].files, names[key].size) for key in order]


def encode(outlook: Outlook) -> str:
    """Return it as JSON."""
    return msgspec.json.format(msgspec.json.encode(outlook), indent=2).decode()


# ---- for people ------------------------------------------------------------------------------------------------


def lines(outlook: Outlook) -> Iterator[str]:
    """Yield the tables, and what else is to be said."""
    rows = []
    for channel, part in outlook.channels.items():
        own = {path: one for path, one in outlook.subdirs.items() if path.rpartition("/")[0] == channel}
        rows += [*(_row(path, one) for path, one in own.items()), _row(f"{channel}, together", part)]
    rows += [_row(folder, part) for folder, part in outlook.installers.items()]
    yield from _table(HEAD, [*rows, _row("in all", outlook.total)])
    saved = [(name, path, str(told)) for path, part in outlook.subdirs.items() for name, told in part.saved.items()]
    if saved:
        yield ""
        yield from _table(("left out by", "of", "files"), saved)
    if outlook.biggest:
        yield ""
        names = [(one.name, one.channel, str(Sum(one.files, one.size))) for one in outlook.biggest]
        yield from _table(("biggest names", "of", "files"), names)
    yield ""
    for there in outlook.file_systems:
        yield _in_words(there)
    if not outlook.fits:
        fits = ", ".join(outlook.would_fit) or "nothing"
        yield f"a sync would not begin; in the order of the configuration, {fits} would fit"
    yield f"to fetch: {amount(outlook.total.fetch.size)}{_time(outlook)}"
    if outlook.total.unsized:
        yield f"of {outlook.total.unsized} files to fetch nobody tells the size: they are not in these bytes"
    if outlook.total.delete.files:
        yield f"sync --delete would take of the surplus now: {outlook.total.delete}"
    for path, gone in outlook.retired.items():
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(gone.due))
        told = f"{gone.files} files, {amount(gone.size)}"
        yield f"{path}: not configured any more; --delete takes {told}, from {when} on"


def _row(name: str, part: Part) -> tuple[str, ...]:
    state = [part.state] if part.state not in ("", NEW) else []
    state += [f"{part.unverified.files} to hash first"] if part.unverified.files else []
    here = part.held + part.unverified
    sums = (part.wanted, here, part.fetch, part.on_demand, part.surplus)
    return (name, part.hold, *map(str, sums), str(part.needs.inodes), ", ".join(state))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table: words to the left, figures to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if column < 2 or not head[column] else cell.rjust(width)  # noqa: PLR2004 - the words
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _in_words(there: FileSystem) -> str:
    keep = f", of which {amount(there.min_free_bytes)} are to stay free" if there.min_free_bytes else ""
    told = f"{there.path}: {amount(there.free_bytes)} free{keep}; {amount(max(there.needed_bytes, 0))} to come"
    told += f", {amount(max(there.free_bytes_after, 0))} free after"
    if there.free_inodes is not None and there.free_inodes_after is not None:
        after = max(there.free_inodes_after, 0)
        told += f"; {there.free_inodes} inodes free, {there.needed_inodes} to come, {after} free after"
    lacking = [amount(there.lacking_bytes)] if there.lacking_bytes else []
    lacking += [f"{there.lacking_inodes} inodes"] if there.lacking_inodes else []
    return f"{told}; it does not fit: {' and '.join(lacking)} are lacking" if lacking else told


def _time(outlook: Outlook) -> str:
    if not outlook.total.fetch.files:
        return ""
    if outlook.rate is None or outlook.seconds is None:
        return " (how long that takes, tells --rate, for example --rate 50Mbit/s)"
    rate = f"{outlook.rate.bytes_per_second / 1e6:.3g} MB/s ({outlook.rate.source})"
    return f", {duration(outlook.seconds)} at {rate}"


def duration(seconds: float) -> str:
    """Return a time for people, in the unit that it is read best in."""
    length, unit = next(((length, unit) for length, unit in DURATIONS if seconds >= 2 * length), DURATIONS[-1])
    count = round(seconds / length)
    return f"{count} {unit}{'s' * (count != 1)}"
