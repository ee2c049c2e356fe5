"""The tensors of the authors' text-to-video model -> `Polymorpher` and its parameters."""

from collections.abc import Mapping
from typing import Any

from pom_jax.errors import InputError
from pom_jax.interop import model_sizes
from pom_jax.interop.image_models import (
    Imported,
    converted,
    find_layout,
    refuse,
    select_weights,
    wrong_tensors,
)
from pom_jax.interop.model_layouts import MARKS, VIDEO, WHOSE
from pom_jax.interop.names import plain_names


def of_clips(tensors: Mapping[str, Any]) -> bool:
    """Whether these are the tensors of a model for video."""
    return any(name == MARKS[2] or name.endswith(f".{MARKS[2]}") for name in plain_names(tensors))


def import_video_model(
    tensors: Mapping[str, Any],
    *,
    frames: int | None = None,
    frame_height: int | None = None,
    frame_width: int | None = None,
    weights: str | None = None,
    objective: str | None = None,
    preset: str | None = None,
    text_length: int = 64,
    frame_causal: bool = False,
    degree: int | None = None,
    patch_size: int | None = None,
    frame_patch: int | None = None,
) -> Imported:
    """Makes a model of the tensors of HoMM's `TextVideoDiH` (branch `text2video`).

    Names are read as `import_model` reads them, and gates 1 + g stay such (`unit_gates`).

    Args:
        tensors: name -> array of numpy or JAX or torch tensor, floating-point numbers of any precision.
        frames, frame_height, frame_width: of the latents that the model was made for, 20, 16 and 30 in their
            configuration; no tensor tells, and positions go by the frames.
        weights: "ema" or "online"; by default the average where there is one.
        objective: "flow" or "noise", for which the networks are the same.
        preset: a name such as "Polymorpher-B/2", which tells degree and patches and has to fit the rest.
        text_length: most tokens of a text, 64 in their data.
        frame_causal: it was trained with their mask by frames (`block_causal`).
        degree, patch_size, frame_patch: of polynomials and patches, whose shapes only tell products.

    Returns:
        The model, its parameters, and what they were.

    Raises:
        InputError: no such model; a size that has to be given, or is another; or in one message all names
            that are missing or left over, or all shapes that do not fit.
    """
    found, weights = select_weights(tensors, weights)
    layout = find_layout(found, objective)
    if layout != VIDEO:
        raise InputError(f"the tensors are of {WHOSE[layout]}: import_model makes a model of them")
    refuse(layout, wrong_tensors(found, layout))
    sizes = (frames, frame_height, frame_width, patch_size, frame_patch, degree)
    told = dict(zip(model_sizes.OF_CLIPS, sizes, strict=True))
    told |= {"text_length": text_length, "frame_causal": frame_causal}
    return converted(found, layout, model_sizes.fields(found, layout, told, preset), weights)
