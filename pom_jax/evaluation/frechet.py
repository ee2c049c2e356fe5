"""The Fréchet distance between two sets of features, each taken as a Gaussian (Heusel et al., 2017)."""

from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from pom_jax.errors import InputError


class Gaussian(NamedTuple):
    """What the distance knows of a set of features.

    Attributes:
        mean: [F] float64.
        covariance: [F, F] float64, unbiased.
    """

    mean: np.ndarray
    covariance: np.ndarray


class Moments:
    """Mean and covariance of features that come chunk by chunk, in float64 and memory [F, F].

    The chunks are merged by their own means (Chan et al., 1983), so nothing cancels however far the features
    lie from zero, and any cut into chunks gives the same up to rounding.
    """

    def __init__(self, features: int):
        self.count = 0
        self._mean = np.zeros(features)
        self._scatter = np.zeros((features, features))

    def add(self, chunk: np.ndarray) -> None:
        """Takes in features [N, F]."""
        chunk = np.asarray(chunk, np.float64)
        if not len(chunk):
            return
        total = self.count + len(chunk)
        mean = chunk.mean(axis=0)
        shift = mean - self._mean
        centred = chunk - mean
        self._scatter += centred.T @ centred
        self._scatter += np.outer(shift, shift) * (self.count * len(chunk) / total)
        self._mean += shift * (len(chunk) / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """The Gaussian of all features so far.

        Raises:
            InputError: fewer than two of them.
        """
        if self.count < 2:
            raise InputError(f"a covariance needs at least 2 images, found {self.count}")
        return Gaussian(self._mean.copy(), self._scatter / (self.count - 1))


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The distance between the Gaussians of two sets of features, with unbiased covariances, in float64.

    Args:
        first: [N, F] features.
        second: [M, F] features.
    """
    sets = (np.asarray(features, np.float64) for features in (first, second))
    return gaussian_distance(*(Gaussian(x.mean(axis=0), np.cov(x, rowvar=False)) for x in sets))


def gaussian_distance(first: Gaussian, second: Gaussian) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), in float64."""
    # L' C2 L, with C1 = L L', has the eigenvalues of C1 C2 and is symmetric: no complex numbers. One thread
    # takes seconds and gives the same bits on any machine; several wait for each other where cores are busy.
    with threadpool_limits(1):
        factor = _factor(first.covariance)
        cross = np.sqrt(np.maximum(np.linalg.eigvalsh(factor.T @ second.covariance @ factor), 0)).sum()
    shift = first.mean - second.mean
    return float(shift @ shift + np.trace(first.covariance) + np.trace(second.covariance) - 2 * cross)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """L [F, F] of a covariance L L'."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:  # it is singular, as that of fewer images than features
        values, vectors = np.linalg.eigh(covariance)
        return vectors * np.sqrt(np.maximum(values, 0))
