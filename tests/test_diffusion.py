"""Paths, schedules, losses and guidance: the identities they must satisfy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from pom_jax.diffusion import (
    GUIDANCE_SCHEDULES,
    PREDICTIONS,
    FlowPath,
    TimeSampling,
    VariancePath,
    convert,
    diffusion_loss,
    guide,
    loss_by_bins,
    make_path,
    make_times,
    resolution_shift,
    sample_times,
    shift_time,
    target,
    time_grid,
    validation_loss,
    variances,
)
from pom_jax.diffusion.guidance import EVERYWHERE, choose_interval, interval_in_words
from pom_jax.diffusion.schedules import VARIANCE_SCHEDULES
from pom_jax.errors import InputError

PATHS = [FlowPath(), *(VariancePath(name) for name in VARIANCE_SCHEDULES)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_right_prediction_of_any_kind_gives_all_three(path, prediction):
    x, eps = jax.random.normal(jax.random.key(0), (2, 6, 3, 4))
    t = jnp.array([0.2, 0.3, 0.5, 0.7, 0.9, 0.98])
    told = target(path, prediction, x, eps, t)
    got = convert(path, prediction, told, path.add_noise(x, eps, t), t)
    for kind in PREDICTIONS:
        np.testing.assert_allclose(getattr(got, kind), target(path, kind, x, eps, t), atol=2e-4)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_conversions_are_finite_at_both_ends(path, prediction):
    x, eps, value = jax.random.normal(jax.random.key(0), (3, 2, 5))
    t = jnp.array([0.0, 1.0])
    got = convert(path, prediction, value, path.add_noise(x, eps, t), t)
    assert all(bool(jnp.all(jnp.isfinite(part))) for part in got)
    some_left = (VariancePath("karras"), VariancePath("ddpm"))  # of the signal, at the noise end
    if prediction == "velocity" and path not in some_left:
        np.testing.assert_allclose(got.data[0], x[0], atol=1e-6)
        np.testing.assert_allclose(got.noise[1], eps[1], atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_the_velocity_is_the_derivative_along_the_clock(path):
    x, eps = jax.random.normal(jax.random.key(1), (2, 1, 7))
    for t in (0.25, 0.5, 0.9):
        at, one = jnp.full((1,), t), jnp.ones(1)
        _, moved = jax.jvp(lambda t: path.add_noise(x, eps, t), (at,), (one,))
        _, ticked = jax.jvp(path.clock, (at,), (one,))
        np.testing.assert_allclose(moved / ticked, target(path, "velocity", x, eps, at), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VARIANCE_SCHEDULES)
def test_variances_rise_add_up_and_keep_their_digits(name):
    t = np.linspace(0, 1, 1001)
    noise, signal = variances(name, t)
    assert noise[0] == 0
    assert np.all(np.diff(noise) >= 0)
    np.testing.assert_allclose(noise + signal, 1, atol=1e-12)
    # In float32 too the signal near the noise end has its digits, which 1 - noise would have lost.
    t = np.float32(1) - 2.0 ** -np.arange(4, 20, dtype=np.float32)
    exact = variances(name, t.astype(np.float64))[1]
    np.testing.assert_allclose(variances(name, jnp.asarray(t))[1], exact, rtol=2e-6)
    if name == "sine":
        assert np.max(np.abs((1 - np.sin(np.pi / 2 * t)) / exact - 1)) > 0.1


def test_ddpm_has_the_signal_of_its_steps_at_their_times():
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(variances("ddpm", np.arange(1, 1000) / 1000)[1], kept[1:], rtol=1e-9)


def test_the_margin_bounds_the_amplitudes():
    path = VariancePath("linear", margin=1e-6)
    t = np.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(path.sigma(t) ** 2, [1e-6, 0.5, 1 - 1e-6])
    np.testing.assert_allclose(path.alpha(t) ** 2, [1 - 1e-6, 0.5, 1e-6])


def test_training_times_follow_their_law():
    n, key = 20_000, jax.random.key(0)
    uniform = np.asarray(sample_times(key, n, TimeSampling()))
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert uniform.min() >= 0
    assert uniform.max() < 1
    logit = np.asarray(sample_times(key, n, TimeSampling("logit_normal", mean=0.8, std=0.5)), np.float64)
    assert stats.kstest(np.log(logit / (1 - logit)), "norm", args=(0.8, 0.5)).pvalue > 1e-3
    shifted = np.asarray(sample_times(key, n, TimeSampling(shift=2.0)))
    np.testing.assert_allclose(shifted, 2 * uniform / (1 + uniform), rtol=1e-6)


def test_the_shift_is_a_group_of_maps_of_the_interval():
    t = np.linspace(0, 1, 11)
    np.testing.assert_allclose(shift_time(shift_time(t, 3.0), 1 / 3.0), t, atol=1e-12)
    np.testing.assert_allclose(shift_time(t, 2.0)[[0, -1]], [0, 1])
    assert (resolution_shift(32), resolution_shift(128)) == (1.0, 2.0)


@pytest.mark.parametrize("grid", ["uniform", "quadratic", "cosine"])
def test_grids_fall_from_start_to_end(grid):
    times = time_grid(7, start=0.9, end=0.1, grid=grid, shift=2.0)
    assert times.shape == (8,)
    assert (times[0], times[-1]) == (0.9, 0.1)
    assert np.all(np.diff(times) < 0)
    np.testing.assert_array_equal(time_grid(1), [1.0, 0.0])


@pytest.mark.smoke
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", [FlowPath(), VariancePath("linear")])
def test_the_loss_is_the_mean_square_of_what_is_missed(path, prediction):
    x = 0.5 * jnp.ones((4000, 2, 3))

    def knowing(x_t, t):
        t = t[:, None, None]
        eps = (x_t - path.alpha(t) * 0.5) / jnp.maximum(path.sigma(t), 1e-3)
        a, b = path.velocity_weights(path.alpha(t), path.sigma(t))
        return {"noise": eps, "data": 0.5 + 0 * eps, "velocity": a * eps - b * 0.5}[prediction]

    kwargs = {"path": path, "prediction": prediction}
    right = diffusion_loss(knowing, jax.random.key(0), x, **kwargs)
    assert right.per_example.shape == right.t.shape == (4000,)
    assert float(jnp.median(right.per_example)) < 1e-9
    silent = diffusion_loss(lambda x, t: jnp.zeros_like(x), jax.random.key(0), x, **kwargs)
    expected = {
        "noise": 1.0,
        "data": 0.25,
        # flow: 1 + x^2; linear: E[alpha^2 + sigma^2 x^2] = 1/2 + x^2/2.
        "velocity": 1.25 if path == FlowPath() else 0.625,
    }[prediction]
    assert float(jnp.mean(silent.per_example)) == pytest.approx(expected, rel=0.03)


def test_the_loss_shifts_the_network_and_the_noise_alike():
    seen = {}

    def predict(x_t, t):
        seen.update(x_t=x_t, t=t)
        return jnp.zeros_like(x_t)

    x = jnp.ones((64, 1))
    losses = diffusion_loss(
        predict, jax.random.key(0), x, path=FlowPath(), prediction="noise", times=TimeSampling(shift=4.0)
    )
    np.testing.assert_array_equal(seen["t"], losses.t)
    eps = (seen["x_t"] - (1 - losses.t[:, None])) / losses.t[:, None]
    np.testing.assert_allclose(jnp.square(eps[:, 0]), losses.per_example, rtol=1e-3, atol=1e-3)
    assert float(jnp.mean(losses.t)) > 0.6


def test_the_loss_is_float32_for_a_network_in_half_precision():
    x = jnp.ones((3, 4), jnp.bfloat16)
    losses = diffusion_loss(lambda x, t: x.astype(jnp.bfloat16), jax.random.key(0), x, path=FlowPath())
    assert losses.per_example.dtype == jnp.float32


def test_validation_sees_every_stretch_of_time_and_repeats_itself():
    x = jax.random.normal(jax.random.key(0), (32, 5))
    once, again = (
        validation_loss(lambda x, t: x, jax.random.key(7), x, path=FlowPath(), prediction="velocity")
        for _ in range(2)
    )
    np.testing.assert_array_equal(once.per_example, again.per_example)
    np.testing.assert_allclose(np.sort(once.t), (np.arange(32) + 0.5) / 32, rtol=1e-6)
    np.testing.assert_array_equal(loss_by_bins(once.per_example, once.t, 4).weight, [8, 8, 8, 8])


def test_losses_by_bins_add_up_and_ignore_padding():
    losses = jnp.array([1.0, 2.0, 3.0, 5.0, jnp.nan])
    t = jnp.array([0.0, 0.1, 0.6, 1.0, 0.3])
    binned = loss_by_bins(losses, t, 2, weights=jnp.array([1, 1, 1, 1, 0]))
    np.testing.assert_allclose(binned.mean, [1.5, 4.0])
    assert float(binned.overall) == 2.75
    parts = [loss_by_bins(losses[s], t[s], 2) for s in (slice(0, 1), slice(1, 4))]
    summed = jax.tree.map(jnp.add, *parts)
    np.testing.assert_allclose(summed.mean, binned.mean)


def labelled(sizes=None):
    """A network whose answer is its label; the size of every batch it sees goes to `sizes`."""

    def predict(x, t, labels):
        if sizes is not None:
            sizes.append(x.shape[0])
        return jnp.broadcast_to(labels[:, None].astype(x.dtype), x.shape)

    return predict


X, T, LABELS = jnp.zeros((3, 2)), jnp.array([0.1, 0.5, 0.9]), jnp.array([1, 2, 3])


@pytest.mark.parametrize(("scale", "size"), [(1.0, 3), (1, 3), (0.0, 3), (2.5, 6)])
def test_guidance_doubles_the_batch_only_when_it_acts(scale, size):
    sizes = []
    got = guide(labelled(sizes), LABELS, 10, scale)(X, T)
    assert sizes == [size]
    np.testing.assert_allclose(got[:, 0], 10 + scale * (LABELS - 10), rtol=1e-6)


def test_a_traced_scale_agrees_with_a_static_one():
    traced = jax.jit(lambda s: guide(labelled(), LABELS, 10, s)(X, T))
    for scale in (0.0, 1.0, 3.0):
        np.testing.assert_allclose(traced(scale), guide(labelled(), LABELS, 10, scale)(X, T), rtol=1e-6)
    each = guide(labelled(), LABELS, 10, jnp.array([0.0, 1.0, 2.0]))(X, T)
    np.testing.assert_allclose(each[:, 0], [10, 2, -4])


def test_guidance_keeps_to_its_interval_and_schedule():
    inside = guide(labelled(), LABELS, 10, 2.0, interval=(0.3, 0.7))(X, T)
    np.testing.assert_allclose(inside[:, 0], [1, 10 + 2 * (2 - 10), 3])
    for schedule in GUIDANCE_SCHEDULES:
        weight = GUIDANCE_SCHEDULES[schedule](T)
        got = guide(labelled(), LABELS, 10, 3.0, schedule=schedule)(X, T)
        np.testing.assert_allclose(got[:, 0], LABELS + 2 * weight * (LABELS - 10), rtol=1e-5)
        full_at_data = GUIDANCE_SCHEDULES[schedule](jnp.array([0.0]))
        assert float(full_at_data[0]) == 1.0
    own = guide(labelled(), LABELS, 10, 3.0, schedule=lambda t: 0 * t)(X, T)
    np.testing.assert_allclose(own[:, 0], LABELS)


def test_an_interval_is_the_given_one_or_the_own_and_is_said_where_it_counts():
    own = {"guidance_interval": (0.1, 0.9)}
    assert choose_interval([0.5, 1], own) == (0.5, 1)
    assert choose_interval((0, 1), own) == EVERYWHERE
    assert choose_interval(None, own) == (0.1, 0.9)
    assert choose_interval(None) == choose_interval(None, {}) == EVERYWHERE
    for given, sampling in (((0.9, 0.1), own), (None, {"guidance_interval": (0.9, 0.1)})):
        with pytest.raises(InputError, match=r"interval is .*; got \(0\.9, 0\.1\)"):
            choose_interval(given, sampling)
    assert interval_in_words([0.1, 1.0], 1.0, 1.5) == " at times 0.1 to 1"
    assert interval_in_words([0.1, 1.0], 1.0, 1) == interval_in_words([0, 1], 1.5) == ""


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scale": -1.0}, "at least 0"),
        ({"scale": float("nan")}, "finite"),
        ({"interval": (0.7, 0.3)}, "interval"),
        ({"interval": (0.0, 1.5)}, "interval"),
        ({"interval": (None, 1.0)}, r"interval is .*; got \(None, 1\.0\)"),
        ({"interval": 0.5}, r"interval is .*; got 0\.5"),
        ({"schedule": "linaer"}, "Did you mean 'linear'"),
    ],
)
def test_mistakes_in_guidance_are_explained(kwargs, message):
    with pytest.raises(InputError, match=message):
        guide(labelled(), LABELS, 10, **kwargs)


CONFIG = {
    "path": "variance",
    "variance_schedule": "cosine",
    "time_sampling": "logit_normal",
    "logit_mean": 0.5,
    "logit_std": 2.0,
    "shift": 1.5,
}


def test_a_config_names_path_and_times():
    assert make_path(CONFIG) == VariancePath("cosine")
    assert make_path({**CONFIG, "path": "flow"}) == FlowPath()
    assert make_times(CONFIG) == TimeSampling("logit_normal", 0.5, 2.0, 1.5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("path", "flwo", "Did you mean 'flow'"),
        ("variance_schedule", "cosin", "Did you mean 'cosine'"),
        ("time_sampling", "normal", "There are: uniform, logit_normal"),
        ("logit_std", 0.0, "logit_std"),
        ("shift", -1.0, "shift"),
    ],
)
def test_mistakes_in_a_config_are_explained(field, value, message):
    make = make_path if field in ("path", "variance_schedule") else make_times
    with pytest.raises(InputError, match=message):
        make({**CONFIG, field: value})


def test_an_unknown_prediction_is_explained():
    with pytest.raises(InputError, match="There are: velocity, noise, data"):
        target(FlowPath(), "epsilon", X, X, T)
