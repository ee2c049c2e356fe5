"""A training run from configuration to final checkpoint, in the order in which it happens."""

import contextlib
import dataclasses
import functools
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from pom_jax import cluster, remote
from pom_jax.data.pipeline import batches, device_batches, local_rows
from pom_jax.durations import duration
from pom_jax.errors import InputError
from pom_jax.heartbeat import Heartbeat
from pom_jax.paths import local_path
from pom_jax.training import checkpoint, digest, memory, offload
from pom_jax.training.config import check_kept, read_config, warnings, write_config
from pom_jax.training.faults import WrongNumbers, to_compute_again
from pom_jax.training.fid import Fid, MakeFid, open_fid
from pom_jax.training.fits import FID, HELD_OUT, PICTURES, check_fits, exhaustion_in_words
from pom_jax.training.heldout import HeldOut
from pom_jax.training.interrupt import Interrupt
from pom_jax.training.ledger import Ledger
from pom_jax.training.metrics import check_sinks, rows_after
from pom_jax.training.preview import Preview, WriteImages, shown
from pom_jax.training.profile import Profile
from pom_jax.training.progress import Log
from pom_jax.training.recorder import Recorder
from pom_jax.training.run import Run, make_run
from pom_jax.training.sharding import batch_sharding
from pom_jax.training.start import fetch_rows, find_start, stretched
from pom_jax.training.state import TrainState
from pom_jax.training.watchdog import Watchdog
from pom_jax.training.workdir import hold


def train(
    config: ConfigDict,
    workdir: str | Path,
    write_images: WriteImages,
    scored: Collection[str] = (),
    make_fid: MakeFid | None = None,
    profile: str = "",
    began: float | None = None,
) -> int:
    """Trains, or goes on where the run in `workdir` stopped.

    Args:
        config: see configs/common.py.
        workdir: for everything the run writes, but for checkpoints where train.remote names a bucket.
        write_images: writes a grid of samples, see `preview.Preview`.
        scored: names of the data sets whose own scores eval.py knows; others have FID.
        make_fid: makes what scores during training, where fid.every asks for it.
        profile: first and last step to trace, such as "100:110"; see `Profile`.
        began: when this process began, in seconds since 1970, for the account of its time; now if left out.

    Returns:
        Exit code: 0 at the end, 143 after SIGTERM and 130 after Ctrl-C (saved; run again to go on).

    Raises:
        InputError: a field, the data or the workdir cannot be used, a checkpoint cannot be written, or (a
            LastingFault) the losses are wrong however often they are computed.
    """
    workdir = Path(local_path("--workdir", remote.address(workdir)))
    ledger = Ledger(began)

    # Everything that can be wrong is found before anything is computed or overwritten.
    check_sinks(config)
    home = _home(config, workdir)
    window = Profile(profile, config.train.steps)
    run = make_run(config)
    limit = memory.device_bytes()
    check_fits(memory.of_arrays(run.state, run.batch), run, limit, memory.host_bytes())
    fid = open_fid(config, run.model, make_fid)
    if not checkpoint.saved_steps(home):
        find_start(run)
    kept = read_config(home)
    if (done := checkpoint.latest_step(home) or 0) > config.train.steps:
        raise InputError(
            f"{home} is at step {done:,} already, past train.steps={config.train.steps}: choose more "
            f"steps, or another {remote.flag(home)}"
        )
    if done < config.train.steps:
        checkpoint.check_room(home, config.train, run.state)
    with jax.set_mesh(run.mesh):
        samples = shown(config, run.heldout)
        preview = Preview(config, run.model, workdir / "samples", write_images, run.state.params, samples)
        data = run.train.manifest
        with hold(workdir, lambda: _keep(run, home, workdir), shared=home is workdir):
            if jax.process_index() == 0:
                ledger.open(workdir)
            log = Log(workdir)
            with (
                ledger,
                contextlib.closing(log),
                Heartbeat(workdir / "log.txt"),
                Watchdog(workdir, config.train.stuck_after, log.warn) as watchdog,
                contextlib.closing(preview),
            ):
                if jax.process_count() > 1:
                    log.line(cluster.roll_call())
                session = _Session(
                    run, limit, workdir, home, kept, preview, fid, window, log, ledger, watchdog
                )
                with session.in_words():
                    code = _train(session)
                log.line(ledger.summary())
                if code == 0:
                    log.line(_next_commands(run, workdir, home, data.name in scored, samples.names))
                return code


def _home(config: ConfigDict, workdir: Path) -> Path:
    """Where the checkpoints are: the workdir, or the folder of a bucket, which is asked for."""
    place = config.train.remote
    if not place:
        return workdir
    cluster.agree(lambda: remote.check_bucket("train.remote", place), InputError)
    return remote.folder(place)


def _keep(run: Run, home: Path, workdir: Path) -> None:
    """Writes config.json wherever this run begins or goes on, once all of these places were looked at.

    Those are the folder of the checkpoints and the workdirs, of which each host may have its own.
    """
    first = jax.process_index() == 0
    places = [place for place in dict.fromkeys((home, workdir)) if first or place is not home]
    config, data = run.config, run.train.manifest
    cluster.agree(lambda: [check_kept(place, config, data.digest) for place in places], InputError)
    about = data.digest, data.words, data.encoding
    cluster.agree(lambda: [write_config(place, config, *about) for place in places], InputError)


@dataclasses.dataclass(frozen=True)
class _Session:
    """What one start of a run works with."""

    run: Run
    limit: int | None  # bytes of a device
    workdir: Path
    home: Path  # of the checkpoints, the workdir or a folder of a bucket
    kept: ConfigDict | None  # of the starts before
    preview: Preview
    fid: Fid | None
    window: Profile
    log: Log
    ledger: Ledger
    watchdog: Watchdog

    def in_words(self, beside: str = "") -> contextlib.AbstractContextManager[None]:
        """Within, memory that is too small is told in words."""
        return exhaustion_in_words(self.run, self.limit, beside)


def _train(session: _Session) -> int:
    run, log, ledger = session.run, session.log, session.ledger
    config, suspect = run.config.train, None
    log.line("\n".join([run.describe(), *warnings(run.config, len(run.train), len(run.heldout))]))
    state, start = _first_state(session)
    if start >= config.steps and not _owes_fid(session, start):
        log.line(f"{session.workdir} has all {config.steps:,} steps already")
        return 0
    if said := session.window.missed(start):
        log.line(said)
    train_step, heldout_loss = _compile(session, state)

    # A signal that comes while the last checkpoint is written waits for it too.
    with Interrupt(log) as interrupt, contextlib.closing(session.window):
        while True:
            recorder = Recorder(run, session.workdir, session.home, log, ledger, start, suspect)
            try:
                done = _steps(session, train_step, heldout_loss, state, recorder, interrupt)
                break
            except WrongNumbers as found:
                suspect = to_compute_again(found, session.home, log.line)
                state, start = _first_state(session)
    session.watchdog.progress("the last picture")
    session.preview.wait()

    if not done:
        how = (
            f"saved at step {recorder.step:,}" if recorder.step > start else "stopped before a step was done"
        )
        log.line(f"{how}; the same command goes on from there")
        return interrupt.exit_code
    best = recorder.best
    found = "" if best is None else f"; best held-out loss {best[0]:.4f} at step {best[1]:,}"
    if start < config.steps:
        log.line(f"trained steps {start + 1:,} to {config.steps:,} in {duration(recorder.seconds)}{found}")
    return 0


def _owes_fid(session: _Session, start: int) -> bool:
    """Whether a signal stopped the FID of the step that the run goes on after; called by all processes."""
    every, steps = session.run.config.fid.every, session.run.config.train.steps
    if session.fid is None or not start or not _due(start, every, steps):
        return False
    rows = rows_after(session.workdir, start - 1)[-1:]  # that step's, if it is there
    lacks = [row for row in rows if row["step"] == start and session.fid.name not in row]
    return cluster.share("lacks it" if lacks else "")[0] != ""  # hosts may have workdirs of their own


def _first_state(session: _Session) -> tuple[TrainState, int]:
    """From the newest good checkpoint, or where a new run starts; straight into its shardings."""
    run, workdir, log = session.run, session.workdir, session.log
    session.ledger.enter("init")
    session.watchdog.progress("making or reading the first state")
    if session.home is not workdir:
        log.line(f"checkpoints: {session.home}")
    if found := checkpoint.restore_state(session.home, run.state):
        state, start = found
        if session.home is not workdir and jax.process_index() == 0:
            fetch_rows(session.home, start, workdir)
        lines = stretched(session.kept, run.config, start)
        log.line("\n".join([f"workdir: {workdir} (goes on after step {start:,})", *lines]))
    else:
        new = find_start(run)
        log.line("\n".join([f"workdir: {workdir} (new)", *new.lines]))
        if jax.process_index() == 0:
            new.keep_history(workdir)
        state, start = new.state(), new.step
    session.ledger.resume(start)
    return state, start


def _compile(session: _Session, state: TrainState) -> tuple[Any, HeldOut | None]:
    """All that will run; the training step and the held-out loss, if there is one."""
    run, log, moved = session.run, session.log, session.watchdog.progress
    session.ledger.enter("compile")

    def begin(what: str, note: str = "") -> None:
        moved(f"compiling {what}")
        log.line(f"compiling {what}{note}")

    digest.digests(state)  # the first checkpoint would else wait for it
    begin("the training step", " (half a minute on a laptop, minutes for the largest models)")
    train_step, line = run.compiled_step()
    needed = memory.of_program(train_step, run.state, run.batch)
    log.line(f"{line}\n{memory.table(('compiled', needed), limit=session.limit)}")
    check_fits(needed, run, session.limit, memory.host_bytes())
    heldout_loss = None
    if run.config.train.eval_every:
        begin("the held-out loss")
        with session.in_words(HELD_OUT):
            heldout_loss = HeldOut(run.config, run.model, run.heldout, run.mesh, run.state.params)
    if run.config.train.sample_every:
        begin("the sampler")
        with session.in_words(PICTURES):
            session.preview.compile()
    if session.fid is not None:
        with session.ledger.phase("evaluation"), session.in_words(FID):
            moved("the reference of FID")
            session.fid.prepare(log.line, moved)
    return train_step, heldout_loss


def _steps(
    session: _Session,
    train_step: Any,
    heldout_loss: HeldOut | None,
    state: TrainState,
    recorder: Recorder,
    interrupt: Interrupt,
) -> bool:
    """Up to the last one, or to a signal. Nothing waits for the step just started, but scores and saves.

    Whether all was done is returned. A run stops after a step with all its scores, so that the next one and
    its scores wait; but a FID that is under way stops, and waits too.
    """
    session.ledger.enter("steps")
    run, workdir, log, watchdog = session.run, session.workdir, session.log, session.watchdog
    config = run.config.train
    at, size, start = batch_sharding(run.mesh), run.config.data.batch_size, recorder.step
    order = batches(run.train, size, run.config.seed, start_step=start, rows=local_rows(at, size))
    done = True

    with (
        contextlib.closing(recorder),
        device_batches(order, at) as feed,
        cluster.one_for_all(workdir / "log.txt", alike=(WrongNumbers,)),
        session.in_words(),  # before one process ends the others
    ):
        if _owes_fid(session, start):
            done = _score(session, state, start, recorder, interrupt)
        for step in range(start + 1, config.steps + 1):
            watchdog.progress(f"step {step:,}")
            if interrupt.stops(step - 1):
                recorder.checkpoint(step - 1, state)
                done = False
                break
            batch = recorder.next_batch(feed)
            session.window.before(step, workdir)
            with recorder.call():
                state, metrics = train_step(state, batch)
            recorder.add(step, metrics)
            session.window.after(step, metrics, workdir, log)
            if heldout_loss is not None and _due(step, config.eval_every, config.steps):
                watchdog.progress(f"the held-out loss of step {step:,}")
                with recorder.evaluation(), session.in_words(HELD_OUT):
                    recorder.extend(jax.block_until_ready(heldout_loss(_average(state))))
            if _due(step, config.sample_every, config.steps):
                watchdog.progress(f"the picture of step {step:,}")
                with recorder.evaluation(), session.in_words(PICTURES):
                    session.preview.draw(_average(state), step, log.line)
            if session.fid is not None and _due(step, run.config.fid.every, config.steps):
                done = _score(session, state, step, recorder, interrupt)
            if step == config.steps or step % config.checkpoint_every == 0:
                watchdog.progress(f"the checkpoint of step {step:,}")
                recorder.checkpoint(step, state)
    session.ledger.enter("other")
    return done


def _score(session: _Session, state: TrainState, step: int, recorder: Recorder, interrupt: Interrupt) -> bool:
    """Puts the FID into the row of the step; False where a signal stopped it."""
    assert session.fid is not None
    moved = session.watchdog.progress
    moved(f"the FID of step {step:,}")
    with recorder.evaluation(), session.in_words(FID):
        stops = functools.partial(interrupt.stops, step)
        scores = session.fid(_average(state), step, session.log.line, moved, stops)
    if scores is not None:
        recorder.extend(scores)
    return scores is not None


def _average(state: TrainState) -> Any:
    """The first average, on the device."""
    return offload.on_device(state.ema[0])


def _due(step: int, every: int, last: int) -> bool:
    return every > 0 and (step % every == 0 or step == last)


def _next_commands(run: Run, workdir: Path, home: Path, scored: bool, texts: Sequence[str] | None) -> str:
    """Where a run's results are and what to do with them; `texts` are such as a model of clips reads."""
    prompt = ""
    if len(run.train.manifest.sample_shape) == 4:
        prompt = f' --prompt="{texts[0]}"' if texts else ' --prompt="TEXT" --text_encoder=DIR'
    decoding = "" if run.train.manifest.is_pixels else " --autoencoder=DIR"
    real = shlex.quote(run.config.data.dir or "REAL_IMAGES")
    scoring = "" if scored else f"{decoding} --reference={real} --inception=WEIGHTS"
    scores = f"\n      python eval.py --workdir={shlex.quote(str(workdir))}{scoring}"
    if prompt and not scored:
        scores = ""  # eval.py knows no scores of such clips
    quoted = shlex.quote(str(workdir))
    grids = f"  {workdir}/samples/      grids drawn during training\n"
    return (
        f"{grids if run.config.train.sample_every else ''}"
        f"  {workdir}/metrics.jsonl every step's numbers\n"
        f"  {home}/checkpoints/  steps {', '.join(map(str, checkpoint.saved_steps(home)))}\n"
        f"next: python sample.py --workdir={quoted}{prompt}{decoding}{scores}"
    )
