"""The held-out loss: the same examples, times and noise at every evaluation, in bins of time."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from pom_jax.data.pipeline import Affine, images
from pom_jax.diffusion.losses import BinnedLoss, loss_by_bins, validation_loss
from pom_jax.diffusion.paths import make_path
from pom_jax.training.step import Batch, Metrics, network

BINS = 4


def make_heldout_loss(
    config: ConfigDict, model: nn.Module, affine: Affine
) -> Callable[[Any, Sequence[Batch]], Metrics]:
    """The held-out loss of some parameters; nothing waits for the device.

    Returns:
        heldout_loss(params, batches) -> scalars `heldout_loss` and `heldout_loss_t0.00-0.25`, ... by bins of
        t. A batch holds, besides the fields of a training batch, `valid` [B] bool.
    """
    path = make_path(config.diffusion)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)

    @jax.jit
    def one_batch(params: Any, batch: Batch, index: jax.Array) -> BinnedLoss:
        image_key, loss_key = jax.random.split(jax.random.fold_in(key, index))
        losses = validation_loss(
            lambda x_t, t: network(model, params)(x_t, t, batch["label"]),
            loss_key,
            images(batch, image_key, affine),
            path=path,
            prediction=config.diffusion.prediction,
        )
        return loss_by_bins(losses.per_example, losses.t, BINS, batch["valid"])

    @jax.jit
    def summary(parts: list[BinnedLoss]) -> Metrics:
        total = jax.tree.map(lambda *a: jnp.sum(jnp.stack(a), axis=0), *parts)
        edges = [f"{i / BINS:.2f}-{(i + 1) / BINS:.2f}" for i in range(BINS)]
        named = {f"heldout_loss_t{edge}": total.mean[i] for i, edge in enumerate(edges)}
        return {"heldout_loss": total.overall, **named}

    def heldout_loss(params: Any, batches: Sequence[Batch]) -> Metrics:
        return summary([one_batch(params, batch, index) for index, batch in enumerate(batches)])

    return heldout_loss
