"""Where the time of a run goes, over all the processes that worked on it, however they ended.

Every instant of a process belongs to one phase, so that the phases add up to its life, from its start, with
the imports, to its last line; not in it is what the interpreter then takes to exit. The account is
WORKDIR/ledger.json, written anew every two seconds, also while the process waits for something. That of a
process that was killed ends there; the next one carries it on to the last row of metrics.jsonl, if that is
the last sign of life.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pom_jax.durations import duration
from pom_jax.files import write_whole
from pom_jax.training.metrics import FILE as ROWS
from pom_jax.training.metrics import TIME, rows_after

FILE = "ledger.json"
EVERY = 2.0  # seconds between two writings

# What a moment goes into: steps of training; waiting for data, the device having nothing to do; compiling;
# imports, start and reading the state; losses, pictures and scores of the model; waiting for checkpoints;
# steps of a process that was killed, done again by the next; anything else.
PHASES = ("steps", "data", "compile", "init", "evaluation", "checkpoint", "lost", "other")


@dataclasses.dataclass
class Process:
    """One process of a run.

    Attributes:
        began: when it started, in seconds since 1970.
        seen: its last sign of life.
        phase: what it was at then.
        ended: whether it ended by itself; False while it runs, and after a kill.
        step: the last one that was done by then.
        first_step: when its first step was done, None before.
        resumed: the step that it went on after, None before that is known.
        lost_steps: how many of its steps were done again later.
        seconds: spent in each of PHASES.
    """

    began: float
    seen: float
    phase: str = "init"
    ended: bool = False
    step: int = 0
    first_step: float | None = None
    resumed: int | None = None
    lost_steps: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))


class Ledger:
    """The account of this process, and of those before it that worked on the same run.

    Within a `with` block, that of an open one is written every EVERY seconds; the block ends with `close`.

    Args:
        began: when this one began, in seconds since 1970; now if left out.

    Attributes:
        processes: from the first to this one.
    """

    def __init__(self, began: float | None = None) -> None:
        now = time.time()
        age = 0.0 if began is None else now - began
        self._this = Process(began=now - age, seen=now)
        self.processes = [self._this]
        self._path: Path | None = None
        self._since = time.perf_counter() - age
        self._changing, self._writing = threading.RLock(), threading.Lock()
        self._end = threading.Event()
        self._writer = threading.Thread(target=self._keep, name="ledger", daemon=True)

    def __enter__(self) -> "Ledger":
        if self._path is not None:
            self._writer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, workdir: Path) -> None:
        """Takes over the account of `workdir`, whose lock this process holds, and keeps it from now on."""
        self._path = workdir / FILE
        before = _read(self._path)
        if before and not before[-1].ended:
            _carry_on(before[-1], workdir)
        self.processes = [*before, self._this]
        self.write()

    def resume(self, step: int) -> None:
        """Books as lost what was done after `step`, from where the run goes on, in this process or before."""
        self._this.step = step
        if self._path is None:
            return
        self._enter()
        rows = rows_after(self._path.parent, step)
        *_, before, this = Process(0, 0), *self.processes
        if before.resumed is not None and before.first_step is this.first_step is None:
            # It ended before a step, and its rows are still there: what it has booked is not lost again.
            rows = [row for row in rows if row["step"] <= before.resumed]
        spent = _spent(rows)
        del spent["checkpoint"]  # of the step before, which is kept
        with self._changing:
            self._this.resumed = step
            for process in reversed(self.processes):
                for phase in spent:
                    moved = min(spent[phase], process.seconds[phase])
                    spent[phase] -= moved
                    process.seconds[phase] -= moved
                    process.seconds["lost"] += moved
            at_work = [process for process in self.processes if process.first_step is not None]
            if at_work:  # else the rows are of the run that this one branches off
                at_work[-1].lost_steps += len(rows)
        self.write()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is done within goes into `name`, and after it again into what was before."""
        before = self._enter(name)
        try:
            yield
        finally:
            self._enter(before)

    def enter(self, name: str) -> None:
        """From here on everything goes into `name`."""
        self._enter(name)
        self.write()

    def step(self, number: int) -> None:
        """A step is done, and its row written."""
        self._this.step = number
        if self._this.first_step is None:
            self._this.first_step = time.time()
            self.write()

    def write(self) -> None:
        """Brings the file up to date; whole or not at all."""
        if self._path is None:
            return
        with self._writing:
            with self._changing:  # and not while the disk is waited for
                self._enter()
                text = json.dumps([dataclasses.asdict(process) for process in self.processes]) + "\n"
            with contextlib.suppress(OSError):  # no reason to end a run, or to hide why it ends
                write_whole(self._path, text, sync=False)

    def close(self) -> None:
        """The process ends by itself."""
        self._end.set()
        if self._writer.is_alive():
            self._writer.join()
        self._this.ended = True
        self.write()

    def totals(self) -> dict[str, float]:
        """Seconds in each of PHASES, over all processes."""
        self._enter()
        return {phase: sum(p.seconds[phase] for p in self.processes) for phase in PHASES}

    def summary(self) -> str:
        """All of it, for people."""
        totals = self.totals()
        whole = sum(totals.values())
        parts = [f"{name} {100 * seconds / whole:.1f} %" for name, seconds in totals.items()]
        count = len(self.processes)
        starts = "one start" if count == 1 else f"{count:,} starts"
        text = f"time: {duration(whole)} in {starts}: {', '.join(parts)}"
        pairs = itertools.pairwise(self.processes)
        killed = [(old, new) for old, new in pairs if not old.ended and old.first_step is not None]
        if not killed:
            return text
        steps = sum(process.lost_steps for process in self.processes)
        text += f"\nkilled {'once' if len(killed) == 1 else f'{len(killed):,} times'}: {steps:,} steps were "
        text += "done again"
        found = [new.first_step - old.seen for old, new in killed if new.first_step is not None]
        each = ", ".join(f"{seconds:.1f}" for seconds in found[-3:])
        return f"{text}; {each} s from the last sign of life to the next step" if found else text

    def _keep(self) -> None:
        while not self._end.wait(EVERY):
            self.write()

    def _enter(self, name: str | None = None) -> str:
        with self._changing:
            now = time.perf_counter()
            before = self._this.phase
            self._this.phase = before if name is None else name
            self._this.seconds[before] += now - self._since
            self._since, self._this.seen = now, time.time()
            return before


def read(workdir: str | Path) -> list[Process]:
    """The account of a run, a process an entry; empty where there is none."""
    return _read(Path(workdir) / FILE)


def _carry_on(process: Process, workdir: Path) -> None:
    """Takes the account of a killed process on to its last row."""
    rows = workdir / ROWS
    seen = max(process.seen, rows.stat().st_mtime if rows.exists() else 0.0)
    left, process.seen = seen - process.seen, seen
    if process.first_step is not None and (later := rows_after(workdir, process.step)):
        process.phase, spent = "steps", _spent(later)
        for phase in ("data", "evaluation", "checkpoint"):
            known = min(spent[phase], left)
            process.seconds[phase] += known
            left -= known
    process.seconds[process.phase] += left


def _spent(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of some steps by phases."""
    names = {"data": "input", "evaluation": "evaluation", "checkpoint": "checkpoint"}
    spent = {phase: sum(row.get(f"{TIME}{name}") or 0.0 for row in rows) for phase, name in names.items()}
    whole = sum(row.get(f"{TIME}step") or 0.0 for row in rows)
    return {**spent, "steps": whole - sum(spent.values())}


def _read(path: Path) -> list[Process]:
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text())
        found = [Process(**entry) for entry in entries]
        return [dataclasses.replace(p, seconds={n: float(p.seconds[n]) for n in PHASES}) for p in found]
    except (OSError, ValueError, TypeError, KeyError):
        return []  # of a run from before there was one, or damaged: no reason to stop


def process_start() -> float:
    """When this process was started, in seconds since 1970; now, on systems other than Linux."""
    now = time.time()
    try:
        with open("/proc/self/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        return now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, AttributeError):
        return now
