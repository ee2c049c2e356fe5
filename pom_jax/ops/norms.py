"""Normalisation and activation with analytic derivatives, in float32."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def layer_norm(x: Array, eps: float = 1e-6) -> Array:
    """Centres and scales the last axis, without learned scale or shift, in float32.

    Args:
        x: [..., D], any floating dtype.
        eps: added to the (biased) variance.

    Returns:
        [..., D] float32.
    """
    centred, inverse = _standardise(x, eps)
    return centred * inverse


def _standardise(x: Array, eps: float) -> tuple[Array, Array]:
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    return centred, jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)


@layer_norm.defjvp
def _layer_norm_jvp(eps: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    centred, inverse = _standardise(primals[0], eps)
    y = centred * inverse
    t = tangents[0].astype(jnp.float32)
    return y, inverse * (t - t.mean(-1, keepdims=True) - y * (y * t).mean(-1, keepdims=True))


@jax.custom_jvp
def gelu(x: Array) -> Array:
    """Exact GELU, x Phi(x) with Phi the normal distribution function.

    Args:
        x: [...], any floating dtype.

    Returns:
        [...] of the same dtype, computed in float32.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _normal_cdf(x: Array) -> Array:
    # erf as in the authors' code: erfc keeps more digits in the far tail, but costs the step a third on CPU.
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    x = primals[0].astype(jnp.float32)
    cdf = _normal_cdf(x)
    slope = cdf + x * jnp.exp(-0.5 * jnp.square(x)) * (1 / math.sqrt(2 * math.pi))
    dtype = primals[0].dtype
    return (x * cdf).astype(dtype), (slope * tangents[0].astype(jnp.float32)).astype(dtype)
