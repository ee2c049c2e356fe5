"""`prepare.py images`, `captions` and `videos`: their flags, and what they do."""

import argparse
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pom_jax.errors import InputError
from pom_jax.paths import argument_path

if TYPE_CHECKING:  # what --help need not wait for
    from pom_jax.data.captioned import Captioned
    from pom_jax.data.encoding import Encoder
    from pom_jax.data.making import Job
    from pom_jax.data.manifest import Manifest
    from pom_jax.data.pictures import Pictures
    from pom_jax.data.text_encoder import TextEncoder

BATCH_CLIPS = 4  # that are read before they are encoded, one after the other
SOURCE = "folder with a subfolder for each class, or of pictures; .csv with columns path,label; .npz as ADM's"


def add_image_flags(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `images`."""
    command.add_argument("--source", type=argument_path, required=True, metavar="PATH", help=SOURCE)
    _add_picture_flags(command)
    _add_flags(command, "images", shard=4096)


def add_caption_flags(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `captions`."""
    _add_text_flags(command, "pictures")
    _add_picture_flags(command)
    what = "store mirror images too, where captions name no side"
    command.add_argument("--mirror", action="store_true", help=what)
    _add_flags(command, "pictures", shard=4096)


def add_video_flags(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `videos`."""
    _add_text_flags(command, "clips")
    flag = command.add_argument
    flag(
        "--autoencoder",
        type=argument_path,
        required=True,
        metavar="DIR",
        help="CogVideoX's, in diffusers' format",
    )
    flag("--frames", type=int, default=80, metavar="T", help="frames of a clip, its first ones (80)")
    flag("--size", required=True, metavar="HxW", help="frames are scaled to cover this and cropped to it")
    flag("--fps", type=float, metavar="F", help="frames a second (default: every frame of a file)")
    flag("--chunk-frames", type=int, default=8, metavar="N", help="frames that are encoded together (8)")
    flag(
        "--scale",
        type=float,
        metavar="F",
        help="from latents to the model's space (default: the autoencoder's; the authors' models take 1)",
    )
    flag("--batch-size", type=int, default=4, metavar="N", help="chunks given to the device at once (4)")
    _add_flags(command, "clips", shard=256)


def _add_picture_flags(command: argparse.ArgumentParser) -> None:
    flag = command.add_argument
    flag("--size", type=int, required=True, metavar="N", help="side of the square crops in pixels")
    flag(
        "--autoencoder",
        type=argument_path,
        metavar="DIR",
        help="in diffusers' format; pixels are stored without it",
    )
    flag("--moments", metavar="TYPE", help="of latents: float16 (default) or int8, half as large")
    flag("--batch-size", type=int, default=32, metavar="N", help="pictures given to a device at once (32)")


def _add_text_flags(command: argparse.ArgumentParser, unit: str) -> None:
    flag = command.add_argument
    flag(
        "--source",
        type=argument_path,
        required=True,
        metavar="PATH",
        help=f".csv (path,caption) or folder of {unit}",
    )
    flag(
        "--captions",
        type=argument_path,
        metavar="CSV",
        help="of a folder: path,caption (default: a .txt beside each file)",
    )
    flag("--test-captions", type=argument_path, metavar="CSV", help="of a folder given by --test-source")
    flag(
        "--text-encoder",
        type=argument_path,
        required=True,
        metavar="DIR",
        help="such as FLAN-T5, with its tokenizer",
    )
    flag("--tokens", type=int, default=64, metavar="M", help="captions are filled up or cut to M tokens (64)")
    flag("--device", metavar="NAME", help="of torch (default: the first GPU, if there is one)")
    flag("--precision", default="float32", metavar="TYPE", help="of torch: float32 (default) or bfloat16")


def _add_flags(command: argparse.ArgumentParser, unit: str, shard: int) -> None:
    flag = command.add_argument
    flag(
        "--min-size", type=int, default=0, metavar="N", help=f"leave out {unit} whose shorter side is below N"
    )
    flag(
        "--test-share",
        type=float,
        default=0.02,
        metavar="S",
        help="share to hold out, of each class if there are any (0.02)",
    )
    flag("--test-source", type=argument_path, metavar="PATH", help=f"held-out {unit}, instead of a share")
    flag("--seed", type=int, default=0, metavar="N", help="of what is held out and of the order (0)")
    flag(f"--shard-{unit}", type=int, default=shard, metavar="N", help=f"{unit} a shard ({shard})")
    flag("--max-unreadable", type=int, default=100, metavar="N", help=f"{unit} that may be unusable (100)")
    flag("--workers", type=int, metavar="N", help=f"threads that read {unit} (one a core)")
    what = {"type": int, "nargs": "?", "const": 8, "metavar": "N"}
    flag("--check", **what, help=f"decode N (8) {unit} again: OUT-check.png")
    flag("--hosts", type=int, metavar="N", help="share the work among N hosts that see the same folders")
    flag("--host", type=int, metavar="I", help="which of them this is, from 0")


def images(arguments: argparse.Namespace) -> "Manifest | None":
    """Makes a data set of pictures with labels."""
    from pom_jax.data.images import plan
    from pom_jax.data.pictures import open_pictures

    _check(arguments)
    pictures = open_pictures(arguments.source)
    _tell(pictures, f"pictures in {len(pictures.classes):,} classes")
    _tell_numbers(pictures.classes)
    job = plan(
        pictures,
        _picture_encoder(arguments, mirror=True),
        test_pictures=None if arguments.test_source is None else open_pictures(arguments.test_source),
        min_size=arguments.min_size,
        shard_images=arguments.shard_images,
        **_choices(arguments),
    )
    return _make(job, arguments, arguments.batch_size)


def captions(arguments: argparse.Namespace) -> "Manifest | None":
    """Makes a data set of pictures with captions."""
    # Before JAX takes the GPU: torch needs a part of it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from pom_jax.data.captioned_jobs import plan
    from pom_jax.data.captioned_pictures import OneFrame, picture_reader
    from pom_jax.data.pictures import ENDINGS

    reader = picture_reader(arguments.min_size)
    pictures, test_pictures = _open_captioned(arguments, ENDINGS, reader.unit)
    job = plan(
        pictures,
        reader,
        OneFrame(_picture_encoder(arguments, mirror=arguments.mirror)),
        _text_encoder(arguments),
        test_files=test_pictures,
        shard=arguments.shard_pictures,
        **_choices(arguments),
    )
    return _make(job, arguments, arguments.batch_size)


def videos(arguments: argparse.Namespace) -> "Manifest | None":
    """Makes a data set of clips with captions."""
    import jax

    from pom_jax.data.captioned_jobs import plan
    from pom_jax.data.clips import ENDINGS, EXTRA
    from pom_jax.data.torch_models import require
    from pom_jax.data.video_autoencoder import VideoAutoencoder
    from pom_jax.data.videos import clip_reader

    jax.config.update("jax_platforms", "cpu")  # the encoders are torch's, and so is the GPU
    reader, size = clip_reader(arguments.fps, arguments.min_size), parse_size(arguments.size)
    require("av", "reading clips", EXTRA)
    clips, test_clips = _open_captioned(arguments, ENDINGS, reader.unit)
    autoencoder = VideoAutoencoder(
        arguments.autoencoder,
        arguments.frames,
        size,
        chunk_frames=arguments.chunk_frames,
        scale=arguments.scale,
        batch_size=arguments.batch_size,
        device=arguments.device,
        precision=arguments.precision,
        say=_say,
    )
    job = plan(
        clips,
        reader,
        autoencoder,
        _text_encoder(arguments),
        test_files=test_clips,
        shard=arguments.shard_clips,
        **_choices(arguments),
    )
    return _make(job, arguments, BATCH_CLIPS)


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of "128x240", or of "128" for a square.

    Raises:
        InputError: neither.
    """
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if found is None:
        raise InputError(f"--size={text} must be height x width in pixels, such as 128x240")
    return int(found[1]), int(found[2] or found[1])


def _check(arguments: argparse.Namespace) -> None:
    """Raises InputError for what can be refused before a million files are looked for."""
    from pom_jax.hosts import this_host

    if arguments.check is not None and arguments.check < 1:
        raise InputError(f"--check={arguments.check} must be at least 1")
    this_host(arguments.host, arguments.hosts)
    if arguments.source.resolve() in arguments.out.resolve().parents:
        raise InputError(f"--out={arguments.out} is in --source={arguments.source}: give one outside")


def _open_captioned(
    arguments: argparse.Namespace, endings: tuple[str, ...], unit: str
) -> "tuple[Captioned, Captioned | None]":
    from pom_jax.data.captioned import open_captioned

    _check(arguments)
    if arguments.test_captions is not None and arguments.test_source is None:
        raise InputError(f"--test-captions={arguments.test_captions} goes with --test-source=FOLDER")
    found = open_captioned(arguments.source, arguments.captions, endings, unit)
    _tell(found, unit)
    if arguments.test_source is None:
        return found, None
    return found, open_captioned(arguments.test_source, arguments.test_captions, endings, unit)


def _tell(found: "Captioned | Pictures", what: str) -> None:
    print(f"{len(found):,} {what}", flush=True)
    if found.others:
        others = (f"{count:,} {ending or 'without one'}" for ending, count in found.others.most_common(5))
        print(f"  files left out because of their endings: {', '.join(others)}", flush=True)


def _tell_numbers(classes: Sequence[str]) -> None:
    """Says so where names that are numbers are not the numbers of their classes."""
    other = [n for n, name in enumerate(classes) if name.isascii() and name.isdigit() and int(name) != n]
    if other:
        shown = ", ".join(f'class {n} is named "{classes[n]}"' for n in other[:3])
        more = f" ({len(other):,} such names)" if len(other) > 3 else ""
        counted = "sample.py --classes counts from 0 and looks up no number as a name"
        print(f"  note: {shown}{more}; {counted}", flush=True)


def _picture_encoder(arguments: argparse.Namespace, *, mirror: bool) -> "Encoder":
    from pom_jax.data.encoding import Latents, Pixels

    if arguments.autoencoder is not None:
        moments = arguments.moments or "float16"
        return Latents(arguments.autoencoder, arguments.size, moments, mirror=mirror)
    if arguments.moments is not None:
        raise InputError(
            f"--moments={arguments.moments} is of latents: give --autoencoder=DIR too, or leave it out "
            "(pixels are stored as they are, 8 bits each)"
        )
    return Pixels(arguments.size, mirror=mirror)


def _text_encoder(arguments: argparse.Namespace) -> "TextEncoder":
    from pom_jax.data.text_encoder import TextEncoder

    return TextEncoder(
        arguments.text_encoder,
        arguments.tokens,
        device=arguments.device,
        precision=arguments.precision,
        say=_say,
    )


def _say(line: str) -> None:
    print(line, flush=True)


def _choices(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "test_share": arguments.test_share,
        "seed": arguments.seed,
        "name": arguments.out.resolve().name,
        "command": arguments.command_line,
    }


def _make(job: "Job", arguments: argparse.Namespace, batch_size: int) -> "Manifest | None":
    from pom_jax.data.making import prepare
    from pom_jax.data.progress import PrepareProgress

    arguments.job = job  # for --check
    with PrepareProgress(unit=job.recipe.unit) as progress:
        return prepare(
            job,
            arguments.out,
            host=arguments.host,
            hosts=arguments.hosts,
            workers=arguments.workers,
            batch_size=batch_size,
            max_unreadable=arguments.max_unreadable,
            progress=progress,
        )
