"""Tells a file system in trouble from a damaged file: of the first, another checkpoint would be no better."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from pom_jax import remote
from pom_jax.errors import TroubledDisk

# What is said of a file that is not as it was. Any other error says nothing of what the file holds.
CHANGED = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
REMEDIES = {errno.EMFILE: "allow more open files (ulimit -n)", errno.ENFILE: "have fewer files open there"}
REMEDIES |= dict.fromkeys((errno.EACCES, errno.EPERM), "give this user the right to read it")
# Failed to open: "/path": Permission denied [os_error_code='13']
OF_TENSORSTORE = re.compile(r"os_error_code='(\d+)'")


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Within, or in a function so decorated, errors of a file system in trouble are told as TroubledDisk."""
    try:
        yield
    except Exception as error:
        if (found := _trouble(error)) is None:
            raise
        what, path, way_out = found
        raise TroubledDisk(
            f"{path or 'a file of the checkpoints'} cannot be read: {what}. Nothing was moved or changed, "
            f"for that says nothing of what it holds: {way_out}, and run the same command again"
        ) from error


def number_of(error: BaseException | None) -> int:
    """The errno of an error of the file system, or of what it comes from; 0 where none is told."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if told := OF_TENSORSTORE.search(str(error)):
            return int(told[1])
        error = error.__cause__ or error.__context__
    return 0


def remedy(number: int) -> str:
    """What to do about trouble with this errno, or about a timeout with 0."""
    return REMEDIES.get(number, "look at the disk, the mount or the network")


def _trouble(error: BaseException | None) -> tuple[str, str, str] | None:
    """What an error of the file system, or what it comes from, says, of which path, and the remedy."""
    while error is not None:
        if said := remote.trouble(error):
            return said, "", remote.ACCESS
        if isinstance(error, TimeoutError | ConnectionError) and error.errno is None:
            return _explained(0, "")
        if isinstance(error, OSError) and error.errno not in (None, *CHANGED):
            return _explained(error.errno or 0, str(error.filename or ""))
        if told := OF_TENSORSTORE.search(str(error)):
            paths = re.findall(r'"(/[^"]+)"', str(error)[: told.start()])
            return None if int(told[1]) in CHANGED else _explained(int(told[1]), paths[-1] if paths else "")
        error = error.__cause__ or error.__context__
    return None


def _explained(number: int, path: str) -> tuple[str, str, str]:
    """Of an error by its number, 0 for a timeout."""
    what = os.strerror(number) if number else "no answer in time"
    return what, path, remedy(number)
