"""One mixing layer, forward and backward, over sequence lengths: PoM in both forms against attention.

    python -m benchmarks.mixer [--tokens 256 1024 4096] [--width=384] [--batch=2]

The layers of a length take turns. Attention stops at --max-attention tokens, for its memory grows with their
square: 2.5 GB at 4,096. Needs 4 GiB of memory and two minutes on two CPU cores.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import matmuls, report
from pom_jax.host_memory import keep_freed_memory
from pom_jax.nn import MultiHeadAttention, PoM


def step(layer: Any, x: jax.Array) -> tuple[Any, tuple[Any, jax.Array]]:
    """The jitted value and gradients of one layer, and its arguments."""
    params = layer.init(jax.random.key(0), x)
    return jax.jit(jax.value_and_grad(lambda p, x: jnp.square(layer.apply(p, x)).mean(), (0, 1))), (params, x)


def measure(layers: dict[str, Any], x: jax.Array, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds, the seconds of its matrix products alone and megabytes of temporaries of each layer."""
    steps = {name: step(layer, x) for name, layer in layers.items()}
    compiled: dict[str, Any] = {name: f.lower(*args).compile() for name, (f, args) in steps.items()}
    calls = {name: lambda c=compiled[name], a=args: c(*a) for name, (_, args) in steps.items()}
    times = report.in_turns(calls, rounds)
    floors = {
        name: matmuls.floor_seconds(matmuls.products(jax.make_jaxpr(f)(*args).jaxpr), rounds)
        for name, (f, args) in steps.items()
    }
    return {
        name: {
            "seconds": times[name],
            "floor_s": floors[name],
            "temporaries_mb": compiled[name].memory_analysis().temp_size_in_bytes / 1e6,
        }
        for name in layers
    }


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024, 4096], help="sequence lengths")
    parser.add_argument("--width", type=int, default=384, help="D")
    parser.add_argument("--batch", type=int, default=2, help="B")
    parser.add_argument("--heads", type=int, default=6, help="attention heads")
    parser.add_argument("--max-attention", type=int, default=4096, help="longest sequence given to attention")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each layer")
    arguments = parser.parse_args()

    keep_freed_memory()
    rows: list[list[object]] = []
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for tokens in arguments.tokens:
        layers: dict[str, Any] = {"PoM product": PoM(), "PoM power": PoM(form="power")}
        if tokens <= arguments.max_attention:
            layers["attention"] = MultiHeadAttention(arguments.heads)
        x = jax.random.normal(jax.random.key(1), (arguments.batch, tokens, arguments.width))
        figures[str(tokens)] = measured = measure(layers, x, arguments.rounds)
        for name, m in measured.items():
            rows.append([tokens, name, 1e3 * m["seconds"], m["seconds"] / m["floor_s"], m["temporaries_mb"]])
    header = ["tokens", "mixer", "forward + backward, ms", "x its products alone", "temporaries, MB"]
    report.write("mixer", report.table(header, rows), {**vars(arguments), "figures": figures})


if __name__ == "__main__":
    main()
