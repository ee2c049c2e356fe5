"""Streams: frame by frame with a state that never grows, the same outputs and gradients as all at once."""

import io
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import Array, lax

from pom_jax.nn import FrameStates, Hybrid, LocalAttention, MultiHeadAttention, Phase, PoM, Rotary, State
from pom_jax.ops import merge_states
from tests.layers import WIDTH, assert_close, few, gap, normal, parameters, position_axes, quick_jit, uniform

PHASE = Phase(((np.inf, 5.0, -3.0),))
LAYERS: dict[str, Any] = {
    "product": PoM(degree=3),
    "power": PoM(form="power", gate_heads=4, count="frames"),
    "rotary": PoM(rotary=Rotary(2), implementation="lean"),
    "phase": PoM(form="power", phase=PHASE),
    "reads": PoM(reads=("own", "last", "past")),
    "all_of_it": PoM(form="power", reads=("last", "all"), rotary=Rotary(), phase=PHASE, count="frames"),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
ATTENTION: dict[str, Any] = {
    "attention": MultiHeadAttention(2, rotary=Rotary()),
    "attention_own": MultiHeadAttention(2, rotary=Rotary(), reads=("own",)),
}
FRAMES = (3, 1, 4, 2)
TOKENS = sum(FRAMES)


def inputs(layer: Any, batch: int = 2, tokens: int = TOKENS, masked: bool = True) -> tuple[np.ndarray, Any]:
    """Tokens, and what goes with each of them: a mask that hides some, positions if the layer needs them."""
    axes = position_axes(layer)
    beside = {"mask": uniform(2, batch, tokens) * (uniform(3, batch, tokens) > 0.3)} if masked else {}
    return normal(1, batch, tokens, WIDTH), beside | (
        {"positions": 4 * normal(4, batch, tokens, axes)} if axes else {}
    )


def streamed(
    layer: Any, p: Any, x: Array, beside: Any, chunks: Sequence[tuple[int, ...]], state: Any
) -> tuple[Array, Any]:
    """Chunks of whole frames one after the other: outputs of all tokens, and the last state."""
    outputs, start = [], 0
    for chunk in chunks:
        now = slice(start, start + sum(chunk))
        here = {name: array[:, now] for name, array in beside.items()}
        # A chunk of one frame needs no lengths.
        frames = {} if len(chunk) == 1 else {"frames": chunk}
        y, state = layer.apply(p, x[:, now], state=state, **here, **frames)
        outputs.append(y)
        start = now.stop
    return jnp.concatenate(outputs, 1), state


@pytest.mark.parametrize(
    "name", [pytest.param("product", marks=pytest.mark.smoke), *list(LAYERS)[1:], *ATTENTION]
)
def test_streamed_is_parallel(name: str) -> None:
    """Ragged frames one by one, in chunks of several, and all at once: outputs and states agree."""
    layer = (LAYERS | ATTENTION)[name]
    p, (x, beside), none = parameters(layer), inputs(layer), layer.init_state(2, WIDTH)

    @quick_jit
    def outputs(x: Array, beside: Any) -> Any:
        whole = layer.apply(p, x, frames=FRAMES, **beside)
        ways = [streamed(layer, p, x, beside, [(n,) for n in FRAMES], none)]
        ways += [streamed(layer, p, x, beside, [FRAMES[:2], FRAMES[2:]], none)]
        return whole, ways

    whole, ways = outputs(x, beside)
    for y, _ in ways:
        assert_close(y, whole, 5e-6)
    assert_close(ways[0][1], ways[1][1])


def test_gradients_of_a_stream_are_those_of_the_whole() -> None:
    layer = LAYERS["reads"]
    p, (x, beside), none = parameters(layer), inputs(layer), layer.init_state(2, WIDTH)
    weigh = normal(9, 2, TOKENS, WIDTH)

    @quick_jit
    def slopes(p: Any, x: Array) -> Any:
        def whole(p: Any, x: Array) -> Array:
            return (layer.apply(p, x, frames=FRAMES, **beside) * weigh).sum()

        def frame_by_frame(p: Any, x: Array) -> Array:
            return (streamed(layer, p, x, beside, [(n,) for n in FRAMES], none)[0] * weigh).sum()

        return jax.grad(whole, (0, 1))(p, x), jax.grad(frame_by_frame, (0, 1))(p, x)

    whole, frame_by_frame = slopes(p, x)
    assert_close(frame_by_frame, whole, 5e-6)


@few
@given(
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    method=st.sampled_from(["naive", "lean"]),
    phase=st.booleans(),
)
def test_causal_tokens_stream_in_chunks_of_any_length(
    cuts: tuple[int, ...], method: str, phase: bool
) -> None:
    layer: Any = PoM(phase=PHASE if phase else None, implementation=method)
    p, (x, beside) = parameters(layer), inputs(layer, tokens=sum(cuts))

    @quick_jit
    def both(x: Array) -> Any:
        state, outputs = layer.init_state(2, WIDTH), []
        for start, length in zip(np.cumsum((0, *cuts)).tolist(), cuts, strict=False):
            here = {k: v[:, start : start + length] for k, v in beside.items()}
            y, state = layer.apply(p, x[:, start : start + length], causal=True, state=state, **here)
            outputs.append(y)
        return jnp.concatenate(outputs, 1), layer.apply(p, x, causal=True, **beside)

    assert_close(*both(x), tolerance=5e-6)


@every_layer
def test_a_scan_carries_the_state_of_equal_frames(name: str) -> None:
    layer = LAYERS[name]
    p, (x, beside) = parameters(layer), inputs(layer, tokens=12)

    @quick_jit
    def both(x: Array, beside: Any) -> Any:
        def step(state: Any, frame: Any) -> Any:
            x, beside = frame
            y, state = layer.apply(p, x, state=state, **beside)
            return state, y

        cut = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(2, 4, 3, *a.shape[2:]), 1, 0), (x, beside))
        _, y = lax.scan(step, layer.init_state(2, WIDTH), cut)
        return jnp.moveaxis(y, 0, 1).reshape(x.shape), layer.apply(p, x, frames=3, **beside)

    assert_close(*both(x, beside), tolerance=5e-6)


def test_the_first_state_can_be_donated() -> None:
    """As a stream does that keeps one state: no array of it is there twice, that of "last" neither."""
    layer: Any = Hybrid(PoM(reads=("last", "all")), LocalAttention(2, (2,), 1))
    p, x = parameters(layer), normal(1, 2, 2, WIDTH)
    step = quick_jit(lambda x, state: layer.apply(p, x, state=state), donate_argnums=1)
    _, state = step(x, layer.init_state(2, WIDTH))
    _, state = step(x, state)
    np.testing.assert_array_equal(state["pom"].total.count, [[4], [4]])


@every_layer
def test_a_state_of_two_parts_is_the_state_of_the_whole(name: str) -> None:
    """Left apart, merged, saved and loaded again, it is read like the one that was carried along."""
    layer = LAYERS[name]
    p, (x, beside) = parameters(layer), inputs(layer, tokens=9)
    none, parts = layer.init_state(2, WIDTH), (slice(0, 4), slice(4, 6), slice(6, 9))

    @quick_jit
    def leave(x: Array, beside: Any) -> Any:
        pieces = [{k: v[:, part] for k, v in {"x": x, **beside}.items()} for part in parts]
        left = [
            layer.apply(p, piece["x"], method="write", **{k: v for k, v in piece.items() if k != "x"})
            for piece in pieces[:2]
        ]
        y, carried = streamed(layer, p, x, beside, [(4,), (2,), (3,)], none)
        until = streamed(layer, p, x[:, :6], {k: v[:, :6] for k, v in beside.items()}, [(4,), (2,)], none)[1]
        return left, until, y[:, 6:], carried

    left, until, y, carried = leave(x, beside)
    merged = merge_states(*left)
    assert_close(merged, until)
    assert_close(left[0] + left[1], merged)
    assert_close(sum(left), merged)
    assert jax.tree.map(jnp.shape, carried) == jax.tree.map(jnp.shape, none), "it never grows"

    file = io.BytesIO()
    np.savez(file, *map(np.asarray, jax.tree.leaves(merged)))
    file.seek(0)
    loaded = jax.tree.unflatten(jax.tree.structure(none), np.load(file).values())
    late = {k: v[:, parts[2]] for k, v in beside.items()}
    after, _ = quick_jit(lambda x, state: layer.apply(p, x, state=state, **late))(x[:, parts[2]], loaded)
    assert_close(after, y, 5e-6)


@pytest.mark.parametrize("name", ["product", "rotary", "phase"])
def test_reading_a_state_that_others_left_is_mixing_them_in(name: str) -> None:
    """`write` then `read` is cross mixing; a text's state before causal tokens is the text before them."""
    layer = LAYERS[name]
    p, (x, beside), text = parameters(layer), inputs(layer, masked=False), normal(5, 2, 5, WIDTH)
    axes = position_axes(layer)
    there = {"positions": 4 * normal(6, 2, 5, axes)} if axes else {}
    mask = uniform(7, 2, 5)

    @quick_jit
    def outputs(x: Array, text: Array) -> Any:
        state = layer.apply(p, text, mask=mask, method="write", **there)
        cross = {"context_positions": there["positions"]} if axes else {}
        joined = {"positions": jnp.concatenate([there["positions"], beside["positions"]], 1)} if axes else {}
        hides = jnp.concatenate([mask, jnp.ones((2, TOKENS))], 1)
        return (
            (
                layer.apply(p, x, state, method="read", **beside),
                layer.apply(p, x, text, mask=mask, **beside, **cross),
            ),
            (
                layer.apply(p, x, state=state, causal=True, **beside)[0],
                layer.apply(p, jnp.concatenate([text, x], 1), mask=hides, causal=True, **joined)[:, 5:],
            ),
        )

    (read, cross), (after, joined) = outputs(x, text)
    assert_close(read, cross, 5e-6)
    assert_close(after, joined, 5e-6)
    assert gap(read, after) > 1e-3


def test_reads_of_past_and_last_go_without_tokens_of_their_own() -> None:
    layer: Any = PoM(reads=("last", "past"))
    p, (x, _) = parameters(layer), inputs(layer)

    @quick_jit
    def both(x: Array) -> Any:
        _, state = layer.apply(p, x[:, :4], frames=(1, 3), state=layer.init_state(2, WIDTH))
        read = layer.apply(p, x[:, 4:], state, method="read")
        return read, layer.apply(p, x[:, 4:], state=state)[0], state

    read, streamed_on, state = both(x)
    assert_close(read, streamed_on)
    assert isinstance(state, FrameStates)
    np.testing.assert_array_equal([state.total.count[0, 0], state.last.count[0, 0]], [4, 3])


def test_counting_frames_gives_each_the_same_weight() -> None:
    """As the authors' `state_forward` counts; with frames of equal length it is counting tokens."""
    tokens: Any = PoM()
    frames = tokens.clone(count="frames")
    p, (x, beside) = parameters(tokens), inputs(tokens)
    seen = (beside["mask"] > 0).astype(np.float32)

    @quick_jit
    def outputs(x: Array) -> Any:
        equal, ragged = {"frames": 5}, {"frames": (9, 1)}
        state = frames.apply(p, x, state=frames.init_state(2, WIDTH), **ragged)[1]
        each = (
            frames.apply(p, x, causal=True, mask=beside["mask"]),
            tokens.apply(p, x, causal=True, mask=seen),
        )
        return [layer.apply(p, x, **o) for o in (equal, ragged) for layer in (tokens, frames)], state, each

    (by_tokens, by_frames, ragged, weighed), state, (one_by_one, unweighed) = outputs(x)
    assert_close(by_frames, by_tokens, 5e-6)
    assert_close(one_by_one, unweighed, 5e-6)
    assert gap(weighed[:, -1], ragged[:, -1]) > 1e-2
    assert isinstance(state, State)
    np.testing.assert_array_equal(state.count, [[2], [2]])


@pytest.mark.parametrize("name", ["reads", "product"])
def test_no_tokens_leave_the_state_as_it_is(name: str) -> None:
    layer = LAYERS[name]
    p, (x, _) = parameters(layer), inputs(layer)

    @quick_jit
    def outputs(x: Array) -> Any:
        _, state = layer.apply(p, x, frames=FRAMES, state=layer.init_state(2, WIDTH))
        ways = ({}, {"frames": ()}, {"causal": True})
        none = [layer.apply(p, x[:, :0], state=state, **o) for o in ways]
        none += [layer.apply(p, x, x[:, :0], state=state)]
        return state, [after for _, after in none], [y for y, _ in none]

    state, after, y = outputs(x)
    assert_close(after, [state] * 4)
    assert [one.shape for one in y] == [(2, 0, WIDTH)] * 3 + [x.shape]


def test_merging_with_the_state_of_nothing_keeps_the_last_frame() -> None:
    """On either side, sequence by sequence, whatever dtype it was kept in."""
    layer = LAYERS["reads"]
    p, (x, _), none = parameters(layer), inputs(layer), layer.init_state(2, WIDTH)
    late, half = x[:, 4:], np.ones((2, TOKENS - 4), np.float32)
    half[1] = 0

    @quick_jit
    def merged(x: Array) -> Any:
        first = layer.apply(p, x[:, :4], method="write")
        second = layer.apply(p, late, mask=half, method="write")
        kept = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), none)
        return first, second, first + none, merge_states(none, first), first + kept, first + second

    first, second, *same, both = merged(x)
    assert_close(same, [first] * 3)
    assert_close(both.total.sum, first.total.sum + second.total.sum)
    for newest, i in ((second, 0), (first, 1)):
        assert_close(*(jax.tree.map(lambda leaf, i=i: leaf[i], state.last) for state in (both, newest)))


@pytest.mark.parametrize("method", ["naive", "lean"])
def test_a_state_kept_in_another_dtype_comes_back_in_float32(method: str) -> None:
    """Halved to bfloat16 for storage, its counts as whole numbers: only its own rounding is lost."""
    layer: Any = PoM(implementation=method)
    p, (x, _) = parameters(layer), inputs(layer)

    @quick_jit
    def outputs(x: Array) -> Any:
        _, state = layer.apply(p, x[:, :4], state=layer.init_state(2, WIDTH))
        kept = State(state.sum.astype(jnp.bfloat16), state.count.astype(jnp.int8))
        found = [layer.apply(p, x[:, 4:], causal=True, state=s) for s in (state, kept)]
        return found, layer.apply(p, x[:, 4:], kept, method="read")

    ((exact, _), (y, after)), read = outputs(x)
    assert gap(y, exact) < 0.01
    assert after.sum.dtype == after.count.dtype == y.dtype == read.dtype == jnp.float32


def test_states_kept_in_narrow_dtypes_add_up() -> None:
    kept = State(jnp.full((1, 1, 3), 60_000, jnp.float16), jnp.full((1, 1), 110, jnp.int8))
    total: Any = sum([kept] * 3)
    assert_close(total, State(jnp.full((1, 1, 3), 180_000.0), jnp.full((1, 1), 330.0)))
