"""A model and its parameters -> the tensors of the authors' models, or of facebookresearch's."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pom_jax import models
from pom_jax.errors import InputError
from pom_jax.interop import layouts, model_layouts
from pom_jax.interop.arrays import to_numpy
from pom_jax.interop.model_layouts import VIDEO, WHOSE
from pom_jax.training.digest import path_name


def export_model(model: models.Model, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of the model of theirs that computes the same; importing it gives the same bits back.

    Args:
        model: one that they have too: DiPoM is HoMM's DiH, DiPoM-R its DiH++, DiT its DiT, and with the
            positions, time embedding and activation of facebookresearch's DiT and SiT it is one of these,
            with `learn_sigma=False`. Polymorpher is HoMM's TextVideoDiH.
        variables: {"params": ...}, or the tree inside.

    Returns:
        Name -> float32 array in torch's layout. The biases of gates (`gate_mlp.1.bias`) of models made here
        are float64, because theirs are one lower and float32 does not hold that exactly; torch rounds them.
        `freqs` and `pos_embed` are computed; theirs differ in the last bits.

    Raises:
        InputError: a field that no model of theirs has; or in one message all parameters that are missing or
            in excess, and all shapes that do not fit the model.
    """
    models.CHECKS[type(model)](model)
    layout = _layout(model)
    for name, value in model_layouts.fixed(layout, model.positions == "sincos_phase").items():
        if getattr(model, name) != value:
            raise InputError(
                f"model.{name} = {getattr(model, name)!r} has no place in {WHOSE[layout]}, which has "
                f"model.{name} = {value!r}"
            )
    params = variables.get("params", variables)
    problems = "\n  ".join(_wrong_arrays(model, params))
    if problems:
        raise InputError(f"the parameters are not those of the model:\n  {problems}")
    table = model_layouts.entries(layout, model)
    arrays = jax.tree.map(lambda leaf: to_numpy(leaf).astype(np.float32), dict(params))
    pieces = model_layouts.leaves(arrays, table)
    return layouts.to_theirs(pieces, table) | model_layouts.computed(layout, model)


def _layout(model: models.Model) -> str:
    if isinstance(model, models.Polymorpher):
        return VIDEO
    if model.mixer == "pom":
        return "dihpp" if model.positions == "learned" else "dih"
    if model.positions == "dit" and model.time_embedding != "homm":
        return model.time_embedding
    return "homm_dit"


def _wrong_arrays(model: models.Model, params: Mapping[str, Any]) -> Iterable[str]:
    wanted, found = (
        _by_path(jax.eval_shape(lambda k: models.init(model, k), jax.random.key(0))),
        _by_path(params),
    )
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found or name not in wanted:
            yield f"{'missing' if name in wanted else 'unexpected'}: {name}"
        elif found[name].shape != wanted[name].shape:
            yield f"shape of {name}: {list(found[name].shape)}, but the model's is {list(wanted[name].shape)}"
        elif not jnp.issubdtype(found[name].dtype, jnp.floating):
            yield f"dtype of {name}: {found[name].dtype}, floating-point numbers are needed"


def _by_path(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
