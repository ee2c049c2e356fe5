"""Running sums over tokens, in blocks: a small product sums within each, then the blocks' sums run on.

`benchmarks.prefix` measures it beside `cumsum` and `associative_scan`. It also rounds less than one long sum:
no partial sum is built of more than BLOCK terms.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from pom_jax.errors import InputError
from pom_jax.ops.states import check_numbers

BLOCK = 32


def prefix_sum(x: Array, *, exclusive: bool = False) -> Array:
    """Running sums along the second axis, in float32, at a cost linear in its length.

    Args:
        x: [B, N, ...F].
        exclusive: leave each element itself out of its sum.

    Returns:
        [B, N, ...F] float32: element n is the sum of elements 0..n, or 0..n-1 if exclusive.

    Raises:
        InputError: fewer than two axes, or no array of numbers.
    """
    check_numbers("x", x)
    if x.ndim < 2:
        raise InputError(f"prefix_sum: x has shape {tuple(x.shape)}; give [B, N, ...], to sum along N")
    x = jnp.asarray(x, jnp.float32)
    batch, length, *features = x.shape
    flat = x.reshape(batch, length, math.prod(features))
    return _running(flat, exclusive).reshape(x.shape)


def _running(x: Array, exclusive: bool) -> Array:
    batch, length, features = x.shape
    if length <= 1:
        return jnp.zeros_like(x) if exclusive else x
    size = min(BLOCK, length)
    count = -(-length // size)
    blocks = jnp.pad(x, ((0, 0), (0, count * size - length), (0, 0))).reshape(batch, count, size, features)
    ones = np.tri(size, k=-1 if exclusive else 0, dtype=np.float32)
    # The default precision of an accelerator's product would round the summands to bfloat16.
    inside = jnp.einsum("ij,bcjf->bcif", ones, blocks, precision=lax.Precision.HIGHEST)
    totals = inside[:, :, -1] + blocks[:, :, -1] if exclusive else inside[:, :, -1]
    before = _running(totals, exclusive=True)
    return (inside + before[:, :, None]).reshape(batch, count * size, features)[:, :length]
