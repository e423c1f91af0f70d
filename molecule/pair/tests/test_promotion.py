"""The primary is lost, the replica takes its place, and the machine that comes back follows it: docs/replicas.md."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import INVENTORY, attempt, build, devpi_answers, devpi_status, get, installed, playbook, run, upload, wait

pytestmark = pytest.mark.usefixtures("one_server")


def inventory(folder: Path, primary: str, *replicas: str) -> Path:
    """Write the inventory of the scenario, with other servers in the groups of the cache; give its path."""
    place = folder / "lab"
    shutil.copytree(INVENTORY, place)
    groups = yaml.safe_load((place / "hosts.yml").read_text())
    hosts = groups["pypi_cache"]["hosts"] | groups["pypi_replicas"]["hosts"]
    groups["pypi_cache"]["hosts"] = {primary: hosts[primary]}
    groups["pypi_replicas"]["hosts"] = {name: hosts[name] for name in replicas}
    (place / "hosts.yml").write_text(yaml.safe_dump(groups))
    return place


def test_primary_is_not_made_a_replica_of_its_own(server: Any, replica: Any, tmp_path: Path) -> None:
    """A swap of the two would lose the primary's packages: refused before anything changes, with the fix."""
    done = playbook("site.yml", inventory=inventory(tmp_path, "replica", "server"))
    assert done.code != 0
    assert 'devpi_role is "replica", but server has been a primary so far' in done.said
    assert "mv /var/lib/devpi /var/lib/devpi.old" in done.said
    assert set(done.changed.values()) == {0}
    assert devpi_status(server)["role"] == "MASTER"
    assert attempt(replica, "systemctl is-active devpi").rc != 0


def test_replica_takes_the_place_of_a_lost_primary(server: Any, replica: Any, workstation: Any, tmp_path: Path) -> None:
    run(server, "systemctl stop nginx devpi")
    done = playbook("playbooks/pypi_cache.yml", inventory=inventory(tmp_path, "replica"))
    assert done.code == 0, done.output
    assert devpi_status(replica)["role"] == "MASTER"
    # What was uploaded before either was lost, and the users with their passwords.
    assert installed(workstation, "replica", "owncopied") == "1.0"
    done = upload(workstation, "twine", "https://replica/lab/dev/", build(workstation, "afterwards", "1.0"))
    assert done.rc == 0, done.stdout + done.stderr
    assert installed(workstation, "replica", "afterwards") == "1.0"
    assert get(workstation, "https://replica/root/pypi/+simple/idna/")[0] == 200
    done = playbook("playbooks/pypi_cache.yml", inventory=inventory(tmp_path / "again", "replica"))
    assert done.code == 0, done.output
    assert set(done.changed.values()) == {0}


def test_machine_that_comes_back_follows_it(server: Any, replica: Any, workstation: Any, tmp_path: Path) -> None:
    run(server, "mv /var/lib/devpi /var/lib/devpi.old")
    done = playbook("playbooks/pypi_cache.yml", inventory=inventory(tmp_path, "replica", "server"))
    assert done.code == 0, done.output
    assert devpi_status(server)["role"] == "REPLICA"
    wait("the replica in sync", 60, lambda: devpi_status(server)["replica-in-sync-at"] is not None)
    run(replica, "systemctl stop nginx devpi")
    try:
        assert installed(workstation, "server", "afterwards") == "1.0"
    finally:
        run(replica, "systemctl start nginx devpi")
        wait("devpi after its start", 60, lambda: devpi_answers(replica))
