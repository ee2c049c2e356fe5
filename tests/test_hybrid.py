"""Attention in windows beside the mixer: exact, at linear cost, in layers of two kinds and stacks of them."""

import functools
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array

from pom_jax import models, ops
from pom_jax.errors import InputError
from pom_jax.models.mixers import layer_mixers
from pom_jax.nn import Hybrid, LocalAttention, MultiHeadAttention, PoM
from pom_jax.nn.blocks import ModulatedBlock, Period, stack
from pom_jax.ops.windows import window_pairs
from tests import layers
from tests.layers import QUICK, normal, quick_jit

TINY = {"image_size": 8, "channels": 1, "num_classes": 3, "patch_size": 2, "width": 16, "depth": 4}
# Attention rounds more than the mixer does.
assert_close = functools.partial(layers.assert_close, tolerance=5e-6)
parameters = functools.partial(layers.parameters_of, spread=0.3)


def allowed(
    grid: tuple[int, ...], radius: int | tuple[int, ...], global_tokens: int = 0, causal: bool = False
) -> np.ndarray:
    """Who sees whom, pair by pair: [N, N] bool."""
    places = np.stack(np.unravel_index(np.arange(math.prod(grid)), grid), -1)
    ahead = places[None] - places[:, None]
    near = (np.abs(ahead) <= np.array(radius)).all(-1)
    if causal:
        near &= ahead[..., 0] <= 0
    seen = np.ones((len(places) + global_tokens,) * 2, bool)
    seen[global_tokens:, global_tokens:] = near
    seen[:global_tokens, global_tokens:] = not causal
    return seen


def value_and_slopes(attend: Callable[..., Array], q: Any, k: Any, v: Any) -> Any:
    def both(q: Array, k: Array, v: Array) -> Any:
        y, slope = jax.vjp(attend, q, k, v)
        return y, slope(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    return quick_jit(both)(q, k, v)


def assert_windows(
    grid: tuple[int, ...],
    radius: int | tuple[int, ...],
    global_tokens: int,
    causal: bool,
    kind: str,
    most_floats: int,
) -> None:
    """Value and gradients are those of attention under the mask of all pairs."""
    tokens = math.prod(grid) + global_tokens
    q, k, v = (normal(seed, 2, tokens, 2, 3) for seed in range(3))
    drawn = np.random.default_rng(9).random((2, tokens))
    masks = {"none": None, "bool": drawn > 0.4, "one": drawn[:1], "empty": np.zeros((2, tokens))}
    mask = masks[kind]
    pairs = allowed(grid, radius, global_tokens, causal)[None].astype(np.float32)
    pairs = jnp.asarray(pairs if mask is None else pairs * mask[:, None])
    weights = None if mask is None else jnp.asarray(mask)

    def windows(q: Array, k: Array, v: Array) -> Array:
        sizes: Any = {"grid": grid, "radius": radius, "global_tokens": global_tokens}
        return ops.local_attention(q, k, v, weights, **sizes, causal=causal, most_floats=most_floats)

    found = value_and_slopes(windows, q, k, v)
    # Of queries and keys that see a single token the slope is zero, and what is found there rounding.
    assert_close(found, value_and_slopes(lambda q, k, v: ops.attention(q, k, v, pairs), q, k, v), least=0.1)
    if kind == "empty":
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(found))


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("grid", "radius", "global_tokens", "causal", "weights", "most_floats"),
    [
        ((53,), 3, 2, True, "bool", 1),  # four blocks in turns, the last one not full
        ((13, 10), 1, 3, False, "one", 2**24),
        ((7, 13), 2, 0, False, "bool", 2_000),  # slabs of columns
        ((7, 3, 6), (2, 0, 1), 1, True, "none", 1),
        ((3, 2, 4), 5, 2, False, "bool", 1),  # a radius larger than the grid
        ((21,), 2, 1, False, "empty", 1),
    ],
)
def test_windows_are_attention_under_the_mask_of_all_pairs(
    grid: tuple[int, ...], radius: Any, global_tokens: int, causal: bool, weights: str, most_floats: int
) -> None:
    assert_windows(grid, radius, global_tokens, causal, weights, most_floats)


@settings(max_examples=3, deadline=None)
@given(st.data())
def test_any_window_on_any_grid_is_exact(data: Any) -> None:
    axes = data.draw(st.integers(1, 3), "axes")
    grid = tuple(data.draw(st.lists(st.integers(1, (60, 12, 6)[axes - 1]), min_size=axes, max_size=axes)))
    radius = tuple(data.draw(st.lists(st.integers(0, 4), min_size=axes, max_size=axes)))
    weights = data.draw(st.sampled_from(["none", "bool", "one", "empty"]))
    most_floats = data.draw(st.sampled_from([1, 3_000, 2**24]))
    assert_windows(grid, radius, data.draw(st.integers(0, 3)), data.draw(st.booleans()), weights, most_floats)


@pytest.mark.parametrize(
    ("grid", "radius", "global_tokens", "causal"), [((7, 8), 1, 2, False), ((6, 2, 3), 1, 1, True)]
)
def test_a_token_depends_on_its_window_and_on_nothing_else(
    grid: tuple[int, ...], radius: int, global_tokens: int, causal: bool
) -> None:
    """The Jacobian of all outputs by all inputs is zero outside the windows, exactly."""
    tokens = math.prod(grid) + global_tokens
    layer: Any = LocalAttention(1, grid, radius, global_tokens, causal)
    p, x = parameters(layer, jnp.zeros((1, tokens, 4))), normal(1, 1, tokens, 4)
    slopes = quick_jit(jax.jacrev(lambda x: layer.apply(p, x)[0].sum(-1)))(x)[:, 0]
    reached = np.asarray(slopes).any(-1)
    np.testing.assert_array_equal(reached, allowed(grid, radius, global_tokens, causal))


def test_no_batch_leaves_nothing() -> None:
    empty = jnp.zeros((0, 40, 2, 3))
    assert ops.local_attention(empty, empty, empty, grid=(40,), radius=2).shape == empty.shape


def test_pairs_are_counted_without_listing_them() -> None:
    for grid, radius, global_tokens in (((9, 4), 2, 3), ((5,), 7, 0), ((3, 4, 5), 1, 2)):
        assert window_pairs(grid, radius, global_tokens) == allowed(grid, radius, global_tokens).sum()


def compiled(layer: Any, tokens: int, width: int = 8) -> Any:
    """The program of forward and gradients, by tokens and parameters."""
    x = jax.ShapeDtypeStruct((1, tokens, width), jnp.float32)
    p = jax.eval_shape(layer.init, jax.random.key(0), x)

    def loss(p: Any, x: Array) -> Array:
        return (layer.apply(p, x) ** 2).mean()

    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(p, x).compile(QUICK)


def arrays(program: Any) -> list[tuple[int, ...]]:
    """Shapes of all arrays of a compiled program."""
    shapes = re.findall(r"\b(?:f32|bf16|pred|s32|u32)\[([\d,]+)\]", program.as_text())
    return [tuple(map(int, shape.split(","))) for shape in set(shapes)]


def test_cost_is_linear_and_no_array_holds_all_pairs() -> None:
    """Of the program of PoM beside windows, forward and backward; attention to all tokens has such arrays."""

    def hybrid(grid: tuple[int, ...]) -> Any:
        window = functools.partial(LocalAttention, 2, grid, 2, 1)
        return compiled(Hybrid(functools.partial(PoM, expansion=1), window), math.prod(grid) + 1)

    small, large = hybrid((16, 32)), hybrid((64, 32))
    for program, tokens in ((small, 512), (large, 2048)):
        assert not [shape for shape in arrays(program) if sum(size >= tokens for size in shape) > 1]
        assert max(math.prod(shape) for shape in arrays(program)) < tokens * 200
    assert [s for s in arrays(compiled(MultiHeadAttention(2), 513)) if s.count(513) > 1]
    flops, bytes_kept = (
        [cost(program) for program in (small, large)]
        for cost in (lambda p: p.cost_analysis()["flops"], lambda p: p.memory_analysis().temp_size_in_bytes)
    )
    assert flops[1] < 4.1 * flops[0]
    assert bytes_kept[1] < 4.1 * bytes_kept[0]


def test_slabs_that_take_turns_keep_no_logits() -> None:
    def kept(most_floats: int) -> int:
        def loss(q: Array, k: Array, v: Array) -> Array:
            y = ops.local_attention(q, k, v, grid=(4096,), radius=32, most_floats=most_floats)
            return (y**2).mean()

        shape = jax.ShapeDtypeStruct((1, 4096, 2, 8), jnp.float32)
        program: Any = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile(QUICK)
        return program.memory_analysis().temp_size_in_bytes

    logits = 4 * 4096 * 2 * 128
    assert kept(2**30) > 2 * logits
    assert kept(2**16) < logits


def test_a_window_as_large_as_the_grid_is_attention_with_the_same_parameters() -> None:
    x, mask = normal(1, 2, 14, 8), np.arange(14) < np.array([[11], [14]])
    everywhere: Any = MultiHeadAttention(2, head_width=3)
    p = parameters(everywhere, x)
    assert p["params"]["query"]["kernel"].shape == (8, 2, 3)
    local: Any = LocalAttention(2, (3, 4), 3, global_tokens=2, head_width=3)

    @quick_jit
    def outputs(p: Any, x: Array) -> Any:
        both = [
            (layer.apply(p, x, mask=jnp.asarray(mask)), layer.apply(p, x, x[::-1]))
            for layer in (local, everywhere)
        ]
        return both, local.clone(radius=1).apply(p, x), local.clone(dtype=jnp.bfloat16).apply(p, x)

    (windows, whole), narrow, low = outputs(p, x)
    assert_close(windows, whole)
    assert np.abs(narrow - whole[1]).max() > 1e-2
    assert low.dtype == jnp.bfloat16


def test_a_hybrid_is_the_sum_of_its_halves() -> None:
    x, mask = normal(1, 2, 12, 8), jnp.asarray(normal(2, 2, 12) > 0)
    pom, local = functools.partial(PoM, expansion=1), functools.partial(LocalAttention, 2, (12,), 1)
    both: Any = Hybrid(pom, local)
    p = parameters(both, x)["params"]

    @quick_jit
    def outputs(p: Any, x: Array) -> Any:
        halves: list[Any] = [pom(), local()]
        trees = [{"params": p["pom"]}, {"params": p["attention"]}]
        apart = [layer.apply(tree, x, mask=mask) for layer, tree in zip(halves, trees, strict=True)]
        return both.apply({"params": p}, x, mask=mask), sum(apart)

    together, apart = outputs(p, x)
    assert_close(together, apart)
    modules: Any = Hybrid(pom(), local())
    assert jax.tree.map(jnp.shape, parameters(modules, x)["params"]) == jax.tree.map(jnp.shape, p)
    assert_close(quick_jit(modules.apply)({"params": p}, x, mask=mask), together)
    with pytest.raises(InputError, match="attention = 4 is neither a module nor a function"):
        Hybrid(pom(), 4).init(jax.random.key(0), x)  # pyrefly: ignore[bad-argument-type]


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (MultiHeadAttention(2), {}),
        (MultiHeadAttention(2), {"frames": (2, 4)}),
        (LocalAttention(2, (5,), 1, 1), {}),
        (Hybrid(PoM(), LocalAttention(2, (2, 3), (0, 1))), {"frames": 3}),
    ],
)
def test_what_a_mask_hides_may_be_anything(layer: Any, options: dict[str, Any]) -> None:
    """NaN in hidden tokens leaves outputs and gradients as they were, and of x itself the other outputs."""
    x, mask = normal(1, 2, 6, 8), np.array([[1, 0, 1, 1, 0, 1], [0, 1, 1, 0, 1, 1]], np.float32)
    context, p = np.where(mask[..., None] > 0, x, np.nan), layer.init(jax.random.key(0), x)

    @quick_jit
    def value_and_slopes(p: Any, context: Array) -> Any:
        def loss(p: Any, context: Array) -> Array:
            return (layer.apply(p, x, context, mask=mask, **options) ** 2).sum()

        itself = layer.apply(p, context, mask=mask, **options)
        return jax.value_and_grad(loss, (0, 1))(p, context), jnp.where(mask[..., None] > 0, itself, 0)

    hidden, shown = (value_and_slopes(p, tokens) for tokens in (context, x))
    jax.tree.map(np.testing.assert_array_equal, hidden, shown)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(hidden))


def test_a_hybrid_of_causal_halves_is_causal() -> None:
    x = normal(1, 1, 12, 8)
    both: Any = Hybrid(PoM(expansion=1, causal=True), LocalAttention(2, (12,), 3, causal=True))
    p = parameters(both, x)
    of_fifth = quick_jit(jax.grad(lambda x: (both.apply(p, x)[:, 4] ** 2).sum()))(x)
    seen = np.abs(of_fifth).sum((0, 2)) > 0
    np.testing.assert_array_equal(seen, np.arange(12) <= 4)


def test_layers_of_a_period_follow_each_other_and_the_last_is_attention() -> None:
    """In a loop with recomputation and unrolled: the blocks one by one, each with its own parameters."""
    x, condition = normal(1, 1, 9, 8), normal(2, 1, 1, 8)
    fields = {"attention_every": 2, "window": 1, "num_heads": 2, "expansion": 1}
    mixers = layer_mixers(models.build(TINY | fields), (3, 3))
    assert [mixer.func for mixer in mixers] == [PoM, LocalAttention]

    class Stack(linen.Module):
        scan: bool
        remat: str

        @linen.compact
        def __call__(self, x: Array, condition: Array) -> Array:
            blocks = tuple(ModulatedBlock(mixer, 1, parent=None) for mixer in mixers)
            period = Period(blocks, name="blocks")
            return stack(period, 4, x, condition, scan=self.scan, remat=self.remat)

    p = parameters(Stack(True, "none"), x, condition)["params"]
    assert p["blocks"].keys() == {"layer_0", "layer_1"}

    def one_by_one(p: Any) -> Array:
        y: Any = jnp.asarray(x)
        for layer in range(4):
            turn, place = divmod(layer, 2)
            own = jax.tree.map(operator.itemgetter(turn), p["blocks"][f"layer_{place}"])
            y = jnp.asarray(ModulatedBlock(mixers[place], 1).apply({"params": own}, y, condition))
        return jnp.sin(y).sum()

    def stacked(p: Any, scan: bool, remat: str) -> Array:
        return jnp.sin(jnp.asarray(Stack(scan, remat).apply({"params": p}, x, condition))).sum()

    expected = quick_jit(jax.value_and_grad(one_by_one))(p)
    found = quick_jit(jax.value_and_grad(lambda p: stacked(p, True, "dots")))(p)
    # The gradient of attention's key bias is zero but for rounding.
    assert_close(found, expected, tolerance=1e-5, least=0.1)
    assert_close(quick_jit(lambda p: stacked(p, False, "full"))(p), expected[0], tolerance=1e-5)


def test_a_model_with_both_kinds_of_hybrid_learns_and_runs_at_other_resolutions() -> None:
    fields = {"mixer": "hybrid", "attention_every": 2, "window": 1, "num_heads": 2, "head_width": 4}
    fields |= {"depth": 2, "registers": 2, "expansion": 1, "ffn_expansion": 1}
    model = models.build(TINY | fields)
    images, labels, optimizer = jnp.asarray(normal(1, 2, 8, 8, 1)), jnp.arange(2), optax.adam(1e-2)

    def loss(params: Any) -> Array:
        y: Any = model.apply({"params": params}, images, jnp.full(2, 0.5), labels)
        return jnp.mean((y - images) ** 2)

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(params, updates), state), value

    @quick_jit
    def train(key: Array) -> Any:
        params = models.init(model, key)
        return jax.lax.scan(step, (params, optimizer.init(params)), length=40)

    (params, _), losses = train(jax.random.key(0, impl="rbg"))
    assert losses[-1] < 0.5 * losses[0]
    mixers = [params["blocks"][layer]["mixer"] for layer in ("layer_0", "layer_1")]
    assert [mixer.keys() for mixer in mixers] == [{"pom", "attention"}, {"query", "key", "value", "out"}]
    wide: Any = jax.eval_shape(model.apply, {"params": params}, normal(2, 2, 10, 6, 1), jnp.zeros(2), labels)
    assert wide.shape == (2, 10, 6, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (3, 4)}, r"10 tokens .* global_tokens = 0 .* 3 x 4 = 12"),
        ({"global_tokens": 2}, r"10 tokens .* global_tokens = 2"),
        ({"global_tokens": -1, "grid": (11,)}, "global_tokens = -1"),
        ({"grid": ()}, r"grid = \(\) must be the sizes of one to three axes"),
        ({"grid": (1, 1, 2, 5)}, "one to three axes"),
        ({"grid": (0, 10)}, "at least one token"),
        ({"radius": -1}, "radius = -1 must be whole and at least 0"),
        ({"radius": 0.5}, "radius = 0.5 must be whole"),
        ({"radius": (1,)}, r"radius = \(1,\) .* 2 axes"),
        ({"mask": jnp.ones((1, 10, 10))}, r"mask has shape \(1, 10, 10\)"),
        ({"mask": jnp.ones((1, 9))}, r"mask has shape \(1, 9\)"),
        ({"k": jnp.ones((1, 9, 2, 3))}, "as many keys as queries"),
        (dict.fromkeys("qkv", jnp.ones((1, 10, 3))), r"queries, \[B, N, H, d\]"),
    ],
)
def test_windows_that_do_not_fit_are_refused_in_words(change: dict[str, Any], message: str) -> None:
    tokens = dict.fromkeys("qkv", jnp.ones((1, 10, 2, 3)))
    arguments: dict[str, Any] = tokens | {"grid": (2, 5), "radius": 1} | change
    with pytest.raises(InputError, match=message):
        ops.local_attention(**arguments)


@pytest.mark.parametrize(
    ("heads", "head_width", "message"),
    [(3, 0, "num_heads = 3 .* 8"), (0, 4, "num_heads = 0"), (2, -1, "head_width = -1")],
)
def test_heads_that_do_not_fit_are_refused(heads: int, head_width: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LocalAttention(heads, (4,), 1, head_width=head_width).init(jax.random.key(0), jnp.zeros((1, 4, 8)))


def test_a_stack_of_a_part_of_a_period_is_refused() -> None:
    period = Period((ModulatedBlock(PoM, parent=None),) * 2)
    with pytest.raises(InputError, match="depth = 3 is not a multiple of the 2 blocks"):
        stack(period, 3, jnp.zeros((1, 2, 4)), jnp.zeros((1, 1, 4)))
