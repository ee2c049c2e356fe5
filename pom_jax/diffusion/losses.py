"""The training loss and the held-out one: mean squared errors of whatever the network predicts."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pom_jax.diffusion.frame_times import FrameTimes, Times, draw_times
from pom_jax.diffusion.paths import Path, target
from pom_jax.diffusion.schedules import TimeSampling, sample_times, stratified_times

# A network with everything but the noisy input and the time bound: (x_t [B, ...], t [B]) -> [B, ...]. The
# time of clips [B, T, ...] may be [B, F], one for each of F equal runs of frames; with drafts, which follow
# the clip, both have `FrameTimes.takes` times as many.
Predict = Callable[[jax.Array, jax.Array], jax.Array]


class Losses(NamedTuple):
    """Losses, the times they were taken at and what each counts, float32: [B], or of clips as in `Times`."""

    per_example: jax.Array
    t: jax.Array
    weight: jax.Array


def _errors(
    predict: Predict, key: jax.Array, x: jax.Array, times: Times, path: Path, prediction: str, takes: int
) -> Losses:
    # The loss is a float32 island: a mean of squares loses its digits in bfloat16.
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = x if takes == 1 else jnp.concatenate([x] * takes, axis=1)
    eps = jax.random.normal(key, x.shape, x.dtype)
    t, weight = times
    told = t  # to the network
    if t.ndim == 2:
        told = t[:, 0] if t.shape[1] == 1 else t
        t = jnp.repeat(t, x.shape[1] // t.shape[1], axis=1)
    wanted = target(path, prediction, x, eps, t)
    error = jnp.square(predict(path.add_noise(x, eps, t), told).astype(x.dtype) - wanted)
    shape = (*weight.shape, -1)
    return Losses(jnp.mean(error.reshape(shape), axis=-1), times.t, weight)


def diffusion_loss(
    predict: Predict,
    key: jax.Array,
    x: jax.Array,
    *,
    path: Path,
    prediction: str = "velocity",
    times: TimeSampling | None = None,
    frames: FrameTimes | None = None,
    count: int = 0,
) -> Losses:
    """Draws a time and a noise for each example and measures the prediction's mean squared error, unweighted.

    Args:
        predict: (x_t [B, ...], t [B]) -> [B, ...]; labels and parameters are already bound.
        key: of the times and the noise.
        x: [B, ...] clean data.
        path: `FlowPath()` or `VariancePath(...)`.
        prediction: "velocity", "noise" or "data".
        times: how times are drawn; uniform without a shift by default.
        frames: for clips x [B, T, ...], how the times of their frames are drawn.
        count: F, how many frames of a clip have a time of their own; divides T.

    Returns:
        Losses per example, or per frame, with what each counts.

    Raises:
        InputError: unknown prediction.
    """
    key_t, key_eps = jax.random.split(key)
    times = TimeSampling() if times is None else times
    if frames is None:
        t = sample_times(key_t, x.shape[0], times)
        drawn = Times(t, jnp.ones_like(t))
    else:
        drawn = draw_times(key_t, x.shape[0], count, times, frames)
    return _errors(predict, key_eps, x, drawn, path, prediction, 1 if frames is None else frames.takes)


def validation_loss(
    predict: Predict,
    key: jax.Array,
    x: jax.Array,
    *,
    path: Path,
    prediction: str = "velocity",
    frames: FrameTimes | None = None,
    count: int = 0,
) -> Losses:
    """The same error at stratified times: with one fixed key the figure moves only when the network does.

    Times cover [0, 1] evenly whatever training's time sampling is, so runs with different ones can be
    compared. Arguments, result and errors as in `diffusion_loss`.
    """
    key_t, key_eps = jax.random.split(key)
    if frames is None:
        t = stratified_times(key_t, x.shape[0])
        drawn = Times(t, jnp.ones_like(t))
    else:
        drawn = draw_times(key_t, x.shape[0], count, None, frames)
    return _errors(predict, key_eps, x, drawn, path, prediction, 1 if frames is None else frames.takes)


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
        losses: [B], or of clips [B, F].
        t: alike, in [0, 1].
        bins: how many.
        weights: alike, for instance 0 on examples that only pad a batch; 1 everywhere by default.

    Returns:
        Sums [bins] and weights [bins].
    """
    losses, t = losses.reshape(-1), t.reshape(-1)
    weights = jnp.ones_like(losses) if weights is None else weights.reshape(-1).astype(losses.dtype)
    index = jnp.clip(jnp.floor(t * bins).astype(jnp.int32), 0, bins - 1)
    member = (index[:, None] == jnp.arange(bins)) * weights[:, None]
    # where: a padded example may hold anything, a NaN included.
    kept = jnp.where(weights > 0, losses, 0.0)
    return BinnedLoss(jnp.sum(member * kept[:, None], axis=0), jnp.sum(member, axis=0))
