"""Pictures, animations and arrays of samples, as files and in a notebook."""

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pom_jax.errors import InputError

TILE = 48  # pixels that a tile of the grid measures at least, so that tiny images can be seen
GAP = 4
FRAMES = 60  # of an animation, at most
HOLD = 1_500  # ms that an animation rests on its last frame


def grid(
    images: np.ndarray,
    labels: Sequence[int] | np.ndarray | None = None,
    columns: int | None = None,
    names: Sequence[str] | None = None,
) -> Image.Image:
    """Puts images side by side, each with its label above it; tiny images are magnified.

    A notebook displays what this returns; there it is also `pom_jax.show`.

    Args:
        images: [N, H, W, C] uint8, C 1 or 3.
        labels: [N] class numbers; no captions without them.
        columns: images in a row; by default about as many as rows, and where the labels come in turn a whole
            multiple of the number of classes, so that each class has its columns.
        names: the caption of each class number; the number by default.

    Returns:
        A picture, grey for one channel.

    Raises:
        InputError: images of another shape or dtype, or labels that do not go with them.
    """
    images = _checked(images, labels)
    count, height, width, channels = images.shape
    columns = max(1, min(columns or _columns(count, labels), count))
    rows = -(-count // columns)
    times = max(1, -(-TILE // min(height, width)))
    images = images.repeat(times, axis=1).repeat(times, axis=2)
    height, width = height * times, width * times
    size = max(10, min(20, width // 4))
    below = size // 4 + 2  # what lies under the baseline of a caption
    caption = 0 if labels is None else size + below

    cell_height, cell_width = height + caption + GAP, width + GAP
    canvas = np.full((rows * cell_height + GAP, columns * cell_width + GAP, channels), 255, np.uint8)
    corners = [
        (GAP + i // columns * cell_height + caption, GAP + i % columns * cell_width) for i in range(count)
    ]
    for (top, left), image in zip(corners, images, strict=True):
        canvas[top : top + height, left : left + width] = image
    picture = Image.fromarray(canvas[..., 0] if channels == 1 else canvas)
    if labels is not None:
        draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
        black = 0 if channels == 1 else (0, 0, 0)
        for (top, left), label in zip(corners, labels, strict=True):
            text = str(label) if names is None else names[int(label)]
            draw.text((left + width / 2, top - below), text, fill=black, font=font, anchor="ms")
    return picture


def _columns(count: int, labels: Sequence[int] | np.ndarray | None) -> int:
    side = math.sqrt(count)
    if labels is not None:
        labels = np.asarray(labels)
        classes = len(np.unique(labels))
        if 1 < classes <= 20 and np.array_equal(labels[classes:], labels[:-classes]):
            return classes * max(1, round(side / classes))
    return math.ceil(side)


def _checked(images: np.ndarray, labels: Sequence[int] | np.ndarray | None) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        raise InputError(
            f"pictures need uint8 images [N, H, W, 1 or 3]; got {images.dtype} of shape {images.shape}"
        )
    if labels is not None and len(labels) != len(images):
        raise InputError(f"there are {len(images)} images but {len(labels)} labels")
    return images


def _write_png(file: Path, images: np.ndarray, labels: np.ndarray, names: Sequence[str] | None) -> None:
    grid(images, labels, names=names).save(file, "png")


def _write_npz(file: Path, images: np.ndarray, labels: np.ndarray, names: Sequence[str] | None) -> None:
    with file.open("wb") as out:
        np.savez_compressed(out, arr_0=images, arr_1=labels)


def _write_animation(file: Path, images: np.ndarray, labels: np.ndarray, names: Sequence[str] | None) -> None:
    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), FRAMES)).round().astype(int))
    frames = [grid(images[i], labels, names=names) for i in chosen]
    step = max(40, 2_000 // len(frames))
    frames[0].save(
        file,
        file.suffix[1:],
        save_all=True,
        append_images=frames[1:],
        duration=[step] * (len(frames) - 1) + [HOLD],
        loop=0,
        **({"lossless": True} if file.suffix == ".webp" else {}),
    )


Writer = Callable[[Path, np.ndarray, np.ndarray, Sequence[str] | None], None]
ANIMATIONS = (".gif", ".webp")
WRITERS: dict[str, Writer] = {
    ".png": _write_png,
    ".npz": _write_npz,
    **dict.fromkeys(ANIMATIONS, _write_animation),
}


def check_output(path: str | Path) -> Path:
    """The path of a file that `write` can make.

    Raises:
        InputError: another ending, a folder, or a place where nothing can be written.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise InputError(
            f"{path}: the ending says what to write: .png a labelled grid, .npz arrays, .gif or .webp the "
            "way from noise to images as an animation"
        )
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{path} cannot be written: {existing} is not a folder that you may write to")
    return path


def write(
    path: str | Path,
    images: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    names: Sequence[str] | None = None,
) -> None:
    """Writes samples as what the ending of `path` says; only a complete file replaces an older one.

    Args:
        path: .png a labelled grid; .npz `arr_0` (the images as they are) and `arr_1` (labels, int32), as the
            ADM evaluation suite reads them; .gif or .webp an animation. Missing folders are made.
        images: uint8 [N, H, W, C]; for an animation [frames, N, H, W, C]; for an .npz of latents float32.
        labels: [N] class numbers.
        names: captions of the class numbers.

    Raises:
        InputError: see `check_output` and `grid`; no room on the disk.
    """
    path = check_output(path)
    labels = np.asarray(labels, np.int32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing") as folder:
            unfinished = Path(folder) / path.name
            WRITERS[path.suffix](unfinished, np.asarray(images), labels, names)
            unfinished.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from error
