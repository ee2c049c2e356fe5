"""The list of files of a finished step, so that one that is lost, cut or changed is noticed and named.

The digests of the leaves guard the numbers; this guards the files around them, of which some are read only
on another mesh or by another version of the storage.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from pom_jax import remote
from pom_jax.files import names_in, unfinished, write_whole
from pom_jax.training.checkpoint.leaves import DamagedCheckpoint, checksum
from pom_jax.training.checkpoint.trouble import reading

FILE = "files.json"
SMALL = 2**20  # bytes: larger files hold arrays, which have digests; of these only the size is compared


def list_files(step: Path) -> None:
    """Writes the list of all files of the step in this folder into it, whole or not at all."""
    describe = _describer(step)
    files = {name: describe(name) for name in _names(step)}
    write_whole(step / FILE, json.dumps({"files": files, "sha256": checksum(files)}))


def is_listed(step: Path) -> bool:
    """Whether the step in this folder has its list, for which a process may have been killed too early."""
    return FILE in names_in(step)


@reading()
def check_files(step: Path) -> None:
    """Compares the files of a step with their list; a step that has none (an older one) is not checked.

    Raises:
        DamagedCheckpoint: with the name of the first file that is missing or not as it was.
        TroubledDisk: a file cannot be read, whatever it holds.
    """
    try:
        description = json.loads((step / FILE).read_text())
        files = description["files"]
        if description["sha256"] != checksum(files):
            raise ValueError("its checksum is wrong")
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"the file {FILE} cannot be read ({error})") from error
    describe = _describer(step)
    for name, expected in files.items():
        try:
            found = describe(name)
        except OSError as error:
            raise DamagedCheckpoint(f"the file {name} cannot be read ({error.strerror})") from error
        if found != expected:
            sizes = f"{found['bytes']} bytes of {expected['bytes']}"
            how = "other content" if found["bytes"] == expected["bytes"] else sizes
            raise DamagedCheckpoint(f"the file {name} is not what was written ({how})")


def _names(step: Path) -> list[str]:
    if remote.is_remote(step):
        return [name for name in remote.sizes(step) if name != FILE]
    own = (step / FILE, unfinished(step / FILE))
    paths = (path for path in sorted(step.rglob("*")) if path.is_file() and path not in own)
    return [path.relative_to(step).as_posix() for path in paths]


def _describer(step: Path) -> Callable[[str], dict[str, int | str]]:
    """What tells size and, of the small ones, checksum of a file of the step; an OSError if it is missing."""
    if not remote.is_remote(step):
        return lambda name: _describe((step / name).stat().st_size, (step / name).read_bytes)
    # One question for each file would take minutes for thousands.
    sizes = remote.sizes(step)
    texts = remote.contents(step, [name for name, size in sizes.items() if size <= SMALL])

    def describe(name: str) -> dict[str, int | str]:
        if name not in sizes:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(step / name))
        return _describe(sizes[name], lambda: texts[name])

    return describe


def _describe(size: int, read: Callable[[], bytes]) -> dict[str, int | str]:
    return {"bytes": size} if size > SMALL else {"bytes": size, "sha256": hashlib.sha256(read()).hexdigest()}
