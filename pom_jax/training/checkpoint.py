"""Checkpoints of a run: saved in the background, checked leaf by leaf when they are read.

The storage layer does not notice a flipped bit, so a digest of every leaf lies beside the arrays of a step.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from ml_collections import ConfigDict

from pom_jax.errors import InputError
from pom_jax.training import digest
from pom_jax.training.config import read_config

FOLDER = "checkpoints"
SLACK = 16 * 2**20  # bytes: what the storage writes besides the arrays, and the other files of a run


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be read, or that is not what was written."""


def _folder(workdir: str | Path) -> Path:
    return Path(workdir).absolute() / FOLDER


def saved_steps(workdir: str | Path) -> list[int]:
    """Steps with a finished checkpoint, in order; empty where there is none."""
    folder = _folder(workdir)
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def latest_step(workdir: str | Path) -> int | None:
    """The newest step with a finished checkpoint, or None."""
    return max(saved_steps(workdir), default=None)


def load_config(workdir: str | Path) -> ConfigDict:
    """The configuration a workdir was trained with.

    Raises:
        InputError: the folder is not a workdir, or its config.json is damaged.
    """
    config = read_config(workdir)
    if config is None:
        raise InputError(f"{workdir} is not a workdir of train.py: there is no config.json in it")
    return config


def check_space(folder: str | Path, needed: int, purpose: str) -> None:
    """Raises InputError if the disk of `folder` has less than `needed` bytes, and a little, left.

    Args:
        folder: need not exist yet.
        needed: bytes.
        purpose: what needs them, for the message.
    """
    needed += SLACK
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise InputError(
            f"{purpose} needs {needed / 1e9:.2f} GB, but the disk of {place} has {free / 1e9:.2f} GB left: "
            "make room, choose another --workdir, or lower train.keep_last and train.keep_best"
        )


def tree_bytes(tree: Any) -> int:
    """Size of all arrays (or shapes) of a tree in bytes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@dataclasses.dataclass
class _LastAndBest:
    """Which steps stay. The storage's own policy knows no losses of before the run was resumed."""

    last: int
    best: int
    losses: dict[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [saved.step for saved in checkpoints]
        known = sorted((step for step in steps if step in self.losses), key=self.losses.__getitem__)
        return [step in steps[-self.last :] + known[: self.best] for step in steps]


class Checkpoints:
    """Writes the checkpoints of one run; saving goes on in the background while training continues.

    Keeps the `keep_last` newest steps and the `keep_best` with the lowest held-out loss. A step appears under
    its name only when it is complete, so a killed process leaves no half checkpoint.

    Args:
        workdir, keep_last, keep_best: of the run.
        losses: held-out losses of the steps that are there already.
    """

    def __init__(
        self, workdir: str | Path, *, keep_last: int, keep_best: int, losses: dict[int, float] | None = None
    ):
        self._kept = _LastAndBest(keep_last, keep_best, dict(losses or {}))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        logging.get_absl_logger().addFilter(_comes_as_message)
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(_one_error())
        self._folder = _folder(workdir)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, state: Any, heldout_loss: float | None = None) -> None:
        """Copies the state to the host and starts to write it; errors of earlier writing surface here.

        Raises:
            InputError: not enough room on the disk, or the previous checkpoint could not be written.
        """
        self.wait()
        check_space(self._folder, int(1.05 * tree_bytes(state)), f"the checkpoint of step {step}")
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state), leaves=ocp.args.JsonSave(_describe(state))
        )
        if heldout_loss is not None and math.isfinite(heldout_loss):
            self._kept.losses[step] = heldout_loss
        with self._explained():
            self._manager.save(step, args=arguments, force=True)

    @property
    def writing(self) -> bool:
        """Whether the last checkpoint is not complete yet."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Waits until the last checkpoint is complete; raises InputError if it could not be written."""
        with self._explained():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is written; raises InputError if that failed."""
        try:
            self.wait()
        finally:
            with self._quiet, self._explained():
                self._manager.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the storage's layers raise all kinds
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> InputError:
        step = latest_step(self._folder.parent)
        good = (
            "there is no good checkpoint yet" if step is None else f"the last good checkpoint is step {step}"
        )
        return InputError(
            f"a checkpoint could not be written to {self._folder}: {_first_line(error)}; {good}. "
            "Make room or mend the disk and run the same command again"
        )


def _comes_as_message(record: Any) -> bool:
    """Drops the tracebacks that the storage's threads log of errors that they also raise."""
    return not (record.exc_info and "orbax" in record.pathname)


def restore_state(workdir: str | Path, target: Any) -> tuple[Any, int] | None:
    """Reads the newest good checkpoint straight into the shardings of `target`.

    Where the newest is damaged and one before it is good, that is reported, the damaged one is moved to
    WORKDIR/damaged, and the good one is used.

    Args:
        workdir: of the run.
        target: tree of `jax.ShapeDtypeStruct` with shardings, as the state of the run will be.

    Returns:
        The state and its step, or None if there is no checkpoint.

    Raises:
        InputError: the checkpoint belongs to another model or optimiser, or none is good.
    """
    damaged: dict[int, str] = {}
    for step in reversed(saved_steps(workdir)):
        try:
            state = _restore(_folder(workdir) / str(step), target)
        except DamagedCheckpoint as error:
            damaged[step] = str(error)
            continue
        for bad, reason in damaged.items() if jax.process_index() == 0 else ():
            place = _quarantine(workdir, bad)
            logging.error("Step %d: its checkpoint is damaged, %s. It was moved to %s.", bad, reason, place)
        return state, step
    if damaged:  # Perhaps the files are good and something else is wrong: nothing is moved.
        reasons = "\n  ".join(f"step {step}: {reason}" for step, reason in damaged.items())
        raise InputError(
            f"no checkpoint in {_folder(workdir)} can be read; nothing was changed. Move the folder away to "
            f"start from the beginning, or choose another --workdir.\n  {reasons}"
        )
    return None


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
    path = _folder(workdir) / str(step)
    prefix = "params/" if ema is None else f"ema/{ema}/"
    with _explain_damage(workdir, step):
        leaves = _read_leaves(path)
        params = _place(shapes, sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
        others = [params if i == ema else None for i in range(_averages(leaves))]
        target = {"params": params} if ema is None else {"ema": others}
        arguments = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        with ocp.PyTreeCheckpointer() as reader:
            found = _read(lambda: reader.restore(path / "state", args=arguments))
        _verify({n: v for n, v in digest.digests(found).items() if n.startswith(prefix)}, leaves)
    return (found["params"] if ema is None else found["ema"][ema]), step


def parameter_shapes(
    workdir: str | Path, step: int | None = None, ema: int | None = 0
) -> tuple[dict[str, Any], int]:
    """What `restore_params` would read: nested dicts of `jax.ShapeDtypeStruct`, and their step.

    Raises:
        InputError: no such checkpoint or average, or one whose list of leaves is damaged.
    """
    step = _choose_step(workdir, step)
    with _explain_damage(workdir, step):
        leaves = _read_leaves(_folder(workdir) / str(step))
    averages = _averages(leaves)
    if ema is not None and not 0 <= ema < averages:
        raise InputError(f"ema={ema} is asked for, but {workdir} holds {averages} averages, from 0 on")
    prefix = "params/" if ema is None else f"ema/{ema}/"
    names = [name for name in leaves if name.startswith(prefix)]
    return _nest({name.removeprefix(prefix): _shape(leaves[name]) for name in names}), step


def check_same_state(workdir: str | Path, step: int | None, target: Any) -> int:
    """Which step `restore_step` would read: `step`, or the newest.

    Raises:
        InputError: no such checkpoint, or one of another model or optimiser (both shapes are listed).
    """
    step = _choose_step(workdir, step)
    path = _folder(workdir) / str(step)
    with _explain_damage(workdir, step):
        _check_same_model(path, _read_leaves(path), target)
    return step


def restore_step(workdir: str | Path, step: int, target: Any) -> Any:
    """Reads the whole state of one step of a run, which is left as it is, into the shardings of `target`.

    Raises:
        InputError: of another model or optimiser, or damaged.
    """
    with _explain_damage(workdir, step):
        return _restore(_folder(workdir) / str(step), target)


def _choose_step(workdir: str | Path, step: int | None) -> int:
    steps = saved_steps(workdir)
    if not steps:
        raise InputError(f"there is no checkpoint in {_folder(workdir)}; train first")
    if step is not None and step not in steps:
        raise InputError(f"there is no checkpoint of step {step} in {workdir}; there are {steps}")
    return steps[-1] if step is None else step


@contextlib.contextmanager
def _explain_damage(workdir: str | Path, step: int) -> Iterator[None]:
    try:
        yield
    except DamagedCheckpoint as error:
        others = [other for other in saved_steps(workdir) if other != step]
        hint = f"choose another step of {others}" if others else "there is no other"
        raise InputError(f"the checkpoint of step {step} in {workdir} is damaged: {error}; {hint}") from error


def _averages(leaves: Mapping[str, Any]) -> int:
    return len({name.split("/")[1] for name in leaves if name.startswith("ema/")})


def _describe(state: Any) -> dict[str, Any]:
    """Shape, dtype and digest of every leaf by name, and a checksum over the description itself."""
    words = digest.digests(state)
    leaves = {
        digest.path_name(path): {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    for name, value in words.items():
        leaves[name]["digest"] = value
    return {"leaves": leaves, "sha256": _checksum(leaves)}


def _checksum(leaves: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()


def _read_leaves(path: Path) -> dict[str, Any]:
    try:
        description = json.loads((path / "leaves" / "metadata").read_text())
        leaves = description["leaves"]
        if description["sha256"] != _checksum(leaves):
            raise ValueError("its checksum is wrong")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"the list of leaves cannot be read ({error})") from error
    return leaves


def _restore(path: Path, target: Any) -> Any:
    leaves = _read_leaves(path)
    _check_same_model(path, leaves, target)
    with ocp.StandardCheckpointer() as reader:
        state = _read(lambda: reader.restore(path / "state", target))
    _verify(digest.digests(state), leaves)
    return state


def _read(restore: Callable[[], Any]) -> Any:
    try:
        with _one_error():
            return restore()
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # says nothing about the checkpoint
    except Exception as error:
        # The storage's layers raise all kinds, bare Exception among them. The structure was compared before.
        raise DamagedCheckpoint(f"the arrays cannot be read ({_first_line(error)})") from error


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Keeps the storage's threads quiet after its first error.

    Each leaf still under way would print a traceback, that the event loop is closed.
    """
    before = sys.unraisablehook
    sys.unraisablehook = lambda told: None if str(told.exc_value) == "Event loop is closed" else before(told)
    try:
        yield
    except Exception:
        time.sleep(0.2)  # what is still being read ends here
        raise
    finally:
        sys.unraisablehook = before


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [repr(error)]
    return lines[0][:300]


def _verify(found: Mapping[str, str], leaves: Mapping[str, Any]) -> None:
    wrong = digest.differing(found, {name: leaf["digest"] for name, leaf in leaves.items()})
    if wrong:
        raise DamagedCheckpoint(f"the numbers of {_some(wrong)} are not those that were saved")


def _check_same_model(path: Path, leaves: Mapping[str, Any], target: Any) -> None:
    wanted = {
        digest.path_name(place): f"{list(leaf.shape)} {leaf.dtype}"
        for place, leaf in jax.tree_util.tree_leaves_with_path(target)
    }
    saved = {name: f"{leaf['shape']} {leaf['dtype']}" for name, leaf in leaves.items()}
    differing = [
        f"{name}: {saved.get(name, 'not there')} in the checkpoint, {wanted.get(name, 'not there')} here"
        for name in sorted(wanted.keys() | saved.keys())
        if wanted.get(name) != saved.get(name)
    ]
    if differing:
        raise InputError(
            f"the checkpoint {path} is of another model or optimiser; choose another workdir.\n  "
            + _some(differing, separator="\n  ")
        )


def _some(items: list[str], separator: str = ", ", most: int = 8) -> str:
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return separator.join(items[:most] + more)


def _quarantine(workdir: str | Path, step: int) -> Path:
    place = Path(workdir) / "damaged" / str(step)
    place.parent.mkdir(parents=True, exist_ok=True)
    attempt = 0
    while place.exists():
        attempt += 1
        place = place.with_name(f"{step}-{attempt}")
    (_folder(workdir) / str(step)).rename(place)
    return place


def _shape(leaf: Mapping[str, Any]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"])


def _place(shapes: Any, sharding: Any) -> Any:
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, shapes)
    return jax.tree.map(lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes, sharding)


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
