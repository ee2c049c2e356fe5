"""Whole networks, built from a configuration that is checked first."""

import dataclasses
import functools
import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from pom_jax.errors import InputError, choose
from pom_jax.models.dipom import DiPoM as DiPoM
from pom_jax.models.presets import NAMES as NAMES
from pom_jax.models.presets import preset as preset
from pom_jax.nn.blocks import REMAT
from pom_jax.nn.embeddings import POSITIONS

DTYPES = ("float32", "bfloat16")

CHOICES = {
    "mixer": ("pom", "attention"),
    "form": ("product", "power"),
    "positions": (*POSITIONS, "learned"),
    "remat": REMAT,
}
"""The words a field of a model can be."""

LEAST = {"registers": 0, "clamp": 0.0, "gate_heads": 0}
"""Smallest values of number fields; 1 where a field is not listed."""


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
    fields = {f.name: f for f in dataclasses.fields(DiPoM) if f.name not in ("dtype", "parent", "name")}
    for key in config:
        choose("field of the model", key, fields)
    missing = [k for k, f in fields.items() if f.default is dataclasses.MISSING and k not in config]
    if missing:
        raise InputError(f"missing in the model configuration: {', '.join('model.' + k for k in missing)}")
    for key in config:
        _check_value(key, config[key], fields[key].type)
    model = DiPoM(**{key: config[key] for key in config}, dtype=jnp.dtype(dtype))
    _check_sizes(model)
    return model


def init(model: DiPoM, key: jax.Array) -> dict[str, typing.Any]:
    """Draws parameters: nested dicts of float32 arrays, blocks stacked along a leading axis L.

    Pure, so it can be jitted with output shardings; `jax.eval_shape` gives the shapes without computing.
    """
    return dict(model.init(key, *dummy_inputs(model))["params"])


def dummy_inputs(model: DiPoM, batch: int = 1) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Zeros in the shapes of the model's call: images [B, H, W, C], times [B], labels [B] int32."""
    shape = (batch, model.image_size, model.image_size, model.channels)
    return jnp.zeros(shape), jnp.zeros((batch,)), jnp.zeros((batch,), jnp.int32)


def count_parameters(model: DiPoM) -> int:
    """Number of trainable values, without computing any."""
    shapes = jax.eval_shape(functools.partial(init, model), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _check_value(key: str, value: typing.Any, kind: typing.Any) -> None:
    allowed = int | float if kind is float else kind
    if not isinstance(value, allowed) or (kind is not bool and isinstance(value, bool)):
        raise InputError(f"model.{key}={value!r} must be of type {kind.__name__}")
    if key in CHOICES:
        choose(f"model.{key}", value, CHOICES[key])
    if kind in (int, float) and not LEAST.get(key, 1) <= value < float("inf"):
        raise InputError(f"model.{key}={value} must be at least {LEAST.get(key, 1)}")


def _check_sizes(m: DiPoM) -> None:
    expanded = m.expansion * m.width
    heads = max(m.gate_heads, 1)
    rules = [
        (m.image_size % m.patch_size, "image_size", m.image_size, "patch_size", m.patch_size),
    ]
    if m.mixer == "attention":
        rules.append((m.width % m.num_heads, "width", m.width, "num_heads", m.num_heads))
    elif m.form == "power":
        rules.append((m.width % m.groups, "width", m.width, "groups", m.groups))
        rules.append((expanded % heads, "expansion * width", expanded, "gate_heads", heads))
    for remainder, whole, a, part, b in rules:
        if remainder:
            raise InputError(f"model.{whole}={a} is not a multiple of model.{part}={b}: change one of them")
    if m.mixer == "pom" and m.form == "product" and (heads > 1 or m.groups > 1):
        raise InputError(
            f"model.gate_heads={m.gate_heads} and model.groups={m.groups} belong to the power form: "
            "set both to 1 or model.form='power'"
        )
    if m.positions != "learned" and m.width % 4:
        raise InputError(f"model.width={m.width} must be a multiple of 4 for positions={m.positions!r}")
    if m.width % 2:
        raise InputError(f"model.width={m.width} must be even: time features come in pairs")
