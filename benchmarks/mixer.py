"""One mixing layer over sequence lengths: PoM's two twins, causal and by frames, beside attention.

    python -m benchmarks.mixer [--tokens 256 1024 4096 16384 65536] [--widths 384 1152] [--batch=1] \\
        [--dtype=bfloat16]

Forward, and forward with backward, of all forms in turns in one run, beside the time of the product form's
matrix products alone: three forward, nine in all, recomputation not counted. A form whose arrays exceed the
memory is printed as "does not fit". The whole table is measured --passes times and the quickest time counts,
so that a slow stretch of a shared machine spoils neither the ratios of a row nor the growth from row to row.
Makes a table, a JSON file and a plot. On two CPU cores a pass takes a quarter of an hour; --tokens 256 1024
4096 takes two minutes.

--dtype is that of tokens and products; parameters, polynomials, means and softmax stay float32. In bfloat16
on a GPU there is a row of attention by cuDNN too, which takes no float32; files are named mixer_bfloat16.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from matplotlib.figure import Figure

from benchmarks import report
from pom_jax.host_memory import keep_freed_memory, release_freed_memory
from pom_jax.nn import Dense, MultiHeadAttention, PoM
from pom_jax.ops.mesh import backend


class CudnnAttention(nn.Module):
    """`nn.MultiHeadAttention` of tokens with themselves, in cuDNN's fused kernel."""

    num_heads: int
    dtype: Any = None
    implementation: Any = "cudnn"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, N, D] -> [B, N, D]."""
        heads = (self.num_heads, x.shape[-1] // self.num_heads)
        q, k, v = (Dense(heads, dtype=self.dtype, name=name)(x) for name in ("query", "key", "value"))
        y = jax.nn.dot_product_attention(q, k, v, implementation=self.implementation)
        return Dense(x.shape[-1], axes=2, dtype=self.dtype, name="out")(y)


# Tokens of a frame in the form that mixes by frames.
FRAME = 256
PRODUCTS = "products alone"
CUDNN = "attention, cuDNN"
# Layers, or classes of attention, which take the number of heads; and options of the call.
LAYERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "naive": (PoM(implementation="naive"), {}),
    "lean": (PoM(implementation="lean"), {}),
    "lean, by frames": (PoM(implementation="lean"), {"frames": FRAME}),
    "lean, causal": (PoM(implementation="lean"), {"causal": True}),
    "attention": (MultiHeadAttention, {}),
    CUDNN: (CudnnAttention, {}),
}
DIRECTIONS = ("forward", "forward + backward")


def names_of(dtype: str) -> list[str]:
    """Of the forms that run here: cuDNN's on GPUs, in 16 bits."""
    return [name for name in LAYERS if name != CUDNN or (backend() == "gpu" and dtype == "bfloat16")]


@functools.cache
def compiled(name: str, direction: str, heads: int, shape: tuple[int, ...], dtype: str) -> tuple[Any, Any]:
    """A form in one direction, compiled for parameters and x [B, N, D], and the shapes of the parameters."""
    layer, options = LAYERS[name]
    layer = (layer(heads) if isinstance(layer, type) else layer).clone(dtype=jnp.dtype(dtype))
    x = jax.ShapeDtypeStruct(shape, dtype)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)

    def forward(params: Any, x: jax.Array) -> Any:
        return layer.apply(params, x, **options)

    def both(params: Any, x: jax.Array) -> Any:
        y, pull = jax.vjp(forward, params, x)
        return y, pull(x)

    function = forward if direction == DIRECTIONS[0] else both
    return jax.jit(function).lower(shapes, x).compile(), shapes


def form_of(
    name: str, direction: str, heads: int, x: jax.Array, memory: float
) -> tuple[Callable[[], object] | None, float]:
    """The call, None where it needs more than `memory` bytes, and its temporaries in MB."""
    call, shapes = compiled(name, direction, heads, x.shape, x.dtype.name)
    needed = call.memory_analysis()
    temporaries = needed.temp_size_in_bytes
    if temporaries + needed.output_size_in_bytes + needed.argument_size_in_bytes >= memory:
        return None, temporaries / 1e6
    scale = 1 / x.shape[-1] ** 0.5
    params = jax.tree.map(lambda s: scale * jax.random.normal(jax.random.key(s.size), s.shape), shapes)
    return functools.partial(call, params, x), temporaries / 1e6


def products_of(
    width: int, rows: int, dtype: str, degree: int = 2, expansion: int = 2
) -> dict[str, Callable[[], object]]:
    """The matrix products of the product form in each direction, one after the other, nothing between them.

    Tokens are rows, as in the layer: x [N, D] by a kernel [D, F], gated features [N, F] by one [F, D], and
    for the weights x or gated features with slopes, summed over the rows.
    """
    inner = degree * expansion * width
    shapes = ((rows, width), (rows, inner), (width, inner), (inner, width))
    x, f, enter, leave = (jax.random.normal(jax.random.key(2), shape, dtype) for shape in shapes)
    product = jax.jit(jnp.matmul)
    summed = jax.jit(lambda a, b: jnp.tensordot(a, b, axes=(0, 0)))

    def forward() -> list[jax.Array]:
        return [product(x, enter), product(x, enter), product(f, leave)]

    def both() -> list[jax.Array]:
        backward = [product(x, enter), product(f, leave), product(f, leave)]
        return forward() + backward + [summed(x, f), summed(x, f), summed(f, x)]

    return dict(zip(DIRECTIONS, (forward, both), strict=True))


def measure(x: jax.Array, heads: int, memory: float, most: float) -> dict[str, Any]:
    """Seconds and megabytes of temporaries of each form and direction on x [B, N, D], and of products alone.

    Forms take turns for about `most` seconds, at least twice after a warm-up; a call that takes longer is its
    own warm-up.
    """
    batch, tokens, width = x.shape
    names = names_of(x.dtype.name)
    names = [name for name in names if "frames" not in LAYERS[name][1] or tokens % FRAME == 0]
    products = products_of(width, batch * tokens, x.dtype.name)
    figures: dict[str, Any] = {}
    for direction in DIRECTIONS:
        forms = {name: form_of(name, direction, heads, x, memory) for name in names}
        calls = {name: call for name, (call, _) in forms.items() if call is not None}
        calls[PRODUCTS] = products[direction]
        times = {name: report.seconds(call) for name, call in calls.items()}
        quick = {name: call for name, call in calls.items() if times[name] < most}
        rounds = int(most / sum(times[name] for name in quick)) if quick else 0
        times |= report.in_turns(quick, max(2, min(9, rounds)), warm=True, of_turns=min)
        figures[direction] = {
            name: {"seconds": times.get(name), "temporaries_mb": megabytes}
            for name, (_, megabytes) in forms.items()
        }
        figures[direction][PRODUCTS] = {"seconds": times[PRODUCTS], "temporaries_mb": 0.0}
    return figures


def quicker(first: Any, second: Any) -> Any:
    """The figures of two passes with the lower seconds of each."""
    return jax.tree.map(min, first, second)  # what does not fit has None, which is no leaf


def rows_of(width: int, tokens: int, figures: dict[str, Any], names: list[str]) -> list[list[object]]:
    """The table's rows: milliseconds, times the products alone, megabytes."""
    rows: list[list[object]] = []
    for name in (PRODUCTS, *names):
        row: list[object] = [width, tokens, name]
        for direction in DIRECTIONS:
            found = figures[direction].get(name)
            if found is None:
                row += ["-", "-"]
            elif found["seconds"] is None:
                row += ["does not fit", "-"]
            else:
                floor = figures[direction][PRODUCTS]["seconds"]
                row += [1e3 * found["seconds"], f"{found['seconds'] / floor:.2f}"]
        found = figures[DIRECTIONS[1]].get(name)
        rows.append([*row, "-" if found is None or name == PRODUCTS else f"{found['temporaries_mb']:,.0f}"])
    return rows


def plot(path: Path, figures: dict[str, dict[str, Any]], names: list[str]) -> None:
    """Time and temporaries of forward + backward over the tokens, a column for each width."""
    figure = Figure((5 * len(figures), 7), layout="constrained")
    axes = figure.subplots(2, len(figures), squeeze=False)
    for column, (width, by_tokens) in enumerate(figures.items()):
        for row, (field, label) in enumerate((("seconds", "s"), ("temporaries_mb", "temporaries, MB"))):
            axis = axes[row][column]
            for name in (PRODUCTS, *names):
                if name == PRODUCTS and row:
                    continue
                points = [
                    (int(tokens), found[DIRECTIONS[1]][name][field])
                    for tokens, found in by_tokens.items()
                    if name in found[DIRECTIONS[1]]
                ]
                points = [point for point in points if point[1] is not None]
                style = {"linestyle": "--", "color": "grey"} if name == PRODUCTS else {"marker": "o"}
                axis.plot(*zip(*points, strict=True), label=name, **style)
            axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
            axis.set_title(f"forward + backward, width {width}" if not row else "")
            axis.set_xticks([int(t) for t in by_tokens], [f"{int(t):,}" for t in by_tokens])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    axes[0][0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measures and reports."""
    parser = report.parser(__doc__)
    tokens = [256, 1024, 4096, 16384, 65536]
    parser.add_argument("--tokens", type=int, nargs="+", default=tokens, help="sequence lengths")
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 1152], help="D")
    parser.add_argument("--batch", type=int, default=1, help="B")
    dtypes = ("float32", "bfloat16")
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="of tokens and products")
    parser.add_argument("--head-width", type=int, default=64, help="channels of an attention head")
    parser.add_argument("--memory", type=float, default=16, help="GB that a form may need")
    parser.add_argument("--seconds", type=float, default=12, help="for which forms take turns, each pass")
    parser.add_argument("--passes", type=int, default=2, help="over the whole table; the quickest counts")
    arguments = parser.parse_args()

    keep_freed_memory()
    figures: dict[str, dict[str, Any]] = {str(width): {} for width in arguments.widths}
    for number in range(arguments.passes):
        for width in arguments.widths:
            for tokens in arguments.tokens:
                print(f"pass {number + 1}: width {width}, {tokens} tokens ...", flush=True)
                heads, memory = width // arguments.head_width, 1e9 * arguments.memory
                shape = (arguments.batch, tokens, width)
                x = jax.random.normal(jax.random.key(1), shape, arguments.dtype)
                found = measure(x, heads, memory, arguments.seconds)
                earlier = figures[str(width)].get(str(tokens), found)
                figures[str(width)][str(tokens)] = quicker(earlier, found)
                release_freed_memory()  # the next size needs other pieces
        tell(figures, arguments)


def tell(figures: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Prints, plots and keeps what is known so far."""
    names = names_of(arguments.dtype)
    file = "mixer" if arguments.dtype == "float32" else f"mixer_{arguments.dtype}"
    rows = [
        row
        for width, by_tokens in figures.items()
        for tokens, found in by_tokens.items()
        for row in rows_of(int(width), int(tokens), found, names)
    ]
    header = ["width", "tokens", "form", "forward, ms", "x products"]
    header += ["forward + backward, ms", "x products", "temporaries, MB"]
    path = arguments.results / f"{file}.png"
    plot(path, figures, names)
    report.write(file, report.table(header, rows), {"figures": figures}, arguments)
    print(f"plot: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


if __name__ == "__main__":
    main()
