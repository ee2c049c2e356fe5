"""Residual blocks around a token mixer, and the stack of them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from pom_jax.errors import InputError, choose
from pom_jax.nn.dense import Dense
from pom_jax.ops.mesh import lay
from pom_jax.ops.norms import gelu, layer_norm
from pom_jax.ops.states import STATE

MODULATION = "modulation"

# What the backward pass recomputes in a block.
REMAT: dict[str, Callable[..., bool] | None] = {
    "none": None,  # nothing
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # all but the matrix products
    # All but the mixer's states and what modulates: arrays as small as a sequence's, whatever its length.
    "states": jax.checkpoint_policies.save_only_these_names(STATE, MODULATION),
    "full": None,  # everything
}

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"gelu": gelu, "gelu_tanh": nn.gelu}
GATES = (2, 5)  # of a block's six modulation vectors


class FeedForward(nn.Module):
    """Dense, GELU, dense.

    Attributes:
        expansion: hidden width as a multiple of the width.
        dtype: compute dtype of the products, float32 if None.
        activation: "gelu", exact, or "gelu_tanh", its approximation in the code of DiT.
    """

    expansion: int
    dtype: DTypeLike | None = None
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, N, D] -> [B, N, D]."""
        width = x.shape[-1]
        activate = choose("activation", self.activation, ACTIVATIONS)
        h = Dense(self.expansion * width, dtype=self.dtype, name="hidden")(x)
        return Dense(width, dtype=self.dtype, name="out")(activate(h))


class PolymorpherLayer(nn.Module):
    """P(X) = X + PoM(X) + FF(X + PoM(X)), the papers' layer without norms (official v1, `HoMLayer`).

    Attributes:
        mixer: makes the mixer, called with `name`; any module with the call of `nn.PoM`.
        ffn_expansion: hidden width of the feed-forward network as a multiple of the width.
        dtype: compute dtype of the feed-forward network, float32 if None.
    """

    mixer: Callable[..., nn.Module]
    ffn_expansion: int = 4
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """x: [B, M, D], context: [B, N, D] or None for x itself, mask: as the mixer's -> [B, M, D]."""
        x = x + self.mixer(name="mixer")(x, context, mask=mask)
        return x + FeedForward(self.ffn_expansion, dtype=self.dtype, name="feed_forward")(x)


class ModulatedBlock(nn.Module):
    """A mixer and a feed-forward network, each scaled, shifted and gated by the condition (AdaLN-Zero).

    All gates start at zero, so the block starts as the identity. The official PoM block writes its gates as
    1 + g with a bias of -1: the same function, with the bias one lower.

    Attributes:
        mixer: makes the mixer, called with `name`; any module with the call of `nn.PoM`.
        ffn_expansion: hidden width of the feed-forward network as a multiple of the width.
        clamp: bound on the absolute value of the output (255 in the authors' register model), 0 for none.
        dtype: compute dtype of the products and of the residual stream, float32 if None.
        activation: of the feed-forward network.
        unit_gates: the biases of the gates are kept as the authors' g, bit for bit.
    """

    mixer: Callable[..., nn.Module]
    ffn_expansion: int = 4
    clamp: float = 0.0
    dtype: DTypeLike | None = None
    activation: str = "gelu"
    unit_gates: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """Mixes the tokens, then transforms each.

        Args:
            x: [B, N, D].
            condition: [B, 1, D], or [B, N, D] with one condition a token.

        Returns:
            [B, N, D] in the dtype of x.
        """
        offsets = tuple(float(i in GATES) for i in range(6)) if self.unit_gates else ()
        scale1, shift1, gate1, scale2, shift2, gate2 = modulation(condition, 6, self.dtype, offsets)
        mixed = self.mixer(name="mixer")(modulate(x, scale1, shift1, self.dtype))
        x = x + (mixed * gate1).astype(x.dtype)
        h = modulate(x, scale2, shift2, self.dtype)
        h = FeedForward(self.ffn_expansion, self.dtype, self.activation, name="feed_forward")(h)
        x = x + (h * gate2).astype(x.dtype)
        return jnp.clip(x, -self.clamp, self.clamp) if self.clamp else x


def modulation(
    condition: jax.Array, count: int, dtype: DTypeLike | None, offsets: tuple[float, ...] = ()
) -> list[jax.Array]:
    """A SiLU and one dense layer, `modulation`, zero at start, cut in vectors. Call it in a compact method.

    condition: [B, M, D] -> `count` arrays [B, M, D], to whose biases the offsets are added.
    """
    sizes = (count, condition.shape[-1])
    zeros = nn.initializers.zeros
    dense = Dense(sizes, dtype=dtype, kernel_init=zeros, bias_offset=offsets, name="modulation")
    vectors = dense(nn.silu(condition))
    if condition.shape[1] == 1:  # else there are as many as tokens
        vectors = checkpoint_name(vectors, MODULATION)
    return [vectors[..., i, :] for i in range(count)]


def modulate(x: jax.Array, scale: jax.Array, shift: jax.Array, dtype: DTypeLike | None) -> jax.Array:
    """Layer norm without parameters, then x (1 + scale) + shift; in float32, for what comes is a product.

    x: [B, N, D], scale and shift: [B, 1, D] or [B, N, D] -> [B, N, D] in `dtype`.
    """
    normed = layer_norm(x.astype(jnp.float32), eps=1e-6)
    y = normed * (1 + scale.astype(jnp.float32)) + shift.astype(jnp.float32)
    return y.astype(dtype or jnp.float32)


class Period(nn.Module):
    """Unlike blocks one after the other, the unit that a stack of them repeats.

    Attributes:
        layer: the blocks, made with `parent=None`; their parameters lie under `layer_0`, `layer_1`, ...
    """

    layer: Sequence[nn.Module]

    @nn.compact
    def __call__(
        self, x: jax.Array, condition: Any, run: Callable[..., Any], states: Sequence[Any] | None = None
    ) -> Any:
        """x: [B, N, D], condition: what blocks receive, run: calls one -> [B, N, D].

        With `states`, one for each block, run(block, x, condition, state) -> (x, state), and the states after
        the blocks come back beside x.
        """
        if states is None:
            for block in self.layer:
                x = run(block, x, condition)
            return x
        after = []
        for block, state in zip(self.layer, states, strict=True):
            x, state = run(block, x, condition, state)
            after.append(state)
        return x, tuple(after)


def blocks_of(make: Callable[..., nn.Module], mixers: Sequence[Callable[..., nn.Module]]) -> nn.Module:
    """What a stack repeats, named `blocks`: the block of one mixer, or a period of those of several.

    Args:
        make: makes a block, called with a mixer and fields of Linen's.
        mixers: make the mixers of a period of layers, called with `name`.
    """
    if len(mixers) == 1:
        return make(mixers[0], name="blocks")
    return Period(tuple(make(mixer, parent=None) for mixer in mixers), name="blocks")


def stack(
    block: nn.Module,
    depth: int,
    x: jax.Array,
    condition: Any,
    *,
    states: Any = None,
    scan: bool = True,
    remat: str = "none",
) -> Any:
    """Applies `depth` blocks whose parameters are stacked along a leading axis, in a loop or unrolled.

    The parameters lie under the name of `block` with a leading axis in every case: no choice of `scan` and
    `remat` changes the numbers or the checkpoints. Call it inside a compact method.

    Args:
        block: one block, a module with the call (x, condition) -> x, or a `Period` of them.
        depth: number of blocks L; a whole number of periods.
        x: [B, N, D].
        condition: what every block receives, [B, 1, D] or [B, N, D], or a tree of arrays laid out already.
        states: a tree of arrays with a leading axis L, a part for each block, whose call is then
            (x, condition, state) -> (x, state); of periods of k a tuple of k such trees, with an axis L / k.
        scan: a loop compiles one block (or period), unrolled ones take longer to compile and can run faster.
        remat: what the backward pass recomputes in each block, one of `REMAT`.

    Returns:
        [B, N, D]; with `states` also those that the blocks return, laid out alike.

    Raises:
        InputError: for another remat policy, or a period that does not divide the depth.
    """
    policy = choose("remat", remat, REMAT)
    period = len(block.layer) if isinstance(block, Period) else 1
    if depth % period:
        raise InputError(f"depth = {depth} is not a multiple of the {period} blocks of a period")

    def run(block: nn.Module, x: jax.Array, *given: Any) -> Any:
        return block(x, *given)

    if remat != "none":
        # Inside a loop the compiler cannot merge the recomputation with the forward pass; unrolled it would.
        run = nn.remat(run, policy=policy, prevent_cse=not scan)

    def step(block: nn.Module, x: jax.Array, condition: Any, state: Any) -> tuple[jax.Array, Any]:
        if isinstance(block, Period):
            found = block(x, condition, run, state)
        else:
            found = run(block, x, condition) if state is None else run(block, x, condition, state)
        x, state = (found, None) if state is None else found
        return lay(x, "batch", "tokens", None), state

    loop = nn.scan(
        step,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, 0),
        length=depth // period,
        unroll=1 if scan else depth // period,
    )
    # From here to the end tokens lie on the mesh like this; the compiler sees to the rest.
    if isinstance(condition, jax.Array):
        condition = lay(condition, "batch", "tokens" if condition.shape[1] > 1 else None, None)
    x, states = loop(block, lay(x, "batch", "tokens", None), condition, states)
    return x if states is None else (x, states)
