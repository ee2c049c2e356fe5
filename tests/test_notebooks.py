"""The notebooks run from top to bottom in a fresh clone."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_sampling_notebook_trains_a_model_where_there_is_none_and_runs(tmp_path):
    command = [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=400", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [*command, "notebooks/sampling.ipynb"],
        cwd=ROOT,
        env=os.environ | {"POM_JAX_RUNS": str(tmp_path / "runs"), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (tmp_path / "runs" / "digits_quick" / "checkpoints").is_dir()
