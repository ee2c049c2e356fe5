"""Positions: rotary turns against complex numbers in float64, phase reads against all pairs, and shifts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import Array

from pom_jax.errors import InputError
from pom_jax.nn import Phase, PoM, Rotary
from pom_jax.ops import grid_positions
from tests.layers import WIDTH, assert_close, few, gap, normal, parameters, quick_jit

INF = float("inf")
TURNS = ((INF, 5.0, -3.0), (4.0, INF))
frequencies = st.lists(st.sampled_from([INF, 2.0, 3.5, -6.0]), min_size=1, max_size=3).map(tuple)


def turned(x: np.ndarray, positions: np.ndarray, axes: int, base: float, sign: int = 1) -> np.ndarray:
    """Each part of the channels as complex numbers, turned by its axis' coordinate, in float64."""
    parts = np.split(x.astype(np.float64), axes, -1)
    for axis, part in enumerate(parts):
        half = part.shape[-1] // 2
        angle = (
            sign * positions[..., axis, None].astype(np.float64) * base ** (-2 * np.arange(half) / (2 * half))
        )
        z = (part[..., :half] + 1j * part[..., half:]) * np.exp(1j * angle)
        parts[axis] = np.concatenate([z.real, z.imag], -1)
    return np.concatenate(parts, -1)


@few
@given(
    axes=st.integers(1, 3),
    pairs=st.integers(1, 4),
    base=st.sampled_from([100.0, 10000.0]),
    seed=st.integers(0, 99),
)
def test_channels_turn_in_pairs_by_their_axis_coordinate(
    axes: int, pairs: int, base: float, seed: int
) -> None:
    rotary, channels = Rotary(axes, base), 2 * axes * pairs
    x, positions = normal(seed, 2, 5, channels), 9 * normal(seed + 1, 2, 5, axes)

    @quick_jit
    def outputs(x: Array, positions: Array) -> tuple[Array, Array]:
        tables = rotary.tables(positions, channels)
        y = rotary.rotate(x, tables)
        return y, rotary.rotate(y, rotary.tables(-positions, channels))

    y, back = outputs(x, positions)
    assert_close(y, turned(x, positions, axes, base), 2e-5)
    assert_close(back, x, 2e-5)
    np.testing.assert_array_equal(outputs(x, 0 * positions)[0], x)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_only_the_sum_of_a_pair_knows_relative_positions_alone(axes: int) -> None:
    """What a gate at p takes of features at q: the pair's sum is free of a common shift, each channel not."""
    rotary, channels = Rotary(axes), 4 * axes
    gate, features = normal(1, 4, channels), normal(2, 4, channels)
    p, q, shift = 5 * normal(3, 4, axes), 5 * normal(4, 4, axes), 9 * normal(5, 1, axes)

    @quick_jit
    def taken(p: Array, q: Array) -> tuple[Array, Array]:
        one, other = (
            rotary.rotate(jnp.asarray(x), rotary.tables(at, channels)) for x, at in ((gate, p), (features, q))
        )
        return one * other, (one * other).reshape(4, axes, 2, 2).sum(-2)

    (each, pair), (each_moved, pair_moved) = taken(p, q), taken(p + shift, q + shift)
    assert_close(pair_moved, pair, 3e-5)
    assert gap(each_moved, each) > 0.1
    assert gap(taken(p, q + shift)[1], pair) > 0.1


def test_a_rotary_layer_that_ties_the_channels_of_a_pair_is_free_of_a_common_shift() -> None:
    layer: Any = PoM(rotary=Rotary(2))
    p, x, at = parameters(layer), normal(1, 2, 5, WIDTH), 5 * normal(2, 5, 2)
    out = p["params"]["out"]["kernel"].reshape(2, 2, 2, 4, WIDTH)
    out[:, :, 1] = out[:, :, 0]

    @quick_jit
    def mixed(out: Array, at: Array) -> Array:
        tied = {"params": p["params"] | {"out": p["params"]["out"] | {"kernel": out.reshape(2, 16, WIDTH)}}}
        return layer.apply(tied, x, positions=at)

    shift = np.array([[7.0, -4.0]], np.float32)
    assert_close(mixed(out, at + shift), mixed(out, at), 2e-5)
    free = normal(3, *out.shape)
    assert gap(mixed(free, at + shift), mixed(free, at)) > 1e-2


@pytest.mark.parametrize(
    ("axes", "channels", "heads"), [(1, 24, 4), (1, 24, 6), (2, 24, 4), (2, 24, 12), (3, 24, 6)]
)
def test_shared_gates_take_every_so_many_frequencies(axes: int, channels: int, heads: int) -> None:
    rotary, at = Rotary(axes), normal(1, 5, axes)
    cos, sin = quick_jit(lambda at: rotary.tables(at, channels, heads))(at)
    stride = channels // heads // (2 if axes == 1 else 1)
    per_axis = heads // (2 * axes)
    angles = [
        at[:, axis, None] * 10000.0 ** (-np.arange(per_axis) * stride / (channels // (2 * axes)))
        for axis in range(axes)
        for _ in range(2)
    ]
    assert_close((cos, sin), (np.cos(np.concatenate(angles, 1)), np.sin(np.concatenate(angles, 1))), 1e-5)
    # Each head of the layer gates its channels with one number.
    layer: Any = PoM(form="power", gate_heads=heads, rotary=rotary, expansion=channels // WIDTH)
    p = parameters(layer)
    shape = quick_jit(lambda x: layer.apply(p, x, positions=at))(normal(2, 2, 5, WIDTH)).shape
    assert shape == (2, 5, WIDTH)


def test_rotary_mixing_is_that_of_turned_features_and_gates() -> None:
    """The power form in float64, from parameters to output."""
    layer: Any = PoM(form="power", degree=2, rotary=Rotary(2))
    p, x, at = parameters(layer), normal(1, 1, 5, WIDTH), 3 * normal(2, 5, 2)
    w = jax.tree.map(lambda a: a.astype(np.float64), p["params"])
    u = x[0] @ w["features"]["kernel"]
    a = np.clip(np.where(u > 0, u, 0.01 * u), -0.1, 6.0)
    features = w["coefficients"][:, 0] * a + w["coefficients"][:, 1] * a**2
    gate = np.clip((x[0] @ w["gate"]["kernel"] + w["gate"]["bias"]) / 6 + 0.5, 0, 1)
    mean = turned(features, at, 2, 10000.0).mean(0)
    exact = (turned(gate, at, 2, 10000.0) * mean) @ w["out"]["kernel"]
    assert_close(quick_jit(lambda x: layer.apply(p, x, positions=at))(x)[0], exact, 1e-5)


@few
@given(periods=st.lists(frequencies, min_size=1, max_size=3).map(tuple), channels=st.integers(1, 9))
def test_channel_c_has_combined_frequency_c_modulo_their_count(
    periods: tuple[tuple[float, ...], ...], channels: int
) -> None:
    phase, at = Phase(periods), 4 * normal(1, 2, 3, len(periods))
    waves = np.array([[0.0]])
    for axis in periods:
        one = 2 * np.pi / np.array(axis)
        waves = np.concatenate([np.repeat(waves, len(one), 0), np.tile(one, len(waves))[:, None]], 1)
    angles = at @ waves[np.arange(channels) % len(waves), 1:].T
    tables = quick_jit(lambda at: phase.tables(at, channels))(at)
    assert_close(tables, (np.cos(angles), np.sin(angles)), 2e-5, least=1.0)


def test_a_phase_read_sees_features_turned_by_relative_positions() -> None:
    """Pair by pair in float64: two quadratures of mean f exp(i w (q - p)), each with a gate of its own."""
    layer: Any = PoM(form="power", degree=1, clamp=None, phase=Phase(TURNS))
    p, x, context = parameters(layer), normal(1, 1, 3, WIDTH), normal(2, 1, 4, WIDTH)
    at, there = 3 * normal(3, 3, 2), 3 * normal(4, 4, 2)
    w = jax.tree.map(lambda a: a.astype(np.float64), p["params"])
    u = context[0] @ w["features"]["kernel"]
    features = w["coefficients"][:, 0] * np.where(u > 0, u, 0.01 * u)
    rows, columns = (2 * np.pi / np.array(axis) for axis in TURNS)
    waves = np.array([(r, c) for r in rows for c in columns])[np.arange(2 * WIDTH) % 6]
    turns = np.exp(1j * (there[None] - at[:, None]) @ waves.T)
    seen = (features * turns).mean(1)
    exact = np.zeros((3, WIDTH))
    for slot, part in enumerate((seen.real, seen.imag)):
        gate = np.clip((x[0] @ w["gate"]["kernel"][:, slot] + w["gate"]["bias"][slot]) / 6 + 0.5, 0, 1)
        exact += (gate * part) @ w["out"]["kernel"][slot]

    def mixed(x: Array) -> Any:
        return layer.apply(p, x, context, positions=at, context_positions=there)

    assert_close(quick_jit(mixed)(x)[0], exact, 1e-5)


SHIFTED: dict[str, tuple[Any, dict[str, Any]]] = {
    "line": (PoM(phase=Phase(TURNS[:1])), {}),
    "plane": (PoM(phase=Phase(TURNS)), {}),
    "causal": (PoM(form="power", phase=Phase(TURNS[:1])), {"causal": True}),
    "frames": (PoM(phase=Phase(TURNS), reads=("own", "past")), {"frames": (1, 3, 2)}),
    "heads": (PoM(form="power", phase=Phase(TURNS), gate_heads=4, implementation="lean"), {"frames": 2}),
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", SHIFTED)
def test_shifting_all_positions_changes_nothing_with_a_phase(name: str) -> None:
    """At once and streamed; shifting the readers alone does."""
    layer, options = SHIFTED[name]
    axes = layer.phase.axes
    p, x, at = parameters(layer), normal(1, 2, 6, WIDTH), 4 * normal(2, 2, 6, axes)
    shift = np.array([11.0, -6.0], np.float32)[:axes]

    @quick_jit
    def outputs(at: Array, there: Array) -> Any:
        state = layer.init_state(2, WIDTH)
        first, state = layer.apply(p, x[:, :2], positions=at[:, :2], state=state)
        second, state = layer.apply(p, x[:, 2:], positions=at[:, 2:], state=state)
        whole = layer.apply(p, x, positions=at, context_positions=there, **options)
        return whole, first, second

    found = outputs(at, at)
    assert_close(outputs(at + shift, at + shift), found, 2e-5)
    assert gap(outputs(at + shift, at)[0], found[0]) > 1e-2


@pytest.mark.parametrize("period", [3.0, 7.0, -5.0])
def test_phases_are_exact_far_from_the_origin(period: float) -> None:
    """Float32 keeps whole numbers to 2**24; an angle of that size would keep no phase at all."""
    far = period * np.arange(1, 6, dtype=np.float32)[:, None] * np.float32(2**18) + np.arange(5)[:, None]
    near = np.arange(5, dtype=np.float32)[:, None]
    tables = quick_jit(lambda at: Phase(((period,),)).tables(at, 3))
    assert_close(tables(far), tables(near), 1e-6)


@pytest.mark.parametrize("form", ["product", "power"])
def test_a_phase_without_waves_reads_the_plain_state_and_holds_twice_as_much(form: str) -> None:
    plain: Any = PoM(form=form)
    layer = plain.clone(phase=Phase(((INF,),)))
    p, x = parameters(layer), normal(1, 2, 4, WIDTH)
    parts = p["params"]
    gate = {"kernel": parts["gate"]["kernel"][:, 0], "bias": parts["gate"]["bias"][0]}
    first = {"params": parts | {"gate": gate, "out": parts["out"] | {"kernel": parts["out"]["kernel"][0]}}}
    assert_close(*quick_jit(lambda x: (layer.apply(p, x), plain.apply(first, x)))(x))
    sizes = [one.init_state(2, WIDTH).sum.size for one in (layer, plain)]
    assert sizes[0] == 2 * sizes[1]
    per_token = [sum(leaf.size for leaf in jax.tree.leaves(parameters(one))) for one in (layer, plain)]
    assert per_token[0] > per_token[1]


@pytest.mark.parametrize("layer", [PoM(rotary=Rotary()), PoM(form="power", phase=Phase(TURNS[:1]))])
def test_positions_on_a_line_have_four_spellings_and_no_gradient(layer: Any) -> None:
    p, x, at = parameters(layer), normal(1, 2, 4, WIDTH), np.arange(4, dtype=np.float32)

    @quick_jit
    def outputs(x: Array, at: Array) -> Any:
        spellings = [at, at[:, None], at[None], jnp.broadcast_to(at[:, None], (2, 4, 1))]
        found = [layer.apply(p, x, **o) for o in ({}, *({"positions": s} for s in spellings))]
        return found, jax.grad(lambda at: layer.apply(p, x, positions=at).sum())(at)

    found, slope = outputs(x, at)
    for y in found[1:]:
        assert_close(y, found[0], 1e-6)
    assert not slope.any()


@pytest.mark.parametrize("layer", [PoM(rotary=Rotary(2)), PoM(phase=Phase(TURNS))])
def test_a_layer_knows_its_grid_and_global_tokens_lie_at_its_origin(layer: Any) -> None:
    grid = layer.clone(grid=(2, 3), global_tokens=2)
    p, x = parameters(layer), normal(1, 2, 8, WIDTH)
    at = np.array([[0, 0], [0, 0], [0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]], np.float32)
    np.testing.assert_array_equal(grid_positions(2, 3), at[2:])
    assert_close(*quick_jit(lambda x: (grid.apply(p, x), layer.apply(p, x, positions=at)))(x), tolerance=1e-6)
    with pytest.raises(InputError, match=r"6 \+ 2 tokens .* but there are 7 tokens"):
        jax.eval_shape(lambda x: grid.apply(p, x), x[:, :7])


def test_bfloat16_rounds_no_positions() -> None:
    """In bfloat16 positions 1000 and 1001 are one number."""
    layers: list[Any] = [PoM(rotary=Rotary()), PoM(phase=Phase(((5.0,),)))]
    for layer in layers:
        p, x, at = parameters(layer), normal(1, 2, 6, WIDTH), 1000 + np.arange(6)
        low = layer.clone(dtype=jnp.bfloat16)

        @quick_jit
        def both(x: Array, at: Array, layer: Any = layer, low: Any = low, p: Any = p) -> Any:
            return low.apply(p, x, positions=at), layer.apply(p, x, positions=at)

        y, exact = both(x, at)
        assert gap(y, exact) < 0.03
        assert gap(both(x, at // 8 * 8)[1], exact) > 0.1
