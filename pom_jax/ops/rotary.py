"""Rotary positions of features and gates, on one, two or three axes (v2, official `PoMRoPE`)."""

import dataclasses
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from pom_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Turns pairs of channels by angles that grow with the token's position.

    The channels are cut in one equal part an axis, and channel i of a part of P turns with channel i + P/2 by
    position * base ** (-2 i / P). The sum of the two channels of a pair then depends on relative positions
    alone; single channels, and so the layer, do not (`Phase` has that).

    Attributes:
        axes: coordinates of a position: 1 sequence, 2 (row, column), 3 (time, row, column).
        base: of the geometric series of frequencies.
    """

    axes: int = 1
    base: float = 10000.0

    def check(self, channels: int, heads: int) -> None:
        """Raises an InputError unless E channels, and `heads` gates if more than one, divide in pairs."""
        whole = isinstance(self.axes, Integral) and not isinstance(self.axes, bool)
        if not whole or self.axes not in (1, 2, 3):
            raise InputError(f"Rotary(axes={self.axes!r}): axes is 1, 2 or 3")
        base: Any = self.base
        if not isinstance(self.base, Real) or not 1e-37 <= base <= 3e38:  # float32 holds its inverse too
            raise InputError(f"Rotary(base={base!r}): base is a number above 0, from 1e-37 to 3e38")
        if channels % (2 * self.axes):
            raise InputError(
                f"rotary positions on {self.axes} axes turn channels in pairs: the expanded width "
                f"E = {channels} must be a multiple of {2 * self.axes}; change the width or the expansion"
            )
        stride = channels // heads if self.axes > 1 else channels // heads // 2
        if heads > 1 and (heads % (2 * self.axes) or stride < 1):
            raise InputError(
                f"gate_heads = {heads} must be a multiple of {2 * self.axes} for rotary positions on "
                f"{self.axes} axes, and E / gate_heads = {channels // heads} at least 2"
            )

    def tables(self, positions: Array, channels: int, heads: int = 1) -> tuple[Array, Array]:
        """Cosines and sines for every channel, or for every one of `heads` gates.

        Gates that several channels share take every s-th frequency of the channels' table, s being the
        channels of a head (half of them on one axis), as the authors' code does.

        Args:
            positions: [..., N, axes].
            channels: E.
            heads: gates of a token, 1 if each channel has its own.

        Returns:
            Two arrays [..., N, E], or [..., N, heads], float32.
        """
        half = channels // (2 * self.axes)
        frequencies = (self.base ** -(np.arange(half) / half)).astype(np.float32)
        if heads > 1:
            stride = channels // heads if self.axes > 1 else channels // heads // 2
            frequencies = frequencies[::stride][: heads // (2 * self.axes)]
        angles = jnp.asarray(positions, jnp.float32)[..., None] * frequencies

        def spread(table: Array) -> Array:
            # Each axis has its part, and both halves of a part the same angles.
            table = jnp.concatenate([table, table], axis=-1)
            return table.reshape(*table.shape[:-2], table.shape[-2] * table.shape[-1])

        return spread(jnp.cos(angles)), spread(jnp.sin(angles))

    def rotate(self, x: Array, tables: tuple[Array, Array]) -> Array:
        """Turns the last axis of x [..., E] by tables [..., E] that broadcast against it."""
        cos, sin = tables
        parts = x.reshape(*x.shape[:-1], self.axes, 2, x.shape[-1] // (2 * self.axes))
        swapped = jnp.stack([-parts[..., 1, :], parts[..., 0, :]], axis=-2).reshape(x.shape)
        return x * cos + swapped * sin


def check_positions(name: str, given: ArrayLike | Sequence[Any], batch: int, tokens: int, axes: int) -> Array:
    """Positions in one form, after checking that each token has one.

    Args:
        name: of the argument, for errors.
        given: [N, axes] or [B, N, axes]; on one axis also [N] or [B, N].
        batch: B.
        tokens: N.
        axes: coordinates of a position.

    Returns:
        [B or 1, N, axes] float32.

    Raises:
        InputError: any other shape, or no real numbers.
    """
    try:
        if any(np.iscomplexobj(leaf) for leaf in jax.tree.leaves(given)):
            raise TypeError("they are complex")
        places = jnp.asarray(given, jnp.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} must be numbers [{tokens}, {axes}]: {error}") from error
    if axes == 1 and places.shape in ((tokens,), (1, tokens), (batch, tokens)):
        places = places[..., None]
    places = places[None] if places.ndim == 2 else places
    if places.ndim != 3 or places.shape[1:] != (tokens, axes) or places.shape[0] not in (1, batch):
        raise InputError(
            f"{name} has shape {tuple(places.shape)}; {tokens} tokens on {axes} axes need "
            f"[{tokens}, {axes}], or [{batch}, {tokens}, {axes}] for each sequence its own"
        )
    return places


def grid_positions(*sizes: int) -> np.ndarray:
    """The coordinates of the tokens of a grid in row-major order.

    Args:
        sizes: of each axis: (N,), (H, W) or (T, H, W).

    Returns:
        [prod(sizes), len(sizes)] float32.

    Raises:
        InputError: no sizes, or one that is no whole number of at least 0.
    """
    if not sizes or not all(isinstance(size, Integral) and size >= 0 for size in sizes):
        raise InputError(f"grid_positions{sizes}: give the sizes of the axes, whole numbers of at least 0")
    axes = np.meshgrid(*(np.arange(size) for size in sizes), indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, len(sizes)).astype(np.float32)
