"""Render a role's template as Ansible would, in milliseconds and without a host."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import (
    filter_loader,
    init_plugin_loader,
)
from ansible.template import Templar, trust_as_template

ROOT = Path(__file__).resolve().parent.parent.parent
ROLES = sorted(path.parent.parent.name for path in ROOT.glob("roles/*/tasks/main.yml"))
init_plugin_loader()
for folder in ROOT.glob("roles/*/filter_plugins"):
    filter_loader.add_directory(str(folder))
FACTS = {
    "os_family": "Debian",
    "distribution": "Debian",
    "distribution_version": "12",
    "all_ipv6_addresses": [],
    "default_ipv4": {"address": "192.0.2.10"},
}


def load(role: str, path: str) -> dict[str, Any]:
    """Return one of a role's YAML files; empty where there is none."""
    file = ROOT / "roles" / role / path
    data: dict[str, Any] = yaml.safe_load(file.read_text()) or {} if file.exists() else {}
    return data


def python_file(path: Path) -> ModuleType:
    """Return a module or filter plugin of a role, which no import finds."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run_module(script: Path, folder: Path, *, umask: int = 0o022, **arguments: Any) -> dict[str, Any]:
    """Run a module of a role as Ansible would, in a process of its own; `folder` is for its arguments."""
    file = folder / "arguments.json"
    file.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
    done = subprocess.run(
        [sys.executable, script, file], capture_output=True, text=True, check=False, timeout=60, umask=umask
    )
    file.unlink()
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def defaults(role: str) -> dict[str, Any]:
    """Return a role's public variables with their defaults."""
    return load(role, "defaults/main.yml")


def specs(role: str) -> dict[str, Any]:
    """Return a role's argument specs by entry point."""
    entry_points: dict[str, Any] = load(role, "meta/argument_specs.yml")["argument_specs"]
    return entry_points


def flat(tasks: Any) -> list[dict[str, Any]]:
    """Return every task of a list of tasks, those in blocks too."""
    found: list[dict[str, Any]] = []
    for task in tasks or []:
        found.append(task)
        for part in ("block", "rescue", "always"):
            found += flat(task.get(part))
    return found


def tasks(role: str, file: str) -> list[dict[str, Any]]:
    """Return every task of a role's file of tasks."""
    return flat(yaml.safe_load((ROOT / "roles" / role / "tasks" / file).read_text()))


def written(role: str, task: dict[str, Any], key: str = "files", **variables: Any) -> list[Any]:
    """Return what a task of module host_files writes, or with key `absent` takes out, with paths as they come out."""
    known = {**task.get("vars", {}), **variables}
    given = task.get("host_files", {}).get(key, [])
    found = evaluate(role, given, **known) if isinstance(given, str) else given
    if key == "absent":
        return [str(evaluate(role, path, **known)) for path in found]
    return [{**one, "path": str(evaluate(role, one["path"], **known))} for one in found]


def _trusted(value: Any) -> Any:
    if isinstance(value, str):
        return trust_as_template(value)
    if isinstance(value, dict):
        return {key: _trusted(item) for key, item in value.items()}
    return [_trusted(item) for item in value] if isinstance(value, list) else value


def evaluate(role: str, text: str, **variables: Any) -> Any:
    """Return what a template text comes out as, with the role's variables and those given here."""
    known = {
        "ansible_facts": FACTS,
        "role_path": str(ROOT / "roles" / role),
        "ansible_managed": "Ansible managed",
        "inventory_hostname": "server",
        "ansible_check_mode": False,
        **defaults(role),
        **load(role, "vars/main.yml"),
        **variables,
    }
    loader = DataLoader()
    templates = ROOT / "roles" / role / "templates"
    loader.set_basedir(str(templates if templates.is_dir() else templates.parent))
    return Templar(loader=loader, variables=_trusted(known)).template(trust_as_template(text))


def render(role: str, template: str, **variables: Any) -> str:
    """Return what `roles/<role>/templates/<template>` comes out as."""
    source = (ROOT / "roles" / role / "templates" / template).read_text()
    return str(evaluate(role, source, **variables))
