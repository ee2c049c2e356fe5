"""Multi-head attention with the mixer's call, to all tokens or in windows: a comparison changes one word."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Initializer
from jax.typing import DTypeLike

from pom_jax.errors import InputError
from pom_jax.nn.dense import Dense, xavier_uniform
from pom_jax.nn.pom_fields import check_batch, check_option, check_whole, compute_dtype
from pom_jax.ops.attention import attention, draft_attention, frame_mask
from pom_jax.ops.frames import check_drafts, frame_lengths
from pom_jax.ops.rotary import Rotary, check_positions
from pom_jax.ops.states import check_numbers, check_tokens, without_heads
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
        rotary: rotary positions of queries and keys, which need d of at least 2 * axes; where that does not
            divide d, its last channels keep still.
        reads: ("all",) shows a token its own frame, which without `frames` is its whole call, and those
            before; ("own",) its own alone, so that a stream carries nothing.
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
            mask: None, [B, N] or [B, M, N] (B may be 1), or [B, 1, M, N] as in Flax; zero hides a token. What
                [B, N] hides may hold anything, as in `nn.PoM`'s call.
            frames: a token sees its own frame and those before: the length of all, or of each frame.
            context_frames: lengths of the context's frames; those of the queries if left out.
            positions: of x, [M, axes] or [B, M, axes], on one axis also [M] or [B, M], for `rotary` where x
                mixes with itself.
            state: keys and values of earlier tokens (`init_state`), which all of x sees; with
                reads=("own",) none does, and it stays as it is.
            drafts: where x mixes with itself, by frames, without context_frames, mask and state.

        Returns:
            [B, M, D] in the compute dtype; the output bias for a query that sees nothing. With `state` also
            the one after these tokens.

        Raises:
            InputError: shapes, frames, positions, mask or state do not fit, or a field cannot be, such as
                heads that do not divide D.
        """
        itself = context is None
        source, mask, heads = _checked(self, x, context, mask)
        if (state is not None or self.rotary is not None) and not itself:
            raise InputError("attention carries a state and turns positions only where x mixes with itself")
        if state is not None:
            check_cache(state, x.shape[0], heads)
        places = _places(self.rotary, x, positions)
        lengths = self._lengths(x.shape[1], frames, context_frames, drafts)
        seen = mask
        if drafts:
            plain = mask is None and state is None and context_frames is None
            if not itself or not plain or self.reads != ("all",):
                raise InputError(
                    f"drafts = {drafts}: attention takes them where x mixes with itself, with reads=('all',) "
                    "and without context_frames, mask and state"
                )
        elif frames is not None and lengths is not None:
            given = frames if context_frames is None else context_frames
            seen = self._seen(lengths, given, source.shape[1], mask)
        past = None if self.reads == ("own",) else state
        after = state

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array | None) -> jax.Array:
            nonlocal after
            q, k = (_rotate(self.rotary, each, places) for each in (q, k))
            if lengths is not None and drafts:
                return draft_attention(q, k, v, lengths, drafts)
            if past is not None:
                counts = jnp.ones(()) if mask is None or mask.ndim == 3 else mask
                new = Cache(k, v, jnp.broadcast_to(counts.astype(jnp.float32), k.shape[:2]))
                after = Cache(*(jnp.concatenate(pair, 1) for pair in zip(past, new, strict=True)))
                k, v, all_weights = after
                seen = all_weights if seen is None or seen.ndim == 2 else _with_past(past.weights, seen)
            return attention(q, k, v, seen)

        y = _attend(self, x, source, seen, heads, attend)
        return y if state is None else (y, after)

    def _lengths(
        self,
        tokens: int,
        frames: int | Sequence[int] | None,
        context_frames: int | Sequence[int] | None,
        drafts: int,
    ) -> tuple[int, ...] | None:
        """The length of each frame of the queries, None without frames, once `reads` and drafts fit them."""
        if not isinstance(self.reads, tuple) or [*map(str, self.reads)] not in (["all"], ["own"]):
            raise InputError(f"reads = {self.reads!r} of attention must be ('all',) or ('own',)")
        if frames is None and context_frames is not None:
            raise InputError(
                f"context_frames = {context_frames} needs frames, the lengths of the queries' frames"
            )
        lengths = None if frames is None else frame_lengths(frames, tokens)
        check_drafts(drafts, None if lengths is None else len(lengths))
        return lengths

    def _seen(
        self, lengths: tuple[int, ...], given: int | Sequence[int], tokens: int, mask: jax.Array | None
    ) -> jax.Array:
        """[B or 1, M, N] which tokens of the context each query sees."""
        others = frame_lengths(given, tokens, "context_frames")
        by_frames = frame_mask(lengths, others, own=self.reads == ("own",))[None]
        if mask is None:
            return by_frames
        return by_frames * (mask if mask.ndim == 3 else mask[:, None])

    def init_state(self, batch: int, width: int) -> Cache:
        """The cache before any token, of `batch` sequences of D = `width` channels.

        Raises:
            InputError: a batch or a field that cannot be, such as heads that do not divide D.
        """
        heads = _heads(self, width)
        check_batch(batch, *heads)
        try:
            nothing = jnp.zeros((batch, 0, *heads), compute_dtype(self))
        except TypeError as error:
            raise InputError(f"batch = {batch!r} must be a whole number of at least 0") from error
        return Cache(nothing, nothing, jnp.zeros((batch, 0)))


def check_cache(state: Cache, batch: int, heads: tuple[int, int]) -> None:
    """Raises an InputError unless a state is a `Cache` of as many sequences, of the same heads (H, d)."""
    if not isinstance(state, Cache):
        raise InputError(
            f"state is a {type(state).__name__}, but attention carries a Cache: start from init_state"
        )
    for name, array in state._asdict().items():
        check_numbers(f"{name} of the state", array)
    found = [tuple(array.shape) for array in state]
    keys = (batch, *found[0][1:2], *heads)
    if found != [keys, keys, keys[:2]]:
        raise InputError(
            f"state has keys {found[0]}, values {found[1]} and weights {found[2]}; of S tokens, this "
            f"attention and batch need [B, S, H, d] = ({batch}, S, {heads[0]}, {heads[1]}) twice and "
            f"[B, S] = ({batch}, S)"
        )


def _with_past(weights: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, M, S + M] of the weights [B, S] of the past and a mask [B or 1, M, M] of the new tokens."""
    batch, queries = weights.shape[0], mask.shape[1]
    past = jnp.broadcast_to(weights[:, None], (batch, queries, weights.shape[1]))
    return jnp.concatenate([past, jnp.broadcast_to(mask, (batch, queries, queries))], -1)


def _places(rotary: Rotary | None, x: jax.Array, positions: jax.Array | None) -> jax.Array | None:
    """The positions of x, [B or 1, N, axes], None without `rotary`."""
    if rotary is None:
        return None
    if positions is None:
        wanted = (x.shape[1], rotary.axes)
        raise InputError(f"attention with rotary positions needs positions= of shape {wanted}, got None")
    return check_positions("positions", positions, x.shape[0], x.shape[1], rotary.axes)


def _rotate(rotary: Rotary | None, x: jax.Array, places: jax.Array | None) -> jax.Array:
    """Turns heads [B, N, H, d] by their tokens' positions [B or 1, N, axes], in float32."""
    if rotary is None or places is None:
        return x
    turned = x.shape[-1] // (2 * rotary.axes) * (2 * rotary.axes)
    tables = rotary.tables(places[:, :, None], turned)
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
            mask: None or [B, N] (B may be 1); zero hides a context token, which may hold anything, as in
                `nn.PoM`'s call.
            frames: lengths of the frames, which no window may leave; None: all tokens are one.
            positions: [N, axes] or [B, N, axes], on one axis also [N] or [B, N], for `rotary`.
            state: () of `init_state`: earlier frames left nothing.
            drafts: like other frames, for a frame sees none but itself.

        Returns:
            [B, N, D] in the compute dtype; the output bias for a query that sees nothing. With `state` also
            the state, ().

        Raises:
            InputError: shapes, grid, frames, positions, mask or state do not fit, or a field cannot be, such
                as heads that do not divide D.
        """
        source, mask, heads = _checked(self, x, context, mask)
        places = _places(self.rotary, x, positions)
        self._check_frames(x.shape[1], frames, state, drafts)

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
            q, k = (_rotate(self.rotary, each, places) for each in (q, k))
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

        y = _attend(self, x, source, mask, heads, attend)
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
        if not isinstance(self.causal, bool | np.bool_):
            raise InputError(f"causal = {self.causal!r} must be True or False")
        nothing = state is None or (isinstance(state, tuple) and not len(state))
        if not nothing or (state is not None and self.causal):
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


def _checked(
    layer: MultiHeadAttention | LocalAttention,
    x: jax.Array,
    context: jax.Array | None,
    mask: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None, tuple[int, int]]:
    """The context, the mask without an axis of heads, and the layer's heads, once they fit each other.

    What a mask [B, N] hides of the context is zero, for zero times NaN is no number.
    """
    source = x if context is None else context
    mask = without_heads(mask)
    check_tokens(x, source, mask)
    if mask is not None and mask.ndim == 2:
        source = jnp.where(mask[..., None] == 0, 0, source)
    return source, mask, _heads(layer, x.shape[-1])


def _heads(layer: MultiHeadAttention | LocalAttention, width: int) -> tuple[int, int]:
    """Number and width of the heads, after a check of the fields that both layers have."""
    for name, value, least in (
        ("width", width, 1),
        ("num_heads", layer.num_heads, 1),
        ("head_width", layer.head_width, 0),
    ):
        check_whole(name, value, least)
    compute_dtype(layer)
    check_option("rotary", layer.rotary, Rotary)
    if not layer.head_width and width % layer.num_heads:
        raise InputError(
            f"num_heads = {layer.num_heads} does not divide the width {width}; choose a divisor of {width}, "
            "or a head_width"
        )
    head_width = layer.head_width or width // layer.num_heads
    check_whole("num_heads * head_width", layer.num_heads * head_width, 1)
    if layer.rotary is not None:
        layer.rotary.check(0, 1)  # of any width, since channels that do not divide keep still
        if head_width < 2 * layer.rotary.axes:
            raise InputError(
                f"rotary positions on {layer.rotary.axes} axes turn pairs of channels, and heads of "
                f"{head_width} are too narrow: give at least {2 * layer.rotary.axes}, by num_heads or "
                "head_width"
            )
    return layer.num_heads, head_width


def _attend(
    layer: MultiHeadAttention | LocalAttention,
    x: jax.Array,
    source: jax.Array,
    mask: jax.Array | None,
    heads: tuple[int, int],
    attend: Callable[..., jax.Array],
) -> jax.Array:
    """Projects to heads, attends, projects back; for the compact methods above."""
    plain = functools.partial(Dense, dtype=layer.dtype, kernel_init=layer.kernel_init)
    project = functools.partial(plain, heads, fused_features=2 * heads[0] * heads[1])
    query = project(name="query")(x)
    key, value = project(name="key")(source), project(name="value")(source)
    return plain(x.shape[-1], axes=2, name="out")(attend(query, key, value, mask))
