"""Signals that end a run in good order, so that a scheduler can start it again."""

import contextlib
import signal
from types import FrameType
from typing import Any, Protocol

import jax
from jax.experimental import multihost_utils

from pom_jax import cluster


class Lines(Protocol):
    """Takes lines for people."""

    def line(self, text: str) -> None: ...


class Interrupt:
    """Notes SIGTERM and Ctrl-C within a `with` block; a Ctrl-C after that ends the process at once.

    A SIGTERM after that changes nothing: schedulers signal a process twice, or its neighbours seconds apart,
    and end what hangs with SIGKILL. Before the block, while a run starts and compiles, nothing is to be
    saved, and the first signal ends the process.

    Where several processes train as one (`cluster.join`), a SIGTERM to any of them is a notice of preemption
    that JAX carries to all, with the step after which all of them stop. That takes about a second and some
    steps. Ctrl-C is handed on as a SIGTERM.

    Args:
        log: is told of a signal.
        part: what is finished before the end.

    Attributes:
        number: the signal that came, or None.
    """

    def __init__(self, log: Lines, part: str = "step"):
        self.number: int | None = None
        self._log, self._part = log, part
        self._before: dict[int, Any] = {}
        self._together = jax.distributed.is_initialized()
        self._asked = 0
        self._agreed = False

    @property
    def exit_code(self) -> int:
        """What a shell reports for the signal: 143 for SIGTERM, 130 for Ctrl-C."""
        return 128 + (self.number or 0)

    def stops(self, step: int) -> bool:
        """Whether the run stops here, where `step` is the last one done; all processes ask equally often."""
        if not self._together:
            return self.number is not None
        if self._agreed:
            return True
        # JAX compares for equality, and counts from 1 where the notice came before the first question.
        self._asked += 1
        if not multihost_utils.reached_preemption_sync_point(self._asked):
            return False
        self._agreed = True
        self.number = self.number or signal.SIGTERM
        self._say(f"all processes stop after step {step:,} and save it; Ctrl-C from now on quits at once")
        self._release_ctrl_c()
        return True

    def __enter__(self) -> "Interrupt":
        if self._together:
            cluster.heed_preemption()
        # In place of a handler of Python's, JAX could not learn of a SIGTERM.
        for number in (signal.SIGINT,) if self._together else (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.number is not None:
            return
        self.number = number
        self._release_ctrl_c()
        if self._together:
            signal.raise_signal(signal.SIGTERM)  # to JAX's handler, which only notes the first
            self._say("stopping all processes after a step soon and saving; a second Ctrl-C quits at once")
        else:
            self._say(f"finishing this {self._part} and saving; Ctrl-C from now on quits at once")

    def _release_ctrl_c(self) -> None:
        # A Python handler would wait for what the device is doing.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _say(self, text: str) -> None:
        with contextlib.suppress(RuntimeError):  # it may have come in the middle of another line
            self._log.line(f"{signal.Signals(self.number or signal.SIGTERM).name}: {text}")
