"""The update of a state that waits on the host: of one parameter after the other, with what belongs to it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pom_jax.ops.mesh import backend
from pom_jax.training import offload
from pom_jax.training.sharding import owners
from pom_jax.training.state import TrainState

Update = Callable[[TrainState], TrainState]


def streamed(update: Update, state: TrainState, good: jax.Array) -> TrainState:
    """update(state) within a traced function; each array of the new state lies in the memory of the old one.

    A CPU has one memory: what lies on the host is copied in name only. Elsewhere the moments and averages of
    a parameter come, are updated and go back before those of the next come. Each such update is a loop of one
    turn, or of none: what is copied in a loop is copied at its time. All else a compiler brings at once,
    before there is a gradient (that of TPUs also behind an `optimization_barrier`): nothing would be saved.

    Args:
        update: pure. What it makes of a parameter, its moments and its averages depends on no others, and is
            what was there before unless `good`.
        state: of arrays, its moments and averages in either memory.
        good: [] bool, known when the gradient is.
    """
    leaves, structure = jax.tree.flatten(state)
    waits = [offload.is_on_host(leaf) for leaf in leaves]
    if not any(waits):
        return update(state)
    if backend() == "cpu":
        return offload.back(update(offload.on_device(state)), like=state)

    def updated(changes: dict[int, jax.Array]) -> list[jax.Array]:
        given = [changes.get(place, leaf) for place, leaf in enumerate(blank)]
        return jax.tree.leaves(update(jax.tree.unflatten(structure, given)))

    # Zeros stand for what waits, but for that of one parameter. What becomes of them is never computed.
    pairs = zip(leaves, waits, strict=True)
    blank = [jnp.zeros(leaf.shape, leaf.dtype) if wait else leaf for leaf, wait in pairs]
    names = owners(state)
    new = updated({})  # the numbers that belong to no parameter
    for name in dict.fromkeys(name for name in names if name is not None):
        places = [place for place, owner in enumerate(names) if owner == name]
        for place, leaf in zip(places, _turn(updated, leaves, places, good), strict=True):
            new[place] = leaf
    return jax.tree.unflatten(structure, new)


def _turn(
    updated: Callable[[dict[int, jax.Array]], list[jax.Array]],
    leaves: list[jax.Array],
    places: list[int],
    good: jax.Array,
) -> list[jax.Array]:
    """The new leaves at `places`, computed in a loop of one turn, or the old ones."""
    old = [leaves[place] for place in places]

    def turn(carried: tuple[jax.Array, list[jax.Array]]) -> tuple[jax.Array, list[jax.Array]]:
        count, own = carried
        found = updated(dict(zip(places, offload.on_device(own), strict=True)))
        return count + 1, offload.back([found[place] for place in places], like=own)

    turns = good.astype(jnp.int32)
    return jax.lax.while_loop(lambda carried: carried[0] < turns, turn, (jnp.zeros_like(turns), old))[1]
