"""Pictures of scored clips: scores against the frame, strips of frames, and clips that move."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pom_jax.errors import InputError
from pom_jax.evaluation.video_protocols import Found
from pom_jax.evaluation.video_report import VIDEO_METRICS, VideoReport, by_name
from pom_jax.sampling.pictures import sheet
from pom_jax.sampling.writers import replace_file
from pom_jax.training.preview import to_pixels

MOST = 16  # frames of a strip
CLIPS = 2  # of a column in a strip
SPEED = 120  # ms a frame is shown
PLOTTED = ("recognised", "direction", "identity", "true_frame", "frechet")


def save(report: VideoReport, out: str | os.PathLike[str], name: str) -> list[str]:
    """Writes a report and its pictures to the folder `out`.

    Args:
        report: the scores.
        out: made if it is not there.
        name: how the files' names begin.

    Returns:
        The names of the files: .json, .md, .txt, of each protocol _strip.png and .gif, and, where matplotlib
        is installed, _by_frame.png, the scores against the frame.

    Raises:
        InputError: nothing can be written there.
    """
    out, written = Path(out), []
    texts = {".json": report.json(), ".md": report.markdown(), ".txt": report.text() + "\n"}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for ending, text in texts.items():
            (out / f"{name}{ending}").write_text(text)
            written.append(f"{name}{ending}")
        if plot(report, out / f"{name}_by_frame.png"):
            written.append(f"{name}_by_frame.png")
    except OSError as error:
        raise InputError(f"the scores cannot be written to {out}: {error}") from error
    for found in report.found:
        own = f"{name}_{found.protocol}"
        replace_file(out / f"{own}_strip.png", lambda file, found=found: strip(found).save(file, "png"))
        replace_file(out / f"{own}.gif", lambda file, found=found: animation(found, file))
        written += [f"{own}_strip.png", f"{own}.gif"]
    return written


def strip(found: Found) -> Image.Image:
    """Some clips of each column, their frames side by side, evenly spaced if there are many."""
    frames = found.columns[0].clips.shape[1]
    places = np.unique(np.linspace(0, frames - 1, min(MOST, frames)).round().astype(int))
    rows, names = [], []
    for column in found.columns:
        for clip, prompt in zip(column.clips[:CLIPS], found.prompts, strict=False):
            rows.append(to_pixels(clip[places]))
            names.append(f"{column.name}: {prompt}")
    return sheet(
        np.stack(rows), names, [f"{place + 1}" for place in places], f"{found.protocol}: {found.about}"
    )


def animation(found: Found, file: str | os.PathLike[str]) -> None:
    """Some clips of each column in motion, a row a column, as a .gif."""
    clips = np.stack([to_pixels(column.clips) for column in found.columns])  # [R, K, T, S, S, 1]
    names, frames = [column.name for column in found.columns], clips.shape[2]
    pictures = [
        sheet(clips[:, :, place], names, title=f"{found.protocol}, frame {place + 1} of {frames}")
        for place in range(frames)
    ]
    pictures[0].save(file, "gif", save_all=True, append_images=pictures[1:], duration=SPEED, loop=0)


def plot(report: VideoReport, file: str | os.PathLike[str]) -> bool:
    """Scores against the frame, a row a protocol, a line a column; False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    names = [name for name in PLOTTED if any(name in by_name(found.columns[0]) for found in report.found)]
    figure = Figure(figsize=(3.4 * len(names), 3.2 * len(report.found)), layout="constrained")
    grid: Any = figure.subplots(len(report.found), len(names), squeeze=False)
    for row, found in zip(grid, report.found, strict=True):
        for axes, name in zip(row, names, strict=True):
            _plot_score(axes, found, name)
        row[0].legend(fontsize="x-small")
    figure.savefig(file, dpi=120)
    return True


def _plot_score(axes: Any, found: Found, name: str) -> None:
    axes.set_title(
        f"{found.protocol}: {VIDEO_METRICS[name].title} {VIDEO_METRICS[name].better}", fontsize="small"
    )
    axes.set_xlabel("frame", fontsize="small")
    if name not in by_name(found.columns[0]):
        axes.axis("off")
        return
    for column in found.columns:
        values = by_name(column)[name]
        if not np.isnan(values).all():
            dashed = "--" if column.name in ("real", "frozen") else "-"
            axes.plot(np.arange(1, len(values) + 1), values, dashed, label=column.name)
    if VIDEO_METRICS[name].format.endswith("%}"):
        axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
