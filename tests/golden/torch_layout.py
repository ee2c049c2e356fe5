"""The authors' tensors of layers, by their names, as our parameters; a permutation."""

from typing import Any

import jax

from pom_jax.interop import layouts

Tensors = dict[str, jax.Array]
Tree = dict[str, Any]


def below(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose names start with `prefix`, without it."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def linear(p: Tensors, name: str) -> Tree:
    """A torch Linear [out, in] as {kernel [in, out], bias [out]}."""
    tree = {"kernel": p[f"{name}.weight"].T}
    return tree | {"bias": p[f"{name}.bias"]} if f"{name}.bias" in p else tree


def mixer(p: Tensors, layout: str, degree: int | None = None) -> Tree:
    """One of the authors' mixers -> `PoM`, in the layout that `pom_jax.interop` calls so."""
    return layouts.to_ours(p, layouts.entries(layout, layouts.measure(layout, p, degree)))


def product_mixer(p: Tensors, degree: int) -> Tree:
    """`HoM` -> `PoM(form="product")`."""
    return mixer(p, "product", degree)


def power_mixer(p: Tensors, groups: int) -> Tree:
    """`PoM` of the second paper -> `PoM(form="power")`."""
    return mixer(p, "grouped" if groups > 1 else "fused")
