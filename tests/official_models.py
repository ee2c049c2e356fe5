"""Tiny models of every layout that the interop room knows, and random tensors under their official names."""

from typing import Any

import jax
import numpy as np

from pom_jax import models
from pom_jax.interop import layouts, model_layouts

Tensors = dict[str, Any]
# Image 4, 2 channels, 3 classes, patch 2, width 8, 2 layers.
TINY = models.DiPoM(4, 2, 3, 2, 8, 2, ffn_expansion=3)
FACEBOOK = TINY.clone(mixer="attention", num_heads=2, positions="dit", activation="gelu_tanh")
MODELS = {
    "dih": TINY.clone(degree=3, expansion=2, unit_gates=True, n_timesteps=250),
    "dihpp": TINY.clone(registers=3, positions="learned", clamp=255.0, unit_gates=True),
    "homm_dit": TINY.clone(mixer="attention", num_heads=4),
    "dit": FACEBOOK.clone(time_embedding="dit"),
    "sit": FACEBOOK.clone(time_embedding="sit", n_timesteps=1),
}


def theirs(layout: str, prefix: str = "", seed: int = 0) -> Tensors:
    """Random tensors of a model in their names and shapes."""
    shapes = layouts.shapes(model_layouts.entries(layout, MODELS[layout]))
    tensors = {name: normal(*shape, seed=seed) for name, shape in shapes.items()}
    return {prefix + n: a for n, a in (tensors | model_layouts.computed(layout, MODELS[layout])).items()}


def told(layout: str) -> dict[str, Any]:
    """What `import_model` has to be told."""
    m = MODELS[layout]
    if layout in model_layouts.FACEBOOK:
        return {"objective": layout, "num_heads": m.num_heads}
    size = {} if layout == "dihpp" else {"image_size": m.image_size}
    return size | ({"degree": m.degree} if m.mixer == "pom" else {"num_heads": m.num_heads})


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def same_bits(ours: Any, theirs: Any) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))
