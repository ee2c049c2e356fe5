"""What was drawn on its way to files: nothing is lost because something else cannot be written."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pom_jax.sampling.films import write_films
from pom_jax.sampling.stream import StreamedFrames
from pom_jax.sampling.video import VideoGenerator


def write_drawn(
    generator: VideoGenerator,
    pieces: Sequence[StreamedFrames],
    files: Sequence[Path],
    captions: Sequence[str],
    total: int,
    save_state: str | None,
    fps: int,
) -> list[Exception]:
    """Writes films, and then their state.

    Of latents as many frames become pixels as make whole chunks of the decoder; if that fails, all of them
    are written as they are (`latents_beside`).

    Args:
        generator: that drew them.
        pieces: of the films, in order.
        files: for the films, see `write_films`.
        captions: of each film.
        total: frames that were asked for; a file's name says how many there are if they are fewer.
        save_state: file for the state after the last frame; None for none. It is not written where frames at
            the end are left out.
        fps: frames a second.

    Returns:
        What went wrong; all else is written.
    """
    failures: list[Exception] = []
    drawn = np.concatenate([piece.frames for piece in pieces], axis=1)
    # Of less than one chunk the decoder is given what there is, and says so.
    x = drawn[:, : drawn.shape[1] // generator.whole_frames * generator.whole_frames or None]
    shown = x
    with _noted(failures):
        shown = generator.pixels(x) if generator.makes_pixels else x
    if failures:
        x, shown, files = drawn, drawn, [latents_beside(files[0])]
    for file in files:
        if x.shape[1] < total:
            file = of_first(file, x.shape[1])
        with _noted(failures):
            write_films(file, shown, captions, fps)
            print(f"written: {file}", flush=True)
    if save_state is not None and x.shape[1] == drawn.shape[1]:
        with _noted(failures):
            generator.save_state(save_state, pieces[-1].state)
            print(f"state of {pieces[-1].state_bytes:,} bytes: {save_state}", flush=True)
    return failures


def strip_beside(film: Path) -> Path:
    """Where the strip of an animation's frames is written."""
    return film.with_name(f"{film.stem}_strip.png")


def of_first(file: Path, frames: int) -> Path:
    """The name of a file of films or of their strip that holds their first frames alone."""
    return file.with_stem(re.sub(r"(_strip)?$", rf"_first_{frames}\1", file.stem, count=1))


def latents_beside(file: Path) -> Path:
    """Where latents are written that could not be decoded for this file."""
    return file.with_name(f"{file.stem}_latents.npz")


@contextlib.contextmanager
def _noted(failures: list[Exception]) -> Iterator[None]:
    """Adds what goes wrong in its block to the list, and goes on."""
    try:
        yield
    except Exception as error:
        failures.append(error)
