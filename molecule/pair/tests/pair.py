"""The machines of the scenario, and what is done on them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import testinfra  # type: ignore[import-untyped]  # it ships no types
import yaml

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "lab"
# Both servers, as with two addresses in DNS; each is also reached by its own name.
SITE = "https://mirror.lan"
SERVERS = ("server", "replica")
# What a workstation trusts, the roots of both among it.
CA = "/etc/ssl/certs/ca-certificates.crt"
ALICE = str(yaml.safe_load((INVENTORY / "group_vars/pypi_cache.yml").read_text())["devpi_users"][1]["password"])

# Makes a wheel of one module.
WHEEL = """
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


def container(name: str) -> str:
    """Give the name of a machine's container."""
    groups = yaml.safe_load((INVENTORY / "hosts.yml").read_text())
    return str(
        next(group["hosts"][name]["ansible_host"] for group in groups.values() if name in group.get("hosts", {}))
    )


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"docker {shlex.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def run(host: Any, command: str) -> str:
    """Run a command of the shell with nothing of the environment, and give what it printed, stripped."""
    done = attempt(host, command)
    assert done.rc == 0, f"{command}: exit code {done.rc}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout).strip()


def attempt(host: Any, command: str) -> Any:
    """Run it as above, whatever comes of it."""
    return host.run(f"env -i HOME=/root PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -c {shlex.quote(command)}")


def get(workstation: Any, url: str, *options: str) -> tuple[int, str]:
    """Ask for a URL from the workstation, by curl; give status and text."""
    done = attempt(workstation, f"curl -sS -m 30 -w '\\n%{{http_code}}' {' '.join(options)} '{url}'")
    text, _, status = str(done.stdout).rpartition("\n")
    return int(status), text or done.stderr


def wait(what: str, seconds: float, check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.2)


def answers(host: Any) -> bool:
    """Tell whether a server's own devpi answers, and a replica's has the primary in sight."""
    return bool(attempt(host, "curl -sf -m 5 http://127.0.0.1:3141/+api").rc == 0)


def playbook(name: str, *arguments: str, inventory: Path = INVENTORY) -> tuple[int, str]:
    """Run a playbook; give its exit code and what it said, on one line."""
    done = subprocess.run(
        ["ansible-playbook", "-i", inventory, PROJECT / name, *arguments],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def build(workstation: Any, name: str, version: str) -> str:
    """Make a wheel on the workstation; give its path."""
    run(workstation, f"mkdir -p /opt/dist && cat > /opt/dist/make.py << 'END'{WHEEL}END")
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
    return run(workstation, f"PYTHONPATH=/opt/own python3 -c 'import {package}; print({package}.version)'")


def status(host: Any) -> dict[str, Any]:
    """Give what devpi says of itself, on the server itself."""
    result: dict[str, Any] = json.loads(run(host, "curl -sf http://127.0.0.1:3141/+status"))["result"]
    return result


def with_curl(name: str) -> Any:
    """Give a server, with curl in it to ask what only itself may."""
    host = testinfra.get_host(f"docker://{container(name)}")
    run(host, "test -x /usr/bin/curl || apt-get install -qq --no-install-recommends curl > /dev/null")
    return host
