"""Running sums over tokens: `ops.prefix_sum` beside `cumsum` and `associative_scan`, forward and backward.

    python -m benchmarks.prefix [--tokens 1024 4096 16384] [--features=1536]

Takes turns in one run and prints the error against float64 too. Half a minute on two CPU cores.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks import report
from pom_jax.host_memory import keep_freed_memory
from pom_jax.ops import prefix_sum

METHODS: dict[str, Callable[[Array], Array]] = {
    "prefix_sum": prefix_sum,
    "cumsum": lambda x: jnp.cumsum(x, axis=1),
    "associative_scan": lambda x: jax.lax.associative_scan(jnp.add, x, axis=1),
}


def main() -> None:
    """Measures and reports."""
    parser = report.parser(__doc__)
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[1024, 4096, 16384], help="lengths of the sum"
    )
    parser.add_argument("--features", type=int, default=1536, help="sums side by side")
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of each method")
    arguments = parser.parse_args()

    keep_freed_memory()
    rows: list[list[object]] = []
    for tokens in arguments.tokens:
        x = jax.random.uniform(jax.random.key(0), (1, tokens, arguments.features))
        exact = np.cumsum(np.asarray(x, np.float64), axis=1)
        calls, errors = {}, {}
        for name, method in METHODS.items():
            forward = jax.jit(method)
            both = jax.jit(lambda x, method=method: jax.vjp(method, x)[1](x))
            errors[name] = float(np.max(np.abs(np.asarray(forward(x)) - exact) / exact))
            calls[f"{name} forward"] = lambda f=forward, x=x: f(x)
            calls[f"{name} backward"] = lambda f=both, x=x: f(x)
        times = report.in_turns(calls, arguments.rounds)
        for name in METHODS:
            forward, backward = (1e9 * times[f"{name} {way}"] / x.size for way in ("forward", "backward"))
            rows.append([tokens, name, forward, backward, f"{errors[name]:.1e}"])
    header = ["tokens", "method", "forward, ns a number", "backward, ns a number", "largest relative error"]
    report.write("prefix", report.table(header, rows), {"rows": rows}, arguments)


if __name__ == "__main__":
    main()
