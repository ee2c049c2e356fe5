"""Inception and the scores against torch-fidelity, with the same random weights and the same features.

torch-fidelity imports torchvision, whose builds on the package index need torch's CUDA build. What is
compared here uses none of it, so its names may be empty while the modules are loaded.
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any
from unittest.mock import patch

import jax.numpy as jnp
import numpy as np
import pytest

from pom_jax.evaluation.features import extract_features
from pom_jax.evaluation.frechet import Gaussian, Moments, frechet_distance, gaussian_distance
from pom_jax.evaluation.images import open_images
from pom_jax.evaluation.inception import SPATIAL_CHANNELS, resize
from pom_jax.evaluation.inception_score import inception_score
from pom_jax.evaluation.inception_weights import load_inception
from pom_jax.evaluation.precision_recall import precision_recall
from tests.random_inception import write_random_inception

torch = pytest.importorskip("torch")
load_file = pytest.importorskip("safetensors.torch").load_file
if importlib.util.find_spec("torch_fidelity") is None:
    pytest.skip("torch-fidelity is not installed", allow_module_level=True)


class Empty(ModuleType):
    """A module in which every name that is no module is a class without anything."""

    def __getattr__(self, name: str) -> Any:
        return sys.modules.get(f"{self.__name__}.{name}", type(name, (), {}))


@pytest.fixture(scope="module")
def fidelity() -> dict[str, Any]:
    parts = ("", ".datasets", ".transforms", ".transforms.functional")
    empty = {name: Empty(name) for name in (f"torchvision{part}" for part in parts)}
    modules = ("feature_extractor_inceptionv3", "interpolate_compat_tensorflow")
    modules += ("metric_fid", "metric_isc", "metric_prc")
    with patch.dict(sys.modules, empty):
        return {name: importlib.import_module(f"torch_fidelity.{name}") for name in modules}


@pytest.fixture(scope="module")
def theirs(fidelity: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Their network, which takes exactly the names that we write, and the file of its random weights."""
    folder = tmp_path_factory.mktemp("inception")
    write_random_inception(folder / "random.safetensors")
    file = folder / "random.pth"
    torch.save(load_file(folder / "random.safetensors"), file)
    kind = fidelity["feature_extractor_inceptionv3"].FeatureExtractorInceptionV3
    return kind("random", ["2048", "logits_unbiased"], str(file)), file


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 40, 30, 3), np.uint8)


def close(ours: Any, theirs: Any) -> None:
    """Within 1e-4 of the largest value."""
    theirs = theirs.numpy()
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_the_network_gives_the_same_features(theirs: Any):
    network, file = theirs
    maps = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda *call: maps.append(call[-1]))
    images = pictures(3)
    pool, logits = network(torch.from_numpy(images).permute(0, 3, 1, 2))
    ours = extract_features(open_images(images), load_inception(file), batch_size=2)
    close(ours.pool, pool)
    close(ours.logits, logits)
    spatial = maps[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).reshape(3, -1)  # as TensorFlow lays it out
    assert ours.statistics.spatial is not None
    close(ours.statistics.spatial.mean, spatial.mean(dim=0))
    expected = np.cov(spatial.numpy(), rowvar=False)
    assert np.abs(ours.statistics.spatial.covariance - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (256, 256), (512, 384)])
def test_images_are_resized_alike(fidelity: dict[str, Any], height: int, width: int):
    images = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    like_tensorflow = fidelity["interpolate_compat_tensorflow"].interpolate_bilinear_2d_like_tensorflow1x
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    expected = like_tensorflow(x, size=(299, 299), align_corners=False).permute(0, 2, 3, 1)
    np.testing.assert_allclose(resize(jnp.asarray(images), 299), expected, atol=1e-3)


def test_the_scores_are_the_same(fidelity: dict[str, Any]):
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((48, 48))
    samples = np.maximum(1.1 * rng.standard_normal((700, 48)) @ mixing, 0).astype(np.float32)
    real = np.maximum(rng.standard_normal((500, 48)) @ mixing + 0.5, 0).astype(np.float32)
    made, true = torch.from_numpy(samples), torch.from_numpy(real)

    statistics = [fidelity["metric_fid"].fid_features_to_statistics(x) for x in (made, true)]
    expected = fidelity["metric_fid"].fid_statistics_to_metric(*statistics, verbose=False)
    assert frechet_distance(samples, real) == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    streamed: list[Gaussian] = []
    for features in (samples, real):
        moments = Moments(48)
        for chunk in np.array_split(features, 9):
            moments.add(chunk)
        streamed.append(moments.gaussian())
    assert gaussian_distance(*streamed) == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)

    scored = fidelity["metric_isc"].isc_features_to_metric(made, splits=10, shuffle=False)
    assert inception_score(samples, part=70) == pytest.approx(scored["inception_score_mean"], rel=1e-4)

    for k in (3, 5):
        settings = {"prc_neighborhood": k, "prc_batch_size": 200, "save_cpu_ram": True, "verbose": False}
        found = fidelity["metric_prc"].prc_features_to_metric(made, true, **settings)
        ours = precision_recall(samples, real, k, rows=128)
        assert 0 < found["precision"] < 1
        assert 0 < found["recall"] < 1
        assert ours == pytest.approx((found["precision"], found["recall"]), abs=1e-6)
