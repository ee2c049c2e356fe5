"""Where arrays live: the mesh, and one table from parameters to the logical axes of `ops.mesh.MESH_AXES`."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from types import EllipsisType
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from pom_jax.errors import InputError
from pom_jax.models import count_tokens
from pom_jax.models.checks import has_attention
from pom_jax.ops.mesh import BATCH_AXES, MESH_AXES
from pom_jax.training.digest import path_name
from pom_jax.training.offload import HOST

# Axes of a mesh, the one with the least to say to its neighbours first.
AXES = ("data", "fsdp", "context", "tensor")

# Blocks alike lie under `blocks`, those of a period under `layer_0`, ... of it, the halves of a hybrid mixer
# under `pom` and `attention` of that. A `text_mixer` is as a `mixer`.
_BLOCK = r"blocks/(layer_\d+/)?"
_POM = rf"{_BLOCK}(text_)?mixer/(pom/)?"
_ATTENTION = rf"{_BLOCK}(text_)?mixer/attention/"

# Parameter -> logical axes, from the first match of its whole name, see `parameter_names`. `...` stands for
# any number of whole axes. Parameters under `blocks` have the layers in front, which the table leaves out.
PARAMETER_AXES: tuple[tuple[str, tuple[str | EllipsisType | None, ...]], ...] = (
    (r".*/bias", (...,)),
    (
        r"(patch|text)_embedding/kernel|context/windows/kernel|class_embedding/table|words/(table|places)",
        (None, "embed"),
    ),
    (r"((time_embedding|pooled_text)/\w+|out)/kernel", ("embed", ...)),
    (rf"({_BLOCK})?modulation/kernel", ("embed", ...)),
    # Grouped kernels lie as [G, D/G, E/G]: there it is the groups that are cut.
    (rf"{_POM}(features|gate)/kernel", ("embed", ..., "expand")),
    (rf"{_POM}out/kernel", (..., "expand", "embed")),
    (rf"{_POM}coefficients", ("expand", None)),
    (rf"{_POM}feature_scale", ("expand",)),
    (rf"{_ATTENTION}(query|key|value)/kernel", ("embed", "heads", None)),
    (rf"{_ATTENTION}out/kernel", ("heads", None, "embed")),
    (rf"{_BLOCK}feed_forward/hidden/kernel", ("embed", "hidden")),
    (rf"{_BLOCK}feed_forward/out/kernel", ("hidden", "embed")),
    (r"(condition_)?(registers|positions)", (..., "embed")),
)


def make_mesh(config: Mapping[str, int], chosen: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config.mesh`, with the axes `AXES`.

    Devices of several slices (TPU slices, GPU nodes) hear each other over a slower network: the axis `data`
    is cut over the slices first, and each slice holds a whole mesh of its own, laid out by `jax.make_mesh`.

    Args:
        config: devices along each axis, 1 where one is left out; at most one may be -1, all that are left.
            `slices`: how many groups the devices make; 0, as many as they say themselves (`slice_index`).
        chosen: the devices; all there are by default.

    Raises:
        InputError: sizes that do not multiply to the number of devices, or slices that do not fit them.
    """
    devices = list(jax.devices() if chosen is None else chosen)
    sizes = _sizes(config, len(devices))
    slices = _slices(config.get("slices", 0), devices)
    if sizes["data"] % len(slices):
        raise InputError(
            f"mesh.data={sizes['data']} is not a multiple of the {len(slices)} slices (mesh.slices), over "
            "which data is cut first: change one of them"
        )
    # The compiler propagates shardings from what is set here; the default axis type would make every
    # operation whose result is ambiguous an error.
    types = (AxisType.Auto,) * len(AXES)
    shape = (sizes["data"] // len(slices), *(sizes[name] for name in AXES[1:]))
    meshes = [jax.make_mesh(shape, AXES, axis_types=types, devices=part) for part in slices]
    if len(meshes) == 1:
        return meshes[0]
    return Mesh(np.concatenate([mesh.devices for mesh in meshes]), AXES, axis_types=types)


def _sizes(config: Mapping[str, int], devices: int) -> dict[str, int]:
    """Devices along each axis."""
    sizes = {name: config.get(name, 1) for name in AXES}
    wanted = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise InputError(f"{wanted}: sizes must be positive, or -1 once for all devices that are left")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and devices % fixed:
        raise InputError(
            f"{wanted} does not fit {devices} device{'s' if devices > 1 else ''}: {fixed}, the product of "
            f"the sizes but mesh.{free[0]}, must divide {devices}"
        )
    if free:
        sizes[free[0]] = devices // fixed
    if math.prod(sizes.values()) != devices:
        raise InputError(
            f"{wanted} does not fit {devices} device{'s' if devices > 1 else ''}: "
            f"the sizes must multiply to {devices}, or one of them be -1"
        )
    return sizes


def _slices(count: int, devices: list[jax.Device]) -> list[list[jax.Device]]:
    """The devices slice by slice, in equal parts."""
    told = len({_slice(device) for device in devices})
    count = count or told
    if count < 1 or len(devices) % count:
        raise InputError(f"mesh.slices={count} does not divide {len(devices)} devices in equal parts")
    ordered = sorted(devices, key=lambda device: (_slice(device), device.process_index))
    size = len(devices) // count
    found = [ordered[start : start + size] for start in range(0, len(devices), size)]
    if any(len({_slice(device) for device in part}) > 1 for part in found):
        raise InputError(
            f"mesh.slices={count}, but the devices lie in {told} slices: set it to a multiple of {told}, or "
            "to 0, as many as there are"
        )
    return found


def _slice(device: jax.Device) -> int:
    return getattr(device, "slice_index", None) or 0


def logical_axes(name: str, ndim: int) -> tuple[str | None, ...]:
    """The logical axis of each axis of one parameter.

    Args:
        name: from `parameter_names`, such as "blocks/mixer/out/kernel".
        ndim: its number of axes.

    Raises:
        InputError: no row of the table matches.
    """
    below_blocks = name.startswith("blocks/")
    rows = [axes for pattern, axes in PARAMETER_AXES if re.fullmatch(pattern, name)]
    if not rows:
        raise InputError(f"parameter {name!r} has no row in PARAMETER_AXES of pom_jax/training/sharding.py")
    axes: list[str | None] = ["layers"] if below_blocks else []
    for axis in rows[0]:
        if isinstance(axis, EllipsisType):
            axes += [None] * (ndim - below_blocks - len(rows[0]) + 1)
        else:
            axes.append(axis)
    return tuple(axes)


def parameter_names(params: Any) -> dict[str, str]:
    """The name under which the table knows each parameter, by its path below `params`.

    It is the path, but a mixer that is attention as a whole goes by the name of a hybrid's half: its output
    kernel [H, d, D] looks like that of PoM, [K, E, D].
    """
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    attention = [path.removesuffix("query/kernel") for path in paths if path.endswith("mixer/query/kernel")]
    return {
        path: next((path.replace(m, f"{m}attention/") for m in attention if path.startswith(m)), path)
        for path in paths
    }


def parameter_shardings(params: Any, mesh: Mesh) -> Any:
    """How each parameter is cut over the mesh, by the two tables.

    Args:
        params: nested dicts of arrays or of their shapes.
        mesh: from `make_mesh`.

    Returns:
        A tree of `NamedSharding` like `params`.
    """
    names = parameter_names(params)

    def cut(size: int, axis: str | None) -> tuple[str, ...] | None:
        along = tuple(name for name in MESH_AXES[axis] if mesh.shape[name] > 1) if axis else ()
        return along if along and size % math.prod(mesh.shape[name] for name in along) == 0 else None

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        axes = logical_axes(names[path_name(path)], len(leaf.shape))
        return NamedSharding(mesh, PartitionSpec(*map(cut, leaf.shape, axes)))

    return jax.tree.map_with_path(sharding, params)


def state_shardings(state: Any, mesh: Mesh, on_host: Collection[str] = ()) -> Any:
    """Shardings of a whole training state: averages and moments as the parameters, the rest on every device.

    Args:
        state: `TrainState` of arrays or shapes; averages and moments are recognised by their paths.
        mesh: from `make_mesh`.
        on_host: fields of the state whose averages or moments lie on the host, see `offload.parts_on_host`.

    Returns:
        A tree of `NamedSharding` like `state`.
    """
    shardings = parameter_shardings(state.params, mesh)
    known = {path_name(path): at for path, at in jax.tree_util.tree_leaves_with_path(shardings)}
    paths, structure = jax.tree_util.tree_flatten_with_path(state)

    def sharding(part: str, owner: str | None) -> NamedSharding:
        at = NamedSharding(mesh, PartitionSpec()) if owner is None else known[owner]
        return at.with_memory_kind(HOST) if owner is not None and part in on_host else at

    parts = [path_name(path[:1]) for path, _ in paths]
    return jax.tree.unflatten(structure, map(sharding, parts, owners(state)))


def owners(state: Any) -> list[str | None]:
    """For each leaf of a training state the path, below `params`, of the parameter that it belongs to.

    A parameter belongs to itself, moments and averages by the ends of their paths, and the rest to none.
    """
    known = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.params)}

    def owner(path: tuple) -> str | None:
        parts = path_name(path).split("/")
        return next((p for p in ("/".join(parts[i:]) for i in range(len(parts))) if p in known), None)

    return [owner(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis cut over `data` and `fsdp`, whatever the array's other axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch(batch_size: int, accumulate: int, mesh: Mesh, film_every: int = 1) -> None:
    """Raises InputError unless a batch divides into `accumulate` slices over the devices that share it.

    Of each device's share one clip of `film_every` is a film.
    """
    devices = math.prod(mesh.shape[name] for name in BATCH_AXES)
    if batch_size < 1 or accumulate < 1 or batch_size % (accumulate * devices * film_every):
        shared = " x ".join(f"mesh.{name}={mesh.shape[name]}" for name in BATCH_AXES)
        films = f", each with one film of diffusion.film_every={film_every} clips" if film_every > 1 else ""
        raise InputError(
            f"data.batch_size={batch_size} must be a positive multiple of {accumulate * devices * film_every}"
            f": optimizer.accumulate={accumulate} slices over {shared}{films}"
        )


def check_model(model: Any, mesh: Mesh | AbstractMesh) -> None:
    """Raises InputError unless a model divides over the mesh.

    Args:
        model: of `models.build`, or its configuration, checked before.
        mesh: from `make_mesh`.
    """
    width, tokens = model.width, count_tokens(model)
    registers = getattr(model, "registers", 0)
    of = f"the tokens, {tokens - registers} patches" + (f" and model.registers={registers}" * bool(registers))
    rules = [
        ("fsdp", "model.width", width),
        ("tensor", "model.ffn_expansion * model.width", model.ffn_expansion * width),
        ("context", of, tokens),
    ]
    if model.mixer != "attention":
        rules.append(("tensor", "model.expansion * model.width", model.expansion * width))
    if has_attention(model):
        rules.append(("tensor", "model.num_heads", model.num_heads))
    for axis, what, size in rules:
        if size % mesh.shape[axis]:
            raise InputError(f"mesh.{axis}={mesh.shape[axis]} does not divide {what} = {size}: change one")
