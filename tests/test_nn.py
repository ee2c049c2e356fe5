"""The layers: what a mixer must and must not depend on, masks, initial values, precision, refusals."""

from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from flax.nnx import bridge
from hypothesis import given
from hypothesis import strategies as st
from jax import Array

from pom_jax.errors import InputError
from pom_jax.nn import Dense, MultiHeadAttention, PoM
from pom_jax.nn.dense import GroupedDense
from pom_jax.nn.pom import torch_uniform
from tests.layers import WIDTH, assert_close, few, gap, normal, parameters, quick_jit, uniform

LAYERS: dict[str, Any] = {
    "product": PoM(degree=3),
    "power": PoM(form="power", degree=3),
    "power_heads": PoM(form="power", gate_heads=4, use_bias=True),
    "power_groups": PoM(form="power", groups=2, use_bias=True),
    "attention": MultiHeadAttention(num_heads=2),
}
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())


@pytest.mark.smoke
@every_layer
def test_permuting_tokens_permutes_the_output(layer: Any) -> None:
    p, x, order, mask = (
        parameters(layer),
        normal(1, 2, 6, WIDTH),
        np.array([3, 0, 5, 1, 2, 4]),
        uniform(2, 2, 6),
    )

    @quick_jit
    def both(x: Array, mask: Array) -> tuple[Array, Array]:
        return layer.apply(p, x), layer.apply(p, x, mask=mask)

    plain, masked = both(x, mask)
    assert_close(both(x[:, order], mask[:, order]), (plain[:, order], masked[:, order]))
    assert gap(plain, masked) > 1e-3


@every_layer
def test_the_order_and_repetition_of_context_tokens_do_not_matter(layer: Any) -> None:
    p, x, context = parameters(layer), normal(1, 2, 3, WIDTH), normal(2, 2, 5, WIDTH)

    @quick_jit
    def outputs(context: Array) -> tuple[Array, ...]:
        twice, less = jnp.concatenate([context, context], 1), context[:, 1:]
        return tuple(layer.apply(p, x, c) for c in (context, context[:, ::-1], twice, less))

    y, reversed_order, repeated, without_one = outputs(context)
    assert y.shape == x.shape
    assert_close((reversed_order, repeated), (y, y))
    assert gap(without_one, y) > 1e-3


@every_layer
def test_self_mixing_is_cross_mixing_with_itself(layer: Any) -> None:
    p, x = parameters(layer), normal(1, 2, 4, WIDTH)
    itself, cross = quick_jit(lambda x, context: (layer.apply(p, x), layer.apply(p, x, context)))(x, x)
    assert_close(itself, cross, 1e-6)


@every_layer
def test_a_hidden_token_has_no_influence_and_equal_rows_equal_one_mask(layer: Any) -> None:
    p, x, context = parameters(layer), normal(1, 2, 3, WIDTH), normal(2, 2, 5, WIDTH)
    mask = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]])

    @quick_jit
    def outputs(context: Array) -> tuple[Array, ...]:
        y, slope = jax.vjp(lambda c: layer.apply(p, x, c, mask=jnp.asarray(mask)), context)
        seen = layer.apply(p, x[:1], context[:1, np.array([0, 1, 3])])
        rows = layer.apply(p, x, context, mask=jnp.asarray(np.repeat(mask[:, None], 3, 1)))
        booleans = layer.apply(p, x, context, mask=jnp.asarray(mask.astype(bool)))
        return y, slope(y)[0], seen, rows, booleans

    y, slope, seen, rows, booleans = outputs(context)
    assert_close(y[:1], seen)
    assert_close((rows, booleans), (y, y))
    assert not slope[mask == 0].any()
    assert slope[mask == 1].all()


@every_layer
def test_each_query_sees_what_its_own_row_of_the_mask_lets_it_see(layer: Any) -> None:
    p, x, context, rows = parameters(layer), normal(1, 3, 1, WIDTH), normal(2, 1, 5, WIDTH), uniform(3, 3, 5)
    same = np.repeat(context, 3, 0)
    apply = quick_jit(lambda x, context, mask: layer.apply(p, x, context, mask=mask))
    whole = apply(x.reshape(1, 3, WIDTH), context, rows[None])
    assert_close(whole, apply(x, same, rows).reshape(whole.shape), 5e-6)


@every_layer
def test_seeing_nothing_leaves_the_output_bias_and_finite_gradients(layer: Any) -> None:
    """An empty mask, rows of an empty mask, no context at all; and no batch leaves nothing."""
    p, x = parameters(layer), normal(1, 2, 4, WIDTH)
    bias = p["params"]["out"].get("bias", np.zeros(WIDTH))

    @quick_jit
    def outputs(p: Any, x: Array) -> Any:
        empty: list[dict[str, Any]] = [{"mask": jnp.zeros((2, 4))}, {"mask": jnp.zeros((2, 4, 4), bool)}]
        found = []
        for options in (*empty, {"context": x[:, :0]}):
            y, slope = jax.vjp(lambda p, x, options=options: layer.apply(p, x, **options), p, x)
            found.append((y, slope(jnp.ones_like(y))))
        return found

    for y, slopes in outputs(p, x):
        np.testing.assert_array_equal(y, np.broadcast_to(bias, y.shape))
        chex.assert_tree_all_finite(slopes)
    assert jax.eval_shape(lambda x: layer.apply(p, x), x[:0]).shape == (0, 4, WIDTH)


@few
@given(degree=st.integers(1, 4), scale=st.sampled_from([0.5, 3.0]))
def test_the_state_is_a_polynomial_of_that_degree_where_the_activation_is_linear(
    degree: int, scale: float
) -> None:
    """The power form's activation is linear above zero, so a positive input s times as large gives s^p."""
    layer: Any = PoM(form="power", degree=degree, clamp=None)
    p, x, context = parameters(layer), normal(1, 1, 3, WIDTH), np.abs(normal(2, 1, 5, WIDTH))
    top = np.eye(degree, dtype=np.float32)[-1:].repeat(2 * WIDTH, 0)
    kernel = np.abs(p["params"]["features"]["kernel"])
    p = {"params": p["params"] | {"coefficients": top, "features": {"kernel": kernel}}}
    apply = quick_jit(lambda context: layer.apply(p, x, context))
    assert_close(apply(scale * context), scale**degree * apply(context), 1e-5)


def test_degree_one_confuses_contexts_that_degree_two_tells_apart() -> None:
    """Equal means, different second moments, in the linear range of the activation."""
    near = np.ones((1, 2, WIDTH), np.float32)
    far = np.array([0.5, 1.5], np.float32)[None, :, None] * near
    for degree, differs in ((1, False), (2, True)):
        layer: Any = PoM(form="power", degree=degree, clamp=None)
        p = jax.tree.map(np.abs, parameters(layer))
        apply = quick_jit(lambda context, layer=layer, p=p: layer.apply(p, near, context))
        assert (gap(apply(near), apply(far)) > 1e-3) is differs


@pytest.mark.parametrize("layer", [PoM(), PoM(form="power")])
def test_a_token_and_its_context_both_tell_in_the_output(layer: PoM) -> None:
    """Necessary for a contextual mapping: one token in two contexts, two tokens in one context."""
    p, x, context = parameters(layer), normal(1, 2, 1, WIDTH), normal(2, 2, 5, WIDTH)
    y = quick_jit(lambda x, context: layer.apply(p, x, context))
    assert gap(y(x, context), y(x, context[::-1])) > 1e-2
    assert gap(y(x, context), y(x[::-1], context)) > 1e-2


def test_options_of_the_power_form_change_what_they_name() -> None:
    x = 5 * normal(1, 1, 4, WIDTH)
    p = parameters(PoM(form="power"))
    options: list[dict[str, Any]] = [{}, {"gate_heads": 0}]
    options += [{"clamp": (-0.1, 1.0)}, {"clamp": None}, {"slope": 0.2}]
    y, same, *others = quick_jit(lambda x: [PoM(form="power", **o).apply(p, x) for o in options])(x)
    assert_close(same, y, 1e-6)
    assert all(gap(other, y) > 1e-3 for other in others)
    heads = parameters(LAYERS["power_heads"])["params"]
    assert heads["gate"]["kernel"].shape == (WIDTH, 4)
    groups = parameters(LAYERS["power_groups"])["params"]
    assert groups["features"]["kernel"].shape == (2, WIDTH // 2, WIDTH)


def test_groups_do_not_mix_channels_of_different_groups() -> None:
    layer = GroupedDense(features=6, groups=2)
    p = parameters(layer, 4)
    jacobian = quick_jit(jax.jacobian(lambda x: layer.apply(p, x)))(normal(0, 4))
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
    reads = shapes(PoM(degree=3, reads=("own", "past")))
    assert reads["gate/kernel"] == (8, 2, 3, 16)
    assert reads["out/kernel"] == (2, 3, 16, 8)
    attention = shapes(MultiHeadAttention(num_heads=2))
    assert attention["query/kernel"] == (8, 2, 4)
    assert attention["out/kernel"] == (2, 4, 8)
    wide = jax.eval_shape(
        PoM(form="power", gate_heads=16, use_bias=True).init, jax.random.key(0), jnp.zeros((1, 1, 1024))
    )
    assert sum(np.prod(v.shape) for v in jax.tree.leaves(wide)) == 4_215_824


def test_initial_values_have_the_spread_of_the_authors_matrices() -> None:
    layers: dict[str, Any] = {
        "product": PoM(),
        "power": PoM(form="power"),
        "grouped": PoM(form="power", groups=4),
        "attention": MultiHeadAttention(num_heads=4),
        "torch": PoM(kernel_init=torch_uniform),
    }
    x = jnp.zeros((1, 2, 64))
    start = quick_jit(lambda key: {k: layer.init(key, x)["params"] for k, layer in layers.items()})
    drawn = jax.device_get(start(jax.random.key(0)))

    def limit(fan_in: int, fan_out: int) -> float:
        return (6 / (fan_in + fan_out)) ** 0.5

    bounds = {
        ("product", "features"): limit(64, 256),
        ("product", "gate"): limit(64, 256),
        ("product", "out"): limit(256, 64),
        ("power", "features"): limit(64, 256),
        ("power", "gate"): limit(64, 256),
        ("grouped", "gate"): limit(64, 128),
        ("grouped", "features"): 16**-0.5,
        ("attention", "key"): limit(64, 192),
        ("attention", "out"): limit(64, 64),
        ("torch", "out"): 256**-0.5,
    }
    for (layer, name), bound in bounds.items():
        kernel = drawn[layer][name]["kernel"]
        assert bound * 0.98 < float(np.abs(kernel).max()) <= bound
        assert float(kernel.std()) == pytest.approx(bound / 3**0.5, rel=0.03)
    for name in ("product", "power", "attention"):
        assert not any(v["bias"].any() for v in drawn[name].values() if isinstance(v, dict) and "bias" in v)
    coefficients = drawn["power"]["coefficients"]
    assert np.abs(coefficients).max() == np.float32(1e-3)
    assert (np.abs(coefficients) == np.float32(1e-3)).mean() > 0.98
    assert abs(coefficients.mean()) < 2e-4


@every_layer
def test_bfloat16_products_stay_near_float32_and_parameters_float32(layer: Any) -> None:
    p, x = parameters(layer), normal(1, 2, 300, WIDTH)
    low = layer.clone(dtype=jnp.bfloat16)
    y, exact = quick_jit(lambda x: (low.apply(p, x), layer.apply(p, x)))(x)
    assert y.dtype == jnp.bfloat16
    assert gap(y, exact) < 0.03
    kept = jax.eval_shape(low.init, jax.random.key(0), x)
    assert all(v.dtype == jnp.float32 for v in jax.tree.leaves(kept))


@pytest.mark.parametrize("axis", ["batch", "width"])
def test_dense_contracts_the_axes_it_is_told(axis: str) -> None:
    layer = Dense((2, 3), axes=1) if axis == "batch" else Dense(5, axes=2, use_bias=False)
    x = normal(0, 3, 4, 6)
    p: Any = jax.tree.map(lambda s: normal(1, *s.shape), jax.eval_shape(layer.init, jax.random.key(0), x))
    kernel = p["params"]["kernel"]
    expected = np.tensordot(x, kernel, 1 if axis == "batch" else 2) + p["params"].get("bias", 0)
    assert_close(quick_jit(layer.apply)(p, x), expected)


class Encoder(linen.Module):
    """A pre-norm encoder block as people write it, around any layer with attention's call."""

    mixer: linen.Module

    @linen.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        y = linen.LayerNorm()(x)
        mixed: Any = self.mixer
        x = x + mixed(y, y, y, mask=mask, deterministic=True)
        return x + linen.Dense(WIDTH)(linen.gelu(linen.Dense(2 * WIDTH)(linen.LayerNorm()(x))))


def test_it_takes_the_place_of_flax_attention_in_one_line() -> None:
    """The same call with the same masks: hidden tokens are hidden, and all others count."""
    x, hidden = normal(1, 2, 5, WIDTH), np.array([[1, 1, 1, 0, 1], [1, 1, 0, 1, 1]], bool)
    keys = jnp.asarray(hidden[:, None, None, :])
    rows = jnp.asarray(np.broadcast_to(hidden[:, None, None, :], (2, 1, 5, 5)))
    for mixer in (linen.MultiHeadDotProductAttention(num_heads=2), PoM(), PoM(form="power", gate_heads=4)):
        encoder = Encoder(mixer)
        p = parameters(encoder)

        @quick_jit
        def outputs(x: Array, encoder: Any = encoder, p: Any = p) -> Any:
            y, slope = jax.vjp(lambda x: encoder.apply(p, x, keys)[0, 0], x)
            return y, slope(jnp.ones_like(y))[0], encoder.apply(p, x, rows)[0, 0]

        y, slope, same = outputs(x)
        assert_close(same, y)
        assert not slope[0, 3].any()
        assert not slope[1].any()
        assert np.abs(slope[0, [0, 1, 2, 4]]).max(-1).all()


class Decoder(linen.Module):
    """Self- and cross-attention as people write them, by all of attention's names."""

    self_mixer: linen.Module
    cross_mixer: linen.Module
    together: bool

    @linen.compact
    def __call__(self, x: Array, memory: Array, mask: Array) -> Array:
        itself: Any = self.self_mixer
        across: Any = self.cross_mixer
        rng = jax.random.key(0)
        y = linen.LayerNorm()(x)
        x = x + itself(inputs_q=y, inputs_k=y, inputs_v=y, deterministic=True, dropout_rng=rng)
        keys = {"inputs_kv": memory} if self.together else {"inputs_k": memory, "inputs_v": memory}
        return x + across(inputs_q=linen.LayerNorm()(x), **keys, mask=mask, sow_weights=False)


@pytest.mark.filterwarnings("ignore:The inputs_kv arg will be deprecated")
@pytest.mark.parametrize("together", [True, False])
def test_attention_is_called_by_its_own_names_and_so_is_pom(together: bool) -> None:
    """The words of Flax mean what they mean there: the same as by position, and hidden tokens are hidden."""
    x, memory = normal(1, 2, 4, WIDTH), normal(2, 2, 5, WIDTH)
    hidden = jnp.asarray(np.array([1, 1, 0, 1, 1], bool)[None, None, None])
    makers = [lambda: linen.MultiHeadDotProductAttention(num_heads=2), PoM, lambda: PoM(form="power")]
    for make in makers:
        decoder = Decoder(make(), make(), together)
        shapes = jax.eval_shape(decoder.init, jax.random.key(0), x, memory, hidden)
        leaves, tree = jax.tree.flatten(shapes)
        p = jax.tree.unflatten(tree, [0.5 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])

        @quick_jit
        def slopes(x: Array, memory: Array, decoder: Any = decoder, p: Any = p) -> Any:
            return jax.grad(lambda x, m: (decoder.apply(p, x, m, hidden)[0, 0] ** 2).sum(), (0, 1))(x, memory)

        of_x, of_memory = slopes(x, memory)
        assert np.abs(of_x[0]).max(-1).all()
        assert not of_x[1].any()
        assert not of_memory[0, 2].any()
        assert np.abs(of_memory[0, [0, 1, 3, 4]]).max(-1).all()


def test_by_name_and_by_position_are_one_call() -> None:
    layer: Any = PoM()
    x, y, p = normal(1, 2, 4, WIDTH), normal(2, 2, 5, WIDTH), parameters(PoM())

    @quick_jit
    def outputs(x: Array, y: Array) -> Any:
        alone = layer.apply(p, x), layer.apply(p, inputs_q=x), layer.apply(p, inputs_q=x, inputs_kv=x)
        calls = [{"inputs_k": y}, {"inputs_kv": y}, {"inputs_k": y, "inputs_v": y}, {"context": y}]
        return alone, [layer.apply(p, x, y), *(layer.apply(p, inputs_q=x, **call) for call in calls)]

    for same in outputs(x, y):
        for other in same[1:]:
            np.testing.assert_array_equal(same[0], other)
    refused = [
        ({}, "no queries: give x, attention's inputs_q"),
        ({"x": x, "inputs_q": x}, "queries twice, as x and as inputs_q"),
        ({"x": x, "inputs_k": y, "inputs_kv": y}, "keys twice, as inputs_k and as inputs_kv"),
        ({"x": x, "context": y, "inputs_kv": y}, "keys twice, as context and as inputs_kv"),
        ({"x": x, "inputs_k": y, "inputs_v": 2 * y}, "no values beside the keys"),
        ({"x": x, "inputs_v": y}, "no values beside the keys"),
        ({"inputs_q": x, "sow_weights": True}, "no attention weights to sow"),
    ]
    for call, words in refused:
        with pytest.raises(InputError, match=words):
            layer.apply(p, **call)


def test_a_causal_mask_with_a_head_axis_is_causal_mixing() -> None:
    layer: Any = PoM()
    x = normal(1, 2, 5, WIDTH)
    p, mask = parameters(layer), linen.make_causal_mask(x[..., 0])

    @quick_jit
    def both(x: Array) -> tuple[Array, ...]:
        return layer.apply(p, x, x, x, mask=mask), layer.apply(p, x, causal=True)

    masked, causal = both(x)
    assert_close(masked, causal)
    for wrong in (np.ones((2, 2, 5, 5)), np.ones((1, 3, 1, 5))):
        with pytest.raises(InputError, match=f"with {wrong.shape[1]} heads; all channels see the same"):
            jax.eval_shape(lambda x, wrong=wrong: layer.apply(p, x, x, x, mask=wrong), x)
    with pytest.raises(InputError, match="no values beside the keys"):
        jax.eval_shape(lambda x: layer.apply(p, x, x, 2 * x), x)


def test_it_lives_in_nnx() -> None:
    x, layer = normal(1, 2, 4, WIDTH), PoM(degree=3)
    model = bridge.ToNNX(layer, rngs=nnx.Rngs(0)).lazy_init(x)
    drawn = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    y = nnx.jit(lambda model, x: model(x, causal=True))(model, x)
    assert_close(y, quick_jit(lambda x: layer.apply({"params": drawn}, x, causal=True))(x))


MISTAKES = [
    (PoM(form="cubic"), {}, "form = 'cubic' is unknown. There are: product, power"),
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
        (_layer, {"context": np.zeros((2, 3, 4))}, "batch and width must be equal"),
        (_layer, {"context": np.zeros((1, 3, 8))}, "batch and width must be equal"),
        (_layer, {"context": np.zeros((2, 8))}, "context has shape \\(2, 8\\)"),
        (_layer, {"mask": np.ones((2, 3))}, "mask has shape \\(2, 3\\)"),
        (_layer, {"mask": np.ones((2, 4, 3))}, "mask has shape \\(2, 4, 3\\)"),
        (_layer, {"mask": np.ones(4)}, "mask has shape \\(4,\\)"),
    ]


@pytest.mark.parametrize(("layer", "arguments", "message"), MISTAKES)
def test_what_does_not_fit_is_refused_in_words(layer: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        jax.eval_shape(lambda x: layer.init(jax.random.key(0), x, **arguments), np.zeros((2, 4, WIDTH)))
