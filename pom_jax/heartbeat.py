"""Notices that one of several processes has fallen silent, before the others wait for it for ever."""

import os
import sys
import threading
from pathlib import Path

import jax
from jax._src import distributed

from pom_jax import cluster

PULSE = 5.0  # seconds between two signs of life
SILENCE = 90.0  # seconds without one after which a process counts as lost
FOLDER = "alive"  # of the signs, in the store that JAX's coordination service keeps on process 0


class Heartbeat:
    """Within a `with` block, a process that falls silent ends this one with a line and `cluster.LOST`.

    The connections of a process that dies are closed, which the others notice at once. Those of a host that
    hangs or is cut off stay open. JAX notices that too, after `cluster.HEARTBEAT`, but aborts with stacks.

    Args:
        log: file to which the line is added.
    """

    def __init__(self, log: Path):
        self._log = log
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        if jax.process_count() > 1:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(PULSE)  # not for ever: process 0 may have fallen silent now

    def _watch(self) -> None:
        own, count, signs = jax.process_index(), 0, {}
        silent: dict[str, int] = {}  # pulses, not seconds: nobody is lost where all were suspended
        limit = round(SILENCE / PULSE) + (2 if own == 0 else 0)  # its own end would abort those who look
        try:
            while not self._end.is_set():
                count += 1
                found = self._exchange(own, str(count))
                for process, sign in found.items():
                    same = sign == signs.get(process) and sign != "left"
                    silent[process] = silent.get(process, 0) + 1 if same else 0
                    if silent[process] >= limit:
                        self._lose(process)
                signs = found
                self._end.wait(PULSE)
            self._exchange(own, "left")
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                self._lose("0")

    @staticmethod
    def _exchange(own: int, sign: str) -> dict[str, str]:
        """Gives the sign of this process, and returns those of all by now."""
        client = distributed.global_state.client
        assert client is not None
        if own != 0:
            client.blocking_key_value_get(f"{FOLDER}/0", round(SILENCE * 1000))  # the others have no deadline
        client.key_value_set(f"{FOLDER}/{own}", sign, allow_overwrite=True)
        return {key.rpartition("/")[2]: value for key, value in client.key_value_dir_get(FOLDER)}

    def _lose(self, process: str) -> None:
        words = f"process {process} has given no sign of life for {SILENCE:g} s"
        cluster.tell(f"error: {cluster.name()}: another process is gone: {words}", self._log)
        sys.stdout.flush()
        os._exit(cluster.LOST)
