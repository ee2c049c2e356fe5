"""The folder of a run, which one run writes to at a time, by one or several processes."""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from pom_jax import cluster
from pom_jax.errors import InputError
from pom_jax.files import write_whole

FILE = ".processes"  # which of them see the same folder
SEEN = 60  # seconds in which a network file system must show other hosts what was written


@contextlib.contextmanager
def hold(
    workdir: str | Path, begin: Callable[[], object] = lambda: None, shared: bool = True
) -> Iterator[None]:
    """Makes the folder and keeps other training runs out of it; the system lets go when the process ends.

    Args:
        workdir: seen by all processes, if `shared`.
        begin: writes config.json there, or finds that it may not; called on all processes.
        shared: False where each host may have a folder of its own, for the checkpoints are in a bucket.

    Raises:
        InputError: the folder cannot be made or written to, another run trains in it, `begin` found
            something, or the processes see different folders.
    """
    workdir, held = Path(workdir), contextlib.ExitStack()

    with held:
        cluster.first_does(lambda: held.callback(os.close, _open(workdir)))
        if not shared:
            cluster.agree(lambda: os.close(_make(workdir)), InputError)
        begin()
        if shared and jax.process_count() > 1:
            token = cluster.share(secrets.token_hex(16))[0]
            cluster.first_does(lambda: write_whole(workdir / FILE, token))
            cluster.agree(lambda: check_seen(workdir, token), InputError)
            cluster.first_does(lambda: (workdir / FILE).unlink(missing_ok=True))
        yield


def _make(workdir: Path) -> int:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        return os.open(workdir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(f"the workdir {workdir} cannot be made: {error.strerror}; choose another") from error


def _open(workdir: Path) -> int:
    folder = _make(workdir)
    try:
        if not os.access(workdir, os.W_OK):
            raise InputError(f"the workdir {workdir} cannot be written to; choose another --workdir")
        _lock(folder, workdir)
    except InputError:
        os.close(folder)
        raise
    return folder


def _lock(folder: int, workdir: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"another train.py is at work in {workdir}; wait until it ends, or choose another --workdir"
        ) from error
    except OSError:
        pass  # some network file systems lock no folders: there, nothing is promised


def check_seen(workdir: Path, token: str, patience: float = SEEN) -> None:
    """Waits until this process sees what the first one has just written; an InputError if it never does."""
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError):
            if (workdir / FILE).read_text() == token:
                return
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    raise InputError(
        f"the processes do not see the same workdir {workdir.absolute()}: choose a --workdir on a file "
        "system that all hosts share"
    )
