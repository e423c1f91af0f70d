"""A cached project installs, whatever happens to devpi and to the way out, with every byte right."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from lab import FILES, container, docker, wait

SERVER, WORKSTATION = container("server"), container("workstation")
WAY_OUT = f"{SERVER}-way-out"
PROJECTS = ["attrs", "certifi", "charset-normalizer", "idna", "numpy", "requests", "six", "urllib3"]
# Names that nobody asked for before, in no earlier run either.
NEVER_SEEN, ASKED_AT_ONCE = (f"{name}-{time.time_ns()}" for name in ("never-seen", "asked-at-once"))
CLIENTS = 30
INSTALLS, KILLS = 10_000, 10
pytestmark = pytest.mark.usefixtures("one_server")

WayOut = Callable[[str], None]


def on(machine: str, command: str) -> str:
    """Run a command of the shell, and give its output."""
    return docker("exec", machine, "sh", "-c", command)


def devpi_process() -> str:
    return on(SERVER, "systemctl show --property MainPID --value devpi")


def devpi_answers() -> bool:
    ask = "import urllib.request as u; u.urlopen('http://127.0.0.1:3141/+api', timeout=2)"
    done = subprocess.run(["docker", "exec", SERVER, "python3", "-c", ask], check=False, capture_output=True)
    return done.returncode == 0


@pytest.fixture(scope="module")
def index() -> str:
    """The index that the workstation was told."""
    found = re.search(r"(?m)^index-url *= *(\S+)$", on(WORKSTATION, "cat /etc/pip.conf"))
    assert found
    return found[1]


@pytest.fixture
def way_out() -> Iterator[WayOut]:
    """Change the server's way out: `open`, `refused` at once, or `dropped`, by a router that nobody is.

    A container beside the server, in its network, may do so; the server itself has no right to.
    """
    image = docker("inspect", "--format", "{{.Config.Image}}", SERVER)
    scenario = docker("inspect", "--format", '{{index .Config.Labels "lanmirror.scenario"}}', SERVER)
    beside = ["--network", f"container:{SERVER}", "--cap-add", "NET_ADMIN", "--label", f"lanmirror.scenario={scenario}"]
    docker("run", "--detach", "--rm", "--name", WAY_OUT, *beside, image, "sleep", "infinity")
    try:
        route = on(WAY_OUT, "ip route show default").split()
        router, device = route[route.index("via") + 1], route[route.index("dev") + 1]
        commands = {
            "open": f"ip neigh del {router} dev {device}; ip route replace default via {router} dev {device}",
            "refused": "ip route replace unreachable default",
            "dropped": f"ip neigh replace {router} lladdr 02:00:00:00:00:99 dev {device} nud permanent",
        }

        def change(to: str) -> None:
            on(WAY_OUT, commands["open"])
            on(WAY_OUT, commands[to])

        yield change
        change("open")
    finally:
        docker("rm", "--force", WAY_OUT)


def way_out_ends() -> str:
    """Tell how a connection of the server's to the outside ends, to an address that is nobody's (RFC 5737)."""
    connect = "import socket\ntry: socket.create_connection(('192.0.2.1', 443), 2)\nexcept OSError as e: print(repr(e))"
    return on(SERVER, f"python3 -c {shlex.quote(connect)}")


def soak(index: str) -> subprocess.Popen[str]:
    """Start the clients on the workstation, and return once they know the right answers."""
    docker("cp", str(FILES / "soak_client.py"), f"{WORKSTATION}:/opt/soak_client.py")
    command = ["python3", "/opt/soak_client.py", index, str(INSTALLS), *PROJECTS]
    pipe = subprocess.PIPE
    clients = subprocess.Popen(["docker", "exec", "-i", WORKSTATION, *command], stdin=pipe, stdout=pipe, text=True)
    assert clients.stdout is not None
    assert clients.stdout.readline() == "ready\n"
    return clients


def test_cached_projects_survive_a_devpi_that_is_killed_and_an_upstream_that_flaps(index: str, way_out: WayOut) -> None:
    clients = soak(index)
    over = threading.Event()

    def flap() -> None:
        while not over.is_set():
            for state, seconds in (("dropped", 4.0), ("open", 2.0), ("refused", 3.0), ("open", 1.0)):
                way_out(state)
                if over.wait(seconds):
                    return

    flapping = threading.Thread(target=flap)
    flapping.start()
    killed: list[str] = ["0"]
    try:
        while clients.poll() is None and len(killed) <= KILLS:
            wait("a devpi that was not killed yet", 60, lambda: devpi_process() not in killed)
            # It is killed while it starts, as soon as it answers, and when it has worked for a while.
            if len(killed) % 3:
                wait("devpi", 60, devpi_answers)
            time.sleep((0.5, 0.0, 2.0)[len(killed) % 3])
            killed.append(devpi_process())
            on(SERVER, f"kill -KILL {killed[-1]}")
        # The end of its input: enough.
        output, _ = clients.communicate(timeout=300)
    finally:
        over.set()
        flapping.join()
        clients.kill()
    outcome = json.loads(output)
    print(outcome)
    assert len(set(killed)) == 1 + KILLS
    assert outcome["failed"] == 0, outcome["failures"]
    assert outcome["installs"] >= INSTALLS
    # pip gives an answer 15 seconds, and asks again; nobody here has to wait for that.
    assert outcome["slowest"] < 15, outcome


def test_blackhole_delays_nobody_and_is_named(index: str, way_out: WayOut) -> None:
    on(WORKSTATION, "test -x /opt/blackhole/bin/pip || python3 -m venv /opt/blackhole")

    def install(name: str) -> float:
        """Return how long pip took, in seconds."""
        began = time.monotonic()
        on(
            WORKSTATION,
            f"rm -rf /opt/{name} && /opt/blackhole/bin/pip install --disable-pip-version-check --no-cache-dir --quiet "
            f"--target /opt/{name} requests idna six",
        )
        return time.monotonic() - began

    install("first")
    warm = min(install("warm") for _ in range(2))
    way_out("dropped")
    assert "TimeoutError" in way_out_ends()
    # devpi forgets which pages are fresh, so each of them would be asked for again.
    on(SERVER, "systemctl restart devpi")
    wait("devpi", 60, devpi_answers)
    dropped = max(install("dropped") for _ in range(2))
    # devpi waits five seconds for an upstream that says nothing, and there are three pages.
    assert dropped < 2 * warm + 10, (warm, dropped)

    began = time.monotonic()
    answer = page(index, NEVER_SEEN)
    assert answer.startswith("424 "), answer
    assert "upstream" in answer
    assert time.monotonic() - began < 20

    way_out("open")
    # The refusal is not kept for long: the upstream is asked, and has no such project.
    wait("the upstream's own answer", 60, lambda: page(index, NEVER_SEEN).startswith("404 "))


def page(index: str, project: str) -> str:
    """Return status and page of a project, as the workstation gets it."""
    status, text = at_once(index, project, 1)[0]
    return f"{status} {text}"


def test_one_request_is_made_for_all_clients_of_a_page(index: str, way_out: WayOut) -> None:
    # Neither a page that is missing nor a refusal is asked for by each: devpi is asked once for those who came within
    # five seconds, and waits about as long for an upstream that says nothing.
    way_out("dropped")
    assert "TimeoutError" in way_out_ends()
    refused = at_once(index, ASKED_AT_ONCE)
    assert [status for status, _ in refused] == [424] * CLIENTS
    assert 1 <= devpi_was_asked(ASKED_AT_ONCE) <= 3

    way_out("open")
    wait("the upstream", 60, lambda: page(index, NEVER_SEEN).startswith("404 "))
    began = five_seconds()
    answered = at_once(index, "platformdirs")
    # One, but for clients that come before and after the turn of one: on a busy machine they do.
    turns = five_seconds() - began + 1
    assert len(answered) == CLIENTS
    assert {status for status, _ in answered} == {200}
    assert len(set(answered)) == 1
    asked = devpi_was_asked("platformdirs")
    assert 1 <= asked <= turns
    # As after a pause: Nginx has no page in memory, and all of them on its disk.
    on(SERVER, "systemctl stop nginx && rm -r /run/lanmirror_pages/* && systemctl start nginx")
    assert at_once(index, "platformdirs") == answered
    assert devpi_was_asked("platformdirs") == asked


def five_seconds() -> int:
    """Return in which of the five seconds the server is for which Nginx asks devpi once ($devpi_moment)."""
    return int(on(SERVER, "date +%s")) // 5


def at_once(index: str, project: str, clients: int = CLIENTS) -> list[tuple[int, str]]:
    """Return the status and the text of a project's page, for each of many clients that ask at the same moment."""
    ask = (
        "import json, threading, urllib.request as u, urllib.error as e\n"
        f"start, answers = threading.Barrier({clients}), []\n"
        "def ask():\n"
        "    start.wait()\n"
        f"    try: answer = u.urlopen('{index}{project}/', timeout=60)\n"
        "    except e.HTTPError as error: answer = error\n"
        "    answers.append((answer.status, answer.read().decode()))\n"
        f"clients = [threading.Thread(target=ask) for _ in range({clients})]\n"
        "for client in clients: client.start()\n"
        "for client in clients: client.join()\n"
        "print(json.dumps(answers))"
    )
    return [(status, text) for status, text in json.loads(on(WORKSTATION, f"python3 -c {shlex.quote(ask)}"))]


def devpi_was_asked(project: str) -> int:
    """Return how often Nginx asked devpi for a project's page."""
    journal = on(SERVER, "journalctl --unit devpi --output cat --no-pager")
    return journal.count(f"GET /root/pypi/+simple/{project}/")
