"""Samples with their nearest training images under them, to see by eye whether they are copies."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pom_jax import sampling
from pom_jax.evaluation.digits import HIGHEST, Reference, distances, flat

MARGIN = 72  # pixels left of the images, for the names of the rows
GAP = 14  # pixels between two pairs of rows


def nearest_pairs(reference: Reference, images: np.ndarray, labels: np.ndarray, rows: int = 4) -> np.ndarray:
    """To see whether samples are copies: rows of them, one a class, above their nearest training images.

    Args:
        images: [N, 8, 8, 1] of 0 to 16, with labels [N].
        rows: samples a class.

    Returns:
        [2 * rows, classes, 8, 8, 1] uint8 of 0 to 255: a row of samples, the row of the training images
        nearest to them, and so on.
    """
    places = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    rows = min(rows, *(len(own) for own in places))
    chosen = np.array([[own[row] for own in places] for row in range(rows)])
    samples = np.clip(flat(images)[chosen.ravel()], 0, HIGHEST)
    nearest = reference.train[distances(samples, reference.train).argmin(axis=1)]
    both = np.stack([samples.reshape(rows, -1, 64), nearest.reshape(rows, -1, 64)], axis=1)
    return np.round(both / HIGHEST * 255).astype(np.uint8).reshape(2 * rows, -1, 8, 8, 1)


def pairs_picture(pairs: np.ndarray) -> Image.Image:
    """A row of samples, the row of their nearest training images, a gap, and so on; each row with its name.

    Args:
        pairs: [2 * rows, classes, 8, 8, 1] uint8, from `nearest_pairs`.
    """
    strips = [
        sampling.grid(pairs[row : row + 2].reshape(-1, *pairs.shape[2:]), columns=pairs.shape[1])
        for row in range(0, len(pairs), 2)
    ]
    width, height = strips[0].size
    picture = Image.new("L", (MARGIN + width, len(strips) * (height + GAP) - GAP), 255)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    for place, strip in enumerate(strips):
        top = place * (height + GAP)
        picture.paste(strip, (MARGIN, top))
        for part, name in ((1 / 4, "sample"), (3 / 4, "nearest")):
            draw.text((MARGIN - 6, top + part * height), name, fill=0, font=font, anchor="rm")
    return picture
