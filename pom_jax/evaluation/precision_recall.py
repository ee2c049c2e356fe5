"""Improved precision and recall (Kynkäänniemi et al., 2019, arXiv 1904.06991), as ADM's suite counts them."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pom_jax.errors import InputError

NEIGHBOURS = 3
ROWS = 1024  # features whose distances to all others are held at once: 200 MB for 50,000 of them


class PrecisionRecall(NamedTuple):
    """precision: the part of the samples that lie among the reference; recall: the other way round."""

    precision: float
    recall: float


def precision_recall(
    samples: np.ndarray, reference: np.ndarray, neighbours: int = NEIGHBOURS, rows: int = ROWS
) -> PrecisionRecall:
    """A feature lies among a set if for one of the set it is no farther than that one's k-th neighbour in it.

    Distances are squared Euclidean in float32 at the device's highest precision. ADM's suite takes them in
    float16 where these are finite: its numbers differ from these by what that rounding turns over.

    Args:
        samples: [N, F] features.
        reference: [M, F] features of real images; the published numbers have M = 10,000, N = 50,000.
        neighbours: k, not counting the feature itself.
        rows: features a block; memory is [rows, max(N, M)].

    Raises:
        InputError: a set with no more than k features, sizes that differ, values that are not finite, or a k
            or rows that is not positive.
    """
    samples, reference = (np.asarray(features, np.float64) for features in (samples, reference))
    if samples.ndim != 2 or samples.shape[1:] != reference.shape[1:]:
        raise InputError(
            f"features are [N, F] and [M, F]; got {list(samples.shape)} and {list(reference.shape)}"
        )
    if neighbours < 1 or rows < 1:
        raise InputError(f"neighbours={neighbours}, rows={rows}: both must be at least 1")
    fewest = min(len(samples), len(reference))
    if fewest <= neighbours:
        raise InputError(f"{fewest} images are too few: neighbours={neighbours} needs more than that many")
    if not (np.isfinite(samples).all() and np.isfinite(reference).all()):
        raise InputError("the features have NaN or infinities")
    # Distances do not know where zero is; near it, float32 loses least in |u|^2 - 2 u v + |v|^2.
    centre = reference.mean(axis=0)
    real, made = (jnp.asarray(features - centre, jnp.float32) for features in (reference, samples))
    return PrecisionRecall(
        precision=_part_among(made, real, neighbours, rows), recall=_part_among(real, made, neighbours, rows)
    )


def _part_among(features: jax.Array, others: jax.Array, neighbours: int, rows: int) -> float:
    """The part of `features` [N, F] that lie among `others` [M, F]."""
    radii = np.concatenate([_radii(block, others, neighbours) for block in _blocks(others, rows)])
    radii = jnp.asarray(radii[: len(others)])
    among = np.concatenate([_among(block, others, radii) for block in _blocks(features, rows)])
    return float(among[: len(features)].mean())


def _blocks(features: jax.Array, rows: int) -> Iterator[jax.Array]:
    """[N, F] in blocks of one size; the last one is filled up with zeros, so that one program fits all."""
    rows = min(rows, len(features))
    for start in range(0, len(features), rows):
        block = features[start : start + rows]
        yield jnp.pad(block, ((0, rows - len(block)), (0, 0)))


@functools.partial(jax.jit, static_argnames="neighbours")
def _radii(block: jax.Array, others: jax.Array, neighbours: int) -> jax.Array:
    """[R] squared distances of [R, F] to their k-th neighbours among [M, F], themselves being among these."""
    rows = jnp.arange(len(block))

    def without_nearest(_: int, distances: jax.Array) -> jax.Array:
        return distances.at[rows, distances.argmin(axis=1)].set(jnp.inf)

    # `top_k` is some thirty times slower on CPU.
    distances = lax.fori_loop(0, neighbours, without_nearest, _squared_distances(block, others))
    return distances.min(axis=1)


@jax.jit
def _among(block: jax.Array, others: jax.Array, radii: jax.Array) -> jax.Array:
    """[R, F] features, [M, F] others and their radii [M] -> [R] of bool."""
    return (_squared_distances(block, others) <= radii).any(axis=1)


def _squared_distances(first: jax.Array, second: jax.Array) -> jax.Array:
    """[N, F], [M, F] -> [N, M]."""
    product = jnp.matmul(first, second.T, precision=lax.Precision.HIGHEST)
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)
    return jnp.maximum(squares - 2 * product, 0)
