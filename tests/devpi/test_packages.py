"""The list of what is here, of a real devpi's files, as devpi-evict.service makes it; and what may be in it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from lanmirror_devpi.links import version_of

from roles.devpi.files.lanmirror_ops import packages, settings
from roles.devpi.files.lanmirror_ops.eviction import Stored
from roles.devpi.files.lanmirror_ops.packages import Package, gathered, listed
from tests.devpi.conftest import FILES, Devpi, Upstream
from tests.devpi.test_coming import fetch, have, is_stored, path_of, until
from tests.devpi.test_ops import upload
from tests.roles.render import evaluate, render

TYPES = {"lab/dev": "stage", "root/pypi": "mirror"}


def refresh(devpi: Devpi, folder: Path) -> int:
    """Make the list, by the command of the unit; return its exit code."""
    text = render("devpi", "lanmirror.toml.j2", devpi_data_dir=str(devpi.data), devpi_port=devpi.port)
    for old, new in (("/var/lib/devpi-watch", folder), ("/var/log/nginx", folder)):
        text = text.replace(old, str(new))
    (folder / "lanmirror.toml").write_text(text)
    (line,) = [line for line in render("devpi", "devpi-evict.service.j2").splitlines() if "packages" in line]
    words = line.partition("=")[2].split()
    assert words[0] == f"{evaluate('devpi', '{{ __devpi_current }}')}/bin/python"
    command = [str(devpi.venv / "bin/python"), *words[1:], str(folder / "lanmirror.toml")]
    environment = {**os.environ, "PYTHONPATH": f"{FILES}:{FILES / 'plugin'}"}
    return subprocess.run(command, env=environment, check=False, timeout=60).returncode


def told(folder: Path) -> dict[tuple[str, str], list[Any]]:
    """Return what the list tells, by index and package."""
    found = json.loads((folder / "packages.json").read_text())
    return {(found["indexes"][number][0], name): more for name, number, *more in found["packages"]}


def test_list_has_what_is_stored_and_uploaded_and_nothing_that_rules_hide(
    own_devpi: Devpi, upstream: Upstream, tmp_path: Path
) -> None:
    have(upstream)
    have(upstream, "py-2to3")
    upstream.page("nobody-wants", [upstream.file("nobody-wants-1.0.zip", b"nothing")])
    own_devpi.mirror("root/pypi", upstream)
    own_devpi.declare("root/dev", type="stage", bases=["root/pypi"])
    upload(own_devpi, "root/dev", "tool-1.0.tar.gz", b"tool")
    own_devpi.get("/root/pypi/+simple/nobody-wants/")
    size = 0
    for version in ("1.0", "3.0rc1", "2.0"):
        size += len(fetch(own_devpi, path_of(version, "root/pypi")))
    size += len(fetch(own_devpi, f"{path_of('2.0', 'root/pypi')}.metadata"))
    fetch(own_devpi, path_of("1.0", "root/pypi", "py-2to3"))
    at = time.time() - 5 * 86400
    line = f"{at:.3f}\t200\t10\tHIT\t-\t{path_of('1.0', 'root/pypi')}\n"
    (tmp_path / "lanmirror-devpi.log").write_text(line)
    assert refresh(own_devpi, tmp_path) == 0
    day = time.strftime("%F", time.gmtime(at))
    found = told(tmp_path)
    assert found.pop(("root/pypi", "py-2to3"))[:2] == [["1.0"], 1]
    assert found == {
        ("root/dev", "tool"): [["1.0"], 1, 4, ""],
        ("root/pypi", "six"): [["3.0rc1", "2.0", "1.0"], 3, size, day],
    }
    assert (tmp_path / "packages.json").stat().st_mode & 0o777 == 0o640

    own_devpi.declare("root/pypi", block=["six>1"])
    hidden, kept = (path_of(version, "root/pypi") for version in ("2.0", "1.0"))
    until(lambda: is_stored(own_devpi, kept) and not is_stored(own_devpi, hidden))
    assert refresh(own_devpi, tmp_path) == 0
    assert told(tmp_path)["root/pypi", "six"][:2] == [["1.0"], 1]
    own_devpi.stop()
    before = (tmp_path / "packages.json").read_text()
    assert refresh(own_devpi, tmp_path) == 1
    assert (tmp_path / "packages.json").read_text() == before


@pytest.mark.parametrize(
    ("name", "project", "version"),
    [
        ("zope.interface-5.0.tar.gz", "zope-interface", "5.0"),
        ("py-2to3-1.0-1.zip", "py-2to3", "1.0-1"),
        ("Some_Tool-1.0-cp311-cp311-linux_x86_64.whl", "some-tool", "1.0"),
        ("gone-1.0-py3-none-any.whl", "gone", "1.0"),
        ("gone-1.0.tar.gz", "", None),
        ("tool-1.0.doc.zip", "", None),
        ("tool-1.0.tar.gz.toxresult0", "", None),
    ],
)
def test_file_counts_for_its_project(name: str, project: str, version: str | None) -> None:
    known = {"zope", "zope-interface", "py", "py-2to3", "tool"}
    assert packages.project_of(name, known) == project
    assert not project or version_of(project, name) == version


def test_newest_versions_are_named_and_odd_ones_do_not_stop_it() -> None:
    names = ["1.9", "1.10", "1.10rc1", "odd", "1.2", "9" * 99]
    files = [Stored(f"root/pypi/+f/a/b/tool-{version}.zip", 10, 0.0) for version in names]
    (found,) = gathered("root/pypi", files, {"tool"}, {})
    assert found.told(1) == ["tool", 1, ["1.10", "1.10rc1", "1.9"], 6, 60, ""]


def test_list_is_bounded_and_has_uploads_and_what_was_used_last() -> None:
    def some(name: str, index: str, used: float) -> Package:
        return Package(name, index, {"1.0"}, 1, 1000, used)

    # The most that there may be are as many as a lab has, and more.
    many = [some(f"package-{number:05}", "root/pypi", 1.0) for number in range(100_000)]
    text = listed(many, TYPES, 5.5)
    assert len(text) <= packages.MOST + 200
    assert 50_000 < len(json.loads(text)["packages"]) < 100_000
    used = [some(f"package-{number}", "root/pypi", number % 100) for number in range(200)]
    found = json.loads(listed([*used, some("ours", "lab/dev", 0.0)], TYPES, 5.5, most=1000))
    names = {name for name, *_ in found["packages"]}
    assert {"ours", "package-99", "package-199", "package-98"} <= names
    assert not {"package-0", "package-100"} & names
    assert found["left_out"] == 201 - len(names)
    assert (found["made"], found["indexes"]) == (5, [["lab/dev", "stage"], ["root/pypi", "mirror"]])
    assert [name for name, *_ in found["packages"]] == sorted(names)
    assert json.loads(listed([], {}, 1.0))["packages"] == []


def test_what_is_in_the_way_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lanmirror.toml"
    assert packages.main([str(file)]) == 1
    file.write_text("url = 1")
    assert packages.main([str(file)]) == 1
    told = capsys.readouterr().err.splitlines()
    assert [line.startswith("<4>the list of packages is not made anew: ") for line in told] == [True] * 2


def test_unit_settings_and_site_agree(tmp_path: Path) -> None:
    file = tmp_path / "lanmirror.toml"
    file.write_text(render("devpi", "lanmirror.toml.j2"))
    assert f"alias {settings.load(file).packages};" in render("devpi", "devpi-locations.conf.j2")
    paths = evaluate("devpi", "{{ __devpi_ops }}:{{ __devpi_source }}")
    assert f"\nEnvironment=PYTHONPATH={paths}\n" in render("devpi", "devpi-evict.service.j2")
