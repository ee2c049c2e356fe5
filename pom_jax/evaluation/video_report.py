"""Scores of clips as people read them: a table a protocol, the legend, and how the clips were made."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pom_jax.evaluation.report import WAYS, Metric, with_spread
from pom_jax.evaluation.video_protocols import Column, Found, Part

VIDEO_METRICS = {
    "recognised": Metric(
        "recognised", "{:.1%}", "↑", "frames whose digit a classifier of real digits reads as asked"
    ),
    "direction": Metric("direction", "{:.1%}", "↑", "steps to the side where the true path leads"),
    "speed": Metric(
        "speed",
        "{:.1%}",
        "↑",
        "steps of 1 pixel, give or take half of one, wherever they lead, as noise does too",
    ),
    "on_path": Metric(
        "on path", "{:.1%}", "↑", "steps less than half a pixel off the true one, in both axes"
    ),
    "identity": Metric(
        "identity",
        "{:.3f}",
        "↑",
        "correlation with the first frame's digit, less that with others of its class; a clip "
        "that stands still has it too",
    ),
    "true_frame": Metric("true frame", "{:.3f}", "↑", "correlation of whole frames with the true ones"),
    "frechet": Metric(
        "Fréchet",
        "{:.2f}",
        "↓",
        "distance of a frame's digits to unseen ones / that of the training digits; less with more clips",
    ),
}
LOST = ("recognised", "direction")  # of which the points lost along a clip are counted

# What the columns beside the models are.
COMPARED = {
    "swapped": "given the first frame of another clip, scored against the right one",
    "blank": "given a black first frame, scored against the right one",
    "frozen": "the first frame for ever",
    "real": "the real held-out clips: what can be reached",
}


class VideoReport(NamedTuple):
    """What eval.py prints and writes.

    Attributes:
        subject: what was scored.
        found: a protocol each.
        protocol: everything needed to repeat the numbers, in the order to print it.
    """

    subject: str
    found: Sequence[Found]
    protocol: Mapping[str, str]

    def protocol_line(self) -> str:
        return "protocol: " + "; ".join(f"{name} {value}" for name, value in self.protocol.items())

    def legend(self) -> dict[str, str]:
        """What the rows and the columns beside the models mean."""
        shown = {name for found in self.found for column in found.columns for name in by_name(column)}
        rows = {m.title: m.meaning for name, m in VIDEO_METRICS.items() if name in shown}
        names = [column.name for found in self.found for column in found.columns]
        return rows | {
            kind: meaning
            for kind, meaning in COMPARED.items()
            if any(name == kind or name.endswith(f", {kind}") for name in names)
        }

    def text(self) -> str:
        """For a terminal."""
        lines = [f"scores of {self.subject}"]
        for found in self.found:
            rows = table(found)
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            lines += ["", f"{found.protocol}: {found.about}", in_short(found), ""]
            for row in rows:
                first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
                lines.append("  ".join([first.strip().ljust(widths[0]), *others]))
        width = max(map(len, self.legend()))
        legend = [f"  {title:<{width}}  {meaning}" for title, meaning in self.legend().items()]
        return "\n".join(
            [*lines, "", f"  {WAYS}; ± standard error over clips", *legend, "", self.protocol_line()]
        )

    def markdown(self) -> str:
        """For a README or a pull request."""
        lines = [f"# Scores of {self.subject}"]
        for found in self.found:
            head, *rows = table(found)
            lines += ["", f"## {found.protocol}", "", f"{found.about}. {in_short(found)}", ""]
            lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
            lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines += ["", f"{WAYS}; ± standard error over clips", ""]
        lines += [f"- **{title}**: {meaning}" for title, meaning in self.legend().items()]
        return "\n".join([*lines, "", self.protocol_line(), ""])

    def json(self) -> str:
        """All scores, the means of each frame too; null where there is nothing to score."""
        content = {"subject": self.subject, "protocol": dict(self.protocol), "scores": {}}
        for found in self.found:
            columns = {
                column.name: {
                    "parts": {part.name or "all frames": _part(column, part) for part in found.parts},
                    "by_frame": {name: _numbers(values) for name, values in by_name(column).items()},
                }
                for column in found.columns
            }
            content["scores"][found.protocol] = {"about": found.about, "columns": columns}
        return json.dumps(content, indent=2, allow_nan=False) + "\n"


def by_name(column: Column) -> dict[str, np.ndarray]:
    """Means of each frame [T] by the names of all scores of a column."""
    return column.scores.by_frame()


def table(found: Found) -> list[list[str]]:
    """Cells: a row for each score and part of the clips, a column for each column."""
    shown = [by_name(column) for column in found.columns]
    rows = [["", *(column.name for column in found.columns)]]
    for name, metric in VIDEO_METRICS.items():
        if not any(name in scores for scores in shown):
            continue
        for part in found.parts:
            if part.only and name not in part.only:
                continue
            title = f"{metric.title} {metric.better}" + (f", {part.name}" if part.name else "")
            rows.append([title, *(_cell(column, name, metric, part) for column in found.columns)])
        if found.protocol != "text" and name in LOST:
            title = f"{metric.title}, points lost ↓"
            rows.append([title, *(f"{lost(column, name, found):.1f}" for column in found.columns)])
    return rows


def lost(column: Column, name: str, found: Found) -> float:
    """Points of a score lost from the last but one part to the last."""
    first, last = (column.scores.mean(name, part.frames)[0] for part in found.parts[-2:])
    return round(100 * (first - last), 2) + 0.0  # no -0.0


def in_short(found: Found) -> str:
    """One sentence: the first column beside the real clips."""
    ours, real = found.columns[0], found.columns[-1]
    part = found.parts[-1 if found.protocol == "length" else 0]
    wanted = ("recognised", "direction", "speed", "identity", "true_frame")
    known = by_name(ours)
    names = [n for n in wanted if n in known and not np.isnan(ours.scores.mean(n, part.frames)[0])]
    scores = [
        f"{VIDEO_METRICS[name].title} {_plain(ours, name, part)} (real {_plain(real, name, part)})"
        for name in names
    ]
    if found.protocol != "text":
        first, last = (part.name for part in found.parts[-2:])
        points = lost(ours, "recognised", found)
        scores.append(f"{points:.1f} points of recognised lost from {first} to {last}")
    return f"In short, {ours.name}{part.name and ', ' + part.name}: {', '.join(scores)}."


def _plain(column: Column, name: str, part: Part) -> str:
    return VIDEO_METRICS[name].format.format(column.scores.mean(name, part.frames)[0])


def _cell(column: Column, name: str, metric: Metric, part: Part) -> str:
    if name not in by_name(column):
        return "-"
    mean, error = column.scores.mean(name, part.frames)
    return "-" if np.isnan(mean) else with_spread(metric, mean, error)


def _part(column: Column, part: Part) -> dict[str, Any]:
    found = {name: column.scores.mean(name, part.frames) for name in by_name(column)}
    return {
        name: dict(zip(("mean", "standard_error"), _numbers(values), strict=True))
        for name, values in found.items()
    }


def _numbers(values: Any) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
