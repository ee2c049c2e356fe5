"""Room on the disk: asked for before a checkpoint is written, and said how much is missing."""

import resource
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from pom_jax import remote
from pom_jax.errors import InputError
from pom_jax.training.checkpoint.folder import saved_steps

SLACK = 16 * 2**20  # bytes: what the storage writes besides the arrays, and the other files of a run


def tree_bytes(tree: Any) -> int:
    """Size of all arrays (or shapes) of a tree in bytes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def free_bytes(folder: str | Path) -> int:
    """What the disk of a folder, which need not exist yet, has left."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check_space(folder: str | Path, needed: int, purpose: str) -> None:
    """Raises InputError if the disk of `folder` has less than `needed` bytes, and a little, left.

    Args:
        folder: need not exist yet; in a bucket there is always room.
        needed: bytes.
        purpose: what needs them, for the message.
    """
    if remote.is_remote(folder):
        return
    needed, free = needed + SLACK, free_bytes(folder)
    if free < needed:
        raise InputError(
            f"{purpose} needs {needed / 1e9:.2f} GB, but the disk of {folder} has {free / 1e9:.2f} GB left, "
            f"{(needed - free) / 1e9:.2f} GB too little: make room, choose another --workdir, or lower "
            "train.keep_last and train.keep_best (or raise train.keep_every)"
        )


def check_room(workdir: str | Path, train: Mapping[str, Any], state: Any) -> None:
    """Raises InputError if the disk cannot hold the checkpoints that a run keeps, and the one it writes.

    Args:
        workdir: of the run, which need not exist yet.
        train: that section of its configuration.
        state: of the run, or its shapes.
    """
    kept = train["keep_last"] + train["keep_best"]
    kept += train["steps"] // train["keep_every"] if train["keep_every"] else 0
    missing = max(1, kept + 1 - len(saved_steps(workdir)))
    check_space(workdir, missing * tree_bytes(state), "keeping the checkpoints of this run")


def what_is_missing(folder: str | Path, needed: int) -> str:
    """Why `needed` bytes could not be written there, as far as the system tells, in words."""
    size = f"the arrays are {needed / 1e9:.3f} GB"
    if remote.is_remote(folder):
        return size
    free, limit = free_bytes(folder), resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and limit < needed:
        return f"{size}, and a file may have {limit / 1e9:.3f} GB here (ulimit -f): {_lack(needed, limit)}"
    if free < needed:
        return f"{size}, and the disk has {free / 1e9:.3f} GB left: {_lack(needed, free)}"
    return f"{size}, and the disk has {free / 1e9:.3f} GB left"


def _lack(needed: int, there: int) -> str:
    return f"{(needed - there) / 1e9:.3f} GB are missing"
