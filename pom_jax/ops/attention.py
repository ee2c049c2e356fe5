"""Softmax attention, the twin that the mixer is compared with."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from pom_jax.errors import InputError
from pom_jax.ops.mesh import lay
from pom_jax.ops.states import check_mask, check_numbers


def attention(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Attention with softmax in float32.

    A mask weighs tokens as in the mixer: weight w counts a token w times, zero leaves it out, and a query
    that sees nothing gets zeros.

    Args:
        q: [B, M, H, d].
        k: [B, N, H, d].
        v: [B, N, H, d].
        mask: None, [B, N] or [B, M, N] (B may be 1), booleans or weights of at least 0.

    Returns:
        [B, M, H, d] in the dtype of `v`.

    Raises:
        InputError: queries, keys and values do not fit each other, or the mask fits neither form.
    """
    for name, array in (("q", q), ("k", k), ("v", v)):
        check_numbers(name, array)
    ranks = q.ndim == k.ndim == 4 and v.shape == k.shape
    if not ranks or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
        raise InputError(
            f"attention takes q [B, M, H, d], k and v [B, N, H, d]: q is {q.shape}, k {k.shape}, v {v.shape}"
        )
    batch, queries = q.shape[:2]
    check_mask(mask, batch, queries, k.shape[1])
    if queries >= k.shape[1]:
        # Where tokens are cut over devices, each gathers all keys and values for its own queries.
        k, v = (lay(tokens, "batch", None, "heads", None) for tokens in (k, v))
    logits = jnp.einsum("bmhd,bnhd->bhmn", q, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    times = None if mask is None else jnp.expand_dims(mask, tuple(range(1, 5 - mask.ndim)))
    return jnp.einsum("bhmn,bnhd->bmhd", softmax(logits, times).astype(v.dtype), v)


def softmax(logits: Array, times: Array | None = None) -> Array:
    """Softmax over the last axis, in which each key counts as often as `times` says.

    Args:
        logits: [..., N] float32.
        times: [..., N], broadcast against `logits`; None or weights of at least 0.

    Returns:
        [..., N] float32; zeros, never NaN, where no key counts.
    """
    lowest = jnp.finfo(jnp.float32).min  # where there is no token at all
    if times is None:
        weights = jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True, initial=lowest)))
        return weights / weights.sum(-1, keepdims=True)
    times = times.astype(jnp.float32)
    seen = jnp.where(times > 0, logits, -jnp.inf)
    top = lax.stop_gradient(seen.max(-1, keepdims=True, initial=lowest))
    # Hidden logits are replaced before the exponential: a gradient through an overflow would be NaN.
    weights = times * jnp.exp(jnp.where(times > 0, logits - top, 0.0))
    total = weights.sum(-1, keepdims=True)
    return weights / jnp.where(total == 0, 1.0, total)


def frame_mask(frames: Sequence[int], context_frames: Sequence[int], own: bool = False) -> Array:
    """Which context tokens each query sees: those of its frame and of those before, or of its own alone.

    Args:
        frames, context_frames: T lengths each, that add up to M and N.
        own: a query sees its own frame alone.

    Returns:
        [M, N] bool.

    Raises:
        InputError: other numbers of frames.
    """
    if len(frames) != len(context_frames):
        raise InputError(
            f"frames are {len(frames)} and context_frames {len(context_frames)}: they must be as many"
        )
    of_query, of_key = (np.repeat(np.arange(len(each)), each) for each in (frames, context_frames))
    # Behind the barrier, for the compiler would else make the whole mask itself and keep it as a constant.
    of_query, of_key = lax.optimization_barrier((jnp.asarray(of_query), jnp.asarray(of_key)))
    compare = jnp.equal if own else jnp.greater_equal
    return compare(of_query[:, None], of_key[None])


def draft_attention(q: Array, k: Array, v: Array, frames: Sequence[int], drafts: int) -> Array:
    """A take and drafts of it: a query sees its own frame, and those before it in the take (see `nn.PoM`).

    Args:
        q, k, v: [B, M, H, d], the tokens of the take, then those of each draft.
        frames: lengths of the frames of all of them; those of each draft are those of the take.
        drafts: how many.

    Returns:
        [B, M, H, d] in the dtype of `v`.

    Raises:
        InputError: frames of the drafts are not those of the take.
    """
    takes = 1 + drafts
    lengths = tuple(frames[: len(frames) // takes])
    if tuple(frames) != lengths * takes:
        raise InputError(f"frames {tuple(frames)} must be {takes} times the same, a take and {drafts} drafts")
    batch, tokens = q.shape[0], sum(lengths)

    def by_take(a: Array) -> Array:
        return a.reshape(batch * takes, tokens, *a.shape[2:])

    def past_and_own(a: Array) -> Array:
        return jnp.concatenate([jnp.repeat(a[:, :tokens], takes, axis=0), by_take(a)], axis=1)

    own = frame_mask(lengths, lengths, own=True)
    past = frame_mask(lengths, lengths) & ~own
    seen = jnp.concatenate([past, own], axis=1)[None]
    return attention(by_take(q), past_and_own(k), past_and_own(v), seen).reshape(q.shape)
