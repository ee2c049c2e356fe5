"""Images to score, batch by batch: an array, an npz as ADM's suite has it, or a folder of pictures."""

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from pom_jax.data.pictures import ENDINGS, UNREADABLE, centre_crop, find_pictures, rgb
from pom_jax.errors import BROKEN_NPZ, InputError

Source = str | os.PathLike[str] | np.ndarray


@dataclass(frozen=True)
class Images:
    """A set of images that need not fit in memory.

    Attributes:
        name: where they are from.
        shape: (N, H, W, 3).
        batches: gives them in order, as uint8 [B, H, W, 3] of at most so many; may be called again.
        by_path: whether the order is that of paths, in which the images of a class may stand together.
    """

    name: str
    shape: tuple[int, ...]
    batches: Callable[[int], Iterator[np.ndarray]]
    by_path: bool = False

    @property
    def count(self) -> int:
        return self.shape[0]


def open_images(source: Source, size: int | None = None) -> Images:
    """Looks at images without reading them.

    Args:
        source: uint8 [N, H, W, 3]; an .npz with such an `arr_0`; or a folder, whose pictures (see
            `find_pictures`) are made RGB and taken in the order of their paths.
        size: pictures of a folder become squares of this many pixels by `centre_crop`; without it they must
            be of one size.

    Raises:
        InputError: nothing there, no images in it, another dtype or shape. A picture of another size or that
            cannot be read is told when it is its turn.
    """
    if not isinstance(source, (str, os.PathLike)):
        array = np.asarray(source)
        _check("the array", array.dtype, array.shape)
        return Images("an array", array.shape, lambda batch: _slices(array, batch))
    path = Path(source)
    if path.is_dir():
        return _open_folder(path, size)
    if not path.is_file():
        raise InputError(f"{path} does not exist; images are a folder of pictures or an .npz with arr_0")
    with _open_npz(path) as (_, dtype, shape):
        _check(f"{path}: arr_0", dtype, shape)
    return Images(str(path), shape, lambda batch: _stream(path, batch))


def _check(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if dtype != np.uint8:
        raise InputError(f"{name} is {dtype}; images are uint8 of 0 to 255: round and cast them yourself")
    if len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise InputError(f"{name} is {list(shape)}; images are [N, H, W, 3]")


def _slices(images: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    for start in range(0, len(images), batch):
        yield images[start : start + batch]


def _open_folder(folder: Path, size: int | None) -> Images:
    if size is not None and size < 1:
        raise InputError(f"size={size} must be at least 1 pixel")
    paths = sorted(map(Path, find_pictures(folder)))
    if not paths:
        raise InputError(f"{folder} holds no pictures ({', '.join(ENDINGS)})")
    height, width, _ = _picture(paths[0], size).shape

    def batches(batch: int) -> Iterator[np.ndarray]:
        for start in range(0, len(paths), batch):
            own = paths[start : start + batch]
            pictures = [_picture(path, size) for path in own]
            for path, picture in zip(own, pictures, strict=True):
                if picture.shape != (height, width, 3):
                    raise InputError(
                        f"{path} is {picture.shape[1]} x {picture.shape[0]} pixels and {paths[0]} {width} x "
                        f"{height}: give --crop=N (size=N in Python), to which they are cropped as ADM does"
                    )
            yield np.stack(pictures)

    return Images(str(folder), (len(paths), height, width, 3), batches, by_path=True)


def _picture(path: Path, size: int | None) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.asarray(rgb(picture)) if size is None else centre_crop(picture, size)
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read as a picture: {error}; remove or replace it") from error


@contextmanager
def _open_npz(path: Path) -> Iterator[tuple[IO[bytes], np.dtype, tuple[int, ...]]]:
    """`arr_0` of an npz as a file at its first number, dtype and shape: 50,000 images need not be loaded."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            old = np.lib.format.read_magic(file) == (1, 0)
            read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
            shape, by_columns, dtype = read(file)
            if by_columns:
                raise InputError(f"{path}: arr_0 lies in Fortran's order; save np.ascontiguousarray of it")
            yield file, dtype, shape
    except InputError:
        raise
    except BROKEN_NPZ as error:
        raise InputError(f"{path} is no whole npz with images in arr_0: {error}") from error


def _stream(path: Path, batch: int) -> Iterator[np.ndarray]:
    with _open_npz(path) as (file, _, shape):
        image = int(np.prod(shape[1:]))
        for start in range(0, shape[0], batch):
            wanted = min(batch, shape[0] - start) * image
            content = file.read(wanted)
            if len(content) != wanted:
                raise InputError(f"{path} ends after image {start} of {shape[0]}; it was not written whole")
            yield np.frombuffer(content, np.uint8).reshape(-1, *shape[1:])
