"""The matrix products of a program, read from its jaxpr, and what they cost alone: a floor of its time."""

import math
import statistics
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.extend import core

from benchmarks import report


class Product(NamedTuple):
    """`batch` products of [m, k] by [k, n]."""

    batch: int
    m: int
    k: int
    n: int
    dtype: str

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.m * self.k * self.n


def _inner_jaxprs(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    for value in jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda v: isinstance(v, core.Jaxpr | core.ClosedJaxpr)
    ):
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value


def _product(equation: core.JaxprEqn) -> Product:
    (contracted, _), (batched, _) = equation.params["dimension_numbers"]
    left, right = (cast(jax.ShapeDtypeStruct, variable.aval) for variable in equation.invars)
    k = math.prod(left.shape[axis] for axis in contracted)
    batch = math.prod(left.shape[axis] for axis in batched)
    return Product(batch, left.size // (k * batch), k, right.size // (k * batch), str(left.dtype))


def products(jaxpr: core.Jaxpr, times: int = 1) -> Counter[Product]:
    """Counts every dot_general of a jaxpr, loops multiplied by their length."""
    counts: Counter[Product] = Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            counts[_product(equation)] += times
            continue
        inner_times = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        for inner in _inner_jaxprs(equation):
            counts.update(products(inner, inner_times))
    return counts


def floor_seconds(counts: Counter[Product], rounds: int = 5, min_flops: float = 1e6) -> float:
    """Seconds of the products alone: the median of each distinct shape, times how often it occurs."""
    total = 0.0
    for product, count in counts.items():
        if product.flops < min_flops:
            continue
        key = jax.random.key(0)
        left = jax.random.normal(key, (product.batch, product.m, product.k), product.dtype)
        right = jax.random.normal(key, (product.batch, product.k, product.n), product.dtype)
        if product.batch == 1:
            left, right = left[0], right[0]
        multiply = jax.jit(jnp.matmul)
        jax.block_until_ready(multiply(left, right))
        total += count * statistics.median(
            report.seconds(lambda m=multiply, a=left, b=right: m(a, b)) for _ in range(rounds)
        )
    return total
