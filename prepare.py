"""Makes the data sets that train.py reads: a folder of shards with a manifest, checked as it is written."""

import argparse
import importlib
import math
import operator
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pom_jax.compilation import keep_programs
from pom_jax.data import Manifest, commands, digits, moving_digits
from pom_jax.data.manifest import growing
from pom_jax.errors import REFUSALS, InputError, explain
from pom_jax.paths import argument_path

if TYPE_CHECKING:
    from pom_jax.data.making import Job

LETTERS = 24  # of a title above a picture
SMALL_RECIPE = "dipom_s2"  # for data of other sizes than a recipe's own


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python prepare.py", description=__doc__)
    add_commands(parser)
    arguments = parser.parse_args(argv)
    arguments.command_line = command_line(argv)
    name = arguments.command
    if name == moving_digits.NAME:
        name = moving_digits.set_name(arguments.captions)
        arguments.recipe += ":memory" * (arguments.captions == "direction")
    arguments.out = arguments.out or Path("data") / name
    keep_programs()
    print(f"preparing {arguments.command} in {arguments.out}", flush=True)
    start = time.perf_counter()
    try:
        manifest = arguments.prepare(arguments)
        if manifest is not None and getattr(arguments, "check", None) is not None:
            write_check(arguments.job, arguments.out, arguments.check)
    except InputError as error:
        return explain(error)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        return explain(error)
    except KeyboardInterrupt:
        kept = "; the same command goes on after the last whole shard"
        print(f"stopped{kept * growing(arguments.out).is_dir()}", file=sys.stderr, flush=True)
        os._exit(130)  # the usual way out waits for all threads
    if manifest is None:
        print(
            "this host's shards are done; the last host to finish writes the manifest "
            "(if none did, give this command again)"
        )
        return 0
    print(describe(manifest))
    remarks = {
        "unreadable": f", listed in {arguments.out}/unreadable.txt",
        "below_min_size": "",
        "clipped_numbers": "",
        "cut_captions": f", longer than --tokens={manifest.made_by.get('tokens')}",
    }
    for what, remark in remarks.items():
        if (count := manifest.made_by.get(what, "0")) != "0":
            print(f"  {what}: {count}{remark}")
    print(f"done in {time.perf_counter() - start:.1f} s: {arguments.out}/manifest.json says what is in it")
    print(f"next: {training_command(arguments.recipe, manifest, arguments.out)}")
    return 0


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Adds all data sets to the command line."""
    sets = parser.add_subparsers(dest="command", required=True, title="data sets", metavar="NAME")
    add_command(
        sets,
        "digits",
        lambda arguments: digits.prepare(arguments.out),
        recipe="digits",
        description="1,797 real handwritten digits, 8 x 8 pixels, from scikit-learn: no download.",
    )
    moving = add_command(
        sets,
        "moving-digits",
        lambda arguments: moving_digits.prepare(
            arguments.out,
            size=arguments.size,
            frames=arguments.frames,
            clips=arguments.clips,
            captions=arguments.captions,
            seed=arguments.seed,
        ),
        recipe="moving_digits",
        folder="data/moving-digits; with --captions=direction data/moving-digits-direction",
        description="The digits in motion, with captions such as 'a three moving left': no download.",
    )
    add_moving_digits_flags(moving)
    images = add_command(
        sets,
        "images",
        commands.images,
        recipe="dipom_xl2",
        description="Pictures of yours, cropped as ADM does, as pixels or (--autoencoder) as latents.",
    )
    commands.add_image_flags(images)
    imported = add_command(
        sets,
        "latents",
        latents,
        recipe="dipom_xl2",
        description="Latents in the tar chunks of the authors' tool (int8 or float16), number by number.",
    )
    add_latents_flags(imported)
    videos = add_command(
        sets,
        "videos",
        commands.videos,
        recipe="video_s2",
        description="Clips with captions, for text to video: latents and embeddings by torch encoders.",
    )
    commands.add_video_flags(videos)
    captions = add_command(
        sets,
        "captions",
        commands.captions,
        recipe="t2i_b2",
        description="Pictures with captions, for text to image: as pixels or as latents, and embeddings.",
    )
    commands.add_caption_flags(captions)


def add_command(
    sets: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    prepare: Callable[[argparse.Namespace], Manifest | None],
    *,
    description: str,
    recipe: str,
    folder: str | None = None,
) -> argparse.ArgumentParser:
    """Adds one data set to the command line.

    Args:
        recipe: the one in configs/ that uses it.
        folder: that is made by default, in words; None: data/NAME.
    """
    command = sets.add_parser(name, help=description, description=description, allow_abbrev=False)
    default = folder or f"data/{name}"
    command.add_argument(
        "--out", type=argument_path, metavar="DIR", help=f"folder to make (default: {default})"
    )
    command.set_defaults(prepare=prepare, recipe=recipe)
    return command


def add_moving_digits_flags(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `moving-digits`."""
    flag = command.add_argument
    flag("--size", type=int, default=16, metavar="N", help="side of the canvas in pixels (16)")
    flag("--frames", type=int, default=8, metavar="T", help="frames of a clip (8)")
    flag("--clips", type=int, default=12_000, metavar="N", help="clips to train on (12000)")
    flag(
        "--captions",
        default="digit",
        metavar="KIND",
        help="digit ('a three moving left', the default) or direction ('moving left')",
    )
    flag("--seed", type=int, default=0, metavar="N", help="of digits, starts and directions (0)")


def add_latents_flags(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `latents`."""
    flag = command.add_argument
    flag(
        "--source",
        type=argument_path,
        required=True,
        metavar="DIR",
        help="folder with index.json and its chunks",
    )
    flag("--classes", type=int, default=1000, metavar="N", help="how many labels there are (1000)")
    flag(
        "--test-share",
        type=float,
        default=0.02,
        metavar="S",
        help="held out if there is no val_index.json (0.02)",
    )
    flag("--seed", type=int, default=0, metavar="N", help="of what is held out (0)")


def latents(arguments: argparse.Namespace) -> Manifest | None:
    """Imports the authors' chunks."""
    from pom_jax.data.latents import prepare_latents
    from pom_jax.data.progress import PrepareProgress

    with PrepareProgress() as progress:
        return prepare_latents(
            arguments.source,
            arguments.out,
            classes=arguments.classes,
            test_share=arguments.test_share,
            seed=arguments.seed,
            command=arguments.command_line,
            progress=progress,
        )


def write_check(job: "Job", folder: Path, number: int) -> None:
    """Writes FOLDER-check.png, of clips their middle frames, and says how like they are."""
    import numpy as np

    from pom_jax.data.check import check
    from pom_jax.sampling.pictures import sheet

    found = check(job, folder, number)
    pair = np.stack([found.crops, found.stored])
    if pair.ndim == 6:
        pair = pair[:, :, pair.shape[2] // 2]
    titles = [title if len(title) <= LETTERS else f"{title[: LETTERS - 1]}…" for title in found.titles]
    path = Path(f"{folder}-check.png")
    sheet(pair, ("crop", "stored"), titles).save(path)
    likeness = "identical" if math.isinf(found.ratio) else f"{found.ratio:.1f} dB"
    print(f"written: {path} (crops above, what is stored below: {likeness})")


def command_line(argv: Sequence[str]) -> str:
    """The command without what another host or folder changes."""
    kept, dropped = [], False
    for word in argv:
        if word.startswith("--"):
            dropped = word.split("=")[0] in ("--out", "--host", "--hosts", "--check")
        if not dropped:
            kept.append(word)
        dropped = dropped and word.startswith("--") and "=" not in word  # then a value follows, or a flag
    return f"python prepare.py {shlex.join(kept)}"


def training_command(recipe: str, manifest: Manifest, folder: Path) -> str:
    """The command that trains on a data set: with the recipe, or a small model of the data's sizes."""
    recipe, _, variant = recipe.partition(":")
    config = importlib.import_module(f"configs.{recipe}").get_config(variant or None)
    sizes = clip_sizes(manifest, config.model) if manifest.is_video else image_sizes(manifest)
    words = []
    if str(folder) != config.data.dir:
        words.append(f"--config.data.dir={shlex.quote(str(folder))}")
    changed = {n: value for n, value in sizes.items() if operator.attrgetter(n)(config) != value}
    if changed:
        recipe = recipe if manifest.is_video else SMALL_RECIPE
        words += [f"--config.{name}={value}" for name, value in changed.items()]
        words.append(f"--workdir={shlex.quote(f'runs/{folder.resolve().name}')}")
    return " ".join([f"python train.py --config=configs/{recipe}.py{variant and f':{variant}'}", *words])


def image_sizes(manifest: Manifest) -> dict[str, int]:
    """The fields of a recipe that follow from a set of images."""
    height, _, channels = manifest.image_shape
    return {
        "model.image_size": height,
        "model.channels": channels,
        "model.num_classes": len(manifest.classes),
    }


def clip_sizes(manifest: Manifest, model: Mapping[str, int]) -> dict[str, int]:
    """The fields of a recipe that follow from a set of clips with captions; `model` is the recipe's."""
    names = ("frames", "frame_height", "frame_width", "channels")
    sizes = dict(zip(names, manifest.sample_shape, strict=True))
    frames, height, width, _ = manifest.sample_shape
    sizes["patch_size"] = math.gcd(model["patch_size"], height, width)  # patches are whole
    sizes["frame_patch"] = math.gcd(model["frame_patch"], frames)
    length, *text_width = manifest.fields["text"].shape
    sizes |= {"text_length": length, "vocabulary": len(manifest.words)}
    if text_width:
        sizes["text_width"] = text_width[0]
    return {f"model.{name}": size for name, size in sizes.items()}


def describe(manifest: Manifest) -> str:
    """What a data set holds, in a few lines."""
    what = "clips" if manifest.is_video and manifest.sample_shape[0] > 1 else "images"
    lines = [
        f"  {split}: {manifest.records(split)} {what} in {len(shards)} shard{'s' * (len(shards) != 1)}, "
        f"{sum(shard.bytes for shard in shards) / 1e6:.1f} MB"
        for split, shards in manifest.splits.items()
    ]
    content = [" x ".join(map(str, manifest.sample_shape))]
    if "label" in manifest.fields:
        content.append(f"{len(manifest.classes)} classes")
    if manifest.words:
        length = manifest.fields["text"].shape[0]
        content.append(f"captions of up to {length} of {len(manifest.words) - 1} words")
    elif "text" in manifest.fields:
        content.append("captions of {} tokens x {}".format(*manifest.fields["text"].shape))
    lines.append(f"  each {', '.join(content)}; data checksum {manifest.digest}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
