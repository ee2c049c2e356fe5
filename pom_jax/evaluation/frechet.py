"""The Fréchet distance between two sets of features, each taken as a Gaussian (Heusel et al., 2017)."""

import numpy as np


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) with unbiased covariances, in float64.

    Args:
        first: [N, F] features.
        second: [M, F] features.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    covariance, other = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    # C1^(1/2) C2 C1^(1/2) has the eigenvalues of C1 C2 and is symmetric: no complex numbers.
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other @ root), 0)).sum()
    shift = first.mean(axis=0) - second.mean(axis=0)
    return float(shift @ shift + np.trace(covariance) + np.trace(other) - 2 * cross)
