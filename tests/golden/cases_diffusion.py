"""Noise schedules, targets, guidance, and the samplers, where the official ones do what they are meant to."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pom_jax.diffusion.guidance import GUIDANCE_SCHEDULES, clamp_linear, guide, trunc_linear
from pom_jax.diffusion.paths import FlowPath, VariancePath, target
from pom_jax.diffusion.samplers import DDIM, sample
from pom_jax.diffusion.schedules import time_grid, variances
from tests.golden.case import Case, Check, Findings, LeftOut, apply
from tests.golden.cases_layers import image_model_of

MARGIN = 1e-6  # the authors keep noise variances this far from 0 and 1
FIRST, LAST = 0.999, 0.001  # ends of the authors' grids for flow matching
T = 1000

GRID_MISTAKE = "times are spaced 1/(N - 1) but the steps are 1/N: every step is compared alone"
NETWORK = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def schedules(case: Case) -> Findings:
    """Variances, noisy samples, time grids, guidance weights and losses."""
    a, tolerance = {k: jnp.asarray(v) for k, v in case.arrays.items()}, case.tolerance("out")
    for name, official in case.group("out/schedule").items():
        if name.startswith("sigmoid_class"):
            yield LeftOut(f"schedule/{name}", "a second sigmoid that the authors' code never uses")
            continue
        ours = jnp.clip(variances(name, a["in/u"])[0], MARGIN, 1 - MARGIN)
        yield Check(f"schedule/{name}", ours, official, tolerance)
    for name, official in case.group("out/add_noise").items():
        t = jnp.clip(a["in/t_int" if name.endswith("_int") else "in/t"].astype(jnp.float32) / T, 0, 1)
        kind, _, schedule = name.removesuffix("_int").partition("_")
        path = (
            FlowPath()
            if kind in ("fm", "heun")
            else VariancePath(schedule or "linear", MARGIN * bool(schedule))
        )
        yield Check(f"add_noise/{name}", path.add_noise(a["in/x"], a["in/eps"], t), official, tolerance)
    shapes = {"clamp_linear": clamp_linear, "trunc_linear": trunc_linear}
    for name, official in case.group("out/cfg").items():
        shape, _, floor = name.rpartition("_")
        weight = shapes[shape](float(floor)) if shape in shapes else GUIDANCE_SCHEDULES[name]
        yield Check(f"cfg/{name}", weight(a["in/u_cfg"]), official, tolerance)
    for name, official in case.group("out/timesteps").items():
        kind, steps = name.split("_")
        if kind.startswith("dd"):
            ours = time_grid(int(steps) - 1)
        else:
            ours = time_grid(int(steps), start=FIRST, end=LAST)
        yield Check(f"timesteps/{name}", ours * T, official, tolerance)
    for name, (path, prediction) in {
        "fm": (FlowPath(), "velocity"),
        "eps": (VariancePath(), "noise"),
    }.items():
        wanted = target(path, prediction, a["in/x"], a["in/eps"], a["in/t"] / T)
        loss = jnp.mean(jnp.square(a["in/pred"] - wanted))
        yield Check(f"loss/{name}", loss, case.arrays[f"out/loss/{name}"], tolerance)


def linear_samplers(case: Case) -> Findings:
    """One sampler over the closed-form network of the file."""
    p = {k: jnp.asarray(v) for k, v in case.group("param").items()}

    def network(x: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
        slope = (0.6 + 0.3 * jnp.cos(jnp.pi * t))[:, None, None, None]
        return slope * jnp.einsum("oc,bchw->bohw", p["W"], x) + (t[:, None] * p["b"][labels])[..., None, None]

    for weight in ("cfg0", "cfg2"):
        arrays = case.group(f"out/{weight}")
        yield from _sampler(case.meta["sampler"], weight, case.tolerance(weight), arrays, case, network)


def model_samplers(case: Case) -> Findings:
    """Five samplers over a small DiPoM."""
    model, make = image_model_of(case)
    tree = make({k: jnp.asarray(v) for k, v in case.group("param").items()})

    def network(x: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
        return apply(model, tree, x.transpose(0, 2, 3, 1), t, labels).transpose(0, 3, 1, 2)

    for run in sorted({tuple(k.split("/")[1:3]) for k in case.arrays if k.startswith("out/")}):
        sampler, weight = run
        arrays = case.group(f"out/{sampler}/{weight}")
        yield from _sampler(sampler, weight, case.tolerance("/".join(run)), arrays, case, network)


def _sampler(
    name: str, weight: str, tolerance: float, arrays: dict[str, np.ndarray], case: Case, network: NETWORK
) -> Findings:
    labels = jnp.asarray(case.arrays["in/labels"], jnp.int32)
    predict = jax.jit(guide(network, labels, 1000, 1.0 + float(weight.removeprefix("cfg"))))
    arguments = _arguments(case, name)
    kind = name.split("_")[0]
    if kind in ("fm", "heun"):
        yield from _flow(kind, f"{name}/{weight}", tolerance, arrays, case, predict)
    elif kind == "ddim":
        yield from _ddim(f"{name}/{weight}", tolerance, arrays, case, predict, arguments)
    elif kind == "ddpm":
        yield from _ddpm(f"{name}/{weight}", tolerance, arrays, case, predict, arguments)
    else:
        reason = (
            "another second-order solver (noise extrapolated; first step mistaken): ours extrapolates data"
        )
        yield LeftOut(f"{name}/{weight}", reason)


def _arguments(case: Case, name: str) -> dict[str, Any]:
    given = case.meta.get("sampler_args") or {}
    if "sampler" not in case.meta:
        given = given.get(name, {})
    clip = given["clip_value"] if given.get("clip_img_pred") else None
    return {
        "schedule": given.get("schedule", "linear"),
        "clip": clip,
        "until": given.get("clip_timestep", 0.0),
    }


def _flow(kind: str, name: str, tolerance: float, arrays: dict, case: Case, predict: Any) -> Findings:
    """Their steps are 1/N between labels 0.998/N apart; a factor in the network makes ours as long."""
    steps = case.meta["call"]["num_inference_steps"]

    def stretched(x: jax.Array, t: jax.Array) -> jax.Array:
        return predict(x, t) / (FIRST - LAST)

    times = time_grid(steps, start=FIRST, end=LAST)
    noise = jnp.asarray(case.arrays["in/noise"])
    sampler = "euler" if kind == "fm" else kind
    _, ours = sample(stretched, None, noise, path=FlowPath(), sampler=sampler, times=times, trajectory=True)
    yield Check(f"{name}/trajectory", ours, arrays["trajectory"][:steps], tolerance)
    if kind == "fm":
        yield LeftOut(f"{name}/samples", "N + 1 steps of 1/N overshoot: the first N are compared")
    else:
        yield Check(f"{name}/samples", ours[-1], arrays["samples"], tolerance)


def _steps(arrays: dict, case: Case) -> list[tuple[int, jax.Array, float, float, float]]:
    """(i, x before the step, the network's time, time of the noise in x, time after the step)."""
    labels = arrays["model_times"].astype(np.float64) / T
    before = [case.arrays["in/noise"], *arrays["trajectory"][:-1]]
    steps = []
    for i, label in enumerate(labels):
        times = np.clip([label, label - 1 / len(labels)], 0, FIRST)
        if times[0] > times[1]:
            steps.append((i, jnp.asarray(before[i]), label, times[0], times[1]))
    return steps


def _ddim(name: str, tolerance: float, arrays: dict, case: Case, predict: Any, arguments: dict) -> Findings:
    path = VariancePath(arguments["schedule"], MARGIN)
    for i, x, label, now, after in _steps(arrays, case):
        said = predict(x, jnp.full(len(x), label, x.dtype))
        ours = sample(
            lambda x, t, said=said: said,
            None,
            x,
            path=path,
            prediction="noise",
            sampler="ddim",
            times=[now, after],
            clip=arguments["clip"],
        )
        yield Check(f"{name}/step{i}", ours, arrays["trajectory"][i], tolerance)
    yield LeftOut(f"{name}/samples", GRID_MISTAKE)


def _ddpm(name: str, tolerance: float, arrays: dict, case: Case, predict: Any, arguments: dict) -> Findings:
    """The mean of a step: ours is that of the posterior, theirs is the same."""
    path = VariancePath(arguments["schedule"], MARGIN)
    for i, x, label, now, after in _steps(arrays, case):
        noise = predict(x, jnp.full(len(x), label, x.dtype))
        times = np.array([now, after])
        alpha, sigma = path.alpha(times), path.sigma(times)
        data = (x - sigma[0] * noise) / alpha[0]
        if arguments["clip"] and label > arguments["until"]:
            data = jnp.clip(data, -arguments["clip"], arguments["clip"])
            noise = (x - alpha[0] * data) / sigma[0]
        row = DDIM(eta=1.0).plan(path, times).rows
        ours = row["data"] * data + row["noise"] * noise
        spread = np.sqrt(1 - (alpha[0] / alpha[1]) ** 2)
        official = arrays["trajectory"][i] - spread * case.arrays["in/step_noise"][i]
        yield Check(f"{name}/step{i} mean", ours, official, tolerance)
    yield LeftOut(f"{name}/samples", f"their noise is a forward step's, ours the posterior's; {GRID_MISTAKE}")
