"""Diffusion transformers with the Polynomial Mixer (PoM), in JAX.

Letters in shapes: B batch, T frames, H W height and width, N context tokens, M query tokens, D width,
E expanded width (expansion times D), K degree, C channels, V views (an image and its mirror image), L layers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pom_jax.xla_guard import guard as _guard

if TYPE_CHECKING:
    from pom_jax.sampling import load as load
    from pom_jax.sampling import load_video as load_video
    from pom_jax.sampling import show as show

_ROOMS = ("data", "diffusion", "evaluation", "interop", "models", "nn", "ops", "sampling", "training", "vae")

_guard()


def __getattr__(name: str) -> Any:
    # Rooms load when they are used: together they bring Flax, Orbax and Pillow, which few lines need.
    if name in _ROOMS:
        return importlib.import_module(f"pom_jax.{name}")
    if name in ("load", "load_video", "show"):
        return getattr(importlib.import_module("pom_jax.sampling"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
