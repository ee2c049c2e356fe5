"""What films that are asked for can be."""

from numbers import Integral
from typing import Any

import jax
import numpy as np

from pom_jax.errors import InputError
from pom_jax.models import Polymorpher, Text
from pom_jax.sampling.stream import StreamState


def check_count(what: str, number: Any, patch: int = 1) -> None:
    """Raises an InputError unless it is a number of frames that makes whole patches."""
    if not isinstance(number, Integral) or number < 1 or number % patch:
        several = f", and a multiple of {patch}, the frames of a patch" if patch > 1 else ""
        raise InputError(f"{what}={number!r}: it must be a whole number of at least 1{several}")


def check_size(size: Any) -> tuple[int, int]:
    """(height, width); raises an InputError for what is no pair of whole numbers."""
    if np.shape(size) != (2,) or not all(isinstance(side, Integral) for side in size):
        raise InputError(f"size={size!r} must be (height, width) of a frame, two whole numbers")
    return int(size[0]), int(size[1])


def check_given(given: Any) -> None:
    """Raises an InputError unless first frames are an array of floats."""
    is_array = isinstance(given, np.ndarray | jax.Array)
    if not is_array or not jax.dtypes.issubdtype(given.dtype, np.floating):
        kind = given.dtype if is_array else type(given).__name__
        raise InputError(
            f"given frames must be an array of floats, in the space of the model; got {kind}: "
            "generator.first_frames(...) makes them of uint8 pixels"
        )


def check_films(
    model: Polymorpher, count: int, frames: int | None, shape: tuple[int, ...], given: np.ndarray | None
) -> None:
    """Raises an InputError unless the model can draw such films.

    Args:
        model: the network.
        count: N, how many.
        frames: T of each, None for no end.
        shape: (c, H, W, C) of a chunk.
        given: [N, T0, H, W, C] first frames, if there are any.
    """
    patch, side = model.frame_patch, model.patch_size
    for what, number in {"frames": frames, "chunk": shape[0]}.items():
        if number is not None:
            check_count(what, number, patch)
    if min(shape[1:3]) < 1 or shape[1] % side or shape[2] % side:
        raise InputError(
            f"size={shape[1]}x{shape[2]}: height and width must be multiples of {side}, the side of a patch"
        )
    if given is None:
        return
    if given.ndim != 5 or len(given) != count or given.shape[2:] != shape[1:] or given.shape[1] % patch:
        raise InputError(
            f"given frames must be [{count}, T0, {', '.join(map(str, shape[1:]))}], T0 a multiple of "
            f"{patch}; got {given.shape}"
        )
    if not np.isfinite(given).all():
        raise InputError("given frames hold numbers that are not finite")
    if frames is not None and frames < given.shape[1]:
        raise InputError(f"frames={frames} of a film include its {given.shape[1]} given ones: ask for more")


def going_on(
    state: StreamState,
    size: tuple[int, int],
    seed: int,
    text: Text,
    captions: tuple[str, ...],
    guidance: float,
) -> StreamState:
    """The state from which films go on, maybe with another seed, other texts or another guidance.

    Raises:
        InputError: frames of another size; texts for another number of films; guidance, where later frames of
            the films had none.
    """
    if tuple(size) != state.size:
        raise InputError(
            f"size={size[0]}x{size[1]}: the films of this state have frames of {state.size[0]}x"
            f"{state.size[1]}; leave it out"
        )
    if len(text.mask) != len(state.films):
        raise InputError(f"there are {len(text.mask)} texts for the {len(state.films)} films of the state")
    if guidance != 1 and len(state.halves) == 1:
        raise InputError(
            f"guidance {guidance:g} of later frames: those of this state were drawn without, so it has no "
            "states without text; go on with --later_guidance=1 (later_guidance=1 in Python), or draw the "
            "films anew"
        )
    halves = state.halves if guidance != 1 else state.halves[:1]
    return state._replace(seed=seed, text=text, captions=captions, halves=halves)
