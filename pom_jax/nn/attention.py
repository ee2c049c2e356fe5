"""Multi-head attention with the mixer's call, so that a comparison changes one word."""

import functools

import jax
from flax import linen as nn
from flax.typing import Initializer
from jax.typing import DTypeLike

from pom_jax.errors import InputError
from pom_jax.nn.dense import Dense, xavier_uniform
from pom_jax.ops.attention import attention
from pom_jax.ops.states import check_tokens


class MultiHeadAttention(nn.Module):
    """Softmax attention, self or cross, with biases everywhere (as timm's in the authors' DiT).

    timm's `qkv.weight` [3 D, D] is [query, key, value] on its first axis, heads slow: each third,
    `.T.reshape(D, H, d)`, is one of `query|key|value/kernel`; `proj.weight` is `out/kernel` =
    `.T.reshape(H, d, D)`. Each of the three projections starts with the fans of the fused matrix.

    Attributes:
        num_heads: number of heads; D must be divisible by it.
        dtype: compute dtype of the products, None is float32; the softmax is float32.
        kernel_init: initialiser of the matrices.
    """

    num_heads: int
    dtype: DTypeLike | None = None
    kernel_init: Initializer = xavier_uniform

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Mixes context tokens into query tokens.

        Args:
            x: [B, M, D], the queries.
            context: [B, N, D]; None mixes x with itself.
            mask: None, [B, N] or [B, M, N] (B may be 1); zero hides a context token.

        Returns:
            [B, M, D] in the compute dtype; the output bias for a query that sees nothing.

        Raises:
            InputError: shapes or mask do not fit, or D is not divisible by the heads.
        """
        source = x if context is None else context
        check_tokens(x, source, mask)
        width = x.shape[-1]
        if self.num_heads < 1 or width % self.num_heads:
            raise InputError(
                f"num_heads = {self.num_heads} does not divide the width {width}; choose a divisor of {width}"
            )
        heads = (self.num_heads, width // self.num_heads)

        plain = functools.partial(Dense, dtype=self.dtype, kernel_init=self.kernel_init)
        project = functools.partial(plain, heads, fused_features=2 * width)
        query = project(name="query")(x)
        key, value = project(name="key")(source), project(name="value")(source)
        return plain(width, axes=2, name="out")(attention(query, key, value, mask))
