"""What scores a model while it trains: given by the caller, for training knows nothing of scores."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ml_collections import ConfigDict

from pom_jax.errors import InputError

Say = Callable[[str], None]
Stops = Callable[[], bool]


class Fid(Protocol):
    """`evaluation.training_fid.TrainingFid`.

    Attributes:
        name: of its number in a row.
    """

    name: str

    def prepare(self, say: Say, moved: Say) -> None:
        """Whatever can be computed before training; `moved` as below."""
        ...

    def __call__(
        self, params: Any, step: int, say: Say, moved: Say, stops: Stops
    ) -> Mapping[str, Any] | None:
        """Scores averaged parameters; gives scalars for the row of this step, or None where it was stopped.

        `moved` is told what comes next, whenever something is done: a watchdog waits for it. `stops` is asked
        now and then whether to stop, by all processes equally often, and they are told the same.
        """
        ...


MakeFid = Callable[[ConfigDict, Any], Fid]  # of the configuration and the network


def open_fid(config: ConfigDict, model: Any, make: MakeFid | None) -> Fid | None:
    """What `config.fid` asks for; None for nothing.

    Raises:
        InputError: the caller gives no way to score, or the files of the section cannot be used.
    """
    every = config.fid.every
    if every == 0:
        return None
    if make is None:
        raise InputError(f"fid.every={every} needs make_fid, which train.py gives; or set it to 0")
    return make(config, model)
