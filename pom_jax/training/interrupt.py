"""Signals that end a run in good order, so that a scheduler can start it again."""

import contextlib
import signal
from types import FrameType
from typing import Any

from pom_jax.training.progress import Log


class Interrupt:
    """Notes SIGTERM and Ctrl-C within a `with` block; a second one ends the process at once.

    Attributes:
        number: the signal that came, or None.
    """

    def __init__(self, log: Log):
        self.number: int | None = None
        self._log = log
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """What a shell reports for the signal: 143 for SIGTERM, 130 for Ctrl-C."""
        return 128 + (self.number or 0)

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.number = number
        for other in self._before:
            signal.signal(other, signal.SIG_DFL)  # a Python handler would wait for what the device is doing
        name = signal.Signals(number).name
        with contextlib.suppress(RuntimeError):  # it may have come in the middle of another line
            self._log.line(f"{name}: finishing this step and saving; a second signal quits at once")
