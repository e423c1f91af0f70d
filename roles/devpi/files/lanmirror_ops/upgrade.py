"""Move devpi to another venv, together with playbooks/upgrade.yml."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from . import OpsError
from .backup import backup
from .database import live_damage, read_state
from .files import need_room
from .serving import must_serve, serves
from .settings import Settings
from .system import must_answer, run, say
from .undo import forget, kept_undo, or_back, put_aside, refuse_unfinished


def begin(settings: Settings, venv: Path) -> str:
    """Stop devpi and make its data ready for another venv; return what was done, in a line.

    The venv itself, the configuration and the unit are changed by the role, then `finish` decides.

    Raises:
        OpsError: It is refused, with nothing changed, or failed, with the old state back.
    """
    refuse_unfinished(settings)
    try:
        new = read_state(venv)
    except OpsError as error:
        raise OpsError(
            f"the new devpi does not run, and nothing was changed: {error}; delete {venv} to have it made anew"
        ) from error
    old = settings.current.resolve()
    try:
        version = read_state(old)["version"]
    except OpsError:
        # The Python it was made with went away with an upgrade of the system.
        version, old = "", venv
    has = (settings.data / ".serverversion").read_text(encoding="utf-8").strip().split(".")[0]
    move = has != new["database"]
    if move and int(has) > int(new["database"]):
        raise OpsError(
            f"devpi-server {new['version']} of this checkout has databases of version {new['database']}, and this "
            f"server has one of version {has}, by devpi-server {version or 'unknown'}: take a newer checkout, or "
            "restore a backup"
        )
    replica = json.loads((settings.data / ".nodeinfo").read_text(encoding="utf-8")).get("role") == "replica"
    anew = f"empty {settings.data} here, and set the replica up anew with site.yml"
    if move and replica:
        raise OpsError(
            f"this replica has a database of version {has}, and devpi-server {new['version']} has {new['database']}: "
            f"upgrade the primary, {anew}"
        )
    if move and not version:
        raise OpsError(
            f"the database of version {has} must be exported by the devpi that runs, and {settings.current} does not "
            "run: make the Python that it was made with available again"
        )
    need_room(settings.data, 2 * settings.database.stat().st_size, "the upgrade")
    # A replica may lack files yet, and has nothing that its primary has not. A backup looks at the database itself.
    if replica and (said := live_damage(old, settings.database)):
        raise OpsError(f"the database of this replica is damaged ({said}): {anew}")
    made = "none, of a replica" if replica else backup(settings, old)
    serving = serves(settings.url, read_state(old, settings.database))
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
        path=old / "src",
    )
    say("the new devpi imports it")
    run(
        new / "bin/devpi-import",
        *("--serverdir", settings.data, "--hard-links", "--no-events", export),
        user=settings.user,
        path=new / "src",
    )
    shutil.rmtree(export)


def finish(settings: Settings) -> str:
    """Return what came of an upgrade, in a line, if devpi serves what it did before.

    Raises:
        OpsError: It does not; nothing is changed yet.
    """
    undo = kept_undo(settings, "no upgrade is under way")
    must_answer(settings)
    must_serve(settings.url, undo.serves or {})
    forget(settings, undo, data=not undo.moved)
    if undo.moved:
        data = settings.old_data / undo.name
        return f"devpi serves what it did before; its old data is in {data}, to be deleted when you are content"
    return "devpi serves what it did before"
