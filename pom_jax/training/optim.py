"""Optimisers: AdamW, LAMB and Muon with warm-up, decay, clipping and a weight-decay mask."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pom_jax.errors import choose
from pom_jax.training.muon import muon

OPTIMIZERS = ("adamw", "lamb", "muon")
MOMENTS = ("float32", "bfloat16")
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


class NarrowState(NamedTuple):
    """Updates made, and the state of an optimiser whose float32 arrays are kept in bfloat16."""

    count: jax.Array
    inner: Any


def narrow_moments(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keeps both moments of an optimiser in bfloat16, half the memory, and computes with them in float32.

    A second moment moves by a thousandth of itself a step, less than the distance of two bfloat16 numbers:
    rounded to the nearest it would never fall. So it is rounded up or down by chance, in proportion to what
    is cut off, and right on average. The chance is a hash of the update's number and the place in the array,
    the same on every mesh and after every restart.

    Args:
        optimizer: its state holds numbers and arrays like the parameters.

    Returns:
        The transformation, with a `NarrowState`.
    """

    def init(params: Any) -> NarrowState:
        count = jnp.zeros([], jnp.int32)
        return NarrowState(count, _to_bfloat16(optimizer.init(params), count))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, NarrowState]:
        wide = jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a, state.inner)
        updates, inner = optimizer.update(updates, wide, params)
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, NarrowState(count, _to_bfloat16(inner, count))

    return optax.GradientTransformation(init, update)


def _to_bfloat16(tree: Any, count: jax.Array) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    narrow = [
        round_by_chance(leaf, count * len(leaves) + index) if leaf.dtype == jnp.float32 else leaf
        for index, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, narrow)


def round_by_chance(x: jax.Array, seed: jax.Array) -> jax.Array:
    """Rounds to one of the two nearest bfloat16 numbers, so that the mean over seeds is x.

    Args:
        x: [...] float32.
        seed: [] integer.

    Returns:
        [...] bfloat16; what is not finite stays so.
    """
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    chance = place * np.uint32(0x9E3779B1) + seed.astype(jnp.uint32) * np.uint32(0x85EBCA77)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):  # every bit of a product of these is mixed
        chance = (chance ^ (chance >> shift)) * np.uint32(factor)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (chance >> 16)
    cut = jax.lax.bitcast_convert_type(bits & np.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), cut, x).astype(jnp.bfloat16)


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
        InputError: an unknown optimiser, schedule or kind of moments.
    """
    schedule = make_schedule(config, total_steps)
    schedule(0)  # an unknown name fails here, not inside the compiled step
    constants = {name: config[name] for name in ("b1", "b2", "eps", "weight_decay")}
    name, narrow = config["name"], choose("optimizer.moments", config["moments"], MOMENTS) == "bfloat16"
    if choose("optimizer.name", name, OPTIMIZERS) == "muon":
        optimizer = muon(schedule, mu_dtype=jnp.bfloat16 if narrow else None, **constants)
    else:
        make = lamb if name == "lamb" else functools.partial(optax.adamw, mask=decay_mask)
        optimizer = make(schedule, **constants)
        if narrow:
            optimizer = narrow_moments(optimizer)
    if config["clip_norm"] > 0:
        optimizer = optax.chain(optax.clip_by_global_norm(config["clip_norm"]), optimizer)
    return optimizer
