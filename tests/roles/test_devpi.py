"""Role devpi: what its templates come out as, what its preflight refuses, and what its module decides."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from roles.devpi.files.lanmirror_ops.served import FIELDS
from roles.devpi.filter_plugins import devpi_variables as checked
from roles.devpi.library import devpi_data as data
from roles.devpi.library import devpi_indexes as devpi
from tests.roles.render import ROOT, defaults, evaluate, render, run_module

ROLE = ROOT / "roles" / "devpi"

PRIMARY = {"name": "mirror", "role": "primary", "url": "https://192.0.2.10:443", "tls_name": "mirror", "ca": "a root"}
REPLICA = {"name": "mirror2", "role": "replica", "url": "http://192.0.2.11:80"}

# ---- templates -----------------------------------------------------------------------------------------------


def test_server_configuration() -> None:
    settings = yaml.safe_load(render("devpi", "devpi-server.yml.j2", devpi_port=3999, devpi_max_upload_mib=2))
    assert settings["devpi-server"] == {
        "serverdir": "/var/lib/devpi",
        "secretfile": "/etc/devpi/secret",
        "host": "127.0.0.1",
        "port": 3999,
        "restrict-modify": "root",
        "role": "primary",
        "request-timeout": 5,
        "max-request-body-size": 2 * 1024 * 1024,
        "threads": 200,
        "connection-limit": 1000,
        "argon2-memory-cost": 65536,
        "keyfs-cache-size": 1000,
        "lanmirror-page-timeout": 60,
        "lanmirror-max-stale": 1296000,
        "lanmirror-pages-fresh": 60,
        "lanmirror-pages-behind": 3600,
        "lanmirror-upstreams": "/run/devpi/upstreams.json",
        "lanmirror-malware": "/var/lib/devpi-watch/known-malware.json",
    }


def test_database_is_made_for_devpi_alone_whatever_the_umask_of_root_is(tmp_path: Path) -> None:
    tasks = yaml.safe_load((ROLE / "tasks/configure.yml").read_text())
    (making,) = [task["ansible.builtin.shell"]["cmd"] for task in tasks if "ansible.builtin.shell" in task]
    (tmp_path / "password").write_text("hush")
    (tmp_path / "runuser").write_text('#!/bin/sh\numask; echo "$DEVPISERVER_ROOT_PASSWD"; echo "$@"\n')
    (tmp_path / "runuser").chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", evaluate("devpi", making, __devpi_root_password_file=str(tmp_path / "password"))],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        umask=0o022,
        capture_output=True,
        text=True,
        check=True,
    )
    umask, password, words = done.stdout.splitlines()
    assert (umask, password) == ("0077", "hush")
    assert words.startswith("-u devpi -- /opt/devpi/current/bin/devpi-init")
    assert "hush" not in words


def test_way_out_of_devpi() -> None:
    way = {"devpi_ca_bundle": "/etc/ssl/lab.pem", "devpi_http_proxy": "http://proxy.lab.lan:3128"}
    there, brought = {"stat": {"isreg": True}}, {"stat": {"exists": False}}
    environment = render("devpi", "environment.j2", **way, __devpi_bundle=there).splitlines()
    assert "REQUESTS_CA_BUNDLE=/etc/ssl/lab.pem" in environment
    assert "HTTPS_PROXY=http://proxy.lab.lan:3128" in environment
    copied = render("devpi", "environment.j2", **way, __devpi_bundle=brought).splitlines()
    assert "REQUESTS_CA_BUNDLE=/opt/devpi/way-out.pem" in copied
    # As pip, devpi knows the authorities that the administrator made known to the system.
    direct = [line for line in render("devpi", "environment.j2").splitlines() if "=" in line]
    assert direct == ["REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt"]


@pytest.mark.parametrize("name", ["devpi", "devpi-watch", "devpi-evict", "devpi-malware"])
def test_units_have_one_sandbox(name: str) -> None:
    shared = render("devpi", "sandbox.conf.j2").strip()
    unit = render("devpi", f"{name}.service.j2")
    assert [line for line in shared.splitlines() if line not in unit.splitlines()] == []
    assert ("SupplementaryGroups=adm" in unit) == (name != "devpi")


def test_unit_keeps_devpi_to_its_data() -> None:
    unit = render("devpi", "devpi.service.j2", devpi_data_dir="/srv/devpi").splitlines()
    for line in (
        "User=devpi",
        "Restart=on-failure",
        "ReadWritePaths=/srv/devpi",
        "ProtectSystem=strict",
        "NoNewPrivileges=true",
        "CapabilityBoundingSet=",
    ):
        assert line in unit


def test_site_sends_stored_files_from_the_folder_of_the_data() -> None:
    site = render("devpi", "devpi-locations.conf.j2", devpi_data_dir="/srv/devpi", devpi_max_upload_mib=7)
    assert "root /srv/devpi/+files;" in site
    # Files (results of tests), indexes, what was asked about, the question; the rest has settings and orders.
    assert re.findall(r"client_max_body_size (\w+)", site) == ["7m", "7m", "7m", "7m", "1m"]


def test_steps_before_devpi_have_one_port_and_a_name_each() -> None:
    site = render("devpi", "devpi-http.conf.j2", devpi_port=4000)
    assert re.findall(r"server 127.0.0.1:(\d+);|listen 127.0.0.1:(\d+);", site) == [
        ("4000", ""),
        ("4001", ""),
        *[("", "4001")] * 5,
    ]
    names = re.findall(r"server_name (\S+);", site)
    steps = ("whole", "plain", "memory", "disk", "flight")
    assert names == [f"{name}.lanmirror" for name in steps]
    # Each step asks the next by a name that there is.
    asked = re.findall(r"(\w+\.lanmirror);", site + render("devpi", "devpi-locations.conf.j2"))
    assert set(asked) == set(names)


def test_ports_that_must_be_free_are_those_of_the_site() -> None:
    site = render("devpi", "devpi-http.conf.j2", devpi_port="4000", devpi_peers=[REPLICA, PRIMARY])
    listen = {int(port) for port in re.findall(r"listen 127.0.0.1:(\d+);", site)}
    needed = evaluate("devpi", "{{ __devpi_ports_needed }}", devpi_port="4000", devpi_peers=[REPLICA, PRIMARY])
    assert {entry["port"] for entry in needed if entry["unit"] == "nginx.service"} == listen
    assert [entry["port"] for entry in needed if entry["unit"] == "devpi.service"] == [4000]
    assert needed[0]["note"] == "The cache needs these ports of the loopback address: 4000, 4001, 4004, 4005."


def test_pages_are_kept_for_mirrors_alone_and_for_as_long_as_the_variable_says() -> None:
    indexes = {
        "root/pypi": {"type": "mirror", "mirror_url": "u"},
        "lab/dev": {"type": "stage"},
        "a/b.c": {"type": "mirror"},
    }
    site = render("devpi", "devpi-locations.conf.j2", __devpi_indexes=indexes)
    assert 'location ~ "^/(root/pypi|a/b\\.c)/' in site
    http = render("devpi", "devpi-http.conf.j2", __devpi_indexes=indexes, devpi_pages_max_stale=154)
    settings = yaml.safe_load(render("devpi", "devpi-server.yml.j2", devpi_pages_max_stale=154))["devpi-server"]
    # Nginx does with a page as devpi says (lanmirror_devpi/tween.py).
    assert (settings["lanmirror-pages-behind"], settings["lanmirror-max-stale"]) == (77, 77)
    assert "s-maxage" not in http
    assert "inactive=137s" in http


def test_who_waits_for_a_page_that_is_kept_does_not_wait_for_nginx_to_look_again() -> None:
    site = render("devpi", "devpi-locations.conf.j2", __devpi_indexes={"root/pypi": {"type": "mirror"}})
    assert "proxy_cache_lock" not in site.split("# What is stored")[0]
    http = render("devpi", "devpi-http.conf.j2", __devpi_indexes={"root/pypi": {"type": "mirror"}})
    # The memory cache, and the single flight, behind which devpi waits for as long as bytes come.
    assert re.findall(r"(?m)^        proxy_cache_lock_timeout (\w+);", http) == ["5ms", "1m"]


def test_what_a_killed_worker_was_writing_goes_and_what_is_kept_stays(tmp_path: Path) -> None:
    name = "0123456789abcdef0123456789abcdef"
    folders = [tmp_path / folder / "a" / "bc" for folder in ("memory/kept", "memory/whole", "disk/kept")]
    for folder in folders:
        folder.mkdir(parents=True)
        # Whole, begun and left, and begun just now, as ngx_create_temp_file names them.
        for file in (name, f"{name}.0000000001", f"{name}.0000000002"):
            (folder / file).write_text("page")
            if not file.endswith("2"):
                os.utime(folder / file, (1e9, 1e9))
    variables = {"__devpi_memory_dir": str(tmp_path / "memory"), "__devpi_cache_dir": str(tmp_path / "disk")}
    written = tmp_path / "lanmirror-devpi.conf"
    written.write_text(render("devpi", "devpi-caches.tmpfiles.j2", **variables))
    subprocess.run(["systemd-tmpfiles", "--clean", str(written)], check=True)
    for folder in folders:
        assert {file.name for file in folder.iterdir()} == {name, f"{name}.0000000002"}


def test_pages_that_came_together_run_out_one_after_the_other() -> None:
    site = render("devpi", "devpi-http.conf.j2")
    found = re.search(r"(?s)split_clients \$uri \$devpi_memory_page_seconds \{(.+?)\n\}", site)
    assert found
    assert re.findall(r"(\S+) (\d+);", found[1]) == [("33.3%", "2"), ("33.3%", "3"), ("*", "4")]


def test_files_of_the_site_stand_alone_in_the_order_in_which_they_are_checked() -> None:
    http = render("devpi", "devpi-http.conf.j2")
    made = set(re.findall(r"(?:map|split_clients) .+ \$(\w+) \{|\(\?<(\w+)>|auth_request_set \$(\w+) ", http))
    used = set(re.findall(r"\$(devpi_\w+)", http))
    assert used <= {name for group in made for name in group}


def test_key_of_a_page_changes_with_the_settings_of_its_mirror() -> None:
    def generation(url: str) -> str:
        indexes = {"root/pypi": {"type": "mirror", "mirror_url": url}}
        found = re.search(
            r'"~\^/root/pypi/\\\+simple/" (\w{12});', render("devpi", "devpi-http.conf.j2", __devpi_indexes=indexes)
        )
        assert found is not None
        return found[1]

    assert generation("https://a.example/") == generation("https://a.example/") != generation("https://b.example/")


def test_flat_is_a_setting_of_the_index() -> None:
    flat = {"type": "mirror", "flat": True, "mirror_url": "http://m/"}
    assert devpi.complete({"root/a": flat}, dict) == {"root/a": flat}


def test_units_beside_devpi_are_kept_to_what_they_write() -> None:
    for name in ("devpi-watch.service.j2", "devpi-evict.service.j2", "devpi-malware.service.j2"):
        unit = render("devpi", name, devpi_data_dir="/srv/devpi", devpi_metrics_file="/srv/metrics/pypi.prom")
        for line in (
            "User=devpi",
            "ReadWritePaths=/srv/devpi",
            "ReadWritePaths=-/srv/metrics",
            "ProtectSystem=strict",
            "CapabilityBoundingSet=",
        ):
            assert line in unit.splitlines()
    assert "ReadWritePaths=-" not in render("devpi", "devpi-watch.service.j2")


def test_log_of_what_is_served_has_the_fields_that_are_read() -> None:
    form = re.search(r"log_format devpi_served '([^']+)';", render("devpi", "devpi-http.conf.j2"))
    assert form is not None
    assert len(form[1].split(r"\t")) == FIELDS


@pytest.mark.parametrize(
    ("accepted", "gzip"),
    [
        ("gzip", True),
        ("gzip, deflate, br, zstd", True),
        ("br;q=1.0, gzip;q=0.5", True),
        ("", False),
        ("identity", False),
        ("gzip;q=0, br", False),
        ("br, gzip; q=0.000", False),
    ],
)
def test_who_takes_gzip_gets_the_page_that_is_kept_as_such(accepted: str, gzip: bool) -> None:
    found = re.search(r'"~(.*)" gzip;', render("devpi", "devpi-http.conf.j2"))
    assert found is not None
    assert bool(re.search(found[1], accepted)) is gzip
    assert render("devpi", "devpi-locations.conf.j2").count("|$devpi_encoding|$uri") == 1


# ---- the upstream --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upstream", ["tuna", "aliyun", "ustc"])
def test_public_mirrors_have_what_they_need(upstream: str) -> None:
    settings = evaluate("devpi", "{{ __devpi_indexes['root/pypi'] }}", devpi_upstream=upstream)
    assert settings["mirror_url"].startswith("https://")
    assert settings["mirror_url"].endswith("/simple/")
    assert settings["mirror_web_url_fmt"] == settings["mirror_url"] + "{name}/"
    assert settings["mirror_no_project_list"] is True
    assert settings["mirror_ignore_serial_header"] is True


def test_list_of_upstreams_is_asked_in_its_order() -> None:
    given = ["tuna", "https://a.example.org/simple", "pypi"]
    settings = evaluate("devpi", "{{ __devpi_indexes['root/pypi'] }}", devpi_upstream=given)
    assert settings["mirror_url"].startswith("https://pypi.tuna.")
    assert settings["mirror_web_url_fmt"] == settings["mirror_url"] + "{name}/"
    assert settings["fallback_urls"] == ["https://a.example.org/simple/", "official"]
    assert "official" not in settings
    ways = evaluate("devpi", "{{ __devpi_upstream_urls | devpi_ways_out }}", devpi_upstream=given)
    assert [way["urls"] for way in ways] == [[settings["mirror_url"]], ["https://a.example.org/simple/"], [""]]
    settings = evaluate("devpi", "{{ __devpi_indexes['root/pypi'] }}", devpi_upstream=["pypi", given[1]])
    assert (settings["official"], settings["fallback_urls"]) == (True, ["https://a.example.org/simple/"])
    assert "mirror_url" not in settings


def test_module_writes_the_official_url_into_a_list_and_sees_its_order() -> None:
    def official() -> dict[str, Any]:
        return {"mirror_url": "https://o.example.org/simple/", "mirror_web_url_fmt": "https://o.example.org/{name}"}

    urls = ["https://a.example.org/simple/", "https://o.example.org/simple/"]
    wanted = {
        "root/pypi": {"type": "mirror", "mirror_url": "https://m.example.org/", "fallback_urls": [urls[0], "official"]}
    }
    done = devpi.complete(wanted, official)
    assert done == {"root/pypi": {**wanted["root/pypi"], "fallback_urls": urls}}
    assert devpi.plan(done, done, remove=False) == []
    turned = {"root/pypi": {**done["root/pypi"], "fallback_urls": urls[::-1]}}
    assert [str(change) for change in devpi.plan(done, turned, remove=False)] == ["change root/pypi: fallback_urls"]


def test_files_come_from_the_places_of_the_index_or_of_all() -> None:
    indexes = evaluate(
        "devpi",
        "{{ __devpi_indexes }}",
        devpi_files_from=["https://a.example.org/pypi", "https://b.example.org/"],
        devpi_indexes={
            "root/x": {"type": "mirror", "official": True, "files_from": []},
            "root/y": {"type": "mirror", "official": True, "fallback_urls": ["https://c.example.org", "official"]},
            "root/z": {"type": "stage"},
        },
    )
    everywhere = ["https://a.example.org/pypi/", "https://b.example.org/"]
    assert [indexes[f"root/{name}"].get("files_from") for name in ("pypi", "x", "y", "z")] == [
        everywhere,
        [],
        everywhere,
        None,
    ]
    # As devpi stores them, or each run would change them.
    assert indexes["root/y"]["fallback_urls"] == ["https://c.example.org/", "official"]
    turned = {"root/pypi": {**indexes["root/pypi"], "files_from": everywhere[::-1]}}
    assert [str(change) for change in devpi.plan(indexes, turned, remove=False)] == ["change root/pypi: files_from"]


def test_official_upstream_is_devpis_own() -> None:
    settings = evaluate("devpi", "{{ __devpi_indexes['root/pypi'] }}")
    assert settings == {
        "type": "mirror",
        "volatile": False,
        "title": "PyPI",
        "mirror_no_project_list": True,
        "mirror_ignore_serial_header": True,
        "mirror_cache_expiry": 1800,
        "flat": False,
        "file_hosts": [],
        "fallback_urls": [],
        "files_from": [],
        "min_age_days": 0,
        "min_age_undated": "hidden",
        "block": "",
        "allow": "",
        "official": True,
    }


def test_rules_of_an_index_count_in_place_of_those_for_all() -> None:
    settings = evaluate(
        "devpi",
        "{{ __devpi_indexes }}",
        devpi_min_age_days="7",
        devpi_block=["evil", " pkg>=2,<2.3"],
        devpi_indexes={
            "root/own": {"type": "mirror", "block": [], "allow": ["a", "b"], "min_age_days": "0"},
            "lab/dev": {"type": "stage"},
        },
    )
    rules = ("min_age_days", "min_age_undated", "block", "allow")
    assert [settings["root/pypi"][key] for key in rules] == [7, "hidden", "evil\npkg>=2,<2.3", ""]
    assert [settings["root/own"][key] for key in rules] == [0, "hidden", "", "a\nb"]
    assert not set(rules) & set(settings["lab/dev"])


def test_key_of_a_page_has_the_rules_from_devpi_and_not_from_the_configuration() -> None:
    """So a change of them loads nothing in Nginx, and holds when devpi has it and not before."""
    plain = render("devpi", "devpi-http.conf.j2")
    assert render("devpi", "devpi-http.conf.j2", devpi_block=["evil"], devpi_min_age_days=3) == plain
    disk = plain.partition("server_name disk.lanmirror;")[2].partition("\nserver {")[0]
    assert set(re.findall(r"proxy_cache_key (.+);", disk)) == {'"$http_x_generation$devpi_rules|$http_accept|$uri"'}
    # The single flight tells them apart as well.
    assert "proxy_set_header X-Generation $http_x_generation$devpi_rules;" in disk


def test_diff_shows_a_rule_a_line() -> None:
    assert devpi.shown({"block": "evil\npkg>=2", "title": "a\nb"}) == (
        '{\n  "block": [\n    "evil",\n    "pkg>=2"\n  ],\n  "title": "a\\nb"\n}'
    )


def test_custom_upstream_ends_with_one_slash() -> None:
    for given in ("https://mirror.example.org/simple", "https://mirror.example.org/simple/"):
        settings = evaluate(
            "devpi",
            "{{ __devpi_indexes['root/pypi'] }}",
            devpi_upstream="custom",
            devpi_mirror_url=given,
            devpi_mirror_web_url_fmt="https://mirror.example.org/{name}",
        )
        assert settings["mirror_url"] == "https://mirror.example.org/simple/"
        assert settings["mirror_web_url_fmt"] == "https://mirror.example.org/{name}"


def test_indexes_have_what_they_need_by_default() -> None:
    mirror = {"mirror_no_project_list": True}
    given: dict[str, Any] = {
        "lab/dev": {"type": "stage", "volatile": False},
        "root/pypi": {"title": "ours"},
        "a/m": {"type": "mirror"},
    }
    assert checked.devpi_declared(given, {"type": "mirror", "title": "PyPI"}, mirror) == {
        "root/pypi": {"type": "mirror", "title": "ours", **mirror},
        "a/m": {"type": "mirror", "volatile": True, **mirror},
        "lab/dev": {
            "type": "stage",
            "volatile": False,
            "bases": [],
            "acl_upload": ["lab"],
            "acl_toxresult_upload": [":AUTHENTICATED:"],
        },
    }


# ---- bad input -----------------------------------------------------------------------------------------------


FACTS = {"python": {"version": {"major": 3, "minor": 11}}, "all_ipv4_addresses": ["192.0.2.10"]}


def refusals(facts: dict[str, Any] = FACTS, **variables: Any) -> list[str]:
    """Return what the preflight finds wrong about the variables of the role."""
    return checked.devpi_problems({**defaults("devpi"), **variables}, "server", facts)


@pytest.mark.parametrize("users", ["hush", ["hush"], {"alice": "hush"}])
def test_users_of_a_wrong_shape_are_not_shown(users: Any) -> None:
    (problem,) = checked.devpi_user_problems(users)
    assert "must be a list" in problem
    assert "hush" not in problem


def test_defaults_are_accepted() -> None:
    assert refusals() == []
    example = yaml.safe_load((ROOT / "inventory.example" / "group_vars" / "pypi_cache.yml").read_text())
    assert refusals(**example) == []


CUSTOM = {"devpi_upstream": "custom", "devpi_mirror_url": "https://mirror.example.org/simple"}


@pytest.mark.parametrize(
    "variables",
    [
        CUSTOM,
        {"devpi_upstream": "custom", "devpi_mirror_url": "http://[2001:db8::1]:8080/simple/"},
        {"devpi_http_proxy": "http://user:secret@proxy.lab.lan:3128"},
        {"devpi_pip_index_url": "https://user:secret@mirror.example.org/simple"},
        {"devpi_root_password": "correct horse battery"},
        {"devpi_server_names": ["pypi.lab.lan", "pypi"]},
        {"devpi_port": "4000"},
        {"devpi_port": 65532},
        {"devpi_port": 65531, "devpi_peers": [REPLICA]},
        {"devpi_remove_undeclared": "yes", "devpi_backup_cache": "False", "devpi_mirror_no_project_list": 1},
        {"devpi_data_dir": "/srv/devpi/", "devpi_backup_dir": "/srv/devpi-backups/"},
        {"devpi_address": "2001:db8::1"},
        {"devpi_malware_list": "https://lists.example.org/all.zip"},
        {"devpi_malware_list": "/srv/malware"},
        {"devpi_files_from": ["https://a.example.org", "http://10.0.0.5:8080/pypi/"]},
        {"devpi_files_from": ["https://a.example.org/packages/pypi/"]},
        {"devpi_min_age_days": "14", "devpi_min_age_undated": "shown"},
        {"devpi_block": ["*", "Evil", "pkg>=2,<2.3"], "devpi_allow": ["numpy==2.*"]},
        {
            "devpi_indexes": {
                "root/pypi": {"block": ["*"], "allow": ["a"], "min_age_days": "7", "min_age_undated": "shown"}
            }
        },
        {
            "devpi_users": [{"name": "alice", "password": "correct horse"}, {"name": "lab"}],
            "devpi_indexes": {
                "lab/dev": {"type": "stage", "bases": ["root/pypi", "root/torch"], "acl_upload": ["alice"]},
                "root/torch": {"type": "mirror", "mirror_url": "https://download.example.org/whl/cpu"},
                "root/pypi": {"mirror_provides_core_metadata": "true", "mirror_cache_expiry": "60"},
            },
        },
    ],
)
def test_good_input_is_accepted(variables: dict[str, Any]) -> None:
    assert refusals(**variables) == []


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"devpi_upstream": "pipy"}, ["devpi_upstream", '"pipy"', "tuna"]),
        ({"devpi_upstream": "custom"}, ["devpi_mirror_url", '""', "http://"]),
        ({"devpi_upstream": ["tuna", "pipy"]}, ["devpi_upstream has", '"pipy"', "aliyun", "URLs"]),
        ({"devpi_upstream": []}, ["devpi_upstream is an empty list"]),
        ({"devpi_upstream": ["https://u:secret@a.example.org/"]}, ["devpi_upstream has", "//***@", "password"]),
        ({"devpi_upstream": ["https://a.example.org/s", "https://a.example.org/s/"]}, ["devpi_upstream", "twice"]),
        ({"devpi_upstream": ["pypi", "custom"]}, ["devpi_mirror_url", '""', "http://"]),
        ({"devpi_files_from": "https://a.example.org/"}, ["devpi_files_from is", "a list of URLs", "INI inventory"]),
        ({"devpi_files_from": None}, ["devpi_files_from is null", "a list of URLs"]),
        ({"devpi_files_from": ["ftp://a.example.org/"]}, ['devpi_files_from has "ftp://', "packages/", "http://"]),
        ({"devpi_files_from": ["tuna"]}, ['devpi_files_from has "tuna"', "URL below which packages/ stands"]),
        ({"devpi_files_from": [7]}, ['devpi_files_from has "7"', "URL below which packages/ stands"]),
        ({"devpi_files_from": ["https://u:secret@a.example.org/"]}, ["devpi_files_from has", "//***@", "password"]),
        ({"devpi_files_from": ["http://a.example.org/p/packages"]}, ["devpi_files_from", '"http://a.example.org/p/"']),
        ({"devpi_files_from": ["http://a.example.org/simple/"]}, ["devpi_files_from", '"http://a.example.org/"']),
        ({"devpi_files_from": ["http://a.example.org", "http://a.example.org/"]}, ["devpi_files_from has", "twice"]),
        ({**CUSTOM, "devpi_mirror_url": "mirror.example.org/simple"}, ['"mirror.example.org/simple"', "https://"]),
        ({**CUSTOM, "devpi_mirror_url": "https://u:hush@m.example.org/simple"}, ["//***@m.example.org", "password"]),
        ({"devpi_mirror_url": "https://m.example.org/simple"}, ["devpi_mirror_url", '"pypi"', "custom"]),
        ({**CUSTOM, "devpi_mirror_web_url_fmt": "https://m.example.org/"}, ["devpi_mirror_web_url_fmt", "{name}"]),
        ({"devpi_mirror_no_project_list": "maybe"}, ["devpi_mirror_no_project_list", '"maybe"', "true, false"]),
        ({"devpi_port": 80}, ["devpi_port", '"80"', "1024 to 65532"]),
        ({"devpi_port": "http"}, ["devpi_port", '"http"', "1024 to 65532"]),
        ({"devpi_page_timeout": 1}, ["devpi_page_timeout", '"1"', "5 to 3600"]),
        ({"devpi_request_timeout": 0}, ["devpi_request_timeout", '"0"', "1 to 300"]),
        ({"devpi_pages_max_stale": 60}, ["devpi_pages_max_stale", '"60"', "120 to 31536000"]),
        ({"devpi_max_upload_mib": 0}, ["devpi_max_upload_mib", '"0"']),
        ({"devpi_max_cached_gib": -1}, ["devpi_max_cached_gib", '"-1"', "0 to 1048576"]),
        ({"devpi_min_free_gib": 1048577}, ["devpi_min_free_gib", '"1048577"', "0 to 1048576"]),
        ({"devpi_metrics_file": "/var/lib/metrics"}, ["devpi_metrics_file", '"/var/lib/metrics"', ".prom"]),
        ({"devpi_metrics_file": "pypi.prom"}, ["devpi_metrics_file", '"pypi.prom"', "absolute"]),
        ({"devpi_root_password": 12345678}, ["devpi_root_password", "quote"]),
        ({"devpi_root_password": "short"}, ["devpi_root_password", "8 characters"]),
        ({"devpi_root_password": "two\nlines of it"}, ["devpi_root_password"]),
        ({"devpi_users": [{"name": "root"}]}, ["devpi_users", '"root"', "not root"]),
        ({"devpi_users": [{"name": "alice", "password": "hush"}]}, ["devpi_users", '"alice"', "8 characters"]),
        ({"devpi_users": [{"password": "hush hush hush"}]}, ["devpi_users", '""', "a name is"]),
        ({"devpi_indexes": ["lab/dev"]}, ["devpi_indexes", "mapping"]),
        ({"devpi_indexes": {"dev": {"type": "stage"}}}, ["dev is not a name", "user/index"]),
        ({"devpi_indexes": {"lab/dev": {"type": "stage"}}}, ["lab/dev", '"lab"', "add it to devpi_users"]),
        ({"devpi_indexes": {"root/x": {"type": "proxy"}}}, ["root/x", '"proxy"', "mirror, stage"]),
        ({"devpi_indexes": {"root/pypi": {"type": "stage"}}}, ["root/pypi", '"stage"', "allowed are mirror"]),
        ({"devpi_indexes": {"root/x": {"type": "mirror"}}}, ["root/x is a mirror without a URL", "mirror_url"]),
        (
            {"devpi_indexes": {"root/x": {"type": "mirror", "mirror_url": "m.example/"}}},
            ["root/x", '"m.example/"', "http"],
        ),
        ({"devpi_indexes": {"root/x": {"type": "mirror", "mirror_url": "http://u:hush@m/"}}}, ["//***@m", "password"]),
        (
            {"devpi_indexes": {"root/x": {"type": "mirror", "mirror_url": "http://m/", "acl_upload": ["root"]}}},
            ["root/x is a mirror", "acl_upload", "stage index"],
        ),
        (
            {"devpi_indexes": {"root/x": {"type": "mirror", "official": True, "flat": True}}},
            ["root/x is both official and flat"],
        ),
        (
            {"devpi_indexes": {"root/pypi": {"fallback_urls": ["https://u:secret@a.example.org/"]}}},
            ["root/pypi", "//***@", "fallback_urls", "password"],
        ),
        (
            {"devpi_indexes": {"root/pypi": {"files_from": "https://a.example.org/"}}},
            ["root/pypi has files_from", "a list of texts"],
        ),
        (
            {"devpi_indexes": {"root/pypi": {"files_from": ["https://u:secret@a.example.org/"]}}},
            ["root/pypi has files_from", "//***@", "password"],
        ),
        ({"devpi_indexes": {"root/x": {"type": "stage", "files_from": []}}}, ["root/x is a stage", "files_from"]),
        (
            {"devpi_indexes": {"root/x": {"type": "mirror", "official": True, "fallback_urls": ["official"]}}},
            ["root/x", '"official" twice'],
        ),
        (
            {"devpi_indexes": {"root/x": {"type": "mirror", "mirror_url": "http://m/", "fallback_urls": ["http://m"]}}},
            ["root/x", '"http://m" twice'],
        ),
        (
            {
                "devpi_indexes": {
                    "root/x": {
                        "type": "mirror",
                        "mirror_url": "http://m/",
                        "flat": True,
                        "fallback_urls": ["http://n/"],
                    }
                }
            },
            ["root/x is flat and has fallback_urls"],
        ),
        ({"devpi_indexes": {"root/x": {"type": "stage", "flat": True}}}, ["root/x is a stage", "flat"]),
        ({"devpi_indexes": {"root/x": {"type": "stage", "block": ["a"]}}}, ["root/x is a stage", "block"]),
        ({"devpi_indexes": {"root/pypi": {"blok": ["a"]}}}, ["root/pypi", 'unknown setting "blok"', "block"]),
        ({"devpi_indexes": {"root/pypi": {"block": "evil"}}}, ["root/pypi", "block", "list"]),
        ({"devpi_indexes": {"root/pypi": {"allow": ["a", "b>>1"]}}}, ["root/pypi", '"b>>1" in allow', "pkg>=2,<2.3"]),
        ({"devpi_indexes": {"root/pypi": {"block": ["b[c]"]}}}, ["root/pypi", '"b[c]" in block', "without extras"]),
        ({"devpi_indexes": {"root/pypi": {"min_age_days": "x"}}}, ["root/pypi", "min_age_days", "from 0 to 36500"]),
        ({"devpi_indexes": {"root/pypi": {"min_age_days": 99999}}}, ["root/pypi", "99999", "from 0 to 36500"]),
        ({"devpi_indexes": {"root/pypi": {"min_age_undated": "no"}}}, ["min_age_undated", "'no'", "hidden, shown"]),
        ({"devpi_min_age_days": "a week"}, ["devpi_min_age_days", '"a week"', "from 0 to 36500"]),
        ({"devpi_min_age_days": 1.5}, ["devpi_min_age_days", '"1.5"', "whole number"]),
        ({"devpi_min_age_undated": "maybe"}, ["devpi_min_age_undated", '"maybe"', "hidden, shown"]),
        ({"devpi_block": "evil"}, ["devpi_block", '"evil"', "INI inventory"]),
        ({"devpi_block": ["good", "e vil"]}, ["devpi_block", '"e vil"', "pkg>=2,<2.3"]),
        ({"devpi_block": [7]}, ["devpi_block", '"7"', "a name"]),
        ({"devpi_allow": ["x; python_version<'3'"]}, ["devpi_allow", "without extras, markers"]),
        ({"devpi_indexes": {"root/pypi": {"file_hosts": "10.0.0.1"}}}, ["root/pypi", "file_hosts", "list"]),
        (
            {"devpi_indexes": {"root/pypi": {"file_hosts": ["10.0.0.1:8080", "http://files.lan/"]}}},
            ["root/pypi", '"http://files.lan/"', "host:port"],
        ),
        (
            {"devpi_indexes": {"root/x": {"type": "stage", "mirror_url": "http://m/"}}},
            ["root/x is a stage", "mirror_url"],
        ),
        ({"devpi_indexes": {"root/x": {"type": "stage", "base": []}}}, ["root/x", 'unknown setting "base"', "bases"]),
        ({"devpi_indexes": {"root/x": {"type": "stage", "bases": "root/pypi"}}}, ["root/x", "bases", "list"]),
        ({"devpi_indexes": {"root/x": {"type": "stage", "volatile": "maybe"}}}, ["root/x", "volatile", "true, false"]),
        ({"devpi_indexes": {"root/x": {"type": "stage", "bases": ["root/y"]}}}, ["root/x", '"root/y"', "not declared"]),
        (
            {"devpi_indexes": {"root/x": {"type": "stage", "acl_upload": [":ANONYMOUS:"]}}},
            ["root/x", '":ANONYMOUS:"', "no user"],
        ),
        (
            {
                "devpi_indexes": {
                    "root/x": {"type": "stage", "bases": ["root/y"]},
                    "root/y": {"type": "stage", "bases": ["root/x"]},
                }
            },
            ["root/x -> root/y -> root/x is a cycle"],
        ),
        ({"devpi_server_names": "pypi.lab.lan"}, ["devpi_server_names", "list"]),
        ({"devpi_server_names": ["http://pypi.lab.lan"]}, ["devpi_server_names", "without scheme"]),
        ({"devpi_data_dir": "srv/devpi"}, ["devpi_data_dir", '"srv/devpi"', "absolute"]),
        ({"devpi_data_dir": "/"}, ["devpi_data_dir", "absolute"]),
        ({"devpi_backup_dir": "backups"}, ["devpi_backup_dir", '"backups"', "absolute"]),
        ({"devpi_data_dir": "/srv/devpi", "devpi_backup_dir": "/srv/devpi/old"}, ["devpi_backup_dir", "neither"]),
        ({"devpi_backup_keep": 0}, ["devpi_backup_keep", '"0"', "1 to 1000"]),
        ({"devpi_backup_cache": "all"}, ["devpi_backup_cache", '"all"', "true, false"]),
        ({"devpi_ca_bundle": "ca.pem"}, ["devpi_ca_bundle", '"ca.pem"', "absolute"]),
        ({"devpi_http_proxy": "proxy:3128"}, ["devpi_http_proxy", '"proxy:3128"', "http://"]),
        ({"devpi_http_proxy": "u:hush@proxy:3128"}, ["devpi_http_proxy", "http://"]),
        ({"devpi_pip_index_url": "mirror/simple"}, ["devpi_pip_index_url", '"mirror/simple"']),
        ({"devpi_port": None}, ["devpi_port is null", "1024 to 65532"]),
        ({"devpi_port": 1.5}, ["devpi_port", '"1.5"', "whole number"]),
        ({"devpi_port": "40.5"}, ["devpi_port", '"40.5"', "whole number"]),
        ({"devpi_port": True}, ["devpi_port", '"True"', "whole number"]),
        ({"devpi_port": ""}, ["devpi_port", '""', "whole number"]),
        ({"devpi_port": [3141]}, ["devpi_port", '"[3141]"', "whole number"]),
        ({"devpi_port": 65532, "devpi_peers": [REPLICA]}, ["devpi_port", "65532", "5 ports", "at most 65531"]),
        ({"devpi_remove_undeclared": "maybe"}, ["devpi_remove_undeclared", '"maybe"', "true, false"]),
        ({"devpi_remove_undeclared": None}, ["devpi_remove_undeclared is null", "true, false"]),
        ({"devpi_backup_cache": 2}, ["devpi_backup_cache", '"2"', "true, false"]),
        ({"devpi_remove_data": "all"}, ["devpi_remove_data", '"all"', "true, false"]),
        ({"devpi_role": None}, ["devpi_role is null", "primary, replica"]),
        ({"devpi_upstream": None}, ["devpi_upstream is null", "aliyun"]),
        ({"devpi_mirror_url": None}, ["devpi_mirror_url is null", "a text"]),
        ({"devpi_http_proxy": None}, ["devpi_http_proxy is null", "empty or a URL"]),
        ({"devpi_metrics_file": None}, ["devpi_metrics_file is null", "empty or"]),
        ({"devpi_malware_list": None}, ["devpi_malware_list is null", "empty, a URL"]),
        ({"devpi_malware_list": "/home/alice/all.zip"}, ["devpi_malware_list", '"/home/alice/all.zip"', "outside"]),
        ({"devpi_malware_list": "https://u:hush@example.org/"}, ["devpi_malware_list", "without a password"]),
        ({"devpi_malware_list": "all.zip"}, ["devpi_malware_list", '"all.zip"', "absolute"]),
        ({"devpi_backup_fetch_to": 7}, ["devpi_backup_fetch_to", '"7"', "folder"]),
        ({"devpi_restore_from": "old.tar"}, ["devpi_restore_from", '"old.tar"', "absolute"]),
        ({"devpi_root_password": None}, ["devpi_root_password", "8 characters"]),
        ({"devpi_secret": "hush"}, ["devpi_secret", "32 characters"]),
        ({"devpi_address": "mirror.lab.lan"}, ["devpi_address", '"mirror.lab.lan"', "IPv4"]),
        ({"devpi_address": None}, ["devpi_address is null", "IPv4"]),
        ({"devpi_users": None}, ["devpi_users must be a list"]),
        ({"devpi_users": "[{name: hush}]"}, ["devpi_users must be a list"]),
        ({"devpi_indexes": None}, ["devpi_indexes is null", "mapping"]),
        ({"devpi_indexes": "{}"}, ["devpi_indexes", '"{}"', "mapping"]),
        ({"devpi_server_names": None}, ["devpi_server_names is null", "list"]),
        ({"devpi_server_names": [1]}, ["devpi_server_names", "list"]),
        (
            {"devpi_indexes": {"root/pypi": {"mirror_cache_expiry": "soon"}}},
            ["root/pypi", "mirror_cache_expiry", "'soon'", "whole number"],
        ),
        ({"devpi_data_dir": "/srv/../devpi"}, ["devpi_data_dir", '"/srv/../devpi"', "without . and .."]),
        ({"devpi_data_dir": "/var/backups/devpi/data"}, ["devpi_backup_dir", "neither may be in the other"]),
        ({"devpi_data_dir": None}, ["devpi_data_dir is null", "absolute"]),
    ],
)
def test_bad_input_gets_one_message(variables: dict[str, Any], words: list[str]) -> None:
    messages = refusals(**variables)
    assert len(messages) == 1
    for word in words:
        assert word in messages[0]
    assert "hush" not in messages[0]
    assert "\n" not in messages[0]
    password = variables.get("devpi_root_password")
    assert password is None or str(password) not in messages[0].replace("8 characters", "")


def test_host_without_a_python_for_devpi_is_refused() -> None:
    (message,) = refusals({"python": {"version": {"major": 3, "minor": 10}}})
    assert "Python 3.10" in message
    assert "3.11" in message


def test_all_that_is_wrong_is_said_at_once() -> None:
    messages = refusals(devpi_port="http", devpi_role="master", devpi_users=[{"name": "root"}])
    assert [message.split()[0] for message in messages] == ["devpi_port", "devpi_role", "devpi_users"]


def test_text_becomes_numbers_and_switches() -> None:
    text = {
        "devpi_port": "4000",
        "devpi_request_timeout": " 7",
        "devpi_pages_max_stale": "240",
        "devpi_max_upload_mib": "2",
        "devpi_mirror_cache_expiry": "60",
        "devpi_mirror_no_project_list": "no",
        "devpi_indexes": {"root/x": {"type": "mirror", "mirror_url": "http://m/", "volatile": "False", "flat": "true"}},
    }
    native = {**text, "devpi_port": 4000, "devpi_request_timeout": 7, "devpi_pages_max_stale": 240}
    native |= {"devpi_max_upload_mib": 2, "devpi_mirror_cache_expiry": 60, "devpi_mirror_no_project_list": False}
    native["devpi_indexes"] = {"root/x": {"type": "mirror", "mirror_url": "http://m/", "volatile": False, "flat": True}}
    for template in sorted(path.name for path in (ROLE / "templates").iterdir()):
        assert render("devpi", template, **text) == render("devpi", template, **native), template
    settings = evaluate("devpi", "{{ __devpi_indexes }}", **text)
    assert settings == evaluate("devpi", "{{ __devpi_indexes }}", **native)
    assert settings["root/pypi"]["mirror_cache_expiry"] == 60
    assert settings["root/pypi"]["mirror_no_project_list"] is False


# ---- where devpi has its data --------------------------------------------------------------------------------


def devpi_in(folder: Path, uuid: str = "one", written: float = 1000.9) -> Path:
    """Make a folder with as much of devpi's data as the module looks at."""
    folder.mkdir()
    (folder / ".nodeinfo").write_text(json.dumps({"uuid": uuid, "role": "primary"}))
    (folder / ".sqlite").touch()
    os.utime(folder / ".sqlite", (written, written))
    return folder


def test_data_that_another_folder_would_lose(tmp_path: Path) -> None:
    old = devpi_in(tmp_path / "old")
    (tmp_path / "link").symlink_to(old)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    devpi_in(tmp_path / "copy", written=1000.1)
    devpi_in(tmp_path / "newer", written=2000)
    devpi_in(tmp_path / "older", written=500)
    devpi_in(tmp_path / "other", uuid="two")
    (devpi_in(tmp_path / "half") / ".sqlite").unlink()
    shutil.copytree(tmp_path / "copy", tmp_path / "behind", copy_function=shutil.copy2)
    why = {path.name: data.problem(old, path).removeprefix(f"{path} ") for path in sorted(tmp_path.iterdir())}
    assert why == {
        "behind": "",
        "copy": "",
        "empty": "has none",
        "file": "has none",
        "half": "has none",
        "link": "",
        "newer": "",
        "old": "",
        "older": "has an older copy of it",
        "other": "has the data of another devpi",
    }
    assert data.problem(tmp_path / "link", old) == ""
    # Put aside, never begun, or taken away with its disk: nothing is lost.
    assert [data.problem(tmp_path / name, tmp_path / "empty") for name in ("gone", "empty", "half")] == [""] * 3
    # What was uploaded since the copy is in the log of the database alone.
    (old / ".sqlite-wal").touch()
    assert data.problem(old, tmp_path / "behind").endswith("has an older copy of it")


def test_module_compares_the_installed_folder_with_the_wanted_one(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    conf.mkdir()
    old = devpi_in(tmp_path / "old")
    (conf / "devpi-server.yml").write_text(render("devpi", "devpi-server.yml.j2", devpi_data_dir=str(old)))
    look: dict[str, Any] = {"conf_dir": str(conf)}
    found = run_module(Path(data.__file__), tmp_path, **look, data_dir=str(tmp_path / "new"))
    assert (found["installed"], found["problem"]) == (str(old), f"{tmp_path}/new has none")
    assert run_module(Path(data.__file__), tmp_path, **look, data_dir=str(old))["problem"] == ""
    (conf / "devpi-server.yml").unlink()
    assert run_module(Path(data.__file__), tmp_path, **look, data_dir=str(tmp_path / "new"))["problem"] == ""


def test_installed_configuration_says_where_devpi_has_its_data(tmp_path: Path) -> None:
    assert data.setting(tmp_path / "devpi-server.yml", "serverdir") == ""
    for template, key in (("devpi-server.yml.j2", "serverdir"), ("lanmirror.toml.j2", "backups")):
        (tmp_path / "file").write_text(
            render("devpi", template, devpi_data_dir="/srv/devpi/", devpi_backup_dir="/srv/devpi")
        )
        assert data.setting(tmp_path / "file", key) == "/srv/devpi"


@pytest.mark.parametrize("empty", [True, False])
def test_only_what_devpi_made_is_deleted(tmp_path: Path, empty: bool) -> None:
    folder = devpi_in(tmp_path / "data")
    (folder / "+files/lab/dev").mkdir(parents=True)
    (folder / ".lanmirror-aside/upgrade").mkdir(parents=True)
    (folder / ".sqlite-wal").touch()
    (tmp_path / "link").symlink_to(folder)
    if not empty:
        (folder / "thesis.tex").touch()
        (folder / ".sqlite.mine").touch()
    assert data.delete(tmp_path / "link", data.DATA) is empty
    assert folder.exists() is not empty
    if not empty:
        assert sorted(path.name for path in folder.iterdir()) == [".sqlite.mine", "thesis.tex"]
    assert (tmp_path / "link").is_symlink() is not empty
    assert data.ours(tmp_path / "gone", data.DATA) == []


def test_only_backups_are_deleted(tmp_path: Path) -> None:
    names = ("devpi-20261124T090000Z", "devpi-20261124T090000Z.tar", ".devpi-20261125T090000Z.partial")
    for name in (*names, "devpi-notes", "backup.tar"):
        (tmp_path / name).touch()
    assert sorted(path.name for path in data.ours(tmp_path, data.BACKUP)) == sorted(names)


def test_empty_setting_does_not_take_the_next_line(tmp_path: Path) -> None:
    (tmp_path / "lanmirror.toml").write_text(render("devpi", "lanmirror.toml.j2"))
    assert data.setting(tmp_path / "lanmirror.toml", "metrics") == ""
    (tmp_path / "lanmirror.toml").write_text(render("devpi", "lanmirror.toml.j2", devpi_metrics_file="/srv/pypi.prom"))
    assert data.setting(tmp_path / "lanmirror.toml", "metrics") == "/srv/pypi.prom"


def test_settings_of_older_roles_say_it_too(tmp_path: Path) -> None:
    (tmp_path / "backups/devpi-20261124T090000Z").mkdir(parents=True)
    (tmp_path / "life.toml").write_text(f'data = "/srv/devpi"\nbackups = "{tmp_path}/backups"\n')
    (tmp_path / "watch.ini").write_text("[watch]\nmetrics = /srv/pypi.prom\n")
    found = run_module(Path(data.__file__), tmp_path, conf_dir=str(tmp_path))
    assert (found["folders"], found["metrics"]) == ([f"{tmp_path}/backups"], "/srv/pypi.prom")


# ---- the module: what it decides -----------------------------------------------------------------------------

MIRROR = {"type": "mirror", "volatile": False, "mirror_url": "https://a.example/simple/"}


def test_plan_makes_what_is_missing() -> None:
    (change,) = devpi.plan({}, {"root/pypi": MIRROR}, remove=False)
    assert (change.method, change.index, change.after) == ("PUT", "root/pypi", MIRROR)
    assert str(change) == "make root/pypi: mirror_url, type, volatile"


def test_plan_changes_in_place_and_keeps_what_is_not_declared() -> None:
    before = {**MIRROR, "title": "ours"}
    (change,) = devpi.plan(
        {"root/pypi": before}, {"root/pypi": {**MIRROR, "mirror_url": "https://b.example/"}}, remove=False
    )
    assert change.method == "PATCH"
    assert change.after == {**before, "mirror_url": "https://b.example/"}
    assert str(change) == "change root/pypi: mirror_url"


def test_plan_does_nothing_where_all_is_well() -> None:
    current: dict[str, Any] = {"root/pypi": {**MIRROR, "title": "ours"}, "a/b": {"type": "stage"}}
    assert devpi.plan(current, {"root/pypi": MIRROR}, remove=False) == []


def test_plan_refuses_another_type() -> None:
    with pytest.raises(devpi.DevpiError, match="root/pypi is a mirror index and cannot become a stage index"):
        devpi.plan({"root/pypi": MIRROR}, {"root/pypi": {"type": "stage"}}, remove=False)


def test_plan_makes_bases_first_and_removes_them_last_and_only_when_asked() -> None:
    wanted: dict[str, Any] = {
        "lab/prod": {"type": "stage", "bases": ["lab/dev"]},
        "lab/dev": {"type": "stage", "bases": ["root/pypi"]},
    }
    current: dict[str, Any] = {
        "root/pypi": MIRROR,
        "old/a": {"type": "stage"},
        "old/b": {"type": "stage", "bases": ["old/a"]},
    }
    changes = devpi.plan(current, {"root/pypi": MIRROR, **wanted}, remove=True)
    assert [(change.method, change.index) for change in changes] == [
        ("PUT", "lab/dev"),
        ("PUT", "lab/prod"),
        ("DELETE", "old/b"),
        ("DELETE", "old/a"),
    ]
    assert str(changes[2]) == "remove old/b"
    assert [change.method for change in devpi.plan(current, wanted, remove=False)] == ["PUT", "PUT"]


def test_order_matters_for_bases_and_not_for_people() -> None:
    before: dict[str, Any] = {"type": "stage", "bases": ["a/b", "c/d"], "acl_upload": ["alice", "bob"]}
    people: dict[str, Any] = {"lab/dev": {"type": "stage", "acl_upload": ["bob", "alice"]}}
    bases: dict[str, Any] = {"lab/dev": {"type": "stage", "bases": ["c/d", "a/b"]}}
    assert devpi.plan({"lab/dev": before}, people, remove=False) == []
    assert [str(change) for change in devpi.plan({"lab/dev": before}, bases, remove=False)] == ["change lab/dev: bases"]


def test_official_upstream_is_asked_for_only_where_it_is_wanted() -> None:
    def never() -> dict[str, Any]:
        raise AssertionError

    assert devpi.complete({"root/pypi": MIRROR}, never) == {"root/pypi": MIRROR}
    official = {"mirror_url": "https://official.example/"}
    done = devpi.complete({"root/pypi": {"type": "mirror", "official": True}}, lambda: official)
    assert done == {"root/pypi": {"type": "mirror", **official}}


def test_passwords_in_urls_are_masked() -> None:
    shown = devpi.shown({"mirror_url": "https://u:hush@m.example/simple/", "bases": ["a/b"], "volatile": True})
    assert "hush" not in shown
    assert json.loads(shown) == {"mirror_url": "https://***@m.example/simple/", "bases": ["a/b"], "volatile": True}


# ---- the module: what it says to devpi -----------------------------------------------------------------------


@contextmanager
def server(passwords: dict[str, str]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Stand in for devpi's login; the real one is in the Molecule scenario."""
    seen: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            seen.append((self.command, self.path))
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            status = 200
            result: dict[str, str] = {}
            if self.path == "/+login":
                good = body["password"] == passwords["root"]
                status, result = (200, {"password": "token"}) if good else (401, {})
            elif self.command == "PATCH":
                passwords["root"] = body["password"]
            text = json.dumps({"result": result, "message": "see http://u:hush@m.example/"}).encode()
            self.send_response(418 if self.path == "/refused" else status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PATCH = answer  # noqa: N815 - the names that http.server wants

        def log_message(self, format: str, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}", seen
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


@pytest.mark.parametrize("known", ["old password", "new password", "of a run before"])
def test_password_change_is_finished_wherever_it_was_cut_short(tmp_path: Path, known: str) -> None:
    file = tmp_path / "root-password"
    file.write_text("old password")
    (tmp_path / "root-password.new").write_text("of a run before")
    passwords = {"root": known}
    with server(passwords) as (url, _):
        devpi.rotate(devpi.Devpi(url), file, "new password")
    assert passwords["root"] == file.read_text() == "new password"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_made_up_password_is_on_the_disk_before_devpi_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "root-password"
    file.write_text("old password")
    theirs = devpi.Devpi.must

    def cut_short(self: Any, *asked: Any) -> None:
        theirs(self, *asked)
        raise KeyboardInterrupt

    passwords = {"root": "old password"}
    with server(passwords) as (url, _):
        monkeypatch.setattr(devpi.Devpi, "must", cut_short)
        with pytest.raises(KeyboardInterrupt):
            devpi.rotate(devpi.Devpi(url), file, "made up")
        monkeypatch.undo()
        assert passwords["root"] == "made up"
        # Another run makes up another, or wants none.
        devpi.log_in(devpi.Devpi(url), file)
        assert file.read_text() == "made up"
        devpi.rotate(devpi.Devpi(url), file, "made up once more")
    assert passwords["root"] == file.read_text() == "made up once more"


def test_password_that_nobody_knows(tmp_path: Path) -> None:
    file = tmp_path / "root-password"
    file.write_text("old password")
    with (
        server({"root": "another"}) as (url, _),
        pytest.raises(devpi.DevpiError, match=r"the password in .* is not root's"),
    ):
        devpi.rotate(devpi.Devpi(url), file, "new password")
    assert file.read_text() == "old password"


def test_refusal_says_what_was_asked_and_shows_no_password() -> None:
    with server({"root": "x"}) as (url, _), pytest.raises(devpi.DevpiError) as caught:
        devpi.Devpi(url).must("GET", "/refused")
    assert str(caught.value) == "devpi refuses GET /refused with 418: see http://***@m.example/"


@pytest.mark.parametrize("body", [b"", b"<html>It works</html>", b'{"result": {}}', b"[1]", b"null"])
def test_port_that_another_program_has_is_named(body: bytes) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    try:
        with pytest.raises(devpi.DevpiError, match=f"another program than devpi answers on port {httpd.server_port}"):
            devpi.Devpi(f"http://127.0.0.1:{httpd.server_port}").wait(5)
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


# ---- more than one server ------------------------------------------------------------------------------------


def test_replica_asks_its_primary_by_nginx() -> None:
    text = render("devpi", "devpi-server.yml.j2", devpi_role="replica", devpi_peers=[REPLICA, PRIMARY])
    settings = yaml.safe_load(text)["devpi-server"]
    assert (settings["role"], settings["primary-url"]) == ("replica", "http://127.0.0.1:3146")
    assert settings["request-timeout"] == 10
    alone = yaml.safe_load(render("devpi", "devpi-server.yml.j2"))["devpi-server"]
    assert alone["role"] == "primary"
    primary = yaml.safe_load(render("devpi", "devpi-server.yml.j2", devpi_peers=[REPLICA]))["devpi-server"]
    assert primary["role"] == "primary"


def test_nginx_takes_the_peers_for_what_devpi_does_not_answer() -> None:
    site = render("devpi", "devpi-http.conf.j2", devpi_peers=[REPLICA, PRIMARY])
    assert "server 127.0.0.1:3145 max_fails=0 backup; # mirror2" in site
    assert "proxy_pass https://lanmirror_devpi_peer_1;" in site
    assert site.count("proxy_ssl_verify on;") == 1
    assert "proxy_ssl_trusted_certificate /etc/devpi/peer-mirror.pem;" in site
    assert re.findall(r"(?m)^    (allow|deny) (\S+);", site) == [
        ("allow", "192.0.2.11"),
        ("allow", "192.0.2.10"),
        ("deny", "all"),
    ]
    assert "peer" not in render("devpi", "devpi-http.conf.j2")


@pytest.mark.parametrize(
    ("role", "peers", "message"),
    [
        ("primary", [], ""),
        ("replica", [PRIMARY], ""),
        ("primary", [REPLICA], ""),
        ("replica", [], "devpi_role is replica on mirror3, and there is no primary"),
        ("primary", [PRIMARY], "devpi_role is primary on mirror3 and mirror,"),
        ("replica", [{**PRIMARY, "url": "http://192.0.2.12:80"}], "which is mirror3 itself"),
        ("replica", [{**PRIMARY, "url": "mirror.lab.lan"}], 'has the URL "mirror.lab.lan"'),
        ("replica", [{**PRIMARY, "tls_name": ""}], "nginx_tls_names"),
        ("replica", [{**PRIMARY, "role": "master"}], 'has the role "master": allowed are primary, replica'),
        ("replica", "mirror", "it must be a list"),
    ],
)
def test_servers_that_do_not_fit_together_are_refused(role: str, peers: Any, message: str) -> None:
    problems = checked.devpi_peer_problems(peers, "mirror3", role, {"all_ipv4_addresses": ["192.0.2.12"]})
    assert message in "; ".join(problems)
    assert bool(problems) == bool(message)
