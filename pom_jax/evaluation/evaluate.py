"""Scores of a workdir or of files of samples: what eval.py calls."""

import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from pom_jax import sampling
from pom_jax.data import Manifest, Records, digits
from pom_jax.diffusion.guidance import check_guidance, choose_interval, interval_in_words
from pom_jax.errors import BROKEN_NPZ, InputError
from pom_jax.evaluation import digits as digit_scores
from pom_jax.evaluation.baselines import BASELINES, RANDOM
from pom_jax.evaluation.pairs import nearest_pairs, pairs_picture
from pom_jax.evaluation.report import Column, Report

SEEDS = (0, 1, 2)
PACKAGES = ("jax", "flax", "numpy", "scikit-learn")


def evaluate_workdir(
    workdir: str | Path,
    *,
    guidances: Sequence[float] = (1.0, 1.5),
    interval: Sequence[float] | None = None,
    seeds: Sequence[int] = SEEDS,
    sampler: str | None = None,
    steps: int | None = None,
    step: int | None = None,
    ema: int | None = 0,
    num: int | None = None,
    data: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Report:
    """Samples from a trained model and scores the samples.

    Args:
        workdir: of train.py.
        guidances: scales in the usual sense, 1 = off; one column each.
        interval: of the guidance, see `diffusion.guide`; everywhere by default.
        seeds: of the sampling; scores are means over them.
        sampler, steps: as the config says by default.
        step, ema: which checkpoint and which of its averages (None: the parameters themselves).
        num: samples a seed; by default as many as there are training images, with the same labels, which is
            what the Fréchet ratios are defined for.
        data: folder of the real images; the one of the run by default.
        say: told what happens.

    Raises:
        InputError: no run, no data, data without scores, or a setting that cannot be used.
    """
    if not seeds or not guidances or len({*seeds}) < len(seeds) or len({*guidances}) < len(guidances):
        raise InputError(
            f"guidances {list(guidances)} and seeds {list(seeds)}: at least one of each is needed, and no "
            "value twice"
        )
    for guidance in guidances:
        check_guidance(guidance)
    where = choose_interval(interval)
    if num is not None and num < digits.TEST_IMAGES:
        raise InputError(f"num is {num}; the scores need at least {digits.TEST_IMAGES} samples")
    generator = sampling.load(workdir, step=step, ema=ema)
    real = fit_real(data or generator.config.data.dir, say)
    manifest, reference = real.manifest, real.reference
    labels = reference.train_labels if num is None else np.resize(reference.train_labels, num)
    sampler = generator.config.sampling.sampler if sampler is None else sampler
    steps = generator.config.sampling.steps if steps is None else steps
    drawn, columns = {}, []
    for guidance in guidances:
        scores = []
        for seed in seeds:
            place = f"[{len(drawn) + 1}/{len(guidances) * len(seeds)}]"
            say(
                f"{place} sampling {len(labels):,} digits: guidance {guidance:g}, seed {seed}, {sampler}, "
                f"{steps} steps"
            )
            settings = {"guidance": guidance, "interval": where, "sampler": sampler, "steps": steps}
            with sampling.SamplingProgress() as progress:
                x = generator.sample_array(labels, seed=seed, progress=progress, **settings)
            drawn[guidance, seed] = (x - manifest.shift) / manifest.scale
            scores.append(digit_scores.score(reference, drawn[guidance, seed], labels))
        columns.append(Column(f"guidance {guidance:g}{interval_in_words(where, guidance)}", scores))
    protocol = {
        "samples": f"{len(labels)} a seed" + (" with the training labels" if num is None else ""),
        "seeds": ", ".join(map(str, seeds)),
        "sampler": f"{sampler}, {steps} steps",
        "parameters": generator.origin,
    }
    pairs = nearest_pairs(reference, drawn[guidances[0], seeds[0]], labels)
    return _report(str(workdir), columns, pairs, real, protocol)


def evaluate_files(
    files: Sequence[str | Path],
    data: str | Path,
    *,
    say: Callable[[str], None] = print,
) -> Report:
    """Scores samples in files.

    Args:
        files: npz with `arr_0` uint8 [N, 8, 8, 1] of 0 to 255 and `arr_1` labels [N]; one file a seed.
        data: folder of the real images.
        say: told what happens.

    Raises:
        InputError: a file that is missing or holds something else, or no data.
    """
    real = fit_real(data, say)
    if not files:
        raise InputError("no file was given")
    scores, loaded = [], []
    for place, file in enumerate(files, 1):
        say(f"[{place}/{len(files)}] scoring {file}")
        try:
            with np.load(file, allow_pickle=False) as content:
                images, labels = content["arr_0"], content["arr_1"]
        except BROKEN_NPZ as error:
            raise InputError(
                f"{file} is not an npz with arr_0 (images) and arr_1 (labels): {error}"
            ) from error
        if images.dtype != np.uint8:
            raise InputError(f"{file}: arr_0 is {images.dtype}, samples are stored as uint8 of 0 to 255")
        images = images / 255 * digit_scores.HIGHEST
        scores.append(digit_scores.score(real.reference, images, labels))
        loaded.append((images, labels))
    subject = ", ".join(map(str, files))
    protocol = {"samples": ", ".join(str(len(images)) for images, _ in loaded) + ", rounded to 8 bits"}
    pairs = nearest_pairs(real.reference, *loaded[0])
    return _report(subject, [Column("samples", scores)], pairs, real, protocol)


def save(report: Report, out: str | Path) -> None:
    """Writes scores.json, scores.md and nearest.png to the folder `out`.

    Raises:
        InputError: nothing can be written there.
    """
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "scores.json").write_text(report.json())
        (out / "scores.md").write_text(report.markdown())
        pairs_picture(report.pairs).save(out / "nearest.png")
    except OSError as error:
        raise InputError(f"the scores cannot be written to {out}: {error}") from error


class Real(NamedTuple):
    """A data folder of real digits with everything fitted on them."""

    manifest: Manifest
    reference: digit_scores.Reference
    baselines: list[Column]


_FITTED: dict[str, Real] = {}  # by checksum of the data: the fits and baselines take seconds


def fit_real(data: str | Path, say: Callable[[str], None]) -> Real:
    """Reads the real digits of a data folder and fits all that the scores need, once a process.

    Raises:
        InputError: no data there, or a data set that these scores are not made for.
    """
    train, test = Records(data, "train"), Records(data, "test")
    manifest = train.manifest
    if manifest.name != digits.NAME:
        raise InputError(
            f"{data} holds {manifest.name}, and these scores are of {digits.NAME}; FID and the field's other "
            "scores need real images, --reference=PATH, and Inception's weights, --inception=FILE"
        )
    if manifest.digest not in _FITTED:
        say(f"fitting classifiers and feature spaces on the {len(train):,} real training digits of {data}")
        images, unseen = (split.gather(np.arange(len(split))) for split in (train, test))
        reference = digit_scores.fit(images, unseen)
        say("scoring the baselines: training images replayed, Gaussian per class, class means, noise")
        _FITTED[manifest.digest] = Real(manifest, reference, score_baselines(reference))
    return _FITTED[manifest.digest]


def score_baselines(reference: digit_scores.Reference, seeds: Sequence[int] = SEEDS) -> list[Column]:
    """The columns that every report shows beside the samples."""
    columns = [Column("ideal", [reference.ideals()])]
    for name, make in BASELINES.items():
        made = [
            make(reference.train, reference.train_labels, np.random.default_rng(seed))
            for seed in (seeds if name in RANDOM else seeds[:1])
        ]
        columns.append(Column(name, [digit_scores.score(reference, x, reference.train_labels) for x in made]))
    return columns


def _report(
    subject: str,
    columns: Sequence[Column],
    pairs: np.ndarray,
    real: Real,
    protocol: dict[str, str],
) -> Report:
    manifest, reference, baselines = real
    floors = ", ".join(f"{floor:.4f}" for floor in reference.mlp_floors)
    protocol |= {
        "real digits": f"{len(reference.train)} training, {len(reference.test)} unseen, "
        f"data checksum {manifest.digest}",
        "Fréchet distance of training to unseen digits": f"{reference.pca_floor:.4f} (PCA), {floors} (MLP)",
        "versions": f"Python {platform.python_version()}, "
        + ", ".join(f"{package} {version(package)}" for package in PACKAGES),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    return Report(subject, columns, baselines, protocol, pairs)
