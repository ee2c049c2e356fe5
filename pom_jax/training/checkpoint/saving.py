"""Writes the checkpoints of a run while it goes on."""

import contextlib
import math
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from pom_jax import cluster, remote
from pom_jax.errors import REFUSALS, InputError, TroubledDisk, first_line
from pom_jax.ops.mesh import backend
from pom_jax.training import offload
from pom_jax.training.checkpoint.files import is_listed, list_files
from pom_jax.training.checkpoint.folder import checkpoints_folder, latest_step
from pom_jax.training.checkpoint.keep import LastBestAndMilestones
from pom_jax.training.checkpoint.leaves import SaveLeaves, describe
from pom_jax.training.checkpoint.space import check_space, tree_bytes, what_is_missing
from pom_jax.training.checkpoint.storage import hide_tracebacks, one_error
from pom_jax.training.checkpoint.trouble import number_of, remedy
from pom_jax.training.digest import NotFinite


class Checkpoints:
    """Writes the checkpoints of one run; saving goes on in the background while training continues.

    Keeps the `keep_last` newest steps, the `keep_best` with the lowest held-out loss, and those divisible by
    `keep_every`. A step appears under its name, or in a bucket has its last file, only when it is complete,
    so a killed process leaves no half checkpoint; what it leaves of one is removed when the run goes on. A
    state that is not finite is never complete.

    Args:
        workdir, keep_last, keep_best, keep_every: of the run.
        losses: held-out losses of the steps that are there already.
        rows: file that is copied beside the leaves of each step.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        keep_last: int,
        keep_best: int,
        keep_every: int = 0,
        losses: dict[int, float] | None = None,
        rows: Path | None = None,
    ):
        self._folder, self._rows = checkpoints_folder(workdir), rows
        self._kept = LastBestAndMilestones(keep_last, keep_best, keep_every, dict(losses or {}))
        self._step: int | None = None  # that is being written
        self._bytes = 0
        self._listing: Future[None] | None = None
        self._lister = ThreadPoolExecutor(1, thread_name_prefix="checkpoint_files")
        self._meeting = ocp.multihost.get_barrier_sync_fn()
        self._failed = False
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(barrier_sync_fn=self._meet),
        )
        hide_tracebacks()
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(one_error())
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        newest = latest_step(workdir)
        if newest is not None and jax.process_index() == 0 and not is_listed(self._folder / str(newest)):
            self._listing = self._lister.submit(list_files, self._folder / str(newest))

    def save(self, step: int, state: Any, heldout_loss: float | None = None) -> None:
        """Copies the state to the host and starts to write it; errors of earlier writing surface here.

        Raises:
            InputError: not enough room on the disk, or the previous checkpoint could not be written: to a
                bucket Unreachable, and TroubledDisk unless the disk refuses (it is full, say), for then
                another start would meet the same.
            NotFinite: this state, or on one CPU device, which looks at it while it writes, the previous one.
        """
        self._wait_for_list()  # of a step that may be deleted from here on
        self._bytes = tree_bytes(state)
        check_space(self._folder, int(1.05 * self._bytes), f"the checkpoint of step {step}")
        leaves = SaveLeaves(describe(state, self._rows))
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), leaves=leaves)
        if heldout_loss is not None and math.isfinite(heldout_loss):
            self._kept.losses[step] = heldout_loss
        with self._explained():
            self._manager.save(step, args=arguments, force=True)
            if backend() != "cpu" and any(map(offload.is_on_host, jax.tree.leaves(state))):
                self._manager.wait_until_finished()  # it is written from where the next step writes
        self._step = step

    @property
    def writing(self) -> bool:
        """Whether the last checkpoint is not complete yet."""
        return self._manager.is_saving_in_progress() and not self._failed

    def wait(self) -> None:
        """Waits until the last checkpoint is complete; raises InputError if it is not, see `save`."""
        step, self._step = self._step, None
        with self._explained():
            if self._listing is not None:
                self._listing.result()
                self._listing = None
            self._manager.wait_until_finished()
            if step is not None and jax.process_index() == 0:
                # In the background: a cluster's checkpoint has thousands of files.
                self._listing = self._lister.submit(list_files, self._folder / str(step))

    def _wait_for_list(self) -> None:
        self.wait()
        self.wait()  # the first begins to list the files

    def close(self) -> None:
        """Waits until everything is written; raises InputError if that failed, see `save`."""
        try:
            self._wait_for_list()
        finally:
            self._lister.shutdown()
            with self._quiet, self._explained():
                self._manager.close()

    def _meet(self, *, key: str, timeout_ms: int) -> None:
        """Waits for the other processes, as the storage does at the end of writing.

        It does so also where this process could not write, with the error at hand, and the others would wait
        somewhere else. The error is raised at once instead, ends this process, and thereby the others.
        """
        error = sys.exc_info()[1]
        if error is not None and threading.current_thread() is not threading.main_thread():
            self._failed = True
            raise error
        self._meeting(key=key, timeout_ms=timeout_ms)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except NotFinite:
            raise
        except Exception as error:  # the storage's layers raise all kinds
            if cluster.is_loss(error):
                raise  # of another process, and not of the disk
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> InputError:
        try:
            step = latest_step(self._folder.parent)
            good = (
                "there is no good checkpoint yet"
                if step is None
                else f"the last good checkpoint is step {step}"
            )
        except InputError as further:  # the bucket is gone
            good = str(further)
        number = number_of(error)
        kind, way_out = TroubledDisk, remedy(number)
        if remote.is_remote(self._folder):
            kind, way_out = remote.Unreachable, f"{remote.ACCESS},"
        elif number in REFUSALS:
            kind, way_out = InputError, "make room, or make the folder one that may be written to"
        return kind(
            f"a checkpoint could not be written to {self._folder}: {first_line(error)}; "
            f"{what_is_missing(self._folder, self._bytes)}; {good}. "
            f"See to it: {way_out} and run the same command again"
        )
