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
from pom_jax.models.polymorpher import Polymorpher as Polymorpher
from pom_jax.models.polymorpher import States as States
from pom_jax.models.polymorpher import Text as Text
from pom_jax.models.polymorpher_checks import check_polymorpher
from pom_jax.models.presets import NAMES as NAMES
from pom_jax.models.presets import VIDEO_NAMES as VIDEO_NAMES
from pom_jax.models.presets import preset as preset

DTYPES = ("float32", "bfloat16")

Model = DiPoM | Polymorpher

# Networks by `model.family`, and what checks their fields.
FAMILIES: Mapping[str, type[Model]] = {"dipom": DiPoM, "polymorpher": Polymorpher}
CHECKS = {DiPoM: check_fields, Polymorpher: check_polymorpher}


def family(config: Mapping[str, typing.Any]) -> type[Model]:
    """The class of a model's configuration; raises an InputError for an unknown one."""
    return choose("model.family", config.get("family", "dipom"), FAMILIES)


def build(config: Mapping[str, typing.Any], dtype: str = "float32") -> Model:
    """Makes a model from its configuration, after checking every field.

    Args:
        config: `family`, and the fields of its class by name (a dict or a ConfigDict), without `dtype`.
        dtype: compute dtype, "float32" or "bfloat16".

    Returns:
        The module; `init` makes its parameters.

    Raises:
        InputError: unknown or missing fields, wrong types, values out of range, sizes that do not divide.
    """
    choose("dtype", dtype, DTYPES)
    kind = family(config)
    given = {key: value for key, value in config.items() if key != "family"}
    fields = own_fields(kind)
    for key in given:
        choose("field of the model", key, fields)
    missing = [k for k, f in fields.items() if f.default is dataclasses.MISSING and k not in given]
    if missing:
        raise InputError(f"missing in the model configuration: {', '.join('model.' + k for k in missing)}")
    model = kind(**given, dtype=jnp.dtype(dtype))
    CHECKS[kind](model)
    return model


def init(model: Model, key: jax.Array) -> dict[str, typing.Any]:
    """Draws parameters: nested dicts of float32 arrays, blocks stacked along a leading axis L.

    Pure, so it can be jitted with output shardings; `jax.eval_shape` gives the shapes without computing.
    """
    return dict(model.init(key, *dummy_inputs(model))["params"])


def sample_shape(model: Model | Mapping[str, typing.Any]) -> tuple[int, ...]:
    """The shape of one sample of a model, or of its configuration: [H, W, C], or of a clip [T, H, W, C]."""
    sizes = _fields(model)
    names = ("frames", "frame_height", "frame_width") if "frames" in sizes else ("image_size", "image_size")
    return *(sizes[name] for name in names), sizes["channels"]


def count_tokens(model: Model | Mapping[str, typing.Any]) -> int:
    """Tokens of one sample of a model, or of its configuration: patches, and registers of an image model."""
    sizes = _fields(model)
    *frames, height, width, _ = sample_shape(model)
    patches = (height // sizes["patch_size"]) * (width // sizes["patch_size"])
    return patches * (frames[0] // sizes["frame_patch"]) if frames else patches + sizes["registers"]


def _fields(model: Model | Mapping[str, typing.Any]) -> Mapping[str, typing.Any]:
    """Of a model, or the configuration itself."""
    return vars(model) if isinstance(model, DiPoM | Polymorpher) else model


def dummy_inputs(model: Model, batch: int = 1) -> tuple[jax.Array, jax.Array, typing.Any]:
    """Zeros in the shapes of the model's call: samples [B, H, W, C] or [B, T, H, W, C], times [B], and labels
    [B] int32 or a `Text`."""
    given: typing.Any = jnp.zeros(batch, jnp.int32)
    if isinstance(model, Polymorpher):
        shape = (batch, model.text_length)
        words = jnp.zeros(shape, jnp.int32) if model.vocabulary else jnp.zeros((*shape, model.text_width))
        given = Text(words, jnp.ones(shape))
    return jnp.zeros((batch, *sample_shape(model))), jnp.zeros(batch), given


def count_parameters(model: Model) -> int:
    """Number of trainable values, without computing any."""
    shapes = jax.eval_shape(functools.partial(init, model), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
