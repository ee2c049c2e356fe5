"""What sample.py does with its flags."""

import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pom_jax.diffusion.guidance import Interval, check_guidance, choose_interval, interval_in_words
from pom_jax.diffusion.samplers import SAMPLERS
from pom_jax.diffusion.schedules import time_grid
from pom_jax.errors import InputError, choose
from pom_jax.sampling.generate import Generator, load
from pom_jax.sampling.pictures import sheet
from pom_jax.sampling.progress import SamplingProgress
from pom_jax.sampling.upscale import START, read_low
from pom_jax.sampling.writers import ANIMATIONS, check_output, replace_file, write
from pom_jax.training.preview import labels_in_turn

SHOWN = 20  # classes that an error lists at most
ROWS = 10  # of a sheet, where neither --classes nor --num says how many


def sample_to_file(
    workdir: Path,
    *,
    out: str | None = None,
    classes: Sequence[str] | None = None,
    num: int | None = None,
    per_class: int | None = None,
    step: int | None = None,
    ema: int | None = 0,
    autoencoder: str | None = None,
    guidance: float | Sequence[float] | None = None,
    steps: int | Sequence[int] | None = None,
    sampler: str | Sequence[str] | None = None,
    interval: Sequence[float] | None = None,
    seed: int = 0,
    upscale_from: str | None = None,
    upscale_start: float = START,
    **settings: Any,
) -> Path:
    """Samples from a workdir and writes the result where `out` says.

    Args:
        workdir: of train.py.
        out: file to write; its ending says what (`writers.write`). By default a picture among the run's
            samples, whose name holds all that differs from the run's own settings.
        classes: words of --classes: class numbers, ranges of them, and names.
        num: how many images.
        per_class: makes a sheet with a row of so many images for each class.
        step, ema, autoencoder: see `load`.
        guidance, steps, sampler: of `Generator.sample_array`. Several values of one of them make a sheet with
            a column for each, from the same noise along a row.
        upscale_from: .npz of smaller samples to start from, see `upscale.read_low`; labels are those in it.
        interval, seed, upscale_start, settings: of `Generator.sample_array`.

    Returns:
        The file.

    Raises:
        InputError: whatever is wrong with any of these, before anything is compiled or overwritten.
    """
    choices = {"guidance": guidance, "steps": steps, "sampler": sampler}
    varied = _varied(choices)
    as_sheet = per_class is not None or varied is not None
    _check_request(out, num, per_class, varied)
    _check_upscaling(upscale_from, classes, num, per_class)
    generator = load(workdir, step, ema, autoencoder)
    interval = choose_interval(interval, generator.config.sampling)
    columns = _columns(choices, varied, generator.config.sampling)
    usual = generator.config.sampling.num
    if as_sheet:
        usual = min(ROWS, len(generator.classes)) if classes is None else 1  # those that are named
    low = None
    if upscale_from is None:
        rows = spread(generator.classes, classes, num or usual)
    else:
        low, rows = read_low(upscale_from, generator.config.model, pixels=generator.draws_pixels)
    labels = np.repeat(rows, per_class or 1)
    name = _name(generator, labels, columns, varied, per_class, seed)
    if interval != choose_interval(None, generator.config.sampling):
        name += "_times_{:g}_to_{:g}".format(*interval)
    if upscale_from is not None:
        name += f"_from_{Path(upscale_from).stem}_at_{upscale_start:g}"
    path = check_output(out or workdir / "samples" / f"{name}.png")

    animated = path.suffix in ANIMATIONS
    draw = generator.sample if generator.makes_pixels or path.suffix != ".npz" else generator.sample_array
    with SamplingProgress(title=_title(generator, len(labels), columns, varied, interval, seed)) as progress:
        settings |= {"interval": interval, "seed": seed, "trajectory": animated, "progress": progress}
        settings |= {"low": low, "upscale_start": upscale_start}
        drawn = [draw(labels, **column, **settings) for column in columns]
    if as_sheet:
        images = np.stack(drawn, axis=1)
        picture = sheet(
            images.reshape(len(rows), -1, *images.shape[2:]),
            [generator.classes[label] for label in rows],
            [_shown(column[varied]) for column in columns] if varied else (),
            varied or "",
        )
        replace_file(path, lambda file: picture.save(file, "png"))
    else:
        write(path, drawn[0], labels, generator.classes)
    print(f"written: {path}", flush=True)
    return path


def _varied(choices: Mapping[str, Any]) -> str | None:
    """Which setting has several values."""
    varied = [name for name, values in choices.items() if _several(values)]
    if len(varied) > 1:
        raise InputError(
            f"{' and '.join(f'--{name}' for name in varied)} have several values: a sheet has one setting in "
            "its columns, give one value of the others"
        )
    return varied[0] if varied else None


def _several(values: Any) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 1


def _check_request(out: str | None, num: int | None, per_class: int | None, varied: str | None) -> None:
    for flag, value in (("num", num), ("per_class", per_class)):
        if value is not None and value < 1:
            raise InputError(f"--{flag}={value}: at least one image")
    if out is not None and check_output(out).suffix != ".png" and (varied or per_class):
        raise InputError(
            f"--out={out}: a sheet is a picture, .png; animations and arrays are made with one value of "
            "--guidance, --steps and --sampler and without --per_class"
        )
    if per_class is not None and (varied or num is not None):
        raise InputError(
            f"--per_class={per_class} fills a row for each class: give it without --num, and with one value "
            "of --guidance, --steps and --sampler"
        )


def _check_upscaling(file: str | None, *chosen: Any) -> None:
    if file is not None and any(value is not None for value in chosen):
        raise InputError(
            f"--upscale_from={file} says which classes, and how many images: leave out --classes, --num and "
            "--per_class"
        )


def _columns(choices: Mapping[str, Any], varied: str | None, defaults: ConfigDict) -> list[dict[str, Any]]:
    """The settings of each column; one column where nothing varies."""
    found = {name: defaults[name] if values is None else values for name, values in choices.items()}
    columns = [found] if varied is None else [found | {varied: value} for value in found[varied]]
    for column in columns:  # all before the first is drawn
        check_guidance(column["guidance"])
        choose("sampler", column["sampler"], SAMPLERS)
        time_grid(column["steps"])
    return columns


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _title(
    generator: Generator,
    count: int,
    columns: Sequence[Mapping[str, Any]],
    varied: str | None,
    interval: Interval,
    seed: int,
) -> str:
    """What is about to be drawn, in a line."""
    words = {name: _shown(value) for name, value in columns[0].items()}
    if varied is not None:
        words[varied] = ", ".join(_shown(column[varied]) for column in columns)
    when = interval_in_words(interval, *(column["guidance"] for column in columns))
    return (
        f"{generator.config.name}: {count * len(columns):,} images, {generator.origin}, {words['sampler']}, "
        f"{words['steps']} steps, guidance {words['guidance']}{when}, seed {seed}"
    )


def _name(
    generator: Generator,
    labels: np.ndarray,
    columns: Sequence[Mapping[str, Any]],
    varied: str | None,
    per_class: int | None,
    seed: int,
) -> str:
    """A file name that holds all that differs from the run's own settings."""
    defaults = generator.config.sampling
    chosen = dict(columns[0])
    if varied is not None:
        chosen[varied] = "-".join(_shown(column[varied]) for column in columns)
    name = f"step_{generator.step:07d}_guidance_{_shown(chosen['guidance'])}_seed_{seed}"
    if chosen["sampler"] != defaults.sampler:
        name += f"_{chosen['sampler']}"
    if chosen["steps"] != defaults.steps:
        name += f"_{chosen['steps']}_steps"
    if per_class is not None:
        name += f"_{per_class}_per_class"
        labels = labels[::per_class]
    if len(labels) != defaults.num:
        name += f"_{len(labels)}_{'classes' if per_class else 'images'}"
    if not np.array_equal(labels, labels_in_turn(len(generator.classes), len(labels))):
        text = "+".join(map(str, dict.fromkeys(labels.tolist())))
        # File names end at 255 bytes.
        name += f"_classes_{text if len(text) <= 60 else f'{zlib.crc32(text.encode()):08x}'}"
    if generator.ema != 0:
        name += "_no_ema" if generator.ema is None else f"_ema_{generator.ema}"
    return name


def spread(names: Sequence[str], classes: Sequence[str] | None, num: int) -> np.ndarray:
    """Labels for --classes and --num.

    Args:
        names: of the classes of the model, in order.
        classes: words such as "3", "0-9" or one of the names; a number is never looked up as a name. All
            classes by default.
        num: how many images; every class that is named gets one at least.

    Returns:
        [num or more], going through the classes in turn.

    Raises:
        InputError: a word that is no number, range or name, or a class that the model does not have.
    """
    if classes is None:
        return labels_in_turn(len(names), num)
    if not classes:
        raise InputError(f"--classes= names no class; {_listed(names)}; without --classes all are drawn")
    numbers = []
    for word in classes:
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", word.strip())
        if found:
            first, last = int(found[1]), int(found[2] or found[1])
        elif word.strip() in names:
            first = last = names.index(word.strip())
        else:
            raise InputError(
                f"--classes={','.join(classes)}: {word!r} is not a class number, a range such as 0-9 or the "
                f"name of a class; {_listed(names)}"
            )
        if not first <= last < len(names):
            raise InputError(
                f"--classes={','.join(classes)}: {word!r} is not among the classes of the model; "
                f"{_listed(names)}"
            )
        numbers.extend(range(first, last + 1))
    return np.resize(numbers, max(num, len(numbers)))


def _listed(names: Sequence[str]) -> str:
    if list(names) == [str(number) for number in range(len(names))]:
        return f"the classes are 0 to {len(names) - 1}"
    shown = [f"{number} {name}" for number, name in enumerate(names[:SHOWN])]
    return f"the classes are {', '.join(shown)}" + f" ... {len(names) - 1} {names[-1]}" * (len(names) > SHOWN)
