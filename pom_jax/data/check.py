"""The first samples of a set beside what they were made of, to look at."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pom_jax.data.making import Job
from pom_jax.data.pictures import Skipped
from pom_jax.data.records import Records
from pom_jax.data.unfinished import UNREADABLE
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
    """Records with the index and the crop of what they were made of, as far as both are known."""
    counts = {Path(shard.file).stem: shard.records for shard in records.manifest.splits["train"]}
    listed, start = _unreadable(records.folder), 0
    for piece in (piece for piece in job.recipe.pieces if piece.split == "train"):
        count = counts.get(piece.name, 0)
        named = [job.name("train", int(index)) in listed for index in piece.indices]
        left_out = len(named) - count
        # Else some were too small, which no list tells: what is read now has to.
        known = left_out in (0, sum(named))
        place = start
        for index, out in zip(map(int, piece.indices), named, strict=True):
            if place == start + count:
                break
            if known and left_out and out:
                continue
            crop = job.read("train", index)
            if not isinstance(crop, Skipped):
                if out and not known:
                    break  # repaired since, or another of the same name
                yield place, index, crop
            elif not known:
                if crop.reason is not None and not out:
                    break  # gone since, or too small then
                continue
            place += 1
        start += count


def _unreadable(folder: Path) -> set[str]:
    """What may be the names of samples that were left out because they could not be read."""
    path = folder / UNREADABLE
    if not path.is_file():
        return set()
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return {line[: colon.start()] for line in lines for colon in re.finditer(": ", line)}
