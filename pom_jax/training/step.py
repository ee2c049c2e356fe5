"""One training step, a pure function: state and batch in, state and metrics out."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from pom_jax.data.pipeline import Affine, images
from pom_jax.training import conditions, ema
from pom_jax.training.objective import make_objective, mean_loss
from pom_jax.training.optim import make_schedule
from pom_jax.training.state import TrainState
from pom_jax.training.streamed import streamed

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    config: ConfigDict, model: nn.Module, affine: Affine, optimizer: optax.GradientTransformation
) -> TrainStep:
    """The training step of a configuration, to be jitted with the state donated.

    All draws (posterior noise and view, dropped labels, times, noise) come from fold_in(state.key,
    state.step), so a step depends on the state and the batch only. A step whose loss or gradient is not
    finite changes nothing but the counters. What lies on the host comes to the device for its update, and
    goes back.

    Args:
        config: of the run; reads diffusion, optimizer, ema and train.
        model: called as model.apply({"params": p}, x [B, ...], t [B], labels [B] or a `Text`).
        affine: scale and shift of the data set (its manifest).
        optimizer: of the parameters.

    Returns:
        train_step(state, batch) -> (state, metrics); a batch holds `mean` [B, V, H, W, C], or of clips [B, V,
        T, H, W, C], for latents `std`, and `label` [B] or `text`. The metrics are scalars: loss, grad_norm
        (before clipping), learning_rate, skipped, skipped_in_a_row.
    """
    gradient = make_gradient(config, model, affine)
    schedule = make_schedule(config.optimizer, config.train.steps)
    ramp = {"start": config.ema.start, "every": config.ema.every, "power": config.ema.power}

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        loss, grads = gradient(state.params, key, batch)
        grad_norm = optax.tree.norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        count = state.step - state.skipped  # updates made so far

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)

        def update(state: TrainState) -> TrainState:
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            averages = tuple(
                ema.update(average, params, ema.decay_at(count, decay, **ramp))
                for average, decay in zip(state.ema, config.ema.decays, strict=True)
            )
            bad = 1 - good.astype(jnp.int32)
            return TrainState(
                step=state.step + 1,
                params=keep(params, state.params),
                opt_state=keep(opt_state, state.opt_state),
                ema=keep(averages, state.ema),
                key=state.key,
                skipped=state.skipped + bad,
                skipped_in_a_row=(state.skipped_in_a_row + 1) * bad,
            )

        new = streamed(update, state, good)
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": schedule(count),
            "skipped": new.skipped,
            "skipped_in_a_row": new.skipped_in_a_row,
        }
        return new, metrics

    return train_step


def make_gradient(
    config: ConfigDict, model: nn.Module, affine: Affine
) -> Callable[[Any, jax.Array, Batch], tuple[jax.Array, Any]]:
    """The training loss of a batch and its gradient, in `optimizer.accumulate` slices one after the other.

    Slice i of k holds the examples i, i + k, ...: so a device keeps its own examples. It draws from
    fold_in(key, i).

    Returns:
        gradient(params, key, batch) -> (mean loss [] float32, its gradient, a tree like params).
    """
    objective = make_objective(config, model)
    slices = config.optimizer.accumulate

    def loss(params: Any, key: jax.Array, batch: Batch) -> jax.Array:
        image_key, label_key, loss_key = jax.random.split(key, 3)
        x = images(batch, image_key, affine)
        given = conditions.condition(config.model, batch)
        given = conditions.drop(config.model, given, label_key, config.diffusion.label_dropout)
        return mean_loss(objective(params, loss_key, x, given))

    def gradient(params: Any, key: jax.Array, batch: Batch) -> tuple[jax.Array, Any]:
        if slices == 1:
            return jax.value_and_grad(loss)(params, key, batch)
        parts = jax.tree.map(lambda a: a.reshape(-1, slices, *a.shape[1:]).swapaxes(0, 1), dict(batch))

        def add(total: Any, part: Any) -> tuple[Any, None]:
            index, piece = part
            found = jax.value_and_grad(loss)(params, jax.random.fold_in(key, index), piece)
            return jax.tree.map(jnp.add, total, found), None

        zero = (jnp.zeros([]), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(add, zero, (jnp.arange(slices), parts))
        return jax.tree.map(lambda a: a / slices, total)

    return gradient
