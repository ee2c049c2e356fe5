"""Encoders that others have published for torch: found, loaded and named. Torch is not imported before."""

import hashlib
import importlib
import importlib.metadata
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from pom_jax.errors import InputError, choose, first_line

EXTRA = "pip install 'pom_jax[encoders]'"
PRECISIONS = ("float32", "bfloat16")
LARGE = 10**9  # bytes of weights, whose checksum takes seconds
EVERY = 10.0  # seconds between two words on how far it is


def require(package: str, purpose: str, extra: str = EXTRA) -> ModuleType:
    """An optional package.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"{purpose} needs the package {package} ({first_line(error)}): {extra}") from error


def find_device(name: str | None) -> Any:
    """The device of torch by name; by default the first GPU where torch sees one.

    Raises:
        InputError: no such device.
    """
    torch = require("torch", "--device")
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device={name} cannot be used: {first_line(error)}") from error


def load_model(
    package: str, kind: str, folder: Path, flag: str, device: str | None = None, precision: str = "float32"
) -> Any:
    """A model with the weights of a folder, ready to compute.

    Args:
        package, kind: e.g. "diffusers" and "AutoencoderKLCogVideoX".
        folder: config.json and weights in safetensors; nothing is downloaded.
        flag: that named the folder, for messages.
        device: of torch, see `find_device`.
        precision: "float32" or "bfloat16".

    Raises:
        InputError: packages that are not installed, no model of this kind, tensors that are missing.
    """
    torch, module = require("torch", flag), require(package, flag)
    choose("--precision", precision, PRECISIONS)
    module.utils.logging.set_verbosity_error()
    module.utils.logging.disable_progress_bar()
    if not (folder / "config.json").is_file():
        raise InputError(f"{flag}={folder} has no config.json: give a folder that {package} can load")
    broken = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError)
    broken += (require("safetensors", flag).SafetensorError,)
    try:
        model, found = getattr(module, kind).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except broken as error:
        raise InputError(f"{flag}={folder} cannot be loaded as {kind}: {first_line(error)}") from error
    if missing := sorted(found["missing_keys"]):
        raise InputError(
            f"{flag}={folder} lacks {len(missing)} tensors of {kind}, such as {missing[0]}: its weights are "
            "of another model"
        )
    return model.eval().requires_grad_(False).to(find_device(device), getattr(torch, precision))


def versions(*packages: str) -> dict[str, str]:
    """The versions of installed packages, for a manifest."""
    return {package: importlib.metadata.version(package) for package in packages}


def weights_sha256(folder: Path, say: Callable[[str], None] = lambda _: None) -> str:
    """SHA-256 of the safetensors of a folder, one after the other by name, 64 hexadecimal digits.

    `say` is told of large ones that they are read, and now and then how far.
    """
    digest, paths = hashlib.sha256(), sorted(folder.glob("*.safetensors"))
    total, done, told = sum(path.stat().st_size for path in paths), 0, time.perf_counter()
    if total >= LARGE:
        say(f"SHA-256 of the weights in {folder}: {total / 1e9:.1f} GB to read")
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(2**24):
                digest.update(part)
                done += len(part)
                if time.perf_counter() - told >= EVERY:
                    say(f"SHA-256 of the weights in {folder}: {done / 1e9:.1f} of {total / 1e9:.1f} GB")
                    told = time.perf_counter()
    return digest.hexdigest()
