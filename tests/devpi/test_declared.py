"""Users and indexes are declared to a real devpi, by the module of the role."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roles.devpi.library import devpi_indexes as declared
from tests.devpi.conftest import PASSWORD, Devpi, Upstream
from tests.devpi.test_mirror import names


class CutShortError(Exception):
    """The run ended here, as when the machine was switched off."""


def run(
    devpi: Devpi, file: Path, monkeypatch: pytest.MonkeyPatch, after: int | None = None, **params: Any
) -> list[str]:
    """Run the module, until it has changed something `after` times; return what it says that it changed."""
    made: dict[str, Any] = {}
    changed = 0
    ask = declared.Devpi.ask

    def counted(self: Any, method: str, path: str, body: Any = None) -> Any:
        nonlocal changed
        if method in {"PUT", "PATCH", "DELETE"}:
            if changed == after:
                raise CutShortError
            changed += 1
        return ask(self, method, path, body)

    given = {"url": devpi.url, "password_file": str(file), "new_password": "", "remove_undeclared": True, "timeout": 30}
    module = SimpleNamespace(
        params={**given, "users": [], **params},
        check_mode=False,
        _diff=False,
        warn=lambda _text: None,
        exit_json=lambda **result: made.update(result),
    )
    with monkeypatch.context() as patched:
        patched.setattr(declared.Devpi, "ask", counted)
        declared.run(module)
    return list(made["changes"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "root-password"
    path.write_text(PASSWORD)
    return path


def test_run_that_is_cut_short_anywhere_is_finished_by_the_next(
    own_devpi: Devpi, upstream: Upstream, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = {"type": "mirror", "mirror_no_project_list": True, "mirror_cache_expiry": 1800, "flat": False}
    for project, path in (("old", "simple"), ("new", "vetted")):
        upstream.page("six", [upstream.file(f"six-{project}.tar.gz", project.encode())])
        upstream.answer[f"/{path}/six/"] = upstream.answer["/simple/six/"]
    upstream.page("six", [upstream.file("six-old.tar.gz", b"old")])

    def first() -> dict[str, Any]:
        return {
            "users": [{"name": "alice", "password": "correct horse", "email": ""}],
            "indexes": {
                "root/pypi": {**mirror, "mirror_url": f"{upstream.url}/simple/", "volatile": False},
                "alice/old": {"type": "stage", "bases": ["root/pypi"], "volatile": False},
            },
            "new_password": "",
        }

    def second() -> dict[str, Any]:
        return {
            "users": [{"name": "alice", "password": "another horse", "email": "a@lab.example"}],
            "indexes": {
                "root/pypi": {**mirror, "mirror_url": f"{upstream.url}/vetted/", "volatile": False},
                "alice/new": {"type": "stage", "bases": ["root/pypi"]},
            },
            "new_password": "a new root password",
        }

    def back() -> None:
        run(own_devpi, file, monkeypatch, **{**first(), "new_password": PASSWORD})
        assert names(own_devpi.get("/root/pypi/+simple/six/")) == ["six-old.tar.gz"]

    back()
    steps = 0
    while True:
        try:
            run(own_devpi, file, monkeypatch, after=steps, **second())
        except CutShortError:
            finished = run(own_devpi, file, monkeypatch, **second())
            assert finished
        else:
            break
        assert names(own_devpi.get("/root/pypi/+simple/six/")) == ["six-new.tar.gz"]
        assert names(own_devpi.get("/alice/new/+simple/six/")) == ["six-new.tar.gz"]
        assert own_devpi.get("/alice/old/+simple/six/").status_code == 404
        assert declared.Devpi(own_devpi.url).knows("alice", "another horse")
        assert file.read_text() == "a new root password"
        assert run(own_devpi, file, monkeypatch, **second()) == []
        back()
        steps += 1
    # Root's password, alice, the mirror, the new index, and for the old one two.
    assert steps >= 6
