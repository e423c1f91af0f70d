"""Two servers, one of which is down: requests to either are answered, and uploads are on both."""

from __future__ import annotations

import json
import re
import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lab import CA, SERVERS, SITE, attempt, container, devpi_answers, devpi_status, docker, get, run, wait

LOAD = Path(__file__).parent / "load.py"
CACHED = ["idna", "attrs", "six"]
PEER = "devpi-peer.lanmirror"


def install(workstation: Any, index: str, packages: list[str]) -> str:
    """Install into a new folder without a cache, from one index alone; give pip's output."""
    return run(
        workstation,
        f"rm -rf /opt/target && /opt/tools/bin/pip -v install --no-cache-dir --index-url {index}"
        f" --target /opt/target {' '.join(packages)}",
    )


def stored(host: Any) -> set[str]:
    """Give the names of the packages' files in devpi's folder."""
    return set(run(host, "find /var/lib/devpi/+files -type f -printf '%f\\n'").split())


@contextmanager
def stopped(host: Any, unit: str) -> Iterator[None]:
    run(host, f"systemctl stop {unit}")
    try:
        yield
    finally:
        run(host, f"systemctl start {unit}")
        wait(f"{unit} after its start", 60, lambda: devpi_answers(host))


def test_replica_follows_and_has_the_files(workstation: Any, servers: dict[str, Any]) -> None:
    install(workstation, "https://server/root/pypi/+simple/", CACHED)
    wait("the files on the replica", 60, lambda: stored(servers["server"]) <= stored(servers["replica"]))
    assert {name.partition("-")[0] for name in stored(servers["replica"])} >= set(CACHED)
    wait("the replica in sync", 60, lambda: devpi_status(servers["replica"])["replica-in-sync-at"] is not None)
    assert devpi_status(servers["replica"])["replication-errors"] == {}
    polling = devpi_status(servers["server"])["polling_replicas"].values()
    assert len(polling) == 1


def test_secrets_are_the_same_and_for_their_owner_alone(servers: dict[str, Any]) -> None:
    for path, owner in (("/etc/devpi/secret", "devpi"), ("/etc/devpi/root-password", "root")):
        files = [host.file(path) for host in servers.values()]
        assert [(file.mode, file.user) for file in files] == [(0o600, owner)] * 2
        assert files[0].content == files[1].content
        assert len(files[0].content) >= 32
        for host in servers.values():
            seen = run(host, "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' ' '")
            assert files[0].content_string.strip() not in seen


@pytest.mark.parametrize("name", SERVERS)
def test_what_servers_tell_each_other_is_refused_to_workstations(workstation: Any, name: str) -> None:
    for path in ("/+changelog/0", "/+changelog/0-", "/+status"):
        assert get(workstation, f"https://{name}{path}")[0] == 403, path
        assert get(workstation, f"https://{name}{path}", f"-H 'Host: {PEER}'")[0] == 403, path
    assert get(workstation, f"https://{name}/root/pypi/+simple/idna/", f"-H 'Host: {PEER}'")[0] == 403


def test_changelog_needs_the_secret_as_well(servers: dict[str, Any]) -> None:
    """From the replica's own address, over its own way to the primary."""
    asked = "http://127.0.0.1:3145/+changelog/0 -H 'X-Devpi-Expected-Primary-Id;'"
    answer = run(servers["replica"], f"curl -s -o /dev/null -w '%{{http_code}}' {asked}")
    assert answer == "403"
    assert run(servers["replica"], "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:3145/+api") == "200"


def test_way_between_servers_is_verified(servers: dict[str, Any]) -> None:
    """With another's certificate in the place of the peer's, nothing is asked of it."""
    replica = servers["replica"]
    kept = "/etc/devpi/peer-server.pem"
    run(replica, f"cp -p {kept} /root/peer.kept && cp /etc/lanmirror/tls/ca.pem {kept} && systemctl reload nginx")
    try:
        wait("the refusal", 60, lambda: attempt(replica, "curl -sf http://127.0.0.1:3145/+api").rc != 0)
        assert "certificate verify" in run(replica, "tail -n 20 /var/log/nginx/error.log")
    finally:
        run(replica, f"mv /root/peer.kept {kept} && systemctl reload nginx")
    wait("the way back", 60, lambda: attempt(replica, "curl -sf http://127.0.0.1:3145/+api").rc == 0)


@pytest.mark.parametrize("name", SERVERS)
def test_what_is_never_kept_comes_from_the_other_while_devpi_is_down(
    workstation: Any, servers: dict[str, Any], name: str
) -> None:
    """Pages of a private index are at most two seconds old: without the other server, this would be a 502."""
    with stopped(servers[name], "devpi"):
        time.sleep(3)
        assert get(workstation, f"https://{name}/lab/dev/+simple/idna/")[0] == 200
        assert get(workstation, f"https://{name}/lab/dev/+simple/idna/?x")[0] == 200
        assert get(workstation, f"https://{name}/+api", "-H 'Accept: application/json'")[0] == 200
        install(workstation, f"https://{name}/lab/dev/+simple/", CACHED)


def test_replica_serves_alone_what_only_the_primary_was_asked_for(workstation: Any, servers: dict[str, Any]) -> None:
    install(workstation, "https://server/root/pypi/+simple/", ["iniconfig"])
    wait("the file on the replica", 60, lambda: stored(servers["server"]) <= stored(servers["replica"]))
    run(servers["server"], "systemctl stop devpi nginx")
    try:
        for index in ("root/pypi", "lab/dev"):
            install(workstation, f"https://replica/{index}/+simple/", ["iniconfig", *CACHED])
        # The name that both have leads to the one that is left.
        install(workstation, f"{SITE}/root/pypi/+simple/", CACHED)
    finally:
        run(servers["server"], "systemctl start devpi nginx")
        wait("devpi after its start", 60, lambda: devpi_answers(servers["server"]))


def test_neither_asks_in_a_circle_when_both_are_down(workstation: Any, servers: dict[str, Any]) -> None:
    """A page that nobody keeps is a quick 502 then, and the kept ones are there."""
    install(workstation, f"{SITE}/root/pypi/+simple/", CACHED)
    for name in SERVERS:
        get(workstation, f"https://{name}/root/pypi/+simple/idna/")
    with stopped(servers["server"], "devpi"), stopped(servers["replica"], "devpi"):
        time.sleep(3)
        for name in SERVERS:
            began = time.monotonic()
            assert get(workstation, f"https://{name}/lab/dev/+simple/idna/")[0] == 502
            assert time.monotonic() - began < 30
            assert get(workstation, f"https://{name}/root/pypi/+simple/idna/")[0] == 200


def test_no_request_fails_while_either_devpi_is_killed(workstation: Any, servers: dict[str, Any]) -> None:
    """Five kills on each in turn and a longer stop, under load on both."""
    urls = []
    for name in SERVERS:
        install(workstation, f"https://{name}/lab/dev/+simple/", CACHED)
        page = get(workstation, f"https://{name}/root/pypi/+simple/idna/")[1]
        wheel = re.findall(r'href="\.\./\.\./(\+f/[^"#]+\.whl)', page)[-1]
        # Not the one that was installed, so it is not cached yet.
        assert get(workstation, f"https://{name}/root/pypi/{wheel}", "-o /dev/null")[0] == 200
        urls += [f"https://{name}/root/pypi/+simple/{project}/" for project in CACHED]
        urls += [f"https://{name}/lab/dev/+simple/{project}/" for project in CACHED]
        urls += [f"https://{name}/root/pypi/{wheel}"]
    docker("cp", str(LOAD), f"{container('workstation')}:/opt/load.py")
    run(workstation, "rm -f /opt/load.stop /opt/load.json")
    command = f"python3 /opt/load.py {CA} /opt/load.stop {' '.join(map(shlex.quote, urls))} > /opt/load.json"
    load = threading.Thread(target=run, args=(workstation, command))
    load.start()
    try:
        for _ in range(5):
            for name in SERVERS:
                run(servers[name], "systemctl kill --signal=SIGKILL --kill-whom=main devpi")
                install(workstation, f"https://{name}/lab/dev/+simple/", ["idna"])
                wait(f"devpi of {name} after a kill", 60, partial(devpi_answers, servers[name]))
        for name in SERVERS:
            with stopped(servers[name], "devpi"):
                time.sleep(5)
    finally:
        run(workstation, "touch /opt/load.stop")
        load.join(60)
    done = json.loads(run(workstation, "cat /opt/load.json"))
    assert done["failed"] == []
    assert done["requests"] > 1000
    print(done)
