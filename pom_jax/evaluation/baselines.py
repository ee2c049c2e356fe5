"""What simple ways to make digits score: every report shows them, so that no number is read alone."""

from collections.abc import Callable

import numpy as np

from pom_jax.evaluation.digits import HIGHEST

# Each takes training images [N, 64] of 0 to 16, their labels [N] and a random generator, and gives [N, 64].
Maker = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def replayed(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The training images themselves: perfect but for the copies."""
    del labels, rng
    return images


def gaussian(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One Gaussian a class, with the full covariance of its training images."""
    drawn = np.empty_like(images)
    for label in np.unique(labels):
        own = images[labels == label]
        drawn[labels == label] = rng.multivariate_normal(
            own.mean(axis=0), np.cov(own, rowvar=False), len(own)
        )
    return np.clip(drawn, 0, HIGHEST)


def class_means(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mean image of the class, again and again."""
    del rng
    means = {label: images[labels == label].mean(axis=0) for label in np.unique(labels)}
    return np.stack([means[label] for label in labels])


def noise(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every pixel anywhere between 0 and 16."""
    del labels
    return rng.uniform(0, HIGHEST, images.shape)


BASELINES: dict[str, Maker] = {
    "replayed": replayed,
    "Gaussian": gaussian,
    "class mean": class_means,
    "noise": noise,
}
RANDOM = ("Gaussian", "noise")
