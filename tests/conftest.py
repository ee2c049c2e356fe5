"""What several rooms' tests start from."""

import os
from pathlib import Path

import jax
import pytest

from pom_jax.compilation import LEAST_SECONDS, trim
from pom_jax.data import digits

# What tests compile is kept for the next run of them, and for the processes that they start. Never in the
# cache of the user. Another worker's half-written file is as good as none.
PROGRAMS = Path(__file__).parent.parent / ".pytest_cache" / "xla"


def pytest_configure() -> None:
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    trim(PROGRAMS, 2**30)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(PROGRAMS)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(LEAST_SECONDS)
    jax.config.update("jax_compilation_cache_dir", str(PROGRAMS))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """The real digits as shards; a test that changes files works on a copy."""
    out = tmp_path_factory.mktemp("data") / "digits"
    digits.prepare(out)
    return out
