"""A training run from configuration to final checkpoint, in the order in which it happens."""

import dataclasses
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pom_jax import models
from pom_jax.data import Source, open_source
from pom_jax.data.pipeline import batches, device_batches, local_rows, one_pass
from pom_jax.errors import InputError
from pom_jax.training import checkpoint, flops, sharding
from pom_jax.training.config import check_config, keep_config
from pom_jax.training.heldout import make_heldout_loss
from pom_jax.training.interrupt import Interrupt
from pom_jax.training.metrics import TIME, JsonLines, Sink, optional_sinks
from pom_jax.training.optim import make_optimizer
from pom_jax.training.preview import Preview, WriteImages
from pom_jax.training.progress import Log, ProgressLine, duration
from pom_jax.training.state import TrainState, initial_state
from pom_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Run:
    """What a configuration describes, made and checked, before anything is computed or written."""

    config: ConfigDict
    mesh: Mesh
    model: models.DiPoM
    optimizer: optax.GradientTransformation
    train: Source
    heldout: Source
    state: Any  # shapes with shardings, like TrainState
    batch: Any  # shapes with shardings, like a training batch

    def initial_state(self, key: jax.Array) -> TrainState:
        """The state before the first step."""
        return initial_state(
            key, lambda k: models.init(self.model, k), self.optimizer, len(self.config.ema.decays)
        )


def train(config: ConfigDict, workdir: Path, write_images: WriteImages) -> int:
    """Trains, or goes on where the run in `workdir` stopped.

    Args:
        config: see configs/common.py.
        workdir: for everything the run writes.
        write_images: writes a grid of samples, see `preview.Preview`.

    Returns:
        Exit code: 0 at the end, 143 after SIGTERM and 130 after Ctrl-C (saved, run again to go on).

    Raises:
        InputError: a field, the data or the workdir cannot be used, or too many steps in a row were not
        finite.
    """
    run = make_run(config)
    kept = config.train.keep_last + config.train.keep_best + 1
    room = max(1, kept - len(checkpoint.saved_steps(workdir))) * checkpoint.tree_bytes(run.state)
    checkpoint.check_space(workdir, room, "keeping the checkpoints of this run")
    keep_config(workdir, config)
    (workdir / "samples").mkdir(exist_ok=True)
    log = Log(workdir)
    try:
        with jax.set_mesh(run.mesh), Interrupt(log) as interrupt:
            return _train(run, workdir, write_images, log, interrupt)
    finally:
        log.close()


def make_run(config: ConfigDict) -> Run:
    """Checks everything a configuration says and makes what it describes; computes nothing.

    Raises:
        InputError: any field, or the data, cannot be used.
    """
    check_config(config)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.data.batch_size, config.optimizer.accumulate, mesh)
    model = models.build(config.model, config.dtype)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    source, heldout = (open_source(config.data, split, config.model) for split in ("train", "test"))
    run = Run(config, mesh, model, optimizer, source, heldout, None, None)
    state = jax.eval_shape(run.initial_state, jax.random.key(config.seed))
    shardings = sharding.state_shardings(state, mesh)
    batch = {
        name: jax.ShapeDtypeStruct(
            (config.data.batch_size, *field.shape), field.dtype, sharding=sharding.batch_sharding(mesh)
        )
        for name, field in source.manifest.fields.items()
    }
    shapes = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), state, shardings)
    return dataclasses.replace(run, state=shapes, batch=batch)


def _train(run: Run, workdir: Path, write_images: WriteImages, log: Log, interrupt: Interrupt) -> int:
    config = run.config
    log.line(describe(run))

    # State: where the last run stopped, or fresh, in either case straight into its shardings.
    restored = checkpoint.restore_state(workdir, run.state)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, run.state)
    fresh = jax.jit(run.initial_state, out_shardings=shardings)
    state, start = restored or (fresh(jax.random.key(config.seed)), 0)
    if start >= config.train.steps:
        log.line(f"{workdir} has all {config.train.steps:,} steps already\n{next_commands(workdir)}")
        return 0
    log.line(f"workdir: {workdir} ({f'going on after step {start:,}' if restored else 'new'})")

    # Compilation.
    preview = Preview(config, run.model, workdir / "samples", write_images)
    preview.check(run.state.params)
    began = time.perf_counter()
    step_function = make_train_step(config, run.model, run.train.manifest, run.optimizer)
    jitted = jax.jit(step_function, donate_argnums=0, out_shardings=(shardings, None))
    compiled = jitted.lower(run.state, run.batch).compile()
    log.line(f"compiled the training step in {time.perf_counter() - began:.1f} s{_memory(compiled)}")

    # Steps.
    at = sharding.batch_sharding(run.mesh)
    rows = local_rows(at, config.data.batch_size)
    reader = batches(run.train, config.data.batch_size, config.seed, start_step=start, rows=rows)
    writer = Writer(run, workdir, log, start)
    with device_batches(reader, at) as feed:
        try:
            _steps(run, state, start, compiled, feed, writer, preview, interrupt)
        finally:
            writer.close()
            preview.close()

    # End.
    if interrupt.number is not None:
        log.line(f"saved at step {writer.step:,}; the same command goes on from there")
        return interrupt.exit_code
    log.line(f"done: {config.train.steps:,} steps in {duration(writer.seconds)}\n{next_commands(workdir)}")
    return 0


def _steps(
    run: Run,
    state: TrainState,
    start: int,
    train_step: Any,
    feed: Iterator[Any],
    writer: "Writer",
    preview: Preview,
    interrupt: Interrupt,
) -> None:
    """The loop. Nothing here waits for the step that was just started, except before a checkpoint."""
    config = run.config.train
    heldout_loss = make_heldout_loss(run.config, run.model, run.train.manifest)
    heldout = heldout_batches(run) if config.eval_every else []
    for step in range(start + 1, config.steps + 1):
        last = step == config.steps
        batch = writer.timed_input(feed)
        state, metrics = train_step(state, batch)
        if config.eval_every and (step % config.eval_every == 0 or last):
            metrics |= heldout_loss(state.ema[0], heldout)
        if config.sample_every and (step % config.sample_every == 0 or last):
            preview.draw(state.ema[0], step)
        writer.add(step, metrics)
        if step % config.checkpoint_every == 0 or last or interrupt.number is not None:
            writer.checkpoint(step, state)
        if interrupt.number is not None:
            return


class Writer:
    """Brings the numbers of a step to the host when the next one is already under way, and writes them.

    Times of a step, in seconds: `time_step` from its start to the next one's, `time_input` waiting for the
    batch, and `time_host` the rest of what the host did while not waiting for the device.
    """

    def __init__(self, run: Run, workdir: Path, log: Log, start: int):
        config = run.config
        self.step = start
        self._config = config
        self._rows = JsonLines(workdir, start)
        self._sinks: list[Sink] = [self._rows, *optional_sinks(config, workdir, start)]
        self._checkpoints = checkpoint.Checkpoints(
            workdir, keep_last=config.train.keep_last, keep_best=config.train.keep_best
        )
        self._progress = ProgressLine(
            log,
            start=start,
            steps=config.train.steps,
            batch_size=config.data.batch_size,
            step_flops=flops.step_flops(config.model, config.data.batch_size),
            peak=flops.peak_flops(config.dtype),
            every=config.train.log_every,
        )
        self._pending: tuple[int, Any] | None = None
        self._heldout_loss: float | None = None
        self._began = self._last = time.perf_counter()
        self._input = self._device = 0.0

    @property
    def seconds(self) -> float:
        """Since the first step."""
        return time.perf_counter() - self._began

    def timed_input(self, feed: Iterator[Any]) -> Any:
        """The next batch."""
        began = time.perf_counter()
        batch = next(feed)
        self._input += time.perf_counter() - began
        return batch

    def add(self, step: int, metrics: Any) -> None:
        """Takes the metrics of the step just started, on the device, and finishes the step before."""
        self._finish()
        self._pending = (step, metrics)

    def checkpoint(self, step: int, state: TrainState) -> None:
        """Finishes this step's row and saves the state."""
        self._finish()
        self._rows.sync()
        self._checkpoints.save(step, state, self._heldout_loss)

    def _finish(self) -> None:
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        began = time.perf_counter()
        row = {name: value.item() for name, value in jax.device_get(metrics).items()}
        now = time.perf_counter()
        self._device += now - began
        whole = now - self._last
        row |= {
            f"{TIME}step": whole,
            f"{TIME}input": self._input,
            f"{TIME}host": whole - self._input - self._device,
        }
        self._last, self._input, self._device, self.step = now, 0.0, 0.0, step
        self._heldout_loss = row.get("heldout_loss")
        for sink in self._sinks:
            sink.write(step, row)
        self._progress.update(step, row["loss"])
        self._checkpoints.check()
        if row["skipped_in_a_row"] >= self._config.train.max_skipped:
            raise InputError(
                f"the loss or the gradient was not finite in {row['skipped_in_a_row']} steps in a row, up to "
                f"step {step}; none of them changed the model, and the checkpoints are good. Look for NaN in "
                "the data, lower optimizer.learning_rate, or set optimizer.clip_norm or model.clamp"
            )

    def close(self) -> None:
        """Finishes the last step and waits for what is being written."""
        self._progress.close()
        try:
            self._finish()
            self._checkpoints.close()
        finally:
            for sink in self._sinks:
                sink.close()


def heldout_batches(run: Run) -> list[Any]:
    """The first `train.eval_size` held-out examples on the devices, in batches of the training size."""
    size, at = run.config.data.batch_size, sharding.batch_sharding(run.mesh)
    wanted = min(run.config.train.eval_size, len(run.heldout))
    rows = local_rows(at, size)
    placed = []
    for index, batch in enumerate(
        itertools.islice(one_pass(run.heldout, size, rows=rows), -(-wanted // size))
    ):
        inside = index * size + np.arange(size)[rows] < wanted
        batch = batch | {"valid": batch["valid"] & inside}
        placed.append(
            {k: jax.make_array_from_process_local_data(at, np.asarray(v)) for k, v in batch.items()}
        )
    return placed


def describe(run: Run) -> str:
    """What is about to be trained, on what, with what, for people."""
    config, data = run.config, run.train.manifest
    count = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    operations = flops.step_flops(config.model, config.data.batch_size)
    device = jax.devices()[0]
    mesh = ", ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    return (
        f"{config.name}: {count:,} parameters, {config.train.steps:,} steps of {config.data.batch_size} images"
        f" ({operations / 1e9:,.1f} GFLOP a step, products in {config.dtype})\n"
        f"devices: {run.mesh.size} x {device.device_kind} (mesh: {mesh})\n"
        f"data: {data.name}, {len(run.train):,} training and {len(run.heldout):,} held-out images"
    )


def next_commands(workdir: Path) -> str:
    """Where a run's results are and what to do with them."""
    return (
        f"  {workdir}/samples  grids drawn during training\n"
        f"  {workdir}/metrics.jsonl  every step's numbers\n"
        f"  {workdir}/checkpoints  at steps {', '.join(map(str, checkpoint.saved_steps(workdir)))}\n"
        f"next: python sample.py --workdir={workdir}\n"
        f"      python eval.py --workdir={workdir}"
    )


def _memory(compiled: Any) -> str:
    analysis = compiled.memory_analysis()
    if analysis is None:
        return ""
    state, work = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    return (
        f"; memory of a device: {state / 2**20:,.0f} MiB of state and batch, {work / 2**20:,.0f} MiB of work"
    )
