"""How far sampling has come: a bar on a terminal, plain lines elsewhere."""

import time
from typing import Protocol

from rich import progress as bars
from rich.console import Console

EVERY = 10.0  # seconds between two plain lines


class Progress(Protocol):
    """Is told what a generator does."""

    def compiling(self, what: str) -> None:
        """A program is about to be compiled, such as "sampler" or "decoder"."""
        ...

    def compiled(self, seconds: float) -> None:
        """It is."""
        ...

    def drawn(self, images: int, total: int) -> None:
        """So many of all images (or frames) are done."""
        ...


class SamplingProgress:
    """Shows compilation and the number of images drawn; use as a context.

    Args:
        console: where to; standard output by default.
        title: a line to show first, once a sampler with valid settings is about to be compiled.
        unit: what is drawn, "images" or "frames".
    """

    def __init__(self, console: Console | None = None, title: str | None = None, unit: str = "images"):
        self._title, self._unit = title, unit
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._bar = None
        if self._console.is_terminal:
            columns = (
                bars.TextColumn("{task.description}"),
                bars.BarColumn(),
                bars.MofNCompleteColumn(),
                bars.TimeRemainingColumn(),
            )
            self._bar = bars.Progress(*columns, console=self._console)
            self._task = self._bar.add_task(unit, total=None)
        self._began = self._told = time.perf_counter()

    def __enter__(self) -> "SamplingProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def line(self, text: str) -> None:
        """A line for people, above the bar."""
        self._console.print(text, markup=False)

    def compiling(self, what: str) -> None:
        if self._title is not None:
            self._console.print(self._title, markup=False)
            self._title = None
        self._console.print(f"compiling the {what}")

    def compiled(self, seconds: float) -> None:
        self._console.print(f"compiled in {seconds:.1f} s")
        self._began = self._told = time.perf_counter()

    def drawn(self, images: int, total: int) -> None:
        now = time.perf_counter()
        if self._bar is not None:
            self._bar.update(self._task, completed=images, total=total)
        if images == total:
            unit = self._unit.removesuffix("s") if total == 1 else self._unit
            self._console.print(f"{total:,} {unit} in {now - self._began:.1f} s")
        elif self._bar is None and now - self._told >= EVERY:
            left = (total - images) * (now - self._began) / images
            self._console.print(f"{images:,}/{total:,} {self._unit} | about {left:.0f} s left")
            self._told = now


class PartProgress:
    """Progress of many calls of a generator as one, in which each program is announced once.

    Args:
        progress: is told of the whole.
        total: images of all calls.
    """

    def __init__(self, progress: Progress, total: int):
        self._progress, self._total = progress, total
        self._done = 0
        self._announced: set[str] = set()
        self._now = ""

    def compiling(self, what: str) -> None:
        self._now = what
        if what not in self._announced:
            self._progress.compiling(what)

    def compiled(self, seconds: float) -> None:
        if self._now not in self._announced:
            self._announced.add(self._now)
            self._progress.compiled(seconds)

    def drawn(self, images: int, total: int) -> None:
        """So many of this call; the decoder, which counts the same images again, is left out."""
        if self._now != "decoder" and self._done + images < self._total:
            self._progress.drawn(self._done + images, self._total)

    def part_done(self, images: int) -> None:
        """A call with so many images has ended, and they are safe."""
        self._now = ""
        self._done += images
        self._progress.drawn(self._done, self._total)
