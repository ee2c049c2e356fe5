"""Latents that a model drew -> pixels, with an autoencoder in diffusers' format."""

import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pom_jax.errors import InputError
from pom_jax.sampling.made_with import check_made_with
from pom_jax.sampling.progress import Progress
from pom_jax.training.preview import to_pixels
from pom_jax.vae.chunks import decode_in_chunks, encode_in_chunks
from pom_jax.vae.files import load_autoencoder, weights_sha256
from pom_jax.vae.model import AutoencoderKL

CHUNK = 8  # latents that a device decodes at a time
BATCH = 64  # latents between two reports of progress


class Decoder:
    """Decodes on all devices of this process.

    Args:
        model: the autoencoder.
        params: its parameters, the tree inside {"params": ...}.
        scale, shift: the diffusion model sees (latent - shift) * scale.
    """

    def __init__(self, model: AutoencoderKL, params: Mapping[str, Any], scale: float, shift: float):
        self.model, self.scale, self.shift = model, scale, shift
        self._mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self._params = jax.device_put(params, NamedSharding(self._mesh, PartitionSpec()))

    @property
    def downsampling(self) -> int:
        """Pixels of a latent's side."""
        return self.model.config.downsampling

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """[..., H, W, 3] uint8 -> means of latents [..., h, w, C] float32 in the diffusion model's space."""
        x = pixels.reshape(-1, *pixels.shape[-3:]) / np.float32(127.5) - 1
        with jax.set_mesh(self._mesh), jax.default_matmul_precision("highest"):
            mean = np.asarray(encode_in_chunks(self.model, self._params, x, CHUNK)[0])
        return ((mean - self.shift) * self.scale).reshape(*pixels.shape[:-3], *mean.shape[1:])

    def __call__(self, x: np.ndarray, progress: Progress | None = None) -> np.ndarray:
        """Makes pixels.

        Args:
            x: [..., h, w, C] in the space of the diffusion model.
            progress: is told what happens.

        Returns:
            [..., H, W, 3] uint8.
        """
        latents = (x / self.scale + self.shift).reshape(-1, *x.shape[-3:])
        total = len(latents)
        size = min(BATCH, -(-total // self._mesh.size) * self._mesh.size)
        parts = []
        with jax.set_mesh(self._mesh):
            if progress is not None:
                progress.compiling("decoder")
            began = time.perf_counter()
            for first in range(0, total, size):
                batch = latents[first : first + size]
                filled = np.pad(batch, [(0, size - len(batch)), *[(0, 0)] * 3])  # one program for all
                pixels = decode_in_chunks(self.model, self._params, filled, CHUNK)
                parts.append(to_pixels(pixels)[: len(batch)])
                if progress is not None:
                    if not first:
                        progress.compiled(time.perf_counter() - began)
                    progress.drawn(first + len(batch), total)
        pixels = np.concatenate(parts)
        return pixels.reshape(*x.shape[:-3], *pixels.shape[1:])


def load_decoder(
    path: str | os.PathLike[str], channels: int, encoding: Mapping[str, Any] | None = None
) -> Decoder:
    """The decoder for a model of latents of so many channels.

    Args:
        path: folder of an autoencoder in diffusers' format (config.json and its weights).
        channels: C.
        encoding: of the data that the model has learned from, see `made_with`.

    Raises:
        InputError: no such autoencoder, or one of other latents or, by its checksum, not that of the data.
    """
    model, params, scale, shift = load_autoencoder(path)
    if model.config.latent_channels != channels:
        raise InputError(
            f"the autoencoder of {path} has latents of {model.config.latent_channels} channels, the model "
            f"draws {channels}: give the one its latents were made with"
        )
    if encoding:
        check_made_with("autoencoder", path, weights_sha256(path), encoding)
    return Decoder(model, params, scale, shift)
