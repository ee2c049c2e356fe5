"""What the fields of a model can be, alone and together."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pom_jax.errors import InputError, choose
from pom_jax.models.mixers import MIXERS
from pom_jax.nn.blocks import ACTIVATIONS, REMAT
from pom_jax.nn.embeddings import POSITIONS, TIME_EMBEDDINGS
from pom_jax.nn.pom_fields import FORMS

# The words a field of a model can be.
CHOICES: dict[str, Collection[str]] = {
    "mixer": MIXERS,
    "form": FORMS,
    "positions": (*POSITIONS, "learned"),
    "remat": REMAT,
    "time_embedding": TIME_EMBEDDINGS,
    "activation": tuple(ACTIVATIONS),
}

# Smallest values of number fields; 1 where a field is not listed.
LEAST = {
    "registers": 0,
    "native_size": 0,
    "clamp": 0.0,
    "gate_heads": 0,
    "vocabulary": 0,
    "past_frames": 0,
    "attention_every": 0,
    "window": 0,
    "head_width": 0,
}


def own_fields(model: Any) -> dict[str, dataclasses.Field]:
    """The fields of a model that a configuration sets: all but Linen's and the dtype."""
    return {f.name: f for f in dataclasses.fields(model) if f.name not in ("dtype", "parent", "name")}


def check_fields(model: Any) -> None:
    """Raises an InputError for the first field of a `DiPoM` that is wrong, or does not fit another."""
    check_values(model)
    _check_sizes(model)


def check_values(model: Any, choices: Mapping[str, Collection[str]] = CHOICES) -> None:
    """Raises an InputError for the first field of a model that is wrong in itself.

    Args:
        model: a Linen module.
        choices: the words that a field can be.
    """
    for name, field in own_fields(model).items():
        _check_value(name, getattr(model, name), field.type, choices)


def check_divisors(rules: Iterable[tuple[int, str, int, str, int]]) -> None:
    """Raises an InputError for the first (remainder, field, its value, part, its value) with a remainder."""
    for remainder, whole, a, part, b in rules:
        if remainder:
            raise InputError(f"model.{whole}={a} is not a multiple of model.{part}={b}: change one of them")


def check_pom_form(m: Any) -> None:
    """Raises an InputError for options of PoM's power form in its product form."""
    if m.mixer != "attention" and m.form == "product" and (max(m.gate_heads, 1) > 1 or m.groups > 1):
        raise InputError(
            f"model.gate_heads={m.gate_heads} and model.groups={m.groups} belong to the power form: "
            "set both to 1 or model.form='power'"
        )


def has_attention(m: Any) -> bool:
    """Whether a layer of a model has attention."""
    return m.mixer != "pom" or m.attention_every > 0


def check_layers(m: Any, of_pom: Collection[str]) -> None:
    """Raises an InputError for a layer's options where no layer has what they are of.

    Args:
        m: a model.
        of_pom: fields that are of PoM alone.
    """
    every = m.attention_every
    if every and m.mixer == "attention":
        raise InputError(
            f"model.attention_every={every} with model.mixer='attention', where every layer is: set it to 0, "
            "or model.mixer to what the other layers are"
        )
    if every == 1:
        raise InputError("model.attention_every=1 makes every layer attention: say model.mixer='attention'")
    if every and m.depth % every:
        raise InputError(
            f"model.depth={m.depth} is not a multiple of model.attention_every={every}: change one of them"
        )
    for name in of_pom:
        if getattr(m, name) and m.mixer == "attention":
            raise InputError(
                f"model.{name}={getattr(m, name)} is of PoM, and no layer has any: leave it out, or set "
                "model.mixer to 'pom' or 'hybrid'"
            )
    for name in ("window", "head_width"):
        if getattr(m, name) and not has_attention(m):
            raise InputError(
                f"model.{name}={getattr(m, name)} is of attention, and no layer has any: set "
                "model.attention_every, or model.mixer to 'hybrid' or 'attention'"
            )


def _check_value(key: str, value: Any, kind: Any, choices: Mapping[str, Collection[str]]) -> None:
    if key == "phase_periods":
        _check_periods(value)
        return
    if key == "reads":
        if not isinstance(value, tuple):
            raise InputError(f"model.reads={value!r} must be a tuple of words, such as ('all',)")
        return
    allowed = int | float if kind is float else kind
    if not isinstance(value, allowed) or (kind is not bool and isinstance(value, bool)):
        raise InputError(f"model.{key}={value!r} must be of type {kind.__name__}")
    if key in choices:
        choose(f"model.{key}", value, choices[key])
    if kind in (int, float) and not LEAST.get(key, 1) <= value < float("inf"):
        raise InputError(f"model.{key}={value} must be at least {LEAST.get(key, 1)}")


def _check_periods(value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(p, int | float) and p > 0 for p in value):
        raise InputError(
            f"model.phase_periods={value!r} must be a tuple of periods in patches, above 0, such as (16.0,)"
        )


def _check_sizes(m: Any) -> None:
    check_layers(m, of_pom=("rotary", "phase_periods"))
    expanded = m.expansion * m.width
    heads = max(m.gate_heads, 1)
    has_pom = m.mixer != "attention"
    rules = [
        (getattr(m, name) % m.patch_size, name, getattr(m, name), "patch_size", m.patch_size)
        for name in ("image_size", "native_size")
    ]
    if has_attention(m) and not m.head_width:
        rules.append((m.width % m.num_heads, "width", m.width, "num_heads", m.num_heads))
    if has_pom and m.form == "power":
        rules.append((m.width % m.groups, "width", m.width, "groups", m.groups))
        rules.append((expanded % heads, "expansion * width", expanded, "gate_heads", heads))
    if has_pom and m.rotary:
        rules.append((expanded % 4, "expansion * width", expanded, "rotary pairs on two axes", 4))
    check_divisors(rules)
    check_pom_form(m)
    if m.positions != "learned" and m.width % 4:
        raise InputError(f"model.width={m.width} must be a multiple of 4 for positions={m.positions!r}")
    if m.width % 2:
        raise InputError(f"model.width={m.width} must be even: time features come in pairs")
