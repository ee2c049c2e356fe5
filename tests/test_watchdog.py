"""A run that stands still says where."""

import time
from pathlib import Path

from pom_jax.training.watchdog import FOLDER, Watchdog


def wait_for_ever(seconds: float) -> None:
    time.sleep(seconds)


def test_what_stands_still_is_written_with_the_stacks_of_its_threads(tmp_path: Path) -> None:
    said: list[str] = []
    with Watchdog(tmp_path, 0.1, said.append) as watchdog:
        for step in range(5):
            watchdog.progress(f"step {step}")
            time.sleep(0.02)
        assert not said, "it moves"
        wait_for_ever(0.35)
    assert 1 <= len(said) <= 3
    assert "in step 4" in said[0]
    text = (tmp_path / FOLDER / "process_0.txt").read_text()
    assert str(tmp_path / FOLDER / "process_0.txt") in said[0]
    assert "wait_for_ever" in text
    assert "in step 4" in text


def test_it_can_be_left_out(tmp_path: Path) -> None:
    said: list[str] = []
    with Watchdog(tmp_path, 0, said.append):
        time.sleep(0.05)
    assert not said
    assert not (tmp_path / FOLDER).exists()
