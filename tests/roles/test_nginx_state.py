"""Role nginx beside an Nginx that is there: whose the files are, and what of theirs is in the way of ours."""

from __future__ import annotations

import grp
import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.roles.render import ROOT, evaluate, python_file, render, written
from tests.roles.render import tasks as tasks_of

module = python_file(ROOT / "roles/nginx/library/nginx_state.py")

MAIN = """
user www-data;
events { worker_connections 768; }
http {
    include {folder}/conf.d/*.conf;
    include sites-enabled/*;
}
"""


class Machine:
    """An /etc/nginx of the test's own, and a dpkg that knows its files as they are after `installed`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.known = folder, dict[str, str]()
        for name in ("conf.d", "sites-available", "sites-enabled", "lanmirror/devpi"):
            (folder / name).mkdir(parents=True)
        self.write("nginx.conf", MAIN.replace("{folder}", str(folder)))
        self.write("sites-available/default", "server { listen 80 default_server; listen [::]:80 default_server; }")
        self.enable("default")
        self.known = {str(f): hashlib.md5(f.read_bytes()).hexdigest() for f in folder.rglob("*") if f.is_file()}

    def write(self, name: str, text: str) -> Path:
        (self.folder / name).write_text(text)
        return self.folder / name

    def enable(self, name: str) -> None:
        (self.folder / "sites-enabled" / name).symlink_to(self.folder / "sites-available" / name)

    def site(self, text: str, name: str = "theirs") -> None:
        self.write(f"sites-enabled/{name}", text)

    def state(self, monkeypatch: pytest.MonkeyPatch, **wanted: Any) -> dict[str, Any]:
        monkeypatch.setattr(module, "conffiles", lambda _: self.known)
        found: dict[str, Any] = module.state(
            self.folder / "nginx.conf", module.Wanted(**{"ports": (80,), **wanted}), lambda _: (0, "", ""), ""
        )
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "nginx")


Patch = pytest.MonkeyPatch

# ---- whose it is ------------------------------------------------------------------------------------------------


def test_untouched_nginx_is_the_distributions(machine: Machine, monkeypatch: Patch) -> None:
    found = machine.state(monkeypatch)
    assert (found["main"], found["others"], found["problems"]) == ("distribution", [], [])
    assert found["examples"] == found["in_the_way"] == [f"{machine.folder}/sites-enabled/default"]
    assert machine.state(monkeypatch, ports=(8080,))["in_the_way"] == []


def test_edited_example_site_is_the_administrators(machine: Machine, monkeypatch: Patch) -> None:
    machine.write("sites-available/default", "server { listen 80; server_name wiki.lab.lan; }")
    found = machine.state(monkeypatch)
    assert found["examples"] == []
    assert "sites-enabled/default (server_name wiki.lab.lan)" in found["others"][0]


def test_example_site_of_nginx_org(machine: Machine, monkeypatch: Patch) -> None:
    (machine.folder / "sites-enabled/default").unlink()
    file = machine.write("conf.d/default.conf", "server { listen 80; server_name localhost; }")
    machine.known[str(file)] = hashlib.md5(file.read_bytes()).hexdigest()
    assert machine.state(monkeypatch)["examples"] == [str(file)]
    assert machine.state(monkeypatch)["problems"] == []


def test_changed_main_file_is_the_administrators(machine: Machine, monkeypatch: Patch) -> None:
    with (machine.folder / "nginx.conf").open("a") as file:
        file.write("# mine\n")
    assert machine.state(monkeypatch)["main"] == "administrator"


def test_tuned_main_file_is_ours_until_it_is_edited(machine: Machine, monkeypatch: Patch) -> None:
    text = render("nginx", "nginx.conf.j2")
    file = machine.write("nginx.conf", text)
    assert module.whose(file, {}) == "ours"
    file.write_text(text.replace("gzip on", "gzip off"))
    assert module.whose(file, {}) == "edited"
    assert text.splitlines().count("}") == 2


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("sites-enabled/wiki", "server { listen 8080; server_name wiki; }", "the site"),
        ("conf.d/limits.conf", "client_max_body_size 64m;", "settings in"),
        ("nginx.conf", MAIN + "stream { server { listen 9000; return x; } }", "a block stream"),
        ("nginx.conf", MAIN + "mail { server { listen 143; } }", "a block mail"),
    ],
)
def test_whatever_else_is_set_is_named(machine: Machine, monkeypatch: Patch, name: str, text: str, word: str) -> None:
    machine.write(name, text.replace("{folder}", str(machine.folder)))
    (other,) = machine.state(monkeypatch)["others"]
    assert other.startswith(word)
    assert name in other


def test_our_own_files_are_none_of_theirs(machine: Machine, monkeypatch: Patch) -> None:
    machine.write("lanmirror/devpi/locations.conf", "")
    machine.write("lanmirror/devpi/http.conf", "map $uri $devpi_x { default 0; }")
    machine.write("conf.d/lanmirror.conf", "include lanmirror/*/http.conf; server { listen 80 default_server; }")
    found = machine.state(monkeypatch)
    assert (found["others"], found["problems"], found["sites"]) == ([], [], ["devpi"])


def test_user_of_the_workers_is_that_of_the_main_file(machine: Machine, monkeypatch: Patch) -> None:
    machine.write("nginx.conf", MAIN.replace("{folder}", str(machine.folder)).replace("www-data", "web"))
    assert machine.state(monkeypatch)["user"] == "web"
    machine.write("nginx.conf", MAIN.replace("{folder}", str(machine.folder)).replace("user www-data;", ""))
    # nginx.org's package is built with another user than the distribution's.
    found = module.state(machine.folder / "nginx.conf", module.Wanted(), lambda _: (0, "", "--user=nginx"), "nginx")
    assert found["user"] == "nginx"


def test_complaint_of_nginx_itself_is_passed_on_unless_it_is_about_ours(machine: Machine, monkeypatch: Patch) -> None:
    monkeypatch.setattr(module, "conffiles", lambda _: machine.known)
    main = machine.folder / "nginx.conf"
    for file, problems in ((f"{machine.folder}/conf.d/theirs.conf", 1), (f"{machine.folder}/conf.d/lanmirror.conf", 0)):
        said = f"nginx: [emerg] unknown directive in {file}:1"
        found = module.state(main, module.Wanted(), lambda _, said=said: (1, "", said), "nginx")
        assert len(found["problems"]) == problems
        assert [said in text for text in found["problems"]] == [True] * problems


# ---- what the role does with it --------------------------------------------------------------------------------

NOBODY_ELSE: dict[str, Any] = {"main": "distribution", "others": [], "examples": ["/x"], "in_the_way": []}


@pytest.mark.parametrize(
    ("state", "ours", "package"),
    [
        ({"main": "none"}, True, True),
        ({}, True, True),
        ({"main": "ours"}, True, True),
        # Others that came later stand beside our main file; their package is not ours to take.
        ({"main": "ours", "others": ["the site x"]}, True, False),
        ({"others": ["the site x"]}, False, False),
        ({"others": ["a block stream"]}, False, False),
        ({"main": "edited"}, False, False),
        ({"main": "administrator"}, False, False),
    ],
)
def test_main_file_and_package_are_taken_only_where_nobody_else_needs_them(
    state: dict[str, Any], ours: bool, package: bool
) -> None:
    found = {**NOBODY_ELSE, **state}
    assert evaluate("nginx", "{{ __nginx_main_is_ours | bool }}", __nginx_found=found) is ours
    mark = "/var/lib/lanmirror/nginx/package"
    for kept, takes in (([{"path": mark}], package), ([], False)):
        given = {"__nginx_found": found, "__nginx_kept": {"files": kept}}
        assert evaluate("nginx", "{{ __nginx_takes_package | bool }}", **given) is takes


@pytest.mark.parametrize(
    ("state", "default_server", "taken"),
    [
        ({}, True, ["/x"]),
        ({"others": ["the site x"]}, True, []),
        ({"others": ["the site x"], "in_the_way": ["/x"]}, True, ["/x"]),
        ({"others": ["the site x"], "in_the_way": ["/x"]}, False, []),
    ],
)
def test_example_site_goes_only_where_nobody_misses_it(
    state: dict[str, Any], default_server: bool, taken: list[str]
) -> None:
    (out,) = [
        task
        for task in tasks_of("nginx", "main_file.yml")
        if task["name"] == "Take out the distribution's example site"
    ]
    given = {"__nginx_found": {**NOBODY_ELSE, **state}, "nginx_default_server": default_server}
    assert evaluate("nginx", out["loop"], **given) == taken


def test_main_file_of_the_distribution_is_kept_before_ours_is_written() -> None:
    keep, write = [task for task in tasks_of("nginx", "main_file.yml") if "main file" in task["name"]][1:3]
    assert keep["ansible.builtin.copy"]["dest"] == "{{ __nginx_backup }}"
    assert keep["when"] == "__nginx_found.main == 'distribution'"
    assert [one["path"] for one in written("nginx", write)] == ["/etc/nginx/nginx.conf"]


def test_site_that_goes_takes_nginx_out_of_its_groups() -> None:
    members = {"devpi": ["nginx", "alice"], "lab": ["web", "www-data"], "empty": []}
    given = {
        "nginx_site_groups": ["devpi", "lab", "empty", "not-there"],
        "__nginx_found": {"user": "web", "members": members},
    }
    leaving = [(entry["group"], entry["user"]) for entry in evaluate("nginx", "{{ __nginx_members }}", **given)]
    assert leaving == [("devpi", "nginx"), ("lab", "web"), ("lab", "www-data")]


# ---- what of theirs is in the way -------------------------------------------------------------------------------

IN_THE_WAY = {
    "explicit": "server { listen 80 default_server; server_name files; }",
    "old word": "server { listen 80 default; server_name files; }",
    "of IPv6": "server { listen [::]:80 default_server; server_name files; }",
    "implied": "server { server_name _; } server { listen 80; server_name wiki; }",
    "address": "server { listen 192.0.2.10:80; server_name wiki; }",
    "PROXY": "server { listen 80 proxy_protocol; server_name wiki; }",
    "https on our port": "server { listen 80 ssl; server_name wiki; }",
    "both families": "server { listen [::]:80 ipv6only=off; server_name wiki; }",
    "a range": "server { listen 79-81 default_server; }",
    "our name": "server { listen 80; server_name wiki mirror.lab.lan; }",
}


@pytest.mark.parametrize("text", IN_THE_WAY.values(), ids=IN_THE_WAY)
def test_conflict_is_found_and_names_the_file_and_a_way_out(machine: Machine, monkeypatch: Patch, text: str) -> None:
    machine.site(text)
    found = machine.state(monkeypatch, names=("mirror.lab.lan",))["problems"]
    assert found
    assert "sites-enabled/theirs" in found[0]
    assert "Set nginx_port" in found[0]
    assert machine.state(monkeypatch, ports=(8081,), names=("mirror.lab.lan",))["problems"] == []


# What is wrong, in the words of what is there.
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("https on our port", "speaks https on port 80, where lanmirror's site is to speak http."),
        ("explicit", "is the default server of port 80, "),
        ("implied", "is, as the first one, the default server of port 80, which"),
    ],
)
def test_conflict_says_what_it_is(machine: Machine, monkeypatch: Patch, kind: str, words: str) -> None:
    machine.site(IN_THE_WAY[kind])
    (said,) = machine.state(monkeypatch, ipv6=False)["problems"]
    assert words in said
    # Who is the first one has to say that it is the default; who says so has not.
    assert ('listen 80 default_server"' in said) is (kind == "implied")


BESIDE = {
    "named": "server { listen 80; listen [::]:80; server_name wiki.lab.lan; }",
    "another port": "server { listen 8080 default_server; }",
    "loopback": "server { listen 127.0.0.1:80 default_server; location /status { stub_status; } }",
    "socket": "server { listen unix:/run/x.sock default_server; }",
    "braces in quotes": """server { listen 8080; location ~ "^/a{2}" { return 200 'x; } listen 80 default;'; } }""",
    "variable": "server { listen 8080; return 301 https://${host}$request_uri; }",
    "lua": "server { listen 8080; location / { content_by_lua_block { local t = {} if a then b() end } } }",
    "comment": "# server { listen 80 default_server; }\n",
}


@pytest.mark.parametrize("text", BESIDE.values(), ids=BESIDE)
def test_site_beside_ours_is_no_conflict(machine: Machine, monkeypatch: Patch, text: str) -> None:
    machine.site(text)
    assert machine.state(monkeypatch)["problems"] == []


def test_first_site_of_a_port_loses_names_that_nobody_has(machine: Machine, monkeypatch: Patch) -> None:
    machine.site(BESIDE["named"])
    assert "wiki.lab.lan" in machine.state(monkeypatch)["notes"][0]


def test_their_default_server_stays_where_ours_has_names(machine: Machine, monkeypatch: Patch) -> None:
    machine.site(IN_THE_WAY["explicit"])
    (said,) = machine.state(monkeypatch)["problems"]
    assert "nginx_default_server to false" in said
    assert machine.state(monkeypatch, default_server=False)["problems"] == []
    (machine.folder / "sites-enabled/default").unlink()
    machine.site(IN_THE_WAY["implied"])
    (said,) = machine.state(monkeypatch, default_server=False, ipv6=False)["problems"]
    assert 'have it "listen 80 default_server"' in said


def test_stream_server_on_our_port(machine: Machine, monkeypatch: Patch) -> None:
    machine.write("nginx.conf", MAIN.replace("{folder}", str(machine.folder)) + "stream { server { listen 80; } }")
    assert "stream server on port 80" in machine.state(monkeypatch)["problems"][0]


def test_main_file_without_conf_d(machine: Machine, monkeypatch: Patch) -> None:
    machine.write("nginx.conf", "events {} http { include sites-enabled/*; }")
    assert "does not include" in machine.state(monkeypatch)["problems"][0]


@pytest.mark.parametrize(
    ("text", "word"),
    [("server { listen 80", 'no ";"'), ("include no-such-file;", "no-such-file"), ("server { ; }", "unexpected")],
)
def test_configuration_that_cannot_be_read(machine: Machine, monkeypatch: Patch, text: str, word: str) -> None:
    machine.site(text)
    (said,) = machine.state(monkeypatch)["problems"]
    assert "Mend it first" in said
    assert word in said


def test_dead_link(machine: Machine, monkeypatch: Patch) -> None:
    machine.enable("gone")
    (said,) = machine.state(monkeypatch)["problems"]
    assert "sites-enabled/gone: no such file" in said


def test_settings_and_user_of_the_main_file(machine: Machine, monkeypatch: Patch) -> None:
    found = machine.state(monkeypatch)
    assert (found["user"], found["settings"]["worker_connections"]) == ("www-data", "768")


def test_members_of_the_groups_that_there_are(monkeypatch: Patch) -> None:
    known = [("devpi", "x", 999, ["www-data", "alice"]), ("empty", "x", 998, []), ("adm", "x", 4, ["bob"])]
    monkeypatch.setattr(grp, "getgrall", lambda: [grp.struct_group(group) for group in known])
    assert module.members(["devpi", "empty", "not-there"]) == {"devpi": ["www-data", "alice"], "empty": []}
