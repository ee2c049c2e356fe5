"""Keeps the memory of one training step for the next when the CPU is the accelerator."""

import ctypes
import importlib.util
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Tells glibc's allocator not to hand freed memory back to the system.

    XLA's CPU backend allocates the temporaries of a program at each call. By default such blocks are mapped
    afresh, and the kernel must fault in and clear every page again in every step: a sixth of the time of
    DiPoM-S/2's blocks on two cores. Kept, the process holds its largest step until it ends, so this is for
    commands that repeat one program, called before the first computation; importing the package leaves the
    allocator alone.

    Returns:
        Whether the allocator took it: False where JAX has an accelerator and on systems without glibc, where
        nothing changes.
    """
    if not _computes_on_cpu() or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # One arena: others live in heaps of 64 MB and would fall back to mapping.
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_ARENA_MAX, 1)])


def release_freed_memory() -> None:
    """Hands back what `keep_freed_memory` has kept, before programs of other sizes."""
    if sys.platform.startswith("linux") and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _computes_on_cpu() -> bool:
    # Asking JAX would start its threads, and they would keep the arenas that they start with.
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    return not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
