"""Put devpi's state aside before a restore or an upgrade, and bring it back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from . import OpsError
from .database import read_state
from .files import copy, write
from .settings import ASIDE, Settings
from .system import point, run, start, stop


@dataclass(frozen=True)
class Undo:
    """How to come back from a restore or an upgrade; a file holds it until that is over."""

    what: str
    name: str
    """Of the folders that hold the old state."""
    version: str
    """devpi-server's before."""
    link: str
    """The venv that ran before."""
    moved: bool
    """Whether the data was moved aside as a whole; otherwise its database was copied there, and files stay."""
    whole: bool = False
    """Whether all of it is aside, so that what is in its place is new and may go."""
    serves: Mapping[str, Sequence[str]] | None = None
    """Pages that devpi had before, with names that stood on them."""


def undo_file(settings: Settings) -> Path:
    """Return where an Undo is kept."""
    return settings.old_conf / "undo.json"


def keep_undo(settings: Settings, undo: Undo) -> None:
    """Write down how to come back, when all that it speaks of is on the disk."""
    os.sync()
    write(undo_file(settings), json.dumps(asdict(undo)), 0o600, durable=True)


def kept_undo(settings: Settings, otherwise: str) -> Undo:
    """Return how to come back.

    Raises:
        OpsError: There is nothing to come back from; with the text for that.
    """
    try:
        return Undo(**json.loads(undo_file(settings).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise OpsError(otherwise) from None


def refuse_unfinished(settings: Settings) -> None:
    """Refuse to go on from a state that is neither the old nor the new one.

    Raises:
        OpsError: A restore or an upgrade was cut short.
    """
    if undo_file(settings).exists():
        what = kept_undo(settings, "").what
        raise OpsError(f"this server's last {what} was cut short: run `lanmirror-devpi back` on it first")


def entries(folder: Path) -> list[Path]:
    """Return what is in the folder of the data, without what was put aside."""
    return [path for path in folder.iterdir() if path.name != ASIDE]


def put_aside(settings: Settings, what: str, *, move: bool, serving: Mapping[str, Sequence[str]]) -> Undo:
    """Stop devpi and put its state aside: the data as a whole or its database, the configuration, the unit."""
    name = time.strftime(f"%Y%m%dT%H%M%SZ-before-{what}", time.gmtime())
    data, conf = settings.old_data / name, settings.old_conf / name
    for folder in (data, conf):
        folder.mkdir(mode=0o700, parents=True)
    stop(settings)
    for path in [*settings.conf.iterdir(), settings.unit]:
        if path.is_file():
            copy(path, conf / path.name)
    version = ""
    with contextlib.suppress(OpsError):
        version = read_state(settings.current)["version"]
    undo = Undo(what, name, version, str(settings.current.resolve()), move, serves=serving)
    if move:
        keep_undo(settings, undo)
        for path in entries(settings.data):
            path.rename(data / path.name)
    else:
        for path in entries(settings.data):
            if path.is_file():
                copy(path, data / path.name)
    undo = replace(undo, whole=True)
    keep_undo(settings, undo)
    return undo


def back(settings: Settings) -> Undo:
    """Bring the state before a restore or an upgrade back, however far that came, and start devpi on it.

    Raises:
        OpsError: There is nothing to come back to, or devpi does not start.
    """
    undo = kept_undo(settings, "nothing was cut short: there is no restore and no upgrade to come back from")
    data, conf = settings.old_data / undo.name, settings.old_conf / undo.name
    stop(settings, must=False)
    if undo.moved:
        if undo.whole:
            for new in entries(settings.data):
                shutil.rmtree(new) if new.is_dir() and not new.is_symlink() else new.unlink()
            # From here on, what is in the folder is the old state again.
            undo = replace(undo, whole=False)
            keep_undo(settings, undo)
        for old in entries(data):
            old.rename(settings.data / old.name)
    else:
        for old in entries(data):
            copy(old, settings.data / old.name)
    for old in conf.iterdir():
        copy(old, settings.unit if old.name == settings.unit.name else settings.conf / old.name)
    point(settings, Path(undo.link))
    start(settings)
    forget(settings, undo, data=True)
    return undo


def forget(settings: Settings, undo: Undo, *, data: bool) -> None:
    """Delete what was put aside, when there is no way back any more; the `data` as well, or not."""
    undo_file(settings).unlink()
    if data:
        shutil.rmtree(settings.old_data / undo.name)
    shutil.rmtree(settings.old_conf / undo.name)


@contextlib.contextmanager
def or_back(settings: Settings, what: str) -> Iterator[None]:
    """Have the old state back, and say so, when what is done within fails.

    Raises:
        OpsError: It failed.
    """
    try:
        yield
    except BaseException as error:
        if undo_file(settings).exists():
            back(settings)
        else:
            run("systemctl", "start", settings.unit.name, must=False)
        raise OpsError(f"the {what} failed, and what was there before is back and serves: {error}") from error
