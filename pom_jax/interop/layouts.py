"""Where each of the authors' tensors of a layer goes: the one table, read in both directions.

Theirs are in torch's [out, in] layout. E is the expanded width of one degree, S the gates of a token, G the
groups. `qc_proj.weight` holds two of our arrays, one above the other.

| layout | whose | their tensors |
|---|---|---|
| product | HoMM's `HoM`, first paper | `ho_proj`, `se_proj` [K E, D], `ag_proj` [D, K E], biases or none |
| fused | pom's `PoM`, second paper | `qc_proj.weight` [E + S, D], `se_bias` [S] |
| grouped | the same with `n_groups` > 1 | `po_proj` [E, D/G, 1], `se_proj` [S, D] with a bias |
| split | JiTpp's first `ComPoM` | `po_proj` [E, D], `se_proj` [S, D] with a bias |

The last three share `po_coeff` [E, K] and `ag_proj` [D, E]. With `bias=True`, `ag_proj` and, where it stands
alone, `po_proj` have a bias too; ours has none in ungrouped features, so `split` is here without. `h_scale`
[E] is in the copy of pom in SD3-PoM. Rotary tables are in `interop.rotary`.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

Place = tuple[str | int, ...]
LAYOUTS = ("product", "fused", "grouped", "split")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the shapes of a layer's tensors tell.

    Attributes:
        width: D.
        expanded: E, the expansion times D.
        degree: K.
        gates: S, of the power form's layouts; E where each channel has its own.
        groups: G.
        biased: the products have biases.
        scaled: `h_scale` is there.
    """

    width: int
    expanded: int
    degree: int
    gates: int = 1
    groups: int = 1
    biased: bool = False
    scaled: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our arrays, and the rows of the authors' tensor that hold it.

    Attributes:
        ours: path in our tree of parameters; a number in it is explained in `model_layouts`.
        shape: of our array.
        theirs: name of the tensor. Entries with the same one hold its rows from the top in their order.
        rows: shape of those rows in their layout.
        inputs: how many of our first axes are a matrix's input; 0 for a vector, None for a matrix a group.
        axis: of their tensor, along which it is cut in rows.
    """

    ours: Place
    shape: tuple[int, ...]
    theirs: str
    rows: tuple[int, ...]
    inputs: int | None = 0
    axis: int = 0

    def to_ours(self, rows: Any) -> Any:
        """Their rows as our array, of numpy or of JAX."""
        if self.inputs is None:
            groups, width, expanded = self.shape
            return rows.reshape(groups, expanded, width).transpose(0, 2, 1)
        return (rows.T if self.inputs else rows).reshape(self.shape)

    def to_theirs(self, array: Any) -> Any:
        """Our array as their rows."""
        if self.inputs is None:
            return array.transpose(0, 2, 1).reshape(self.rows)
        if self.inputs == 0:
            return array.reshape(self.rows)
        return array.reshape(math.prod(self.shape[: self.inputs]), -1).T


def measure(layout: str, tensors: Mapping[str, Any], degree: int | None = None) -> Sizes:
    """The sizes of a layer, from the shapes that tell them; nothing is checked.

    Args:
        layout: of the tensors.
        tensors: name -> array of numpy or of JAX.
        degree: of the product form, whose shapes tell K E alone.
    """
    with_bias, with_scale = biased(tensors, layout), scaled(tensors, layout)
    if layout == "product":
        flat, width = tensors["ho_proj.weight"].shape
        return Sizes(width, flat // (degree or 1), degree or 1, biased=with_bias)
    expanded, degree = tensors["po_coeff"].shape
    groups = 1
    if layout == "fused":
        rows, width = tensors["qc_proj.weight"].shape
        gates = rows - expanded
    else:
        gates, width = tensors["se_proj.weight"].shape
        groups = width // tensors["po_proj.weight"].shape[1] if layout == "grouped" else 1
    return Sizes(width, expanded, degree, gates, groups, with_bias, with_scale)


def biased(names: Collection[str], layout: str) -> bool:
    """Whether a layer with tensors of these names has biases in its products."""
    signs = {"product": ("ho", "se", "ag"), "fused": ("ag",), "grouped": ("po", "ag"), "split": ()}
    return any(f"{sign}_proj.bias" in names for sign in signs[layout])


def scaled(names: Collection[str], layout: str) -> bool:
    """Whether it has a learned factor of each channel."""
    return layout in ("fused", "grouped") and "h_scale" in names


def entries(layout: str, sizes: Sizes) -> tuple[Entry, ...]:
    """The table of a layout for a layer of these sizes, the rotary tables left out."""
    return tuple(_product(sizes) if layout == "product" else _power(layout, sizes))


def _product(s: Sizes) -> list[Entry]:
    inner, flat = (s.degree, s.expanded), s.degree * s.expanded
    table = []
    for ours, theirs in (("features", "ho_proj"), ("gate", "se_proj")):
        table.append(Entry((ours, "kernel"), (s.width, *inner), f"{theirs}.weight", (flat, s.width), 1))
        if s.biased:
            table.append(Entry((ours, "bias"), inner, f"{theirs}.bias", (flat,)))
    table.append(Entry(("out", "kernel"), (*inner, s.width), "ag_proj.weight", (s.width, flat), 2))
    if s.biased:
        table.append(Entry(("out", "bias"), (s.width,), "ag_proj.bias", (s.width,)))
    return table


def _power(layout: str, s: Sizes) -> list[Entry]:
    features, gate = ("features", "kernel"), ("gate", "kernel")
    dense, gates = (s.expanded, s.width), (s.gates, s.width)
    if layout == "grouped":
        split = (s.groups, s.width // s.groups, s.expanded // s.groups)
        table = [Entry(features, split, "po_proj.weight", (s.expanded, split[1], 1), None)]
        if s.biased:
            bias = (s.groups, split[2])
            table.append(Entry(("features", "bias"), bias, "po_proj.bias", (s.expanded,)))
    else:
        theirs = "qc_proj.weight" if layout == "fused" else "po_proj.weight"
        table = [Entry(features, dense[::-1], theirs, dense, 1)]
    theirs, bias = ("qc_proj.weight", "se_bias") if layout == "fused" else ("se_proj.weight", "se_proj.bias")
    table += [
        Entry(gate, gates[::-1], theirs, gates, 1),
        Entry(("gate", "bias"), (s.gates,), bias, (s.gates,)),
    ]
    shape = (s.expanded, s.degree)
    table.append(Entry(("coefficients",), shape, "po_coeff", shape))
    table.append(Entry(("out", "kernel"), dense, "ag_proj.weight", dense[::-1], 1))
    if s.biased:
        table.append(Entry(("out", "bias"), (s.width,), "ag_proj.bias", (s.width,)))
    if s.scaled:
        table.append(Entry(("feature_scale",), (s.expanded,), "h_scale", (s.expanded,)))
    return table


def shapes(table: Sequence[Entry]) -> dict[str, tuple[int, ...]]:
    """The shape of each of their tensors."""
    found: dict[str, tuple[int, ...]] = {}
    for entry in table:
        at = entry.axis
        above = found[entry.theirs][at] if entry.theirs in found else 0
        found[entry.theirs] = (*entry.rows[:at], above + entry.rows[at], *entry.rows[at + 1 :])
    return found


def to_ours(tensors: Mapping[str, Any], table: Sequence[Entry]) -> dict[Any, Any]:
    """Our tree of parameters; only moves numbers, so gradients pass through it.

    Args:
        tensors: name -> array of numpy or of JAX, of the shapes that `shapes(table)` says.
    """
    tree: dict[Any, Any] = {}
    above: dict[str, int] = {}
    for entry in table:
        start = above.get(entry.theirs, 0)
        above[entry.theirs] = start + entry.rows[entry.axis]
        cut = (slice(None),) * entry.axis + (slice(start, above[entry.theirs]),)
        rows = tensors[entry.theirs][cut]
        *path, last = entry.ours
        branch = tree
        for name in path:
            branch = branch.setdefault(name, {})
        branch[last] = entry.to_ours(rows)
    return tree


def to_theirs(arrays: Mapping[Place, np.ndarray], table: Sequence[Entry]) -> dict[str, np.ndarray]:
    """Their tensors, contiguous, from our arrays by path; the inverse of `to_ours`."""
    rows: dict[str, list[np.ndarray]] = {}
    axes = {entry.theirs: entry.axis for entry in table}
    for entry in table:
        rows.setdefault(entry.theirs, []).append(entry.to_theirs(arrays[entry.ours]))
    return {name: np.ascontiguousarray(np.concatenate(parts, axes[name])) for name, parts in rows.items()}
