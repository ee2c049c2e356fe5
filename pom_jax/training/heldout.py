"""The held-out loss: the same examples, times and noise at every evaluation, in bins of time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from pom_jax.data import Source
from pom_jax.data.pipeline import images, local_rows, one_pass
from pom_jax.diffusion.losses import BinnedLoss, loss_by_bins
from pom_jax.ops.mesh import BATCH_AXES
from pom_jax.training import conditions
from pom_jax.training.objective import make_objective
from pom_jax.training.step import Batch, Metrics

BINS = 4


class HeldOut:
    """The loss on the first `train.eval_size` records of the held-out split, which stay on the devices.

    Args:
        config: of the run.
        model: the network.
        source: the held-out split.
        mesh: the records are cut over it like training batches.
        params: shapes and shardings of the parameters; the computation is compiled for them at once.
    """

    def __init__(self, config: ConfigDict, model: nn.Module, source: Source, mesh: Mesh, params: Any):
        self._batches = _placed(source, config.data.batch_size, config.train.eval_size, mesh)
        loss = make_heldout_loss(config, model, source)
        self._loss = jax.jit(loss).lower(params, self._batches).compile()

    def __call__(self, params: Any) -> Metrics:
        """Scalars `heldout_loss` and `heldout_loss_t0.00-0.25` and so on; does not wait for the device."""
        return self._loss(params, self._batches)


def make_heldout_loss(config: ConfigDict, model: nn.Module, source: Source) -> Any:
    """The held-out loss as a pure function (params, batches) -> metrics.

    Batches are those of training with a leading axis, and `valid` [n, B] bool.
    """
    objective = make_objective(config, model, heldout=True)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)

    def one_batch(params: Any, batch: Batch, index: jax.Array) -> BinnedLoss:
        image_key, loss_key = jax.random.split(jax.random.fold_in(key, index))
        x, given = images(batch, image_key, source.manifest), conditions.condition(config.model, batch)
        parts = objective(params, loss_key, x, given, batch["valid"])
        bins = [loss_by_bins(part.per_example, part.t, BINS, part.weight) for part in parts]
        return jax.tree.map(lambda *sums: sum(sums), *bins)

    def heldout_loss(params: Any, batches: Batch) -> Metrics:
        count = len(batches["valid"])
        parts = jax.lax.map(lambda part: one_batch(params, part[1], part[0]), (jnp.arange(count), batches))
        total = jax.tree.map(lambda a: jnp.sum(a, axis=0), parts)
        edges = [f"{i / BINS:.2f}-{(i + 1) / BINS:.2f}" for i in range(BINS)]
        named = {f"heldout_loss_t{edge}": total.mean[i] for i, edge in enumerate(edges)}
        return {"heldout_loss": total.overall, **named}

    return heldout_loss


def _placed(source: Source, batch_size: int, size: int, mesh: Mesh) -> Batch:
    """The first `size` records as [n, B, ...] on the devices; `valid` [n, B] is False for padding."""
    at = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
    rows = local_rows(NamedSharding(mesh, PartitionSpec(BATCH_AXES)), batch_size)
    count = -(-min(size, len(source)) // batch_size)
    parts = [batch for _, batch in zip(range(count), one_pass(source, batch_size, rows=rows), strict=False)]
    batches = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    places = np.arange(count)[:, None] * batch_size + np.arange(batch_size)[rows]
    batches["valid"] &= places < size
    return {name: jax.make_array_from_process_local_data(at, value) for name, value in batches.items()}
