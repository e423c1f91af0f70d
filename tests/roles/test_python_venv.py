"""Role python_venv: the way out, by real servers and proxies on the loopback address, and venvs under any umask."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ansible.module_utils
import pytest
from ansible.plugins.loader import init_plugin_loader
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from tests.roles.render import ROOT, evaluate, python_file, specs

ROLE = ROOT / "roles/python_venv"
out = python_file(ROLE / "module_utils/lanmirror_way_out.py")
trees = python_file(ROLE / "module_utils/lanmirror_tree.py")
# As Ansible makes them known to the modules of the role.
for shared in (out, trees):
    sys.modules[f"ansible.module_utils.{shared.__name__}"] = shared
    setattr(ansible.module_utils, shared.__name__, shared)
venv = python_file(ROLE / "library/python_venv.py")
PINS = "# made by hand\nAnyIO==4.0\nidna==3.1\n"
PAGE = '<a href="anyio-4.0-py3-none-any.whl">anyio-4.0-py3-none-any.whl</a>'


DRIVER = """
import importlib.util, pathlib, runpy, sys
import ansible.module_utils
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.py")):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    shared = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = sys.modules[f"ansible.module_utils.{path.stem}"] = shared
    spec.loader.exec_module(shared)
    setattr(ansible.module_utils, path.stem, shared)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_with_way_out(name: str, scratch: Path, /, umask: int = 0o022, **arguments: Any) -> dict[str, Any]:
    """Run a module of the role in a process of its own; `scratch` is a folder for its arguments."""
    file = scratch / "arguments.json"
    file.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
    words = [sys.executable, "-c", DRIVER, str(ROLE / "module_utils"), str(ROLE / f"library/{name}.py"), str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, umask=umask)
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


# ---- servers and proxies ---------------------------------------------------------------------------------------


def certificate(name: str, issuer: Any = None, key: Any = None, *, days: int = 30, host: str = "127.0.0.1") -> Any:
    """Return a certificate and its key: a root, or with `issuer` a server's."""
    own = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "The Company"),
        ]
    )
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=90))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer:
        name_of = x509.DNSName(host) if host.endswith("lan") else x509.IPAddress(ip_address(host))
        builder = builder.add_extension(x509.SubjectAlternativeName([name_of]), critical=False)
    return builder.sign(key or own, SHA256()), own


def pem(*parts: Any) -> bytes:
    found = b""
    for part in parts:
        if isinstance(part, x509.Certificate):
            found += part.public_bytes(serialization.Encoding.PEM)
        else:
            found += part.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
    return found


class Index(BaseHTTPRequestHandler):
    """A simple index with one project, behind a user where the path says so."""

    def do_GET(self) -> None:
        status, text = {
            "/simple/anyio/": (200, PAGE),
            "/login/anyio/": (200, "<form>Please log in to the network</form>"),
            "/down/anyio/": (503, ""),
            "/locked/anyio/": (200 if self.headers["Authorization"] else 401, PAGE),
        }.get(self.path, (404, ""))
        if self.path == "/old/anyio/":
            self.send_response(301)
            self.send_header("Location", "/simple/anyio/")
            self.end_headers()
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Proxy(BaseHTTPRequestHandler):
    """A proxy with a user alice, which leads to 127.0.0.1 alone."""

    def allowed(self) -> bool:
        if self.headers["Proxy-Authorization"] != "Basic " + base64.b64encode(b"alice:s3cret/word").decode():
            self.send_error(407)
            return False
        return True

    def do_CONNECT(self) -> None:
        if not self.allowed():
            return
        if not self.path.startswith("127.0.0.1:"):
            self.send_error(403)
            return
        with socket.create_connection(("127.0.0.1", int(self.path.partition(":")[2]))) as there:
            self.send_response(200)
            self.end_headers()
            self.wfile.flush()
            back = threading.Thread(target=self.carry, args=(there, self.connection), daemon=True)
            back.start()
            self.carry(self.connection, there)
            back.join(5)

    def carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    def do_GET(self) -> None:
        if self.allowed():
            assert self.path.startswith("http://127.0.0.1")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PAGE.encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler], chain: bytes = b"", folder: Path | None = None) -> Iterator[int]:
    """Serve on a port of the loopback address, with TLS where there is a certificate."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if chain and folder:
        file = folder / f"server-{server.server_port}.pem"
        file.write_bytes(chain)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()


class World:
    """What is outside of a server."""

    root, root_key = certificate("Egress Gateway CA")
    ca = pem(root).decode()

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        def tls(**options: Any) -> int:
            own, key = certificate("server", self.root, self.root_key, **options)
            return stack.enter_context(serving(Index, pem(own, self.root, key), folder))

        self.plain = stack.enter_context(serving(Index))
        self.proxy = stack.enter_context(serving(Proxy))
        self.tls = tls()
        self.expired = tls(days=-1)
        self.other = tls(host="other.lab.lan")
        self.silent = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        closed = socket.create_server(("127.0.0.1", 0))
        self.closed = closed.getsockname()[1]
        closed.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        yield World(tmp_path_factory.mktemp("outside"), stack)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take from this process what it knows of the machine's own way out."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("PIP_", "SSL_CERT")) or name.endswith("CA_BUNDLE"):
            monkeypatch.delenv(name)


def message(index: str, ca: str = "", **way: str) -> str:
    """Return what an administrator is told of the way to an index; empty where it is fine."""
    target = out.index_target(index, PINS, "devpi")
    problem = out.find_problem(target, out.Way(**way), ca, "devpi", "/etc/ssl/lab.pem" if ca else "")
    return problem.text if problem else ""


CA, PROXY, INDEX = "lanmirror_ca_bundle", "lanmirror_http_proxy", "lanmirror_pip_index_url"


# ---- the quick request -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "way"),
    [
        ("http://127.0.0.1:{plain}/simple", {}),
        ("http://127.0.0.1:{plain}/old/", {}),
        ("https://127.0.0.1:{tls}/simple/", {}),
        ("https://127.0.0.1:{tls}/simple", {"proxy": "http://alice:s3cret%2Fword@127.0.0.1:{proxy}"}),
        ("http://127.0.0.1:{plain}/simple", {"proxy": "alice:s3cret%2Fword@127.0.0.1:{proxy}"}),
        ("http://user:password@127.0.0.1:{plain}/locked", {}),
        ("https://127.0.0.1:{expired}/simple", {"trusted_host": "other 127.0.0.1"}),
        # pip may know how to talk to such a proxy, this does not: no word of it.
        ("https://127.0.0.1:{tls}/simple", {"proxy": "socks5://127.0.0.1:{closed}"}),
    ],
)
def test_way_that_works_gets_no_word(world: World, index: str, way: dict[str, str]) -> None:
    ports = vars(world)
    assert message(index.format(**ports), world.ca, **{key: text.format(**ports) for key, text in way.items()}) == ""


@pytest.mark.parametrize(
    ("index", "way", "words"),
    [
        ("http://127.0.0.1:{closed}/simple", {}, ["127.0.0.1:", "refused", PROXY, INDEX]),
        ("http://no-such-host.invalid/simple", {}, ["no-such-host.invalid", "DNS", "/etc/resolv.conf", PROXY, INDEX]),
        ("http://127.0.0.1:{plain}/nowhere", {}, ["/nowhere/anyio/", "404", INDEX, "ends with /simple"]),
        ("http://127.0.0.1:{plain}/locked", {}, ["401", INDEX, "password"]),
        ("http://127.0.0.1:{plain}/down", {}, ["503", INDEX]),
        ("http://127.0.0.1:{plain}/login", {}, ["no page of an index", "login page", INDEX]),
        ("https://127.0.0.1:{plain}/simple", {}, ["TLS", INDEX]),
        ("https://127.0.0.1:{expired}/simple", {}, ["expired", "clock", CA]),
        ("https://127.0.0.1:{other}/simple", {}, ["TLS", "mismatch", INDEX]),
        ("https://127.0.0.1:{tls}/simple", {"proxy": "http://127.0.0.1:{closed}"}, ["the proxy", "refused", PROXY]),
        ("https://127.0.0.1:{tls}/simple", {"proxy": "http://no-such.invalid:3128"}, ["the proxy", "DNS", PROXY]),
        ("https://127.0.0.1:{tls}/simple", {"proxy": "http://127.0.0.1:{proxy}"}, ["407", PROXY, "vault"]),
        ("http://127.0.0.1:{plain}/simple", {"proxy": "http://bob:wrong@127.0.0.1:{proxy}"}, ["407", PROXY]),
        (
            "https://localhost:{tls}/simple",
            {"proxy": "http://alice:s3cret%2Fword@127.0.0.1:{proxy}"},
            ["the proxy", "403", "Allow it there", INDEX],
        ),
    ],
)
def test_message_names_cause_and_variable(world: World, index: str, way: dict[str, str], words: list[str]) -> None:
    ports = vars(world)
    text = message(index.format(**ports), world.ca, **{key: value.format(**ports) for key, value in way.items()})
    assert text.startswith("no way to the index that devpi is installed from: ")
    assert [word for word in words if word not in text] == []
    assert "\n" not in text
    for secret in ("s3cret", "wrong"):
        assert secret not in text


@pytest.mark.parametrize("proxy", ["", "http://alice:s3cret%2Fword@127.0.0.1:{proxy}"])
def test_authority_that_nobody_knows_is_named(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    index, way = f"https://127.0.0.1:{world.tls}/simple", {"proxy": proxy.format(proxy=world.proxy)}
    monkeypatch.setattr(out, "SYSTEM_BUNDLE", tmp_path / "none")
    # Without the package ca-certificates, which the role installs, nobody is known yet.
    assert message(index, **way) == ""
    (tmp_path / "none").touch()
    text = message(index, **way)
    for word in ("Egress Gateway CA, The Company", "this server does not know", CA, "devpi_ca_bundle", "PEM"):
        assert word in text
    other = pem(certificate("Another CA")[0]).decode()
    assert "/etc/ssl/lab.pem does not hold: Egress Gateway CA" in message(index, other, **way)


def test_server_that_is_silent_takes_no_longer_than_allowed(world: World) -> None:
    for scheme in ("http", "https"):
        with pytest.raises(out.Trouble) as caught:
            out.ask(f"{scheme}://127.0.0.1:{world.silent}/simple/", out.Way(), world.ca, seconds=0.2)
        assert caught.value.kind == "timeout"


def test_name_server_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    released, answered = threading.Event(), list[bool]()

    def silent(*_: object, **__: object) -> Any:
        released.wait(30)
        answered.append(True)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    with pytest.raises(out.Trouble) as caught:
        out.ask("http://mirror.invalid/simple/", out.Way(), seconds=0.2)
    # It is still waiting.
    assert answered == []
    released.set()
    assert (caught.value.kind, caught.value.host) == ("timeout", "mirror.invalid")


def test_service_knows_nothing_of_the_environment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{world.closed}")
    url = f"http://127.0.0.1:{world.plain}/simple/anyio/"
    assert out.ask(url, out.Way(service=True)).status == 200
    with pytest.raises(out.Trouble) as caught:
        out.ask(url, out.Way())
    assert caught.value.proxy


def test_one_of_several_upstreams_is_enough_and_any_answer_of_them(world: World) -> None:
    closed, answers = f"http://127.0.0.1:{world.closed}/", f"http://127.0.0.1:{world.plain}/404"
    both = out.Target("the upstream", "conda_mirror_upstream.repo", (closed, answers))
    none = out.Target("the upstream", "conda_mirror_upstream.repo", (closed,))
    signed = out.Target("the upstream", "devpi_upstream", (f"https://127.0.0.1:{world.tls}/",))
    way = out.Way(service=True)
    other = pem(certificate("Another CA")[0]).decode()
    found = out.find_problems([(both, way), (none, way), (signed, way)], other, "devpi", "x.pem")
    assert [(target, problem.settings) for target, problem in found] == [(none, False), (signed, True)]
    assert "or name another one in conda_mirror_upstream.repo" in found[0][1].text


# ---- the bundle of authorities ---------------------------------------------------------------------------------


def test_bundle_that_is_of_use(tmp_path: Path) -> None:
    # With a comment in it, as that of Mozilla's has, and an old root among new ones.
    old = pem(certificate("Old CA", days=-1)[0])
    (tmp_path / "ca.pem").write_bytes("# Főtanúsítvány\n".encode() + pem(World.root) + old)
    text = out.bundle_text(str(tmp_path / "ca.pem"), "")
    assert text.count("BEGIN CERTIFICATE") == 2
    assert text.isascii()
    brought = out.bundle_text(str(tmp_path / "not here.pem"), base64.b64encode(World.ca.encode()).decode())
    assert brought == World.ca
    assert out.bundle_text("", "") == ""


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\n", ["is empty"]),
        (
            World.root.public_bytes(serialization.Encoding.DER),
            ["no certificate in PEM form", "openssl x509 -inform der"],
        ),
        (b"-----BEGIN CERTIFICATE-----\nTUlJ\n-----END CERTIFICATE-----\n", ["cannot read", "whole"]),
        (pem(certificate("Old CA", days=-1)[0]), ["expired", "the present root"]),
        (None, ["neither on the server nor on the machine that runs Ansible"]),
    ],
)
def test_bundle_that_is_of_no_use(tmp_path: Path, data: bytes | None, words: list[str]) -> None:
    file = tmp_path / "ca.pem"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(out.WayError) as caught:
        out.bundle_text(str(file), "")
    text = str(caught.value)
    assert text.startswith(str(file))
    assert [word for word in words if word not in text] == []


def test_bundle_of_the_controller_is_read_where_it_has_one(tmp_path: Path) -> None:
    init_plugin_loader()
    (tmp_path / "lab's.pem").write_text(World.ca)
    for name, wanted in (("lab's.pem", World.ca), ("none.pem", "")):
        read = evaluate("python_venv", "{{ __python_venv_bundle }}", python_venv_ca_bundle=str(tmp_path / name))
        assert base64.b64decode(read).decode() == wanted


def test_message_says_whose_bundle_it_is(world: World, tmp_path: Path) -> None:
    file, theirs = tmp_path / "ca.pem", base64.b64encode(b"another").decode()
    for content, at in (("", ""), (theirs, " (of the machine that runs Ansible)")):
        assert out.bundle_name(str(file), content) == f"{file}{at}"
    file.write_text(pem(certificate("Another CA")[0]).decode())
    assert out.bundle_name("", theirs) == ""
    assert out.bundle_name(str(file), base64.b64encode(file.read_bytes()).decode()) == str(file)
    named = out.bundle_name(str(file), theirs)
    assert named.startswith(
        f"{file} (this server's own; that of the machine that runs Ansible differs, and is not used"
    )
    # In the message of either module, and in that of a file that is of no use.
    arguments: dict[str, Any] = {
        "folder": str(tmp_path / "none"),
        "requirements": PINS,
        "role": "devpi",
        "ca_bundle": str(file),
    }
    arguments |= {"ca_bundle_content": theirs, "index_url": f"https://127.0.0.1:{world.tls}/simple"}
    said = run_with_way_out("python_venv_way_out", tmp_path, **arguments)
    assert f"{named} does not hold: Egress Gateway CA" in said["msg"]
    file.write_text("\n")
    with pytest.raises(out.WayError, match=r"this server's own.* is empty"):
        out.bundle_text(str(file), theirs)


# ---- pip's settings --------------------------------------------------------------------------------------------


def test_settings_of_the_machine_are_those_that_pip_finds(tmp_path: Path) -> None:
    for path, text in {
        "etc/xdg/pip/pip.conf": "[global]\nproxy = http://first:1\ncert = /xdg.pem\n",
        "etc/pip.conf": "[global]\nindex-url = https://general/simple\ncert = /etc.pem\nno-index = true\n"
        "[install]\nindex_url = https://install/simple\nuser = true\ntrusted-host =\n    a\n    b\n",
        "root/.config/pip/pip.conf": "[global]\nindex-url = https://user/simple\n",
        "root/.pip/pip.conf": "no section\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    environ = {"HOME": "/root", "PIP_EXTRA_INDEX_URL": "https://extra/simple", "PIP_TARGET": "/x", "PIP_PROXY": ""}
    found = out.machine_settings(environ, tmp_path)
    assert found == {
        "index-url": "https://install/simple",
        "extra-index-url": "https://extra/simple",
        "trusted-host": "a b",
        "cert": "/etc.pem",
        "proxy": "http://first:1",
    }
    assert out.machine_settings({"PIP_CONFIG_FILE": os.devnull}, tmp_path) == {}
    ours = {"index_url": "https://ours/simple", "ca_bundle": "/ours.pem", "http_proxy": "http://ours:3128"}
    assert out.way({}, found).index_url == "https://install/simple"
    way = out.way(ours, found)
    assert (way.index_url, way.extra_index_url, way.cert, way.proxy) == (
        *("https://ours/simple", "", "/ours.pem", "http://ours:3128"),
    )


HOSTILE = {
    "PIP_USER": "1",
    "PIP_TARGET": "/nowhere",
    "PIP_PREFIX": "/nowhere",
    "PIP_NO_INDEX": "1",
    "PIP_CONSTRAINT": "/nowhere",
    "PIP_REQUIRE_VIRTUALENV": "1",
    "PIP_DRY_RUN": "1",
    "PYTHONPATH": "/nowhere",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def test_pip_goes_by_nothing_but_the_way(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/pip.conf").write_text("[install]\nuser = true\nno-index = true\ntarget = /nowhere\n")
    environ = {**HOSTILE, "PATH": "/usr/bin", "https_proxy": "http://proxy:3128", "XDG_CONFIG_DIRS": str(tmp_path)}
    environment = out.pip_environment(out.Way(index_url="https://ours/simple", cert="/ours.pem"), environ)
    assert not {name for name in HOSTILE if name in environment}
    assert environment["https_proxy"] == "http://proxy:3128"
    # pip's own word for it.
    words = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert set(done.stdout.splitlines()) == {
        ":env:.cert='/ours.pem'",
        ":env:.config-file='/dev/null'",
        ":env:.disable-pip-version-check='1'",
        ":env:.index-url='https://ours/simple'",
        ":env:.no-input='1'",
    }


# ---- the venv --------------------------------------------------------------------------------------------------

FILES = {"tool.py": "import package.part\nprint('one')\n", "package/__init__.py": "", "package/part.py": "x = 1\n"}


class FakePip:
    """Runs the real commands but pip's, which needs an index."""

    def __init__(self) -> None:
        self.installs: list[dict[str, str]] = []

    def __call__(self, words: list[str], environment: Any) -> None:
        if "pip" in words:
            self.installs.append(dict(environment))
            return
        without = [*words[:3], "--without-pip", *words[3:]] if words[1:3] == ["-m", "venv"] else words
        venv.run([sys.executable, *without[1:]] if without is not words else words, environment)


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of venvs, by a root whose umask keeps everybody out, as main() sets it right."""
    before = os.umask(0o077)
    monkeypatch.setattr(trees, "open_parents", lambda prefix, dry, _: dry or prefix.mkdir(exist_ok=True))
    os.umask(trees.UMASK)
    yield tmp_path / "tool"
    os.umask(before)


def making(prefix: Path, pins: str = PINS, files: dict[str, str] = FILES, **options: Any) -> Any:
    name = f"py3.11-{abs(hash(pins)):012x}"[:19]
    return venv.Making(prefix / name, pins, files, run=FakePip(), **options)


def make(made: Any, problem: str = "") -> list[str]:
    made.make(out.Way(), lambda _: problem)
    return list(made.done)


def listed(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_venv_is_made_once_and_complete_last(prefix: Path) -> None:
    first = making(prefix)
    assert len(make(first)) == 3
    assert (prefix / "current").readlink() == first.folder
    assert out.is_complete(first.folder)
    assert (
        subprocess.run(
            [prefix / "current/bin/python", prefix / "current/src/tool.py"], capture_output=True, text=True, check=True
        ).stdout
        == "one\n"
    )
    assert list((prefix / "current/src/package/__pycache__").glob("part.*.pyc"))
    assert make(making(prefix)) == []

    (first.folder / ".complete").unlink()
    (first.folder / "half").touch()
    again = making(prefix)
    assert make(again) == [f"{again.folder}: a venv with 2 packages", f"{again.tree.folder}: 3 source files"]
    assert "half" not in listed(again.folder)


def test_way_that_is_closed_leaves_what_runs(prefix: Path) -> None:
    first, second = making(prefix), making(prefix, "idna==3.2\n")
    make(first)
    with pytest.raises(venv.VenvError, match="no way to the index"):
        make(second, "no way to the index")
    assert second.run.installs == []
    assert (prefix / "current").readlink() == first.folder
    assert make(making(prefix, "idna==3.2\n"))


def test_renamed_source_file_leaves_nothing_behind(prefix: Path) -> None:
    make(making(prefix))
    renamed = making(prefix, files={"tool.py": "print('two')\n", "package/other.py": ""})
    old = (prefix / "current/src").resolve()
    assert make(renamed) == [f"{renamed.tree.folder}: 2 source files"]
    assert listed(prefix / "current/src/package") == {"other.py", "__pycache__"}
    assert renamed.stale([], None) == [str(old)]
    # Somebody changed one by hand.
    (renamed.tree.folder / "tool.py").write_text("print('three')\n")
    assert make(making(prefix, files=dict(renamed.files))) == [f"{renamed.tree.folder}: 2 source files"]
    assert (prefix / "current/src/tool.py").read_text() == "print('two')\n"


def test_upgrade_prepares_a_venv_beside_the_one_that_runs(prefix: Path) -> None:
    first = making(prefix)
    make(first)
    second = making(prefix, "idna==3.2\n", switch=False)
    make(second)
    assert out.is_complete(second.folder)
    assert (second.folder / "src/tool.py").exists()
    assert (prefix / "current").readlink() == first.folder
    assert second.stale(["old"], None) == []
    # Without anything to prepare, what runs is left alone, its source files too.
    assert make(making(prefix, files={"tool.py": "new"}, switch=False)) == []


def test_what_nothing_uses_is_stale(prefix: Path, tmp_path: Path) -> None:
    for pins in ("a==1\n", "b==1\n", "c==1\n"):
        make(making(prefix, pins))
    one, other = (making(prefix, pins).folder for pins in ("a==1\n", "b==1\n"))
    for name in ("venv", "lanmirror_sync"):
        (prefix / name).mkdir()
    (prefix / "older").mkdir()
    plan = tmp_path / "undo.json"
    last = making(prefix, "c==1\n")
    leftovers = ["venv", "lanmirror_sync", "not-there"]
    assert set(last.stale(leftovers, plan)) == {str(one), str(other), *(str(prefix / n) for n in leftovers[:2])}
    # An upgrade goes back to one, and a program that began before the switch runs from another.
    plan.write_text(f'{{"link": "{one}"}}')
    words = [other / "bin/python", "-c", "print(flush=True); input()", prefix / "venv/x"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tool:
        # Until it runs, its command line is not to be seen.
        assert tool.stdout
        tool.stdout.readline()
        assert last.stale(leftovers, plan) == []
        tool.communicate(b"\n")
    assert str(other) in last.stale(leftovers, plan)


@pytest.mark.parametrize("umask", [0o027, 0o077])
def test_venv_that_was_made_under_a_closed_umask_is_opened(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    folder = making(prefix).folder
    with monkeypatch.context() as earlier:
        # As an older role made it.
        earlier.setattr(venv, "mend_modes", lambda _: 0)
        os.umask(umask)
        make(making(prefix))
    os.umask(trees.UMASK)
    (folder / "secret").touch()
    (folder / "secret").chmod(0o200)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask
    (said,) = make(making(prefix))
    assert "closed by a umask" in said
    for path in (folder, *folder.rglob("*")):
        mode = path.lstat().st_mode
        if not path.is_symlink() and path.name != "secret":
            assert mode & 0o004, path
            assert mode & 0o022 == 0, path
            assert path.is_file() or mode & 0o001, path
    assert (folder / "secret").stat().st_mode & 0o777 == 0o200
    assert make(making(prefix)) == []


def test_check_mode_says_all_and_changes_nothing(prefix: Path) -> None:
    assert len(make(making(prefix, dry=True))) == 3
    assert not prefix.exists()


def test_parents_are_open_and_those_of_the_system_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "opt").mkdir(mode=0o700)
    done: list[str] = []
    prefix = tmp_path / "opt/lanmirror/tool"
    before = os.umask(0o077)
    shut = tmp_path.parent
    modes = {folder: folder.stat().st_mode for folder in (shut, *tmp_path.parents)}
    try:
        os.umask(trees.UMASK)
        trees.open_parents(prefix, False, done)
    finally:
        os.umask(before)
        for folder, mode in modes.items():
            folder.chmod(mode & 0o7777)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "opt", prefix.parent, prefix)} == {0o755}
    assert f"{tmp_path / 'opt'}: mode 0700 -> 0755" in done


def test_closed_folder_of_the_system_is_named_and_left_to_its_administrator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "stat", SimpleNamespace(S_IMODE=lambda _: 0o700))
    done: list[str] = []
    # Nothing is changed, whatever this finds.
    with pytest.raises(trees.TreeError, match=r"is closed \(0700\).*chmod o\+x"):
        trees.open_parents(Path("/opt/lanmirror-none/tool"), True, done)
    assert done == []


@pytest.mark.parametrize("umask", [0o027, 0o077])
def test_module_sets_modes_whatever_the_umask_of_root_is(tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "opt/tool/py3.11-0123456789ab"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").symlink_to(sys.executable)
    (folder / ".complete").touch()
    modes = {parent: parent.stat().st_mode for parent in tmp_path.parents}
    given = {
        "ca_bundle": str(tmp_path / "not here.pem"),
        "ca_bundle_content": base64.b64encode(World.ca.encode()).decode(),
    }
    try:
        done = run_with_way_out(
            "python_venv", tmp_path, umask, folder=str(folder), requirements=PINS, role="tool", files=FILES, **given
        )
    finally:
        for parent, mode in modes.items():
            parent.chmod(mode & 0o7777)
    assert done["changed"]
    for path in (folder.parent / "way-out.pem", folder / "src/package/part.py"):
        assert path.stat().st_mode & 0o777 == 0o644, path
    assert (folder / "src").resolve().stat().st_mode & 0o777 == 0o755


def test_bundle_of_the_controller_goes_beside_the_venvs(prefix: Path) -> None:
    made = making(prefix)
    assert venv.keep_bundle(made, World.ca) == prefix / "way-out.pem"
    assert (prefix / "way-out.pem").read_text() == World.ca
    assert (prefix / "way-out.pem").stat().st_mode & 0o777 == 0o644
    again = making(prefix)
    venv.keep_bundle(again, World.ca)
    assert (len(made.done), again.done) == (1, [])


# ---- the role --------------------------------------------------------------------------------------------------


def test_options_of_the_role_and_of_the_modules_agree() -> None:
    defaults = venv.SPEC
    options = specs("python_venv")["install"]["options"]
    ours = {name.removeprefix("python_venv_"): spec for name, spec in options.items()}
    for name, spec in defaults.items():
        if name in ours and "default" in spec and "default" in ours[name]:
            assert ours[name]["default"] == spec["default"], name


def test_all_source_files_of_the_engine_go_over() -> None:
    init_plugin_loader()
    texts = evaluate("conda_mirror", "{{ __conda_mirror_texts }}", role_path=str(ROOT / "roles/conda_mirror"))
    engine = ROOT / "files"
    assert texts == {
        str(path.relative_to(engine)): path.read_text()
        for path in (engine / "anaconda_sync.py", *engine.glob("lanmirror_*/**/*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_program_of_a_file_that_leads_out_is_refused(prefix: Path) -> None:
    with pytest.raises(trees.TreeError, match="leads out"):
        make(making(prefix, files={"../../outside.py": ""}))
    shutil.rmtree(prefix)
