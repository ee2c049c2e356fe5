"""Linen's dense layer over `ops.dense`, with kernels of any number of axes."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jax.typing import DTypeLike

from pom_jax.errors import InputError
from pom_jax.ops.dense import dense, grouped_dense

xavier_uniform: Initializer = nn.initializers.xavier_uniform()


class Dense(nn.Module):
    """y = x . kernel + bias over the last axes of x, every product of the library goes through `ops.dense`.

    The initialiser sees the kernel as the one matrix [fan_in, fan_out] of the authors' code, whatever its
    axes here, so that its fans, and with them the spread of the values, are theirs.

    Attributes:
        features: size or sizes of the output axes.
        axes: how many of the last axes of x are contracted.
        use_bias: adds a bias.
        dtype: compute dtype; None is float32. Parameters are float32.
        kernel_init: initialiser of a matrix. Xavier uniform, as in all the authors' models.
        fused_features: further output columns of the matrix that this kernel is a part of; they count in the
            fan-out and are not kept.
        bias_offset: one number for each entry of the first output axis, added to the bias in float32; the
            bias starts as its negative. () for none.
    """

    features: int | tuple[int, ...]
    axes: int = 1
    use_bias: bool = True
    dtype: DTypeLike | None = None
    kernel_init: Initializer = xavier_uniform
    fused_features: int = 0
    bias_offset: tuple[float, ...] = ()

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., *in] -> [..., *features] in the compute dtype."""
        kernel, bias = self.weights(x.shape[x.ndim - self.axes :])
        return dense(x.astype(kernel.dtype), kernel, bias, axes=self.axes)

    @nn.compact
    def weights(self, inputs: tuple[int, ...]) -> tuple[jax.Array, jax.Array | None]:
        """The kernel [*inputs, *features] and the bias [*features] or None, in the compute dtype."""
        features = (self.features,) if isinstance(self.features, int) else tuple(self.features)
        fan_in, fan_out = math.prod(inputs), math.prod(features)

        def init(key: jax.Array) -> jax.Array:
            matrix = _matrix(self.kernel_init, key, (fan_in, fan_out + self.fused_features))
            return matrix[:, :fan_out].reshape(*inputs, *features)

        dtype = self.dtype or jnp.float32
        kernel = self.param("kernel", init).astype(dtype)
        if not self.use_bias:
            return kernel, None
        if not self.bias_offset:
            return kernel, self.param("bias", nn.initializers.zeros, features, jnp.float32).astype(dtype)
        offset = jnp.array(self.bias_offset).reshape(-1, *[1] * (len(features) - 1))
        bias = self.param("bias", lambda key: jnp.broadcast_to(0 - offset, features))
        return kernel, (bias + offset).astype(dtype)


class GroupedDense(nn.Module):
    """Splits the last axis in groups and gives each its own matrix (torch's grouped 1x1 convolution).

    Attributes:
        features: E, size of the output axis; group g makes channels g E/G to (g + 1) E/G.
        groups: G; divides both D and E.
        use_bias: adds a bias.
        dtype: compute dtype; None is float32. Parameters are float32.
        kernel_init: initialiser of each group's matrix [D/G, E/G].
    """

    features: int
    groups: int
    use_bias: bool = True
    dtype: DTypeLike | None = None
    kernel_init: Initializer = xavier_uniform

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., D] -> [..., E] in the compute dtype."""
        kernel, bias = self.weights(x.shape[-1:])
        return grouped_dense(x.astype(kernel.dtype), kernel, bias)

    @nn.compact
    def weights(self, inputs: tuple[int, ...]) -> tuple[jax.Array, jax.Array | None]:
        """The kernel [G, D/G, E/G] and the bias [G, E/G] or None, in the compute dtype."""
        shape = (inputs[-1] // self.groups, self.features // self.groups)

        def init(key: jax.Array) -> jax.Array:
            keys = jax.random.split(key, self.groups)
            return jnp.stack([_matrix(self.kernel_init, k, shape) for k in keys])

        dtype = self.dtype or jnp.float32
        kernel = self.param("kernel", init).astype(dtype)
        if not self.use_bias:
            return kernel, None
        bias = self.param("bias", nn.initializers.zeros_init(), (self.groups, shape[1]), jnp.float32)
        return kernel, bias.astype(dtype)


def _matrix(kernel_init: Initializer, key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    if not callable(kernel_init):
        raise InputError(f"kernel_init = {kernel_init!r} must be an initialiser (key, shape, dtype) -> array")
    matrix = kernel_init(key, shape, jnp.float32)
    if isinstance(matrix, nn.meta.AxisMetadata):
        raise InputError(
            f"kernel_init gives a {type(matrix).__name__}, whose names of axes belong to a matrix; kernels "
            "here have axes of their own: leave nn.with_partitioning out and shard the tree of parameters"
        )
    if jnp.shape(matrix) != shape:
        raise InputError(
            f"kernel_init gives an array of shape {jnp.shape(matrix)} where {shape} is asked for"
        )
    return jnp.asarray(matrix)
