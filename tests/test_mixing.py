"""Who sees whom, causal and by frames: as under the mask of all pairs, never ahead; no bit lost to length."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import Array

from pom_jax.nn import Phase, PoM, Rotary
from pom_jax.ops import state_mean
from pom_jax.ops.reads import FEW_FRAMES
from tests.layers import WIDTH, assert_close, few, gap, normal, parameters, position_axes, quick_jit, uniform

LAYERS: dict[str, Any] = {
    "product": PoM(degree=3),
    "power": PoM(form="power", gate_heads=4, use_bias=True),
    "rotary": PoM(rotary=Rotary(2)),
    "phase": PoM(form="power", phase=Phase(((np.inf, 5.0, -3.0),))),
}
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())


def places(layer: Any, batch: int, tokens: int, seed: int = 7) -> dict[str, Any]:
    """Positions as this layer needs them, drawn."""
    axes = position_axes(layer)
    return {"positions": 4 * normal(seed, batch, tokens, axes)} if axes else {}


def frame_numbers(lengths: tuple[int, ...]) -> np.ndarray:
    return np.repeat(np.arange(len(lengths)), lengths)


def seen_pairs(lengths: tuple[int, ...], others: tuple[int, ...], read: str) -> np.ndarray:
    """Whether query m reads the frame of context token n: [M, N]."""
    own, of = frame_numbers(lengths)[:, None], frame_numbers(others)[None]
    return {"all": of <= own, "own": of == own, "last": of == own - 1, "past": of < own}[read]


def pair_weights(
    lengths: tuple[int, ...], others: tuple[int, ...], read: str, count: str, mask: np.ndarray
) -> np.ndarray:
    """The mask [B, M, N] of all pairs under which plain mixing is mixing by frames."""
    if count == "frames":
        numbers = frame_numbers(others)
        of_frame = np.stack([mask[:, numbers == n].sum(1) for n in numbers], 1)
        mask = np.divide(mask, of_frame, out=np.zeros_like(mask), where=of_frame > 0)
    return (seen_pairs(lengths, others, read)[None] * mask[:, None]).astype(np.float32)


@pytest.mark.smoke
@every_layer
def test_causal_is_frames_of_one_token_is_the_triangular_mask(layer: Any) -> None:
    p, x, context, mask = parameters(layer), normal(1, 2, 7, WIDTH), normal(2, 2, 7, WIDTH), uniform(3, 2, 7)
    at = places(layer, 2, 7)
    there = {"context_positions": at["positions"][:, ::-1]} if at else {}
    triangle = np.tri(7, dtype=np.float32)[None]

    @quick_jit
    def outputs(x: Array, context: Array, mask: Array) -> list[list[Array]]:
        found = []
        for arguments, options, weights in (
            ((x,), at, None),
            ((x,), at, mask),
            ((x, context), {**at, **there}, mask),
        ):
            dense = triangle if weights is None else triangle * weights[:, None]
            found += [
                [
                    layer.apply(p, *arguments, mask=weights, causal=True, **options),
                    layer.apply(p, *arguments, mask=weights, frames=1, **options),
                    layer.apply(p, *arguments, mask=dense, **options),
                ]
            ]
        return found

    for causal, frames, dense in outputs(x, context, mask):
        assert_close((causal, frames), (dense, dense), 5e-6)


lengths = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)


@few
@given(
    frames=lengths,
    seed=st.integers(0, 99),
    form=st.sampled_from(["product", "power"]),
    count=st.sampled_from(["tokens", "frames"]),
    method=st.sampled_from(["naive", "lean"]),
    weigh=st.booleans(),
)
def test_frames_are_the_mask_of_all_pairs(
    frames: tuple[int, ...], seed: int, form: str, count: str, method: str, weigh: bool
) -> None:
    """Of any lengths, mixing themselves or a context in frames of other lengths, under any read."""
    others = tuple(np.random.default_rng(seed).integers(1, 6, len(frames)).tolist())
    layer: Any = PoM(form=form, count=count, implementation=method)
    p, x, context = parameters(layer), normal(seed, 2, sum(frames), WIDTH), normal(5, 2, sum(others), WIDTH)
    masks = [np.ones((2, sum(n)), np.float32) for n in (frames, others)]
    if weigh:
        masks = [uniform(3, *m.shape) * (uniform(4, *m.shape) > 0.3) for m in masks]
    reads = ("all", "own", "last", "past")

    @quick_jit
    def outputs(x: Array, context: Array) -> list[tuple[Array, ...]]:
        found = []
        for read in reads:
            given = [mask if weigh else None for mask in masks]
            some, plain = layer.clone(reads=(read,)), layer.clone(implementation="naive")
            dense = [
                pair_weights(frames, n, read, count, m) for n, m in zip((frames, others), masks, strict=True)
            ]
            cross = {"frames": frames, "context_frames": others, "mask": given[1]}
            found += [
                (some.apply(p, x, frames=frames, mask=given[0]), plain.apply(p, x, mask=dense[0])),
                (some.apply(p, x, context, **cross), plain.apply(p, x, context, mask=dense[1])),
            ]
        return found

    for by_frame, dense in outputs(x, context):
        assert_close(by_frame, dense, 5e-6)


@pytest.mark.parametrize("form", ["product", "power"])
def test_several_reads_are_the_sum_of_each_with_gates_of_its_own(form: str) -> None:
    reads = ("past", "own", "last")
    layer: Any = PoM(form=form, reads=reads, use_bias=True)
    p, x = parameters(layer), normal(1, 2, 7, WIDTH)
    parts = p["params"]

    def one(index: int) -> Any:
        gate = {"kernel": parts["gate"]["kernel"][:, index], "bias": parts["gate"]["bias"][index]}
        out = {"kernel": parts["out"]["kernel"][index], "bias": np.zeros(WIDTH, np.float32)}
        return {"params": parts | {"gate": gate, "out": out}}

    @quick_jit
    def both(x: Array) -> tuple[Array, Array]:
        each = [layer.clone(reads=(read,)).apply(one(i), x, frames=(2, 4, 1)) for i, read in enumerate(reads)]
        return layer.apply(p, x, frames=(2, 4, 1)), sum(each) + parts["out"]["bias"]

    assert_close(*both(x), tolerance=5e-6)


@pytest.mark.parametrize("read", ["all", "own", "last", "past"])
@pytest.mark.parametrize("frames", [(1,) * 6, (2, 3, 1)], ids=["causal", "frames"])
def test_gradients_flow_from_what_a_token_sees_and_from_nothing_else(
    read: str, frames: tuple[int, ...]
) -> None:
    """Token m depends on token n if n is itself, through its gate, or lies in what m reads."""
    form = "product" if read in ("all", "last") else "power"
    layer: Any = PoM(form=form, reads=(read,), rotary=Rotary() if read == "past" else None)
    p, x = parameters(layer), normal(1, 1, 6, WIDTH)
    options = {"causal": True} if len(frames) == 6 else {"frames": frames}

    @quick_jit
    def reach(x: Array) -> Array:
        _, slope = jax.vjp(lambda x: layer.apply(p, x, **options)[0], x)
        each = np.eye(6, dtype=np.float32)[:, :, None] * normal(2, 1, 6, WIDTH)
        return jnp.abs(jax.vmap(slope)(jnp.asarray(each))[0]).max((1, 3))

    expected = seen_pairs(frames, frames, read)
    # A gate that multiplies nothing has no gradient either.
    expected |= np.diag(expected.any(1))
    np.testing.assert_array_equal(np.asarray(reach(x)) > 0, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_tokens_of_a_frame_may_change_places(name: str) -> None:
    """With their masks and positions; across frames they may not."""
    reads = ("own", "last", "past") if name == "product" else ("all",)
    layer: Any = LAYERS[name].clone(reads=reads)
    p, x, mask, at = parameters(layer), normal(1, 2, 7, WIDTH), uniform(2, 2, 7), places(layer, 2, 7)

    @quick_jit
    def mixed(x: Array, mask: Array, at: Any) -> Array:
        return layer.apply(p, x, mask=mask, frames=(3, 4), **at)

    y = mixed(x, mask, at)
    for order, same in (([1, 2, 0, 6, 4, 5, 3], True), ([0, 1, 3, 2, 4, 5, 6], False)):
        z = mixed(x[:, order], mask[:, order], jax.tree.map(lambda a, o=order: a[:, o], at))
        assert (gap(z, y[:, order]) < 5e-6) is same


def test_text_for_all_frames_is_a_state_before_them() -> None:
    """Context that every frame sees, as the tokens of a caption, goes before the first frame."""
    layer: Any = PoM(degree=3)
    p, text, x, mask = parameters(layer), normal(1, 2, 3, WIDTH), normal(2, 2, 6, WIDTH), uniform(3, 2, 3)

    @quick_jit
    def both(text: Array, x: Array) -> tuple[Array, Array]:
        state = layer.apply(p, text, mask=mask, method="write")
        y, _ = layer.apply(p, x, frames=(2, 4), state=state)
        seen = np.concatenate([np.ones((6, 3)), seen_pairs((2, 4), (2, 4), "all")], 1)
        rows = seen * np.concatenate([mask, np.ones((2, 6))], 1)[:, None]
        return y, layer.apply(p, x, jnp.concatenate([text, x], 1), mask=jnp.asarray(rows))

    assert_close(*both(text, x), tolerance=5e-6)


@pytest.mark.parametrize("method", ["naive", "lean"])
@pytest.mark.parametrize(
    ("reads", "options"),
    [
        (("all",), {"causal": True}),
        (("all",), {"frames": (2, 3, 1)}),
        (("last", "past"), {"frames": (2, 3, 1)}),
        (("own", "past"), {"causal": True}),
    ],
)
def test_nothing_to_read_leaves_the_output_bias_and_finite_gradients(
    method: str, reads: tuple[str, ...], options: dict[str, Any]
) -> None:
    """Leading tokens hidden, a frame hidden whole, and first frames that have no past."""
    layer: Any = PoM(reads=reads, implementation=method)
    p, x = parameters(layer), normal(1, 2, 6, WIDTH)
    mask = np.array([[0, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0]], np.float32)

    @quick_jit
    def value_and_slopes(p: Any, x: Array, mask: Array) -> Any:
        y, slope = jax.vjp(lambda p, x, m: layer.apply(p, x, mask=m, **options), p, x, mask)
        return y, slope(jnp.ones_like(y))

    y, slopes = value_and_slopes(p, x, mask)
    nothing = np.broadcast_to(p["params"]["out"]["bias"], y.shape)
    np.testing.assert_array_equal(y[0, :2], nothing[0, :2])
    np.testing.assert_array_equal(y[1], nothing[1])
    assert gap(y[0, 5], nothing[0, 5]) > 1e-3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize("method", ["naive", "lean"])
@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"frames": (2, 3, 1)}], ids=["all", "causal", "frames"]
)
def test_what_a_mask_hides_may_be_anything(method: str, options: dict[str, Any]) -> None:
    """Hidden tokens that overflow or are NaN, at positions that are NaN, leave all else as it was."""
    layer: Any = PoM(degree=3, implementation=method, phase=Phase(((5.0,),)))
    mask = np.array([[1, 0, 1, 1, 0, 1], [0, 1, 1, 0, 1, 1]], np.float32)
    p, x, weigh, at = parameters(layer), *(normal(seed, 2, 6, WIDTH) for seed in (1, 2)), normal(3, 2, 6)
    anything = np.array([1e30, np.nan], np.float32)[:, None, None]
    context, places = np.where(mask[..., None] > 0, x, anything), np.where(mask > 0, at, np.nan)

    @quick_jit
    def value_and_slopes(p: Any, context: Array, places: Array) -> Any:
        def loss(p: Any, context: Array) -> Array:
            at_places = {"positions": at, "context_positions": places}
            return (layer.apply(p, x, context, mask=mask, **at_places, **options) * weigh).sum()

        return jax.value_and_grad(loss, (0, 1))(p, context)

    assert_close(value_and_slopes(p, context, places), value_and_slopes(p, x, at))


def exact_mean(p: Any, x: np.ndarray, degree: int) -> np.ndarray:
    """The mean feature [E] of the power form in float64."""
    u = x.astype(np.float64) @ p["features"]["kernel"].astype(np.float64)
    a = np.clip(np.where(u > 0, u, 0.01 * u), -0.1, 6.0)
    coefficients = p["coefficients"].astype(np.float64)
    powers = [coefficients[:, k] * a ** (k + 1) for k in range(degree)]
    return np.sum(powers, 0).mean(0)


def test_many_frames_are_summed_as_few_are() -> None:
    layer: Any = PoM(reads=("all", "past", "last"), expansion=1)
    half = FEW_FRAMES // 2 + 8
    p, x = parameters(layer), normal(1, 1, 2 * half, WIDTH)

    @quick_jit
    def both(x: Array) -> Any:
        first, state = layer.apply(p, x[:, :half], frames=1, state=layer.init_state(1, WIDTH))
        second, after = layer.apply(p, x[:, half:], frames=1, state=state)
        whole = layer.apply(p, x, frames=1, state=layer.init_state(1, WIDTH))
        return (jnp.concatenate([first, second], 1), after), whole

    assert_close(*both(x), tolerance=5e-6)


@pytest.mark.parametrize(("lengths", "method"), [((8, 7, 8, 7), "lean"), ((1,) * 40, "naive")])
def test_a_frame_that_is_not_finite_spoils_those_alone_that_see_it(
    lengths: tuple[int, ...], method: str
) -> None:
    """The others are the same to the bit, frames after it too if they read their own alone."""
    number, tokens = frame_numbers(lengths), sum(lengths)
    x, bad = normal(1, 1, tokens, WIDTH), len(lengths) // 2
    spoilt = np.where((number == bad)[None, :, None] & (np.arange(WIDTH) == 3), np.nan, x)
    for reads in (("all",), ("last", "past"), ("own",)):
        layer: Any = PoM(reads=reads, implementation=method, expansion=1)
        p = parameters(layer)
        call = quick_jit(lambda x, layer=layer, p=p: layer.apply(p, x, frames=lengths)[0])
        seen = number == bad if reads == ("own",) else number >= bad
        y, whole = call(spoilt), call(x)
        np.testing.assert_array_equal(y[~seen], whole[~seen])
        assert np.isnan(y[seen]).all()


@pytest.mark.parametrize("method", ["naive", "lean"])
def test_the_error_of_bfloat16_does_not_grow_with_the_tokens(method: str) -> None:
    """Against float64, up to 65,536 tokens; a sum kept in bfloat16 stalls at some hundreds."""
    layer: Any = PoM(form="power", degree=2, dtype=jnp.bfloat16, implementation=method)
    p, x = parameters(layer), normal(1, 1, 2**16, WIDTH)
    start = layer.init_state(1, WIDTH)
    errors = []
    for tokens in (2**8, 2**16):
        exact = exact_mean(p["params"], x[0, :tokens], 2)
        run = quick_jit(lambda x: [layer.apply(p, x, state=start, causal=c)[1] for c in (False, True)])
        means = [state_mean(state)[0, 0] for state in run(x[:, :tokens])]
        errors += [[gap(mean, exact) for mean in means]]
    assert max(errors[0]) < 0.01
    assert max(errors[1]) < min(errors[0])


def test_the_mean_over_many_tokens_loses_nothing() -> None:
    """Ten thousand equal tokens have the mean of one, to the bit with bfloat16 products."""
    layer: Any = PoM(dtype=jnp.bfloat16)
    p, token = parameters(layer), normal(1, 1, 1, WIDTH)

    @quick_jit
    def both(token: Array) -> tuple[Array, ...]:
        many = jnp.broadcast_to(token, (1, 10_000, WIDTH))
        causal = layer.apply(p, many, causal=True)[:, -1:]
        return layer.apply(p, token), layer.apply(p, token, many), causal

    one, many, last = (np.asarray(y, np.float32) for y in both(token))
    np.testing.assert_array_equal(one, many)
    np.testing.assert_array_equal(one, last)


def test_a_weight_of_zero_has_no_slope_and_others_have_theirs() -> None:
    layer: Any = PoM()
    p, x = parameters(layer), normal(1, 2, 6, WIDTH)
    mask = np.ones((2, 6), np.float32)
    mask[:, 3] = 0

    def loss(mask: Any) -> Array:
        return (layer.apply(p, x, mask=mask) ** 2).sum()

    slopes = np.asarray(quick_jit(jax.grad(loss))(mask))
    assert (slopes[:, 3] == 0).all()
    step = np.zeros_like(mask)
    step[:, 2] = 1e-2
    difference = (loss(mask + step) - loss(mask - step)) / 2e-2
    np.testing.assert_allclose(slopes[:, 2].sum(), difference, rtol=1e-2)
