"""The phase read: a state that knows where its tokens were, read at a place relative to them."""

import dataclasses
import math
from numbers import Real
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from pom_jax.errors import InputError


def _is_period(size: Any) -> bool:
    """Whether float32 holds a period of that size, and its frequency."""
    return 1e-37 <= size <= 3e38 or size == math.inf


@dataclasses.dataclass(frozen=True)
class Phase:
    """State = mean of features times exp(i w.q); a token at p reads exp(-i w.p) state, both quadratures.

    Since exp(i w.(q - p)) is all that a token sees, the layer depends on relative positions alone, as long as
    features and gates carry no absolute ones. The state has twice the size, and still adds, streams and
    shards like any other. Each quadrature has a gate of its own. (Neither paper has it.)

    Attributes:
        periods: for each axis of a position the periods on it, in units of that axis; `math.inf` is the
            frequency zero, a negative period turns the other way. The frequencies w = 2 pi / period are all
            combinations across axes, and channel c uses number c modulo their count. For a sequence
            `Phase(((math.inf, 16.0, -16.0),))`, for rows and columns that tuple of three twice.
    """

    periods: tuple[tuple[float, ...], ...]

    @property
    def axes(self) -> int:
        """Coordinates of a position."""
        return len(self.periods)

    def check(self) -> None:
        """Raises an InputError unless every axis has periods, and none is zero."""
        nested = isinstance(self.periods, tuple) and all(isinstance(axis, tuple) for axis in self.periods)
        if not nested or not self.periods or not all(self.periods):
            raise InputError(
                f"Phase(periods={self.periods}): give a tuple of periods for each axis of a position, "
                "such as ((math.inf, 4.0, -4.0), (math.inf, 4.0, -4.0)) for rows and columns"
            )
        if not all(isinstance(p, Real) and _is_period(abs(p)) for axis in self.periods for p in axis):
            raise InputError(
                f"Phase(periods={self.periods}): a period is a number other than zero that float32 holds, "
                "from 1e-37 to 3e38, its negative, or math.inf"
            )

    def tables(self, positions: Array, channels: int) -> tuple[Array, Array]:
        """cos w.q and sin w.q of every channel.

        Args:
            positions: [..., N, axes].
            channels: E.

        Returns:
            Two arrays [..., N, E] float32.
        """
        periods = np.stack(np.meshgrid(*self.periods, indexing="ij"), axis=-1, dtype=np.float32)
        periods = periods.reshape(-1, self.axes)
        places = jnp.asarray(positions, jnp.float32)
        angles = jnp.zeros((*places.shape[:-1], len(periods)), jnp.float32)
        for i in range(self.axes):
            # Remainders are exact: far from the origin an angle loses nothing.
            left = jnp.fmod(places[..., i, None], periods[:, i])
            angles += jnp.where(np.isinf(periods[:, i]), 0.0, left * (2 * math.pi / periods[:, i]))
        repeats = (1,) * (angles.ndim - 1) + (-(-channels // len(periods)),)

        def spread(table: Array) -> Array:
            return jnp.tile(table, repeats)[..., :channels]

        return spread(jnp.cos(angles)), spread(jnp.sin(angles))
