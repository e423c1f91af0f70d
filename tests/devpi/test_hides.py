"""A change of rules says which files it hides that clients used: the module of the role, with a real devpi."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from roles.devpi.files.lanmirror_ops import settings
from roles.devpi.files.lanmirror_ops.known import Known
from roles.devpi.library import devpi_indexes
from tests.devpi.conftest import FILES, PASSWORD, Devpi, Upstream, serving
from tests.devpi.test_coming import ago, fetch, have, name_of, path_of
from tests.roles.render import render, run_module

DAY = 86400
HEAD = "files that the changed rules hide, and clients of this server used in the last 30 days"


class Server:
    """A devpi, what the watchdog knows of it, and the module that declares a mirror of the test's own."""

    def __init__(self, devpi: Devpi, upstream: Upstream, index: str, folder: Path) -> None:
        self.devpi, self.index, self.folder = devpi, index, folder
        self.wanted = {"type": "mirror", "mirror_url": f"{upstream.url}/simple/", "mirror_no_project_list": True}
        text = render("devpi", "lanmirror.toml.j2", devpi_data_dir=str(devpi.data), devpi_malware_list="/a/list")
        (folder / "lanmirror.toml").write_text(text.replace("/var/lib/devpi-watch", str(folder)))
        (folder / "root-password").write_text(PASSWORD)
        self.settings = settings.load(folder / "lanmirror.toml")
        Known(self.settings.state)

    def used(self, path: str, days: float = 0) -> str:
        """Have a file used so many days ago, as Nginx's log tells it; return that day."""
        log, at = self.folder / "served.log", time.time() - days * DAY
        with log.open("a") as lines:
            lines.write(f"{at:.3f}\t200\t10\tHIT\t-\t{path}\n")
        Known(self.settings.state).read_log(log)
        return time.strftime("%F", time.gmtime(at))

    def declare(self, *, check: bool = False, **rules: Any) -> list[str]:
        """Declare the mirror; return what a diff says beside the settings, by lines, or a warning."""
        said = run_module(
            Path(devpi_indexes.__file__),
            self.folder,
            url=self.devpi.url,
            password_file=str(self.folder / "root-password"),
            python=str(self.devpi.venv / "bin/python"),
            python_path=f"{FILES}:{FILES / 'plugin'}",
            settings=str(self.folder / "lanmirror.toml"),
            indexes={self.index: {**self.wanted, **rules}},
            _ansible_diff=True,
            _ansible_check_mode=check,
        )
        assert "msg" not in said, said
        warnings = [str(warning) for warning in said.get("warnings", []) if "cannot be told" in str(warning)]
        return warnings or "".join(part["prepared"] for part in said["diff"][1:]).splitlines()


@pytest.fixture(scope="module")
def lab(start_devpi: Callable[..., Devpi]) -> Iterator[tuple[Devpi, Upstream]]:
    devpi = start_devpi()
    with serving() as upstream:
        have(upstream, v3_0=ago(3))
        yield devpi, upstream
    devpi.stop()


@pytest.fixture
def server(lab: tuple[Devpi, Upstream], name: str, tmp_path: Path) -> Server:
    server = Server(*lab, f"root/{name}", tmp_path)
    # There is nothing yet that it could hide.
    assert server.declare(block="") == []
    return server


def test_change_of_rules_says_what_it_hides_of_what_clients_used(server: Server) -> None:
    index = server.index
    for version in ("1.0", "2.0", "3.0rc1", "3.0"):
        fetch(server.devpi, path_of(version, index))
    first = server.used(path_of("1.0", index), 2)
    second = server.used(f"{path_of('2.0', index)}.metadata", 29)
    server.used(path_of("3.0rc1", index), 31)
    third = server.used(path_of("3.0", index))
    server.used(path_of("1.0", f"{index}-2"))
    rules: dict[str, Any] = {"block": "six==2.0\nsix==3.0rc1", "min_age_days": 7}
    (head, blocked, young) = said = server.declare(check=True, **rules)
    assert head == f"{HEAD}: 2"
    assert blocked.startswith(f'{index}: {name_of("2.0")} is blocked here: rule "six==2.0" of {index}; ')
    assert blocked.endswith(f"; asked for last on {second}")
    assert young.startswith(f"{index}: {name_of('3.0')} is too new: {index} shows files of 7 days or more, ")
    assert young.endswith(f"; asked for last on {third}")
    # Nothing was changed so far.
    assert server.declare(**rules) == said
    # What was hidden before is not told again.
    assert server.declare(**{**rules, "block": f"{rules['block']}\nsix<2"})[1:] == [
        f'{index}: {name_of("1.0")} is blocked here: rule "six<2" of {index}; asked for last on {first}'
    ]
    assert server.declare(**{**rules, "block": ""}) == [f"{HEAD}: none"]


def test_known_malware_is_hidden_before_and_after(server: Server) -> None:
    listed = {"six": [["MAL-2026-1", ["2.0"], []]]}
    server.settings.malware_list.write_text(json.dumps({"format": 1, "names": listed}))
    server.used(path_of("2.0", server.index))
    assert server.declare(block="six==2.0") == [f"{HEAD}: none"]
    server.declare(block="", allow="six==2.0")
    (_, line) = server.declare(check=True, allow="")
    assert "is blocked here: MAL-2026-1 of the list of known malware; asked" in line


def test_what_is_told_is_in_order_and_bounded(server: Server) -> None:
    for number in range(150):
        server.used(f"/{server.index}/+f/{number:03}/0123456789abc/tool-{150 - number:03}.tar.gz")
    (head, *lines, more) = server.declare(check=True, block="tool")
    assert head == f"{HEAD}: 150"
    assert [line.split()[1] for line in lines] == [f"tool-{number:03}.tar.gz" for number in range(1, 101)]
    assert more == "and 50 more"


def test_rules_are_changed_where_it_is_not_known_what_clients_used(server: Server) -> None:
    server.settings.state.unlink()
    (warning,) = server.declare(block="six")
    assert "cannot be told which files that clients used the changed rules hide: " in warning
    assert server.devpi.get(f"/{server.index}/+simple/six/").json()["files"] == []
