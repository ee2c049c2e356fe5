"""Scores of runs of moving digits: what eval.py calls for a model of video."""

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pom_jax import models
from pom_jax.data import Records, moving_digits
from pom_jax.data.words import decode
from pom_jax.diffusion.film_settings import film_settings
from pom_jax.diffusion.guidance import choose_interval, interval_in_words
from pom_jax.errors import InputError, choose
from pom_jax.evaluation import moving_digits as clip_scores
from pom_jax.evaluation.evaluate import PACKAGES
from pom_jax.evaluation.video_protocols import (
    PROTOCOLS,
    HeldOut,
    Run,
    check_protocol,
    fewest_to_swap,
    fitting,
    follow,
)
from pom_jax.evaluation.video_report import VideoReport
from pom_jax.sampling.progress import SamplingProgress
from pom_jax.sampling.video import VideoGenerator, load_video
from pom_jax.training import checkpoint

CLIPS = 500  # that are drawn a protocol, by default
SPLITS = ("validation", "test")
Say = Callable[[str], None]


def is_video(workdir: str | Path) -> bool:
    """Whether a workdir is a run of a model of video; raises an InputError for no workdir."""
    return models.family(checkpoint.load_config(workdir).model) is models.Polymorpher


def evaluate_workdirs(
    workdirs: Sequence[str | Path],
    protocols: Sequence[str] | None = None,
    *,
    split: str = "test",
    num: int = CLIPS,
    guidance: float | None = None,
    later_guidance: float | None = None,
    interval: Sequence[float] | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    later_steps: int | None = None,
    step: int | None = None,
    ema: int | None = 0,
    seed: int = 0,
    batch_size: int = 256,
    data: str | Path | None = None,
    say: Say = print,
) -> VideoReport:
    """Draws clips with models of moving digits, side by side, and scores them.

    Args:
        workdirs: of train.py, one or several that learned from the same data.
        protocols: of `video_protocols.PROTOCOLS`; all that the models and captions allow by default.
        split: whose captions and first frames: "test", or "validation" to choose recipes.
        num: clips of a protocol: the first so many of the split.
        guidance, later_guidance, interval, sampler, steps, later_steps: of every run; the runs' own by
            default.
        step, ema: which checkpoint and which of its averages (None: the parameters themselves).
        seed: of the noise.
        batch_size: clips drawn at once.
        data: folder of the moving digits; the one of the first run by default.
        say: told what happens.

    Raises:
        InputError: no run or one of another kind, no data or other data, or a setting that cannot be used;
            before anything is drawn.
    """
    choose("--split", split, SPLITS)
    for name in protocols or ():
        choose("--protocol", name, PROTOCOLS)
    if batch_size < 1 or not 0 <= seed < 2**32:
        raise InputError(f"batch_size={batch_size} must be at least 1, seed={seed} from 0 to {2**32 - 1}")
    generators = [load_video(workdir, step=step, ema=ema) for workdir in workdirs]
    records = _open(data or generators[0].config.data.dir, split)
    held = _held_out(records, num)
    frames = {
        "guidance": guidance,
        "later_guidance": later_guidance,
        "steps": steps,
        "later_steps": later_steps,
    }
    told = [_settings(generator, frames, sampler, interval) for generator in generators]  # refuses wrong ones
    for workdir, generator in zip(workdirs, generators, strict=True):
        _check(generator, records, workdir)

    settings = frames | {"interval": interval, "sampler": sampler, "seed": seed, "batch_size": batch_size}
    runs = [_run(name, generator, settings) for name, generator in _names(workdirs, generators).items()]
    if len({run.frames for run in runs}) > 1:
        lengths = ", ".join(f"{run.name} {run.frames}" for run in runs)
        raise InputError(f"runs of clips of one length can be compared, these have frames of {lengths}")
    plan = _plan(protocols, runs, held)
    if "memory" in plan:
        _check_swaps(records, num)
    say(f"fitting the classifier on the real training digits, comparing with those of split {split}")
    reference = clip_scores.fit(split)
    found = []
    for place, (name, own) in enumerate(plan.items(), 1):
        prefix = f"[{place}/{len(plan)}] {name}: "
        found.append(follow(name, own, held, reference, lambda line, prefix=prefix: say(prefix + line)))
    manifest = records.manifest
    about = {
        "clips": f"{num:,} of split {split}, seed {seed}",
        **{f"run {run.name}": text for run, text in zip(runs, told, strict=True)},
        "data": f"{manifest.name}, {held.size} x {held.size}, checksum {manifest.digest}",
        "Fréchet distance of the training to the held-out digits": f"{reference.floor:.4f}",
        "classifier": "SVC(gamma=0.001, C=10) on the training digits, cut out by their ink",
        "versions": f"Python {platform.python_version()}, "
        + ", ".join(f"{package} {version(package)}" for package in PACKAGES),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    return VideoReport(", ".join(map(str, workdirs)), found, about)


def _plan(protocols: Sequence[str] | None, runs: Sequence[Run], held: HeldOut) -> dict[str, list[Run]]:
    """Which runs go through which protocols; raises an InputError for one that they cannot follow."""
    if protocols:
        for name in protocols:
            check_protocol(name, runs, held)
        return {name: list(runs) for name in protocols}
    return {name: list(runs) for name in fitting(runs, held)}


def _open(data: str | Path, split: str) -> Records:
    if not data:
        raise InputError("the run names no folder of data: give it, --data=DIR")
    records = Records(data, split)
    if not records.manifest.name.startswith(moving_digits.NAME):
        raise InputError(
            f"{data} holds {records.manifest.name}, and the scores of video are of {moving_digits.NAME}. "
            "Other clips: draw them with sample.py, put them and real ones through a network for video, such "
            "as I3D, and compare the features, --features=FILE --real_features=FILE; frames are compared as "
            "pictures are, --images=FOLDER --reference=PATH --inception=FILE"
        )
    return records


def _held_out(records: Records, num: int) -> HeldOut:
    if not 2 <= num <= len(records):
        raise InputError(f"--num={num}: split {records.split} has clips to draw 2 to {len(records):,} by")
    batch = records.gather(np.arange(num))
    words = records.manifest.words
    prompts = [decode(text, words) for text in batch["text"]]
    shown = moving_digits.Clips(batch["digit"], batch["start"], batch["direction"])
    told = bool({*moving_digits.DIGITS} & {*words})
    return HeldOut(records.split, prompts, batch["label"], shown, records.manifest.sample_shape[1], told)


def _check_swaps(records: Records, num: int) -> None:
    """Raises an InputError if one of the clips has no other of its direction to swap first frames with."""
    needed = fewest_to_swap(records.gather(np.arange(len(records)))["direction"], num)
    if needed > num:
        way = f"give at least {needed}" if needed <= len(records) else "ask for other protocols"
        raise InputError(
            f"--num={num}: memory swaps the first frames of clips of one direction, and one of these clips "
            f"has its direction alone; {way}"
        )


def _check(generator: VideoGenerator, records: Records, workdir: str | Path) -> None:
    """Raises an InputError for a model of other clips or captions."""
    manifest = records.manifest
    wanted, found = manifest.sample_shape[1:], models.sample_shape(generator.model)[1:]
    if found != wanted:
        raise InputError(
            f"{workdir} draws frames of {found}, the data set in {records.folder} has {wanted}; give the "
            "data that the run learned from, --data=DIR"
        )
    if generator.words != manifest.words:
        raise InputError(
            f"{workdir} knows the words {', '.join(generator.words[1:]) or 'of no table'}; the data set in "
            f"{records.folder} has {', '.join(manifest.words[1:])}: only runs of the same captions compare"
        )


def _names(workdirs: Sequence[str | Path], generators: Sequence[VideoGenerator]) -> dict[str, VideoGenerator]:
    """The runs by the names of their recipes, or by their folders where several have one."""
    names = [generator.config.name for generator in generators]
    if len({*names}) < len(names):
        names = [str(workdir) for workdir in workdirs]
    if len({*names}) < len(names):
        raise InputError(f"a run is given twice: {', '.join(names)}")
    return dict(zip(names, generators, strict=True))


def _run(name: str, generator: VideoGenerator, settings: dict) -> Run:
    def draw(prompts: Sequence[str], frames: int, joint: bool, given: np.ndarray | None) -> np.ndarray:
        with SamplingProgress(unit="frames") as progress:
            return generator.sample_array(
                prompts, frames, joint=joint, given=given, progress=progress, **settings
            )

    return Run(name, generator.model.frames, generator.model.frame_causal, draw)


def _settings(
    generator: VideoGenerator,
    frames: Mapping[str, Any],
    sampler: str | None,
    interval: Sequence[float] | None,
) -> str:
    own = generator.config.sampling
    first, later = film_settings(own, **frames)
    guidance, steps = (
        " and later ".join(dict.fromkeys(f"{value:g}" for value in both))
        for both in zip(first, later, strict=True)
    )
    when = interval_in_words(choose_interval(interval, own), first.guidance, later.guidance)
    return f"{sampler or own.sampler}, {steps} steps, guidance {guidance}{when}, {generator.origin}"
