"""Names in a state dict: what wrappers put before them, and where in a model the layers are."""

import difflib
from collections.abc import Mapping
from typing import Any

from pom_jax.errors import InputError

# Each layout of a layer has one of these, and only a layer has.
MARKS = ("ho_proj.weight", "qc_proj.weight", "po_proj.weight", "po_coeff")
COMPILED = "_orig_mod"  # torch.compile puts it in, at any depth
WRAPPERS = ("module", "model")  # in front: data parallel, Lightning


def find_layers(tensors: Mapping[str, Any]) -> tuple[str, ...]:
    """Where in a state dict the mixers are, as `import_layer(..., prefix=)` takes it; "" for the top.

    Args:
        tensors: name -> anything.

    Raises:
        InputError: names that are no strings, or that differ by `_orig_mod.` alone.
    """
    places = {}
    for name in plain_names(tensors):
        for mark in MARKS:
            if name == mark or name.endswith(f".{mark}"):
                places[name[: -len(mark)].rstrip(".")] = None
    return tuple(places)


def plain_names(tensors: Mapping[str, Any]) -> dict[str, str]:
    """The names without what torch.compile adds to them -> the names."""
    if not isinstance(tensors, Mapping):
        raise InputError(f"the tensors are a {type(tensors).__name__}, a mapping of name -> array is needed")
    plain: dict[str, str] = {}
    for name in tensors:
        if not isinstance(name, str):
            raise InputError(f"the tensors have the name {name!r}, all names must be strings")
        short = _without(name, COMPILED)
        if short in plain:
            raise InputError(f"the tensors {plain[short]} and {name} are one name apart from {COMPILED}.")
        plain[short] = name
    return plain


def below(tensors: Mapping[str, Any], prefix: str | None) -> dict[str, Any]:
    """The tensors of one layer by their names inside it.

    Args:
        tensors: name -> anything, of a layer or of a model.
        prefix: of the layer; `_orig_mod.`, and `module.` or `model.` in front, need not be the same. None:
            the layer at the top, or the only one if nothing else is there.

    Raises:
        InputError: no layer there, or several and none was chosen.
    """
    plain, layers = plain_names(tensors), find_layers(tensors)
    if prefix is None:
        if "" in layers:
            return {short: tensors[name] for short, name in plain.items()}
        if len(layers) == 1 and all(name.startswith(f"{layers[0]}.") for name in plain):
            prefix = layers[0]
        else:
            raise InputError(_where(plain, layers, "pass prefix="))
    wanted = _without(prefix.rstrip("."), COMPILED)
    if wanted not in layers:
        same = [layer for layer in layers if _unwrapped(layer) == _unwrapped(wanted)]
        if len(same) != 1:
            near = difflib.get_close_matches(wanted, layers, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "choose one of them"
            raise InputError(f"prefix = {prefix!r} is no layer; {_where(plain, layers, hint)}")
        wanted = same[0]
    start = f"{wanted}." if wanted else ""
    return {short[len(start) :]: tensors[name] for short, name in plain.items() if short.startswith(start)}


def _without(name: str, part: str) -> str:
    return ".".join(piece for piece in name.split(".") if piece != part)


def _unwrapped(name: str) -> str:
    pieces = name.split(".")
    while pieces and pieces[0] in WRAPPERS:
        pieces = pieces[1:]
    return ".".join(pieces)


def _where(plain: Mapping[str, str], layers: tuple[str, ...], hint: str) -> str:
    if not layers:
        some = ", ".join(list(plain)[:4]) or "none"
        return f"no layer is among the {len(plain)} tensors ({some}, ...): none is called {', '.join(MARKS)}"
    shown = ", ".join(repr(layer) for layer in layers[:8]) + (", ..." if len(layers) > 8 else "")
    several = "a layer" if len(layers) == 1 else f"{len(layers)} layers"
    return f"the {len(plain)} tensors hold {several}, at {shown}; {hint}"
