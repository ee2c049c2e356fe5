"""Scores a trained run, or files of samples, against real images and against simple baselines.

python eval.py --workdir=runs/digits
python eval.py --npz=seed0.npz,seed1.npz --data=data/digits
python eval.py --images=samples.npz --reference=real.npz --inception=FILE  (FID and the field's other scores)
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from absl import flags

from pom_jax.errors import InputError, run_command

Number = TypeVar("Number", int, float)

WORKDIR = flags.DEFINE_string(
    "workdir", None, "Run of train.py to sample from; scores go to its eval folder."
)
NPZ = flags.DEFINE_list("npz", None, "Score these files of samples instead, one a sampling seed.")
GUIDANCE = flags.DEFINE_list("guidance", ["1", "1.5"], "Guidance scales to score; 1 is off.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Sampling seeds; scores are means over them.")
SAMPLER = flags.DEFINE_string("sampler", None, "Sampler; the run's own by default.")
STEPS = flags.DEFINE_integer("steps", None, "Sampler steps; the run's own by default.")
NUM = flags.DEFINE_integer("num", None, "Samples a seed; as many as there are training images by default.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to score; the newest by default.")
EMA = flags.DEFINE_integer("ema", 0, "Which average of the parameters to score; -1 for none.")
DATA = flags.DEFINE_string("data", None, "Folder of the real images; the run's own by default.")
OUT = flags.DEFINE_string("out", None, "Folder for scores.json and scores.md; eval/ of the run by default.")
IMAGES = flags.DEFINE_string(
    "images", None, "FID, sFID, Inception Score, precision, recall of these: a folder of pictures or an .npz."
)
REFERENCE = flags.DEFINE_string(
    "reference", None, "Real images for --images, alike, or an .npz of ADM's suite."
)
INCEPTION = flags.DEFINE_string("inception", None, "Weights for --images: .safetensors, or .pth with torch.")
CROP = flags.DEFINE_integer(
    "crop", None, "Crop pictures of folders to squares of this many pixels, as ADM does."
)


def main(argv: Sequence[str]) -> None:
    """Scores what the flags describe."""
    from pom_jax.evaluation import evaluate  # here, so that --help is quick

    if len(argv) > 1:
        raise InputError(f"arguments without a flag: {' '.join(argv[1:])}; see python eval.py --help")
    workdir, files = WORKDIR.value, NPZ.value
    if IMAGES.value is not None:
        score_images(IMAGES.value)
        return
    if workdir is not None and files is None:
        report = evaluate.evaluate_workdir(
            workdir,
            guidances=numbers("guidance", GUIDANCE.value, float),
            seeds=numbers("seeds", SEEDS.value, int),
            sampler=SAMPLER.value,
            steps=STEPS.value,
            step=STEP.value,
            ema=None if EMA.value < 0 else EMA.value,
            num=NUM.value,
            data=DATA.value,
            say=say,
        )
        out = Path(OUT.value or Path(workdir) / "eval")
    elif files is not None and workdir is None:
        report = evaluate.evaluate_files(files, DATA.value or "data/digits", say=say)
        out = Path(OUT.value or Path(files[0]).parent)
    else:
        raise InputError(
            "give one of --workdir=DIR (a run of train.py), --npz=FILE (samples of digits) and --images=PATH"
        )
    print(f"\n{report.text()}\n")
    evaluate.save(report, out)
    print(
        f"written: {out}/scores.md, scores.json and nearest.png (samples above their nearest training images)"
    )


def score_images(images: str) -> None:
    """The field's scores of images that are there, as ADM's evaluation suite counts them."""
    from pom_jax.evaluation import image_scores
    from pom_jax.evaluation.inception_weights import load_inception
    from pom_jax.sampling import SamplingProgress

    reference, inception = REFERENCE.value, INCEPTION.value
    if WORKDIR.value is not None or NPZ.value is not None:
        raise InputError("--images goes without --workdir and --npz: score one thing at a time")
    if reference is None or inception is None:
        raise InputError(
            "--images needs --reference=PATH (real images, or an .npz of ADM's suite) and --inception=FILE "
            "(weights of inception-2015-12-05, such as pt_inception-2015-12-05-6726825d.pth)"
        )
    weights = load_inception(inception)
    with SamplingProgress() as progress:
        found = image_scores.score_images(
            images, reference, weights, size=CROP.value, say=say, progress=progress.drawn
        )
    print(f"\n{found.text()}\n")
    out = Path(OUT.value or Path(images).parent / "eval")
    found.save(out)
    print(f"written: {out}/image_scores.md and image_scores.json")


def numbers(flag: str, values: Sequence[str], kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [kind(value) for value in values]
    except ValueError as error:
        raise InputError(f"--{flag}={','.join(values)}: {error}") from error


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run_command(main)
