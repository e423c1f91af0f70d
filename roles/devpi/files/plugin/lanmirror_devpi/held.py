"""Stored files that the rules of their mirror hide are set aside, where Nginx does not find them.

Nginx sends what is stored without asking devpi. So when the rules of a mirror change, all of its stored files are set
aside at once: their folder gets another name, which takes no time however many they are. From then on devpi is asked,
and brings back each file that may be given, when it is asked for or a little later.

Nginx keeps pages as well. A file beside the database tells it by which rules they are: its time is a number made of
them, so its `ETag` is a part of the key under which Nginx looks for a page (docs/way-of-a-request.md).

devpi is asked for the rules after each change of anything, in a thread of its own: so it is the same whether they came
by the API, to a replica, or while devpi was down.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from devpi_server import filestore_fs
from devpi_server.log import threadlog
from packaging.utils import canonicalize_name

from lanmirror_devpi import coming, entries, malware, mirror
from lanmirror_devpi.coming import About
from lanmirror_devpi.malware import Listed
from lanmirror_devpi.policy import Policy
from lanmirror_devpi.replace import replace

# Below `+files`, so on the same disk; no URL of a file leads there, since those have two names before the first `+`.
FOLDER = "+held"
PARTS = ("+f", "+e")
METADATA = ".metadata"
# By which rules files were set aside last.
RULES = ".lanmirror-rules"
# Which list of known malware counted last, and its mark (coming.Applied).
MALWARE = ".lanmirror-malware"
# A list that says something else of more projects than this is taken for one that matters here, without a look at each.
MANY = 1000
# Seconds between two looks at the rules, at the least and at the most.
PAUSE, LOOK = 0.1, 5.0
# How long files that are just being stored, and rules that are just being applied, are waited for, seconds.
PATIENCE, PATIENCE_WITH_RULES = 2.0, 30.0
# How many files are brought back at a time, and the pause after them: others want the disk as well.
BATCH, BREATH = 20, 0.1


class Held:
    """The files of all mirrors that are set aside.

    Attributes:
        applied: The rules by which files are where they are, by index.
        fails: Whether they could not be applied the last time: nobody waits for that.
    """

    def __init__(self, data: Path, told_of: Callable[[str], About]) -> None:
        """Look after the files below `data`; `told_of` returns what the rules ask of a file, by its path."""
        self.data, self.files = data, data / "+files"
        self._told_of = told_of
        self.applied: dict[str, Policy] = {}
        self.fails = False
        self._rules: dict[str, Policy] = {}
        # Set when files may be brought back.
        self.changed = threading.Event()
        self.changed.set()
        # Held while a file, or a folder of them, is moved.
        self._lock = threading.Lock()
        self._turn = threading.Condition()
        self._storing, self._moving = 0, False
        self.file = data / RULES
        try:
            told = json.loads(self.file.read_text(encoding="utf-8"))
            self._keys: dict[str, str] = {str(index): str(key) for index, key in told.items()}
        except (OSError, ValueError, AttributeError):
            self._keys = {}

    # ---- rules ----------------------------------------------------------------------------------------------

    def apply(self, rules: Mapping[str, Policy]) -> list[str]:
        """Set aside the files of the mirrors whose rules have changed; return these mirrors."""
        keys = {index: policy.key for index, policy in rules.items() if policy.key}
        changed = sorted(index for index in keys | self._keys if keys.get(index) != self._keys.get(index))
        if changed or not self.file.exists():
            with self._alone(), self._lock:
                # What is brought back from now on is so by the new ones.
                self._rules = dict(rules)
                for index in changed:
                    if index in keys:
                        self._set_aside(index)
            self._write(keys)
            self._keys = keys
            self.changed.set()
        with self._turn:
            self.applied = self._rules = dict(rules)
            self.fails = False
            self._turn.notify_all()
        return changed

    def settle(self, index: str, key: str) -> None:
        """Wait until the rules of an index that a request sees are applied: until then its files are being moved."""

        def is_settled() -> bool:
            rules = self.applied.get(index)
            return self.fails or key == (rules.key if rules else "")

        if not is_settled():
            with self._turn:
                self._turn.wait_for(is_settled, PATIENCE_WITH_RULES)

    def failed(self) -> None:
        """Let nobody wait for rules that cannot be applied now, as on a full disk."""
        with self._turn:
            self.fails = True
            self._turn.notify_all()

    def _write(self, keys: Mapping[str, str]) -> None:
        text = json.dumps(keys, sort_keys=True)
        new = self.file.with_name(f"{RULES}.new")
        new.write_text(text, encoding="utf-8")
        # Nginx makes the ETag of it: the same rules are the same time, on each server and after each restart.
        at = int(hashlib.sha256(text.encode()).hexdigest()[:7], 16)
        os.utime(new, (at, at))
        # Nginx reads it as a member of the group.
        new.chmod(0o640)
        new.replace(self.file)

    def _set_aside(self, index: str) -> None:
        folder = self.files / FOLDER / index
        number = 1 + max(map(int, names(folder)), default=0)
        for part in PARTS:
            if (self.files / index / part).is_dir():
                (folder / str(number)).mkdir(parents=True, exist_ok=True)
                (self.files / index / part).rename(folder / str(number) / part)

    # ---- files ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def storing(self) -> Iterator[None]:
        """Let no folder be set aside while a file is stored in it: devpi writes it there under another name first."""
        with self._turn:
            self._turn.wait_for(lambda: not self._moving)
            self._storing += 1
        try:
            yield
        finally:
            with self._turn:
                self._storing -= 1
                self._turn.notify_all()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self._turn:
            self._moving = True
            self._turn.wait_for(lambda: not self._storing, PATIENCE)
        try:
            yield
        finally:
            with self._turn:
                self._moving = False
                self._turn.notify_all()

    def has_rules(self, index: str) -> bool:
        """Return whether there are rules of an index."""
        rules = self._rules.get(index)
        return rules is not None and bool(rules.key)

    def may_be_given(self, path: str, about: About) -> bool:
        """Return whether a file is not hidden by the rules that are applied."""
        rules = self._rules.get("/".join(path.split("/")[:2]))
        return rules is None or not rules.key or about.refusal(rules) is None

    def bring_back(self, path: str, about: About) -> bool:
        """Put a file that was set aside in its place, with the metadata beside it; return whether it is there."""
        index, below = split(path)
        with self._lock:
            numbers = names(self.files / FOLDER / index)
            if not numbers or not self.may_be_given(path, about):
                return False
            found = False
            # Of two of a name, which there may be where no hash is told, the newer one.
            for number in sorted(numbers, key=int, reverse=True):
                held = self.files / FOLDER / index / number / below
                for one, place in ((held, self.files / path), (beside(held), beside(self.files / path))):
                    if one.is_file():
                        moved(one, place)
                        found = True
            return found

    def look(self, path: str, about: About) -> None:
        """Set a file aside that has just been stored, if the rules hide it by now."""
        index, below = split(path)
        with self._lock:
            if self.may_be_given(path, about):
                return
            for one, place in ((self.files / path, below), (beside(self.files / path), f"{below}{METADATA}")):
                if one.is_file():
                    moved(one, self.files / FOLDER / index / "0" / place)

    def forget(self, path: str) -> None:
        """Delete a file that is set aside, with the metadata beside it: devpi has deleted it."""
        index, below = split(path)
        with self._lock:
            for number in names(self.files / FOLDER / index):
                file = self.files / FOLDER / index / number / below
                file.unlink(missing_ok=True)
                beside(file).unlink(missing_ok=True)

    def bring_all_back(self) -> None:
        """Bring back all files that may be given, and remove the folders that are empty then."""
        root = self.files / FOLDER
        count = 0
        for folder, _, files in os.walk(root, topdown=False):
            for name in files:
                # user/index/number/below
                user, index, _, *below = (Path(folder) / name).relative_to(root).parts
                path = "/".join((user, index, *below)).removesuffix(METADATA)
                if f"{user}/{index}" not in self.applied:
                    self.forget(path)
                elif self.bring_back(path, self._told_of(path)):
                    count += 1
                    if not count % BATCH:
                        time.sleep(BREATH)
            with contextlib.suppress(OSError), self._lock:
                Path(folder).rmdir()


def names(folder: Path) -> list[str]:
    """Return the numbers of the folders in which files of an index are set aside."""
    try:
        return [entry.name for entry in folder.iterdir() if entry.name.isdecimal()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def split(path: str) -> tuple[str, str]:
    """Return the index of a file, and its path below it."""
    user, index, *below = path.split("/")
    return f"{user}/{index}", "/".join(below)


def beside(file: Path) -> Path:
    """Return where the metadata of a wheel is stored."""
    return file.with_name(f"{file.name}{METADATA}")


def moved(one: Path, place: Path) -> None:
    """Move a file; where there is one by now, that counts."""
    if place.exists():
        one.unlink(missing_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        one.rename(place)


class Malware:
    """Reads the list of known malware when its file changes.

    Most of what a new list says is of projects that nobody here has asked for. Then nothing is set aside, and Nginx
    keeps its pages: they would all be gone each day otherwise.
    """

    def __init__(self, xom: Any, path: str) -> None:
        """Read the file at `path`, none where that is empty; what is written down is beside the database."""
        self.xom, self.path = xom, Path(path) if path else None
        self.file = Path(xom.config.server_path) / MALWARE
        self._status: tuple[int, ...] | None = None
        self._listed = malware.NONE
        self._written = ""
        try:
            told = json.loads(self.file.read_text(encoding="utf-8"))
            self._digest, self._mark = str(told["list"]), str(told["mark"])
        except (OSError, ValueError, LookupError, TypeError):
            self._digest = self._mark = ""

    def look(self) -> None:
        """Let a new list count. One that cannot be read does not: the last one stays."""
        status = None
        if self.path is not None:
            with contextlib.suppress(FileNotFoundError):
                found = self.path.stat()
                status = found.st_ino, found.st_size, found.st_mtime_ns
        if status != self._status:
            self._status = status
            try:
                listed = Listed.of(self.path.read_bytes()) if self.path is not None and status else malware.NONE
            except (OSError, ValueError):
                threadlog.exception("%s cannot be read", self.path)
            else:
                self._take(listed)
        text = json.dumps({"list": self._listed.digest, "mark": self._mark})
        if text != self._written:
            new = self.file.with_name(f"{MALWARE}.new")
            new.write_text(text, encoding="utf-8")
            new.replace(self.file)
            self._written = text

    def _take(self, listed: Listed) -> None:
        # After a start there is no other list to compare, but it may be the same.
        if listed.digest != self._digest:
            # By the old mark first: a page that comes meanwhile is by this list, or is stored before the look.
            coming.apply(listed, self._mark)
            if not self._listed.digest or self._matters(listed.changed(self._listed)):
                self._mark = hashlib.sha256(f"{self._mark} {listed.digest}".encode()).hexdigest()[:16]
        self._listed, self._digest = listed, listed.digest
        coming.apply(listed, self._mark)
        threadlog.info("list of known malware: %s projects", len(listed.names))

    def _matters(self, projects: set[str]) -> bool:
        """Return whether there is a page or a file of one of these projects here."""
        if len(projects) > MANY:
            return True
        with self.xom.keyfs.read_transaction():
            mirrors = [
                stage
                for user in self.xom.model.get_userlist()
                for stage in user.getstages()
                if stage.ixconfig["type"] == "mirror"
            ]
            if any(mirror.known_page(stage, name) for stage in mirrors for name in projects):
                return True
            indexes = [stage.name for stage in mirrors]
        # A file stays when its project is gone at the upstream.
        files = Path(self.xom.config.server_path) / "+files"
        return any(
            canonicalize_name(coming.project_in(name)) in projects
            for index in indexes
            for folder in (files / index, files / FOLDER / index)
            for _, _, names_of in os.walk(folder)
            for name in names_of
        )


class Applies:
    """Applies the rules after each change of anything."""

    thread: Any

    def __init__(self, xom: Any, malware_list: str = "") -> None:
        self.xom = xom
        self.malware = Malware(xom, malware_list)

    def apply(self) -> int:
        """Apply the rules of now; return the serial of which they are."""
        self.malware.look()
        with self.xom.keyfs.read_transaction(allow_reuse=True) as tx:
            serial: int = tx.at_serial
            rules = {
                f"{user.name}/{index}": coming.policy_of(f"{user.name}/{index}", settings)
                for user in self.xom.model.get_userlist()
                for index, settings in user.get().get("indexes", {}).items()
                if settings.get("type") == "mirror"
            }
        for index in self.xom.lanmirror_held.apply(rules):
            threadlog.info("the rules of %s have changed: its stored files are set aside", index)
        return serial

    def thread_run(self) -> None:
        """Look after each change (devpi_server.mythread.ThreadPool)."""
        while True:
            try:
                serial = self.apply()
                self.xom.keyfs.wait_tx_serial(serial + 1, timeout=LOOK, recheck=LOOK)
            except Exception:
                threadlog.exception("the rules of mirrors cannot be applied")
                self.xom.lanmirror_held.failed()
                self.thread.sleep(LOOK)
            time.sleep(PAUSE)
            self.thread.exit_if_shutdown()


class BringsBack:
    """Brings back what may be given after a change of the rules."""

    thread: Any

    def __init__(self, xom: Any) -> None:
        self.xom = xom

    def thread_run(self) -> None:
        """Do so after each change (devpi_server.mythread.ThreadPool)."""
        held = self.xom.lanmirror_held
        while True:
            if held.changed.is_set():
                held.changed.clear()
                try:
                    held.bring_all_back()
                except Exception:
                    threadlog.exception("files that were set aside cannot be brought back")
            self.thread.sleep(PAUSE)


def told_of(xom: Any, path: str) -> About:
    """Return what the rules ask of a stored file."""
    with xom.keyfs.read_transaction():
        index, _ = split(path)
        stage = xom.model.getstage(index)
        entry = xom.filestore.get_file_entry(path) if stage is not None else None
        # Its page may be large, and tells no more than its date.
        known = entries.known(stage, path) if stage is not None and coming.of_stage(stage).min_age_days else None
        return coming.about(path, {"project": entry.project} if entry is not None else {}, known)


def is_held(data: Path, path: str) -> bool:
    """Return whether a file is set aside."""
    index, below = split(path)
    folder = data / "+files" / FOLDER / index
    return any((folder / number / below).is_file() for number in names(folder))


def configure() -> None:
    """Let devpi start although the file that it stored last was set aside since.

    Before devpi opens its database, which is before the hook that everything else is installed by.
    """

    def _perform_crash_recovery(self: Any, infos: Iterable[tuple[str, Any, Any, bool]]) -> None:
        """Finish what devpi was doing when it ended: it refuses to start where a file is missing."""
        theirs(
            self,
            [
                (rename, path, info, deleted)
                for rename, path, info, deleted in infos
                if deleted or (self.basedir / rename).exists() or not is_held(self.basedir, str(path))
            ],
        )

    theirs = replace(filestore_fs.FSIOFile, "_perform_crash_recovery", _perform_crash_recovery)


def install(xom: Any, malware_list: str) -> None:
    """Apply the rules, and the list of known malware in that file, now and after each change."""
    xom.lanmirror_held = Held(Path(xom.config.server_path), lambda path: told_of(xom, path))
    applies = Applies(xom, malware_list)
    try:
        applies.apply()
    except OSError:
        # As on a full disk. It is tried again.
        threadlog.exception("the rules of mirrors cannot be applied")
        xom.lanmirror_held.failed()
    xom.thread_pool.register(applies)
    xom.thread_pool.register(BringsBack(xom))
