"""Whole networks, built from a configuration that is checked first."""

import dataclasses
import functools
import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from pom_jax.errors import InputError, choose
from pom_jax.models.checks import check_fields
from pom_jax.models.checks import own_fields as own_fields
from pom_jax.models.dipom import DiPoM as DiPoM
from pom_jax.models.presets import NAMES as NAMES
from pom_jax.models.presets import preset as preset

DTYPES = ("float32", "bfloat16")


def build(config: Mapping[str, typing.Any], dtype: str = "float32") -> DiPoM:
    """Makes a model from its configuration, after checking every field.

    Args:
        config: fields of `DiPoM` by name (a dict or a ConfigDict), without `dtype`.
        dtype: compute dtype, "float32" or "bfloat16".

    Returns:
        The module; `init` makes its parameters.

    Raises:
        InputError: unknown or missing fields, wrong types, values out of range, sizes that do not divide.
    """
    choose("dtype", dtype, DTYPES)
    fields = own_fields(DiPoM)
    for key in config:
        choose("field of the model", key, fields)
    missing = [k for k, f in fields.items() if f.default is dataclasses.MISSING and k not in config]
    if missing:
        raise InputError(f"missing in the model configuration: {', '.join('model.' + k for k in missing)}")
    model = DiPoM(**{key: config[key] for key in config}, dtype=jnp.dtype(dtype))
    check_fields(model)
    return model


def init(model: DiPoM, key: jax.Array) -> dict[str, typing.Any]:
    """Draws parameters: nested dicts of float32 arrays, blocks stacked along a leading axis L.

    Pure, so it can be jitted with output shardings; `jax.eval_shape` gives the shapes without computing.
    """
    return dict(model.init(key, *dummy_inputs(model))["params"])


def dummy_inputs(model: DiPoM) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Zeros in the shapes of the model's call: images [1, H, W, C], times [1], labels [1] int32."""
    shape = (1, model.image_size, model.image_size, model.channels)
    return jnp.zeros(shape), jnp.zeros(1), jnp.zeros(1, jnp.int32)


def count_parameters(model: DiPoM) -> int:
    """Number of trainable values, without computing any."""
    shapes = jax.eval_shape(functools.partial(init, model), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
