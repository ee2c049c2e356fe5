"""What functions of arrays need to know of the mesh around their call (`jax.set_mesh`), if there is one."""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping
from types import EllipsisType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

# The one table from logical axes, of parameters and of activations, to the axes of a mesh that cut them.
# What does not divide stays whole.
MESH_AXES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "tokens": ("context",),
    "embed": ("fsdp",),  # the width D, of parameters only: tokens keep all their channels
    "expand": ("tensor",),  # E of the mixer
    "hidden": ("tensor",),  # of the feed-forward network
    "heads": ("tensor",),  # of attention
    "layers": (),  # every device runs every layer
}
BATCH_AXES = MESH_AXES["batch"]

_traced_for: contextvars.ContextVar[str] = contextvars.ContextVar("traced_for", default="")


def backend() -> str:
    """What a program is traced for: "cpu", "gpu" or "tpu"."""
    return _traced_for.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(name: str) -> Iterator[None]:
    """Within it programs are traced for other devices than those of this machine."""
    token = _traced_for.set(name)
    try:
        yield
    finally:
        _traced_for.reset(token)


def parts(name: str) -> int:
    """Into how many parts the mesh cuts a logical axis, 1 without a mesh or within a part (`shard_map`)."""
    sizes = _axes(AxisType.Auto, AxisType.Explicit)
    return math.prod(sizes.get(axis, 1) for axis in MESH_AXES[name])


def tokens_are_whole() -> bool:
    """Whether the mesh leaves the tokens of a sequence on one device."""
    return parts("tokens") == 1


def batch_of_a_device(batch: int) -> int:
    """Sequences of a batch that one device holds, at least 1."""
    return max(1, batch // parts("batch"))


def is_explicit(x: jax.Array) -> bool:
    """Whether the type of an array says how it lies on a mesh (axes of type Explicit)."""
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


def lay(x: jax.Array, *names: str | EllipsisType | None) -> jax.Array:
    """The same array, which the compiler is told to cut like this; as it is where no mesh is set.

    Args:
        x: [...].
        names: of each axis in `MESH_AXES`, or None for one that stays whole. The compiler decides about axes
            that do not divide, and about the rest after `...`.
    """
    sizes = _axes(AxisType.Auto)
    if math.prod(sizes.values()) == 1 or is_explicit(x):
        return x
    cuts: list = [PartitionSpec.UNCONSTRAINED] * x.ndim
    for index, (size, name) in enumerate(zip(x.shape, names, strict=False)):
        if isinstance(name, EllipsisType):
            break
        axes = tuple(axis for axis in MESH_AXES[name] if axis in sizes) if name else ()
        if size % math.prod(sizes[axis] for axis in axes) == 0:
            cuts[index] = axes or None
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*cuts))


def where_tokens_are(function: Callable[..., Any], shared: Any, *tokens: Any) -> Any:
    """`function(shared, *tokens)` on each device for its own part of the tokens: for loops along them.

    Args:
        function: gives a tree of arrays [B, T, ...].
        shared: a tree of arrays that all devices have.
        tokens: trees of arrays [B, T, ...], of which T is cut as tokens are.
    """
    axes = MESH_AXES["tokens"]
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, shared)

    def run(shared: Any, *tokens: Any) -> Any:
        # What each device makes of its copy differs; the slopes of the copies are summed.
        copies = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axes, to="varying"), shared)
        return function(jax.tree.map(jnp.astype, copies, dtypes), *tokens)

    # That sum is of float32: of bfloat16 the compiler for CPU fails.
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), shared)
    cut = PartitionSpec(None, axes)
    specs = PartitionSpec(), *[cut] * len(tokens)
    return jax.shard_map(run, in_specs=specs, out_specs=cut, axis_names=set(axes))(wide, *tokens)


def _axes(*kinds: AxisType) -> dict[str, int]:
    """Axes of these kinds of the mesh that is set, and their sizes."""
    mesh = jax.sharding.get_abstract_mesh()
    known = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: mesh.shape[name] for name, kind in known if kind in kinds}
