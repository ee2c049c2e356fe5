"""The mixer's three passes over tokens, each in two forms with one result: naive and lean.

Naive expands all tokens at once and leaves the derivative to JAX, which keeps about six arrays of B N K E
numbers for the backward pass. Lean works run by run and keeps the tokens and the projections of their gates,
one such array: the backward pass recomputes the features of a run when it needs them. That is ten matrix
products in place of nine. Lean differentiates in reverse mode only; its scan runs along the tokens, so these
must not be split over devices.

Positions get no gradient, here as there.
"""

import functools
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
    start = State(before.sum[:, 0], before.count[:, 0])
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
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), tree)


def _like(tree: Any, other: Any) -> Any:
    return jax.tree.map(lambda leaf, model: leaf.astype(model.dtype), tree, other)


def _add(first: Any, second: Any) -> Any:
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), first, second)


def _none(positions: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, positions)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _lean_sums(
    recipe: Recipe,
    runs: Runs,
    weights: FeatureWeights,
    x: Array,
    token_weights: Array | None,
    positions: Array | None,
) -> Array:
    def step(_: None, run: tuple[Array, Array | None, Array | None]) -> tuple[None, Array]:
        return None, _sums(recipe, weights, *run)

    return runs.total(lax.scan(step, None, jax.tree.map(runs.cut, (x, token_weights, positions)))[1])


def _lean_sums_forward(recipe: Recipe, runs: Runs, *arguments: Any) -> tuple[Array, Any]:
    return _lean_sums(recipe, runs, *arguments), arguments


def _lean_sums_backward(recipe: Recipe, runs: Runs, kept: Any, slope: Array) -> Any:
    weights, x, token_weights, positions = kept
    slopes = runs.group(slope)

    def step(total: Any, run: Any) -> tuple[Any, Any]:
        number, x, token_weights, positions = run
        _, pull = jax.vjp(lambda w, x, t: _sums(recipe, w, x, t, positions), weights, x, token_weights)
        by_weights, *by_tokens = pull(runs.of_run(slopes, number))
        return _add(total, by_weights), by_tokens

    cut = jax.tree.map(runs.cut, (x, token_weights, positions))
    by_weights, by_tokens = lax.scan(step, _in_float32(weights), (jnp.arange(runs.count), *cut))
    return _like(by_weights, weights), *jax.tree.map(runs.join, by_tokens), _none(positions)


_lean_sums.defvjp(_lean_sums_forward, _lean_sums_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _lean_read(
    recipe: Recipe, runs: Runs, weights: ReadWeights, x: Array, means: Means, positions: Array | None
) -> Array:
    return _lean_read_forward(recipe, runs, weights, x, means, positions)[0]


def _lean_read_forward(
    recipe: Recipe, runs: Runs, weights: ReadWeights, x: Array, means: Means, positions: Array | None
) -> tuple[Array, Any]:
    grouped = [runs.group(mean[:, :, None]) for mean in means]

    def step(_: None, run: Any) -> tuple[None, tuple[Array, list[Array]]]:
        number, x, positions = run
        z = gate_projections(weights, x)
        means = [runs.of_run(mean, number) for mean in grouped]
        return None, (read(recipe, weights, z, means, positions), z)

    cut = jax.tree.map(runs.cut, (x, positions))
    _, (y, z) = lax.scan(step, None, (jnp.arange(runs.count), *cut))
    return runs.join(y), (weights, x, means, positions, z)


def _lean_read_backward(recipe: Recipe, runs: Runs, kept: Any, slope: Array) -> Any:
    weights, x, means, positions, z = kept
    grouped = [runs.group(mean[:, :, None]) for mean in means]

    def step(total: Any, run: Any) -> tuple[Any, Any]:
        number, x, positions, slope, z = run
        means = [runs.of_run(mean, number) for mean in grouped]
        _, pull = jax.vjp(lambda w, z, means: read(recipe, w, z, means, positions), weights, z, means)
        by_outputs, by_z, by_means = pull(slope)
        _, pull = jax.vjp(gate_projections, weights, x)
        by_gates, by_x = pull(by_z)
        return _add(_add(total, by_outputs), by_gates), (by_x, by_means)

    cut = jax.tree.map(runs.cut, (x, positions, slope))
    by_weights, (by_x, by_means) = lax.scan(step, _in_float32(weights), (jnp.arange(runs.count), *cut, z))
    by_means = tuple(runs.total(mean[:, :, :, 0]) for mean in by_means)
    return _like(by_weights, weights), runs.join(by_x), by_means, _none(positions)


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


def _cut_one(runs: Runs, x: Array) -> Array:
    """[B, N, ...] -> [n, B, c, ...]."""
    return runs.cut(x[:, None])[:, :, 0]


def _join_one(runs: Runs, x: Array) -> Array:
    return runs.join(x[:, :, None])[:, 0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _lean_causal(recipe: Recipe, runs: Runs, weights: CausalWeights, *tokens: Any) -> tuple[Array, State]:
    return _lean_causal_forward(recipe, runs, weights, *tokens)[0]


def _lean_causal_forward(
    recipe: Recipe, runs: Runs, weights: CausalWeights, *arguments: Any
) -> tuple[tuple[Array, State], Any]:
    *tokens, before = arguments

    def step(before: State, run: Any) -> tuple[State, Any]:
        x, context, token_weights, positions = run
        z = gate_projections(weights[1], x)
        y, after = _causal_run(recipe, weights, z, context, token_weights, before, positions)
        return after, (y, z, before)

    cut = jax.tree.map(functools.partial(_cut_one, runs), tuple(tokens))
    after, (y, z, starts) = lax.scan(step, before, cut)
    return (_join_one(runs, y), after), (weights, tuple(tokens), z, starts)


def _lean_causal_backward(recipe: Recipe, runs: Runs, kept: Any, slopes: tuple[Array, State]) -> Any:
    weights, tokens, z, starts = kept

    def step(carry: Any, run: Any) -> tuple[Any, Any]:
        (by_features, by_reads), by_after = carry
        number, (x, context, token_weights, positions), slope, z = run
        before = jax.tree.map(lambda leaf: pick(leaf, number), starts)

        def outputs(weights: Any, z: Any, context: Array, token_weights: Any, before: State) -> Any:
            return _causal_run(recipe, weights, z, context, token_weights, before, positions)

        _, pull = jax.vjp(outputs, weights, z, context, token_weights, before)
        by_weights, by_z, by_context, by_token_weights, by_before = pull((slope, by_after))
        _, pull = jax.vjp(gate_projections, weights[1], x)
        by_gates, by_x = pull(by_z)
        total = _add(by_features, by_weights[0]), _add(_add(by_reads, by_weights[1]), by_gates)
        return (total, by_before), (by_x, by_context, by_token_weights)

    cut = jax.tree.map(functools.partial(_cut_one, runs), (tokens, slopes[0]))
    start = _in_float32(weights), slopes[1]
    runs_in_turn = (jnp.arange(runs.count), *cut, z)
    (by_weights, by_before), by_tokens = lax.scan(step, start, runs_in_turn, reverse=True)
    by_tokens = jax.tree.map(functools.partial(_join_one, runs), by_tokens)
    return _like(by_weights, weights), *by_tokens, _none(tokens[3]), by_before


_lean_causal.defvjp(_lean_causal_forward, _lean_causal_backward)
