"""What sample.py does with its flags."""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pom_jax.errors import InputError
from pom_jax.sampling.generate import Generator, load
from pom_jax.sampling.progress import SamplingProgress
from pom_jax.sampling.writers import ANIMATIONS, check_output, write
from pom_jax.training.preview import labels_in_turn

SHOWN = 20  # classes that an error lists at most


def sample_to_file(
    workdir: Path,
    *,
    out: str | None = None,
    classes: Sequence[str] | None = None,
    num: int | None = None,
    step: int | None = None,
    ema: int | None = 0,
    autoencoder: str | None = None,
    guidance: float | None = None,
    seed: int = 0,
    **settings: Any,
) -> Path:
    """Samples from a workdir and writes the result where `out` says.

    Args:
        workdir: of train.py.
        out: file to write; its ending says what (`writers.write`). By default a grid among the run's samples,
            whose name holds all that differs from the run's own settings.
        classes: words of --classes: class numbers, ranges of them, and names.
        num: how many images.
        step, ema, autoencoder: see `load`.
        guidance, seed, settings: of `Generator.sample_array`.

    Returns:
        The file.

    Raises:
        InputError: whatever is wrong with any of these, before anything is compiled or overwritten.
    """
    if out is not None:
        check_output(out)
    if num is not None and num < 1:
        raise InputError(f"--num={num}: at least one image")
    generator = load(workdir, step, ema, autoencoder)
    defaults = generator.config.sampling
    labels = spread(generator.classes, classes, num or defaults.num)
    guidance = defaults.guidance if guidance is None else guidance
    given = {name: settings.get(name) for name in ("sampler", "steps")}
    sampler, steps = (defaults[name] if value is None else value for name, value in given.items())
    name = _name(generator, labels, guidance, seed, sampler, steps)
    path = check_output(out or workdir / "samples" / name)

    title = (
        f"{generator.config.name}: {len(labels):,} images, {generator.origin}, {sampler}, {steps} steps, "
        f"guidance {guidance:g}, seed {seed}"
    )
    with SamplingProgress(title=title) as progress:
        animated = path.suffix in ANIMATIONS
        draw = generator.sample if generator.makes_pixels or path.suffix != ".npz" else generator.sample_array
        images = draw(
            labels, guidance=guidance, seed=seed, progress=progress, trajectory=animated, **settings
        )
    write(path, images, labels, generator.classes)
    print(f"written: {path}", flush=True)
    return path


def _name(
    generator: Generator, labels: np.ndarray, guidance: float, seed: int, sampler: str, steps: int
) -> str:
    defaults = generator.config.sampling
    name = f"step_{generator.step:07d}_guidance_{guidance:g}_seed_{seed}"
    if sampler != defaults.sampler:
        name += f"_{sampler}"
    if steps != defaults.steps:
        name += f"_{steps}_steps"
    if len(labels) != defaults.num:
        name += f"_{len(labels)}_images"
    if not np.array_equal(labels, labels_in_turn(len(generator.classes), len(labels))):
        text = "+".join(map(str, dict.fromkeys(labels.tolist())))
        # File names end at 255 bytes.
        name += f"_classes_{text if len(text) <= 60 else f'{zlib.crc32(text.encode()):08x}'}"
    if generator.ema != 0:
        name += "_no_ema" if generator.ema is None else f"_ema_{generator.ema}"
    return name + ".png"


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
