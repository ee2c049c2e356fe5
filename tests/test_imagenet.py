"""README's four lines from a folder of pictures to a FID, on real pictures with tiny sizes."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from pom_jax.evaluation.reference import read_reference
from pom_jax.training.metrics import read_rows
from pom_jax.vae import PRESETS, AutoencoderKL, save_autoencoder
from tests.pictures import write_crops
from tests.random_inception import write_random_inception

ROOT = Path(__file__).parent.parent
TINY = {
    "model": {"image_size": 4, "num_classes": 4, "width": 32, "depth": 2},
    "data": {"batch_size": 16},
    "optimizer": {"warmup_steps": 2},
    "train": {"checkpoint_every": 5, "sample_every": 0},
    "sampling": {"sampler": "euler", "steps": 2},
}
# What the lines of the README become: other names of files, other sizes, nothing else.
TRAIN = [f"--config.{section}.{name}={value}" for section in TINY for name, value in TINY[section].items()]
ADDED = {
    "prepare.py": ["--size=32", "--test-share=0.1", "--shard-images=16"],
    "train.py": ["--config.dtype=float32", *TRAIN],
    "sample.py": [],
    "eval.py": ["--num=32", "--part=16"],
}


def commands() -> dict[str, list[str]]:
    """Script -> arguments of the first block after the heading."""
    text = (ROOT / "README.md").read_text().split("## ImageNet: from a folder")[1]
    lines = [shlex.split(line) for line in text.split("```")[1].strip().splitlines()]
    assert [line[1] for line in lines] == [*ADDED]
    names = {
        "imagenet/train": "pictures",
        "sd-vae-ft-ema": "autoencoder",
        "inception.pth": "inception.safetensors",
    }

    def placed(argument: str) -> str:
        for theirs, ours in names.items():
            argument = argument.replace(f"={theirs}", f"={ours}")
        return argument.replace("=configs/", f"={ROOT}/configs/")

    return {line[1]: [placed(word) for word in line[2:]] + ADDED[line[1]] for line in lines}


def run(folder: Path, script: str, *arguments: str) -> str:
    # Inception computes longer than it compiles, all else the other way round; nothing compiles twice.
    quick = {} if script == "eval.py" else {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    quick |= {"JAX_COMPILATION_CACHE_DIR": f"{folder}/programs"}
    quick |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(
        [sys.executable, ROOT / script, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | quick,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_four_lines_of_the_readme_lead_from_pictures_to_scores(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    pictures = write_crops(tmp_path / "pictures", per_class=16)
    model = AutoencoderKL(PRESETS["tiny"])
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32) / 10, shapes)
    save_autoencoder(tmp_path / "autoencoder", model, params)
    write_random_inception(tmp_path / "inception.safetensors")
    real = [np.asarray(Image.open(path).convert("RGB").resize((32, 32))) for path in pictures.rglob("*.*")]
    np.savez(tmp_path / "imagenet256.npz", arr_0=np.stack(real[::2]))  # as many as samples: one program
    lines = commands()

    said = run(tmp_path, "prepare.py", *lines["prepare.py"])
    assert "train: 58 images in 4 shards" in said
    assert Image.open(tmp_path / "data/imagenet256-check.png").size[1] >= 2 * 32

    run(tmp_path, "train.py", *lines["train.py"], "--config.train.steps=10")
    said = run(tmp_path, "train.py", *lines["train.py"], "--config.train.steps=20")
    assert "goes on after step 10" in said
    rows = read_rows(tmp_path / "runs/dipom_xl2")
    assert [row["step"] for row in rows if "loss" in row] == [*range(1, 21)]

    said = run(tmp_path, "sample.py", *lines["sample.py"])
    assert min(Image.open(tmp_path / said.split("written: ")[1].strip()).size) > 4 * 48

    said = run(tmp_path, "eval.py", *lines["eval.py"])
    assert all(name in said for name in ("FID", "sFID", "IS", "precision", "recall", "protocol: "))
    out = tmp_path / "runs/dipom_xl2/eval"
    kept = read_reference(next((out / "reference").glob("*.npz")))
    assert kept.protocol in json.loads((out / "image_scores.json").read_text())["protocol"]["reference"]
