"""The one dense product of the library: exact everywhere, and quick to differentiate on CPU."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from pom_jax.errors import InputError


def dense(x: Array, kernel: Array, bias: Array | None = None, *, axes: int = 1) -> Array:
    """Contracts the last `axes` axes of `x` with the first `axes` axes of `kernel`, then adds `bias`.

    Autodiff of the plain product takes the weight gradient over several token axes at once. XLA's CPU backend
    turns that into a strided copy into which it fuses, and so recomputes, whatever elementwise work made the
    operand; the sum of the bias gradient suffers alike. On CPU both are therefore taken as products of the
    operands flattened to two axes. Values and gradients are the same sums in another order. Accelerators, and
    meshes that split the tokens (axis `context`), where flattening would gather them, use the plain product.

    Args:
        x: [..., *in], `in` being `axes` axes.
        kernel: [*in, *out], of x's dtype.
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
    if _tokens_may_be_merged():
        batch, out = x.shape[: x.ndim - axes], kernel.shape[axes:]
        fan_in, fan_out = math.prod(kernel.shape[:axes]), math.prod(out)
        rows = _rows(x.reshape(math.prod(batch), fan_in), kernel.reshape(fan_in, fan_out))
        if bias is not None:
            rows = _add_bias(rows, bias.reshape(fan_out))
        return rows.reshape(*batch, *out)
    y = jnp.tensordot(x, kernel, axes=axes)
    return y if bias is None else y + bias


def _tokens_may_be_merged() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() == "cpu" and dict(mesh.shape).get("context", 1) == 1


@jax.custom_vjp
def _rows(x: Array, kernel: Array) -> Array:
    return x @ kernel


def _rows_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _rows_backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = kept
    return g @ kernel.T, x.T @ g


_rows.defvjp(_rows_forward, _rows_backward)


@jax.custom_vjp
def _add_bias(x: Array, bias: Array) -> Array:
    return x + bias


def _add_bias_forward(x: Array, bias: Array) -> tuple[Array, None]:
    return x + bias, None


def _add_bias_backward(_: None, g: Array) -> tuple[Array, Array]:
    return g, jnp.ones((g.shape[0],), g.dtype) @ g


_add_bias.defvjp(_add_bias_forward, _add_bias_backward)
