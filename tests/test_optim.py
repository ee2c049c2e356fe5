"""Optimisers and averages: what decays, what a layer of a stack gets, and how schedules begin and end."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from pom_jax import models
from pom_jax.errors import InputError
from pom_jax.training import ema, muon, optim

KINDS = [
    ("DiPoM-S/2", {}),
    ("DiPoM-R-S/2", {}),
    ("DiT-S/2", {}),
    ("DiPoM-S/2", {"form": "power", "gate_heads": 4}),
]
ADAMW = {
    "name": "adamw",
    "learning_rate": 0.1,
    "schedule": "constant",
    "warmup_steps": 0,
    "decay_from": 0,
    "b1": 0.9,
    "b2": 0.99,
    "eps": 1e-8,
    "weight_decay": 0.5,
    "clip_norm": 0.0,
    "moments": "float32",
}


def shapes(preset: str, changes: dict) -> dict:
    fields = models.preset(preset) | {"image_size": 8, "channels": 1, "num_classes": 3} | changes
    model = models.build(fields)
    return jax.eval_shape(lambda key: models.init(model, key), jax.random.key(0))


def updates(optimizer: Any, params: dict, grads: dict) -> Any:
    """The optimiser's first update."""
    return optimizer.update(grads, optimizer.init(params), params)[0]


def step(optimizer: Any, params: dict, grads: dict) -> Any:
    """The parameters after the first update."""
    return optax.apply_updates(params, updates(optimizer, params, grads))


def names(tree: dict) -> dict[str, object]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def is_axes(node: Any) -> bool:
    return isinstance(node, contrib.MuonDimensionNumbers)


@pytest.mark.smoke
@pytest.mark.parametrize(("preset", "changes"), KINDS)
def test_weight_decay_leaves_out_what_is_not_a_matrix(preset: str, changes: dict) -> None:
    decays = names(optim.decay_mask(shapes(preset, changes)))
    for name, decay in decays.items():
        spared = any(word in name for word in ("bias", "class_embedding", "registers", "positions"))
        assert decay != spared, name
    assert any(decays.values())
    assert not all(decays.values())


def test_adamw_without_gradient_only_decays_the_kernels() -> None:
    params = {
        "blocks": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
        "class_embedding": {"table": jnp.ones(2)},
    }
    optimizer = optim.make_optimizer(ADAMW, 10)
    zero = jax.tree.map(jnp.zeros_like, params)
    new = step(optimizer, params, zero)
    np.testing.assert_allclose(new["blocks"]["kernel"], 1 - 0.1 * 0.5, rtol=1e-6)
    np.testing.assert_array_equal(new["blocks"]["bias"], 1.0)
    np.testing.assert_array_equal(new["class_embedding"]["table"], 1.0)


def test_lamb_treats_stacked_layers_like_separate_ones() -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    scale = jnp.array([1.0, 10.0, 0.1])[:, None, None]
    stacked = jax.random.normal(keys[0], (3, 4, 5)) * scale
    grads = jax.random.normal(keys[1], (3, 4, 5))
    optimizer = optim.lamb(0.1, weight_decay=0.1)
    together = step(optimizer, {"blocks": {"kernel": stacked}}, {"blocks": {"kernel": grads}})
    for layer in range(3):
        alone = step(optimizer, {"d": {"kernel": stacked[layer]}}, {"d": {"kernel": grads[layer]}})
        np.testing.assert_allclose(together["blocks"]["kernel"][layer], alone["d"]["kernel"], rtol=1e-6)


def test_lamb_moves_a_kernel_by_a_share_of_its_own_size() -> None:
    kernel, grads = jax.random.normal(jax.random.key(0), (2, 4, 5))
    optimizer = optim.lamb(0.1, b1=0.5, b2=0.5)
    sizes = []
    for scale in (1.0, 100.0):
        params = {"kernel": scale * kernel}
        moved = updates(optimizer, params, {"kernel": grads})["kernel"]
        sizes.append(float(jnp.linalg.norm(moved) / jnp.linalg.norm(params["kernel"])))
    np.testing.assert_allclose(sizes, 0.1 * np.sqrt(0.5) / 0.5, rtol=1e-5)


@pytest.mark.smoke
@pytest.mark.parametrize(("preset", "changes"), [*KINDS, ("DiPoM-S/2", {"form": "power", "groups": 4})])
def test_muon_sees_the_matrices_that_the_layers_multiply_by(preset: str, changes: dict) -> None:
    params = shapes(preset, changes)
    leaves: dict[str, Any] = names(params)
    found = {}
    for path, axes in jax.tree_util.tree_leaves_with_path(muon.hidden_matrices(params), is_leaf=is_axes):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = leaves[name].shape
        found[name] = math.prod(shape[axis] for axis in np.ravel(axes.reduction_axis))
        assert axes.output_axis == len(shape) - 1
    inputs = {
        name: math.prod(leaf.shape[name.startswith("blocks") : -1]) if "/out/" in name else 384
        for name, leaf in leaves.items()
        if name.endswith("kernel") and name not in ("patch_embedding/kernel", "out/kernel")
    }
    assert found == inputs | ({"blocks/mixer/features/kernel": 96} if "groups" in changes else {})


def test_muon_gives_each_layer_degree_and_group_an_orthogonal_update() -> None:
    mixers = {
        "polynomial": {"features": {"kernel": jnp.zeros((3, 8, 2, 16))}, "bias": jnp.zeros((3, 2, 16))},
        "power": {"features": {"kernel": jnp.zeros((3, 2, 8, 16))}, "coefficients": jnp.zeros((3, 32, 2))},
    }
    params = {"blocks": mixers}
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(0), p.shape), params)
    scale = 10.0 ** jnp.arange(-3, 3).reshape(3, 2, 1, 1)
    grads["blocks"]["power"]["features"]["kernel"] *= scale
    grads["blocks"]["polynomial"]["features"]["kernel"] *= scale.swapaxes(1, 2)
    config = ADAMW | {"name": "muon", "weight_decay": 0.0}
    moved = updates(optim.make_optimizer(config, 10), params, grads)["blocks"]
    for matrices in (
        moved["polynomial"]["features"]["kernel"].swapaxes(1, 2),
        moved["power"]["features"]["kernel"],
    ):
        sizes = jnp.linalg.svd(matrices, compute_uv=False) / (0.1 * 0.2 * np.sqrt(16))
        np.testing.assert_allclose(sizes, 1.0, atol=0.4)
    signs = -jnp.sign(grads["blocks"]["polynomial"]["bias"])
    np.testing.assert_allclose(moved["polynomial"]["bias"], 0.147 * signs, rtol=1e-2)  # of Adam


def test_the_polynomials_of_muon_bring_singular_values_to_one() -> None:
    sizes = np.linspace(0.01, 1, 10_000)
    for a, b, c in muon.COEFFICIENTS:
        sizes = a * sizes + b * sizes**3 + c * sizes**5
    assert np.max(np.abs(sizes - 1)) < 0.271


def test_muon_makes_an_update_of_unlike_sizes_nearly_orthogonal() -> None:
    """A gradient whose rows, and whose singular values, lie orders of magnitude apart."""
    keys = jax.random.split(jax.random.key(1))
    left, right = (jnp.linalg.qr(jax.random.normal(key, (64, 64)))[0] for key in keys)
    grads = {"a": {"kernel": (left * 10.0 ** jnp.linspace(-1.5, 0, 64)) @ right}}
    params = jax.tree.map(jnp.zeros_like, grads)
    moved = updates(optim.make_optimizer(ADAMW | {"name": "muon", "weight_decay": 0.0}, 10), params, grads)
    sizes = jnp.linalg.svd(moved["a"]["kernel"], compute_uv=False) / (0.1 * 0.2 * 8)
    np.testing.assert_allclose(sizes, 1.0, atol=0.3)
    nearest = -(left @ right).ravel()
    found = moved["a"]["kernel"].ravel()
    assert found @ nearest / jnp.linalg.norm(found) / jnp.linalg.norm(nearest) > 0.97


@pytest.mark.parametrize("moments", optim.MOMENTS)
def test_muon_keeps_one_moment_of_a_matrix_in_the_precision_asked_for(moments: str) -> None:
    params = {"blocks": {"features": {"kernel": jnp.ones((3, 8, 16))}}}
    optimizer = optim.make_optimizer(ADAMW | {"name": "muon", "moments": moments}, 10)
    state = optimizer.init(params)
    for _ in range(2):
        _, state = optimizer.update(params, state, params)
    kept = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (3, 8, 16)]
    assert [leaf.dtype for leaf in kept] == [moments]


def test_clipping_bounds_the_whole_gradient() -> None:
    params = {"a": {"kernel": jnp.zeros(3)}, "b": {"kernel": jnp.zeros(3)}}
    optimizer = optim.make_optimizer(ADAMW | {"clip_norm": 1.0, "b1": 0.0, "eps": 1.0, "name": "adamw"}, 10)
    grads = jax.tree.map(lambda p: jnp.full_like(p, 100.0), params)
    clipped = jax.tree.map(lambda p: jnp.full_like(p, 1 / np.sqrt(6)), params)
    found, expected = (updates(optimizer, params, g) for g in (grads, clipped))
    np.testing.assert_allclose(found["a"]["kernel"], expected["a"]["kernel"], rtol=1e-5)


@pytest.mark.smoke
@pytest.mark.parametrize("schedule", optim.SCHEDULES)
def test_schedules_rise_linearly_fall_and_stay_at_zero(schedule: str) -> None:
    steps = np.arange(0, 150)
    rates = optim.learning_rate(steps, 2.0, schedule, warmup_steps=10, total_steps=100)
    np.testing.assert_allclose(rates[:10], np.arange(10) / 10 * 2.0, rtol=1e-6)
    np.testing.assert_allclose(rates[10], 2.0)
    assert np.all(np.diff(rates[10:]) <= 1e-7)
    np.testing.assert_allclose(rates[100:], 2.0 if schedule == "constant" else 0.0, atol=1e-6)


def test_learning_rate_of_an_optimizer_follows_the_updates_made() -> None:
    config = ADAMW | {"schedule": "linear", "weight_decay": 0.0, "b1": 0.0, "b2": 0.0}
    optimizer: Any = optim.make_optimizer(config, 4)
    params = {"kernel": jnp.zeros(1)}
    state, moved = optimizer.init(params), []
    for _ in range(5):
        update, state = optimizer.update({"kernel": jnp.ones(1)}, state, params)
        moved.append(-float(update["kernel"][0]))
    np.testing.assert_allclose(moved, [0.1, 0.075, 0.05, 0.025, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"), [("name", "adam"), ("schedule", "cosin"), ("moments", "float16")]
)
def test_unknown_names_are_refused(field: str, value: str) -> None:
    with pytest.raises(InputError, match=f"optimizer.{field} = '{value}'"):
        optim.make_optimizer(ADAMW | {field: value}, 10)


def test_rounding_by_chance_is_right_on_average() -> None:
    x = jnp.array([1.001, -3.1e-8, 0.0, jnp.inf, jnp.nan, 1.0, 2.0**-130], jnp.float32)
    found = jax.vmap(lambda seed: optim.round_by_chance(x, seed))(jnp.arange(20_000)).astype(jnp.float32)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[:, :3].mean(0), x[:3], rtol=2e-4)
    assert len(np.unique(found[:, 0])) == 2, "the two nearest"
    np.testing.assert_array_equal(found[0, 2:], x[2:])
    many = optim.round_by_chance(jnp.full(100_000, 1.001), jnp.int32(7)).astype(jnp.float32)
    np.testing.assert_allclose(many.mean(), 1.001, rtol=1e-4)


def test_narrow_moments_halve_the_memory_and_train_alike() -> None:
    """Of a noisy regression; rounded to the nearest, the second moment would stay where it was at first."""
    keys = jax.random.split(jax.random.key(0), 3)
    target, x = jax.random.normal(keys[0], (64, 8)), jax.random.normal(keys[1], (256, 64))

    def trained(moments: str) -> tuple[Any, Any]:
        config = ADAMW | {"moments": moments, "learning_rate": 0.02, "weight_decay": 0.0, "b2": 0.999}
        optimizer: Any = optim.make_optimizer(config, 400)

        def update(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            params, state = carry
            rows = x[jax.random.randint(key, (32,), 0, 256)]
            loss = lambda p: jnp.mean((rows @ (p["kernel"] - target)) ** 2)  # noqa: E731
            value, grads = jax.value_and_grad(loss)(params)
            moved, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, moved), state), value

        params = {"kernel": jnp.zeros_like(target)}
        start = params, optimizer.init(params)
        (_, state), losses = jax.lax.scan(update, start, jax.random.split(keys[2], 400))
        return state, losses

    (wide, plain), (narrow, rounded) = trained("float32"), trained("bfloat16")
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim) for state in (wide, narrow)]
    assert sizes[1] * 2 == sizes[0]
    assert plain[-1] < 1e-2 * plain[0]
    np.testing.assert_allclose(rounded[:100], plain[:100], rtol=0.05)
    assert rounded[-50:].mean() < 1.5 * plain[-50:].mean() + 1e-3 * plain[0]
    moments = [optax.tree.get(state, "nu")["kernel"].astype(jnp.float32) for state in (wide, narrow)]
    np.testing.assert_allclose(moments[1].mean(), moments[0].mean(), rtol=0.02)


def test_ema_ramp_starts_with_a_copy_and_rises_to_the_decay() -> None:
    updates = np.arange(200_000)
    decays = np.asarray(ema.decay_at(updates, 0.999))
    assert decays[0] == 0.0
    assert np.all(np.diff(decays) >= 0)
    np.testing.assert_allclose(decays[-1], 0.999)
    late = np.asarray(ema.decay_at(updates[:50], 0.999, start=20, every=10))
    assert set(np.flatnonzero(late == 0.0)) == {0, 10, 20}
    assert np.all(late[updates[:50] % 10 != 0] == 1.0)


def test_ema_is_the_weighted_mean_it_says() -> None:
    values = np.random.default_rng(0).normal(size=30).astype(np.float32)
    average, weights = {"w": jnp.zeros(())}, np.zeros(30)
    for n, value in enumerate(values):
        decay = float(ema.decay_at(n, 0.9, power=1.0))
        weights *= decay
        weights[n] += 1 - decay
        average = ema.update(average, {"w": jnp.asarray(value)}, jnp.float32(decay))
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(average["w"], weights @ values, rtol=1e-5)
