"""Split and check the root certificates for the trust store of a workstation, before anything is written."""

from __future__ import annotations

import hashlib
import re
import ssl
import time
from collections.abc import Callable
from typing import Any

_PEM = re.compile(rf"{ssl.PEM_HEADER}\s[^-]+{ssl.PEM_FOOTER}")


def _problem(pem: str) -> str | None:
    """Say why a certificate cannot be trusted as a root, or return None."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=pem)
    except ssl.SSLError:
        return "OpenSSL cannot read the certificate; is it whole?"
    # get_ca_certs() lists those alone that may sign others.
    if not (found := context.get_ca_certs()):
        return "it is a server's certificate, not that of an authority; give the root that signed it"
    ends = str(found[0]["notAfter"])
    if ssl.cert_time_to_seconds(ends) < time.time():
        return f"the certificate ended on {ends}; give the one that took its place"
    return None


def client_ca_certificates(text: str) -> list[dict[str, str | None]]:
    """Split a PEM text into certificates: update-ca-certificates wants one in each file.

    Returns:
        Mappings with `name` (the file's, from the certificate's sha256), `text` (of this certificate alone) and
        `problem` (None: it can be trusted as a root). Empty for an empty text.
    """
    if not text.strip():
        return []
    pems = list(dict.fromkeys(_PEM.findall(text)))
    if "PRIVATE KEY-----" in text:
        return [{"name": "", "text": "", "problem": "it holds a private key, which must not leave its server"}]
    if not pems:
        problem = "it holds no certificate in PEM form; give the text (-----BEGIN CERTIFICATE-----), not the path"
        return [{"name": "", "text": "", "problem": problem}]
    return [
        {
            "name": f"lanmirror-{hashlib.sha256(pem.encode()).hexdigest()[:16]}.crt",
            "text": f"{pem}\n",
            "problem": _problem(pem),
        }
        for pem in pems
    ]


class FilterModule:
    """Filters of role client."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Give the filters by name."""
        return {"client_ca_certificates": client_ca_certificates}
