"""How many passwords are checked at a time, and who may upload."""

from __future__ import annotations

import base64
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.devpi.conftest import PASSWORD, Devpi
from tests.devpi.origin import LONG


@pytest.fixture(scope="module")
def slow(start_devpi: Callable[..., Devpi]) -> Iterator[Devpi]:
    """Return a devpi for which each hash takes 64 MiB and its time, with room for many requests."""
    devpi = start_devpi(argon2_memory_cost=65536, threads=200)
    yield devpi
    devpi.stop()


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def peak(devpi: Devpi) -> int:
    """Return the most memory that it ever had, KiB."""
    assert devpi.process
    status = Path(f"/proc/{devpi.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


@pytest.mark.parametrize("way", ["Authorization", "X-Devpi-Auth", "+login"])
def test_many_guesses_at_once_are_turned_away_and_take_bounded_memory(slow: Devpi, name: str, way: str) -> None:
    before = peak(slow)
    together = threading.Barrier(100)

    def guess(number: int) -> int:
        password = f"{name} {number}"
        together.wait()
        if way == "+login":
            body = {"user": "root", "password": password}
            return requests.post(f"{slow.url}/+login", json=body, timeout=LONG).status_code
        value = basic("root", password)["Authorization"]
        headers = {way: value if way == "Authorization" else value.removeprefix("Basic ")}
        return requests.get(f"{slow.url}/+lanmirror/may-upload/root/x", headers=headers, timeout=LONG).status_code

    with ThreadPoolExecutor(100) as pool:
        told = Counter(pool.map(guess, range(100)))
    assert set(told) == {401, 503}
    # Those that were checked, and those that waited: the others came back at once.
    assert 18 <= told[401] < 100
    assert peak(slow) - before < 4 * 65536


def test_who_finds_the_queue_full_is_told_when_to_come_again_and_others_are_served(slow: Devpi) -> None:
    with ThreadPoolExecutor(60) as pool:
        guesses = [
            pool.submit(requests.get, f"{slow.url}/root", headers=basic("root", f"no {n}"), timeout=LONG)
            for n in range(60)
        ]
        assert requests.get(f"{slow.url}/+api", timeout=LONG).ok
        busy = [each.result() for each in guesses if each.result().status_code == 503]
    assert busy
    assert all(each.headers["Retry-After"] for each in busy)


def test_password_that_comes_with_each_request_is_checked_once(slow: Devpi, name: str) -> None:
    slow.declare(f"root/{name}", type="stage")
    url = f"{slow.url}/+lanmirror/may-upload/root/{name}"
    together = threading.Barrier(50)

    def ask(_: int) -> int:
        together.wait()
        return requests.get(url, headers=basic("root", PASSWORD), timeout=LONG).status_code

    with ThreadPoolExecutor(50) as pool:
        # More than the queue has room for.
        assert Counter(pool.map(ask, range(50))) == {204: 50}


def test_new_password_counts_at_once(devpi: Devpi, name: str) -> None:
    url, headers = f"{devpi.url}/{name}", devpi.token()
    assert requests.put(url, json={"password": "first first"}, headers=headers, timeout=LONG).ok
    assert requests.put(f"{url}/dev", json={"type": "stage"}, headers=headers, timeout=LONG).ok
    asked = f"{devpi.url}/+lanmirror/may-upload/{name}/dev"

    def status(password: str) -> int:
        return requests.get(asked, headers=basic(name, password), timeout=LONG).status_code

    assert [status("first first"), status("second second")] == [204, 401]
    assert requests.patch(url, json={"password": "second second"}, headers=headers, timeout=LONG).ok
    assert [status("first first"), status("second second")] == [401, 204]


def test_who_may_upload_is_told_before_a_body_is_sent(devpi: Devpi, name: str) -> None:
    headers = devpi.token()
    for user in (f"{name}a", f"{name}b"):
        told = requests.put(f"{devpi.url}/{user}", json={"password": f"{user}!"}, headers=headers, timeout=LONG)
        assert told.ok
    devpi.declare(f"root/{name}", type="stage", acl_upload=[f"{name}a"])
    devpi.declare(f"root/{name}-open", type="stage", acl_upload=[":ANONYMOUS:"])
    devpi.declare(f"root/{name}-mirror", type="mirror", mirror_url="http://127.0.0.1:9/", mirror_no_project_list=True)

    def status(index: str, headers: dict[str, str] | None = None, permission: str = "upload") -> int:
        url = f"{devpi.url}/+lanmirror/may-upload/root/{index}"
        answer = requests.get(url, params={"permission": permission}, headers=headers, timeout=LONG)
        assert answer.content == b"" or answer.status_code != 204
        if answer.status_code == 401:
            assert answer.headers["WWW-Authenticate"].startswith("Basic")
        return answer.status_code

    assert status(name) == 401
    assert status(name, basic(f"{name}a", f"{name}a!")) == 204
    assert status(name, devpi.token(f"{name}a", f"{name}a!")) == 204
    assert status(name, basic(f"{name}a", "wrong wrong")) == 401
    assert status(name, basic(f"{name}b", f"{name}b!")) == 403
    assert status(f"{name}-open") == 204
    assert status(f"{name}-nothing", devpi.token()) == 403
    # Test results are anybody's to send, unless the index says otherwise.
    assert status(name, permission="toxresult_upload") == 204
    assert status(name, devpi.token(), permission="index_delete") == 403
    assert status(f"{name}-mirror", basic(f"{name}b", f"{name}b!")) == 403
