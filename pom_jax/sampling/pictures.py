"""Pictures of many images side by side: a caption above each, or names for rows and columns."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pom_jax.errors import InputError

TILE = 48  # pixels that a tile measures at least, so that tiny images can be seen
GAP = 4
Labels = Sequence[int] | np.ndarray


def grid(
    images: np.ndarray,
    labels: Labels | None = None,
    columns: int | None = None,
    names: Sequence[str] | None = None,
    footer: str = "",
) -> Image.Image:
    """Puts images side by side, each with its label above it; tiny images are magnified.

    A notebook displays what this returns; there it is also `pom_jax.show`.

    Args:
        images: [N, H, W, C] uint8, C 1 or 3.
        labels: [N] class numbers; no captions without them.
        columns: images in a row; by default about as many as rows, and where the labels come in turn a whole
            multiple of the number of classes, so that each class has its columns.
        names: the caption of each class number; the number by default. Shortened where a tile is too narrow.
        footer: a line below.

    Returns:
        A picture, grey for one channel.

    Raises:
        InputError: images of another shape or dtype, or labels that do not go with them.
    """
    images = _magnified(_checked(images, labels))
    count, height, width, _ = images.shape
    columns = max(1, min(columns or _columns(count, labels), count))
    rows = -(-count // columns)
    size = _text_size(width)
    below = size // 4 + 2  # what lies under the baseline of a caption
    caption = 0 if labels is None else size + below
    bottom = size + below if footer else 0

    cell_height, cell_width = height + caption + GAP, width + GAP
    corners = [
        (GAP + i // columns * cell_height + caption, GAP + i % columns * cell_width) for i in range(count)
    ]
    picture = _pasted(images, corners, (rows * cell_height + GAP + bottom, columns * cell_width + GAP))
    text = _Text(picture, size)
    if labels is not None:
        for (top, left), label in zip(corners, labels, strict=True):
            name = str(label) if names is None else names[int(label)]
            text.write(name, (left + width / 2, top - below), "ms", width + GAP)
    if footer:
        text.write(footer, (GAP, picture.height - below), "ls", picture.width - 2 * GAP)
    return picture


def sheet(
    images: np.ndarray, rows: Sequence[str], columns: Sequence[str] = (), title: str = ""
) -> Image.Image:
    """Images in rows and columns that have names: a class in each row, or a setting in each column.

    Args:
        images: [R, K, H, W, C] uint8, C 1 or 3.
        rows: R names, at the left.
        columns: K names, above; none by default.
        title: a line above all.

    Returns:
        A picture, grey for one channel.

    Raises:
        InputError: images of another shape or dtype, or names that do not go with them.
    """
    images = np.asarray(images)
    if images.ndim != 5 or len(rows) != len(images) or len(columns) not in (0, images.shape[1]):
        raise InputError(
            f"a sheet of {len(rows)} rows and {len(columns)} columns needs images [{len(rows)}, "
            f"{len(columns) or 'any'}, H, W, C]; got {images.shape}"
        )
    count, across = images.shape[:2]
    tiles = _magnified(_checked(images.reshape(-1, *images.shape[2:]), None))
    height, width = tiles.shape[1:3]
    size = _text_size(width)
    line, below = size + size // 4 + 2, size // 4 + 2
    font = ImageFont.load_default(size)
    beside = 2 * GAP + math.ceil(max(font.getlength(name) for name in rows))
    above = GAP + line * (bool(title) + bool(columns))
    corners = [
        (above + row * (height + GAP), beside + column * (width + GAP))
        for row in range(count)
        for column in range(across)
    ]
    picture = _pasted(tiles, corners, (above + count * (height + GAP), beside + across * (width + GAP)))
    text = _Text(picture, size)
    if title:
        text.write(title, (beside, GAP + size), "ls", picture.width - beside)
    for column, name in enumerate(columns):
        text.write(name, (beside + column * (width + GAP) + width / 2, above - below), "ms", width + GAP)
    for row, name in enumerate(rows):
        text.write(name, (beside - GAP, above + row * (height + GAP) + height / 2), "rm", beside)
    return picture


class _Text:
    """Black text on a picture."""

    def __init__(self, picture: Image.Image, size: int):
        self._draw, self._font = ImageDraw.Draw(picture), ImageFont.load_default(size)
        self._black = 0 if picture.mode == "L" else (0, 0, 0)

    def write(self, text: str, place: tuple[float, float], anchor: str, most: float) -> None:
        """Writes at (x, y), shortened to `most` pixels; `anchor` in the words of Pillow."""
        shown = text
        while shown and self._font.getlength(shown) > most:
            text = text[:-1]
            shown = text.rstrip(" ,") + "…"
        self._draw.text(place, shown, fill=self._black, font=self._font, anchor=anchor)


def _text_size(width: int) -> int:
    return max(10, min(20, width // 4))


def _magnified(images: np.ndarray) -> np.ndarray:
    times = max(1, -(-TILE // min(images.shape[1:3])))
    return images.repeat(times, axis=1).repeat(times, axis=2)


def _pasted(images: np.ndarray, corners: Sequence[tuple[int, int]], size: tuple[int, int]) -> Image.Image:
    """Images [N, H, W, C] at (top, left) on white of (height, width)."""
    height, width, channels = images.shape[1:]
    canvas = np.full((*size, channels), 255, np.uint8)
    for (top, left), image in zip(corners, images, strict=True):
        canvas[top : top + height, left : left + width] = image
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


def _columns(count: int, labels: Labels | None) -> int:
    side = math.sqrt(count)
    if labels is not None:
        labels = np.asarray(labels)
        classes = len(np.unique(labels))
        if 1 < classes <= 20 and np.array_equal(labels[classes:], labels[:-classes]):
            return classes * max(1, round(side / classes))
    return math.ceil(side)


def _checked(images: np.ndarray, labels: Labels | None) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        raise InputError(
            f"pictures need uint8 images [N, H, W, 1 or 3]; got {images.dtype} of shape {images.shape}"
        )
    if labels is not None and len(labels) != len(images):
        raise InputError(f"there are {len(images)} images but {len(labels)} labels")
    return images
