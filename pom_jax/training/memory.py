"""The memory of one device: what it has, what the arrays of a run take, and what computing adds."""

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from pom_jax import cluster
from pom_jax.ops.mesh import backend
from pom_jax.training.offload import HOST
from pom_jax.training.sharding import owners

COPIES = 2  # of the state, beside it, while a CPU writes it: a first save of 1 GiB of noise takes 2.1 more


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        parameters, optimiser, averages, batch: of those arrays, or of the device's share of them.
        work: all else that a step needs: activations, gradients, the compiler's own buffers.
        host: of the arrays that wait in the memory of the host, which the others leave out.
        copied: what comes on top while a checkpoint is written, at least. On a CPU it is written from the
            memory of the state, of which the next step makes another, and the storage encodes it beside them;
            elsewhere it is written from the host.
    """

    parameters: int
    optimiser: int
    averages: int
    batch: int
    work: int = 0
    host: int = 0
    copied: int = 0

    @property
    def together(self) -> int:
        """The sum of what lies on the device in a step."""
        return self.parameters + self.optimiser + self.averages + self.batch + self.work


def of_arrays(state: Any, batch: Any) -> Memory:
    """What a state and a batch take, exactly; their leaves are shapes or arrays with shardings."""
    return Memory(
        parameters=_share(state.params),
        optimiser=_share(state.opt_state),
        averages=_share(state.ema),
        batch=_share(batch),
        host=_share(state, on_host=True),
        copied=COPIES * (_share(state) + _share(state, on_host=True)) if backend() == "cpu" else 0,
    )


def largest_on_host(state: Any) -> int:
    """The most that is on the host for one parameter: its moments and averages."""
    sizes = dict.fromkeys(names := owners(state), 0)
    for name, leaf in zip(names, jax.tree.leaves(state), strict=True):
        sizes[name] += _share(leaf, on_host=True)
    return max(sizes.values())


def of_program(compiled: Any, state: Any, batch: Any) -> Memory:
    """What the compiler says that a step needs, or, where it says nothing, what the arrays take."""
    arrays, said = of_arrays(state, batch), compiled.memory_analysis()
    if said is None:
        return arrays
    outputs = said.output_size_in_bytes - said.alias_size_in_bytes  # the new state takes the old one's place
    whole = said.argument_size_in_bytes + outputs + said.temp_size_in_bytes
    if not said.host_argument_size_in_bytes:
        whole -= arrays.host  # a CPU's compiler takes the memory of the host for that of the device
    return dataclasses.replace(arrays, work=max(0, whole - arrays.together))


def table(*columns: tuple[str, Memory], limit: int | None = None) -> str:
    """Memories side by side under their names, a line each part, and what a device has, if that is known."""
    largest = max(memory.together for _, memory in columns)
    unit, size = ("GiB", 2**30) if largest > 8 * 2**30 else ("MiB", 2**20)
    names = ["parameters", "optimiser", "averages", "batch", "work", "together"]
    lines = [f"{f'memory of a device, {unit}':<24}" + "".join(f"{name:>15}" for name, _ in columns)]
    for name in names:
        values = [getattr(memory, name) / size for _, memory in columns]
        lines.append(f"  {name:<22}" + "".join(f"{value:>15,.2f}" for value in values))
    if limit is not None:
        lines[-1] += f" of {limit / size:,.2f}"
    for name, field in (("more while it is saved", "copied"), ("kept on the host", "host")):
        values = [getattr(memory, field) / size for _, memory in columns]
        if any(values):
            lines.append(f"  {name:<22}" + "".join(f"{value:>15,.2f}" for value in values))
    return "\n".join(lines)


def device_bytes() -> int | None:
    """What one device has for programs; None where it does not say. Called by all processes.

    CPU devices share the memory of the machine, those of all its processes equally.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return host_bytes()
    return (device.memory_stats() or {}).get("bytes_limit")


def host_bytes() -> int | None:
    """An equal share of the machine's memory for each of its devices; None where the system does not say.

    What a container or a batch system allows counts, where it is less. Called by all processes.
    """
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
    return min([whole, *group_limits()]) // (jax.local_device_count() * cluster.on_this_host())


def group_limits(root: Path = Path("/")) -> Iterator[int]:
    """Bytes that the control groups of Linux, of version 1 or 2, allow this process; none without them.

    Args:
        root: of the file system.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        own = Path(path.lstrip("/"))
        for folder in (own, *own.parents):  # what holds for a group holds for those in it
            try:
                said = (root / "sys/fs/cgroup" / top / folder / name).read_text().strip()
            except OSError:
                continue
            if said.isdigit():  # not "max"
                yield int(said)


def _share(tree: Any, on_host: bool = False) -> int:
    """Bytes of one device's part of all leaves that lie on it, or on its host."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if (leaf.sharding.memory_kind == HOST) == on_host]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
