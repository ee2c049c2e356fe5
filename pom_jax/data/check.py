"""The first samples of a set beside what they were made of, to look at."""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pom_jax.data.making import Job
from pom_jax.data.pictures import Skipped
from pom_jax.data.records import Records
from pom_jax.errors import InputError


class Check(NamedTuple):
    """What is stored beside what it was made of.

    Attributes:
        crops: [N, *crop_shape] uint8: images [N, H, W, 3] or clips [N, T, H, W, 3].
        stored: alike, what their stored means decode to.
        titles: N, what each shows.
        ratio: peak signal-to-noise ratio of the two in dB, infinite if they are equal.
    """

    crops: np.ndarray
    stored: np.ndarray
    titles: list[str]
    ratio: float


def check(job: Job, folder: str | Path, number: int) -> Check:
    """Decodes the first training samples of a finished set.

    Args:
        job: that made it.
        folder: the set.
        number: samples to show, at least 1; fewer if the set has fewer.

    Raises:
        InputError: a number below 1, or shards that cannot be read.
    """
    if number < 1:
        raise InputError(f"--check={number} must be at least 1")
    records = Records(folder, "train")
    crops, titles = [], []
    for index in itertools.chain(*(p.indices for p in job.recipe.pieces if p.split == "train")):
        crop = job.read("train", int(index))
        if not isinstance(crop, Skipped):
            crops.append(crop)
            titles.append(job.title("train", int(index)))
        if len(crops) == number:
            break
    above, batch = np.stack(crops), records.gather(np.arange(len(crops)))
    below = job.encoder.decode(batch["mean"][:, 0])
    error = float(np.mean((above.astype(np.float64) - below) ** 2))
    ratio = 10 * float(np.log10(255**2 / error)) if error else float("inf")
    return Check(above, below, titles, ratio)
