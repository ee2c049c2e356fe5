"""The scores of digits are what their definitions say, and tell good samples from bad ones."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.linalg

from configs.digits import get_config
from pom_jax import models
from pom_jax.errors import InputError
from pom_jax.evaluation import digits as digit_scores
from pom_jax.evaluation.baselines import BASELINES
from pom_jax.evaluation.evaluate import evaluate_files, evaluate_workdir, fit_real
from pom_jax.evaluation.frechet import frechet_distance
from pom_jax.evaluation.pairs import nearest_pairs, pairs_picture
from pom_jax.evaluation.report import DIGIT_METRICS, Column, Report
from pom_jax.training import checkpoint
from pom_jax.training.config import keep_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def real(digits_dir):
    return fit_real(digits_dir, print)


@pytest.fixture(scope="module")
def reference(real):
    return real.reference


@pytest.fixture(scope="module")
def baselines(real):
    """The scores of each baseline, made with seed 0."""
    return {column.name: column.seeds[0] for column in real.baselines if column.name in BASELINES}


@pytest.mark.smoke
def test_frechet_distance_is_the_formula():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6))
    second = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)) + 1
    means = first.mean(axis=0), second.mean(axis=0)
    covariances = np.cov(first.T), np.cov(second.T)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(first, first + 3) == pytest.approx(6 * 9, rel=1e-9)
    flat = first * np.array([1, 1, 1, 0, 0, 0])  # singular covariances
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-9)


def test_the_real_digits_have_the_known_floors(reference):
    assert reference.pca_floor == pytest.approx(0.0643, abs=0.0001)
    assert reference.mlp_floors[0] == pytest.approx(0.336, rel=0.1)  # varies with library versions
    assert len(reference.mlp_floors) == 5
    assert reference.ideals()["recognised"] == pytest.approx(0.989, abs=0.003)


# What each baseline scores, with the width of what versions and random draws may change.
KNOWN = {
    "replayed": {
        "recognised": (1.0, 1e-9),
        "frechet_pca": (1.0, 1e-9),
        "frechet_mlp": (1.0, 1e-9),
        "two_sample": (0.5, 0.06),
        "train_on_synthetic": (0.989, 0.003),
        "coverage": (1.0, 1e-9),
        "nearest_ratio": (0.0, 1e-5),
        "copies": (1.0, 1e-9),
    },
    "Gaussian": {
        "recognised": (0.990, 0.01),
        "frechet_pca": (2.19, 0.2),
        "frechet_mlp": (2.2, 0.5),
        "two_sample": (0.776, 0.05),
        "train_on_synthetic": (0.965, 0.02),
        "coverage": (0.994, 0.02),
        "nearest_ratio": (1.12, 0.03),
        "copies": (0.0, 0.004),
    },
    "class mean": {
        "recognised": (1.0, 1e-9),
        "frechet_pca": (22.3, 0.1),
        "frechet_mlp": (11.3, 1.0),
        "two_sample": (1.0, 0.005),
        "train_on_synthetic": (0.900, 0.01),
        "coverage": (0.567, 0.01),
        "nearest_ratio": (0.93, 0.01),
        "copies": (0.0, 1e-9),
    },
    "noise": {
        "recognised": (0.1, 0.03),
        "frechet_pca": (52, 2),
        "frechet_mlp": (165, 40),
        "two_sample": (1.0, 0.005),
        "train_on_synthetic": (0.1, 0.05),
        "coverage": (0.055, 0.02),
        "nearest_ratio": (3.4, 0.1),
        "copies": (0.0, 1e-9),
    },
}


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_score_what_they_are_known_to(baselines, name):
    scores = baselines[name]
    assert list(scores) == list(DIGIT_METRICS)
    for metric, (expected, width) in KNOWN[name].items():
        assert scores[metric] == pytest.approx(expected, abs=width), metric
    assert scores["worst_class"] <= scores["recognised"]


def test_unseen_digits_are_neither_copies_nor_far(reference):
    scores = digit_scores.score(reference, reference.test, reference.test_labels)
    assert scores["frechet_pca"] == pytest.approx(0, abs=1e-9)
    assert scores["nearest_ratio"] == 1
    assert scores["copies"] == pytest.approx(0.01, abs=0.003)
    assert scores["recognised"] == reference.ideals()["recognised"]


def test_scores_see_each_kind_of_fault(reference, baselines):
    x, y = reference.train, reference.train_labels
    good = baselines["replayed"]
    rng = np.random.default_rng(0)
    noisy = digit_scores.score(reference, x + rng.normal(0, 3, x.shape), y)
    for metric in ("frechet_pca", "frechet_mlp", "two_sample"):
        assert noisy[metric] > 1.2 * good[metric], metric
    assert noisy["copies"] < 0.01
    assert noisy["nearest_ratio"] > 1
    shuffled = digit_scores.score(reference, x, rng.permutation(y))
    assert shuffled["recognised"] < 0.2
    assert shuffled["train_on_synthetic"] < 0.5
    assert shuffled["frechet_pca"] == good["frechet_pca"]
    few = np.concatenate([np.flatnonzero(y == label)[:3] for label in range(10)])
    collapsed = digit_scores.score(reference, np.resize(x[few], x.shape), np.resize(y[few], y.shape))
    assert collapsed["recognised"] == 1
    assert collapsed["coverage"] < 0.5
    assert collapsed["frechet_pca"] > 2
    one_wrong = digit_scores.score(reference, x, np.where(y == 3, 4, np.where(y == 4, 3, y)))
    assert one_wrong["worst_class"] == 0


def test_samples_are_clipped_and_scores_repeat_exactly(reference, baselines):
    x, y = reference.train, reference.train_labels
    beyond = np.where(x == 0, -3.0, np.where(x == 16, 99.0, x)).reshape(-1, 8, 8, 1)
    assert digit_scores.score(reference, beyond, y) == baselines["replayed"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x[:300], y[:300]), "300 images are too few.*360"),
        (lambda x, y: (x[:, :60], y), r"\(1437, 60\)"),
        (lambda x, y: (x, y[:-1]), r"\(1436,\)"),
        (lambda x, y: (np.where(x == 16, np.nan, x), y), "images have NaN"),
        (lambda x, y: (x, np.where(y == 7, 1, y)), r"classes \[7\]"),
    ],
)
def test_samples_that_cannot_be_scored_are_refused(reference, change, words):
    with pytest.raises(InputError, match=words):
        digit_scores.score(reference, *change(reference.train, reference.train_labels))


def test_a_report_shows_means_spreads_baselines_and_protocol(baselines):
    first, second = baselines["replayed"], baselines["Gaussian"]
    ours = Column("guidance 1", [{**first, "frechet_pca": 1.0}, {**first, "frechet_pca": 2.0}])
    report = Report(
        "runs/x",
        [ours],
        [Column("ideal", [first]), Column("Gaussian", [second])],
        {"seeds": "0, 1"},
        np.zeros((2, 10, 8, 8, 1), np.uint8),
    )
    for shown in (report.text(), report.markdown()):
        assert "1.50 ± 0.71" in shown
        assert "100.0% ± 0.0" in shown
        assert f"{second['frechet_pca']:.2f}" in shown
        assert all(metric.title in shown for metric in DIGIT_METRICS.values())
        assert "protocol: seeds 0, 1" in shown
        assert "In short: 100.0 % recognised (real digits 100.0 %), Fréchet 1.50 (real 1.00" in shown
        assert shown.index("In short") < shown.index("Fréchet, PCA ↓") < shown.index("↓ lower is better")
    content = json.loads(report.json())
    assert content["samples"]["guidance 1"]["mean"]["frechet_pca"] == 1.5
    assert content["baselines"]["Gaussian"]["seeds"] == [second]


def test_eval_scores_a_file_of_samples(reference, digits_dir, tmp_path):
    stretched = np.round(reference.train * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    np.savez(tmp_path / "samples.npz", arr_0=stretched, arr_1=reference.train_labels)
    command = [sys.executable, "eval.py", f"--npz={tmp_path}/samples.npz", f"--data={digits_dir}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())["samples"]["samples"]["mean"]
    assert scores["frechet_pca"] == pytest.approx(1, abs=0.01)
    assert scores["copies"] == 1
    for words in ("Gaussian", "noise", "protocol: samples 1437", "data checksum", "scikit-learn"):
        assert words in done.stdout
        assert words in (tmp_path / "scores.md").read_text()
    assert (tmp_path / "nearest.png").stat().st_size > 1000


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, digits_dir):
    """What a run of train.py leaves, as far as scoring looks at it: a network that has learnt nothing."""
    folder = tmp_path_factory.mktemp("run")
    config = get_config()
    config.data.dir = str(digits_dir)
    config.model.update({"width": 16, "depth": 1})
    config.sampling.update({"sampler": "euler", "steps": 3})
    network = models.build(config.model)
    shapes = jax.eval_shape(lambda: models.init(network, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    keep_config(folder, config)
    checkpoints = checkpoint.Checkpoints(folder, keep_last=1, keep_best=0)
    checkpoints.save(7, {"params": params, "ema": [params]})
    checkpoints.close()
    return folder


def test_a_workdir_is_scored_with_its_own_settings_and_the_same_each_time(workdir):
    said = []
    report = evaluate_workdir(workdir, seeds=(0, 1), num=400, say=said.append)
    again = evaluate_workdir(workdir, guidances=(1.5,), seeds=(1,), num=400, say=said.append)
    assert report.samples[1].seeds[1] == again.samples[0].seeds[0]
    assert report.baselines == again.baselines
    assert [column.name for column in report.samples] == ["guidance 1", "guidance 1.5"]
    assert report.samples[0].seeds[0] != report.samples[0].seeds[1]
    assert report.samples[0].mean("frechet_pca") > report.baselines[-1].mean("frechet_pca") / 4  # noise
    for words in ("400 a seed", "euler, 3 steps", "EMA 0.999 of step 7", "seeds 0, 1", "data checksum"):
        assert words in report.protocol_line()
    assert "[4/4] sampling 400 digits: guidance 1.5, seed 1, euler, 3 steps" in said
    assert "In short, guidance 1: " in report.text()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"guidances": (-1.0,)}, "guidance must be"),
        ({"guidances": ()}, "at least one"),
        ({"seeds": ()}, "at least one"),
        ({"seeds": (1, 1)}, "no value twice"),
        ({"num": 300}, "num is 300.*360"),
        ({"sampler": "hoin"}, "hoin.*heun"),
        ({"steps": 0}, "steps must be"),
        ({"ema": 3}, "ema|average"),
        ({"step": 8}, "8.*7"),
        ({"data": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(workdir, settings, words):
    with pytest.raises(InputError, match=words):
        evaluate_workdir(workdir, **settings)


def test_files_that_hold_no_samples_are_refused(workdir, tmp_path):
    data = checkpoint.load_config(workdir).data.dir
    (tmp_path / "text.npz").write_text("PK nothing")
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "floats.npz", arr_0=np.zeros((400, 8, 8, 1)), arr_1=np.arange(400) % 10)
    for name in ("text", "empty", "other", "none"):
        with pytest.raises(InputError, match="is not an npz"):
            evaluate_files([tmp_path / f"{name}.npz"], data)
    with pytest.raises(InputError, match="float64, samples are stored as uint8"):
        evaluate_files([tmp_path / "floats.npz"], data)


def test_the_pairs_put_copies_above_their_originals(reference):
    pairs = nearest_pairs(reference, reference.train.reshape(-1, 8, 8, 1), reference.train_labels, rows=3)
    assert pairs.shape == (6, 10, 8, 8, 1)
    np.testing.assert_array_equal(pairs[::2], pairs[1::2])
    unseen = nearest_pairs(reference, reference.test.reshape(-1, 8, 8, 1), reference.test_labels)
    assert (unseen[::2] != unseen[1::2]).any(axis=(2, 3, 4)).all()


def test_the_picture_of_pairs_names_its_rows_and_keeps_pairs_apart():
    picture = np.asarray(pairs_picture(np.zeros((4, 10, 8, 8, 1), np.uint8)))
    first_image = np.flatnonzero((picture == 0).all(axis=1) | (picture[:, 100] == 0))
    tiles = np.split(first_image, np.flatnonzero(np.diff(first_image) > 1) + 1)
    gaps = [int(below[0] - above[-1]) for above, below in itertools.pairwise(tiles)]
    assert len(tiles) == 4
    assert gaps[0] == gaps[2] < gaps[1] / 3
    for rows in tiles:
        assert (picture[rows][:, :70] < 128).any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "one of --workdir"),
        (["--images=a.npz", "--workdir=b"], "--images goes without --workdir"),
        (["--images=a.npz", "--reference=b.npz"], "--inception=FILE"),
        (["--images=a", "--reference=b", "--inception=none.pth"], "none.pth"),
        (["--npz=none.npz", "--data=nowhere"], "nowhere does not exist"),
        (["--workdir=nowhere"], "nowhere"),
    ],
)
def test_eval_refuses_in_one_line(arguments, words, tmp_path):
    command = [sys.executable, str(ROOT / "eval.py"), *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
