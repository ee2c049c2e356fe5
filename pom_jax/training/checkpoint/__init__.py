"""Checkpoints of a run: saved in the background, checked leaf by leaf and file by file when they are read."""

from pom_jax.training.checkpoint.folder import (
    FOLDER,
    checkpoints_folder,
    is_saved,
    latest_step,
    load_config,
    quarantine,
    saved_steps,
)
from pom_jax.training.checkpoint.leaves import DamagedCheckpoint
from pom_jax.training.checkpoint.restoring import (
    check_same_state,
    kept_rows,
    parameter_shapes,
    restore_params,
    restore_state,
    restore_step,
    steps_of_first,
)
from pom_jax.training.checkpoint.saving import Checkpoints
from pom_jax.training.checkpoint.space import check_room, check_space, tree_bytes

__all__ = [
    "FOLDER",
    "Checkpoints",
    "DamagedCheckpoint",
    "check_room",
    "check_same_state",
    "check_space",
    "checkpoints_folder",
    "is_saved",
    "kept_rows",
    "latest_step",
    "load_config",
    "parameter_shapes",
    "quarantine",
    "restore_params",
    "restore_state",
    "restore_step",
    "saved_steps",
    "steps_of_first",
    "tree_bytes",
]
