"""Checkpoints of the PoM authors, of DiT and of SiT: into a workdir, and back into a file.

python -m pom_jax.interop list FILE
python -m pom_jax.interop import FILE --out=WORKDIR --objective=flow --model=DiPoM-XL/2 --image_size=32
python -m pom_jax.interop export WORKDIR --out=FILE.safetensors

FILE is .safetensors, or .pt, .pth, .ckpt or .bin where torch is installed. `list` says what is in it and what
has to be given to import it. The workdir is one for sample.py, eval.py and train.py, at step 0.
"""

import signal
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from pom_jax.errors import InputError, run_command

OUT = flags.DEFINE_string("out", None, "import: the workdir to make; export: the .safetensors file to write.")
OBJECTIVE = flags.DEFINE_string(
    "objective",
    None,
    "import: what the model was trained for: flow or noise (HoMM's modes fm and eps), dit or sit.",
)
MODEL = flags.DEFINE_string(
    "model", None, "import: preset such as DiPoM-XL/2, which tells the degree and the heads."
)
WEIGHTS = flags.DEFINE_enum(
    "weights", None, ["ema", "online"], "import: which parameters; the average where the file has one."
)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "import: side of the latents, 32 for pictures of 256 pixels, where no table tells it."
)
DEGREE = flags.DEFINE_integer("degree", None, "import: degree of the polynomials, where no preset tells it.")
NUM_HEADS = flags.DEFINE_integer("num_heads", None, "import: heads of attention, where no preset tells them.")
DROP_VARIANCE = flags.DEFINE_bool(
    "drop_variance", False, "import: leave out the half of the output that predicts variances (learn_sigma)."
)
STEP = flags.DEFINE_integer("step", None, "export: which checkpoint; the newest by default.")
EMA = flags.DEFINE_integer("ema", 0, "export: which average of the parameters; -1 for none.")
COMMANDS = ("list", "import", "export")


def main(argv: Sequence[str]) -> None:
    """Runs one of `COMMANDS`."""
    if len(argv) != 3 or argv[1] not in COMMANDS:
        said = " ".join(argv[1:]) or "nothing"
        raise InputError(
            f"{said}: give {', '.join(COMMANDS[:-1])} or {COMMANDS[-1]}, and a file or a workdir"
        )
    if argv[1] == "list":
        _list(argv[2])
        return
    if OUT.value is None:
        raise InputError(
            f"{argv[1]} where to? Give --out=" + ("WORKDIR" if argv[1] == "import" else "FILE.safetensors")
        )
    (_import if argv[1] == "import" else _export)(argv[2], OUT.value)


def _list(file: str) -> None:
    from pom_jax.interop.files import read_tensors
    from pom_jax.interop.listing import listing

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    print("\n".join(listing(read_tensors(file))))


def _import(file: str, out: str) -> None:
    from pom_jax.interop.workdirs import import_workdir, overrides

    recipe = _recipe(MODEL.value, Path(file).stem)
    found, config = import_workdir(
        file,
        out,
        recipe,
        objective=OBJECTIVE.value,
        weights=WEIGHTS.value,
        preset=MODEL.value,
        image_size=IMAGE_SIZE.value,
        degree=DEGREE.value,
        num_heads=NUM_HEADS.value,
        drop_variance=DROP_VARIANCE.value,
    )
    m = found.model
    print(
        f"{out}: {found.layout} ({found.weights}), {m.depth} layers of width {m.width}, "
        f"{m.num_classes} classes, {m.image_size} x {m.image_size} x {m.channels}\n"
        f"next: python sample.py --workdir={out}"
    )
    if Path("configs", f"{config.name}.py").is_file():
        words = [f"--config=configs/{config.name}.py", *overrides(recipe, config), "--config.data.dir=DIR"]
        print(f"      python train.py {' '.join(words)} --workdir={out}")


def _recipe(preset: str | None, name: str) -> ConfigDict:
    """The recipe of ImageNet, of a preset where one is named."""
    try:
        from configs import common
    except ImportError as error:
        raise InputError("there is no folder configs here; call this where train.py is") from error
    if preset is not None:
        return common.imagenet(preset)
    config = common.base()
    config.name = "".join(letter if letter.isalnum() or letter in "._+-" else "_" for letter in name)
    return config


def _export(workdir: str, out: str) -> None:
    from pom_jax.interop.workdirs import export_workdir

    step = export_workdir(workdir, out, step=STEP.value, ema=None if EMA.value < 0 else EMA.value)
    print(f"{out}: the {'parameters' if EMA.value < 0 else 'average'} of step {step} of {workdir}")


if __name__ == "__main__":
    run_command(main)
