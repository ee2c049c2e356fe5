"""The layers: what a mixer must and must not depend on, masks, initial values, precision, refusals."""

import os
import subprocess
import sys
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array

from pom_jax.errors import InputError
from pom_jax.nn import Dense, MultiHeadAttention, PoM
from pom_jax.nn.dense import GroupedDense
from pom_jax.nn.pom import torch_uniform

WIDTH = 8
LAYERS: dict[str, Any] = {
    "product": PoM(degree=3),
    "power": PoM(form="power", degree=3),
    "power_heads": PoM(form="power", gate_heads=4, use_bias=True),
    "power_groups": PoM(form="power", groups=2, use_bias=True),
    "attention": MultiHeadAttention(num_heads=2),
}
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
few = settings(max_examples=4, deadline=None)


def normal(seed: int, *shape: int) -> Array:
    return jax.random.normal(jax.random.key(seed), shape)


def parameters(layer: Any, seed: int = 0) -> Any:
    """Parameters drawn wide, biases and coefficients included, so that nothing vanishes."""
    shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 2, WIDTH)))
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [0.5 * normal(seed + i, *s.shape) for i, s in enumerate(leaves)])


def assert_close(a: Any, b: Any, tolerance: float = 2e-6) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max()))


@pytest.mark.smoke
@every_layer
def test_permuting_tokens_permutes_the_output(layer: Any) -> None:
    p, x, order = parameters(layer), normal(1, 2, 6, WIDTH), jnp.asarray([3, 0, 5, 1, 2, 4])
    mask = jax.random.uniform(jax.random.key(2), (2, 6))
    assert_close(layer.apply(p, x[:, order]), layer.apply(p, x)[:, order])
    assert_close(layer.apply(p, x[:, order], mask=mask[:, order]), layer.apply(p, x, mask=mask)[:, order])


@every_layer
def test_the_order_and_repetition_of_context_tokens_do_not_matter(layer: Any) -> None:
    p, x, context = parameters(layer), normal(1, 2, 3, WIDTH), normal(2, 2, 5, WIDTH)
    y = layer.apply(p, x, context)
    assert y.shape == x.shape
    assert_close(layer.apply(p, x, context[:, ::-1]), y)
    assert_close(layer.apply(p, x, jnp.concatenate([context, context], 1)), y)
    assert float(jnp.abs(layer.apply(p, x, context[:, 1:]) - y).max()) > 1e-3


@every_layer
def test_self_mixing_is_cross_mixing_with_itself(layer: Any) -> None:
    p, x = parameters(layer), normal(1, 2, 4, WIDTH)
    np.testing.assert_array_equal(layer.apply(p, x), layer.apply(p, x, x))


@every_layer
def test_a_hidden_token_has_no_influence_and_equal_rows_equal_one_mask(layer: Any) -> None:
    p, x, context = parameters(layer), normal(1, 2, 3, WIDTH), normal(2, 2, 5, WIDTH)
    mask = jnp.asarray([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]])
    y, slope = jax.vjp(lambda c: layer.apply(p, x, c, mask=mask), context)
    assert_close(y[0], layer.apply(p, x[:1], context[:1, jnp.asarray([0, 1, 3])])[0])
    hidden = slope(y)[0] * (1 - mask)[..., None]
    assert not np.asarray(hidden).any()
    for same in (mask.astype(bool), jnp.broadcast_to(mask[:, None], (2, 3, 5))):
        assert_close(layer.apply(p, x, context, mask=same), y)


@every_layer
def test_each_query_sees_what_its_own_row_of_the_mask_lets_it_see(layer: Any) -> None:
    p, x, context = parameters(layer), normal(1, 1, 3, WIDTH), normal(2, 1, 5, WIDTH)
    rows = jax.random.uniform(jax.random.key(3), (1, 3, 5))
    whole = layer.apply(p, x, context, mask=rows)
    for m in range(3):
        assert_close(whole[:, m], layer.apply(p, x[:, m : m + 1], context, mask=rows[:, m])[:, 0], 5e-6)


@every_layer
def test_no_context_leaves_the_output_bias_and_no_batch_nothing(layer: Any) -> None:
    p, x = parameters(layer), normal(1, 2, 4, WIDTH)
    bias = p["params"]["out"].get("bias", jnp.zeros(WIDTH))
    np.testing.assert_array_equal(layer.apply(p, x, x[:, :0]), jnp.broadcast_to(bias, x.shape))
    assert layer.apply(p, x[:0]).shape == (0, 4, WIDTH)


@every_layer
def test_an_empty_mask_leaves_the_output_bias_and_finite_gradients(layer: Any) -> None:
    p, x = parameters(layer), normal(1, 2, 4, WIDTH)
    bias = p["params"]["out"].get("bias", jnp.zeros(WIDTH))
    for empty in (jnp.zeros((2, 4)), jnp.zeros((2, 4, 4), bool)):
        y, slope = jax.vjp(lambda p, x, m=empty: layer.apply(p, x, mask=m), p, x)
        np.testing.assert_allclose(y, jnp.broadcast_to(bias, y.shape))
        chex.assert_tree_all_finite(slope(jnp.ones_like(y)))


@few
@given(degree=st.integers(1, 4), scale=st.sampled_from([0.5, 3.0]))
def test_the_state_is_a_polynomial_of_that_degree_where_the_activation_is_linear(
    degree: int, scale: float
) -> None:
    """The power form's activation is linear above zero, so a positive input s times as large gives s^p."""
    layer: Any = PoM(form="power", degree=degree, clamp=None)
    p, x = parameters(layer), normal(1, 1, 3, WIDTH)
    top = jnp.zeros((2 * WIDTH, degree)).at[:, -1].set(1.0)
    kernel = jnp.abs(p["params"]["features"]["kernel"])
    p = {"params": p["params"] | {"coefficients": top, "features": {"kernel": kernel}}}
    context = jnp.abs(normal(2, 1, 5, WIDTH))
    assert_close(layer.apply(p, x, scale * context), scale**degree * layer.apply(p, x, context), 1e-5)


def test_degree_one_confuses_contexts_that_degree_two_tells_apart() -> None:
    """Equal means, different second moments, in the linear range of the activation."""
    near, far = jnp.full((1, 2, WIDTH), 1.0), jnp.asarray([0.5, 1.5])[None, :, None] * jnp.ones((1, 2, WIDTH))
    for degree, differs in ((1, False), (2, True)):
        layer: Any = PoM(form="power", degree=degree, clamp=None)
        p = jax.tree.map(jnp.abs, parameters(layer))
        x = normal(1, 1, 3, WIDTH)
        gap = jnp.abs(layer.apply(p, x, near) - layer.apply(p, x, far)).max()
        assert bool(gap > 1e-3) is differs


def test_options_of_the_power_form_change_what_they_name() -> None:
    x = 5 * normal(1, 1, 4, WIDTH)
    plain = PoM(form="power")
    p = parameters(plain)
    y: Any = plain.apply(p, x)
    assert_close(PoM(form="power", gate_heads=0).apply(p, x), y, 0)
    for other in (
        PoM(form="power", clamp=(-0.1, 1.0)),
        PoM(form="power", clamp=None),
        PoM(form="power", slope=0.2),
    ):
        assert float(jnp.abs(other.apply(p, x) - y).max()) > 1e-3
    heads = parameters(LAYERS["power_heads"])["params"]
    assert heads["gate"]["kernel"].shape == (WIDTH, 4)
    groups = parameters(LAYERS["power_groups"])["params"]
    assert groups["features"]["kernel"].shape == (2, WIDTH // 2, WIDTH)


def test_groups_do_not_mix_channels_of_different_groups() -> None:
    layer = GroupedDense(features=6, groups=2)
    p = layer.init(jax.random.key(0), jnp.zeros((1, 4)))
    jacobian = jax.jacobian(lambda x: layer.apply(p, x))(normal(0, 4))
    own = np.kron(np.eye(2), np.ones((3, 2)))
    np.testing.assert_array_equal(np.asarray(jacobian) != 0, own != 0)


def test_parameter_names_and_shapes_and_counts() -> None:
    def shapes(layer: Any) -> dict[str, tuple[int, ...]]:
        tree: Any = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 2, WIDTH)))["params"]
        return {
            jax.tree_util.keystr(k, simple=True, separator="/"): v.shape
            for k, v in jax.tree.leaves_with_path(tree)
        }

    assert shapes(PoM(degree=3, expansion=2)) == {
        "features/kernel": (8, 3, 16),
        "features/bias": (3, 16),
        "gate/kernel": (8, 3, 16),
        "gate/bias": (3, 16),
        "out/kernel": (3, 16, 8),
        "out/bias": (8,),
    }
    assert shapes(PoM(form="power", degree=3, gate_heads=4)) == {
        "features/kernel": (8, 16),
        "gate/kernel": (8, 4),
        "gate/bias": (4,),
        "coefficients": (16, 3),
        "out/kernel": (16, 8),
    }
    attention = shapes(MultiHeadAttention(num_heads=2))
    assert attention["query/kernel"] == (8, 2, 4)
    assert attention["out/kernel"] == (2, 4, 8)
    wide = jax.eval_shape(
        PoM(form="power", gate_heads=16, use_bias=True).init, jax.random.key(0), jnp.zeros((1, 1, 1024))
    )
    assert sum(np.prod(v.shape) for v in jax.tree.leaves(wide)) == 4_215_824


def test_initial_values_have_the_spread_of_the_authors_matrices() -> None:
    x = jnp.zeros((1, 2, 64))

    def limit(fan_in: int, fan_out: int) -> float:
        return (6 / (fan_in + fan_out)) ** 0.5

    product = PoM().init(jax.random.key(0), x)["params"]
    power = PoM(form="power").init(jax.random.key(0), x)["params"]
    grouped = PoM(form="power", groups=4).init(jax.random.key(0), x)["params"]
    attention = MultiHeadAttention(num_heads=4).init(jax.random.key(0), x)["params"]
    expected: list[tuple[Any, float]] = [
        (product["features"]["kernel"], limit(64, 256)),
        (product["gate"]["kernel"], limit(64, 256)),
        (product["out"]["kernel"], limit(256, 64)),
        (power["features"]["kernel"], limit(64, 256)),
        (power["gate"]["kernel"], limit(64, 256)),
        (grouped["gate"]["kernel"], limit(64, 128)),
        (grouped["features"]["kernel"], 16**-0.5),
        (attention["key"]["kernel"], limit(64, 192)),
        (attention["out"]["kernel"], limit(64, 64)),
        (PoM(kernel_init=torch_uniform).init(jax.random.key(0), x)["params"]["out"]["kernel"], 256**-0.5),
    ]
    for kernel, bound in expected:
        assert bound * 0.98 < float(jnp.abs(kernel).max()) <= bound
        assert float(kernel.std()) == pytest.approx(bound / 3**0.5, rel=0.03)
    for tree in (product, power, attention):
        assert not any(
            np.asarray(v["bias"]).any() for v in tree.values() if isinstance(v, dict) and "bias" in v
        )
    coefficients = np.asarray(power["coefficients"])
    assert np.abs(coefficients).max() == np.float32(1e-3)
    assert (np.abs(coefficients) == np.float32(1e-3)).mean() > 0.98
    assert abs(coefficients.mean()) < 2e-4


@every_layer
def test_bfloat16_products_stay_near_float64_and_parameters_float32(layer: Any) -> None:
    p, x = parameters(layer), normal(1, 2, 300, WIDTH)
    low = layer.clone(dtype=jnp.bfloat16)
    y = jax.jit(low.apply)(p, x)
    assert y.dtype == jnp.bfloat16
    assert all(
        v.dtype == jnp.float32 for v in jax.tree.leaves(jax.eval_shape(low.init, jax.random.key(0), x))
    )
    exact = layer.apply(p, x)
    error = np.abs(np.asarray(y, np.float64) - np.asarray(exact, np.float64)).max()
    assert error < 0.03 * float(jnp.abs(exact).max())


def test_the_mean_over_many_tokens_loses_nothing_to_bfloat16_products() -> None:
    """Ten thousand equal tokens have the mean of one; a sum kept in bfloat16 would stall at 256 of them."""
    layer = PoM(dtype=jnp.bfloat16)
    p, token = parameters(layer), normal(1, 1, 1, WIDTH)
    one, many = layer.apply(p, token), layer.apply(p, token, jnp.broadcast_to(token, (1, 10_000, WIDTH)))
    np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(many, np.float32))


@pytest.mark.parametrize("axis", ["batch", "width"])
def test_dense_contracts_the_axes_it_is_told(axis: str) -> None:
    layer = Dense((2, 3), axes=1) if axis == "batch" else Dense(5, axes=2, use_bias=False)
    x = normal(0, 3, 4, 6)
    p = layer.init(jax.random.key(0), x)
    kernel = p["params"]["kernel"]
    expected = (
        jnp.einsum("abi,iko->abko", x, kernel) if axis == "batch" else jnp.einsum("abi,bio->ao", x, kernel)
    )
    assert_close(layer.apply(p, x), expected)


SHARDED = """
import pom_jax, jax, re
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from pom_jax.nn import PoM
layer, x = PoM(), jax.random.normal(jax.random.key(1), (8, 32, 16))
p = layer.init(jax.random.key(0), x)
slopes = lambda p, x: jax.value_and_grad(lambda p, x: (layer.apply(p, x) ** 2).mean(), (0, 1))(p, x)
one = jax.jit(slopes)(p, x)
for shape, axes in (((8,), ("data",)), ((2, 4), ("data", "context"))):
    mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))
    args = jax.device_put(p, NamedSharding(mesh, P())), jax.device_put(x, NamedSharding(mesh, P(*axes)))
    with jax.set_mesh(mesh):
        program = jax.jit(slopes).lower(*args).compile()
    many = program(*args)
    gaps = jax.tree.map(lambda a, b: float(abs(a - b).max() / abs(b).max()), many, one)
    assert max(jax.tree.leaves(gaps)) < 5e-6, gaps
    assert "all-reduce" in program.as_text()
    print(len(re.findall("all-gather|all-to-all|collective-permute", program.as_text())))
"""


def test_no_tokens_move_when_the_batch_or_the_tokens_are_split_over_devices() -> None:
    """Eight devices give the values and gradients of one, and only sums travel between them."""
    run = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["0", "0"]


MISTAKES = [
    (PoM(form="cubic"), {}, "form = 'cubic' is not one of product, power"),
    (PoM(degree=0), {}, "degree = 0 must be a whole number of at least 1"),
    (PoM(expansion=0), {}, "expansion = 0"),
    (PoM(expansion=cast(int, 1.5)), {}, "expansion = 1.5"),
    (PoM(gate_heads=2), {}, "gate_heads = 2 .* form = 'power'"),
    (PoM(form="power", groups=3), {}, "groups = 3 does not divide the width D = 8"),
    (PoM(form="power", gate_heads=5), {}, "gate_heads = 5 does not divide .* E = 2 \\* 8 = 16"),
    (PoM(form="power", clamp=(1.0, 0.0)), {}, "clamp"),
    (MultiHeadAttention(num_heads=3), {}, "num_heads = 3 does not divide the width 8"),
]
for _layer in (PoM(), MultiHeadAttention(num_heads=2)):
    MISTAKES += [
        (_layer, {"context": jnp.zeros((2, 3, 4))}, "batch and width must be equal"),
        (_layer, {"context": jnp.zeros((1, 3, 8))}, "batch and width must be equal"),
        (_layer, {"context": jnp.zeros((2, 8))}, "context has shape \\(2, 8\\)"),
        (_layer, {"mask": jnp.ones((2, 3))}, "mask has shape \\(2, 3\\)"),
        (_layer, {"mask": jnp.ones((2, 4, 3))}, "mask has shape \\(2, 4, 3\\)"),
        (_layer, {"mask": jnp.ones(4)}, "mask has shape \\(4,\\)"),
    ]


@pytest.mark.parametrize(("layer", "arguments", "message"), MISTAKES)
def test_what_does_not_fit_is_refused_in_words(layer: Any, arguments: dict[str, Array], message: str) -> None:
    with pytest.raises(InputError, match=message):
        layer.init(jax.random.key(0), jnp.zeros((2, 4, WIDTH)), **arguments)
