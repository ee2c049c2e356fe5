"""Brings the numbers of a step to the host once the next step is under way, and writes them where they go."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from pom_jax import remote
from pom_jax.data.pipeline import DeviceBatches
from pom_jax.errors import InputError
from pom_jax.training import flops
from pom_jax.training.checkpoint import Checkpoints, is_saved
from pom_jax.training.digest import NotFinite
from pom_jax.training.faults import NumberCheck, WrongNumbers
from pom_jax.training.ledger import Ledger
from pom_jax.training.metrics import FILE, TIME, JsonLines, Sink, by_step, optional_sinks
from pom_jax.training.pace import Pace
from pom_jax.training.progress import Log, ProgressLine
from pom_jax.training.run import Run
from pom_jax.training.state import TrainState
from pom_jax.training.step import Metrics


@dataclasses.dataclass
class _Times:
    """Seconds of one step.

    Attributes:
        whole: of all of it.
        input: waiting for the batch.
        device: calling the step and waiting for its end.
        idle: at most, of the device without work before it.
        aside: by name, evaluations and checkpoints.
    """

    whole: float = 0.0
    input: float = 0.0
    device: float = 0.0
    idle: float = 0.0
    aside: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def host(self) -> float:
        """What is left."""
        return self.whole - self.input - self.device - sum(self.aside.values())


class Recorder:
    """Rows of metrics, the progress line and the checkpoints of one run.

    Of several processes the first writes the rows; the checkpoints are written by all.

    Times of a step are in seconds. `time_step` is from the end of the step before to its own, as the host
    learns of them; `time_input` waiting for the batch while the device had nothing to do; `time_evaluation`
    and `time_checkpoint`, where there are any, what scoring and saving held it up; `time_host` what else the
    host did, neither these nor calling the step nor waiting for its end: a call lasts until the step is done
    where a CPU computes at once (`host_memory`). `time_idle` is the most that the device can have been
    without work before the step. `time_stalls` and `time_slow_hosts` count, see `Pace`.

    Args:
        run, workdir, log, ledger: of the run.
        home: folder of its checkpoints: the workdir, or one of a bucket.
        start: the step it goes on after.
        suspect: the numbers for which it was taken back there, if it was.

    Attributes:
        step: the last step whose numbers are written.
        best: lowest held-out loss and its step, also of the run that this one goes on; None before the first.
    """

    def __init__(
        self,
        run: Run,
        workdir: Path,
        home: Path,
        log: Log,
        ledger: Ledger,
        start: int,
        suspect: WrongNumbers | None = None,
    ):
        config = run.config
        self.step = self._newest = start
        self._home, self._log, self._ledger = home, log, ledger
        self._pace = Pace()
        self._check = NumberCheck(config.train.max_skipped, config.train.absurd, suspect)
        self._rows: JsonLines | None = None
        self._sinks: list[Sink] = []
        losses: dict[int, float] = {}
        if jax.process_index() == 0:
            self._rows = JsonLines(workdir, start)
            self._sinks = [self._rows, *optional_sinks(config, workdir, start)]
            losses = by_step(workdir, "heldout_loss")
        self._checkpoints = Checkpoints(
            home,
            keep_last=config.train.keep_last,
            keep_best=config.train.keep_best,
            keep_every=config.train.keep_every,
            losses=losses,
            rows=workdir / FILE if remote.is_remote(home) else None,
        )
        self._progress = ProgressLine(
            log,
            start=start,
            steps=config.train.steps,
            batch_size=config.data.batch_size,
            samples=run.samples,
            step_flops=run.flops,
            peak=flops.peak_flops(config.dtype),
            every=config.train.log_every,
        )
        self._pending: tuple[int, Any] | None = None
        self._times = _Times()
        self._over: _Times | None = None  # those of the step that is pending, once it is done
        self._heldout_loss: float | None = None
        self.best = min(((loss, step) for step, loss in losses.items()), default=None)
        self._saving: int | None = None
        self._began = self._last = self._looked = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time since the first step."""
        return time.perf_counter() - self._began

    def next_batch(self, feed: DeviceBatches) -> Any:
        """The batch of the step that is about to start."""
        if not feed.ready:
            self._await_step()  # so that what follows is waiting for data alone
        if self._pending is not None and self._done():
            self._end()
        began = time.perf_counter()
        with self._ledger.phase("data"):
            batch = next(feed)
        now = time.perf_counter()
        self._times.input += now - began
        if self._done():
            self._times.idle += now - self._looked  # it ended at some time since the host last looked
        return batch

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Within, the training step is called, which may compute all of it and wait for other processes."""
        began = time.perf_counter()
        yield
        self._times.device += time.perf_counter() - began

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of the step just started, still on the device; finishes the step before."""
        if _ready(metrics):
            self._looked = time.perf_counter()
        self._finish()
        self._pending = (step, metrics)

    def extend(self, metrics: Mapping[str, Any]) -> None:
        """Puts more numbers into the row of the step just added, or of the one that the run goes on after."""
        if self._pending is not None:
            self._pending = (self._pending[0], self._pending[1] | dict(metrics))
            return
        for sink in self._sinks:
            sink.write(self.step, {name: value.item() for name, value in metrics.items()})

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """Begins when the step is done; what is done within must wait for the device itself."""
        self._await_step()
        with self._apart("evaluation"):
            yield
        self._looked = time.perf_counter()

    def checkpoint(self, step: int, state: TrainState) -> None:
        """Finishes the step, then saves; the rows are on the disk before the checkpoint that counts them.

        Nothing happens where this step was saved already.

        Raises:
            WrongNumbers: the state is not finite, or that of the checkpoint before was not.
        """
        self._finish()
        if step == self._newest:
            return
        with self._apart("checkpoint"):
            for line in self._pace.compare():
                self._log.line(line)
            if self._rows is not None:
                self._rows.sync()
            self._await_saved(self._checkpoints.wait)
            self._saving = step
            with self._judged():
                self._checkpoints.save(step, state, self._heldout_loss)
        self._newest = step

    def close(self) -> None:
        """Finishes the last step and waits for what is being written; raises as `checkpoint` does."""
        self._progress.close()
        try:
            self._finish()
        finally:
            try:
                with self._ledger.phase("checkpoint"):
                    self._await_saved(self._checkpoints.close)
            finally:
                for sink in self._sinks:
                    sink.close()

    def _finish(self) -> None:
        if self._pending is None:
            return
        if self._over is None:
            self._await_step()
        times, self._over = self._over or self._end(), None
        (step, metrics), self._pending = self._pending, None
        row = {name: value.item() for name, value in jax.device_get(metrics).items()}
        row |= {
            f"{TIME}step": times.whole,
            f"{TIME}input": times.input,
            f"{TIME}host": times.host,
            f"{TIME}idle": times.idle,
        }
        row |= {f"{TIME}{name}": seconds for name, seconds in times.aside.items()}
        self._pace.add(times.whole, times.input, times.host)
        row |= {f"{TIME}stalls": self._pace.stalls, f"{TIME}slow_hosts": self._pace.slow}
        self.step = step
        self._heldout_loss = row.get("heldout_loss")
        for sink in self._sinks:
            sink.write(step, row)
        self._ledger.step(step)
        self._progress.update(step, row["loss"], sum(times.aside.values()))
        if self._heldout_loss is not None:
            self._say_heldout(step, self._heldout_loss)
        if self._saving is not None and not self._checkpoints.writing:
            self._await_saved(self._checkpoints.wait)
        if verdict := self._check.add(step, row):
            self._log.line(verdict)

    def _await_step(self) -> None:
        """Waits until the device has done the step that was added last."""
        if self._pending is not None:
            began = time.perf_counter()
            jax.block_until_ready(self._pending[1])
            self._looked = time.perf_counter()
            self._times.device += self._looked - began

    def _done(self) -> bool:
        """Whether the device has done all that it was given."""
        return self._pending is None or _ready(self._pending[1])

    def _end(self) -> _Times:
        """The step added last is done: what was timed so far is its own, and what follows of the next."""
        now = time.perf_counter()
        over, self._times = self._times, _Times()
        over.whole, self._last = now - self._last, now
        self._over = over
        return over

    @contextlib.contextmanager
    def _apart(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        with self._ledger.phase(name):
            yield
        aside = self._times.aside
        aside[name] = aside.get(name, 0.0) + time.perf_counter() - began

    def _say_heldout(self, step: int, loss: float) -> None:
        if math.isfinite(loss) and (self.best is None or loss < self.best[0]):
            self.best = loss, step
        known = "" if self.best is None else f" (best {self.best[0]:.4f} at step {self.best[1]:,})"
        if self.best == (loss, step):
            known = " (best so far)"
        self._log.line(f"step {step:,} | held-out loss {loss:.4f}{known}")

    def _await_saved(self, wait: Callable[[], None]) -> None:
        """Waits for the checkpoint that is being written, and says that it is there."""
        with self._judged():
            wait()
        step, self._saving = self._saving, None
        if step is None:
            return
        if verdict := self._check.saved(step):
            self._log.line(verdict)
        if jax.process_index() > 0:
            return
        with contextlib.suppress(InputError):  # for the sake of this line no run is to end
            if is_saved(self._home, step):
                self._log.line(f"step {step:,} | checkpoint saved")

    @contextlib.contextmanager
    def _judged(self) -> Iterator[None]:
        """Within, a checkpoint of numbers that are not finite ends in WrongNumbers of its step."""
        step, which = self._saving, ""
        try:
            yield
        except InputError as error:
            self._saving = None  # there will be no such checkpoint
            if step is None or not isinstance(error, NotFinite):
                raise
            which = str(error)
        if step is not None and which:  # here, for the frames of the error hold the state
            raise self._check.not_finite(step, which)


def _ready(metrics: Any) -> bool:
    return metrics["loss"].is_ready()
