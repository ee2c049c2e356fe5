"""Checkpoints of others -> workdirs that train.py, sample.py and eval.py take, and back."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from pom_jax import models
from pom_jax.diffusion.guidance import resolution_guidance
from pom_jax.diffusion.schedules import resolution_shift
from pom_jax.errors import InputError, choose
from pom_jax.interop.export_model import export_model
from pom_jax.interop.files import check_output, read_tensors, write_tensors
from pom_jax.interop.image_models import Imported, import_model
from pom_jax.interop.video_models import import_video_model, of_clips
from pom_jax.training import checkpoint
from pom_jax.training.config import check_config, write_config
from pom_jax.training.optim import make_optimizer
from pom_jax.training.state import initial_state

# What a model was trained for, as fields of `config.diffusion`: HoMM's modes fm and eps, DiT and SiT.
_FLOW = {"path": "flow", "prediction": "velocity"}
OBJECTIVES: dict[str, dict[str, str]] = {
    "flow": _FLOW,
    "noise": {"path": "variance", "variance_schedule": "linear", "prediction": "noise"},
    "dit": {"path": "variance", "variance_schedule": "ddpm", "prediction": "noise"},
    "sit": _FLOW,
}


def import_workdir(
    file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: ConfigDict,
    *,
    objective: str | None,
    **told: Any,
) -> tuple[Imported, ConfigDict]:
    """Makes a workdir of a file: step 0, whose parameters and averages are all the file's.

    Args:
        file: see `read_tensors`.
        out: the workdir; must not exist, or be empty.
        recipe: what the file does not tell: training, data, sampling. A model of HoMM's branch `upscale` gets
            the time shift and the guidance of its resolution.
        objective: a name of `OBJECTIVES`.
        told: the other arguments of `import_model`, or of `import_video_model` where the file holds one for
            video; None is the same as left out, and those of the other must be None or False.

    Returns:
        The model, and the configuration of the workdir.

    Raises:
        InputError: anything that cannot be used, before anything is written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there and not empty; choose another --out")
    choose("objective", objective, OBJECTIVES)
    tensors = read_tensors(file)
    make = import_video_model if of_clips(tensors) else import_model
    imported = make(tensors, objective=objective, **_fitting(make, told))
    config = recipe.copy_and_resolve_references()
    config.model.update(imported.fields)
    config.diffusion.update(OBJECTIVES[str(objective)])
    if imported.upscale:
        config.diffusion.shift = resolution_shift(imported.model.image_size)
        config.sampling.guidance = resolution_guidance(imported.model.image_size)
    check_config(config)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    key, averages = jax.random.key(config.seed), len(config.ema.decays)
    state = initial_state(key, lambda _: imported.params, optimizer, averages)
    checkpoint.check_space(out, checkpoint.tree_bytes(state), "the checkpoint")
    kept = checkpoint.Checkpoints(out, keep_last=config.train.keep_last, keep_best=config.train.keep_best)
    try:
        kept.save(0, state)
    finally:
        kept.close()
    write_config(out, config)  # last: without a checkpoint it would pass for a run that has not begun
    return imported, config


def export_workdir(
    workdir: str | Path,
    file: str | os.PathLike[str],
    *,
    step: int | None = None,
    ema: int | None = 0,
) -> int:
    """Writes the parameters of a run as a .safetensors file with the names of the authors' model.

    Args:
        workdir: of train.py, or of `import_workdir`.
        file: to write.
        step: which checkpoint; the newest by default.
        ema: which of the averages; None for the parameters themselves.

    Returns:
        The step.

    Raises:
        InputError: no run or checkpoint, a model that the authors do not have, or another ending.
    """
    check_output(file)
    config = checkpoint.load_config(workdir)
    model = models.build(config.model)
    params, step = checkpoint.restore_params(workdir, step, ema)
    write_tensors(file, export_model(model, params))
    return step


def _fitting(make: Callable[..., Imported], told: dict[str, Any]) -> dict[str, Any]:
    """What is told to a function that makes a model, but for what is None, or False and not of it."""
    known = inspect.signature(make).parameters
    given = {
        n: value for n, value in told.items() if value is not None and (n in known or value is not False)
    }
    for name, value in given.items():
        if name not in known:
            what = "video" if make is import_video_model else "images"
            raise InputError(f"{name} = {value!r}, but the file holds a model for {what}: leave it out")
    return given


def overrides(recipe: ConfigDict, config: ConfigDict) -> list[str]:
    """The flags that make of a recipe the configuration of a workdir."""
    return [
        f"--config.{section}.{name}={value}"
        for section in ("model", "diffusion", "sampling")
        for name, value in config[section].items()
        if recipe[section][name] != value
    ]
