"""Scores as people read them: a table with what simple baselines score, the legend, and the protocol line."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Metric(NamedTuple):
    """How a score is shown: its title, its number format, which way is better, and one line of meaning."""

    title: str
    format: str
    better: str
    meaning: str


DIGIT_METRICS = {
    "recognised": Metric(
        "recognised", "{:.1%}", "↑", "samples that a classifier of real digits reads as asked"
    ),
    "worst_class": Metric("worst class", "{:.1%}", "↑", "the same for the worst of the ten digits"),
    "frechet_pca": Metric(
        "Fréchet, PCA",
        "{:.2f}",
        "↓",
        "distance to unseen digits / that of the training images; 1 = as near as they",
    ),
    "frechet_mlp": Metric(
        "Fréchet, MLP", "{:.2f}", "↓", "the same in the hidden layer of five small networks"
    ),
    "two_sample": Metric(
        "two-sample",
        "{:.3f}",
        "↓",
        "accuracy of telling samples from unseen digits; 0.5 = cannot be told (noise 0.02)",
    ),
    "train_on_synthetic": Metric(
        "train on synthetic",
        "{:.1%}",
        "↑",
        "unseen digits that a classifier fitted on the samples alone reads rightly",
    ),
    "coverage": Metric("coverage", "{:.1%}", "↑", "unseen digits with a sample in their neighbourhood"),
    "nearest_ratio": Metric(
        "nearest ratio",
        "{:.2f}",
        "→ 1",
        "median distance to the nearest training image / that of unseen digits; 1 = alike",
    ),
    "copies": Metric(
        "copies", "{:.1%}", "↓", "samples nearer to a training image than 99 % of unseen digits; 1 % = alike"
    ),
}

WAYS = "↑ higher is better, ↓ lower is better, → 1 the nearer to 1 the better"

# What the columns beside the samples are.
COMPARED = {
    "ideal": "what unseen real digits score, or would",
    "replayed": "the training images themselves",
    "Gaussian": "one Gaussian a class, full covariance",
    "class mean": "the mean image of the class, every time",
    "noise": "every pixel anywhere between black and white",
}


class Column(NamedTuple):
    """One way of making images: its name and its scores with each sampling seed."""

    name: str
    seeds: Sequence[Mapping[str, float]]

    def mean(self, metric: str) -> float:
        return float(np.mean([scores[metric] for scores in self.seeds]))

    def spread(self, metric: str) -> float:
        """Standard deviation over the seeds (of the sample, n - 1); NaN for a single one."""
        values = [scores[metric] for scores in self.seeds]
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


@dataclass(frozen=True)
class Report:
    """What eval.py prints and writes.

    Attributes:
        subject: what was scored, e.g. the workdir.
        samples: one column for each guidance scale.
        baselines: simple ways to make digits, and what unseen real digits would score.
        protocol: everything needed to repeat the numbers, in the order to print it.
        pairs: [rows, columns, 8, 8, 1] uint8, samples above their nearest training images.
    """

    subject: str
    samples: Sequence[Column]
    baselines: Sequence[Column]
    protocol: Mapping[str, str]
    pairs: np.ndarray

    def protocol_line(self) -> str:
        return "protocol: " + "; ".join(f"{name} {value}" for name, value in self.protocol.items())

    def in_short(self) -> str:
        """One sentence: the scores of the first column beside those of real digits and of one Gaussian."""
        ours = self.samples[0]
        others = {column.name: column for column in self.baselines}
        real, simple = others["ideal"], others["Gaussian"]
        which = f", {ours.name}" if len(self.samples) > 1 else ""
        return (
            f"In short{which}: {_percent(ours.mean('recognised'))} recognised "
            f"(real digits {_percent(real.mean('recognised'))}), Fréchet {ours.mean('frechet_pca'):.2f} "
            f"(real {real.mean('frechet_pca'):.2f}, one Gaussian a class {simple.mean('frechet_pca'):.2f}), "
            f"copies {_percent(ours.mean('copies'))} "
            f"({100 * real.mean('copies'):.0f} % among unseen digits)"
        )

    def table(self) -> list[list[str]]:
        """Cells: a row a score, our columns with mean and spread, the baselines with the mean."""
        rows = [["", *(column.name for column in (*self.samples, *self.baselines))]]
        for name, metric in DIGIT_METRICS.items():
            ours = [with_spread(metric, column.mean(name), column.spread(name)) for column in self.samples]
            others = [metric.format.format(column.mean(name)) for column in self.baselines]
            rows.append([f"{metric.title} {metric.better}", *ours, *others])
        return rows

    def legend(self) -> dict[str, str]:
        """What the rows and the baselines mean."""
        rows = {metric.title: metric.meaning for metric in DIGIT_METRICS.values()}
        return rows | {column.name: COMPARED[column.name] for column in self.baselines}

    def text(self) -> str:
        """For a terminal."""
        rows = self.table()
        widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
        lines = [
            "  ".join(
                _pad(cell, width, place) for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        legend = [
            "  " + WAYS,
            *(f"  {title:<{widths[0]}}  {meaning}" for title, meaning in self.legend().items()),
        ]
        return "\n".join(
            [
                f"scores of {self.subject}",
                "",
                self.in_short(),
                "",
                *lines,
                "",
                *legend,
                "",
                self.protocol_line(),
            ]
        )

    def markdown(self) -> str:
        """For a README or a pull request."""
        head, *rows = self.table()
        lines = [
            f"# Scores of {self.subject}",
            "",
            self.in_short(),
            "",
            "| " + " | ".join(head) + " |",
            "|---" * len(head) + "|",
        ]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines += ["", WAYS, "", *(f"- **{title}**: {meaning}" for title, meaning in self.legend().items())]
        return "\n".join([*lines, "", self.protocol_line(), ""])

    def json(self) -> str:
        def columns(group: Sequence[Column]) -> dict[str, Any]:
            return {
                column.name: {
                    "mean": {name: column.mean(name) for name in DIGIT_METRICS},
                    "seeds": [dict(scores) for scores in column.seeds],
                }
                for column in group
            }

        content = {
            "subject": self.subject,
            "protocol": dict(self.protocol),
            "samples": columns(self.samples),
            "baselines": columns(self.baselines),
        }
        return json.dumps(content, indent=2) + "\n"


def with_spread(metric: Metric, mean: float, spread: float) -> str:
    """Both in the metric's format; the mean alone if the spread is NaN."""
    shown = metric.format.format(mean)
    if np.isnan(spread):
        return shown
    return f"{shown} ± {metric.format.format(spread).rstrip('%')}"


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"


def _pad(cell: str, width: int, place: int) -> str:
    return cell.ljust(width) if place == 0 else cell.rjust(width)
