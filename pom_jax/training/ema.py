"""Exponential moving averages of the parameters: a tuple of trees, one per decay."""

from typing import Any

import jax
import jax.numpy as jnp


def decay_at(update: Any, decay: float, *, start: int = 0, every: int = 1, power: float = 2 / 3) -> jax.Array:
    """The decay of one update, with a ramp so that a young average is not stuck at the initial values.

    The rule and its default power are those of the `ema_pytorch` package that the PoM authors train with: a
    copy up to update `start`, then min(decay, 1 - (1 + update - start) ** -power), every `every` updates.

    Args:
        update: number of updates made before, [] integer, or an array of such.
        decay: the final decay, in [0, 1).
        start: last update that copies the parameters.
        every: updates between two averagings.
        power: exponent of the ramp.

    Returns:
        float32 like `update`: 0 copies the parameters, 1 leaves the average as it is.
    """
    update = jnp.asarray(update)
    age = jnp.maximum(update - start, 0).astype(jnp.float32)
    ramp = jnp.minimum(decay, 1.0 - (1.0 + age) ** -power)
    value = jnp.where(update <= start, 0.0, ramp)
    return jnp.where(update % every == 0, value, 1.0)


def update(average: Any, params: Any, decay: jax.Array) -> Any:
    """One averaging step, average <- decay average + (1 - decay) params, leaf by leaf in float32."""
    return jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p.astype(jnp.float32), average, params)
