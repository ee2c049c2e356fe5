"""What sample.py does with its flags."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pom_jax.errors import InputError
from pom_jax.sampling.generate import load
from pom_jax.sampling.progress import SamplingProgress
from pom_jax.sampling.writers import ANIMATIONS, check_output, write
from pom_jax.training.preview import labels_in_turn


def sample_to_file(
    workdir: Path,
    *,
    out: str | None = None,
    classes: Sequence[str] | None = None,
    num: int | None = None,
    step: int | None = None,
    ema: int | None = 0,
    guidance: float | None = None,
    seed: int = 0,
    **settings: Any,
) -> Path:
    """Samples from a workdir and writes the result where `out` says.

    Args:
        workdir: of train.py.
        out: file to write; its ending says what (`writers.write`). By default a grid among the run's samples.
        classes: words of --classes: class numbers and ranges of them.
        num: how many images.
        step, ema: see `load`.
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
    generator = load(workdir, step, ema)
    labels = spread(generator.config.model.num_classes, classes, num or generator.config.sampling.num)
    defaults = generator.config.sampling
    guidance = defaults.guidance if guidance is None else guidance
    name = f"step_{generator.step:07d}_guidance_{guidance:g}_seed_{seed}.png"
    path = check_output(out or workdir / "samples" / name)

    sampler, steps = settings.get("sampler") or defaults.sampler, settings.get("steps") or defaults.steps
    print(
        f"{generator.config.name}: {len(labels):,} images, {generator.origin}, {sampler}, {steps} steps, "
        f"guidance {guidance:g}, seed {seed}",
        flush=True,
    )
    with SamplingProgress() as progress:
        animated = path.suffix in ANIMATIONS
        draw = generator.sample if generator.makes_pixels or path.suffix != ".npz" else generator.sample_array
        images = draw(
            labels, guidance=guidance, seed=seed, progress=progress, trajectory=animated, **settings
        )
    write(path, images, labels, generator.classes)
    print(f"written: {path}", flush=True)
    return path


def spread(num_classes: int, classes: Sequence[str] | None, num: int) -> np.ndarray:
    """Labels for --classes and --num.

    Args:
        num_classes: of the model.
        classes: words such as "3" or "0-9"; all by default.
        num: how many images; every class that is named gets one at least.

    Returns:
        [num or more], going through the classes in turn.

    Raises:
        InputError: a class that is not a number or a range, or that the model does not have.
    """
    if classes is None:
        return labels_in_turn(num_classes, num)
    if not classes:
        raise InputError(
            f"--classes= names no class; give numbers from 0 to {num_classes - 1}, or leave it out"
        )
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
