"""The mixer's three passes over tokens, each in two forms with one result: naive and lean.

Naive expands all tokens at once and leaves the derivative to JAX, which keeps about six arrays of B N K E
numbers for the backward pass. Lean works run by run and keeps the tokens and the projections of their gates,
one such array: the backward pass recomputes the features of a run when it needs them. That is ten matrix
products in place of nine. Lean differentiates in reverse mode only; its scan runs along the tokens, so where
these are split over devices each runs along its own (`ops.mesh.where_tokens_are`).

Positions get no gradient, here as there.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from pom_jax.ops.prefix import prefix_sum
from pom_jax.ops.recipe import (
    FeatureWeights,
    ReadWeights,
    Recipe,
    features,
    gate_projections,
    gather,
    read,
)
from pom_jax.ops.runs import Runs, pick, plan_runs
from pom_jax.ops.states import State, state_mean

Means = tuple[Array, ...]
CausalWeights = tuple[FeatureWeights, ReadWeights]


def frame_sums(
    recipe: Recipe,
    weights: FeatureWeights,
    x: Array,
    token_weights: Array | None,
    positions: Array | None,
    lean: bool,
) -> Array:
    """Sums the features of each frame.

    Args:
        recipe: of the mixer.
        weights: of its features.
        x: [B, T, L, D].
        token_weights: [B or 1, T, L] float32, None if all weigh 1.
        positions: [B or 1, T, L, axes] float32, None if the recipe needs none.
        lean: which twin.

    Returns:
        [B, T, *F] float32.
    """
    if not lean:
        return _sums(recipe, weights, x, token_weights, positions)
    runs = plan_runs(*x.shape[:3])
    if runs.padded and token_weights is None:
        token_weights = jnp.ones((1, *x.shape[1:3]), jnp.float32)
    return _lean_sums(recipe, runs, weights, x, token_weights, positions)


def read_frames(
    recipe: Recipe, weights: ReadWeights, x: Array, means: Means, positions: Array | None, lean: bool
) -> Array:
    """Every token reads the means of its frame.

    Args:
        recipe: of the mixer.
        weights: of its gates and output.
        x: [B, T, L, D].
        means: for each read [B, T, *F] float32.
        positions: [B or 1, T, L, axes] float32, None if the recipe needs none.
        lean: which twin.

    Returns:
        [B, T, L, D] in the compute dtype.
    """
    if not lean:
        z = gate_projections(weights, x)
        return read(recipe, weights, z, [mean[:, :, None] for mean in means], positions)
    return _lean_read(recipe, plan_runs(*x.shape[:3]), weights, x, means, positions)


def causal(
    recipe: Recipe,
    weights: CausalWeights,
    x: Array,
    context: Array,
    token_weights: Array | None,
    positions: tuple[Array | None, Array | None],
    before: State,
    lean: bool,
) -> tuple[Array, State]:
    """Every token reads the mean of all context tokens up to its own place.

    Args:
        recipe: of the mixer; its only read is "all".
        weights: of its features; of its gates and output.
        x: [B, N, D].
        context: [B, N, D].
        token_weights: [B, N] float32, None if all weigh 1.
        positions: of x and of the context, [B or 1, N, axes] float32, None if the recipe needs none.
        before: state with sum [B, 1, *F] that all tokens see.
        lean: which twin.

    Returns:
        [B, N, D] in the compute dtype, and the state [B, 1, *F] after all tokens.
    """
    zero = _zero((weights, x, context, token_weights))
    start = State(before.sum[:, 0] + zero, before.count[:, 0] + zero)
    if lean:
        runs = plan_runs(x.shape[0], 1, x.shape[1])
        if runs.padded and token_weights is None:
            token_weights = jnp.ones(x.shape[:2], jnp.float32)
        y, after = _lean_causal(recipe, runs, weights, x, context, token_weights, positions, start)
    else:
        z = gate_projections(weights[1], x)
        y, after = _causal_run(recipe, weights, z, context, token_weights, start, positions)
    return y, State(after.sum[:, None], after.count[:, None])


def _sums(
    recipe: Recipe, weights: FeatureWeights, x: Array, token_weights: Array | None, positions: Array | None
) -> Array:
    found = features(recipe, weights, x, positions)
    if token_weights is not None:
        found = [f * token_weights[..., None] for f in found]
    return gather(recipe, [f.sum(-2) for f in found])


def _in_float32(tree: Any) -> Any:
    """Zeros for sums of gradients: adding many runs up in a narrow dtype would lose bits."""
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.float32), tree)


def _like(tree: Any, other: Any) -> Any:
    return jax.tree.map(lambda leaf, model: leaf.astype(model.dtype), tree, other)


def _add(first: Any, second: Any) -> Any:
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), first, second)


def _none(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def _room(function: Callable[..., Any], *arguments: Any) -> Any:
    """Zeros like what a function returns, for runs to be put into."""
    zero = _zero(arguments)
    shapes = jax.eval_shape(function, *arguments)
    return jax.tree.map(lambda s: jnp.broadcast_to(zero.astype(s.dtype), s.shape), shapes)


def _output(x: Array, *_: Any) -> Array:
    """What tokens [..., D] become has their shape, and depends on the rest of the arguments too."""
    return x


def _zero(tree: Any) -> Array:
    """0 that varies over devices as the arrays do: within `shard_map` a loop must start with what it ends."""
    return functools.reduce(
        jnp.add, [jnp.zeros_like(leaf, jnp.float32).sum() for leaf in jax.tree.leaves(tree)]
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _lean_sums(
    recipe: Recipe,
    runs: Runs,
    weights: FeatureWeights,
    x: Array,
    token_weights: Array | None,
    positions: Array | None,
) -> Array:
    tokens = runs.pad((x, token_weights, positions))

    def step(_: None, run: Array) -> tuple[None, Array]:
        return None, _sums(recipe, weights, *runs.at(tokens, run))

    return runs.total(lax.scan(step, None, jnp.arange(runs.count))[1])


def _lean_sums_forward(recipe: Recipe, runs: Runs, *arguments: Any) -> tuple[Array, Any]:
    return _lean_sums(recipe, runs, *arguments), arguments


def _lean_sums_backward(recipe: Recipe, runs: Runs, kept: Any, slope: Array) -> Any:
    weights, *tokens = kept
    tokens, slopes = runs.pad(tuple(tokens)), runs.group(slope)

    def step(carry: Any, run: Array) -> tuple[Any, None]:
        total, by_tokens = carry
        x, token_weights, positions = runs.at(tokens, run)
        _, pull = jax.vjp(lambda w, x, t: _sums(recipe, w, x, t, positions), weights, x, token_weights)
        by_weights, *by_run = pull(runs.of_run(slopes, run))
        return (_add(total, by_weights), runs.put(by_tokens, run, tuple(by_run))), None

    start = _in_float32(weights), _none(tokens[:2])
    (by_weights, by_tokens), _ = lax.scan(step, start, jnp.arange(runs.count))
    return _like(by_weights, weights), *runs.trim(by_tokens), _none(kept[3])


_lean_sums.defvjp(_lean_sums_forward, _lean_sums_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _lean_read(
    recipe: Recipe, runs: Runs, weights: ReadWeights, x: Array, means: Means, positions: Array | None
) -> Array:
    return _lean_read_forward(recipe, runs, weights, x, means, positions)[0]


def _lean_read_forward(
    recipe: Recipe, runs: Runs, weights: ReadWeights, x: Array, means: Means, positions: Array | None
) -> tuple[Array, Any]:
    tokens, grouped = runs.pad((x, positions)), [runs.group(mean[:, :, None]) for mean in means]

    def step(carry: Any, run: Array) -> tuple[Any, None]:
        x, place = runs.at(tokens, run)
        z = gate_projections(weights, x)
        y = read(recipe, weights, z, [runs.of_run(mean, run) for mean in grouped], place)
        return runs.put(carry, run, (y, z)), None

    start = _room(_output, tokens[0], weights, means), _room(gate_projections, weights, tokens[0])
    (y, z), _ = lax.scan(step, start, jnp.arange(runs.count))
    return runs.trim(y), (weights, x, means, positions, z)


def _lean_read_backward(recipe: Recipe, runs: Runs, kept: Any, slope: Array) -> Any:
    weights, x, means, positions, z = kept
    beside, grouped = runs.pad((positions, slope)), [runs.group(mean[:, :, None]) for mean in means]

    def step(carry: Any, run: Array) -> tuple[Any, Any]:
        total, z = carry
        of_run = [runs.of_run(mean, run) for mean in grouped]
        place, slope = runs.at(beside, run)
        _, pull = jax.vjp(lambda w, z, m: read(recipe, w, z, m, place), weights, runs.at(z, run), of_run)
        by_weights, by_z, by_means = pull(slope)
        # The slope of a projection takes its place: two such arrays would be most of the memory.
        return (_add(total, by_weights), runs.put(z, run, by_z)), by_means

    (by_weights, by_z), by_means = lax.scan(step, (_in_float32(weights), z), jnp.arange(runs.count))
    _, pull = jax.vjp(gate_projections, weights, runs.pad(x))
    by_gates, by_x = pull(by_z)
    by_means = tuple(runs.total(mean[:, :, :, 0]) for mean in by_means)
    return _like(_add(by_weights, by_gates), weights), runs.trim(by_x), by_means, _none(positions)


_lean_read.defvjp(_lean_read_forward, _lean_read_backward)


def _causal_run(
    recipe: Recipe,
    weights: CausalWeights,
    z: list[Array],
    context: Array,
    token_weights: Array | None,
    before: State,
    positions: tuple[Array | None, Array | None],
) -> tuple[Array, State]:
    """Outputs of one run of tokens [B, c, D] after the state [B, *F] before it, and the state after it."""
    found = features(recipe, weights[0], context, positions[1])
    if token_weights is None:
        counts = jnp.arange(1, context.shape[1] + 1, dtype=jnp.float32)
        counts = jnp.broadcast_to(counts, context.shape[:2])
    else:
        found = [f * token_weights[..., None] for f in found]
        counts = prefix_sum(token_weights)
    sums = gather(recipe, [prefix_sum(f) for f in found]) + before.sum[:, None]
    counts = counts + before.count[:, None]
    y = read(recipe, weights[1], z, [state_mean(State(sums, counts))], positions[0])
    return y, State(sums[:, -1], counts[:, -1])


def _one_frame(tree: Any) -> Any:
    """[B, N, ...] -> [B, 1, N, ...], as `Runs` takes tokens."""
    return jax.tree.map(lambda leaf: leaf[:, None], tree)


def _no_frame(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[:, 0], tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _lean_causal(recipe: Recipe, runs: Runs, weights: CausalWeights, *arguments: Any) -> tuple[Array, State]:
    return _lean_causal_forward(recipe, runs, weights, *arguments)[0]


def _lean_causal_forward(
    recipe: Recipe, runs: Runs, weights: CausalWeights, *arguments: Any
) -> tuple[tuple[Array, State], Any]:
    *tokens, before = arguments
    padded = runs.pad(_one_frame(tuple(tokens)))

    def step(carry: Any, run: Array) -> tuple[Any, State]:
        found, before = carry
        x, context, token_weights, positions = _no_frame(runs.at(padded, run))
        z = gate_projections(weights[1], x)
        y, after = _causal_run(recipe, weights, z, context, token_weights, before, positions)
        return (runs.put(found, run, _one_frame((y, z))), after), before

    room = _room(_output, padded[0], weights, before), _room(gate_projections, weights[1], padded[0])
    ((y, z), after), starts = lax.scan(step, (room, before), jnp.arange(runs.count))
    return (_no_frame(runs.trim(y)), after), (weights, tuple(tokens), z, starts)


def _lean_causal_backward(recipe: Recipe, runs: Runs, kept: Any, slopes: tuple[Array, State]) -> Any:
    weights, tokens, z, starts = kept
    (x, *context), slope = runs.pad(_one_frame((tokens, slopes[0])))

    def step(carry: Any, run: Array) -> tuple[Any, None]:
        total, by_after, z, by_context = carry
        (context_run, token_weights, positions), z_run, slope_run = _no_frame(
            runs.at((context, z, slope), run)
        )
        before = jax.tree.map(lambda leaf: pick(leaf, run), starts)

        def outputs(weights: Any, z: Any, context: Array, token_weights: Any, before: State) -> Any:
            return _causal_run(recipe, weights, z, context, token_weights, before, positions)

        _, pull = jax.vjp(outputs, weights, z_run, context_run, token_weights, before)
        by_weights, by_z, *by_run, by_before = pull((slope_run, by_after))
        by_z, by_run = _one_frame((by_z, tuple(by_run)))
        return (
            _add(total, by_weights),
            by_before,
            runs.put(z, run, by_z),  # where the projection was
            runs.put(by_context, run, by_run),
        ), None

    start = _in_float32(weights), slopes[1], z, _none(tuple(context[:2]))
    found, _ = lax.scan(step, start, jnp.arange(runs.count), reverse=True)
    by_weights, by_before, by_z, by_context = found
    _, pull = jax.vjp(gate_projections, weights[1], x)
    by_gates, by_x = pull(by_z)
    by_weights = _like((by_weights[0], _add(by_weights[1], by_gates)), weights)
    return by_weights, *_no_frame(runs.trim((by_x, *by_context))), _none(tokens[3]), by_before


_lean_causal.defvjp(_lean_causal_forward, _lean_causal_backward)
