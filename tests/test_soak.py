"""Killed at the worst moments of a checkpoint: while it is written, in its commit, while an old one goes."""

import random
from pathlib import Path

import pytest

from benchmarks import soak
from pom_jax.data import digits
from pom_jax.training import checkpoint

STEPS = 150


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_a_run_killed_while_it_saves_ends_like_one_that_was_not(tmp_path: Path) -> None:
    digits.prepare(tmp_path / "digits")
    runs, whole, broken = soak.Soak(tmp_path, STEPS), tmp_path / "whole", tmp_path / "broken"
    assert runs.start(whole, 1).wait() == 0, runs.said(whole).read_text()
    chance = random.Random(0)
    for moment in ("save", "commit", "deletion"):
        told = soak.disturb(runs, broken, moment, 1, chance)  # raises if the step before was not the newest
        assert told is not None, "the run ended before it met that moment"
        print(told)
    assert runs.start(broken, 1).wait() == 0, runs.said(broken).read_text()
    assert soak.end_of(broken, STEPS) == soak.end_of(whole, STEPS)
    assert checkpoint.saved_steps(broken) == checkpoint.saved_steps(whole)
    left = [path.name for path in (broken / checkpoint.FOLDER).iterdir() if not path.name.isdigit()]
    assert not [name for name in left if "tmp" in name], "half-written checkpoints are cleaned up"
