"""Where arrays live: the mesh, one table from parameters to logical axes, and one from those to mesh axes."""

import math
import re
from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pom_jax.errors import InputError
from pom_jax.ops.mesh import BATCH_AXES
from pom_jax.training.digest import path_name

# Logical axis -> mesh axis. An axis of an array that its mesh axis does not divide stays whole.
MESH_AXES: Mapping[str, str | None] = {
    "embed": "fsdp",
    "layers": None,  # every device runs every layer
}

# Blocks alike lie under `blocks`, those of a period under `layer_0`, ... of it, the halves of a hybrid mixer
# under `pom` and `attention` of that.
_BLOCK = r"blocks/(layer_\d+/)?"
_MIXER = rf"{_BLOCK}mixer/((pom|attention)/)?"

# Parameter -> logical axes, from the first match of the whole path below `params`. `...` stands for any
# number of whole axes. Parameters under `blocks` have the layers in front, which the table leaves out.
PARAMETER_AXES: tuple[tuple[str, tuple[str | EllipsisType | None, ...]], ...] = (
    (r".*/bias", (...,)),
    (rf"{_MIXER}(coefficients|feature_scale)", (...,)),
    (r"patch_embedding/kernel|class_embedding/table", (None, "embed")),
    (r"(time_embedding/\w+|out)/kernel", ("embed", ...)),
    (rf"({_BLOCK})?modulation/kernel", ("embed", ...)),
    # Grouped kernels lie as [G, D/G, E/G]: there it is the groups that are cut.
    (rf"{_MIXER}(features|gate|query|key|value)/kernel", ("embed", ...)),
    (rf"{_MIXER}out/kernel", (..., "embed")),
    (rf"{_BLOCK}feed_forward/hidden/kernel", ("embed", None)),
    (rf"{_BLOCK}feed_forward/out/kernel", (None, "embed")),
    (r"(condition_)?(registers|positions)", (..., "embed")),
)


def make_mesh(config: Mapping[str, int], chosen: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config.mesh`, with axes `data` and `fsdp`.

    Args:
        config: devices along each axis; at most one may be -1, all that are left.
        chosen: the devices; all there are by default.

    Raises:
        InputError: sizes that do not multiply to the number of devices.
    """
    devices = jax.device_count() if chosen is None else len(chosen)
    sizes = {name: config[name] for name in ("data", "fsdp")}
    wanted = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise InputError(f"{wanted}: sizes must be positive, or -1 once for all devices that are left")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free:
        sizes[free[0]] = devices // fixed
    if math.prod(sizes.values()) != devices:
        raise InputError(
            f"{wanted} does not fit {devices} device{'s' if devices > 1 else ''}: "
            f"the sizes must multiply to {devices}, or one of them be -1"
        )
    # The compiler propagates shardings from what is set here; the default axis type would make every
    # operation whose result is ambiguous an error.
    types = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types, devices=chosen)


def logical_axes(path: str, ndim: int) -> tuple[str | None, ...]:
    """The logical axis of each axis of one parameter.

    Args:
        path: below `params`, such as "blocks/mixer/out/kernel".
        ndim: its number of axes.

    Raises:
        InputError: no row of the table matches.
    """
    below_blocks = path.startswith("blocks/")
    rows = [axes for pattern, axes in PARAMETER_AXES if re.fullmatch(pattern, path)]
    if not rows:
        raise InputError(f"parameter {path!r} has no row in PARAMETER_AXES of pom_jax/training/sharding.py")
    axes: list[str | None] = ["layers"] if below_blocks else []
    for axis in rows[0]:
        if isinstance(axis, EllipsisType):
            axes += [None] * (ndim - below_blocks - len(rows[0]) + 1)
        else:
            axes.append(axis)
    return tuple(axes)


def spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How one parameter is cut over the mesh; see `logical_axes`."""
    parts = []
    for size, name in zip(shape, logical_axes(path, len(shape)), strict=True):
        axis = MESH_AXES[name] if name else None
        parts.append(axis if axis and size % mesh.shape[axis] == 0 and mesh.shape[axis] > 1 else None)
    return PartitionSpec(*parts)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Shardings of a whole training state: averages and moments as the parameters, the rest on every device.

    Args:
        state: `TrainState` of arrays or shapes; averages and moments are recognised by their paths.
        mesh: from `make_mesh`.

    Returns:
        A tree of `NamedSharding` like `state`.
    """
    parameters = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.params)}

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        parts = path_name(path).split("/")
        below = next((p for p in ("/".join(parts[i:]) for i in range(len(parts))) if p in parameters), None)
        return NamedSharding(mesh, PartitionSpec() if below is None else spec(below, leaf.shape, mesh))

    return jax.tree.map_with_path(sharding, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis cut over all devices, whatever the array's other axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises InputError unless a batch divides into `accumulate` slices over all devices."""
    devices = mesh.size
    if batch_size < 1 or accumulate < 1 or batch_size % (accumulate * devices):
        raise InputError(
            f"data.batch_size={batch_size} must be a positive multiple of {accumulate * devices}: "
            f"optimizer.accumulate={accumulate} slices over {devices} device{'s' if devices > 1 else ''}"
        )
