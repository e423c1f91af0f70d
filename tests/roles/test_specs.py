"""What every role keeps to: specs that say what the defaults say, templates that name their owner, pages that agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.roles.render import ROLES, ROOT, defaults, flat, specs

# Required options of an entry point have no default; those of `main` and `preflight` all have one.
CHECKED = ("main", "preflight")


def files(pattern: str) -> list[Path]:
    return sorted(path for path in ROOT.glob(pattern) if path.is_file())


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("entry_point", CHECKED)
def test_specs_say_what_the_defaults_say(role: str, entry_point: str) -> None:
    options = specs(role)[entry_point]["options"]
    assert {option: spec.get("default") for option, spec in options.items()} == defaults(role)


@pytest.mark.parametrize("role", ROLES)
def test_public_variables_carry_the_name_of_their_role(role: str) -> None:
    assert [variable for variable in defaults(role) if not variable.startswith(f"{role}_")] == []
    internal = yaml.safe_load((ROOT / "roles" / role / "vars/main.yml").read_text())
    assert [variable for variable in internal if not variable.startswith(f"__{role}_")] == []


def explained(path: Path) -> list[str]:
    """Return the top-level keys of a YAML file that no comment precedes."""
    bare, before = [], ""
    for line in path.read_text().splitlines():
        if re.match(r"[a-z_]+:", line) and not before.startswith("#"):
            bare.append(line)
        if line.strip() and not line.startswith((" ", "-")):
            before = line
        elif not line.strip():
            before = ""
    return bare


@pytest.mark.parametrize("path", files("roles/*/defaults/main.yml"), ids=name)
def test_each_default_has_its_sentence(path: Path) -> None:
    assert explained(path) == []


@pytest.mark.parametrize("path", files("roles/*/templates/**/*"), ids=name)
def test_each_template_says_who_manages_it(path: Path) -> None:
    head = [line for line in path.read_text().splitlines() if not line.startswith(("#!", "<!DOCTYPE"))]
    assert re.fullmatch(r"\{\{ ansible_managed \| comment(\('\w+'\))? \}\}", head[0])


@pytest.mark.parametrize("path", files("roles/*/tasks/*.yml"), ids=name)
def test_tags_stand_only_in_playbooks(path: Path) -> None:
    assert [task["name"] for task in flat(yaml.safe_load(path.read_text())) if "tags" in task] == []


@pytest.mark.parametrize("path", files("roles/*/tasks/*.yml"), ids=name)
def test_check_mode_installs_nothing(path: Path) -> None:
    tasks = flat(yaml.safe_load(path.read_text()))
    left_out = [one for task in tasks if "not ansible_check_mode" in str(task.get("when")) for one in flat([task])]
    for task in tasks:
        # In check mode Ansible's module fails, or installs its own library, where that is missing. Where a package
        # goes, that library is there: the role installed the package.
        if task.get("ansible.builtin.apt", {"state": "absent"})["state"] != "absent":
            assert task in left_out, task["name"]


@pytest.mark.parametrize("role", ROLES)
def test_main_only_imports(role: str) -> None:
    for task in yaml.safe_load((ROOT / "roles" / role / "tasks/main.yml").read_text()):
        assert set(task) <= {"name", "ansible.builtin.import_tasks", "ansible.builtin.include_tasks", "when"}


@pytest.mark.parametrize("path", files("roles/*/**/*.yml"), ids=name)
def test_roles_read_no_variable_of_another(path: Path) -> None:
    role = path.relative_to(ROOT / "roles").parts[0]
    # Entry points that other roles call are called with their own options.
    text = re.sub(r"(nginx_site|python_venv)_\w+:", "", path.read_text())
    others = {variable for other in ROLES if other != role for variable in defaults(other)}
    assert {word for word in re.findall(r"\w+", text) if word in others} == set()


@pytest.mark.parametrize("role", ["conda_mirror", "devpi", "nginx"])
def test_numbers_and_switches_are_used_as_they_were_converted(role: str) -> None:
    options = specs(role)["main"]["options"]
    raw = "|".join(name for name, spec in options.items() if spec["type"] in {"bool", "float", "int"})
    used = {
        f"{name(path)}: {found}"
        for path in files(f"roles/{role}/**/*")
        if path.parent.name in {"handlers", "tasks", "templates", "vars"}
        for found in re.findall(rf"(?:{{{{|{{%|when:|that:|  - ).*(?<!variable: )\b(?:{raw})\b.*", path.read_text())
    }
    converted = re.compile(rf'.*: \{{\{{ (?:{raw}) \| (?:bool|float|int) \}}\}}"')
    assert {line for line in used if not converted.fullmatch(line)} == set()


@pytest.mark.parametrize("path", files("inventory.example/group_vars/*.yml"), ids=name)
def test_inventory_example_sets_what_there_is(path: Path) -> None:
    known = {variable for role in ROLES for variable in defaults(role)}
    for variable in yaml.safe_load(path.read_text()):
        assert variable in known or variable.startswith("lanmirror_"), variable
