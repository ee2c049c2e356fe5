"""The authors' tensors of one mixer -> `nn.PoM` and its parameters."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pom_jax import nn
from pom_jax.errors import InputError
from pom_jax.interop.arrays import to_numpy
from pom_jax.interop.layouts import Sizes, biased, entries, measure, scaled, shapes, to_ours
from pom_jax.interop.names import below
from pom_jax.interop.rotary import read_rotary, table_axes, table_names, table_shapes
from pom_jax.ops.rotary import Rotary

SD3_CLAMP = (-0.1, 1.0)
WHOSE = {
    "product": "HoMM's HoM",
    "fused": "pom's PoM",
    "grouped": "pom's PoM with groups",
    "split": "JiTpp's first ComPoM",
}
# The tensors whose shapes tell the sizes, and how many axes each has.
TELLING = {
    "product": {"ho_proj.weight": 2},
    "fused": {"qc_proj.weight": 2, "po_coeff": 2},
    "grouped": {"po_proj.weight": 3, "se_proj.weight": 2, "po_coeff": 2},
    "split": {"po_proj.weight": 2, "se_proj.weight": 2, "po_coeff": 2},
}
# What a name says that is missing from a layout, or in excess.
SIGMOID = "; HoMM's ComPoM has none: its gate is a sigmoid, which form='power' does not have"
REASONS = {
    ("grouped", "se_proj.bias"): SIGMOID,
    ("split", "se_proj.bias"): SIGMOID,
    ("split", "po_proj.bias"): "; form='power' has no bias in ungrouped features",
}
WITH_ROTARY = ("fused", "grouped")
Arrays = Mapping[str, np.ndarray]


def import_layer(
    tensors: Mapping[str, Any],
    *,
    degree: int | None = None,
    prefix: str | None = None,
    rotary: Rotary | None = None,
) -> tuple[nn.PoM, dict[str, Any]]:
    """Makes a layer of the authors' tensors; names and shapes tell which of their layouts it is.

    Known are HoMM's `HoM` (first paper), pom's `PoM` and `PoMRoPE` (second paper; projections fused or
    grouped), JiTpp's first `ComPoM` (projections apart) and SD3-PoM's copy of pom (`h_scale`). Tensors do not
    say where the activation is clamped: at (-0.1, 6), or (-0.1, 1) with `h_scale`; for any other, SD3-PoM's
    without `h_scale` among them, there is `layer.clone(clamp=...)`.

    Args:
        tensors: name -> array of numpy or JAX or torch tensor, floating-point numbers of any precision: the
            state dict of a layer, or with `prefix` that of a model.
        degree: of the product form, whose shapes only tell degree times expansion; for the others a check.
        prefix: name of the layer in the model, such as "layers.0.hom"; `find_layers` lists them. What
            torch.compile, Lightning and data parallel put before names may be left out.
        rotary: the rotary positions, for tensors that were saved without their tables; else a check.

    Returns:
        The layer, and its variables {"params": ...} in float32.

    Raises:
        InputError: no layer, or several; or in one message all names that are missing or in excess and all
            dtypes that are no numbers, or all shapes that do not fit.
    """
    found = {name: to_numpy(tensor) for name, tensor in below(tensors, prefix).items()}
    layout = _layout(found)
    axes = table_axes(found) if layout in WITH_ROTARY else None
    _refuse(layout, [*_wrong_names(found, layout, axes, rotary), *_wrong_arrays(found, layout)])
    _refuse(layout, _wrong_sizes(found, layout, measure(layout, found), degree))
    sizes = measure(layout, found, degree)
    table = entries(layout, sizes)
    wanted = shapes(table) | (table_shapes(found, axes, sizes.expanded) if axes else {})
    _refuse(layout, _wrong_shapes(found, wanted, sizes))
    if axes:
        rotary = read_rotary({name: found[name] for name in table_names(axes)}, axes, rotary)
    layer = _layer(layout, sizes, rotary)
    # Copies: the tensors may belong to a model that goes on training.
    return layer, {"params": jax.tree.map(lambda a: jnp.array(a, jnp.float32), to_ours(found, table))}


def _layout(found: Arrays) -> str:
    marks = {"ho_proj.weight": "product", "qc_proj.weight": "fused", "po_proj.weight": "split"}
    present = [name for name in marks if name in found]
    if len(present) > 1:
        raise InputError(f"the tensors are of several layouts, which have one of {', '.join(present)} each")
    layout = marks[present[0]] if present else "fused"
    return "grouped" if layout == "split" and found["po_proj.weight"].ndim == 3 else layout


def _refuse(layout: str, problems: Iterable[str]) -> None:
    lines = "\n  ".join(problems)
    if lines:
        raise InputError(f"the tensors are no layer of the layout {layout!r} ({WHOSE[layout]}):\n  {lines}")


def _wrong_names(found: Arrays, layout: str, axes: int | None, rotary: Rotary | None) -> list[str]:
    ones = Sizes(1, 1, 1, biased=biased(found, layout), scaled=scaled(found, layout))
    names = set(shapes(entries(layout, ones)))
    names |= set(table_names(axes)) if axes else set()
    lines = [f"missing: {name}{REASONS.get((layout, name), '')}" for name in sorted(names - found.keys())]
    lines += [f"unexpected: {name}{REASONS.get((layout, name), '')}" for name in sorted(found.keys() - names)]
    if ones.scaled and not axes and rotary is None:
        lines.append("missing: the rotary tables that go with h_scale; pass rotary=Rotary(axes=...)")
    if rotary is not None and layout not in WITH_ROTARY:
        lines.append(f"rotary = {rotary}, but such a layer has no rotary positions; leave it out")
    return lines


def _wrong_arrays(found: Arrays, layout: str) -> Iterable[str]:
    for name, array in found.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            yield f"dtype of {name}: {array.dtype}, floating-point numbers are needed"
        rank = TELLING[layout].get(name, array.ndim)
        if array.ndim != rank or 0 in array.shape:
            yield f"shape of {name}: {list(array.shape)}, {rank} axes that are not empty are needed"


def _wrong_sizes(found: Arrays, layout: str, s: Sizes, degree: int | None) -> Iterable[str]:
    if layout == "product":
        flat = found["ho_proj.weight"].shape[0]
        times = f"ho_proj.weight has {flat} rows at D = {s.width}"
        if flat % s.width:
            yield f"{times}: not a multiple of it"
        elif degree is None:
            yield f"degree is needed: {times}, so degree * expansion = {flat // s.width}; pass degree=..."
        elif not isinstance(degree, int) or degree < 1 or flat // s.width % degree:
            yield f"degree = {degree!r} does not divide degree * expansion = {flat // s.width}: {times}"
        return
    if degree not in (None, s.degree):
        yield f"degree = {degree!r}, but po_coeff [E, K] has K = {s.degree} columns; leave degree out"
    if s.expanded % s.width:
        yield f"po_coeff has E = {s.expanded} rows, not a multiple of D = {s.width}"
    if s.gates != s.expanded and (s.gates < 2 or s.expanded % s.gates):
        yield f"{s.gates} rows of the gate: E = {s.expanded} or a divisor of it above 1 is needed"
    if layout == "grouped":
        width = found["po_proj.weight"].shape[1]
        if s.groups < 2 or s.width % width or s.expanded % s.groups:
            yield (
                f"po_proj.weight has {width} columns: at least 2 groups of as many must make up "
                f"D = {s.width} and divide E = {s.expanded}"
            )


def _wrong_shapes(found: Arrays, wanted: Mapping[str, tuple[int, ...]], sizes: Sizes) -> Iterable[str]:
    for name, shape in wanted.items():
        if found[name].shape != shape:
            yield (
                f"shape of {name}: {list(found[name].shape)}, but {list(shape)} goes with D = {sizes.width} "
                f"and E = {sizes.expanded}"
            )


def _layer(layout: str, s: Sizes, rotary: Rotary | None) -> nn.PoM:
    options: dict[str, Any] = {"degree": s.degree, "expansion": s.expanded // s.width}
    if layout == "product":
        return nn.PoM(form="product", use_bias=None if s.biased else False, **options)
    heads = 1 if s.gates == s.expanded else s.gates
    if rotary is not None:
        rotary.check(s.expanded, heads)
        options["rotary"] = rotary
    if s.scaled:
        options |= {"feature_scale": True, "clamp": SD3_CLAMP}
    biased = True if s.biased else None
    return nn.PoM(form="power", gate_heads=heads, groups=s.groups, use_bias=biased, **options)
