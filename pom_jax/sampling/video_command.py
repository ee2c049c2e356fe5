"""What sample.py does with the flags of a model of video."""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pom_jax.errors import InputError
from pom_jax.sampling.films import FPS, check_films_place, read_frames, write_films
from pom_jax.sampling.progress import SamplingProgress
from pom_jax.sampling.state_file import check_state_place
from pom_jax.sampling.stream import StreamState
from pom_jax.sampling.video import VideoGenerator, load_video

SLUG = 60  # characters of the prompts in a file name


def sample_video_to_file(
    workdir: Path,
    *,
    out: str | None = None,
    prompts: Sequence[str] = (),
    num: int | None = None,
    frames: int | None = None,
    joint: bool | None = None,
    chunk: int | None = None,
    size: str | None = None,
    from_file: str | None = None,
    state: str | None = None,
    save_state: str | None = None,
    fps: int = FPS,
    step: int | None = None,
    ema: int | None = 0,
    autoencoder: str | None = None,
    text_encoder: str | None = None,
    seed: int | None = None,
    batch_size: int = 64,
    **settings: Any,
) -> Path:
    """Draws films with a run of train.py and writes them where `out` says.

    Args:
        workdir: of the run.
        out: file to write; its ending says what (`films.write_films`). By default a .gif among the run's
            samples, whose name tells of all settings, and a strip of its frames beside it, .png.
        prompts: what to show; each may be several, with ; between them.
        num: films of each prompt, or of each given film.
        frames: of a film; with `state` those to come.
        joint: draws all frames at once; by default what a model without states must.
        chunk, seed, batch_size: of `VideoGenerator.stream`.
        size: HEIGHTxWIDTH of a frame; that of the state, of given frames or of the training clips by default.
        from_file: first frames of the films, see `films.read_frames`.
        state, save_state: file of the state to go on from, and file for the state after the last frame.
        fps: frames a second.
        step, ema, autoencoder, text_encoder: see `load_video`.
        settings: guidance, steps and sampler of `VideoGenerator.stream`; None for the run's own.

    Returns:
        The file.

    Raises:
        InputError: whatever is wrong with any of these, before anything is compiled or overwritten.
    """
    _check_request(joint, num, fps, {"from": from_file, "state": state, "save_state": save_state})
    generator = load_video(workdir, step, ema, autoencoder, text_encoder)
    resumed = None if state is None else generator.load_state(state)
    given = None
    if from_file is not None:
        given = read_frames(from_file, generator.model.channels, generator.draws_pixels)
    prompts = [part.strip() for prompt in prompts for part in prompt.split(";")]
    prompts, given = _films(prompts, num, given, resumed)
    captions = tuple(prompts) if prompts or resumed is None else resumed.captions
    total = generator.config.model.frames if frames is None else frames
    seed = seed if seed is not None else resumed.seed if resumed is not None else 0
    defaults = generator.config.sampling
    chosen = {
        name: defaults[name] if settings.get(name) is None else settings[name]
        for name in ("guidance", "steps", "sampler")
    }
    joint = joint if joint is not None else not generator.model.frame_causal
    start = 0 if resumed is None else resumed.frame
    frame_size = None if size is None else _size(size)
    name = _name(generator, captions, total, frame_size, start, joint, given is not None, chosen, seed)
    path = check_films_place(out or workdir / "samples" / name)
    strip = check_films_place(path.with_suffix(".png")) if out is None else None
    if path.suffix != ".npz":
        generator.check_pixels()
    if save_state is not None:
        if joint:
            raise InputError(
                f"--save_state={save_state}: this model draws all frames at once, and leaves no state"
            )
        check_state_place(save_state)

    count = len(resumed.films) if resumed is not None else len(prompts)
    pieces = []
    with SamplingProgress(
        title=_title(generator, count, total, joint, chosen, seed), unit="frames"
    ) as progress:
        for piece in generator.stream(
            list(prompts) or None,
            total,
            joint=joint,
            state=resumed,
            chunk=chunk,
            given=given,
            size=frame_size,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
            **chosen,
        ):
            pieces.append(piece.frames)
        if save_state is not None:
            generator.save_state(save_state, piece.state)
            print(f"state of {piece.state_bytes:,} bytes: {save_state}", flush=True)
    x = np.concatenate(pieces, axis=1)
    shown = generator.pixels(x) if generator.makes_pixels else x
    write_films(path, shown, captions, fps)
    print(f"written: {path}", flush=True)
    if strip is not None:
        write_films(strip, shown, captions)
        print(f"written: {strip}", flush=True)
    return path


def _title(
    generator: VideoGenerator, count: int, frames: int, joint: bool, chosen: dict[str, Any], seed: int
) -> str:
    """What is about to be drawn, in a line."""
    return (
        f"{generator.config.name}: {count} film{'s' * (count > 1)} of {frames} frames, "
        f"{'all frames at once' if joint else 'streamed'}, {generator.origin}, {chosen['sampler']}, "
        f"{chosen['steps']} steps, guidance {chosen['guidance']:g}, seed {seed}"
    )


def _check_request(joint: bool | None, num: int | None, fps: int, files: dict[str, str | None]) -> None:
    if num is not None and num < 1:
        raise InputError(f"--num={num}: at least one film")
    if not 1 <= fps <= 120:
        raise InputError(f"--fps={fps} must be from 1 to 120 frames a second")
    for flag, file in files.items():
        if joint and file is not None:
            raise InputError(
                f"--{flag}={file} is of films that are streamed: leave out --joint, which draws all frames "
                "at once"
            )


def _films(
    prompts: list[str], num: int | None, given: np.ndarray | None, resumed: StreamState | None
) -> tuple[list[str], np.ndarray | None]:
    """The prompt of each film, and the given frames of each; no prompts where those of a state go on."""
    if resumed is not None:
        count = len(resumed.films)
        if num is not None:
            raise InputError(f"--num={num}: the state has {count} films, which go on; leave it out")
        if len(prompts) not in (0, 1, count):
            raise InputError(f"{len(prompts)} prompts for {count} films of --state: give one, or one each")
        prompts = prompts * count if len(prompts) == 1 else prompts
    else:
        if not prompts:
            raise InputError('which films? Give --prompt="..." (several with ; between), or --state=FILE')
        if given is not None and len(prompts) == 1:
            prompts = prompts * len(given)
        prompts = [prompt for prompt in prompts for _ in range(num or 1)]
        count = len(prompts)
    if given is None or len(given) == count:
        return prompts, given
    if count % len(given):
        raise InputError(f"--from has {len(given)} films, and {count} are to be drawn: give one, or as many")
    return prompts, given.repeat(count // len(given), axis=0)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if not found:
        raise InputError(f"--size={text} must be HEIGHTxWIDTH, such as 16x24")
    return int(found[1]), int(found[2])


def _name(
    generator: VideoGenerator,
    captions: Sequence[str],
    frames: int,
    size: tuple[int, int] | None,
    start: int,
    joint: bool,
    given: bool,
    chosen: dict[str, Any],
    seed: int,
) -> str:
    """A file name that tells of the captions, and of all that differs from the run's own settings."""
    defaults = generator.config.sampling
    different = dict.fromkeys(captions)
    text = "+".join(different)
    slug = re.sub(r"[^\w+]+", "-", text).strip("-")
    if len(slug.encode()) > SLUG:
        slug = f"{slug[: SLUG // 2]}-{zlib.crc32(text.encode()):08x}"
    name = f"step_{generator.step:07d}_{slug or 'films'}_{frames}_frames"
    if len(captions) > len(different):
        name += f"_{len(captions)}_films"
    if size is not None:
        name += f"_of_{size[0]}x{size[1]}"
    name += f"_from_{start}" * (start > 0) + "_joint" * joint + "_continued" * given
    name += f"_guidance_{chosen['guidance']:g}_seed_{seed}"
    if chosen["sampler"] != defaults.sampler:
        name += f"_{chosen['sampler']}"
    if chosen["steps"] != defaults.steps:
        name += f"_{chosen['steps']}_steps"
    if generator.ema != 0:
        name += "_no_ema" if generator.ema is None else f"_ema_{generator.ema}"
    return name + ".gif"
