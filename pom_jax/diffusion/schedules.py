"""Time: variance schedules, the times of training, the grids of sampling.

Time runs from 0 (data) to 1 (noise). A function of time takes JAX arrays or numpy ones and answers in kind:
the samplers plan their coefficients in numpy's float64, so that `1 - sigma` near the ends keeps its digits.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pom_jax.errors import InputError, choose

Variance = Callable[[Any, Any], tuple[Any, Any]]


def namespace(t: Any) -> Any:
    """numpy for numbers and numpy arrays, jax.numpy for JAX arrays."""
    return jnp if isinstance(t, jax.Array) else np


def _linear(t, xp):
    return t, 1 - t


def _sine(t, xp):
    return xp.sin(math.pi / 2 * t), 2 * xp.square(xp.sin(math.pi / 4 * (1 - t)))


def _cosine(t, xp):
    return 2 * xp.square(xp.sin(math.pi / 4 * t)), xp.sin(math.pi / 2 * (1 - t))


def _sigmoid(t, xp):
    # The logistic between -2 and 2, stretched to [0, 1]; written with sinh because the difference of two
    # logistics cancels at both ends.
    def rise(u):
        return xp.sinh(2 * u) / (2 * math.sinh(1.0) * xp.cosh(2 * u - 1))

    return rise(t), rise(1 - t)


def _karras(t, xp):
    top, bottom = 2.0 ** (1 / 7), 0.01 ** (1 / 7)
    signal = xp.clip((top + t * (bottom - top)) ** 7, 0.0, 1.0)
    return 1 - signal, signal


# log of DDPM's signal variance at its 1,000 times i / 1000: the steps' variances rise from 1e-4 to 0.02.
_DDPM = np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))
_DDPM[0] = 0.0  # its first time is not without noise; here all data are clean at 0


def _ddpm(t, xp):
    log_signal = xp.interp(t, np.arange(len(_DDPM)) / len(_DDPM), _DDPM)
    return -xp.expm1(log_signal), xp.exp(log_signal)


VARIANCE_SCHEDULES: dict[str, Variance] = {
    "linear": _linear,
    "sine": _sine,
    "cosine": _cosine,
    "sigmoid": _sigmoid,
    "karras": _karras,
    "ddpm": _ddpm,
}


def variances(name: str, t: Any) -> tuple[Any, Any]:
    """Variances of the noise and of the signal at time t; they add up to 1 and each is computed directly.

    The schedules of the authors' sampler.py, which calls the noise variance sigma and keeps it 1e-6 away from
    0 and 1; here the ends are exact. `karras` has no noise up to t = 0.178 and only 0.99 of it at t = 1.
    `ddpm` is that of DDPM, ADM and DiT, with 4e-5 of the signal left at the end.

    Args:
        name: one of `VARIANCE_SCHEDULES`.
        t: any shape, in [0, 1].

    Returns:
        Noise variance and signal variance, shaped like t.

    Raises:
        InputError: unknown name.
    """
    return choose("variance schedule", name, VARIANCE_SCHEDULES)(t, namespace(t))


def shift_time(t: Any, shift: float) -> Any:
    """Moves times towards the noise: r t / (1 + (r - 1) t), with r = `shift`; 1 changes nothing.

    Larger images keep more of their signal at equal t, so they need more of the time at high noise. The
    shifted time is the only time there is afterwards: the network and the noise see the same one (the
    authors' training code shifts the noise but not the network's time).
    """
    return shift * t / (1 + (shift - 1) * t)


def resolution_shift(latent_side: int) -> float:
    """The shift r for latents of this side: sqrt(side / 32), 1 for images of 256 pixels, 2 for 1024."""
    return math.sqrt(latent_side / 32)


TIME_SAMPLINGS = ("uniform", "logit_normal")


@dataclasses.dataclass(frozen=True)
class TimeSampling:
    """How training draws its times.

    Attributes:
        kind: "uniform" on [0, 1), or "logit_normal": sigmoid(mean + std n), noisier with a mean above 0.
        mean, std: of the logit.
        shift: the resolution-dependent `shift_time`, applied after the draw.
    """

    kind: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self):
        choose("diffusion.time_sampling", self.kind, TIME_SAMPLINGS)
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise InputError(
                "diffusion.logit_mean must be finite and diffusion.logit_std positive; "
                f"got {self.mean} and {self.std}"
            )
        if not (math.isfinite(self.shift) and self.shift > 0):
            raise InputError(f"diffusion.shift must be positive (1 = no shift); got {self.shift}")


def sample_times(key: jax.Array, n: int, times: TimeSampling) -> jax.Array:
    """Draws the times of a training batch of n examples: [n] float32 in [0, 1]."""
    if times.kind == "uniform":
        t = jax.random.uniform(key, (n,), jnp.float32)
    else:
        t = jax.nn.sigmoid(times.mean + times.std * jax.random.normal(key, (n,), jnp.float32))
    return t if times.shift == 1.0 else shift_time(t, times.shift)


def stratified_times(key: jax.Array, n: int) -> jax.Array:
    """One time at the middle of each of n equal strata of [0, 1], in random order: [n] float32.

    For validation: the same key gives the same times, and every stretch of time is seen equally often.
    """
    return (jax.random.permutation(key, n).astype(jnp.float32) + 0.5) / n


# Each takes positions 0..1 and gives how far from the noise end (1) to the data end (0) the grid has come.
GRIDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uniform": lambda u: 1 - u,
    "quadratic": lambda u: np.square(1 - u),
    "cosine": lambda u: np.square(np.cos(np.pi / 2 * u)),
}


def time_grid(
    steps: int, *, start: float = 1.0, end: float = 0.0, grid: str = "uniform", shift: float = 1.0
) -> np.ndarray:
    """The times a sampler visits, from noise to data.

    Args:
        steps: number of intervals, at least 1.
        start, end: first and last time, 1 >= start > end >= 0.
        grid: "uniform", "quadratic" (finer towards the data) or "cosine" (finer at both ends).
        shift: `shift_time` of the grid, for models trained with one.

    Returns:
        [steps + 1] float64, falling.

    Raises:
        InputError: any of these out of range.
    """
    if not isinstance(steps, int | np.integer) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"steps must be a whole number of at least 1; got {steps!r}")
    if not 1 >= start > end >= 0:
        raise InputError(f"sampling runs from start down to end within [0, 1]; got start={start}, end={end}")
    if not (math.isfinite(shift) and shift > 0):
        raise InputError(f"shift must be positive (1 = no shift); got {shift}")
    unit = choose("grid", grid, GRIDS)(np.arange(steps + 1) / steps)
    times = end + (start - end) * shift_time(unit, shift)
    times[0], times[-1] = start, end
    return times
