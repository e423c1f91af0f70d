#!/usr/bin/python3
"""Back up devpi, restore it, and move it to another version; installed as lanmirror-devpi, for root on the server.

  lanmirror-devpi backup           a backup, while devpi runs; prints its folder
  lanmirror-devpi check BACKUP     whether a backup is whole, and of which version; changes nothing
  lanmirror-devpi restore BACKUP   put a backup (a folder, or a .tar that `pack` made) in the place of what is there
  lanmirror-devpi pack BACKUP TAR  one file of it, to carry elsewhere
  lanmirror-devpi begin VENV       stop devpi and make its data ready for another venv; playbooks/upgrade.yml goes on
  lanmirror-devpi finish           the upgrade is over, if devpi serves what it did before
  lanmirror-devpi back             undo a restore or an upgrade that was cut short

Why not `devpi-export`: it copies or links each file and writes all metadata anew, devpi's import then takes minutes to
hours, and what was cached is lost or costs as much again. Here the database is copied by SQLite's own online backup
(https://sqlite.org/backup.html), which is consistent while devpi writes, and files are hard links where the folder of
backups is on the same disk: devpi writes a file once, under a name of its own, and never changes it. A linked file
keeps its owner and mode; the folder above it lets nobody but root in.

Exit codes: 0 done; 1 refused or failed, with one line that says why, and the state as it was before; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

SETTINGS = Path("/etc/devpi/life.toml")
FORMAT = 1
MANIFEST = "manifest.json"
# Old data is put there, in the folder of the data: that may be a disk of its own, which cannot be renamed, and links do
# not leave it. Nothing that root acts on later is kept where devpi's user could change it.
ASIDE = ".lanmirror-aside"
DATABASE = ".sqlite"
# What devpi keeps beside its database; the serial of the last event comes first, it must not be ahead of the database.
SMALL = (".event_serial", ".nodeinfo", ".serverversion")
CONF = ("secret", "root-password")
NAME = re.compile(r"devpi-\d{8}T\d{6}Z")
# A package that is deleted while the backup is made takes another try; more than that is a fault of the data.
ATTEMPTS = 3
# Room left over on the disk, bytes.
RESERVE = 64 << 20
START_SECONDS = 60
FALLS = 3

# Reads a database of devpi's, with devpi's own reader of its format; run by the Python of a venv of devpi's.
STATE = r"""
import json, re, sqlite3, sys
from importlib.metadata import version
from devpi_server.fileutil import loads
from devpi_server.main import DATABASE_VERSION
state = {"version": version("devpi-server"), "database": DATABASE_VERSION}
if sys.argv[1:]:
    db = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, timeout=60)
    db.execute("begin")
    def values(where, *arguments):
        for key, serial in db.execute(f"select key, serial from kv where {where}", arguments).fetchall():
            row = db.execute("select data from changelog where serial = ?", (serial,)).fetchone()
            value = loads(row[0])[0][key][2]
            if value is not None:
                yield key, value
    indexes = {f"{key.split('/')[0]}/{name}": settings.get("type")
               for key, value in values("keyname = 'USER'") for name, settings in value.get("indexes", {}).items()}
    mirrors = sorted(name for name, kind in indexes.items() if kind == "mirror")
    files, uploads = {}, {}
    for name in sorted(set(indexes) - set(mirrors)):
        for key, value in values("keyname in ('STAGEFILE', 'PYPIFILE_NOMD5') and key >= ? and key < ?",
                                 name + "/", name + "0"):
            if value.get("last_modified"):
                hashes = value.get("hashes") or {}
                spec = str(value.get("hash_spec") or "")
                files[key] = hashes.get("sha256") or (spec[7:] if spec.startswith("sha256=") else "")
                if "/+f/" in key and value.get("project"):
                    project = re.sub(r"[-_.]+", "-", value["project"]).lower()
                    uploads.setdefault(f"{name}/+simple/{project}/", []).append(key.split("/")[-1])
    row = db.execute("select data from changelog order by serial desc limit 1").fetchone()
    renames = loads(row[0])[1] if row else []
    # devpi looks for these files when it starts.
    last = [re.sub(r"(-[0-9a-fA-F]{8,64})?-tmp$", "", name) for name in renames if name.endswith("-tmp")]
    pages = [f"{name}/+simple/{key[len(name) + 1:].split('/')[0]}/" for name in mirrors for (key,) in db.execute(
        "select key from kv where keyname = 'PROJSIMPLELINKS' and key >= ? and key < ? order by serial desc limit 3",
        (name + "/", name + "0"))]
    state |= {"mirrors": mirrors, "files": files, "last": last, "pages": pages, "uploads": uploads}
print(json.dumps(state))
"""


class LifeError(Exception):
    """Something is refused or failed; the message says what, and what to do."""


@dataclass(frozen=True)
class Settings:
    """Where things are; written by the role."""

    data: Path
    backups: Path
    keep: int
    """How many backups are kept, 1 or more."""
    cache: bool
    """Whether files that mirrors can fetch again are in a backup."""
    url: str
    user: str
    conf: Path = Path("/etc/devpi")
    prefix: Path = Path("/opt/devpi")
    unit: Path = Path("/etc/systemd/system/devpi.service")

    @property
    def current(self) -> Path:
        """The link to the venv that runs."""
        return self.prefix / "current"

    @property
    def old_data(self) -> Path:
        """Where data is put aside."""
        return self.data / ASIDE

    @property
    def old_conf(self) -> Path:
        """Where the configuration is put aside, and how to come back; devpi's user cannot write there."""
        return self.prefix / "aside"


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


def load_settings(path: Path) -> Settings:
    """Read the settings of the role.

    Raises:
        LifeError: There are none.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LifeError(f"{path} is missing: set the server up first, with site.yml") from None
    paths: dict[str, Any] = {
        key: Path(values[key]) for key in ("data", "backups", "conf", "prefix", "unit") if key in values
    }
    return Settings(**(values | paths))


# ---- small tools ---------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Tell whoever runs this."""
    print(text, flush=True)


def as_numbers(version: str) -> tuple[int, ...]:
    """Return a version as numbers to compare; what follows the first three says nothing here."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def copy(source: Path, target: Path) -> None:
    """Copy a file with its mode, times and owner, so that the target is the old one or the new one."""
    new = target.with_name(f"{target.name}.new")
    new.unlink(missing_ok=True)
    shutil.copy2(source, new, follow_symlinks=False)
    status = source.lstat()
    os.chown(new, status.st_uid, status.st_gid, follow_symlinks=False)
    new.replace(target)


def link(source: Path, target: Path) -> None:
    """Link a file that never changes, or copy it where its disk is another one.

    Raises:
        LifeError: The way there has a symbolic link after `+files`, which devpi does not make.
    """
    way = [part for part in (source, *source.parents) if "+files" in part.parts]
    if any(part.is_symlink() for part in way):
        raise LifeError(f"{source} is a symbolic link, or behind one, and none of devpi's: delete it")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)
        target.chmod(0o600)


def ask_for_room(folder: Path, need: int, what: str) -> None:
    """Refuse when a disk has too little room, before anything is written there.

    Raises:
        LifeError: It has less than `need` bytes and a reserve.
    """
    free = shutil.disk_usage(folder).free
    if free < need + RESERVE:
        mib = 1 << 20
        raise LifeError(
            f"{what} needs {(need + RESERVE) // mib} MiB in {folder}, which has {free // mib} MiB free: "
            "make room there, or take another disk (devpi_backup_dir, devpi_data_dir)"
        )


def same_disk(one: Path, other: Path) -> bool:
    """Return whether files can be linked between two folders."""
    return one.stat().st_dev == other.stat().st_dev


def run(*command: str | Path, user: str = "", must: bool = True) -> str:
    """Run a command and return what it printed; one that `must` not may fail.

    Raises:
        LifeError: It failed; with its last line.
    """
    words = [str(word) for word in command]
    prefix = ["/usr/sbin/runuser", "-u", user, "--"] if user else []
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "LANG": "C.UTF-8", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(  # noqa: S603 - no shell, and no word of it comes from outside
            prefix + words, check=False, capture_output=True, text=True, env=environment, umask=0o027, cwd="/"
        )
    except OSError as error:
        raise LifeError(f"{words[0]} cannot be run: {error}") from error
    if done.returncode and must:
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        raise LifeError(f"{words[0]} failed: {lines[-1][:300]}")
    return done.stdout


def read_state(venv: Path, database: Path | None = None) -> dict[str, Any]:
    """Return version and database version of a venv, and what a database names.

    Raises:
        LifeError: The venv does not run, or cannot read the database.
    """
    state: dict[str, Any] = json.loads(run(venv / "bin/python", "-c", STATE, *([database] if database else [])))
    return state


# ---- devpi while it runs -------------------------------------------------------------------------------------


def ask(settings: Settings, method: str, path: str, body: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Return status and text of devpi's own answer, Nginx not asked; OSError when there is none."""
    parts = urlsplit(settings.url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=30)
    headers = {"Accept": "application/json" if body or path == "/+api" else "text/html"}
    try:
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    except http.client.HTTPException as error:
        raise ConnectionResetError(str(error) or type(error).__name__) from error
    finally:
        connection.close()


def page(settings: Settings, path: str) -> str:
    """Return the page of a project, empty when devpi has none."""
    try:
        status, text = ask(settings, "GET", f"/{quote(path, safe='/+')}")
    except OSError:
        return ""
    return text if status == http.HTTPStatus.OK else ""


def serves(settings: Settings, state: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return pages that devpi serves now, a few of mirrors and a few of uploaded packages, and names on the latter."""
    wanted: dict[str, list[str]] = {path: [] for path in state["pages"]}
    wanted |= list(state["uploads"].items())[:3]
    if not wanted and "root/pypi" in state["mirrors"]:
        wanted = {"root/pypi/+simple/pip/": []}
    texts = {path: page(settings, path) for path in wanted}
    return {path: [name for name in names if name in texts[path]] for path, names in wanted.items() if texts[path]}


def start(settings: Settings) -> None:
    """Start devpi and return as soon as it answers.

    Raises:
        LifeError: It does not, or keeps falling over.
    """
    run("systemctl", "daemon-reload")
    # A systemd that gave up on it would refuse.
    run("systemctl", "reset-failed", settings.unit.name, must=False)
    run("systemctl", "start", settings.unit.name)
    wait(settings)


def wait(settings: Settings) -> None:
    """Return as soon as devpi answers.

    Raises:
        LifeError: It does not, or keeps falling over.
    """
    end = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError):
            status, _ = ask(settings, "GET", "/+api")
            if status == http.HTTPStatus.OK:
                return
        falls = int(run("systemctl", "show", "--property=NRestarts", "--value", settings.unit.name).strip() or 0)
        if falls >= FALLS or time.monotonic() > end:
            why = f"it fell over {falls} times" if falls else f"it does not answer within {START_SECONDS} seconds"
            journal = run("journalctl", "--no-pager", "--output=cat", "--lines=12", f"--unit={settings.unit.name}")
            errors = [line for line in journal.splitlines() if re.match(r"\w*(Error|Exception|Fatal)\b", line.strip())]
            raise LifeError(f"devpi does not start, {why}{': ' + errors[-1].strip()[:300] if errors else ''}")
        time.sleep(0.3)


def must_serve(settings: Settings, before: Mapping[str, Sequence[str]]) -> None:
    """Return if devpi serves what it did before.

    Raises:
        LifeError: A page or a name on it is gone.
    """
    for path, names in before.items():
        text = page(settings, path)
        if not text:
            raise LifeError(f"devpi does not serve /{path}, which it did before")
        for name in names:
            if name not in text:
                raise LifeError(f"devpi has no {name} on /{path}, where it was before")


# ---- backup --------------------------------------------------------------------------------------------------


def contents(settings: Settings, state: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files of a backup, by their names in it, without the database."""
    names = {f"data/{name}": settings.data / name for name in SMALL if (settings.data / name).exists()}
    names |= {f"conf/{name}": settings.conf / name for name in CONF}
    stored = settings.data / "+files"
    names |= {f"data/{name}": settings.data / name for name in state["last"]}
    names |= {f"data/+files/{name}": stored / name for name in state["files"]}
    for mirror in state["mirrors"] if settings.cache else []:
        for path in (stored / mirror).rglob("*"):
            if path.is_file() and not path.name.endswith("-tmp"):
                names[f"data/+files/{path.relative_to(stored)}"] = path
    return names


def snapshot(source: Path, target: Path) -> None:
    """Copy a database while it is written to, as of one moment."""
    with (
        contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=60)) as old,
        contextlib.closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)
    target.chmod(0o600)


def fill(settings: Settings, venv: Path, folder: Path) -> dict[str, Any]:
    """Put all but the manifest into the folder of a backup and return the state of its database.

    Raises:
        FileNotFoundError: A file that the database names was deleted, now or long ago.
    """
    (folder / "data").mkdir(mode=0o700, parents=True)
    (folder / "conf").mkdir(mode=0o700)
    for name in SMALL:
        if (settings.data / name).exists():
            copy(settings.data / name, folder / "data" / name)
            (folder / "data" / name).chmod(0o600)
    snapshot(settings.data / DATABASE, folder / "data" / DATABASE)
    state = read_state(venv, folder / "data" / DATABASE)
    for name, source in contents(settings, state).items():
        if name.startswith("data/+files/"):
            required = (
                name.removeprefix("data/+files/") in state["files"] or name.removeprefix("data/") in state["last"]
            )
            # A cached file may be evicted while this runs.
            with contextlib.nullcontext() if required else contextlib.suppress(FileNotFoundError):
                link(source, folder / name)
        elif name.startswith("conf/"):
            copy(source, folder / name)
    return state


def described(folder: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of a backup.

    Raises:
        LifeError: An uploaded file has not the bytes that devpi was given.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(folder))
            files[name] = {"size": path.stat().st_size, "sha256": sha256(path)}
            known = state["files"].get(name.removeprefix("data/+files/"))
            if known and known != files[name]["sha256"]:
                raise LifeError(
                    f"{name.removeprefix('data/')} is damaged on the disk: it has not the sha256 that it was uploaded "
                    "with; upload it again, or take it from an older backup"
                )
    return {
        "format": FORMAT,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        "devpi_server": state["version"],
        "database": (folder / "data/.serverversion").read_text(encoding="utf-8").strip(),
        "uuid": json.loads((folder / "data/.nodeinfo").read_text(encoding="utf-8")).get("uuid"),
        "files": files,
    }


def whole_backups(folder: Path) -> list[Path]:
    """Return the backups in a folder, the oldest first; one that was cut short has another name."""
    return sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name) and (path / MANIFEST).is_file())


def backup(settings: Settings, venv: Path) -> Path:
    """Make a backup and return its folder.

    Raises:
        LifeError: There is nothing to back up, too little room, or the data is not whole.
    """
    database = settings.data / DATABASE
    if not database.exists():
        raise LifeError(f"{settings.data} has no database of devpi's: set the server up first, with site.yml")
    settings.backups.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.backups.chmod(0o700)
    for path in settings.backups.glob(".devpi-*.partial"):
        shutil.rmtree(path)
    need = database.stat().st_size
    if not same_disk(settings.data, settings.backups):
        sources = contents(settings, read_state(venv, database)).values()
        need += sum(path.stat().st_size for path in sources if path.exists())
    ask_for_room(settings.backups, need, "the backup")
    name = time.strftime("devpi-%Y%m%dT%H%M%SZ", time.gmtime())
    partial, done = settings.backups / f".{name}.partial", settings.backups / name
    try:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                state = fill(settings, venv, partial)
                break
            except FileNotFoundError as error:
                shutil.rmtree(partial, ignore_errors=True)
                if attempt == ATTEMPTS:
                    raise LifeError(
                        f"{error.filename} is missing, and devpi's database names it: put it there again from an older "
                        "backup, or delete that release"
                    ) from error
                time.sleep(1)
        manifest = described(partial, state)
        (partial / MANIFEST).touch(mode=0o600)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        os.sync()
        partial.rename(done)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in whole_backups(settings.backups)[: -settings.keep]:
        shutil.rmtree(old)
    return done


# ---- a backup that is there ----------------------------------------------------------------------------------


def safe(name: str) -> bool:
    """Return whether a name of a backup stays inside it."""
    parts = PurePosixPath(name).parts
    return len(parts) > 1 and parts[0] in {"data", "conf"} and ".." not in parts and "\x00" not in name


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a backup.

    Raises:
        LifeError: It has none that this program reads.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        known = manifest["format"] == FORMAT and all(safe(name) for name in manifest["files"])
    except FileNotFoundError:
        raise LifeError(f"{folder} is no backup: it has no {MANIFEST}; backups are {NAME.pattern}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise LifeError(f"{folder / MANIFEST} is damaged ({error}): take another backup") from None
    if not known:
        raise LifeError(f"{folder / MANIFEST} is not of format {FORMAT}, or names a file outside of the backup")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """Return the manifest of a backup that is whole.

    Raises:
        LifeError: A file is missing or has not the size or the bytes that the manifest says.
    """
    manifest = read_manifest(folder)
    for needed in (f"data/{DATABASE}", "data/.serverversion", "data/.nodeinfo", *(f"conf/{name}" for name in CONF)):
        if needed not in manifest["files"]:
            raise LifeError(f"the manifest of {folder} does not name {needed}: take another backup")
    for name, expected in manifest["files"].items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise LifeError(f"the backup {folder} has no {name}, which its manifest names: take another backup")
        if path.stat().st_size != expected["size"] or sha256(path) != expected["sha256"]:
            raise LifeError(f"{name} in the backup {folder} is not what its manifest says: take another backup")
    return manifest


def refuse_other_versions(manifest: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse a backup that the devpi of this server cannot run on.

    Raises:
        LifeError: It is from a newer devpi, or one with another kind of database.
    """
    if as_numbers(manifest["devpi_server"]) > as_numbers(here["version"]):
        raise LifeError(
            f"the backup was made by devpi-server {manifest['devpi_server']}, and this server has {here['version']}: "
            "move it to that version or a newer one first, with playbooks/upgrade.yml of a lanmirror that pins it"
        )
    if manifest["database"].split(".")[0] != here["database"]:
        raise LifeError(
            f"the backup has a database of version {manifest['database']}, and devpi-server {here['version']} of this "
            f"server needs {here['database']}: restore it on a server with devpi-server {manifest['devpi_server']}, "
            "and upgrade that with playbooks/upgrade.yml"
        )


def unpack(tar: Path, folder: Path) -> None:
    """Take a backup out of one file; a member that would leave the folder is not taken.

    Raises:
        LifeError: It is no such file.
    """
    ask_for_room(folder.parent, tar.stat().st_size, "unpacking the backup")
    folder.mkdir(mode=0o700)
    try:
        with tarfile.open(tar) as archive:
            for member in archive:
                if member.isfile() and (member.name == MANIFEST or safe(member.name)):
                    target = folder / member.name
                    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    stream = archive.extractfile(member)
                    if stream is not None:
                        with target.open("xb") as out:
                            shutil.copyfileobj(stream, out, 1 << 20)
    except (tarfile.TarError, EOFError, FileExistsError) as error:
        raise LifeError(f"{tar} is no backup, or was cut short ({error}): take another one") from error


@contextlib.contextmanager
def opened(source: Path, beside: Path) -> Iterator[Path]:
    """Give the folder of a backup, which may come as one file."""
    if source.is_dir():
        yield source
        return
    if not source.is_file():
        raise LifeError(f"there is no backup {source} on this server: name a folder devpi-… or a .tar of one")
    beside.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = beside / ".unpacked"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        unpack(source, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def pack(folder: Path, tar: Path) -> None:
    """Make one file of a backup."""
    names = [MANIFEST, *read_manifest(folder)["files"]]
    ask_for_room(tar.parent, sum((folder / name).stat().st_size for name in names), "packing the backup")
    tar.unlink(missing_ok=True)
    tar.touch(mode=0o600)
    with tarfile.open(tar, "w") as archive:
        for name in names:
            archive.add(folder / name, name, recursive=False)


# ---- coming back ---------------------------------------------------------------------------------------------


def undo_file(settings: Settings) -> Path:
    """Return where an Undo is kept."""
    return settings.old_conf / "undo.json"


def keep_undo(settings: Settings, undo: Undo) -> None:
    """Write down how to come back."""
    path = undo_file(settings)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(asdict(undo)), encoding="utf-8")
    os.sync()
    new.replace(path)


def refuse_unfinished(settings: Settings) -> None:
    """Refuse to go on from a state that is neither the old nor the new one.

    Raises:
        LifeError: A restore or an upgrade was cut short.
    """
    if undo_file(settings).exists():
        what = json.loads(undo_file(settings).read_text(encoding="utf-8"))["what"]
        raise LifeError(f"this server's last {what} was cut short: run `lanmirror-devpi back` on it first")


def entries(folder: Path) -> list[Path]:
    """Return what is in the folder of the data, without what was put aside."""
    return [path for path in folder.iterdir() if path.name != ASIDE]


def put_aside(settings: Settings, what: str, *, move: bool, serving: Mapping[str, Sequence[str]]) -> Undo:
    """Stop devpi and put its state aside: the data as a whole or its database, the configuration, the unit."""
    name = time.strftime(f"%Y%m%dT%H%M%SZ-before-{what}", time.gmtime())
    data, conf = settings.old_data / name, settings.old_conf / name
    for folder in (data, conf):
        folder.mkdir(mode=0o700, parents=True)
    run("systemctl", "stop", settings.unit.name)
    for path in [*settings.conf.iterdir(), settings.unit]:
        if path.is_file():
            copy(path, conf / path.name)
    version = ""
    with contextlib.suppress(LifeError):
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
        LifeError: There is nothing to come back to, or devpi does not start.
    """
    path = undo_file(settings)
    if not path.exists():
        raise LifeError("nothing was cut short: there is no restore and no upgrade to come back from")
    undo = Undo(**json.loads(path.read_text(encoding="utf-8")))
    data, conf = settings.old_data / undo.name, settings.old_conf / undo.name
    run("systemctl", "stop", settings.unit.name, must=False)
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
    path.unlink()
    for folder in (data, conf):
        shutil.rmtree(folder)
    return undo


@contextlib.contextmanager
def or_back(settings: Settings, what: str) -> Iterator[None]:
    """Have the old state back, and say so, when what is done within fails.

    Raises:
        LifeError: It failed.
    """
    try:
        yield
    except BaseException as error:
        if undo_file(settings).exists():
            back(settings)
        else:
            run("systemctl", "start", settings.unit.name, must=False)
        raise LifeError(f"the {what} failed, and what was there before is back and serves: {error}") from error


def point(settings: Settings, venv: Path) -> None:
    """Have `current` name a venv."""
    new = settings.prefix / ".current.new"
    new.unlink(missing_ok=True)
    new.symlink_to(venv)
    new.replace(settings.current)


# ---- restore -------------------------------------------------------------------------------------------------


def place(settings: Settings, folder: Path, manifest: Mapping[str, Any], old: Path) -> None:
    """Put a backup in the place of the data, with devpi as its owner."""
    for name in manifest["files"]:
        target = (settings.data if name.startswith("data/") else settings.conf) / name.split("/", 1)[1]
        if "+files" in PurePosixPath(name).parts:
            link(folder / name, target)
        elif name.startswith("data/"):
            copy(folder / name, target)
        else:
            shutil.copyfile(folder / name, target)
    # The cache of this server is as good for the database of the backup: names of files are made of their hashes.
    state = read_state(settings.current, settings.data / DATABASE)
    for mirror in state["mirrors"]:
        for path in (old / "+files" / mirror).rglob("+f/**/*"):
            target = settings.data / path.relative_to(old)
            if path.is_file() and not path.is_symlink() and not target.exists():
                link(path, target)
    for root, folders, files in os.walk(settings.data):
        if Path(root) == settings.data:
            folders.remove(ASIDE)
        for name in folders:
            shutil.chown(Path(root, name), settings.user, settings.user)
            Path(root, name).chmod(0o750)
        for name in files:
            shutil.chown(Path(root, name), settings.user, settings.user)
            Path(root, name).chmod(0o640 if Path(root) != settings.data else 0o600)


def log_in(settings: Settings) -> None:
    """Return if the password that the server keeps is root's.

    Raises:
        LifeError: It is not.
    """
    password = (settings.conf / "root-password").read_text(encoding="utf-8")
    status, _ = ask(settings, "POST", "/+login", {"user": "root", "password": password})
    if status != http.HTTPStatus.OK:
        raise LifeError("devpi does not take the root password of the backup")


def restore(settings: Settings, source: Path) -> tuple[dict[str, Any], Undo]:
    """Put a backup in the place of what is there; return its manifest, and what the old state was put aside as.

    Raises:
        LifeError: It is refused, with nothing changed, or failed, with the old state back.
    """
    refuse_unfinished(settings)
    with opened(source, settings.backups) as folder:
        manifest = verify(folder)
        refuse_other_versions(manifest, read_state(settings.current))
        stored = [name for name in manifest["files"] if "+files" in PurePosixPath(name).parts]
        need = manifest["files"][f"data/{DATABASE}"]["size"]
        if not same_disk(folder, settings.data):
            need += sum(manifest["files"][name]["size"] for name in stored)
        ask_for_room(settings.data, need, "the restore")
        with or_back(settings, "restore"):
            undo = put_aside(settings, "restore", move=True, serving={})
            place(settings, folder, manifest, settings.old_data / undo.name)
            start(settings)
            log_in(settings)
            state = read_state(settings.current, settings.data / DATABASE)
            # Without those that only some may read.
            uploads = {path: names for path, names in list(state["uploads"].items())[:3] if page(settings, path)}
            must_serve(settings, uploads)
    undo_file(settings).unlink()
    return manifest, undo


# ---- upgrade -------------------------------------------------------------------------------------------------


def begin(settings: Settings, venv: Path) -> str:
    """Stop devpi and make its data ready for another venv; return what was done, in a line.

    The venv itself, the configuration and the unit are changed by the role, then `finish` decides.

    Raises:
        LifeError: It is refused, with nothing changed, or failed, with the old state back.
    """
    refuse_unfinished(settings)
    try:
        new = read_state(venv)
    except LifeError as error:
        raise LifeError(
            f"the new devpi does not run, and nothing was changed: {error}; delete {venv} to have it made anew"
        ) from error
    old = settings.current.resolve()
    try:
        version = read_state(old)["version"]
    except LifeError:
        # The Python it was made with went away with an upgrade of the system.
        version, old = "", venv
    has = (settings.data / ".serverversion").read_text(encoding="utf-8").strip().split(".")[0]
    move = has != new["database"]
    if move and int(has) > int(new["database"]):
        raise LifeError(
            f"devpi-server {new['version']} of this checkout has databases of version {new['database']}, and this "
            f"server has one of version {has}, by devpi-server {version or 'unknown'}: take a newer checkout, or "
            "restore a backup"
        )
    replica = json.loads((settings.data / ".nodeinfo").read_text(encoding="utf-8")).get("role") == "replica"
    if move and replica:
        raise LifeError(
            f"this replica has a database of version {has}, and devpi-server {new['version']} has {new['database']}: "
            f"upgrade the primary, empty {settings.data} here, and set the replica up anew with site.yml"
        )
    if move and not version:
        raise LifeError(
            f"the database of version {has} must be exported by the devpi that runs, and {settings.current} does not "
            "run: make the Python that it was made with available again"
        )
    ask_for_room(settings.data, 2 * (settings.data / DATABASE).stat().st_size, "the upgrade")
    serving = serves(settings, read_state(old, settings.data / DATABASE))
    # A replica may lack files yet, and has nothing that its primary has not.
    made = "none, of a replica" if replica else backup(settings, old)
    with or_back(settings, "upgrade"):
        undo = put_aside(settings, "upgrade", move=move, serving=serving)
        if move:
            change_database(settings, old, venv, settings.old_data / undo.name)
    how = f"database {has} exported and imported as {new['database']}" if move else f"database {has} stays"
    return f"devpi-server {version or 'that did not run'} to {new['version']}, {how}; backup: {made}"


def change_database(settings: Settings, old: Path, new: Path, data: Path) -> None:
    """Have the old devpi export its data and the new one import it; files are linked, those of mirrors as well."""
    # Both run as devpi's user, and the former writes here.
    for path in (settings.old_data, data):
        shutil.chown(path, settings.user, settings.user)
    export = settings.old_data / "export"
    shutil.rmtree(export, ignore_errors=True)
    say("devpi exports its data")
    run(
        old / "bin/devpi-export",
        *("--serverdir", data, "--include-mirrored-files", "--hard-links", export),
        user=settings.user,
    )
    say("the new devpi imports it")
    run(
        new / "bin/devpi-import",
        *("--serverdir", settings.data, "--hard-links", "--no-events", export),
        user=settings.user,
    )
    shutil.rmtree(export)


def finish(settings: Settings) -> str:
    """Return what came of an upgrade, in a line, if devpi serves what it did before.

    Raises:
        LifeError: It does not; nothing is changed yet.
    """
    path = undo_file(settings)
    if not path.exists():
        raise LifeError("no upgrade is under way")
    undo = Undo(**json.loads(path.read_text(encoding="utf-8")))
    wait(settings)
    must_serve(settings, undo.serves or {})
    path.unlink()
    data = settings.old_data / undo.name
    shutil.rmtree(settings.old_conf / undo.name)
    if undo.moved:
        return f"devpi serves what it did before; its old data is in {data}, to be deleted when you are content"
    shutil.rmtree(data)
    return "devpi serves what it did before"


# ---- the command line ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Refuse to run beside another one of this."""
    with Path("/run/lock/lanmirror-devpi").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LifeError("another lanmirror-devpi runs: wait until it is done") from None
        yield


def act_backup(settings: Settings, _: argparse.Namespace) -> str:
    """Make a backup."""
    refuse_unfinished(settings)
    return str(backup(settings, settings.current))


def act_check(settings: Settings, options: argparse.Namespace) -> str:
    """Check a backup."""
    with opened(options.backup, settings.backups) as folder:
        manifest = verify(folder)
        refuse_other_versions(manifest, read_state(settings.current))
    return f"whole: {len(manifest['files'])} files of {manifest['made']}, devpi-server {manifest['devpi_server']}"


def act_restore(settings: Settings, options: argparse.Namespace) -> str:
    """Restore a backup."""
    manifest, undo = restore(settings, options.backup)
    data, conf = settings.old_data / undo.name, settings.old_conf / undo.name
    return f"devpi serves the backup of {manifest['made']}; what was there before is in {data} and {conf}"


def act_pack(_: Settings, options: argparse.Namespace) -> str:
    """Pack a backup."""
    pack(options.backup, options.tar)
    return str(options.tar)


def act_back(settings: Settings, _: argparse.Namespace) -> str:
    """Come back."""
    undo = back(settings)
    return f"the state before the {undo.what} is back, and devpi-server {undo.version} serves again"


ACTIONS: dict[str, tuple[list[str], Callable[[Settings, argparse.Namespace], str]]] = {
    "backup": ([], act_backup),
    "check": (["backup"], act_check),
    "restore": (["backup"], act_restore),
    "pack": (["backup", "tar"], act_pack),
    "begin": (["venv"], lambda settings, options: begin(settings, options.venv)),
    "finish": ([], lambda settings, _: finish(settings)),
    "back": ([], act_back),
}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="the file that the role writes [%(default)s]")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (words, _) in ACTIONS.items():
        command = commands.add_parser(name)
        for word in words:
            command.add_argument(word, type=Path)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; exit codes as the module says."""
    options = arguments(argv)
    os.umask(0o077)
    try:
        with alone():
            say(ACTIONS[options.command][1](load_settings(options.settings), options))
    except (LifeError, OSError, sqlite3.Error) as error:
        print(f"lanmirror-devpi: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
