"""The folder of checkpoints in a workdir: which steps are there, and where those go that are damaged.

Where config.json names a folder of a bucket, train.remote, they are there; that folder is a workdir too, with
nothing else in it.
"""

from pathlib import Path

from ml_collections import ConfigDict

from pom_jax import remote
from pom_jax.errors import InputError
from pom_jax.files import names_in
from pom_jax.training.checkpoint.trouble import reading
from pom_jax.training.config import read_config

FOLDER = "checkpoints"
COMMITTED = "commit_success.txt"  # in a step that is complete, in a bucket, where no folder can be renamed


@reading()
def checkpoints_folder(workdir: str | Path) -> Path:
    """Where the steps lie, each in a folder of its own."""
    if not remote.is_remote(workdir):
        config = read_config(workdir)
        place: str = "" if config is None else config.train.get("remote", "")
        workdir = place or Path(workdir).absolute()
    return remote.folder(workdir) / FOLDER


@reading()
def saved_steps(workdir: str | Path) -> list[int]:
    """Steps with a finished checkpoint, in order; empty where there is none."""
    folder = checkpoints_folder(workdir)
    if remote.is_remote(folder):
        names = remote.names(folder)
    else:
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return sorted(int(name) for name in names if name.isdigit() and _is_complete(folder / name))


@reading()
def is_saved(workdir: str | Path, step: int) -> bool:
    """Whether there is a finished checkpoint of this step."""
    return _is_complete(checkpoints_folder(workdir) / str(step))


def _is_complete(step: Path) -> bool:
    return COMMITTED in remote.names(step) if remote.is_remote(step) else step.is_dir()


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
        raise InputError(
            f"there is no checkpoint in {checkpoints_folder(workdir)} yet; let train.py run in that workdir "
            "until it saves one, or name another run"
        )
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
        bucket = ", or no such bucket" if remote.is_remote(workdir) else ""
        raise InputError(f"{workdir} is not a workdir of train.py: there is no config.json in it{bucket}")
    return config


def quarantine(workdir: str | Path, step: int) -> Path:
    """Moves a damaged checkpoint to `damaged`, beside the folder of the others; returns where it is now."""
    home = checkpoints_folder(workdir).parent
    place = (home if remote.is_remote(home) else Path(workdir)) / "damaged" / str(step)
    attempt, taken = 0, set(names_in(place.parent))
    while place.name in taken:
        attempt += 1
        place = place.with_name(f"{step}-{attempt}")
    if remote.is_remote(place):
        remote.move(home / FOLDER / str(step), place)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        (home / FOLDER / str(step)).rename(place)
    return place
