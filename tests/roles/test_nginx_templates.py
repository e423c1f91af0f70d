"""Role nginx: what its templates come out as."""

from tests.roles.render import render


def test_main_configuration_has_the_limits_of_the_variables() -> None:
    text = render("nginx", "nginx.conf.j2", nginx_worker_connections=77, nginx_access_log=False)
    assert "worker_connections 77;" in text
    # `off` would also hold for what sites write into logs of their own.
    assert "access_log /dev/null combined if=0;" in text
    assert "access_log off;" not in text


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
