"""The state of the mixer: how much was seen, and its sum. It adds, and never grows with the tokens."""

from typing import Any, NamedTuple, overload

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from pom_jax.errors import InputError

STATE = "mixer_state"  # what policies of rematerialisation call it


class State(NamedTuple):
    """What the context tokens leave behind; M is 1 unless every query has a mask of its own.

    Attributes:
        sum: [B, M, ...F] float32, features summed over tokens, weighted by the mask.
        count: [B, M] float32, number of tokens, or sum of mask weights.
    """

    sum: Array
    count: Array

    def __add__(self, other: object) -> "State":  # a tuple's would join the fields
        return _sum(self, other)

    def __radd__(self, other: object) -> "State":  # for sum(states), which starts at 0
        return self if isinstance(other, int) and other == 0 else NotImplemented


class FrameStates(NamedTuple):
    """What a mixer carries from frame to frame if it also reads the last frame apart.

    Attributes:
        total: of all frames so far.
        last: of the newest one.
    """

    total: State
    last: State

    def __add__(self, other: object) -> "FrameStates":  # a tuple's would join the fields
        return _sum(self, other)

    def __radd__(self, other: object) -> "FrameStates":  # for sum(states), which starts at 0
        return self if isinstance(other, int) and other == 0 else NotImplemented


def _sum(first: Any, second: object) -> Any:
    return merge_states(first, second) if isinstance(second, State | FrameStates) else NotImplemented


def check_mask(mask: Array | None, batch: int, queries: int, tokens: int) -> None:
    """Checks that a mask is None, [B, N] or [B, M, N] (B may be 1), and its weights where they are known.

    Raises:
        InputError: any other shape, or no array of numbers.
    """
    if mask is None:
        return
    check_numbers("mask", mask)
    allowed = {2: (batch, tokens), 3: (batch, queries, tokens)}.get(mask.ndim)
    if allowed is None or mask.shape[1:] != allowed[1:] or mask.shape[0] not in (1, batch):
        raise InputError(
            f"mask has shape {tuple(mask.shape)}; give [B, N] = {(batch, tokens)} to weigh tokens, or "
            f"[B, M, N] = {(batch, queries, tokens)} to weigh them for each query (B may be 1)"
        )
    if mask.dtype != jnp.bool_ and not isinstance(mask, Tracer):
        weights = np.asarray(mask, np.float32)
        worst = next(
            (w for w in (weights.min(initial=0.0), weights.max(initial=0.0)) if not 0 <= w < np.inf), None
        )
        if worst is not None:
            raise InputError(
                f"mask has the weight {worst}: a mask multiplies, with 0 for tokens left out and 1 for the "
                "others; it is not a bias that is added"
            )


def without_heads(mask: Array | None) -> Array | None:
    """A mask of attention in other libraries, [B, 1, M, N] or [B, 1, 1, N], without its axis of heads."""
    if mask is None:
        return None
    check_numbers("mask", mask)
    if mask.ndim != 4:
        return mask
    if mask.shape[1] != 1:
        raise InputError(
            f"mask has shape {tuple(mask.shape)} with {mask.shape[1]} heads; all channels "
            "see the same tokens here: give a mask with a head axis of 1"
        )
    return mask[:, 0, 0] if mask.shape[2] == 1 else mask[:, 0]


def check_numbers(name: str, array: object) -> None:
    """Raises an InputError unless `array` is a JAX or NumPy array of real numbers or booleans."""
    if not isinstance(array, Array | np.ndarray):
        raise InputError(f"{name} is a {type(array).__name__}; give an array of numbers")
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise InputError(f"{name} has dtype {array.dtype}; give real numbers or booleans")


def check_tokens(x: Array, context: Array, mask: Array | None) -> None:
    """Checks queries [B, M, D] against context [B, N, D] and the mask.

    Raises:
        InputError: ranks, batch sizes or widths differ, or the mask fits neither form.
    """
    for name, tokens in (("x", x), ("context", context)):
        check_numbers(name, tokens)
        if tokens.ndim != 3:
            raise InputError(f"{name} has shape {tuple(tokens.shape)}; tokens are [batch, tokens, width]")
    if x.shape[0] != context.shape[0] or x.shape[2] != context.shape[2]:
        raise InputError(
            f"x has shape {tuple(x.shape)} and context {tuple(context.shape)}: batch and width must be equal"
        )
    check_mask(mask, x.shape[0], x.shape[1], context.shape[1])


def token_state(features: Array, mask: Array | None = None) -> State:
    """Sums features over tokens in float32.

    Args:
        features: [B, N, ...F].
        mask: None, [B, N] or [B, M, N] (B may be 1); booleans or any weights. Zero leaves a token out.

    Returns:
        State with sum [B, M, ...F] and count [B, M]; M = 1 without a mask for each query.

    Raises:
        InputError: the features are no such array, or the mask fits neither form.
    """
    check_numbers("features", features)
    if features.ndim < 2:
        raise InputError(f"features have shape {tuple(features.shape)}; give [batch, tokens, ...]")
    batch, tokens = features.shape[:2]
    if mask is not None:
        check_numbers("mask", mask)
    check_mask(mask, batch, mask.shape[1] if mask is not None and mask.ndim == 3 else 1, tokens)
    features = jnp.asarray(features, jnp.float32)
    if mask is None:
        return State(features.sum(1, keepdims=True), jnp.full((batch, 1), tokens, jnp.float32))
    weights = jnp.broadcast_to(jnp.asarray(mask, jnp.float32), (batch, *mask.shape[1:]))
    count = weights.sum(-1)
    if mask.ndim == 2:
        weighted = features * weights.reshape(batch, tokens, *(1,) * (features.ndim - 2))
        return State(weighted.sum(1, keepdims=True), count[:, None])
    # The default precision of an accelerator's product would round the features to bfloat16.
    return State(jnp.einsum("bmn,bn...->bm...", weights, features, precision=lax.Precision.HIGHEST), count)


def empty_state(batch: int, features: tuple[int, ...]) -> State:
    """The state of no tokens: sum [B, 1, *F] and count [B, 1] of zeros."""
    return State(jnp.zeros((batch, 1, *features), jnp.float32), jnp.zeros((batch, 1), jnp.float32))


@overload
def merge_states(first: State, second: State) -> State: ...
@overload
def merge_states(first: FrameStates, second: FrameStates) -> FrameStates: ...
def merge_states(first: State | FrameStates, second: State | FrameStates) -> State | FrameStates:
    """The state of two disjoint sets of tokens together: states add; the last frame is the second's.

    Where the second's total counts nothing, as that of `init_state`, the last frame stays the first's: a part
    of which a mask hides all tokens is no frame here, while in a stream it is one, which has nothing to read.

    Sums and counts come out in float32 in whatever dtype they were kept; a count is exact to 2^24 tokens.

    Raises:
        InputError: a State and a FrameStates, or parts of other shapes.
    """
    if isinstance(first, FrameStates) and isinstance(second, FrameStates):
        for part in (first.last, second.total, second.last):
            _check_alike(first.total, part)
        nothing, pairs = second.total.count == 0, zip(first.last, second.last, strict=True)
        last = State(*(_where(nothing, *pair) for pair in pairs))
        return FrameStates(merge_states(first.total, second.total), last)
    if isinstance(first, State) and isinstance(second, State):
        _check_alike(first, second)
        pairs = zip(first, second, strict=True)
        return State(*(jnp.asarray(a, jnp.float32) + jnp.asarray(b, jnp.float32) for a, b in pairs))
    raise InputError(
        f"merge_states: a {type(first).__name__} and a {type(second).__name__} are of mixers with other reads"
    )


def _check_alike(first: State, second: State) -> None:
    """Raises an InputError unless both are of numbers, in arrays of the same shapes."""
    for state in (first, second):
        if not isinstance(state, State):
            raise InputError(f"state holds a {type(state).__name__} for a State: start from init_state")
    for part in (*first, *second):
        check_numbers("a part of a state", part)
    if first.sum.shape != second.sum.shape or first.count.shape != second.count.shape:
        raise InputError(
            f"states with sums of shapes {tuple(first.sum.shape)} and {tuple(second.sum.shape)} do not "
            "add: they are of other batches or mixers"
        )


def _where(these: Array, first: Array, second: Array) -> Array:
    """[B, M, ...] float32, of the first array where [B, M] says so, of the second elsewhere."""
    chosen = these.reshape(*these.shape, *(1,) * (first.ndim - these.ndim))
    return jnp.where(chosen, jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32))


def state_mean(state: State) -> Array:
    """The mean feature of the tokens seen: [B, M, ...F] float32; zero, never NaN, where nothing was seen.

    Raises:
        InputError: no State, or a sum and a count that do not fit each other.
    """
    if not isinstance(state, State):
        raise InputError(
            f"state is a {type(state).__name__}; give a State, such as total or last of FrameStates"
        )
    check_numbers("the sum of the state", state.sum)
    check_numbers("the count of the state", state.count)
    if state.count.ndim != 2 or state.sum.shape[:2] != state.count.shape:
        raise InputError(
            f"state has sum {tuple(state.sum.shape)} and count {tuple(state.count.shape)}; they must be "
            "[B, M, ...] and [B, M]"
        )
    empty = state.count == 0
    scale = jnp.where(empty, 0.0, 1.0 / jnp.where(empty, 1.0, state.count))
    return state.sum * scale.reshape(*state.count.shape, *(1,) * (state.sum.ndim - 2))
