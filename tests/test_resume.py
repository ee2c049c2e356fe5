"""Interrupted runs, with real processes: killed, terminated, started again, they end where one run would."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pom_jax.data import digits
from pom_jax.training import checkpoint, metrics

ROOT = Path(__file__).parent.parent
STEPS, EVERY = 1200, 200


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.Popen]:
    """Starts `python train.py` on a tiny model; only the workdir differs from call to call."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    digits.prepare(folder)
    fields = {
        "data.dir": folder,
        "data.batch_size": 8,
        "model.width": 8,
        "model.depth": 1,
        "optimizer.warmup_steps": 50,
        "ema.decays": "(0.9,0.999)",
        "train.steps": STEPS,
        "train.checkpoint_every": EVERY,
        "train.eval_every": 150,
        "train.eval_size": 16,
        "train.sample_every": 0,
    }
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    # Unoptimised code compiles in half the time; that is all the difference.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}

    def start_process(workdir: Path, *more: str, python: Sequence[str] = ()) -> subprocess.Popen:
        command = [
            sys.executable,
            *python,
            "train.py",
            "--config=configs/digits.py",
            f"--workdir={workdir}",
            *overrides,
            *more,
        ]
        with (workdir.parent / f"{workdir.name}.out").open("a") as output:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    return start_process


def wait_for(process: subprocess.Popen, what: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def lines(workdir: Path) -> int:
    path = workdir / metrics.FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def rows(workdir: Path) -> list[dict[str, Any]]:
    """All rows, without the fields that are times."""
    return [
        {name: value for name, value in row.items() if not name.startswith(metrics.TIME)}
        for row in metrics.read_rows(workdir)
    ]


def leaves(workdir: Path, step: int) -> dict[str, Any]:
    path = workdir / checkpoint.FOLDER / str(step) / "leaves" / "metadata"
    return json.loads(path.read_text())["leaves"]


def test_a_killed_and_a_terminated_run_end_like_one_that_was_not(
    start: Callable[..., subprocess.Popen], tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole).wait() == 0

    kill_at = random.randint(EVERY + 20, 3 * EVERY)
    process = start(broken)
    wait_for(process, lambda: lines(broken) >= kill_at)
    process.kill()
    process.wait()
    written = lines(broken)
    assert written < STEPS

    process = start(broken)
    wait_for(process, lambda: lines(broken) >= written + EVERY // 2)
    signalled = time.monotonic()
    process.terminate()
    wait_for(process, lambda: "SIGTERM: finishing this step" in (broken / "log.txt").read_text())
    process.terminate()  # as a launcher hands its own copy on, or a scheduler asks again
    assert process.wait() == 143, f"killed at {written}"
    assert time.monotonic() - signalled < 10, "from the signal to the end"
    stopped = checkpoint.latest_step(broken)
    assert stopped == lines(broken) == rows(broken)[-1]["step"], "the step was finished and saved"

    assert start(broken).wait() == 0
    assert rows(broken) == rows(whole), f"killed at {written}, terminated at {stopped}"
    assert [row["step"] for row in rows(broken)] == list(range(1, STEPS + 1))
    assert leaves(broken, STEPS) == leaves(whole, STEPS), f"killed at {written}, terminated at {stopped}"
    assert {name.split("/")[0] for name in leaves(whole, STEPS)} >= {
        "params",
        "opt_state",
        "ema",
        "key",
        "step",
    }


def test_a_second_ctrl_c_quits_at_once(start: Callable[..., subprocess.Popen], tmp_path: Path) -> None:
    process = start(tmp_path / "run")
    log = tmp_path / "run" / "log.txt"
    wait_for(process, lambda: lines(tmp_path / "run") >= 5)
    process.send_signal(signal.SIGINT)
    wait_for(process, lambda: "Ctrl-C from now on quits" in log.read_text())
    process.send_signal(signal.SIGINT)
    assert process.wait() == -signal.SIGINT
    assert checkpoint.latest_step(tmp_path / "run") is None
    assert "saved at step" not in log.read_text()


def test_a_run_loads_all_of_the_library_before_it_trains(
    start: Callable[..., subprocess.Popen], tmp_path: Path
) -> None:
    """An update of the checkout under a run of days must not end it at the next picture."""
    few = ("--config.train.steps=20", "--config.train.sample_every=20", "--config.train.eval_every=20")
    assert start(tmp_path / "run", *few, python=("-X", "importtime")).wait() == 0
    before, _, training = (tmp_path / "run.out").read_text().partition("compiling the training step")
    assert any("import time:" in line and "pom_jax.models" in line for line in before.splitlines())
    assert "picture" in training
    assert "pom_jax." not in "".join(line for line in training.splitlines() if "import time:" in line)
