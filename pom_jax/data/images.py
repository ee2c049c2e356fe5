"""Pictures -> shards of pixels or latents: read by several threads, encoded on the device, restartable."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
import PIL

from pom_jax.data.encoding import Encoder
from pom_jax.data.manifest import Field, Manifest
from pom_jax.data.pictures import Pictures, Skipped
from pom_jax.data.progress import PrepareProgress
from pom_jax.data.recipe import Batch, Piece, Recipe, cut, fingerprint, hold_out
from pom_jax.data.unfinished import Unfinished, find_finished
from pom_jax.errors import InputError
from pom_jax.hosts import this_host

SHARD_IMAGES = 4096
BATCH_SIZE = 32

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """What to make: pictures of each split, how they are cropped and encoded.

    Attributes:
        sources: "train" and "test"; the same pictures where a share of them is held out.
        encoder: makes the fields.
        size: pixels of a crop's side.
        min_size: pictures whose shorter side is below this are left out.
        recipe: the set that comes of it.
    """

    sources: dict[str, Pictures]
    encoder: Encoder
    size: int
    min_size: int
    recipe: Recipe


def plan(
    pictures: Pictures,
    encoder: Encoder,
    size: int,
    *,
    test_pictures: Pictures | None = None,
    test_share: float = 0.02,
    min_size: int = 0,
    seed: int = 0,
    shard_images: int = SHARD_IMAGES,
    name: str | None = None,
    command: str = "",
) -> Job:
    """Settles which picture goes into which shard, before any is read.

    Args:
        pictures: to train on.
        encoder: `encoding.Pixels(size)` or `encoding.Latents(...)`.
        size, min_size: see `Job`.
        test_pictures: the held-out ones; None: `test_share` of each class of `pictures`.
        seed: of the choice and of the order, in which classes are mixed.
        shard_images: pictures a shard; what a kill can cost.
        name: of the set; that of the pictures by default.
        command: that makes the set; for the manifest.

    Raises:
        InputError: a size, share or seed out of range, test pictures of other classes, too few pictures.
    """
    if size < 1 or shard_images < 1 or min_size < 0 or seed < 0:
        raise InputError(
            f"--size={size} and --shard-images={shard_images} must be at least 1, --min-size={min_size} and "
            f"--seed={seed} at least 0"
        )
    rng = np.random.default_rng(seed)
    if test_pictures is None:
        train, test = hold_out(pictures.labels, test_share, rng)
        held_out = f"{test_share:g} of each class"
    else:
        if test_pictures.classes != pictures.classes:
            raise InputError(
                f"--test-source has {len(test_pictures.classes)} classes ({test_pictures.classes[0]}, ...), "
                f"--source {len(pictures.classes)} ({pictures.classes[0]}, ...); they must be the same"
            )
        train, test = (rng.permutation(len(found)) for found in (pictures, test_pictures))
        held_out = describe(test_pictures)
    pieces = (*cut("train", train, shard_images), *cut("test", test, shard_images))
    settings = {
        "source": describe(pictures),
        "held_out": held_out,
        "size": str(size),
        "min_size": str(min_size),
        **encoder.settings,
        "seed": str(seed),
        "shard_images": str(shard_images),
        "order": fingerprint(pieces),
    }
    recipe = Recipe(
        name=name or pictures.name,
        fields={**encoder.fields, "label": Field("int32", ())},
        classes=pictures.classes,
        scale=encoder.scale,
        shift=encoder.shift,
        autoencoder=encoder.autoencoder,
        settings=settings,
        notes={
            "command": command,
            "crop": "ADM's centre crop; both mirror images",
            "pillow": PIL.__version__,
            "jax": jax.__version__,
        },
        pieces=pieces,
    )
    sources = {"train": pictures, "test": pictures if test_pictures is None else test_pictures}
    return Job(sources, encoder, size, min_size, recipe)


def describe(pictures: Pictures) -> str:
    """Pictures in a line that tells them from others."""
    return f"{len(pictures)} pictures, {len(pictures.classes)} classes, {pictures.fingerprint}"


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
        batch_size: pictures that are encoded at once on a device.
        max_unreadable: pictures that may be left out because they cannot be read.
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
    progress = progress or PrepareProgress()
    if (manifest := find_finished(out, job.recipe)) is not None:
        progress.say(f"{out} is there already, made with the same settings")
        return manifest
    with Unfinished(out, job.recipe, host=host, hosts=hosts, max_unreadable=max_unreadable) as unfinished:
        missing = unfinished.missing()
        own = len(job.recipe.pieces[host::hosts])
        if len(missing) < own:
            progress.say(f"{own - len(missing)} of {own} shards are there already")
        if missing:
            _make(job, missing, unfinished, workers, batch_size * jax.local_device_count(), progress)
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
    if job.encoder.autoencoder is not None:
        progress.say("compiling the encoder")
        began = time.perf_counter()
        jax.block_until_ready(job.encoder(np.zeros((batch_size, job.size, job.size, 3), np.uint8)))
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
    """Batches of encoded crops, and how many pictures each stands for; threads read ahead across pieces."""

    def crop(place: tuple[Piece, int]) -> np.ndarray | Skipped:
        piece, index = place
        return job.sources[piece.split].crop(index, job.size, job.min_size)

    places = ((piece, int(index)) for piece in pieces for index in piece.indices)
    crops = read_ahead(crop, places, workers, 2 * batch_size)
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
    good = [
        (index, crop) for index, crop in zip(indices, found, strict=True) if not isinstance(crop, Skipped)
    ]
    skipped = [crop for crop in found if isinstance(crop, Skipped)]
    crops = np.zeros((batch_size, job.size, job.size, 3), np.uint8)  # one shape: one program
    labels = np.zeros(batch_size, np.int32)
    for place, (index, crop) in enumerate(good):
        crops[place], labels[place] = crop, job.sources[piece.split].labels[index]
    encoded = job.encoder(crops) if good else None
    return Batch(
        piece,
        {} if encoded is None else {**encoded.arrays, "label": labels},
        count=len(good),
        clipped=None if encoded is None else encoded.clipped,
        unreadable=[f"{s.name}: {s.reason}" for s in skipped if s.reason is not None],
        too_small=sum(s.reason is None for s in skipped),
        last=start + batch_size >= len(piece.indices),
    )


def read_ahead(
    call: Callable[[Task], Result], tasks: Iterable[Task], workers: int, ahead: int
) -> Iterator[Result]:
    """Results in the order of the tasks, of which so many are under way before theirs is asked for."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")
    try:
        waiting: deque[Future[Result]] = deque()
        for task in tasks:
            waiting.append(pool.submit(call, task))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
