"""`--tags plan`: a server says what a sync would fetch, and whether it has room; without the tag nothing of it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

from tests.engine.lab import SCRIPT, SETTINGS
from tests.roles.render import ROOT
from tests.roles.test_preflight import GROUP_VARS, ansible
from tests.upstream import channel, server

PLAYBOOK = "playbooks/conda_mirror.yml"


def test_plan_is_shown_and_one_that_does_not_fit_fails(tmp_path: Path) -> None:
    tree = tmp_path / "upstream"
    channel.build(channel.Spec("hello", subdir="linux-64"), tree / "pkgs/main")
    channel.index(tree / "pkgs/main")
    hosts = {"roomy": 0, "small": 1 << 20, "blank": None}
    data = {"conda_mirror": {"hosts": {host: {} for host in hosts}, "vars": {**GROUP_VARS["all"]}}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(data))
    with server.serving(tree) as upstream:
        for host, room in hosts.items():
            if room is not None:
                config = tmp_path / f"{host}.yml"
                urls = {"repo": upstream.url, "cloud": upstream.url}
                own = {"working_dir": str(tmp_path / f"mirror-{host}"), "min_free_gib": room, "upstream": urls}
                config.write_text(json.dumps(SETTINGS | own))
                command = tmp_path / host
                command.write_text(f'#!/bin/sh\nexec {sys.executable} {SCRIPT} "$@" --config {config}\n')
                command.chmod(0o755)
        run = ansible(
            tmp_path, "playbook", PLAYBOOK, "--tags", "plan", "--check",
            "-e", json.dumps({"__conda_mirror_command": f"{tmp_path}/{{{{ inventory_hostname }}}}"}),
        )  # fmt: skip
        assert not upstream.asked("*.conda")
    assert run.returncode == 2, run.stdout
    ended = dict(line.split(None, 1) for line in run.stdout.partition("PLAY RECAP")[2].splitlines()[1:] if line)
    assert [host for host, line in ended.items() if "failed=0" not in line] == ["blank", "small"]
    assert all("changed=0" in line for line in ended.values())
    assert run.stdout.count("pkgs/main/linux-64 ") == 2
    said = " ".join(run.stdout.split())
    assert "The sync engine is not on this host yet" in said
    assert "The plan ended with exit code 4: too little disk." in said
    assert not [*tmp_path.glob("mirror-*")]


def test_without_the_tag_nothing_is_planned() -> None:
    tasks = yaml.safe_load((ROOT / PLAYBOOK).read_text())[0]["tasks"]
    (plan,) = [task for task in tasks if "plan" in task["tags"]]
    assert plan["tags"] == ["never", "plan"]
