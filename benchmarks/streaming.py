"""A long stream, frame after frame: a mixer that carries its state, and attention with its growing cache.

    python -m benchmarks.streaming [--frames=1000] [--tokens=64] [--width=384]

One layer takes a stream of frames; the states and caches at some of them are kept, and the steps from there
timed in turns. Memory is that of the arrays that are carried and of the compiled program's temporaries. The
mixer reads all frames so far, rotary positions included. Makes a table, a JSON file and a plot. Two minutes
on two CPU cores.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from benchmarks import report
from pom_jax.host_memory import keep_freed_memory
from pom_jax.nn import MultiHeadAttention, PoM, Rotary


def parameters(layer: Any, x: jax.Array) -> Any:
    """Random parameters of a layer, without compiling its initialisers."""
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    return jax.tree.map(lambda s: jax.random.normal(jax.random.key(s.size), s.shape) / 20, shapes)


def megabytes(tree: Any) -> float:
    """Of all arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 1e6


def main() -> None:
    """Measures and reports."""
    parser = report.parser(__doc__)
    parser.add_argument("--frames", type=int, default=1000, help="frames of the stream")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a frame")
    parser.add_argument("--width", type=int, default=384, help="D")
    parser.add_argument("--head-width", type=int, default=64, help="channels of an attention head")
    parser.add_argument("--rounds", type=int, default=60, help="timed steps at each measured frame")
    arguments = parser.parse_args()
    tokens, width = arguments.tokens, arguments.width

    keep_freed_memory()
    layer: Any = PoM(rotary=Rotary())
    attention: Any = MultiHeadAttention(width // arguments.head_width)
    frame = jax.random.normal(jax.random.key(1), (1, tokens, width))
    of_pom, of_attention = parameters(layer, frame), parameters(attention, frame)
    state = layer.init_state(1, width)
    place = jnp.arange(tokens, dtype=jnp.float32)

    def pom_step(params: Any, frame: jax.Array, place: jax.Array, state: Any) -> Any:
        return layer.apply(params, frame, positions=place, state=state)

    # A cache of keys and values costs what a cache of tokens does, less their projections: this favours it.
    def attention_step(params: Any, frame: jax.Array, past: jax.Array) -> Any:
        bound = params["params"]
        project = functools.partial(jnp.einsum, "bnd,dhe->bnhe", frame)
        q, k, v = (project(bound[name]["kernel"]) for name in ("query", "key", "value"))
        keys, values = (jnp.concatenate([cached, new], 1) for cached, new in zip(past, (k, v), strict=True))
        y = jax.nn.dot_product_attention(q, keys, values)
        return jnp.einsum("bnhe,hed->bnd", y, bound["out"]["kernel"])

    compiled: Any = jax.jit(pom_step).lower(of_pom, frame, place, state).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes / 1e6
    wanted = [n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500) if n < arguments.frames] + [arguments.frames]
    calls: dict[str, Any] = {}
    memory: dict[str, float] = {}
    for number in range(1, arguments.frames + 1):
        if number in wanted:
            heads = (1, (number - 1) * tokens, width // arguments.head_width, arguments.head_width)
            cache = (jnp.ones(heads), jnp.ones(heads))
            grown: Any = jax.jit(attention_step).lower(of_attention, frame, cache).compile()
            calls[f"PoM {number}"] = functools.partial(compiled, of_pom, frame, place, state)
            calls[f"attention {number}"] = functools.partial(grown, of_attention, frame, cache)
            memory[f"PoM {number}"] = megabytes(state) + temporaries
            temporary = grown.memory_analysis().temp_size_in_bytes / 1e6
            memory[f"attention {number}"] = megabytes(cache) + temporary
            print(f"frame {number} of {arguments.frames}", flush=True)
        _, state = compiled(of_pom, frame, place, state)
        place = place + tokens
    # Apart, for a large cache of attention drives all else out of the processor's.
    times: dict[str, float] = {}
    for name in ("PoM", "attention"):
        some = {key: call for key, call in calls.items() if key.startswith(name)}
        times |= report.in_turns(some, arguments.rounds)
    measured = [
        {
            "frame": number,
            "PoM ms": 1e3 * times[f"PoM {number}"],
            "attention ms": 1e3 * times[f"attention {number}"],
            "PoM MB": memory[f"PoM {number}"],
            "attention MB": memory[f"attention {number}"],
        }
        for number in wanted
    ]
    path = arguments.results / "streaming.png"
    plot(path, measured)
    ratios = {name: measured[-1][name] / measured[0][name] for name in measured[0] if name != "frame"}
    text = report.table(list(measured[0]), [list(point.values()) for point in measured])
    text += f"\nframe {wanted[-1]} over frame 1: " + ", ".join(f"{k} x {v:.3f}" for k, v in ratios.items())
    report.write("streaming", text, {"frames_measured": measured, "last_over_first": ratios}, arguments)
    print(f"plot: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def plot(path: Path, measured: list[dict[str, float]]) -> None:
    """Time and memory of a step over the number of the frame."""
    figure = Figure((10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    frames = [point["frame"] for point in measured]
    for axis, unit, label in zip(axes, ("ms", "MB"), ("time of a frame, ms", "memory, MB"), strict=True):
        for name in ("PoM", "attention"):
            shown = name if name == "PoM" else "attention with its cache"
            axis.plot(frames, [point[f"{name} {unit}"] for point in measured], marker="o", label=shown)
        axis.set(xscale="log", yscale="log", xlabel="frame", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
