"""What a model of latents and embeddings needs beside itself: pixels of its latents, prompts embedded."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pom_jax.data.text_encoder import TextEncoder
from pom_jax.data.video_autoencoder import CHUNK_FRAMES, VideoAutoencoder
from pom_jax.errors import InputError
from pom_jax.models import Polymorpher
from pom_jax.sampling.decode import Decoder, load_decoder
from pom_jax.sampling.made_with import Say, check_made_with


@dataclasses.dataclass(frozen=True)
class ChunkDecoder:
    """Decodes chunks of frames that know nothing of one another, as the clips were encoded.

    Attributes:
        autoencoder: of the clips.
        frames: of latents in a chunk; only whole chunks can be decoded.
        scale, shift: the model sees latent * scale + shift.
    """

    autoencoder: VideoAutoencoder
    frames: int
    scale: float
    shift: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """[N, T', h, w, C] of the model -> [N, T, H, W, 3] uint8."""
        return self.autoencoder.decode((x - self.shift) / self.scale)

    @property
    def downsampling(self) -> int:
        """Pixels of a latent's side."""
        return self.autoencoder.crop_shape[1] // self.autoencoder.fields["mean"].shape[2]

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """[N, T, H, W, 3] uint8 -> means of the latents [N, T', h, w, C] float32, as the model sees them.

        One picture, T = 1, stands still for a chunk: alone the causal autoencoder would make of it a frame of
        another kind, which is of one frame of pixels, and of which a model that learns from chunks has none.

        Raises:
            InputError: frames that are no whole chunks.
        """
        chunk = self.autoencoder.crop_shape[0]
        if pixels.shape[1] == 1:
            pixels = pixels.repeat(chunk, axis=1)
        if rest := pixels.shape[1] % chunk:
            raise InputError(
                f"{pixels.shape[1]} frames of pixels are no whole chunks of {chunk}, the way the autoencoder "
                f"encodes them: give {pixels.shape[1] - rest or chunk}, or one picture"
            )
        mean = self.autoencoder(pixels).arrays["mean"][:, 0]
        return mean.astype(np.float32) * self.scale + self.shift


def load_text_encoder(
    folder: str | os.PathLike[str],
    model: Polymorpher,
    encoding: Mapping[str, Any] | None = None,
    say: Say = print,
) -> TextEncoder:
    """The encoder for the prompts of a model.

    Args:
        folder: of the encoder, in transformers' format.
        model: that reads them.
        encoding: of the data that it has learned from, see `made_with`.
        say: is told how far the checksum of large weights is.

    Raises:
        InputError: no such encoder, one of other embeddings or, by its checksum, not that of the data; a
            model that has words of its own.
    """
    if model.vocabulary:
        raise InputError(
            f"--text_encoder={folder}: this model knows {model.vocabulary - 1} words by itself; leave it out"
        )
    encoder = TextEncoder(folder, model.text_length, say=say)
    width = encoder.fields["text"].shape[-1]
    if width != model.text_width:
        raise InputError(
            f"--text_encoder={folder} makes embeddings of {width} channels, the model reads "
            f"{model.text_width}: give the one that its captions were embedded with"
        )
    check_made_with("text_encoder", folder, _digest(encoder.name), encoding or {})
    return encoder


def load_video_decoder(
    folder: str | os.PathLike[str],
    config: ConfigDict,
    encoding: Mapping[str, Any] | None = None,
    say: Say = print,
) -> "Decoder | ChunkDecoder":
    """What makes pixels of a model's latents: an autoencoder of images, frame by frame, or one of video.

    Args:
        folder: of the autoencoder, in diffusers' format.
        config: of the run.
        encoding: of its data (`made_with`): of clips the scale, the shift and the frames of a chunk. What it
            lacks is the autoencoder's own, and chunks of 8 frames.
        say: is told what is taken for granted so, and how far the checksum of large weights is.

    Raises:
        InputError: a model of pixels; no such autoencoder, or one of other latents or, by its checksum, not
            that of the data.
    """
    kind, space, time, channels = _sizes(Path(folder))
    if config.model.channels in (1, 3) and config.model.channels != channels:
        raise InputError(f"--autoencoder={folder}: this model draws pixels by itself; leave it out")
    if kind == "AutoencoderKL":
        return load_decoder(folder, config.model.channels, encoding)
    if channels != config.model.channels:
        raise InputError(
            f"the autoencoder of {folder} has latents of {channels} channels, the model draws "
            f"{config.model.channels}: give the one its latents were made with"
        )
    encoding = {} if encoding is None else encoding
    chunk = encoding.get("chunk_frames", max(CHUNK_FRAMES, 2 * time))
    size = (config.model.frame_height * space, config.model.frame_width * space)
    autoencoder = VideoAutoencoder(folder, chunk, size, chunk_frames=chunk, say=say)
    check_made_with("autoencoder", folder, _digest(autoencoder.autoencoder), encoding)
    scale = encoding.get("scale", autoencoder.scale)
    shift = encoding.get("shift", autoencoder.shift)
    if "scale" not in encoding:
        say(
            f"note: the latents are taken to be those of {folder} times its own scale {scale:g} (plus "
            f"{shift:g}), in chunks of {chunk} frames"
        )
    return ChunkDecoder(autoencoder, chunk // time, scale, shift)


def _digest(name: str | None) -> str:
    """The checksum at the end of an encoder's name."""
    return (name or "").rpartition("sha256:")[2]


def _sizes(folder: Path) -> tuple[str, int, int, int]:
    """Kind of an autoencoder, pixels and frames of a latent cell, and channels."""
    try:
        config = json.loads((folder / "config.json").read_text())
        space = 2 ** (len(config["block_out_channels"]) - 1)
        time = int(config.get("temporal_compression_ratio", 1))
        return config["_class_name"], space, time, int(config["latent_channels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--autoencoder={folder} holds no autoencoder in diffusers' format: config.json: {error!r}"
        ) from error
