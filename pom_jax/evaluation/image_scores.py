"""FID, sFID, Inception Score, precision and recall of images, with the protocol beside the numbers."""

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jax

from pom_jax.errors import InputError
from pom_jax.evaluation.features import BATCH, extract_features
from pom_jax.evaluation.frechet import gaussian_distance
from pom_jax.evaluation.images import Images, Source, open_images
from pom_jax.evaluation.inception_score import PART, SHUFFLE, inception_score
from pom_jax.evaluation.inception_weights import InceptionWeights
from pom_jax.evaluation.precision_recall import NEIGHBOURS, precision_recall
from pom_jax.evaluation.reference import (
    OpenReference,
    Reference,
    check_size,
    fit_reference,
    open_reference,
)
from pom_jax.evaluation.report import Metric
from pom_jax.sampling.progress import Progress

PACKAGES = ("jax", "flax", "numpy", "pillow")

IMAGE_METRICS = {
    "fid": Metric("FID", "{:.2f}", "↓", "Fréchet distance of Inception's pool features to the reference"),
    "sfid": Metric("sFID", "{:.2f}", "↓", "the same of 7 channels of a 17 x 17 map: where things are"),
    "inception_score": Metric("IS", "{:.2f}", "↑", "Inception Score: recognised, and of many classes"),
    "precision": Metric("precision", "{:.3f}", "↑", "samples that lie among the reference images"),
    "recall": Metric("recall", "{:.3f}", "↑", "reference images that lie among the samples"),
}


@dataclass(frozen=True)
class ImageScores:
    """Scores of one set of images.

    Attributes:
        scores: by the names of `IMAGE_METRICS`; those that the reference cannot give are left out.
        protocol: everything needed to repeat them, in the order to print it.
    """

    scores: Mapping[str, float]
    protocol: Mapping[str, str]

    def protocol_line(self) -> str:
        return "protocol: " + "; ".join(f"{name} {value}" for name, value in self.protocol.items())

    def json(self) -> str:
        return json.dumps({"protocol": dict(self.protocol), "scores": dict(self.scores)}, indent=2) + "\n"

    def write(self, file: Path) -> None:
        """Writes these scores alone, whole or not at all, for `read`.

        Raises:
            InputError: nothing can be written there.
        """
        unfinished = file.with_name(f".{file.name}.unfinished")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(self.json())
            unfinished.replace(file)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise InputError(
                f"the scores cannot be written to {file}: {error}; make room: the same command goes on from "
                "what is drawn"
            ) from error

    @classmethod
    def read(cls, file: Path) -> "ImageScores":
        """Scores that `write` wrote.

        Raises:
            InputError: the file is damaged.
        """
        try:
            content = json.loads(file.read_text())
            scores = {
                name: float(content["scores"][name]) for name in IMAGE_METRICS if name in content["scores"]
            }
            return cls({"fid": scores.pop("fid"), **scores}, dict(content["protocol"]))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{file} is damaged: {error}; delete it to score again") from error

    def text(self) -> str:
        """For a terminal: a line a score, and the protocol."""
        lines = []
        for name, metric in IMAGE_METRICS.items():
            shown = metric.format.format(self.scores[name]) if name in self.scores else "-"
            lines.append(f"{metric.title + ' ' + metric.better:<12}{shown:>10}  {metric.meaning}")
        return "\n".join([*lines, "", self.protocol_line()])

    def save(self, out: str | os.PathLike[str]) -> None:
        """Writes image_scores.json and image_scores.md to the folder `out`.

        Raises:
            InputError: nothing can be written there.
        """
        out = Path(out)
        rows = [f"| {m.title} {m.better} | {m.format} |" for m in IMAGE_METRICS.values()]
        shown = [
            row.format(self.scores[name])
            for name, row in zip(IMAGE_METRICS, rows, strict=True)
            if name in self.scores
        ]
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / "image_scores.json").write_text(self.json())
            (out / "image_scores.md").write_text(
                "\n".join(["| | |", "|---|---|", *shown, "", self.protocol_line(), ""])
            )
        except OSError as error:
            raise InputError(f"the scores cannot be written to {out}: {error}") from error


def score_images(
    images: Source | Images,
    reference: Source | OpenReference | Reference,
    weights: InceptionWeights,
    *,
    size: int | None = None,
    part: int = PART,
    neighbours: int = NEIGHBOURS,
    batch_size: int = BATCH,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    about: Mapping[str, str] | None = None,
) -> ImageScores:
    """Scores samples against real images, as ADM's evaluation suite does.

    Args:
        images: uint8 [N, H, W, 3], an .npz with them in `arr_0`, a folder of pictures, or from `open_images`.
            The field's numbers are of N = 50,000; FID of fewer is higher.
        reference: ADM's .npz, images in the same forms, a data set of pixels, or from `open_reference`; from
            `fit_reference` where it serves several times.
        weights: from `load_inception`.
        size: crops the pictures of folders, see `open_images`.
        part: images a part of the Inception Score.
        neighbours: of precision and recall.
        batch_size, progress: as in `extract_features`.
        say: told what happens.
        about: how the samples were made, for the protocol.

    Raises:
        InputError: too few images, or files that hold something else; before anything is compiled, but for a
            picture of a folder that cannot be read or has another size.
    """
    say = say or (lambda line: None)
    if not isinstance(images, Images) and not isinstance(reference, (OpenReference, Reference)):
        check_size(size, images, reference)
    samples = images if isinstance(images, Images) else open_images(images, size)
    opened = None if isinstance(reference, Reference) else _opened(reference, size, weights)
    real = opened.images if opened is not None else None
    for found in (samples, real):
        if found is not None and found.count <= max(neighbours, 1):
            raise InputError(
                f"{found.name} holds {found.count} image{'s' if found.count > 1 else ''}: "
                f"neighbours={neighbours} needs more than that many"
            )
    if part < 1 or neighbours < 1 or batch_size < 1:
        raise InputError(
            f"part={part}, neighbours={neighbours}, batch_size={batch_size}: all must be at least 1"
        )
    if opened is not None:
        say(f"reference: {opened.protocol}")
        reference = fit_reference(opened, weights, batch_size=batch_size, progress=progress)
    assert isinstance(reference, Reference)
    say(f"samples: {samples.count:,} images of {samples.name}")
    found = extract_features(samples, weights, batch_size=batch_size, progress=progress)
    say("comparing")
    own, theirs = found.statistics, reference.statistics
    scores = {"fid": gaussian_distance(theirs.pool, own.pool)}
    if theirs.spatial is not None and own.spatial is not None:
        scores["sfid"] = gaussian_distance(theirs.spatial, own.spatial)
    scores["inception_score"] = inception_score(found.logits, part, seed=_shuffle(samples))
    if reference.pool is not None:
        scores |= precision_recall(found.pool, reference.pool, neighbours)._asdict()
    return ImageScores(scores, _protocol(samples, reference, weights, part, neighbours, about or {}))


def _opened(reference: Source | OpenReference, size: int | None, weights: InceptionWeights) -> OpenReference:
    opened = reference if isinstance(reference, OpenReference) else open_reference(reference, size)
    opened.check(weights)
    return opened


def _shuffle(samples: Images) -> int | None:
    """With which seed samples are shuffled for the parts of the Inception Score; None: they stay in order."""
    return SHUFFLE if samples.by_path else None


def _protocol(
    samples: Images,
    reference: Reference,
    weights: InceptionWeights,
    part: int,
    neighbours: int,
    about: Mapping[str, str],
) -> dict[str, str]:
    count, height, width, _ = samples.shape
    seed = _shuffle(samples)
    order = "in order" if seed is None else f"in an order shuffled with seed {seed}"
    return {
        "samples": f"{count:,} of {width} x {height} from {samples.name}",
        **about,
        "reference": reference.protocol,
        "Inception": f"{weights.name}, sha256 {weights.sha256}, float32, TF1 bilinear to 299 x 299",
        "Inception Score": f"mean over parts of {part:,} {order}",
        "precision and recall": f"k = {neighbours}",
        "versions": f"Python {platform.python_version()}, "
        + ", ".join(f"{package} {version(package)}" for package in PACKAGES),
        "device": f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}",
    }
