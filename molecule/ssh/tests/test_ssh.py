"""A stranger's way: real SSH, servers that serve something already, and off again. The tests stand in their order."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
import yaml
from lab import (
    FILES,
    HOSTS,
    PROJECT,
    SITE,
    Played,
    attempt,
    container,
    docker,
    machine,
    pip_install,
    playbook,
    run,
    wait,
)

PASSWORD = str(yaml.safe_load((PROJECT / "molecule/vars.yml").read_text())["sudo_password"])
HOST = SITE.removeprefix("http://")
MACHINES = ("server", "workstation")
ATTEMPTS_OF_A_SECOND = 5
# Of each site while a playbook runs, which takes half a minute at the least: only so that the asking itself is no empty
# test. What holds for each moment between the requests is in `serves_on`.
LEAST_ASKED = 10
# When an answer is given up, seconds: a machine that is busy answers late, and late is neither refused nor wrong. A
# connection that is refused or reset, and a wrong answer, fail at once.
PATIENCE = 30

# ---- the administrator's own sites ------------------------------------------------------------------------------


def ask_wiki() -> bool:
    answer = requests.get(f"{SITE}/page", headers={"Host": "wiki.lab.lan"}, timeout=PATIENCE)
    return (answer.status_code, answer.text) == (200, "wiki\n")


def upload_to_wiki() -> bool:
    """Send more than Nginx's own limit, which the administrator raised."""
    answer = requests.post(f"{SITE}/page", b"x" * (2 << 20), headers={"Host": "wiki.lab.lan"}, timeout=PATIENCE)
    return answer.status_code == 200


def ask_files() -> bool:
    return requests.get(f"http://{HOST}:8080/hello.txt", timeout=PATIENCE).text == "hello\n"


def ask_stream() -> bool:
    with socket.create_connection((HOST, 9000), PATIENCE) as connection:
        return connection.recv(100) == b"stream\n"


SITES = (ask_wiki, upload_to_wiki, ask_files, ask_stream)


@contextmanager
def sites_answer() -> Iterator[Counter[str]]:
    """Ask each of the sites again and again meanwhile, each time over a new connection: all have to answer.

    Gives how often each was asked, whole at the end.
    """
    over, asked, failed = threading.Event(), Counter[str](), list[str]()

    def ask() -> None:
        while not over.wait(1 / ATTEMPTS_OF_A_SECOND):
            for site in SITES:
                asked[site.__name__] += 1
                try:
                    right, wrong = site(), "another answer"
                except OSError as error:
                    right, wrong = False, repr(error)
                if not right:
                    failed.append(f"{time.strftime('%T')} {site.__name__}: {wrong}")

    asking = threading.Thread(target=ask)
    asking.start()
    began = time.monotonic()
    try:
        yield asked
    finally:
        over.set()
        asking.join()
    print(f"{time.monotonic() - began:.0f} s, {len(failed)} failed of {asked}")
    assert failed == [], f"{len(failed)} failed of {asked}: {failed[:10]}"
    assert min(asked[site.__name__] for site in SITES) >= LEAST_ASKED


def listening(host: Any) -> dict[str, str]:
    """Give the kernel's number of each socket that the administrator's sites listen on, and the pid of the master."""
    rows = [row.split() for row in run(host, "ss -Hltne 'sport = :80 or sport = :8080 or sport = :9000'").splitlines()]
    found = {row[3]: next(word for word in row if word.startswith("ino:")) for row in rows}
    return {**found, "master": run(host, "systemctl show nginx --property MainPID --value")}


def answered(host: Any) -> Counter[str]:
    """Give how often the administrator's own log of the wiki has each status."""
    return Counter(re.findall(r'(?m)^\S+ "[^"]*" (\d+) ', run(host, "cat /var/log/nginx/wiki.log")))


@contextmanager
def serves_on(host: Any) -> Iterator[None]:
    """Have the sites asked meanwhile, and see that at no moment a request could be refused.

    The kernel takes connections for as long as a socket listens: with the same sockets and the same master at the
    end, no moment was without them, however rarely or late the sites were asked. And Nginx's own log has each request
    that was sent, all of them answered in the right place.
    """
    sockets, logged = listening(host), answered(host)
    assert {"0.0.0.0:80", "0.0.0.0:8080", "0.0.0.0:9000"} <= set(sockets)
    try:
        with sites_answer() as asked:
            yield
    finally:
        # To tell a start from a stop that nobody asked for.
        print(listening(host), run(host, "journalctl --no-pager --lines=20 --unit=nginx.service"), sep="\n")
    assert sockets.items() <= listening(host).items()
    sent = sum(logged.values()) + asked[ask_wiki.__name__] + asked[upload_to_wiki.__name__]
    # A line comes after its answer.
    wait("the lines of the last requests", PATIENCE, lambda: sum(answered(host).values()) >= sent)
    assert answered(host) - logged == Counter({"200": sent - sum(logged.values())})


# ---- the machines -----------------------------------------------------------------------------------------------

FOLDERS = "/etc /usr/local /opt /srv /var"
# Packages that stay, since others may use them by now; with their dependencies. A server in use has cron and logrotate
# before: cron makes a group, which stays with it. It may have an HAProxy of its own, whose package makes a user.
HELPERS = {"python3-venv", "cron", "logrotate", "openssl"}
# Files that change without us, by the reason.
OTHERS = {
    "apt and dpkg know of the packages that stay": r"/var/(lib|cache)/(apt|dpkg|debconf)(/.*)?|/var/cache/ldconfig/.*",
    "systemd keeps the state of its own units": r"/var/lib/systemd(/.*)?",
    "logs": r"/var/log(/.*)?",
    "useradd keeps the version before the last": r"/etc/(passwd|group|shadow|gshadow|subuid|subgid)-",
    "the lock of useradd": r"/etc/\.pwd\.lock",
}


def snapshot(host: Any, name: str) -> dict[str, Any]:
    """Give the state of a machine, see snapshot.py."""
    docker("cp", str(FILES / "snapshot.py"), f"{container(name)}:/root/snapshot.py")
    state: dict[str, Any] = json.loads(run(host, f"python3 /root/snapshot.py {FOLDERS}; rm /root/snapshot.py"))
    return state


def packages(state: dict[str, Any]) -> set[str]:
    return {row.split()[0] for row in state["packages"]}


def of_packages(host: Any, names: set[str]) -> set[str]:
    """Give the paths of some packages."""
    return set(run(host, f"dpkg -L {' '.join(names)}").splitlines()) if names else set()


def differences(host: Any, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name everything that is not as it was, but for the packages that stay and what changes without us."""
    may_change = re.compile("|".join(OTHERS.values()))
    stay = of_packages(host, packages(after) - packages(before))
    old, new = before["files"], after["files"]
    found = [
        f"{path}: {old.get(path, 'absent')} -> {new.get(path, 'absent')}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path) and not may_change.fullmatch(path) and path not in stay
    ]
    names = {path.rpartition("/")[2] for path in stay}
    for kind in ("units", "sockets", "failed"):
        changed = set(before[kind]) ^ set(after[kind])
        found += [f"{kind}: {row}" for row in sorted(changed) if row.split()[0] not in names]
    return found


@pytest.fixture(scope="module")
def hosts() -> dict[str, Any]:
    return {name: machine(name) for name in MACHINES}


@pytest.fixture(scope="module")
def before(hosts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The machines before the first run."""
    return {name: snapshot(host, name) for name, host in hosts.items()}


@pytest.fixture(scope="module")
def become(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The option of the sudo password, which a person types after `-K`."""
    file = tmp_path_factory.mktemp("sudo") / "password"
    file.write_text(f"{PASSWORD}\n")
    return [f"--become-password-file={file}"]


def play(name: str, *arguments: str) -> Played:
    """Run a playbook while the administrator's sites are asked; print how long it took."""
    began = time.monotonic()
    with serves_on(machine("server")):
        done = playbook(name, *arguments)
    print(f"{name}: {time.monotonic() - began:.0f} s, exit code {done.code}")
    return done


def closing_words(done: Played) -> str:
    """Give the output of the last play on one line, without Ansible's own recap."""
    return " ".join(done.output.rpartition("PLAY [")[2].partition("PLAY RECAP")[0].split())


# ---- from the first try to the last -----------------------------------------------------------------------------


def test_machines_are_as_the_tests_take_them(hosts: dict[str, Any], before: dict[str, Any]) -> None:
    assert all(site() for site in SITES)
    assert "listen 9000" in hosts["server"].file("/etc/nginx/nginx.conf").content_string
    assert docker("inspect", "--format", "{{.State.Running}}", container("laptop")) == "false"


def test_missing_sudo_password_is_named_first() -> None:
    done = playbook("site.yml")
    # The first thing that a machine is asked for: no task more, whatever time each takes.
    assert re.findall(r"\nTASK \[(.*?)\]", done.output) == [
        "Check groups, names of variables, URLs, ports and TLS",
        "Become root",
        "Keep the message",
        "Stop if the administrator cannot become root on a machine",
    ], done.output
    assert done.code != 0
    assert "sudo password" in done.said, done.output
    assert "-K" in done.said, done.output
    assert set(done.changed.values()) <= {0}


@pytest.mark.usefixtures("before")
def test_all_but_the_machine_that_is_off_is_set_up(hosts: dict[str, Any], become: list[str]) -> None:
    done = play("site.yml", *become)
    assert done.changed["server"] > 0, done.output
    assert done.changed["workstation"] > 0, done.output
    assert done.code == 4, done.output  # Ansible's, for a machine that does not answer
    assert not re.search(r"failed=[1-9]", done.output), done.output
    words = closing_words(done)
    assert "These machines did not answer, and are as they were: laptop" in words, done.output
    assert f"{SITE}/ is the portal of server" in words, done.output
    assert "The Conda mirror does not have" in words, done.output
    units = "devpi nginx cron devpi-watch conda-watch conda-outside haproxy"
    assert run(hosts["server"], f"systemctl is-active {units}") == "\n".join(["active"] * 7)
    assert run(hosts["server"], "curl --silent http://127.0.0.1:9002/") == "theirs"


def test_workstation_installs_through_the_server(hosts: dict[str, Any]) -> None:
    pip_install(hosts["workstation"], "/var/tmp/first", ["idna"])
    run(hosts["workstation"], "/var/tmp/first/bin/python -c 'import idna'; rm -r /var/tmp/first")
    health = requests.get(f"{SITE}/health", timeout=PATIENCE).json()
    assert (health["status"], health["pypi"]["status"], health["conda"]["status"]) == ("ok", "ok", "ok"), health


def test_nginx_conf_and_sites_are_the_administrators(hosts: dict[str, Any], before: dict[str, Any]) -> None:
    after = snapshot(hosts["server"], "server")["files"]
    was = before["server"]["files"]
    theirs = [path for path in was if path.startswith(("/etc/nginx/", "/etc/haproxy/", "/etc/pip.conf", "/var/www/"))]
    assert [path for path in theirs if after.get(path) != was[path]] == []
    assert '"GET /page HTTP/1.1" 200' in run(hosts["server"], "tail -n 1000 /var/log/nginx/wiki.log")


def test_schedule_works_under_umask_077(hosts: dict[str, Any]) -> None:
    way_in = HOSTS["pypi_cache"]["hosts"]["server"]
    ssh = ["ssh", "-i", way_in["ansible_ssh_private_key_file"], *way_in["ansible_ssh_common_args"].split()]
    command = [*ssh, f"admin@{HOST}", "sudo -S sh -c umask"]
    assert subprocess.run(command, input=PASSWORD, check=True, capture_output=True, text=True).stdout == "0077\n"
    done = attempt(hosts["server"], "runuser -u conda-mirror -- /usr/local/bin/lanmirror-conda-sync logged")
    assert done.rc == 5, done.stdout + done.stderr  # documented: the upstream cannot be reached


def test_second_run_changes_nothing(become: list[str]) -> None:
    done = play("site.yml", *become)
    changed = re.findall(r"(?s)TASK \[([^\]]*)\][^\n]*\n(?:(?!TASK \[).)*?changed: \[", done.output)
    assert (done.changed["server"], done.changed["workstation"]) == (0, 0), changed
    assert "laptop" in closing_words(done), done.output


def test_machines_are_as_they_were_after_the_removal(
    hosts: dict[str, Any], before: dict[str, Any], become: list[str]
) -> None:
    everything = {"lanmirror_remove": "all", "devpi_remove_data": True, "conda_mirror_remove_data": True}
    done = play("playbooks/remove.yml", *become, "-e", json.dumps(everything))
    assert not re.search(r"failed=[1-9]", done.output), done.output
    after = {name: snapshot(host, name) for name, host in hosts.items()}
    found = {name: differences(hosts[name], before[name], after[name]) for name in MACHINES}
    assert found == {name: [] for name in MACHINES}
    for name, host in hosts.items():
        stay = packages(after[name]) - packages(before[name])
        needed = run(host, f"apt-cache depends --recurse --installed {' '.join(HELPERS)}").split()
        assert stay <= set(needed)
        assert packages(before[name]) <= packages(after[name])
        assert [helper for helper in stay & HELPERS if helper not in done.said] == []
    assert run(hosts["server"], "getent passwd devpi conda-mirror || true") == ""


def test_removal_of_nothing_changes_nothing(become: list[str]) -> None:
    done = play("playbooks/remove.yml", *become, "-e", "lanmirror_remove=all")
    assert (done.changed["server"], done.changed["workstation"]) == (0, 0), done.output
