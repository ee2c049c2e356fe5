"""`prepare.py videos` and `prepare.py captions`: their flags, and what they do."""

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pom_jax.errors import InputError

if TYPE_CHECKING:  # what --help need not wait for
    from pom_jax.data.captioned import Captioned
    from pom_jax.data.making import Job
    from pom_jax.data.manifest import Manifest
    from pom_jax.data.text_encoder import TextEncoder


def add_video_flags(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `videos`."""
    _add_flags(command, "clips", shard=256)
    flag = command.add_argument
    flag("--autoencoder", type=Path, required=True, metavar="DIR", help="CogVideoX's, in diffusers' format")
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


def add_caption_flags(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `captions`."""
    _add_flags(command, "pictures", shard=4096)
    flag = command.add_argument
    flag("--autoencoder", type=Path, metavar="DIR", help="in diffusers' format; pixels are stored without it")
    flag("--moments", metavar="TYPE", help="of latents: float16 (default) or int8, half as large")
    flag("--size", type=int, required=True, metavar="N", help="side of the square crops in pixels")
    flag("--mirror", action="store_true", help="store mirror images too, where captions name no side")
    flag("--batch-size", type=int, default=32, metavar="N", help="pictures given to a device at once (32)")


def _add_flags(command: argparse.ArgumentParser, unit: str, shard: int) -> None:
    flag = command.add_argument
    flag(
        "--source", type=Path, required=True, metavar="PATH", help=f".csv (path,caption) or folder of {unit}"
    )
    flag(
        "--captions",
        type=Path,
        metavar="CSV",
        help="of a folder: path,caption (default: a .txt beside each file)",
    )
    flag(
        "--text-encoder", type=Path, required=True, metavar="DIR", help="such as FLAN-T5, with its tokenizer"
    )
    flag("--tokens", type=int, default=64, metavar="M", help="captions are filled up or cut to M tokens (64)")
    flag("--min-size", type=int, default=0, metavar="N", help=f"leave out {unit} whose shorter side is below")
    flag("--test-share", type=float, default=0.02, metavar="S", help="share to hold out (0.02)")
    flag("--test-source", type=Path, metavar="PATH", help=f"held-out {unit}, instead of a share")
    flag("--test-captions", type=Path, metavar="CSV", help="of a folder given by --test-source")
    flag("--seed", type=int, default=0, metavar="N", help="of what is held out and of the order (0)")
    flag(f"--shard-{unit}", type=int, default=shard, metavar="N", help=f"{unit} a shard ({shard})")
    flag("--max-unreadable", type=int, default=100, metavar="N", help=f"{unit} that may be unusable (100)")
    flag("--workers", type=int, metavar="N", help=f"threads that read {unit} (one a core)")
    flag("--device", metavar="NAME", help="of torch (default: the first GPU, if there is one)")
    flag("--precision", default="float32", metavar="TYPE", help="of torch: float32 (default) or bfloat16")
    what = {"type": int, "nargs": "?", "const": 8, "metavar": "N"}
    flag("--check", **what, help=f"decode N (8) {unit} again: OUT-check.png")
    flag("--hosts", type=int, metavar="N", help="share the work among N hosts that see the same folders")
    flag("--host", type=int, metavar="I", help="which of them this is, from 0")


def videos(arguments: argparse.Namespace) -> "Manifest | None":
    """Makes a data set of clips with captions."""
    import jax

    from pom_jax.data.clips import ENDINGS, EXTRA
    from pom_jax.data.torch_models import require
    from pom_jax.data.video_autoencoder import VideoAutoencoder
    from pom_jax.data.videos import BATCH_CLIPS, UNIT, plan

    jax.config.update("jax_platforms", "cpu")  # the encoders are torch's, and so is the GPU
    size = parse_size(arguments.size)
    require("av", "reading clips", EXTRA)
    clips, test_clips = _sources(arguments, ENDINGS, UNIT)
    job = plan(
        clips,
        VideoAutoencoder(
            arguments.autoencoder,
            arguments.frames,
            size,
            chunk_frames=arguments.chunk_frames,
            scale=arguments.scale,
            batch_size=arguments.batch_size,
            device=arguments.device,
            precision=arguments.precision,
        ),
        _text_encoder(arguments),
        test_clips=test_clips,
        test_share=arguments.test_share,
        fps=arguments.fps,
        min_size=arguments.min_size,
        seed=arguments.seed,
        shard_clips=arguments.shard_clips,
        name=arguments.out.resolve().name,
        command=arguments.command_line,
    )
    return _make(job, arguments, BATCH_CLIPS)


def captions(arguments: argparse.Namespace) -> "Manifest | None":
    """Makes a data set of pictures with captions."""
    # Before JAX takes the GPU: torch needs a part of it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from pom_jax.data.captioned_pictures import UNIT, plan
    from pom_jax.data.encoding import Latents, Pixels
    from pom_jax.data.pictures import ENDINGS

    pictures, test_pictures = _sources(arguments, ENDINGS, UNIT)
    if arguments.autoencoder is not None:
        moments = arguments.moments or "float16"
        encoder = Latents(arguments.autoencoder, arguments.size, moments, mirror=arguments.mirror)
    elif arguments.moments is not None:
        raise InputError(
            f"--moments={arguments.moments} is of latents: give --autoencoder=DIR, or leave it out"
        )
    else:
        encoder = Pixels(arguments.size, mirror=arguments.mirror)
    job = plan(
        pictures,
        encoder,
        _text_encoder(arguments),
        arguments.size,
        test_pictures=test_pictures,
        test_share=arguments.test_share,
        min_size=arguments.min_size,
        seed=arguments.seed,
        shard_pictures=arguments.shard_pictures,
        name=arguments.out.resolve().name,
        command=arguments.command_line,
    )
    return _make(job, arguments, arguments.batch_size)


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of "128x240", or of "128" for a square.

    Raises:
        InputError: neither.
    """
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if found is None:
        raise InputError(f"--size={text} must be height x width in pixels, such as 128x240")
    return int(found[1]), int(found[2] or found[1])


def _sources(
    arguments: argparse.Namespace, endings: tuple[str, ...], unit: str
) -> "tuple[Captioned, Captioned | None]":
    from pom_jax.data.captioned import open_captioned
    from pom_jax.hosts import this_host

    if arguments.check is not None and arguments.check < 1:
        raise InputError(f"--check={arguments.check} must be at least 1")
    this_host(arguments.host, arguments.hosts)  # before a million files are looked for
    if arguments.source.resolve() in arguments.out.resolve().parents:
        raise InputError(f"--out={arguments.out} is in --source={arguments.source}: give one outside")
    if arguments.test_captions is not None and arguments.test_source is None:
        raise InputError(f"--test-captions={arguments.test_captions} goes with --test-source=FOLDER")
    found = open_captioned(arguments.source, arguments.captions, endings, unit)
    print(f"{len(found):,} {unit}", flush=True)
    if found.others:
        others = (f"{count:,} {ending or 'without one'}" for ending, count in found.others.most_common(5))
        print(f"  files left out because of their endings: {', '.join(others)}", flush=True)
    test = None
    if arguments.test_source is not None:
        test = open_captioned(arguments.test_source, arguments.test_captions, endings, unit)
    return found, test


def _text_encoder(arguments: argparse.Namespace) -> "TextEncoder":
    from pom_jax.data.text_encoder import TextEncoder

    return TextEncoder(
        arguments.text_encoder, arguments.tokens, device=arguments.device, precision=arguments.precision
    )


def _make(job: "Job", arguments: argparse.Namespace, batch_size: int) -> "Manifest | None":
    from pom_jax.data.making import prepare
    from pom_jax.data.progress import PrepareProgress

    arguments.job = job
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
