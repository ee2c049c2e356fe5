"""Attention in windows on a grid of tokens, in time and memory linear in their number."""

import functools
import math
from collections.abc import Sequence
from numbers import Integral
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from pom_jax.errors import InputError
from pom_jax.ops.attention import attention, softmax
from pom_jax.ops.states import check_mask

# Logits and floats of gathered keys and values that are computed at a time: 64 MB, a few times over.
MOST_FLOATS = 2**24
# Least side of a block on grids of one, two and three axes: at least 16 tokens, or products get too small.
_LEAST_SIDES = (16, 4, 3)


class _Axis(NamedTuple):
    """How one axis of the grid is cut: `count` blocks of `block` queries, each with a halo of keys.

    One block of the whole axis needs no halo; the last block may reach beyond the grid.
    """

    size: int
    block: int
    count: int
    before: int
    after: int

    @property
    def extent(self) -> int:
        """Keys of a block."""
        return self.before + self.block + self.after


def local_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    *,
    grid: Sequence[int],
    radius: int | Sequence[int],
    global_tokens: int = 0,
    causal: bool = False,
    most_floats: int = MOST_FLOATS,
) -> Array:
    """Attention of each token to the tokens at most `radius` away along every axis of a grid: exact windows.

    The grid is cut into blocks of side b, about 2 radius and at least 16 tokens; each attends to itself and
    its halo, K = (b + 2 radius)^axes keys, about four times the window's on two axes. A token thus costs
    H (K + global_tokens) logits and 2 H d K / b^axes floats of gathered keys and values, whatever the size of
    the grid. Where all tokens together would exceed `most_floats`, slabs of blocks take turns and the
    backward pass computes their logits again: what is then kept is about 5 H d floats a token (the queries,
    the keys and values with the slabs' halos, the output), and no logits. A grid that is hardly larger than
    the window is a single block.

    Args:
        q, k, v: [B, N, H, d]; first the global tokens, then the grid in row-major order.
        mask: None or [B, N] (B may be 1), booleans or weights of at least 0 by which keys count.
        grid: sizes of one to three axes: a sequence, rows and columns, or frames, rows and columns.
        radius: of the window, at least 0, for all axes or one for each: 2 radius + 1 tokens along an axis.
        global_tokens: leading tokens (registers, text) that see all tokens and are seen by all.
        causal: windows look back only along the first axis; the global tokens, which come before everything
            else, then see one another alone.
        most_floats: how many logits and floats of gathered keys and values are computed at a time; at least
            those of a row of blocks.

    Returns:
        [B, N, H, d] in the dtype of `v`; zeros for a token that sees nothing.

    Raises:
        InputError: shapes, grid, radius or mask do not fit each other.
    """
    if q.ndim != 4 or k.shape != q.shape or v.shape != q.shape:
        raise InputError(
            f"windows need as many keys as queries, [B, N, H, d]: q is {q.shape}, k {k.shape}, v {v.shape}"
        )
    batch, tokens, heads, width = q.shape
    radii = check_window(tokens, grid, radius, global_tokens)
    check_mask(mask, batch, tokens, tokens)
    if mask is not None and mask.ndim != 2:
        raise InputError(
            f"mask has shape {tuple(mask.shape)}; windows take one weight a key, [B, N] = {(batch, tokens)}"
        )
    times = jnp.ones((1, tokens), jnp.float32) if mask is None else mask.astype(jnp.float32)

    axes = _plan(grid, radii, causal)
    window = _window(axes, radii, causal)
    keys, queries = math.prod(axis.extent for axis in axes), math.prod(axis.block for axis in axes)
    floats = batch * heads * (keys + global_tokens + 2 * width * keys // queries)  # for a token
    seen_by_all = [x[:, :global_tokens] for x in (k, v, times)]
    on_grid = [x[:, global_tokens:].reshape(x.shape[0], *grid, *x.shape[2:]) for x in (q, k, v, times)]
    local = _by_slabs(on_grid, seen_by_all, axes, window, most_floats // max(floats, 1))
    local = local[(slice(None), *map(slice, grid))].reshape(batch, math.prod(grid), heads, width)
    if not global_tokens:
        return local
    k, v, times = seen_by_all if causal else (k, v, times)
    return jnp.concatenate([attention(q[:, :global_tokens], k, v, times), local], axis=1)


def check_window(
    tokens: int, grid: Sequence[int], radius: int | Sequence[int], global_tokens: int
) -> tuple[int, ...]:
    """The radius along each axis, after checking that a window can be and the grid holds the tokens.

    Raises:
        InputError: it cannot.
    """
    sizes = grid if isinstance(grid, Sequence) else ()
    if not 1 <= len(sizes) <= 3 or not all(isinstance(size, Integral) and size >= 1 for size in sizes):
        raise InputError(f"grid = {grid!r} must be the sizes of one to three axes, of at least one token")
    radii = tuple(radius) if isinstance(radius, Sequence) else (radius,) * len(grid)
    if len(radii) != len(grid) or not all(isinstance(r, Integral) and r >= 0 for r in radii):
        raise InputError(
            f"radius = {radius} must be whole and at least 0, for each of the {len(grid)} axes of the grid"
        )
    if (
        not isinstance(global_tokens, Integral)
        or global_tokens < 0
        or global_tokens + math.prod(grid) != tokens
    ):
        raise InputError(
            f"{tokens} tokens are not global_tokens = {global_tokens} and a grid of "
            f"{' x '.join(map(str, grid))} = {math.prod(grid)}; they must add up"
        )
    return radii


def window_pairs(grid: Sequence[int], radius: int, global_tokens: int = 0) -> int:
    """How many pairs of a query and a key attention in windows has, those with global tokens included."""
    pairs = math.prod(sum(min(i + radius, n - 1) - max(i - radius, 0) + 1 for i in range(n)) for n in grid)
    return pairs + 2 * global_tokens * math.prod(grid) + global_tokens**2


def _plan(grid: Sequence[int], radii: Sequence[int], causal: bool) -> list[_Axis]:
    cut = [r > 0 and n > 1 for n, r in zip(grid, radii, strict=True)]
    axes = []
    for index, (size, radius) in enumerate(zip(grid, radii, strict=True)):
        after = 0 if causal and index == 0 else radius
        block = max(radius + after, _LEAST_SIDES[sum(cut) - 1]) if cut[index] else 1
        if size <= block + radius + after:
            axes.append(_Axis(size, size, 1, 0, 0))
        else:
            count = math.ceil(size / block)
            axes.append(_Axis(size, math.ceil(size / count), count, radius, after))
    return axes


def _window(axes: Sequence[_Axis], radii: Sequence[int], causal: bool) -> np.ndarray:
    """Which keys of a block and its halo each query of the block sees: [Q, K] bool."""
    window = np.ones((1, 1), bool)
    for index, (axis, radius) in enumerate(zip(axes, radii, strict=True)):
        ahead = np.arange(axis.extent) - axis.before - np.arange(axis.block)[:, None]
        furthest = 0 if causal and index == 0 else radius
        window = np.kron(window, (-radius <= ahead) & (ahead <= furthest))
    return window


def _by_slabs(
    on_grid: Sequence[Array],
    seen_by_all: Sequence[Array],
    axes: Sequence[_Axis],
    window: np.ndarray,
    most_tokens: int,
) -> Array:
    """Attention of all blocks: rows of blocks along the longest axis, as many at a time as the memory allows.

    Args:
        on_grid: queries, keys and values [B, *grid, H, d] and times [B, *grid].
        seen_by_all: keys and values [B, G, H, d] and times [B, G] of the global tokens.
        axes: of the grid.
        window: [Q, K] bool.
        most_tokens: tokens at a time.

    Returns:
        [B, *grid, H, d] with every axis rounded up to whole blocks.
    """
    long = max(range(len(axes)), key=lambda index: axes[index].count)
    row = math.prod(axis.block * (1 if index == long else axis.count) for index, axis in enumerate(axes))
    slabs = math.ceil(axes[long].count / max(1, most_tokens // row))
    rows = math.ceil(axes[long].count / slabs)
    axes = [axis._replace(count=slabs * rows) if i == long else axis for i, axis in enumerate(axes)]
    q, k, v, times = (_pad(x, axes, halo=index > 0) for index, x in enumerate(on_grid))
    if slabs == 1:
        return _blocks(q, k, v, times, seen_by_all, axes, window)
    slab = axes[long]._replace(count=rows)
    side, halo = rows * slab.block, slab.before + slab.after
    cut = [_cut(q, 1 + long, side, slabs, side)]
    cut += [_cut(x, 1 + long, side, slabs, side + halo) for x in (k, v, times)]
    axes = [slab if i == long else axis for i, axis in enumerate(axes)]

    # Inside a loop the compiler cannot merge the recomputation with the forward pass.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(slab: Sequence[Array]) -> Array:
        q, k, v, times = slab
        return _blocks(q, k, v, times, seen_by_all, axes, window)

    out = lax.map(one, [jnp.moveaxis(x, 1 + long, 0) for x in cut])
    out = jnp.moveaxis(out, 0, 1 + long)
    return out.reshape(*out.shape[: 1 + long], slabs * side, *out.shape[3 + long :])


def _blocks(
    q: Array,
    k: Array,
    v: Array,
    times: Array,
    seen_by_all: Sequence[Array],
    axes: Sequence[_Axis],
    window: np.ndarray,
) -> Array:
    """Attention of each block of queries to its keys and to the global tokens.

    Args:
        q: [B, *grid, H, d], whole blocks.
        k, v: [B, *grid with halos, H, d].
        times: [B, *grid with halos] float32.
        seen_by_all: of the global tokens, see `_by_slabs`.
        axes: of the grid.
        window: [Q, K] bool.

    Returns:
        [B, *grid, H, d] in the dtype of v.
    """
    queries = _to_blocks(q, [axis.block for axis in axes], axes)
    extents = [axis.extent for axis in axes]
    keys, values, times = (_to_blocks(x, extents, axes) for x in (k, v, times))
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    logits = product("bgqhd,bgkhd->bghqk", queries, keys)
    times = times[:, :, None, None] * window.astype(np.float32)  # [B, blocks, 1, Q, K]
    global_keys, global_values, global_times = seen_by_all
    count = global_keys.shape[1]
    if count:
        logits = jnp.concatenate([logits, product("bgqhd,bnhd->bghqn", queries, global_keys)], -1)
        to_all = jnp.broadcast_to(global_times[:, None, None, None], (*times.shape[:-1], count))
        times = jnp.concatenate([times, to_all], -1)
    probabilities = softmax(logits / math.sqrt(q.shape[-1]), times).astype(v.dtype)
    here = window.shape[1]
    out = jnp.einsum("bghqk,bgkhd->bgqhd", probabilities[..., :here], values)
    if count:
        out += jnp.einsum("bghqn,bnhd->bgqhd", probabilities[..., here:], global_values)
    return _from_blocks(out, axes)


def _pad(x: Array, axes: Sequence[_Axis], halo: bool) -> Array:
    """Zeros around x [B, *grid, ...] up to whole blocks and, for keys, their halos."""
    widths = [(0, 0)] * x.ndim
    for index, axis in enumerate(axes, 1):
        rest = axis.count * axis.block - axis.size
        widths[index] = (axis.before, rest + axis.after) if halo else (0, rest)
    return jnp.pad(x, widths)


def _cut(x: Array, position: int, step: int, count: int, extent: int) -> Array:
    """Pieces of `extent` tokens, one every `step`, of an axis: [..., n, ...] -> [..., count, extent, ...].

    Of slices at fixed places, whose transposes are padded sums: a gather's would be a scatter, slow on CPU.
    """
    pieces = math.ceil(extent / step)
    missing = (count + pieces - 1) * step - x.shape[position]
    if missing > 0:
        x = jnp.pad(x, [(0, missing if i == position else 0) for i in range(x.ndim)])
    parts = []
    for piece in range(pieces):
        start = piece * step
        part = lax.slice_in_dim(x, start, start + count * step, axis=position)
        part = part.reshape(*x.shape[:position], count, step, *x.shape[position + 1 :])
        parts.append(lax.slice_in_dim(part, 0, min(step, extent - start), axis=position + 1))
    return parts[0] if pieces == 1 else jnp.concatenate(parts, axis=position + 1)


def _to_blocks(x: Array, extents: Sequence[int], axes: Sequence[_Axis]) -> Array:
    """[B, *grid, ...] -> [B, blocks, tokens of a block, ...]."""
    for index in reversed(range(len(axes))):
        x = _cut(x, 1 + index, axes[index].block, axes[index].count, extents[index])
    across = range(1, 1 + 2 * len(axes), 2)
    within = range(2, 2 + 2 * len(axes), 2)
    x = x.transpose(0, *across, *within, *range(1 + 2 * len(axes), x.ndim))
    blocks = math.prod(axis.count for axis in axes)
    return x.reshape(x.shape[0], blocks, math.prod(extents), *x.shape[1 + 2 * len(axes) :])


def _from_blocks(x: Array, axes: Sequence[_Axis]) -> Array:
    """[B, blocks, Q, H, d] -> [B, *grid, H, d]."""
    counts, blocks = [axis.count for axis in axes], [axis.block for axis in axes]
    tail = x.shape[3:]
    x = x.reshape(x.shape[0], *counts, *blocks, *tail)
    order = [1 + index + place for index in range(len(axes)) for place in (0, len(axes))]
    x = x.transpose(0, *order, x.ndim - 2, x.ndim - 1)
    return x.reshape(x.shape[0], *(c * b for c, b in zip(counts, blocks, strict=True)), *tail)
