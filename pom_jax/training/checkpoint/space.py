"""Room on the disk: asked for before a checkpoint is written, and said how much is missing."""

import contextlib
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from pom_jax import remote
from pom_jax.errors import InputError
from pom_jax.training.checkpoint.folder import saved_steps
from pom_jax.training.checkpoint.trouble import reading

SLACK = 16 * 2**20  # bytes: what the storage writes besides the arrays, and the other files of a run


def tree_bytes(tree: Any) -> int:
    """Size of all arrays (or shapes) of a tree in bytes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@reading()
def free_bytes(folder: str | Path) -> int:
    """What the disk of a folder, which need not exist yet, has left; TroubledDisk if it does not say."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check_space(folder: str | Path, needed: int, purpose: str) -> None:
    """Raises InputError if the disk of `folder` has less than `needed` bytes, and a little, left.

    A disk that does not say what it has left is a TroubledDisk.

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


def what_is_missing(folder: Path, needed: int) -> str:
    """Why `needed` bytes could not be written there, as far as the system tells, in words.

    Args:
        folder: of the checkpoints, one of which is half written.
        needed: bytes of its arrays.
    """
    words = [f"the arrays are {needed / 1e9:.3f} GB"]
    if remote.is_remote(folder):
        return words[0]
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and limit < needed:
        words.append(f"a file may have at most {limit:,} bytes here (ulimit -f)")
    with contextlib.suppress(InputError, OSError):  # the disk is in trouble, and the rest is said
        room = free_bytes(folder) + _half_written(folder)
        lack = f": {(needed - room) / 1e9:.3f} GB are missing" if room < needed else ""
        words.append(f"the disk has room for {room / 1e9:.3f} GB{lack}")
    return ", ".join(words)


def _half_written(folder: Path) -> int:
    """Bytes that unfinished checkpoints take; the next start removes them."""
    files = (path for half in folder.glob("*.orbax-checkpoint-tmp*") for path in half.rglob("*"))
    return sum(512 * path.lstat().st_blocks for path in files)
