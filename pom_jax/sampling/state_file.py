"""The state of films that grow, on disk: one .npz without pickled objects, of one model."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pom_jax.errors import BROKEN_NPZ, InputError
from pom_jax.models import Text
from pom_jax.sampling.stream import StreamState
from pom_jax.sampling.writers import check_place, replace_file
from pom_jax.training.digest import path_name

FORMAT = "pom_jax stream 3"
ENDING = ".npz"


def write_state(path: str | os.PathLike[str], state: StreamState, model: str) -> None:
    """Writes a state; only a complete file replaces an older one.

    Args:
        path: of the file, ending in .npz.
        state: of `StreamedFrames.state`.
        model: a checksum of the model and its parameters.

    Raises:
        InputError: another ending, or a place or disk that takes no file.
    """
    path = check_state_place(path)
    about = {
        "format": FORMAT,
        "model": model,
        "frame": state.frame,
        "size": state.size,
        "seed": state.seed,
        "captions": state.captions,
        "halves": len(state.halves),
    }
    arrays: dict[str, Any] = {"about": np.array(json.dumps(about)), "films": state.films}
    arrays |= {"text": state.text.tokens, "text_mask": state.text.mask}
    arrays |= {name: _bits(leaf) for name, leaf in _leaves(state.halves).items()}

    def save(file: Path) -> None:
        with file.open("wb") as out:
            np.savez(out, **arrays)
            out.flush()
            os.fsync(out.fileno())

    replace_file(path, save)


def check_state_place(path: str | os.PathLike[str]) -> Path:
    """The path of a file that `write_state` can write; raises an InputError if it cannot."""
    path = Path(path)
    if path.suffix != ENDING:
        raise InputError(f"{path}: the state of films is kept in a file that ends in {ENDING}")
    check_place(path)
    return path


def read_state(
    path: str | os.PathLike[str], empty: Callable[[tuple[int, int]], Any], model: str
) -> StreamState:
    """Reads a state.

    Args:
        path: of a file of `write_state`.
        empty: size (H, W) -> states [1, L or n, ...] of the model before any frame; the axis 2 of a cache
            may grow.
        model: a checksum of the model and its parameters.

    Raises:
        InputError: no such file, a damaged one, or one of another model.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such state; sample.py --save_state={path} writes one")
    try:
        with np.load(path, allow_pickle=False) as content:
            about = json.loads(str(content["about"]))
            if about["format"] != FORMAT:
                if str(about["format"]).startswith("pom_jax stream"):
                    raise InputError(
                        f"{path} was written by another version of pom_jax (format {about['format']!r}, here "
                        f"{FORMAT!r}): draw these films anew"
                    )
                raise ValueError(f"format {about['format']!r}")
            arrays = {name: content[name] for name in content.files}
    except BROKEN_NPZ as error:
        raise InputError(f"{path} is damaged, or no state of films: {error}") from error
    if about["model"] != model:
        raise InputError(
            f"{path} holds films of another model or checkpoint (checksum {about['model']}, here {model}): "
            "give the same --workdir, --step and --ema"
        )
    size = tuple(about["size"])
    template = (empty(size),) * about["halves"]
    leaves = _leaves(template)
    for name in ("films", "text", "text_mask", *leaves):
        if name not in arrays:
            raise InputError(f"{path} is damaged, or no state of films: it lacks {name}")
    found = {name: arrays[name].view(leaf.dtype) for name, leaf in leaves.items()}
    halves = jax.tree.unflatten(jax.tree.structure(template), list(found.values()))
    return StreamState(
        frame=about["frame"],
        size=size,
        seed=about["seed"],
        films=arrays["films"],
        text=Text(arrays["text"], arrays["text_mask"]),
        captions=tuple(about["captions"]),
        halves=halves,
    )


def checksum(meaning: Any) -> str:
    """16 hex digits of what JSON can hold."""
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:16]


def _leaves(halves: Any) -> dict[str, np.ndarray]:
    found = jax.tree_util.tree_leaves_with_path(halves)
    return {f"halves/{path_name(path)}": leaf for path, leaf in found}


def _bits(leaf: np.ndarray) -> np.ndarray:
    """bfloat16, which .npz does not know, as whole numbers of the same bits."""
    return leaf.view(np.uint16) if leaf.dtype == jax.numpy.bfloat16 else leaf
