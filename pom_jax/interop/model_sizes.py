"""The fields of a model from its tensors: shapes tell most, the caller or a preset the rest."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from pom_jax import models
from pom_jax.errors import InputError
from pom_jax.interop.model_layouts import FACEBOOK, FIXED, MARKS, VIDEO, WHOSE
from pom_jax.nn.embeddings import time_frequencies

# The axes of the tensors that are read here.
RANKS = {
    "in_conv.weight": 4,
    "classes_emb.weight": 2,
    "freqs": 1,
    "layers.0.ffw.0.weight": 2,
    "layers.0.hom.ho_proj.weight": 2,
    "registers": 3,
    "pos_emb": 3,
    "x_embedder.proj.weight": 4,
    "y_embedder.embedding_table.weight": 2,
    "blocks.0.mlp.fc1.weight": 2,
    "pos_embed": 3,
    "final_layer.linear.weight": 2,
    "in_proj.weight": 2,
    "text_emb.weight": 2,
}
# What a preset says of a model's sizes.
COMPARED = ("mixer", "width", "depth", "patch_size", "ffn_expansion", "registers")
NOTHING_TOLD = {"image_size": None, "degree": None, "num_heads": None}
# What has to be told of a model for video, and what a preset says of its sizes.
OF_CLIPS = ("frames", "frame_height", "frame_width", "patch_size", "frame_patch", "degree")
COMPARED_CLIPS = (
    "mixer",
    "width",
    "depth",
    "patch_size",
    "frame_patch",
    "ffn_expansion",
    "degree",
    "expansion",
)
Arrays = Mapping[str, np.ndarray]
Told = Mapping[str, int | None]


def depth(names: Mapping[str, Any]) -> int:
    """How many layers the names are of."""
    return len({match[1] for name in names if (match := re.match(r"(?:layers|blocks)\.(\d+)\.", name))})


def fields(found: Arrays, layout: str, told: Told, preset: str | None) -> dict[str, Any]:
    """The fields of `DiPoM`, or of `Polymorpher` with its family.

    Args:
        found: all tensors of the layout, each with as many axes as `RANKS` says.
        layout: of `model_layouts.FIXED`.
        told: image_size, degree and num_heads, or for video `OF_CLIPS` and text_length and frame_causal;
            None for what is not known.
        preset: the name of one, or None.

    Raises:
        InputError: a field that nothing tells, or that the tensors tell otherwise; shapes that tell none.
    """
    usual = {} if preset is None else models.preset(preset)
    given = {name: usual.get(name) if value is None else value for name, value in told.items()}
    measured = measure(found, layout, given)
    needed = [name for name, value in measured.items() if value is None]
    if needed:
        video = layout == VIDEO
        what = "frames, height and width are" if video else "image_size is the side"
        example = "" if video else ", 32 for pictures of 256 pixels"
        raise InputError(
            f"the tensors of {WHOSE[layout]} do not tell {' and '.join(needed)}; pass {'=, '.join(needed)}=: "
            f"{what} of the latents{example}; a preset such as "
            f"{'Polymorpher-B/2' if video else 'DiPoM-XL/2'!r} tells the others too"
        )
    compared = (*COMPARED, *(("num_heads",) if "num_heads" in measured else ("degree", "expansion")))
    if layout == VIDEO:
        compared = COMPARED_CLIPS
    wanted = {name: value for name, value in told.items() if value is not None}
    for source, expected in ((preset, {n: usual[n] for n in compared if usual}), ("the caller", wanted)):
        for name, value in expected.items():
            if measured.get(name) != value:
                raise InputError(
                    f"{name} = {value!r}, says {source}, but the tensors of {WHOSE[layout]} have "
                    f"{measured.get(name, 'none')!r}"
                )
    return measured


def measure(found: Arrays, layout: str, told: Told) -> dict[str, Any]:
    """The fields as `fields` gives them, but None where nothing tells."""
    if layout == VIDEO:
        return _measure_clips(found, told)
    facebook = layout in FACEBOOK
    width, channels, patch, _ = found[MARKS[facebook]].shape
    classes = "y_embedder.embedding_table.weight" if facebook else "classes_emb.weight"
    hidden = "blocks.0.mlp.fc1.weight" if facebook else "layers.0.ffw.0.weight"
    measured = FIXED[layout] | {
        "width": width,
        "channels": channels,
        "patch_size": patch,
        "depth": depth(found),
        "num_classes": len(found[classes]) - 1,
        "ffn_expansion": _times(found, hidden, width),
        "image_size": told["image_size"],
    }
    table = {"dihpp": "pos_emb", "dit": "pos_embed", "sit": "pos_embed"}.get(layout)
    if table:
        measured["image_size"] = _side(found, table) * patch
    if not facebook:
        measured["n_timesteps"] = _timesteps(found["freqs"], width)
    if layout in ("dih", "dihpp"):
        measured["degree"] = told["degree"]
        measured["expansion"] = _times(found, "layers.0.hom.ho_proj.weight", width * (told["degree"] or 1))
        measured["registers"] = found["registers"].shape[1] if layout == "dihpp" else 0
        # What `export_model` writes for gates without the 1.
        measured["unit_gates"] = found["layers.0.gate_mlp.1.bias"].dtype != np.float64
    else:
        measured["num_heads"] = told["num_heads"]
    return measured


def _measure_clips(found: Arrays, told: Told) -> dict[str, Any]:
    width, values = found["in_proj.weight"].shape
    degree, patch, frame_patch = (told.get(name) for name in ("degree", "patch_size", "frame_patch"))
    cells = frame_patch * patch**2 if patch and frame_patch else None
    if cells and values % cells:
        raise InputError(
            f"in_proj.weight has {values} columns, not a multiple of frame_patch * patch_size^2 = {cells}"
        )
    return FIXED[VIDEO] | {
        "family": "polymorpher",
        **{name: told.get(name) for name in OF_CLIPS},
        "text_length": told.get("text_length") or 1,
        "frame_causal": bool(told.get("frame_causal")),
        "channels": values // cells if cells else None,
        "text_width": found["text_emb.weight"].shape[1],
        "width": width,
        "depth": depth(found),
        "ffn_expansion": _times(found, "layers.0.ffw.0.weight", width),
        "expansion": _times(found, "layers.0.hom.ho_proj.weight", width * (degree or 1)),
        "n_timesteps": _timesteps(found["freqs"], width),
        "unit_gates": found["layers.0.gate_mlp.1.bias"].dtype != np.float64,
    }


def _side(found: Arrays, name: str) -> int:
    count = found[name].shape[1]
    if math.isqrt(count) ** 2 != count:
        raise InputError(f"{name} {list(found[name].shape)} is no table of a square of patches")
    return math.isqrt(count)


def _times(found: Arrays, name: str, width: int) -> int:
    rows = len(found[name])
    if rows % width:
        raise InputError(f"{name} has {rows} rows, not a multiple of {width} (the width, times the degree)")
    return rows // width


def _timesteps(frequencies: np.ndarray, width: int) -> int:
    """The T whose powers T^(-2 i / D) these are."""
    exact = frequencies.astype(np.float64)
    last = len(exact) - 1
    guess = round(exact[last] ** (-width / (2 * last))) if last and 0 < exact[last] < 1 else 1000
    for steps in (1000, guess):
        if exact.shape == (width // 2,) and agree(frequencies, time_frequencies(width, steps), 0.0):
            return steps
    raise InputError(f"freqs [{len(exact)}] are no frequencies T^(-2 i / D) of a width of D = {width}")


def agree(found: np.ndarray, expected: np.ndarray, scale: float = 1.0) -> bool:
    """Whether a table of values up to `scale` is this one but for rounding; bfloat16's stays in float32."""
    rounded = np.array_equal(found, found.astype(jnp.bfloat16).astype(found.dtype))
    near = 1e-2 if rounded or found.dtype.itemsize < 4 else 1e-5
    return found.shape == expected.shape and np.allclose(found, expected, rtol=near, atol=near * scale)
