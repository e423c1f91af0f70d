"""The way from a server to its package index: what the machine's own pip settings say of it, and one quick request.

pip tries each page six times, for minutes, and ends with forty lines. `ask` goes the same way, takes 15 seconds at
most, and says which variable mends it.
"""

from __future__ import annotations

import base64
import configparser
import contextlib
import http.client
import os
import re
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

# Of the administrator's own pip settings, those by which the machine reaches its index. Nothing else of them counts.
KEPT = ("index-url", "extra-index-url", "trusted-host", "cert", "client-cert", "proxy")
SYSTEM_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

SECONDS = 15.0
"""How long one request may take, with its redirects."""
CONNECT_SECONDS = 5.0
"""How long each address of a host may take to accept a connection."""
MOST_REDIRECTS = 5
MOST_BYTES = 1 << 16

PEM = re.compile(r"-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----.+?-----END \1-----", re.DOTALL)
# X509_V_ERR_… of OpenSSL's x509_vfy.h.
EXPIRED, WRONG_NAMES = 10, (62, 64)
CUT = (ConnectionResetError, BrokenPipeError, http.client.HTTPException)


class WayError(Exception):
    """There is no way; the message names the cause and the variable."""


@dataclass(frozen=True)
class Way:
    """How to reach an index."""

    index_url: str = ""
    """Empty: pip's own."""
    extra_index_url: str = ""
    trusted_host: str = ""
    """Hosts, separated by spaces, whose certificates pip does not check."""
    cert: str = ""
    """Path of a bundle of authorities; empty: those of the system."""
    client_cert: str = ""
    proxy: str = ""
    service: bool = False
    """Whether a service goes this way, which knows nothing of the environment of root's session."""


def machine_settings(environ: Mapping[str, str], root: Path = Path("/")) -> dict[str, str]:
    """Return the settings in `KEPT` of this machine's pip, as pip itself combines them for `pip install`.

    https://pip.pypa.io/en/stable/topics/configuration/
    """
    home = root / environ.get("HOME", "/root").lstrip("/")
    folders = (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
    files = [root / folder.lstrip("/") / "pip/pip.conf" for folder in folders if folder]
    files += [root / "etc/pip.conf", home / ".pip/pip.conf", home / ".config/pip/pip.conf"]
    own = environ.get("PIP_CONFIG_FILE", "")
    if own:
        files = [] if own == os.devnull else [*files[:-2], Path(own)]
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}}
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (OSError, UnicodeDecodeError, configparser.Error):
            # pip itself would not start; ours does not depend on it.
            continue
        for section, known in sections.items():
            if parser.has_section(section):
                known.update((key.replace("_", "-").lstrip("-"), value) for key, value in parser.items(section))
    found = sections["global"] | sections["install"]
    for name, value in environ.items():
        if name.startswith("PIP_") and value:
            found[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    return {key: " ".join(found[key].split()) for key in KEPT if (found.get(key) or "").strip()}


def way(ours: Mapping[str, str], theirs: Mapping[str, str]) -> Way:
    """Return the way by our variables, and where they are empty by the machine's own settings."""
    index = ours.get("index_url", "")
    return Way(
        index_url=index or theirs.get("index-url", ""),
        extra_index_url="" if index else theirs.get("extra-index-url", ""),
        trusted_host=theirs.get("trusted-host", ""),
        cert=ours.get("ca_bundle", "") or os.path.expanduser(theirs.get("cert", "")),  # noqa: PTH111 - "" stays ""
        client_cert=os.path.expanduser(theirs.get("client-cert", "")),  # noqa: PTH111 - likewise
        proxy=ours.get("http_proxy", "") or theirs.get("proxy", ""),
    )


def pip_environment(route: Way, environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which pip goes by `route`, and by no other setting of the machine."""
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(("PIP_", "PYTHON", "VIRTUAL_ENV", "__PYVENV")) and name != "LD_PRELOAD"
    }
    # os.devnull here means: read no configuration file at all.
    kept |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for name in ("index_url", "extra_index_url", "trusted_host", "cert", "client_cert", "proxy"):
        if value := getattr(route, name):
            kept[f"PIP_{name.upper()}"] = value
    return kept


def is_complete(folder: Path) -> bool:
    """Return whether a venv has all its pins, and a Python that runs."""
    return (folder / ".complete").is_file() and os.access(folder / "bin/python", os.X_OK)


def own_index(python: str) -> str:
    """Return the index that the pip of a Python goes to by itself; empty where it has no pip."""
    words = [python, "-c", "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"]
    done = subprocess.run(words, check=False, capture_output=True, text=True)  # noqa: S603 - no word comes from outside
    return done.stdout.strip()


# ---- the bundle of authorities -------------------------------------------------------------------------------


def bundle_text(path: str, content: str) -> str:
    """Return the certificates of a bundle on this server or, where it has none, of the controller's (base64).

    Raises:
        WayError: There is none, or it is of no use; the message begins with the path.
    """
    if not path:
        return ""
    try:
        data = Path(path).read_bytes() if Path(path).is_file() or not content else base64.b64decode(content)
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise WayError(
                f"{path} is neither on the server nor on the machine that runs Ansible: give the path of a PEM file"
            ) from error
        raise WayError(f"{path} cannot be read: {error.strerror}") from error
    if problem := bundle_problem(data):
        raise WayError(f"{bundle_name(path, content)} {problem}")
    return certificates(data)


def bundle_name(path: str, content: str) -> str:
    """Return how messages name a bundle: by its path, and whose it is where the path alone does not say it."""
    if not path or not content:
        return path
    if not Path(path).is_file():
        return f"{path} (of the machine that runs Ansible)"
    if Path(path).read_bytes() == base64.b64decode(content):
        return path
    return f"{path} (this server's own; that of the machine that runs Ansible differs, and is not used)"


def certificates(data: bytes) -> str:
    """Return the certificates in a bundle, without the comments between them."""
    return "\n".join(match[0] for match in PEM.finditer(data.decode("ascii", "replace"))) + "\n"


def bundle_problem(data: bytes) -> str:
    """Return what is wrong with a bundle of authorities, and what to do; empty if nothing is."""
    if not data.strip():
        return "is empty: it must hold the root certificate of the authority, in PEM form"
    text = certificates(data)
    if not text.strip():
        return (
            "holds no certificate in PEM form (-----BEGIN CERTIFICATE-----); one in DER form is converted with: "
            "openssl x509 -inform der -in FILE -out NEW_FILE"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=text)
    except ssl.SSLError as error:
        return f"holds a certificate that OpenSSL cannot read ({error.reason or error}): is the file whole?"
    roots = context.get_ca_certs()
    dates = {str(root["notAfter"]): ssl.cert_time_to_seconds(str(root["notAfter"])) for root in roots}
    if dates and max(dates.values()) < time.time():
        last = max(dates, key=lambda date: dates[date])
        return f"holds only authorities that have expired, the last of them on {last}: get the present root certificate"
    return ""


# ---- one request ---------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Trouble(Exception):  # noqa: N818 - it is one of the way, not of this program
    """Why a request came to nothing."""

    kind: str
    """authority, expired, name, tls, dns, refused, timeout, unreachable, denied (by the proxy), or unknown."""
    host: str
    detail: str = ""
    proxy: bool = False
    """Whether `host` is the proxy."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    host: str
    path: str
    text: str
    """The first 64 KiB."""


def proxy_of(url: SplitResult, route: Way) -> SplitResult | None:
    """Return the proxy for a URL: the explicit one, or that of the environment; None for none."""
    proxy = route.proxy
    if not (proxy or route.service or urllib.request.proxy_bypass(url.hostname or "")):
        proxies = urllib.request.getproxies()
        proxy = proxies.get(url.scheme) or proxies.get("all") or ""
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else None


def basic(url: SplitResult) -> str:
    """Return the credentials in a URL as HTTP has them; empty for none."""
    if url.username is None:
        return ""
    text = f"{unquote(url.username)}:{unquote(url.password or '')}"
    return "Basic " + base64.b64encode(text.encode()).decode()


def shown(host: str, port: int) -> str:
    """Return host and port as a reader knows them."""
    host = f"[{host}]" if ":" in host else host
    return host if port in {80, 443} else f"{host}:{port}"


class Request:
    """One GET along a way, with its redirects."""

    def __init__(self, route: Way, authorities: str, deadline: float) -> None:
        self.route, self.deadline = route, deadline
        self.trusted = set(route.trusted_host.split())
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        names = () if route.service else ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
        named = next(filter(None, map(os.environ.get, names)), "")
        if authorities:
            self.context.load_verify_locations(cadata=authorities)
        elif named and Path(named).is_file():
            self.context.load_verify_locations(named)
        else:
            self.context.load_default_certs()
        # A host without the package ca-certificates knows no authority at all yet.
        self.blind = not (authorities or named or os.environ.get("SSL_CERT_FILE") or Path(SYSTEM_BUNDLE).is_file())
        if route.client_cert:
            self.context.load_cert_chain(route.client_cert)
        self.unchecked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.unchecked.check_hostname = False
        self.unchecked.verify_mode = ssl.CERT_NONE
        self.at = ("", False)

    def left(self) -> float:
        """Return the seconds that are left, a little more than 0."""
        return max(0.05, self.deadline - time.monotonic())

    def connection(self, url: SplitResult, *, checked: bool) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
        """Return an open connection, the target to ask it for, and headers for that.

        Raises:
            Trouble: There is none.
        """
        tls = url.scheme == "https"
        host, port = url.hostname or "", url.port or (443 if tls else 80)
        proxy = proxy_of(url, self.route)
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        headers: dict[str, str] = {}
        near, near_port = host, port
        if proxy is not None:
            if proxy.scheme != "http" or not proxy.hostname:
                # TLS to the proxy, SOCKS: pip may know how.
                raise Trouble("unknown", host)
            near, near_port = proxy.hostname, proxy.port or 80
            signed = {"Proxy-Authorization": basic(proxy)} if basic(proxy) else {}
        self.at = (shown(near, near_port), proxy is not None)
        seconds = min(CONNECT_SECONDS, self.left())
        if tls:
            context = self.context if checked and not self.trusted & {host, f"{host}:{port}"} else self.unchecked
            secure = http.client.HTTPSConnection(near, near_port, timeout=seconds, context=context)
            if proxy is not None:
                secure.set_tunnel(host, port, signed)
            opened: http.client.HTTPConnection = secure
        else:
            opened = http.client.HTTPConnection(near, near_port, timeout=seconds)
            if proxy is not None:
                target = f"http://{url.netloc.rpartition('@')[2]}{target}"
                headers |= signed
        try:
            opened.connect()
        except (OSError, http.client.HTTPException) as error:
            opened.close()
            raise classify(error, shown(host, port), self.at, tls) from error
        self.at = (shown(host, port), False)
        opened.sock.settimeout(self.left())
        return opened, target, headers

    def issuer(self, url: SplitResult) -> str:
        """Return the name of the authority that signed a host's certificate, empty if it cannot be had."""
        with contextlib.suppress(Exception):
            opened, _, _ = self.connection(url, checked=False)
            with contextlib.closing(opened):
                # Public from Python 3.13 on, as bytes; here since 3.10.
                chain = opened.sock._sslobj.get_unverified_chain()  # type: ignore[union-attr]
                names = dict(part[0] for part in chain[-1].get_info()["issuer"])
                return ", ".join(names[key] for key in ("commonName", "organizationName") if key in names)
        return ""

    def get(self, text: str) -> Answer:
        """Fetch a URL.

        Raises:
            Trouble: There is no answer.
        """
        for _ in range(MOST_REDIRECTS):
            url = urlsplit(text)
            try:
                opened, target, headers = self.connection(url, checked=True)
            except Trouble as trouble:
                if trouble.kind != "authority":
                    raise
                if self.blind:
                    raise Trouble("unknown", trouble.host) from trouble
                raise Trouble("authority", trouble.host, self.issuer(url) or trouble.detail) from trouble
            headers |= {
                "Accept": "application/vnd.pypi.simple.v1+json, text/html; q=0.1, */*; q=0.01",
                "User-Agent": "lanmirror",
                "Connection": "close",
            }
            if signed := basic(url):
                headers["Authorization"] = signed
            try:
                with contextlib.closing(opened):
                    opened.request("GET", target, headers=headers)
                    came = opened.getresponse()
                    if came.status in {301, 302, 303, 307, 308} and came.getheader("Location"):
                        text = urljoin(text, str(came.getheader("Location")))
                        continue
                    if came.status == http.HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
                        raise Trouble("denied", self.at[0], "407 Proxy Authentication Required", proxy=True)
                    body = came.read(MOST_BYTES).decode("utf-8", "replace")
                    return Answer(came.status, self.at[0], url.path, body)
            except (OSError, http.client.HTTPException) as error:
                raise classify(error, self.at[0], self.at, tls=False) from error
        raise Trouble("unreachable", urlsplit(text).hostname or "", f"it redirects more than {MOST_REDIRECTS} times")


def classify(error: Exception, host: str, at: tuple[str, bool], tls: bool) -> Trouble:
    """Return what an error of a connection means; `at` is who was talked to, and whether that is the proxy."""
    near, proxy = at
    text = str(error)
    denied = re.match(r"Tunnel connection failed: (.*)", text)
    if isinstance(error, ssl.SSLCertVerificationError):
        kind = {EXPIRED: "expired", **dict.fromkeys(WRONG_NAMES, "name")}.get(error.verify_code, "authority")
        return Trouble(kind, host, error.verify_message)
    if isinstance(error, ssl.SSLError):
        return Trouble("tls", host, error.reason or text)
    if denied:
        return Trouble("denied", near, denied[1], proxy=True)
    if tls and not proxy and isinstance(error, CUT):
        # A firewall ends TLS.
        return Trouble("tls", near, "the connection is cut off")
    for types, kind, detail in (
        (socket.gaierror, "dns", "its name is not in DNS"),
        (ConnectionRefusedError, "refused", "the connection is refused"),
        (TimeoutError, "timeout", "nothing answers"),
        (CUT, "unreachable", "the connection is cut off"),
    ):
        if isinstance(error, types):
            return Trouble(kind, near, detail, proxy)
    return Trouble("unreachable", near, getattr(error, "strerror", None) or text, proxy)


def ask(url: str, route: Way, authorities: str = "", seconds: float = SECONDS) -> Answer:
    """Fetch a URL once, along a way, with the certificates `authorities` (PEM) or those of the system.

    Raises:
        Trouble: There is no answer within so many seconds.
    """
    request = Request(route, authorities, time.monotonic() + seconds)
    came: list[Answer | Trouble] = []

    def run() -> None:
        try:
            came.append(request.get(url))
        except Trouble as trouble:
            came.append(trouble)

    # A name server that is silent keeps who asks it for longer than any timeout of ours.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not came:
        host, proxy = request.at
        raise Trouble("timeout", host, f"nothing answers within {seconds:.0f} seconds", proxy)
    if isinstance(came[0], Trouble):
        raise came[0]
    return came[0]


# ---- what it means to an administrator -----------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Something on the outside that a role needs."""

    what: str
    """Such as "the index that devpi is installed from"."""
    variable: str
    """That names it."""
    urls: tuple[str, ...]
    """One of them must answer."""
    project: str = ""
    """Of an index: one that it must have a page of."""


def explain(trouble: Trouble, target: Target, role: str, bundle: str) -> str:
    """Return a sentence with the cause, and one with the variable that mends it."""
    host, detail = trouble.host, trouble.detail
    ca, proxy = (f"lanmirror_{name} (or {role}_{name})" for name in ("ca_bundle", "http_proxy"))
    other = f"or name another one in {target.variable}"
    if trouble.kind == "authority":
        text = (
            f"the certificate of {host} is signed by an authority that "
            f"{f'{bundle} does not hold' if bundle else 'this server does not know'}: {detail}. Where your network's "
            "proxy signs TLS itself, put its root certificate (PEM) into a file, on this server or on the machine that "
            f"runs Ansible, and set {ca} to its path"
        )
    elif trouble.kind == "expired":
        now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
        text = (
            f"the certificate of {host}, or that of its authority, has expired. Is the clock of this server right "
            f"({now} UTC)? Is {ca} the present bundle?"
        )
    elif trouble.kind in {"name", "tls"}:
        text = f"TLS with {host} fails ({detail}). Check the URL, {other}; where only a proxy leads out, set {proxy}"
    elif trouble.kind == "denied" and detail.startswith("407"):
        text = (
            f"the proxy {host} asks for a user and a password (407). Put them into {proxy}: "
            "http://USER:PASSWORD@HOST:PORT, from a vault"
        )
    elif trouble.kind == "denied":
        text = f"the proxy {host} refuses it ({detail}). Allow it there, {other}"
    elif trouble.proxy:
        text = f"the proxy {host} is not reached ({detail}). Check {proxy}"
    else:
        resolver = " Mend /etc/resolv.conf." if trouble.kind == "dns" else ""
        text = f"{host} is not reached ({detail}).{resolver} Where only a proxy leads out, set {proxy}, {other}"
    return f"no way to {target.what}: {text}"


def refused(answer: Answer, target: Target) -> str:
    """Return what is wrong with an answer of an index; empty if nothing is."""
    host, variable = answer.host, target.variable
    if answer.status in {401, 403}:
        text = f"{host} refuses it ({answer.status}). A user and a password, or another URL, go into {variable}"
    elif answer.status == http.HTTPStatus.NOT_FOUND:
        text = (
            f"{host} has no page {answer.path} (404). {variable} must be the URL of a simple index, which mostly ends "
            "with /simple"
        )
    elif answer.status != http.HTTPStatus.OK:
        text = f"{host} answers {answer.status}. Try again later, or name another one in {variable}"
    elif not re.search(target.project.replace("-", "[-_.]+"), answer.text, re.IGNORECASE):
        text = (
            f"what {host} answers is no page of an index. A login page of your network answers in its place, or "
            f"{variable} is not the URL of a simple index"
        )
    else:
        return ""
    return f"no way to {target.what}: {text}"


@dataclass(frozen=True)
class Problem:
    """Why a target is not reached."""

    text: str
    settings: bool
    """Whether a setting is wrong for certain: another try does not help."""


def find_problem(target: Target, route: Way, authorities: str, role: str, bundle: str) -> Problem | None:
    """Return why a target is not reached, and what to do; None where it is, or where only pip can tell."""
    found: Problem | None = None
    for url in target.urls:
        try:
            answer = ask(url, route, authorities)
        except Trouble as trouble:
            if trouble.kind == "unknown":
                return None
            certain = trouble.proxy or trouble.kind in {"authority", "expired", "name", "tls"}
            found = found or Problem(explain(trouble, target, role, bundle), certain)
            continue
        text = refused(answer, target) if target.project else ""
        if not text:
            return None
        found = found or Problem(text, settings=True)
    return found


def find_problems(
    targets: Iterable[tuple[Target, Way]], authorities: str, role: str, bundle: str
) -> list[tuple[Target, Problem]]:
    """Ask all targets at once; return those that are not reached."""
    targets = list(targets)
    came: list[Problem | None] = [None] * len(targets)

    def run(number: int) -> None:
        came[number] = find_problem(*targets[number], authorities, role, bundle)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(targets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [(target, problem) for (target, _), problem in zip(targets, came, strict=True) if problem]


def index_target(index_url: str, requirements: str, role: str) -> Target:
    """Return the index that pip goes to, asked for a project of the requirements."""
    names = re.findall(r"(?m)^([A-Za-z0-9][A-Za-z0-9._-]*)", requirements)
    project = re.sub(r"[-_.]+", "-", names[0] if names else "pip").lower()
    return Target(
        f"the index that {role} is installed from",
        f"lanmirror_pip_index_url (or {role}_pip_index_url)",
        (f"{index_url.rstrip('/')}/{project}/",),
        project,
    )
