"""A training run from configuration to final checkpoint, in the order in which it happens."""

import contextlib
import shlex
from collections.abc import Collection
from pathlib import Path

import jax
from ml_collections import ConfigDict

from pom_jax import cluster
from pom_jax.data.pipeline import batches, device_batches, local_rows
from pom_jax.training import checkpoint, digest, memory
from pom_jax.training.config import keep_config, warnings
from pom_jax.training.fid import Fid, MakeFid, open_fid
from pom_jax.training.heldout import HeldOut
from pom_jax.training.interrupt import Interrupt
from pom_jax.training.ledger import Ledger
from pom_jax.training.metrics import check_sinks
from pom_jax.training.preview import Preview, WriteImages
from pom_jax.training.profile import Profile
from pom_jax.training.progress import Log, duration
from pom_jax.training.recorder import Recorder
from pom_jax.training.run import Run, make_run
from pom_jax.training.sharding import batch_sharding
from pom_jax.training.start import find_start
from pom_jax.training.workdir import hold


def train(
    config: ConfigDict,
    workdir: str | Path,
    write_images: WriteImages,
    scored: Collection[str] = (),
    make_fid: MakeFid | None = None,
    profile: str = "",
) -> int:
    """Trains, or goes on where the run in `workdir` stopped.

    Args:
        config: see configs/common.py.
        workdir: for everything the run writes.
        write_images: writes a grid of samples, see `preview.Preview`.
        scored: names of the data sets whose own scores eval.py knows; others have FID.
        make_fid: makes what scores during training, where fid.every asks for it.
        profile: first and last step to trace, such as "100:110"; see `Profile`.

    Returns:
        Exit code: 0 at the end, 143 after SIGTERM and 130 after Ctrl-C (saved; run again to go on).

    Raises:
        InputError: a field, the data or the workdir cannot be used, a checkpoint cannot be written, or too
            many steps in a row were not finite.
    """
    workdir, ledger = Path(workdir), Ledger()

    # Everything that can be wrong is found before anything is computed or overwritten.
    check_sinks(config)
    window = Profile(profile, config.train.steps)
    run = make_run(config)
    memory.check_fits(memory.of_arrays(run.state, run.batch), config, run.mesh, memory.device_bytes())
    fid = open_fid(config, run.model, make_fid)
    if not checkpoint.saved_steps(workdir):
        find_start(run)
    checkpoint.check_room(workdir, config.train, run.state)
    with jax.set_mesh(run.mesh):
        preview = Preview(config, run.model, workdir / "samples", write_images, run.state.params)
        with hold(workdir, lambda: keep_config(workdir, config)):
            if jax.process_index() == 0:
                ledger.open(workdir)
            log = Log(workdir)
            try:
                code = _train(run, workdir, preview, fid, window, log, ledger)
                log.line(ledger.summary())
                if code == 0:
                    log.line(_next_commands(run, workdir, run.train.manifest.name in scored))
                return code
            finally:
                preview.close()
                log.close()
                ledger.close()


def _train(
    run: Run, workdir: Path, preview: Preview, fid: Fid | None, window: Profile, log: Log, ledger: Ledger
) -> int:
    config = run.config.train
    log.line("\n".join([run.describe(), *warnings(run.config)]))

    # State: from the newest good checkpoint, or where a new run starts; straight into its shardings.
    if found := checkpoint.restore_state(workdir, run.state):
        state, start = found
        if start >= config.steps:
            log.line(f"{workdir} has all {config.steps:,} steps already")
            return 0
        log.line(f"workdir: {workdir} (goes on after step {start:,})")
    else:
        new = find_start(run)
        log.line("\n".join([f"workdir: {workdir} (new)", *new.lines]))
        if jax.process_index() == 0:
            new.keep_history(workdir)
        state, start = new.state(), new.step
    ledger.resume(start)
    if said := window.missed(start):
        log.line(said)

    # Compilation, of all that will run.
    ledger.enter("compile")
    digest.digests(state)  # the first checkpoint would else wait for it
    log.line("compiling the training step (half a minute on a laptop, minutes for the largest models)")
    train_step, line = run.compiled_step()
    needed, limit = memory.of_program(train_step, run.state, run.batch), memory.device_bytes()
    log.line(f"{line}\n{memory.table(('compiled', needed), limit=limit)}")
    memory.check_fits(needed, run.config, run.mesh, limit)
    heldout_loss = None
    if config.eval_every:
        log.line("compiling the held-out loss")
        heldout_loss = HeldOut(run.config, run.model, run.heldout, run.mesh, run.state.params)
    if config.sample_every:
        log.line("compiling the sampler")
        preview.compile()
    if fid is not None:
        with ledger.phase("evaluation"):
            fid.prepare(log.line)

    # Steps. Nothing waits for the step just started, except before a checkpoint.
    at = batch_sharding(run.mesh)
    rows = local_rows(at, run.config.data.batch_size)
    order = batches(run.train, run.config.data.batch_size, run.config.seed, start_step=start, rows=rows)
    recorder = Recorder(run, workdir, log, ledger, start)
    ledger.enter("steps")
    # A signal that comes while the last checkpoint is written waits for it too.
    with (
        Interrupt(log) as interrupt,
        contextlib.closing(recorder),
        contextlib.closing(window),
        device_batches(order, at) as feed,
        cluster.one_for_all(workdir / "log.txt"),
    ):
        for step in range(start + 1, config.steps + 1):
            ends = step == config.steps or interrupt.after(step)
            batch = recorder.next_batch(feed)
            window.before(step, workdir)
            state, metrics = train_step(state, batch)
            recorder.add(step, metrics)
            window.after(step, metrics, workdir, log)
            if heldout_loss is not None and _due(step, config.eval_every, config.steps):
                with recorder.evaluation():
                    recorder.extend(jax.block_until_ready(heldout_loss(state.ema[0])))
            if _due(step, config.sample_every, config.steps):
                with recorder.evaluation():
                    jax.block_until_ready(preview.draw(state.ema[0], step, log.line))
            if fid is not None and _due(step, run.config.fid.every, config.steps):
                with recorder.evaluation():
                    recorder.extend(fid(state.ema[0], step, log.line))
            if ends or step % config.checkpoint_every == 0:
                recorder.checkpoint(step, state)
            if ends:
                break
    ledger.enter("other")
    preview.wait()

    # End.
    if recorder.step < config.steps:
        log.line(f"saved at step {recorder.step:,}; the same command goes on from there")
        return interrupt.exit_code
    best = recorder.best
    found = "" if best is None else f"; best held-out loss {best[0]:.4f} at step {best[1]:,}"
    log.line(f"trained steps {start + 1:,} to {config.steps:,} in {duration(recorder.seconds)}{found}")
    return 0


def _due(step: int, every: int, last: int) -> bool:
    return every > 0 and (step % every == 0 or step == last)


def _next_commands(run: Run, workdir: Path, scored: bool) -> str:
    """Where a run's results are and what to do with them."""
    decoding = "" if run.config.model.channels in (1, 3) else " --autoencoder=DIR"
    real = shlex.quote(run.config.data.dir or "REAL_IMAGES")
    scoring = "" if scored else f"{decoding} --reference={real} --inception=WEIGHTS"
    quoted = shlex.quote(str(workdir))
    grids = f"  {workdir}/samples/      grids drawn during training\n"
    return (
        f"{grids if run.config.train.sample_every else ''}"
        f"  {workdir}/metrics.jsonl every step's numbers\n"
        f"  {workdir}/checkpoints/  steps {', '.join(map(str, checkpoint.saved_steps(workdir)))}\n"
        f"next: python sample.py --workdir={quoted}{decoding}\n"
        f"      python eval.py --workdir={quoted}{scoring}"
    )
