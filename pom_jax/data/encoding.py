"""Crops -> the fields of an image set: pixels as they are, or the moments of an autoencoder's latents."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pom_jax.data.manifest import Field
from pom_jax.errors import InputError, choose
from pom_jax.vae.chunks import decode_in_chunks, encode_in_chunks
from pom_jax.vae.files import load_autoencoder, weights_sha256

CHUNK = 8  # images that a device encodes at a time

# Of int8, in the model's space, where latents have about unit variance: steps of mean and std.
MEAN_STEP = 8 / 127
STD_STEP = 0.25 / 255
FORMATS = {"float16": ("float16", "float16"), "int8": ("int8", "uint8")}


class Encoded(NamedTuple):
    """What becomes of crops [B, *crop_shape].

    Attributes:
        arrays: `{field: [B, V, ...]}`, each sample and, with V = 2, its mirror image.
        clipped: [B] how many numbers of each record lay beyond what the field holds, where that can be.
        cut: how many captions were longer than what is encoded of them.
    """

    arrays: Mapping[str, Any]
    clipped: Any = None
    cut: int = 0


class Encoder(Protocol):
    """Makes the fields `mean` and, for latents, `std`; a model sees them times `scale` plus `shift`.

    Attributes:
        crop_shape: of one crop.
        compiles: whether it is a program of JAX: for batches of one size, over all devices of this process.
        autoencoder: its name and checksum; None where pixels are stored.
        settings: what decides the fields, in words.
    """

    crop_shape: tuple[int, ...]
    compiles: bool
    fields: Mapping[str, Field]
    scale: float
    shift: float
    autoencoder: str | None
    settings: Mapping[str, str]

    def __call__(self, crops: np.ndarray) -> Encoded: ...

    def decode(self, mean: np.ndarray) -> np.ndarray:
        """The crops [N, *crop_shape] uint8 of one view of stored means [N, ...]."""
        ...


class Pixels:
    """Stores the crops themselves, uint8, and their mirror images unless told not to.

    Raises:
        InputError: a size below 1.
    """

    compiles = False

    def __init__(self, size: int, *, mirror: bool = True):
        self.crop_shape = _crop_shape(size)
        self._views = 2 if mirror else 1
        self.fields: Mapping[str, Field] = {"mean": Field("uint8", (self._views, *self.crop_shape))}
        self.scale, self.shift = 2 / 255, -1.0
        self.autoencoder: str | None = None
        self.settings: Mapping[str, str] = {"autoencoder": "none", "moments": "uint8"}

    def __call__(self, crops: np.ndarray) -> Encoded:
        return Encoded({"mean": np.stack([crops, crops[:, :, ::-1]][: self._views], axis=1)})

    def decode(self, mean: np.ndarray) -> np.ndarray:
        return mean


class Latents:
    """Stores the mean and the deviation of an autoencoder's latents; encodes on all devices of this process.

    float16 keeps eleven bits of each number. int8 halves the space: `mean` in steps of 8/127, `std` (uint8)
    in steps of 0.25/255, both in the model's space of about unit variance, rounded to the nearest and clipped
    to +-8 and 0.25. The mean is then off by at most 0.0315, by 0.018 in the root mean square (1/55 of a
    deviation, -35 dB; the authors' truncated steps of 1/8 make 0.072), the std by at most 0.0005.

    Args:
        folder: of the autoencoder, in diffusers' format.
        size: pixels of a crop's side.
        moments: "float16" or "int8".
        mirror: store the mirror images too.

    Raises:
        InputError: no such autoencoder, a size that it cannot encode, other moments.
    """

    compiles = True

    def __init__(
        self, folder: str | os.PathLike[str], size: int, moments: str = "float16", *, mirror: bool = True
    ):
        self.crop_shape = _crop_shape(size)
        mean_type, std_type = choose("--moments", moments, FORMATS)
        self._model, params, factor, offset = load_autoencoder(folder)
        config = self._model.config
        if size % config.downsampling:
            raise InputError(f"--size={size}: this autoencoder needs a multiple of {config.downsampling}")
        if config.in_channels != 3:
            raise InputError(
                f"the autoencoder of {folder} reads {config.in_channels} channels, pictures have 3"
            )
        side = size // config.downsampling
        self._mirror = mirror
        shape = (2 if mirror else 1, side, side, config.latent_channels)
        steps = (MEAN_STEP / factor, STD_STEP / factor) if moments == "int8" else (1.0, 1.0)
        self.fields: Mapping[str, Field] = {
            "mean": Field(mean_type, shape, steps[0]),
            "std": Field(std_type, shape, steps[1]),
        }
        self.scale, self.shift = factor, 0.0 - offset * factor
        digest = weights_sha256(folder)
        self.autoencoder: str | None = f"{Path(folder).resolve().name} sha256:{digest}"
        self.settings: Mapping[str, str] = {
            "autoencoder": f"sha256:{digest}",
            "scaling": f"{factor}, {offset}",
            "moments": moments,
        }
        self._mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self._params = jax.device_put(params, NamedSharding(self._mesh, PartitionSpec()))

    def __call__(self, crops: np.ndarray) -> Encoded:
        with jax.set_mesh(self._mesh), jax.default_matmul_precision("highest"):
            moments = encode_in_chunks(self._model, self._params, _views(crops, self._mirror), CHUNK)
            return Encoded(*_stored(tuple(self.fields.items()), moments))

    def decode(self, mean: np.ndarray) -> np.ndarray:
        latents = mean.astype(np.float32) * self.fields["mean"].scale
        with jax.set_mesh(self._mesh), jax.default_matmul_precision("highest"):
            pixels = np.asarray(decode_in_chunks(self._model, self._params, latents, CHUNK))
        return np.round(127.5 * (np.clip(pixels, -1, 1) + 1)).astype(np.uint8)


def _crop_shape(size: int) -> tuple[int, ...]:
    if size < 1:
        raise InputError(f"--size={size} must be at least 1")
    return size, size, 3


@functools.partial(jax.jit, static_argnames="mirror")
def _views(crops: jax.Array, mirror: bool) -> jax.Array:
    """Crops and, after all of them, their mirror images, [V B, H, W, 3] in [-1, 1]."""
    x = crops.astype(jnp.float32) / 127.5 - 1
    return jnp.concatenate([x, x[:, :, ::-1]]) if mirror else x


@functools.partial(jax.jit, static_argnames="fields")
def _stored(
    fields: tuple[tuple[str, Field], ...], moments: tuple[jax.Array, jax.Array]
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Moments [V B, ...] as the fields hold them, [B, V, ...], and how many numbers of each were clipped."""
    views = fields[0][1].shape[0]
    count = len(moments[0]) // views
    arrays, clipped = {}, jnp.zeros(count, jnp.int32)
    for (name, field), values in zip(fields, moments, strict=True):
        values = jnp.moveaxis(values.reshape(views, count, *values.shape[1:]), 0, 1)
        if field.dtype in ("int8", "uint8"):
            low, high = (-127, 127) if field.dtype == "int8" else (0, 255)
            steps = jnp.round(values / field.scale)
            inside = (steps >= low) & (steps <= high)  # NaN is not
            clipped += jnp.sum(~inside, axis=(1, 2, 3, 4))
            values = steps.clip(low, high)
        arrays[name] = values.astype(field.dtype)
    return arrays, clipped
