"""Multi-head attention with the mixer's call, to all tokens or in windows: a comparison changes one word."""

import functools
from collections.abc import Callable, Sequence

import jax
from flax import linen as nn
from flax.typing import Initializer
from jax.typing import DTypeLike

from pom_jax.errors import InputError
from pom_jax.nn.dense import Dense, xavier_uniform
from pom_jax.ops.attention import attention
from pom_jax.ops.states import check_tokens, without_heads
from pom_jax.ops.windows import local_attention


class MultiHeadAttention(nn.Module):
    """Softmax attention, self or cross, with biases everywhere (as timm's in the authors' DiT).

    timm's `qkv.weight` [3 D, D] is [query, key, value] on its first axis, heads slow: each third,
    `.T.reshape(D, H, d)`, is one of `query|key|value/kernel`; `proj.weight` is `out/kernel` =
    `.T.reshape(H, d, D)`. Each of the three projections starts with the fans of the fused matrix.

    Attributes:
        num_heads: number of heads; D must be divisible by it unless `head_width` is given.
        head_width: d, channels of a head; 0 for D / num_heads.
        dtype: compute dtype of the products, None is float32; the softmax is float32.
        kernel_init: initialiser of the matrices.
    """

    num_heads: int
    head_width: int = 0
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
            mask: None, [B, N] or [B, M, N] (B may be 1), or [B, 1, M, N] as in Flax; zero hides a token.

        Returns:
            [B, M, D] in the compute dtype; the output bias for a query that sees nothing.

        Raises:
            InputError: shapes or mask do not fit, or D is not divisible by the heads.
        """
        return _attend(self, x, x if context is None else context, mask, attention)


class LocalAttention(nn.Module):
    """Attention in windows: tokens on a grid see those at most `radius` away along each axis, at linear cost.

    The parameters are those of `MultiHeadAttention`, by name and shape. Leading global tokens (registers,
    text) see everything and are seen by everything, as in the authors' SD3-PoM.

    Attributes:
        num_heads: number of heads; D must be divisible by it unless `head_width` is given.
        grid: sizes of its one to three axes; tokens lie in row-major order.
        radius: of the window, one for all axes or one for each.
        global_tokens: tokens before the grid's.
        causal: windows look back only along the first axis, see `ops.local_attention`.
        head_width: d, channels of a head; 0 for D / num_heads.
        dtype: compute dtype of the products, None is float32; the softmax is float32.
        kernel_init: initialiser of the matrices.
    """

    num_heads: int
    grid: Sequence[int]
    radius: int | Sequence[int]
    global_tokens: int = 0
    causal: bool = False
    head_width: int = 0
    dtype: DTypeLike | None = None
    kernel_init: Initializer = xavier_uniform

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Mixes each token's window into it.

        Args:
            x: [B, N, D], the queries: global tokens, then the grid.
            context: [B, N, D] on the same grid; None mixes x with itself.
            mask: None or [B, N] (B may be 1); zero hides a context token.

        Returns:
            [B, N, D] in the compute dtype; the output bias for a query that sees nothing.

        Raises:
            InputError: shapes, grid or mask do not fit, or D is not divisible by the heads.
        """
        attend = functools.partial(
            local_attention,
            grid=self.grid,
            radius=self.radius,
            global_tokens=self.global_tokens,
            causal=self.causal,
        )
        return _attend(self, x, x if context is None else context, mask, attend)


def _attend(
    layer: MultiHeadAttention | LocalAttention,
    x: jax.Array,
    source: jax.Array,
    mask: jax.Array | None,
    attend: Callable[..., jax.Array],
) -> jax.Array:
    """Projects to heads, attends, projects back; for the compact methods above."""
    mask = without_heads(mask)
    check_tokens(x, source, mask)
    width = x.shape[-1]
    if layer.head_width < 0 or layer.num_heads < 1:
        raise InputError(
            f"num_heads = {layer.num_heads} must be at least 1 and head_width = {layer.head_width} at least 0"
        )
    if not layer.head_width and width % layer.num_heads:
        raise InputError(
            f"num_heads = {layer.num_heads} does not divide the width {width}; choose a divisor of {width}, "
            "or a head_width"
        )
    heads = (layer.num_heads, layer.head_width or width // layer.num_heads)
    plain = functools.partial(Dense, dtype=layer.dtype, kernel_init=layer.kernel_init)
    project = functools.partial(plain, heads, fused_features=2 * heads[0] * heads[1])
    query = project(name="query")(x)
    key, value = project(name="key")(source), project(name="value")(source)
    return plain(width, axes=2, name="out")(attend(query, key, value, mask))
