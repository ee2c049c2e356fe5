"""Films as files: animations, strips of frames, arrays; and first frames from files."""

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from pom_jax.data.clips import ENDINGS, UnusableClip, read_clip
from pom_jax.data.pictures import UNREADABLE, rgb, upright
from pom_jax.errors import BROKEN_NPZ, InputError
from pom_jax.sampling.pictures import grid, sheet
from pom_jax.sampling.writers import check_place, replace_file

FPS = 8
SIDE = 192  # pixels that a film measures at least, so that its caption fits
SMALL_SIDE = 80  # and where there are many
MANY = 16
STRIP = 32  # frames of a strip, at most
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp")  # which are read with Pillow
CLIPS = tuple(ending for ending in ENDINGS if ending != ".gif")  # and with PyAV
ANIMATIONS = (".gif", ".webp", ".mp4")  # which are written


def write_films(
    path: str | os.PathLike[str], films: np.ndarray, captions: Sequence[str] = (), fps: int = FPS
) -> None:
    """Writes films as what the ending of `path` says; only a complete file replaces an older one.

    Args:
        path: .gif, .webp or .mp4 (with PyAV) the films side by side under their captions; .png a strip, a row
            for each film with its frames side by side, of many frames some; .npz `arr_0`, the films as they
            are, and `captions`. Small ones are magnified in pictures. Missing folders are made.
        films: [N, T, H, W, C] uint8, C 1 or 3; for an .npz of latents float32.
        captions: of each film; none by default.
        fps: frames a second.

    Raises:
        InputError: see `check_films_place` and `grid`; no room on the disk.
    """
    path = check_films_place(path)
    replace_file(path, lambda file: WRITERS[path.suffix](file, np.asarray(films), captions, fps))


def check_films_place(path: str | os.PathLike[str]) -> Path:
    """The path of a file that `write_films` can make.

    Raises:
        InputError: another ending, a place where nothing can be written, or .mp4 without PyAV.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise InputError(
            f"{path}: the ending says what to write: .gif, .webp or .mp4 the films, .png a strip of frames, "
            ".npz arrays"
        )
    if path.suffix == ".mp4":
        _av()
    check_place(path)
    return path


def read_frames(
    path: str | os.PathLike[str], size: tuple[int, int], *, pixels: int = 0, latents: int = 0
) -> np.ndarray:
    """First frames for films to go on from.

    Args:
        path: .png or .jpg one frame, .gif or .webp the frames of a film, .mp4 or another of
            `data.clips.ENDINGS` all frames of a clip (with PyAV), .npz `arr_0` of `write_films`, [N, T, H, W,
            C] or of one film [T, H, W, C].
        size: (height, width) of pixels: a clip of frames of another size is not read.
        pixels, latents: C of pixels and of latents that will do; 0: those will not.

    Returns:
        [N, T, H, W, C] uint8 pixels, or float32 latents.

    Raises:
        InputError: no such file, a damaged one, or one of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"--from={path}: there is no such file")
    ending = path.suffix.lower()
    if ending == ".npz":
        frames = _read_arrays(path)
    elif ending in PICTURES and pixels:
        frames = _read_pictures(path, pixels)
    elif ending in CLIPS and pixels:
        frames = _read_clip(path, pixels, size)
    else:
        kinds = f"{', '.join(PICTURES + CLIPS)} or .npz (arr_0)"
        if not pixels:
            kinds = f".npz (arr_0, float32) of latents or, with --autoencoder=DIR, {kinds} of pixels"
        raise InputError(f"--from={path}: first frames for this model come from {kinds}")
    channels = pixels if frames.dtype == np.uint8 else latents
    if frames.ndim != 5 or not channels or frames.shape[-1] != channels:
        shapes = {"uint8 pixels": pixels, "float32 latents": latents}
        wanted = " or ".join(f"{kind} [N, T, H, W, {last}]" for kind, last in shapes.items() if last)
        raise InputError(
            f"--from={path} holds {frames.dtype} of shape {frames.shape}, and this model needs {wanted}"
        )
    return frames if frames.dtype == np.uint8 else frames.astype(np.float32)


def _read_arrays(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as content:
            frames = content["arr_0"]
    except BROKEN_NPZ as error:
        raise InputError(f"--from={path} is no .npz with arr_0: {error}") from error
    return frames[None] if frames.ndim == 4 else frames


def _read_pictures(path: Path, channels: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            mode = "L" if channels == 1 else "RGB"
            # What a telephone puts behind its picture is no second frame.
            shown = [image] if image.format in ("JPEG", "MPO") else ImageSequence.Iterator(image)
            frames = np.stack([np.asarray(rgb(upright(frame)).convert(mode)) for frame in shown])
    except UNREADABLE as error:
        raise InputError(f"--from={path} cannot be read as a picture: {error}") from error
    return frames.reshape(1, *frames.shape[:3], channels)


def _read_clip(path: Path, channels: int, size: tuple[int, int]) -> np.ndarray:
    try:
        frames = read_clip(path, None, size, crop=False)
    except UnusableClip as error:
        raise InputError(f"--from={path} cannot be used: {error}") from error
    if channels == 1:
        frames = np.stack([np.asarray(Image.fromarray(frame).convert("L")) for frame in frames])[..., None]
    return frames[None]


def _shown(films: np.ndarray, captions: Sequence[str]) -> list[Image.Image]:
    """Pictures of all films, frame after frame."""
    side = SIDE if len(films) <= MANY else SMALL_SIDE
    times = max(1, -(-side // min(films.shape[2:4])))
    labels = np.arange(len(films)) if captions else None
    return [
        grid(frame.repeat(times, axis=1).repeat(times, axis=2), labels, names=captions or None)
        for frame in films.swapaxes(0, 1)
    ]


def _write_animation(file: Path, films: np.ndarray, captions: Sequence[str], fps: int) -> None:
    first, *rest = _shown(films, captions)
    # GIF counts in hundredths of a second; browsers slow down what has fewer than two.
    options: dict[str, Any] = {"duration": max(20, round(1_000 / fps)), "loop": 0, "append_images": rest}
    if file.suffix == ".webp":
        options["lossless"] = True
    first.save(file, file.suffix[1:], save_all=True, **options)


def _write_mp4(file: Path, films: np.ndarray, captions: Sequence[str], fps: int) -> None:
    av = _av()
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(file), "w") as container:
        stream = None
        for picture in _shown(films, captions):
            frame = np.asarray(picture.convert("RGB"))
            # Colours at half the resolution, which every player shows, need even sides.
            odd = [(0, side % 2) for side in frame.shape[:2]]
            frame = np.pad(frame, [*odd, (0, 0)], constant_values=255)
            if stream is None:
                stream = container.add_stream(codec, rate=fps)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())


def _write_strip(file: Path, films: np.ndarray, captions: Sequence[str], fps: int) -> None:
    del fps
    frames = films.shape[1]
    chosen = np.unique(np.linspace(0, frames - 1, min(frames, STRIP)).round().astype(int))
    names = captions or [f"film {number}" for number in range(len(films))]
    sheet(films[:, chosen], names, [str(number) for number in chosen]).save(file, "png")


def _write_npz(file: Path, films: np.ndarray, captions: Sequence[str], fps: int) -> None:
    del fps
    with file.open("wb") as out:
        np.savez_compressed(out, arr_0=films, captions=np.array(captions, np.str_))


def _av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise InputError(
            "an .mp4 is written with PyAV: pip install av; or write a .gif or .webp, which need nothing"
        ) from error


WRITERS: dict[str, Callable[[Path, np.ndarray, Sequence[str], int], None]] = {
    ".gif": _write_animation,
    ".webp": _write_animation,
    ".mp4": _write_mp4,
    ".png": _write_strip,
    ".npz": _write_npz,
}
