"""`verify`: damage and gaps are found, named, mended or taken out of the index; nothing sound is touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.engine.lab import Lab
from tests.upstream import channel

LINUX = "pkgs/main/linux-64"
VICTIM = "lib0003-1.3-0.conda"


def rot(file: Path) -> None:
    """Change one byte and nothing that `stat` tells but the times."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def test_a_sound_mirror_is_sound(lab: Lab) -> None:
    lab.settings["cloud"] = ["conda-forge/linux-64", "conda-forge/noarch"]
    lab.settings["installers"] = {"dists": ["miniconda"], "suffixes": ["Linux-x86_64.sh"]}
    assert lab.sync().code == 0
    lab.upstream.requests.clear()
    run = lab.sync("verify")
    assert run.code == 0, run.log
    assert f"{LINUX}: 14 referenced, 14 held, 0 missing, 0 damaged, 0 orphaned" in run.log
    assert lab.upstream.requests == [], "the upstream is not asked"
    lab.check()


@pytest.mark.parametrize("damage", [rot, cut, Path.unlink])
def test_damage_is_found_and_taken_out_of_the_index(lab: Lab, damage: Callable[[Path], None]) -> None:
    assert lab.sync().code == 0
    damage(lab.mirror / LINUX / VICTIM)
    run = lab.sync("verify")
    assert run.code == 1
    assert f"{LINUX}/{VICTIM}" in run.log
    assert VICTIM not in lab.packages(LINUX)
    assert VICTIM not in lab.named(f"{LINUX}/repodata.json")
    lab.check()
    assert lab.sync("verify").code == 0, "what is left is sound"

    run = lab.sync()
    assert run.code == 0, run.log
    assert VICTIM in lab.named(f"{LINUX}/repodata.json")
    lab.check()


@pytest.mark.parametrize("damage", [rot, cut, Path.unlink])
def test_damage_is_repaired(lab: Lab, damage: Callable[[Path], None]) -> None:
    assert lab.sync().code == 0
    damage(lab.mirror / LINUX / VICTIM)
    lab.upstream.requests.clear()
    run = lab.sync("verify", "--repair")
    assert run.code == 0, run.log
    assert "1 repaired" in run.log
    assert [request.path for request in lab.upstream.requests] == [f"/{LINUX}/{VICTIM}"]
    lab.check()
    assert len(list((lab.mirror / ".lanmirror/damaged").iterdir())) == (damage is not Path.unlink)


def test_damage_that_cannot_be_repaired_is_not_served(lab: Lab) -> None:
    assert lab.sync().code == 0
    rot(lab.mirror / LINUX / VICTIM)
    lab.fault(f"*/{VICTIM}", status=404)
    run = lab.sync("verify", "--repair")
    assert run.code == 1
    assert VICTIM not in lab.packages(LINUX)
    lab.check()


def test_an_installer_that_rotted(lab: Lab) -> None:
    lab.settings["installers"] = {"dists": ["miniconda"], "suffixes": ["Linux-x86_64.sh"]}
    assert lab.sync().code == 0
    (file,) = (lab.mirror / "miniconda").iterdir()
    rot(file)
    assert lab.sync("verify").code == 1
    assert not file.exists()
    assert lab.sync().code == 0
    rot(file)
    assert lab.sync("verify", "--repair").code == 0
    assert file.read_bytes() == (lab.tree / "miniconda" / file.name).read_bytes()


def test_a_package_in_its_grace_is_verified_too(lab: Lab) -> None:
    assert lab.sync().code == 0
    channel.edit(lab.tree / LINUX, {VICTIM: None})
    assert lab.sync().code == 0
    run = lab.sync("verify")
    assert run.code == 0, run.log
    assert "13 referenced, 13 held, 0 missing, 0 damaged, 1 orphaned" in run.log
    rot(lab.mirror / LINUX / VICTIM)
    assert lab.sync("verify").code == 1
    assert VICTIM not in lab.packages(LINUX)


def leading_away(folder: Path) -> str:
    file = folder / "repodata.json"
    data = json.loads(file.read_bytes())
    data["info"]["base_url"] = "https://elsewhere.example.org/"
    file.write_text(json.dumps(data))
    return "elsewhere.example.org"


def of_another_day(folder: Path) -> str:
    file = folder / "repodata.json.zst"
    file.write_bytes(zstandard.compress(b'{"packages": {}, "packages.conda": {}}'))
    return "repodata.json.zst"


def without_a_shard(folder: Path) -> str:
    file = next(folder.glob("[0-9a-f]*.msgpack.zst"))
    file.unlink()
    return file.name


@pytest.mark.parametrize("change", [leading_away, of_another_day, without_a_shard])
def test_formats_that_do_not_agree_or_lead_away(lab: Lab, change: Callable[[Path], str]) -> None:
    assert lab.sync().code == 0
    word = change(lab.mirror / LINUX)
    run = lab.sync("verify")
    assert run.code == 1
    assert word in run.log
    run = lab.sync("verify", "--repair")
    assert run.code == 0, run.log
    assert lab.sync("verify").code == 0
    lab.check()


def test_a_round_that_was_broken_off_is_continued(lab: Lab) -> None:
    for number in range(6):
        spec = channel.Spec(f"big{number}", "1.0", subdir="linux-64", files={"big": channel.noise(200_000, number)})
        channel.build(spec, lab.tree / "pkgs/main")
    channel.index(lab.tree / "pkgs/main")
    assert lab.sync().code == 0
    lab.settings["verify_rate"] = "400kB/s"
    run = lab.start("verify")
    lab.until(lambda: run.output.exists() and f"{LINUX}: to hash: 20 files" in run.output.read_text())
    run.kill()
    run.wait()
    lab.settings["verify_rate"] = ""
    finished = lab.sync("verify")
    assert finished.code == 0, finished.log
    assert "going on with the round" in finished.log
    assert f"{LINUX}: to hash" in finished.log
    assert "noarch: to hash" not in finished.log, "that was done"


@pytest.mark.slow
def test_a_sync_at_work_is_not_disturbed(lab: Lab) -> None:
    lab.fault(f"*/{VICTIM}", stall=5.0, times=1)
    run = lab.start()
    lab.until(lambda: bool(lab.upstream.asked(f"*/{VICTIM}")))
    assert lab.sync("verify").code == 3
    assert run.wait().code == 0
