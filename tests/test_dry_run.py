"""What a step costs on devices that are not there, asked on the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import common
from pom_jax.training import dry_run

ROOT = Path(__file__).parent.parent


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    return subprocess.run(
        [sys.executable, ROOT / "train.py", *arguments],
        cwd=folder,
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )


def test_a_step_is_planned_without_data_devices_or_a_trace(tmp_path: Path) -> None:
    ended = run(
        f"--config={ROOT}/configs/dipom_s2.py",
        "--dry-run=16",
        "--config.mesh.fsdp=4",
        "--config.model.width=64",
        "--config.model.depth=3",
        "--config.data.dir=nowhere",
        "--config.ema.offload=True",
        folder=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout
    assert "devices: 16 x cpu (mesh: data 4, fsdp 4" in said
    assert "of each device; of the whole run" in said
    lines = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.startswith("  ")}
    compiled, estimated, _ = map(float, lines["parameters"])
    assert compiled == estimated
    assert 1.9 < float(lines["optimiser"][0]) / compiled < 2.1, "two moments"
    assert float(lines["work"][0]) > 0
    assert lines["averages"] == ["0.00"] * 3
    assert lines["kept"] == ["on", "the", "host", *lines["parameters"]]
    rows = [line.split() for line in said.splitlines() if line.startswith("  all-gather")]
    turns = {row[1]: int(row[3]) for row in reversed(rows) if row[2].isdigit()}
    assert turns.get("fsdp") == 3, "the weights of each of three layers"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dry-run=0"], "--dry-run=0 must be a number of devices from 1"),
        (["--dry_run=6", "--config.mesh.fsdp=4"], "does not fit 6 devices"),
    ],
)
def test_what_cannot_be_planned_is_explained(tmp_path: Path, arguments: list[str], message: str) -> None:
    ended = run(f"--config={ROOT}/configs/dipom_s2.py", *arguments, folder=tmp_path)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_there_gives_the_shapes(digits_dir: Path) -> None:
    config = common.base()
    config.data.dir = str(digits_dir)
    assert dry_run.with_data(config) is config
    config.data.dir = str(digits_dir / "none")
    assert dry_run.with_data(config).data.source == "synthetic"
    assert config.data.source == "shards", "the recipe stays as it is"
