"""The account of a run's time: what a killed process did is known, and all parts add up."""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pom_jax.training import checkpoint, ledger, metrics
from pom_jax.training.ledger import Ledger, Process

ROOT = Path(__file__).parent.parent


def row(number: int, **times: float) -> str:
    return json.dumps({"step": number, **{f"time_{name}": value for name, value in times.items()}}) + "\n"


def test_phases_share_the_whole_time() -> None:
    began = ledger.process_start()
    assert 0 < time.time() - began < 24 * 3600
    account = Ledger(began)
    account.enter("steps")
    with account.phase("data"):
        time.sleep(0.02)
        with account.phase("checkpoint"):
            time.sleep(0.01)
    totals = account.totals()
    assert totals["data"] >= 0.02
    assert totals["checkpoint"] >= 0.01
    assert totals["init"] > 0, "the start of the interpreter counts"
    assert sum(totals.values()) == pytest.approx(time.time() - began, abs=0.02)


def test_what_a_process_waits_for_is_known_when_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "EVERY", 0.02)
    account = Ledger()
    account.open(tmp_path)
    with account, account.phase("checkpoint"):
        time.sleep(0.3)
        (found,) = ledger.read(tmp_path)
        assert found.seconds["checkpoint"] > 0.1, "no step is done meanwhile"
        assert (found.phase, found.ended) == ("checkpoint", False)
    (found,) = ledger.read(tmp_path)
    assert found.ended
    time.sleep(0.1)
    assert ledger.read(tmp_path) == [found], "nothing is written after the end"


def test_what_was_done_after_the_checkpoint_is_lost(tmp_path: Path) -> None:
    killed = Process(1000.0, 1010.0, "steps")
    killed.step, killed.first_step = 1, 1003.0
    killed.seconds |= {"init": 2.0, "steps": 6.0, "data": 1.0, "checkpoint": 1.0}
    (tmp_path / ledger.FILE).write_text(json.dumps([vars(killed)]))
    rows = [row(1, step=4.0, input=0.5), row(2, step=2.5, input=0.25, checkpoint=1.0, evaluation=0.25)]
    (tmp_path / metrics.FILE).write_text("".join(rows) + row(3, step=1.0, input=0.125) + '{"step": 4, "ti')
    os.utime(tmp_path / metrics.FILE, (1013.0, 1013.0))
    account = Ledger()
    account.open(tmp_path)
    before = account.processes[0]
    assert before.seen == 1013.0, "its rows went on for three seconds"
    assert (before.seconds["checkpoint"], before.seconds["evaluation"]) == (2.0, 0.25)
    account.resume(1)
    assert before.lost_steps == 2
    lost = {"lost": 2.5, "data": 1.0, "steps": 5.5, "checkpoint": 2.0, "init": 2.0}
    assert before.seconds == pytest.approx(dict.fromkeys(ledger.PHASES, 0.0) | lost)
    account.step(2)
    assert "killed once: 2 steps were done again; " in account.summary()
    assert ledger.read(tmp_path)[0] == before


def test_what_is_lost_is_lost_once_though_the_next_processes_end_before_a_step(tmp_path: Path) -> None:
    killed = Process(1000.0, 1010.0, "steps", step=9, first_step=1001.0)
    killed.seconds["steps"] = 9.0
    (tmp_path / ledger.FILE).write_text(json.dumps([vars(killed)]))
    (tmp_path / metrics.FILE).write_text("".join(row(number, step=1.0) for number in range(1, 10)))
    for resumed, lost in ((6, 3), (6, 3), (4, 5), (4, 5)):  # 6 is damaged at last
        account = Ledger()
        account.open(tmp_path)
        account.resume(resumed)
        assert account.processes[0].lost_steps == account.totals()["lost"] == lost


def test_steps_that_one_process_does_again_are_lost_too(tmp_path: Path) -> None:
    account = Ledger()
    account.open(tmp_path)
    rows = "".join(row(number, step=0.01, input=0.0) for number in range(1, 4))
    (tmp_path / metrics.FILE).write_text(rows)
    account.resume(1)
    assert account.processes[0].lost_steps == 0, "of the run that this one branches off"
    account.enter("steps")
    for number in range(2, 4):
        time.sleep(0.01)
        account.step(number)
    account.resume(1)
    totals = account.totals()
    assert totals["lost"] == pytest.approx(0.02)
    assert account.processes[0].lost_steps == 2


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"began": 1}]', '{"a": 2}'])
def test_an_account_that_cannot_be_read_begins_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / ledger.FILE).write_text(content)
    account = Ledger()
    account.open(tmp_path)
    account.resume(3)
    account.close()
    assert [process.ended for process in ledger.read(tmp_path)] == [True]


@pytest.fixture
def start(tmp_path: Path, digits_dir: Path) -> Callable[[int], subprocess.Popen]:
    fields: dict[str, Any] = {
        "data.dir": digits_dir,
        "data.batch_size": 8,
        "model.width": 8,
        "model.depth": 1,
        "optimizer.warmup_steps": 10,
        "train.steps": 300,
        "train.checkpoint_every": 100,
        "train.eval_every": 50,
        "train.eval_size": 16,
        "train.sample_every": 0,
    }
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    command = [
        sys.executable,
        "train.py",
        "--config=configs/digits.py",
        f"--workdir={tmp_path}/run",
        *overrides,
    ]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return lambda stdout: subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stdout, text=True)


def test_the_time_of_a_killed_run_adds_up(start: Callable[[int], subprocess.Popen], tmp_path: Path) -> None:
    """Within 1 % of what a clock outside shows, for both of its processes and so for the whole of it."""
    rows = tmp_path / "run" / metrics.FILE
    began = time.time()
    process = start(subprocess.DEVNULL)
    while not checkpoint.saved_steps(tmp_path / "run") or rows.read_bytes().count(b"\n") < 230:
        assert process.poll() is None  # it saves at 200 once it has saved at 100, and goes on
        time.sleep(0.005)
    killed = time.time()
    process.kill()
    process.wait()
    kept, done = checkpoint.latest_step(tmp_path / "run") or 0, rows.read_bytes().count(b"\n")

    again = ended = time.time()
    process = start(subprocess.PIPE)
    said = []
    for line in process.stdout or ():
        said, ended = [*said, line], time.time()
    assert process.wait() == 0

    first, second = ledger.read(tmp_path / "run")
    assert (first.ended, second.ended) == (False, True)
    assert sum(first.seconds.values()) == pytest.approx(killed - began, rel=0.01)
    assert sum(second.seconds.values()) == pytest.approx(ended - again, rel=0.01)
    (summary,) = (line for line in said if line.startswith("time: "))
    shares = [float(share) for share in re.findall(r"([\d.]+) %", summary)]
    assert len(shares) == len(ledger.PHASES)
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares)), "rounded"
    assert first.lost_steps == done - kept
    assert first.seconds["lost"] > 0
    assert second.seconds["other"] < 0.01 * sum(second.seconds.values()) + 0.05
    assert second.first_step is not None
    assert 0 < second.first_step - first.seen <= ended - killed + 0.1
    for account in (first, second):
        for phase in ("init", "compile", "steps", "evaluation", "checkpoint"):
            assert account.seconds[phase] > 0, phase
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"killed once: {done - kept} steps were done again" in log

    # Its programs run within the call of their step, also of one that is saved before there is a next.
    found = metrics.read_rows(tmp_path / "run")
    assert 0 < sum(row["time_host"] for row in found) < 0.5 * sum(row["time_step"] for row in found)
    names = ("input", "host", "evaluation", "checkpoint")
    device = [row["time_step"] - sum(row.get(f"time_{name}", 0) for name in names) for row in found]
    assert min(device[99::100]) > 0.1 * statistics.median(device)
