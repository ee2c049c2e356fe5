"""The same training on every mesh: how far eight devices are from one, and what they send each other.

    XLA_FLAGS="--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0" \
        JAX_PLATFORMS=cpu python -m tests.mesh_agreement data/digits image
    ... data/moving-digits video

Twenty steps on the real digits of a small DiPoM, or on moving ones of a small frame-causal Polymorpher as in
their recipe: past frames, pooled text, a table of words, states of its own and the last frame, phase reads;
each frame has a time. One compiled program a mesh serves both optimisers. Prints a table and,
last, its figures as JSON.
"""

import dataclasses
import json
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from benchmarks.report import table
from configs import digits, moving_digits
from pom_jax import models
from pom_jax.training import sharding
from pom_jax.training.collectives import collectives, in_layers
from pom_jax.training.run import Run, make_run
from pom_jax.training.state import initial_state
from pom_jax.training.step import make_train_step
from tests.layers import normal

MESHES: dict[str, dict[str, int]] = {
    "1": {},
    "data 8": {"data": 8},
    "fsdp 8": {"fsdp": 8},
    "data 2 x fsdp 4": {"data": 2, "fsdp": 4},
    "context 8": {"context": 8},
    "tensor 2 x fsdp 4": {"tensor": 2, "fsdp": 4},
    "data 2 x context 2 x tensor 2": {"data": 2, "context": 2, "tensor": 2},
}
STEPS, BATCH, WIDTH, DEPTH = 20, 16, 16, 2
OPTIMIZERS = ("SGD", "AdamW")


class Trained(NamedTuple):
    """Losses [steps] and parameters after them, for each optimiser, and the compiled program as text."""

    losses: dict[str, np.ndarray]
    params: dict[str, Any]
    program: str


def main() -> None:
    """Trains one of the models on every mesh."""
    folder, kind = sys.argv[1:]
    run = make_run(recipe(folder, kind), jax.devices()[:1])
    batches = [run.train.gather(range(BATCH * i, BATCH * (i + 1))) for i in range(STEPS)]
    params = awake(run.model, models.dummy_inputs(run.model))
    alone, rows = None, []
    for mesh, sizes in MESHES.items():
        found = train(run, params, batches, sizes)
        alone = alone or found
        rows.append({"model": kind, "mesh": mesh} | differences(alone, found))
    print(table(list(rows[0]), [list(row.values()) for row in rows]))
    print(json.dumps(rows))


def recipe(folder: str, kind: str) -> ConfigDict:
    """A small one of pictures or of clips."""
    config = digits.get_config() if kind == "image" else moving_digits.get_config()
    config.model.update({"width": WIDTH, "depth": DEPTH, "ffn_expansion": 1})
    config.data.update({"dir": folder, "batch_size": BATCH})
    config.optimizer.update({"name": "adamw", "warmup_steps": 1})
    if kind == "video":
        config.diffusion.update({"frame_times": "independent", "drafts": 0})
        config.diffusion.update({"film_every": 1, "still_frames": 0})  # so that it compiles sooner
    return config


def awake(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Parameters of which none is zero, so that every layer counts from the first step on."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    drawn = [normal(i, *leaf.shape) / np.sqrt(leaf.shape[-1]) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, [jnp.asarray(leaf) for leaf in drawn])


def either(optimizers: list[optax.GradientTransformation]) -> optax.GradientTransformation:
    """The optimiser whose number stands in the state, so that one program serves all."""

    def init(params: Any) -> Any:
        return {"number": jnp.int32(0), "states": [one.init(params) for one in optimizers]}

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> Any:
        found = [one.update(updates, s, params) for one, s in zip(optimizers, state["states"], strict=True)]
        chosen = jax.tree.map(lambda *leaves: jnp.stack(leaves)[state["number"]], *[f[0] for f in found])
        return chosen, {"number": state["number"], "states": [f[1] for f in found]}

    return optax.GradientTransformation(init, update)


def train(run: Run, params: Any, batches: list[dict[str, np.ndarray]], sizes: dict[str, int]) -> Trained:
    """Twenty steps of each optimiser on one mesh."""
    mesh = sharding.make_mesh({"data": 1} | sizes, jax.devices()[: 8 if sizes else 1])
    optimizer = either([optax.sgd(0.05), run.optimizer])
    state = initial_state(jax.random.key(0), lambda _: params, optimizer, 1)
    placed = sharding.state_shardings(state, mesh)
    at = sharding.batch_sharding(mesh)
    losses, after = {}, {}
    with jax.set_mesh(mesh):
        sharding.check_model(run.model, mesh)
        step = make_train_step(run.config, run.model, run.train.manifest, optimizer)
        start = jax.device_put(state, placed), jax.device_put(batches[0], at)
        compiled: Any = jax.jit(step, out_shardings=(placed, None)).lower(*start).compile()
        for number, name in enumerate(OPTIMIZERS):
            chosen = state.opt_state | {"number": jnp.int32(number)}
            moved: Any = jax.device_put(dataclasses.replace(state, opt_state=chosen), placed)
            found = []
            for batch in batches:
                moved, metrics = compiled(moved, jax.device_put(batch, at))
                found.append(float(metrics["loss"]))
            losses[name], after[name] = np.array(found), jax.device_get(moved.params)
    return Trained(losses, after, compiled.as_text())


def differences(one: Trained, many: Trained) -> dict[str, Any]:
    """Of losses, relative; of parameters, as a part of each leaf's maximum; collectives of a layer."""
    row: dict[str, Any] = {}
    for name in OPTIMIZERS:
        row[f"losses, {name}"] = float(np.max(np.abs(many.losses[name] / one.losses[name] - 1)))
    for name in OPTIMIZERS:
        gaps = jax.tree.map(
            lambda a, b: float(np.abs(a - b).max() / np.abs(a).max()), one.params[name], many.params[name]
        )
        row[f"parameters, {name}"] = max(jax.tree.leaves(gaps))
    row["falls to"] = float(one.losses["SGD"][-1] / one.losses["SGD"][0])
    found = in_layers(collectives(many.program), DEPTH)
    row["collectives of a layer"] = ", ".join(f"{count:g} {kind}" for kind, (count, _) in found.items())
    row["KiB"] = sum(size for _, size in found.values()) / 1024
    return row


if __name__ == "__main__":
    main()
