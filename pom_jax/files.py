"""Small files that are there whole or not at all, whatever kills the process that writes them."""

import os
from collections.abc import Iterable
from pathlib import Path

from pom_jax import remote


def unfinished(path: Path, writer: int = 0) -> Path:
    """Where a file grows; it stays there where a process is killed meanwhile.

    Args:
        path: of the file.
        writer: one of several processes that may write the same at once.
    """
    return path.with_name(f".{path.name}.{writer}.new" if writer else f".{path.name}.new")


def names_in(folder: Path) -> Iterable[str]:
    """Of all that is in a folder, or in one of a bucket; none where there is no such folder.

    Raises:
        InputError: the bucket does not answer.
    """
    if remote.is_remote(folder):
        return remote.names(folder)
    return (path.name for path in folder.iterdir()) if folder.is_dir() else ()


def write_whole(path: Path, text: str, *, sync: bool = True, writer: int = 0) -> None:
    """Writes a file, which takes the place of one that is there when it is complete.

    Args:
        path: in a folder that exists, or anywhere in a bucket.
        text: all of it.
        sync: wait until it is on the disk, so that a failing machine leaves one of the two.
        writer: see `unfinished`.

    Raises:
        OSError: of the file system.
        InputError: of a bucket.
    """
    if remote.is_remote(path):
        remote.write(path, text)
        return
    growing = unfinished(path, writer)
    with growing.open("w") as file:
        file.write(text)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    growing.replace(path)
