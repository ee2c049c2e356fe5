"""Parts of the encoder and the decoder: residual blocks, attention, resolutions halved and doubled."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from pom_jax.nn.attention import MultiHeadAttention


class Residual(nn.Module):
    """Two normalised convolutions beside a connection, which is a 1 x 1 convolution where channels change.

    Attributes:
        features: channels that come out.
        groups: of the normalisations.
        dtype: of the convolutions and the result.
    """

    features: int
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, H, W, features]."""
        h = x
        for i in (1, 2):
            h = conv(self.features, self.dtype, f"conv{i}")(nn.silu(norm(self.groups, f"norm{i}")(h)))
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


def conv(features: int, dtype: DTypeLike, name: str) -> nn.Conv:
    """A 3 x 3 convolution, the edges padded with zeros."""
    return nn.Conv(features, (3, 3), padding=1, dtype=dtype, name=name)


def halve(x: jax.Array, dtype: DTypeLike, name: str) -> jax.Array:
    """A 3 x 3 convolution at every second pixel, padded only below and on the right: [B, H/2, W/2, C]."""
    every_second = functools.partial(nn.Conv, strides=2, padding=((0, 1), (0, 1)))
    return every_second(x.shape[-1], (3, 3), dtype=dtype, name=name)(x)


def double(x: jax.Array, dtype: DTypeLike, name: str) -> jax.Array:
    """Every pixel four times, then a 3 x 3 convolution: [B, 2 H, 2 W, C]."""
    return conv(x.shape[-1], dtype, name)(x.repeat(2, axis=1).repeat(2, axis=2))


def norm(groups: int, name: str) -> nn.GroupNorm:
    """Group normalisation in float32; the variance of squares would lose its digits."""
    return nn.GroupNorm(groups, epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False, name=name)


def middle(x: jax.Array, groups: int, attend: bool, dtype: DTypeLike) -> jax.Array:
    """Two residual blocks with attention over all pixels between them, if wanted: [B, H, W, C]."""
    width = x.shape[-1]
    x = Residual(width, groups, dtype, name="mid_resnet_0")(x)
    if attend:
        tokens = norm(groups, "mid_attention_norm")(x).reshape(len(x), -1, width)
        x += MultiHeadAttention(1, dtype=dtype, name="mid_attention")(tokens).reshape(x.shape)
    return Residual(width, groups, dtype, name="mid_resnet_1")(x)
