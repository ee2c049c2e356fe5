"""The training step of DiPoM-S/2 on 32 x 32 x 4 latents against the sum of its matrix products alone.

    python -m benchmarks.train_step [--batch=8] [--rounds=5]

All variants take turns in one run. Needs about 5 GiB of memory and five minutes on two CPU cores.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import matmuls, report
from configs import common
from pom_jax.data.pipeline import batches
from pom_jax.host_memory import keep_freed_memory
from pom_jax.training.run import Run, make_run
from pom_jax.training.step import make_train_step

VARIANTS = {
    "scanned": {"scan": True, "remat": "none"},
    "unrolled": {"scan": False, "remat": "none"},
    "scanned, remat dots": {"scan": True, "remat": "dots"},
    "scanned, remat full": {"scan": True, "remat": "full"},
}


def make(batch_size: int, model: dict[str, Any]) -> Run:
    """The S/2 recipe on synthetic latents, float32."""
    config = common.imagenet("DiPoM-S/2")
    config.dtype = "float32"
    config.data.update({"source": "synthetic", "batch_size": batch_size})
    config.model.update(model)
    return make_run(config)


def stepper(run: Run, batch: Any) -> Callable[[], jax.Array]:
    """One training step a call, the state carried along."""
    step, line = run.compiled_step()
    print(line, flush=True)
    kept = {"state": run.fresh_state()}

    def call() -> jax.Array:
        kept["state"], metrics = step(kept["state"], batch)
        return metrics["loss"]

    return call


def main() -> None:
    """Measures and reports."""
    parser = report.parser(__doc__)
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each variant")
    arguments = parser.parse_args()
    keep_freed_memory()

    runs = {name: make(arguments.batch, model) for name, model in VARIANTS.items()}
    run = runs["scanned"]
    batch = jax.tree.map(jnp.asarray, next(iter(batches(run.train, arguments.batch, seed=0))))
    step = make_train_step(run.config, run.model, run.train.manifest, run.optimizer)
    counts = matmuls.products(jax.make_jaxpr(step)(run.state, run.batch).jaxpr)
    gflop = sum(product.flops * count for product, count in counts.items()) / 1e9
    print(f"{sum(counts.values()):,} matrix products a step, {gflop:,.0f} GFLOP; measuring them", flush=True)

    calls = {name: stepper(each, batch) for name, each in runs.items()}
    before = matmuls.floor_seconds(counts, arguments.rounds)
    seconds = report.in_turns(calls, arguments.rounds)
    floor = (before + matmuls.floor_seconds(counts, arguments.rounds)) / 2
    rows = [["matrix products alone", floor, 1.0, gflop / floor]]
    rows += [[name, value, value / floor, gflop / value] for name, value in seconds.items()]
    text = report.table([f"DiPoM-S/2, batch {arguments.batch}", "s a step", "x floor", "GFLOP/s"], rows)
    report.write("train_step", text, {"gflop": gflop, "floor_s": floor, "seconds": seconds}, arguments)


if __name__ == "__main__":
    main()
