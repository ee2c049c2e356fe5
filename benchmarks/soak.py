"""Kills a run again and again at bad moments, starts it again, and compares its end with an undisturbed one.

    python -m benchmarks.soak [--kills=20] [--seed=0]

The run is train.py on the digits with a tiny network, as one process or as two on this machine, in turn by
chance; the signal is SIGKILL, to one process or to all at once. The moments: in a step, while a checkpoint is
written, in its commit (its files are complete, it has not its name yet), while an old step is deleted, and
while the run starts. After each kill the newest finished step is noted; the next start has to go on from it.

Prints one line a kill and the count; the exit code is 1 if a start failed, went on from an older step, or if
the end has other digests or other rows of metrics than an undisturbed run.
"""

import argparse
import collections
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pom_jax.data import digits
from pom_jax.training import checkpoint, metrics

ROOT = Path(__file__).parent.parent
STEPS, EVERY = 1000, 30
MOMENTS = ("step", "save", "commit", "deletion", "start")
FIELDS = {
    "data.batch_size": 8,
    "model.width": 8,
    "model.depth": 1,
    "optimizer.warmup_steps": 50,
    "train.checkpoint_every": EVERY,
    "train.eval_every": 0,
    "train.sample_every": 0,
    "train.keep_last": 2,
    "train.keep_best": 0,
    "mesh.data": 2,
}


class Soak:
    """One run that is disturbed.

    Args:
        folder: for its data, its workdir and compiled programs.
        steps: how long it is.
    """

    def __init__(self, folder: Path, steps: int):
        self._folder, self._steps = folder, steps
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
        self._environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags,
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def start(self, workdir: Path, processes: int) -> subprocess.Popen:
        """Starts the run with two devices, in one process or two."""
        fields = FIELDS | {"data.dir": self._folder / "digits", "train.steps": self._steps}
        command = [sys.executable, "scripts/launch.py", f"--processes={processes}"]
        command += [f"--devices={2 // processes}", "--", "train.py", "--config=configs/digits.py"]
        command += [f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in fields.items())]
        with self.said(workdir).open("w") as output:
            return subprocess.Popen(
                command, cwd=ROOT, env=self._environment, stdout=output, stderr=subprocess.STDOUT
            )

    def said(self, workdir: Path) -> Path:
        """What the last start printed."""
        return workdir.with_suffix(".out")


def at(moment: str, workdir: Path, already: int, chance: random.Random) -> Callable[[], bool]:
    """Whether the run in `workdir` is at a moment now; `already` rows were there before it started."""
    folder, rows = workdir / checkpoint.FOLDER, workdir / metrics.FILE
    newest, left = checkpoint.latest_step(workdir), set(folder.glob("*.orbax-checkpoint-tmp*"))
    later = already + chance.randint(5, 2 * EVERY)

    def stepping() -> bool:
        return rows.exists() and rows.read_bytes().count(b"\n") > later

    def unfinished() -> list[Path]:
        found = folder.glob("*.orbax-checkpoint-tmp*") if folder.is_dir() else ()
        return [path for path in found if path not in left]

    def committing() -> bool:
        return any((path / "commit_success.txt").exists() or (path / "state" / "manifest.ocdbt").exists()
                   for path in unfinished())  # fmt: skip

    def deleting() -> bool:  # the newest has its name, and the oldest is on its way
        steps = checkpoint.saved_steps(workdir)
        if len(steps) <= FIELDS["train.keep_last"] or steps[-1] == newest:
            return False
        time.sleep(chance.uniform(0, 0.003))
        return True

    began, delay = time.monotonic(), chance.uniform(0.5, 6)
    return {
        "step": stepping,
        "save": lambda: bool(unfinished()),
        "commit": committing,
        "deletion": deleting,
        "start": lambda: time.monotonic() - began > delay,
    }[moment]


def kill(launcher: subprocess.Popen, everyone: bool, chance: random.Random) -> None:
    """SIGKILL to one of the processes, or to all; returns when all are gone."""
    path = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    children = [int(word) for word in path.read_text().split()]
    for child in children if everyone else children[:1] and [chance.choice(children)]:
        os.kill(child, signal.SIGKILL)
    launcher.wait()


def disturb(soak: Soak, workdir: Path, moment: str, processes: int, chance: random.Random) -> str | None:
    """Starts the run and kills it at a moment; returns how it went, or None if it ended before."""
    saved = checkpoint.latest_step(workdir) or 0
    path = workdir / metrics.FILE
    already = path.read_bytes().count(b"\n") if path.exists() else 0
    launcher = soak.start(workdir, processes)
    reached, everyone = at(moment, workdir, saved, chance), processes == 1 or chance.random() < 0.5
    while not reached():
        if launcher.poll() is not None:
            if launcher.returncode:
                raise RuntimeError(soak.said(workdir).read_text())
            return None
        time.sleep(0.0005)
    kill(launcher, everyone, chance)
    if saved and moment != "start":
        found = re.search(r"goes on after step ([\d,]+)", soak.said(workdir).read_text())
        if found is None or int(found[1].replace(",", "")) != saved:
            raise RuntimeError(f"step {saved} was saved, but:\n{soak.said(workdir).read_text()}")
    now = path.read_bytes().count(b"\n") if path.exists() else 0
    kept = checkpoint.latest_step(workdir) or 0
    who = "all" if everyone and processes > 1 else "one"
    return (
        f"{moment:9} {who} of {processes} killed, went on after {saved:5} (of {already:5} rows), "
        f"reached {now:5}, saved {kept:5}, to be done again {max(0, now - kept):3}"
    )


def end_of(workdir: Path, steps: int) -> tuple[Any, Any]:
    """The digests after the last step, and all rows without their times."""
    path = workdir / checkpoint.FOLDER / str(steps) / "leaves" / "metadata"
    rows = [
        {name: value for name, value in row.items() if not name.startswith(metrics.TIME)}
        for row in metrics.read_rows(workdir)
    ]
    return json.loads(path.read_text())["leaves"], rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    chance, counts, kills = random.Random(arguments.seed), collections.Counter(), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digits.prepare(folder / "digits")
        soak, whole, broken = Soak(folder, arguments.steps), folder / "whole", folder / "broken"
        if soak.start(whole, 1).wait():
            raise RuntimeError(soak.said(whole).read_text())
        while kills < arguments.kills:
            moment = MOMENTS[kills % len(MOMENTS)]
            told = disturb(soak, broken, moment, chance.choice((1, 2)), chance)
            if told is None:
                print("the run ended before all kills: raise --steps")
                return 1
            kills += 1
            counts[moment] += 1
            print(f"{kills:3} {told}", flush=True)
        if soak.start(broken, 1).wait():
            raise RuntimeError(soak.said(broken).read_text())
        same = end_of(whole, arguments.steps) == end_of(broken, arguments.steps)
        damaged = (broken / "damaged").exists()
    words = ", ".join(f"{count} at {moment}" for moment, count in counts.items())
    print(f"{kills} kills ({words}): every start went on from the newest finished step")
    print(f"digests and rows of metrics {'are' if same else 'ARE NOT'} those of an undisturbed run")
    return 0 if same and not damaged else 1


if __name__ == "__main__":
    sys.exit(main())
