"""Where the time of the digits run goes: input, an idle device, the step; looped, unrolled, recomputed.

    python -m benchmarks.digits_run [--steps=400]

Trains the digits recipe for a few hundred steps in each variant, in new workdirs, and reads their metrics.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from absl import logging

from benchmarks import report
from configs import digits
from pom_jax.host_memory import keep_freed_memory
from pom_jax.training import loop

VARIANTS: dict[str, dict[str, Any]] = {
    "scanned": {},
    "unrolled": {"scan": False},
    "scanned, remat dots": {"remat": "dots"},
    "scanned, remat full": {"remat": "full"},
}
WARM_UP = 50


def rows_of(model: dict[str, Any], steps: int, data: str) -> list[dict[str, float]]:
    """Metrics of the steps after the warm-up, without the last one, which ends in a checkpoint."""
    config = digits.get_config()
    config.data.dir = data
    config.model.update(model)
    config.train.update({"steps": steps, "eval_every": 0, "sample_every": 0, "checkpoint_every": steps})
    with tempfile.TemporaryDirectory() as folder:
        loop.train(config, folder, lambda *_: None)
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines][WARM_UP:-1]


def main() -> None:
    """Measures and reports."""
    parser = report.parser(__doc__)
    parser.add_argument("--steps", type=int, default=400, help=f"steps each, the first {WARM_UP} not counted")
    parser.add_argument("--data", default="data/digits", help="folder of `prepare.py digits`")
    arguments = parser.parse_args()
    keep_freed_memory()
    logging.set_verbosity(logging.WARNING)

    table, figures = [], {}
    for name, model in VARIANTS.items():
        rows = rows_of(model, arguments.steps, arguments.data)
        total = sum(row["time_step"] for row in rows)
        figures[name] = {
            "steps_per_second": 1 / statistics.median(row["time_step"] for row in rows),
            "input_share": sum(row["time_input"] for row in rows) / total,
            "idle_share": sum(row["time_idle"] for row in rows) / total,
        }
        shares = [f"{100 * figures[name][share]:.2f} %" for share in ("input_share", "idle_share")]
        table.append([name, figures[name]["steps_per_second"], *shares])
    text = report.table(["digits, batch 64", "steps/s", "waiting for input", "device idle, at most"], table)
    report.write("digits_run", text, {"variants": figures}, arguments)


if __name__ == "__main__":
    main()
