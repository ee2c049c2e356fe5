"""The training loss and the held-out one: mean squared errors of whatever the network predicts."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pom_jax.diffusion.paths import Path, target
from pom_jax.diffusion.schedules import TimeSampling, sample_times, stratified_times

# A network with everything but the noisy input and the time already bound: (x_t [B, ...], t [B]) -> [B, ...].
Predict = Callable[[jax.Array, jax.Array], jax.Array]


class Losses(NamedTuple):
    """Loss of each example [B] and the time it was taken at [B], both float32."""

    per_example: jax.Array
    t: jax.Array


def _errors(
    predict: Predict, key: jax.Array, x: jax.Array, t: jax.Array, path: Path, prediction: str
) -> Losses:
    # The loss is a float32 island: a mean of squares loses its digits in bfloat16.
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    eps = jax.random.normal(key, x.shape, x.dtype)
    wanted = target(path, prediction, x, eps, t)
    error = predict(path.add_noise(x, eps, t), t).astype(x.dtype) - wanted
    return Losses(jnp.mean(jnp.square(error), axis=tuple(range(1, x.ndim))), t)


def diffusion_loss(
    predict: Predict,
    key: jax.Array,
    x: jax.Array,
    *,
    path: Path,
    prediction: str = "velocity",
    times: TimeSampling | None = None,
) -> Losses:
    """Draws a time and a noise for each example and measures the prediction's mean squared error, unweighted.

    Args:
        predict: (x_t [B, ...], t [B]) -> [B, ...]; labels and parameters are already bound.
        key: of the times and the noise.
        x: [B, ...] clean data.
        path: `FlowPath()` or `VariancePath(...)`.
        prediction: "velocity", "noise" or "data".
        times: how times are drawn; uniform without a shift by default.

    Returns:
        Losses per example; their mean is the training loss.

    Raises:
        InputError: unknown prediction.
    """
    key_t, key_eps = jax.random.split(key)
    t = sample_times(key_t, x.shape[0], TimeSampling() if times is None else times)
    return _errors(predict, key_eps, x, t, path, prediction)


def validation_loss(
    predict: Predict, key: jax.Array, x: jax.Array, *, path: Path, prediction: str = "velocity"
) -> Losses:
    """The same error at stratified times: with one fixed key the figure moves only when the network does.

    Times cover [0, 1] evenly whatever training's time sampling is, so runs with different ones can be
    compared. Arguments, result and errors as in `diffusion_loss`.
    """
    key_t, key_eps = jax.random.split(key)
    return _errors(predict, key_eps, x, stratified_times(key_t, x.shape[0]), path, prediction)


class BinnedLoss(NamedTuple):
    """Sums of losses and of weights by bin of time, each [bins]; those of several batches simply add."""

    total: jax.Array
    weight: jax.Array

    @property
    def mean(self) -> jax.Array:
        """[bins]; NaN where no example fell into the bin."""
        return self.total / self.weight

    @property
    def overall(self) -> jax.Array:
        """The mean over all examples, a scalar."""
        return jnp.sum(self.total) / jnp.sum(self.weight)


def loss_by_bins(losses: jax.Array, t: jax.Array, bins: int, weights: jax.Array | None = None) -> BinnedLoss:
    """Sorts per-example losses [B] into equal bins of their times t [B]; bin 0 is nearest to the data.

    Args:
        losses: [B].
        t: [B] in [0, 1].
        bins: how many.
        weights: [B], for instance 0 on examples that only pad a batch; 1 everywhere by default.

    Returns:
        Sums [bins] and weights [bins].
    """
    weights = jnp.ones_like(losses) if weights is None else weights.astype(losses.dtype)
    index = jnp.clip(jnp.floor(t * bins).astype(jnp.int32), 0, bins - 1)
    member = (index[:, None] == jnp.arange(bins)) * weights[:, None]
    # where: a padded example may hold anything, a NaN included.
    kept = jnp.where(weights > 0, losses, 0.0)
    return BinnedLoss(jnp.sum(member * kept[:, None], axis=0), jnp.sum(member, axis=0))
