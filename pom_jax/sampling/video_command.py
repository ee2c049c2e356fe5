"""What sample.py does with the flags of a model of video."""

import contextlib
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pom_jax.diffusion.film_settings import FrameSettings, film_settings
from pom_jax.diffusion.guidance import choose_interval, interval_in_words
from pom_jax.errors import InputError, explain
from pom_jax.sampling.film_output import latents_beside, strip_beside, write_drawn
from pom_jax.sampling.films import ANIMATIONS, FPS, check_films_place, read_frames
from pom_jax.sampling.progress import SamplingProgress
from pom_jax.sampling.state_file import check_state_place
from pom_jax.sampling.stream import StreamedFrames, StreamState
from pom_jax.sampling.video import VideoGenerator, load_video
from pom_jax.training.interrupt import Interrupt

SLUG = 60  # characters of the prompts in a file name
FIRST, LATER, BOTH = (
    slice(0, 1),
    slice(1, 2),
    slice(0, 2),
)  # of (first frames, later ones behind finished ones)


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
            samples, whose name tells of all settings, and an .mp4 where there is PyAV. Beside an animation
            stands a strip of its frames, _strip.png.
        prompts: what to show; each may be several, with ; between them.
        num: films of each prompt, or of each given film.
        frames: of a film, given ones included; with `state` those to come. Of a model of latents they are
            frames of latents.
        joint: draws all frames at once; by default what a model without states must.
        chunk, seed, batch_size: of `VideoGenerator.stream`.
        size: HEIGHTxWIDTH of a frame; that of the state or of the training clips by default.
        from_file: first frames of the films, of their size, see `films.read_frames`; for a model of latents
            those of latents or, with `autoencoder`, of pixels, see `VideoGenerator.first_frames`.
        state, save_state: file of the state to go on from, and file for the state after the last frame, or
            after the last that was finished.
        fps: frames a second.
        step, ema, autoencoder, text_encoder: see `load_video`.
        settings: guidance, later_guidance, interval, steps, later_steps and sampler of
            `VideoGenerator.stream`; None for the run's own.

    Returns:
        The file.

    Raises:
        InputError: whatever is wrong with any of these, before anything is compiled or overwritten. A later
            frame that is not finite, latents that cannot be decoded, or a file that cannot be written, once
            all else is written; latents are written instead of their pixels then, to _latents.npz.
        SystemExit: Ctrl-C or SIGTERM came while the second frame or a later one was drawn. The frames until
            then are written, to the file's name with how many they are, and the state after them.
    """
    _check_request(joint, num, fps, {"from": from_file, "state": state, "save_state": save_state})
    generator = load_video(workdir, step, ema, autoencoder, text_encoder)
    resumed = None if state is None else generator.load_state(state)
    frame_size = None if size is None else _size(size)
    given = None if from_file is None else _given(from_file, generator, resumed, frame_size)
    texts, given = _films(_prompts(prompts), num, given, resumed)
    frames = generator.model.frames if frames is None else frames
    joint = not generator.model.frame_causal if joint is None else joint
    past = _mark(given, resumed)
    own = generator.config.sampling
    sampler, interval = settings.pop("sampler", None), settings.pop("interval", None)
    first, later = film_settings(own, **settings)
    one_chunk = joint or frames <= (chunk or generator.model.frame_patch)
    drawn = LATER if past else FIRST if one_chunk else BOTH
    _check_settings(settings, first, later, drawn, kept=save_state is not None)
    asked = _Asked(
        captions=tuple(texts) if texts or resumed is None else resumed.captions,
        films=len(texts) if resumed is None else len(resumed.films),
        frames=frames,
        start=0 if resumed is None else resumed.frame,
        size=frame_size,
        joint=joint,
        chunk=chunk,
        past=past,
        drawn=drawn,
        seed=seed if seed is not None else 0 if resumed is None else resumed.seed,
        settings={
            "sampler": own.sampler if sampler is None else sampler,
            "interval": choose_interval(interval, own),
            **first._asdict(),
            **{f"later_{name}": value for name, value in later._asdict().items()},
        },
    )
    files = _places(generator, asked, workdir, out, state, save_state)

    with contextlib.ExitStack() as until_written:
        with SamplingProgress(title=_title(generator, asked), unit="frames") as progress:
            stream = generator.stream(
                texts or None,
                asked.frames,
                joint=asked.joint,
                chunk=chunk,
                size=asked.size,
                given=given,
                state=resumed,
                seed=asked.seed,
                batch_size=batch_size,
                progress=progress,
                **asked.settings,
            )
            for note in _advice(generator, asked):
                progress.line(note)
            # Before the first piece there is nothing to keep, and a signal ends the process at once.
            pieces = [next(stream)]
            interrupt = until_written.enter_context(Interrupt(progress, part="frame"))
            failures = _draw(stream, pieces, asked.frames, generator.whole_frames, interrupt)
        failures += write_drawn(generator, pieces, files, asked.captions, asked.frames, save_state, fps)
    done = _length(pieces)
    if done < asked.frames:
        left = asked.frames - done
        kept = save_state is not None and not failures
        on = f"; --state={save_state} --frames={left} goes on from there" if kept else ""
        print(f"stopped after {done} of {asked.frames} frames{on}", flush=True)
    for failure in failures[1:]:
        explain(failure)
    if failures:
        raise failures[0]
    if done < asked.frames:
        sys.exit(interrupt.exit_code)
    return files[0]


class _Asked(NamedTuple):
    """Films that are asked for.

    Attributes:
        captions: of each film; () where a state does not know them.
        films, frames: how many, and frames of each.
        start: number of the first frame.
        size: (H, W) of a frame that was asked for, None for that of the state or of the training clips.
        joint: whether all frames are drawn at once.
        chunk: frames that are drawn at a time, None for the fewest.
        past: a checksum of the given frames, or of the state that the films go on from; "" without any.
        drawn: which frames are drawn: FIRST, LATER (behind finished ones) or BOTH.
        seed: of the noise.
        settings: sampler, interval of the guidance, guidance and steps, and those of later frames.
    """

    captions: Sequence[str]
    films: int
    frames: int
    start: int
    size: tuple[int, int] | None
    joint: bool
    chunk: int | None
    past: str
    drawn: slice
    seed: int
    settings: dict[str, Any]


def _places(
    generator: VideoGenerator,
    asked: _Asked,
    workdir: Path,
    out: str | None,
    state: str | None,
    save_state: str | None,
) -> list[Path]:
    """The files to write; raises an InputError for one that cannot be."""
    path = workdir / "samples" / _name(generator, asked) if out is None else Path(out)
    files = [check_films_place(path)]
    if out is None:
        with contextlib.suppress(InputError):  # there is no PyAV
            files.append(check_films_place(path.with_suffix(".mp4")))
    if path.suffix in ANIMATIONS:
        files.append(check_films_place(strip_beside(path)))
    if files[0].suffix != ".npz" or generator.makes_pixels:
        generator.check_pixels(asked.frames, asked.start)
    if save_state is not None:
        if asked.joint:
            raise InputError(
                f"--save_state={save_state}: this model draws all frames at once, and leaves no state"
            )
        check_state_place(save_state)
    written = files if generator.decoder is None else [*files, latents_beside(path)]
    for flag, place in (("--state", state), ("--save_state", save_state)):
        if place is None:
            continue
        kept = Path(place).resolve()
        whole = kept.with_stem(re.sub(r"_first_\d+$", "", kept.stem))  # of films that are stopped
        if {kept, whole} & {file.resolve() for file in written}:
            raise InputError(f"{flag}={place}: the films are written there, too; give them another name")
    return files


def _draw(
    stream: Iterator[StreamedFrames],
    pieces: list[StreamedFrames],
    total: int,
    whole: int,
    interrupt: Interrupt,
) -> list[Exception]:
    """Draws on to the end, or until a signal came, behind a multiple of `whole` frames.

    Returns:
        What went wrong, if something did. The frames before it are kept.
    """
    try:
        while (done := _length(pieces)) < total and not (interrupt.number is not None and done % whole == 0):
            pieces.append(next(stream))
    except (InputError, jax.errors.JaxRuntimeError) as error:  # such as no memory for a larger cache
        return [error]
    return []


def _length(pieces: Sequence[StreamedFrames]) -> int:
    return sum(piece.frames.shape[1] for piece in pieces)


def _title(generator: VideoGenerator, asked: _Asked) -> str:
    """What is about to be drawn, in a line."""
    several, scales = "s" * (asked.films > 1), _values(asked, "guidance")
    when = interval_in_words(asked.settings["interval"], *map(float, scales))
    if asked.frames == 1 and not asked.past:
        what = f"picture{several}"
    else:
        what = f"film{several} of {asked.frames} frame{'s' * (asked.frames > 1)}"
        what += ", all frames at once" if asked.joint else ", streamed"
    return (
        f"{generator.config.name}: {asked.films} {what}, {generator.origin}, {asked.settings['sampler']}, "
        f"{' and later '.join(_values(asked, 'steps'))} steps, guidance "
        f"{' and later '.join(scales)}{when}, seed {asked.seed}"
    )


def _values(asked: _Asked, name: str) -> list[str]:
    """Guidance or steps of the frames that are drawn: of first ones and, if it is another, of later ones."""
    values = asked.settings[name], asked.settings[f"later_{name}"]
    return list(dict.fromkeys(f"{value:g}" for value in values[asked.drawn]))


def _mark(given: np.ndarray | None, resumed: StreamState | None) -> str:
    """Tells what films go on from in a file's name; "" if from nothing."""
    leaves = [] if resumed is None else jax.tree.leaves(resumed.halves)
    leaves += [] if given is None else [given]
    return f"{zlib.crc32(b''.join(leaf.tobytes() for leaf in leaves)):08x}" if leaves else ""


def _advice(generator: VideoGenerator, asked: _Asked) -> Iterator[str]:
    """Notes if the run was trained for the other way to draw, or for frames of another size."""
    patch = generator.model.frame_patch
    kind = generator.config.diffusion.get("frame_times", "shared")
    note = f"note: the run was trained with diffusion.frame_times='{kind}': "
    if asked.joint and kind in ("clean_past", "teacher_forcing") and asked.frames > patch:
        yield f"{note}frames drawn all at once lack the finished ones that it reads; leave out --joint"
    elif not asked.joint and kind == "teacher_forcing" and min(asked.frames, asked.chunk or patch) > patch:
        yield f"{note}frames of one chunk read each other noisy, which it never saw; leave out --chunk"
    elif not asked.joint and kind == "shared" and (asked.past or asked.frames > (asked.chunk or patch)):
        yield f"{note}frames that read finished ones fall apart" + "; draw with --joint" * (not asked.past)
    trained = generator.model.frame_height, generator.model.frame_width
    if asked.size not in (None, trained):
        height, width = trained
        yield f"note: the run was trained on frames of {height}x{width}; what it makes of others is untried"


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


def _check_settings(
    settings: dict[str, Any],
    first: FrameSettings,
    later: FrameSettings,
    drawn: slice,
    *,
    kept: bool,
) -> None:
    """Raises an InputError for what was asked of frames that are not drawn.

    Where a state is kept, the guidance of the frames that it is for tells what is in it.
    """
    for name in ("guidance", "steps"):
        given, behind = settings.get(name), settings.get(f"later_{name}")
        if drawn == FIRST and behind is not None and not (kept and name == "guidance"):
            raise InputError(
                f"--later_{name}={behind:g} is of frames behind finished ones, and all of these are drawn at "
                "once: leave it out"
            )
        if drawn == LATER and given is not None and getattr(first, name) != getattr(later, name):
            raise InputError(
                f"--{name}={given:g} is of first frames, and these are drawn behind finished ones, with "
                f"--later_{name}={getattr(later, name):g}: set that, and leave out --{name}"
            )


def _prompts(given: Sequence[str]) -> list[str]:
    """Each may be several, with ; between them or behind."""
    found = []
    for prompt in given:
        parts = [part.strip() for part in prompt.split(";")]
        found += [part for part in parts if part] or [""]  # which is an error later
    return found


def _given(
    file: str, generator: VideoGenerator, resumed: StreamState | None, size: tuple[int, int] | None
) -> np.ndarray:
    """[N, T0, H, W, C] first frames in the space of the model, of the size of the films."""
    model, decoder = generator.model, generator.decoder
    height, width = resumed.size if resumed is not None else size or (model.frame_height, model.frame_width)
    side = 1 if decoder is None else decoder.downsampling  # pixels of a latent
    pixels = model.channels if generator.draws_pixels else 0 if decoder is None else 3
    latents = 0 if generator.draws_pixels else model.channels
    given = read_frames(file, (height * side, width * side), pixels=pixels, latents=latents)
    times = side if given.dtype == np.uint8 else 1
    if given.shape[2:4] != (height * times, width * times):
        high, wide = given.shape[2:4]
        least = times * model.patch_size
        fits = resumed is None and high % least == wide % least == 0
        other = f", or draw films of that size with --size={high // times}x{wide // times}" if fits else ""
        raise InputError(
            f"--from={file} has frames of {high}x{wide}, the films have {height * times}x{width * times}: "
            f"resize it{other}; films drawn here go on from their .npz or --save_state, since pictures of "
            "them are magnified"
        )
    return generator.first_frames(given) if given.dtype == np.uint8 else given


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


def _name(generator: VideoGenerator, asked: _Asked) -> str:
    """A file name that tells of the captions, and of all that differs from the run's own settings."""
    own = generator.config.sampling
    different = dict.fromkeys(asked.captions)
    text = "+".join(different)
    slug = re.sub(r"[^\w+]+", "-", text).strip("-")
    if len(slug.encode()) > SLUG:
        slug = f"{slug[: SLUG // 2]}-{zlib.crc32(text.encode()):08x}"
    name = f"step_{generator.step:07d}_{slug or 'films'}_{asked.frames}_frames"
    if len(asked.captions) > len(different):
        name += f"_{len(asked.captions)}_films"
    if asked.size is not None:
        name += f"_of_{asked.size[0]}x{asked.size[1]}"
    name += "_joint" * asked.joint + (f"_chunks_of_{asked.chunk}" if asked.chunk else "")
    if asked.past:
        name += f"_from_{asked.start}_{asked.past}" if asked.start else f"_continued_{asked.past}"
    name += f"_guidance_{'_then_'.join(_values(asked, 'guidance'))}_seed_{asked.seed}"
    if asked.settings["interval"] != choose_interval(None, own):
        name += "_times_{:g}_to_{:g}".format(*asked.settings["interval"])
    if asked.settings["sampler"] != own.sampler:
        name += f"_{asked.settings['sampler']}"
    steps = [asked.settings["steps"], asked.settings["later_steps"]]
    if steps[asked.drawn] != [each.steps for each in film_settings(own)][asked.drawn]:
        name += f"_{'_then_'.join(_values(asked, 'steps'))}_steps"
    if generator.ema != 0:
        name += "_no_ema" if generator.ema is None else f"_ema_{generator.ema}"
    return name + ".gif"
