"""What a layer sends where the tokens of a sequence are cut over devices: PoM states, attention tokens.

    python -m benchmarks.communication [--tokens 1024 4096 16384] [--width=384] [--devices=8]

Compiles a scanned stack of blocks (mixer and feed-forward network) for virtual devices and reads the
compiled programs; arrays are abstract and nothing runs. Bytes are those of the arrays that a layer sums or
gathers over the devices, for one sequence in float32; a ring sends each about once for a gather, twice for a
sum. The sum of the slopes of the parameters is that of any data parallelism, whatever the mixer and the
tokens; it is told apart and not plotted. Makes a table, a JSON file and a plot. Two minutes on two CPU cores.
"""

import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from matplotlib.figure import Figure

from benchmarks import report
from pom_jax.nn import MultiHeadAttention, Phase, PoM, Rotary
from pom_jax.nn.blocks import ModulatedBlock, stack
from pom_jax.training import sharding
from pom_jax.training.collectives import Collective, collectives, in_layers, total_bytes

DEPTH, FRAMES, COLUMNS, HEAD_WIDTH = 2, 8, 16, 64
KINDS = ("PoM", "PoM by frames", "attention")


class FrameCausal(nn.Module):
    """PoM over the frames of a video: a token sees its own frame and those before.

    Attributes:
        grid: frames, rows and columns of tokens; features and gates are rotated by all three.
        expansion: of PoM; the expanded width must be a multiple of 6.
        reads: of PoM.
        period: of a phase read along the columns, 0 for none.
    """

    grid: tuple[int, int, int]
    expansion: int = 2
    reads: tuple[str, ...] = ("all",)
    period: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        """x: [B, T H W, D] -> [B, T H W, D]."""
        still = (math.inf,)
        phase = Phase((still, still, (math.inf, self.period, -self.period))) if self.period else None
        pom = PoM(
            expansion=self.expansion,
            rotary=Rotary(3),
            phase=phase,
            grid=self.grid,
            reads=self.reads,
            name="pom",
        )
        return pom(x, frames=self.grid[1] * self.grid[2])


class Blocks(nn.Module):
    """A scanned stack of blocks around a mixer."""

    mixer: Callable[..., nn.Module]
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """x: [B, N, D], condition: [B, 1, D] -> [B, N, D]."""
        return stack(ModulatedBlock(self.mixer, name="blocks"), DEPTH, x, condition, remat=self.remat)


def mixer(kind: str, tokens: int, width: int) -> Callable[..., nn.Module]:
    """Of one of `KINDS`; frames are always as many, and grow with the tokens."""
    return {
        "PoM": PoM,
        "PoM by frames": functools.partial(
            FrameCausal, (FRAMES, tokens // FRAMES // COLUMNS, COLUMNS), period=16.0
        ),
        "attention": functools.partial(MultiHeadAttention, width // HEAD_WIDTH),
    }[kind]


def program(model: nn.Module, tokens: int, width: int, mesh: Mesh, slopes: tuple[int, ...]) -> Any:
    """The compiled forward pass, or the value and slopes by some of parameters, tokens and condition."""

    def forward(params: Any, x: jax.Array, condition: jax.Array) -> Any:
        return model.apply({"params": params}, x, condition)

    def loss(*arguments: Any) -> jax.Array:
        return (forward(*arguments) ** 2).sum()

    x, condition = (jax.ShapeDtypeStruct((1, n, width), jnp.float32) for n in (tokens, 1))
    at = NamedSharding(mesh, PartitionSpec(None, "context"))
    with jax.set_mesh(mesh):
        params = jax.eval_shape(lambda *to: model.init(jax.random.key(0), *to), x, condition)["params"]
        places = sharding.parameter_shardings(params, mesh)
        placed = [
            jax.tree.map(lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes, sharding)
            for shapes, sharding in ((params, places), (x, at))
        ]
        run: Any = jax.value_and_grad(loss, slopes) if slopes else forward
        return jax.jit(run).lower(*placed, condition).compile()


def sends(kind: str, tokens: int, width: int, mesh: Mesh, slopes: tuple[int, ...]) -> list[Collective]:
    """The collectives of the blocks of such a program."""
    found = collectives(program(Blocks(mixer(kind, tokens, width)), tokens, width, mesh, slopes).as_text())
    return [one for one in found if one.times % DEPTH == 0]


def measure(kind: str, tokens: int, width: int, mesh: Mesh) -> dict[str, Any]:
    """Bytes of a layer forwards, forwards and backwards, and with the slopes of its parameters."""
    forward, tokens_only, whole = (sends(kind, tokens, width, mesh, by) for by in ((), (1,), (0, 1, 2)))
    counts = in_layers(tokens_only, DEPTH)
    return {
        "mixer": kind,
        "tokens": tokens,
        "forwards, KiB": total_bytes(forward) / DEPTH / 1024,
        "and backwards, KiB": total_bytes(tokens_only) / DEPTH / 1024,
        "in": ", ".join(f"{count:g} {name}" for name, (count, _) in counts.items()),
        "slopes of parameters, KiB": (total_bytes(whole) - total_bytes(tokens_only)) / DEPTH / 1024,
    }


def main() -> None:
    """Compiles and reports."""
    parser = report.parser(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024 * 2**i for i in range(5)])
    parser.add_argument("--width", type=int, default=384, help="D")
    parser.add_argument("--devices", type=int, default=8, help="that the tokens are cut over")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", arguments.devices)

    mesh = sharding.make_mesh({"data": 1, "context": arguments.devices})
    found = []
    for kind in KINDS:
        for tokens in arguments.tokens:
            found.append(measure(kind, tokens, arguments.width, mesh))
            print(f"{kind}, {tokens} tokens", flush=True)
    text = report.table(list(found[0]), [list(row.values()) for row in found])
    path = arguments.results / "communication.png"
    plot(path, found, arguments.devices)
    report.write("communication", text, {"layers": found}, arguments)
    print(f"plot: {os.path.relpath(path)}")


def plot(path: Path, found: list[dict[str, Any]], devices: int) -> None:
    """Bytes of a layer over tokens."""
    figure = Figure((6, 4), layout="constrained")
    axis = figure.subplots()
    for kind in KINDS:
        rows = [row for row in found if row["mixer"] == kind]
        tokens, sizes = ([row[name] for row in rows] for name in ("tokens", "and backwards, KiB"))
        axis.plot(tokens, sizes, marker="o", label=f"{kind} ({FRAMES} frames)" if "frames" in kind else kind)
    axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="KiB a layer, forwards and backwards")
    axis.set_title(f"one sequence over {devices} devices")
    axis.set_xscale("log", base=2)
    axis.grid(alpha=0.3)
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
