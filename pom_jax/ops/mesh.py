"""What functions of arrays need to know of the mesh around their call (`jax.set_mesh`), if there is one."""

import math

import jax

# Axes of a mesh over which a batch is cut, and the one over which tokens are.
BATCH_AXES = ("data", "fsdp")
TOKEN_AXIS = "context"


def tokens_are_whole() -> bool:
    """Whether the mesh leaves the tokens of a sequence on one device."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(TOKEN_AXIS, 1) == 1


def is_explicit(x: jax.Array) -> bool:
    """Whether the type of an array says how it lies on a mesh (axes of type Explicit)."""
    return jax.sharding.AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


def batch_of_a_device(batch: int) -> int:
    """Sequences of a batch that one device holds, at least 1."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    return max(1, batch // math.prod(sizes.get(axis, 1) for axis in BATCH_AXES))
