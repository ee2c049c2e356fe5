"""The folder of a run, which one process writes to at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from pom_jax.errors import InputError


@contextlib.contextmanager
def hold(workdir: str | Path) -> Iterator[None]:
    """Makes the folder and keeps other training runs out of it; the system lets go when the process ends.

    Raises:
        InputError: the folder cannot be made or written to, or another process trains in it.
    """
    workdir = Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        folder = os.open(workdir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(f"the workdir {workdir} cannot be made: {error.strerror}; choose another") from error
    try:
        if not os.access(workdir, os.W_OK):
            raise InputError(f"the workdir {workdir} cannot be written to; choose another --workdir")
        if jax.process_index() == 0:
            _lock(folder, workdir)
        yield
    finally:
        os.close(folder)


def _lock(folder: int, workdir: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"another train.py is at work in {workdir}; wait until it ends, or choose another --workdir"
        ) from error
    except OSError:
        pass  # some network file systems lock no folders: there, nothing is promised
