"""Clients all the time, while syncs bring new packages, other bytes under old names, and deletions."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Iterator

import pytest

from tests.engine import outside
from tests.engine.churn import Churn
from tests.engine.lab import Lab
from tests.upstream import channel

pytestmark = pytest.mark.slow

LINUX = "pkgs/main/linux-64"
ROUNDS = 15


class Watch:
    """The check from outside, again and again."""

    def __init__(self, lab: Lab) -> None:
        self.problems: list[str] = []
        self.rounds = 0
        self._lab = lab
        self._stop = threading.Event()

    def run(self) -> None:
        """Check until told to stop."""
        while not self._stop.is_set():
            self.problems += self._lab.problems(moving=True)
            self.rounds += 1

    @classmethod
    @contextlib.contextmanager
    def over(cls, lab: Lab) -> Iterator[Watch]:
        """Watch for the length of a `with`."""
        watch = cls(lab)
        thread = threading.Thread(target=watch.run)
        thread.start()
        try:
            yield watch
        finally:
            watch._stop.set()
            thread.join()


def test_clients_see_a_closed_mirror_at_every_moment(lab: Lab) -> None:
    churn = Churn(lab, random.Random(7))
    lab.settings["delete_grace_hours"] = 0
    assert lab.sync().code == 0
    with Watch.over(lab) as watch:
        for number in range(ROUNDS):
            churn.turn()
            lab.settings["exclude"] = ["unwanted", *(["tool"] if number % 2 else [])]
            run = lab.sync("--delete")
            assert run.code == 0, run.log
    assert watch.problems == []
    assert watch.rounds >= ROUNDS // 2
    lab.check()


def test_clients_see_a_closed_mirror_while_both_kinds_of_runs_work_at_once(lab: Lab) -> None:
    """On demand: what is named and not here, the upstream has had. Some runs are killed, and some find it gone."""
    dice, churn = random.Random(9), Churn(lab, random.Random(9))
    lab.settings |= {"on_demand": True, "delete_grace_hours": 0, "retries": 0, "max_delete": 60}
    assert lab.sync().code == 0
    with Watch.over(lab) as watch:
        for number in range(2 * ROUNDS):
            if number % 3:
                churn.turn()
            lab.settings["repos"] = ["main" if number % 7 else {"name": "main", "hold": "none"}]
            sync = lab.start("--delete")
            churn.turn()
            refreshes = [lab.start("--indexes")]
            if number % 5 == 0:
                refreshes[0].kill()
            codes = [refreshes[0].wait().code]
            if number % 4 == 0:
                time.sleep(dice.uniform(0, 0.2))
                sync.kill()
            ended = sync.wait()
            assert codes[0] in (0, 1, -9)
            assert ended.code in (0, 1, -9), ended.log
    assert watch.problems == []
    assert watch.rounds >= ROUNDS
    lab.settings["repos"] = ["main"]
    assert lab.sync("--delete", "--max-delete", "100").code == 0
    assert lab.sync("--indexes").code == 0
    assert lab.packages(LINUX) == lab.named(f"{LINUX}/repodata.json")
    lab.check()


def test_clients_see_a_closed_mirror_while_downloads_fail(lab: Lab) -> None:
    churn = Churn(lab, random.Random(8))
    lab.settings |= {"delete_grace_hours": 0, "retries": 0}
    assert lab.sync().code == 0
    with Watch.over(lab) as watch:
        for number in range(ROUNDS):
            churn.turn()
            fault = ({"corrupt": True}, {"cut": 50}, {"status": 404}, {"drop": True}, {"body": b"<html>"})[number % 5]
            lab.fault("*/churn*.conda", **fault, times=2)
            run = lab.sync("--delete")
            assert run.code in (0, 1), run.log
            lab.upstream.faults.clear()
    assert watch.problems == []
    assert lab.sync("--delete").code == 0
    lab.check()


def test_a_client_with_yesterdays_index_finds_its_files(lab: Lab) -> None:
    """Every file of an index that was served stays for the time of grace, whatever the index says since."""
    churn = Churn(lab, random.Random(9))
    lab.settings["delete_grace_hours"] = 1
    for _ in range(4):
        churn.turn()
    assert lab.sync("--delete").code == 0
    old = {subdir: lab.named(f"{subdir}/repodata.json") for subdir in lab.subdirs}
    for _ in range(6):
        churn.turn()
        assert lab.sync("--delete").code == 0
    client = outside.Client(lab.served.url)
    assert old[LINUX] - lab.named(f"{LINUX}/repodata.json"), "the upstream lost some of them"
    for subdir, names in old.items():
        for name in names:
            assert client.get(f"{lab.served.url}/{subdir}/{name}")[0] == 200, name


def test_an_upstream_that_changes_in_mid_run(lab: Lab) -> None:
    """The index is of one moment, the bytes are of the next: what does not fit is not served, and comes later."""
    assert lab.sync().code == 0
    main = lab.tree / "pkgs/main"
    first = [channel.Spec(f"mid{n}", "1.0", subdir="linux-64", files={"x": bytes([n]) * 500}) for n in range(6)]
    second = [channel.Spec(f"mid{n}", "1.0", subdir="linux-64", files={"x": bytes([n]) * 900}) for n in (0, 1)]
    channel.publish(main, *first)
    changed = threading.Event()

    def change() -> None:
        if not changed.is_set():
            changed.set()
            channel.publish(main, *second)
            channel.retract(main, "linux-64", first[2].file_name)

    lab.during("*/mid*.conda", change)
    with Watch.over(lab) as watch:
        run = lab.sync()
    lab.remember()
    assert changed.is_set()
    assert run.code in (0, 1), run.log
    assert watch.problems == []
    lab.check()
    assert lab.sync().code == 0
    named = lab.check().named[f"{LINUX}/repodata.json"]
    assert first[3].file_name in named
    assert first[2].file_name not in named
    theirs = json.loads((lab.tree / LINUX / "repodata.json").read_bytes())["packages.conda"]
    assert lab.repodata(LINUX)["packages.conda"][second[0].file_name] == theirs[second[0].file_name]


def test_an_upstream_that_changes_between_two_forms_of_its_index(lab: Lab) -> None:
    """Whatever forms are read when, those that are served are all of one index."""
    assert lab.sync().code == 0
    channel.publish(lab.tree / "pkgs/main", channel.Spec("one", subdir="linux-64", files={"x": b"1"}))
    count = iter(range(1000))
    news = (channel.Spec(f"more{number}", subdir="linux-64", files={"x": b"2"}) for number in count)

    def change() -> None:
        channel.publish(lab.tree / "pkgs/main", next(news))

    lab.during(f"/{LINUX}/*repodata*", change)
    run = lab.sync()
    assert run.code in (0, 1), run.log
    lab.upstream.on_request = lambda request: None
    lab.remember()
    lab.check()
    assert lab.sync().code == 0
    lab.check()
