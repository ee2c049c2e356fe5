"""Keeps jaxlib 0.10.2 from summing wrongly on CPU.

That version, the last for Python 3.11, can fuse a product into a sum and then misread a row, without a word:
over the rows (i, 0, 0), i < 32769, `jit(vmap(lambda r: sum((eye(3) @ r) ** 2)))` gives 1065369600 for the
last one instead of 1073741824 (jax issue 39103; 0.10.1 and 0.12.0 are right). Keeping sums out of such
fusions mends it.
"""

import importlib.metadata
import os
import sys
import warnings

WRONG_VERSIONS = ("0.10.2",)
FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def guard() -> None:
    """Adds the flag to XLA_FLAGS if this jaxlib needs it and the CPU may be used; a user's flag stays.

    XLA reads its flags once, when the first backend starts; if one runs already, this warns instead.
    """
    if importlib.metadata.version("jaxlib") not in WRONG_VERSIONS:
        return
    flags = os.environ.get("XLA_FLAGS", "")
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if FLAG in flags or (platforms and "cpu" not in platforms.split(",")):
        return
    if _backend_runs():
        warnings.warn(
            "jaxlib 0.10.2 can sum wrongly on CPU, and JAX was in use before pom_jax was imported: import "
            f"pom_jax before the first JAX computation, or set XLA_FLAGS={FLAG}=-reduce",
            RuntimeWarning,
            stacklevel=3,
        )
        return
    os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=-reduce".strip()


def _backend_runs() -> bool:
    # JAX has no public way to ask without starting a backend; absent this one, nothing is claimed.
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bool(getattr(bridge, "backends_are_initialized", bool)())
