"""The work of making a set: samples read by several threads, encoded on the device, written; restartable."""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from pom_jax.data.ahead import read_ahead
from pom_jax.data.encoding import Encoded, Encoder
from pom_jax.data.manifest import Manifest
from pom_jax.data.pictures import Skipped
from pom_jax.data.progress import PrepareProgress
from pom_jax.data.recipe import Batch, Piece, Recipe
from pom_jax.data.unfinished import Unfinished, find_finished
from pom_jax.errors import InputError
from pom_jax.hosts import this_host

BATCH_SIZE = 32


class Job(Protocol):
    """What to make: how the samples of a recipe are read and encoded.

    Attributes:
        recipe: the set that comes of it.
        encoder: of what is read.
    """

    @property
    def recipe(self) -> Recipe: ...

    @property
    def encoder(self) -> Encoder: ...

    def read(self, split: str, index: int) -> np.ndarray | Skipped:
        """One sample, uint8 [*encoder.crop_shape], or why it is left out; called by several threads."""
        ...

    def encode(self, split: str, indices: np.ndarray, crops: np.ndarray) -> Encoded:
        """The fields of samples.

        Args:
            indices: [n] of the samples in their split.
            crops: [B, *encoder.crop_shape] what was read of them; beyond n, padding.

        Returns:
            `{field: [n or more, ...]}`.
        """
        ...

    def name(self, split: str, index: int) -> str:
        """The file of a sample, as `Skipped` names it."""
        ...

    def title(self, split: str, index: int) -> str:
        """What a sample shows, in words."""
        ...


def prepare(
    job: Job,
    out: str | Path,
    *,
    host: int | None = None,
    hosts: int | None = None,
    workers: int | None = None,
    batch_size: int = BATCH_SIZE,
    max_unreadable: int = 100,
    progress: PrepareProgress | None = None,
) -> Manifest | None:
    """Makes the data set, or what is missing of it.

    The records do not depend on hosts, workers, batch size or restarts (but for the last bits of float32,
    which differ among kinds of devices).

    Args:
        out: the folder to make; while it grows it is `out.unfinished`.
        host, hosts: this process makes every `hosts`-th shard, from `host` on, see `this_host`.
        workers: threads that read and crop; one a core by default.
        batch_size: samples that are encoded at once on a device.
        max_unreadable: samples that may be left out because they cannot be used.
        progress: is told how far it has come.

    Returns:
        The manifest; None if other hosts are still at work, the last of which writes it.

    Raises:
        InputError: numbers out of range; see `Unfinished` too.
    """
    if workers is None:
        workers = os.cpu_count() or 1
    host, hosts = this_host(host, hosts)
    if workers < 1 or batch_size < 1 or max_unreadable < 0:
        raise InputError(
            f"--workers={workers} and --batch-size={batch_size} must be at least 1, "
            f"--max-unreadable={max_unreadable} at least 0"
        )
    progress = progress or PrepareProgress(unit=job.recipe.unit)
    if (manifest := find_finished(out, job.recipe)) is not None:
        progress.say(f"{out} is there already, made with the same settings")
        return manifest
    with Unfinished(out, job.recipe, host=host, hosts=hosts, max_unreadable=max_unreadable) as unfinished:
        missing = unfinished.missing()
        own = len(job.recipe.pieces[host::hosts])
        if len(missing) < own:
            progress.say(f"{own - len(missing)} of {own} shards are there already")
        if missing:
            batch_size *= jax.local_device_count() if job.encoder.compiles else 1
            _make(job, missing, unfinished, workers, batch_size, progress)
        return unfinished.finish()


def _make(
    job: Job,
    pieces: Sequence[Piece],
    unfinished: Unfinished,
    workers: int,
    batch_size: int,
    progress: PrepareProgress,
) -> None:
    """Reads, encodes and writes at the same time, each at most a few batches ahead of the next."""
    if job.encoder.compiles:
        progress.say("compiling the encoder")
        began = time.perf_counter()
        crops = np.zeros((batch_size, *job.encoder.crop_shape), np.uint8)
        jax.block_until_ready(job.encode(pieces[0].split, np.arange(0), crops))
        progress.say(f"compiled in {time.perf_counter() - began:.1f} s")
    progress.begin(sum(len(piece.indices) for piece in pieces))
    with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
        writing: deque[Future[None]] = deque()
        for batch, seen in _batches(job, pieces, workers, batch_size):
            # The device computes while this thread goes on; the writer waits for it.
            writing.append(writer.submit(unfinished.write, batch))
            while len(writing) > 2:
                writing.popleft().result()
            progress.advance(seen)
        for future in writing:
            future.result()


def _batches(job: Job, pieces: Sequence[Piece], workers: int, batch_size: int) -> Iterator[tuple[Batch, int]]:
    """Encoded batches, and how many samples each stands for; threads read ahead across pieces."""
    places = ((piece.split, int(index)) for piece in pieces for index in piece.indices)
    crops = read_ahead(lambda place: job.read(*place), places, workers, 2 * batch_size)
    for piece in pieces:
        for start in range(0, len(piece.indices), batch_size):
            indices = piece.indices[start : start + batch_size]
            found = [next(crops) for _ in indices]
            yield _encoded(job, piece, indices, found, batch_size, start), len(indices)


def _encoded(
    job: Job,
    piece: Piece,
    indices: np.ndarray,
    found: Sequence[np.ndarray | Skipped],
    batch_size: int,
    start: int,
) -> Batch:
    read = dict(zip(map(int, indices), found, strict=True))
    left_out = {index: crop for index, crop in read.items() if isinstance(crop, Skipped)}
    good = {index: crop for index, crop in read.items() if not isinstance(crop, Skipped)}
    rows = batch_size if job.encoder.compiles else len(good)  # one shape: one program
    crops = np.zeros((rows, *job.encoder.crop_shape), np.uint8)
    for place, crop in enumerate(good.values()):
        crops[place] = crop
    encoded = job.encode(piece.split, np.array([*good]), crops) if good else None
    return Batch(
        piece,
        {} if encoded is None else encoded.arrays,
        count=len(good),
        clipped=None if encoded is None else encoded.clipped,
        cut=0 if encoded is None else encoded.cut,
        names={index: job.name(piece.split, index) for index in good},
        left_out=left_out,
        last=start + batch_size >= len(piece.indices),
    )
