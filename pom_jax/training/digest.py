"""A digest of every leaf of a tree, cheap on any mesh, so that flipped bits in a checkpoint are noticed.

Beside it, whether the leaf is finite: what reads all of a state looks for that too.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pom_jax import cluster
from pom_jax.errors import InputError
from pom_jax.training import offload

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
_MIX = (np.uint32(0x9E3779B1), np.uint32(0x85EBCA77))  # odd, so that no bit of an index is lost


class NotFinite(InputError):
    """A tree that is to be saved has numbers that are not finite; the message names a leaf."""


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
    leaf = offload.on_device(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(leaf, _UNSIGNED[leaf.dtype.itemsize]).astype(jnp.uint32)
    position = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        position = position * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    mixed = (position ^ (position >> 15)) * _MIX[1]
    words = bits * ((position * _MIX[0]) | 1), bits * ((mixed ^ (mixed >> 13)) | 1)
    # Axis by axis: XLA sums to a single number with one thread of a CPU and without its vector units.
    for _ in leaf.shape:
        words = jax.lax.optimization_barrier(tuple(jnp.sum(word, 0, dtype=jnp.uint32) for word in words))
    return jnp.stack(words)


def start_digests(tree: Any) -> Callable[[], dict[str, str]]:
    """Begins to compute the digest of each leaf; the leaves may be donated to the next program at once.

    Called by all processes.

    Returns:
        A function to call once, from any thread, that waits for them: 16 hexadecimal digits by the names
        of the leaves. On one CPU device it raises NotFinite, too.

    Raises:
        NotFinite: on all processes alike, on whichever of them the numbers are not finite.
    """
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        words = jax.device_get(_digest_all(tree))  # an accelerator reads its memory in milliseconds
        _check_finite(words)
        return lambda: _in_hexadecimal(words)
    # A CPU may compute as soon as it is asked (`host_memory`), and the training is not to wait for it.
    leaves, structure = jax.tree.flatten(tree)
    held, mesh = [_hold(leaf) for leaf in leaves], jax.sharding.get_mesh()

    def read() -> dict[str, str]:
        arrays = [jax.device_put(view, sharding, may_alias=True) for view, sharding in held]
        held.clear()
        with jax.set_mesh(mesh):  # another thread knows of none, and would compile anew
            words = jax.device_get(_digest_all(jax.tree.unflatten(structure, arrays)))
        _check_finite(words)
        return _in_hexadecimal(words)

    return read


def digests(tree: Any) -> dict[str, str]:
    """The digest of each leaf as 16 hexadecimal digits, by the name of its place. Waits for the arrays."""
    return _in_hexadecimal(jax.device_get(_digest_all(tree)))


def _hold(leaf: jax.Array | np.ndarray) -> tuple[np.ndarray, jax.sharding.Sharding | None]:
    """The memory of an array on the one CPU: who donates the array meanwhile gets a copy of it."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf), getattr(leaf, "sharding", None)


def _digest_all(tree: Any) -> Any:
    """[3] uint32 in the place of each leaf: its digest, and 1 where it is not finite."""
    leaves, structure = jax.tree.flatten(tree)
    alike: dict[Any, list[int]] = {}
    for place, leaf in enumerate(leaves):
        alone = place if offload.is_on_host(leaf) else None  # the device is to have room for one, not for all
        alike.setdefault((leaf.shape, leaf.dtype, getattr(leaf, "sharding", None), alone), []).append(place)
    # Optimiser and averages have the shapes of the parameters. One program a leaf would be too many to
    # dispatch; one for all would compile for long.
    for places in alike.values():
        found = _digests_of_alike([leaves[place] for place in places])
        if jax.default_backend() == "cpu" and jax.device_count() > 1:
            # Virtual devices on few cores can wait for ever in the sums of two programs.
            jax.block_until_ready(found)
        for place, words in zip(places, found, strict=True):
            leaves[place] = words
    return jax.tree.unflatten(structure, leaves)


@jax.jit
def _digests_of_alike(leaves: list[jax.Array]) -> list[jax.Array]:
    leaves = offload.on_device(leaves)
    return [jnp.append(leaf_digest(leaf), _is_not_finite(leaf)) for leaf in leaves]


def _is_not_finite(leaf: jax.Array) -> jax.Array:
    """[] uint32, 1 or 0."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros([], jnp.uint32)
    wrong = ~jnp.isfinite(leaf)
    for _ in leaf.shape:  # axis by axis, see `leaf_digest`
        wrong = jax.lax.optimization_barrier(wrong.any(0))
    return wrong.astype(jnp.uint32)


def _check_finite(words: Any) -> None:
    wrong = [path_name(path) for path, word in jax.tree_util.tree_leaves_with_path(words) if word[2]]
    said = f"{wrong[0]} and {len(wrong) - 1} more leaves" if len(wrong) > 1 else "".join(wrong)
    if jax.process_count() > 1:  # copies of a leaf are read one by one, and one alone can be wrong
        said = next(filter(None, cluster.share(said)), "")
    if said:
        raise NotFinite(f"not finite: {said}")


def _in_hexadecimal(words: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(words)
    return {path_name(path): f"{a:08x}{b:08x}" for path, (a, b, _) in leaves}


def differing(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Names whose digests differ or are missing on the expected side, in order."""
    return [name for name, value in found.items() if expected.get(name) != value]
