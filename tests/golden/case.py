"""One file of the golden format, and the comparison of an array with the authors' one."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

# The smallest tolerance that files without one get: forward and gradients of the video and upscaling files.
DEFAULT_TOLERANCE = {"out": 5e-5, "grad": 3e-4}


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs, parameters and results of one piece of the authors' code.

    Attributes:
        name: of the file.
        meta: how it was made (constructor, call, tolerance, ...).
        arrays: everything else, by full key such as "param/ho_proj.weight" or "grad/in/xq".
    """

    name: str
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays under `prefix/`, by the rest of their key."""
        return {k[len(prefix) + 1 :]: v for k, v in self.arrays.items() if k.startswith(prefix + "/")}

    def tolerance(self, kind: str) -> float:
        """Of "out", "grad" or a key the file names itself, as a share of the array's maximum."""
        return (self.meta.get("tolerance") or DEFAULT_TOLERANCE)[kind]


def load(path: Path) -> Case:
    """Reads one .npz file."""
    with np.load(path, allow_pickle=False) as data:
        arrays = {key: data[key] for key in data.files if key != "meta"}
        return Case(path.stem, json.loads(str(data["meta"])), arrays)


@dataclasses.dataclass(frozen=True)
class Check:
    """One array of ours against the official one; `tolerance` is a share of the official maximum."""

    name: str
    ours: Any
    official: Any
    tolerance: float

    @property
    def error(self) -> float:
        """max |ours - official| / max |official|; absolute where the official is zero; infinite if unlike."""
        ours, official = np.asarray(self.ours, np.float64), np.asarray(self.official, np.float64)
        if ours.shape != official.shape:
            return float("inf")
        gap = np.max(np.abs(ours - official), initial=0.0)
        return (
            float(gap / (np.max(np.abs(official), initial=0.0) or 1.0)) if np.isfinite(gap) else float("inf")
        )


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A part of a case that is not compared, and why."""

    part: str
    reason: str


Findings = Iterator[Check | LeftOut]
Adapter = Callable[[Case], Findings]
Tensors = dict[str, jax.Array]


def apply(module: nn.Module, tree: Any, *inputs: Any, **options: Any) -> jax.Array:
    """The output of a module with these parameters."""
    return cast(jax.Array, module.apply({"params": tree}, *inputs, **options))


def compare_module(case: Case, apply: Callable[[Tensors, Tensors], Tensors]) -> Findings:
    """Compares the outputs and every gradient of a differentiable function of parameters and inputs.

    Gradients are taken through the conversion of the authors' tensors into ours, so they come out in the
    authors' names and layouts.

    Args:
        apply: (parameters, inputs) in the authors' names and layouts -> outputs in theirs.
    """
    trainable = case.meta.get("trainable") or []
    varied = case.meta.get("inputs_with_grad") or []
    parameters = {k: jnp.asarray(v) for k, v in case.group("param").items()}
    inputs = {k: jnp.asarray(v) for k, v in case.group("in").items() if not k.startswith("cotangent/")}
    cotangents = {k: jnp.asarray(v) for k, v in case.group("in/cotangent").items()}

    @jax.jit
    def run(some: Tensors, other: Tensors, cotangents: Tensors) -> tuple[Tensors, tuple[Tensors, Tensors]]:
        def outputs(some: Tensors, other: Tensors) -> Tensors:
            return apply(parameters | some, inputs | other)

        value, pull = jax.vjp(outputs, some, other)
        if not cotangents:
            return value, ({}, {})
        # The counts of a state have none.
        return value, pull({k: cotangents.get(k, jnp.zeros_like(v)) for k, v in value.items()})

    some, other = {k: parameters[k] for k in trainable}, {k: inputs[k] for k in varied}
    value, (by_parameter, by_input) = run(some, other, cotangents)
    for name, official in case.group("out").items():
        yield Check(f"out/{name}", value[name], official, case.tolerance("out"))
    gradients = {f"param/{k}": v for k, v in by_parameter.items()} | {
        f"in/{k}": v for k, v in by_input.items()
    }
    for name, official in case.group("grad").items():
        yield Check(f"grad/{name}", gradients[name], official, case.tolerance("grad"))


def unit_time(time: np.ndarray, n_timesteps: int) -> jax.Array:
    """Times in [0, T] as ours in [0, 1], such that T times ours is the very float32 they had if one does."""
    wanted = np.asarray(time, np.float32)
    t = (np.asarray(time, np.float64) / n_timesteps).astype(np.float32)
    for other in (np.nextafter(t, np.float32(0)), np.nextafter(t, np.float32(2))):
        nearer = np.abs(other * np.float32(n_timesteps) - wanted) < np.abs(
            t * np.float32(n_timesteps) - wanted
        )
        t = np.where(nearer, other, t)
    return jnp.asarray(t)
