"""Losses that cannot be, and whether the machine or the run is to blame.

A run whose loss is not finite for many steps, or leaps up, is taken back to its last checkpoint and computes
the same steps again. If the numbers are right then, the fault has passed: a flipped bit, a broken device; the
run goes on. If they are wrong again, the checkpoint may have been spoiled before it was saved: it is set
aside, and the steps are computed once more from the one before. Numbers that are wrong then too last: data,
model or learning rate are to blame, and the run ends.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from pom_jax import cluster
from pom_jax.errors import InputError
from pom_jax.training.checkpoint import quarantine, steps_of_first

RECENT = 100  # losses that a new one is compared with
FEWEST = 20  # of them, before one can be called absurd


class WrongNumbers(Exception):
    """The numbers of a step cannot be right.

    Attributes:
        step: whose numbers they are.
        loss: of that step; None where its state is not finite, which is known once that is saved.
        limit: the largest loss that would have been believed.
        suspect: the numbers that were being computed again when these came, if any were.
        aside: the step of the checkpoint that was set aside for them, if one was.
    """

    def __init__(
        self, what: str, step: int, loss: float | None, limit: float, suspect: "WrongNumbers | None" = None
    ):
        super().__init__(what)
        self.step, self.loss, self.limit, self.suspect = step, loss, limit, suspect
        self.aside: int | None = None


class LastingFault(InputError):
    """Wrong numbers that came again. To start such a run once more would end in the same way."""

    exit_code = 3


class NumberCheck:
    """Watches the losses of a run, and tells the verdict when one that was wrong is computed again.

    Args:
        max_skipped: steps in a row without a finite loss and gradient that are too many.
        absurd: a loss this many times the largest of the last 100 is wrong; 0 = none is.
        suspect: what is computed again, if anything is.
    """

    def __init__(self, max_skipped: int, absurd: float, suspect: WrongNumbers | None = None):
        self._max_skipped, self._absurd, self._suspect = max_skipped, absurd, suspect
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._skipped = 0

    def add(self, step: int, row: Mapping[str, float]) -> str:
        """Takes the numbers of a step.

        Returns:
            The verdict of what was wrong before and is right now, at that step; else "".

        Raises:
            WrongNumbers: they are wrong.
        """
        loss, self._skipped = row["loss"], int(row["skipped_in_a_row"])
        most = max(self._recent) if len(self._recent) >= FEWEST else math.inf
        limit = self._absurd * most if self._absurd and most else math.inf
        if self._skipped >= self._max_skipped:
            steps = f"{self._skipped} steps in a row, up to step {step:,}"
            what = f"the loss or the gradient was not finite in {steps}"
            raise WrongNumbers(what, step, loss, limit, self._suspect)
        if math.isfinite(loss):
            if loss > limit:
                what = f"the loss of step {step:,} is {loss:.4g}, and was at most {most:.4g} shortly before"
                raise WrongNumbers(what, step, loss, limit, self._suspect)
            self._recent.append(loss)
        suspect = self._suspect
        if suspect is None or suspect.loss is None or step < suspect.step:
            return ""
        self._suspect = None
        if not math.isfinite(loss) or loss > suspect.limit:
            raise WrongNumbers(str(suspect), step, loss, suspect.limit, suspect)
        return _verdict(suspect, f"step {step:,} has the loss {loss:.4g} (it had {suspect.loss:.4g})")

    def saved(self, step: int) -> str:
        """Takes the step of a checkpoint that is complete, and is therefore finite; returns as `add` does."""
        suspect = self._suspect
        if suspect is None or suspect.loss is not None or step < suspect.step:
            return ""
        self._suspect = None
        return _verdict(suspect, f"the state after step {step:,} is finite")

    def not_finite(self, step: int, which: str) -> WrongNumbers:
        """What is wrong with a state that could not be saved for its leaves that are not finite."""
        return WrongNumbers(f"the state after step {step:,} is {which}", step, None, math.inf, self._suspect)


def _verdict(suspect: WrongNumbers, found: str) -> str:
    """Of numbers that are right when they are computed again."""
    if suspect.aside is None:
        verdict, where = "a passing fault", ""
    else:
        verdict = f"the checkpoint of step {suspect.aside:,} is spoiled, by a fault before it was saved"
        where = " from the one before"
    return (
        f"verdict: {verdict}. Computed again{where}, {found}, and the run goes on from there. Look at the "
        "memory and the devices of this machine"
    )


def to_compute_again(found: WrongNumbers, workdir: Path, say: Callable[[str], None]) -> WrongNumbers:
    """What is computed again from the newest checkpoint, where one may be set aside; all processes call it.

    Args:
        found: wrong numbers.
        workdir: of the run, or the folder of a bucket where its checkpoints are.
        say: is told what will be done.

    Raises:
        LastingFault: it was computed again before, and there is no older checkpoint to do so once more.
    """
    first = found.suspect
    found.with_traceback(None).__context__ = None  # frames hold the state
    if first is None:
        say(f"{found}: by the run or by the machine? Back to compute it again")
        return found
    newest, *older = steps_of_first(workdir) or [0]
    if first.aside is not None or not older:
        raise lasting(first, found) from found
    cluster.first_does(lambda: quarantine(workdir, newest))
    first.aside = newest
    say(
        f"{found}, computed again from the checkpoint of step {newest:,}: by the run, or was that saved with "
        f"wrong numbers? It is in {workdir / 'damaged'} now. Back to step {older[0]:,}, to compute "
        f"{first.step - older[0]:,} steps again, once"
    )
    return first


def lasting(first: WrongNumbers, again: WrongNumbers) -> LastingFault:
    """The verdict of numbers that were wrong twice."""
    if first.step != again.step or first.loss is None or again.loss is None:
        then = str(again)
    elif str(first.loss) == str(again.loss):
        then = f"it is the same to the last digit (loss {again.loss:.4g})"
    else:
        then = f"it is wrong again, by other digits (losses {first.loss:.4g} and {again.loss:.4g})"
    where = "the last checkpoint" if first.aside is None else "the last checkpoint and from the one before"
    return LastingFault(
        f"{first}; computed again from {where}, {then}. Verdict: a lasting fault, of the run itself. Look "
        "for NaN in the data, lower optimizer.learning_rate, or set optimizer.clip_norm or model.clamp. If "
        "the machine is in doubt, move the newest checkpoints away and start again from an older one"
    )
