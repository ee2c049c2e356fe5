"""The first samples of a set beside what they were made of, to look at."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pom_jax.data.making import Job
from pom_jax.data.pictures import Skipped
from pom_jax.data.records import Records
from pom_jax.data.unfinished import read_left_out
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
    """Decodes the first training samples of a finished set whose files are still there.

    Args:
        job: that made it.
        folder: the set.
        number: samples to show, at least 1; fewer if fewer are left.

    Raises:
        InputError: a number below 1, shards that cannot be read, or no file that is left.
    """
    if number < 1:
        raise InputError(f"--check={number} must be at least 1")
    records = Records(folder, "train")
    found = list(itertools.islice(_pairs(job, records), number))
    if not found:
        raise InputError(
            f"--check={number}: none of the {job.recipe.unit} that {folder} was made of can be read now, or "
            "told from those that were left out: put them back, or give the command without --check"
        )
    places, indices, crops = zip(*found, strict=True)
    above, batch = np.stack(crops), records.gather(places)
    below = job.encoder.decode(batch["mean"][:, 0])
    error = float(np.mean((above.astype(np.float64) - below) ** 2))
    ratio = 10 * float(np.log10(255**2 / error)) if error else float("inf")
    return Check(above, below, [job.title("train", index) for index in indices], ratio)


def _pairs(job: Job, records: Records) -> Iterator[tuple[int, int, np.ndarray]]:
    """Records with the index and the crop of what they were made of, where it can be read now."""
    counts = {Path(shard.file).stem: shard.records for shard in records.manifest.splits["train"]}
    left_out, start = read_left_out(records.folder), 0
    for piece in (piece for piece in job.recipe.pieces if piece.split == "train"):
        count, gone = counts.get(piece.name, 0), set(left_out.get(piece.name, ()))
        kept = [index for index in map(int, piece.indices) if index not in gone]
        if len(kept) == count:  # else nothing tells which were left out
            for place, index in enumerate(kept, start):
                crop = job.read("train", index)
                if not isinstance(crop, Skipped):
                    yield place, index, crop
        start += count
