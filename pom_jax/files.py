"""Small files that are there whole or not at all, whatever kills the process that writes them."""

import os
from pathlib import Path

from pom_jax import remote


def unfinished(path: Path) -> Path:
    """Where a file grows; it stays there where a process is killed meanwhile."""
    return path.with_name(f".{path.name}.new")


def write_whole(path: Path, text: str, *, sync: bool = True) -> None:
    """Writes a file, which takes the place of one that is there when it is complete.

    Args:
        path: in a folder that exists, or anywhere in a bucket.
        text: all of it.
        sync: wait until it is on the disk, so that a failing machine leaves one of the two.

    Raises:
        OSError: of the file system.
        InputError: of a bucket.
    """
    if remote.is_remote(path):
        remote.write(path, text)
        return
    with unfinished(path).open("w") as file:
        file.write(text)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    unfinished(path).replace(path)
