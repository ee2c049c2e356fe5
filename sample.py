"""Draws images with a trained model.

python sample.py --workdir=runs/digits --classes=0,1,2 --guidance=1.5
python sample.py --workdir=runs/digits --num=1000 --out=samples.npz
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from pom_jax.errors import InputError, run_command

WORKDIR = flags.DEFINE_string("workdir", None, "Run of train.py to sample from.")
CLASSES = flags.DEFINE_list(
    "classes", None, "Class numbers or names, such as 0,1,2 or 0-9 or cat,dog; all by default."
)
NUM = flags.DEFINE_integer("num", None, "Images, shared among the classes; the run's own number by default.")
GUIDANCE = flags.DEFINE_float("guidance", None, "Guidance scale, 1 is off; the run's own by default.")
STEPS = flags.DEFINE_integer("steps", None, "Sampler steps; the run's own by default.")
SAMPLER = flags.DEFINE_string(
    "sampler", None, "euler, heun, ddim, ddpm, dpm++2m or sde; the run's own by default."
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
BATCH = flags.DEFINE_integer("batch_size", 256, "Images drawn at once; lower it if memory runs out.")


def main(argv: Sequence[str]) -> None:
    """Samples what the flags describe."""
    from pom_jax.sampling.command import sample_to_file  # here, so that --help is quick

    if len(argv) > 1:
        raise InputError(f"arguments without a flag: {' '.join(argv[1:])}; see python sample.py --help")
    if WORKDIR.value is None:
        raise InputError("which model? Give --workdir=DIR, a run of train.py such as runs/digits")
    sample_to_file(
        Path(WORKDIR.value),
        out=OUT.value,
        classes=CLASSES.value,
        num=NUM.value,
        step=STEP.value,
        ema=None if EMA.value < 0 else EMA.value,
        autoencoder=AUTOENCODER.value,
        guidance=GUIDANCE.value,
        steps=STEPS.value,
        sampler=SAMPLER.value,
        seed=SEED.value,
        batch_size=BATCH.value,
    )


if __name__ == "__main__":
    run_command(main)
