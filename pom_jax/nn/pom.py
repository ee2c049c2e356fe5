"""The Polynomial Mixer: context tokens leave a state of fixed size, each query gates what it takes from it.

Both forms are one recipe: features of the context, their mean over tokens, the query's gate, one product.

The table in `pom_jax.interop.layouts` says where the authors' tensors go. A layer with several reads has R
gates and R output kernels, twice that with a phase: `gate/kernel` is then [D, R, K, E] and `out/kernel`
[R, K, E, D] (without K in the power form).
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Initializer
from jax.typing import DTypeLike

from pom_jax.errors import InputError
from pom_jax.nn.attention_call import tokens_given
from pom_jax.nn.dense import Dense, GroupedDense, xavier_uniform
from pom_jax.nn.pom_fields import check_batch, recipe_of
from pom_jax.ops.mixing import mix, read_state
from pom_jax.ops.phase import Phase
from pom_jax.ops.polynomials import CLAMP, SLOPE
from pom_jax.ops.reads import initial_state
from pom_jax.ops.recipe import FeatureWeights, ReadWeights, Recipe
from pom_jax.ops.rotary import Rotary, grid_positions
from pom_jax.ops.states import FrameStates, State, check_tokens, without_heads

Frames = int | Sequence[int]
Positions = jax.Array | np.ndarray
AnyState = State | FrameStates
torch_uniform: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def coefficient_init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """The authors' start of the power form: normal, clamped to +-1e-3; in effect a random sign times 1e-3."""
    return jnp.clip(jax.random.normal(key, shape, dtype), -1e-3, 1e-3)


def scale_init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """The start of SD3-PoM's `h_scale`: the logarithm uniform between those of 0.01 and 5."""
    return jnp.exp(jax.random.uniform(key, shape, dtype, math.log(0.01), math.log(5.0)))


class PoM(nn.Module):
    """Polynomial Mixer: out(gate(x) * mean over tokens of polynomial(features(context))).

    `form="product"` (v1, arXiv 2411.12663, HoMM's `HoM`): k GELU projections, cumulative products, a
    sigmoid gate for every channel, biases. `form="power"` (v2, arXiv 2604.06129, `pom.PoM`): one
    projection, clamped leaky ReLU, a learned sum of its powers, a hard-sigmoid gate for every channel or
    for `gate_heads` blocks of channels, a bias in the gate only.

    Matrices start Xavier uniform with the fans of the authors' 2-D matrices, as in all their image models;
    so does a layer used alone (theirs is then torch's uniform +-1/sqrt(fan_in): pass
    `kernel_init=torch_uniform`). Biases start at zero, coefficients at +-1e-3.

    Attributes:
        form: "product" or "power". The power form is almost silent at first, as the authors start it: beside
            a residual, its outputs grow with the coefficients.
        degree: k, at least 1.
        expansion: e; the expanded width E is e * D.
        gate_heads: power form: gates a token has, each shared by E / gate_heads consecutive channels; 0 or 1
            gives every channel its own.
        groups: power form: groups of channels that the features' projection keeps apart; divides D.
        use_bias: product form: a bias in all three products. Power form: in the output product, and in the
            features' when grouped; its gate always has one. None: True for product, False for power.
        slope: power form: slope of the activation below zero.
        clamp: power form: bounds of the activation, None for none. SD3-PoM used (-0.1, 1.0).
        feature_scale: power form: a learned factor of each channel before the activation, as in SD3-PoM.
        rotary: rotary positions of features and gates, `nn.Rotary(axes=1)` and so on.
        phase: reads relative to positions, `nn.Phase(periods)`; twice the state, gates and output kernels.
        grid: sizes of the grid that the tokens lie on, row by row: their positions where none are given.
        global_tokens: tokens before those of the grid (registers), which lie at its origin.
        reads: states that a token reads, each with gates of its own: "all" (the frames so far and its own),
            "own" (its own frame), "last" (the frame before), "past" (all frames before).
        causal: a token sees itself and those before it only, where the call does not say otherwise.
        count: what a state's count counts: "tokens", or "frames", which weigh the same whatever their length,
            as in the authors' `state_forward`.
        implementation: "naive", "lean" (recomputes the features in the backward pass; reverse mode only) or
            "auto", lean from 64 MiB of float32 features a device on CPU, from 1 GiB elsewhere. Lean keeps
            the states of frames; with `causal` and other `reads` or `count` than the defaults each token is
            one, and lean takes about the memory of naive.
        dtype: compute dtype of the products, None is float32. Polynomials, gates and means are float32.
        kernel_init: initialiser of the matrices, except the groups': the authors leave torch's uniform there.
    """

    form: str = "product"
    degree: int = 2
    expansion: int = 2
    gate_heads: int = 1
    groups: int = 1
    use_bias: bool | None = None
    slope: float = SLOPE
    clamp: tuple[float, float] | None = CLAMP
    feature_scale: bool = False
    rotary: Rotary | None = None
    phase: Phase | None = None
    grid: tuple[int, ...] = ()
    global_tokens: int = 0
    reads: tuple[str, ...] = ("all",)
    causal: bool = False
    count: str = "tokens"
    implementation: str = "auto"
    dtype: DTypeLike | None = None
    kernel_init: Initializer = xavier_uniform

    def __call__(
        self,
        x: jax.Array | None = None,
        context: jax.Array | None = None,
        values: jax.Array | None = None,
        *,
        inputs_q: jax.Array | None = None,
        inputs_k: jax.Array | None = None,
        inputs_v: jax.Array | None = None,
        inputs_kv: jax.Array | None = None,
        mask: jax.Array | None = None,
        causal: bool | None = None,
        frames: Frames | None = None,
        context_frames: Frames | None = None,
        positions: Positions | None = None,
        context_positions: Positions | None = None,
        state: AnyState | None = None,
        drafts: int = 0,
        deterministic: bool | None = None,
        dropout_rng: jax.Array | None = None,
        sow_weights: bool = False,
    ) -> jax.Array | tuple[jax.Array, AnyState]:
        """Mixes context tokens into query tokens, at a cost linear in both.

        The call of `flax.linen.MultiHeadDotProductAttention` works here as it is: queries, keys, values by
        position or by its names, and `mask`, which may have an axis of heads, of size 1.

        Args:
            x: [B, M, D], the queries.
            context: [B, N, D]; None mixes x with itself.
            values: nothing but `context` once more, for attention's call.
            inputs_q, inputs_k, inputs_v, inputs_kv: attention's names of x, context, values, and of context.
            mask: None, [B, N] or [B, M, N] (B may be 1), booleans or weights; zero leaves a token out. Also
                [B, 1, M, N] and [B, 1, 1, N]. A row for each query costs M N, as in attention; with
                `causal` or `frames`, give [B, N]. A context token that [B, N] leaves out may hold anything,
                NaN too, and so may its position where each sequence has its own; its weight gets no gradient.
                A query counts whatever the mask says: where x mixes with itself, NaN in x is NaN in its own
                output, and in gradients of the parameters even if the loss ignores that output.
            causal: token n sees the context tokens 0..n only; None is the layer's own `causal`. Sums run over
                chunks: a token that is not finite spoils earlier ones of its chunk as well.
            frames: a token sees its own frame and those before: the length of all, or of each frame. Of more
                than 256 frames, one that is not finite spoils earlier ones of its chunk, as with `causal`.
            context_frames: lengths of the context's frames, as many as the queries'; those of the queries if
                left out.
            positions: of x, [M, axes] or [B, M, axes], on one axis also [M] or [B, M]; needed by `rotary` and
                `phase`, by default those of `grid`, or 0..M-1 on one axis. No gradient flows to them.
            context_positions: of the context, those of x if x mixes with itself.
            state: what earlier tokens left (`init_state`); x sees it as if they stood before it.
            drafts: the frames are those of a take and then of so many drafts of it: a frame of a draft sees
                itself and the frames of the take before its own, as in teacher forcing. What is left is the
                state after the take.
            deterministic, dropout_rng: for attention's call; the mixer has no dropout.
            sow_weights: for attention's call; must be False, for there are no weights of pairs of tokens.

        Returns:
            [B, M, D] in the compute dtype; exactly the output bias for a query that sees nothing. With
            `state` also the state after the context tokens.

        Raises:
            InputError: sizes of the layer, shapes, lengths, positions, mask or state do not fit.
        """
        del deterministic, dropout_rng
        if sow_weights is not False:
            raise InputError(f"sow_weights = {sow_weights!r}: PoM has no attention weights to sow; say False")
        x, context = tokens_given(x, context, values, inputs_q, inputs_k, inputs_v, inputs_kv)
        source = x if context is None else context
        mask = without_heads(mask)
        check_tokens(x, source, mask)
        recipe = recipe_of(self, x.shape[-1])
        if positions is None and recipe.axes and state is None:
            positions = self._grid_positions(x.shape[1], recipe.axes)
        y, after = mix(
            recipe,
            self._weights(recipe, x.shape[-1]),
            x,
            context,
            mask=mask,
            causal=self.causal and frames is None if causal is None else causal,
            frames=frames,
            context_frames=context_frames,
            positions=positions,
            context_positions=context_positions,
            state=state,
            drafts=drafts,
            count=self.count,
            implementation=self.implementation,
        )
        if state is None:
            return y
        assert after is not None
        return y, after

    def init_state(self, batch: int, width: int | None = None) -> AnyState:
        """The state before any token, of `batch` sequences.

        Args:
            batch: B.
            width: D. A layer with parameters knows it: `layer.bind(params).init_state(batch)`.

        Returns:
            A State of zeros, sum [B, 1, *F] with F = [K, E] (product form) or [E] (power form), two of these
            with a phase, and count [B, 1]; `FrameStates` of two if the layer reads "last".

        Raises:
            InputError: no width for a layer without parameters, or sizes that do not fit or cannot be.
        """
        if width is None:
            kernel = (
                self.variables["params"]["out"]["kernel"]
                if self.scope is not None and self.has_variable("params", "out")
                else None
            )
            if kernel is None:
                raise InputError(
                    "init_state(batch) of a layer without parameters needs width=, the channels D"
                )
            width = kernel.shape[-1]
        recipe = recipe_of(self, width)
        check_batch(batch, *recipe.features)
        try:
            return initial_state(recipe, batch)
        except TypeError as error:
            raise InputError(f"batch = {batch!r} must be a whole number of at least 0") from error

    def write(
        self,
        context: jax.Array,
        *,
        mask: jax.Array | None = None,
        positions: Positions | None = None,
        state: AnyState | None = None,
    ) -> AnyState:
        """The state that context tokens leave for others to read: `apply(params, text, method="write")`.

        Args:
            context: [B, N, D], one frame.
            mask: [B, N] or None.
            positions: as in the call, and needed with `state`.
            state: what earlier tokens left.

        Returns:
            The state after the tokens.
        """
        check_tokens(context, context, None)
        recipe = recipe_of(self, context.shape[-1])
        if state is None:
            if positions is None:
                positions = self._grid_positions(context.shape[1], recipe.axes)
            if positions is None and recipe.axes == 1:
                positions = np.arange(context.shape[1])
            state = initial_state(recipe, context.shape[0])
        result: Any = self(context, mask=mask, positions=positions, state=state)
        return result[1]

    def read(self, x: jax.Array, state: AnyState, *, positions: Positions | None = None) -> jax.Array:
        """Tokens read a state that others left, and add nothing to it: `method="read"`.

        Args:
            x: [B, M, D].
            state: of this layer, or of one with the same sizes.
            positions: as in the call; by default those of `grid`.

        Returns:
            [B, M, D].
        """
        check_tokens(x, x, None)
        recipe = recipe_of(self, x.shape[-1])
        if positions is None:
            positions = self._grid_positions(x.shape[1], recipe.axes)
        return read_state(recipe, self._weights(recipe, x.shape[-1])[1], x, state, positions=positions)

    def _grid_positions(self, tokens: int, axes: int) -> np.ndarray | None:
        """Positions [N, axes] on the layer's grid, None if it has none."""
        if not self.grid or not axes:
            return None
        places = math.prod(self.grid)
        if (places, len(self.grid)) != (tokens - self.global_tokens, axes):
            raise InputError(
                f"grid = {self.grid} after global_tokens = {self.global_tokens} gives {places} + "
                f"{self.global_tokens} tokens positions on {len(self.grid)} axes, but there are {tokens} "
                f"tokens, and positions on {axes} axes are needed"
            )
        origin = np.zeros((self.global_tokens, axes), np.float32)
        return np.concatenate([origin, grid_positions(*self.grid)])

    @nn.compact
    def _weights(self, recipe: Recipe, width: int) -> tuple[FeatureWeights, ReadWeights]:
        plain = functools.partial(Dense, dtype=self.dtype, kernel_init=self.kernel_init)
        biased = self.form == "product" if self.use_bias is None else self.use_bias
        grouped = self.groups > 1
        scale = coefficients = None
        shape = gate_shape = (self.degree, recipe.expanded)
        gate_fused = 0
        if self.form == "power":
            shape, gate_shape = (recipe.expanded,), (recipe.expanded if recipe.heads == 1 else recipe.heads,)
            # Ungrouped, the authors keep both projections in one matrix: its fan-out is the sum of theirs.
            gate_fused = 0 if grouped else recipe.expanded
            coefficients = self.param("coefficients", coefficient_init, (recipe.expanded, self.degree))
            if self.feature_scale:
                scale = self.param("feature_scale", scale_init, (recipe.expanded,))
        if grouped:
            dense = GroupedDense(
                recipe.expanded, self.groups, biased, self.dtype, torch_uniform, name="features"
            )
        elif self.form == "power":
            dense = plain(shape, use_bias=False, fused_features=gate_shape[0], name="features")
        else:
            dense = plain(shape, use_bias=biased, name="features")
        slots = () if recipe.slots == 1 else (recipe.slots,)
        gate_biased = biased or self.form == "power"
        gate = plain((*slots, *gate_shape), use_bias=gate_biased, fused_features=gate_fused, name="gate")
        out = plain(width, axes=len(slots) + len(shape), use_bias=biased, name="out")
        gates, gate_biases = gate.weights((width,))
        outs, bias = out.weights((*slots, *shape))
        kernel, kernel_bias = dense.weights((width,))
        return (
            FeatureWeights(*_each_degree(kernel, kernel_bias, self.form), scale, coefficients),
            ReadWeights(
                tuple(jnp.moveaxis(gates, 1, 0)) if slots else (gates,),
                None if gate_biases is None else tuple(gate_biases) if slots else (gate_biases,),
                tuple(outs) if slots else (outs,),
                bias,
            ),
        )


def _each_degree(
    kernel: jax.Array, bias: jax.Array | None, form: str
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...] | None]:
    """The product form's kernel [D, K, E] and bias [K, E] degree by degree; the power form's in one piece."""
    if form == "power":
        return (kernel,), None if bias is None else (bias.reshape(-1),)
    degrees = range(kernel.shape[1])
    return tuple(kernel[:, p] for p in degrees), None if bias is None else tuple(bias)
