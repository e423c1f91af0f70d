"""Two hundred runs killed with SIGKILL, each followed by the check from outside and by a run that ends.

Half of them are killed by the clock, wherever they are; half before a change of the file system that the seed
chooses, so that the short moments in which indexes and packages change places are met as well.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.engine.churn import Churn
from tests.engine.lab import Lab

pytestmark = pytest.mark.slow

KILLS = 200
# In this many batches, so that one that fails says in which part, and xdist could share them out.
BATCHES = 4


@pytest.mark.parametrize("batch", range(BATCHES))
def test_runs_that_are_killed_leave_the_mirror_closed_and_the_next_one_ends(
    lab: Lab, tmp_path: Path, batch: int
) -> None:
    dice = random.Random(batch)
    churn = Churn(lab, dice)
    lab.settings["delete_grace_hours"] = 0
    counter = tmp_path / "count"
    assert lab.sync().code == 0
    kills = attempts = 0
    span, changes = 0.2, 60
    while kills < KILLS // BATCHES:
        attempts += 1
        assert attempts < KILLS, f"only {kills} of {attempts} runs were hit"
        churn.turn()
        where = f"batch {batch}, attempt {attempts}"
        if attempts % 2:
            run = lab.start("--delete")
            time.sleep(dice.uniform(0, span))
            run.kill()
        else:
            run = lab.start("--delete", die_at=dice.randint(1, changes))
        killed = run.wait()
        assert killed.code in (-9, 0), f"{where}: {killed.log}"
        kills += killed.code == -9
        assert run.left_behind() == [], where
        assert lab.problems() == [], f"{where}: after {killed.log}"

        began = time.monotonic()
        ended = lab.sync("--delete", count_to=str(counter))
        assert ended.code == 0, f"{where}: {ended.log}"
        # What the next ones are aimed at follows what runs are like on this machine.
        span = 0.7 * span + 0.3 * (time.monotonic() - began)
        changes = (changes + int(counter.read_text())) // 2
        lab.check()
