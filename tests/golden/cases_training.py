"""Optimisers, learning rates and averages, step by step with given gradients."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pom_jax.training import ema, optim
from tests.golden.case import Case, Check, Findings, LeftOut

Tree = dict[str, Any]


def adamw(case: Case) -> Findings:
    """Four steps of the optimiser of the default recipe, without clipping."""
    call = case.meta["call"]
    config = {
        "name": "adamw",
        "learning_rate": call["lr"],
        "schedule": "constant",
        "warmup_steps": 0,
        "decay_from": 0,
        "b1": call["betas"][0],
        "b2": call["betas"][1],
        "eps": call["eps"],
        "weight_decay": call["weight_decay"],
        "clip_norm": 0.0,
        "moments": "float32",
    }
    ours = _steps(
        optim.make_optimizer(config, 0), {"kernel": case.arrays["in/p0"]}, {"kernel": case.arrays["in/grads"]}
    )
    yield Check("out/p", ours["kernel"], case.arrays["out/p"], case.tolerance("out"))


def lamb(case: Case) -> Findings:
    """LAMB in its three settings, with a parameter that starts at zero."""
    for name, call in case.meta["call"].items():
        adapts = call.get("layer_adaptation", True) and not call.get("adam", False)
        optimizer = optim.lamb(
            call["lr"],
            b1=call["betas"][0],
            b2=call["betas"][1],
            eps=call["eps"],
            weight_decay=call["weight_decay"],
            adapt=adapts,
            decayed={"p": True, "z": True},
            stacked={"p": 0, "z": 0},
        )
        a = case.group(f"in/{name}")
        ours = _steps(optimizer, {"p": a["p0"], "z": a["z0"]}, {"p": a["grads_p"], "z": a["grads_z"]})
        for key in ("p", "z"):
            yield Check(
                f"out/{name}/{key}", ours[key], case.arrays[f"out/{name}/{key}"], case.tolerance("out")
            )


def _steps(optimizer: optax.GradientTransformation, params: Tree, grads: Tree) -> Tree:
    """The parameters after each of the given gradients, stacked along a leading axis."""
    params = {k: jnp.asarray(v) for k, v in params.items()}
    state = optimizer.init(params)
    history = []
    for i in range(len(next(iter(grads.values())))):
        updates, state = optimizer.update({k: jnp.asarray(v[i]) for k, v in grads.items()}, state, params)
        params = cast(Tree, optax.apply_updates(params, updates))
        history.append(params)
    return {k: np.stack([p[k] for p in history]) for k in params}


def learning_rates(case: Case) -> Findings:
    """The four curves up to the end of training, in float64."""
    call, steps = case.meta["call"], case.arrays["in/steps"]
    warmup, total = call["warmup_steps"], call["total_steps"]
    curves = {
        "warmup": ("constant", warmup),
        "warmup_cosine": ("cosine", warmup),
        "linear_decay": ("linear", 0),
        "sqrt_decay": ("sqrt", 0),
        "warmup0": ("constant", 0),
        "warmup_cosine_warmup0": ("cosine", 0),
    }
    for name, official in case.group("out").items():
        if name not in curves:
            yield LeftOut(name, "a cosine that stops half way")
            continue
        schedule, warmup_steps = curves[name]
        kept = steps <= total if schedule == "cosine" else np.ones(len(steps), bool)
        if name == "warmup0":
            kept = steps > 0
            yield LeftOut(f"{name} at step 0", "their ramp starts at zero even if it has no length")
        with jax.enable_x64():
            ours = [
                optim.learning_rate(
                    jnp.asarray(steps[kept], jnp.float64),
                    base,
                    schedule,
                    warmup_steps=warmup_steps,
                    total_steps=total,
                )
                for base in call["base_lr"]
            ]
        yield Check(f"out/{name}", np.stack(ours, axis=1), official[kept], case.tolerance("out"))
        if not kept[-1]:
            yield LeftOut(f"{name} after the end", "their cosine rises again, ours stays at zero")


def averages(case: Case) -> Findings:
    """80 updates of `ema_pytorch`, with its first copies, its ramp and its stride."""
    call, online = case.meta["call"], case.arrays["in/online"]
    index = jnp.arange(len(online) - 1)
    decays = ema.decay_at(index, call["beta"], start=call["update_after_step"], every=call["update_every"])
    average = {"w": jnp.asarray(online[0])}
    history = [average["w"]]
    for decay, params in zip(decays, online[1:], strict=True):
        average = ema.update(average, {"w": jnp.asarray(params)}, decay)
        history.append(average["w"])
    yield Check("out/ema", np.stack(history), case.arrays["out/ema"], case.tolerance("out"))
