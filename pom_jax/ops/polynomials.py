"""The polynomials of the mixer, always in float32: a product of k factors loses bits k times."""

import itertools
import operator
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from pom_jax.errors import InputError
from pom_jax.ops.norms import gelu

CLAMP = (-0.1, 6.0)
SLOPE = 0.01


def cumulative_products(u: Sequence[Array]) -> list[Array]:
    """Cumulative products of activated projections (PoM v1): m_p = GELU(u_1) ... GELU(u_p).

    Args:
        u: [..., E] of each degree.

    Returns:
        [..., E] float32 of each degree.
    """
    factors = [gelu(one.astype(jnp.float32)) for one in u]
    return list(itertools.accumulate(factors, operator.mul))


def product_features(u: Array) -> Array:
    """`cumulative_products` of one array.

    Args:
        u: [..., K, E], one projection for each degree.

    Returns:
        [..., K, E] float32; chunk p is a polynomial of degree p in the activated projections.
    """
    return jnp.stack(cumulative_products([u[..., p, :] for p in range(u.shape[-2])]), axis=-2)


def clamped_leaky_relu(u: Array, slope: float = SLOPE, clamp: tuple[float, float] | None = CLAMP) -> Array:
    """The activation of the power form: leaky ReLU, then a clamp (none if `clamp` is None).

    The derivative is `slope` at u = 0, one sided inside at the bounds (as in the authors' code), zero beyond.

    Args:
        u: [...].
        slope: derivative below zero.
        clamp: lower and upper bound of the value.

    Returns:
        [...] float32.
    """
    u = u.astype(jnp.float32)
    a = jnp.where(u > 0, u, slope * u)
    if clamp is None:
        return a
    low, high = clamp
    return jnp.where(a < low, low, jnp.where(a > high, high, a))


def power_features(
    u: Array,
    coefficients: Array,
    slope: float = SLOPE,
    clamp: tuple[float, float] | None = CLAMP,
) -> Array:
    """A weighted sum of the powers 1..k of one activated projection (PoM v2); no constant term.

    Args:
        u: [..., E].
        coefficients: [E, K], the weight of power p in column p - 1.
        slope: of the activation below zero.
        clamp: bounds of the activation, None for none.

    Returns:
        [..., E] float32.

    Raises:
        InputError: the coefficients are not [E, K] with K of at least 1.
    """
    if coefficients.ndim != 2 or coefficients.shape[0] != u.shape[-1] or coefficients.shape[1] < 1:
        raise InputError(
            f"power_features: coefficients {coefficients.shape} must be [E, K], E = {u.shape[-1]}"
        )
    a = clamped_leaky_relu(u, slope, clamp)
    weights = coefficients.astype(jnp.float32)
    total = weights[:, -1]
    for p in range(weights.shape[1] - 2, -1, -1):
        total = total * a + weights[:, p]
    return total * a


def hard_sigmoid(u: Array) -> Array:
    """The gate of the power form: u / 6 + 1/2 between 0 and 1, in float32.

    Args:
        u: [...].

    Returns:
        [...] float32.
    """
    u = u.astype(jnp.float32)
    return jnp.where(jnp.abs(u) < 3, u / 6 + 0.5, jnp.where(u > 0, 1.0, 0.0))
