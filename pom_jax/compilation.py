"""Compiled programs are kept for the next run, in a folder of the user's, so that it starts sooner.

The cache is JAX's own, whose keys hold the program, the versions, the flags and the devices. What is read
back is the same machine code, with the same bits in its results.
"""

import collections
import contextlib
import os
import re
import warnings
from pathlib import Path
from typing import Any

import jax

MOST = 4 * 2**30  # bytes; beyond it, what has not been read for the longest time goes
LEAST_SECONDS = 0.2  # of compiling: less is not worth a file
_HIT, _MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"
_found: collections.Counter[str] = collections.Counter()


def keep_programs() -> Path | None:
    """Turns the cache on for this process; every command calls it before anything is compiled.

    The folder is $XDG_CACHE_HOME/pom_jax/xla, by default ~/.cache/pom_jax/xla, or the one that
    JAX_COMPILATION_CACHE_DIR names, which may be gs://. JAX_ENABLE_COMPILATION_CACHE=0 turns it off.

    Of several processes JAX lets the first alone write. The others read what it wrote where they see the same
    folder, but not on CPUs: there the keys hold which process it is.

    Returns:
        The folder; None where the cache is off, or nothing can be written there.
    """
    jax.monitoring.register_event_listener(_count)
    if not jax.config.values["jax_enable_compilation_cache"]:
        return None
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # JAX has read it
        named = os.environ["JAX_COMPILATION_CACHE_DIR"]
        return Path(named) if named else None
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "pom_jax" / "xla"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # whoever writes there has his code run
        trim(folder, MOST)
    except (OSError, RuntimeError):  # no home, a disk that refuses: then every run compiles
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    _drop_broken(folder)
    return folder


def read_from_cache(before: collections.Counter[str]) -> bool:
    """Whether all programs compiled since `before = counts()` came from the cache, and there were any."""
    return _found[_HIT] > before[_HIT] and _found[_MISS] == before[_MISS]


def counts() -> collections.Counter[str]:
    """Programs read and written by the cache so far."""
    return _found.copy()


def trim(folder: Path, most: int) -> None:
    """Deletes the files that have not been read or written for the longest time, down to `most` bytes."""
    files = []
    for path in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process trims too
            files.append((path, path.stat()))
    room = most
    for path, stat in sorted(files, key=lambda file: -max(file[1].st_atime, file[1].st_mtime)):
        room -= stat.st_size
        if room < 0:
            path.unlink(missing_ok=True)


def _count(event: str, **_: Any) -> None:
    if event in (_HIT, _MISS):
        _found[event] += 1


def _drop_broken(folder: Path) -> None:
    """A process that is killed while it writes leaves half a file, which JAX reports but never replaces."""
    show: Any = warnings.showwarning

    def showwarning(message: Any, *details: Any, **more: Any) -> None:
        told = re.match(r"Error reading persistent compilation cache entry for '(\w+)'", str(message))
        if told is None:
            return show(message, *details, **more)
        for path in folder.glob(f"{told[1]}-*-cache"):
            path.unlink(missing_ok=True)
        return None

    warnings.showwarning = showwarning
