"""Everything that a run carries from step to step, as one tree."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """The state after `step` training steps.

    Attributes:
        step: [] int32, batches consumed; the position in the data.
        params: the model's parameters, nested dicts of float32.
        opt_state: of the optimiser.
        ema: one averaged copy of the parameters per decay.
        key: random key of the run; step n draws from fold_in(key, n).
        skipped: [] int32, steps that were left out because of a loss or gradient that was not finite.
        skipped_in_a_row: [] int32, how many of those came last without a good step in between.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: tuple[Any, ...]
    key: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array


def initial_state(
    key: jax.Array,
    init_params: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    averages: int,
) -> TrainState:
    """The state before the first step; jit it with output shardings to create it where it will live.

    Args:
        key: random key; the parameters and the run draw from two streams of it.
        init_params: parameters from a key.
        optimizer: whose state is created.
        averages: number of moving averages.
    """
    params_key, run_key = jax.random.split(key)
    params = init_params(params_key)
    zero = jnp.zeros([], jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        opt_state=optimizer.init(params),
        ema=tuple(jax.tree.map(jnp.copy, params) for _ in range(averages)),
        key=run_key,
        skipped=zero,
        skipped_in_a_row=zero,
    )
