"""Two kinds of heads in one layer: a state of everything, and attention to what is near."""

from collections.abc import Callable

import jax
from flax import linen as nn

from pom_jax.errors import InputError

Half = nn.Module | Callable[..., nn.Module]


class Hybrid(nn.Module):
    """PoM and attention side by side, their outputs summed: PoM(x) + attention(x).

    Each half has its own output product, so the sum is one layer whose heads are of two kinds, laid end to
    end before one output product. Both read whole tokens and write all channels, and neither gives up its own
    parameters, masks or state; how much goes to either is the matter of `expansion` and of the number and
    width of the heads. The authors' SD3-PoM puts the kinds in layers of their own instead: `attention_every`
    of the models. Halves may be causal, `Hybrid(PoM(causal=True), LocalAttention(..., causal=True))`; the
    whole neither mixes by frames nor streams.

    Attributes:
        pom: the one half, a module with the call of `nn.PoM`, or what makes one, called with `name`.
        attention: the other, alike: `nn.LocalAttention` or `nn.MultiHeadAttention`.
    """

    pom: Half
    attention: Half

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """x: [B, M, D], context: [B, N, D] or None for x itself, mask: as both halves take -> [B, M, D]."""
        far = _module(self.pom, "pom")(x, context, mask=mask)
        return far + _module(self.attention, "attention")(x, context, mask=mask)


def _module(half: Half, name: str) -> nn.Module:
    """The half itself, which Flax names after its field, or a new one."""
    if isinstance(half, nn.Module):
        return half
    if not callable(half):
        raise InputError(f"Hybrid: {name} = {half!r} is neither a module nor a function that makes one")
    return half(name=name)
