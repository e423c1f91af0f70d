"""Role nginx: what its templates come out as."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from lanmirror_sync import __version__

from tests.roles.render import ROOT, defaults, evaluate, python_file, render, tasks, written

variables = python_file(ROOT / "roles/nginx/filter_plugins/nginx_variables.py")


def test_main_file_has_the_limits_of_the_variables_given_as_text_too() -> None:
    text = render("nginx", "nginx.conf.j2", nginx_worker_connections="77")
    assert "worker_connections 77;" in text


def test_settings_of_our_servers_hold_for_no_other_site() -> None:
    main, site = render("nginx", "nginx.conf.j2"), render("nginx", "lanmirror.conf.j2")
    for setting in ("client_max_body_size", "keepalive_timeout", "open_file_cache", "sendfile_max_chunk"):
        assert setting in render("nginx", "server.conf.j2")
        assert setting not in main
    at_http = re.sub(r"\{[^{}]*\}", "", re.sub(r"(?s)server \{.*?\n\}", "", site))
    assert set(re.findall(r"(?m)^\w+", at_http)) == {"geo", "map", "limit_conn_zone", "limit_req_zone", "include"}


def test_names_at_the_level_of_http_have_our_prefixes() -> None:
    text = render("nginx", "lanmirror.conf.j2") + render("devpi", "devpi-http.conf.j2")
    names = re.findall(r"(?m)^(?:(?:map|geo) .* \$|upstream |log_format |split_clients \S+ \$)(\w+)", text)
    names += re.findall(r"(?:zone|keys_zone)=(\w+)", text)
    assert len(names) > 20
    assert [name for name in names if not name.startswith(("lanmirror_", "devpi_"))] == []
    # Each of these at the level of `http` would change the sites of others.
    assert (
        re.findall(r"(?m)^(?:access_log|client_|proxy_(?!cache_path)|gzip|ssl_|limit_req |keepalive_\w+ )", text) == []
    )


def test_no_access_log_leaves_the_log_of_a_site() -> None:
    text = render("nginx", "log.conf.j2", nginx_access_log="no")
    # `off` would also hold for a site's log of its own.
    assert "access_log /dev/null combined if=0;" in text
    assert "access_log off;" not in text
    assert "access_log /var/log/nginx/access.log;" in render("nginx", "log.conf.j2")


def test_site_with_names_leaves_the_default_server_to_others() -> None:
    given = {"nginx_default_server": "false", "nginx_server_names": ["mirror.lab.lan", "192.0.2.10"]}
    for tls in ("none", "site_ca"):
        text = render("nginx", "lanmirror.conf.j2", nginx_tls=tls, **given)
        assert "default_server" not in text
        assert "server_name _" not in text
        assert "server_name mirror.lab.lan 192.0.2.10;" in text


@pytest.mark.parametrize(
    ("tls", "wanted"), [("none", ("http", "")), ("own", ("https", "")), ("site_ca", ("https", "/lanmirror-ca.crt"))]
)
def test_part_of_the_portal_knows_scheme_and_root(tls: str, wanted: tuple[str, str]) -> None:
    (given,) = [task["vars"] for task in tasks("nginx", "site.yml") if "__nginx_site_fragment" in task.get("vars", {})]
    names = ("nginx_site_scheme", "nginx_site_root_url")
    assert tuple(evaluate("nginx", given[name], nginx_tls=tls) for name in names) == wanted


def test_foot_of_the_portal_has_the_version_and_the_head_the_root() -> None:
    assert f"lanmirror {__version__}<" in render("nginx", "99-foot.html.j2")
    assert 'href="/lanmirror-ca.crt"' in render("nginx", "00-head.html.j2", nginx_tls="site_ca")
    assert (
        "location = /lanmirror-ca.crt" in render("nginx", "lanmirror.conf.j2", nginx_tls="site_ca").split("443 ssl")[1]
    )
    assert "lanmirror-ca.crt" not in render("nginx", "00-head.html.j2")


def test_default_server_listens_on_one_port_and_on_both_families_where_there_are_two() -> None:
    text = render("nginx", "lanmirror.conf.j2", nginx_port=8080)
    assert text.count("listen ") == 1
    assert "listen 8080 default_server;" in text
    both = render("nginx", "lanmirror.conf.j2", ansible_facts={"all_ipv6_addresses": ["2001:db8::1"]})
    assert "listen 80 default_server;" in both
    assert "listen [::]:80 default_server;" in both


def test_named_host_has_the_locations_of_its_own_or_those_of_the_default_server() -> None:
    site = {"nginx_site_name": "devpi", "nginx_site_server_names": ["pypi.lab.lan", "pypi"]}
    text = render("nginx", "vhost.conf.j2", **site)
    assert "server_name pypi.lab.lan pypi;" in text
    assert "include /etc/nginx/lanmirror/devpi/locations.conf;" in text
    own = render("nginx", "vhost.conf.j2", **site, nginx_site_vhost_locations="own.conf.j2")
    assert "include /etc/nginx/lanmirror/devpi/vhost-locations.conf;" in own


def test_title_of_the_portal_is_escaped() -> None:
    assert "<h1>A &amp; B</h1>" in render("nginx", "00-head.html.j2", nginx_portal_title="A & B")


def test_each_file_of_nginx_passes_the_check_before_it_takes_its_place() -> None:
    ours = [
        (one["path"], task["host_files"].get("check"))
        for file in ("configure.yml", "main_file.yml", "site.yml")
        for task in tasks("nginx", file)
        for one in written("nginx", task, nginx_site_name="x", nginx_site_portal="00-head.html.j2")
        if one["path"].startswith("/etc/nginx") and one.get("state") != "directory"
    ]
    assert {"/etc/nginx/nginx.conf", "/etc/nginx/conf.d/lanmirror.conf", "/etc/nginx/lanmirror/x/http.conf"} < {
        path for path, _ in ours
    }
    assert {check for _, check in ours} == {"{{ __nginx_check }}"}


# ---- the check of a configuration with one file replaced --------------------------------------------------------


def test_check_tests_a_copy_with_one_file_replaced(tmp_path: Path) -> None:
    folder, bin_dir = tmp_path / "nginx", tmp_path / "bin"
    for name in ("conf.d", "sites-available", "sites-enabled"):
        (folder / name).mkdir(parents=True)
    bin_dir.mkdir()
    # Shows what Nginx would read.
    (bin_dir / "nginx").write_text(
        '#!/bin/sh\ndir=$(dirname "$4")\ncat "$4" "$dir/sites-enabled/wiki" "$dir/conf.d/ours.conf"\n'
        'test -L "$dir/large"\n'
    )
    (bin_dir / "nginx").chmod(0o755)
    (folder / "nginx.conf").write_text(f"  pid /run/nginx.pid;\ninclude {folder}/conf.d/*.conf;\n")
    (folder / "conf.d/ours.conf").write_text("old\n")
    (folder / "sites-available/wiki").write_text(f"include {folder}/snippets/x;\n")
    (folder / "sites-enabled/wiki").symlink_to("../sites-available/wiki")
    (folder / "sites-enabled/dead").symlink_to("../sites-available/gone")
    (folder / "large").write_bytes(b"\0" * 1000)
    new = tmp_path / "new"
    new.write_text("new\n")
    script = tmp_path / "check"
    script.write_text(render("nginx", "nginx-check.j2").replace("/etc/nginx", str(folder)))
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    done = subprocess.run(
        ["sh", str(script), "conf.d/ours.conf", str(new)],
        env={"PATH": f"{bin_dir}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    pid, include, wiki, ours = done.stdout.splitlines()
    assert str(folder) not in done.stdout
    assert pid.startswith("pid /tmp/")
    assert include.endswith("/conf.d/*.conf;")
    assert wiki.endswith("/snippets/x;")
    assert ours == "new"
    assert {file: file.read_bytes() for file in before} == before


# ---- the variables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"nginx_port": "1.5"}, "nginx_port is "),
        ({"nginx_port": None}, "nginx_port is null"),
        ({"nginx_port": True}, "whole number from 1 to 65535"),
        ({"nginx_access_log": "maybe"}, "true or false"),
        ({"nginx_default_server": "no"}, "nginx_server_names is []"),
        ({"nginx_server_names": "mirror.lab.lan"}, "must be a list"),
        ({"nginx_tls_names": ["http://mirror"]}, "neither a host name nor an address"),
        ({"nginx_trusted_proxies": "192.0.2.7"}, "nginx_trusted_proxies is "),
        ({"nginx_trusted_proxies": ["proxy.lab.lan"]}, 'nginx_trusted_proxies has "proxy.lab.lan"'),
        ({"nginx_tls": "own"}, "nginx_tls_certificate"),
        ({"nginx_tls": "site_ca", "nginx_tls_port": "80"}, "both 80"),
    ],
)
def test_wrong_variables_are_refused(given: dict[str, object], words: str) -> None:
    said = variables.nginx_problems({**defaults("nginx"), **given})
    assert any(words in text for text in said), said


def test_numbers_and_switches_may_be_texts() -> None:
    given = {"nginx_port": "8080", "nginx_access_log": "no", "nginx_keepalive_timeout": " 0 "}
    assert variables.nginx_problems({**defaults("nginx"), **given}) == []


@pytest.mark.parametrize("bad", ["http://mirror", "mirror:443", "*.lab.lan", "a b", "", "a..b", "-a", "192.0.2.10/24"])
def test_text_that_is_no_name(bad: str) -> None:
    assert variables.bad_names(["mirror.lab.lan", "192.0.2.10", "::1", "[::1]", "MIRROR", bad]) == [bad]


@pytest.mark.parametrize(
    "bad", ["proxy.lab.lan", "10.0.0.1/24", "10.0.0.0/33", "10.0.0.0/255.0.0.0", "all", "", "[::1]", "10.0.0.0/24;"]
)
def test_text_that_is_no_network(bad: str) -> None:
    assert variables.bad_networks(["192.0.2.7", "10.0.0.0/24", "2001:db8::/32", "::1", bad]) == [bad]


def test_settings_that_the_tuned_main_file_would_gain() -> None:
    tuned = {"worker_connections": 8192, "pcre_jit": "on"}
    assert variables.nginx_gains({"worker_connections": "768", "pcre_jit": "on"}, tuned) == [
        "worker_connections 8192 (now 768)"
    ]
