"""Images through Inception, over all devices of this host, and what the scores keep of them."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pom_jax.errors import InputError
from pom_jax.evaluation.frechet import Gaussian, Moments
from pom_jax.evaluation.images import Images
from pom_jax.evaluation.inception import POOL, SPATIAL, Inception, Outputs
from pom_jax.evaluation.inception_weights import InceptionWeights
from pom_jax.sampling.progress import Progress

BATCH = 64


class Statistics(NamedTuple):
    """What FID and sFID know of a set of images; `spatial` is None in files that lack it."""

    pool: Gaussian
    spatial: Gaussian | None


class Features(NamedTuple):
    """What the scores know of a set of images.

    Attributes:
        statistics: of all images.
        pool: [K, 2048] float32 of the images kept.
        logits: [K, 1008] float32 of the same.
    """

    statistics: Statistics
    pool: np.ndarray
    logits: np.ndarray


def extract_features(
    images: Images,
    weights: InceptionWeights,
    *,
    batch_size: int = BATCH,
    keep: int | None = None,
    progress: Progress | None = None,
) -> Features:
    """Runs all images through the network, one program whatever their number.

    The last batch is filled up with black images that are not counted. Each image's features depend on that
    image alone, so devices and batches change nothing but the last bits.

    Args:
        images: from `open_images`.
        weights: from `load_inception`.
        batch_size: rounded up to a multiple of the devices.
        keep: at most so many images have their features kept, spread evenly over the set; all by default.
        progress: is told what happens.

    Raises:
        InputError: fewer than two images, sizes that are not positive, or a picture that cannot be read.
    """
    if images.count < 2:
        raise InputError(f"{images.name} holds {images.count} image; statistics need at least 2")
    if batch_size < 1 or (keep is not None and keep < 1):
        raise InputError(f"batch_size={batch_size}, keep={keep}: both must be at least 1")
    devices = jax.local_devices()
    mesh = Mesh(np.array(devices), ("data",))
    whole, cut = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    batch_size = -(-min(batch_size, images.count) // len(devices)) * len(devices)
    variables = jax.device_put(weights.variables, whole)
    kept = np.zeros(images.count, bool)
    kept[np.linspace(0, images.count - 1, min(keep or images.count, images.count)).round().astype(int)] = True
    collected = _Collected(kept)

    waiting: tuple[Outputs, int] | None = None  # the host works on a batch while the devices do the next one
    for batch in images.batches(batch_size):
        filled = np.zeros((batch_size, *batch.shape[1:]), np.uint8)
        filled[: len(batch)] = batch
        inputs = jax.device_put(filled, cut)
        outputs = _compiled(variables, inputs, progress)(variables, inputs), len(batch)
        if waiting is not None:
            collected.add(*waiting, progress)
        waiting = outputs
    assert waiting is not None
    collected.add(*waiting, progress)
    return collected.features()


def _compiled(variables: Mapping[str, Any], images: jax.Array, progress: Progress | None) -> Any:
    """The network as a program for images of this shape on these devices, once a process."""
    key = images.shape, images.sharding
    if key not in _PROGRAMS:
        if progress is not None:
            progress.compiling("Inception network")
        began = time.perf_counter()
        _PROGRAMS[key] = jax.jit(Inception().apply).lower(variables, images).compile()
        if progress is not None:
            progress.compiled(time.perf_counter() - began)
    return _PROGRAMS[key]


_PROGRAMS: dict[tuple[Any, ...], Any] = {}


class _Collected:
    """The features of the batches so far."""

    def __init__(self, kept: np.ndarray):
        self._kept = kept
        self._done = 0
        self._pool, self._spatial = Moments(POOL), Moments(SPATIAL)
        self._features: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, outputs: Outputs, count: int, progress: Progress | None) -> None:
        pool, spatial, logits = (np.asarray(x)[:count] for x in outputs)
        self._pool.add(pool)
        self._spatial.add(spatial)
        own = self._kept[self._done : self._done + count]
        self._features.append((pool[own], logits[own]))
        self._done += count
        if progress is not None:
            progress.drawn(self._done, len(self._kept))

    def features(self) -> Features:
        statistics = Statistics(self._pool.gaussian(), self._spatial.gaussian())
        pool, logits = (np.concatenate(parts) for parts in zip(*self._features, strict=True))
        return Features(statistics, pool, logits)
