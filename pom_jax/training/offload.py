"""State that waits in the memory of the host while no computation needs it.

Its shardings say where it lies (their memory kind), and so do the types of arrays in traced functions. What
computes with such arrays brings them to the device first.
"""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from pom_jax.errors import InputError

HOST = "pinned_host"  # memory of the host that is never swapped, so that devices read and write it themselves
FIELDS = {"opt_state": "optimizer.offload", "ema": "ema.offload"}  # of a configuration, for parts of a state


def parts_on_host(config: ConfigDict, mesh: Mesh) -> tuple[str, ...]:
    """Which fields of a `TrainState` stay on the host, by `optimizer.offload` and `ema.offload`.

    Raises:
        InputError: the devices of the mesh cannot reach memory of the host.
    """
    wanted = {"opt_state": config.optimizer.get("offload", False), "ema": config.ema.get("offload", False)}
    parts = tuple(part for part, is_wanted in wanted.items() if is_wanted)
    if parts and not is_possible(mesh):
        asked = " and ".join(f"{FIELDS[part]}=True" for part in parts)
        raise InputError(
            f"{asked}: devices of the kind {mesh.devices.flat[0].device_kind!r} cannot keep arrays in the "
            f"memory of their host ({HOST}) with this version of JAX; leave it at False. mesh.fsdp and, of "
            "new runs, optimizer.moments=bfloat16 make the state of a device smaller too"
        )
    return parts


def is_possible(mesh: Mesh) -> bool:
    """Whether the devices of a mesh reach memory of the host."""
    try:
        NamedSharding(mesh, PartitionSpec(), memory_kind=HOST)
    except ValueError:
        return False
    return True


def is_on_host(array: Any) -> bool:
    """Whether an array, traced or not, lies in the memory of the host."""
    return jax.typeof(array).memory_space == jax.memory.Space.Host


def on_device(tree: Any) -> Any:
    """The same tree, with those of its arrays that lie on the host copied to the device."""
    return jax.tree.map(lambda a: jax.device_put(a, jax.memory.Space.Device) if is_on_host(a) else a, tree)


def back(tree: Any, like: Any) -> Any:
    """A traced tree, with those of its arrays copied to the host that lie there in the tree `like`."""
    return jax.tree.map(
        lambda a, b: jax.device_put(a, jax.memory.Space.Host) if is_on_host(b) else a, tree, like
    )
