"""Image models: sizes, starts, positions, blocks in loops, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pom_jax import models, nn
from pom_jax.errors import InputError
from pom_jax.models.mixers import layer_mixers
from pom_jax.nn import blocks, embeddings

TINY = {"image_size": 8, "channels": 2, "num_classes": 10, "patch_size": 2, "width": 16, "depth": 2}
REGISTERS = {"positions": "learned", "registers": 3, "clamp": 255.0}
VARIANTS = {
    "product": {},
    "power": {"form": "power", "gate_heads": 4, "groups": 2},
    "attention": {"mixer": "attention", "num_heads": 4},
    "hybrid": {"mixer": "hybrid", "num_heads": 2, "head_width": 4, "window": 1},
    "registers": REGISTERS,
    "relative": {"rotary": True, "phase_periods": (4.0,)},
}
LABELS = jnp.array([0, 7, 10])
TIMES = jnp.array([0.0, 0.4, 1.0])


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


@functools.partial(jax.jit, static_argnums=0)
def apply(module, params, *inputs) -> jax.Array:
    """The output of a module, compiled: quicker than operation by operation."""
    return module.apply({"params": params}, *inputs)


def random_params(model, scale=0.3):
    """Parameters as at the start plus noise, so that zero gates and outputs count too."""
    shapes = jax.eval_shape(functools.partial(models.init, model), jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    values = [
        rng.normal(0, scale / np.sqrt(max(leaf.shape[-2:-1], default=1)), leaf.shape) for leaf in leaves
    ]
    return jax.tree.unflatten(tree, [jnp.asarray(v, jnp.float32) for v in values])


def first_block(params):
    return jax.tree.map(lambda p: p[0], params["blocks"])


def images(h=8, w=8, c=2, batch=3):
    return jnp.asarray(np.random.default_rng(1).normal(size=(batch, h, w, c)), jnp.float32)


@functools.cache
def prepared(variant):
    """(model, parameters, output at native size) of one variant."""
    model = models.build(TINY | VARIANTS[variant])
    params = random_params(model)
    return model, params, apply(model, params, images(), TIMES, LABELS)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("DiPoM-S/2", 44_429_200),
        ("DiPoM-B/2", 176_742_160),
        ("DiPoM-L/2", 565_642_256),
        ("DiPoM-XL/2", 832_546_960),
        ("DiT-XL/2", 683_814_544),
    ],
)
def test_published_sizes_to_the_parameter(name, count):
    model = models.build({"image_size": 32, "channels": 4, "num_classes": 1000} | models.preset(name))
    assert models.count_parameters(model) == count


def test_registers_add_their_tables_and_nothing_else():
    data = {"image_size": 32, "channels": 4, "num_classes": 1000}
    plain = models.count_parameters(models.build(data | models.preset("DiPoM-S/2")))
    more = models.count_parameters(models.build(data | models.preset("DiPoM-R-S/2")))
    assert more - plain == (2 * 16 + 2 * 16**2) * 384  # registers and positions, of tokens and of condition


@pytest.mark.parametrize("name", models.NAMES)
def test_every_preset_builds(name):
    fields = models.preset(name)
    model = models.build({"image_size": 32, "channels": 4, "num_classes": 10} | fields, "bfloat16")
    assert f"/{model.patch_size}" in name
    assert (model.mixer == "attention") == name.startswith("DiT")
    assert (model.registers > 0) == name.startswith("DiPoM-R")


@pytest.mark.parametrize("variant", VARIANTS)
def test_output_is_exactly_zero_at_the_start(variant):
    model = models.build(TINY | VARIANTS[variant])

    @jax.jit
    def start(key):
        params = models.init(model, key)
        return params, model.apply({"params": params}, images(), TIMES, LABELS)

    params, y = start(jax.random.key(0, impl="rbg"))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    np.testing.assert_array_equal(y, np.zeros((3, 8, 8, 2)))
    block = blocks.ModulatedBlock(layer_mixers(model, (1, 5))[0])
    x = jnp.ones((2, 5, 16))
    np.testing.assert_array_equal(apply(block, first_block(params), x, jnp.ones((2, 1, 16))), x)


def value_and_gradients(variant, **execution):
    model = models.build(TINY | VARIANTS[variant] | execution)

    def loss(params):
        return jnp.mean(jnp.sin(apply(model, params, images(), TIMES, LABELS)))

    return jax.jit(jax.value_and_grad(loss))(prepared(variant)[1])


def test_loop_and_recomputation_change_neither_values_nor_gradients():
    value, gradients = value_and_gradients("registers")
    for path, g in jax.tree.leaves_with_path(gradients):
        assert jnp.all(jnp.isfinite(g)), path
        assert jnp.abs(g).max() > 0, path  # every parameter matters
    for scan, remat in ((True, "full"), (False, "dots")):
        other_value, other = value_and_gradients("registers", scan=scan, remat=remat)
        np.testing.assert_allclose(other_value, value, rtol=1e-5)
        for (path, a), b in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(
                b, a, atol=2e-5 * float(jnp.abs(a).max()), err_msg=jax.tree_util.keystr(path)
            )


@pytest.mark.parametrize(("scan", "loops"), [(True, 1), (False, 0)])
def test_blocks_are_a_loop_or_none_with_the_same_parameters(scan, loops):
    model = models.build(TINY | {"scan": scan})
    shapes = jax.eval_shape(functools.partial(models.init, model), jax.random.key(0))
    lowered = jax.jit(model.apply).lower({"params": shapes}, images(), TIMES, LABELS)
    assert lowered.as_text().count("stablehlo.while") == loops
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, prepared("product")[1])


@pytest.mark.parametrize(("remat", "recomputed"), [("dots", False), ("full", True)])
def test_remat_recomputes_what_its_name_says(remat, recomputed):
    def products(remat):
        model = models.build(TINY | {"remat": remat})
        gradient = jax.grad(lambda p: jnp.sum(apply(model, p, images(), TIMES, LABELS)))
        return str(jax.make_jaxpr(gradient)(prepared("product")[1])).count("dot_general")

    assert (products(remat) > products("none")) == recomputed


@pytest.mark.parametrize(
    ("variant", "size"), [("product", (12, 4)), ("registers", (4, 16)), ("attention", (6, 4))]
)
def test_other_resolutions_run_with_the_same_parameters(variant, size):
    model, params, _ = prepared(variant)
    y = apply(model, params, images(*size), TIMES, LABELS)
    assert y.shape == (3, *size, 2)
    assert jnp.all(jnp.isfinite(y))


@pytest.mark.parametrize("variant", ["power", "registers"])
def test_images_of_a_batch_do_not_meet(variant):
    model, params, y = prepared(variant)
    alone = apply(model, params, images()[1:2], TIMES[1:2], LABELS[1:2])
    np.testing.assert_allclose(alone[0], y[1], atol=1e-5 * float(jnp.abs(y).max()))


def test_label_time_and_null_class_reach_the_output():
    model, params, y = prepared("product")
    null = jnp.full(3, model.num_classes)
    assert jnp.abs(apply(model, params, images(), TIMES, null) - y)[:2].max() > 1e-3
    np.testing.assert_array_equal(apply(model, params, images(), TIMES, null)[2], y[2])
    assert jnp.abs(apply(model, params, images(), TIMES / 2, LABELS) - y)[1:].max() > 1e-3


@pytest.mark.parametrize("label", [11, -1])
def test_a_label_that_is_none_is_not_taken_for_another(label):
    model, params, y = prepared("product")
    wrong = apply(model, params, images(), TIMES, jnp.array([0, label, 10]))
    assert jnp.all(jnp.isnan(wrong[1]))
    np.testing.assert_allclose(wrong[::2], y[::2], atol=1e-5)


def test_unconditional_model_has_one_class_and_none():
    model = models.build(TINY | {"num_classes": 1, "depth": 1})
    params = random_params(model)
    assert params["class_embedding"]["table"].shape == (2, 16)
    assert jax.eval_shape(functools.partial(apply, model), params, images(), TIMES, LABELS).shape == (
        3,
        8,
        8,
        2,
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_stays_near_float32(variant):
    _, params, y = prepared(variant)
    model = models.build(TINY | VARIANTS[variant], "bfloat16")
    low = apply(model, params, images(), TIMES, LABELS)
    assert low.dtype == jnp.float32
    assert jnp.sqrt(jnp.mean((low - y) ** 2)) < 0.03 * jnp.sqrt(jnp.mean(y**2))


def test_one_condition_a_token_is_a_condition_for_all_when_equal():
    block = blocks.ModulatedBlock(nn.PoM)
    x = images(5, 16, 1).reshape(3, 5, 16)
    condition = images(1, 16, 1, batch=3).reshape(3, 1, 16)
    params = first_block(prepared("product")[1])
    shared = apply(block, params, x, condition)
    np.testing.assert_allclose(
        apply(block, params, x, jnp.broadcast_to(condition, x.shape)), shared, atol=1e-5
    )
    order = jnp.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(apply(block, params, x[:, order], condition), shared[:, order], atol=1e-5)


def test_clamp_bounds_every_block():
    x, condition = images(5, 16, 1).reshape(3, 5, 16), jnp.ones((3, 1, 16))
    params = first_block(prepared("product")[1])
    free = apply(blocks.ModulatedBlock(nn.PoM), params, x, condition)
    assert jnp.abs(free).max() > 0.5
    bound = apply(blocks.ModulatedBlock(nn.PoM, clamp=0.5), params, x, condition)
    np.testing.assert_allclose(bound, jnp.clip(free, -0.5, 0.5), atol=1e-6)


def test_polymorpher_layer_is_the_papers_formula():
    x, context = images(5, 16, 1).reshape(3, 5, 16), images(7, 16, 1).reshape(3, 7, 16)
    mask = jnp.arange(7)[None] < jnp.array([7, 3, 0])[:, None]
    params = first_block(prepared("product")[1])
    params = {name: params[name] for name in ("mixer", "feed_forward")}
    mixed = x + jnp.asarray(nn.PoM().apply({"params": params["mixer"]}, x, context, mask=mask))
    expected = mixed + apply(blocks.FeedForward(4), params["feed_forward"], mixed)
    ours = blocks.PolymorpherLayer(nn.PoM).apply({"params": params}, x, context, mask=mask)
    np.testing.assert_allclose(jnp.asarray(ours), expected, atol=1e-5)


def test_patches_are_those_of_a_strided_convolution():
    x, kernel = images(6, 8, 3), images(2, 2, 3 * 5, batch=1).reshape(2, 2, 3, 5)
    conv = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    product = embeddings.patchify(x, 2) @ kernel.reshape(12, 5)
    np.testing.assert_allclose(product.reshape(3, 3, 4, 5), conv, atol=1e-5)
    np.testing.assert_array_equal(embeddings.unpatchify(embeddings.patchify(x, 2), 2, 6, 8), x)


def test_fixed_positions_name_the_same_place_at_every_resolution():
    dit = functools.partial(embeddings.dit_positions, features=16, native=3)
    np.testing.assert_allclose(dit(9, 9)[1::3, 1::3], dit(3, 3), atol=1e-6)  # the centres coincide
    for table in (embeddings.odd_harmonics, embeddings.phased_harmonics):
        np.testing.assert_allclose(table(5, 7, 16)[::2, ::3], table(3, 3, 16), atol=1e-5)  # from edge to edge


def test_positions_tell_rows_from_columns():
    for name, table in embeddings.POSITIONS.items():
        places = table(4, 3, 16, 4)
        assert places.shape == (4, 3, 16), name
        flat = np.asarray(places).reshape(12, 16)
        gaps = np.linalg.norm(flat[:, None] - flat[None], axis=-1) + np.eye(12)
        assert gaps.min() > 1e-2, name


def test_learned_positions_follow_the_shape_not_the_count():
    table = jnp.broadcast_to(jnp.arange(4.0)[:, None, None], (4, 4, 1))  # a value per row
    wide = embeddings.resize_positions(table, 2, 8)
    np.testing.assert_allclose(wide, jnp.broadcast_to(wide[:, :1], (2, 8, 1)), atol=1e-6)
    assert embeddings.resize_positions(table, 4, 4) is table


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"widht": 16}, "width"),
        ({"patch_size": 3}, "image_size=8 .*patch_size=3"),
        ({"width": 18}, "multiple of 4"),
        ({"width": 16.0}, "type int"),
        ({"depth": 0}, "at least 1"),
        ({"clamp": float("nan")}, "clamp"),
        ({"scan": 1}, "type bool"),
        ({"mixer": "atention"}, "attention"),
        ({"remat": "dot"}, "dots"),
        ({"positions": "sincose"}, "sincos"),
        ({"mixer": "attention", "num_heads": 3}, "num_heads=3"),
        ({"form": "power", "gate_heads": 5}, "gate_heads"),
        ({"form": "power", "groups": 3}, "groups=3"),
        ({"groups": 2}, "power"),
        ({"mixer": "hybrid", "groups": 2}, "power"),
        ({"mixer": "hybrid", "num_heads": 3}, "num_heads=3"),
        ({"attention_every": 2, "num_heads": 3}, "num_heads=3"),
        ({"phase_periods": (0.0,)}, r"phase_periods=\(0.0,\) must be"),
        ({"rotary": True, "width": 6, "expansion": 1, "positions": "learned"}, "expansion \\* width=6"),
        ({"attention_every": 1}, "attention_every=1 .* model.mixer='attention'"),
        ({"attention_every": 3}, "depth=2 .*attention_every=3"),
        ({"attention_every": -1}, "attention_every=-1 must be at least 0"),
        ({"attention_every": 2, "mixer": "attention", "num_heads": 4}, "attention_every=2 with .*attention"),
        ({"window": 2}, "window=2 .* no layer has any"),
        ({"mixer": "attention", "rotary": True}, "rotary=True is of PoM, and no layer has any"),
        ({"mixer": "attention", "phase_periods": (4.0,)}, r"phase_periods=\(4.0,\) is of PoM"),
        ({"head_width": 4}, "head_width=4 .* no layer has any"),
    ],
)
def test_configurations_that_cannot_be_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        models.build(TINY | change)


def test_a_module_made_without_build_is_checked_when_called():
    model = models.DiPoM(8, 2, 10, 2, 16, 2, mixer="atention")
    with pytest.raises(InputError, match="attention"):
        jax.eval_shape(functools.partial(models.init, model), jax.random.key(0))


def test_missing_fields_unknown_dtypes_and_names_are_refused():
    with pytest.raises(InputError, match=r"model\.depth"):
        models.build({k: v for k, v in TINY.items() if k != "depth"})
    with pytest.raises(InputError, match="bfloat16"):
        models.build(TINY, "bfloat")
    with pytest.raises(InputError, match="DiPoM-XL/2"):
        models.preset("DiPom-XL/2")


@pytest.mark.parametrize(
    ("shape", "times", "labels", "words"),
    [
        ((3, 8, 8, 4), (3,), LABELS, "channels last"),
        ((3, 2, 8, 8), (3,), LABELS, "channels last"),
        ((3, 9, 8, 2), (3,), LABELS, "patches of 2"),
        ((3, 8, 8, 2), (1,), LABELS, r"\[3\]"),
        ((3, 8, 8, 2), (3,), LABELS[:2], "labels"),
        ((3, 8, 8, 2), (3,), LABELS.astype(jnp.float32), "integers"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_anything_compiles(shape, times, labels, words):
    model, params, _ = prepared("product")
    with pytest.raises(InputError, match=words):
        jax.eval_shape(model.apply, {"params": params}, jnp.ones(shape), jnp.ones(times), labels)


def test_odd_widths_have_no_time_features():
    with pytest.raises(InputError, match="even"):
        embeddings.time_frequencies(15, 1000)
