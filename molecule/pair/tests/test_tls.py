"""The whole site by https, with its own authorities: a workstation needs nothing but the settings of role client."""

from __future__ import annotations

from typing import Any

import pytest
from lab import CA, SERVERS, SITE, attempt, get, run


def test_pip_installs_by_https_with_the_written_settings(workstation: Any) -> None:
    """pip of the distribution, from its own configuration, with no host trusted."""
    run(workstation, "rm -rf /opt/tls && python3 -m venv /opt/tls")
    settings = run(workstation, "/opt/tls/bin/pip config list")
    assert f"global.index-url='{SITE}/root/pypi/+simple/'" in settings
    assert f"global.cert='{CA}'" in settings
    assert "trusted-host" not in settings
    said = run(workstation, "/opt/tls/bin/pip -v install --no-cache-dir idna")
    assert f"{SITE}/root/pypi/+f/" in said.replace("%2B", "+")
    run(workstation, "/opt/tls/bin/python -c 'import idna'")


@pytest.mark.parametrize("name", [*SERVERS, "mirror.lan"])
def test_uv_installs_by_https_from_each(workstation: Any, name: str) -> None:
    command = (
        "rm -rf /opt/uv && /opt/tools/bin/uv venv -q /opt/uv && UV_NATIVE_TLS=1 VIRTUAL_ENV=/opt/uv"
        f" /opt/tools/bin/uv pip install --no-cache --default-index https://{name}/root/pypi/+simple/ idna"
    )
    run(workstation, command)
    run(workstation, "/opt/uv/bin/python -c 'import idna'")


@pytest.mark.parametrize("name", SERVERS)
def test_http_only_says_where_to_go(workstation: Any, name: str) -> None:
    status, head = get(workstation, f"http://{name}/root/pypi/+simple/idna/", "-D - -o /dev/null")
    assert status == 308
    assert f"location: https://{name}/root/pypi/+simple/idna/" in head.lower()
    # Also an upload: the method stays.
    assert get(workstation, f"http://{name}/lab/dev/", "-X POST -d x=y")[0] == 308


@pytest.mark.parametrize("name", SERVERS)
def test_without_the_root_the_server_is_refused(workstation: Any, name: str) -> None:
    done = attempt(
        workstation,
        f"curl -sS -m 10 --capath /var/empty --cacert /usr/share/ca-certificates/mozilla/ISRG_Root_X1.crt https://{name}/",
    )
    assert done.rc == 60
    assert "certificate" in done.stderr


@pytest.mark.parametrize("name", SERVERS)
def test_each_has_a_key_of_its_own_that_nobody_reads(servers: dict[str, Any], name: str) -> None:
    assert run(servers[name], "find /etc/lanmirror/tls -type f -perm /077") == ""
    roots = {run(host, "sha256sum < /etc/lanmirror/tls/ca.pem") for host in servers.values()}
    assert len(roots) == len(SERVERS)


@pytest.mark.parametrize("name", SERVERS)
def test_old_protocols_are_refused(workstation: Any, name: str) -> None:
    done = attempt(workstation, f"curl -sS -m 10 --tls-max 1.1 https://{name}/")
    assert done.rc != 0
