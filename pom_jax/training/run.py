"""From a configuration to everything that a training run needs, checked before anything is computed."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pom_jax import compilation, models
from pom_jax.data import Source, open_source
from pom_jax.data.sources import heldout_split
from pom_jax.errors import InputError
from pom_jax.models.resample import fit_parameters
from pom_jax.training import flops, offload, sharding
from pom_jax.training.config import check_config
from pom_jax.training.objective import frame_times
from pom_jax.training.optim import make_optimizer
from pom_jax.training.state import TrainState, initial_state
from pom_jax.training.step import TrainStep, make_train_step


@dataclasses.dataclass(frozen=True)
class Run:
    """What a configuration describes.

    Attributes:
        config: of the run.
        mesh: all devices.
        model: the network.
        optimizer: of its parameters.
        step: one training step, a pure function.
        train, heldout: the splits.
        state: `TrainState` of shapes with their shardings.
        batch: shapes of a training batch with their shardings.
    """

    config: ConfigDict
    mesh: Mesh
    model: models.Model
    optimizer: optax.GradientTransformation
    step: TrainStep
    train: Source
    heldout: Source
    state: Any
    batch: dict[str, jax.ShapeDtypeStruct]

    def fresh_state(self, parent: Any = None, **options: Any) -> TrainState:
        """The state before the first step, computed where it will live.

        Args:
            parent: parameters that it starts from, see `fit_parameters`; random ones if left out.
            options: of `fit_parameters`.
        """
        make = _state_function(self.config, self.model, self.optimizer, **options)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        return jax.jit(make, out_shardings=shardings)(jax.random.key(self.config.seed), parent)

    def compiled_step(self) -> tuple[Any, str]:
        """The training step, compiled for this mesh with the state donated, and a line about how it went."""
        began, before = time.perf_counter(), compilation.counts()
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        jitted = jax.jit(self.step, donate_argnums=0, out_shardings=(shardings, None))
        compiled = jitted.lower(self.state, self.batch).compile()
        cached = " (from the cache)" if compilation.read_from_cache(before) else ""
        return compiled, f"compiled the training step in {time.perf_counter() - began:.1f} s{cached}"

    @property
    def flops(self) -> int:
        """Operations of a training step."""
        return flops.step_flops(self.config.model, self.config.data.batch_size, *frame_times(self.config))

    @property
    def samples(self) -> str:
        """What a batch is of, for people."""
        return "images" if len(self.train.manifest.sample_shape) == 3 else "clips"

    def describe(self) -> str:
        """What is about to be trained, on what, with what, for people."""
        config, data = self.config, self.train.manifest
        count = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        mesh = ", ".join(f"{name} {size}" for name, size in self.mesh.shape.items())
        return (
            f"{config.name}: {count:,} parameters, {config.train.steps:,} steps of {config.data.batch_size} "
            f"{self.samples} ({self.flops / 1e9:,.1f} GFLOP a step, products in {config.dtype})\n"
            f"devices: {self.mesh.size} x {jax.devices()[0].device_kind} (mesh: {mesh})\n"
            f"data: {data.name}, {len(self.train):,} training and {len(self.heldout):,} held-out "
            f"{self.samples}"
        )


def make_run(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Run:
    """Checks everything a configuration says and makes what it describes; computes nothing.

    Args:
        config: see configs/common.py.
        devices: what it runs on, all there are by default; others can be compiled for without being there.

    Raises:
        InputError: any field, or the data, cannot be used.
    """
    check_config(config)
    mesh = sharding.make_mesh(config.mesh, devices)
    model = models.build(config.model, config.dtype)
    sharding.check_model(config.model, mesh)
    frames, _ = frame_times(config)
    every = 1 if frames is None else frames.film_every
    sharding.check_batch(config.data.batch_size, config.optimizer.accumulate, mesh, every)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    train = open_source(config.data, "train", config.model)
    heldout = open_source(config.data, heldout_split(train.manifest), config.model)
    if config.fid.every and not config.fid.autoencoder and train.manifest.autoencoder is not None:
        raise InputError(
            f"fid.autoencoder is empty: give that of these latents, {train.manifest.autoencoder}"
        )
    step = make_train_step(config, model, train.manifest, optimizer)
    make = _state_function(config, model, optimizer)
    state = placed(jax.eval_shape(make, jax.random.key(config.seed)), config, mesh)
    at = sharding.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct((config.data.batch_size, *field.shape), field.dtype, sharding=at)
        for name, field in train.manifest.fields.items()
    }
    return Run(config, mesh, model, optimizer, step, train, heldout, state, batch)


def placed(state: Any, config: ConfigDict, mesh: Mesh) -> Any:
    """The shapes of a state, with the shardings that a configuration gives them.

    Raises:
        InputError: a part of it shall lie on the host, which the devices cannot reach.
    """
    shardings = sharding.state_shardings(state, mesh, offload.parts_on_host(config, mesh))
    return jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), state, shardings
    )


def _state_function(
    config: ConfigDict, model: models.Model, optimizer: optax.GradientTransformation, **options: Any
) -> Any:
    def make(key: jax.Array, parent: Any = None) -> TrainState:
        def params(key: jax.Array) -> Any:
            fresh = models.init(model, key)
            return fresh if parent is None else fit_parameters(parent, fresh, **options)

        return initial_state(key, params, optimizer, len(config.ema.decays))

    return make
