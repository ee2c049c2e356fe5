"""Which states tokens read, frame by frame, and the one that is carried from call to call."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from pom_jax.errors import InputError
from pom_jax.ops.prefix import prefix_sum
from pom_jax.ops.recipe import Recipe
from pom_jax.ops.states import FrameStates, State, check_numbers, empty_state, merge_states

READS = ("all", "own", "last", "past")
# Frames up to which later ones do not enter the sums of those before, not even as zero times NaN. More would
# double the time that it takes to compile a layer.
FEW_FRAMES = 256


def initial_state(recipe: Recipe, batch: int) -> State | FrameStates:
    """The state before any token, of `batch` sequences; of two parts if the recipe reads "last"."""

    def none() -> State:  # each with arrays of its own, which can be donated
        return empty_state(batch, recipe.features)

    return FrameStates(none(), none()) if "last" in recipe.reads else none()


def check_state(recipe: Recipe, state: State | FrameStates | None, batch: int) -> None:
    """Raises an InputError unless a state is None, or fits the recipe and the batch."""
    if state is None:
        return
    wanted = FrameStates if "last" in recipe.reads else State
    if not isinstance(state, wanted):
        raise InputError(
            f"state is a {type(state).__name__}, but a mixer with reads = {recipe.reads} carries a "
            f"{wanted.__name__}: start from init_state"
        )
    for one in (state.total, state.last) if isinstance(state, FrameStates) else (state,):
        if not isinstance(one, State):
            raise InputError(f"state holds a {type(one).__name__} for a State: start from init_state")
        check_numbers("the sum of the state", one.sum)
        check_numbers("the count of the state", one.count)
        if one.sum.shape != (batch, 1, *recipe.features) or one.count.shape != (batch, 1):
            raise InputError(
                f"state has sum {tuple(one.sum.shape)} and count {tuple(one.count.shape)}; this mixer and "
                f"batch need {(batch, 1, *recipe.features)} and {(batch, 1)}"
            )


def in_float32(state: Any) -> Any:
    """A state as the mixer carries it, in whatever dtype it was kept meanwhile."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), state)


def states_read(
    recipe: Recipe, own: State, state: State | FrameStates | None, drafts: int
) -> tuple[list[State], State | FrameStates]:
    """What each frame sees, and what is carried on.

    Args:
        recipe: of the mixer.
        own: what each frame leaves, sum [B, T, *F] and count [B, T].
        state: what frames before these left, None for nothing.
        drafts: of the take that the frames begin with, as in `mix`.

    Returns:
        For each read of the recipe the state [B, T, *F] that it sees in each frame, and the state after them.
    """
    total = state.total if isinstance(state, FrameStates) else state
    none = empty_state(own.sum.shape[0], recipe.features)
    total = none if total is None else total
    last = state.last if isinstance(state, FrameStates) else none
    frames = own.count.shape[1] // (1 + drafts)
    take = jax.tree.map(lambda part: part[:, :frames], own)

    def run(part: Array, before: Array) -> Array:
        if frames > FEW_FRAMES:
            return prefix_sum(part) + before
        return lax.associative_scan(jnp.add, part, axis=1) + before

    def shift(before: Array, part: Array) -> Array:
        return jnp.concatenate([before, part[:, :-1]], 1)

    running = jax.tree.map(run, take, total)
    seen = {
        "all": running,
        "past": jax.tree.map(shift, total, running),
        "last": jax.tree.map(shift, last, take),
    }
    after = State(take.sum.sum(1, keepdims=True), take.count.sum(1, keepdims=True))
    after = merge_states(total, after)
    carried = after
    if "last" in recipe.reads:
        carried = FrameStates(after, State(take.sum[:, -1:], take.count[:, -1:]))
    if drafts:
        seen = {
            name: jax.tree.map(lambda part: jnp.concatenate([part] * (1 + drafts), 1), seen[name])
            for name in ("last", "past")
        }
        seen["all"] = merge_states(own, seen["past"])
    seen["own"] = own
    return [seen[name] for name in recipe.reads], carried
