"""What the mixer does with a run of tokens: features that a state sums, gates, and the read of a state.

Nothing here looks from one token to another, so any run of tokens can be computed apart from the others; how
states travel between tokens is in `mixing` and `reads`. Projections and features are lists with an array a
degree, never one array [.., K, E]: on CPU slicing such an array costs the backward pass a sixth of its time.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from pom_jax.ops.dense import dense, grouped_dense
from pom_jax.ops.phase import Phase
from pom_jax.ops.polynomials import CLAMP, SLOPE, cumulative_products, hard_sigmoid, power_features
from pom_jax.ops.rotary import Rotary


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The choices of a mixer that are not weights.

    Attributes:
        form: "product" or "power", see `nn.PoM`.
        degree: K.
        expanded: E.
        heads: power form: gates of a token, each for E / heads consecutive channels; 1 for a gate a channel.
        slope, clamp: of the power form's activation.
        reads: which frames' states a token reads, each through gates of its own: "all" so far with its own,
            "own", "last" (the one before) or "past" (all before).
        rotary: turns features and gates by position, or None.
        phase: writes and reads the state relative to positions, or None.
        dtype: of the products.
    """

    form: str
    degree: int
    expanded: int
    heads: int = 1
    slope: float = SLOPE
    clamp: tuple[float, float] | None = CLAMP
    reads: tuple[str, ...] = ("all",)
    rotary: Rotary | None = None
    phase: Phase | None = None
    dtype: DTypeLike = jnp.float32

    @property
    def features(self) -> tuple[int, ...]:
        """...F, the shape of one token's features and of the state: [(2,) K, E] or [(2,) E]."""
        one = (self.degree, self.expanded) if self.form == "product" else (self.expanded,)
        return one if self.phase is None else (2, *one)

    @property
    def slots(self) -> int:
        """R, how many gated vectors a token has: one a read, two with a phase."""
        return len(self.reads) * (1 if self.phase is None else 2)

    @property
    def axes(self) -> int:
        """Coordinates that a position needs, 0 for none."""
        return max(self.rotary.axes if self.rotary else 0, self.phase.axes if self.phase else 0)


class FeatureWeights(NamedTuple):
    """Of the features, in the compute dtype where they multiply tokens, float32 elsewhere.

    Attributes:
        kernels: one a degree [D, E] (product form); one [D, E] or one a group, [G, D/G, E/G] (power form).
        biases: alike, [E], or None for all.
        scale: [E] factor of the power form's projection, or None.
        coefficients: [E, K] of the power form, None in the product form.
    """

    kernels: tuple[Array, ...]
    biases: tuple[Array, ...] | None
    scale: Array | None
    coefficients: Array | None


class ReadWeights(NamedTuple):
    """Of gates and output, one of each a slot R.

    Attributes:
        gates: [D, K, E] (product form), or [D, S] for S = E or the number of heads.
        gate_biases: [K, E] or [S], or None for all.
        outs: [K, E, D] or [E, D].
        bias: [D] of the output, or None.
    """

    gates: tuple[Array, ...]
    gate_biases: tuple[Array, ...] | None
    outs: tuple[Array, ...]
    bias: Array | None


def features(recipe: Recipe, weights: FeatureWeights, x: Array, positions: Array | None) -> list[Array]:
    """What each token adds to the state.

    Args:
        recipe: of the mixer.
        weights: of its features.
        x: [..., N, D] in the compute dtype.
        positions: [..., N, axes] float32, None if the recipe needs none.

    Returns:
        Arrays [..., N, E] float32: one a degree or just one; with a phase cosine parts, then sine parts.
    """
    u = [_project(x, kernel, bias) for kernel, bias in _pairs(weights.kernels, weights.biases)]
    if recipe.form == "product":
        found = cumulative_products(u)
    else:
        assert weights.coefficients is not None
        wide = u[0] if weights.scale is None else u[0].astype(jnp.float32) * weights.scale
        found = [power_features(wide, weights.coefficients, recipe.slope, recipe.clamp)]
    if recipe.rotary is not None:
        tables = recipe.rotary.tables(_on(positions, recipe.rotary.axes), recipe.expanded)
        found = [recipe.rotary.rotate(f, tables) for f in found]
    if recipe.phase is not None:
        cos, sin = recipe.phase.tables(_on(positions, recipe.phase.axes), recipe.expanded)
        found = [f * cos for f in found] + [f * sin for f in found]
    return found


def gather(recipe: Recipe, arrays: list[Array]) -> Array:
    """Arrays [..., E] in the order of `features` as one [..., *F]."""
    return jnp.stack(arrays, axis=-2).reshape(*arrays[0].shape[:-1], *recipe.features)


def gate_projections(weights: ReadWeights, x: Array) -> list[Array]:
    """x [..., M, D] -> before its activation a gate for each slot, [..., M, K, E] or [..., M, S]."""
    return [dense(x, kernel, bias) for kernel, bias in _pairs(weights.gates, weights.gate_biases)]


def read(
    recipe: Recipe,
    weights: ReadWeights,
    gate_projections: list[Array],
    means: list[Array],
    positions: Array | None,
) -> Array:
    """What each token takes from the means of the states, through its gates.

    Args:
        recipe: of the mixer.
        weights: of its gates and output.
        gate_projections: for each slot [..., M, K, E] or [..., M, S].
        means: for each read [..., M, *F] or [..., 1, *F] float32.
        positions: [..., M, axes] float32, None if the recipe needs none.

    Returns:
        [..., M, D] in the compute dtype.
    """
    gates = [_activate(recipe, z, positions) for z in gate_projections]
    if recipe.phase is not None:
        means = _turn_back(recipe, recipe.phase, means, positions)
    total = None
    for gate, mean, kernel in zip(gates, means, weights.outs, strict=True):
        part = _read_slot(recipe, gate, mean, kernel)
        total = part if total is None else total + part
    assert total is not None
    return total if weights.bias is None else total + weights.bias


def _pairs(kernels: tuple[Array, ...], biases: tuple[Array, ...] | None) -> list[tuple[Array, Array | None]]:
    return list(zip(kernels, biases or (None,) * len(kernels), strict=True))


def _on(positions: Array | None, axes: int) -> Array:
    """The first coordinates of positions, which are there if the recipe needs them."""
    assert positions is not None
    return positions[..., :axes]


def _project(x: Array, kernel: Array, bias: Array | None) -> Array:
    return dense(x, kernel, bias) if kernel.ndim == 2 else grouped_dense(x, kernel, bias)


def _activate(recipe: Recipe, z: Array, positions: Array | None) -> Array:
    gate = jax.nn.sigmoid(z.astype(jnp.float32)) if recipe.form == "product" else hard_sigmoid(z)
    if recipe.rotary is None:
        return gate
    tables = recipe.rotary.tables(_on(positions, recipe.rotary.axes), recipe.expanded, recipe.heads)
    if recipe.form == "product":
        tables = tables[0][..., None, :], tables[1][..., None, :]
    return recipe.rotary.rotate(gate, tables)


def _turn_back(recipe: Recipe, phase: Phase, means: list[Array], positions: Array | None) -> list[Array]:
    """Both quadratures of exp(-i w.p) mean for each read; [..., M, *F] each without the axis of two."""
    cos, sin = phase.tables(_on(positions, phase.axes), recipe.expanded)
    if recipe.form == "product":
        cos, sin = cos[..., None, :], sin[..., None, :]
    axis = -2 if recipe.form == "power" else -3
    slots = []
    for mean in means:
        real, imaginary = (jnp.take(mean, i, axis=axis) for i in (0, 1))
        slots += [cos * real + sin * imaginary, cos * imaginary - sin * real]
    return slots


def _read_slot(recipe: Recipe, gate: Array, mean: Array, kernel: Array) -> Array:
    heads = recipe.heads
    if heads == 1:
        return dense((gate * mean).astype(recipe.dtype), kernel, axes=kernel.ndim - 1)
    mean = mean.reshape(*mean.shape[:-1], heads, recipe.expanded // heads)
    if mean.shape[-3] < gate.shape[-2]:
        # One state for many tokens: the state and the kernel make one small matrix [S, D] before any token
        # comes in, so the output product costs S / E of the plain one.
        shared = mean.astype(recipe.dtype)[..., 0, :, :]
        small = jnp.einsum("...sc,scd->...sd", shared, kernel.reshape(heads, -1, kernel.shape[-1]))
        return jnp.einsum("...ms,...sd->...md", gate.astype(recipe.dtype), small)
    gated = (gate[..., None] * mean).reshape(*gate.shape[:-1], recipe.expanded)
    return dense(gated.astype(recipe.dtype), kernel)
