"""A lab's own packages: uploaded to either server with twine and uv, and there at once on both."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pair import ALICE, CA, SERVERS, SITE, attempt, run, wait

SOURCE = """
import zipfile, sys
name, version = sys.argv[1:]
info = f"{name}-{version}.dist-info"
files = {
    f"{name}.py": f"version = {version!r}\\n",
    f"{info}/METADATA": f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n",
    f"{info}/WHEEL": "Wheel-Version: 1.0\\nGenerator: lab\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
}
files[f"{info}/RECORD"] = "".join(f"{file},,\\n" for file in [*files, f"{info}/RECORD"])
with zipfile.ZipFile(f"/opt/dist/{name}-{version}-py3-none-any.whl", "w") as wheel:
    for file, text in files.items():
        wheel.writestr(file, text)
"""


def build(workstation: Any, name: str, version: str) -> str:
    """Make a wheel on the workstation; give its path."""
    run(workstation, f"mkdir -p /opt/dist && cat > /opt/dist/make.py << 'END'{SOURCE}END")
    run(workstation, f"python3 /opt/dist/make.py {name} {version}")
    return f"/opt/dist/{name}-{version}-py3-none-any.whl"


def upload(workstation: Any, tool: str, url: str, wheel: str, password: str = ALICE) -> Any:
    """Upload with twine or uv, with the password in the environment."""
    tools = "/opt/tools/bin"
    if tool == "twine":
        options = f"--non-interactive --cert {CA} --repository-url {url} -u alice {wheel}"
        command = f"TWINE_PASSWORD={password} {tools}/twine upload {options}"
    else:
        options = f"--publish-url {url} -u alice {wheel}"
        command = f"UV_NATIVE_TLS=1 UV_PUBLISH_PASSWORD={password} {tools}/uv publish {options}"
    return attempt(workstation, command)


def installed(workstation: Any, name: str, package: str) -> str:
    """Install from one server's private index, and give the version that was."""
    run(
        workstation,
        f"rm -rf /opt/own && /opt/tools/bin/pip install -q --no-cache-dir --target /opt/own"
        f" --index-url https://{name}/lab/dev/+simple/ {package}",
    )
    return run(workstation, f"PYTHONPATH=/opt/own python3 -c 'import {package}; print({package}.version)'").strip()


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
    wheel = build(workstation, "copied", "1.0")
    assert upload(workstation, "twine", f"{SITE}/lab/dev/", wheel).rc == 0
    wanted = run(workstation, f"sha256sum {wheel} | cut -c -64")
    find = "find /var/lib/devpi/+files -name copied-1.0-py3-none-any.whl -exec sha256sum {} + | cut -c -64"
    wait("the file on both", 20, lambda: [run(host, find) for host in servers.values()] == [wanted] * len(SERVERS))


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
