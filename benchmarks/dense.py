"""What `ops.dense` gains on CPU: feed-forward layers forward and backward, against the plain product.

    python -m benchmarks.dense [--depth=6] [--rounds=7]

All forms take turns in one run. Needs 1 GiB of memory and half a minute on two CPU cores.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks import matmuls, report
from pom_jax import ops
from pom_jax.host_memory import keep_freed_memory

Product = Callable[[Array, Array, Array], Array]
Weights = tuple[Array, Array, Array, Array]


def plain(x: Array, kernel: Array, bias: Array) -> Array:
    """The product as one would write it."""
    return x @ kernel + bias


def stack(product: Product, unroll: int) -> Callable[[Weights, Array], Array]:
    """x + FF(norm(x)) over stacked weights, and a mean of squares to differentiate."""

    def layer(x: Array, weights: Weights) -> tuple[Array, None]:
        kernel1, bias1, kernel2, bias2 = weights
        h = ops.gelu(product(ops.layer_norm(x), kernel1, bias1))
        return x + product(h, kernel2, bias2), None

    def loss(weights: Weights, x: Array) -> Array:
        return jnp.square(jax.lax.scan(layer, x, weights, unroll=unroll)[0]).mean()

    return loss


def main() -> None:
    """Measures and reports."""
    parser = report.parser(__doc__)
    parser.add_argument("--depth", type=int, default=6, help="number of layers")
    parser.add_argument("--width", type=int, default=384, help="D; the hidden width is three times as much")
    parser.add_argument("--sequences", type=int, default=8, help="sequences of 256 tokens")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each form")
    arguments = parser.parse_args()
    depth, width, rounds = arguments.depth, arguments.width, arguments.rounds
    hidden = 3 * width

    keep_freed_memory()
    keys = jax.random.split(jax.random.key(0), 3)
    weights = (
        jax.random.normal(keys[0], (depth, width, hidden)) / width**0.5,
        jnp.zeros((depth, hidden)),
        jax.random.normal(keys[1], (depth, hidden, width)) / hidden**0.5,
        jnp.zeros((depth, width)),
    )
    x = jax.random.normal(keys[2], (arguments.sequences, 256, width))
    steps = {
        f"{name}, {loop}": jax.jit(jax.value_and_grad(stack(product, unroll), (0, 1)))
        for name, product in (("plain product", plain), ("ops.dense", ops.dense))
        for loop, unroll in (("unrolled", depth), ("scanned", 1))
    }
    counts = matmuls.products(jax.make_jaxpr(steps["plain product, scanned"])(weights, x).jaxpr)
    before = matmuls.floor_seconds(counts, rounds)
    times = report.in_turns({name: lambda f=f: f(weights, x) for name, f in steps.items()}, rounds)
    floor = (before + matmuls.floor_seconds(counts, rounds)) / 2
    rows = [[name, 1e3 * t, t / floor] for name, t in times.items()]
    text = report.table(["form", "forward + backward, ms", "x its products alone"], rows)
    report.write("dense", text, {"floor_s": floor, "seconds": times}, arguments)


if __name__ == "__main__":
    main()
