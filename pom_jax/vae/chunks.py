"""Many images through an autoencoder with the memory of a few, every device its own."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pom_jax.errors import InputError
from pom_jax.ops.mesh import BATCH_AXES
from pom_jax.vae.model import AutoencoderKL


@functools.partial(jax.jit, static_argnames=("model", "chunk"))
def decode_in_chunks(model: AutoencoderKL, params: Any, latents: jax.Array, chunk: int) -> jax.Array:
    """`model.decode` of a few latents at a time; can be called inside jit.

    Under a mesh (`jax.set_mesh`) each device decodes its part of a batch that is cut over the axes `data` and
    `fsdp`, and nothing is communicated.

    Args:
        params: the tree inside {"params": ...}, whole on every device.
        latents: [B, H, W, C], not scaled; B need not be a multiple of anything.
        chunk: latents at a time on a device, at least 1.

    Returns:
        [B, f H, f W, 3] float32, about [-1, 1].

    Raises:
        InputError: latents of another shape, or a chunk below 1.
    """
    return _in_chunks(functools.partial(model.apply, method="decode"), params, latents, chunk)


@functools.partial(jax.jit, static_argnames=("model", "chunk"))
def encode_in_chunks(
    model: AutoencoderKL, params: Any, pixels: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """`model.encode` of a few images at a time; otherwise as `decode_in_chunks`.

    Args:
        params: the tree inside {"params": ...}, whole on every device.
        pixels: [B, H, W, 3] in [-1, 1].
        chunk: images at a time on a device, at least 1.

    Returns:
        mean, std: [B, H/f, W/f, C] float32, not scaled.

    Raises:
        InputError: pixels of another shape, or a chunk below 1.
    """
    return _in_chunks(functools.partial(model.apply, method="encode"), params, pixels, chunk)


def _in_chunks(apply: Callable[..., Any], params: Any, x: jax.Array, chunk: int) -> Any:
    if not isinstance(chunk, int) or chunk < 1:
        raise InputError(f"chunk = {chunk!r} must be a whole number of at least 1")
    run = functools.partial(_map_chunks, apply, chunk=chunk)
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    axes = tuple(axis for axis in BATCH_AXES if axis in sizes)
    if axes:
        batch, whole = PartitionSpec(axes), PartitionSpec()
        run = jax.shard_map(run, in_specs=(whole, batch), out_specs=batch)
    y = run({"params": params}, _pad(x, math.prod(sizes[axis] for axis in axes)))
    return jax.tree.map(lambda leaf: leaf[: len(x)], y)


def _map_chunks(apply: Callable[..., Any], variables: Any, x: jax.Array, chunk: int) -> Any:
    """The images of one device, in one loop."""
    chunk = min(chunk, max(1, len(x)))
    padded = _pad(x, chunk)
    chunks = padded.reshape(-1, chunk, *x.shape[1:])
    y = jax.lax.map(functools.partial(apply, variables), chunks)
    return jax.tree.map(lambda leaf: leaf.reshape(len(padded), *leaf.shape[2:])[: len(x)], y)


def _pad(x: jax.Array, multiple: int) -> jax.Array:
    return jnp.pad(x, [(0, -len(x) % multiple)] + [(0, 0)] * (x.ndim - 1))
