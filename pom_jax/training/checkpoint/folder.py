"""The folder of checkpoints in a workdir: which steps are there, and where those go that are damaged."""

from pathlib import Path

from ml_collections import ConfigDict

from pom_jax.errors import InputError
from pom_jax.training.checkpoint.trouble import reading
from pom_jax.training.config import read_config

FOLDER = "checkpoints"


def checkpoints_folder(workdir: str | Path) -> Path:
    """Where the steps lie, each in a folder of its own."""
    return Path(workdir).absolute() / FOLDER


@reading()
def saved_steps(workdir: str | Path) -> list[int]:
    """Steps with a finished checkpoint, in order; empty where there is none."""
    folder = checkpoints_folder(workdir)
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def latest_step(workdir: str | Path) -> int | None:
    """The newest step with a finished checkpoint, or None."""
    return max(saved_steps(workdir), default=None)


def choose_step(workdir: str | Path, step: int | None) -> int:
    """`step`, or the newest.

    Raises:
        InputError: there is no such checkpoint.
    """
    steps = saved_steps(workdir)
    if not steps:
        raise InputError(f"there is no checkpoint in {checkpoints_folder(workdir)}; train first")
    if step is not None and step not in steps:
        raise InputError(f"there is no checkpoint of step {step} in {workdir}; there are {steps}")
    return steps[-1] if step is None else step


def load_config(workdir: str | Path) -> ConfigDict:
    """The configuration a workdir was trained with.

    Raises:
        InputError: the folder is not a workdir, or its config.json is damaged.
    """
    config = read_config(workdir)
    if config is None:
        raise InputError(f"{workdir} is not a workdir of train.py: there is no config.json in it")
    return config


def quarantine(workdir: str | Path, step: int) -> Path:
    """Moves a damaged checkpoint to WORKDIR/damaged; returns where it is now."""
    place = Path(workdir) / "damaged" / str(step)
    place.parent.mkdir(parents=True, exist_ok=True)
    attempt = 0
    while place.exists():
        attempt += 1
        place = place.with_name(f"{step}-{attempt}")
    (checkpoints_folder(workdir) / str(step)).rename(place)
    return place
