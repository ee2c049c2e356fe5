"""How far the making of a data set has come: a bar on a terminal, plain lines elsewhere."""

import time

from rich import progress as bars
from rich.console import Console

from pom_jax.durations import duration

EVERY = 10.0  # seconds between two plain lines


class PrepareProgress:
    """Shows images done, images/s and the time left; use as a context.

    Args:
        console: where to; standard output by default.
        unit: what is counted.
    """

    def __init__(self, console: Console | None = None, unit: str = "images"):
        self._unit = unit
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._bar = None
        if self._console.is_terminal:
            columns = (
                bars.TextColumn("{task.description}"),
                bars.BarColumn(),
                bars.MofNCompleteColumn(),
                bars.TextColumn("{task.fields[rate]}"),
                bars.TimeRemainingColumn(),
            )
            self._bar = bars.Progress(*columns, console=self._console)
        self._done = self._total = 0
        self._began = self._told = time.perf_counter()

    def __enter__(self) -> "PrepareProgress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        self._console.print(line, markup=False)

    def begin(self, total: int) -> None:
        """From now on time counts, for so many of them."""
        self._done, self._total = 0, total
        self._began = self._told = time.perf_counter()
        if self._bar is not None:
            self._task = self._bar.add_task(self._unit, total=total, rate="")
            self._bar.start()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.perf_counter()
        rate = self._done / max(now - self._began, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=f"{rate:,.1f} {self._unit}/s")
        if self._done == self._total:
            took = now - self._began
            self.say(f"{self._total:,} {self._unit} in {took:.1f} s, {rate:,.1f} {self._unit}/s")
        elif self._bar is None and now - self._told >= EVERY:
            left = (self._total - self._done) / rate
            self.say(
                f"{self._done:,}/{self._total:,} {self._unit} | {rate:,.1f} {self._unit}/s | "
                f"about {duration(left)} left"
            )
            self._told = now
