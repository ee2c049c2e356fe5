"""Whether steps wait for data, and whether one of several processes holds up the others."""

import statistics

import jax

from pom_jax import cluster

STALL = 0.5  # of a step's time: the least that waiting for data is called a stall
SLOW = 2.0  # times the usual work of a host beside its device that make it slow
FEWEST = 20  # steps that are compared
LEAST = 0.1  # of the time of the steps: below it a slow host holds nobody up


class Pace:
    """Adds up what a process does between two comparisons, beside computing and waiting for the others.

    Attributes:
        stalls: steps so far that waited for data for more than half of their time.
        slow: slow hosts that were found so far.
    """

    def __init__(self) -> None:
        self.stalls = self.slow = 0
        self._steps, self._seconds, self._busy = 0, 0.0, 0.0

    def add(self, whole: float, waited: float, host: float) -> None:
        """A step took `whole` seconds, of which this process waited for data and was busy on its host."""
        self.stalls += waited > STALL * whole
        self._steps, self._seconds, self._busy = self._steps + 1, self._seconds + whole, self._busy + host
        self._busy += waited

    def compare(self) -> list[str]:
        """A line about each process that holds up the others; called by all of them at the same step."""
        steps, seconds, busy = self._steps, self._seconds, self._busy
        self._steps, self._seconds, self._busy = 0, 0.0, 0.0
        if jax.process_count() == 1 or steps < FEWEST:
            return []
        own = [float(text) for text in cluster.share(f"{busy:.6f}")]
        lines = slow_lines(own, steps, seconds)
        self.slow += len(lines)
        return lines


def slow_lines(busy: list[float], steps: int, seconds: float) -> list[str]:
    """What to say of the processes that were busy for so many seconds of `steps` steps."""
    usual = statistics.median_low(busy)
    return [
        f"warning: process {number} is slow: {own:.1f} s of the {seconds:.1f} s of the last {steps:,} steps "
        f"went into its own work and its waiting for data, of a usual process {usual:.1f} s"
        for number, own in enumerate(busy)
        if own > SLOW * usual and own > LEAST * seconds
    ]
