"""The whole mixer as a function: which tokens leave which state, and which states a token reads."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from pom_jax.errors import InputError, choose
from pom_jax.ops.frames import Tiles, check_drafts, frame_lengths, one_frame, tiles
from pom_jax.ops.mesh import (
    backend,
    batch_of_a_device,
    is_explicit,
    lay,
    parts,
    tokens_are_whole,
    where_tokens_are,
)
from pom_jax.ops.prefix import prefix_sum
from pom_jax.ops.reads import check_state, in_float32, initial_state, states_read
from pom_jax.ops.recipe import FeatureWeights, ReadWeights, Recipe, features, gate_projections, gather, read
from pom_jax.ops.rotary import check_positions
from pom_jax.ops.states import (
    STATE,
    FrameStates,
    State,
    check_tokens,
    empty_state,
    merge_states,
    state_mean,
)
from pom_jax.ops.twins import causal as causal_pass
from pom_jax.ops.twins import frame_sums, read_frames

COUNTS = ("tokens", "frames")
IMPLEMENTATIONS = ("auto", "naive", "lean")

EXPLICIT = (
    "arrays on a mesh with Explicit axes do not allow: make the mesh with "
    "jax.make_mesh(sizes, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))"
)

# Bytes of a device's expanded features [B, N, *F] in float32 from which "auto" is lean. Lean takes ten
# products and a sixth of the memory, naive nine; the loop of lean is not measured on accelerators yet.
LEAN_FROM = {"cpu": 64 * 2**20}
LEAN_FROM_ELSEWHERE = 2**30


def mix(
    recipe: Recipe,
    weights: tuple[FeatureWeights, ReadWeights],
    x: Array,
    context: Array | None = None,
    *,
    mask: Array | None = None,
    causal: bool = False,
    frames: int | Sequence[int] | None = None,
    context_frames: int | Sequence[int] | None = None,
    positions: Array | np.ndarray | None = None,
    context_positions: Array | np.ndarray | None = None,
    state: State | FrameStates | None = None,
    drafts: int = 0,
    count: str = "tokens",
    implementation: str = "auto",
) -> tuple[Array, State | FrameStates | None]:
    """Context tokens leave states, query tokens read them: `nn.PoM` without its parameters.

    Arguments are those of `nn.PoM` and its call; `weights` are those of features and reads.

    Returns:
        [B, M, D] in the compute dtype, and the state after all context tokens, None with a mask for each
        query, which leaves as many states.

    Raises:
        InputError: shapes, lengths, positions, mask or state do not fit each other or the recipe.
    """
    itself = context is None or context is x
    context = x if context is None else context
    check_tokens(x, context, mask)
    check_state(recipe, state, x.shape[0])
    state = in_float32(state)
    _check_choices(causal, count, implementation)
    here, there = _places(recipe, x, context, itself, positions, context_positions, state)
    x, context = x.astype(recipe.dtype), context.astype(recipe.dtype)
    if mask is not None and mask.ndim == 3:
        _check_rows(recipe, causal, frames, context_frames, drafts, state, implementation)
        return _mix_rows(recipe, weights, x, context, mask, (here, there)), None
    if causal or frames is None:
        check_drafts(drafts, None)
    lean = _is_lean(recipe, x, context, implementation)
    weigh, context, there = _leave_out(mask, context, there)
    tokens, places = (x, context), (here, there)
    if causal:
        _check_causal(x, context, frames, context_frames)
        if recipe.reads == ("all",) and count == "tokens" and x.shape[1]:
            return _mix_causal(recipe, weights, tokens, weigh, places, state, lean)
        frames = context_frames = (1,) * x.shape[1]
    cuts = _tiles(x, context, frames, context_frames, itself)
    if not tokens_are_whole() and 1 in (cuts[0].parts, cuts[1].parts):
        lean = False  # its runs would gather the tokens
    check_drafts(drafts, cuts[0].frames)
    if not cuts[0].frames:  # nobody reads, and nothing is left
        return x, initial_state(recipe, x.shape[0]) if state is None else state
    y, after = _mix_frames(recipe, weights, tokens, weigh, cuts, places, state, drafts, count, lean)
    return y, after if state is None or context.shape[1] else state  # no tokens are no frame


def read_state(
    recipe: Recipe,
    weights: ReadWeights,
    x: Array,
    state: State | FrameStates,
    *,
    positions: Array | np.ndarray | None = None,
) -> Array:
    """Tokens read a state that others left, and leave nothing.

    Args:
        recipe: of the mixer; its reads are "all" and "past" (the state's total) or "last".
        weights: of its gates and output.
        x: [B, M, D].
        state: sum [B, 1, *F], count [B, 1].
        positions: of x, as in `mix`.

    Returns:
        [B, M, D] in the compute dtype.

    Raises:
        InputError: shapes do not fit, or the mixer reads "own" states, which tokens that leave none lack.
    """
    check_tokens(x, x, None)
    if state is None:
        raise InputError("read needs the state that others left: see write, or init_state for an empty one")
    check_state(recipe, state, x.shape[0])
    state = in_float32(state)
    if "own" in recipe.reads:
        raise InputError(
            f"reads = {recipe.reads}: read takes no state of its own; call the layer with state="
        )
    place = _position(recipe, "positions", x, positions, default=state is None)
    states = {"last": state.last if isinstance(state, FrameStates) else None}
    total = state.total if isinstance(state, FrameStates) else state
    means = [state_mean(states.get(name) or total) for name in recipe.reads]
    z = gate_projections(weights, x.astype(recipe.dtype))
    return read(recipe, weights, z, means, place)


def _check_choices(causal: bool, count: str, implementation: str) -> None:
    choose("implementation", implementation, IMPLEMENTATIONS)
    choose("count", count, COUNTS)
    if not isinstance(causal, bool | np.bool_):
        raise InputError(
            f"causal = {causal!r} must be True or False, known when the call is compiled: set it in the "
            'layer, close over it, or jax.jit(layer.apply, static_argnames=("causal", "frames"))'
        )


def _check_causal(
    x: Array,
    context: Array,
    frames: int | Sequence[int] | None,
    context_frames: int | Sequence[int] | None,
) -> None:
    if frames is not None or context_frames is not None:
        raise InputError(
            "causal=True lets a token see tokens before it, frames whole frames: give one of them"
        )
    if x.shape[1] != context.shape[1]:
        raise InputError(
            f"causal=True needs a context token for each query, but there are {x.shape[1]} queries and "
            f"{context.shape[1]} context tokens; context_frames= relates unequal numbers"
        )


def _leave_out(
    mask: Array | None, context: Array, place: Array | None
) -> tuple[Array | None, Array, Array | None]:
    """The weight of each token [B, N], None if all weigh 1; context and positions, 0 where a weight is 0.

    Zero times what overflows is no number: a token that is left out must not be expanded. What slope its
    weight would have is then not known, and 0.
    """
    if mask is None:
        return None, context, place
    weigh = jnp.broadcast_to(mask, context.shape[:2]).astype(jnp.float32)
    out = weigh == 0
    if place is not None and place.shape[0] == out.shape[0]:
        place = jnp.where(out[..., None], 0, place)
    return jnp.where(out, 0, weigh), jnp.where(out[..., None], 0, context), place


def _is_lean(recipe: Recipe, x: Array, context: Array, implementation: str) -> bool:
    if implementation == "lean" and is_explicit(x):
        raise InputError(f"implementation = 'lean' cuts tokens in runs, which {EXPLICIT}")
    if implementation == "lean" and not isinstance(x.shape[0], int):
        raise InputError(
            f"implementation = 'lean' needs to know the batch, which is {x.shape[0]}: export with 'auto'"
        )
    if implementation == "naive" or is_explicit(x) or not x.size or not context.size:
        return False
    if implementation == "lean":
        return True
    if not isinstance(x.shape[0], int):  # exported for any batch
        return False
    tokens = batch_of_a_device(x.shape[0]) * max(x.shape[1], context.shape[1]) // parts("tokens")
    size = 4 * tokens * math.prod(recipe.features)
    return size >= LEAN_FROM.get(backend(), LEAN_FROM_ELSEWHERE)


def _check_rows(
    recipe: Recipe,
    causal: bool,
    frames: int | Sequence[int] | None,
    context_frames: int | Sequence[int] | None,
    drafts: int,
    state: State | FrameStates | None,
    implementation: str,
) -> None:
    given = {
        "causal=True": causal,
        "frames=": frames is not None,
        "context_frames=": context_frames is not None,
        "drafts=": drafts != 0,
        "state=": state is not None,
        f"reads={recipe.reads}": recipe.reads != ("all",),
        "implementation='lean'": implementation == "lean",
    }
    for name, present in given.items():
        if present:
            raise InputError(
                f"a mask [B, M, N] has a row for each query and goes without {name}: put the order of tokens "
                "into the mask, or give a mask [B, N]"
            )


def _mix_rows(
    recipe: Recipe,
    weights: tuple[FeatureWeights, ReadWeights],
    x: Array,
    context: Array,
    mask: Array,
    places: tuple[Array | None, Array | None],
) -> Array:
    """A mask for each query gives each a state of its own, at the quadratic cost that such a mask has."""
    rows = jnp.broadcast_to(mask, (x.shape[0], *mask.shape[1:])).astype(jnp.float32)
    sums = [
        # The default precision of an accelerator's product would round the features to bfloat16.
        jnp.einsum("bmn,bne->bme", rows, f, precision=lax.Precision.HIGHEST)
        for f in features(recipe, weights[0], context, places[1])
    ]
    mean = state_mean(State(gather(recipe, sums), rows.sum(-1)))
    return read(recipe, weights[1], gate_projections(weights[1], x), [mean], places[0])


def _tiles(
    x: Array,
    context: Array,
    frames: int | Sequence[int] | None,
    context_frames: int | Sequence[int] | None,
    itself: bool,
) -> tuple[Tiles, Tiles]:
    """Tiles of the queries and of the context, tokens of both being cut over the devices."""
    queries, tokens = x.shape[1], context.shape[1]
    devices = 1 if is_explicit(x) else parts("tokens")

    def cut(lengths: tuple[int, ...]) -> Tiles:
        count = sum(lengths)
        if devices > 1 and count and count % devices == 0:
            return tiles(lengths, devices)
        found = one_frame(count) if len(lengths) == 1 else tiles(lengths)
        if is_explicit(x) and not found.exact:
            raise InputError(f"frames of several lengths move tokens about, which {EXPLICIT}")
        return found

    if frames is None:
        if context_frames is not None:
            raise InputError(
                f"context_frames = {context_frames} needs frames, the lengths of the queries' frames"
            )
        return cut((queries,)), cut((tokens,))
    lengths = frame_lengths(frames, queries)
    given = lengths if itself and context_frames is None else context_frames
    others = frame_lengths(frames if given is None else given, tokens, "context_frames")
    if len(lengths) != len(others):
        raise InputError(
            f"frames {lengths} are {len(lengths)} and context_frames {others} are {len(others)}: "
            "each frame of queries sees the context frames up to its own number"
        )
    return cut(lengths), cut(others)


def _mix_causal(
    recipe: Recipe,
    weights: tuple[FeatureWeights, ReadWeights],
    tokens: tuple[Array, Array],
    weigh: Array | None,
    places: tuple[Array | None, Array | None],
    state: State | FrameStates | None,
    lean: bool,
) -> tuple[Array, State]:
    x, context = tokens
    before = empty_state(x.shape[0], recipe.features) if state is None else state
    assert isinstance(before, State)
    if tokens_are_whole() or is_explicit(x):
        return causal_pass(recipe, weights, x, context, weigh, places, before, lean)
    if x.shape[1] % parts("tokens"):
        return causal_pass(recipe, weights, x, context, weigh, places, before, False)
    return _causal_parts(recipe, weights, tokens, weigh, places, before, lean)


def _causal_parts(
    recipe: Recipe,
    weights: tuple[FeatureWeights, ReadWeights],
    tokens: tuple[Array, Array],
    weigh: Array | None,
    places: tuple[Array | None, Array | None],
    before: State,
    lean: bool,
) -> tuple[Array, State]:
    """`causal_pass` of tokens that are cut over devices: each goes on where the parts before its own ended.

    What they left is told first, which expands the context twice; it is all that is sent.
    """
    x, context = tokens
    batch, devices = x.shape[0], parts("tokens")

    def leave(weights: FeatureWeights, *own: Any) -> Array:
        x, weigh, place = jax.tree.map(lambda a: a[:, None], own)
        return frame_sums(recipe, weights, x, weigh, place, lean)

    sums = where_tokens_are(leave, weights[0], context, weigh, places[1])  # [B, devices, *F]
    sums = lay(sums, "batch", *(None,) * (sums.ndim - 1))
    if weigh is None:
        counts = jnp.full((batch, devices), context.shape[1] // devices, jnp.float32)
    else:
        counts = lay(weigh.reshape(batch, devices, -1).sum(-1), "batch", None)
    starts = State(*(prefix_sum(a, exclusive=True) + b for a, b in zip((sums, counts), before, strict=True)))

    def go_on(weights: Any, x: Array, context: Array, weigh: Any, places: Any, start: State) -> Array:
        return causal_pass(recipe, weights, x, context, weigh, places, start, lean)[0]

    y = where_tokens_are(go_on, weights, x, context, weigh, places, starts)
    return y, merge_states(before, State(sums.sum(1, keepdims=True), counts.sum(1, keepdims=True)))


def _mix_frames(
    recipe: Recipe,
    weights: tuple[FeatureWeights, ReadWeights],
    tokens: tuple[Array, Array],
    weigh: Array | None,
    cuts: tuple[Tiles, Tiles],
    places: tuple[Array | None, Array | None],
    state: State | FrameStates | None,
    drafts: int,
    count: str,
    lean: bool,
) -> tuple[Array, State | FrameStates]:
    (x, context), (to, of) = tokens, cuts
    if weigh is not None:
        weigh = of.split(weigh)
    elif of.padded:
        weigh = jnp.ones((1, *of.used.shape), jnp.float32)
    if weigh is not None and of.padded:
        weigh = weigh * of.used
    place = None if places[1] is None else of.split(places[1])
    sum_up, look_up = (functools.partial(each, recipe, lean=lean) for each in (frame_sums, read_frames))
    if lean and of.parts > 1:
        sum_up, look_up = (functools.partial(where_tokens_are, each) for each in (sum_up, look_up))
    sums = sum_up(weights[0], of.split(context), weigh, place)
    counts = jnp.asarray(of.lengths, jnp.float32)[None] if weigh is None else of.sum_by_frame(weigh.sum(-1))
    sums = checkpoint_name(of.sum_by_frame(sums), STATE)
    own = State(sums, jnp.broadcast_to(counts, (x.shape[0], of.frames)))
    if count == "frames":
        own = State(state_mean(own), (own.count != 0).astype(jnp.float32))
    states, after = states_read(recipe, own, state, drafts)
    means = tuple(to.spread(state_mean(one)) for one in states)
    place = None if places[0] is None else to.split(places[0])
    return to.join(look_up(weights[1], to.split(x), means, place)), after


def _places(
    recipe: Recipe,
    x: Array,
    context: Array,
    itself: bool,
    positions: Array | np.ndarray | None,
    context_positions: Array | np.ndarray | None,
    state: State | FrameStates | None,
) -> tuple[Array | None, Array | None]:
    """The positions of queries and context, [B or 1, tokens, axes] float32, None if the recipe needs none."""
    if recipe.axes == 0:
        if positions is not None or context_positions is not None:
            raise InputError(
                "positions were given to a mixer with neither rotary nor phase; it has no use for them"
            )
        return None, None
    first = _position(recipe, "positions", x, positions, default=state is None)
    if itself and context_positions is None:
        return first, first
    if positions is not None and context_positions is None:
        raise InputError(
            "context_positions are needed: positions, given or of the layer's grid, are those of x; leave "
            "the context out where x mixes with itself"
        )
    return first, _position(recipe, "context_positions", context, context_positions, default=state is None)


def _position(
    recipe: Recipe, name: str, tokens: Array, given: Array | np.ndarray | None, default: bool
) -> Array | None:
    batch, length, _ = tokens.shape
    axes = recipe.axes
    if axes == 0:
        if given is not None:
            raise InputError(
                "positions were given to a mixer with neither rotary nor phase; it has no use for them"
            )
        return None
    if given is None:
        if axes > 1 or not default:
            way = (
                f"{axes} axes have no default: see ops.grid_positions, or the layer's grid"
                if default
                else "a stream does not know where its tokens are: on one axis, say jnp.arange(start, stop)"
            )
            raise InputError(f"{name} [{length}, {axes}] are needed; {way}")
        given = np.arange(length, dtype=np.float32)
    return lax.stop_gradient(check_positions(name, given, batch, length, axes))
