"""Back devpi up, restore it, move it to another version, and look after it while it runs.

  lanmirror-devpi backup           a backup, while devpi runs; prints its folder
  lanmirror-devpi check BACKUP     whether a backup is whole, and of which version; changes nothing
  lanmirror-devpi restore BACKUP   put a backup (a folder, or a .tar that `pack` made) in the place of what is there
  lanmirror-devpi pack BACKUP TAR  one file of it, to carry elsewhere
  lanmirror-devpi begin VENV       stop devpi and make its data ready for another venv; playbooks/upgrade.yml goes on
  lanmirror-devpi finish           the upgrade is over, if devpi serves what it did before
  lanmirror-devpi back             undo a restore or an upgrade that was cut short
  lanmirror-devpi watch            for devpi-watch.service: /health and metrics, for ever
  lanmirror-devpi evict            for devpi-evict.timer: keep the cached files within their limit, check the database
  lanmirror-devpi malware          for devpi-malware.timer: read the list of known malware

Why not `devpi-export`: it copies or links each file and writes all metadata anew, devpi's import then takes minutes to
hours, and what was cached is lost or costs as much again. Here the database is copied by SQLite's own online backup
(https://sqlite.org/backup.html), which is consistent while devpi writes, and files are hard links where the folder of
backups is on the same disk: devpi writes a file once, under a name of its own, and never changes it. A linked file
keeps its owner and mode; the folder above it lets nobody but root in.

Exit codes: 0 done; 1 refused or failed, with one line that says why, and the state as it was before; 2 wrong usage.

It runs on the Python of the distribution (3.11 or newer) and its standard library alone, so that it runs where devpi's
venv does not. Only `devpi_state.py`, `hides.py` and `packages.py` are run by the Python of a venv.
"""


class OpsError(Exception):
    """Something is refused or failed; the message says what, and what to do."""
