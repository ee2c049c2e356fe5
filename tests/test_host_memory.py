"""Memory that is kept is not faulted in again at each step."""

import subprocess
import sys

import pytest

STEPS = """
import sys, resource
from pom_jax.host_memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
import jax, jax.numpy as jnp
x, w, v = jnp.ones((16384, 64)), jnp.ones((64, 1024)), jnp.ones((1024, 8))
step = jax.jit(lambda x, w, v: (x @ w) @ v)  # 64 MB of temporaries
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts = []
for _ in range(20):
    before = faults()
    step(x, w, v).block_until_ready()
    counts.append(faults() - before)
print(kept, min(counts[10:]))
"""


def faults(mode: str) -> tuple[str, int]:
    run = subprocess.run([sys.executable, "-c", STEPS, mode], capture_output=True, text=True, check=True)
    kept, count = run.stdout.split()
    return kept, int(count)


def test_repeated_steps_fault_in_no_pages_once_freed_memory_is_kept() -> None:
    kept, few = faults("keep")
    if kept != "True":
        pytest.skip("no glibc here: nothing changes")
    assert few < 0.1 * faults("leave")[1]
