"""`nn.PoM` and its parameters -> the authors' tensors."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from pom_jax import nn
from pom_jax.errors import InputError, choose
from pom_jax.interop.arrays import to_numpy
from pom_jax.interop.layers import SD3_CLAMP
from pom_jax.interop.layouts import LAYOUTS, Entry, Place, Sizes, entries, to_theirs
from pom_jax.interop.rotary import POSITIONS, write_rotary

# The fields that names and shapes keep, and those that do not change what the parameters mean.
KEPT = ("form", "degree", "expansion", "gate_heads", "groups", "use_bias", "rotary", "feature_scale")
FREE = ("count", "method", "dtype", "kernel_init", "parent", "name")
Arrays = dict[Place, np.ndarray]


def export_layer(
    layer: nn.PoM,
    variables: Mapping[str, Any],
    layout: str | None = None,
    *,
    positions: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """The state dict of the authors' layer that computes the same; `import_layer` gives the same bits back.

    Args:
        layer: a mixer that they have too: with any degree, expansion, gate heads, groups and biases, in the
            power form also with rotary positions on one or two axes; with `feature_scale` it is SD3-PoM's.
        variables: {"params": ...}, or the tree inside.
        layout: "product" (HoMM), "fused" or "grouped" (pom), or "split" (JiTpp's first). None: the
            current one, in the power form "fused" or for groups "grouped".
        positions: lengths of the rotary tables, (N,) or (H, W); None: theirs, (4096,) or (64, 64).

    Returns:
        Name -> float32 array in torch's layout. Rotary tables are computed; theirs differ in the last bits.

    Raises:
        InputError: an option that the layout has no place for; or in one message all parameters that are
            missing or in excess, and all shapes that do not fit the layer.
    """
    current = "product" if layer.form == "product" else "grouped" if layer.groups > 1 else "fused"
    layout = str(choose("layout", layout or current, LAYOUTS))
    _check_options(layer, layout)
    tree = traverse_util.flatten_dict(dict(variables.get("params", variables)))
    arrays: Arrays = {path: to_numpy(leaf) for path, leaf in tree.items()}
    if ("out", "kernel") not in arrays or not arrays["out", "kernel"].ndim:
        raise InputError(
            "the parameters have no out/kernel: give the variables of an nn.PoM, {'params': ...}"
        )
    width = arrays["out", "kernel"].shape[-1]
    layer.init_state(1, width)  # raises what is wrong with the layer's own fields
    sizes = _sizes(layer, width)
    table = entries(layout, sizes)
    problems = "\n  ".join(_wrong_arrays(arrays, table))
    if problems:
        raise InputError(f"the parameters are not those of the layer at D = {width}:\n  {problems}")
    tensors = to_theirs({path: array.astype(np.float32) for path, array in arrays.items()}, table)
    return tensors | _tables(layer, sizes.expanded, positions)


def _check_options(layer: nn.PoM, layout: str) -> None:
    """Raises an InputError that names the first option that the layout has no place for."""
    defaults = {field.name: field.default for field in dataclasses.fields(layer)}
    theirs = {name: value for name, value in defaults.items() if name not in KEPT + FREE}
    theirs["form"] = "product" if layout == "product" else "power"
    if layout == "product":
        del theirs["slope"], theirs["clamp"]
    elif layer.feature_scale:
        theirs["clamp"] = SD3_CLAMP
    if layout in ("fused", "split"):
        theirs["groups"] = 1
    if layout in ("product", "split"):
        theirs |= {"rotary": None, "feature_scale": False}
    if layout == "split" and layer.use_bias:  # theirs then has one in the features too
        theirs["use_bias"] = False
    for name, value in theirs.items():
        if getattr(layer, name) != value:
            raise InputError(
                f"{name} = {getattr(layer, name)!r} has no place in the layout {layout!r}, whose layers have "
                f"{name} = {value!r}; if that is meant, export layer.clone({name}={value!r})"
            )
    if layout == "grouped" and layer.groups < 2:
        raise InputError(f"groups = {layer.groups} has no place in the layout 'grouped'; use 'fused'")
    if layer.feature_scale and layer.rotary is None:
        raise InputError("feature_scale = True without rotary has no place: the authors have both or none")
    if layer.rotary is not None and layer.rotary.axes not in POSITIONS:
        raise InputError(f"rotary = {layer.rotary} has no place: the authors' positions have one or two axes")


def _sizes(layer: nn.PoM, width: int) -> Sizes:
    expanded = layer.expansion * width
    biased = layer.form == "product" if layer.use_bias is None else layer.use_bias
    gates = layer.gate_heads if layer.gate_heads > 1 else expanded
    return Sizes(width, expanded, layer.degree, gates, layer.groups, biased, layer.feature_scale)


def _wrong_arrays(arrays: Arrays, table: Sequence[Entry]) -> Iterable[str]:
    wanted = {entry.ours: entry.shape for entry in table}
    for path in sorted(wanted.keys() | arrays.keys()):
        name = "/".join(map(str, path))
        if path not in arrays or path not in wanted:
            yield f"{'missing' if path in wanted else 'unexpected'}: {name}"
        elif arrays[path].shape != wanted[path]:
            yield f"shape of {name}: {list(arrays[path].shape)}, but the layer's is {list(wanted[path])}"
        elif not jnp.issubdtype(arrays[path].dtype, jnp.floating):
            yield f"dtype of {name}: {arrays[path].dtype}, floating-point numbers are needed"


def _tables(layer: nn.PoM, expanded: int, positions: Sequence[int] | None) -> dict[str, np.ndarray]:
    if layer.rotary is None:
        if positions is not None:
            raise InputError(f"positions = {positions}, but the layer has no rotary tables; leave it out")
        return {}
    axes = layer.rotary.axes
    lengths = POSITIONS[axes] if positions is None else tuple(positions)
    if len(lengths) != axes or any(not isinstance(n, int) or n < 1 for n in lengths):
        raise InputError(f"positions = {positions}: a length of at least 1 for each of {axes} axes is needed")
    return write_rotary(layer.rotary, expanded, lengths)
