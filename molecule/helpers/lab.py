"""The machines of a scenario, and what its tests do with them: shared by all scenarios."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import subprocess
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests
import testinfra
import yaml

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "lab"
# Files that prepare.yml or a test puts on a machine.
FILES = PROJECT / "molecule/files"
# The server as workstations reach it: by its address, where the inventory says nothing else.
HOSTS = yaml.safe_load((INVENTORY / "hosts.yml").read_text())
SITE = str(
    yaml.safe_load((INVENTORY / "group_vars/all.yml").read_text())["lanmirror_server_url"]
    or f"http://{HOSTS['pypi_cache']['hosts']['server']['ansible_host']}"
)
# Answered by devpi itself: Nginx serves the pages of projects even while devpi is down.
DEVPI = "/+api"


# ---- machines -------------------------------------------------------------------------------------------------


@cache
def machines() -> dict[str, str]:
    """Give the name of each machine's container, by the machine's name."""
    form = '{{.Label "lanmirror.machine"}} {{.Names}}'
    label = f"label=lanmirror.scenario={os.environ['MOLECULE_SCENARIO_NAME']}"
    rows = docker("ps", "--all", "--filter", label, "--filter", "label=lanmirror.machine", "--format", form)
    return dict(row.split() for row in rows.splitlines())


def container(name: str) -> str:
    """Give the name of a machine's container."""
    return machines()[name]


def network(name: str) -> str:
    """Give the name of the network `lan` or `outside`."""
    return f"{container('server').removesuffix('-server')}-{name}"


def docker(*arguments: str) -> str:
    """Run a command of Docker's, and give what it printed, stripped."""
    done = subprocess.run(["docker", *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"docker {shlex.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def machine(name: str) -> Any:
    """Give a machine as testinfra knows it."""
    return testinfra.get_host(f"docker://{container(name)}")


def address(name: str, net: str = "lan") -> str:
    """Give the address of a machine in the network `lan` or `outside`; this machine reaches both."""
    template = f'{{{{(index .NetworkSettings.Networks "{network(net)}").IPAddress}}}}'
    return docker("inspect", "--format", template, container(name))


# ---- commands -------------------------------------------------------------------------------------------------


def attempt(host: Any, command: str) -> Any:
    """Run a command of the shell with an empty environment, whatever its exit code; give testinfra's result."""
    return host.run(f"env -i HOME=/root PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -c {shlex.quote(command)}")


def run(host: Any, command: str) -> str:
    """Run a command as `attempt` does, which has to succeed; give what it printed, stripped."""
    done = attempt(host, command)
    assert done.rc == 0, f"{command}: exit code {done.rc}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout).strip()


def wait(what: str, seconds: float, check: Callable[[], bool]) -> None:
    """Wait until a check is true, for so many seconds at most."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.2)


@dataclass(frozen=True)
class Played:
    """A run of ansible-playbook.

    Attributes:
        code: its exit code.
        output: what it printed, both streams.
    """

    code: int
    output: str

    @property
    def said(self) -> str:
        """The output on one line, with single spaces."""
        return " ".join(self.output.split())

    @property
    def changed(self) -> dict[str, int]:
        """How many tasks changed something, by host: of the recap."""
        return {host: int(count) for host, count in re.findall(r"(?m)^(\S+) +: ok=.* changed=(\d+) ", self.output)}


def playbook(
    name: str, *arguments: str, inventory: Path = INVENTORY, environment: Mapping[str, str] | None = None
) -> Played:
    """Run a playbook as an administrator does, on the scenario's inventory or another."""
    done = subprocess.run(
        ["ansible-playbook", "-i", inventory, PROJECT / name, *arguments],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1", **(environment or {})},
    )
    return Played(done.returncode, done.stdout + done.stderr)


# ---- the site -------------------------------------------------------------------------------------------------


def url(path: str) -> str:
    """Give the http URL of a path on the server, by its address in the lab."""
    return f"http://{address('server')}{path}"


def answers(path: str) -> bool:
    """Tell whether the server answers 200 for a path."""
    try:
        return requests.get(url(path), timeout=30).status_code == 200
    except requests.RequestException:
        return False


def links(index: str, project: str) -> dict[str, str]:
    """Give the URL of each file of a project, with its hash, by the file's name."""
    page = requests.get(url(f"/{index}/+simple/{project}/"), headers={"User-Agent": "pip/25"}, timeout=60)
    assert page.status_code == 200
    found = [urljoin(page.url, href) for href in re.findall(r'href="([^"]+)"', page.text)]
    return {link.partition("#")[0].rpartition("/")[2]: link for link in found}


def status_of(index: str, project: str) -> int:
    """Give the status of a project's page, as pip asks for it."""
    page = url(f"/{index}/+simple/{project}/")
    return requests.get(page, headers={"User-Agent": "pip/25"}, timeout=60).status_code


# ---- packages -------------------------------------------------------------------------------------------------


def wheel(name: str, version: str, said: str = "") -> bytes:
    """Build a wheel of one module, which has `version` and `said`."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    parts = {
        f"{module}.py": f"version = {version!r}\nsaid = {said!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    parts[f"{info}/RECORD"] = "".join(f"{part},,\n" for part in [*parts, f"{info}/RECORD"])
    data = BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for part, text in parts.items():
            archive.writestr(part, text)
    return data.getvalue()


def pip_install(workstation: Any, venv: str, packages: list[str]) -> None:
    """Install into a new venv, without pip's cache and with no setting but the written ones; all from the server."""
    run(workstation, f"python3 -m venv --clear {venv}")
    output = run(workstation, f"{venv}/bin/pip -v install --no-cache-dir {' '.join(packages)}")
    urls = re.findall(r"https?://[^\s#)]+", output)
    assert len(urls) > len(packages), output
    assert [url for url in urls if not url.startswith(f"{SITE}/")] == []


# ---- servers of one cache, by https: asked from a machine of the lab, which trusts them --------------------------

SERVERS = ("server", "replica")
# The authorities that a workstation trusts; the servers' roots are among them.
CA = "/etc/ssl/certs/ca-certificates.crt"
ALICE = "a-password-of-the-tests"


def get(workstation: Any, url: str, *options: str) -> tuple[int, str]:
    """Ask for a URL from the workstation, with curl; give status and text."""
    done = attempt(workstation, f"curl -sS -m 30 -w '\\n%{{http_code}}' {' '.join(options)} '{url}'")
    text, _, status = str(done.stdout).rpartition("\n")
    return int(status), text or done.stderr


def devpi_answers(host: Any) -> bool:
    """Tell whether a server's own devpi answers, and a replica's has the primary in sight."""
    return bool(attempt(host, "curl -sf -m 5 http://127.0.0.1:3141/+api").rc == 0)


def devpi_status(host: Any) -> dict[str, Any]:
    """Give devpi's account of itself, asked on the server."""
    result: dict[str, Any] = json.loads(run(host, "curl -sf http://127.0.0.1:3141/+status"))["result"]
    return result


def build(host: Any, name: str, version: str) -> str:
    """Make a wheel on a machine; give its path."""
    path = f"/opt/dist/{name}-{version}-py3-none-any.whl"
    text = base64.b64encode(wheel(name, version)).decode()
    run(host, f"mkdir -p /opt/dist && echo {text} | base64 -d > {path}")
    return path


def upload(workstation: Any, tool: str, url: str, wheel: str, password: str = ALICE) -> Any:
    """Upload as alice with twine or uv, with the password in the environment; give testinfra's result."""
    tools = "/opt/tools/bin"
    if tool == "twine":
        options = f"--non-interactive --cert {CA} --repository-url {url} -u alice {wheel}"
        command = f"TWINE_PASSWORD={password} {tools}/twine upload {options}"
    else:
        options = f"--publish-url {url} -u alice {wheel}"
        command = f"UV_NATIVE_TLS=1 UV_PUBLISH_PASSWORD={password} {tools}/uv publish {options}"
    return attempt(workstation, command)


def installed(workstation: Any, name: str, package: str) -> str:
    """Install from one server's private index; give the version that pip chose."""
    run(
        workstation,
        f"rm -rf /opt/own && /opt/tools/bin/pip install -q --no-cache-dir --target /opt/own"
        f" --index-url https://{name}/lab/dev/+simple/ {package}",
    )
    return run(workstation, f"PYTHONPATH=/opt/own python3 -c 'import {package}; print({package}.version)'")
