"""Checkpoints of the PoM authors, of DiT and of SiT: into a workdir, and back into a file.

python -m pom_jax.interop list FILE
python -m pom_jax.interop import FILE --out=WORKDIR --objective=flow --model=DiPoM-XL/2 --image_size=32
python -m pom_jax.interop import FILE --out=WORKDIR --objective=flow --model=Polymorpher-B/2 --clip=20x16x30
python -m pom_jax.interop export WORKDIR --out=FILE.safetensors

FILE is .safetensors, or .pt, .pth, .ckpt or .bin where torch is installed. `list` says what is in it and what
has to be given to import it. The workdir is one for sample.py, eval.py and train.py, at step 0.
"""

import signal
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from pom_jax import models
from pom_jax.errors import InputError, run_command
from pom_jax.interop.image_models import Imported
from pom_jax.interop.model_layouts import FACEBOOK, VIDEO
from pom_jax.paths import local_path, run_path

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
CLIP = flags.DEFINE_string(
    "clip", None, "import: frames, height and width of the latents of a model for video, such as 20x16x30."
)
TEXT_LENGTH = flags.DEFINE_integer("text_length", None, "import: most tokens of a text, 64 by default.")
FRAME_CAUSAL = flags.DEFINE_bool("frame_causal", False, "import: a model for video with their block_causal.")
PATCH_SIZE = flags.DEFINE_integer(
    "patch_size", None, "import: side of a patch of video, where no preset tells it."
)
FRAME_PATCH = flags.DEFINE_integer(
    "frame_patch", None, "import: frames of a patch of video, where no preset tells it."
)
DEGREE = flags.DEFINE_integer("degree", None, "import: degree of the polynomials, where no preset tells it.")
NUM_HEADS = flags.DEFINE_integer("num_heads", None, "import: heads of attention, where no preset tells them.")
DROP_VARIANCE = flags.DEFINE_bool(
    "drop_variance", False, "import: leave out the half of the output that predicts variances (learn_sigma)."
)
UPSCALE = flags.DEFINE_bool(
    "upscale",
    None,
    "import: a model of HoMM's for images is of their branch `upscale` (positions sincos_phase, but for "
    "DiH++; time shift and guidance of the resolution), or with --noupscale not; by default it is where the "
    "latents are larger than 32.",
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
        _list(local_path("FILE", argv[2]))
        return
    if OUT.value is None:
        raise InputError(
            f"{argv[1]} where to? Give --out=" + ("WORKDIR" if argv[1] == "import" else "FILE.safetensors")
        )
    if argv[1] == "import":
        _import(local_path("FILE", argv[2]), run_path("--out", OUT.value))
    else:
        _export(run_path("WORKDIR", argv[2]), local_path("--out", OUT.value))


def _list(file: str) -> None:
    from pom_jax.interop.files import read_tensors
    from pom_jax.interop.listing import listing

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    print("\n".join(listing(read_tensors(file))))


def _import(file: str, out: str) -> None:
    from pom_jax.interop.workdirs import import_workdir, overrides

    clip = None if CLIP.value is None else _clip(CLIP.value)
    recipe = _recipe(MODEL.value, Path(file).stem, clip)
    frames, height, width = clip or (None, None, None)
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
        frames=frames,
        frame_height=height,
        frame_width=width,
        text_length=TEXT_LENGTH.value,
        frame_causal=FRAME_CAUSAL.value,
        patch_size=PATCH_SIZE.value,
        frame_patch=FRAME_PATCH.value,
        upscale=UPSCALE.value,
    )
    m = found.model
    of = f"texts of {m.text_width} channels" if clip else f"{m.num_classes} classes"
    print(
        f"{out}: {found.layout} ({found.weights}), {m.depth} layers of width {m.width}, "
        f"{of}, {' x '.join(map(str, models.sample_shape(m)))}\n"
        f"{_assumed(found, config)}next: python sample.py --workdir={out}" + (" --prompt=..." if clip else "")
    )
    if Path("configs", f"{config.name}.py").is_file():
        words = [f"--config=configs/{config.name}.py", *overrides(recipe, config), "--config.data.dir=DIR"]
        print(f"      python train.py {' '.join(words)} --workdir={out}")


def _assumed(found: Imported, config: ConfigDict) -> str:
    """A line about what no tensor of HoMM's models for images tells, where no flag told it."""
    if found.layout in (*FACEBOOK, VIDEO) or UPSCALE.value is not None:
        return ""
    whose, other = ("branch upscale", "--noupscale") if found.upscale else ("first code", "--upscale")
    values = f"model.positions={config.model.positions}, diffusion.shift={config.diffusion.shift:.4g}, "
    values += f"sampling.guidance={config.sampling.guidance:.4g}"
    return f"assumed for images of this size: their {whose} ({values}); {other} if it is of the other\n"


def _clip(text: str) -> tuple[int, ...]:
    sizes = text.split("x")
    if len(sizes) != 3 or not all(size.isdecimal() for size in sizes):
        raise InputError(f"--clip={text}: give frames, height and width of the latents, such as 20x16x30")
    return tuple(map(int, sizes))


def _recipe(preset: str | None, name: str, clip: tuple[int, ...] | None) -> ConfigDict:
    """The recipe of ImageNet or of video, of a preset where one is named."""
    try:
        from configs import common
    except ImportError as error:
        raise InputError("there is no folder configs here; call this where train.py is") from error
    if (preset in models.VIDEO_NAMES) != (clip is not None) and preset is not None:
        raise InputError(
            f"--model={preset} and --clip={CLIP.value}: a preset for video needs --clip, no other has it"
        )
    if preset is not None:
        return common.video(preset, None, *clip) if clip else common.imagenet(preset)
    config = common.video_base() if clip else common.base()
    config.name = "".join(letter if letter.isalnum() or letter in "._+-" else "_" for letter in name)
    return config


def _export(workdir: str, out: str) -> None:
    from pom_jax.interop.workdirs import export_workdir

    step = export_workdir(workdir, out, step=STEP.value, ema=None if EMA.value < 0 else EMA.value)
    print(f"{out}: the {'parameters' if EMA.value < 0 else 'average'} of step {step} of {workdir}")


if __name__ == "__main__":
    run_command(main)
