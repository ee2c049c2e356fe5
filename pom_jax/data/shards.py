"""One shard: records of a batch as bytes, the ArrayRecord file that holds them, and their statistics."""

import contextlib
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from pom_jax.data.fields import Field, find_bad_record
from pom_jax.data.manifest import Shard, sha256
from pom_jax.errors import InputError, first_line

# One record a group: a batch is gathered from random places, and latents do not compress.
OPTIONS = "group_size:1,uncompressed"


class DiskError(Exception):
    """The disk took no more, or not what was written."""


class ShardFile:
    """An ArrayRecord file that is being written.

    Args:
        path: made, or written over.

    Raises:
        DiskError: by any method.
    """

    def __init__(self, path: Path):
        self.path = path
        self.records = 0
        try:
            self._writer = ArrayRecordWriter(str(path), OPTIONS)
        except RuntimeError as error:
            raise DiskError(first_line(error)) from error

    def append(self, record: bytes) -> None:
        try:
            self._writer.write(record)
        except RuntimeError as error:
            raise DiskError(first_line(error)) from error
        self.records += 1

    def close(self) -> Shard:
        try:
            self._writer.close()
            # Read back, because a full disk is not always reported while writing.
            reader = ArrayRecordReader(str(self.path))
            found = reader.num_records()
            reader.close()
        except (RuntimeError, ValueError) as error:
            raise DiskError(first_line(error)) from error
        if found != self.records:
            raise DiskError(f"{self.path.name} has {found} records after writing {self.records}")
        return Shard(self.path.name, found, self.path.stat().st_size, sha256(self.path))

    def abandon(self) -> None:
        """Closes the file, whatever state it is in."""
        with contextlib.suppress(RuntimeError):  # the disk is full: what counts is the first error
            self._writer.close()


class Moments:
    """Sums over the pixels of images or clips: what the mean and the deviation of each channel come from.

    Attributes:
        sums: [2, C] float64, of x and of x^2, the posterior's variance included.
        pixels: how many.
    """

    def __init__(self, channels: int):
        self.sums = np.zeros((2, channels))
        self.pixels = 0

    def add(self, fields: Mapping[str, Field], arrays: Mapping[str, np.ndarray]) -> None:
        """Adds images or clips: mean [n, V, ..., C] and std alike, as stored."""
        x = arrays["mean"].astype(np.float64).reshape(-1, self.sums.shape[1]) * fields["mean"].scale
        square = x**2
        if "std" in arrays:
            square = square + (arrays["std"].astype(np.float64).reshape(x.shape) * fields["std"].scale) ** 2
        self.sums += np.stack([x.sum(axis=0), square.sum(axis=0)])
        self.pixels += len(x)

    def mapped(self, scale: float, shift: float) -> dict[str, tuple[float, ...]]:
        """`channel_mean` and `channel_std` of a manifest with this affine map."""
        mean, square = self.sums / self.pixels
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        return {
            "channel_mean": tuple((mean * scale + shift).tolist()),
            "channel_std": tuple((deviation * abs(scale)).tolist()),
        }


def check_batch(
    fields: Mapping[str, Field],
    batch: Mapping[str, np.ndarray],
    classes: int,
    split: str,
    start: int,
    words: int = 0,
) -> dict[str, np.ndarray]:
    """The arrays of a batch as they are stored, in the order of the fields.

    Args:
        batch: `{field: [n, *shape]}`.
        classes: how many labels there are.
        split, start: where the first record will be, for the messages.
        words: how many words the table of captions has.

    Raises:
        InputError: fields that are missing, in excess, of another dtype, shape or length, values that are not
            finite, labels outside the classes, words outside the table, masks that are not 0 or 1.
    """
    arrays = {}
    for name, field in fields.items():
        if name not in batch:
            raise InputError(f"a batch for split {split} lacks field {name}; it has {sorted(batch)}")
        array = np.asarray(batch[name])
        if array.dtype != np.dtype(field.dtype) or array.shape[1:] != field.shape:
            raise InputError(
                f"field {name} of split {split} is {array.dtype} {array.shape[1:]} a record, "
                f"the data set holds {field.dtype} {field.shape}"
            )
        if found := find_bad_record(name, array, classes, words):
            place, what = found
            raise InputError(
                f"record {start + place} of split {split}, field {name}: {what}; nothing was written"
            )
        arrays[name] = np.ascontiguousarray(array, field.stored)
    if extra := set(batch) - set(fields):
        raise InputError(f"fields {sorted(extra)} are not in this data set, which has {list(fields)}")
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(f"the fields of a batch have different numbers of records: {sizes}")
    return arrays


def to_records(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The bytes of each record, uint8 [n, record bytes], of what `check_batch` gives."""
    flat = [array.reshape(len(array), math.prod(array.shape[1:])) for array in arrays.values()]
    return np.concatenate([array.view(np.uint8) for array in flat], axis=1)


def free_space(folder: Path) -> str:
    """For messages: how much the disk of a folder can take."""
    return f"{folder.resolve()} has {shutil.disk_usage(folder).free / 1e9:.1f} GB free"
