"""Every sampler against denoisers with an exact solution, and what `sample` promises around them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from pom_jax.diffusion import DDIM, SAMPLERS, SDE, FlowPath, VariancePath, sample, time_grid
from pom_jax.diffusion.samplers import first_time
from pom_jax.errors import InputError

START, END = 0.98, 0.02
WEIGHTS, MEANS, STDS = np.array([0.3, 0.5, 0.2]), np.array([-1.4, 0.3, 1.6]), np.array([0.3, 0.5, 0.2])
PATHS = {"flow": FlowPath(), "linear": VariancePath("linear"), "cosine": VariancePath("cosine")}
DETERMINISTIC = {"euler": 1, "ddim": 1, "heun": 2, "dpm++2m": 2}


def denoiser(path, prediction, weights, means, stds):
    """The exact network for data from a one-dimensional mixture of Gaussians, of each prediction kind."""

    def predict(x, t):
        alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
        variance = jnp.square(alpha * stds) + jnp.square(sigma)
        off = x[:, None] - alpha * means
        share = jax.nn.softmax(
            jnp.log(weights) - jnp.square(off) / (2 * variance) - jnp.log(variance) / 2, -1
        )
        data = jnp.sum(share * (means + alpha * stds**2 / variance * off), -1)
        noise = (x - alpha[:, 0] * data) / sigma[:, 0]
        a, b = path.velocity_weights(alpha[:, 0], sigma[:, 0])
        return {"data": data, "noise": noise, "velocity": a * noise - b * data}[prediction]

    return predict


def marginal(path, t, weights, means, stds):
    """Weights, means and deviations of x_t."""
    alpha, sigma = path.alpha(np.float64(t)), path.sigma(np.float64(t))
    return weights, alpha * means, np.sqrt((alpha * stds) ** 2 + sigma**2)


def transported(path, x, mixture):
    """Where the exact ODE takes x from START to END: to the point with the same share of mass below it."""

    def below(y, t):
        weights, means, stds = marginal(path, t, *mixture)
        return np.sum(weights * stats.norm.cdf((y - means) / stds))

    def carry(start):
        mass = below(start, START)
        return optimize.brentq(lambda y: below(y, END) - mass, -9, 9, xtol=1e-13)

    return np.array([carry(float(start)) for start in x])


def run(path, prediction, sampler, steps, x, mixture, key=None):
    predict = denoiser(path, prediction, *mixture)
    times = np.linspace(START, END, steps + 1)
    kwargs = {"path": path, "prediction": prediction, "sampler": sampler, "times": times}
    return np.asarray(jax.jit(lambda x: sample(predict, key, x, **kwargs))(x))


@pytest.mark.parametrize("sampler", DETERMINISTIC)
@pytest.mark.parametrize(
    ("path", "prediction"),
    [("flow", "velocity"), ("flow", "data"), ("linear", "noise"), ("cosine", "velocity")],
)
def test_deterministic_samplers_have_their_strong_order_on_a_gaussian(path, sampler, prediction):
    mixture = np.ones(1), np.array([0.6]), np.array([0.5])
    with jax.enable_x64(True):
        x = jnp.linspace(-1.5, 1.5, 8)
        exact = transported(PATHS[path], x, mixture)
        coarse, fine = (
            np.abs(run(PATHS[path], prediction, sampler, n, x, mixture) - exact).max() for n in (128, 256)
        )
    order = np.log2(coarse / fine)
    assert abs(order - DETERMINISTIC[sampler]) < 0.25, f"errors {coarse:.2e}, {fine:.2e}"


@pytest.mark.parametrize("sampler", DETERMINISTIC)
@pytest.mark.parametrize("path", ["flow", "linear"])
def test_deterministic_samplers_have_their_strong_order_on_a_mixture(path, sampler):
    mixture = WEIGHTS, MEANS, STDS
    with jax.enable_x64(True):
        x = jnp.linspace(-2.0, 2.0, 9)
        exact = transported(PATHS[path], x, mixture)
        coarse, fine = (
            np.abs(run(PATHS[path], "velocity", sampler, n, x, mixture) - exact).mean() for n in (256, 512)
        )
    order = np.log2(coarse / fine)
    assert abs(order - DETERMINISTIC[sampler]) < 0.25, f"errors {coarse:.2e}, {fine:.2e}"
    assert fine < (0.05 if DETERMINISTIC[sampler] == 1 else 2e-3)


@pytest.mark.parametrize(
    ("path", "sampler", "data"),
    [
        ("flow", "ddpm", "gaussian"),
        ("flow", "ddpm", "mixture"),
        ("linear", "ddpm", "gaussian"),
        ("linear", "ddpm", "mixture"),
        ("flow", "sde", "gaussian"),
        ("flow", "sde", "mixture"),
        # On the variance path the SDE's leading error nearly cancels unless it churns more.
        ("linear", "sde-4", "gaussian"),
    ],
)
def test_stochastic_samplers_have_weak_order_one_in_mean_and_variance(path, sampler, data):
    path, sampler = PATHS[path], {"ddpm": DDIM(eta=1.0), "sde": SDE(), "sde-4": SDE(churn=4.0)}[sampler]
    mixture = (WEIGHTS, MEANS, STDS) if data == "mixture" else (np.ones(1), np.array([0.6]), np.array([0.5]))
    # As many as it takes for the variance's own chance error to stay well below the sampler's.
    n = 2**18 if isinstance(sampler, SDE) else 2**16
    # Start from the quantiles of x_START: then only the sampler's own draws are random.
    weights, means, stds = marginal(path, START, *mixture)
    which = np.repeat(np.arange(len(weights)), np.round(weights * n).astype(int))
    quantiles = stats.norm.ppf((np.arange(len(which)) + 0.5) / len(which))
    x = means[which] + stds[which] * np.random.default_rng(0).permutation(quantiles)
    weights, means, stds = marginal(path, END, *mixture)
    mean = np.sum(weights * means)
    variance = np.sum(weights * (stds**2 + means**2)) - mean**2
    with jax.enable_x64(True):
        coarse, fine = (
            run(path, "velocity", sampler, steps, jnp.asarray(x), mixture, jax.random.key(1))
            for steps in (32, 64)
        )
    order = np.log2((coarse.var() - variance) / (fine.var() - variance))
    assert abs(order - 1) < 0.4, f"variances {coarse.var():.4f}, {fine.var():.4f}, exact {variance:.4f}"
    chance = 4 * np.sqrt(variance / n)
    assert abs(fine.mean() - mean) < 0.6 * abs(coarse.mean() - mean) + chance


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ancestral_steps_are_exact_when_the_data_is_known(path, eta):
    """With one data point the posterior is known: few large steps have the right law at every time."""
    path, point, n = PATHS[path], 0.7, 2**16
    noise = jax.random.normal(jax.random.key(0), (n,))
    start = path.alpha(0.9) * point + path.sigma(0.9) * noise
    out = sample(
        lambda x, t: jnp.full_like(x, point),
        jax.random.key(1),
        start,
        path=path,
        prediction="data",
        sampler=DDIM(eta=eta),
        times=[0.9, 0.5, 0.3],
    )
    assert abs(out.mean() - path.alpha(0.3) * point) < 5 * path.sigma(0.3) / np.sqrt(n)
    assert abs(out.var() / path.sigma(0.3) ** 2 - 1) < 5 * np.sqrt(2 / n)


@pytest.mark.smoke
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("path", "prediction"),
    [
        (FlowPath(), "velocity"),
        (FlowPath(), "data"),
        (VariancePath("linear"), "noise"),
        (VariancePath("sine"), "data"),
        (VariancePath("karras"), "noise"),
        (VariancePath("karras"), "velocity"),
    ],
)
def test_every_sampler_reaches_the_only_data_there_is(path, prediction, sampler):
    """From pure noise to clean data in float32: nothing overflows at the ends and no noise is left over."""
    point = jnp.array([0.3, -0.8, 0.5])

    def predict(x, t):
        alpha, sigma = path.alpha(t)[:, None], jnp.maximum(path.sigma(t)[:, None], 1e-6)
        noise = (x - alpha * point) / sigma
        a, b = path.velocity_weights(alpha, sigma)
        value = {"data": point + 0 * x, "noise": noise, "velocity": a * noise - b * point}[prediction]
        return value.astype(jnp.float32)

    noise = jax.random.normal(jax.random.key(0), (4, 3))
    out = sample(
        predict, jax.random.key(1), noise, path=path, prediction=prediction, sampler=sampler, steps=12
    )
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, jnp.broadcast_to(point, out.shape), atol=1e-5)


def test_euler_is_ddim_on_the_flow_path():
    mixture = WEIGHTS, MEANS, STDS
    x = jnp.linspace(-2, 2, 7)
    euler = run(FlowPath(), "velocity", "euler", 10, x, mixture)
    np.testing.assert_allclose(euler, run(FlowPath(), "velocity", "ddim", 10, x, mixture), atol=2e-6)


@pytest.mark.parametrize(("sampler", "evaluations"), [("euler", 5), ("heun", 9), ("dpm++2m", 5), ("sde", 5)])
def test_the_network_is_compiled_once_whatever_the_steps(sampler, evaluations):
    traced = []

    def predict(x, t):
        traced.append(x.shape)
        return x

    jaxpr = jax.make_jaxpr(
        lambda noise, key: sample(predict, key, noise, path=FlowPath(), sampler=sampler, steps=5)
    )(jnp.zeros((2, 3)), jax.random.key(0))
    scans = [equation for equation in jaxpr.eqns if equation.primitive.name == "scan"]
    assert len(traced) == 1
    assert [scan.params["length"] for scan in scans] == [evaluations]


def test_the_network_is_told_the_times_of_the_grid():
    times = time_grid(6, start=0.9, end=0.1, grid="quadratic", shift=2.0)
    noise = jnp.zeros((3, 2))
    out = sample(
        lambda x, t: jnp.tile(t[:, None], 2), None, noise, path=FlowPath(), sampler="euler", times=times
    )
    np.testing.assert_allclose(out, np.full((3, 2), np.sum(np.diff(times) * times[:-1])), rtol=1e-6)


@pytest.mark.parametrize("sampler", ["heun", "dpm++2m", "ddpm"])
def test_the_trajectory_holds_every_step(sampler):
    mixture = WEIGHTS, MEANS, STDS
    predict = denoiser(FlowPath(), "velocity", *mixture)
    noise, key = jax.random.normal(jax.random.key(0), (5,)), jax.random.key(1)
    times = np.linspace(0.95, 0.05, 7)
    kwargs = {"path": FlowPath(), "sampler": sampler}
    out, passed = sample(predict, key, noise, times=times, trajectory=True, **kwargs)
    assert passed.shape == (6, 5)
    np.testing.assert_array_equal(passed[-1], out)
    if sampler == "heun":
        np.testing.assert_allclose(
            sample(predict, key, noise, times=times[:4], **kwargs), passed[2], atol=1e-6
        )


@pytest.mark.parametrize("sampler", ["ddpm", "sde", "heun"])
def test_with_a_key_each_an_example_does_not_depend_on_its_batch(sampler):
    predict = denoiser(FlowPath(), "velocity", WEIGHTS, MEANS, STDS)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(6))
    noise = jax.vmap(jax.random.normal)(keys)
    draw = jax.jit(
        lambda keys, noise: sample(predict, keys, noise, path=FlowPath(), sampler=sampler, steps=6)
    )
    whole = draw(keys, noise)
    np.testing.assert_allclose(
        jnp.concatenate([draw(keys[:2], noise[:2]), draw(keys[2:], noise[2:])]), whole, atol=1e-5
    )


def test_clip_bounds_the_data_estimate():
    noise = jax.random.normal(jax.random.key(0), (50,))
    kwargs = {"path": FlowPath(), "sampler": "ddim", "steps": 4}
    out = sample(lambda x, t: -5 * x, None, noise, clip=1.0, **kwargs)
    assert jnp.max(jnp.abs(out)) <= 1
    assert jnp.max(jnp.abs(sample(lambda x, t: -5 * x, None, noise, **kwargs))) > 1


def test_a_network_in_half_precision_keeps_the_state_in_float32():
    noise = jax.random.normal(jax.random.key(0), (8,))
    out = sample(lambda x, t: (x * t).astype(jnp.bfloat16), None, noise, path=FlowPath(), steps=3)
    assert out.dtype == jnp.float32


def test_a_noise_prediction_starts_where_there_is_signal():
    assert first_time(FlowPath(), "velocity") == 1.0
    assert first_time(VariancePath("linear"), "noise") == pytest.approx(0.999)
    assert first_time(VariancePath("karras"), "noise") == 1.0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sampler": "huen"}, "Did you mean 'heun'"),
        ({"prediction": "epsilon"}, "prediction"),
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"grid": "unifrom"}, "Did you mean 'uniform'"),
        ({"start": 0.2, "end": 0.5}, "start"),
        ({"shift": 0.0}, "shift"),
        ({"times": [0.1, 0.9]}, "fall strictly"),
        ({"times": [1.2, 0.0]}, "fall strictly"),
        ({"times": [0.5]}, "at least two"),
        ({"times": [1.0, 0.0], "prediction": "noise"}, "start a little later"),
        ({"clip": -1.0}, "clip"),
        ({"sampler": "ddpm"}, "key"),
    ],
)
def test_mistakes_are_explained(kwargs, message):
    with pytest.raises(InputError, match=message):
        sample(lambda x, t: x, None, jnp.zeros(3), path=FlowPath(), **kwargs)


def test_mistakes_in_a_sampler_are_explained():
    with pytest.raises(InputError, match="eta"):
        DDIM(eta=1.5)
    with pytest.raises(InputError, match="churn"):
        SDE(churn=0.0)
    with pytest.raises(InputError, match="Did you mean 'sine'"):
        SDE(diffusion="sin")
