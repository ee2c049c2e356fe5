"""A look at what the devices do during some steps of a run, for the viewers of profiles."""

import re
from pathlib import Path
from typing import Any

import jax

from pom_jax.errors import InputError
from pom_jax.training.progress import Log

FOLDER = "profile"


class Profile:
    """Traces the steps from `first` to `last` into WORKDIR/profile, or each process into a folder in it.

    A trace is named after the host: two processes of one would overwrite each other's.

    Args:
        window: "first:last", such as "100:110", or "" for none.
        steps: of the whole run.

    Raises:
        InputError: not two steps of the run in order.
    """

    def __init__(self, window: str, steps: int):
        self._first = self._last = 0
        self._running = False
        if not window:
            return
        found = re.fullmatch(r"(\d+):(\d+)", window)
        if found is None or not 1 <= int(found[1]) <= int(found[2]) <= steps:
            raise InputError(
                f"--profile={window} must be the first and the last step to trace, such as "
                f"--profile=100:110, from 1 to train.steps={steps}"
            )
        self._first, self._last = int(found[1]), int(found[2])

    def missed(self, start: int) -> str:
        """What to say to a run that goes on after step `start`, when the window lies before it; else ""."""
        if not 0 < self._last <= start:
            return ""
        return f"no profile: the run goes on after step {start:,}, and the window ends at {self._last:,}"

    def before(self, step: int, workdir: Path) -> None:
        """Called before a step starts."""
        if self._first <= step <= self._last and not self._running:
            self._first, self._running = step, True  # later than asked for where the run goes on within it
            own = f"process_{jax.process_index()}" if jax.process_count() > 1 else ""
            jax.profiler.start_trace(workdir / FOLDER / own)

    def after(self, step: int, metrics: Any, workdir: Path, log: Log) -> None:
        """Called when a step has been started: the last one is waited for."""
        if self._running and step == self._last:
            jax.block_until_ready(metrics)
            self.close()
            log.line(
                f"step {step:,} | profile of steps {self._first:,} to {step:,}: {workdir / FOLDER}; "
                f"`pip install xprof`, then `xprof {workdir / FOLDER}`"
            )

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
