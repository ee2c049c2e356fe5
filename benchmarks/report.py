"""How every benchmark tells what it measured: a table, a JSON file, and on what it was measured."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import flax
import jax

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Of a benchmark's command line, with the folder of its results."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    found.add_argument("--results", type=Path, default=RESULTS, help="folder for figures and plots")
    return found


def setting() -> dict[str, str]:
    """The device and the versions a figure belongs to."""
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return {
        "device": f"{device}, {os.cpu_count()} CPU cores, {platform.machine()}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def seconds(call: Callable[[], object]) -> float:
    """One timed call, waiting for its arrays."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def in_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm: bool = False,
    of_turns: Callable[[list[float]], float] = statistics.median,
) -> dict[str, float]:
    """Seconds of each call, measured A B C A B C ... so that all meet the same drift of the machine.

    Every call runs once before, untimed, to compile, unless they are `warm`. `of_turns` makes one number of
    the times of a call.
    """
    if not warm:
        for call in calls.values():
            jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return {name: of_turns(values) for name, values in times.items()}


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; floats get three significant digits."""
    cells = [list(header), ["---"] * len(header)]
    cells += [[f"{c:.3g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def write(name: str, text: str, figures: Mapping[str, object], arguments: argparse.Namespace) -> None:
    """Prints the text and keeps setting, arguments and figures in NAME.json in the folder of the results."""
    path = arguments.results / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = {key: value for key, value in vars(arguments).items() if key != "results"}
    path.write_text(json.dumps({"setting": setting(), **chosen, **figures}, indent=1) + "\n")
    print(text)
    print("measured on " + ", ".join(f"{key} {value}" for key, value in setting().items() if value))
    print(f"figures: {os.path.relpath(path)}", flush=True)
