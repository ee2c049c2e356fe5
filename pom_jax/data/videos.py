"""Clips with captions, read from video files, for text to video."""

from pathlib import Path

import numpy as np

from pom_jax.data.captioned_jobs import Reader
from pom_jax.data.clips import TooSmallClip, UnusableClip, read_clip
from pom_jax.data.pictures import Skipped
from pom_jax.errors import InputError


def clip_reader(fps: float | None = None, min_size: int = 0) -> Reader:
    """Reads clips as `read_clip` does.

    Raises:
        InputError: numbers out of range.
    """
    if (fps is not None and not 0 < fps < 1000) or min_size < 0:
        raise InputError(f"--fps={fps} must be above 0 and below 1000, --min-size={min_size} at least 0")

    def read(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray | Skipped:
        frames, height, width, _ = shape
        try:
            return read_clip(folder / name, frames, (height, width), fps=fps, min_size=min_size)
        except TooSmallClip:
            return Skipped(name)
        except UnusableClip as error:
            return Skipped(name, str(error))

    return Reader(
        "clips",
        read,
        settings={"fps": "native" if fps is None else f"{fps:g}", "min_size": str(min_size)},
        crop="scaled until each frame covers the size, then its middle; the first frames of a clip",
        packages=("av", "torch", "diffusers", "transformers"),
    )
