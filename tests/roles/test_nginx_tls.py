"""Role nginx: its own authority, the check of certificates that are brought along, and what Nginx is told of both."""

from __future__ import annotations

import datetime
import ssl
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from tests.roles.render import FACTS, python_file, render

ROLE = Path(__file__).parents[2] / "roles" / "nginx"
ADDRESSES = ["10.1.2.3", "192.0.2.10"]
SITE = {"hostname": "mirror", "default_ipv4": {"address": "192.0.2.10"}, "all_ipv4_addresses": ADDRESSES}


names = python_file(ROLE / "filter_plugins" / "nginx_tls.py")
module = python_file(ROLE / "library" / "nginx_certificate.py")


# ---- names -------------------------------------------------------------------------------------------------


def test_names_are_those_of_the_variable_and_what_the_server_is_reached_by() -> None:
    facts = {**SITE, "all_ipv6_addresses": ["2001:db8::7", "fd00::7", "fe80::7"]}
    assert names.tls_names(["PyPI.lab.lan", "2001:db8::9"], facts) == [
        *["localhost", "mirror", "pypi.lab.lan"],
        *["10.1.2.3", "127.0.0.1", "192.0.2.10", "::1", "2001:db8::9", "fd00::7"],
    ]
    assert names.tls_names([], {}) == ["localhost", "127.0.0.1", "::1"]


def test_order_of_facts_makes_no_difference() -> None:
    turned = {**SITE, "all_ipv4_addresses": ADDRESSES[::-1]}
    assert names.tls_names(["b", "a"], SITE) == names.tls_names(["a", "b", "a"], turned)


# ---- what Nginx is told ------------------------------------------------------------------------------------


def test_without_tls_there_is_one_server_on_one_port() -> None:
    text = render("nginx", "lanmirror.conf.j2")
    assert text.count("server {") == 1
    assert "ssl" not in text
    assert "listen 80;" in render("nginx", "listen.conf.j2")


def test_with_tls_plain_http_redirects_to_the_port_of_https() -> None:
    text = render("nginx", "lanmirror.conf.j2", nginx_tls="site_ca")
    redirect, site = text.split("server {")[1:]
    assert "listen 80 default_server;" in redirect
    assert "return 308 https://$host$request_uri;" in redirect
    assert "location = /lanmirror-ca.crt" in redirect
    assert "listen 443 ssl default_server;" in site
    assert "include /etc/nginx/lanmirror/tls.conf;" in site
    assert "ssl_certificate /etc/lanmirror/tls/server.pem;" in render("nginx", "tls.conf.j2", nginx_tls="site_ca")
    assert "listen 443 ssl;" in render("nginx", "listen.conf.j2", nginx_tls="site_ca")
    other = render("nginx", "lanmirror.conf.j2", nginx_tls="site_ca", nginx_tls_port=8443)
    assert "return 308 https://$host:8443$request_uri;" in other


def test_another_certificate_of_your_own_under_the_same_path_changes_the_configuration() -> None:
    own = {"nginx_tls": "own", "nginx_tls_certificate": "/a.pem", "nginx_tls_key": "/a.key"}
    texts = [render("nginx", "tls.conf.j2", **own, __nginx_own_certificate={"fingerprint": f}) for f in "ab"]
    assert texts[0] != texts[1]
    assert "ssl_certificate /a.pem;\nssl_certificate_key /a.key;" in texts[0]
    assert "lanmirror-ca.crt" not in render("nginx", "lanmirror.conf.j2", **own)


# ---- a certificate that is brought along -------------------------------------------------------------------

Key = CertificateIssuerPrivateKeyTypes


def pem(key: Key, password: bytes = b"") -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def certificate(key: Key, starts: int = -1, ends: int = 30) -> bytes:
    """Make one for mirror.lab.lan, *.wild.lan and 192.0.2.10; times in days from now."""
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mirror.lab.lan")])
    alt = [x509.DNSName("mirror.lab.lan"), x509.DNSName("*.wild.lan"), x509.IPAddress(ip_address("192.0.2.10"))]
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(starts))
        .not_valid_after(now + datetime.timedelta(ends))
        .add_extension(x509.SubjectAlternativeName(alt), critical=False)
    )
    return built.sign(key, SHA256()).public_bytes(serialization.Encoding.PEM)


KEY = ec.generate_private_key(ec.SECP256R1())


def put(folder: Path, cert: bytes, key: bytes) -> tuple[Path, Path]:
    files = folder / "mirror.pem", folder / "mirror.key"
    for file, text in zip(files, (cert, key), strict=True):
        file.write_bytes(text)
        file.chmod(0o600)
    return files


def test_a_good_certificate_is_known_by_its_fingerprint(tmp_path: Path) -> None:
    text = certificate(KEY)
    files = put(tmp_path, b"bag attributes\n" + text + certificate(ec.generate_private_key(ec.SECP256R1())), pem(KEY))
    found = module.check(*files, ["mirror.lab.lan", "a.wild.lan", "192.0.2.10"])
    assert found == x509.load_pem_x509_certificate(text).fingerprint(SHA256()).hex()


BAD = {
    "another key": (certificate(KEY), pem(ec.generate_private_key(ec.SECP256R1())), "do not belong together"),
    "another kind of key": (certificate(KEY), pem(rsa.generate_private_key(65537, 2048)), "do not belong together"),
    "expired": (certificate(KEY, -30, -1), pem(KEY), "mirror.pem has expired"),
    "not yet valid": (certificate(KEY, 1, 30), pem(KEY), "mirror.pem is not valid yet"),
    "no certificate": (b"text", pem(KEY), "mirror.pem holds no certificate"),
    "files swapped": (pem(KEY), certificate(KEY), "mirror.pem holds no certificate"),
    "no key": (certificate(KEY), certificate(KEY), "mirror.key holds no private key"),
    "encrypted": (certificate(KEY), pem(KEY, b"secret"), "mirror.key is encrypted"),
    "broken": (certificate(KEY).replace(b"M", b"N"), pem(KEY), "mirror.pem"),
    "weak": (certificate(weak := rsa.generate_private_key(65537, 1024)), pem(weak), "OpenSSL refuses them"),
}


@pytest.mark.parametrize(("cert", "key", "message"), BAD.values(), ids=BAD)
def test_what_a_server_cannot_use_is_named(tmp_path: Path, cert: bytes, key: bytes, message: str) -> None:
    with pytest.raises(module.BadCertificate, match=message):
        module.check(*put(tmp_path, cert, key), ["mirror.lab.lan"])


def test_names_that_are_not_in_the_certificate_are_all_named(tmp_path: Path) -> None:
    wanted = ["mirror.lab.lan", "other.lab.lan", "192.0.2.10", "192.0.2.11", "a.b.wild.lan"]
    with pytest.raises(module.BadCertificate, match=r"is not for other\.lab\.lan, 192\.0\.2\.11, a\.b\.wild\.lan: "):
        module.check(*put(tmp_path, certificate(KEY), pem(KEY)), wanted)


def test_a_key_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    files = put(tmp_path, certificate(KEY), pem(KEY))
    files[1].chmod(0o644)
    with pytest.raises(module.BadCertificate, match="chmod 600"):
        module.check(*files, ["mirror.lab.lan"])
    with pytest.raises(module.BadCertificate, match="No such file"):
        module.check(tmp_path / "none.pem", files[1], ["mirror.lab.lan"])


# ---- the site's own authority ------------------------------------------------------------------------------


class Authority:
    """The script of the role, as it comes out for one server, in a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.tls, self.portal = folder / "tls", folder / "www"
        self.tls.mkdir()
        self.portal.mkdir()

    def run(
        self, *wanted: str, days: int = 365, root_days: int = 3650, arguments: str = ""
    ) -> subprocess.CompletedProcess[str]:
        variables = {
            "nginx_tls": "site_ca",
            "nginx_tls_names": list(wanted),
            "ansible_facts": {**FACTS, **SITE},
            "__nginx_tls_dir": str(self.tls),
            "__nginx_portal_dir": str(self.portal),
            "__nginx_tls_days": days,
            "__nginx_tls_root_days": root_days,
        }
        for kind in ("root", "server"):
            (self.tls / f"{kind}.cnf").write_text(render("nginx", f"site-ca-{kind}.cnf.j2", **variables))
        script = self.tls.parent / "script"
        script.write_text(render("nginx", "site-ca.j2", **variables))
        return subprocess.run(["sh", str(script), *arguments.split()], capture_output=True, text=True, check=False)

    def make(self, *wanted: str, days: int = 365, root_days: int = 3650) -> list[str]:
        done = self.run(*wanted, days=days, root_days=root_days)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    def accepts(self, name: str) -> bool:
        """Whether a client that trusts the root takes the server for `name`."""
        client = ssl.create_default_context(cafile=self.tls / "ca.pem")
        server = module.serving(self.tls / "server.pem", self.tls / "server.pem")
        try:
            module.shake_hands(server, client, name)
        except ssl.SSLCertVerificationError:
            return False
        return True


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


BOTH = ["made the root certificate", "made the server's certificate"]


def test_authority_signs_for_names_and_addresses_and_nothing_else(authority: Authority) -> None:
    assert authority.make("pypi.lab.lan", "2001:db8::9") == BOTH
    for name in ("pypi.lab.lan", "mirror", "localhost", "192.0.2.10", "10.1.2.3", "127.0.0.1", "2001:db8::9"):
        assert authority.accepts(name), name
    for name in ("conda.lab.lan", "192.0.2.11", "10.1.2.4"):
        assert not authority.accepts(name), name
    assert (authority.portal / "lanmirror-ca.crt").read_bytes() == (authority.tls / "ca.pem").read_bytes()
    modes = {file.name: file.stat().st_mode & 0o777 for file in (*authority.tls.iterdir(), *authority.portal.iterdir())}
    assert {modes[name] for name in ("ca.key", "server.pem")} == {0o600}
    assert modes["lanmirror-ca.crt"] == 0o644
    assert not list(authority.tls.glob("new.*"))


def test_second_run_makes_nothing(authority: Authority) -> None:
    authority.make("mirror.lab.lan")
    before = {file.name: file.read_bytes() for file in authority.tls.iterdir()}
    assert authority.make("mirror.lab.lan") == []
    assert {file.name: file.read_bytes() for file in authority.tls.iterdir()} == before


def test_certificate_that_ends_soon_is_renewed_with_a_new_key(authority: Authority) -> None:
    authority.make("mirror.lab.lan", days=89)
    before = (authority.tls / "server.pem").read_text(), (authority.tls / "ca.pem").read_text()
    assert authority.make("mirror.lab.lan") == BOTH[1:]
    assert (authority.tls / "server.pem").read_text().split("PRIVATE KEY")[1] != before[0].split("PRIVATE KEY")[1]
    assert (authority.tls / "ca.pem").read_text() == before[1]
    assert authority.make("mirror.lab.lan") == []


def test_root_that_ends_soon_is_renewed_and_the_old_one_still_works(authority: Authority) -> None:
    authority.make("mirror.lab.lan", root_days=700)
    old = (authority.tls / "ca.pem").read_bytes()
    assert authority.make("mirror.lab.lan") == BOTH[:1]
    new = (authority.tls / "ca.pem").read_bytes()
    assert new != old
    assert authority.accepts("mirror.lab.lan")
    (authority.tls / "server.pem").unlink()
    assert authority.make("mirror.lab.lan") == BOTH[1:]
    (authority.tls / "ca.pem").write_bytes(old)
    assert authority.accepts("mirror.lab.lan")


def test_new_private_address_needs_no_new_root(authority: Authority) -> None:
    authority.make()
    assert authority.make("10.9.9.9") == BOTH[1:]
    assert authority.accepts("10.9.9.9")


@pytest.mark.parametrize("name", ["late.example", "198.51.100.7", "2001:db8::1"])
def test_name_that_the_root_may_not_sign_for_changes_nothing(authority: Authority, name: str) -> None:
    authority.make("mirror.lab.lan")
    before = (authority.tls / "server.pem").read_bytes()
    done = authority.run("mirror.lab.lan", name)
    assert done.returncode == 1
    assert "permitted subtree violation" in done.stderr
    assert "remove ca.pem" in done.stderr
    assert (authority.tls / "server.pem").read_bytes() == before
    (authority.tls / "ca.pem").unlink()
    assert authority.make("mirror.lab.lan", name) == BOTH
    assert authority.accepts(name)


def test_lost_and_damaged_files_are_made_again(authority: Authority) -> None:
    authority.make()
    (authority.tls / "server.pem").write_text("")
    assert authority.make() == BOTH[1:]
    (authority.tls / "ca.key").unlink()
    assert authority.make() == BOTH
    assert authority.accepts("mirror")


def test_trial_says_whether_the_root_may_sign_and_changes_nothing(authority: Authority) -> None:
    authority.make("mirror.lab.lan")
    kept = {file: file.read_bytes() for file in authority.tls.iterdir() if file.suffix in {".pem", ".key"}}
    trial = f"--try {authority.tls}/server.cnf"
    assert authority.run("mirror.lab.lan", "10.9.9.9", arguments=trial).returncode == 0
    assert "permitted subtree violation" in authority.run("late.example", arguments=trial).stderr
    assert {file: file.read_bytes() for file in kept} == kept
    (authority.tls / "ca.pem").unlink()
    assert authority.run("late.example", arguments=trial).returncode == 0
    assert not (authority.tls / "ca.pem").exists()


def test_names_that_the_root_may_not_sign_for_are_known_without_trying(authority: Authority) -> None:
    authority.make("mirror.lab.lan", "2001:db8::9")
    constraints = subprocess.run(
        ["openssl", "x509", "-noout", "-ext", "nameConstraints", "-in", str(authority.tls / "ca.pem")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    may = ["mirror.lab.lan", "sub.mirror.lab.lan", "10.9.9.9", "fd00::1", "192.0.2.10", "2001:db8::9", "localhost"]
    may_not = ["late.example", "amirror.lab.lan", "198.51.100.7", "2001:db8::1"]
    assert names.tls_unsignable([*may, *may_not], constraints) == may_not
    for name in may_not:
        assert authority.run("mirror.lab.lan", name, arguments=f"--try {authority.tls}/server.cnf").returncode == 1
    assert names.tls_unsignable(may_not, "") == []
