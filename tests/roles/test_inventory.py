"""The inventory as a whole: what workstations get from the servers' variables, and what contradicts."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible import context

from playbooks.filter_plugins import lanmirror_inventory as inventory
from tests.roles.render import ROOT, evaluate

URL = "lanmirror_server_url"

# Hosts by group, with their variables.
Groups = dict[str, dict[str, dict[str, Any]]]

TWO: Groups = {
    "pypi_cache": {"pypi": {"ansible_host": "10.0.0.1"}},
    "conda_mirror": {"conda": {"ansible_host": "10.0.0.2"}},
    "clients": {"ws": {}},
}


def read(groups: Groups, **everywhere: Any) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Return hostvars and groups of such an inventory; a host's variables are those of all its groups."""
    hostvars: dict[str, Any] = {}
    for hosts in groups.values():
        for host, variables in hosts.items():
            hostvars[host] = {**everywhere, **hostvars.get(host, {}), **variables}
    return hostvars, {name: list(hosts) for name, hosts in groups.items()}


def problems(groups: Groups, **everywhere: Any) -> list[str]:
    return inventory.problems(*read(groups, **everywhere))


def one(**variables: Any) -> Groups:
    """Return an inventory of one server of both halves and one workstation."""
    server = {"ansible_host": "10.0.0.1", **variables}
    return {"pypi_cache": {"mirror": server}, "conda_mirror": {"mirror": server}, "clients": {"ws": {}}}


def client(groups: Groups, **everywhere: Any) -> dict[str, Any]:
    return inventory.client(*read(groups, **everywhere), "ws")


# ---- the servers of one PyPI cache -------------------------------------------------------------------------------

FACTS = {"default_ipv4": {"address": "10.0.0.1"}, "default_ipv6": {}, "hostname": "Mirror"}


def peers(result: dict[str, Any] | None = None, **variables: Any) -> list[dict[str, str]]:
    """Return what role devpi is told of one other server with these variables."""
    hostvars, groups = read({"pypi_cache": {"mirror": {"ansible_facts": FACTS, **variables}, "other": {}}})
    return inventory.peers(hostvars, groups, [{"item": "mirror", **(result or {})}])


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, {"role": "primary", "url": "http://10.0.0.1:80", "tls_name": "", "ca": ""}),
        ({"devpi_role": "replica", "nginx_port": "8080"}, {"role": "replica", "url": "http://10.0.0.1:8080"}),
        ({"devpi_address": "2001:db8::1"}, {"url": "http://[2001:db8::1]:80"}),
        ({"devpi_address": "10.9.9.9"}, {"url": "http://10.9.9.9:80"}),
        (
            {"ansible_facts": {**FACTS, "default_ipv4": {}, "default_ipv6": {"address": "fd00::1"}}},
            {"url": "http://[fd00::1]:80"},
        ),
        ({"ansible_facts": {**FACTS, "default_ipv4": {}}}, {"url": "http://:80"}),
        ({"nginx_tls": "site_ca"}, {"url": "https://10.0.0.1:443", "tls_name": "mirror"}),
        (
            {"nginx_tls": "own", "nginx_tls_port": 8443, "nginx_tls_names": ["10.0.0.1", "fd00::1", "mirror.lab.lan"]},
            {"url": "https://10.0.0.1:8443", "tls_name": "mirror.lab.lan"},
        ),
        # Nobody set the names: they follow from how workstations reach the server.
        ({"nginx_tls": "own", URL: "https://pypi.lab.lan"}, {"tls_name": "pypi.lab.lan"}),
        ({"nginx_tls": "own", "nginx_tls_names": ["10.0.0.1"]}, {"tls_name": ""}),
    ],
)
def test_servers_of_one_cache_know_each_other(variables: dict[str, Any], wanted: dict[str, str]) -> None:
    (peer,) = peers(**variables)
    assert peer["name"] == "mirror"
    assert {key: peer[key] for key in wanted} == wanted


def test_root_certificate_of_a_server_goes_to_the_others() -> None:
    (peer,) = peers({"content": base64.b64encode(b"a root").decode()}, nginx_tls="site_ca")
    assert peer["ca"] == "a root"


def test_server_that_is_off_is_left_out() -> None:
    assert peers({"unreachable": True}) == []
    assert peers(ansible_facts={}) == []


@pytest.mark.parametrize(
    ("file", "role", "path"),
    [
        ("playbooks/tasks/pypi_peers.yml", "nginx", "{{ __nginx_tls_dir }}/ca.pem"),
        ("playbooks/clients.yml", "nginx", "{{ __nginx_tls_dir }}/ca.pem"),
        ("playbooks/tasks/pypi_secrets.yml", "devpi", "{{ __devpi_secret_file }}"),
        ("playbooks/tasks/pypi_secrets.yml", "devpi", "{{ __devpi_root_password_file }}"),
        ("roles/devpi/vars/main.yml", "nginx", "{{ __nginx_sites_dir }}/listen.conf"),
    ],
)
def test_paths_of_a_role_are_those_that_others_read(file: str, role: str, path: str) -> None:
    assert str(evaluate(role, path)) in (ROOT / file).read_text()


# ---- what is derived ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, "http://10.0.0.1"),
        ({"nginx_port": 8080}, "http://10.0.0.1:8080"),
        ({"nginx_port": "8080"}, "http://10.0.0.1:8080"),
        ({"nginx_tls": "site_ca"}, "https://10.0.0.1"),
        ({"nginx_tls": "own", "nginx_tls_port": 8443, "nginx_port": 8080}, "https://10.0.0.1:8443"),
        ({"ansible_host": "2001:db9::1"}, "http://[2001:db9::1]"),
        ({"lanmirror_server_url": "http://mirror.lab.lan/"}, "http://mirror.lab.lan"),
    ],
)
def test_url_of_a_server(variables: dict[str, Any], url: str) -> None:
    groups = one(**variables)
    assert (client(groups)["client_pypi_url"], client(groups)["client_conda_url"]) == (url, url)
    assert problems(groups) == []


def test_server_without_an_address_is_reached_by_its_name() -> None:
    assert client({"pypi_cache": {"mirror.lab.lan": {}}, "clients": {"ws": {}}})["client_pypi_url"] == (
        "http://mirror.lab.lan"
    )


def test_each_half_has_its_own_server() -> None:
    derived = client(TWO)
    assert (derived["client_pypi_url"], derived["client_conda_url"]) == ("http://10.0.0.1", "http://10.0.0.2")
    assert problems(TWO) == []


@pytest.mark.parametrize(("half", "key"), [("pypi_cache", "client_pypi_url"), ("conda_mirror", "client_conda_url")])
def test_empty_group_has_no_url(half: str, key: str) -> None:
    groups: Groups = {**TWO, half: {}}
    assert client(groups)[key] == ""
    assert len([url for url in (client(groups)["client_pypi_url"], client(groups)["client_conda_url"]) if url]) == 1
    assert problems(groups) == []


def test_primary_stands_for_its_cache() -> None:
    groups: Groups = {"pypi_cache": {"b": {}, "a": {}}, "pypi_replicas": {"b": {}}, "clients": {"ws": {}}}
    assert client(groups)["client_pypi_url"] == "http://a"


def test_workstation_may_choose_a_server() -> None:
    cache = {"a": {"ansible_host": "10.0.0.1"}, "b": {"ansible_host": "10.0.0.2"}}
    groups: Groups = {"pypi_cache": cache, "pypi_replicas": {"b": {}}, "conda_mirror": {"a": {}}}
    for everywhere in ({}, {URL: "http://10.0.0.1"}):
        chosen = client({**groups, "clients": {"ws": {URL: "http://10.0.0.2"}}}, **everywhere)
        assert (chosen["client_pypi_url"], chosen["client_conda_url"]) == ("http://10.0.0.2", "http://10.0.0.1")


def test_repos_and_channels_are_those_of_the_mirror() -> None:
    cloud = ["conda-forge/noarch", "conda-forge/linux-64", "lab/label/dev/noarch"]
    derived = client(one(conda_mirror_repos=["main", "r"], conda_mirror_cloud=cloud))
    assert derived["client_conda_repos"] == ["main", "r"]
    assert derived["client_conda_channels"] == ["conda-forge", "lab/label/dev"]
    assert client(one(conda_mirror_repos="['main']"))["client_conda_repos"] == ["main"]
    text = client(one(conda_mirror_repos="[{'name': 'main', 'hold': 'none'}, 'r']"))
    assert text["client_conda_repos"] == ["main", "r"]
    mappings = [{"name": entry, "hold": "none"} for entry in cloud]
    assert client(one(conda_mirror_cloud=mappings))["client_conda_channels"] == ["conda-forge", "lab/label/dev"]
    assert client(one())["client_conda_repos"] == ["main", "r", "msys2"]


def test_what_the_administrator_set_for_workstations_is_kept() -> None:
    given = {"client_conda_repos": ["r"], "client_pypi_url": "http://elsewhere"}
    derived = client({**TWO, "clients": {"ws": given}})
    assert {key: derived[key] for key in given} == given
    assert problems({**TWO, "clients": {"ws": given}}) == []


def test_half_whose_server_is_off_is_left_as_it_is() -> None:
    assert client(TWO)["client_tools"] == ["pip", "conda"]
    assert client(TWO, lanmirror_off=["conda", "ws2"])["client_tools"] == ["pip"]
    assert client(TWO, lanmirror_off=["conda"], client_tools=["conda"])["client_tools"] == []
    assert client(TWO, lanmirror_off=["conda"], client_state="absent")["client_tools"] == ["pip", "conda"]


def test_replica_waits_for_its_primary() -> None:
    groups: Groups = {"pypi_cache": {"a": {}, "b": {}}, "pypi_replicas": {"b": {}}}
    waiting = {host: inventory.waits(*read(groups, lanmirror_off=["a"]), host) for host in ("a", "b")}
    assert waiting == {"a": False, "b": True}
    assert not inventory.waits(*read(groups), "b")


def test_names_of_a_server_with_tls() -> None:
    variables = {"devpi_server_names": ["pypi.lab.lan"], "conda_mirror_server_names": ["conda.lab.lan"]}
    groups = one(lanmirror_server_url="https://mirror.lab.lan", **variables)
    assert inventory.tls_names(*read(groups), "mirror") == ["mirror.lab.lan", "pypi.lab.lan", "conda.lab.lan"]
    assert inventory.tls_names(*read({**groups, "conda_mirror": {}}), "mirror") == ["mirror.lab.lan", "pypi.lab.lan"]
    assert inventory.tls_names(*read(one(nginx_tls_names=["x"])), "mirror") == ["x"]
    # As an INI inventory has them; what is no list is refused by the role.
    for text, found in (("['pypi.lab.lan']", ["pypi.lab.lan"]), ("pypi.lab.lan", [])):
        groups = {**one(lanmirror_server_url="https://mirror.lab.lan", devpi_server_names=text), "conda_mirror": {}}
        assert inventory.tls_names(*read(groups), "mirror") == ["mirror.lab.lan", *found]


def test_conda_index_that_is_there() -> None:
    there = inventory.conda_there(["main", "r"], ["conda-forge", "a/label/b"], ["pkgs/r", "cloud/conda-forge"])
    assert there == ["pkgs/main", "cloud/a/label/b"]
    assert inventory.conda_there(["main"], [], ["main"]) == []


def test_closing_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    groups: Groups = {**one(), "clients": {"ws": {"client_conda_missing": ["pkgs/main"]}, "ws2": {}, "ws3": {}}}
    hostvars, names = read(groups, lanmirror_off=["ws3"])
    hosts = ["mirror", "ws", "ws2", "ws3"]
    words = inventory.summary(hostvars, names, hosts, ["mirror", "ws"], [str(tmp_path / "inventory")])
    assert words == [
        "http://10.0.0.1/ is the portal of mirror (PyPI cache and Conda mirror): it has the settings of each tool",
        "The Conda mirror does not have pkgs/main yet, so workstations are not pointed at it. "
        "Fill the mirror now, and point them at it: ansible-playbook site.yml --tags sync,client",
        "These machines did not answer, and are as they were: ws3",
        "These machines failed, as the messages above say: ws2",
        "Run it again when they are well: ansible-playbook site.yml",
    ]
    assert inventory.summary(*read(TWO), ["pypi"], ["pypi"], ["/etc/hosts.yml"]) == [
        "http://10.0.0.1/ is the portal of pypi (PyPI cache): it has the settings of each tool",
        "http://10.0.0.2/ is the portal of conda (Conda mirror): it has the settings of each tool",
    ]
    assert "-i /etc/hosts.yml site.yml" in inventory.summary(*read(TWO), ["pypi"], [], ["/etc/hosts.yml"])[-1]


def test_commands_of_the_closing_words_are_those_of_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "bin/ansible-playbook"
    program.parent.mkdir()
    program.touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(context, "CLIARGS", {"become_ask_pass": True})
    for called, path, name in (
        ("bin/ansible-playbook", "/usr/bin", "bin/ansible-playbook"),
        (str(program), f"{program.parent}:/usr/bin", "ansible-playbook"),
    ):
        monkeypatch.setattr("sys.argv", [called, "site.yml"])
        monkeypatch.setenv("PATH", path)
        said = inventory.summary(*read(TWO), ["pypi"], [], ["/etc/hosts.yml"])[-1]
        assert said.endswith(f": {name} -i /etc/hosts.yml site.yml -K"), said


def test_one_command_fills_the_mirror_and_then_points_workstations_at_it() -> None:
    plays = [entry["ansible.builtin.import_playbook"] for entry in yaml.safe_load((ROOT / "site.yml").read_text())]
    assert plays[0] == "playbooks/preflight.yml"
    assert [play for play in plays if "sync" in (text := (ROOT / play).read_text()) or "tags: [client" in text] == [
        "playbooks/conda_mirror.yml",
        "playbooks/clients.yml",
        "playbooks/smoke_test.yml",
    ]
    (sync,) = [task for task in yaml.safe_load((ROOT / plays[2]).read_text())[0]["tasks"] if "sync" in task["tags"]]
    assert sync["tags"] == ["never", "sync"]


# ---- what contradicts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        # URL, port and TLS
        (one(lanmirror_server_url="https://m.lan"), [URL, '"https://m.lan"', 'lanmirror_tls is "none"', "by http"]),
        (one(lanmirror_server_url="http://m.lan", nginx_tls="site_ca"), [URL, '"site_ca"', "by https"]),
        (one(lanmirror_server_url="http://m.lan:8080"), [URL, "port 8080", "nginx_port is 80"]),
        (one(lanmirror_server_url="http://m.lan", nginx_port="8080"), [URL, "port 80", "nginx_port is 8080"]),
        (
            one(lanmirror_server_url="https://m.lan", nginx_tls="own", nginx_tls_port=8443),
            [URL, "port 443", "nginx_tls_port is 8443"],
        ),
        (one(lanmirror_server_url="m.lan"), [URL, '"m.lan"', "scheme"]),
        (one(lanmirror_server_url="http://m.lan:99999"), [URL, "99999", "scheme"]),
        (one(lanmirror_server_url="http://u:hush@m.lan"), [URL, "//***@m.lan", "password"]),
        (one(lanmirror_server_url="http://m.lan/pypi"), [URL, "without a path"]),
        (one(lanmirror_server_url="http://127.0.0.1"), [URL, "ws", "find themselves"]),
        (one(ansible_host="localhost"), ["mirror is reached at localhost", "ws", f"set {URL}"]),
        (
            {half: {name: {URL: "http://m.lan"} for name in hosts} for half, hosts in TWO.items()},
            [URL, "pypi, which has the PyPI cache alone", "conda, which has the Conda mirror alone", "host_vars"],
        ),
        (
            {**TWO, "clients": {"ws": {URL: "http://10.0.0.9"}}},
            [URL, "workstation ws", "none of the servers (pypi, conda)"],
        ),
        # the example
        (one(ansible_host="192.0.2.10"), ["ansible_host is 192.0.2.10 (for mirror)", "put your own"]),
        (one(ansible_host="2001:db8::10"), ["ansible_host is 2001:db8::10"]),
        (one(lanmirror_server_url="http://198.51.100.7"), [f"{URL} is 198.51.100.7"]),
        ({**TWO, "clients": {"ws": {"client_addresses": {"m.lan": "203.0.113.1"}}}}, ["client_addresses.m.lan is 203"]),
        # what the mirror lacks
        (
            {**TWO, "clients": {"ws": {"client_conda_repos": ["main", "pro"]}}},
            ["client_conda_repos", '"pro"', "conda_mirror_repos of conda", "main, r, msys2"],
        ),
        (
            {**TWO, "clients": {"ws": {"client_conda_channels": ["bioconda"]}}},
            ["client_conda_channels", '"bioconda"', "conda_mirror_cloud of conda", "conda-forge"],
        ),
        # groups
        ({"pypi_cache": {"m": {}}, "client": {"ws": {}}}, ['group "client" (ws)', "did you mean clients?"]),
        ({"pypi_cache": {"m": {}}, "mirror": {"m": {}}}, ['group "mirror"', "did you mean conda_mirror?"]),
        ({"pypi_cache": {"m": {}}, "pypi_replica": {"r": {}}}, ['group "pypi_replica" (r)', "pypi_replicas?"]),
        ({"pypi_cache": {"m": {}}, "pypi_replicas": {"r": {}}}, ["pypi_replicas (r)", "child of group pypi_cache"]),
        ({"ungrouped": {"m": {}}}, ["no host is in one of the groups", "cp -r inventory.example inventory"]),
        ({}, ["no host is in one of the groups"]),
        # names of variables
        (one(devpi_prot=4000), ["devpi_prot (set for mirror)", "did you mean devpi_port?"]),
        (one(lanmirror_server_ur="http://m.lan"), ["lanmirror_server_ur ", f"did you mean {URL}?"]),
        (one(nginx_of_another_role=[]), ["nginx_of_another_role", "lanmirror_other_variables"]),
        (
            {**TWO, "clients": {f"ws{n}": {"client_usres": []} for n in range(5)}},
            ["client_usres (set for ws0, ws1, ws2 and 2 more)", "did you mean client_users?"],
        ),
    ],
)
def test_contradiction_gets_one_message(groups: Groups, words: list[str]) -> None:
    found = problems(groups)
    assert len(found) == 1, found
    assert [word for word in words if word not in found[0]] == []
    assert "hush" not in found[0]


@pytest.mark.parametrize(
    "groups",
    [
        TWO,
        # A name with an address of each of them in DNS.
        {"pypi_cache": {h: {URL: "http://m.lan"} for h in "ab"}, "pypi_replicas": {"b": {}}, "clients": {"ws": {}}},
        {**TWO, "conda_mirror": {"conda": {"conda_mirror_repos": ["main"]}}},
        # A group of one's own, of hosts that are in ours as well.
        {**TWO, "clients_linux": {"ws": {}}, "lab": {"printer": {"client_of": "x"}}},
        # Whatever uses our prefixes in the same inventory.
        one(nginx_of_another_role=[], lanmirror_other_variables=["nginx_of_another_role"]),
        # A server that is set up from itself, with nobody else to reach it.
        {"pypi_cache": {"m": {"ansible_host": "127.0.0.1"}}, "clients": {"m": {}}},
        # What the roles refuse with a better message.
        {**TWO, "clients": {"ws": {"client_server_url": "http://m.lan", "client_conda_channels": ["a/noarch"]}}},
        one(nginx_port="http", lanmirror_server_url="http://m.lan"),
    ],
)
def test_what_agrees_is_accepted(groups: Groups) -> None:
    assert problems(groups) == []


def test_folder_of_a_misspelt_group_is_found(tmp_path: Any) -> None:
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars/client.yml").touch()
    (tmp_path / "group_vars/clients.yml").touch()
    (tmp_path / "group_vars/lab.yml").touch()
    (found,) = problems(TWO, inventory_dir=str(tmp_path))
    assert re.search(r'group_vars/client\.yml is for a group "client", .* did you mean clients\?', found)


def test_shared_variables_are_those_of_the_example() -> None:
    example = yaml.safe_load((ROOT / "inventory.example/group_vars/all.yml").read_text())
    assert {name for name in example if name.startswith("lanmirror_")} <= inventory.SHARED
