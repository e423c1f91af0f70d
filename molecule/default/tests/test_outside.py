"""The PyPI cache and its upstreams: their answers and their changes. After test_operate.py, on its server.

The upstream is the flat directory of wheels of the index `root/wheels`, in a container of the scenario's own.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from lab import DEVPI, INVENTORY, SITE, answers, links, playbook, run, status_of, url, wait, wheel

FILES = "/var/lib/devpi/+files"
WHEELS = INVENTORY.parent / "upstream/anaconda/wheels"
SETTINGS = "/etc/nginx/sites-enabled/default"
CLIENTS = 20
# When devpi asked for which page: forgotten with this.
TIMES = "/var/lib/devpi/.lanmirror-times.sqlite*"
# How long a page is shown that no longer can be had, in the test of it, seconds.
LIVE = 12
# Size of a file on a slow way, and the speed of that way: MiB, MiB a second.
SIZE, SLOW = 4, 1
AGENT = {"User-Agent": "pip/25"}

Answering = Callable[[str], None]


@pytest.fixture
def answering(upstream: Any) -> Iterator[Answering]:
    """Have the upstream of `root/wheels` answer by a line of Nginx's."""
    run(upstream, f"cp {SETTINGS} /root/settings")

    def change(line: str) -> None:
        run(
            upstream,
            f"sed '/root /a location /anaconda/wheels {{ {line} fancyindex on; }}' /root/settings > {SETTINGS}",
        )
        run(upstream, "nginx -t && nginx -s reload && sleep 1")

    yield change
    run(upstream, f"cp /root/settings {SETTINGS} && nginx -s reload")


def publish(name: str, data: bytes) -> None:
    """Put a wheel into the directory."""
    WHEELS.mkdir(exist_ok=True)
    (WHEELS / f"{name.replace('-', '_')}-1.0-py3-none-any.whl").write_bytes(data)


def downloads(upstream: Any, name: str) -> int:
    """Count how often the upstream was asked for a wheel."""
    log = run(upstream, "cat /var/log/nginx/access.log")
    return log.count(f"GET /anaconda/wheels/{name.replace('-', '_')}-1.0-py3-none-any.whl ")


def forget(server: Any) -> None:
    """Take from Nginx the pages that it keeps, and from devpi their age."""
    run(server, "systemctl stop nginx && rm -rf /var/cache/lanmirror-devpi/kept /run/lanmirror_pages/*")
    run(server, f"systemctl stop devpi && rm -f {TIMES} && systemctl start devpi nginx")
    wait("devpi", 60, lambda: answers(DEVPI))


@pytest.mark.parametrize(
    "answer", ["return 403;", "return 429;", "return 500;", "return 503;", "limit_rate 50;"], ids=str.split
)
def test_cached_projects_install_whatever_the_upstream_answers(
    server: Any, workstation: Any, answering: Answering, answer: str
) -> None:
    publish("lab-cached", wheel("lab-cached", "1.0", "cached"))
    venv = "test -x /opt/outside/bin/pip || python3 -m venv /opt/outside"
    install = "/opt/outside/bin/pip install -q --no-cache-dir --force-reinstall"
    run(workstation, f"{venv}; {install} --index-url {SITE}/root/wheels/+simple/ lab-cached")

    answering(answer)
    forget(server)
    began = time.monotonic()
    run(workstation, f"{install} --index-url {SITE}/root/wheels/+simple/ lab-cached")
    assert time.monotonic() - began < 30
    if "limit_rate" in answer:
        # A page that nobody has seen is waited for as long as bytes come: tests/devpi has the end of that.
        return
    began = time.monotonic()
    assert status_of("root/wheels", f"lab-unseen-{time.time_ns()}") == 424
    assert time.monotonic() - began < 30


@pytest.fixture
def short_lived(server: Any) -> Iterator[None]:
    """Pages that Nginx takes for fresh for a second, and that devpi and Nginx each show for a dozen."""
    settings = "/etc/devpi/devpi-server.yml"
    lives = {"max-stale": LIVE, "pages-fresh": 1, "pages-behind": 2}
    changes = " ".join(f"-e 's/lanmirror-{name}: .*/lanmirror-{name}: {value}/'" for name, value in lives.items())
    run(server, f"cp -p {settings} /root/kept && sed -i {changes} {settings}")
    assert run(server, f"diff /root/kept {settings} | grep -c '^>'") == str(len(lives))
    forget(server)
    yield
    run(server, f"cp -p /root/kept {settings}")
    forget(server)


@pytest.mark.parametrize(("silent", "status"), [("devpi", 502), ("upstream", 424)])
@pytest.mark.usefixtures("short_lived")
def test_page_is_shown_for_as_long_as_allowed_and_no_longer(
    server: Any, answering: Answering, silent: str, status: int
) -> None:
    publish("lab-old", b"")
    began = time.monotonic()
    assert status_of("root/wheels", "lab-old") == 200
    if silent == "devpi":
        run(server, "systemctl stop devpi")
    else:
        answering("return 503;")
        # devpi counts from its start, where it does not know better.
        began = time.monotonic()
        run(server, f"systemctl stop devpi && rm -f {TIMES} && systemctl start devpi")
        wait("devpi", 60, lambda: answers(DEVPI))
    while status_of("root/wheels", "lab-old") == 200:
        assert time.monotonic() - began < 90
    # What came within its life was there. On a busy machine devpi may have begun later.
    assert time.monotonic() - began >= LIVE
    wait("the end", 60, lambda: status_of("root/wheels", "lab-old") == status)


def test_file_is_downloaded_once_for_all_clients_and_also_after_a_client_went_away(
    server: Any, upstream: Any, answering: Answering
) -> None:
    data = {name: random.Random(name).randbytes(SIZE << 20) for name in ("lab-wanted", "lab-given-up")}
    for name, content in data.items():
        publish(name, content)
    answering(f"limit_rate {SLOW}m;")
    wanted, given_up = (links("root/wheels", name)[f"{name.replace('-', '_')}-1.0-py3-none-any.whl"] for name in data)

    def fetch(link: str) -> str:
        return hashlib.sha256(requests.get(link, timeout=120).content).hexdigest()

    with ThreadPoolExecutor(CLIENTS) as clients:
        found = set(clients.map(fetch, [wanted] * CLIENTS))
    assert found == {hashlib.sha256(data["lab-wanted"]).hexdigest()}
    assert downloads(upstream, "lab-wanted") == 1

    with pytest.raises(requests.RequestException):
        requests.get(given_up, timeout=0.5)
    stored = server.file(f"{FILES}{urlsplit(given_up).path}")
    assert not stored.exists
    wait("the file that no client waits for", 60, lambda: stored.exists)
    assert fetch(given_up) == hashlib.sha256(data["lab-given-up"]).hexdigest()
    assert downloads(upstream, "lab-given-up") == 1


def test_page_of_a_mirror_is_the_same_for_who_sends_a_password(server: Any, access: tuple[str, str]) -> None:
    publish("lab-signed", b"")
    page = url("/root/wheels/+simple/lab-signed/")
    first, *kept = [requests.get(page, headers=AGENT, auth=auth, timeout=30) for auth in (access, None, access)]
    assert {answer.status_code for answer in (first, *kept)} == {200}
    assert [answer.headers["X-Cache-Status"] for answer in (first, *kept)] == ["MISS", "HIT", "HIT"]
    # Also while nobody can look at the password.
    run(server, "systemctl stop devpi")
    try:
        assert requests.get(page, headers=AGENT, auth=access, timeout=30).text == first.text
    finally:
        run(server, "systemctl start devpi")
        wait("devpi", 60, lambda: answers(DEVPI))


def test_other_upstream_shows_at_once_and_undeclared_indexes_go_only_when_asked(access: tuple[str, str]) -> None:
    def change(**variables: Any) -> str:
        done = playbook("playbooks/pypi_cache.yml", "--diff", "-e", json.dumps(variables))
        assert done.code == 0, done.output
        return done.said

    def files() -> list[str]:
        return sorted(links("root/wheels", "lab-moved"))

    publish("lab-moved", b"")
    assert files() == ["lab_moved-1.0-py3-none-any.whl"]
    Path(f"{WHEELS}-2").mkdir(exist_ok=True)
    Path(f"{WHEELS}-2/lab_moved-2.0-py3-none-any.whl").write_bytes(b"")
    assert requests.put(url("/root/by-hand"), json={"type": "stage"}, auth=access, timeout=30).status_code == 200

    other = {"type": "mirror", "flat": True, "mirror_url": "http://conda.upstream/anaconda/wheels-2/"}
    assert "keeps them: root/by-hand" in change(devpi_indexes={"root/wheels": other})
    assert files() == ["lab_moved-2.0-py3-none-any.whl"]
    assert requests.get(url("/root/by-hand"), timeout=30).status_code == 200

    change(devpi_remove_undeclared=True)
    assert files() == ["lab_moved-1.0-py3-none-any.whl"]
    assert requests.get(url("/root/by-hand"), timeout=30).status_code == 404


def test_too_large_request_is_refused() -> None:
    assert requests.get(url("/root/pypi/"), headers={"X-Long": "x" * 40_000}, timeout=30).status_code == 400
    assert requests.post(url("/+login"), data=b"x" * (2 << 20), timeout=30).status_code == 413


def test_guessing_passwords_is_limited(server: Any) -> None:
    def guess(number: int) -> int:
        login = {"user": "root", "password": f"guess-{number}"}
        return requests.post(url("/+login"), json=login, timeout=60).status_code

    with ThreadPoolExecutor(CLIENTS) as clients:
        statuses = list(clients.map(guess, range(CLIENTS)))
    assert set(statuses) == {401, 429}
    assert statuses.count(429) >= CLIENTS // 3
    assert re.search(r"limiting requests.*devpi_login", run(server, "tail -n 50 /var/log/nginx/error.log"))
