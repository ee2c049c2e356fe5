"""The first images of a set beside what they were made of, to look at."""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pom_jax.data.images import Job
from pom_jax.data.pictures import Skipped
from pom_jax.data.records import Records
from pom_jax.errors import InputError


class Check(NamedTuple):
    """What is stored beside what it was made of.

    Attributes:
        crops: [N, size, size, 3] uint8.
        stored: [N, size, size, 3] uint8, what their stored means decode to.
        labels: [N] int32.
        ratio: peak signal-to-noise ratio of the two in dB, infinite if they are equal.
    """

    crops: np.ndarray
    stored: np.ndarray
    labels: np.ndarray
    ratio: float


def check(job: Job, folder: str | Path, number: int) -> Check:
    """Decodes the first training images of a finished set.

    Args:
        job: that made it.
        folder: the set.
        number: images to show, at least 1; fewer if the set has fewer.

    Raises:
        InputError: a number below 1, or shards that cannot be read.
    """
    if number < 1:
        raise InputError(f"--check={number} must be at least 1")
    records = Records(folder, "train")
    crops = []
    for index in itertools.chain(*(p.indices for p in job.recipe.pieces if p.split == "train")):
        crop = job.sources["train"].crop(int(index), job.size, job.min_size)
        if not isinstance(crop, Skipped):
            crops.append(crop)
        if len(crops) == number:
            break
    above, batch = np.stack(crops), records.gather(np.arange(len(crops)))
    below = job.encoder.decode(batch["mean"][:, 0])
    error = float(np.mean((above.astype(np.float64) - below) ** 2))
    ratio = 10 * float(np.log10(255**2 / error)) if error else float("inf")
    return Check(above, below, batch["label"], ratio)
