"""How long a training loop is held up by a checkpoint, side by side with the same steps and no checkpoints.

    python -m benchmarks.checkpoints [--digits=data/digits] [--rounds=3] [--b2]

Prints, for the digits recipe at its own interval (500 steps), the median time that a save holds the loop, its
share of the run, and how much longer the whole interval takes than one without a save: a CPU that computes
writes, too. With --b2 also one save of the state of DiPoM-B/2 (2.8 GB; twice that on the disk and in memory),
between two passes over all of it that stand for steps. Writes benchmarks/results/checkpoints.json.
"""

import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import report
from configs import digits as digits_recipe
from configs import dipom_b2
from pom_jax.data import digits
from pom_jax.data.pipeline import batches, device_batches
from pom_jax.host_memory import keep_freed_memory
from pom_jax.training import checkpoint, digest
from pom_jax.training.run import Run, make_run
from pom_jax.training.sharding import batch_sharding


def interval(
    run: Run, step: Any, state: Any, feed: Any, saver: checkpoint.Checkpoints | None, at: int
) -> tuple[float, float, Any]:
    """The seconds of a save, those of it and the steps up to the next one, and the state then."""
    jax.block_until_ready(state)
    began = time.perf_counter()
    if saver is not None:
        saver.save(at, state)
    held = time.perf_counter() - began
    for _ in range(run.config.train.checkpoint_every):
        state, metrics = step(state, next(feed))
        metrics["loss"].block_until_ready()
    return held, time.perf_counter() - began, state


def measure_digits(folder: str, rounds: int) -> dict[str, float]:
    """Intervals with and without a save, in turn."""
    config = digits_recipe.get_config()
    config.data.dir = folder
    run = make_run(config)
    held, saving, plain = [], [], []
    with jax.set_mesh(run.mesh), tempfile.TemporaryDirectory() as workdir:
        state = run.fresh_state()
        digest.digests(state)
        step, _ = run.compiled_step()
        order = batches(run.train, config.data.batch_size, config.seed)
        saver = checkpoint.Checkpoints(workdir, keep_last=2, keep_best=0)
        with device_batches(order, batch_sharding(run.mesh)) as feed, contextlib.closing(saver):
            _, _, state = interval(run, step, state, feed, saver, 1)  # the first opens what later ones use
            for round_ in range(rounds):
                _, seconds, state = interval(run, step, state, feed, None, 0)
                plain.append(seconds)
                pause, seconds, state = interval(run, step, state, feed, saver, 2 + round_)
                held.append(pause)
                saving.append(seconds)
                said = f"  without {plain[-1]:.2f} s, with {seconds:.2f} s"
                print(f"{said}, of which held up {1e3 * pause:.0f} ms", flush=True)
    without = statistics.median(plain)
    return {
        "pause_ms": 1e3 * statistics.median(held),
        "pause_share": statistics.median(held) / without,
        "interval_s": without,
        "interval_longer_s": statistics.median(saving) - without,
    }


def measure_b2(rounds: int) -> dict[str, float]:
    """Passes over the whole state, donated as a step's is, with and without a save before them."""
    config = dipom_b2.get_config()
    config.data.update({"source": "synthetic", "batch_size": jax.device_count()})
    run = make_run(config)
    held, saving, plain, written = [], [], [], []

    def touch(state: Any) -> Any:
        return jax.tree.map(lambda x: x + 1 if jnp.issubdtype(x.dtype, np.floating) else x, state)

    with jax.set_mesh(run.mesh), tempfile.TemporaryDirectory() as workdir:
        state, pass_over = run.fresh_state(), jax.jit(touch, donate_argnums=0)
        digest.digests(state)
        saver = checkpoint.Checkpoints(workdir, keep_last=1, keep_best=0)
        with contextlib.closing(saver):
            for round_ in range(rounds + 1):
                state = jax.block_until_ready(pass_over(state))
                began = time.perf_counter()
                state = jax.block_until_ready(pass_over(state))
                plain.append(time.perf_counter() - began)
                began = time.perf_counter()
                saver.save(round_, state)
                held.append(time.perf_counter() - began)
                state = jax.block_until_ready(pass_over(state))
                saving.append(time.perf_counter() - began)
                saver.wait()
                written.append(time.perf_counter() - began)
                said = f"  held up {1e3 * held[-1]:.0f} ms"
                print(f"{said}, on the disk after {written[-1]:.1f} s", flush=True)
    return {
        "bytes": checkpoint.tree_bytes(run.state),
        "pause_ms": 1e3 * statistics.median(held[1:]),
        "pass_s": statistics.median(plain[1:]),
        "next_pass_longer_s": statistics.median(saving[1:]) - statistics.median(plain[1:]),
        "written_s": statistics.median(written[1:]),
    }


def main() -> int:
    """Returns the exit code."""
    parser = report.parser(__doc__)
    parser.add_argument("--digits", default="", help="shards of the digits; made if left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--b2", action="store_true")
    arguments = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.digits:
            digits.prepare(Path(folder) / "digits")
        print("digits, intervals of 500 steps:")
        found = {"digits": measure_digits(arguments.digits or f"{folder}/digits", arguments.rounds)}
    if arguments.b2:
        print("DiPoM-B/2, the whole state:")
        found["dipom_b2"] = measure_b2(arguments.rounds)
    lines = [
        f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        for name, values in found.items()
    ]
    report.write("checkpoints", "\n".join(lines), found, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
