"""How good are clips of moving digits? Scores frame by frame, each with a definition that anyone can repeat.

A digit is found where its ink is (`digit_tracks.locate`) and cut out by `digit_tracks.crop`, in real frames
and in generated ones alike. Of a clip whose first frames are given, only what follows is scored.

recognised: a classifier (scikit-learn's `SVC(gamma=0.001, C=10)`), fitted on the real training digits cut out
  the same way, reads the digit that was asked for. A frame without ink is not recognised.
direction, speed, on_path: of each step from one frame to the next, see `digit_tracks.score_steps`. The true
  path begins at the clip's start if that is known, else where `digit_tracks.fit_starts` finds it.
likeness: correlation of the 8 x 8 cut out with that of the clip's first frame. Frames without ink have 0.
identity: likeness, less the mean correlation with the first frames of all clips of the same class that show
  another digit; NaN if there are none. 0 = this digit as well as any of its class.
true_frame: correlation of the whole frame with the true one, where that is known; 0 for a frame of one grey.
frechet: Fréchet distance, at each place in the clips, from the cut-out digits to those of the real held-out
  digits in the first 24 principal components of the training digits / 16, divided by the same distance of
  the training digits. 1 = as near as the training digits are. It falls with the number of clips.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from pom_jax.data import moving_digits
from pom_jax.errors import InputError
from pom_jax.evaluation.digit_tracks import HIGHEST, crop, fit_starts, frames_of, locate, score_steps
from pom_jax.evaluation.frechet import frechet_distance

COMPONENTS = 24


class Reference(NamedTuple):
    """What the scores need of the real digits, fitted once.

    Attributes:
        split: whose digits the clips are compared with.
        classifier: fitted on the training digits.
        pca: likewise.
        unseen: [D, 24] components of the split's digits.
        floor: Fréchet distance from the training digits to them.
    """

    split: str
    classifier: SVC
    pca: PCA
    unseen: np.ndarray
    floor: float


class Asked(NamedTuple):
    """What N clips should show.

    Attributes:
        label: [N] class of the digit.
        direction: [N] index into DIRECTIONS, of the first step.
        start: [N, 2] row and column of its upper left pixel in the first frame, None where nobody gave it.
        digit: [N] number of the image that is shown; None where a new one is drawn.
        true: [N, T, S, S, 1] the true clips, None where there is more than one right clip.
    """

    label: np.ndarray
    direction: np.ndarray
    start: np.ndarray | None = None
    digit: np.ndarray | None = None
    true: np.ndarray | None = None


class ClipScores(NamedTuple):
    """Scores of N clips of T frames.

    Attributes:
        clips: name to [N, T]; NaN in the frames that are given, for steps and likeness also in the first.
        frechet: [T], NaN in the frames that are given.
    """

    clips: Mapping[str, np.ndarray]
    frechet: np.ndarray

    def by_frame(self) -> dict[str, np.ndarray]:
        """Means over the clips: every name to [T], NaN where there is nothing to score."""
        return {name: _mean(values, axis=0) for name, values in self.clips.items()} | {
            "frechet": self.frechet
        }

    def mean(self, name: str, frames: slice = slice(None)) -> tuple[float, float]:
        """The mean over clips and those frames, and its standard error over clips (NaN for `frechet`)."""
        if name == "frechet":
            return float(_mean(self.frechet[frames], axis=0)), float("nan")
        clips = _mean(self.clips[name][:, frames], axis=1)
        clips = clips[~np.isnan(clips)]
        if not len(clips):
            return float("nan"), float("nan")
        error = clips.std(ddof=1) / np.sqrt(len(clips)) if len(clips) > 1 else np.nan
        return float(clips.mean()), float(error)


def fit(split: str = "test") -> Reference:
    """Fits classifier and components on the real training digits.

    Args:
        split: "test", or "validation" to choose recipes.
    """
    images, labels = moving_digits.digit_images("train")
    own = moving_digits.split_digits("train")
    known, unseen = (
        cut_out(images[own]),
        cut_out(moving_digits.digit_images(split)[0][moving_digits.split_digits(split)]),
    )
    with threadpool_limits(1):  # as in `digits.fit`
        pca = PCA(COMPONENTS, random_state=0).fit(known / HIGHEST)
        components = pca.transform(unseen / HIGHEST)
        return Reference(
            split=split,
            classifier=SVC(gamma=0.001, C=10).fit(known, labels[own]),
            pca=pca,
            unseen=components,
            floor=frechet_distance(pca.transform(known / HIGHEST), components),
        )


def cut_out(images: np.ndarray) -> np.ndarray:
    """The digits [N, 64] as `crop` finds them: images [N, 8, 8] of 0 to 16."""
    frames = np.asarray(images, np.float64)
    return crop(frames, locate(frames)).reshape(len(images), -1)


def score(reference: Reference, clips: np.ndarray, asked: Asked, given: int = 0) -> ClipScores:
    """All scores of clips, as this module's docstring defines them.

    Args:
        reference: from `fit`.
        clips: [N, T, S, S, 1] in [-1, 1], or uint8 pixels up to 255. Where frames were given, these must be
            the true ones, so that a swapped frame is scored against what should have been given.
        asked: what they should show.
        given: how many frames of each are given, and not scored.

    Raises:
        InputError: shapes that do not go together.
    """
    _check(clips, asked, given)
    frames = frames_of(clips)
    count, length, size = frames.shape[:3]
    room = size - moving_digits.SIDE
    centroids = locate(frames)
    cut = crop(frames, centroids).reshape(count, length, -1).astype(np.float64)
    start = fit_starts(centroids, asked.direction, room) if asked.start is None else asked.start
    paths = moving_digits.path(start, asked.direction, length, room)
    recognised = _recognised(reference, cut, asked.label) & ~np.isnan(centroids[..., 0])
    likeness, identity = _identity(cut, asked)
    found = {"recognised": recognised.astype(float)}
    found |= {name: _after_first(right) for name, right in score_steps(centroids, paths).items()}
    found |= {"likeness": _after_first(likeness[:, 1:]), "identity": _after_first(identity[:, 1:])}
    if asked.true is not None:
        found["true_frame"] = (_unit(frames) * _unit(frames_of(asked.true))).sum(axis=-1)
    for values in found.values():
        values[:, :given] = np.nan
    frechet = [
        _frechet(reference, cut[:, place]) if place >= given and count > 1 else np.nan
        for place in range(length)
    ]
    return ClipScores(found, np.array(frechet))


def _recognised(reference: Reference, cut: np.ndarray, label: np.ndarray) -> np.ndarray:
    with threadpool_limits(1):
        read = reference.classifier.predict(cut.reshape(-1, cut.shape[-1])).reshape(cut.shape[:2])
    return read == label[:, None]


def _identity(cut: np.ndarray, asked: Asked) -> tuple[np.ndarray, np.ndarray]:
    """Likeness and identity [N, T] of the cut-out digits [N, T, 64]."""
    shown = _unit(cut)
    first = shown[:, 0]
    digit = np.arange(len(cut)) if asked.digit is None else asked.digit
    others = ((asked.label[:, None] == asked.label) & (digit[:, None] != digit)).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        typical = others @ first / others.sum(axis=1, keepdims=True)
    likeness = np.einsum("ntp,np->nt", shown, first)
    return likeness, likeness - np.einsum("ntp,np->nt", shown, typical)


def _unit(images: np.ndarray) -> np.ndarray:
    """Frames [N, T, ...] as vectors [N, T, P] whose products are correlations; 0 for one grey."""
    flat = images.reshape(*images.shape[:2], -1).astype(np.float64)
    flat -= flat.mean(axis=-1, keepdims=True)
    norm = np.linalg.norm(flat, axis=-1, keepdims=True)
    return np.divide(flat, norm, out=np.zeros_like(flat), where=norm > 1e-3)


def _frechet(reference: Reference, cut: np.ndarray) -> float:
    with threadpool_limits(1):
        return frechet_distance(reference.pca.transform(cut / HIGHEST), reference.unseen) / reference.floor


def _after_first(values: np.ndarray) -> np.ndarray:
    """[N, T - 1] -> [N, T], NaN in the first frame."""
    return np.concatenate([np.full((len(values), 1), np.nan), values.astype(float)], axis=1)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is not NaN; NaN where all is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=axis) / known.sum(axis=axis)


def _check(clips: np.ndarray, asked: Asked, given: int) -> None:
    shape = np.shape(clips)
    side = moving_digits.SIDE
    if len(shape) != 5 or not shape[0] or shape[2] != shape[3] or shape[2] <= side or shape[4] != 1:
        raise InputError(f"clips of moving digits are [N, T, S, S, 1] with S more than {side}, found {shape}")
    if not 0 <= given < shape[1]:
        raise InputError(f"given={given} frames of {shape[1]} leave nothing to score")
    for name, values in asked._asdict().items():
        wanted = {"start": (shape[0], 2), "true": shape}.get(name, shape[:1])
        if values is not None and np.shape(values) != wanted:
            raise InputError(f"{name} must be {wanted} for clips {shape}, found {np.shape(values)}")
