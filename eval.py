"""Scores a trained run, or files of samples, against real images and against simple baselines.

python eval.py --workdir=runs/digits
python eval.py --npz=seed0.npz,seed1.npz --data=data/digits

FID, sFID, Inception Score, precision and recall, as ADM's evaluation suite counts them:

python eval.py --workdir=RUN --reference=REF --inception=FILE [--autoencoder=DIR] [--num=50000]
    draws the samples first, in parts that outlive a kill; lists such as --guidance=1,1.5,2 --steps=20,50
    score every combination, with a table and a plot
python eval.py --images=samples.npz --reference=REF --inception=FILE
python eval.py --reference=DIR --inception=FILE --save_reference=real.npz
    keeps the statistics of real images, to serve as REF

REF is an .npz of ADM's suite, images (.npz with arr_0, a folder) or a data set of prepare.py.

Video, of digits that move:

python eval.py --workdir=runs/moving_digits[,OTHER,...] [--protocol=text,memory,length] [--split=validation]
    recognised, direction, speed, identity frame by frame, streamed and drawn at once, beside real clips
python eval.py --features=drawn.npz --real_features=real.npz
    the Fréchet distance in features of clips that a network of yours made: FVD, if it is I3D
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from absl import flags

from pom_jax.errors import InputError, run_command
from pom_jax.paths import expand_flags, run_path
from pom_jax.remote import is_remote

if TYPE_CHECKING:
    from pom_jax.evaluation.report import Report

Value = TypeVar("Value")

WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Run of train.py to sample from, gs:// too; scores go to its eval folder. Of video several, with commas.",
)
NPZ = flags.DEFINE_list("npz", None, "Score these files of digits instead, one a sampling seed.")
IMAGES = flags.DEFINE_string("images", None, "Score these images: a folder of pictures or an .npz.")
OUT = flags.DEFINE_string("out", None, "Folder for the scores; eval/ of the run by default.")
GUIDANCE = flags.DEFINE_list(
    "guidance",
    None,
    "Guidance scales; 1 is off. By default 1, for digits 1 and 1.5, for video the run's own.",
)
LATER_GUIDANCE = flags.DEFINE_float(
    "later_guidance",
    None,
    "Of video: of frames that are drawn behind finished ones; the run's own by default.",
)
GUIDANCE_INTERVAL = flags.DEFINE_list(
    "guidance_interval",
    None,
    "LOW,HIGH: of time, 0 the data and 1 the noise, where guidance acts; by default everywhere, for video "
    "the run's own.",
)
SAMPLER = flags.DEFINE_list("sampler", None, "Samplers; the run's own by default.")
STEPS = flags.DEFINE_list("steps", None, "Sampler steps; the run's own by default.")
LATER_STEPS = flags.DEFINE_integer(
    "later_steps",
    None,
    "Of video: of frames that are drawn behind finished ones; the run's own by default.",
)
EMA = flags.DEFINE_list("ema", ["0"], "Which averages of the parameters to score; -1 for none.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to score; the newest by default.")
NUM = flags.DEFINE_integer(
    "num",
    None,
    "Samples: 50,000 by default; of digits, a seed and 360 at least, as many as there are training images; "
    "of video 500.",
)

DATA = flags.DEFINE_string("data", None, "Folder of the real digits; the run's own by default.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Sampling seeds of digits; scores are means over them.")

REFERENCE = flags.DEFINE_string(
    "reference", None, "Real images: an .npz of ADM's suite or of --save_reference, images, or a data set."
)
INCEPTION = flags.DEFINE_string("inception", None, "Weights of Inception: .safetensors, or .pth with torch.")
AUTOENCODER = flags.DEFINE_string(
    "autoencoder", None, "Folder of the autoencoder (diffusers' format) that makes pixels of latents."
)
CROP = flags.DEFINE_integer(
    "crop", None, "Crop pictures of folders to squares of this many pixels, as ADM does."
)
SAVE_REFERENCE = flags.DEFINE_string(
    "save_reference", None, "Keep the reference's statistics and features in this .npz."
)

PROTOCOL = flags.DEFINE_list(
    "protocol", None, "Of video: text, memory and length; all that the run allows by default."
)
SPLIT = flags.DEFINE_enum(
    "split",
    "test",
    ["validation", "test"],
    "Of video: real clips to compare with; validation to choose recipes.",
)
FEATURES = flags.DEFINE_string("features", None, "Features [N, F] of drawn clips, .npy or .npz.")
REAL_FEATURES = flags.DEFINE_string("real_features", None, "Features of real clips by the same network.")

SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise; image i is the same whatever --num is.")
NPZ_OUT = flags.DEFINE_string("npz_out", None, "Also write all samples to this .npz, for ADM's suite.")
KEEP_SAMPLES = flags.DEFINE_bool(
    "keep_samples", True, "Keep the samples in eval/samples once they are scored."
)
PART = flags.DEFINE_integer(
    "part", 1024, "Samples of a file in eval/samples; a killed run redoes at most one file."
)
BATCH = flags.DEFINE_integer("batch_size", 256, "Images drawn at once; lower it if memory runs out.")
HOST = flags.DEFINE_integer(
    "host", None, "Of several machines that share the sampling and see the same folder, this one, from 0."
)
HOSTS = flags.DEFINE_integer("hosts", None, "How many there are; those of jax.distributed by default.")

FEW = 10_000  # samples, below which a FID says little by itself

# What goes together: anything else that is given was meant for another way to score.
_SAMPLING = {"workdir", "guidance", "guidance_interval", "sampler", "steps", "ema", "step", "num", "out"}
_REAL = {"reference", "inception", "autoencoder", "crop", "save_reference", "out"}
_BANK = {"seed", "npz_out", "keep_samples", "part", "batch_size", "host", "hosts"}
FITTING = {
    "--workdir without --reference (digits)": _SAMPLING | {"data", "seeds"},
    "--workdir with --reference": _SAMPLING | _REAL | _BANK,
    "--workdir of video": _SAMPLING
    | {"data", "seed", "batch_size", "protocol", "split", "later_guidance", "later_steps"},
    "--features": {"features", "real_features", "out"},
    "--images": _REAL - {"save_reference"} | {"images"},
    "--npz (digits)": {"npz", "data", "out"},
    "--save_reference without --workdir": _REAL - {"out"},
}


def main(argv: Sequence[str]) -> None:
    """Scores what the flags describe."""
    if len(argv) > 1:
        raise InputError(f"arguments without a flag: {' '.join(argv[1:])}; see python eval.py --help")
    from pom_jax.compilation import keep_programs  # here, so that --help is quick

    keep_programs()
    expand_flags("out", "data", "reference", "inception", "autoencoder", "images", runs=("workdir",))
    expand_flags("npz", "npz_out", "save_reference", "features", "real_features")
    if any(is_remote(part) for part in workdirs()) and OUT.value is None:
        raise InputError(f"--workdir={WORKDIR.value} is only read: give --out=FOLDER for the scores")
    if IMAGES.value is not None:
        check_flags("--images")
        score_images(IMAGES.value)
    elif NPZ.value is not None:
        check_flags("--npz (digits)")
        score_files(NPZ.value)
    elif FEATURES.value is not None:
        check_flags("--features")
        score_features(FEATURES.value)
    elif WORKDIR.value is not None and is_video(workdirs()[0]):
        check_flags("--workdir of video")
        score_video(workdirs())
    elif WORKDIR.value is not None and REFERENCE.value is None and INCEPTION.value is None:
        check_flags("--workdir without --reference (digits)")
        score_digits(WORKDIR.value)
    elif WORKDIR.value is not None:
        check_flags("--workdir with --reference")
        score_workdir(WORKDIR.value)
    elif SAVE_REFERENCE.value is not None:
        check_flags("--save_reference without --workdir")
        keep_reference(SAVE_REFERENCE.value)
    else:
        raise InputError(
            "give one of --workdir=DIR (a run of train.py), --npz=FILE (samples of digits), --images=PATH "
            "and --features=FILE (of clips)"
        )


def score_workdir(workdir: str) -> None:
    """The field's scores of samples drawn from a run."""
    from pom_jax import cluster
    from pom_jax.evaluation.workdir_scores import score_workdir

    if HOSTS.value is None and (found := cluster.join()) is not None:
        say(found)
    reference, inception = real_images()
    num = 50_000 if NUM.value is None else NUM.value
    warn_of_few(num)
    sweep = score_workdir(
        workdir,
        reference,
        inception,
        num=num,
        emas=averages(),
        samplers=SAMPLER.value,
        steps=None if STEPS.value is None else values("steps", STEPS.value, int),
        guidances=None if GUIDANCE.value is None else values("guidance", GUIDANCE.value, float),
        interval=interval(),
        step=STEP.value,
        seed=SEED.value,
        autoencoder=AUTOENCODER.value,
        size=CROP.value,
        out=OUT.value,
        npz_out=NPZ_OUT.value,
        reference_out=SAVE_REFERENCE.value,
        keep_samples=KEEP_SAMPLES.value,
        part=PART.value,
        batch_size=BATCH.value,
        host=HOST.value,
        hosts=HOSTS.value,
        say=say,
    )
    if sweep is None:
        return
    out = Path(OUT.value or Path(workdir) / "eval")
    if len(sweep.found) == 1:
        print(f"\n{sweep.found[0].text()}\n")
        sweep.found[0].save(out)
        print(f"written: {out}/image_scores.md and image_scores.json")
    else:
        print(f"\n{sweep.markdown()}")
        print(f"written: {out}/{', '.join(sweep.save(out))}")
    if KEEP_SAMPLES.value:
        print(f"samples: {out}/samples (kept; a folder for each way to sample, yours to delete)")


def score_images(images: str) -> None:
    """The field's scores of images that are there."""
    from pom_jax.evaluation import image_scores, reference
    from pom_jax.evaluation.images import open_images
    from pom_jax.evaluation.inception_weights import load_inception
    from pom_jax.sampling import SamplingProgress

    real, inception = real_images()
    out = scores_folder(Path(images).parent / "eval")
    weights = load_inception(inception)
    opened = reference.open_reference(real, CROP.value, AUTOENCODER.value)
    samples = open_images(images, CROP.value)
    warn_of_few(samples.count)
    with SamplingProgress() as progress:
        found = image_scores.score_images(samples, opened, weights, say=say, progress=progress)
    print(f"\n{found.text()}\n")
    found.save(out)
    print(f"written: {out}/image_scores.md and image_scores.json")


def keep_reference(file: str) -> None:
    """Statistics and features of real images, into a file."""
    from pom_jax.evaluation import reference
    from pom_jax.evaluation.inception_weights import load_inception
    from pom_jax.sampling import SamplingProgress

    real, inception = real_images()
    reference.check_file(file)
    weights = load_inception(inception)
    opened = reference.open_reference(real, CROP.value, AUTOENCODER.value)
    say(f"reference: {opened.protocol}")
    with SamplingProgress() as progress:
        fitted = reference.fit_reference(opened, weights, progress=progress)
    reference.save_reference(file, fitted, weights)
    print(f"written: {file} (statistics and features, to be given as --reference)")


def score_digits(workdir: str) -> None:
    """The digits' own scores of a run."""
    from pom_jax.evaluation import evaluate  # here, so that --help is quick

    out = scores_folder(Path(workdir) / "eval")
    report = evaluate.evaluate_workdir(
        workdir,
        guidances=values("guidance", GUIDANCE.value or ["1", "1.5"], float),
        interval=interval(),
        seeds=values("seeds", SEEDS.value, int),
        sampler=single("sampler", SAMPLER.value),
        steps=single("steps", None if STEPS.value is None else values("steps", STEPS.value, int)),
        step=STEP.value,
        ema=single("ema", averages()),
        num=NUM.value,
        data=DATA.value,
        say=say,
    )
    tell(report, out)


def score_video(runs: Sequence[str]) -> None:
    """The moving digits' own scores of runs, side by side."""
    from pom_jax.evaluation import evaluate_video, video_pictures

    out = scores_folder(Path(runs[0]) / "eval")
    report = evaluate_video.evaluate_workdirs(
        runs,
        PROTOCOL.value,
        split=SPLIT.value,
        num=evaluate_video.CLIPS if NUM.value is None else NUM.value,
        guidance=single(
            "guidance", None if GUIDANCE.value is None else values("guidance", GUIDANCE.value, float)
        ),
        later_guidance=LATER_GUIDANCE.value,
        interval=interval(),
        sampler=single("sampler", SAMPLER.value),
        steps=single("steps", None if STEPS.value is None else values("steps", STEPS.value, int)),
        later_steps=LATER_STEPS.value,
        step=STEP.value,
        ema=single("ema", averages()),
        seed=SEED.value,
        batch_size=BATCH.value,
        data=DATA.value,
        say=say,
    )
    print(f"\n{report.text()}\n")
    name = "_".join(["video", SPLIT.value, *(PROTOCOL.value or [])])
    print(f"written: {out}/{', '.join(video_pictures.save(report, out, name))}")


def score_features(drawn: str) -> None:
    """The Fréchet distance between features of clips in files."""
    from pom_jax.evaluation.video_features import read_features, report_features

    if REAL_FEATURES.value is None:
        raise InputError("--features=FILE (of drawn clips) goes with --real_features=FILE (of real ones)")
    out = scores_folder(Path(drawn).parent / "eval")
    print(report_features(read_features(drawn), read_features(REAL_FEATURES.value), out))
    print(f"written: {out}/feature_scores.json")


def score_files(files: Sequence[str]) -> None:
    """The same of samples in files."""
    from pom_jax.evaluation import evaluate

    report = evaluate.evaluate_files(files, DATA.value or "data/digits", say=say)
    tell(report, Path(OUT.value or Path(files[0]).parent))


def tell(report: "Report", out: Path) -> None:
    from pom_jax.evaluation import evaluate

    print(f"\n{report.text()}\n")
    evaluate.save(report, out)
    print(
        f"written: {out}/scores.md, scores.json and nearest.png (samples above their nearest training images)"
    )


def scores_folder(usual: Path) -> Path:
    """Where the scores go.

    Raises:
        InputError: nothing can be written there.
    """
    from pom_jax.sampling.writers import check_folder

    out = Path(OUT.value or usual)
    check_folder(out)
    return out


def check_flags(way: str) -> None:
    """Raises an InputError if a flag is given that this way to score does not read."""
    known = set().union(*FITTING.values())
    given = [f"--{name}" for name in sorted(known - FITTING[way]) if flags.FLAGS[name].present]
    if given:
        raise InputError(
            f"{way} goes without {', '.join(given)}; python eval.py --help tells what goes together"
        )


def real_images() -> tuple[str, str]:
    """The values of --reference and --inception; refuses a --crop of nothing that it could crop."""
    from pom_jax.evaluation.reference import check_size

    if REFERENCE.value is None or INCEPTION.value is None:
        raise InputError(
            "FID needs --reference=PATH (real images, or an .npz of ADM's suite) and --inception=FILE "
            "(weights of inception-2015-12-05, such as pt_inception-2015-12-05-6726825d.pth)"
        )
    check_size(CROP.value, REFERENCE.value, IMAGES.value)
    return REFERENCE.value, INCEPTION.value


def warn_of_few(samples: int) -> None:
    """Says with whose numbers a FID of so many samples compares."""
    if samples < FEW:
        say(
            f"note: FID is higher the fewer the samples; that of {samples:,} compares with FID of as many, "
            "not with the field's numbers of 50,000"
        )


def averages() -> list[int | None]:
    return [None if number < 0 else number for number in values("ema", EMA.value, int)]


def interval() -> list[float] | None:
    """Where guidance acts, if that was said."""
    words = GUIDANCE_INTERVAL.value
    return None if words is None else values("guidance_interval", words, float)


def values(flag: str, words: Sequence[str], kind: Callable[[str], Value]) -> list[Value]:
    try:
        return [kind(word) for word in words]
    except ValueError as error:
        raise InputError(f"--{flag}={','.join(words)}: {error}") from error


def workdirs() -> list[str]:
    """The folders of --workdir, of which video may have several."""
    given = WORKDIR.value or ""
    if Path(given).exists():
        return [given]
    parts = given.split(",")
    if given and not all(part.strip() for part in parts):
        raise InputError(f"--workdir={given}: a name is missing before or after a comma")
    return [run_path("--workdir", part) for part in parts]


def is_video(workdir: str) -> bool:
    from pom_jax.evaluation.evaluate_video import is_video

    return is_video(workdir)


def single(flag: str, given: Sequence[Value] | None) -> Value | None:
    """The one value of a flag that may be a list with --reference."""
    if given is not None and len(given) != 1:
        raise InputError(f"--{flag} takes one value here; several are for --reference")
    return None if given is None else given[0]


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run_command(main)
