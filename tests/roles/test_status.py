"""playbooks/status.yml: the filter that makes the table, and real runs against real sites, one of them switched off."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import yaml
from lanmirror_sync import __version__, status
from lanmirror_sync import health as conda_health

from playbooks.filter_plugins import lanmirror_inventory as inventory
from playbooks.filter_plugins import lanmirror_status as shown
from roles.devpi.files.lanmirror_ops import health as pypi_health
from tests.engine.lab import SCRIPT, SETTINGS
from tests.ports import free_ports
from tests.roles.conda_site import authority
from tests.roles.render import ROOT, defaults, render
from tests.roles.site import Devpi
from tests.roles.test_conda_on_demand import until
from tests.roles.test_health import server
from tests.roles.test_preflight import GROUP_VARS, OFF, ansible
from tests.upstream import channel
from tests.upstream.server import serving

NOW = 1_796_000_000.0
GIB = 1 << 30
BOTH = {"pypi_cache": ["one"], "conda_mirror": ["one"]}
HEALTHS: dict[str, Any] = {"pypi": pypi_health.Health, "conda": conda_health.Health}


def said(about: str, content: str | bytes, code: int = 200) -> dict[str, Any]:
    """Return what module uri registers of an answer."""
    text = content.decode() if isinstance(content, bytes) else content
    return {"item": {"about": about}, "status": code, "content": text, "date": formatdate(NOW, usegmt=True)}


def told(half: str, problems: Mapping[str, str] | None = None, warnings: Mapping[str, str] | None = None) -> Any:
    """Return the answer of a half in the words of its own watchdog."""
    made = HEALTHS[half](problems or {}, warnings or {}).told(NOW)
    return said(half, made, 503 if problems else 200)


def mirror(run: Mapping[str, Any], *subdirs: tuple[float | None, list[str]], installers: int = 0) -> dict[str, Any]:
    """Return a status.json, of the parts that are read; of each subdir, the last check and the failures."""
    document = {
        "format": status.FORMAT,
        "written": NOW,
        "run": {**status.NEVER, **run},
        "subdirs": {str(n): {"last_check": at, "failures": list(f)} for n, (at, f) in enumerate(subdirs)},
        "installers": {"miniconda": {"failures": ["no"] * installers}},
    }
    return said("status", json.dumps(document))


def host(*answers: dict[str, Any], df: str = "", **more: Any) -> dict[str, Any]:
    """Return the variables of a server of both halves after the play."""
    variables = {"devpi_data_dir": "/srv/a b", "conda_mirror_working_dir": "/srv/b"}
    return {
        "status_asks": inventory.asks(variables, list(BOTH)),
        "status_disk": {"stdout": f"Avail 1B-blocks Filesystem File\n{df}", "rc": 0},
        "status_answers": {"results": list(answers)},
        **more,
    }


def cells(variables: dict[str, Any], groups: Mapping[str, list[str]] | None = None) -> dict[str, str]:
    """Return the line of a server by the names of the columns."""
    head, row = shown.table([shown.server("one", variables, groups or BOTH)]).splitlines()
    begins = [head.index(name) for name in shown.HEAD]
    return {
        name: row[begin:end].strip() for name, begin, end in zip(shown.HEAD, begins, [*begins[1:], None], strict=True)
    }


# ---- what a server is asked -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "site", "headers"),
    [
        ({}, "http://127.0.0.1:80", {}),
        ({"nginx_port": "8080"}, "http://127.0.0.1:8080", {}),
        ({"nginx_tls": "site_ca"}, "https://127.0.0.1:443", {}),
        ({"nginx_tls": "own", "nginx_tls_port": 8443, "nginx_port": 8080}, "https://127.0.0.1:8443", {}),
        ({"nginx_server_names": ["mirror.lab.lan", "x"]}, "http://127.0.0.1:80", {"Host": "mirror.lab.lan"}),
        ({"nginx_server_names": "['mirror.lab.lan']"}, "http://127.0.0.1:80", {"Host": "mirror.lab.lan"}),
    ],
)
def test_server_is_asked_by_its_own_port_and_name(variables: dict[str, Any], site: str, headers: object) -> None:
    asks = inventory.asks(variables, ["conda_mirror"])["asks"]
    assert [ask["url"] for ask in asks] == [f"{site}/health/conda", f"{site}/status.json", f"{site}/"]
    assert all(ask["headers"] == headers for ask in asks)


def test_server_is_asked_for_its_halves_alone() -> None:
    pypi = inventory.asks({"devpi_role": "replica"}, ["pypi_cache", "pypi_replicas"])
    assert [ask["about"] for ask in pypi["asks"]] == ["pypi", "portal"]
    assert (pypi["role"], pypi["folders"]) == ("replica", [defaults("devpi")["devpi_data_dir"]])
    both = inventory.asks({"conda_mirror_working_dir": "/srv/c"}, list(BOTH))
    assert [ask["about"] for ask in both["asks"]] == ["pypi", "conda", "status", "portal"]
    assert (both["role"], both["folders"][1:]) == ("primary", ["/srv/c"])


# ---- what it answered -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problems", "warnings", "cell", "state"),
    [
        ({}, {}, "ok", "ok"),
        ({}, {"w": "short"}, "warning: short", "warning"),
        ({"p": "the disk\n of /srv \x1b[31mis full"}, {"w": "x"}, "problem: the disk of /srv [31mis full", "problem"),
        ({"p": "devpi does not answer (timed out): systemctl status devpi"}, {},
         "problem: devpi does not answer (timed out): …", "problem"),
    ],
)  # fmt: skip
def test_health_is_a_word_and_the_first_words_of_the_first_reason(
    problems: dict[str, str], warnings: dict[str, str], cell: str, state: str
) -> None:
    variables = host(told("pypi", problems, warnings), told("conda"))
    assert cells(variables)["/health/pypi"] == cell
    assert cells(variables)["/health/conda"] == "ok"
    one = shown.server("one", variables, BOTH)
    assert one.status == state
    assert [reason.split()[0] for reason in (one.pypi or shown.Half("")).reasons] == [
        text.split()[0] for text in (*problems.values(), *warnings.values())
    ]
    assert shown.bad([one]) == ["one"] * (state == "problem")


REFUSED = "Status code was -1 and not [200, 503]: Request failed: <urlopen error [Errno 111] Connection refused>"
SSH = (
    'Task failed: Data could not be sent to remote host "10.0.0.9". Make sure this host can be reached over ssh: '
    "ssh: connect to host 10.0.0.9 port 22: No route to host"
)
DENIED = "me@x: Permission denied (publickey)."
KEY = f"Failed to connect to the host via ssh: Warning: Permanently added 'x' to the list of known hosts.\r\n{DENIED}"


@pytest.mark.parametrize(
    ("result", "why", "cell"),
    [
        ({"status": -1, "msg": REFUSED}, "Connection refused", "Connection refused"),
        ({"status": 404, "content": "devpi: no", "msg": "Status code was 404"}, "status 404", "status 404"),
        ({**told("pypi"), "status": 502, "msg": "x"}, "status 502", "status 502"),
        ({"status": 200, "content": "<html>"}, "status 200, without its health", "status 200, without its health"),
        ({"status": 200, "content": "[1]"}, "status 200, without its health", "status 200, without its health"),
        ({}, "it was not asked", "it was not asked"),
    ],
)
def test_site_that_gives_no_health_is_told_with_the_reason(result: dict[str, Any], why: str, cell: str) -> None:
    variables = host({"item": {"about": "pypi"}, **result}, told("conda"))
    one = shown.server("one", variables, BOTH)
    assert one.pypi == shown.Half(shown.SILENT, (why,))
    # The other half speaks for itself.
    assert one.conda == shown.Half(shown.OK)
    assert cells(variables)["/health/pypi"] == f"does not answer: {cell}"
    assert shown.complaint([one]).splitlines()[1:] == [f"one (PyPI): does not answer: {why}"]


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        (
            host(status_disk={"unreachable": True, "msg": SSH}),
            "ssh: connect to host 10.0.0.9 port 22: No route to host",
        ),
        (host(status_disk={"unreachable": True, "msg": KEY}), DENIED),
        # With ignore_unreachable, what is skipped then has results as well.
        (
            host(
                {"item": {"about": "pypi"}, "skipped": True, "msg": "skip"},
                status_disk={"unreachable": True, "msg": SSH},
            ),
            "ssh: connect to host 10.0.0.9 port 22: No route to host",
        ),
        ({"status_failed": "Task failed: 'no_such' is undefined"}, "'no_such' is undefined"),
        ({}, "it was not asked"),
    ],
)
def test_server_that_is_off_is_one_line(variables: dict[str, Any], why: str) -> None:
    row = cells(variables)
    assert row["/health/pypi"] == row["/health/conda"] == f"does not answer: {why.rpartition(': ')[2]}"
    assert {row[name] for name in shown.HEAD[2:7]} == {"-"}
    said = shown.complaint([shown.server("one", variables, BOTH)]).splitlines()
    assert said[1:] == [f"one (PyPI and Conda): does not answer: {why}"]


def test_server_of_one_half_has_nothing_to_say_of_the_other() -> None:
    row = cells(host(told("conda")), {"conda_mirror": ["one"]})
    assert (row["has"], row["/health/pypi"], row["/health/conda"]) == ("Conda", "-", "ok")


@pytest.mark.parametrize(
    ("run", "subdirs", "wanted"),
    [
        ({}, [], ("none yet", "none yet", "0")),
        ({"result": "in sync", "began": NOW - 9000, "ended": NOW - 7300}, [(NOW - 300, []), (NOW - 60, [])],
         ("in sync, 2 h ago", "5 min", "0")),
        ({"result": "running", "began": NOW - 600}, [(NOW - 600, []), (None, [])],
         ("running for 10 min", "none yet", "0")),
        ({"result": "failed", "began": NOW - 3e5, "ended": NOW - 260000}, [(NOW - 2e5, ["a", "b"]), (NOW, ["c"])],
         ("failed, 3 d ago", "2 d", "3")),
    ],
)  # fmt: skip
def test_sync_and_indexes_are_told_by_the_clock_of_the_server(
    run: dict[str, Any], subdirs: list[Any], wanted: tuple[str, ...]
) -> None:
    row = cells(host(told("pypi"), told("conda"), mirror(run, *subdirs)))
    assert tuple(row[name] for name in ("last sync", "oldest index", "failures")) == wanted


def test_failures_of_installers_count() -> None:
    assert cells(host(mirror({}, (NOW, ["a"]), installers=2)))["failures"] == "3"


def test_status_of_another_format_is_not_guessed_at() -> None:
    answer = mirror({"result": "in sync", "ended": NOW})
    answer["content"] = answer["content"].replace('"format": 1', '"format": 2')
    assert cells(host(told("conda"), answer))["last sync"] == "-"


def test_version_is_that_of_the_portal() -> None:
    portal = said("portal", render("nginx", "99-foot.html.j2"))
    assert cells(host(portal))["version"] == __version__


@pytest.mark.parametrize(
    ("df", "cell"),
    [
        ("", "-"),
        (f"{5 * GIB + GIB // 4} {100 * GIB} /dev/sda1 /srv/a b\n", "5.2 of 100"),
        # One disk, which is written to meanwhile, and two of the same size.
        (f"{50 * GIB} {100 * GIB} /dev/sda1 /srv/a b\n{49 * GIB} {100 * GIB} /dev/sda1 /srv/b\n", "50 of 100"),
        (
            f"{50 * GIB} {100 * GIB} /dev/sda1 /srv/a b\n{49 * GIB} {100 * GIB} //nas/x y /srv/b\n",
            "50 of 100, 49 of 100",
        ),
        ("- - none /srv/b\n", "-"),
    ],
)
def test_free_room_is_told_of_each_disk(df: str, cell: str) -> None:
    assert cells(host(df=df))["free, GiB"] == cell


def test_lines_stand_below_each_other_and_the_json_has_it_all() -> None:
    names = ["one", "a-long-name"]
    groups = {"pypi_cache": names, "conda_mirror": ["one"]}
    hosts = {"one": host(told("pypi", {"p": "p: q"}, {"w": "w"}), told("conda")), "a-long-name": {}}
    filters = shown.FilterModule().filters()
    head, *rows = filters["lanmirror_status_table"](hosts, groups, names).splitlines()
    assert [row.split()[0] for row in rows] == names
    assert {row.index("PyPI") for row in rows} == {head.index("has")}
    assert len({len(row[: row.index(word)]) for row, word in zip(rows, ("problem", "does"), strict=True)}) == 1
    printed = filters["lanmirror_status_as_json"](hosts, groups, names)
    assert [line[:9] for line in printed.splitlines()] == ['{"format"', '{"name": ', '{"name": ', "]}"]
    one, other = json.loads(printed)["servers"]
    assert one["pypi"] == {"status": "problem", "reasons": ["p: q", "w"]}
    assert (one["status"], one["role"], one["sync"]) == ("problem", "primary", None)
    assert (other["status"], other["conda"]) == ("does not answer", None)
    assert filters["lanmirror_status_bad"](hosts, groups, names) == names
    assert filters["lanmirror_status_bad"](hosts, groups, []) == []


# ---- the playbook ---------------------------------------------------------------------------------------------

PLAYBOOK = "playbooks/status.yml"


def sync(folder: Path, upstream: str) -> None:
    """Have the engine sync one channel and fail to find another, and its watchdog write the health of that."""
    config, public = folder / "engine.json", folder / "conda-watch"
    own = {"working_dir": str(folder / "mirror"), "upstream": {"repo": upstream, "cloud": f"{upstream}/cloud"}}
    config.write_text(json.dumps(SETTINGS | own | {"cloud": ["nowhere/noarch"]}))
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run([*command, "sync", "--config", config], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    public.mkdir()
    watch = [*command, "watch", "--health", str(public), "--config", str(config)]
    with subprocess.Popen(watch, stderr=subprocess.DEVNULL) as process:
        until((public / "ok.json").exists)
        process.terminate()


def pypi(folder: Path, **found: Any) -> None:
    """Have devpi's watchdog write what it judges."""
    known: dict[str, Any] = {"silent": "", "database": "", "damage": "", "devpi": pypi_health.Devpi(), "measured": ()}
    (folder / "watch").mkdir()
    health = pypi_health.judge(**{**known, "upstreams": {}, "malware": "", **found})
    pypi_health.publish(health, folder / "watch", time.time())


def lines(stdout: str) -> dict[str, list[str]]:
    """Return the cells of the table by server, with N for what time and the machine decide."""
    rows = stdout.partition("/health/conda\n")[2].partition("\n\n")[0].splitlines()
    found = [re.split(r"\s{2,}", row.strip()) for row in rows]
    return {
        name: [has, version, *(re.sub(r"[\d.]+", "N", cell) for cell in cells[:3]), *cells[3:]]
        for name, has, version, *cells in found
    }


def test_playbook_tells_of_all_servers_and_of_one_that_is_off(tmp_path: Path) -> None:
    channel.build(channel.hello("noarch"), tmp_path / "upstream/pkgs/main")
    channel.build(channel.hello("linux-64"), tmp_path / "upstream/pkgs/main")
    channel.index(tmp_path / "upstream/pkgs/main")
    tls = free_ports(2)
    with (
        serving(tmp_path / "upstream") as upstream,
        server(tmp_path / "mirror", "pypi", "conda") as mirror_,
        server(tmp_path / "replica", "pypi") as replica,
    ):
        sync(mirror_.folder, upstream.url)
        pypi(mirror_.folder, upstreams={"root/pypi": (NOW, "timed out")})
        pypi(replica.folder, silent="timed out")
        (mirror_.folder / "portal/index.html").write_text(render("nginx", "99-foot.html.j2"))
        # One of https with a name alone, and a certificate that is not for 127.0.0.1.
        named = Devpi(tls, authority(tmp_path, "conda.lab.lan")[1])
        for path in ("/health/conda", "/status.json"):
            named.says[path] = 200, {"Content-Type": "application/json"}, mirror_.ask(path).body
        named.start()
        folders = {"devpi_data_dir": str(tmp_path), "conda_mirror_working_dir": str(mirror_.folder / "mirror")}
        hosts: dict[str, dict[str, Any]] = {
            "mirror": {"nginx_port": mirror_.port},
            "replica": {"nginx_port": replica.port, "devpi_role": "replica", "devpi_data_dir": f"{tmp_path}/none"},
            "named": {"nginx_tls": "own", "nginx_tls_port": tls, "nginx_server_names": ["conda.lab.lan"]},
            "closed": {"nginx_port": tls + 1},
            "off": OFF,
            "wrong": {"nginx_port": "{{ no_such }}"},
        }
        groups = {
            "pypi_cache": ["mirror", "replica", "off", "closed", "wrong"],
            "pypi_replicas": ["replica"],
            "conda_mirror": ["mirror", "named", "off"],
        }
        inventory: dict[str, Any] = {
            group: {"hosts": {name: hosts[name] for name in names}} for group, names in groups.items()
        }
        inventory["all"] = {"vars": {**GROUP_VARS["all"], **folders}}
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory, sort_keys=False))
        asked = len(upstream.requests)
        run = ansible(tmp_path, "playbook", PLAYBOOK)
        well = ansible(
            tmp_path, "playbook", PLAYBOOK, "--check", "--limit", "mirror", "-e", "lanmirror_status_json=true"
        )
        named.stop()
        assert len(upstream.requests) == asked
    assert run.returncode == 2, run.stdout + run.stderr
    table = lines(run.stdout)
    refused, free = "does not answer: Connection refused", "N of N"
    synced = ["incomplete, N min ago", "N min", "1"]
    warning = "warning: cloud/nowhere/noarch: the upstream …"
    assert table == {
        "mirror": [
            "PyPI primary, Conda",
            __version__,
            free,
            *synced,
            "warning: the upstream of root/pypi does not …",
            warning,
        ],
        "replica": ["PyPI replica", "-", "-", "-", "-", "-", "problem: devpi does not answer (timed out): …", "-"],
        "off": ["PyPI primary, Conda", "-", "-", "-", "-", "-", refused, refused],
        "closed": ["PyPI primary", "-", free, "-", "-", "-", refused, "-"],
        "wrong": ["PyPI", "-", "-", "-", "-", "-", "does not answer: 'no_such' is undefined", "-"],
        # It has the documents of the first.
        "named": ["Conda", "-", free, *synced, "-", warning],
    }
    message = run.stdout.rpartition("These servers have a problem or do not answer:\n")[2].partition("\n\n")[0]
    assert [line.strip() for line in message.splitlines() if "skipping: " not in line] == [
        "replica (PyPI): problem: devpi does not answer (timed out): systemctl status devpi",
        "off (PyPI and Conda): does not answer: ssh: connect to host 127.0.0.1 port 1: Connection refused",
        "closed (PyPI): does not answer: Connection refused",
        "wrong (PyPI): does not answer: Error while resolving value for 'status_asks': 'no_such' is undefined",
    ]
    ended = dict(line.split(None, 1) for line in run.stdout.partition("PLAY RECAP")[2].splitlines()[1:] if line)
    assert [name for name, line in ended.items() if "failed=0" not in line] == ["replica"]
    assert all("changed=0" in line and "unreachable=0" in line for line in ended.values())
    # Every server was asked by itself, and by its name.
    assert {asked["Host"] for asked in named.asked} == {"conda.lab.lan"}
    assert well.returncode == 0, well.stdout
    # As the page has it.
    (take,) = re.findall(r"\| (sed -n '[^']+') \|", (ROOT / "docs/monitoring.md").read_text())
    taken = subprocess.run(shlex.split(take), input=well.stdout, capture_output=True, text=True, check=True)
    (one,) = json.loads(taken.stdout)["servers"]
    assert (one["name"], one["status"], one["role"], one["version"]) == ("mirror", "warning", "primary", __version__)
    assert (one["sync"]["result"], one["sync"]["failures"]) == ("incomplete", 1)
    assert [disk["folder"] for disk in one["disks"]] == [str(tmp_path)]
    assert 0 < one["disks"][0]["free_bytes"] <= one["disks"][0]["bytes"]
    assert "cloud/nowhere/noarch" in one["conda"]["reasons"][0]
