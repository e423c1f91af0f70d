"""The answer at /health: Nginx itself with the files of the roles, for each set of halves, with nothing behind it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from bench.common.servers import DEVPI_SITE, site_files
from tests.ports import free_ports
from tests.roles import conda_site
from tests.roles.render import ROOT, evaluate, render, tasks
from tests.roles.site import INDEXES, PORTS, Devpi, Site, serving
from tests.roles.test_conda_on_demand import until

# By the name of the half: role, host that leads to it alone, and the folder of its watchdog here.
HALVES = {"pypi": ("devpi", "pypi.lan", "watch"), "conda": ("conda_mirror", "conda.lan", "conda-watch")}
WELL: dict[str, Any] = {"status": "ok", "problems": [], "warnings": ["<!--# echo var='host' -->"], "checked": "now"}
ILL: dict[str, Any] = {"status": "failing", "problems": ['the "disk" is full'], "warnings": [], "checked": "now"}


@dataclass
class Server(Site):
    """A server of some halves."""

    def say(self, half: str, what: str) -> None:
        """Have the watchdog of a half say `ok` or `failing`, or `nothing` since it does not run."""
        public = self.folder / HALVES[half][2]
        shutil.rmtree(public, ignore_errors=True)
        if what != "nothing":
            public.mkdir()
            (public / f"{what}.json").write_text(json.dumps(WELL if what == "ok" else ILL, indent=1) + "\n")


@contextmanager
def server(folder: Path, *halves: str) -> Iterator[Server]:
    """Run Nginx with the files of the roles; of devpi, the engine and the upstreams none is there."""
    behind = free_ports(PORTS + 2)
    port, steps = behind + PORTS, behind + PORTS + 1
    given: dict[str, Any] = {
        "nginx_port": port,
        "devpi_port": behind,
        "devpi_data_dir": str(folder / "data"),
        "__devpi_indexes": INDEXES,
        "__devpi_cache_dir": str(folder / "cache"),
        "__devpi_memory_dir": str(folder / "memory"),
        "conda_mirror_on_demand": True,
        "conda_mirror_on_demand_port": steps,
        **conda_site.bases("http://127.0.0.1:9"),
        "conda_mirror_working_dir": str(folder / "mirror"),
        "conda_mirror_cache_dir": str(folder / "cache"),
        "__conda_mirror_spare_dir": str(folder / "spare"),
        "__conda_mirror_resolvers": [],
    }
    for name in ("cache/lanmirror-conda", "memory", "mirror", "spare", "sites-enabled", "data/+files"):
        (folder / name).mkdir(parents=True)
    sites = {"pypi": DEVPI_SITE, "conda": conda_site.SITE}
    files = site_files(folder, {name: file for half in halves for name, file in sites[half].items()}, **given)
    for half in halves:
        role, host, watch = HALVES[half]
        (task,) = [task for task in tasks(role, "site.yml") if "nginx_site_health" in task.get("vars", {})]
        assert task["vars"]["nginx_site_health"]["name"] == half
        asked = {key: value for key, value in task["vars"].items() if key.endswith(("_name", "_vhost_locations"))}
        assert evaluate(role, task["vars"]["nginx_site_health"]["folder"]) == f"/run/{role.split('_')[0]}-watch"
        asked["nginx_site_health"] = {"name": half, "folder": str(folder / watch)}
        for template in ("half.conf", "vhost.conf"):
            text = render("nginx", f"{template}.j2", nginx_site_server_names=[host], **asked, **given)
            files[f"lanmirror/{role}/{template}"] = text.replace("/etc/nginx/lanmirror", f"{folder}/lanmirror")
    with serving(folder, files, port):
        yield Server(folder, port, Devpi(behind))


def told(ours: Server, path: str = "/health", **headers: str) -> tuple[int, Any]:
    """Return status and content."""
    answer = ours.ask(path, **headers)
    assert answer["Content-Type"] == "application/json"
    assert answer["Cache-Control"] == "no-cache"
    return answer.status, json.loads(answer.body)


CONTENT = {
    "ok": WELL,
    "failing": ILL,
    "nothing": {
        "pypi": {
            "status": "failing",
            "problems": ["nobody looks after devpi: systemctl status devpi-watch"],
            "warnings": [],
        },
        "conda": {
            "status": "failing",
            "problems": ["nobody looks after the Conda mirror: systemctl status conda-watch"],
            "warnings": [],
        },
    },
}


def content(half: str, what: str) -> Any:
    return CONTENT["nothing"][half] if what == "nothing" else CONTENT[what]


def test_server_of_both_halves_tells_of_both_and_a_host_of_one_half_of_that_one(tmp_path: Path) -> None:
    with server(tmp_path, "pypi", "conda") as ours:

        def tells(path: str, status: int, wanted: Any, **headers: str) -> None:
            # Each worker of Nginx keeps a file open for a second without looking.
            until(lambda: told(ours, path, **headers) == (status, wanted))

        def heads(status: int) -> None:
            until(lambda: ours.ask("/health", "HEAD").status == status)
            head = ours.ask("/health", "HEAD")
            assert (head.body, head["Cache-Control"]) == (b"", "no-cache")

        for said in product(CONTENT, repeat=2):
            says = dict(zip(HALVES, said, strict=True))
            wanted = {half: content(half, what) for half, what in says.items()}
            for half, what in says.items():
                ours.say(half, what)
            for half, what in says.items():
                status, word = (200, "ok") if what == "ok" else (503, "failing")
                tells(f"/health/{half}", status, wanted[half])
                tells(f"/health/{half}", status, wanted[half], Host=HALVES[half][1])
                tells("/health", status, {"status": word, half: wanted[half]}, Host=HALVES[half][1])
            status, word = (200, "ok") if set(said) == {"ok"} else (503, "failing")
            tells("/health", status, {"status": word, **wanted})
            heads(status)


@pytest.mark.parametrize("half", HALVES)
def test_server_of_one_half_tells_of_that_one(tmp_path: Path, half: str) -> None:
    (other,) = HALVES.keys() - {half}
    with server(tmp_path, half) as ours:
        assert told(ours) == (503, {"status": "failing", half: content(half, "nothing")})
        ours.say(half, "ok")
        assert told(ours) == (200, {"status": "ok", half: WELL})
        # Of a path that devpi would know nobody has an answer while it is down.
        assert ours.ask(f"/health/{other}").status == (502 if half == "pypi" else 404)
        # A monitor that has an answer is not told that it has it, and a part of one is none.
        since = {"If_Modified_Since": "Fri, 01 Jan 2100 00:00:00 GMT", "If_None_Match": "*", "Range": "bytes=0-1"}
        assert told(ours, **since) == (200, {"status": "ok", half: WELL})
        assert ours.ask("/+health/failing.json").status in (404, 502)
        assert ours.ask("/+health/conda.json").status in (404, 502)


def test_watchdog_of_the_conda_half_is_heard_until_it_ends(tmp_path: Path) -> None:
    """The engine's own, with the configuration of the role; its folder goes as systemd takes it."""
    with server(tmp_path, "conda") as ours, socket.socket(socket.AF_UNIX) as upstreams:
        config, public = tmp_path / "conda_mirror.yml", tmp_path / "conda-watch"
        upstreams.bind(str(tmp_path / "upstreams.sock"))
        upstreams.listen()
        text = render(
            "conda_mirror",
            "conda_mirror.yml.j2",
            conda_mirror_working_dir=str(tmp_path / "mirror"),
            conda_mirror_cache_dir=str(tmp_path / "cache"),
            conda_mirror_min_free_gib=0,
            __conda_mirror_outside_socket=str(tmp_path / "upstreams.sock"),
        )
        config.write_text(text)
        public.mkdir()
        script = str(ROOT / "files/anaconda_sync.py")
        command = [sys.executable, script, "watch", "--health", str(public), "--config", str(config)]
        watch = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            until(lambda: told(ours)[0] == 200)
            said = told(ours)[1]
            assert said["conda"] == told(ours, "/health/conda")[1]
            assert "it comes with the first refresh" in said["conda"]["warnings"][0]
            # It sees that by itself.
            config.write_text(text.replace("jobs: 16", "jobs: 0"))
            until(lambda: told(ours)[0] == 503)
            assert "jobs is 0" in told(ours)[1]["conda"]["problems"][0]
            watch.terminate()
            watch.wait(30)
        finally:
            watch.kill()
            watch.wait()
        assert watch.returncode == 0
        shutil.rmtree(public)
        until(lambda: told(ours) == (503, {"status": "failing", "conda": content("conda", "nothing")}))


def test_server_without_halves_has_no_health(tmp_path: Path) -> None:
    with server(tmp_path) as ours:
        assert ours.ask("/health").status == 404
        assert ours.ask("/health/pypi").status == 404


def test_site_of_an_older_version_stands_beside_the_newer_server(tmp_path: Path) -> None:
    # Role nginx runs first; until role devpi has, its locations have the answer, as they had it.
    with server(tmp_path) as ours:
        assert ours.ask("/health").status == 404
    older = tmp_path / "lanmirror/devpi/locations.conf"
    older.parent.mkdir()
    older.write_text('location = /health {\n    return 200 "as before\\n";\n}\n')
    files = {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*.conf")}
    with serving(tmp_path, files, ours.port):
        assert ours.ask("/health").body == b"as before\n"
