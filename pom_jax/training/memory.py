"""The memory of one device: what the arrays of a run take, what computing adds, and whether it fits."""

import dataclasses
import math
import os
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pom_jax.errors import InputError

# What to turn where memory lacks, in this order: the name of the next policy of rematerialisation.
LEANER = {"none": "dots", "dots": "states", "states": "full"}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        parameters, optimiser, averages, batch: of those arrays, or of the device's share of them.
        work: all else that a step needs: activations, gradients, the compiler's own buffers.
    """

    parameters: int
    optimiser: int
    averages: int
    batch: int
    work: int = 0

    @property
    def together(self) -> int:
        """The sum."""
        return self.parameters + self.optimiser + self.averages + self.batch + self.work


def of_arrays(state: Any, batch: Any) -> Memory:
    """What a state and a batch take, exactly; their leaves are shapes or arrays with shardings."""
    return Memory(
        parameters=_share(state.params),
        optimiser=_share(state.opt_state),
        averages=_share(state.ema),
        batch=_share(batch),
    )


def of_program(compiled: Any, state: Any, batch: Any) -> Memory:
    """What the compiler says that a step needs, or, where it says nothing, what the arrays take."""
    arrays, said = of_arrays(state, batch), compiled.memory_analysis()
    if said is None:
        return arrays
    outputs = said.output_size_in_bytes - said.alias_size_in_bytes  # the new state takes the old one's place
    whole = said.argument_size_in_bytes + outputs + said.temp_size_in_bytes
    return dataclasses.replace(arrays, work=max(0, whole - arrays.together))


def table(*columns: tuple[str, Memory], limit: int | None = None) -> str:
    """Memories side by side under their names, a line each part, and what a device has, if that is known."""
    largest = max(memory.together for _, memory in columns)
    unit, size = ("GiB", 2**30) if largest > 8 * 2**30 else ("MiB", 2**20)
    names = [field.name for field in dataclasses.fields(Memory)] + ["together"]
    lines = [f"{f'memory of a device, {unit}':<24}" + "".join(f"{name:>15}" for name, _ in columns)]
    for name in names:
        values = [getattr(memory, name) / size for _, memory in columns]
        lines.append(f"  {name:<22}" + "".join(f"{value:>15,.2f}" for value in values))
    if limit is not None:
        lines[-1] += f" of {limit / size:,.2f}"
    return "\n".join(lines)


def device_bytes() -> int | None:
    """What one device has for programs; None where it does not say. Of CPUs an equal share of the machine."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
        except (ValueError, OSError, AttributeError):
            return None
    return (device.memory_stats() or {}).get("bytes_limit")


def check_fits(memory: Memory, config: ConfigDict, mesh: Mesh, limit: int | None) -> None:
    """Raises InputError if a step needs more than a device has; says by how much and what to turn.

    Args:
        memory: of a device.
        config: of the run.
        mesh: its devices.
        limit: `device_bytes()`; nothing is checked where that is not known.
    """
    if limit is None or memory.together <= limit:
        return
    lack = memory.together - limit
    what = "a training step" if memory.work else "the state of this run alone"
    raise InputError(
        f"{what} needs {_gib(memory.together)} of each device, which has {_gib(limit)}: {_gib(lack)} too "
        f"much. What saves memory: {'; '.join(_knobs(memory, config, mesh))}"
    )


def _knobs(memory: Memory, config: ConfigDict, mesh: Mesh) -> list[str]:
    knobs = []
    sizes = dict(mesh.shape)
    free, fsdp = sizes.get("data", 1), sizes.get("fsdp", 1)
    state = memory.parameters + memory.optimiser + memory.averages
    if free > 1:
        saved = state * (1 - 1 / free)
        knobs.append(f"--config.mesh.fsdp={fsdp * free} ({_gib(saved)} of state, cut over more devices)")
    if config.optimizer.moments == "float32":
        knobs.append(f"--config.optimizer.moments=bfloat16 ({_gib(memory.optimiser / 2)})")
    if len(config.ema.decays) > 1:
        knobs.append(f"fewer ema.decays ({_gib(memory.averages / len(config.ema.decays))} each)")
    if memory.work:
        if (leaner := LEANER.get(config.model.remat)) is not None:
            knobs.append(f"--config.model.remat={leaner}" + ("" if leaner == "full" else " or full"))
        images = config.data.batch_size // config.optimizer.accumulate
        if images > math.prod(sizes.get(axis, 1) for axis in ("data", "fsdp")):
            knobs.append(f"--config.optimizer.accumulate={2 * config.optimizer.accumulate} or more")
        knobs.append("a smaller data.batch_size")
    if jax.default_backend() == "gpu":
        knobs.append("XLA_PYTHON_CLIENT_MEM_FRACTION=0.95, for JAX takes 75 % of a GPU by default")
    return [*knobs, "more devices"]


def _share(tree: Any) -> int:
    """Bytes of one device's part of all leaves."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"
