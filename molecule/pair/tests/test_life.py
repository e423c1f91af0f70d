"""The life of a server of the PyPI cache: backup and restore, an upgrade that works and one that does not, passwords.

By the playbooks that an administrator runs, on host `server`. The tests stand in the order in which they happen.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from lab import PROJECT, SITE, Played, build, devpi_answers, playbook, run, wait

PINS = (PROJECT / "roles/devpi/files/requirements.txt").read_text().strip()
OLDER = "6.19.3"
DEVPI = "http://127.0.0.1:3141"
PASSWORD = "alices-first-password"
BACKUPS = "/var/backups/devpi"
pytestmark = pytest.mark.usefixtures("one_server")

# Asks devpi itself: method, path, body, user and token; prints the answer's JSON.
ASK = r"""
import base64, json, sys, urllib.request
method, path, body, user, token = sys.argv[1:]
headers = {"Accept": "application/json", "Content-Type": "application/json"}
if user:
    headers["X-Devpi-Auth"] = base64.b64encode(f"{user}:{token}".encode()).decode()
request = urllib.request.Request("http://127.0.0.1:3141" + path, body.encode() or None, headers, method=method)
try:
    answer = urllib.request.urlopen(request, timeout=30)
except urllib.error.HTTPError as error:
    answer = error
print(json.dumps({"status": answer.status, "version": answer.headers.get("X-Devpi-Server-Version"),
                  "json": json.loads(answer.read() or "{}")}))
"""

# Asks devpi itself for the page of each project that it has of the mirror.
READ_ALL_PAGES = r"""
import json, urllib.request
def read(path, accept):
    request = urllib.request.Request("http://127.0.0.1:3141/root/pypi" + path, headers={"Accept": accept})
    return urllib.request.urlopen(request, timeout=60).read()
for project in json.loads(read("", "application/json"))["result"]["projects"]:
    read(f"/+simple/{project}/", "application/vnd.pypi.simple.v1+json")
"""
# Uploads a package to devpi itself: URL of the index, file, version, alice's password.
UPLOAD = r"""
import sys, requests
url, file, version, password = sys.argv[1:]
about = {":action": "file_upload", "name": "ourtool", "version": version}
with open(file, "rb") as content:
    requests.post(url, about, files={"content": content}, auth=("alice", password), timeout=60).raise_for_status()
"""


def on_server(name: str, **variables: Any) -> Played:
    return playbook(name, "--limit", "server", "-e", json.dumps(variables))


def ask(host: Any, method: str, path: str, body: Any = None, auth: tuple[str, str] = ("", "")) -> Any:
    words = [ASK, method, path, json.dumps(body) if body else "", *auth]
    return json.loads(run(host, "python3 -c " + " ".join(map(shlex.quote, words))))


def login(host: Any, user: str, password: str) -> str:
    """Give a token, empty when the password is wrong."""
    answer = ask(host, "POST", "/+login", {"user": user, "password": password})
    return str(answer["json"]["result"]["password"]) if answer["status"] == 200 else ""


def root_password(host: Any) -> str:
    return run(host, "cat /etc/devpi/root-password")


def upload(host: Any, version: str) -> None:
    """Build a wheel and upload it as alice."""
    words = [UPLOAD, f"{DEVPI}/lab/dev/", build(host, "ourtool", version), version, PASSWORD]
    run(host, "/opt/devpi/current/bin/python -c " + " ".join(map(shlex.quote, words)))


def releases(host: Any) -> set[str]:
    return set(ask(host, "GET", "/lab/dev/ourtool")["json"].get("result", {}))


def installs(workstation: Any, requirement: str, index: str = "lab/dev") -> bool:
    """Tell whether a workstation installs it anew from an index, by its own settings."""
    run(workstation, "[ -x /opt/life/bin/pip ] || python3 -m venv /opt/life")
    where = f"-i {SITE}/{index}/+simple/ {requirement}"
    done = workstation.run(f"/opt/life/bin/pip install -q --no-cache-dir --no-deps --force-reinstall {where}")
    return bool(done.rc == 0)


def venv(host: Any, pins: str) -> str:
    """Give the folder of a venv with some pins, as the role names it."""
    python = run(host, "python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'")
    return f"/opt/devpi/py{python}-{hashlib.sha256(pins.encode()).hexdigest()[:12]}"


@pytest.fixture(scope="module", autouse=True)
def index_of_the_lab(server: Any) -> None:
    """An index that alice uploads to, with a package, and a project in the cache."""
    auth = ("root", login(server, "root", root_password(server)))
    assert ask(server, "PUT", "/alice", {"password": PASSWORD}, auth)["status"] in {201, 409}
    assert ask(server, "PATCH", "/alice", {"password": PASSWORD}, auth)["status"] == 200
    assert ask(server, "PUT", "/lab", {"password": "nobody-knows-it"}, auth)["status"] in {201, 409}
    stage = {"type": "stage", "bases": ["root/pypi"], "acl_upload": ["alice"]}
    assert ask(server, "PUT", "/lab/dev", stage, auth)["status"] in {200, 409}
    upload(server, "1.0")


# ---- backup and restore ---------------------------------------------------------------------------------------


def test_backup_brings_back_what_was_deleted_since(server: Any, workstation: Any, tmp_path: Path) -> None:
    assert installs(workstation, "idna", "root/pypi")
    assert installs(workstation, "ourtool==1.0")
    done = on_server("playbooks/backup.yml", devpi_backup_fetch_to=str(tmp_path))
    assert done.code == 0, done.output
    (fetched,) = tmp_path.iterdir()
    assert fetched.stat().st_mode & 0o777 == 0o600
    backup = run(server, f"ls -d {BACKUPS}/devpi-*Z | tail -n 1")
    assert run(server, f"find {BACKUPS} -maxdepth 1 ! -perm 700") == ""
    assert run(server, f"find {backup}/data/+files -name 'ourtool*'")

    upload(server, "2.0")
    auth = ("root", login(server, "root", root_password(server)))
    assert ask(server, "PATCH", "/alice", {"password": "changed-since-then"}, auth)["status"] == 200
    assert ask(server, "DELETE", "/lab/dev/ourtool/1.0", auth=("alice", login(server, "alice", "changed-since-then")))
    assert releases(server) == {"2.0"}

    done = on_server("playbooks/restore.yml", devpi_restore_from=backup)
    assert done.code == 0, done.output
    assert "what was there before is in /var/lib/devpi/.lanmirror-aside/" in done.said
    assert releases(server) == {"1.0"}
    assert login(server, "alice", PASSWORD)
    assert not login(server, "alice", "changed-since-then")
    assert installs(workstation, "ourtool==1.0")
    assert installs(workstation, "idna", "root/pypi")
    # The cache was not in the backup, and is still there.
    assert run(server, "find /var/lib/devpi/+files/root/pypi -name 'idna-*'")
    assert run(server, "stat -c '%U %a' /var/lib/devpi/.sqlite") == "devpi 600"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (r"""sed -i 's/"devpi_server": "[^"]*"/"devpi_server": "99.0.0"/'""", r"99\.0\.0, and this server has 6\."),
        (r"""sed -i 's/"sha256": "../"sha256": "zz/'""", r"is not what its manifest says"),
        ("truncate -s 0", r"manifest\.json is damaged"),
    ],
)
def test_bad_backup_is_refused_before_anything_changes(server: Any, spoil: str, message: str) -> None:
    backup = run(server, f"ls -d {BACKUPS}/devpi-*Z | tail -n 1")
    run(server, f"rm -rf /root/bad && cp -a {backup} /root/bad && {spoil} /root/bad/manifest.json")
    before = run(server, "systemctl show --property=MainPID devpi; stat -c '%i %Y' /var/lib/devpi/.sqlite")
    if "99.0.0" in spoil:
        done = on_server("playbooks/restore.yml", devpi_restore_from="/root/bad")
        assert (done.code, done.output.count("[ERROR]: ")) == (2, 1), done.output
        said = done.said
        assert "playbooks/upgrade.yml" in said
    else:
        done = server.run("lanmirror-devpi restore /root/bad")
        assert (done.rc, done.stderr.count("\n")) == (1, 1)
        said = done.stderr
    assert re.search(message, said), said
    assert run(server, "systemctl show --property=MainPID devpi; stat -c '%i %Y' /var/lib/devpi/.sqlite") == before


# ---- upgrade --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def older(server: Any) -> None:
    """The server has an older devpi, with a database of another version: devpi has had no new one since 4.0."""
    now, old = run(server, "readlink /opt/devpi/current"), "/opt/devpi/older"
    run(
        server,
        # Our plugin is made for the pinned version alone, and refuses another.
        f"""cp -a {now} {old} && rm -r {old}/src
        {old}/bin/python -m pip install -q -i http://127.0.0.1:3141/root/pypi/+simple/ devpi-server=={OLDER}
        sed -i 's/^DATABASE_VERSION = .*/DATABASE_VERSION = "3"/' {old}/lib/python3*/site-packages/devpi_server/main.py
        rm -r {old}/lib/python3*/site-packages/devpi_server/__pycache__  # made in the same second, of the same size
        sed -i '1s|.*|#!{old}/bin/python|' {old}/bin/devpi-*
        systemctl stop devpi && printf 3 > /var/lib/devpi/.serverversion && ln -sfn {old} /opt/devpi/current
        systemctl start devpi""",
    )
    wait("devpi", 60, lambda: devpi_answers(server))
    assert ask(server, "GET", "/+api")["version"] == OLDER
    # And pages in the older form, as it stores them.
    run(server, f"python3 -c {shlex.quote(READ_ALL_PAGES)}")


@pytest.mark.usefixtures("older")
def test_site_does_not_upgrade_in_passing(server: Any) -> None:
    done = on_server("playbooks/preflight.yml")
    assert done.code != 0
    assert "runs devpi from /opt/devpi/older" in done.said
    assert "playbooks/upgrade.yml" in done.said


@pytest.mark.usefixtures("older")
def test_upgrade_that_fails_leaves_the_old_devpi_serving(server: Any, workstation: Any) -> None:
    pins = f"{PINS}\n# broken"
    broken = venv(server, pins)
    run(server, f"cp -a {venv(server, PINS)} {broken} && sed -i '1s|.*|#!{broken}/bin/python|' {broken}/bin/devpi-*")
    main = f"{broken}/lib/python3*/site-packages/devpi_server/main.py"
    run(server, f"""printf 'def wsgi_run(*_):\\n    raise RuntimeError("broken on purpose")\\n' | tee -a {main}""")
    unit = run(server, "sha256sum /etc/systemd/system/devpi.service /etc/devpi/* /var/lib/devpi/.serverversion")
    done = on_server("playbooks/upgrade.yml", __devpi_requirements=pins, devpi_request_timeout=7)
    assert done.code != 0
    assert re.search(r"it fell over \d times: RuntimeError: broken on purpose", done.said), done.output
    assert f"devpi-server {OLDER} serves again" in done.said
    assert ask(server, "GET", "/+api")["version"] == OLDER
    assert run(server, "sha256sum /etc/systemd/system/devpi.service /etc/devpi/* /var/lib/devpi/.serverversion") == unit
    assert releases(server) == {"1.0"}
    assert installs(workstation, "ourtool==1.0")
    run(server, f"rm -rf {broken}")


@pytest.mark.usefixtures("older")
def test_upgrade_exports_and_imports_and_keeps_the_cache(server: Any, workstation: Any) -> None:
    before = run(server, "cd /var/lib/devpi/+files && find . -type f | sort")
    assert "idna-" in before
    done = on_server("playbooks/upgrade.yml")
    assert done.code == 0, done.output
    pinned = re.search(r"devpi-server==(\S+)", PINS)
    assert pinned
    assert f"devpi-server {OLDER} to {pinned[1]}, database 3 exported and imported as 4" in done.said
    assert ask(server, "GET", "/+api")["version"] == pinned[1]
    assert run(server, "cd /var/lib/devpi/+files && find . -type f | sort") == before
    assert login(server, "alice", PASSWORD)
    upload(server, "3.0")
    assert installs(workstation, "ourtool==1.0")
    assert installs(workstation, "ourtool==3.0")
    assert installs(workstation, "idna", "root/pypi")
    run(server, "rm -rf /opt/devpi/older")


# ---- passwords ------------------------------------------------------------------------------------------------


def test_rotation_ends_old_passwords_and_old_logins(server: Any) -> None:
    old = root_password(server)
    tokens = {"root": login(server, "root", old), "alice": login(server, "alice", PASSWORD)}
    for user, token in tokens.items():
        assert ask(server, "GET", "/+api", auth=(user, token))["json"]["result"]["authstatus"][0] == "ok"
    done = on_server(
        "playbooks/rotate_passwords.yml", devpi_users=[{"name": "lab"}, {"name": "alice", "password": "alices-second"}]
    )
    assert done.code == 0, done.output
    new = root_password(server)
    assert new != old
    assert new not in done.said
    assert login(server, "root", new)
    assert login(server, "alice", "alices-second")
    assert not login(server, "root", old)
    assert not login(server, "alice", PASSWORD)
    for user, token in tokens.items():
        assert ask(server, "GET", "/+api", auth=(user, token))["json"]["result"]["authstatus"][0] != "ok"
