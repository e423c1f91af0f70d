"""One real run of playbooks/preflight.yml over many hosts with wrong variables: each is refused, by name.

A row is a group, variables, and words that one message must hold. To add one, add a line to ROWS, or to RIGHT where the
variables are right and nothing must be refused. Rows of different roles share a host, since each role is checked for
itself and a task costs its time for each host; a row that changes more than the check of its role is `alone`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.roles.render import ROLES, ROOT

# A secret in a row: no message may hold it.
SECRET = "hush-hush-hush"

# Stands for a port that the tests listen on.
TAKEN = -1

CUSTOM = {"devpi_upstream": "custom", "devpi_mirror_url": "https://mirror.example.org/simple"}


@dataclass(frozen=True)
class Row:
    """Variables that are wrong, or right.

    Attributes:
        group: the group its host is in, or several with commas.
        variables: its host_vars.
        words: texts that one message of its host must hold; none where the variables are right.
        alone: whether it has a host of its own.
    """

    group: str
    variables: dict[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    alone: bool = False

    @property
    def roles(self) -> set[str]:
        """Return the roles whose variables it sets."""
        return {role for role in ROLES for name in self.variables if name.startswith(f"{role}_")}


def pypi(*words: str, **variables: Any) -> Row:
    return Row("pypi_cache", variables, words)


def conda(*words: str, **variables: Any) -> Row:
    return Row("conda_mirror", variables, words)


def client(*words: str, **variables: Any) -> Row:
    return Row("clients", variables, words)


# The first row shows that one run names the problems of every role of a host.
ROWS: dict[str, Row] = {
    "each-role-speaks": Row(
        "pypi_cache,conda_mirror,clients",
        {
            "nginx_port": 0,
            "devpi_upstream": "pipy",
            "conda_mirror_arches": ["linux64"],
            "client_state": "gone",
        },
        ("nginx_port", "0"),
    ),
    # ---- nginx
    "nginx-port-high": pypi("nginx_port", "65536", "1 to 65535", nginx_port=65536),
    "nginx-port-taken": pypi("nginx_port: TCP port", "is taken by", "Set nginx_port", nginx_port=TAKEN),
    "nginx-port-word": pypi("nginx_port", "http", nginx_port="http"),
    "nginx-tls-word": pypi("nginx_tls", "tls", "none, own, site_ca", nginx_tls="tls"),
    "nginx-tls-ports": pypi("nginx_tls_port and nginx_port are both 18080", nginx_tls="site_ca", nginx_tls_port=18080),
    "nginx-no-names": pypi("nginx_server_names is []", nginx_default_server="no"),
    "nginx-switch": pypi("nginx_access_log", "maybe", "true or false", nginx_access_log="maybe"),
    "nginx-tls-name": pypi("nginx_tls_names", '"*.lab"', "neither", nginx_tls="site_ca", nginx_tls_names=["*.lab"]),
    "nginx-tls-own": pypi(
        "nginx_tls_certificate", "absolute path", nginx_tls="own", nginx_tls_names=["mirror.lab.lan"]
    ),
    # ---- devpi
    "devpi-upstream": pypi("devpi_upstream", '"pipy"', "tuna", devpi_upstream="pipy"),
    "devpi-files-from": pypi(
        "devpi_files_from", '"http://m.example.org/"', devpi_files_from=["http://m.example.org/packages/"]
    ),
    "devpi-port-word": pypi("devpi_port", "http", devpi_port="http"),
    "devpi-port-low": pypi("devpi_port", "80", "1024 to 65532", devpi_port=80),
    "devpi-switch": pypi("devpi_remove_undeclared", "maybe", devpi_remove_undeclared="maybe"),
    "devpi-password-in-url": pypi(
        "//***@m.example.org", "password", **{**CUSTOM, "devpi_mirror_url": f"https://u:{SECRET}@m.example.org/simple"}
    ),
    "devpi-user": pypi("devpi_users", '"root"', "not root", devpi_users=[{"name": "root", "password": SECRET}]),
    "devpi-index": pypi("lab/dev", "add it to devpi_users", devpi_indexes={"lab/dev": {"type": "stage"}}),
    "devpi-block": pypi("devpi_block", '"pkg>>2"', "pkg>=2,<2.3", devpi_block=["evil", "pkg>>2"]),
    "devpi-min-age": pypi("devpi_min_age_days", '"soon"', "0 to 36500", devpi_min_age_days="soon"),
    "devpi-index-allow": pypi(
        "root/pypi", '"a[b]" in allow', "without extras", devpi_indexes={"root/pypi": {"allow": ["a[b]"]}}
    ),
    "devpi-port-null": pypi("devpi_port is null", "whole number", devpi_port=None),
    "devpi-port-fraction": pypi("devpi_port", '"1.5"', "whole number", devpi_port="1.5"),
    "devpi-list-as-text": pypi("devpi_server_names", "INI inventory", devpi_server_names="pypi.lab.lan"),
    "devpi-password": pypi("devpi_root_password", "not shown", devpi_root_password=f"{SECRET}\nhush"),
    "devpi-bundle": pypi("devpi_ca_bundle", "/etc/ssl/no-such.pem", devpi_ca_bundle="/etc/ssl/no-such.pem"),
    # The way out: refused at once, and before anything is changed.
    "devpi-way-out": pypi("no way to the index", "lanmirror_pip_index_url", devpi_pip_index_url="http://127.0.0.1:1/s"),
    "devpi-port-taken": pypi("devpi_port: TCP port", "is taken by", "Set devpi_port", devpi_port=TAKEN),
    "devpi-two-at-once": pypi("devpi_port", "\ndevpi_role", "master", devpi_port="x", devpi_role="master"),
    # ---- conda_mirror
    "conda-jobs-word": conda("conda_mirror_jobs is 'many'", "from 1 to 256", conda_mirror_jobs="many"),
    "conda-switch": conda("conda_mirror_delete is 'maybe'", "true, false", conda_mirror_delete="maybe"),
    "conda-way-out": conda(
        "no way to the index", "lanmirror_pip_index_url", conda_mirror_pip_index_url="http://127.0.0.1:1/s"
    ),
    "conda-null": conda("conda_mirror_upstream is null", conda_mirror_upstream=None),
    "conda-list-as-text": conda("conda_mirror_repos is 'main'", "INI inventory", conda_mirror_repos="main"),
    "conda-bundle": conda("conda_mirror_ca_bundle", "/etc/ssl/no", conda_mirror_ca_bundle="/etc/ssl/no-such.pem"),
    "conda-room": conda("conda_mirror_min_free_gib", "GiB free", conda_mirror_min_free_gib="1048576"),
    "conda-keep": conda(
        "names /srv/no-such.yml",
        "the sync reads keep-sets on that host",
        conda_mirror_repos=[{"name": "main", "hold": {"keep": ["/srv/no-such.yml", "/etc/hostname"]}}],
    ),
    "conda-arch": conda("conda_mirror_arches", "did you mean linux-64", conda_mirror_arches=["noarch", "linux64"]),
    "conda-jobs": conda("conda_mirror_jobs", "from 1 to 256", conda_mirror_jobs=0),
    "conda-on-demand-port": conda("conda_mirror_on_demand_port", "1024 to 65535", conda_mirror_on_demand_port="80"),
    "conda-on-demand-proxy": conda(
        "conda_mirror_http_proxy is 'http://***@proxy.lab.lan:3128'",
        "goes through no proxy",
        conda_mirror_on_demand="yes",
        conda_mirror_http_proxy=f"http://u:{SECRET}@proxy.lab.lan:3128",
    ),
    "conda-on-demand-port-taken": conda(
        "conda_mirror_on_demand_port: TCP port",
        "is taken by",
        conda_mirror_on_demand=True,
        conda_mirror_on_demand_port=TAKEN,
    ),
    "conda-hour": conda("conda_mirror_cron_hour", "9am", conda_mirror_cron_hour="9am"),
    # ---- client
    "client-tools": client("client_tools", "poetry", "allowed are pip, conda", client_tools=["pip", "poetry"]),
    "client-user": client("client_users", "nobody-of-that-name", client_users=["nobody-of-that-name"]),
    "client-old-url": client("client_server_url", "client_pypi_url and client_conda_url", client_server_url="http://x"),
    "client-old-address": client("client_server_address", "client_addresses", client_server_address="192.0.2.10"),
    "client-addresses": client("client_addresses", "one address", client_addresses={"192.0.2.10": "mirror.lab.lan"}),
    "client-subdir": client("client_conda_channels", "without a subdir", client_conda_channels=["conda-forge/noarch"]),
    "client-root": client("client_ca_certificate", "PEM", client_ca_certificate="/etc/ssl/root.pem"),
}

# Whatever an INI inventory or `-e` gives is text.
RIGHT: dict[str, Row] = {
    "right-defaults": Row("pypi_cache,conda_mirror,clients"),
    "right-custom": pypi(**CUSTOM),
    "right-text-devpi": pypi(devpi_port="4000", devpi_remove_undeclared="yes", devpi_data_dir="/srv/devpi/"),
    "right-text-conda": conda(
        conda_mirror_jobs="4",
        conda_mirror_delete="yes",
        conda_mirror_min_free_gib="0",
        conda_mirror_timeout_seconds="0.5",
    ),
    "right-on-demand": conda(
        conda_mirror_on_demand="yes",
        conda_mirror_on_demand_port="31400",
        conda_mirror_cache_max_gib="20",
        conda_mirror_cloud=[{"name": "conda-forge/noarch", "hold": "none"}],
    ),
    "right-text-nginx": pypi(nginx_port="8080", nginx_worker_connections="512"),
}

# What every host of these groups has.
GROUP_VARS: dict[str, dict[str, Any]] = {
    "all": {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        # Nothing is changed, and all that is read may be read by anybody.
        "ansible_become": False,
        # Whatever this machine serves on the usual ones.
        "nginx_port": 18080,
        "nginx_tls_port": 18443,
    },
    "pypi_cache": {"devpi_port": 31410},
    # However small the disk of who runs the tests is.
    "conda_mirror": {"conda_mirror_min_free_gib": 0},
    "clients": {},
}


# A machine that is off: nobody listens on this port.
OFF: dict[str, Any] = {
    "ansible_connection": "ssh",
    "ansible_host": "127.0.0.1",
    "ansible_port": 1,
}
OFF_SERVER = OFF | {"lanmirror_server_url": "http://off.lab.lan:18080"}


@dataclass(frozen=True)
class Run:
    """What ansible-playbook said.

    Attributes:
        returncode: its exit code.
        messages: for each row, those of its host.
        text: all of its output.
    """

    returncode: int
    messages: dict[str, list[str]]
    text: str


def packed(rows: dict[str, Row]) -> list[list[str]]:
    """Return the names of the rows of each host."""
    hosts: list[list[str]] = []
    for name, row in rows.items():
        for host in hosts:
            others = [rows[other] for other in host]
            apart = not any(row.roles & other.roles for other in others)
            if apart and all(
                bool(one.words) == bool(row.words) and one.roles and not one.alone for one in [row, *others]
            ):
                host.append(name)
                break
        else:
            hosts.append([name])
    return hosts


def ansible(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Ansible on the inventory of a folder; return its exit code and output."""
    return subprocess.run(
        [sys.executable, "-m", "ansible", command[0], "-i", str(folder / "hosts.yml"), *command[1:]],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_FORKS": "4",
            "ANSIBLE_CACHE_PLUGIN": "ansible.builtin.jsonfile",
            "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(folder / "facts"),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the facts of this machine, which all hosts are, as Ansible keeps them: gathered once for all tests."""
    folder = tmp_path_factory.mktemp("facts")
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": {"host0": {}}, "vars": GROUP_VARS["all"]}}))
    gathered = ansible(folder, "adhoc", "-m", "ansible.builtin.setup", "host0")
    assert gathered.returncode == 0, gathered.stdout + gathered.stderr
    (cache,) = (folder / "facts").iterdir()
    return cache


AFTER = "Do what comes after the check"


def preflight(
    folder: Path, facts: Path, inventory: dict[str, Any], **everywhere: Any
) -> tuple[int, list[dict[str, Any]], str]:
    """Run playbooks/preflight.yml and a play after it; return exit code, plays as callback `json` has them, and output.

    Args:
        folder: for the inventory and the playbook.
        facts: see there.
        inventory: by group.
        everywhere: variables that beat all others, those of the roles as well.
    """
    (folder / "hosts.yml").write_text(yaml.safe_dump(inventory, sort_keys=False))
    (folder / "facts").mkdir()
    for host in {host for group in inventory.values() for host in group["hosts"]}:
        (folder / "facts" / facts.name.replace("host0", host)).write_bytes(facts.read_bytes())
    task = {"name": AFTER, "ansible.builtin.debug": {}}
    after = {"name": AFTER, "hosts": "all:!localhost", "gather_facts": False, "tasks": [task]}
    plays = [{"ansible.builtin.import_playbook": str(ROOT / "playbooks/preflight.yml")}, after]
    (folder / "site.yml").write_text(yaml.safe_dump(plays))
    words = [str(folder / "site.yml"), "-e", json.dumps(everywhere)]
    done = ansible(folder, "playbook", *words, ANSIBLE_STDOUT_CALLBACK="ansible.posix.json")
    text = done.stdout + done.stderr
    assert "{" in done.stdout, text
    # One in which no host is left has no task.
    began = [play for play in json.loads(done.stdout[done.stdout.index("{") :])["plays"] if play["tasks"]]
    return done.returncode, began, text


def failures(tasks: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the messages of these tasks by host."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        for host, result in task["hosts"].items():
            if result.get("failed"):
                found[host] = result["msg"] if isinstance(result["msg"], list) else [result["msg"]]
    return found


def groups_of(rows: dict[str, Row], hosts: dict[str, list[str]]) -> dict[str, Any]:
    """Return the inventory of these rows."""
    groups: dict[str, Any] = {name: {"hosts": {}, "vars": variables} for name, variables in GROUP_VARS.items()}
    for host, names in hosts.items():
        variables = {name: value for row in names for name, value in rows[row].variables.items()}
        for group in {group for row in names for group in rows[row].group.split(",")}:
            groups[group]["hosts"][host] = variables
    return groups


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, facts: Path) -> Run:
    """Return the one run for all rows. A machine that does not answer is among them."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return run_rows(tmp_path_factory.mktemp("preflight"), facts, taken.getsockname()[1])


def run_rows(folder: Path, facts: Path, taken: int) -> Run:
    rows = {
        name: replace(row, variables={key: taken if value is TAKEN else value for key, value in row.variables.items()})
        for name, row in {**ROWS, **RIGHT}.items()
    }
    hosts = {f"host{number}": names for number, names in enumerate(packed(rows))}
    groups = groups_of(rows, hosts)
    groups["clients"]["hosts"]["off"] = OFF
    returncode, plays, text = preflight(folder, facts, groups)
    assert plays[-1]["play"]["name"] == "Stop if a variable of any host is wrong", failures(plays[-1]["tasks"])
    failed = failures(plays[-1]["tasks"])
    return Run(returncode, {row: failed.get(host, []) for host, names in hosts.items() for row in names}, text)


def test_run_ends_with_an_error_and_shows_no_secret(run: Run) -> None:
    # 4 as well as 2: one machine is off.
    assert run.returncode == 4
    assert SECRET not in run.text


@pytest.mark.parametrize("name", ROWS)
def test_what_is_wrong_is_refused(run: Run, name: str) -> None:
    words = ROWS[name].words
    assert any(all(word in message for word in words) for message in run.messages[name]), run.messages[name]


def test_run_names_the_problems_of_all_roles(run: Run) -> None:
    assert [message.split(" ")[0] for message in run.messages["each-role-speaks"]] == [
        "nginx_port",
        "devpi_upstream",
        "conda_mirror_arches",
        "client_state",
    ]


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_accepted(run: Run, name: str) -> None:
    assert run.messages[name] == []


# ---- machines that do not answer, and administrators who cannot become root ------------------------------------


def test_machines_that_are_off_stop_nobody_else(tmp_path: Path, facts: Path) -> None:
    inventory = groups_of({"right": Row("pypi_cache,clients")}, {"host0": ["right"]})
    inventory["pypi_replicas"] = {"hosts": {"off1": OFF_SERVER | {"devpi_role": "replica"}}}
    inventory["pypi_cache"]["children"] = {"pypi_replicas": {}}
    inventory["conda_mirror"]["hosts"]["off2"] = OFF_SERVER
    inventory["clients"]["hosts"]["off3"] = OFF
    returncode, plays, _ = preflight(tmp_path, facts, inventory)
    assert failures([task for play in plays for task in play["tasks"]]) == {}
    assert returncode == 4
    (kept,) = [task for play in plays for task in play["tasks"] if task["task"]["name"].startswith("Keep the names")]
    assert kept["hosts"]["host0"]["ansible_facts"]["lanmirror_off"] == ["off1", "off2", "off3"]
    assert (plays[-1]["play"]["name"], list(plays[-1]["tasks"][0]["hosts"])) == (AFTER, ["host0"])


def test_primary_that_is_off_leaves_its_replica_alone(tmp_path: Path, facts: Path) -> None:
    inventory = groups_of({"right": Row("clients")}, {"host1": ["right"]})
    inventory["pypi_replicas"] = {"hosts": {"host0": {"devpi_role": "replica"}}}
    inventory["pypi_cache"] |= {"hosts": {"off": OFF_SERVER}, "children": {"pypi_replicas": {}}}
    returncode, plays, _ = preflight(tmp_path, facts, inventory)
    assert failures([task for play in plays for task in play["tasks"]]) == {}
    assert returncode == 4


def test_missing_password_of_sudo_is_the_first_thing_that_is_said(tmp_path: Path, facts: Path) -> None:
    inventory = groups_of(
        {"right": Row("pypi_cache"), "other": Row("clients")}, {"host0": ["right"], "host1": ["other"]}
    )
    # What sudo does without a password to read.
    sudo = tmp_path / "sudo"
    sudo.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2; exit 1\n")
    sudo.chmod(0o755)
    inventory["clients"]["hosts"]["host1"] = {
        # To become oneself needs no sudo.
        "ansible_become_user": "nobody",
        "ansible_become": True,
        "ansible_become_exe": str(sudo),
    }
    returncode, plays, _ = preflight(tmp_path, facts, inventory)
    assert returncode == 2
    last = plays[-1]
    assert last["play"]["name"] == "Reach every machine"
    assert last["tasks"][0]["task"]["name"] == "Become root"
    failed = failures(last["tasks"][1:])
    assert list(failed) == ["host1"]
    assert "-K (--ask-become-pass)" in failed["host1"][0]


def test_contradiction_of_the_inventory_stops_before_any_machine_is_asked(tmp_path: Path, facts: Path) -> None:
    inventory = groups_of({"right": Row("pypi_cache,clients")}, {"host0": ["right"]})
    inventory["pypi_cache"]["hosts"]["host0"] = {"ansible_host": "192.0.2.10"}
    inventory["conda_mirror"]["hosts"]["host1"] = {"devpi_prot": 4000}
    returncode, plays, _ = preflight(tmp_path, facts, inventory)
    assert returncode == 2
    assert [play["play"]["name"] for play in plays] == ["Check the inventory"]
    (said,) = failures(plays[0]["tasks"]).values()
    for words in ("192.0.2.10 (for host0), an address for examples", "devpi_prot (set for host1) is no variable"):
        assert any(words in message for message in said), said


# ---- machines that are in use ----------------------------------------------------------------------------------


def test_machine_that_is_in_use_is_left_as_it_is(tmp_path: Path, facts: Path) -> None:
    """Have the roles find what they installed earlier in folders of the test's; Nginx and pips as their modules say."""
    data, conf, mirror, tls = (tmp_path / name for name in ("devpi", "conf", "conda", "tls"))
    for folder in (data, conf, mirror / "pkgs/main", tls):
        folder.mkdir(parents=True)
    (data / ".nodeinfo").write_text('{"uuid": "one", "role": "MASTER"}')
    (data / ".sqlite").touch()
    (conf / "devpi-server.yml").write_text(f"devpi-server:\n  serverdir: {data}\n")
    (tmp_path / "conda_mirror.yml").write_text(f"working_dir: {mirror}\n")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=root -keyout key"
    )
    names = ("-addext", "nameConstraints=permitted;DNS:localhost", "-out", "ca.pem")
    subprocess.run([*command.split(), *names], cwd=tls, check=True, capture_output=True)
    host = {
        "missing": [],
        "pips": [{"path": "/usr/lib/pip", "version": "25.1.1"}],
        "users": [],
        "root": True,
        "me": "root",
    }
    inventory = groups_of(
        {
            "pypi": Row("pypi_cache"),
            "tls": Row("pypi_cache", {"nginx_tls": "site_ca", "nginx_tls_names": ["late.lab.lan"]}),
            "conda": Row("conda_mirror"),
            "client": Row("clients", {"client_pypi_url": "https://10.0.0.9", "client_conda_url": "http://10.0.0.9"}),
        },
        {"host0": ["pypi"], "host1": ["tls"], "host2": ["conda"], "host3": ["client"]},
    )
    returncode, plays, _ = preflight(
        tmp_path,
        facts,
        inventory,
        __devpi_conf_dir=str(conf),
        __conda_mirror_config_file=str(tmp_path / "conda_mirror.yml"),
        __nginx_tls_dir=str(tls),
        __nginx_found={"problems": ["the site wiki is in the way"]},
        __client_host=host,
    )
    assert returncode == 2
    assert plays[-1]["play"]["name"] == "Stop if a variable of any host is wrong"
    failed = failures(plays[-1]["tasks"])
    for name, words in (
        ("host0", ["the site wiki is in the way", "Nothing was changed"]),
        ("host0", ["devpi_data_dir is", f"has its data in {data}", f"mv -T {data} /var/lib/devpi"]),
        ("host1", ["nginx_tls_names", f"{tls}/ca.pem) may not sign for", "late.lab.lan", f"rm {tls}/ca.pem"]),
        ("host2", ["conda_mirror_working_dir is", f"has its mirror in\n{mirror}", f"mv -T {mirror} /srv/mirror/conda"]),
        ("host3", ['client_pypi_url is "https://10.0.0.9"', "pip 25.1.1 (/usr/lib/pip)", "lanmirror_server_url"]),
    ):
        assert any(all(word in message for word in words) for message in failed[name]), failed[name]


@pytest.mark.parametrize("given", [(), ("-e", "lanmirror_remove=everything")])
def test_removal_needs_a_word_for_what_goes(tmp_path: Path, given: tuple[str, ...]) -> None:
    inventory = groups_of({"right": Row("pypi_cache")}, {"host0": ["right"]})
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    done = ansible(tmp_path, "playbook", "playbooks/remove.yml", *given)
    assert done.returncode == 2
    assert "allowed are all, pypi_cache, conda_mirror, clients" in done.stdout
    assert "Reach every machine" not in done.stdout
