"""Wrong losses are computed again, and what comes then decides who is to blame."""

import ctypes
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs import digits as recipe
from pom_jax.errors import InputError
from pom_jax.sampling import write
from pom_jax.training import ledger, loop, metrics
from pom_jax.training.checkpoint import saved_steps
from pom_jax.training.faults import FEWEST, LastingFault, NumberCheck, WrongNumbers, lasting
from pom_jax.training.fid import Fid, Say, Stops
from pom_jax.training.preview import WriteImages

ROOT = Path(__file__).parent.parent
SHARD = "train-00000.array_record"
TINY = {
    "data.batch_size": 8,
    "model.width": 8,
    "model.depth": 1,
    "optimizer.warmup_steps": 0,
    "train.steps": 60,
    "train.checkpoint_every": 20,
    "train.eval_every": 0,
    "train.sample_every": 0,
    "train.max_skipped": 5,
}


def row(loss: float, skipped: int = 0) -> dict[str, float]:
    return {"loss": loss, "skipped_in_a_row": skipped}


def wrong(check: NumberCheck, step: int, loss: float, skipped: int = 0) -> WrongNumbers:
    with pytest.raises(WrongNumbers) as raised:
        check.add(step, row(loss, skipped))
    return raised.value


def after(losses: int, absurd: float = 10.0, suspect: WrongNumbers | None = None) -> NumberCheck:
    check = NumberCheck(3, absurd, suspect)
    for step in range(1, losses + 1):
        assert check.add(step, row(0.2 + 0.1 * (step % 3))) == ""
    return check


def test_a_loss_is_absurd_beside_those_before_it() -> None:
    assert after(FEWEST).add(FEWEST + 1, row(3.9)) == "", "below ten times 0.4"
    found = wrong(after(FEWEST), FEWEST + 1, 4.1)
    assert (found.step, found.limit) == (FEWEST + 1, pytest.approx(4.0))
    assert "is 4.1, and was at most 0.4" in str(found)
    assert found.suspect is None
    assert after(FEWEST - 1).add(FEWEST, row(1e6)) == "", "too few to compare with"
    assert after(FEWEST, absurd=0).add(FEWEST + 1, row(1e6)) == ""


def test_steps_that_are_not_finite_are_too_many_in_a_row() -> None:
    check = after(5)
    for count in (1, 2):
        assert check.add(5 + count, row(math.nan, count)) == ""
    assert "in 3 steps in a row, up to step 8" in str(wrong(check, 8, math.nan, 3))


def test_the_verdict_is_told_at_the_step_that_was_wrong() -> None:
    suspect = wrong(after(FEWEST), FEWEST + 1, 50.0)
    again = after(FEWEST, suspect=suspect)
    assert again.add(FEWEST + 1, row(0.3)).startswith("verdict: a passing fault")
    assert again.add(FEWEST + 2, row(0.3)) == "", "told once"
    assert wrong(again, FEWEST + 3, 50.0).suspect is None, "another one"


def test_what_comes_again_lasts_also_with_fewer_losses_to_compare_with() -> None:
    suspect = wrong(after(FEWEST), FEWEST + 1, 50.0)
    again = wrong(after(0, suspect=suspect), FEWEST + 1, 50.0)
    assert again.suspect is suspect
    assert "the same to the last digit (loss 50)" in str(lasting(suspect, again))
    other = wrong(after(0, suspect=suspect), FEWEST + 1, 51.0)
    assert "(losses 50 and 51)" in str(lasting(suspect, other))
    earlier = wrong(after(0, suspect=suspect), 4, math.nan, 3)
    assert "last checkpoint, the loss or the gradient was not finite" in str(lasting(suspect, earlier))
    suspect.aside = 20
    assert "last checkpoint and from the one before, it is the same" in str(lasting(suspect, again))


def test_a_state_that_was_not_finite_is_judged_when_its_step_is_saved() -> None:
    suspect = after(5).not_finite(40, "not finite: ema/0/kernel")
    assert str(suspect) == "the state after step 40 is not finite: ema/0/kernel"
    again = after(50, suspect=suspect)
    assert again.saved(20) == ""
    assert again.not_finite(40, "not finite: ema/0/kernel").suspect is suspect, "also after later steps"
    assert again.saved(40).startswith("verdict: a passing fault. Computed again, the state after step 40 is")
    assert again.saved(60) == "", "told once"
    assert again.not_finite(80, "not finite").suspect is None


class Fault:
    """Writes a number over parameters, moments and averages in the memory of the running process.

    It stands where a run scores itself during training, after a step and before that is saved, and waits for
    the checkpoint before it to be whole.
    """

    name = "score"

    def __init__(self, step: int, value: float, after: Path, times: int = 1):
        self._step, self._value, self._after, self._times = step, value, after, times

    def prepare(self, say: Say, moved: Say) -> None:
        pass

    def __call__(self, params: Any, step: int, say: Say, moved: Say, stops: Stops) -> dict[str, Any]:
        if step == self._step and self._times:
            self._times -= 1
            while not self._after.is_dir():
                time.sleep(0.01)
            shape = params["out"]["kernel"].shape
            new = np.full(shape, self._value, np.float32)
            for array in jax.live_arrays():
                if array.shape == shape:
                    ctypes.memmove(array.unsafe_buffer_pointer(), new.ctypes.data, new.nbytes)
        return {self.name: np.zeros(())}


class Slow:
    """Takes long where a run scores itself, and tells at the first step alone that something moves."""

    name = "score"

    def prepare(self, say: Say, moved: Say) -> None:
        time.sleep(2)

    def __call__(self, params: Any, step: int, say: Say, moved: Say, stops: Stops) -> dict[str, Any]:
        for part in range(25):
            time.sleep(0.1)
            if step == 1:
                moved(f"part {part}")
        return {self.name: np.zeros(())}


def train(
    folder: Path, workdir: Path, fault: Fid | None, *, write_images: WriteImages = write, **changes: Any
) -> int:
    """60 steps of a tiny model, with checkpoints after 20, 40 and 60."""
    config = recipe.get_config()
    config.update_from_flattened_dict(
        {
            **TINY,
            "data.dir": str(folder),
            "fid.every": 1 if fault else 0,
            "fid.reference": "none",
            "fid.inception": "none",
            **changes,
        }
    )
    return loop.train(config, workdir, write_images, make_fid=(lambda *_: fault) if fault else None)


@pytest.fixture(scope="module")
def untouched(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("untouched") / "run"
    assert train(digits_dir, workdir, None) == 0
    return workdir


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1e4, r"the loss of step 51 is \S+, and was at most"),
        (math.nan, "the loss or the gradient was not finite in 5 steps in a row, up to step 55"),
    ],
)
def test_a_run_outlives_a_passing_fault_of_the_machine(
    value: float, message: str, digits_dir: Path, untouched: Path, tmp_path: Path
) -> None:
    """It ends with the numbers of a run that nothing has happened to."""
    fault = Fault(50, value, tmp_path / "run" / "checkpoints" / "40")
    assert train(digits_dir, tmp_path / "run", fault) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert re.search(rf"{message}.*by the run or by the machine\? Back to compute it again", log)
    assert "goes on after step 40" in log
    assert "verdict: a passing fault" in log
    losses = [[row["loss"] for row in metrics.read_rows(run)] for run in (untouched, tmp_path / "run")]
    assert losses[0] == losses[1]
    listed = [run / "checkpoints" / "60" / "leaves" / "metadata" for run in (untouched, tmp_path / "run")]
    assert listed[0].read_text() == listed[1].read_text(), "digests of all leaves"
    assert ledger.read(tmp_path / "run")[-1].lost_steps >= 10


def cut(folder: Path) -> None:
    os.truncate(folder / SHARD, 100_000)


def flip(folder: Path) -> None:
    content = bytearray((folder / SHARD).read_bytes())
    content[len(content) // 3] ^= 1
    (folder / SHARD).write_bytes(content)


def recount(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    content["splits"]["train"][0]["records"] -= 1
    (folder / "manifest.json").write_text(json.dumps(content))


def test_a_command_on_damaged_data_names_it_and_a_run_goes_on_where_it_is_whole_again(
    digits_dir: Path, untouched: Path, tmp_path: Path
) -> None:
    run, data = tmp_path / "run", tmp_path / "digits"
    shutil.copytree(digits_dir, data)
    shutil.copytree(untouched, run)
    shutil.rmtree(run / "checkpoints" / "60")  # as if it had stopped before
    fields = TINY | {"data.dir": data}
    command = [sys.executable, "train.py", f"--config={recipe.__file__}", f"--workdir={run}"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    checkpoint = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
    for damage, words in (
        (cut, f"{SHARD} has 100000 bytes, the manifest says 262144; remove .* and make the data set again"),
        (flip, f"{SHARD} has SHA-256 .* its content was changed; remove .* and make the data set again"),
        (recount, f"{SHARD} has 1437 records, the manifest says 1436; remove .* and make the data set again"),
    ):
        damage(data)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2, done.stdout + done.stderr
        assert re.search(f"^error: .*{words}", done.stderr), done.stderr
        assert "Traceback" not in done.stderr
        assert {path: path.read_bytes() for path in checkpoint} == checkpoint
        shutil.rmtree(data)
        shutil.copytree(digits_dir, data)
    assert train(data, run, None) == 0
    losses = [[row["loss"] for row in metrics.read_rows(workdir)] for workdir in (untouched, run)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("step", "saved", "before"), [(37, 40, 20), (60, 60, 40)])
def test_a_state_that_is_not_finite_is_not_saved(
    step: int, saved: int, before: int, digits_dir: Path, untouched: Path, tmp_path: Path
) -> None:
    """Where fewer steps than too many were skipped before the checkpoint is due, or none, after the last."""
    fault = Fault(step, math.nan, tmp_path / "run" / "checkpoints" / str(before))
    assert train(digits_dir, tmp_path / "run", fault, **{"train.max_skipped": 30}) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"the state after step {saved} is not finite: params/out/kernel and 3 more leaves: by the" in log
    assert f"goes on after step {before}" in log
    assert f"verdict: a passing fault. Computed again, the state after step {saved} is finite" in log
    assert metrics.read_rows(tmp_path / "run")[-1]["skipped"] == 0
    listed = [run / "checkpoints" / "60" / "leaves" / "metadata" for run in (untouched, tmp_path / "run")]
    assert listed[0].read_text() == listed[1].read_text(), "digests of all leaves"


def test_a_last_step_that_is_never_finite_ends_with_its_own_exit_code(
    digits_dir: Path, tmp_path: Path
) -> None:
    fault = Fault(60, math.nan, tmp_path / "run" / "checkpoints" / "40", times=9)
    with pytest.raises(
        LastingFault, match=r"after step 60 is not finite: params.* from the one before"
    ) as told:
        train(digits_dir, tmp_path / "run", fault)
    assert told.value.exit_code == 3
    assert saved_steps(tmp_path / "run") == [20, 40]


def test_a_run_that_is_done_needs_no_room(
    digits_dir: Path, untouched: Path, tmp_path: Path, capsys: Any
) -> None:
    run = tmp_path / "run"
    shutil.copytree(untouched, run)
    (run / "log.txt").unlink()
    (run / "log.txt").symlink_to("/dev/full")
    assert train(digits_dir, run, None) == 0
    config = (run / "config.json").stat().st_mtime_ns
    assert train(digits_dir, run, None) == 0
    assert (run / "config.json").stat().st_mtime_ns == config
    said = capsys.readouterr().out
    assert said.count("log.txt cannot be written: No space left on device") == 2
    assert said.count("has all 60 steps already") == 2
    with pytest.raises(InputError, match=r"needs .* GB, but the disk"):
        train(digits_dir, run, None, **{"train.steps": 61, "train.keep_last": 10**9})
    assert train(digits_dir, run, None, **{"train.keep_last": 10**9}) == 0


def test_rows_that_cannot_be_written_are_told_in_words(tmp_path: Path) -> None:
    rows = metrics.JsonLines(tmp_path, 0)
    os.close(rows._file.fileno())
    with pytest.raises(InputError, match=r"metrics.jsonl cannot be written .*: look at the disk") as told:
        rows.sync()
    assert told.value.exit_code == 74, "a restart loop tries again"
    rows.close()


def test_rows_that_cannot_be_opened_are_told_in_words(tmp_path: Path) -> None:
    rows = tmp_path / metrics.FILE
    rows.symlink_to(rows)  # says as little of what it holds as an unreadable sector
    for read in (lambda: metrics.JsonLines(tmp_path, 0), lambda: metrics.by_step(tmp_path, "loss")):
        with pytest.raises(InputError, match=r"metrics.jsonl cannot be opened .*: look at the disk") as told:
            read()
        assert told.value.exit_code == 74, "a restart loop tries again"


def test_a_score_that_tells_how_far_it_is_does_not_stand_still(digits_dir: Path, tmp_path: Path) -> None:
    assert train(digits_dir, tmp_path / "run", Slow(), **{"train.steps": 2, "train.stuck_after": 1.5}) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert re.search(r"nothing has moved for \d s in the reference of FID", log), "before the first step too"
    assert re.search(r"nothing has moved for \d s in the FID of step 2; what each thread does is in", log)
    assert "in part" not in log
    assert "in the FID of step 1" not in log


def test_a_checkpoint_that_was_spoiled_before_it_was_saved_is_set_aside(
    digits_dir: Path, untouched: Path, tmp_path: Path
) -> None:
    fault = Fault(40, 1e4, tmp_path / "run" / "checkpoints" / "20")
    assert train(digits_dir, tmp_path / "run", fault) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert re.search(r"step 40: by the run, or was that saved .* Back to step 20, to compute 21 steps", log)
    assert "verdict: the checkpoint of step 40 is spoiled, by a fault before it was saved." in log
    leaves = Path("leaves", "metadata")
    good = [(untouched / "checkpoints" / step / leaves).read_text() for step in ("40", "60")]
    assert [(tmp_path / "run" / "checkpoints" / step / leaves).read_text() for step in ("40", "60")] == good
    assert (tmp_path / "run" / "damaged" / "40" / leaves).read_text() != good[0]


def test_what_is_wrong_from_an_older_checkpoint_too_is_lasting(digits_dir: Path, tmp_path: Path) -> None:
    fault = Fault(45, 1e4, tmp_path / "run" / "checkpoints" / "40", times=9)
    with pytest.raises(LastingFault, match=r"from the last checkpoint and from the one before, .*of the run"):
        train(digits_dir, tmp_path / "run", fault)
    assert (tmp_path / "run" / "log.txt").read_text().count("goes on after step") == 2, "no endless loop"
    assert saved_steps(tmp_path / "run") == [20, 40], "the newest is made again on the way"


def test_a_run_that_diverges_ends_with_its_own_exit_code(digits_dir: Path, tmp_path: Path) -> None:
    changes = {"optimizer.learning_rate": 1e30, "optimizer.clip_norm": 0.0}
    with pytest.raises(LastingFault, match="to the last digit") as told:
        train(digits_dir, tmp_path / "run", None, **changes)
    assert "not finite in 5 steps in a row" in str(told.value)
    assert told.value.exit_code == 3
