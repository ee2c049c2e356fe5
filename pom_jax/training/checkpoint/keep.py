"""Which checkpoints of a run stay."""

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass
class LastBestAndMilestones:
    """The newest steps, those with the lowest held-out loss, and every so many steps one for ever.

    The storage's own policies know no losses of before the run was resumed.

    Attributes:
        last: how many of the newest stay.
        best: how many with the lowest held-out loss stay.
        every: steps divisible by it stay; 0 for none.
        losses: held-out losses by step, of those that have one.
    """

    last: int
    best: int
    every: int
    losses: dict[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """One word for each of the checkpoints, which are in the order of their steps."""
        steps = [saved.step for saved in checkpoints]
        known = sorted((step for step in steps if step in self.losses), key=self.losses.__getitem__)
        kept = {*steps[-self.last :], *known[: self.best]}
        return [step in kept or (self.every > 0 and step % self.every == 0) for step in steps]
