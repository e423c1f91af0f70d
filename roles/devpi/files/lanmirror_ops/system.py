"""Run other programs: those of the venvs, and systemd's."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from . import OpsError
from .asking import wait
from .settings import Settings

START_SECONDS = 60
FALLS = 3


def say(text: str) -> None:
    """Tell whoever runs this."""
    print(text, flush=True)


def run(*command: str | Path, user: str = "", must: bool = True, path: Path | None = None) -> str:
    """Run a command and return what it printed; one that `must` not may fail.

    Args:
        command: With its arguments.
        user: Who runs it; empty for who runs this.
        must: Whether a command that fails is an error.
        path: Where Python finds our plugin.

    Raises:
        OpsError: It failed; with its last line.
    """
    words = [str(word) for word in command]
    prefix = ["/usr/sbin/runuser", "-u", user, "--"] if user else []
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "LANG": "C.UTF-8", "PYTHONWARNINGS": "ignore"}
    if path:
        environment["PYTHONPATH"] = str(path)
    try:
        done = subprocess.run(  # noqa: S603 - no shell, and no word of it comes from outside
            prefix + words, check=False, capture_output=True, text=True, env=environment, umask=0o027, cwd="/"
        )
    except OSError as error:
        raise OpsError(f"{words[0]} cannot be run: {error}") from error
    if done.returncode and must:
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        raise OpsError(f"{words[0]} failed: {lines[-1][:300]}")
    return done.stdout


def stop(settings: Settings, *, must: bool = True) -> None:
    """Stop devpi."""
    run("systemctl", "stop", settings.unit.name, must=must)


def start(settings: Settings) -> None:
    """Start devpi and return as soon as it answers.

    Raises:
        OpsError: It does not, or keeps falling over.
    """
    run("systemctl", "daemon-reload")
    # A systemd that gave up on it would refuse.
    run("systemctl", "reset-failed", settings.unit.name, must=False)
    run("systemctl", "start", settings.unit.name)
    must_answer(settings)


def must_answer(settings: Settings) -> None:
    """Return as soon as devpi answers.

    Raises:
        OpsError: It does not, or keeps falling over.
    """

    def falls() -> int:
        shown = run("systemctl", "show", "--property=NRestarts", "--value", settings.unit.name)
        return int(shown.strip() or 0)

    why = wait(settings.url, START_SECONDS, lambda: falls() >= FALLS)
    if why:
        fallen = falls()
        journal = run("journalctl", "--no-pager", "--output=cat", "--lines=12", f"--unit={settings.unit.name}")
        errors = [line for line in journal.splitlines() if re.match(r"\w*(Error|Exception|Fatal)\b", line.strip())]
        told = (
            f"it fell over {fallen} times" if fallen else f"it does not answer within {START_SECONDS} seconds ({why})"
        )
        raise OpsError(f"devpi does not start, {told}{': ' + errors[-1].strip()[:300] if errors else ''}")


def point(settings: Settings, venv: Path) -> None:
    """Have `current` name a venv."""
    new = settings.prefix / ".current.new"
    new.unlink(missing_ok=True)
    new.symlink_to(venv)
    new.replace(settings.current)
