"""The one dense product of the library: exact everywhere, and quick to differentiate on CPU."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from pom_jax.errors import InputError
from pom_jax.ops.mesh import backend, is_explicit, parts


def dense(x: Array, kernel: Array, bias: Array | None = None, *, axes: int = 1) -> Array:
    """Contracts the last `axes` axes of `x` with the first `axes` axes of `kernel`, then adds `bias`.

    In every form it differentiates forwards, backwards and repeatedly. The CPU uses a form whose derivatives
    are quick there. Accelerators use the plain product, and so do meshes where flattening would gather the
    tokens or the channels of the kernel (axes `context` and `tensor` of the mesh set around the call) or is
    no move that JAX would make (Explicit).

    Args:
        x: [..., *in], `in` being `axes` axes.
        kernel: [*in, *out], of the dtype of `x`.
        bias: [*out] or None.
        axes: how many axes are contracted.

    Returns:
        [..., *out] in the dtype of `x`.

    Raises:
        InputError: the contracted axes or the bias do not fit the kernel.
    """
    if x.ndim < axes or x.shape[x.ndim - axes :] != kernel.shape[:axes]:
        raise InputError(
            f"dense: the last {axes} axes of x {x.shape} must equal the first of the kernel {kernel.shape}"
        )
    if bias is not None and bias.shape != kernel.shape[axes:]:
        raise InputError(f"dense: bias {bias.shape} does not fit the kernel's output {kernel.shape[axes:]}")
    flat = parts("tokens") == parts("expand") == 1 and not is_explicit(x)
    if backend() == "cpu" and flat:
        return _flat_dense(x, kernel, bias, axes)
    y = jnp.tensordot(x, kernel, axes=axes)
    return y if bias is None else y + bias


def grouped_dense(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """Splits the last axis in groups and multiplies each with a matrix of its own.

    Args:
        x: [..., D].
        kernel: [G, D/G, E/G].
        bias: [G, E/G], [E] or None.

    Returns:
        [..., E]; group g makes channels g E/G to (g + 1) E/G.
    """
    groups, width, _ = kernel.shape
    split = x.reshape(*x.shape[:-1], groups, width)
    y = jnp.einsum("...gi,gio->...go", split, kernel).reshape(*x.shape[:-1], kernel[:, 0].size)
    return y if bias is None else y + bias.reshape(-1)


def _flat_dense(x: Array, kernel: Array, bias: Array | None, axes: int) -> Array:
    """The same product as one of matrices, written so that its transpose is quick on CPU.

    The transpose of the plain product contracts all token axes at once, for which XLA's CPU backend makes a
    strided copy, and recomputes within it whatever elementwise work made the operand. Flattening leaves one
    token axis, and the barriers keep that work out of the operands, here and in the transpose.
    """
    batch, out = x.shape[: x.ndim - axes], kernel.shape[axes:]
    fan_in, fan_out = math.prod(kernel.shape[:axes]), math.prod(out)
    flat = jax.lax.optimization_barrier(x.reshape(math.prod(batch), fan_in))
    y = jax.lax.optimization_barrier(flat @ kernel.reshape(fan_in, fan_out))
    if bias is not None:
        y = _add_bias(y, bias.reshape(fan_out))
    return y.reshape(*batch, *out)


@jax.custom_jvp
def _add_bias(x: Array, bias: Array) -> Array:
    return x + bias


@_add_bias.defjvp
def _add_bias_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    # As a product with ones, whose transpose is a product too; that of a broadcast is a slow strided sum.
    t, t_bias = tangents
    return _add_bias(*primals), t + jnp.ones((t.shape[0], 1), t_bias.dtype) @ t_bias[None]
