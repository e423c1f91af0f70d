"""A lab's view of its server, from the workstation. The tests stand in the order in which they happen."""

from __future__ import annotations

import bz2
import hashlib
import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import requests
import zstandard
from lab import (
    DEVPI,
    FILES,
    SITE,
    address,
    answers,
    container,
    docker,
    pip_install,
    playbook,
    run,
    url,
    wait,
)

from docs import generate

CRON = "/etc/cron.d/lanmirror-conda-mirror"
CONDARC = "/etc/conda/.condarc"
LOG = "/var/log/conda-mirror/sync.log"
PACKAGES = ["idna", "attrs", "requests", "numpy"]
SUBDIRS = [
    *(f"pkgs/{repo}/{arch}" for repo in ("main", "r") for arch in ("noarch", "linux-64")),
    *(f"cloud/conda-forge/{arch}" for arch in ("noarch", "linux-64")),
]
MINIFORGE = os.environ.get("LANMIRROR_MINIFORGE_URL", "")


def connects(host: Any, where: str) -> bool:
    """Tell whether a host reaches port 80 of an address or a name."""
    return bool(host.run(f"python3 -c 'import socket; socket.create_connection((\"{where}\", 80), 3)'").rc == 0)


def get(path: str) -> requests.Response:
    answer = requests.get(url(path), timeout=30)
    assert answer.status_code == 200, f"{path}: {answer.status_code}"
    return answer


def conda_install(workstation: Any, name: str, channels: str, spec: str) -> list[str]:
    """Install by py-rattler into /opt/envs/NAME with a cache of its own; give the URLs of the chosen packages."""
    prefix = f"/opt/envs/{name}"
    cache = f"/opt/cache/{name}"
    run(workstation, f"rm -rf {prefix} {cache}")
    client = "/opt/client/bin/python /opt/conda_client.py"
    output = run(workstation, f"{client} {prefix} {cache} {channels} -- {shlex.quote(spec)}")
    urls = output.split()
    assert [url for url in urls if not url.startswith(f"{SITE}/anaconda/")] == []
    return urls


# ---- PyPI -----------------------------------------------------------------------------------------------------


def test_workstation_has_no_way_out_but_the_server(workstation: Any) -> None:
    outside = address("upstream", "outside")
    assert requests.get(f"http://{outside}/anaconda/miniconda/", timeout=30).status_code == 200
    assert not connects(workstation, outside)
    assert connects(workstation, "mirror.lan")


def test_pip_installs_through_the_cache(workstation: Any, server: Any) -> None:
    pip_install(workstation, "/opt/first", PACKAGES)
    assert run(workstation, "/opt/first/bin/python -c 'import numpy; print(numpy.arange(4).sum())'") == "6"
    log = run(server, "cat /var/log/nginx/access.log")
    assert re.search(r'"GET /root/pypi/\+simple/numpy/ HTTP/1.1" 200', log)
    assert re.search(r'"GET /root/pypi/(?:\+|%2B)f/\S+/numpy-\S+\.whl HTTP/1.1" 200', log)


def test_page_tells_its_length_and_is_the_same_compressed_and_plain() -> None:
    packed, plain = (
        requests.get(url("/root/pypi/+simple/numpy/"), headers={"Accept-Encoding": encoding}, timeout=60)
        for encoding in ("gzip", "identity")
    )
    assert packed.headers["Content-Encoding"] == "gzip"
    assert int(packed.headers["Content-Length"]) < len(packed.content) / 2
    assert "Content-Encoding" not in plain.headers
    assert packed.content == plain.content


# ---- Conda ----------------------------------------------------------------------------------------------------


def test_conda_client_installs_through_an_empty_mirror(workstation: Any, server: Any) -> None:
    """From the first minute: nothing was synced, and the second time the way out is not needed."""
    run(workstation, "python3 -m venv /opt/client && /opt/client/bin/pip install -q py-rattler pyyaml")
    docker("cp", str(FILES / "conda_client.py"), f"{container('workstation')}:/opt/conda_client.py")
    # Without a run, the mirror is well.
    assert requests.get(url("/health/conda"), timeout=30).json()["status"] == "ok"
    conda_install(workstation, "first", "defaults conda-forge", "hello ==1.0")
    assert run(workstation, "/opt/envs/first/bin/hello") == "hello from the mirror"
    # The engine's own indexes, with shards. cron may be at it as well.
    wait("the indexes", 60, lambda: server.run("lanmirror-conda-sync sync --indexes").rc == 0)
    assert run(server, "find /srv/mirror/conda -name '*.conda' -o -name '*.tar.bz2'") == ""
    assert server.file(f"/srv/mirror/conda/{SUBDIRS[0]}/repodata_shards.msgpack.zst").exists
    conda_install(workstation, "tool", "defaults", "tool")
    assert run(workstation, "cat /opt/envs/tool/share/tool") == "tool"


@pytest.mark.usefixtures("cut_off")
def test_what_came_on_demand_installs_with_the_upstream_cut_off(workstation: Any) -> None:
    conda_install(workstation, "again", "defaults", "tool")
    assert run(workstation, "cat /opt/envs/again/share/tool") == "tool"
    answer = requests.head(url("/anaconda/pkgs/main/linux-64/tool-2.0-0.conda"), timeout=30)
    assert (answer.status_code, answer.headers["X-Cache-Status"]) == (200, "HIT")
    # What nobody asked for is an error soon, and none that stays.
    missing = requests.head(url("/anaconda/cloud/conda-forge/linux-64/hello-2.0-0.conda"), timeout=60)
    assert missing.status_code in (502, 504)


def test_what_came_on_demand_is_checked_and_told(server: Any) -> None:
    path = "/pkgs/main/linux-64/tool-2.0-0.conda"
    assert server.service("conda-cache").is_running
    # That of its package serves nothing.
    assert server.service("conda-outside").is_running
    assert not server.service("haproxy").is_running
    assert not server.service("haproxy").is_enabled
    assert re.search(r"^[1-9]\d* packages? right; .*; 0 wrong$", run(server, "lanmirror-conda-cache check"))
    damage = (
        f"file=$(grep -rlaF 'KEY: {path} ' .) && cp -p $file /root/kept && printf x >>/root/kept && mv /root/kept $file"
    )
    run(server, f"cd /var/cache/lanmirror-conda/kept && {damage} && systemctl restart conda-cache")
    journal = "journalctl -u conda-cache -p warning --no-pager"
    wait("the check", 60, lambda: f"{path} was wrong" in server.run(journal).stdout)
    assert requests.head(url(f"/anaconda{path}"), timeout=30).headers["X-Cache-Status"] == "MISS"
    assert f"deleted {path}: 1 slice" in run(server, "lanmirror-conda-cache purge tool")
    assert "pkgs/main" in run(server, "lanmirror-conda-cache size")
    assert run(server, "lanmirror-conda-cache flight") == ""
    # The engine's status has it, and the journal nothing else.
    wait("the indexes", 60, lambda: server.run("lanmirror-conda-sync sync --indexes").rc == 0)
    told = get("/status.json").json()["cache"]
    assert (told["problem"], told["wrong"][0]["path"]) == ("", path)
    assert told["channels"]["pkgs/main"]["misses"] > 0


def test_cron_itself_runs_the_sync_as_its_user(server: Any) -> None:
    before = server.run(f"cat {LOG}").stdout
    entry = server.file(CRON).content_string
    assert re.search(r"(?m)^0 \d+ \* \* \* conda-mirror /\S+", entry), entry
    # Only the time is changed, for as long as it takes cron to see it.
    run(server, f"cp -p {CRON} /root/cron.kept && sed -i 's/^0 [0-9]* /* * /' {CRON}")
    try:
        wait("a sync by cron", 150, lambda: "in sync: " in server.run(f"cat {LOG}").stdout[len(before) :])
    finally:
        run(server, f"cp -p /root/cron.kept {CRON}")
    assert "(conda-mirror) CMD (/usr/local/bin/lanmirror-conda-sync logged)" in run(server, "journalctl -t CRON")
    assert run(server, "find /srv/mirror/conda -ignore_readdir_race ! -user conda-mirror") == ""
    assert server.file(f"/srv/mirror/conda/{SUBDIRS[0]}/repodata.json").exists


def test_conda_has_its_channels_from_the_first_minute(workstation: Any) -> None:
    condarc = workstation.file(CONDARC).content_string
    assert [url for url in (f"{SITE}/anaconda/pkgs/main", f"{SITE}/anaconda/cloud") if url not in condarc] == []
    done = playbook("playbooks/clients.yml")
    assert (done.code, done.changed["workstation"]) == (0, 0), done.output


def test_listing_shows_what_is_there() -> None:
    assert 'href="/anaconda/"' in get("/").text
    page = get("/anaconda/").text
    for name in ("pkgs/", "cloud/", "miniconda/", "archive/"):
        assert f'href="{name}"' in page
    assert "Miniconda3-latest-Linux-x86_64.sh" in get("/anaconda/miniconda/").text
    assert "Anaconda3-2025.06-1-Linux-x86_64.sh" in get("/anaconda/archive/").text
    assert "MacOSX" not in get("/anaconda/archive/").text
    assert "tool-2.0-0.conda" in get("/anaconda/pkgs/main/linux-64/").text


@pytest.mark.parametrize("subdir", SUBDIRS)
def test_index_names_what_is_there_and_nothing_excluded(subdir: str) -> None:
    data = get(f"/anaconda/{subdir}/repodata.json").content
    index = json.loads(data)
    records = index["packages"] | index["packages.conda"]
    assert records or subdir == "pkgs/r/noarch"
    for name, record in records.items():
        package = get(f"/anaconda/{subdir}/{name}").content
        assert (len(package), hashlib.sha256(package).hexdigest()) == (record["size"], record["sha256"]), name
    forms = {
        "repodata.json": data,
        "repodata.json.zst": zstandard.decompress(get(f"/anaconda/{subdir}/repodata.json.zst").content),
        "repodata.json.bz2": bz2.decompress(get(f"/anaconda/{subdir}/repodata.json.bz2").content),
        "current_repodata.json": get(f"/anaconda/{subdir}/current_repodata.json").content,
    }
    for form, text in forms.items():
        named = json.loads(text)
        files = set(named["packages"]) | set(named["packages.conda"])
        assert files <= set(records), form
        assert not [file for file in files if file.startswith("unwanted-")], form


def test_status_is_told_to_machines() -> None:
    subdirs = get("/status.json").json()["subdirs"]
    assert set(subdirs) == set(SUBDIRS)
    assert [path for path, state in subdirs.items() if state["missing"] or state["failures"]] == []
    assert get("/mirrorz.json").json()["version"] == 1.7


def test_upstream_has_what_is_excluded(upstream: Any) -> None:
    assert upstream.file("/srv/upstream/anaconda/pkgs/main/linux-64/unwanted-1.0-0.conda").exists
    excluded = requests.get(url("/anaconda/pkgs/main/linux-64/unwanted-1.0-0.conda"), timeout=30)
    assert excluded.status_code == 404


def test_conda_client_installs_through_the_mirror(workstation: Any, server: Any) -> None:
    urls = conda_install(workstation, "tool", "defaults", "tool")
    assert f"{SITE}/anaconda/pkgs/main/linux-64/tool-2.0-0.conda" in urls
    assert f"{SITE}/anaconda/pkgs/main/linux-64/lib0000-1.0-0.tar.bz2" in urls  # a dependency of a dependency
    assert run(workstation, "cat /opt/envs/tool/share/tool") == "tool"

    conda_install(workstation, "hello", "defaults", "hello")
    assert run(workstation, "/opt/envs/hello/bin/hello") == "hello from the mirror"
    urls = conda_install(workstation, "cloud", "conda-forge", "hello")
    assert f"{SITE}/anaconda/cloud/conda-forge/linux-64/hello-2.0-0.conda" in urls
    assert run(workstation, "/opt/envs/cloud/bin/hello") == "hello from the cloud"
    assert "GET /anaconda/pkgs/main/linux-64/tool-2.0-0.conda" in run(server, "cat /var/log/nginx/access.log")


if MINIFORGE:

    def test_conda_and_mamba_install_through_the_mirror(workstation: Any, tmp_path: Path) -> None:
        installer = tmp_path / "miniforge.sh"
        with requests.get(MINIFORGE, timeout=120, stream=True) as answer, installer.open("wb") as file:
            answer.raise_for_status()
            for chunk in answer.iter_content(1 << 20):
                file.write(chunk)
        docker("cp", str(installer), f"{container('workstation')}:/opt/miniforge.sh")
        run(workstation, "sh /opt/miniforge.sh -b -p /opt/miniforge")
        for tool in ("conda", "mamba"):
            create = f"/opt/miniforge/bin/{tool} create -y --override-channels"
            run(workstation, f"{create} -p /opt/envs/{tool} -c defaults hello tool")
            assert run(workstation, f"/opt/envs/{tool}/bin/hello") == "hello from the mirror"
            run(workstation, f"{create} -p /opt/envs/{tool}-cloud -c conda-forge hello")
            assert run(workstation, f"/opt/envs/{tool}-cloud/bin/hello") == "hello from the cloud"


def test_second_sync_has_nothing_to_do(server: Any) -> None:
    # What is served: the engine's own state is hidden.
    listing = r"find /srv/mirror/conda -name '.?*' -prune -o -type f -printf '%p %s %T@\n' | sort"
    before = run(server, listing)
    run(server, "lanmirror-conda-sync logged")
    closing = run(server, f"tail -n 1 {LOG}")
    assert re.search(r"in sync: 0 files fetched .*, 0 deleted, 0 failures, 6 of 6 subdirs unchanged", closing), closing
    assert run(server, listing) == before


# ---- without the outside --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cut_off")
def test_both_install_with_the_upstream_cut_off(workstation: Any, server: Any) -> None:
    assert not connects(server, address("upstream", "outside"))
    # devpi forgets which pages are fresh, so it asks for each of them again, in vain.
    run(server, "systemctl restart devpi")
    wait("devpi", 60, lambda: answers(DEVPI))
    pip_install(workstation, "/opt/offline", PACKAGES)
    assert run(workstation, "/opt/offline/bin/python -c 'import numpy; print(numpy.arange(4).sum())'") == "6"

    conda_install(workstation, "offline", "defaults conda-forge", "hello ==1.0")
    assert run(workstation, "/opt/envs/offline/bin/hello") == "hello from the mirror"

    assert server.run("lanmirror-conda-sync logged").rc == 5  # documented: the upstream cannot be reached
    assert "hello-1.0-0.conda" in get("/anaconda/pkgs/main/linux-64/repodata.json").text

    def health() -> requests.Response:
        return requests.get(url("/health/conda"), timeout=30)

    wait("a warning", 30, lambda: "what is held or cached installs" in health().text)
    assert health().status_code == 200


def test_cached_projects_install_while_devpi_is_down(workstation: Any, server: Any) -> None:
    run(server, "systemctl stop devpi")
    try:
        pip_install(workstation, "/opt/without-devpi", PACKAGES)
    finally:
        run(server, "systemctl start devpi")
    wait("devpi", 60, lambda: answers(DEVPI))
    run(workstation, "/opt/without-devpi/bin/python -c 'import numpy'")


# ---- life on the server ---------------------------------------------------------------------------------------


def test_root_password_of_devpi_is_nowhere_to_be_seen(server: Any) -> None:
    password = run(server, "cat /etc/devpi/root-password")
    assert len(password) >= 20
    assert server.file("/etc/devpi/root-password").mode == 0o600
    assert password not in run(server, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert password not in run(server, "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' ' '")
    assert password not in run(server, "journalctl --no-pager")
    anonymous = requests.put(url("/somebody"), json={"password": "something-long"}, timeout=30)
    assert anonymous.status_code == 403


@pytest.mark.parametrize("unit", ["devpi", "nginx", "cron"])
def test_unit_comes_back_after_a_restart(server: Any, unit: str) -> None:
    run(server, f"systemctl restart {unit}")
    assert server.service(unit).is_running
    assert server.service(unit).is_enabled
    wait(unit, 60, lambda: answers(DEVPI) and answers("/anaconda/"))


def test_unit_comes_back_after_a_kill(server: Any) -> None:
    before = run(server, "systemctl show --property MainPID devpi")
    run(server, "systemctl kill --signal=SIGKILL --kill-whom=main devpi")
    wait("devpi after a kill", 60, lambda: answers(DEVPI))
    assert run(server, "systemctl show --property MainPID devpi") != before


def test_all_comes_back_after_a_reboot(server: Any, workstation: Any) -> None:
    docker("restart", "--time", "30", container("server"))
    wait("systemd", 60, lambda: server.run("systemctl is-system-running").stdout.strip() == "running")
    for unit in ("devpi", "nginx", "cron", "conda-watch", "conda-cache", "conda-outside"):
        assert server.service(unit).is_running, unit
    wait("the site", 60, lambda: answers(DEVPI))
    pip_install(workstation, "/opt/rebooted", ["idna", "attrs"])
    conda_install(workstation, "rebooted", "defaults", "hello")
    assert run(workstation, "/opt/envs/rebooted/bin/hello") == "hello from the mirror"


# ---- the workstation's own settings ---------------------------------------------------------------------------


def test_settings_of_the_workstation_stay_and_ours_go_again(workstation: Any) -> None:
    python = "/opt/client/bin/python -c"
    pip = run(workstation, "/opt/client/bin/pip config list")
    assert "global.timeout='20'" in pip
    assert "install.no-warn-script-location='true'" in pip
    assert f"global.index-url='{SITE}/root/pypi/+simple/'" in pip
    condarc = json.loads(
        run(
            workstation,
            f"{python} 'import json, yaml; print(json.dumps(yaml.safe_load(open(\"{CONDARC}\"))))'",
        )
    )
    assert condarc["auto_update_conda"] is False
    assert condarc["custom_channels"] == {
        "biology": "http://192.0.2.99/channels",
        "conda-forge": f"{SITE}/anaconda/cloud",
    }
    assert condarc["default_channels"] == [f"{SITE}/anaconda/pkgs/main", f"{SITE}/anaconda/pkgs/r"]

    done = playbook("playbooks/clients.yml", "-e", "client_state=absent")
    assert done.code == 0, done.output
    assert workstation.file("/etc/pip.conf").content == (FILES / "pip.conf").read_bytes()
    assert workstation.file(CONDARC).content == (FILES / "condarc").read_bytes()
    done = playbook("playbooks/clients.yml")
    assert done.code == 0, done.output
    assert run(workstation, "/opt/client/bin/pip config list") == pip


@pytest.mark.parametrize("page", [page for pages in generate.SHOWN.values() for page in pages])
def test_pages_show_the_files_as_they_come_out(workstation: Any, server: Any, page: str) -> None:
    machines = {"workstation": workstation, "server": server}
    (shown,) = generate.SHOWN_PLACE.findall((generate.ROOT / page).read_text())
    parts = re.split(r"(?m)^==== (\w+): (/\S+)\n", shown)[1:]
    assert len(parts) > 3 * 3
    for machine, path, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        is_there = machines[machine].file(path).content_string.strip()
        if path == CRON:
            # The hour of a scenario is one at which no test runs.
            is_there = re.sub(r"(?m)^0 \d+ ", "0 9 ", is_there)
        assert is_there == text.strip(), f"{path}: run `make pictures`"


# ---- bad input ------------------------------------------------------------------------------------------------


# What a role, the host and the inventory say; tests/roles/test_preflight.py has each variable.
@pytest.mark.parametrize(
    ("wrong", "messages"),
    [
        (
            {
                "conda_mirror_arches": ["noarch", "linux-65"],
                "conda_mirror_cron_minute": "61",
                "devpi_upstream": "custom",
                "devpi_mirror_url": "mirror.example.org/simple",
            },
            (
                r"arches is 'linux-65'.*did you mean linux-64",
                r"conda_mirror_cron_minute.*61.*59",
                r"devpi_mirror_url.*https://",
            ),
        ),
        ({"conda_mirror_min_free_gib": 1_000_000}, (r"conda_mirror_min_free_gib is 1000000.*GiB free",)),
        (
            {"lanmirror_server_url": "mirror.lan"},
            (r'(lanmirror_server_url|client_pypi_url) is "mirror\.lan".*scheme',),
        ),
    ],
    ids=["roles", "host", "inventory"],
)
def test_wrong_variable_stops_everything_before_a_host_is_touched(
    wrong: dict[str, Any], messages: Sequence[str]
) -> None:
    done = playbook("site.yml", "-e", json.dumps(wrong))
    assert done.code != 0
    for message in messages:
        assert re.search(message, done.said), done.output
    # One of each role, and one at the end of the check, which names the problems of all hosts.
    assert done.output.count("[ERROR]: ") <= len({message.split("_")[0] for message in wrong}) + 1, done.output
    assert set(done.changed.values()) == {0}
