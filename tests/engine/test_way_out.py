"""The way to the upstream: through a proxy, and with the certificate authority of whoever stands in between."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.engine.lab import Lab
from tests.upstream import server

LINUX = "pkgs/main/linux-64"


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY"])
def test_a_proxy_of_the_environment_is_used(lab: Lab, variable: str) -> None:
    lab.settings["upstream"] = {"repo": "http://mirror.invalid", "cloud": "http://mirror.invalid/cloud"}
    run = lab.sync(env={variable: lab.upstream.url})
    assert run.code == 0, run.log
    lab.check()


def test_no_proxy_is_heeded(lab: Lab) -> None:
    run = lab.sync(env={"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"})
    assert run.code == 0, run.log


def authority(folder: Path) -> tuple[Path, Path]:
    """Make an authority that vouches for 127.0.0.1; return its certificate, and the server's with its key."""
    now = datetime.datetime.now(datetime.UTC)

    def sign(name: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, *, ca: bool) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the lab")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
        )
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    (folder / "ca.pem").write_bytes(sign("the lab", root, root, ca=True))
    secret = leaf.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(sign("upstream", leaf, root, ca=False) + secret)
    return folder / "ca.pem", folder / "server.pem"


@pytest.fixture
def behind_tls(lab: Lab) -> Iterator[Path]:
    """Put an upstream behind TLS; yield the certificate of the authority that vouches for it."""
    ca, certificate = authority(lab.folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    secured = server.Upstream(lab.tree)
    secured.wrap(context)
    secured.start()
    url = secured.url.replace("http://", "https://")
    lab.settings["upstream"] = {"repo": url, "cloud": f"{url}/cloud"}
    yield ca
    secured.stop()


def test_an_unknown_authority_is_refused(lab: Lab, behind_tls: Path) -> None:
    run = lab.sync()
    assert run.code == 5, behind_tls
    assert "certificate" in run.log


def test_an_authority_of_the_configuration(lab: Lab, behind_tls: Path) -> None:
    lab.settings["ca_bundle"] = str(behind_tls)
    run = lab.sync()
    assert run.code == 0, run.log
    lab.check()


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_an_authority_of_the_environment(lab: Lab, behind_tls: Path, variable: str) -> None:
    run = lab.sync(env={variable: str(behind_tls)})
    assert run.code == 0, run.log


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/elsewhere"])
def test_redirects_that_lead_astray_are_refused(lab: Lab, target: str) -> None:
    lab.fault("/elsewhere", status=302, headers={"Location": "/elsewhere"})
    lab.fault(f"/{LINUX}/lib0003-1.3-0.conda", status=302, headers={"Location": target})
    run = lab.sync()
    assert run.code == 1
    assert "redirects" in run.log
    lab.check()
