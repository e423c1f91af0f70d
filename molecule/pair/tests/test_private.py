"""A lab's own packages: uploaded to either server with twine and uv, and there at once on both."""

from __future__ import annotations

import time
from typing import Any

import pytest
from lab import SERVERS, SITE, build, installed, run, upload, wait


@pytest.mark.parametrize("tool", ["twine", "uv"])
@pytest.mark.parametrize("name", SERVERS)
def test_package_is_there_at_once_on_both(workstation: Any, tool: str, name: str) -> None:
    package = f"own{tool}{name}"
    for version in ("1.0", "1.1"):
        done = upload(workstation, tool, f"https://{name}/lab/dev/", build(workstation, package, version))
        assert done.rc == 0, done.stdout + done.stderr
        other = next(server for server in SERVERS if server != name)
        for where, seconds in ((name, 1.1), (other, 3.0)):
            time.sleep(seconds)
            assert installed(workstation, where, package) == version


def test_file_of_a_private_package_is_copied_to_the_replica(workstation: Any, servers: dict[str, Any]) -> None:
    wheel = build(workstation, "owncopied", "1.0")
    assert upload(workstation, "twine", f"{SITE}/lab/dev/", wheel).rc == 0
    wanted = run(workstation, f"sha256sum {wheel} | cut -c -64")
    find = "find /var/lib/devpi/+files -name owncopied-1.0-py3-none-any.whl -exec sha256sum {} + | cut -c -64"
    wait("the file on both", 60, lambda: [run(host, find) for host in servers.values()] == [wanted] * len(SERVERS))


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("tool", ["twine", "uv"])
def test_upload_to_a_mirror_is_refused_with_the_reason(workstation: Any, name: str, tool: str) -> None:
    done = upload(workstation, tool, f"https://{name}/root/pypi/", build(workstation, "intruder", "1.0"))
    assert done.rc != 0
    said = done.stdout + done.stderr
    assert "404" in said
    # uv shows the status alone.
    assert tool == "uv" or "cannot submit to mirror index" in said


@pytest.mark.parametrize("name", SERVERS)
def test_upload_with_a_wrong_password_is_refused(workstation: Any, name: str) -> None:
    done = upload(
        workstation, "twine", f"https://{name}/lab/dev/", build(workstation, "intruder", "1.0"), "not-hers-at-all"
    )
    assert done.rc != 0
    assert "401" in done.stdout + done.stderr or "403" in done.stdout + done.stderr
