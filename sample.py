"""Draws images or films with a trained model.

python sample.py --workdir=runs/digits --classes=0,1,2 --guidance=1.5
python sample.py --workdir=runs/digits --num=1000 --out=samples.npz
python sample.py --workdir=runs/digits --num=16 --out=samples.gif  the way from noise to images
python sample.py --workdir=runs/digits --per_class=12  a sheet with a row for each class
python sample.py --workdir=runs/digits --guidance=0,1,1.5,3  a sheet with a column for each scale
python sample.py --workdir=runs/dipom_xl2_512 --upscale_from=small.npz  larger images of smaller samples

python sample.py --workdir=runs/moving_digits --prompt="a seven moving up" --frames=64
python sample.py --workdir=runs/moving_digits --prompt="a one moving left; a two moving left" --num=4
python sample.py --workdir=runs/moving_digits --prompt="a six moving down" --from=first.png --out=six.mp4
python sample.py --workdir=runs/moving_digits --prompt="a six moving up" --frames=100 --save_state=six.npz
python sample.py --workdir=runs/moving_digits --state=six.npz --frames=100  the hundred frames after those
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from absl import flags

from pom_jax.errors import InputError, run_command
from pom_jax.paths import expand_flags
from pom_jax.remote import folder, is_remote

Value = TypeVar("Value", int, float, str)

WORKDIR = flags.DEFINE_string("workdir", None, "Run of train.py to sample from; gs:// too, with --out.")
CLASSES = flags.DEFINE_list(
    "classes", None, "Class numbers or names, such as 0,1,2 or 0-9 or cat,dog; all by default."
)
NUM = flags.DEFINE_integer(
    "num",
    None,
    "Images, shared among the classes; the run's own number by default. Films of each prompt: one.",
)
PER_CLASS = flags.DEFINE_integer("per_class", None, "A sheet with a row of so many images for each class.")
GUIDANCE = flags.DEFINE_list(
    "guidance", None, "Guidance scale, 1 is off; of films that of first frames; the run's own by default."
)
LATER_GUIDANCE = flags.DEFINE_float(
    "later_guidance", None, "Film: guidance of frames behind finished ones; the run's own by default."
)
GUIDANCE_INTERVAL = flags.DEFINE_list(
    "guidance_interval",
    None,
    "LOW,HIGH: of time, 0 the data and 1 the noise, where guidance acts; the run's own by default.",
)
STEPS = flags.DEFINE_list(
    "steps", None, "Sampler steps; of films those of first frames; the run's own by default."
)
LATER_STEPS = flags.DEFINE_integer(
    "later_steps", None, "Film: sampler steps of frames behind finished ones; the run's own by default."
)
SAMPLER = flags.DEFINE_list(
    "sampler",
    None,
    "euler, heun, ddim, ddpm, dpm++2m or sde; the run's own by default. Several values of --guidance, "
    "--steps or --sampler make a sheet with a column for each.",
)
SEED = flags.DEFINE_integer(
    "seed", None, "Seed of the noise, 0 or that of --state; image i is the same whatever --num is."
)
OUT = flags.DEFINE_string(
    "out",
    None,
    ".png a labelled grid, .npz arrays, .gif or .webp an animation; of films .gif, .webp or .mp4, beside it "
    "their frames side by side in _strip.png, .png such a strip alone, or .npz. WORKDIR/samples/... by "
    "default, of films .gif, and .mp4 where PyAV is installed.",
)
EMA = flags.DEFINE_integer("ema", 0, "Which average of the parameters; -1 for none.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to sample from; the newest by default.")
AUTOENCODER = flags.DEFINE_string(
    "autoencoder", None, "Folder of the autoencoder (diffusers' format) that makes pixels of latents."
)
UPSCALE_FROM = flags.DEFINE_string(
    "upscale_from",
    None,
    "Smaller samples (.npz of sample.py; of a model of latents those drawn without "
    "--autoencoder) to enlarge, with noise, and start from.",
)
UPSCALE_START = flags.DEFINE_float(
    "upscale_start",
    0.7,
    "Time they are noised to, before the shift: 1 is noise alone, nearer to 0 keeps more.",
)
BATCH = flags.DEFINE_integer(
    "batch_size", None, "Images (256) or films (64) drawn at once; lower it if memory runs out."
)
PROMPT = flags.DEFINE_multi_string("prompt", [], "Film: what to show; several with ; between, or repeated.")
FRAMES = flags.DEFINE_integer(
    "frames",
    None,
    "Film: how many come out, those of --from included; with --state the new ones alone. Of a model of "
    "latents these are frames of latents, each of them 4 of pixels with CogVideoX's autoencoder. As many as "
    "the training clips by default. Ctrl-C writes those that are finished.",
)
STREAM = flags.DEFINE_bool(
    "stream",
    None,
    "Film: frame after frame from a state, or with --nostream not; by default where the model can.",
)
JOINT = flags.DEFINE_bool("joint", None, "Film: all frames at once, the same as --nostream.")
CHUNK = flags.DEFINE_integer("chunk", None, "Film: frames that are drawn at a time; the fewest by default.")
SIZE = flags.DEFINE_string("size", None, "Film: HEIGHTxWIDTH of a frame, of pixels or latents.")
FROM = flags.DEFINE_string(
    "from",
    None,
    "Film: its first frames, of the film's size: .png, .jpg, .gif, .webp, .mp4 or another clip, .npz "
    "(arr_0). Of a model of latents an .npz of latents or, with --autoencoder, pixels: one picture, or whole "
    "chunks.",
)
STATE = flags.DEFINE_string("state", None, "Film: goes on from a file of --save_state.")
SAVE_STATE = flags.DEFINE_string("save_state", None, "Film: .npz to keep the state after the last frame in.")
FPS = flags.DEFINE_integer("fps", 8, "Film: frames a second.")
TEXT_ENCODER = flags.DEFINE_string(
    "text_encoder", None, "Film: folder of the encoder that the captions were embedded with."
)

OF_IMAGES = (CLASSES, PER_CLASS, UPSCALE_FROM, UPSCALE_START)
OF_FILMS = (PROMPT, FRAMES, STREAM, JOINT, CHUNK, SIZE, FROM, STATE, SAVE_STATE, FPS, TEXT_ENCODER)
OF_FILMS += (LATER_GUIDANCE, LATER_STEPS)


def main(argv: Sequence[str]) -> None:
    """Samples what the flags describe."""
    from pom_jax.compilation import keep_programs  # here, so that --help is quick
    from pom_jax.models import Polymorpher, family
    from pom_jax.training.checkpoint import load_config

    if len(argv) > 1:
        raise InputError(f"arguments without a flag: {' '.join(argv[1:])}; see python sample.py --help")
    if WORKDIR.value is None:
        raise InputError("which model? Give --workdir=DIR, a run of train.py such as runs/digits")
    keep_programs()
    files = ("out", "autoencoder", "upscale_from", "text_encoder", "from", "state", "save_state")
    expand_flags(*files, runs=("workdir",))
    if is_remote(WORKDIR.value or "") and OUT.value is None:
        raise InputError(f"--workdir={WORKDIR.value} is only read: give --out=FILE for the samples")
    films = family(load_config(WORKDIR.value).model) is Polymorpher
    given = [flag.name for flag in (OF_IMAGES if films else OF_FILMS) if flag.present]
    if given:
        kinds = ("films, with --prompt", "images") if films else ("images, with --classes", "films")
        raise InputError(
            f"{WORKDIR.value} draws {kinds[0]}; --{', --'.join(given)} {'are' if given[1:] else 'is'} of "
            f"{kinds[1]}: see python sample.py --help"
        )
    (draw_films if films else draw_images)()


def draw_images() -> None:
    """With a model of images and classes."""
    from pom_jax.sampling.command import sample_to_file

    sample_to_file(
        folder(WORKDIR.value or ""),
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
        interval=interval(),
        seed=SEED.value or 0,
        upscale_from=UPSCALE_FROM.value,
        upscale_start=UPSCALE_START.value,
        batch_size=256 if BATCH.value is None else BATCH.value,
    )


def draw_films() -> None:
    """With a model of video and text."""
    from pom_jax.sampling.video_command import sample_video_to_file

    if STREAM.value is not None and STREAM.value == JOINT.value:
        said = "--stream and --joint" if STREAM.value else "--nostream and --nojoint"
        raise InputError(f"{said}: films are drawn frame after frame or all at once; give one of them")
    settings: dict[str, Any] = {
        "guidance": values(GUIDANCE, float),
        "later_guidance": LATER_GUIDANCE.value,
        "steps": values(STEPS, int),
        "later_steps": LATER_STEPS.value,
        "sampler": values(SAMPLER, str),
    }
    for name, value in settings.items():
        if isinstance(value, list):
            raise InputError(f"--{name} has several values: films are drawn with one")
    settings["interval"] = interval()
    sample_video_to_file(
        folder(WORKDIR.value or ""),
        out=OUT.value,
        prompts=PROMPT.value,
        num=NUM.value,
        frames=FRAMES.value,
        joint=JOINT.value if STREAM.value is None else not STREAM.value,
        chunk=CHUNK.value,
        size=SIZE.value,
        from_file=FROM.value,
        state=STATE.value,
        save_state=SAVE_STATE.value,
        fps=FPS.value,
        step=STEP.value,
        ema=None if EMA.value < 0 else EMA.value,
        autoencoder=AUTOENCODER.value,
        text_encoder=TEXT_ENCODER.value,
        seed=SEED.value,
        batch_size=64 if BATCH.value is None else BATCH.value,
        **settings,
    )


def interval() -> Sequence[float] | None:
    """Where guidance acts; None for the run's own."""
    found = values(GUIDANCE_INTERVAL, float)
    return [found] if isinstance(found, float) else found


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
