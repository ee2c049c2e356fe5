"""The notebooks run from top to bottom in a fresh clone."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(name: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=400", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [*command, f"notebooks/{name}.ipynb"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_sampling_notebook_trains_a_model_where_there_is_none_and_runs(tmp_path):
    run("sampling", POM_JAX_RUNS=str(tmp_path / "runs"))
    assert (tmp_path / "runs" / "digits_quick" / "checkpoints").is_dir()


def test_the_notebook_of_the_layer_runs():
    run("pom_layer")


def test_the_notebook_of_streams_trains_a_model_where_there_is_none_and_runs(tmp_path):
    run("streaming_video", POM_JAX_RUNS=str(tmp_path / "runs"), POM_JAX_QUICK="1")
    assert (tmp_path / "runs" / "moving_digits_quick" / "checkpoints").is_dir()
