"""The field's image metrics against closed forms, brute force and loops; the network; bad input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pom_jax import interop
from pom_jax.errors import InputError
from pom_jax.evaluation.features import Features, Statistics, extract_features
from pom_jax.evaluation.frechet import Gaussian, Moments, frechet_distance, gaussian_distance
from pom_jax.evaluation.image_scores import score_images
from pom_jax.evaluation.images import centre_crop, open_images
from pom_jax.evaluation.inception import POOL, SPATIAL, resize
from pom_jax.evaluation.inception_score import SHUFFLE, inception_score
from pom_jax.evaluation.inception_weights import InceptionWeights, file_sha256, load_inception, save_inception
from pom_jax.evaluation.precision_recall import precision_recall
from pom_jax.evaluation.reference import (
    check_file,
    fit_reference,
    open_reference,
    read_statistics,
    write_statistics,
)
from tests.random_inception import write_random_inception

ROOT = Path(__file__).parent.parent


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def pictures(count: int, height: int = 12, width: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def small(features: int) -> Gaussian:
    return Gaussian(np.zeros(features, np.float32), np.zeros((features, features), np.float32))


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("inception") / "random.safetensors"
    write_random_inception(file)
    return file


@pytest.fixture(scope="module")
def weights(weights_file: Path) -> InceptionWeights:
    return load_inception(weights_file)


@pytest.fixture(scope="module")
def features(weights: InceptionWeights) -> Features:
    """Of five pictures in batches of two, of which the last one is filled up."""
    return extract_features(open_images(pictures(5)), weights, batch_size=2)


@pytest.mark.parametrize("singular", [False, True])
def test_distance_of_gaussians_that_share_their_axes_has_a_closed_form(singular):
    axes, _ = np.linalg.qr(normal(24, 24))
    first, second = np.exp(normal(24)), np.exp(normal(24, seed=1))
    if singular:  # as covariances of few images are
        first[:3] = second[2:5] = 0
    shift = normal(24, seed=2)
    ours = gaussian_distance(
        Gaussian(shift, (axes * first) @ axes.T), Gaussian(np.zeros(24), (axes * second) @ axes.T)
    )
    exact = shift @ shift + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    assert ours == pytest.approx(exact, rel=1e-6)


def test_moments_of_chunks_are_those_of_the_whole_far_from_zero():
    x = 1e6 + normal(50, 7) * np.arange(1, 8)
    moments = Moments(7)
    for chunk in np.split(x, [1, 1, 20, 33]):
        moments.add(chunk)
    mean, covariance = moments.gaussian()
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-9)
    y = normal(40, 7, seed=1)
    other = Gaussian(y.mean(axis=0), np.cov(y, rowvar=False))
    assert gaussian_distance(moments.gaussian(), other) == pytest.approx(frechet_distance(x, y), rel=1e-9)


def test_inception_score_by_hand():
    sure = np.where(np.arange(6) % 3 == np.arange(3)[:, None], 50.0, 0.0).T  # three classes in turn
    assert inception_score(sure) == pytest.approx(3)
    assert inception_score(sure, part=1) == pytest.approx(1)
    assert inception_score(np.ones((4, 9))) == pytest.approx(1)
    logits = normal(5, 4)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = [np.exp((q * np.log(q / q.mean(axis=0))).sum(axis=1).mean()) for q in (p[:3], p[3:])]
    assert inception_score(logits, part=3) == pytest.approx(np.mean(scores), rel=1e-12)


def test_inception_score_of_sorted_classes_is_that_of_shuffled_ones():
    labels = np.repeat(np.arange(20), 25)
    logits = np.where(np.arange(30) == labels[:, None], 12.0, 0.0)
    assert inception_score(logits, part=100) < 5
    shuffled = inception_score(logits, part=100, seed=0)
    assert 17 < shuffled == inception_score(logits, part=100, seed=0) < 20
    assert inception_score(logits, part=500, seed=0) == pytest.approx(inception_score(logits), rel=1e-12)


def test_precision_and_recall_are_those_of_all_pairs_in_float64_whatever_the_blocks():
    samples, reference = 1.4 * normal(90, 6), normal(70, 6, seed=1)
    samples[:4] = reference[:4] = reference[4]  # copies: distances and radii of zero

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return ((a[:, None] - b) ** 2).sum(axis=-1)

    def among(x: np.ndarray, others: np.ndarray, k: int) -> float:
        radii = np.sort(distances(others, others), axis=1)[:, k]
        return float((distances(x, others) <= radii).any(axis=1).mean())

    for k, rows, shift in ((3, 1024, 0), (3, 32, 100)):
        exact = among(samples, reference, k), among(reference, samples, k)
        assert 0 < exact[0] < 1
        assert precision_recall(samples + shift, reference + shift, k, rows) == exact


def test_resizing_is_tensorflow_1s():
    x = pictures(1, 7, 5)[0].astype(np.float64)
    side = 11
    expected = np.empty((side, side, 3))
    for i in range(side):
        for j in range(side):
            y, z = i * 7 / side, j * 5 / side
            top, left = int(y), int(z)
            bottom, right = min(top + 1, 6), min(left + 1, 4)
            upper = x[top, left] * (left + 1 - z) + x[top, right] * (z - left)
            lower = x[bottom, left] * (left + 1 - z) + x[bottom, right] * (z - left)
            expected[i, j] = upper * (top + 1 - y) + lower * (y - top)
    np.testing.assert_allclose(resize(x.astype(np.uint8)[None], side)[0], expected, atol=1e-3)
    np.testing.assert_array_equal(resize(x.astype(np.uint8)[None, :5], 5)[0], x[:5])


def test_weights_come_back_bit_for_bit(weights: InceptionWeights, weights_file: Path, tmp_path: Path):
    save_inception(tmp_path / "again.safetensors", weights.variables)
    again = load_inception(tmp_path / "again.safetensors")
    jax.tree.map(np.testing.assert_array_equal, again.variables, weights.variables)
    assert (weights.name, weights.sha256) == ("random.safetensors", file_sha256(weights_file))
    assert weights.variables["params"]["Mixed_6d"]["branch7x7_2"]["kernel"].shape == (1, 7, 160, 160)


def test_weights_in_bfloat16_are_read(weights: InceptionWeights, tmp_path: Path):
    file = tmp_path / "half.safetensors"
    save_inception(file, weights.variables)
    interop.write_tensors(file, {n: x.astype(jnp.bfloat16) for n, x in interop.read_tensors(file).items()})
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(np.float32), weights.variables)
    jax.tree.map(np.testing.assert_array_equal, load_inception(file).variables, rounded)


def test_wrong_weights_are_told_by_name(weights: InceptionWeights, tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    file = tmp_path / "inception.safetensors"
    save_inception(file, weights.variables)
    good = load_file(file)
    for change, told in (
        (
            {"fc.bias": None, "Aux.bias": np.zeros(3)},
            "of 472 tensors 1 missing (fc.bias), 1 unknown (Aux.bias)",
        ),
        ({"fc.bias": np.zeros(1000, np.float32)}, "fc.bias is [1000]; this network has [1008]"),
        ({"fc.bias": np.zeros(1008, np.int32)}, "fc.bias is int32"),
        ({"fc.bias": np.full(1008, np.nan, np.float32)}, "fc.bias has NaN"),
    ):
        save_file({name: x for name, x in (good | change).items() if x is not None}, file)
        with pytest.raises(InputError, match=re.escape(told)):
            load_inception(file)


def test_features_do_not_depend_on_neighbours_and_filling(features: Features, weights: InceptionWeights):
    swapped = extract_features(open_images(pictures(5)[::-1]), weights, batch_size=2, keep=2)
    np.testing.assert_allclose(swapped.pool, features.pool[[4, 0]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(swapped.logits, features.logits[[4, 0]], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(swapped.statistics, features.statistics, strict=True):
        assert ours is not None
        assert theirs is not None
        np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-5, atol=1e-6)
    assert features.pool.std(axis=0).mean() > 1e-3  # the pictures are told apart
    np.testing.assert_allclose(features.statistics.pool.mean, features.pool.mean(axis=0), rtol=1e-5)


def test_eight_devices_compute_what_one_does(features: Features, weights_file: Path, tmp_path: Path):
    program = f"""
import numpy as np, jax
from pom_jax.evaluation.features import extract_features
from pom_jax.evaluation.images import open_images
from pom_jax.evaluation.inception_weights import load_inception
assert jax.device_count() == 8
images = np.load({str(tmp_path / "images.npy")!r})
found = extract_features(open_images(images), load_inception({str(weights_file)!r}))
spatial = found.statistics.spatial.mean
np.savez({str(tmp_path / "found.npz")!r}, pool=found.pool, logits=found.logits, spatial=spatial)
"""
    np.save(tmp_path / "images.npy", pictures(5))
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True, timeout=240)
    found = np.load(tmp_path / "found.npz")
    assert features.statistics.spatial is not None
    for name, one in (
        ("pool", features.pool),
        ("logits", features.logits),
        ("spatial", features.statistics.spatial.mean),
    ):
        np.testing.assert_allclose(found[name], one, rtol=1e-4, atol=1e-5)


def test_images_are_nearest_to_themselves_from_files_and_folders(
    features: Features, weights: InceptionWeights, tmp_path: Path
):
    images = pictures(5)
    write_statistics(tmp_path / "made" / "reference.npz", Statistics(features.statistics.pool, None), images)
    for number, image in enumerate(images):
        (tmp_path / "folder" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "folder" / str(number % 2) / f"{number}.png")
    opened = open_reference(tmp_path / "made" / "reference.npz")
    reference = fit_reference(opened, weights, batch_size=2)
    told: list[str] = []
    found = score_images(
        tmp_path / "folder", reference, weights, batch_size=2, part=2, neighbours=2, say=told.append
    )
    assert list(found.scores) == ["fid", "inception_score", "precision", "recall"]  # the file has no mu_s
    assert abs(found.scores["fid"]) < 1e-3 * np.trace(features.statistics.pool.covariance)
    assert found.scores["precision"] == found.scores["recall"] == 1
    assert told[0].startswith("samples: 5 images of ")
    by_path = features.logits[[0, 2, 4, 1, 3]]
    in_order, shuffled = (inception_score(by_path, 2, seed=seed) for seed in (None, SHUFFLE))
    # Random weights recognise hardly anything: what counts is by how much the score is above 1.
    assert found.scores["inception_score"] - 1 == pytest.approx(shuffled - 1, rel=0.01)
    assert in_order - 1 != pytest.approx(shuffled - 1, rel=0.03)
    line = found.protocol_line()
    for part in (weights.sha256, file_sha256(tmp_path / "made" / "reference.npz"), "5 of 10 x 12", "k = 2"):
        assert part in line
    assert f"mean over parts of 2 in an order shuffled with seed {SHUFFLE};" in line
    assert "FID ↓" in found.text()


def test_eval_scores_pictures_of_a_folder(weights_file: Path, tmp_path: Path):
    images = pictures(6)
    np.savez(tmp_path / "real.npz", arr_0=images)
    (tmp_path / "made").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "made" / f"{number}.png")
    command = [sys.executable, str(ROOT / "eval.py"), f"--images={tmp_path / 'made'}"]
    command += [f"--reference={tmp_path / 'real.npz'}", f"--inception={weights_file}", f"--out={tmp_path}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "image_scores.json").read_text())
    assert found["scores"]["precision"] == found["scores"]["recall"] == 1
    table = (tmp_path / "image_scores.md").read_text()
    for shown in (found["protocol"]["Inception"], f"{found['scores']['inception_score']:.2f}"):
        assert shown in table
        assert shown in done.stdout


def test_files_of_statistics_and_streams_of_images_come_back(tmp_path: Path):
    images = pictures(7)
    np.savez_compressed(tmp_path / "images.npz", arr_0=images, arr_1=np.arange(7))
    batches = list(open_images(tmp_path / "images.npz").batches(3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(batches), images)
    np.savez(tmp_path / "fid.npz", mu=np.arange(POOL), sigma=np.eye(POOL, dtype=np.float32))
    statistics = read_statistics(tmp_path / "fid.npz")
    assert statistics.spatial is None
    assert statistics.pool.mean.dtype == statistics.pool.covariance.dtype == np.float64
    assert open_reference(tmp_path / "fid.npz").images is None
    assert open_reference(tmp_path / "images.npz").keep is None
    assert open_reference(images).keep == 10_000
    write_statistics(tmp_path / "both.npz", Statistics(statistics.pool, small(SPATIAL)))
    again = read_statistics(tmp_path / "both.npz")
    assert again.spatial is not None
    np.testing.assert_array_equal(again.pool.mean, np.arange(POOL))


def test_a_folder_is_seen_behind_links_and_without_hidden_files(tmp_path: Path):
    for place, images in (("far", pictures(2)), ("folder/near", pictures(1))):
        (tmp_path / place).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / place / f"{number}.png")
    folder = tmp_path / "folder"
    (folder / "far").symlink_to(tmp_path / "far")
    (folder / "near" / "._0.png").write_bytes(b"of macOS")
    (folder / "near" / os.fsdecode(b"not utf-8 \xff.PNG")).write_bytes((folder / "near/0.png").read_bytes())
    assert [len(batch) for batch in open_images(folder).batches(3)] == [3, 1]
    before = open_reference(folder).protocol
    (folder / "note.txt").write_text("no picture")
    assert open_reference(folder).protocol == before
    Image.fromarray(np.zeros((12, 10, 3), np.uint8)).save(tmp_path / "far" / "0.png")  # a smaller file
    assert open_reference(folder).protocol != before


def test_the_crop_is_a_square_of_the_middle():
    picture = np.zeros((40, 100, 3), np.uint8)
    picture[:, 30:70] = 200  # the middle square
    cropped = centre_crop(Image.fromarray(picture), 10)
    assert cropped.shape == (10, 10, 3)
    assert (cropped[:, 1:-1] == 200).all()
    assert centre_crop(Image.fromarray(picture), 64).shape == (64, 64, 3)


def test_bad_images_are_told(weights: InceptionWeights, tmp_path: Path):
    whole = tmp_path / "whole.npz"
    np.savez(whole, arr_0=pictures(6))
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:-400])
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "other.npz", arr_1=np.zeros(3))
    objects = np.array([{}, "a pickle"], object)
    np.savez(tmp_path / "objects.npz", arr_0=objects)
    for source, told in (
        (pictures(6)[..., :1], r"\[6, 12, 10, 1\]; images are"),
        (pictures(6) / 255, "float64; images are uint8"),
        (pictures(0), r"\[0, 12, 10, 3\]"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / "empty", "holds no pictures"),
        (tmp_path / "cut.npz", "no whole npz"),
        (tmp_path / "other.npz", "no whole npz"),
        (tmp_path / "objects.npz", "object; images are uint8"),
        (pictures(3), "holds 3 images: neighbours=3 needs more"),
    ):
        with pytest.raises(InputError, match=told):
            score_images(source, pictures(6), weights)
    with pytest.raises(InputError, match="part=0"):
        score_images(pictures(6), pictures(6), weights, part=0)

    folder = tmp_path / "folder"
    folder.mkdir()
    for name, image in (("a", pictures(1)[0]), ("b", pictures(1, 9, 9)[0])):
        Image.fromarray(image).save(folder / f"{name}.png")
    with pytest.raises(InputError, match=r"b\.png is 9 x 9 pixels and .*a\.png 10 x 12: give --crop=N"):
        list(open_images(folder).batches(2))
    assert next(open_images(folder, size=8).batches(2)).shape == (2, 8, 8, 3)
    (folder / "c.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"c\.png cannot be read"):
        list(open_images(folder, size=8).batches(2))


def test_bad_references_are_told(tmp_path: Path):
    file = tmp_path / "reference.npz"
    square = np.zeros((POOL, POOL), np.float32)
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "statistics of something else"),
        ({"mu": np.zeros(POOL)}, "holds mu; statistics are mu and sigma"),
        ({"mu": np.zeros(POOL), "sigma": square, "mu_s": np.zeros(SPATIAL)}, "one of mu_s and sigma_s"),
        ({"mu": np.full(POOL, np.nan), "sigma": square}, "have NaN"),
        ({"mu": np.array([{}], object), "sigma": square}, "no npz of statistics"),
    )
    for content, told in cases:
        np.savez(file, **content)
        with pytest.raises(InputError, match=told):
            open_reference(file)
    file.write_bytes(b"no archive")
    with pytest.raises(InputError, match="no npz"):
        open_reference(file)
    with pytest.raises(InputError, match=r"written as \.npz"):
        write_statistics(tmp_path / "reference.pkl", Statistics(small(POOL), None))
    with pytest.raises(InputError, match=r"reference\.npz is not a folder that you may write to"):
        check_file(file / "kept.npz")
    assert list(tmp_path.iterdir()) == [file]


def test_features_that_cannot_be_compared_are_told():
    for samples, reference, told in (
        (normal(5, 2), normal(5, 3), r"\[5, 2\] and \[5, 3\]"),
        (normal(5, 2), normal(3, 2), "3 images are too few"),
        (np.full((5, 2), np.inf), normal(5, 2), "infinities"),
    ):
        with pytest.raises(InputError, match=told):
            precision_recall(samples, reference)
    moments = Moments(3)
    moments.add(normal(1, 3))
    with pytest.raises(InputError, match="at least 2 images, found 1"):
        moments.gaussian()
    with pytest.raises(InputError, match="part is >= 1"):
        inception_score(normal(4, 3), part=0)
