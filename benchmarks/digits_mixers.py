"""The mixers side by side on the digits, from workdirs that were trained and scored: `make evidence`.

    python -m benchmarks.digits_mixers DIR ...

Workdirs of the same recipe and another seed share a column.
"""

import json
from collections import defaultdict
from pathlib import Path

from benchmarks import report
from pom_jax.evaluation.report import DIGIT_METRICS
from pom_jax.training.checkpoint import load_config


def main() -> None:
    """Reads and reports."""
    parser = report.parser(__doc__)
    parser.add_argument("workdirs", nargs="+", metavar="DIR", help="trained and scored")
    arguments = parser.parse_args()
    columns: dict[str, list[dict]] = defaultdict(list)
    baselines: dict[str, dict] = {}
    protocols = set()
    for workdir in sorted(arguments.workdirs, key=lambda w: load_config(w).seed):
        scores = json.loads((Path(workdir) / "eval" / "scores.json").read_text())
        columns[load_config(workdir).name].append(scores["samples"])
        baselines = scores["baselines"]
        protocols.add("; ".join(f"{name} {value}" for name, value in scores["protocol"].items()))
    shown = ["ideal", "Gaussian"]
    parts, figures = [], {}
    for guidance in next(iter(columns.values()))[0]:
        rows = []
        for metric, shown_as in DIGIT_METRICS.items():
            seeds = {name: [s[guidance]["mean"][metric] for s in each] for name, each in columns.items()}
            figures[f"{guidance}, {metric}"] = seeds
            cells = [
                ", ".join(shown_as.format.format(value) for value in values) for values in seeds.values()
            ]
            others = [shown_as.format.format(baselines[name]["mean"][metric]) for name in shown]
            rows.append([shown_as.title, *cells, *others])
        parts.append(report.table([guidance, *columns, *shown], rows))
    report.write("digits_mixers", "\n\n".join([*parts, *sorted(protocols)]), {"scores": figures}, arguments)


if __name__ == "__main__":
    main()
