"""Diffusion transformers with the Polynomial Mixer (PoM), in JAX.

Letters in shapes: B batch, T frames, H W height and width, N context tokens, M query tokens, D width,
E expanded width (expansion times D), K degree, C channels, V views (an image and its mirror image), L layers.
"""

from typing import TYPE_CHECKING, Any

from pom_jax.xla_guard import guard as _guard

if TYPE_CHECKING:
    from pom_jax.sampling import load as load
    from pom_jax.sampling import show as show

_guard()


def __getattr__(name: str) -> Any:
    # `pom_jax.load` and `pom_jax.show` bring Flax, Orbax and Pillow along, which a layer does not need.
    if name in ("load", "show"):
        from pom_jax import sampling

        return getattr(sampling, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
