"""Two kinds of heads in one layer: a state of everything, and attention to what is near."""

from collections.abc import Callable

import jax
from flax import linen as nn


class Hybrid(nn.Module):
    """PoM and attention side by side, their outputs summed: PoM(x) + attention(x).

    Each half has its own output product, so the sum is one layer whose heads are of two kinds, laid end to
    end before one output product. Both read whole tokens and write all channels, and neither gives up its own
    parameters, masks or state; how much goes to either is the matter of `expansion` and of the number and
    width of the heads. The authors' SD3-PoM puts the kinds in layers of their own instead: `attention_every`
    of the models. It takes masks, but neither mixes causally or by frames nor streams.

    Attributes:
        pom: makes the one half, called with `name`; any module with the call of `nn.PoM`.
        attention: makes the other, alike: `nn.LocalAttention` or `nn.MultiHeadAttention`.
    """

    pom: Callable[..., nn.Module]
    attention: Callable[..., nn.Module]

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """x: [B, M, D], context: [B, N, D] or None for x itself, mask: as both halves take -> [B, M, D]."""
        far = self.pom(name="pom")(x, context, mask=mask)
        return far + self.attention(name="attention")(x, context, mask=mask)
