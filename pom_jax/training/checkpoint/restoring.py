"""Reads checkpoints into whatever shardings there are now, checked before a number of theirs is used.

With several processes all of them read, and go on only if all of them could: what one cannot read is damaged
for all.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from pom_jax import cluster, remote
from pom_jax.errors import InputError, first_line
from pom_jax.training import digest, metrics
from pom_jax.training.checkpoint import leaves
from pom_jax.training.checkpoint.files import check_files
from pom_jax.training.checkpoint.folder import checkpoints_folder, choose_step, quarantine, saved_steps
from pom_jax.training.checkpoint.leaves import DamagedCheckpoint
from pom_jax.training.checkpoint.storage import one_error
from pom_jax.training.checkpoint.trouble import reading

MOST = 50  # steps that are tried by several processes: as many fit into what they tell each other


def restore_state(workdir: str | Path, target: Any) -> tuple[Any, int] | None:
    """Reads the newest good checkpoint straight into the shardings of `target`; called by all processes.

    Where the newest is damaged and one before it is good, that is reported, the damaged one is moved to
    `damaged` beside the folder of the others, and the good one is used.

    Args:
        workdir: of the run, or the folder of a bucket where its checkpoints are.
        target: tree of `jax.ShapeDtypeStruct` with shardings, as the state of the run will be.

    Returns:
        The state and its step, or None if there is no checkpoint.

    Raises:
        InputError: the checkpoint belongs to another model or optimiser, or none is good, or (a TroubledDisk)
            the file system cannot read one: that is no damage, and nothing is moved.
    """
    damaged: dict[int, str] = {}
    for step in steps_of_first(workdir):
        try:
            state = _restore(checkpoints_folder(workdir) / str(step), target)
        except DamagedCheckpoint as error:
            damaged[step] = str(error)
            continue
        if damaged:
            cluster.first_does(lambda: _move_away(workdir, damaged))
        return state, step
    if damaged:  # Perhaps the files are good and something else is wrong: nothing is moved.
        reasons = "\n  ".join(f"step {step}: {reason}" for step, reason in damaged.items())
        folder = checkpoints_folder(workdir)
        raise InputError(
            f"no checkpoint in {folder} can be read; nothing was changed. Move the "
            f"folder away to start from the beginning, or choose another {remote.flag(folder)}.\n  {reasons}"
        )
    return None


def steps_of_first(workdir: str | Path) -> list[int]:
    """Newest first, as the first process sees them: another host may be shown an older list for a while."""
    steps = saved_steps(workdir)[::-1]
    if jax.process_count() == 1:
        return steps
    return [int(step) for step in cluster.share(" ".join(map(str, steps[:MOST])))[0].split()]


def kept_rows(workdir: str | Path, step: int) -> str:
    """The metrics.jsonl up to the step that is kept with a checkpoint in a bucket; empty where there is none.

    Raises:
        InputError: the bucket does not answer.
    """
    file = checkpoints_folder(workdir) / str(step) / leaves.ITEM / metrics.FILE
    lines = (remote.read(file) or b"").splitlines(keepends=True)
    return b"".join(metrics.up_to(lines, step)).decode()  # training went on while it was copied


def restore_step(workdir: str | Path, step: int, target: Any) -> Any:
    """Reads the whole state of one step of a run, which is left as it is, into the shardings of `target`.

    Raises:
        InputError: of another model or optimiser, or damaged.
    """
    with _explain_damage(workdir, step):
        return _restore(checkpoints_folder(workdir) / str(step), target)


def check_same_state(workdir: str | Path, step: int | None, target: Any) -> int:
    """Which step `restore_step` would read: `step`, or the newest.

    Raises:
        InputError: no such checkpoint, or one of another model or optimiser (both shapes are listed).
    """
    step = choose_step(workdir, step)
    path = checkpoints_folder(workdir) / str(step)
    with _explain_damage(workdir, step):
        leaves.check_same_model(path, leaves.read_leaves(path), target)
    return step


def restore_params(
    workdir: str | Path, step: int | None = None, ema: int | None = 0, sharding: Any = None
) -> tuple[dict[str, Any], int]:
    """Reads the parameters of a run, without the rest of its state.

    Args:
        workdir: of the run.
        step: which checkpoint; None for the newest.
        ema: which of the averages; None for the parameters that are trained.
        sharding: where the arrays go: one sharding or a tree of them; None for the first device.

    Returns:
        The parameters, nested dicts of float32 arrays, and their step.

    Raises:
        InputError: no such checkpoint or average, or a damaged one.
    """
    shapes, step = parameter_shapes(workdir, step, ema)
    path = checkpoints_folder(workdir) / str(step)
    prefix = "params/" if ema is None else f"ema/{ema}/"
    with _explain_damage(workdir, step):
        check_files(path)
        listed = leaves.read_leaves(path)
        params = _place(shapes, sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
        others = [params if i == ema else None for i in range(leaves.averages(listed))]
        target = {"params": params} if ema is None else {"ema": others}
        arguments = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        reader = ocp.PyTreeCheckpointHandler()
        found = _read(lambda: reader.restore(epath.Path(path / "state"), args=arguments))
        words = {name: word for name, word in digest.digests(found).items() if name.startswith(prefix)}
        leaves.verify(words, listed)
    return (found["params"] if ema is None else found["ema"][ema]), step


def parameter_shapes(
    workdir: str | Path, step: int | None = None, ema: int | None = 0
) -> tuple[dict[str, Any], int]:
    """What `restore_params` would read: nested dicts of `jax.ShapeDtypeStruct`, and their step.

    Raises:
        InputError: no such checkpoint or average, or one whose list of leaves is damaged.
    """
    step = choose_step(workdir, step)
    with _explain_damage(workdir, step):
        listed = leaves.read_leaves(checkpoints_folder(workdir) / str(step))
    averages = leaves.averages(listed)
    if ema is not None and not 0 <= ema < averages:
        raise InputError(f"ema={ema} is asked for, but {workdir} holds {averages} averages, from 0 on")
    return leaves.shapes_below(listed, "params/" if ema is None else f"ema/{ema}/"), step


def _restore(path: Path, target: Any) -> Any:
    def describe() -> dict[str, Any]:
        check_files(path)
        return leaves.read_leaves(path)

    listed = cluster.agree(describe, DamagedCheckpoint)
    leaves.check_same_model(path, listed, target)
    # The handler itself: a checkpointer around it would wait for a process that could not read.
    arguments = ocp.args.StandardRestore(target)
    reader = ocp.StandardCheckpointHandler()
    state = cluster.agree(
        lambda: _read(lambda: reader.restore(epath.Path(path / "state"), args=arguments)), DamagedCheckpoint
    )
    # The copies of several processes are read one by one, and one alone can be wrong.
    cluster.agree(lambda: leaves.verify(digest.digests(state), listed), DamagedCheckpoint)
    return state


@reading()
def _read(restore: Callable[[], Any]) -> Any:
    try:
        with one_error():
            return restore()
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # says nothing about the checkpoint
    except Exception as error:
        # The storage's layers raise all kinds, bare Exception among them. The structure was compared before.
        raise DamagedCheckpoint(f"the arrays cannot be read ({first_line(error)})") from error


@contextlib.contextmanager
def _explain_damage(workdir: str | Path, step: int) -> Iterator[None]:
    try:
        yield
    except DamagedCheckpoint as error:
        others = [other for other in saved_steps(workdir) if other != step]
        hint = f"choose another step of {others}" if others else "there is no other"
        raise InputError(f"the checkpoint of step {step} in {workdir} is damaged: {error}; {hint}") from error


def _move_away(workdir: str | Path, damaged: dict[int, str]) -> None:
    for step, reason in damaged.items():
        place = quarantine(workdir, step)
        logging.error("Step %d: its checkpoint is damaged, %s. It was moved to %s.", step, reason, place)


def _place(shapes: Any, sharding: Any) -> Any:
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, shapes)
    return jax.tree.map(lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes, sharding)
