"""Clips -> latents by a video autoencoder of diffusers such as CogVideoX's, and latents -> clips."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pom_jax.data.encoding import Encoded
from pom_jax.data.fields import Field
from pom_jax.data.torch_models import find_device, load_model, require, weights_sha256
from pom_jax.errors import InputError, choose

FLAG = "--autoencoder"
KINDS = ("AutoencoderKLCogVideoX",)
CHUNK_FRAMES = 8  # CogVideoX: 2 frames of latents


class VideoAutoencoder:
    """An `Encoder` of clips in torch, each in chunks of frames that know nothing of one another.

    Independent chunks are what the authors of PoM train on: a chunk of latents can be decoded, or follow in a
    stream, without those before it. Source: the text-to-video code of PoM.

    Args:
        folder: of the autoencoder, in diffusers' format: config.json and safetensors.
        frames: of a clip, whole chunks.
        size: (height, width) of its frames in pixels.
        chunk_frames: frames of a chunk, an even number of frames of latents.
        scale: from latents to the model's space; by default the autoencoder's own factor, which gives about
            unit variance. The authors' text-to-video models take 1.
        batch_size: chunks at a time.
        device: of torch; the first GPU, if there is one.
        precision: "float32" or "bfloat16", of the computation.
        say: is told how far the checksum of large weights is.

    Attributes:
        crop_shape: (T, H, W, 3) of what is encoded.
        fields: `mean` and `std` float16 [1, T', H', W', C].
        scale, shift: from stored values to the model's space.
        autoencoder: name of the folder, and the checksum of its weights.
        settings: what decides the latents, in words.

    Raises:
        InputError: packages that are not installed, no such autoencoder, sizes that it cannot encode.
    """

    compiles = False

    def __init__(
        self,
        folder: str | os.PathLike[str],
        frames: int,
        size: tuple[int, int],
        *,
        chunk_frames: int = CHUNK_FRAMES,
        scale: float | None = None,
        batch_size: int = 4,
        device: str | None = None,
        precision: str = "float32",
        say: Callable[[str], None] = lambda _: None,
    ):
        folder = Path(folder)
        if batch_size < 1:
            raise InputError(f"--batch-size={batch_size} must be at least 1")
        self._model = load_model("diffusers", _kind(folder), folder, FLAG, device, precision)
        config = self._model.config
        space = 2 ** (len(config.block_out_channels) - 1)
        time = int(config.temporal_compression_ratio)
        _check_sizes(frames, size, chunk_frames, space, time)
        self._latent_frames = chunk_frames // time
        self._frames, self._batch, self._device = chunk_frames, batch_size, find_device(device)
        self.crop_shape: tuple[int, ...] = (frames, *size, 3)
        latent = (frames // time, size[0] // space, size[1] // space, config.latent_channels)
        self.fields: Mapping[str, Field] = {name: Field("float16", (1, *latent)) for name in ("mean", "std")}
        factor = config.scaling_factor if scale is None else scale
        if factor is None:
            raise InputError(
                f"{FLAG}={folder}: scaling_factor is null in config.json; write the number there"
            )
        self.scale = float(factor)
        self.shift = 0.0 - float(config.shift_factor or 0.0) * self.scale
        digest = weights_sha256(folder, say)
        self.autoencoder: str | None = f"{folder.resolve().name} sha256:{digest}"
        self.settings: Mapping[str, str] = {
            "autoencoder": f"sha256:{digest}",
            "scaling": f"{self.scale}, {self.shift}",
            "frames": str(frames),
            "size": f"{size[0]}x{size[1]}",
            "chunk_frames": str(chunk_frames),
            "precision": precision,
        }

    def __call__(self, crops: np.ndarray) -> Encoded:
        """The posterior of clips [N, T, H, W, 3] uint8: `mean` and `std` float16 [N, 1, T', H', W', C].

        The clips are of any number of chunks.
        """
        found = [self._encode_one(clip) for clip in crops]
        return Encoded({name: np.stack([moments[name] for moments in found]) for name in self.fields})

    def decode(self, mean: np.ndarray) -> np.ndarray:
        """The clips [N, T, H, W, 3] uint8 of latents [N, T', H', W', C] as stored, of any number of chunks.

        Raises:
            InputError: frames that are no whole chunks, or an autoencoder that gives back another number.
        """
        count, frames, *rest = mean.shape
        if frames % self._latent_frames:
            raise InputError(
                f"{frames} frames of latents are no whole chunks of {self._latent_frames}, the way they are "
                "encoded; give a multiple"
            )
        chunks = mean.astype(np.float32).reshape(-1, self._latent_frames, *rest)
        pixels = np.concatenate([self._run(part, self._decode) for part in self._parts(chunks)])
        if pixels.shape[1] != self._frames:
            raise InputError(
                f"this autoencoder decodes a chunk of {self._frames} frames to {pixels.shape[1]}: give one "
                "that keeps their number"
            )
        pixels = np.round(127.5 * (np.clip(pixels, -1, 1) + 1)).astype(np.uint8)
        return pixels.reshape(count, -1, *pixels.shape[2:])

    def _encode_one(self, clip: np.ndarray) -> dict[str, np.ndarray]:
        chunks = clip.reshape(-1, self._frames, *clip.shape[1:])
        parts = [self._run(part / np.float32(127.5) - 1, self._encode) for part in self._parts(chunks)]
        joined = (np.concatenate(moments) for moments in zip(*parts, strict=True))
        return {
            name: values.reshape(1, -1, *values.shape[2:]).astype(np.float16)
            for name, values in zip(self.fields, joined, strict=True)
        }

    def _parts(self, chunks: np.ndarray) -> list[np.ndarray]:
        return [chunks[start : start + self._batch] for start in range(0, len(chunks), self._batch)]

    def _encode(self, x: Any) -> tuple[Any, Any]:
        posterior = self._model.encode(x).latent_dist
        return posterior.mean, posterior.std

    def _decode(self, z: Any) -> Any:
        return self._model.decode(z).sample

    def _run(self, values: np.ndarray, call: Any) -> Any:
        """Channels last in numpy, channels first in torch."""
        torch = require("torch", FLAG)
        x = torch.from_numpy(values).movedim(-1, 1).to(self._device, self._model.dtype)
        try:
            with torch.inference_mode():
                found = call(x)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{len(values)} chunks of {self._frames} frames at a time do not fit the memory of "
                f"{self._device}: take smaller frames (--size), or the processor (CUDA_VISIBLE_DEVICES= in "
                "front of the command); prepare.py takes fewer at a time with --batch-size"
            ) from error
        if isinstance(found, tuple):
            return tuple(_channels_last(one) for one in found)
        return _channels_last(found)


def _channels_last(x: Any) -> np.ndarray:
    return x.movedim(1, -1).float().cpu().numpy()


def _kind(folder: Path) -> str:
    """Which autoencoder a folder holds."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise InputError(f"{FLAG}={folder}: config.json is no JSON in UTF-8: {error}") from error
    except OSError as error:
        inside = f", but a folder vae: give {folder / 'vae'}" if (folder / "vae").is_dir() else ""
        raise InputError(f"{FLAG}={folder} has no config.json{inside or f' ({error})'}") from error
    found = config.get("_class_name") if isinstance(config, dict) else None
    return choose(f"{FLAG}={folder}: _class_name", found, KINDS)


def _check_sizes(frames: int, size: tuple[int, int], chunk_frames: int, space: int, time: int) -> None:
    if chunk_frames < 1 or chunk_frames % (2 * time):
        # Its decoder takes an odd number of frames of latents as beginning with a single picture.
        raise InputError(
            f"--chunk-frames={chunk_frames}: this autoencoder needs a multiple of {2 * time}, an even number "
            f"of frames of latents ({time} frames each), or it decodes them to fewer frames"
        )
    if frames < 1 or frames % chunk_frames:
        raise InputError(
            f"--frames={frames} must be a multiple of --chunk-frames={chunk_frames}: clips are encoded in "
            "whole chunks"
        )
    if min(size) < 1 or size[0] % space or size[1] % space:
        raise InputError(f"--size={size[0]}x{size[1]}: this autoencoder needs multiples of {space}")
