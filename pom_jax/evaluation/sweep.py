"""A grid of ways to sample, scored: as a table, as JSON, and as a plot of FID."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from pom_jax.diffusion.guidance import check_guidance
from pom_jax.diffusion.samplers import SAMPLERS
from pom_jax.errors import InputError, choose
from pom_jax.evaluation.image_scores import IMAGE_METRICS, ImageScores
from pom_jax.sampling.generate import check_ema


class Setting(NamedTuple):
    """One way to sample: which average of the parameters (None: themselves), and the sampler's settings."""

    ema: int | None
    sampler: str
    steps: int
    guidance: float

    def name(self, config: ConfigDict) -> str:
        """For people: "EMA 0.999, heun, 25 steps, guidance 1.5"."""
        return f"{_average(self, config)}, {self.sampler}, {self.steps} steps, guidance {self.guidance:g}"


def make_grid(
    config: ConfigDict,
    *,
    emas: Sequence[int | None] = (0,),
    samplers: Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
    guidances: Sequence[float] | None = None,
) -> list[Setting]:
    """Every combination, averages outermost, each once.

    Args:
        config: of the run, whose own sampler and steps are the defaults. Its guidance is not, since it is
            chosen for looking at pictures: the default is 1, off.
        emas, samplers, steps, guidances: the values of each.

    Raises:
        InputError: a value that cannot be used, or none.
    """
    own = config.sampling
    samplers = [own.sampler] if samplers is None else samplers
    steps = [own.steps] if steps is None else steps
    guidances = [1.0] if guidances is None else [float(scale) for scale in guidances]
    values = {"ema": emas, "sampler": samplers, "steps": steps, "guidance": guidances}
    for name, listed in values.items():
        if not listed or len(set(listed)) < len(listed):
            raise InputError(f"{name} lists {list(listed) or 'nothing'}; give one or more values, each once")
    for ema in emas:
        check_ema(config, ema)
    for sampler in samplers:
        choose("sampler", sampler, SAMPLERS)
    for guidance in guidances:
        check_guidance(guidance)
    if min(steps) < 1:
        raise InputError(f"steps must be whole numbers of at least 1; got {list(steps)}")
    return [Setting(*setting) for setting in product(emas, samplers, steps, guidances)]


@dataclass(frozen=True)
class Sweep:
    """Scores of a grid.

    Attributes:
        config: of the run.
        settings: the ways to sample.
        found: the scores of each.
    """

    config: ConfigDict
    settings: Sequence[Setting]
    found: Sequence[ImageScores]

    @property
    def best(self) -> int:
        """Which of the settings has the lowest FID."""
        return min(range(len(self.found)), key=lambda i: self.found[i].scores["fid"])

    def shared_protocol(self) -> str:
        """One line of what is the same for all settings; what differs is in the table."""
        first, *others = (self._without_place(found.protocol) for found in self.found)
        same = {n: v for n, v in first.items() if all(other.get(n) == v for other in others)}
        return "protocol: " + "; ".join(f"{name} {value}" for name, value in same.items())

    @staticmethod
    def _without_place(protocol: Mapping[str, str]) -> dict[str, str]:
        """Each setting's samples are in a folder of their own, but as many and of one size."""
        return dict(protocol) | {"samples": protocol["samples"].split(" from ")[0]}

    def markdown(self) -> str:
        """A row a setting with the best one marked, and the protocol."""
        metrics = {n: m for n, m in IMAGE_METRICS.items() if any(n in found.scores for found in self.found)}
        head = [
            "EMA",
            "sampler",
            "steps",
            "guidance",
            *(f"{m.title} {m.better}" for m in metrics.values()),
            "",
        ]
        lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for i, (setting, found) in enumerate(zip(self.settings, self.found, strict=True)):
            average = _average(setting, self.config).removeprefix("EMA ")
            cells = [average, setting.sampler, str(setting.steps), f"{setting.guidance:g}"]
            cells += [
                m.format.format(found.scores[n]) if n in found.scores else "-" for n, m in metrics.items()
            ]
            lines.append("| " + " | ".join([*cells, "best FID" if i == self.best else ""]) + " |")
        return "\n".join([*lines, "", self.shared_protocol(), ""])

    def json(self) -> str:
        rows = [
            {
                **setting._asdict(),
                "best": i == self.best,
                "scores": dict(found.scores),
                "protocol": dict(found.protocol),
            }
            for i, (setting, found) in enumerate(zip(self.settings, self.found, strict=True))
        ]
        return json.dumps({"model": self.config.name, "settings": rows}, indent=2) + "\n"

    def save(self, out: str | os.PathLike[str]) -> list[str]:
        """Writes sweep.md, sweep.json and, where matplotlib is installed, sweep.png to the folder `out`.

        Returns:
            The names of what was written.

        Raises:
            InputError: nothing can be written there.
        """
        out = Path(out)
        written = ["sweep.md", "sweep.json"]
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / "sweep.md").write_text(self.markdown())
            (out / "sweep.json").write_text(self.json())
            if self._plot(out / "sweep.png"):
                written.append("sweep.png")
        except OSError as error:
            raise InputError(f"the scores cannot be written to {out}: {error}") from error
        return written

    def lines(self) -> tuple[str, Mapping[str, list[tuple[float, float]]]]:
        """What the plot shows: the name of its x axis, and the points (x, FID) of each line by its name.

        The guidance is the x axis, or the steps where there is one guidance only.
        """
        axis = "guidance" if len({s.guidance for s in self.settings}) > 1 else "steps"
        lines: dict[str, list[tuple[float, float]]] = {}
        for setting, found in zip(self.settings, self.found, strict=True):
            parts = [_average(setting, self.config), setting.sampler]
            parts.append(f"{setting.steps} steps" if axis == "guidance" else f"guidance {setting.guidance:g}")
            x = getattr(setting, axis)
            lines.setdefault(", ".join(parts), []).append((x, found.scores["fid"]))
        return axis, {name: sorted(points) for name, points in lines.items()}

    def _plot(self, path: Path) -> bool:
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return False
        axis, lines = self.lines()
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes: Any = figure.subplots()
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        best = self.settings[self.best]
        lowest = self.found[self.best].scores["fid"]
        axes.plot(getattr(best, axis), lowest, "*", color="black", markersize=14, label=f"best: {lowest:.2f}")
        samples = self.found[0].protocol["samples"].split(" of ")[0]
        axes.set(xlabel="guidance scale" if axis == "guidance" else "sampler steps", ylabel="FID")
        axes.set_title(f"FID of {samples} samples, {self.config.name}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        figure.savefig(path, dpi=150)
        return True


def _average(setting: Setting, config: ConfigDict) -> str:
    return "no EMA" if setting.ema is None else f"EMA {config.ema.decays[setting.ema]:g}"
