"""Optimisers: AdamW and LAMB with warm-up, decay, clipping and a weight-decay mask."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pom_jax.errors import choose

OPTIMIZERS = ("adamw", "lamb")
SCHEDULES: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "constant": lambda u: jnp.ones_like(u),
    "cosine": lambda u: 0.5 * (1.0 + jnp.cos(jnp.pi * u)),
    "linear": lambda u: 1.0 - u,
    "sqrt": lambda u: 1.0 - jnp.sqrt(u),
}
_DECAYED = ("kernel", "coefficients")  # names of the parameters that weight decay applies to


def learning_rate(
    step: Any,
    base: float,
    schedule: str = "constant",
    *,
    warmup_steps: int = 0,
    decay_from: int = 0,
    total_steps: int = 0,
) -> jax.Array:
    """The learning rate of one update: a linear warm-up times a decay that reaches zero at `total_steps`.

    The curves are those of the PoM authors' schedulers, except that the warm-up acts from the first update on
    and that the rate stays at zero beyond the end, where their cosine rises again.

    Args:
        step: number of updates made before, [] or [n].
        base: the rate at the top.
        schedule: "constant", "cosine", "linear" or "sqrt".
        warmup_steps: updates of the ramp from zero to `base`.
        decay_from: where the decay begins; the end of the warm-up if that is later.
        total_steps: where the decay ends; of no effect on "constant".

    Returns:
        float32 (float64 for a float64 step) like `step`.

    Raises:
        InputError: an unknown schedule.
    """
    curve = choose("optimizer.schedule", schedule, SCHEDULES)
    step = jnp.asarray(step, dtype=jnp.result_type(step, jnp.float32))
    ramp = jnp.minimum(step / max(warmup_steps, 1), 1.0) if warmup_steps > 0 else 1.0
    first = max(warmup_steps, decay_from)
    progress = jnp.clip((step - first) / max(total_steps - first, 1), 0.0, 1.0)
    return base * ramp * curve(progress)


def decay_mask(params: Any) -> Any:
    """Which parameters decay: kernels and polynomial coefficients, the parameters that multiply tokens.

    Biases, norms, embeddings, registers and position tables do not. (The authors' code decays registers and
    positions by oversight.)

    Returns:
        A tree of bools like `params`.
    """
    return jax.tree.map_with_path(lambda path, _: path[-1].key in _DECAYED, params)


def stacked_axes(params: Any) -> Any:
    """Leading layer axes of each parameter, a tree like `params`: 1 inside the stacked `blocks`, else 0."""
    return jax.tree.map_with_path(lambda path, _: int(path[0].key == "blocks"), params)


class LambState(NamedTuple):
    """Updates made, and the running first and second moments, trees like the parameters."""

    count: jax.Array
    mu: Any
    nu: Any


def lamb(
    rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    adapt: bool = True,
    decayed: Any = decay_mask,
    stacked: Any = stacked_axes,
) -> optax.GradientTransformation:
    """LAMB as the PoM authors' code has it (model/optimizer/lamb.py of HoMM), layer by layer where stacked.

    With moments m, v: r = m / (sqrt(v) + eps) + weight_decay p and p <- p - rate c (|p| / |r|) r, where
    c = sqrt(1 - b2^t) / (1 - b1^t). `optax.lamb` follows the paper instead, whose moments are corrected
    inside r. Parameters without decay take no trust ratio |p| / |r| either; a zero norm makes it 1.

    Args:
        rate: learning rate, or a function of the update count.
        b1, b2, eps, weight_decay: the usual constants.
        adapt: False leaves every trust ratio at 1 (the official `adam` switch).
        decayed: tree of bools, or a function of the parameters that returns one.
        stacked: tree of the number of leading layer axes, or a function that returns one: the ratio is taken
            per layer, so that scanned and separate layers train alike.

    Returns:
        The transformation, with a `LambState`; its updates are added to the parameters.
    """

    def resolve(tree_or_function: Any, params: Any) -> Any:
        return tree_or_function(params) if callable(tree_or_function) else tree_or_function

    def init(params: Any) -> LambState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return LambState(jnp.zeros([], jnp.int32), zeros, jax.tree.map(jnp.copy, zeros))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, LambState]:
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        count = jnp.asarray(optax.safe_increment(state.count))
        t = jnp.asarray(count, jnp.float32)
        step = jnp.asarray(rate(state.count) if callable(rate) else rate)
        scale = step * jnp.sqrt(1.0 - b2**t) / (1.0 - b1**t)

        def leaf(p: jax.Array, m: jax.Array, v: jax.Array, decays: bool, layer_axes: int) -> jax.Array:
            direction = m / (jnp.sqrt(v) + eps)
            if not decays:
                return -scale * direction
            direction = direction + weight_decay * p
            if not adapt:
                return -scale * direction
            axes = tuple(range(layer_axes, p.ndim))
            size = jnp.sqrt(jnp.sum(p * p, axes, keepdims=True))
            length = jnp.sqrt(jnp.sum(direction * direction, axes, keepdims=True))
            usable = (size > 0) & (length > 0)
            trust = jnp.where(usable, size / jnp.where(usable, length, 1.0), 1.0)
            return -scale * trust * direction

        updates = jax.tree.map(leaf, params, mu, nu, resolve(decayed, params), resolve(stacked, params))
        return updates, LambState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def make_schedule(config: Mapping[str, Any], total_steps: int) -> Callable[[Any], jax.Array]:
    """The learning rate as a function of the number of updates made, from `config.optimizer`."""
    return lambda count: learning_rate(
        count,
        config["learning_rate"],
        config["schedule"],
        warmup_steps=config["warmup_steps"],
        decay_from=config["decay_from"],
        total_steps=total_steps,
    )


def make_optimizer(config: Mapping[str, Any], total_steps: int) -> optax.GradientTransformation:
    """Clipping, then the optimiser named in `config.optimizer`, with its schedule and decay mask.

    Args:
        config: the fields of `config.optimizer`.
        total_steps: number of updates of the whole run, for the decay of the learning rate.

    Raises:
        InputError: an unknown optimiser or schedule.
    """
    schedule = make_schedule(config, total_steps)
    schedule(0)  # an unknown name fails here, not inside the compiled step
    constants = {name: config[name] for name in ("b1", "b2", "eps", "weight_decay")}
    if choose("optimizer.name", config["name"], OPTIMIZERS) == "adamw":
        optimizer = optax.adamw(schedule, mask=decay_mask, **constants)
    else:
        optimizer = lamb(schedule, **constants)
    if config["clip_norm"] > 0:
        optimizer = optax.chain(optax.clip_by_global_norm(config["clip_norm"]), optimizer)
    return optimizer
