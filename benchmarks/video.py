"""The text-to-video network: what block-causal mixing costs, how a step grows with frames, and a long film.

    python -m benchmarks.video [--frames=1000] [--rounds=30]

Training steps (value and gradient) side by side: the same clips with all frames seeing all, and with each
seeing those before; and four times the frames. Then one film, frame after frame, from the states of a PoM
model and from the growing cache of its attention twin: time of a frame, bytes carried and the compiled
program's temporaries. Makes a table, a JSON file and a plot. Six minutes on two CPU cores.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import report
from benchmarks.streaming import megabytes, plot
from pom_jax import models
from pom_jax.host_memory import keep_freed_memory
from pom_jax.models import Polymorpher, Text

SIZES: dict[str, Any] = {
    "frame_height": 16,
    "frame_width": 16,
    "channels": 4,
    "text_length": 8,
    "text_width": 64,
}
SIZES |= {"patch_size": 2, "width": 192, "depth": 4, "num_heads": 3}
FRAMES = 8  # of a training clip


def network(mixer: str, frames: int = FRAMES, causal: bool = True) -> Any:
    """A small network of one of both mixers."""
    return Polymorpher(frames=frames, mixer=mixer, frame_causal=causal, **SIZES)


def inputs(frames: int, batch: int = 1) -> tuple[jax.Array, jax.Array, Text]:
    """A clip, its time and a text."""
    shape = (batch, frames, SIZES["frame_height"], SIZES["frame_width"], SIZES["channels"])
    text = Text(jnp.ones((batch, SIZES["text_length"], SIZES["text_width"])), jnp.ones((batch, 8)))
    return jax.random.normal(jax.random.key(0), shape), jnp.full(batch, 0.5), text


def training_step(model: Any, frames: int) -> Any:
    """The compiled value and gradient of a loss, called without arguments."""
    params = models.init(model, jax.random.key(1))
    given = inputs(frames)

    def loss(params: Any) -> jax.Array:
        return jnp.mean(jnp.square(model.apply({"params": params}, *given)))

    return functools.partial(jax.jit(jax.value_and_grad(loss)).lower(params).compile(), params)


def measure_steps(rounds: int) -> dict[str, float]:
    """Seconds of training steps, in turns."""
    calls = {
        "all see all": training_step(network("pom", causal=False), FRAMES),
        "block-causal": training_step(network("pom"), FRAMES),
        "block-causal, 4 x the frames": training_step(network("pom", 4 * FRAMES), 4 * FRAMES),
        "attention, block-causal": training_step(network("attention"), FRAMES),
        "attention, 4 x the frames": training_step(network("attention", 4 * FRAMES), 4 * FRAMES),
    }
    return report.in_turns(calls, rounds)


def temporaries(compiled: Any) -> float:
    """Megabytes that a compiled program needs besides what it is given and gives."""
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


def measure_film(frames: int, rounds: int) -> list[dict[str, float]]:
    """Time and memory of single frames of a film, by their number."""
    wanted = [n for n in (2, 5, 10, 20, 50, 100, 200, 500) if n < frames] + [frames]
    x, t, text = inputs(1)
    calls: dict[str, Any] = {}
    memory: dict[str, float] = {}
    compiled: Any = None
    for mixer in ("pom", "attention"):
        model = network(mixer)
        params = models.init(model, jax.random.key(1))

        def step(params: Any, state: Any, first: jax.Array, model: Any = model) -> Any:
            return model.apply({"params": params}, x, t, text, state, first)

        state, compiled = model.init_states(1), None
        for number in range(1, frames + 1):
            if mixer == "attention" and number in wanted:
                # The cache as it stands then: what is in it does not matter to time and memory.
                past = (number - 1) * SIZES["frame_height"] * SIZES["frame_width"] // SIZES["patch_size"] ** 2
                grow = functools.partial(lambda n, a: jnp.ones((*a.shape[:2], n, *a.shape[3:])), past)
                state = state._replace(blocks=jax.tree.map(grow, state.blocks))
            if compiled is None or (mixer == "attention" and number in wanted):
                compiled = jax.jit(step).lower(params, state, jnp.int32(0)).compile()
            if number in wanted:
                name = f"{mixer} {number}"
                calls[name] = functools.partial(compiled, params, state, jnp.int32(number))
                memory[name] = megabytes(state) + temporaries(compiled)
                print(f"{mixer}: frame {number} of {frames}", flush=True)
            if mixer == "pom":
                state = compiled(params, state, jnp.int32(number))[1]
    times: dict[str, float] = {}
    for mixer in ("pom", "attention"):
        times |= report.in_turns({n: c for n, c in calls.items() if n.startswith(mixer)}, rounds)
    return [
        {
            "frame": number,
            "PoM ms": 1e3 * times[f"pom {number}"],
            "attention ms": 1e3 * times[f"attention {number}"],
            "PoM MB": memory[f"pom {number}"],
            "attention MB": memory[f"attention {number}"],
        }
        for number in wanted
    ]


def main() -> None:
    """Measures and reports."""
    parser = report.parser(__doc__)
    parser.add_argument("--frames", type=int, default=1000, help="frames of the film")
    parser.add_argument("--rounds", type=int, default=30, help="timed steps of each, in turns")
    arguments = parser.parse_args()
    keep_freed_memory()
    steps = measure_steps(arguments.rounds)
    film = measure_film(arguments.frames, arguments.rounds)
    ratios = {
        "block-causal over all see all": steps["block-causal"] / steps["all see all"],
        "4 x the frames": steps["block-causal, 4 x the frames"] / steps["block-causal"],
        "4 x the frames, attention": steps["attention, 4 x the frames"] / steps["attention, block-causal"],
        "last frame over frame 2, time": film[-1]["PoM ms"] / film[0]["PoM ms"],
        "last frame over frame 2, memory": film[-1]["PoM MB"] / film[0]["PoM MB"],
    }
    text = report.table(["training step", "ms"], [[name, 1e3 * value] for name, value in steps.items()])
    text += "\n\n" + report.table(list(film[0]), [list(row.values()) for row in film])
    text += "\n" + ", ".join(f"{name} x {value:.3f}" for name, value in ratios.items())
    path = arguments.results / "video.png"
    plot(path, film)
    report.write("video", text, {"steps_s": steps, "film": film, "ratios": ratios}, arguments)
    print(f"plot: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


if __name__ == "__main__":
    main()
