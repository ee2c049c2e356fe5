"""Compiled programs that are kept: where, how many, and what becomes of half a file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pom_jax.compilation import trim

PROGRAM = """
import json, sys, warnings
import jax, jax.numpy as jnp
from pom_jax import compilation
folder = compilation.keep_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
before = compilation.counts()
x = float(jax.jit(lambda x: jnp.sin(x) @ x.T + 3)(jnp.ones((3, 3))).sum())
print(json.dumps([str(folder), x, compilation.read_from_cache(before)]))
"""


def run(home: Path, **environment: str) -> tuple[str, float, bool]:
    inherited = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=inherited | {"XDG_CACHE_HOME": str(home), "JAX_PLATFORMS": "cpu"} | environment,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Error reading" not in ended.stderr
    return tuple(json.loads(ended.stdout))


def test_programs_are_read_back_and_half_a_file_is_replaced(tmp_path: Path) -> None:
    folder, first, cached = run(tmp_path)
    assert folder == str(tmp_path / "pom_jax" / "xla")
    assert not cached
    assert run(tmp_path) == (folder, first, True)
    assert (tmp_path / "pom_jax" / "xla").stat().st_mode & 0o077 == 0, "who writes there has his code run"
    files = list(Path(folder).glob("*-cache"))
    for path in files:
        path.write_bytes(path.read_bytes()[:100])  # where a process was killed
    assert run(tmp_path) == (folder, first, False)
    assert run(tmp_path) == (folder, first, True)


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"JAX_ENABLE_COMPILATION_CACHE": "0"}, "None"),
        ({"JAX_COMPILATION_CACHE_DIR": ""}, "None"),
        ({"JAX_COMPILATION_CACHE_DIR": "there"}, "there"),
        ({"XDG_CACHE_HOME": "/dev/null"}, "None"),
    ],
)
def test_the_cache_can_be_moved_and_turned_off(
    tmp_path: Path, environment: dict[str, str], folder: str
) -> None:
    if folder == "there":
        environment = {name: str(tmp_path / value) for name, value in environment.items()}
        folder = str(tmp_path / folder)
    assert run(tmp_path / "unused", **environment)[0] == folder
    assert not (tmp_path / "unused").exists()
    assert (tmp_path / "there").exists() == ("there" in folder)


def test_what_was_not_read_for_longest_goes_first(tmp_path: Path) -> None:
    for age, name in enumerate("abcd"):
        path = tmp_path / f"{name}-cache"
        path.write_bytes(bytes(10))
        os.utime(path, (1000 - age, 1000 - age))
    (tmp_path / "other").write_bytes(bytes(100))
    (tmp_path / "e-cache").symlink_to("gone")  # as if another process had just deleted it
    trim(tmp_path, 25)
    (tmp_path / "e-cache").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-cache", "b-cache", "other"]
