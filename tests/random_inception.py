"""Weights of Inception for tests."""

from pathlib import Path

import jax
import numpy as np

from pom_jax.evaluation.inception import Inception
from pom_jax.evaluation.inception_weights import save_inception


def write_random_inception(file: Path) -> None:
    """Writes weights in which nothing is as it begins, and under which activations keep their size."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.uint8))

    def leaf(path: tuple, like: jax.ShapeDtypeStruct) -> np.ndarray:
        drawn = rng.standard_normal(like.shape, np.float32)
        if len(like.shape) > 1:
            return drawn * np.float32(np.sqrt(2 / np.prod(like.shape[:-1])))
        return np.exp(0.2 * drawn) if path[-1].key in ("scale", "variance") else 0.2 * drawn

    save_inception(file, jax.tree.map_with_path(leaf, shapes))
