"""Classifier-free guidance in the usual scale s: v_uncond + s (v_cond - v_uncond); 1 is off.

The paper's omega is s - 1. Guidance mixes outputs of the network before anything else, which is the same in
every kind of prediction because the conversions between them are affine in the output.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pom_jax.diffusion.losses import Predict
from pom_jax.diffusion.paths import along
from pom_jax.errors import InputError, choose

PredictGiven = Callable[[jax.Array, jax.Array, Any], jax.Array]
Schedule = Callable[[jax.Array], jax.Array]
Interval = tuple[float, float]

EVERYWHERE: Interval = (0.0, 1.0)


def clamp_linear(floor: float) -> Schedule:
    """The schedule max(1 - t, floor)."""
    return lambda t: jnp.maximum(1 - t, floor)


def trunc_linear(floor: float) -> Schedule:
    """The schedule 1 - t where that exceeds the floor, 0 elsewhere."""
    return lambda t: jnp.where(1 - t > floor, 1 - t, 0.0)


# Weights w(t) of the schedules: the scale at time t is 1 + w(t) (s - 1). All but `constant` guide little near
# the noise and fully near the data. The linear shapes are those of the authors' sampler.py (its floor of 0.1
# included), where they are defined but never used.
GUIDANCE_SCHEDULES: dict[str, Schedule] = {
    "constant": jnp.ones_like,
    "linear": lambda t: 1 - t,
    "clamp_linear": clamp_linear(0.1),
    "trunc_linear": trunc_linear(0.1),
    "cosine": lambda t: (1 + jnp.cos(math.pi * t)) / 2,
}


def is_interval(value: Any) -> bool:
    """Whether a value is two numbers, 0 <= low < high <= 1."""
    try:
        low, high = value
        return bool(0 <= low < high <= 1)
    except (TypeError, ValueError):
        return False


def check_guidance(scale: float, interval: Sequence[float] = EVERYWHERE) -> Interval:
    """The interval as two floats.

    Raises:
        InputError: unless the scale is finite and not negative, and 0 <= low < high <= 1.
    """
    if not (math.isfinite(scale) and scale >= 0):
        raise InputError(f"guidance must be finite and at least 0 (1 = off, 0 = unconditional); got {scale}")
    if not is_interval(interval):
        said = tuple(interval) if isinstance(interval, list) else interval
        raise InputError(
            "the guidance interval is (low, high) in time, 0 = data and 1 = noise, with low below high; "
            f"got {said!r}"
        )
    return float(interval[0]), float(interval[1])


def choose_interval(given: Sequence[float] | None, sampling: Mapping[str, Any] | None = None) -> Interval:
    """The interval that is given, else a run's own, else everywhere; raises what `check_guidance` does."""
    own = (sampling or {}).get("guidance_interval", EVERYWHERE)
    return check_guidance(1.0, own if given is None else given)


def interval_in_words(interval: Sequence[float], *scales: float) -> str:
    """What comes behind scales: " at times 0.1 to 0.9"; nothing where guidance acts everywhere or is off."""
    low, high = interval
    return "" if (low, high) == EVERYWHERE or {*scales} == {1} else f" at times {low:g} to {high:g}"


def resolution_guidance(latent_side: int, excess: float = 4.0) -> float:
    """The guidance scale 1 + excess side / 32: 5, 9 and 17 for images of 256, 512 and 1024 pixels.

    The first paper's figure 4 draws with w = 4 s / s0, s0 = 256 pixels. That its w is that of the authors'
    code, one less than the usual scale, is our reading. It is for looking at pictures; the guidance of the
    published FID is not known.

    Args:
        latent_side: of latents of an eighth of the image's side.
        excess: the paper's w at 256 pixels.
    """
    return 1 + excess * latent_side / 32


def guide(
    predict_given: PredictGiven,
    condition: Any,
    null: Any,
    scale: float | jax.Array = 1.0,
    interval: Interval = EVERYWHERE,
    schedule: str | Schedule = "constant",
) -> Predict:
    """Binds a condition and guidance to a conditional network.

    A scale given as a Python number is static: at 1 the network is evaluated once, with the condition, and at
    0 once, without it. Otherwise one evaluation of a doubled batch serves both halves. A scale given as an
    array can change without compiling again, and always doubles the batch.

    Args:
        predict_given: the network (x_t [B, ...], t [B], condition) -> [B, ...].
        condition: labels [B] int32, or any tree of arrays [B, ...] such as a text, or a text and states.
        null: the same tree for no condition; of labels, the label that stands for none.
        scale: guidance scale s, or [B] one for each example.
        interval: guidance acts where low <= t <= high, on the network's time; elsewhere the scale is 1.
            Source: Kynkaanniemi et al., "Applying guidance in a limited interval", arXiv 2404.07724.
        schedule: a name of `GUIDANCE_SCHEDULES` or a function t -> weight of s - 1.

    Returns:
        predict(x_t [B, ...], t [B]) -> [B, ...].

    Raises:
        InputError: a scale that is negative or not finite, an interval out of order, an unknown schedule, a
            `null` that is another tree than the condition.
    """
    static = not isinstance(scale, jax.Array)
    check_guidance(float(scale) if static else 1.0, interval)
    weight = schedule if callable(schedule) else choose("guidance schedule", schedule, GUIDANCE_SCHEDULES)
    without = _without(condition, null)
    if static and scale == 1:
        return lambda x, t: predict_given(x, t, condition)
    if static and scale == 0 and weight is GUIDANCE_SCHEDULES["constant"] and tuple(interval) == EVERYWHERE:
        return lambda x, t: predict_given(x, t, without)
    given = both_halves(condition, without)

    def predict(x: jax.Array, t: jax.Array) -> jax.Array:
        both: Any = predict_given(jnp.concatenate([x, x]), jnp.concatenate([t, t]), given)
        conditional, unconditional = jnp.split(both.astype(x.dtype), 2)
        inside = (t >= interval[0]) & (t <= interval[1])
        excess = jnp.where(inside, weight(t) * (scale - 1), 0).astype(x.dtype)
        return conditional + along(excess, x) * (conditional - unconditional)

    return predict


def both_halves(condition: Any, without: Any) -> Any:
    """One batch of both: two trees of arrays [B, ...] -> [2 B, ...], with the condition first."""
    return jax.tree.map(lambda *pair: jnp.concatenate(pair), condition, without)


def _without(condition: Any, null: Any) -> Any:
    """`null` in the shape of the condition."""
    if isinstance(condition, jax.Array | np.ndarray):
        return jnp.broadcast_to(jnp.asarray(null, condition.dtype), condition.shape)
    if jax.tree.structure(condition) != jax.tree.structure(null):
        raise InputError(
            f"guidance needs a null like the condition, {jax.tree.structure(condition)}; got "
            f"{jax.tree.structure(null)}"
        )
    return null
