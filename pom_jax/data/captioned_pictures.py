"""Pictures with captions, read and encoded as clips of one frame, for text to image."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from pom_jax.data.captioned_jobs import Reader
from pom_jax.data.encoding import Encoded, Encoder
from pom_jax.data.manifest import Field
from pom_jax.data.pictures import Skipped, read_crop
from pom_jax.errors import InputError


def picture_reader(min_size: int = 0) -> Reader:
    """Reads pictures, upright as EXIF says, but for those whose shorter side is below `min_size`.

    Raises:
        InputError: a number out of range.
    """
    if min_size < 0:
        raise InputError(f"--min-size={min_size} must be at least 0")

    def read(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray | Skipped:
        return read_crop(lambda: Image.open(folder / name), name, shape[0], min_size, turn=True)

    return Reader(
        "pictures",
        read,
        settings={"min_size": str(min_size)},
        crop="turned as EXIF says, then ADM's centre crop",
        packages=("pillow", "jax", "torch", "transformers"),
    )


class OneFrame:
    """An `Encoder` of pictures as clips of one frame: fields [V, 1, H, W, C] for those of `pictures`."""

    def __init__(self, pictures: Encoder):
        self._pictures = pictures
        self.crop_shape, self.compiles = pictures.crop_shape, pictures.compiles
        self.fields: Mapping[str, Field] = {
            name: dataclasses.replace(field, shape=(field.shape[0], 1, *field.shape[1:]))
            for name, field in pictures.fields.items()
        }
        self.scale, self.shift, self.autoencoder = pictures.scale, pictures.shift, pictures.autoencoder
        size, views = self.crop_shape[0], self.fields["mean"].shape[0]
        self.settings: Mapping[str, str] = {"size": str(size), "views": str(views), **pictures.settings}

    def __call__(self, crops: np.ndarray) -> Encoded:
        encoded = self._pictures(crops)
        arrays = {name: array[:, :, None] for name, array in encoded.arrays.items()}
        return Encoded(arrays, encoded.clipped)

    def decode(self, mean: np.ndarray) -> np.ndarray:
        return self._pictures.decode(mean[:, 0])
