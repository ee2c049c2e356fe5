"""Multi-head attention with the mixer's call, to all tokens or in windows: a comparison changes one word."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jax.typing import DTypeLike

from pom_jax.errors import InputError
from pom_jax.nn.dense import Dense, xavier_uniform
from pom_jax.ops.attention import attention, draft_attention, frame_mask
from pom_jax.ops.frames import check_drafts, frame_lengths
from pom_jax.ops.rotary import Rotary
from pom_jax.ops.states import check_tokens, without_heads
from pom_jax.ops.windows import check_window, local_attention


class Cache(NamedTuple):
    """What attention carries from frame to frame: it grows with them, unlike the mixer's `State`.

    Attributes:
        keys, values: [B, S, H, d] of all S tokens so far.
        weights: [B, S] float32, how much each counts; 0 is room for tokens to come, made beforehand.
    """

    keys: jax.Array
    values: jax.Array
    weights: jax.Array


class MultiHeadAttention(nn.Module):
    """Softmax attention, self or cross, with biases everywhere (as timm's in the authors' DiT).

    timm's `qkv.weight` [3 D, D] is [query, key, value] on its first axis, heads slow: each third,
    `.T.reshape(D, H, d)`, is one of `query|key|value/kernel`; `proj.weight` is `out/kernel` =
    `.T.reshape(H, d, D)`. Each of the three projections starts with the fans of the fused matrix.

    Attributes:
        num_heads: number of heads; D must be divisible by it unless `head_width` is given.
        head_width: d, channels of a head; 0 for D / num_heads.
        rotary: rotary positions of queries and keys; where 2 * axes does not divide d, its last channels keep
            still.
        reads: with `frames`, ("all",) shows a token its own frame and those before, ("own",) its own alone.
        dtype: compute dtype of the products, None is float32; the softmax is float32.
        kernel_init: initialiser of the matrices.
    """

    num_heads: int
    head_width: int = 0
    rotary: Rotary | None = None
    reads: tuple[str, ...] = ("all",)
    dtype: DTypeLike | None = None
    kernel_init: Initializer = xavier_uniform

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        frames: int | Sequence[int] | None = None,
        context_frames: int | Sequence[int] | None = None,
        positions: jax.Array | None = None,
        state: Cache | None = None,
        drafts: int = 0,
    ) -> Any:
        """Mixes context tokens into query tokens; frames, positions, state, drafts as in `nn.PoM`'s call.

        Args:
            x: [B, M, D], the queries.
            context: [B, N, D]; None mixes x with itself.
            mask: None, [B, N] or [B, M, N] (B may be 1), or [B, 1, M, N] as in Flax; zero hides a token.
            frames: a token sees its own frame and those before: the length of all, or of each frame.
            context_frames: lengths of the context's frames; those of the queries if left out.
            positions: [M, axes] of x, for `rotary` where x mixes with itself.
            state: keys and values of earlier tokens (`init_state`), which all of x sees.
            drafts: where x mixes with itself, by frames, without mask and state.

        Returns:
            [B, M, D] in the compute dtype; the output bias for a query that sees nothing. With `state` also
            the one after these tokens.

        Raises:
            InputError: shapes, frames or mask do not fit, or D is not divisible by the heads.
        """
        itself = context is None
        source = x if context is None else context
        if (state is not None or self.rotary is not None) and not itself:
            raise InputError("attention carries a state and turns positions only where x mixes with itself")
        seen = weights = without_heads(mask)
        lengths = None if frames is None else frame_lengths(frames, x.shape[1])
        if drafts:
            check_drafts(drafts, None if lengths is None else len(lengths))
            if not itself or seen is not None or state is not None or self.reads != ("all",):
                raise InputError(
                    f"drafts = {drafts}: attention takes them where x mixes with itself, with reads=('all',) "
                    "and neither mask nor state"
                )
        elif frames is not None and lengths is not None:
            given = frames if itself or context_frames is None else context_frames
            seen = self._seen(lengths, given, source.shape[1], seen)
        after: list[Cache] = []

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
            if self.rotary is not None:
                q, k = (_rotate(self.rotary, each, positions) for each in (q, k))
            if lengths is not None and drafts:
                return draft_attention(q, k, v, lengths, drafts)
            if state is not None:
                counts = jnp.ones(()) if weights is None or weights.ndim == 3 else weights
                new = Cache(k, v, jnp.broadcast_to(counts.astype(jnp.float32), k.shape[:2]))
                after.append(Cache(*(jnp.concatenate(pair, 1) for pair in zip(state, new, strict=True))))
                k, v, all_weights = after[0]
                mask = all_weights if mask is None or mask.ndim == 2 else _with_past(state.weights, mask)
            return attention(q, k, v, mask)

        y = _attend(self, x, source, seen, attend)
        return y if state is None else (y, after[0])

    def _seen(
        self, lengths: tuple[int, ...], given: int | Sequence[int], tokens: int, mask: jax.Array | None
    ) -> jax.Array:
        """[B or 1, M, N] which tokens of the context each query sees."""
        if self.reads not in (("all",), ("own",)):
            raise InputError(f"reads = {self.reads} of attention must be ('all',) or ('own',)")
        others = frame_lengths(given, tokens, "context_frames")
        by_frames = frame_mask(lengths, others, own=self.reads == ("own",))[None]
        if mask is None:
            return by_frames
        return by_frames * (mask if mask.ndim == 3 else mask[:, None])

    def init_state(self, batch: int, width: int) -> Cache:
        """The cache before any token, of `batch` sequences of D = `width` channels."""
        nothing = jnp.zeros((batch, 0, self.num_heads, self.head_width or width // self.num_heads))
        nothing = nothing.astype(self.dtype or jnp.float32)
        return Cache(nothing, nothing, jnp.zeros((batch, 0)))


def _with_past(weights: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, M, S + M] of the weights [B, S] of the past and a mask [B or 1, M, M] of the new tokens."""
    batch, queries = len(weights), mask.shape[1]
    past = jnp.broadcast_to(weights[:, None], (batch, queries, weights.shape[1]))
    return jnp.concatenate([past, jnp.broadcast_to(mask, (batch, queries, queries))], -1)


def _rotate(rotary: Rotary, x: jax.Array, positions: jax.Array | None) -> jax.Array:
    """Turns heads [B, N, H, d] by their tokens' positions [N, axes], in float32."""
    wanted = (x.shape[1], rotary.axes)
    if positions is None or positions.shape != wanted:
        given = None if positions is None else tuple(positions.shape)
        raise InputError(f"attention with rotary positions needs positions= of shape {wanted}, got {given}")
    turned = x.shape[-1] // (2 * rotary.axes) * (2 * rotary.axes)
    rotary.check(turned, 1)
    tables = rotary.tables(positions[:, None], turned)
    y = rotary.rotate(x[..., :turned].astype(jnp.float32), tables).astype(x.dtype)
    return jnp.concatenate([y, x[..., turned:]], axis=-1)


class LocalAttention(nn.Module):
    """Attention in windows: tokens on a grid see those at most `radius` away along each axis, at linear cost.

    The parameters are those of `MultiHeadAttention`, by name and shape. Leading global tokens (registers,
    text) see everything and are seen by everything, as in the authors' SD3-PoM.

    By frames, a token sees its own frame alone: of a grid of frames, rows and columns with a radius such as
    (0, 4, 4) each place on the first axis is a frame. So nothing is carried from frame to frame, and the
    state is (): beside PoM, in a `Hybrid`, it is PoM's state alone that crosses frames.

    Attributes:
        num_heads: number of heads; D must be divisible by it unless `head_width` is given.
        grid: sizes of its one to three axes; tokens lie in row-major order.
        radius: of the window, one for all axes or one for each.
        global_tokens: tokens before the grid's.
        causal: windows look back only along the first axis, see `ops.local_attention`.
        head_width: d, channels of a head; 0 for D / num_heads.
        rotary: rotary positions of queries and keys, as in `MultiHeadAttention`.
        dtype: compute dtype of the products, None is float32; the softmax is float32.
        kernel_init: initialiser of the matrices.
    """

    num_heads: int
    grid: Sequence[int]
    radius: int | Sequence[int]
    global_tokens: int = 0
    causal: bool = False
    head_width: int = 0
    rotary: Rotary | None = None
    dtype: DTypeLike | None = None
    kernel_init: Initializer = xavier_uniform

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        frames: int | Sequence[int] | None = None,
        positions: jax.Array | None = None,
        state: tuple[()] | None = None,
        drafts: int = 0,
    ) -> Any:
        """Mixes each token's window into it; frames, positions, state, drafts as in `nn.PoM`'s call.

        Args:
            x: [B, N, D], the queries: global tokens, then the grid.
            context: [B, N, D] on the same grid; None mixes x with itself.
            mask: None or [B, N] (B may be 1); zero hides a context token.
            frames: lengths of the frames, which no window may leave; None: all tokens are one.
            positions: [N, axes], for `rotary`.
            state: () of `init_state`: earlier frames left nothing.
            drafts: like other frames, for a frame sees none but itself.

        Returns:
            [B, N, D] in the compute dtype; the output bias for a query that sees nothing. With `state` also
            the state, ().

        Raises:
            InputError: shapes, grid, frames or mask do not fit, or D is not divisible by the heads.
        """
        self._check_frames(x.shape[1], frames, state, drafts)

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
            if self.rotary is not None:
                q, k = (_rotate(self.rotary, each, positions) for each in (q, k))
            return local_attention(
                q,
                k,
                v,
                mask,
                grid=self.grid,
                radius=self.radius,
                global_tokens=self.global_tokens,
                causal=self.causal,
            )

        y = _attend(self, x, x if context is None else context, mask, attend)
        return y if state is None else (y, state)

    def init_state(self, batch: int, width: int) -> tuple[()]:
        """The state before any token and after any frame, of whatever batch and width: nothing."""
        del batch, width
        return ()

    def _check_frames(
        self, tokens: int, frames: int | Sequence[int] | None, state: tuple[()] | None, drafts: int
    ) -> None:
        """Raises an InputError where a window would leave its frame, or would reach behind a state."""
        lengths = None if frames is None else frame_lengths(frames, tokens)
        check_drafts(drafts, None if lengths is None else len(lengths))
        if state is not None and (state != () or self.causal):
            raise InputError(
                f"state: windows of causal={self.causal} take (), which init_state gives, with causal=False "
                "alone: they keep no tokens, and see none of an earlier call"
            )
        if lengths is None or len(lengths) == 1:
            return
        first = check_window(tokens, self.grid, self.radius, self.global_tokens)[0]
        if first or self.global_tokens or {*lengths} != {math.prod(self.grid[1:])}:
            raise InputError(
                f"frames of lengths {', '.join(map(str, sorted({*lengths})))}: windows of radius = "
                f"{self.radius} on grid = {tuple(self.grid)} with global_tokens = {self.global_tokens} would "
                "leave them. Let the first axis of the grid count the frames, with a radius of 0, as in "
                "grid=(frames, rows, columns), radius=(0, 4, 4), and without global tokens"
            )


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
