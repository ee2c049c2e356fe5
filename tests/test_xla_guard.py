"""Sums on CPU are right with this package imported, also where the installed jaxlib alone gets them wrong."""

import importlib.metadata
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pom_jax.ops import product_features, state_mean, token_state
from pom_jax.xla_guard import FLAG, WRONG_VERSIONS

LAST_ROW_SUM = """
import jax, jax.numpy as jnp
rows = jnp.zeros((32769, 3)).at[:, 0].set(jnp.arange(32769.0))
print(int(jax.jit(jax.vmap(lambda r: jnp.sum((jnp.eye(3) @ r) ** 2)))(rows)[-1]))
"""
needs_guard = pytest.mark.skipif(
    importlib.metadata.version("jaxlib") not in WRONG_VERSIONS, reason="this jaxlib sums rightly by itself"
)


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=inherited | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.smoke
def test_the_known_wrong_sum_is_right_once_the_package_is_imported() -> None:
    assert int(run("import pom_jax" + LAST_ROW_SUM).stdout) == 32768**2


@needs_guard
def test_without_the_package_that_sum_is_wrong() -> None:
    assert int(run(LAST_ROW_SUM).stdout) != 32768**2


@needs_guard
def test_an_import_after_the_first_computation_warns_in_one_line() -> None:
    late = run("import jax; jax.numpy.ones(3) + 1\nimport pom_jax")
    assert "import pom_jax before the first JAX computation" in late.stderr
    assert len(late.stderr.strip().splitlines()) == 1
    assert not run("import jax\nimport pom_jax\njax.numpy.ones(3) + 1").stderr


def test_flags_of_the_user_are_kept() -> None:
    show = "import os, pom_jax; print(os.environ['XLA_FLAGS'])"
    own = f"{FLAG}=dot"
    assert run(show, XLA_FLAGS=own).stdout.strip() == own
    many = "--xla_force_host_platform_device_count=2"
    assert run(show, XLA_FLAGS=many).stdout.strip().startswith(many)


@needs_guard
def test_without_a_cpu_backend_nothing_is_set() -> None:
    show = "import os, pom_jax; print(os.environ.get('XLA_FLAGS'))"
    assert run(show, JAX_PLATFORMS="cuda").stdout.strip() == "None"
    assert FLAG in run(show, JAX_PLATFORMS="cuda,cpu").stdout


@pytest.mark.parametrize("masked", [False, True])
def test_states_and_means_of_many_tokens_agree_with_float64(masked: bool) -> None:
    tokens, rng = 100_001, np.random.default_rng(0)
    u = rng.normal(size=(1, tokens, 2, 3)).astype(np.float32) + 0.3
    mask = jnp.asarray(rng.uniform(size=(1, tokens)), jnp.float32) if masked else None

    def both(u: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        features = product_features(u)
        return features, state_mean(token_state(features, mask)), jnp.mean(jnp.square(features))

    features, mean, loss = jax.jit(both)(u)
    wide = np.asarray(features, np.float64)
    exact = np.average(wide[0], axis=0, weights=None if mask is None else np.asarray(mask[0], np.float64))
    np.testing.assert_allclose(mean[0, 0], exact, rtol=1e-6)
    np.testing.assert_allclose(loss, np.mean(wide**2), rtol=1e-6)


def test_bfloat16_features_are_summed_in_float32() -> None:
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, size=(1, 100_001, 2)), jnp.bfloat16)
    exact = np.asarray(x, np.float64).sum(1, keepdims=True)
    np.testing.assert_allclose(jax.jit(token_state)(x).sum, exact, rtol=1e-6)
