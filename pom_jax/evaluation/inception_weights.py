"""The weights of `Inception`, from a file that the user has, and out again with the same names.

The files of the field: `pt_inception-2015-12-05-6726825d.pth` (pytorch-fid) and
`weights-inception-2015-12-05-6726825d.pth` (torch-fidelity), or their tensors saved as .safetensors.
"""

import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pom_jax.errors import InputError
from pom_jax.evaluation.inception import Inception
from pom_jax.interop.files import read_tensors, write_tensors

# Our parameter -> the name that torch has for it in a convolution with its batch norm, or in the last layer.
CONV = {
    "kernel": "conv.weight",
    "scale": "bn.weight",
    "bias": "bn.bias",
    "mean": "bn.running_mean",
    "variance": "bn.running_var",
}
CLASSES = {"kernel": "weight", "bias": "bias"}
SHOWN = 5  # names in a message


class InceptionWeights(NamedTuple):
    """Variables of `Inception`, and which file they are from.

    Attributes:
        variables: what `Inception().apply` takes, float32.
        name: of the file.
        sha256: of the file, in hexadecimal.
    """

    variables: Mapping[str, Any]
    name: str
    sha256: str


def load_inception(path: str | os.PathLike[str]) -> InceptionWeights:
    """Reads weights with the names of pytorch-fid and torch-fidelity.

    Args:
        path: .pth (needs torch, which loads nothing but tensors) or .safetensors.

    Raises:
        InputError: no such file, no file of tensors, or names or shapes that are not those of the network.
    """
    tensors = read_tensors(path)
    tensors = {name: x for name, x in tensors.items() if not name.endswith("num_batches_tracked")}
    wanted = _shapes()
    _check_names(path, tensors, wanted)
    flat = {}
    for name, shape in wanted.items():
        leaf = tensors[name]
        if not jnp.issubdtype(leaf.dtype, jnp.floating):  # numpy's own does not know bfloat16
            raise InputError(f"{path}: {name} is {leaf.dtype}; weights are floating-point numbers")
        x = _ours(np.asarray(leaf, np.float32))
        if x.shape != shape:
            fits = list(_theirs(np.empty(shape)).shape)
            raise InputError(f"{path}: {name} is {list(leaf.shape)}; this network has {fits}")
        if not np.isfinite(x).all():
            raise InputError(f"{path}: {name} has NaN or infinities; the file is damaged, fetch it again")
        flat[name] = x
    return InceptionWeights(_from_names(flat), Path(path).name, file_sha256(path))


def save_inception(path: str | os.PathLike[str], variables: Mapping[str, Any]) -> None:
    """Writes variables of `Inception` to a .safetensors file that `load_inception` and torch read.

    Raises:
        InputError: another ending, or a file that cannot be written.
    """
    write_tensors(path, {name: _theirs(np.asarray(x)) for name, x in _to_names(variables).items()})


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _shapes() -> dict[str, tuple[int, ...]]:
    """The name in torch files of each parameter, and its shape here."""
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), np.uint8)
    variables = jax.eval_shape(Inception().init, jax.random.key(0), image)
    return {name: leaf.shape for name, leaf in _to_names(variables).items()}


def _to_names(variables: Mapping[str, Any]) -> dict[str, Any]:
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        *modules, last = (entry.key for entry in path)
        own = CLASSES if modules == ["fc"] else CONV
        named[".".join([*modules, own[last]])] = leaf
    return named


def _from_names(named: Mapping[str, np.ndarray]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, leaf in named.items():
        own = CLASSES if name.startswith("fc.") else CONV
        last = next(ours for ours, theirs in own.items() if name.endswith(f".{theirs}"))
        module = params
        for part in name.removesuffix(f".{own[last]}").split("."):
            module = module.setdefault(part, {})
        module[last] = leaf
    return {"params": params}


def _ours(x: np.ndarray) -> np.ndarray:
    """Kernels of torch, [F, C, h, w] or [F, C], as [h, w, C, F] or [C, F]; the rest as it is."""
    return np.ascontiguousarray(np.transpose(x, (2, 3, 1, 0)) if x.ndim == 4 else x.T)


def _theirs(x: np.ndarray) -> np.ndarray:
    return np.transpose(x, (3, 2, 0, 1)) if x.ndim == 4 else x.T


def _check_names(path: str | os.PathLike[str], tensors: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unknown:
        parts = [
            f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
            for kind, names in (("missing", missing), ("unknown", unknown))
            if names
        ]
        raise InputError(
            f"{path} does not hold the weights of FID's Inception: of {len(wanted)} tensors "
            f"{', '.join(parts)}; give pytorch-fid's or torch-fidelity's file"
        )
