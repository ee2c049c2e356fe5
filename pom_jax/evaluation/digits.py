"""How good are generated digits? Scores against the real ones, each with a definition that anyone can repeat.

Images are [N, 8, 8, 1] or [N, 64] in 0 to 16; samples are clipped to that range, not rounded. All classifiers
are scikit-learn's `SVC(gamma=0.001, C=10)`. A model has seen the training images and not the 360 test images.

recognised: accuracy of the classifier fitted on the training images on the samples and the labels they were
  asked for; `worst_class` is that of the worst label.
frechet_pca: Fréchet distance from the samples to the test images in the first 24 principal components of the
  training images / 16, divided by the same distance from the training images to the test images. 1 = as near
  to the test images as the training images are.
frechet_mlp: the same in the second hidden layer (after its ReLU) of `MLPClassifier((64, 32), max_iter=60,
  alpha=0.001)` fitted on the training images / 16; the mean of the ratios with random_state 0 to 4.
two_sample: 360 rounded samples, drawn without replacement, against the test images: 5-fold cross-validated
  accuracy of the classifier at telling which is which. 0.5 = it cannot; the noise is about 0.02.
train_on_synthetic: accuracy on the test images of the classifier fitted on the samples and their labels.
coverage: the part of the test images that have a sample nearer than their 5th neighbour among the test images
  (principal components).
nearest_ratio: median distance of the samples to their nearest training image, divided by that of the test
  images (pixels). 1 = as far as unseen digits are.
copies: the part of the samples nearer to a training image than 99 % of the test images are. 0.01 = as unseen
  digits; a copied training set has 1.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from pom_jax.errors import InputError
from pom_jax.evaluation.frechet import frechet_distance

MLP_SEEDS = (0, 1, 2, 3, 4)
HIGHEST = 16.0  # brightest pixel


@dataclass(frozen=True)
class Reference:
    """Everything about the real digits that the scores need, fitted once.

    Attributes:
        train, test: [N, 64] images of 0 to 16.
        train_labels, test_labels: [N].
        classifier: fitted on the training images.
        pca, mlps: the two feature spaces.
        pca_floor, mlp_floors: Fréchet distances of training to test images there.
        test_distances: [360] of each test image to its nearest training image.
        test_radii: [360] of each test image to its 5th neighbour among the test images, in the PCA space.
    """

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    classifier: SVC
    pca: PCA
    mlps: tuple[MLPClassifier, ...]
    pca_floor: float
    mlp_floors: tuple[float, ...]
    test_distances: np.ndarray
    test_radii: np.ndarray

    def ideals(self) -> dict[str, float]:
        """What the scores of unseen real digits would be, where that can be known."""
        recognised = _recognised(self.classifier, self.test, self.test_labels)
        return {
            **recognised,
            "frechet_pca": 1.0,
            "frechet_mlp": 1.0,
            "two_sample": 0.5,
            "train_on_synthetic": recognised["recognised"],
            "coverage": 1.0,
            "nearest_ratio": 1.0,
            "copies": 0.01,
        }


def fit(train: Mapping[str, np.ndarray], test: Mapping[str, np.ndarray]) -> Reference:
    """Fits the classifiers and feature spaces on the real digits.

    Args:
        train, test: `mean` [N, 1, 8, 8, 1] of 0 to 16 and `label` [N], as the shards hold them.
    """
    x, y = flat(train["mean"]), np.asarray(train["label"])
    unseen = flat(test["mean"])
    # Threads make such small products many times slower, and their sums depend on the number of threads.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 60 iterations are the definition
        pca = PCA(24, random_state=0).fit(x / HIGHEST)
        mlps = tuple(
            MLPClassifier((64, 32), random_state=seed, max_iter=60, alpha=1e-3).fit(x / HIGHEST, y)
            for seed in MLP_SEEDS
        )
        components = pca.transform(unseen / HIGHEST)
        return Reference(
            train=x,
            train_labels=y,
            test=unseen,
            test_labels=np.asarray(test["label"]),
            classifier=SVC(gamma=0.001, C=10).fit(x, y),
            pca=pca,
            mlps=mlps,
            pca_floor=frechet_distance(pca.transform(x / HIGHEST), components),
            mlp_floors=tuple(frechet_distance(hidden(mlp, x), hidden(mlp, unseen)) for mlp in mlps),
            test_distances=distances(unseen, x).min(axis=1),
            test_radii=np.sort(distances(components, components), axis=1)[:, 5],
        )


def score(reference: Reference, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """All scores of one set of samples, as this module's docstring defines them.

    Args:
        images: [N, 8, 8, 1] or [N, 64], clipped to 0 to 16 here; N at least 360.
        labels: [N] the classes they were asked for; every class at least once.

    Raises:
        InputError: too few images, a class without images, other sizes, or values that are not finite.
    """
    x, labels = _checked(reference, images, labels)
    with threadpool_limits(1):
        components, unseen = (reference.pca.transform(part / HIGHEST) for part in (x, reference.test))
        ratios = [
            frechet_distance(hidden(mlp, x), hidden(mlp, reference.test)) / floor
            for mlp, floor in zip(reference.mlps, reference.mlp_floors, strict=True)
        ]
        on_synthetic = SVC(gamma=0.001, C=10).fit(x, labels)
        nearest = distances(x, reference.train).min(axis=1)
        covered = (distances(unseen, components) <= reference.test_radii[:, None]).any(axis=1)
        return {
            **_recognised(reference.classifier, x, labels),
            "frechet_pca": frechet_distance(components, unseen) / reference.pca_floor,
            "frechet_mlp": float(np.mean(ratios)),
            "two_sample": _two_sample(x, reference.test),
            "train_on_synthetic": float(on_synthetic.score(reference.test, reference.test_labels)),
            "coverage": float(covered.mean()),
            "nearest_ratio": float(np.median(nearest) / np.median(reference.test_distances)),
            "copies": float((nearest < np.quantile(reference.test_distances, 0.01)).mean()),
        }


def flat(images: np.ndarray) -> np.ndarray:
    """[N, ...] with 64 values an image -> [N, 64] float64."""
    return np.asarray(images, np.float64).reshape(len(images), 64)


def hidden(mlp: MLPClassifier, images: np.ndarray) -> np.ndarray:
    """The second hidden layer after its ReLU: images [N, 64] of 0 to 16 -> [N, 32]."""
    x = images / HIGHEST
    for kernel, bias in zip(mlp.coefs_[:2], mlp.intercepts_[:2], strict=True):
        x = np.maximum(x @ kernel + bias, 0)
    return x


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Euclidean distances: [N, F], [M, F] -> [N, M]."""
    square = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2 * first @ second.T
    return np.sqrt(np.maximum(square, 0))


def _recognised(classifier: SVC, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    right = classifier.predict(images) == labels
    worst = min(right[labels == label].mean() for label in np.unique(labels))
    return {"recognised": float(right.mean()), "worst_class": float(worst)}


def _two_sample(images: np.ndarray, unseen: np.ndarray) -> float:
    drawn = np.random.default_rng(0).choice(len(images), len(unseen), replace=False)
    both = np.concatenate([np.round(images[drawn]), unseen])
    real = np.repeat([0, 1], len(unseen))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return float(cross_val_score(SVC(gamma=0.001, C=10), both, real, cv=folds).mean())


def _checked(reference: Reference, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.shape[1:] not in ((8, 8, 1), (64,)) or labels.shape != images.shape[:1]:
        raise InputError(f"digits are [N, 8, 8, 1] with [N] labels, found {images.shape} and {labels.shape}")
    if len(images) < len(reference.test):
        raise InputError(f"{len(images)} images are too few: the scores need at least {len(reference.test)}")
    if not np.isfinite(images).all():
        raise InputError(
            f"{(~np.isfinite(flat(images))).any(axis=1).sum()} of {len(images)} images have NaN or infinities"
        )
    missing = sorted(set(reference.train_labels.tolist()) - set(labels.tolist()))
    if missing:
        raise InputError(f"no images of the classes {missing}; the scores need samples of every class")
    return np.clip(flat(images), 0, HIGHEST), labels
