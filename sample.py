"""Draws images with a trained model.

python sample.py --workdir=runs/digits --classes=0,1,2 --guidance=1.5
python sample.py --workdir=runs/digits --num=1000 --out=samples.npz
python sample.py --workdir=runs/digits --num=16 --out=samples.gif  the way from noise to images
python sample.py --workdir=runs/digits --per_class=12  a sheet with a row for each class
python sample.py --workdir=runs/digits --guidance=0,1,1.5,3  a sheet with a column for each scale
python sample.py --workdir=runs/dipom_xl2_512 --upscale_from=small.npz  larger images of smaller samples
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from absl import flags

from pom_jax.errors import InputError, run_command
from pom_jax.paths import expand_flags

Value = TypeVar("Value", int, float, str)

WORKDIR = flags.DEFINE_string("workdir", None, "Run of train.py to sample from.")
CLASSES = flags.DEFINE_list(
    "classes", None, "Class numbers or names, such as 0,1,2 or 0-9 or cat,dog; all by default."
)
NUM = flags.DEFINE_integer("num", None, "Images, shared among the classes; the run's own number by default.")
PER_CLASS = flags.DEFINE_integer("per_class", None, "A sheet with a row of so many images for each class.")
GUIDANCE = flags.DEFINE_list("guidance", None, "Guidance scale, 1 is off; the run's own by default.")
STEPS = flags.DEFINE_list("steps", None, "Sampler steps; the run's own by default.")
SAMPLER = flags.DEFINE_list(
    "sampler",
    None,
    "euler, heun, ddim, ddpm, dpm++2m or sde; the run's own by default. Several values of --guidance, "
    "--steps or --sampler make a sheet with a column for each.",
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise; image i is the same whatever --num is.")
OUT = flags.DEFINE_string(
    "out",
    None,
    ".png a labelled grid, .npz arrays, .gif or .webp an animation; WORKDIR/samples/... by default.",
)
EMA = flags.DEFINE_integer("ema", 0, "Which average of the parameters; -1 for none.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to sample from; the newest by default.")
AUTOENCODER = flags.DEFINE_string(
    "autoencoder", None, "Folder of the autoencoder (diffusers' format) that makes pixels of latents."
)
UPSCALE_FROM = flags.DEFINE_string(
    "upscale_from", None, "Smaller samples (.npz of sample.py) to enlarge, with noise, and start from."
)
UPSCALE_START = flags.DEFINE_float(
    "upscale_start",
    0.7,
    "Time they are noised to, before the shift: 1 is noise alone, nearer to 0 keeps more.",
)
BATCH = flags.DEFINE_integer("batch_size", 256, "Images drawn at once; lower it if memory runs out.")


def main(argv: Sequence[str]) -> None:
    """Samples what the flags describe."""
    from pom_jax.compilation import keep_programs  # here, so that --help is quick
    from pom_jax.sampling.command import sample_to_file

    if len(argv) > 1:
        raise InputError(f"arguments without a flag: {' '.join(argv[1:])}; see python sample.py --help")
    if WORKDIR.value is None:
        raise InputError("which model? Give --workdir=DIR, a run of train.py such as runs/digits")
    keep_programs()
    expand_flags("workdir", "out", "autoencoder", "upscale_from")
    sample_to_file(
        Path(WORKDIR.value),
        out=OUT.value,
        classes=CLASSES.value,
        num=NUM.value,
        step=STEP.value,
        ema=None if EMA.value < 0 else EMA.value,
        autoencoder=AUTOENCODER.value,
        per_class=PER_CLASS.value,
        guidance=values(GUIDANCE, float),
        steps=values(STEPS, int),
        sampler=values(SAMPLER, str),
        seed=SEED.value,
        upscale_from=UPSCALE_FROM.value,
        upscale_start=UPSCALE_START.value,
        batch_size=BATCH.value,
    )


def values(
    flag: "flags.FlagHolder[list[str] | None]", kind: Callable[[str], Value]
) -> Value | list[Value] | None:
    """What a list flag holds: None, one value, or several."""
    if flag.value is None:
        return None
    found = []
    for word in flag.value:
        try:
            found.append(kind(word.strip()))
        except ValueError as error:
            what = "whole number" if kind is int else "number"
            raise InputError(f"--{flag.name}={','.join(flag.value)}: {word!r} is no {what}") from error
    if not found:
        raise InputError(f"--{flag.name}= has no value; leave it out for the run's own")
    return found[0] if len(found) == 1 else found


if __name__ == "__main__":
    run_command(main)
