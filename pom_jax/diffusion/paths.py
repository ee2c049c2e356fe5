"""Paths from data to noise, x_t = alpha(t) x + sigma(t) eps, and what a network can predict on them.

alpha and sigma are amplitudes, never variances. Every path has a velocity v that is the derivative of x_t
with respect to the path's own clock: time itself on the flow path, the angle atan2(sigma, alpha) on a
variance path. There v = alpha eps - sigma x, the usual v-prediction, so one ODE step serves both paths and
neither end is singular.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from pom_jax.diffusion.schedules import VARIANCE_SCHEDULES, TimeSampling, namespace, variances
from pom_jax.errors import choose

PREDICTIONS = ("velocity", "noise", "data")

# Below this amplitude a division would only magnify rounding: the estimate shrinks instead, and stays finite.
FLOOR = 1e-4


def along(t: Any, x: Any) -> Any:
    """Reshapes t [B] to [B, 1, ...] so that it multiplies x [B, ...]; a scalar stays as it is."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t


class Path(Protocol):
    """A path from data (t = 0) to unit noise (t = 1)."""

    def alpha(self, t: Any) -> Any:
        """Amplitude of the data at t."""
        ...

    def sigma(self, t: Any) -> Any:
        """Amplitude of the noise at t."""
        ...

    def clock(self, t: Any) -> Any:
        """The rising function of t along which x_t moves with the velocity v."""
        ...

    def velocity_weights(self, alpha: Any, sigma: Any) -> tuple[Any, Any]:
        """(a, b) of v = a eps - b x; alpha a + sigma b = 1 on every path."""
        ...

    def add_noise(self, x: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """x_t [B, ...] from data x [B, ...], unit noise eps [B, ...] and times t [B]."""
        t = along(t, x)
        return self.alpha(t) * x + self.sigma(t) * eps


@dataclasses.dataclass(frozen=True)
class FlowPath(Path):
    """The straight line x_t = (1 - t) x + t eps, with velocity eps - x (flow matching)."""

    def alpha(self, t: Any) -> Any:
        return 1 - t

    def sigma(self, t: Any) -> Any:
        return t

    def clock(self, t: Any) -> Any:
        return t

    def velocity_weights(self, alpha: Any, sigma: Any) -> tuple[Any, Any]:
        return 1.0, 1.0


@dataclasses.dataclass(frozen=True)
class VariancePath(Path):
    """The variance-preserving path: sigma(t)^2 follows a named schedule, alpha(t)^2 is the rest to 1.

    `linear` (sigma^2 = t) is what the first paper's noise prediction trains on.

    Attributes:
        schedule: a name of `VARIANCE_SCHEDULES`.
        margin: keeps both variances within [margin, 1 - margin]. 0 leaves the data clean at t = 0; the
            authors' DDIM and DDPM samplers have 1e-6.
    """

    schedule: str = "linear"
    margin: float = 0.0

    def __post_init__(self):
        choose("diffusion.variance_schedule", self.schedule, VARIANCE_SCHEDULES)

    def _amplitude(self, variance: Any) -> Any:
        xp = namespace(variance)
        return xp.sqrt(xp.clip(variance, self.margin, 1 - self.margin) if self.margin else variance)

    def alpha(self, t: Any) -> Any:
        return self._amplitude(variances(self.schedule, t)[1])

    def sigma(self, t: Any) -> Any:
        return self._amplitude(variances(self.schedule, t)[0])

    def clock(self, t: Any) -> Any:
        return namespace(t).arctan2(self.sigma(t), self.alpha(t))

    def velocity_weights(self, alpha: Any, sigma: Any) -> tuple[Any, Any]:
        return alpha, sigma


class Predictions(NamedTuple):
    """What one network output says about a noisy x_t, each [B, ...]."""

    data: jax.Array
    noise: jax.Array
    velocity: jax.Array


def target(path: Path, prediction: str, x: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    """What a network of this prediction kind should return.

    Args:
        prediction: "velocity", "noise" or "data".
        x, eps: [B, ...] data and the noise added to it.
        t: [B] times.

    Returns:
        [B, ...].

    Raises:
        InputError: unknown prediction.
    """
    choose("diffusion.prediction", prediction, PREDICTIONS)
    if prediction == "noise":
        return eps
    if prediction == "data":
        return x
    t = along(t, x)
    a, b = path.velocity_weights(path.alpha(t), path.sigma(t))
    return a * eps - b * x


def convert_at(path: Path, prediction: str, value: Any, x_t: Any, alpha: Any, sigma: Any) -> Predictions:
    """`convert` for amplitudes already known (shapes that broadcast against x_t [B, ...])."""
    choose("diffusion.prediction", prediction, PREDICTIONS)
    a, b = path.velocity_weights(alpha, sigma)
    if prediction == "velocity":
        return Predictions(a * x_t - sigma * value, b * x_t + alpha * value, value)
    if prediction == "noise":
        data, noise = (x_t - sigma * value) / jnp.maximum(alpha, FLOOR), value
    else:
        data, noise = value, (x_t - alpha * value) / jnp.maximum(sigma, FLOOR)
    return Predictions(data, noise, a * noise - b * data)


def convert(path: Path, prediction: str, value: jax.Array, x_t: jax.Array, t: jax.Array) -> Predictions:
    """Turns one prediction about x_t into all three.

    At t = 1 a noise prediction says nothing about the data, and at t = 0 a data prediction nothing about the
    noise: the estimates there are finite (see `FLOOR`) but empty. A velocity is exact everywhere.

    Args:
        prediction: what `value` is: "velocity", "noise" or "data".
        value, x_t: [B, ...] the network's output and its input.
        t: [B] times.

    Returns:
        Predictions of the data, the noise and the velocity, each [B, ...].

    Raises:
        InputError: unknown prediction.
    """
    t = along(t, x_t)
    return convert_at(path, prediction, value, x_t, path.alpha(t), path.sigma(t))


def make_path(config: Mapping[str, Any]) -> Path:
    """The path of a config's `diffusion` section (`path`, `variance_schedule`).

    Raises:
        InputError: an unknown path or schedule.
    """
    name = choose("diffusion.path", config["path"], ("flow", "variance"))
    return FlowPath() if name == "flow" else VariancePath(config["variance_schedule"])


def make_times(config: Mapping[str, Any]) -> TimeSampling:
    """The times of a config's `diffusion` section (`time_sampling`, `logit_mean`, `logit_std`, `shift`).

    Raises:
        InputError: an unknown kind, or numbers out of range.
    """
    return TimeSampling(config["time_sampling"], config["logit_mean"], config["logit_std"], config["shift"])
