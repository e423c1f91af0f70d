"""playbooks/remove.yml: nothing of what the roles make is forgotten. Scenario ssh runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest

from tests.roles.render import FACTS, ROOT, evaluate, tasks, written

# What a run registers, on a machine from which all goes.
KNOWN: dict[str, Any] = {
    "ansible_facts": {**FACTS, "python": {"version": {"major": 3, "minor": 11}}},
    "nginx_site_name": "x",
    "__conda_mirror_data": {
        "metrics": "",
        "cache": "/var/cache/lanmirror-conda",
        "caches": ["/var/cache/lanmirror-conda"],
    },
    "__conda_mirror_logs": {"files": [{"path": "/var/log/nginx/lanmirror-conda.log"}]},
    "__devpi_data": {"metrics": ""},
    "__devpi_logs": {"files": [{"path": "/var/log/nginx/lanmirror-devpi.log"}]},
    "__devpi_files": {"files": []},
    "__devpi_tar": "/var/backups/devpi/x.tar",
}
REMOVALS = ("remove.yml", "take_out.yml", "uncheck.yml")
# Deleted by a module of the role, as far as it is the role's, or put back as it was.
OTHERWISE = {
    "conda_mirror": ["/srv/mirror/conda"],
    "devpi": ["/var/lib/devpi", "/var/backups/devpi"],
    "nginx": ["/etc/nginx/nginx.conf"],
}


def paths(role: str, file: str, *, absent: bool) -> Iterator[str]:
    """Yield the paths that the tasks of a file make or, with `absent`, take out."""
    for task in tasks(role, file):
        if "delegate_to" in task:
            continue
        if absent:
            yield from written(role, task, "absent", **KNOWN)
        else:
            yield from (one["path"] for one in written(role, task, **KNOWN))
        words = [task.get(f"ansible.builtin.{module}") for module in ("file", "template", "copy", "assemble")]
        for options in filter(None, words):
            if (options.get("state") == "absent") is not absent:
                continue
            known = {**KNOWN, **task.get("vars", {})}
            loop = task.get("loop", [None])
            name = task.get("loop_control", {}).get("loop_var", "item")
            for item in evaluate(role, loop, **known) if isinstance(loop, str) else loop:
                path = options.get("path") or options["dest"]
                yield str(evaluate(role, path, **known, **({name: item} if item is not None else {})))


@pytest.mark.parametrize("role", ["conda_mirror", "devpi", "nginx"])
def test_all_that_the_role_makes_goes(role: str) -> None:
    files = sorted(path.name for path in (ROOT / "roles" / role / "tasks").glob("*.yml"))
    made = {path for file in files if file not in REMOVALS for path in paths(role, file, absent=False)}
    gone = {path for file in files if file in REMOVALS for path in paths(role, file, absent=True)}
    # Of several roles: rmdir takes them when they are empty.
    shared = evaluate(role, f"{{{{ __{role}_shared | default([]) }}}}")
    assert len(made) > 5
    for path in made:
        parents = {path, *map(str, PurePosixPath(path).parents)}
        assert parents & {*gone, *OTHERWISE[role]} or path in shared, path


@pytest.mark.parametrize("role", ["conda_mirror", "devpi", "nginx", "python_venv"])
def test_diff_names_a_folder_that_goes_and_not_each_file_in_it(role: str) -> None:
    files = [
        path.name for path in (ROOT / "roles" / role / "tasks").glob("*.yml") if path.name in (*REMOVALS, "clean.yml")
    ]
    gone = [task for file in files for task in tasks(role, file) if "absent" in str(task.get("ansible.builtin.file"))]
    assert [task["name"] for task in gone if task.get("diff") is not False] == []
    assert gone


def test_all_units_of_devpi_are_stopped_before_they_go() -> None:
    templates = (ROOT / "roles/devpi/templates").iterdir()
    units = {path.stem for path in templates if path.stem.endswith((".service", ".timer"))}
    units.add(str(evaluate("devpi", "{{ __devpi_memory_unit }}")))
    assert units == set(evaluate("devpi", "{{ __devpi_units }}"))


def test_programs_of_older_versions_go_from_a_server_that_stays_as_well() -> None:
    older = {f"/usr/local/libexec/lanmirror-{name}" for name in ("nginx-check", "site-ca")}
    for file in ("configure.yml", "take_out.yml"):
        assert older <= set(paths("nginx", file, absent=True))
