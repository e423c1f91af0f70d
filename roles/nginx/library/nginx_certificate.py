#!/usr/bin/python
"""Say what is wrong with a certificate and its key, by doing with them what a server and its clients do."""

from __future__ import annotations

import hashlib
import ssl
import stat
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
---
module: nginx_certificate
short_description: Check a certificate and its key, and change nothing
description:
  - Loads both as a TLS server does, and shakes hands with itself once for each name as a client does.
  - Needs nothing but Python on the host. Whether a client trusts the issuer is not looked at.
options:
  certificate:
    description: Absolute path of a PEM file, the server's own certificate first, then those between it and the root.
    type: path
    required: true
  key:
    description: Absolute path of the PEM file of its private key.
    type: path
    required: true
  names:
    description: Host names and addresses that the certificate must be good for.
    type: list
    elements: str
    required: true
author:
  - lanmirror
"""

EXAMPLES = """
- name: Check the certificate
  nginx_certificate:
    certificate: /etc/ssl/mirror.pem
    key: /etc/ssl/private/mirror.key
    names: [mirror.lab.lan, 192.0.2.10]
"""

RETURN = """
problem:
  description: What is wrong and how to mend it, or an empty string.
  type: str
  returned: always
fingerprint:
  description: The sha256 of the certificate, in hexadecimal, or an empty string.
  type: str
  returned: always
"""

# What OpenSSL says of a certificate as a client sees it (X509_V_ERR_… in its x509_vfy.h).
NOT_YET_VALID, EXPIRED, WRONG_NAMES = 9, 10, (62, 64)


class BadCertificate(ValueError):  # noqa: N818 -- it is said of the file, not of this program
    """The message names the file and the fix."""


def read(path: Path, what: str) -> str:
    """Return a PEM file's text."""
    if not path.is_absolute():
        raise BadCertificate(f"the {what} is {path}: it must be an absolute path on the server")
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise BadCertificate(f"{path}: {error.strerror}; put the {what} there, or name its file") from error


def first_certificate(path: Path) -> str:
    """Return the server's own certificate, which must come first in the file."""
    text = read(path, "certificate")
    begin, end = ssl.PEM_HEADER, ssl.PEM_FOOTER
    if begin not in text or end not in text:
        raise BadCertificate(f"{path} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
    return text[text.index(begin) : text.index(end) + len(end)]


def serving(certificate: Path, key: Path) -> ssl.SSLContext:
    """Load both as a TLS server does."""
    if "PRIVATE KEY-----" not in read(key, "key"):
        raise BadCertificate(f"{key} holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)")
    if key.stat().st_mode & stat.S_IROTH:
        raise BadCertificate(f"{key} can be read by everybody on the server: chmod 600 {key}")

    def ask() -> str:
        raise BadCertificate(
            f"{key} is encrypted, and Nginx must be able to read it alone: openssl pkey -in {key} -out NEW_FILE"
        )

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=ask)
    except ssl.SSLError as error:
        # The last is what OpenSSL 3 says to a key of another kind (RSA, EC) than the certificate's.
        if error.reason in {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}:
            raise BadCertificate(
                f"{certificate} and {key} do not belong together: the first certificate in the file must be the "
                "server's own, and the key the one that it was asked for with"
            ) from error
        raise BadCertificate(f"{certificate} with {key}: OpenSSL refuses them ({error.reason or error})") from error
    return context


def shake_hands(server_side: ssl.SSLContext, client_side: ssl.SSLContext, name: str) -> None:
    """Do in memory what a client does that asks for `name`.

    Raises:
        ssl.SSLCertVerificationError: the client refuses the certificate.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    client = client_side.wrap_bio(to_client, to_server, server_hostname=name)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue


def check(certificate: Path, key: Path, names: list[str]) -> str:
    """Return the sha256 of the certificate.

    Raises:
        BadCertificate: it is of no use for a server of these names, now.
    """
    own = first_certificate(certificate)
    server_side = serving(certificate, key)
    # Who signed it is the clients' affair: here the certificate itself is what is trusted.
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_side.load_verify_locations(cadata=own)
    client_side.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    missing = []
    for name in names:
        try:
            shake_hands(server_side, client_side, name.removeprefix("[").removesuffix("]"))
        except ssl.SSLCertVerificationError as error:
            if error.verify_code == EXPIRED:
                raise BadCertificate(f"{certificate} has expired: get a new one from who signed it") from error
            if error.verify_code == NOT_YET_VALID:
                raise BadCertificate(f"{certificate} is not valid yet: is the server's clock right?") from error
            if error.verify_code not in WRONG_NAMES:
                raise BadCertificate(f"{certificate}: clients refuse it ({error.verify_message})") from error
            missing.append(name)
    if missing:
        raise BadCertificate(
            f"{certificate} is not for {', '.join(missing)}: get one that has it among its subject alternative names, "
            "or take it out of nginx_tls_names"
        )
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(own)).hexdigest()


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "certificate": {"type": "path", "required": True},
            "key": {"type": "path", "required": True, "no_log": False},
            "names": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    problem, fingerprint = "", ""
    try:
        fingerprint = check(Path(module.params["certificate"]), Path(module.params["key"]), module.params["names"])
    except BadCertificate as error:
        problem = str(error)
    module.exit_json(changed=False, problem=problem, fingerprint=fingerprint)


if __name__ == "__main__":
    main()
