"""What a person sees of a run: a bar on a terminal, plain lines elsewhere, and log.txt in both cases."""

import contextlib
import os
import sys
import time
from collections import deque
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from pom_jax import cluster
from pom_jax.durations import duration

REFRESH = 4  # times a second that the bar moves


class Log:
    """Prints lines and appends them, with the time of day, to WORKDIR/log.txt; of many processes the first.

    A terminal or pipe that goes away does not end a run: its lines are in the file. Nor does a file that
    cannot be written: its lines are on the terminal, and numbers that cannot be written do end a run.
    """

    def __init__(self, workdir: Path):
        first = jax.process_index() == 0
        self._path = workdir / "log.txt"
        self._file = (self._path if first else Path(os.devnull)).open("a", buffering=1)
        self.console = Console(highlight=False, soft_wrap=True, quiet=not first)
        self._told = False

    def line(self, text: str, *, show: bool = True) -> None:
        """One line (or several) for people; `show=False` writes to the file alone."""
        try:
            self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        except OSError as error:
            if not self._told:
                self._told = True
                self._show(f"warning: log.txt cannot be written: {error.strerror}")
        if show:
            self._show(text)

    def warn(self, text: str) -> None:
        """A warning; of several processes any may have one, which is said under its name."""
        if jax.process_count() > 1:
            text = f"{cluster.name()}: {text}"
        if jax.process_index() == 0:
            self.line(f"warning: {text}")
        else:
            cluster.tell(f"warning: {text}", self._path)

    def _show(self, text: str) -> None:
        if not self.console.quiet:
            try:
                self.console.print(text, markup=False)
                sys.stdout.flush()
            except (OSError, SystemExit):  # rich exits where a pipe breaks
                self.console.quiet = True

    def close(self) -> None:
        """Ends the file."""
        with contextlib.suppress(OSError):  # of a line that could not be written before
            self._file.close()


class ProgressLine:
    """Step, loss, images or clips per second, model FLOP utilisation where the peak is known, and time left.

    Rate and utilisation are those of the steps, without evaluations and saves; the time left is with them.

    Args:
        log: takes the plain lines.
        start, steps: where the run goes on, and where it ends.
        batch_size: images or clips a step.
        samples: which of them.
        step_flops: operations a step.
        peak: of all devices in FLOP/s, or None.
        every: seconds between two plain lines; the bar moves several times a second.
    """

    def __init__(
        self,
        log: Log,
        *,
        start: int,
        steps: int,
        batch_size: int,
        samples: str = "images",
        step_flops: int,
        peak: float | None,
        every: float,
    ):
        self._log, self._steps = log, steps
        self._batch, self._samples = batch_size, samples
        self._flops, self._peak, self._every = step_flops, peak, every
        self._moved = self._began = self._told = time.perf_counter()
        self._start = self._told_step = start
        self._losses: list[float] = []
        self._aside = self._told_aside = 0.0  # seconds of evaluations and saves, now and when last told
        # Time without those, and loss, of the last steps, for the bar.
        self._recent: deque[tuple[float, float]] = deque(maxlen=100)
        self._bar = None
        if log.console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=log.console, refresh_per_second=REFRESH)
            self._task = self._bar.add_task("starting", total=steps, completed=start)
            self._bar.start()

    def update(self, step: int, loss: float, aside: float = 0.0) -> None:
        """Takes one step's loss and its seconds of evaluating and saving; shows a line when it is time."""
        self._losses.append(loss)
        self._aside += aside
        now = time.perf_counter()
        if self._bar is not None:
            self._move(self._bar, step, now, loss)
        if now - self._told < self._every and step < self._steps:
            return
        rate = (step - self._told_step) / max(now - self._told - self._aside + self._told_aside, 1e-9)
        text = self._text(step, now, sum(self._losses) / len(self._losses), rate)
        self._log.line(f"step {step:,}/{self._steps:,} | {text}", show=self._bar is None)
        self._told, self._told_step, self._told_aside, self._losses = now, step, self._aside, []

    def _move(self, bar: Progress, step: int, now: float, loss: float) -> None:
        self._recent.append((now - self._aside, loss))
        if now - self._moved < 1 / REFRESH and step < self._steps:
            return
        since = self._recent[0][0] if len(self._recent) > 1 else self._began
        rate = max(len(self._recent) - 1, 1) / max(now - self._aside - since, 1e-9)
        mean = sum(loss for _, loss in self._recent) / len(self._recent)
        bar.update(self._task, completed=step, description=self._text(step, now, mean, rate))
        self._moved = now

    def _text(self, step: int, now: float, loss: float, rate: float) -> str:
        left = (self._steps - step) * (now - self._began) / max(step - self._start, 1)
        parts = [f"loss {loss:.4f}", f"{rate * self._batch:,.0f} {self._samples}/s"]
        if self._peak:
            parts.append(f"MFU {100 * rate * self._flops / self._peak:.0f} %")
        return " | ".join([*parts, f"{duration(left)} left"])

    def close(self) -> None:
        """Takes the bar off the terminal."""
        if self._bar is not None:
            with contextlib.suppress(OSError):  # of a terminal that is gone
                self._bar.stop()
