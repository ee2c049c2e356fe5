"""Larger images that start from smaller samples."""

import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from pom_jax import models
from pom_jax.errors import InputError
from pom_jax.sampling import Generator
from pom_jax.sampling.command import sample_to_file
from pom_jax.training import checkpoint
from pom_jax.training.config import keep_config
from tests.test_sampling import random_params, tiny_config

SIDE = 8


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images of 8 x 8, with a time shift."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(image_size=SIDE)
    config.diffusion.shift = 1.5
    params = random_params(models.build(config.model))
    keep_config(folder, config)
    checkpoints = checkpoint.Checkpoints(folder, keep_last=1, keep_best=0)
    checkpoints.save(1, {"params": params, "ema": [params]})
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def generator(workdir: Path) -> Generator:
    config = checkpoint.load_config(workdir)
    return Generator(config, models.build(config.model), checkpoint.restore_params(workdir)[0])


def test_the_start_decides_how_much_is_kept_of_the_small_sample(generator: Generator) -> None:
    labels = [0, 1, 2, 0, 1]
    low = np.random.default_rng(0).normal(size=(5, 4, 4, 1)).astype(np.float32)
    settings = {"guidance": 1.0, "steps": 2, "sampler": "euler"}
    noise_alone = generator.sample_array(labels, low=low, upscale_start=1.0, **settings)
    np.testing.assert_allclose(noise_alone, generator.sample_array(labels, **settings), atol=1e-5)
    hardly_noised = generator.sample_array(labels, low=low, upscale_start=1e-4, **settings)
    enlarged = jax.image.resize(low, (5, SIDE, SIDE, 1), "cubic")
    np.testing.assert_allclose(hardly_noised, enlarged, atol=0.02)
    by_two = generator.sample_array(labels, low=low, batch_size=2, **settings)
    whole = generator.sample_array(labels, low=low, **settings)
    np.testing.assert_allclose(by_two, whole, atol=1e-5)
    assert np.abs(whole - noise_alone).max() > 0.1


def test_the_command_takes_its_own_arrays(workdir: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
    np.savez(small, arr_0=pixels, arr_1=np.array([2, 0, 2], np.int32))
    written = sample_to_file(
        workdir, upscale_from=str(small), upscale_start=1e-4, out=str(tmp_path / "a.npz")
    )
    with np.load(written) as found:
        assert found["arr_1"].tolist() == [2, 0, 2]
        assert found["arr_0"].shape == (3, SIDE, SIDE, 1)
        blocks = found["arr_0"].reshape(3, 4, 2, 4, 2, 1).mean((2, 4))
    assert np.corrcoef(blocks.ravel(), pixels.ravel())[0, 1] > 0.9


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("arrays", "settings", "message"),
    [
        ({"arr_0": np.zeros((1, 4, 4, 4), np.float32)}, {}, "the model draws pixels"),
        ({"arr_0": np.zeros((1, 16, 16, 1), np.uint8)}, {}, "16 x 16, larger than the model's 8 x 8"),
        ({"arr_1": np.array([7])}, {}, "3 classes"),
        ({"arr_1": np.array([0, 1])}, {}, "1 smaller images for 2 labels"),
        ({}, {"num": 3}, "leave out --classes"),
        ({}, {"upscale_start": 0.0}, "upscale_start=0.0"),
        (None, {}, "python sample.py --workdir=... --out=FILE.npz"),
        (b"", {}, "is not an .npz of sample.py"),
        (npy(np.zeros(3)), {}, "is not an .npz of sample.py"),
    ],
)
def test_mistakes_are_explained(
    workdir: Path,
    tmp_path: Path,
    arrays: dict[str, Any] | bytes | None,
    settings: dict[str, Any],
    message: str,
) -> None:
    if isinstance(arrays, bytes):
        (tmp_path / "small.npz").write_bytes(arrays)
    elif arrays is not None:
        usual: dict[str, Any] = {"arr_0": np.zeros((1, 4, 4, 1), np.uint8), "arr_1": np.array([0], np.int32)}
        np.savez(tmp_path / "small.npz", **usual | arrays)
    with pytest.raises(InputError, match=message):
        sample_to_file(workdir, upscale_from=str(tmp_path / "small.npz"), **settings)
