"""The Polynomial Mixer: context tokens leave a state of fixed size, each query gates what it takes from it.

Both forms are one recipe: features of the context, their mean over tokens, the query's gate, one product.

Where the authors' tensors go (torch's [out, in] layout; S gates; E = expansion * D, the width of one degree):

| form | theirs | ours |
|---|---|---|
| product | `ho_proj.weight` [K E, D] | `features/kernel` = `.T.reshape(D, K, E)` |
| product | `ho_proj.bias` [K E] | `features/bias` = `.reshape(K, E)` |
| product | `se_proj.weight`, `se_proj.bias` | `gate/kernel`, `gate/bias`, reshaped alike |
| product | `ag_proj.weight` [D, K E], `ag_proj.bias` | `out/kernel` = `.T.reshape(K, E, D)`, `out/bias` |
| power | `qc_proj.weight` [E + S, D] | `features/kernel` = first E rows `.T`, `gate/kernel` = the rest `.T` |
| power | `se_bias` [S] | `gate/bias` |
| power, G groups | `po_proj.weight` [E, D/G, 1] | `features/kernel` = `.reshape(G, E/G, D/G).mT` |
| power, G groups | `po_proj.bias` [E] (with `bias=True`) | `features/bias` = `.reshape(G, E/G)` |
| power, G groups | `se_proj.weight` [S, D], `se_proj.bias` | `gate/kernel` = `.T`, `gate/bias` |
| power | `po_coeff` [E, K] | `coefficients` |
| power | `ag_proj.weight` [D, E], `ag_proj.bias` (with `bias=True`) | `out/kernel` = `.T`, `out/bias` |
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jax.typing import DTypeLike

from pom_jax.errors import InputError
from pom_jax.nn.dense import Dense, GroupedDense, xavier_uniform
from pom_jax.ops.polynomials import CLAMP, SLOPE, hard_sigmoid, power_features, product_features
from pom_jax.ops.states import check_tokens, state_mean, token_state

FORMS = ("product", "power")
torch_uniform: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def coefficient_init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """The authors' start of the power form: normal, clamped to +-1e-3; in effect a random sign times 1e-3."""
    return jnp.clip(jax.random.normal(key, shape, dtype), -1e-3, 1e-3)


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
        form: "product" or "power".
        degree: k, at least 1.
        expansion: e; the expanded width E is e * D.
        gate_heads: power form: gates a token has, each shared by E / gate_heads consecutive channels; 0 or 1
            gives every channel its own.
        groups: power form: groups of channels that the features' projection keeps apart; divides D.
        use_bias: product form: a bias in all three products. Power form: in the output product, and in the
            features' when grouped; its gate always has one. None: True for product, False for power.
        slope: power form: slope of the activation below zero.
        clamp: power form: bounds of the activation, None for none. SD3-PoM used (-0.1, 1.0).
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
    dtype: DTypeLike | None = None
    kernel_init: Initializer = xavier_uniform

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Mixes context tokens into query tokens, at a cost linear in both.

        Args:
            x: [B, M, D], the queries.
            context: [B, N, D]; None mixes x with itself.
            mask: None, [B, N] or [B, M, N] (B may be 1), booleans or weights; zero leaves a token out.

        Returns:
            [B, M, D] in the compute dtype; exactly the output bias for a query that sees nothing.

        Raises:
            InputError: sizes of the layer, shapes or mask do not fit.
        """
        source = x if context is None else context
        check_tokens(x, source, mask)
        self._check_sizes(x.shape[-1])
        mix = self._product if self.form == "product" else self._power
        gated = mix(x, source, mask)
        biased = self.form == "product" if self.use_bias is None else self.use_bias
        out = Dense(
            x.shape[-1],
            axes=gated.ndim - 2,
            use_bias=biased,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            name="out",
        )
        return out(gated)

    def _product(self, x: jax.Array, context: jax.Array, mask: jax.Array | None) -> jax.Array:
        """[B, M, K, E] float32."""
        shape = (self.degree, self.expansion * x.shape[-1])
        biased = self.use_bias is not False
        plain = functools.partial(
            Dense, shape, use_bias=biased, dtype=self.dtype, kernel_init=self.kernel_init
        )
        state = token_state(product_features(plain(name="features")(context)), mask)
        return jax.nn.sigmoid(plain(name="gate")(x).astype(jnp.float32)) * state_mean(state)

    def _power(self, x: jax.Array, context: jax.Array, mask: jax.Array | None) -> jax.Array:
        """[B, M, E] float32."""
        expanded = self.expansion * x.shape[-1]
        gates = self.gate_heads if self.gate_heads > 1 else expanded
        grouped = self.groups > 1
        # Ungrouped, the authors keep both projections in one matrix: its fan-out is the sum of theirs.
        plain = functools.partial(Dense, dtype=self.dtype, kernel_init=self.kernel_init)
        if grouped:
            biased = bool(self.use_bias)
            features = GroupedDense(expanded, self.groups, biased, self.dtype, torch_uniform, name="features")
        else:
            features = plain(expanded, use_bias=False, fused_features=gates, name="features")
        gate = plain(gates, fused_features=0 if grouped else expanded, name="gate")
        coefficients = self.param("coefficients", coefficient_init, (expanded, self.degree))
        state = token_state(power_features(features(context), coefficients, self.slope, self.clamp), mask)
        mean = state_mean(state)
        mean = mean.reshape(*mean.shape[:2], gates, expanded // gates)
        return (mean * hard_sigmoid(gate(x))[..., None]).reshape(*x.shape[:2], expanded)

    def _check_sizes(self, width: int) -> None:
        if self.form not in FORMS:
            raise InputError(f"form = {self.form!r} is not one of {', '.join(FORMS)}")
        for name in ("degree", "expansion", "groups"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} = {value} must be a whole number of at least 1")
        if self.form == "product":
            if self.gate_heads > 1 or self.groups > 1:
                raise InputError(
                    f"gate_heads = {self.gate_heads} and groups = {self.groups} belong to form = 'power'; "
                    "leave them at 1 with form = 'product'"
                )
            return
        if width % self.groups:
            raise InputError(f"groups = {self.groups} does not divide the width D = {width}")
        expanded = self.expansion * width
        if self.gate_heads < 0 or (self.gate_heads > 1 and expanded % self.gate_heads):
            raise InputError(
                f"gate_heads = {self.gate_heads} does not divide the expanded width "
                f"E = {self.expansion} * {width} = {expanded}"
            )
        if self.clamp is not None and self.clamp[0] >= self.clamp[1]:
            raise InputError(f"clamp = {self.clamp}: the lower bound must be below the upper one")
