"""An administrator's view of the server: its health, the figures and the disk of the PyPI cache. After test_lab.py."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from lab import DEVPI, INVENTORY, SITE, address, answers, links, pip_install, run, status_of, url, wait, wheel
from packaging.version import Version

FILES = "/var/lib/devpi/+files"
SETTINGS = "/etc/devpi/lanmirror.toml"
CONDA = "/etc/lanmirror/conda_mirror.yml"
METRICS = "/var/lib/devpi-watch/lanmirror_pypi.prom"
# Of Nginx' log and of the watch, seconds: both write every five.
SOON = 60
# As Nginx lets them go: `__devpi_refreshes_per_second` of the role.
REFRESHES_PER_SECOND = 30


def health(half: str = "/pypi") -> tuple[int, dict[str, Any]]:
    """Give the answer of /health for one half, or with "" for both: its status and its content."""
    answer = requests.get(url(f"/health{half}"), timeout=30)
    said: dict[str, Any] = answer.json()
    return answer.status_code, said


def failing(*words: str, half: str = "/pypi") -> bool:
    """Tell whether /health says 503 with just so many reasons, one with each of these words."""
    status, said = health(half)
    reasons = said["problems"]
    return (
        status == 503
        and len(reasons) == len(words)
        and all(word in reason for word, reason in zip(words, reasons, strict=True))
    )


def well(half: str = "/pypi") -> bool:
    status, said = health(half)
    return status == 200 and said["status"] == "ok" and said["problems"] == []


def figures(server: Any) -> dict[str, float]:
    """Give the metrics by name with labels."""
    rows = [row.rpartition(" ") for row in run(server, f"cat {METRICS}").splitlines() if not row.startswith("#")]
    return {name.removeprefix("lanmirror_pypi_"): float(value) for name, _, value in rows}


def served(figures: dict[str, float], kind: str) -> float:
    return sum(value for name, value in figures.items() if name.startswith(f"{kind}s_total"))


def settled(server: Any) -> dict[str, float]:
    """Give the metrics with all in them that was served until now."""
    run(server, "nginx -s reopen")
    now = float(run(server, "sleep 1; date +%s"))
    wait("the figures", SOON, lambda: figures(server)["checked_timestamp_seconds"] > now)
    return figures(server)


def evict(server: Any, gib: float) -> None:
    """Evict as the timer does, but with this limit, and no matter how new a file is."""
    change = f"s/^max_cached_gib = .*/max_cached_gib = {gib:.12f}/; s/^grace = .*/grace = -60/"
    run(server, f"sed -i.kept '{change}' {SETTINGS}")
    try:
        run(server, "systemctl start devpi-evict")
    finally:
        run(server, f"cp -p {SETTINGS}.kept {SETTINGS} && rm {SETTINGS}.kept")


def cached(server: Any) -> dict[str, int]:
    """Give the size of each stored file of root/pypi, by its path below +files."""
    rows = run(server, f"find {FILES}/root/pypi/+f -type f ! -name '*-tmp' -printf '%P %s\\n'").splitlines()
    return {f"root/pypi/+f/{path}": int(size) for path, _, size in (row.rpartition(" ") for row in rows)}


def times_logged(server: Any, path: str) -> int:
    """Count the lines for a file in the log that `devpi-evict` reads."""
    return int(run(server, f"grep -cF {path} /var/log/nginx/lanmirror-devpi.log || true"))


def fetched(link: str) -> bytes:
    """Download a file, and check it by the hash in its URL."""
    plain, _, digest = link.partition("#sha256=")
    answer = requests.get(plain, timeout=120)
    assert answer.status_code == 200, f"{plain}: {answer.status_code}"
    assert hashlib.sha256(answer.content).hexdigest() == digest
    return answer.content


def newest(project: str) -> str:
    """Give the URL of a project's newest wheel."""
    wheels = {name: link for name, link in links("root/pypi", project).items() if name.endswith(".whl")}
    return wheels[max(wheels, key=lambda name: Version(name.split("-")[1]))]


@pytest.fixture
def own_wheel(access: tuple[str, str]) -> Iterator[str]:
    """A wheel of the lab's own in a stage index; give its path below +files."""
    assert requests.put(url("/root/operate"), json={"type": "stage"}, auth=access, timeout=30).status_code == 200
    try:
        upload = requests.post(
            url("/root/operate/"),
            auth=access,
            data={":action": "file_upload", "name": "lab-own", "version": "1.0"},
            files={"content": ("lab_own-1.0-py3-none-any.whl", wheel("lab-own", "1.0", "mine"))},
            timeout=30,
        )
        assert upload.status_code == 200, upload.text
        yield urlsplit(links("root/operate", "lab-own")["lab_own-1.0-py3-none-any.whl"]).path.lstrip("/")
    finally:
        requests.delete(url("/root/operate"), auth=access, timeout=30)


def test_health_is_ok_and_the_units_are_kept_to_their_work(server: Any) -> None:
    wait("health", SOON, well)
    wait("health of the Conda half", SOON, partial(well, "/conda"))
    status, said = health("")
    assert (status, said["status"]) == (200, "ok")
    assert said.keys() == {"status", "pypi", "conda"}
    assert requests.head(url("/health"), timeout=30).status_code == 200
    for unit in ("devpi", "devpi-watch", "devpi-evict", "conda-watch"):
        score = re.search(r"exposure level for \S+: (\d+\.\d+)", run(server, f"systemd-analyze security {unit}"))
        assert score is not None
        assert float(score[1]) < 2.0
    for unit in ("devpi-watch", "conda-watch"):
        assert server.service(unit).is_running
        assert server.service(unit).is_enabled
    assert server.service("devpi-evict.timer").is_enabled
    journal = run(server, "journalctl -u devpi --no-pager --since -1min")
    assert "GET /+api" not in journal


def test_least_recently_used_is_evicted_and_fetched_again(
    server: Any, workstation: Any, access: tuple[str, str], own_wheel: str
) -> None:
    old, new = newest("attrs"), newest("idna")
    lost, kept = (urlsplit(link).path.lstrip("/") for link in (old, new))
    before = times_logged(server, lost), times_logged(server, kept)
    size = len(fetched(old)), len(fetched(new))
    wait("both in their places", 60, lambda: {lost, kept} <= cached(server).keys())
    # Each worker of Nginx writes its own lines, some seconds later; both were asked for by earlier tests too.
    wait("the log of the one", SOON, lambda: times_logged(server, lost) > before[0])
    wait("the log of the other", SOON, lambda: times_logged(server, kept) > before[1])
    # The file of devpi's last change stays whatever happens: that is to be neither of them.
    last = requests.patch(url("/root/operate"), json=["title=Last"], auth=access, timeout=30)
    assert last.status_code == 200, last.text
    # Room for the newer one, and for the few small files without a hash, which stay.
    evict(server, (size[1] + size[0] // 2) / 2**30)
    left = cached(server)
    assert kept in left
    assert lost not in left
    # devpi makes sure of its last change at each start: that file stays, whatever the limit is.
    evict(server, 1e-9)
    assert len(cached(server)) <= 1
    assert server.file(f"{FILES}/{own_wheel}").exists
    run(server, "systemctl restart devpi")
    wait("devpi", 60, lambda: answers(DEVPI))

    assert len(fetched(old)) == size[0]
    wait("the file in its place", 60, lambda: cached(server).get(lost) == size[0])
    pip_install(workstation, "/opt/evicted", ["idna", "attrs"])
    assert {lost, kept} <= cached(server).keys()


def test_figures_count_each_request_once_through_a_rotation(server: Any) -> None:
    link = newest("idna")
    fetched(link)
    run(server, "systemctl start devpi-evict")  # weighs as well
    before = settled(server)
    for _ in range(20):
        links("root/pypi", "idna")
        fetched(link)
    run(server, "logrotate --force /etc/logrotate.d/nginx")
    for _ in range(5):
        links("root/pypi", "idna")
    run(server, "systemctl restart devpi-watch")
    after = settled(server)
    assert served(after, "page") == served(before, "page") + 25
    assert served(after, "file") == served(before, "file") + 20
    assert after['files_total{result="hit"}'] >= before['files_total{result="hit"}'] + 20
    assert after['sent_bytes_total{kind="file"}'] > before['sent_bytes_total{kind="file"}']
    assert after["evicted_files_total"] >= 1
    stored = sum(map(int, run(server, f"find {FILES} -type f ! -name '*-tmp' -printf '%s\n'").split()))
    assert after["cached_bytes"] + after["uploaded_bytes"] == stored
    assert after["devpi_up"] == after["healthy"] == 1
    assert 0 < after["disk_free_bytes"] < after["disk_bytes"]


def test_health_says_what_is_wrong(server: Any) -> None:
    run(server, "systemctl stop devpi")
    try:
        wait("devpi is missed", SOON, lambda: failing("devpi does not answer"))
        wait("the figures", SOON, lambda: figures(server)["devpi_up"] == 0)
    finally:
        run(server, "systemctl start devpi")
    wait("health", 60, well)

    run(server, f"sed -i.kept '0,/^min_free_mib = .*/s//min_free_mib = 1000000000/' {SETTINGS}")
    run(server, "chmod 0400 /var/lib/devpi/.sqlite && systemctl restart devpi-watch")
    try:
        wait("disk and database", SOON, lambda: failing("cannot be written to", "/var/lib/devpi is nearly full"))
    finally:
        run(server, f"cp -p {SETTINGS}.kept {SETTINGS} && rm {SETTINGS}.kept")
        run(server, "chmod 0600 /var/lib/devpi/.sqlite && systemctl restart devpi-watch")
    wait("health", SOON, well)
    assert "/var/lib/devpi is nearly full" in run(server, "journalctl -u devpi-watch -p err --no-pager --since -2min")

    run(server, "systemctl stop devpi-watch")
    try:
        wait("nobody looks", SOON, lambda: failing("nobody looks after devpi"))
    finally:
        run(server, "systemctl start devpi-watch")
    wait("health", SOON, well)


def test_health_says_what_is_wrong_with_the_conda_half(server: Any) -> None:
    wait("health", SOON, partial(well, "/conda"))
    # The watchdog sees a change of the configuration by itself. A refresh that began just then would end with code 4,
    # and be a reason of its own.
    run(server, f"systemctl stop cron && sed -i.kept 's/^min_free_gib: .*/min_free_gib: 1000000.0/' {CONDA}")
    try:
        wait("the disk", SOON, partial(failing, "/srv/mirror/conda is nearly full", half="/conda"))
        status, said = health("")
        assert (status, said["status"], said["pypi"]["status"]) == (503, "failing", "ok")
    finally:
        run(server, f"cp -p {CONDA}.kept {CONDA} && rm {CONDA}.kept && systemctl start cron")
    wait("health", SOON, partial(well, "/conda"))
    journal = run(server, "journalctl -u conda-watch -p err --no-pager --since -2min")
    assert "/srv/mirror/conda is nearly full" in journal

    run(server, "systemctl stop conda-watch")
    try:
        wait("nobody looks", SOON, partial(failing, "nobody looks after the Conda mirror", half="/conda"))
        assert health("")[0] == 503
        assert well()
    finally:
        run(server, "systemctl start conda-watch")
    wait("health", SOON, partial(well, "/conda"))


def test_status_of_the_conda_mirror_is_fresh_though_no_run_is_under_way(server: Any) -> None:
    def written() -> float:
        return float(requests.get(url("/status.json"), timeout=30).json()["written"])

    before = written()
    wait("status.json", 2 * 60 + SOON, lambda: written() > before)


def test_silent_upstream_is_a_warning(server: Any, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("cut_off")
    assert status_of("root/pypi", "toolz") == 424
    wait("a warning", SOON, lambda: any("root/pypi does not answer" in text for text in health()[1]["warnings"]))
    assert well()
    assert figures(server)['upstream_up{index="root/pypi"}'] == 0


def test_warning_ends_when_the_upstream_answers(server: Any) -> None:
    wait("the upstream", 60, lambda: answers("/root/pypi/+simple/more-itertools/"))
    wait("no warning", SOON, lambda: health() == (200, {**health()[1], "warnings": []}))
    assert figures(server)['upstream_up{index="root/pypi"}'] == 1


def test_flat_directory_of_wheels_is_an_index(workstation: Any) -> None:
    folder = INVENTORY.parent / "upstream/anaconda/wheels"
    folder.mkdir(exist_ok=True)
    for name, version, said in (("lab-flat", "1.0", "one"), ("lab-flat", "1.1", "two"), ("lab-other", "3.0", "three")):
        (folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl").write_bytes(wheel(name, version, said))
    run(workstation, "test -x /opt/evicted/bin/pip || python3 -m venv /opt/evicted")
    pip = f"/opt/evicted/bin/pip install --no-cache-dir --index-url {SITE}/root/wheels/+simple/"
    run(workstation, f"{pip} lab-flat==1.0 && {pip} --upgrade lab-flat lab-other")
    said = run(
        workstation, "/opt/evicted/bin/python -c 'import lab_flat, lab_other; print(lab_flat.said, lab_other.said)'"
    )
    assert said == "two three"
    assert sorted(links("root/wheels", "lab-flat")) == [
        "lab_flat-1.0-py3-none-any.whl",
        "lab_flat-1.1-py3-none-any.whl",
    ]
    assert status_of("root/wheels", "unknown") == 404
    assert json.loads(requests.get(url("/root/wheels"), timeout=30).text)["result"]["type"] == "mirror"


def test_refreshes_wait_for_each_other_and_share_connections_and_no_client_waits(server: Any) -> None:
    folder = INVENTORY.parent / "upstream/anaconda/wheels"
    many = [f"lab-many{number:03}" for number in range(300)]
    for name in many:
        (folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl").write_bytes(b"")

    def ask_for_all() -> None:
        with ThreadPoolExecutor(8) as clients:
            assert set(clients.map(partial(status_of, "root/wheels"), many)) == {200}

    def asked_devpi(since: float) -> list[str]:
        """Give the names of which Nginx asked devpi for the pages, in that order."""
        journal = run(server, f"journalctl --unit devpi --output cat --no-pager --since @{since:.0f}")
        return re.findall(r"GET /root/wheels/\+simple/(lab-[a-z0-9]+)/", journal)

    def connections() -> int:
        """Count the server's connections to the upstream, those of the last minute among them."""
        there = ".".join(reversed(address("upstream", "outside").split(".")))
        known = f"{int(ip_address(there)):08X}:0050"
        return run(server, "cat /proc/net/tcp").count(f" {known} ")

    before = connections()
    ask_for_all()
    # devpi asks for a page of its upstream's for each, up to eight at a time.
    assert connections() < before + 100

    # What Nginx takes for fresh.
    time.sleep(61)
    began, first = float(run(server, "date +%s")), time.monotonic()
    ask_for_all()
    # Nginx goes on with the refreshes while the client of another page asks. Of those that wait, none is before the
    # client: only as many as Nginx lets go from the first of them on, however long that is on a busy machine, and
    # however late devpi says that it was asked.
    assert status_of("root/wheels", "lab-late") == 404
    passed = time.monotonic() - first
    wait("all refreshes", 120, lambda: len(asked_devpi(began)) > len(many))
    asked = asked_devpi(began)
    assert sorted(asked) == sorted([*many, "lab-late"])
    assert asked.index("lab-late") <= REFRESHES_PER_SECOND * (passed + 1)
