"""What sample.py does with its flags."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pom_jax.errors import InputError
from pom_jax.sampling.generate import Generator, load
from pom_jax.sampling.progress import SamplingProgress
from pom_jax.sampling.writers import ANIMATIONS, check_output, write


def sample_to_file(
    workdir: Path,
    *,
    out: str | None = None,
    classes: Sequence[str] | None = None,
    num: int | None = None,
    step: int | None = None,
    ema: int | None = 0,
    **settings: Any,
) -> Path:
    """Samples from a workdir and writes the result where `out` says.

    Args:
        workdir: of train.py.
        out: file to write; its ending says what (`writers.write`). By default a grid among the run's samples.
        classes: words of --classes: class numbers and ranges of them.
        num: how many images.
        step, ema: see `load`.
        settings: of `Generator.sample_array`.

    Returns:
        The file.

    Raises:
        InputError: whatever is wrong with any of these, before anything is compiled or overwritten.
    """
    if out is not None:
        check_output(out)
    if num is not None and num < 1:
        raise InputError(f"--num={num}: at least one image")
    generator = load(workdir, step, ema)
    labels = spread(generator.config.model.num_classes, classes, num or generator.config.sampling.num)
    guidance = settings.get("guidance")
    if guidance is None:
        guidance = generator.config.sampling.guidance
    default = (
        workdir / "samples" / f"step_{generator.step:07d}_guidance_{guidance:g}_seed_{settings['seed']}.png"
    )
    path = check_output(out or default)

    print(_describe(generator, len(labels), guidance, ema, settings), flush=True)
    with SamplingProgress() as progress:
        animated = path.suffix in ANIMATIONS
        draw = generator.sample if generator.makes_pixels or path.suffix != ".npz" else generator.sample_array
        images = draw(labels, progress=progress, trajectory=animated, **settings)
    write(path, images, labels, generator.classes)
    print(f"written: {path}", flush=True)
    return path


def _describe(
    generator: Generator, count: int, guidance: float, ema: int | None, settings: dict[str, Any]
) -> str:
    defaults = generator.config.sampling
    sampler, steps = settings.get("sampler") or defaults.sampler, settings.get("steps") or defaults.steps
    params = "parameters" if ema is None else f"EMA {generator.config.ema.decays[ema]:g}"
    return (
        f"{generator.config.name}: {count:,} images, {params} of step {generator.step:,}, {sampler}, "
        f"{steps} steps, guidance {guidance:g}, seed {settings['seed']}"
    )


def spread(num_classes: int, classes: Sequence[str] | None, num: int) -> np.ndarray:
    """Labels [num or more] that go through the classes in turn; of too many classes, evenly spaced ones.

    Raises:
        InputError: a class that is not a number or a range, or that the model does not have.
    """
    if classes is None:
        if num < num_classes:
            return np.arange(num) * num_classes // num
        return np.arange(num) % num_classes
    numbers = []
    for word in classes:
        found = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", word)
        if not found:
            raise InputError(
                f"--classes={','.join(classes)}: {word!r} is not a class number or a range such as 0-9"
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < num_classes:
            raise InputError(
                f"--classes={','.join(classes)}: {word!r} is not among the classes of the model, "
                f"0 to {num_classes - 1}"
            )
        numbers.extend(range(first, last + 1))
    return np.resize(numbers, max(num, len(numbers)))
