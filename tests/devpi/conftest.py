"""A real devpi-server, of the wheels that the role pins and with the role's plugin, and an upstream for it."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.ports import free_ports
from tests.roles.render import ROOT

FILES = ROOT / "roles" / "devpi" / "files"
PASSWORD = "correct horse battery"
JSON = "application/vnd.pypi.simple.v1+json"
START_SECONDS = 60


@pytest.fixture(scope="session")
def venv_of_devpi() -> Path:
    """Return a venv with what the role installs, made once for each set of pins."""
    pins = FILES / "requirements.txt"
    folder = Path(sys.prefix) / f"devpi-{hashlib.sha256(pins.read_bytes()).hexdigest()[:12]}"
    # Several runs of pytest are under way at once.
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            venv.create(folder, clear=True, with_pip=True)
            pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*pip, "-r", str(pins)], check=True)
            (folder / "complete").touch()
    return folder


Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Upstream:
    """An upstream of a mirror on the loopback address: what it answers is `answer`, what it was asked is `asked`."""

    answer: dict[str, Answer | Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    def page(self, project: str, files: list[dict[str, Any]], **more: Any) -> None:
        """Have a page in JSON, as the official index has it, at `/simple/PROJECT/`."""
        page = {"meta": {"api-version": "1.4"}, "name": project, "files": files, **more}
        headers = {"Content-Type": JSON}
        self.answer[f"/simple/{project}/"] = 200, headers, json.dumps(page).encode()

    def file(self, name: str, content: bytes, folder: str = "/files", /, **more: Any) -> dict[str, Any]:
        """Have a file in a folder, and return its entry for a page."""
        self.answer[f"{folder}/{name}"] = 200, {"Content-Type": "application/octet-stream"}, content
        hashes = {"sha256": hashlib.sha256(content).hexdigest()}
        return {"filename": name, "url": f"{self.url}{folder}/{name}", "hashes": hashes, "size": len(content), **more}

    def plain(self, path: str) -> Answer:
        """Return the answer for a path that has one ready."""
        answer = self.answer[path]
        assert not callable(answer)
        return answer

    def add_headers(self, path: str, **more: str) -> None:
        """Add headers to the answer for a path, with `_` for each `-` in their names."""
        status, headers, body = self.plain(path)
        self.answer[path] = status, headers | {name.replace("_", "-"): more[name] for name in more}, body

    def paths(self) -> list[str]:
        """Return the paths that were asked for, in order."""
        return [path for _, path, _ in self.asked]


@contextmanager
def serving() -> Iterator[Upstream]:
    """Run an upstream."""
    ours = Upstream()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            ours.asked.append((self.command, self.path, dict(self.headers)))
            answer = ours.answer.get(self.path, (404, {}, b""))
            if callable(answer):
                answer(self)
                return
            status, headers, body = answer
            if headers.get("ETag") and self.headers.get("If-None-Match") == headers["ETag"]:
                status, body = 304, b""
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 256
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Say nothing: a client that goes away is what some tests are about."""

    httpd = Server(("127.0.0.1", 0), Handler)
    ours.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield ours
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """Run an upstream."""
    with serving() as ours:
        yield ours


@pytest.fixture
def silent() -> Iterator[Callable[[BaseHTTPRequestHandler], None]]:
    """Return an answer of an upstream that does not come before the end of the test."""
    over = threading.Event()

    def say_nothing(_handler: BaseHTTPRequestHandler) -> None:
        over.wait()

    yield say_nothing
    over.set()


@pytest.fixture
def second() -> Iterator[Upstream]:
    """Run another upstream."""
    with serving() as ours:
        yield ours


@dataclass
class Devpi:
    """A devpi-server with the plugin, or plain, as it was before."""

    venv: Path
    data: Path
    options: dict[str, Any]
    port: int = field(default_factory=free_ports)
    process: subprocess.Popen[bytes] | None = None
    plain: bool = False

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """Its log so far."""
        return self.data.with_suffix(".log").read_text()

    def run(self, command: str, *options: str) -> list[str]:
        """Return a command line of devpi's."""
        return [str(self.venv / "bin" / command), "--configfile", str(self.data.with_suffix(".yml")), *options]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its unit."""
        return {
            **os.environ,
            "PYTHONPATH": str(FILES / "plugin"),
            "DEVPISERVER_ROOT_PASSWD": PASSWORD,
            "NO_PROXY": "127.0.0.1",
        }

    def init(self) -> None:
        """Make its database."""
        settings = {"serverdir": str(self.data), "host": "127.0.0.1", "port": self.port, "argon2-memory-cost": 8192}
        settings = {**settings, "restrict-modify": "root", "request-timeout": 5, **self.options}
        self.data.with_suffix(".yml").write_text(yaml.safe_dump({"devpi-server": settings}))
        with self.data.with_suffix(".log").open("ab") as log:
            options = [] if self.options.get("role") == "replica" else ["--no-root-pypi"]
            subprocess.run(self.run("devpi-init", *options), env=self.environment, check=True, stdout=log, stderr=log)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self.data.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(self.run("devpi-server"), env=self.environment, stdout=log, stderr=log)
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log
            try:
                requests.get(f"{self.url}/+api", timeout=5)
            except requests.ConnectionError:
                time.sleep(0.05)
            else:
                return
        pytest.fail(f"devpi does not answer:\n{self.log}")

    def stop(self) -> None:
        """Stop it."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        """Stop and start it."""
        self.stop()
        self.start()

    def token(self, user: str = "root", password: str = PASSWORD) -> dict[str, str]:
        """Return the header of a user who has logged in."""
        answer = requests.post(f"{self.url}/+login", json={"user": user, "password": password}, timeout=30)
        token = answer.json()["result"]["password"]
        return {"X-Devpi-Auth": base64.b64encode(f"{user}:{token}".encode()).decode()}

    def declare(self, index: str, **settings: Any) -> None:
        """Make or change an index (the user exists: only root's are made here)."""
        headers, url = self.token(), f"{self.url}/{index}"
        there = requests.get(url, params={"no_projects": ""}, headers={"Accept": "application/json"}, timeout=30).ok
        send = requests.patch if there else requests.put
        answer = send(url, json=settings, headers=headers, timeout=30)
        assert answer.ok, answer.text

    def mirror(self, index: str, upstream: Upstream, path: str = "/simple/", **settings: Any) -> None:
        """Have an index that mirrors an upstream."""
        self.declare(
            index,
            type="mirror",
            mirror_url=upstream.url + path,
            mirror_no_project_list=True,
            volatile=False,
            **settings,
        )

    def push(self, index: str, version: str, target: str) -> requests.Response:
        """Push a release of six from an index to a stage."""
        order = {"name": "six", "version": version, "targetindex": target}
        headers = {**self.token(), "Accept": "application/json"}
        return requests.post(f"{self.url}/{index}", json=order, headers=headers, timeout=60)

    def get(self, path: str, accept: str = JSON, **headers: str) -> requests.Response:
        """Ask as Nginx asks for an installer."""
        asking = {"Accept": accept, "User-Agent": "pip/lanmirror", "Accept-Encoding": "gzip", **headers}
        return requests.get(self.url + path, headers=asking, timeout=60, allow_redirects=False)


@pytest.fixture(scope="session")
def empty_database(venv_of_devpi: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data of a devpi that was never started: to make them costs a second or two."""
    devpi = Devpi(venv_of_devpi, tmp_path_factory.mktemp("empty") / "data", {})
    devpi.init()
    return devpi.data


@pytest.fixture(scope="session")
def start_devpi(
    venv_of_devpi: Path, empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Devpi]]:
    """Return a function that starts a devpi with options of its own; who starts one stops it, at the latest the end."""
    with ExitStack() as stack:

        def start(*, plain: bool = False, **options: Any) -> Devpi:
            data = tmp_path_factory.mktemp("devpi") / "data"
            options = {key.replace("_", "-"): value for key, value in options.items()}
            devpi = Devpi(venv_of_devpi, data, options, plain=plain)
            stack.callback(devpi.stop)
            # A replica has an identity of its own.
            if options.get("role") == "replica":
                devpi.init()
                devpi.start()
                return devpi
            subprocess.run(["cp", "-a", str(empty_database), str(devpi.data)], check=True)
            settings = yaml.safe_load(empty_database.with_suffix(".yml").read_text())["devpi-server"]
            settings |= {"serverdir": str(devpi.data), "port": devpi.port, **devpi.options}
            devpi.data.with_suffix(".yml").write_text(yaml.safe_dump({"devpi-server": settings}))
            devpi.start()
            return devpi

        yield start


@pytest.fixture(scope="session")
def devpi(start_devpi: Callable[..., Devpi]) -> Devpi:
    """Return a devpi that all tests share: each has indexes of its own, by the fixture `name`."""
    return start_devpi()


@pytest.fixture
def own_devpi(start_devpi: Callable[..., Devpi]) -> Iterator[Devpi]:
    """Return a devpi of the test's own."""
    devpi = start_devpi()
    yield devpi
    devpi.stop()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Return a name for the test's indexes, which no other test has."""
    return f"t{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:10]}"
