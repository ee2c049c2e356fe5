"""Autoencoders in diffusers' files: config.json and weights, read and written."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pom_jax.errors import InputError
from pom_jax.interop.files import read_tensors, write_tensors
from pom_jax.vae.config import AutoencoderConfig, read_config, to_diffusers
from pom_jax.vae.model import AutoencoderKL
from pom_jax.vae.names import to_ours, to_theirs

CONFIG = "config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
PathLike = str | os.PathLike[str]


def load_autoencoder(
    path: PathLike, config: AutoencoderConfig | PathLike | None = None
) -> tuple[AutoencoderKL, dict[str, Any], float, float]:
    """An autoencoder in the format of diffusers.

    Args:
        path: a folder with config.json and diffusion_pytorch_model.safetensors, or a file of weights.
        config: a preset ("sd", "sdxl", "sd3", "flux", "tiny"), a config.json, or the config itself; None: the
            config.json beside the weights.

    Returns:
        The model in float32 (`model.clone(dtype=jnp.bfloat16)` computes in less); its parameters, the tree
        inside {"params": ...}, in float32; scaling factor and shift factor: a diffusion model sees
        (latent - shift) * scale.

    Raises:
        InputError: no such files, a config that cannot be followed, or in one message all tensors that are
            missing, in excess or of another shape.
    """
    weights = find_weights(path)
    if config is None:
        config = weights.parent / CONFIG
        if not config.is_file():
            raise InputError(
                f"there is no {CONFIG} beside {weights}; put it there, or pass config, a preset such as "
                "'sd' or a file"
            )
    if not isinstance(config, AutoencoderConfig):
        config = read_config(config)
    try:
        params = to_ours(read_tensors(weights), config)
    except InputError as error:
        raise InputError(f"{weights}: {error}") from error
    return AutoencoderKL(config), params, float(config.scaling_factor), float(config.shift_factor)


def save_autoencoder(folder: PathLike, model: AutoencoderKL, params: Mapping[str, Any]) -> None:
    """Writes config.json and diffusion_pytorch_model.safetensors, for diffusers and `load_autoencoder`.

    Args:
        folder: is made; must not hold an autoencoder already.
        params: the tree inside {"params": ...}; written in float32.

    Raises:
        InputError: parameters that are not the model's, or a folder in use; nothing is written then.
    """
    folder = Path(folder)
    tensors = to_theirs(params, model.config)
    taken = [name for name in (CONFIG, *WEIGHTS) if (folder / name).exists()]
    if taken:
        raise InputError(f"{folder} already holds {', '.join(taken)}; give another folder, or delete them")
    write_tensors(folder / WEIGHTS[0], tensors)
    (folder / CONFIG).write_text(json.dumps(to_diffusers(model.config), indent=2) + "\n")


def weights_sha256(path: PathLike) -> str:
    """SHA-256 of the file of weights that `load_autoencoder` reads there, 64 hexadecimal digits.

    Raises:
        InputError: no weights there.
    """
    with find_weights(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_weights(path: PathLike) -> Path:
    """The file of weights: the path itself, or the one in that folder, safetensors first.

    Raises:
        InputError: neither.
    """
    path = Path(path)
    if path.is_file():
        return path
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    if (path / "vae").is_dir():
        raise InputError(f"{path} has no {WEIGHTS[0]}, but a folder vae; give {path / 'vae'}")
    raise InputError(
        f"{path} {'has no ' + WEIGHTS[0] if path.is_dir() else 'does not exist'}; give a folder of "
        "diffusers or a .safetensors file"
    )
