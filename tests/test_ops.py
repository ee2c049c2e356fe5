"""The pure functions: quick forms equal plain ones in value and gradient; states add; nothing becomes NaN."""

import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import Array

from pom_jax.errors import InputError
from pom_jax.ops import (
    attention,
    clamped_leaky_relu,
    dense,
    gelu,
    hard_sigmoid,
    layer_norm,
    merge_states,
    power_features,
    prefix_sum,
    product_features,
    state_mean,
    token_state,
)
from pom_jax.ops.frames import MAX_PADDING, frame_lengths, tiles
from tests.layers import assert_close, few, normal, quick_jit, uniform


def value_and_vjp(f: Callable[..., Array], *args: Array) -> tuple[Array, tuple[Array, ...]]:
    def both(*args: Array) -> tuple[Array, tuple[Array, ...]]:
        y, vjp = jax.vjp(f, *args)
        return y, vjp(normal(99, *y.shape).astype(y.dtype))

    return quick_jit(both)(*args)


def plain_dense(x: Array, kernel: Array, bias: Array, axes: int = 1) -> Array:
    return jnp.tensordot(x, kernel, axes=axes) + bias


dense_shapes = pytest.mark.parametrize(
    ("batch", "inputs", "outputs"),
    [
        ((3, 5), (4,), (6,)),
        ((3, 5), (4,), (2, 3)),
        ((3, 5), (2, 3), (4,)),
        ((), (4,), (6,)),
        ((2, 0), (4,), (6,)),
    ],
)


@pytest.mark.smoke
@dense_shapes
def test_dense_equals_the_plain_product_in_value_and_gradients(
    batch: tuple[int, ...], inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> None:
    axes = len(inputs)
    args = normal(0, *batch, *inputs), normal(1, *inputs, *outputs), normal(2, *outputs)
    fast = value_and_vjp(lambda x, k, b: dense(x, k, b, axes=axes), *args)
    assert_close(fast, value_and_vjp(lambda x, k, b: plain_dense(x, k, b, axes), *args))


def test_dense_under_vmap_scan_remat_and_twice_differentiated() -> None:
    x, kernels, biases = normal(0, 2, 5, 4), normal(1, 3, 4, 4), normal(2, 3, 4)

    def chain(product: Callable[[Array, Array, Array], Array], remat: bool) -> Callable[..., Array]:
        def layer(y: Array, kb: tuple[Array, Array]) -> tuple[Array, None]:
            return jnp.tanh(product(y, *kb)), None

        body = jax.checkpoint(layer) if remat else layer
        return lambda x, kernels, biases: jnp.square(jax.lax.scan(body, x, (kernels, biases))[0]).sum()

    fast, plain = chain(dense, remat=True), chain(plain_dense, remat=False)
    slope = jax.grad(fast, (0, 1, 2))
    first = jax.jit(slope)(x, kernels, biases)
    assert_close(first, jax.jit(jax.grad(plain, (0, 1, 2)))(x, kernels, biases))
    per_example = jax.jit(jax.vmap(slope, (0, None, None)))(x, kernels, biases)
    assert_close(jax.tree.map(lambda g: g.sum(0), per_example[1:]), first[1:])

    def sharpness(f: Callable[..., Array]) -> Callable[..., Array]:
        return lambda k: jnp.square(jax.grad(f, 1)(x, k, biases)).sum()

    twice = [jax.jit(jax.grad(sharpness(f)))(kernels) for f in (fast, plain)]
    assert_close(twice[0], twice[1], 1e-5)
    tangents = normal(3, *x.shape), normal(4, *kernels.shape), normal(5, *biases.shape)
    forward = [jax.jit(lambda *a, f=f: jax.jvp(f, a, tangents))(x, kernels, biases) for f in (fast, plain)]
    assert_close(forward[0], forward[1], 1e-5)


def test_dense_refuses_axes_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"x \(2, 3\).*kernel \(4, 5\)"):
        dense(normal(0, 2, 3), normal(1, 4, 5))
    with pytest.raises(InputError, match=r"bias \(4,\)"):
        dense(normal(0, 2, 4), normal(1, 4, 5), normal(2, 4))


def test_analytic_derivatives_equal_those_of_the_plain_formulas() -> None:
    x, t = 3 * normal(0, 4, 7, 16) + 1, normal(1, 4, 7, 16)

    def plain_norm(x: Array) -> Array:
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)

    def plain_gelu(x: Array) -> Array:
        return jax.nn.gelu(x, approximate=False)

    for fast, plain in ((layer_norm, plain_norm), (gelu, plain_gelu)):
        assert_close(value_and_vjp(fast, x), value_and_vjp(plain, x))
        assert_close(jax.jvp(fast, (x,), (t,)), jax.jvp(plain, (x,), (t,)))
        slopes = [jax.grad(lambda x, f=f: (f(x) ** 3).sum()) for f in (fast, plain)]
        twice = [jax.jit(jax.grad(lambda x, s=s: jnp.sin(s(x)).sum())) for s in slopes]
        assert_close(twice[0](x), twice[1](x), 5e-5)


def test_gelu_is_exact_to_float32() -> None:
    x = np.linspace(-9, 9, 1001, dtype=np.float32)
    exact = [v * statistics.NormalDist().cdf(v) for v in x.tolist()]
    np.testing.assert_allclose(gelu(jnp.asarray(x)), exact, rtol=2e-6, atol=1e-6)


def test_layer_norm_of_bfloat16_is_computed_in_float32() -> None:
    x = (normal(0, 3, 512) * 0.1 + 5).astype(jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    exact = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    assert layer_norm(x).dtype == jnp.float32
    np.testing.assert_allclose(layer_norm(x), exact, atol=1e-4)


def test_constant_rows_have_a_finite_norm_and_gradient() -> None:
    y, (g,) = value_and_vjp(layer_norm, jnp.full((2, 8), 3.0))
    assert not np.asarray(y).any()
    assert np.isfinite(g).all()


@pytest.mark.parametrize("degree", [1, 2, 5])
def test_product_features_are_cumulative_products_of_gelus(degree: int) -> None:
    u = normal(0, 2, 3, degree, 4)

    def naive(u: Array) -> Array:
        factors = jax.nn.gelu(u, approximate=False)
        return jnp.stack([factors[..., : p + 1, :].prod(-2) for p in range(degree)], -2)

    assert_close(value_and_vjp(product_features, u), value_and_vjp(naive, u), 5e-6)


@pytest.mark.parametrize(("degree", "scale"), [(1, 1.0), (2, 8.0), (5, 1.0)])
def test_power_features_are_weighted_powers(degree: int, scale: float) -> None:
    u, coefficients = scale * normal(0, 2, 3, 4), normal(1, 4, degree)

    def naive(u: Array, coefficients: Array) -> Array:
        a = jnp.clip(jax.nn.leaky_relu(u), -0.1, 6.0)
        return sum((coefficients[:, p] * a ** (p + 1) for p in range(degree)), jnp.zeros(()))

    args = u, coefficients
    assert_close(value_and_vjp(power_features, *args), value_and_vjp(naive, *args), 5e-6)


def test_activation_and_gate_at_their_corners() -> None:
    u = jnp.asarray([-20.0, -10.0, -1.0, 0.0, 2.0, 6.0, 7.0])
    slopes = jax.vmap(jax.grad(clamped_leaky_relu))(u)
    np.testing.assert_allclose(clamped_leaky_relu(u), [-0.1, -0.1, -0.01, 0, 2, 6, 6], rtol=1e-6)
    np.testing.assert_allclose(slopes, [0, 0.01, 0.01, 0.01, 1, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(clamped_leaky_relu(u, clamp=None)[jnp.asarray([0, 6])], [-0.2, 7])
    np.testing.assert_allclose(
        hard_sigmoid(jnp.asarray([-4.0, -3.0, 0.0, 1.5, 3.0, 9.0])), [0, 0, 0.5, 0.75, 1, 1]
    )


def test_degree_one_cannot_tell_contexts_of_equal_mean_and_degree_two_can() -> None:
    near, far = jnp.asarray([[[1.0], [1.0]]]), jnp.asarray([[[0.0], [2.0]]])
    for degree, differs in ((1, False), (2, True)):
        means = [state_mean(token_state(power_features(x, jnp.ones((1, degree))))) for x in (near, far)]
        assert bool(jnp.any(means[0] != means[1])) is differs


@few
@given(tokens=st.integers(2, 9), cut=st.integers(1, 8), seed=st.integers(0, 99))
def test_states_of_parts_add_up_to_the_state_of_the_whole(tokens: int, cut: int, seed: int) -> None:
    x, mask = normal(seed, 2, tokens, 2, 3), uniform(seed, 2, tokens)

    @quick_jit
    def outputs(x: Array, mask: Array) -> list[object]:
        found = []
        for m in (None, mask, jnp.stack([mask, 1 - mask], 1)):
            halves = slice(min(cut, tokens - 1)), slice(min(cut, tokens - 1), None)
            parts = merge_states(*(token_state(x[:, s], None if m is None else m[..., s]) for s in halves))
            whole = token_state(x, m)
            found += [((parts, state_mean(parts)), (whole, state_mean(whole)))]
        return found

    for parts, whole in outputs(x, mask):
        assert_close(parts, whole)


@few
@given(
    tokens=st.one_of(st.integers(0, 3), st.integers(30, 70), st.integers(1000, 1100)), exclusive=st.booleans()
)
def test_running_sums_are_those_of_float64(tokens: int, exclusive: bool) -> None:
    """Of any length, the element itself left out or not; the gradient is the sum of what follows."""
    x, weigh = normal(tokens, 2, tokens, 2, 3), normal(99, 2, tokens, 2, 3)
    y, (slope,) = value_and_vjp(lambda x: prefix_sum(x, exclusive=exclusive), x)
    exact, after = (
        np.cumsum(x.astype(np.float64), 1),
        np.cumsum(weigh[:, ::-1].astype(np.float64), 1)[:, ::-1],
    )
    if exclusive:
        exact, after = exact - x, after - weigh
    assert_close(y, exact, 2e-6, least=1.0)
    assert_close(slope, after, 2e-6, least=1.0)


def test_running_sums_in_any_dtype_are_float32_and_do_not_drift() -> None:
    x = (1 + normal(0, 1, 2**16, 1)).astype(jnp.bfloat16)
    y = quick_jit(prefix_sum)(x)
    assert y.dtype == jnp.float32
    assert_close(y, np.cumsum(x.astype(np.float64), 1), 3e-7)


@few
@given(st.lists(st.integers(1, 40), min_size=1, max_size=9).map(tuple))
def test_tiles_hold_each_token_of_ragged_frames_once_with_little_padding(lengths: tuple[int, ...]) -> None:
    tokens, number = sum(lengths), np.repeat(np.arange(len(lengths)), lengths)
    cut = tiles(frame_lengths(lengths, tokens))
    assert cut.used.sum() == tokens
    assert cut.used.size <= MAX_PADDING * tokens
    x = np.arange(1.0, tokens + 1, dtype=np.float32)[None]

    @quick_jit
    def outputs(x: Array) -> object:
        split = cut.split(x)
        return (
            split,
            cut.join(split),
            cut.sum_by_frame((split * cut.used).sum(-1)),
            cut.spread(x[:, : cut.frames]),
        )

    split, joined, sums, spread = outputs(x)
    np.testing.assert_array_equal(joined, x)
    np.testing.assert_array_equal(split[0][cut.used], x[0])
    np.testing.assert_array_equal(sums[0], np.bincount(number, x[0]))
    np.testing.assert_array_equal(spread[0], 1 + cut.frame)
    assert (number[cut.index.reshape(cut.used.shape)] == cut.frame[:, None]).all()


def test_weights_of_a_mask_count_tokens_that_often() -> None:
    x, times = normal(0, 1, 3, 4), jnp.asarray([[2, 0, 3]])
    repeated = x[:, jnp.asarray([0, 0, 2, 2, 2])]
    assert_close(token_state(x, times), token_state(repeated))
    for rows in (times, jnp.stack([times, times], 1)):
        q, k = normal(1, 1, 2, 2, 4), normal(2, 1, 3, 2, 4)
        k_repeated = k[:, jnp.asarray([0, 0, 2, 2, 2])]
        assert_close(attention(q, k, k, rows), attention(q, k_repeated, k_repeated), 1e-5)


def test_an_empty_mask_gives_zeros_and_finite_gradients() -> None:
    x, mask = normal(0, 2, 3, 4), jnp.asarray([[0.0, 0, 0], [1, 0, 1]])
    mean, (g,) = value_and_vjp(lambda x: state_mean(token_state(x, mask)), x)
    assert not np.asarray(mean[0]).any()
    assert np.isfinite(g).all()
    assert not np.asarray(g[0]).any()
    q, k = 50 * normal(1, 2, 3, 2, 4), 50 * normal(2, 2, 3, 2, 4)
    for m in (mask, jnp.stack([mask] * 3, 1)):
        y, grads = value_and_vjp(lambda q, k, v, m=m: attention(q, k, v, m), q, k, k)
        assert not np.asarray(y[0]).any()
        assert all(np.isfinite(g).all() for g in grads)


def test_attention_is_the_softmax_average_of_values() -> None:
    q, k, v = normal(0, 2, 3, 2, 4), normal(1, 2, 5, 2, 4), normal(2, 2, 5, 2, 4)
    mask = uniform(3, 2, 3, 5) < 0.7
    mask[..., 0] = True

    def naive(q: Array, k: Array, v: Array) -> Array:
        logits = jnp.einsum("bmhd,bnhd->bhmn", q, k) / 2
        return jnp.einsum("bhmn,bnhd->bmhd", jax.nn.softmax(logits, where=mask[:, None]), v)

    fast = value_and_vjp(lambda q, k, v: attention(q, k, v, mask), q, k, v)
    assert_close(fast, value_and_vjp(naive, q, k, v), 5e-6)


def test_attention_to_no_tokens_gives_zeros() -> None:
    q, none = normal(0, 2, 3, 2, 4), jnp.zeros((2, 0, 2, 4))
    y, grads = value_and_vjp(attention, q, none, none)
    assert not y.any()
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (1, 1, 1, 3), (3, 3), (2, 5, 4)])
def test_masks_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"mask has shape .* \[B, N\] = \(2, 3\)"):
        token_state(normal(0, 2, 3, 4), jnp.ones(shape))
