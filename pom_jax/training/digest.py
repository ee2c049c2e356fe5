"""A digest of every leaf of a tree, cheap on any mesh, so that flipped bits in a checkpoint are noticed."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
_MIX = (np.uint32(0x9E3779B1), np.uint32(0x85EBCA77))  # odd, so that no bit of an index is lost


def path_name(path: tuple) -> str:
    """A readable name of a place in a tree: ("params", "blocks", 0) -> "params/blocks/0"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


@jax.jit
def leaf_digest(leaf: jax.Array) -> jax.Array:
    """Two modular sums of the bits of an array, each element times an odd number made from its position.

    Sums modulo 2^32 do not depend on their order, so the digest is the same whatever the sharding. An odd
    factor is invertible, so one changed element always changes both words.

    Args:
        leaf: [...] of 1, 2 or 4 bytes an element, or a random key.

    Returns:
        [2] uint32.
    """
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(leaf, _UNSIGNED[leaf.dtype.itemsize]).astype(jnp.uint32)
    position = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        position = position * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    first = jnp.sum(bits * ((position * _MIX[0]) | 1), dtype=jnp.uint32)
    mixed = (position ^ (position >> 15)) * _MIX[1]
    second = jnp.sum(bits * ((mixed ^ (mixed >> 13)) | 1), dtype=jnp.uint32)
    return jnp.stack([first, second])


def digests(tree: Any) -> dict[str, str]:
    """The digest of each leaf as 16 hexadecimal digits, by the name of its place. Waits for the arrays."""
    # One program a shape, not one for the tree: optimiser and averages have the shapes of the parameters.
    # One at a time: virtual devices on few cores can wait for ever in the sums of two programs.
    words = jax.tree.map(lambda leaf: jax.device_get(leaf_digest(leaf)), tree)
    return {path_name(path): f"{a:08x}{b:08x}" for path, (a, b) in jax.tree_util.tree_leaves_with_path(words)}


def differing(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Names whose digests differ or are missing on the expected side, in order."""
    return [name for name, value in found.items() if expected.get(name) != value]
