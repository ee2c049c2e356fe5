"""Files of tensors: safetensors both ways, torch's to read. Neither package is imported before it is used."""

import argparse
import importlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pom_jax.errors import InputError, first_line
from pom_jax.interop.arrays import to_numpy

SAFETENSORS = (".safetensors",)
TORCH = (".pt", ".pth", ".ckpt", ".bin")
NESTED = ("model", "ema")

# Of safetensors. Numbers of 8 bits and fewer are left out: they come with scales, which nothing here reads.
DTYPES = ("F64", "F32", "F16", "BF16", "C64", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
AGAIN = "if it was downloaded, compare its size with that of the original and download it again"


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a file by name, in their own dtype.

    Args:
        path: .safetensors, or torch's .pt, .pth, .ckpt or .bin, of which nothing but tensors is ever loaded
            (`weights_only`); of a file that nests them, as Lightning does, those under `state_dict`.

    Raises:
        InputError: no such file, another ending, a package that is not installed, a file that is cut or
            damaged, or contents that are no tensors, or none that numpy can hold.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is no file; give a path that ends in {', '.join(SAFETENSORS + TORCH)}")
    if path.suffix in SAFETENSORS:
        return _read_safetensors(path)
    if path.suffix in TORCH:
        return _read_torch(path)
    raise InputError(f"{path} ends in {path.suffix!r}, not in one of {', '.join(SAFETENSORS + TORCH)}")


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Any]) -> None:
    """Writes a .safetensors file, whole or not at all; torch reads it with `safetensors.torch.load_file`.

    Args:
        path: ends in .safetensors; its folder is made.
        tensors: name -> array.

    Raises:
        InputError: another ending, safetensors is not installed, or the disk refuses.
    """
    path = check_output(path)
    package, save = _package("safetensors", path), _package("safetensors.numpy", path).save_file
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # The writer takes the memory as it lies, so anything but C order would be written wrong.
        arrays = {name: np.ascontiguousarray(to_numpy(tensor)) for name, tensor in tensors.items()}
        save(arrays, part, metadata={"format": "pt"})
        part.replace(path)
    except package.SafetensorError as error:
        raise InputError(f"{path} cannot be written: {error}; make room or choose another file") from error
    finally:
        part.unlink(missing_ok=True)


def check_output(path: str | os.PathLike[str]) -> Path:
    """The path as one that `write_tensors` takes; an InputError for another ending."""
    path = Path(path)
    if path.suffix not in SAFETENSORS:
        raise InputError(f"{path} ends in {path.suffix!r}, not in .safetensors, the only format written")
    return path


def state_dict(loaded: Any) -> dict[str, np.ndarray]:
    """The tensors of what torch has loaded: the mapping itself, or what it nests under `state_dict`.

    What it nests under `model` and `ema`, as DiT does, comes with these and a dot before the names.

    Raises:
        InputError: there are no named tensors.
    """
    while isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise InputError(f"it holds a {type(loaded).__name__}, no mapping of name -> tensor")
    nested = {part: loaded[part] for part in NESTED if isinstance(loaded.get(part), Mapping)}
    for part, inner in nested.items():
        loaded = {**loaded, **{f"{part}.{name}": value for name, value in inner.items()}}
    tensors = {n: _dense(n, value) for n, value in loaded.items() if hasattr(value, "__array__")}
    if not tensors:
        raise InputError(f"it holds {', '.join(map(str, loaded)) or 'nothing'}, and no tensor among these")
    return tensors


def _dense(name: Any, tensor: Any) -> np.ndarray:
    try:
        return to_numpy(tensor)
    except (TypeError, RuntimeError) as error:  # sparse, quantised, or without contents
        raise InputError(
            f"{name} is not read ({first_line(error)}); save it dense where the file was made"
        ) from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    package = _package("safetensors", path)
    try:
        with package.safe_open(path, framework="numpy") as file:
            dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            if other := {name: dtype for name, dtype in dtypes.items() if dtype not in DTYPES}:
                name, dtype = next(iter(other.items()))
                raise InputError(
                    f"{path}: {name} is {dtype} ({len(other)} of {len(dtypes)} tensors have such a dtype), "
                    "which is not read; save the file in bfloat16 or float32 where it was made"
                )
        return _package("safetensors.numpy", path).load_file(path)
    except package.SafetensorError as error:
        raise InputError(f"{path} is no file of safetensors, or damaged: {error}; {AGAIN}") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    torch = _package("torch", path)
    try:
        # DiT keeps its command line there: a bag of attributes, which runs nothing when it is loaded.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file torch raises almost anything
        if other := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path} holds a {other[1]} besides tensors, not loaded because it could run anything; "
                "if you trust the file, save its tensors with safetensors.torch.save_file where it was made"
            ) from error
        # What torch says first is how to load it unsafely; the reason comes after it.
        reason = f"{type(error).__name__} {str(error).split('WeightsUnpickler error:')[-1].strip()}"
        raise InputError(
            f"{path} is no torch file of tensors alone, or damaged ({first_line(reason)}); {AGAIN}"
        ) from error
    try:
        return state_dict(loaded)
    except InputError as error:
        raise InputError(f"{path} is no torch file of tensors alone: {error}") from error


def _package(name: str, path: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        way = "" if package != "torch" else ", or save the tensors as .safetensors where torch is"
        raise InputError(f"{path} needs the package {package}: pip install {package}{way}") from error
