"""Keeps the memory of one training step for the next when the CPU is the accelerator."""

import ctypes
import importlib.util
import os
import sys

import jax

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tells glibc's allocator not to hand freed memory back to the system.

    XLA's CPU backend allocates the temporaries of a program at each call. By default such a block is mapped
    afresh, and the kernel must fault in and clear every page again in every step: a third of the time of
    moving digits on two cores. Kept, the process holds its largest step until it ends, so this is for
    commands that repeat one program, called before the first computation; importing the package leaves the
    allocator and JAX alone.

    Programs then run on the thread that calls them, so that the main thread's arena serves them. Those of
    other threads live in heaps of 64 MB, beyond which they would map again; and one arena for all threads
    would hold the thousands of pieces that compiling leaves, to be searched in each allocation.

    Returns:
        Whether the allocator took it: False where JAX has an accelerator and on systems without glibc, where
        nothing changes.
    """
    if not _computes_on_cpu() or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1)])


def release_freed_memory() -> None:
    """Hands back what `keep_freed_memory` has kept, before programs of other sizes."""
    if sys.platform.startswith("linux") and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _computes_on_cpu() -> bool:
    # Asking JAX would start its backend, before the processes of a cluster have met.
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    return not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
