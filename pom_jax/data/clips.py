"""Frames of video files, by PyAV: the first ones, at the file's rate or at another, scaled and cropped."""

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pom_jax.data.pictures import cover_crop, rgb
from pom_jax.data.torch_models import require

ENDINGS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".gif")
EXTRA = "pip install 'pom_jax[video]'"
TOLERANCE = 1e-6  # seconds: times are fractions that were rounded


class UnusableClip(Exception):
    """Why a clip is left out, in words."""


class TooSmallClip(UnusableClip):
    """Its frames have fewer pixels than were asked for."""


def read_clip(
    path: Path,
    frames: int | None,
    size: tuple[int, int],
    *,
    crop: bool = True,
    fps: float | None = None,
    min_size: int = 0,
) -> np.ndarray:
    """The first frames of a clip, or all of them.

    Args:
        path: of the file.
        frames: T, how many; None: all.
        size: (height, width) of the crops: each frame is scaled until it just covers them, then its middle is
            cut out (`cover_crop`).
        crop: False: frames of another size are refused instead.
        fps: frames a second: of each moment, the frame that is shown then; None: every frame of the file.
        min_size: pixels that the shorter side must have.

    Returns:
        [T, H, W, 3] uint8.

    Raises:
        TooSmallClip: a side is below `min_size`.
        UnusableClip: it cannot be read, is too short or too slow, or changes its size; it has no frames, or
            those of another size where they are not cropped.
        InputError: PyAV is not installed.
    """
    av = require("av", "reading clips", EXTRA)
    try:
        # As a file: a path could name a protocol of FFmpeg's.
        with path.open("rb") as file, av.open(file) as container:
            if not container.streams.video:
                raise UnusableClip("there is no video in it")
            stream = container.streams.video[0]
            shown = container.decode(stream)
            if fps is not None:
                shown = at_rate(shown, fps, float(stream.average_rate or math.inf))
            crops = _crops(itertools.islice(shown, frames), size, min_size, crop)
    except (av.FFmpegError, OSError, ValueError, SyntaxError) as error:
        raise UnusableClip(f"{type(error).__name__}: {error}") from error
    if not crops:
        raise UnusableClip("there are no frames in it")
    if frames is not None and len(crops) < frames:
        rate = "" if fps is None else f" at --fps={fps:g}"
        raise UnusableClip(f"too short: {len(crops)} frames{rate}, --frames={frames}")
    return np.stack(crops)


def at_rate(shown: Iterable[Any], fps: float, native: float) -> Iterator[Any]:
    """The frame that is shown at each moment n / fps after the first.

    Args:
        shown: frames with the `time` at which each appears, in seconds.
        fps: frames a second that are asked for.
        native: those of the file; the last frame is shown for one of them.

    Raises:
        UnusableClip: a file of fewer frames a second, or without times.
    """
    if native < fps * 0.99:
        raise UnusableClip(f"too slow: {native:g} frames a second, --fps={fps:g}")
    last, begin, number = None, 0.0, 0
    for frame in shown:
        if frame.time is None:
            raise UnusableClip("its frames have no times, so that --fps cannot be kept")
        if last is None:
            begin = frame.time
        while last is not None and begin + number / fps < frame.time - TOLERANCE:
            yield last
            number += 1
        last = frame
    if last is not None:
        end = last.time + 1 / native
        while begin + number / fps < end - TOLERANCE:
            yield last
            number += 1


def _crops(shown: Iterable[Any], size: tuple[int, int], min_size: int, crop: bool) -> list[np.ndarray]:
    crops: list[np.ndarray] = []
    first = None
    for frame in shown:
        sides = frame.width, frame.height
        first = first or sides
        if sides != first:
            raise UnusableClip(f"its frames change from {first[0]} x {first[1]} to {sides[0]} x {sides[1]}")
        if min(sides) < min_size:
            raise TooSmallClip(f"too small: {sides[0]} x {sides[1]}, --min-size={min_size}")
        if frame.is_corrupt:
            raise UnusableClip(f"frame {len(crops)} is damaged")
        # What a telephone films upright is stored lying, with a note on how to turn it.
        picture = frame.to_image().rotate(frame.rotation, expand=True)
        if not crop and (picture.height, picture.width) != size:
            raise UnusableClip(
                f"its frames have {picture.height}x{picture.width} pixels, not {size[0]}x{size[1]}: resize it"
            )
        crops.append(cover_crop(picture, *size) if crop else np.asarray(rgb(picture)))
    return crops
